//! A KEK in AWS KMS.
//!
//! ```no_run
//! use waxseal::Envelope;
//! use waxseal::kek::aws_kms::AwsKms;
//!
//! # async fn start() -> Result<(), waxseal::Error> {
//! let kek = AwsKms::builder("arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab").build().await?;
//! let envelope = Envelope::builder().write_to(kek).build()?;
//! # Ok(()) }
//! ```
//!
//! Policies, rotation, several Regions, quotas and what CloudTrail shows are in `docs/aws-kms.md`. A key in an external key store is used in the same way; what
//! differs (feature `xks`) is in `docs/xks.md`.
//!
//! # What KMS gets
//!
//! The encryption context, pair by pair, with every call, so key policies and grants can demand it, and CloudTrail shows it **in the clear**.
//! `Decrypt` and `ReEncrypt` always name the key: a ciphertext alone would have KMS use any key that the caller may use.
//!
//! | of the provider | call |
//! |---|---|
//! | `wrap`: a DEK made here ([`DekOrigin::Local`](crate::DekOrigin), the default) | `Encrypt` |
//! | `generate`: a DEK made by KMS ([`DekOrigin::KeyService`](crate::DekOrigin)) | `GenerateDataKey` |
//! | `unwrap` | `Decrypt` |
//! | `rewrap` | `ReEncrypt`; no DEK comes into the process |
//! | `health`, [`AwsKms::read_key`], and now and then with `wrap` | `DescribeKey` |
//!
//! # Which key material wrapped a DEK
//!
//! KMS keeps the earlier material of a rotated key and unwraps by it without a word. The metadata of a wrapped key holds the `KeyMaterialId` (32 bytes), so
//! [`is_current`](KekProvider::is_current) tells without a call what an earlier material wrapped. `GenerateDataKey` and `ReEncrypt` say which one they used;
//! `Encrypt` does not, so there it is the one that `DescribeKey` named **before**: a DEK wrapped during a rotation may look old, and is then rewrapped once for
//! nothing, but never looks new while it is old. Without permission for `DescribeKey` such wrapped keys carry no metadata: `needs_rewrap` sees no need for them, and `rewrap` wraps them anew.
#![forbid(unsafe_code)]

mod builder;
mod client;
mod errors;
#[cfg(feature = "xks")]
mod xks;

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
#[cfg(feature = "xks")]
use arc_swap::ArcSwapOption;

pub use builder::AwsKmsBuilder;
#[cfg(feature = "xks")]
pub use xks::ExternalKeyStore;

#[cfg(feature = "xks")]
use super::CallTarget;
use super::home::Home;
use super::{BoxFuture, Dek, Health, KekError, KekErrorClass, KekId, KekProvider, UnwrappedDek, WrappedDek};
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::format::kms::{KeyArn, KeyMaterialId};
use client::{Description, Service, Under, Wrapped};
use errors::Failure;

/// A wrap waits this long for `DescribeKey`, and only before anything is known: what it says is a hint.
const DESCRIBE_TIMEOUT: Duration = Duration::from_millis(500);
/// After a failure it is not asked again for so long.
const DESCRIBE_PAUSE: Duration = Duration::from_secs(10);
/// Imported key material that expires within this time makes `health` say so.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// One key of AWS KMS, or with [`discover`](Self::discover) whichever a message names, as a [`KekProvider`]. A clone is another handle to the same.
///
/// Its id is the key's ARN. It works on the tokio runtime in which it was built, whoever polls its futures, and on
/// that of a later caller once the first one has ended.
#[derive(Clone)]
pub struct AwsKms(Arc<Inner>);

struct Inner {
    id: KekId,
    keys: Keys,
    service: Service,
    home: Home,
    grant_tokens: ArcSwap<Vec<String>>,
    key_max_age: Duration,
    /// Known from the builder, or from `DescribeKey` once that was answered.
    #[cfg(feature = "xks")]
    store: ArcSwapOption<xks::Store>,
    #[cfg(feature = "xks")]
    store_budget: Option<super::call::CallBudget>,
    known: Mutex<Option<Known>>,
    /// Held by the one who asks before anything is known.
    first: async_lock::Mutex<()>,
    asking_in_background: Arc<AtomicBool>,
}

/// Which keys are used.
enum Keys {
    One { arn: String, related: bool, former: Vec<KekId> },
    Discovered(Discovery),
}

/// The bounds of discovery.
struct Discovery {
    partition: String,
    accounts: Vec<String>,
    regions: Vec<String>,
    related: bool,
}

