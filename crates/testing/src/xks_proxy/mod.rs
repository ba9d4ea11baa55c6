//! An external key store proxy, version 1, over keys in OpenBao Transit: KMS -> **XKS proxy** -> policy -> Transit.
//!
//! Source: "External Key Store Proxy API Specification", version 1.0.2. What is quoted here and in the files beside stands there, in the section that is named.
//! It does what an operator's own proxy has to do, and fails on demand.
//!
//! | file | what |
//! |---|---|
//! | `api.rs` | the words of the specification: paths, errors, requests, the bytes that are computed over |
//! | `policy.rs`, `policy.rego` | the decision before every operation but the health check ("Authorization") |
//! | `transit.rs`, `transit.hcl` | the key manager: one call each, what its answers mean, what the proxy's token may do |
//! | `tls.rs` | its TLS |
//!
//! Left out: client certificates (a SHOULD of "Authentication"), HTTP/2, the URLs of load balancers, a second fleet member.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

pub mod api;
pub mod policy;
// The KMS front has it as well.
#[allow(clippy::duplicate_mod)]
mod tls;
pub mod transit;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use data_encoding::{BASE32, BASE64};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::Rng;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::certificates::Authority;
pub use crate::certificates::Certificate;
use crate::sigv4::{Claim, Request};
use api::{Body, CiphertextMetadata, Refused, ToDecrypt, ToEncrypt, cdiv, composed_aad, encrypted};
pub use api::{ErrorName, Operation};
use policy::Policy;
pub use transit::TransitOptions;
use transit::{HEALTH_KEY, Transit};

/// "the service is kms-xks-proxy" (Appendix A).
pub const SERVICE: &str = "kms-xks-proxy";
/// Of a request: a good one, with the largest plaintext, AAD and ARNs, has less than 30 KiB.
const MOST_BODY: usize = 64 * 1024;

/// What a proxy is started with.
#[derive(Clone)]
pub struct Options {
    pub transit: TransitOptions,
    /// `<optional-path-prefix>` of "API operations", without slashes at its ends; empty for none.
    pub path_prefix: String,
    /// How long Transit may take over all that one request needs of it. Below the 250 ms after which KMS gives up, or nobody hears DependencyTimeoutException.
    pub budget: Duration,
}

impl Options {
    pub fn new(transit: TransitOptions) -> Self {
        Self { transit, path_prefix: String::new(), budget: Duration::from_millis(200) }
    }
}

/// What KMS signs with ("Authentication"). Unrelated to credentials of any AWS principal.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    pub access_key_id: String,
    pub secret_access_key: String,
}

impl Credential {
    /// "20-30 characters, 'A' through 'Z' and '2' through '7' only", and 256 random bits in Base64 ("XKS proxy configuration", Appendix A).
    fn random() -> Self {
        Self {
            access_key_id: BASE32.encode(&random::<15>()),
            secret_access_key: BASE64.encode(&random::<32>()),
        }
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Effect {
    Error(ErrorName),
    /// This, in place of what the proxy would have answered.
    Raw(u16, &'static str),
    /// The proxy's good answer, changed: a value that lies.
    Alter(fn(&mut Value)),
    /// The answer comes later.
    Delay(Duration),
    /// No answer ever.
    Hang,
    /// The connection ends without an answer.
    Close,
}

/// Something that goes wrong until it is taken away, for all requests or for some. It strikes before the signature is looked at.
#[derive(Clone, Debug)]
pub struct Fault {
    pub effect: Effect,
    pub operation: Option<Operation>,
    pub key: Option<String>,
    /// Only so often.
    pub times: Option<u32>,
}

impl Fault {
    pub fn new(effect: Effect) -> Self {
        Self { effect, operation: None, key: None, times: None }
    }

    pub fn error(name: ErrorName) -> Self {
        Self::new(Effect::Error(name))
    }

    pub fn on(mut self, operation: Operation) -> Self {
        self.operation = Some(operation);
        self
    }

    pub fn for_key(mut self, id: &str) -> Self {
        self.key = Some(id.to_owned());
        self
    }

    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }
}

/// A line of the log ("Logging"): what of the request's metadata it asks for, the processing time, the error; never a plaintext. What a request says of itself
/// stands here only if its signature was right.
#[derive(Clone, Debug)]
pub struct Call {
    pub operation: Option<Operation>,
    /// Empty for the health check.
    pub key: String,
    pub access_key_id: String,
    pub principal: String,
    pub kms_operation: String,
    pub kms_request_id: String,
    pub kms_key_arn: String,
    /// `None` if it went well.
    pub error: Option<ErrorName>,
    /// Why, in words that no caller gets: of the policy, of Transit.
    pub reason: String,
    pub elapsed: Duration,
}

/// So many requests in a window ("An XKS proxy MAY implement independent request quotas on each path prefix", "API operations").
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    pub requests: u32,
    pub window: Duration,
}

/// What is switched for one key in the proxy.
#[derive(Clone, Copy)]
struct Switches {
    enabled: bool,
    encrypts: bool,
    decrypts: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self { enabled: true, encrypts: true, decrypts: true }
    }
}

