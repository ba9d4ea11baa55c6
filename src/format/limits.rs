//! The limits of a writing DEK (docs/format.md, "Limits").
#![forbid(unsafe_code)]

use crate::suite::Suite;

/// The most plaintext bytes of one message: the limit of AES-GCM (NIST SP 800-38D, section
/// 5.2.1.1).
pub(crate) const MAX_PLAINTEXT: u64 = (1 << 36) - 32;

/// Default and hard cap on the messages of one DEK.
///
/// With random 96-bit nonces the probability of a repeated one in n messages is about n^2/2^97.
pub(crate) const fn messages(suite: Suite) -> (u64, u64) {
    match suite {
        Suite::Aes256Gcm | Suite::ChaCha20Poly1305 => (1 << 24, 1 << 32),
        Suite::Xaes256Gcm => (1 << 40, u64::MAX),
    }
}

/// Default and hard cap on the plaintext bytes of one DEK. XAES-256-GCM has a key per message, so
/// only the number of messages is bounded.
pub(crate) const fn bytes(suite: Suite) -> (u64, u64) {
    match suite {
        Suite::Aes256Gcm | Suite::ChaCha20Poly1305 => (1 << 40, 1 << 50),
        Suite::Xaes256Gcm => (u64::MAX, u64::MAX),
    }
}
