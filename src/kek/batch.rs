//! Asks KEKs about many DEKs at once, in one call if the key service has batches.
#![forbid(unsafe_code)]

use futures_util::{StreamExt, stream};

use super::call::{CallBounds, GuardedKek, Lane, with_request_id};
use super::set::{KekSet, UnwrapAnswer, not_wrapped};
use super::{Dek, KekError, Parent, WrappedDek};
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::format::WrappedKeys;
use crate::suite::DekId;

/// The wrapped keys of one DEK.
#[derive(Clone, Copy)]
pub(crate) struct KeyList<'a> {
    pub(crate) context: &'a EncryptionContext,
    pub(crate) dek_id: &'a DekId,
    pub(crate) keys: &'a WrappedKeys,
}

impl<'a> KeyList<'a> {
    pub(super) fn entry(&self, entry: &'a WrappedDek) -> KeyEntry<'a> {
        KeyEntry { context: self.context, dek_id: self.dek_id, entry }
    }

    /// Returns the KEK's own entry.
    pub(crate) fn entry_of(&self, kek: &GuardedKek) -> Option<KeyEntry<'a>> {
        let own = self.keys.entries().iter().find(|entry| entry.kek_id() == kek.id())?;
        Some(self.entry(own))
    }
}

/// One of the wrapped keys of a DEK.
#[derive(Clone, Copy)]
pub(crate) struct KeyEntry<'a> {
    context: &'a EncryptionContext,
    dek_id: &'a DekId,
    pub(super) entry: &'a WrappedDek,
}

