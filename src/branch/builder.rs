//! Builds a [`BranchKek`].
#![forbid(unsafe_code)]

use std::time::Duration;

use super::{BranchKek, Inner};
use crate::clock::Clock;
#[cfg(any(test, feature = "test-util"))]
use crate::clock::ManualClock;
use crate::context::EncryptionContext;
use crate::dek::{BranchTerms, Limits, OwnedSource, SourceBuilder};
use crate::error::{Error, ErrorKind};
use crate::kek::call::{CallBudget, CallPolicy};
use crate::kek::set::DekOrigin;
use crate::kek::{BRANCH_ID_PREFIX, KekId, KekProvider};
use crate::observe::Observer;
use crate::policy::{Guard, Policy, PolicyOptions, described};
use crate::runtime::Runtime;
use crate::store::KeyStore;
use crate::suite::Backend;
use crate::sync::Arc;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const DEFAULT_PERIOD: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const MIN_PERIOD: Duration = Duration::from_secs(60);
const MAX_PERIOD: Duration = Duration::from_secs(3 * 366 * 24 * 60 * 60);
/// Keeps `branch:NAME` a valid KEK id, and the name a valid value of an encryption context.
const MAX_NAME: usize = KekId::MAX_LEN - BRANCH_ID_PREFIX.len();

/// Configures a [`BranchKek`]. The [`name`](Self::name) is needed, and one of
/// [`store`](Self::store) and [`self_contained`](Self::self_contained).
#[derive(Debug)]
#[must_use = "nothing happens until `build`"]
pub struct BranchKekBuilder {
    source: SourceBuilder,
    name: Option<String>,
    per: Vec<String>,
    domain: Option<Box<str>>,
    period: Duration,
    self_contained: bool,
    policy: Option<(Arc<dyn Policy>, PolicyOptions)>,
}

impl BranchKekBuilder {
    pub(super) fn new(root: impl KekProvider + 'static) -> Self {
        let source = SourceBuilder { wrap_with: vec![Arc::new(root)], ..SourceBuilder::default() };
        Self {
            source,
            name: None,
            per: Vec::new(),
            domain: None,
            period: DEFAULT_PERIOD,
            self_contained: false,
            policy: None,
        }
    }

    /// Adds another root, which wraps every new branch key and also unwraps. It works like
    /// [`EnvelopeBuilder::wrap_with`](crate::EnvelopeBuilder::wrap_with).
    pub fn wrap_with(mut self, root: impl KekProvider + 'static) -> Self {
        self.source.wrap_with.push(Arc::new(root));
        self
    }

    /// Adds a root that only unwraps, such as an old one until
    /// [`rewrap_branch_keys`](BranchKek::rewrap_branch_keys) has finished.
    pub fn unwrap_with(mut self, root: impl KekProvider + 'static) -> Self {
        self.source.unwrap_with.push(Arc::new(root));
        self
    }

    /// Sets the branch's name. It appears in every message as the KEK id `branch:NAME`, and has 1
    /// to 505 bytes without control characters. Keep it short.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the names of the context pairs that distinguish branches. Each combination of their
    /// values has separate branch keys and can be erased separately. Every context must have these
    /// pairs. By default there are none, and so there is one branch.
    pub fn per<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.per = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets how long one branch key makes new DEKs: 1 minute to 3 years, by default 30 days.
    /// Reading costs one call per branch and period.
    pub fn period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// Sets the store that all processes share.
    pub fn store(mut self, store: impl KeyStore + 'static) -> Self {
        self.source.store = Some(Arc::new(store));
        self
    }

    /// Puts the wrapped branch key into every message, so no store is needed. Messages are larger.
    /// Each process makes its own branch keys, so reading costs more calls. A branch cannot be
    /// erased.
    pub fn self_contained(mut self) -> Self {
        self.self_contained = true;
        self
    }

