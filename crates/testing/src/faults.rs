//! What every fault of every provider is held to, and the one form in which their pages show it.
//!
//! A provider's tests list faults, in the order of the page. [`met`] brings one about under
//! envelopes and looks at everything that the table says. [`assert_shown`] compares the table.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use waxseal::kek::KekProvider;
use waxseal::{
    Aad, BreakerState, CallPolicy, EncryptionContext, Envelope, ErrorKind, KekStatistics, Limits,
    ManualClock,
};

use crate::support::context;

const MAX_AGE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(3600);
/// After this, the library assumes an outage and may serve DEKs past their age.
const MAX_WAIT: Duration = Duration::from_millis(250);
const HEAD: &str =
    "| fault | class | tries | cached | past `max_age`, within `stale_if_error` | recovery |";
const RULE: &str = "|---|---|---|---|---|---|";

/// A service, and what stands between it and a provider.
pub trait Stage: Sized + 'static {
    /// A provider for the key, as a separate process would have it.
    fn kek(&self) -> impl Future<Output = Arc<dyn KekProvider>>;

    /// How many requests to unwrap came to the service. `None` if it cannot tell.
    fn arrived(&self) -> Option<usize> {
        None
    }

    /// How calls are made. Everything that is not about time takes the time that it takes.
    fn policy(&self, is_slow: bool) -> CallPolicy {
        let timeout = if is_slow { Duration::from_secs(1) } else { Duration::from_secs(20) };
        let policy = CallPolicy::default().timeout(timeout).deadline(Duration::from_secs(60));
        policy.tries(self.tries()).backoff(Duration::from_millis(1)).breaker_failures(1000)
    }

    /// How often a request is tried: "all" in the table.
    fn tries(&self) -> u32 {
        3
    }

    /// The service, or what is between, is to be less patient from now on: a fault is slow.
    fn hurry(&self) {}

    /// The opposite.
    fn take_time(&self) {}

    /// Whether the first request after a fault's end has to succeed, or one that follows soon.
    fn recovers_at_once(&self) -> bool {
        true
    }
}

/// What somebody does at the service, which may take a while.
pub type Doing<'s> = Pin<Box<dyn Future<Output = ()> + 's>>;

type Step<S> = Box<dyn for<'s> Fn(&'s S) -> Doing<'s>>;

fn step<S>(doing: impl for<'s> Fn(&'s S) -> Doing<'s> + 'static) -> Step<S> {
    Box::new(doing)
}

fn nothing<'s>() -> Doing<'s> {
    Box::pin(std::future::ready(()))
}

/// A row of the table.
pub struct Fault<S> {
    name: &'static str,
    kind: ErrorKind,
    recovery: &'static str,
    is_slow: bool,
    is_fresh: bool,
    is_tried_once: bool,
    is_seen_there: bool,
    opens_breaker: bool,
    breaks_connection: bool,
    begin: Step<S>,
    end: Step<S>,
}

impl<S: Stage> Fault<S> {
    /// With steps that wait for nothing.
    pub fn new(name: &'static str, kind: ErrorKind, begin: fn(&S), end: fn(&S)) -> Self {
        Self::with(
            name,
            kind,
            move |stage| {
                begin(stage);
                nothing()
            },
            move |stage| {
                end(stage);
                nothing()
            },
        )
    }

    /// With steps that may wait.
    pub fn with(
        name: &'static str,
        kind: ErrorKind,
        begin: impl for<'s> Fn(&'s S) -> Doing<'s> + 'static,
        end: impl for<'s> Fn(&'s S) -> Doing<'s> + 'static,
    ) -> Self {
        Self {
            name,
            kind,
            recovery: "by itself",
            is_slow: false,
            is_fresh: false,
            is_tried_once: !is_outage(kind),
            is_seen_there: true,
            opens_breaker: matches!(kind, ErrorKind::Unavailable | ErrorKind::Misconfigured),
            breaks_connection: false,
            begin: step(begin),
            end: step(end),
        }
    }

    /// No answer comes, so each try has one second.
    pub fn slow(self) -> Self {
        Self { is_slow: true, ..self }
    }

    /// It is met by a provider that has to log in, or to connect.
    pub fn fresh(self) -> Self {
        Self { is_fresh: true, ..self }
    }

    /// The provider knows the answer, so there is no other try.
    pub fn tried_once(self) -> Self {
        Self { is_tried_once: true, ..self }
    }

    /// Requests do not get to the service, or more of them than there are tries.
    pub fn not_counted_there(self) -> Self {
        Self { is_seen_there: false, ..self }
    }

    /// It says nothing about the service.
    pub fn leaves_breaker_closed(self) -> Self {
        Self { opens_breaker: false, ..self }
    }

    /// The connection that was open may break under a request first, which is an outage of one try.
    pub fn breaks_connection(self) -> Self {
        Self { breaks_connection: true, ..self }
    }

    /// What somebody has to do in addition to ending it.
    pub fn recovers(self, recovery: &'static str) -> Self {
        Self { recovery, ..self }
    }

    /// What else is done to end it.
    pub fn and_then(mut self, more: fn(&S)) -> Self
    where
        S: 'static,
    {
        let end = std::mem::replace(&mut self.end, step(|_| nothing()));
        self.end = step(move |stage| {
            let ending = end(stage);
            Box::pin(async move {
                ending.await;
                more(stage);
            })
        });
        self
    }

    /// As the page shows it.
    fn row(&self) -> String {
        let class = self.kind.as_str();
        let tries = if self.is_tried_once { "1" } else { "all" };
        let late = if is_outage(self.kind) { "served" } else { "refused" };
        format!("| {} | {class} | {tries} | served | {late} | {} |", self.name, self.recovery)
    }
}

