//! Finds out what a failed decryption is to be blamed on: the wrapped key, or the token.
//!
//! Tokens answer to a wrong tag with codes that they have for their own trouble too (SoftHSM2:
//! `CKR_GENERAL_ERROR`). So something that certainly is good is decrypted, and then the wrapped key
//! once more: it is at fault if it fails as before while the token is well. Nothing that was found
//! before a decryption failed says anything of it. Anybody can write a wrapped key that fails, so
//! trials are bounded, and forged ones cannot double the load for long.
#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Ulong;
use waxseal::kek::KekErrorClass;

use super::cipher::{AAD, Sealed, TRIAL, decrypt, encrypt};
use super::codes::{classify, is_listed};
use super::keys::{KeyObject, Keys};
use crate::errors::{After, Failure};
use crate::format::Wrapped;
use crate::key::IvSource;

/// So many trials are made one after the other. One more is allowed after each [`EACH`].
const AT_ONCE: u32 = 1000;
const EACH: Duration = Duration::from_millis(10);

/// What is available to find it out with. Holds no secret.
#[derive(Default)]
pub(crate) struct Evidence(Mutex<State>);

#[derive(Default)]
struct State {
    /// Something that certainly could be unwrapped.
    sample: Option<Sample>,
    /// What was found last, and when that trial began.
    found: Option<(Instant, Finding)>,
    /// Trials that were made, less those that time has made good until then.
    made: u32,
    made_good: Option<Instant>,
}

struct Sample {
    key_id: Vec<u8>,
    aad: [u8; 32],
    sealed: Sealed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Finding {
    Well,
    Unwell,
    /// Nothing can be tried.
    Unknown,
}

/// A trial that ended without a finding.
enum Trial {
    /// Not with this key or in this way: another one may tell.
    Another,
    Unwell,
    /// The session or the handle of the key is gone, which is to be mended first.
    Lost(Failure),
}

impl From<Failure> for Trial {
    fn from(failure: Failure) -> Self {
        match (failure.after, failure.class) {
            (After::Reconnect | After::FindKey, _) => Self::Lost(failure),
            (_, KekErrorClass::Unavailable | KekErrorClass::Throttled) => Self::Unwell,
            _ => Self::Another,
        }
    }
}

impl Evidence {
    /// Keeps what a trial of this key encrypted.
    pub(crate) fn tried(&self, key: &KeyObject, sealed: Sealed) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.sample = Some(Sample { key_id: key.id.clone(), aad: AAD, sealed });
    }

    /// Keeps an entry that was unwrapped, if there is no sample yet.
    pub(crate) fn remember(&self, wrapped: Wrapped<'_>, aad: &[u8; 32]) {
        // Not kept waiting by a trial, whose wrapped key anybody may have written.
        let mut state = match self.0.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if state.sample.is_none() {
            let sealed = Sealed { iv: wrapped.iv.to_vec(), sealed: wrapped.sealed.to_vec() };
            let key_id = wrapped.key_id.to_vec();
            state.sample = Some(Sample { key_id, aad: *aad, sealed });
        }
    }

    /// Who is to blame for a decryption under `key` that failed so, at this time.
    pub(crate) fn blamed(
        &self,
        session: &Session,
        keys: &Keys,
        key: &KeyObject,
        way: Option<IvSource>,
        (failure, failed): (Failure, Instant),
    ) -> Blamed {
        let is_clear = matches!(failure.after, After::Reconnect | After::FindKey)
            || matches!(failure.class, KekErrorClass::Invalid | KekErrorClass::Denied);
        if is_clear {
            return Blamed::Said(failure);
        }
        // Held over the trial: calls that failed before it began share it.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let finding = match state.found.filter(|(began, _)| *began >= failed) {
            Some((_, finding)) => finding,
            None if !state.may_try() => {
                drop(state);
                return Blamed::Said(doubtful(failure, "too many wrapped keys failed lately"));
            }
            None => {
                let began = Instant::now();
                match state.find_out(session, keys, key, way) {
                    Ok(finding) => {
                        state.found = Some((began, finding));
                        finding
                    }
                    Err(lost) => return Blamed::Said(lost),
                }
            }
        };
        drop(state);
        match finding {
            Finding::Well => Blamed::WrappedKey(failure),
            Finding::Unwell => Blamed::Said(failure),
            Finding::Unknown => {
                let why = "there is no key that both encrypts and decrypts";
                Blamed::Said(doubtful(failure, why))
            }
        }
    }
}

/// Who is to blame.
pub(crate) enum Blamed {
    /// This is to be said.
    Said(Failure),
    /// The token was well since. If the wrapped key fails so twice more, it is damaged.
    WrappedKey(Failure),
}

impl Blamed {
    /// The failure of a wrapped key that was decrypted once more, which failed so again.
    pub(crate) fn again(before: Failure, again: Failure) -> Failure {
        if before != again || again.class == KekErrorClass::Throttled {
            // The token fails now in this way and now in that, or is gone. And no token says of a
            // wrapped key that it has too much to do.
            return again;
        }
        Failure::invalid(format!("{}: the token is well", again.message))
    }
}

