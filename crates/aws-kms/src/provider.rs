//! The provider: translates the library's requests to calls of KMS.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;

use crate::answers::{Description, Wrapped};
use crate::client::{Service, Under};
use crate::errors::Failure;
use crate::format::{KeyArn, KeyMaterialId};
use crate::grant_tokens::check_grant_tokens;
use crate::health_check::HealthCheck;
use crate::keys::{Key, Keys, Known, Own, Settled, Target};
use crate::xks::Stores;
use waxseal::kek::toolkit::Spawner;
use waxseal::kek::{
    BoxFuture, CallAdvice, CallTarget, ContextBinding, Health, KekError, KekErrorClass,
    KekProvider, Login, UnwrappedDek,
};
use waxseal::{Dek, KekId, WrappedDek};
use waxseal::{EncryptionContext, Error};

/// How long a wrap waits for `DescribeKey`, whose answer is only a hint, and only before the first
/// answer.
const DESCRIBE_TIMEOUT: Duration = Duration::from_millis(500);
/// In the background there is more time.
pub(crate) const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a failed `DescribeKey`. After a denial it is `key_max_age`.
pub(crate) const DESCRIBE_PAUSE: Duration = Duration::from_secs(10);
/// The shortest interval between look-ups of an alias whose key KMS refuses.
const FOLLOW_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Wraps DEKs by one key of AWS KMS, or with [`discover`](Self::discover) unwraps by the key that a
/// message names. A clone is another handle to the same provider.
///
/// Its id is the key's ARN. Its calls run on the tokio runtime in which it was built, whichever
/// executor polls its futures. If that runtime has ended, they run on that of a later caller.
///
/// # What KMS gets
///
/// Every call carries the encryption context, pair by pair. Key policies and grants can require it,
/// and CloudTrail shows it **in the clear**. `Decrypt` and `ReEncrypt` always name the key. With
/// the ciphertext alone, KMS would use any key that the caller may use.
///
/// | of the provider | call |
/// |---|---|
/// | `wrap`: a DEK made here ([`DekOrigin::Local`](waxseal::DekOrigin), the default) | `Encrypt` |
/// | `generate`: a DEK made by KMS ([`DekOrigin::KeyService`](waxseal::DekOrigin)) | `GenerateDataKey` |
/// | `unwrap` | `Decrypt` |
/// | `rewrap` | `ReEncrypt`; no DEK comes into the process |
/// | `health`, [`AwsKmsKek::read_key`], and now and then with `wrap` | `DescribeKey`; `health` uses the key too, where [`HealthCheck`] says so |
///
/// # Which key material wrapped a DEK
///
/// KMS keeps the earlier material of a rotated key and still unwraps with it. The metadata of a
/// wrapped key holds the `KeyMaterialId` (32 bytes), so [`is_current`](KekProvider::is_current)
/// recognises without a call what earlier material wrapped. `GenerateDataKey` and `ReEncrypt`
/// return the material they used. `Encrypt` does not, so the metadata then holds the one that
/// `DescribeKey` named **before**. A DEK wrapped during a rotation may look old and is then
/// rewrapped once unnecessarily, but it never looks new while it is old. Without permission for
/// `DescribeKey` such wrapped keys carry no metadata: `needs_rewrap` sees no need for them, and
/// `rewrap` wraps them again. `Decrypt` also returns the material, so an entry that this process
/// has unwrapped is known.
#[derive(Clone)]
pub struct AwsKmsKek(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) keys: Keys,
    pub(crate) service: Service,
    pub(crate) spawner: Spawner,
    pub(crate) grant_tokens: ArcSwap<Vec<String>>,
    pub(crate) key_max_age: Duration,
    pub(crate) health_check: HealthCheck,
    pub(crate) health_context: EncryptionContext,
    pub(crate) stores: Stores,
    pub(crate) settled: Settled,
    /// Held by the caller that asks before anything is known.
    pub(crate) first: async_lock::Mutex<()>,
    pub(crate) asking_in_background: Arc<AtomicBool>,
    /// The earliest time at which the alias may be looked up again. Held by the caller that asks.
    pub(crate) follow_from: async_lock::Mutex<Option<Instant>>,
}

