//! Rewraps all branch keys of a store.
#![forbid(unsafe_code)]

use super::{BRANCH, BranchKek};
use crate::caller::{Action, Caller};
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::format::{KeyKind, KeyRow};
use crate::store::{RewrapOptions, RewrapProgress};

impl BranchKek {
    /// Rewraps every branch key of this name in the store under the current versions of the root
    /// KEKs, and under no other KEK. Messages do not change. Afterwards a retired root can be
    /// disabled: see docs/key-stores.md, "Rotation day".
    ///
    /// It reads the store page by page and calls `progress` after each page. If a root has batches,
    /// one call rewraps many keys. Each new entry is unwrapped and checked before the old one is
    /// dropped, and a row is replaced only if nobody else changed it meanwhile. An interrupted run
    /// can [resume](RewrapOptions::after), and running it again does what is left.
    ///
    /// ```
    /// # use waxseal::{branch::BranchKek, store::MemoryStore, kek::local::LocalKek};
    /// use waxseal::store::RewrapOptions;
    ///
    /// # pollster::block_on(async {
    /// # let root = LocalKek::in_memory("root")?;
    /// # let kek = BranchKek::builder(root).name("orders").store(MemoryStore::new()).build()?;
    /// let done = kek.rewrap_branch_keys(RewrapOptions::default(), |_| {}).await?;
    /// assert_eq!((done.failed, done.unknown, done.next), (0, 0, None));
    /// # Ok::<(), waxseal::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption) without a store. The first
    /// outage of the store or of a root, and a shut-down, end the run: the last progress says where
    /// to resume. Check [`RewrapProgress::failed`] too.
    pub async fn rewrap_branch_keys(
        &self,
        options: RewrapOptions,
        progress: impl FnMut(&RewrapProgress),
    ) -> Result<RewrapProgress, Error> {
        self.rewrap_branch_keys_for(None, options, progress).await
    }

    /// Asks the policy once, with the empty context.
    pub(super) async fn rewrap_branch_keys_for(
        &self,
        caller: Option<&Caller>,
        options: RewrapOptions,
        progress: impl FnMut(&RewrapProgress),
    ) -> Result<RewrapProgress, Error> {
        self.permit(Action::Rewrap, &EncryptionContext::empty(), caller).await?;
        let is_own = |row: &KeyRow| {
            let names = row.context().map(|of| (of.get(BRANCH), of.domain()));
            row.kind() == KeyKind::Branch
                && names == Some((Some(self.name()), self.0.domain.as_deref()))
        };
        self.0.source.rewrap_store(options, is_own, progress).await
    }
}
