//! The provider: which branch key a DEK needs, and the DEK from it.
#![forbid(unsafe_code)]

use futures_util::future::join_all;

use super::BranchKek;
use super::format::{BranchEntry, Form};
use crate::context::EncryptionContext;
use crate::dek::{DekOf, DekRequest, Held, LeaseParent, ReadingRequest, WritingRequest, cached_as};
use crate::error::{Error, ErrorKind};
use crate::format::{KeyKind, KeyRow};
use crate::kek::rewrap::Check;
use crate::kek::{
    BoxFuture, CallAdvice, CallTarget, ContextBinding, Dek, Health, KekError, KekId, KekProvider,
    UnwrappedDek, WrappedDek,
};
use crate::store::RowId;
use crate::suite::{BranchKey, DekId, Suite};
use crate::sync::Arc;

/// How often a branch key is obtained again if it was removed between look-up and use.
const ATTEMPTS: usize = 3;

/// The branch key that an entry names.
struct Named<'e> {
    context: &'e EncryptionContext,
    id: DekId,
    wrapped_keys: &'e [u8],
    is_stored: bool,
}

impl Named<'_> {
    fn request(&self) -> ReadingRequest<'_> {
        ReadingRequest {
            context: self.context,
            id: &self.id,
            suite: Suite::default(),
            wrapped_keys: Some(self.wrapped_keys),
            is_stored: self.is_stored,
        }
    }
}

/// An operation that uses a branch key.
type Work<'w, R> = &'w (dyn Fn(&BranchKey) -> Result<R, Error> + Sync);

impl BranchKek {
    /// Runs `work` with the branch key that makes new DEKs for `branch`. Also returns its row if no
    /// store holds it.
    async fn with_current<R: Send>(
        &self,
        branch: &EncryptionContext,
        work: Work<'_, R>,
    ) -> Result<(R, Option<KeyRow>, crate::kek::Parent), Error> {
        let Self(inner) = self;
        for attempt in 0..ATTEMPTS {
            let held = self.held(WritingRequest { context: branch }, attempt).await?;
            let row = match &inner.store {
                Some(_) => None,
                None => {
                    held.lease.with_branch_key(|key| (*key.id(), key.context().clone())).ok().map(
                        |(id, context)| {
                            KeyRow::live(KeyKind::Branch, id, context, held.wrapped_keys.clone())
                        },
                    )
                }
            };
            let done = held.lease.with_branch_key(work);
            // Every dependent DEK holds it, pinned or not, and ends when it ends.
            let parent = Arc::new(LeaseParent::of_branch(held.into_dek(), &inner.id));
            if let Some(done) = unless_taken_away(done)? {
                return Ok((done, row, parent));
            }
        }
        Err(taken_away())
    }

    /// Runs `work` with the branch key that an entry names.
    async fn with_named<R: Send>(
        &self,
        branch: &EncryptionContext,
        entry: &BranchEntry,
        work: Work<'_, R>,
    ) -> Result<(R, crate::kek::Parent), Error> {
        let Self(inner) = self;
        let named = self.named(branch, entry)?;
        let request = named.request();
        for attempt in 0..ATTEMPTS {
            let held = self.held(request, attempt).await?;
            if entry.row.is_some() {
                // Only now is the period known to be the key's own.
                inner.source.check_branch_has_begun(named.context)?;
            }
            let done = held.lease.with_branch_key(work);
            let parent = Arc::new(LeaseParent::of_branch(held.into_dek(), &inner.id));
            if let Some(done) = unless_taken_away(done)? {
                return Ok((done, parent));
            }
        }
        Err(taken_away())
    }

    /// Runs `work` with the branch key that an entry names, if it is cached and need not be
    /// renewed.
    fn with_named_cached<R>(
        &self,
        branch: &EncryptionContext,
        entry: &BranchEntry,
        work: impl FnOnce(&BranchKey) -> Result<R, Error>,
    ) -> Option<(R, crate::kek::Parent)> {
        let Self(inner) = self;
        let named = self.named(branch, entry).ok()?;
        let (held, _) = inner.source.get_cached(named.request()).ok()??;
        if entry.row.is_some() {
            inner.source.check_branch_has_begun(named.context).ok()?;
        }
        let done = held.lease.with_branch_key(work).flatten().ok()?;
        Some((done, Arc::new(LeaseParent::of_branch(held, &inner.id))))
    }

