//! The options of a store.
#![forbid(unsafe_code)]

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::{BehaviorVersion, Builder as ConfigBuilder, Region};
use waxseal::kek::toolkit::uri::{Uri, without_user};
use waxseal::{Error, ErrorKind};

use crate::store::DynamoDbKeyStore;
use crate::table::Table;

const TIMEOUT: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(300);
/// Each of three tries has enough time.
const TRIES: u32 = 3;
const NO_ROOTS: &str = "no root certificates are found on this system (SSL_CERT_FILE and \
                        SSL_CERT_DIR name other places), so no server can be trusted; install \
                        them, or hand in a client with an HTTP client of its own";

/// Builds a [`DynamoDbKeyStore`].
#[derive(Default)]
#[must_use]
pub struct DynamoDbKeyStoreBuilder {
    table: String,
    source: Source,
    region: Option<String>,
    endpoint_url: Option<String>,
    timeout: Option<Duration>,
}

#[derive(Default)]
enum Source {
    #[default]
    Defaults,
    SdkConfig(Box<SdkConfig>),
    Client(Client),
}

impl DynamoDbKeyStore {
    /// Returns a builder. It needs the name of a table.
    pub fn builder() -> DynamoDbKeyStoreBuilder {
        DynamoDbKeyStoreBuilder::default()
    }

    /// Makes the store of a URI: `dynamodb:TABLE`, with the parameters `region`, `endpoint-url` and
    /// `timeout`. In a configuration of data domains it is the scheme `dynamodb` of
    /// [`Schemes::store`](waxseal::domain::Schemes::store).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the part that is wrong, and those of
    /// [`build`](DynamoDbKeyStoreBuilder::build).
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        of_uri(&uri)?.build().await
    }
}

impl DynamoDbKeyStoreBuilder {
    /// Sets the table by name, or by its ARN (for a table of another account). Required.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// Uses the credentials, Region, endpoint, retries and HTTP client of this client. By default
    /// they come from the AWS SDK's default sources.
    pub fn client(mut self, client: Client) -> Self {
        self.source = Source::Client(client);
        self
    }

    /// Uses those of a configuration that several clients share.
    pub fn sdk_config(mut self, config: &SdkConfig) -> Self {
        self.source = Source::SdkConfig(Box::new(config.clone()));
        self
    }

    /// Sets the Region, overriding the AWS configuration.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// Sets the endpoint, overriding the AWS configuration.
    pub fn endpoint_url(mut self, url: impl Into<String>) -> Self {
        self.endpoint_url = Some(url.into());
        self
    }

    /// Sets how long one request may take including its retries, and how long a write waits for its
    /// turn among others that change the same rows: 100 ms to 5 minutes, by default 10 s. Each try
    /// gets a third of it. Timeouts of a given client or configuration are kept, unless this is
    /// called.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Makes the store. It sends nothing to DynamoDB: [`health`](waxseal::store::KeyStore::health)
    /// does that.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the option: a missing or invalid table, a timeout out
    /// of range, no Region, no root certificates.
    pub async fn build(self) -> Result<DynamoDbKeyStore, Error> {
        check_table(&self.table)?;
        let timeout = self.timeout.unwrap_or(TIMEOUT);
        if !(SHORTEST..=LONGEST).contains(&timeout) {
            return Err(invalid("timeout: 100 ms to 5 minutes are allowed"));
        }
        let config = match self.source {
            Source::Client(client) => client.config().to_builder(),
            Source::SdkConfig(shared) => from_shared(&shared),
            Source::Defaults => {
                check_roots()?;
                let loader = aws_config::defaults(BehaviorVersion::latest());
                // A known Region is not looked up, since that may call the instance's metadata
                // service.
                let loader = match &self.region {
                    Some(region) => loader.region(Region::new(region.clone())),
                    None => loader,
                };
                from_shared(&loader.load().await)
            }
        };
        let client = client(config, self.region, self.endpoint_url, self.timeout)?;
        Ok(DynamoDbKeyStore::new(Table { client, name: self.table }, timeout))
    }
}

fn of_uri(text: &str) -> Result<DynamoDbKeyStoreBuilder, Error> {
    let uri = Uri::read(text, "dynamodb:", &["region", "endpoint-url", "timeout"])?;
    let endpoint_url = uri.text("endpoint-url")?;
    if endpoint_url.as_deref().is_some_and(|url| without_user(url).1) {
        return Err(uri.error("parameter `endpoint-url` must not contain a user or a password"));
    }
    Ok(DynamoDbKeyStoreBuilder {
        table: uri.decode("the table", uri.place())?,
        region: uri.text("region")?,
        endpoint_url,
        timeout: uri.duration("timeout")?,
        ..DynamoDbKeyStoreBuilder::default()
    })
}

impl fmt::Debug for DynamoDbKeyStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("DynamoDbKeyStoreBuilder");
        shown.field("table", &self.table).field("region", &self.region);
        shown.field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

fn from_shared(shared: &SdkConfig) -> ConfigBuilder {
    let config = ConfigBuilder::from(shared);
    match shared.behavior_version() {
        Some(_) => config,
        // A client without one panics.
        None => config.behavior_version(BehaviorVersion::latest()),
    }
}

