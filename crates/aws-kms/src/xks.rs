//! A key in an external key store (XKS). To its callers it is a KMS key whose origin is
//! `EXTERNAL_KEY_STORE`. For it, KMS calls a proxy that the key's owner runs.
//!
//! `errors` says what such a key's failures mean, along with all others. This file holds the other
//! differences: its timeout and retries, the quota that all keys of a store share, and the store's
//! own state.
//!
//! Sources: "External key stores" in the AWS KMS Developer Guide; `DescribeCustomKeyStores` in the
//! AWS KMS API Reference; External Key Store Proxy API Specification, version 1.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::answers::Description;
use crate::errors::Failure;
use crate::format::KeyArn;
use waxseal::CallBudget;
use waxseal::Error;
use waxseal::kek::CallAdvice;
use waxseal::kek::KekErrorClass;

/// KMS gives the proxy 250 ms, including the connection, and retries once after a network timeout
/// ("Monitor external key stores", latency). An answer that takes twice those 500 ms will not come.
const TIMEOUT: Duration = Duration::from_secs(1);
/// One more than for KMS itself: most failures are calls that needed more than 250 ms, and the AWS
/// SDK would not retry at all. They fit into the default deadline of 5 s.
const TRIES: u32 = 4;
/// Twice that of KMS itself: there is one key manager behind the proxy, not a fleet.
const BACKOFF: Duration = Duration::from_millis(100);
/// A quarter of a store's default quota of 1,800 requests a second (specification,
/// `GetHealthStatus`), which all keys, accounts and hosts share.
const STORE_PER_SECOND: u32 = 450;
const STORE_IN_FLIGHT: u32 = 64;
/// The maximum number of keys whose place is known or was asked for. With discovery, messages name
/// them.
const MOST_KEYS: usize = 1024;
/// The exception of every failure of an external key store.
pub(crate) const INVALID_STATE: &str = "KMSInvalidStateException";
/// `DescribeCustomKeyStores` knows only the stores of the caller's own account.
pub(crate) const NOT_FOUND: &str = "CustomKeyStoreNotFoundException";

/// The default budgets, by store. All envelopes and keys in this process share them.
static BUDGETS: Mutex<BTreeMap<String, CallBudget>> = Mutex::new(BTreeMap::new());

/// An external key store that holds the key.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) id: String,
    advice: CallAdvice,
}

impl Store {
    pub(crate) fn new(
        id: String,
        key_arn: &str,
        budget: Option<CallBudget>,
    ) -> Result<Self, Error> {
        let budget = match budget {
            Some(budget) => budget,
            None => shared_budget(&id, key_arn)?,
        };
        let advice =
            CallAdvice::default().timeout(TIMEOUT).tries(TRIES).backoff(BACKOFF).budget(budget);
        Ok(Self { id, advice })
    }

    pub(crate) fn advice(&self) -> CallAdvice {
        self.advice.clone()
    }
}

fn shared_budget(store: &str, key_arn: &str) -> Result<CallBudget, Error> {
    let place = KeyArn::read(key_arn)
        .map(|arn| format!("{}:{}:{}", arn.partition, arn.region, arn.account));
    let name = format!("{}:{store}", place.unwrap_or_default());
    let mut budgets = BUDGETS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(budget) = budgets.get(&name) {
        return Ok(budget.clone());
    }
    let budget = CallBudget::new(STORE_PER_SECOND, STORE_IN_FLIGHT)?;
    budgets.insert(name, budget.clone());
    Ok(budget)
}

/// Which of a provider's keys are known to be in external key stores.
pub(crate) struct Stores {
    /// The store of the key that wraps, as the user named it.
    named: Option<String>,
    budget: Option<CallBudget>,
    /// By the key's ARN. Read without a lock, since a forked child may read it too.
    keys: ArcSwap<HashMap<String, Place>>,
}

