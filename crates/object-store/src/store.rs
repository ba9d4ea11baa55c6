//! The key store on objects.
//!
//! ```text
//!   insert at a place:   1. is the place taken?   2. create keys/ROWID, a claim   3. create the place
//! ```
//!
//! The third step decides. Before it nobody finds the row: a claim has no bytes, and its readers
//! look at the place. After it everybody finds the row. A writer that finds the place taken has
//! lost for good, because no object is ever deleted. A claim without its row changes nothing, and
//! the next insertion of the same row completes it.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use waxseal::store::{
    BoxFuture, BranchId, BranchPlace, ConflictBackoff, Erasure, Insertion, KeyStore, RowId,
    ScanCursor, ScanPage, StoreError, StoreSpawner, StoredRow,
};

use crate::format::{self, Content, encode_claim, encode_row};
use crate::objects::Objects;

const KEYS: &str = "keys";
const BRANCHES: &str = "branches";
/// The number of objects that are read or erased at the same time.
const AT_ONCE: usize = 8;

/// A [`KeyStore`] in a bucket or a folder. Clones are handles to the same store.
///
/// The [crate's page](crate) lists its requirements.
#[derive(Clone)]
pub struct ObjectKeyStore(Arc<Inner>);

struct Inner {
    objects: Objects,
    name: String,
    spawner: StoreSpawner,
}

impl ObjectKeyStore {
    pub(crate) fn new(objects: Objects, name: String) -> Self {
        Self(Arc::new(Inner { objects, name, spawner: StoreSpawner::current() }))
    }

    /// Runs a call on a runtime that suits its client, wherever the future is polled.
    fn run<'a, T: Send + 'static, F>(
        &'a self,
        call: impl FnOnce(Arc<Inner>) -> F,
    ) -> BoxFuture<'a, Result<T, StoreError>>
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let work = call(self.0.clone());
        Box::pin(self.0.spawner.run(work))
    }
}

impl fmt::Debug for ObjectKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObjectKeyStore").field(&self.0.name).finish()
    }
}

impl Inner {
    fn key_path(&self, id: &RowId) -> Path {
        self.objects.path(&[KEYS], &id.to_string())
    }

    fn place_path(&self, place: &BranchPlace) -> Path {
        self.objects.path(&[BRANCHES, &place.branch.to_string()], &format::place_name(place))
    }

    /// Where the bytes of a row are.
    fn row_path(&self, row: &StoredRow) -> Path {
        row.place().map_or_else(|| self.key_path(row.id()), |place| self.place_path(place))
    }

    async fn key(&self, id: &RowId) -> Result<Option<Content>, StoreError> {
        let path = self.key_path(id);
        let Some(bytes) = self.objects.get(&path).await? else { return Ok(None) };
        match format::decode(&bytes) {
            Some(content @ Content::Claim(of, _)) if of == *id => Ok(Some(content)),
            Some(Content::Row(row)) if row.id() == id && row.place().is_none() => {
                Ok(Some(Content::Row(row)))
            }
            _ => Err(foreign(&path)),
        }
    }

    async fn at(&self, place: &BranchPlace) -> Result<Option<StoredRow>, StoreError> {
        let path = self.place_path(place);
        let Some(bytes) = self.objects.get(&path).await? else { return Ok(None) };
        match format::decode(&bytes) {
            Some(Content::Row(row)) if row.place() == Some(place) => Ok(Some(row)),
            _ => Err(foreign(&path)),
        }
    }

    async fn get(&self, id: &RowId) -> Result<Option<StoredRow>, StoreError> {
        match self.key(id).await? {
            None => Ok(None),
            Some(Content::Row(row)) => Ok(Some(row)),
            // Another row there means that this one lost the place. No row means that its insertion
            // did not finish.
            Some(Content::Claim(_, place)) => {
                Ok(self.at(&place).await?.filter(|row| row.id() == id))
            }
        }
    }

    async fn insert(&self, row: &StoredRow) -> Result<Insertion, StoreError> {
        let mut backoff = ConflictBackoff::new(self.objects.bound);
        loop {
            let insertion = match row.place() {
                None => self.insert_key(row).await?,
                Some(place) => self.insert_at(row, place).await?,
            };
            match insertion {
                Some(insertion) => return Ok(insertion),
                None => backoff.wait().await?,
            }
        }
    }

