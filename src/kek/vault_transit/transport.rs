//! Sends one request, once, and reads a bounded answer: TLS, proxy, time limits. It knows nothing of Transit.
//!
//! The client of vaultrs itself is not used: it cannot trust a private CA *instead of* the system's, sends the token wherever a redirection points, panics on
//! a token or a namespace that is no header value, reads answers of any size, and its errors carry the body, a DEK included.
#![forbid(unsafe_code)]

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, Client, Identity, Proxy, Url, redirect};
use rustify::endpoint::Endpoint;
use serde::de::DeserializeOwned;
use zeroize::{Zeroize, Zeroizing};

use super::endpoints::{Answer, SecretText};
use super::errors::{Failure, classify, presentable};

/// A token as it goes into requests: its bytes are wiped when the last request that carries it is done.
pub(super) struct Token(HeaderValue);

impl Token {
    /// `None` if it has bytes that no header can carry.
    pub(super) fn new(text: SecretText) -> Option<Self> {
        let mut text = text.0;
        let bytes = Bytes::from_owner(Zeroizing::new(std::mem::take(&mut *text).into_bytes()));
        if bytes.is_empty() || bytes.iter().any(|byte| !byte.is_ascii_graphic()) {
            return None;
        }
        let mut value = HeaderValue::from_maybe_shared(bytes).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }

