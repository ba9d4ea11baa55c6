//! Makes a domain from its configuration.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::OnceLock;

use futures_util::TryFutureExt;
use futures_util::future::try_join_all;

use super::config::{Address, Branches, DomainConfig};
use super::shared::Shared;
use super::{Domain, Inner, Schemes};
use crate::branch::{BranchKek, BranchKekBuilder};
use crate::clock::Clock;
use crate::context::EncryptionContext;
use crate::dek::DomainContexts;
use crate::envelope::{Envelope, EnvelopeBuilder, StartOptions, StartUp};
use crate::error::{Error, ErrorKind};
use crate::kek::KekProvider;
use crate::observe::Observer;
#[cfg(feature = "audit")]
use crate::observe::audit::AuditTrail;
use crate::policy::{Policy, PolicyOptions};
use crate::runtime::Interrupted;
use crate::store::KeyStore;
use crate::sync::Arc;

const MAX_NAME: usize = 128;

/// The options that the user adds to the builders of every domain, by the domain's name.
pub(super) type Hook<B> = Box<dyn Fn(&str, B) -> B + Send + Sync>;

/// An error, and the field of the domain's configuration that it is about.
pub(super) struct Wrong {
    pub(super) field: Field,
    pub(super) error: Error,
}

impl Wrong {
    /// Adds the domain to the error.
    pub(super) fn at(&self, domain: &str) -> Error {
        match self.field.name {
            "" => self.error.at(format_args!("domains.{domain}")),
            _ => self.error.at(format_args!("domains.{domain}.{}", self.field)),
        }
    }
}

/// A field, and the position in it if it is a list. An empty name means the whole domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) item: Option<usize>,
}

impl Field {
    pub(super) fn wrong(self, error: Error) -> Wrong {
        Wrong { field: self, error }
    }
}

fn field(name: &'static str) -> Field {
    Field { name, item: None }
}

/// What the URIs of a domain refer to.
struct Parts {
    writing: Vec<Arc<dyn KekProvider>>,
    reading: Vec<Arc<dyn KekProvider>>,
    store: Option<Arc<dyn KeyStore>>,
    policy: Option<(Arc<dyn Policy>, PolicyOptions)>,
    observers: Vec<Arc<dyn Observer>>,
}

/// Opens domains. It holds what all of them share.
pub(super) struct Opener {
    pub(super) schemes: Schemes,
    pub(super) envelopes: Hook<EnvelopeBuilder>,
    pub(super) branches: Hook<BranchKekBuilder>,
    /// The observers of every envelope and of all branch keys.
    pub(super) observers: Vec<Arc<dyn Observer>>,
    pub(super) clock: Clock,
    /// Whether KEKs are asked before a domain is used.
    pub(super) start_up: Option<StartUp>,
    #[cfg(feature = "audit")]
    pub(super) trail: Option<AuditTrail>,
    pub(super) stores: Shared<dyn KeyStore>,
    pub(super) policies: Shared<dyn Policy>,
}

impl Opener {
    pub(super) async fn open(
        &self,
        name: &str,
        config: &DomainConfig,
        route_by: Option<&str>,
    ) -> Result<Domain, Wrong> {
        check_name(name).map_err(|error| Field::default().wrong(error))?;
        let contexts = Arc::new(contexts(name, config, route_by)?);
        let parts = self.parts(config).await?;
        let branches = match &config.branches {
            Some(branches) => {
                let builder = self.branch_builder(name, config, branches, &parts)?;
                Some(builder.build().map_err(|error| field("branches").wrong(error))?)
            }
            None => None,
        };
        let Parts { writing, reading, store, policy, observers } = parts;
        let builder = Envelope::builder().timed_by(self.clock.clone());
        let mut builder = (self.envelopes)(name, builder).domain(contexts.clone());
        builder = observers.into_iter().fold(builder, EnvelopeBuilder::observer);
        builder = with_settings(builder, config);
        builder =
            set(builder, policy, |builder, (policy, options)| builder.policy(policy, options));
        if let Some(branches) = branches.clone() {
            // Messages that KEKs wrapped before there were branches can still be read.
            builder = builder.wrap_with(branches);
            builder = writing.into_iter().fold(builder, EnvelopeBuilder::unwrap_with);
        } else {
            builder = writing.into_iter().fold(builder, EnvelopeBuilder::wrap_with);
        }
        builder = reading.into_iter().fold(builder, EnvelopeBuilder::unwrap_with);
        if let Some(store) = store.filter(|_| config.keep_deks.unwrap_or(branches.is_none())) {
            builder = builder.key_store(store);
        }
        let envelope = match self.start_up {
            None => builder.build(),
            Some(start_up) => builder.start(StartOptions::default().start_up(start_up)).await,
        };
        let envelope = envelope.map_err(|error| Field::default().wrong(error))?;
        let (config, route_by) = (config.clone(), route_by.map(Into::into));
        let earlier = OnceLock::new();
        Ok(Domain(Arc::new(Inner { config, route_by, contexts, envelope, branches, earlier })))
    }

