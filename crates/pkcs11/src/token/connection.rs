//! A session that is logged in and knows the keys. It stays on the thread that opened it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cryptoki::context::Pkcs11;
use cryptoki::error::RvError;
use cryptoki::session::{Session, SessionState};
use cryptoki::slot::Slot;

use super::codes::{classify, code_of, never_reached_the_token};
use super::keys::Keys;
use super::login::{LoggedIn, log_in};
use super::module::{InUse, Module, Restart, load};
use super::search::find;
use super::state::Token;
use crate::errors::{After, Failure};
use waxseal::kek::KekErrorClass;

/// How often a restart of the module is tried while the provider's other sessions are being closed.
const TRIES_TO_RESTART: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(5);

/// An open session.
pub(crate) struct Connection {
    session: Open,
    slot: Slot,
    keys: Keys,
    keys_read: Instant,
    /// The list of keys of all sessions that these belong to: see [`Token::learned`].
    list: u64,
}

/// Closes the session when it is dropped, unless its module was restarted since: the handle may
/// then belong to another session.
struct Open {
    module: Arc<Module>,
    epoch: u64,
    session: Option<Session>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if super::check_process().is_err() {
            return;
        }
        if let Some(session) = self.session.take()
            && let Ok(in_use) = self.module.enter()
            && in_use.epoch == self.epoch
        {
            // A session that fails to close is already gone.
            let _ = session.close();
        }
        self.module.closed();
    }
}

impl Open {
    fn session(&self) -> Result<&Session, Failure> {
        let gone = || Failure::unavailable("the session is closed").after(After::Reconnect);
        self.session.as_ref().ok_or_else(gone)
    }
}

impl Connection {
    /// Opens a session at the token, logs in and finds the keys. If the token is lost, the module
    /// is restarted if possible, and then it is tried once more. If other code finalised the
    /// module, it is retried until that is recorded, which other sessions in the same situation may
    /// briefly prevent.
    pub(crate) fn open(token: &Token) -> Result<Self, Failure> {
        let module = load(&token.module)?;
        let (mut ends, mut is_restarted) = (0, false);
        loop {
            let epoch = module.enter()?.epoch;
            match Self::open_at(&module, token) {
                Err(failure) if failure.is_ended && ends < TRIES_TO_RESTART => {
                    ends += 1;
                    if !module.was_ended(epoch) {
                        std::thread::sleep(BETWEEN_TRIES);
                    }
                }
                Err(failure) if failure.is_lost && !failure.is_ended && !is_restarted => {
                    is_restarted = true;
                    Self::restarted(&module, epoch, failure)?;
                }
                result => return result,
            }
        }
    }

    /// Restarts the module because of a lost token, or returns the failure to report instead.
    fn restarted(module: &Module, epoch: u64, failure: Failure) -> Result<(), Failure> {
        let is_denied = failure.class == KekErrorClass::Denied;
        let mut tries = 0;
        loop {
            match module.start_anew(epoch)? {
                Restart::Done => return Ok(()),
                // The token may be gone and not the key, while a denial would be final.
                Restart::Early if is_denied => {
                    let text = format!("{}, or the token is gone", failure.message);
                    return Err(Failure::unavailable(text));
                }
                // The provider's other sessions are about to be closed.
                Restart::Impossible if is_denied && tries < TRIES_TO_RESTART => {
                    tries += 1;
                    std::thread::sleep(BETWEEN_TRIES);
                }
                Restart::Impossible if is_denied && failure.is_bare => {
                    let text = format!("{}, or the token is gone", failure.message);
                    return Err(Failure::unavailable(text));
                }
                Restart::Early | Restart::Impossible => return Err(failure),
            }
        }
    }

    fn open_at(module: &Arc<Module>, token: &Token) -> Result<Self, Failure> {
        let in_use = module.enter()?;
        let was_seen = token.was_seen.load(Ordering::Relaxed);
        let (slot, info) = find(in_use.context, &token.name, was_seen)?;
        token.was_seen.store(true, Ordering::Relaxed);
        let session = open_session(in_use.context, slot)?;
        module.opened();
        let open = Open { module: module.clone(), epoch: in_use.epoch, session: Some(session) };
        let mut connection = Self::ready(open, &in_use, slot, token)?;
        connection.list = token.learned(&connection.keys, &info, in_use.epoch);
        Ok(connection)
    }

