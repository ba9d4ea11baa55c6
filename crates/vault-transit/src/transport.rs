//! Sends one request, once, and reads a bounded answer: TLS, proxy, time limits. It knows nothing
//! of Transit.
//!
//! The client of vaultrs itself is not used. It cannot trust a private CA *instead of* the
//! system's, it sends the token wherever a redirection points, it panics on a token or a namespace
//! that is not a header value, it reads answers of any size, and its errors contain the body,
//! including a DEK.
#![forbid(unsafe_code)]

use std::error::Error as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Url};
use rustify::endpoint::Endpoint;
use serde::de::DeserializeOwned;
use zeroize::{Zeroize, Zeroizing};

use crate::client::{Elsewhere, Generation, ProxyChoice, Recipe};
use crate::endpoints::{Answer, SecretText};
use crate::errors::{Failure, Refusal, Said, classify, presentable, refusal};
use crate::tls::TlsSources;
use waxseal::kek::toolkit::certificates;

/// A token for requests. Its bytes are wiped when the last request that carries it is done.
pub(crate) struct Token(HeaderValue);

impl Token {
    /// Returns `None` if it has bytes that no header can carry.
    pub(crate) fn new(text: SecretText) -> Option<Self> {
        let mut text = text.0;
        let bytes = Bytes::from_owner(Zeroizing::new(std::mem::take(&mut *text).into_bytes()));
        if bytes.is_empty() || bytes.iter().any(|byte| !byte.is_ascii_graphic()) {
            return None;
        }
        let mut value = HeaderValue::from_maybe_shared(bytes).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }

    /// Returns another handle to the same bytes.
    pub(crate) fn share(&self) -> Self {
        Self(self.0.clone())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// The server's address, the trusted certificates and the time limits.
pub(crate) struct TransportOptions {
    pub(crate) address: Url,
    /// The name in the server's certificate, if it differs from the address.
    pub(crate) server_name: Option<String>,
    pub(crate) namespace: Option<HeaderValue>,
    pub(crate) tls: TlsSources,
    pub(crate) proxy: ProxyChoice,
    pub(crate) follow_redirects: bool,
    /// Whether plain http may go to another machine.
    pub(crate) plain_http: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
}

pub(crate) struct Transport {
    recipe: Arc<Recipe>,
    current: ArcSwap<Generation>,
    /// Held by the caller that makes the next client.
    renewing: tokio::sync::Mutex<()>,
    /// The usual latency, smoothed, in microseconds; 0 before the first answer.
    typical: AtomicU64,
    /// Why the files could not be read again, for an operator.
    trouble: StdMutex<Option<String>>,
    /// Without a path.
    origin: String,
    /// The path before the API's own path: empty, or that of a gateway.
    prefix: String,
    /// The `Host` header, if it differs from the URL's host.
    host: Option<HeaderValue>,
    namespace: Option<HeaderValue>,
}

/// A pool this young has no connection that could have been dropped, and new connections do not
/// help a server that is slow for everybody. Several times the usual latency, within these bounds.
const YOUNG_IN_ANSWERS: u64 = 10;
const LEAST_YOUNG: Duration = Duration::from_millis(500);
const MOST_YOUNG: Duration = Duration::from_secs(1);
/// A dropped request counts as unanswered after several times the usual latency, within these
/// bounds.
const SILENCE_IN_ANSWERS: u64 = 3;
const SHORTEST_SILENCE: Duration = Duration::from_millis(20);
const LONGEST_SILENCE: Duration = Duration::from_secs(1);

/// The maximum size of an answer that is not a batch, in bytes.
pub(crate) const SMALL: usize = 256 * 1024;

/// The answer, whatever its status.
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Retry-After in seconds (RFC 9110, section 10.2.3); a date is ignored.
    retry_after: Option<Duration>,
    body: Zeroizing<Vec<u8>>,
    /// The token of the request.
    token: Option<Token>,
}

/// The maximum number of bytes that an operator sees of an answer that is not in the server's form.
const MOST_SHOWN: usize = 1024;

/// Why a transport cannot be set up.
pub(crate) enum Unusable {
    Files(waxseal::Error),
    Client(reqwest::Error),
}

impl Transport {
    pub(crate) fn new(options: TransportOptions) -> Result<Self, Unusable> {
        let mut url = options.address;
        let mut host = None;
        let mut resolver = None;
        if let Some(name) = options.server_name {
            let real = url.host_str().unwrap_or_default().to_owned();
            let authority =
                url.port().map_or_else(|| real.clone(), |port| format!("{real}:{port}"));
            host = HeaderValue::from_str(&authority).ok();
            // The certificate is checked against the URL's host. The resolver decides the address.
            if url.set_host(Some(&name)).is_ok() {
                resolver = Some(Arc::new(Elsewhere {
                    name,
                    real: real.trim_matches(['[', ']']).to_owned(),
                }));
            }
        }
        let recipe = Recipe {
            tls: options.tls,
            plain: url.scheme() == "http",
            proxy: options.proxy,
            follow_redirects: options.follow_redirects,
            plain_http: options.plain_http,
            connect_timeout: options.connect_timeout,
            timeout: options.timeout,
            resolver,
        };
        let signature = recipe.tls.signature();
        let material = recipe.tls.read().map_err(Unusable::Files)?;
        let client = recipe.client(&material).map_err(Unusable::Client)?;
        Ok(Self {
            recipe: Arc::new(recipe),
            current: ArcSwap::from_pointee(Generation::new(1, client, material, signature)),
            renewing: tokio::sync::Mutex::default(),
            typical: AtomicU64::new(0),
            trouble: StdMutex::default(),
            origin: url.origin().ascii_serialization(),
            prefix: url.path().trim_end_matches('/').to_owned(),
            host,
            namespace: options.namespace,
        })
    }

