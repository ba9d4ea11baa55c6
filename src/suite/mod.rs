//! The cryptography: suites, key derivation, nonces, and the interface to the AEAD backends.
//!
//! It knows keys and bytes, but not where they come from. Only `rustcrypto`, `aws_lc` and `of_ring`
//! name an AEAD crate, and only `derive` names the KDF's.
#![deny(unsafe_code)]

#[cfg(feature = "aws-lc")]
mod aws_lc;
#[cfg(any(feature = "aws-lc", feature = "ring"))]
mod binding;
mod branch_key;
mod derive;
mod nonce;
#[cfg(feature = "ring")]
mod of_ring;
mod rustcrypto;
mod stream;
#[cfg(test)]
mod vectors;

pub(crate) use branch_key::{BranchKey, BranchSalt, BranchWrapped};
pub use derive::Dek;
use derive::check_not_forked;
pub(crate) use derive::{derive, derive_dek_id, derive_message_key};
pub(crate) use nonce::Nonce;
pub use nonce::Nonces;
pub use nonce::jitter;
pub(crate) use stream::{ChunkSize, Commitment, DekKeys, StreamKey, StreamRoot, StreamSalt};

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use crate::backend::Backend;
pub use crate::dek_id::DekId;
use crate::error::{Error, ErrorKind};
use crate::memory::{Secret32, leaving_no_trace_on_the_stack, wipe};

/// The length of an authentication tag in bytes, in every suite.
pub(crate) const TAG_LEN: usize = 16;

/// The AEAD of a DEK's messages (docs/format.md, "Suites").
///
/// All three use 256-bit keys, random nonces and 128-bit tags. None of them commits to the AAD: it
/// is authenticated, which is weaker (SECURITY.md). The DEK id commits to the DEK and the
/// encryption context.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Suite {
    /// AES-256-GCM, NIST SP 800-38D, nonce of 12 bytes. The default.
    #[default]
    Aes256Gcm,
    /// ChaCha20-Poly1305, RFC 8439, nonce of 12 bytes: for processors without AES instructions.
    #[cfg_attr(feature = "serde", serde(rename = "chacha20-poly1305"))]
    ChaCha20Poly1305,
    /// XAES-256-GCM, C2SP, nonce of 24 bytes: for more messages under one DEK than the caps of the
    /// others allow.
    Xaes256Gcm,
}

impl Suite {
    /// Returns the byte that names this suite in a message.
    #[must_use]
    pub const fn id(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
            Self::Xaes256Gcm => 3,
        }
    }

    /// Returns the suite with this byte, if this build knows it.
    #[must_use]
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            3 => Some(Self::Xaes256Gcm),
            _ => None,
        }
    }

    /// Returns the length of a nonce in bytes.
    #[must_use]
    pub const fn nonce_len(self) -> usize {
        match self {
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 12,
            Self::Xaes256Gcm => 24,
        }
    }
}

impl Backend {
    /// Returns the backend that does the work of a suite: itself, or for [`Backend::Fastest`] the
    /// one chosen in this process.
    ///
    /// ```
    /// use waxseal::{Backend, Suite};
    ///
    /// println!("AES-256-GCM by {:?}", Backend::default().chosen(Suite::Aes256Gcm));
    /// ```
    #[must_use]
    pub fn chosen(self, suite: Suite) -> Self {
        self.chosen_for(suite, usize::MAX)
    }

    /// Returns the backend for messages of `len` bytes of plaintext, like [`chosen`](Self::chosen).
    /// [`Backend::Fastest`] may use another backend up to 1 KiB. Streams, and everything else, use
    /// [`chosen`](Self::chosen).
    #[must_use]
    pub fn chosen_for(self, suite: Suite, len: usize) -> Self {
        let measured = if len > SHORT { 4 * SHORT } else { SHORT };
        self.settled(suite.id(), len <= SHORT, |backend| stopwatch(backend, suite, measured))
    }
}

/// The longest message for which a backend is chosen because it is fastest for short ones.
const SHORT: usize = 1024;

/// Returns a function that times the encryption of `len` bytes under a key that is not secret.
/// `None` if the backend does not implement the suite itself.
fn stopwatch(backend: Backend, suite: Suite, len: usize) -> Option<impl FnMut() -> Duration> {
    let key = AeadKey::new(backend, suite, &Secret32::zeroed()).ok()?;
    if matches!(key, AeadKey::RustCrypto(_)) {
        return None;
    }
    let (mut payload, nonce) = (vec![0; len], [0; 24]);
    Some(move || {
        let (start, data) = (Instant::now(), InOut::in_place(&mut payload));
        let sealed = key.seal(nonce.get(..suite.nonce_len()).unwrap_or_default(), &[], data);
        sealed.map_or(Duration::MAX, |_| start.elapsed())
    })
}

