//! Which caller asks the key service, and how often.

use super::*;
use crate::Aad;

/// Asks for the messages before a schedule begins.
fn messages() {
    LazyLock::force(&MESSAGES);
}

#[test]
fn many_readers_of_one_cold_dek_cost_one_call() {
    messages();
    explore(|| {
        let stage = Stage::new(|builder| builder);
        for result in join((0..3).map(|_| stage.spawn(|stage| stage.read()))) {
            result.unwrap();
        }
        assert_eq!(stage.kek.unwraps(), 1);
        stage.end();
    });
}

#[test]
fn many_writers_for_one_context_cost_one_call() {
    explore(|| {
        let stage = Stage::new(|builder| builder);
        for result in join((0..3).map(|_| stage.spawn(|stage| stage.write()))) {
            result.unwrap();
        }
        assert_eq!(stage.kek.generates(), 1);
        stage.end();
    });
}

#[test]
fn a_caller_that_gives_up_leaves_the_others_an_answer() {
    messages();
    explore(|| {
        let stage = Stage::new(|builder| builder);
        let gives_up = stage.spawn(|stage| {
            let answer = block_on(poll_at_most(1, stage.read_of(&ALICE, &MESSAGES[0])));
            assert!(answer.is_none_or(|answer| answer.is_ok()));
        });
        for result in join((0..2).map(|_| stage.spawn(|stage| stage.read()))) {
            result.unwrap();
        }
        gives_up.join().unwrap();
        assert!((1..=2).contains(&stage.kek.unwraps()), "{}", stage.kek.unwraps());
        stage.end();
    });
}

#[test]
fn a_writer_that_gives_up_leaves_the_others_an_answer() {
    explore(|| {
        let stage = Stage::new(|builder| builder);
        let gives_up = stage.spawn(|stage| {
            let answer =
                block_on(poll_at_most(1, stage.envelope.encrypt(&ALICE, Aad::empty(), b"x")));
            assert!(answer.is_none_or(|answer| answer.is_ok()));
        });
        for result in join((0..2).map(|_| stage.spawn(|stage| stage.write()))) {
            result.unwrap();
        }
        gives_up.join().unwrap();
        assert!((1..=2).contains(&stage.kek.generates()), "{}", stage.kek.generates());
        stage.end();
    });
}

#[test]
fn a_call_that_has_its_answer_is_joined_by_nobody() {
    messages();
    explore(|| {
        let stage = Stage::new(|builder| builder);
        let done = Arc::new(AtomicBool::new(false));
        let slow = {
            let done = done.clone();
            stage.spawn(move |stage| {
                let mut reading = Box::pin(stage.read_of(&ALICE, &MESSAGES[0]));
                let first =
                    block_on(std::future::poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))));
                while !done.load(SeqCst) {
                    shuttle::thread::yield_now();
                }
                match first {
                    Poll::Ready(result) => result,
                    Poll::Pending => block_on(reading),
                }
            })
        };
        stage.read().unwrap();
        stage.envelope.evict_all();
        stage.read().unwrap();
        done.store(true, SeqCst);
        slow.join().unwrap().unwrap();
        stage.envelope.evict_all();
        let answers = stage.log.count("unwrapped");
        stage.read().unwrap();
        assert_eq!(stage.log.count("unwrapped"), answers + 1, "an old answer served");
    });
}

#[test]
fn a_dek_that_is_due_is_renewed_by_one_call() {
    messages();
    explore(|| {
        let stage = Stage::new(|builder| builder);
        stage.read().unwrap();
        stage.clock.advance(secs(81));
        join((0..3).map(|_| stage.spawn(|stage| stage.read().unwrap())).collect::<Vec<_>>());
        assert_eq!(stage.kek.unwraps(), 2, "the first call, and the renewal");
        stage.end();
    });
}

#[test]
fn a_dek_that_is_due_serves_nobody_past_its_age_while_it_is_renewed() {
    messages();
    explore(|| {
        let stage = Stage::new(|builder| builder);
        stage.read().unwrap();
        stage.clock.advance(secs(81));
        let past = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let past = past.clone();
                stage.spawn(move |stage| {
                    let began_past = past.load(SeqCst);
                    stage.read().unwrap();
                    assert!(!began_past || stage.kek.unwraps() >= 2, "served past its age");
                })
            })
            .collect();
        stage.clock.advance(secs(25));
        past.store(true, SeqCst);
        join(readers);
        stage.end();
    });
}

