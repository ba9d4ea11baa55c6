//! Finds the external key store of a key, and reads its state.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::answers::Description;
use crate::errors::Failure;
use crate::keys::Target;
use crate::provider::{AwsKmsKek, BACKGROUND_TIMEOUT, DESCRIBE_PAUSE, Inner};
use crate::xks::{ExternalKeyStore, INVALID_STATE, NOT_FOUND, Store};
use waxseal::kek::{Health, KekError, KekErrorClass};

impl AwsKmsKek {
    /// Calls `DescribeCustomKeyStores` for the external key store that holds the key. It returns
    /// the state of the connection, and why it failed. *Connected* does not mean that the proxy
    /// answers now; the store's metrics in CloudWatch show that.
    ///
    /// # Errors
    /// Those of KMS; *misconfigured* for a key that is not in an external key store.
    pub async fn read_external_key_store(&self) -> Result<ExternalKeyStore, KekError> {
        let inner = self.0.clone();
        self.0
            .spawner
            .run(async move {
                let own = inner.own()?;
                if inner.stores.of(own.current().arn()).is_none() {
                    inner.describe().await?;
                }
                let arn = own.current().arn();
                match inner.stores.of(arn) {
                    Some(store) => inner.read_store(&store).await,
                    None => Err(Failure::new(
                        KekErrorClass::Misconfigured,
                        format!("{arn} is in no external key store"),
                    )),
                }
            })
            .await
    }
}

impl Inner {
    /// After a call to `target`, asks in the background where the key is, if it is a former or
    /// discovered key whose place is unknown. After a failure it asks only if keys in stores have
    /// such failures, since messages may name keys that do not exist.
    pub(crate) fn look_for_store(self: &Arc<Self>, target: &Target, failure: Option<&Failure>) {
        if failure.is_some_and(|failure| failure.code.as_deref() != Some(INVALID_STATE))
            || self.own().is_ok_and(|own| own.current().arn() == target.arn)
            || !self.stores.is_to_be_asked(&target.arn, DESCRIBE_PAUSE.max(BACKGROUND_TIMEOUT))
        {
            return;
        }
        let (inner, region, arn) = (self.clone(), target.region.clone(), target.arn.clone());
        // `is_to_be_asked` allows one question at a time for each key. A busy flag for all keys
        // would skip a key, which would then not be asked about until its pause is over.
        self.spawner.spawn_one(&Arc::default(), async move {
            let tokens = inner.grant_tokens.load();
            let work = inner.service.describe(&region, &arn, &tokens);
            let found = match tokio::time::timeout(BACKGROUND_TIMEOUT, work).await {
                Ok(Ok(key)) => key.external_key_store,
                // Without permission, it is not asked again.
                Ok(Err(failure)) if failure.class == KekErrorClass::Denied => None,
                _ => return,
            };
            // Only a budget that is out of range fails here, and the default is not.
            let _ = inner.stores.learn(&arn, found.as_deref());
        });
    }

    async fn read_store(&self, store: &Store) -> Result<ExternalKeyStore, Failure> {
        let (connection_state, connection_error) = self.service.describe_store(&store.id).await?;
        Ok(ExternalKeyStore { id: store.id.clone(), connection_state, connection_error })
    }

    /// Checks key and store together. The store comes first, since it says more than the key's
    /// *Unavailable*.
    pub(crate) async fn health_with_store(
        &self,
        store: &Store,
        key: &Description,
    ) -> Result<Health, Failure> {
        let found = match self.read_store(store).await {
            Ok(found) => found.usable().map(|()| Health::Ready),
            // No permission, or the store belongs to another account. `DescribeKey` said that it
            // exists.
            Err(failure)
                if failure.class == KekErrorClass::Denied
                    || failure.code.as_deref() == Some(NOT_FOUND) =>
            {
                Ok(Health::Degraded(format!(
                    "the state of external key store {} cannot be seen: {}",
                    store.id, failure.text
                )))
            }
            Err(failure) => Err(failure),
        };
        let health = found?;
        key.check_usable()?;
        Ok(health)
    }
}
