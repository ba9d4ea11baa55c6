//! The providers of this crate against the conformance suite, and the suite against providers that are wrong.
#![cfg(feature = "conformance")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use std::sync::Arc;

use support::{Lie, Probe, block_on, local};
use waxseal::kek::conformance::{self, Outcome, Report, Step, Subject};
use waxseal::kek::local::LocalKek;
use waxseal::kek::{BoxFuture, Health, KekError, KekErrorClass, KekProvider, UnwrappedDek};
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
    let not_applicable: Vec<_> =
        report.checks().filter(|(_, outcome)| **outcome == Outcome::NotApplicable).map(|(name, _)| name).collect();
    assert_eq!(not_applicable, ["reports_each_class_of_failure_and_recovers"], "it asks no service that could fail");
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
}

#[derive(Debug)]
struct WrongProvider {
    probe: Arc<Probe>,
    wrong: Option<Wrong>,
    /// For `WrapsTheSameTwice`.
    last: std::sync::Mutex<Vec<([u8; 32], EncryptionContext, WrappedDek)>>,
}

impl WrongProvider {
    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == Some(wrong)
    }
}

impl KekProvider for WrongProvider {
    fn id(&self) -> &KekId {
        self.probe.id()
    }

    fn recognises(&self, kek_id: &KekId) -> bool {
        self.is(Wrong::RecognisesEverything) || self.probe.recognises(kek_id)
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        match self.wrong {
            Some(Wrong::AlwaysCurrent) => Some(true),
            Some(Wrong::NeverCurrent) => Some(false),
            _ => self.probe.is_current(wrapped),
        }
    }

    fn wrap<'a>(&'a self, context: &'a EncryptionContext, dek: &'a Dek) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let empty = EncryptionContext::empty();
            let context = if self.is(Wrong::IgnoresContext) { &empty } else { context };
            if self.is(Wrong::WrapsTheSameTwice) {
                let last = self.last.lock().unwrap();
                if let Some((.., entry)) = last.iter().find(|(d, c, _)| d == dek.expose() && c == context) {
                    return Ok(entry.clone());
                }
            }
            let entry = self.probe.wrap(context, dek).await.map_err(|error| self.renamed(error))?;
            self.last.lock().unwrap().push((*dek.expose(), context.clone(), entry.clone()));
            Ok(entry)
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            let empty = EncryptionContext::empty();
            let context = if self.is(Wrong::IgnoresContext) { &empty } else { context };
            let relabelled = WrappedDek::new(self.id().clone(), wrapped.wrapped()).unwrap();
            let wrapped = if self.is(Wrong::IgnoresKekId) { &relabelled } else { wrapped };
            match self.probe.unwrap(context, wrapped).await {
                // One DEK for all that cannot be unwrapped: the laziest of key services.
                Err(_) if self.is(Wrong::IgnoresKekId) => Ok(UnwrappedDek::new(vec![1; 32])),
                Err(error) if self.is(Wrong::ShowsTheDek) => {
                    let dek = self.last.lock().unwrap().last().map_or([0; 32], |(dek, ..)| *dek);
                    Err(KekError::new(error.class(), format!("{dek:?} is not it")))
                }
                Err(error) => Err(self.renamed(error)),
                Ok(dek) if self.is(Wrong::ReturnsShortDeks) => Ok(UnwrappedDek::new(dek.expose()[..31].to_vec())),
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
            if self.is(Wrong::IsUnwell) { Ok(Health::Degraded("a cold".into())) } else { self.probe.health().await }
        })
    }
}

impl WrongProvider {
    fn renamed(&self, error: KekError) -> KekError {
        match (self.wrong, error.class()) {
            (Some(Wrong::CallsDamageUnavailable), KekErrorClass::Invalid) => KekError::unavailable("damage"),
            (Some(Wrong::CallsThrottledUnavailable), KekErrorClass::Throttled) => KekError::unavailable("slow down"),
            _ => error,
        }
    }
}

impl Subject for Scripted {
    fn provider(&self) -> Arc<dyn KekProvider> {
        Arc::new(WrongProvider { probe: self.probe.clone(), wrong: self.wrong, last: Default::default() })
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(local("other"))
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

    fn restore(&self) -> BoxFuture<'_, Step> {
        self.probe.lie(None);
        Box::pin(async { Step::Done })
    }
}

fn run(wrong: Option<Wrong>) -> Report {
    block_on(conformance::run(&Scripted { probe: Probe::new("kek"), wrong }))
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
        (Wrong::IgnoresContext, "refuses_a_wrong_context"),
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
        (Wrong::WrapsTheSameTwice, "never_wraps_to_the_same_bytes_twice"),
    ] {
        let report = run(Some(wrong));
        let found = report.checks().any(|(name, outcome)| name == check && matches!(outcome, Outcome::Failed(_)));
        assert!(found, "{wrong:?} passed {check}:\n{report}");
        assert!(!report.is_conformant());
    }
}
