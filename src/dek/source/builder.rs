//! Checks the options of a source, and builds it.
#![forbid(unsafe_code)]

use std::fmt;

use super::super::Limits;
use super::super::contexts::DomainContexts;
use super::{BranchTerms, DekSource, SourceOptions};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};
use crate::format::{KekId, WrappedKeys};
use crate::kek::call::{CallBudget, CallPolicy, CallTerms, Calls, PolicyInForce, Service, Timer};
use crate::kek::set::DekOrigin;
use crate::kek::{BRANCH_ID_PREFIX, ContextBinding, KekProvider, KekSet};
use crate::observe::{Event, Observer, Observers};
use crate::runtime::{NEEDED, Runtime};
use crate::store::KeyStore;
use crate::suite::{Backend, Nonces, Suite};
use crate::sync::Arc;

/// The options of a source, unchecked.
#[derive(Default)]
pub(crate) struct SourceBuilder {
    pub(crate) wrap_with: Vec<Arc<dyn KekProvider>>,
    pub(crate) unwrap_with: Vec<Arc<dyn KekProvider>>,
    pub(crate) suite: Suite,
    pub(crate) backend: Backend,
    pub(crate) nonces: Nonces,
    pub(crate) dek_origin: DekOrigin,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) runtime: Option<Arc<dyn Runtime>>,
    pub(crate) call_policy: CallPolicy,
    pub(crate) call_budget: Option<CallBudget>,
    pub(crate) store_call_budget: Option<CallBudget>,
    pub(crate) observers: Vec<Box<dyn Observer>>,
    pub(crate) unauthenticated: Vec<KekId>,
    pub(crate) store: Option<Arc<dyn KeyStore>>,
    pub(crate) branch: Option<BranchTerms>,
    pub(crate) domain: Option<Arc<DomainContexts>>,
    /// Those of the options above that the configuration event reports.
    pub(crate) more: Vec<(&'static str, String)>,
}

impl SourceBuilder {
    /// Checks everything that can be checked without a call.
    pub(crate) fn build(self) -> Result<Arc<DekSource>, Error> {
        let mut limits = self.limits.check(self.suite)?;
        if self.wrap_with.is_empty() && self.unwrap_with.is_empty() {
            return Err(invalid(
                "wrap_with: no KEK, neither for writing nor for reading".to_owned(),
            ));
        }
        if self.wrap_with.len() > WrappedKeys::MAX_ENTRIES {
            let detail = format!(
                "wrap_with: {} KEKs, at most {} are allowed",
                self.wrap_with.len(),
                WrappedKeys::MAX_ENTRIES
            );
            return Err(invalid(detail));
        }
        refuse_twice("wrap_with", &self.wrap_with)?;
        let reading: Vec<_> = self.wrap_with.iter().chain(&self.unwrap_with).cloned().collect();
        refuse_twice("unwrap_with", &reading)?;
        let forgets = |provider: &&Arc<dyn KekProvider>| {
            provider.id().as_str().starts_with(BRANCH_ID_PREFIX) && !provider.derives_deks()
        };
        if let Some(provider) = reading.iter().find(forgets) {
            let id = provider.id();
            return Err(invalid(format!(
                "{id}: a provider around a BranchKek has to forward derives_deks and generate, or \
                 DEKs would outlive their branch key"
            )));
        }
        let unauthenticated = |provider: &&Arc<dyn KekProvider>| {
            provider.context_binding() == ContextBinding::Unauthenticated
                && !self.unauthenticated.contains(provider.id())
        };
        if let Some(provider) = reading.iter().find(unauthenticated) {
            let id = provider.id();
            return Err(invalid(format!(
                "{id}: anyone can wrap under it; allow_unauthenticated_wrapping accepts that"
            )));
        }
        let runtime = match self.runtime {
            Some(runtime) => Some(runtime),
            None => ambient_runtime()?,
        };
        let budgets = [
            ("call_budget", self.call_budget.is_some()),
            ("store_call_budget", self.store_call_budget.is_some()),
        ];
        if runtime.is_none()
            && let Some((option, _)) = budgets.iter().find(|(_, is_set)| *is_set)
        {
            return Err(invalid(format!("{option} {NEEDED}")));
        }
        let observers = Observers::new(self.observers);
        limits.summaries = observers.access_summaries();
        let terms = CallTerms {
            policy: self.call_policy.check(runtime.is_some())?,
            budget: self.call_budget.unwrap_or_default(),
            timer: Timer::new(runtime.clone()),
            clock: self.clock.clone(),
            observers: observers.clone(),
        };
        let options = SourceOptions {
            suite: self.suite,
            backend: self.backend,
            nonces: self.nonces,
            origin: self.dek_origin,
            limits,
            store: self.store,
            branch: self.branch,
            domain: self.domain,
            clock: self.clock,
            runtime,
            observers,
        };
        if !options.observers.are_none() {
            let (wrap_with, unwrap_with) = (&self.wrap_with, &self.unwrap_with);
            emit_configured(wrap_with, unwrap_with, &terms.policy, &options, self.more);
        }
        let store = options.store.as_ref().map_or("none", |store| store.name());
        let budget = self.store_call_budget.unwrap_or_else(CallBudget::of_stores);
        let of_store = CallTerms { policy: terms.policy.for_stores(), budget, ..terms.clone() };
        let store_calls = Calls::new(Service::Store(store.into()), of_store);
        let keks = KekSet::new(self.wrap_with, self.unwrap_with, &terms);
        Ok(DekSource::new(keks, store_calls, options))
    }
}

