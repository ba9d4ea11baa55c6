//! The side of KMS in the External Key Store Proxy API, version 1. "The specification" is that page
//! (aws/aws-kms-xksproxy-api-spec), "the Guide" the AWS KMS Developer Guide, mostly its page
//! "Troubleshooting external key stores".

use std::io;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime};

use data_encoding::BASE64;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::KmsError;
use super::failure::Failure;
use crate::sigv4::{Request, sign};

/// What all connections of this KMS to proxies have in common.
pub struct Network {
    /// Nobody is trusted before [`Network::trust`]; KMS has its list of certificate authorities.
    roots: RootCertStore,
    /// "If KMS does not receive a response from the XKS proxy for any API call within 250ms, KMS
    /// will time out", connecting included (GetKeyMetadata, "KMS Considerations").
    pub patience: Duration,
}

impl Default for Network {
    fn default() -> Self {
        Self { roots: RootCertStore::empty(), patience: Duration::from_millis(250) }
    }
}

impl Network {
    /// PEM, one certificate or several.
    pub fn trust(&mut self, pem: &str) {
        let before = self.roots.len();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            self.roots.add(certificate.unwrap()).unwrap();
        }
        assert!(self.roots.len() > before, "no certificate to trust");
    }

    pub fn distrust_all(&mut self) {
        self.roots = RootCertStore::empty();
    }

    /// TLS 1.2 and 1.3, as KMS has them; no session is resumed, so that each connection checks the
    /// certificate.
    fn tls(&self) -> TlsConnector {
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(self.roots.clone())
                .with_no_client_auth();
        config.resumption = Resumption::disabled();
        TlsConnector::from(Arc::new(config))
    }
}

/// "Assemble the prerequisites" of the Guide, the patterns of CreateCustomKeyStore in the API
/// Reference.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxySettings {
    /// `https://server`. KMS always goes to port 443; here a port may follow, since many proxies
    /// share one machine.
    pub endpoint: String,
    /// `[/prefix]/kms/xks/v1`
    pub path: String,
    pub access_key_id: String,
    pub secret: String,
}

impl ProxySettings {
    pub fn check(&self) -> Result<(), KmsError> {
        let made_of = |text: &str, allowed: &str| {
            text.chars().all(|c| c.is_ascii_alphanumeric() || allowed.contains(c))
        };
        let invalid = |field: &str| {
            let detail = format!(
                "Value at '{field}' failed to satisfy constraint: Member must satisfy regular expression pattern"
            );
            Err(KmsError::validation(detail))
        };
        if self.server().is_none_or(|(host, _)| host.is_empty() || !made_of(host, ".-")) {
            return invalid("xksProxyUriEndpoint");
        }
        let prefix = self.path.strip_suffix("/kms/xks/v1");
        if self.path.len() > 128
            || prefix.is_none_or(|prefix| {
                !made_of(prefix, "/-_") || !(prefix.is_empty() || prefix.starts_with('/'))
            })
        {
            return invalid("xksProxyUriPath");
        }
        let base32 = self.access_key_id.chars().all(|c| matches!(c, 'A'..='Z' | '2'..='7'));
        if !base32 || !(20..=30).contains(&self.access_key_id.len()) {
            return invalid("xksProxyAuthenticationCredential.accessKeyId");
        }
        if !made_of(&self.secret, "/+=") || !(43..=64).contains(&self.secret.len()) {
            return invalid("xksProxyAuthenticationCredential.rawSecretAccessKey");
        }
        Ok(())
    }

    fn server(&self) -> Option<(&str, u16)> {
        let server = self.endpoint.strip_prefix("https://")?;
        match server.split_once(':') {
            None => Some((server, 443)),
            Some((host, port)) => Some((host, port.parse().ok()?)),
        }
    }
}

/// Who asks KMS for what: `requestMetadata` (the specification, Appendix B and each API).
#[derive(Clone)]
pub struct Asker {
    /// None for GetHealthStatus.
    pub principal: Option<String>,
    /// None for GetHealthStatus, and for GetKeyMetadata before there is a key.
    pub key_arn: Option<String>,
    pub operation: String,
    pub request_id: String,
    /// What the clock of KMS says.
    pub now: SystemTime,
}

impl Asker {
    fn metadata(&self) -> Value {
        let mut metadata =
            json!({ "kmsOperation": self.operation, "kmsRequestId": self.request_id });
        if let Some(principal) = &self.principal {
            metadata["awsPrincipalArn"] = json!(principal);
        }
        if let Some(arn) = &self.key_arn {
            metadata["kmsKeyArn"] = json!(arn);
        }
        metadata
    }
}

/// What a proxy made of a plaintext: all of it goes into the ciphertext blob.
pub struct Sealed {
    pub metadata: Vec<u8>,
    pub iv: Vec<u8>,
    pub tag: Vec<u8>,
    pub ciphertext: Vec<u8>,
}

/// What GetKeyMetadata says of an external key.
pub struct ExternalKey {
    pub spec: String,
    pub usage: Vec<String>,
    pub status: String,
}

type Connection = SendRequest<Full<Bytes>>;

