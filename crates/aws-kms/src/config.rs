//! The configuration of an [`AwsKmsKek`] as data.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::builder::AwsKmsKekBuilder;
use crate::health_check::HealthCheck;
use crate::provider::AwsKmsKek;
use waxseal::kek::toolkit::uri::{Uri, UriWriter, encode, without_user};
use waxseal::{EncryptionContext, Error, ErrorKind};

const PREFIX: &str = "aws-kms://";
const PARAMETERS: [&str; 15] = [
    "region",
    "endpoint-url",
    "endpoint",
    "fips",
    "dual-stack",
    "related-keys",
    "former-keys",
    "external-key-store",
    "external-former-keys",
    "health-check",
    "health-context",
    "key-max-age",
    "partition",
    "accounts",
    "regions",
];

/// The configuration of an [`AwsKmsKek`] as data. It names the key, never a credential. Credentials
/// come from the AWS SDK's default sources, or from a [client](AwsKmsKekBuilder::client) that code
/// adds to the builder.
///
/// It can be read from a file (feature `serde`; the fields are named like the methods) and from a
/// URI, `aws-kms://ARN?name=value&…` (the parameters are named like the methods, with `-` in place
/// of `_`):
///
/// ```
/// use waxseal_aws_kms::{AwsKmsKek, Config};
///
/// let key = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
/// let config: Config = format!("aws-kms://{key}?fips=true").parse()?;
/// assert_eq!(config, Config::new(key).fips(true));
///
/// let builder = AwsKmsKek::from_config(&config);
/// # Ok::<(), waxseal::Error>(())
/// ```
///
/// An alias or an id may replace the ARN (`aws-kms://alias/orders?region=eu-west-1`). Items of a
/// list are separated by commas (`regions=eu-west-1,eu-west-2`), a store and a key in it by a slash
/// (`external-former-keys=cks-1234567890abcdef0/ARN`), the name and the value of a pair by an
/// equals sign (`health-context=purpose=health`). `endpoint` is short for `endpoint-url`. Discovery
/// has no key: `aws-kms://?partition=aws&accounts=111122223333&regions=eu-west-1`.
///
/// Values that are out of range or contradict each other are refused when the provider is
/// [built](AwsKmsKekBuilder::build).
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "Fields", into = "Fields")
)]
pub struct Config(Fields);

/// The fields in a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
struct Fields {
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    key: Option<String>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    region: Option<String>,
    #[cfg_attr(
        feature = "serde",
        serde(alias = "endpoint", skip_serializing_if = "Option::is_none")
    )]
    endpoint_url: Option<String>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    fips: Option<bool>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    dual_stack: Option<bool>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    related_keys: Option<bool>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    former_keys: Vec<String>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    external_key_store: Option<String>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    health_check: Option<HealthCheck>,
    #[cfg_attr(
        feature = "serde",
        serde(skip_serializing_if = "Option::is_none", with = "waxseal::kek::toolkit::duration")
    )]
    key_max_age: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    partition: Option<String>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    accounts: Vec<String>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    regions: Vec<String>,
    // Tables come last in TOML.
    /// By store.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "BTreeMap::is_empty"))]
    external_former_keys: BTreeMap<String, Vec<String>>,
    #[cfg_attr(
        feature = "serde",
        serde(
            skip_serializing_if = "EncryptionContext::is_empty",
            with = "waxseal::kek::toolkit::pairs"
        )
    )]
    health_context: EncryptionContext,
}

impl Config {
    /// Configures a provider for a key: its ARN, its id, or an alias. See [`AwsKmsKek::builder`].
    pub fn new(key: impl Into<String>) -> Self {
        Self(Fields { key: Some(key.into()), ..Fields::default() })
    }

    /// Configures a provider that reads by the key that a message names. See
    /// [`AwsKmsKek::discover`].
    pub fn discover<S: Into<String>>(
        partition: impl Into<String>,
        accounts: impl IntoIterator<Item = S>,
    ) -> Self {
        let accounts = accounts.into_iter().map(Into::into).collect();
        Self(Fields { partition: Some(partition.into()), accounts, ..Fields::default() })
    }

