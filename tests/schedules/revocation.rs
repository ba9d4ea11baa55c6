//! What holds once a revoking call has returned.

use super::*;
use crate::Aad;

#[derive(Clone, Copy, PartialEq)]
enum Hand {
    RevokeKek,
    RevokeContext,
    Clear,
    ShutDown,
}

/// Readers, a writer and handles work while an operator intervenes.
fn race(hand: Hand) {
    LazyLock::force(&MESSAGES);
    explore(move || {
        let stage = Stage::new(|builder| builder);
        let opening = block_on(stage.envelope.decryptor(&BOB, &MESSAGES[1])).unwrap();
        let sealing = block_on(stage.envelope.encryptor(&ALICE)).unwrap();
        if hand == Hand::RevokeContext {
            // The other context's handle does not matter then.
            stage.envelope.evict_all();
        }
        // What had been asked when the hand came down; what was asked later is as good as new.
        let before: Arc<Mutex<Option<(u64, u64)>>> = Arc::default();
        let calls = |stage: &Stage| (stage.kek.unwraps(), stage.kek.generates());

        let check = move |stage: &Stage,
                          before: Option<(u64, u64)>,
                          result: &Result<(), Error>,
                          writing: bool| {
            let Some((unwraps, generates)) = before else {
                // A call that the hand interrupted may say so; nothing else goes wrong.
                let denied = [ErrorKind::Denied, ErrorKind::ShutDown];
                assert!(kind(result).is_none_or(|kind| denied.contains(&kind)), "{result:?}");
                return;
            };
            match hand {
                Hand::RevokeKek => assert_eq!(kind(result), Some(ErrorKind::Denied), "{result:?}"),
                Hand::ShutDown => assert_eq!(kind(result), Some(ErrorKind::ShutDown), "{result:?}"),
                Hand::RevokeContext | Hand::Clear => {
                    assert!(result.is_ok(), "{result:?}");
                    let asked = match writing {
                        true => stage.kek.generates() > generates,
                        // A DEK for writing comes with one for reading, but of another message.
                        false => stage.kek.unwraps() > unwraps,
                    };
                    assert!(asked, "an old DEK served");
                }
            }
        };

        let reader = {
            let before = before.clone();
            stage.spawn(move |stage| {
                for _ in 0..2 {
                    let began = *before.lock().unwrap();
                    let result = stage.read();
                    check(&stage, began, &result, false);
                }
            })
        };
        let writer = {
            let before = before.clone();
            stage.spawn(move |stage| {
                for _ in 0..2 {
                    let began = *before.lock().unwrap();
                    let result = stage.write();
                    check(&stage, began, &result, true);
                }
            })
        };
        let handles = {
            let before = before.clone();
            spawn(move || {
                for _ in 0..2 {
                    let began = *before.lock().unwrap();
                    let results = [
                        opening.decrypt(Aad::empty(), &MESSAGES[1]).map(drop),
                        sealing.encrypt(Aad::empty(), b"x").map(drop),
                    ];
                    for result in results {
                        match began {
                            Some(_) => {
                                assert_eq!(kind(&result), Some(ErrorKind::Expired), "{result:?}")
                            }
                            None => assert!(
                                kind(&result).is_none_or(|kind| kind == ErrorKind::Expired),
                                "{result:?}"
                            ),
                        }
                    }
                }
            })
        };
        let at_the_beginning = calls(&stage);
        match hand {
            Hand::RevokeKek => stage.envelope.revoke_kek(stage.kek.id()),
            Hand::RevokeContext => stage.envelope.evict_context(&ALICE),
            Hand::Clear => stage.envelope.evict_all(),
            Hand::ShutDown => stage.envelope.shut_down(),
        }
        *before.lock().unwrap() = Some(at_the_beginning);
        join([reader, writer, handles]);

        let statistics = stage.envelope.statistics();
        let cached = (statistics.reading_deks, statistics.writing_deks);
        match hand {
            Hand::RevokeKek | Hand::ShutDown => {
                assert_eq!(cached, (0, 0), "an answer on its way was kept")
            }
            Hand::RevokeContext | Hand::Clear => {
                let result = stage.read();
                check(&stage, Some(at_the_beginning), &result, false);
            }
        }
        let Stage { envelope, log, kek, .. } = stage;
        drop(envelope);
        // An answer that came too late is discarded before it is a cached DEK, so its end is not
        // reported.
        let (wiped, begun) = (log.count("wiped"), log.begun());
        let too_late = usize::try_from(kek.unwraps() + 2 * kek.generates()).unwrap();
        assert!(wiped <= begun && wiped <= too_late, "{wiped} ends of {begun} DEKs");
    });
}

