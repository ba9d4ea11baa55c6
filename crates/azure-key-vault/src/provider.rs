//! The provider: translates the library's requests to calls of Key Vault.
#![forbid(unsafe_code)]

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use futures_util::{StreamExt, stream};
use waxseal::kek::toolkit::Spawner;
use waxseal::kek::{
    BoxFuture, CallAdvice, CallTarget, ContextBinding, Health, KekError, KekErrorClass,
    KekProvider, Login, UnwrappedDek,
};
use waxseal::{Dek, EncryptionContext, KekId, WrappedDek};
use zeroize::Zeroizing;

use crate::algorithm::Algorithm;
use crate::client::{Description, Encrypted, Service, obstacle};
use crate::errors::{Failure, Operation};
use crate::format::{DEK, Entry, IV, Version};
use crate::health::HealthCheck;
use crate::keeper::{Keeper, login};

/// The pause after the key could not be read. After a denial it is `key_max_age`.
const READ_PAUSE: Duration = Duration::from_secs(10);
/// `health` is degraded this long before the key expires.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// The number of items of a batch that are requested at the same time.
const AT_ONCE: usize = 8;
/// The number of initialization vectors that are remembered.
const REMEMBERED: usize = 4096;

/// Wraps DEKs by one key of Azure Key Vault or of a Managed HSM. A clone is another handle to the
/// same provider.
///
/// Its id is the key's identifier without a version, such as
/// `https://NAME.managedhsm.azure.net/keys/KEY`. The newest version wraps new DEKs. A wrapped DEK
/// names the version that made it, so rotated versions still unwrap until they are disabled.
/// [Former keys](crate::AzureKeyVaultKekBuilder::former_keys) only unwrap.
///
/// Its calls run on the tokio runtime in which it was built, whichever executor polls its futures.
///
/// | of the provider | A256GCM | RSA-OAEP-256 |
/// |---|---|---|
/// | `wrap` | `encrypt`, AAD = digest of the encryption context | `wrapKey` of DEK and digest |
/// | `unwrap` | `decrypt` of the version that the entry names | `unwrapKey`, and the digest is compared here |
/// | `rewrap` | `decrypt` and `encrypt`: two calls | `unwrapKey` and `wrapKey`: two calls |
/// | `health`, [`read_key`](Self::read_key), and now and then with `is_current` | `get` | `get` |
#[derive(Clone)]
pub struct AzureKeyVaultKek(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) own: Key,
    /// The keys that only unwrap.
    pub(crate) former: Vec<Key>,
    /// One for each audience of a token.
    pub(crate) keepers: Vec<Keeper>,
    pub(crate) spawner: Spawner,
    pub(crate) key_max_age: Duration,
    pub(crate) health_check: HealthCheck,
    pub(crate) known: ArcSwapOption<Known>,
    /// The earliest time for the next reading in the background.
    pub(crate) read_from: Mutex<Option<Instant>>,
    pub(crate) reading: Arc<AtomicBool>,
    pub(crate) vectors: Mutex<Vectors>,
}

/// A key that wraps or unwraps, and where it is.
pub(crate) struct Key {
    pub(crate) id: KekId,
    pub(crate) algorithm: Algorithm,
    pub(crate) service: Service,
    pub(crate) advice: CallAdvice,
}

impl Key {
    /// Returns the parts of an entry of this key, if it can be one.
    fn entry(&self, wrapped: &WrappedDek) -> Result<Entry, KekError> {
        match (Entry::read(wrapped.wrapped()), self.algorithm) {
            (Some(entry @ Entry::Gcm { .. }), Algorithm::A256Gcm)
            | (Some(entry @ Entry::Rsa { .. }), Algorithm::RsaOaep256) => Ok(entry),
            (Some(_), _) => {
                Err(KekError::invalid("wrapped with another algorithm").without_asking())
            }
            (None, _) => Err(KekError::invalid("not a DEK wrapped by Key Vault").without_asking()),
        }
    }

