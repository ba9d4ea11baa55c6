//! Data domains: separate keys and rules for each kind of data, in one configuration.
//!
//! ```text
//!   domains.toml ──► Domains ──► Domain "orders"  ──► Envelope ──► KEKs, branch keys, key store
//!    or code, or         │
//!    a resolver          └─────► Domain "billing" ──► Envelope ──► …
//! ```
//!
//! A domain's contexts have the reserved pair `waxseal:domain`. The DEK id commits to it, key
//! services see it, and an envelope serves only the contexts of its own domain. So no message
//! crosses from one domain to another, even if both use one KEK. With a cached DEK, a message costs
//! the same as without domains: see docs/domains.md.
//!
//! This layer knows envelopes and branch keys. It knows providers, key stores and policies only by
//! their URIs ([`Schemes`]).
#![forbid(unsafe_code)]

mod builder;
mod config;
mod domains;
pub mod duties;
#[cfg(feature = "domains")]
mod file;
mod opening;
mod reload;
#[cfg(feature = "domains")]
mod resolver;
#[cfg(feature = "domains")]
mod resolving;
mod retiring;
mod schemes;
mod set;
mod shared;
mod source;

use std::fmt;
use std::sync::OnceLock;

pub use builder::DomainsBuilder;
#[cfg(feature = "domains")]
pub use config::ResolverLimits;
pub use config::{Branches, DomainConfig};
pub use domains::Domains;
pub use reload::Reloaded;
#[cfg(feature = "domains")]
pub use resolver::DomainResolver;
pub use schemes::Schemes;

#[cfg(feature = "audit")]
pub use crate::observe::audit::disclosure::DomainAudit;

use crate::branch::BranchKek;
use crate::context::EncryptionContext;
use crate::dek::{DomainContexts, Statistics};
use crate::envelope::Envelope;
use crate::error::Error;
use crate::sync::Arc;

/// One data domain: its envelope, and the contexts that the envelope serves.
///
/// A clone is a pointer.
#[derive(Clone)]
pub struct Domain(Arc<Inner>);

struct Inner {
    config: DomainConfig,
    /// The name of the pair that selected domains when this one was made.
    route_by: Option<Box<str>>,
    contexts: Arc<DomainContexts>,
    envelope: Envelope,
    branches: Option<BranchKek>,
    /// The counts of the domains that this one replaced.
    earlier: OnceLock<Counted>,
}

/// The counts of a domain's envelope and branch keys.
struct Counted {
    envelope: Statistics,
    branches: Option<Statistics>,
}

impl Domain {
    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.contexts.name()
    }

    /// Returns the envelope. It serves only contexts of [`context`](Self::context).
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.0.envelope
    }

    /// Returns the branch keys, if the domain has them. Use them to erase a branch or to rewrap.
    #[must_use]
    pub fn branches(&self) -> Option<&BranchKek> {
        self.0.branches.as_ref()
    }

    /// Returns the [statistics](Envelope::statistics) of the envelope.
    ///
    /// If a [reload](Domains::reload) or a resolver changed the domain, the counters continue from
    /// those before the change, and so do metrics made from them. What the old envelope counts
    /// after that, for callers that still hold it, is left out. A domain of a resolver that was
    /// evicted to make room (`ResolverLimits::max_domains`) counts from zero when it is resolved
    /// again.
    ///
    /// ```
    /// # use waxseal::domain::{DomainConfig, Domains, Schemes};
    /// # pollster::block_on(async {
    /// # let schemes =
    /// #     Schemes::default().kek("test", |_| async { waxseal::kek::local::LocalKek::in_memory("a") });
    /// # let builder = Domains::builder().schemes(schemes);
    /// # let builder = builder.domain("orders", DomainConfig::default().wrap_with("test:a"));
    /// # let domains = builder.build().await?;
    /// for domain in domains.all() {
    ///     println!("{}: {} DEKs", domain.name(), domain.statistics().reading_deks);
    /// }
    /// # Ok::<(), waxseal::Error>(()) }).unwrap();
    /// ```
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.counted(false).envelope
    }

    /// Returns the statistics of the branch keys, if the domain has them: see
    /// [`statistics`](Self::statistics).
    #[must_use]
    pub fn branch_statistics(&self) -> Option<Statistics> {
        self.counted(false).branches
    }

    /// Returns the counts of this domain and of those it replaced. With `and_gone`, also of KEKs
    /// that only those had.
    fn counted(&self, and_gone: bool) -> Counted {
        let branches = self.branches().map(BranchKek::statistics);
        let mut counted = Counted { envelope: self.envelope().statistics(), branches };
        let Some(earlier) = self.0.earlier.get() else { return counted };
        let add = |now: &mut Statistics, earlier: &Statistics| {
            let gone = now.add_earlier(earlier);
            now.keks.extend(gone.into_iter().filter(|_| and_gone));
        };
        add(&mut counted.envelope, &earlier.envelope);
        if let (Some(now), Some(earlier)) = (&mut counted.branches, &earlier.branches) {
            add(now, earlier);
        }
        counted
    }

    /// Continues the counters of `old`, which this domain replaces.
    fn count_on_from(&self, old: &Self) {
        // A domain replaces only one other.
        let _ = self.0.earlier.set(old.counted(true));
    }

    /// Returns the domain's configuration.
    pub fn config(&self) -> &DomainConfig {
        &self.0.config
    }

    /// Makes an encryption context of this domain from the caller's pairs. Keep it and clone it,
    /// like every context.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidContext`](crate::ErrorKind::InvalidContext) as for
    /// [`EncryptionContext::new`], and for a pair that is missing or that contexts of this domain
    /// may not have.
    pub fn context<N, V>(
        &self,
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<EncryptionContext, Error>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        self.0.contexts.context(pairs)
    }

    /// Wipes all keys and refuses later calls. Observers are not notified yet.
    fn stop(&self) {
        self.0.envelope.stop();
        self.0.branches.iter().for_each(BranchKek::stop);
    }

    /// Wipes all keys and shuts down. Waits for no observer.
    fn shut_down(&self) {
        self.stop();
        self.0.envelope.shut_down_later();
        self.0.branches.iter().for_each(BranchKek::shut_down_later);
    }

    /// Wipes all keys and shuts down, and waits until the providers have released what they hold.
    async fn close(&self) {
        self.stop();
        self.0.envelope.shut_down();
        self.0.branches.iter().for_each(BranchKek::shut_down);
        self.0.envelope.close().await;
    }

    /// Whether somebody else holds this domain, its envelope, a handle or its branch keys.
    fn is_held(&self) -> bool {
        // The envelope holds one itself.
        let is_held = |branches: &BranchKek| branches.is_held_besides(2);
        Arc::strong_count(&self.0) > 1
            || self.0.envelope.is_held()
            || self.0.branches.as_ref().is_some_and(is_held)
    }

    /// Distinguishes this domain from every other that exists at the same time.
    fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether this configuration would make the same domain again.
    fn is_made_of(&self, config: &DomainConfig, route_by: Option<&str>) -> bool {
        self.0.config == *config && self.is_routed_by(route_by)
    }

    /// Whether its contexts may have the pair that selects the domain.
    fn is_routed_by(&self, route_by: Option<&str>) -> bool {
        self.0.config.may_have.is_none() || self.0.route_by.as_deref() == route_by
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("name", &self.name())
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}
