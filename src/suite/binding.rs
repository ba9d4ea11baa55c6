//! The common part of the bindings aws-lc-rs and ring. The first has the interface of the second.
#![forbid(unsafe_code)]

/// Imports what a library's file needs, and defines the functions that are the same for both.
macro_rules! binding {
    ($aead:ident) => {
        use $aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

        /// Expands the key of a suite. XAES-256-GCM's inner suite is AES-256-GCM.
        fn expand(suite: Suite, key: &[u8; 32]) -> Outcome<LessSafeKey> {
            let algorithm = match suite {
                Suite::Aes256Gcm | Suite::Xaes256Gcm => &AES_256_GCM,
                Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            };
            UnboundKey::new(algorithm, key).map(LessSafeKey::new).map_err(|_| AeadFailure)
        }

        fn checked(nonce: &[u8]) -> Outcome<Nonce> {
            Nonce::try_assume_unique_for_key(nonce).map_err(|_| AeadFailure)
        }
    };
}

pub(super) use binding;