/// Names two backends if short messages use another one.
fn backend_in_force(options: &SourceOptions) -> String {
    let chosen = options.backend.chosen(options.suite);
    let short = options.backend.chosen_for(options.suite, 0);
    match short == chosen {
        true => format!("{chosen:?}"),
        false => format!("{chosen:?}, {short:?} up to 1 KiB"),
    }
}

fn emit_configured(
    wrap_with: &[Arc<dyn KekProvider>],
    unwrap_with: &[Arc<dyn KekProvider>],
    call_policy: &PolicyInForce,
    options: &SourceOptions,
    more: Vec<(&'static str, String)>,
) {
    let ids = |providers: &[Arc<dyn KekProvider>]| -> Vec<KekId> {
        providers.iter().map(|provider| provider.id().clone()).collect()
    };
    let mut named = vec![
        ("suite", format!("{:?}", options.suite)),
        ("backend", backend_in_force(options)),
        ("nonces", format!("{:?}", options.nonces)),
        ("dek_origin", format!("{:?}", options.origin)),
        ("limits", format!("{:?}", options.limits)),
        ("call_policy", format!("{call_policy:?}")),
        ("branch_keys", options.branch.is_some().to_string()),
    ];
    named.extend(options.store.as_ref().map(|store| ("key_store", store.name().to_owned())));
    named.extend(options.domain.as_ref().map(|domain| ("domain", domain.name().to_owned())));
    named.extend(more);
    options.observers.emit(&Event::Configured {
        wrap_with: &ids(wrap_with),
        unwrap_with: &ids(unwrap_with),
        options: &named,
    });
}

impl fmt::Debug for SourceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = |providers: &[Arc<dyn KekProvider>]| {
            providers.iter().map(|p| p.id().clone()).collect::<Vec<_>>()
        };
        f.debug_struct("Builder")
            .field("wrap_with", &ids(&self.wrap_with))
            .field("unwrap_with", &ids(&self.unwrap_with))
            .field("suite", &self.suite)
            .field("backend", &self.backend)
            .field("nonces", &self.nonces)
            .field("dek_origin", &self.dek_origin)
            .field("limits", &self.limits)
            .field("call_policy", &self.call_policy)
            .field("call_budget", &self.call_budget)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Returns the caller's tokio runtime, if there is one.
#[cfg(feature = "tokio")]
fn ambient_runtime() -> Result<Option<Arc<dyn Runtime>>, Error> {
    match crate::runtime::tokio::Tokio::current() {
        None => Ok(None),
        Some(Ok(runtime)) => Ok(Some(Arc::new(runtime))),
        Some(Err(why)) => {
            Err(invalid(format!("runtime: {why}; build elsewhere, or give another one")))
        }
    }
}

#[cfg(not(feature = "tokio"))]
fn ambient_runtime() -> Result<Option<Arc<dyn Runtime>>, Error> {
    Ok(None)
}

fn refuse_twice(option: &str, providers: &[Arc<dyn KekProvider>]) -> Result<(), Error> {
    let mut ids: Vec<&KekId> = providers.iter().map(|provider| provider.id()).collect();
    ids.sort();
    match ids.array_windows().find(|[a, b]| a == b) {
        Some([twice, _]) => Err(invalid(format!("{option}: two providers for {twice}"))),
        None => Ok(()),
    }
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOption, detail)
}
