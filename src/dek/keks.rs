//! Asks the KEKs: to wrap a new DEK, all for writing; to unwrap one, any that the message names.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::future::try_join_all;

use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::WrappedKeys;
use crate::kek::{Dek, KekError, KekErrorClass, KekId, KekProvider, UnwrappedDek, WrappedDek};
use crate::suite::{DekId, derive_dek_id};

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
    pub(crate) writing: Vec<Arc<dyn KekProvider>>,
    /// The writing ones, and those for reading only.
    pub(crate) reading: Vec<Arc<dyn KekProvider>>,
    /// Those that an operator revoked.
    revoked: RwLock<HashSet<KekId>>,
}

impl Keks {
    pub(crate) fn new(writing: Vec<Arc<dyn KekProvider>>, reading: Vec<Arc<dyn KekProvider>>) -> Self {
        Self { writing, reading, revoked: RwLock::default() }
    }

    /// A new DEK, wrapped by every writing KEK.
    pub(super) async fn make(
        &self,
        context: &EncryptionContext,
        origin: DekOrigin,
    ) -> Result<(Dek, WrappedKeys), Error> {
        let writing = &self.writing;
        let first =
            writing.first().ok_or_else(|| Error::new(ErrorKind::InvalidOption, "write_to: no KEK for writing"))?;
        for provider in writing {
            self.check_not_revoked(provider.id())?;
        }
        let (dek, made) = match origin {
            DekOrigin::Local => (Dek::random()?, None),
            DekOrigin::KeyService => {
                let (dek, wrapped) = first.generate(context).await?;
                let dek = dek.to_dek().ok_or_else(|| contract(first.id(), "generated a DEK that is not 32 bytes"))?;
                (dek, Some(own_entry(&**first, wrapped)?))
            }
        };
        let rest = writing.get(usize::from(made.is_some())..).unwrap_or_default();
        let wrapped = try_join_all(rest.iter().map(async |provider| {
            let wrapped = provider.wrap(context, &dek).await?;
            own_entry(&**provider, wrapped)
        }))
        .await?;
        Ok((dek, WrappedKeys::new(made.into_iter().chain(wrapped))?))
    }

    /// Any success serves: the providers are asked in order of preference, for the entries that they recognise.
    pub(crate) async fn unwrap_any(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        keys: &WrappedKeys,
    ) -> Result<(Dek, KekId), Error> {
        let mut failures = Vec::new();
        for provider in &self.reading {
            for entry in keys.entries().iter().filter(|entry| provider.recognises(entry.kek_id())) {
                let kek_id = entry.kek_id().clone();
                match self.unwrap_one(&**provider, context, id, entry).await {
                    Ok(dek) => return Ok((dek, kek_id)),
                    Err(failure) => failures.push((kek_id, failure)),
                }
            }
        }
        Err(all_failed(keys, failures))
    }

    /// Unwraps one entry and holds the DEK against the id, which commits to it and to the context: a key service that gives
    /// another DEK is an error here, not a garbled payload later.
    pub(crate) async fn unwrap_one(
        &self,
        provider: &dyn KekProvider,
        context: &EncryptionContext,
        id: &DekId,
        entry: &WrappedDek,
    ) -> Result<Dek, KekError> {
        self.check_not_revoked(entry.kek_id())?;
        let unwrapped: UnwrappedDek = provider.unwrap(context, entry).await?;
        let dek = unwrapped.to_dek().ok_or_else(|| KekError::invalid("the unwrapped DEK is not 32 bytes"))?;
        match derive_dek_id(&dek, context) {
            Ok(derived) if derived == *id => Ok(dek),
            _ => Err(KekError::invalid("the unwrapped DEK is not the one that the DEK id names in this context")),
        }
    }

    pub(super) fn revoke(&self, kek_id: &KekId) {
        self.revoked.write().unwrap_or_else(PoisonError::into_inner).insert(kek_id.clone());
    }

    pub(super) fn reinstate(&self, kek_id: &KekId) {
        self.revoked.write().unwrap_or_else(PoisonError::into_inner).remove(kek_id);
    }

    pub(crate) fn check_not_revoked(&self, kek_id: &KekId) -> Result<(), KekError> {
        match self.revoked.read().unwrap_or_else(PoisonError::into_inner).contains(kek_id) {
            true => Err(KekError::denied("revoked in this process")),
            false => Ok(()),
        }
    }
}

/// An entry that its own provider would not take back is never written into a message.
pub(crate) fn own_entry(provider: &dyn KekProvider, wrapped: WrappedDek) -> Result<WrappedDek, Error> {
    if provider.recognises(wrapped.kek_id()) {
        return Ok(wrapped);
    }
    Err(contract(provider.id(), &format!("wrapped under {}, which it does not recognise", wrapped.kek_id())))
}

fn contract(kek_id: &KekId, what: &str) -> Error {
    Error::new(ErrorKind::Provider, format!("{kek_id} {what}"))
}

/// One error for several failures: the one that leaves most hope decides, and every KEK is named.
fn all_failed(keys: &WrappedKeys, failures: Vec<(KekId, KekError)>) -> Error {
    const MOST_HOPEFUL_FIRST: [KekErrorClass; 5] = [
        KekErrorClass::Unavailable,
        KekErrorClass::Throttled,
        KekErrorClass::Misconfigured,
        KekErrorClass::Denied,
        KekErrorClass::Invalid,
    ];
    let rank = |error: &KekError| MOST_HOPEFUL_FIRST.iter().position(|class| *class == error.class());
    let detail = failures.iter().map(|(id, error)| format!("{id}: {error}")).collect::<Vec<_>>().join("; ");
    match failures.into_iter().map(|(_, error)| error).min_by_key(rank) {
        Some(error) => error.into_error(detail),
        None => {
            let ids = keys.entries().iter().map(|entry| entry.kek_id().as_str()).collect::<Vec<_>>().join(", ");
            Error::new(ErrorKind::UnknownKek, ids)
        }
    }
}
