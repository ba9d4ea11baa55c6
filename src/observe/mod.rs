//! Events in the life of a DEK, for observers.
//!
//! Observers are foreign code. `delivery` ensures that one that panics or blocks does not change
//! what the library does.
#![forbid(unsafe_code)]

#[cfg(feature = "audit")]
pub mod audit;
mod callers;
mod delivery;
#[cfg(feature = "metrics")]
mod metrics;
mod span;
#[cfg(feature = "tracing")]
mod tracing;

use std::fmt;
use std::time::Duration;

pub(crate) use callers::CallerCounts;
pub(crate) use delivery::{AccessCounts, Accessed, LaterEvent, Observers, WeakObservers};
pub(crate) use span::CallSpan;

#[cfg(feature = "metrics")]
pub use self::metrics::MetricsObserver;
#[cfg(feature = "metrics")]
pub(crate) use self::metrics::register;
#[cfg(feature = "tracing")]
pub use self::tracing::TracingObserver;
use crate::caller::{Action, Caller};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::KekId;
use crate::memory::MemoryProtection;
use crate::suite::DekId;
use crate::sync::Arc;

/// Receives every event in the life of every DEK, for audit trails, metrics and alerts.
///
/// It is called where the event happens, often on the path of a request. Be quick, and do not call
/// the [`Envelope`](crate::Envelope) from it. If an observer blocks, its caller waits, and so do
/// all callers that share the call to the key service. Wiping does not wait.
///
/// [`Wiped`](Event::Wiped) events of DEKs that end on their own come from a thread named
/// `waxseal-events`. A panic in an observer is caught and counted
/// ([`Statistics::observer_panics`](crate::Statistics::observer_panics)), and the first one is
/// reported to the other observers. No event carries a secret. Messages with a cached DEK cause no
/// event and are only counted ([`Envelope::statistics`](crate::Envelope::statistics)).
pub trait Observer: fmt::Debug + Send + Sync {
    /// Receives one event.
    fn event(&self, event: &Event<'_>);

    /// Returns how often it wants to know which DEKs were used (see [`Event::Accessed`]) and on
    /// whose behalf ([`Event::AccessedBy`]). An envelope asks once, when it is built. If several
    /// observers answer, the shortest time counts, and all of them receive the events. The minimum
    /// is a second. By default `None`: uses are not counted, and cost nothing.
    fn access_summaries(&self) -> Option<Duration> {
        None
    }
}

/// Lets an observer be shared by several envelopes.
impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn event(&self, event: &Event<'_>) {
        (**self).event(event);
    }

    fn access_summaries(&self) -> Option<Duration> {
        (**self).access_summaries()
    }
}

