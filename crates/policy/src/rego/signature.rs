//! Verifies the signature of a bundle: a JWT over the hashes of all its files, in
//! `.signatures.json`.
//!
//! The format is OPA's: <https://www.openpolicyagent.org/docs/latest/management-bundles/#signing>.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    VerificationAlgorithm,
};
use base64ct::{Base64UrlUnpadded, Encoding};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use sha2::{Digest, Sha256, Sha384, Sha512};
use waxseal::Error;

use super::files::{FileIn, SIGNATURES, bad};

/// The minimum of RFC 7518, section 3.2, for HS256.
const SHORTEST_SECRET: usize = 32;

/// A key that verifies the signatures of bundles.
///
/// ```no_run
/// use waxseal_policy::{BundleKey, RegoPolicy, RegoSources};
///
/// let key = BundleKey::es256(&std::fs::read_to_string("/etc/orders/bundles.pem")?)?;
/// let sources = RegoSources::new().signed_bundle("/var/lib/orders/bundle.tar.gz", [key]);
/// let policy = RegoPolicy::builder(sources).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct BundleKey {
    algorithm: &'static str,
    key: Key,
    id: Option<String>,
    scope: Option<String>,
}

#[derive(Clone)]
enum Key {
    Public(ParsedPublicKey),
    Secret(Arc<hmac::Key>),
}

impl BundleKey {
    /// Uses RSA with PKCS #1 v1.5 padding and SHA-256: a public key of 2,048 to 8,192 bits, as PEM
    /// (`BEGIN PUBLIC KEY`).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](waxseal::ErrorKind::InvalidOption) if it is not such a key.
    pub fn rs256(public_key_pem: &str) -> Result<Self, Error> {
        Self::public("RS256", public_key_pem, &RSA_PKCS1_2048_8192_SHA256)
    }

    /// Uses RSA-PSS and SHA-256. The key has the form of [`rs256`](Self::rs256).
    ///
    /// # Errors
    /// Those of [`rs256`](Self::rs256).
    pub fn ps256(public_key_pem: &str) -> Result<Self, Error> {
        Self::public("PS256", public_key_pem, &RSA_PSS_2048_8192_SHA256)
    }

    /// Uses ECDSA with P-256 and SHA-256: a public key as PEM (`BEGIN PUBLIC KEY`).
    ///
    /// # Errors
    /// Those of [`rs256`](Self::rs256).
    pub fn es256(public_key_pem: &str) -> Result<Self, Error> {
        Self::public("ES256", public_key_pem, &ECDSA_P256_SHA256_FIXED)
    }

    /// Uses HMAC with SHA-256: a secret of 32 bytes or more. Anyone who can verify with it can
    /// sign.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](waxseal::ErrorKind::InvalidOption) for a shorter one.
    pub fn hs256(secret: &[u8]) -> Result<Self, Error> {
        if secret.len() < SHORTEST_SECRET {
            let what = format!("HS256 needs a secret of {SHORTEST_SECRET} bytes or more");
            return Err(bad("bundle key", &what));
        }
        Ok(Self::new("HS256", Key::Secret(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret)))))
    }

    fn public(
        algorithm: &'static str,
        pem: &str,
        verifies: &'static dyn VerificationAlgorithm,
    ) -> Result<Self, Error> {
        let no_key =
            || bad("bundle key", &format!("it is not a public key in PEM for {algorithm}"));
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| no_key())?;
        let key = ParsedPublicKey::new(verifies, &*der).map_err(|_| no_key())?;
        Ok(Self::new(algorithm, Key::Public(key)))
    }

    fn new(algorithm: &'static str, key: Key) -> Self {
        Self { algorithm, key, id: None, scope: None }
    }

    /// Sets its id. If a signature names a key, the key with that id verifies it. A single key
    /// without an id verifies whatever the signature names.
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the scope that a signature must have. By default it must have none.
    pub fn with_scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            Key::Public(key) => key.verify_sig(message, signature).is_ok(),
            Key::Secret(key) => hmac::verify(key, message, signature).is_ok(),
        }
    }
}

/// Omits the key.
impl fmt::Debug for BundleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BundleKey")
            .field("algorithm", &self.algorithm)
            .field("id", &self.id)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Signatures {
    signatures: Vec<String>,
    /// A custom verifier, in OPA.
    plugin: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    files: Vec<FileHash>,
    scope: Option<String>,
    /// The older place of the header's `kid`.
    keyid: Option<String>,
}

