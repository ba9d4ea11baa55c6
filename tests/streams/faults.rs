//! Readers and writers that fail, give little, interrupt, block and lie.

use std::cell::Cell;
use std::io::{self, ErrorKind as IoErrorKind, Read, Write};

use super::ground::*;
use waxseal::{Aad, ErrorKind, StreamHead};

/// What happens at a call.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Error(IoErrorKind),
    Lie,
    Nothing,
}

/// Passes on at most `step` bytes a call, with a fault at some calls.
struct Faulty<'f, I> {
    inner: I,
    step: usize,
    calls: usize,
    fault: &'f dyn Fn(usize) -> Option<Fault>,
}

impl<I> Faulty<'_, I> {
    fn next(&mut self, len: usize) -> io::Result<Result<usize, usize>> {
        self.calls += 1;
        match (self.fault)(self.calls - 1) {
            None => Ok(Ok(len.min(self.step))),
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::Lie) => Ok(Err(len + 1)),
            Some(Fault::Nothing) => Ok(Err(0)),
        }
    }
}

impl<R: Read> Read for Faulty<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.next(buffer.len())? {
            Ok(step) => self.inner.read(&mut buffer[..step]),
            Err(lie) => Ok(lie),
        }
    }
}

impl<W: Write> Write for Faulty<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.next(bytes.len())? {
            Ok(step) => self.inner.write(&bytes[..step]),
            Err(lie) => Ok(lie),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.next(0).and_then(|_| self.inner.flush())
    }
}

/// Repeats what may be repeated, as a loop over a socket does.
fn until<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error)
                if [IoErrorKind::Interrupted, IoErrorKind::WouldBlock].contains(&error.kind()) => {}
            result => return result,
        }
    }
}

#[test]
fn bytes_that_trickle_with_interruptions_make_the_same_stream() {
    let plaintext = plaintext(2 * CHUNK + 300);
    let kek = local("kek");
    let (envelope, alice) = (envelope(&kek), context("alice"));
    for kind in [IoErrorKind::Interrupted, IoErrorKind::WouldBlock] {
        for step in [1, 7, 4096, usize::MAX] {
            let fault = |call: usize| call.is_multiple_of(2).then_some(Fault::Error(kind));
            let encryptor =
                block_on(envelope.stream_encryptor(&alice, Aad::from(AAD), small())).unwrap();
            let to = Faulty { inner: Vec::new(), step, calls: 0, fault: &fault };
            let mut writer = encryptor.writer(to);
            let mut rest = &plaintext[..];
            while !rest.is_empty() {
                let part = rest.len().min(1000);
                let n = until(|| writer.write(&rest[..part])).unwrap();
                rest = &rest[n..];
            }
            until(|| writer.flush()).unwrap();
            until(|| writer.try_finish()).unwrap();
            assert!(writer.write(b"more").is_err(), "it is finished");
            let sealed = writer.get_ref().inner.clone();

            let mut from = Faulty { inner: &sealed[..], step, calls: 0, fault: &|_| None };
            let head = StreamHead::read(&mut from).unwrap();
            let from = Faulty { fault: &fault, ..from };
            let decryptor =
                block_on(envelope.stream_decryptor(&alice, Aad::from(AAD), &head)).unwrap();
            let (mut reader, mut read, mut buffer) = (decryptor.reader(from), Vec::new(), [0; 999]);
            loop {
                match until(|| reader.read(&mut buffer)).unwrap() {
                    0 => break,
                    n => read.extend_from_slice(&buffer[..n]),
                }
            }
            assert_eq!(read, plaintext, "{kind:?}, {step} bytes a call");
        }
    }
}

#[test]
fn a_head_is_read_through_interruptions_and_not_a_byte_further() {
    let (_, sealed) = stream(b"text");
    let fault =
        |call: usize| call.is_multiple_of(2).then_some(Fault::Error(IoErrorKind::Interrupted));
    let mut from = Faulty { inner: &sealed[..], step: 3, calls: 0, fault: &fault };
    let head = StreamHead::read(&mut from).unwrap();
    assert_eq!(head.as_bytes(), &sealed[..sealed.len() - from.inner.len()]);
    assert_eq!(head.len() + 20, sealed.len());
}

#[test]
fn a_reader_that_fails_at_any_call_gives_its_error_and_a_lie_is_no_panic() {
    let plaintext = plaintext(2 * CHUNK + 300);
    let (kek, sealed) = stream(&plaintext);
    let (envelope, alice) = (envelope(&kek), context("alice"));
    let mut done = 0;
    for fault in [Fault::Error(IoErrorKind::ConnectionReset), Fault::Lie, Fault::Nothing] {
        for at in 0.. {
            let faults = |call: usize| (call == at).then_some(fault);
            let from = Faulty { inner: &sealed[..], step: 700, calls: 0, fault: &faults };
            let mut read = Vec::new();
            let result = match block_on(envelope.decrypt_stream(&alice, Aad::from(AAD), from)) {
                Ok(mut reader) => reader.read_to_end(&mut read).map_err(|error| match fault {
                    Fault::Nothing => assert!(waxseal::Error::of_io(&error).is_some()),
                    Fault::Lie => assert_eq!(error.kind(), IoErrorKind::Other),
                    Fault::Error(kind) => assert_eq!(error.kind(), kind),
                }),
                Err(error) => {
                    let kinds = match fault {
                        Fault::Nothing => [ErrorKind::Malformed, ErrorKind::NotSealed],
                        _ => [ErrorKind::Io; 2],
                    };
                    assert!(kinds.contains(&error.kind()), "{fault:?} at {at}: {error}");
                    Err(())
                }
            };
            assert!(plaintext.starts_with(&read));
            if result.is_ok() {
                // Beyond the last call, or the end was reported twice.
                assert_eq!(read, plaintext);
                break;
            }
            done += 1;
        }
    }
    assert!(done > 30, "{done}");
}