/// Where a key is.
#[derive(Clone)]
enum Place {
    Store(Arc<Store>),
    /// KMS holds it, or does not say.
    Elsewhere,
    /// No answer yet. Not to be asked before this time.
    Asked {
        again: Instant,
    },
}

impl Stores {
    pub(crate) fn new(named: Option<String>, budget: Option<CallBudget>) -> Self {
        Self { named, budget, keys: ArcSwap::default() }
    }

    /// Returns the store of this key.
    pub(crate) fn of(&self, arn: &str) -> Option<Arc<Store>> {
        match self.keys.load().get(arn)? {
            Place::Store(store) => Some(store.clone()),
            Place::Elsewhere | Place::Asked { .. } => None,
        }
    }

    /// Returns the advice for a former or discovered key. While it is unknown whether it is in the
    /// store whose budget was given, it is called within that budget.
    pub(crate) fn advice_for_other(&self, arn: &str) -> CallAdvice {
        match (self.keys.load().get(arn), &self.budget) {
            (Some(Place::Store(store)), _) => store.advice(),
            (Some(Place::Elsewhere), _) | (_, None) => CallAdvice::default(),
            (_, Some(budget)) => CallAdvice::default().budget(budget.clone()),
        }
    }

    fn put(&self, arn: &str, place: &Place) {
        self.keys.rcu(|keys| {
            let mut keys = HashMap::clone(keys);
            if keys.len() >= MOST_KEYS && !keys.contains_key(arn) {
                keys.retain(|_, place| matches!(place, Place::Store(_)));
            }
            if keys.len() < MOST_KEYS || keys.contains_key(arn) {
                keys.insert(arn.to_owned(), place.clone());
            }
            keys
        });
    }

    /// Records where this key is.
    pub(crate) fn learn(&self, arn: &str, store: Option<&str>) -> Result<(), Error> {
        let place = match (store, self.keys.load().get(arn)) {
            (Some(store), Some(Place::Store(known))) if known.id == store => return Ok(()),
            (None, Some(Place::Elsewhere)) => return Ok(()),
            (Some(store), _) => {
                Place::Store(Store::new(store.to_owned(), arn, self.budget.clone())?.into())
            }
            (None, _) => Place::Elsewhere,
        };
        self.put(arn, &place);
        Ok(())
    }

    /// Compares `DescribeKey`'s answer for the key that wraps with what the user said, or learns
    /// from it.
    pub(crate) fn learn_own(&self, key: &Description) -> Result<(), Failure> {
        let found = key.external_key_store.as_deref();
        if let Some(named) = self.named.as_deref().filter(|named| found != Some(named)) {
            let found = found.unwrap_or("no external key store");
            let detail = format!("external_key_store: {} is in {found}, not in {named}", key.arn);
            return Err(Failure::new(KekErrorClass::Misconfigured, detail));
        }
        self.learn(&key.arn, found)
            .map_err(|error| Failure::new(KekErrorClass::Misconfigured, error.to_string()))
    }

    /// Whether to ask now where this key is. Not again soon after a question.
    pub(crate) fn is_to_be_asked(&self, arn: &str, pause: Duration) -> bool {
        let now = Instant::now();
        let is_to_be = match self.keys.load().get(arn) {
            Some(Place::Store(_) | Place::Elsewhere) => false,
            Some(Place::Asked { again }) => now >= *again,
            None => true,
        };
        // Two concurrent questions only cost one more call.
        let Some(again) = now.checked_add(pause).filter(|_| is_to_be) else { return false };
        self.put(arn, &Place::Asked { again });
        // A key that cannot be recorded would be asked about at each call.
        self.keys.load().contains_key(arn)
    }
}

/// The state of an external key store, as
/// [`read_external_key_store`](crate::AwsKmsKek::read_external_key_store) found it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ExternalKeyStore {
    /// Its id, such as `cks-1234567890abcdef0`.
    pub id: String,
    /// KMS's word for its state: `CONNECTED`, `CONNECTING`, `FAILED`, `DISCONNECTED`,
    /// `DISCONNECTING`.
    pub connection_state: String,
    /// Why it is `FAILED`, in KMS's words, such as `XKS_PROXY_NOT_REACHABLE`.
    pub connection_error: Option<String>,
}