/// What is ridden out.
fn is_outage(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Throttled)
}

/// The table below the heading `title` of a page shows these faults, in order, and no others. A
/// page may have further columns after the six.
pub fn assert_shown<S: Stage>(page: &str, title: &str, faults: &[Fault<S>]) {
    let section = page.split(&format!("{title}\n")).nth(1).unwrap_or_else(|| panic!("no {title}"));
    let section = section.split("\n## ").next().unwrap();
    let begin = HEAD.trim_end_matches('|');
    let table = section.lines().skip_while(|line| !line.starts_with(begin));
    let table: Vec<_> = table.take_while(|line| line.starts_with('|')).collect();
    let columns = HEAD.matches('|').count();
    let six = |line: &&str| line.split_inclusive('|').take(columns).collect::<String>();
    let rows = faults.iter().map(Fault::row);
    let in_force: Vec<_> = [HEAD.to_owned(), RULE.to_owned()].into_iter().chain(rows).collect();
    let shown: Vec<_> = table.iter().map(six).collect();
    assert!(shown == in_force, "{title}: the page has to show\n\n{}\n", in_force.join("\n"));
    let wide = table[0].matches('|').count();
    assert!(table.iter().all(|line| line.matches('|').count() == wide), "{title}: columns");
}

fn envelope(kek: &Arc<dyn KekProvider>, clock: &ManualClock, policy: CallPolicy) -> Envelope {
    let limits = Limits::default()
        .max_age(MAX_AGE)
        .refresh_after(MAX_AGE - Duration::from_secs(1))
        .stale_if_error_reading(GRACE)
        .denial_ttl(Duration::ZERO);
    let builder = Envelope::builder().wrap_with(kek.clone()).limits(limits);
    builder.call_policy(policy).clock(clock.clone()).build().unwrap()
}

fn of_kek(envelope: &Envelope) -> KekStatistics {
    envelope.statistics().keks[0].clone()
}

async fn opens(envelope: &Envelope, context: &EncryptionContext, sealed: &[u8], text: &[u8]) {
    let opened = envelope.decrypt(context, Aad::empty(), sealed).await;
    assert_eq!(opened.as_deref().unwrap_or_else(|error| panic!("{error}")), text);
}

