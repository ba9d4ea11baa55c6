//! New wrapped keys for old messages: the payload is not touched, and no DEK comes into the process where the key service can
//! do without.
#![forbid(unsafe_code)]

use super::Envelope;
use crate::context::EncryptionContext;
use crate::dek::{Keks, Tries, named};
use crate::error::{Error, ErrorKind};
use crate::format::{Form, Message, WrappedDek, WrappedKeys, with_wrapped_keys};
use crate::kek::call::{Caller, Question, Share};
use crate::kek::{KekError, KekErrorClass};
use crate::suite::DekId;

/// Whether old entries are dropped on the new ones' word or on proof.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    UnwrapEach,
    None,
}

impl Envelope {
    /// Whether the wrapped keys of a message are other than [`rewrap`](Self::rewrap) would make them: an entry for each writing KEK, by
    /// its current version, and no other. Always `false` for a compact message: ask
    /// [`needs_rewrap_keys`](Self::needs_rewrap_keys).
    ///
    /// From the bytes alone, of which the metadata is not authenticated: **a hint**, to skip what
    /// need not be done. Whoever can write messages can make it say `false`. Before an old version
    /// of a KEK is destroyed, [`rewrap`](Self::rewrap) every message, whatever this says of it.
    ///
    /// # Errors
    /// The kinds that say that the bytes are not a message.
    pub fn needs_rewrap(&self, sealed: &[u8]) -> Result<bool, Error> {
        let message = Message::parse(sealed)?;
        match message.form() {
            Form::Compact => Ok(false),
            Form::Embedded => Ok(self.needs_rewrap_keys(&WrappedKeys::try_from(message.wrapped_keys)?)),
        }
    }

    /// [`needs_rewrap`](Self::needs_rewrap) for wrapped keys that are kept apart.
    #[must_use]
    pub fn needs_rewrap_keys(&self, keys: &WrappedKeys) -> bool {
        let writing = &self.source().keks().writing;
        keys.entries().len() != writing.len()
            || writing.iter().any(|kek| {
                !keys.entries().iter().any(|entry| entry.kek_id() == kek.id() && kek.is_current(entry) != Some(false))
            })
    }

    /// The same message, wrapped by the current versions of the writing KEKs and by no other. Nonce, ciphertext and tag are copied
    /// as they are.
    ///
    /// No metadata is believed: an entry whose `wrapped` alone does not show that it is current is
    /// wrapped anew, so that under AWS KMS every call costs one `ReEncrypt`.
    /// [`needs_rewrap`](Self::needs_rewrap) tells which messages most likely need it.
    ///
    /// Every entry of the result, kept or new, has been unwrapped and held against the DEK id before an old one is dropped,
    /// so the caller needs the right to unwrap. [`rewrap_unverified`](Self::rewrap_unverified) does without.
    ///
    /// # Errors
    /// Those of the key service; [`ErrorKind::Invalid`] if an entry does not give the DEK in this context;
    /// [`ErrorKind::UnsupportedKind`] or others for bytes that are not a message; [`ErrorKind::MissingWrappedKeys`] for
    /// a compact one: use [`rewrap_keys`](Self::rewrap_keys). The message is as good as before.
    pub async fn rewrap(&self, context: &EncryptionContext, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        self.rewrap_message(context, sealed, Check::UnwrapEach).await
    }

    /// As [`rewrap`](Self::rewrap), for a process that may not unwrap: what the key service returns is taken on trust, **and a wrong
    /// answer makes the message unreadable for ever** once the old bytes are gone. Keep them until somebody has read the new ones.
    ///
    /// A KEK that has no entry yet gets one only where some other entry can be unwrapped after all.
    ///
    /// # Errors
    /// As [`rewrap`](Self::rewrap).
    pub async fn rewrap_unverified(&self, context: &EncryptionContext, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        self.rewrap_message(context, sealed, Check::None).await
    }

    /// [`rewrap`](Self::rewrap) for the wrapped keys of compact messages, of the DEK `dek_id`.
    ///
    /// # Errors
    /// As [`rewrap`](Self::rewrap).
    pub async fn rewrap_keys(
        &self,
        context: &EncryptionContext,
        dek_id: &DekId,
        keys: &WrappedKeys,
    ) -> Result<WrappedKeys, Error> {
        self.rewrap_list(context, dek_id, keys, Check::UnwrapEach).await
    }

