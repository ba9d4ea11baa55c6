//! Puts a [`VaultTransit`] together, from the caller's options and the usual environment variables.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use reqwest::header::HeaderValue;
use reqwest::{Certificate, Identity, Proxy, Url};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::super::home::Home;
use super::auth::{Authenticator, VaultAuth};
use super::endpoints::{is_path, is_segment};
use super::transport::{ProxyChoice, Transport, TransportOptions};
use super::{ContextBinding, Inner, VaultTransit};
use crate::error::{Error, ErrorKind};
use crate::format::KekId;

const DEFAULT_ADDRESS: &str = "https://127.0.0.1:8200";
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
const TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(600);
const DEFAULT_KEY_MAX_AGE: Duration = Duration::from_secs(60);
const KEY_MAX_AGES: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// Configures a [`VaultTransit`]. What is not set has its default, or comes from the environment with
/// [`VaultTransit::from_env`].
#[must_use = "nothing happens until `build`"]
pub struct VaultTransitBuilder {
    cluster: String,
    key: String,
    mount: String,
    address: Option<String>,
    namespace: Option<String>,
    ca_file: Option<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
    proxy: Option<String>,
    environment_proxy: bool,
    connect_timeout: Duration,
    timeout: Duration,
    plain_http: bool,
    auth: Option<VaultAuth>,
    binding: Option<ContextBinding>,
    key_max_age: Duration,
    /// The first variable of the environment that cannot be obeyed.
    refused: Option<String>,
}