    /// Returns what an operator should know about the certificate, key and CA files.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns a number that changes when the client's certificate may have changed.
    pub(crate) async fn generation(&self) -> u64 {
        self.trusted().await.number
    }

    /// Returns the client to use, a new one if that is due.
    async fn trusted(&self) -> Arc<Generation> {
        let current = self.current.load_full();
        let due = async |current: &Arc<Generation>| {
            if current.distrusted.load(Ordering::Relaxed) {
                return true;
            }
            if !self.recipe.tls.has_files() {
                return false;
            }
            let (recipe, generation) = (self.recipe.clone(), current.clone());
            let changed =
                tokio::task::spawn_blocking(move || recipe.tls.signature() != generation.signature);
            changed.await.unwrap_or(false)
        };
        if !due(&current).await {
            return current;
        }
        let _gate = self.renewing.lock().await;
        let current = self.current.load_full();
        // Somebody may have made the next one meanwhile.
        if !due(&current).await {
            return current;
        }
        let (recipe, old) = (self.recipe.clone(), current.clone());
        let Ok((next, trouble)) = tokio::task::spawn_blocking(move || recipe.next(&old)).await
        else {
            return current;
        };
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        let Some(next) = next else { return current };
        let next = Arc::new(next);
        self.current.store(next.clone());
        next
    }

    fn in_answers(&self, times: u64, least: Duration, most: Duration) -> Duration {
        let typical = self.typical.load(Ordering::Relaxed);
        Duration::from_micros(typical.saturating_mul(times)).clamp(least, most)
    }

    /// Records that a request on one of its connections was not answered.
    fn distrust(&self, generation: &Generation) {
        if generation.born.elapsed() >= self.in_answers(YOUNG_IN_ANSWERS, LEAST_YOUNG, MOST_YOUNG) {
            generation.distrusted.store(true, Ordering::Relaxed);
        }
    }

    fn answered_after(&self, time: Duration) {
        let now = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        let smoothed = |old: u64| if old == 0 { now } else { old - old / 8 + now / 8 };
        self.typical.update(Ordering::Relaxed, Ordering::Relaxed, smoothed);
    }

    /// Sends `endpoint` with `token`, in the configured namespace.
    pub(crate) async fn send<E: Endpoint>(
        &self,
        operation: &str,
        endpoint: &E,
        token: Option<&Token>,
        most: usize,
    ) -> Result<Reply, Failure> {
        self.send_to(operation, endpoint, token, self.namespace.as_ref(), most).await
    }

