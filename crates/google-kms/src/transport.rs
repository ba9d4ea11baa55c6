//! Sends one request, once, and reads a bounded answer. It knows nothing of Cloud KMS.
//!
//! A connection in the client's pool may be dead without notice: a NAT gateway or load balancer
//! dropped it without sending anything. So after an unanswered request, its pool is abandoned, and
//! the next request has a new client without connections.
#![forbid(unsafe_code)]

use std::error::Error as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, redirect};
use zeroize::{Zeroize, Zeroizing};

use crate::errors::{Failure, tidy};
use waxseal::kek::KekErrorClass;
use waxseal::kek::toolkit::certificates;

/// A dropped request counts as unanswered once it took several times as long as usual, within these
/// bounds.
const SILENCE_IN_ANSWERS: u32 = 8;
const SHORTEST_SILENCE: Duration = Duration::from_millis(25);
const LONGEST_SILENCE: Duration = Duration::from_millis(400);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum size of an answer. One with the largest wrapped key has 12 KiB.
const MOST: usize = 64 * 1024;

pub(crate) const IN_THE_CLEAR: &str =
    "plain http to another machine: a DEK would cross the network in the clear";
pub(crate) const NO_ROOTS: &str = "no root certificates are found on this system (SSL_CERT_FILE and SSL_CERT_DIR name other places), so no \
     server can be trusted; install them";

/// The connections to one server.
pub(crate) struct Transport {
    origin: String,
    is_plain: bool,
    pool: ArcSwap<Pool>,
}

/// A client, and the state of its connections.
struct Pool {
    client: Client,
    /// A pool in which nothing was answered holds no idle connection, so a new pool could not be
    /// better.
    has_answered: AtomicBool,
    /// The usual latency in microseconds, smoothed.
    usual: AtomicU64,
    is_left: AtomicBool,
}

/// The answer, whatever its status.
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// In seconds (RFC 9110, section 10.2.3); a date is ignored.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Transport {
    /// `origin` is scheme, host and port.
    ///
    /// # Errors
    /// What is wrong with it, or with this system.
    pub(crate) fn new(origin: String) -> Result<Self, &'static str> {
        if !is_private(&origin) {
            return Err(IN_THE_CLEAR);
        }
        let is_plain = origin.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:"));
        if !is_plain && !has_roots() {
            return Err(NO_ROOTS);
        }
        let pool = Pool::new(is_plain).map_err(|_| "the HTTPS client cannot be set up")?;
        Ok(Self { origin, is_plain, pool: ArcSwap::from_pointee(pool) })
    }

    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    fn pool(&self) -> Arc<Pool> {
        let pool = self.pool.load_full();
        if !pool.is_left.load(Ordering::Acquire) {
            return pool;
        }
        // Two concurrent threads make two clients, one of which is used.
        let Ok(new) = Pool::new(self.is_plain) else { return pool };
        let new = Arc::new(new);
        self.pool.compare_and_swap(&pool, new);
        self.pool.load_full()
    }

    /// Records that a call is in flight, for a caller that may drop it: the spawned task is dropped
    /// too late for the next try.
    pub(crate) fn on_its_way(&self) -> OnItsWay {
        OnItsWay { pool: Some(self.pool.load_full()), began: Instant::now() }
    }

    /// Sends a request to `path`: a POST if it has a body, and otherwise a GET.
    pub(crate) async fn send(
        &self,
        operation: &str,
        path: &str,
        credentials: HeaderMap,
        body: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Reply, Failure> {
        let mut headers = credentials;
        if let Some(token) = headers.get_mut(AUTHORIZATION) {
            token.set_sensitive(true);
        }
        let method = if body.is_some() { Method::POST } else { Method::GET };
        if body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        // Wiped when the connection is done with it.
        let body = body.map(Bytes::from_owner).unwrap_or_default();
        let pool = self.pool();
        let request = pool.client.request(method, format!("{}{path}", self.origin));
        let on_its_way = OnItsWay { pool: Some(pool.clone()), began: Instant::now() };
        let answer = self.read(operation, request.headers(headers).body(body)).await;
        match &answer {
            Ok(_) => pool.answered(on_its_way.began.elapsed()),
            Err((_, was_connected)) if *was_connected => pool.leave(),
            Err(_) => {}
        }
        on_its_way.over();
        answer.map_err(|(failure, _)| failure)
    }

    /// The failure, and whether there was a connection.
    async fn read(
        &self,
        operation: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Reply, (Failure, bool)> {
        let failed = |error: &reqwest::Error| {
            (unreachable(operation, &self.origin, error), !error.is_connect())
        };
        let mut response = request.send().await.map_err(|error| failed(&error))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        // Allocated at full size: it does not grow, and so leaves no copy behind.
        let mut body = Zeroizing::new(Vec::with_capacity(MOST));
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(&error))? {
            let fits = body.len() + chunk.len() <= MOST;
            if fits {
                body.extend_from_slice(&chunk);
            }
            // Succeeds if nobody else holds the buffer. The connection's own buffers are out of
            // reach.
            if let Ok(mut chunk) = chunk.try_into_mut() {
                chunk.zeroize();
            }
            if !fits {
                let text = format!("{operation}: an answer of more than {MOST} bytes");
                return Err((Failure::unavailable(text), true));
            }
        }
        Ok(Reply { status, retry_after: retry_after.map(Duration::from_secs), body })
    }
}

