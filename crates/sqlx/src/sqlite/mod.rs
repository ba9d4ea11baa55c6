//! The key store in a file of SQLite.
#![forbid(unsafe_code)]

mod connect;
mod errors;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use waxseal::Error;
#[cfg(doc)]
use waxseal::ErrorKind;
use waxseal::kek::toolkit::uri::Uri;
use waxseal::store::{
    BoxFuture, BranchId, Erasure, Insertion, KeyStore, RowId, ScanCursor, ScanPage, StoreError,
    StoredRow,
};

use crate::pool::Pool;
use crate::rows::{Columns, From, may_replace, place_of, row_of, tombstones_of};
use connect::Connect;
use errors::classified;

/// How a [`SqliteKeyStore`] uses its file.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    name: String,
    busy_timeout: Duration,
    max_connections: usize,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl SqliteOptions {
    /// Returns the defaults.
    #[must_use]
    pub fn new() -> Self {
        let busy_timeout = Duration::from_secs(5);
        Self { name: "sqlite".to_owned(), busy_timeout, max_connections: 4 }
    }

    /// Sets the store's name in errors and events. By default `sqlite`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets how long a call waits for another writer, in this process or another. By default 5
    /// seconds. After that the call fails as unavailable.
    #[must_use]
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// Sets the maximum number of connections, each with a thread. By default 4.
    #[must_use]
    pub fn max_connections(mut self, most: usize) -> Self {
        self.max_connections = most;
        self
    }
}

/// A [`KeyStore`] in a file, for one machine. Clones are handles to the same store.
///
/// Several processes may use the file at once. It is in WAL mode and every commit is synced: a row
/// whose insertion returned survives a loss of power, provided that the disk honours syncs. Do not
/// put it on a network file system, where WAL does not work.
///
/// If the file is removed or replaced while it is open, everything that writes, and
/// [`health`](KeyStore::health), fails as misconfigured, since the rows would be lost with the
/// process. Reads continue in the old file. This does not apply to Windows, where the system keeps
/// an open file from being removed.
///
/// ```
/// use waxseal::store::KeyStore;
/// use waxseal_sqlx::SqliteKeyStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), waxseal::Error> {
/// let store = SqliteKeyStore::in_memory().await?;
/// store.health().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SqliteKeyStore {
    name: Arc<str>,
    pool: Arc<Pool<Connect>>,
}

impl SqliteKeyStore {
    /// Opens a file, creating it if missing, and brings its schema to the version that this crate
    /// knows. Call it within a tokio runtime that has IO and timers.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] outside such a runtime. [`ErrorKind::Misconfigured`] if the
    /// file cannot be opened, is not a database, or has a newer schema. [`ErrorKind::Unavailable`]
    /// if another process keeps it locked.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        Self::open_with(path, SqliteOptions::new()).await
    }

    /// Opens a file with options, like [`open`](Self::open).
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn open_with(
        path: impl Into<PathBuf>,
        options: SqliteOptions,
    ) -> Result<Self, Error> {
        let connect = Connect::file(path.into(), options.busy_timeout);
        Self::with(connect, options).await
    }

    /// Opens the file of a URI, like [`open_with`](Self::open_with): `sqlite:PATH`, with the
    /// parameters `store-name`, `busy-timeout` and `max-connections`, which are [`SqliteOptions`].
    /// The path is relative in `sqlite:keys.db`, and absolute in `sqlite:/keys.db` and
    /// `sqlite:///keys.db`. In a configuration of data domains it is the scheme `sqlite` of
    /// [`Schemes::store`](waxseal::domain::Schemes::store).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for another URI, and those of [`open`](Self::open).
    /// `sqlite://keys.db` is refused, because some read it as relative to the working directory and
    /// others as absolute.
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        let (path, options) = of_uri(&uri)?;
        Self::open_with(path, options).await
    }

    /// Makes an empty database in memory, which ends with the last clone: for tests.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn in_memory() -> Result<Self, Error> {
        let options = SqliteOptions::new().max_connections(1);
        Self::with(Connect::memory(), options).await
    }

    async fn with(connect: Connect, options: SqliteOptions) -> Result<Self, Error> {
        // SQLite itself waits for locks. This ends waits for a disk or for a connection.
        let timeout = options.busy_timeout.saturating_add(Duration::from_secs(10));
        let pool = Pool::new(connect, options.max_connections, timeout)?;
        let busy = options.busy_timeout;
        let connection = pool.call(move |connection| Box::pin(connect::migrate(connection, busy)));
        connection.await.map_err(|error| pool.connector().of_file(error))?;
        pool.connector().opened();
        Ok(Self { name: options.name.into(), pool })
    }

    /// Runs `call`, if the file is in place before and after it.
    fn in_place<'s, T: Send + 's>(
        &'s self,
        call: impl Future<Output = Result<T, StoreError>> + Send + 's,
    ) -> BoxFuture<'s, Result<T, StoreError>> {
        Box::pin(async move {
            self.pool.connector().check_in_place()?;
            let done = call.await?;
            self.pool.connector().check_in_place()?;
            Ok(done)
        })
    }
}

