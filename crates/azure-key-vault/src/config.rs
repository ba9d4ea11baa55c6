//! The configuration of an [`AzureKeyVaultKek`] as data.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use waxseal::Error;
use waxseal::kek::toolkit::uri::{Uri, UriWriter, encode};

use crate::algorithm::Algorithm;
use crate::builder::AzureKeyVaultKekBuilder;
use crate::credentials::Credential;
use crate::health::HealthCheck;
use crate::provider::AzureKeyVaultKek;

const PREFIX: &str = "azure-key-vault://";
const PARAMETERS: [&str; 13] = [
    "algorithm",
    "former-keys",
    "credential",
    "tenant-id",
    "client-id",
    "token-file",
    "secret-file",
    "certificate-file",
    "authority-host",
    "address",
    "ca-file",
    "key-max-age",
    "health-check",
];

/// The configuration of an [`AzureKeyVaultKek`] as data. It names the key and where to find a
/// credential, never the credential.
///
/// It can be read from a file (feature `serde`; the fields are named like the methods) and from a
/// URI, `azure-key-vault://VAULT/KEY?name=value&…` (the parameters are named like the methods, with
/// `-` instead of `_`):
///
/// ```
/// use waxseal_azure_key_vault::{AzureKeyVaultKek, Config, Credential};
///
/// let config: Config =
///     "azure-key-vault://orders.managedhsm.azure.net/cards?credential=managed-identity".parse()?;
/// let same = Config::new("orders.managedhsm.azure.net", "cards")
///     .credential(Credential::ManagedIdentity { client_id: None });
/// assert_eq!(config, same);
///
/// let builder = AzureKeyVaultKek::from_config(&config);
/// # Ok::<(), waxseal::Error>(())
/// ```
///
/// Items of a list are separated by commas (`former-keys=ID,ID`).
///
/// `credential` is `environment`, `managed-identity`, `workload-identity`, `client-secret` or
/// `client-certificate`, with the parameters `tenant-id`, `client-id`, `token-file`, `secret-file`
/// and `certificate-file`.
///
/// Values that are out of range or contradict each other are refused when the provider is
/// [built](AzureKeyVaultKekBuilder::build).
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct Config {
    vault: String,
    key: String,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    algorithm: Option<Algorithm>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Vec::is_empty"))]
    former_keys: Vec<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    authority_host: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    address: Option<SocketAddr>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    ca_file: Option<PathBuf>,
    #[cfg_attr(
        feature = "serde",
        serde(
            default,
            skip_serializing_if = "Option::is_none",
            with = "waxseal::kek::toolkit::duration"
        )
    )]
    key_max_age: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    health_check: Option<HealthCheck>,
    // Tables come last in TOML.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    credential: Option<Credential>,
}

impl Config {
    /// Starts with the vault (a name, a host or a URL) and the name of the key.
    pub fn new(vault: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            vault: vault.into(),
            key: key.into(),
            algorithm: None,
            former_keys: Vec::new(),
            authority_host: None,
            address: None,
            ca_file: None,
            key_max_age: None,
            health_check: None,
            credential: None,
        }
    }

    /// See [`AzureKeyVaultKekBuilder::algorithm`].
    #[must_use]
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = Some(algorithm);
        self
    }

    /// See [`AzureKeyVaultKekBuilder::former_keys`].
    #[must_use]
    pub fn former_keys<S: Into<String>>(mut self, ids: impl IntoIterator<Item = S>) -> Self {
        self.former_keys = ids.into_iter().map(Into::into).collect();
        self
    }

    /// See [`AzureKeyVaultKekBuilder::credential`].
    #[must_use]
    pub fn credential(mut self, credential: Credential) -> Self {
        self.credential = Some(credential);
        self
    }

    /// See [`AzureKeyVaultKekBuilder::authority_host`].
    #[must_use]
    pub fn authority_host(mut self, url: impl Into<String>) -> Self {
        self.authority_host = Some(url.into());
        self
    }

    /// See [`AzureKeyVaultKekBuilder::address`].
    #[must_use]
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// See [`AzureKeyVaultKekBuilder::ca_file`].
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// See [`AzureKeyVaultKekBuilder::key_max_age`].
    #[must_use]
    pub fn key_max_age(mut self, age: Duration) -> Self {
        self.key_max_age = Some(age);
        self
    }

    /// See [`AzureKeyVaultKekBuilder::health_check`].
    #[must_use]
    pub fn health_check(mut self, check: HealthCheck) -> Self {
        self.health_check = Some(check);
        self
    }
}

