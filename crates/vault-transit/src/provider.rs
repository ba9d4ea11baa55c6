//! The provider: translates the library's requests to those of the server, and the answers back.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::endpoints::{self, ServerHealth, Wrapped};
use crate::errors::Failure;
use crate::format::VaultCiphertext;
use crate::inner::Inner;
use crate::key::{Binding, ContextBinding, KeyInfo};
use crate::requests::{BATCH_ITEMS, Input, Operation, decode, encode_dek};
use waxseal::EncryptionContext;
use waxseal::kek::{
    BoxFuture, ContextBinding as Bound, Health, KekError, KekProvider, Login, UnwrappedDek,
};
use waxseal::{Dek, KekId, WrappedDek};

/// Wraps DEKs by one key of a Transit engine. A clone is another handle to the same provider.
///
/// Its id is `vault:CLUSTER/MOUNT/KEY`. You choose the cluster's name. Two clusters may both have
/// `transit/orders`. Their names, which are in every sealed message, distinguish them. A namespace
/// is not part of the id, so give the same key in two namespaces two cluster names.
///
/// A wrapped DEK is Transit's own text, `vault:vN:…`, so other tools can read it too.
///
/// # How the encryption context binds
///
/// | key | what Vault gets | Vault enforces the context | rewrap and datakey on the server |
/// |---|---|---|---|
/// | derived (recommended) | the context's canonical bytes as `context` | yes | yes |
/// | not derived, [`ContextBinding::AssociatedData`] | the same as `associated_data` | yes | no: Transit cannot rewrap such ciphertexts, so this process unwraps and wraps |
/// | not derived, [`ContextBinding::Unbound`] | nothing | no; the DEK id still commits to it, so a wrong context is found here, after Vault released the DEK | yes |
///
/// The key itself shows whether it is derived. Under a key that is not derived, Transit ignores a
/// `context`.
#[derive(Clone)]
pub struct VaultTransitKek(pub(crate) Arc<Inner>);

impl VaultTransitKek {
    /// Logs in if necessary and reads the key now. Use it at the start of a service, to fail early,
    /// and before a rewrap run, so that [`is_current`](waxseal::kek::KekProvider::is_current) knows
    /// the latest version.
    ///
    /// # Errors
    /// Those of the server; *misconfigured* for a key that cannot be used as it is.
    pub async fn read_key(&self) -> Result<KeyInfo, KekError> {
        let inner = self.0.clone();
        let known = self.0.spawner.run(async move { inner.read_key_now().await }).await?;
        Ok(known.info)
    }
}

impl Inner {
    /// Whether the key can be used now, which is what counts. A load balancer may route each
    /// request to another node, so what one node says about itself only explains a failure.
    async fn health(self: &Arc<Self>) -> Result<Health, Failure> {
        if let Err(failure) = self.read_key_now().await {
            return Err(self.explained(failure).await);
        }
        let troubles = [
            self.auth.trouble().map(|trouble| format!("the token cannot be kept alive: {trouble}")),
            self.transport.trouble(),
        ];
        match troubles.into_iter().flatten().collect::<Vec<_>>() {
            troubles if troubles.is_empty() => Ok(Health::Ready),
            troubles => Ok(Health::Degraded(troubles.join("; "))),
        }
    }

    /// Adds what the server says about itself to a temporary failure.
    async fn explained(&self, failure: Failure) -> Failure {
        if !failure.is_passing() {
            return failure;
        }
        let Ok(reply) = self.transport.send_to_root("health", &endpoints::health()).await else {
            return failure;
        };
        let Some(state) = reply.read::<ServerHealth>() else { return failure };
        if !state.initialized {
            Failure::misconfigured("health: the server is not initialised")
        } else if state.sealed {
            Failure::unavailable("health: the server is sealed")
        } else if state.replication_dr_mode == "secondary" {
            Failure::unavailable("health: the node is a disaster-recovery secondary")
        } else {
            failure
        }
    }
}

impl KekProvider for VaultTransitKek {
    fn id(&self) -> &KekId {
        &self.0.id
    }

    /// Returns [`Enforced`](Bound::Enforced), unless the key is, or may be, a key that is not
    /// derived under [`ContextBinding::Unbound`].
    fn context_binding(&self) -> Bound {
        match (self.0.known.load().as_ref().map(|known| known.binding), self.0.chosen) {
            (Some(Binding::Derived | Binding::AssociatedData), _) => Bound::Enforced,
            (Some(Binding::Unbound), _) | (None, Some(ContextBinding::Unbound)) => Bound::Checked,
            // A key that does not bind is refused.
            (None, _) => Bound::Enforced,
        }
    }

