//! A whole stream in memory, from one buffer to another.

use std::io::{Read, Write};
use std::num::NonZero;

use proptest::prelude::*;

use super::ground::*;
use waxseal::{
    Aad, Backend, Envelope, ErrorKind, Limits, StreamDecryptor, StreamEncryptor, StreamHead,
    StreamOptions,
};

fn threads(n: usize) -> NonZero<usize> {
    NonZero::new(n).unwrap()
}

fn encryptor(envelope: &Envelope, options: StreamOptions) -> StreamEncryptor {
    block_on(envelope.stream_encryptor(&context("alice"), Aad::from(AAD), options)).unwrap()
}

fn decryptor<'s>(envelope: &Envelope, sealed: &'s [u8]) -> (StreamDecryptor, &'s [u8]) {
    let head = StreamHead::from_prefix(sealed).unwrap();
    let key = block_on(envelope.stream_decryptor(&context("alice"), Aad::from(AAD), &head));
    (key.unwrap(), &sealed[head.len()..])
}

/// Decrypts to a buffer that was used before, and returns what is then in it.
fn opened_to(
    decryptor: &StreamDecryptor,
    n: usize,
    body: &[u8],
    len: usize,
) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut buffer = vec![0xA5; len];
    let result = decryptor.decrypt_slice_to(threads(n), body, &mut buffer);
    (buffer, result.map_err(|error| error.kind()))
}

#[test]
fn every_way_writes_what_every_way_reads_in_every_suite_and_by_every_backend() {
    for (suite, backend) in SUITES.iter().flat_map(|s| Backend::all().iter().map(move |b| (*s, *b)))
    {
        let builder = Envelope::builder().wrap_with(local("kek")).suite(suite).backend(backend);
        let envelope = builder.build().unwrap();
        // The key is used for 64 chunks of 4 KiB at a time, and a thread takes 256.
        for len in [
            0,
            1,
            CHUNK - 1,
            CHUNK,
            CHUNK + 1,
            63 * CHUNK + 5,
            64 * CHUNK,
            65 * CHUNK,
            130 * CHUNK + 1,
            256 * CHUNK,
            512 * CHUNK + 1,
            770 * CHUNK,
        ] {
            let plaintext = plaintext(len);
            for n in [1, 2, 5] {
                let sealed = encryptor(&envelope, small()).encrypt_slice(threads(n), &plaintext);
                let sealed = sealed.unwrap();
                assert_eq!(read_alice(&envelope, &sealed), (plaintext.clone(), Ok(())), "{len}");
                let (decryptor, body) = decryptor(&envelope, &sealed);
                assert_eq!(&*decryptor.decrypt_slice(threads(n), body).unwrap(), &plaintext);
                let (opened, result) = opened_to(&decryptor, n, body, len);
                assert_eq!((opened, result), (plaintext.clone(), Ok(())), "{len}");
                let seekable = decryptor.seekable(&sealed).unwrap();
                assert_eq!(&*seekable.read_range(0..u64::MAX).unwrap(), &plaintext);
            }
            let sealed = sealed_by(&envelope, small(), &plaintext);
            let (decryptor, body) = decryptor(&envelope, &sealed);
            assert_eq!(&*decryptor.decrypt_slice(threads(2), body).unwrap(), &plaintext);
        }
    }
}

#[test]
fn every_size_of_chunks_is_written_and_read() {
    let envelope = envelope(&local("kek"));
    let plaintext = plaintext(700_000);
    for log2 in 12..=24 {
        let options = small().chunk_size(1 << log2);
        let sealed = encryptor(&envelope, options).encrypt_slice(threads(2), &plaintext).unwrap();
        assert_eq!(read_alice(&envelope, &sealed), (plaintext.clone(), Ok(())), "2^{log2}");
        let (decryptor, body) = decryptor(&envelope, &sealed);
        assert_eq!(&*decryptor.decrypt_slice(threads(2), body).unwrap(), &plaintext, "2^{log2}");
    }
}

