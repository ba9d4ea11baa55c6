//! The token, and what is known of its keys.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cryptoki::slot::TokenInfo;

use super::blame::Evidence;
use super::keys::{KeyName, Keys};
use super::search::TokenName;
use crate::errors::Failure;
#[cfg(unix)]
use crate::helper_program::Helper;
use crate::key::{IvSource, KeyInfo, Versions, hex};
#[cfg(unix)]
use crate::ledger::Outcome;
use crate::ledger::PinGiver;

/// The location of the KEK, and what is known of it. All sessions of a provider share it.
pub(crate) struct Token {
    pub(crate) module: PathBuf,
    pub(crate) name: TokenName,
    pub(crate) key: KeyName,
    /// The source of the PIN for logins. `None` means that nobody logs in.
    pub(crate) pins: Option<Box<dyn PinGiver>>,
    pub(crate) chosen: Option<IvSource>,
    pub(crate) key_max_age: Duration,
    /// The program that loads the module. `None` means this process.
    #[cfg(unix)]
    pub(crate) helper: Option<Helper>,
    /// The token was found before.
    pub(crate) was_seen: AtomicBool,
    /// The start of the module in which the keys were last found.
    pub(crate) seen_in: AtomicU64,
    pub(crate) logins: AtomicU64,
    pub(crate) failed_logins: AtomicU64,
    pub(super) known: ArcSwapOption<Known>,
    lists: AtomicU64,
    /// The way to an IV that was tried out, for as long as the provider lives.
    pub(super) way: Mutex<Option<IvSource>>,
    pub(super) evidence: Evidence,
}

/// The last findings about the keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Known {
    pub(crate) current: Vec<u8>,
    /// In hexadecimal digits, the current one last.
    pub(crate) versions: Vec<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) has_generator: bool,
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

    /// Has a helper do everything.
    #[cfg(unix)]
    pub(crate) fn with_helper(mut self, helper: Option<Helper>) -> Self {
        self.helper = helper;
        self
    }

    /// Keeps an IV source that was found before.
    #[cfg(unix)]
    pub(crate) fn with_way(self, way: Option<IvSource>) -> Self {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = way;
        self
    }

    /// Whether this is the id of the key that wraps. `None` if that is unknown.
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

    /// Returns the number of the last list of keys.
    pub(crate) fn list(&self) -> u64 {
        self.lists.load(Ordering::SeqCst)
    }

    pub(crate) fn known(&self) -> Option<Arc<Known>> {
        self.known.load_full()
    }

    pub(crate) fn way(&self) -> Option<IvSource> {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the IV source that a helper found. `false` if there was another one before.
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

    /// Returns what is known of the keys.
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
