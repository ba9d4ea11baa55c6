//! Which outage prolongs a DEK, for how long it is known, and which call renews, despite other
//! callers, runtimes and forged messages.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use waxseal_testing::support;

use support::stage::{Stage, entries_of, kind, ms, secs, with_entries};
use support::{HookedKek, block_on, context};
use waxseal::kek::BoxFuture;
use waxseal::kek::KekErrorClass::{Denied, Throttled, Unavailable};
use waxseal::kek::local::LocalKek;
use waxseal::kek::scripted::{Act, ScriptedKek};
use waxseal::{
    Aad, CallPolicy, EncryptionContext, Envelope, Error, ErrorKind, KekId, Limits, ManualClock,
    Runtime, WrappedDek,
};

const DAY: Duration = Duration::from_secs(80_000);

fn with_grace() -> Limits {
    Limits::default().stale_if_error_reading(DAY).stale_if_error_writing(DAY)
}

/// An entry for a KEK that is not configured here.
fn junk(id: &str) -> WrappedDek {
    WrappedDek::new(KekId::new(id).unwrap(), vec![7; 76]).unwrap()
}

/// What a runtime does with the work that it is given.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Work {
    /// It has ended.
    IsDropped,
    /// Nothing drives it.
    IsLeftLying,
}

struct Idle(Work, Mutex<Vec<BoxFuture<'static, ()>>>);

impl Idle {
    fn new(work: Work) -> Self {
        Self(work, Mutex::default())
    }
}

impl Runtime for Idle {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        if self.0 == Work::IsLeftLying {
            self.1.lock().unwrap().push(future);
        }
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        support::Threads.sleep(duration)
    }
}

impl fmt::Debug for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Idle({:?})", self.0)
    }
}

