//! A key in an external key store (XKS): to its callers a KMS key whose origin is
//! `EXTERNAL_KEY_STORE`, for which KMS asks a proxy that the key's owner runs.
//!
//! What such a key's failures mean is in `errors`, with all others. Here is what differs besides:
//! its timeout and retries, the quota that all keys of a store share, and a state that the store
//! has of its own.
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

/// KMS gives the proxy 250 ms, connection included, and asks it once more after a network timeout
/// ("Monitor external key stores", latency): what has not come after twice those 500 ms does not
/// come.
const TIMEOUT: Duration = Duration::from_secs(1);
/// One more than of KMS itself: most failures are 250 ms that were too short, and the AWS SDK would
/// not try again at all. They fit into the default deadline of 5 s.
const TRIES: u32 = 4;
/// Twice that of KMS itself: behind the proxy is one key manager, not a fleet.
const BACKOFF: Duration = Duration::from_millis(100);
/// A quarter of a store's default quota of 1,800 requests a second (specification,
/// `GetHealthStatus`), which all keys, accounts and hosts share.
const STORE_PER_SECOND: u32 = 450;
const STORE_IN_FLIGHT: u32 = 64;
/// Keys of which it is known, or asked, where they are: messages name them where there is
/// discovery.
const MOST_KEYS: usize = 1024;
/// What every failure of an external key store is called.
pub(crate) const INVALID_STATE: &str = "KMSInvalidStateException";
/// `DescribeCustomKeyStores` knows of the stores of the caller's own account only.
pub(crate) const NOT_FOUND: &str = "CustomKeyStoreNotFoundException";

/// The default budgets, by store: whichever envelope and whichever key, it is the same in this
/// process.
static BUDGETS: Mutex<BTreeMap<String, CallBudget>> = Mutex::new(BTreeMap::new());

/// The external key store that holds the key.
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

/// Which of the keys that a provider uses are in external key stores, as far as it is known.
pub(crate) struct Stores {
    /// Of the key that wraps, as the user said.
    named: Option<String>,
    budget: Option<CallBudget>,
    /// By the key's ARN. Read without a lock: a forked child may be asked too.
    keys: ArcSwap<HashMap<String, Place>>,
}

/// Where a key is.
#[derive(Clone)]
enum Place {
    Store(Arc<Store>),
    /// KMS holds it, or does not say.
    Elsewhere,
    /// Nobody has answered yet: not to be asked before this.
    Asked {
        again: Instant,
    },
}

impl Stores {
    pub(crate) fn new(named: Option<String>, budget: Option<CallBudget>) -> Self {
        Self { named, budget, keys: ArcSwap::default() }
    }

    /// The store of this key.
    pub(crate) fn of(&self, arn: &str) -> Option<Arc<Store>> {
        match self.keys.load().get(arn)? {
            Place::Store(store) => Some(store.clone()),
            Place::Elsewhere | Place::Asked { .. } => None,
        }
    }

    /// How a former or discovered key is called. While it is not known whether it is in the store
    /// whose budget was given, it is called within that.
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

    /// This key is there.
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

    /// Holds what `DescribeKey` says of the key that wraps against what the user said, or learns
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

    /// Whether it is to be asked now where this key is: not again soon.
    pub(crate) fn is_to_be_asked(&self, arn: &str, pause: Duration) -> bool {
        let now = Instant::now();
        let is_to_be = match self.keys.load().get(arn) {
            Some(Place::Store(_) | Place::Elsewhere) => false,
            Some(Place::Asked { again }) => now >= *again,
            None => true,
        };
        // Two that ask at once cost one call more.
        let Some(again) = now.checked_add(pause).filter(|_| is_to_be) else { return false };
        self.put(arn, &Place::Asked { again });
        // One key more than can be noted would be asked about at each call.
        self.keys.load().contains_key(arn)
    }
}

/// Describes an external key store, as
/// [`read_external_key_store`](crate::AwsKmsKek::read_external_key_store) found it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ExternalKeyStore {
    /// Its id, such as `cks-1234567890abcdef0`.
    pub id: String,
    /// In the words of KMS: `CONNECTED`, `CONNECTING`, `FAILED`, `DISCONNECTED`, `DISCONNECTING`.
    pub connection_state: String,
    /// Why it is `FAILED`, in the words of KMS, such as `XKS_PROXY_NOT_REACHABLE`.
    pub connection_error: Option<String>,
}

impl ExternalKeyStore {
    /// Whether its keys can be used, as far as KMS knows; if not, what a use would come to.
    ///
    /// Whatever the error code of a failed connection is: KMS does not try again until an operator
    /// disconnects and connects the store, so it is no outage.
    pub(crate) fn usable(&self) -> Result<(), Failure> {
        let Self { id, connection_state, connection_error } = self;
        let class = match connection_state.as_str() {
            "CONNECTED" => return Ok(()),
            // On purpose, and so the key's state is *Unavailable*.
            "DISCONNECTED" => KekErrorClass::Denied,
            "FAILED" | "DISCONNECTING" => KekErrorClass::Misconfigured,
            // CONNECTING, and what is not known yet.
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
