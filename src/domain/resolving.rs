//! Domains that are made at first use: their configuration comes from a resolver.
//!
//! What a resolver says decides which keys a domain has, and nothing about DEKs: those are in the
//! domain's own envelope. So what is remembered here is not secret.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{Either, Shared, select};
use moka::notification::RemovalCause;
use moka::sync::Cache;

use super::config::DomainConfig;
use super::domains::{All, Domains, unknown_name};
use super::opening::{Field, check_name, invalid};
use super::retiring::Retiring;
use super::{Domain, ResolverLimits};
use crate::context::EncryptionContext;
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind};
use crate::runtime::{BoxFuture, sleep};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many names are resolved at the same time.
const MOST_FLIGHTS: usize = 1024;
/// How many names are remembered for which there is no domain.
const MOST_REFUSALS: u64 = 10_000;

/// Says what the domains are that no file has, such as one for each customer with a KEK of their own.
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
///             let uri = (name == "acme").then_some("aws-kms:alias/acme");
///             Ok(uri.map(|uri| DomainConfig::default().wrap_with(uri).must_have(["table"])))
///         })
///     }
/// }
/// ```
pub trait DomainResolver: fmt::Debug + Send + Sync {
    /// Returns the configuration of a domain, or `None` if there is none of this name. The name is
    /// one that a domain can have, and may be a caller's guess.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<DomainConfig>, Error>>;
}

/// The domains that were resolved.
pub(super) struct Resolving {
    resolver: Arc<dyn DomainResolver>,
    limits: ResolverLimits,
    domains: Cache<Box<str>, Resolved>,
    refusals: Cache<Box<str>, Error>,
    flights: Mutex<HashMap<Box<str>, Flight>>,
}

#[derive(Clone)]
struct Resolved {
    domain: Domain,
    since: Instant,
}

/// One resolution, for all that wait for it. Each of them drives it, so none is needed by the others.
#[derive(Clone)]
struct Flight {
    answer: Shared<BoxFuture<'static, Result<Domain, Error>>>,
    /// Held by the map and by each waiter.
    waiters: Arc<()>,
}

/// A caller that waits. The last one to leave ends the resolution.
struct Waiter<'a> {
    resolving: &'a Resolving,
    name: &'a str,
    flight: Flight,
}

impl Domains {
    /// Returns a domain. One that is in no configuration is asked for at the
    /// [resolver](crate::domain::DomainsBuilder::resolver) and made at first use. Callers that want it
    /// at the same time share one resolution.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownDomain`] if the resolver knows none of this name, those of the resolver and
    /// of the providers, [`ErrorKind::Unavailable`] after the
    /// [deadline](ResolverLimits::deadline), [`ErrorKind::Throttled`] if very many are resolved at once.
    pub async fn resolve(&self, name: &str) -> Result<Domain, Error> {
        let configured = self.domain_in_configuration(name);
        match (&self.0.resolving, &configured) {
            (Some(resolving), Err(_)) if check_name(name).is_ok() => {
                self.resolve_by(resolving, name).await
            }
            _ => configured,
        }
    }

    /// Returns a domain of the resolver.
    async fn resolve_by(&self, resolving: &Resolving, name: &str) -> Result<Domain, Error> {
        self.0.check_open()?;
        let old = resolving.domains.get(name);
        let is_fresh = |old: &&Resolved| {
            let set = self.0.current.load();
            resolving.is_fresh(old) && old.domain.is_routed_by(set.route_by.as_deref())
        };
        if let Some(fresh) = old.as_ref().filter(is_fresh) {
            return Ok(fresh.domain.clone());
        }
        if let Some(refusal) = resolving.refusals.get(name) {
            return old.map_or(Err(refusal), |old| Ok(old.domain));
        }
        let waiter = resolving.join(&self.0, name)?;
        waiter.flight.answer.clone().await
    }

    /// Makes a context of the domain that one of the pairs chooses, as [`context`](Self::context).
    /// If no configured domain has the value as a route, it is the name of a domain that is
    /// [resolved](Self::resolve): with `route_by` at `tenant`, `{tenant: acme}` is in the domain
    /// `acme`. The name of a configured domain leads to no resolver.
    ///
    /// # Errors
    /// As [`context`](Self::context) and [`resolve`](Self::resolve).
    pub async fn resolve_context<N, V>(
        &self,
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<EncryptionContext, Error>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        let pairs = EncryptionContext::new(pairs)?;
        // The set is held by nobody who waits: it would keep domains alive that a reload ends.
        let chosen = {
            let set = self.0.current.load();
            let value = set.route_of(&pairs)?;
            match &self.0.resolving {
                Some(resolving) if set.is_for_resolver(value) => Err((resolving, value)),
                _ => Ok(set.routed(value)?.clone()),
            }
        };
        let domain = match chosen {
            Ok(domain) => domain,
            Err((_, value)) if check_name(value).is_err() => return Err(unknown_name(value)),
            Err((resolving, value)) => self.resolve_by(resolving, value).await?,
        };
        domain.context(pairs.iter())
    }

    /// Returns the envelope of the domain that a context belongs to, as [`resolve`](Self::resolve).
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve) and [`envelope_for`](Self::envelope_for).
    pub async fn resolve_for(&self, context: &EncryptionContext) -> Result<Envelope, Error> {
        let name = Self::domain_of(context)?;
        Ok(self.resolve(name).await?.envelope().clone())
    }
}