/// The parameters of a URI.
const PARAMETERS: [&str; 3] = ["busy-timeout", "max-connections", "store-name"];

fn of_uri(text: &str) -> Result<(PathBuf, SqliteOptions), Error> {
    let uri = Uri::read(text, "sqlite:", &PARAMETERS)?;
    let path = uri.file_path()?;
    let mut options = SqliteOptions::new();
    if let Some(name) = uri.text("store-name")? {
        options = options.name(name);
    }
    if let Some(timeout) = uri.duration("busy-timeout")? {
        options = options.busy_timeout(timeout);
    }
    if let Some(most) = uri.text("max-connections")? {
        let wrong = |_| uri.error("parameter `max-connections` is not a number");
        options = options.max_connections(most.parse().map_err(wrong)?);
    }
    Ok((path, options))
}

impl fmt::Debug for SqliteKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteKeyStore")
            .field("name", &self.name)
            .field("at", self.pool.connector())
            .finish_non_exhaustive()
    }
}

const BY_ID: &str = "SELECT row_id, branch, period, epoch, row FROM waxseal_keys WHERE row_id = ?";
const BY_PLACE: &str = "SELECT row_id, branch, period, epoch, row FROM waxseal_keys \
                        WHERE branch = ? AND period = ? AND epoch = ?";
const OF_BRANCH: &str = "SELECT row_id, branch, period, epoch, row FROM waxseal_keys \
                         WHERE branch = ? AND period >= ? ORDER BY period, epoch";
const PAGE: &str = "SELECT row_id, branch, period, epoch, row FROM waxseal_keys \
                    WHERE row_id > ? ORDER BY row_id LIMIT ?";
const INSERT: &str = "INSERT INTO waxseal_keys (row_id, branch, period, epoch, row, erased_at) \
                      VALUES (?, ?, ?, ?, ?, CASE ? WHEN 1 THEN strftime('%Y-%m-%dT%H:%M:%SZ', 'now') END) \
                      ON CONFLICT DO NOTHING";
const REPLACE: &str = "UPDATE waxseal_keys SET row = ?1, \
                       changed_at = strftime('%Y-%m-%dT%H:%M:%SZ', 'now'), \
                       erased_at = CASE ?2 WHEN 1 THEN strftime('%Y-%m-%dT%H:%M:%SZ', 'now') END \
                       WHERE row_id = ?3 AND branch IS ?4 AND period IS ?5 AND epoch IS ?6 \
                       AND row = ?7";
const HEALTH: &str = "SELECT max(version), \
                      (SELECT count(*) FROM (SELECT 1 FROM waxseal_keys LIMIT 1)) \
                      FROM waxseal_schema";

async fn find(
    connection: &mut SqliteConnection,
    row: &StoredRow,
) -> Result<Option<StoredRow>, StoreError> {
    let by_id: Option<Columns> = sqlx::query_as(BY_ID)
        .bind(row.id().as_bytes().to_vec())
        .fetch_optional(&mut *connection)
        .await
        .map_err(classified)?;
    let found = match (by_id, place_of(row)) {
        (None, (Some(branch), Some(period), Some(epoch))) => {
            let query = sqlx::query_as(BY_PLACE).bind(branch).bind(period).bind(epoch);
            query.fetch_optional(&mut *connection).await.map_err(classified)?
        }
        (by_id, _) => by_id,
    };
    found.map(row_of).transpose()
}

async fn insert(
    connection: &mut SqliteConnection,
    row: StoredRow,
) -> Result<Insertion, StoreError> {
    let (branch, period, epoch) = place_of(&row);
    let done = sqlx::query(INSERT)
        .bind(row.id().as_bytes().to_vec())
        .bind(branch)
        .bind(period)
        .bind(epoch)
        .bind(row.as_bytes().to_vec())
        .bind(i64::from(row.is_tombstone()))
        .execute(&mut *connection)
        .await
        .map_err(classified)?;
    if done.rows_affected() > 0 {
        return Ok(Insertion::Inserted);
    }
    // A conflicting row is committed, and no row is ever deleted.
    let found = find(connection, &row).await?;
    found.map(Insertion::Exists).ok_or_else(|| {
        StoreError::misconfigured(
            "a row was in the way of an insertion and is gone: something deletes rows",
        )
    })
}

