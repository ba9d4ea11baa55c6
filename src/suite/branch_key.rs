//! The operations of a branch key: it derives DEKs, and wraps them (docs/format.md, "Branch keys").
#![forbid(unsafe_code)]

use super::derive::{BRANCH_SALT_LEN, derive_branch_dek, derive_branch_wrap_key, derive_dek_id};
use super::{AeadKey, Backend, Dek, DekId, InOut, Suite, Tag, check_not_forked};
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::memory::Secret32;

/// The salt of a derived DEK.
pub(crate) type BranchSalt = [u8; BRANCH_SALT_LEN];

/// A DEK that a branch key wrapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BranchWrapped {
    pub(crate) nonce: [u8; 24],
    pub(crate) dek: [u8; 32],
    pub(crate) tag: Tag,
}

/// A branch key, with the context that its id commits to. It never encrypts a message.
pub(crate) struct BranchKey {
    key: Dek,
    id: DekId,
    context: EncryptionContext,
}

impl BranchKey {
    pub(crate) fn new(key: Dek, context: EncryptionContext) -> Result<Self, Error> {
        let id = derive_dek_id(&key, &context)?;
        Ok(Self { key, id, context })
    }

    pub(crate) fn id(&self) -> &DekId {
        &self.id
    }

    pub(crate) fn context(&self) -> &EncryptionContext {
        &self.context
    }

    /// Returns a fresh salt, drawn from the operating system. Two processes, or two snapshots of
    /// one machine, must not derive the same DEK for writing.
    pub(crate) fn random_salt() -> Result<BranchSalt, Error> {
        random()
    }

    /// Derives the DEK of `context` and `salt`.
    pub(crate) fn derive(
        &self,
        context: &EncryptionContext,
        salt: &BranchSalt,
    ) -> Result<Dek, Error> {
        derive_branch_dek(&self.key, context, salt)
    }

    /// Wraps a DEK of `context`.
    pub(crate) fn wrap(
        &self,
        backend: Backend,
        context: &EncryptionContext,
        dek: &Dek,
    ) -> Result<BranchWrapped, Error> {
        let (key, nonce) = (self.wrap_key(backend)?, random()?);
        check_not_forked(dek.secret())?;
        // It is a DEK until it is encrypted, so it is not an array on the stack.
        let mut wrapped = Secret32::zeroed();
        let data = InOut { from: Some(dek.expose()), to: wrapped.expose_mut() };
        let tag = key.seal(&nonce, context.as_bytes(), data)?;
        Ok(BranchWrapped { nonce, dek: *wrapped.expose(), tag })
    }

    /// Unwraps a DEK of `context`.
    pub(crate) fn unwrap(
        &self,
        backend: Backend,
        context: &EncryptionContext,
        wrapped: &BranchWrapped,
    ) -> Result<Dek, Error> {
        let mut dek = Secret32::zeroed();
        let (aad, data) =
            (context.as_bytes(), InOut { from: Some(&wrapped.dek), to: dek.expose_mut() });
        self.wrap_key(backend)?.open(&wrapped.nonce, aad, data, &wrapped.tag)?;
        Ok(Dek::from_secret(dek))
    }

    fn wrap_key(&self, backend: Backend) -> Result<std::sync::Arc<AeadKey>, Error> {
        let key = derive_branch_wrap_key(&self.key, &self.context)?;
        AeadKey::expand(backend, Suite::Xaes256Gcm, &key)
    }
}

/// From the operating system's generator.
#[cfg(not(all(test, shuttle)))]
fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(Error::randomness)?;
    Ok(bytes)
}

/// The same in a replay of a schedule.
#[cfg(all(test, shuttle))]
fn random<const N: usize>() -> Result<[u8; N], Error> {
    use shuttle::rand::Rng;

    Ok(std::array::from_fn(|_| shuttle::rand::thread_rng().gen_range(0..=u8::MAX)))
}

