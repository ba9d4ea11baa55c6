//! Branch keys: a layer between the KEKs and the DEKs that makes old data readable without one call
//! per DEK.
//!
//! ```text
//!   Envelope ──► BranchKek ──► branch key, cached ──► DEK (derived, no call)
//!                    │               ▲
//!                    ▼               │ unwrapped by
//!                KeyStore       root KEKs (AWS KMS, Vault, …)
//! ```
//!
//! A [`BranchKek`] is a [`KekProvider`] over other providers, the *roots*. It holds one secret per
//! branch and period, a *branch key*. The roots wrap it, a [`KeyStore`] keeps it for all processes,
//! and DEKs are derived from it. Reading the rows of a month costs one call per branch and period,
//! whichever process wrote them. Rotating a root rewraps some branch keys and no message. Erasing a
//! branch makes everything under it unreadable.
//!
//! A branch key in memory is treated like a DEK: it is protected, renewed ahead of time, served
//! stale only in an outage, and wiped on time. Every DEK derived from it ends with it.
#![forbid(unsafe_code)]

mod acting;
mod builder;
mod format;
mod maintenance;
mod provider;
#[cfg(test)]
mod vectors;

use std::fmt;

pub use acting::ActingFor;
pub use builder::BranchKekBuilder;

use crate::caller::{Action, Caller};
use crate::context::EncryptionContext;
use crate::dek::{DOMAIN, OwnedSource, Statistics};
use crate::error::{Error, ErrorKind};
use crate::kek::{KekId, KekProvider};
use crate::policy::Guard;
use crate::store::{Erasure, KeyStore};
use crate::suite::Backend;
use crate::sync::Arc;

/// The reserved name of the context pair that names the branch.
pub(crate) const BRANCH: &str = "waxseal:branch";

/// A [`KekProvider`] that derives DEKs from branch keys. See the [module](self).
///
/// A clone is another handle to the same branch keys. Give one to each envelope that shares them.
///
/// ```
/// use waxseal::branch::BranchKek;
/// use waxseal::store::MemoryStore;
/// use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
///
/// # pollster::block_on(async {
/// let root = LocalKek::in_memory("root")?;
/// let kek = BranchKek::builder(root)
///     .name("orders")
///     .per(["tenant"])
///     .store(MemoryStore::new())
///     .build()?;
/// let envelope = Envelope::builder().wrap_with(kek.clone()).build()?;
/// let acme = EncryptionContext::new([("tenant", "acme"), ("table", "cards")])?;
/// let sealed = envelope.encrypt(&acme, Aad::empty(), b"4111 1111 1111 1111").await?;
/// assert_eq!(sealed.len(), 19 + 118);
///
/// // Everything of this tenant, in every table, is unreadable from now on.
/// kek.erase([("tenant", "acme")]).await?;
/// assert!(envelope.decrypt(&acme, Aad::empty(), &sealed).await.is_err());
/// # Ok::<(), waxseal::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct BranchKek(Arc<Inner>);

struct Inner {
    id: KekId,
    name: Box<str>,
    per: Box<[Box<str>]>,
    /// The data domain that the branches belong to.
    domain: Option<Box<str>>,
    backend: Backend,
    store: Option<Arc<dyn KeyStore>>,
    /// The branch keys.
    source: Arc<OwnedSource>,
    /// The policy in front of erasure and rewraps.
    guard: Option<Guard>,
}

impl BranchKek {
    /// Returns a builder. `root` wraps and unwraps branch keys.
    pub fn builder(root: impl KekProvider + 'static) -> BranchKekBuilder {
        BranchKekBuilder::new(root)
    }

    /// Returns the branch's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Erases a branch: every key of it in the store, of every period, becomes a tombstone. What
    /// was encrypted under them can no longer be read by anyone who asks the store. `pairs` are
    /// exactly the pairs that the branches are [per](BranchKekBuilder::per).
    ///
    /// In this process their DEKs and handles end before the call returns. Other processes notice
    /// when they renew their branch key, within its `max_age`. **What they encrypt until then is
    /// lost too**, so stop writing for the branch first. A later write starts a new branch key. A
    /// backup of the store keeps its rows: see docs/key-stores.md.
    ///
    /// If it fails, some keys may be erased and others not. Repeat it until it returns `Ok`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidContext`] for other pairs, [`ErrorKind::InvalidOption`] without a store,
    /// [`ErrorKind::PolicyDenied`], and the errors of the store.
    pub async fn erase<N, V>(
        &self,
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Erasure, Error>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        self.erase_for(None, EncryptionContext::new(pairs)?).await
    }