fn client(
    mut config: ConfigBuilder,
    region: Option<String>,
    endpoint_url: Option<String>,
    timeout: Option<Duration>,
) -> Result<Client, Error> {
    if let Some(region) = region {
        config.set_region(Some(Region::new(region)));
    }
    if let Some(url) = endpoint_url {
        config.set_endpoint_url(Some(url));
    }
    let config = config.build();
    if config.region().is_none() {
        return Err(invalid("region: neither the builder nor the AWS configuration names one"));
    }
    if config.http_client().is_none() {
        check_roots()?;
    }
    let timeouts = timeouts(config.timeout_config(), timeout);
    let config = config.to_builder().timeout_config(timeouts).build();
    // Cases in which the SDK panics, such as a configuration without a way to sleep.
    std::panic::catch_unwind(AssertUnwindSafe(|| Client::from_conf(config)))
        .map_err(|_| invalid("client: the AWS SDK refuses its configuration"))
}

/// Without timeouts, the SDK waits forever for a server that accepts a connection and says nothing.
fn timeouts(own: Option<&TimeoutConfig>, set: Option<Duration>) -> TimeoutConfig {
    let own = own.cloned().unwrap_or_else(|| TimeoutConfig::builder().build());
    let all = set.or(own.operation_timeout()).unwrap_or(TIMEOUT);
    let each = match set {
        Some(_) => all / TRIES,
        None => own.operation_attempt_timeout().unwrap_or(all / TRIES),
    };
    own.to_builder().operation_timeout(all).operation_attempt_timeout(each).build()
}

fn check_table(name: &str) -> Result<(), Error> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let is_name = (3..=255).contains(&name.len()) && name.chars().all(is_allowed);
    let is_arn = name.starts_with("arn:")
        && name.contains(":table/")
        && name.len() <= 1024
        && name.chars().all(|c| is_allowed(c) || c == ':' || c == '/');
    if is_name || is_arn {
        return Ok(());
    }
    Err(invalid(
        "table: a name of 3 to 255 letters, digits, `_`, `.` and `-`, or an ARN, is needed",
    ))
}

/// If there are none, the SDK does not say so: it panics, or trusts nobody.
fn check_roots() -> Result<(), Error> {
    static FOUND: OnceLock<()> = OnceLock::new();
    if FOUND.get().is_some() {
        return Ok(());
    }
    let certificates = rustls_native_certs::load_native_certs().certs;
    let (usable, _) = rustls::RootCertStore::empty().add_parsable_certificates(certificates);
    if usable == 0 {
        return Err(invalid(NO_ROOTS));
    }
    let _ = FOUND.set(());
    Ok(())
}

fn invalid(detail: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOption, detail)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_table_has_a_name_or_an_arn() {
        for name in ["abc", "waxseal-keys", "arn:aws:dynamodb:eu-west-1:111122223333:table/keys"] {
            check_table(name).unwrap();
        }
        let long = "a".repeat(256);
        for name in ["", "ab", "a b c", "keys/x", "arn:aws:s3:::bucket", &long] {
            let error = check_table(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption, "{name}");
            assert!(error.to_string().contains("table"), "{error}");
        }
    }

    #[test]
    fn a_uri_says_what_the_builder_says() {
        let uri = "dynamodb:arn:aws:dynamodb:eu-west-1:111122223333:table/keys?region=eu-west-1\
                   &endpoint-url=http://127.0.0.1:1&timeout=3s";
        let builder = of_uri(uri).unwrap();
        assert_eq!(builder.table, "arn:aws:dynamodb:eu-west-1:111122223333:table/keys");
        assert_eq!(builder.region.as_deref(), Some("eu-west-1"));
        assert_eq!(builder.endpoint_url.as_deref(), Some("http://127.0.0.1:1"));
        assert_eq!(builder.timeout, Some(Duration::from_secs(3)));
        for (uri, part) in [
            ("dynamo:keys", "does not begin with `dynamodb:`"),
            ("dynamodb:keys?regoin=x", "did you mean `region`?"),
            ("dynamodb:keys?endpoint-url=http://u:hunter2@host", "must not contain a user"),
        ] {
            let error = of_uri(uri).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_client_s_own_timeouts_are_kept_and_otherwise_there_are_some() {
        let second = Duration::from_secs(1);
        let of = |timeouts: &TimeoutConfig| {
            (timeouts.operation_timeout(), timeouts.operation_attempt_timeout())
        };
        assert_eq!(of(&timeouts(None, None)), (Some(TIMEOUT), Some(TIMEOUT / TRIES)));
        let own = TimeoutConfig::builder()
            .operation_timeout(second)
            .operation_attempt_timeout(second / 2)
            .connect_timeout(second / 4)
            .build();
        assert_eq!(timeouts(Some(&own), None), own);
        let set = timeouts(Some(&own), Some(second * 6));
        assert_eq!(of(&set), (Some(second * 6), Some(second * 2)));
        assert_eq!(set.connect_timeout(), Some(second / 4));
    }
}