/// The description of a key, as [`AwsKmsKek::read_key`] found it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct KeyInfo {
    /// The key's ARN.
    pub arn: String,
    /// Its state, in KMS's words, such as `Enabled` or `PendingDeletion`.
    pub state: String,
    /// When KMS deletes its imported key material, for the first material to expire.
    pub expires: Option<SystemTime>,
    /// The external key store that holds it, such as `cks-1234567890abcdef0`.
    pub external_key_store: Option<String>,
    /// The id of the external key in that store's key manager.
    pub external_key: Option<String>,
}

impl AwsKmsKek {
    /// Replaces the grant tokens of all later calls. Remove them once the grant is effective
    /// everywhere.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](waxseal::ErrorKind::InvalidOption) for more than 10, or one
    /// that is empty or longer than 8,192 bytes.
    pub fn set_grant_tokens<S: Into<String>>(
        &self,
        tokens: impl IntoIterator<Item = S>,
    ) -> Result<(), Error> {
        let tokens: Vec<String> = tokens.into_iter().map(Into::into).collect();
        check_grant_tokens(&tokens)?;
        self.0.grant_tokens.store(Arc::new(tokens));
        Ok(())
    }

    /// Calls `DescribeKey` now. Use it at the start of a service, to fail early, and before a
    /// rewrap run, so that [`is_current`](KekProvider::is_current) knows the current key material.
    ///
    /// # Errors
    /// Those of KMS; *misconfigured* for a key that is not for encryption, and with discovery.
    pub async fn read_key(&self) -> Result<KeyInfo, KekError> {
        let inner = self.0.clone();
        let key = self.call(self.0.service.region(), async move { inner.describe().await }).await?;
        Ok(KeyInfo {
            arn: key.arn,
            state: key.state.name,
            expires: key.expires,
            external_key_store: key.external_key_store,
            external_key: key.external_key,
        })
    }

    /// Runs a call to this Region on the provider's runtime. If the future is dropped before the
    /// answer, the connections that it used are no longer trusted.
    async fn call<T: Send + 'static>(
        &self,
        region: &str,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, KekError> {
        // In a forked child, locks that other threads of the parent held are never released.
        let is_same_process = self.0.spawner.is_of_this_process();
        let on_its_way = if is_same_process { self.0.service.on_its_way(region) } else { None };
        let answer = self.0.spawner.run(work).await;
        if let Some(on_its_way) = on_its_way {
            on_its_way.over();
        }
        answer
    }
}

impl Inner {
    /// Returns where to unwrap an entry of `kek_id`; `None` if it is not for this provider.
    fn target(&self, kek_id: &KekId) -> Option<Target> {
        self.keys.target(kek_id, self.service.region())
    }

    pub(crate) fn under(&self, key: &str, context: &EncryptionContext) -> Under {
        let grant_tokens = self.grant_tokens.load().to_vec();
        Under { key: key.to_owned(), context: context.clone(), grant_tokens }
    }

    /// Returns the keys that wrap.
    pub(crate) fn own(&self) -> Result<&Own, Failure> {
        match &self.keys {
            Keys::One(own) => Ok(own),
            Keys::Discovered(_) => {
                let detail = "a provider for discovery only unwraps: use unwrap_with";
                Err(Failure::unasked(KekErrorClass::Misconfigured, detail))
            }
        }
    }

    // --- the key and its material

    fn learn_material(&self, key: &Key, material: Option<KeyMaterialId>, asked: Instant) {
        if material.is_some() {
            key.learn(Known { material, asked, good_for: self.key_max_age });
        }
    }

    /// Describes the key that wraps now.
    pub(crate) async fn describe(&self) -> Result<Description, Failure> {
        let key = self.own()?.current();
        self.describe_as(key.arn(), |_| Ok(key)).await
    }