    /// Returns `true` unless the key is, or may be, bound by [`ContextBinding::AssociatedData`].
    fn rewraps_in_service(&self) -> bool {
        match (self.0.known.load().as_ref().map(|known| known.binding), self.0.chosen) {
            (Some(binding), _) => binding != Binding::AssociatedData,
            (None, chosen) => chosen != Some(ContextBinding::AssociatedData),
        }
    }

    /// Compares the version in the text with the latest known one, from the key
    /// ([`VaultTransitKek::read_key`], repeated when it is older than
    /// [`key_max_age`](crate::VaultTransitKekBuilder::key_max_age)) or from an answer. `None` while
    /// none is known; the first question starts a reading.
    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        match self.0.known.load_full() {
            Some(known) => self.0.look_ahead(&known),
            None => self.0.read_key_in_background(),
        }
        let latest = self.0.latest.version();
        let ciphertext = VaultCiphertext::read(wrapped.wrapped()).filter(|_| latest > 0)?;
        Some(ciphertext.version >= latest)
    }

    fn key_version(&self, wrapped: &WrappedDek) -> Option<Box<str>> {
        VaultCiphertext::read(wrapped.wrapped()).map(|by| by.version.to_string().into())
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let input = Input { text: encode_dek(dek), context: context.clone() };
            self.wrapped(Operation::Wrap, self.single(Operation::Wrap, input).await?)
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            let input = self.ciphertext(context, wrapped)?;
            Self::unwrapped(self.single(Operation::Unwrap, input).await?)
        })
    }

    /// Uses Transit's `datakey`. Under [`ContextBinding::AssociatedData`], which `datakey` does not
    /// support, the DEK is made here and wrapped.
    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(async move {
            if !self.rewraps_on_the_server().await? {
                let dek = Dek::random().map_err(|error| {
                    KekError::unavailable("no DEK could be made")
                        .without_asking()
                        .with_source(error)
                })?;
                let wrapped = self.wrap(context, &dek).await?;
                return Ok((UnwrappedDek::new(dek.expose().to_vec()), wrapped));
            }
            let (inner, context) = (self.0.clone(), context.clone());
            let made = self.0.spawner.run(async move { inner.generate(&context).await }).await?;
            let wrapped = self.0.wrapped("generate", made.ciphertext.as_deref())?;
            let dek = decode(made.plaintext.as_ref())
                .ok_or_else(|| Failure::not_understood("generate"))?;
            Ok((dek, wrapped))
        })
    }

    /// Rewraps on the server, or under [`ContextBinding::AssociatedData`] here.
    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let input = self.ciphertext(context, wrapped)?;
            if !self.rewraps_on_the_server().await? {
                let dek = Self::unwrapped(self.single(Operation::Unwrap, input).await?)?;
                let dek = dek
                    .to_dek()
                    .ok_or_else(|| KekError::invalid("the unwrapped DEK is not 32 bytes"))?;
                return self.wrap(context, &dek).await;
            }
            self.wrapped(Operation::Rewrap, self.single(Operation::Rewrap, input).await?)
        })
    }

    fn wrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a Dek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Box::pin(async move {
            let inputs = items
                .iter()
                .map(|(context, dek)| {
                    Ok(Input { text: encode_dek(dek), context: (*context).clone() })
                })
                .collect();
            self.each(Operation::Wrap, inputs, |result| self.wrapped(Operation::Wrap, result)).await
        })
    }

    fn batch_size(&self) -> usize {
        BATCH_ITEMS
    }

    fn unwrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        Box::pin(async move {
            let inputs =
                items.iter().map(|(context, wrapped)| self.ciphertext(context, wrapped)).collect();
            self.each(Operation::Unwrap, inputs, Self::unwrapped).await
        })
    }

    /// Makes one request. Under [`ContextBinding::AssociatedData`] it makes two, and the DEKs pass
    /// through this process.
    fn rewrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Box::pin(async move {
            let on_the_server = self.rewraps_on_the_server().await;
            if !matches!(on_the_server, Ok(false)) {
                let inputs = items
                    .iter()
                    .map(|(context, wrapped)| self.ciphertext(context, wrapped))
                    .collect();
                return self
                    .each(Operation::Rewrap, inputs, |result| {
                        self.wrapped(Operation::Rewrap, result)
                    })
                    .await;
            }
            let unwrapped = self.unwrap_many(items).await;
            let inputs = items
                .iter()
                .zip(unwrapped)
                .map(|((context, _), unwrapped)| {
                    let dek = unwrapped?
                        .to_dek()
                        .ok_or_else(|| KekError::invalid("the unwrapped DEK is not 32 bytes"))?;
                    Ok(Input { text: encode_dek(&dek), context: (*context).clone() })
                })
                .collect();
            self.each(Operation::Wrap, inputs, |result| self.wrapped(Operation::Wrap, result)).await
        })
    }

    /// Reports sealed, not initialised and standby separately, and then tries the login, the policy
    /// for reading the key, and the key itself.
    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(async move {
            let inner = self.0.clone();
            self.0.spawner.run(async move { inner.health().await }).await
        })
    }

    fn login(&self) -> Option<Login> {
        Some(self.0.auth.login())
    }

    /// Revokes the token of the last login (`revoke-self`). A token supplied to the provider is not
    /// revoked.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let auth = self.0.auth.clone();
            let work = async move {
                auth.close().await;
                Ok::<_, KekError>(())
            };
            // If its runtime is gone, nothing can be done.
            let _ = self.0.spawner.run(work).await;
        })
    }
}

