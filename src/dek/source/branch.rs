//! Branch keys for writing: one per branch and period, made by the first process that finds none.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::super::cache::DekCache;
use super::super::lease::{Lease, Terms};
use super::super::{BranchKeyAges, WritingDek};
use super::period::Period;
use super::reading::{Obtainment, Owned};
use super::{ATTEMPTS, DekSource, Obtained, SourceOptions};
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::{KekId, KeyKind, KeyRow, WrappedDek, WrappedKeys};
use crate::kek::call::{CallBounds, Lane};
use crate::kek::set::{Failure, Made, Unwrapped};
use crate::kek::{Health, KekError};
use crate::memory::fork;
use crate::observe::{Event, StoreOperation};
use crate::store::{BranchId, BranchPlace, Erasure, Insertion, KeyStore, RowId, StoredRow};
use crate::suite::{Dek, DekId, derive_dek_id};
use crate::sync::Arc;
use crate::sync::foreign::caught;

/// The reserved name of the pair that holds the period of a branch key.
pub(crate) const PERIOD: &str = "waxseal:period";

/// The settings that distinguish a source of branch keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BranchTerms {
    /// How long the keys of one period make new DEKs.
    pub(crate) period: Duration,
}

impl BranchTerms {
    /// Returns the context of a branch key: the branch's context with the period.
    pub(crate) fn context_of(
        branch: &EncryptionContext,
        period: Period,
    ) -> Result<EncryptionContext, Error> {
        let beyond = || Error::new(ErrorKind::Misconfigured, "the clock is beyond the year 9999");
        let period = period.to_text().ok_or_else(beyond)?;
        let pairs = branch.iter().chain([(PERIOD, &*period)]);
        EncryptionContext::with_reserved_names(pairs)
    }

    /// Returns the period if this is the context of a key of `branch`.
    pub(crate) fn check_context(
        &self,
        branch: &EncryptionContext,
        context: &EncryptionContext,
    ) -> Result<Period, Error> {
        let period = context.get(PERIOD).and_then(Period::of_text).ok_or_else(Error::invalid)?;
        match Self::context_of(branch, period)? == *context {
            true => Ok(period),
            false => Err(Error::invalid()),
        }
    }

    /// # Errors
    /// The period has not begun, by more than the allowed clock difference.
    pub(crate) fn check_begun(&self, period: Period, now: Moment) -> Result<(), Error> {
        let now = Period::now(now);
        if period.has_begun(now) {
            return Ok(());
        }
        let detail = format!(
            "the branch key's period begins {} s from now: check the clocks",
            period.0.saturating_sub(now)
        );
        Err(Error::new(ErrorKind::Misconfigured, detail))
    }
}

/// Returns the id under which a branch key of a store is cached. A message names 16 bytes of it.
pub(crate) fn cached_as(row_id: &RowId) -> DekId {
    let mut id = [0; 32];
    id.iter_mut().zip(row_id.as_bytes()).for_each(|(byte, of_row)| *byte = *of_row);
    DekId::from_bytes(id)
}

/// The parts of a branch key's row.
struct Row {
    context: EncryptionContext,
    id: DekId,
    wrapped_keys: WrappedKeys,
}

/// A branch key that the KEKs have just wrapped or unwrapped.
struct Vouched {
    row: Row,
    dek: Dek,
    obtained: Obtainment,
}