/// What happened to a DEK, in a call to a key service, or when a policy was asked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A DEK for writing was made, and encrypts from now on. It follows one
    /// [`Wrapped`](Event::Wrapped) for each KEK.
    Made {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// Every KEK that wrapped it.
        kek_ids: &'a [KekId],
    },
    /// A KEK wrapped a DEK, a new one or in a rewrap. If a [`Refreshed`](Event::Refreshed) of the
    /// context follows instead of a [`Made`](Event::Made), the new DEK was wiped and has encrypted
    /// nothing.
    Wrapped {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// The KEK.
        kek_id: &'a KekId,
        /// The version of the KEK, if its provider
        /// [knows](crate::kek::KekProvider::key_version) it.
        kek_version: Option<&'a str>,
        /// The key service's own id of the request, if its provider
        /// [reports](crate::kek::toolkit::report_request_id) it.
        request_id: Option<&'a str>,
    },
    /// A KEK unwrapped a DEK, and it matched the DEK id.
    Unwrapped {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// The KEK.
        kek_id: &'a KekId,
        /// The version of the KEK, if its provider
        /// [knows](crate::kek::KekProvider::key_version) it.
        kek_version: Option<&'a str>,
        /// The key service's own id of the request, if its provider
        /// [reports](crate::kek::toolkit::report_request_id) it.
        request_id: Option<&'a str>,
    },
    /// A DEK was renewed. For reading it was unwrapped again. For writing its KEKs wrapped a new
    /// DEK, and this one continues, unless a [`Made`](Event::Made) came before: then the new one
    /// has replaced it.
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
    /// The key service, or an operator, denied access. This process no longer encrypts or decrypts
    /// with this DEK.
    Denied {
        /// The DEK. `None` if a new one could not be wrapped.
        dek_id: Option<&'a DekId>,
        /// What it is for.
        context: &'a EncryptionContext,
    },
    /// The policy denied an operation. Emitted for each denied operation, even if the decision was
    /// cached.
    PolicyDenied {
        /// The caller. `None` if no caller was named.
        caller: Option<&'a Caller>,
        /// The operation.
        operation: Action,
        /// The encryption context.
        context: &'a EncryptionContext,
        /// The reasons. They may contain any text: escape them before showing them to people.
        reasons: &'a [Box<str>],
        /// The revision of the policy, if it names one.
        revision: Option<&'a str>,
        /// How long the operation waited for the policy. `None` if the decision was cached.
        elapsed: Option<Duration>,
    },
    /// The policy allowed an operation. Emitted when the operation waited for the policy, which is
    /// asked once for all concurrent callers with the same question. For cached decisions,
    /// [`PolicyOptions::report_cached_allows`](crate::policy::PolicyOptions::report_cached_allows)
    /// sets how often it is emitted.
    PolicyAllowed {
        /// The caller. `None` if no caller was named.
        caller: Option<&'a Caller>,
        /// The operation.
        operation: Action,
        /// The encryption context.
        context: &'a EncryptionContext,
        /// The revision of the policy, if it names one.
        revision: Option<&'a str>,
        /// How long the operation waited for the policy. `None` if the decision was cached.
        elapsed: Option<Duration>,
    },
    /// The policy gave no decision: it failed, panicked, was late, or its server is unavailable. A
    /// [`PolicyDenied`](Event::PolicyDenied) follows, unless the last known decision is used.
    PolicyFailed {
        /// The operation.
        operation: Action,
        /// The encryption context.
        context: &'a EncryptionContext,
        /// What went wrong.
        error: &'a Error,
        /// Whether the last known decision is used.
        last_known: bool,
    },
    /// A row of a key store is not what was put there: it cannot be read as a row, holds another
    /// key, or belongs to another branch. Nothing was opened with it.
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
        /// How many of its keys are now erased.
        keys: u64,
    },
    /// A DEK was evicted to make room for another, because `max_entries` was reached. It is wiped
    /// next.
    Evicted {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it was for.
        context: &'a EncryptionContext,
    },
    /// Messages were encrypted or decrypted with a DEK. Emitted if an observer [asks for
    /// it](Observer::access_summaries): at intervals for each DEK that was used since, and at the
    /// DEK's end, before [`Wiped`](Event::Wiped). It comes from one of the library's threads.
    Accessed {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// What was done.
        access: Access,
        /// The number of messages, including those through handles. Messages that failed
        /// authentication do not count. A stream counts as one, when it is opened.
        messages: u64,
        /// The time before now that the count covers.
        within: Duration,
    },
    /// Messages were encrypted or decrypted with a DEK on behalf of a caller that
    /// [`acting_for`](crate::Envelope::acting_for) named. They are included in those of
    /// [`Accessed`](Event::Accessed), and emitted at the same times.
    AccessedBy {
        /// The caller, without a request id.
        caller: &'a Caller,
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// What was done.
        access: Access,
        /// The number of messages, including those through handles.
        messages: u64,
        /// The time before now that the count covers.
        within: Duration,
    },
    /// Like [`AccessedBy`](Event::AccessedBy), for the callers and DEKs beyond the tracked number:
    /// 4,096 pairs of a caller and a DEK, and 4 MiB of their names, between two summaries.
    AccessedByOthers {
        /// What was done.
        access: Access,
        /// The number of messages.
        messages: u64,
        /// The time before now that the count covers.
        within: Duration,
    },
    /// The keys of a DEK left memory: its last possible use was over, or it was replaced, evicted
    /// or revoked. A DEK that was made here is cached for reading and for writing, for separate
    /// times, and each end is reported. The end of an open stream's key is not reported.
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
        /// Whether no caller waited any longer, because another KEK was quicker or the caller left.
        /// Then `kind` is *unavailable*, and `elapsed` is the time without a response.
        abandoned: bool,
        /// See [`Wrapped`](Event::Wrapped). A failure may have one too.
        request_id: Option<&'a str>,
    },
    /// A KEK failed so often that it is only probed from time to time, or was late so often that
    /// others are asked first.
    BreakerOpened {
        /// The KEK.
        kek_id: &'a KekId,
        /// Which of its targets (key, Region, store), unless its name is the KEK's id.
        target: Option<&'a str>,
    },
    /// A KEK responded again after its breaker was open.
    BreakerClosed {
        /// The KEK.
        kek_id: &'a KekId,
        /// See [`BreakerOpened`](Event::BreakerOpened).
        target: Option<&'a str>,
    },
    /// One call to a key store ended, retries and probes included. An abandoned call is reported
    /// only if it took unusually long. Calls to a store in this process are not reported.
    StoreCalled {
        /// The key store, by its name.
        store: &'a str,
        /// The operation.
        operation: StoreOperation,
        /// How long the answer took.
        elapsed: Duration,
        /// The kind of its failure, `None` for a success.
        kind: Option<ErrorKind>,
        /// See [`Called`](Event::Called).
        abandoned: bool,
    },
    /// A key store failed so often that it is only probed from time to time. Cached keys continue
    /// to work.
    StoreBreakerOpened {
        /// The key store.
        store: &'a str,
    },
    /// A key store responded again after its breaker was open.
    StoreBreakerClosed {
        /// The key store.
        store: &'a str,
    },
    /// The operating system refuses part of the protection of the memory that holds secrets.
    /// Emitted once per process, by the first envelope with an observer that encounters it. No call
    /// fails because of it.
    MemoryNotProtected {
        /// What is not in force. Its `Display` is a message for an operator.
        protection: &'a MemoryProtection,
    },
    /// Another observer panicked. Emitted once for each such observer. Later panics are only
    /// counted, in [`Statistics::observer_panics`](crate::Statistics::observer_panics).
    ObserverPanicked {
        /// Its index, counted from zero in the order of
        /// [`EnvelopeBuilder::observer`](crate::EnvelopeBuilder::observer).
        observer: usize,
    },
    /// An envelope or a [`BranchKek`](crate::branch::BranchKek) was built with this configuration.
    Configured {
        /// The KEKs that wrap every new DEK and also unwrap.
        wrap_with: &'a [KekId],
        /// The KEKs that only unwrap.
        unwrap_with: &'a [KekId],
        /// The other effective options, by name, as text. They include the data domain, and the
        /// policy by its Debug. `call_policy` applies unless a provider advises otherwise. Its
        /// times need a runtime. A key store may take the whole deadline for one try. None is a
        /// secret.
        options: &'a [(&'static str, String)],
    },
    /// An operator revoked a KEK in this process.
    Revoked {
        /// The KEK.
        kek_id: &'a KekId,
    },
    /// An operator reverted a revocation.
    Reinstated {
        /// The KEK.
        kek_id: &'a KekId,
    },
    /// The envelope was shut down. Its DEKs are wiped next.
    ShutDown,
    /// The key service could not be reached when the envelope was started, but the start succeeded.
    StartedWithout {
        /// The KEK.
        kek_id: &'a KekId,
        /// Why.
        kind: ErrorKind,
    },
    /// The data domains now match their file.
    DomainsReloaded {
        /// The number of new domains.
        opened: usize,
        /// The number of changed domains.
        changed: usize,
        /// The number of removed domains.
        ended: usize,
        /// The number of unchanged domains.
        kept: usize,
    },
    /// The file of the data domains could not be used. All domains continue unchanged.
    DomainsNotReloaded {
        /// The error, with the line and the field.
        error: &'a Error,
    },
}