#[test]
fn a_revoked_kek_serves_nobody() {
    race(Hand::RevokeKek);
}

#[test]
fn a_revoked_context_is_asked_for_again() {
    race(Hand::RevokeContext);
}

#[test]
fn a_cleared_envelope_asks_again() {
    race(Hand::Clear);
}

#[test]
fn an_envelope_that_is_shut_down_serves_nobody() {
    race(Hand::ShutDown);
}

/// What two callers get who ask for a handle while the DEK is stale: they may share a call, or each
/// has its own.
fn handles_of_two(stage: &Stage) -> Vec<JoinHandle<Result<Encryptor, Error>>> {
    let ask = |after: Duration| {
        stage.spawn(move |stage| {
            stage.clock.advance(after);
            block_on(stage.envelope.encryptor(&ALICE))
        })
    };
    // After that time a call is not joined any more.
    vec![ask(Duration::ZERO), ask(ms(800))]
}

#[test]
fn a_denial_ends_the_lease_that_another_call_brings_meanwhile() {
    explore(|| {
        let limits = few_entries().max_age(MAX_AGE).stale_if_error_writing(secs(1000));
        let stage = Stage::with(limits.denial_ttl(Duration::ZERO), |builder| builder);
        let first = block_on(stage.envelope.encryptor(&ALICE)).unwrap();
        stage.clock.advance(MAX_AGE);
        let handles = handles_of_two(&stage);
        *stage.kek.0.denies.lock().unwrap() = Some(|_, _| true);
        shuttle::thread::yield_now();
        *stage.kek.0.denies.lock().unwrap() = None;
        let handles = join(handles);
        let is_denied = stage.log.count("denied") > 0;
        for handle in &handles {
            match handle {
                Ok(handle) if is_denied && handle.dek_id() == first.dek_id() => {
                    let result = handle.encrypt(Aad::empty(), b"x");
                    assert_eq!(kind(&result), Some(ErrorKind::Expired), "it goes on");
                }
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::Denied),
            }
        }
        let now = block_on(stage.envelope.encryptor(&ALICE)).unwrap();
        assert_eq!(now.dek_id() == first.dek_id(), !is_denied);
        drop((first, now, handles));
        stage.end();
    });
}

#[test]
fn an_evicted_dek_is_not_brought_back_by_its_renewal() {
    explore(|| {
        let stage = Stage::new(|builder| builder);
        let first = block_on(stage.envelope.encryptor(&ALICE)).unwrap();
        let id = first.dek_id();
        stage.clock.advance(secs(81));
        let evicted = Arc::new(AtomicBool::new(false));
        let renewals = (0..2).map(|_| {
            let evicted = evicted.clone();
            stage.spawn(move |stage| {
                let handle = block_on(stage.envelope.encryptor(&ALICE)).unwrap();
                let began_after = evicted.load(SeqCst);
                let result = handle.encrypt(Aad::empty(), b"x");
                assert!(!(began_after && handle.dek_id() == id && result.is_ok()), "brought back");
            })
        });
        let renewals: Vec<_> = renewals.collect();
        stage.envelope.evict_context(&ALICE);
        evicted.store(true, SeqCst);
        join(renewals);
        let now = block_on(stage.envelope.encryptor(&ALICE)).unwrap();
        assert_ne!(now.dek_id(), id);
        drop((first, now));
        stage.end();
    });
}

#[test]
fn a_renewed_dek_is_wiped_once_and_with_its_last_lease() {
    explore(|| {
        let stage = Stage::new(|builder| builder);
        let first = block_on(stage.envelope.encryptor(&ALICE)).unwrap();
        stage.clock.advance(secs(81));
        let writers = (0..2).map(|_| stage.spawn(|stage| stage.write().unwrap()));
        let writers: Vec<_> = writers.collect();
        stage.pass(secs(20));
        join(writers);
        sync::settle();
        stage.pass(ms(10));
        sync::settle();
        assert_eq!(kind(&first.encrypt(Aad::empty(), b"x").map(drop)), Some(ErrorKind::Expired));
        stage.pass(MAX_AGE);
        sync::settle();
        stage.pass(ms(10));
        sync::settle();
        let begun = stage.log.begun();
        assert_eq!(stage.log.count("wiped"), begun, "idle, and past the end of the last lease");
        drop(first);
        stage.end();
    });
}
