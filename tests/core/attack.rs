//! Any change of a message gives an error or the original plaintext, never anything else, and never
//! a panic.
#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation
)]

use std::sync::atomic::Ordering;
use waxseal_testing::support;

use support::{Lie, Probe, SUITES, Sample, block_on, context, envelope, local, samples};
use waxseal::kek::KekErrorClass;
use waxseal::{
    Aad, Backend, DekOrigin, Envelope, ErrorKind, KekId, Sealed, WrappedDek, WrappedKeys, inspect,
    is_sealed,
};

/// Opens a changed message with nothing cached, and with its DEK cached.
fn open_both_ways(
    sample: &Sample,
    warm: &Envelope,
    backend: Backend,
    changed: &[u8],
    what: &str,
    may_open: bool,
) {
    for envelope in [&sample.cold(backend), warm] {
        match sample.open(envelope, changed) {
            Ok(plaintext) => {
                assert!(may_open, "{}: {what}: accepted", sample.name);
                assert_eq!(plaintext, sample.plaintext, "{}: {what}: other plaintext", sample.name);
            }
            Err(error) => assert!(!error.is_retryable(), "{}: {what}: {error}", sample.name),
        }
    }
}

fn warm(sample: &Sample, backend: Backend) -> Envelope {
    let envelope = sample.cold(backend);
    assert_eq!(
        sample.open(&envelope, &sample.sealed).unwrap(),
        sample.plaintext,
        "{}",
        sample.name
    );
    envelope
}

#[test]
fn every_flipped_bit_is_refused_or_changes_nothing() {
    for backend in Backend::all() {
        for sample in samples() {
            let warm = warm(&sample, *backend);
            let wrapped = sample.wrapped_range();
            for at in 0..sample.sealed.len() {
                for bit in 0..8 {
                    let mut changed = sample.sealed.clone();
                    changed[at] ^= 1 << bit;
                    let what = format!("bit {bit} of byte {at}");
                    open_both_ways(
                        &sample,
                        &warm,
                        *backend,
                        &changed,
                        &what,
                        wrapped.contains(&at),
                    );
                }
            }
        }
    }
}

#[test]
fn every_truncation_and_every_lengthening_is_refused() {
    for backend in Backend::all() {
        for sample in samples() {
            let warm = warm(&sample, *backend);
            for len in 0..sample.sealed.len() {
                open_both_ways(
                    &sample,
                    &warm,
                    *backend,
                    &sample.sealed[..len],
                    &format!("cut to {len}"),
                    false,
                );
                open_both_ways(
                    &sample,
                    &warm,
                    *backend,
                    &sample.sealed[len + 1..],
                    &format!("{} cut off", len + 1),
                    false,
                );
            }
            for more in [&[0][..], &[0; 16], &sample.sealed] {
                let longer = [&sample.sealed, more].concat();
                open_both_ways(
                    &sample,
                    &warm,
                    *backend,
                    &longer,
                    &format!("{} bytes more", more.len()),
                    false,
                );
            }
        }
    }
}

#[test]
fn parts_of_two_messages_never_make_a_third() {
    let kek = local("kek");
    let seal = |suite, tenant: &str, aad: &[u8], plaintext: &[u8]| {
        let envelope = Envelope::builder().wrap_with(kek.clone()).suite(suite).build().unwrap();
        block_on(envelope.encrypt(&context(tenant), Aad::from(aad), plaintext)).unwrap()
    };
    let mut messages = Vec::new();
    for suite in SUITES {
        for (tenant, aad, plaintext) in [
            ("alice", &b"row 1"[..], &b"first of alice"[..]),
            ("alice", b"row 2", b"other of alice"),
            ("bob", b"row 1", b"the one of bob"),
        ] {
            messages.push((suite, tenant, aad, plaintext, seal(suite, tenant, aad, plaintext)));
        }
    }
    let cut = |suite: waxseal::Suite, sealed: &[u8]| {
        let nonce = 40 + suite.nonce_len();
        let wrapped = nonce + usize::from(u16::from_le_bytes([sealed[6], sealed[7]]));
        [
            0..4,
            4..5,
            5..6,
            8..40,
            40..nonce,
            nonce..wrapped,
            wrapped..sealed.len() - 16,
            sealed.len() - 16..sealed.len(),
        ]
    };
    let mut spliced = 0;
    for (suite_a, tenant, aad, plaintext, a) in &messages {
        for (suite_b, .., b) in &messages {
            if a == b {
                continue;
            }
            // One part of the one message instead of the other's, the length field made to fit.
            for part in 0..8 {
                let mut bytes: Vec<u8> = Vec::new();
                for (i, (from_a, from_b)) in
                    cut(*suite_a, a).into_iter().zip(cut(*suite_b, b)).enumerate()
                {
                    if i == 3 {
                        bytes.extend([0, 0]);
                    }
                    bytes.extend(if i == part { &b[from_b] } else { &a[from_a] });
                }
                let wrapped =
                    if part == 5 { cut(*suite_b, b)[5].len() } else { cut(*suite_a, a)[5].len() };
                bytes[6..8].copy_from_slice(&u16::try_from(wrapped).unwrap().to_le_bytes());
                for envelope in [&envelope(&kek), &{
                    let warm = envelope(&kek);
                    block_on(warm.decrypt(&context(tenant), Aad::from(aad), a)).unwrap();
                    warm
                }] {
                    match block_on(envelope.decrypt(&context(tenant), Aad::from(aad), &bytes)) {
                        // Another message's wrapped keys in front of the cached DEK; or a part that
                        // was the same in both.
                        Ok(opened) => assert!(
                            &*opened == *plaintext && (part == 5 || bytes == *a),
                            "part {part}"
                        ),
                        Err(error) => assert!(!error.is_retryable()),
                    }
                }
                spliced += 1;
            }
        }
    }
    assert_eq!(spliced, 9 * 8 * 8);
}

