//! The bytes and keys of docs/format.md, a second time.

use std::collections::BTreeSet;
use std::error::Error;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;
use data_encoding::HEXLOWER;
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use xaes_256_gcm::Xaes256Gcm;

pub(super) type Result<T> = std::result::Result<T, Box<dyn Error>>;
pub(super) type Pairs = Vec<(String, String)>;

pub(super) const PERIOD: &str = "2026-11-01T00:00:00Z";
pub(super) const LIVE: u8 = 0;
pub(super) const TOMBSTONE: u8 = 1;
pub(super) const DEK: u8 = 0;
pub(super) const BRANCH: u8 = 1;
pub(super) const INDEX: u8 = 2;

pub(super) fn hex(bytes: impl AsRef<[u8]>) -> String {
    HEXLOWER.encode(bytes.as_ref())
}

/// Public bytes that the name gives.
pub(super) fn named<const N: usize>(name: &str) -> [u8; N] {
    let digest: [u8; 32] = Sha256::digest(format!("public bytes: {name}")).into();
    std::array::from_fn(|i| digest[i % 32])
}

pub(super) fn kek_secret(name: &str, version: u32) -> [u8; 32] {
    named(&format!("KEK {name}, version {version}"))
}

pub(super) fn pairs(pairs: &[(&str, &str)]) -> Pairs {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(super) fn u16_of(len: usize) -> Result<[u8; 2]> {
    Ok(u16::try_from(len)?.to_le_bytes())
}

/// `ctx` of pairs in their order, be it right or not.
pub(super) fn raw_ctx(pairs: &Pairs) -> Result<Vec<u8>> {
    let mut ctx = [&b"WXC\x01"[..], &u16_of(pairs.len())?].concat();
    for part in pairs.iter().flat_map(|(name, value)| [name, value]) {
        ctx.extend(u16_of(part.len())?);
        ctx.extend(part.as_bytes());
    }
    Ok(ctx)
}

pub(super) fn ctx(pairs: &Pairs) -> Result<Vec<u8>> {
    let sorted: BTreeSet<_> = pairs.iter().cloned().collect();
    raw_ctx(&sorted.into_iter().collect())
}

/// D(use, suite), with SHA-256 of `bound`.
pub(super) fn derive(prk: &[u8; 32], use_: u8, suite: u8, bound: &[u8]) -> Result<[u8; 32]> {
    let info = [b"waxseal.v1", &[use_, suite][..], &Sha256::digest(bound)].concat();
    let mut out = [0; 32];
    let hkdf = Hkdf::<Sha256>::from_prk(prk).map_err(|error| error.to_string())?;
    hkdf.expand(&info, &mut out).map_err(|error| error.to_string())?;
    Ok(out)
}

pub(super) fn aead(
    suite: u8,
    key: &[u8; 32],
    nonce: &[u8],
    aad: &[u8],
    msg: &[u8],
) -> Result<Vec<u8>> {
    fn seal<A: AeadInOut>(aead: A, nonce: &[u8], aad: &[u8], msg: &[u8]) -> Result<Vec<u8>> {
        let mut sealed = msg.to_vec();
        let tag = aead
            .encrypt_inout_detached(nonce.try_into()?, aad, sealed.as_mut_slice().into())
            .map_err(|_| "the AEAD refuses")?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }
    match suite {
        1 => seal(Aes256Gcm::new(key.into()), nonce, aad, msg),
        2 => seal(ChaCha20Poly1305::new(key.into()), nonce, aad, msg),
        _ => seal(Xaes256Gcm::new(key.into()), nonce, aad, msg),
    }
}

/// A list of wrapped keys, whose entries are in order.
pub(super) fn list(entries: &[(&str, &[u8], &[u8])]) -> Result<Vec<u8>> {
    let varint = |len: usize| -> Result<Vec<u8>> {
        match u8::try_from(len) {
            Ok(byte @ ..=250) => Ok(vec![byte]),
            _ => Ok([&[251][..], &u16_of(len)?].concat()),
        }
    };
    let mut bytes = varint(entries.len())?;
    for (id, wrapped, meta) in entries {
        for part in [id.as_bytes(), wrapped, meta] {
            bytes.extend(varint(part.len())?);
            bytes.extend(part);
        }
    }
    Ok(bytes)
}

/// What the local provider writes.
pub(super) fn local(
    kek: &str,
    version: u32,
    key: &[u8; 32],
    ctx: &[u8],
    name: &str,
) -> Result<Vec<u8>> {
    let wrap_key = derive(&kek_secret(kek, version), 0x10, 3, format!("local:{kek}").as_bytes())?;
    let nonce = named::<24>(&format!("nonce of {kek}, {name}"));
    let sealed = aead(3, &wrap_key, &nonce, ctx, key)?;
    Ok([&version.to_le_bytes()[..], &nonce, &sealed].concat())
}

pub(super) fn row_of(
    state: u8,
    kind: u8,
    id: &[u8; 32],
    ctx: &[u8],
    keys: &[u8],
) -> Result<Vec<u8>> {
    let head = [0xC1, b'W', b'K', 1, state, kind];
    Ok([&head[..], &u16_of(keys.len())?, id, &u16_of(ctx.len())?, ctx, keys].concat())
}

/// A branch key and its context.
pub(super) struct Branch {
    pub(super) key: [u8; 32],
    pub(super) ctx: Vec<u8>,
}

impl Branch {
    pub(super) fn new(name: &str, context: &Pairs) -> Result<Self> {
        Ok(Self { key: named(&format!("branch key {name}")), ctx: ctx(context)? })
    }

    /// A key of a branch, for the period of these vectors.
    pub(super) fn of(branch: &str, of_branch: &[(&str, &str)]) -> Result<Self> {
        let reserved = [("waxseal:branch", branch), ("waxseal:period", PERIOD)];
        let context = pairs(&[of_branch, &reserved].concat());
        Self::new(&format!("{branch} {of_branch:?}"), &context)
    }

    pub(super) fn id(&self) -> Result<[u8; 32]> {
        derive(&self.key, 0, 0, &self.ctx)
    }

    pub(super) fn reference(&self) -> Result<Vec<u8>> {
        Ok(self.id()?[..16].to_vec())
    }

    pub(super) fn keys(&self) -> Result<Vec<u8>> {
        let id = hex(self.id()?);
        list(&[("local:root", &local("root", 2, &self.key, &self.ctx, &id)?, &[])])
    }

    pub(super) fn row(&self) -> Result<Vec<u8>> {
        row_of(LIVE, BRANCH, &self.id()?, &self.ctx, &self.keys()?)
    }

    pub(super) fn tombstone(&self) -> Result<Vec<u8>> {
        row_of(TOMBSTONE, BRANCH, &self.id()?, &[], &[])
    }

    /// The DEK of a context and a salt.
    pub(super) fn dek(&self, ctx: &[u8], salt: &[u8; 16]) -> Result<[u8; 32]> {
        derive(&self.key, 0x12, 0, &[ctx, salt].concat())
    }

    pub(super) fn encrypted(
        &self,
        ctx: &[u8],
        dek: &[u8; 32],
        nonce: &[u8; 24],
    ) -> Result<Vec<u8>> {
        aead(3, &derive(&self.key, 0x11, 3, &self.ctx)?, nonce, ctx, dek)
    }

    pub(super) fn derived(&self, salt: &[u8; 16]) -> Result<Vec<u8>> {
        Ok([&[1][..], &self.reference()?, salt].concat())
    }

    pub(super) fn wrapped(&self, ctx: &[u8], dek: &[u8; 32], nonce: &[u8; 24]) -> Result<Vec<u8>> {
        let encrypted = self.encrypted(ctx, dek, nonce)?;
        Ok([&[2][..], &self.reference()?, nonce, &encrypted].concat())
    }
}

/// The self-contained form of an entry.
pub(super) fn with_row(entry: &[u8], row: &[u8]) -> Result<Vec<u8>> {
    Ok([&[3, entry[0]], &u16_of(row.len())?[..], row, &entry[1..]].concat())
}