    /// Sets how long branch keys are cached, and how many. A DEK derived from a branch key ends no
    /// later than the branch key. `max_messages`, `max_bytes`, `max_uses` and `rotate_after` do not
    /// apply to branch keys.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.source.limits = limits;
        self
    }

    /// Sets where branch keys are made: see
    /// [`EnvelopeBuilder::dek_origin`](crate::EnvelopeBuilder::dek_origin).
    pub fn origin(mut self, origin: DekOrigin) -> Self {
        self.source.dek_origin = origin;
        self
    }

    /// Sets the implementation of the cryptography. By default the fastest of this build.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.source.backend = backend;
        self
    }

    /// Sets the runtime: see [`EnvelopeBuilder::runtime`](crate::EnvelopeBuilder::runtime).
    pub fn runtime(mut self, runtime: impl Runtime + 'static) -> Self {
        self.source.runtime = Some(Arc::new(runtime));
        self
    }

    /// Sets how the root KEKs are called.
    pub fn call_policy(mut self, policy: CallPolicy) -> Self {
        self.source.call_policy = policy;
        self
    }

    /// Sets how many calls are made to the root KEKs.
    pub fn call_budget(mut self, budget: CallBudget) -> Self {
        self.source.call_budget = Some(budget);
        self
    }

    /// Sets how many calls are made to the key store: see
    /// [`EnvelopeBuilder::store_call_budget`](crate::EnvelopeBuilder::store_call_budget).
    pub fn store_call_budget(mut self, budget: CallBudget) -> Self {
        self.source.store_call_budget = Some(budget);
        self
    }

    /// Sets the policy, which is asked before keys are [erased](BranchKek::erase) and
    /// [rewrapped](BranchKek::rewrap_branch_keys). It does not apply to the envelopes that use the
    /// branch keys. They have [their own policy](crate::EnvelopeBuilder::policy), which may be the
    /// same one.
    pub fn policy(mut self, policy: impl Policy + 'static, options: PolicyOptions) -> Self {
        self.policy = Some((Arc::new(policy), options));
        self
    }

    /// Adds an observer of branch keys. Events report them like DEKs, with the branch's context,
    /// which has the pair `waxseal:branch`.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.source.observers.push(Box::new(observer));
        self
    }

    /// Sets a clock that tests control.
    #[cfg(any(test, feature = "test-util"))]
    pub fn clock(mut self, clock: ManualClock) -> Self {
        self.source.clock = Clock::Manual(clock);
        self
    }

    pub(crate) fn timed_by(mut self, clock: Clock) -> Self {
        self.source.clock = clock;
        self
    }

    /// Assigns the branch keys to a data domain.
    pub(crate) fn domain(mut self, name: &str) -> Self {
        self.domain = Some(name.into());
        self
    }

    /// Builds it. It makes no call.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the option.
    pub fn build(self) -> Result<BranchKek, Error> {
        let Self { mut source, name, mut per, domain, period, self_contained, policy } = self;
        let name = name.ok_or_else(|| invalid("name: it is missing".to_owned()))?;
        if name.len() > MAX_NAME {
            let detail = format!("name has {} bytes, 1 to {MAX_NAME} are allowed", name.len());
            return Err(invalid(detail));
        }
        per.sort();
        per.dedup();
        // Checked like a context, with the name as an ordinary value.
        let named = |what: &str, error: Error| {
            Error::new(ErrorKind::InvalidOption, format!("{what}: {error}"))
        };
        EncryptionContext::new([("branch", &name)]).map_err(|error| named("name", error))?;
        EncryptionContext::new(per.iter().map(|name| (name, "value")))
            .map_err(|error| named("per", error))?;
        if !(MIN_PERIOD..=MAX_PERIOD).contains(&period) {
            let days = MAX_PERIOD.as_secs() / DAY.as_secs();
            return Err(invalid(format!(
                "period is {period:?}, 1 minute to {days} days are allowed"
            )));
        }
        match (&source.store, self_contained) {
            (None, false) => {
                return Err(invalid("store: set one, or self_contained".to_owned()));
            }
            (Some(_), true) => {
                return Err(invalid("store and self_contained exclude each other".to_owned()));
            }
            _ => {}
        }
        let mut roots = source.wrap_with.iter().chain(&source.unwrap_with);
        if let Some(root) = roots.find(|root| root.derives_deks()) {
            let detail = format!("{}: a root must wrap keys, but this one derives them", root.id());
            return Err(invalid(detail));
        }
        let id = KekId::new(format!("{BRANCH_ID_PREFIX}{name}"))?;
        let (backend, store) = (source.backend, source.store.clone());
        source.branch = Some(BranchTerms { period });
        source.more = described(policy.as_ref());
        source.more.extend(domain.as_deref().map(|domain| ("domain", domain.to_owned())));
        let source = OwnedSource::new(source.build()?);
        let guard = match policy {
            Some((policy, options)) => Some(Guard::new(policy, options, &source)?),
            None => None,
        };
        Ok(BranchKek(Arc::new(Inner {
            id,
            name: name.into(),
            per: per.into_iter().map(Into::into).collect(),
            domain,
            backend,
            store,
            source,
            guard,
        })))
    }
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOption, detail)
}
