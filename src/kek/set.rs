//! The KEKs of one envelope. All of them wrap a new DEK, and any KEK that the message names unwraps
//! one.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::select_all;

use super::call::{CallBounds, CallTerms, GuardedKek, Lane, Order, with_request_id};
use super::{BoxFuture, Dek, KekError, KekId, KekProvider, Parent, UnwrappedDek, WrappedDek};
use crate::clock::{Clock, Moment};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::WrappedKeys;
use crate::observe::{Event, Observers};
use crate::suite::{DekId, derive_dek_id};
use crate::sync::Arc;

/// Where a new DEK is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum DekOrigin {
    /// In this process, by the operating system's generator. The default.
    #[default]
    Local,
    /// In the key service of the first writing KEK (AWS KMS: `GenerateDataKey`). The quality of
    /// every DEK then depends on that service, and the DEK crosses the network once more than with
    /// `Local`.
    KeyService,
}

/// A source of a DEK: the provider, and the KEK of the wrapped key that it unwrapped or made.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SourceKek {
    /// The provider's own KEK id.
    pub(crate) provider: KekId,
    /// The KEK id of the wrapped key. A provider for related keys may use an id that is not its
    /// own.
    pub(crate) entry: KekId,
}

/// A DEK that a KEK unwrapped.
pub(crate) struct Unwrapped {
    pub(crate) dek: Dek,
    pub(crate) source_kek: SourceKek,
    /// The key of this process that it was derived through, if any.
    pub(crate) parent: Option<Parent>,
    /// When the request was sent.
    pub(crate) asked: Moment,
}

/// The reason why a request failed, and the failure of each KEK.
#[derive(Clone)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) calls: Arc<[FailedCall]>,
    /// The failure of the key store, and its time.
    pub(crate) of_store: Option<(ErrorKind, Moment)>,
    /// Whether the key store has a tombstone in place of the key.
    pub(crate) is_erased: bool,
    /// The key that was to be unwrapped. The request may have named only a part of its id.
    pub(crate) key: Option<DekId>,
}

pub(crate) struct FailedCall {
    provider: KekId,
    /// `None` if a new DEK was to be wrapped.
    entry: Option<WrappedDek>,
    kind: ErrorKind,
    at: Moment,
}

impl FailedCall {
    /// Returns `None` if the error says nothing about the KEK.
    pub(super) fn new(
        kek: &GuardedKek,
        entry: Option<&WrappedDek>,
        error: &KekError,
        at: Moment,
    ) -> Option<Self> {
        let call = || Self {
            provider: kek.id().clone(),
            entry: entry.cloned(),
            kind: error.class().kind(),
            at,
        };
        (!error.is_over_budget()).then(call)
    }
}

impl Failure {
    /// Whether a KEK denied one of these wrapped keys, and none of them had an outage. A KEK that
    /// refuses to wrap a new DEK says nothing about the ones it wrapped earlier.
    pub(crate) fn denies(&self, source_keks: &[SourceKek], wrapped_keys: &WrappedKeys) -> bool {
        let calls = self.calls.iter().filter(|call| call.entry.is_some());
        let worst = worst_about(calls, source_keks, wrapped_keys);
        matches!(worst, Some((ErrorKind::Denied, _)))
    }

    /// Returns the failure of these source KEKs with these wrapped keys, and its time: an outage of
    /// any of them, or else a refusal. `None` if none is known.
    pub(crate) fn about(
        &self,
        source_keks: &[SourceKek],
        wrapped_keys: &WrappedKeys,
    ) -> Option<(ErrorKind, Moment)> {
        worst_about(self.calls.iter(), source_keks, wrapped_keys)
    }
}

fn worst_about<'a>(
    calls: impl Iterator<Item = &'a FailedCall>,
    source_keks: &[SourceKek],
    wrapped_keys: &WrappedKeys,
) -> Option<(ErrorKind, Moment)> {
    let is_about = |call: &&FailedCall| {
        source_keks.iter().any(|source_kek| {
            source_kek.provider == call.provider
                && call.entry.as_ref().is_none_or(|entry| {
                    // Compared with its metadata, since a provider may send another request for
                    // different metadata.
                    source_kek.entry == *entry.kek_id() && wrapped_keys.entries().contains(entry)
                })
        })
    };
    let rank = |kind: &ErrorKind| match kind {
        kind if kind.is_outage() => 0,
        ErrorKind::Denied => 1,
        _ => 2,
    };
    calls.filter(is_about).map(|call| (call.kind, call.at)).min_by_key(|(kind, _)| rank(kind))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, calls: Arc::new([]), of_store: None, is_erased: false, key: None }
    }
}

