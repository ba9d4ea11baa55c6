//! Signature Version 4, made and checked. Source: "Create a signed AWS API request", AWS Identity
//! and Access Management User Guide; for external key stores the same, in Appendix A of the XKS
//! Proxy API specification.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// How far the clocks of the two sides may be apart.
pub const MOST_SKEW: Duration = Duration::from_secs(300);

/// Why a signature is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No signature of this kind.
    Missing,
    /// A part of the header is missing, or it is for another service.
    Incomplete,
    Mismatch,
    /// Made more than [`MOST_SKEW`] from now.
    Skewed,
}

/// What the `Authorization` header says.
pub struct Claim {
    pub access_key: String,
    pub region: String,
    service: &'static str,
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

    fn signature(&self, secret: &str, scope: &[&str; 4], signed_headers: &str) -> Option<String> {
        let mut canonical = format!("{}\n{}\n\n", self.method, self.path);
        for name in signed_headers.split(';') {
            canonical += &format!("{name}:{}\n", self.header(name)?.trim());
        }
        canonical +=
            &format!("\n{signed_headers}\n{}", HEXLOWER.encode(&Sha256::digest(self.body)));
        let canonical = HEXLOWER.encode(&Sha256::digest(canonical.as_bytes()));
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{}\n{}\n{canonical}",
            self.header("x-amz-date")?,
            scope.join("/")
        );
        let key =
            scope.iter().fold(format!("AWS4{secret}").into_bytes(), |key, part| mac(&key, part));
        Some(HEXLOWER.encode(&mac(&key, &to_sign)))
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

impl Claim {
    pub fn read(request: &Request<'_>, service: &'static str) -> Result<Self, Refusal> {
        let header = request.header("authorization").ok_or(Refusal::Missing)?;
        let rest = header.strip_prefix("AWS4-HMAC-SHA256 ").ok_or(Refusal::Missing)?;
        let part = |name: &str| {
            let mut parts = rest.split(',').map(str::trim);
            parts
                .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
                .ok_or(Refusal::Incomplete)
        };
        let credential: Vec<&str> = part("Credential")?.split('/').collect();
        let [access_key, date, region, named, "aws4_request"] = credential[..] else {
            return Err(Refusal::Incomplete);
        };
        if named != service {
            return Err(Refusal::Incomplete);
        }
        Ok(Self {
            access_key: access_key.to_owned(),
            region: region.to_owned(),
            service,
            date: date.to_owned(),
            signed_headers: part("SignedHeaders")?.to_owned(),
            signature: part("Signature")?.to_owned(),
        })
    }

    /// `needed` are the headers that have to be signed in addition to `host` and `x-amz-date`: what
    /// a forger could change.
    pub fn check(
        &self,
        request: &Request<'_>,
        secret: &str,
        needed: &[&str],
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let is_signed = |wanted: &&str| self.signed_headers.split(';').any(|name| name == *wanted);
        let all_signed = ["host", "x-amz-date"].iter().chain(needed).all(is_signed);
        let scope = [self.date.as_str(), &self.region, self.service, "aws4_request"];
        let right = request.signature(secret, &scope, &self.signed_headers);
        let time = request.header("x-amz-date").unwrap_or_default();
        if !all_signed || right.as_deref() != Some(&self.signature) || !time.starts_with(&self.date)
        {
            return Err(Refusal::Mismatch);
        }
        let signed_at = time_of(time).ok_or(Refusal::Mismatch)?;
        let apart = now.duration_since(signed_at).unwrap_or_else(|later| later.duration());
        if apart > MOST_SKEW { Err(Refusal::Skewed) } else { Ok(()) }
    }
}

/// The `x-amz-date` and `authorization` headers for a request whose headers are all signed.
pub fn sign(
    request: &Request<'_>,
    access_key: &str,
    secret: &str,
    region: &str,
    service: &str,
    now: SystemTime,
) -> [(String, String); 2] {
    let time = ("x-amz-date".to_owned(), timestamp(now));
    let mut headers = request.headers.to_vec();
    headers.push(time.clone());
    headers.sort();
    let names = headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
    let scope = [&time.1[..8], region, service, "aws4_request"];
    let dated = Request {
        method: request.method,
        path: request.path,
        headers: &headers,
        body: request.body,
    };
    let signature = dated.signature(secret, &scope, &names).unwrap();
    let value = format!(
        "AWS4-HMAC-SHA256 Credential={access_key}/{}, SignedHeaders={names}, Signature={signature}",
        scope.join("/")
    );
    [time, ("authorization".to_owned(), value)]
}

const FORM: &[BorrowedFormatItem<'static>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");

pub fn timestamp(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(FORM).unwrap()
}

fn time_of(timestamp: &str) -> Option<SystemTime> {
    PrimitiveDateTime::parse(timestamp, FORM).ok().map(|time| time.assume_utc().into())
}
