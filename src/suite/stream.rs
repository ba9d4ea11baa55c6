//! Streams: C2SP chunked encryption with the chunk size as a parameter (docs/format.md, "Stream").
//!
//! ```text
//! key (32) || base nonce (12) || commitment (32) = HKDF-Expand-SHA-512(stream root, info, 76)
//! info = "c2sp.org/chunked-encryption@v1+" || name of the AEAD || 00 || salt || chunk_log2 || AAD
//! chunk i = AEAD(key, base nonce XOR i, no AAD, plaintext i)
//! ```
#![forbid(unsafe_code)]

use std::sync::Arc;

use zeroize::Zeroizing;

use super::derive::expand_sha512;
use super::{AeadKey, Backend, Dek, InOut, SHORT, Suite, Tag, derive, derive_message_key};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::memory::{Secret32, leaving_no_trace_on_the_stack};

const USE_STREAM_ROOT: u8 = 0x02;
const LABEL: &[u8] = b"c2sp.org/chunked-encryption@v1+";
/// A stream has fewer chunks than this, and fewer plaintext bytes than 2 to the power of the next.
const MAX_CHUNKS: u64 = 1 << 38;
const MAX_BYTES_LOG2: u8 = 52;

pub(crate) type StreamSalt = [u8; 24];
pub(crate) type Commitment = [u8; 32];

/// The plaintext length of every chunk except the last, which is shorter: 4 KiB to 16 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ChunkSize(u8);

impl ChunkSize {
    pub(crate) fn from_log2(log2: u8) -> Option<Self> {
        (12..=24).contains(&log2).then_some(Self(log2))
    }

    pub(crate) fn log2(self) -> u8 {
        self.0
    }

    pub(crate) fn bytes(self) -> usize {
        1 << self.0
    }

    /// Whether a stream may have a chunk with this index.
    pub(crate) fn check_index(self, index: u64) -> Result<(), Error> {
        match index < (MAX_CHUNKS - 1).min(1 << (MAX_BYTES_LOG2 - self.0)) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::TooLarge, "a stream has less than 2^52 bytes")),
        }
    }
}

impl Suite {
    /// Returns the suite of streams for a DEK whose messages have this one. A stream has separate
    /// keys, so it needs no longer nonces.
    pub(crate) const fn of_streams(self) -> Self {
        match self {
            Self::Xaes256Gcm => Self::Aes256Gcm,
            suite => suite,
        }
    }
}

pub(super) fn derive_stream_root(
    dek: &Dek,
    context: &EncryptionContext,
    suite: Suite,
) -> Result<Secret32, Error> {
    let mut root = Secret32::zeroed();
    derive(dek.secret(), USE_STREAM_ROOT, suite.id(), context.digest(), root.expose_mut())?;
    Ok(root)
}

/// The keys of a DEK in one suite.
pub(crate) struct DekKeys {
    message: AeadKey,
    /// For messages of up to [`SHORT`] bytes, if another backend is faster there.
    short: Option<Box<AeadKey>>,
    pub(crate) streams: StreamRoot,
}

impl DekKeys {
    /// Derives them in their final place.
    pub(crate) fn derive(
        backend: Backend,
        dek: &Dek,
        context: &EncryptionContext,
        suite: Suite,
    ) -> Result<Arc<Self>, Error> {
        let short = backend.chosen_for(suite, SHORT);
        let short = (short != backend.chosen(suite)).then_some(short);
        Self::derive_in(backend, short, dek, context, suite)
    }

    /// `short` is the other backend for short messages, if there is one.
    fn derive_in(
        backend: Backend,
        short: Option<Backend>,
        dek: &Dek,
        context: &EncryptionContext,
        suite: Suite,
    ) -> Result<Arc<Self>, Error> {
        let key = derive_message_key(dek, context, suite)?;
        let root = derive_stream_root(dek, context, suite.of_streams())?;
        let streams = StreamRoot { root, backend, suite: suite.of_streams() };
        let new = |backend| AeadKey::new(backend, suite, &key);
        // Each in a separate frame: otherwise the first one's traces on the stack would be moved
        // with the second.
        let boxed = |short| leaving_no_trace_on_the_stack(|| new(short).map(Box::new));
        let short = short.map(boxed).transpose()?;
        leaving_no_trace_on_the_stack(|| {
            Ok(Arc::new(Self { message: new(backend)?, short, streams }))
        })
    }

    /// Returns the key for a message of `len` bytes. Both keys produce the same bytes.
    #[inline]
    pub(crate) fn message(&self, len: usize) -> &AeadKey {
        self.short.as_deref().filter(|_| len <= SHORT).unwrap_or(&self.message)
    }
}

/// The secret from which the keys of all streams of a DEK are derived.
pub(crate) struct StreamRoot {
    root: Secret32,
    backend: Backend,
    suite: Suite,
}

