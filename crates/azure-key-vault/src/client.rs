//! The calls of Key Vault, by the SDK's client: their input, and which parts of an answer are
//! trusted.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use azure_core::http::Transport as SdkTransport;
use azure_core::http::{ClientOptions, RequestContent, Response, RetryOptions};
use azure_security_keyvault_keys::models::KeyOperationParameters;
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use waxseal::{Error, ErrorKind};
use zeroize::{Zeroize, Zeroizing};

use crate::errors::{Failure, Operation, failure, report};
use crate::format::{IV, Kid, TAG, Version};
use crate::keeper::Keeper;
use crate::place::{Place, Resource};
use crate::transport::Transport;

/// The key of a vault, and the client for it.
pub(crate) struct Service {
    /// It caches a token itself.
    client: ArcSwap<KeyClient>,
    transport: Arc<Transport>,
    keeper: Keeper,
    place: Place,
    key: String,
    scope: String,
}

/// The result of `encrypt`.
pub(crate) struct Encrypted {
    pub(crate) version: Version,
    pub(crate) iv: [u8; IV],
    pub(crate) tag: [u8; TAG],
    pub(crate) text: Vec<u8>,
}

/// A key as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) version: Version,
    /// In the words of JWK, such as `oct-HSM`.
    pub(crate) kind: String,
    pub(crate) operations: Vec<String>,
    pub(crate) enabled: bool,
    pub(crate) not_before: Option<SystemTime>,
    pub(crate) expires: Option<SystemTime>,
}

/// The parts of an answer that are read. Texts are borrowed, since none of them needs an escape.
#[derive(Deserialize)]
struct Answer<'a> {
    kid: &'a str,
    value: &'a str,
    #[serde(default)]
    iv: Option<&'a str>,
    #[serde(default)]
    tag: Option<&'a str>,
}

#[derive(Deserialize)]
struct KeyBundle {
    key: JsonWebKey,
    #[serde(default)]
    attributes: Attributes,
}

#[derive(Deserialize)]
struct JsonWebKey {
    kid: String,
    kty: String,
    #[serde(default)]
    key_ops: Vec<String>,
}

#[derive(Deserialize, Default)]
struct Attributes {
    enabled: Option<bool>,
    nbf: Option<u64>,
    exp: Option<u64>,
}

impl Service {
    pub(crate) fn new(
        place: &Place,
        key: &str,
        keeper: Keeper,
        transport: Arc<Transport>,
    ) -> Result<Self, Error> {
        let client = client(place, &keeper, &transport)?;
        Ok(Self {
            client: ArcSwap::from_pointee(client),
            transport,
            keeper,
            place: place.clone(),
            key: key.to_owned(),
            scope: place.scope(),
        })
    }

    /// Drops the token that the SDK's client caches.
    pub(crate) fn close(&self) {
        if let Ok(next) = client(&self.place, &self.keeper, &self.transport) {
            self.client.store(Arc::new(next));
        }
    }

    /// Makes the call, and repeats it with another token if the first one was refused.
    async fn call(
        &self,
        operation: Operation,
        version: &str,
        content: Bytes,
    ) -> Result<Wiped, Failure> {
        let generation = self.keeper.generation();
        match self.once(operation, version, &content).await {
            Err(refused) if refused.of_the_token => {
                match self.keeper.renew(generation, &[&self.scope]).await {
                    Ok(true) => self.once(operation, version, &content).await,
                    Ok(false) => Err(refused),
                    Err(error) => Err(failure(operation, &error)),
                }
            }
            answer => answer,
        }
    }

    async fn once(
        &self,
        operation: Operation,
        version: &str,
        content: &Bytes,
    ) -> Result<Wiped, Failure> {
        let (client, key) = (self.client.load_full(), self.key.as_str());
        let content: RequestContent<KeyOperationParameters> = content.clone().into();
        let answer = match operation {
            Operation::Encrypt => client.encrypt(key, content, None).await.map(parts),
            Operation::Decrypt => client.decrypt(key, version, content, None).await.map(parts),
            Operation::WrapKey => client.wrap_key(key, content, None).await.map(parts),
            Operation::UnwrapKey => client.unwrap_key(key, version, content, None).await.map(parts),
            Operation::Get => client.get_key(key, None).await.map(parts),
        };
        answer.map_err(|error| failure(operation, &error))
    }