impl DekSource {
    /// Obtains the branch key that makes new DEKs now.
    pub(super) async fn branch_key(
        &self,
        branch: &BranchTerms,
        cache: &DekCache,
        context: &EncryptionContext,
        bounds: CallBounds,
    ) -> Result<Obtained<WritingDek>, Failure> {
        // Taken before the key is drawn, so that a fork during the call is noticed.
        let generation = fork::generation();
        let SourceOptions { suite, nonces, limits, clock, observers, .. } = &self.options;
        let (vouched, reading) = match &self.options.store {
            Some(store) => {
                let row = self.current_row(&**store, branch, context, bounds).await?;
                let id = cached_as(&RowId::from(&row.id));
                let reading = Owned::new(context, id, *suite, None);
                let vouched = self.unwrap_row(cache, context, &id, row, bounds).await;
                (vouched.map_err(may_not_unwrap)?, reading)
            }
            None => {
                let vouched = match self.own_row(branch, cache, context) {
                    Some(row) => {
                        let id = row.id;
                        self.unwrap_row(cache, context, &id, row, bounds).await?
                    }
                    None => {
                        let now = Period::now(self.options.clock.now());
                        let period = Period::containing(now, branch.period);
                        self.make_branch_key(period, context, bounds).await?
                    }
                };
                let Row { context, id, wrapped_keys } = &vouched.row;
                let reading = Owned::new(context, *id, *suite, Some(wrapped_keys.clone()));
                (vouched, reading)
            }
        };
        let Vouched { row, dek, obtained } = vouched;
        let key = self.leased_key(dek, &row.context, *suite)?;
        let terms = Terms {
            context,
            id: reading.id,
            suite: *suite,
            wrapped_keys: row.wrapped_keys.clone(),
            is_stored: self.has_store(),
            source_keks: obtained.source_keks.clone(),
            parents: obtained.parents.clone(),
            asked: obtained.asked,
            stale_if_error: limits.stale_if_error_writing,
            deadline: self.keks.deadline(),
            clock,
            observers: observers.downgrade(),
        };
        let lease = Lease::new(terms, &key, limits);
        let dek =
            WritingDek::new(lease, row.wrapped_keys, *nonces, limits, obtained.asked, generation)?;
        let reading = self.new_reading(&reading, obtained, &key);
        Ok(Obtained { dek: Arc::new(dek), for_reading_too: Some(reading), goes_on: false })
    }

    /// Returns the store's current row for the branch, and inserts one if there is none.
    async fn current_row(
        &self,
        store: &dyn KeyStore,
        branch: &BranchTerms,
        context: &EncryptionContext,
        bounds: CallBounds,
    ) -> Result<Row, Failure> {
        let branch_id = BranchId::from_bytes(*context.digest());
        for _ in 0..ATTEMPTS {
            let now = Period::now(self.options.clock.now());
            let from = Period::earliest(now, branch.period);
            let rows = || store.branch(&branch_id, from);
            let rows = self.of_store(bounds, store, StoreOperation::Branch, rows).await?;
            let begins = Period::containing(now, branch.period);
            let mut epoch = 0;
            for stored in rows.iter().rev() {
                let row = self.read(store, stored.id(), stored)?;
                // Readers do not look for rows of another kind.
                if !row.is_tombstone() && row.kind() != KeyKind::Branch {
                    return Err(self.damaged(store, stored.id(), "it is not a branch key").into());
                }
                if let (Some(of_row), Some(wrapped_keys)) = (row.context(), row.wrapped_keys()) {
                    let period = branch
                        .check_context(context, of_row)
                        .map_err(|_| self.damaged(store, stored.id(), "it is of another branch"))?;
                    if period.is_current(now, branch.period) {
                        let (context, wrapped_keys) = (of_row.clone(), wrapped_keys.clone());
                        return Ok(Row { context, id: *row.id(), wrapped_keys });
                    }
                }
                // The place has a tombstone, or a key of another period than its own.
                if let Some(place) = stored.place()
                    && place.period == begins.0
                {
                    epoch = epoch.max(place.epoch.saturating_add(1));
                }
            }
            // Of the place's period, whatever the clock says by now: a key of another period would
            // block the place for everybody.
            let Vouched { row, .. } = self.make_branch_key(begins, context, bounds).await?;
            let stored = {
                let Row { context, id, wrapped_keys } = &row;
                let row = KeyRow::live(KeyKind::Branch, *id, context.clone(), wrapped_keys.clone());
                let place = BranchPlace { branch: branch_id, period: begins.0, epoch };
                StoredRow::new(&row, Some(place))
            };
            let insert = || store.insert(&stored);
            match self.of_store(bounds, store, StoreOperation::Insert, insert).await? {
                Insertion::Inserted => {
                    let kek_ids: Vec<KekId> =
                        row.wrapped_keys.entries().iter().map(|e| e.kek_id().clone()).collect();
                    let Row { context, id, .. } = &row;
                    self.emit(&Event::Made { dek_id: id, context, kek_ids: &kek_ids });
                    return Ok(row);
                }
                // The response to an earlier try was lost. The next look finds this key and any
                // later change to it.
                Insertion::Exists(there) if there.id() == stored.id() => {
                    let kek_ids: Vec<KekId> =
                        row.wrapped_keys.entries().iter().map(|e| e.kek_id().clone()).collect();
                    let Row { context, id, .. } = &row;
                    self.emit(&Event::Made { dek_id: id, context, kek_ids: &kek_ids });
                }
                // Another process was quicker, so its key counts, and this one is wiped.
                Insertion::Exists(_) => {}
            }
        }
        let detail = format!(
            "key store {}: it has a row for branch {branch_id} but does not return it",
            store.name()
        );
        Err(Error::new(ErrorKind::Misconfigured, detail).into())
    }

