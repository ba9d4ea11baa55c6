//! Wrapped keys in the head of a stream: compact form, room, rewrap.

use super::ground::*;
use waxseal::store::MemoryStore;
use waxseal::{Aad, Envelope, ErrorKind, Sealed, StreamHead, inspect};

#[test]
fn a_compact_stream_is_read_with_the_wrapped_keys_that_were_kept() {
    let kek = local("kek");
    let (writer, alice) = (envelope(&kek), context("alice"));
    let options = small().compact().room(0);
    let encryptor = block_on(writer.stream_encryptor(&alice, Aad::from(AAD), options)).unwrap();
    assert_eq!(encryptor.head_len(), 104);
    let keys = encryptor.wrapped_keys().clone();
    let sealed = encryptor.writer(Vec::new()).finish().unwrap();
    assert_eq!(sealed.len(), 120);
    let cold = envelope(&kek);
    assert_eq!(read_alice(&cold, &sealed).1, Err(ErrorKind::MissingWrappedKeys));
    let head = StreamHead::from_prefix(&sealed).unwrap().with_wrapped_keys(&keys);
    let open = || block_on(cold.stream_decryptor(&alice, Aad::from(AAD), &head));
    open().unwrap();
    // Cached or not, it has to come with them.
    assert_eq!(read_alice(&cold, &sealed).1, Err(ErrorKind::MissingWrappedKeys));
    let other = local("other");
    let foreign = block_on(envelope(&other).encryptor(&alice)).unwrap();
    let head = head.with_wrapped_keys(foreign.wrapped_keys());
    let cold = envelope(&kek);
    let refused = block_on(cold.stream_decryptor(&alice, Aad::from(AAD), &head));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::UnknownKek);
}

#[test]
fn a_key_store_has_the_wrapped_keys_of_compact_streams() {
    let (kek, store) = (local("kek"), MemoryStore::new());
    let build =
        || Envelope::builder().wrap_with(kek.clone()).key_store(store.clone()).build().unwrap();
    let sealed = sealed_by(&build(), small().compact(), &plaintext(CHUNK + 3));
    assert!(inspect(&sealed).unwrap().keks.is_empty());
    assert_eq!(read_alice(&build(), &sealed), (plaintext(CHUNK + 3), Ok(())));
}

#[test]
fn heads_have_one_length_by_their_key_space() {
    let (short, long) = (local("k"), local("a-kek-with-a-longer-name"));
    let options = small().key_space(1000);
    for keks in [&[&short][..], &[&long], &[&short, &long]] {
        let builder = Envelope::builder();
        let builder = keks.iter().fold(builder, |builder, kek| builder.wrap_with((*kek).clone()));
        let envelope = builder.build().unwrap();
        for options in [options, options.compact()] {
            let sealed = sealed_by(&envelope, options, b"");
            assert_eq!(sealed.len(), 104 + 1000 + 16);
        }
    }
    let envelope = envelope(&short);
    let refused = |space| {
        let options = small().key_space(space);
        let begun = block_on(envelope.stream_encryptor(&context("alice"), Aad::empty(), options));
        begun.unwrap_err().kind()
    };
    assert_eq!(refused(50), ErrorKind::TooLarge);
    assert_eq!(refused(131_071), ErrorKind::InvalidOption);
    assert_eq!(refused(131_070), ErrorKind::InvalidOption, "more room than its field can say");
}

#[test]
fn a_length_beyond_every_stream_has_no_counterpart() {
    let envelope = envelope(&local("kek"));
    for log2 in [12_u32, 16, 24] {
        let options = small().chunk_size(1 << log2);
        let alice = context("alice");
        let encryptor = block_on(envelope.stream_encryptor(&alice, Aad::from(AAD), options));
        let encryptor = encryptor.unwrap();
        // Fewer than 2^38 chunks and 2^52 bytes.
        let beyond = (((1_u64 << 38) - 1) << log2).min(1 << 52);
        let longest = encryptor.stream_len(beyond - 1).unwrap();
        for plaintext in [beyond, beyond + 1, u64::MAX] {
            assert_eq!(encryptor.stream_len(plaintext), None, "2^{log2}: {plaintext}");
        }
        let head = encryptor.writer(Vec::new()).finish().unwrap();
        let head = StreamHead::from_prefix(&head).unwrap();
        assert_eq!(head.plaintext_len(longest).unwrap(), beyond - 1);
        // One chunk more, which is empty.
        let error = head.plaintext_len(longest + 17).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "2^{log2}");
        assert!(head.plaintext_len(u64::MAX).is_err());
    }
}

