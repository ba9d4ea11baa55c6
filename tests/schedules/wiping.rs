//! Keys leave memory on time, once, and never while in use.

use super::*;
use crate::Aad;
use crate::sync::slot::Slot;

#[test]
fn a_key_in_use_stays_whole_and_a_destroyed_one_is_used_no_more() {
    explore(|| {
        let value = Arc::new(sync::atomic::AtomicU64::new(7));
        let weak = Arc::downgrade(&value);
        let slot = Arc::new(Slot::new(&value));
        drop(value);
        let gone = Arc::new(AtomicBool::new(false));
        let users: Vec<_> = (0..3)
            .map(|_| {
                let (slot, gone, weak) = (slot.clone(), gone.clone(), weak.clone());
                spawn(move || {
                    for _ in 0..2 {
                        let began_after = gone.load(SeqCst);
                        let used = slot.with(|value| {
                            for _ in 0..2 {
                                assert_eq!(value.load(SeqCst), 7);
                                assert!(weak.strong_count() > 0);
                            }
                        });
                        assert!(!(began_after && used.is_some()), "used after its destruction");
                    }
                })
            })
            .collect();
        while !slot.destroy() {
            shuttle::thread::yield_now();
        }
        gone.store(true, SeqCst);
        assert_eq!(weak.strong_count(), 0, "somebody has it still");
        join(users);
    });
}

/// Two envelopes of one clock: what one keeps is due before the wiper's next look, what the other
/// keeps is not.
fn short_and_long() -> [Stage; 2] {
    let long = Stage::with(few_entries().max_age(secs(3)), |builder| builder);
    let short =
        Stage::with(few_entries().max_age(ms(200)), |builder| builder.clock(long.clock.clone()));
    [Stage { clock: long.clock.clone(), ..short }, long]
}

#[test]
fn no_deadline_is_slept_through() {
    LazyLock::force(&MESSAGES);
    explore(|| {
        let [short, long] = short_and_long();
        let threads = vec![
            short.spawn(|stage| stage.read().unwrap()),
            short.spawn(|stage| stage.write().unwrap()),
            long.spawn(|stage| stage.read().unwrap()),
            long.spawn(|stage| (0..2).for_each(|_| stage.pass(ms(40)))),
        ];
        join(threads);
        assert_eq!(sync::in_background().0, 1, "one thread wipes for all");
        sync::settle();
        // The wiper was told of what is due before its next look, so it is punctual, to the
        // shortest wait.
        for step in [ms(200), ms(10)] {
            short.pass(step);
            sync::settle();
        }
        assert_eq!(short.log.count("wiped"), 3, "a deadline was slept through");
        assert_eq!(long.log.count("wiped"), 0, "too soon");
        for step in [ms(2790), ms(10)] {
            long.pass(step);
            sync::settle();
        }
        assert_eq!(long.log.count("wiped"), 1, "a deadline was slept through");
        long.end();
        short.end();
    });
}

#[test]
fn a_wiper_that_falls_asleep_is_woken_by_the_next_dek() {
    LazyLock::force(&MESSAGES);
    explore(|| {
        let [short, long] = short_and_long();
        short.read().unwrap();
        // While the wiper finds nothing left to look after, and goes to sleep, another one begins.
        let threads = [
            short.spawn(|stage| stage.pass(ms(210))),
            short.spawn(|stage| stage.envelope.evict_all()),
            long.spawn(|stage| stage.read().unwrap()),
        ];
        join(threads);
        sync::settle();
        assert_eq!(short.log.count("wiped"), 1);
        for step in [secs(3), ms(10)] {
            long.pass(step);
            sync::settle();
        }
        assert_eq!(long.log.count("wiped"), 1, "the wiper slept on");
        short.end();
        long.end();
    });
}

#[test]
fn a_key_in_use_at_its_deadline_is_wiped_right_after_and_told_of_once() {
    LazyLock::force(&MESSAGES);
    explore(|| {
        let stage = Stage::new(|builder| builder);
        let key = block_on(stage.envelope.decryptor(&ALICE, &MESSAGES[0])).unwrap();
        let users: Vec<_> = (0..2)
            .map(|_| {
                let key = key.clone();
                stage.spawn(move |stage| {
                    for _ in 0..2 {
                        let past = stage.log.count("wiped") > 0;
                        let result = key.decrypt(Aad::empty(), &MESSAGES[0]).map(drop);
                        assert!(
                            kind(&result).is_none_or(|kind| kind == ErrorKind::Expired),
                            "{result:?}"
                        );
                        assert!(!past || result.is_err(), "used after its end was told");
                    }
                })
            })
            .collect();
        let clearing = stage.spawn(|stage| stage.envelope.evict_all());
        stage.pass(MAX_AGE);
        join(users);
        clearing.join().unwrap();
        for _ in 0..2 {
            sync::settle();
            stage.pass(ms(10));
        }
        sync::settle();
        assert_eq!(stage.log.count("wiped"), 1);
        drop(key);
        stage.end();
    });
}

#[test]
fn what_makes_room_is_wiped_once_and_whoever_was_using_it_is_served() {
    LazyLock::force(&MESSAGES);
    explore(|| {
        let stage = Stage::with(Limits::default().max_entries(1), |builder| builder);
        let alice = stage.spawn(|stage| {
            stage.read().unwrap();
            stage.read().unwrap();
        });
        let bob = stage.spawn(|stage| block_on(stage.read_of(&BOB, &MESSAGES[1])).unwrap());
        join([alice, bob]);
        assert!(stage.envelope.statistics().reading_deks <= 1);
        stage.end();
    });
}