    /// Returns `None` if another caller changed what this one had seen.
    async fn insert_key(&self, row: &StoredRow) -> Result<Option<Insertion>, StoreError> {
        let bytes = encode_row(row);
        if self.objects.create(&self.key_path(row.id()), bytes.clone()).await? {
            return Ok(Some(Insertion::Inserted));
        }
        match self.key(row.id()).await? {
            None => Ok(None),
            Some(Content::Row(there)) => Ok(Some(Insertion::Exists(there))),
            Some(Content::Claim(id, place)) => match self.claimed(&id, &place).await? {
                Some(there) => Ok(Some(Insertion::Exists(there))),
                None => {
                    let claim = encode_claim(&id, &place);
                    let done = self.objects.swap(&self.key_path(&id), &claim, bytes).await?;
                    Ok(done.then_some(Insertion::Inserted))
                }
            },
        }
    }

    /// Does the same, at a place.
    async fn insert_at(
        &self,
        row: &StoredRow,
        place: &BranchPlace,
    ) -> Result<Option<Insertion>, StoreError> {
        if let Some(there) = self.at(place).await? {
            return Ok(Some(Insertion::Exists(there)));
        }
        let (path, claim) = (self.key_path(row.id()), encode_claim(row.id(), place));
        if !self.objects.create(&path, claim.clone()).await? {
            match self.key(row.id()).await? {
                None => return Ok(None),
                Some(Content::Row(there)) => return Ok(Some(Insertion::Exists(there))),
                // From an insertion of this row that did not finish, or is running elsewhere.
                Some(Content::Claim(_, claimed)) if claimed == *place => {}
                Some(Content::Claim(id, claimed)) => {
                    if let Some(there) = self.claimed(&id, &claimed).await? {
                        return Ok(Some(Insertion::Exists(there)));
                    }
                    let old = encode_claim(&id, &claimed);
                    if !self.objects.swap(&path, &old, claim).await? {
                        return Ok(None);
                    }
                }
            }
        }
        if self.objects.create(&self.place_path(place), encode_row(row)).await? {
            return Ok(Some(Insertion::Inserted));
        }
        Ok(self.at(place).await?.map(Insertion::Exists))
    }

    /// Returns the row of this id at the place that it claims, or `None` if another row has it:
    /// then the claim can never succeed, and may be replaced.
    async fn claimed(
        &self,
        id: &RowId,
        place: &BranchPlace,
    ) -> Result<Option<StoredRow>, StoreError> {
        match self.at(place).await? {
            Some(row) => Ok(Some(row).filter(|row| row.id() == id)),
            None => {
                let text = "the row's id is claimed for another place, by an insertion that goes on \
                            or did not end: insert it there again";
                Err(StoreError::unavailable(text).about_one_row())
            }
        }
    }

    /// Returns the places of a branch, from a period on.
    async fn places(&self, branch: &BranchId, from: i64) -> Result<Vec<Path>, StoreError> {
        let folder = [BRANCHES, &branch.to_string()];
        let before = format::before_period(from);
        let names = self.objects.list(&folder, Some(&before), usize::MAX).await?.names;
        Ok(names.iter().map(|name| self.objects.path(&folder, name)).collect())
    }

    async fn row_at(&self, path: Path, branch: &BranchId) -> Result<StoredRow, StoreError> {
        let bytes = self.objects.get(&path).await?.ok_or_else(|| {
            let text = format!("the object {path} was listed and is not there: was it deleted?");
            StoreError::misconfigured(text).about_one_row()
        })?;
        match format::decode(&bytes) {
            Some(Content::Row(row))
                if row.place().is_some_and(|place| {
                    place.branch == *branch && self.place_path(place) == path
                }) =>
            {
                Ok(row)
            }
            _ => Err(foreign(&path)),
        }
    }

    async fn branch(&self, branch: &BranchId, from: i64) -> Result<Vec<StoredRow>, StoreError> {
        let places = self.places(branch, from).await?;
        let rows = places.into_iter().map(|path| self.row_at(path, branch));
        stream::iter(rows).buffered(AT_ONCE).try_collect().await
    }

    async fn replace(&self, old: &StoredRow, new: &StoredRow) -> Result<bool, StoreError> {
        if old.is_tombstone() || old.id() != new.id() || old.place() != new.place() {
            return Ok(false);
        }
        self.objects.swap(&self.row_path(old), &encode_row(old), encode_row(new)).await
    }

