//! Walks a key store, and rewraps the keys in it.
#![forbid(unsafe_code)]

use futures_util::{StreamExt, stream};

use super::DekSource;
use crate::error::{Error, ErrorKind};
use crate::format::{KeyRow, WrappedKeys};
use crate::kek::batch::KeyList;
use crate::kek::call::Lane;
use crate::kek::rewrap::Check;
use crate::observe::StoreOperation;
use crate::store::{KeyStore, RewrapOptions, RewrapProgress, StoredRow};

/// How often a row is read again if others change it at the same time.
const ATTEMPTS: usize = 5;

/// The outcome for a row.
enum Outcome {
    Rewrapped,
    Current,
    /// Somebody else changed it meanwhile. This is its content now.
    Changed(Option<StoredRow>),
}

impl DekSource {
    /// Rewraps the keys of the store's rows that `is_wanted` selects, page by page, and calls
    /// `progress` after each page.
    pub(crate) async fn rewrap_store(
        &self,
        options: RewrapOptions,
        is_wanted: impl Fn(&KeyRow) -> bool,
        mut progress: impl FnMut(&RewrapProgress),
    ) -> Result<RewrapProgress, Error> {
        let Some(store) = &self.options.store else {
            return Err(Error::new(ErrorKind::InvalidOption, "there is no key store to walk"));
        };
        let (mut so_far, limit) = options.begin();
        loop {
            self.check_open()?;
            let scan = || store.scan(so_far.next.as_ref(), limit);
            let bounds = self.keks.bounds(Lane::Ordinary);
            let found =
                self.of_store_or_error(bounds, &**store, StoreOperation::Scan, scan).await?;
            let mut rows = found.rows;
            for _ in 0..ATTEMPTS {
                let wanted = self.wanted(&**store, rows, &is_wanted, &mut so_far)?;
                rows = self.rewrap_rows(&**store, wanted, &mut so_far).await?;
                if rows.is_empty() {
                    break;
                }
            }
            if let Some(row) = rows.first() {
                let detail = format!("key store {}: row {} keeps changing", store.name(), row.id());
                return Err(Error::new(ErrorKind::Unavailable, detail));
            }
            so_far.next = found.next;
            progress(&so_far);
            if so_far.next.is_none() {
                return Ok(so_far);
            }
        }
    }

    /// Returns the rows whose keys are to be rewrapped, and counts the others.
    fn wanted(
        &self,
        store: &dyn KeyStore,
        rows: Vec<StoredRow>,
        is_wanted: impl Fn(&KeyRow) -> bool,
        so_far: &mut RewrapProgress,
    ) -> Result<Vec<(StoredRow, KeyRow)>, Error> {
        let mut wanted = Vec::with_capacity(rows.len());
        for stored in rows {
            let read =
                self.read(store, stored.id(), &stored).and_then(|row| match key_list(&row) {
                    Some(list) if is_wanted(&row) => {
                        self.check_context(list.context)?;
                        Ok(Some(row))
                    }
                    _ => Ok(None),
                });
            match read {
                Ok(Some(row)) => wanted.push((stored, row)),
                Ok(None) => so_far.skipped += 1,
                Err(error) => so_far.count_failure(error)?,
            }
        }
        Ok(wanted)
    }

    /// Rewraps the keys of these rows. Returns the rows that somebody else changed meanwhile.
    async fn rewrap_rows(
        &self,
        store: &dyn KeyStore,
        rows: Vec<(StoredRow, KeyRow)>,
        so_far: &mut RewrapProgress,
    ) -> Result<Vec<StoredRow>, Error> {
        let lists: Vec<_> = rows.iter().filter_map(|(_, row)| key_list(row)).collect();
        let rewrapped = self.rewrap_lists(&lists, Check::UnwrapEach).await;
        let outcomes: Vec<_> = stream::iter(rows.into_iter().zip(rewrapped))
            .map(async |((stored, row), keys)| self.replace(store, stored, &row, keys?).await)
            .buffered(self.keks.at_once())
            .collect()
            .await;
        let mut changed = Vec::new();
        for outcome in outcomes {
            match outcome {
                Ok(Outcome::Rewrapped) => so_far.rewrapped += 1,
                Ok(Outcome::Current) => so_far.current += 1,
                Ok(Outcome::Changed(Some(there))) => changed.push(there),
                Ok(Outcome::Changed(None)) => so_far.skipped += 1,
                Err(error) => so_far.count_failure(error)?,
            }
        }
        Ok(changed)
    }

    /// Replaces the wrapped keys of one row, if it has not changed since it was read.
    async fn replace(
        &self,
        store: &dyn KeyStore,
        stored: StoredRow,
        row: &KeyRow,
        keys: WrappedKeys,
    ) -> Result<Outcome, Error> {
        let Some(old) = key_list(row).filter(|old| *old.keys != keys) else {
            return Ok(Outcome::Current);
        };
        let new = KeyRow::live(row.kind(), *row.id(), old.context.clone(), keys);
        let new = StoredRow::new(&new, stored.place().copied());
        let replace = || store.replace(&stored, &new);
        let bounds = || self.keks.bounds(Lane::Reserved);
        if self.of_store_or_error(bounds(), store, StoreOperation::Replace, replace).await? {
            return Ok(Outcome::Rewrapped);
        }
        let get = || store.get(stored.id());
        let there = self.of_store_or_error(bounds(), store, StoreOperation::Get, get).await?;
        // The response to a first try was lost.
        if there.as_ref() == Some(&new) {
            return Ok(Outcome::Rewrapped);
        }
        Ok(Outcome::Changed(there))
    }
}

/// Returns the wrapped keys of a row, unless it is a tombstone.
fn key_list(row: &KeyRow) -> Option<KeyList<'_>> {
    Some(KeyList { context: row.context()?, dek_id: row.id(), keys: row.wrapped_keys()? })
}