/// The proxy of one key store, as KMS knows it.
pub struct XksClient {
    region: String,
    settings: Mutex<ProxySettings>,
    network: Arc<RwLock<Network>>,
    /// Connections that wait for their next request, and where they lead to.
    idle: Mutex<Vec<(String, Connection)>>,
}

fn field(answer: &Value, name: &str) -> Result<Vec<u8>, Failure> {
    let text = answer[name].as_str().ok_or(Failure::Malformed)?;
    BASE64.decode(text.as_bytes()).map_err(|_| Failure::Malformed)
}

fn word(answer: &Value, name: &str) -> Result<String, Failure> {
    answer[name].as_str().map(ToOwned::to_owned).ok_or(Failure::Malformed)
}

impl XksClient {
    pub fn new(region: &str, settings: ProxySettings, network: Arc<RwLock<Network>>) -> Self {
        Self {
            region: region.to_owned(),
            settings: Mutex::new(settings),
            network,
            idle: Mutex::default(),
        }
    }

    pub fn settings(&self) -> ProxySettings {
        self.settings.lock().unwrap().clone()
    }

    pub fn change(&self, settings: ProxySettings) {
        *self.settings.lock().unwrap() = settings;
        self.hang_up();
    }

    /// Ends the connections that are kept.
    pub fn hang_up(&self) {
        self.idle.lock().unwrap().clear();
    }

    /// GetHealthStatus: all fields are required, and one external key manager at least has to be
    /// able to serve.
    pub async fn health(&self, asker: &Asker) -> Result<(), Failure> {
        let answer = self.call(asker, "/health", json!({})).await?;
        if answer["xksProxyFleetSize"].as_u64().is_none_or(|size| size == 0) {
            return Err(Failure::Malformed);
        }
        for name in ["xksProxyVendor", "xksProxyModel", "ekmVendor"] {
            word(&answer, name)?;
        }
        let managers = answer["ekmFleetDetails"].as_array().ok_or(Failure::Malformed)?;
        if managers.is_empty() || managers.len() > 10 {
            return Err(Failure::Malformed);
        }
        let mut serves = false;
        for manager in managers {
            word(manager, "id")?;
            word(manager, "model")?;
            match word(manager, "healthStatus")?.as_str() {
                "ACTIVE" | "DEGRADED" => serves = true,
                "UNAVAILABLE" => {}
                _ => return Err(Failure::Malformed),
            }
        }
        if serves { Ok(()) } else { Err(Failure::Unhealthy) }
    }

    /// GetKeyMetadata.
    pub async fn key_metadata(
        &self,
        asker: &Asker,
        external_key: &str,
    ) -> Result<ExternalKey, Failure> {
        let answer = self.call(asker, &format!("/keys/{external_key}/metadata"), json!({})).await?;
        let usage = answer["keyUsage"].as_array().ok_or(Failure::Malformed)?;
        let usage =
            usage.iter().map(|one| one.as_str().map(ToOwned::to_owned)).collect::<Option<Vec<_>>>();
        let usage = usage.filter(|usage| usage.len() <= 10).ok_or(Failure::Malformed)?;
        let status = word(&answer, "keyStatus")?;
        if status != "ENABLED" && status != "DISABLED" {
            return Err(Failure::Malformed);
        }
        Ok(ExternalKey { spec: word(&answer, "keySpec")?, usage, status })
    }

    /// Encrypt, with the bounds of its "Response Payload Parameters" and the data integrity value
    /// of Appendix C.
    pub async fn encrypt(
        &self,
        asker: &Asker,
        external_key: &str,
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Sealed, Failure> {
        let body = json!({
            "additionalAuthenticatedData": BASE64.encode(aad), "plaintext": BASE64.encode(plaintext),
            "encryptionAlgorithm": "AES_GCM", "ciphertextDataIntegrityValueAlgorithm": "SHA_256",
        });
        let answer = self.call(asker, &format!("/keys/{external_key}/encrypt"), body).await?;
        let metadata = match answer.get("ciphertextMetadata") {
            None => Vec::new(),
            Some(_) => field(&answer, "ciphertextMetadata")?,
        };
        let sealed = Sealed {
            metadata,
            iv: field(&answer, "initializationVector")?,
            tag: field(&answer, "authenticationTag")?,
            ciphertext: field(&answer, "ciphertext")?,
        };
        let fits = sealed.metadata.len() <= 20
            && [12, 16].contains(&sealed.iv.len())
            && sealed.tag.len() == 16
            && sealed.ciphertext.len() == plaintext.len();
        let integrity = Sha256::new()
            .chain_update(aad)
            .chain_update(&sealed.metadata)
            .chain_update(&sealed.iv)
            .chain_update(&sealed.ciphertext)
            .chain_update(&sealed.tag)
            .finalize();
        if !fits || field(&answer, "ciphertextDataIntegrityValue")? != integrity[..] {
            return Err(Failure::Malformed);
        }
        Ok(sealed)
    }

    /// Decrypt: "The size of the plaintext MUST be the same as the size of the ciphertext."
    pub async fn decrypt(
        &self,
        asker: &Asker,
        external_key: &str,
        aad: &[u8],
        sealed: &Sealed,
    ) -> Result<Vec<u8>, Failure> {
        let mut body = json!({
            "additionalAuthenticatedData": BASE64.encode(aad), "ciphertext": BASE64.encode(&sealed.ciphertext),
            "initializationVector": BASE64.encode(&sealed.iv), "authenticationTag": BASE64.encode(&sealed.tag),
            "encryptionAlgorithm": "AES_GCM",
        });
        if !sealed.metadata.is_empty() {
            body["ciphertextMetadata"] = json!(BASE64.encode(&sealed.metadata));
        }
        let answer = self.call(asker, &format!("/keys/{external_key}/decrypt"), body).await?;
        let plaintext = field(&answer, "plaintext")?;
        if plaintext.len() == sealed.ciphertext.len() {
            Ok(plaintext)
        } else {
            Err(Failure::Malformed)
        }
    }

    async fn call(&self, asker: &Asker, api: &str, mut body: Value) -> Result<Value, Failure> {
        body["requestMetadata"] = asker.metadata();
        let (status, answer) =
            self.post(asker.now, api, serde_json::to_vec(&body).unwrap()).await?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|_| Failure::Malformed)?;
        if status == 200 && answer.is_object() {
            return Ok(answer);
        }
        Err(answer["errorName"].as_str().map_or(Failure::Malformed, Failure::named))
    }