/// Where a wrapped key is to be unwrapped: whatever it says itself, in one of the configured places.
#[derive(PartialEq, Eq, Debug)]
struct Target {
    region: String,
    arn: String,
}

/// The current key material, as far as anybody said.
#[derive(Clone, Copy)]
struct Known {
    material: Option<KeyMaterialId>,
    /// When the question was asked, not when the answer came: a late answer does not replace a newer one.
    asked: Instant,
    good_for: Duration,
}

/// What [`AwsKms::read_key`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KeyInfo {
    /// The key's ARN.
    pub arn: String,
    /// Its state, in the words of KMS, such as `Enabled` or `PendingDeletion`.
    pub state: String,
    /// When KMS deletes its imported key material, the first of it to expire.
    pub expires: Option<SystemTime>,
    /// The external key store that holds it, such as `cks-1234567890abcdef0`.
    pub external_key_store: Option<String>,
    /// The id of the external key in that store's key manager.
    pub external_key: Option<String>,
}

impl AwsKms {
    /// Starts the configuration for a key: its ARN, its id, or an alias (`alias/NAME`, or its ARN).
    ///
    /// **An alias is looked up once, at build.** Messages carry the ARN of the key, and an alias that is pointed elsewhere later takes
    /// effect when the provider is built anew, with the earlier key among the [`former_keys`](AwsKmsBuilder::former_keys).
    pub fn builder(key: impl Into<String>) -> AwsKmsBuilder {
        AwsKmsBuilder::key(key.into())
    }

    /// Starts the configuration for reading by whichever key a message names, in these accounts of this partition (`aws`, `aws-cn`, `aws-us-gov`)
    /// and the configured Regions, and no other. It cannot wrap: only [`read_from`](crate::Builder::read_from) takes it.
    ///
    /// **Whoever can write messages chooses among all those keys.** Name the keys where you can.
    pub fn discover<S: Into<String>>(
        partition: impl Into<String>,
        accounts: impl IntoIterator<Item = S>,
    ) -> AwsKmsBuilder {
        AwsKmsBuilder::discovery(partition.into(), accounts.into_iter().map(Into::into).collect())
    }

    /// Other grant tokens for every call from now on; none, once the grant is known everywhere.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption) for more than 10, or one that is empty or longer than 8,192 bytes.
    pub fn set_grant_tokens<S: Into<String>>(&self, tokens: impl IntoIterator<Item = S>) -> Result<(), Error> {
        let tokens: Vec<String> = tokens.into_iter().map(Into::into).collect();
        builder::check_grant_tokens(&tokens)?;
        self.0.grant_tokens.store(Arc::new(tokens));
        Ok(())
    }

    /// Asks KMS for the key now (`DescribeKey`): at the start of a service, to fail early, and before a run that rewraps, so
    /// that [`is_current`](KekProvider::is_current) knows the current key material.
    ///
    /// # Errors
    /// Those of KMS; *misconfigured* for a key that is not for encryption, and with discovery.
    pub async fn read_key(&self) -> Result<KeyInfo, KekError> {
        let inner = self.0.clone();
        let key = self.0.home.run(async move { inner.describe().await }).await?;
        Ok(KeyInfo {
            arn: key.arn,
            state: key.state.name,
            expires: key.expires,
            external_key_store: key.external_key_store,
            external_key: key.external_key,
        })
    }
}

impl Discovery {
    /// No ARN, so it can stand in no message.
    fn id(&self) -> String {
        format!("aws-kms-discovery:{}:{}", self.partition, self.accounts.join(","))
    }

    fn in_region_at_least(mut self, region: &str) -> Self {
        if self.regions.is_empty() {
            self.regions.push(region.to_owned());
        }
        self
    }
}

impl Inner {
    /// Where to unwrap what says that `kek_id` wrapped it; `None` if that is not for this provider.
    fn target(&self, kek_id: &KekId) -> Option<Target> {
        let named = |arn: &str, region: &str| Some(Target { region: region.to_owned(), arn: arn.to_owned() });
        let here = self.service.region();
        match &self.keys {
            Keys::One { arn, .. } if kek_id == &self.id => named(arn, here),
            Keys::One { former, .. } if former.contains(kek_id) => named(kek_id.as_str(), here),
            Keys::One { arn, related: true, .. } => {
                let (own, other) = (KeyArn::read(arn)?, KeyArn::read(kek_id.as_str())?);
                own.is_related_to(&other).then(|| named(arn, here))?
            }
            Keys::One { .. } => None,
            Keys::Discovered(discovery) => {
                let key = KeyArn::read(kek_id.as_str())?;
                let is_allowed = key.partition == discovery.partition
                    && discovery.accounts.iter().any(|account| account == key.account);
                let has_region = |region: &str| discovery.regions.iter().any(|allowed| allowed == region);
                if !is_allowed {
                    None
                } else if has_region(key.region) {
                    named(kek_id.as_str(), key.region)
                } else if discovery.related && key.is_multi_region() {
                    named(&key.in_region(here), here)
                } else {
                    None
                }
            }
        }
    }