    async fn make_branch_key(
        &self,
        period: Period,
        context: &EncryptionContext,
        bounds: CallBounds,
    ) -> Result<Vouched, Failure> {
        let context = BranchTerms::context_of(context, period)?;
        let Made { dek, wrapped_keys, source_keks, parents, asked } =
            self.keks.make(bounds, &context, self.options.origin).await?;
        let id = derive_dek_id(&dek, &context)?;
        let obtained =
            Obtainment { wrapped_keys: wrapped_keys.clone(), asked, source_keks, parents };
        Ok(Vouched { row: Row { context, id, wrapped_keys }, dek, obtained })
    }

    /// Returns the row of this process's key, as long as its period lasts and no root has a new
    /// version.
    fn own_row(
        &self,
        branch: &BranchTerms,
        cache: &DekCache,
        context: &EncryptionContext,
    ) -> Option<Row> {
        let dek = cache.writing(context)?;
        let wrapped_keys = dek.wrapped_keys.clone();
        if self.keks.are_current(&wrapped_keys) == Some(false) {
            return None;
        }
        let (context, id) =
            dek.lease.with_branch_key(|key| (key.context().clone(), *key.id())).ok()?;
        let period = context.get(PERIOD).and_then(Period::of_text)?;
        let now = Period::now(self.options.clock.now());
        period.is_current(now, branch.period).then_some(Row { context, id, wrapped_keys })
    }

    /// Has the KEKs unwrap a branch key, even one that this process made. A key that nobody can
    /// unwrap must not derive anything.
    async fn unwrap_row(
        &self,
        cache: &DekCache,
        context: &EncryptionContext,
        cached_as: &DekId,
        row: Row,
        bounds: CallBounds,
    ) -> Result<Vouched, Failure> {
        let on_failure = |provider: &KekId, entry: &WrappedDek, kind| {
            cache.record_failure(context, cached_as, provider, entry, kind)
        };
        let Unwrapped { dek, source_kek, parent, asked } = self
            .keks
            .unwrap_any(bounds, &row.context, &row.id, &row.wrapped_keys, &on_failure)
            .await?;
        let obtained = Obtainment {
            wrapped_keys: row.wrapped_keys.clone(),
            asked,
            source_keks: Box::new([source_kek]),
            parents: parent.into_iter().collect(),
        };
        Ok(Vouched { row, dek, obtained })
    }

    /// Makes the row of a new DEK durable, so that messages in compact form are readable.
    pub(super) async fn keep(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
        id: &DekId,
        wrapped_keys: &WrappedKeys,
    ) -> Result<(), Failure> {
        let Some(store) = &self.options.store else { return Ok(()) };
        let row = KeyRow::live(KeyKind::Dek, *id, context.clone(), wrapped_keys.clone());
        let stored = StoredRow::new(&row, None);
        let insert = || store.insert(&stored);
        match self.of_store(bounds, &**store, StoreOperation::Insert, insert).await? {
            Insertion::Inserted => Ok(()),
            // A retry by the store's client may have found the row of its first try, which a rewrap
            // may have changed since.
            Insertion::Exists(there) => {
                let found = self.read(&**store, there.id(), &there)?;
                match (found.kind(), found.id(), found.context()) == (row.kind(), id, Some(context))
                {
                    true => Ok(()),
                    false => {
                        Err(self.damaged(&**store, there.id(), "it belongs to another key").into())
                    }
                }
            }
        }
    }
}

/// Explains why a process that only encrypts has to unwrap.
fn may_not_unwrap(failure: Failure) -> Failure {
    if failure.error.kind() != ErrorKind::Denied {
        return failure;
    }
    let detail = format!(
        "{}; a process that may not unwrap cannot share branch keys",
        failure.error.detail()
    );
    Failure { error: Error::new(ErrorKind::Denied, detail), ..failure }
}

/// The operations that a provider of branch keys needs, apart from those on DEKs.
impl DekSource {
    /// Checks that `context` is the one of a key of `branch`.
    pub(crate) fn check_branch_context(
        &self,
        branch: &EncryptionContext,
        context: &EncryptionContext,
    ) -> Result<(), Error> {
        let Some(terms) = &self.options.branch else { return Err(Error::invalid()) };
        terms.check_context(branch, context).map(drop)
    }