#[test]
fn a_writer_that_fails_at_any_call_leaves_nothing_that_is_read_as_whole() {
    let plaintext = plaintext(2 * CHUNK + 300);
    let kek = local("kek");
    let (envelope, alice) = (envelope(&kek), context("alice"));
    let mut done = 0;
    for fault in [Fault::Error(IoErrorKind::StorageFull), Fault::Lie, Fault::Nothing] {
        for at in 0.. {
            let mut file = Vec::new();
            let faults = |call: usize| (call == at).then_some(fault);
            let to = Faulty { inner: &mut file, step: 700, calls: 0, fault: &faults };
            let encryptor =
                block_on(envelope.stream_encryptor(&alice, Aad::from(AAD), small())).unwrap();
            let mut writer = encryptor.writer(to);
            let result = writer.write_all(&plaintext).and_then(|()| writer.finish().map(drop));
            let (read, whole) = read_alice(&envelope, &file);
            assert!(plaintext.starts_with(&read));
            match result {
                Ok(()) => {
                    assert_eq!((read.len(), whole), (plaintext.len(), Ok(())));
                    // `flush` is the last call, and 0 or a lie mean nothing to it.
                    break;
                }
                Err(error) => {
                    let kind = match fault {
                        Fault::Error(kind) => kind,
                        Fault::Lie => IoErrorKind::Other,
                        Fault::Nothing => IoErrorKind::WriteZero,
                    };
                    assert_eq!(error.kind(), kind, "{fault:?} at {at}");
                    assert!(
                        whole.is_err() || file.len() == head_len(&file) + 2 * SEALED_CHUNK + 316
                    );
                }
            }
            done += 1;
        }
    }
    assert!(done > 30, "{done}");
}

#[test]
fn after_an_error_of_the_writer_the_same_call_goes_on() {
    let plaintext = plaintext(2 * CHUNK + 300);
    let kek = local("kek");
    let (envelope, alice) = (envelope(&kek), context("alice"));
    for at in 0..20 {
        let failed = Cell::new(false);
        let faults = |call: usize| {
            (call == at && !failed.replace(true)).then_some(Fault::Error(IoErrorKind::StorageFull))
        };
        let to = Faulty { inner: Vec::new(), step: 700, calls: 0, fault: &faults };
        let encryptor =
            block_on(envelope.stream_encryptor(&alice, Aad::from(AAD), small())).unwrap();
        let mut writer = encryptor.writer(to);
        for part in plaintext.chunks(1000) {
            let mut rest = part;
            while !rest.is_empty() {
                match writer.write(rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(error) => assert_eq!(error.kind(), IoErrorKind::StorageFull),
                }
            }
        }
        while writer.try_finish().is_err() {}
        let sealed = &writer.get_ref().inner;
        assert_eq!(read_alice(&envelope, sealed), (plaintext.clone(), Ok(())), "at {at}");
    }
}

#[test]
fn an_endless_head_takes_no_memory_for_what_it_claims() {
    // W and R at their maximum, and nothing after them.
    let mut head = vec![0xC1, b'W', b'X', 1, 1, 2, 0xFF, 0xFF];
    head.resize(40, 7);
    head.extend([24, 0xFF, 0xFF, 0, 0, 0, 0, 0]);
    let info = allocation_counter::measure(|| {
        assert_eq!(StreamHead::read(&head[..]).unwrap_err().kind(), ErrorKind::Malformed);
        assert_eq!(StreamHead::from_prefix(&head).unwrap_err().kind(), ErrorKind::Malformed);
    });
    assert!(info.bytes_max < 16 * 1024, "{} bytes", info.bytes_max);
}

#[test]
fn a_wrong_commitment_is_refused_before_a_chunk_is_read_or_has_memory() {
    let kek = local("kek");
    let envelope = envelope(&kek);
    let alice = context("alice");
    let mut sealed = sealed_by(&envelope, small().chunk_size(1 << 24), b"text");
    let head_len = head_len(&sealed);
    sealed[head_len - 1] ^= 1;
    let mut from = &sealed[..];
    let info = allocation_counter::measure(|| {
        let refused = block_on(envelope.decrypt_stream(&alice, Aad::from(AAD), &mut from));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
    });
    assert_eq!(from.len(), sealed.len() - head_len, "no chunk was read");
    assert!(info.bytes_max < 64 * 1024, "{} bytes", info.bytes_max);
}