impl Pool {
    /// Proxies of the environment (`HTTPS_PROXY`, `NO_PROXY`) are used, except for plain http,
    /// which stays on this machine. HTTP/1.1, so that a dead connection affects only one request.
    fn new(is_plain: bool) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .tls_backend_rustls()
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none())
            .referer(false)
            .user_agent(concat!("waxseal-google-kms/", env!("CARGO_PKG_VERSION")));
        let client =
            if is_plain { client.no_proxy().tls_certs_only([]) } else { client.https_only(true) };
        Ok(Self {
            client: client.build()?,
            has_answered: AtomicBool::new(false),
            usual: AtomicU64::new(0),
            is_left: AtomicBool::new(false),
        })
    }

    /// Records an answer over one of its connections.
    fn answered(&self, elapsed: Duration) {
        let elapsed = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).min(1 << 32);
        // A lost update does no harm.
        let usual = match self.usual.load(Ordering::Relaxed) {
            0 => elapsed,
            usual => (usual * 7 + elapsed) / 8,
        };
        self.usual.store(usual.max(1), Ordering::Relaxed);
        self.has_answered.store(true, Ordering::Release);
    }

    /// Abandons the pool after a missing answer, so that its idle connections are not used.
    fn leave(&self) {
        if self.has_answered.load(Ordering::Acquire) {
            self.is_left.store(true, Ordering::Release);
        }
    }

    /// Records that a call was dropped that had begun at `began`.
    fn given_up(&self, began: Instant) {
        let usual = Duration::from_micros(self.usual.load(Ordering::Relaxed));
        let silence =
            usual.saturating_mul(SILENCE_IN_ANSWERS).clamp(SHORTEST_SILENCE, LONGEST_SILENCE);
        if began.elapsed() >= silence {
            self.leave();
        }
    }
}

/// A call in flight. If it is dropped without an answer, the pool learns of it at once.
pub(crate) struct OnItsWay {
    pool: Option<Arc<Pool>>,
    began: Instant,
}

impl OnItsWay {
    /// Records that it was answered, or failed in a way that is reported elsewhere.
    pub(crate) fn over(mut self) {
        self.pool = None;
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.given_up(self.began);
        }
    }
}

/// Whether nobody else can read requests to this URL: they use TLS, or stay on this machine.
pub(crate) fn is_private(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    !host.is_empty() && (url.scheme() == "https" || url.scheme() == "http" && is_here)
}

/// Whether the system has root certificates. Without any the client trusts nobody, or panics.
pub(crate) fn has_roots() -> bool {
    static FOUND: OnceLock<()> = OnceLock::new();
    if FOUND.get().is_some() {
        return true;
    }
    let certificates = rustls_native_certs::load_native_certs().certs;
    let (usable, _) = rustls::RootCertStore::empty().add_parsable_certificates(certificates);
    if usable > 0 {
        let _ = FOUND.set(());
    }
    usable > 0
}

/// Returns why there is no answer. The text contains no body, and only the origin of the address.
fn unreachable(operation: &str, origin: &str, error: &reqwest::Error) -> Failure {
    let mut cause = error.source();
    let mut last = String::new();
    let mut is_certificate = false;
    while let Some(error) = cause {
        let text = error.to_string();
        is_certificate |= certificates::blamed_in(&text);
        last = tidy(&text);
        cause = error.source();
    }
    let what = if is_certificate {
        "a certificate is not accepted"
    } else if error.is_timeout() {
        "no answer in time"
    } else if error.is_dns() {
        "the name cannot be resolved"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the answer broke off"
    };
    let separator = if last.is_empty() { "" } else { ": " };
    let class =
        if is_certificate { KekErrorClass::Misconfigured } else { KekErrorClass::Unavailable };
    Failure::new(class, format!("{operation} at {origin}: {what}{separator}{last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_reached_in_the_clear() {
        for url in [
            "https://cloudkms.googleapis.com",
            "HTTPS://kms.example.com:8443",
            "http://127.0.0.1:4566",
            "http://127.8.9.1",
            "http://[::1]:4566",
            "http://localhost:1",
            "http://LOCALHOST",
        ] {
            assert!(is_private(url), "{url}");
        }
        for url in [
            "http://cloudkms.googleapis.com",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "http://127.0.0.1@kms.example.com",
            "http://10.0.0.1",
            "http://[::2]",
            "http://",
            "https://",
            "ftp://127.0.0.1",
            "127.0.0.1",
            "",
        ] {
            assert!(!is_private(url), "{url}");
        }
    }

    #[test]
    fn a_pool_is_left_after_silence_and_only_if_it_had_answered() {
        let is_left = |pool: &Pool| pool.is_left.load(Ordering::Acquire);
        let long_ago = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        let pool = Pool::new(true).unwrap();
        pool.given_up(long_ago);
        assert!(!is_left(&pool), "nothing waits in it");
        pool.answered(Duration::from_millis(1));
        pool.given_up(Instant::now());
        assert!(!is_left(&pool), "a caller that had no time");
        pool.given_up(long_ago);
        assert!(is_left(&pool));
    }
}
