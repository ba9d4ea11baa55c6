//! Builds and starts an [`Envelope`].
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Envelope;
use crate::clock::Clock;
#[cfg(any(test, feature = "test-util"))]
use crate::clock::ManualClock;
use crate::context::EncryptionContext;
use crate::dek::{DomainContexts, Limits, SourceBuilder};
use crate::error::Error;
use crate::format::KekId;
use crate::kek::KekProvider;
use crate::kek::call::{CallBudget, CallPolicy};
use crate::kek::set::DekOrigin;
use crate::observe::{Event, Observer};
use crate::policy::{Guard, Policy, PolicyOptions, described};
use crate::runtime::Runtime;
use crate::store::KeyStore;
use crate::suite::{Backend, Nonces, Suite};

/// What to do when a key service cannot be reached at start-up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum StartUp {
    /// The start fails, so that a service that cannot encrypt or decrypt does not join a load
    /// balancer. The default.
    #[default]
    RequireKeyServices,
    /// The start succeeds, observers are notified, and each call asks again. Use it for a service
    /// that does other work too, or that must start while a key service is down.
    TolerateOutage,
}

/// Options of [`EnvelopeBuilder::start`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct StartOptions {
    start_up: StartUp,
    warm_up: Vec<EncryptionContext>,
}

impl StartOptions {
    /// Sets what to do when a key service cannot be reached. By default
    /// [`StartUp::RequireKeyServices`].
    pub fn start_up(mut self, start_up: StartUp) -> Self {
        self.start_up = start_up;
        self
    }

    /// Makes a DEK for writing for each of these contexts, so that the first request does not wait
    /// for one. Adds to the contexts of earlier calls.
    pub fn warm_up<'c>(
        mut self,
        contexts: impl IntoIterator<Item = &'c EncryptionContext>,
    ) -> Self {
        self.warm_up.extend(contexts.into_iter().cloned());
        self
    }
}

/// Configures an [`Envelope`]. Only [`wrap_with`](Self::wrap_with) or
/// [`unwrap_with`](Self::unwrap_with) is needed.
#[derive(Default)]
#[must_use = "nothing happens until `build`"]
pub struct EnvelopeBuilder {
    source: SourceBuilder,
    policy: Option<(Arc<dyn Policy>, PolicyOptions)>,
}

impl EnvelopeBuilder {
    /// Adds a KEK that wraps every new DEK and also unwraps. Call it once for each KEK. With
    /// several KEKs, each one can decrypt every message alone, so **revoking one of them revokes
    /// nothing while another works**. While one is down, no new DEK can be made. Reading asks them
    /// in this order.
    pub fn wrap_with(mut self, provider: impl KekProvider + 'static) -> Self {
        self.source.wrap_with.push(Arc::new(provider));
        self
    }

    /// Adds a KEK that only unwraps, such as an old one or another service's. It is asked after
    /// those of [`wrap_with`](Self::wrap_with).
    pub fn unwrap_with(mut self, provider: impl KekProvider + 'static) -> Self {
        self.source.unwrap_with.push(Arc::new(provider));
        self
    }

    /// Sets a store for the wrapped keys of messages in compact form. Each new DEK's row is then
    /// durable in the store before its first message is released, and a compact message is
    /// decrypted without passing its wrapped keys. The row is read again with every renewal. So a
    /// key that was erased from the store ends within `max_age`, for messages in either form.
    ///
    /// Branch keys have a separate store, which may be the same one: see
    /// [`BranchKek`](crate::branch::BranchKek).
    pub fn key_store(mut self, store: impl KeyStore + 'static) -> Self {
        self.source.store = Some(Arc::new(store));
        self
    }

    /// Accepts a KEK whose wrapping is
    /// [unauthenticated](crate::kek::ContextBinding::Unauthenticated). Anyone who has its public
    /// key can wrap a DEK that they made, and create messages that this envelope decrypts. No key
    /// policy can prevent that. `build` refuses such a provider unless its id is named here.
    pub fn allow_unauthenticated_wrapping(mut self, kek_id: KekId) -> Self {
        self.source.unauthenticated.push(kek_id);
        self
    }

    /// Sets the suite of new messages. Messages of every suite are decrypted. By default
    /// [`Suite::Aes256Gcm`].
    pub fn suite(mut self, suite: Suite) -> Self {
        self.source.suite = suite;
        self
    }

    /// Sets the implementation of the cryptography. By default the fastest of this build: see
    /// [`Backend`].
    pub fn backend(mut self, backend: Backend) -> Self {
        self.source.backend = backend;
        self
    }

    /// Sets where nonces come from. By default [`Nonces::Thread`].
    pub fn nonces(mut self, nonces: Nonces) -> Self {
        self.source.nonces = nonces;
        self
    }

    /// Sets where DEKs are made. By default [`DekOrigin::Local`].
    pub fn dek_origin(mut self, origin: DekOrigin) -> Self {
        self.source.dek_origin = origin;
        self
    }

