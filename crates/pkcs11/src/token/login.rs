//! Logins, which belong to the process: who logged in first logged in for all providers.
//!
//! A wrong PIN is never given twice, whichever provider has it and whatever happened in between,
//! since a token locks after a few.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use cryptoki::context::Pkcs11;
use cryptoki::error::RvError;
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::codes::{blames_the_pin, classify, code_of, never_reached_the_token};
use super::module::Module;
use crate::errors::Failure;
use crate::pin::Pin;

/// The first pause after a login whose failure did not say whether the PIN was counted as wrong.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What is known of the logins at each token of a module.
#[derive(Default)]
pub(crate) struct Logins(HashMap<String, Tries>);

#[derive(Default)]
struct Tries {
    /// Hashes of PINs that it refused, and the code.
    refused: Vec<([u8; 32], String)>,
    /// When a login failed in a way that may have counted as a wrong PIN, and the pause after it.
    doubtful: Option<(Instant, Duration)>,
}

/// What a login did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LoggedIn {
    Now,
    Before,
}

/// The name of a token that survives its removal, and a new slot.
pub(crate) fn name_of(info: &TokenInfo) -> String {
    format!("{}/{}/{}", info.manufacturer_id(), info.serial_number(), info.label())
}

/// Logs the session in, and so all sessions of the process at this token. It calls `C_Login` at
/// most once.
pub(crate) fn log_in(
    module: &Module,
    context: &Pkcs11,
    slot: Slot,
    session: &Session,
    pin: &Pin,
) -> Result<LoggedIn, Failure> {
    // Held over the login: of two providers with the same wrong PIN, one tries it.
    let mut logins = module.logins.lock().unwrap_or_else(PoisonError::into_inner);
    let state = session.get_session_info().map_err(|error| classify("log in", &error))?;
    match state.session_state() {
        SessionState::RoUser | SessionState::RwUser => return Ok(LoggedIn::Before),
        SessionState::RoPublic | SessionState::RwPublic | SessionState::RwSecurityOfficer => {}
    }
    let info = context.get_token_info(slot).map_err(|error| classify("log in", &error))?;
    let token = logins.0.entry(name_of(&info)).or_default();
    let pin = pin.read()?;
    let hash = hash_of(&pin)?;
    if let Some((_, code)) = token.refused.iter().find(|(refused, _)| *refused == hash) {
        return Err(not_again(code));
    }
    if let Some((at, pause)) = token.doubtful
        && at.elapsed() < pause
    {
        let text = "log in: the last login failed, and might have counted as a wrong PIN; it is \
                    not tried again yet";
        return Err(Failure::unavailable(text).without_asking());
    }
    check_flags(&info)?;
    let secret = AuthPin::new(pin.as_str().into());
    let Err(error) = session.login(UserType::User, Some(&secret)) else {
        token.doubtful = None;
        return Ok(LoggedIn::Now);
    };
    if code_of(&error) == Some(RvError::UserAlreadyLoggedIn) {
        return Ok(LoggedIn::Before);
    }
    let failure = classify("log in", &error);
    if blames_the_pin(&error) {
        token.refused.push((hash, failure.message.clone()));
        return Err(failure);
    }
    let counts = |info: TokenInfo| info.user_pin_count_low();
    if !counts(info) && context.get_token_info(slot).is_ok_and(counts) {
        let text = format!("{}; the token counted it as a wrong PIN", failure.message);
        token.refused.push((hash, text.clone()));
        return Err(Failure::misconfigured(text));
    }
    // Somebody else's login is in the way: no PIN was looked at.
    let is_occupied = code_of(&error) == Some(RvError::UserAnotherAlreadyLoggedIn);
    if !never_reached_the_token(&error) && !is_occupied {
        let pause = token.doubtful.map_or(FIRST_PAUSE, |(_, pause)| pause.saturating_mul(2));
        token.doubtful = Some((Instant::now(), pause.min(LONGEST_PAUSE)));
    }
    Err(failure)
}

/// Forgets the PINs that the tokens of the module refused.
pub(crate) fn forget_refused(module: &Module) {
    let mut logins = module.logins.lock().unwrap_or_else(PoisonError::into_inner);
    logins.0.clear();
}

fn not_again(said: &str) -> Failure {
    let text = format!("{said}; this PIN was refused before, and is not tried again");
    Failure::misconfigured(text).without_asking()
}

/// What the token says of its PIN, before it is given one.
fn check_flags(info: &TokenInfo) -> Result<(), Failure> {
    if info.user_pin_locked() {
        let text = "log in: the PIN is locked after too many wrong ones; the security officer has \
                    to set it anew";
        return Err(Failure::misconfigured(text));
    }
    if info.user_pin_final_try() {
        let text = "log in: the next wrong PIN locks the token, so none is tried; log in once by \
                    hand, with the right one";
        return Err(Failure::misconfigured(text));
    }
    Ok(())
}

/// A hash under a salt of this process: enough to know a PIN again.
fn hash_of(pin: &Zeroizing<String>) -> Result<[u8; 32], Failure> {
    static SALT: std::sync::OnceLock<[u8; 32]> = std::sync::OnceLock::new();
    let salt = match SALT.get() {
        Some(salt) => salt,
        None => {
            let mut salt = [0; 32];
            getrandom::fill(&mut salt).map_err(|error| {
                let text = format!("log in: the random number generator failed: {error}");
                Failure::unavailable(text).without_asking()
            })?;
            SALT.get_or_init(|| salt)
        }
    };
    Ok(Sha256::new_with_prefix(salt).chain_update(pin.as_bytes()).finalize().into())
}
