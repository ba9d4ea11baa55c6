//! Asks the KEKs: to wrap a new DEK, all for writing; to unwrap one, any that the message names.
#![forbid(unsafe_code)]

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::future::{Either, select, select_all};
use futures_util::stream::FuturesUnordered;

use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::WrappedKeys;
use crate::kek::call::{CallTerms, Caller, Question, Share};
use crate::kek::{BoxFuture, Dek, KekError, KekErrorClass, KekId, KekProvider, UnwrappedDek, WrappedDek};
use crate::memory::clock::{Clock, Moment};
use crate::observer::{Event, Observers};
use crate::suite::{DekId, derive_dek_id};
use crate::sync::Arc;

/// Who makes a DEK.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum DekOrigin {
    /// This process, from the operating system's generator. The default.
    #[default]
    Local,
    /// The key service of the first writing KEK (AWS KMS: `GenerateDataKey`). The quality of every DEK then rests on that service,
    /// and the DEK crosses the network once more than with `Local`.
    KeyService,
}

/// Who vouches for a DEK: a provider, by the KEK of a wrapped key that it unwrapped or made.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Voucher {
    /// The provider's own KEK id.
    pub(crate) provider: KekId,
    /// The KEK id of the wrapped key, which a provider for related keys may call otherwise.
    pub(crate) entry: KekId,
}

/// A DEK that a KEK unwrapped.
pub(crate) struct Unwrapped {
    pub(crate) dek: Dek,
    pub(crate) voucher: Voucher,
    /// Before the question was sent.
    pub(crate) asked: Moment,
}

/// Why a question failed, and what befell which KEK.
#[derive(Clone)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    parts: Arc<[FailedPart]>,
}

struct FailedPart {
    provider: KekId,
    /// `None` where a new DEK was to be wrapped.
    entry: Option<WrappedDek>,
    kind: ErrorKind,
}

impl Failure {
    /// What befell these vouchers of a DEK with these wrapped keys: an outage of any of them, or else a refusal. `None` if nothing that
    /// is known.
    pub(crate) fn about(&self, vouchers: &[Voucher], wrapped_keys: &WrappedKeys) -> Option<ErrorKind> {
        let is_about = |part: &&FailedPart| {
            vouchers.iter().any(|voucher| {
                voucher.provider == part.provider
                    && part.entry.as_ref().is_none_or(|entry| {
                        voucher.entry == *entry.kek_id()
                            && wrapped_keys
                                .entries()
                                .iter()
                                .any(|own| own.kek_id() == entry.kek_id() && own.wrapped() == entry.wrapped())
                    })
            })
        };
        let rank = |kind: &ErrorKind| match kind {
            kind if kind.is_outage() => 0,
            ErrorKind::Denied => 1,
            _ => 2,
        };
        self.parts.iter().filter(is_about).map(|part| part.kind).min_by_key(rank)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, parts: Arc::new([]) }
    }
}

/// The KEKs of one envelope, in order of preference.
pub(crate) struct Keks {
    /// Every new DEK is wrapped by all of these.
    pub(crate) writing: Vec<Arc<Caller>>,
    /// The writing ones, and those for reading only.
    pub(crate) reading: Vec<Arc<Caller>>,
    /// Those that an operator revoked. Behind a pointer and not a lock, which a fork could inherit locked.
    revoked: ArcSwap<HashSet<KekId>>,
    /// How long one question may take.
    deadline: Duration,
    clock: Clock,
    observers: Observers,
}

