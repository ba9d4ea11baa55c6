//! A store as one URI.
#![forbid(unsafe_code)]

use waxseal::Error;
use waxseal::kek::toolkit::uri::Uri;

use super::{PostgresKeyStore, PostgresOptions};

/// The parameters that are not the database's.
const OWN: [&str; 5] = ["max-connections", "password-file", "schema", "store-name", "timeout"];

impl PostgresKeyStore {
    /// Makes the store of a URI, within a tokio runtime: the URL of [`PostgresOptions::new`], and
    /// in it the options `password-file`, `schema`, `store-name`, `max-connections` and `timeout`.
    /// In a configuration of data domains it is the schemes `postgres` and `postgresql` of
    /// [`Schemes::store`](waxseal::domain::Schemes::store).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](waxseal::ErrorKind::InvalidOption), naming the part that is
    /// wrong.
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        Self::new(options(&uri)?)
    }
}

fn options(text: &str) -> Result<PostgresOptions, Error> {
    let (url, query) = text.split_once('?').unwrap_or((text, ""));
    let is_own = |parameter: &&str| OWN.contains(&parameter.split('=').next().unwrap_or_default());
    let (own, of_database): (Vec<_>, Vec<_>) =
        query.split('&').filter(|parameter| !parameter.is_empty()).partition(is_own);
    let url = match &of_database[..] {
        [] => url.to_owned(),
        parameters => format!("{url}?{}", parameters.join("&")),
    };
    let mut options = PostgresOptions::new(url);
    if own.is_empty() {
        return Ok(options);
    }
    let own = format!("postgres:?{}", own.join("&"));
    let own = Uri::read(&own, "postgres:", &OWN)?;
    if let Some(path) = own.path("password-file")? {
        options = options.password_file(path);
    }
    if let Some(schema) = own.text("schema")? {
        options = options.schema(schema);
    }
    if let Some(name) = own.text("store-name")? {
        options = options.name(name);
    }
    if let Some(most) = own.text("max-connections")? {
        let wrong = |_| own.error("parameter `max-connections` is not a number");
        options = options.max_connections(most.parse().map_err(wrong)?);
    }
    if let Some(timeout) = own.duration("timeout")? {
        options = options.timeout(timeout);
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn own_parameters_leave_the_url() {
        let uri = "postgres://u@db/keys?sslmode=require&schema=keys&password-file=/run/p%20w\
                   &timeout=3s&user=v&max-connections=2&store-name=a";
        let read = options(uri).unwrap();
        assert_eq!(read.url.expose(), "postgres://u@db/keys?sslmode=require&user=v");
        let shown = format!("{read:?}");
        for part in ["name: \"a\"", "schema: \"keys\"", "max_connections: 2", "timeout: 3s"] {
            assert!(shown.contains(part), "{shown}");
        }
        assert_eq!(options("postgres:///keys?").unwrap().url.expose(), "postgres:///keys");
    }

    #[test]
    fn an_error_names_the_parameter_and_shows_no_value() {
        for (query, part) in [
            ("max-connections=hunter2", "`max-connections` is not a number"),
            ("timeout=hunter2", "`timeout` is not a duration"),
            ("schema=a&schema=hunter2", "`schema` occurs twice"),
            ("schema", "`schema` has no value"),
        ] {
            let error = options(&format!("postgres://u:hunter2@db/keys?{query}")).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
        }
    }
}
