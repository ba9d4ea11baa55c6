//! Configures an [`OpaPolicy`].
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, Identity, Url, redirect};
use waxseal::kek::toolkit::{FileContent, Spawner, read_file};
use waxseal::{Error, ErrorKind};
use zeroize::Zeroizing;

use super::client::{OpaPolicy, Server};

const DEFAULT_PACKAGE: &str = "waxseal";
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(500);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_IN_FLIGHT: usize = 64;
const MAX_IN_FLIGHT: usize = 4096;
/// The maximum size of a certificate, a key or a bundle of authorities in bytes.
const MAX_FILE: usize = 8 * 1024 * 1024;
/// Idle connections are closed before most servers do it.
const IDLE: Duration = Duration::from_secs(20);

/// The address of the server.
enum Address {
    Url(String),
    Socket(PathBuf),
}

impl OpaPolicy {
    /// Asks a server over TCP: `http://HOST:PORT`, or `https://HOST:PORT`. Plain HTTP lets anyone
    /// on the path read and change questions, answers and the token. Use it only on this machine.
    pub fn url(url: impl Into<String>) -> OpaPolicyBuilder {
        OpaPolicyBuilder::at_url(url.into())
    }

    /// Asks a server over a unix socket.
    pub fn unix_socket(path: impl Into<PathBuf>) -> OpaPolicyBuilder {
        OpaPolicyBuilder::at_socket(path.into())
    }
}

/// Builds an [`OpaPolicy`].
#[must_use = "nothing happens until `build`"]
pub struct OpaPolicyBuilder {
    address: Address,
    package: String,
    token: Option<Zeroizing<String>>,
    authorities: Vec<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    timeout: Duration,
    in_flight: usize,
}

impl OpaPolicyBuilder {
    fn at_url(url: String) -> Self {
        Self::new(Address::Url(url))
    }

    fn at_socket(path: PathBuf) -> Self {
        Self::new(Address::Socket(path))
    }

    fn new(address: Address) -> Self {
        Self {
            address,
            package: DEFAULT_PACKAGE.to_owned(),
            token: None,
            authorities: Vec::new(),
            identity: None,
            timeout: DEFAULT_TIMEOUT,
            in_flight: DEFAULT_IN_FLIGHT,
        }
    }

    /// Sets the package with the rule `allow`. By default `waxseal`.
    pub fn package(mut self, name: impl Into<String>) -> Self {
        self.package = name.into();
        self
    }

