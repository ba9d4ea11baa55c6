//! The requests, and the parts of answers that are read. vaultrs's own types are used if they exist
//! and hold no secret. The others (batches, associated data) are defined here, as are types that
//! would leave copies of a DEK or a credential.
//!
//! The only file that names vaultrs.
#![forbid(unsafe_code)]

use rustify::endpoint::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use rustify::errors::ClientError;
use serde::{Deserialize, Serialize};
use vaultrs::api::sys::requests::ReadHealthRequest;
use vaultrs::api::token::requests::LookupTokenSelfRequest;
use vaultrs::api::transit::requests::{DataKeyType, GenerateDataKeyRequest, ReadKeyRequest};
use zeroize::Zeroizing;

/// Whether a name means the same in a path, in a URL and in a KEK id.
pub(crate) fn is_segment(name: &str) -> bool {
    name.len() <= 128 && is_key(name)
}

/// Whether the Transit engine may accept it as a key's name. It refuses a few of these itself.
pub(crate) fn is_key(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && name.bytes().any(|byte| byte != b'.')
}

/// Whether the server accepts it as the path of a mount or a namespace: segments of visible
/// characters and blanks.
pub(crate) fn is_path(path: &str) -> bool {
    let is_segment = |name: &str| !matches!(name, "" | "." | "..") && name.chars().all(is_shown);
    path.len() <= 512 && path.split('/').all(is_segment)
}

fn is_shown(c: char) -> bool {
    // Marks join the character before them, so there must be one.
    let escaped = |text: String| text.escape_debug().count() > 2;
    matches!(c, ' ' | '\'' | '"' | '\\') || (!c.is_whitespace() && !escaped(format!("a{c}")))
}

/// Text that is wiped on drop.
pub(crate) struct SecretText(pub(crate) Zeroizing<String>);

impl SecretText {
    pub(crate) fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

// --- requests

/// A POST with a JSON body that is written once, into a buffer of its size.
pub(crate) struct Post<B> {
    path: String,
    body: B,
}

impl<B: Serialize + Send + Sync> Endpoint for Post<B> {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.clone()
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::POST
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        let failed =
            |error: serde_json::Error| ClientError::DataParseError { source: error.into() };
        // Measured first: a buffer that grows leaves its content in the blocks that it outgrew.
        let mut len = Length(0);
        serde_json::to_writer(&mut len, &self.body).map_err(failed)?;
        let mut bytes = Vec::with_capacity(len.0);
        serde_json::to_writer(&mut bytes, &self.body).map_err(failed)?;
        Ok(Some(bytes))
    }
}

struct Length(usize);

impl std::io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One DEK of a Transit request: exactly one of `plaintext` and `ciphertext`, and at most one of
/// `context` and `associated_data`, in base64.
#[derive(Serialize)]
pub(crate) struct Item<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) plaintext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ciphertext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) context: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) associated_data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct Batch<'a> {
    batch_input: Vec<Item<'a>>,
}

/// Returns the request `encrypt`, `decrypt` or `rewrap` of one item.
pub(crate) fn one<'a>(mount: &str, verb: &str, key: &str, item: Item<'a>) -> Post<Item<'a>> {
    Post { path: format!("{mount}/{verb}/{key}"), body: item }
}

/// Returns the request `encrypt`, `decrypt` or `rewrap` of several items.
pub(crate) fn many<'a>(
    mount: &str,
    verb: &str,
    key: &str,
    items: Vec<Item<'a>>,
) -> Post<Batch<'a>> {
    Post { path: format!("{mount}/{verb}/{key}"), body: Batch { batch_input: items } }
}

pub(crate) fn data_key(mount: &str, key: &str, context: Option<String>) -> GenerateDataKeyRequest {
    GenerateDataKeyRequest {
        mount: mount.to_owned(),
        name: key.to_owned(),
        key_type: DataKeyType::Plaintext,
        context,
        nonce: None,
        bits: Some(256),
    }
}

pub(crate) fn read_key(mount: &str, key: &str) -> ReadKeyRequest {
    ReadKeyRequest { mount: mount.to_owned(), name: key.to_owned() }
}

pub(crate) fn health() -> ReadHealthRequest {
    ReadHealthRequest::default()
}

pub(crate) fn lookup_self() -> LookupTokenSelfRequest {
    LookupTokenSelfRequest {}
}

#[derive(Serialize)]
pub(crate) struct Nothing {}

/// vaultrs's type has a tab in its path.
pub(crate) fn renew_self() -> Post<Nothing> {
    Post { path: "auth/token/renew-self".to_owned(), body: Nothing {} }
}

pub(crate) fn revoke_self() -> Post<Nothing> {
    Post { path: "auth/token/revoke-self".to_owned(), body: Nothing {} }
}

#[derive(Serialize)]
pub(crate) struct WrappingToken<'a> {
    token: &'a str,
}

/// Returns the request for what a wrapping token was made for. It does not use the token up.
pub(crate) fn wrapping_lookup(token: &str) -> Post<WrappingToken<'_>> {
    Post { path: "sys/wrapping/lookup".to_owned(), body: WrappingToken { token } }
}

