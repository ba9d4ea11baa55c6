//! The configuration of a [`GoogleKmsKek`] as data.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::builder::GoogleKmsKekBuilder;
use crate::format::KeyName;
use crate::health_check::HealthCheck;
use crate::provider::GoogleKmsKek;
use waxseal::kek::toolkit::uri::{Uri, UriWriter, encode, without_user};
use waxseal::{EncryptionContext, Error, ErrorKind};

const PREFIX: &str = "google-kms://";
const PARAMETERS: [&str; 9] = [
    "credentials-file",
    "metadata-server",
    "metadata-server-at",
    "quota-project",
    "endpoint",
    "external-key-manager",
    "former-keys",
    "health-check",
    "health-context",
];

/// The configuration of a [`GoogleKmsKek`] as data. It names the key, never a credential.
/// Credentials come from the default sources of Google's libraries, from a file named here, or from
/// code that adds [credentials](GoogleKmsKekBuilder::credentials) to the builder.
///
/// It can be read from a file (feature `serde`; the fields are named like the methods) and from a
/// URI, `google-kms://NAME?name=value&…` (the parameters are named like the methods, with `-` in
/// place of `_`):
///
/// ```
/// use waxseal_google_kms::{Config, GoogleKmsKek};
///
/// let key = "projects/orders-prod/locations/europe-west1/keyRings/services/cryptoKeys/orders";
/// let config: Config = format!("google-kms://{key}?metadata-server=true").parse()?;
/// assert_eq!(config, Config::new(key).metadata_server(true));
///
/// let builder = GoogleKmsKek::from_config(&config);
/// # Ok::<(), waxseal::Error>(())
/// ```
///
/// Items of a list are separated by commas (`former-keys=NAME,NAME`), the name and the value of a
/// pair by an equals sign (`health-context=purpose=health`).
///
/// Values that are out of range or contradict each other are refused when the provider is
/// [built](GoogleKmsKekBuilder::build).
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
    key: String,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    credentials_file: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    metadata_server: Option<bool>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    metadata_server_at: Option<String>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    quota_project: Option<String>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    endpoint: Option<String>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    external_key_manager: Option<bool>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    former_keys: Vec<String>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    health_check: Option<HealthCheck>,
    // Tables come last in TOML.
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
    /// Configures a provider for a key, by its resource name. See [`GoogleKmsKek::builder`].
    pub fn new(key: impl Into<String>) -> Self {
        Self(Fields { key: key.into(), ..Fields::default() })
    }

    /// Sets the file of credentials. See [`GoogleKmsKekBuilder::credentials_file`].
    #[must_use]
    pub fn credentials_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.credentials_file = Some(path.into());
        self
    }

    /// Sets whether tokens come from the metadata server only. See
    /// [`GoogleKmsKekBuilder::metadata_server`].
    #[must_use]
    pub fn metadata_server(mut self, only: bool) -> Self {
        self.0.metadata_server = Some(only);
        self
    }

    /// Sets the URL of the metadata server. See [`GoogleKmsKekBuilder::metadata_server_at`]. A user
    /// and a password in it are not kept, and make the build fail.
    #[must_use]
    pub fn metadata_server_at(mut self, url: impl AsRef<str>) -> Self {
        self.0.metadata_server_at = Some(without_user(url.as_ref()).0);
        self
    }

    /// Sets the project for quotas. See [`GoogleKmsKekBuilder::quota_project`].
    #[must_use]
    pub fn quota_project(mut self, project: impl Into<String>) -> Self {
        self.0.quota_project = Some(project.into());
        self
    }

    /// Sets the endpoint. See [`GoogleKmsKekBuilder::endpoint`]. A user and a password in it are
    /// not kept, and make the build fail.
    #[must_use]
    pub fn endpoint(mut self, url: impl AsRef<str>) -> Self {
        self.0.endpoint = Some(without_user(url.as_ref()).0);
        self
    }

    /// Sets whether the key is in an external key manager. See
    /// [`GoogleKmsKekBuilder::external_key_manager`].
    #[must_use]
    pub fn external_key_manager(mut self, is_external: bool) -> Self {
        self.0.external_key_manager = Some(is_external);
        self
    }

    /// Sets the former keys. See [`GoogleKmsKekBuilder::former_keys`].
    #[must_use]
    pub fn former_keys<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.0.former_keys = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets what a health check does. See [`GoogleKmsKekBuilder::health_check`].
    #[must_use]
    pub fn health_check(mut self, check: HealthCheck) -> Self {
        self.0.health_check = Some(check);
        self
    }

    /// Sets the encryption context of a health check. See
    /// [`GoogleKmsKekBuilder::health_context`].
    #[must_use]
    pub fn health_context(mut self, context: EncryptionContext) -> Self {
        self.0.health_context = context;
        self
    }

    /// Returns the key's resource name.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// Returns the names of keys that only unwrap.
    pub(crate) fn former(&self) -> impl Iterator<Item = &str> {
        self.0.former_keys.iter().map(String::as_str)
    }

    fn checked(fields: Fields) -> Result<Self, Error> {
        let invalid = |detail: &'static str| Err(Error::new(ErrorKind::InvalidOption, detail));
        if fields.key.is_empty() {
            return invalid("key: it is missing");
        }
        let sources = [
            fields.credentials_file.is_some(),
            fields.metadata_server == Some(true),
            fields.metadata_server_at.is_some(),
        ];
        if sources.into_iter().filter(|is_set| *is_set).count() > 1 {
            return invalid(
                "credentials_file, metadata_server and metadata_server_at: only one of them",
            );
        }
        let has_user = |url: &Option<String>| url.as_deref().is_some_and(|url| without_user(url).1);
        if has_user(&fields.endpoint) {
            return invalid("endpoint: must not contain a user or a password");
        }
        if has_user(&fields.metadata_server_at) {
            return invalid("metadata_server_at: must not contain a user or a password");
        }
        Ok(Self(fields))
    }
}