/// A backend refused: the tag does not match, or a length exceeds what the AEAD allows.
struct AeadFailure;

type Outcome<T = ()> = Result<T, AeadFailure>;
/// An authentication tag.
pub(crate) type Tag = [u8; TAG_LEN];

/// The bytes that a backend processes: those of `to` in place, or those of `from`, which has the
/// same length, to `to`.
pub(crate) struct InOut<'d> {
    pub(crate) from: Option<&'d [u8]>,
    pub(crate) to: &'d mut [u8],
}

impl<'d> InOut<'d> {
    pub(crate) fn in_place(to: &'d mut [u8]) -> Self {
        Self { from: None, to }
    }

    /// For a backend that only works in place.
    fn copied(self) -> Outcome<&'d mut [u8]> {
        if let Some(from) = self.from {
            let to = Some(&mut *self.to).filter(|to| to.len() == from.len());
            to.ok_or(AeadFailure)?.copy_from_slice(from);
        }
        Ok(self.to)
    }
}

/// One suite's key, expanded in one backend. Its schedule is wiped on drop.
pub(crate) enum AeadKey {
    RustCrypto(rustcrypto::Key),
    #[cfg(feature = "aws-lc")]
    AwsLc(aws_lc::Key),
    #[cfg(feature = "ring")]
    Ring(of_ring::Key),
}

/// Does the same on the key of any backend.
macro_rules! on {
    ($self:ident, $key:ident => $work:expr) => {
        match $self {
            Self::RustCrypto($key) => $work,
            #[cfg(feature = "aws-lc")]
            Self::AwsLc($key) => $work,
            #[cfg(feature = "ring")]
            Self::Ring($key) => $work,
        }
    };
}

impl AeadKey {
    /// Expands `key` in its final place.
    pub(crate) fn expand(
        backend: Backend,
        suite: Suite,
        key: &Secret32,
    ) -> Result<Arc<Self>, Error> {
        leaving_no_trace_on_the_stack(|| Self::new(backend, suite, key).map(Arc::new))
    }

    fn new(backend: Backend, suite: Suite, key: &Secret32) -> Result<Self, Error> {
        check_not_forked(key)?;
        let made = match (backend.chosen(suite), suite) {
            #[cfg(feature = "aws-lc")]
            (Backend::AwsLc, _) => aws_lc::Key::new(suite, key.expose()).map(Self::AwsLc),
            #[cfg(feature = "ring")]
            (Backend::Ring, Suite::Aes256Gcm | Suite::ChaCha20Poly1305) => {
                of_ring::Key::new(suite, key.expose()).map(Self::Ring)
            }
            _ => Ok(Self::RustCrypto(rustcrypto::Key::new(suite, key.expose()))),
        };
        made.map_err(|AeadFailure| {
            Error::new(ErrorKind::Misconfigured, "the backend refuses to make a key")
        })
    }

    /// Encrypts and returns the tag. On an error the output is unchanged or wiped, never partly
    /// encrypted.
    pub(crate) fn seal(&self, nonce: &[u8], aad: &[u8], data: InOut<'_>) -> Result<Tag, Error> {
        let mut tag = [0; TAG_LEN];
        self.seal_with(nonce, aad, data, &mut tag).map(|()| tag)
    }

    /// Encrypts like [`seal`](Self::seal), and writes the tag to its place.
    #[inline]
    pub(crate) fn seal_with(
        &self,
        nonce: &[u8],
        aad: &[u8],
        InOut { from, to }: InOut<'_>,
        tag: &mut Tag,
    ) -> Result<(), Error> {
        on!(self, key => key.seal(nonce, aad, InOut { from, to }, tag)).map_err(|AeadFailure| {
            wipe(to);
            Error::new(ErrorKind::TooLarge, "beyond the limits of the AEAD")
        })
    }

    /// Decrypts. If the tag does not match, the output is wiped. So nothing unauthenticated is
    /// released, and all backends leave the same bytes.
    pub(crate) fn open(
        &self,
        nonce: &[u8],
        aad: &[u8],
        InOut { from, to }: InOut<'_>,
        tag: &Tag,
    ) -> Result<(), Error> {
        on!(self, key => key.open(nonce, aad, InOut { from, to }, tag)).map_err(|AeadFailure| {
            wipe(to);
            Error::invalid()
        })
    }
}
