//! A stream that is opened while what it comes from is ended.

use std::io::{Read, Write};

use super::*;
use crate::{StreamOptions, StreamReader, StreamWriter};

const CHUNK: usize = 4096;

/// A stream of Alice, of three chunks, written elsewhere.
static STREAM: LazyLock<Vec<u8>> = LazyLock::new(|| {
    elsewhere(|stage| {
        let mut writer = begin(stage).unwrap();
        writer.write_all(&[7; 2 * CHUNK + 9]).unwrap();
        writer.finish().unwrap()
    })
});

fn begin(stage: &Stage) -> Result<StreamWriter<Vec<u8>>, Error> {
    let options = StreamOptions::default().chunk_size(4096);
    let encryptor = block_on(stage.envelope.stream_encryptor(&ALICE, Aad::empty(), options))?;
    Ok(encryptor.writer(Vec::new()))
}

fn open(stage: &Stage) -> Result<StreamReader<&'static [u8]>, Error> {
    block_on(stage.envelope.decrypt_stream(&ALICE, Aad::empty(), &STREAM[..]))
}

/// A stream, by what its next chunk gives.
type Next = Box<dyn FnMut() -> Option<ErrorKind> + Send>;

fn failed(result: std::io::Result<()>) -> Option<ErrorKind> {
    result.err().map(|error| Error::of_io(&error).unwrap().kind())
}

fn reading(stage: &Stage) -> Result<Next, Error> {
    let mut stream = open(stage)?;
    Ok(Box::new(move || failed(stream.read_exact(&mut [0; CHUNK]))))
}

fn writing(stage: &Stage) -> Result<Next, Error> {
    let mut stream = begin(stage)?;
    Ok(Box::new(move || failed(stream.write_all(&[7; CHUNK]))))
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Hand {
    RevokeKek,
    EvictContext,
    EvictAll,
    ShutDown,
}

/// Opens a stream, and looks at what it may do. `asked` counts the calls that bring its DEK: one
/// was made before. `down` is set once the hand came down.
fn open_against(
    hand: Hand,
    stage: &Stage,
    down: &AtomicBool,
    (opening, asked): (fn(&Stage) -> Result<Next, Error>, fn(&ToyKek) -> u64),
) {
    let began_after = down.load(SeqCst);
    let opened = opening(stage);
    let asked_again = asked(&stage.kek) > 1;
    let is_down = down.load(SeqCst);
    let mut next = match opened {
        Err(error) => {
            let expected = match hand {
                Hand::RevokeKek => &[ErrorKind::Denied][..],
                Hand::ShutDown => &[ErrorKind::ShutDown],
                // A look-up that an eviction interrupts is repeated.
                Hand::EvictContext | Hand::EvictAll => &[],
            };
            assert!(expected.contains(&error.kind()), "{hand:?}: {error}");
            return;
        }
        Ok(next) => next,
    };
    let next = next();
    match hand {
        Hand::RevokeKek | Hand::ShutDown => {
            assert!(!began_after, "{hand:?}: it was opened");
            assert!(!is_down || next == Some(ErrorKind::Expired), "{hand:?}: it goes on");
        }
        Hand::EvictContext | Hand::EvictAll => {
            assert!(!began_after || asked_again, "{hand:?}: an old DEK serves");
            assert!(!began_after || next.is_none(), "{hand:?}: {next:?}");
            assert!(!is_down || asked_again || next == Some(ErrorKind::Expired), "{hand:?}");
        }
    }
    assert!(next.is_none_or(|kind| kind == ErrorKind::Expired), "{hand:?}: {next:?}");
}

fn race(hand: Hand) {
    LazyLock::force(&STREAM);
    explore(move || {
        let stage = Stage::new(|builder| builder);
        let mut before = [reading(&stage).unwrap(), writing(&stage).unwrap()];
        let down = Arc::new(AtomicBool::new(false));
        let openers = [
            (reading as fn(&Stage) -> Result<Next, Error>, ToyKek::unwraps as fn(&ToyKek) -> u64),
            (writing, ToyKek::generates),
        ];
        let openers = openers.map(|how| {
            let down = down.clone();
            stage.spawn(move |stage| {
                for _ in 0..2 {
                    open_against(hand, &stage, &down, how);
                }
            })
        });
        match hand {
            Hand::RevokeKek => stage.envelope.revoke_kek(stage.kek.id()),
            Hand::EvictContext => stage.envelope.evict_context(&ALICE),
            Hand::EvictAll => stage.envelope.evict_all(),
            Hand::ShutDown => stage.envelope.shut_down(),
        }
        down.store(true, SeqCst);
        for next in &mut before {
            assert_eq!(next(), Some(ErrorKind::Expired));
        }
        join(openers);
    });
}

#[test]
fn a_stream_that_is_opened_while_its_kek_is_revoked_has_no_next_chunk() {
    race(Hand::RevokeKek);
}

#[test]
fn a_stream_that_is_opened_while_its_context_is_evicted_has_a_dek_that_was_asked_for_anew() {
    race(Hand::EvictContext);
}

#[test]
fn a_stream_that_is_opened_while_all_is_evicted_has_a_dek_that_was_asked_for_anew() {
    race(Hand::EvictAll);
}

#[test]
fn a_stream_that_is_opened_while_the_envelope_is_shut_down_has_no_next_chunk() {
    race(Hand::ShutDown);
}

#[test]
fn a_denial_that_one_caller_gets_ends_the_streams_that_others_open_meanwhile() {
    LazyLock::force(&STREAM);
    explore(|| {
        let stage = Stage::new(|builder| builder);
        let mut streams = vec![reading(&stage).unwrap()];
        // Due: the first caller asks, and the others are served meanwhile.
        stage.clock.advance(secs(81));
        *stage.kek.0.denies.lock().unwrap() = Some(|_, _| true);
        let callers = [(), ()].map(|()| stage.spawn(|stage| reading(&stage)));
        let mut denied = 0;
        for opened in join(callers) {
            match opened {
                Ok(stream) => streams.push(stream),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Denied);
                    denied += 1;
                }
            }
        }
        assert!(denied > 0, "nobody asked");
        for mut next in streams {
            assert_eq!(next(), Some(ErrorKind::Expired));
        }
    });
}