    /// Describes the key of this name; `whose` says whose description it is.
    async fn describe_as<'a>(
        &self,
        name: &str,
        whose: impl FnOnce(&Description) -> Result<&'a Key, Failure>,
    ) -> Result<Description, Failure> {
        let asked = Instant::now();
        let found =
            self.service.describe(self.service.region(), name, &self.grant_tokens.load()).await?;
        if !found.is_for_encryption {
            let detail = format!("{} is not a key for encryption", found.arn);
            return Err(Failure::new(KekErrorClass::Misconfigured, detail));
        }
        self.stores.learn_own(&found)?;
        let key = whose(&found)?;
        // A key that is not ready yet names no material, but soon may.
        let good_for = if found.state.usable.is_ok() {
            self.key_max_age
        } else {
            DESCRIBE_PAUSE.min(self.key_max_age)
        };
        key.learn(Known { material: found.material, asked, good_for });
        Ok(found)
    }

    /// Records that the alias now names this key.
    fn move_to<'a>(&self, own: &'a Own, arn: &str) -> Result<&'a Key, Failure> {
        if own.current().arn() == arn {
            return Ok(own.current());
        }
        let is_here = KeyArn::read(arn).is_some_and(|key| key.region == self.service.region());
        let id = KekId::new(arn)
            .ok()
            .filter(|_| is_here)
            .ok_or_else(|| Failure::not_understood("DescribeKey"))?;
        if own.move_to(&id) {
            return Ok(own.current());
        }
        let detail = "the alias was pointed to too many keys; build the provider again";
        Err(Failure::new(KekErrorClass::Misconfigured, detail))
    }

    /// Checks, after KMS refused `key`, whether the alias that named it now names another key.
    pub(crate) async fn follow(&self, own: &Own, key: &KekId) -> bool {
        let Some(alias) = own.alias() else { return false };
        let mut from = self.follow_from.lock().await;
        if &own.current().id != key {
            return true;
        }
        if from.is_some_and(|from| Instant::now() < from) {
            return false;
        }
        let pause = match self.describe_as(alias, |found| self.move_to(own, &found.arn)).await {
            // An alias that does not exist right now may be created again, as deployments do.
            Err(failure) if failure.is_not_found() => DESCRIBE_PAUSE.min(self.key_max_age),
            Err(failure) if failure.class == KekErrorClass::Denied => self.key_max_age,
            _ => FOLLOW_AT_MOST_EVERY,
        };
        *from = Instant::now().checked_add(pause);
        &own.current().id != key
    }

    /// A caller without permission does not ask repeatedly, because each denial appears in the
    /// account's logs.
    fn pause_after(&self, failure: &Failure) -> Duration {
        match failure.class {
            KekErrorClass::Denied => self.key_max_age,
            _ => DESCRIBE_PAUSE.min(self.key_max_age),
        }
    }

    /// Returns the current key material as of before the call that follows. Waits for a call only
    /// before the first answer, and only briefly.
    async fn material(self: &Arc<Self>, own: &Own) -> Option<KeyMaterialId> {
        // The key manager alone knows an external key's versions, so there is nothing to ask for.
        if self.stores.of(own.current().arn()).is_some() {
            return None;
        }
        if own.current().known().is_none() {
            let _alone = self.first.lock().await;
            if own.current().known().is_none() {
                self.ask(own, DESCRIBE_TIMEOUT).await;
            }
        }
        let known = own.current().known()?;
        if known.asked.elapsed() >= known.good_for {
            let inner = self.clone();
            self.spawner.spawn_one(&self.asking_in_background, async move {
                if let Ok(own) = inner.own() {
                    inner.ask(own, BACKGROUND_TIMEOUT).await;
                }
            });
        }
        own.current().known()?.material
    }

    /// Calls `DescribeKey`. After a failure, what is known stays, and there is a pause.
    async fn ask(&self, own: &Own, limit: Duration) {
        match tokio::time::timeout(limit, self.describe()).await {
            Ok(Ok(_)) => {}
            Ok(Err(failure)) => own.current().pause(self.pause_after(&failure)),
            Err(_) => own.current().pause(DESCRIBE_PAUSE.min(self.key_max_age)),
        }
    }

    // --- the calls

    async fn wrap(
        self: Arc<Self>,
        context: EncryptionContext,
        dek: Dek,
    ) -> Result<WrappedDek, Failure> {
        let own = self.own()?;
        let before = self.material(own).await;
        let key = own.current();
        match self.wrap_by(key, before, &context, &dek).await {
            Err(failure)
                if failure.class == KekErrorClass::Denied && self.follow(own, &key.id).await =>
            {
                let key = own.current();
                self.wrap_by(key, key.known().and_then(|known| known.material), &context, &dek)
                    .await
            }
            answer => answer,
        }
    }

    pub(crate) async fn wrap_by(
        &self,
        key: &Key,
        before: Option<KeyMaterialId>,
        context: &EncryptionContext,
        dek: &Dek,
    ) -> Result<WrappedDek, Failure> {
        let wrapped = self.service.encrypt(self.under(key.arn(), context), dek.expose()).await?;
        entry(key, "Encrypt", Wrapped { material: before, ..wrapped })
    }

    async fn generate(
        self: Arc<Self>,
        context: EncryptionContext,
    ) -> Result<(UnwrappedDek, WrappedDek), Failure> {
        let own = self.own()?;
        let key = own.current();
        match self.generate_by(key, &context).await {
            Err(failure)
                if failure.class == KekErrorClass::Denied && self.follow(own, &key.id).await =>
            {
                self.generate_by(own.current(), &context).await
            }
            answer => answer,
        }
    }

    pub(crate) async fn generate_by(
        &self,
        key: &Key,
        context: &EncryptionContext,
    ) -> Result<(UnwrappedDek, WrappedDek), Failure> {
        let asked = Instant::now();
        let (dek, wrapped) = self.service.generate(self.under(key.arn(), context)).await?;
        self.learn_material(key, wrapped.material, asked);
        Ok((dek, entry(key, "GenerateDataKey", wrapped)?))
    }

    async fn unwrap(
        self: Arc<Self>,
        context: EncryptionContext,
        wrapped: WrappedDek,
    ) -> Result<UnwrappedDek, Failure> {
        let Some(target) = self.target(wrapped.kek_id()) else { return Err(another_kek()) };
        let under = self.under(&target.arn, &context);
        let answer = self.service.decrypt(&target.region, under, wrapped.wrapped()).await;
        self.look_for_store(&target, answer.as_ref().err());
        let unwrapped = match &self.keys {
            Keys::One(_) => answer?,
            Keys::Discovered(_) => answer.map_err(Failure::of_a_message_s_key)?,
        };
        self.settled.learn(&wrapped, unwrapped.material);
        Ok(unwrapped.dek)
    }

    async fn rewrap(
        self: Arc<Self>,
        context: EncryptionContext,
        wrapped: WrappedDek,
    ) -> Result<WrappedDek, Failure> {
        let own = self.own()?;
        let Some(target) = self.target(wrapped.kek_id()) else { return Err(another_kek()) };
        let key = own.current();
        match self.rewrap_to(key, &target, &context, &wrapped).await {
            Err(failure)
                if failure.class == KekErrorClass::Denied && self.follow(own, &key.id).await =>
            {
                self.rewrap_to(own.current(), &target, &context, &wrapped).await
            }
            answer => answer,
        }
    }

    async fn rewrap_to(
        self: &Arc<Self>,
        key: &Key,
        from: &Target,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<WrappedDek, Failure> {
        let asked = Instant::now();
        let under = self.under(key.arn(), context);
        let answer = self.service.re_encrypt(&from.arn, under, wrapped.wrapped()).await;
        self.look_for_store(from, answer.as_ref().err());
        let wrapped = answer?;
        self.learn_material(key, wrapped.material, asked);
        entry(key, "ReEncrypt", wrapped)
    }
}

