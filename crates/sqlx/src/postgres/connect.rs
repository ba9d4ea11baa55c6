//! One connection: its target, its login, and its checks before use.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use waxseal::store::StoreError;
use zeroize::Zeroizing;

use super::VERSIONS;
use super::errors::classified;
use super::options::{Password, PostgresOptions};
use crate::pool::Connector;

/// The allowed parameters of a URL. An ignored name might be a misspelt `sslmode`.
const PARAMETERS: [&str; 14] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

pub(super) struct Connect {
    options: PgConnectOptions,
    password: Password,
    pub(super) schema: String,
    timeout: Duration,
    /// Whether the schema was of an earlier version when somebody last looked.
    is_outdated: AtomicBool,
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("host", &self.options.get_host())
            .field("port", &self.options.get_port())
            .field("database", &self.options.get_database())
            .field("user", &self.options.get_username())
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl Connect {
    pub(super) fn new(options: PostgresOptions) -> Result<Self, StoreError> {
        let says_ssl_mode = check_url(options.url.expose())?;
        let of_url = PgConnectOptions::from_str(options.url.expose()).map_err(|_| {
            wrong(
                "the URL cannot be read: postgres://USER@HOST:PORT/DATABASE?NAME=VALUE is expected",
            )
        })?;
        let mut connect = of_url.disable_statement_logging();
        if !says_ssl_mode && !is_local(&connect) {
            connect = connect.ssl_mode(PgSslMode::VerifyFull);
        }
        if connect.get_application_name().is_none() {
            connect = connect.application_name("waxseal");
        }
        check_schema(&options.schema)?;
        if options.timeout.is_zero() {
            return Err(wrong("timeout is zero"));
        }
        if options.max_connections == 0 {
            return Err(wrong("max_connections is zero"));
        }
        Ok(Self {
            options: connect,
            password: options.password,
            schema: options.schema,
            timeout: options.timeout,
            is_outdated: AtomicBool::new(false),
        })
    }

    /// Records the version of the schema, which the crate can serve. An earlier version is logged
    /// once.
    pub(super) fn saw(&self, version: Option<i64>) {
        let is_outdated = version != Some(VERSIONS.newest);
        if !self.is_outdated.swap(is_outdated, Ordering::Relaxed) && is_outdated {
            tracing::warn!(
                target: "waxseal_sqlx", event = "schema_outdated", schema = self.schema,
                version, newest = VERSIONS.newest, "{OUTDATED}"
            );
        }
    }

    pub(super) fn is_outdated(&self) -> bool {
        self.is_outdated.load(Ordering::Relaxed)
    }

    /// Connects to a primary, with the session settings that every statement expects.
    pub(super) async fn open(&self, timeout: Duration) -> Result<PgConnection, StoreError> {
        let options = match &self.password {
            Password::OfUrl => self.options.clone(),
            Password::Text(text) => self.options.clone().password(text.expose()),
            Password::File(path) => {
                let read = fs::read_to_string(path).map(Zeroizing::new).map_err(|error| {
                    let kind = error.kind();
                    wrong(format!("password_file {} cannot be read: {kind}", path.display()))
                })?;
                self.options.clone().password(read.trim_end_matches(['\r', '\n']))
            }
        };
        let mut connection = PgConnection::connect_with(&options).await.map_err(classified)?;
        // The server ends what its client abandoned. A `synchronous_commit` that loses rows is
        // overridden, and any stricter one is kept.
        let (is_standby, ..): (bool, String, String, String, String) = sqlx::query_as(
            "SELECT pg_is_in_recovery(), set_config('search_path', $1, false), \
             set_config('statement_timeout', $2, false), \
             set_config('default_transaction_isolation', 'read committed', false), \
             set_config('synchronous_commit', CASE current_setting('synchronous_commit') \
                        WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false)",
        )
        .bind(format!("{}, pg_temp", self.schema))
        .bind(timeout.as_millis().to_string())
        .fetch_one(&mut connection)
        .await
        .map_err(classified)?;
        if is_standby { Err(standby()) } else { Ok(connection) }
    }
}

impl Connector for Connect {
    type Connection = PgConnection;

    async fn connect(&self) -> Result<PgConnection, StoreError> {
        let mut connection = self.open(self.timeout).await?;
        let version = sqlx::query_scalar("SELECT max(version) FROM waxseal_schema")
            .fetch_one(&mut connection)
            .await
            .map_err(classified)?;
        VERSIONS.check(version)?;
        self.saw(version);
        Ok(connection)
    }
}

/// What is wrong with version 1, and what to do about it.
pub(super) const OUTDATED: &str = "the schema has version 1, in which a role that may erase and may \
     make a schema of its own can undo an erasure: run `migrate` with the role that owns the tables";

/// Unavailable: after a failover the primary is elsewhere, and will be found there.
pub(super) fn standby() -> StoreError {
    StoreError::unavailable("the server is a standby, whose rows may be old: the primary is needed")
}

pub(crate) fn wrong(text: impl Into<std::borrow::Cow<'static, str>>) -> StoreError {
    StoreError::misconfigured(text)
}

/// The driver accepts any scheme, and ignores names that it does not know. Returns whether the URL
/// or the environment says how TLS is used.
fn check_url(url: &str) -> Result<bool, StoreError> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(wrong("the URL has to begin with postgres:// or postgresql://"));
    }
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query = query.split('#').next().unwrap_or_default();
    let mut says_ssl_mode = std::env::var_os("PGSSLMODE").is_some();
    for name in query.split('&').filter_map(|pair| pair.split('=').next()) {
        let is_known = name.is_empty() || name.starts_with("options[");
        if !is_known && !PARAMETERS.contains(&name) {
            return Err(wrong("the URL has a parameter that the driver does not know"));
        }
        says_ssl_mode |= name == "sslmode";
    }
    Ok(says_ssl_mode)
}

/// Whether everything sent stays on this machine.
fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || address.is_ok_and(|address| address.is_loopback())
}

/// Checks a name that needs no quotes, so that no quoting can go wrong.
pub(crate) fn check_schema(schema: &str) -> Result<(), StoreError> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins = schema.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if begins && schema.len() <= 63 && schema.chars().all(is_plain) {
        Ok(())
    } else {
        Err(wrong("a name of a schema or role has lower-case letters, digits and _ only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssl_mode(url: &str) -> String {
        let connect = Connect::new(PostgresOptions::new(url)).unwrap();
        format!("{:?}", connect.options.get_ssl_mode())
    }

    #[test]
    fn tls_to_another_machine_is_verified_unless_the_url_says_less() {
        for (url, expected) in [
            ("postgres://db.example/keys", "VerifyFull"),
            ("postgres://10.0.0.7/keys", "VerifyFull"),
            ("postgres://db.example/keys?application_name=x", "VerifyFull"),
            ("postgres://localhost.example/keys", "VerifyFull"),
            ("postgres://127.0.0.1@db.example/keys", "VerifyFull"),
            ("postgres:///keys?host=db.example", "VerifyFull"),
            ("postgres://db.example/keys?sslmode=require", "Require"),
            ("postgres://localhost/keys", "Prefer"),
            ("postgres://127.0.0.1:5433/keys", "Prefer"),
            ("postgres://[::1]/keys", "Prefer"),
            ("postgres://%2Fvar%2Frun%2Fpostgresql/keys", "Prefer"),
        ] {
            assert_eq!(ssl_mode(url), expected, "{url}");
        }
    }
}