impl std::fmt::Debug for BranchKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BranchKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use data_encoding::HEXLOWER;

    fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
        EncryptionContext::with_reserved_names(pairs.iter().copied()).unwrap()
    }

    fn branch_key(period: &str) -> BranchKey {
        let key: [u8; 32] = std::array::from_fn(|i| 0x20 + u8::try_from(i).unwrap());
        let names = ["tenant", "waxseal:branch", "waxseal:period"];
        let pairs: Vec<_> = names.into_iter().zip(["alice", "orders", period]).collect();
        BranchKey::new(Dek::from_slice(&key).unwrap(), context(&pairs)).unwrap()
    }

    #[test]
    fn the_known_answers_of_the_format_page_hold() {
        let branch_key = branch_key("2026-11-01T00:00:00Z");
        assert_eq!(branch_key.context().as_bytes().len(), 83);
        assert_eq!(
            branch_key.id().to_string(),
            "0e01502636ee1af30c8adfbcb8eb868e509720c1720dff919da33c3e9fe87431"
        );
        let wrap_key = derive_branch_wrap_key(&branch_key.key, branch_key.context()).unwrap();
        assert_eq!(
            HEXLOWER.encode(wrap_key.expose()),
            "44fa570467340ec17fd3c9f4ea2ce0dd8dde09ff5e8d1f36d8b09f4a5af42ce2"
        );
        let alice = context(&[("tenant", "alice")]);
        let salt = std::array::from_fn(|i| 0x40 + u8::try_from(i).unwrap());
        let dek = branch_key.derive(&alice, &salt).unwrap();
        assert_eq!(
            HEXLOWER.encode(dek.expose()),
            "fbd10199cefbc3d33e933e547bb2f27e4328edaa3a46992571d9dc3a30c301c4"
        );
        assert_eq!(
            derive_dek_id(&dek, &alice).unwrap().to_string(),
            "179e87fbbf2b29d8386faae5dc36fe4628421e6cfc0afe47c1d7d6521b816fac"
        );
    }

    #[test]
    fn another_salt_context_or_branch_key_derives_another_dek() {
        let (alice, bob) = (context(&[("tenant", "alice")]), context(&[("tenant", "bob")]));
        let branch_key = branch_key("2026-11-01T00:00:00Z");
        let other = BranchKey::new(Dek::random().unwrap(), branch_key.context().clone()).unwrap();
        let of = |key: &BranchKey, context, salt| *key.derive(context, &salt).unwrap().expose();
        let mut seen = std::collections::HashSet::new();
        assert!(seen.insert(of(&branch_key, &alice, [1; 16])));
        assert!(!seen.insert(of(&branch_key, &alice, [1; 16])), "the control");
        assert!(seen.insert(of(&branch_key, &alice, [2; 16])));
        assert!(seen.insert(of(&branch_key, &bob, [1; 16])));
        assert!(seen.insert(of(&other, &alice, [1; 16])));
        assert_ne!(BranchKey::random_salt().unwrap(), BranchKey::random_salt().unwrap());
    }

    #[test]
    fn a_wrapped_dek_opens_under_its_branch_key_and_in_its_context_only() {
        let (alice, bob) = (context(&[("tenant", "alice")]), context(&[("tenant", "bob")]));
        let (november, december) =
            (branch_key("2026-11-01T00:00:00Z"), branch_key("2026-12-01T00:00:00Z"));
        let dek = Dek::from_slice(&[7; 32]).unwrap();
        for (backend, other) in
            Backend::all().iter().flat_map(|a| Backend::all().iter().map(move |b| (*a, *b)))
        {
            let wrapped = november.wrap(backend, &alice, &dek).unwrap();
            assert_ne!(wrapped.dek, *dek.expose());
            assert_ne!(wrapped, november.wrap(backend, &alice, &dek).unwrap());
            let opened = november.unwrap(other, &alice, &wrapped).unwrap();
            assert_eq!(opened.expose(), dek.expose());
            let refused =
                |key: &BranchKey, context: &EncryptionContext, wrapped: &BranchWrapped| {
                    key.unwrap(other, context, wrapped).unwrap_err().kind() == ErrorKind::Invalid
                };
            assert!(refused(&november, &bob, &wrapped));
            // The same 32 bytes in another context are another branch key.
            assert!(refused(&december, &alice, &wrapped));
            for part in 0..3 {
                let mut changed = wrapped;
                match part {
                    0 => changed.nonce[23] ^= 1,
                    1 => changed.dek[0] ^= 1,
                    _ => changed.tag[15] ^= 1,
                }
                assert!(refused(&november, &alice, &changed), "part {part}");
            }
        }
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", branch_key("p")), "BranchKey([redacted])");
    }
}
