//! The key manager: the Transit engine of OpenBao, and what each of its answers means to a caller
//! of the proxy.

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::api::{CiphertextMetadata, ErrorName, IV, Refused, Sealed, TAG};

/// What the proxy's token may do.
pub const POLICY: &str = include_str!("transit.hcl");
/// Only for health checks: "using a test key in the external key manager rather than a key
/// associated with a KMS key" (GetHealthStatus).
pub const HEALTH_KEY: &str = "xks-health-check";

/// Where Transit is. No `Debug`: there is a token in it.
#[derive(Clone)]
pub struct TransitOptions {
    /// `http://` or `https://`, address and port.
    pub address: String,
    /// The authority of its certificate; without it, no `https://` address is trusted.
    pub ca_pem: Option<String>,
    /// With [`POLICY`] and nothing more.
    pub token: String,
}

impl TransitOptions {
    fn client(ca_pem: Option<&str>) -> reqwest::Client {
        let ca = ca_pem.map(|pem| reqwest::Certificate::from_pem(pem.as_bytes()).unwrap());
        // A redirect would take the token to somewhere else.
        let no_redirect = reqwest::redirect::Policy::none();
        reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only(ca)
            .redirect(no_redirect)
            .build()
            .unwrap()
    }

    /// What an operator does once, with a token that may do everything: the policy, the key for
    /// health checks and a token for the proxy. Transit has to be mounted at `transit`.
    pub async fn prepare(address: &str, ca_pem: Option<&str>, root_token: &str) -> Self {
        let client = Self::client(ca_pem);
        let put = async |path: &str, body: Value| {
            let request =
                client.post(format!("{address}/v1/{path}")).header("x-vault-token", root_token);
            let answer = request.json(&body).send().await.unwrap().error_for_status().unwrap();
            answer.json::<Value>().await.unwrap_or_default()
        };
        put("sys/policies/acl/xks-proxy", json!({ "policy": POLICY })).await;
        put(&format!("transit/keys/{HEALTH_KEY}"), json!({ "type": "aes256-gcm96" })).await;
        let fields =
            json!({ "policies": ["xks-proxy"], "no_default_policy": true, "no_parent": true });
        let token = put("auth/token/create", fields).await;
        let token = token["auth"]["client_token"].as_str().unwrap().to_owned();
        Self { address: address.to_owned(), ca_pem: ca_pem.map(ToOwned::to_owned), token }
    }
}

/// What Transit says of a key.
pub struct Description {
    /// `AES_256` for a key that KMS can use; else what Transit calls it.
    pub spec: String,
    pub usage: Vec<&'static str>,
    pub soft_deleted: bool,
    pub latest: CiphertextMetadata,
}

pub struct ServerStatus {
    pub id: String,
    pub version: String,
}

/// The header in which Transit is told for which request to KMS it works. An operator can have it
/// in OpenBao's audit log.
pub const REQUEST_ID: &str = "x-kms-request-id";

#[derive(Clone)]
pub struct Transit {
    options: TransitOptions,
    client: reqwest::Client,
    kms_request_id: String,
}

impl Transit {
    /// In the runtime that will use it: connections belong to the runtime they were made in.
    pub fn new(options: TransitOptions) -> Self {
        let client = TransitOptions::client(options.ca_pem.as_deref());
        Self { options, client, kms_request_id: String::new() }
    }

    /// The same, on behalf of a request to KMS ("to allow a customer to correlate AWS CloudTrail
    /// entries with log entries", "Logging").
    pub fn on_behalf_of(&self, kms_request_id: &str) -> Self {
        // "opaque string": not all of those can stand in a header.
        let printable = kms_request_id.chars().filter(char::is_ascii_graphic).take(128).collect();
        Self { kms_request_id: printable, ..self.clone() }
    }

