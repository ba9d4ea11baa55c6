//! Keys that are real: AES-256-GCM, and RSA-OAEP with SHA-256.

use rand::Rng;
use std::sync::Arc;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{
    KeyPair as RsaKeyPair, KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use aws_lc_rs::signature::KeyPair;
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::outputs::note_dek;

pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// The key of one version.
#[derive(Clone)]
pub enum Material {
    /// `oct-HSM`, 256 bits.
    Aes(Arc<[u8; 32]>),
    /// `RSA-HSM`, 2,048 bits.
    Rsa(Arc<PrivateDecryptingKey>),
}

impl Material {
    pub fn aes() -> Self {
        Self::Aes(Arc::new(random()))
    }

    pub fn rsa() -> Self {
        Self::Rsa(Arc::new(PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap()))
    }

    /// Of the same kind.
    pub fn another(&self) -> Self {
        match self {
            Self::Aes(_) => Self::aes(),
            Self::Rsa(_) => Self::rsa(),
        }
    }

    /// `kty` of its JSON Web Key.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Aes(_) => "oct-HSM",
            Self::Rsa(_) => "RSA-HSM",
        }
    }

    /// Of a JSON Web Key what everybody who may read the key gets: of RSA the public key.
    pub fn public(&self) -> Value {
        match self {
            Self::Aes(_) => json!({}),
            Self::Rsa(key) => {
                let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&**key).unwrap();
                let pair = RsaKeyPair::from_pkcs8(der.as_ref()).unwrap();
                // RFC 8017, A.1.1: a sequence of two integers, n of 257 bytes with a zero before
                // it.
                let public = pair.public_key().as_ref().to_vec();
                assert_eq!((public.len(), &public[4..9]), (270, &[2, 0x82, 1, 1, 0][..]));
                assert_eq!(&public[265..267], [2, 3]);
                let encoded = |bytes: &[u8]| json!(BASE64URL_NOPAD.encode(bytes));
                json!({ "n": encoded(&public[9..265]), "e": encoded(&public[267..]) })
            }
        }
    }

    /// Ciphertext, iv and tag. "The Managed HSM makes the initialization vector" is what the SDKs'
    /// own comments say of A256GCM; the reference leaves it open.
    pub fn encrypt(&self, plaintext: &[u8], aad: &[u8]) -> Option<(Vec<u8>, [u8; 12], [u8; 16])> {
        let Self::Aes(key) = self else { return None };
        note_dek(plaintext);
        let iv: [u8; 12] = random();
        let mut text = plaintext.to_vec();
        let cipher = Aes256Gcm::new_from_slice(&key[..]).unwrap();
        let tag = cipher
            .encrypt_inout_detached(&Nonce::from(iv), aad, text.as_mut_slice().into())
            .unwrap();
        Some((text, iv, tag.into()))
    }

    pub fn decrypt(&self, text: &[u8], iv: &[u8], tag: &[u8], aad: &[u8]) -> Option<Vec<u8>> {
        let Self::Aes(key) = self else { return None };
        let iv: [u8; 12] = iv.try_into().ok()?;
        let tag: [u8; 16] = tag.try_into().ok()?;
        let mut text = text.to_vec();
        let cipher = Aes256Gcm::new_from_slice(&key[..]).unwrap();
        cipher
            .decrypt_inout_detached(
                &Nonce::from(iv),
                aad,
                text.as_mut_slice().into(),
                &Tag::from(tag),
            )
            .ok()?;
        Some(text)
    }

    /// What anybody can do who has the public key.
    pub fn wrap(&self, plaintext: &[u8]) -> Option<Vec<u8>> {
        let Self::Rsa(key) = self else { return None };
        note_dek(plaintext);
        let key = OaepPublicEncryptingKey::new(key.public_key()).unwrap();
        let mut text = vec![0; key.ciphertext_size()];
        key.encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut text, None).ok()?;
        Some(text)
    }

    pub fn unwrap(&self, text: &[u8]) -> Option<Vec<u8>> {
        let Self::Rsa(key) = self else { return None };
        let key = OaepPrivateDecryptingKey::new((**key).clone()).unwrap();
        let mut plaintext = vec![0; key.min_output_size()];
        Some(key.decrypt(&OAEP_SHA256_MGF1SHA256, text, &mut plaintext, None).ok()?.to_vec())
    }
}