impl VaultTransitKek {
    async fn single(&self, operation: Operation, input: Input) -> Result<Wrapped, KekError> {
        let inner = self.0.clone();
        self.0.spawner.run(async move { inner.single(operation, &input).await }).await
    }

    async fn batch(
        &self,
        operation: Operation,
        inputs: Vec<Input>,
    ) -> Vec<Result<Wrapped, Failure>> {
        let (inner, len) = (self.0.clone(), inputs.len());
        let work = async move { Ok::<_, KekError>(inner.batch(operation, &inputs).await) };
        match self.0.spawner.run(work).await {
            Ok(results) => results,
            Err(error) => {
                let failure = Failure {
                    asked: error.was_asked(),
                    ..Failure::new(error.class(), error.message().to_owned())
                };
                (0..len).map(|_| Err(failure.clone())).collect()
            }
        }
    }

    /// Returns the ciphertext of an entry of this key, if it can be one.
    fn ciphertext(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<Input, KekError> {
        if wrapped.kek_id() != &self.0.id {
            return Err(KekError::invalid("wrapped by another KEK").without_asking());
        }
        match VaultCiphertext::read(wrapped.wrapped()) {
            Some(ciphertext) => Ok(Input {
                text: Zeroizing::new(ciphertext.text.to_owned()),
                context: context.clone(),
            }),
            None => {
                Err(KekError::invalid("not a ciphertext of Vault's Transit engine")
                    .without_asking())
            }
        }
    }

    fn wrapped(&self, operation: Operation, result: Wrapped) -> Result<WrappedDek, KekError> {
        self.0.wrapped(operation.name(), result.ciphertext.as_deref()).map_err(KekError::from)
    }

    fn unwrapped(result: Wrapped) -> Result<UnwrappedDek, KekError> {
        decode(result.plaintext.as_ref()).ok_or_else(|| Failure::not_understood("unwrap").into())
    }

    /// Whether ciphertexts of this key can be rewrapped on the server.
    async fn rewraps_on_the_server(&self) -> Result<bool, KekError> {
        let inner = self.0.clone();
        let known = self.0.spawner.run(async move { inner.known().await }).await?;
        Ok(known.binding != Binding::AssociatedData)
    }

    /// Sends the items that can be sent, and puts every result in its place.
    async fn each<T>(
        &self,
        operation: Operation,
        inputs: Vec<Result<Input, KekError>>,
        finish: impl Fn(Wrapped) -> Result<T, KekError>,
    ) -> Vec<Result<T, KekError>> {
        let mut good = Vec::with_capacity(inputs.len());
        let places: Vec<Result<(), KekError>> =
            inputs.into_iter().map(|input| input.map(|input| good.push(input))).collect();
        let answers = if good.is_empty() { Vec::new() } else { self.batch(operation, good).await };
        let mut answers = answers.into_iter();
        places
            .into_iter()
            .map(|place| {
                place?;
                match answers.next() {
                    Some(answer) => finish(answer?),
                    None => Err(Failure::not_understood(operation.name()).into()),
                }
            })
            .collect()
    }
}

impl fmt::Debug for VaultTransitKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultTransitKek({}, {})", self.0.id, self.0.auth.method())
    }
}