    async fn erase_for(
        &self,
        caller: Option<&Caller>,
        pairs: EncryptionContext,
    ) -> Result<Erasure, Error> {
        self.permit(Action::Erase, &pairs, caller).await?;
        let extra = pairs.iter().find(|(name, _)| !self.0.per.iter().any(|per| **per == **name));
        if let Some((name, _)) = extra {
            let detail = format!("{}: {name:?} does not distinguish branches", self.0.id);
            return Err(Error::new(ErrorKind::InvalidContext, detail));
        }
        let branch = self.branch_with(&pairs)?;
        self.0.source.erase_branch(&branch).await
    }

    /// Stops using a root KEK in this process, at once. Every branch key that it unwrapped ends,
    /// along with every DEK derived from it, in every envelope. The provider's own id stands for
    /// all roots. See [`Envelope::revoke_kek`](crate::Envelope::revoke_kek).
    pub fn revoke_kek(&self, kek_id: &KekId) {
        self.roots_of(kek_id).for_each(|root| self.0.source.revoke_kek(root));
    }

    /// Reverts a [`revoke_kek`](Self::revoke_kek).
    pub fn reinstate_kek(&self, kek_id: &KekId) {
        self.roots_of(kek_id).for_each(|root| self.0.source.reinstate_kek(root));
    }

    /// Returns the KEK itself, or all roots if it is this provider.
    fn roots_of<'k>(&'k self, kek_id: &'k KekId) -> impl Iterator<Item = &'k KekId> {
        let is_own = *kek_id == self.0.id;
        let roots = self.0.source.keks().reading.iter().map(|root| root.id());
        roots.filter(move |_| is_own).chain((!is_own).then_some(kek_id))
    }

    /// Wipes every branch key and every DEK derived from them, and forgets the policy's decisions.
    /// The next call asks the root KEKs.
    pub fn evict_all(&self) {
        if let Some(guard) = &self.0.guard {
            guard.forget();
        }
        self.0.source.evict_all();
    }

    /// Returns how often branch keys were cached, how many are cached now, and the number of calls
    /// to the root KEKs. Branch keys are counted like DEKs.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.0.source.statistics()
    }

    /// Returns the context of the branch to which a DEK's context belongs, without the period.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidContext`] if a pair is missing, or the context is of another domain.
    fn branch_of(&self, context: &EncryptionContext) -> Result<EncryptionContext, Error> {
        if context.domain() != self.0.domain.as_deref() {
            let detail = format!("{}: the encryption context is of another domain", self.0.id);
            return Err(Error::new(ErrorKind::InvalidContext, detail));
        }
        self.branch_with(context)
    }

    /// Returns the context of the branch with these pairs. It names the domain, so that two domains
    /// with the same name, store and root have different branch keys.
    fn branch_with(&self, context: &EncryptionContext) -> Result<EncryptionContext, Error> {
        let Inner { id, name, per, domain, .. } = &*self.0;
        let mut pairs = vec![(BRANCH, &**name)];
        pairs.extend(domain.as_deref().map(|domain| (DOMAIN, domain)));
        for name in per {
            let value = context.get(name).ok_or_else(|| {
                let detail = format!(
                    "{id}: the encryption context has no pair {name:?}, which distinguishes branches"
                );
                Error::new(ErrorKind::InvalidContext, detail)
            })?;
            pairs.push((name, value));
        }
        EncryptionContext::with_reserved_names(pairs)
    }

    /// Wipes the branch keys and refuses later calls.
    pub(crate) fn shut_down(&self) {
        self.0.source.shut_down();
    }

    /// Does the same, but lets a later shut-down notify observers.
    pub(crate) fn stop(&self) {
        self.0.source.stop();
    }

    /// Does the same as [`shut_down`](Self::shut_down), without waiting for observers.
    pub(crate) fn shut_down_later(&self) {
        self.0.source.shut_down_later();
    }

    /// Whether there are more clones than these.
    pub(crate) fn is_held_besides(&self, own: usize) -> bool {
        Arc::strong_count(&self.0) > own
    }
}

impl fmt::Debug for BranchKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BranchKek")
            .field("id", &self.0.id)
            .field("per", &self.0.per)
            .field("store", &self.0.store)
            .finish_non_exhaustive()
    }
}
