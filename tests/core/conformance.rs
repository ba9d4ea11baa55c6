//! The providers of this crate against the conformance suite, and the suite against providers that
//! are wrong.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use waxseal_testing::support;

use support::{Lie, Probe, block_on, local};
use waxseal::kek::conformance::{self, Outcome, Report, Step, Subject};
use waxseal::kek::local::LocalKek;
use waxseal::kek::{
    BoxFuture, CallTarget, ContextBinding, Health, KekError, KekErrorClass, KekProvider,
    UnwrappedDek,
};
use waxseal::{Dek, EncryptionContext, KekId, WrappedDek};

struct Local {
    kek: LocalKek,
    other: LocalKek,
}

impl Subject for Local {
    fn provider(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.kek.clone())
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.other.clone())
    }

    fn rotate(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            match self.kek.rotate() {
                Ok(_) => Step::Done,
                Err(error) => Step::Failed(error.to_string()),
            }
        })
    }
}

#[test]
fn the_local_provider_in_memory_conforms() {
    let report = block_on(conformance::run(&Local { kek: local("a"), other: local("b") }));
    assert!(report.is_conformant(), "{report}");
    let not_applicable: Vec<_> = report
        .checks()
        .filter(|(_, outcome)| **outcome == Outcome::NotApplicable)
        .map(|(name, _)| name)
        .collect();
    let it_asks_no_service = [
        "rewraps_where_it_says",
        "reports_each_class_of_failure_and_recovers",
        "takes_a_source_of_credentials_that_is_down_for_an_outage",
    ];
    assert_eq!(not_applicable, it_asks_no_service);
}

#[test]
fn the_local_provider_with_a_key_file_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| LocalKek::open_or_create(dir.path().join(name), name).unwrap();
    let report = block_on(conformance::run(&Local { kek: open("a"), other: open("b") }));
    assert!(report.is_conformant(), "{report}");
}

/// A probe whose service can be made to fail, and which is wrong in one way.
struct Scripted {
    probe: Arc<Probe>,
    wrong: Option<Wrong>,
    service: Arc<Service>,
    deterministic: bool,
}

/// What the service around the probe does not do at the moment.
#[derive(Debug, Default)]
struct Service {
    has_no_credentials: AtomicBool,
    forbids_unwrapping: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Wrong {
    RecognisesEverything,
    IgnoresContext,
    IgnoresKekId,
    CallsDamageUnavailable,
    AlwaysCurrent,
    NeverCurrent,
    ReversesBatches,
    FailsWholeBatches,
    ShowsTheDek,
    IsUnwell,
    ReturnsShortDeks,
    RewrapsToAnother,
    CallsThrottledUnavailable,
    WrapsTheSameTwice,
    NamesATargetPerLook,
    NamesATargetPerId,
    NamesATargetWithoutAName,
    ChecksTheContextItself,
    SaysTheContextIsChecked,
    ClaimsToHaveAsked,
    JudgesInTheNameOfTheService,
    SaysItRewrapsInTheService,
    HidesThatItRewrapsInTheService,
    BelievesAVersionInFront,
    StaysClosed,
    CallsMissingCredentialsDenied,
    CallsMissingCredentialsMisconfigured,
    CallsMissingCredentialsMisconfiguredInItsHealth,
    ShowsTheDekInDebug,
}

struct WrongProvider {
    probe: Arc<Probe>,
    wrong: Option<Wrong>,
    service: Arc<Service>,
    /// For `WrapsTheSameTwice`.
    last: Mutex<Vec<([u8; 32], EncryptionContext, WrappedDek)>>,
    looks: AtomicUsize,
    is_closed: AtomicBool,
}

impl fmt::Debug for WrongProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("WrongProvider");
        if self.is(Wrong::ShowsTheDekInDebug) {
            debug.field("last", &self.last);
        }
        debug.field("id", self.id()).finish_non_exhaustive()
    }
}

