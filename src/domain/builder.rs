//! Configures the domains of a process.
#![forbid(unsafe_code)]

use std::fmt;
#[cfg(feature = "domains")]
use std::path::PathBuf;
use std::time::Duration;

use arc_swap::ArcSwap;

#[cfg(feature = "domains")]
use super::ResolverLimits;
use super::config::DomainConfig;
use super::domains::All;
use super::opening::{Opener, invalid};
#[cfg(feature = "domains")]
use super::resolver::{DomainResolver, Resolving, check_limits};
use super::retiring::Retiring;
use super::set::Set;
use super::shared::Shared;
use super::source::Source;
use super::{Domains, Schemes};
use crate::branch::BranchKekBuilder;
use crate::clock::Clock;
#[cfg(any(test, feature = "test-util"))]
use crate::clock::ManualClock;
use crate::envelope::{EnvelopeBuilder, StartUp};
use crate::error::Error;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::memory::fork::PerProcess;
#[cfg(feature = "audit")]
use crate::observe::audit::AuditTrail;
use crate::observe::{Observer, Observers};
use crate::runtime::TaskSpawner;
use crate::sync::Arc;
use crate::sync::atomic::AtomicBool;

const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
const MAX_DRAIN: Duration = Duration::from_secs(3600);

/// Configures [`Domains`]. Name them in code with [`domain`](Self::domain), or in a file (feature
/// `domains`).
#[must_use = "nothing happens until `build`"]
pub struct DomainsBuilder {
    opener: Opener,
    source: Source,
    drain: Duration,
    #[cfg(feature = "domains")]
    resolver: Option<Arc<dyn DomainResolver>>,
    #[cfg(feature = "domains")]
    resolver_limits: ResolverLimits,
}

impl Default for DomainsBuilder {
    fn default() -> Self {
        let opener = Opener {
            schemes: Schemes::default(),
            envelopes: Box::new(|_, builder| builder),
            branches: Box::new(|_, builder| builder),
            observers: Vec::new(),
            start_up: None,
            #[cfg(feature = "audit")]
            trail: None,
            stores: Shared::default(),
            policies: Shared::default(),
            clock: Clock::default(),
        };
        Self {
            opener,
            source: Source::default(),
            drain: DEFAULT_DRAIN,
            #[cfg(feature = "domains")]
            resolver: None,
            #[cfg(feature = "domains")]
            resolver_limits: ResolverLimits::default(),
        }
    }
}

impl DomainsBuilder {
    /// Sets which providers, key stores and policies a configuration can name.
    pub fn schemes(mut self, schemes: Schemes) -> Self {
        self.opener.schemes = schemes;
        self
    }

    /// Adds a domain. Its name is part of every message and can never be changed. It has 1 to 128
    /// letters, digits, `-`, `_` and `.`.
    pub fn domain(mut self, name: impl Into<String>, config: DomainConfig) -> Self {
        let name = name.into();
        if self.source.domains.insert(name.clone(), config).is_some() {
            self.source.twice = Some(name);
        }
        self
    }