impl Keks {
    pub(crate) fn new(
        write_to: Vec<Arc<dyn KekProvider>>,
        read_from: Vec<Arc<dyn KekProvider>>,
        terms: &CallTerms,
    ) -> Self {
        let callers = |providers: Vec<Arc<dyn KekProvider>>| -> Vec<Arc<Caller>> {
            providers.into_iter().map(|provider| Arc::new(Caller::new(provider, terms.clone()))).collect()
        };
        let writing = callers(write_to);
        let reading = writing.iter().cloned().chain(callers(read_from)).collect();
        let (deadline, clock, observers) = (terms.policy.deadline(), terms.clock.clone(), terms.observers.clone());
        Self { writing, reading, revoked: ArcSwap::default(), deadline, clock, observers }
    }

    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// What every provider gives up when its envelope ends.
    pub(super) fn closing(&self) -> Vec<BoxFuture<'static, ()>> {
        self.reading.iter().map(|kek| kek.clone().close()).collect()
    }

    /// A question that is asked from now on.
    pub(crate) fn question(&self, share: Share) -> Question {
        Question { ends: self.clock.now().plus(self.deadline), share }
    }

    /// A new DEK, wrapped by every writing KEK.
    pub(super) async fn make(
        &self,
        question: Question,
        context: &EncryptionContext,
        origin: DekOrigin,
    ) -> Result<Made, Failure> {
        let asked = self.clock.now();
        let writing = &self.writing;
        let first =
            writing.first().ok_or_else(|| Error::new(ErrorKind::InvalidOption, "write_to: no KEK for writing"))?;
        for kek in writing {
            self.check_not_revoked(kek.id()).map_err(|error| failed_wrap(kek, error))?;
        }
        let (new, made) = match origin {
            DekOrigin::Local => (Dek::random()?, None),
            DekOrigin::KeyService => {
                let (dek, wrapped) =
                    first.generate(question, context).await.map_err(|error| failed_wrap(first, error))?;
                let dek = dek.to_dek().ok_or_else(|| contract(first.id(), "generated a DEK that is not 32 bytes"))?;
                (dek, Some(own_entry(first, wrapped)?))
            }
        };
        let id = derive_dek_id(&new, context)?;
        if made.is_some() {
            self.observers.tell(&Event::Wrapped { dek_id: &id, context, kek_id: first.id() });
        }
        let rest = writing.get(usize::from(made.is_some())..).unwrap_or_default();
        let voucher =
            |kek: &Caller, entry: &WrappedDek| Voucher { provider: kek.id().clone(), entry: entry.kek_id().clone() };
        let mut vouchers: Vec<_> = made.iter().map(|entry| voucher(first, entry)).collect();
        let mut entries: Vec<_> = made.into_iter().collect();
        let (id, dek) = (&id, &new);
        let ask = async |kek: &'_ Arc<Caller>| {
            let wrapped = kek.wrap(question, context, dek).await.map_err(|error| failed_wrap(kek, error))?;
            let entry = self.wrapped_by(kek, context, id, wrapped)?;
            Ok::<_, Failure>((voucher(kek, &entry), entry))
        };
        let mut asking: Vec<_> = rest.iter().map(|kek| Box::pin(ask(kek))).collect();
        let mut failure: Option<Failure> = None;
        while !asking.is_empty() {
            let (answer, _, others) = select_all(asking).await;
            asking = others;
            match answer {
                Ok((voucher, entry)) => {
                    vouchers.push(voucher);
                    entries.push(entry);
                }
                // One denial is enough. Any other failure waits for the rest: an outage of one KEK hides no denial by another.
                Err(denied) if denied.error.kind() == ErrorKind::Denied => return Err(denied),
                Err(other) => failure = Some(failure.unwrap_or(other)),
            }
        }
        drop(asking);
        match failure {
            Some(failure) => Err(failure),
            None => Ok(Made { dek: new, wrapped_keys: WrappedKeys::new(entries)?, vouchers: vouchers.into(), asked }),
        }
    }

    /// Has one KEK wrap a DEK.
    pub(crate) async fn wrap(
        &self,
        question: Question,
        kek: &Caller,
        context: &EncryptionContext,
        id: &DekId,
        dek: &Dek,
    ) -> Result<WrappedDek, Error> {
        let wrapped = kek.wrap(question, context, dek).await.map_err(|error| named(kek, error))?;
        self.wrapped_by(kek, context, id, wrapped)
    }

    /// Has one KEK wrap a DEK anew.
    pub(crate) async fn rewrap(
        &self,
        question: Question,
        kek: &Caller,
        context: &EncryptionContext,
        id: &DekId,
        old: &WrappedDek,
    ) -> Result<Result<WrappedDek, Error>, KekError> {
        let wrapped = kek.rewrap(question, context, old).await?;
        Ok(self.wrapped_by(kek, context, id, wrapped))
    }

    fn wrapped_by(
        &self,
        kek: &Caller,
        context: &EncryptionContext,
        dek_id: &DekId,
        wrapped: WrappedDek,
    ) -> Result<WrappedDek, Error> {
        let wrapped = own_entry(kek, wrapped)?;
        self.observers.tell(&Event::Wrapped { dek_id, context, kek_id: wrapped.kek_id() });
        Ok(wrapped)
    }

    /// Any success serves. The KEKs are asked in order of preference, for the entries that they recognise: the next one when the one
    /// before it failed, or takes longer than it mostly does. All that may still succeed are asked again after a pause.
    ///
    /// Each denial is reported to `heard` when it comes, since other KEKs may keep the answer waiting.
    pub(crate) async fn unwrap_any(
        &self,
        question: Question,
        context: &EncryptionContext,
        id: &DekId,
        keys: &WrappedKeys,
        heard: Heard<'_>,
    ) -> Result<Unwrapped, Failure> {
        let mut ways = Vec::new();
        for kek in &self.reading {
            for entry in keys.entries().iter().filter(|entry| kek.recognises(entry.kek_id())) {
                ways.push(Way { kek, entry, failure: None });
            }
        }
        let mut tries = 0;
        loop {
            if let Some(found) = self.try_each(question, context, id, &mut ways, heard).await {
                return Ok(found);
            }
            tries += 1;
            let hopeful = ways.iter().filter_map(|way| Some((way.kek, way.failure.as_ref()?)));
            let hopeful =
                hopeful.filter(|(_, failure)| failure.is_worth_a_retry()).min_by_key(|(_, failure)| failure.hope());
            match hopeful {
                Some((kek, failure)) if kek.pause(question, tries, failure).await => {}
                _ => return Err(all_failed(keys, ways, tries)),
            }
        }
    }

    /// One try of every way that has not failed for good.
    async fn try_each(
        &self,
        question: Question,
        context: &EncryptionContext,
        id: &DekId,
        ways: &mut [Way<'_>],
        heard: Heard<'_>,
    ) -> Option<Unwrapped> {
        let mut waiting: VecDeque<&mut Way<'_>> =
            ways.iter_mut().filter(|way| way.failure.as_ref().is_none_or(KekError::is_worth_a_retry)).collect();
        let mut asked = FuturesUnordered::new();
        let mut latest = waiting.front()?.kek;
        loop {
            if let Some(way) = waiting.pop_front() {
                latest = way.kek;
                asked.push(async move {
                    let asked = self.clock.now();
                    let answer = self.unwrap_entry(question, way.kek, context, id, way.entry, Tries::One).await;
                    match answer {
                        Ok(dek) => {
                            let voucher = Voucher { provider: way.kek.id().clone(), entry: way.entry.kek_id().clone() };
                            Some(Unwrapped { dek, voucher, asked })
                        }
                        Err(failure) => {
                            if failure.class() == KekErrorClass::Denied {
                                heard(way.kek.id(), way.entry);
                            }
                            way.failure = Some(failure);
                            None
                        }
                    }
                });
            }
            let answer = match latest.hedge_after().filter(|_| !waiting.is_empty()) {
                Some(wait) => match select(asked.next(), std::pin::pin!(latest.sleep(wait))).await {
                    Either::Left((answer, _)) => answer,
                    // It takes longer than usual: the next one as well.
                    Either::Right(_) => continue,
                },
                None => asked.next().await,
            };
            match answer {
                Some(Some(found)) => return Some(found),
                // That one failed; another one is asked, or on its way.
                Some(None) => {}
                None => return None,
            }
        }
    }

    /// Unwraps one entry and holds the DEK against the id, which commits to it and to the context: a key service that gives
    /// another DEK is an error here, not a garbled payload later.
    pub(crate) async fn unwrap_entry(
        &self,
        question: Question,
        kek: &Caller,
        context: &EncryptionContext,
        id: &DekId,
        entry: &WrappedDek,
        tries: Tries,
    ) -> Result<Dek, KekError> {
        // Either name of the KEK will do: a related key's entry is unwrapped by the provider's own.
        self.check_not_revoked(kek.id())?;
        self.check_not_revoked(entry.kek_id())?;
        let unwrapped: UnwrappedDek = match tries {
            Tries::One => kek.unwrap_once(question, context, entry).await?,
            Tries::ByPolicy => kek.unwrap(question, context, entry).await?,
        };
        let dek = unwrapped.to_dek().ok_or_else(|| KekError::invalid("the unwrapped DEK is not 32 bytes"))?;
        match derive_dek_id(&dek, context) {
            Ok(derived) if derived == *id => {
                self.observers.tell(&Event::Unwrapped { dek_id: id, context, kek_id: entry.kek_id() });
                Ok(dek)
            }
            _ => Err(KekError::invalid("the unwrapped DEK is not the one that the DEK id names in this context")),
        }
    }

    pub(super) fn revoke(&self, kek_id: &KekId) {
        self.revoked.rcu(|revoked| {
            let mut revoked = HashSet::clone(revoked);
            revoked.insert(kek_id.clone());
            revoked
        });
    }

    pub(super) fn reinstate(&self, kek_id: &KekId) {
        self.revoked.rcu(|revoked| {
            let mut revoked = HashSet::clone(revoked);
            revoked.remove(kek_id);
            revoked
        });
    }

    pub(crate) fn check_not_revoked(&self, kek_id: &KekId) -> Result<(), KekError> {
        match self.revoked.load().contains(kek_id) {
            true => Err(KekError::denied("revoked in this process")),
            false => Ok(()),
        }
    }
}