async fn replace(
    connection: &mut SqliteConnection,
    old: &StoredRow,
    new: &StoredRow,
) -> Result<bool, StoreError> {
    let (branch, period, epoch) = place_of(old);
    sqlx::query(REPLACE)
        .bind(new.as_bytes().to_vec())
        .bind(i64::from(new.is_tombstone()))
        .bind(old.id().as_bytes().to_vec())
        .bind(branch)
        .bind(period)
        .bind(epoch)
        .bind(old.as_bytes().to_vec())
        .execute(connection)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(classified)
}

async fn page(connection: &mut SqliteConnection, from: From) -> Result<ScanPage, StoreError> {
    let query = sqlx::query_as(PAGE).bind(from.after.clone()).bind(from.limit());
    let found = query.fetch_all(connection).await.map_err(classified)?;
    Ok(from.page(rows(found)?))
}

fn rows(found: Vec<Columns>) -> Result<Vec<StoredRow>, StoreError> {
    found.into_iter().map(row_of).collect()
}

async fn erase(connection: &mut SqliteConnection, branch: Vec<u8>) -> Result<Erasure, StoreError> {
    // Opened for writing at once: a reader that becomes a writer would be refused.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classified)?;
    let query = sqlx::query_as(OF_BRANCH).bind(branch).bind(i64::MIN);
    let found: Vec<Columns> = query.fetch_all(&mut *transaction).await.map_err(classified)?;
    let all = rows(found)?;
    let mut erased = 0;
    for tombstone in tombstones_of(&all) {
        if let Some(live) = all.iter().find(|row| row.id() == tombstone.id())
            && replace(&mut transaction, live, &tombstone).await?
        {
            erased += 1;
        }
    }
    transaction.commit().await.map_err(classified)?;
    let total = u64::try_from(all.len()).unwrap_or(erased);
    Ok(Erasure { erased, already_erased: total.saturating_sub(erased) })
}

impl KeyStore for SqliteKeyStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn insert<'a>(&'a self, row: &'a StoredRow) -> BoxFuture<'a, Result<Insertion, StoreError>> {
        let row = row.clone();
        self.in_place(self.pool.call(move |connection| Box::pin(insert(connection, row))))
    }

    fn get<'a>(&'a self, id: &'a RowId) -> BoxFuture<'a, Result<Option<StoredRow>, StoreError>> {
        let id = id.as_bytes().to_vec();
        Box::pin(self.pool.read(move |connection| {
            let id = id.clone();
            Box::pin(async move {
                let found = sqlx::query_as(BY_ID).bind(id).fetch_optional(connection).await;
                found.map_err(classified)?.map(row_of).transpose()
            })
        }))
    }

    fn branch<'a>(
        &'a self,
        branch: &'a BranchId,
        from: i64,
    ) -> BoxFuture<'a, Result<Vec<StoredRow>, StoreError>> {
        let branch = branch.as_bytes().to_vec();
        Box::pin(self.pool.read(move |connection| {
            let branch = branch.clone();
            Box::pin(async move {
                let query = sqlx::query_as(OF_BRANCH).bind(branch).bind(from);
                rows(query.fetch_all(connection).await.map_err(classified)?)
            })
        }))
    }

    fn replace<'a>(
        &'a self,
        old: &'a StoredRow,
        new: &'a StoredRow,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        let (old, new) = (old.clone(), new.clone());
        Box::pin(async move {
            if !may_replace(&old, &new) {
                return Ok(false);
            }
            let call = self.pool.call(move |connection| {
                Box::pin(async move { replace(connection, &old, &new).await })
            });
            self.in_place(call).await
        })
    }

    fn erase_branch<'a>(
        &'a self,
        branch: &'a BranchId,
    ) -> BoxFuture<'a, Result<Erasure, StoreError>> {
        let branch = branch.as_bytes().to_vec();
        self.in_place(self.pool.call(move |connection| Box::pin(erase(connection, branch))))
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a ScanCursor>,
        limit: usize,
    ) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        let from = From::new(after, limit);
        Box::pin(async move {
            let from = from?;
            self.pool.read(move |connection| Box::pin(page(connection, from.clone()))).await
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.in_place(self.pool.read(|connection| {
            Box::pin(async move {
                let (version, _): (Option<i64>, i64) =
                    sqlx::query_as(HEALTH).fetch_one(connection).await.map_err(classified)?;
                connect::VERSIONS.check(version)
            })
        }))
    }
}
