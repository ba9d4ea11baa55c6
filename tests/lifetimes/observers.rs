//! Observers that panic or block, threads that end, and a wiping thread that cannot be had: none of
//! it changes what the library does.
#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::cell::RefCell;
use std::panic::PanicHookInfo;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Instant;
use waxseal_testing::support;

use support::stage::{Log, Stage, ms, secs};
use support::{block_on, context, local};
use waxseal::kek::KekErrorClass;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::{Aad, EncryptionContext, Envelope, Event, Limits, ManualClock, Observer};

/// Panic hooks and the wiping thread belong to the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const BUG: &str = "a bug in an observer";

fn quietly<R>(work: impl FnOnce() -> R) -> R {
    // What the test itself says is shown.
    let hook: Arc<dyn Fn(&PanicHookInfo<'_>) + Send + Sync> = std::panic::take_hook().into();
    let shown = hook.clone();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str() != Some(BUG) {
            shown(panic);
        }
    }));
    let result = work();
    std::panic::set_hook(Box::new(move |panic| hook(panic)));
    result
}

fn name_of(event: &Event<'_>) -> String {
    format!("{event:?}").split([' ', '{']).next().unwrap().to_owned()
}

/// Panics in every event of a name; in every event for an empty one.
#[derive(Debug, Clone, Default)]
struct Panics {
    at: &'static str,
    times: Arc<AtomicUsize>,
}

impl Panics {
    fn at(at: &'static str) -> Self {
        Self { at, times: Arc::default() }
    }
}

impl Observer for Panics {
    fn event(&self, event: &Event<'_>) {
        if self.at.is_empty() || name_of(event) == self.at {
            self.times.fetch_add(1, SeqCst);
            panic!("{BUG}");
        }
    }
}

/// Blocks in an event until it is let go.
#[derive(Debug, Clone, Default)]
struct Blocks(Arc<AtomicBool>);

impl Observer for Blocks {
    fn event(&self, event: &Event<'_>) {
        while matches!(event, Event::Wiped { .. }) && !self.0.load(SeqCst) {
            std::thread::sleep(ms(2));
        }
    }
}

/// A life with every event in it.
fn live(stage: &Stage) {
    stage.read().unwrap();
    stage.write().unwrap();
    stage.clock.advance(secs(85));
    stage.read().unwrap();
    stage.write().unwrap();
    stage.kek.fail_with(KekErrorClass::Unavailable);
    stage.clock.advance(secs(85));
    stage.read().unwrap();
    stage.clock.advance(secs(20));
    stage.read().unwrap();
    stage.write().unwrap_err();
    stage.kek.fail_with(None);
    stage.clock.advance(secs(10));
    for i in 0..4 {
        block_on(stage.envelope.encrypt(&context(&format!("{i}")), Aad::empty(), b"x")).unwrap();
    }
    stage.read().unwrap();
    stage.kek.fail_with(KekErrorClass::Denied);
    stage.clock.advance(secs(101));
    stage.read().unwrap_err();
    stage.envelope.evict_context(&stage.alice);
    stage.envelope.revoke_kek(&"local:other".parse_id());
    stage.envelope.evict_all();
}

trait ParseId {
    fn parse_id(&self) -> waxseal::KekId;
}

impl ParseId for str {
    fn parse_id(&self) -> waxseal::KekId {
        waxseal::KekId::new(self).unwrap()
    }
}

