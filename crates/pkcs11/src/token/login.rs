//! Logins, which belong to the process: the first login counts for all providers.
#![forbid(unsafe_code)]

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use waxseal::kek::KekErrorClass;

use super::codes::{blames_the_pin, classify, code_of, leaves_the_pin_alone};
use crate::errors::Failure;
use crate::ledger::{Outcome, PinGiver};

/// The outcome of a login.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LoggedIn {
    Now,
    Before,
}

/// The name of a token that survives its removal, and a new slot.
fn name_of(info: &TokenInfo) -> String {
    format!("{}/{}/{}", info.manufacturer_id(), info.serial_number(), info.label())
}

fn is_logged_in(session: &Session) -> Result<bool, Failure> {
    let info = session.get_session_info().map_err(|error| classify("log in", &error))?;
    Ok(matches!(info.session_state(), SessionState::RoUser | SessionState::RwUser))
}

/// Logs the session in, and so all sessions of the process at this token. It calls `C_Login` at
/// most once.
pub(crate) fn log_in(
    context: &Pkcs11,
    slot: Slot,
    session: &Session,
    pins: &dyn PinGiver,
) -> Result<LoggedIn, Failure> {
    if is_logged_in(session)? {
        return Ok(LoggedIn::Before);
    }
    let info = || context.get_token_info(slot).map_err(|error| classify("log in", &error));
    let first = info()?;
    let attempt = pins.begin(&name_of(&first), first.user_pin_count_low())?;
    // It may have waited for another caller that logged in.
    let before = match is_logged_in(session) {
        Ok(true) => {
            attempt.settle(Outcome::NotTried)?;
            return Ok(LoggedIn::Before);
        }
        Ok(false) => info().and_then(|info| check_flags(&info).map(|()| info)),
        Err(failure) => Err(failure),
    };
    let before = match before {
        Ok(before) => before,
        Err(failure) => {
            attempt.settle(Outcome::NotTried)?;
            return Err(failure);
        }
    };
    let secret = AuthPin::new(attempt.pin().into());
    let tried = session.login(UserType::User, Some(&secret));
    drop(secret);
    let Err(error) = tried else {
        attempt.settle(Outcome::LoggedIn)?;
        return Ok(LoggedIn::Now);
    };
    if code_of(&error) == Some(RvError::UserAlreadyLoggedIn) {
        attempt.settle(Outcome::NotTried)?;
        return Ok(LoggedIn::Before);
    }
    let (outcome, failure) = judged(context, slot, session, &before, &error);
    attempt.settle(outcome)?;
    Err(failure)
}

/// Returns what a failed login says about the PIN.
fn judged(
    context: &Pkcs11,
    slot: Slot,
    session: &Session,
    before: &TokenInfo,
    error: &Error,
) -> (Outcome, Failure) {
    let failure = classify("log in", error);
    let said = failure.message.clone();
    if blames_the_pin(error) {
        return (Outcome::Refused(said), failure);
    }
    if leaves_the_pin_alone(error) {
        return (Outcome::NotTried, failure);
    }
    let counts = |info: &TokenInfo| {
        info.user_pin_count_low() || info.user_pin_final_try() || info.user_pin_locked()
    };
    let is_unavailable = |error: &Error| {
        let class = classify("log in", error).class;
        matches!(class, KekErrorClass::Unavailable | KekErrorClass::Throttled)
    };
    let is_down = match context.get_token_info(slot) {
        Ok(after) if counts(&after) && !counts(before) => {
            let text = format!("{said}; the token counted it as a wrong PIN");
            return (Outcome::Refused(text.clone()), Failure::misconfigured(text));
        }
        Ok(_) => session.get_session_info().is_err_and(|error| is_unavailable(&error)),
        Err(error) => is_unavailable(&error),
    };
    (Outcome::Failed { said, is_down }, failure)
}

/// Checks what the token says about its PIN, before a login.
fn check_flags(info: &TokenInfo) -> Result<(), Failure> {
    if info.user_pin_locked() {
        let text = "log in: the PIN is locked after too many wrong ones; the security officer has \
                    to reset it";
        return Err(Failure::misconfigured(text));
    }
    if info.user_pin_final_try() {
        let text = "log in: the next wrong PIN locks the token, so none is tried; log in once by \
                    hand, with the right one";
        return Err(Failure::misconfigured(text));
    }
    Ok(())
}