    /// Checks that the period of a branch key with this context has begun.
    pub(crate) fn check_branch_has_begun(&self, context: &EncryptionContext) -> Result<(), Error> {
        let period = context.get(PERIOD).and_then(Period::of_text).ok_or_else(Error::invalid)?;
        let Some(terms) = &self.options.branch else { return Err(Error::invalid()) };
        terms.check_begun(period, self.options.clock.now())
    }

    /// Returns how many branch keys are cached, by age.
    pub(super) fn branch_key_ages(&self) -> Option<BranchKeyAges> {
        self.options.branch?;
        let now = Period::now(self.options.clock.now());
        let mut ages = BranchKeyAges::default();
        self.cache().each_reading(|lease| {
            let period =
                lease.with_branch_key(|key| key.context().get(PERIOD).and_then(Period::of_text));
            // A key that ended meanwhile is no longer in memory.
            if let Ok(Some(period)) = period {
                ages.count(now.saturating_sub(period.0));
            }
        });
        Some(ages)
    }

    /// Erases a branch in the store, and ends its keys here.
    pub(crate) async fn erase_branch(&self, branch: &EncryptionContext) -> Result<Erasure, Error> {
        self.check_open()?;
        let Some(store) = &self.options.store else {
            let detail = "branch keys are in no store, so they cannot be erased";
            return Err(Error::new(ErrorKind::InvalidOption, detail));
        };
        let branch_id = BranchId::from_bytes(*branch.digest());
        let erase = || store.erase_branch(&branch_id);
        let bounds = self.keks.bounds(Lane::Reserved);
        let mut given_up = GivenUp { source: self, branch, is_over: false };
        let erased = self.of_store_or_error(bounds, &**store, StoreOperation::Erase, erase).await;
        // Also after a failure, which may have erased some keys.
        given_up.is_over = true;
        self.evict_branch(|context| self.is_of_branch(context, branch));
        let erasure = erased?;
        let keys = erasure.erased.saturating_add(erasure.already_erased);
        self.emit(&Event::Erased { context: branch, store: store.name(), keys });
        Ok(erasure)
    }

    /// Whether this is the context of a branch, or of one of its keys. Keys that came from a
    /// message have the period in their context.
    fn is_of_branch(&self, context: &EncryptionContext, branch: &EncryptionContext) -> bool {
        let of_key = |terms: BranchTerms| terms.check_context(branch, context).is_ok();
        context == branch || self.options.branch.is_some_and(of_key)
    }

    /// Checks the roots and the store.
    pub(crate) async fn health_of_branches(&self) -> Result<Health, KekError> {
        let mut degraded = Vec::new();
        for kek in &self.keks.reading {
            match kek.health().await {
                Ok(Health::Ready) => {}
                Ok(Health::Degraded(why)) => degraded.push(why),
                Err(error) if self.keks.writing.iter().any(|k| Arc::ptr_eq(k, kek)) => {
                    return Err(error);
                }
                // A root that only unwraps is needed only for old branch keys.
                Err(error) => degraded.push(format!("{}: {error}", kek.id())),
            }
        }
        if let Some(store) = &self.options.store {
            // It does not wait for a turn.
            let bounds = self.keks.bounds(Lane::Ordinary);
            let ask = || store.health();
            let asked = self.of_store(bounds, &**store, StoreOperation::Health, ask);
            asked.await.map_err(|failure| {
                let detail = failure.error.to_string();
                match failure.error.kind() {
                    ErrorKind::Unavailable => KekError::unavailable(detail),
                    ErrorKind::Throttled => KekError::throttled(detail),
                    _ => KekError::misconfigured(detail),
                }
            })?;
            if let Some(why) = caught(|| store.warning()).flatten() {
                degraded.push(format!("key store {}: {why}", store.name()));
            }
        }
        Ok(match degraded.is_empty() {
            true => Health::Ready,
            false => Health::Degraded(degraded.join("; ")),
        })
    }
}

/// An erasure whose caller may give up. The store may have erased the keys by then, so they end
/// here too.
struct GivenUp<'e> {
    source: &'e DekSource,
    branch: &'e EncryptionContext,
    is_over: bool,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let Self { source, branch, is_over } = *self;
        if !is_over {
            source.evict_branch_later(|context| source.is_of_branch(context, branch));
        }
    }
}
