//! Domains made at first use, whose configuration comes from a resolver.
#![forbid(unsafe_code)]

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};

use super::Domain;
use super::domains::{All, Domains};
use super::opening::{Field, check_name, interrupted, invalid};
use super::resolver::{Answers, Flight, InFlight, Resolved, Resolving};
use super::set::unknown_name;
use crate::context::EncryptionContext;
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind};
use crate::memory::fork::OfProcess;
use crate::runtime::sleep;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;

/// How many names are resolved at the same time.
const MOST_FLIGHTS: usize = 1024;
/// How long a caller of a known domain waits for the resolver to confirm it. Then the resolution
/// continues in the background.
const MAX_WAIT_FOR_KNOWN: Duration = Duration::from_millis(250);
/// A waiting caller. The last one to leave ends the resolution.
struct Waiter {
    answers: Arc<OfProcess<Answers>>,
    name: Box<str>,
    flight: Flight,
}

impl Domains {
    /// Returns a domain. If it is not in the configuration, the
    /// [resolver](crate::domain::DomainsBuilder::resolver) is asked, and the domain is made at
    /// first use. Concurrent callers share one resolution.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownDomain`] if the resolver has none with this name, those of the resolver
    /// and of the providers, [`ErrorKind::Unavailable`] after the
    /// [deadline](crate::domain::ResolverLimits::deadline), [`ErrorKind::Throttled`] if too many
    /// are being resolved at once.
    pub async fn resolve(&self, name: &str) -> Result<Domain, Error> {
        if let Some(domain) = self.configured(name) {
            return Ok(domain);
        }
        match &self.0.resolving {
            Some(resolving) if check_name(name).is_ok() => self.resolve_by(resolving, name).await,
            _ => Err(self.unknown_in_configuration(name)),
        }
    }

    /// Returns a domain of the resolver.
    async fn resolve_by(&self, resolving: &Resolving, name: &str) -> Result<Domain, Error> {
        self.0.check_open()?;
        let answers = resolving.answers();
        let (old, since) = answers.known(name).unzip();
        let is_routed = |old: &Domain| old.is_routed_by(self.0.current.load().route_by.as_deref());
        if let (Some(domain), Some(since)) = (&old, since)
            && is_routed(domain)
            && !self.0.opener.clock.now().is_past(since.plus(resolving.limits.fresh_for))
        {
            return Ok(domain.clone());
        }
        if let Some(refusal) = answers.refusals.get(name) {
            return old.ok_or(refusal);
        }
        match (answers.join(&self.0, name), old) {
            (Ok(waiter), Some(old)) if is_routed(&old) && self.0.spawner.takes_tasks() => {
                Ok(waiter.answer_or_known(&self.0, old).await?)
            }
            (Ok(waiter), _) => waiter.answer().await,
            (Err(throttled), old) => old.ok_or(throttled),
        }
    }