impl VaultTransitBuilder {
    pub(super) fn new(cluster: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            key: key.into(),
            mount: "transit".to_owned(),
            address: None,
            namespace: None,
            ca_file: None,
            client_certificate: None,
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

    /// `variable` stands for the environment.
    pub(super) fn variables(mut self, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let mut refused = None;
        let mut text = |name: &str| {
            let value = variable(name)?.into_string();
            if value.is_err() {
                refused = Some(format!("{name} is not UTF-8"));
            }
            value.ok().filter(|value| !value.is_empty())
        };
        self.address = text("VAULT_ADDR");
        self.namespace = text("VAULT_NAMESPACE");
        self.auth = text("VAULT_TOKEN").map(VaultAuth::token);
        self.proxy = text("VAULT_PROXY_ADDR").or_else(|| text("VAULT_HTTP_PROXY"));
        let timeout = text("VAULT_CLIENT_TIMEOUT");
        let skip_verify = text("VAULT_SKIP_VERIFY");
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        self.ca_file = path("VAULT_CACERT");
        self.client_certificate = path("VAULT_CLIENT_CERT").zip(path("VAULT_CLIENT_KEY"));
        self.environment_proxy = true;
        if let Some(timeout) = timeout {
            match go_duration(&timeout) {
                Some(timeout) => self.timeout = timeout,
                None => {
                    refused = Some(format!(
                        "VAULT_CLIENT_TIMEOUT is {timeout:?}, seconds or a duration such as 30s are allowed"
                    ))
                }
            }
        }
        if skip_verify.is_some_and(|value| !matches!(&*value.to_ascii_lowercase(), "0" | "f" | "false")) {
            refused =
                Some("VAULT_SKIP_VERIFY: certificates are always verified; name the CA with VAULT_CACERT".to_owned());
        }
        for name in ["VAULT_CAPATH", "VAULT_TLS_SERVER_NAME"] {
            if path(name).is_some() {
                refused = Some(format!(
                    "{name} is not supported; use VAULT_CACERT and an address with the name in the certificate"
                ));
            }
        }
        self.refused = refused;
        self
    }

    /// The path of the Transit engine. By default `transit`.
    pub fn mount(mut self, path: impl Into<String>) -> Self {
        self.mount = path.into();
        self
    }

    /// The server, or an agent or load balancer in front of it: `https://vault.example:8200`. Plain `http` goes to this machine only, unless
    /// [`allow_plain_http`](Self::allow_plain_http). By default `https://127.0.0.1:8200`.
    pub fn address(mut self, url: impl Into<String>) -> Self {
        self.address = Some(url.into());
        self
    }

    /// The namespace (Vault Enterprise, OpenBao) for the engine and the login.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// A PEM file with the certificates of the CAs to trust, **instead of** the system's. Read at build.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// PEM files with the client's certificate chain and its private key. Read at build.
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// An HTTP proxy for every request. Without it, none is used, or that of `HTTPS_PROXY` and `NO_PROXY` with [`VaultTransit::from_env`].
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// How long connecting may take, TLS included: 1 ms to 10 minutes, by default 3 seconds.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long one request may take in all: 1 ms to 10 minutes, by default 15 seconds. The last resort; what an
    /// [`Envelope`](crate::Envelope) waits for a call is its own, shorter limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Lets tokens and DEKs travel unencrypted to another machine. For where a service mesh encrypts on the way.
    pub fn allow_plain_http(mut self) -> Self {
        self.plain_http = true;
        self
    }

    /// Who this process is. Required, unless `VAULT_TOKEN` is read by [`VaultTransit::from_env`].
    pub fn auth(mut self, auth: VaultAuth) -> Self {
        self.auth = Some(auth);
        self
    }

    /// How the encryption context binds under a key that is **not** derived. Without effect on a derived key, which always binds it.
    /// There is no default: a key that is not derived is refused until this is chosen.
    pub fn binding(mut self, binding: ContextBinding) -> Self {
        self.binding = Some(binding);
        self
    }

    /// How old may be what is known of the key: whether it is derived, its latest version. 100 ms to 1 hour, by default 60 seconds. When it is
    /// older, the next call reads it anew in the background.
    pub fn key_max_age(mut self, age: Duration) -> Self {
        self.key_max_age = age;
        self
    }

    /// Checks everything that can be checked without asking the server, and keeps the tokio runtime in which it is called: every
    /// request runs there, so the provider can be used from other executors too. When that runtime has ended or nobody drives it, the
    /// runtime of a later caller takes its place.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the option; also outside a tokio runtime, and in one without timers or IO. [`ErrorKind::Io`] for a file that cannot be read.
    pub fn build(self) -> Result<VaultTransit, Error> {
        if let Some(refused) = self.refused {
            return Err(invalid(refused));
        }
        let home = Home::current().map_err(|why| invalid(format!("build: {why}")))?;
        if !is_segment(&self.cluster) {
            return Err(invalid(format!("cluster {:?}: letters, digits, '.', '_' and '-' are allowed", self.cluster)));
        }
        if !is_path(&self.mount) {
            return Err(invalid(format!(
                "mount {:?}: segments of letters, digits, '.', '_' and '-' are allowed",
                self.mount
            )));
        }
        if !is_segment(&self.key) {
            return Err(invalid(format!("key {:?}: letters, digits, '.', '_' and '-' are allowed", self.key)));
        }
        let id = KekId::new(format!("vault:{}/{}/{}", self.cluster, self.mount, self.key))?;
        let auth = self.auth.ok_or_else(|| invalid("auth: say who this process is"))?;
        auth.check(self.client_certificate.is_some()).map_err(|why| invalid(format!("auth: {why}")))?;
        for (option, timeout) in [("connect_timeout", self.connect_timeout), ("timeout", self.timeout)] {
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
            return Err(invalid(format!("key_max_age is {:?}, {from:?} to {to:?} are allowed", self.key_max_age)));
        }
        let options = TransportOptions {
            address: address(self.address.as_deref().unwrap_or(DEFAULT_ADDRESS), self.plain_http)?,
            namespace: self.namespace.as_deref().map(namespace).transpose()?,
            ca: self.ca_file.as_deref().map(certificates).transpose()?,
            identity: self
                .client_certificate
                .as_ref()
                .map(|(certificate, key)| identity(certificate, key))
                .transpose()?,
            proxy: match &self.proxy {
                Some(url) => ProxyChoice::This(Box::new(proxy(url)?)),
                None if self.environment_proxy => ProxyChoice::Environment,
                None => ProxyChoice::None,
            },
            connect_timeout: self.connect_timeout,
            timeout: self.timeout,
        };
        let transport = Transport::new(options)
            .map_err(|error| invalid("the HTTPS client cannot be set up").with_source(error.without_url()))?;
        let transport = Arc::new(transport);
        Ok(VaultTransit(Arc::new(Inner {
            id,
            mount: self.mount,
            key: self.key,
            chosen: self.binding,
            key_max_age: self.key_max_age,
            auth: Authenticator::new(auth, transport.clone()),
            transport,
            home,
            known: ArcSwapOption::empty(),
            reading: Mutex::default(),
            reading_in_background: Arc::default(),
            in_doubt: AtomicBool::new(false),
            latest_version: AtomicU32::new(0),
        })))
    }
}

impl fmt::Debug for VaultTransitBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The proxy's URL may hold a password.
        f.debug_struct("VaultTransitBuilder")
            .field("cluster", &self.cluster)
            .field("mount", &self.mount)
            .field("key", &self.key)
            .field("namespace", &self.namespace)
            .field("auth", &self.auth)
            .field("binding", &self.binding)
            .finish_non_exhaustive()
    }
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, detail.into())
}

