//! How a key store is called: retries, a bound on calls at the same time, a timeout, its own
//! breaker, and the events about them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use waxseal::branch::{BranchKek, BranchKekBuilder};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::kek::{CallAdvice, Health, KekErrorClass, KekProvider};
use waxseal::store::scripted::Act;
use waxseal::store::{RewrapOptions, StoreErrorClass};
use waxseal::{Aad, BreakerState, CallBudget, CallPolicy, Envelope, ErrorKind};
use waxseal_testing::support::block_on;
use waxseal_testing::support::stage::Log;

use super::ground::{Fleet, Process, kind, ms, table};

fn on_tokio<F: Future>(work: F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work)
}

fn of_store(process: &Process) -> waxseal::StoreStatistics {
    process.kek.statistics().store_calls.unwrap()
}

#[test]
fn what_fails_by_itself_is_asked_again() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    on_tokio(async {
        let reader = fleet.process();
        let (gets, context) =
            (fleet.store.calls().gets, waxseal_testing::support::context("alice"));
        for class in [StoreErrorClass::Unavailable, StoreErrorClass::Throttled] {
            reader.kek.evict_all();
            fleet.store.script([Act::Fail(class)]);
            reader.envelope.decrypt(&context, Aad::empty(), &sealed).await.unwrap();
        }
        reader.kek.evict_all();
        fleet.store.script([Act::Panic]);
        reader.envelope.decrypt(&context, Aad::empty(), &sealed).await.unwrap();
        assert_eq!(fleet.store.calls().gets - gets, 6);
        assert_eq!(reader.branch_log.count("StoreCalled"), 6);
        assert_eq!((of_store(&reader).calls, of_store(&reader).failures), (6, 3));
        // An operator has to act, so this is reported at once.
        reader.kek.evict_all();
        fleet.store.script([Act::Fail(StoreErrorClass::Misconfigured)]);
        let opened = reader.envelope.decrypt(&context, Aad::empty(), &sealed).await;
        assert_eq!(kind(opened), ErrorKind::Misconfigured);
        assert_eq!(fleet.store.calls().gets - gets, 7);
        assert_eq!(fleet.calls().1, 4, "the root is asked once for each row that was read");
    });
}

#[test]
fn a_change_whose_answer_was_lost_is_made_once() {
    let fleet = Fleet::new();
    on_tokio(async {
        let process = fleet.process();
        let context = waxseal_testing::support::context("alice");
        // The rows of the branch are looked for, and then one is inserted.
        fleet.store.script([Act::Succeed, Act::LoseAnswer(StoreErrorClass::Unavailable)]);
        let sealed = process.envelope.encrypt(&context, Aad::empty(), b"payload").await.unwrap();
        assert_eq!((fleet.rows().len(), fleet.store.calls().inserts), (1, 2));
        assert_eq!(process.branch_log.count("Made"), 1, "the trail has every key that there is");
        fleet.root.local().rotate().unwrap();
        fleet.store.script([Act::Succeed, Act::LoseAnswer(StoreErrorClass::Unavailable)]);
        let done = process.kek.rewrap_branch_keys(RewrapOptions::default(), |_| {}).await.unwrap();
        assert_eq!((done.rewrapped, done.failed), (1, 0), "{:?}", done.first_failure);
        assert_eq!(fleet.store.calls().replaces, 2);
        fleet.store.script([Act::LoseAnswer(StoreErrorClass::Unavailable)]);
        let erased = process.kek.erase([("tenant", "alice")]).await.unwrap();
        assert_eq!(erased.erased + erased.already_erased, 1);
        let opened = process.envelope.decrypt(&context, Aad::empty(), &sealed).await;
        assert_eq!(kind(opened), ErrorKind::Denied);
    });
}

#[test]
fn a_page_and_an_erasure_may_take_longer_than_one_row_does() {
    let fleet = Fleet::new();
    on_tokio(async {
        let policy = CallPolicy::default().timeout(ms(100)).deadline(Duration::from_secs(30));
        let process = fleet.process_with(|branch| branch.call_policy(policy), |envelope| envelope);
        let alice = waxseal_testing::support::context("alice");
        process.envelope.encrypt(&alice, Aad::empty(), b"payload").await.unwrap();
        let before = of_store(&process);
        fleet.store.wait_for(|| Box::pin(tokio::time::sleep(ms(500))));
        let done = process.kek.rewrap_branch_keys(RewrapOptions::default(), |_| {}).await.unwrap();
        assert_eq!((done.current, done.failed), (1, 0));
        let erased = process.kek.erase([("tenant", "alice")]).await.unwrap();
        assert_eq!((erased.erased, erased.already_erased), (1, 0), "not repeated");
        let after = of_store(&process);
        assert_eq!((after.calls - before.calls, after.failures - before.failures), (2, 0));
    });
}

