//! A KEK around another, with single methods replaced.

use std::fmt;
use std::sync::Arc;

use waxseal::kek::{
    BoxFuture, CallTarget, ContextBinding, Health, KekError, KekProvider, Login, UnwrappedDek,
};
use waxseal::{Dek, EncryptionContext, KekId, WrappedDek};

/// What a hook is given instead of `self`.
pub type Inner = Arc<dyn KekProvider>;

type Recognises = dyn Fn(&Inner, &KekId) -> bool + Send + Sync;
type Wrap = dyn for<'a> Fn(
        &'a Inner,
        &'a EncryptionContext,
        &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>>
    + Send
    + Sync;
type Unwrap = dyn for<'a> Fn(
        &'a Inner,
        &'a EncryptionContext,
        &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>>
    + Send
    + Sync;
type AskHealth = dyn for<'a> Fn(&'a Inner) -> BoxFuture<'a, Result<Health, KekError>> + Send + Sync;
type AskLogin = dyn Fn(&Inner) -> Option<Login> + Send + Sync;
type Close = dyn for<'a> Fn(&'a Inner) -> BoxFuture<'a, ()> + Send + Sync;

/// Forwards every method to the inner KEK, except those that a test replaces. The inner KEK's own
/// `generate`, `rewrap` and batches do not come by the hooks of `wrap` and `unwrap`.
#[derive(Clone)]
pub struct HookedKek {
    inner: Inner,
    recognises: Option<Arc<Recognises>>,
    derives_deks: Option<bool>,
    wrap: Option<Arc<Wrap>>,
    unwrap: Option<Arc<Unwrap>>,
    health: Option<Arc<AskHealth>>,
    login: Option<Arc<AskLogin>>,
    close: Option<Arc<Close>>,
}

impl HookedKek {
    pub fn around(inner: impl KekProvider + 'static) -> Self {
        Self {
            inner: Arc::new(inner),
            recognises: None,
            derives_deks: None,
            wrap: None,
            unwrap: None,
            health: None,
            login: None,
            close: None,
        }
    }

    pub fn recognising(
        mut self,
        hook: impl Fn(&Inner, &KekId) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.recognises = Some(Arc::new(hook));
        self
    }

    pub fn deriving_deks(mut self, derives: bool) -> Self {
        self.derives_deks = Some(derives);
        self
    }

    pub fn on_wrap(
        mut self,
        hook: impl for<'a> Fn(
            &'a Inner,
            &'a EncryptionContext,
            &'a Dek,
        ) -> BoxFuture<'a, Result<WrappedDek, KekError>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.wrap = Some(Arc::new(hook));
        self
    }

    pub fn on_unwrap(
        mut self,
        hook: impl for<'a> Fn(
            &'a Inner,
            &'a EncryptionContext,
            &'a WrappedDek,
        ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.unwrap = Some(Arc::new(hook));
        self
    }

    /// Unwraps entries under every id, as a provider does that knows its keys by another sign.
    pub fn unwrapping_under_any_id(self) -> Self {
        self.recognising(|_, _| true).on_unwrap(|kek, context, wrapped| {
            Box::pin(async move {
                let own = WrappedDek::new(kek.id().clone(), wrapped.wrapped()).unwrap();
                kek.unwrap(context, &own).await
            })
        })
    }

    pub fn on_health(
        mut self,
        hook: impl for<'a> Fn(&'a Inner) -> BoxFuture<'a, Result<Health, KekError>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.health = Some(Arc::new(hook));
        self
    }

    pub fn on_login(
        mut self,
        hook: impl Fn(&Inner) -> Option<Login> + Send + Sync + 'static,
    ) -> Self {
        self.login = Some(Arc::new(hook));
        self
    }

    pub fn on_close(
        mut self,
        hook: impl for<'a> Fn(&'a Inner) -> BoxFuture<'a, ()> + Send + Sync + 'static,
    ) -> Self {
        self.close = Some(Arc::new(hook));
        self
    }
}

impl fmt::Debug for HookedKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HookedKek").field(&self.inner).finish()
    }
}

impl KekProvider for HookedKek {
    fn id(&self) -> &KekId {
        self.inner.id()
    }

    fn recognises(&self, kek_id: &KekId) -> bool {
        match &self.recognises {
            Some(hook) => hook(&self.inner, kek_id),
            None => self.inner.recognises(kek_id),
        }
    }

    fn target(&self, kek_id: &KekId) -> CallTarget {
        self.inner.target(kek_id)
    }

    fn derives_deks(&self) -> bool {
        self.derives_deks.unwrap_or_else(|| self.inner.derives_deks())
    }

    fn context_binding(&self) -> ContextBinding {
        self.inner.context_binding()
    }

    fn rewraps_in_service(&self) -> bool {
        self.inner.rewraps_in_service()
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        self.inner.is_current(wrapped)
    }

    fn key_version(&self, wrapped: &WrappedDek) -> Option<Box<str>> {
        self.inner.key_version(wrapped)
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        match &self.wrap {
            Some(hook) => hook(&self.inner, context, dek),
            None => self.inner.wrap(context, dek),
        }
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        match &self.unwrap {
            Some(hook) => hook(&self.inner, context, wrapped),
            None => self.inner.unwrap(context, wrapped),
        }
    }

    fn unwrap_cached(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Option<UnwrappedDek> {
        // A hook sees every DEK that is unwrapped.
        self.unwrap.is_none().then(|| self.inner.unwrap_cached(context, wrapped)).flatten()
    }

    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        self.inner.generate(context)
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        self.inner.rewrap(context, wrapped)
    }

    fn batch_size(&self) -> usize {
        self.inner.batch_size()
    }

    fn wrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a Dek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        self.inner.wrap_many(items)
    }

    fn unwrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        self.inner.unwrap_many(items)
    }

    fn rewrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        self.inner.rewrap_many(items)
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        match &self.health {
            Some(hook) => hook(&self.inner),
            None => self.inner.health(),
        }
    }

    fn login(&self) -> Option<Login> {
        match &self.login {
            Some(hook) => hook(&self.inner),
            None => self.inner.login(),
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        match &self.close {
            Some(hook) => hook(&self.inner),
            None => self.inner.close(),
        }
    }
}
