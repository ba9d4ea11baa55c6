//! The configuration of a domain, as data.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use crate::dek::Limits;
use crate::kek::call::CallPolicy;
use crate::kek::set::DekOrigin;
#[cfg(feature = "audit")]
use crate::observe::audit::disclosure::DomainAudit;
use crate::policy::PolicyOptions;
use crate::suite::{Nonces, Suite};

/// The configuration of one data domain. Only [`wrap_with`](Self::wrap_with) or
/// [`unwrap_with`](Self::unwrap_with) is needed.
///
/// ```
/// use waxseal::domain::{Branches, DomainConfig};
///
/// let config = DomainConfig::default()
///     .wrap_with("local:/var/lib/app/orders.kek?name=orders")
///     .store("memory:orders")
///     .branches(Branches::per(["tenant"]))
///     .may_have(["table"]);
/// ```
///
/// In a file (feature `domains`) the fields have the names of these methods: see docs/domains.md.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[must_use]
pub struct DomainConfig {
    pub(super) wrap_with: Vec<Address>,
    pub(super) unwrap_with: Vec<Address>,
    pub(super) store: Option<Address>,
    pub(super) keep_deks: Option<bool>,
    pub(super) branches: Option<Branches>,
    pub(super) suite: Option<Suite>,
    pub(super) nonces: Option<Nonces>,
    pub(super) dek_origin: Option<DekOrigin>,
    pub(super) limits: Option<Limits>,
    pub(super) calls: Option<CallPolicy>,
    pub(super) policy: Option<Address>,
    pub(super) decisions: Option<PolicyOptions>,
    #[cfg(feature = "audit")]
    pub(super) audit: Option<DomainAudit>,
    pub(super) must_have: Vec<String>,
    pub(super) may_have: Option<Vec<String>>,
    pub(super) routes: Vec<String>,
}

impl DomainConfig {
    /// Adds a KEK, by its URI, that wraps every new DEK, or every new branch key if there are
    /// [`branches`](Self::branches). With several, each one can decrypt alone.
    pub fn wrap_with(mut self, uri: impl Into<String>) -> Self {
        self.wrap_with.push(Address(uri.into()));
        self
    }

    /// Adds a KEK, by its URI, that only unwraps.
    pub fn unwrap_with(mut self, uri: impl Into<String>) -> Self {
        self.unwrap_with.push(Address(uri.into()));
        self
    }

    /// Sets the key store, by its URI. It holds the branch keys or, without
    /// [`branches`](Self::branches), the wrapped keys of compact messages. Domains that name one
    /// URI share the store and do not see each other's rows.
    pub fn store(mut self, uri: impl Into<String>) -> Self {
        self.store = Some(Address(uri.into()));
        self
    }

    /// Sets whether the store also holds the wrapped keys of each DEK, for messages in compact
    /// form. By default it does if there are no [`branches`](Self::branches), since a message of a
    /// branch is short in either form.
    pub fn keep_deks(mut self, keep: bool) -> Self {
        self.keep_deks = Some(keep);
        self
    }

    /// Puts branch keys between the KEKs and the DEKs. Messages that a KEK of the domain wrapped
    /// without a branch key can still be read.
    pub fn branches(mut self, branches: Branches) -> Self {
        self.branches = Some(branches);
        self
    }

