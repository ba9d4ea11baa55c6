//! Random steps of what *other people* do: several lists of wrapped keys for one DEK, two KEKs with
//! outages and denials of their own, callers that give up at every await, observers that panic,
//! runtimes that end, revocations in the middle of calls, answers that are seen late. Checked
//! against rules that are simple because they use nothing but what the KEKs were asked and
//! answered.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use waxseal_testing::support;

use support::stage::{entries_of, with_entries};
use support::{Random, block_on, context};
use waxseal::kek::KekErrorClass::{self, Denied, Invalid, Misconfigured, Throttled, Unavailable};
use waxseal::kek::local::LocalKek;
use waxseal::kek::{BoxFuture, Health, KekError, KekProvider, UnwrappedDek};
use waxseal::{
    Aad, CallPolicy, Dek, EncryptionContext, Envelope, Error, ErrorKind, Event, KekId, Limits,
    ManualClock, Observer, Runtime, WrappedDek,
};

/// Of each run.
const STEPS: u64 = if cfg!(debug_assertions) { 150_000 } else { 500_000 };
const MAX_AGE: u64 = 100_000;
const REFRESH_AFTER: u64 = 80_000;
const GRACE: u64 = 400_000;
const REFUSE_FOR: u64 = 5_000;
/// The retry interval, and the deadline of a call.
const KNOWN_FOR: u64 = 1_000 + 5_000;

const CONTEXTS: usize = 2;
/// By KEK: which of them a list of wrapped keys names. The last two are different lists of one KEK.
const LISTS: [&[usize]; 5] = [&[0], &[1], &[0, 1], &[0], &[1]];

/// One call to a KEK that was answered.
#[derive(Clone, Copy, Debug)]
struct Answer {
    kek: usize,
    context: usize,
    asked_at: u64,
    /// In the order of calls and revocations.
    asked: u64,
    at: u64,
    failure: Option<KekErrorClass>,
}

/// What the world does, and what was seen of it.
#[derive(Debug)]
struct World {
    random: Random,
    now: u64,
    order: u64,
    failures: [Option<KekErrorClass>; 2],
    hangs: [bool; 2],
    /// Of the present step.
    answers: Vec<Answer>,
    /// What somebody revokes in the middle of a call.
    revokes: Option<usize>,
    /// It was done.
    revoked: bool,
    panics: bool,
    runtime_works: bool,
    /// When a call was last begun that is never answered: for a while others join it.
    hung_at: Option<u64>,
}

#[derive(Clone, Debug)]
struct Shared(Arc<(Mutex<World>, ManualClock, OnceLock<Used>)>);

type Used = (Envelope, Vec<EncryptionContext>);

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn advance(&self, ms: u64) {
        self.0.1.advance(Duration::from_millis(ms));
        self.world().now += ms;
    }
}

