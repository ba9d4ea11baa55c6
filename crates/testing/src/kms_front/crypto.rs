//! What keys compute. A request is let through and its key looked up under the lock of the world;
//! the cryptography needs no lock, since for a key in an external key store it is a call over the
//! network.

use std::sync::{Arc, Mutex};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::failure::Failure;
use super::request::Context;
use super::xks::{Asker, Sealed, XksClient};
use super::{KmsError, random};
use crate::outputs::note_dek;

/// What does the cryptography of a key.
#[derive(Clone)]
pub enum Backing {
    /// Done here. Every key material there ever was, the current one last; related multi-Region
    /// keys share them.
    Materials(Arc<Mutex<Vec<Material>>>),
    /// Done by a key of KMS first, and then once more by the external key ("Double encryption" in
    /// the Guide's "External key stores").
    External(External),
}

#[derive(Clone)]
pub struct External {
    own: Material,
    /// The id of the custom key store.
    pub store: String,
    pub proxy: Arc<XksClient>,
    pub key: String,
}

impl External {
    pub fn new(kms_key: &str, store: &str, proxy: Arc<XksClient>, key: &str) -> Self {
        let own = Material::new(kms_key, random(), false);
        Self { own, store: store.to_owned(), proxy, key: key.to_owned() }
    }
}

#[derive(Clone)]
pub struct Material {
    pub id: [u8; 32],
    key: [u8; 32],
    pub on_demand: bool,
}

impl Material {
    pub fn new(key_id: &str, key: [u8; 32], on_demand: bool) -> Self {
        let id = Sha256::new()
            .chain_update(b"material")
            .chain_update(key_id)
            .chain_update(key)
            .finalize()
            .into();
        Self { id, key, on_demand }
    }

    /// Nonce, ciphertext, tag.
    fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let (nonce, mut sealed) = (random::<12>(), plaintext.to_vec());
        let cipher = Aes256Gcm::new((&self.key).into());
        let tag = cipher
            .encrypt_inout_detached((&nonce).into(), aad, sealed.as_mut_slice().into())
            .unwrap();
        [&nonce[..], &sealed, &tag].concat()
    }

    fn open(&self, aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<12>()?;
        let (sealed, tag) = sealed.split_last_chunk::<16>()?;
        let mut plaintext = sealed.to_vec();
        let cipher = Aes256Gcm::new((&self.key).into());
        cipher
            .decrypt_inout_detached(nonce.into(), aad, plaintext.as_mut_slice().into(), tag.into())
            .ok()?;
        Some(plaintext)
    }
}

pub fn invalid_ciphertext() -> KmsError {
    // KMS answers with no message: clients of it show nothing after "when calling the Decrypt
    // operation:".
    KmsError::new(400, "InvalidCiphertextException", "")
}

/// "All symmetric encryption operations take an encryption context", used "as additional
/// authenticated data" (the Guide).
fn aad(header: &[u8], context: &Context) -> Vec<u8> {
    let context = serde_json::to_vec(context).unwrap();
    [&header.len().to_be_bytes()[..], header, &context].concat()
}

/// What the proxy gets as additionalAuthenticatedData, bounded there by 8,192 bytes, which a
/// context may have by itself. This is the front's own choice: the specification leaves it to KMS,
/// and says that the header of the ciphertext blob may be in it (Appendix E, version 0.0.6).
fn external_aad(aad: &[u8]) -> [u8; 32] {
    Sha256::digest(aad).into()
}

const MAGIC: [u8; 4] = [1, 2, 2, 0];
/// Magic, key, key material.
const FIXED: usize = 4 + 32 + 32;

fn handle(key_id: &str) -> [u8; 32] {
    Sha256::digest(key_id).into()
}

/// Whether a ciphertext blob was made by this key, and `None` if it is none.
pub fn made_by<'a>(blob: &'a [u8]) -> Option<impl Fn(&str) -> bool + 'a> {
    (blob.get(..4) == Some(&MAGIC[..]) && blob.len() >= FIXED)
        .then_some(|id: &str| handle(id)[..] == blob[4..36])
}

/// The part of a blob in front of what was encrypted: it is authenticated with it.
fn header(key_id: &str, material: &Material) -> Vec<u8> {
    // 167 to 184 bytes for a DEK: nobody is to rely on a length.
    let padding = 38 + random::<1>()[0] % 18;
    let mut header = [&MAGIC[..], &handle(key_id), &material.id, &[padding]].concat();
    header.resize(header.len() + usize::from(padding), padding);
    header
}

