//! The key store on the table.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use waxseal::store::{
    BoxFuture, BranchId, BranchPlace, ConflictBackoff, Erasure, Insertion, KeyStore, RowId,
    ScanCursor, ScanPage, StoreError, StoreSpawner, StoredRow,
};

use crate::format::{self, BRANCH, EPOCH, ERASED, ID, KEY_ROW, PERIOD};
use crate::table::{Change, Table, Written};

/// The maximum number of writes of one transaction, and of bytes of the rows that it changes (4 MB
/// are allowed).
const MOST_WRITES: usize = 100;
const MOST_BYTES: usize = 3_000_000;
/// The longest time between the items of a transaction.
const HALF_DONE: Duration = Duration::from_secs(2);

/// A [`KeyStore`] in one DynamoDB table. Clones are handles to the same store.
///
/// The [crate's page](crate) has the schema, and the policy of each role.
#[derive(Clone)]
pub struct DynamoDbKeyStore(Arc<Inner>);

struct Inner {
    table: Table,
    name: String,
    bound: Duration,
    spawner: StoreSpawner,
}

impl DynamoDbKeyStore {
    pub(crate) fn new(table: Table, bound: Duration) -> Self {
        let name = format!("dynamodb {}", table.name);
        Self(Arc::new(Inner { table, name, bound, spawner: StoreSpawner::current() }))
    }

    /// Creates the table, unless it exists, and waits until it can be used: billed by request,
    /// protected from deletion, and encrypted with a key that AWS owns. For an existing table it
    /// checks the keys and changes nothing.
    ///
    /// # Errors
    /// *misconfigured* without permission (`CreateTable`, `DescribeTable`), or if the table has
    /// other keys; *unavailable* if it is not active within five minutes.
    pub async fn create_table(&self) -> Result<(), StoreError> {
        self.run(|inner| async move { inner.table.create().await }).await
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

impl fmt::Debug for DynamoDbKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDbKeyStore")
            .field("table", &self.0.table.name)
            .finish_non_exhaustive()
    }
}

impl Inner {
    async fn row(&self, id: &RowId) -> Result<Option<StoredRow>, StoreError> {
        match self.table.get(format::row_key(id)).await? {
            Some(item) => format::read_row(&item),
            None => Ok(None),
        }
    }

    /// Returns the row that a place names. Reads of several items may briefly see only half of the
    /// transaction that inserts both.
    async fn row_of_place(&self, id: &RowId) -> Result<StoredRow, StoreError> {
        let mut backoff = ConflictBackoff::new(self.bound.min(HALF_DONE));
        loop {
            if let Some(row) = self.row(id).await? {
                return Ok(row);
            }
            backoff.wait().await.map_err(|_| dangling(id))?;
        }
    }

    /// Returns the row at a place or, if there is none, the row with this id.
    async fn there(&self, row: &StoredRow) -> Result<Option<StoredRow>, StoreError> {
        if let Some(place) = row.place()
            && let Some(item) = self.table.get(format::place_key(place)).await?
        {
            let id = format::read_place(&item).ok_or_else(no_place)?;
            return self.row_of_place(&id).await.map(Some);
        }
        self.row(row.id()).await
    }

    /// Writes the row and its place together or not at all.
    async fn insert(&self, row: &StoredRow) -> Result<Insertion, StoreError> {
        let mut backoff = ConflictBackoff::new(self.bound);
        loop {
            let item = format::row_item(row);
            let written = match row.place() {
                Some(place) => {
                    let items = vec![format::place_item(place, row.id()), item];
                    self.table.put_all_new(items).await?
                }
                None => self.table.put_new(item).await?,
            };
            match written {
                Written::Done => return Ok(Insertion::Inserted),
                Written::Refused => {
                    if let Some(there) = self.there(row).await? {
                        return Ok(Insertion::Exists(there));
                    }
                }
                Written::Conflict => {}
            }
            backoff.wait().await?;
        }
    }

