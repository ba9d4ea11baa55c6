//! What a call does in a session: wrap, unwrap, look at the key.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cryptoki::session::Session;
use cryptoki::slot::TokenInfo;
use waxseal::Dek;
use waxseal::kek::UnwrappedDek;
use zeroize::Zeroizing;

use super::blame::Evidence;
use super::cipher::{decrypt, encrypt, try_out};
use super::codes::classify;
use super::connection::Connection;
use super::keys::{KeyName, KeyObject, Keys};
use super::search::TokenName;
use crate::errors::Failure;
use crate::format::Wrapped;
#[cfg(unix)]
use crate::helper::Helper;
use crate::key::{IvSource, KeyInfo, Versions, hex};
#[cfg(unix)]
use crate::ledger::Outcome;
use crate::ledger::PinGiver;

/// Where the KEK is and what is known of it. All sessions of a provider share it.
pub(crate) struct Token {
    pub(crate) module: PathBuf,
    pub(crate) name: TokenName,
    pub(crate) key: KeyName,
    /// Where logins take the PIN from. `None`: nobody is logged in.
    pub(crate) pins: Option<Box<dyn PinGiver>>,
    pub(crate) chosen: Option<IvSource>,
    pub(crate) key_max_age: Duration,
    /// The program that has the module. `None`: this process has it.
    #[cfg(unix)]
    pub(crate) helper: Option<Helper>,
    /// The token was found before.
    pub(crate) was_seen: AtomicBool,
    /// The start of the module since which the keys were found last.
    pub(crate) seen_in: AtomicU64,
    pub(crate) logins: AtomicU64,
    pub(crate) failed_logins: AtomicU64,
    known: ArcSwapOption<Known>,
    lists: AtomicU64,
    /// The way to an IV that was tried out, for as long as the provider lives.
    way: Mutex<Option<IvSource>>,
    evidence: Evidence,
}

/// What was read of the keys last.
pub(crate) struct Known {
    pub(crate) current: Vec<u8>,
    /// In hexadecimal digits, the current one last.
    pub(crate) versions: Vec<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) has_generator: bool,
}

/// What a wrap needs.
pub(crate) struct Wrapping {
    pub(crate) aad: [u8; 32],
    /// On the heap, since what is moved leaves a copy behind.
    pub(crate) dek: Zeroizing<Vec<u8>>,
}

impl Token {
    pub(crate) fn new(
        module: PathBuf,
        name: TokenName,
        (label, id, versions): (String, Option<Vec<u8>>, Versions),
        pins: Option<Box<dyn PinGiver>>,
        chosen: Option<IvSource>,
        key_max_age: Duration,
    ) -> Self {
        Self {
            module,
            name,
            key: KeyName { label, id, versions },
            pins,
            chosen,
            key_max_age,
            #[cfg(unix)]
            helper: None,
            was_seen: AtomicBool::new(false),
            seen_in: AtomicU64::new(0),
            logins: AtomicU64::new(0),
            failed_logins: AtomicU64::new(0),
            known: ArcSwapOption::empty(),
            lists: AtomicU64::new(0),
            way: Mutex::new(None),
            evidence: Evidence::default(),
        }
    }

    /// Has a helper do it all.
    #[cfg(unix)]
    pub(crate) fn with_helper(mut self, helper: Option<Helper>) -> Self {
        self.helper = helper;
        self
    }

    /// Whether this is the id of the key that wraps, as far as it is known.
    pub(crate) fn is_current(&self, key_id: &[u8]) -> Option<bool> {
        self.known.load().as_ref().map(|known| known.current == key_id)
    }

    /// Keeps what a session read of the keys and the token. Returns the number of the list, which
    /// changes with the keys, so that the other sessions read them too.
    pub(crate) fn learned(&self, keys: &Keys, info: &TokenInfo, epoch: u64) -> u64 {
        self.seen_in.store(epoch, Ordering::Relaxed);
        let Some(current) = keys.current() else { return self.list() };
        let mut notes = keys.notes();
        if info.user_pin_count_low() {
            notes.push("a wrong PIN was given to the token since the last login".to_owned());
        }
        if info.user_pin_to_be_changed() {
            notes.push("the PIN has to be changed".to_owned());
        }
        if info.error_state() {
            notes.push("the token says that a self-test failed".to_owned());
        }
        let known = Known {
            current: current.id.clone(),
            versions: keys.ids().map(hex).collect(),
            notes,
            has_generator: info.rng(),
        };
        self.adopt(known)
    }

    /// Keeps what was read of the keys, here or in a helper. Returns the number of the list.
    pub(crate) fn adopt(&self, known: Known) -> u64 {
        let is_same =
            self.known.load().as_ref().is_some_and(|before| {
                before.versions == known.versions && before.notes == known.notes
            });
        self.known.store(Some(Arc::new(known)));
        if is_same { self.list() } else { self.lists.fetch_add(1, Ordering::SeqCst) + 1 }
    }

    /// The number of the list of keys that was read last.
    pub(crate) fn list(&self) -> u64 {
        self.lists.load(Ordering::SeqCst)
    }

    pub(crate) fn known(&self) -> Option<Arc<Known>> {
        self.known.load_full()
    }

