//! A wrapper around a provider that does something before every call: count it, delay it. A wrapper
//! forwards every method.

use std::sync::Arc;

use waxseal::kek::{
    BoxFuture, CallTarget, ContextBinding, Health, KekError, KekProvider, Login, UnwrappedDek,
};
use waxseal::{Dek, EncryptionContext, KekId, WrappedDek};

/// Calls `before` with the number of DEKs in each call, then lets the call through.
#[derive(Clone)]
pub struct Tap<P> {
    inner: P,
    before: Arc<dyn Fn(usize) + Send + Sync>,
}

impl<P: std::fmt::Debug> std::fmt::Debug for Tap<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<P> Tap<P> {
    pub fn new(inner: P, before: impl Fn(usize) + Send + Sync + 'static) -> Self {
        Self { inner, before: Arc::new(before) }
    }
}

impl<P: KekProvider> KekProvider for Tap<P> {
    fn id(&self) -> &KekId {
        self.inner.id()
    }

    fn recognises(&self, kek_id: &KekId) -> bool {
        self.inner.recognises(kek_id)
    }

    fn context_binding(&self) -> ContextBinding {
        self.inner.context_binding()
    }

    fn login(&self) -> Option<Login> {
        self.inner.login()
    }

    fn rewraps_in_service(&self) -> bool {
        self.inner.rewraps_in_service()
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        self.inner.is_current(wrapped)
    }

    fn target(&self, kek_id: &KekId) -> CallTarget {
        self.inner.target(kek_id)
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        (self.before)(1);
        self.inner.wrap(context, dek)
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        (self.before)(1);
        self.inner.unwrap(context, wrapped)
    }

    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        (self.before)(1);
        self.inner.generate(context)
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        (self.before)(1);
        self.inner.rewrap(context, wrapped)
    }

    fn batch_size(&self) -> usize {
        self.inner.batch_size()
    }

    fn wrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a Dek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        (self.before)(items.len());
        self.inner.wrap_many(items)
    }

    fn unwrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        (self.before)(items.len());
        self.inner.unwrap_many(items)
    }

    fn rewrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        (self.before)(items.len());
        self.inner.rewrap_many(items)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.inner.health()
    }
}