    /// Sets the Region. See [`AwsKmsKekBuilder::region`].
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.0.region = Some(region.into());
        self
    }

    /// Sets the endpoint. See [`AwsKmsKekBuilder::endpoint_url`], which says when it is needed. A
    /// user and a password in it are not kept, and make the build fail.
    ///
    /// In a file it is `endpoint_url`, or `endpoint` for short. Set it in a file only if it is the
    /// same wherever the file is used. For values that differ between machines, such as a stand-in
    /// on a developer's machine, use the variable `AWS_ENDPOINT_URL_KMS`.
    #[must_use]
    pub fn endpoint_url(mut self, url: impl AsRef<str>) -> Self {
        self.0.endpoint_url = Some(without_user(url.as_ref()).0);
        self
    }

    /// Sets whether the FIPS endpoint is called. See [`AwsKmsKekBuilder::fips`].
    #[must_use]
    pub fn fips(mut self, fips: bool) -> Self {
        self.0.fips = Some(fips);
        self
    }

    /// Sets whether the endpoint with IPv4 and IPv6 is called. See
    /// [`AwsKmsKekBuilder::dual_stack`].
    #[must_use]
    pub fn dual_stack(mut self, dual_stack: bool) -> Self {
        self.0.dual_stack = Some(dual_stack);
        self
    }

    /// Sets whether related multi-Region keys are recognised. See
    /// [`AwsKmsKekBuilder::related_keys`].
    #[must_use]
    pub fn related_keys(mut self, related_keys: bool) -> Self {
        self.0.related_keys = Some(related_keys);
        self
    }

    /// Sets the former keys. See [`AwsKmsKekBuilder::former_keys`].
    #[must_use]
    pub fn former_keys<S: Into<String>>(mut self, arns: impl IntoIterator<Item = S>) -> Self {
        self.0.former_keys = arns.into_iter().map(Into::into).collect();
        self
    }

    /// Adds former keys in an external key store. See [`AwsKmsKekBuilder::external_former_keys`].
    #[must_use]
    pub fn external_former_keys<S: Into<String>>(
        mut self,
        store: impl Into<String>,
        arns: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut arns = arns.into_iter().map(Into::into).peekable();
        if arns.peek().is_some() {
            self.0.external_former_keys.entry(store.into()).or_default().extend(arns);
        }
        self
    }

    /// Sets the external key store that holds the key. See
    /// [`AwsKmsKekBuilder::external_key_store`].
    #[must_use]
    pub fn external_key_store(mut self, id: impl Into<String>) -> Self {
        self.0.external_key_store = Some(id.into());
        self
    }

    /// Sets what a health check does. See [`AwsKmsKekBuilder::health_check`].
    #[must_use]
    pub fn health_check(mut self, check: HealthCheck) -> Self {
        self.0.health_check = Some(check);
        self
    }

    /// Sets the encryption context of a health check. See [`AwsKmsKekBuilder::health_context`].
    #[must_use]
    pub fn health_context(mut self, context: EncryptionContext) -> Self {
        self.0.health_context = context;
        self
    }

    /// Sets how long the key's description is used. See [`AwsKmsKekBuilder::key_max_age`].
    #[must_use]
    pub fn key_max_age(mut self, age: Duration) -> Self {
        self.0.key_max_age = Some(age);
        self
    }

    /// Sets the Regions of [discovery](Self::discover). See [`AwsKmsKekBuilder::regions`].
    #[must_use]
    pub fn regions<S: Into<String>>(mut self, regions: impl IntoIterator<Item = S>) -> Self {
        self.0.regions = regions.into_iter().map(Into::into).collect();
        self
    }

    /// Returns the key as configured; `None` for discovery.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// Whether the health check uses the key.
    pub(crate) fn checks_by_use(&self) -> bool {
        self.0.health_check.is_some_and(|check| check != HealthCheck::Describe)
    }

    /// Returns the ARNs of keys that only unwrap.
    pub(crate) fn earlier_keys(&self) -> impl Iterator<Item = &str> {
        let external = self.0.external_former_keys.values();
        self.0.former_keys.iter().chain(external.flatten()).map(String::as_str)
    }

    fn checked(fields: Fields) -> Result<Self, Error> {
        let invalid = |detail: &'static str| Err(Error::new(ErrorKind::InvalidOption, detail));
        match (&fields.key, &fields.partition, fields.accounts.is_empty()) {
            (Some(_), None, true) | (None, Some(_), false) => {}
            (None, None, true) => {
                return invalid("key: it is missing, and so is accounts, for discovery");
            }
            (None, ..) => return invalid("discovery: needs partition and accounts"),
            (Some(_), ..) => {
                return invalid(
                    "key: not together with partition and accounts, which are for discovery",
                );
            }
        }
        if fields.endpoint_url.as_deref().is_some_and(|url| without_user(url).1) {
            return invalid("endpoint_url: must not contain a user or a password");
        }
        Ok(Self(fields))
    }
}

