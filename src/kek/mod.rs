//! The [`KekProvider`] trait, which wraps and unwraps DEKs, and its implementations.
//!
//! A provider knows one key service. It tries each call once and classifies failures. Retries,
//! caching and the choice between several KEKs are done above it, in one place for all providers.
#![forbid(unsafe_code)]

pub(crate) mod batch;
pub(crate) mod call;
mod candidates;
#[cfg(feature = "test-util")]
pub mod conformance;
mod error;
pub mod local;
mod login;
mod parent;
pub(crate) mod rewrap;
#[cfg(feature = "test-util")]
pub mod scripted;
pub(crate) mod set;
pub mod toolkit;

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

pub use call::{CallAdvice, CallTarget};
pub use error::{KekError, KekErrorClass};
pub use login::Login;

pub(crate) use parent::{Dependants, Parent, ParentKey};
pub(crate) use set::{KekSet, named};

use crate::context::EncryptionContext;
pub(crate) use crate::format::{KekId, WrappedDek};
pub use crate::runtime::BoxFuture;
pub(crate) use crate::suite::Dek;

/// The prefix of the id of a [`BranchKek`](crate::branch::BranchKek).
pub(crate) const BRANCH_ID_PREFIX: &str = "branch:";

/// One key encryption key in one key service.
///
/// Implementations try once, keep no DEK, and report with [`KekErrorClass`] what a failure means.
/// They run the conformance suite ([`conformance`](crate::kek)) in their tests. They need no
/// particular runtime: any executor that the provider's documentation allows may poll a future.
///
/// A wrapper around another provider forwards **every** method, including the default ones.
/// Otherwise it loses the better implementation of the inner provider.
pub trait KekProvider: fmt::Debug + Send + Sync {
    /// Returns the id of the KEK that [`wrap`](Self::wrap) uses.
    fn id(&self) -> &KekId;

    /// Returns whether this provider can unwrap keys wrapped under `kek_id`. By default, only its
    /// own id.
    fn recognises(&self, kek_id: &KekId) -> bool {
        kek_id == self.id()
    }

    /// Returns the target of a call about `kek_id`, which is the provider's own id or one that it
    /// [recognises](Self::recognises). A provider with several keys, Regions or stores behind it
    /// names each, so that one that is down does not stop calls to the others. It is called before
    /// each call and makes no call itself. By default there is one target, named like the
    /// provider's own id.
    fn target(&self, kek_id: &KekId) -> CallTarget {
        let _ = kek_id;
        CallTarget::new(self.id().as_str())
    }

    /// Returns whether this provider makes DEKs itself, by deriving them from a key that it holds
    /// in this process. New DEKs then come from its [`generate`](Self::generate), whatever the
    /// [`DekOrigin`](crate::DekOrigin). By default `false`. A provider around a
    /// [`BranchKek`](crate::branch::BranchKek) must forward it: `build` refuses one that does not.
    fn derives_deks(&self) -> bool {
        false
    }

    /// Returns how the key service binds a wrapped key to its encryption context. By default
    /// [`Checked`](ContextBinding::Checked), the weaker of the two safe ways.
    fn context_binding(&self) -> ContextBinding {
        ContextBinding::Checked
    }

    /// Returns whether [`rewrap`](Self::rewrap) happens in the key service, so that no DEK enters
    /// the process. By default `false`. Then an envelope does not call `rewrap`: it unwraps, checks
    /// the DEK against its id and wraps. These count as two calls in the budget, the statistics and
    /// the events. It still calls `rewrap` of a provider that answers in this process
    /// ([`CallAdvice::in_process`]).
    fn rewraps_in_service(&self) -> bool {
        false
    }

