//! A stream at any place.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::ground::*;
use waxseal::{Aad, Envelope, ErrorKind, ReadAt, SeekableStream};

fn open<S: ReadAt>(envelope: &Envelope, source: S) -> Result<SeekableStream<S>, waxseal::Error> {
    block_on(envelope.open_stream(&context("alice"), Aad::from(AAD), source))
}

/// A source that notes what is read, and can be exchanged.
#[derive(Clone, Default)]
struct Watched(Arc<Mutex<Noted>>);

#[derive(Default)]
struct Noted {
    bytes: Vec<u8>,
    read: Vec<Range<u64>>,
}

impl Watched {
    fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Noted { bytes, read: Vec::new() })))
    }

    fn exchange(&self, bytes: Vec<u8>) -> Vec<u8> {
        std::mem::replace(&mut self.0.lock().unwrap().bytes, bytes)
    }

    fn take_read(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.0.lock().unwrap().read)
    }
}

impl ReadAt for Watched {
    fn size(&self) -> io::Result<u64> {
        self.0.lock().unwrap().bytes.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut inner = self.0.lock().unwrap();
        let n = inner.bytes.read_at(buffer, offset)?;
        inner.read.push(offset..offset + n as u64);
        Ok(n)
    }
}

/// Gives a byte or two at a time, after an interruption.
struct Trickle(Vec<u8>, Mutex<usize>);

impl ReadAt for Trickle {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut calls = self.1.lock().unwrap();
        *calls += 1;
        if calls.is_multiple_of(2) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let n = buffer.len().min(100);
        self.0.read_at(&mut buffer[..n], offset)
    }
}

/// Notes what is in the buffers that it is given.
struct Shown(Vec<u8>, Mutex<Vec<u8>>);

impl ReadAt for Shown {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.1.lock().unwrap().extend_from_slice(buffer);
        self.0.read_at(buffer, offset)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_range_is_that_of_the_plaintext(
        len in 0..5 * CHUNK, ranges in prop::collection::vec((0..6 * CHUNK as u64, 0..3 * CHUNK as u64), 1..8),
    ) {
        let plaintext = plaintext(len);
        let (kek, sealed) = stream(&plaintext);
        let mut stream = open(&envelope(&kek), sealed).unwrap();
        prop_assert_eq!(stream.len(), len as u64);
        for (start, more) in ranges {
            let expected: Vec<u8> = plaintext
                .iter()
                .skip(usize::try_from(start).unwrap())
                .take(usize::try_from(more).unwrap())
                .copied()
                .collect();
            prop_assert_eq!(&*stream.read_range(start..start + more).unwrap(), &expected[..]);
            // The same by Seek and Read.
            stream.seek(SeekFrom::Start(start)).unwrap();
            let mut read = Vec::new();
            (&mut stream).take(more).read_to_end(&mut read).unwrap();
            prop_assert_eq!(read, expected);
        }
    }
}

#[test]
fn only_the_head_the_chunks_touched_and_the_last_one_are_read() {
    let plaintext = plaintext(50 * CHUNK + 100);
    let (kek, sealed) = stream(&plaintext);
    let head_len = head_len(&sealed) as u64;
    let chunk = |index: u64| {
        let start = head_len + index * SEALED_CHUNK as u64;
        start..(start + SEALED_CHUNK as u64).min(sealed.len() as u64)
    };
    let source = Watched::new(sealed.clone());
    let mut stream = open(&envelope(&kek), source.clone()).unwrap();
    assert_eq!(source.take_read(), [0..1024, chunk(50)]);
    stream.read_range(7 * CHUNK as u64..7 * CHUNK as u64 + 1).unwrap();
    assert_eq!(source.take_read(), [chunk(7)]);
    stream.read_range(8 * CHUNK as u64 - 1..9 * CHUNK as u64 + 1).unwrap();
    assert_eq!(source.take_read(), [chunk(7), chunk(8), chunk(9)]);
    assert!(stream.read_range(5..5).unwrap().is_empty());
    assert!(stream.read_range(u64::MAX - 1..u64::MAX).unwrap().is_empty());
    #[expect(clippy::reversed_empty_ranges, reason = "a caller's mistake")]
    let reversed = stream.read_range(9..5).unwrap();
    assert!(reversed.is_empty());
    assert_eq!(source.take_read(), []);
    // Small reads within a chunk read it once.
    stream.seek(SeekFrom::Start(3 * CHUNK as u64)).unwrap();
    for _ in 0..100 {
        stream.read_exact(&mut [0; 40]).unwrap();
    }
    assert_eq!(source.take_read(), [chunk(3)]);
}

