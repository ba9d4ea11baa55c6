//! Who asks the key service, and how often.

use super::*;

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
            let answer = block_on(poll_at_most(1, stage.envelope.encrypt(&ALICE, b"", b"x")));
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
                let first = block_on(std::future::poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))));
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
        stage.envelope.clear();
        stage.read().unwrap();
        done.store(true, SeqCst);
        slow.join().unwrap().unwrap();
        stage.envelope.clear();
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
        *stage.kek.0.denies.lock().unwrap() =
            Some(|context, wrapped| *context == *BOB || wrapped.iter().any(|byte| *byte != wrapped[0]));
        let forger = stage.spawn(move |stage| {
            for _ in 0..2 {
                let _ = block_on(stage.envelope.decrypt(&ALICE, b"", &forged));
            }
        });
        let mallory = stage.spawn(|stage| {
            assert!(block_on(stage.envelope.decrypt(&BOB, b"", &MESSAGES[0])).is_err());
        });
        let readers: Vec<_> = (0..2).map(|_| stage.spawn(|stage| stage.read())).collect();
        for result in join(readers) {
            result.unwrap();
        }
        join([forger, mallory]);
        let at_hand = stage.envelope.decrypt_cached(&ALICE, b"", &MESSAGES[0]).unwrap();
        assert!(at_hand.is_some(), "a denial of something else evicted it");
        stage.end();
    });
}

#[test]
fn no_more_messages_are_sealed_than_a_dek_may() {
    explore(|| {
        let stage = Stage::with(Limits::default().max_messages(3), |builder| builder);
        let key = block_on(stage.envelope.sealing_key(&ALICE)).unwrap();
        let sealers: Vec<_> = (0..3)
            .map(|_| {
                let key = key.clone();
                spawn(move || (0..2).filter(|_| key.seal(b"", b"x").is_ok()).count())
            })
            .collect();
        assert_eq!(join(sealers).iter().sum::<usize>(), 3);
        drop(key);
        stage.end();
    });
}
