//! The work of a call in a session: wrap, unwrap, check the key.
#![forbid(unsafe_code)]

use std::sync::PoisonError;
use std::time::Instant;

use cryptoki::session::Session;
use waxseal::Dek;
use waxseal::kek::UnwrappedDek;
use zeroize::Zeroizing;

use super::blame::Blamed;
use super::cipher::{decrypt, encrypt, try_out};
use super::codes::classify;
use super::connection::Connection;
use super::keys::{KeyObject, Keys};
use super::state::Token;
use crate::errors::Failure;
use crate::format::Wrapped;
use crate::key::{IvSource, KeyInfo, hex};

/// The input of a wrap.
pub(crate) struct Wrapping {
    pub(crate) aad: [u8; 32],
    /// On the heap, since moving a value leaves a copy behind.
    pub(crate) dek: Zeroizing<Vec<u8>>,
}

impl Token {
    /// Determines the token's IV source, once, and keeps it.
    fn tried(&self, session: &Session, keys: &Keys) -> Result<Option<IvSource>, Failure> {
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if way.is_some() {
            return Ok(*way);
        }
        let Some(key) = keys.current().filter(|key| key.encrypts) else { return Ok(None) };
        if !key.decrypts {
            // The key only wraps, so nothing can be tested.
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

    /// Unwraps an entry, which anyone may have written.
    pub(crate) fn unwrap(
        &self,
        connection: &mut Connection,
        aad: &[u8; 32],
        bytes: &[u8],
    ) -> Result<UnwrappedDek, Failure> {
        let wrapped = Wrapped::read(bytes).ok_or_else(not_ours)?;
        // An unknown key may be new.
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
            let opened = || {
                let dek = decrypt(session, key.handle, way, aad, wrapped.iv, wrapped.sealed)
                    .map_err(|error| classify("unwrap", &error))?;
                self.evidence.remember(wrapped, aad);
                Ok(UnwrappedDek::new(dek.to_vec()))
            };
            opened().or_else(|failure| {
                let failed = (failure, Instant::now());
                match self.evidence.blamed(session, keys, key, known, failed) {
                    Blamed::Said(failure) => Err(failure),
                    // Twice, since one of two alternating devices may be down.
                    Blamed::WrappedKey(before) => opened()
                        .or_else(|again| if again == before { opened() } else { Err(again) })
                        .map_err(|again| Blamed::again(before, again)),
                }
            })
        })
    }

    /// Has the token make a DEK, if it has a generator.
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

    /// Reads the keys again and makes a trial, which shows whether the key may be used, not just
    /// whether it exists.
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

/// Returns the error for bytes that no provider of this kind wrote.
pub(crate) fn not_ours() -> Failure {
    Failure::invalid("not a DEK that was wrapped by this provider").without_asking()
}
