//! New beginnings of objects on S3: the requests.
//!
//! ```text
//!   create ──► part 1: the new beginning      ┐
//!              part 2…: copies by the store   ┴► list ──► look ──► complete, if unchanged
//! ```
//!
//! `object_store` has requests for all but three: `UploadPartCopy`, `ListParts`, and a completion
//! with a condition. They are signed by its [`Signer`](object_store::signer::Signer) and sent here.
//! The upload is a separate task, so that a caller that leaves leaves nothing behind.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::client::{HttpError, HttpRequest, HttpRequestBody};
use object_store::path::Path;
use object_store::signer::{HeaderMap, HeaderName, HeaderValue, Method, SignedUrlOptions};
use object_store::{Error, PutMultipartOptions, Result, RetryConfig};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::answers::{Answer, Part, Refusal, completion, is_same_tag};
use super::{MOST_PARTS, Shared, StartChange};

/// The number of parts on a page of a list.
const PAGE: usize = 1000;
/// The maximum size of an answer: for a part or a completion, and for a page of a list.
const ANSWER: usize = 64 << 10;
const LIST: usize = 2 << 20;
/// How long a signature is valid: the request only has to arrive.
const SIGNED_FOR: Duration = Duration::from_secs(15 * 60);
/// How often to try to abort an upload.
const ABORTS: usize = 4;

const NAME: &str = "S3";

impl Shared {
    pub(super) async fn replace(
        self: Arc<Self>,
        change: StartChange,
        given_up: oneshot::Receiver<Infallible>,
    ) -> Result<()> {
        let path = self.options.prefix.parts().chain(change.path().parts()).collect();
        let attributes = change.attributes().clone();
        let options = PutMultipartOptions { attributes, ..Default::default() };
        // Not abandoned half-way: without its answer, nobody could abort it.
        let id = self.store.create_multipart_opts(&path, options).await?;
        let is_over = AtomicBool::new(false);
        let upload = Upload { shared: &self, path: &path, id: &id, change: &change, is_over };
        // It runs the store's and the client's own code. A panic there must leave no upload either.
        let done = AssertUnwindSafe(upload.fill_and_complete(given_up)).catch_unwind().await;
        let done = done.unwrap_or_else(|_| Err(failure("a request panicked")));
        if done.is_err() {
            // The first error says more than that of the abort.
            upload.abort().await;
        }
        done
    }
}

/// An upload that was created.
struct Upload<'u> {
    shared: &'u Shared,
    path: &'u Path,
    id: &'u String,
    change: &'u StartChange,
    /// Whether it is being aborted, so that nothing is retried.
    is_over: AtomicBool,
}

/// A part that was sent: its length, and its tag, if S3 returned it.
struct Sent {
    len: u64,
    e_tag: Option<String>,
}

