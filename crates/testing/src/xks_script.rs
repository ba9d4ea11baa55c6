//! An XKS endpoint for the tests of the KMS front's own side of the protocol: an honest one
//! (AES-256-GCM in this process), until a test tells it how to misbehave. It speaks HTTP/1.1 by
//! hand, so that it can answer what no HTTP server would.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

use crate::kms_front::random;
use crate::sigv4::{Claim, Request};

pub const PATH: &str = "/kms/xks/v1";
pub const ACCESS_KEY: &str = "ABCDEFGHIJKLMNOPQRST";
pub const SECRET: &str = "TheSecretOfTheEndpointIsFortyThreeLettersABC";
pub const METADATA: &[u8] = b"version=1";

/// What the endpoint does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    Honest,
    /// `errorName`
    Error(u16, &'static str),
    Raw(u16, String),
    /// Not even HTTP; then the end of the connection.
    Bytes(Vec<u8>),
    /// The same for one request only.
    Once(Vec<u8>),
    /// The honest answer, changed.
    Bend(fn(&mut Value)),
    /// The same, with an integrity value that fits the change.
    Consistent(fn(&mut Value)),
    /// So many bytes of ciphertextMetadata.
    Metadata(usize),
    /// The honest answer, later.
    Late(Duration),
    /// The honest answer, one byte at a time.
    Trickle(Duration),
}

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key.
pub type Identity = TlsAcceptor;

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pem = issuer.pem();
        Self { issuer, pem }
    }

    pub fn identity(&self, name: &str) -> Identity {
        self.issue(CertificateParams::new(vec![name.to_owned()]).unwrap())
    }

    pub fn expired(&self, name: &str) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = date_time_ymd(2020, 1, 1);
        self.issue(params)
    }

    fn issue(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            );
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }
}

#[derive(Clone)]
enum Greeting {
    Tls(Identity),
    /// Something that is not TLS.
    Plain,
    Silence,
}

struct Shared {
    act: Mutex<Act>,
    greeting: Mutex<Greeting>,
    credentials: Mutex<Vec<(String, String)>>,
    paths: Mutex<Vec<String>>,
    requests: Mutex<Vec<(String, Value)>>,
    connections: AtomicUsize,
    /// Connections of an older generation are closed.
    generation: watch::Sender<u64>,
}

/// Lives on the runtime that started it.
pub struct Endpoint {
    shared: Arc<Shared>,
    port: u16,
    listening: JoinHandle<()>,
}

