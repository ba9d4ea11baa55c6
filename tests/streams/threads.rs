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
