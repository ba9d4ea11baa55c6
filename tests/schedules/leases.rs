//! Leases that a renewal gives a DEK while it is ended. A part of `dek::registry`, whose private
//! parts it looks at.
#![allow(clippy::unwrap_used)]

use super::super::lease::{LeasedKey, Terms};
use super::super::{Limits, WritingDek};
use super::*;
use crate::ManualClock;
use crate::format::{KekId, WrappedDek, WrappedKeys};
use crate::memory::fork;
use crate::schedules::{Log, explore};
use crate::suite::{Backend, Dek, DekKeys, Nonces, Suite, derive_dek_id};
use shuttle::thread::spawn;

#[test]
fn whoever_ends_a_dek_ends_every_lease_that_a_renewal_gives_it_meanwhile() {
    explore(|| {
        let (clock, suite) = (Clock::Manual(ManualClock::new()), Suite::Aes256Gcm);
        let context = EncryptionContext::new([("tenant", "alice")]).unwrap();
        let limits = Limits::default().check(suite).unwrap();
        let dek = Dek::from_slice(&[7; 32]).unwrap();
        let id = derive_dek_id(&dek, &context).unwrap();
        let entry = WrappedDek::new(KekId::new("kek").unwrap(), vec![7; 40]).unwrap();
        let keys = WrappedKeys::new([entry]).unwrap();
        let log = Log::default();
        let all_observers = Observers::new(vec![Box::new(log.clone())]);
        let (observers, asked) = (all_observers.downgrade(), clock.now());
        let of_dek = (context.clone(), clock.clone(), keys.clone());
        let another_lease =
            move |registry: &Arc<Registry>, dek: Option<&WritingDek>, key: Option<LeasedKey>| {
                let (context, clock, wrapped_keys) = of_dek.clone();
                let terms = Terms {
                    context: &context,
                    id,
                    suite,
                    wrapped_keys: wrapped_keys.clone(),
                    is_stored: false,
                    source_keks: Box::new([]),
                    parents: Box::new([]),
                    asked,
                    stale_if_error: Duration::ZERO,
                    deadline: Duration::ZERO,
                    clock: &clock,
                    observers: observers.clone(),
                };
                let nonces = Nonces::default();
                let generation = fork::generation();
                let made = registry.add(|| match (dek, key) {
                    (Some(dek), _) => dek.another_lease(terms, &limits).map(Arc::new),
                    (None, key) => {
                        let lease = Lease::new(terms, &key?, &limits);
                        WritingDek::new(lease, wrapped_keys, nonces, &limits, asked, generation)
                            .ok()
                            .map(Arc::new)
                    }
                });
                made.map(|(dek, _)| dek)
            };
        let keys_of_dek = DekKeys::derive(Backend::RustCrypto, &dek, &context, suite).unwrap();
        let gone = Arc::downgrade(&keys_of_dek);
        let key = LeasedKey::Dek(keys_of_dek);
        let registry = Registry::new(clock, None);
        let first = another_lease(&registry, None, Some(key)).unwrap();
        let renewals: Vec<_> = (0..2)
            .map(|_| {
                let (registry, first, another_lease) =
                    (registry.clone(), first.clone(), another_lease.clone());
                spawn(move || {
                    let second = another_lease(&registry, Some(&first), None);
                    let third = second
                        .as_ref()
                        .and_then(|second| another_lease(&registry, Some(second), None));
                    [second, third]
                })
            })
            .collect();
        registry.end(registry.of_context(&context), end_all);
        assert_eq!(gone.strong_count(), 0, "a lease has the keys still");
        for renewal in renewals {
            let leases = renewal.join().unwrap();
            assert!(leases.iter().flatten().all(|dek| dek.lease().has_ended()));
        }
        assert!(another_lease(&registry, Some(&first), None).is_none());
        assert_eq!(log.count("wiped"), 1, "the end of the last lease, and none begins after it");
    });
}