    async fn unwrap(
        &self,
        context: &EncryptionContext,
        entry: Entry,
    ) -> Result<UnwrappedDek, Failure> {
        match entry {
            Entry::Gcm { version, iv, tag, text } => {
                let parts = (&iv[..], &tag[..], &text[..]);
                let mut dek = self.service.decrypt(&version, parts, context.digest()).await?;
                Ok(UnwrappedDek::new(std::mem::take(&mut *dek)))
            }
            Entry::Rsa { version, text } => {
                let mut value = self.service.unwrap_key(&version, &text).await?;
                // Anyone may have wrapped anything, so the error says only that it is wrong.
                let is_bound = value.len() == DEK + context.digest().len()
                    && value.get(DEK..) == Some(&context.digest()[..]);
                if !is_bound {
                    let text = "unwrapKey: not a DEK, or wrapped in another encryption context";
                    return Err(Failure::new(KekErrorClass::Invalid, text).without_asking());
                }
                // The digest after it is not secret, and the buffer is wiped as a whole.
                value.truncate(DEK);
                Ok(UnwrappedDek::new(std::mem::take(&mut *value)))
            }
        }
    }
}

/// The newest version that an answer named, and when the request was made.
pub(crate) struct Known {
    version: Version,
    asked: Instant,
}

/// The description of a key, as [`AzureKeyVaultKek::read_key`] found it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct KeyInfo {
    /// The newest version.
    pub version: String,
    /// Its type in the words of JSON Web Key, such as `oct-HSM` or `RSA-HSM`.
    pub kind: String,
    /// Whether it is enabled.
    pub enabled: bool,
    /// The time from which it wraps. It unwraps earlier too.
    pub not_before: Option<SystemTime>,
    /// The time until which it wraps. It unwraps later too.
    pub expires: Option<SystemTime>,
}

/// The last initialization vectors that the service chose. A repeated one would break AES-GCM.
#[derive(Default)]
pub(crate) struct Vectors {
    seen: HashSet<[u8; IV]>,
    order: VecDeque<[u8; IV]>,
}

impl Vectors {
    /// Whether it is new and not all zeros.
    fn is_fresh(&mut self, vector: [u8; IV]) -> bool {
        if vector == [0; IV] || !self.seen.insert(vector) {
            return false;
        }
        self.order.push_back(vector);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}

impl AzureKeyVaultKek {
    /// Reads the key now. Use it at the start of a service, to fail early, and before a rewrap run,
    /// so that [`is_current`](KekProvider::is_current) knows the newest version.
    ///
    /// # Errors
    /// Those of the service; *misconfigured* for a key of a type that the algorithm cannot use.
    pub async fn read_key(&self) -> Result<KeyInfo, KekError> {
        let inner = self.0.clone();
        let found = self.0.spawner.run(async move { inner.read_key().await }).await?;
        Ok(KeyInfo {
            version: found.version.as_str().to_owned(),
            kind: found.kind,
            enabled: found.enabled,
            not_before: found.not_before,
            expires: found.expires,
        })
    }
}

/// Awaits the items of a batch, a few at a time, and keeps their order.
fn each<'a, T: Send + 'a>(
    calls: Vec<BoxFuture<'a, Result<T, KekError>>>,
) -> BoxFuture<'a, Vec<Result<T, KekError>>> {
    Box::pin(stream::iter(calls).buffered(AT_ONCE).collect())
}

fn another_kek() -> KekError {
    KekError::invalid("wrapped by another KEK").without_asking()
}

impl Inner {
    /// Returns the key of an entry and its index: 0 is the key that wraps.
    fn find(&self, kek_id: &KekId) -> Option<(usize, &Key)> {
        std::iter::once(&self.own)
            .chain(&self.former)
            .enumerate()
            .find(|(_, key)| &key.id == kek_id)
    }

    fn key(&self, place: usize) -> Option<&Key> {
        std::iter::once(&self.own).chain(&self.former).nth(place)
    }

    fn learn(&self, version: &Version, asked: Instant) {
        self.known.rcu(|known| match known {
            Some(known) if known.asked > asked => Some(known.clone()),
            _ => Some(Arc::new(Known { version: version.clone(), asked })),
        });
    }

    async fn read_key(&self) -> Result<Description, Failure> {
        let asked = Instant::now();
        let found = self.own.service.get().await?;
        if !self.own.algorithm.fits(&found.kind) {
            let text = format!(
                "get: {} is of type {}, which {} does not use",
                self.own.id.as_str(),
                found.kind,
                self.own.algorithm.as_str()
            );
            return Err(Failure::new(KekErrorClass::Misconfigured, text));
        }
        self.learn(&found.version, asked);
        Ok(found)
    }