#[test]
fn a_store_that_is_down_opens_a_breaker_of_its_own_and_what_is_in_memory_goes_on() {
    let fleet = Fleet::new();
    let writer = fleet.process();
    let cold: Vec<_> = (0..12).map(|n| writer.seal(&format!("cold {n}"))).collect();
    let process = fleet.process();
    let warm = process.seal("warm");
    fleet.store.fail_with(StoreErrorClass::Unavailable);
    let before = fleet.store.calls().total();
    for (n, sealed) in cold.iter().enumerate() {
        let error = process.open(&format!("cold {n}"), sealed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("key store"), "{error}");
        assert_eq!(error.to_string().contains("circuit breaker open"), n >= 5, "{n}: {error}");
        fleet.clock.advance(ms(60));
    }
    // After the fifth it is asked by a probe only, twice a second.
    assert!((5..=6).contains(&(fleet.store.calls().total() - before)));
    assert_eq!(of_store(&process).breaker, BreakerState::Open);
    assert_eq!(process.branch_log.count("StoreBreakerOpened"), 1);
    // It is not an outage of the root, and keys in memory stay in use.
    let statistics = process.kek.statistics();
    assert_eq!(statistics.keks[0].breaker, BreakerState::Closed);
    process.envelope.evict_all();
    process.open("warm", &warm).unwrap();
    process.seal_for(&table("warm", "another DEK")).unwrap();
    // A health check asks the store in any state of the breaker.
    let health = block_on(process.envelope.health());
    assert_eq!(kind(health.into_iter().next().unwrap().1), ErrorKind::Unavailable);

    fleet.store.fail_with(None);
    fleet.clock.advance(ms(501));
    process.open("cold 0", &cold[0]).unwrap();
    assert_eq!(process.branch_log.count("StoreBreakerClosed"), 1);
    assert_eq!(of_store(&process).breaker, BreakerState::Closed);
    for (n, sealed) in cold.iter().enumerate() {
        process.open(&format!("cold {n}"), sealed).unwrap();
    }
}