/// Polled again a few times before it continues: each time a caller may give up.
async fn pause(times: u64) {
    let mut left = times;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[derive(Debug)]
struct Judge {
    number: usize,
    kek: LocalKek,
    shared: Shared,
}

impl Judge {
    async fn answer(&self, context: &EncryptionContext) -> Result<(), KekError> {
        let of = context.get("tenant").unwrap().parse::<usize>().unwrap();
        let (asked_at, asked, pauses) = {
            let mut world = self.shared.world();
            world.order += 1;
            (world.now, world.order, world.random.below(3))
        };
        pause(pauses).await;
        let hangs = {
            let mut world = self.shared.world();
            let hangs = world.hangs[self.number];
            world.hung_at = if hangs { Some(world.now) } else { world.hung_at };
            hangs
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        let revoked = {
            let mut world = self.shared.world();
            let revoked = world.revokes;
            world.revoked |= revoked.is_some();
            // Others are revoked whenever somebody asks; its own context once, or the call would
            // never end.
            world.revokes = revoked.filter(|revoked| *revoked != of);
            revoked
        };
        if let (Some(revoked), Some((envelope, contexts))) = (revoked, self.shared.0.2.get()) {
            envelope.evict_context(&contexts[revoked]);
            self.shared.world().order += 1;
        }
        let late = { self.shared.world().random.below(400) };
        if late < 2 {
            // The machine slept, or the task was not polled.
            self.shared.advance([3_000, 150_000][usize::try_from(late).unwrap()]);
        }
        let mut world = self.shared.world();
        let (at, failure) = (world.now, world.failures[self.number]);
        world.answers.push(Answer { kek: self.number, context: of, asked_at, asked, at, failure });
        failure.map_or(Ok(()), |class| Err(KekError::new(class, "by script")))
    }
}

impl KekProvider for Judge {
    fn id(&self) -> &KekId {
        self.kek.id()
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        self.kek.wrap(context, dek)
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            self.answer(context).await?;
            self.kek.unwrap(context, wrapped).await
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.kek.health()
    }
}

#[derive(Debug)]
struct SometimesPanics(Shared);

impl Observer for SometimesPanics {
    fn event(&self, _: &Event<'_>) {
        let mut world = self.0.world();
        if world.panics && world.random.one_in(20) {
            drop(world);
            panic!("a bug in an observer");
        }
    }
}

/// Works, or has ended. Time does not pass in it.
#[derive(Debug)]
struct SometimesEnds(Shared);

impl Runtime for SometimesEnds {
    fn spawn(&self, mut future: BoxFuture<'static, ()>) {
        let works = self.0.world().runtime_works;
        for _ in 0..if works { 12 } else { 0 } {
            if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                return;
            }
        }
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// What the rules know of one context.
#[derive(Clone, Default, Debug)]
struct Known {
    /// The latest yes of each KEK, and when it was asked for.
    yes: [Option<Answer>; 2],
    /// What came after that yes: the latest outage, and whether the KEK denied.
    outage_at: [Option<u64>; 2],
    denied: [bool; 2],
    /// Everything asked before was revoked.
    revoked: u64,
    /// Until when a list is refused without asking.
    refused_until: [u64; LISTS.len()],
    /// When the DEK that is cached for sure was asked for.
    cached: Option<u64>,
}

struct Model {
    shared: Shared,
    envelope: Envelope,
    contexts: Vec<EncryptionContext>,
    /// By context and list.
    messages: Vec<Vec<Vec<u8>>>,
    known: Vec<Known>,
    kek_ids: [KekId; 2],
    kek_revoked: [bool; 2],
    served_in_grace: u64,
    given_up: u64,
}

impl Model {
    fn new(seed: u64, with_runtime: bool) -> Self {
        let world = World {
            random: Random::new(seed),
            now: 0,
            order: 0,
            failures: [None; 2],
            hangs: [false; 2],
            answers: Vec::new(),
            revokes: None,
            revoked: false,
            panics: true,
            runtime_works: true,
            hung_at: None,
        };
        let clock = ManualClock::new();
        let shared = Shared(Arc::new((Mutex::new(world), clock.clone(), OnceLock::new())));
        let keks = [support::local("a"), support::local("b")];
        let contexts: Vec<_> = (0..CONTEXTS).map(|i| context(&format!("{i}"))).collect();
        let elsewhere = Envelope::builder()
            .wrap_with(keks[0].clone())
            .wrap_with(keks[1].clone())
            .build()
            .unwrap();
        let junk = |id: &str| WrappedDek::new(KekId::new(id).unwrap(), vec![7; 76]).unwrap();
        let messages = contexts.iter().map(|context| {
            let sealed = block_on(elsewhere.encrypt(context, Aad::empty(), b"payload")).unwrap();
            let entries = entries_of(&sealed);
            let list = |(number, keks): (usize, &&[usize])| {
                let named = keks.iter().map(|kek| entries[*kek].clone());
                let extra = (number >= 3).then(|| junk("local:somebody"));
                with_entries(&sealed, named.chain(extra))
            };
            LISTS.iter().enumerate().map(list).collect()
        });
        let messages = messages.collect();
        let limits = Limits::default()
            .max_age(Duration::from_millis(MAX_AGE))
            .refresh_after(Duration::from_millis(REFRESH_AFTER))
            .stale_if_error_reading(Duration::from_millis(GRACE))
            .denial_ttl(Duration::from_millis(REFUSE_FOR));
        let judge =
            |number: usize| Judge { number, kek: keks[number].clone(), shared: shared.clone() };
        let builder = Envelope::builder()
            .unwrap_with(judge(0))
            .unwrap_with(judge(1))
            .limits(limits)
            .clock(clock);
        let builder = builder.observer(SometimesPanics(shared.clone()));
        let policy = CallPolicy::default().breaker_failures(1000);
        let builder = match with_runtime {
            true => builder
                .runtime(SometimesEnds(shared.clone()))
                .call_budget(waxseal::CallBudget::new(1_000_000, 65_536).unwrap())
                .call_policy(policy.tries(1).hedge_percentile(100)),
            false => builder.call_policy(policy),
        };
        let envelope = builder.build().unwrap();
        shared.0.2.set((envelope.clone(), contexts.clone())).unwrap();
        let kek_ids = [keks[0].id().clone(), keks[1].id().clone()];
        Self {
            shared,
            envelope,
            known: vec![Known::default(); contexts.len()],
            contexts,
            messages,
            kek_ids,
            kek_revoked: [false; 2],
            served_in_grace: 0,
            given_up: 0,
        }
    }

    /// One read by one list, abandoned after this many polls.
    fn read(&mut self, of: usize, list: usize, polls: Option<u64>, what: &str) {
        let (began, hangs) = {
            let mut world = self.shared.world();
            world.answers.clear();
            (world.now, world.hangs)
        };
        let message = &self.messages[of][list];
        let result: Option<Result<(), Error>> = catch_unwind(AssertUnwindSafe(|| {
            let call = self.envelope.decrypt(&self.contexts[of], Aad::empty(), message);
            let mut call = pin!(call);
            let mut cx = Context::from_waker(Waker::noop());
            (0..polls.unwrap_or(40)).find_map(|_| match call.as_mut().poll(&mut cx) {
                Poll::Ready(result) => {
                    Some(result.map(|plaintext| assert_eq!(&*plaintext, b"payload")))
                }
                Poll::Pending => None,
            })
        }))
        .unwrap_or_else(|_| panic!("{what}: panicked"));
        let before = self.known[of].clone();
        self.learn(of, list, result.as_ref());
        let (now, failures) = {
            let world = self.shared.world();
            (world.now, world.failures)
        };
        let known = &self.known[of];
        let what = format!("{what}, at {began}..{now}, {failures:?}, {known:?}: {result:?}");
        match result {
            None => {
                self.given_up += 1;
                let hung = self.shared.world().hung_at.is_some_and(|at| now - at < 1_000);
                assert!(polls.is_some() || hangs.contains(&true) || hung, "{what}: never ready");
            }
            Some(Ok(())) => {
                // A renewal in the background may have learned more after the message was served.
                let justified = self
                    .is_justified(&self.known[of], now)
                    .or_else(|why| self.is_justified(&before, began).map_err(|_| why));
                let in_grace = justified.unwrap_or_else(|why| panic!("{what}: served, but {why}"));
                self.served_in_grace += u64::from(in_grace);
            }
            Some(Err(error)) => {
                let usable = |kek: &usize| {
                    failures[*kek].is_none() && !self.kek_revoked[*kek] && !hangs[*kek]
                };
                let is_refused = began < known.refused_until[list];
                assert!(
                    is_refused || !LISTS[list].iter().any(usable),
                    "{what}: failed though a KEK works"
                );
                assert_ne!(error.kind(), ErrorKind::Expired, "{what}");
            }
        }
    }

    /// Takes down what the KEKs answered in this step.
    fn learn(&mut self, of: usize, list: usize, result: Option<&Result<(), Error>>) {
        let (answers, now) = {
            let world = self.shared.world();
            (world.answers.clone(), world.now)
        };
        for answer in &answers {
            let known = &mut self.known[answer.context];
            let kek = answer.kek;
            // Whether the envelope saw it is not known of a call that was given up.
            let is_seen = result.is_some();
            match answer.failure {
                None => {
                    known.yes[kek] = Some(*answer);
                    known.denied[kek] = false;
                    if is_seen {
                        known.outage_at[kek] = None;
                    }
                }
                Some(Unavailable | Throttled) => known.outage_at[kek] = Some(answer.at),
                Some(class) if is_seen => {
                    known.outage_at[kek] = None;
                    known.denied[kek] |= class == Denied;
                }
                Some(_) => {}
            }
        }
        let known = &mut self.known[of];
        let last = |kek: &usize| {
            answers.iter().rev().find(|answer| answer.kek == *kek).and_then(|answer| answer.failure)
        };
        // Nothing is left of a DEK if every KEK of the list denied it.
        if LISTS[list].iter().all(|kek| last(kek) == Some(Denied)) {
            LISTS[list].iter().for_each(|kek| known.yes[*kek] = None);
            known.cached = None;
        }
        let refuses = |class: Option<KekErrorClass>| matches!(class, Some(Denied | Invalid));
        let revoked = &self.kek_revoked;
        if LISTS[list].iter().all(|kek| refuses(last(kek)) || revoked[*kek]) {
            // At once for who asked; a renewal in the background may be on its way still.
            known.refused_until[list] = known.refused_until[list].max(now + REFUSE_FOR);
        }
        if let Some(Ok(())) = result {
            let yes = answers
                .iter()
                .rev()
                .find(|answer| answer.context == of && answer.failure.is_none());
            if let Some(yes) = yes.filter(|yes| yes.asked > known.revoked) {
                known.cached = Some(yes.asked_at);
            }
        }
        // What is cached for sure costs no call.
        if known.cached.is_some_and(|at| {
            now - at < REFRESH_AFTER * 9 / 10
                && !answers.iter().any(|a| a.context == of && a.asked_at == at)
        }) {
            assert!(answers.is_empty(), "asked about a fresh DEK: {answers:?} {known:?}");
        }
    }

    /// Whether a read at `now` may be served, and whether only by the grace.
    fn is_justified(&self, known: &Known, now: u64) -> Result<bool, String> {
        let mut why = "no KEK said yes".to_owned();
        let mut in_grace = false;
        for kek in 0..2 {
            let Some(yes) =
                known.yes[kek].filter(|yes| yes.asked > known.revoked && !self.kek_revoked[kek])
            else {
                continue;
            };
            let answered_now =
                self.shared.world().answers.iter().any(|answer| answer.asked == yes.asked);
            if answered_now || now - yes.asked_at < MAX_AGE {
                return Ok(false);
            }
            let outage_is_known = known.outage_at[kek].is_some_and(|at| now < at + KNOWN_FOR);
            if now - yes.asked_at < MAX_AGE + GRACE && outage_is_known && !known.denied[kek] {
                in_grace = true;
            }
            why = format!(
                "KEK {kek} said yes at {}, its outage is known {outage_is_known}",
                yes.asked_at
            );
        }
        if in_grace { Ok(true) } else { Err(why) }
    }

    fn step(&mut self, number: u64) {
        let (kind, a, b, c) = {
            let mut world = self.shared.world();
            world.runtime_works = !world.random.one_in(3);
            (
                world.random.below(1000),
                world.random.index(CONTEXTS),
                world.random.index(LISTS.len()),
                world.random.below(40),
            )
        };
        let what = format!("step {number}: {kind}");
        match kind {
            0..=779 => {
                // One in ten gives up, at any await.
                let polls = (c < 4).then_some(c + 1);
                // And during one in fifty, another context, or its own, is revoked.
                if kind < 16 {
                    let mut world = self.shared.world();
                    (world.revokes, world.revoked) = (Some(usize::from(c % 2 == 0) ^ a), false);
                }
                let before = self.shared.world().order;
                self.read(a, b, polls, &what);
                let mut world = self.shared.world();
                world.revokes = None;
                if kind < 16 && world.revoked {
                    let revoked = usize::from(c % 2 == 0) ^ a;
                    // Somewhere in this step: what was asked before it does not count any more,
                    // what came after it may.
                    let known = &mut self.known[revoked];
                    known.revoked = known.revoked.max(before);
                    known.cached = None;
                }
            }
            780..=899 => {
                let far = self.shared.world().random.one_in(12);
                let by = self.shared.world().random.below(if far { 300_000 } else { 4_000 });
                self.shared.advance(by);
            }
            900..=979 => {
                let mut world = self.shared.world();
                let classes = [
                    None,
                    None,
                    None,
                    Some(Unavailable),
                    Some(Unavailable),
                    Some(Throttled),
                    Some(Denied),
                    Some(Invalid),
                    Some(Misconfigured),
                ];
                let (kek, class) = (world.random.index(2), world.random.index(classes.len()));
                world.failures[kek] = classes[class];
                world.hangs[kek] = world.random.one_in(12);
            }
            980..=985 => {
                self.envelope.evict_context(&self.contexts[a]);
                let order = self.shared.world().order;
                self.known[a].revoked = order;
                self.known[a].cached = None;
            }
            986..=989 => {
                let kek = a % 2;
                self.envelope.revoke_kek(&self.kek_ids[kek]);
                self.kek_revoked[kek] = true;
                for known in &mut self.known {
                    known.yes[kek] = None;
                    known.cached = None;
                }
            }
            990..=997 => {
                for kek in 0..2 {
                    self.envelope.reinstate_kek(&self.kek_ids[kek]);
                    self.kek_revoked[kek] = false;
                }
                self.known.iter_mut().for_each(|known| known.refused_until = Default::default());
            }
            _ => {
                self.envelope.evict_all();
                let order = self.shared.world().order;
                for known in &mut self.known {
                    (known.revoked, known.cached, known.refused_until) =
                        (order, None, Default::default());
                }
            }
        }
    }
}

fn run(seed: u64, with_runtime: bool, steps: u64) {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    if RUNS.fetch_add(1, SeqCst) == 0 {
        // The observers' panics are not worth a backtrace each.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload_as_str() != Some("a bug in an observer") {
                hook(info);
            }
        }));
    }
    let mut model = Model::new(seed, with_runtime);
    for number in 0..steps {
        model.step(number);
    }
    assert!(
        model.served_in_grace > steps / 1000,
        "only {} reads in the grace",
        model.served_in_grace
    );
    assert!(model.given_up > steps / 1000, "only {} callers gave up", model.given_up);
    assert!(model.envelope.statistics().observer_panics > steps / 10_000);
}

#[test]
fn other_people_prolong_nothing_and_break_nothing_without_a_runtime() {
    run(0x5EED, false, STEPS);
}

#[test]
fn other_people_prolong_nothing_and_break_nothing_with_a_runtime_that_ends_now_and_then() {
    run(0x0DD5, true, STEPS);
}
