//! Builds a [`VaultTransitKek`] from the caller's options and the usual environment variables.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use crate::auth::Authenticator;
use crate::checks::{PROXIES, address, check_server_name, invalid, is_set, namespace, proxy};
use crate::client::{ProxyChoice, is_this_machine};
use crate::endpoints::{is_key, is_path, is_segment};
use crate::environment;
use crate::inner::Inner;
use crate::key::{ContextBinding, Latest};
use crate::login::VaultAuth;
use crate::provider::VaultTransitKek;
use crate::tls::{Client, Roots, TlsSources};
use crate::transport::{Transport, TransportOptions, Unusable};
use waxseal::Error;
use waxseal::KekId;
use waxseal::kek::toolkit::Spawner;
use waxseal::kek::toolkit::uri::without_user;

const DEFAULT_ADDRESS: &str = "https://127.0.0.1:8200";
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
const TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(600);
const DEFAULT_KEY_MAX_AGE: Duration = Duration::from_secs(60);
const KEY_MAX_AGES: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);

/// Configures a [`VaultTransitKek`]. Unset options have their defaults or, with
/// [`from_env`](Self::from_env), come from the environment.
#[must_use = "nothing happens until `build`"]
pub struct VaultTransitKekBuilder {
    cluster: String,
    key: String,
    mount: String,
    address: Option<String>,
    namespace: Option<String>,
    tls: TlsSources,
    server_name: Option<String>,
    follow_redirects: bool,
    proxy: Option<String>,
    environment_proxy: bool,
    connect_timeout: Duration,
    timeout: Duration,
    plain_http: bool,
    auth: Option<VaultAuth>,
    binding: Option<ContextBinding>,
    key_max_age: Duration,
    /// Why the build fails: the first environment variable, or option of a `Config`, that cannot be
    /// honoured.
    refused: Option<String>,
}

impl VaultTransitKek {
    /// Starts the configuration for the key `key` in the cluster that you call `cluster`. It reads
    /// no environment variable.
    pub fn builder(cluster: impl Into<String>, key: impl Into<String>) -> VaultTransitKekBuilder {
        VaultTransitKekBuilder::new(cluster, key)
    }
}

