//! All domains of a process.
#![forbid(unsafe_code)]

use std::fmt;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use futures_util::lock::Mutex as AsyncMutex;

use super::opening::Opener;
#[cfg(feature = "domains")]
use super::resolver::Resolving;
use super::retiring::Retiring;
use super::set::{Set, unknown};
use super::source::Source;
use super::{Domain, DomainsBuilder};
use crate::context::EncryptionContext;
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind};
use crate::memory::fork::PerProcess;
use crate::observe::Observers;
use crate::runtime::TaskSpawner;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The data domains of a process. A clone is a pointer.
///
/// ```
/// use waxseal::Aad;
/// use waxseal::domain::{DomainConfig, Domains, Schemes};
/// # use waxseal::kek::local::LocalKek;
///
/// # pollster::block_on(async {
/// # let schemes =
/// #     Schemes::default().kek("test", |_| async { LocalKek::in_memory("shared") });
/// let domains = Domains::builder()
///     .schemes(schemes)
///     .domain("orders", DomainConfig::default().wrap_with("test:kek").must_have(["tenant"]))
///     .domain("billing", DomainConfig::default().wrap_with("test:kek"))
///     .build()
///     .await?;
///
/// let orders = domains.domain("orders")?;
/// let context = orders.context([("tenant", "alice")])?;
/// let sealed = orders.envelope().encrypt(&context, Aad::empty(), b"one cake").await?;
///
/// // By the context alone:
/// let envelope = domains.envelope_for(&context)?;
/// assert_eq!(&*envelope.decrypt(&context, Aad::empty(), &sealed).await?, b"one cake");
///
/// // Not through another domain, although both use one KEK:
/// let billing = domains.domain("billing")?;
/// let theirs = billing.context([("tenant", "alice")])?;
/// assert!(billing.envelope().decrypt(&theirs, Aad::empty(), &sealed).await.is_err());
/// assert!(billing.envelope().decrypt(&context, Aad::empty(), &sealed).await.is_err());
/// # Ok::<(), waxseal::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Domains(pub(super) Arc<All>);

pub(super) struct All {
    pub(super) current: ArcSwap<Set>,
    pub(super) opener: Opener,
    pub(super) source: Source,
    pub(super) retiring: Arc<Retiring>,
    #[cfg(feature = "domains")]
    pub(super) resolving: Option<Resolving>,
    pub(super) observers: Observers,
    /// Held while the set is being changed.
    pub(super) reloading: PerProcess<AsyncMutex<()>>,
    /// Makes domains on the runtime in which this was built.
    pub(super) spawner: TaskSpawner,
    pub(super) is_closed: AtomicBool,
}

impl Domains {
    /// Returns a builder.
    pub fn builder() -> DomainsBuilder {
        DomainsBuilder::default()
    }

    /// Returns a domain that is configured, or was resolved before. It asks no resolver, however
    /// old that answer is. With a resolver, use `resolve` or `resolve_for` in each request.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownDomain`], with the nearest known name. [`ErrorKind::ShutDown`] after
    /// [`close`](Self::close).
    pub fn domain(&self, name: &str) -> Result<Domain, Error> {
        let domain = self.configured(name);
        #[cfg(feature = "domains")]
        let domain = domain.or_else(|| self.0.resolving.as_ref()?.cached(name));
        domain.ok_or_else(|| self.unknown_in_configuration(name))
    }

    pub(super) fn configured(&self, name: &str) -> Option<Domain> {
        self.0.current.load().domains.get(name).cloned()
    }

    pub(super) fn unknown_in_configuration(&self, name: &str) -> Error {
        let unknown = || unknown("", name, self.0.current.load().domains.keys());
        self.0.check_open().err().unwrap_or_else(unknown)
    }

    /// Returns the envelope of a domain. It serves contexts of [`Domain::context`] and no others.
    ///
    /// # Errors
    /// Those of [`domain`](Self::domain).
    pub fn envelope(&self, name: &str) -> Result<Envelope, Error> {
        self.domain(name).map(|domain| domain.envelope().clone())
    }

    /// Returns the envelope of the domain that a context belongs to.
    ///
    /// # Errors
    /// Those of [`domain`](Self::domain); [`ErrorKind::InvalidContext`] for a context that was not
    /// made by [`context`](Self::context) or [`Domain::context`].
    pub fn envelope_for(&self, context: &EncryptionContext) -> Result<Envelope, Error> {
        self.envelope(Self::domain_of(context)?)
    }

    pub(super) fn domain_of(context: &EncryptionContext) -> Result<&str, Error> {
        context.domain().ok_or_else(|| {
            let detail = "it belongs to no domain: Domains::context makes one";
            Error::new(ErrorKind::InvalidContext, detail)
        })
    }

    /// Makes a context of the domain that one of the pairs selects
    /// ([`route_by`](DomainsBuilder::route_by)). Of domains that are not in the configuration, it
    /// finds only those that were resolved before. `Domains::resolve_context` finds all.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownDomain`] for a value that selects no domain.
    /// [`ErrorKind::InvalidContext`] if that pair is missing, and those of [`Domain::context`].
    /// [`ErrorKind::InvalidOption`] without `route_by`. [`ErrorKind::ShutDown`] after
    /// [`close`](Self::close).
    pub fn context<N, V>(
        &self,
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<EncryptionContext, Error>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        self.0.check_open()?;
        let pairs = EncryptionContext::new(pairs)?;
        let set = self.0.current.load();
        let value = set.route_of(&pairs)?;
        #[cfg(feature = "domains")]
        if let (Some(resolving), true) = (&self.0.resolving, set.is_for_resolver(value))
            && let Some(domain) = resolving.cached_for_route(value, set.route_by.as_deref())
        {
            return domain.context(pairs.iter());
        }
        set.routed(value)?.context(pairs.iter())
    }

    /// Returns all configured domains, by name. Domains of a `resolver` are not among them.
    #[must_use]
    pub fn all(&self) -> Vec<Domain> {
        let mut all: Vec<_> = self.0.current.load().domains.values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        all
    }

    /// Shuts down every domain like [`Envelope::close`], including those that a reload has ended
    /// and somebody still holds. Later requests for a domain fail with [`ErrorKind::ShutDown`], and
    /// a reload in progress brings none back.
    pub async fn close(&self) {
        self.0.is_closed.store(true, Ordering::SeqCst);
        let all = self.0.take_all();
        all.iter().for_each(Domain::stop);
        join_all(all.iter().map(Domain::close)).await;
    }
}

impl All {
    /// Takes out every domain, including those about to end.
    pub(super) fn take_all(&self) -> Vec<Domain> {
        let set = self.current.swap(Arc::default());
        let mut all: Vec<_> = set.domains.values().cloned().collect();
        #[cfg(feature = "domains")]
        all.extend(self.resolving.iter().flat_map(Resolving::take_all));
        all.extend(self.retiring.take_all());
        all
    }
}

impl fmt::Debug for Domains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().iter().map(Domain::name)).finish()
    }
}