#[derive(Deserialize)]
struct FileHash {
    name: String,
    hash: String,
    algorithm: String,
}

/// Checks that one of the keys signed a bundle, and that the signature covers exactly its files,
/// unchanged.
pub(super) fn verify(name: &str, files: &[FileIn], keys: &[BundleKey]) -> Result<(), Error> {
    let wrong = |what: &str| bad(name, &format!("{SIGNATURES}: {what}"));
    let Some(signatures) = files.iter().find(|file| file.path == SIGNATURES) else {
        return Err(bad(name, "is not signed"));
    };
    let signatures: Signatures = serde_json::from_slice(&signatures.bytes)
        .map_err(|error| wrong("is not a list of signatures").with_source(error))?;
    if signatures.plugin.is_some() {
        return Err(wrong("asks for a verifier that is not there"));
    }
    let [token] = &*signatures.signatures else {
        return Err(wrong("has another number of signatures than one"));
    };
    let claims = verified(token, keys).map_err(|what| wrong(&what))?;
    let mut expected = BTreeMap::new();
    for file in &claims.files {
        // OPA writes both `/data.json` and `data.json`.
        if expected.insert(file.name.trim_start_matches('/'), file).is_some() {
            return Err(wrong(&format!("has {:?} twice", file.name)));
        }
    }
    for file in files.iter().filter(|file| file.path != SIGNATURES) {
        let signed = expected.remove(&*file.path);
        let signed = signed.ok_or_else(|| wrong(&format!("does not cover {:?}", file.path)))?;
        let hash = hash(&signed.algorithm, file).map_err(|what| wrong(&what))?;
        if !hash.eq_ignore_ascii_case(&signed.hash) {
            return Err(wrong(&format!("is about another {:?}", file.path)));
        }
    }
    match expected.keys().next() {
        Some(missing) => Err(wrong(&format!("covers {missing:?}, which is not there"))),
        None => Ok(()),
    }
}

/// Returns the claims of a token that one of the keys signed. Nothing else in the token is trusted
/// before that.
fn verified(token: &str, keys: &[BundleKey]) -> Result<Claims, String> {
    let no_token = || "has no JWT".to_owned();
    let (signed, signature) = token.rsplit_once('.').ok_or_else(no_token)?;
    let (header, claims) = signed.split_once('.').ok_or_else(no_token)?;
    let decoded = |text: &str| Base64UrlUnpadded::decode_vec(text).map_err(|_| no_token());
    let (header, claims, signature) = (decoded(header)?, decoded(claims)?, decoded(signature)?);
    let header: Header = serde_json::from_slice(&header).map_err(|_| no_token())?;
    let claims: Claims = serde_json::from_slice(&claims).map_err(|_| no_token())?;
    if header.crit.is_some() {
        return Err("has a JWT with extensions that are not known".to_owned());
    }
    let id = header.kid.as_ref().or(claims.keyid.as_ref()).filter(|id| !id.is_empty());
    let key = match (keys, id) {
        ([only], _) if only.id.is_none() => only,
        ([only], None) => only,
        (_, None) => return Err("does not say which key signed".to_owned()),
        (_, Some(id)) => keys
            .iter()
            .find(|key| key.id.as_ref() == Some(id))
            .ok_or_else(|| format!("is signed by a key {id:?} that is not known"))?,
    };
    // The key decides, never the token.
    if header.alg != key.algorithm {
        return Err(format!(
            "has the algorithm {:?}, and the key is for {}",
            header.alg, key.algorithm
        ));
    }
    if !key.verifies(signed.as_bytes(), &signature) {
        return Err("has a signature that is not of this key".to_owned());
    }
    if claims.scope.as_deref().unwrap_or_default() != key.scope.as_deref().unwrap_or_default() {
        return Err("has another scope than the key is for".to_owned());
    }
    Ok(claims)
}

fn hash(algorithm: &str, file: &FileIn) -> Result<String, String> {
    let canonical;
    let bytes = match is_structured(&file.path) {
        true => {
            canonical = canonical_json(&file.bytes)
                .ok_or_else(|| format!("cannot be about {:?}, which is not JSON", file.path))?;
            canonical.as_bytes()
        }
        false => &*file.bytes,
    };
    let hex = |digest: &[u8]| digest.iter().map(|byte| format!("{byte:02x}")).collect();
    match algorithm {
        "SHA-256" => Ok(hex(&Sha256::digest(bytes))),
        "SHA-384" => Ok(hex(&Sha384::digest(bytes))),
        "SHA-512" => Ok(hex(&Sha512::digest(bytes))),
        other => Err(format!("hashes with {other:?}: SHA-256, SHA-384 and SHA-512 are accepted")),
    }
}

