//! A key in an external key store (XKS): to its callers a KMS key whose origin is `EXTERNAL_KEY_STORE`, for which KMS asks a proxy that the key's owner runs.
//!
//! What such a key's failures mean is in `errors`, with all others. Here is what differs besides: how patiently it is called, the quota that all keys of a
//! store share, and a state that the store has of its own.
//!
//! Sources: "External key stores" in the AWS KMS Developer Guide; `DescribeCustomKeyStores` in the AWS KMS API Reference; External Key Store Proxy API Specification, version 1.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::super::call::{CallAdvice, CallBudget};
use super::super::{Health, KekError, KekErrorClass};
use super::client::Description;
use super::errors::Failure;
use super::{AwsKms, Inner};
use crate::error::Error;
use crate::format::kms::KeyArn;

/// KMS gives the proxy 250 ms, connection included, and asks it once more after a network timeout ("Monitor external key stores", latency): what has not
/// come after twice those 500 ms does not come.
const TIMEOUT: Duration = Duration::from_secs(1);
/// One more than of KMS itself: most failures are 250 ms that were too short, and the AWS SDK would not try again at all. They fit into the default deadline of 5 s.
const TRIES: u32 = 4;
/// Twice that of KMS itself: behind the proxy is one key manager, not a fleet.
const BACKOFF: Duration = Duration::from_millis(100);
/// A quarter of a store's default quota of 1,800 requests a second (specification, `GetHealthStatus`), which all keys, accounts and hosts share.
const STORE_PER_SECOND: u32 = 450;
const STORE_IN_FLIGHT: u32 = 64;
/// `DescribeCustomKeyStores` knows of the stores of the caller's own account only.
const NOT_FOUND: &str = "CustomKeyStoreNotFoundException";

/// The default budgets, by store: whichever envelope and whichever key, it is the same in this process.
static BUDGETS: Mutex<BTreeMap<String, CallBudget>> = Mutex::new(BTreeMap::new());

/// The external key store that holds the key.
#[derive(Debug)]
pub(super) struct Store {
    id: String,
    advice: CallAdvice,
}

impl Store {
    pub(super) fn new(id: String, key_arn: &str, budget: Option<CallBudget>) -> Result<Self, Error> {
        let budget = match budget {
            Some(budget) => budget,
            None => shared_budget(&id, key_arn)?,
        };
        let advice = CallAdvice::default().timeout(TIMEOUT).tries(TRIES).backoff(BACKOFF).budget(budget);
        Ok(Self { id, advice })
    }

    pub(super) fn advice(&self) -> CallAdvice {
        self.advice.clone()
    }
}

fn shared_budget(store: &str, key_arn: &str) -> Result<CallBudget, Error> {
    let place = KeyArn::read(key_arn).map(|arn| format!("{}:{}:{}", arn.partition, arn.region, arn.account));
    let name = format!("{}:{store}", place.unwrap_or_default());
    let mut budgets = BUDGETS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(budget) = budgets.get(&name) {
        return Ok(budget.clone());
    }
    let budget = CallBudget::new(STORE_PER_SECOND, STORE_IN_FLIGHT)?;
    budgets.insert(name, budget.clone());
    Ok(budget)
}

/// What [`AwsKms::read_external_key_store`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
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
    /// Whatever the error code of a failed connection is: KMS does not try again until an operator disconnects and connects the store, so it is no outage.
    fn usable(&self) -> Result<(), Failure> {
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

impl AwsKms {
    /// Asks KMS for the external key store that holds the key (`DescribeCustomKeyStores`): its connection, and why that failed. *Connected* does not say that
    /// the proxy answers now; KMS's metrics of the store do.
    ///
    /// # Errors
    /// Those of KMS; *misconfigured* for a key that is in no external key store.
    pub async fn read_external_key_store(&self) -> Result<ExternalKeyStore, KekError> {
        let inner = self.0.clone();
        self.0
            .home
            .run(async move {
                if inner.store.load().is_none() {
                    inner.describe().await?;
                }
                match &*inner.store.load() {
                    Some(store) => inner.read_store(store).await,
                    None => Err(Failure::new(
                        KekErrorClass::Misconfigured,
                        format!("{} is in no external key store", inner.own()?),
                    )),
                }
            })
            .await
    }
}

impl Inner {
    /// Holds what `DescribeKey` says against what the user said, or learns from it.
    pub(super) fn learn_store(&self, key: &Description) -> Result<(), Failure> {
        let found = key.external_key_store.as_ref();
        match (&*self.store.load(), found) {
            (Some(known), found) if found != Some(&known.id) => {
                let found = found.map_or("no external key store", String::as_str);
                let detail = format!("external_key_store: {} is in {found}, not in {}", key.arn, known.id);
                return Err(Failure::new(KekErrorClass::Misconfigured, detail));
            }
            (None, Some(found)) => {
                let store = Store::new(found.clone(), &key.arn, self.store_budget.clone());
                let store = store.map_err(|error| Failure::new(KekErrorClass::Misconfigured, error.to_string()))?;
                self.store.store(Some(store.into()));
            }
            _ => {}
        }
        Ok(())
    }

    async fn read_store(&self, store: &Store) -> Result<ExternalKeyStore, Failure> {
        let (connection_state, connection_error) = self.service.describe_store(&store.id).await?;
        Ok(ExternalKeyStore { id: store.id.clone(), connection_state, connection_error })
    }

    /// Key and store together; the store first, since it says more than the key's *Unavailable*.
    pub(super) async fn health_with_store(&self, store: &Store, key: &Description) -> Result<Health, Failure> {
        let found = match self.read_store(store).await {
            Ok(found) => found.usable().map(|()| Health::Ready),
            // No leave, or the store is another account's: `DescribeKey` vouches that there is one.
            Err(failure) if failure.class == KekErrorClass::Denied || failure.code.as_deref() == Some(NOT_FOUND) => {
                Ok(Health::Degraded(format!(
                    "the state of external key store {} cannot be seen: {}",
                    store.id, failure.text
                )))
            }
            Err(failure) => Err(failure),
        };
        let health = found?;
        key.check_usable()?;
        Ok(health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/11112222-3333-4444-5555-666677778888";

    #[test]
    fn keys_of_one_store_share_its_budget_and_keys_of_another_do_not() {
        let budget = |store: &str, arn: &str| {
            Store::new(store.to_owned(), arn, None).unwrap().advice().budget.map(|budget| budget.identity()).unwrap()
        };
        let other_key = ARN.replace("8888", "9999");
        assert_eq!(budget("cks-1", ARN), budget("cks-1", &other_key));
        assert_ne!(budget("cks-1", ARN), budget("cks-2", ARN));
        assert_ne!(budget("cks-1", ARN), budget("cks-1", &ARN.replace("eu-west-1", "eu-west-2")));
        let own = CallBudget::new(4, 4).unwrap();
        let store = Store::new("cks-1".to_owned(), ARN, Some(own.clone())).unwrap();
        assert_eq!(store.advice().budget.unwrap().identity(), own.identity());
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
