//! Call budgets: the keys of one vault share its limits, so its providers share a budget.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use waxseal::kek::CallAdvice;
use waxseal::{CallBudget, Error};

use crate::place::{Place, Resource};

/// A quarter of what a vault allows for RSA-2048 keys in its HSMs: 2,000 in 10 seconds ("Azure Key
/// Vault service limits"). Larger keys cost more.
const VAULT: (u32, u32) = (50, 32);
/// A quarter of the documented rate of one HSM with AES: 8,000 per second.
const MANAGED_HSM: (u32, u32) = (2000, 64);
/// Documented latencies are tens of milliseconds; a login may be part of the first call.
const TIMEOUT: Duration = Duration::from_secs(2);

/// By host. Hosts come from configuration.
static OF_PROCESS: LazyLock<Mutex<HashMap<String, CallBudget>>> = LazyLock::new(Mutex::default);

pub(crate) fn advice(place: &Place, own: Option<CallBudget>) -> Result<CallAdvice, Error> {
    let budget = match own {
        Some(own) => own,
        None => {
            let mut known = OF_PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
            match known.get(&place.host) {
                Some(budget) => budget.clone(),
                None => {
                    let (per_second, in_flight) = match place.resource {
                        Resource::Vault => VAULT,
                        Resource::ManagedHsm => MANAGED_HSM,
                    };
                    let budget = CallBudget::new(per_second, in_flight)?;
                    known.insert(place.host.clone(), budget.clone());
                    budget
                }
            }
        }
    };
    Ok(CallAdvice::default().timeout(TIMEOUT).budget(budget))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_one_vault_share_a_budget_and_those_of_another_do_not() {
        let budget = |vault: &str| {
            let advice = advice(&Place::read(vault).unwrap(), None).unwrap();
            advice.call_budget().unwrap().clone()
        };
        assert!(budget("orders").is_same(&budget("orders.vault.azure.net")));
        assert!(!budget("orders").is_same(&budget("cards")));
        let own = CallBudget::new(1, 1).unwrap();
        let given = advice(&Place::read("orders").unwrap(), Some(own.clone())).unwrap();
        assert!(given.call_budget().unwrap().is_same(&own));
    }
}