/// Whether OPA hashes the content of such a file instead of its bytes.
fn is_structured(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    [".manifest", "data.json", SIGNATURES].contains(&name)
}

/// Returns JSON without white space, with the names of each object in order. Numbers keep their
/// form. `None` for text that is not JSON or is nested too deeply.
fn canonical_json(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    serde_json::from_str::<serde_json::Value>(text).ok()?;
    Rest(text).value()
}

/// The rest of a text that is known to be JSON.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    fn value(&mut self) -> Option<String> {
        match self.peek()? {
            '{' => {
                let mut parts = BTreeMap::new();
                while self.item('{', '}')? {
                    let name = self.text()?;
                    self.take(':')?;
                    // If a name occurs twice, the last one counts.
                    parts.insert(name, self.value()?);
                }
                let part =
                    |(name, value): (&String, &String)| Some(format!("{}:{value}", written(name)?));
                Some(format!(
                    "{{{}}}",
                    parts.iter().map(part).collect::<Option<Vec<_>>>()?.join(",")
                ))
            }
            '[' => {
                let mut parts = Vec::new();
                while self.item('[', ']')? {
                    parts.push(self.value()?);
                }
                Some(format!("[{}]", parts.join(",")))
            }
            '"' => written(&self.text()?),
            _ => {
                let end = self.0.find([',', ']', '}', ' ', '\t', '\r', '\n']);
                Some(self.split(end.unwrap_or(self.0.len())).to_owned())
            }
        }
    }

    /// Takes what precedes an item. Returns whether there is one.
    fn item(&mut self, open: char, close: char) -> Option<bool> {
        match self.peek()? {
            c if c == open || c == ',' => {
                self.take(c)?;
                // An empty list.
                if self.peek()? == close { self.take(close).map(|()| false) } else { Some(true) }
            }
            _ => self.take(close).map(|()| false),
        }
    }

    fn peek(&mut self) -> Option<char> {
        self.0 = self.0.trim_start();
        self.0.chars().next()
    }

    fn take(&mut self, c: char) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(c)?;
        Some(())
    }

    fn text(&mut self) -> Option<String> {
        self.peek()?;
        let mut is_escaped = false;
        let ends = |(_, c): &(usize, char)| {
            let is_end = *c == '"' && !is_escaped;
            is_escaped = *c == '\\' && !is_escaped;
            is_end
        };
        let (end, _) = self.0.char_indices().skip(1).find(ends)?;
        serde_json::from_str(self.split(end + 1)).ok()
    }

    fn split(&mut self, at: usize) -> &'a str {
        let (before, rest) = self.0.split_at(at);
        self.0 = rest;
        before
    }
}

/// Writes a text like Go's `encoding/json`, which also escapes the two Unicode line separators.
fn written(text: &str) -> Option<String> {
    let json = serde_json::to_string(text).ok()?;
    Some(json.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_hashed_as_opa_writes_it() {
        for (json, canonical) in [
            (r#" { "b" : 1.0, "a": [ 1e3 , -0, "x" ] } "#, r#"{"a":[1e3,-0,"x"],"b":1.0}"#),
            (r#"{"b":{"d":null,"c":true},"a":{}}"#, r#"{"a":{},"b":{"c":true,"d":null}}"#),
            (r#"["<&>\u0041\/\u00e9\u2028\t\u007f"]"#, "[\"<&>A/\u{e9}\\u2028\\t\u{7f}\"]"),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            ("12345678901234567890123", "12345678901234567890123"),
            ("[ ] ", "[]"),
            ("{\n}", "{}"),
            (
                r#"{"a" :[{"b\"}":"\\"},[[]],{}] ,"c":"]"}"#,
                r#"{"a":[{"b\"}":"\\"},[[]],{}],"c":"]"}"#,
            ),
        ] {
            assert_eq!(canonical_json(json.as_bytes()).unwrap(), canonical, "{json}");
        }
        for bad in ["", "{", "{\"a\":}", "[1,]", "nul", "\"\\ud800\"", "1 2"] {
            assert!(canonical_json(bad.as_bytes()).is_none(), "{bad}");
        }
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(canonical_json(deep.as_bytes()).is_none());
    }
}
