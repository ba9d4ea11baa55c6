//! The key of this process that a DEK was derived through, if any.
#![forbid(unsafe_code)]

use crate::clock::Moment;
use crate::format::KekId;
use crate::suite::DekId;
use crate::sync::{Arc, Weak};

/// A key of this process from which a DEK was obtained, such as a branch key. The DEK ends no later
/// than it, and is ended early together with it.
pub(crate) trait ParentKey: Send + Sync {
    /// Returns how long a DEK that is obtained now may serve, and when it must be wiped.
    fn bounds(&self, now: Moment) -> (Moment, Moment);

    /// Returns the KEKs that it depends on: the parent's own id, and the KEKs that unwrapped it.
    fn kek_ids(&self) -> &[KekId];

    /// Returns its id.
    fn key_id(&self) -> DekId;

    /// Whether a denial, a revocation or a shut-down ended it.
    fn is_revoked(&self) -> bool;

    /// Whether it was evicted, or ended for any reason. DEKs derived through it then serve only the
    /// callers that wait for them.
    fn is_gone(&self) -> bool;

    /// Returns a value that distinguishes it from every other parent in memory.
    fn identity(&self) -> usize;

    /// Registers dependants, which end when this key ends. It is called before
    /// [`is_revoked`](Self::is_revoked) is checked.
    fn add_dependants(&self, dependants: Weak<dyn Dependants>);
}

pub(crate) type Parent = Arc<dyn ParentKey>;

/// DEKs that may have parents.
pub(crate) trait Dependants: Send + Sync {
    /// Ends those that have this parent, and waits until their keys are gone. If the parent is a
    /// DEK and not a branch key, they are its streams and share its id.
    fn end_dependants_of(&self, parent: usize, dek: Option<&DekId>);

    /// Evicts those that have this parent. Callers that wait for one may still use it.
    fn evict_dependants_of(&self, parent: usize);
}