impl Endpoint {
    pub async fn start(identity: Identity) -> Self {
        crate::outputs::note_secret(SECRET);
        let shared = Arc::new(Shared {
            act: Mutex::new(Act::Honest),
            greeting: Mutex::new(Greeting::Tls(identity)),
            credentials: Mutex::new(vec![(ACCESS_KEY.to_owned(), SECRET.to_owned())]),
            paths: Mutex::new(vec![PATH.to_owned()]),
            requests: Mutex::default(),
            connections: AtomicUsize::new(0),
            generation: watch::Sender::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let for_task = shared.clone();
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                for_task.connections.fetch_add(1, Ordering::SeqCst);
                let mut generation = for_task.generation.subscribe();
                let shared = for_task.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        _ = generation.changed() => {}
                        () = shared.serve(stream) => {}
                    }
                });
            }
        });
        Self { shared, port, listening }
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// Serves the same keys under another prefix too: the path for KMS.
    pub fn other_path(&self, prefix: &str) -> String {
        let path = format!("{prefix}{PATH}");
        self.shared.paths.lock().unwrap().push(path.clone());
        path
    }

    pub fn act(&self, act: Act) {
        *self.shared.act.lock().unwrap() = act;
    }

    pub fn accept(&self, credentials: &[(&str, &str)]) {
        let owned =
            credentials.iter().map(|(key, secret)| ((*key).to_owned(), (*secret).to_owned()));
        *self.shared.credentials.lock().unwrap() = owned.collect();
    }

    /// Who new connections find: `None` answers without TLS.
    pub fn identify(&self, identity: Option<Identity>) {
        *self.shared.greeting.lock().unwrap() = identity.map_or(Greeting::Plain, Greeting::Tls);
    }

    /// New connections are accepted, and that is all.
    pub fn identify_silently(&self) {
        *self.shared.greeting.lock().unwrap() = Greeting::Silence;
    }

    /// Ends the connections there are.
    pub fn hang_up(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// For good: afterwards nobody listens.
    pub async fn stop(&mut self) {
        self.listening.abort();
        let _ = (&mut self.listening).await;
        self.hang_up();
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The bodies of the requests to this API.
    pub fn asked(&self, api: &str) -> Vec<Value> {
        let requests = self.shared.requests.lock().unwrap();
        requests
            .iter()
            .filter(|(path, _)| path.ends_with(api))
            .map(|(_, body)| body.clone())
            .collect()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.listening.abort();
        self.hang_up();
    }
}

type Headers = Vec<(String, String)>;

impl Shared {
    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let greeting = self.greeting.lock().unwrap().clone();
        let tls = match greeting {
            Greeting::Tls(identity) => identity,
            Greeting::Plain => {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                return;
            }
            Greeting::Silence => std::future::pending().await,
        };
        let Ok(mut stream) = tls.accept(stream).await else { return };
        while let Some((path, headers, body)) = read(&mut stream).await {
            let input: Value = serde_json::from_slice(&body).unwrap();
            self.requests.lock().unwrap().push((path.clone(), input.clone()));
            let act = self.act.lock().unwrap().clone();
            let answer = match &act {
                Act::Bytes(bytes) | Act::Once(bytes) => {
                    if matches!(act, Act::Once(_)) {
                        *self.act.lock().unwrap() = Act::Honest;
                    }
                    let _ = stream.write_all(bytes).await;
                    let _ = stream.shutdown().await;
                    return;
                }
                Act::Error(status, name) => http(
                    *status,
                    &json!({ "errorName": name, "errorMessage": "by script" }).to_string(),
                ),
                Act::Raw(status, body) => http(*status, body),
                act => {
                    let metadata = if let Act::Metadata(len) = act {
                        vec![7; *len]
                    } else {
                        METADATA.to_vec()
                    };
                    let (status, mut answer) =
                        self.honest(&path, &headers, &body, &input, &metadata);
                    if let Act::Bend(bend) | Act::Consistent(bend) = act {
                        bend(&mut answer);
                    }
                    if matches!(act, Act::Consistent(_)) && answer.get("ciphertext").is_some() {
                        answer["ciphertextDataIntegrityValue"] =
                            json!(BASE64.encode(&integrity(&input, &answer)));
                    }
                    http(status, &answer.to_string())
                }
            };
            if let Act::Late(pause) = act {
                tokio::time::sleep(pause).await;
            }
            let sent = match act {
                Act::Trickle(pause) => trickle(&mut stream, &answer, pause).await,
                _ => stream.write_all(&answer).await.is_ok(),
            };
            if !sent || stream.flush().await.is_err() {
                return;
            }
        }
    }

    /// As the specification has it.
    fn honest(
        &self,
        path: &str,
        headers: &Headers,
        body: &[u8],
        input: &Value,
        metadata: &[u8],
    ) -> (u16, Value) {
        let error = |status, name: &str| (status, json!({ "errorName": name }));
        let request = Request { method: "POST", path, headers, body };
        let Ok(claim) = Claim::read(&request, "kms-xks-proxy") else {
            return error(401, "AuthenticationFailedException");
        };
        let secret = self
            .credentials
            .lock()
            .unwrap()
            .iter()
            .find(|(key, _)| *key == claim.access_key)
            .cloned();
        let is_right = |secret: &str| claim.check(&request, secret, &[], SystemTime::now()).is_ok();
        if !secret.is_some_and(|(_, secret)| is_right(&secret)) {
            return error(401, "AuthenticationFailedException");
        }
        let paths = self.paths.lock().unwrap();
        let Some(api) = paths.iter().find_map(|prefix| path.strip_prefix(prefix.as_str())) else {
            return error(404, "InvalidUriPathException");
        };
        let parts: Vec<_> = api.split('/').skip(1).collect();
        match parts[..] {
            ["health"] => (200, health()),
            ["keys", _, "metadata"] => (
                200,
                json!({ "keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT"], "keyStatus": "ENABLED" }),
            ),
            ["keys", key, "encrypt"] => (200, encrypt(key, input, metadata)),
            ["keys", key, "decrypt"] => match decrypt(key, input) {
                Some(plaintext) => (200, json!({ "plaintext": BASE64.encode(&plaintext) })),
                None => error(400, "InvalidCiphertextException"),
            },
            _ => error(404, "InvalidUriPathException"),
        }
    }
}

