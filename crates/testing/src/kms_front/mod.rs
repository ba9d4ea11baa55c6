//! A stand-in for AWS KMS: AWS JSON 1.1 over HTTP, signatures checked, keys whose states and
//! policies are enforced, real AES-GCM.
//!
//! Keys of its own it keeps in memory; keys in an external key store it reaches through an XKS
//! proxy, over TLS, as KMS does.
//!
//! It is as strict as the published API, and where that leaves something open, stricter than a
//! client would like. What it does is said, with its source, where it does it. It serves every
//! Region on one port: which one is meant stands in the signature's scope.
//!
//! In the tests' own process it is a thread with its own runtime; [`KmsFront::start`] in a child
//! process makes it one that can be stopped.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub, unused_imports)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

pub mod access;
pub mod administration;
pub mod child;
pub mod crypto;
pub mod failure;
pub mod key_store;
pub mod management;
pub mod operations;
pub mod policy;
pub mod request;
pub mod sources;
pub mod stores;
pub mod world;
pub mod xks;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use data_encoding::HEXLOWER;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::Rng;
use serde_json::{Value, json};

use crate::outputs::noted;
use crate::server_thread::ServerThread;
use crate::sigv4::{Claim, Refusal, Request};
pub use key_store::Connection;
pub use world::{ACCOUNT, Caller, Principal, State, Traits, World};

pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// What KMS answers to a request that fails.
#[derive(Clone, Debug)]
pub struct KmsError {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
}

impl KmsError {
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub fn validation(message: String) -> Self {
        Self::new(400, "ValidationException", message)
    }
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Effect {
    Error(KmsError),
    /// This, instead of what KMS would have answered.
    Raw(u16, &'static str),
    /// The answer comes later.
    Delay(Duration),
    /// No answer ever.
    Hang,
}

/// Something that goes wrong until it is taken away, for all requests or for some.
#[derive(Clone, Debug)]
pub struct Fault {
    pub effect: Effect,
    pub operation: Option<&'static str>,
    /// Only with this pair in the encryption context.
    pub context: Option<(&'static str, &'static str)>,
    /// Only so often.
    pub times: Option<u32>,
}

impl Fault {
    pub fn new(effect: Effect) -> Self {
        Self { effect, operation: None, context: None, times: None }
    }

    pub fn error(status: u16, code: &'static str, message: &str) -> Self {
        Self::new(Effect::Error(KmsError::new(status, code, message)))
    }

    pub fn on(mut self, operation: &'static str) -> Self {
        self.operation = Some(operation);
        self
    }

    pub fn with_context(mut self, name: &'static str, value: &'static str) -> Self {
        self.context = Some((name, value));
        self
    }

    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }
}

/// A request as CloudTrail would show it.
#[derive(Clone, Debug)]
pub struct Call {
    pub operation: String,
    pub region: String,
    pub principal: String,
    /// As in the header `x-amzn-requestid` and in what a proxy is told.
    pub request_id: String,
    /// The request without plaintexts, ciphertexts and credentials.
    pub request: Value,
    /// `None` if it went well.
    pub error: Option<&'static str>,
}

#[derive(Default)]
struct Shared {
    world: Arc<Mutex<World>>,
    faults: Mutex<Vec<Fault>>,
    calls: Mutex<Vec<Call>>,
    arrived: Mutex<Vec<String>>,
}

pub struct KmsFront {
    shared: Arc<Shared>,
    port: u16,
    _thread: ServerThread,
}

/// The keys of a principal.
#[derive(Clone)]
pub struct Login {
    pub access_key: String,
    pub secret: String,
    pub session_token: Option<String>,
}

impl Login {
    pub fn credentials(&self) -> Credentials {
        Credentials::new(&self.access_key, &self.secret, self.session_token.clone(), None, "test")
    }
}

impl KmsFront {
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
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

    pub fn create_key(&self, region: &str) -> String {
        self.world().create_key(region, false)
    }

    /// Proxies of external key stores are believed whose certificate is of this authority (PEM).
    pub fn trust(&self, authority: &str) {
        self.world().network.write().unwrap().trust(authority);
    }

    /// A principal who may do these things, as its identity policies say.
    pub fn principal(&self, name: &str, policies: Vec<Value>) -> Login {
        for document in &policies {
            policy::check(document, policy::Kind::OfAnIdentity)
                .unwrap_or_else(|what| panic!("the policy of {name}: {what}"));
        }
        let login = Login {
            access_key: format!("AKIA{}", HEXLOWER.encode(&random::<8>()).to_uppercase()),
            secret: noted(HEXLOWER.encode(&random::<20>())),
            session_token: None,
        };
        self.enroll(name, &login, policies);
        login
    }

