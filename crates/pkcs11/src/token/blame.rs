//! Determines the cause of a failed decryption: the wrapped key, or the token.
//!
//! Tokens answer a wrong tag with codes that they also use for their own failures (SoftHSM2:
//! `CKR_GENERAL_ERROR`). So a known good value is decrypted, and then the wrapped key once more.
//! The wrapped key is at fault if it fails as before while the token is well. Findings from before
//! the failure say nothing about it. Anyone can write a wrapped key that fails, so trials are
//! bounded, and forged ones cannot double the load for long.
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

/// The maximum number of trials in a row. One more is allowed after each [`EACH`].
const AT_ONCE: u32 = 1000;
const EACH: Duration = Duration::from_millis(10);

/// The material for trials. Holds no secret.
#[derive(Default)]
pub(crate) struct Evidence(Mutex<State>);

#[derive(Default)]
struct State {
    /// An entry that is known to unwrap.
    sample: Option<Sample>,
    /// The last finding, and when its trial began.
    found: Option<(Instant, Finding)>,
    /// The number of trials made, less those that have been restored since.
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
    /// Inconclusive with this key or IV source. Another one may decide.
    Another,
    Unwell,
    /// The session or the handle of the key is gone, which has to be repaired first.
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
        // It does not wait for a trial, which anyone's forged wrapped key may have caused.
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

    /// Returns the cause of a decryption under `key` that failed this way, at this time.
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
        // Held during the trial, so that calls that failed before it began share it.
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

/// What is at fault.
pub(crate) enum Blamed {
    /// The failure to report.
    Said(Failure),
    /// The token has worked since. If the wrapped key fails the same way twice more, it is damaged.
    WrappedKey(Failure),
}

impl Blamed {
    /// Returns the failure of a wrapped key that failed again in the same way when it was decrypted
    /// once more.
    pub(crate) fn again(before: Failure, again: Failure) -> Failure {
        if before != again || again.class == KekErrorClass::Throttled {
            // The token fails in varying ways, or is gone. Being overloaded is never caused by a
            // wrapped key.
            return again;
        }
        Failure::invalid(format!("{}: the token is well", again.message))
    }
}

/// Not counted as an outage, since anyone can write such a wrapped key.
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

    /// Decrypts a known good value: the sample, or one made now, preferably under the same key.
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
                // The key may have been replaced under the same id. A new sample will show.
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
        // A sample that used to decrypt is not damaged. Another key says nothing about a missing
        // one.
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
        // Any other answer means that such a key cannot be made.
        if is_listed(&error) { classify("unwrap", &error).into() } else { Trial::Another }
    })?;
    let made = made(session, key, way);
    // Anything left behind ends with the session.
    let _ = session.destroy_object(key);
    made.map(|_| ())
}
