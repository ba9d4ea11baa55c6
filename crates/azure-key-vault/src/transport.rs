//! Sends one request of the SDK, once, and reads a bounded answer: TLS, time limits, connections.
//!
//! The SDK's own client cannot trust a private authority, waits a minute, and reads answers of any
//! size.
#![forbid(unsafe_code)]

use std::error::Error as StdError;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use azure_core::Error as SdkError;
use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::headers::{HeaderName, HeaderValue as SdkHeaderValue, Headers};
use azure_core::http::{AsyncRawResponse, Body, HttpClient, Method, Request};
use bytes::Bytes;
use reqwest::header::HeaderValue;
use reqwest::{Certificate, Client, redirect};
use zeroize::{Zeroize, Zeroizing};

use waxseal::kek::toolkit::certificates;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum size of an answer. An RSA key has less than 2 KiB, a token with many groups less
/// than 64.
const MOST_BODY: usize = 256 * 1024;
/// A pool this young has no connection that could have been dropped.
const YOUNG: Duration = Duration::from_secs(1);
/// A dropped request counts as unanswered after this time.
const SILENCE: Duration = Duration::from_millis(250);

/// Why there is no answer. It contains neither address nor body.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) misconfigured: bool,
    pub(crate) text: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Trouble {}

/// The settings of a client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recipe {
    /// A PEM file of authorities that are trusted instead of the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// The addresses of hosts, regardless of DNS.
    pub(crate) elsewhere: Vec<(String, SocketAddr)>,
}

impl Recipe {
    fn pool(&self, roots: Option<&[Certificate]>) -> Result<Pool, reqwest::Error> {
        let plain = Client::builder()
            .tls_backend_rustls()
            .tls_certs_only([])
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .build()?;
        Ok(Pool::new(self.client(roots)?, plain))
    }

    fn client(&self, roots: Option<&[Certificate]>) -> Result<Client, reqwest::Error> {
        let mut client = Client::builder()
            .tls_backend_rustls()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::none())
            .referer(false);
        if let Some(roots) = roots {
            client = client.tls_certs_only(roots.iter().cloned());
        }
        for (host, address) in &self.elsewhere {
            client = client.resolve(host, *address);
        }
        client.build()
    }
}

/// A client and the connections in its pool.
///
/// A connection may be dead without notice: a middlebox dropped it, and everything sent on it
/// vanishes. So a pool in which a request met silence is not used again.
struct Pool {
    client: Client,
    /// For plain http, to the identity service of this machine at a link-local address. A proxy
    /// (`HTTP_PROXY`) would see the token, and ask for that of its own machine.
    plain: Client,
    born: Instant,
    distrusted: AtomicBool,
}

impl Pool {
    fn new(client: Client, plain: Client) -> Self {
        Self { client, plain, born: Instant::now(), distrusted: AtomicBool::new(false) }
    }

    fn distrust(&self) {
        if self.born.elapsed() >= YOUNG {
            self.distrusted.store(true, Ordering::Relaxed);
        }
    }
}

pub(crate) struct Transport {
    recipe: Recipe,
    roots: Option<Vec<Certificate>>,
    pool: ArcSwap<Pool>,
}

impl Transport {
    /// Reads the file of authorities, and the system's.
    pub(crate) fn new(recipe: Recipe) -> Result<Self, String> {
        let roots = match &recipe.ca_file {
            None => None,
            Some(path) => {
                let shown = path.display();
                let pem = std::fs::read(path)
                    .map_err(|error| format!("ca_file: {shown} cannot be read: {error}"))?;
                match Certificate::from_pem_bundle(&pem) {
                    Ok(roots) if !roots.is_empty() => Some(roots),
                    _ => return Err(format!("ca_file: {shown} holds no certificates in PEM")),
                }
            }
        };
        let pool = recipe
            .pool(roots.as_deref())
            .map_err(|_| "the HTTPS client cannot be made: are there root certificates?")?;
        Ok(Self { recipe, roots, pool: ArcSwap::from_pointee(pool) })
    }

    fn pool(&self) -> Arc<Pool> {
        let pool = self.pool.load_full();
        if !pool.distrusted.load(Ordering::Relaxed) {
            return pool;
        }
        // Two concurrent threads make two clients, one of which is used.
        match self.recipe.pool(self.roots.as_deref()) {
            Ok(next) => {
                let next = Arc::new(next);
                self.pool.store(next.clone());
                next
            }
            Err(_) => pool,
        }
    }

    async fn send(&self, request: &Request) -> Result<(u16, Headers, Bytes), Trouble> {
        let pool = self.pool();
        let method = match request.method() {
            Method::Delete => reqwest::Method::DELETE,
            Method::Get => reqwest::Method::GET,
            Method::Head => reqwest::Method::HEAD,
            Method::Patch => reqwest::Method::PATCH,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
            _ => return Err(unsent()),
        };
        let is_plain = request.url().scheme() == "http";
        if is_plain && !is_near(request.url().host_str().unwrap_or_default()) {
            // As with a wrong certificate, this server must not be sent anything.
            return Err(Trouble { misconfigured: true, text: IN_THE_CLEAR.to_owned() });
        }
        let client = if is_plain { &pool.plain } else { &pool.client };
        let mut sent = client.request(method, request.url().clone());
        for (name, value) in request.headers().iter() {
            let mut value = HeaderValue::from_str(value.as_str()).map_err(|_| unsent())?;
            value.set_sensitive(name.as_str().eq_ignore_ascii_case("authorization"));
            sent = sent.header(name.as_str(), value);
        }
        let body = match request.body() {
            Body::Bytes(bytes) => bytes.clone(),
            Body::SeekableStream(_) => return Err(unsent()),
        };
        let asking = Asking { pool: &pool, start: Instant::now(), over: false };
        asking.answer(sent.body(body)).await
    }
}

