//! Who makes a branch key, and for which period.

use std::sync::Arc;
use std::time::Duration;

use waxseal::branch::BranchKek;
use waxseal::kek::KekError;
use waxseal::kek::KekErrorClass::{Denied, Unavailable};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::StoreErrorClass;
use waxseal::store::scripted::{Act, ScriptedStore};
use waxseal::{Aad, Envelope, ErrorKind, Limits, ManualClock};
use waxseal_testing::support::{HookedKek, block_on, context};

use super::ground::{DAY, Fleet, HOUR, Process, kind, secs, table};

#[test]
fn a_thousand_processes_that_start_together_end_with_one_branch_key() {
    const PROCESSES: usize = 1000;
    let fleet = Arc::new(Fleet::new());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    // All find the store empty: the root answers when all have asked it.
    let looking = Arc::new(tokio::sync::Barrier::new(PROCESSES));
    let first = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    fleet.root.wait_for(move || {
        let (looking, first) = (looking.clone(), first.clone());
        Box::pin(async move {
            if first.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < PROCESSES {
                looking.wait().await;
            }
        })
    });
    let sealed = runtime.block_on(async {
        let tasks: Vec<_> = (0..PROCESSES)
            .map(|_| {
                let fleet = fleet.clone();
                tokio::spawn(async move {
                    let process = fleet.process();
                    process.envelope.encrypt(&context("alice"), Aad::empty(), b"payload").await
                })
            })
            .collect();
        let mut sealed = Vec::new();
        for task in tasks {
            sealed.push(task.await.unwrap().unwrap());
        }
        sealed
    });
    let (wraps, unwraps) = fleet.calls();
    println!("{PROCESSES} processes: {wraps} wraps, {unwraps} unwraps, {:?}", fleet.store.calls());
    assert_eq!(fleet.rows().len(), 1);
    assert_eq!((wraps, unwraps), (1000, 1000));
    let reader = fleet.process();
    let before = fleet.calls().1;
    for sealed in &sealed {
        reader.open("alice", sealed).unwrap();
    }
    assert_eq!(fleet.calls().1, before + 1);
}

#[test]
fn a_new_period_has_a_new_branch_key_and_old_ones_stay_readable() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let old = process.seal("alice");
    fleet.clock.advance(DAY * 30 - HOUR - secs(301));
    process.seal("alice");
    assert_eq!(fleet.rows().len(), 1);
    fleet.clock.advance(HOUR + secs(301));
    let new = process.seal("alice");
    assert_eq!(fleet.rows().len(), 2);
    let places: Vec<_> = fleet.rows().iter().map(|row| row.place().unwrap().period).collect();
    assert!(places.contains(&0) && places.contains(&(30 * 86_400)), "{places:?}");
    for process in [&process, &fleet.process()] {
        process.open("alice", &old).unwrap();
        process.open("alice", &new).unwrap();
    }
}

#[test]
fn branch_keys_in_memory_are_counted_by_the_age_of_their_period() {
    let fleet = Fleet::new();
    let old = fleet.process().seal("alice");
    let process = fleet.process();
    let ages = || {
        let ages = process.kek.statistics().branch_keys.unwrap();
        [ages.day, ages.week, ages.month, ages.year, ages.older]
    };
    assert_eq!(ages(), [0; 5]);
    assert!(process.envelope.statistics().branch_keys.is_none());
    let mut after = Duration::ZERO;
    // The clock begins with a period of 30 days, and that is how old the key is.
    for (days, expected) in [
        (0, [1, 0, 0, 0, 0]),
        (1, [0, 1, 0, 0, 0]),
        (6, [0, 1, 0, 0, 0]),
        (7, [0, 0, 1, 0, 0]),
        (31, [0, 0, 0, 1, 0]),
        (365, [0, 0, 0, 1, 0]),
        (366, [0, 0, 0, 0, 1]),
    ] {
        fleet.clock.advance(DAY * days - after);
        after = DAY * days;
        process.open("alice", &old).unwrap();
        assert_eq!(ages(), expected, "{days} days");
    }
    process.seal("alice");
    assert_eq!(ages(), [0, 1, 0, 0, 1], "the key of the present period is six days old");
    fleet.clock.advance(secs(301));
    assert_eq!(ages(), [0; 5], "past max_age");
}

#[test]
fn a_cached_branch_key_outlasts_its_period_by_no_more_than_max_age() {
    let fleet = Fleet::new();
    let process = fleet.process();
    fleet.clock.advance(DAY * 30 - secs(10));
    process.seal("alice");
    fleet.clock.advance(secs(200));
    process.seal("alice");
    fleet.clock.advance(secs(101));
    process.seal("alice");
    assert_eq!(fleet.rows().len(), 2);
}