    fn under(&self, key: &str, context: &EncryptionContext) -> Under {
        let grant_tokens = self.grant_tokens.load().to_vec();
        Under { key: key.to_owned(), context: context.clone(), grant_tokens }
    }

    /// The key that wraps.
    fn own(&self) -> Result<&str, Failure> {
        match &self.keys {
            Keys::One { arn, .. } => Ok(arn),
            Keys::Discovered(_) => {
                Err(Failure::new(KekErrorClass::Misconfigured, "a provider for discovery only unwraps: use read_from"))
            }
        }
    }

    // --- the key material

    fn known(&self) -> Option<Known> {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, new: Known) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none_or(|known| known.asked <= new.asked) {
            *known = Some(new);
        }
    }

    fn learn_material(&self, material: Option<KeyMaterialId>, asked: Instant) {
        if material.is_some() {
            self.learn(Known { material, asked, good_for: self.key_max_age });
        }
    }

    async fn describe(&self) -> Result<Description, Failure> {
        let asked = Instant::now();
        let own = self.own()?;
        let key = self.service.describe(own, self.grant_tokens.load().to_vec()).await?;
        if !key.is_for_encryption {
            return Err(Failure::new(KekErrorClass::Misconfigured, format!("{own} is not a key for encryption")));
        }
        #[cfg(feature = "xks")]
        self.learn_store(&key)?;
        // A key that is not ready yet names no material: soon it may.
        let good_for = if key.state.usable.is_ok() { self.key_max_age } else { DESCRIBE_PAUSE.min(self.key_max_age) };
        self.learn(Known { material: key.material, asked, good_for });
        Ok(key)
    }

    /// The current key material, from before whatever is asked next. A call is waited for only when nothing is known yet, and not long.
    async fn material(self: &Arc<Self>) -> Option<KeyMaterialId> {
        // An external key's versions are its key manager's own matter: there is nothing to ask for.
        #[cfg(feature = "xks")]
        if self.store.load().is_some() {
            return None;
        }
        if self.known().is_none() {
            let _alone = self.first.lock().await;
            if self.known().is_none() {
                let answer = tokio::time::timeout(DESCRIBE_TIMEOUT, self.describe()).await;
                if !matches!(answer, Ok(Ok(_))) {
                    self.pause();
                }
            }
        }
        let known = self.known()?;
        if known.asked.elapsed() >= known.good_for {
            let inner = self.clone();
            self.home.spawn_one(&self.asking_in_background, async move {
                if !matches!(tokio::time::timeout(Duration::from_secs(10), inner.describe()).await, Ok(Ok(_))) {
                    inner.pause();
                }
            });
        }
        known.material
    }

    /// `DescribeKey` failed: what is known stays, and it is left alone for a while.
    fn pause(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let material = known.and_then(|known| known.material);
        *known = Some(Known { material, asked: Instant::now(), good_for: DESCRIBE_PAUSE.min(self.key_max_age) });
    }

    // --- the calls

    async fn wrap(self: Arc<Self>, context: EncryptionContext, dek: Dek) -> Result<WrappedDek, Failure> {
        let under = self.under(self.own()?, &context);
        let before = self.material().await;
        let wrapped = self.service.encrypt(under, dek.expose()).await?;
        self.entry("Encrypt", Wrapped { material: before, ..wrapped })
    }

    async fn generate(self: Arc<Self>, context: EncryptionContext) -> Result<(UnwrappedDek, WrappedDek), Failure> {
        let asked = Instant::now();
        let (dek, wrapped) = self.service.generate(self.under(self.own()?, &context)).await?;
        self.learn_material(wrapped.material, asked);
        Ok((dek, self.entry("GenerateDataKey", wrapped)?))
    }

    async fn unwrap(self: Arc<Self>, context: EncryptionContext, wrapped: WrappedDek) -> Result<UnwrappedDek, Failure> {
        let Some(target) = self.target(wrapped.kek_id()) else { return Err(another_kek()) };
        let under = self.under(&target.arn, &context);
        let answer = self.service.decrypt(&target.region, under, wrapped.wrapped().to_vec()).await;
        match &self.keys {
            Keys::One { .. } => answer,
            Keys::Discovered(_) => answer.map_err(Failure::of_a_message_s_key),
        }
    }

    async fn rewrap(self: Arc<Self>, context: EncryptionContext, wrapped: WrappedDek) -> Result<WrappedDek, Failure> {
        let own = self.own()?;
        let Some(target) = self.target(wrapped.kek_id()) else { return Err(another_kek()) };
        let asked = Instant::now();
        let under = self.under(own, &context);
        let wrapped = self.service.re_encrypt(target.arn, under, wrapped.wrapped().to_vec()).await?;
        self.learn_material(wrapped.material, asked);
        self.entry("ReEncrypt", wrapped)
    }

    /// What a message carries: the ARN of the reply, which has to be the one that was asked.
    fn entry(&self, operation: &str, wrapped: Wrapped) -> Result<WrappedDek, Failure> {
        let not_understood = |_| Failure::not_understood(operation);
        if wrapped.key_arn != self.id.as_str() {
            return Err(Failure::not_understood(operation));
        }
        let entry = WrappedDek::new(self.id.clone(), wrapped.blob).map_err(not_understood)?;
        let meta = wrapped.material.map(|material| material.0.to_vec()).unwrap_or_default();
        entry.with_meta(meta).map_err(not_understood)
    }

    async fn health(self: Arc<Self>) -> Result<Health, Failure> {
        if matches!(self.keys, Keys::Discovered(_)) {
            return Ok(Health::Ready);
        }
        let key = self.describe().await?;
        #[cfg(feature = "xks")]
        if let Some(store) = &*self.store.load() {
            return self.health_with_store(store, &key).await;
        }
        key.check_usable()?;
        let left = key.expires.map(|expires| expires.duration_since(SystemTime::now()).unwrap_or_default());
        Ok(match left {
            Some(left) if left < EXPIRES_SOON => Health::Degraded(format!(
                "KMS deletes the imported key material of {} in {} h",
                key.arn,
                left.as_secs() / 3600
            )),
            _ => Health::Ready,
        })
    }
}