#[test]
fn a_stream_that_was_changed_anywhere_leaves_zeros() {
    for backend in Backend::all() {
        let builder = Envelope::builder().wrap_with(local("kek")).backend(*backend);
        let envelope = builder.build().unwrap();
        let plaintext = plaintext(70 * CHUNK + 7);
        let sealed = sealed_by(&envelope, small(), &plaintext);
        let (decryptor, body) = decryptor(&envelope, &sealed);
        for n in [1, 3] {
            for chunk in 0..=70 {
                for at in [0, 6, 7, 22] {
                    let mut changed = body.to_vec();
                    changed[chunk * SEALED_CHUNK + at] ^= 1 << (chunk % 8);
                    let (left, result) = opened_to(&decryptor, n, &changed, plaintext.len());
                    assert_eq!(result, Err(ErrorKind::Invalid), "{chunk} {at}");
                    assert!(left.iter().all(|byte| *byte == 0), "chunk {chunk}, {n} threads");
                    let opened = decryptor.decrypt_slice(threads(n), &changed);
                    assert_eq!(opened.unwrap_err().kind(), ErrorKind::Invalid);
                }
            }
        }
        // Chunks in another order, and those of another stream.
        let mut swapped = body.to_vec();
        swapped[..2 * SEALED_CHUNK].rotate_left(SEALED_CHUNK);
        let other = sealed_by(&envelope, small(), &plaintext);
        let mut spliced = body.to_vec();
        spliced[..SEALED_CHUNK].copy_from_slice(&other[head_len(&other)..][..SEALED_CHUNK]);
        for wrong in [swapped, spliced] {
            let (left, result) = opened_to(&decryptor, 2, &wrong, plaintext.len());
            assert_eq!(result, Err(ErrorKind::Invalid));
            assert!(left.iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn a_change_in_the_part_of_any_thread_leaves_zeros() {
    for backend in Backend::all() {
        let builder = Envelope::builder().wrap_with(local("kek")).backend(*backend);
        let envelope = builder.build().unwrap();
        let plaintext = plaintext(520 * CHUNK + 7);
        let sealed = sealed_by(&envelope, small(), &plaintext);
        let (decryptor, body) = decryptor(&envelope, &sealed);
        for chunk in [0, 63, 64, 255, 256, 257, 511, 512, 519, 520] {
            let mut changed = body.to_vec();
            changed[chunk * SEALED_CHUNK + 6] ^= 1;
            for n in [1, 2, 9] {
                let (left, result) = opened_to(&decryptor, n, &changed, plaintext.len());
                assert_eq!(result, Err(ErrorKind::Invalid), "{chunk}");
                assert!(left.iter().all(|byte| *byte == 0), "chunk {chunk}, {n} threads");
            }
        }
        assert_eq!(opened_to(&decryptor, 2, body, plaintext.len()), (plaintext, Ok(())));
    }
}

#[test]
fn a_key_that_ends_while_several_chunks_are_worked_on_leaves_zeros() {
    let envelope = envelope(&local("kek"));
    let plaintext = plaintext(770 * CHUNK);
    for n in [1, 2] {
        let sealed = sealed_by(&envelope, small(), &plaintext);
        let (decryptor, body) = decryptor(&envelope, &sealed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(30));
                envelope.evict_all();
            });
            loop {
                match opened_to(&decryptor, n, body, plaintext.len()) {
                    (opened, Ok(())) => assert!(opened == plaintext),
                    (left, error) => {
                        assert_eq!(error, Err(ErrorKind::Expired));
                        assert!(left.iter().all(|byte| *byte == 0), "{n} threads");
                        break;
                    }
                }
            }
        });
        assert_eq!(opened_to(&decryptor, n, body, plaintext.len()).1, Err(ErrorKind::Expired));
    }
}