    async fn branch(&self, branch: &BranchId, from: i64) -> Result<Vec<StoredRow>, StoreError> {
        let partition = format::branch_partition(branch);
        let places = self.table.query(&partition, format::at(from, 0)).await?;
        let ids: Option<Vec<_>> = places.iter().map(format::read_place).collect();
        let ids = ids.ok_or_else(no_place)?;
        let keys: Vec<_> = ids.iter().map(format::row_key).collect();
        let mut found = HashMap::new();
        for item in self.table.get_all(&keys).await? {
            if let Some(row) = format::read_row(&item)? {
                found.insert(*row.id(), row);
            }
        }
        let mut rows = Vec::with_capacity(ids.len());
        for id in &ids {
            let row = match found.remove(id) {
                Some(row) => row,
                None => self.row_of_place(id).await?,
            };
            rows.push(row);
        }
        Ok(rows)
    }

    async fn replace(&self, old: &StoredRow, new: &StoredRow) -> Result<bool, StoreError> {
        if old.is_tombstone() || old.id() != new.id() || old.place() != new.place() {
            return Ok(false);
        }
        let mut backoff = ConflictBackoff::new(self.bound);
        loop {
            match self.table.change(replacement(old, new)).await? {
                Written::Done => return Ok(true),
                Written::Refused => return Ok(false),
                Written::Conflict => backoff.wait().await?,
            }
        }
    }

    async fn erase(&self, branch: &BranchId) -> Result<Erasure, StoreError> {
        let mut erasure = Erasure::default();
        let mut backoff = ConflictBackoff::new(self.bound);
        loop {
            let rows = self.branch(branch, i64::MIN).await?;
            let (tombstones, live): (Vec<_>, Vec<_>) =
                rows.iter().partition(|row| row.is_tombstone());
            let Some(next) = batches(&live).into_iter().next() else {
                let all = u64::try_from(tombstones.len()).unwrap_or(u64::MAX);
                erasure.already_erased = all.saturating_sub(erasure.erased);
                return Ok(erasure);
            };
            let changes = next.iter().map(|row| erasing(row)).collect();
            if self.table.change_all(changes).await? == Written::Done {
                erasure.erased += u64::try_from(next.len()).unwrap_or(0);
                backoff = ConflictBackoff::new(self.bound);
            } else {
                // Somebody else erases the same rows, or replaces one, so the remaining ones are
                // read again.
                backoff.wait().await?;
            }
        }
    }

    async fn scan(&self, after: Option<&ScanCursor>, limit: usize) -> Result<ScanPage, StoreError> {
        let after = after.map(format::from_cursor).transpose()?;
        let (items, next) = self.table.scan(after, limit).await?;
        let mut rows = Vec::new();
        for item in items {
            rows.extend(format::read_row(&item)?);
        }
        let next = next.map(|key| format::to_cursor(&key).ok_or_else(no_place)).transpose()?;
        Ok(ScanPage { rows, next })
    }
}

/// Splits the rows into transactions that DynamoDB allows.
fn batches<'a>(rows: &[&'a StoredRow]) -> Vec<Vec<&'a StoredRow>> {
    let (mut batches, mut size) = (Vec::<Vec<&StoredRow>>::new(), 0);
    for row in rows {
        let more = row.as_bytes().len() + 1024;
        match batches.last_mut() {
            Some(batch) if batch.len() < MOST_WRITES && size + more <= MOST_BYTES => {
                batch.push(row);
                size += more;
            }
            _ => {
                batches.push(vec![row]);
                size = more;
            }
        }
    }
    batches
}

fn names(names: &[&str]) -> HashMap<String, String> {
    names.iter().map(|name| (format!("#{name}"), (*name).to_owned())).collect()
}