/// The KEKs of one envelope, in order of preference.
pub(crate) struct KekSet {
    /// The KEKs that wrap every new DEK.
    pub(crate) writing: Vec<Arc<GuardedKek>>,
    /// The writing KEKs, and those for reading only.
    pub(crate) reading: Vec<Arc<GuardedKek>>,
    /// The KEKs that an operator revoked. Held in a pointer and not in a lock, which a fork could
    /// inherit locked.
    revoked: ArcSwap<HashSet<KekId>>,
    /// How long one request may take.
    deadline: Duration,
    pub(super) clock: Clock,
    observers: Observers,
}

impl KekSet {
    pub(crate) fn new(
        wrap_with: Vec<Arc<dyn KekProvider>>,
        unwrap_with: Vec<Arc<dyn KekProvider>>,
        terms: &CallTerms,
    ) -> Self {
        let guarded = |providers: Vec<Arc<dyn KekProvider>>| -> Vec<Arc<GuardedKek>> {
            providers
                .into_iter()
                .map(|provider| Arc::new(GuardedKek::new(provider, terms.clone())))
                .collect()
        };
        let writing = guarded(wrap_with);
        let reading = writing.iter().cloned().chain(guarded(unwrap_with)).collect();
        let (deadline, clock, observers) =
            (terms.policy.deadline(), terms.clock.clone(), terms.observers.clone());
        Self { writing, reading, revoked: ArcSwap::default(), deadline, clock, observers }
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Closes every provider, when the envelope ends.
    pub(crate) fn closing(&self) -> Vec<BoxFuture<'static, ()>> {
        self.reading.iter().map(|kek| kek.clone().close()).collect()
    }

    /// Returns the bounds of a request that begins now.
    pub(crate) fn bounds(&self, lane: Lane) -> CallBounds {
        CallBounds { ends: self.clock.now().plus(self.deadline), lane }
    }

    /// Returns how many requests one caller may make at the same time, so that none waits for its
    /// turn past its deadline.
    pub(crate) fn at_once(&self) -> usize {
        self.writing.iter().map(|kek| kek.at_once(self.writing.len())).min().unwrap_or(1)
    }