#[test]
fn positions_are_those_of_a_file() {
    let plaintext = plaintext(2 * CHUNK + 10);
    let (kek, sealed) = stream(&plaintext);
    let mut stream = open(&envelope(&kek), &sealed[..]).unwrap();
    let mut byte = [0];
    assert_eq!(stream.seek(SeekFrom::End(-1)).unwrap(), 2 * CHUNK as u64 + 9);
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(byte[0], plaintext[2 * CHUNK + 9]);
    assert_eq!(stream.read(&mut byte).unwrap(), 0);
    assert_eq!(stream.seek(SeekFrom::Current(-5)).unwrap(), 2 * CHUNK as u64 + 5);
    assert_eq!(stream.seek(SeekFrom::Start(1 << 40)).unwrap(), 1 << 40);
    assert_eq!(stream.read(&mut byte).unwrap(), 0);
    for wrong in [SeekFrom::End(-100_000), SeekFrom::Current(i64::MIN)] {
        assert_eq!(stream.seek(wrong).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    stream.rewind().unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, plaintext);
}

#[test]
fn a_source_that_gives_little_and_interrupts_is_read_all_the_same() {
    let plaintext = plaintext(2 * CHUNK + 10);
    let (kek, sealed) = stream(&plaintext);
    let mut stream = open(&envelope(&kek), Trickle(sealed, Mutex::new(0))).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, plaintext);
}

/// A buffer that grows leaves its plaintext behind in memory that nobody wipes.
#[test]
fn a_chunk_that_is_longer_than_the_one_before_has_a_buffer_of_its_own() {
    let (kek, sealed) = stream(&plaintext(3 * CHUNK + 100));
    let source = Shown(sealed, Mutex::default());
    let mut stream = open(&envelope(&kek), &source).unwrap();
    source.1.lock().unwrap().clear();
    // The last chunk, of 100 bytes, is in memory.
    stream.read_exact(&mut [0; 10]).unwrap();
    let shown = source.1.lock().unwrap();
    assert_eq!((shown.len(), shown.iter().find(|byte| **byte != 0)), (SEALED_CHUNK, None));
}

#[test]
fn a_stream_that_was_cut_or_extended_is_not_opened() {
    let (kek, sealed) = stream(&plaintext(9 * CHUNK + 100));
    let envelope = envelope(&kek);
    for len in 0..sealed.len() {
        let error = open(&envelope, &sealed[..len]).unwrap_err().kind();
        let kinds = [ErrorKind::NotSealed, ErrorKind::Malformed, ErrorKind::Invalid];
        assert!(kinds.contains(&error), "cut at {len}: {error}");
    }
    for more in [1, 16, SEALED_CHUNK - 116, SEALED_CHUNK] {
        let longer = [&sealed[..], &vec![0; more]].concat();
        assert!(open(&envelope, longer).is_err(), "{more} bytes more");
    }
}

#[test]
fn a_source_that_changes_between_two_reads_gives_errors_and_no_mixture() {
    let plaintext = plaintext(3 * CHUNK + 100);
    let kek = local("kek");
    let envelope = envelope(&kek);
    let [sealed, other] = [0, 1].map(|_| sealed_by(&envelope, small(), &plaintext));
    let source = Watched::new(sealed.clone());
    let mut stream = open(&envelope, source.clone()).unwrap();
    let invalid = |error: io::Error| assert_eq!(kind_of(&error), ErrorKind::Invalid);
    source.exchange(other);
    invalid(stream.read_range(0..10).unwrap_err());
    invalid(stream.read_to_end(&mut Vec::new()).unwrap_err());
    // A range that fails in its second chunk gives nothing of its first.
    let mut half = sealed.clone();
    let at = head_len(&sealed) + SEALED_CHUNK + 5;
    half[at] ^= 1;
    source.exchange(half);
    invalid(stream.read_range(0..2 * CHUNK as u64).unwrap_err());
    source.exchange(sealed[..head_len(&sealed) + 100].to_vec());
    let error = stream.read_range(0..10).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    // A chunk that failed is not kept.
    source.exchange(sealed);
    stream.rewind().unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, plaintext);
}

