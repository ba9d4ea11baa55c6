//! Certificates made at start: an authority of the test's own, and the right and wrong certificates
//! that a server may show.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// What a server shows to a client that connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Certificate {
    /// For `localhost`, from the authority of [`Authority::pem`].
    Right,
    /// From the same authority, for a name that is not the server's.
    OtherName,
    /// For `localhost`, from an authority that no client knows.
    OtherAuthority,
    /// For `localhost`, from the right authority, until yesterday.
    Expired,
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = parameters(&[], 0);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "waxseal test authority");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for these names, and its key.
    pub fn issue_for(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let mut params = parameters(names, 0);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }

    /// A certificate and its key.
    pub fn issue(&self, shown: Certificate) -> (rcgen::Certificate, KeyPair) {
        let (name, days_ago) = match shown {
            Certificate::Right | Certificate::OtherAuthority => ("localhost", 0),
            Certificate::OtherName => ("elsewhere.example", 0),
            Certificate::Expired => ("localhost", 2),
        };
        let mut params = parameters(&[name], days_ago);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = match shown {
            Certificate::OtherAuthority => params.signed_by(&key, &Self::new().issuer),
            _ => params.signed_by(&key, &self.issuer),
        };
        (certificate.unwrap(), key)
    }
}

/// Valid for two days, the one that was this many days ago and the one after it.
fn parameters(names: &[&str], days_ago: i64) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    let from = OffsetDateTime::now_utc() - Duration::days(days_ago + 1);
    params.distinguished_name = rcgen::DistinguishedName::new();
    (params.not_before, params.not_after) = (from, from + Duration::days(2) - Duration::seconds(1));
    params
}
