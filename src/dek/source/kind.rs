//! What differs between DEKs for reading and for writing, and between requests for them.
#![forbid(unsafe_code)]

use std::future::Future;

use super::super::ReadingDek;
use super::super::cache::{DekCache, MemoOwner};
use super::super::flight::{Answer, Waiter};
use super::super::lease::{Age, KeysMatch, Lease, RequestKey};
use super::super::registry::Leased;
use super::super::statistics::Counter;
use super::DekSource;
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::kek::call::{CallBounds, Lane};
use crate::kek::set::Failure;
use crate::sync::Arc;

/// What differs between DEKs for reading and for writing.
pub(crate) trait Kind: 'static {
    type Dek: Leased + 'static;
    /// What is asked, without its caller.
    type Owned: Send + Sync + 'static;
    const HIT: Counter;
    const MISS: Counter;
    const LANE: Lane;

    fn age(dek: &Self::Dek, now: Moment) -> Age;

    fn remember(cache: &DekCache, dek: &Arc<Self::Dek>);

    fn find(cache: &DekCache, owned: &Self::Owned) -> Result<Option<Arc<Self::Dek>>, Error>;

    fn context(owned: &Self::Owned) -> &EncryptionContext;

    /// Shares the call of all who ask the same.
    fn join<F>(cache: &DekCache, now: Moment, request_key: RequestKey, ask: impl FnOnce() -> F) -> Waiter<Self::Dek>
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

    /// Ends what the denial concerns, and tells.
    fn was_denied(source: &DekSource, cache: &DekCache, owned: &Self::Owned, failure: &Failure);
}

/// What a caller asks for.
pub(crate) trait DekRequest: Copy {
    type Kind: Kind;

    /// The cached DEK, whatever its age.
    fn find(&self, cache: &DekCache) -> Result<Option<Arc<DekOf<Self>>>, Error>;

    fn with_remembered<R>(
        &self,
        owner: MemoOwner,
        serves: impl FnOnce(&DekOf<Self>) -> bool,
        work: impl FnOnce(&Arc<DekOf<Self>>) -> R,
    ) -> Option<R>;

    /// Whether a cached DEK is the answer to this very question.
    fn keys_match(&self, lease: &Lease) -> KeysMatch;

    /// Whether it may be the turn of this question to renew a cached DEK.
    fn is_turn(&self, lease: &Lease, now: Moment) -> bool;

    /// Whether there is anything to ask with.
    fn can_be_asked(&self) -> bool;

    /// Whether the question reaches a KEK that vouched for a cached DEK.
    fn is_about(&self, lease: &Lease) -> bool;

    fn request_key(&self) -> RequestKey;

    fn to_owned(&self) -> Result<<Self::Kind as Kind>::Owned, Error>;
}

pub(super) type DekOf<Q> = <<Q as DekRequest>::Kind as Kind>::Dek;

/// What a key service just vouched for.
pub(crate) struct Obtained<D> {
    pub(super) dek: Arc<D>,
    /// The same keys, where a new DEK was made.
    pub(super) for_reading_too: Option<Arc<ReadingDek>>,
}