#[test]
fn a_stream_that_was_cut_or_extended_is_refused() {
    let envelope = envelope(&local("kek"));
    let plaintext = plaintext(3 * CHUNK + 9);
    let sealed = sealed_by(&envelope, small(), &plaintext);
    let (decryptor, body) = decryptor(&envelope, &sealed);
    for len in 0..body.len() {
        let error = decryptor.decrypt_slice(threads(2), &body[..len]).unwrap_err();
        let expected = match len % SEALED_CHUNK {
            0..16 => ErrorKind::Malformed,
            _ => ErrorKind::Invalid,
        };
        assert_eq!(error.kind(), expected, "cut at {len}");
    }
    for more in [&[0][..], &[0; 16], &body[..SEALED_CHUNK], body] {
        let longer = [body, more].concat();
        let error = decryptor.decrypt_slice(threads(2), &longer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{} more", more.len());
    }
}

#[test]
fn a_buffer_of_another_length_is_refused_and_left_alone() {
    let envelope = envelope(&local("kek"));
    let plaintext = plaintext(CHUNK + 9);
    let sealed = sealed_by(&envelope, small(), &plaintext);
    let (decryptor, body) = decryptor(&envelope, &sealed);
    for len in [0, 1, CHUNK, CHUNK + 8, CHUNK + 10, 2 * CHUNK] {
        let (left, result) = opened_to(&decryptor, 2, body, len);
        assert_eq!(result, Err(ErrorKind::BufferSize));
        assert!(left.iter().all(|byte| *byte == 0xA5));
    }
    let len = sealed.len();
    for len in [0, 1, len - 1, len + 1] {
        let mut buffer = vec![0xA5; len];
        let encryptor = encryptor(&envelope, small());
        let error = encryptor.encrypt_slice_to(threads(2), &plaintext, &mut buffer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BufferSize);
        assert!(buffer.iter().all(|byte| *byte == 0xA5));
    }
    let mut buffer = vec![0xA5; len];
    encryptor(&envelope, small()).encrypt_slice_to(threads(2), &plaintext, &mut buffer).unwrap();
    assert_eq!(read_alice(&envelope, &buffer), (plaintext, Ok(())));
}

/// A reused buffer still has the previous plaintext. A caller that ignores the error must not
/// mistake it for the next one.
#[test]
fn a_body_of_a_length_that_no_stream_has_leaves_zeros() {
    let envelope = envelope(&local("kek"));
    let plaintext = plaintext(2 * CHUNK + 9);
    let sealed = sealed_by(&envelope, small(), &plaintext);
    let (decryptor, body) = decryptor(&envelope, &sealed);
    for cut in [0, 1, 15, SEALED_CHUNK, SEALED_CHUNK + 15, 2 * SEALED_CHUNK] {
        for len in [0, 1, CHUNK, 2 * CHUNK, plaintext.len()] {
            let (left, result) = opened_to(&decryptor, 2, &body[..cut], len);
            assert_eq!(result, Err(ErrorKind::Malformed), "cut at {cut}");
            assert!(left.iter().all(|byte| *byte == 0), "cut at {cut}, a buffer of {len}");
        }
    }
}

#[test]
fn a_key_that_ends_and_caps_that_are_reached_leave_zeros() {
    let limits = Limits::default().max_bytes(5 * CHUNK as u64);
    let envelope = Envelope::builder().wrap_with(local("kek")).limits(limits).build().unwrap();
    let plaintext = plaintext(6 * CHUNK);
    let over = encryptor(&envelope, small());
    let mut buffer =
        vec![0xA5; usize::try_from(over.stream_len(6 * CHUNK as u64).unwrap()).unwrap()];
    let error = over.encrypt_slice_to(threads(2), &plaintext, &mut buffer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert!(buffer.iter().all(|byte| *byte == 0));

    // All bytes are counted before the first is encrypted, so the caps allow as many as before.
    let sealed = encryptor(&envelope, small()).encrypt_slice(threads(1), &plaintext[..2 * CHUNK]);
    assert!(sealed.is_ok());
    let sealed = sealed_by(&envelope, small(), &plaintext[..3 * CHUNK]);
    let (decryptor, body) = decryptor(&envelope, &sealed);
    let ends = encryptor(&envelope, small());
    envelope.evict_all();
    let (left, result) = opened_to(&decryptor, 2, body, 3 * CHUNK);
    assert_eq!(result, Err(ErrorKind::Expired));
    assert!(left.iter().all(|byte| *byte == 0));
    let error = ends.encrypt_slice(threads(2), &plaintext[..CHUNK]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Expired);
}

/// A large buffer gets a chunk directly, a small one gets a part of it.
#[test]
fn a_chunk_that_is_not_authentic_leaves_zeros_in_the_buffer_of_the_read() {
    for backend in Backend::all() {
        let builder = Envelope::builder().wrap_with(local("kek")).backend(*backend);
        let envelope = builder.build().unwrap();
        let plaintext = plaintext(2 * CHUNK + 100);
        let sealed = sealed_by(&envelope, small(), &plaintext);
        for (chunk, len) in [(0, CHUNK), (1, CHUNK), (2, 100)] {
            let mut changed = sealed.clone();
            changed[head_len(&sealed) + chunk * SEALED_CHUNK + len + 3] ^= 1;
            let alice = context("alice");
            let reader = envelope.decrypt_stream(&alice, Aad::from(AAD), &changed[..]);
            let mut reader = block_on(reader).unwrap();
            let mut before = vec![0; chunk * CHUNK];
            reader.read_exact(&mut before).unwrap();
            assert_eq!(before, plaintext[..before.len()]);
            let mut buffer = vec![0xA5; 3 * CHUNK];
            assert_eq!(kind_of(&reader.read(&mut buffer).unwrap_err()), ErrorKind::Invalid);
            // Where the chunk would be. Nothing else was touched.
            assert!(buffer[..len].iter().all(|byte| *byte == 0), "{backend:?} chunk {chunk}");
            assert!(buffer[len..].iter().all(|byte| *byte == 0xA5), "{backend:?} chunk {chunk}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Writes of any sizes make the stream that one write makes, and reads of any sizes find it.
    #[test]
    fn portions_of_any_size_are_one_stream(
        len in 0..6 * CHUNK,
        writes in prop::collection::vec(1..3 * CHUNK, 1..8),
        reads in prop::collection::vec(1..3 * CHUNK, 1..8),
        backend in 0..Backend::all().len(), flip in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let builder = Envelope::builder().wrap_with(local("kek")).backend(Backend::all()[backend]);
        let envelope = builder.build().unwrap();
        let plaintext = plaintext(len);
        let mut writer = encryptor(&envelope, small()).writer(Vec::new());
        let (mut rest, mut sizes) = (&plaintext[..], writes.iter().cycle());
        while !rest.is_empty() {
            let part = rest.len().min(*sizes.next().unwrap());
            writer.write_all(&rest[..part]).unwrap();
            rest = &rest[part..];
        }
        let mut sealed = writer.finish().unwrap();
        prop_assert_eq!(read_alice(&envelope, &sealed), (plaintext.clone(), Ok(())));
        let head_len = head_len(&sealed);
        let flipped = flip.map(|at| at.index(sealed.len() - head_len));
        if let Some(at) = flipped {
            sealed[head_len + at] ^= 4;
        }
        let (decryptor, body) = decryptor(&envelope, &sealed);
        let mut reader = decryptor.reader(body);
        let (mut read, mut sizes) = (Vec::new(), reads.iter().cycle());
        let result = loop {
            let mut buffer = vec![0xA5; *sizes.next().unwrap()];
            match reader.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => read.extend_from_slice(&buffer[..n]),
                Err(error) => {
                    prop_assert!(buffer.iter().all(|byte| [0, 0xA5].contains(byte)));
                    break Err(kind_of(&error));
                }
            }
        };
        let authentic = flipped.map_or(len, |at| (at / SEALED_CHUNK * CHUNK).min(len));
        prop_assert_eq!(read, &plaintext[..authentic]);
        prop_assert_eq!(result, flipped.map_or(Ok(()), |_| Err(ErrorKind::Invalid)));
    }
}
