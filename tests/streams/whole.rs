//! A stream is read as it was written, or refused.

use std::io::{BufRead, Read, Write};

use super::ground::*;
use waxseal::{Aad, Backend, Envelope, ErrorKind, MessageKind, StreamHead, inspect, is_sealed};

#[test]
fn any_length_comes_back_in_every_suite_and_by_every_backend() {
    for suite in SUITES {
        for (writing, reading) in
            Backend::all().iter().flat_map(|a| Backend::all().iter().map(move |b| (*a, *b)))
        {
            let kek = local("kek");
            let builder = || Envelope::builder().wrap_with(kek.clone()).suite(suite);
            let writer = builder().backend(writing).build().unwrap();
            let reader = builder().backend(reading).build().unwrap();
            for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 5 * CHUNK + 77]
            {
                let plaintext = plaintext(len);
                let sealed = sealed_by(&writer, small(), &plaintext);
                assert_eq!(read_alice(&reader, &sealed), (plaintext, Ok(())), "{suite:?} {len}");
            }
        }
    }
}

#[test]
fn every_size_of_chunks_is_written_and_read_and_no_other() {
    let kek = local("kek");
    let envelope = envelope(&kek);
    let plaintext = plaintext(100_000);
    for log2 in 12..=24 {
        let sealed = sealed_by(&envelope, small().chunk_size(1 << log2), &plaintext);
        assert_eq!(inspect(&sealed).unwrap().stream.unwrap().chunk_size, 1 << log2);
        assert_eq!(read_alice(&envelope, &sealed), (plaintext.clone(), Ok(())), "2^{log2}");
    }
    for size in [0, 1, 2048, 4095, 4097, 65_535, 1 << 25, u32::MAX] {
        let options = small().chunk_size(size);
        let alice = context("alice");
        let refused = block_on(envelope.stream_encryptor(&alice, Aad::empty(), options));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidOption, "{size}");
    }
}

#[test]
fn another_context_aad_or_kek_opens_nothing() {
    let (kek, sealed) = stream(&plaintext(3 * CHUNK));
    let (own, other) = (envelope(&kek), envelope(&local("other")));
    let refused = |envelope: &Envelope, tenant: &str, aad: &[u8]| {
        let (plaintext, result) = read(envelope, &context(tenant), aad, &sealed[..]);
        assert!(plaintext.is_empty());
        result.unwrap_err()
    };
    for _ in ["not cached", "cached"] {
        assert_eq!(refused(&own, "bob", AAD), ErrorKind::Invalid);
        assert_eq!(refused(&own, "alice", b"backup 18"), ErrorKind::Invalid);
        assert_eq!(refused(&own, "alice", b""), ErrorKind::Invalid);
        assert_eq!(refused(&other, "alice", AAD), ErrorKind::UnknownKek);
        assert_eq!(read_alice(&own, &sealed).1, Ok(()));
    }
}

#[test]
fn a_stream_is_no_message_and_a_message_no_stream() {
    let (kek, sealed) = stream(b"text");
    let (envelope, alice) = (envelope(&kek), context("alice"));
    assert!(is_sealed(&sealed));
    let refused = block_on(envelope.decrypt(&alice, Aad::from(AAD), &sealed)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::UnsupportedKind);
    let message = block_on(envelope.encrypt(&alice, Aad::from(AAD), b"text")).unwrap();
    assert_eq!(read_alice(&envelope, &message).1, Err(ErrorKind::UnsupportedKind));
    // The kind is bound in the keys, too.
    let mut disguised = sealed.clone();
    disguised[5] = 1;
    assert!(block_on(envelope.decrypt(&alice, Aad::from(AAD), &disguised)).is_err());
    let inspection = inspect(&sealed).unwrap();
    assert_eq!((inspection.kind, inspection.plaintext_len), (MessageKind::Stream, None));
    assert_eq!(inspection.keks[0].kek_id.as_str(), "local:kek");
    let head = StreamHead::from_prefix(&sealed).unwrap();
    let shape = inspection.stream.unwrap();
    assert_eq!((shape.head_len, shape.room), (head.len(), head.room()));
    assert_eq!(head.plaintext_len(sealed.len().try_into().unwrap()).unwrap(), 4);
}

#[test]
fn a_stream_that_is_cut_anywhere_gives_a_beginning_and_an_error() {
    let plaintext = plaintext(9 * CHUNK + 100);
    let (kek, sealed) = stream(&plaintext);
    let envelope = envelope(&kek);
    let head_len = head_len(&sealed);
    assert_eq!(sealed.len(), head_len + 9 * SEALED_CHUNK + 116);
    assert_eq!(read_alice(&envelope, &sealed), (plaintext.clone(), Ok(())));
    for len in 0..sealed.len() {
        let (part, result) = read_alice(&envelope, &sealed[..len]);
        let whole_chunks = len.saturating_sub(head_len) / SEALED_CHUNK;
        assert_eq!(part, plaintext[..whole_chunks * CHUNK], "cut at {len}");
        let left = len.saturating_sub(head_len) % SEALED_CHUNK;
        let expected = match len {
            0..3 => ErrorKind::NotSealed,
            _ if len < head_len || left < 16 => ErrorKind::Malformed,
            _ => ErrorKind::Invalid,
        };
        assert_eq!(result, Err(expected), "cut at {len}");
    }
    for more in [&[0][..], &[0; 16], &sealed[sealed.len() - 116..], &sealed[head_len..]] {
        let (part, result) = read_alice(&envelope, &[&sealed, more].concat());
        assert!(result.is_err() && plaintext.starts_with(&part), "{} bytes more", more.len());
    }
}

