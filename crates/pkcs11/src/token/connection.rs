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

/// How long a new start of the module waits for the provider's other sessions to be closed.
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

/// Closes the session when it is dropped, unless its module was started anew since: the handle may
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
            // What fails to close is gone already.
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
    /// Opens a session at the token, logs in and finds the keys. Where the token is lost, the
    /// module is started anew if that is possible, and then it is tried once more. Where other code
    /// ended the module, it is tried until the end is noted: other sessions that meet the same end
    /// keep it from being noted for a moment.
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

    /// Starts the module anew for the sake of a lost token, or returns what to say instead.
    fn restarted(module: &Module, epoch: u64, failure: Failure) -> Result<(), Failure> {
        let is_denied = failure.class == KekErrorClass::Denied;
        let mut tries = 0;
        loop {
            match module.start_anew(epoch)? {
                Restart::Done => return Ok(()),
                // It may be the token that is gone, and not the key. A denial would be final.
                Restart::Early if is_denied => {
                    let text = format!("{}, or the token is gone", failure.message);
                    return Err(Failure::unavailable(text));
                }
                // The other sessions of the provider are about to be closed.
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
        // A module may not notice that its token is gone, and then find nothing there. What it
        // found since its start shows whether it may be so.
        let is_doubtful = token.seen_in.load(Ordering::Relaxed) == open.epoch;
        let keys = keys.map_err(|failure| if is_doubtful { failure.lost() } else { failure })?;
        Ok(Self { session: open, slot, keys, keys_read: Instant::now(), list: 0 })
    }

    /// Works with the session, while nobody ends the module.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&Session, &Keys) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let in_use = self.session.module.enter()?;
        if in_use.epoch != self.session.epoch {
            let text = "the module was started anew, and the session ended with that";
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
                // Private keys are not seen without it, which does not mean that they are gone.
                return Err(Failure::unavailable("the login is gone").after(After::Reconnect));
            }
            // A new session finds out what became of keys that are not there: see `ready`.
            let keys = Keys::find(session, &token.key, logged_in)
                .map_err(|failure| failure.after(After::Reconnect))?;
            let info = module.enter()?.context.get_token_info(slot);
            Ok((keys, info.map_err(|error| classify("find the key", &error))?))
        })?;
        (self.keys, self.keys_read) = (keys, Instant::now());
        self.list = token.learned(&self.keys, &info, self.session.epoch);
        Ok(())
    }

    /// Notes that other code of the process ended the module.
    pub(crate) fn module_was_ended(&self) {
        // If it cannot be noted now, who opens the next session notes it.
        let _ = self.session.module.was_ended(self.session.epoch);
    }
}

fn is_logged_in(session: &Session) -> Result<bool, Failure> {
    let info = session.get_session_info().map_err(|error| classify("find the key", &error))?;
    Ok(matches!(info.session_state(), SessionState::RoUser | SessionState::RwUser))
}

/// A read-only session, or where the token has none (AWS CloudHSM) one that may write. Nothing is
/// written in it.
fn open_session(context: &Pkcs11, slot: Slot) -> Result<Session, Failure> {
    let failed = |error| classify("open a session", &error);
    match context.open_ro_session_no_drop(slot) {
        Ok(session) => Ok(session),
        Err(error) if never_reached_the_token(&error) => Err(failed(error)),
        Err(error) if code_of(&error) == Some(RvError::SessionCount) => Err(failed(error)),
        Err(_) => context.open_rw_session_no_drop(slot).map_err(failed),
    }
}