impl Event<'_> {
    /// Whether it is one of those that [`Observer::access_summaries`] asks for.
    #[cfg(feature = "audit")]
    pub(crate) fn is_a_summary(&self) -> bool {
        matches!(
            self,
            Self::Accessed { .. } | Self::AccessedBy { .. } | Self::AccessedByOthers { .. }
        )
    }
}

/// A kind of use of a DEK.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Access {
    /// Messages are encrypted.
    Encrypt,
    /// Messages are decrypted.
    Decrypt,
}

impl Access {
    /// Returns its name in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
        }
    }
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
    #[cfg(feature = "metrics")]
    pub(crate) const ALL: [Self; 4] = [Self::Wrap, Self::Unwrap, Self::Generate, Self::Rewrap];

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

/// An operation of a key store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum StoreOperation {
    /// Read one row.
    Get,
    /// Read the rows of a branch.
    Branch,
    /// Insert a row.
    Insert,
    /// Replace a row, if nobody changed it.
    Replace,
    /// Erase the rows of a branch.
    Erase,
    /// Read a page of rows.
    Scan,
    /// Check whether the store can be used.
    Health,
}

impl StoreOperation {
    #[cfg(feature = "metrics")]
    pub(crate) const ALL: [Self; 7] = [
        Self::Get,
        Self::Branch,
        Self::Insert,
        Self::Replace,
        Self::Erase,
        Self::Scan,
        Self::Health,
    ];

    /// Returns its name in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Branch => "branch",
            Self::Insert => "insert",
            Self::Replace => "replace",
            Self::Erase => "erase",
            Self::Scan => "scan",
            Self::Health => "health",
        }
    }
}
