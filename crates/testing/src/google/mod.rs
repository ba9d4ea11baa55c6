//! A stand-in for Google Cloud KMS: the REST surface of v1 that services and administrators use,
//! the metadata server and the token service, on one port.
//!
//! It is written from the REST reference alone, and says at each behaviour where that stands. It
//! was not compared with Google. What it does beyond the reference is to fail, to be slow and to
//! lie, on request.
//!
//! In the tests' own process it is a thread with its own runtime.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

pub mod child;
pub mod ekm;
pub mod operations;
pub mod status;
pub mod tokens;
pub mod world;

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::outputs::note_secret;
use crate::server_thread::ServerThread;
use data_encoding::BASE64;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

pub use crate::kms_front::random;
pub use ekm::EkmFault;
pub use operations::Target;
pub use status::{Code, Status};
pub use tokens::Source;
pub use world::{Names, Principal, Protection, State, World};

pub const PROJECT: &str = "projects/orders-prod";
pub const RING: &str = "projects/orders-prod/locations/europe-west1/keyRings/services";
/// What the metadata server's account may be called.
pub const ACCOUNT: &str = "orders@orders-prod.iam.gserviceaccount.com";

/// CRC-32C (Castagnoli), bit by bit (RFC 3720, appendix B.4).
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 * (crc & 1)))
    })
}

/// A request as it came.
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Effect {
    Fails(Status),
    /// This, instead of what Cloud KMS would have answered.
    Raw(u16, &'static str),
    /// The answer comes later.
    Delay(Duration),
    /// No answer ever.
    Hang,
    /// The answer of Cloud KMS, changed.
    Lie(Lie),
}

/// How an answer is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// A DEK that nobody asked for, with the checksum that belongs to it.
    OtherPlaintext,
    /// One bit of the data is flipped on the way back, so the checksum does not fit.
    DamagedData,
    /// Another checksum.
    WrongChecksum,
    /// No checksum.
    NoChecksum,
    /// The checksums that were sent did not arrive, says the answer.
    NothingVerified,
    /// The answer names another key.
    OtherName,
    /// Half of the answer.
    HalfAnAnswer,
}

/// Something that goes wrong until it is taken away, for all requests or for some.
#[derive(Clone, Debug)]
pub struct Fault {
    pub effect: Effect,
    /// `encrypt`, `decrypt`, `get`.
    pub operation: Option<&'static str>,
    /// Only so often.
    pub times: Option<u32>,
}

impl Fault {
    pub fn new(effect: Effect) -> Self {
        Self { effect, operation: None, times: None }
    }

    pub fn status(code: Code, message: &str) -> Self {
        Self::new(Effect::Fails(Status::new(code, message)))
    }

    pub fn on(mut self, operation: &'static str) -> Self {
        self.operation = Some(operation);
        self
    }

    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }
}

/// A request that was answered, without plaintexts, ciphertexts and tokens.
#[derive(Clone, Debug)]
pub struct Call {
    pub operation: String,
    pub name: String,
    pub principal: String,
    /// `None` if it went well.
    pub error: Option<&'static str>,
}

struct Shared {
    world: Mutex<World>,
    faults: Mutex<Vec<Fault>>,
    calls: Mutex<Vec<Call>>,
    arrived: Mutex<Vec<String>>,
    source: Mutex<Source>,
    /// Requests for tokens.
    asked_for_tokens: Mutex<usize>,
}

pub struct GoogleFront {
    shared: Arc<Shared>,
    port: u16,
    _thread: ServerThread,
}