impl Upload<'_> {
    async fn fill_and_complete(&self, mut given_up: oneshot::Receiver<Infallible>) -> Result<()> {
        let sent = self.fill(&mut given_up).await?;
        let looked = pin!(async {
            let parts = self.listed(&sent).await?;
            match self.change.is_unchanged().await? {
                true => Ok(parts),
                false => Err(self.overwritten("it was overwritten meanwhile".into())),
            }
        });
        let parts = match select(looked, given_up).await {
            Either::Left((parts, _)) => parts?,
            Either::Right(_) => return Err(failure("given up")),
        };
        // From here on it cannot be undone.
        self.complete(&parts).await
    }

    /// Makes the store create all parts, some at a time. When this returns, none is in progress, so
    /// an aborted upload is not filled afterwards.
    async fn fill(&self, given_up: &mut oneshot::Receiver<Infallible>) -> Result<Vec<Sent>> {
        if given_up.try_recv().is_err_and(|error| error == TryRecvError::Closed) {
            return Err(failure("given up"));
        }
        let start = self.change.start();
        let rest = start.len() as u64..self.change.object_len();
        let mut copies = (2_u32..).zip(parts_of(rest, self.shared.options.part_size));
        let first = async {
            let data = start.clone().into();
            let part = self.shared.store.put_part(self.path, self.id, 0, data).await;
            let part = part.map_err(|error| match error {
                // The upload is gone, not the object.
                Error::NotFound { source, .. } => Error::Generic { store: NAME, source },
                error => error,
            })?;
            // With checksums, `object_store` has more in it than a tag.
            let e_tag = Some(part.content_id).filter(|id| !id.starts_with('<'));
            Ok((1, Sent { len: start.len() as u64, e_tag }))
        };
        let mut running = FuturesUnordered::new();
        running.push(first.boxed());
        let (mut sent, mut failed, mut is_given_up) = (Vec::new(), None, false);
        loop {
            while failed.is_none()
                && running.len() < self.shared.options.at_once
                && let Some((number, range)) = copies.next()
            {
                running.push(self.copied(number, range));
            }
            let next = match is_given_up {
                true => running.next().await,
                false => match select(running.next(), &mut *given_up).await {
                    Either::Left((next, _)) => next,
                    Either::Right(_) => {
                        is_given_up = true;
                        Some(Err(failure("given up")))
                    }
                },
            };
            match next {
                Some(Ok(part)) => sent.push(part),
                Some(Err(error)) => {
                    self.is_over.store(true, Ordering::SeqCst);
                    failed.get_or_insert(error);
                }
                None => break,
            }
        }
        sent.sort_unstable_by_key(|(number, _)| *number);
        match failed {
            None => Ok(sent.into_iter().map(|(_, part)| part).collect()),
            Some(error) => Err(error),
        }
    }

    /// Has the store copy a range of the object as a part.
    fn copied(&self, number: u32, range: Range<u64>) -> BoxFuture<'_, Result<(u32, Sent)>> {
        async move {
            let source = format!("{}/{}", self.shared.options.bucket, encoded(self.path.as_ref()));
            let last = range.end.saturating_sub(1);
            let mut headers = self.shared.options.headers.clone();
            for (name, value) in [
                ("x-amz-copy-source", source),
                ("x-amz-copy-source-range", format!("bytes={}-{last}", range.start)),
                ("x-amz-copy-source-if-match", self.change.e_tag().to_owned()),
            ] {
                headers.insert(HeaderName::from_static(name), value_of(&value)?);
            }
            let query = vec![
                ("partNumber".to_owned(), number.to_string()),
                ("uploadId".to_owned(), self.id.clone()),
            ];
            let request = Request { method: Method::PUT, query, headers, body: Bytes::new() };
            match self.ask(request, ANSWER).await? {
                Answer::CopyPartResult(copied) => {
                    let (len, e_tag) = (range.end - range.start, Some(copied.e_tag));
                    Ok((number, Sent { len, e_tag }))
                }
                _ => Err(not_s3()),
            }
        }
        .boxed()
    }

    /// Returns the parts as the store lists them, if they match those that were sent. Some services
    /// ignore the range of a copy, and would complete something other than the object.
    async fn listed(&self, sent: &[Sent]) -> Result<Vec<Part>> {
        let mut parts = Vec::<Part>::with_capacity(sent.len());
        loop {
            let query = [
                ("max-parts", PAGE.to_string()),
                ("part-number-marker", parts.last().map_or(0, |part| part.part_number).to_string()),
                ("uploadId", self.id.clone()),
            ];
            let query = query.map(|(name, value)| (name.to_owned(), value)).to_vec();
            let headers = HeaderMap::new();
            let request = Request { method: Method::GET, query, headers, body: Bytes::new() };
            let Answer::ListPartsResult(page) = self.ask(request, LIST).await? else {
                return Err(not_s3());
            };
            let before = parts.len();
            for part in page.part {
                // SeaweedFS lists a part twice if it was sent twice.
                if parts.last() != Some(&part) {
                    parts.push(part);
                }
            }
            if !page.is_truncated || !(before + 1..=sent.len()).contains(&parts.len()) {
                break;
            }
        }
        let is_sent = |((number, part), sent): ((u32, &Part), &Sent)| {
            let is_tagged = sent.e_tag.as_deref().is_none_or(|tag| is_same_tag(tag, &part.e_tag));
            part.part_number == number && part.size == sent.len && is_tagged
        };
        let is_complete = parts.len() == sent.len();
        if !is_complete || !(1..).zip(&parts).zip(sent).all(is_sent) {
            return Err(failure("the store has other parts than it was given"));
        }
        // A completion names the checksums of all parts, if the client requires them of an upload.
        let has_checksums = sent.first().is_some_and(|first| first.e_tag.is_none());
        if has_checksums && !parts.iter().all(Part::has_checksum) {
            let source = "the store tells no checksums of copied parts".into();
            return Err(Error::NotSupported { source });
        }
        Ok(parts)
    }

    async fn complete(&self, parts: &[Part]) -> Result<()> {
        let query = vec![("uploadId".to_owned(), self.id.clone())];
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static("if-match"), value_of(self.change.e_tag())?);
        let body = completion(parts).into();
        match self.ask(Request { method: Method::POST, query, headers, body }, ANSWER).await? {
            Answer::CompleteMultipartUploadResult(_) => Ok(()),
            _ => Err(not_s3()),
        }
    }

    async fn abort(&self) {
        let mut wait = Wait::new(&self.shared.options.retry);
        for _ in 0..ABORTS {
            match self.shared.store.abort_multipart(self.path, self.id).await {
                Ok(()) | Err(Error::NotFound { .. }) => return,
                Err(_) => wait.sleep().await,
            }
        }
    }

    /// Makes a request, and retries it if that may help.
    async fn ask(&self, request: Request, longest: usize) -> Result<Answer> {
        let retry = &self.shared.options.retry;
        let (began, mut wait, mut repetitions) = (Instant::now(), Wait::new(retry), 0);
        loop {
            let failed = match self.ask_once(&request, longest).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let is_exhausted =
                repetitions >= retry.max_retries || began.elapsed() > retry.retry_timeout;
            if !failed.may_pass || is_exhausted || self.is_over.load(Ordering::SeqCst) {
                return Err(failed.error);
            }
            wait.sleep().await;
            repetitions += 1;
        }
    }

    async fn ask_once(&self, request: &Request, longest: usize) -> Result<Answer, Failed> {
        // Signed again each time, since credentials and the clock change. **The URL is a secret.**
        let mut signing = SignedUrlOptions::new().with_query(request.query.iter().cloned());
        // The client would add its own headers, which S3 refuses if they are not signed.
        let mut headers = self.shared.of_client.clone();
        headers.extend(request.headers.clone());
        signing.signed_headers = headers.clone();
        let (store, method) = (&self.shared.store, request.method.clone());
        let url = store.signed_url_opts(method.clone(), self.path, SIGNED_FOR, &signing);
        let url = url.await.map_err(Failed::for_good)?;
        let mut http = HttpRequest::new(HttpRequestBody::from(request.body.clone()));
        let uri = url.as_str().parse();
        *http.uri_mut() = uri.map_err(|_| Failed::for_good(failure("the URL is none for HTTP")))?;
        *http.method_mut() = method;
        *http.headers_mut() = headers;
        let length = HeaderValue::from(request.body.len());
        http.headers_mut().insert(HeaderName::from_static("content-length"), length);
        let answered = async {
            let answer = self.shared.http.execute(http).await.map_err(Failed::on_the_way)?;
            let status = answer.status().as_u16();
            let (mut body, mut pieces) = (Vec::new(), answer.into_body().bytes_stream());
            while let Some(piece) = pieces.try_next().await.map_err(Failed::on_the_way)? {
                if body.len() + piece.len() > longest {
                    return Err(Failed::for_good(failure("an answer that is too long")));
                }
                body.extend_from_slice(&piece);
            }
            Ok((status, body))
        };
        let answered = tokio::time::timeout(self.shared.options.timeout, answered).await;
        let slow = |_| Failed { error: failure("no answer in time"), may_pass: true };
        let (status, body) = answered.map_err(slow)??;
        match (Answer::parse(&body), status) {
            (Some(Answer::Error(refusal)), _) => Err(self.refused(status, Some(refusal))),
            (Some(answer), 200) => Ok(answer),
            (None, 200) => Err(Failed::for_good(not_s3())),
            _ => Err(self.refused(status, None)),
        }
    }

    fn refused(&self, status: u16, refusal: Option<Refusal>) -> Failed {
        let code = refusal.as_ref().map_or("", |refusal| &refusal.code);
        let says =
            refusal.as_ref().map_or_else(String::new, |refusal| format!(" {}", refusal.says()));
        let (path, source) = (self.path.to_string(), format!("status {status}{says}").into());
        let may_pass = match code {
            "InternalError" | "OperationAborted" | "RequestTimeout" | "ServiceUnavailable"
            | "SlowDown" | "Throttling" => true,
            "NotImplemented" => false,
            _ => matches!(status, 408 | 429 | 500 | 502..=599),
        };
        let error = match (code, status) {
            ("PreconditionFailed" | "ConditionalRequestConflict", _) | (_, 412) => {
                self.overwritten(source)
            }
            ("NotImplemented" | "MethodNotAllowed", _) | (_, 405 | 501) => {
                Error::NotSupported { source }
            }
            // The upload is gone, not the object.
            ("NoSuchUpload", _) => Error::Generic { store: NAME, source },
            ("NoSuchKey" | "NoSuchBucket", _) | (_, 404) => Error::NotFound { path, source },
            (_, 401) => Error::Unauthenticated { path, source },
            ("AccessDenied", _) | (_, 403) => Error::PermissionDenied { path, source },
            _ => Error::Generic { store: NAME, source },
        };
        Failed { error, may_pass }
    }

    fn overwritten(&self, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        Error::Precondition { path: self.path.to_string(), source }
    }
}

