//! What goes over the wire to S3: an HTTP client that counts, fails and lies on command.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};

/// A request, as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// What it asks for, in the words of [`name_of`].
    pub(crate) operation: &'static str,
    /// Bytes of the request's body, and of the answer's.
    pub(crate) up: u64,
    pub(crate) down: u64,
    /// The names of the headers that a URL has a signature of.
    pub(crate) signed: String,
}

type Doing = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

#[derive(Clone)]
pub(crate) enum Act {
    Pass,
    /// The request does not arrive.
    Fail,
    /// It arrives, and the answer is lost.
    Lose,
    /// It does not arrive, and for a while nothing comes.
    Hang,
    /// It arrives, and for a while nothing comes.
    HangAfter,
    /// Instead of the server's, without asking it.
    Answer(u16, String),
    /// The server's status, and another body.
    Body(String),
    /// Something else is done before it arrives.
    First(Doing),
    /// It arrives without this header.
    Without(&'static str),
    /// It asks for two parts a page, instead of a thousand.
    ShortPages,
    Panic,
}

/// How long nothing comes.
pub(crate) const HANGS: Duration = Duration::from_millis(300);

type Script = Box<dyn FnMut(usize, &Call) -> Act + Send>;

struct State {
    calls: Mutex<Vec<Call>>,
    script: Mutex<Script>,
}

#[derive(Clone)]
pub(crate) struct Wire(Arc<State>);

impl Wire {
    pub(crate) fn new() -> Self {
        let script = Mutex::new(Box::new(|_: usize, _: &Call| Act::Pass) as Script);
        Self(Arc::new(State { calls: Mutex::default(), script }))
    }

    /// Sets what becomes of requests. They are counted from 0 again.
    pub(crate) fn script(&self, script: impl FnMut(usize, &Call) -> Act + Send + 'static) {
        self.take_calls();
        *self.0.script.lock().unwrap() = Box::new(script);
    }

    pub(crate) fn behave(&self) {
        self.script(|_, _| Act::Pass);
    }

    pub(crate) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.0.calls.lock().unwrap())
    }
}

impl HttpConnector for Wire {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Line { wire: self.clone(), inner }))
    }
}

#[derive(Debug)]
struct Line {
    wire: Wire,
    inner: HttpClient,
}

fn name_of(request: &HttpRequest) -> &'static str {
    let query = request.uri().query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let is_copy = request.headers().contains_key("x-amz-copy-source");
    match request.method().as_str() {
        "PUT" if is_copy => "copy",
        "PUT" if has("partNumber") => "part",
        "POST" if has("uploads") => "create",
        "POST" if has("uploadId") => "complete",
        "DELETE" if has("uploadId") => "abort",
        "GET" if has("uploadId") => "list parts",
        "GET" => "get",
        "PUT" => "put",
        _ => "other",
    }
}

fn error(kind: HttpErrorKind) -> HttpError {
    HttpError::new(kind, std::io::Error::other("a test"))
}

#[async_trait]
impl HttpService for Line {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let up = request.body().content_length() as u64;
        let mut pairs = request.uri().query().unwrap_or_default().split('&');
        let signed = pairs.find_map(|pair| pair.strip_prefix("X-Amz-SignedHeaders="));
        let signed = signed.unwrap_or_default().to_owned();
        let call = Call { operation: name_of(&request), up, down: 0, signed };
        let (nth, told) = {
            let mut calls = self.wire.0.calls.lock().unwrap();
            let told = self.wire.0.script.lock().unwrap()(calls.len(), &call);
            calls.push(call);
            (calls.len() - 1, told)
        };
        match &told {
            Act::Fail => return Err(error(HttpErrorKind::Interrupted)),
            Act::Hang => {
                tokio::time::sleep(HANGS).await;
                return Err(error(HttpErrorKind::Timeout));
            }
            Act::Answer(status, body) => {
                let mut answer = HttpResponse::new(HttpResponseBody::from(body.clone()));
                *answer.status_mut() = (*status).try_into().unwrap();
                return Ok(answer);
            }
            Act::First(doing) => doing().await,
            Act::Panic => panic!("a client may"),
            Act::Without(header) => drop(request.headers_mut().remove(*header)),
            Act::ShortPages => {
                let shorter = request.uri().to_string().replace("max-parts=1000", "max-parts=2");
                *request.uri_mut() = shorter.parse().unwrap();
            }
            _ => {}
        }
        let (parts, body) = self.inner.execute(request).await?.into_parts();
        let mut body = body.bytes().await?;
        if let Some(call) = self.wire.0.calls.lock().unwrap().get_mut(nth) {
            call.down = body.len() as u64;
        }
        match told {
            Act::Lose => return Err(error(HttpErrorKind::Interrupted)),
            Act::HangAfter => {
                tokio::time::sleep(HANGS).await;
                return Err(error(HttpErrorKind::Timeout));
            }
            Act::Body(other) => body = other.into(),
            _ => {}
        }
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}
