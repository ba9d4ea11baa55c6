//! Runtimes that end, that nobody drives, or whose only thread is blocked; callers that are
//! impatient, or not polled: none of it changes what another caller gets.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use waxseal_testing::support;

use rustix::process::{Pid, WaitOptions, waitpid};
use support::{block_on, context};
use tokio::runtime::{Builder as Tokio, Runtime as TokioRuntime};
use waxseal::kek::scripted::{Act, ScriptedKek};
use waxseal::kek::{BoxFuture, KekErrorClass};
use waxseal::{
    Aad, CallBudget, CallPolicy, EncryptionContext, Envelope, EnvelopeBuilder, Error, ErrorKind,
    Limits, ManualClock, Runtime,
};

/// No answer takes as long, and no test waits longer.
const LONG: Duration = Duration::from_secs(60);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn threads(number: usize) -> TokioRuntime {
    Tokio::new_multi_thread().worker_threads(number).enable_all().build().unwrap()
}

fn one_thread() -> TokioRuntime {
    Tokio::new_current_thread().enable_all().build().unwrap()
}

fn kind<T>(result: &Result<T, Error>) -> Option<ErrorKind> {
    result.as_ref().err().map(Error::kind)
}

/// What `work` gives on a thread of its own, which may hang.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, over) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    over.recv_timeout(limit).ok()
}

/// Closed at first, and of nobody's runtime.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<(bool, Vec<Waker>)>>);

impl Gate {
    fn open(&self) {
        let waiting = {
            let mut gate = self.0.lock().unwrap();
            gate.0 = true;
            std::mem::take(&mut gate.1)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn pass(&self) -> BoxFuture<'static, ()> {
        let gate = self.clone();
        Box::pin(poll_fn(move |cx| {
            let mut gate = gate.0.lock().unwrap();
            if gate.0 {
                return Poll::Ready(());
            }
            gate.1.push(cx.waker().clone());
            Poll::Pending
        }))
    }
}

struct Stage {
    kek: ScriptedKek,
    alice: EncryptionContext,
    sealed: Vec<u8>,
    envelope: Envelope,
}

impl Stage {
    fn new(more: impl FnOnce(EnvelopeBuilder) -> EnvelopeBuilder) -> Self {
        let kek = ScriptedKek::new("kek").unwrap();
        let (alice, sealed) = messages(&kek, 1).remove(0);
        let envelope = more(Envelope::builder().wrap_with(kek.clone())).build().unwrap();
        Self { kek, alice, sealed, envelope }
    }

    /// Built in `runtime`, with a short deadline.
    fn hasty(runtime: &TokioRuntime) -> Self {
        let _inside = runtime.enter();
        Self::new(|builder| {
            builder.call_policy(CallPolicy::default().timeout(ms(300)).deadline(ms(900)).tries(2))
        })
    }

    fn read(&self) -> impl Future<Output = Result<(), Error>> + Send + 'static + use<> {
        read(&self.envelope, &self.alice, &self.sealed)
    }

    /// From now on nothing answers.
    fn hang(&self) {
        self.kek.wait_for(|| Box::pin(std::future::pending()));
    }

    fn wait_until_asked(&self, calls: u64) {
        wait_until(|| self.kek.calls().unwraps >= calls);
    }
}

fn read(
    envelope: &Envelope,
    context: &EncryptionContext,
    sealed: &[u8],
) -> impl Future<Output = Result<(), Error>> + Send + 'static + use<> {
    let (envelope, context, sealed) = (envelope.clone(), context.clone(), sealed.to_vec());
    async move { envelope.decrypt(&context, Aad::empty(), &sealed).await.map(drop) }
}

fn wait_until(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "it never came");
        std::thread::sleep(ms(5));
    }
}

/// Messages of as many DEKs, sealed elsewhere and on no runtime.
fn messages(kek: &ScriptedKek, number: usize) -> Vec<(EncryptionContext, Vec<u8>)> {
    let kek = kek.local().clone();
    let apart = std::thread::spawn(move || {
        let elsewhere = support::envelope(&kek);
        let contexts = (0..number).map(|tenant| context(&tenant.to_string()));
        let sealed = |context: &EncryptionContext| {
            block_on(elsewhere.encrypt(context, Aad::empty(), b"payload")).unwrap()
        };
        contexts.map(|context| (context.clone(), sealed(&context))).collect()
    });
    apart.join().unwrap()
}

// --- runtimes that end