    /// Reads the key, unless it was read, or failed to be read, a moment ago.
    fn read_in_background(self: &Arc<Self>) {
        {
            let mut from = self.read_from.lock().unwrap_or_else(PoisonError::into_inner);
            if from.is_some_and(|from| Instant::now() < from) {
                return;
            }
            *from = Instant::now().checked_add(READ_PAUSE);
        }
        let inner = self.clone();
        self.spawner.spawn_one(&self.reading, async move {
            if let Err(failure) = inner.read_key().await
                && failure.class == KekErrorClass::Denied
            {
                let mut from = inner.read_from.lock().unwrap_or_else(PoisonError::into_inner);
                *from = Instant::now().checked_add(inner.key_max_age);
            }
        });
    }

    async fn wrap(&self, context: &EncryptionContext, dek: &[u8]) -> Result<WrappedDek, Failure> {
        let asked = Instant::now();
        let entry = match self.own.algorithm {
            Algorithm::A256Gcm => {
                let Encrypted { version, iv, tag, text } =
                    self.own.service.encrypt(dek, context.digest()).await?;
                let text: [u8; DEK] = text.try_into().map_err(|_| {
                    Failure::not_understood(
                        Operation::Encrypt,
                        "the ciphertext is not as long as a DEK",
                    )
                })?;
                let mut vectors = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
                if !vectors.is_fresh(iv) {
                    let text =
                        "encrypt: the service used an initialization vector twice, or one of zeros";
                    return Err(Failure::new(KekErrorClass::Misconfigured, text));
                }
                Entry::Gcm { version, iv, tag, text }
            }
            Algorithm::RsaOaep256 => {
                let mut value = Zeroizing::new(Vec::with_capacity(DEK + 32));
                value.extend_from_slice(dek);
                value.extend_from_slice(context.digest());
                let (version, text) = self.own.service.wrap_key(&value).await?;
                Entry::Rsa { version, text }
            }
        };
        let bytes = entry.write();
        // Only what `unwrap` can read is returned.
        if Entry::read(&bytes).as_ref() != Some(&entry) {
            let what = "the ciphertext is not as long as one of this key";
            return Err(Failure::not_understood(Operation::WrapKey, what));
        }
        self.learn(entry.version(), asked);
        WrappedDek::new(self.own.id.clone(), bytes)
            .map_err(|_| Failure::not_understood(Operation::WrapKey, "the wrapped key is too long"))
    }

    /// Returns what the key can do, according to its description.
    fn usable(&self, found: &Description) -> Result<Health, Failure> {
        let key = self.own.id.as_str();
        let [wrap, unwrap] = self.own.algorithm.operations();
        match (obstacle(found, wrap), obstacle(found, unwrap)) {
            (Some(why), Some(_)) => {
                Err(Failure::new(KekErrorClass::Denied, format!("get: {key} {why}")))
            }
            (Some(why), None) => Ok(Health::Degraded(format!("{key} unwraps, and {why}"))),
            (None, Some(why)) => Ok(Health::Degraded(format!("{key} wraps, and {why}"))),
            (None, None) => Ok(ends_soon(found, key)),
        }
    }

    async fn health(&self) -> Result<Health, Failure> {
        match self.health_check {
            HealthCheck::Read => {
                let found = self.read_key().await?;
                self.usable(&found)
            }
            check => {
                let context = EncryptionContext::default();
                let dek = Dek::random().map_err(|_| {
                    Failure::new(KekErrorClass::Unavailable, "health: no DEK could be made")
                        .without_asking()
                })?;
                let wrapped = self.wrap(&context, dek.expose()).await?;
                if check == HealthCheck::TryUse {
                    let entry = Entry::read(wrapped.wrapped()).ok_or_else(|| {
                        Failure::new(KekErrorClass::Unavailable, "health: not understood")
                    })?;
                    let unwrapped = self.own.unwrap(&context, entry).await?;
                    if unwrapped.expose() != dek.expose() {
                        let text = "health: the key does not unwrap to what it wrapped";
                        return Err(Failure::new(KekErrorClass::Unavailable, text));
                    }
                }
                Ok(Health::Ready)
            }
        }
    }
}

fn ends_soon(found: &Description, key: &str) -> Health {
    let left =
        found.expires.map(|until| until.duration_since(SystemTime::now()).unwrap_or_default());
    match left {
        Some(left) if left < SOON => {
            let days = left.as_secs() / (24 * 3600);
            Health::Degraded(format!("the newest version of {key} expires in {days} days"))
        }
        _ => Health::Ready,
    }
}

impl KekProvider for AzureKeyVaultKek {
    fn id(&self) -> &KekId {
        &self.0.own.id
    }

    fn recognises(&self, kek_id: &KekId) -> bool {
        self.0.find(kek_id).is_some()
    }