#[test]
fn a_slow_store_that_leaves_a_kek_no_time_opens_no_breaker_of_the_kek() {
    let fleet = Fleet::new();
    let writer = fleet.process();
    let cold: Vec<_> = (0..7).map(|n| writer.seal(&format!("cold {n}"))).collect();
    on_tokio(async {
        let policy = CallPolicy::default().timeout(ms(400)).deadline(ms(400));
        // By the clock of the system, which goes on.
        let kek = waxseal::branch::BranchKek::builder(fleet.root.clone()).name("orders");
        let kek = kek.per(["tenant"]).store(fleet.store.clone()).call_policy(policy);
        let kek = kek.build().unwrap();
        let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
        fleet.store.wait_for(|| Box::pin(tokio::time::sleep(ms(330))));
        fleet.root.wait_for(|| Box::pin(tokio::time::sleep(ms(5000))));
        for (n, sealed) in cold.iter().enumerate() {
            let context = waxseal_testing::support::context(&format!("cold {n}"));
            let error = envelope.decrypt(&context, Aad::empty(), sealed).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
        assert_eq!(kek.statistics().keks[0].breaker, BreakerState::Closed);
    });
}

/// A reader's role may not insert. Repeated attempts to insert do not stop readers.
#[test]
fn what_a_role_may_not_do_opens_no_breaker() {
    let fleet = Fleet::new();
    let sealed = fleet.process().seal("alice");
    let process = fleet.process();
    for n in 0..10 {
        fleet.store.script([Act::Fail(StoreErrorClass::Misconfigured)]);
        let written = process.seal_for(&waxseal_testing::support::context(&format!("new {n}")));
        assert_eq!(kind(written), ErrorKind::Misconfigured);
        fleet.clock.advance(ms(100));
    }
    assert_eq!(of_store(&process).breaker, BreakerState::Closed);
    process.open("alice", &sealed).unwrap();
}

/// Counts how many calls wait at the same time.
#[derive(Clone, Default)]
struct AtOnce(Arc<(AtomicUsize, AtomicUsize)>);

struct Here(AtOnce);

impl AtOnce {
    fn enter(&self) -> Here {
        let now = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.fetch_max(now, Ordering::SeqCst);
        Here(self.clone())
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        (self.0.0).0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn a_store_that_hangs_has_few_calls_at_a_time_and_is_given_up_in_time() {
    let fleet = Fleet::new();
    let policy = CallPolicy::default().timeout(ms(200)).deadline(ms(1500));
    let writer = Envelope::builder().wrap_with(fleet.root.clone()).key_store(fleet.store.clone());
    let writer = writer.build().unwrap();
    let rows: Vec<_> = (0..300)
        .map(|n| {
            let compact =
                block_on(writer.encrypt_compact(&table("a", n), Aad::empty(), b"payload"));
            compact.unwrap().into_parts().0
        })
        .collect();
    let at_once = AtOnce::default();
    let waiting = at_once.clone();
    fleet.store.wait_for(move || {
        let here = waiting.enter();
        Box::pin(async move {
            let _here = here;
            std::future::pending().await
        })
    });
    on_tokio(async {
        let log = Log::default();
        let reader =
            Envelope::builder().wrap_with(fleet.root.clone()).key_store(fleet.store.clone());
        let reader = reader.call_policy(policy).observer(log.clone()).build().unwrap();
        let began = Instant::now();
        let reads: Vec<_> = rows
            .iter()
            .enumerate()
            .map(|(n, row)| {
                let (reader, row) = (reader.clone(), row.clone());
                tokio::spawn(async move {
                    reader.decrypt(&table("a", n), Aad::empty(), &row).await.map(drop)
                })
            })
            .collect();
        for read in reads {
            let error = read.await.unwrap().unwrap_err();
            let kinds = [ErrorKind::Unavailable, ErrorKind::Throttled];
            assert!(kinds.contains(&error.kind()), "{error}");
            assert!(error.to_string().contains("key store"), "{error}");
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let most = at_once.0.1.load(Ordering::SeqCst);
        assert!((1..=64).contains(&most), "{most} calls at once");
        assert!(log.count("StoreBreakerOpened") >= 1);
        assert_eq!(reader.statistics().keks[0].calls, 0, "no KEK was asked");
    });
    assert_eq!(at_once.0.0.load(Ordering::SeqCst), 0, "no call is left behind");
}

#[test]
fn a_store_in_this_process_is_not_counted_as_called() {
    let fleet = Fleet::new();
    let memory = waxseal::store::MemoryStore::new();
    let process = fleet.process_with(|branch| branch.store(memory), |envelope| envelope);
    process.seal("alice");
    assert_eq!((of_store(&process).calls, process.branch_log.count("StoreCalled")), (0, 0));
    assert!(fleet.self_contained().kek.statistics().store_calls.is_none());
}

/// Waits for `done`, for at most a while.
async fn comes_true(done: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while !done() {
        if began.elapsed() > Duration::from_secs(15) {
            return false;
        }
        tokio::time::sleep(ms(5)).await;
    }
    true
}

#[test]
fn a_flood_of_reads_at_a_store_that_hangs_keeps_no_renewal_from_it() {
    let fleet = Fleet::new();
    let writer = fleet.process();
    let warm = writer.seal("warm");
    let cold: Vec<_> = (0..100).map(|n| writer.seal(&format!("cold {n}"))).collect();
    let at_once = AtOnce::default();
    on_tokio(async {
        let policy = CallPolicy::default()
            .timeout(Duration::from_secs(50))
            .deadline(Duration::from_secs(55));
        let reader = fleet.process_with(|branch| branch.call_policy(policy), |envelope| envelope);
        let alice = waxseal_testing::support::context("warm");
        reader.envelope.decrypt(&alice, Aad::empty(), &warm).await.unwrap();
        let waiting = at_once.clone();
        fleet.store.wait_for(move || {
            let here = waiting.enter();
            Box::pin(async move {
                let _here = here;
                std::future::pending().await
            })
        });
        let flood: Vec<_> = cold
            .iter()
            .enumerate()
            .map(|(n, sealed)| {
                let (envelope, sealed) = (reader.envelope.clone(), sealed.clone());
                tokio::spawn(async move {
                    let context = waxseal_testing::support::context(&format!("cold {n}"));
                    envelope.decrypt(&context, Aad::empty(), &sealed).await.map(drop)
                })
            })
            .collect();
        // Three quarters of 64. The others wait for their turn.
        let full = comes_true(|| at_once.0.0.load(Ordering::SeqCst) == 48).await;
        assert!(full, "{} calls at once", at_once.0.0.load(Ordering::SeqCst));
        fleet.store.wait_no_more();
        fleet.clock.advance(Duration::from_secs(250));
        reader.envelope.decrypt(&alice, Aad::empty(), &warm).await.unwrap();
        assert!(
            comes_true(|| reader.branch_log.count("Refreshed") > 0).await,
            "the branch key in use is renewed in the reserved share"
        );
        flood.iter().for_each(|read| read.abort());
    });
}

#[test]
fn the_deadline_is_the_request_s_and_not_that_of_each_call_to_the_store() {
    let fleet = Fleet::new();
    on_tokio(async {
        let policy = CallPolicy::default().timeout(ms(1000)).deadline(ms(1000));
        // By the clock of the system, which goes on.
        let kek = BranchKek::builder(fleet.root.clone()).name("orders").per(["tenant"]);
        let kek = kek.store(fleet.store.clone()).call_policy(policy).build().unwrap();
        let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
        // One call looks for the rows of the branch, and another inserts one.
        fleet.store.wait_for(|| Box::pin(tokio::time::sleep(ms(700))));
        let alice = waxseal_testing::support::context("alice");
        let error = envelope.encrypt(&alice, Aad::empty(), b"x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("key store"), "{error}");
    });
}

/// Reads rows that are not cached until the breaker of the store is open.
fn open_the_breaker(fleet: &Fleet, process: &Process) {
    let cold: Vec<_> = (0..6).map(|n| fleet.process().seal(&format!("cold {n}"))).collect();
    fleet.store.fail_with(StoreErrorClass::Unavailable);
    for (n, sealed) in cold.iter().enumerate() {
        process.open(&format!("cold {n}"), sealed).unwrap_err();
        fleet.clock.advance(ms(60));
    }
    assert_eq!(of_store(process).breaker, BreakerState::Open);
}

#[test]
fn an_erasure_is_tried_while_the_breaker_is_open() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let sealed = process.seal("alice");
    open_the_breaker(&fleet, &process);
    let before = fleet.store.calls().erasures;
    let refused = block_on(process.kek.erase([("tenant", "alice")])).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(!refused.to_string().contains("circuit breaker"), "{refused}");
    assert_eq!(fleet.store.calls().erasures - before, 1);
    // Here the keys have ended all the same, and what is asked of the store still fails at once.
    let error = process.open("alice", &sealed).unwrap_err();
    assert!(error.to_string().contains("circuit breaker open"), "{error}");
    // The store is back, but no call has noticed yet. No time passes.
    fleet.store.fail_with(None);
    assert_eq!(of_store(&process).breaker, BreakerState::Open);
    assert_eq!(block_on(process.kek.erase([("tenant", "alice")])).unwrap().erased, 1);
    assert_eq!(of_store(&process).breaker, BreakerState::Closed, "it answered");
    assert_eq!(kind(process.open("alice", &sealed)), ErrorKind::Denied);
}

/// An erasure uses up no probe, and a failed one closes nothing.
#[test]
fn a_failed_erasure_leaves_the_breaker_open() {
    let fleet = Fleet::new();
    let process = fleet.process();
    open_the_breaker(&fleet, &process);
    for _ in 0..3 {
        block_on(process.kek.erase([("tenant", "alice")])).unwrap_err();
        assert_eq!(of_store(&process).breaker, BreakerState::Open);
    }
    fleet.store.fail_with(None);
    fleet.clock.advance(ms(501));
    process.seal("bob");
    assert_eq!(of_store(&process).breaker, BreakerState::Closed);
}

/// Keys that the store may have erased serve no caller here, even if no caller waited for its
/// answer.
#[test]
fn an_erasure_that_is_given_up_ends_the_keys_here_all_the_same() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let (alice, bob) = (process.seal("alice"), process.seal("bob"));
    assert!(process.is_cached("alice", &alice) && process.is_cached("bob", &bob));
    // It erases, and then the answer does not come.
    let waits = AtomicUsize::new(0);
    fleet.store.wait_for(move || match waits.fetch_add(1, Ordering::SeqCst) {
        0 => Box::pin(std::future::ready(())),
        _ => Box::pin(std::future::pending()),
    });
    fleet.store.script([Act::Repeat]);
    let mut erasing = Box::pin(process.kek.erase([("tenant", "alice")]));
    let mut waiting = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(erasing.as_mut().poll(&mut waiting).is_pending());
    fleet.store.wait_no_more();
    assert!(fleet.rows().iter().any(|row| row.is_tombstone()));
    drop(erasing);
    assert!(!process.is_cached("alice", &alice) && process.is_cached("bob", &bob));
    assert_eq!(kind(process.open("alice", &alice)), ErrorKind::Denied);
    process.open("bob", &bob).unwrap();
}

#[test]
fn health_asks_a_store_for_as_long_as_the_store_advises() {
    let fleet = Fleet::new();
    on_tokio(async {
        fleet.store.advise(CallAdvice::default().timeout(ms(70)));
        fleet.store.script([Act::Hang]);
        let health = fleet.process().kek.health().await.unwrap_err();
        assert!(health.to_string().contains("no answer within 70ms"), "{health}");
        // What the user chose counts more.
        let chosen = CallPolicy::default().timeout(ms(90));
        fleet.store.script([Act::Hang]);
        let process = fleet.process_with(|branch| branch.call_policy(chosen), |envelope| envelope);
        let health = process.kek.health().await.unwrap_err();
        assert!(health.to_string().contains("no answer within 90ms"), "{health}");
    });
}

#[test]
fn what_a_store_warns_of_degrades_the_health_of_its_branch_keys() {
    let fleet = Fleet::new();
    // A shared store hands it on.
    let process = fleet.process_with(|of| of.store(Arc::new(fleet.store.clone())), |of| of);
    assert_eq!(block_on(process.kek.health()).unwrap(), Health::Ready);
    fleet.store.warn_of(Box::from("the schema is old"));
    let health = block_on(process.kek.health()).unwrap();
    assert_eq!(health, Health::Degraded("key store memory: the schema is old".into()));
    // A warning is not a failure, and a failure is not a warning.
    process.seal("alice");
    fleet.store.fail_with(StoreErrorClass::Unavailable);
    assert_eq!(block_on(process.kek.health()).unwrap_err().class(), KekErrorClass::Unavailable);
    fleet.store.fail_with(None);
    fleet.store.warn_of(None);
    assert_eq!(block_on(process.kek.health()).unwrap(), Health::Ready);
}

#[test]
fn no_reason_for_a_degraded_health_hides_another() {
    let fleet = Fleet::new();
    let former = ["former-1", "former-2"].map(|name| ScriptedKek::new(name).unwrap());
    let with_former =
        |of: BranchKekBuilder| former.iter().fold(of, |of, root| of.unwrap_with(root.clone()));
    let process = fleet.process_with(with_former, |of| of);
    for root in &former {
        root.fail_with(KekErrorClass::Denied);
    }
    fleet.store.warn_of(Box::from("the schema is old"));
    let Health::Degraded(why) = block_on(process.kek.health()).unwrap() else { panic!() };
    for reason in ["former-1: ", "former-2: ", "key store memory: the schema is old"] {
        assert!(why.contains(reason), "{why}");
    }
}

#[test]
fn a_budget_for_a_store_holds_for_all_that_share_it() {
    let fleet = Fleet::new();
    let writer = fleet.process();
    let sealed: Vec<_> = (0..60).map(|n| writer.seal(&format!("tenant {n}"))).collect();
    let at_once = AtOnce::default();
    let waiting = at_once.clone();
    fleet.store.wait_for(move || {
        let here = waiting.enter();
        Box::pin(async move {
            tokio::time::sleep(ms(2)).await;
            drop(here);
        })
    });
    // Of four, one is reserved for writing.
    let budget = CallBudget::new(1_000_000, 4).unwrap();
    on_tokio(async {
        let readers = [(); 2].map(|()| {
            let kek = BranchKek::builder(fleet.root.clone()).name("orders").per(["tenant"]);
            let kek = kek.store(fleet.store.clone()).store_call_budget(budget.clone());
            Envelope::builder().wrap_with(kek.build().unwrap()).build().unwrap()
        });
        let reads = readers.iter().flat_map(|reader| {
            sealed.iter().enumerate().map(|(n, sealed)| {
                let (reader, sealed) = (reader.clone(), sealed.clone());
                tokio::spawn(async move {
                    let context = waxseal_testing::support::context(&format!("tenant {n}"));
                    reader.decrypt(&context, Aad::empty(), &sealed).await.map(drop)
                })
            })
        });
        for read in reads.collect::<Vec<_>>() {
            read.await.unwrap().unwrap();
        }
    });
    let most = at_once.0.1.load(Ordering::SeqCst);
    assert!((1..=4).contains(&most), "{most} calls at once");
    let without_runtime =
        Envelope::builder().wrap_with(fleet.root.clone()).store_call_budget(budget);
    let error = without_runtime.build().unwrap_err();
    assert!(error.to_string().contains("store_call_budget needs a runtime"), "{error}");
}