    async fn parts(&self, config: &DomainConfig) -> Result<Parts, Wrong> {
        if config.keep_deks == Some(true) && config.store.is_none() {
            let detail = "there is no store that keeps them; set `store` too";
            return Err(field("keep_deks").wrong(invalid(detail)));
        }
        let store = match &config.store {
            Some(uri) => {
                let made = self.stores.get_or_make(uri, self.schemes.make_store(uri)).await;
                Some(made.map_err(|error| field("store").wrong(error))?)
            }
            None => None,
        };
        Ok(Parts {
            observers: self.observers(config)?,
            policy: self.policy(config).await?,
            writing: self.providers("wrap_with", &config.wrap_with).await?,
            reading: self.providers("unwrap_with", &config.unwrap_with).await?,
            store,
        })
    }

    async fn policy(
        &self,
        config: &DomainConfig,
    ) -> Result<Option<(Arc<dyn Policy>, PolicyOptions)>, Wrong> {
        let of_decisions = |error| field("decisions").wrong(error);
        let options = config.decisions.clone().unwrap_or_default();
        options.check_for_domain().map_err(of_decisions)?;
        let Some(uri) = &config.policy else {
            return match config.decisions {
                None => Ok(None),
                Some(_) => Err(of_decisions(invalid("nobody decides; set `policy` too"))),
            };
        };
        let made = self.policies.get_or_make(uri, self.schemes.make_policy(uri)).await;
        let policy = made.map_err(|error| field("policy").wrong(error))?;
        Ok(Some((policy, options)))
    }

    /// Returns the observers of every domain, and the trail as configured for this domain.
    fn observers(&self, config: &DomainConfig) -> Result<Vec<Arc<dyn Observer>>, Wrong> {
        let of_domain = self.trail(config)?;
        Ok(self.observers.iter().cloned().chain(of_domain).collect())
    }

    #[cfg(not(feature = "audit"))]
    fn trail(&self, _: &DomainConfig) -> Result<Option<Arc<dyn Observer>>, Wrong> {
        Ok(None)
    }

    #[cfg(feature = "audit")]
    fn trail(&self, config: &DomainConfig) -> Result<Option<Arc<dyn Observer>>, Wrong> {
        let wrong = |error| field("audit").wrong(error);
        Ok(match (&self.trail, &config.audit) {
            (Some(trail), Some(settings)) => {
                Some(Arc::new(trail.of_domain(settings).map_err(wrong)?))
            }
            (Some(trail), None) => Some(Arc::new(trail.clone())),
            (None, None) => None,
            (None, Some(_)) => {
                return Err(wrong(invalid("there is no trail; set `DomainsBuilder::audit_trail`")));
            }
        })
    }

    async fn providers(
        &self,
        name: &'static str,
        uris: &[Address],
    ) -> Result<Vec<Arc<dyn KekProvider>>, Wrong> {
        let making = uris.iter().enumerate().map(|(item, uri)| {
            let of_item = Field { name, item: Some(item) };
            self.schemes.make_kek(uri).map_err(move |error| of_item.wrong(error))
        });
        try_join_all(making.collect::<Vec<_>>()).await
    }

