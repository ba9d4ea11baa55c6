//! An external key store proxy, version 1, over keys in OpenBao Transit: KMS -> **XKS proxy** ->
//! policy -> Transit.
//!
//! Source: "External Key Store Proxy API Specification", version 1.0.2. What is quoted here and in
//! the files beside stands there, in the section that is named. It does what an operator's own
//! proxy has to do, and fails on demand.
//!
//! | file | what |
//! |---|---|
//! | `serve.rs` | connections and requests, and what is checked before an operation |
//! | `operations.rs` | the four operations |
//! | `api.rs` | the words of the specification: paths, errors, requests, the bytes that are computed over |
//! | `policy.rs`, `policy.rego` | the decision before every operation but the health check ("Authorization") |
//! | `transit.rs`, `transit.hcl` | the key manager: one call each, what its answers mean, what the proxy's token may do |
//! | `tls.rs` | its TLS |
//!
//! Left out: client certificates (a SHOULD of "Authentication"), HTTP/2, the URLs of load
//! balancers, a second fleet member.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

pub mod api;
mod operations;
pub mod policy;
mod serve;
// The KMS front has it as well.
#[allow(clippy::duplicate_mod)]
mod tls;
pub mod transit;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use data_encoding::{BASE32, BASE64};
use rand::Rng;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

use crate::certificates::Authority;
pub use crate::certificates::Certificate;
use crate::server_thread::ServerThread;
pub use api::{ErrorName, Operation};
use policy::Policy;
use serve::run;
pub use transit::TransitOptions;

/// "the service is kms-xks-proxy" (Appendix A).
pub const SERVICE: &str = "kms-xks-proxy";

/// What a proxy is started with.
#[derive(Clone)]
pub struct Options {
    pub transit: TransitOptions,
    /// `<optional-path-prefix>` of "API operations", without slashes at its ends; empty for none.
    pub path_prefix: String,
    /// How long Transit may take over all that one request needs of it. Below the 250 ms after
    /// which KMS gives up, or nobody hears DependencyTimeoutException.
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
    /// "20-30 characters, 'A' through 'Z' and '2' through '7' only", and 256 random bits in Base64
    /// ("XKS proxy configuration", Appendix A).
    fn random() -> Self {
        let secret_access_key = BASE64.encode(&random::<32>());
        crate::outputs::note_secret(&secret_access_key);
        Self { access_key_id: BASE32.encode(&random::<15>()), secret_access_key }
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
    /// This, instead of what the proxy would have answered.
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

/// Something that goes wrong until it is taken away, for all requests or for some. It strikes
/// before the signature is looked at.
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

/// A line of the log ("Logging"): what of the request's metadata it asks for, the processing time,
/// the error; never a plaintext. What a request says of itself stands here only if its signature
/// was right.
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

/// So many requests in a window ("An XKS proxy MAY implement independent request quotas on each
/// path prefix", "API operations").
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

pub struct XksProxy {
    shared: Arc<Shared>,
    authority: Authority,
    port: u16,
    running: Mutex<Option<ServerThread>>,
}

impl XksProxy {
    pub fn start(options: Options) -> Self {
        let prefix = &options.path_prefix;
        let uri_path = if prefix.is_empty() {
            "/kms/xks/v1".to_owned()
        } else {
            format!("/{prefix}/kms/xks/v1")
        };
        // "MUST NOT exceed 128 characters and MUST NOT include any characters other than ..." ("API
        // operations").
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

    /// Another policy, in Rego v1, in force from the next request; if it cannot be read, the one
    /// before stays.
    pub fn set_policy(&self, rego: &str) -> Result<(), String> {
        self.change_rules(|rules| Rules::new(rego, rules.grants.clone(), rules.denied.clone()))
    }

    /// Who may do what: see `policy.rego`. At first everybody everything.
    pub fn set_grants(&self, grants: Value) {
        self.change_rules(|rules| Rules::new(&rules.rego, grants, rules.denied.clone())).unwrap();
    }

    /// Denies a principal, whatever is granted to it.
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

    /// Ends every open connection. A client that keeps connections may see so only at its next
    /// request, which then fails.
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

    /// Ends it in the middle of its work. Connections are refused afterwards.
    pub fn kill(&self) {
        drop(self.running.lock().unwrap().take());
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
