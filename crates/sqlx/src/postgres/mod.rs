//! The key store in PostgreSQL.
#![forbid(unsafe_code)]

mod connect;
mod errors;
mod migrations;
mod options;
mod roles;
mod uri;

use std::fmt;
use std::sync::Arc;

use sqlx::{Connection, PgConnection};
use waxseal::store::{
    BoxFuture, BranchId, Erasure, Insertion, KeyStore, RowId, ScanCursor, ScanPage, StoreError,
    StoredRow,
};
use waxseal::{Error, ErrorKind};

pub(crate) use connect::{check_schema, wrong};
pub use options::PostgresOptions;
pub use roles::PostgresRole;
pub(crate) use roles::check_role;

use crate::pool::Pool;
use crate::rows::{Columns, From, Versions, may_replace, place_of, row_of, tombstones_of};
use connect::Connect;
use errors::classified;

/// Services need nothing of version 2, so they work with version 1 until an operator migrates.
const VERSIONS: Versions = Versions { oldest: 1, newest: 2 };

/// A [`KeyStore`] in a PostgreSQL database. Clones are handles to the same store.
///
/// An operator creates the tables once, with [`migrate`](Self::migrate) or in a deployment. After
/// that a service needs only the grants of its [`PostgresRole`].
///
/// ```no_run
/// use waxseal_sqlx::{PostgresKeyStore, PostgresOptions};
///
/// # async fn example() -> Result<(), waxseal::Error> {
/// let options = PostgresOptions::new("postgres://orders@db.example/keys")
///     .password_file("/run/secrets/keys-password");
/// let store = PostgresKeyStore::new(options)?;
/// store.migrate().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PostgresKeyStore {
    name: Arc<str>,
    pool: Arc<Pool<Connect>>,
}

impl PostgresKeyStore {
    /// Makes the store. It contacts no server: the first call connects. Call it within a tokio
    /// runtime that has IO and timers.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if the options are wrong, and outside such a runtime.
    pub fn new(options: PostgresOptions) -> Result<Self, Error> {
        let name = options.name.as_str().into();
        let (most, timeout) = (options.max_connections, options.timeout);
        let wrong = |error: StoreError| Error::new(ErrorKind::InvalidOption, error.to_string());
        let pool = Pool::new(Connect::new(options).map_err(wrong)?, most, timeout)?;
        Ok(Self { name, pool })
    }

    /// Brings the schema to the version that this crate knows. Any number of processes may call it
    /// concurrently: one creates the tables, and the others find them.
    ///
    /// It needs permission to create tables, which a service's own role should not have.
    ///
    /// # Errors
    /// Those of any call, and misconfigured if the schema is newer.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let pool = self.pool.clone();
        let migrating = async move {
            migrations::run(pool.connector()).await?;
            pool.connector().saw(Some(VERSIONS.newest));
            Ok(())
        };
        self.pool.run(migrations::TIMEOUT, migrating).await
    }
}

impl fmt::Debug for PostgresKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresKeyStore")
            .field("name", &self.name)
            .field("at", self.pool.connector())
            .finish_non_exhaustive()
    }
}

const BY_ID: &str = "SELECT row_id, branch, period, epoch, row FROM waxseal_keys WHERE row_id = $1";
const BY_PLACE: &str = "SELECT row_id, branch, period, epoch, row FROM waxseal_keys \
                        WHERE branch = $1 AND period = $2 AND epoch = $3";
const OF_BRANCH: &str = "SELECT row_id, branch, period, epoch, row FROM waxseal_keys \
                         WHERE branch = $1 AND period >= $2 ORDER BY period, epoch";
const PAGE: &str = "SELECT row_id, branch, period, epoch, row FROM waxseal_keys \
                    WHERE row_id > $1 ORDER BY row_id LIMIT $2";
/// In a fixed order, so that two erasures do not deadlock.
const LOCK_BRANCH: &str = "SELECT row_id, branch, period, epoch, row FROM waxseal_keys \
                           WHERE branch = $1 ORDER BY row_id FOR UPDATE";
const INSERT: &str = "INSERT INTO waxseal_keys (row_id, branch, period, epoch, row) \
                      VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
// A separate column for roles that may erase: see roles.rs.
const INSERT_TOMBSTONE: &str = "INSERT INTO waxseal_keys (row_id, branch, period, epoch, row, erased_at) \
     VALUES ($1, $2, $3, $4, $5, now()) ON CONFLICT DO NOTHING";
const REPLACE: &str = "UPDATE waxseal_keys SET row = $6, changed_at = now() \
                       WHERE row_id = $1 AND branch IS NOT DISTINCT FROM $2 \
                       AND period IS NOT DISTINCT FROM $3 AND epoch IS NOT DISTINCT FROM $4 \
                       AND row = $5";
