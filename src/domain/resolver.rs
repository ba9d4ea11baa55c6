//! Resolvers of domains that are not in the configuration, and the cache of their answers.
//!
//! A resolver's answer decides which keys a domain has, and nothing about DEKs, which are in the
//! domain's own envelope. So this cache holds nothing secret.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use futures_util::future::Shared;
use moka::notification::RemovalCause;
use moka::sync::Cache;

use super::config::DomainConfig;
use super::opening::invalid;
use super::retiring::Retiring;
use super::{Domain, ResolverLimits};
use crate::clock::Moment;
use crate::error::Error;
use crate::memory::fork::{OfProcess, PerProcess};
use crate::runtime::BoxFuture;
use crate::sync::atomic::AtomicBool;
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many names without a domain are remembered.
const MOST_REFUSALS: u64 = 10_000;

/// Supplies domains that are in no file, such as one per customer with the customer's own KEK.
///
/// ```
/// use waxseal::domain::{DomainConfig, DomainResolver};
/// use waxseal::kek::BoxFuture;
///
/// #[derive(Debug)]
/// struct Customers;
///
/// impl DomainResolver for Customers {
///     fn resolve<'a>(
///         &'a self,
///         name: &'a str,
///     ) -> BoxFuture<'a, Result<Option<DomainConfig>, waxseal::Error>> {
///         Box::pin(async move {
///             // From a table, say.
///             let uri = (name == "acme").then_some("aws-kms://alias/acme?region=eu-west-1");
///             Ok(uri.map(|uri| DomainConfig::default().wrap_with(uri).must_have(["table"])))
///         })
///     }
/// }
/// ```
pub trait DomainResolver: fmt::Debug + Send + Sync {
    /// Returns the configuration of a domain, or `None` if there is none with this name. The name
    /// is a valid domain name, and may be a caller's guess.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<DomainConfig>, Error>>;
}

/// The domains that were resolved.
pub(super) struct Resolving {
    pub(super) resolver: Arc<dyn DomainResolver>,
    pub(super) limits: ResolverLimits,
    retiring: Arc<Retiring>,
    /// The child of a fork resolves again, since threads that the fork left behind may hold these
    /// locks.
    answers: PerProcess<Answers>,
}

/// The cached answers of the resolver.
pub(super) struct Answers {
    pub(super) domains: Cache<Box<str>, Arc<Resolved>>,
    pub(super) refusals: Cache<Box<str>, Error>,
    flights: Mutex<HashMap<Box<str>, InFlight>>,
}

/// A resolution in progress, and the number of its waiters. They are counted under the lock of the
/// map: of two that leave at the same time, one is the last.
pub(super) struct InFlight {
    pub(super) flight: Flight,
    pub(super) waiting: usize,
}

/// A domain, until it is evicted or replaced. moka frees a value some time later, which may be
/// never in an idle process. So its listener empties this, and then nobody holds the domain.
pub(super) struct Resolved {
    domain: Mutex<Option<Domain>>,
    since: Moment,
}

impl Resolved {
    pub(super) fn new(domain: Domain, since: Moment) -> Self {
        Self { domain: Mutex::new(Some(domain)), since }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Domain>> {
        self.domain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One resolution, shared by all its waiters. Each of them drives it, so none depends on another.
#[derive(Clone)]
pub(super) struct Flight {
    pub(super) answer: Shared<BoxFuture<'static, Result<Domain, Error>>>,
    /// Set when it continues without callers. It also distinguishes this resolution from a later
    /// one.
    pub(super) goes_on: Arc<AtomicBool>,
}

impl Resolving {
    pub(super) fn new(
        resolver: Arc<dyn DomainResolver>,
        limits: ResolverLimits,
        retiring: Arc<Retiring>,
    ) -> Self {
        Self { resolver, limits, retiring, answers: PerProcess::new() }
    }

    pub(super) fn answers(&self) -> Arc<OfProcess<Answers>> {
        self.answers.get_or_init(|| {
            let retiring = self.retiring.clone();
            let evicted = move |_: Arc<Box<str>>, resolved: Arc<Resolved>, cause| {
                let domain = resolved.lock().take();
                // Its replacement may be the same domain.
                if cause != RemovalCause::Replaced
                    && let Some(domain) = domain
                {
                    retiring.retire_when_dropped(domain);
                }
            };
            let domains = Cache::builder().max_capacity(self.limits.max_domains);
            let refusals = Cache::builder().max_capacity(MOST_REFUSALS);
            Answers {
                domains: domains.eviction_listener(evicted).build(),
                refusals: refusals.time_to_live(self.limits.refused_for).build(),
                flights: Mutex::default(),
            }
        })
    }

    /// Returns a domain that was resolved before.
    pub(super) fn cached(&self, name: &str) -> Option<Domain> {
        self.answers().known(name).map(|(domain, _)| domain)
    }

    /// Does the same, if its contexts may have the pair that selects the domain.
    pub(super) fn cached_for_route(&self, name: &str, route_by: Option<&str>) -> Option<Domain> {
        self.cached(name).filter(|domain| domain.is_routed_by(route_by))
    }

    /// Ends a domain that is now in the configuration.
    pub(super) fn forget(&self, name: &str) {
        let answers = self.answers();
        let old = answers.known(name).map(|(domain, _)| domain);
        answers.domains.invalidate(name);
        // Like every domain that ends, it has the drain time.
        self.retiring.retire(old);
    }

    /// Takes out every domain.
    pub(super) fn take_all(&self) -> Vec<Domain> {
        let domains = &self.answers().domains;
        let all = domains.iter().filter_map(|(_, resolved)| resolved.lock().take()).collect();
        domains.invalidate_all();
        all
    }
}

impl Answers {
    /// Returns a domain that was resolved before, and when.
    pub(super) fn known(&self, name: &str) -> Option<(Domain, Moment)> {
        let resolved = self.domains.get(name)?;
        let domain = resolved.lock().clone();
        Some((domain?, resolved.since))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, InFlight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn check_limits(limits: &ResolverLimits) -> Result<(), Error> {
    let ranges = [
        ("fresh_for", limits.fresh_for, Duration::from_secs(24 * 3600)),
        ("refused_for", limits.refused_for, Duration::from_secs(300)),
        ("deadline", limits.deadline, Duration::from_secs(300)),
    ];
    if let Some((name, is, most)) = ranges.into_iter().find(|(_, is, most)| is > most) {
        return Err(invalid(format!("{name} is {is:?}, at most {most:?} are allowed")));
    }
    if limits.deadline.is_zero() || limits.max_domains == 0 {
        return Err(invalid("deadline and max_domains are at least 1"));
    }
    Ok(())
}
