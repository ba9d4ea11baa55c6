//! Unwraps a DEK by any of its wrapped keys: which KEK is asked about which entry, and in which
//! order.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;

use super::call::{CallBounds, GuardedKek, Order};
use super::set::{FailedCall, Failure, KekSet, RetryMode, SourceKek, Unwrapped};
use super::{CallTarget, KekError, KekErrorClass, KekId, WrappedDek};
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::WrappedKeys;
use crate::suite::DekId;

/// Called with the provider, the wrapped key and the kind of failure.
pub(crate) type OnFailure<'a> = &'a (dyn Fn(&KekId, &WrappedDek, ErrorKind) + Sync);

impl KekSet {
    /// Unwraps the DEK by any of the KEKs. They are asked in order of preference about the entries
    /// that they recognise. The next one is asked when the previous one fails or takes longer than
    /// usual. All that may still succeed are asked again after a pause.
    ///
    /// If one KEK recognises several entries, its own comes first. Others are tried only if that
    /// may help, and at most [`MAX_ENTRIES_PER_KEK`] in all, since the list may be forged. See
    /// [`Candidates::is_worth_asking`].
    ///
    /// Each failure is passed to `on_failure` when it arrives, since other KEKs may delay the
    /// response or succeed.
    pub(crate) async fn unwrap_any(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
        id: &DekId,
        keys: &WrappedKeys,
        on_failure: OnFailure<'_>,
    ) -> Result<Unwrapped, Failure> {
        let mut candidates = Candidates(Vec::new());
        for kek in &self.reading {
            let recognised = keys.entries().iter().filter(|entry| kek.recognises(entry.kek_id()));
            let (own, other): (Vec<_>, Vec<_>) =
                recognised.partition(|entry| entry.kek_id() == kek.id());
            for entry in own.into_iter().chain(other) {
                let target = kek.target(entry.kek_id());
                candidates.0.push(Candidate {
                    kek,
                    entry,
                    target,
                    state: State::NotAsked,
                    failure: None,
                    failed_at: None,
                });
            }
        }
        let mut tries = 0;
        loop {
            if let Some(found) =
                self.try_each(bounds, context, id, &mut candidates, on_failure).await
            {
                return Ok(found);
            }
            tries += 1;
            let retryable = candidates
                .0
                .iter()
                .filter_map(|candidate| Some((candidate, candidate.failure.as_ref()?)));
            let retryable = retryable
                .filter(|(_, failure)| failure.is_worth_a_retry())
                .min_by_key(|(_, failure)| failure.severity_rank());
            match retryable {
                Some((candidate, failure))
                    if candidate
                        .kek
                        .pause(bounds, tries, failure, candidate.entry.kek_id())
                        .await => {}
                _ => return Err(all_failed(id, keys, candidates, tries)),
            }
        }
    }

    /// Tries every promising candidate once.
    async fn try_each(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
        id: &DekId,
        candidates: &mut Candidates<'_>,
        on_failure: OnFailure<'_>,
    ) -> Option<Unwrapped> {
        let mut waiting = candidates.begin_round();
        let mut asked = FuturesUnordered::new();
        let mut latest = None;
        loop {
            if let Some((at, order)) = candidates.next_of(&mut waiting)
                && let Some(candidate) = candidates.0.get_mut(at)
            {
                candidate.state = State::Asked;
                let (kek, entry) = (candidate.kek, candidate.entry);
                latest = kek.hedge_after(&candidate.target).map(|wait| (kek, wait));
                let tries = RetryMode::Once(order);
                asked.push(async move {
                    let sent = self.clock.now();
                    (at, sent, self.unwrap_entry(bounds, kek, context, id, entry, tries).await)
                });
            }
            let answer = match latest.filter(|_| candidates.has_next(&waiting)) {
                Some((kek, wait)) => {
                    match select(asked.next(), std::pin::pin!(kek.sleep(wait))).await {
                        Either::Left((answer, _)) => answer,
                        // It takes longer than usual, so ask the next one as well.
                        Either::Right(_) => continue,
                    }
                }
                None => asked.next().await,
            };
            let (at, sent, answer) = answer?;
            let Some(candidate) = candidates.0.get_mut(at) else { continue };
            match answer {
                Ok((dek, parent)) => {
                    let source_kek = SourceKek {
                        provider: candidate.kek.id().clone(),
                        entry: candidate.entry.kek_id().clone(),
                    };
                    return Some(Unwrapped { dek, source_kek, parent, asked: sent });
                }
                // It failed. Another is asked or in flight.
                Err(failure) => {
                    on_failure(candidate.kek.id(), candidate.entry, failure.class().kind());
                    (candidate.failure, candidate.failed_at) =
                        (Some(failure), Some(self.clock.now()));
                }
            }
        }
    }
}