/// A process whose clock is off by so much.
fn with_clock(fleet: &Fleet, ahead: Duration, behind: Duration) -> (Fleet, Process) {
    let clock = ManualClock::new();
    clock.advance(DAY * 60 + ahead);
    clock.set_wall_back(behind);
    let fleet = Fleet { root: fleet.root.clone(), store: fleet.store.clone(), clock };
    let process = fleet.process();
    (fleet, process)
}

#[test]
fn clocks_that_differ_by_less_than_an_hour_make_no_trouble_around_a_new_period() {
    let none = Duration::ZERO;
    let minutes = |minutes: u64| secs(60 * minutes);
    for difference in [0, 1, 30, 59] {
        for at in [1, 30, 59, 61, 90] {
            // One clock is right, `at` minutes before the new period; the other is ahead.
            let fleet = Fleet::new();
            let (_, right) = with_clock(&fleet, none, minutes(at));
            let (_, ahead) = match at.checked_sub(difference) {
                Some(left) => with_clock(&fleet, none, minutes(left)),
                None => with_clock(&fleet, minutes(difference - at), none),
            };
            let by_ahead = ahead.seal("alice");
            right.open("alice", &by_ahead).unwrap();
            let by_right = right.seal("alice");
            ahead.open("alice", &by_right).unwrap();
            right.kek.evict_all();
            ahead.kek.evict_all();
            ahead.open("alice", &right.seal("alice")).unwrap();
            right.open("alice", &ahead.seal("alice")).unwrap();
            assert_eq!(fleet.rows().len(), 1, "{difference} min apart, {at} min before");
        }
    }
}

#[test]
fn a_clock_that_is_set_while_a_branch_key_is_made_keeps_nobody_from_writing() {
    for (begins, is_back) in [(DAY * 30, true), (DAY * 30 - secs(1), false)] {
        let fleet = Fleet::new();
        fleet.clock.advance(begins);
        let (clock, is_set) = (fleet.clock.clone(), std::sync::atomic::AtomicBool::new(false));
        fleet.store.wait_for(move || {
            match (is_set.swap(true, std::sync::atomic::Ordering::SeqCst), is_back) {
                (true, _) => {}
                (false, true) => clock.set_wall_back(secs(1)),
                (false, false) => clock.set_wall_forward(secs(1)),
            }
            Box::pin(async {})
        });
        let sealed = fleet.process().seal("alice");
        for row in fleet.rows() {
            let (place, row) = (*row.place().unwrap(), row.row().unwrap());
            let period = row.context().unwrap().get("waxseal:period").unwrap().to_owned();
            let expected =
                if place.period == 0 { "1970-01-01T00:00:00Z" } else { "1970-01-31T00:00:00Z" };
            assert_eq!(period, expected, "the row is of the period of its place");
        }
        fleet.clock.advance(secs(2));
        let later = fleet.process();
        later.open("alice", &sealed).unwrap();
        later.seal("alice");
    }
}

#[test]
fn a_clock_two_hours_ahead_writes_what_others_refuse_until_an_hour_before() {
    let none = Duration::ZERO;
    let fleet = Fleet::new();
    let (right_fleet, right) = with_clock(&fleet, none, HOUR + HOUR / 2);
    let (_, ahead) = with_clock(&fleet, HOUR / 2, none);
    let by_ahead = ahead.seal("alice");
    let error = right.open("alice", &by_ahead).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert!(error.to_string().contains("check the clocks"), "{error}");
    let by_right = right.seal("alice");
    assert_eq!(fleet.rows().len(), 2, "the key of its own period");
    ahead.open("alice", &by_right).unwrap();
    right.open("alice", &by_right).unwrap();
    right_fleet.clock.advance(HOUR / 2 + secs(1));
    right.open("alice", &by_ahead).unwrap();
}

