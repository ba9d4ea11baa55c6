//! What observers get about decisions.

use std::sync::{Arc, Mutex};

use waxseal::policy::{Decision, PolicyOptions};
use waxseal::{Aad, Caller, ErrorKind, Event, Observer};
use waxseal_testing::support::block_on;

use crate::ground::{Ground, Rules, SECOND, caller, context};

#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Observer for Told {
    fn event(&self, event: &Event<'_>) {
        let who =
            |caller: Option<&Caller>| caller.and_then(Caller::service).unwrap_or("-").to_owned();
        let line = match *event {
            Event::PolicyDenied { caller, operation, context, reasons, revision, elapsed } => {
                format!(
                    "denied {} {operation} {:?} {reasons:?} {revision:?} {}",
                    who(caller),
                    context.get("tenant"),
                    elapsed.is_some()
                )
            }
            Event::PolicyAllowed { caller, operation, revision, elapsed, .. } => {
                format!("allowed {} {operation} {revision:?} {}", who(caller), elapsed.is_some())
            }
            Event::PolicyFailed { operation, error, last_known, .. } => {
                format!("failed {operation} {} {last_known}", error.kind().as_str())
            }
            _ => return,
        };
        self.0.lock().unwrap().push(line);
    }
}

fn ground(rules: &Rules, options: PolicyOptions) -> (Ground, Told) {
    let told = Told::default();
    (Ground::with(rules, options, |builder| builder.observer(told.clone())), told)
}

#[test]
fn each_denial_is_told_and_the_allows_that_the_policy_was_asked_for() {
    let (ground, told) = ground(&Rules::role("reader"), PolicyOptions::default());
    let (reader, other, acme) = (caller("a", "reader"), caller("b", "other"), context("acme"));
    for who in [&reader, &other, &reader, &other] {
        let _ = block_on(ground.envelope.acting_for(who).encrypt(&acme, Aad::empty(), b"x"));
    }
    let denied = "denied b encrypt Some(\"acme\") [\"not the role\"] Some(\"r1\")";
    assert_eq!(
        told.take(),
        [
            "allowed a encrypt Some(\"r1\") true".to_owned(),
            format!("{denied} true"),
            format!("{denied} false")
        ]
    );
    let _ = block_on(ground.envelope.encryptor(&acme));
    assert_eq!(told.take(), ["denied - encrypt Some(\"acme\") [\"no caller\"] None true"]);
}

#[test]
fn of_cached_allows_as_many_are_told_as_the_option_says() {
    for (every, expected) in [(0, 0), (1, 10), (3, 3)] {
        let (ground, told) =
            ground(&Rules::open(), PolicyOptions::default().report_cached_allows(every));
        let acme = context("acme");
        for _ in 0..11 {
            block_on(ground.envelope.encrypt(&acme, Aad::empty(), b"x")).unwrap();
        }
        let lines = told.take();
        assert_eq!(lines.len(), 1 + expected, "{every}: {lines:?}");
        assert!(lines[1..].iter().all(|line| line == "allowed - encrypt None false"), "{lines:?}");
    }
}

#[test]
fn a_failure_is_told_before_what_it_means() {
    let rules = Rules::open();
    let (ground, told) = ground(&rules, PolicyOptions::default().last_known_for(60 * SECOND));
    let acme = context("acme");
    let encrypt = || block_on(ground.envelope.encrypt(&acme, Aad::empty(), b"x"));
    encrypt().unwrap();
    rules.fail(ErrorKind::Unavailable);
    ground.clock.advance(30 * SECOND);
    encrypt().unwrap();
    rules.fail(ErrorKind::Provider);
    ground.clock.advance(30 * SECOND);
    encrypt().unwrap_err();
    let lines = told.take();
    assert_eq!(lines[1..3], ["failed encrypt unavailable true", "allowed - encrypt None true"]);
    assert_eq!(lines[3], "failed encrypt provider false");
    assert!(lines[4].starts_with("denied - encrypt") && lines.len() == 5, "{lines:?}");
}

#[test]
fn an_observer_may_use_another_envelope_while_it_is_told() {
    /// Uses an envelope with a policy of its own, within the event.
    #[derive(Debug)]
    struct Uses(Ground);

    impl Observer for Uses {
        fn event(&self, event: &Event<'_>) {
            if let Event::PolicyAllowed { .. } = event {
                block_on(self.0.envelope.encrypt(&context("acme"), Aad::empty(), b"x")).unwrap();
            }
        }
    }

    let inner = Ground::new(&Rules::open(), PolicyOptions::default());
    let counts = inner.rules.clone();
    let options = PolicyOptions::default().report_cached_allows(1);
    let outer = Ground::with(&Rules::open(), options, |builder| builder.observer(Uses(inner)));
    for _ in 0..5 {
        block_on(outer.envelope.encrypt(&context("acme"), Aad::empty(), b"x")).unwrap();
    }
    assert_eq!(counts.count(), 1);
    outer.rules.answer(|_| Ok(Decision::deny(["no"])));
    outer.rules.reload();
    assert!(block_on(outer.envelope.encrypt(&context("acme"), Aad::empty(), b"x")).is_err());
}

/// Counts reported allows.
#[derive(Debug, Default)]
struct Allows(Arc<Mutex<usize>>);

impl Observer for Allows {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::PolicyAllowed { elapsed: None, .. }) {
            *self.0.lock().unwrap() += 1;
        }
    }
}

#[test]
fn cached_allows_are_reported_as_often_as_set_also_with_many_contexts() {
    let counted = Arc::new(Mutex::new(0));
    let observer = Allows(counted.clone());
    let options = PolicyOptions::default().report_cached_allows(5);
    let ground = Ground::with(&Rules::open(), options, |builder| builder.observer(observer));
    let contexts: Vec<_> = (0..200).map(|n| context(&format!("tenant {n}"))).collect();
    for _ in 0..51 {
        for context in &contexts {
            block_on(ground.envelope.encrypt(context, Aad::empty(), b"x")).unwrap();
        }
    }
    // 200 contexts, 50 uses each, every fifth: 2,000.
    let count = *counted.lock().unwrap();
    assert!(count >= 1000, "{count} of 2,000");
}