/// Returns the request for the wrapped content, which works once. The wrapping token is the
/// request's token.
pub(crate) fn wrapping_unwrap() -> Post<Nothing> {
    Post { path: "sys/wrapping/unwrap".to_owned(), body: Nothing {} }
}

#[derive(Serialize)]
pub(crate) struct AppRoleLogin<'a> {
    pub(crate) role_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret_id: Option<&'a str>,
}

pub(crate) fn app_role_login<'a>(mount: &str, login: AppRoleLogin<'a>) -> Post<AppRoleLogin<'a>> {
    Post { path: format!("auth/{mount}/login"), body: login }
}

#[derive(Serialize)]
pub(crate) struct KubernetesLogin<'a> {
    pub(crate) role: &'a str,
    pub(crate) jwt: &'a str,
}

pub(crate) fn kubernetes_login<'a>(
    mount: &str,
    login: KubernetesLogin<'a>,
) -> Post<KubernetesLogin<'a>> {
    Post { path: format!("auth/{mount}/login"), body: login }
}

#[derive(Serialize)]
pub(crate) struct JwtLogin<'a> {
    /// The role, or the method's default role if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'a str>,
    pub(crate) jwt: &'a str,
}

pub(crate) fn jwt_login<'a>(mount: &str, login: JwtLogin<'a>) -> Post<JwtLogin<'a>> {
    Post { path: format!("auth/{mount}/login"), body: login }
}

/// A signed but unsent request to AWS STS. The server sends it, and so learns who signed it.
/// Everything is in base64.
#[derive(Serialize)]
pub(crate) struct AwsLogin<'a> {
    pub(crate) role: &'a str,
    pub(crate) iam_http_request_method: &'static str,
    pub(crate) iam_request_url: String,
    pub(crate) iam_request_body: String,
    /// JSON: every header with a list of its values.
    pub(crate) iam_request_headers: SecretText,
}

pub(crate) fn aws_login<'a>(mount: &str, login: AwsLogin<'a>) -> Post<AwsLogin<'a>> {
    Post { path: format!("auth/{mount}/login"), body: login }
}

#[derive(Serialize)]
pub(crate) struct CertificateLogin<'a> {
    /// The role, or any role that matches the certificate if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<&'a str>,
}

/// vaultrs's type sends the role under a name that the server does not know, so that every role
/// would match.
pub(crate) fn certificate_login<'a>(
    mount: &str,
    login: CertificateLogin<'a>,
) -> Post<CertificateLogin<'a>> {
    Post { path: format!("auth/{mount}/login"), body: login }
}

// --- answers

/// The frame of every answer, including errors.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(crate) struct Answer<T> {
    #[serde(default = "none")]
    pub(crate) data: Option<T>,
    pub(crate) auth: Option<Auth>,
    #[serde(default)]
    pub(crate) errors: Option<Vec<String>>,
    /// The server's own id of the request, as in its audit log.
    #[serde(default)]
    pub(crate) request_id: Option<String>,
}

fn none<T>() -> Option<T> {
    None
}

/// The result of a login or a renewal.
#[derive(Deserialize)]
pub(crate) struct Auth {
    pub(crate) client_token: SecretText,
    /// In seconds; 0 means unlimited.
    pub(crate) lease_duration: u64,
    pub(crate) renewable: bool,
    /// `service` or `batch`; a batch token cannot be revoked.
    #[serde(default)]
    pub(crate) token_type: String,
}

#[derive(Deserialize)]
pub(crate) struct Unwrapped {
    pub(crate) secret_id: SecretText,
}

#[derive(Deserialize)]
pub(crate) struct WrappingState {
    pub(crate) creation_path: String,
}

#[derive(Deserialize)]
pub(crate) struct Wrapped {
    pub(crate) ciphertext: Option<String>,
    pub(crate) plaintext: Option<SecretText>,
    pub(crate) error: Option<String>,
    pub(crate) reference: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct WrappedBatch {
    pub(crate) batch_results: Vec<Wrapped>,
}

#[derive(Deserialize)]
pub(crate) struct TokenState {
    /// In seconds; 0 means unlimited.
    pub(crate) ttl: u64,
    #[serde(default)]
    pub(crate) renewable: bool,
}

#[derive(Deserialize)]
pub(crate) struct ServerHealth {
    pub(crate) initialized: bool,
    pub(crate) sealed: bool,
    #[serde(default)]
    pub(crate) replication_dr_mode: String,
}

#[derive(Deserialize)]
pub(crate) struct KeyConfiguration {
    #[serde(rename = "type")]
    pub(crate) key_type: String,
    #[serde(default)]
    pub(crate) derived: bool,
    #[serde(default)]
    pub(crate) convergent_encryption: bool,
    pub(crate) latest_version: u32,
    #[serde(default)]
    pub(crate) min_decryption_version: u32,
    #[serde(default)]
    pub(crate) soft_deleted: bool,
}
