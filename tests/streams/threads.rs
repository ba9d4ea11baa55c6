//! A whole stream on several threads.

use std::io::{self, Read, Write};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::ground::*;
use waxseal::{Aad, Envelope, ErrorKind, StreamDecryptor, StreamEncryptor, StreamHead};

fn threads(n: usize) -> NonZero<usize> {
    NonZero::new(n).unwrap()
}

fn encryptor(envelope: &Envelope) -> StreamEncryptor {
    block_on(envelope.stream_encryptor(&context("alice"), Aad::from(AAD), small())).unwrap()
}

fn decryptor<'s>(envelope: &Envelope, sealed: &'s [u8]) -> (StreamDecryptor, &'s [u8]) {
    let mut from = sealed;
    let head = StreamHead::read(&mut from).unwrap();
    let key = block_on(envelope.stream_decryptor(&context("alice"), Aad::from(AAD), &head));
    (key.unwrap(), from)
}

/// Gives `left` bytes and then fails or panics.
struct Ends {
    left: usize,
    panics: bool,
}

impl Read for Ends {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.left.min(buffer.len()).min(1000);
        self.left -= n;
        match (n, self.panics) {
            (0, true) => panic!("by the test"),
            (0, false) => Err(io::ErrorKind::ConnectionReset.into()),
            _ => Ok(n),
        }
    }
}

impl Write for Ends {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.read(&mut vec![0; bytes.len()])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn any_number_of_threads_writes_and_reads_the_same() {
    let envelope = envelope(&local("kek"));
    for n in [1, 2, 3, 8] {
        for len in [0, 1, CHUNK, CHUNK + 1, 10 * CHUNK, 33 * CHUNK + 9] {
            let plaintext = plaintext(len);
            let mut sealed = Vec::new();
            let read =
                encryptor(&envelope).encrypt(threads(n), &plaintext[..], &mut sealed).unwrap();
            assert_eq!(read, len as u64);
            assert_eq!(read_alice(&envelope, &sealed), (plaintext.clone(), Ok(())), "{n} {len}");
            let (decryptor, from) = decryptor(&envelope, &sealed);
            let mut opened = Vec::new();
            assert_eq!(decryptor.decrypt(threads(n), from, &mut opened).unwrap(), len as u64);
            assert_eq!(opened, plaintext);
        }
    }
}

#[test]
fn a_change_or_a_cut_is_an_error_behind_everything_before_it() {
    let envelope = envelope(&local("kek"));
    let plaintext = plaintext(20 * CHUNK + 7);
    let sealed = sealed_by(&envelope, small(), &plaintext);
    let head_len = head_len(&sealed);
    for n in [1, 2, 4] {
        for chunk in 0..=20 {
            let mut changed = sealed.clone();
            changed[head_len + chunk * SEALED_CHUNK] ^= 1;
            for (sealed, kind) in [
                (&changed[..], ErrorKind::Invalid),
                (&sealed[..head_len + chunk * SEALED_CHUNK], ErrorKind::Malformed),
            ] {
                let (decryptor, from) = decryptor(&envelope, sealed);
                let mut opened = Vec::new();
                let error = decryptor.decrypt(threads(n), from, &mut opened).unwrap_err();
                assert_eq!(kind_of(&error), kind);
                assert_eq!(opened, plaintext[..chunk * CHUNK], "chunk {chunk}, {n} threads");
            }
        }
    }
}

#[test]
fn a_reader_or_writer_that_fails_or_panics_anywhere_ends_the_call() {
    let envelope = envelope(&local("kek"));
    let plaintext = plaintext(6 * CHUNK + 7);
    for n in [1, 2, 4] {
        for left in (0..7 * CHUNK).step_by(1021) {
            let mut sealed = Vec::new();
            let from = Ends { left, panics: false };
            let error = encryptor(&envelope).encrypt(threads(n), from, &mut sealed).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert!(read_alice(&envelope, &sealed).1.is_err());
            let to = Ends { left: left.min(6 * CHUNK), panics: false };
            let error = encryptor(&envelope).encrypt(threads(n), &plaintext[..], to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let from = Ends { left, panics: true };
                drop(encryptor(&envelope).encrypt(threads(n), from, io::sink()));
            }));
            assert!(panicked.is_err());
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let to = Ends { left: left.min(6 * CHUNK), panics: true };
                drop(encryptor(&envelope).encrypt(threads(n), &plaintext[..], to));
            }));
            assert!(panicked.is_err());
        }
    }
}

/// Says that it read or wrote more than it was given, once it has done this many bytes.
struct Lies(usize);

impl Read for Lies {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = buffer.len().min(1000);
        self.0 = self.0.saturating_sub(n);
        Ok(if self.0 == 0 { buffer.len() + 1 } else { n })
    }
}