    fn ready(open: Open, in_use: &InUse<'_>, slot: Slot, token: &Token) -> Result<Self, Failure> {
        let session = open.session()?;
        if let Some(pins) = &token.pins {
            match log_in(in_use.context, slot, session, &**pins) {
                Ok(LoggedIn::Now) => drop(token.logins.fetch_add(1, Ordering::Relaxed)),
                Ok(LoggedIn::Before) => {}
                Err(failure) => {
                    token.failed_logins.fetch_add(1, Ordering::Relaxed);
                    return Err(failure);
                }
            }
        }
        let keys = Keys::find(session, &token.key, is_logged_in(session)?);
        // A module may not notice that its token is gone, and then find nothing. What it has found
        // since its start shows whether that is possible.
        let is_doubtful = token.seen_in.load(Ordering::Relaxed) == open.epoch;
        let keys = keys.map_err(|failure| if is_doubtful { failure.lost() } else { failure })?;
        Ok(Self { session: open, slot, keys, keys_read: Instant::now(), list: 0 })
    }

    /// Works with the session, while the module cannot be finalised.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&Session, &Keys) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let in_use = self.session.module.enter()?;
        if in_use.epoch != self.session.epoch {
            let text = "the module was restarted, which ended the session";
            return Err(Failure::unavailable(text).after(After::Reconnect));
        }
        work(self.session.session()?, &self.keys)
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Whether the keys should be read again: they are old, or another session has read others.
    pub(crate) fn has_old_keys(&self, token: &Token, max_age: Duration) -> bool {
        self.keys_read.elapsed() >= max_age || self.list != token.list()
    }

    /// Reads the keys again.
    pub(crate) fn find_keys(&mut self, token: &Token) -> Result<(), Failure> {
        let (slot, has_pin) = (self.slot, token.pins.is_some());
        let module = self.session.module.clone();
        let (keys, info) = self.with(|session, _| {
            let logged_in = is_logged_in(session)?;
            if has_pin && !logged_in {
                // Without it private keys are not visible, which does not mean that they are gone.
                return Err(Failure::unavailable("the login is gone").after(After::Reconnect));
            }
            // A new session determines why keys are missing: see `ready`.
            let keys = Keys::find(session, &token.key, logged_in)
                .map_err(|failure| failure.after(After::Reconnect))?;
            let info = module.enter()?.context.get_token_info(slot);
            Ok((keys, info.map_err(|error| classify("find the key", &error))?))
        })?;
        (self.keys, self.keys_read) = (keys, Instant::now());
        self.list = token.learned(&self.keys, &info, self.session.epoch);
        Ok(())
    }

    /// Records that other code of the process finalised the module.
    pub(crate) fn module_was_ended(&self) {
        // If it cannot be recorded now, the next session that opens records it.
        let _ = self.session.module.was_ended(self.session.epoch);
    }
}

fn is_logged_in(session: &Session) -> Result<bool, Failure> {
    let info = session.get_session_info().map_err(|error| classify("find the key", &error))?;
    Ok(matches!(info.session_state(), SessionState::RoUser | SessionState::RwUser))
}

/// Opens a read-only session, or a read-write one if the token has no others (AWS CloudHSM).
/// Nothing is written in it.
fn open_session(context: &Pkcs11, slot: Slot) -> Result<Session, Failure> {
    let failed = |error| classify("open a session", &error);
    match context.open_ro_session_no_drop(slot) {
        Ok(session) => Ok(session),
        Err(error) if never_reached_the_token(&error) => Err(failed(error)),
        Err(error) if code_of(&error) == Some(RvError::SessionCount) => Err(failed(error)),
        Err(_) => context.open_rw_session_no_drop(slot).map_err(failed),
    }
}
