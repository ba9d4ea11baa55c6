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

/// Readers, a writer and handles go on while an operator's hand comes down.
fn race(hand: Hand) {
    LazyLock::force(&MESSAGES);
    explore(move || {
        let stage = Stage::new(|builder| builder);
        let opening = block_on(stage.envelope.decryptor(&BOB, &MESSAGES[1])).unwrap();
        let sealing = block_on(stage.envelope.encryptor(&ALICE)).unwrap();
        if hand == Hand::RevokeContext {
            // The other context's handle is nobody's business then.
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
        let at_hand = (statistics.reading_deks, statistics.writing_deks);
        match hand {
            Hand::RevokeKek | Hand::ShutDown => {
                assert_eq!(at_hand, (0, 0), "an answer on its way was kept")
            }
            Hand::RevokeContext | Hand::Clear => {
                let result = stage.read();
                check(&stage, Some(at_the_beginning), &result, false);
            }
        }
        let Stage { envelope, log, kek, .. } = stage;
        drop(envelope);
        // An answer that came too late is thrown away before it is a DEK at hand, so nothing is told of its end.
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
