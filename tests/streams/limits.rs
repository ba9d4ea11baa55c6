//! Streams within the limits of a DEK, and in its counts.

use std::io::Write;

use super::ground::*;
use waxseal::{Aad, Envelope, ErrorKind, Limits, inspect};

fn dek_of(sealed: &[u8]) -> waxseal::DekId {
    inspect(sealed).unwrap().dek_id
}

#[test]
fn a_stream_counts_as_a_message_of_its_dek() {
    let limits = Limits::default().max_messages(3);
    let envelope = Envelope::builder().wrap_with(local("kek")).limits(limits).build().unwrap();
    let alice = context("alice");
    let one = sealed_by(&envelope, small(), &plaintext(5 * CHUNK));
    let two = block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let three = sealed_by(&envelope, small(), b"");
    let four = sealed_by(&envelope, small(), b"");
    assert!(dek_of(&one) == dek_of(&two) && dek_of(&two) == dek_of(&three));
    assert_ne!(dek_of(&three), dek_of(&four));
}

#[test]
fn the_bytes_of_a_stream_are_counted_as_it_grows() {
    let limits = Limits::default().max_bytes(3 * CHUNK as u64 + 10);
    let envelope = Envelope::builder().wrap_with(local("kek")).limits(limits).build().unwrap();
    let alice = context("alice");
    let begin = || {
        let encryptor = block_on(envelope.stream_encryptor(&alice, Aad::from(AAD), small()));
        encryptor.unwrap().writer(Vec::new())
    };
    // Both before the DEK is nearly used up, and the next one is made.
    let (mut writer, mut over) = (begin(), begin());
    writer.write_all(&plaintext(3 * CHUNK)).unwrap();
    let first = dek_of(writer.get_ref());
    let refused = over.write_all(&[0; CHUNK]).unwrap_err();
    assert_eq!(kind_of(&refused), ErrorKind::Exhausted);
    assert_eq!(kind_of(&over.write(b"x").unwrap_err()), ErrorKind::Exhausted, "it stays so");
    writer.write_all(&[0; 10]).unwrap();
    let sealed = writer.finish().unwrap();
    assert_eq!(read_alice(&envelope, &sealed).1, Ok(()));
    // The next stream has the next DEK.
    assert_ne!(dek_of(&sealed_by(&envelope, small(), b"x")), first);
}

#[test]
fn a_chunk_that_is_larger_than_all_bytes_of_a_dek_is_an_invalid_option() {
    let alice = context("alice");
    let built = |max_bytes| {
        let limits = Limits::default().max_bytes(max_bytes);
        Envelope::builder().wrap_with(local("kek")).limits(limits).build().unwrap()
    };
    let below = built(CHUNK as u64 - 1);
    let error = block_on(below.stream_encryptor(&alice, Aad::empty(), small())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("chunk_size is 4096, above max_bytes (4095)"), "{error}");
    let error = block_on(below.encrypt_stream(&alice, Aad::empty(), Vec::new())).unwrap_err();
    assert!(error.to_string().contains("chunk_size is 65536"), "{error}");
    assert_eq!(below.statistics().keks[0].calls, 0, "no key service is asked");
    let just = built(CHUNK as u64);
    assert_eq!(read_alice(&just, &sealed_by(&just, small(), &plaintext(CHUNK))).1, Ok(()));
}

#[test]
fn reading_a_stream_is_one_use_and_a_forged_one_is_none() {
    let kek = local("kek");
    let sealed = sealed_by(&envelope(&kek), small(), &plaintext(5 * CHUNK));
    let limits = Limits::default().max_uses(2);
    let reader = Envelope::builder().unwrap_with(kek).limits(limits).build().unwrap();
    let mut forged = sealed.clone();
    let at = head_len(&sealed) - 1;
    forged[at] ^= 1;
    let calls = || reader.statistics().keks[0].calls;
    for _ in 0..20 {
        assert_eq!(read_alice(&reader, &forged).1, Err(ErrorKind::Invalid));
    }
    assert_eq!(read_alice(&reader, &sealed).1, Ok(()));
    assert_eq!(read_alice(&reader, &sealed).1, Ok(()));
    assert_eq!(calls(), 1);
    assert_eq!(read_alice(&reader, &sealed).1, Ok(()));
    assert_eq!(calls(), 2);
}
