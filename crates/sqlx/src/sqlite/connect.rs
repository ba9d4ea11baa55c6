//! One connection, and the schema.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use waxseal::store::{StoreError, StoreErrorClass};

use super::errors::classified;
use crate::pool::Connector;
use crate::rows::Versions;

const SCHEMA: &str = include_str!("schema.sql");
pub(super) const VERSIONS: Versions = Versions { oldest: 1, newest: 1 };

pub(super) struct Connect {
    /// `None` for a database in memory.
    path: Option<PathBuf>,
    busy_timeout: Duration,
    /// The file that was opened first, if the system can identify files.
    file: OnceLock<Option<FileId>>,
}

/// Device and number of a file.
type FileId = (u64, u64);

#[cfg(unix)]
fn file_id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn file_id(_: &Path) -> Option<FileId> {
    None
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connect").field(&self.path).finish()
    }
}

impl Connect {
    pub(super) fn file(path: PathBuf, busy_timeout: Duration) -> Self {
        Self { path: Some(path), busy_timeout, file: OnceLock::new() }
    }

    pub(super) fn memory() -> Self {
        Self { path: None, busy_timeout: Duration::ZERO, file: OnceLock::new() }
    }

    /// Adds the file to an error of opening it.
    pub(super) fn of_file(&self, error: StoreError) -> StoreError {
        let Some(path) = &self.path else { return error };
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        let text = match directory.is_none_or(Path::exists) {
            true => format!("{}: {error}", path.display()),
            false => format!("{}: its directory is missing: {error}", path.display()),
        };
        match error.class() {
            StoreErrorClass::Misconfigured => StoreError::misconfigured(text),
            StoreErrorClass::Throttled => StoreError::throttled(text),
            _ => StoreError::unavailable(text),
        }
    }

    /// Remembers which file has the schema now.
    pub(super) fn opened(&self) {
        let _ = self.file.set(self.path.as_deref().and_then(file_id));
    }

    /// Fails if the file was removed or replaced since: writes to a file without a name are lost
    /// with the process.
    pub(super) fn check_in_place(&self) -> Result<(), StoreError> {
        let (Some(path), Some(Some(opened))) = (&self.path, self.file.get()) else { return Ok(()) };
        if file_id(path) == Some(*opened) {
            return Ok(());
        }
        let path = path.display();
        Err(StoreError::misconfigured(format!(
            "{path} was removed or replaced since it was opened: put it back, or open the store again"
        )))
    }
}

impl Connector for Connect {
    type Connection = SqliteConnection;

    async fn connect(&self) -> Result<SqliteConnection, StoreError> {
        let options = SqliteConnectOptions::new()
            .disable_statement_logging()
            .busy_timeout(self.busy_timeout)
            // In WAL mode only this survives a loss of power.
            .synchronous(SqliteSynchronous::Full);
        let options = match &self.path {
            Some(path) => options.filename(path).create_if_missing(self.file.get().is_none()),
            None => options.in_memory(true),
        };
        SqliteConnection::connect_with(&options).await.map_err(classified)
    }

    fn is_the_database(&self) -> bool {
        self.path.is_none()
    }
}

/// Brings the schema to the version that this crate knows. Other processes may do so at the same
/// time.
pub(super) async fn migrate(
    connection: &mut SqliteConnection,
    busy_timeout: Duration,
) -> Result<(), StoreError> {
    let began = Instant::now();
    // The change to WAL does not wait for locks like other statements.
    while let Err(error) = turn_wal_on(connection).await {
        if error.class() != StoreErrorClass::Unavailable || began.elapsed() > busy_timeout {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(classified)?;
    let version = version(&mut transaction).await.map_err(classified)?;
    if version.is_some_and(|version| version >= VERSIONS.newest) {
        return VERSIONS.check(version);
    }
    sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await.map_err(classified)?;
    transaction.commit().await.map_err(classified)
}

async fn turn_wal_on(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode = WAL")
        .fetch_one(connection)
        .await
        .map_err(classified)?;
    match mode.as_str() {
        "wal" | "memory" => Ok(()),
        _ => Err(StoreError::misconfigured(
            "the file system has no shared memory, which SQLite's WAL needs: use a local disk",
        )),
    }
}

/// Returns the version of the schema, or `None` if there is none.
async fn version(connection: &mut SqliteConnection) -> Result<Option<i64>, sqlx::Error> {
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = 'waxseal_schema'")
            .fetch_one(&mut *connection)
            .await?;
    if tables == 0 {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT max(version) FROM waxseal_schema").fetch_one(connection).await
}