    /// Sets the bearer token of each request.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Zeroizing::new(token.into()));
        self
    }

    /// Trusts only the certificates in a PEM file. By default the system's are trusted.
    pub fn certificate_authority(mut self, pem: impl Into<PathBuf>) -> Self {
        self.authorities.push(pem.into());
        self
    }

    /// Sets the client's certificate and its key, as PEM files.
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Sets how long one answer may take, including the wait for its turn. 1 ms to 60 s, by default
    /// 500 ms. [`PolicyOptions::timeout`](waxseal::policy::PolicyOptions::timeout) should be
    /// longer.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how many questions are asked at the same time: 1 to 4,096, by default 64. The others
    /// wait for their turn.
    pub fn max_in_flight(mut self, questions: usize) -> Self {
        self.in_flight = questions;
        self
    }

    /// Builds it. It makes no request. It must be built in a tokio runtime.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the option, and outside a tokio runtime.
    pub fn build(self) -> Result<OpaPolicy, Error> {
        let (url, socket) = match &self.address {
            Address::Url(url) => (checked_url(url)?, None),
            Address::Socket(path) => (checked_url("http://localhost")?, Some(path.clone())),
        };
        // Without TLS no server is authenticated, and the token would go to any server that
        // answers.
        if url.scheme() == "http" && (!self.authorities.is_empty() || self.identity.is_some()) {
            return Err(invalid("certificate_authority and client_certificate are for https://"));
        }
        let url = document(url, &self.package)?;
        if !(Duration::from_millis(1)..=LONGEST_TIMEOUT).contains(&self.timeout) {
            return Err(invalid("timeout: 1ms to 60s is allowed"));
        }
        if !(1..=MAX_IN_FLIGHT).contains(&self.in_flight) {
            return Err(invalid("max_in_flight: 1 to 4096 is allowed"));
        }
        let spawner = Spawner::current().map_err(|why| invalid(&format!("build: {why}")))?;
        let client = self.client(socket)?;
        Ok(OpaPolicy::new(Server { client, url, timeout: self.timeout }, self.in_flight, spawner))
    }

    fn client(&self, socket: Option<PathBuf>) -> Result<Client, Error> {
        let mut client = Client::builder()
            .tls_backend_rustls()
            // A redirection would send the token elsewhere.
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .pool_idle_timeout(IDLE)
            .connect_timeout(self.timeout)
            .default_headers(self.headers()?)
            .user_agent(concat!("waxseal-policy/", env!("CARGO_PKG_VERSION")));
        if let Some(socket) = socket {
            client = client.unix_socket(socket).tls_certs_only([]);
        } else if !self.authorities.is_empty() {
            client = client.tls_certs_only(self.trusted()?);
        }
        if let Some((certificate, key)) = &self.identity {
            let (certificate, key) = (read(certificate)?, read(key)?);
            // Allocated at full size, so that no part of the key is left where it grew.
            let mut pem = Zeroizing::new(Vec::with_capacity(certificate.len() + 1 + key.len()));
            pem.extend_from_slice(&certificate);
            pem.push(b'\n');
            pem.extend_from_slice(&key);
            let identity = Identity::from_pem(&pem)
                .map_err(|_| invalid("client_certificate: no certificate and key in PEM"))?;
            client = client.identity(identity);
        }
        client.build().map_err(|error| {
            invalid("the HTTPS client cannot be made").with_source(error.without_url())
        })
    }

    fn headers(&self) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        if let Some(token) = &self.token {
            let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
            let bearer = Zeroizing::new(format!("Bearer {}", token.as_str()));
            let value = HeaderValue::from_str(&bearer).ok();
            let mut value = value
                .filter(|_| is_token)
                .ok_or_else(|| invalid("token: it is empty, or has a character no token has"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(headers)
    }

    fn trusted(&self) -> Result<Vec<Certificate>, Error> {
        let mut all = Vec::new();
        for path in &self.authorities {
            let bad = || invalid(&format!("certificate_authority: no PEM in {}", path.display()));
            let found = Certificate::from_pem_bundle(&read(path)?).map_err(|_| bad())?;
            if found.is_empty() {
                return Err(bad());
            }
            all.extend(found);
        }
        Ok(all)
    }
}

/// The token is a secret.
impl fmt::Debug for OpaPolicyBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpaPolicyBuilder").field("package", &self.package).finish_non_exhaustive()
    }
}

fn checked_url(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(|_| invalid("url: it is none"))?;
    if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
        return Err(invalid("url: http://HOST or https://HOST"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("url: it has a password; use token"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("url: nothing may follow its path"));
    }
    Ok(url)
}

/// The address of the package's document.
fn document(mut url: Url, package: &str) -> Result<Url, Error> {
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if !package.split('.').all(is_name) {
        return Err(invalid(&format!("package: {package:?} is not the name of a package")));
    }
    url.path_segments_mut()
        .map_err(|()| invalid("url: it has no path"))?
        .pop_if_empty()
        .extend(["v1", "data"])
        .extend(package.split('.'));
    // An error of a builtin is an error, as in process. The revision that decided is requested too.
    url.set_query(Some("strict-builtin-errors=true&provenance=true"));
    Ok(url)
}

fn read(path: &Path) -> Result<FileContent, Error> {
    read_file(path, MAX_FILE)
        .map_err(|error| invalid(&format!("{} cannot be read", path.display())).with_source(error))
}

fn invalid(detail: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("OPA: {detail}"))
}