#[test]
fn a_message_opens_only_under_its_context_and_its_aad() {
    for sample in samples() {
        let warm = warm(&sample, Backend::default());
        for envelope in [&sample.cold(Backend::default()), &warm] {
            for other in [context("bob"), waxseal::EncryptionContext::empty()] {
                let wrong = Sample { context: other, ..sample_of(&sample) };
                assert_eq!(
                    wrong.open(envelope, &sample.sealed).unwrap_err().kind(),
                    ErrorKind::Invalid,
                    "{}",
                    sample.name
                );
            }
            for aad in [&b""[..], b"row 1", b"row 170", b"Row 17"] {
                let wrong = Sample { aad: aad.to_vec(), ..sample_of(&sample) };
                assert_eq!(
                    wrong.open(envelope, &sample.sealed).unwrap_err().kind(),
                    ErrorKind::Invalid,
                    "{}",
                    sample.name
                );
            }
        }
        assert_eq!(
            sample.open(&warm, &sample.sealed).unwrap(),
            sample.plaintext,
            "the rightful reader is untouched"
        );
    }
}

fn sample_of(sample: &Sample) -> Sample {
    Sample {
        name: sample.name.clone(),
        suite: sample.suite,
        keks: sample.keks.clone(),
        context: sample.context.clone(),
        aad: sample.aad.clone(),
        plaintext: sample.plaintext.clone(),
        sealed: sample.sealed.clone(),
        wrapped_keys: sample.wrapped_keys.clone(),
    }
}

