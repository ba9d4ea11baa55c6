//! Rewraps lists of wrapped keys, entry by entry, in the key service if possible.
#![forbid(unsafe_code)]

use futures_util::{StreamExt, stream};

use super::batch::{KeyEntry, KeyList, all_settled, settled_and_asked};
use super::call::{CallBounds, GuardedKek, Lane};
use super::set::{KekSet, named, no_writing_kek};
use super::{Dek, KekError, KekErrorClass, WrappedDek};
use crate::error::Error;
use crate::format::WrappedKeys;

/// What must be verified before old entries are dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    UnwrapEach,
    None,
}

impl KekSet {
    /// Returns how many lists are rewrapped together: the largest batch size of a KEK.
    pub(crate) fn lists_together(&self) -> usize {
        self.reading.iter().map(|kek| kek.batch_size()).max().unwrap_or(1)
    }

    /// Makes the lists that the writing KEKs would make now from the old ones, in order. A failed
    /// list does not affect the others. `at_once` calls are made at the same time.
    pub(crate) async fn rewrap_lists(
        &self,
        lists: &[KeyList<'_>],
        check: Check,
        at_once: usize,
    ) -> Vec<Result<WrappedKeys, Error>> {
        if self.writing.is_empty() {
            return lists.iter().map(|_| Err(no_writing_kek())).collect();
        }
        let mut made: Vec<Result<Vec<WrappedDek>, Error>> =
            lists.iter().map(|_| Ok(Vec::new())).collect();
        for kek in &self.writing {
            // Lists that have failed are not asked about again.
            let going = lists.iter().zip(made).map(|(list, made)| match made {
                Ok(entries) => Ok((*list, entries)),
                failed => Err(failed),
            });
            let (settled, going) = settled_and_asked(going);
            let (lists, entries): (Vec<_>, Vec<_>) = going.into_iter().unzip();
            let renewed = Job { keks: self, kek, check, at_once }.renew(&lists).await;
            let renewed = entries.into_iter().zip(renewed).map(|(mut entries, entry)| {
                entries.push(entry?);
                Ok(entries)
            });
            made = all_settled(settled, renewed.collect());
        }
        made.into_iter().map(|entries| WrappedKeys::new(entries?)).collect()
    }
}

/// The entries of one KEK.
struct Job<'a> {
    keks: &'a KekSet,
    kek: &'a GuardedKek,
    check: Check,
    /// How many calls are made at the same time.
    at_once: usize,
}