impl AwsKmsKek {
    /// Makes the KEK of a [`Config`] URI. In a configuration of data domains it is the scheme
    /// `aws-kms` of [`Schemes::kek`](waxseal::domain::Schemes::kek).
    ///
    /// # Errors
    /// Those of [`Config`]'s URI and of [`build`](AwsKmsKekBuilder::build).
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        Self::from_config(&uri.parse()?).build().await
    }

    /// Starts a builder with the options of `config`. Options set on the builder replace them. Only
    /// the builder accepts a [client](AwsKmsKekBuilder::client), an SDK configuration, grant tokens
    /// and a shared budget.
    pub fn from_config(config: &Config) -> AwsKmsKekBuilder {
        let fields = config.0.clone();
        let mut builder = match fields.key {
            Some(key) => Self::builder(key),
            None => Self::discover(fields.partition.unwrap_or_default(), fields.accounts),
        };
        builder = builder.former_keys(fields.former_keys).regions(fields.regions);
        builder = builder.health_context(fields.health_context);
        for (store, arns) in fields.external_former_keys {
            builder = builder.external_former_keys(store, arns);
        }
        if let Some(region) = fields.region {
            builder = builder.region(region);
        }
        if let Some(url) = fields.endpoint_url {
            builder = builder.endpoint_url(url);
        }
        if let Some(fips) = fields.fips {
            builder = builder.fips(fips);
        }
        if let Some(dual_stack) = fields.dual_stack {
            builder = builder.dual_stack(dual_stack);
        }
        if let Some(related_keys) = fields.related_keys {
            builder = builder.related_keys(related_keys);
        }
        if let Some(store) = fields.external_key_store {
            builder = builder.external_key_store(store);
        }
        if let Some(check) = fields.health_check {
            builder = builder.health_check(check);
        }
        if let Some(age) = fields.key_max_age {
            builder = builder.key_max_age(age);
        }
        builder
    }
}

impl FromStr for Config {
    type Err = Error;

    /// Reads the URI.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the part that is wrong without showing a value.
    fn from_str(text: &str) -> Result<Self, Error> {
        let uri = Uri::read(text, PREFIX, &PARAMETERS)?;
        if uri.place().contains('@') {
            return Err(uri.error("there must be no user or password before the key"));
        }
        let key = Some(uri.decode("the key", uri.place())?).filter(|key| !key.is_empty());
        if key.as_deref().is_some_and(|key| !is_key(key)) {
            return Err(uri.error("the key is neither an ARN, an id, nor an alias"));
        }
        if uri.has("endpoint") && uri.has("endpoint-url") {
            return Err(uri.error("parameters `endpoint` and `endpoint-url` are the same"));
        }
        let endpoint_url = uri.text("endpoint-url")?.or(uri.text("endpoint")?);
        let mut external_former_keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (store, arn) in uri.pairs("external-former-keys", '/')? {
            external_former_keys.entry(store).or_default().push(arn);
        }
        let fields = Fields {
            key,
            region: uri.text("region")?,
            endpoint_url,
            fips: uri.flag("fips")?,
            dual_stack: uri.flag("dual-stack")?,
            related_keys: uri.flag("related-keys")?,
            former_keys: uri.list("former-keys")?,
            external_key_store: uri.text("external-key-store")?,
            health_check: uri.one_of("health-check", &HealthCheck::ALL, HealthCheck::as_str)?,
            key_max_age: uri.duration("key-max-age")?,
            partition: uri.text("partition")?,
            accounts: uri.list("accounts")?,
            regions: uri.list("regions")?,
            external_former_keys,
            health_context: EncryptionContext::new(uri.pairs("health-context", '=')?)?,
        };
        Self::checked(fields)
    }
}

/// Whether this can be the ARN of a key or of an alias, an id, or an alias.
fn is_key(key: &str) -> bool {
    !key.starts_with('/')
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_:/".contains(&byte))
}

/// Writes the URI.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = &self.0;
        let mut uri = UriWriter::new(PREFIX, &encode(fields.key.as_deref().unwrap_or_default()));
        uri.text("partition", fields.partition.as_deref());
        uri.list("accounts", fields.accounts.iter().map(String::as_str));
        uri.list("regions", fields.regions.iter().map(String::as_str));
        uri.text("region", fields.region.as_deref());
        uri.text("endpoint-url", fields.endpoint_url.as_deref());
        uri.flag("fips", fields.fips);
        uri.flag("dual-stack", fields.dual_stack);
        uri.flag("related-keys", fields.related_keys);
        uri.list("former-keys", fields.former_keys.iter().map(String::as_str));
        uri.text("external-key-store", fields.external_key_store.as_deref());
        let stores = fields.external_former_keys.iter();
        let external =
            stores.flat_map(|(store, arns)| arns.iter().map(|arn| (store.as_str(), arn.as_str())));
        uri.pairs("external-former-keys", '/', external);
        uri.text("health-check", fields.health_check.map(HealthCheck::as_str));
        uri.pairs("health-context", '=', fields.health_context.iter());
        uri.duration("key-max-age", fields.key_max_age);
        f.write_str(&uri.finish())
    }
}

#[cfg(feature = "serde")]
impl TryFrom<Fields> for Config {
    type Error = Error;

    fn try_from(fields: Fields) -> Result<Self, Error> {
        Self::checked(fields)
    }
}

#[cfg(feature = "serde")]
impl From<Config> for Fields {
    fn from(config: Config) -> Self {
        config.0
    }
}
