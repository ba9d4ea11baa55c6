//! How KMS is reached: over connections that are trusted only as long as they work, and never in
//! the clear to another machine.
//!
//! A connection in the SDK's pool may be dead without notice: a NAT gateway or load balancer
//! dropped it without sending anything. A call on it waits until it is dropped, and the next call
//! takes the next dead connection. So after an unanswered call, its pool is abandoned and a new one
//! is made.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls;
use aws_smithy_http_client::{Builder, ConnectorBuilder};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::timeout::TimeoutConfig;

/// A dropped call counts as unanswered once it took several times as long as usual, within these
/// bounds.
const SHORTEST_SILENCE: Duration = Duration::from_millis(25);
const LONGEST_SILENCE: Duration = Duration::from_millis(400);
const SILENCE_FACTOR: u32 = 8;
/// The SDK's default.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3100);
/// Pools of a foreign HTTP client are distinguished by this many connect timeouts.
const POOLS: u64 = 64;

pub(crate) const IN_THE_CLEAR: &str =
    "plain http to another machine: a DEK would cross the network in the clear";
pub(crate) const NO_ROOTS: &str = "no root certificates are found on this system (SSL_CERT_FILE and SSL_CERT_DIR name other places), so no \
     server can be trusted; install them, or hand in a client with an HTTP client of its own";

/// Whether nobody else can read requests to this URL: they use TLS, or stay on this machine.
pub(crate) fn is_private(url: &str) -> bool {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    if host.is_empty() || authority.contains('@') {
        return false;
    }
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_here = host.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.is_loopback());
    scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http") && is_here
}

/// Returns scheme, host and port. Anything after them may be a secret.
pub(crate) fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url.get(start..).and_then(|rest| rest.find(['/', '?', '#', '\\']));
    end.and_then(|end| url.get(..start + end)).unwrap_or(url)
}

pub(crate) fn is_plain(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:"))
}

/// Blocks every request that would go to another machine in the clear, wherever its endpoint came
/// from.
#[derive(Debug)]
pub(crate) struct PlainTextGuard;

/// Why it blocked the request.
#[derive(Debug)]
pub(crate) struct InTheClear;

impl fmt::Display for InTheClear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(IN_THE_CLEAR)
    }
}

impl std::error::Error for InTheClear {}

impl Intercept for PlainTextGuard {
    fn name(&self) -> &'static str {
        "PlainTextGuard"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if is_private(context.request().uri()) { Ok(()) } else { Err(Box::new(InTheClear)) }
    }
}

/// Records the target of a request, and lets none through.
#[derive(Debug, Default)]
pub(crate) struct Probe(Mutex<Option<String>>);

impl Probe {
    pub(crate) fn found(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// For the SDK, which takes ownership of interceptors.
#[derive(Debug, Clone)]
pub(crate) struct ProbeHandle(pub(crate) Arc<Probe>);

impl Intercept for ProbeHandle {
    fn name(&self) -> &'static str {
        "Probe"
    }

    fn read_before_signing(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let uri = context.request().uri().to_owned();
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(uri);
        Err("only the endpoint was asked for".into())
    }
}

/// Whether the system has root certificates. If there are none, the SDK does not say so: it panics,
/// or trusts nobody.
pub(crate) fn has_roots() -> bool {
    static FOUND: OnceLock<()> = OnceLock::new();
    if FOUND.get().is_some() {
        return true;
    }
    let certificates = rustls_native_certs::load_native_certs().certs;
    let (usable, _) = rustls::RootCertStore::empty().add_parsable_certificates(certificates);
    let has_roots = usable > 0;
    if has_roots {
        let _ = FOUND.set(());
    }
    has_roots
}

/// Returns the SDK's HTTP client with its own pool. Proxies of the environment (`HTTPS_PROXY`,
/// `ALL_PROXY`, `NO_PROXY`) are used, except for plain http, which stays on this machine.
pub(crate) fn http_client(in_the_clear: bool) -> SharedHttpClient {
    Builder::new().build_with_connector_fn(move |settings, components| {
        let rustls = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
        let mut connector = ConnectorBuilder::default().tls_provider(rustls);
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        let proxy = if in_the_clear { ProxyConfig::disabled() } else { ProxyConfig::from_env() };
        connector.set_proxy_config(Some(proxy));
        connector.build()
    })
}

/// For a foreign HTTP client. Those of the SDK keep a pool for each connect timeout, so another
/// timeout gives another pool.
pub(crate) fn timeouts_of_pool(timeouts: Option<&TimeoutConfig>, pool: u64) -> TimeoutConfig {
    let timeouts = timeouts.cloned().unwrap_or_else(|| TimeoutConfig::builder().build());
    let connect = timeouts.connect_timeout().unwrap_or(CONNECT_TIMEOUT);
    let connect = connect.saturating_add(Duration::from_nanos(pool % POOLS));
    timeouts.to_builder().connect_timeout(connect).build()
}

/// The state of one client's connections.
#[derive(Debug)]
pub(crate) struct Pool {
    /// A pool in which nothing was answered holds no idle connection, so a new pool could not be
    /// better.
    has_answered: AtomicBool,
    /// The usual latency in microseconds, smoothed.
    usual: AtomicU64,
    is_left: AtomicBool,
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self {
            has_answered: AtomicBool::new(false),
            usual: AtomicU64::new(0),
            is_left: AtomicBool::new(false),
        }
    }

