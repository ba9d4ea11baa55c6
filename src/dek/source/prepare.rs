//! Obtains the DEKs of many messages with as few calls as the key services allow.
#![forbid(unsafe_code)]

use futures_util::stream::{self, StreamExt};

use super::super::ReadingDek;
use super::super::pinned::Pinned;
use super::super::registry::end_all;
use super::super::statistics::Counter;
use super::reading::{Owned, Reading};
use super::stored::Located;
use super::{DekRequest, DekSource, Kind, ReadingRequest, unless_taken_away};
use crate::error::Error;
use crate::kek::call::{GuardedKek, Lane};
use crate::kek::set::{SourceKek, Unwrapped};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// A request that waits for its DEK: its place, and what is asked for.
type Ready = (usize, Owned, Located);

impl DekSource {
    /// Caches the DEKs of these distinct requests. Returns one result for each and, for up to
    /// `held` of them, the DEK itself, since the cache may not have room for all.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        requests: &[ReadingRequest<'_>],
        held: usize,
    ) -> Vec<Result<Option<Pinned<ReadingDek>>, Error>> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut wanted = Vec::new();
        let holding = Holding(AtomicUsize::new(held));
        for (place, request) in requests.iter().enumerate() {
            let cached = self.with_cached(*request, |_| Ok(()));
            if let Ok(None) = cached {
                wanted.push(place);
            }
            answers.push(cached.map(|_| holding.hold_cached(self, request)));
        }
        let mut prepared = wanted.len();
        for kek in &self.keks.reading {
            if kek.batch_size() > 1 && wanted.len() > 1 {
                let (left, obtained) =
                    self.unwrap_in_batches(kek, requests, wanted, &holding).await;
                wanted = left;
                for (place, dek) in obtained {
                    if let Some(answer) = answers.get_mut(place) {
                        *answer = Ok(Some(dek));
                    }
                }
            }
        }
        // Single requests, with all their checks, obtain the DEKs that no batch returned.
        let at_once = self.keks.at_once();
        let mut singly = stream::iter(wanted)
            .map(async |place| {
                let got = self.get(*requests.get(place)?).await;
                Some((place, got.map(|dek| holding.hold(&dek))))
            })
            .buffer_unordered(at_once);
        while let Some(answered) = singly.next().await {
            if let Some((place, answer)) = answered
                && let Some(place) = answers.get_mut(place)
            {
                prepared -= usize::from(answer.is_err());
                *place = answer;
            }
        }
        self.counters.add(Counter::Prepared, u64::try_from(prepared).unwrap_or(0));
        answers
    }

    /// Returns the positions of the remaining requests.
    async fn unwrap_in_batches(
        self: &Arc<Self>,
        kek: &Arc<GuardedKek>,
        requests: &[ReadingRequest<'_>],
        wanted: Vec<usize>,
        holding: &Holding,
    ) -> (Vec<usize>, Vec<(usize, Pinned<ReadingDek>)>) {
        let (at_once, size) = (self.keks.at_once(), kek.batch_size());
        let located: Vec<_> = stream::iter(wanted)
            .map(async |place| {
                let located = match requests.get(place) {
                    Some(request) => self.locate_for_batch(kek, *request).await,
                    None => None,
                };
                located.map(|(owned, located)| (place, owned, located)).ok_or(place)
            })
            .buffered(at_once)
            .collect()
            .await;
        let (mut left, mut ready) = (Vec::new(), Vec::new());
        for located in located {
            match located {
                Ok(located) => ready.push(located),
                Err(place) => left.push(place),
            }
        }
        let mut batches = Vec::new();
        while !ready.is_empty() {
            let rest = ready.split_off(size.min(ready.len()));
            batches.push(std::mem::replace(&mut ready, rest));
        }
        let mut answers = stream::iter(batches)
            .map(|batch| self.unwrap_batch(kek, batch, holding))
            .buffer_unordered(at_once);
        let mut held = Vec::new();
        while let Some((not_obtained, obtained)) = answers.next().await {
            left.extend(not_obtained);
            held.extend(obtained);
        }
        (left, held)
    }

    /// Returns `None` for a request without an entry for this KEK, or one that fails before any
    /// call. A single request then reports the reason.
    async fn locate_for_batch(
        &self,
        kek: &GuardedKek,
        request: ReadingRequest<'_>,
    ) -> Option<(Owned, Located)> {
        self.check_context(request.context).ok()?;
        let owned = DekRequest::to_owned(&request).ok()?;
        if self.cache().refusal(&request.request_key()).is_some() {
            return None;
        }
        let keys = owned.wrapped_keys.as_ref();
        let bounds = self.keks.bounds(Lane::Ordinary);
        let located = self.locate(bounds, &owned.context, &owned.id, keys).await.ok()?;
        located.key_list().entry_of(kek)?;
        Some((owned, located))
    }

    /// Unwraps one batch in one call, and returns the positions of the requests that got no DEK.
    async fn unwrap_batch(
        self: &Arc<Self>,
        kek: &GuardedKek,
        batch: Vec<Ready>,
        holding: &Holding,
    ) -> (Vec<usize>, Vec<(usize, Pinned<ReadingDek>)>) {
        let cache = self.cache();
        let mark = cache.revocations.mark();
        let everything =
            |batch: Vec<Ready>| (batch.into_iter().map(|(place, ..)| place).collect(), Vec::new());
        if self.check_open().is_err() {
            return everything(batch);
        }
        let entries: Vec<_> =
            batch.iter().filter_map(|(_, _, located)| located.key_list().entry_of(kek)).collect();
        let asked = self.options.clock.now();
        let bounds = self.keks.bounds(Lane::Ordinary);
        let answers = self.keks.unwrap_many(bounds, kek, &entries);
        let answer = cache.unless_closed(async { Ok::<_, Error>(answers.await) }).await;
        let Ok(unwrapped) = answer else { return everything(batch) };
        let source_kek = SourceKek { provider: kek.id().clone(), entry: kek.id().clone() };
        let (mut left, mut held) = (Vec::new(), Vec::new());
        for ((place, owned, located), unwrapped) in batch.into_iter().zip(unwrapped) {
            let obtained = unwrapped.ok().and_then(|(dek, parent)| {
                let source_kek = source_kek.clone();
                let unwrapped = Unwrapped { dek, source_kek, parent, asked };
                self.obtained(&owned, located, unwrapped).ok()
            });
            let Some(dek) = obtained else {
                left.push(place);
                continue;
            };
            cache.look_after(&dek);
            let lease = &dek.lease;
            if cache.revocations.concern(mark, Reading::context(&owned), lease.all_kek_ids())
                || lease.is_orphan()
            {
                end_all(std::slice::from_ref(&dek));
                left.push(place);
            } else {
                // Before it is cached, which may evict it.
                held.extend(holding.hold(&dek).map(|dek| (place, dek)));
                cache.put_reading(&dek);
            }
        }
        (left, held)
    }

    /// Does the same as [`with`](Self::with), for a caller that holds the DEK, which the cache may
    /// have evicted.
    pub(crate) async fn with_prepared<R>(
        self: &Arc<Self>,
        request: ReadingRequest<'_>,
        held: Option<&Pinned<ReadingDek>>,
        mut work: impl FnMut(&ReadingDek) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if let Some(held) = held {
            if let Some(result) = self.with_cached(request, |dek| work(dek))? {
                return Ok(result);
            }
            if !held.lease.is_past_max_age(self.now())
                && let Some(result) = unless_taken_away(work(held))?
            {
                return Ok(result);
            }
        }
        self.with(request, work).await
    }
}

/// How many more DEKs may be held.
struct Holding(AtomicUsize);

impl Holding {
    fn hold(&self, dek: &Arc<ReadingDek>) -> Option<Pinned<ReadingDek>> {
        let one_less = |left: usize| left.checked_sub(1);
        let taken = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        taken.ok().map(|_| Pinned::new(dek.clone()))
    }

    fn hold_cached(
        &self,
        source: &DekSource,
        request: &ReadingRequest<'_>,
    ) -> Option<Pinned<ReadingDek>> {
        if self.0.load(Ordering::SeqCst) == 0 {
            return None;
        }
        self.hold(&request.find(&source.cache()).ok()??)
    }
}
