//! Obtains the DEKs of many messages with as few calls as the key services allow.
#![forbid(unsafe_code)]

use futures_util::stream::{self, StreamExt};

use super::super::registry::end_all;
use super::reading::{Owned, Reading};
use super::stored::Located;
use super::{DekRequest, DekSource, Kind, ReadingRequest};
use crate::error::Error;
use crate::kek::call::{GuardedKek, Lane};
use crate::kek::set::{SourceKek, Unwrapped};
use crate::sync::Arc;

/// A request that waits for its DEK.
struct Wanted<'a> {
    at: usize,
    request: ReadingRequest<'a>,
}

impl DekSource {
    /// Has the DEKs of these requests cached, which are distinct. Returns one result for each.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        requests: &[ReadingRequest<'_>],
    ) -> Vec<Result<(), Error>> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut wanted = Vec::new();
        for (at, request) in requests.iter().enumerate() {
            let cached = self.with_cached(*request, |_| Ok(()));
            if let Ok(None) = cached {
                wanted.push(Wanted { at, request: *request });
            }
            answers.push(cached.map(|_| ()));
        }
        for kek in &self.keks.reading {
            let size = kek.batch_size();
            if size > 1 && wanted.len() > 1 {
                wanted = self.unwrap_in_batches(kek, size, wanted).await;
            }
        }
        // Those that no batch has brought, with everything that a single request does.
        let at_once = self.keks.at_once();
        let mut singly = stream::iter(wanted)
            .map(async |Wanted { at, request }| (at, self.get(request).await.map(|_| ())))
            .buffer_unordered(at_once);
        while let Some((at, answer)) = singly.next().await {
            if let Some(place) = answers.get_mut(at) {
                *place = answer;
            }
        }
        answers
    }

    /// Returns the requests that are left.
    async fn unwrap_in_batches<'a>(
        self: &Arc<Self>,
        kek: &Arc<GuardedKek>,
        size: usize,
        wanted: Vec<Wanted<'a>>,
    ) -> Vec<Wanted<'a>> {
        let at_once = self.keks.at_once();
        let located: Vec<_> = stream::iter(wanted)
            .map(async |wanted| {
                let located = self.locate_for_batch(kek, wanted.request).await;
                (wanted, located)
            })
            .buffered(at_once)
            .collect()
            .await;
        let (mut left, mut ready) = (Vec::new(), Vec::new());
        for (wanted, located) in located {
            match located {
                Some((owned, located)) => ready.push((wanted, owned, located)),
                None => left.push(wanted),
            }
        }
        let mut batches = Vec::new();
        while !ready.is_empty() {
            let rest = ready.split_off(size.min(ready.len()));
            batches.push(std::mem::replace(&mut ready, rest));
        }
        let mut answers = stream::iter(batches)
            .map(|batch| self.unwrap_batch(kek, batch))
            .buffer_unordered(at_once);
        while let Some(not_obtained) = answers.next().await {
            left.extend(not_obtained);
        }
        left
    }

    /// Returns `None` for a request that this KEK has no entry for, or that fails by itself: a single
    /// request says why.
    async fn locate_for_batch(
        &self,
        kek: &GuardedKek,
        request: ReadingRequest<'_>,
    ) -> Option<(Owned, Located)> {
        self.check_names(request.context).ok()?;
        let owned = DekRequest::to_owned(&request).ok()?;
        if self.cache().refusal(&request.request_key()).is_some() {
            return None;
        }
        let keys = owned.wrapped_keys.as_ref();
        let located = self.locate(&owned.context, &owned.id, keys).await.ok()?;
        let is_own = located.wrapped_keys.entries().iter().any(|e| e.kek_id() == kek.id());
        is_own.then_some((owned, located))
    }

    /// Unwraps one batch in one call, and returns the requests that got no DEK.
    async fn unwrap_batch<'a>(
        self: &Arc<Self>,
        kek: &GuardedKek,
        batch: Vec<(Wanted<'a>, Owned, Located)>,
    ) -> Vec<Wanted<'a>> {
        let cache = self.cache();
        let mark = cache.revocations.mark();
        let everything = |batch: Vec<(Wanted<'a>, Owned, Located)>| {
            batch.into_iter().map(|(wanted, ..)| wanted).collect()
        };
        if self.check_open().is_err() {
            return everything(batch);
        }
        let items: Vec<_> = batch
            .iter()
            .filter_map(|(_, _, located)| {
                let entries = located.wrapped_keys.entries();
                let entry = entries.iter().find(|entry| entry.kek_id() == kek.id())?;
                Some((&located.context, &located.id, entry))
            })
            .collect();
        let asked = self.options.clock.now();
        let bounds = self.keks.bounds(Lane::Ordinary);
        let answer = self.keks.unwrap_many(bounds, kek, &items);
        let answer: Result<_, Error> =
            cache.unless_closed(async { answer.await.map_err(Error::from) }).await;
        let Ok(unwrapped) = answer else { return everything(batch) };
        let source_kek = SourceKek { provider: kek.id().clone(), entry: kek.id().clone() };
        let mut left = Vec::new();
        for ((wanted, owned, located), unwrapped) in batch.into_iter().zip(unwrapped) {
            let obtained = unwrapped.ok().and_then(|(dek, parent)| {
                let source_kek = source_kek.clone();
                let unwrapped = Unwrapped { dek, source_kek, parent, asked };
                self.obtained(&owned, located, unwrapped).ok()
            });
            let Some(dek) = obtained else {
                left.push(wanted);
                continue;
            };
            cache.look_after(&dek);
            let lease = &dek.lease;
            if cache.revocations.concern(mark, Reading::context(&owned), lease.all_kek_ids())
                || lease.is_orphan()
            {
                end_all(std::slice::from_ref(&dek));
                left.push(wanted);
            } else {
                cache.put_reading(&dek);
            }
        }
        left
    }
}