    async fn rewrap_message(&self, context: &EncryptionContext, sealed: &[u8], check: Check) -> Result<Vec<u8>, Error> {
        let message = Message::parse(sealed)?;
        if message.form() == Form::Compact {
            return Err(Error::new(ErrorKind::MissingWrappedKeys, message.header.dek_id.to_string()));
        }
        let keys = WrappedKeys::try_from(message.wrapped_keys)?;
        let keys = self.rewrap_list(context, &message.header.dek_id, &keys, check).await?;
        with_wrapped_keys(sealed, keys.as_bytes())
    }

    async fn rewrap_list(
        &self,
        context: &EncryptionContext,
        dek_id: &DekId,
        keys: &WrappedKeys,
        check: Check,
    ) -> Result<WrappedKeys, Error> {
        self.source().obeying(context, || self.rewrap_entries(context, dek_id, keys, check)).await
    }

    async fn rewrap_entries(
        &self,
        context: &EncryptionContext,
        dek_id: &DekId,
        keys: &WrappedKeys,
        check: Check,
    ) -> Result<WrappedKeys, Error> {
        let keks = self.source().keks();
        let mut entries = Vec::new();
        for kek in &keks.writing {
            keks.check_not_revoked(kek.id())?;
            let job = Job { keks, question: keks.question(Share::Ordinary), kek, context, dek_id, check };
            let entry = match job.renew(keys).await {
                // The KEK's own entry is missing, damaged or refused, but another KEK's may serve.
                Ok(None) | Err(Renewal::Lost) => {
                    let unwrapped = keks.unwrap_any(job.question, context, dek_id, keys, &|_, _, _| {}).await;
                    let dek = unwrapped.map_err(|failure| failure.error)?.dek;
                    let entry = keks.wrap(job.question, kek, context, dek_id, &dek).await?;
                    job.verify(&entry).await.map_err(|error| named(kek, error))?;
                    entry
                }
                Ok(Some(entry)) => entry,
                Err(Renewal::Failed(error)) => return Err(error),
            };
            entries.push(entry);
        }
        WrappedKeys::new(entries)
    }
}

/// One DEK's entry for one KEK.
struct Job<'a> {
    keks: &'a Keks,
    question: Question,
    kek: &'a Caller,
    context: &'a EncryptionContext,
    dek_id: &'a DekId,
    check: Check,
}

impl Job<'_> {
    /// The entry of the KEK out of its old one, without another KEK's help; `None` if it has no old one.
    async fn renew(&self, keys: &WrappedKeys) -> Result<Option<WrappedDek>, Renewal> {
        let Self { keks, question, kek, context, dek_id, .. } = self;
        let Some(old) = old_entry(kek, keys) else { return Ok(None) };
        let entry = if self.is_proven_current(old) {
            old.clone()
        } else {
            let rewrapped = keks.rewrap(*question, kek, context, dek_id, old).await;
            rewrapped.map_err(|error| self.failed(error))?.map_err(Renewal::Failed)?
        };
        self.verify(&entry).await.map_err(|error| self.failed(error))?;
        Ok(Some(entry))
    }

    /// Whether `old` may be kept. Anyone can write metadata, so only what `wrapped` itself says
    /// counts, and that only because the entry is unwrapped before it is kept; unseen, nothing is.
    /// What that leaves open, the key service settles by wrapping anew.
    fn is_proven_current(&self, old: &WrappedDek) -> bool {
        self.check == Check::UnwrapEach
            && old.kek_id() == self.kek.id()
            && self.kek.is_current(&old.without_meta()) == Some(true)
    }

    fn failed(&self, error: KekError) -> Renewal {
        match error.class() {
            KekErrorClass::Invalid | KekErrorClass::Denied => Renewal::Lost,
            _ => Renewal::Failed(named(self.kek, error)),
        }
    }

    async fn verify(&self, entry: &WrappedDek) -> Result<(), KekError> {
        let Self { keks, question, kek, context, dek_id, check } = self;
        match check {
            Check::UnwrapEach => {
                keks.unwrap_entry(*question, kek, context, dek_id, entry, Tries::ByPolicy).await.map(|_| ())
            }
            Check::None => Ok(()),
        }
    }
}

/// Why an old entry gave no new one.
enum Renewal {
    /// This entry will not come back.
    Lost,
    /// It may be good: nothing is to be dropped on this.
    Failed(Error),
}

/// The entry that `kek` can rewrap: its own, or one that it recognises.
fn old_entry<'k>(kek: &Caller, keys: &'k WrappedKeys) -> Option<&'k WrappedDek> {
    let entries = keys.entries();
    entries
        .iter()
        .find(|entry| entry.kek_id() == kek.id())
        .or_else(|| entries.iter().find(|entry| kek.recognises(entry.kek_id())))
}