impl Resolving {
    pub(super) fn new(
        resolver: Arc<dyn DomainResolver>,
        limits: ResolverLimits,
        retiring: Arc<Retiring>,
    ) -> Self {
        let evicted = move |_: Arc<Box<str>>, resolved: Resolved, cause| {
            // What replaces it may be the same domain.
            if cause != RemovalCause::Replaced {
                retiring.retire_when_dropped(resolved.domain);
            }
        };
        let domains = Cache::builder().max_capacity(limits.max_domains);
        let refusals = Cache::builder().max_capacity(MOST_REFUSALS);
        Self {
            resolver,
            limits,
            domains: domains.eviction_listener(evicted).build(),
            refusals: refusals.time_to_live(limits.refused_for).build(),
            flights: Mutex::default(),
        }
    }

    fn is_fresh(&self, resolved: &Resolved) -> bool {
        resolved.since.elapsed() < self.limits.fresh_for
    }

    /// Returns a domain that was resolved before.
    pub(super) fn cached(&self, name: &str) -> Option<Domain> {
        self.domains.get(name).map(|resolved| resolved.domain)
    }

    /// The same, if its contexts may have the pair that chooses the domain.
    pub(super) fn cached_for_route(&self, name: &str, route_by: Option<&str>) -> Option<Domain> {
        self.cached(name).filter(|domain| domain.is_routed_by(route_by))
    }

    /// Takes out every domain.
    pub(super) fn take_all(&self) -> Vec<Domain> {
        let all = self.domains.iter().map(|(_, resolved)| resolved.domain).collect();
        self.domains.invalidate_all();
        all
    }

    /// Makes room for what was added, which otherwise happens a little later.
    fn settle(&self) {
        self.domains.run_pending_tasks();
    }

    fn join<'a>(&'a self, all: &Arc<All>, name: &'a str) -> Result<Waiter<'a>, Error> {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(name) {
            return Ok(Waiter { resolving: self, name, flight: flight.clone() });
        }
        if flights.len() >= MOST_FLIGHTS {
            let detail = format!("{MOST_FLIGHTS} domains are being resolved");
            return Err(Error::new(ErrorKind::Throttled, detail));
        }
        let answer = resolve_now(all.clone(), name.to_owned()).boxed().shared();
        let flight = Flight { answer, waiters: Arc::default() };
        flights.insert(name.into(), flight.clone());
        Ok(Waiter { resolving: self, name, flight })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the resolver, and makes the domain unless it is there as the resolver says.
    async fn ask(&self, all: &All, name: &str, old: Option<Domain>) -> Result<Domain, Error> {
        let Some(config) = self.resolver.resolve(name).await? else {
            return Err(unknown_name(name));
        };
        if !config.routes.is_empty() {
            let detail = "a domain of a resolver is chosen by its name";
            return Err(Field { name: "routes", item: None }.wrong(invalid(detail)).at(name));
        }
        let route_by = all.current.load().route_by.clone();
        let route_by = route_by.as_deref();
        match old.filter(|old| old.is_made_of(&config, route_by)) {
            Some(same) => Ok(same),
            None => {
                let opened = all.opener.open(name, &config, route_by).await;
                opened.map_err(|wrong| wrong.at(name))
            }
        }
    }
}

/// Whatever the resolver does, there is an answer in time, and it is remembered.
async fn resolve_now(all: Arc<All>, name: String) -> Result<Domain, Error> {
    let Some(resolving) = &all.resolving else { return Err(unknown_name(&name)) };
    let old = resolving.cached(&name);
    let deadline = resolving.limits.deadline;
    let asking = AssertUnwindSafe(resolving.ask(&all, &name, old.clone())).catch_unwind();
    let answer = match select(std::pin::pin!(asking), std::pin::pin!(sleep(deadline))).await {
        Either::Left((Ok(answer), _)) => answer,
        Either::Left((Err(_), _)) => {
            Err(Error::new(ErrorKind::Provider, format!("domains.{name}: the resolver panicked")))
        }
        Either::Right(_) => {
            let detail = format!("domains.{name}: not resolved within {deadline:?}");
            Err(Error::new(ErrorKind::Unavailable, detail))
        }
    };
    let answer = match answer {
        Ok(domain) => {
            let resolved = Resolved { domain: domain.clone(), since: Instant::now() };
            resolving.domains.insert(name.as_str().into(), resolved);
            all.retiring.retire(old.filter(|old| !old.is_same(&domain)));
            resolving.settle();
            // After it is found by who closes, or the other way round.
            match all.check_open() {
                Ok(()) => Ok(domain),
                Err(closed) => {
                    domain.shut_down();
                    Err(closed)
                }
            }
        }
        Err(error) => {
            resolving.refusals.insert(name.as_str().into(), error.clone());
            match error.kind() {
                // It is gone, so it serves those who hold it for a while, and nobody else.
                ErrorKind::UnknownDomain => {
                    resolving.domains.invalidate(&*name);
                    all.retiring.retire(old);
                    Err(error)
                }
                _ => old.ok_or(error),
            }
        }
    };
    resolving.lock().remove(&*name);
    answer
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut flights = self.resolving.lock();
        let is_ours = flights
            .get(self.name)
            .is_some_and(|flight| Arc::ptr_eq(&flight.waiters, &self.flight.waiters));
        // The map's and this one.
        let ended = match is_ours && Arc::strong_count(&self.flight.waiters) == 2 {
            true => flights.remove(self.name),
            false => None,
        };
        drop(flights);
        // Outside of the lock: it holds foreign code.
        drop(ended);
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