impl GoogleFront {
    pub fn start() -> Self {
        let source = Source::Gives { account: ACCOUNT.to_owned(), seconds: 3600 };
        let shared = Arc::new(Shared {
            world: Mutex::default(),
            faults: Mutex::default(),
            calls: Mutex::default(),
            arrived: Mutex::default(),
            source: Mutex::new(source),
            asked_for_tokens: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let for_thread = shared.clone();
        let thread = ServerThread::start(listener, move |listener| serve(listener, for_thread));
        Self { shared, port, _thread: thread }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap()
    }

    /// A key of this id in [`RING`], which [`ACCOUNT`] may look at, encrypt and decrypt with.
    pub fn create_key(&self, id: &str, protection: Protection) -> String {
        let name = format!("{RING}/cryptoKeys/{id}");
        let mut world = self.world();
        world.create_key(&name, protection);
        for role in ["roles/cloudkms.cryptoKeyEncrypterDecrypter", "roles/cloudkms.viewer"] {
            world.grant(&name, role, ACCOUNT);
        }
        name
    }

    /// A token for this account.
    pub fn token(&self, account: &str) -> String {
        tokens::give(&mut self.world(), account)
    }

    /// Ends every token that was given out.
    pub fn expire_tokens(&self) {
        self.world().tokens.values_mut().for_each(|principal| principal.expired = true);
    }

    pub fn set_source(&self, source: Source) {
        *self.shared.source.lock().unwrap() = source;
    }

    /// The source as it was at the start.
    pub fn restore_source(&self) {
        self.set_source(Source::Gives { account: ACCOUNT.to_owned(), seconds: 3600 });
    }

    pub fn asked_for_tokens(&self) -> usize {
        *self.shared.asked_for_tokens.lock().unwrap()
    }

    /// Makes a key file of a service account, as Google hands it out, with a key of its own.
    pub fn service_account_file(&self, email: &str) -> String {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let public = rcgen::PublicKeyData::der_bytes(&pair).to_vec();
        pair.serialize_pem()
            .lines()
            .filter(|line| !line.contains('-'))
            .skip(2)
            .for_each(note_secret);
        self.world().service_accounts.insert(email.to_owned(), public);
        json!({
            "type": "service_account", "project_id": "orders-prod", "client_email": email,
            "private_key_id": "1", "private_key": pair.serialize_pem(),
            "client_id": "1", "universe_domain": "googleapis.com",
            "token_uri": format!("{}/token", self.url()),
        })
        .to_string()
    }

    pub fn fail(&self, fault: Fault) {
        self.shared.faults.lock().unwrap().push(fault);
    }

    pub fn lie(&self, lie: Lie) {
        self.fail(Fault::new(Effect::Lie(lie)));
    }

    pub fn recover(&self) {
        self.shared.faults.lock().unwrap().clear();
    }

    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// Requests that came, answered or not.
    pub fn arrived(&self, operation: &str) -> usize {
        self.shared.arrived.lock().unwrap().iter().filter(|arrived| *arrived == operation).count()
    }
}

async fn serve(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let service = service_fn(move |request| answer(shared.clone(), request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Response = hyper::Response<Full<Bytes>>;

async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
) -> Result<Response, Infallible> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(response(400, None, Bytes::new())) };
    let text =
        |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value)));
    let request = Request {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: headers.collect(),
        body: body.to_bytes(),
    };
    match request.path.strip_prefix("/v1/") {
        Some(resource) => Ok(of_kms(&shared, &request, resource).await),
        None => Ok(of_source(&shared, &request).await),
    }
}

async fn of_source(shared: &Shared, request: &Request) -> Response {
    *shared.asked_for_tokens.lock().unwrap() += 1;
    let source = shared.source.lock().unwrap().clone();
    let answer = tokens::answer(&mut shared.world.lock().unwrap(), &source, request);
    let Some((status, body, _)) = answer else { return std::future::pending().await };
    let body = match body {
        Value::String(text) => text.into(),
        body => serde_json::to_vec(&body).unwrap().into(),
    };
    response(status, None, body)
}

async fn of_kms(shared: &Shared, request: &Request, resource: &str) -> Response {
    let target = Target::read(resource);
    let operation = match (&*request.method, target.as_ref().map(|target| &*target.method)) {
        ("GET", _) => "get".to_owned(),
        (_, Some("")) => "change".to_owned(),
        (_, Some(method)) => method.to_owned(),
        (_, None) => "unknown".to_owned(),
    };
    shared.arrived.lock().unwrap().push(operation.clone());
    let mut lie = None;
    match fault_for(shared, &operation) {
        Some(Effect::Fails(status)) => {
            log(shared, &operation, resource, "", Some(status.code.name()));
            return failed(&status);
        }
        Some(Effect::Raw(status, text)) => {
            return response(status, None, Bytes::from_static(text.as_bytes()));
        }
        Some(Effect::Delay(pause)) => tokio::time::sleep(pause).await,
        Some(Effect::Hang) => return std::future::pending().await,
        Some(Effect::Lie(told)) => lie = Some(told),
        None => {}
    }
    let (caller, answer) = {
        let mut world = shared.world.lock().unwrap();
        match tokens::authenticate(&world, request) {
            Err(reason) => (String::new(), Err(status::unauthenticated(reason))),
            Ok(caller) => {
                let answer = by(&mut world, &caller, request, target.as_ref());
                (caller.email, answer)
            }
        }
    };
    let error = answer.as_ref().err().map(|status| status.code.name());
    log(shared, &operation, resource, &caller, error);
    match answer {
        Ok(answer) => told(answer, lie),
        Err(status) => failed(&status),
    }
}