const IN_THE_CLEAR: &str = "an identity service on another machine is not asked in the clear \
                            (IDENTITY_ENDPOINT)";

/// Whether it is this machine or its link, where the identity services of virtual machines, App
/// Service and containers are.
fn is_near(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_loopback() || address.is_unicast_link_local(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

fn unsent() -> Trouble {
    Trouble { misconfigured: false, text: "the request cannot be built".to_owned() }
}

/// A request in flight. If its caller leaves without an answer, the pool that it used is judged.
struct Asking<'a> {
    pool: &'a Pool,
    start: Instant,
    over: bool,
}

impl Asking<'_> {
    async fn answer(
        mut self,
        request: reqwest::RequestBuilder,
    ) -> Result<(u16, Headers, Bytes), Trouble> {
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Err(self.failed(&error)),
        };
        let status = response.status().as_u16();
        let mut headers = Headers::new();
        for (name, value) in response.headers() {
            if let Ok(value) = value.to_str() {
                let name = HeaderName::from(name.as_str().to_owned());
                headers.insert(name, SdkHeaderValue::from(value.to_owned()));
            }
        }
        let mut body = Zeroizing::new(Vec::new());
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => return Err(self.failed(&error)),
            };
            let fits = body.len() + chunk.len() <= MOST_BODY;
            if fits {
                append(&mut body, &chunk);
            }
            // Succeeds if nobody else holds the buffer.
            if let Ok(mut chunk) = chunk.try_into_mut() {
                chunk.zeroize();
            }
            if !fits {
                self.over = true;
                let text = format!("an answer of more than {MOST_BODY} bytes");
                return Err(Trouble { misconfigured: false, text });
            }
        }
        self.over = true;
        // Wiped when the SDK is done with it.
        Ok((status, headers, Bytes::from_owner(body)))
    }

    fn failed(&mut self, error: &reqwest::Error) -> Trouble {
        self.over = true;
        // If no connection was made, none was dropped.
        if !error.is_connect() {
            self.pool.distrust();
        }
        unreachable(error)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.over && self.start.elapsed() >= SILENCE {
            self.pool.distrust();
        }
    }
}

/// Appends without leaving a copy behind.
fn append(body: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    if body.capacity() - body.len() < more.len() {
        let most = (body.len() + more.len()).max(2 * body.capacity()).max(1024);
        let mut larger = Zeroizing::new(Vec::with_capacity(most));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(more);
}

fn unreachable(error: &reqwest::Error) -> Trouble {
    let mut cause = error.source();
    let mut last = String::new();
    let mut certificate = false;
    while let Some(error) = cause {
        last = error.to_string();
        certificate |= certificates::blamed_in(&last);
        cause = error.source();
    }
    let what = if certificate {
        "a certificate is not accepted"
    } else if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the answer broke off"
    };
    let separator = if last.is_empty() { "" } else { ": " };
    Trouble { misconfigured: certificate, text: format!("{what}{separator}{last}") }
}

#[async_trait::async_trait]
impl HttpClient for Transport {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let (status, headers, body) = self
            .send(request)
            .await
            .map_err(|trouble| SdkError::with_error(SdkErrorKind::Io, trouble, "no answer"))?;
        Ok(AsyncRawResponse::from_bytes(status.into(), headers, body))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_grows_and_keeps_its_bytes() {
        let mut body = Zeroizing::new(Vec::new());
        let whole: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        for chunk in whole.chunks(333) {
            append(&mut body, chunk);
        }
        assert_eq!(*body, whole);
    }

    /// `HTTP_PROXY` is read when a client is made, so this runs in a separate process.
    #[test]
    fn what_goes_in_the_clear_passes_by_no_proxy() {
        const TARGET: &str = "WAXSEAL_TEST_PLAIN_TARGET";
        if let Ok(url) = std::env::var(TARGET) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let transport = Transport::new(Recipe::default()).unwrap();
            let request = Request::new(url.parse().unwrap(), Method::Get);
            let (status, ..) = runtime.unwrap().block_on(transport.send(&request)).unwrap();
            assert_eq!(status, 200, "the proxy answered");
            return;
        }
        let serve = |answer: &'static str| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/", listener.local_addr().unwrap());
            std::thread::spawn(move || {
                use std::io::{Read, Write};
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
            url
        };
        let target = serve("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let proxy = serve("HTTP/1.1 418 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let test = "transport::tests::what_goes_in_the_clear_passes_by_no_proxy";
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact"])
            .env(TARGET, target)
            .env("HTTP_PROXY", &proxy)
            .env("http_proxy", &proxy)
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .status();
        assert!(status.unwrap().success());
    }

    #[test]
    fn only_what_is_near_is_asked_in_the_clear() {
        for host in ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "169.254.169.254", "[fe80::1]"]
        {
            assert!(is_near(host), "{host}");
        }
        for host in ["", "10.0.0.1", "192.0.2.1", "[2001:db8::1]", "localhost.example", "169.254.1"]
        {
            assert!(!is_near(host), "{host}");
        }
    }

    #[test]
    fn a_young_pool_is_kept_and_an_old_one_is_left_after_silence() {
        let transport = Transport::new(Recipe::default()).unwrap();
        let pool = transport.pool();
        pool.distrust();
        assert!(Arc::ptr_eq(&pool, &transport.pool()));
        let old = Pool {
            born: Instant::now() - 2 * YOUNG,
            ..Pool::new(pool.client.clone(), pool.plain.clone())
        };
        transport.pool.store(Arc::new(old));
        let old = transport.pool();
        old.distrust();
        assert!(!Arc::ptr_eq(&old, &transport.pool()));
    }
}
