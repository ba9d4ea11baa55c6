//! Who wraps DEKs: the [`KekProvider`] trait and its implementations.
//!
//! A provider knows one key service. It tries each call once and classifies what went wrong; retries, caching and the choice
//! between several KEKs are made above it, in one place for all.
#![forbid(unsafe_code)]

pub(crate) mod call;
#[cfg(feature = "test-util")]
pub mod conformance;
mod error;
pub mod local;
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

pub(crate) use set::{KekSet, named};

use crate::context::EncryptionContext;
pub(crate) use crate::format::{KekId, WrappedDek};
pub use crate::runtime::BoxFuture;
pub(crate) use crate::suite::Dek;

/// One key encryption key in one key service.
///
/// Implementations try once, keep no DEK, and say with [`KekErrorClass`] what a failure means; they run
/// [`conformance`](crate::kek) in their tests. They need no runtime of their own: a future may be polled by any executor that the
/// provider's documentation allows.
///
/// A wrapper around another provider forwards **every** method; the default ones too, or the inner one's better version is lost.
pub trait KekProvider: fmt::Debug + Send + Sync {
    /// The KEK that [`wrap`](Self::wrap) uses.
    fn id(&self) -> &KekId;

    /// Whether this provider can unwrap what was wrapped under `kek_id`. By default only its own id.
    fn recognises(&self, kek_id: &KekId) -> bool {
        kek_id == self.id()
    }

    /// What answers a call about `kek_id`, which is the provider's own id or one that it
    /// [recognises](Self::recognises): a provider behind which there are several keys, Regions or stores names them, so
    /// that one that is down does not keep calls from the others. Asked before each call, and makes none. By
    /// default one target, named like the provider's own id.
    fn target(&self, kek_id: &KekId) -> CallTarget {
        let _ = kek_id;
        CallTarget::new(self.id().as_str())
    }

    /// How the key service binds a wrapped key to its encryption context. By default
    /// [`Checked`](ContextBinding::Checked), the weaker of the two that are safe.
    fn context_binding(&self) -> ContextBinding {
        ContextBinding::Checked
    }

    /// Whether [`rewrap`](Self::rewrap) is done in the key service, so that no DEK comes into the process. By default not.
    fn rewraps_in_service(&self) -> bool {
        false
    }

    /// Whether `wrapped` was made by the KEK's current version; no call is made. `None` where the
    /// bytes do not tell, or the current version is not known: then
    /// [`needs_rewrap`](crate::Envelope::needs_rewrap) sees no need, and
    /// [`rewrap`](crate::Envelope::rewrap) wraps anew all the same. By default `None`.
    ///
    /// The metadata may be read for it, though anyone can have written it. A rewrap does not
    /// believe it: it asks once more, for the entry without metadata, and keeps it only where that
    /// is `Some(true)` too and [`unwrap`](Self::unwrap) then takes it. So what is told from
    /// [`WrappedDek::wrapped`] must be what `unwrap` goes by.
    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        let _ = wrapped;
        None
    }

    /// Wraps `dek` under the KEK's current version, bound to `context` where the key service can.
    fn wrap<'a>(&'a self, context: &'a EncryptionContext, dek: &'a Dek) -> BoxFuture<'a, Result<WrappedDek, KekError>>;

    /// Unwraps. Whatever comes back is held against the DEK id before it is used.
    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>>;

    /// Has the key service make a DEK (AWS KMS: `GenerateDataKey`). The security of its messages then rests on the service's
    /// generator. By default a DEK is made here and wrapped.
    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(async move {
            let dek = Dek::random().map_err(|error| KekError::unavailable("no randomness").with_source(error))?;
            let wrapped = self.wrap(context, &dek).await?;
            Ok((UnwrappedDek::new(dek.expose().to_vec()), wrapped))
        })
    }

    /// Wraps anew under the KEK's current version, in the key service where it can, so that no DEK comes into the process. By
    /// default unwraps and wraps.
    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let dek = self.unwrap(context, wrapped).await?;
            let dek = dek.to_dek().ok_or_else(|| KekError::invalid("the unwrapped DEK is not 32 bytes"))?;
            self.wrap(context, &dek).await
        })
    }

    /// [`wrap`](Self::wrap) for many, in one request where the service can. One result per item, in order; a bad item fails alone.
    /// By default one after the other.
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

    /// [`unwrap`](Self::unwrap) for many, as [`wrap_many`](Self::wrap_many).
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

    /// [`rewrap`](Self::rewrap) for many, as [`wrap_many`](Self::wrap_many).
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

    /// Whether the KEK could be used now. An error says in its class why not.
    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>>;

    /// Gives up what the provider holds at the key service, such as a login, when an envelope is
    /// [shut down](crate::Envelope::shut_down). A provider may serve other envelopes too: the next call takes it up again.
    /// By default nothing.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// How a key service binds a wrapped DEK to its encryption context.
///
/// In every case the DEK id commits to the context, so no message opens in another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum ContextBinding {
    /// The key service refuses to unwrap in another context.
    Enforced,
    /// The key service unwraps in any context. The DEK is released to this process and then refused, since its id does not match.
    Checked,
    /// Wrapping is **unauthenticated**: it takes a public key only, so anyone can wrap a DEK of their own and seal messages
    /// that a reader accepts. Refused by the [builder](crate::EnvelopeBuilder::allow_unauthenticated_wrapping) unless it is asked for by name.
    Unauthenticated,
}

/// What a provider's [`health`](KekProvider::health) found.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "kebab-case", tag = "status", content = "detail")
)]
#[non_exhaustive]
pub enum Health {
    /// Wraps and unwraps.
    Ready,
    /// Works, with something an operator should look at.
    Degraded(String),
}

/// A DEK as a key service returned it: of a length and content that nobody has checked yet.
///
/// Wiped on drop; no Clone, no serde, nothing in Debug.
pub struct UnwrappedDek(Zeroizing<Vec<u8>>);

impl UnwrappedDek {
    /// Takes over the bytes that the service returned.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, for a provider that decrypts in place.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// The DEK, if there are exactly 32 bytes.
    #[must_use]
    pub fn to_dek(&self) -> Option<Dek> {
        Dek::from_slice(&self.0)
    }
}

impl fmt::Debug for UnwrappedDek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnwrappedDek([redacted])")
    }
}

/// So that a provider can be shared, and a service can keep a handle to the one it gave away.
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

    fn context_binding(&self) -> ContextBinding {
        (**self).context_binding()
    }

    fn rewraps_in_service(&self) -> bool {
        (**self).rewraps_in_service()
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        (**self).is_current(wrapped)
    }

    fn wrap<'a>(&'a self, context: &'a EncryptionContext, dek: &'a Dek) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        (**self).wrap(context, dek)
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        (**self).unwrap(context, wrapped)
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

    fn close(&self) -> BoxFuture<'_, ()> {
        (**self).close()
    }
}
