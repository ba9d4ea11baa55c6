//! A DEK's life, seen from outside.
#![forbid(unsafe_code)]

use crate::context::EncryptionContext;
use crate::error::ErrorKind;
use crate::format::KekId;
use crate::suite::DekId;

/// Gets every event of every DEK's life: for an audit trail, for metrics, for alarms.
///
/// It is called where the event happens, often on the path of a request: be quick, and do not call the
/// [`Envelope`](crate::Envelope) from it. No event carries a secret.
pub trait Observer: Send + Sync {
    /// One event.
    fn event(&self, event: &Event<'_>);
}

/// What happened to a DEK.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A DEK for writing was made and wrapped by these KEKs.
    Made {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// Every KEK that wrapped it.
        kek_ids: &'a [KekId],
    },
    /// A DEK for reading was unwrapped.
    Unwrapped {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// The KEK that unwrapped it.
        kek_id: &'a KekId,
    },
    /// Past `max_age`, while the key service is unavailable: served within the outage grace.
    ServedPastAge {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it is for.
        context: &'a EncryptionContext,
        /// Why it could not be renewed.
        kind: ErrorKind,
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
    /// The key service, or an operator, denies: nothing more is opened or sealed with this DEK here.
    Denied {
        /// The DEK; `None` where a new one could not be wrapped.
        dek_id: Option<&'a DekId>,
        /// What it is for.
        context: &'a EncryptionContext,
    },
    /// The keys of a DEK left memory: its last possible use was over, or it was evicted, revoked or cleared.
    Wiped {
        /// The DEK.
        dek_id: &'a DekId,
        /// What it was for.
        context: &'a EncryptionContext,
    },
}
