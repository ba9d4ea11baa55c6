//! A DEK's life, seen from outside.
//!
//! Observers are other people's code: one that panics or blocks changes nothing for the library. `delivery` holds that.
#![forbid(unsafe_code)]

mod delivery;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "tracing")]
mod tracing;

use std::fmt;
use std::time::Duration;

pub(crate) use delivery::{LaterEvent, Observers, WeakObservers};

#[cfg(feature = "metrics")]
pub use self::metrics::MetricsObserver;
#[cfg(feature = "tracing")]
pub use self::tracing::TracingObserver;
use crate::context::EncryptionContext;
use crate::error::ErrorKind;
use crate::format::KekId;
use crate::memory::MemoryProtection;
use crate::suite::DekId;

/// Gets every event of every DEK's life: for an audit trail, for metrics, for alarms.
///
/// It is called where the event happens, often on the path of a request: be quick, and do not call the
/// [`Envelope`](crate::Envelope) from it. A caller waits for an observer that blocks, and so does whoever shares its call to the
/// key service; wiping does not. [`Wiped`](Event::Wiped) events of DEKs that end by themselves come from a thread named
/// `waxseal-events`. A panic in an observer is caught and counted ([`Statistics::observer_panics`](crate::Statistics::observer_panics)),
/// and the other observers are told the first time. No event carries a secret. It is not called for each message: those that are sealed and opened with a DEK
/// at hand are only counted ([`Envelope::statistics`](crate::Envelope::statistics)).
pub trait Observer: fmt::Debug + Send + Sync {
    /// One event.
    fn event(&self, event: &Event<'_>);
}

/// What happened to a DEK, or in a call to a key service.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A DEK for writing was made. A [`Wrapped`](Event::Wrapped) for each KEK came before.
    Made {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// Every KEK that wrapped it.
        kek_ids: &'a [KekId],
    },
    /// A KEK wrapped a DEK: a new one, or anew in a rewrap.
    Wrapped {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// The KEK.
        kek_id: &'a KekId,
    },
    /// A KEK unwrapped a DEK, and what came back was held against the DEK id.
    Unwrapped {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// The KEK.
        kek_id: &'a KekId,
    },
    /// A DEK in use was renewed ahead of time: unwrapped again for reading, or replaced by the next one for writing.
    Refreshed {
        /// The DEK that was due.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
    },
    /// A renewal ahead of time failed; the DEK goes on to its `max_age`.
    RenewalFailed {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// Why.
        kind: ErrorKind,
    },
    /// Past `max_age`, while the key service is unavailable: served within the outage grace. Told once for each DEK and
    /// retry interval, however many messages there are; [`Statistics::served_stale`](crate::Statistics::served_stale) counts them all.
    ServedStale {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// Why it could not be renewed.
        kind: ErrorKind,
    },
    /// The key service, or an operator, denies: nothing more is opened or sealed with this DEK here.
    Denied {
        /// The DEK; `None` where a new one could not be wrapped.
        dek_id: Option<&'a DekId>,
        /// What it is for.
        context: &'a EncryptionContext,
    },
    /// A DEK had to make room for another: `max_entries` is reached. It is wiped next.
    Evicted {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it was for.
        context: &'a EncryptionContext,
    },
    /// The keys of a DEK left memory: its last possible use was over, or it was replaced, evicted, revoked or cleared.
    Wiped {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it was for.
        context: &'a EncryptionContext,
    },
    /// One call to a key service ended, retries and probes included. One that nobody waited for any more is told only if it took unusually
    /// long.
    Called {
        /// The KEK.
        kek_id: &'a KekId,
        /// What it was asked.
        operation: Operation,
        /// How long the answer took.
        elapsed: Duration,
        /// The kind of its failure, `None` for a success.
        kind: Option<ErrorKind>,
        /// Nobody waited any more: another KEK was quicker, or the caller left. Then `kind` is *unavailable*, and `elapsed` the time
        /// without an answer.
        abandoned: bool,
    },
    /// A KEK failed so often that it is no longer asked, but for a probe now and then; or was late so often that others are asked
    /// first.
    BreakerOpened {
        /// The KEK.
        kek_id: &'a KekId,
        /// Which of its targets (key, Region, store), unless it is the one with the KEK's own name.
        target: Option<&'a str>,
    },
    /// A KEK answered again after its breaker was open.
    BreakerClosed {
        /// The KEK.
        kek_id: &'a KekId,
        /// As in [`BreakerOpened`](Event::BreakerOpened).
        target: Option<&'a str>,
    },
    /// The operating system refuses part of the protection of the memory that secrets live in: told once per process, by the first
    /// envelope with an observer that meets it. Nothing fails for it.
    MemoryNotProtected {
        /// What is not in force; its `Display` is a message for an operator.
        protection: &'a MemoryProtection,
    },
    /// Another observer panicked in an event. Told once for each observer that does; later panics are only counted, in
    /// [`Statistics::observer_panics`](crate::Statistics::observer_panics).
    ObserverPanicked {
        /// Which one, counted from zero in the order of [`Builder::observer`](crate::EnvelopeBuilder::observer).
        observer: usize,
    },
    /// The key service could not be reached when the envelope was started, and it was started all the same.
    StartedWithout {
        /// The KEK.
        kek_id: &'a KekId,
        /// Why.
        kind: ErrorKind,
    },
}

/// What a key service is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Operation {
    /// Wrap a new DEK.
    Wrap,
    /// Unwrap a DEK.
    Unwrap,
    /// Make a DEK and wrap it.
    Generate,
    /// Wrap a DEK anew.
    Rewrap,
}

impl Operation {
    /// Its name, in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Generate => "generate",
            Self::Rewrap => "rewrap",
        }
    }
}