#[test]
fn the_runtime_of_the_first_caller_may_end_and_the_others_are_served() {
    for answers in [true, false] {
        let (home, first, other) = (threads(1), threads(1), threads(1));
        let stage = Stage::hasty(&home);
        let gate = Gate::default();
        let closed = gate.clone();
        stage.kek.wait_for(move || closed.pass());
        let begins = first.spawn(stage.read());
        stage.wait_until_asked(1);
        let shares = other.spawn(stage.read());
        std::thread::sleep(ms(50));
        first.shutdown_timeout(ms(100));
        drop(begins);
        if answers {
            gate.open();
        }
        let answer = other.block_on(async { tokio::time::timeout(LONG, shares).await });
        let answer = answer.expect("it hangs").expect("it panicked");
        assert_eq!(kind(&answer), (!answers).then_some(ErrorKind::Unavailable), "{answer:?}");
    }
}

#[test]
fn the_runtime_of_a_call_that_hung_may_end_without_the_task_and_the_deadline_is_kept() {
    // The envelope's own runtime and the first caller's both end, the second caller is on no
    // runtime at all.
    let (home, first) = (threads(1), threads(1));
    let stage = Stage::hasty(&home);
    stage.hang();
    drop(first.spawn(stage.read()));
    stage.wait_until_asked(1);
    let shares = stage.read();
    let shares = std::thread::spawn(move || within(LONG, || block_on(shares)));
    std::thread::sleep(ms(50));
    drop(first);
    drop(home);
    let answer = shares.join().unwrap().expect("it hangs");
    assert_eq!(kind(&answer), Some(ErrorKind::Unavailable), "{answer:?}");
}

#[test]
fn a_provider_whose_timer_ended_with_a_caller_s_runtime_is_asked_again() {
    let (home, first, other) = (one_thread(), threads(1), threads(1));
    let stage = Stage::hasty(&home);
    let slow = AtomicBool::new(true);
    stage.kek.wait_for(move || match slow.swap(false, SeqCst) {
        true => Box::pin(async { tokio::time::sleep(LONG).await }),
        false => Box::pin(std::future::ready(())),
    });
    drop(first.spawn(stage.read()));
    stage.wait_until_asked(1);
    let shares = other.spawn(stage.read());
    std::thread::sleep(ms(50));
    first.shutdown_timeout(ms(100));
    other.block_on(async { tokio::time::timeout(LONG, shares).await.unwrap().unwrap().unwrap() });
    assert_eq!(stage.kek.calls().unwraps, 2);
}

#[test]
fn deks_are_renewed_on_the_caller_s_runtime_when_the_first_one_ended() {
    let clock = ManualClock::new();
    let first = threads(1);
    let stage = {
        let _inside = first.enter();
        let limits = Limits::default().max_age(Duration::from_secs(100));
        Stage::new(|builder| builder.limits(limits).clock(clock.clone()))
    };
    first.block_on(stage.read()).unwrap();
    drop(first);
    clock.advance(Duration::from_secs(81));
    let later = threads(1);
    later.block_on(stage.read()).unwrap();
    stage.wait_until_asked(2);
}

// --- runtimes that nobody drives, and threads that are blocked

#[test]
fn deadlines_are_kept_though_nobody_drives_the_runtime_of_the_envelope() {
    let start_up = one_thread();
    let stage = Stage::hasty(&start_up);
    stage.hang();
    let reading = stage.read();
    let answer = within(LONG, || block_on(reading)).expect("it hangs");
    assert_eq!(kind(&answer), Some(ErrorKind::Unavailable), "{answer:?}");
}

#[test]
fn code_that_blocks_within_a_task_gets_on_for_ever() {
    let count = within(2 * LONG, || {
        let kek = ScriptedKek::new("kek").unwrap();
        let all = messages(&kek, 400);
        kek.wait_for(|| Box::pin(tokio::time::sleep(ms(1))));
        threads(2).block_on(async move {
            let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
            let task = async move {
                let works = |(context, sealed): &&(EncryptionContext, Vec<u8>)| {
                    block_on(envelope.decrypt(context, Aad::empty(), sealed)).is_ok()
                        && block_on(envelope.rewrap(context, sealed)).is_ok()
                };
                all.iter().filter(works).count()
            };
            tokio::spawn(task).await.unwrap()
        })
    });
    assert_eq!(count, Some(400));
}

#[test]
fn code_that_blocks_the_only_thread_of_a_runtime_meets_its_deadline() {
    let answers = within(LONG, || {
        one_thread().block_on(async {
            let stage = Stage::hasty(&one_thread_outside());
            let first = block_on(stage.read());
            stage.envelope.evict_all();
            // Its timer is one of the runtime that waits for this very call.
            stage.kek.wait_for(|| Box::pin(tokio::time::sleep(ms(1))));
            (kind(&first), kind(&block_on(stage.read())))
        })
    });
    assert_eq!(answers, Some((None, Some(ErrorKind::Unavailable))));
}

/// A runtime made within another one, which may not be dropped there.
fn one_thread_outside() -> std::mem::ManuallyDrop<TokioRuntime> {
    std::mem::ManuallyDrop::new(one_thread())
}