#[test]
fn a_renewal_in_an_outage_is_tried_once_and_nobody_sees_an_error() {
    messages();
    explore(|| {
        let stage = Stage::new(|builder| builder);
        stage.read().unwrap();
        stage.write().unwrap();
        stage.clock.advance(secs(81));
        stage.kek.0.down.store(true, SeqCst);
        let reading = (0..2).map(|_| stage.spawn(|stage| stage.read()));
        let writing = (0..2).map(|_| stage.spawn(|stage| stage.write()));
        for result in join(reading.chain(writing)) {
            result.unwrap();
        }
        assert_eq!((stage.kek.unwraps(), stage.kek.generates()), (2, 2));
        stage.end();
    });
}

#[test]
fn a_denial_of_one_question_leaves_the_answer_to_another_alone() {
    messages();
    explore(|| {
        let stage = Stage::new(|builder| builder);
        let mut forged = MESSAGES[0].clone();
        // Within the wrapped key, which then is another one.
        let at = forged.len() - 40;
        forged[at] ^= 1;
        *stage.kek.0.denies.lock().unwrap() = Some(|context, wrapped| {
            *context == *BOB || wrapped.iter().any(|byte| *byte != wrapped[0])
        });
        let forger = stage.spawn(move |stage| {
            for _ in 0..2 {
                let _ = block_on(stage.envelope.decrypt(&ALICE, Aad::empty(), &forged));
            }
        });
        let mallory = stage.spawn(|stage| {
            assert!(block_on(stage.envelope.decrypt(&BOB, Aad::empty(), &MESSAGES[0])).is_err());
        });
        let readers: Vec<_> = (0..2).map(|_| stage.spawn(|stage| stage.read())).collect();
        for result in join(readers) {
            result.unwrap();
        }
        join([forger, mallory]);
        let cached = stage.envelope.decrypt_cached(&ALICE, Aad::empty(), &MESSAGES[0]).unwrap();
        assert!(cached.is_some(), "a denial of something else evicted it");
        stage.end();
    });
}

#[test]
fn no_more_messages_are_sealed_than_a_dek_may() {
    explore(|| {
        let stage = Stage::with(few_entries().max_messages(3), |builder| builder);
        let key = block_on(stage.envelope.encryptor(&ALICE)).unwrap();
        let sealers: Vec<_> = (0..3)
            .map(|_| {
                let key = key.clone();
                spawn(move || (0..2).filter(|_| key.encrypt(Aad::empty(), b"x").is_ok()).count())
            })
            .collect();
        assert_eq!(join(sealers).iter().sum::<usize>(), 3);
        drop(key);
        stage.end();
    });
}

/// Polls as often as said, waits until `until`, and leaves.
fn leaves_when(stage: Stage, polls: usize, until: impl Fn(&Stage) -> bool) {
    let mut reading = Box::pin(stage.read_of(&ALICE, &MESSAGES[0]));
    for _ in 0..polls {
        let polled = block_on(std::future::poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))));
        if let Poll::Ready(answer) = polled {
            answer.unwrap();
            return;
        }
        shuttle::thread::yield_now();
    }
    while !until(&stage) {
        shuttle::thread::yield_now();
    }
}

#[test]
fn callers_leave_at_every_point_and_the_one_that_stays_is_served() {
    messages();
    for with_runtime in [false, true] {
        explore(move || {
            let runtime = ToyRuntime::default();
            let its = runtime.clone();
            let stage =
                Stage::new(|builder| if with_runtime { builder.runtime(its) } else { builder });
            let leave: Vec<_> = (0..3)
                .map(|_| {
                    let polls = shuttle::rand::thread_rng().gen_range(0..4);
                    stage.spawn(move |stage| leaves_when(stage, polls, |_| true))
                })
                .collect();
            let stays = stage.spawn(|stage| stage.read());
            stays.join().unwrap().unwrap();
            join(leave);
            runtime.settle();
            stage.end();
        });
    }
}