impl StreamRoot {
    #[cfg(test)]
    pub(super) fn for_test(root: Secret32, backend: Backend, suite: Suite) -> Self {
        Self { root, backend, suite }
    }

    /// Returns the keys of a new stream. The salt is new, or two streams share their keys.
    pub(crate) fn begin(
        &self,
        salt: &StreamSalt,
        chunk: ChunkSize,
        aad: &[u8],
    ) -> Result<(Arc<StreamKey>, Commitment), Error> {
        self.derive(salt, chunk, &[&[chunk.0], aad])
    }

    /// Returns the keys of the stream that has this commitment.
    pub(crate) fn open(
        &self,
        salt: &StreamSalt,
        chunk: ChunkSize,
        aad: &[u8],
        commitment: &Commitment,
    ) -> Result<Arc<StreamKey>, Error> {
        self.open_context(salt, chunk, &[&[chunk.0], aad], commitment)
    }

    pub(super) fn open_context(
        &self,
        salt: &StreamSalt,
        chunk: ChunkSize,
        context: &[&[u8]; 2],
        commitment: &Commitment,
    ) -> Result<Arc<StreamKey>, Error> {
        let (key, expected) = self.derive(salt, chunk, context)?;
        let differs = expected.iter().zip(commitment).fold(0, |all, (a, b)| all | (a ^ b));
        if differs == 0 { Ok(key) } else { Err(Error::invalid()) }
    }

    /// `context` is C2SP's term: here it is the chunk size and the AAD.
    fn derive(
        &self,
        salt: &StreamSalt,
        chunk: ChunkSize,
        context: &[&[u8]; 2],
    ) -> Result<(Arc<StreamKey>, Commitment), Error> {
        let aead: &[u8] = match self.suite {
            Suite::Aes256Gcm | Suite::Xaes256Gcm => b"AEAD_AES_256_GCM",
            Suite::ChaCha20Poly1305 => b"AEAD_CHACHA20_POLY1305",
        };
        let mut okm = Zeroizing::new([0; 76]);
        expand_sha512(&self.root, &[LABEL, aead, &[0], salt, context[0], context[1]], &mut *okm)?;
        let (mut key, mut base_nonce, mut commitment) = (Secret32::zeroed(), [0; 12], [0; 32]);
        let parts: [&mut [u8]; 3] = [key.expose_mut(), &mut base_nonce, &mut commitment];
        parts.into_iter().flatten().zip(&*okm).for_each(|(to, from)| *to = *from);
        let key = leaving_no_trace_on_the_stack(|| {
            let key = AeadKey::new(self.backend, self.suite, &key)?;
            Ok::<_, Error>(Arc::new(StreamKey { key, base_nonce, chunk }))
        })?;
        Ok((key, commitment))
    }
}

/// The key of one stream.
pub(crate) struct StreamKey {
    key: AeadKey,
    base_nonce: [u8; 12],
    chunk: ChunkSize,
}

impl StreamKey {
    /// Encrypts a chunk and returns its tag. **Call it once for each index**: the caller counts.
    pub(crate) fn seal(&self, index: u64, data: InOut<'_>) -> Result<Tag, Error> {
        self.key.seal(&self.nonce(index)?, &[], data)
    }

    /// Decrypts a chunk, or wipes the output.
    pub(crate) fn open(&self, index: u64, data: InOut<'_>, tag: &Tag) -> Result<(), Error> {
        self.key.open(&self.nonce(index)?, &[], data, tag)
    }