#[test]
fn what_is_abandoned_where_nobody_drives_the_runtime_takes_nobody_s_place() {
    let start_up = one_thread();
    let kek = ScriptedKek::new("kek").unwrap();
    let all = messages(&kek, 60);
    let envelope = {
        let _inside = start_up.enter();
        let policy = CallPolicy::default().timeout(ms(300)).deadline(ms(900));
        Envelope::builder().wrap_with(kek.clone()).call_policy(policy).build().unwrap()
    };
    kek.wait_for(|| Box::pin(std::future::pending()));
    // As many as fit, driven for a while, and then by nobody.
    start_up.block_on(async {
        let reads = all.iter().map(|(context, sealed)| read(&envelope, context, sealed));
        let _ = tokio::time::timeout(ms(100), futures_util::future::join_all(reads)).await;
    });
    kek.wait_no_more();
    let began = Instant::now();
    let (context, sealed) = &messages(&kek, 1)[0];
    while let Err(error) = block_on(envelope.decrypt(context, Aad::empty(), sealed)) {
        assert!(began.elapsed() < LONG, "{error}");
    }
}

#[test]
fn a_forked_child_keeps_its_deadlines() {
    let runtime = threads(1);
    let stage = Stage::hasty(&runtime);
    stage.hang();
    assert_eq!(kind(&runtime.block_on(stage.read())), Some(ErrorKind::Unavailable));
    // SAFETY: the child runs the library and leaves without running anything of the test harness.
    // glibc's allocator is usable in the child of a threaded process.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: ends a child that waits, instead of this test's answer.
            unsafe { libc::alarm(30) };
            let met = kind(&block_on(stage.read())) == Some(ErrorKind::Unavailable);
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(if met { 17 } else { 1 }) }
        }
        child if child > 0 => {
            let (_, status) = waitpid(Pid::from_raw(child), WaitOptions::empty()).unwrap().unwrap();
            assert_eq!(status.exit_status(), Some(17));
        }
        _ => panic!("fork failed"),
    }
}

// --- runtimes that cannot do it

#[test]
fn a_tokio_runtime_without_timers_is_refused_at_build() {
    let without = Tokio::new_current_thread().build().unwrap();
    let _inside = without.enter();
    let error = Envelope::builder().wrap_with(support::local("kek")).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(
        error.to_string().contains("runtime") && error.to_string().contains("enable_time"),
        "{error}"
    );
}

/// One that is given is believed.
#[derive(Debug)]
struct OfOnesOwn;

impl Runtime for OfOnesOwn {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        std::thread::spawn(|| block_on(future));
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let gate = Gate::default();
            let opens = gate.clone();
            std::thread::spawn(move || {
                std::thread::sleep(duration);
                opens.open();
            });
            gate.pass().await;
        })
    }
}

#[test]
fn a_runtime_that_is_given_is_used_in_one_without_timers_too() {
    let without = Tokio::new_current_thread().build().unwrap();
    let _inside = without.enter();
    let policy = CallPolicy::default().timeout(ms(200)).deadline(ms(200));
    let stage = Stage::new(|builder| builder.runtime(OfOnesOwn).call_policy(policy));
    stage.hang();
    assert_eq!(kind(&block_on(stage.read())), Some(ErrorKind::Unavailable));
}

// --- callers without patience, and callers that are not polled

#[test]
fn a_key_service_slower_than_every_caller_is_asked_once_and_its_answer_counts() {
    let runtime = threads(2);
    let stage = {
        let _inside = runtime.enter();
        Stage::new(|builder| builder)
    };
    stage.kek.wait_for(|| Box::pin(tokio::time::sleep(ms(300))));
    runtime.block_on(async {
        let began = Instant::now();
        while tokio::time::timeout(ms(60), stage.read()).await.is_err() {
            assert!(began.elapsed() < LONG, "no progress");
        }
        while tokio::time::timeout(ms(60), stage.envelope.encrypt(&stage.alice, Aad::empty(), b"x"))
            .await
            .is_err()
        {
            assert!(began.elapsed() < LONG, "no progress");
        }
    });
    assert_eq!((stage.kek.calls().unwraps, stage.kek.calls().wraps), (1, 1));
}

#[test]
fn without_a_runtime_the_last_caller_that_leaves_ends_the_call() {
    let stage = Stage::new(|builder| builder);
    let dropped = Arc::new(());
    let held = dropped.clone();
    stage.kek.wait_for(move || {
        let held = held.clone();
        Box::pin(async move {
            let _held = held;
            std::future::pending().await
        })
    });
    {
        let mut first = pin!(stage.read());
        let mut second = pin!(stage.read());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(
            first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending()
        );
        assert_eq!((stage.kek.calls().unwraps, Arc::strong_count(&dropped)), (1, 3));
    }
    assert_eq!(Arc::strong_count(&dropped), 2, "what it held is gone");
}