#[test]
fn a_caller_that_is_not_polled_any_more_holds_up_nobody() {
    messages();
    for with_runtime in [false, true] {
        explore(move || {
            let runtime = ToyRuntime::default();
            let its = runtime.clone();
            let stage =
                Stage::new(|builder| if with_runtime { builder.runtime(its) } else { builder });
            stage.kek.0.gate.shut();
            let done = Arc::new(AtomicBool::new(false));
            let stuck = {
                let done = done.clone();
                stage.spawn(move |stage| leaves_when(stage, 2, |_| done.load(SeqCst)))
            };
            let reads = stage.spawn(|stage| stage.read());
            let opens = stage.spawn(|stage| stage.kek.0.gate.open());
            reads.join().unwrap().unwrap();
            done.store(true, SeqCst);
            join([stuck, opens]);
            runtime.settle();
            stage.end();
        });
    }
}

#[test]
fn with_a_runtime_a_call_gets_on_though_no_caller_is_polled() {
    messages();
    explore(|| {
        let runtime = ToyRuntime::default();
        let its = runtime.clone();
        let stage = Stage::new(|builder| builder.runtime(its));
        // Its first poll never has an answer, whatever the key service does.
        stage.kek.0.gate.shut();
        let stuck =
            stage.spawn(|stage| leaves_when(stage, 1, |stage| stage.log.count("unwrapped") == 1));
        let opens = stage.spawn(|stage| stage.kek.0.gate.open());
        join([stuck, opens]);
        stage.read().unwrap();
        assert_eq!(stage.kek.unwraps(), 1);
        runtime.settle();
        stage.end();
    });
}

#[test]
fn a_request_that_is_on_its_way_outlives_its_last_caller() {
    messages();
    explore(|| {
        let runtime = ToyRuntime::default();
        let (its, polls) = (runtime.clone(), runtime.polls.clone());
        let stage = Stage::new(|builder| builder.runtime(its));
        stage.kek.0.gate.shut();
        // The task has been seen to work.
        leaves_when(stage.clone(), 1, |stage| stage.kek.unwraps() == 1 && polls.load(SeqCst) > 0);
        assert!(
            stage.envelope.decrypt_cached(&ALICE, Aad::empty(), &MESSAGES[0]).unwrap().is_none()
        );
        stage.kek.0.gate.open();
        stage.read().unwrap();
        assert_eq!(stage.kek.unwraps(), 1, "the first request brought the answer");
        runtime.settle();
        stage.end();
    });
}

#[test]
fn a_call_without_callers_ends_where_nobody_drives_the_runtime() {
    messages();
    explore(|| {
        let runtime = ToyRuntime { idle: true, ..ToyRuntime::default() };
        let spawned = runtime.spawned.clone();
        let stage = Stage::new(|builder| builder.runtime(runtime));
        stage.kek.0.gate.shut();
        join((0..2).map(|_| stage.spawn(|stage| leaves_when(stage, 2, |_| true))));
        stage.kek.0.gate.open();
        stage.read().unwrap();
        spawned.lock().unwrap().clear();
        // Nothing of the abandoned calls is left, so the last envelope wipes all.
        stage.end();
    });
}

#[test]
fn a_panic_in_a_shared_call_is_an_answer_for_all_and_over_with_it() {
    #[derive(Debug, Default)]
    struct PanicsOnce(AtomicBool);

    impl Observer for PanicsOnce {
        fn event(&self, event: &Event<'_>) {
            if matches!(event, Event::Unwrapped { .. }) && !self.0.swap(true, SeqCst) {
                std::panic::resume_unwind(Box::new("by script"));
            }
        }
    }

    messages();
    for with_runtime in [false, true] {
        explore(move || {
            let runtime = ToyRuntime::default();
            let its = runtime.clone();
            let stage = Stage::new(|builder| {
                let builder = builder.observer(PanicsOnce::default());
                if with_runtime { builder.runtime(its) } else { builder }
            });
            let leaves = stage.spawn(|stage| {
                drop(block_on(poll_at_most(2, stage.read_of(&ALICE, &MESSAGES[0]))))
            });
            for answer in join((0..2).map(|_| stage.spawn(|stage| stage.read()))) {
                assert!(
                    kind(&answer).is_none_or(|kind| kind == ErrorKind::Unavailable),
                    "{answer:?}"
                );
            }
            leaves.join().unwrap();
            stage.read().unwrap();
            runtime.settle();
        });
    }
}