/// A request for the object at the path of an upload.
struct Request {
    method: Method,
    query: Vec<(String, String)>,
    /// Signed, all of them.
    headers: HeaderMap,
    body: Bytes,
}

/// A request that failed, and whether a retry may succeed.
struct Failed {
    error: Error,
    may_pass: bool,
}

impl Failed {
    fn for_good(error: Error) -> Self {
        Self { error, may_pass: false }
    }

    /// All requests here may be repeated, even those that arrived.
    fn on_the_way(error: HttpError) -> Self {
        let error = Error::Generic { store: NAME, source: Box::new(error) };
        Self { error, may_pass: true }
    }
}

pub(super) fn failure(detail: impl Into<String>) -> Error {
    Error::Generic { store: NAME, source: detail.into().into() }
}

fn not_s3() -> Error {
    failure("an answer that S3 does not give")
}

fn value_of(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| failure("a value that no header can have"))
}

/// The pauses between retries, each up to twice as long as the previous one.
struct Wait {
    next: Duration,
    longest: Duration,
}

impl Wait {
    fn new(retry: &RetryConfig) -> Self {
        Self { next: retry.backoff.init_backoff, longest: retry.backoff.max_backoff }
    }

    /// Waits between half and all of the current step.
    async fn sleep(&mut self) {
        // Any spread will do, so that colliding requests do not collide again.
        let random = RandomState::new().hash_one(0) % 1024;
        let spread = u32::try_from(random).unwrap_or(0);
        let now = self.next.min(self.longest);
        self.next = now.saturating_mul(2);
        tokio::time::sleep(now / 2 + now / 2 * spread / 1024).await;
    }
}