    /// Records an answer over one of its connections.
    pub(crate) fn answered(&self, elapsed: Duration) {
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
    pub(crate) fn leave(&self) {
        if self.has_answered.load(Ordering::Acquire) {
            self.is_left.store(true, Ordering::Release);
        }
    }

    /// Records that a call was dropped that had begun at `began`.
    pub(crate) fn given_up(&self, began: Instant) {
        let usual = Duration::from_micros(self.usual.load(Ordering::Relaxed));
        let silence = usual.saturating_mul(SILENCE_FACTOR).clamp(SHORTEST_SILENCE, LONGEST_SILENCE);
        if began.elapsed() >= silence {
            self.leave();
        }
    }

    pub(crate) fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Acquire)
    }
}

/// A call in flight. If it is dropped without an answer, the pool learns of it at once.
pub(crate) struct OnItsWay {
    pool: Option<Arc<Pool>>,
    began: Instant,
}

impl OnItsWay {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        Self { pool: Some(pool), began: Instant::now() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_reached_in_the_clear() {
        for url in [
            "https://kms.eu-west-1.amazonaws.com/",
            "HTTPS://kms.example.com:8443/path",
            "http://127.0.0.1:4566/",
            "http://127.8.9.1",
            "http://[::1]:4566/",
            "http://localhost:1/",
            "http://LOCALHOST/",
        ] {
            assert!(is_private(url), "{url}");
        }
        for url in [
            "http://kms.example.com/",
            "http://127.0.0.1.example.com/",
            "http://localhost.example.com/",
            "http://127.0.0.1@kms.example.com/",
            "http://kms.example.com\\@127.0.0.1/",
            "http://10.0.0.1/",
            "http://[::2]/",
            "http:///",
            "https://",
            "ftp://127.0.0.1/",
            "127.0.0.1",
            "",
        ] {
            assert!(!is_private(url), "{url}");
        }
    }

    #[test]
    fn a_pool_is_left_after_silence_and_only_if_it_had_answered() {
        let long_ago = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        let pool = Pool::new();
        pool.given_up(long_ago);
        assert!(!pool.is_left(), "nothing waits in it");
        pool.answered(Duration::from_millis(1));
        pool.given_up(Instant::now());
        assert!(!pool.is_left(), "a caller that had no time");
        pool.given_up(long_ago);
        assert!(pool.is_left());
    }

    #[test]
    fn pools_of_another_s_http_client_are_told_apart_and_bounded() {
        let connect = |timeouts: &TimeoutConfig| timeouts.connect_timeout().unwrap();
        assert_ne!(connect(&timeouts_of_pool(None, 1)), connect(&timeouts_of_pool(None, 2)));
        assert_eq!(
            connect(&timeouts_of_pool(None, 1)),
            connect(&timeouts_of_pool(None, 1 + POOLS))
        );
        let own = TimeoutConfig::builder().connect_timeout(Duration::from_secs(1)).build();
        assert!(connect(&timeouts_of_pool(Some(&own), 5)) < Duration::from_millis(1001));
    }
}