    /// Returns the version that an answer names. The answer must name this key.
    fn version(&self, operation: Operation, kid: &str) -> Result<Version, Failure> {
        let Place { host, resource, .. } = &self.place;
        // Names in a vault differ in more than case ("Object identifiers"). For a Managed HSM no
        // page says so.
        let is_this = |name: &str| match resource {
            Resource::Vault => name.eq_ignore_ascii_case(&self.key),
            Resource::ManagedHsm => name == self.key,
        };
        match Kid::read(kid) {
            Some(kid) if kid.host.eq_ignore_ascii_case(host) && is_this(kid.name) => {
                Ok(kid.version)
            }
            _ => Err(Failure::not_understood(operation, "the answer names another key")),
        }
    }

    pub(crate) async fn encrypt(&self, dek: &[u8], aad: &[u8]) -> Result<Encrypted, Failure> {
        let operation = Operation::Encrypt;
        let content = body("A256GCM", dek, &[("aad", aad)]);
        let answer = self.call(operation, "", content).await?;
        let answer = read(operation, &answer)?;
        let (Some(iv), Some(tag)) = (part(answer.iv), part(answer.tag)) else {
            return Err(Failure::not_understood(operation, "the answer has no iv, or no tag"));
        };
        let version = self.version(operation, answer.kid)?;
        let text = value(operation, answer.value)?;
        if text.as_slice() == dek {
            return Err(Failure::not_understood(operation, "the ciphertext is the plaintext"));
        }
        Ok(Encrypted { version, iv, tag, text: text.to_vec() })
    }

    pub(crate) async fn decrypt(
        &self,
        version: &Version,
        (iv, tag, text): (&[u8], &[u8], &[u8]),
        aad: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let content = body("A256GCM", text, &[("aad", aad), ("iv", iv), ("tag", tag)]);
        self.opened(Operation::Decrypt, version, content).await
    }

    pub(crate) async fn wrap_key(&self, value_: &[u8]) -> Result<(Version, Vec<u8>), Failure> {
        let operation = Operation::WrapKey;
        let content = body("RSA-OAEP-256", value_, &[]);
        let answer = self.call(operation, "", content).await?;
        let answer = read(operation, &answer)?;
        let version = self.version(operation, answer.kid)?;
        Ok((version, value(operation, answer.value)?.to_vec()))
    }

    pub(crate) async fn unwrap_key(
        &self,
        version: &Version,
        text: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let content = body("RSA-OAEP-256", text, &[]);
        self.opened(Operation::UnwrapKey, version, content).await
    }

    /// Returns the plaintext of an answer that names the requested version.
    async fn opened(
        &self,
        operation: Operation,
        version: &Version,
        content: Bytes,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let answer = self.call(operation, version.as_str(), content).await?;
        let answer = read(operation, &answer)?;
        if &self.version(operation, answer.kid)? != version {
            return Err(Failure::not_understood(operation, "the answer names another version"));
        }
        value(operation, answer.value)
    }

    /// Returns the newest version of the key.
    pub(crate) async fn get(&self) -> Result<Description, Failure> {
        let operation = Operation::Get;
        let answer = self.call(operation, "", Bytes::new()).await?;
        let found: KeyBundle = serde_json::from_slice(&answer.0)
            .map_err(|_| Failure::not_understood(operation, NOT_UNDERSTOOD))?;
        let at = |seconds: Option<u64>| {
            seconds.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        };
        Ok(Description {
            version: self.version(operation, &found.key.kid)?,
            kind: found.key.kty,
            operations: found.key.key_ops,
            enabled: found.attributes.enabled.unwrap_or(true),
            not_before: at(found.attributes.nbf),
            expires: at(found.attributes.exp),
        })
    }
}