    /// Returns the key as the target. Its budget is that of the vault, whose limits all its keys
    /// share.
    fn target(&self, kek_id: &KekId) -> CallTarget {
        let key = self.0.find(kek_id).map_or(&self.0.own, |(_, key)| key);
        CallTarget::new(key.id.as_str()).with_advice(key.advice.clone())
    }

    /// Returns [`Enforced`](ContextBinding::Enforced) with A256GCM, and
    /// [`Unauthenticated`](ContextBinding::Unauthenticated) with RSA-OAEP-256 or while there is a
    /// former key that wrapped with it.
    fn context_binding(&self) -> ContextBinding {
        let keys = std::iter::once(&self.0.own).chain(&self.0.former);
        match keys.into_iter().any(|key| key.algorithm == Algorithm::RsaOaep256) {
            false => ContextBinding::Enforced,
            true => ContextBinding::Unauthenticated,
        }
    }

    /// Compares the version in the wrapped key with the newest one that an answer named. `None`
    /// while none is known. If none is known, or it is older than
    /// [`key_max_age`](crate::AzureKeyVaultKekBuilder::key_max_age), the key is read in the
    /// background. An entry of a former key is not current.
    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        if wrapped.kek_id() != self.id() {
            return self.recognises(wrapped.kek_id()).then_some(false);
        }
        let known = self.0.known.load_full();
        if known.as_ref().is_none_or(|known| known.asked.elapsed() >= self.0.key_max_age) {
            self.0.read_in_background();
        }
        let known = known?;
        let entry = Entry::read(wrapped.wrapped())?;
        Some(*entry.version() == known.version)
    }

    fn key_version(&self, wrapped: &WrappedDek) -> Option<Box<str>> {
        Entry::read(wrapped.wrapped()).map(|entry| entry.version().as_str().into())
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let (inner, context) = (self.0.clone(), context.clone());
            let dek = Zeroizing::new(dek.expose().to_vec());
            self.0.spawner.run(async move { inner.wrap(&context, &dek).await }).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            let (place, key) = self.0.find(wrapped.kek_id()).ok_or_else(another_kek)?;
            let entry = key.entry(wrapped)?;
            let (inner, context) = (self.0.clone(), context.clone());
            let work = async move {
                let key = inner.key(place).unwrap_or(&inner.own);
                key.unwrap(&context, entry).await
            };
            self.0.spawner.run(work).await
        })
    }

    fn wrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a Dek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        each(items.iter().map(|(context, dek)| self.wrap(context, dek)).collect())
    }

    fn unwrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        each(items.iter().map(|(context, wrapped)| self.unwrap(context, wrapped)).collect())
    }

    fn rewrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        each(items.iter().map(|(context, wrapped)| self.rewrap(context, wrapped)).collect())
    }

    /// Checks the key as [`HealthCheck`] selects. By default it reads the key, and needs permission
    /// for that. It is *degraded* in the last two weeks before its newest version expires, and if
    /// the key unwraps but does not wrap, or the reverse.
    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(async move {
            let inner = self.0.clone();
            self.0.spawner.run(async move { inner.health().await }).await
        })
    }

    /// Returns the state of the credential: tokens obtained, and failures to get one. Vaults and
    /// Managed HSMs take separate tokens.
    fn login(&self) -> Option<Login> {
        Some(login(&self.0.keepers))
    }

    /// Drops the tokens. Entra ID keeps no login, and a token stays valid until it expires.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.0.keepers.iter().for_each(Keeper::close);
            std::iter::once(&self.0.own).chain(&self.0.former).for_each(|key| key.service.close());
        })
    }
}

impl fmt::Debug for AzureKeyVaultKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureKeyVaultKek")
            .field("id", self.id())
            .field("algorithm", &self.0.own.algorithm)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_that_comes_again_or_is_all_zeros_is_refused() {
        let mut vectors = Vectors::default();
        let vector = |n: usize| {
            let mut vector = [1; IV];
            vector[..8].copy_from_slice(&n.to_le_bytes());
            vector
        };
        assert!(!vectors.is_fresh([0; IV]));
        for n in 0..REMEMBERED {
            assert!(vectors.is_fresh(vector(n)));
            assert!(!vectors.is_fresh(vector(n)));
        }
        assert!(!vectors.is_fresh(vector(0)), "the oldest is still remembered");
        for n in REMEMBERED..3 * REMEMBERED {
            assert!(vectors.is_fresh(vector(n)));
        }
        assert_eq!((vectors.seen.len(), vectors.order.len()), (REMEMBERED, REMEMBERED));
    }
}