impl ExternalKeyStore {
    /// Whether its keys can be used according to KMS, and otherwise the failure of a use.
    ///
    /// Whatever the error code of a failed connection, KMS does not retry until an operator
    /// disconnects and connects the store, so it is not an outage.
    pub(crate) fn usable(&self) -> Result<(), Failure> {
        let Self { id, connection_state, connection_error } = self;
        let class = match connection_state.as_str() {
            "CONNECTED" => return Ok(()),
            // Intentional, and so the key's state is *Unavailable*.
            "DISCONNECTED" => KekErrorClass::Denied,
            "FAILED" | "DISCONNECTING" => KekErrorClass::Misconfigured,
            // CONNECTING, and unknown states.
            _ => KekErrorClass::Unavailable,
        };
        let why = connection_error.as_ref().map(|code| format!(": {code}")).unwrap_or_default();
        Err(Failure::new(class, format!("external key store {id} is {connection_state}{why}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/11112222-3333-4444-5555-666677778888";

    #[test]
    fn keys_of_one_store_share_its_budget_and_keys_of_another_do_not() {
        let budget = |store: &str, arn: &str| {
            Store::new(store.to_owned(), arn, None).unwrap().advice().call_budget().unwrap().clone()
        };
        let other_key = ARN.replace("8888", "9999");
        let first = budget("cks-1", ARN);
        assert!(first.is_same(&budget("cks-1", &other_key)));
        assert!(!first.is_same(&budget("cks-2", ARN)));
        assert!(!first.is_same(&budget("cks-1", &ARN.replace("eu-west-1", "eu-west-2"))));
        let own = CallBudget::new(4, 4).unwrap();
        let store = Store::new("cks-1".to_owned(), ARN, Some(own.clone())).unwrap();
        assert!(store.advice().call_budget().unwrap().is_same(&own));
    }

    #[test]
    fn a_key_is_asked_about_once_in_a_while_and_not_at_all_if_it_cannot_be_noted() {
        let pause = std::time::Duration::from_secs(30);
        let stores = Stores::new(None, None);
        assert!(stores.is_to_be_asked(ARN, pause));
        assert!(!stores.is_to_be_asked(ARN, pause));
        let full = Stores::new(None, None);
        for n in 0..MOST_KEYS {
            full.learn(&format!("{ARN}-{n}"), Some("cks-1")).unwrap();
        }
        assert!(!full.is_to_be_asked(ARN, pause));
    }

    #[test]
    fn a_store_that_an_operator_has_to_connect_is_no_outage() {
        let usable = |state: &str, code: Option<&str>| {
            let store = ExternalKeyStore {
                id: "cks-1".to_owned(),
                connection_state: state.to_owned(),
                connection_error: code.map(ToOwned::to_owned),
            };
            store.usable().map_err(|failure| (failure.class, failure.text))
        };
        assert_eq!(usable("CONNECTED", None), Ok(()));
        for state in ["FAILED", "DISCONNECTING"] {
            assert_eq!(usable(state, None).unwrap_err().0, KekErrorClass::Misconfigured, "{state}");
        }
        assert_eq!(usable("DISCONNECTED", None).unwrap_err().0, KekErrorClass::Denied);
        for state in ["CONNECTING", "SOMETHING_NEW"] {
            assert_eq!(usable(state, None).unwrap_err().0, KekErrorClass::Unavailable, "{state}");
        }
        let (_, text) = usable("FAILED", Some("XKS_PROXY_NOT_REACHABLE")).unwrap_err();
        assert!(text.contains("cks-1 is FAILED: XKS_PROXY_NOT_REACHABLE"), "{text}");
    }
}