    async fn ask(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(u16, Value), Refused> {
        let request = self.client.request(method, format!("{}/v1/{path}", self.options.address));
        let request = request.header("x-vault-token", &self.options.token);
        let request = request.header(REQUEST_ID, &self.kms_request_id);
        let request = if let Some(body) = body { request.json(&body) } else { request };
        let failed = |error: reqwest::Error| {
            ErrorName::Internal
                .because(format!("Transit cannot be reached: {}", error.without_url()))
        };
        let answer = request.send().await.map_err(failed)?;
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await.map_err(failed)?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    async fn use_key(&self, verb: &str, key: &str, body: Value) -> Result<Value, Refused> {
        let path = format!("transit/{verb}/{}", named(key)?);
        match self.ask(reqwest::Method::POST, &path, Some(body)).await? {
            (200, mut answer) => Ok(answer.get_mut("data").map(Value::take).unwrap_or_default()),
            (status, answer) => Err(refused(status, &answer)),
        }
    }

    pub async fn describe(&self, key: &str) -> Result<Description, Refused> {
        let path = format!("transit/keys/{}", named(key)?);
        let (status, answer) = self.ask(reqwest::Method::GET, &path, None).await?;
        let data = &answer["data"];
        let Some(kind) = data["type"].as_str().filter(|_| status == 200) else {
            return Err(refused(status, &answer));
        };
        let spec = if kind == "aes256-gcm96" {
            "AES_256".to_owned()
        } else {
            kind.to_uppercase().replace('-', "_")
        };
        // A derived key works with a derivation context only, which KMS does not know of.
        let uses = [
            ("supports_encryption", "ENCRYPT"),
            ("supports_decryption", "DECRYPT"),
            ("supports_signing", "SIGN"),
        ];
        let usable = |field: &str| data[field] == true && data["derived"] == false;
        let latest =
            data["latest_version"].as_u64().and_then(|version| u32::try_from(version).ok());
        Ok(Description {
            spec,
            usage: uses
                .iter()
                .filter(|(field, _)| usable(field))
                .map(|(_, usage)| *usage)
                .collect(),
            soft_deleted: data["soft_deleted"] == true,
            latest: CiphertextMetadata {
                key_version: latest.ok_or_else(|| strange("no latest_version"))?,
            },
        })
    }

    /// With this version of the key. Transit gives `vault:vN:` and the Base64 of IV, ciphertext and
    /// tag.
    pub async fn encrypt(
        &self,
        key: &str,
        version: CiphertextMetadata,
        plaintext: &[u8],
        aad: &[u8],
    ) -> Result<Sealed, Refused> {
        let body = json!({
            "plaintext": BASE64.encode(plaintext), "associated_data": BASE64.encode(aad),
            "key_version": version.key_version,
        });
        let answer = self.use_key("encrypt", key, body).await?;
        let text =
            answer["ciphertext"].as_str().and_then(|text| text.strip_prefix(&prefix(version)));
        let bytes = text.and_then(|text| BASE64.decode(text.as_bytes()).ok());
        let bytes =
            bytes.ok_or_else(|| strange("no ciphertext of the version that was asked for"))?;
        let sealed = bytes.split_first_chunk::<IV>().and_then(|(iv, rest)| {
            let (ciphertext, tag) = rest.split_last_chunk::<TAG>()?;
            Some(Sealed { iv: *iv, ciphertext: ciphertext.to_vec(), tag: *tag })
        });
        // "the length of the ciphertext MUST be the same as the length of the plaintext" (Encrypt).
        sealed
            .filter(|sealed| sealed.ciphertext.len() == plaintext.len())
            .ok_or_else(|| strange("a ciphertext of another length"))
    }

    pub async fn decrypt(
        &self,
        key: &str,
        version: CiphertextMetadata,
        sealed: &Sealed,
        aad: &[u8],
    ) -> Result<Vec<u8>, Refused> {
        let bytes = [&sealed.iv[..], &sealed.ciphertext, &sealed.tag].concat();
        let ciphertext = prefix(version) + &BASE64.encode(&bytes);
        let body = json!({ "ciphertext": ciphertext, "associated_data": BASE64.encode(aad) });
        let answer = self.use_key("decrypt", key, body).await?;
        let plaintext =
            answer["plaintext"].as_str().and_then(|text| BASE64.decode(text.as_bytes()).ok());
        plaintext
            .filter(|plaintext| plaintext.len() == sealed.ciphertext.len())
            .ok_or_else(|| strange("no plaintext of the ciphertext's length"))
    }

    /// A deep check: the server answers, and encrypts and decrypts with the key for this
    /// (GetHealthStatus).
    pub async fn check(&self) -> Result<ServerStatus, Refused> {
        let (status, answer) = self.ask(reqwest::Method::GET, "sys/health", None).await?;
        let (true, Some(id), Some(version)) =
            (status == 200, answer["cluster_id"].as_str(), answer["version"].as_str())
        else {
            return Err(ErrorName::Internal.because(format!("Transit's health is {status}")));
        };
        let latest = self.describe(HEALTH_KEY).await?.latest;
        let sealed = self.encrypt(HEALTH_KEY, latest, b"health", b"check").await?;
        if self.decrypt(HEALTH_KEY, latest, &sealed, b"check").await? != b"health" {
            return Err(strange("another plaintext"));
        }
        Ok(ServerStatus { id: id.to_owned(), version: version.to_owned() })
    }
}

fn prefix(version: CiphertextMetadata) -> String {
    format!("vault:v{}:", version.key_version)
}

fn strange(what: &str) -> Refused {
    ErrorName::Internal.because(format!("Transit gave {what}"))
}

/// The name, where Transit can have a key of that name: it begins and ends with a letter, a digit
/// or an underscore. What an external key id may be besides, `..` among it, would be another path
/// of the server.
fn named(key: &str) -> Result<&str, Refused> {
    let outer = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let inner = |c: char| outer(c) || c == '-' || c == '.';
    let possible = key.starts_with(outer) && key.ends_with(outer) && key.chars().all(inner);
    if possible {
        Ok(key)
    } else {
        Err(ErrorName::KeyNotFound.because("no name that Transit could have"))
    }
}

/// What an answer other than 200 means. The texts are those of OpenBao 2.7.
fn refused(status: u16, answer: &Value) -> Refused {
    let errors: Vec<_> =
        answer["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let says = |text: &str| errors.iter().any(|error| error.contains(text));
    let name = match status {
        400 if says("encryption key not found") => ErrorName::KeyNotFound,
        // "corrupted, missing, or otherwise invalid" ("Error codes"); "invalid ciphertext" is a
        // version that was never made as well.
        400 if says("message authentication failed") || says("invalid ciphertext") => {
            ErrorName::InvalidCiphertext
        }
        // "disabled, deactivated or blocked": that of the key which is needed was, by its operator.
        400 if says("disallowed by policy (too old)") || says("soft-deleted key") => {
            ErrorName::InvalidState
        }
        400 if says("missing 'context' for key derivation") => ErrorName::InvalidKeyUsage,
        // A key that is not there; with a text, the whole engine is not.
        404 if errors.is_empty() => ErrorName::KeyNotFound,
        429 => ErrorName::Throttling,
        // 403 is about the proxy's own token: neither KMS's signature
        // (AuthenticationFailedException) nor who asked KMS (AccessDeniedException) is at fault, so
        // a "failure of the backing key manager". So is what is sealed (503), broken (5xx), not
        // active (472, 473), behind (412), or not understood.
        _ => ErrorName::Internal,
    };
    name.because(format!("Transit answered {status}: {}", errors.join("; ")))
}