    /// The same with keys that are given.
    pub fn enroll(&self, name: &str, login: &Login, policies: Vec<Value>) {
        let principal = Principal {
            arn: format!(
                "arn:aws:iam::{ACCOUNT}:{}{name}",
                if name.contains('/') { "" } else { "user/" }
            ),
            account: ACCOUNT.to_owned(),
            secret: login.secret.clone(),
            session_token: login.session_token.clone(),
            expired: false,
            policies,
            traits: Traits { has_session: name.starts_with("role/"), ..Traits::default() },
        };
        self.world().principals.insert(login.access_key.clone(), principal);
    }

    /// A principal who may do everything.
    pub fn admin(&self) -> Login {
        self.principal(
            "admin",
            vec![json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Action": "kms:*", "Resource": "*" },
        ] })],
        )
    }

    /// Changes what conditions see of a principal.
    pub fn with_traits(&self, login: &Login, change: impl FnOnce(&mut Traits)) {
        change(&mut self.world().principals.get_mut(&login.access_key).unwrap().traits);
    }

    /// The root user of the account.
    pub fn root(&self) -> Login {
        let login = self.principal("root", vec![]);
        self.world().principals.get_mut(&login.access_key).unwrap().arn =
            format!("arn:aws:iam::{ACCOUNT}:root");
        login
    }

    /// Attaches a service control policy to the account.
    pub fn attach_service_control_policy(&self, policy: &str) {
        let policy: Value = serde_json::from_str(policy).unwrap();
        policy::check(&policy, policy::Kind::OfAnIdentity).unwrap();
        self.world().service_control_policies.push(policy);
    }

    pub fn client(&self, region: &str, login: &Login) -> Client {
        client_at(&self.url(), region, login)
    }

    pub fn fail(&self, fault: Fault) {
        self.shared.faults.lock().unwrap().push(fault);
    }

    pub fn recover(&self) {
        self.shared.faults.lock().unwrap().clear();
    }

    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// The requests as records of CloudTrail, with the fields that "Logging AWS KMS API calls with
    /// AWS CloudTrail" shows and that a join needs.
    pub fn cloud_trail(&self) -> Vec<Value> {
        let record = |call: Call| {
            let mut record = json!({
                "eventSource": "kms.amazonaws.com",
                "eventName": call.operation,
                "awsRegion": call.region,
                "userIdentity": { "arn": call.principal },
                "requestID": call.request_id,
                "requestParameters": {
                    "keyId": call.request["KeyId"],
                    "encryptionContext": call.request["EncryptionContext"],
                },
            });
            if let Some(error) = call.error {
                record["errorCode"] = error.trim_end_matches("Exception").into();
            }
            record
        };
        self.calls().into_iter().map(record).collect()
    }

    /// Requests that came, answered or not.
    pub fn arrived(&self, operation: &str) -> usize {
        self.shared.arrived.lock().unwrap().iter().filter(|arrived| *arrived == operation).count()
    }

    /// Requests that were answered, well or not.
    pub fn count(&self, operation: &str) -> usize {
        self.shared.calls.lock().unwrap().iter().filter(|call| call.operation == operation).count()
    }
}

/// A client of the SDK as a service would make it, for a KMS at this address.
pub fn client_at(url: &str, region: &str, login: &Login) -> Client {
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .endpoint_url(url)
        .credentials_provider(login.credentials())
        .build();
    Client::from_conf(config)
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

async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let id = request::uuid();
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(response(400, &id, Bytes::new())) };
    let body = body.to_bytes();
    let headers: Vec<_> = parts
        .headers
        .iter()
        .map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    let request = Request {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        headers: &headers,
        body: &body,
    };
    let target = request.header("x-amz-target").unwrap_or_default();
    let operation = target.strip_prefix("TrentService.").unwrap_or(target).to_owned();
    let input: Value = serde_json::from_slice(&body).unwrap_or_default();
    shared.arrived.lock().unwrap().push(operation.clone());
    if let Some(effect) = fault_for(&shared, &operation, &input) {
        match effect {
            Effect::Error(error) => {
                log(&shared, &operation, &id, None, &input, Some(error.code));
                return Ok(failed(&error, &id));
            }
            Effect::Raw(status, text) => {
                return Ok(response(status, &id, Bytes::from_static(text.as_bytes())));
            }
            Effect::Delay(pause) => tokio::time::sleep(pause).await,
            Effect::Hang => std::future::pending().await,
        }
    }
    let caller = authenticate(&shared, &request, &id);
    let answer = match &caller {
        Ok(caller) => perform(&shared.world, caller, &operation, &input).await,
        Err(error) => Err(error.clone()),
    };
    log(
        &shared,
        &operation,
        &id,
        caller.ok(),
        &input,
        answer.as_ref().err().map(|error| error.code),
    );
    Ok(match answer {
        Ok(Value::Null) => response(200, &id, Bytes::new()),
        Ok(answer) => response(200, &id, serde_json::to_vec(&answer).unwrap().into()),
        Err(error) => failed(&error, &id),
    })
}