/// The maximum number of entries that one KEK is asked about in one try. A message made by this
/// library has one entry per KEK, one more while KEKs are replaced, and one per key for a provider
/// that discovers keys.
const MAX_ENTRIES_PER_KEK: usize = 3;

/// A way to obtain the DEK: an entry of its wrapped keys, and the KEK that unwraps it.
struct Candidate<'a> {
    kek: &'a GuardedKek,
    entry: &'a WrappedDek,
    target: CallTarget,
    state: State,
    failure: Option<KekError>,
    /// The time at which the failure was known.
    failed_at: Option<Moment>,
}

/// The state in the current try.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    NotAsked,
    Asked,
}

/// All candidates, in order of preference.
struct Candidates<'a>(Vec<Candidate<'a>>);

impl Candidates<'_> {
    /// Returns the candidates that have not failed for good, in the order in which they are asked.
    /// Those that were late too often come last.
    fn begin_round(&mut self) -> VecDeque<(usize, Order)> {
        let (mut waiting, mut last) = (VecDeque::new(), VecDeque::new());
        for (at, candidate) in self.0.iter_mut().enumerate() {
            candidate.state = State::NotAsked;
            if candidate.failure.as_ref().is_none_or(KekError::is_worth_a_retry) {
                match candidate.kek.order(&candidate.target) {
                    Order::Last => last.push_back((at, Order::Last)),
                    order => waiting.push_back((at, order)),
                }
            }
        }
        waiting.append(&mut last);
        waiting
    }

    fn next_of(&self, waiting: &mut VecDeque<(usize, Order)>) -> Option<(usize, Order)> {
        std::iter::from_fn(|| waiting.pop_front()).find(|(at, _)| self.is_worth_asking(*at))
    }

    fn has_next(&self, waiting: &VecDeque<(usize, Order)>) -> bool {
        waiting.iter().any(|(at, _)| self.is_worth_asking(*at))
    }

    /// Whether this entry may have another outcome than the KEK's entries before it. It cannot
    ///
    /// - once one of them was invalid, according to the key service or the provider: such a message
    ///   is forged or damaged;
    /// - while its target is being asked or has not answered;
    /// - for an id that was denied.
    fn is_worth_asking(&self, at: usize) -> bool {
        let Some(candidate) = self.0.get(at) else { return false };
        let mut asked = 0;
        for other in self.0.iter().filter(|other| {
            std::ptr::eq(other.kek, candidate.kek) && !std::ptr::eq(*other, candidate)
        }) {
            let class = other.failure.as_ref().map(KekError::class);
            let is_denied = class == Some(KekErrorClass::Denied);
            if class == Some(KekErrorClass::Invalid)
                || (is_denied && other.entry.kek_id() == candidate.entry.kek_id())
            {
                return false;
            }
            let without_a_call = other.failure.as_ref().is_some_and(|failure| !failure.was_asked());
            // Not asked in this try, or failed without a call.
            if other.state == State::NotAsked || without_a_call {
                continue;
            }
            asked += 1;
            if !is_denied && other.target.name() == candidate.target.name() {
                return false;
            }
        }
        asked < MAX_ENTRIES_PER_KEK
    }
}

/// Returns one error for several failures. The least severe one decides, and every KEK is named.
fn all_failed(id: &DekId, keys: &WrappedKeys, candidates: Candidates<'_>, tries: u32) -> Failure {
    let failures: Vec<(Candidate<'_>, KekError)> = candidates
        .0
        .into_iter()
        .filter_map(|mut candidate| {
            let failure = candidate.failure.take()?.after(tries);
            Some((candidate, failure))
        })
        .collect();
    let call = |(candidate, error): &(Candidate<'_>, KekError)| {
        FailedCall::new(candidate.kek, Some(candidate.entry), error, candidate.failed_at?)
    };
    let calls = failures.iter().filter_map(call).collect();
    let text = |(candidate, error): &(Candidate<'_>, KekError)| {
        format!("{}: {error}", candidate.entry.kek_id())
    };
    let detail = failures.iter().map(text).collect::<Vec<_>>().join("; ");
    let error =
        match failures.into_iter().map(|(_, error)| error).min_by_key(KekError::severity_rank) {
            Some(error) => error.into_error(detail),
            None => {
                let ids = keys
                    .entries()
                    .iter()
                    .map(|entry| entry.kek_id().as_str())
                    .collect::<Vec<_>>()
                    .join(", ");
                Error::new(ErrorKind::UnknownKek, ids)
            }
        };
    Failure { calls, key: Some(*id), ..error.into() }
}
