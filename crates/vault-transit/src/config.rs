//! The configuration of a [`VaultTransitKek`] as data.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::auth_config::AuthConfig;
use crate::builder::VaultTransitKekBuilder;
use crate::key::ContextBinding;
use crate::provider::VaultTransitKek;
use waxseal::kek::toolkit::uri::{Uri, UriWriter, encode, encode_segment, without_user};
use waxseal::{Error, ErrorKind};

const PREFIX: &str = "vault-transit://";
const PARAMETERS: [&str; 25] = [
    "cluster",
    "address",
    "namespace",
    "ca-file",
    "ca-directory",
    "client-certificate",
    "client-key-file",
    "server-name",
    "proxy",
    "connect-timeout",
    "timeout",
    "allow-plain-http",
    "binding",
    "key-max-age",
    "auth",
    "auth-mount",
    "role",
    "role-id",
    "role-id-file",
    "secret-id-file",
    "wrapped-secret-id-file",
    "token-file",
    "jwt-file",
    "aws-region",
    "aws-server-id",
];

/// The configuration of a [`VaultTransitKek`] as data. It says where a token or a secret id is,
/// never the secret itself.
///
/// It can be read from a file (feature `serde`; the fields are named like the methods) and from a
/// URI, `vault-transit://HOST[:PORT]/MOUNT/KEY?cluster=NAME&…` (the parameters are named like the
/// methods, with `-` instead of `_`):
///
/// ```
/// use waxseal_vault_transit::{AuthConfig, Config, VaultTransitKek};
///
/// let uri = "vault-transit://vault.example:8200/transit/orders\
///            ?cluster=prod-eu&ca-file=/etc/ssl/vault-ca.pem&auth=kubernetes&role=orders";
/// let config: Config = uri.parse()?;
/// let same = Config::new("prod-eu", "orders")
///     .address("https://vault.example:8200")
///     .ca_file("/etc/ssl/vault-ca.pem")
///     .auth(AuthConfig::kubernetes("orders"));
/// assert_eq!(config, same);
///
/// let builder = VaultTransitKek::from_config(&config);
/// # Ok::<(), waxseal::Error>(())
/// ```
///
/// The last segment of the path is the key, and those before it are the mount. The address is
/// `https://HOST[:PORT]`; another one, of an agent or behind a gateway, is a parameter:
/// `vault-transit:///transit/orders?address=http://127.0.0.1:8100&cluster=…`. `auth` names the
/// login, as [`AuthConfig`] describes; its mount is `auth-mount`.
///
/// Values that are out of range or contradict each other are refused when the provider is
/// [built](VaultTransitKekBuilder::build).
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "Fields", into = "Fields")
)]
pub struct Config(Fields);

/// The fields in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
struct Fields {
    cluster: String,
    #[cfg_attr(feature = "serde", serde(default = "transit"))]
    mount: String,
    key: String,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    address: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    namespace: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    ca_file: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    ca_directory: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    client_certificate: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    client_key_file: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    server_name: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    proxy: Option<String>,
    #[cfg_attr(
        feature = "serde",
        serde(
            default,
            skip_serializing_if = "Option::is_none",
            with = "waxseal::kek::toolkit::duration"
        )
    )]
    connect_timeout: Option<Duration>,
    #[cfg_attr(
        feature = "serde",
        serde(
            default,
            skip_serializing_if = "Option::is_none",
            with = "waxseal::kek::toolkit::duration"
        )
    )]
    timeout: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "is_false"))]
    allow_plain_http: bool,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    binding: Option<ContextBinding>,
    #[cfg_attr(
        feature = "serde",
        serde(
            default,
            skip_serializing_if = "Option::is_none",
            with = "waxseal::kek::toolkit::duration"
        )
    )]
    key_max_age: Option<Duration>,
    // Tables come last in TOML.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    auth: Option<AuthConfig>,
}

fn transit() -> String {
    "transit".to_owned()
}

