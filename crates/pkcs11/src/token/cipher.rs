//! AES-GCM in the token, with the IV from the token's IV source.
#![forbid(unsafe_code)]

use cryptoki::error::{Error, Result};
use cryptoki::mechanism::aead::{GcmMessageParams, GcmParams, GeneratorFunction};
use cryptoki::mechanism::{Mechanism, MessageParam};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::types::Ulong;
use zeroize::Zeroizing;

use super::codes::classify;
use super::keys::KeyObject;
use crate::errors::{After, Failure};
use crate::key::IvSource;
use waxseal::kek::KekErrorClass;

const IV: usize = 12;
const TAG: usize = 16;
const TAG_BITS: Ulong = Ulong::new(128);

/// The output of a token: the IV, and the ciphertext with tag.
pub(crate) struct Sealed {
    pub(crate) iv: Vec<u8>,
    pub(crate) sealed: Vec<u8>,
}

fn random_iv() -> std::result::Result<[u8; IV], Failure> {
    let mut iv = [0; IV];
    getrandom::fill(&mut iv).map_err(|error| {
        let text = format!("wrap: the random number generator failed: {error}");
        Failure::unavailable(text).without_asking()
    })?;
    Ok(iv)
}

/// Returns the error for a token that no longer treats the IV as it did in the test. Nothing is
/// wrapped.
fn odd(what: &str) -> Failure {
    Failure::misconfigured(format!("wrap: the token {what}"))
}

/// Encrypts, and refuses a result whose IV does not come from `source`.
pub(crate) fn encrypt(
    session: &Session,
    key: ObjectHandle,
    source: IvSource,
    aad: &[u8],
    plaintext: &[u8],
) -> std::result::Result<Sealed, Failure> {
    let failed = |error: Error| classify("wrap", &error);
    let whole = plaintext.len() + TAG;
    let sealed = match source {
        IvSource::Caller | IvSource::Token | IvSource::Appended => {
            let made_here = match source {
                IvSource::Token => [0; IV],
                _ => random_iv()?,
            };
            let mut iv = made_here;
            let mechanism =
                Mechanism::AesGcm(GcmParams::new(&mut iv, aad, TAG_BITS).map_err(failed)?);
            let mut output = session.encrypt(&mechanism, key, plaintext).map_err(failed)?;
            match source {
                IvSource::Appended => {
                    // The longest IV that fits is 16 bytes, as the shortest is 12.
                    if !(whole + 12..=whole + 16).contains(&output.len()) {
                        return Err(odd("appends no IV to the ciphertext"));
                    }
                    let iv = output.split_off(whole);
                    Sealed { iv, sealed: output }
                }
                IvSource::Caller if iv != made_here => {
                    return Err(odd("replaced the caller's IV with its own"));
                }
                _ => Sealed { iv: iv.to_vec(), sealed: output },
            }
        }
        IvSource::Message => {
            let (mut iv, mut tag) = ([0; IV], [0; TAG]);
            let mut output = {
                let random = GeneratorFunction::GenerateRandom;
                let params = GcmMessageParams::new(&mut iv, Ulong::new(0), random, &mut tag)
                    .map_err(failed)?;
                let begun = session.message_encrypt_init(&Mechanism::AesGcmMessage(params), key);
                begun.map_err(failed)?;
                let output =
                    session.encrypt_message(&MessageParam::AesGcmMessage(params), aad, plaintext);
                // Ends the operation, whatever its outcome.
                let ended = session.message_encrypt_final();
                let output = output.map_err(failed)?;
                ended.map_err(failed)?;
                output
            };
            output.extend_from_slice(&tag);
            Sealed { iv: iv.to_vec(), sealed: output }
        }
    };
    if sealed.iv.iter().all(|byte| *byte == 0) {
        return Err(odd("used an IV of zeros"));
    }
    if sealed.sealed.len() != whole {
        return Err(odd("returned a ciphertext of another length than ciphertext and tag have"));
    }
    if sealed.sealed.get(..plaintext.len()) == Some(plaintext) {
        return Err(odd("returned the DEK in the clear"));
    }
    Ok(sealed)
}

