//! Rewraps one list of wrapped keys, entry by entry, in the key service where possible.
#![forbid(unsafe_code)]

use super::call::{CallBounds, GuardedKek, Lane};
use super::set::{KekSet, RetryMode, named, no_writing_kek};
use super::{KekError, KekErrorClass};
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::format::{WrappedDek, WrappedKeys};
use crate::suite::DekId;

/// What has to be known before old entries are dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    UnwrapEach,
    None,
}

impl KekSet {
    /// Returns the list that the writing KEKs would make now, made from the old one.
    pub(crate) async fn rewrap_all_entries(
        &self,
        context: &EncryptionContext,
        dek_id: &DekId,
        keys: &WrappedKeys,
        check: Check,
    ) -> Result<WrappedKeys, Error> {
        let keks = self;
        if keks.writing.is_empty() {
            return Err(no_writing_kek());
        }
        let mut entries = Vec::new();
        for kek in &keks.writing {
            keks.check_not_revoked(kek.id())?;
            let job =
                Job { keks, bounds: keks.bounds(Lane::Ordinary), kek, context, dek_id, check };
            let entry = match job.renew(keys).await {
                // The KEK's own entry is missing, damaged or refused, but another KEK's entry may
                // serve.
                Ok(None) | Err(Renewal::Lost) => {
                    let unwrapped =
                        keks.unwrap_any(job.bounds, context, dek_id, keys, &|_, _, _| {}).await;
                    let dek = unwrapped.map_err(|failure| failure.error)?.dek;
                    let entry = keks.wrap(job.bounds, kek, context, dek_id, &dek).await?;
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
    keks: &'a KekSet,
    bounds: CallBounds,
    kek: &'a GuardedKek,
    context: &'a EncryptionContext,
    dek_id: &'a DekId,
    check: Check,
}

impl Job<'_> {
    /// Makes the KEK's entry from its old one, without another KEK's help. Returns `None` if there
    /// is no old one.
    async fn renew(&self, keys: &WrappedKeys) -> Result<Option<WrappedDek>, Renewal> {
        let Self { keks, bounds, kek, context, dek_id, .. } = self;
        let Some(old) = old_entry(kek, keys) else { return Ok(None) };
        let entry = if self.is_proven_current(old) {
            old.clone()
        } else {
            let rewrapped = keks.rewrap(*bounds, kek, context, dek_id, old).await;
            rewrapped.map_err(|error| self.failed(error))?.map_err(Renewal::Failed)?
        };
        self.verify(&entry).await.map_err(|error| self.failed(error))?;
        Ok(Some(entry))
    }

    /// Whether `old` may be kept. Anyone can write metadata, so only `wrapped` itself counts, and
    /// only because the entry is unwrapped before it is kept. If this leaves doubt, the key service
    /// wraps again.
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
        let Self { keks, bounds, kek, context, dek_id, check } = self;
        match check {
            Check::UnwrapEach => keks
                .unwrap_entry(*bounds, kek, context, dek_id, entry, RetryMode::ByPolicy)
                .await
                .map(|_| ()),
            Check::None => Ok(()),
        }
    }
}

/// Why there is no new entry from an old one.
enum Renewal {
    /// This entry is lost for good.
    Lost,
    /// The entry may be good, so nothing may be dropped.
    Failed(Error),
}

/// Returns the entry that `kek` can rewrap: its own, or one that it recognises.
fn old_entry<'k>(kek: &GuardedKek, keys: &'k WrappedKeys) -> Option<&'k WrappedDek> {
    let entries = keys.entries();
    entries
        .iter()
        .find(|entry| entry.kek_id() == kek.id())
        .or_else(|| entries.iter().find(|entry| kek.recognises(entry.kek_id())))
}