#[test]
fn the_forms_are_not_exchangeable() {
    let kek = local("kek");
    let alice = context("alice");
    let compact =
        block_on(envelope(&kek).encrypt_compact(&alice, Aad::empty(), b"payload")).unwrap();
    let cold = envelope(&kek);
    let error = block_on(cold.decrypt(&alice, Aad::empty(), compact.as_bytes())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingWrappedKeys);

    // The wrapped keys put after the nonce, with and without the length field that says so.
    let mut embedded = compact.as_bytes().to_vec();
    embedded.splice(52..52, compact.wrapped_keys().as_bytes().iter().copied());
    assert_eq!(
        block_on(cold.decrypt(
            &alice,
            Aad::empty(),
            Sealed::compact(&embedded, compact.wrapped_keys())
        ))
        .unwrap_err()
        .kind(),
        ErrorKind::Invalid
    );
    let len = u16::try_from(compact.wrapped_keys().as_bytes().len()).unwrap();
    embedded[6..8].copy_from_slice(&len.to_le_bytes());
    assert_eq!(
        &*block_on(cold.decrypt(&alice, Aad::empty(), &embedded)).unwrap(),
        b"payload",
        "that is what embedding means"
    );

    // A compact message with the wrapped keys of another DEK.
    let other = block_on(envelope(&kek).encrypt_compact(&alice, Aad::empty(), b"payload")).unwrap();
    let error = block_on(envelope(&kek).decrypt(
        &alice,
        Aad::empty(),
        Sealed::compact(compact.as_bytes(), other.wrapped_keys()),
    ))
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn lengths_at_their_extremes_are_refused_without_allocating_for_them() {
    let sample = &samples()[1];
    let envelope = sample.cold(Backend::default());
    for claimed in [1, 100, u16::MAX - 1, u16::MAX] {
        let mut changed = sample.sealed.clone();
        changed[6..8].copy_from_slice(&claimed.to_le_bytes());
        let info =
            allocation_counter::measure(|| assert!(sample.open(&envelope, &changed).is_err()));
        assert!(info.bytes_max < 16 * 1024, "W = {claimed}: {} bytes at the peak", info.bytes_max);
    }
    // Every variable-length integer of the wrapped keys, as large as it can be written.
    for huge in [
        &[251, 255, 255][..],
        &[252, 255, 255, 255, 255],
        &[253, 255, 255, 255, 255, 255, 255, 255, 255],
    ] {
        for at in 0..12 {
            let mut list = sample.sealed[sample.wrapped_range()].to_vec();
            list.splice(at..at + 1, huge.iter().copied());
            let info =
                allocation_counter::measure(|| assert!(WrappedKeys::try_from(&list[..]).is_err()));
            assert!(
                info.bytes_max < 16 * 1024,
                "integer at {at}: {} bytes at the peak",
                info.bytes_max
            );
        }
    }
}

#[test]
fn a_lying_key_service_is_an_error_and_never_another_plaintext() {
    let probe = Probe::new("kek");
    let alice = context("alice");
    let sealed = block_on(envelope(&probe.kek).encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    for lie in [Lie::OtherDek, Lie::ShortDek, Lie::LongDek] {
        probe.lie(lie);
        let cold = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
        assert_eq!(
            block_on(cold.decrypt(&alice, Aad::empty(), &sealed)).unwrap_err().kind(),
            ErrorKind::Invalid,
            "{lie:?}"
        );
        assert!(
            cold.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_none(),
            "{lie:?}: a lie was kept"
        );
        probe.lie(None);
        // That the answer was wrong is remembered for a while.
        cold.evict_all();
        assert_eq!(
            &*block_on(cold.decrypt(&alice, Aad::empty(), &sealed)).unwrap(),
            b"payload",
            "{lie:?}: no harm stays"
        );
    }
}

#[test]
fn a_lie_at_sealing_is_found_before_anything_is_sealed() {
    let alice = context("alice");
    for (origin, lie, kind) in [
        (DekOrigin::Local, Lie::ForeignEntry, ErrorKind::Provider),
        (DekOrigin::KeyService, Lie::ForeignEntry, ErrorKind::Provider),
        (DekOrigin::KeyService, Lie::ShortDek, ErrorKind::Provider),
        (DekOrigin::KeyService, Lie::LongDek, ErrorKind::Provider),
    ] {
        let probe = Probe::new("kek");
        probe.lie(lie);
        let envelope =
            Envelope::builder().wrap_with(probe.clone()).dek_origin(origin).build().unwrap();
        assert_eq!(
            block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap_err().kind(),
            kind,
            "{origin:?} {lie:?}"
        );
    }
    // A generated DEK that is not the wrapped one cannot be noticed by the writer, and is by every
    // reader.
    let probe = Probe::new("kek");
    probe.lie(Lie::OtherDek);
    let writer = Envelope::builder()
        .wrap_with(probe.clone())
        .dek_origin(DekOrigin::KeyService)
        .build()
        .unwrap();
    let sealed = block_on(writer.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    assert_eq!(
        block_on(envelope(&probe.kek).decrypt(&alice, Aad::empty(), &sealed)).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn a_lie_at_rewrapping_is_found_before_the_old_entry_is_dropped() {
    let probe = Probe::new("kek");
    let alice = context("alice");
    let envelope = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
    let sealed = block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    probe.kek.rotate().unwrap();
    probe.lie(Lie::RewrapsOtherDek);
    let rewrapped = block_on(envelope.rewrap(&alice, &sealed)).unwrap();
    assert_eq!(
        &*block_on(support::envelope(&probe.kek).decrypt(&alice, Aad::empty(), &rewrapped))
            .unwrap(),
        b"x"
    );
    probe.lie(Lie::ForeignEntry);
    assert_eq!(block_on(envelope.rewrap(&alice, &sealed)).unwrap_err().kind(), ErrorKind::Provider);

    // Without the check the caller gets what the service said, as documented.
    probe.lie(Lie::RewrapsOtherDek);
    let broken = block_on(envelope.rewrap_unverified(&alice, &sealed)).unwrap();
    assert_eq!(
        block_on(support::envelope(&probe.kek).decrypt(&alice, Aad::empty(), &broken))
            .unwrap_err()
            .kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn a_forged_message_does_not_disturb_the_rightful_reader() {
    let probe = Probe::new("kek");
    let alice = context("alice");
    let reader = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
    let sealed = block_on(envelope(&probe.kek).encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    block_on(reader.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    let calls = probe.calls();

    let mallory = context("mallory");
    let mut garbage = sealed.clone();
    garbage[60..].fill(0xEE);
    for (context, forged) in [(&mallory, &sealed), (&alice, &garbage), (&mallory, &garbage)] {
        assert!(block_on(reader.decrypt(context, Aad::empty(), forged)).is_err());
        assert_eq!(
            &*reader.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().unwrap(),
            b"payload",
            "evicted"
        );
    }
    assert_eq!(probe.calls(), calls, "a forged message cost a call");
}

#[test]
fn plain_bytes_are_never_passed_through() {
    let envelope = envelope(&local("kek"));
    for plain in [&b""[..], b"plain", &[0; 100], &[0xC1; 100], b"\xC1WX"] {
        assert!(!is_sealed(plain) && inspect(plain).is_err());
        assert!(block_on(envelope.decrypt(&context("alice"), Aad::empty(), plain)).is_err());
        let mut buffer = plain.to_vec();
        assert!(
            block_on(envelope.decrypt_in_place(&context("alice"), Aad::empty(), &mut buffer))
                .is_err()
        );
        assert_eq!(buffer, plain, "bytes that are no message were changed");
    }
}

#[test]
fn a_failed_opening_in_place_wipes_only_what_it_decrypted() {
    for backend in Backend::all() {
        for sample in samples().iter().filter(|sample| sample.wrapped_keys.is_none()) {
            let envelope = sample.cold(*backend);
            let payload = sample.wrapped_range().end..sample.sealed.len() - 16;
            let mut buffer = sample.sealed.clone();
            let error = block_on(envelope.decrypt_in_place(
                &sample.context,
                Aad::from(b"wrong"),
                &mut buffer,
            ))
            .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(
                buffer[payload.clone()].iter().all(|byte| *byte == 0),
                "{}: {backend:?}",
                sample.name
            );
            assert_eq!(buffer[..payload.start], sample.sealed[..payload.start]);

            let mut buffer = sample.sealed.clone();
            assert!(
                block_on(envelope.decrypt_in_place(
                    &context("bob"),
                    Aad::from(&sample.aad),
                    &mut buffer
                ))
                .is_err()
            );
            assert_eq!(
                buffer, sample.sealed,
                "{}: the key was not found, so nothing was touched",
                sample.name
            );
        }
    }
}

#[test]
fn the_error_of_several_keks_leaves_the_most_hope() {
    use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

    let probes = [Probe::new("a"), Probe::new("b")];
    let alice = context("alice");
    let build = || {
        let builder = Envelope::builder().wrap_with(probes[0].clone()).wrap_with(probes[1].clone());
        builder.build().unwrap()
    };
    let sealed = block_on(build().encrypt(&alice, Aad::empty(), b"x")).unwrap();
    for (first, second, kind) in [
        (Denied, Unavailable, ErrorKind::Unavailable),
        (Invalid, Throttled, ErrorKind::Throttled),
        (Misconfigured, Denied, ErrorKind::Misconfigured),
        (Invalid, Denied, ErrorKind::Denied),
        (Invalid, Invalid, ErrorKind::Invalid),
    ] {
        for (a, b) in [(first, second), (second, first)] {
            probes[0].lie(Lie::Fails(a));
            probes[1].lie(Lie::Fails(b));
            assert_eq!(
                block_on(build().decrypt(&alice, Aad::empty(), &sealed)).unwrap_err().kind(),
                kind,
                "{a} and {b}"
            );
            probes[1].lie(None);
            assert_eq!(
                &*block_on(build().decrypt(&alice, Aad::empty(), &sealed)).unwrap(),
                b"x",
                "any success serves"
            );
        }
    }
    assert!(probes[1].unwraps.load(Ordering::SeqCst) > 0);
}

#[test]
fn an_entry_of_an_unknown_kek_is_named() {
    let sealed =
        block_on(envelope(&local("theirs")).encrypt(&context("alice"), Aad::empty(), b"x"))
            .unwrap();
    let error =
        block_on(envelope(&local("ours")).decrypt(&context("alice"), Aad::empty(), &sealed))
            .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownKek);
    assert!(error.to_string().contains("local:theirs"), "{error}");
}

#[test]
fn one_good_entry_among_bad_ones_is_enough() {
    let kek = local("kek");
    let alice = context("alice");
    let compact = block_on(envelope(&kek).encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let bad = |id: &str| WrappedDek::new(KekId::new(id).unwrap(), vec![7; 76]).unwrap();
    let good = compact.wrapped_keys().entries()[0].clone();
    let list = WrappedKeys::new([bad("a"), good, bad("z")]).unwrap();
    assert_eq!(
        &*block_on(envelope(&kek).decrypt(
            &alice,
            Aad::empty(),
            Sealed::compact(compact.as_bytes(), &list)
        ))
        .unwrap(),
        b"x"
    );
}
