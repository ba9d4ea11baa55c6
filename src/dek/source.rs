//! Makes DEKs for writing and unwraps them for reading.
#![forbid(unsafe_code)]

use std::sync::Arc;

use futures_util::future::try_join_all;

use super::cache::{DekCache, Hit};
use super::writing::{NewDek, check_len};
use super::{LimitsInForce, ReadingDek, Reservation, WritingDek};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::WrappedKeys;
use crate::kek::{Dek, KekError, KekErrorClass, KekId, KekProvider, UnwrappedDek, WrappedDek};
use crate::memory::fork;
use crate::suite::{AeadKey, Backend, DekId, Nonces, Suite, derive_dek_id, derive_message_key};

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

/// The KEKs, in order of preference.
pub(crate) struct Providers {
    /// Every new DEK is wrapped by all of these.
    pub(crate) writing: Vec<Arc<dyn KekProvider>>,
    /// The writing ones, and those for reading only.
    pub(crate) reading: Vec<Arc<dyn KekProvider>>,
}

#[derive(Clone, Copy)]
pub(crate) struct SourceOptions {
    pub(crate) suite: Suite,
    pub(crate) backend: Backend,
    pub(crate) nonces: Nonces,
    pub(crate) origin: DekOrigin,
    pub(crate) limits: LimitsInForce,
}

pub(crate) struct DekSource {
    providers: Providers,
    options: SourceOptions,
    cache: DekCache,
}

impl DekSource {
    pub(crate) fn new(providers: Providers, options: SourceOptions) -> Self {
        Self { providers, cache: DekCache::new(&options.limits), options }
    }

    pub(crate) fn providers(&self) -> &Providers {
        &self.providers
    }

    /// The right to seal one message of `len` bytes, under the DEK at hand or under a new one.
    pub(crate) async fn reserve(
        &self,
        context: &EncryptionContext,
        len: usize,
    ) -> Result<Reservation<Arc<WritingDek>>, Error> {
        check_len(len, &self.options.limits)?;
        if let Some(dek) = self.cache.writing(context)
            && let Ok(reservation) = Reservation::new(dek, len)
        {
            return Ok(reservation);
        }
        let dek = self.make(context).await?;
        // Whoever made it seals first: others cannot use it up before.
        let reservation = Reservation::new(dek.clone(), len)?;
        self.cache.put_writing(dek);
        Ok(reservation)
    }

    /// The DEK for writing at hand, or a new one.
    pub(crate) async fn writing(&self, context: &EncryptionContext) -> Result<Arc<WritingDek>, Error> {
        if let Some(dek) = self.cache.writing(context)
            && dek.has_room()
        {
            return Ok(dek);
        }
        let dek = self.make(context).await?;
        self.cache.put_writing(dek.clone());
        Ok(dek)
    }

    async fn make(&self, context: &EncryptionContext) -> Result<Arc<WritingDek>, Error> {
        let generation = fork::generation();
        let writing = &self.providers.writing;
        let first =
            writing.first().ok_or_else(|| Error::new(ErrorKind::InvalidOption, "write_to: no KEK for writing"))?;
        let (dek, made) = match self.options.origin {
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
        let wrapped_keys = WrappedKeys::new(made.into_iter().chain(wrapped))?;

        let suite = self.options.suite;
        let id = derive_dek_id(&dek, context)?;
        let key = Arc::new(AeadKey::new(self.options.backend, suite, &derive_message_key(&dek, context, suite)?)?);
        let max_age = self.options.limits.max_age;
        // What this process writes it can read without asking, no longer than anything else.
        self.cache.put_reading(Arc::new(ReadingDek::new(context.clone(), id, suite, key.clone(), max_age)));
        let new = NewDek { context: context.clone(), id, suite, key, wrapped_keys, generation };
        Ok(Arc::new(WritingDek::new(new, self.options.nonces, self.options.limits)?))
    }

    /// The DEK for reading at hand, without asking anybody.
    ///
    /// # Errors
    /// The id is known to belong to another context.
    pub(crate) fn reading_cached(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        suite: Suite,
    ) -> Result<Option<Arc<ReadingDek>>, Error> {
        match self.cache.reading(context, id, suite) {
            Hit::Dek(dek) => Ok(Some(dek)),
            Hit::OtherContext => Err(Error::invalid()),
            Hit::None => Ok(None),
        }
    }

    /// The DEK for reading, unwrapped from encoded `wrapped_keys`.
    pub(crate) async fn unwrap(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        suite: Suite,
        wrapped_keys: &[u8],
    ) -> Result<Arc<ReadingDek>, Error> {
        if wrapped_keys.is_empty() {
            return Err(Error::new(ErrorKind::MissingWrappedKeys, id.to_string()));
        }
        let dek = self.unwrap_any(context, id, &WrappedKeys::try_from(wrapped_keys)?).await?;
        let key = Arc::new(AeadKey::new(self.options.backend, suite, &derive_message_key(&dek, context, suite)?)?);
        let dek = Arc::new(ReadingDek::new(context.clone(), *id, suite, key, self.options.limits.max_age));
        self.cache.put_reading(dek.clone());
        Ok(dek)
    }

    /// Any success serves: the providers are asked in order of preference, for the entries that they recognise.
    pub(crate) async fn unwrap_any(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        keys: &WrappedKeys,
    ) -> Result<Dek, Error> {
        let mut failures = Vec::new();
        for provider in &self.providers.reading {
            for entry in keys.entries().iter().filter(|entry| provider.recognises(entry.kek_id())) {
                match unwrap_one(&**provider, context, id, entry).await {
                    Ok(dek) => return Ok(dek),
                    Err(failure) => failures.push((entry.kek_id().clone(), failure)),
                }
            }
        }
        Err(all_failed(keys, failures))
    }
}

/// Unwraps one entry and holds the DEK against the id, which commits to it and to the context: a key service that gives another
/// DEK is an error here, not a garbled payload later.
pub(crate) async fn unwrap_one(
    provider: &dyn KekProvider,
    context: &EncryptionContext,
    id: &DekId,
    entry: &WrappedDek,
) -> Result<Dek, KekError> {
    let unwrapped: UnwrappedDek = provider.unwrap(context, entry).await?;
    let dek = unwrapped.to_dek().ok_or_else(|| KekError::invalid("the unwrapped DEK is not 32 bytes"))?;
    match derive_dek_id(&dek, context) {
        Ok(derived) if derived == *id => Ok(dek),
        _ => Err(KekError::invalid("the unwrapped DEK is not the one that the DEK id names in this context")),
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
