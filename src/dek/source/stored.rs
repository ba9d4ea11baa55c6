//! Reads the row of a key from the key store, and reports what is wrong with it.
#![forbid(unsafe_code)]

use futures_util::FutureExt;

use super::DekSource;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::{KeyKind, KeyRow, WrappedKeys};
use crate::kek::CallTarget;
use crate::kek::batch::KeyList;
use crate::kek::call::{Asked, Call, CallBounds};
use crate::kek::set::Failure;
use crate::observe::{Event, StoreOperation};
use crate::store::{BoxFuture, KeyStore, RowId, StoreError, StoredRow};
use crate::suite::DekId;
use crate::sync::foreign::caught;

/// A key's wrapped keys, and the context and id that they belong to.
pub(super) struct Located {
    pub(super) context: EncryptionContext,
    pub(super) id: DekId,
    pub(super) wrapped_keys: WrappedKeys,
}

impl Located {
    pub(super) fn key_list(&self) -> KeyList<'_> {
        KeyList { context: &self.context, dek_id: &self.id, keys: &self.wrapped_keys }
    }
}

impl DekSource {
    /// Returns the wrapped keys of a request: its own, or those in the store.
    pub(super) async fn locate(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
        id: &DekId,
        wrapped_keys: Option<&WrappedKeys>,
    ) -> Result<Located, Failure> {
        let own = wrapped_keys.map(|wrapped_keys| Located {
            context: context.clone(),
            id: *id,
            wrapped_keys: wrapped_keys.clone(),
        });
        let Some(store) = &self.options.store else {
            return own.ok_or_else(|| missing(id).into());
        };
        let row_id = RowId::from(id);
        let get = || store.get(&row_id);
        let row = self.of_store(bounds, &**store, StoreOperation::Get, get).await?;
        let Some(row) = row else {
            // A message that carries its wrapped keys needs no row.
            let detail = format!("key store {} has no row {row_id}", store.name());
            return own.ok_or_else(|| Error::new(ErrorKind::MissingWrappedKeys, detail).into());
        };
        let row = self.read(&**store, &row_id, &row)?;
        let (Some(stored), Some(wrapped_keys)) = (row.context(), row.wrapped_keys()) else {
            return Err(self.erased(&**store, context, row.id()));
        };
        if let Some(own) = own {
            return Ok(own);
        }
        let located =
            Located { context: stored.clone(), id: *row.id(), wrapped_keys: wrapped_keys.clone() };
        match &self.options.branch {
            None if row.kind() == KeyKind::Dek
                && located.id == *id
                && located.context == *context =>
            {
                Ok(located)
            }
            Some(branch) if row.kind() == KeyKind::Branch => {
                let period = branch.check_context(context, stored)?;
                branch.check_begun(period, self.options.clock.now())?;
                Ok(located)
            }
            // The message names a key of another context or kind.
            _ => Err(Error::invalid().into()),
        }
    }

    /// Asks the store, behind the call policy and with a separate budget and breaker. `work` makes
    /// one call. `bounds` are those of the request that needs the answer, so the store and the KEKs
    /// share its deadline, and a renewal has the reserved lane at both.
    pub(super) async fn of_store<'a, T>(
        &self,
        bounds: CallBounds,
        store: &dyn KeyStore,
        operation: StoreOperation,
        mut work: impl FnMut() -> BoxFuture<'a, Result<T, StoreError>>,
    ) -> Result<T, Failure> {
        let name = store.name();
        let call = || {
            let advice = caught(|| store.advice()).unwrap_or_default();
            let target = CallTarget::new(name).with_advice(advice);
            Call { asked: Asked::OfStore(operation), target, also: None }
        };
        let once = || work().map(|answer| answer.map_err(StoreError::into_call_error));
        let answer = match operation {
            // Read now, whatever the breaker says.
            StoreOperation::Health => self.store_calls.checked(&call().target, once).await,
            _ => self.store_calls.retrying(bounds, call, once).await,
        };
        answer.map_err(|error| {
            let outage = (error.class().kind(), self.options.clock.now());
            // This process's own budget says nothing about the store.
            let of_store = (!error.is_over_budget()).then_some(outage);
            let detail = format!("key store {name}: {}", error.message());
            Failure { of_store, ..error.into_error(detail).into() }
        })
    }

    /// Does the same as [`of_store`](Self::of_store), for a caller that needs only the error.
    pub(super) async fn of_store_or_error<'a, T>(
        &self,
        bounds: CallBounds,
        store: &dyn KeyStore,
        operation: StoreOperation,
        work: impl FnMut() -> BoxFuture<'a, Result<T, StoreError>>,
    ) -> Result<T, Error> {
        self.of_store(bounds, store, operation, work).await.map_err(|failure| failure.error)
    }

    /// Reads the store's row for an id.
    pub(super) fn read(
        &self,
        store: &dyn KeyStore,
        row_id: &RowId,
        stored: &StoredRow,
    ) -> Result<KeyRow, Error> {
        let row = stored
            .row()
            .map_err(|error| self.damaged(store, row_id, "it cannot be read").with_source(error))?;
        match RowId::from(row.id()) == *row_id {
            true => Ok(row),
            false => Err(self.damaged(store, row_id, "it holds another key")),
        }
    }

    /// Returns the error for a store that does not hold what was put there. Only an operator can
    /// repair that.
    pub(super) fn damaged(&self, store: &dyn KeyStore, row_id: &RowId, what: &str) -> Error {
        self.emit(&Event::DamagedRow { row_id: &row_id.to_string(), store: store.name() });
        let detail = format!("key store {}: row {row_id}: {what}", store.name());
        Error::new(ErrorKind::Misconfigured, detail)
    }

    pub(super) fn erased(
        &self,
        store: &dyn KeyStore,
        context: &EncryptionContext,
        id: &DekId,
    ) -> Failure {
        let detail =
            format!("the key {:.32} of {context:?} was erased from key store {}", id, store.name());
        Failure { is_erased: true, ..Error::new(ErrorKind::Denied, detail).into() }
    }
}

fn missing(id: &DekId) -> Error {
    Error::new(ErrorKind::MissingWrappedKeys, id.to_string())
}
