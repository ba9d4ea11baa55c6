//! Signature Version 4, checked. Source: "Create a signed AWS API request", AWS Identity and Access Management User Guide.

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::KmsError;

/// What the `Authorization` header says.
pub struct Claim {
    pub access_key: String,
    pub region: String,
    date: String,
    signed_headers: String,
    signature: String,
}

pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub headers: &'a [(String, String)],
    pub body: &'a [u8],
}

impl Request<'_> {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

impl Claim {
    pub fn read(request: &Request<'_>) -> Result<Self, KmsError> {
        let missing = || KmsError::new(400, "MissingAuthenticationTokenException", "Missing Authentication Token");
        let incomplete = || KmsError::new(400, "IncompleteSignatureException", "Authorization header is not complete");
        let header = request.header("authorization").ok_or_else(missing)?;
        let rest = header.strip_prefix("AWS4-HMAC-SHA256 ").ok_or_else(missing)?;
        let part = |name: &str| {
            rest.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).ok_or_else(incomplete)
        };
        let credential: Vec<&str> = part("Credential")?.split('/').collect();
        let [access_key, date, region, "kms", "aws4_request"] = credential[..] else { return Err(incomplete()) };
        Ok(Self {
            access_key: access_key.to_owned(),
            region: region.to_owned(),
            date: date.to_owned(),
            signed_headers: part("SignedHeaders")?.to_owned(),
            signature: part("Signature")?.to_owned(),
        })
    }

    pub fn check(&self, request: &Request<'_>, secret: &str) -> Result<(), KmsError> {
        let refused =
            || KmsError::new(400, "InvalidSignatureException", "The request signature we calculated does not match");
        // What a forger could change has to be among what is signed.
        for needed in ["host", "x-amz-date", "x-amz-target"] {
            if !self.signed_headers.split(';').any(|name| name == needed) {
                return Err(refused());
            }
        }
        let mut canonical = format!("{}\n{}\n\n", request.method, request.path);
        for name in self.signed_headers.split(';') {
            let value = request.header(name).ok_or_else(refused)?;
            canonical += &format!("{name}:{}\n", value.trim());
        }
        canonical += &format!("\n{}\n{}", self.signed_headers, HEXLOWER.encode(&Sha256::digest(request.body)));
        let time = request.header("x-amz-date").ok_or_else(refused)?;
        let scope = format!("{}/{}/kms/aws4_request", self.date, self.region);
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", HEXLOWER.encode(&Sha256::digest(canonical.as_bytes())));
        let mut key = mac(format!("AWS4{secret}").as_bytes(), &self.date);
        for part in [self.region.as_str(), "kms", "aws4_request"] {
            key = mac(&key, part);
        }
        let right = HEXLOWER.encode(&mac(&key, &to_sign));
        if !time.starts_with(&self.date) || right != self.signature { Err(refused()) } else { Ok(()) }
    }
}