#[cfg(feature = "serde")]
#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Config {
    /// Configures a provider for the key `key` at the mount `transit` in the cluster that you call
    /// `cluster`. See [`VaultTransitKek::builder`].
    pub fn new(cluster: impl Into<String>, key: impl Into<String>) -> Self {
        Self(Fields {
            cluster: cluster.into(),
            mount: transit(),
            key: key.into(),
            address: None,
            namespace: None,
            ca_file: None,
            ca_directory: None,
            client_certificate: None,
            client_key_file: None,
            server_name: None,
            proxy: None,
            connect_timeout: None,
            timeout: None,
            allow_plain_http: false,
            binding: None,
            key_max_age: None,
            auth: None,
        })
    }

    /// Sets the path of the Transit engine. See [`VaultTransitKekBuilder::mount`].
    #[must_use]
    pub fn mount(mut self, path: impl Into<String>) -> Self {
        self.0.mount = path.into();
        self
    }

    /// Sets the server's URL. See [`VaultTransitKekBuilder::address`]. A user and a password in it
    /// are not kept, and make the build fail.
    #[must_use]
    pub fn address(mut self, url: impl AsRef<str>) -> Self {
        self.0.address = Some(without_user(url.as_ref()).0);
        self
    }

    /// Sets the namespace. See [`VaultTransitKekBuilder::namespace`].
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.0.namespace = Some(namespace.into());
        self
    }

    /// Sets the file with the CAs to trust. See [`VaultTransitKekBuilder::ca_file`].
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        (self.0.ca_file, self.0.ca_directory) = (Some(path.into()), None);
        self
    }

    /// Sets the directory with the CAs to trust. See [`VaultTransitKekBuilder::ca_directory`].
    #[must_use]
    pub fn ca_directory(mut self, path: impl Into<PathBuf>) -> Self {
        (self.0.ca_file, self.0.ca_directory) = (None, Some(path.into()));
        self
    }

    /// Sets the files with the client's certificate chain and its private key: the fields
    /// `client_certificate` and `client_key_file`. See
    /// [`VaultTransitKekBuilder::client_certificate`].
    #[must_use]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key_file: impl Into<PathBuf>,
    ) -> Self {
        (self.0.client_certificate, self.0.client_key_file) =
            (Some(certificate.into()), Some(key_file.into()));
        self
    }

    /// Sets the name in the server's certificate. See [`VaultTransitKekBuilder::server_name`].
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.0.server_name = Some(name.into());
        self
    }

    /// Sets the HTTP proxy. See [`VaultTransitKekBuilder::proxy`]. A user and a password in it are
    /// not kept, and make the build fail: only the builder takes those.
    #[must_use]
    pub fn proxy(mut self, url: impl AsRef<str>) -> Self {
        self.0.proxy = Some(without_user(url.as_ref()).0);
        self
    }

    /// Sets how long connecting may take. See [`VaultTransitKekBuilder::connect_timeout`].
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.0.connect_timeout = Some(timeout);
        self
    }

    /// Sets how long a request may take. See [`VaultTransitKekBuilder::timeout`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.0.timeout = Some(timeout);
        self
    }

    /// Sets whether plain http to another machine is allowed. See
    /// [`VaultTransitKekBuilder::allow_plain_http`]. By default it is not.
    #[must_use]
    pub fn allow_plain_http(mut self, allow: bool) -> Self {
        self.0.allow_plain_http = allow;
        self
    }

    /// Sets how the encryption context binds under a key that is not derived. See
    /// [`VaultTransitKekBuilder::binding`].
    #[must_use]
    pub fn binding(mut self, binding: ContextBinding) -> Self {
        self.0.binding = Some(binding);
        self
    }

    /// Sets how long the description of the key is used. See
    /// [`VaultTransitKekBuilder::key_max_age`].
    #[must_use]
    pub fn key_max_age(mut self, age: Duration) -> Self {
        self.0.key_max_age = Some(age);
        self
    }

    /// Sets the login. See [`VaultTransitKekBuilder::auth`].
    #[must_use]
    pub fn auth(mut self, auth: AuthConfig) -> Self {
        self.0.auth = Some(auth);
        self
    }

    /// Returns the cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.0.cluster
    }

    /// The mount of the engine.
    pub(crate) fn mount_path(&self) -> &str {
        &self.0.mount
    }

    /// Returns the key's name.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0.key
    }

    fn checked(fields: Fields) -> Result<Self, Error> {
        let invalid = |detail: String| Err(Error::new(ErrorKind::InvalidOption, detail));
        for (option, url) in [("address", &fields.address), ("proxy", &fields.proxy)] {
            if url.as_deref().is_some_and(|url| without_user(url).1) {
                return invalid(format!("{option}: must not contain a user or a password"));
            }
        }
        if fields.ca_file.is_some() && fields.ca_directory.is_some() {
            return invalid("ca_file: not together with ca_directory".to_owned());
        }
        if fields.client_certificate.is_some() != fields.client_key_file.is_some() {
            return invalid(
                "client_certificate: needs client_key_file, and the other way round".to_owned(),
            );
        }
        Ok(Self(fields))
    }
}

