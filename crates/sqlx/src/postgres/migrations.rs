//! The schema, made and kept by the crate.
#![forbid(unsafe_code)]

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use waxseal::store::StoreError;

use super::VERSIONS;
use super::connect::Connect;
use super::errors::classified;

/// Twenty concurrent processes wait for each other.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// The migration from each version to the next. Each sets its version at its end.
const STEPS: [&str; 2] = [include_str!("schema.sql"), include_str!("schema_2.sql")];

/// The lock under which a schema is changed: `waxseal` as a number.
const LOCK: i64 = 0x0077_6178_7365_616c;

pub(super) async fn run(connect: &Connect) -> Result<(), StoreError> {
    let mut connection = connect.open(TIMEOUT).await?;
    let mut transaction = connection.begin().await.map_err(classified)?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *transaction)
        .await
        .map_err(classified)?;
    let version = version(&mut transaction).await.map_err(classified)?;
    if version.is_some_and(|version| version >= VERSIONS.newest) {
        return VERSIONS.check(version);
    }
    let has_schema: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
            .bind(&connect.schema)
            .fetch_one(&mut *transaction)
            .await
            .map_err(classified)?;
    if !has_schema {
        // The name was checked: it needs no quotes.
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {}", connect.schema)))
            .execute(&mut *transaction)
            .await
            .map_err(classified)?;
    }
    let done = version.and_then(|version| usize::try_from(version).ok()).unwrap_or(0);
    for step in STEPS.iter().skip(done) {
        sqlx::raw_sql(*step).execute(&mut *transaction).await.map_err(classified)?;
    }
    transaction.commit().await.map_err(classified)
}

/// Returns the version of the schema, or `None` if there is none.
async fn version(connection: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('waxseal_schema') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT max(version) FROM waxseal_schema").fetch_one(connection).await
}