impl WrongProvider {
    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == Some(wrong)
    }

    /// Asks for what every call needs.
    fn log_in(&self) -> Result<(), KekError> {
        if self.is(Wrong::StaysClosed) && self.is_closed.load(Ordering::SeqCst) {
            return Err(KekError::unavailable("logged out"));
        }
        if !self.service.has_no_credentials.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(match self.wrong {
            Some(Wrong::CallsMissingCredentialsDenied) => KekError::denied("no credentials"),
            Some(Wrong::CallsMissingCredentialsMisconfigured) => {
                KekError::misconfigured("no credentials")
            }
            _ => KekError::unavailable("no credentials"),
        })
    }

    fn rewraps_by_itself(&self) -> bool {
        use Wrong::{
            BelievesAVersionInFront, ChecksTheContextItself, IgnoresContext, IgnoresKekId,
            ReturnsShortDeks, RewrapsToAnother, SaysItRewrapsInTheService, ShowsTheDek,
            WrapsTheSameTwice,
        };
        [
            BelievesAVersionInFront,
            ChecksTheContextItself,
            IgnoresContext,
            IgnoresKekId,
            ReturnsShortDeks,
            RewrapsToAnother,
            SaysItRewrapsInTheService,
            ShowsTheDek,
            WrapsTheSameTwice,
        ]
        .into_iter()
        .any(|wrong| self.is(wrong))
    }

    /// The context that the service gets to see.
    fn seen<'a>(
        &self,
        context: &'a EncryptionContext,
        none: &'a EncryptionContext,
    ) -> &'a EncryptionContext {
        let hidden = self.is(Wrong::IgnoresContext) || self.is(Wrong::ChecksTheContextItself);
        if hidden { none } else { context }
    }

    fn renamed(&self, error: KekError) -> KekError {
        match (self.wrong, error.class()) {
            (Some(Wrong::CallsDamageUnavailable), KekErrorClass::Invalid) => {
                KekError::unavailable("damage")
            }
            (Some(Wrong::CallsThrottledUnavailable), KekErrorClass::Throttled) => {
                KekError::unavailable("slow down")
            }
            (Some(Wrong::ClaimsToHaveAsked), KekErrorClass::Invalid) => {
                KekError::invalid("another KEK's")
            }
            _ => error,
        }
    }
}

impl KekProvider for WrongProvider {
    fn id(&self) -> &KekId {
        self.probe.id()
    }

    fn recognises(&self, kek_id: &KekId) -> bool {
        match self.wrong {
            Some(Wrong::RecognisesEverything) => true,
            Some(Wrong::NamesATargetPerId) => kek_id.as_str().starts_with(self.id().as_str()),
            _ => self.probe.recognises(kek_id),
        }
    }

    fn target(&self, kek_id: &KekId) -> CallTarget {
        match self.wrong {
            Some(Wrong::NamesATargetPerLook) => {
                CallTarget::new(format!("call {}", self.looks.fetch_add(1, Ordering::SeqCst)))
            }
            Some(Wrong::NamesATargetPerId) => CallTarget::new(kek_id.as_str()),
            Some(Wrong::NamesATargetWithoutAName) => CallTarget::new(""),
            _ => self.probe.target(kek_id),
        }
    }

    fn context_binding(&self) -> ContextBinding {
        if self.is(Wrong::SaysTheContextIsChecked) {
            ContextBinding::Checked
        } else {
            ContextBinding::Enforced
        }
    }

