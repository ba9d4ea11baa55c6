//! Recognises a connection that failed because of a certificate.

#![forbid(unsafe_code)]

/// The texts of TLS errors that blame the server's or the client's certificate. HTTP clients hide
/// the error's type.
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
    // A signature that does not verify, such as the issuer's.
    "alert: DecryptError",
];

/// Returns whether `text`, one error of a failed connection, blames a certificate, so that an
/// operator has to act.
#[must_use]
pub fn blamed_in(text: &str) -> bool {
    AT_FAULT.iter().any(|words| text.contains(words))
}
