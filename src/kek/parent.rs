//! What a DEK came through, if that is another key of this process.
#![forbid(unsafe_code)]

use crate::clock::Moment;
use crate::format::KekId;
use crate::suite::DekId;
use crate::sync::{Arc, Weak};

/// A key of this process from which a DEK was obtained, such as a branch key. The DEK ends no later
/// than it does, and with it if it is ended early.
pub(crate) trait ParentKey: Send + Sync {
    /// Returns until when a DEK that is obtained now may serve, and when nothing of it may be left.
    fn bounds(&self, now: Moment) -> (Moment, Moment);

    /// Returns the KEKs that it depends on: the parent's own id, and the KEKs that unwrapped it.
    fn kek_ids(&self) -> &[KekId];

    /// Returns its id.
    fn key_id(&self) -> DekId;

    /// Whether a denial, a revocation or a shut-down ended it.
    fn is_revoked(&self) -> bool;

    /// Whether it was evicted, or ended for any reason. What came through it serves at most those
    /// who wait for it.
    fn is_gone(&self) -> bool;

    /// Returns what distinguishes it from every other parent that is in memory.
    fn identity(&self) -> usize;

    /// From now on the end of this key ends its DEKs there. It is called before
    /// [`is_revoked`](Self::is_revoked) is looked at.
    fn add_dependants(&self, dependants: Weak<dyn Dependants>);
}

pub(crate) type Parent = Arc<dyn ParentKey>;

/// DEKs that may have parents.
pub(crate) trait Dependants: Send + Sync {
    /// Ends those that have this parent, and waits until their keys are gone. If it is a DEK, and no
    /// branch key, they are its streams and share its id.
    fn end_dependants_of(&self, parent: usize, dek: Option<&DekId>);

    /// Evicts those that have this parent: callers that wait for one may still use it.
    fn evict_dependants_of(&self, parent: usize);
}