impl Config {
    pub(crate) fn key_parts(&self) -> (&str, &str, Option<Algorithm>) {
        (&self.vault, &self.key, self.algorithm)
    }

    pub(crate) fn former(&self) -> impl Iterator<Item = &str> {
        self.former_keys.iter().map(String::as_str)
    }
}

impl AzureKeyVaultKek {
    /// Makes the KEK of a [`Config`] URI. In a configuration of data domains it is the scheme
    /// `azure-key-vault` of [`Schemes::kek`](waxseal::domain::Schemes::kek).
    ///
    /// # Errors
    /// Those of [`Config`]'s URI and of [`build`](AzureKeyVaultKekBuilder::build).
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        Self::from_config(&uri.parse()?).build()
    }

    /// Starts the configuration with the options of `config`. Methods of the builder override parts
    /// of it.
    pub fn from_config(config: &Config) -> AzureKeyVaultKekBuilder {
        let Config {
            vault,
            key,
            algorithm,
            former_keys,
            authority_host,
            address,
            ca_file,
            key_max_age,
            health_check,
            credential,
        } = config.clone();
        let mut builder = AzureKeyVaultKek::builder(vault, key).former_keys(former_keys);
        if let Some(algorithm) = algorithm {
            builder = builder.algorithm(algorithm);
        }
        if let Some(credential) = credential {
            builder = builder.credential(credential);
        }
        if let Some(url) = authority_host {
            builder = builder.authority_host(url);
        }
        if let Some(address) = address {
            builder = builder.address(address);
        }
        if let Some(path) = ca_file {
            builder = builder.ca_file(path);
        }
        if let Some(age) = key_max_age {
            builder = builder.key_max_age(age);
        }
        if let Some(check) = health_check {
            builder = builder.health_check(check);
        }
        builder
    }
}

impl FromStr for Config {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let uri = Uri::read(text, PREFIX, &PARAMETERS)?;
        let (vault, key) = uri
            .place()
            .split_once('/')
            .filter(|(vault, key)| !vault.is_empty() && !key.is_empty() && !key.contains('/'))
            .ok_or_else(|| uri.error("what follows is VAULT/KEY"))?;
        let mut config = Self::new(uri.decode("vault", vault)?, uri.decode("key", key)?);
        if config.vault.contains('@') {
            return Err(uri.error("there must be no user or password before the vault"));
        }
        config.algorithm = uri.one_of("algorithm", &Algorithm::ALL, Algorithm::as_str)?;
        config.health_check = uri.one_of("health-check", &HealthCheck::ALL, HealthCheck::as_str)?;
        if let Some(address) = uri.text("address")? {
            let address = address
                .parse()
                .map_err(|_| uri.error("parameter `address` is not an address and a port"))?;
            config.address = Some(address);
        }
        config.former_keys = uri.list("former-keys")?;
        config.authority_host = uri.text("authority-host")?;
        if config.authority_host.as_ref().is_some_and(|url| url.contains('@')) {
            return Err(
                uri.error("parameter `authority-host` must not contain a user or a password")
            );
        }
        config.ca_file = uri.path("ca-file")?;
        config.key_max_age = uri.duration("key-max-age")?;
        config.credential = credential(&uri)?;
        Ok(config)
    }
}

