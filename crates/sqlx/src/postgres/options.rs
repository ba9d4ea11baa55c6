//! How the store is reached.
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
    /// Of the URL, the environment or the password file of libpq, or none.
    OfUrl,
    Text(SecretText),
    File(PathBuf),
}

/// Wiped when it is dropped, and shown by nothing.
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
    /// Takes a URL as libpq reads it: `postgres://USER@HOST:PORT/DATABASE?sslmode=…`. What it does
    /// not say comes from the variables `PG…` of the environment.
    ///
    /// To another machine the default is `sslmode=verify-full`, against the roots of Mozilla and
    /// those in the file `sslrootcert`. Anything less has to be said.
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

    /// Sets the password, which then need not stand in the URL.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Password::Text(SecretText::new(password));
        self
    }

    /// Sets the file that has the password. It is read for each new connection, so a password that
    /// is rotated there is found.
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

    /// Sets the schema in which the tables are. By default `public`. Objects of other schemas are
    /// not seen.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Sets how many connections there are at most. By default 8. Calls wait for one.
    #[must_use]
    pub fn max_connections(mut self, most: usize) -> Self {
        self.max_connections = most;
        self
    }

    /// Sets how long a call may take, with its wait for a connection. By default 5 seconds. The
    /// server ends a statement after it too.
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