#[test]
fn files_are_read_from_many_threads_at_once() {
    let plaintext = plaintext(20 * CHUNK + 5);
    let (kek, sealed) = stream(&plaintext);
    let path = std::env::temp_dir().join(format!("waxseal-ranges-{}", std::process::id()));
    std::fs::write(&path, sealed).unwrap();
    let stream = open(&envelope(&kek), std::fs::File::open(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let (stream, plaintext) = (&stream, &plaintext);
            scope.spawn(move || {
                for i in 0..50 {
                    let start = (thread * 7919 + i * 1543) % plaintext.len();
                    let end = (start + 5000).min(plaintext.len());
                    let part = stream.read_range(start as u64..end as u64).unwrap();
                    assert_eq!(&*part, &plaintext[start..end]);
                }
            });
        }
    });
}

/// For code that gets the bytes of a stream in another way.
#[test]
fn a_chunk_is_decrypted_at_its_index_and_nowhere_else() {
    let plaintext = plaintext(4096 * 2 + 100);
    let (kek, sealed) = stream(&plaintext);
    let envelope = envelope(&kek);
    let head = waxseal::StreamHead::from_prefix(&sealed).unwrap();
    assert_eq!(head.commitment(), sealed[head.len() - 32..head.len()]);
    let decryptor =
        block_on(envelope.stream_decryptor(&context("alice"), Aad::from(AAD), &head)).unwrap();
    let chunks: Vec<_> = sealed[head.len()..].chunks(4096 + 16).map(<[u8]>::to_vec).collect();
    for ((index, chunk), expected) in (0..).zip(&chunks).zip(plaintext.chunks(4096)) {
        let opened = decryptor.decrypt_chunk(index, chunk.clone()).unwrap();
        assert_eq!(*opened, *expected);
        for other in (0..4).filter(|other| *other != index) {
            let error = decryptor.decrypt_chunk(other, chunk.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
        let refused = |chunk: Vec<u8>| decryptor.decrypt_chunk(index, chunk).unwrap_err().kind();
        assert_eq!(refused(chunk[..chunk.len() - 1].to_vec()), ErrorKind::Invalid);
        assert_eq!(refused(chunk[..15].to_vec()), ErrorKind::Malformed);
        assert_eq!(refused(Vec::new()), ErrorKind::Malformed);
        let longer = [&chunk[..], &[0]].concat();
        let kind = if chunk.len() < 4096 { ErrorKind::Invalid } else { ErrorKind::Malformed };
        assert_eq!(refused(longer), kind);
    }
}

/// What a source does at a call.
#[derive(Clone, Copy, Debug)]
enum Act {
    Fails,
    /// It says that it read more than it was given room for.
    Lies,
    /// It has nothing, where there is more.
    Ends,
    /// It reads something else.
    Mistakes,
}

/// Acts at one call.
struct Faulty {
    bytes: Vec<u8>,
    size: Result<u64, io::ErrorKind>,
    calls: Mutex<usize>,
    act: (usize, Act),
}

impl ReadAt for Faulty {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size?)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut calls = self.calls.lock().unwrap();
        *calls += 1;
        let few = buffer.len().min(900);
        let n = self.bytes.read_at(&mut buffer[..few], offset)?;
        match self.act {
            (at, act) if at + 1 == *calls => match act {
                Act::Fails => Err(io::ErrorKind::ConnectionReset.into()),
                Act::Lies => Ok(buffer.len() + 1),
                Act::Ends => Ok(0),
                Act::Mistakes => {
                    buffer[n - 1] ^= 1;
                    Ok(n)
                }
            },
            _ => Ok(n),
        }
    }
}

#[test]
fn a_source_that_fails_ends_lies_or_mistakes_at_any_call_gives_an_error_and_nothing_false() {
    let plaintext = plaintext(3 * CHUNK + 100);
    let (kek, sealed) = stream(&plaintext);
    let mut failed = 0;
    for act in [Act::Fails, Act::Lies, Act::Ends, Act::Mistakes] {
        for at in 0..40 {
            let envelope = envelope(&kek);
            let size = Ok(sealed.len() as u64);
            let source =
                Faulty { bytes: sealed.clone(), size, calls: Mutex::new(0), act: (at, act) };
            let mut all = Vec::new();
            let result = open(&envelope, source).map_err(io::Error::from).and_then(|mut stream| {
                assert_eq!(stream.len(), plaintext.len() as u64);
                stream.read_to_end(&mut all)
            });
            assert!(plaintext.starts_with(&all), "{act:?} at {at}");
            let Err(error) = result else {
                // Beyond the last call, or in bytes after the head, which are read again.
                assert_eq!(all, plaintext, "{act:?} at {at}");
                continue;
            };
            failed += 1;
            match act {
                Act::Mistakes => assert!(waxseal::Error::of_io(&error).is_some(), "{error}"),
                Act::Fails | Act::Lies | Act::Ends => {
                    let is_of_the_head = waxseal::Error::of_io(&error);
                    assert!(is_of_the_head.is_none_or(|error| error.kind() == ErrorKind::Io));
                }
            }
        }
    }
    assert!(failed > 60, "{failed}");
}