/// Causes the fault: class, tries, what is cached, what is stale, the breaker, the recovery.
pub async fn met<S: Stage>(stage: &S, fault: Fault<S>) {
    let Fault { name, kind, is_slow, .. } = fault;
    let policy = stage.policy(is_slow);
    let clock = ManualClock::new();
    let (alice, bob, carol) = (context("alice"), context("bob"), context("carol"));
    let writer = envelope(&stage.kek().await, &clock, policy);
    let cold = writer.encrypt(&alice, Aad::empty(), b"cold").await.unwrap();
    let warm = writer.encrypt(&bob, Aad::empty(), b"warm").await.unwrap();
    let kek = stage.kek().await;
    let reader = envelope(&kek, &clock, policy);
    opens(&reader, &bob, &warm, b"warm").await;
    let other_kek = stage.kek().await;
    let guarded = envelope(&other_kek, &clock, policy.tries(1).breaker_failures(3));
    // Its login, if it needs one, is no part of the fault.
    opens(&guarded, &bob, &warm, b"warm").await;
    if fault.is_fresh {
        writer.close().await;
        kek.close().await;
        other_kek.close().await;
    }
    let (made, arrived) = (of_kek(&reader).calls, stage.arrived());
    (fault.begin)(stage).await;
    if is_slow {
        stage.hurry();
    }

    let error = reader.decrypt(&alice, Aad::empty(), &cold).await.err();
    let error = error.unwrap_or_else(|| panic!("{name}: no error"));
    println!("{name}: {error}");
    assert_eq!(error.kind(), kind, "{name}: {error}");
    let tries = if fault.is_tried_once { 1 } else { stage.tries() };
    let made = of_kek(&reader).calls - made;
    let broken = u64::from(fault.breaks_connection && made > u64::from(tries));
    assert_eq!(made, u64::from(tries) + broken, "{name}: tries");
    if let (Some(before), Some(after), true) = (arrived, stage.arrived(), fault.is_seen_there) {
        assert_eq!(after - before, usize::try_from(tries).unwrap(), "{name}: requests");
    }
    if kind != ErrorKind::Invalid {
        let error = reader.encrypt(&carol, Aad::empty(), b"text").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}, writing: {error}");
    }
    // Nobody has asked about this DEK yet.
    opens(&reader, &bob, &warm, b"warm").await;
    clock.advance(2 * MAX_AGE);
    let asked = Instant::now();
    let mut late = reader.decrypt(&bob, Aad::empty(), &warm).await;
    // On a busy machine the answer may take longer, so that an outage is assumed. It is over once
    // the answer comes.
    let is_assumed = !is_outage(kind) && asked.elapsed() >= MAX_WAIT;
    while is_assumed && late.is_ok() && asked.elapsed().as_secs() < 60 {
        pause().await;
        late = reader.decrypt(&bob, Aad::empty(), &warm).await;
    }
    match is_outage(kind) {
        true => assert_eq!(&*late.unwrap_or_else(|e| panic!("{name}: {e}")), b"warm"),
        false => {
            let late = late.err();
            let late = late.unwrap_or_else(|| panic!("{name}: served: {:?}", of_kek(&reader)));
            assert_eq!(late.kind(), kind, "{name}: no grace");
        }
    }
    for call in 0..5 {
        let error = guarded.decrypt(&alice, Aad::empty(), &cold).await.unwrap_err();
        let is_broken = fault.breaks_connection && call == 0 && is_outage(error.kind());
        assert!(error.kind() == kind || is_broken, "{name}: {error}");
        clock.advance(Duration::from_millis(100));
    }
    let breaker = of_kek(&guarded).breaker;
    let is_open = breaker != BreakerState::Closed;
    assert_eq!(is_open, fault.opens_breaker, "{name}: the breaker is {breaker:?}");

    (fault.end)(stage).await;
    stage.take_time();
    // Where a test waits for no answer, it waits for a second only. A busy machine may take longer.
    let may_wait = is_slow || !stage.recovers_at_once();
    let start = Instant::now();
    loop {
        match reader.decrypt(&alice, Aad::empty(), &cold).await {
            Ok(plaintext) => break assert_eq!(&*plaintext, b"cold", "{name}"),
            Err(error) => {
                let may_wait = may_wait && start.elapsed().as_secs() < 60;
                assert!(may_wait, "{name} does not pass: {error}");
            }
        }
        clock.advance(Duration::from_secs(1));
        pause().await;
    }
    opens(&reader, &bob, &warm, b"warm").await;
    reader.encrypt(&carol, Aad::empty(), b"text").await.unwrap();
    clock.advance(Duration::from_secs(1));
    while let Err(error) = guarded.decrypt(&alice, Aad::empty(), &cold).await {
        let may_wait = may_wait && start.elapsed().as_secs() < 60;
        assert!(may_wait, "{name}, the probe: {error}");
        clock.advance(Duration::from_secs(1));
        pause().await;
    }
    assert_eq!(of_kek(&guarded).breaker, BreakerState::Closed, "{name}");
}

/// A moment for the service to come back. On a separate thread: not every test has tokio's timers.
async fn pause() {
    let (mut begun, is_over) = (false, Arc::new(AtomicBool::new(false)));
    poll_fn(move |cx| {
        if is_over.load(Ordering::SeqCst) {
            return Poll::Ready(());
        }
        if !std::mem::replace(&mut begun, true) {
            let (waker, is_over) = (cx.waker().clone(), is_over.clone());
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                is_over.store(true, Ordering::SeqCst);
                waker.wake();
            });
        }
        Poll::Pending
    })
    .await;
}