    /// Does the same as [`send`](Self::send), for what is common to all namespaces, and without a
    /// token.
    pub(crate) async fn send_to_root<E: Endpoint>(
        &self,
        operation: &str,
        endpoint: &E,
    ) -> Result<Reply, Failure> {
        self.send_to(operation, endpoint, None, None, SMALL).await
    }

    async fn send_to<E: Endpoint>(
        &self,
        operation: &str,
        endpoint: &E,
        token: Option<&Token>,
        namespace: Option<&HeaderValue>,
        most: usize,
    ) -> Result<Reply, Failure> {
        let unsent = || {
            Failure::invalid(format!("{operation}: the request cannot be built")).without_asking()
        };
        let method: Method = endpoint.method().into();
        let body = Zeroizing::new(endpoint.body().map_err(|_| unsent())?.unwrap_or_default());
        let query = endpoint.query().map_err(|_| unsent())?.filter(|query| !query.is_empty());
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let url = format!(
            "{}{}/v1/{}{query}",
            self.origin,
            self.prefix,
            encode_path(endpoint.path().trim_start_matches('/'))
        );
        let mut headers = HeaderMap::new();
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if !body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(host) = &self.host {
            headers.insert(HOST, host.clone());
        }
        if let Some(token) = token {
            headers.insert("x-vault-token", token.0.clone());
        }
        if let Some(namespace) = namespace {
            headers.insert("x-vault-namespace", namespace.clone());
        }
        // Wiped when the connection is done with it.
        let body = Bytes::from_owner(body);
        let generation = self.trusted().await;
        let request = generation.client.request(method, url).headers(headers).body(body);
        let asking =
            Asking { transport: self, generation: &generation, start: Instant::now(), over: false };
        let (status, retry_after, body) = asking.answer(operation, request, most).await?;
        Ok(Reply { status, retry_after, body, token: token.map(Token::share) })
    }
}

/// A request in flight. If its caller leaves without an answer, the pool that it used is judged.
struct Asking<'a> {
    transport: &'a Transport,
    generation: &'a Generation,
    start: Instant,
    over: bool,
}

impl Asking<'_> {
    async fn answer(
        mut self,
        operation: &str,
        request: reqwest::RequestBuilder,
        most: usize,
    ) -> Result<(u16, Option<Duration>, Zeroizing<Vec<u8>>), Failure> {
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Err(self.failed(operation, &error)),
        };
        self.transport.answered_after(self.start.elapsed());
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        let mut body = Zeroizing::new(Vec::new());
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => return Err(self.failed(operation, &error)),
            };
            let fits = body.len() + chunk.len() <= most;
            if fits {
                append(&mut body, &chunk);
            }
            // Succeeds if nobody else holds the buffer. The connection's own buffers are out of
            // reach.
            if let Ok(mut chunk) = chunk.try_into_mut() {
                chunk.zeroize();
            }
            if !fits {
                self.over = true;
                return Err(Failure::unavailable(format!(
                    "{operation}: an answer of more than {most} bytes"
                )));
            }
        }
        self.over = true;
        Ok((status, retry_after, body))
    }

    fn failed(&mut self, operation: &str, error: &reqwest::Error) -> Failure {
        self.over = true;
        // If no connection was made, none was dropped.
        if !error.is_connect() {
            self.transport.distrust(self.generation);
        }
        unreachable(operation, error)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.over
            && self.start.elapsed()
                >= self.transport.in_answers(SILENCE_IN_ANSWERS, SHORTEST_SILENCE, LONGEST_SILENCE)
        {
            self.transport.distrust(self.generation);
        }
    }
}