fn another_kek() -> Failure {
    Failure::new(KekErrorClass::Invalid, "wrapped by another KEK")
}

impl KekProvider for AwsKms {
    /// The key's ARN; with discovery `aws-kms-discovery:PARTITION:ACCOUNTS`, which stands in no message.
    fn id(&self) -> &KekId {
        &self.0.id
    }

    fn recognises(&self, kek_id: &KekId) -> bool {
        self.0.target(kek_id).is_some()
    }

    /// By the `KeyMaterialId` in the metadata. `None` for a wrapped key without one, while the current one is not known, and for keys in external key stores.
    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        let current = self.0.known().and_then(|known| known.material)?;
        KeyMaterialId::of_meta(wrapped.meta()).map(|by| by == current)
    }

    fn wrap<'a>(&'a self, context: &'a EncryptionContext, dek: &'a Dek) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let dek = Dek::from_slice(dek.expose()).ok_or_else(|| KekError::invalid("not a DEK"))?;
            self.0.home.run(self.0.clone().wrap(context.clone(), dek)).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(self.0.home.run(self.0.clone().unwrap(context.clone(), wrapped.clone())))
    }

    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(self.0.home.run(self.0.clone().generate(context.clone())))
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(self.0.home.run(self.0.clone().rewrap(context.clone(), wrapped.clone())))
    }

    /// For a key in an external key store, once that is known: less time and one more try than for KMS's own keys, and a budget that the store's keys
    /// share (docs/xks.md).
    #[cfg(feature = "xks")]
    fn target(&self, _: &KekId) -> CallTarget {
        let advice = self.0.store.load().as_ref().map(|store| store.advice()).unwrap_or_default();
        CallTarget::new(self.id().as_str()).with_advice(advice)
    }

    /// Asks `DescribeKey`, and so needs the permission for it; *degraded* in the last two weeks of imported key material. For a key in an external key store it
    /// asks `DescribeCustomKeyStores` too. With discovery there is no key to ask about, and the answer is always *ready*.
    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(self.0.home.run(self.0.clone().health()))
    }
}

impl fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let region = self.0.service.region();
        f.debug_struct("AwsKms").field("id", &self.0.id).field("region", &region).finish_non_exhaustive()
    }
}