    /// `base nonce XOR index`, as 96-bit big-endian numbers.
    fn nonce(&self, index: u64) -> Result<[u8; 12], Error> {
        self.chunk.check_index(index)?;
        let mut nonce = self.base_nonce;
        nonce.iter_mut().rev().zip(index.to_le_bytes()).for_each(|(byte, of)| *byte ^= of);
        Ok(nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_messages_have_the_key_of_the_other_backend_and_the_same_bytes() {
        let (dek, alice) = (Dek::random().unwrap(), EncryptionContext::empty());
        let pairs = || Backend::all().iter().flat_map(|a| Backend::all().iter().map(|b| (*a, *b)));
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Xaes256Gcm] {
            for (long, short) in pairs() {
                let one = DekKeys::derive_in(long, None, &dek, &alice, suite).unwrap();
                let two = DekKeys::derive_in(long, Some(short), &dek, &alice, suite).unwrap();
                for len in [0, 1, SHORT - 1, SHORT, SHORT + 1, 4 * SHORT] {
                    let plaintext = vec![7; len];
                    let sealed = [&one, &two].map(|keys| {
                        let mut bytes = plaintext.clone();
                        let data = InOut::in_place(&mut bytes);
                        let nonce = &[9; 24][..suite.nonce_len()];
                        let tag = keys.message(len).seal(nonce, b"aad", data).unwrap();
                        (bytes, tag)
                    });
                    assert_eq!(sealed[0], sealed[1], "{suite:?} {long:?} {short:?} {len}");
                    let key = |backend| AeadKey::new(backend, suite, &Secret32::zeroed()).unwrap();
                    let expected = key(if len <= SHORT { short } else { long });
                    let is_same = std::mem::discriminant(two.message(len))
                        == std::mem::discriminant(&expected);
                    assert!(is_same, "{suite:?} {long:?} {short:?} {len}");
                }
            }
        }
        let size = size_of::<AeadKey>();
        assert!((64..=1024).contains(&size), "docs/performance.md says up to 1 KiB: {size}");
    }

    /// A key of a small variant replaces a larger one on the stack, and is moved with the rest of
    /// it.
    #[cfg(target_os = "linux")]
    #[test]
    fn no_schedule_of_two_backends_stays_when_a_dek_ends() {
        use waxseal_testing::{scan, support};

        let alice = EncryptionContext::new([("tenant", "alice"), ("table", "cards")]).unwrap();
        for (suite, of_search) in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Xaes256Gcm]
            .into_iter()
            .zip(support::SUITES)
        {
            let pairs = Backend::all().iter().flat_map(|a| Backend::all().iter().map(|b| (*a, *b)));
            for (long, short) in pairs {
                let (keys, needles) = scan::on_a_stack_of_its_own(|| {
                    let dek = Dek::random().unwrap();
                    let needle = scan::Needle::of(dek.expose());
                    let of_dek = scan::Keys::new(needle, &support::context("alice"), of_search);
                    let keys = DekKeys::derive_in(long, Some(short), &dek, &alice, suite).unwrap();
                    (keys, [of_dek.message_key, of_dek.schedule])
                });
                let found = || scan::in_own_memory([&needles[0], &needles[1]]);
                let [_, schedules] = found();
                assert!(schedules >= 2, "{suite:?} {long:?} {short:?}: the control: {schedules}");
                drop(keys);
                assert_eq!(found(), [0; 2], "{suite:?} {long:?} {short:?}");
            }
        }
    }

    fn root(suite: Suite) -> StreamRoot {
        StreamRoot::for_test(Secret32::from_slice(&[7; 32]).unwrap(), Backend::RustCrypto, suite)
    }

    #[test]
    fn salt_chunk_size_aad_and_suite_are_in_every_key_and_commitment() {
        let (one, other) = (ChunkSize(12), ChunkSize(13));
        let mut seen = std::collections::HashSet::new();
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            for (salt, chunk, aad) in [
                ([1; 24], one, &b"aad"[..]),
                ([2; 24], one, b"aad"),
                ([1; 24], other, b"aad"),
                ([1; 24], one, b"aaf"),
                ([1; 24], one, b""),
            ] {
                let (key, commitment) = root(suite).begin(&salt, chunk, aad).unwrap();
                assert!(seen.insert(key.seal(0, InOut::in_place(&mut [])).unwrap().to_vec()));
                assert!(seen.insert(commitment.to_vec()));
                assert!(root(suite).open(&salt, chunk, aad, &commitment).is_ok());
                for bit in 0..256 {
                    let mut changed = commitment;
                    changed[bit / 8] ^= 1 << (bit % 8);
                    let error = root(suite).open(&salt, chunk, aad, &changed).err().unwrap();
                    assert_eq!(error.kind(), ErrorKind::Invalid, "bit {bit}");
                }
            }
        }
        assert_eq!(seen.len(), 20);
    }

    #[test]
    fn a_nonce_is_the_base_xor_the_index_in_big_endian() {
        let (mut key, _) = root(Suite::Aes256Gcm).begin(&[1; 24], ChunkSize(16), b"").unwrap();
        Arc::get_mut(&mut key).unwrap().base_nonce = [0xF0; 12];
        assert_eq!(key.nonce(0).unwrap(), [0xF0; 12]);
        let expected = [0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF0, 0xF5, 0xF4, 0xF3, 0xF2, 0xF1];
        assert_eq!(key.nonce(0x05_0403_0201).unwrap(), expected);
    }

    #[test]
    fn a_stream_has_fewer_than_2_to_the_38_chunks_and_2_to_the_52_bytes() {
        for (log2, last) in
            [(12, (1 << 38) - 2), (14, (1 << 38) - 2), (16, (1 << 36) - 1), (24, (1 << 28) - 1)]
        {
            let (key, _) = root(Suite::Aes256Gcm).begin(&[1; 24], ChunkSize(log2), b"").unwrap();
            assert!(key.seal(last, InOut::in_place(&mut [])).is_ok(), "{log2}");
            let over = key.seal(last + 1, InOut::in_place(&mut [])).unwrap_err();
            assert_eq!(over.kind(), ErrorKind::TooLarge, "{log2}");
            assert!(key.open(u64::MAX, InOut::in_place(&mut []), &[0; 16]).is_err());
        }
        assert!(ChunkSize::from_log2(11).is_none() && ChunkSize::from_log2(25).is_none());
    }
}