/// Sets the new bytes if the item is still the old row.
fn replacement(old: &StoredRow, new: &StoredRow) -> Change {
    let mut condition = format!("#{KEY_ROW} = :old AND #{ERASED} = :live");
    let mut values = HashMap::from([
        (":old".to_owned(), format::bytes(old.as_bytes())),
        (":new".to_owned(), format::bytes(new.as_bytes())),
        (":live".to_owned(), AttributeValue::Bool(false)),
        (":erased".to_owned(), AttributeValue::Bool(new.is_tombstone())),
    ]);
    let mut used = vec![KEY_ROW, ERASED, BRANCH];
    match old.place() {
        None => condition += &format!(" AND attribute_not_exists(#{BRANCH})"),
        Some(BranchPlace { branch, period, epoch }) => {
            condition +=
                &format!(" AND #{BRANCH} = :branch AND #{PERIOD} = :period AND #{EPOCH} = :epoch");
            used.extend([PERIOD, EPOCH]);
            values.insert(":branch".to_owned(), format::bytes(branch.as_bytes()));
            values.insert(":period".to_owned(), format::number(period));
            values.insert(":epoch".to_owned(), format::number(epoch));
        }
    }
    let update = format!("SET #{KEY_ROW} = :new, #{ERASED} = :erased");
    let key = format::row_key(old.id());
    Change { key, update, condition, names: names(&used), values }
}

/// Sets the tombstone if the row is live, whichever version it is.
fn erasing(row: &StoredRow) -> Change {
    let values = HashMap::from([
        (":new".to_owned(), format::bytes(row.tombstone().as_bytes())),
        (":live".to_owned(), AttributeValue::Bool(false)),
        (":erased".to_owned(), AttributeValue::Bool(true)),
    ]);
    Change {
        key: format::row_key(row.id()),
        update: format!("SET #{KEY_ROW} = :new, #{ERASED} = :erased"),
        condition: format!("attribute_exists(#{ID}) AND #{ERASED} = :live"),
        names: names(&[KEY_ROW, ERASED, ID]),
        values,
    }
}

fn no_place() -> StoreError {
    StoreError::misconfigured("the table has an item in a branch that is not the place of a row")
        .about_one_row()
}

fn dangling(id: &RowId) -> StoreError {
    let text = format!("a place names the row {id}, which is not there: was an item deleted?");
    StoreError::misconfigured(text).about_one_row()
}

impl KeyStore for DynamoDbKeyStore {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn insert<'a>(&'a self, row: &'a StoredRow) -> BoxFuture<'a, Result<Insertion, StoreError>> {
        let row = row.clone();
        self.run(|inner| async move { inner.insert(&row).await })
    }

    fn get<'a>(&'a self, id: &'a RowId) -> BoxFuture<'a, Result<Option<StoredRow>, StoreError>> {
        let id = *id;
        self.run(move |inner| async move { inner.row(&id).await })
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

    /// Reads an item that never exists, which needs the table, its keys, and the right to read.
    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let nobody = RowId::from_bytes([0; 16]);
        self.run(
            move |inner| async move { inner.table.get(format::row_key(&nobody)).await.map(drop) },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_stay_within_what_dynamodb_allows() {
        let row =
            |len: usize| StoredRow::from_parts(RowId::from_bytes([1; 16]), None, vec![0; len]);
        let lens = |rows: &[StoredRow]| -> Vec<usize> {
            batches(&rows.iter().collect::<Vec<_>>()).iter().map(Vec::len).collect()
        };
        assert_eq!(lens(&vec![row(100); 250]), [100, 100, 50]);
        let large = lens(&vec![row(74_000); 100]);
        assert_eq!(large.iter().sum::<usize>(), 100);
        assert!(large.iter().all(|len| len * 75_024 <= MOST_BYTES), "{large:?}");
        assert_eq!(lens(&[row(4_000_000), row(1)]), [1, 1]);
        assert!(lens(&[]).is_empty());
    }
}