/// Cuts what is copied into parts, of which no object has too many.
fn parts_of(rest: Range<u64>, part_size: u64) -> impl Iterator<Item = Range<u64>> {
    let len = rest.end.saturating_sub(rest.start).div_ceil(MOST_PARTS - 1).max(part_size).max(1);
    let mut at = rest.start;
    std::iter::from_fn(move || {
        let part = at..at.saturating_add(len).min(rest.end);
        at = part.end;
        (!part.is_empty()).then_some(part)
    })
}

/// Encodes a key as S3 takes it in `x-amz-copy-source`.
fn encoded(key: &str) -> String {
    let mut text = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            // Writing to a String cannot fail.
            _ => drop(write!(text, "%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{LARGEST_PART, LEAST_PART};
    use super::*;

    #[test]
    fn the_parts_of_an_object_are_within_what_s3_takes() {
        let (mib, gib) = (1 << 20, 1 << 30);
        let first = LEAST_PART + 64 * 1024;
        for (object, part_size) in [
            (first + 1, 5 * mib),
            (10 * mib, 5 * mib),
            (10 * mib + 1, 5 * mib),
            (40 * mib, 256 * mib),
            (60 * gib, 5 * mib),
            (3 << 40, 256 * mib),
            (first + (MOST_PARTS - 1) * LARGEST_PART, LARGEST_PART),
        ] {
            let parts: Vec<_> = parts_of(first..object, part_size).collect();
            assert!(!parts.is_empty() && parts.len() < 10_000, "{object}: {}", parts.len());
            assert_eq!((parts[0].start, parts[parts.len() - 1].end), (first, object));
            assert!(parts.windows(2).all(|two| two[0].end == two[1].start));
            let len = |part: &Range<u64>| part.end - part.start;
            assert!(parts.iter().all(|part| (1..=LARGEST_PART).contains(&len(part))));
            let all_but_last = &parts[..parts.len() - 1];
            assert!(all_but_last.iter().all(|part| len(part) >= LEAST_PART));
        }
        assert_eq!(parts_of(5..5, 1).count(), 0);
    }

    #[test]
    fn keys_are_encoded_byte_by_byte() {
        assert_eq!(encoded("a/b c+d/ä%~._-"), "a/b%20c%2Bd/%C3%A4%25~._-");
    }
}
