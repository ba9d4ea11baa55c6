//! What a call allocates: in place and through a handle nothing, and otherwise exactly what stands
//! here.
//!
//! The counter sees Rust's allocator. What C code allocates (aws-lc, for the keys that XAES-256-GCM
//! derives per message) it does not see.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use allocation_counter::measure;
use support::{SUITES, block_on, context, local};
use waxseal::{Aad, Backend, Envelope, Sealed};
use waxseal_testing::support;

#[test]
fn in_place_through_a_handle_nothing_is_allocated() {
    for backend in Backend::all() {
        for suite in SUITES {
            for len in [0, 64, 1024, 100_000] {
                let calls = if len > 10_000 { 20 } else { 2000 };
                let envelope = Envelope::builder()
                    .wrap_with(local("kek"))
                    .suite(suite)
                    .backend(*backend)
                    .build()
                    .unwrap();
                let alice = context("alice");
                let sealing = block_on(envelope.encryptor(&alice)).unwrap();
                let mut buffer = vec![0; sealing.prefix_len() + len + sealing.tag_len()];
                // The first call of a thread seeds its generator.
                sealing.encrypt_in_place(Aad::from(b"row 1"), &mut buffer).unwrap();
                let opening = block_on(envelope.decryptor(&alice, &buffer)).unwrap();

                let info = measure(|| {
                    for _ in 0..calls {
                        sealing.encrypt_in_place(Aad::from(b"row 1"), &mut buffer).unwrap();
                        opening.decrypt_in_place(Aad::from(b"row 1"), &mut buffer).unwrap();
                    }
                });
                assert_eq!(info.count_total, 0, "{backend:?} {suite:?} {len} bytes");
            }
        }
    }
}

#[test]
fn in_place_with_the_look_up_nothing_is_allocated_either() {
    for backend in Backend::all() {
        let envelope =
            Envelope::builder().wrap_with(local("kek")).backend(*backend).build().unwrap();
        let alice = context("alice");
        let sealed = block_on(envelope.encrypt(&alice, Aad::from(b"row 1"), &[7; 1024])).unwrap();
        let mut buffer = sealed.clone();
        let info = measure(|| {
            for _ in 0..5_000 {
                buffer.copy_from_slice(&sealed);
                block_on(envelope.decrypt_in_place(&alice, Aad::from(b"row 1"), &mut buffer))
                    .unwrap();
            }
        });
        assert_eq!(info.count_total, 0, "{backend:?} opening");
        let mut buffer = Vec::with_capacity(sealed.len());
        let info = measure(|| {
            for _ in 0..5_000 {
                buffer.clear();
                buffer.resize(1024, 7);
                block_on(envelope.encrypt_in_place(&alice, Aad::from(b"row 1"), &mut buffer))
                    .unwrap();
            }
        });
        assert_eq!(info.count_total, 0, "{backend:?} sealing");
    }
}

#[test]
fn a_whole_message_costs_one_allocation_of_its_size() {
    for backend in Backend::all() {
        let envelope =
            Envelope::builder().wrap_with(local("kek")).backend(*backend).build().unwrap();
        let alice = context("alice");
        let key = block_on(envelope.encryptor(&alice)).unwrap();
        let plaintext = vec![7; 50_000];
        let sealed = key.encrypt(Aad::empty(), &plaintext).unwrap();
        let opening = block_on(envelope.decryptor(&alice, &sealed)).unwrap();

        let seal = measure(|| drop(key.encrypt(Aad::empty(), &plaintext).unwrap()));
        assert_eq!(
            (seal.count_total, seal.bytes_total),
            (1, u64::try_from(sealed.len()).unwrap()),
            "{backend:?}"
        );
        let short = key.encrypt(Aad::empty(), &plaintext[..16_000]).unwrap();
        let open = measure(|| drop(opening.decrypt(Aad::empty(), &short).unwrap()));
        assert_eq!((open.count_total, open.bytes_total), (1, 16_000), "{backend:?}");
    }
}

#[test]
fn a_large_plaintext_has_the_buffer_of_the_one_before() {
    for backend in Backend::all() {
        let envelope =
            Envelope::builder().wrap_with(local("kek")).backend(*backend).build().unwrap();
        let alice = context("alice");
        let plaintext = vec![7; 150_000];
        let key = block_on(envelope.encryptor(&alice)).unwrap();
        let [sealed, shorter] =
            [150_000, 100_000].map(|len| key.encrypt(Aad::empty(), &plaintext[..len]).unwrap());
        let opening = block_on(envelope.decryptor(&alice, &sealed)).unwrap();
        drop(opening.decrypt(Aad::empty(), &sealed).unwrap());
        let open = measure(|| {
            for sealed in [&shorter, &sealed, &shorter] {
                drop(opening.decrypt(Aad::empty(), sealed).unwrap());
            }
        });
        assert_eq!(open.count_total, 0, "{backend:?}");
    }
}