impl Job<'_> {
    /// Makes the KEK's entry of each list.
    async fn renew(&self, lists: &[KeyList<'_>]) -> Vec<Result<WrappedDek, Error>> {
        if let Err(revoked) = self.keks.check_not_revoked(self.kek.id()) {
            let revoked = Error::from(revoked);
            return lists.iter().map(|_| Err(revoked.clone())).collect();
        }
        let entries = self.rewrap_own(lists).await;
        // The KEK's own entry is missing, damaged or refused, but another KEK's entry may work.
        let entries = lists.iter().zip(entries).map(|(list, entry)| match entry {
            Err(NotMade { is_lost: true, .. }) => Ok(*list),
            entry => Err(entry.map_err(|not_made| not_made.error)),
        });
        let (settled, lost) = settled_and_asked(entries);
        all_settled(settled, self.wrap_lost(&lost).await)
    }

    /// Makes entries from the KEK's old ones, without another KEK's help.
    async fn rewrap_own(&self, lists: &[KeyList<'_>]) -> Vec<Result<WrappedDek, NotMade>> {
        // A batch is a call about the KEK itself. An entry of a related KEK may have another
        // target.
        let is_related = |list: &KeyList<'_>| {
            list.entry_of(self.kek).is_none() && old_entry(self.kek, list).is_some()
        };
        let runs = lists.chunk_by(|a, b| !is_related(a) && !is_related(b));
        let batches: Vec<_> = runs.flat_map(|run| run.chunks(self.kek.batch_size())).collect();
        let entries = stream::iter(0..batches.len())
            .map(|n| self.rewrap_batch(batches.get(n).copied().unwrap_or_default()))
            .buffered(self.at_once);
        entries.collect::<Vec<_>>().await.into_iter().flatten().collect()
    }

    /// Makes entries from DEKs that any KEK unwraps.
    async fn wrap_lost(&self, lists: &[KeyList<'_>]) -> Vec<Result<WrappedDek, Error>> {
        let deks = self.keks.unwrap_lists(lists, self.at_once).await;
        let size = self.kek.batch_size();
        let entries = stream::iter(0..lists.len().div_ceil(size))
            .map(|n| {
                let lists = lists.chunks(size).nth(n).unwrap_or_default();
                self.wrap_batch(lists, deks.chunks(size).nth(n).unwrap_or_default())
            })
            .buffered(self.at_once);
        entries.collect::<Vec<_>>().await.into_iter().flatten().collect()
    }

    /// Has the KEK rewrap one batch.
    async fn rewrap_batch(&self, lists: &[KeyList<'_>]) -> Vec<Result<WrappedDek, NotMade>> {
        let Self { keks, kek, .. } = self;
        let bounds = keks.bounds(Lane::Ordinary);
        let old = lists.iter().map(|list| {
            let missing = || Err(NotMade { error: Error::invalid(), is_lost: true });
            let old = old_entry(kek, list).ok_or_else(missing)?;
            let allowed = keks.check_not_revoked(old.entry.kek_id());
            allowed.map_err(|error| Err(self.not_made(error)))?;
            match self.is_proven_current(old.entry) {
                true => Err(Ok(old.entry.clone())),
                false => Ok(old),
            }
        });
        let (settled, asked) = settled_and_asked(old);
        let rewrapped = keks.rewrap_many(bounds, kek, &asked).await.into_iter();
        let rewrapped = rewrapped
            .map(|entry| entry.map_err(|error| self.not_made(error))?.map_err(NotMade::from));
        self.verified(bounds, lists, all_settled(settled, rewrapped.collect())).await
    }

    /// Has the KEK wrap one batch of DEKs, if there is one.
    async fn wrap_batch(
        &self,
        lists: &[KeyList<'_>],
        deks: &[Result<Dek, Error>],
    ) -> Vec<Result<WrappedDek, Error>> {
        let Self { keks, kek, .. } = self;
        let bounds = keks.bounds(Lane::Ordinary);
        let deks = lists.iter().zip(deks).map(|(list, dek)| match dek {
            Ok(dek) => Ok((list.context, list.dek_id, dek)),
            Err(error) => Err(Err(error.clone())),
        });
        let (settled, asked) = settled_and_asked(deks);
        let wrapped = all_settled(settled, keks.wrap_many(bounds, kek, &asked).await);
        let wrapped = wrapped.into_iter().map(|entry| entry.map_err(NotMade::from)).collect();
        let verified = self.verified(bounds, lists, wrapped).await.into_iter();
        verified.map(|entry| entry.map_err(|not_made| not_made.error)).collect()
    }

    /// Has the KEK unwrap the new entries, if they are checked.
    async fn verified(
        &self,
        bounds: CallBounds,
        lists: &[KeyList<'_>],
        entries: Vec<Result<WrappedDek, NotMade>>,
    ) -> Vec<Result<WrappedDek, NotMade>> {
        if self.check == Check::None {
            return entries;
        }
        let made: Vec<_> = lists
            .iter()
            .zip(&entries)
            .filter_map(|(list, entry)| Some(list.entry(entry.as_ref().ok()?)))
            .collect();
        let mut unwrapped = self.keks.unwrap_many(bounds, self.kek, &made).await.into_iter();
        let verified = entries.into_iter().map(|entry| match (entry?, unwrapped.next()) {
            (entry, Some(Ok(_))) => Ok(entry),
            (_, Some(Err(error))) => Err(self.not_made(error)),
            (_, None) => Err(Error::invalid().into()),
        });
        verified.collect()
    }

    /// Whether `old` may be kept. Anyone can write metadata, so only `wrapped` itself counts, and
    /// only because the entry is unwrapped before it is kept. In case of doubt the key service
    /// wraps again.
    fn is_proven_current(&self, old: &WrappedDek) -> bool {
        self.check == Check::UnwrapEach
            && old.kek_id() == self.kek.id()
            && self.kek.is_current(&old.without_meta()) == Some(true)
    }

    fn not_made(&self, error: KekError) -> NotMade {
        let is_lost = matches!(error.class(), KekErrorClass::Invalid | KekErrorClass::Denied);
        NotMade { error: named(self.kek, error), is_lost }
    }
}

/// Returns how many calls each of `among` callers may make at the same time, for `at_once` in
/// total.
pub(crate) fn share(at_once: usize, among: usize) -> usize {
    (at_once / among.max(1)).max(1)
}

/// The reason why no new entry was made from an old one.
struct NotMade {
    error: Error,
    /// Whether the old entry is lost for good. Otherwise it may still be good, so nothing may be
    /// dropped.
    is_lost: bool,
}

impl From<Error> for NotMade {
    fn from(error: Error) -> Self {
        Self { error, is_lost: false }
    }
}

/// Returns the entry that `kek` can rewrap: its own, or one that it recognises.
fn old_entry<'a>(kek: &GuardedKek, list: &KeyList<'a>) -> Option<KeyEntry<'a>> {
    let recognised = || {
        let entry = list.keys.entries().iter().find(|entry| kek.recognises(entry.kek_id()))?;
        Some(list.entry(entry))
    };
    list.entry_of(kek).or_else(recognised)
}