impl GoogleKmsKek {
    /// Makes the KEK of a [`Config`] URI. In a configuration of data domains it is the scheme
    /// `google-kms` of [`Schemes::kek`](waxseal::domain::Schemes::kek).
    ///
    /// # Errors
    /// Those of [`Config`]'s URI and of [`build`](GoogleKmsKekBuilder::build).
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        Self::from_config(&uri.parse()?).build().await
    }

    /// Starts a builder with the options of `config`. Options set on the builder replace them. Only
    /// the builder accepts [credentials](GoogleKmsKekBuilder::credentials) and a call budget.
    pub fn from_config(config: &Config) -> GoogleKmsKekBuilder {
        let fields = config.0.clone();
        let mut builder = Self::builder(fields.key)
            .former_keys(fields.former_keys)
            .health_context(fields.health_context);
        if let Some(path) = fields.credentials_file {
            builder = builder.credentials_file(path);
        }
        if fields.metadata_server == Some(true) {
            builder = builder.metadata_server();
        }
        if let Some(url) = fields.metadata_server_at {
            builder = builder.metadata_server_at(url);
        }
        if let Some(project) = fields.quota_project {
            builder = builder.quota_project(project);
        }
        if let Some(url) = fields.endpoint {
            builder = builder.endpoint(url);
        }
        if let Some(is_external) = fields.external_key_manager {
            builder = builder.external_key_manager(is_external);
        }
        if let Some(check) = fields.health_check {
            builder = builder.health_check(check);
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
        let key = uri.decode("the key", uri.place())?;
        if KeyName::read(&key).is_none() {
            return Err(uri.error(
                "the key is not projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY",
            ));
        }
        let fields = Fields {
            key,
            credentials_file: uri.path("credentials-file")?,
            metadata_server: uri.flag("metadata-server")?,
            metadata_server_at: uri.text("metadata-server-at")?,
            quota_project: uri.text("quota-project")?,
            endpoint: uri.text("endpoint")?,
            external_key_manager: uri.flag("external-key-manager")?,
            former_keys: uri.list("former-keys")?,
            health_check: uri.one_of("health-check", &HealthCheck::ALL, HealthCheck::as_str)?,
            health_context: EncryptionContext::new(uri.pairs("health-context", '=')?)?,
        };
        Self::checked(fields)
    }
}

/// Writes the URI.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = &self.0;
        let mut uri = UriWriter::new(PREFIX, &encode(&fields.key));
        uri.path("credentials-file", fields.credentials_file.as_deref().map(Path::new));
        uri.flag("metadata-server", fields.metadata_server);
        uri.text("metadata-server-at", fields.metadata_server_at.as_deref());
        uri.text("quota-project", fields.quota_project.as_deref());
        uri.text("endpoint", fields.endpoint.as_deref());
        uri.flag("external-key-manager", fields.external_key_manager);
        uri.list("former-keys", fields.former_keys.iter().map(String::as_str));
        uri.text("health-check", fields.health_check.map(HealthCheck::as_str));
        uri.pairs("health-context", '=', fields.health_context.iter());
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