const REPLACE_BY_TOMBSTONE: &str = "UPDATE waxseal_keys SET row = $6, changed_at = now(), erased_at = now() \
     WHERE row_id = $1 AND branch IS NOT DISTINCT FROM $2 \
     AND period IS NOT DISTINCT FROM $3 AND epoch IS NOT DISTINCT FROM $4 AND row = $5";
const ERASE: &str = "UPDATE waxseal_keys SET row = new.row, changed_at = now(), erased_at = now() \
                     FROM unnest($1::bytea[], $2::bytea[]) AS new (row_id, row) \
                     WHERE waxseal_keys.row_id = new.row_id";
const HEALTH: &str = "SELECT max(version), pg_is_in_recovery(), \
                      (SELECT count(*) FROM (SELECT 1 FROM waxseal_keys LIMIT 1) AS one) \
                      FROM waxseal_schema";

async fn find(
    connection: &mut PgConnection,
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

async fn insert(connection: &mut PgConnection, row: StoredRow) -> Result<Insertion, StoreError> {
    let (branch, period, epoch) = place_of(&row);
    let done = sqlx::query(if row.is_tombstone() { INSERT_TOMBSTONE } else { INSERT })
        .bind(row.id().as_bytes().to_vec())
        .bind(branch)
        .bind(period)
        .bind(epoch)
        .bind(row.as_bytes())
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
            "a row was in the way of an insertion and is gone or hidden: something deletes rows, or hides them",
        )
    })
}

async fn replace(
    connection: &mut PgConnection,
    old: &StoredRow,
    new: &StoredRow,
) -> Result<bool, StoreError> {
    let (branch, period, epoch) = place_of(old);
    sqlx::query(if new.is_tombstone() { REPLACE_BY_TOMBSTONE } else { REPLACE })
        .bind(old.id().as_bytes().to_vec())
        .bind(branch)
        .bind(period)
        .bind(epoch)
        .bind(old.as_bytes())
        .bind(new.as_bytes())
        .execute(connection)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(classified)
}

async fn page(connection: &mut PgConnection, from: From) -> Result<ScanPage, StoreError> {
    let query = sqlx::query_as(PAGE).bind(from.after.clone()).bind(from.limit());
    let found = query.fetch_all(connection).await.map_err(classified)?;
    Ok(from.page(rows(found)?))
}

fn rows(found: Vec<Columns>) -> Result<Vec<StoredRow>, StoreError> {
    found.into_iter().map(row_of).collect()
}

async fn erase(connection: &mut PgConnection, branch: Vec<u8>) -> Result<Erasure, StoreError> {
    let mut transaction = connection.begin().await.map_err(classified)?;
    let locked: Vec<Columns> = sqlx::query_as(LOCK_BRANCH)
        .bind(branch)
        .fetch_all(&mut *transaction)
        .await
        .map_err(classified)?;
    let all = rows(locked)?;
    let tombstones = tombstones_of(&all);
    let ids: Vec<_> = tombstones.iter().map(|row| row.id().as_bytes().to_vec()).collect();
    let bytes: Vec<_> = tombstones.iter().map(|row| row.as_bytes().to_vec()).collect();
    let erased = if tombstones.is_empty() {
        0
    } else {
        let done = sqlx::query(ERASE).bind(ids).bind(bytes).execute(&mut *transaction).await;
        done.map_err(classified)?.rows_affected()
    };
    let (expected, total) = (u64::try_from(tombstones.len()), u64::try_from(all.len()));
    if expected != Ok(erased) {
        // Row-level security, or a rule, silently leaves out rows.
        return Err(StoreError::misconfigured("not all rows of the branch could be erased"));
    }
    transaction.commit().await.map_err(classified)?;
    Ok(Erasure { erased, already_erased: total.unwrap_or(erased).saturating_sub(erased) })
}

impl KeyStore for PostgresKeyStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn insert<'a>(&'a self, row: &'a StoredRow) -> BoxFuture<'a, Result<Insertion, StoreError>> {
        let row = row.clone();
        Box::pin(self.pool.call(move |connection| Box::pin(insert(connection, row))))
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
            call.await
        })
    }

    fn erase_branch<'a>(
        &'a self,
        branch: &'a BranchId,
    ) -> BoxFuture<'a, Result<Erasure, StoreError>> {
        let branch = branch.as_bytes().to_vec();
        Box::pin(self.pool.call(move |connection| Box::pin(erase(connection, branch))))
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
        let pool = self.pool.clone();
        Box::pin(self.pool.read(move |connection| {
            let pool = pool.clone();
            Box::pin(async move {
                let (version, is_standby, _): (Option<i64>, bool, i64) =
                    sqlx::query_as(HEALTH).fetch_one(connection).await.map_err(classified)?;
                VERSIONS.check(version)?;
                pool.connector().saw(version);
                if is_standby { Err(connect::standby()) } else { Ok(()) }
            })
        }))
    }

    /// Warns that the schema is of an earlier version.
    fn warning(&self) -> Option<Box<str>> {
        self.pool.connector().is_outdated().then(|| connect::OUTDATED.into())
    }
}
