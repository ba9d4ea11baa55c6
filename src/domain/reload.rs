//! Reads the file again, and updates the domains to match it.
#![forbid(unsafe_code)]

use futures_util::lock::Mutex as AsyncMutex;

use super::domains::All;
use super::opening::{interrupted, invalid};
use super::set::Set;
use super::{Domain, Domains};
use crate::error::{Error, ErrorKind};
use crate::observe::Event;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;

/// What a [reload](Domains::reload) did, by the names of the domains.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Reloaded {
    /// New domains.
    pub opened: Vec<String>,
    /// Domains whose configuration changed, and which have a new envelope.
    pub changed: Vec<String>,
    /// Domains that are no longer in the file.
    pub ended: Vec<String>,
    /// Unchanged domains, which keep their envelopes and their cached DEKs.
    pub kept: Vec<String>,
}

impl Domains {
    /// Reads the file again. Unchanged domains keep their cached DEKs. From now on, callers that
    /// ask for a domain get it as the file describes it.
    ///
    /// A domain that is gone or has changed keeps serving its holders until they drop it, for at
    /// most [`drain`](crate::domain::DomainsBuilder::drain). Then it is shut down and its keys are
    /// wiped, so no call in progress is lost. Hold no [`Domain`] or envelope for longer than a
    /// request.
    ///
    /// Replace the file by renaming another one over it, so that a partial file is never read.
    ///
    /// # Errors
    /// Those of [`build`](crate::domain::DomainsBuilder::build) or of
    /// [`start`](crate::domain::DomainsBuilder::start), whichever was called. **All domains then
    /// continue as they were**, and observers receive [`Event::DomainsNotReloaded`]. A file without
    /// any domain is such an error too. [`ErrorKind::ShutDown`] after [`close`](Self::close).
    pub async fn reload(&self) -> Result<Reloaded, Error> {
        let (all, its) = (&self.0, self.0.clone());
        let reload = async move {
            let reloading = its.reloading.get_or_init(AsyncMutex::default);
            // Held by the work, not by its caller: a caller that gives up ends the work only at its
            // next pause, and until then it may still change the set.
            let _one_at_a_time = reloading.lock().await;
            its.clone().reload().await
        };
        let reloaded = all.spawner.run(reload).await;
        let reloaded = reloaded.unwrap_or_else(|why| Err(interrupted(&why)));
        match &reloaded {
            Ok(Reloaded { opened, changed, ended, kept }) => {
                let [opened, changed, ended, kept] = [opened, changed, ended, kept].map(Vec::len);
                all.observers.emit(&Event::DomainsReloaded { opened, changed, ended, kept });
            }
            Err(error) => all.observers.emit(&Event::DomainsNotReloaded { error }),
        }
        reloaded
    }

    /// [Reloads](Self::reload) at each SIGHUP from now on, as long as these domains exist.
    /// Observers are told the result. Call it within a tokio runtime that has IO enabled.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] outside such a runtime, and if the system refuses.
    #[cfg(all(unix, feature = "domains", feature = "tokio"))]
    pub fn reload_on_hangup(&self) -> Result<(), Error> {
        let all = Arc::downgrade(&self.0);
        let reload = move || {
            let all = all.upgrade()?;
            Some(async move { drop(Self(all).reload().await) })
        };
        let started = crate::runtime::tokio::on_hangup(reload);
        started.map_err(|why| invalid(format!("reload_on_hangup: {why}")))
    }
}

impl All {
    pub(super) fn check_open(&self) -> Result<(), Error> {
        match self.is_closed.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::ShutDown, "the domains were closed")),
        }
    }

    async fn reload(self: Arc<Self>) -> Result<Reloaded, Error> {
        self.check_open()?;
        let (configuration, locator) = self.source.load()?;
        let before = self.current.load_full();
        if configuration.domains.is_empty() && !before.domains.is_empty() {
            return Err(locator.of_file(invalid("there is no domain left")));
        }
        let set = Set::open(&self.opener, &configuration, &before).await;
        let set = set.map_err(|(name, wrong)| locator.error(&name, &wrong))?;
        let reloaded = Reloaded::between(&before, &set);
        #[cfg(feature = "domains")]
        if let Some(resolving) = &self.resolving {
            set.domains.keys().for_each(|name| resolving.forget(name));
        }
        for name in &reloaded.changed {
            if let (Some(old), Some(new)) = (before.domains.get(&**name), set.domains.get(&**name))
            {
                new.count_on_from(old);
            }
        }
        self.current.store(Arc::new(set));
        let ended = reloaded.changed.iter().chain(&reloaded.ended);
        let ended: Vec<Domain> =
            ended.filter_map(|name| before.domains.get(&**name)).cloned().collect();
        // It holds them too.
        drop(before);
        self.retiring.retire(ended);
        // Checked after the new set is published, so that a concurrent `close` finds the domains or
        // is seen here.
        self.check_open().inspect_err(|_| self.take_all().iter().for_each(Domain::shut_down))?;
        Ok(reloaded)
    }
}

impl Reloaded {
    fn between(before: &Set, now: &Set) -> Self {
        let mut reloaded = Self::default();
        for (name, domain) in &now.domains {
            let list = match before.domains.get(name) {
                None => &mut reloaded.opened,
                Some(old) if old.is_same(domain) => &mut reloaded.kept,
                Some(_) => &mut reloaded.changed,
            };
            list.push(name.to_string());
        }
        let names = before.domains.keys().map(ToString::to_string);
        reloaded.ended = names.filter(|name| !now.domains.contains_key(&**name)).collect();
        let lists =
            [&mut reloaded.opened, &mut reloaded.changed, &mut reloaded.ended, &mut reloaded.kept];
        lists.into_iter().for_each(|list| list.sort_unstable());
        reloaded
    }
}
