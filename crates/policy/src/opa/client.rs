//! Asks an OPA server, and reads a bounded answer.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Response, StatusCode, Url};
use serde_json::Value;
use tokio::sync::Semaphore;
use waxseal::kek::toolkit::{Spawner, certificates};
use waxseal::kek::{KekError, KekErrorClass};
use waxseal::policy::{BoxFuture, Decision, Policy, Question};
use waxseal::{Error, ErrorKind};

use crate::answer;

/// The maximum size of an answer in bytes.
const MAX_ANSWER: usize = 256 * 1024;

/// A policy on an [Open Policy Agent](https://www.openpolicyagent.org) server, asked over its REST
/// interface.
///
/// It calls `POST /v1/data/PACKAGE` with the [`Question`] as the input, and reads `allow`,
/// `deny_reason` and `valid_for_seconds` of the result like [`RegoPolicy`](crate::RegoPolicy).
/// **Anything but a clear allow is a denial**: an undefined document, another type, a partial
/// answer, a status other than 200. A server that cannot be reached, is late, or answers 429 or 5xx
/// is an outage, for which
/// [`PolicyOptions::last_known_for`](waxseal::policy::PolicyOptions::last_known_for) may choose
/// otherwise.
///
/// The library does not notice when the server loads another policy. Decisions are still used for
/// [`cache_for`](waxseal::policy::PolicyOptions::cache_for) after that, or until
/// [`forget`](Self::forget).
///
/// ```no_run
/// # async fn example() -> Result<(), waxseal::Error> {
/// use waxseal::policy::PolicyOptions;
/// use waxseal::{Envelope, kek::local::LocalKek};
/// use waxseal_policy::OpaPolicy;
///
/// let policy = OpaPolicy::unix_socket("/run/opa/opa.sock").package("waxseal").build()?;
/// let kek = LocalKek::in_memory("dev")?;
/// let envelope = Envelope::builder().wrap_with(kek).policy(policy, PolicyOptions::default()).build()?;
/// # Ok(()) }
/// ```
///
/// A clone is another handle to the same client.
#[derive(Clone)]
pub struct OpaPolicy(Arc<Inner>);

struct Inner {
    server: Arc<Server>,
    turns: Arc<Semaphore>,
    spawner: Spawner,
    generation: AtomicU64,
}

/// Where to ask, and how.
pub(super) struct Server {
    pub(super) client: Client,
    pub(super) url: Url,
    pub(super) timeout: Duration,
}

impl OpaPolicy {
    pub(super) fn new(server: Server, in_flight: usize, spawner: Spawner) -> Self {
        let (server, turns) = (Arc::new(server), Arc::new(Semaphore::new(in_flight)));
        Self(Arc::new(Inner { server, turns, spawner, generation: AtomicU64::new(1) }))
    }

    /// Drops all cached decisions, and ends the handles that depend on one. Call it when the server
    /// has another policy.
    pub fn forget(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
    }
}

impl Policy for OpaPolicy {
    fn decide<'a>(&'a self, question: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        Box::pin(async move {
            let body = serde_json::to_vec(&serde_json::json!({ "input": question }))
                .map_err(|_| Error::new(ErrorKind::Provider, "the question is not JSON"))?;
            let (server, turns) = (self.0.server.clone(), self.0.turns.clone());
            let work = async move { server.ask(&turns, body).await };
            self.0.spawner.run(work).await.map_err(Error::from)
        })
    }

    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }
}

impl fmt::Debug for OpaPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpaPolicy")
            .field("url", &self.0.server.url.as_str())
            .finish_non_exhaustive()
    }
}

impl Server {
    async fn ask(&self, turns: &Semaphore, body: Vec<u8>) -> Result<Decision, KekError> {
        let answer = async {
            let _turn = turns.acquire().await.map_err(|_| unavailable("it is closed"))?;
            let response = match self.send(body.clone()).await {
                // A server may close an idle connection just as it is being used.
                Err(error) if is_of_connection(&error) => self.send(body).await,
                answer => answer,
            };
            let response = response.map_err(not_sent)?;
            let status = response.status();
            let bytes = bounded(response).await?;
            decided(status, &bytes)
        };
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(unavailable("the OPA server did not answer in time")),
        }
    }

    async fn send(&self, body: Vec<u8>) -> Result<Response, reqwest::Error> {
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json");
        request.body(body).send().await
    }
}

/// Whether the connection ended before an answer began.
fn is_of_connection(error: &reqwest::Error) -> bool {
    error.is_request() && !error.is_connect() && !error.is_timeout()
}

async fn bounded(mut response: Response) -> Result<Vec<u8>, KekError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(not_sent)? {
        if bytes.len() + chunk.len() > MAX_ANSWER {
            let text = format!("the OPA server's answer has more than {MAX_ANSWER} bytes");
            return Err(KekError::new(KekErrorClass::Invalid, text));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Reads an answer that arrived.
fn decided(status: StatusCode, bytes: &[u8]) -> Result<Decision, KekError> {
    let status_text = format!("the OPA server answered {}", status.as_u16());
    match status.as_u16() {
        200 => {}
        // It gives the reason, and may quote the input, so it is not repeated.
        429 => return Err(KekError::new(KekErrorClass::Throttled, status_text)),
        401 | 403 => return Err(KekError::new(KekErrorClass::Misconfigured, status_text)),
        // The policy cannot be evaluated. That is a 500 with its own code, and not an outage.
        500 if code_of(bytes).as_deref() == Some("internal_error") => {
            let text = format!("{status_text}: the policy fails");
            return Err(KekError::new(KekErrorClass::Invalid, text));
        }
        500..=599 => return Err(unavailable(&status_text)),
        _ => return Err(KekError::new(KekErrorClass::Misconfigured, status_text)),
    }
    let invalid = |text: &'static str| KekError::new(KekErrorClass::Invalid, text);
    let answer: Value = serde_json::from_slice(bytes)
        .map_err(|_| invalid("the OPA server's answer is not JSON"))?;
    let Value::Object(answer) = answer else {
        return Err(invalid("the OPA server's answer is not an object"));
    };
    let decision = answer::decision(answer.get("result"));
    Ok(match revision(&answer) {
        Some(revision) => decision.with_revision(revision),
        None => decision,
    })
}

fn code_of(bytes: &[u8]) -> Option<String> {
    let error: Value = serde_json::from_slice(bytes).ok()?;
    error.get("code")?.as_str().map(str::to_owned)
}

/// The revisions of the server's bundles.
fn revision(answer: &serde_json::Map<String, Value>) -> Option<String> {
    let bundles = answer.get("provenance")?.get("bundles")?.as_object()?;
    let revisions = bundles.values().filter_map(|bundle| bundle.get("revision")?.as_str());
    let revisions: Vec<_> = revisions.filter(|revision| !revision.is_empty()).collect();
    (!revisions.is_empty()).then(|| revisions.join(" "))
}

/// Returns the error for a request or an answer that did not get through.
fn not_sent(error: reqwest::Error) -> KekError {
    let mut text = String::new();
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    let class = match certificates::blamed_in(&text) {
        true => KekErrorClass::Misconfigured,
        false => KekErrorClass::Unavailable,
    };
    KekError::new(class, format!("the OPA server cannot be asked{text}"))
}

fn unavailable(text: &str) -> KekError {
    KekError::new(KekErrorClass::Unavailable, text.to_owned())
}
