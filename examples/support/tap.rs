//! A wrapper around a provider that does something before every call: count it, delay it. A wrapper forwards every method.

use std::sync::Arc;

use waxseal::kek::{BoxFuture, CallAdvice, Health, KekError, KekProvider, UnwrappedDek};
use waxseal::{Dek, EncryptionContext, KekId, WrappedDek};

/// Calls `before` with the number of DEKs in each call, then lets the call through.
#[derive(Clone)]
pub struct Tap<P> {
    inner: P,
    before: Arc<dyn Fn(usize) + Send + Sync>,
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

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        self.inner.is_current(wrapped)
    }

    fn call_advice(&self) -> CallAdvice {
        self.inner.call_advice()
    }

    fn wrap<'a>(&'a self, context: &'a EncryptionContext, dek: &'a Dek) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
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

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.inner.health()
    }
}