/// Encodes every byte that could have a special meaning. Segments stay segments.
fn encode_path(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

impl Reply {
    /// Returns who sent an unsuccessful answer.
    fn said(&self) -> Said {
        let answer: Option<Answer<serde::de::IgnoredAny>> = serde_json::from_slice(&self.body).ok();
        match answer.and_then(|answer| answer.errors) {
            Some(texts) => Said::ByTheServer(texts),
            None => {
                // Some answers repeat what they were sent.
                let start =
                    String::from_utf8_lossy(self.body.get(..MOST_SHOWN).unwrap_or(&self.body));
                Said::BySomethingElse(match self.token.as_ref().map(Token::bytes) {
                    Some(token) => start.replace(&*String::from_utf8_lossy(token), "[…]"),
                    None => start.into_owned(),
                })
            }
        }
    }

    /// Whether an error has the server's form.
    pub(crate) fn is_the_servers(&self) -> bool {
        matches!(self.said(), Said::ByTheServer(_))
    }

    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The reason of the server's own 403.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self.said() {
            Said::ByTheServer(texts) if self.status == 403 => Some(refusal(&texts)),
            _ => None,
        }
    }

    /// Returns what an unsuccessful answer means.
    pub(crate) fn failure(&self, operation: &str) -> Failure {
        let failure = classify(operation, self.status, &self.said());
        Failure { retry_after: self.retry_after, ..failure }
    }

    /// Reads the answer in any form.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Returns a successful answer, or else what it means.
    pub(crate) fn success<T: DeserializeOwned>(
        &self,
        operation: &str,
    ) -> Result<Answer<T>, Failure> {
        match self.is_success() {
            true => self.read().ok_or_else(|| Failure::not_understood(operation)),
            false => Err(self.failure(operation)),
        }
    }
}

/// Appends without leaving a copy behind.
fn append(body: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    if body.capacity() - body.len() < more.len() {
        let mut larger = Zeroizing::new(Vec::with_capacity(
            (body.len() + more.len()).max(2 * body.capacity()).max(1024),
        ));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(more);
}

/// Returns why there is no answer. The text contains neither address nor body.
fn unreachable(operation: &str, error: &reqwest::Error) -> Failure {
    let mut cause = error.source();
    let mut last = String::new();
    let mut certificate = false;
    while let Some(error) = cause {
        let text = error.to_string();
        certificate |= certificates::blamed_in(&text);
        last = presentable(&text);
        cause = error.source();
    }
    let what = if certificate {
        "a certificate is not accepted"
    } else if error.is_timeout() {
        "no answer in time"
    } else if error.is_dns() {
        "the server's name cannot be resolved"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the answer broke off"
    };
    let separator = if last.is_empty() { "" } else { ": " };
    let hint = if last.contains("UnknownIssuer") { "; `ca_file` names its CA" } else { "" };
    let message = format!("{operation}: {what}{separator}{last}{hint}");
    if certificate { Failure::misconfigured(message) } else { Failure::unavailable(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_no_header_can_carry_is_refused() {
        let token = |text: &str| Token::new(SecretText::new(text.to_owned()));
        for text in ["", "a b", "a\nb", "a\r\nX-Other: 1", "é", "\u{7f}"] {
            assert!(token(text).is_none(), "{text:?}");
        }
        assert!(token("hvs.CAES").is_some());
    }

    #[test]
    fn a_token_is_in_no_debug_text() {
        let token = Token::new(SecretText::new("hvs.secret".to_owned())).unwrap();
        assert!(!format!("{:?}", token.0).contains("secret"));
    }

    #[test]
    fn a_path_means_itself_whatever_is_in_it() {
        for (path, encoded) in [
            ("transit/keys/orders-1.2_x~", "transit/keys/orders-1.2_x~"),
            ("my transit/keys/a", "my%20transit/keys/a"),
            ("a%2fb?c#d", "a%252fb%3Fc%23d"),
            ("ä", "%C3%A4"),
        ] {
            assert_eq!(encode_path(path), encoded);
            let url = Url::parse(&format!("https://vault/v1/{encoded}")).unwrap();
            assert_eq!(
                url.path(),
                format!("/v1/{encoded}"),
                "nothing is left for a parser to change"
            );
        }
    }

    #[test]
    fn an_answer_grows_and_keeps_its_bytes() {
        let mut body = Zeroizing::new(Vec::new());
        let whole: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        for chunk in whole.chunks(333) {
            append(&mut body, chunk);
        }
        assert_eq!(*body, whole);
    }
}