/// Polls once, and gives up.
fn give_up<F: Future>(future: F) {
    assert!(pin!(future).as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

/// Long after the outage was last seen: asks again, and learns that the KEK denies.
fn learns_of_the_denial(stage: &Stage, writing: bool, what: &str) {
    stage.kek.fail_with(Denied);
    for _ in 0..7 {
        stage.clock.advance(secs(10_000));
        let result = if writing { stage.write() } else { stage.read() };
        assert_eq!(kind(result), ErrorKind::Denied, "{what}, writing {writing}");
    }
}

fn met_an_outage(stage: &Stage) {
    stage.read().unwrap();
    stage.write().unwrap();
    stage.clock.advance(secs(101));
    stage.kek.fail_with(Unavailable);
    stage.read().unwrap();
    stage.write().unwrap();
    stage.clock.advance(secs(2));
}

#[test]
fn a_caller_that_gives_up_its_renewal_leaves_it_to_the_next() {
    for writing in [false, true] {
        let stage = Stage::new(with_grace());
        met_an_outage(&stage);
        stage.kek.script([Act::Hang]);
        match writing {
            true => give_up(stage.envelope.encrypt(&stage.alice, Aad::empty(), b"x")),
            false => give_up(stage.envelope.decrypt(&stage.alice, Aad::empty(), &stage.sealed)),
        }
        learns_of_the_denial(&stage, writing, "a caller gave up");

        // And ahead of time: no caller waits at `max_age` for what another left undone.
        let stage = Stage::new(Limits::default());
        stage.read().unwrap();
        stage.write().unwrap();
        let calls = stage.calls();
        stage.clock.advance(secs(85));
        stage.kek.script([Act::Hang]);
        match writing {
            true => give_up(stage.envelope.encrypt(&stage.alice, Aad::empty(), b"x")),
            false => give_up(stage.envelope.decrypt(&stage.alice, Aad::empty(), &stage.sealed)),
        }
        stage.clock.advance(secs(1));
        if writing {
            stage.write().unwrap()
        } else {
            stage.read().unwrap()
        }
        let more = if writing { (calls.0, calls.1 + 2) } else { (calls.0 + 2, calls.1) };
        assert_eq!(stage.calls(), more, "writing {writing}");
    }
}

#[test]
fn a_runtime_that_has_ended_or_that_nobody_drives_prolongs_no_outage() {
    for work in [Work::IsDropped, Work::IsLeftLying] {
        for writing in [false, true] {
            let stage = Stage::with(with_grace(), |builder| builder.runtime(Idle::new(work)));
            met_an_outage(&stage);
            let result = if writing { stage.write() } else { stage.read() };
            result.unwrap();
            learns_of_the_denial(&stage, writing, &format!("{work:?}"));
        }
    }
}

#[test]
fn a_runtime_that_has_ended_leaves_renewals_ahead_of_time_to_the_callers() {
    let stage =
        Stage::with(Limits::default(), |builder| builder.runtime(Idle::new(Work::IsDropped)));
    stage.read().unwrap();
    stage.write().unwrap();
    stage.clock.advance(secs(85));
    stage.read().unwrap();
    stage.write().unwrap();
    assert_eq!(stage.calls(), (2, 2));
    // One that cannot wait leaves it to one that can, and does not try again for each message.
    stage.clock.advance(secs(85));
    for _ in 0..10 {
        stage.envelope.decrypt_cached(&stage.alice, Aad::empty(), &stage.sealed).unwrap().unwrap();
    }
    assert_eq!(stage.calls(), (2, 2));
}

#[test]
fn an_outage_is_known_for_a_retry_interval_and_the_time_of_a_call() {
    // A runtime that takes the renewal and does not begin it.
    let stage = Stage::with(with_grace(), |builder| {
        builder
            .runtime(Idle::new(Work::IsLeftLying))
            .call_policy(CallPolicy::default().deadline(secs(20)))
    });
    stage.read().unwrap();
    stage.clock.advance(secs(101));
    stage.kek.fail_with(Throttled);
    stage.read().unwrap();
    let calls = stage.calls();
    stage.clock.advance(ms(20_990));
    stage.read().unwrap();
    assert_eq!(stage.calls(), calls, "known for a second and the deadline");
    stage.clock.advance(ms(10));
    stage.read().unwrap();
    assert!(stage.calls() > calls, "and then the next caller asks");
}

#[test]
fn readers_with_other_wrapped_keys_renew_ahead_too() {
    let stage = Stage::new(Limits::default());
    // What a half-done rewrap leaves behind, or an entry that somebody added.
    let entries = || entries_of(&stage.sealed).into_iter().chain([junk("local:somebody")]);
    stage.read_by(entries()).unwrap();
    for round in 2..5 {
        stage.clock.advance(secs(85));
        for _ in 0..50 {
            stage.read().unwrap();
        }
        assert_eq!(stage.calls().0, round);
        let calls = stage.calls().0;
        stage.read_by(entries()).unwrap();
        assert_eq!(stage.calls().0, calls, "the renewed DEK serves all of them");
    }
}

#[test]
fn wrapped_keys_that_somebody_forged_delay_no_rightful_renewal() {
    let down = ScriptedKek::new("down").unwrap();
    down.fail_with(Unavailable);
    let stage = Stage::with(Limits::default(), |builder| {
        builder.unwrap_with(down.clone()).call_policy(CallPolicy::default().breaker_failures(1000))
    });
    stage.read().unwrap();
    stage.clock.advance(secs(85));
    // It names a KEK of ours that is down, so the question about it fails as in an outage.
    for _ in 0..3 {
        stage.read_by([junk("local:down")]).unwrap();
    }
    assert_eq!(
        (stage.calls().0, down.calls().unwraps),
        (1, 1),
        "it is tried once in a retry interval"
    );
    stage.read().unwrap();
    assert_eq!(stage.calls().0, 2, "the rightful reader renews at once");
}

#[test]
fn an_outage_that_only_other_wrapped_keys_met_is_not_known_for_those_that_vouched() {
    for denied in [false, true] {
        let stage = Stage::new(with_grace());
        let entries = || entries_of(&stage.sealed).into_iter().chain([junk("local:somebody")]);
        stage.read_by(entries()).unwrap();
        stage.clock.advance(secs(101));
        stage.kek.fail_with(Unavailable);
        // These keys name the wrapped key that vouched: it is its outage.
        stage.read().unwrap();
        stage.kek.fail_with(denied.then_some(Denied));
        stage.clock.advance(secs(10_000));
        assert_eq!(stage.read().is_ok(), !denied);
        assert_eq!(
            stage.read_by(entries()).is_ok(),
            !denied,
            "the DEK ended, by whichever keys it came"
        );
    }
}

/// A KEK that denies vouched for the DEK, and another one of the envelope is down.
struct Borrowed {
    denies: ScriptedKek,
    down: ScriptedKek,
    clock: ManualClock,
    envelope: Envelope,
    alice: EncryptionContext,
    sealed: Vec<u8>,
}

impl Borrowed {
    fn new(outage: impl FnOnce(&ScriptedKek), runtime: bool) -> Self {
        let (denies, down) =
            (ScriptedKek::new("denies").unwrap(), ScriptedKek::new("down").unwrap());
        let (clock, alice) = (ManualClock::new(), context("alice"));
        let elsewhere =
            Envelope::builder().wrap_with(denies.local().clone()).wrap_with(down.local().clone());
        let sealed =
            block_on(elsewhere.build().unwrap().encrypt(&alice, Aad::empty(), b"payload")).unwrap();
        let builder = Envelope::builder()
            .unwrap_with(denies.clone())
            .unwrap_with(down.clone())
            .clock(clock.clone());
        let builder = builder.limits(with_grace().max_age(secs(100)).denial_ttl(ms(0)));
        let policy = CallPolicy::default().breaker_failures(1000);
        let builder = match runtime {
            true => builder
                .runtime(support::Threads)
                .call_policy(policy.timeout(ms(500)).deadline(secs(1)).tries(1)),
            false => builder.call_policy(policy),
        };
        let envelope = builder.build().unwrap();
        block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
        assert_eq!((denies.calls().unwraps, down.calls().unwraps), (1, 0), "it came by the first");
        denies.fail_with(Denied);
        outage(&down);
        clock.advance(secs(101));
        Self { denies, down, clock, envelope, alice, sealed }
    }

    fn read_by(&self, names: &[&str]) -> Result<(), Error> {
        let entries = entries_of(&self.sealed);
        let chosen = entries.into_iter().filter(|entry| names.contains(&entry.kek_id().as_str()));
        let sealed = with_entries(&self.sealed, chosen);
        block_on(self.envelope.decrypt(&self.alice, Aad::empty(), &sealed)).map(|_| ())
    }
}

#[test]
fn the_outage_of_another_kek_is_not_borrowed() {
    for keys in [&["local:down"][..], &["local:denies", "local:down"]] {
        let stage = Borrowed::new(|down| down.fail_with(Unavailable), false);
        for _ in 0..20 {
            let error = stage.read_by(keys).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Denied), "{error}");
            stage.clock.advance(secs(1));
        }
        assert!(stage.down.calls().unwraps >= 20);
    }
}