    /// Returns whether the KEK's current version made `wrapped`, without a call. `None` if the
    /// bytes do not say, or the current version is unknown. Then
    /// [`needs_rewrap`](crate::Envelope::needs_rewrap) sees no need, but
    /// [`rewrap`](crate::Envelope::rewrap) still wraps again. By default `None`.
    ///
    /// It may read the metadata, although anyone may have written it. A rewrap does not trust the
    /// metadata: it also asks about the entry without it, and keeps the entry only if that returns
    /// `Some(true)` too and [`unwrap`](Self::unwrap) then accepts it. So the version that is read
    /// from [`WrappedDek::wrapped`] must be the one that `unwrap` uses.
    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        let _ = wrapped;
        None
    }

    /// Returns the version of the KEK that made `wrapped`, for events, if the bytes show it. It
    /// makes no call, and no decision depends on it. By default `None`.
    fn key_version(&self, wrapped: &WrappedDek) -> Option<Box<str>> {
        let _ = wrapped;
        None
    }

    /// Wraps `dek` under the KEK's current version, bound to `context` if the key service can do
    /// that.
    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>>;

    /// Unwraps a DEK. The library checks the result against the DEK id before using it.
    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>>;

    /// Unwraps a DEK at once, if everything it needs is in this process, such as a cached [branch
    /// key](crate::branch). Returns `None` if it would have to make a call or wait, and for every
    /// failure; then [`unwrap`](Self::unwrap) is called. It runs on the thread that decrypts and
    /// must not block. Its result is checked like one of `unwrap`. By default `None`.
    ///
    /// It is for providers around a [`BranchKek`](crate::branch::BranchKek), which forward it. Its
    /// DEKs end with their branch key. Do not answer from your own cache: each answer would begin
    /// another `max_age`, and a denial would never be noticed.
    fn unwrap_cached(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Option<UnwrappedDek> {
        let _ = (context, wrapped);
        None
    }

    /// Has the key service make a DEK (AWS KMS: `GenerateDataKey`). The security of its messages
    /// then depends on the service's generator. By default the DEK is made in this process and
    /// wrapped.
    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(async move {
            let dek = Dek::random().map_err(|error| {
                KekError::unavailable("the random number generator failed").with_source(error)
            })?;
            let wrapped = self.wrap(context, &dek).await?;
            Ok((UnwrappedDek::new(dek.expose().to_vec()), wrapped))
        })
    }

    /// Wraps again under the KEK's current version, in the key service if possible, so that no DEK
    /// enters the process. By default it unwraps and wraps.
    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let dek = self.unwrap(context, wrapped).await?;
            let dek = dek
                .to_dek()
                .ok_or_else(|| KekError::invalid("the unwrapped DEK is not 32 bytes"))?;
            self.wrap(context, &dek).await
        })
    }

    /// Returns the maximum number of items in one request of [`wrap_many`](Self::wrap_many),
    /// [`unwrap_many`](Self::unwrap_many) and [`rewrap_many`](Self::rewrap_many). By default 1: the
    /// service has no batches, and DEKs are requested one by one, in parallel.
    ///
    /// A batch counts as one call about the provider's [`id`](Self::id). It is repeated for the
    /// items that an outage affected, and has failed if every item did.
    fn batch_size(&self) -> usize {
        1
    }

    /// Wraps many DEKs, in one request if the service can. Returns one result per item, in order. A
    /// bad item fails alone. By default one after the other.
    fn wrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a Dek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Box::pin(async move {
            let mut results = Vec::with_capacity(items.len());
            for (context, dek) in items {
                results.push(self.wrap(context, dek).await);
            }
            results
        })
    }

    /// Unwraps many DEKs: see [`wrap_many`](Self::wrap_many).
    fn unwrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        Box::pin(async move {
            let mut results = Vec::with_capacity(items.len());
            for (context, wrapped) in items {
                results.push(self.unwrap(context, wrapped).await);
            }
            results
        })
    }

    /// Rewraps many DEKs: see [`wrap_many`](Self::wrap_many).
    fn rewrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Box::pin(async move {
            let mut results = Vec::with_capacity(items.len());
            for (context, wrapped) in items {
                results.push(self.rewrap(context, wrapped).await);
            }
            results
        })
    }

    /// Checks whether the KEK can be used now. The class of an error says why not.
    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>>;

    /// Returns the provider's login, for statistics and metrics. It makes no call and does not
    /// wait. By default `None`: there is no login, or nothing is known about it.
    fn login(&self) -> Option<Login> {
        None
    }

    /// Releases what the provider holds at the key service, such as a login, when an envelope is
    /// [shut down](crate::Envelope::shut_down). A provider may serve other envelopes too: the next
    /// call acquires it again. By default it does nothing.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// How a key service binds a wrapped DEK to its encryption context.