    /// Makes a new DEK, wrapped by every writing KEK.
    pub(crate) async fn make(
        &self,
        bounds: CallBounds,
        context: &EncryptionContext,
        origin: DekOrigin,
    ) -> Result<Made, Failure> {
        let asked = self.clock.now();
        let writing = &self.writing;
        let first = writing.first().ok_or_else(no_writing_kek)?;
        for kek in writing {
            self.check_not_revoked(kek.id())
                .map_err(|error| failed_wrap(kek, error, self.clock.now()))?;
        }
        // A KEK that derives its DEKs must be the one that makes them.
        let deriving = writing.iter().find(|kek| kek.derives_deks());
        let maker = deriving.or_else(|| (origin == DekOrigin::KeyService).then_some(first));
        let mut parents = Vec::new();
        let (new, made) = match maker {
            None => (Dek::random()?, None),
            Some(maker) => {
                let (generated, request_id) =
                    with_request_id(maker.generate(bounds, context)).await;
                let (mut dek, wrapped) =
                    generated.map_err(|error| failed_wrap(maker, error, self.clock.now()))?;
                parents.extend(dek.take_parent());
                let dek = dek
                    .to_dek()
                    .ok_or_else(|| contract(maker.id(), "generated a DEK that is not 32 bytes"))?;
                (dek, Some((maker, own_entry(maker, wrapped)?, request_id)))
            }
        };
        let id = derive_dek_id(&new, context)?;
        if let Some((maker, entry, request_id)) = &made {
            self.emit_wrapped(maker, context, &id, entry, request_id.as_deref());
        }
        let rest = writing.iter().filter(|kek| !maker.is_some_and(|maker| Arc::ptr_eq(kek, maker)));
        let source_kek = |kek: &GuardedKek, entry: &WrappedDek| SourceKek {
            provider: kek.id().clone(),
            entry: entry.kek_id().clone(),
        };
        let mut source_keks: Vec<_> =
            made.iter().map(|(maker, entry, _)| source_kek(maker, entry)).collect();
        let mut entries: Vec<_> = made.into_iter().map(|(_, entry, _)| entry).collect();
        let (id, dek) = (&id, &new);
        let ask = async |kek: &'_ Arc<GuardedKek>| {
            let (wrapped, request_id) = with_request_id(kek.wrap(bounds, context, dek)).await;
            let wrapped = wrapped.map_err(|error| failed_wrap(kek, error, self.clock.now()))?;
            let entry = self.wrapped_by(kek, context, id, wrapped, request_id.as_deref())?;
            // A KEK in this process is a source of the DEK as long as its own key may be used.
            let parent = match kek.derives_deks() {
                true => {
                    self.unwrap_entry(bounds, kek, context, id, &entry, RetryMode::ByPolicy)
                        .await
                        .map_err(|error| failed_wrap(kek, error, self.clock.now()))?
                        .1
                }
                false => None,
            };
            Ok::<_, Failure>((source_kek(kek, &entry), entry, parent))
        };
        let mut asking: Vec<_> = rest.map(|kek| Box::pin(ask(kek))).collect();
        let mut failure: Option<Failure> = None;
        while !asking.is_empty() {
            let (answer, _, others) = select_all(asking).await;
            asking = others;
            match answer {
                Ok((source_kek, entry, parent)) => {
                    source_keks.push(source_kek);
                    entries.push(entry);
                    parents.extend(parent);
                }
                // One denial is enough. Any other failure waits for the rest, so that an outage of
                // one KEK does not hide another's denial.
                Err(denied) if denied.error.kind() == ErrorKind::Denied => return Err(denied),
                Err(other) => failure = Some(failure.unwrap_or(other)),
            }
        }
        drop(asking);
        if let Some(failure) = failure {
            return Err(failure);
        }
        for kek_id in parents.iter().flat_map(|parent| parent.kek_ids()) {
            self.check_not_revoked(kek_id)
                .map_err(|error| failed_wrap(first, error, self.clock.now()))?;
        }
        Ok(Made {
            dek: new,
            wrapped_keys: WrappedKeys::new(entries)?,
            source_keks: source_keks.into(),
            parents: parents.into(),
            asked,
        })
    }

    pub(super) fn wrapped_by(
        &self,
        kek: &GuardedKek,
        context: &EncryptionContext,
        dek_id: &DekId,
        wrapped: WrappedDek,
        request_id: Option<&str>,
    ) -> Result<WrappedDek, Error> {
        let wrapped = own_entry(kek, wrapped)?;
        self.emit_wrapped(kek, context, dek_id, &wrapped, request_id);
        Ok(wrapped)
    }

    fn emit_wrapped(
        &self,
        kek: &GuardedKek,
        context: &EncryptionContext,
        dek_id: &DekId,
        entry: &WrappedDek,
        request_id: Option<&str>,
    ) {
        if self.observers.are_none() {
            return;
        }
        let (kek_id, version) = (entry.kek_id(), kek.key_version(entry));
        let kek_version = version.as_deref();
        self.observers.emit(&Event::Wrapped { dek_id, context, kek_id, kek_version, request_id });
    }

    /// Unwraps one entry and checks the DEK against the id, which commits to it and to the context.
    /// If a key service returns another DEK, the error occurs here and not at a later decryption.
    pub(crate) async fn unwrap_entry(
        &self,
        bounds: CallBounds,
        kek: &GuardedKek,
        context: &EncryptionContext,
        id: &DekId,
        entry: &WrappedDek,
        tries: RetryMode,
    ) -> Result<(Dek, Option<Parent>), KekError> {
        // Checked by both ids of the KEK: the provider's own KEK unwraps the entry of a related
        // key.
        self.check_not_revoked(kek.id())?;
        self.check_not_revoked(entry.kek_id())?;
        let (unwrapped, request_id) = with_request_id(async {
            match tries {
                RetryMode::Once(order) => kek.unwrap_once(bounds, order, context, entry).await,
                RetryMode::ByPolicy => kek.unwrap(bounds, context, entry).await,
            }
        })
        .await;
        let answer = UnwrapAnswer { kek, request_id: request_id.as_deref() };
        self.check_unwrapped(context, id, entry, answer, &mut unwrapped?)
    }

    /// Whether any KEK may be able to unwrap without a call.
    pub(crate) fn may_unwrap_at_once(&self) -> bool {
        self.reading.iter().any(|kek| kek.derives_deks())
    }

    /// Unwraps the DEK by the KEK that [`unwrap_any`](Self::unwrap_any) would ask first, if it can
    /// without a call.
    pub(crate) fn unwrap_at_once(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        keys: &WrappedKeys,
    ) -> Option<Unwrapped> {
        let recognised = |kek: &'_ Arc<GuardedKek>| {
            let own = keys.entries().iter().find(|entry| entry.kek_id() == kek.id());
            own.or_else(|| keys.entries().iter().find(|entry| kek.recognises(entry.kek_id())))
        };
        let (kek, entry) = self.reading.iter().find_map(|kek| Some((kek, recognised(kek)?)))?;
        self.check_not_revoked(kek.id()).ok()?;
        self.check_not_revoked(entry.kek_id()).ok()?;
        let asked = self.clock.now();
        let mut unwrapped = kek.unwrap_cached(context, entry)?;
        let answer = UnwrapAnswer { kek, request_id: None };
        let (dek, parent) =
            self.check_unwrapped(context, id, entry, answer, &mut unwrapped).ok()?;
        let source_kek = SourceKek { provider: kek.id().clone(), entry: entry.kek_id().clone() };
        Some(Unwrapped { dek, source_kek, parent, asked })
    }

    pub(super) fn check_unwrapped(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        entry: &WrappedDek,
        answer: UnwrapAnswer<'_>,
        unwrapped: &mut UnwrappedDek,
    ) -> Result<(Dek, Option<Parent>), KekError> {
        let parent = unwrapped.take_parent();
        for kek_id in parent.iter().flat_map(|parent| parent.kek_ids()) {
            self.check_not_revoked(kek_id)?;
        }
        let dek = unwrapped
            .to_dek()
            .ok_or_else(|| KekError::invalid("the unwrapped DEK is not 32 bytes"))?;
        match derive_dek_id(&dek, context) {
            Ok(derived) if derived == *id => {
                if !self.observers.are_none() {
                    let version = answer.kek.key_version(entry);
                    self.observers.emit(&Event::Unwrapped {
                        dek_id: id,
                        context,
                        kek_id: entry.kek_id(),
                        kek_version: version.as_deref(),
                        request_id: answer.request_id,
                    });
                }
                Ok((dek, parent))
            }
            _ => Err(KekError::invalid(
                "the unwrapped DEK is not the one that the DEK id names in this context",
            )),
        }
    }

    /// Whether every writing KEK has an entry of its current version, and no other KEK has an
    /// entry. `None` if the bytes do not say.
    pub(crate) fn are_current(&self, keys: &WrappedKeys) -> Option<bool> {
        let mut current = Some(keys.entries().len() == self.writing.len());
        for kek in &self.writing {
            let entry = keys.entries().iter().find(|entry| entry.kek_id() == kek.id());
            match entry.map_or(Some(false), |entry| kek.is_current(entry)) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => current = current.filter(|current| !current),
            }
        }
        current
    }

    /// Whether an earlier version of a writing KEK is known to have made one of these.
    pub(crate) fn are_outdated(&self, keys: &WrappedKeys) -> bool {
        keys.entries().iter().any(|entry| {
            let of_entry = |kek: &&Arc<GuardedKek>| kek.recognises(entry.kek_id());
            self.writing.iter().filter(of_entry).any(|kek| kek.is_current(entry) == Some(false))
        })
    }

    pub(crate) fn revoke(&self, kek_id: &KekId) {
        self.revoked.rcu(|revoked| {
            let mut revoked = HashSet::clone(revoked);
            revoked.insert(kek_id.clone());
            revoked
        });
    }

    pub(crate) fn reinstate(&self, kek_id: &KekId) {
        self.revoked.rcu(|revoked| {
            let mut revoked = HashSet::clone(revoked);
            revoked.remove(kek_id);
            revoked
        });
    }

    pub(crate) fn check_not_revoked(&self, kek_id: &KekId) -> Result<(), KekError> {
        match self.revoked.load().contains(kek_id) {
            true => Err(KekError::denied("revoked in this process").without_asking()),
            false => Ok(()),
        }
    }
}

