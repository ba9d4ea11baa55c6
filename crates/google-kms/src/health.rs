//! Whether the key can be used: Cloud KMS's description of it, or the outcome of a use.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::errors::Failure;
use crate::health_check::HealthCheck;
use crate::provider::Inner;

use waxseal::Dek;
use waxseal::kek::{Health, KekErrorClass};

impl Inner {
    pub(crate) async fn health(self: Arc<Self>) -> Result<Health, Failure> {
        if self.health_check == HealthCheck::Get {
            self.describe().await?.check_usable(self.keys.own.name())?;
            return Ok(Health::Ready);
        }
        let context = &self.health_context;
        let no_randomness = |_| {
            Failure::unasked(
                KekErrorClass::Unavailable,
                "no DEK could be made: the system has no randomness",
            )
        };
        let dek = Dek::random().map_err(no_randomness)?;
        let wrapped = self.wrap_by_own(context, &dek).await?;
        if self.health_check == HealthCheck::TryWrap {
            return Ok(Health::Ready);
        }
        let name = self.keys.own.name();
        let unwrapped = self.service.decrypt(name, context, wrapped.wrapped()).await?;
        if unwrapped.dek.expose() == dek.expose() {
            Ok(Health::Ready)
        } else {
            Err(Failure::not_understood("decrypt"))
        }
    }
}