fn by(
    world: &mut World,
    caller: &Principal,
    request: &Request,
    target: Option<&Target>,
) -> operations::Answer {
    if !caller.in_scope {
        let message = "Request had insufficient authentication scopes.";
        let status = Status::new(Code::PermissionDenied, message);
        return Err(status.with_info(
            "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
            "googleapis.com",
            json!({ "service": "cloudkms.googleapis.com" }),
        ));
    }
    let target = target.ok_or_else(|| Status::invalid("Resource name is not well-formed."))?;
    let input = match request.body.is_empty() {
        true => json!({}),
        false => serde_json::from_slice(&request.body)
            .map_err(|_| Status::invalid("Invalid JSON payload received."))?,
    };
    let (by_id, by_number) = world.both_names(&target.key);
    let (names, asked) = (world.names, target.key.clone());
    let target = Target { key: by_id.clone(), ..target.clone() };
    let answer =
        operations::perform(world, caller, &request.method, &target, &request.query, &input)?;
    let named = match (names, by_number) {
        (Names::AsAsked, _) | (_, None) => asked,
        (Names::ById, _) => by_id.clone(),
        (Names::ByNumber, Some(by_number)) => by_number,
    };
    Ok(renamed(answer, &by_id, &named))
}

/// The answer with another name for the key.
fn renamed(mut answer: Value, from: &str, to: &str) -> Value {
    let mut names = vec![&mut answer];
    while let Some(value) = names.pop() {
        let Value::Object(fields) = value else { continue };
        for (field, value) in fields {
            match value {
                Value::String(name) if field == "name" => *name = name.replacen(from, to, 1),
                other => names.push(other),
            }
        }
    }
    answer
}

fn told(mut answer: Value, lie: Option<Lie>) -> Response {
    let field = if answer["plaintext"].is_string() { "plaintext" } else { "ciphertext" };
    let checksum = format!("{field}Crc32c");
    match lie {
        Some(Lie::OtherPlaintext) => {
            let other = random::<32>();
            answer[field] = BASE64.encode(&other).into();
            answer[&checksum] = crc32c(&other).to_string().into();
        }
        Some(Lie::DamagedData) => {
            let mut data = BASE64.decode(answer[field].as_str().unwrap().as_bytes()).unwrap();
            data[7] ^= 1;
            answer[field] = BASE64.encode(&data).into();
        }
        Some(Lie::WrongChecksum) => answer[&checksum] = "12345".into(),
        Some(Lie::NoChecksum) => {
            answer.as_object_mut().unwrap().remove(&checksum);
        }
        Some(Lie::NothingVerified) => {
            answer.as_object_mut().unwrap().retain(|name, _| !name.starts_with("verified"));
        }
        Some(Lie::OtherName) => {
            answer["name"] = format!("{RING}/cryptoKeys/other/cryptoKeyVersions/1").into();
        }
        Some(Lie::HalfAnAnswer) | None => {}
    }
    let mut body = serde_json::to_vec(&answer).unwrap();
    if lie == Some(Lie::HalfAnAnswer) {
        body.truncate(body.len() / 2);
    }
    response(200, None, body.into())
}

fn fault_for(shared: &Shared, operation: &str) -> Option<Effect> {
    let mut faults = shared.faults.lock().unwrap();
    let fault = faults.iter_mut().find(|fault| {
        fault.operation.is_none_or(|wanted| wanted == operation) && fault.times != Some(0)
    })?;
    fault.times = fault.times.map(|times| times - 1);
    Some(fault.effect.clone())
}

fn log(
    shared: &Shared,
    operation: &str,
    resource: &str,
    principal: &str,
    error: Option<&'static str>,
) {
    let name = resource.split(':').next().unwrap_or_default().to_owned();
    let (operation, principal) = (operation.to_owned(), principal.to_owned());
    shared.calls.lock().unwrap().push(Call { operation, name, principal, error });
}

fn failed(status: &Status) -> Response {
    let body = serde_json::to_vec(&status.to_json()).unwrap();
    response(status.code.http(), status.retry_after, body.into())
}

fn response(status: u16, retry_after: Option<u32>, body: Bytes) -> Response {
    let response = hyper::Response::builder()
        .status(status)
        .header("content-type", "application/json; charset=UTF-8");
    let response = match retry_after {
        Some(seconds) => response.header("retry-after", seconds),
        None => response,
    };
    response.body(Full::new(body)).unwrap()
}
