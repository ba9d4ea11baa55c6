//! The differences between DEKs for reading and for writing, and between requests for them.
#![forbid(unsafe_code)]

use std::future::Future;

use super::super::ReadingDek;
use super::super::cache::{DekCache, MemoOwner};
use super::super::flight::{Answer, Waiter};
use super::super::lease::{Age, KeysMatch, Lease, RequestKey};
use super::super::pinned::Pinned;
use super::super::registry::Leased;
use super::super::statistics::Counter;
use super::DekSource;
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::kek::call::{CallBounds, Lane};
use crate::kek::set::Failure;
use crate::sync::Arc;

/// The differences between DEKs for reading and for writing.
pub(crate) trait Kind: 'static {
    type Dek: Leased + 'static;
    /// The request without borrows from its caller.
    type Owned: Send + Sync + 'static;
    const HIT: Counter;
    const MISS: Counter;
    const LANE: Lane;

    fn age(dek: &Self::Dek, now: Moment) -> Age;

    fn remember(cache: &DekCache, dek: &Arc<Self::Dek>);

    fn find(cache: &DekCache, owned: &Self::Owned) -> Result<Option<Arc<Self::Dek>>, Error>;

    fn context(owned: &Self::Owned) -> &EncryptionContext;

    /// Joins the call of all callers with the same request.
    fn join<F>(
        cache: &DekCache,
        now: Moment,
        request_key: RequestKey,
        ask: impl FnOnce() -> F,
    ) -> Waiter<Answer<Self::Dek>>
    where
        F: Future<Output = Answer<Self::Dek>> + Send + 'static;

    /// Asks the KEKs.
    fn ask(
        source: &DekSource,
        cache: &DekCache,
        owned: &Self::Owned,
        bounds: CallBounds,
    ) -> impl Future<Output = Result<Obtained<Self::Dek>, Failure>> + Send;

    fn put(cache: &DekCache, obtained: &Obtained<Self::Dek>);

    /// Whether a renewal left the DEK in use.
    fn goes_on(_: &Self::Dek, _: &Self::Dek) -> bool {
        false
    }

    /// Ends everything that the denial affects, and reports it.
    fn was_denied(source: &DekSource, cache: &DekCache, owned: &Self::Owned, failure: &Failure);
}

/// A caller's request for a DEK.
pub(crate) trait DekRequest: Copy {
    type Kind: Kind;

    /// Returns the cached DEK, whatever its age.
    fn find(&self, cache: &DekCache) -> Result<Option<Arc<DekOf<Self>>>, Error>;

    fn with_remembered<R>(
        &self,
        owner: MemoOwner,
        serves: impl FnOnce(&DekOf<Self>) -> bool,
        work: impl FnOnce(&Arc<DekOf<Self>>) -> R,
    ) -> Option<R>;

    /// Whether a cached DEK came from the wrapped keys of this request.
    fn keys_match(&self, lease: &Lease) -> KeysMatch;

    /// Whether this request may renew a cached DEK now.
    fn is_turn(&self, lease: &Lease, now: Moment) -> bool;

    /// Whether there are wrapped keys to ask with.
    fn can_be_asked(&self) -> bool;

    /// Whether the request reaches a source KEK of a cached DEK.
    fn is_about(&self, lease: &Lease) -> bool;

    fn request_key(&self) -> RequestKey;

    /// Returns the DEK if it can be obtained now, without a call and without waiting.
    fn at_once(&self, _: &DekSource, _: &DekCache) -> Option<Arc<Pinned<DekOf<Self>>>> {
        None
    }

    fn to_owned(&self) -> Result<<Self::Kind as Kind>::Owned, Error>;
}

pub(crate) type DekOf<Q> = <<Q as DekRequest>::Kind as Kind>::Dek;

/// A DEK just obtained from a key service.
pub(crate) struct Obtained<D> {
    pub(super) dek: Arc<D>,
    /// The same keys for reading, if the DEK is new.
    pub(super) for_reading_too: Option<Arc<ReadingDek>>,
    /// The cached DEK continues: this is another, registered lease on it.
    pub(super) goes_on: bool,
}