#[test]
fn an_observer_that_panics_in_any_event_changes_nothing() {
    let _alone = alone();
    let run = |panics: Panics| {
        let limits = Limits::default().max_entries(4).stale_if_error_reading(secs(1000));
        let stage = Stage::with(limits, |builder| builder.observer(panics));
        live(&stage);
        let (panicked, Stage { envelope, log, .. }) =
            (stage.envelope.statistics().observer_panics, stage);
        drop(envelope);
        log.wait_for("Wiped", 2 * log.count("Made") + log.count("Unwrapped"));
        (panicked, log.take())
    };
    let (panicked, reference) = run(Panics::at("no event"));
    assert_eq!(panicked, 0);
    let mut names: Vec<_> = reference.clone();
    names.sort();
    names.dedup();
    assert!(names.len() >= 9, "{names:?}");
    for name in names.iter().map(String::as_str).chain([""]) {
        let (panicked, events) = quietly(|| run(Panics::at(String::leak(name.to_owned()))));
        assert!(panicked > 0 || name == "Wiped", "{name}: not counted");
        let reports = events.iter().filter(|event| *event == "ObserverPanicked").count();
        assert_eq!(reports, 1, "{name}: the other observers are told once");
        // The same events, but for the order of those that come from the library's own thread.
        let sorted = |events: &[String]| {
            let mut events: Vec<_> =
                events.iter().filter(|event| *event != "ObserverPanicked").cloned().collect();
            events.sort();
            events
        };
        assert_eq!(sorted(&events), sorted(&reference), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_share_a_call_get_its_answer_though_an_observer_panics_in_it() {
    let kek = ScriptedKek::new("kek").unwrap();
    let alice = context("alice");
    let sealed =
        support::envelope(kek.local()).encrypt(&alice, Aad::empty(), b"payload").await.unwrap();
    kek.wait_for(|| Box::pin(tokio::time::sleep(ms(50))));
    for name in ["Called", "Unwrapped", ""] {
        let panics = Panics::at(name);
        let envelope =
            Envelope::builder().wrap_with(kek.clone()).observer(panics.clone()).build().unwrap();
        let calls: Vec<_> = (0..16)
            .map(|_| {
                let (envelope, alice, sealed) = (envelope.clone(), alice.clone(), sealed.clone());
                tokio::spawn(async move {
                    envelope.decrypt(&alice, Aad::empty(), &sealed).await.map(drop)
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap().unwrap();
        }
        assert!(panics.times.load(SeqCst) > 0);
    }
}

fn wiping_threads() -> usize {
    let named = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.unwrap().path().join("comm"))
            .is_ok_and(|name| name.trim() == "waxseal-wiper")
    };
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| named(task).then_some(()))
        .count()
}

/// The wiping thread starts others, for events, which have its name until they give themselves
/// their own.
fn there_is_one_wiping_thread() -> bool {
    let start = Instant::now();
    while wiping_threads() != 1 && start.elapsed() < secs(10) {
        std::thread::sleep(ms(1));
    }
    wiping_threads() == 1
}

fn short() -> Limits {
    Limits::default().max_age(ms(50))
}

#[test]
fn the_wiping_thread_outlives_an_observer_that_panics_and_delays_nothing_for_one_that_blocks() {
    let _alone = alone();
    quietly(|| {
        let blocks = Blocks::default();
        let mut bad = Vec::new();
        for observer in
            [Box::new(Panics::at("Wiped")) as Box<dyn Observer>, Box::new(blocks.clone())]
        {
            let builder = Envelope::builder().wrap_with(local("bad")).limits(short());
            let envelope = builder.observer(Boxed(observer)).build().unwrap();
            block_on(envelope.encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
            bad.push(envelope);
        }
        std::thread::sleep(ms(300));
        // Another envelope of the process, and its observer, know nothing of it.
        let log = Log::default();
        let good = Envelope::builder()
            .wrap_with(local("good"))
            .limits(short())
            .observer(log.clone())
            .build()
            .unwrap();
        block_on(good.encrypt(&context("bob"), Aad::empty(), b"x")).unwrap();
        log.wait_for("Wiped", 2);
        assert!(there_is_one_wiping_thread());
        // The blocked observer's own DEKs are wiped too, reported or not.
        assert_eq!(bad[1].statistics().writing_deks, 0);
        blocks.0.store(true, SeqCst);
    });
}

#[derive(Debug)]
struct Boxed(Box<dyn Observer>);

impl Observer for Boxed {
    fn event(&self, event: &Event<'_>) {
        self.0.event(event);
    }
}

/// Runs one of the tests below in a separate process, since what it provokes may end the process.
fn in_a_process(name: &str) {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", &format!("observers::{name}"), "--nocapture", "--ignored"])
        .env("WAXSEAL_IN_A_PROCESS", "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{text}", output.status);
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{name} did not run");
}

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps its lines in a thread-local, as loggers do: it panics in a thread that is past that.
#[derive(Debug)]
struct ThreadLocalLines;

impl Observer for ThreadLocalLines {
    fn event(&self, event: &Event<'_>) {
        LINES.with_borrow_mut(|lines| lines.push(format!("{event:?}")));
    }
}

/// A thread that ends with the last pointer to a DEK that was renewed meanwhile.
fn a_thread_ends_with_a_renewed_dek(
    observer: impl Observer + 'static,
    in_thread: impl FnOnce() + Send + 'static,
) {
    let clock = ManualClock::new();
    let limits = Limits::default().max_age(secs(100));
    let builder = Envelope::builder().wrap_with(local("kek")).limits(limits).clock(clock.clone());
    let envelope = builder.observer(observer).build().unwrap();
    let write = |envelope: &Envelope| {
        drop(block_on(envelope.encrypt(&context("alice"), Aad::empty(), b"x")).unwrap())
    };
    write(&envelope);
    let (ready, is_ready) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let of_the_thread = envelope.clone();
    let thread = std::thread::spawn(move || {
        write(&of_the_thread);
        in_thread();
        drop(of_the_thread);
        ready.send(()).unwrap();
        let _ = may_go.recv();
    });
    is_ready.recv().unwrap();
    clock.advance(secs(85));
    write(&envelope);
    write(&envelope);
    drop(go);
    thread.join().unwrap();
}

/// Executors keep something in thread-locals too.
fn at_once<F: std::future::Future>(future: F) -> F::Output {
    use std::task::{Context, Poll, Waker};
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a local KEK answers at once"),
    }
}

#[test]
#[ignore = "run in a process of its own, by the test below"]
fn in_a_process_threads_end() {
    a_thread_ends_with_a_renewed_dek(ThreadLocalLines, || {
        LINES.with_borrow_mut(|lines| lines.push(String::new()))
    });
    {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG);
        tracing::subscriber::set_global_default(subscriber.with_writer(std::io::stderr).finish())
            .unwrap();
        a_thread_ends_with_a_renewed_dek(waxseal::TracingObserver::new(), || {
            tracing::info!("a line")
        });
    }
    // An envelope that is used, and dropped, when the thread's own destructors run.
    struct Late(Option<(Envelope, EncryptionContext, Vec<u8>)>);
    impl Drop for Late {
        fn drop(&mut self) {
            if let Some((envelope, alice, sealed)) = self.0.take() {
                assert!(envelope.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_some());
                let again = at_once(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
                at_once(envelope.decrypt(&alice, Aad::empty(), &again)).unwrap();
                at_once(envelope.encrypt(&context("new"), Aad::empty(), b"x")).unwrap();
                envelope.evict_all();
            }
        }
    }
    thread_local! {
        static FIRST: RefCell<Late> = const { RefCell::new(Late(None)) };
        static LAST: RefCell<Late> = const { RefCell::new(Late(None)) };
    }
    for is_first in [true, false] {
        let thread = std::thread::spawn(move || {
            let cell = if is_first { &FIRST } else { &LAST };
            let keep = |late: Late| cell.set(late);
            if is_first {
                // Before the library's own thread-locals, so that it is destroyed after them.
                keep(Late(None));
            }
            let envelope = Envelope::builder()
                .wrap_with(local("kek"))
                .observer(ThreadLocalLines)
                .build()
                .unwrap();
            let alice = context("alice");
            let sealed = block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
            block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
            keep(Late(Some((envelope, alice, sealed))));
        });
        thread.join().unwrap();
    }
}

#[test]
fn threads_that_end_with_deks_envelopes_and_observers_in_their_hands_abort_nothing() {
    in_a_process("in_a_process_threads_end");
}

#[test]
#[ignore = "run in a process of its own, by the test below"]
fn in_a_process_no_thread_can_be_started() {
    // Another user, for the limit counts for all of a user's processes and not for root.
    let (user, limit) = (54_321, libc::rlimit { rlim_cur: 0, rlim_max: 64 });
    // SAFETY: these change this process only.
    unsafe {
        assert_eq!(libc::setresuid(user, user, 0), 0);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NPROC, &limit), 0);
    }
    assert!(std::thread::Builder::new().spawn(|| {}).is_err(), "the control");
    let log = Log::default();
    let envelope = Envelope::builder()
        .wrap_with(local("kek"))
        .limits(short())
        .observer(log.clone())
        .build()
        .unwrap();
    let write = |tenant: &str| {
        drop(block_on(envelope.encrypt(&context(tenant), Aad::empty(), b"x")).unwrap())
    };
    write("alice");
    assert_eq!(wiping_threads(), 0);
    std::thread::sleep(ms(100));
    // The caller that makes the next DEK wipes what is due.
    write("bob");
    assert_eq!(envelope.statistics().writing_deks, 1);
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: as above.
    unsafe { assert_eq!(libc::setrlimit(libc::RLIMIT_NPROC, &limit), 0) };
    write("carol");
    // And now the thread is there, also for what came before.
    let start = Instant::now();
    while wiping_threads() == 0 && start.elapsed() < secs(10) {
        std::thread::sleep(ms(1));
    }
    assert!(there_is_one_wiping_thread());
    log.wait_for("Wiped", 6);
}

#[test]
fn the_wiping_thread_is_started_when_one_can_be_had() {
    in_a_process("in_a_process_no_thread_can_be_started");
}

/// Says when it is dropped.
#[derive(Debug)]
struct Dropped(mpsc::Sender<()>);

impl Observer for Dropped {
    fn event(&self, _: &Event<'_>) {}
}

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[test]
fn observers_are_dropped_with_the_last_envelope_though_threads_remember_its_deks() {
    let (sender, dropped) = mpsc::channel();
    let envelope =
        Envelope::builder().wrap_with(local("kek")).observer(Dropped(sender)).build().unwrap();
    let (ready, is_ready) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let of_the_thread = envelope.clone();
    let thread = std::thread::spawn(move || {
        let sealed =
            block_on(of_the_thread.encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
        for _ in 0..3 {
            block_on(of_the_thread.encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
            block_on(of_the_thread.decrypt(&context("alice"), Aad::empty(), &sealed)).unwrap();
        }
        drop(of_the_thread);
        ready.send(()).unwrap();
        let _ = may_go.recv();
    });
    is_ready.recv().unwrap();
    assert!(dropped.try_recv().is_err(), "the envelope lives");
    drop(envelope);
    dropped.recv_timeout(secs(10)).unwrap();
    drop(go);
    thread.join().unwrap();
}

#[test]
fn events_that_wait_for_an_observer_that_blocks_are_bounded_and_counted() {
    let blocks = Blocks::default();
    let limits = Limits::default().max_entries(1 << 20);
    let envelope = Envelope::builder().wrap_with(local("kek")).limits(limits.max_age(ms(20)));
    let envelope = envelope.observer(blocks.clone()).build().unwrap();
    let start = Instant::now();
    let mut tenant = 0;
    while envelope.statistics().events_lost == 0 && start.elapsed() < secs(60) {
        for _ in 0..500 {
            tenant += 1;
            block_on(envelope.encrypt(&context(&format!("{tenant}")), Aad::empty(), b"x")).unwrap();
        }
    }
    assert!(envelope.statistics().events_lost > 0, "after {tenant} DEKs");
    blocks.0.store(true, SeqCst);
}
