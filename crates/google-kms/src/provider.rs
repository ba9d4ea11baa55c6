//! The provider: translates the library's requests to calls of Cloud KMS.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt, stream};

use crate::answers::Description;
use crate::client::Service;
use crate::errors::Failure;
use crate::health_check::HealthCheck;
use crate::keys::{Keys, Made, Settled};
use waxseal::kek::toolkit::Spawner;
use waxseal::kek::{
    BoxFuture, CallTarget, ContextBinding, Health, KekError, KekErrorClass, KekProvider, Login,
    UnwrappedDek,
};
use waxseal::{Dek, EncryptionContext, KekId, WrappedDek};

/// The number of requests that `wrap_many` and the like make at the same time.
const AT_ONCE: usize = 16;

/// Wraps DEKs by one key of Google Cloud KMS. A clone is another handle to the same provider.
///
/// Its id is the key's resource name,
/// `projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY`. Its calls run on the tokio
/// runtime in which it was built, whichever executor polls its futures. If that runtime has ended,
/// they run on that of a later caller.
///
/// # What Cloud KMS gets
///
/// | of the provider | requests |
/// |---|---|
/// | `wrap` | `encrypt` by the key, which uses its primary version |
/// | `generate` | the same: the DEK is made in this process, since Cloud KMS makes no data keys |
/// | `unwrap` | `decrypt`, which names the key |
/// | `rewrap` | `decrypt` and `encrypt`: **two requests, and the DEK comes into the process**, since Cloud KMS does not rewrap |
/// | `health`, [`GoogleKmsKek::read_key`] | `cryptoKeys.get`; `health` uses the key instead, where [`HealthCheck`] says so |
///
/// The encryption context is sent as its SHA-256, as additional authenticated data. Cloud KMS
/// enforces it, but does not see it. A context of 8,192 bytes would not fit together with a DEK,
/// since an HSM key accepts 8 KiB for both.
///
/// Every request carries CRC-32C checksums of its data. An answer is trusted only if it says that
/// they were verified, if its own checksum matches, and if it names the requested key. If the key
/// was named by the number of its project, an answer may have the project's id, and the reverse.
///
/// # Which version wrapped a DEK
///
/// The metadata of a wrapped key is the number of the version in decimal digits, as `encrypt` named
/// it. The primary version is known from the last `encrypt` of this process, from `health` and from
/// [`read_key`](Self::read_key). `decrypt` says whether the primary version was used, so that
/// decides for an entry that this process has unwrapped, whatever its metadata says.
#[derive(Clone)]
pub struct GoogleKmsKek(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) keys: Keys,
    pub(crate) service: Service,
    pub(crate) spawner: Spawner,
    pub(crate) health_check: HealthCheck,
    pub(crate) health_context: EncryptionContext,
    pub(crate) settled: Settled,
}

/// The description of a key, as [`GoogleKmsKek::read_key`] found it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct KeyInfo {
    /// The key's resource name.
    pub name: String,
    /// The number of its primary version; `None` if it has none.
    pub primary_version: Option<u64>,
    /// The state of the primary version, in Cloud KMS's words, such as `ENABLED` or
    /// `DESTROY_SCHEDULED`.
    pub state: Option<String>,
    /// The protection level in Cloud KMS's words: `SOFTWARE`, `HSM`, `EXTERNAL`, `EXTERNAL_VPC`.
    pub protection_level: String,
    /// Its purpose, in Cloud KMS's words; a KEK is `ENCRYPT_DECRYPT`.
    pub purpose: String,
}

impl GoogleKmsKek {
    /// Calls `cryptoKeys.get` now. Use it at the start of a service, to fail early, and before a
    /// rewrap run, so that [`is_current`](KekProvider::is_current) knows the primary version.
    ///
    /// # Errors
    /// Those of Cloud KMS.
    pub async fn read_key(&self) -> Result<KeyInfo, KekError> {
        let inner = self.0.clone();
        let key = self.call(async move { inner.describe().await }).await?;
        let (version, state) =
            key.primary.map(|primary| (primary.version.0, primary.state)).unzip();
        Ok(KeyInfo {
            name: self.id().as_str().to_owned(),
            primary_version: version,
            state,
            protection_level: key.protection_name,
            purpose: key.purpose,
        })
    }

    /// Runs a call on the provider's runtime. If the future is dropped before the answer, the
    /// connections that it used are no longer trusted.
    async fn call<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, KekError> {
        let on_its_way = self.0.service.on_its_way();
        let answer = self.0.spawner.run(work).await;
        on_its_way.over();
        answer
    }

    /// Returns one result for each call, in order, with a bounded number at the same time.
    fn many<'a, T: Send + 'a>(
        calls: impl Iterator<Item = BoxFuture<'a, Result<T, KekError>>>,
    ) -> BoxFuture<'a, Vec<Result<T, KekError>>> {
        let calls: Vec<_> = calls.collect();
        Box::pin(stream::iter(calls).buffered(AT_ONCE).collect())
    }
}

