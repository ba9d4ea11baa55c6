//! The options of a store.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

/// How a [`PostgresKeyStore`](super::PostgresKeyStore) reaches its database. Debug shows neither
/// URL nor password.
#[derive(Clone)]
pub struct PostgresOptions {
    pub(super) url: SecretText,
    pub(super) password: Password,
    pub(super) name: String,
    pub(super) schema: String,
    pub(super) max_connections: usize,
    pub(super) timeout: Duration,
}

#[derive(Clone)]
pub(super) enum Password {
    /// From the URL, the environment or libpq's password file, or none.
    OfUrl,
    Text(SecretText),
    File(PathBuf),
}

/// Wiped on drop, and never shown.
pub(super) struct SecretText(Zeroizing<String>);

impl SecretText {
    fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl Clone for SecretText {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl PostgresOptions {
    /// Takes a URL as libpq reads it: `postgres://USER@HOST:PORT/DATABASE?sslmode=…`. Anything that
    /// it leaves out comes from the environment variables `PG…`.
    ///
    /// To another machine the default is `sslmode=verify-full`, against Mozilla's root certificates
    /// and those in the file `sslrootcert`. Anything weaker must be set explicitly.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: SecretText::new(url),
            password: Password::OfUrl,
            name: "postgres".to_owned(),
            schema: "public".to_owned(),
            max_connections: 8,
            timeout: Duration::from_secs(5),
        }
    }

    /// Sets the password, which then need not be in the URL.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Password::Text(SecretText::new(password));
        self
    }

    /// Sets the file that has the password. It is read for each new connection, so a rotated
    /// password is noticed.
    #[must_use]
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.password = Password::File(path.into());
        self
    }

    /// Sets the store's name in errors and events. By default `postgres`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the schema of the tables. By default `public`. Objects of other schemas are not seen.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Sets the maximum number of connections. By default 8. Calls wait for one.
    #[must_use]
    pub fn max_connections(mut self, most: usize) -> Self {
        self.max_connections = most;
        self
    }

    /// Sets how long a call may take, including its wait for a connection. By default 5 seconds.
    /// The server also ends a statement after that time.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("name", &self.name)
            .field("schema", &self.schema)
            .field("max_connections", &self.max_connections)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