fn address(text: &str, plain_http: bool) -> Result<Url, Error> {
    // The text is not shown: it may hold a password.
    let url = Url::parse(text).map_err(|error| invalid(format!("address: {error}")))?;
    if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none_or(str::is_empty) {
        return Err(invalid("address: a URL with https:// and a host is wanted"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("address: neither user, password, query nor fragment belongs into it"));
    }
    if url.scheme() == "http" && !plain_http && !is_this_machine(&url) {
        return Err(invalid(
            "address: http to another machine would show tokens and DEKs; use https, or allow_plain_http",
        ));
    }
    Ok(url)
}

fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn namespace(text: &str) -> Result<HeaderValue, Error> {
    match is_path(text.trim_end_matches('/')) {
        true => HeaderValue::from_str(text).map_err(|_| invalid("namespace: not a header value")),
        false => Err(invalid(format!("namespace {text:?}: segments of letters, digits, '.', '_' and '-' are allowed"))),
    }
}

fn proxy(text: &str) -> Result<Proxy, Error> {
    let url = Url::parse(text).map_err(|error| invalid(format!("proxy: {error}")))?;
    if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none_or(str::is_empty) {
        return Err(invalid("proxy: a URL with http:// or https:// and a host is wanted"));
    }
    Proxy::all(url).map_err(|_| invalid("proxy: not usable"))
}

fn read(option: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    std::fs::read(path).map(Zeroizing::new).map_err(|error| {
        Error::new(ErrorKind::Io, format!("{option}: {} cannot be read", path.display())).with_source(error)
    })
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, Error> {
    match Certificate::from_pem_bundle(&read("ca_file", path)?) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(invalid(format!("ca_file: {} holds no PEM certificate", path.display()))),
    }
}

fn identity(certificate: &Path, key: &Path) -> Result<Identity, Error> {
    let mut pem = read("client_certificate", certificate)?;
    let key_pem = read("client_certificate", key)?;
    let mut both = Zeroizing::new(Vec::with_capacity(pem.len() + 1 + key_pem.len()));
    both.append(&mut pem);
    both.push(b'\n');
    both.extend_from_slice(&key_pem);
    Identity::from_pem(&both).map_err(|_| {
        invalid(format!(
            "client_certificate: {} and {} hold no PEM certificate and key",
            certificate.display(),
            key.display()
        ))
    })
}

/// Seconds, or a sum of such parts as `1m`, `30s`, `500ms`.
fn go_duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let (digits, behind) = rest.split_at_checked(rest.find(|c: char| !c.is_ascii_digit())?)?;
        let unit_len = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at_checked(unit_len)?;
        let number: u64 = digits.parse().ok()?;
        let part = match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            _ => return None,
        };
        sum = sum.checked_add(part)?;
        rest = behind;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within<T>(work: impl FnOnce() -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        work()
    }

    fn builder() -> VaultTransitBuilder {
        VaultTransitBuilder::new("prod", "orders").auth(VaultAuth::token("s.secret-token"))
    }

    fn refusal(builder: VaultTransitBuilder) -> String {
        let error = within(|| builder.build()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidOption | ErrorKind::Io), "{error}");
        format!("{error} {error:?}")
    }

    #[test]
    fn the_id_names_cluster_mount_and_key() {
        let kek = within(|| builder().mount("team/transit").build()).unwrap();
        assert_eq!(crate::kek::KekProvider::id(&kek).as_str(), "vault:prod/team/transit/orders");
    }

    #[test]
    fn names_that_would_mean_something_else_in_a_path_are_refused() {
        for name in ["", "a/b", "..", ".", "a b", "a\nb", "a%2fb", "a?b", "a#b", "ä", &"k".repeat(129)] {
            assert!(
                refusal(VaultTransitBuilder::new(name, "k").auth(VaultAuth::token("t"))).contains("cluster"),
                "{name:?}"
            );
            assert!(
                refusal(VaultTransitBuilder::new("c", name).auth(VaultAuth::token("t"))).contains("key"),
                "{name:?}"
            );
            if name != "a/b" {
                assert!(refusal(builder().mount(name)).contains("mount"), "{name:?}");
                assert!(refusal(builder().namespace(name)).contains("namespace"), "{name:?}");
                assert!(refusal(builder().auth(VaultAuth::app_role("r").mount(name))).contains("mount"), "{name:?}");
            }
        }
        for path in ["/transit", "transit/", "a//b", "a/../b"] {
            assert!(refusal(builder().mount(path)).contains("mount"), "{path:?}");
        }
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
        for address in
            ["http://vault:8200", "http://10.0.0.1:8200", "http://localhost.example", "http://127.0.0.1.example"]
        {
            assert!(refusal(builder().address(address)).contains("http"), "{address}");
            within(|| builder().address(address).allow_plain_http().build()).unwrap();
        }
        for address in
            ["http://127.0.0.1:8200", "http://localhost:8200", "http://[::1]:8200", "https://vault.example/gateway/"]
        {
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
            (VaultTransitBuilder::new("c", "k"), "auth"),
        ] {
            assert!(refusal(builder).contains(option), "{option}");
        }
        assert!(builder().build().unwrap_err().to_string().contains("tokio"), "outside a runtime");
    }

    #[test]
    fn the_environment_configures_what_the_caller_does_not() {
        let set = |pairs: &'static [(&str, &str)]| {
            VaultTransitBuilder::new("prod", "orders")
                .variables(move |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value)))
        };
        let all = set(&[
            ("VAULT_ADDR", "https://vault.example:8200"),
            ("VAULT_TOKEN", "s.secret-token"),
            ("VAULT_NAMESPACE", "team/a"),
            ("VAULT_CACERT", "/ca.pem"),
            ("VAULT_CLIENT_CERT", "/cert.pem"),
            ("VAULT_CLIENT_KEY", "/key.pem"),
            ("VAULT_CLIENT_TIMEOUT", "1m30s"),
            ("VAULT_HTTP_PROXY", "http://proxy:3128"),
            ("VAULT_SKIP_VERIFY", "false"),
        ]);
        assert_eq!(all.address.as_deref(), Some("https://vault.example:8200"));
        assert_eq!(all.namespace.as_deref(), Some("team/a"));
        assert_eq!(all.ca_file.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!(all.client_certificate, Some(("/cert.pem".into(), "/key.pem".into())));
        assert_eq!(all.timeout, Duration::from_secs(90));
        assert_eq!(all.proxy.as_deref(), Some("http://proxy:3128"));
        assert!(all.auth.is_some() && all.refused.is_none() && all.environment_proxy);
        assert!(!format!("{all:?}").contains("secret-token"));

        assert!(set(&[]).auth.is_none());
        within(|| set(&[("VAULT_TOKEN", "t"), ("VAULT_ADDR", "")]).build()).unwrap();
        for (pairs, name) in [
            (&[("VAULT_SKIP_VERIFY", "1")][..], "VAULT_SKIP_VERIFY"),
            (&[("VAULT_CLIENT_TIMEOUT", "soon")], "VAULT_CLIENT_TIMEOUT"),
            (&[("VAULT_CLIENT_TIMEOUT", "s")], "VAULT_CLIENT_TIMEOUT"),
            (&[("VAULT_CAPATH", "/certs")], "VAULT_CAPATH"),
            (&[("VAULT_TLS_SERVER_NAME", "vault")], "VAULT_TLS_SERVER_NAME"),
        ] {
            assert!(refusal(set(pairs).auth(VaultAuth::token("t"))).contains(name), "{name}");
        }
    }
}