impl VaultTransitKekBuilder {
    pub(crate) fn new(cluster: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            key: key.into(),
            mount: "transit".to_owned(),
            address: None,
            namespace: None,
            tls: TlsSources::default(),
            server_name: None,
            follow_redirects: true,
            proxy: None,
            environment_proxy: false,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            timeout: DEFAULT_TIMEOUT,
            plain_http: false,
            auth: None,
            binding: None,
            key_max_age: DEFAULT_KEY_MAX_AGE,
            refused: None,
        }
    }

    /// Starts the configuration like [`VaultTransitKek::builder`], with the environment variables
    /// of the OpenBao and HashiCorp Vault clients. Options set on the builder override them.
    ///
    /// Each of these is read as `BAO_…`, then as `VAULT_…`: `ADDR` (`AGENT_ADDR` takes precedence),
    /// `TOKEN`, `NAMESPACE`, `CACERT`, `CACERT_BYTES`, `CAPATH`, `CLIENT_CERT` and `CLIENT_KEY` (or
    /// both with `_BYTES`), `TLS_SERVER_NAME`, `CLIENT_TIMEOUT`, `PROXY_ADDR` or `HTTP_PROXY`,
    /// `DISABLE_REDIRECTS`. `HTTPS_PROXY` and the like are read too.
    ///
    /// Variables that cannot be honoured are refused at build, not ignored: `SKIP_VERIFY`,
    /// `SRV_LOOKUP`, `MFA`, `WRAP_TTL`, `RATE_LIMIT`, `MAX_RETRIES`, `TOKEN_PATH`, and a
    /// certificate without its key or a key without its certificate.
    pub fn from_env(cluster: impl Into<String>, key: impl Into<String>) -> Self {
        Self::new(cluster, key).variables(|name| std::env::var_os(name))
    }

    /// Makes the build fail with this text.
    pub(crate) fn refuse(mut self, why: impl Into<String>) -> Self {
        self.refused.get_or_insert(why.into());
        self
    }

    /// `variable` reads the environment.
    pub(crate) fn variables(mut self, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        self.environment_proxy = true;
        match environment::read(variable) {
            Ok(found) => {
                self.address = found.address;
                self.namespace = found.namespace;
                self.auth = found.token.map(VaultAuth::token);
                self.tls = TlsSources { roots: found.roots, client: found.client };
                self.server_name = found.server_name;
                self.proxy = found.proxy;
                self.timeout = found.timeout.unwrap_or(self.timeout);
                self.follow_redirects = !found.no_redirects;
            }
            Err(refused) => self.refused = Some(refused),
        }
        self
    }

    /// Sets the path of the Transit engine. By default `transit`.
    pub fn mount(mut self, path: impl Into<String>) -> Self {
        self.mount = path.into();
        self
    }

    /// Sets the URL of the server, or of an agent or load balancer in front of it:
    /// `https://vault.example:8200`. Plain `http` is allowed only to this machine, unless
    /// [`allow_plain_http`](Self::allow_plain_http) is set. By default `https://127.0.0.1:8200`.
    pub fn address(mut self, url: impl Into<String>) -> Self {
        self.address = Some(url.into());
        self
    }

    /// Sets the namespace (Vault Enterprise, OpenBao) of the engine and the login.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Sets a PEM file with the CA certificates to trust, **instead of** the system's. It is read
    /// at build, and again when it changes: the next request then uses a new connection. If it
    /// cannot be read, for example because it is half written, only the health changes.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.roots = Some(Roots::File(path.into()));
        self
    }

    /// Trusts the certificates in every file of a directory, with the rules of
    /// [`ca_file`](Self::ca_file).
    pub fn ca_directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.roots = Some(Roots::Directory(path.into()));
        self
    }

    /// Sets PEM files with the client's certificate chain and its private key. They are read at
    /// build, and again when one of them changes, like [`ca_file`](Self::ca_file).
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.tls.client = Some(Client::Files(certificate.into(), key.into()));
        self
    }

    /// Sets the name in the server's certificate, if it differs from the address, as with an IP
    /// address or a load balancer. Not allowed together with a proxy.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Sets an HTTP proxy for every request. By default none is used, unless
    /// [`from_env`](Self::from_env) finds one.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// Sets how long connecting may take, including TLS: 1 ms to 10 minutes, by default 3 seconds.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long one request may take in total: 1 ms to 10 minutes, by default 15 seconds. This
    /// is a last resort. An [`Envelope`](waxseal::Envelope) has a shorter limit for each call.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Allows tokens and DEKs to be sent unencrypted to another machine. Use it if a service mesh
    /// encrypts the traffic.
    pub fn allow_plain_http(mut self) -> Self {
        self.plain_http = true;
        self
    }

    /// Sets how this process logs in. Required, unless [`from_env`](Self::from_env) reads
    /// `BAO_TOKEN` or `VAULT_TOKEN`.
    pub fn auth(mut self, auth: VaultAuth) -> Self {
        self.auth = Some(auth);
        self
    }

    /// Sets how the encryption context binds under a key that is **not** derived. It has no effect
    /// on a derived key, which always binds it. There is no default: a key that is not derived is
    /// refused until you choose.
    pub fn binding(mut self, binding: ContextBinding) -> Self {
        self.binding = Some(binding);
        self
    }

    /// Sets how long the description of the key is used (whether it is derived, its latest
    /// version): 100 ms to 1 hour, by default 60 seconds. After that, the next call reads it again
    /// in the background.
    pub fn key_max_age(mut self, age: Duration) -> Self {
        self.key_max_age = age;
        self
    }

    /// Checks everything that can be checked without the server, and builds the provider. Every
    /// request runs on the tokio runtime in which this is called, so the provider can be used from
    /// other executors too. If that runtime ends, or nothing drives it, the runtime of a later
    /// caller replaces it.
    ///
    /// # Errors
    /// [`InvalidOption`](waxseal::ErrorKind::InvalidOption), naming the option, also outside a
    /// tokio runtime and in one without timers or IO. [`Io`](waxseal::ErrorKind::Io) for a file
    /// that cannot be read.
    pub fn build(self) -> Result<VaultTransitKek, Error> {
        if let Some(refused) = self.refused {
            return Err(invalid(refused));
        }
        let spawner = Spawner::current().map_err(|why| invalid(format!("build: {why}")))?;
        if !is_segment(&self.cluster) {
            return Err(invalid(format!(
                "cluster {:?}: letters, digits, '.', '_' and '-' are allowed",
                self.cluster
            )));
        }
        if !is_path(&self.mount) {
            return Err(invalid(format!(
                "mount {:?}: expected a path without empty segments, '.', '..' or invisible characters",
                self.mount
            )));
        }
        if !is_key(&self.key) {
            return Err(invalid(format!(
                "key {:?}: letters, digits, '.', '_' and '-' are allowed",
                self.key
            )));
        }
        let id = KekId::new(format!("vault:{}/{}/{}", self.cluster, self.mount, self.key))?;
        let auth = self.auth.ok_or_else(|| {
            invalid(
                "auth: choose how this process logs in: `auth=METHOD` in a URI, a `VaultAuth` in \
                 code",
            )
        })?;
        auth.check(self.tls.client.is_some()).map_err(|why| invalid(format!("auth: {why}")))?;
        for (option, timeout) in
            [("connect_timeout", self.connect_timeout), ("timeout", self.timeout)]
        {
            if !TIMEOUTS.contains(&timeout) {
                return Err(invalid(format!(
                    "{option} is {timeout:?}, {:?} to {:?} are allowed",
                    TIMEOUTS.start(),
                    TIMEOUTS.end()
                )));
            }
        }
        if !KEY_MAX_AGES.contains(&self.key_max_age) {
            let (from, to) = (KEY_MAX_AGES.start(), KEY_MAX_AGES.end());
            return Err(invalid(format!(
                "key_max_age is {:?}, {from:?} to {to:?} are allowed",
                self.key_max_age
            )));
        }
        if let Some(name) = &self.server_name {
            check_server_name(name)?;
            if self.proxy.is_some()
                || (self.environment_proxy && PROXIES.iter().any(|name| is_set(name)))
            {
                return Err(invalid("server_name: does not work through a proxy"));
            }
        }
        let address = address(self.address.as_deref().unwrap_or(DEFAULT_ADDRESS), self.plain_http)?;
        let is_here = is_this_machine(&address);
        let options = TransportOptions {
            address,
            server_name: self.server_name,
            namespace: self.namespace.as_deref().map(namespace).transpose()?,
            tls: self.tls,
            proxy: match &self.proxy {
                Some(url) => ProxyChoice::This(Box::new(proxy(url)?)),
                // Like Go's clients: an agent on this machine is not reached through another one,
                // which could read plain http.
                None if self.environment_proxy && !is_here => ProxyChoice::Environment,
                None => ProxyChoice::None,
            },
            follow_redirects: self.follow_redirects,
            plain_http: self.plain_http,
            connect_timeout: self.connect_timeout,
            timeout: self.timeout,
        };
        let transport = Transport::new(options).map_err(|unusable| match unusable {
            Unusable::Files(error) => error,
            Unusable::Client(error) => {
                invalid("the HTTPS client cannot be set up").with_source(error.without_url())
            }
        })?;
        let transport = Arc::new(transport);
        Ok(VaultTransitKek(Arc::new(Inner {
            id,
            mount: self.mount,
            key: self.key,
            chosen: self.binding,
            key_max_age: self.key_max_age,
            auth: Authenticator::new(auth, transport.clone()),
            transport,
            spawner,
            known: ArcSwapOption::empty(),
            reading: Mutex::default(),
            reading_in_background: Arc::default(),
            in_doubt: AtomicBool::new(false),
            latest: Latest::default(),
        })))
    }
}