    /// Adds the domains of a TOML file: see docs/domains.md. A file without any domain is refused,
    /// unless there are domains in code or a [`resolver`](Self::resolver).
    #[cfg(feature = "domains")]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.source.file = Some(path.into());
        self
    }

    /// Sets the name of the pair whose value selects the domain in [`Domains::context`]. The pair
    /// is part of the context like any other.
    pub fn route_by(mut self, name: impl Into<String>) -> Self {
        self.source.route_by = Some(name.into());
        self
    }

    /// Adds an observer of all domains. It receives events of their DEKs and branch keys, and of
    /// reloads. The context of an event shows its domain.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.opener.observers.push(Arc::new(observer));
        self
    }

    /// Sets the audit trail of all domains. It becomes an [`observer`](Self::observer) of each
    /// domain, as configured by [`DomainConfig::audit`]. Set it here and not there.
    #[cfg(feature = "audit")]
    pub fn audit_trail(mut self, trail: AuditTrail) -> Self {
        self.opener.trail = Some(trail);
        self
    }

    /// Sets how long a domain that a reload ends keeps serving those who hold it: 0 to 1 hour, by
    /// default 30 seconds.
    pub fn drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Sets the source of domains that are not in the configuration. [`Domains::resolve`] asks it.
    #[cfg(feature = "domains")]
    pub fn resolver(mut self, resolver: impl DomainResolver + 'static) -> Self {
        self.resolver = Some(Arc::new(resolver));
        self
    }

    /// Sets how many resolved domains are kept, and for how long.
    #[cfg(feature = "domains")]
    pub fn resolver_limits(mut self, limits: ResolverLimits) -> Self {
        self.resolver_limits = limits;
        self
    }

    /// Sets options of every envelope, such as its runtime, by the domain's name. The domain's own
    /// configuration takes precedence.
    pub fn envelopes(
        mut self,
        options: impl Fn(&str, EnvelopeBuilder) -> EnvelopeBuilder + Send + Sync + 'static,
    ) -> Self {
        self.opener.envelopes = Box::new(options);
        self
    }

    /// Sets options of every domain's branch keys, by the domain's name.
    pub fn branches(
        mut self,
        options: impl Fn(&str, BranchKekBuilder) -> BranchKekBuilder + Send + Sync + 'static,
    ) -> Self {
        self.opener.branches = Box::new(options);
        self
    }

    /// Sets a clock that tests control, for all domains and for the age of a resolver's answers.
    #[cfg(any(test, feature = "test-util"))]
    pub fn clock(mut self, clock: ManualClock) -> Self {
        self.opener.clock = Clock::Manual(clock);
        self
    }

    /// Makes every domain. KEKs are not asked, except by providers that look something up when they
    /// are made.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], with the file, the line and the field, and the errors of the
    /// providers. [`ErrorKind::Io`] for a file that cannot be read.
    pub async fn build(self) -> Result<Domains, Error> {
        if self.drain > MAX_DRAIN {
            let detail = format!("drain is {:?}, 0 to 1 hour are allowed", self.drain);
            return Err(invalid(detail));
        }
        #[cfg(feature = "domains")]
        check_limits(&self.resolver_limits)?;
        let retiring = Arc::new(Retiring::new(self.drain));
        let (configuration, locator) = self.source.load()?;
        #[cfg(feature = "domains")]
        if self.source.file.is_some() && configuration.domains.is_empty() && self.resolver.is_none()
        {
            let detail = "there is no domain in it, none in code and no resolver";
            return Err(locator.of_file(invalid(detail)));
        }
        let set = Set::open(&self.opener, &configuration, &Set::default()).await;
        let set = set.map_err(|(name, wrong)| locator.error(&name, &wrong))?;
        let observers = self.opener.observers.iter().cloned();
        #[cfg(feature = "audit")]
        let observers =
            observers.chain(self.opener.trail.clone().map(|trail| Arc::new(trail) as _));
        Ok(Domains(Arc::new(All {
            current: ArcSwap::from_pointee(set),
            observers: Observers::new(observers.map(|one| Box::new(one) as _).collect()),
            opener: self.opener,
            source: self.source,
            #[cfg(feature = "domains")]
            resolving: self
                .resolver
                .map(|resolver| Resolving::new(resolver, self.resolver_limits, retiring.clone())),
            retiring,
            reloading: PerProcess::new(),
            spawner: TaskSpawner::current(),
            is_closed: AtomicBool::new(false),
        })))
    }

    /// Makes every domain, and checks that its KEKs can be used now. It works like
    /// [`EnvelopeBuilder::start`].
    ///
    /// # Errors
    /// Those of [`build`](Self::build), and those of the key services.
    pub async fn start(mut self, start_up: StartUp) -> Result<Domains, Error> {
        self.opener.start_up = Some(start_up);
        self.build().await
    }
}

impl fmt::Debug for DomainsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DomainsBuilder")
            .field("opener", &self.opener)
            .field("source", &self.source)
            .finish()
    }
}