/// Makes the entry for a message. The ARN in the reply must be the one that was called.
fn entry(key: &Key, operation: &str, wrapped: Wrapped) -> Result<WrappedDek, Failure> {
    let not_understood = |_| Failure::not_understood(operation);
    if wrapped.key_arn != key.arn() {
        return Err(Failure::not_understood(operation));
    }
    let entry = WrappedDek::new(key.id.clone(), wrapped.blob).map_err(not_understood)?;
    let meta = wrapped.material.map(|material| material.0.to_vec()).unwrap_or_default();
    entry.with_meta(meta).map_err(not_understood)
}
fn another_kek() -> Failure {
    Failure::unasked(KekErrorClass::Invalid, "wrapped by another KEK")
}

impl KekProvider for AwsKmsKek {
    /// Returns the ARN of the key that wraps, which for an alias is the one that it names now. With
    /// discovery it returns `aws-kms-discovery:PARTITION:ACCOUNTS`, which appears in no message.
    fn id(&self) -> &KekId {
        self.0.keys.id()
    }

    fn recognises(&self, kek_id: &KekId) -> bool {
        self.0.target(kek_id).is_some()
    }

    /// Returns the key that is called, which for a related key is the one of this Region. Once a
    /// key is known to be in an external key store, it has a shorter timeout and one more try than
    /// KMS's own keys, and a budget that the store's keys share (docs/xks.md).
    fn target(&self, kek_id: &KekId) -> CallTarget {
        let target = self.0.target(kek_id);
        let arn = target.as_ref().map_or_else(|| self.id().as_str(), |target| target.arn.as_str());
        let stores = &self.0.stores;
        let advice = match stores.of(arn) {
            Some(store) => store.advice(),
            None if arn == self.id().as_str() => CallAdvice::default(),
            None => stores.advice_for_other(arn),
        };
        CallTarget::new(arn).with_advice(advice)
    }