#[test]
fn a_kek_that_hangs_does_not_lend_its_outage_to_the_dek_of_one_that_denies() {
    let hang = |down: &ScriptedKek| down.wait_for(|| Box::pin(std::future::pending()));
    let stage = Borrowed::new(hang, true);
    for _ in 0..2 {
        assert_eq!(
            kind(stage.read_by(&["local:down"])),
            ErrorKind::Unavailable,
            "nobody asked who vouched"
        );
    }
    // The question reaches the KEK that vouched for the DEK. It denies, which is remembered for the
    // DEK, even if other KEKs hang.
    for _ in 0..2 {
        assert_eq!(kind(stage.read_by(&["local:denies", "local:down"])), ErrorKind::Unavailable);
        std::thread::sleep(ms(1200));
    }
    assert!(stage.denies.calls().unwraps > 1);
    assert_eq!(kind(stage.read_by(&["local:denies", "local:down"])), ErrorKind::Unavailable);
}

#[test]
fn a_denial_by_one_writing_kek_is_not_hidden_by_the_outage_of_another() {
    for first_is_down in [true, false] {
        let (down, denies) =
            (ScriptedKek::new("down").unwrap(), ScriptedKek::new("denies").unwrap());
        let clock = ManualClock::new();
        let keks = if first_is_down {
            [down.clone(), denies.clone()]
        } else {
            [denies.clone(), down.clone()]
        };
        let builder =
            keks.into_iter().fold(Envelope::builder(), |builder, kek| builder.wrap_with(kek));
        let envelope =
            builder.limits(with_grace().max_age(secs(100))).clock(clock.clone()).build().unwrap();
        let alice = context("alice");
        block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
        down.fail_with(Unavailable);
        denies.fail_with(Denied);
        clock.advance(secs(101));
        assert_eq!(kind(block_on(envelope.encrypt(&alice, Aad::empty(), b"x"))), ErrorKind::Denied);
    }
}