/// A new DEK, wrapped by every writing KEK.
pub(super) struct Made {
    pub(super) dek: Dek,
    pub(super) wrapped_keys: WrappedKeys,
    pub(super) vouchers: Box<[Voucher]>,
    /// Before the first question was sent.
    pub(super) asked: Moment,
}

/// Called with the provider and the wrapped key that it denied.
pub(crate) type Heard<'a> = &'a (dyn Fn(&KekId, &WrappedDek) + Sync);

/// How often an entry is tried before it counts as failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tries {
    One,
    ByPolicy,
}

/// One of the ways to a DEK: an entry of its wrapped keys, and who unwraps it.
struct Way<'a> {
    kek: &'a Caller,
    entry: &'a WrappedDek,
    failure: Option<KekError>,
}

/// An entry that its own provider would not take back is never written into a message.
fn own_entry(kek: &Caller, wrapped: WrappedDek) -> Result<WrappedDek, Error> {
    if kek.recognises(wrapped.kek_id()) {
        return Ok(wrapped);
    }
    Err(contract(kek.id(), &format!("wrapped under {}, which it does not recognise", wrapped.kek_id())))
}

fn contract(kek_id: &KekId, what: &str) -> Error {
    Error::new(ErrorKind::Provider, format!("{kek_id} {what}"))
}

