//! Asks the KEKs: to wrap a new DEK, all for writing; to unwrap one, any that the message names.
#![forbid(unsafe_code)]

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::future::{Either, select, try_join_all};
use futures_util::stream::FuturesUnordered;

use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::WrappedKeys;
use crate::kek::call::{CallTerms, Caller, Question, Share};
use crate::kek::{Dek, KekError, KekId, KekProvider, UnwrappedDek, WrappedDek};
use crate::memory::clock::Clock;
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
    ) -> Result<(Dek, WrappedKeys), Error> {
        let writing = &self.writing;
        let first =
            writing.first().ok_or_else(|| Error::new(ErrorKind::InvalidOption, "write_to: no KEK for writing"))?;
        for kek in writing {
            self.check_not_revoked(kek.id())?;
        }
        let (dek, made) = match origin {
            DekOrigin::Local => (Dek::random()?, None),
            DekOrigin::KeyService => {
                let (dek, wrapped) = first.generate(question, context).await.map_err(|error| named(first, error))?;
                let dek = dek.to_dek().ok_or_else(|| contract(first.id(), "generated a DEK that is not 32 bytes"))?;
                (dek, Some(own_entry(first, wrapped)?))
            }
        };
        let id = derive_dek_id(&dek, context)?;
        if made.is_some() {
            self.observers.tell(&Event::Wrapped { dek_id: &id, context, kek_id: first.id() });
        }
        let rest = writing.get(usize::from(made.is_some())..).unwrap_or_default();
        let wrapped = try_join_all(rest.iter().map(|kek| self.wrap(question, kek, context, &id, &dek))).await?;
        Ok((dek, WrappedKeys::new(made.into_iter().chain(wrapped))?))
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
    pub(crate) async fn unwrap_any(
        &self,
        question: Question,
        context: &EncryptionContext,
        id: &DekId,
        keys: &WrappedKeys,
    ) -> Result<(Dek, KekId), Error> {
        let mut ways = Vec::new();
        for kek in &self.reading {
            for entry in keys.entries().iter().filter(|entry| kek.recognises(entry.kek_id())) {
                ways.push(Way { kek, entry, failure: None });
            }
        }
        let mut tries = 0;
        loop {
            if let Some(found) = self.try_each(question, context, id, &mut ways).await {
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
    ) -> Option<(Dek, KekId)> {
        let mut waiting: VecDeque<&mut Way<'_>> =
            ways.iter_mut().filter(|way| way.failure.as_ref().is_none_or(KekError::is_worth_a_retry)).collect();
        let mut asked = FuturesUnordered::new();
        let mut latest = waiting.front()?.kek;
        loop {
            if let Some(way) = waiting.pop_front() {
                latest = way.kek;
                asked.push(async move {
                    let answer = self.unwrap_entry(question, way.kek, context, id, way.entry, Tries::One).await;
                    match answer {
                        Ok(dek) => Some((dek, way.entry.kek_id().clone())),
                        Err(failure) => {
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

/// One error for several failures: the one that leaves most hope decides, and every KEK is named.
fn all_failed(keys: &WrappedKeys, ways: Vec<Way<'_>>, tries: u32) -> Error {
    let failures: Vec<(&KekId, KekError)> =
        ways.into_iter().filter_map(|way| Some((way.entry.kek_id(), way.failure?.after(tries)))).collect();
    let detail = failures.iter().map(|(id, error)| format!("{id}: {error}")).collect::<Vec<_>>().join("; ");
    match failures.into_iter().map(|(_, error)| error).min_by_key(KekError::hope) {
        Some(error) => error.into_error(detail),
        None => {
            let ids = keys.entries().iter().map(|entry| entry.kek_id().as_str()).collect::<Vec<_>>().join(", ");
            Error::new(ErrorKind::UnknownKek, ids)
        }
    }
}