struct Rules {
    rego: String,
    grants: Value,
    denied: Vec<String>,
    policy: Policy,
}

impl Rules {
    fn new(rego: &str, grants: Value, denied: Vec<String>) -> Result<Self, String> {
        let policy = Policy::new(rego, &json!({ "grants": grants, "denied_principals": denied }))?;
        Ok(Self { rego: rego.to_owned(), grants, denied, policy })
    }
}

struct Shared {
    options: Options,
    uri_path: String,
    credentials: Mutex<Vec<Credential>>,
    keys: Mutex<BTreeMap<String, Switches>>,
    /// The whole key store.
    blocked: Mutex<bool>,
    rules: Mutex<Rules>,
    quota: Mutex<Option<(Quota, Instant, u32)>>,
    faults: Mutex<Vec<Fault>>,
    calls: Mutex<Vec<Call>>,
    arrived: Mutex<Vec<Option<Operation>>>,
    tls: Mutex<Arc<ServerConfig>>,
    /// Changes where every open connection is to end.
    cut: watch::Sender<()>,
}

struct Running {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

pub struct XksProxy {
    shared: Arc<Shared>,
    authority: Authority,
    port: u16,
    running: Mutex<Option<Running>>,
}

impl XksProxy {
    pub fn start(options: Options) -> Self {
        let prefix = &options.path_prefix;
        let uri_path = if prefix.is_empty() {
            "/kms/xks/v1".to_owned()
        } else {
            format!("/{prefix}/kms/xks/v1")
        };
        // "MUST NOT exceed 128 characters and MUST NOT include any characters other than ..." ("API operations").
        let allowed = |c: char| c.is_ascii_alphanumeric() || ['/', '-', '_'].contains(&c);
        assert!(
            uri_path.len() <= 128 && uri_path.chars().all(allowed),
            "{uri_path} is no XksProxyUriPath"
        );
        let everybody = json!([{ "principals": ["*"], "keys": ["*"], "operations": ["*"], "kms_operations": ["*"] }]);
        let authority = Authority::new();
        let shared = Arc::new(Shared {
            options,
            uri_path,
            credentials: Mutex::new(vec![Credential::random()]),
            keys: Mutex::default(),
            blocked: Mutex::new(false),
            rules: Mutex::new(Rules::new(Policy::DEFAULT, everybody, Vec::new()).unwrap()),
            quota: Mutex::new(None),
            faults: Mutex::default(),
            calls: Mutex::default(),
            arrived: Mutex::default(),
            tls: Mutex::new(tls::server(&authority, Certificate::Right)),
            cut: watch::Sender::new(()),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let running = Mutex::new(Some(run(listener, shared.clone())));
        Self { shared, authority, port, running }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `XksProxyUriEndpoint`.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// `XksProxyUriPath`: "`[/<optional-path-prefix>]/kms/xks/v1`" ("API operations").
    pub fn uri_path(&self) -> &str {
        &self.shared.uri_path
    }

    /// What a client has to trust.
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// The newest.
    pub fn credential(&self) -> Credential {
        self.shared.credentials.lock().unwrap().last().cloned().unwrap()
    }

    /// One more that is accepted, from now on, beside those before ("SigV4 credentials rotation").
    pub fn add_credential(&self) -> Credential {
        let credential = Credential::random();
        self.shared.credentials.lock().unwrap().push(credential.clone());
        credential
    }

    pub fn remove_credential(&self, access_key_id: &str) {
        self.shared
            .credentials
            .lock()
            .unwrap()
            .retain(|credential| credential.access_key_id != access_key_id);
    }

    /// The switches of one key. Its material is the Transit key of that name.
    pub fn key(&self, id: &str) -> ExternalKey<'_> {
        ExternalKey { proxy: self, id: id.to_owned() }
    }

    /// Whether the whole key store is deactivated.
    pub fn block(&self, blocked: bool) {
        *self.shared.blocked.lock().unwrap() = blocked;
    }

    /// Another policy, in Rego v1, in force from the next request; if it cannot be read, the one before stays.
    pub fn set_policy(&self, rego: &str) -> Result<(), String> {
        self.change_rules(|rules| Rules::new(rego, rules.grants.clone(), rules.denied.clone()))
    }

    /// Who may do what: see `policy.rego`. At first everybody everything.
    pub fn set_grants(&self, grants: Value) {
        self.change_rules(|rules| Rules::new(&rules.rego, grants, rules.denied.clone())).unwrap();
    }

    /// Denies a principal whatever is granted.
    pub fn deny(&self, principal: &str) {
        let denied = |rules: &Rules| [&rules.denied[..], &[principal.to_owned()]].concat();
        self.change_rules(|rules| Rules::new(&rules.rego, rules.grants.clone(), denied(rules)))
            .unwrap();
    }

    /// Takes [`deny`](Self::deny) back.
    pub fn allow(&self, principal: &str) {
        let others = |rules: &Rules| {
            rules.denied.iter().filter(|name| *name != principal).cloned().collect()
        };
        self.change_rules(|rules| Rules::new(&rules.rego, rules.grants.clone(), others(rules)))
            .unwrap();
    }

    fn change_rules(
        &self,
        change: impl FnOnce(&Rules) -> Result<Rules, String>,
    ) -> Result<(), String> {
        let mut rules = self.shared.rules.lock().unwrap();
        *rules = change(&rules)?;
        Ok(())
    }

    /// Counted from now; `None` for no limit, as at first.
    pub fn limit(&self, quota: Option<Quota>) {
        *self.shared.quota.lock().unwrap() = quota.map(|quota| (quota, Instant::now(), 0));
    }

    pub fn fail(&self, fault: Fault) {
        self.shared.faults.lock().unwrap().push(fault);
    }

    pub fn recover(&self) {
        self.shared.faults.lock().unwrap().clear();
    }

    /// Shows another certificate, from now on; open connections end, so that everybody sees it.
    pub fn present(&self, certificate: Certificate) {
        *self.shared.tls.lock().unwrap() = tls::server(&self.authority, certificate);
        self.cut();
    }

    /// Ends every open connection. A client that keeps connections may see so only at its next request, which then fails.
    pub fn cut(&self) {
        self.shared.cut.send_replace(());
    }

    /// Requests that were answered by the proxy's own words, well or not.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// Requests that came, answered or not.
    pub fn arrived(&self, operation: Operation) -> usize {
        self.shared
            .arrived
            .lock()
            .unwrap()
            .iter()
            .filter(|arrived| **arrived == Some(operation))
            .count()
    }

    /// Ends it in the middle of whatever it does. Connections are refused afterwards.
    pub fn kill(&self) {
        if let Some(Running { stop, thread }) = self.running.lock().unwrap().take() {
            drop(stop);
            let _ = thread.join();
        }
    }

    pub fn is_killed(&self) -> bool {
        self.running.lock().unwrap().is_none()
    }

    /// Starts what was killed, on the same port, with everything as it was.
    pub fn restart(&self) {
        let mut running = self.running.lock().unwrap();
        assert!(running.is_none(), "it runs");
        let start = Instant::now();
        // Somebody may have been given the port for a connection meanwhile.
        let listener = loop {
            match TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)) {
                Ok(listener) => break listener,
                Err(error) => assert!(start.elapsed() < Duration::from_secs(30), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        *running = Some(run(listener, self.shared.clone()));
    }
}

impl Drop for XksProxy {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A key by its external key id, to be switched in the proxy.
pub struct ExternalKey<'a> {
    proxy: &'a XksProxy,
    id: String,
}

impl ExternalKey<'_> {
    fn switch(&self, change: impl FnOnce(&mut Switches)) {
        change(self.proxy.shared.keys.lock().unwrap().entry(self.id.clone()).or_default());
    }

    pub fn enable(&self) {
        self.switch(|key| key.enabled = true);
    }

    pub fn disable(&self) {
        self.switch(|key| key.enabled = false);
    }

    /// What it may be used for.
    pub fn restrict(&self, encrypts: bool, decrypts: bool) {
        self.switch(|key| (key.encrypts, key.decrypts) = (encrypts, decrypts));
    }
}

fn run(listener: TcpListener, shared: Arc<Shared>) -> Running {
    listener.set_nonblocking(true).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            tokio::select! {
                _ = stopped => {}
                () = serve(listener, shared) => {}
            }
        });
    });
    Running { stop, thread }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let transit = Arc::new(Transit::new(shared.options.transit.clone()));
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (shared, transit) = (shared.clone(), transit.clone());
        // In this order: who is not shown the new certificate is cut.
        let mut cut = shared.cut.subscribe();
        let tls = TlsAcceptor::from(shared.tls.lock().unwrap().clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let connection = async {
                let Ok(stream) = tls.accept(stream).await else { return };
                let service =
                    service_fn(move |request| answer(shared.clone(), transit.clone(), request));
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            };
            tokio::select! {
                () = connection => {}
                _ = cut.changed() => {}
            }
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    transit: Arc<Transit>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, io::Error> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let asked = Operation::of_path(&shared.uri_path, parts.uri.path())
        .filter(|_| parts.uri.query().is_none());
    let operation = asked.map(|(operation, _)| operation);
    shared.arrived.lock().unwrap().push(operation);
    let mut call = Call {
        operation,
        key: asked.map(|(_, key)| key.to_owned()).unwrap_or_default(),
        access_key_id: String::new(),
        principal: String::new(),
        kms_operation: String::new(),
        kms_request_id: String::new(),
        kms_key_arn: String::new(),
        error: None,
        reason: String::new(),
        elapsed: Duration::ZERO,
    };
    let mut alter = None;
    let mut outcome = None;
    match fault_for(&shared, &call) {
        Some(Effect::Error(name)) => outcome = Some(Err(name.because("a fault was asked for"))),
        Some(Effect::Raw(status, text)) => {
            return Ok(response(status, Bytes::from_static(text.as_bytes())));
        }
        Some(Effect::Alter(change)) => alter = Some(change),
        Some(Effect::Delay(pause)) => tokio::time::sleep(pause).await,
        Some(Effect::Hang) => std::future::pending().await,
        Some(Effect::Close) => return Err(io::ErrorKind::ConnectionAborted.into()),
        None => {}
    }
    // "it MUST reject the request with a 405 Method Not Allowed error" ("API operations"), which is not one of the errors with a name.
    if operation.is_some() && parts.method != hyper::Method::POST {
        let mut refused = response(405, Bytes::new());
        refused.headers_mut().insert("allow", hyper::header::HeaderValue::from_static("POST"));
        return Ok(refused);
    }
    let outcome = match outcome {
        Some(outcome) => outcome,
        // Much more than that is not even read: the connection ends.
        None => {
            match Limited::new(body, 16 * MOST_BODY).collect().await.map(|body| body.to_bytes()) {
                Ok(body) if body.len() > MOST_BODY => Err(ErrorName::UnsupportedOperation
                    .because(format!("a body of more than {MOST_BODY} bytes"))),
                Ok(body) => perform(&shared, &transit, &parts, &body, &mut call).await,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    };
    (call.error, call.elapsed) =
        (outcome.as_ref().err().map(|refused| refused.name), started.elapsed());
    call.reason = outcome.as_ref().err().map(|refused| refused.reason.clone()).unwrap_or_default();
    shared.calls.lock().unwrap().push(call);
    Ok(match outcome {
        Ok(mut answer) => {
            if let Some(alter) = alter {
                alter(&mut answer);
            }
            response(200, serde_json::to_vec(&answer).unwrap().into())
        }
        Err(Refused { name, .. }) => {
            let (status, name, message) = name.parts();
            response(
                status,
                json!({ "errorName": name, "errorMessage": message }).to_string().into(),
            )
        }
    })
}

fn fault_for(shared: &Shared, call: &Call) -> Option<Effect> {
    let mut faults = shared.faults.lock().unwrap();
    let fault = faults.iter_mut().find(|fault| {
        let for_this = fault.operation.is_none_or(|wanted| Some(wanted) == call.operation);
        for_this
            && fault.key.as_ref().is_none_or(|wanted| *wanted == call.key)
            && fault.times != Some(0)
    })?;
    fault.times = fault.times.map(|times| times - 1);
    Some(fault.effect.clone())
}

/// One request: path, signature, quota, metadata, policy, and then the operation.
async fn perform(
    shared: &Shared,
    transit: &Transit,
    parts: &hyper::http::request::Parts,
    bytes: &[u8],
    call: &mut Call,
) -> Result<Value, Refused> {
    let operation =
        call.operation.ok_or_else(|| ErrorName::InvalidUriPath.because("no such path"))?;
    call.access_key_id = authenticate(shared, parts, bytes)?;
    count(shared)?;
    // "MUST be sent as JSON over HTTPS with a Content-Type of application/json" ("API content type").
    let content_type =
        parts.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.split(';').next().map(str::trim) != Some("application/json") {
        return Err(ErrorName::Validation.because("the content type is not application/json"));
    }
    let body = Body::read(operation, bytes)?;
    call.principal = body.metadata_field("awsPrincipalArn");
    call.kms_operation = body.metadata_field("kmsOperation");
    call.kms_request_id = body.metadata_field("kmsRequestId");
    call.kms_key_arn = body.metadata_field("kmsKeyArn");
    // "This API MUST be excluded from secondary authorization" (GetHealthStatus).
    if operation != Operation::GetHealthStatus {
        let input = json!({
            "operation": operation.name(), "externalKeyId": call.key, "requestMetadata": body.metadata(),
        });
        let decision = shared.rules.lock().unwrap().policy.decide(&input);
        decision.map_err(|reason| ErrorName::AccessDenied.because(reason))?;
    }
    if *shared.blocked.lock().unwrap() {
        return Err(ErrorName::InvalidState.because("the key store is deactivated"));
    }
    if call.key == HEALTH_KEY {
        return Err(ErrorName::KeyNotFound.because("the key for health checks is no external key"));
    }
    let switches = shared.keys.lock().unwrap().get(&call.key).copied().unwrap_or_default();
    let transit = &transit.on_behalf_of(&call.kms_request_id);
    let work = async {
        match operation {
            Operation::GetHealthStatus => health(transit).await,
            Operation::GetKeyMetadata => metadata(transit, &call.key, switches).await,
            Operation::Encrypt => {
                encrypt(transit, &call.key, switches, &ToEncrypt::read(&body)?).await
            }
            Operation::Decrypt => {
                decrypt(transit, &call.key, switches, &ToDecrypt::read(&body)?).await
            }
        }
    };
    let late = |_| ErrorName::DependencyTimeout.because("Transit did not answer within the budget");
    tokio::time::timeout(shared.options.budget, work).await.map_err(late)?
}

/// Appendix A. Gives the access key id.
fn authenticate(
    shared: &Shared,
    parts: &hyper::http::request::Parts,
    bytes: &[u8],
) -> Result<String, Refused> {
    let failed = |reason: String| ErrorName::AuthenticationFailed.because(reason);
    let text =
        |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: Vec<_> =
        parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
    let request = Request {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        headers: &headers,
        body: bytes,
    };
    let claim = Claim::read(&request, SERVICE).map_err(|refusal| failed(format!("{refusal:?}")))?;
    let credentials = shared.credentials.lock().unwrap().clone();
    let known = credentials.iter().find(|credential| credential.access_key_id == claim.access_key);
    let credential = known.ok_or_else(|| failed("an unknown access key id".to_owned()))?;
    claim
        .check(&request, &credential.secret_access_key, &[], SystemTime::now())
        .map_err(|refusal| failed(format!("{refusal:?}")))?;
    Ok(claim.access_key)
}

/// Only what is signed counts: else anybody could use up the quota.
fn count(shared: &Shared) -> Result<(), Refused> {
    let mut quota = shared.quota.lock().unwrap();
    let Some((quota, since, so_far)) = quota.as_mut() else { return Ok(()) };
    if since.elapsed() >= quota.window {
        (*since, *so_far) = (Instant::now(), 0);
    }
    if *so_far >= quota.requests {
        return Err(ErrorName::Throttling.because("the quota is used up"));
    }
    *so_far += 1;
    Ok(())
}

/// "GetHealthStatus". Transit is asked each time, so a good answer is always `ACTIVE`, and what is not good is an error.
async fn health(transit: &Transit) -> Result<Value, Refused> {
    let server = transit.check().await?;
    Ok(json!({
        "xksProxyFleetSize": 1,
        "xksProxyVendor": "Waxseal",
        "xksProxyModel": concat!("Waxseal test proxy ", env!("CARGO_PKG_VERSION")),
        "ekmVendor": "OpenBao",
        "ekmFleetDetails": [
            { "id": server.id, "model": format!("OpenBao {} Transit", server.version), "healthStatus": "ACTIVE" },
        ],
    }))
}

/// "GetKeyMetadata".
async fn metadata(transit: &Transit, key: &str, switches: Switches) -> Result<Value, Refused> {
    let key = transit.describe(key).await?;
    let allowed = |usage: &&str| match *usage {
        "ENCRYPT" => switches.encrypts,
        "DECRYPT" => switches.decrypts,
        _ => true,
    };
    let status = if switches.enabled && !key.soft_deleted { "ENABLED" } else { "DISABLED" };
    let usage: Vec<_> = key.usage.into_iter().filter(allowed).collect();
    Ok(json!({ "keySpec": key.spec, "keyUsage": usage, "keyStatus": status }))
}

fn usable(switches: Switches, allowed: bool) -> Result<(), Refused> {
    if !switches.enabled {
        return Err(ErrorName::InvalidState.because("the key is disabled in the proxy"));
    }
    if !allowed {
        return Err(ErrorName::InvalidKeyUsage.because("the proxy's switches"));
    }
    Ok(())
}

/// "Encrypt". The version has to be known beforehand, since it is in the metadata and so in the AAD.
async fn encrypt(
    transit: &Transit,
    key: &str,
    switches: Switches,
    input: &ToEncrypt,
) -> Result<Value, Refused> {
    usable(switches, switches.encrypts)?;
    let description = transit.describe(key).await?;
    if description.soft_deleted {
        return Err(ErrorName::InvalidState.because("the key is soft-deleted"));
    }
    if description.spec != "AES_256" || !description.usage.contains(&"ENCRYPT") {
        return Err(
            ErrorName::InvalidKeyUsage.because(format!("a key of type {}", description.spec))
        );
    }
    let latest = description.latest;
    let aad = full_aad(&input.aad, latest)?;
    let sealed = transit.encrypt(key, latest, &input.plaintext, &aad).await?;
    if !input.cdiv {
        return Ok(encrypted(&sealed, latest, None));
    }
    // The value first and the trial after it: "the ordering ... is important" (Appendix C).
    let value = cdiv(&input.aad, &latest.bytes(), &sealed);
    if transit.decrypt(key, latest, &sealed, &aad).await? != input.plaintext {
        return Err(ErrorName::Internal.because("the trial decryption gave another plaintext"));
    }
    Ok(encrypted(&sealed, latest, Some(value)))
}

/// "Decrypt".
async fn decrypt(
    transit: &Transit,
    key: &str,
    switches: Switches,
    input: &ToDecrypt,
) -> Result<Value, Refused> {
    usable(switches, switches.decrypts)?;
    let aad = full_aad(&input.aad, input.metadata)?;
    let plaintext = transit.decrypt(key, input.metadata, &input.sealed, &aad).await?;
    Ok(json!({ "plaintext": BASE64.encode(&plaintext) }))
}

fn full_aad(aad: &[u8], metadata: CiphertextMetadata) -> Result<Vec<u8>, Refused> {
    composed_aad(aad, &metadata.bytes())
        .ok_or_else(|| ErrorName::UnsupportedOperation.because("lengths"))
}

fn response(status: u16, body: Bytes) -> hyper::Response<Full<Bytes>> {
    hyper::Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::new(body))
        .unwrap()
}