/// Behind the header in the blob of an external key: each variable part after its length. "KMS will
/// embed all of the fields in the XKS Proxy's encrypt response into the ciphertextBlob" (Encrypt,
/// "KMS Considerations").
fn embed(sealed: &Sealed) -> Vec<u8> {
    let len = |part: &[u8]| [u8::try_from(part.len()).unwrap()];
    let (metadata, iv) = (&sealed.metadata[..], &sealed.iv[..]);
    [&len(metadata)[..], metadata, &len(iv), iv, &sealed.tag, &sealed.ciphertext].concat()
}

fn embedded(bytes: &[u8]) -> Option<Sealed> {
    let part = |bytes: &[u8]| -> Option<(Vec<u8>, Vec<u8>)> {
        let (len, rest) = bytes.split_first()?;
        let (part, rest) = rest.split_at_checked(usize::from(*len))?;
        Some((part.to_vec(), rest.to_vec()))
    };
    let (metadata, rest) = part(bytes)?;
    let (iv, rest) = part(&rest)?;
    let (tag, ciphertext) = rest.split_at_checked(16)?;
    // What a proxy cannot have given is not asked of it.
    let fits = metadata.len() <= 20 && [12, 16].contains(&iv.len()) && !ciphertext.is_empty();
    fits.then(|| Sealed { metadata, iv, tag: tag.to_vec(), ciphertext: ciphertext.to_vec() })
}

/// A key as it was when the request was let through.
pub struct Usable {
    pub arn: String,
    pub id: String,
    pub backing: Backing,
    /// For the proxy, where there is one.
    pub asker: Asker,
}

/// The key material, where the key is of a kind that tells: "present for symmetric encryption keys
/// with AWS_KMS or EXTERNAL origin" (KeyMetadata in the API Reference, of CurrentKeyMaterialId; the
/// front takes KeyMaterialId to be no different).
pub type MaterialId = Option<String>;

impl Usable {
    pub async fn seal(
        &self,
        context: &Context,
        plaintext: &[u8],
    ) -> Result<(Vec<u8>, MaterialId), KmsError> {
        note_dek(plaintext);
        match &self.backing {
            Backing::Materials(materials) => {
                let material = materials.lock().unwrap().last().cloned().unwrap();
                let header = header(&self.id, &material);
                let sealed = material.seal(&aad(&header, context), plaintext);
                Ok(([header, sealed].concat(), Some(HEXLOWER.encode(&material.id))))
            }
            Backing::External(External { own, proxy, key, .. }) => {
                let header = header(&self.id, own);
                let aad = aad(&header, context);
                let inner = own.seal(&aad, plaintext);
                let sealed = proxy.encrypt(&self.asker, key, &external_aad(&aad), &inner).await;
                let sealed = sealed.map_err(Failure::of_cryptography)?;
                Ok(([header, embed(&sealed)].concat(), None))
            }
        }
    }

    pub async fn open(
        &self,
        context: &Context,
        blob: &[u8],
    ) -> Result<(Vec<u8>, MaterialId), KmsError> {
        let padding = usize::from(*blob.get(FIXED).ok_or_else(invalid_ciphertext)?);
        let (header, sealed) =
            blob.split_at_checked(FIXED + 1 + padding).ok_or_else(invalid_ciphertext)?;
        let (wanted, aad) = (&header[36..68], aad(header, context));
        match &self.backing {
            Backing::Materials(materials) => {
                let material =
                    materials.lock().unwrap().iter().find(|m| m.id[..] == *wanted).cloned();
                let plaintext = material.and_then(|material| material.open(&aad, sealed));
                Ok((plaintext.ok_or_else(invalid_ciphertext)?, Some(HEXLOWER.encode(wanted))))
            }
            Backing::External(External { own, proxy, key, .. }) => {
                let sealed = embedded(sealed)
                    .filter(|_| own.id[..] == *wanted)
                    .ok_or_else(invalid_ciphertext)?;
                let inner = proxy.decrypt(&self.asker, key, &external_aad(&aad), &sealed).await;
                let inner = inner.map_err(Failure::of_cryptography)?;
                let plaintext = own
                    .open(&aad, &inner)
                    .ok_or_else(|| Failure::ForeignPlaintext.of_cryptography())?;
                Ok((plaintext, None))
            }
        }
    }
}
