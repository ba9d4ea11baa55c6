//! Whether the key can be used: KMS's description of it, or the outcome of a use.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::answers::Description;
use crate::errors::Failure;
use crate::health_check::HealthCheck;
use crate::keys::{Key, Keys};
use crate::provider::Inner;

use waxseal::Dek;
use waxseal::kek::{Health, KekErrorClass};

/// `health` is degraded if imported key material expires within this time.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

impl Inner {
    pub(crate) async fn health(self: Arc<Self>) -> Result<Health, Failure> {
        let Keys::One(own) = &self.keys else { return Ok(Health::Ready) };
        let key = own.current();
        if self.health_check == HealthCheck::Describe {
            return match self.looked_at().await {
                Err(failure)
                    if failure.class == KekErrorClass::Denied
                        && self.follow(own, &key.id).await =>
                {
                    self.looked_at().await
                }
                answer => answer,
            };
        }
        match self.try_use(key).await {
            Err(failure)
                if failure.class == KekErrorClass::Denied && self.follow(own, &key.id).await =>
            {
                self.try_use(own.current()).await?;
            }
            answer => answer?,
        }
        match self.describe().await {
            Ok(key) => self.health_by(&key).await,
            // The key can be used, even though describing it is not permitted.
            Err(failure) if failure.class == KekErrorClass::Denied => Ok(Health::Ready),
            Err(failure) => Err(failure),
        }
    }

    async fn looked_at(&self) -> Result<Health, Failure> {
        let key = self.describe().await?;
        self.health_by(&key).await
    }

    async fn health_by(&self, key: &Description) -> Result<Health, Failure> {
        if let Some(store) = self.stores.of(&key.arn) {
            return self.health_with_store(&store, key).await;
        }
        key.check_usable()?;
        let left = key
            .expires
            .map(|expires| expires.duration_since(SystemTime::now()).unwrap_or_default());
        Ok(match left {
            Some(left) if left < EXPIRES_SOON => Health::Degraded(format!(
                "KMS deletes the imported key material of {} in {} h",
                key.arn,
                left.as_secs() / 3600
            )),
            _ => Health::Ready,
        })
    }

    /// Uses the key for a throw-away DEK.
    async fn try_use(&self, key: &Key) -> Result<(), Failure> {
        let context = &self.health_context;
        if self.health_check == HealthCheck::TryGenerate {
            return self.generate_by(key, context).await.map(drop);
        }
        let no_randomness = |_| {
            Failure::unasked(
                KekErrorClass::Unavailable,
                "no DEK could be made: the system has no randomness",
            )
        };
        let dek = Dek::random().map_err(no_randomness)?;
        let wrapped = self.wrap_by(key, None, context, &dek).await?;
        if self.health_check == HealthCheck::TryWrap {
            return Ok(());
        }
        let under = self.under(key.arn(), context);
        let unwrapped =
            self.service.decrypt(self.service.region(), under, wrapped.wrapped()).await?;
        if unwrapped.dek.expose() == dek.expose() {
            Ok(())
        } else {
            Err(Failure::not_understood("Decrypt"))
        }
    }
}