/// Each method returns one result for each item, in order, and a bad item fails alone. A call gives
/// one KEK at most as many items as its [batch](GuardedKek::batch_size) allows.
impl KekSet {
    /// Has one KEK rewrap entries. An inner error is about the new entry: the KEK did not wrap, or
    /// the provider broke its contract. If the key service has no rewrap, this unwraps and wraps.
    /// Those are two calls, each with its own turn of the budget, its own tries and its own events.
    pub(super) async fn rewrap_many(
        &self,
        bounds: CallBounds,
        kek: &GuardedKek,
        entries: &[KeyEntry<'_>],
    ) -> Vec<Result<Result<WrappedDek, Error>, KekError>> {
        if !kek.rewraps_in_one_call() {
            return self.unwrap_and_wrap_many(bounds, kek, entries).await;
        }
        let asked: Vec<_> = entries.iter().map(|item| (item.context, item.entry)).collect();
        let (answers, request_id) = with_request_id(kek.rewrap_many(bounds, &asked)).await;
        let request_id = request_id.as_deref();
        let wrapped = entries.iter().zip(answers).map(|(item, answer)| {
            Ok(self.wrapped_by(kek, item.context, item.dek_id, answer?, request_id))
        });
        wrapped.collect()
    }

    async fn unwrap_and_wrap_many(
        &self,
        bounds: CallBounds,
        kek: &GuardedKek,
        entries: &[KeyEntry<'_>],
    ) -> Vec<Result<Result<WrappedDek, Error>, KekError>> {
        let unwrapped = self.unwrap_many(bounds, kek, entries).await;
        let deks = entries.iter().zip(unwrapped).map(|(item, unwrapped)| match unwrapped {
            Ok((dek, _)) => Ok((*item, dek)),
            Err(error) => Err(Err(error)),
        });
        let (settled, deks) = settled_and_asked(deks);
        let asked: Vec<_> =
            deks.iter().map(|(item, dek)| (item.context, item.dek_id, dek)).collect();
        let wrapped = self.wrap_many(bounds, kek, &asked).await.into_iter().map(Ok);
        all_settled(settled, wrapped.collect())
    }

    /// Has one KEK wrap DEKs.
    pub(super) async fn wrap_many(
        &self,
        bounds: CallBounds,
        kek: &GuardedKek,
        deks: &[(&EncryptionContext, &DekId, &Dek)],
    ) -> Vec<Result<WrappedDek, Error>> {
        let asked: Vec<_> = deks.iter().map(|(context, _, dek)| (*context, *dek)).collect();
        let (answers, request_id) = with_request_id(kek.wrap_many(bounds, &asked)).await;
        let wrapped = deks.iter().zip(answers).map(|((context, dek_id, _), answer)| {
            let wrapped = answer.map_err(|error| not_wrapped(kek, error))?;
            self.wrapped_by(kek, context, dek_id, wrapped, request_id.as_deref())
        });
        wrapped.collect()
    }

    /// Has one KEK unwrap entries. Each DEK is checked as in [`unwrap_entry`](Self::unwrap_entry).
    pub(crate) async fn unwrap_many(
        &self,
        bounds: CallBounds,
        kek: &GuardedKek,
        entries: &[KeyEntry<'_>],
    ) -> Vec<Result<(Dek, Option<Parent>), KekError>> {
        let allowed = entries.iter().map(|item| {
            self.check_not_revoked(kek.id()).map_err(Err)?;
            self.check_not_revoked(item.entry.kek_id()).map_err(Err)?;
            Ok((item.context, item.entry))
        });
        let (settled, asked) = settled_and_asked(allowed);
        let (answers, request_id) = with_request_id(kek.unwrap_many(bounds, &asked)).await;
        let unwrapped = all_settled(settled, answers);
        let answer = UnwrapAnswer { kek, request_id: request_id.as_deref() };
        let checked = entries.iter().zip(unwrapped).map(|(item, unwrapped)| {
            self.check_unwrapped(item.context, item.dek_id, item.entry, answer, &mut unwrapped?)
        });
        checked.collect()
    }

    /// Unwraps the DEKs of these lists by any of the KEKs: in batches, and the remaining ones one
    /// by one, `at_once` at the same time.
    pub(super) async fn unwrap_lists(
        &self,
        lists: &[KeyList<'_>],
        at_once: usize,
    ) -> Vec<Result<Dek, Error>> {
        let mut deks: Vec<Option<Dek>> = lists.iter().map(|_| None).collect();
        for kek in self.reading.iter().filter(|kek| kek.batch_size() > 1) {
            let mut left: Vec<_> = lists
                .iter()
                .zip(&mut deks)
                .filter(|(_, dek)| dek.is_none())
                .filter_map(|(list, dek)| Some((list.entry_of(kek)?, dek)))
                .collect();
            if left.len() < 2 {
                continue;
            }
            for batch in left.chunks_mut(kek.batch_size()) {
                let entries: Vec<_> = batch.iter().map(|(entry, _)| *entry).collect();
                let answers = self.unwrap_many(self.bounds(Lane::Ordinary), kek, &entries).await;
                for ((_, dek), answer) in batch.iter_mut().zip(answers) {
                    **dek = answer.ok().map(|(unwrapped, _)| unwrapped);
                }
            }
        }
        // The remaining ones, with all the checks of a single request.
        stream::iter(deks.into_iter().enumerate())
            .map(async |(place, dek)| match (dek, lists.get(place)) {
                (Some(dek), _) => Ok(dek),
                (None, Some(list)) => self.unwrap_list(list).await,
                (None, None) => Err(Error::invalid()),
            })
            .buffered(at_once)
            .collect()
            .await
    }

    async fn unwrap_list(&self, list: &KeyList<'_>) -> Result<Dek, Error> {
        let (bounds, KeyList { context, dek_id, keys }) = (self.bounds(Lane::Ordinary), list);
        let unwrapped = self.unwrap_any(bounds, context, dek_id, keys, &|_, _, _| {}).await;
        unwrapped.map(|unwrapped| unwrapped.dek).map_err(|failure| failure.error)
    }
}

/// Separates results that are known before a call from items to ask for.
pub(super) fn settled_and_asked<A, S>(
    items: impl Iterator<Item = Result<A, S>>,
) -> (Vec<Option<S>>, Vec<A>) {
    let mut asked = Vec::new();
    let settled = items.map(|item| item.map(|item| asked.push(item)).err()).collect();
    (settled, asked)
}

/// Fills the answers into the gaps.
pub(super) fn all_settled<S>(settled: Vec<Option<S>>, answers: Vec<S>) -> Vec<S> {
    let mut answers = answers.into_iter();
    settled.into_iter().filter_map(|settled| settled.or_else(|| answers.next())).collect()
}
