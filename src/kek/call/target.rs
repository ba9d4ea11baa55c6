//! The state of each target of a KEK: its breaker and its latencies.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use arc_swap::ArcSwap;

use super::PolicyInForce;
use super::breaker::{Breaker, BreakerState};
use super::latency::Latency;
use crate::clock::Clock;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicI64, Ordering};

/// How many targets of one KEK are kept. A provider that discovers keys may be asked about made-up
/// ids.
const MAX_TARGETS: usize = 256;

/// One key, Region or store that answers calls.
pub(super) struct Target {
    pub(super) name: Box<str>,
    pub(super) breaker: Breaker,
    pub(super) latency: Latency,
    used: AtomicI64,
}

/// The targets of one KEK that have a state: those that answered or failed a call. Held in a
/// pointer and not in a lock, which a fork could inherit locked.
pub(super) struct Targets {
    known: ArcSwap<HashMap<Box<str>, Arc<Target>>>,
    policy: PolicyInForce,
    clock: Clock,
}

impl Targets {
    pub(super) fn new(policy: PolicyInForce, clock: Clock) -> Self {
        Self { known: ArcSwap::default(), policy, clock }
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Target>> {
        let target = self.known.load().get(name).cloned()?;
        target.used.store(self.clock.now().boot_nanos(), Ordering::Relaxed);
        Some(target)
    }

    /// Returns the target with this name, and keeps it. If there are too many, one is removed: a
    /// target that never answered before one that did, then one without failures before one with
    /// failures, then the one unused for longest. So made-up ids push out only each other.
    pub(super) fn listed(&self, name: &str) -> Arc<Target> {
        if let Some(target) = self.find(name) {
            return target;
        }
        let ours = Arc::new(Target {
            name: name.into(),
            breaker: Breaker::new(&self.policy, self.clock.clone()),
            latency: Latency::default(),
            used: AtomicI64::new(self.clock.now().boot_nanos()),
        });
        let mut listed = ours.clone();
        self.known.rcu(|known| {
            if let Some(target) = known.get(name) {
                listed = target.clone();
                return Arc::clone(known);
            }
            listed = ours.clone();
            let mut known = HashMap::clone(known);
            while known.len() >= MAX_TARGETS {
                let worth = |target: &Target| {
                    let (answered, fails) =
                        (target.latency.is_known(), target.breaker.has_streak());
                    (answered, fails, target.used.load(Ordering::Relaxed))
                };
                let least = known
                    .values()
                    .min_by_key(|target| worth(target))
                    .map(|target| target.name.clone());
                known.remove(&least.unwrap_or_default());
            }
            known.insert(name.into(), ours.clone());
            Arc::new(known)
        });
        listed
    }

    /// Returns the targets whose breaker is not closed, by name.
    pub(super) fn not_closed(&self) -> Vec<(Box<str>, BreakerState)> {
        let known = self.known.load();
        let states = known.values().map(|target| (target.name.clone(), target.breaker.state()));
        let mut states: Vec<_> =
            states.filter(|(_, state)| *state != BreakerState::Closed).collect();
        states.sort_by(|(one, _), (other, _)| one.cmp(other));
        states
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::CallPolicy;
    use crate::clock::ManualClock;
    use crate::kek::KekError;

    #[test]
    fn made_up_targets_are_bounded_and_push_out_neither_those_that_answered_nor_open_breakers() {
        let clock = ManualClock::new();
        let policy = CallPolicy::default().breaker_failures(1).check(true).unwrap();
        let targets = Targets::new(policy, Clock::Manual(clock.clone()));
        let down = KekError::unavailable("down");
        targets.listed("answered").latency.record(Duration::from_millis(5));
        targets.listed("answered").breaker.failed(&down);
        targets.listed("never answered").breaker.failed(&down);
        for n in 0..10 * MAX_TARGETS {
            clock.advance(Duration::from_millis(1));
            targets.listed(&format!("made up {n}"));
            assert!(targets.known.load().len() <= MAX_TARGETS);
        }
        let open: Vec<_> = targets.not_closed().into_iter().map(|(name, _)| name).collect();
        assert_eq!(open, [Box::from("answered"), Box::from("never answered")]);
        for n in 0..10 * MAX_TARGETS {
            clock.advance(Duration::from_millis(1));
            targets.listed(&format!("made up and failing {n}")).breaker.failed(&down);
        }
        assert!(targets.known.load().len() <= MAX_TARGETS);
        assert!(targets.find("answered").is_some());
    }
}