///
/// In every case the DEK id commits to the context, so no message decrypts in another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum ContextBinding {
    /// The key service refuses to unwrap in another context.
    Enforced,
    /// The key service unwraps in any context. This process receives the DEK and refuses it,
    /// because its id does not match.
    Checked,
    /// Wrapping is **unauthenticated**: it needs only a public key, so anyone can wrap a DEK that
    /// they made and create messages that a reader accepts. The
    /// [builder](crate::EnvelopeBuilder::allow_unauthenticated_wrapping) refuses such a KEK unless
    /// it is allowed by name.
    Unauthenticated,
}

/// The result of a provider's [`health`](KekProvider::health) check.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case", tag = "status", content = "detail")
)]
#[non_exhaustive]
pub enum Health {
    /// The KEK wraps and unwraps.
    Ready,
    /// The KEK works, but an operator should look at it.
    Degraded(String),
}

/// A DEK as a key service returned it. Its length and content are unchecked.
///
/// It is wiped on drop, has no Clone and no serde, and shows nothing in Debug.
pub struct UnwrappedDek {
    bytes: Zeroizing<Vec<u8>>,
    parent: Option<Parent>,
}

impl UnwrappedDek {
    /// Takes ownership of the bytes that the service returned.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: Zeroizing::new(bytes), parent: None }
    }

    /// Records the key of this process that the DEK was derived through. It ends with that key.
    pub(crate) fn with_parent(mut self, parent: Parent) -> Self {
        self.parent = Some(parent);
        self
    }

    pub(crate) fn take_parent(&mut self) -> Option<Parent> {
        self.parent.take()
    }

    /// Returns the bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the bytes, for a provider that decrypts in place.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Returns the DEK if there are exactly 32 bytes.
    #[must_use]
    pub fn to_dek(&self) -> Option<Dek> {
        Dek::from_slice(&self.bytes)
    }
}

impl fmt::Debug for UnwrappedDek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnwrappedDek([redacted])")
    }
}

/// Lets a provider be shared, so that a service can keep a handle to one that it passed on.
impl<P: KekProvider + ?Sized> KekProvider for Arc<P> {
    fn id(&self) -> &KekId {
        (**self).id()
    }

    fn recognises(&self, kek_id: &KekId) -> bool {
        (**self).recognises(kek_id)
    }

    fn target(&self, kek_id: &KekId) -> CallTarget {
        (**self).target(kek_id)
    }

    fn derives_deks(&self) -> bool {
        (**self).derives_deks()
    }

    fn context_binding(&self) -> ContextBinding {
        (**self).context_binding()
    }

    fn rewraps_in_service(&self) -> bool {
        (**self).rewraps_in_service()
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        (**self).is_current(wrapped)
    }

    fn key_version(&self, wrapped: &WrappedDek) -> Option<Box<str>> {
        (**self).key_version(wrapped)
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        (**self).wrap(context, dek)
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        (**self).unwrap(context, wrapped)
    }

    fn unwrap_cached(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Option<UnwrappedDek> {
        (**self).unwrap_cached(context, wrapped)
    }

    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        (**self).generate(context)
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        (**self).rewrap(context, wrapped)
    }

    fn batch_size(&self) -> usize {
        (**self).batch_size()
    }

    fn wrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a Dek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        (**self).wrap_many(items)
    }

    fn unwrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        (**self).unwrap_many(items)
    }

    fn rewrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        (**self).rewrap_many(items)
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        (**self).health()
    }

    fn login(&self) -> Option<Login> {
        (**self).login()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        (**self).close()
    }
}