    /// Sets how much and for how long a DEK is used, and how many are cached.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.source.limits = limits;
        self
    }

    /// Sets the runtime, which provides timers and background tasks. It renews DEKs ahead of time,
    /// and finishes requests in flight after the last caller left. With the feature `tokio`, the
    /// default is the tokio runtime in which [`build`](Self::build) is called, if there is one.
    /// Timers then run on a thread of this library, so deadlines hold even if that runtime ends or
    /// stalls. Without a runtime, the caller that finds a DEK due renews it, and calls to key
    /// services have no timeout and no retry.
    pub fn runtime(mut self, runtime: impl Runtime + 'static) -> Self {
        self.source.runtime = Some(Arc::new(runtime));
        self
    }

    /// Sets how key services are called: timeouts, retries, circuit breakers.
    pub fn call_policy(mut self, policy: CallPolicy) -> Self {
        self.source.call_policy = policy;
        self
    }

    /// Sets how many calls are made, per second and in flight. By default each envelope has its own
    /// budget. Give one budget to several envelopes to share it. Without a runtime only the number
    /// in flight is limited, and setting a budget is refused.
    pub fn call_budget(mut self, budget: CallBudget) -> Self {
        self.source.call_budget = Some(budget);
        self
    }

    /// Sets how many calls are made to the [key store](Self::key_store), separately from those to
    /// the KEKs. By default each envelope has its own budget of 10,000 per second and 64 in flight.
    /// Give one budget to several users of the same store, branch keys among them, to share it. A
    /// budget that the store advises applies as well. Refused without a runtime.
    pub fn store_call_budget(mut self, budget: CallBudget) -> Self {
        self.source.store_call_budget = Some(budget);
        self
    }

    /// Sets the policy, which is asked before each operation, even if the DEK is cached. It sees
    /// the caller of [`Envelope::acting_for`], or no caller. Its decisions are cached as the
    /// options say. An operation that it denies fails with
    /// [`ErrorKind::PolicyDenied`](crate::ErrorKind::PolicyDenied). By default there is no policy.
    pub fn policy(mut self, policy: impl Policy + 'static, options: PolicyOptions) -> Self {
        self.policy = Some((Arc::new(policy), options));
        self
    }

    /// Adds an observer, which receives every event in the life of every DEK. Call it once for each
    /// observer. By default there is none.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.source.observers.push(Box::new(observer));
        self
    }

    /// Sets a clock that tests control. The process's wiping thread reads it once a second.
    #[cfg(any(test, feature = "test-util"))]
    pub fn clock(mut self, clock: ManualClock) -> Self {
        self.source.clock = Clock::Manual(clock);
        self
    }

    pub(crate) fn timed_by(mut self, clock: Clock) -> Self {
        self.source.clock = clock;
        self
    }

    /// Makes it the envelope of a data domain, which serves only the domain's contexts.
    pub(crate) fn domain(mut self, contexts: Arc<DomainContexts>) -> Self {
        self.source.domain = Some(contexts);
        self
    }

    /// Builds the envelope. Checks everything that can be checked without a call to a key service.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption), naming the option: no
    /// provider at all, more than 16 for writing, two with one KEK id, a limit or an option out of
    /// range, two that contradict each other, or one that needs a runtime when there is none. Also
    /// in a tokio runtime without timers, unless another [`runtime`](Self::runtime) is set.
    pub fn build(mut self) -> Result<Envelope, Error> {
        let domain = self.source.domain.clone();
        self.source.more = described(self.policy.as_ref());
        let envelope = Envelope::new(self.source.build()?);
        let Some((policy, mut options)) = self.policy else { return Ok(envelope) };
        if let Some(domain) = domain {
            options = options.domain(domain.name());
        }
        let guard = Guard::new(policy, options, envelope.source())?;
        Ok(envelope.behind(guard))
    }

    /// Builds the envelope, checks that every KEK can be used now, and makes the DEKs that the
    /// options name.
    ///
    /// If a key service is *unavailable* or *throttled*, [`StartOptions::start_up`] decides. A key
    /// service that denies access or is misconfigured is always an error, since that does not pass
    /// on its own.
    ///
    /// ```
    /// # use waxseal::{EncryptionContext, Envelope, StartOptions, kek::local::LocalKek};
    /// # pollster::block_on(async {
    /// # let kek = LocalKek::in_memory("test")?;
    /// let context = EncryptionContext::new([("tenant", "acme")])?;
    /// let options = StartOptions::default().warm_up([&context]);
    /// let envelope = Envelope::builder().wrap_with(kek).start(options).await?;
    /// assert_eq!(envelope.statistics().writing_deks, 1);
    /// # Ok::<(), waxseal::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of [`build`](Self::build), and those of the key services. After one of these the
    /// envelope is [closed](Envelope::close).
    pub async fn start(self, options: StartOptions) -> Result<Envelope, Error> {
        let StartOptions { start_up, warm_up } = options;
        let envelope = self.build()?;
        match started(&envelope, start_up, &warm_up).await {
            Ok(()) => Ok(envelope),
            Err(error) => {
                // The health check may have logged in, and nobody gets this envelope to close it.
                envelope.close().await;
                Err(error)
            }
        }
    }
}

/// Checks that the envelope can be used now, and makes the DEKs that should exist from the start.
async fn started(
    envelope: &Envelope,
    start_up: StartUp,
    warm_up: &[EncryptionContext],
) -> Result<(), Error> {
    for (kek_id, health) in envelope.health().await {
        match health {
            Ok(_) => {}
            Err(error) if start_up == StartUp::TolerateOutage && error.is_retryable() => {
                envelope
                    .source()
                    .emit(&Event::StartedWithout { kek_id: &kek_id, kind: error.kind() });
            }
            Err(error) => return Err(error),
        }
    }
    match envelope.warm_up(warm_up).await {
        Err(error) if start_up == StartUp::TolerateOutage && error.is_retryable() => Ok(()),
        answer => answer,
    }
}

impl std::fmt::Debug for EnvelopeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnvelopeBuilder")
            .field("source", &self.source)
            .field("policy", &self.policy)
            .finish()
    }
}