    /// Returns the branch key that an entry names.
    fn named<'e>(
        &self,
        branch: &'e EncryptionContext,
        entry: &'e BranchEntry,
    ) -> Result<Named<'e>, Error> {
        let Self(inner) = self;
        let Some(row) = &entry.row else {
            // Either in a store, or in a place that this provider does not know.
            let (id, is_stored) = (cached_as(&entry.row_id), inner.store.is_some());
            return Ok(Named { context: branch, id, wrapped_keys: &[], is_stored });
        };
        let (Some(context), Some(wrapped_keys)) = (row.context(), row.wrapped_keys()) else {
            return Err(Error::invalid());
        };
        inner.source.check_branch_context(branch, context)?;
        let wrapped_keys = wrapped_keys.as_bytes();
        Ok(Named { context, id: *row.id(), wrapped_keys, is_stored: false })
    }

    /// From the second attempt on the branch key is pinned, so that an eviction does not take it
    /// away.
    async fn held<Q: DekRequest>(
        &self,
        request: Q,
        attempt: usize,
    ) -> Result<Held<DekOf<Q>>, Error> {
        match attempt {
            0 => self.0.source.get(request).await,
            _ => self.0.source.held(request, true).await,
        }
    }

    fn entry(&self, row_id: RowId, form: Form, row: Option<KeyRow>) -> Result<WrappedDek, Error> {
        let bytes = BranchEntry { row_id, form, row }.to_bytes().ok_or_else(|| {
            let detail = "the branch key's row is too long for a message: use a store";
            Error::new(ErrorKind::TooLarge, detail)
        })?;
        WrappedDek::new(self.0.id.clone(), bytes)
    }

    async fn derive_new(
        &self,
        context: &EncryptionContext,
    ) -> Result<(UnwrappedDek, WrappedDek), Error> {
        let branch = self.branch_of(context)?;
        let salt = BranchKey::random_salt()?;
        let derive = |key: &BranchKey| Ok((key.derive(context, &salt)?, RowId::from(key.id())));
        let ((dek, row_id), row, parent) = self.with_current(&branch, &derive).await?;
        let entry = self.entry(row_id, Form::Derived(salt), row)?;
        Ok((UnwrappedDek::new(dek.expose().to_vec()).with_parent(parent), entry))
    }

    async fn wrap_dek(&self, context: &EncryptionContext, dek: &Dek) -> Result<WrappedDek, Error> {
        let branch = self.branch_of(context)?;
        let backend = self.0.backend;
        let wrap = |key: &BranchKey| Ok((key.wrap(backend, context, dek)?, RowId::from(key.id())));
        let ((wrapped, row_id), row, _) = self.with_current(&branch, &wrap).await?;
        self.entry(row_id, Form::Wrapped(wrapped), row)
    }

    async fn unwrap_dek(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<UnwrappedDek, Error> {
        let entry = BranchEntry::read(wrapped.wrapped()).ok_or_else(Error::invalid)?;
        let branch = self.branch_of(context)?;
        let open = |key: &BranchKey| self.open(key, context, &entry);
        let (dek, parent) = self.with_named(&branch, &entry, &open).await?;
        Ok(UnwrappedDek::new(dek.expose().to_vec()).with_parent(parent))
    }

    /// Returns the DEK of an entry.
    fn open(
        &self,
        key: &BranchKey,
        context: &EncryptionContext,
        entry: &BranchEntry,
    ) -> Result<Dek, Error> {
        match &entry.form {
            Form::Derived(salt) => key.derive(context, salt),
            Form::Wrapped(wrapped) => key.unwrap(self.0.backend, context, wrapped),
        }
    }

    /// Rewraps an entry, starting from its DEK. An entry that carries its branch key moves to the
    /// store's branch key if there is a store. Otherwise the roots wrap its branch key again.
    async fn rewrap_dek(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<WrappedDek, Error> {
        let dek = self.unwrap_dek(context, wrapped).await?;
        let mut entry = BranchEntry::read(wrapped.wrapped()).ok_or_else(Error::invalid)?;
        if entry.row.is_some() && self.0.store.is_some() {
            return self.wrap_dek(context, &dek.to_dek().ok_or_else(Error::invalid)?).await;
        }
        if let Some(row) = &entry.row
            && let (Some(of_row), Some(wrapped_keys)) = (row.context(), row.wrapped_keys())
        {
            let keys = self
                .0
                .source
                .rewrap_list(of_row, row.id(), wrapped_keys, Check::UnwrapEach)
                .await?;
            entry.row = Some(KeyRow::live(KeyKind::Branch, *row.id(), of_row.clone(), keys));
        }
        self.entry(entry.row_id, entry.form, entry.row)
    }

    /// Refuses the entry of another KEK.
    fn check_own(&self, wrapped: &WrappedDek) -> Result<(), KekError> {
        match *wrapped.kek_id() == self.0.id {
            true => Ok(()),
            false => Err(KekError::invalid("wrapped by another KEK").without_asking()),
        }
    }
}

/// Returns `None` if the branch key ended between look-up and use.
fn unless_taken_away<R>(done: Result<Result<R, Error>, Error>) -> Result<Option<R>, Error> {
    match done.flatten() {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.kind() == ErrorKind::Expired => Ok(None),
        Err(error) => Err(error),
    }
}

fn taken_away() -> Error {
    Error::new(ErrorKind::Unavailable, "branch keys were revoked during the request")
}

/// Translates the failure of a branch key to that of a DEK.
fn failure(error: Error) -> KekError {
    let detail = error.detail().to_owned();
    let failure = match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Randomness => KekError::unavailable(detail),
        ErrorKind::Throttled => KekError::throttled(detail),
        ErrorKind::Denied => KekError::denied(detail),
        // Anyone can write a message that names an unknown key or root.
        kind @ ErrorKind::UnknownKek => {
            KekError::invalid_shown_as(kind, format!("the branch key was wrapped by {detail}"))
        }
        kind
        @ (ErrorKind::InvalidContext | ErrorKind::MissingWrappedKeys | ErrorKind::TooLarge) => {
            KekError::invalid_shown_as(kind, detail)
        }
        ErrorKind::Invalid | ErrorKind::Malformed => KekError::invalid(detail),
        _ => KekError::misconfigured(error.to_string()),
    };
    match std::error::Error::source(&error) {
        Some(_) => failure.with_source(error),
        None => failure,
    }
}