#[test]
fn a_stream_that_ends_with_a_full_chunk_has_an_empty_one_behind_it() {
    let plaintext = plaintext(2 * CHUNK);
    let (kek, sealed) = stream(&plaintext);
    let envelope = envelope(&kek);
    let (without, last) = sealed.split_at(sealed.len() - 16);
    assert_eq!(read_alice(&envelope, without), (plaintext.clone(), Err(ErrorKind::Malformed)));
    let twice = [&sealed, last].concat();
    assert_eq!(read_alice(&envelope, &twice), (plaintext, Err(ErrorKind::Invalid)));
}

#[test]
fn no_order_of_chunks_but_their_own_is_read() {
    let plaintext = plaintext(4 * CHUNK + 1000);
    let (kek, sealed) = stream(&plaintext);
    let envelope = envelope(&kek);
    let (head, body) = sealed.split_at(head_len(&sealed));
    let chunks: Vec<_> = body.chunks(SEALED_CHUNK).collect();
    assert_eq!(chunks.len(), 5);
    let mut opened = 0;
    let mut orders = vec![vec![]];
    for _ in 0..5 {
        orders = orders
            .into_iter()
            .flat_map(|order: Vec<usize>| (0..5).map(move |next| [&order[..], &[next]].concat()))
            .collect();
    }
    // All 3,125 of them: permutations, and those with chunks twice and others missing.
    for order in orders {
        let body: Vec<_> = order.iter().map(|i| chunks[*i]).collect();
        let (part, result) = read_alice(&envelope, &[head, &body.concat()].concat());
        assert!(plaintext.starts_with(&part), "{order:?}");
        assert_eq!(result.is_ok(), order == [0, 1, 2, 3, 4], "{order:?}");
        opened += usize::from(result.is_ok());
    }
    assert_eq!(opened, 1);
    for missing in 0..5 {
        let mut chunks = chunks.clone();
        chunks.remove(missing);
        let (part, result) = read_alice(&envelope, &[head, &chunks.concat()].concat());
        assert!(result.is_err() && plaintext.starts_with(&part), "without {missing}");
    }
}

#[test]
fn chunks_of_another_stream_are_refused_at_every_place() {
    let kek = local("kek");
    let envelope = envelope(&kek);
    let plaintext = plaintext(3 * CHUNK + 5);
    // The same DEK, context, AAD and plaintext.
    let [one, other] = [0, 1].map(|_| sealed_by(&envelope, small(), &plaintext));
    assert_eq!(inspect(&one).unwrap().dek_id, inspect(&other).unwrap().dek_id);
    let head_len = head_len(&one);
    for at in (0..4).map(|i| head_len + i * SEALED_CHUNK) {
        let spliced = [&one[..at], &other[at..]].concat();
        let (part, result) = read_alice(&envelope, &spliced);
        assert_eq!(
            (part.len(), result),
            (at - head_len - (at - head_len) / SEALED_CHUNK * 16, Err(ErrorKind::Invalid))
        );
    }
}

#[test]
fn every_bit_of_head_first_and_last_chunk_counts() {
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
            let (part, result) = read_alice(cold.as_ref().unwrap_or(&warm), &changed);
            assert!(result.is_err(), "bit {bit} of byte {at}");
            assert!(part.is_empty() || at >= last && part == plaintext[..2 * CHUNK]);
        }
    }
}

#[test]
fn a_writer_that_is_dropped_leaves_what_every_reader_refuses() {
    let kek = local("kek");
    let envelope = envelope(&kek);
    for len in [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
        let mut file = Vec::new();
        let encryptor =
            block_on(envelope.stream_encryptor(&context("alice"), Aad::from(AAD), small()));
        let mut writer = encryptor.unwrap().writer(&mut file);
        writer.write_all(&plaintext(len)).unwrap();
        writer.flush().unwrap();
        drop(writer);
        let (part, result) = read_alice(&envelope, &file);
        assert_eq!((part.len(), result), (len / CHUNK * CHUNK, Err(ErrorKind::Malformed)), "{len}");
        let opened = block_on(envelope.open_stream(&context("alice"), Aad::from(AAD), file));
        assert!(opened.unwrap_err().to_string().contains("without `finish`"), "{len}");
    }
}

#[test]
fn plaintext_can_be_read_without_a_copy_and_line_by_line() {
    let lines: String = (0..5000).map(|i| format!("line {i}\n")).collect();
    let (kek, sealed) = stream(lines.as_bytes());
    let envelope = envelope(&kek);
    let alice = context("alice");
    let reader = block_on(envelope.decrypt_stream(&alice, Aad::from(AAD), &sealed[..])).unwrap();
    let read: Vec<_> = reader.lines().map(Result::unwrap).collect();
    assert_eq!((read.len(), &*read[4999]), (5000, "line 4999"));
}

#[test]
fn what_follows_a_stream_is_left_in_no_reader_that_ends_there() {
    let (kek, sealed) = stream(b"text");
    let envelope = envelope(&kek);
    let alice = context("alice");
    let part = (&sealed[..]).take(u64::MAX);
    let mut reader = block_on(envelope.decrypt_stream(&alice, Aad::from(AAD), part)).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!((&*text, reader.read(&mut [0; 9]).unwrap()), ("text", 0));
    assert_eq!(reader.into_inner().into_inner(), b"");
}
