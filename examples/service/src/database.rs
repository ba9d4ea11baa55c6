//! The two tables. They hold sealed messages, and the keys to find them by in the clear.

use std::path::Path;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};

/// A table, and what is asked of it.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    create: &'static str,
    put: &'static str,
    get: &'static str,
}

macro_rules! table {
    ($name:literal) => {
        Table {
            name: $name,
            create: concat!(
                "CREATE TABLE IF NOT EXISTS ",
                $name,
                " (tenant TEXT, id TEXT, sealed BLOB NOT NULL, PRIMARY KEY (tenant, id))",
            ),
            put: concat!(
                "INSERT INTO ",
                $name,
                " VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET sealed = ?3",
            ),
            get: concat!("SELECT sealed FROM ", $name, " WHERE tenant = ?1 AND id = ?2"),
        }
    };
}

const TABLES: [Table; 2] = [table!("customers"), table!("cards")];

impl Table {
    pub(crate) fn named(name: &str) -> Option<Self> {
        TABLES.into_iter().find(|table| table.name == name)
    }
}

/// The database of the service. A clone is a pointer.
#[derive(Clone)]
pub(crate) struct Database(SqlitePool);

/// The database failed.
#[derive(Debug)]
pub(crate) struct StoreFailed(pub(crate) sqlx::Error);

impl Database {
    pub(crate) async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let pool = SqlitePool::connect_with(options.journal_mode(SqliteJournalMode::Wal)).await?;
        for table in TABLES {
            sqlx::query(table.create).execute(&pool).await?;
        }
        Ok(Self(pool))
    }

    pub(crate) async fn put(
        &self,
        table: Table,
        tenant: &str,
        id: &str,
        sealed: &[u8],
    ) -> Result<(), StoreFailed> {
        let query = sqlx::query(table.put).bind(tenant).bind(id).bind(sealed);
        query.execute(&self.0).await.map(drop).map_err(StoreFailed)
    }

    pub(crate) async fn get(
        &self,
        table: Table,
        tenant: &str,
        id: &str,
    ) -> Result<Option<Vec<u8>>, StoreFailed> {
        let query = sqlx::query_scalar(table.get).bind(tenant).bind(id);
        query.fetch_optional(&self.0).await.map_err(StoreFailed)
    }
}