impl KekProvider for BranchKek {
    fn id(&self) -> &KekId {
        &self.0.id
    }

    /// Calls to the roots have their own policy.
    fn target(&self, _: &KekId) -> CallTarget {
        CallTarget::new(self.0.id.as_str()).with_advice(CallAdvice::default().in_process())
    }

    fn derives_deks(&self) -> bool {
        true
    }

    /// Another context has another branch key, which derives another DEK, so nothing is unwrapped.
    fn context_binding(&self) -> ContextBinding {
        ContextBinding::Enforced
    }

    /// A branch key in a store is rewrapped there. One that a message carries never counts as
    /// current: a cached branch key opens the message whatever the roots' entries say, so only a
    /// rewrap asks the roots about them.
    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        let entry = BranchEntry::read(wrapped.wrapped())?;
        match (&entry.row, &self.0.store) {
            (None, Some(_)) => Some(true),
            (Some(row), None) => {
                let is_current = self.0.source.keks().are_current(row.wrapped_keys()?);
                is_current.filter(|is_current| !is_current)
            }
            // It was written by the other kind of provider, so it is wrapped again.
            _ => Some(false),
        }
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move { self.wrap_dek(context, dek).await.map_err(failure) })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            self.check_own(wrapped)?;
            self.unwrap_dek(context, wrapped).await.map_err(failure)
        })
    }

    fn unwrap_cached(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Option<UnwrappedDek> {
        self.check_own(wrapped).ok()?;
        let entry = BranchEntry::read(wrapped.wrapped())?;
        let branch = self.branch_of(context).ok()?;
        let open = |key: &BranchKey| self.open(key, context, &entry);
        let (dek, parent) = self.with_named_cached(&branch, &entry, open)?;
        Some(UnwrappedDek::new(dek.expose().to_vec()).with_parent(parent))
    }

    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(async move { self.derive_new(context).await.map_err(failure) })
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            self.check_own(wrapped)?;
            self.rewrap_dek(context, wrapped).await.map_err(failure)
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(async move { self.0.source.health_of_branches().await })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // Branch keys stay, because another envelope may use them.
            join_all(self.0.source.keks().closing()).await;
        })
    }
}