    pub(crate) fn way(&self) -> Option<IvSource> {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps to the way that a helper found. `false` if there was another one before.
    #[cfg(unix)]
    pub(crate) fn pin_way(&self, found: Option<IvSource>) -> bool {
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_some() && way.is_none() {
            *way = found;
        }
        found.is_none() || *way == found
    }

    /// Counts a login that a helper tried.
    #[cfg(unix)]
    pub(crate) fn count_login(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::LoggedIn => &self.logins,
            Outcome::NotTried => return,
            Outcome::Refused(_) | Outcome::Failed { .. } => &self.failed_logins,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Tries out how the token does it, once, and keeps to that.
    fn tried(&self, session: &Session, keys: &Keys) -> Result<Option<IvSource>, Failure> {
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if way.is_some() {
            return Ok(*way);
        }
        let Some(key) = keys.current().filter(|key| key.encrypts) else { return Ok(None) };
        if !key.decrypts {
            // A key for wrapping only: nothing can be tried.
            *way = self.chosen;
            return Ok(*way);
        }
        let (found, sealed) = try_out(session, key, self.chosen)?;
        self.evidence.tried(key, sealed);
        *way = Some(found);
        Ok(*way)
    }

    fn check_age(&self, connection: &mut Connection) -> Result<(), Failure> {
        if connection.has_old_keys(self, self.key_max_age) {
            connection.find_keys(self)?;
        }
        Ok(())
    }

    /// Wraps under the current key. Returns the bytes of the entry.
    pub(crate) fn wrap(
        &self,
        connection: &mut Connection,
        wrapping: &Wrapping,
    ) -> Result<Vec<u8>, Failure> {
        self.check_age(connection)?;
        connection.with(|session, keys| {
            let way = self.tried(session, keys)?;
            let key = keys.current().ok_or_else(|| Failure::denied("wrap: the key is gone"))?;
            let way = way.ok_or_else(|| no_way(key))?;
            let sealed = encrypt(session, key.handle, way, &wrapping.aad, &wrapping.dek)?;
            let wrapped =
                Wrapped { key_id: &key.id, iv: &sealed.iv, sealed: &sealed.sealed }.to_bytes();
            wrapped.ok_or_else(|| {
                Failure::misconfigured("wrap: the token made an IV of an odd length")
            })
        })
    }

    /// Unwraps an entry, which anybody may have written.
    pub(crate) fn unwrap(
        &self,
        connection: &mut Connection,
        aad: &[u8; 32],
        bytes: &[u8],
    ) -> Result<UnwrappedDek, Failure> {
        let wrapped = Wrapped::read(bytes).ok_or_else(not_ours)?;
        // A key that is not known may be new.
        if connection.keys().with_id(wrapped.key_id).is_none() {
            connection.find_keys(self)?;
        }
        connection.with(|session, keys| {
            let Some(key) = keys.with_id(wrapped.key_id) else {
                let text = format!("unwrap: no key has the id {:?}", hex(wrapped.key_id));
                return Err(Failure::denied(text));
            };
            let known = self.tried(session, keys)?.or(self.chosen);
            let way = known.unwrap_or(IvSource::Caller);
            match decrypt(session, key.handle, way, aad, wrapped.iv, wrapped.sealed) {
                Ok(dek) => {
                    self.evidence.remember(wrapped, aad);
                    Ok(UnwrappedDek::new(dek.to_vec()))
                }
                Err(error) => {
                    let failure = classify("unwrap", &error);
                    Err(self.evidence.blamed(session, keys, key, known, failure))
                }
            }
        })
    }

    /// Has the token make a DEK, where it has a generator.
    pub(crate) fn generate(
        &self,
        connection: &mut Connection,
        aad: [u8; 32],
    ) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), Failure> {
        let dek = if self.known.load().as_ref().is_some_and(|known| known.has_generator) {
            let mut dek = Zeroizing::new(vec![0; 32]);
            connection.with(|session, _| {
                let made = session.generate_random_slice(&mut dek);
                made.map_err(|error| classify("generate", &error))
            })?;
            if dek.iter().all(|byte| *byte == 0) {
                return Err(Failure::misconfigured("generate: the token's generator makes zeros"));
            }
            dek
        } else {
            let dek = Dek::random().map_err(|error| {
                Failure::unavailable(format!("no DEK could be made: {error}")).without_asking()
            })?;
            Zeroizing::new(dek.expose().to_vec())
        };
        let wrapping = Wrapping { aad, dek };
        let wrapped = self.wrap(connection, &wrapping)?;
        Ok((wrapping.dek, wrapped))
    }

    /// Reads the keys anew and makes a trial, so that *exists* is told from *may be used*.
    pub(crate) fn check(&self, connection: &mut Connection) -> Result<KeyInfo, Failure> {
        connection.find_keys(self)?;
        connection.with(|session, keys| {
            let way = self.tried(session, keys)?;
            let Some(key) = keys.current() else {
                return Err(Failure::denied("health: the key is gone"));
            };
            if let (Some(way), true, true) = (way, key.encrypts, key.decrypts) {
                try_out(session, key, Some(way))?;
            }
            Ok(())
        })?;
        self.key_info()
    }

    /// What is known of the keys.
    pub(crate) fn key_info(&self) -> Result<KeyInfo, Failure> {
        let known = self.known.load_full();
        let Some(known) = known.as_deref() else {
            return Err(Failure::unavailable("health: nothing is known of the key"));
        };
        Ok(KeyInfo {
            current: hex(&known.current),
            versions: known.versions.clone(),
            iv_source: self.way(),
            notes: known.notes.clone(),
        })
    }
}

fn no_way(key: &KeyObject) -> Failure {
    if key.encrypts {
        let text = "wrap: the key must not decrypt, so the way to an IV cannot be tried out; say \
                    it (iv-source)";
        Failure::misconfigured(text)
    } else {
        Failure::denied("wrap: the key must not encrypt (CKA_ENCRYPT is false)")
    }
}

/// Bytes that no provider of this kind wrote.
pub(crate) fn not_ours() -> Failure {
    Failure::invalid("not a DEK that was wrapped by this provider").without_asking()
}
