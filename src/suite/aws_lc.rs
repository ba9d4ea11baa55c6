//! The suites from aws-lc-rs. It has no XAES-256-GCM, so this file builds that from its AES and its
//! AES-256-GCM.
#![forbid(unsafe_code)]

use aws_lc_rs::aead;
use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use zeroize::Zeroizing;

use super::{AeadFailure, InOut, Outcome, Suite, Tag};

super::binding::binding!(aead);

#[expect(clippy::large_enum_variant, reason = "lives behind one Arc")]
pub(crate) enum Key {
    /// AES-256-GCM or ChaCha20-Poly1305.
    Direct(LessSafeKey),
    Xaes256Gcm(Xaes256Gcm),
}

impl Key {
    pub(super) fn new(suite: Suite, key: &[u8; 32]) -> Outcome<Self> {
        match suite {
            Suite::Xaes256Gcm => Xaes256Gcm::new(key).map(Self::Xaes256Gcm),
            direct => expand(direct, key).map(Self::Direct),
        }
    }

    #[inline(always)]
    pub(super) fn seal(&self, nonce: &[u8], aad: &[u8], data: InOut<'_>, tag: &mut Tag) -> Outcome {
        self.with(nonce, aad, |key, nonce, aad| match data.from {
            None => key.seal_in_place_scatter(nonce, aad, data.to, &[], tag),
            Some(from) => key.seal_out_of_place_scatter(nonce, aad, from, data.to, &[], tag),
        })
    }

    pub(super) fn open(&self, nonce: &[u8], aad: &[u8], data: InOut<'_>, tag: &Tag) -> Outcome {
        self.with(nonce, aad, |key, nonce, aad| match data.from {
            None => key.open_in_place_separate_tag(nonce, aad, tag, data.to).map(|_| ()),
            Some(from) => key.open_separate_gather(nonce, aad, from, tag, data.to),
        })
    }

    /// Runs `work` with the key, the nonce and the AAD that the library's AEAD takes.
    #[inline(always)]
    fn with<'a, E>(
        &self,
        nonce: &[u8],
        aad: &'a [u8],
        work: impl FnOnce(&LessSafeKey, Nonce, Aad<&'a [u8]>) -> Result<(), E>,
    ) -> Outcome {
        let of_nonce;
        let (key, nonce) = match self {
            Self::Direct(key) => (key, nonce),
            Self::Xaes256Gcm(key) => {
                of_nonce = key.for_nonce(nonce)?;
                (&of_nonce.0, of_nonce.1)
            }
        };
        work(key, checked(nonce)?, Aad::from(aad)).map_err(|_| AeadFailure)
    }
}

/// XAES-256-GCM (C2SP, "The XAES-256-GCM extended-nonce AEAD").
pub(crate) struct Xaes256Gcm {
    aes: EncryptingKey,
    k1: Zeroizing<[u8; 16]>,
}

impl Xaes256Gcm {
    /// Steps 1 and 2: `L = AES-256_K(0^128)`; `K1 = L << 1`, XOR `0^120 10000111` if the bit
    /// shifted out was set.
    fn new(key: &[u8; 32]) -> Outcome<Self> {
        let aes = UnboundCipherKey::new(&AES_256, key)
            .and_then(EncryptingKey::ecb)
            .map_err(|_| AeadFailure)?;
        let mut l = Zeroizing::new([0; 16]);
        encrypt_blocks(&aes, &mut *l)?;
        let shifted = u128::from_be_bytes(*l);
        let carry = (shifted >> 127) * 0b1000_0111;
        Ok(Self { aes, k1: Zeroizing::new(((shifted << 1) ^ carry).to_be_bytes()) })
    }

    /// Steps 3 to 5, with N the nonce: `Kx = AES-256_K(M1 ^ K1) || AES-256_K(M2 ^ K1)`,
    /// `Mi = 0x00 || i || "X" || 0x00 || N[:12]`; the rest is AES-256-GCM under `Kx` with the nonce
    /// `N[12:]`.
    fn for_nonce<'n>(&self, nonce: &'n [u8]) -> Outcome<(LessSafeKey, &'n [u8])> {
        let (head, tail) = nonce.split_first_chunk::<12>().ok_or(AeadFailure)?;
        let mut kx = Zeroizing::new([0_u8; 32]);
        for (i, half) in (1_u8..).zip(kx.as_chunks_mut::<16>().0) {
            let (label, rest) = half.split_first_chunk_mut::<4>().ok_or(AeadFailure)?;
            *label = [0, i, b'X', 0];
            rest.copy_from_slice(head);
            half.iter_mut().zip(&*self.k1).for_each(|(byte, k1)| *byte ^= k1);
        }
        encrypt_blocks(&self.aes, &mut *kx)?;
        Ok((expand(Suite::Xaes256Gcm, &kx)?, tail))
    }
}

fn encrypt_blocks(aes: &EncryptingKey, blocks: &mut [u8]) -> Outcome {
    aes.less_safe_encrypt(blocks, EncryptionContext::None).map(|_| ()).map_err(|_| AeadFailure)
}