/// Makes a new DEK, wrapped by every writing KEK.
pub(crate) struct Made {
    pub(crate) dek: Dek,
    pub(crate) wrapped_keys: WrappedKeys,
    pub(crate) source_keks: Box<[SourceKek]>,
    /// The keys of this process that it was derived through.
    pub(crate) parents: Box<[Parent]>,
    /// When the first request was sent.
    pub(crate) asked: Moment,
}

/// The KEK that unwrapped an entry, and the time of its request.
#[derive(Clone, Copy)]
pub(super) struct UnwrapAnswer<'a> {
    pub(super) kek: &'a GuardedKek,
    pub(super) request_id: Option<&'a str>,
}

/// How often an entry is tried before it counts as failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryMode {
    Once(Order),
    ByPolicy,
}

/// Refuses an entry that its own provider would not recognise, so that it is never written into a
/// message.
fn own_entry(kek: &GuardedKek, wrapped: WrappedDek) -> Result<WrappedDek, Error> {
    if kek.recognises(wrapped.kek_id()) {
        return Ok(wrapped);
    }
    Err(contract(
        kek.id(),
        &format!("wrapped under {}, which it does not recognise", wrapped.kek_id()),
    ))
}

fn contract(kek_id: &KekId, what: &str) -> Error {
    Error::new(ErrorKind::Provider, format!("{kek_id} {what}"))
}
pub(super) fn no_writing_kek() -> Error {
    Error::new(ErrorKind::InvalidOption, "wrap_with: no KEK for writing")
}