fn credential(uri: &Uri<'_>) -> Result<Option<Credential>, Error> {
    const PARTS: [&str; 5] =
        ["tenant-id", "client-id", "token-file", "secret-file", "certificate-file"];
    let kind = uri.text("credential")?;
    let allowed: &[&str] = match kind.as_deref() {
        None | Some("environment") => &[],
        Some("managed-identity") => &["client-id"],
        Some("workload-identity") => &["tenant-id", "client-id", "token-file"],
        Some("client-secret") => &["tenant-id", "client-id", "secret-file"],
        Some("client-certificate") => &["tenant-id", "client-id", "certificate-file"],
        Some(_) => {
            return Err(uri.error(
                "parameter `credential` is not one of environment, managed-identity, \
                 workload-identity, client-secret, client-certificate",
            ));
        }
    };
    for name in PARTS {
        if uri.has(name) && !allowed.contains(&name) {
            return Err(uri.error(format!("parameter `{name}` does not belong to this credential")));
        }
    }
    let (tenant_id, client_id) = (uri.text("tenant-id")?, uri.text("client-id")?);
    let need = |name: &str| uri.error(format!("parameter `{name}` is missing"));
    Ok(Some(match kind.as_deref() {
        None => return Ok(None),
        Some("environment") => Credential::Environment,
        Some("managed-identity") => Credential::ManagedIdentity { client_id },
        Some("workload-identity") => Credential::WorkloadIdentity {
            tenant_id,
            client_id,
            token_file: uri.path("token-file")?,
        },
        Some(kind) => {
            let tenant_id = tenant_id.ok_or_else(|| need("tenant-id"))?;
            let client_id = client_id.ok_or_else(|| need("client-id"))?;
            let file = |name: &str| uri.path(name)?.ok_or_else(|| need(name));
            if kind == "client-secret" {
                let secret_file = file("secret-file")?;
                Credential::ClientSecret { tenant_id, client_id, secret_file }
            } else {
                let certificate_file = file("certificate-file")?;
                Credential::ClientCertificate { tenant_id, client_id, certificate_file }
            }
        }
    }))
}

/// Writes a URI that reads back the same.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut uri =
            UriWriter::new(PREFIX, &format!("{}/{}", encode(&self.vault), encode(&self.key)));
        uri.text("algorithm", self.algorithm.map(Algorithm::as_str));
        uri.list("former-keys", self.former_keys.iter().map(String::as_str));
        if let Some(credential) = &self.credential {
            write_credential(&mut uri, credential);
        }
        uri.text("authority-host", self.authority_host.as_deref());
        uri.text("address", self.address.map(|address| address.to_string()).as_deref());
        uri.path("ca-file", self.ca_file.as_deref());
        uri.duration("key-max-age", self.key_max_age);
        uri.text("health-check", self.health_check.map(HealthCheck::as_str));
        f.write_str(&uri.finish())
    }
}

fn write_credential(uri: &mut UriWriter, credential: &Credential) {
    let mut write =
        |kind: &str, tenant: Option<&str>, client: Option<&str>, file: Option<(&str, &Path)>| {
            uri.text("credential", Some(kind));
            uri.text("tenant-id", tenant);
            uri.text("client-id", client);
            if let Some((name, path)) = file {
                uri.path(name, Some(path));
            }
        };
    match credential {
        Credential::Environment => write("environment", None, None, None),
        Credential::ManagedIdentity { client_id } => {
            write("managed-identity", None, client_id.as_deref(), None);
        }
        Credential::WorkloadIdentity { tenant_id, client_id, token_file } => write(
            "workload-identity",
            tenant_id.as_deref(),
            client_id.as_deref(),
            token_file.as_deref().map(|path| ("token-file", path)),
        ),
        Credential::ClientSecret { tenant_id, client_id, secret_file } => write(
            "client-secret",
            Some(tenant_id),
            Some(client_id),
            Some(("secret-file", secret_file)),
        ),
        Credential::ClientCertificate { tenant_id, client_id, certificate_file } => write(
            "client-certificate",
            Some(tenant_id),
            Some(client_id),
            Some(("certificate-file", certificate_file)),
        ),
    }
}
