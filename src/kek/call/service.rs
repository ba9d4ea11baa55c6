//! A called service, a KEK's or a key store's, and its state.
#![forbid(unsafe_code)]

use super::CallTerms;
use super::breaker::BreakerState;
use super::counts::{CallCounts, Counters};
use super::policy::{CallTarget, PolicyInForce};
use super::target::Targets;
use crate::kek::KekId;
use crate::observe::{Operation, StoreOperation};

/// The called service, as observers see it.
pub(crate) enum Service {
    Kek(KekId),
    Store(Box<str>),
}

/// The operation.
#[derive(Clone, Copy)]
pub(crate) enum Asked {
    OfKek(Operation),
    OfStore(StoreOperation),
}

impl Asked {
    /// Whether one call reads or changes any number of rows, and a repetition would start over.
    /// Then a try may take the whole deadline.
    pub(super) fn is_of_many_rows(self) -> bool {
        matches!(self, Self::OfStore(StoreOperation::Scan | StoreOperation::Erase))
    }

    /// Whether the operation ignores breakers. An erasure is an order, which earlier failures do
    /// not stop.
    pub(super) fn passes_breakers(self) -> bool {
        matches!(self, Self::OfStore(StoreOperation::Erase))
    }
}

/// One call: the operation and its target. A rewrap has two targets, the old entry's and the
/// provider's own.
pub(crate) struct Call {
    pub(crate) asked: Asked,
    pub(crate) target: CallTarget,
    pub(crate) also: Option<CallTarget>,
}

/// Calls to one service behind the call policy.
pub(crate) struct Calls {
    pub(super) service: Service,
    pub(super) terms: CallTerms,
    pub(super) targets: Targets,
    pub(super) counters: Counters,
}

impl Calls {
    pub(crate) fn new(service: Service, terms: CallTerms) -> Self {
        let targets = Targets::new(terms.policy, terms.clock.clone());
        Self { service, terms, targets, counters: Counters::default() }
    }

    pub(super) fn policy(&self, target: &CallTarget) -> PolicyInForce {
        self.terms.policy.advised(target.advice())
    }

    /// Returns the worst breaker state of its targets, and the targets whose breaker is not closed.
    pub(crate) fn breakers(&self) -> (BreakerState, Vec<(Box<str>, BreakerState)>) {
        let targets = self.targets.not_closed();
        let is = |state: BreakerState| targets.iter().any(|(_, of_target)| *of_target == state);
        let worst =
            [BreakerState::Open, BreakerState::HalfOpen].into_iter().find(|state| is(*state));
        (worst.unwrap_or(BreakerState::Closed), targets)
    }

    pub(crate) fn counts(&self) -> CallCounts {
        self.counters.counts()
    }
}