    /// Another handle to the same bytes.
    pub(super) fn share(&self) -> Self {
        Self(self.0.clone())
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// Whom to trust and how long to wait.
pub(super) struct TransportOptions {
    pub(super) address: Url,
    pub(super) namespace: Option<HeaderValue>,
    /// Instead of the system's roots, if there are any.
    pub(super) ca: Option<Vec<Certificate>>,
    pub(super) identity: Option<Identity>,
    pub(super) proxy: ProxyChoice,
    pub(super) connect_timeout: Duration,
    pub(super) timeout: Duration,
}

pub(super) enum ProxyChoice {
    None,
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`.
    Environment,
    This(Box<Proxy>),
}

pub(super) struct Transport {
    client: Client,
    /// Without a path.
    origin: String,
    /// What stands before the API's own path: empty, or that of a gateway.
    prefix: String,
    namespace: Option<HeaderValue>,
}

/// Bytes of an answer that is not a batch.
pub(super) const SMALL: usize = 256 * 1024;

/// What came back, whatever its status.
pub(super) struct Reply {
    pub(super) status: u16,
    /// Retry-After in seconds (RFC 9110, section 10.2.3); a date is not read.
    retry_after: Option<Duration>,
    body: Zeroizing<Vec<u8>>,
}

impl Transport {
    pub(super) fn new(options: TransportOptions) -> Result<Self, reqwest::Error> {
        let plain = options.address.scheme() == "http";
        let mut client = Client::builder()
            .tls_backend_rustls()
            .connect_timeout(options.connect_timeout)
            .timeout(options.timeout)
            .redirect(to_the_active_node())
            .referer(false)
            .user_agent(concat!("waxseal/", env!("CARGO_PKG_VERSION")));
        client = match options.ca {
            Some(ca) => client.tls_certs_only(ca),
            // Nothing is to be verified, and a machine without any roots can talk to a local agent.
            None if plain => client.tls_certs_only([]),
            None => client,
        };
        if let Some(identity) = options.identity {
            client = client.identity(identity);
        }
        client = match options.proxy {
            ProxyChoice::None => client.no_proxy(),
            ProxyChoice::Environment => client,
            ProxyChoice::This(proxy) => client.proxy(*proxy),
        };
        let origin = options.address.origin().ascii_serialization();
        let prefix = options.address.path().trim_end_matches('/').to_owned();
        Ok(Self { client: client.build()?, origin, prefix, namespace: options.namespace })
    }

    /// Sends `endpoint` with `token`, in the configured namespace.
    pub(super) async fn send<E: Endpoint>(
        &self,
        operation: &str,
        endpoint: &E,
        token: Option<&Token>,
        most: usize,
    ) -> Result<Reply, Failure> {
        self.send_to(operation, endpoint, token, self.namespace.as_ref(), most).await
    }

    /// As [`send`](Self::send), for what exists once for all namespaces, and without a token.
    pub(super) async fn send_to_root<E: Endpoint>(&self, operation: &str, endpoint: &E) -> Result<Reply, Failure> {
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
        let unsent = || Failure::invalid(format!("{operation}: the request cannot be built"));
        let (parts, body) = endpoint.request(&self.origin).map_err(|_| unsent())?.into_parts();
        let body = Zeroizing::new(body);
        let path = parts.uri.path_and_query().ok_or_else(unsent)?;
        let mut headers = HeaderMap::new();
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if !body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(token) = token {
            headers.insert("x-vault-token", token.0.clone());
        }
        if let Some(namespace) = namespace {
            headers.insert("x-vault-namespace", namespace.clone());
        }
        let url = format!("{}{}/v1{path}", self.origin, self.prefix);
        // Wiped when the connection is done with it.
        let body = Bytes::from_owner(body);
        let request = self.client.request(parts.method, url).headers(headers).body(body);
        let mut response = request.send().await.map_err(|error| unreachable(operation, &error))?;
        let status = response.status().as_u16();
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(operation, &error))? {
            let fits = body.len() + chunk.len() <= most;
            if fits {
                append(&mut body, &chunk);
            }
            // Where nobody else holds the buffer; what the connection's own buffers keep is out of reach.
            if let Ok(mut chunk) = chunk.try_into_mut() {
                chunk.zeroize();
            }
            if !fits {
                return Err(Failure::unavailable(format!("{operation}: an answer of more than {most} bytes")));
            }
        }
        Ok(Reply { status, retry_after, body })
    }
}

impl Reply {
    /// `None` if this is not an error as the server words one.
    fn texts(&self) -> Option<Vec<String>> {
        let answer: Option<Answer<serde::de::IgnoredAny>> = serde_json::from_slice(&self.body).ok();
        answer.and_then(|answer| answer.errors)
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// What an answer means that is no success.
    pub(super) fn failure(&self, operation: &str) -> Failure {
        let failure = classify(operation, self.status, self.texts().as_deref());
        Failure { retry_after: self.retry_after, ..failure }
    }

    /// Reads the answer in whatever form it is.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The answer to a success, else what it means.
    pub(super) fn success<T: DeserializeOwned>(&self, operation: &str) -> Result<Answer<T>, Failure> {
        match self.is_success() {
            true => self.read().ok_or_else(|| Failure::not_understood(operation)),
            false => Err(self.failure(operation)),
        }
    }
}

/// Appends without leaving a copy behind.
fn append(body: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    if body.capacity() - body.len() < more.len() {
        let mut larger =
            Zeroizing::new(Vec::with_capacity((body.len() + more.len()).max(2 * body.capacity()).max(1024)));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(more);
}

/// A standby that does not forward names the active node.
fn to_the_active_node() -> redirect::Policy {
    redirect::Policy::custom(|attempt| match is_followed(attempt.previous(), attempt.url()) {
        true => attempt.follow(),
        false => attempt.stop(),
    })
}

/// Once, and never to where anybody could read along.
fn is_followed(previous: &[Url], next: &Url) -> bool {
    let was_private = previous.iter().any(|url| url.scheme() == "https");
    previous.len() == 1 && (next.scheme() == "https" || !was_private)
}

/// Why there is no answer, in words: neither address nor body is in it.
fn unreachable(operation: &str, error: &reqwest::Error) -> Failure {
    let what = if error.is_timeout() {
        "no answer in time"
    } else if error.is_dns() {
        "the server's name cannot be resolved"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the answer broke off"
    };
    let mut cause = error.source();
    let mut last = String::new();
    while let Some(error) = cause {
        last = presentable(&error.to_string());
        cause = error.source();
    }
    let separator = if last.is_empty() { "" } else { ": " };
    Failure::unavailable(format!("{operation}: {what}{separator}{last}"))
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
    fn a_redirection_is_followed_once_and_never_out_of_tls() {
        let urls = |texts: &[&str]| texts.iter().map(|text| Url::parse(text).unwrap()).collect::<Vec<_>>();
        for (previous, next, followed) in [
            (&["https://a"][..], "https://b", true),
            (&["http://127.0.0.1"], "http://127.0.0.2", true),
            (&["http://127.0.0.1"], "https://b", true),
            (&["https://a"], "http://b", false),
            (&["https://a"], "http://a", false),
            (&["https://a", "https://b"], "https://c", false),
        ] {
            assert_eq!(is_followed(&urls(previous), &urls(&[next])[0]), followed, "{previous:?} to {next}");
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