    fn rewraps_in_service(&self) -> bool {
        match self.wrong {
            Some(Wrong::SaysItRewrapsInTheService) => true,
            Some(Wrong::HidesThatItRewrapsInTheService) => false,
            _ => !self.rewraps_by_itself(),
        }
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        match self.wrong {
            Some(Wrong::AlwaysCurrent) => Some(true),
            Some(Wrong::NeverCurrent) => Some(false),
            Some(Wrong::BelievesAVersionInFront) => {
                Some(u32::from(wrapped.wrapped()[0]) == self.probe.kek.current_version())
            }
            _ => self.probe.is_current(wrapped),
        }
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            self.log_in()?;
            let none = EncryptionContext::empty();
            let entry = self
                .probe
                .wrap(self.seen(context, &none), dek)
                .await
                .map_err(|error| self.renamed(error))?;
            let mut last = self.last.lock().unwrap();
            if self.is(Wrong::WrapsTheSameTwice) {
                let same = |(d, c, entry): &&([u8; 32], EncryptionContext, WrappedDek)| {
                    d == dek.expose() && c == context && self.probe.is_current(entry) == Some(true)
                };
                if let Some((.., entry)) = last.iter().find(same) {
                    return Ok(entry.clone());
                }
            }
            last.push((*dek.expose(), context.clone(), entry.clone()));
            if self.is(Wrong::BelievesAVersionInFront) {
                let version = u8::try_from(self.probe.kek.current_version()).unwrap();
                return Ok(WrappedDek::new(
                    self.id().clone(),
                    [&[version], entry.wrapped()].concat(),
                )
                .unwrap());
            }
            Ok(entry)
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            if self.is(Wrong::JudgesInTheNameOfTheService) && wrapped.wrapped().len() != 76 {
                return Err(KekError::invalid("too long or too short"));
            }
            self.log_in()?;
            if self.service.forbids_unwrapping.load(Ordering::SeqCst) {
                return Err(KekError::denied("may not unwrap"));
            }
            let relabelled = WrappedDek::new(self.id().clone(), wrapped.wrapped()).unwrap();
            let mut wrapped = if self.is(Wrong::IgnoresKekId) { &relabelled } else { wrapped };
            let behind_the_version;
            if self.is(Wrong::BelievesAVersionInFront) && self.recognises(wrapped.kek_id()) {
                behind_the_version = WrappedDek::new(self.id().clone(), &wrapped.wrapped()[1..]);
                wrapped = behind_the_version
                    .as_ref()
                    .map_err(|_| KekError::invalid("too short").without_asking())?;
            }
            let none = EncryptionContext::empty();
            match self.probe.unwrap(self.seen(context, &none), wrapped).await {
                // One DEK for all that cannot be unwrapped: the laziest of key services.
                Err(_) if self.is(Wrong::IgnoresKekId) => Ok(UnwrappedDek::new(vec![1; 32])),
                Err(error) if self.is(Wrong::ShowsTheDek) => {
                    let dek = self.last.lock().unwrap().last().map_or([0; 32], |(dek, ..)| *dek);
                    Err(KekError::new(error.class(), format!("{dek:?} is not it")))
                }
                Err(error) => Err(self.renamed(error)),
                Ok(dek) if self.is(Wrong::ReturnsShortDeks) => {
                    Ok(UnwrappedDek::new(dek.expose()[..31].to_vec()))
                }
                Ok(dek) if self.is(Wrong::ChecksTheContextItself) => {
                    let last = self.last.lock().unwrap();
                    match last.iter().any(|(d, c, _)| d == dek.expose() && c == context) {
                        true => Ok(dek),
                        false => Err(KekError::invalid("made in another context").without_asking()),
                    }
                }
                Ok(dek) => Ok(dek),
            }
        })
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            if !self.rewraps_by_itself() {
                self.log_in()?;
                return self
                    .probe
                    .rewrap(context, wrapped)
                    .await
                    .map_err(|error| self.renamed(error));
            }
            let dek = self.unwrap(context, wrapped).await?;
            if self.is(Wrong::RewrapsToAnother) {
                return Ok(self.generate(context).await?.1);
            }
            match dek.to_dek() {
                Some(dek) => self.wrap(context, &dek).await,
                None => Err(KekError::invalid("not 32 bytes")),
            }
        })
    }

    fn unwrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        Box::pin(async move {
            let mut results = Vec::new();
            for (context, wrapped) in items {
                results.push(self.unwrap(context, wrapped).await);
            }
            if self.is(Wrong::ReversesBatches) {
                results.reverse();
            }
            if self.is(Wrong::FailsWholeBatches) && results.iter().any(Result::is_err) {
                results = items.iter().map(|_| Err(KekError::invalid("one was bad"))).collect();
            }
            results
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(async move {
            if self.is(Wrong::IsUnwell) {
                return Ok(Health::Degraded("a cold".into()));
            }
            match self.log_in() {
                Err(_) if self.is(Wrong::CallsMissingCredentialsMisconfiguredInItsHealth) => {
                    Err(KekError::misconfigured("no credentials"))
                }
                Err(error) => Err(error),
                Ok(()) => self.probe.health().await,
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.is_closed.store(true, Ordering::SeqCst) })
    }
}

impl Subject for Scripted {
    fn provider(&self) -> Arc<dyn KekProvider> {
        Arc::new(WrongProvider {
            probe: self.probe.clone(),
            wrong: self.wrong,
            service: self.service.clone(),
            last: Mutex::default(),
            looks: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
        })
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(local("other"))
    }

    fn wraps_deterministically(&self) -> bool {
        self.deterministic
    }

    fn rotate(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            self.probe.kek.rotate().unwrap();
            Step::Done
        })
    }

    fn fail_with(&self, class: KekErrorClass) -> BoxFuture<'_, Step> {
        self.probe.lie(Lie::Fails(class));
        Box::pin(async { Step::Done })
    }

    fn fail_credentials(&self) -> BoxFuture<'_, Step> {
        self.service.has_no_credentials.store(true, Ordering::SeqCst);
        Box::pin(async { Step::Done })
    }

    fn forbid_unwrapping(&self) -> BoxFuture<'_, Step> {
        self.service.forbids_unwrapping.store(true, Ordering::SeqCst);
        Box::pin(async { Step::Done })
    }

    fn restore(&self) -> BoxFuture<'_, Step> {
        self.probe.lie(None);
        self.service.has_no_credentials.store(false, Ordering::SeqCst);
        self.service.forbids_unwrapping.store(false, Ordering::SeqCst);
        Box::pin(async { Step::Done })
    }
}