    /// Returns enforced: KMS authenticates the encryption context with the wrapped key.
    fn context_binding(&self) -> ContextBinding {
        ContextBinding::Enforced
    }

    /// Returns `true`: KMS rewraps by `ReEncrypt`. A provider for discovery does not rewrap.
    fn rewraps_in_service(&self) -> bool {
        matches!(self.0.keys, Keys::One(_))
    }

    /// Compares the `KeyMaterialId` that `Decrypt` named in this process, or else the one in the
    /// metadata. `None` for a wrapped key without either, while the current one is not known, and
    /// for keys in external key stores.
    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        let Keys::One(own) = &self.0.keys else { return None };
        let current = own.current().known().and_then(|known| known.material)?;
        self.0.settled.material_of(wrapped).map(|by| by == current)
    }

    /// Returns the id of the key material, which is KMS's only kind of version.
    fn key_version(&self, wrapped: &WrappedDek) -> Option<Box<str>> {
        self.0.settled.material_of(wrapped).map(|material| material.text().into())
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let dek = Dek::from_slice(dek.expose())
                .ok_or_else(|| KekError::invalid("not a DEK").without_asking())?;
            self.call(self.0.service.region(), self.0.clone().wrap(context.clone(), dek)).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            let Some(target) = self.0.target(wrapped.kek_id()) else {
                return Err(another_kek().into());
            };
            self.call(&target.region, self.0.clone().unwrap(context.clone(), wrapped.clone())).await
        })
    }

    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(self.call(self.0.service.region(), self.0.clone().generate(context.clone())))
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(
            self.call(
                self.0.service.region(),
                self.0.clone().rewrap(context.clone(), wrapped.clone()),
            ),
        )
    }

    /// Returns the state of the credentials, since AWS has no other login.
    fn login(&self) -> Option<Login> {
        Some(self.0.service.login())
    }

    /// Checks the key as [`HealthCheck`] selects. By default it calls `DescribeKey`, and needs
    /// permission for that. It is *degraded* in the last two weeks of imported key material. For a
    /// key in an external key store it also calls `DescribeCustomKeyStores`. With discovery there
    /// is no key to check, and the answer is always *ready*.
    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(self.call(self.0.service.region(), self.0.clone().health()))
    }
}

impl fmt::Debug for AwsKmsKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let region = self.0.service.region();
        f.debug_struct("AwsKmsKek")
            .field("id", self.id())
            .field("region", &region)
            .finish_non_exhaustive()
    }
}
