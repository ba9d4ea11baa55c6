//! What every fault is held to: class, tries, what is cached, the grace, the breaker, the recovery.

use std::time::Duration;

use waxseal::{
    Aad, BreakerState, CallBudget, CallPolicy, Envelope, ErrorKind, Limits, ManualClock,
};
use waxseal_testing::support::context;

use crate::{Ground, TRIES, patient};

use ErrorKind::{Invalid, Misconfigured, Throttled, Unavailable};

const MAX_AGE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(3600);

pub(crate) struct Case {
    /// As in the docs.
    pub(crate) name: &'static str,
    pub(crate) kind: ErrorKind,
    /// No answer comes, so we are not patient.
    pub(crate) is_slow: bool,
    /// Requests to Cloud KMS for one cold read; `None` if they never get there.
    pub(crate) requests: Option<usize>,
    pub(crate) begin: fn(&Ground),
    pub(crate) end: fn(&Ground),
}

impl Case {
    pub(crate) fn new(
        name: &'static str,
        kind: ErrorKind,
        begin: fn(&Ground),
        end: fn(&Ground),
    ) -> Self {
        let is_retried = matches!(kind, Unavailable | Throttled);
        let requests = Some(if is_retried { TRIES } else { 1 });
        Self { name, kind, is_slow: false, requests, begin, end }
    }
}

async fn envelope(ground: &Ground, clock: &ManualClock, policy: CallPolicy) -> Envelope {
    let limits = Limits::default()
        .max_age(MAX_AGE)
        .refresh_after(MAX_AGE - Duration::from_secs(1))
        .stale_if_error_reading(GRACE)
        .denial_ttl(Duration::ZERO);
    // The default budget is shared by all tests of this process.
    let budget = CallBudget::new(10_000, 64).unwrap();
    let kek = ground.builder(&ground.key).call_budget(budget).build().await.unwrap();
    // The first token and connection take a while on a busy machine.
    kek.read_key().await.unwrap();
    let builder = Envelope::builder().wrap_with(kek).limits(limits);
    builder.call_policy(policy).clock(clock.clone()).build().unwrap()
}

pub(crate) async fn met(ground: Ground, case: Case) {
    let Case { name, kind, is_slow, requests, begin, end } = case;
    let policy = if is_slow { patient().timeout(Duration::from_secs(1)) } else { patient() };
    let clock = ManualClock::new();
    let (alice, bob) = (context("alice"), context("bob"));
    let writer = envelope(&ground, &clock, policy).await;
    let cold = writer.encrypt(&alice, Aad::empty(), b"cold").await.unwrap();
    let warm = writer.encrypt(&bob, Aad::empty(), b"warm").await.unwrap();
    let reader = envelope(&ground, &clock, policy).await;
    reader.decrypt(&bob, Aad::empty(), &warm).await.unwrap();
    let guarded = envelope(&ground, &clock, policy.tries(1).breaker_failures(3)).await;
    let before = ground.front.arrived("decrypt");
    begin(&ground);

    let error = reader.decrypt(&alice, Aad::empty(), &cold).await.err();
    let error = error.unwrap_or_else(|| panic!("{name}: no error"));
    assert_eq!(error.kind(), kind, "{name}: {error}");
    if let Some(requests) = requests {
        assert_eq!(ground.front.arrived("decrypt") - before, requests, "{name}: tries");
    }
    if kind != Invalid {
        let error = reader.encrypt(&context("carol"), Aad::empty(), b"text").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}, writing: {error}");
    }
    assert_eq!(
        &*reader.decrypt(&bob, Aad::empty(), &warm).await.unwrap(),
        b"warm",
        "{name}: what is at hand"
    );
    clock.advance(2 * MAX_AGE);
    let late = reader.decrypt(&bob, Aad::empty(), &warm).await;
    match kind {
        Unavailable | Throttled => assert_eq!(&*late.unwrap(), b"warm", "{name}: within the grace"),
        _ => assert_eq!(late.unwrap_err().kind(), kind, "{name}: no grace"),
    }
    for _ in 0..5 {
        let error = guarded.decrypt(&alice, Aad::empty(), &cold).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        clock.advance(Duration::from_millis(100));
    }
    let state = |envelope: &Envelope| envelope.statistics().keks[0].breaker;
    let opens = matches!(kind, Unavailable | Misconfigured) && !name.starts_with("a proxy");
    assert_eq!(
        state(&guarded) != BreakerState::Closed,
        opens,
        "{name}: the breaker is {:?}",
        state(&guarded)
    );

    end(&ground);
    let recovered = reader.decrypt(&alice, Aad::empty(), &cold).await;
    assert_eq!(
        recovered.as_deref().unwrap_or_else(|error| panic!("{name}: {error}")),
        b"cold",
        "{name}"
    );
    assert_eq!(&*reader.decrypt(&bob, Aad::empty(), &warm).await.unwrap(), b"warm", "{name}");
    reader.encrypt(&context("carol"), Aad::empty(), b"text").await.unwrap();
    clock.advance(Duration::from_secs(1));
    assert_eq!(
        &*guarded.decrypt(&alice, Aad::empty(), &cold).await.unwrap(),
        b"cold",
        "{name}: the probe"
    );
    assert_eq!(state(&guarded), BreakerState::Closed, "{name}");
}

/// The rows of a table of faults below `title` in a page: name and class.
pub(crate) fn shown(page: &'static str, title: &str) -> Vec<(&'static str, &'static str)> {
    let section = page.split(title).nth(1).unwrap_or_else(|| panic!("no {title}"));
    let table = section.split("| fault | class |\n|---|---|\n").nth(1).unwrap();
    let rows = table.lines().map_while(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.map(|row| row.split_once(" | ").unwrap()).collect()
}

pub(crate) fn in_force(cases: Vec<Case>) -> Vec<(&'static str, String)> {
    let class = |kind: ErrorKind| format!("{kind:?}").to_lowercase();
    cases.into_iter().map(|case| (case.name, class(case.kind))).collect()
}

pub(crate) fn assert_shown(shown: Vec<(&'static str, &'static str)>, cases: Vec<Case>) {
    let in_force = in_force(cases);
    let in_force: Vec<_> = in_force.iter().map(|(name, class)| (*name, class.as_str())).collect();
    assert_eq!(shown, in_force);
}