    fn branch_builder(
        &self,
        name: &str,
        config: &DomainConfig,
        branches: &Branches,
        parts: &Parts,
    ) -> Result<BranchKekBuilder, Wrong> {
        let mut writing = parts.writing.iter().cloned();
        let first = writing.next().ok_or_else(|| {
            field("wrap_with").wrong(invalid("branches need a KEK that wraps their keys"))
        })?;
        let builder = BranchKek::builder(first).timed_by(self.clock.clone());
        let mut builder = (self.branches)(name, builder)
            .domain(name)
            .name(branches.name.as_deref().unwrap_or(name))
            .per(branches.per.iter().cloned());
        builder = parts.observers.iter().cloned().fold(builder, BranchKekBuilder::observer);
        builder = set(builder, parts.policy.clone(), |builder, (policy, options)| {
            builder.policy(policy, options.domain(name))
        });
        builder = writing.fold(builder, BranchKekBuilder::wrap_with);
        builder = parts.reading.iter().cloned().fold(builder, BranchKekBuilder::unwrap_with);
        builder = set(builder, branches.period, BranchKekBuilder::period);
        builder = set(builder, config.limits, BranchKekBuilder::limits);
        builder = set(builder, config.calls, BranchKekBuilder::call_policy);
        builder = set(builder, config.dek_origin, BranchKekBuilder::origin);
        if branches.self_contained {
            return Ok(builder.self_contained());
        }
        Ok(set(builder, parts.store.clone(), BranchKekBuilder::store))
    }
}

/// Applies a domain's configuration on top of the user's hook.
fn with_settings(builder: EnvelopeBuilder, config: &DomainConfig) -> EnvelopeBuilder {
    let builder = set(builder, config.suite, EnvelopeBuilder::suite);
    let builder = set(builder, config.nonces, EnvelopeBuilder::nonces);
    let builder = set(builder, config.dek_origin, EnvelopeBuilder::dek_origin);
    let builder = set(builder, config.limits, EnvelopeBuilder::limits);
    set(builder, config.calls, EnvelopeBuilder::call_policy)
}

fn set<B, T>(builder: B, value: Option<T>, option: impl FnOnce(B, T) -> B) -> B {
    match value {
        Some(value) => option(builder, value),
        None => builder,
    }
}

pub(super) fn contexts(
    name: &str,
    config: &DomainConfig,
    route_by: Option<&str>,
) -> Result<DomainContexts, Wrong> {
    let per = config.branches.iter().flat_map(|branches| &branches.per);
    let must_have = config.must_have.iter().chain(per).map(String::as_str);
    let may_have = config.may_have.as_ref();
    let may_have = may_have.map(|names| names.iter().map(String::as_str).chain(route_by));
    for (named, names) in
        [("must_have", Some(&config.must_have)), ("may_have", config.may_have.as_ref())]
    {
        EncryptionContext::new(names.into_iter().flatten().map(|name| (name, "value")))
            .map_err(|error| field(named).wrong(invalid(error.to_string())))?;
    }
    for (item, value) in config.routes.iter().enumerate() {
        let of_item = Field { name: "routes", item: Some(item) };
        check_pair("a route", "pair", value).map_err(|error| of_item.wrong(error))?;
    }
    Ok(DomainContexts::new(name, must_have, may_have))
}

/// Checks that a context can have such a pair. The error repeats neither name nor value.
pub(super) fn check_pair(what: &str, name: &str, value: &str) -> Result<(), Error> {
    match EncryptionContext::new([(name, value)]) {
        Ok(_) => Ok(()),
        Err(_) => Err(invalid(format!("{what}: no encryption context can have it"))),
    }
}

/// Checks a name. It is a value of encryption contexts and policies, a label of metrics and a key
/// in files.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_allowed) {
        return Ok(());
    }
    Err(invalid(format!(
        "the name of a domain has 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`"
    )))
}

pub(super) fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOption, detail)
}

/// Returns the error for foreign code that did not finish.
pub(super) fn interrupted(why: &Interrupted) -> Error {
    match why {
        Interrupted::Panicked => {
            let detail = "a provider, a store, a resolver or an option of the builder panicked";
            Error::new(ErrorKind::Provider, detail)
        }
        #[cfg(feature = "tokio")]
        Interrupted::Ended => {
            let detail = "the tokio runtime in which the domains were built ended meanwhile";
            Error::new(ErrorKind::Unavailable, detail)
        }
    }
}

/// Writes `wrap_with[1]`.
impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        self.item.map_or(Ok(()), |item| write!(f, "[{item}]"))
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("schemes", &self.schemes).finish_non_exhaustive()
    }
}