#[test]
fn every_way_to_use_a_dek_renews_it_when_it_is_due() {
    let in_place = |stage: &Stage| {
        let mut buffer = stage.sealed.clone();
        block_on(stage.envelope.decrypt_in_place(&stage.alice, Aad::empty(), &mut buffer)).unwrap();
    };
    let handle = |stage: &Stage| {
        drop(block_on(stage.envelope.decryptor(&stage.alice, &stage.sealed)).unwrap())
    };
    let decrypt = |stage: &Stage| stage.read().unwrap();
    let ways: [fn(&Stage); 3] = [decrypt, in_place, handle];
    for (name, way) in ["decrypt", "decrypt_in_place", "decryptor"].into_iter().zip(ways) {
        let stage = Stage::new(Limits::default());
        way(&stage);
        for round in 2..5 {
            stage.clock.advance(secs(85));
            (0..10).for_each(|_| way(&stage));
            assert_eq!(stage.calls().0, round, "{name}");
        }
    }
    // In the background, where somebody works there.
    let stage = Stage::with(Limits::default(), |builder| builder.runtime(support::Threads));
    stage.read().unwrap();
    for round in 2..5 {
        stage.clock.advance(secs(85));
        stage.envelope.decrypt_cached(&stage.alice, Aad::empty(), &stage.sealed).unwrap().unwrap();
        stage.log.wait_for("Refreshed", round - 1);
        assert_eq!(stage.calls().0, u64::try_from(round).unwrap());
    }
    // In place and in an outage, as everywhere.
    let stage = Stage::new(with_grace());
    in_place(&stage);
    stage.kek.fail_with(Unavailable);
    stage.clock.advance(secs(101));
    (0..10).for_each(|_| in_place(&stage));
    assert!(
        stage.envelope.decrypt_cached(&stage.alice, Aad::empty(), &stage.sealed).unwrap().is_some()
    );
    assert_eq!(stage.calls().0, 2);
}

/// Answers at once. The caller sees it much later, as after a suspension.
fn seen_late(kek: &LocalKek, clock: &ManualClock, by: Duration) -> HookedKek {
    let (of_wrap, of_unwrap) = (clock.clone(), clock.clone());
    HookedKek::around(kek.clone())
        .on_wrap(move |kek, context, dek| {
            let clock = of_wrap.clone();
            Box::pin(async move {
                let answer = kek.wrap(context, dek).await;
                clock.advance(by);
                answer
            })
        })
        .on_unwrap(move |kek, context, wrapped| {
            let clock = of_unwrap.clone();
            Box::pin(async move {
                let answer = kek.unwrap(context, wrapped).await;
                clock.advance(by);
                answer
            })
        })
}

