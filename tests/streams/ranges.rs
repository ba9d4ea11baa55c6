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
    let (kek, sealed) = stream(&plaintext(3 * CHUNK + 100));
    let envelope = envelope(&kek);
    let head_len = head_len(&sealed);
    let cuts = (0..head_len + 40).chain((head_len..sealed.len()).step_by(97)).chain([
        head_len + SEALED_CHUNK,
        head_len + 3 * SEALED_CHUNK,
        head_len + 2 * SEALED_CHUNK + 116,
        sealed.len() - 1,
    ]);
    for len in cuts {
        assert!(open(&envelope, &sealed[..len]).is_err(), "cut at {len}");
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

/// For whoever gets the bytes of a stream in another way.
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