impl Write for Lies {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.read(&mut vec![0; bytes.len()])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_or_writer_that_lies_is_an_error_and_no_panic() {
    let envelope = envelope(&local("kek"));
    let plaintext = plaintext(6 * CHUNK);
    for n in [1, 2, 4] {
        for after in (1..6 * CHUNK).step_by(1021) {
            let mut sealed = Vec::new();
            let error = encryptor(&envelope).encrypt(threads(n), Lies(after), &mut sealed);
            assert_eq!(error.unwrap_err().kind(), io::ErrorKind::Other);
            assert!(read_alice(&envelope, &sealed).1.is_err());
            let error = encryptor(&envelope).encrypt(threads(n), &plaintext[..], Lies(after));
            assert_eq!(error.unwrap_err().kind(), io::ErrorKind::Other, "after {after} bytes");
        }
    }
}

/// Gives what was sent, and waits for more.
struct Blocks(std::sync::mpsc::Receiver<Vec<u8>>);

impl Read for Blocks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Ok(bytes) = self.0.recv() else { return Ok(0) };
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

/// Notes what is written, and fails on command.
struct Noted(std::sync::mpsc::Sender<usize>, std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Write for Noted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.send(bytes.len()).unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_was_read_is_written_while_the_reader_blocks_and_a_failure_waits_for_the_reader() {
    use std::sync::mpsc::channel;
    let envelope = envelope(&local("kek"));
    for n in [1, 2, 4] {
        for fails in [false, true] {
            let ((give, from), (to, written)) = (channel(), channel());
            let full = std::sync::Arc::default();
            let (reader, writer) = (Blocks(from), Noted(to, std::sync::Arc::clone(&full)));
            let encryptor = encryptor(&envelope);
            let head = encryptor.head_len();
            let call = std::thread::spawn(move || encryptor.encrypt(threads(n), reader, writer));
            assert_eq!(written.recv().unwrap(), head);
            for _ in 0..3 {
                give.send(vec![7; CHUNK]).unwrap();
                // It comes though nothing follows it.
                assert_eq!(written.recv().unwrap(), SEALED_CHUNK, "{n} threads");
            }
            full.store(fails, std::sync::atomic::Ordering::SeqCst);
            give.send(vec![7; CHUNK]).unwrap();
            drop(give);
            let result = call.join().unwrap();
            match fails {
                false => assert_eq!(result.unwrap(), 4 * CHUNK as u64),
                true => assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull),
            }
        }
    }
}

const COUNTED: &str = "WAXSEAL_TEST_STREAMS_THREADS";

/// The threads of this process that work on a stream, apart from the caller's.
fn working() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // One that ends meanwhile has no name.
    let name = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    let is_one = |task: &std::fs::DirEntry| name(task).is_ok_and(|n| n.trim() == "waxseal-stream");
    tasks.map(Result::unwrap).filter(is_one).count()
}

/// Notes the most threads that there are when it is read. It gives them time to begin. If one is
/// expected, the second read waits for it: a busy machine takes long to run and name a new thread.
struct Counting<'c> {
    bytes: &'c [u8],
    seen: &'c mut usize,
    is_expected: bool,
    is_first: bool,
}

impl<'c> Counting<'c> {
    fn new(bytes: &'c [u8], seen: &'c mut usize, most: usize) -> Self {
        Self { bytes, seen, is_expected: most > 0, is_first: true }
    }
}

impl Read for Counting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for _ in 0..100 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            *self.seen = working().max(*self.seen);
            if *self.seen > 0 || !self.is_expected || self.is_first {
                break;
            }
        }
        self.is_first = false;
        self.bytes.read(buffer)
    }
}

/// In a separate process, where nobody else has threads of that name.
#[test]
fn there_are_no_more_threads_than_chunks() {
    if std::env::var(COUNTED).is_err() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "threads::there_are_no_more_threads_than_chunks"])
            .env(COUNTED, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let envelope = envelope(&local("kek"));
    // The last chunk is the one that is not full. The caller works on one.
    for (len, most) in [(0, 0), (CHUNK - 1, 0), (CHUNK, 1), (3 * CHUNK + 5, 3), (9 * CHUNK, 7)] {
        let (plaintext, mut seen) = (plaintext(len), 0);
        let mut sealed = Vec::new();
        let from = Counting::new(&plaintext, &mut seen, most);
        encryptor(&envelope).encrypt(threads(8), from, &mut sealed).unwrap();
        assert!(seen <= most && (seen > 0) == (most > 0), "{seen} for {len} bytes");
        let (decryptor, from) = decryptor(&envelope, &sealed);
        let (mut opened, mut seen) = (Vec::new(), 0);
        decryptor.decrypt(threads(8), Counting::new(from, &mut seen, most), &mut opened).unwrap();
        assert!(seen <= most && (seen > 0) == (most > 0), "{seen} for {len} bytes");
        assert_eq!(opened, plaintext);
    }
}

/// Every flush but the last is interrupted.
struct Interrupted<'w>(&'w mut Vec<u8>, usize);

impl Write for Interrupted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1 = self.1.saturating_sub(1);
        match self.1 {
            0 => Ok(()),
            _ => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

#[test]
fn a_flush_that_is_interrupted_is_repeated() {
    let envelope = envelope(&local("kek"));
    let plaintext = plaintext(3 * CHUNK);
    for n in [1, 4] {
        let (mut sealed, mut opened) = (Vec::new(), Vec::new());
        let to = Interrupted(&mut sealed, 4);
        encryptor(&envelope).encrypt(threads(n), &plaintext[..], to).unwrap();
        let (decryptor, from) = decryptor(&envelope, &sealed);
        decryptor.decrypt(threads(n), from, Interrupted(&mut opened, 4)).unwrap();
        assert_eq!(opened, plaintext);
    }
}