/// A change of a figure is a change of what a call costs: if it is meant, write the new one here
/// and say why in the commit.
#[test]
fn every_other_call_allocates_exactly_this_often() {
    for backend in Backend::all() {
        let kek = local("kek");
        let envelope =
            Envelope::builder().wrap_with(kek.clone()).backend(*backend).build().unwrap();
        let alice = context("alice");
        let sealed = block_on(envelope.encrypt(&alice, Aad::from(b"row 1"), &[7; 1024])).unwrap();
        let compact =
            block_on(envelope.encrypt_compact(&alice, Aad::from(b"row 1"), &[7; 1024])).unwrap();
        let cold = || Envelope::builder().wrap_with(kek.clone()).backend(*backend).build().unwrap();

        let check = |name: &str, expected: u64, call: &mut dyn FnMut()| {
            let info = measure(call);
            assert_eq!(info.count_total, expected, "{backend:?} {name}");
        };
        check("encryptor", 0, &mut || drop(block_on(envelope.encryptor(&alice)).unwrap()));
        check("decryptor", 0, &mut || drop(block_on(envelope.decryptor(&alice, &sealed)).unwrap()));
        check("encrypt", 1, &mut || {
            drop(block_on(envelope.encrypt(&alice, Aad::from(b"row 1"), &[7; 1024])).unwrap())
        });
        check("encrypt_compact", 1, &mut || {
            drop(
                block_on(envelope.encrypt_compact(&alice, Aad::from(b"row 1"), &[7; 1024]))
                    .unwrap(),
            );
        });
        check("decrypt", 1, &mut || {
            drop(block_on(envelope.decrypt(&alice, Aad::from(b"row 1"), &sealed)).unwrap())
        });
        check("decrypt_cached", 1, &mut || {
            drop(envelope.decrypt_cached(&alice, Aad::from(b"row 1"), &sealed).unwrap())
        });
        check("decrypt_compact", 1, &mut || {
            let keys = compact.wrapped_keys();
            drop(
                block_on(envelope.decrypt(
                    &alice,
                    Aad::from(b"row 1"),
                    Sealed::compact(compact.as_bytes(), keys),
                ))
                .unwrap(),
            );
        });
        let mut forged = sealed.clone();
        *forged.last_mut().unwrap() ^= 1;
        check("decrypt of a forged message", 2, &mut || {
            drop(block_on(envelope.decrypt(&alice, Aad::from(b"row 1"), &forged)).unwrap_err());
        });

        // The least of ten: the list of what has to be wiped, one for the process, grows now and
        // then.
        let least = |call: &dyn Fn(&Envelope)| {
            (0..10).map(|_| cold()).map(|envelope| measure(|| call(&envelope)).count_total).min()
        };
        let decrypt = least(&|cold| {
            drop(block_on(cold.decrypt(&alice, Aad::from(b"row 1"), &sealed)).unwrap())
        });
        assert_eq!(decrypt, Some(46), "{backend:?} decrypt, nothing cached");
        let encrypt = least(&|cold| {
            drop(block_on(cold.encrypt(&alice, Aad::from(b"row 1"), &[7; 1024])).unwrap())
        });
        assert_eq!(encrypt, Some(55), "{backend:?} encrypt, nothing cached");
    }
}

#[test]
fn a_stream_of_any_length_takes_one_chunk_of_memory_on_each_side() {
    use std::io::{Read, Write, pipe};

    let envelope = Envelope::builder().wrap_with(local("kek")).build().unwrap();
    let alice = context("alice");
    // Both in the cache, which is not a stream's.
    let mut first = block_on(envelope.encrypt_stream(&alice, Aad::empty(), Vec::new())).unwrap();
    first.write_all(b"x").unwrap();
    let first = first.finish().unwrap();
    block_on(envelope.decrypt_stream(&alice, Aad::empty(), &first[..])).unwrap();

    let (from, to) = pipe().unwrap();
    let mut memory = [0; 2];
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            measure(|| {
                let writer = envelope.encrypt_stream(&alice, Aad::empty(), to);
                let mut writer = block_on(writer).unwrap();
                for block in 0..1024_usize {
                    writer.write_all(&[u8::try_from(block % 256).unwrap(); 1 << 16]).unwrap();
                }
                writer.finish().unwrap();
            })
            .bytes_max
        });
        let reading = measure(|| {
            let mut reader = block_on(envelope.decrypt_stream(&alice, Aad::empty(), from)).unwrap();
            let (mut buffer, mut len) = ([0; 4096], 0);
            loop {
                match reader.read(&mut buffer).unwrap() {
                    0 => break,
                    n => len += n,
                }
            }
            assert_eq!(len, 64 << 20);
        });
        memory = [writing.join().unwrap(), reading.bytes_max];
    });
    for bytes in memory {
        assert!((64 << 10..80 << 10).contains(&bytes), "{memory:?} bytes for chunks of 64 KiB");
    }
}