#[test]
fn whoever_makes_a_branch_key_uses_what_the_store_then_has() {
    let fleet = Fleet::new();
    let (slow, quick) = (fleet.process(), fleet.process());
    let clone = quick.envelope.clone();
    let once = std::sync::atomic::AtomicBool::new(false);
    fleet.root.wait_for(move || {
        if !once.swap(true, std::sync::atomic::Ordering::SeqCst) {
            block_on(clone.encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
        }
        Box::pin(async {})
    });
    let sealed = slow.seal("alice");
    assert_eq!(fleet.rows().len(), 1);
    quick.kek.evict_all();
    quick.open("alice", &sealed).unwrap();
    assert_eq!(slow.branch_log.count("Made"), 0);
    assert_eq!(quick.branch_log.count("Made"), 1);
}

#[test]
fn an_insert_whose_answer_was_lost_is_found_by_the_next_request() {
    let fleet = Fleet::new();
    let process = fleet.process();
    fleet.store.script([Act::Succeed, Act::LoseAnswer(StoreErrorClass::Unavailable)]);
    let error = process.seal_for(&context("alice")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let sealed = process.seal("alice");
    assert_eq!((fleet.rows().len(), fleet.calls().0), (1, 1));
    fleet.process().open("alice", &sealed).unwrap();
}

#[test]
fn a_branch_key_that_the_root_will_not_unwrap_derives_nothing_and_the_error_says_so() {
    let fleet = Fleet::new();
    let writer = |fleet: &Fleet| {
        // It wraps, and denies to unwrap.
        let root = HookedKek::around(fleet.root.local().clone())
            .on_unwrap(|_, _, _| Box::pin(async { Err(KekError::denied("no leave to decrypt")) }));
        BranchKek::builder(root).name("orders").per(["tenant"]).clock(fleet.clock.clone())
    };
    let kek = writer(&fleet).store(fleet.store.clone()).build().unwrap();
    let envelope = fleet.envelope(&kek).build().unwrap();
    for _ in 0..2 {
        let error = block_on(envelope.encrypt(&context("alice"), Aad::empty(), b"x")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains("cannot share branch keys"), "{error}");
    }
    assert_eq!(fleet.rows().len(), 1, "the next try finds it");
    // At start.
    let outcome = block_on(envelope.warm_up([&context("bob")]));
    assert!(format!("{outcome:?}").contains("cannot share branch keys"), "{outcome:?}");
}

#[test]
fn a_branch_key_is_wrapped_by_all_roots_and_any_of_them_unwraps() {
    let fleet = Fleet::new();
    let second = ScriptedKek::new("second").unwrap();
    let process = fleet.process_with(|b| b.wrap_with(second.clone()), |e| e);
    let sealed = process.seal("alice");
    let row = fleet.rows().remove(0).row().unwrap();
    assert_eq!(row.wrapped_keys().unwrap().entries().len(), 2);
    for (down, up) in [(&fleet.root, &second), (&second, &fleet.root)] {
        down.fail_with(Denied);
        process.kek.evict_all();
        process.open("alice", &sealed).unwrap();
        down.fail_with(Unavailable);
        process.kek.evict_all();
        process.open("alice", &sealed).unwrap();
        // One that is down is an outage of making, not of using what is there.
        process.seal("alice");
        assert_eq!(kind(process.seal_for(&context("bob"))), ErrorKind::Unavailable);
        up.fail_with(Denied);
        process.kek.evict_all();
        assert_eq!(kind(process.open("alice", &sealed)), ErrorKind::Unavailable);
        up.fail_with(None);
        down.fail_with(None);
    }
}

#[test]
fn every_option_of_the_builder_is_checked_by_name() {
    let fleet = Fleet::new();
    let root = || fleet.root.clone();
    let store = || ScriptedStore::in_memory();
    let long = "n".repeat(506);
    let cases = [
        ("name", BranchKek::builder(root()).store(store()).build()),
        ("name", BranchKek::builder(root()).name("").store(store()).build()),
        ("name", BranchKek::builder(root()).name("a\nb").store(store()).build()),
        ("name", BranchKek::builder(root()).name(long).store(store()).build()),
        ("per", BranchKek::builder(root()).name("n").per([""]).store(store()).build()),
        (
            "per",
            BranchKek::builder(root()).name("n").per(["waxseal:branch"]).store(store()).build(),
        ),
        ("store", BranchKek::builder(root()).name("n").build()),
        ("store", BranchKek::builder(root()).name("n").store(store()).self_contained().build()),
        ("period", BranchKek::builder(root()).name("n").store(store()).period(secs(59)).build()),
        ("period", BranchKek::builder(root()).name("n").store(store()).period(DAY * 1099).build()),
        (
            "wrap_with",
            BranchKek::builder(root()).name("n").store(store()).wrap_with(root()).build(),
        ),
        (
            "unwrap_with",
            BranchKek::builder(root()).name("n").store(store()).unwrap_with(root()).build(),
        ),
        (
            "max_age",
            BranchKek::builder(root())
                .name("n")
                .store(store())
                .limits(Limits::default().max_age(DAY * 400))
                .build(),
        ),
    ];
    for (option, result) in cases {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{option}");
        assert!(error.to_string().contains(option), "{option}: {error}");
    }
    let name = "n".repeat(505);
    let kek = BranchKek::builder(root()).name(name).store(store()).build().unwrap();
    let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
    let sealed = block_on(envelope.encrypt(&table("a", 1), Aad::empty(), b"x")).unwrap();
    block_on(envelope.decrypt(&table("a", 1), Aad::empty(), &sealed)).unwrap();
}

#[test]
fn processes_with_other_periods_read_each_other() {
    let fleet = Fleet::new();
    let (monthly, daily) = (fleet.process(), fleet.process_with(|b| b.period(DAY), |e| e));
    let mut sealed = Vec::new();
    for _ in 0..40 {
        sealed.push(monthly.seal("alice"));
        sealed.push(daily.seal("alice"));
        fleet.clock.advance(DAY);
    }
    for process in [&monthly, &daily, &fleet.process()] {
        for sealed in &sealed {
            process.open("alice", sealed).unwrap();
        }
    }
    let rows = fleet.rows().len();
    assert!((40..=42).contains(&rows), "{rows}");
}