/// What may need the network, or time, has the world's lock only while it looks something up.
async fn perform(
    world: &Arc<Mutex<World>>,
    caller: &Caller,
    operation: &str,
    input: &Value,
) -> request::Answer {
    match operation {
        "Encrypt" => operations::encrypt(world, caller, input).await,
        "GenerateDataKey" => operations::generate_data_key(world, caller, input).await,
        "Decrypt" => operations::decrypt(world, caller, input).await,
        "ReEncrypt" => operations::re_encrypt(world, caller, input).await,
        "CreateKey" if !input["CustomKeyStoreId"].is_null() => {
            stores::answer(world, caller, operation, input).await
        }
        _ if operation.contains("CustomKeyStore") => {
            stores::answer(world, caller, operation, input).await
        }
        _ => world.lock().unwrap().answer(caller, operation, input),
    }
}

fn fault_for(shared: &Shared, operation: &str, input: &Value) -> Option<Effect> {
    let mut faults = shared.faults.lock().unwrap();
    let fault = faults.iter_mut().find(|fault| {
        let context = fault.context.is_none_or(|(name, value)| {
            ["EncryptionContext", "SourceEncryptionContext"]
                .iter()
                .any(|field| input[field][name] == value)
        });
        fault.operation.is_none_or(|wanted| wanted == operation)
            && context
            && fault.times != Some(0)
    })?;
    fault.times = fault.times.map(|times| times - 1);
    Some(fault.effect.clone())
}

/// `ExpiredTokenException` and `UnrecognizedClientException` are in "Common Error Types" of the API
/// Reference, there with status 403 as a rule; the other names are what AWS services with this
/// protocol send, and that page does not list them.
fn authenticate(
    shared: &Shared,
    request: &Request<'_>,
    request_id: &str,
) -> Result<Caller, KmsError> {
    let claim = Claim::read(request, "kms").map_err(refused)?;
    let world = shared.world.lock().unwrap();
    let unknown = || {
        KmsError::new(
            400,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        )
    };
    let principal = world.principals.get(&claim.access_key).ok_or_else(unknown)?;
    claim.check(request, &principal.secret, &["x-amz-target"], world.now()).map_err(refused)?;
    if request.header("x-amz-security-token") != principal.session_token.as_deref() {
        return Err(unknown());
    }
    if principal.expired {
        return Err(KmsError::new(
            400,
            "ExpiredTokenException",
            "The security token included in the request is expired",
        ));
    }
    Ok(Caller {
        principal: principal.arn.clone(),
        account: principal.account.clone(),
        region: claim.region,
        request_id: request_id.to_owned(),
        traits: principal.traits.clone(),
    })
}

fn refused(refusal: Refusal) -> KmsError {
    let (code, message) = match refusal {
        Refusal::Missing => ("MissingAuthenticationTokenException", "Missing Authentication Token"),
        Refusal::Incomplete => {
            ("IncompleteSignatureException", "Authorization header is not complete")
        }
        Refusal::Mismatch => {
            ("InvalidSignatureException", "The request signature we calculated does not match")
        }
        Refusal::Skewed => ("InvalidSignatureException", "Signature expired, or not yet current"),
    };
    KmsError::new(400, code, message)
}

fn log(
    shared: &Shared,
    operation: &str,
    request_id: &str,
    caller: Option<Caller>,
    input: &Value,
    error: Option<&'static str>,
) {
    let mut request = input.clone();
    if let Some(fields) = request.as_object_mut() {
        fields.retain(|name, _| {
            !["Plaintext", "CiphertextBlob", "XksProxyAuthenticationCredential"]
                .contains(&&name[..])
        });
    }
    let (principal, region) =
        caller.map(|caller| (caller.principal, caller.region)).unwrap_or_default();
    let (operation, request_id) = (operation.to_owned(), request_id.to_owned());
    shared.calls.lock().unwrap().push(Call {
        operation,
        region,
        principal,
        request_id,
        request,
        error,
    });
}

fn failed(error: &KmsError, request_id: &str) -> hyper::Response<Full<Bytes>> {
    let mut body = BTreeMap::from([("__type", error.code)]);
    if !error.message.is_empty() {
        body.insert("message", &error.message);
    }
    response(error.status, request_id, serde_json::to_vec(&body).unwrap().into())
}

fn response(status: u16, request_id: &str, body: Bytes) -> hyper::Response<Full<Bytes>> {
    hyper::Response::builder()
        .status(status)
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amzn-requestid", request_id)
        .body(Full::new(body))
        .unwrap()
}