impl VaultTransitKek {
    /// Makes the KEK of a [`Config`] URI, within a tokio runtime. In a configuration of data
    /// domains it is the scheme `vault-transit` of [`Schemes::kek`](waxseal::domain::Schemes::kek).
    ///
    /// # Errors
    /// Those of [`Config`]'s URI and of [`build`](VaultTransitKekBuilder::build).
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        Self::from_config(&uri.parse()?).build()
    }

    /// Starts a builder with the options of `config`. Options set on the builder replace them.
    pub fn from_config(config: &Config) -> VaultTransitKekBuilder {
        let fields = config.0.clone();
        let mut builder = Self::builder(fields.cluster, fields.key).mount(fields.mount);
        if let Some(url) = fields.address {
            builder = builder.address(url);
        }
        if let Some(namespace) = fields.namespace {
            builder = builder.namespace(namespace);
        }
        if let Some(path) = fields.ca_file {
            builder = builder.ca_file(path);
        }
        if let Some(path) = fields.ca_directory {
            builder = builder.ca_directory(path);
        }
        if let (Some(certificate), Some(key)) = (fields.client_certificate, fields.client_key_file)
        {
            builder = builder.client_certificate(certificate, key);
        }
        if let Some(name) = fields.server_name {
            builder = builder.server_name(name);
        }
        if let Some(url) = fields.proxy {
            builder = if without_user(&url).1 {
                builder.refuse("proxy: a Config must not contain a user or a password; set them on the builder")
            } else {
                builder.proxy(url)
            };
        }
        if let Some(timeout) = fields.connect_timeout {
            builder = builder.connect_timeout(timeout);
        }
        if let Some(timeout) = fields.timeout {
            builder = builder.timeout(timeout);
        }
        if fields.allow_plain_http {
            builder = builder.allow_plain_http();
        }
        if let Some(binding) = fields.binding {
            builder = builder.binding(binding);
        }
        if let Some(age) = fields.key_max_age {
            builder = builder.key_max_age(age);
        }
        match fields.auth.map(AuthConfig::into_auth) {
            Some(Ok(auth)) => builder.auth(auth),
            Some(Err(why)) => builder.refuse(why),
            None => builder,
        }
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
        let (host, path) = uri.place().split_once('/').unwrap_or((uri.place(), ""));
        if host.contains('@') {
            return Err(uri.error("there must be no user or password before the host"));
        }
        let is_host =
            host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:[]".contains(&byte));
        if !is_host {
            return Err(uri.error("the host has a character that no host has"));
        }
        let Some((mount, key)) = path.rsplit_once('/') else {
            return Err(uri.error("the path is not MOUNT/KEY"));
        };
        if key.is_empty() {
            return Err(uri.error("the key is missing after the mount"));
        }
        let address = match (host.is_empty(), uri.text("address")?) {
            (false, Some(_)) => {
                return Err(uri.error("parameter `address`: not together with a host"));
            }
            (false, None) => Some(format!("https://{host}")),
            (true, address) => address,
        };
        let missing = || uri.error("parameter `cluster` is missing");
        let binding = uri.text("binding")?.map(|name| match name.as_str() {
            "associated-data" => Ok(ContextBinding::AssociatedData),
            "unbound" => Ok(ContextBinding::Unbound),
            _ => Err(uri.error("parameter `binding` is neither associated-data nor unbound")),
        });
        Self::checked(Fields {
            cluster: uri.text("cluster")?.ok_or_else(missing)?,
            mount: uri.decode("the mount", mount)?,
            key: uri.decode("the key", key)?,
            address,
            namespace: uri.text("namespace")?,
            ca_file: uri.path("ca-file")?,
            ca_directory: uri.path("ca-directory")?,
            client_certificate: uri.path("client-certificate")?,
            client_key_file: uri.path("client-key-file")?,
            server_name: uri.text("server-name")?,
            proxy: uri.text("proxy")?,
            connect_timeout: uri.duration("connect-timeout")?,
            timeout: uri.duration("timeout")?,
            allow_plain_http: uri.flag("allow-plain-http")?.unwrap_or(false),
            binding: binding.transpose()?,
            key_max_age: uri.duration("key-max-age")?,
            auth: AuthConfig::read(&uri)?,
        })
    }
}

/// The host and port of an address that has nothing else.
fn host_of(address: &str) -> Option<&str> {
    let host = address.strip_prefix("https://")?;
    let is_host = !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:[]".contains(&byte));
    is_host.then_some(host)
}

/// Writes the URI.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = &self.0;
        let host = fields.address.as_deref().and_then(host_of);
        let (mount, key) = (encode(&fields.mount), encode_segment(&fields.key));
        let mut uri =
            UriWriter::new(PREFIX, &format!("{}/{mount}/{key}", host.unwrap_or_default()));
        uri.text("cluster", Some(&fields.cluster));
        uri.text("address", fields.address.as_deref().filter(|_| host.is_none()));
        uri.text("namespace", fields.namespace.as_deref());
        uri.path("ca-file", fields.ca_file.as_deref());
        uri.path("ca-directory", fields.ca_directory.as_deref());
        uri.path("client-certificate", fields.client_certificate.as_deref());
        uri.path("client-key-file", fields.client_key_file.as_deref());
        uri.text("server-name", fields.server_name.as_deref());
        uri.text("proxy", fields.proxy.as_deref());
        uri.duration("connect-timeout", fields.connect_timeout);
        uri.duration("timeout", fields.timeout);
        uri.flag("allow-plain-http", fields.allow_plain_http.then_some(true));
        uri.text(
            "binding",
            fields.binding.map(|binding| match binding {
                ContextBinding::AssociatedData => "associated-data",
                ContextBinding::Unbound => "unbound",
            }),
        );
        uri.duration("key-max-age", fields.key_max_age);
        if let Some(auth) = &fields.auth {
            auth.write(&mut uri);
        }
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