    /// Everything in the time that KMS allows, from the connection to the last byte.
    async fn post(
        &self,
        now: SystemTime,
        api: &str,
        body: Vec<u8>,
    ) -> Result<(u16, Bytes), Failure> {
        let settings = self.settings();
        let (tls, patience) = {
            let network = self.network.read().unwrap();
            (network.tls(), network.patience)
        };
        let deadline = (Instant::now() + patience).into();
        let (host, port) = settings.server().ok_or(Failure::NotReachable)?;
        let request = self.request(&settings, now, api, body);
        loop {
            let kept = self.kept(&settings.endpoint);
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(mut connection) => {
                    match timeout_at(deadline, connection.ready())
                        .await
                        .map_err(|_| Failure::SocketTimeout)?
                    {
                        Ok(()) => connection,
                        // The proxy had closed it: that is no failure.
                        Err(_) => continue,
                    }
                }
                None => {
                    let tcp = timeout_at(deadline, TcpStream::connect((host, port)));
                    let tcp = tcp.await.ok().and_then(Result::ok).ok_or(Failure::NotReachable)?;
                    timeout_at(deadline, open(tls.clone(), host, tcp))
                        .await
                        .map_err(|_| Failure::SocketTimeout)??
                }
            };
            let sent = timeout_at(deadline, connection.send_request(request.clone()));
            match sent.await.map_err(|_| Failure::SocketTimeout)? {
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    // Far above the largest answer there is: 4,300 bytes in base64.
                    let body = Limited::new(answer.into_body(), 64 * 1024).collect();
                    let body =
                        timeout_at(deadline, body).await.map_err(|_| Failure::SocketTimeout)?;
                    let body = body.map_err(|_| Failure::Malformed)?.to_bytes();
                    self.idle.lock().unwrap().push((settings.endpoint, connection));
                    return Ok((status, body));
                }
                Err(error) if error.is_parse() => return Err(Failure::Malformed),
                // Closed while the request was on its way.
                Err(_) if is_kept => {}
                Err(_) => return Err(Failure::Interrupted),
            }
        }
    }

    fn kept(&self, endpoint: &str) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap();
        idle.retain(|(leads_to, connection)| leads_to == endpoint && !connection.is_closed());
        idle.pop().map(|(_, connection)| connection)
    }

    /// "SignedHeaders=host;x-amz-date" (the specification, Appendix A).
    fn request(
        &self,
        settings: &ProxySettings,
        now: SystemTime,
        api: &str,
        body: Vec<u8>,
    ) -> hyper::Request<Full<Bytes>> {
        let path = format!("{}{api}", settings.path);
        let host = settings.endpoint.trim_start_matches("https://").to_owned();
        let headers = [("host".to_owned(), host.clone())];
        let unsigned = Request { method: "POST", path: &path, headers: &headers, body: &body };
        let (key, secret) = (&settings.access_key_id, &settings.secret);
        let [date, signature] = sign(&unsigned, key, secret, &self.region, "kms-xks-proxy", now);
        hyper::Request::post(&path)
            .header("host", host)
            .header("content-type", "application/json")
            .header(date.0, date.1)
            .header(signature.0, signature.1)
            .body(Full::new(body.into()))
            .unwrap()
    }
}

async fn open(tls: TlsConnector, host: &str, tcp: TcpStream) -> Result<Connection, Failure> {
    let _ = tcp.set_nodelay(true);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Failure::NoTls)?;
    let secured = tls.connect(name, tcp).await.map_err(|_: io::Error| Failure::NoTls)?;
    let (connection, driver) =
        http1::handshake(TokioIo::new(secured)).await.map_err(|_| Failure::Interrupted)?;
    tokio::spawn(async move {
        let _ = driver.await;
    });
    Ok(connection)
}
