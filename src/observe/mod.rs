//! Events of a DEK's life, for observers.
//!
//! Observers are foreign code. One that panics or blocks does not change what the library does:
//! `delivery` ensures that.
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
use crate::caller::{Action, Caller};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::KekId;
use crate::memory::MemoryProtection;
use crate::suite::DekId;

/// Receives every event of every DEK's life: for an audit trail, for metrics, for alerts.
///
/// It is called where the event happens, often on the path of a request. Be quick, and do not call
/// the [`Envelope`](crate::Envelope) from it. A caller waits for an observer that blocks, and so do
/// all that share its call to the key service. Wiping does not wait.
///
/// [`Wiped`](Event::Wiped) events of DEKs that end by themselves come from a thread named
/// `waxseal-events`. A panic in an observer is caught and counted
/// ([`Statistics::observer_panics`](crate::Statistics::observer_panics)), and the first one is
/// reported to the other observers. No event carries a secret. Messages with a cached DEK cause no
/// event and are only counted ([`Envelope::statistics`](crate::Envelope::statistics)).
pub trait Observer: fmt::Debug + Send + Sync {
    /// Receives one event.
    fn event(&self, event: &Event<'_>);
}

/// What happened to a DEK, in a call to a key service, or when a policy was asked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A DEK for writing was made, and encrypts from now on. A [`Wrapped`](Event::Wrapped) for each
    /// KEK came before.
    Made {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// Every KEK that wrapped it.
        kek_ids: &'a [KekId],
    },
    /// A KEK wrapped a DEK, a new one or in a rewrap. If a [`Refreshed`](Event::Refreshed) of the
    /// context follows in place of a [`Made`](Event::Made), the new one was wiped and has encrypted
    /// nothing.
    Wrapped {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// The KEK.
        kek_id: &'a KekId,
    },
    /// A KEK unwrapped a DEK, and it matched the DEK id.
    Unwrapped {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// The KEK.
        kek_id: &'a KekId,
    },
    /// A DEK was renewed. For reading it was unwrapped again. For writing its KEKs wrapped a fresh
    /// DEK, and this one goes on, unless a [`Made`](Event::Made) came before: then the next one has
    /// replaced it.
    Refreshed {
        /// The DEK that was due.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
    },
    /// A renewal ahead of time failed. The DEK serves until `max_age`.
    RenewalFailed {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// Why.
        kind: ErrorKind,
    },
    /// A DEK past `max_age` was served stale while the key service is unavailable, within
    /// `stale_if_error`. Emitted once per DEK and retry interval, however many messages there are.
    /// [`Statistics::served_stale`](crate::Statistics::served_stale) counts all of them.
    ServedStale {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// Why it could not be renewed.
        kind: ErrorKind,
    },
    /// The key service, or an operator, denies access. Nothing more is decrypted or encrypted with
    /// this DEK here.
    Denied {
        /// The DEK. `None` if a new one could not be wrapped.
        dek_id: Option<&'a DekId>,
        /// What it is for.
        context: &'a EncryptionContext,
    },
    /// The policy denied an operation. Emitted for each operation that was denied, also where the
    /// decision was cached.
    PolicyDenied {
        /// On whose behalf. `None` if no caller was named.
        caller: Option<&'a Caller>,
        /// What was to be done.
        operation: Action,
        /// The encryption context.
        context: &'a EncryptionContext,
        /// Why. They may quote anything: escape them where people read them.
        reasons: &'a [Box<str>],
        /// The revision of the policy, if it names one.
        revision: Option<&'a str>,
        /// How long the policy took. `None` if the decision was cached.
        elapsed: Option<Duration>,
    },
    /// The policy allowed an operation. Emitted when the policy was asked. For cached decisions it
    /// is emitted as often as
    /// [`PolicyOptions::report_cached_allows`](crate::policy::PolicyOptions::report_cached_allows)
    /// says.
    PolicyAllowed {
        /// On whose behalf. `None` if no caller was named.
        caller: Option<&'a Caller>,
        /// What is done now.
        operation: Action,
        /// The encryption context.
        context: &'a EncryptionContext,
        /// The revision of the policy, if it names one.
        revision: Option<&'a str>,
        /// How long the policy took. `None` if the decision was cached.
        elapsed: Option<Duration>,
    },
    /// The policy gave no decision: it failed, panicked, was late, or its server is unavailable. A
    /// [`PolicyDenied`](Event::PolicyDenied) follows, unless the last known decision serves.
    PolicyFailed {
        /// What was to be done.
        operation: Action,
        /// The encryption context.
        context: &'a EncryptionContext,
        /// What went wrong.
        error: &'a Error,
        /// The last known decision serves.
        last_known: bool,
    },
    /// A row of a key store cannot be read as a row. Nothing was opened with it.
    DamagedRow {
        /// The row: the first 16 bytes of the id of its key, in hexadecimal digits.
        row_id: &'a str,
        /// The store's name.
        store: &'a str,
    },
    /// The keys of a branch were erased from its key store.
    Erased {
        /// The branch.
        context: &'a EncryptionContext,
        /// The store's name.
        store: &'a str,
        /// How many of its keys are erased now.
        keys: u64,
    },
    /// A DEK was evicted to make room for another, since `max_entries` is reached. It is wiped
    /// next.
    Evicted {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it was for.
        context: &'a EncryptionContext,
    },
    /// The keys of a DEK left memory: its last possible use was over, or it was replaced, evicted
    /// or revoked. A DEK that was made here is cached for reading and for writing, each for a time
    /// of its own, and the end of each is reported.
    Wiped {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it was for.
        context: &'a EncryptionContext,
    },
    /// One call to a key service ended, retries and probes included. An abandoned call is reported
    /// only if it took unusually long.
    Called {
        /// The KEK.
        kek_id: &'a KekId,
        /// The operation.
        operation: Operation,
        /// How long the response took.
        elapsed: Duration,
        /// The kind of its failure, `None` for a success.
        kind: Option<ErrorKind>,
        /// No caller waited any more: another KEK was quicker, or the caller left. Then `kind` is
        /// *unavailable*, and `elapsed` the time without a response.
        abandoned: bool,
    },
    /// A KEK failed so often that it is only probed now and then, or was late so often that others
    /// are asked first.
    BreakerOpened {
        /// The KEK.
        kek_id: &'a KekId,
        /// Which of its targets (key, Region, store), unless it is the one with the KEK's own name.
        target: Option<&'a str>,
    },
    /// A KEK responded again after its breaker was open.
    BreakerClosed {
        /// The KEK.
        kek_id: &'a KekId,
        /// As in [`BreakerOpened`](Event::BreakerOpened).
        target: Option<&'a str>,
    },
    /// The operating system refuses part of the protection of the memory that holds secrets.
    /// Emitted once per process, by the first envelope with an observer that meets it. No call
    /// fails for it.
    MemoryNotProtected {
        /// What is not in force. Its `Display` is a message for an operator.
        protection: &'a MemoryProtection,
    },
    /// Another observer panicked. Emitted once for each observer that does. Later panics are only
    /// counted, in [`Statistics::observer_panics`](crate::Statistics::observer_panics).
    ObserverPanicked {
        /// Which one, counted from zero in the order of
        /// [`Builder::observer`](crate::EnvelopeBuilder::observer).
        observer: usize,
    },
    /// The key service could not be reached when the envelope was started, and the start succeeded
    /// all the same.
    StartedWithout {
        /// The KEK.
        kek_id: &'a KekId,
        /// Why.
        kind: ErrorKind,
    },
}

/// An operation of a key service.
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
    /// Rewrap a DEK.
    Rewrap,
}

impl Operation {
    /// Returns its name in lower case.
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