    /// Returns whether this call erased the row.
    async fn erase_row(&self, path: Path, branch: &BranchId) -> Result<bool, StoreError> {
        let mut backoff = ConflictBackoff::new(self.objects.bound);
        loop {
            let row = self.row_at(path.clone(), branch).await?;
            if row.is_tombstone() {
                return Ok(false);
            }
            let tombstone = encode_row(&row.tombstone());
            if self.objects.swap(&path, &encode_row(&row), tombstone).await? {
                return Ok(true);
            }
            // It was replaced meanwhile.
            backoff.wait().await?;
        }
    }

    async fn erase(&self, branch: &BranchId) -> Result<Erasure, StoreError> {
        let places = self.places(branch, i64::MIN).await?;
        let rows = places.into_iter().map(|path| self.erase_row(path, branch));
        let erased: Vec<_> = stream::iter(rows).buffer_unordered(AT_ONCE).try_collect().await?;
        let mut erasure = Erasure::default();
        for erased in erased {
            *(if erased { &mut erasure.erased } else { &mut erasure.already_erased }) += 1;
        }
        Ok(erasure)
    }

    async fn scan(&self, after: Option<&ScanCursor>, limit: usize) -> Result<ScanPage, StoreError> {
        let of_another = || StoreError::misconfigured("the scan cursor is of another store");
        let read = |cursor: &ScanCursor| {
            let name = std::str::from_utf8(cursor.as_bytes()).ok();
            name.and_then(format::row_id).map(|id| id.to_string()).ok_or_else(of_another)
        };
        let after = after.map(read).transpose()?;
        let page = self.objects.list(&[KEYS], after.as_deref(), limit.max(1)).await?;
        let mut ids = Vec::with_capacity(page.names.len());
        for name in &page.names {
            let foreign = || foreign(&self.objects.path(&[KEYS], name));
            ids.push(format::row_id(name).ok_or_else(foreign)?);
        }
        let rows = ids.into_iter().map(|id| async move { self.get(&id).await });
        let rows: Vec<_> = stream::iter(rows).buffered(AT_ONCE).try_collect().await?;
        let last = page.names.last().filter(|_| page.has_more);
        let next = last.map(|name| ScanCursor::from_bytes(name.as_bytes()));
        Ok(ScanPage { rows: rows.into_iter().flatten().collect(), next })
    }

    async fn health(&self) -> Result<(), StoreError> {
        if let Some(local) = &self.objects.local
            && !local.root.is_dir()
        {
            let text = format!("{} is no longer a folder", local.root.display());
            return Err(StoreError::misconfigured(text));
        }
        self.objects.list(&[KEYS], None, 1).await?;
        self.key(&RowId::from_bytes([0; 16])).await.map(drop)
    }
}

fn foreign(path: &Path) -> StoreError {
    let text = format!("the object {path} is not a key row of this store");
    StoreError::misconfigured(text).about_one_row()
}

impl KeyStore for ObjectKeyStore {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn insert<'a>(&'a self, row: &'a StoredRow) -> BoxFuture<'a, Result<Insertion, StoreError>> {
        let row = row.clone();
        self.run(|inner| async move { inner.insert(&row).await })
    }

    fn get<'a>(&'a self, id: &'a RowId) -> BoxFuture<'a, Result<Option<StoredRow>, StoreError>> {
        let id = *id;
        self.run(move |inner| async move { inner.get(&id).await })
    }

    fn branch<'a>(
        &'a self,
        branch: &'a BranchId,
        from: i64,
    ) -> BoxFuture<'a, Result<Vec<StoredRow>, StoreError>> {
        let branch = *branch;
        self.run(move |inner| async move { inner.branch(&branch, from).await })
    }

    fn replace<'a>(
        &'a self,
        old: &'a StoredRow,
        new: &'a StoredRow,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        let (old, new) = (old.clone(), new.clone());
        self.run(|inner| async move { inner.replace(&old, &new).await })
    }

    fn erase_branch<'a>(
        &'a self,
        branch: &'a BranchId,
    ) -> BoxFuture<'a, Result<Erasure, StoreError>> {
        let branch = *branch;
        self.run(move |inner| async move { inner.erase(&branch).await })
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a ScanCursor>,
        limit: usize,
    ) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        let after = after.cloned();
        self.run(move |inner| async move { inner.scan(after.as_ref(), limit).await })
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run(|inner| async move { inner.health().await })
    }
}
