//! Unwraps a DEK by any of its wrapped keys: which KEK is asked for which entry, and in which order.
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

/// Called with the provider, the wrapped key and what befell it.
pub(crate) type OnFailure<'a> = &'a (dyn Fn(&KekId, &WrappedDek, ErrorKind) + Sync);

impl KekSet {
    /// Any success serves. The KEKs are asked in order of preference, for the entries that they recognise: the next one when the one
    /// before it failed, or takes longer than it mostly does. All that may still succeed are asked again after a pause.
    ///
    /// Of several entries that one KEK recognises, its own comes first. Another is asked for only where that may help, and no
    /// more than [`MAX_ENTRIES_PER_KEK`] are: whoever can forge a message writes its list. See [`Candidates::is_worth_asking`].
    ///
    /// Each failure is reported to `heard` when it comes, since other KEKs may keep the answer waiting, or give it.
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
            let (own, other): (Vec<_>, Vec<_>) = recognised.partition(|entry| entry.kek_id() == kek.id());
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
            if let Some(found) = self.try_each(bounds, context, id, &mut candidates, on_failure).await {
                return Ok(found);
            }
            tries += 1;
            let retryable = candidates.0.iter().filter_map(|candidate| Some((candidate, candidate.failure.as_ref()?)));
            let retryable = retryable
                .filter(|(_, failure)| failure.is_worth_a_retry())
                .min_by_key(|(_, failure)| failure.severity_rank());
            match retryable {
                Some((candidate, failure))
                    if candidate.kek.pause(bounds, tries, failure, candidate.entry.kek_id()).await => {}
                _ => return Err(all_failed(keys, candidates, tries)),
            }
        }
    }

    /// One try of every way that is worth it.
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
                Some((kek, wait)) => match select(asked.next(), std::pin::pin!(kek.sleep(wait))).await {
                    Either::Left((answer, _)) => answer,
                    // It takes longer than usual: the next one as well.
                    Either::Right(_) => continue,
                },
                None => asked.next().await,
            };
            let (at, sent, answer) = answer?;
            let Some(candidate) = candidates.0.get_mut(at) else { continue };
            match answer {
                Ok(dek) => {
                    let source_kek =
                        SourceKek { provider: candidate.kek.id().clone(), entry: candidate.entry.kek_id().clone() };
                    return Some(Unwrapped { dek, source_kek, asked: sent });
                }
                // That one failed; another one is asked, or on its way.
                Err(failure) => {
                    on_failure(candidate.kek.id(), candidate.entry, failure.class().kind());
                    (candidate.failure, candidate.failed_at) = (Some(failure), Some(self.clock.now()));
                }
            }
        }
    }
}

/// Of how many entries one KEK is asked in a try at most. A message that was sealed here has one, one more while KEKs are changed, and
/// with a provider that finds keys by itself one for each of its keys.
const MAX_ENTRIES_PER_KEK: usize = 3;

/// One of the ways to a DEK: an entry of its wrapped keys, and who unwraps it.
struct Candidate<'a> {
    kek: &'a GuardedKek,
    entry: &'a WrappedDek,
    target: CallTarget,
    state: State,
    failure: Option<KekError>,
    /// When that was known.
    failed_at: Option<Moment>,
}

/// In the try that goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    NotAsked,
    Asked,
}

/// All ways, in order of preference.
struct Candidates<'a>(Vec<Candidate<'a>>);

impl Candidates<'_> {
    /// Those that have not failed for good, in the order in which they are asked: whoever was late so often comes last.
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

    /// Whether an answer to this entry may be another than the KEK's answers to the entries before it. It is not
    ///
    /// - once one of them was invalid, as the key service or the provider itself says: such a message is forged or damaged;
    /// - while its target is asked, or has not answered;
    /// - for an id that was denied.
    fn is_worth_asking(&self, at: usize) -> bool {
        let Some(candidate) = self.0.get(at) else { return false };
        let mut asked = 0;
        for other in
            self.0.iter().filter(|other| std::ptr::eq(other.kek, candidate.kek) && !std::ptr::eq(*other, candidate))
        {
            let class = other.failure.as_ref().map(KekError::class);
            let is_denied = class == Some(KekErrorClass::Denied);
            if class == Some(KekErrorClass::Invalid) || (is_denied && other.entry.kek_id() == candidate.entry.kek_id())
            {
                return false;
            }
            let without_a_call = other.failure.as_ref().is_some_and(|failure| !failure.was_asked());
            // Neither asked in this try, nor failed without a call.
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

/// One error for several failures: the one that leaves most hope decides, and every KEK is named.
fn all_failed(keys: &WrappedKeys, candidates: Candidates<'_>, tries: u32) -> Failure {
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
    let text = |(candidate, error): &(Candidate<'_>, KekError)| format!("{}: {error}", candidate.entry.kek_id());
    let detail = failures.iter().map(text).collect::<Vec<_>>().join("; ");
    let error = match failures.into_iter().map(|(_, error)| error).min_by_key(KekError::severity_rank) {
        Some(error) => error.into_error(detail),
        None => {
            let ids = keys.entries().iter().map(|entry| entry.kek_id().as_str()).collect::<Vec<_>>().join(", ");
            Error::new(ErrorKind::UnknownKek, ids)
        }
    };
    Failure { error, calls }
}