    /// Makes a context of the domain that one of the pairs selects, like
    /// [`context`](Self::context). If no configured domain has the value as a route, the value is
    /// the name of a domain to [resolve](Self::resolve): with `route_by` set to `tenant`, `{tenant:
    /// acme}` is in the domain `acme`. The resolver is not asked for the name of a configured
    /// domain.
    ///
    /// # Errors
    /// Those of [`context`](Self::context) and [`resolve`](Self::resolve).
    pub async fn resolve_context<N, V>(
        &self,
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<EncryptionContext, Error>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        self.0.check_open()?;
        let pairs = EncryptionContext::new(pairs)?;
        // No waiter holds the set, which would keep domains alive that a reload ends.
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

    /// Returns the envelope of the domain that a context belongs to, like
    /// [`resolve`](Self::resolve).
    ///
    /// # Errors
    /// Those of [`resolve`](Self::resolve) and [`envelope_for`](Self::envelope_for).
    pub async fn resolve_for(&self, context: &EncryptionContext) -> Result<Envelope, Error> {
        let name = Self::domain_of(context)?;
        Ok(self.resolve(name).await?.envelope().clone())
    }
}

impl OfProcess<Answers> {
    fn join(self: &Arc<Self>, all: &Arc<All>, name: &str) -> Result<Waiter, Error> {
        let mut flights = self.lock();
        let is_full = flights.len() >= MOST_FLIGHTS;
        let flight = match flights.get_mut(name) {
            Some(there) => {
                there.waiting += 1;
                there.flight.clone()
            }
            None if is_full => {
                let detail = format!("{MOST_FLIGHTS} domains are being resolved");
                return Err(Error::new(ErrorKind::Throttled, detail));
            }
            None => {
                let answer = resolve_now(all.clone(), self.clone(), name.to_owned());
                let answer = answer.boxed().shared();
                let flight = Flight { answer, goes_on: Arc::default() };
                flights.insert(name.into(), InFlight { flight: flight.clone(), waiting: 1 });
                flight
            }
        };
        Ok(Waiter { answers: self.clone(), name: name.into(), flight })
    }
}

/// Asks the resolver, and makes the domain unless it already matches the answer.
async fn ask(all: Arc<All>, name: String, old: Option<Domain>) -> Result<Domain, Error> {
    let Some(resolving) = &all.resolving else { return Err(unknown_name(&name)) };
    let Some(config) = resolving.resolver.resolve(&name).await? else {
        return Err(unknown_name(&name));
    };
    if !config.routes.is_empty() {
        let detail = "a domain of a resolver is chosen by its name";
        return Err(Field { name: "routes", item: None }.wrong(invalid(detail)).at(&name));
    }
    let route_by = all.current.load().route_by.clone();
    let route_by = route_by.as_deref();
    match old.filter(|old| old.is_made_of(&config, route_by)) {
        Some(same) => Ok(same),
        None => {
            let opened = all.opener.open(&name, &config, route_by).await;
            opened.map_err(|wrong| wrong.at(&name))
        }
    }
}

/// Returns an answer in time, whatever the resolver does, and remembers it.
async fn resolve_now(
    all: Arc<All>,
    answers: Arc<OfProcess<Answers>>,
    name: String,
) -> Result<Domain, Error> {
    let deadline = all.resolving.as_ref().map(|resolving| resolving.limits.deadline);
    let deadline = deadline.unwrap_or_default();
    let old = answers.known(&name).map(|(domain, _)| domain);
    let asking = all.spawner.run(ask(all.clone(), name.clone(), old.clone()));
    let answer = match select(std::pin::pin!(asking), std::pin::pin!(sleep(deadline))).await {
        Either::Left((Ok(answer), _)) => answer,
        Either::Left((Err(why), _)) => Err(interrupted(&why).at(format_args!("domains.{name}"))),
        Either::Right(_) => {
            let detail = format!("domains.{name}: not resolved within {deadline:?}");
            Err(Error::new(ErrorKind::Unavailable, detail))
        }
    };
    let answer = match answer {
        Ok(domain) => {
            let old = old.filter(|old| !old.is_same(&domain));
            old.iter().for_each(|old| domain.count_on_from(old));
            let resolved = Resolved::new(domain.clone(), all.opener.clock.now());
            answers.domains.insert(name.as_str().into(), Arc::new(resolved));
            all.retiring.retire(old);
            // Makes room for it now, which otherwise happens a little later.
            answers.domains.run_pending_tasks();
            // Checked after it is inserted, so that a concurrent `close` finds it or is seen here.
            match all.check_open() {
                Ok(()) => Ok(domain),
                Err(closed) => {
                    all.take_all().iter().for_each(Domain::shut_down);
                    domain.shut_down();
                    Err(closed)
                }
            }
        }
        Err(error) => {
            answers.refusals.insert(name.as_str().into(), error.clone());
            match error.kind() {
                // It is gone, so it keeps serving its holders for a while, and nobody else.
                ErrorKind::UnknownDomain => {
                    answers.domains.invalidate(&*name);
                    all.retiring.retire(old);
                    Err(error)
                }
                _ => old.ok_or(error),
            }
        }
    };
    answers.lock().remove(&*name);
    answer
}

impl Waiter {
    async fn answer(&self) -> Result<Domain, Error> {
        self.flight.answer.clone().await
    }

    /// Returns the answer, or after a while the domain as it was before.
    async fn answer_or_known(self, all: &All, old: Domain) -> Result<Domain, Error> {
        if !self.flight.goes_on.load(Ordering::SeqCst) {
            let wait = sleep(MAX_WAIT_FOR_KNOWN);
            if let Either::Left((answer, _)) =
                select(std::pin::pin!(self.answer()), std::pin::pin!(wait)).await
            {
                return answer;
            }
        }
        if !self.flight.goes_on.swap(true, Ordering::SeqCst) {
            all.spawner.spawn(async move { drop(self.answer().await) });
        }
        Ok(old)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut flights = self.answers.lock();
        let ours = flights
            .get_mut(&self.name)
            .filter(|there| Arc::ptr_eq(&there.flight.goes_on, &self.flight.goes_on));
        let is_last = ours.is_some_and(|there| {
            there.waiting = there.waiting.saturating_sub(1);
            there.waiting == 0
        });
        let ended = if is_last { flights.remove(&self.name) } else { None };
        drop(flights);
        // Outside the lock, since it holds foreign code.
        drop(ended);
    }
}