#[test]
fn a_service_that_hangs_is_not_asked_more_and_more_for_callers_that_left() {
    let runtime = threads(2);
    let stage = {
        let _inside = runtime.enter();
        Stage::new(|builder| {
            builder.call_policy(CallPolicy::default().timeout(LONG).deadline(LONG))
        })
    };
    let going_on = Arc::new(());
    let held = going_on.clone();
    stage.kek.wait_for(move || {
        let held = held.clone();
        Box::pin(async move {
            let _held = held;
            std::future::pending().await
        })
    });
    runtime.block_on(async {
        for _ in 0..60 {
            let _ = tokio::time::timeout(ms(100), stage.read()).await;
        }
    });
    assert!(stage.kek.calls().unwraps >= 4, "a service that is back is noticed");
    // One is the test's own, one the script's. The oldest call goes on, and the newest.
    assert!(
        Arc::strong_count(&going_on) <= 2 + 2,
        "{} calls go on",
        Arc::strong_count(&going_on) - 2
    );
}

#[test]
fn a_call_that_waits_for_its_turn_is_not_made_for_callers_that_left() {
    let runtime = threads(2);
    let kek = ScriptedKek::new("kek").unwrap();
    let all = messages(&kek, 100);
    let envelope = {
        let _inside = runtime.enter();
        Envelope::builder()
            .wrap_with(kek.clone())
            .call_budget(CallBudget::new(8, 64).unwrap())
            .build()
            .unwrap()
    };
    runtime.block_on(async {
        let reads = all.iter().map(|(context, sealed)| read(&envelope, context, sealed));
        let _ = tokio::time::timeout(ms(300), futures_util::future::join_all(reads)).await;
        tokio::time::sleep(ms(100)).await;
    });
    let made = kek.calls().unwraps;
    std::thread::sleep(ms(1500));
    assert_eq!(kek.calls().unwraps, made, "calls that nobody waits for use up the budget");
}

#[test]
fn callers_that_are_not_polled_keep_nobody_from_being_served() {
    let runtime = threads(2);
    let kek = ScriptedKek::new("kek").unwrap();
    let all = messages(&kek, 9);
    let envelope = {
        let _inside = runtime.enter();
        Envelope::builder()
            .wrap_with(kek.clone())
            .call_budget(CallBudget::new(1000, 4).unwrap())
            .build()
            .unwrap()
    };
    kek.wait_for(|| Box::pin(tokio::time::sleep(ms(10))));
    // As a `buffered` stream does with its reads while its consumer makes one of its own: polled
    // once, and then not.
    let mut waiting: Vec<_> = all[..8]
        .iter()
        .map(|(context, sealed)| Box::pin(read(&envelope, context, sealed)))
        .collect();
    let _inside = runtime.enter();
    for read in &mut waiting {
        assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    runtime.block_on(read(&envelope, &all[8].0, &all[8].1)).unwrap();
    wait_until(|| kek.calls().unwraps == 9);
}

#[test]
fn a_waker_that_panics_takes_no_other_caller_with_it() {
    struct Bad(AtomicUsize);

    impl Wake for Bad {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
            std::panic::resume_unwind(Box::new("a bad executor"));
        }
    }

    let stage = Stage::new(|builder| builder);
    let gate = Gate::default();
    let closed = gate.clone();
    stage.kek.wait_for(move || closed.pass());
    let bad = Arc::new(Bad(AtomicUsize::new(0)));
    let mut first = pin!(stage.read());
    assert!(first.as_mut().poll(&mut Context::from_waker(&Waker::from(bad.clone()))).is_pending());
    let shares = stage.read();
    let shares = std::thread::spawn(move || within(LONG, || block_on(shares)));
    std::thread::sleep(ms(100));
    gate.open();
    shares.join().unwrap().expect("it hangs").unwrap();
    assert!(bad.0.load(SeqCst) > 0);
}

#[test]
fn a_failure_in_a_shared_call_is_told_to_all_who_share_it() {
    let stage = Stage::new(|builder| builder);
    let gate = Gate::default();
    let closed = gate.clone();
    stage.kek.wait_for(move || closed.pass());
    stage.kek.script([Act::Panic, Act::Fail(KekErrorClass::Unavailable)]);
    let readers: Vec<_> = (0..6)
        .map(|_| {
            let reading = stage.read();
            std::thread::spawn(move || within(LONG, || block_on(reading)))
        })
        .collect();
    std::thread::sleep(ms(200));
    gate.open();
    for reader in readers {
        assert_eq!(kind(&reader.join().unwrap().expect("it hangs")), Some(ErrorKind::Unavailable));
    }
}
