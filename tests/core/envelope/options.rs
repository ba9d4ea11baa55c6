//! What each option of the builder changes.

use super::*;

#[test]
fn write_to_and_read_from_say_who_wraps_and_who_only_unwraps() {
    let [a, b] = [local("a"), local("b")];
    let alice = context("alice");
    let service = Envelope::builder().wrap_with(a.clone()).unwrap_with(b.clone()).build().unwrap();
    let sealed = block_on(service.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    assert_eq!(inspect(&sealed).unwrap().keks.len(), 1);
    assert_eq!(
        kind(block_on(envelope(&b).decrypt(&alice, Aad::empty(), &sealed))),
        ErrorKind::UnknownKek
    );
    let old = block_on(envelope(&b).encrypt(&alice, Aad::empty(), b"old")).unwrap();
    assert_eq!(&*block_on(service.decrypt(&alice, Aad::empty(), &old)).unwrap(), b"old");
    let reader = Envelope::builder().unwrap_with(a).build().unwrap();
    assert_eq!(
        kind(block_on(reader.encrypt(&alice, Aad::empty(), b"x"))),
        ErrorKind::InvalidOption
    );
    assert_eq!(kind(block_on(reader.encryptor(&alice))), ErrorKind::InvalidOption);
}

#[test]
fn suite_is_the_one_of_new_messages() {
    for suite in SUITES {
        let service = Envelope::builder().wrap_with(local("kek")).suite(suite).build().unwrap();
        let sealed = block_on(service.encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
        assert_eq!(inspect(&sealed).unwrap().suite, suite);
    }
    let sealed =
        block_on(envelope(&local("kek")).encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
    assert_eq!(inspect(&sealed).unwrap().suite, Suite::Aes256Gcm, "the default");
}

#[test]
fn nonces_are_random_from_either_source() {
    for nonces in [Nonces::Thread, Nonces::System] {
        for suite in SUITES {
            let service = Envelope::builder()
                .wrap_with(local("kek"))
                .suite(suite)
                .nonces(nonces)
                .build()
                .unwrap();
            let key = block_on(service.encryptor(&context("alice"))).unwrap();
            let seen: HashSet<_> = (0..500)
                .map(|_| {
                    key.encrypt(Aad::empty(), b"x").unwrap()[40..40 + suite.nonce_len()].to_vec()
                })
                .collect();
            assert_eq!(seen.len(), 500);
        }
    }
}

#[test]
fn dek_origin_says_who_makes_deks() {
    for (origin, generates, wraps) in [(DekOrigin::Local, 0, 2), (DekOrigin::KeyService, 1, 1)] {
        let [a, b] = [Probe::new("a"), Probe::new("b")];
        let service = Envelope::builder()
            .wrap_with(a.clone())
            .wrap_with(b.clone())
            .dek_origin(origin)
            .build()
            .unwrap();
        let sealed = block_on(service.encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
        let made = a.generates.load(Ordering::SeqCst) + b.generates.load(Ordering::SeqCst);
        let wrapped = a.wraps.load(Ordering::SeqCst) + b.wraps.load(Ordering::SeqCst);
        assert_eq!((made, wrapped), (generates, wraps), "{origin:?}");
        for kek in [&a.kek, &b.kek] {
            assert_eq!(
                &*block_on(envelope(kek).decrypt(&context("alice"), Aad::empty(), &sealed))
                    .unwrap(),
                b"x"
            );
        }
    }
}

#[test]
fn max_age_ends_deks_and_handles() {
    let probe = Probe::new("kek");
    let alice = context("alice");
    let limits = Limits::default().max_age(Duration::from_millis(1000));
    let service = Envelope::builder().wrap_with(probe.clone()).limits(limits).build().unwrap();
    let sealed = block_on(service.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let (sealing, opening) = (
        block_on(service.encryptor(&alice)).unwrap(),
        block_on(service.decryptor(&alice, &sealed)).unwrap(),
    );
    std::thread::sleep(Duration::from_millis(1050));
    assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
    assert_eq!(kind(opening.decrypt(Aad::empty(), &sealed)), ErrorKind::Expired);
    let mut buffer = sealed.clone();
    assert_eq!(kind(opening.decrypt_in_place(Aad::empty(), &mut buffer)), ErrorKind::Expired);
    assert!(service.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_none());
    block_on(service.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    assert_eq!(probe.unwraps.load(Ordering::SeqCst), 1);
    block_on(service.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    assert_eq!(probe.wraps.load(Ordering::SeqCst), 2);

    let long = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
    let key = block_on(long.encryptor(&alice)).unwrap();
    std::thread::sleep(Duration::from_millis(1050));
    key.encrypt(Aad::empty(), b"x").unwrap();
}

#[test]
fn max_entries_bounds_the_cached_deks() {
    let probe = Probe::new("kek");
    let messages: Vec<_> = (0..50)
        .map(|i| {
            let context = context(&format!("tenant-{i}"));
            let sealed =
                block_on(envelope(&probe.kek).encrypt(&context, Aad::empty(), b"x")).unwrap();
            (context, sealed)
        })
        .collect();
    for (max_entries, at_most) in [(1, 1), (10, 10), (4096, 50)] {
        let limits = Limits::default().max_entries(max_entries);
        let service = Envelope::builder().wrap_with(probe.clone()).limits(limits).build().unwrap();
        for (context, sealed) in &messages {
            block_on(service.decrypt(context, Aad::empty(), sealed)).unwrap();
        }
        // The cache settles its bounds occasionally, not at once: that is its documented way.
        std::thread::sleep(Duration::from_millis(400));
        for (context, sealed) in &messages {
            let _ = service.decrypt_cached(context, Aad::empty(), sealed).unwrap();
        }
        std::thread::sleep(Duration::from_millis(400));
        let is_cached = |(context, sealed): &&(EncryptionContext, Vec<u8>)| {
            service.decrypt_cached(context, Aad::empty(), sealed).unwrap().is_some()
        };
        let kept = messages.iter().filter(is_cached).count();
        assert!(kept <= at_most && kept > 0, "max_entries {max_entries}: {kept} cached");
    }
}

#[test]
fn max_messages_and_max_bytes_end_a_dek_and_the_envelope_makes_the_next() {
    let alice = context("alice");
    for (limits, per_dek) in
        [(Limits::default().max_messages(3), 3), (Limits::default().max_bytes(25), 2)]
    {
        let probe = Probe::new("kek");
        let service = Envelope::builder().wrap_with(probe.clone()).limits(limits).build().unwrap();
        for _ in 0..per_dek * 4 {
            block_on(service.encrypt(&alice, Aad::empty(), b"ten bytes.")).unwrap();
        }
        assert_eq!(probe.wraps.load(Ordering::SeqCst), 4, "{limits:?}");

        let key = block_on(service.encryptor(&alice)).unwrap();
        let key = if key.encrypt(Aad::empty(), b"ten bytes.").is_ok() {
            key
        } else {
            block_on(service.encryptor(&context("bob"))).unwrap()
        };
        let more = (0..10)
            .take_while(|_| key.clone().encrypt(Aad::empty(), b"ten bytes.").is_ok())
            .count();
        assert!(more <= per_dek, "clones share the caps");
        assert_eq!(kind(key.encrypt(Aad::empty(), b"ten bytes.")), ErrorKind::Exhausted);
    }
}

#[test]
fn a_payload_that_no_dek_may_seal_is_refused_before_anybody_is_asked() {
    let probe = Probe::new("kek");
    let limits = Limits::default().max_bytes(10);
    let service = Envelope::builder().wrap_with(probe.clone()).limits(limits).build().unwrap();
    assert_eq!(
        kind(block_on(service.encrypt(&context("alice"), Aad::empty(), &[0; 11]))),
        ErrorKind::TooLarge
    );
    assert_eq!(probe.calls(), 0);
    block_on(service.encrypt(&context("alice"), Aad::empty(), &[0; 10])).unwrap();
}

#[test]
fn caps_hold_among_threads() {
    let limits = Limits::default().max_messages(1000);
    let service = Envelope::builder().wrap_with(local("kek")).limits(limits).build().unwrap();
    let key = block_on(service.encryptor(&context("alice"))).unwrap();
    let sealed: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| (0..500).filter(|_| key.encrypt(Aad::empty(), b"x").is_ok()).count())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(sealed, 1000);
}

#[test]
fn nonsense_is_refused_at_build_with_the_option_named() {
    let good = || Envelope::builder().wrap_with(local("kek"));
    let limits = Limits::default();
    let cases: Vec<(EnvelopeBuilder, &str)> = vec![
        (Envelope::builder(), "wrap_with"),
        (
            (0..17)
                .fold(Envelope::builder(), |builder, i| builder.wrap_with(local(&format!("{i}")))),
            "wrap_with",
        ),
        (good().wrap_with(local("kek")), "wrap_with"),
        (good().unwrap_with(local("kek")), "unwrap_with"),
        (good().limits(limits.max_age(Duration::ZERO)), "max_age"),
        (good().limits(limits.max_age(Duration::from_nanos(1))), "max_age"),
        (
            good().limits(limits.max_age(Duration::from_secs(25 * 3600))),
            "max_age is 1d1h, 1ms to 1d are allowed",
        ),
        (
            good().limits(limits.refresh_after(Duration::from_secs(600))),
            "refresh_after is 10m, above 0s and below max_age (5m) is allowed",
        ),
        (good().limits(limits.refresh_after(Duration::ZERO)), "refresh_after is 0s"),
        (
            good().limits(limits.stale_if_error_reading(Duration::from_secs(24 * 3600))),
            "the sum of max_age and stale_if_error is 1d5m, 1ms to 1d are allowed",
        ),
        (
            good().limits(limits.denial_ttl(Duration::from_secs(301))),
            "denial_ttl is 5m1s, 0s to 5m are allowed",
        ),
        (good().limits(limits.max_age(Duration::MAX)), "max_age"),
        (good().limits(limits.max_entries(0)), "max_entries"),
        (good().limits(limits.max_entries((1 << 20) + 1)), "max_entries"),
        (good().limits(limits.max_messages(0)), "max_messages"),
        (good().limits(limits.max_messages((1 << 32) + 1)), "max_messages"),
        (
            good().suite(Suite::ChaCha20Poly1305).limits(limits.max_messages((1 << 32) + 1)),
            "max_messages",
        ),
        (good().limits(limits.max_bytes(0)), "max_bytes"),
        (good().limits(limits.max_bytes((1 << 50) + 1)), "max_bytes"),
    ];
    for (builder, option) in cases {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(option), "{option}: {error}");
    }
    for edge in [
        limits.max_age(Duration::from_millis(1)),
        limits.max_age(Duration::from_secs(24 * 3600)),
        limits.max_entries(1 << 20).max_messages(1 << 32).max_bytes(1 << 50),
        limits.max_entries(1).max_messages(1).max_bytes(1),
    ] {
        good().limits(edge).build().unwrap();
    }
    good()
        .suite(Suite::Xaes256Gcm)
        .limits(limits.max_messages(u64::MAX).max_bytes(u64::MAX))
        .build()
        .unwrap();
}

#[test]
fn sixteen_writing_keks_are_allowed() {
    let builder =
        (0..16).fold(Envelope::builder(), |builder, i| builder.wrap_with(local(&format!("{i}"))));
    let sealed =
        block_on(builder.build().unwrap().encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
    assert_eq!(inspect(&sealed).unwrap().keks.len(), 16);
}
