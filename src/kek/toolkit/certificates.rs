//! How a provider knows that a certificate stands between it and its key service.

#![forbid(unsafe_code)]

/// What TLS says where a certificate is at fault, the server's or the client's own. No type tells it through an HTTP client.
const AT_FAULT: &[&str] = &[
    "invalid peer certificate",
    "alert: BadCertificate",
    "alert: UnsupportedCertificate",
    "alert: CertificateRevoked",
    "alert: CertificateExpired",
    "alert: CertificateUnknown",
    "alert: CertificateRequired",
    "alert: UnknownCA",
    "alert: AccessDenied",
    // A signature that does not verify: the issuer's, say.
    "alert: DecryptError",
];

/// Whether `text`, one error of a failed connection, blames a certificate: an operator has to act.
#[must_use]
pub fn blamed_in(text: &str) -> bool {
    AT_FAULT.iter().any(|words| text.contains(words))
}