    /// Sets the suite of new messages.
    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = Some(suite);
        self
    }

    /// Sets where nonces come from.
    pub fn nonces(mut self, nonces: Nonces) -> Self {
        self.nonces = Some(nonces);
        self
    }

    /// Sets where DEKs are made, or branch keys if there are [`branches`](Self::branches).
    pub fn dek_origin(mut self, origin: DekOrigin) -> Self {
        self.dek_origin = Some(origin);
        self
    }

    /// Sets how long DEKs and branch keys are used, including the grace in an outage.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Sets how key services are called.
    pub fn calls(mut self, policy: CallPolicy) -> Self {
        self.calls = Some(policy);
        self
    }

    /// Sets the policy, by its URI, that decides about each operation of the domain, and about
    /// erasing and rewrapping its [`branches`](Self::branches). Domains that name one URI share the
    /// policy, which sees the domain's name.
    pub fn policy(mut self, uri: impl Into<String>) -> Self {
        self.policy = Some(Address(uri.into()));
        self
    }

    /// Sets how the [`policy`](Self::policy) is asked: how long its decisions are kept, what an
    /// outage means, whether a caller must be named, and which allowed operations are reported.
    pub fn decisions(mut self, options: PolicyOptions) -> Self {
        self.decisions = Some(options);
        self
    }

    /// Sets what the [audit trail](crate::domain::DomainsBuilder::audit_trail) records about the
    /// domain.
    #[cfg(feature = "audit")]
    pub fn audit(mut self, settings: DomainAudit) -> Self {
        self.audit = Some(settings);
        self
    }

    /// Sets the names of the pairs that every context must have. The pairs that distinguish
    /// branches are always among them.
    pub fn must_have<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.must_have = names.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the names of the other pairs that a context may have, apart from the one that [selects
    /// the domain](crate::domain::DomainsBuilder::route_by). By default any name is allowed. An
    /// empty list allows none.
    pub fn may_have<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.may_have = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the values of the pair that [selects the
    /// domain](crate::domain::DomainsBuilder::route_by). By default it is the domain's name. A
    /// domain of a resolver cannot set them: its name is the value.
    pub fn routes<V: Into<String>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        self.routes = values.into_iter().map(Into::into).collect();
        self
    }
}

/// The branch keys of a domain. One of [`store`](DomainConfig::store) and
/// [`self_contained`](Self::self_contained) is needed. See [`BranchKek`](crate::branch::BranchKek).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[must_use]
pub struct Branches {
    pub(super) name: Option<String>,
    pub(super) per: Vec<String>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    pub(super) period: Option<Duration>,
    pub(super) self_contained: bool,
}

impl Branches {
    /// Makes a branch for each combination of the values of these pairs.
    pub fn per<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self { per: names.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Sets the name that appears in every message. By default it is the domain's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets how long one branch key makes new DEKs: see
    /// [`BranchKekBuilder::period`](crate::branch::BranchKekBuilder::period).
    pub fn period(mut self, period: Duration) -> Self {
        self.period = Some(period);
        self
    }

    /// Puts the wrapped branch key into every message, for a domain without a store.
    pub fn self_contained(mut self) -> Self {
        self.self_contained = true;
        self
    }
}

/// Limits the cache of a [resolver](crate::domain::DomainsBuilder::resolver)'s answers.
#[cfg(feature = "domains")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct ResolverLimits {
    pub(super) max_domains: u64,
    pub(super) fresh_for: Duration,
    pub(super) refused_for: Duration,
    pub(super) deadline: Duration,
}

#[cfg(feature = "domains")]
impl Default for ResolverLimits {
    fn default() -> Self {
        Self {
            max_domains: 10_000,
            fresh_for: Duration::from_secs(300),
            refused_for: Duration::from_secs(5),
            deadline: Duration::from_secs(10),
        }
    }
}

#[cfg(feature = "domains")]
impl ResolverLimits {
    /// Sets how many resolved domains are kept: at least 1, by default 10,000. A domain that is
    /// evicted to make room is shut down when nobody holds it.
    pub fn max_domains(mut self, most: u64) -> Self {
        self.max_domains = most;
        self
    }

    /// Sets how long an answer is used before the resolver is asked again, which is also how long a
    /// change may take to be noticed: up to 24 hours, by default 5 minutes. If the answer is the
    /// same, the domain keeps its cached DEKs. If the resolver fails, the domain continues
    /// unchanged.
    pub fn fresh_for(mut self, time: Duration) -> Self {
        self.fresh_for = time;
        self
    }

    /// Sets how long to remember that a domain does not exist or could not be made: up to 5
    /// minutes, by default 5 seconds. At most 10,000 names are remembered.
    pub fn refused_for(mut self, time: Duration) -> Self {
        self.refused_for = time;
        self
    }

    /// Sets how long it may take to resolve and make a domain: up to 5 minutes, by default 10
    /// seconds.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.deadline = time;
        self
    }
}

/// The URI of a KEK, a store or a policy. Debug shows only its scheme, since a store's URI may
/// contain a password.
#[derive(Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(transparent))]
pub(super) struct Address(pub(super) String);

impl Address {
    /// Returns the scheme in lower case.
    pub(super) fn scheme(&self) -> Option<String> {
        self.0.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:[redacted]", self.scheme().unwrap_or_default())
    }
}