impl Inner {
    /// Describes the key that wraps now.
    pub(crate) async fn describe(&self) -> Result<Description, Failure> {
        let (own, asked) = (&self.keys.own, Instant::now());
        let found = self.service.get(&own.naming).await?;
        own.learn(found.protection);
        if let Some(primary) = &found.primary {
            self.keys.learn_primary(primary.version, asked);
        }
        Ok(found)
    }

    pub(crate) async fn wrap_by_own(
        &self,
        context: &EncryptionContext,
        dek: &Dek,
    ) -> Result<WrappedDek, Failure> {
        let (own, asked) = (&self.keys.own, Instant::now());
        let wrapped = self.service.encrypt(&own.naming, context, dek.expose()).await?;
        own.learn(wrapped.protection);
        self.keys.learn_primary(wrapped.version, asked);
        let not_understood = |_| Failure::not_understood("encrypt");
        let entry = WrappedDek::new(own.id.clone(), wrapped.ciphertext).map_err(not_understood)?;
        entry.with_meta(wrapped.version.text().into_bytes()).map_err(not_understood)
    }

    async fn unwrap(
        self: Arc<Self>,
        context: EncryptionContext,
        wrapped: WrappedDek,
    ) -> Result<UnwrappedDek, Failure> {
        let Some(key) = self.keys.find(wrapped.kek_id()) else { return Err(another_kek()) };
        let before = self.keys.primary();
        let unwrapped = self.service.decrypt(key.name(), &context, wrapped.wrapped()).await?;
        key.learn(unwrapped.protection);
        if key.id == self.keys.own.id {
            let primary = before.filter(|before| self.keys.primary() == Some(*before));
            self.settled.learn(&wrapped, unwrapped.used_primary, primary);
        }
        Ok(unwrapped.dek)
    }
}

fn another_kek() -> Failure {
    Failure::unasked(KekErrorClass::Invalid, "wrapped by another KEK")
}

impl KekProvider for GoogleKmsKek {
    fn id(&self) -> &KekId {
        &self.0.keys.own.id
    }

    fn recognises(&self, kek_id: &KekId) -> bool {
        self.0.keys.find(kek_id).is_some()
    }

    /// Returns the key as the target. Its advice is a quarter of the quota of its protection level,
    /// and more time for an external key (docs/ekm.md). The level is known from the first answer
    /// on.
    fn target(&self, kek_id: &KekId) -> CallTarget {
        let key = self.0.keys.find(kek_id).unwrap_or(&self.0.keys.own);
        CallTarget::new(key.name()).with_advice(key.advice())
    }

    /// Returns enforced: Cloud KMS authenticates the SHA-256 of the encryption context with the
    /// wrapped key.
    fn context_binding(&self) -> ContextBinding {
        ContextBinding::Enforced
    }

    /// Uses what `decrypt` said about the entry in this process, or else the version in the
    /// metadata. `None` for an entry without either, and while the primary version is not known. An
    /// entry of a former key is not current.
    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        self.0.keys.is_current(wrapped, &self.0.settled)
    }

    fn key_version(&self, wrapped: &WrappedDek) -> Option<Box<str>> {
        use crate::format::VersionNumber;
        let version = match self.0.settled.of(wrapped) {
            Some(Made::By(version)) => Some(version),
            // It is only known which version it was not.
            Some(Made::NotBy(not)) => {
                VersionNumber::of_meta(wrapped.meta()).filter(|version| *version != not)
            }
            None => VersionNumber::of_meta(wrapped.meta()),
        };
        version.map(|version| version.text().into())
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let dek = Dek::from_slice(dek.expose())
                .ok_or_else(|| KekError::invalid("not a DEK").without_asking())?;
            let (inner, context) = (self.0.clone(), context.clone());
            self.call(async move { inner.wrap_by_own(&context, &dek).await }).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            if !self.recognises(wrapped.kek_id()) {
                return Err(another_kek().into());
            }
            self.call(self.0.clone().unwrap(context.clone(), wrapped.clone())).await
        })
    }

    fn wrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a Dek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Self::many(items.iter().map(|(context, dek)| self.wrap(context, dek)))
    }

    fn unwrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        Self::many(items.iter().map(|(context, wrapped)| self.unwrap(context, wrapped)))
    }

    fn rewrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Self::many(items.iter().map(|(context, wrapped)| self.rewrap(context, wrapped)))
    }

    /// Returns the state of the credentials: tokens obtained, and failures to get one.
    fn login(&self) -> Option<Login> {
        Some(self.0.service.login())
    }

    /// Checks the key as [`HealthCheck`] selects. By default it calls `cryptoKeys.get`, and needs
    /// permission for that, which the roles that encrypt and decrypt do not have.
    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(self.call(self.0.clone().health()))
    }

    /// Drops the token. Cloud KMS keeps no login, and the token stays valid until it expires.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.0.service.keeper().close() })
    }
}

impl fmt::Debug for GoogleKmsKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GoogleKmsKek")
            .field("id", self.id())
            .field("endpoint", &self.0.service.endpoint())
            .field("credentials", self.0.service.keeper().source())
            .finish_non_exhaustive()
    }
}