/// The failure of one KEK, which its message names.
pub(crate) fn named(kek: &Caller, error: KekError) -> Error {
    let detail = format!("{}: {error}", kek.id());
    error.into_error(detail)
}

fn failed_wrap(kek: &Caller, error: KekError) -> Failure {
    let part = FailedPart { provider: kek.id().clone(), entry: None, kind: error.class().kind() };
    Failure { error: named(kek, error), parts: Arc::new([part]) }
}

/// One error for several failures: the one that leaves most hope decides, and every KEK is named.
fn all_failed(keys: &WrappedKeys, ways: Vec<Way<'_>>, tries: u32) -> Failure {
    let failures: Vec<(Way<'_>, KekError)> = ways
        .into_iter()
        .filter_map(|mut way| {
            let failure = way.failure.take()?.after(tries);
            Some((way, failure))
        })
        .collect();
    let part = |(way, error): &(Way<'_>, KekError)| FailedPart {
        provider: way.kek.id().clone(),
        entry: Some(way.entry.clone()),
        kind: error.class().kind(),
    };
    let parts = failures.iter().map(part).collect();
    let text = |(way, error): &(Way<'_>, KekError)| format!("{}: {error}", way.entry.kek_id());
    let detail = failures.iter().map(text).collect::<Vec<_>>().join("; ");
    let error = match failures.into_iter().map(|(_, error)| error).min_by_key(KekError::hope) {
        Some(error) => error.into_error(detail),
        None => {
            let ids = keys.entries().iter().map(|entry| entry.kek_id().as_str()).collect::<Vec<_>>().join(", ");
            Error::new(ErrorKind::UnknownKek, ids)
        }
    };
    Failure { error, parts }
}
