//! Login by certificate: the assertion signed with the private key ("Microsoft identity platform
//! application authentication certificate credentials").
//!
//! The SDK's own certificate credential needs OpenSSL.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{RSA_PSS_SHA256, RsaKeyPair};
use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::ClientMethodOptions;
use azure_identity::ClientAssertion;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

/// How long an assertion is valid, in seconds.
const LIFE: u64 = 600;

pub(crate) struct CertificateAssertion {
    key: RsaKeyPair,
    thumbprint: String,
    client_id: String,
    audience: String,
}

impl CertificateAssertion {
    /// Reads a file with the certificate and its key.
    pub(crate) fn read(
        pem: &[u8],
        client_id: &str,
        audience: String,
    ) -> Result<Self, &'static str> {
        let certificate =
            CertificateDer::from_pem_slice(pem).map_err(|_| "it holds no certificate in PEM")?;
        let key = PrivateKeyDer::from_pem_slice(pem)
            .map_err(|_| "it holds no private key in PEM that is not encrypted")?;
        let key = match &key {
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            _ => return Err("its private key is not of RSA"),
        };
        let key = key.map_err(|_| "its private key is not of RSA, or too short")?;
        let thumbprint = BASE64URL_NOPAD.encode(digest(&SHA256, &certificate).as_ref());
        Ok(Self { key, thumbprint, client_id: client_id.to_owned(), audience })
    }

    fn sign(&self, now: u64) -> Option<String> {
        let random = SystemRandom::new();
        let mut id = [0; 16];
        random.fill(&mut id).ok()?;
        let header = json!({ "alg": "PS256", "typ": "JWT", "x5t#S256": self.thumbprint });
        let claims = json!({
            "aud": self.audience,
            "iss": self.client_id,
            "sub": self.client_id,
            "jti": HEXLOWER.encode(&id),
            "nbf": now,
            "iat": now,
            "exp": now + LIFE,
        });
        let part = |value: &serde_json::Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let text = format!("{}.{}", part(&header), part(&claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(&RSA_PSS_SHA256, &random, text.as_bytes(), &mut signature).ok()?;
        Some(format!("{text}.{}", BASE64URL_NOPAD.encode(&signature)))
    }
}

#[async_trait::async_trait]
impl ClientAssertion for CertificateAssertion {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.sign(now).ok_or_else(|| {
            azure_core::Error::with_message(SdkErrorKind::Other, "the assertion cannot be signed")
        })
    }
}

impl fmt::Debug for CertificateAssertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAssertion")
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}