fn client(place: &Place, keeper: &Keeper, transport: &Arc<Transport>) -> Result<KeyClient, Error> {
    let client_options = ClientOptions {
        retry: RetryOptions::none(),
        transport: Some(SdkTransport::new(transport.clone())),
        ..ClientOptions::default()
    };
    let options = KeyClientOptions { client_options, ..KeyClientOptions::default() };
    KeyClient::new(&place.url(), Arc::new(keeper.clone()), Some(options)).map_err(|_| {
        Error::new(ErrorKind::InvalidOption, "vault: the Azure SDK refuses its address")
    })
}

/// The body of an answer, which is wiped.
struct Wiped(Bytes);

impl Drop for Wiped {
    fn drop(&mut self) {
        if let Ok(mut bytes) = std::mem::take(&mut self.0).try_into_mut() {
            bytes.zeroize();
        }
    }
}

fn parts<T, F>(answer: Response<T, F>) -> Wiped {
    report(answer.headers());
    Wiped(answer.into_body().into())
}

const NOT_UNDERSTOOD: &str = "the answer cannot be understood";

fn read(operation: Operation, body: &Wiped) -> Result<Answer<'_>, Failure> {
    serde_json::from_slice(&body.0).map_err(|_| Failure::not_understood(operation, NOT_UNDERSTOOD))
}

fn value(operation: Operation, text: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    BASE64URL_NOPAD
        .decode(text.trim_end_matches('=').as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| Failure::not_understood(operation, NOT_UNDERSTOOD))
}

fn part<const N: usize>(text: Option<&str>) -> Option<[u8; N]> {
    BASE64URL_NOPAD.decode(text?.trim_end_matches('=').as_bytes()).ok()?.try_into().ok()
}

/// A request's body, in a buffer that is wiped when the connection is done with it. Everything in
/// it is base64, so nothing needs an escape.
fn body(algorithm: &str, value: &[u8], parts: &[(&str, &[u8])]) -> Bytes {
    let encoded = |bytes: &[u8]| BASE64URL_NOPAD.encode_len(bytes.len());
    let len = 64 + encoded(value) + parts.iter().map(|(_, part)| 16 + encoded(part)).sum::<usize>();
    let mut text = Zeroizing::new(String::with_capacity(len));
    text.push_str("{\"alg\":\"");
    text.push_str(algorithm);
    text.push_str("\",\"value\":\"");
    BASE64URL_NOPAD.encode_append(value, &mut text);
    for (name, part) in parts {
        text.push_str("\",\"");
        text.push_str(name);
        text.push_str("\":\"");
        BASE64URL_NOPAD.encode_append(part, &mut text);
    }
    text.push_str("\"}");
    Bytes::from_owner(Zeroizing::new(std::mem::take(&mut *text).into_bytes()))
}

/// Returns why a key does not do what is requested; `None` if it does. An expired version unwraps,
/// and so does one that is not valid yet ("Date-time controlled operations").
pub(crate) fn obstacle(found: &Description, operation: &str) -> Option<String> {
    if !found.enabled {
        return Some("is disabled".to_owned());
    }
    if !found.operations.iter().any(|permitted| permitted == operation) {
        return Some(format!("does not permit {operation}"));
    }
    if matches!(operation, "decrypt" | "unwrapKey") {
        return None;
    }
    let now = SystemTime::now();
    if found.not_before.is_some_and(|from| now < from) {
        return Some("is not valid yet, so it does not wrap".to_owned());
    }
    if found.expires.is_some_and(|until| now >= until) {
        return Some("has expired, so it does not wrap".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_json_and_was_never_moved() {
        let value = [0xfb; 512];
        let bytes =
            body("A256GCM", &value, &[("aad", &[1; 32]), ("iv", &[2; 12]), ("tag", &[3; 16])]);
        let read: KeyOperationParameters = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(read.value.as_deref(), Some(&value[..]));
        assert_eq!(read.iv.as_deref(), Some(&[2; 12][..]));
        assert_eq!(read.authentication_tag.as_deref(), Some(&[3; 16][..]));
        assert_eq!(read.additional_authenticated_data.as_deref(), Some(&[1; 32][..]));
    }
}