fn scripted(wrong: Option<Wrong>) -> Scripted {
    Scripted { probe: Probe::new("kek"), wrong, service: Arc::default(), deterministic: false }
}

fn run(wrong: Option<Wrong>) -> Report {
    block_on(conformance::run(&scripted(wrong)))
}

#[test]
fn a_provider_that_is_right_passes_every_check() {
    let report = run(None);
    assert!(report.checks().all(|(_, outcome)| *outcome == Outcome::Passed), "{report}");
}

#[test]
fn each_way_of_being_wrong_is_found_by_the_check_that_names_it() {
    for (wrong, check) in [
        (Wrong::RecognisesEverything, "recognises_its_own_kek_and_not_another"),
        (Wrong::IgnoresContext, "binds_the_context_as_it_says"),
        (Wrong::IgnoresKekId, "refuses_what_another_kek_wrapped"),
        (Wrong::CallsDamageUnavailable, "refuses_a_damaged_wrapped_key"),
        (Wrong::CallsDamageUnavailable, "refuses_a_cut_or_lengthened_wrapped_key"),
        (Wrong::AlwaysCurrent, "follows_a_rotation"),
        (Wrong::NeverCurrent, "unwraps_what_it_wrapped"),
        (Wrong::ReversesBatches, "keeps_the_order_of_a_batch"),
        (Wrong::FailsWholeBatches, "fails_only_the_bad_items_of_a_batch"),
        (Wrong::ShowsTheDek, "keeps_the_dek_out_of_errors"),
        (Wrong::IsUnwell, "is_healthy"),
        (Wrong::ReturnsShortDeks, "generates_deks_of_32_bytes"),
        (Wrong::ReturnsShortDeks, "takes_contexts_at_their_limits"),
        (Wrong::ReturnsShortDeks, "serves_many_at_once"),
        (Wrong::ReturnsShortDeks, "survives_cancellation"),
        (Wrong::RewrapsToAnother, "rewraps_without_changing_the_dek"),
        (Wrong::CallsThrottledUnavailable, "reports_each_class_of_failure_and_recovers"),
    ] {
        let report = run(Some(wrong));
        assert!(failed(&report).contains(&check), "{wrong:?} passed {check}:\n{report}");
        assert!(!report.is_conformant());
    }
}