#[test]
fn a_source_that_is_wrong_about_its_size_is_not_opened() {
    let (kek, sealed) = stream(&plaintext(2 * CHUNK + 100));
    let envelope = envelope(&kek);
    let source = |size| {
        let none = (usize::MAX - 1, Act::Fails);
        Faulty { bytes: sealed.clone(), size, calls: Mutex::new(0), act: none }
    };
    let len = sealed.len() as u64;
    let chunk = SEALED_CHUNK as u64;
    for size in [0, 1, 103, len - chunk, len - 116, len - 1, len + 1, len + chunk, u64::MAX] {
        assert!(open(&envelope, source(Ok(size))).is_err(), "{size}");
    }
    let error = open(&envelope, source(Err(io::ErrorKind::NotConnected))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    open(&envelope, source(Ok(len))).unwrap();
}

#[test]
fn of_chunks_in_another_order_only_those_at_their_place_are_read() {
    let plaintext = plaintext(4 * CHUNK + 1000);
    let (kek, sealed) = stream(&plaintext);
    let envelope = envelope(&kek);
    let (head, body) = sealed.split_at(head_len(&sealed));
    let chunks: Vec<_> = body.chunks(SEALED_CHUNK).collect();
    let mut opened = 0;
    // Each of the 3,125 selections.
    for number in 0..5_usize.pow(5) {
        let order: Vec<_> = (0..5).map(|place| number / 5_usize.pow(place) % 5).collect();
        let body: Vec<_> = order.iter().map(|i| chunks[*i]).collect();
        let Ok(stream) = open(&envelope, [head, &body.concat()].concat()) else { continue };
        // The last one is authentic, and so the length is that of the stream.
        opened += 1;
        assert_eq!((order[4], stream.len()), (4, plaintext.len() as u64), "{order:?}");
        let mut start = 0;
        for (place, index) in order.iter().enumerate() {
            let end = (start + CHUNK).min(plaintext.len());
            // A short chunk before others moves what follows it.
            let is_whole = !order[..place].contains(&4);
            match stream.read_range(start as u64..end as u64) {
                Ok(part) => {
                    assert!(place == *index && is_whole, "{order:?} at {place}");
                    assert_eq!(&*part, &plaintext[start..end]);
                }
                Err(error) => {
                    assert!(place != *index || !is_whole, "{order:?} at {place}: {error}");
                }
            }
            start = end;
        }
    }
    // The first four are any four of the full ones. With a short one among them, too, the lengths
    // would be another stream's.
    assert_eq!(opened, 4_usize.pow(4));
}

#[test]
fn every_bit_of_head_first_and_last_chunk_counts_for_a_range_too() {
    let plaintext = plaintext(2 * CHUNK + 50);
    let (kek, sealed) = stream(&plaintext);
    let (head_len, warm) = (head_len(&sealed), envelope(&kek));
    assert_eq!(read_alice(&warm, &sealed).1, Ok(()));
    let last = sealed.len() - 66;
    for at in (0..head_len + SEALED_CHUNK).chain(last..sealed.len()) {
        for bit in 0..8 {
            let mut changed = sealed.clone();
            changed[at] ^= 1 << bit;
            // A cached DEK does not look at the wrapped keys.
            let cold = (at < head_len).then(|| envelope(&kek));
            let opened = open(cold.as_ref().unwrap_or(&warm), &changed[..]);
            let is_of_first = (head_len..head_len + SEALED_CHUNK).contains(&at);
            assert_eq!(opened.is_ok(), is_of_first, "bit {bit} of byte {at}");
            if let Ok(stream) = opened {
                assert!(stream.read_range(0..1).is_err(), "bit {bit} of byte {at}");
                let rest = stream.read_range(CHUNK as u64..u64::MAX).unwrap();
                assert_eq!(&*rest, &plaintext[CHUNK..]);
            }
        }
    }
}