#[test]
fn a_rewrap_changes_the_head_in_place_and_no_other_byte() {
    let (old, new) = (local("old"), local("a-new-kek-with-a-longer-name"));
    let plaintext = plaintext(3 * CHUNK);
    let alice = context("alice");
    let mover =
        Envelope::builder().wrap_with(new.clone()).unwrap_with(old.clone()).build().unwrap();
    for (room, in_place) in [(256, true), (0, false)] {
        let sealed = sealed_by(&envelope(&old), small().room(room), &plaintext);
        assert!(mover.needs_rewrap(&sealed).unwrap());
        let head = StreamHead::from_prefix(&sealed).unwrap();
        let moved = block_on(mover.rewrap_head(&alice, &head)).unwrap();
        assert_eq!(moved.len() == head.len(), in_place);
        let rewrapped = [moved.as_bytes(), &sealed[head.len()..]].concat();
        // The whole stream as bytes gives the same.
        let whole = block_on(mover.rewrap(&alice, &sealed)).unwrap();
        assert_eq!(whole.len(), rewrapped.len());
        assert_eq!(whole[moved.len() - 56..], rewrapped[moved.len() - 56..]);
        assert_eq!(rewrapped[moved.len() - 56..], sealed[head.len() - 56..], "salt and chunks");
        assert!(!mover.needs_rewrap(&rewrapped).unwrap());
        let later = envelope(&new);
        for stream in [rewrapped, whole] {
            assert_eq!(read_alice(&later, &stream), (plaintext.clone(), Ok(())));
            assert_eq!(read_alice(&envelope(&old), &stream).1, Err(ErrorKind::UnknownKek));
        }
    }
}

#[test]
fn many_streams_and_messages_are_rewrapped_together() {
    let (old, new) = (local("old"), local("new"));
    let alice = context("alice");
    let writer = envelope(&old);
    let stream = sealed_by(&writer, small(), b"text");
    let message = block_on(writer.encrypt(&alice, Aad::empty(), b"text")).unwrap();
    let mover = Envelope::builder().wrap_with(new).unwrap_with(old).build().unwrap();
    let both = [&stream[..], &message[..]].map(|sealed| (&alice, sealed));
    let rewrapped = block_on(mover.rewrap_all(both));
    for (new, old) in rewrapped.into_iter().zip([&stream, &message]) {
        let new = new.unwrap();
        assert_eq!(inspect(&new).unwrap().dek_id, inspect(old).unwrap().dek_id);
        assert_eq!(inspect(&new).unwrap().keks[0].kek_id.as_str(), "local:new");
    }
    let compact = sealed_by(&writer, small().compact(), b"text");
    let refused = block_on(mover.rewrap(&alice, &compact)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::MissingWrappedKeys);
    let keys = block_on(writer.encryptor(&alice)).unwrap().wrapped_keys().clone();
    assert!(mover.needs_rewrap(Sealed::compact(&compact, &keys)).unwrap());
    assert!(mover.needs_rewrap(&compact).is_err());
}

#[test]
fn a_border_that_was_moved_between_keys_and_room_is_refused_when_the_list_is_read() {
    let (kek, sealed) = stream(b"text");
    let warm = envelope(&kek);
    assert_eq!(read_alice(&warm, &sealed).1, Ok(()));
    let mut moved = sealed.clone();
    moved[6] += 1; // W
    moved[41] = moved[41].wrapping_sub(1); // R, which is 256
    moved[42] = 0;
    assert_eq!(read_alice(&envelope(&kek), &moved).1, Err(ErrorKind::Malformed));
    assert_eq!(read_alice(&warm, &moved).1, Ok(()), "a cached DEK does not read it");
    // Another sum moves salt and commitment.
    let mut longer = sealed.clone();
    longer[41] = 1;
    assert!(read_alice(&warm, &longer).1.is_err());
}