fn failed(report: &Report) -> Vec<&'static str> {
    report
        .checks()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn what_a_provider_says_of_itself_is_held_against_what_it_does_by_one_check_each() {
    for (wrong, check) in [
        (Wrong::NamesATargetPerLook, "names_few_targets_and_the_same_for_the_same_kek"),
        (Wrong::NamesATargetPerId, "names_few_targets_and_the_same_for_the_same_kek"),
        (Wrong::NamesATargetWithoutAName, "names_few_targets_and_the_same_for_the_same_kek"),
        (Wrong::ChecksTheContextItself, "binds_the_context_as_it_says"),
        (Wrong::SaysTheContextIsChecked, "binds_the_context_as_it_says"),
        (Wrong::ClaimsToHaveAsked, "says_where_it_did_not_ask"),
        (Wrong::JudgesInTheNameOfTheService, "says_where_it_did_not_ask"),
        (Wrong::SaysItRewrapsInTheService, "rewraps_where_it_says"),
        (Wrong::HidesThatItRewrapsInTheService, "rewraps_where_it_says"),
        (Wrong::BelievesAVersionInFront, "believes_no_version_that_anybody_could_write"),
        (Wrong::StaysClosed, "works_after_it_was_closed"),
        (
            Wrong::CallsMissingCredentialsDenied,
            "takes_a_source_of_credentials_that_is_down_for_an_outage",
        ),
        (
            Wrong::CallsMissingCredentialsMisconfigured,
            "takes_a_source_of_credentials_that_is_down_for_an_outage",
        ),
        (
            Wrong::CallsMissingCredentialsMisconfiguredInItsHealth,
            "takes_a_source_of_credentials_that_is_down_for_an_outage",
        ),
        (Wrong::ShowsTheDekInDebug, "keeps_the_dek_out_of_its_debug"),
        (Wrong::WrapsTheSameTwice, "never_wraps_to_the_same_bytes_twice"),
    ] {
        let report = run(Some(wrong));
        assert_eq!(failed(&report), [check], "{wrong:?}:\n{report}");
    }
}

#[test]
fn deterministic_wrapping_is_accepted_from_a_subject_that_says_so() {
    let report = block_on(conformance::run(&Scripted {
        deterministic: true,
        ..scripted(Some(Wrong::WrapsTheSameTwice))
    }));
    assert!(report.checks().all(|(_, outcome)| *outcome == Outcome::Passed), "{report}");
    assert!(
        block_on(conformance::run(&Scripted { deterministic: true, ..scripted(None) }))
            .is_conformant()
    );
}

/// The key service knows no contexts: it releases, and the DEK id or the provider finds what is
/// wrong.
#[derive(Debug)]
struct Releases {
    kek: LocalKek,
    says: ContextBinding,
    checks: bool,
    made: Mutex<HashSet<(Vec<u8>, EncryptionContext)>>,
}

impl KekProvider for Releases {
    fn id(&self) -> &KekId {
        self.kek.id()
    }

    fn context_binding(&self) -> ContextBinding {
        self.says
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let wrapped = self.kek.wrap(&EncryptionContext::empty(), dek).await?;
            self.made.lock().unwrap().insert((wrapped.wrapped().to_vec(), context.clone()));
            Ok(wrapped)
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            let dek = self.kek.unwrap(&EncryptionContext::empty(), wrapped).await?;
            let made_here =
                self.made.lock().unwrap().contains(&(wrapped.wrapped().to_vec(), context.clone()));
            match made_here || !self.checks {
                true => Ok(dek),
                false => Err(KekError::invalid("the context inside is another").without_asking()),
            }
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.kek.health()
    }
}

struct ReleasesFor(Arc<Releases>);

impl Subject for ReleasesFor {
    fn provider(&self) -> Arc<dyn KekProvider> {
        self.0.clone()
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(local("other"))
    }
}

#[test]
fn a_service_that_knows_no_contexts_conforms_if_its_provider_says_so() {
    for (says, checks, conforms) in [
        (ContextBinding::Checked, false, true),
        (ContextBinding::Checked, true, true),
        (ContextBinding::Unauthenticated, false, true),
        (ContextBinding::Unauthenticated, true, true),
        (ContextBinding::Enforced, false, false),
        (ContextBinding::Enforced, true, false),
    ] {
        let provider = Releases { kek: local("kek"), says, checks, made: Mutex::default() };
        let report = block_on(conformance::run(&ReleasesFor(Arc::new(provider))));
        assert_eq!(
            report.is_conformant(),
            conforms,
            "{says:?}, the provider checks: {checks}\n{report}"
        );
        let found = failed(&report);
        assert!(conforms || found.contains(&"binds_the_context_as_it_says"), "{found:?}");
    }
}