/// Decrypts. The caller decides what an error means: it may be about the ciphertext or the token.
pub(crate) fn decrypt(
    session: &Session,
    key: ObjectHandle,
    source: IvSource,
    aad: &[u8],
    iv: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>> {
    let mut iv = iv.to_vec();
    if source != IvSource::Message {
        let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, aad, TAG_BITS)?);
        return session.decrypt(&mechanism, key, sealed).map(Zeroizing::new);
    }
    let Some((ciphertext, tag)) = sealed.split_last_chunk::<TAG>() else {
        return Err(Error::InvalidValue);
    };
    let mut tag = *tag;
    let none = GeneratorFunction::NoGenerate;
    let params = GcmMessageParams::new(&mut iv, Ulong::new(0), none, &mut tag)?;
    session.message_decrypt_init(&Mechanism::AesGcmMessage(params), key)?;
    let output = session.decrypt_message(&MessageParam::AesGcmMessage(params), aad, ciphertext);
    let output = output.map(Zeroizing::new);
    let ended = session.message_decrypt_final();
    let output = output?;
    ended.map(|()| output)
}

/// The plaintext and the additional data of trials.
pub(super) const TRIAL: [u8; 32] = *b"waxseal: how does this token do?";
pub(super) const AAD: [u8; 32] = [0xA5; 32];
const OTHER_AAD: [u8; 32] = [0x5A; 32];

/// Tries the IV sources, or the chosen one, and returns the first that works: the plaintext comes
/// back, and does not under other additional data.
pub(crate) fn try_out(
    session: &Session,
    key: &KeyObject,
    chosen: Option<IvSource>,
) -> std::result::Result<(IvSource, Sealed), Failure> {
    const ALL: [IvSource; 4] =
        [IvSource::Caller, IvSource::Token, IvSource::Appended, IvSource::Message];
    let ways = match &chosen {
        Some(chosen) => std::slice::from_ref(chosen),
        None => &ALL,
    };
    let mut refusals: Vec<(&IvSource, Failure)> = Vec::new();
    for way in ways {
        match try_one(session, key, *way) {
            Ok(sealed) => return Ok((*way, sealed)),
            Err(failure) if matches!(failure.after, After::Reconnect | After::FindKey) => {
                return Err(failure);
            }
            // A token may refuse an IV source with any code.
            Err(failure) => refusals.push((way, failure)),
        }
    }
    let texts: Vec<_> =
        refusals.iter().map(|(way, failure)| format!("{way}: {}", failure.message)).collect();
    let text = format!("no way to an IV works with this token: {}", texts.join("; "));
    let any = |class| refusals.iter().any(|(_, failure)| failure.class == class);
    Err(if refusals.iter().all(|(_, failure)| failure.class == KekErrorClass::Denied) {
        Failure::denied(text)
    } else if any(KekErrorClass::Unavailable) {
        Failure::unavailable(text).after(After::Drop)
    } else if any(KekErrorClass::Throttled) {
        Failure::new(KekErrorClass::Throttled, text)
    } else {
        Failure::misconfigured(text)
    })
}

fn try_one(
    session: &Session,
    key: &KeyObject,
    way: IvSource,
) -> std::result::Result<Sealed, Failure> {
    let sealed = encrypt(session, key.handle, way, &AAD, &TRIAL)?;
    let open = |aad: &[u8]| decrypt(session, key.handle, way, aad, &sealed.iv, &sealed.sealed);
    let opens = || match open(&AAD) {
        Ok(opened) if *opened == TRIAL => Ok(()),
        Ok(_) => Err(odd("decrypts to something else")),
        Err(error) => {
            let failure = classify("unwrap", &error);
            match failure.after {
                After::Reconnect | After::FindKey => Err(failure),
                _ if failure.class == KekErrorClass::Denied => Err(failure),
                _ => Err(odd(&format!("does not open what it encrypted: {}", failure.message))),
            }
        }
    };
    opens()?;
    if open(&OTHER_AAD).is_ok() {
        return Err(odd("takes any additional data: it does not bind the encryption context"));
    }
    // That was a refusal, and the session still works.
    opens()?;
    // Decrypting again proves nothing about the IV: a token that uses its own IV both times would
    // decrypt it too.
    let again = encrypt(session, key.handle, way, &AAD, &TRIAL)?;
    if again.iv == sealed.iv {
        return Err(odd("used one IV twice"));
    }
    if again.sealed == sealed.sealed {
        return Err(odd("does not use the IV that it is given"));
    }
    Ok(sealed)
}