/// Returns the failure of one KEK, with the KEK's id in its message.
pub(crate) fn named(kek: &GuardedKek, error: KekError) -> Error {
    let detail = format!("{}: {error}", kek.id());
    error.into_error(detail)
}

fn failed_wrap(kek: &GuardedKek, error: KekError, at: Moment) -> Failure {
    let calls = FailedCall::new(kek, None, &error, at).into_iter().collect();
    Failure { calls, ..not_wrapped(kek, error).into() }
}

/// Does the same as [`named`], for a DEK that was not wrapped.
pub(super) fn not_wrapped(kek: &GuardedKek, error: KekError) -> Error {
    let detail = format!("{}: {error}", kek.id());
    error.into_error_of_wrapping(detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ManualClock;

    #[test]
    fn a_denial_is_about_the_wrapped_key_that_was_denied_whatever_else_failed() {
        let kek = KekId::new("kek").unwrap();
        let entry = |byte| WrappedDek::new(kek.clone(), vec![byte; 40]).unwrap();
        let at = Clock::Manual(ManualClock::new()).now();
        let call =
            |entry: Option<WrappedDek>, kind| FailedCall { provider: kek.clone(), entry, kind, at };
        let denies = |calls: Vec<FailedCall>| {
            let failure = Failure { calls: calls.into(), ..Error::invalid().into() };
            let source_keks = [SourceKek { provider: kek.clone(), entry: kek.clone() }];
            failure.denies(&source_keks, &WrappedKeys::new([entry(1)]).unwrap())
        };
        let (denied, outage) = (ErrorKind::Denied, ErrorKind::Unavailable);
        for (calls, expected) in [
            (vec![], false),
            (vec![call(Some(entry(1)), denied)], true),
            (vec![call(Some(entry(2)), denied)], false),
            (vec![call(Some(entry(1)), outage)], false),
            // A new DEK was not wrapped.
            (vec![call(None, denied)], false),
            (vec![call(None, denied), call(Some(entry(1)), denied)], true),
            (vec![call(None, outage), call(Some(entry(1)), denied)], true),
            (vec![call(None, denied), call(Some(entry(1)), outage)], false),
        ] {
            let shown: Vec<_> =
                calls.iter().map(|call| (call.entry.is_some(), call.kind)).collect();
            assert_eq!(denies(calls), expected, "{shown:?}");
        }
    }
}
