//! Whole streams, opened with the right KEK, context and AAD.
//!
//! The first byte of the input chooses a genuine stream, to which the rest is applied as a list of
//! [`edit`]s; or, as 255, says that the rest is the stream.
//!
//! - Reading a head never panics, fails with the documented kinds only, and allocates nothing in
//!   proportion to a length that the input only claims. `inspect` agrees.
//! - Whatever is read is a beginning of the plaintext that was sealed. Whatever ends is a genuine
//!   stream but for its wrapped keys and their room.
//! - Reading from the beginning, at any place, and on two threads say the same.
#![no_main]

use std::io::Read;
use std::num::NonZero;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pollster::block_on;
use waxseal::{Aad, EncryptionContext, Envelope, ErrorKind, StreamHead, inspect};
use waxseal_fuzz::{
    AAD, allocating_no_more_than_it_has, context, reader, seal_stream, stream_plaintext,
};

const IS_THE_STREAM: u8 = 255;
const SEALED_CHUNK: usize = 4096 + 16;

/// What does not change between inputs.
struct Fixture {
    context: EncryptionContext,
    plaintext: Vec<u8>,
    genuine: Vec<Vec<u8>>,
    /// An envelope that has cached the DEK of every genuine stream.
    warm: Envelope,
}

static FIXTURE: OnceLock<Fixture> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    let fixture = FIXTURE.get_or_init(Fixture::new);
    let stream = if *choice == IS_THE_STREAM {
        rest.to_vec()
    } else {
        let mut stream = fixture.choose(*choice).clone();
        rest.chunks_exact(4).for_each(|change| edit(&mut stream, change, fixture));
        stream
    };
    fixture.check(&stream, *choice != IS_THE_STREAM);
});

/// One change of a stream, in four bytes: what to do, where (`u16`), and a value.
fn edit(stream: &mut Vec<u8>, change: &[u8], fixture: &Fixture) {
    let &[what, low, high, value] = change else { return };
    let at = usize::from(u16::from_le_bytes([low, high])).min(stream.len());
    let other = fixture.choose(value);
    let head_len = StreamHead::from_prefix(stream).map_or(0, |head| head.len());
    // The place of a chunk.
    let chunk = (head_len + at % 4 * SEALED_CHUNK).min(stream.len());
    let end = (chunk + SEALED_CHUNK).min(stream.len());
    match what % 8 {
        0 => stream.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= value),
        1 => stream.truncate(at),
        2 => stream.insert(at, value),
        3 => drop(stream.drain(at..stream.len().min(at + usize::from(value)))),
        // From there on as in the other stream.
        4 => drop(stream.splice(at.., other.iter().skip(at).copied())),
        // A chunk less, a chunk twice, and an end at a chunk's border.
        5 => drop(stream.drain(chunk..end)),
        6 => stream.extend_from_within(chunk..end),
        _ => stream.truncate(chunk),
    }
}

impl Fixture {
    fn new() -> Self {
        let (context, warm, genuine) = (context(), reader(), seal_stream());
        for stream in &genuine {
            block_on(warm.decrypt_stream(&context, Aad::from(AAD), &stream[..])).unwrap();
        }
        Self { context, plaintext: stream_plaintext(), genuine, warm }
    }

    fn choose(&self, choice: u8) -> &Vec<u8> {
        &self.genuine[usize::from(choice) % self.genuine.len()]
    }

    /// What is read, and whether the end was reached.
    fn read(&self, envelope: &Envelope, stream: &[u8]) -> (Vec<u8>, bool) {
        let mut read = Vec::new();
        let opened = block_on(envelope.decrypt_stream(&self.context, Aad::from(AAD), stream));
        let Ok(mut reader) = opened else { return (read, false) };
        // Not `read_to_end`: nightly's leaves nothing of what came before an error.
        let mut part = [0; 1000];
        loop {
            match reader.read(&mut part) {
                Ok(0) => return (read, true),
                Ok(n) => read.extend_from_slice(&part[..n]),
                Err(_) => return (read, false),
            }
        }
    }

    /// `is_changed`: it is one of the genuine streams, but for the changes.
    fn check(&self, stream: &[u8], is_changed: bool) {
        let head = match allocating_no_more_than_it_has(stream, |bytes| StreamHead::read(bytes)) {
            Ok(head) => head,
            Err(error) => {
                let kinds = [
                    ErrorKind::NotSealed,
                    ErrorKind::UnsupportedVersion,
                    ErrorKind::UnsupportedSuite,
                    ErrorKind::UnsupportedKind,
                    ErrorKind::UnsupportedChunkSize,
                    ErrorKind::Malformed,
                ];
                assert!(kinds.contains(&error.kind()), "{error}");
                assert!(!self.read(&self.warm, stream).1);
                return;
            }
        };
        assert!(stream.starts_with(head.as_bytes()));
        assert_eq!(StreamHead::from_prefix(stream).unwrap(), head);
        if let Ok(inspection) = inspect(stream) {
            let shape = inspection.stream.unwrap();
            assert_eq!((shape.head_len, shape.chunk_size), (head.len(), head.chunk_size()));
        }

        let (cold, warm) = (self.read(&reader(), stream), self.read(&self.warm, stream));
        for (read, ended) in [&cold, &warm] {
            assert!(self.plaintext.starts_with(read));
            assert!(!ended || *read == self.plaintext);
        }
        assert!(!cold.1 || warm.1);
        // A seed may be a whole stream that another process sealed under the same KEK.
        if warm.1 && is_changed {
            assert!(self.genuine.iter().any(|genuine| same_but_for_keys(genuine, stream)));
        }
        if self.genuine.iter().any(|genuine| genuine == stream) {
            assert!(cold.1);
        }
        let key = block_on(self.warm.stream_decryptor(&self.context, Aad::from(AAD), &head));
        let Ok(key) = key else { return assert!(warm.0.is_empty() && !warm.1) };
        let (two, mut written) = (NonZero::new(2).unwrap(), Vec::new());
        let ended = key.clone().decrypt(two, &stream[head.len()..], &mut written).is_ok();
        assert!(ended == warm.1, "read: {}, on threads: {ended}", warm.1);
        assert!(written == warm.0, "read: {}, on threads: {}", warm.0.len(), written.len());
        let seekable = key.seekable(stream);
        assert!(!warm.1 || seekable.is_ok());
        if let Ok(seekable) = seekable {
            // Its last chunk is authentic, so its length is that of the genuine stream.
            assert_eq!(seekable.len(), u64::try_from(self.plaintext.len()).unwrap());
            assert_eq!(seekable.read_range(0..u64::MAX).is_ok(), warm.1);
        }
    }
}

fn same_but_for_keys(genuine: &[u8], stream: &[u8]) -> bool {
    let essentials = |stream: &[u8]| {
        let head = StreamHead::from_prefix(stream).ok()?;
        let tail = stream[head.len() - 56..].to_vec();
        Some((stream[..6].to_vec(), stream[8..41].to_vec(), tail))
    };
    essentials(genuine).is_some() && essentials(genuine) == essentials(stream)
}