#[test]
fn age_counts_from_before_the_question_was_sent() {
    let (kek, clock, alice) = (support::local("kek"), ManualClock::new(), context("alice"));
    let sealed =
        block_on(support::envelope(&kek).encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    let build = |by| {
        let provider = seen_late(&kek, &clock, by);
        let limits = Limits::default().max_age(secs(100));
        Envelope::builder().wrap_with(provider).limits(limits).clock(clock.clone()).build().unwrap()
    };
    let envelope = build(secs(60));
    block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    let ours = block_on(envelope.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    let key = block_on(envelope.decryptor(&alice, &ours)).unwrap();
    clock.advance(secs(39));
    key.decrypt(Aad::empty(), &ours).unwrap();
    clock.advance(secs(1));
    assert_eq!(
        kind(key.decrypt(Aad::empty(), &ours)),
        ErrorKind::Expired,
        "a hundred seconds after the question"
    );
    assert!(envelope.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_none());

    // An answer that is past its age serves those who waited for it, and is not cached.
    let envelope = build(secs(3600));
    for _ in 0..3 {
        assert_eq!(
            &*block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).unwrap(),
            b"payload"
        );
        assert!(envelope.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_none());
        block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
        assert_eq!(envelope.statistics().writing_deks, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_is_small_and_busy_fails_no_plain_call() {
    for (entries, tasks) in [(1, 32), (4, 64)] {
        let kek = ScriptedKek::new("kek").unwrap();
        let elsewhere = support::envelope(kek.local());
        let mut messages = Vec::new();
        for i in 0..50 {
            let tenant = context(&format!("{i}"));
            messages.push((
                elsewhere.encrypt(&tenant, Aad::empty(), b"payload").await.unwrap(),
                tenant,
            ));
        }
        kek.wait_for(|| Box::pin(tokio::time::sleep(ms(1))));
        let budget = waxseal::CallBudget::new(1_000_000, 65_536).unwrap();
        let builder = Envelope::builder().wrap_with(kek.clone()).call_budget(budget);
        let envelope = builder.limits(Limits::default().max_entries(entries)).build().unwrap();
        let messages = Arc::new(messages);
        let tasks: Vec<_> = (0..tasks)
            .map(|task| {
                let (envelope, messages) = (envelope.clone(), messages.clone());
                tokio::spawn(async move {
                    for i in 0..150 {
                        // Many ask the same at the same time.
                        let (sealed, tenant) = &messages[(i + task / 8) % messages.len()];
                        if i % 3 == 0 {
                            envelope.encrypt(tenant, Aad::empty(), b"x").await.unwrap();
                        } else {
                            assert_eq!(
                                &*envelope.decrypt(tenant, Aad::empty(), sealed).await.unwrap(),
                                b"payload"
                            );
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let deks = envelope.statistics();
        assert!(deks.reading_deks <= entries && deks.writing_deks <= entries, "{deks:?}");
    }
}

#[test]
fn a_denial_in_another_context_ends_nothing_and_takes_no_grace() {
    let stage = Stage::new(with_grace());
    // Any caller can ask for another's wrapped key in its own context, before the rightful reader
    // does.
    let mallory = context("mallory");
    let go = Arc::new(AtomicBool::new(false));
    let wait = go.clone();
    stage.kek.wait_for(move || {
        let wait = wait.clone();
        Box::pin(std::future::poll_fn(move |cx| {
            cx.waker().wake_by_ref();
            if wait.load(SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        }))
    });
    let mut forged = pin!(stage.envelope.decrypt(&mallory, Aad::empty(), &stage.sealed));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(forged.as_mut().poll(&mut cx).is_pending());
    stage.kek.wait_no_more();
    stage.read().unwrap();
    let key = block_on(stage.envelope.decryptor(&stage.alice, &stage.sealed)).unwrap();
    stage.kek.fail_with(Denied);
    go.store(true, SeqCst);
    let Poll::Ready(Err(error)) = forged.as_mut().poll(&mut cx) else { panic!("not answered") };
    assert_eq!(error.kind(), ErrorKind::Denied);
    key.decrypt(Aad::empty(), &stage.sealed).unwrap();
    stage.read().unwrap();
    stage.kek.fail_with(Unavailable);
    stage.clock.advance(secs(101));
    stage.read().unwrap();
}

#[test]
fn a_poison_message_in_a_loop_costs_one_call() {
    let stage = Stage::new(Limits::default());
    let forged = entries_of(&stage.sealed).into_iter().map(|entry| {
        let mut bytes = entry.wrapped().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        WrappedDek::new(entry.kek_id().clone(), bytes).unwrap()
    });
    let forged: Vec<_> = forged.collect();
    for _ in 0..100 {
        assert_eq!(kind(stage.read_by(forged.clone())), ErrorKind::Invalid);
        let other = block_on(stage.envelope.decrypt(&context("bob"), Aad::empty(), &stage.sealed));
        assert_eq!(kind(other), ErrorKind::Invalid);
    }
    assert_eq!(stage.calls().0, 2, "one for each question");
    stage.clock.advance(secs(5));
    assert_eq!(kind(stage.read_by(forged.clone())), ErrorKind::Invalid);
    stage.envelope.evict_all();
    assert_eq!(kind(stage.read_by(forged)), ErrorKind::Invalid);
    assert_eq!(stage.calls().0, 4, "forgotten by and by, or by hand");
}