/// Shows no secret of the login, and no password in the address or the proxy.
impl fmt::Debug for VaultTransitKekBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |url: &Option<String>| url.as_deref().map(|url| without_user(url).0);
        f.debug_struct("VaultTransitKekBuilder")
            .field("cluster", &self.cluster)
            .field("mount", &self.mount)
            .field("key", &self.key)
            .field("address", &shown(&self.address))
            .field("namespace", &self.namespace)
            .field("server_name", &self.server_name)
            .field("proxy", &shown(&self.proxy))
            .field("auth", &self.auth)
            .field("binding", &self.binding)
            .field("connect_timeout", &self.connect_timeout)
            .field("timeout", &self.timeout)
            .field("key_max_age", &self.key_max_age)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waxseal::ErrorKind;

    fn within<T>(work: impl FnOnce() -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        work()
    }

    fn builder() -> VaultTransitKekBuilder {
        VaultTransitKekBuilder::new("prod", "orders").auth(VaultAuth::token("s.secret-token"))
    }

    fn refusal(builder: VaultTransitKekBuilder) -> String {
        let error = within(|| builder.build()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidOption | ErrorKind::Io), "{error}");
        format!("{error} {error:?}")
    }

    #[test]
    fn the_id_names_cluster_mount_and_key() {
        let kek = within(|| builder().mount("team/transit").build()).unwrap();
        assert_eq!(waxseal::kek::KekProvider::id(&kek).as_str(), "vault:prod/team/transit/orders");
    }

    #[test]
    fn names_that_would_mean_something_else_in_a_path_are_refused() {
        for name in ["", "a/b", "..", ".", "a b", "a\nb", "a%2fb", "a?b", "a#b", "ä"] {
            assert!(
                refusal(VaultTransitKekBuilder::new(name, "k").auth(VaultAuth::token("t")))
                    .contains("cluster"),
                "{name:?}"
            );
            assert!(
                refusal(VaultTransitKekBuilder::new("c", name).auth(VaultAuth::token("t")))
                    .contains("key"),
                "{name:?}"
            );
        }
        let (long, longer) = ("k".repeat(300), "k".repeat(600));
        for path in [
            "",
            ".",
            "..",
            "/transit",
            "a//b",
            "a/../b",
            "a\nb",
            "a\tb",
            "a\u{7f}b",
            "a\u{202e}b",
            "a\u{a0}b",
            &longer,
        ] {
            assert!(refusal(builder().mount(path)).contains("mount"), "{path:?}");
            assert!(refusal(builder().namespace(path)).contains("namespace"), "{path:?}");
            assert!(
                refusal(builder().auth(VaultAuth::app_role("r").mount(path))).contains("mount"),
                "{path:?}"
            );
        }
        assert!(refusal(builder().mount("transit/")).contains("mount"));
        for mount in [
            "my transit",
            "tränsit",
            "tra\u{308}nsit",
            "a+b",
            "transit@eu",
            "prod:transit",
            "a%2fb",
            "a?b#c",
            &long,
        ] {
            let kek = within(|| builder().mount(mount).build()).unwrap();
            assert_eq!(
                waxseal::kek::KekProvider::id(&kek).as_str(),
                format!("vault:prod/{mount}/orders")
            );
        }
        within(|| VaultTransitKekBuilder::new("prod", &*long).auth(VaultAuth::none()).build())
            .unwrap();
    }

    #[test]
    fn no_address_makes_it_panic_or_shows_a_password() {
        for address in [
            "",
            "vault",
            "vault:8200",
            "ftp://vault",
            "https://",
            "https://u:pass-word@vault",
            "https://vault?x",
            "https://vault#x",
            "http://[::1",
        ] {
            let text = refusal(builder().address(address));
            assert!(text.contains("address") && !text.contains("pass-word"), "{address}: {text}");
        }
        for proxy in ["", "proxy", "socks5://proxy", "http://"] {
            assert!(refusal(builder().proxy(proxy)).contains("proxy"), "{proxy}");
        }
    }

    #[test]
    fn plain_http_goes_to_this_machine_only() {
        for address in [
            "http://vault:8200",
            "http://10.0.0.1:8200",
            "http://localhost.example",
            "http://127.0.0.1.example",
        ] {
            assert!(refusal(builder().address(address)).contains("http"), "{address}");
            within(|| builder().address(address).allow_plain_http().build()).unwrap();
        }
        for address in [
            "http://127.0.0.1:8200",
            "http://localhost:8200",
            "http://[::1]:8200",
            "https://vault.example/gateway/",
        ] {
            within(|| builder().address(address).build()).unwrap();
        }
    }

    #[test]
    fn options_out_of_range_and_files_that_are_none_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let junk = directory.path().join("junk.pem");
        std::fs::write(&junk, "no certificate").unwrap();
        let missing = directory.path().join("missing");
        for (builder, option) in [
            (builder().timeout(Duration::ZERO), "timeout"),
            (builder().timeout(Duration::from_secs(601)), "timeout"),
            (builder().connect_timeout(Duration::ZERO), "connect_timeout"),
            (builder().key_max_age(Duration::ZERO), "key_max_age"),
            (builder().key_max_age(Duration::from_secs(3601)), "key_max_age"),
            (builder().ca_file(&junk), "ca_file"),
            (builder().ca_file(&missing), "ca_file"),
            (builder().client_certificate(&junk, &junk), "client_certificate"),
            (builder().client_certificate(&missing, &junk), "client_certificate"),
            (builder().auth(VaultAuth::token("")), "auth"),
            (builder().auth(VaultAuth::token("two\nlines")), "auth"),
            (builder().auth(VaultAuth::certificate()), "auth"),
            (VaultTransitKekBuilder::new("c", "k"), "auth"),
        ] {
            assert!(refusal(builder).contains(option), "{option}");
        }
        assert!(builder().build().unwrap_err().to_string().contains("tokio"), "outside a runtime");
    }

    #[test]
    fn the_environment_configures_what_the_caller_does_not() {
        let set = |pairs: &'static [(&str, &str)]| {
            VaultTransitKekBuilder::new("prod", "orders").variables(move |name| {
                pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
            })
        };
        let all =
            set(&[("BAO_ADDR", "https://vault.example:8200"), ("VAULT_TOKEN", "s.secret-token")]);
        assert_eq!(all.address.as_deref(), Some("https://vault.example:8200"));
        assert!(all.auth.is_some() && all.refused.is_none() && all.environment_proxy);
        assert!(!format!("{all:?}").contains("secret-token"));
        within(|| all.build()).unwrap();

        assert!(set(&[]).auth.is_none());
        within(|| set(&[("VAULT_TOKEN", "t"), ("VAULT_ADDR", "")]).build()).unwrap();
        for (pairs, name) in [
            (&[("VAULT_SKIP_VERIFY", "1")][..], "VAULT_SKIP_VERIFY"),
            (&[("BAO_CLIENT_CERT", "/cert.pem")], "CLIENT_KEY"),
            (&[("BAO_CAPATH", "/no-such-directory")], "ca_directory"),
            (&[("BAO_CACERT_BYTES", "no certificate")], "ca_file"),
            (&[("BAO_TLS_SERVER_NAME", "10.0.0.1")], "server_name"),
            (
                &[("BAO_TLS_SERVER_NAME", "vault"), ("BAO_PROXY_ADDR", "http://proxy")],
                "server_name",
            ),
        ] {
            assert!(refusal(set(pairs).auth(VaultAuth::token("t"))).contains(name), "{name}");
        }
    }
}