fn health() -> Value {
    json!({
        "xksProxyFleetSize": 1, "xksProxyVendor": "script", "xksProxyModel": "script 1", "ekmVendor": "script",
        "ekmFleetDetails": [{ "id": "1", "model": "script 1", "healthStatus": "ACTIVE" }],
    })
}

fn cipher(key: &str) -> Aes256Gcm {
    Aes256Gcm::new(&Sha256::digest(key))
}

fn bytes(body: &Value, name: &str) -> Vec<u8> {
    body.get(name)
        .map_or_else(Vec::new, |text| BASE64.decode(text.as_str().unwrap().as_bytes()).unwrap())
}

/// With the lengths, as under "ciphertextMetadata" of Encrypt.
fn aad(aad: &[u8], metadata: &[u8]) -> Vec<u8> {
    let len = u16::try_from(aad.len()).unwrap().to_be_bytes();
    [&len[..], aad, &[u8::try_from(metadata.len()).unwrap()], metadata].concat()
}

fn encrypt(key: &str, input: &Value, metadata: &[u8]) -> Value {
    let (iv, mut text) = (random::<12>(), bytes(input, "plaintext"));
    let aad = aad(&bytes(input, "additionalAuthenticatedData"), metadata);
    let tag =
        cipher(key).encrypt_inout_detached((&iv).into(), &aad, text.as_mut_slice().into()).unwrap();
    let mut answer = json!({
        "ciphertext": BASE64.encode(&text), "initializationVector": BASE64.encode(&iv),
        "authenticationTag": BASE64.encode(&tag),
    });
    if !metadata.is_empty() {
        answer["ciphertextMetadata"] = json!(BASE64.encode(metadata));
    }
    answer["ciphertextDataIntegrityValue"] = json!(BASE64.encode(&integrity(input, &answer)));
    answer
}

/// Appendix C.
fn integrity(input: &Value, answer: &Value) -> [u8; 32] {
    let parts = ["ciphertextMetadata", "initializationVector", "ciphertext", "authenticationTag"];
    let start = Sha256::new().chain_update(bytes(input, "additionalAuthenticatedData"));
    parts.iter().fold(start, |hash, part| hash.chain_update(bytes(answer, part))).finalize().into()
}

fn decrypt(key: &str, input: &Value) -> Option<Vec<u8>> {
    let aad =
        aad(&bytes(input, "additionalAuthenticatedData"), &bytes(input, "ciphertextMetadata"));
    let (iv, tag) = (bytes(input, "initializationVector"), bytes(input, "authenticationTag"));
    let (iv, tag): (&[u8; 12], &[u8; 16]) =
        (iv.as_slice().try_into().ok()?, tag.as_slice().try_into().ok()?);
    let mut text = bytes(input, "ciphertext");
    cipher(key)
        .decrypt_inout_detached(iv.into(), &aad, text.as_mut_slice().into(), tag.into())
        .ok()?;
    Some(text)
}

/// Makes a field so long.
pub fn resize(answer: &mut Value, field: &str, len: usize) {
    if answer.get(field).is_some() {
        let mut value = bytes(answer, field);
        value.resize(len, 1);
        answer[field] = json!(BASE64.encode(&value));
    }
}

fn http(status: u16, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} Script\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn trickle(stream: &mut TlsStream<TcpStream>, answer: &[u8], pause: Duration) -> bool {
    for byte in answer {
        tokio::time::sleep(pause).await;
        if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
            return false;
        }
    }
    true
}

/// Path, headers, body; `None` at the end of the connection.
async fn read(stream: &mut TlsStream<TcpStream>) -> Option<(String, Headers, Vec<u8>)> {
    let mut received = Vec::new();
    let head = loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut received).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(received[..head].to_vec()).unwrap();
    let mut lines = text.split("\r\n");
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers: Headers = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let len = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .map_or(0, |(_, len)| len.parse().unwrap());
    let mut body = received.split_off(head + 4);
    while body.len() < len {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some((path, headers, body))
}