/// Not counted as an outage, since anybody can write such a wrapped key.
fn doubtful(failure: Failure, why: &str) -> Failure {
    let text = format!(
        "{}: whether the token is unwell or the wrapped key is damaged cannot be told, since {why}",
        failure.message
    );
    Failure::new(failure.class, text).without_asking()
}

impl State {
    /// Counts a trial, unless too many were made lately.
    fn may_try(&mut self) -> bool {
        let since = self.made_good.get_or_insert_with(Instant::now).elapsed();
        let made_good = u32::try_from(since.as_millis() / EACH.as_millis()).unwrap_or(u32::MAX);
        if made_good > 0 {
            self.made = self.made.saturating_sub(made_good);
            self.made_good = Some(Instant::now());
        }
        let may = self.made < AT_ONCE;
        self.made += u32::from(may);
        may
    }

    /// Decrypts what is good: the sample, or something made now, under the same key at best.
    fn find_out(
        &mut self,
        session: &Session,
        keys: &Keys,
        key: &KeyObject,
        way: Option<IvSource>,
    ) -> Result<Finding, Failure> {
        let mut has_failed = false;
        if let Some(sample) = &self.sample
            && let Some(known) = keys.with_id(&sample.key_id).filter(|key| key.decrypts)
        {
            let way = way.unwrap_or(IvSource::Caller);
            match opens(session, known.handle, way, &sample.aad, &sample.sealed) {
                Ok(_) => return Ok(Finding::Well),
                Err(Trial::Lost(failure)) => return Err(failure),
                // The key may be another one now, with the same id. A new sample tells.
                Err(Trial::Another | Trial::Unwell) => has_failed = true,
            }
        }
        let others = keys.current().filter(|current| current.id != key.id);
        for key in [Some(key), others].into_iter().flatten().filter(|key| key.works_both_ways()) {
            match made(session, key.handle, way) {
                Ok(sealed) => {
                    self.sample = Some(Sample { key_id: key.id.clone(), aad: AAD, sealed });
                    return Ok(Finding::Well);
                }
                Err(Trial::Unwell) => return Ok(Finding::Unwell),
                Err(Trial::Lost(failure)) => return Err(failure),
                Err(Trial::Another) => {}
            }
        }
        // A sample that was good, and now is not, is not damaged. And another key says nothing of
        // one that is gone.
        if has_failed || session.get_attributes(key.handle, &[AttributeType::Id]).is_err() {
            return Ok(Finding::Unwell);
        }
        match by_another_key(session, way) {
            Ok(()) => Ok(Finding::Well),
            Err(Trial::Unwell) => Ok(Finding::Unwell),
            Err(Trial::Lost(failure)) => Err(failure),
            Err(Trial::Another) => Ok(Finding::Unknown),
        }
    }
}

fn opens(
    session: &Session,
    key: ObjectHandle,
    way: IvSource,
    aad: &[u8; 32],
    sealed: &Sealed,
) -> Result<(), Trial> {
    match decrypt(session, key, way, aad, &sealed.iv, &sealed.sealed) {
        Ok(_) => Ok(()),
        Err(error) => Err(classify("unwrap", &error).into()),
    }
}

/// Makes a sample under this key, and opens it.
fn made(session: &Session, key: ObjectHandle, way: Option<IvSource>) -> Result<Sealed, Trial> {
    const ALL: [IvSource; 4] =
        [IvSource::Caller, IvSource::Token, IvSource::Appended, IvSource::Message];
    let ways = match &way {
        Some(way) => std::slice::from_ref(way),
        None => &ALL,
    };
    let mut last = Trial::Another;
    for way in ways {
        let sealed = match encrypt(session, key, *way, &AAD, &TRIAL) {
            Ok(sealed) => sealed,
            Err(failure) => match failure.into() {
                Trial::Lost(failure) => return Err(Trial::Lost(failure)),
                trial => {
                    last = trial;
                    continue;
                }
            },
        };
        return match opens(session, key, *way, &AAD, &sealed) {
            Ok(()) => Ok(sealed),
            // It was made a moment ago, so it is not damaged.
            Err(Trial::Another) => Err(Trial::Unwell),
            Err(trial) => Err(trial),
        };
    }
    Err(last)
}

/// With a key that lives as long as the session, for a KEK that only decrypts.
fn by_another_key(session: &Session, way: Option<IvSource>) -> Result<(), Trial> {
    let template = [
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(Ulong::new(32)),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
    ];
    let key = session.generate_key(&Mechanism::AesKeyGen, &template).map_err(|error| {
        // Whatever else it says means that such a key cannot be made.
        if is_listed(&error) { classify("unwrap", &error).into() } else { Trial::Another }
    })?;
    let made = made(session, key, way);
    // What stays ends with the session.
    let _ = session.destroy_object(key);
    made.map(|_| ())
}
