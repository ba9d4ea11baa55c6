//! What a service does with an envelope, and what each option of its builder changes.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::type_complexity)]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use waxseal_testing::support;

use support::{Lie, Probe, SUITES, block_on, context, envelope, local, samples};
use waxseal::kek::{BoxFuture, Health, KekError, KekErrorClass, KekProvider, UnwrappedDek};
use waxseal::{
    Aad, Backend, Dek, DekOrigin, EncryptionContext, Envelope, EnvelopeBuilder, Error, ErrorKind,
    Limits, MessageKind, Nonces, Sealed, Suite, WrappedDek, WrappedKeys, inspect, is_sealed,
};

fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    match result {
        Ok(_) => panic!("succeeded"),
        Err(error) => error.kind(),
    }
}

#[test]
fn what_is_sealed_opens_in_every_way() {
    for backend in Backend::all() {
        for suite in SUITES {
            let kek = local("kek");
            let alice = context("alice");
            let writer = Envelope::builder()
                .wrap_with(kek.clone())
                .suite(suite)
                .backend(*backend)
                .build()
                .unwrap();
            for plaintext in [&b""[..], b"x", &[7; 100_000]] {
                let sealed =
                    block_on(writer.encrypt(&alice, Aad::from(b"aad"), plaintext)).unwrap();
                let mut in_place = plaintext.to_vec();
                block_on(writer.encrypt_in_place(&alice, Aad::from(b"aad"), &mut in_place))
                    .unwrap();
                let key = block_on(writer.encryptor(&alice)).unwrap();
                let by_handle = key.encrypt(Aad::from(b"aad"), plaintext).unwrap();
                let mut room = vec![0; key.prefix_len() + plaintext.len() + key.tag_len()];
                room[key.prefix_len()..][..plaintext.len()].copy_from_slice(plaintext);
                key.encrypt_in_place(Aad::from(b"aad"), &mut room).unwrap();
                assert_eq!((key.suite(), key.context()), (suite, &alice));

                for sealed in [sealed, in_place, by_handle, room] {
                    assert!(is_sealed(&sealed));
                    assert_eq!(sealed.len(), key.prefix_len() + plaintext.len() + key.tag_len());
                    let cold = envelope(&kek);
                    assert!(
                        cold.decrypt_cached(&alice, Aad::from(b"aad"), &sealed).unwrap().is_none()
                    );
                    assert_eq!(
                        &*block_on(cold.decrypt(&alice, Aad::from(b"aad"), &sealed)).unwrap(),
                        plaintext
                    );
                    assert_eq!(
                        &*cold.decrypt_cached(&alice, Aad::from(b"aad"), &sealed).unwrap().unwrap(),
                        plaintext
                    );
                    assert_eq!(
                        *block_on(cold.decrypt_in_place(
                            &alice,
                            Aad::from(b"aad"),
                            &mut sealed.clone()
                        ))
                        .unwrap(),
                        *plaintext
                    );
                    let key = block_on(envelope(&kek).decryptor(&alice, &sealed)).unwrap();
                    assert_eq!(&*key.decrypt(Aad::from(b"aad"), &sealed).unwrap(), plaintext);
                    assert_eq!(
                        *key.decrypt_in_place(Aad::from(b"aad"), &mut sealed.clone()).unwrap(),
                        *plaintext
                    );
                    assert_eq!((key.suite(), key.context()), (suite, &alice));
                }
            }
        }
    }
}

#[test]
fn the_backends_open_each_others_messages() {
    for from in Backend::all() {
        for sample in samples() {
            assert_eq!(
                sample.open(&sample.cold(*from), &sample.sealed).unwrap(),
                sample.plaintext,
                "{}",
                sample.name
            );
        }
    }
}

#[test]
fn many_messages_of_one_context_cost_one_call_and_other_contexts_one_each() {
    let probe = Probe::new("kek");
    let service = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
    let mut sealed = Vec::new();
    for row in 0..100_u32 {
        let aad = row.to_le_bytes();
        sealed.push((
            aad,
            block_on(service.encrypt(&context("alice"), Aad::from(&aad), b"x")).unwrap(),
        ));
    }
    for (aad, sealed) in &sealed {
        block_on(service.decrypt(&context("alice"), Aad::from(aad), sealed)).unwrap();
    }
    assert_eq!(probe.calls(), 1, "and what it wrote itself it reads without asking");
    for tenant in ["bob", "carol"] {
        block_on(service.encrypt(&context(tenant), Aad::empty(), b"x")).unwrap();
    }
    assert_eq!(probe.wraps.load(Ordering::SeqCst), 3);

    let reader = Envelope::builder().unwrap_with(probe.clone()).build().unwrap();
    for (aad, sealed) in &sealed {
        block_on(reader.decrypt(&context("alice"), Aad::from(aad), sealed)).unwrap();
    }
    assert_eq!(probe.unwraps.load(Ordering::SeqCst), 1);
}

#[test]
fn a_dek_that_was_unwrapped_never_seals() {
    let probe = Probe::new("kek");
    let alice = context("alice");
    let sealed = block_on(envelope(&probe.kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let service = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
    block_on(service.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    let ours = block_on(service.encrypt(&alice, Aad::empty(), b"y")).unwrap();
    assert_ne!(inspect(&ours).unwrap().dek_id, inspect(&sealed).unwrap().dek_id);
    assert_eq!(probe.wraps.load(Ordering::SeqCst), 1);
}

#[test]
fn inspection_says_what_the_bytes_claim() {
    for sample in samples() {
        let inspection = inspect(&sample.sealed).unwrap();
        assert_eq!(
            (inspection.version, inspection.suite, inspection.kind),
            (1, sample.suite, MessageKind::Message)
        );
        assert_eq!(inspection.plaintext_len, Some(sample.plaintext.len()), "{}", sample.name);
        let expected: Vec<_> = match sample.wrapped_keys {
            None => sample.keks.iter().map(|kek| kek.id().clone()).collect(),
            Some(_) => Vec::new(),
        };
        assert_eq!(
            inspection.keks.iter().map(|entry| entry.kek_id.clone()).collect::<Vec<_>>(),
            expected
        );
        assert!(inspection.keks.iter().all(|entry| entry.wrapped_len == 76));
    }
}
#[test]
fn inspection_and_configuration_go_through_serde() {
    let sample = &samples()[0];
    let json = serde_json::to_value(inspect(&sample.sealed).unwrap()).unwrap();
    assert_eq!(json["suite"], "aes256-gcm");
    assert_eq!(json["dek_id"], inspect(&sample.sealed).unwrap().dek_id.to_string());
    assert_eq!(json["keks"][0]["kek_id"], "local:kek-0");

    let limits: Limits = serde_json::from_str(r#"{"max_messages": 5, "max_age": "60s"}"#).unwrap();
    assert_eq!(limits, Limits::default().max_messages(5).max_age(Duration::from_secs(60)));
    assert!(
        serde_json::from_str::<Limits>(r#"{"max_message": 5}"#).is_err(),
        "a misspelt field is refused"
    );
    for suite in SUITES {
        let text = serde_json::to_string(&suite).unwrap();
        assert_eq!(serde_json::from_str::<Suite>(&text).unwrap(), suite);
    }
}
#[test]
fn every_duration_of_the_configuration_is_read_and_written_with_its_unit_and_refused_without() {
    use waxseal::CallPolicy;
    let limits = [
        "max_age",
        "refresh_after",
        "rotate_after",
        "stale_if_error_reading",
        "stale_if_error_writing",
        "max_stream_age",
        "denial_ttl",
    ];
    let policy = ["timeout", "deadline", "backoff", "breaker_probe"];
    let through = |field: &str, json: &str| -> Result<String, serde_json::Error> {
        let json = format!(r#"{{"{field}": {json}}}"#);
        let written = match limits.contains(&field) {
            true => serde_json::to_value(serde_json::from_str::<Limits>(&json)?)?,
            false => serde_json::to_value(serde_json::from_str::<CallPolicy>(&json)?)?,
        };
        Ok(written[field].to_string())
    };
    for field in limits.into_iter().chain(policy) {
        for (read, written) in [
            (r#""5m""#, r#""5m""#),
            (r#""300s""#, r#""5m""#),
            (r#""90 min""#, r#""1h30m""#),
            (r#""250ms""#, r#""250ms""#),
            (r#""1.5s""#, r#""1s500ms""#),
            (r#""0s""#, r#""0s""#),
            ("null", "null"),
        ] {
            assert_eq!(through(field, read).unwrap(), written, "{field}");
        }
        for bad in [
            "300",
            "0",
            "1.5",
            r#""300""#,
            r#""5M""#,
            r#""PT5M""#,
            r#"{"secs": 300, "nanos": 0}"#,
            "true",
            "[5]",
        ] {
            let error = through(field, bad).unwrap_err().to_string();
            assert!(
                error.contains(r#"a duration with its unit, such as "300s""#),
                "{field} {bad}: {error}"
            );
        }
    }
    let both = Limits::default().max_age(Duration::from_secs(90)).max_uses(3);
    assert_eq!(
        serde_json::from_str::<Limits>(&serde_json::to_string(&both).unwrap()).unwrap(),
        both
    );
}

#[test]
fn a_compact_message_is_68_bytes_longer_and_opens_with_its_wrapped_keys_only() {
    for suite in SUITES {
        let kek = local("kek");
        let alice = context("alice");
        let writer = Envelope::builder().wrap_with(kek.clone()).suite(suite).build().unwrap();
        let compact =
            block_on(writer.encrypt_compact(&alice, Aad::from(b"aad"), b"payload")).unwrap();
        assert_eq!(compact.as_bytes().len(), 7 + 56 + suite.nonce_len());
        // Stored as bytes and read back, as a service would.
        let keys = WrappedKeys::try_from(compact.wrapped_keys().as_bytes()).unwrap();
        let cold = envelope(&kek);
        assert_eq!(
            kind(block_on(cold.decrypt(&alice, Aad::from(b"aad"), compact.as_bytes()))),
            ErrorKind::MissingWrappedKeys
        );
        assert_eq!(
            &*block_on(cold.decrypt(
                &alice,
                Aad::from(b"aad"),
                Sealed::compact(compact.as_bytes(), &keys)
            ))
            .unwrap(),
            b"payload"
        );
        assert_eq!(
            kind(block_on(cold.decrypt(&alice, Aad::from(b"aad"), compact.as_bytes()))),
            ErrorKind::MissingWrappedKeys,
            "also while the DEK is cached"
        );
        assert_eq!(
            kind(cold.decrypt_cached(&alice, Aad::from(b"aad"), compact.as_bytes())),
            ErrorKind::MissingWrappedKeys
        );

        let key = block_on(writer.encryptor(&alice)).unwrap().compact();
        assert_eq!(key.wrapped_keys(), &keys);
        let again = key.encrypt(Aad::from(b"aad"), b"again").unwrap();
        let opening =
            block_on(envelope(&kek).decryptor(&alice, Sealed::compact(again.as_bytes(), &keys)))
                .unwrap();
        assert_eq!(&*opening.decrypt(Aad::from(b"aad"), &again).unwrap(), b"again");
        assert_eq!(&*opening.decrypt(Aad::from(b"aad"), compact.as_bytes()).unwrap(), b"payload");
    }
}

#[test]
fn a_message_that_carries_its_wrapped_keys_is_opened_with_those() {
    let kek = local("kek");
    let alice = context("alice");
    let sealed = block_on(envelope(&kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let others = block_on(envelope(&kek).encrypt_compact(&alice, Aad::empty(), b"y"))
        .unwrap()
        .into_parts()
        .1;
    assert_eq!(
        &*block_on(envelope(&kek).decrypt(&alice, Aad::empty(), Sealed::compact(&sealed, &others)))
            .unwrap(),
        b"x"
    );
    let key =
        block_on(envelope(&kek).decryptor(&alice, Sealed::compact(&sealed, &others))).unwrap();
    assert_eq!(&*key.decrypt(Aad::empty(), &sealed).unwrap(), b"x");
}

/// A KEK that takes every entry for its own, and fails as it is told.
#[derive(Debug)]
struct TakesAny {
    kek: waxseal::kek::local::LocalKek,
    fails: Option<(KekErrorClass, &'static str)>,
}

impl KekProvider for TakesAny {
    fn id(&self) -> &waxseal::KekId {
        self.kek.id()
    }

    fn recognises(&self, _: &waxseal::KekId) -> bool {
        true
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        self.kek.wrap(context, dek)
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            match self.fails {
                Some((class, text)) => {
                    let answer = std::io::Error::other(std::io::Error::other(text));
                    Err(KekError::new(class, text).with_source(answer))
                }
                None => self.kek.unwrap(context, wrapped).await,
            }
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(async {
            match self.fails {
                Some((KekErrorClass::Invalid, text)) => Ok(Health::Degraded(text.to_owned())),
                Some((class, text)) => Err(KekError::new(class, text)),
                None => Ok(Health::Ready),
            }
        })
    }
}

const UNFIT_FOR_A_LOG: &str = "x\n2026-11-25T00:00:00Z  INFO auth: user admin logged in\r\u{1b}[2J\u{9b}H\u{7}\u{202e}txt\u{2066}\u{2028}\u{2029}\u{85}\u{200b}\u{feff}\0";

/// An error whose Debug is as careless as its Display.
struct RawInDebug;

impl std::fmt::Debug for RawInDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(UNFIT_FOR_A_LOG)
    }
}

impl std::fmt::Display for RawInDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(UNFIT_FOR_A_LOG)
    }
}

impl std::error::Error for RawInDebug {}

/// What anybody could have made of the error who shows it, its causes included.
fn every_text(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut texts = vec![format!("{error}"), format!("{error:?}")];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.extend([format!("{error}"), format!("{error:?}")]);
        cause = error.source();
    }
    texts
}

fn assert_is_fit_for_a_log(text: &str) {
    let unfit =
        |c: char| c.is_control() || "\u{202e}\u{2066}\u{2028}\u{2029}\u{200b}\u{feff}".contains(c);
    assert!(!text.contains(unfit), "{text:?}");
    assert!(text.contains("admin logged in"), "what it was about is still shown: {text}");
}

#[test]
fn a_kek_id_of_a_forged_message_can_write_into_no_log() {
    let kek = local("kek");
    let alice = context("alice");
    let compact = block_on(envelope(&kek).encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let forged_id = waxseal::KekId::new(UNFIT_FOR_A_LOG).unwrap();
    let wrapped = compact.wrapped_keys().entries()[0].wrapped();
    let forged = WrappedDek::new(forged_id.clone(), wrapped).unwrap();
    let keys = WrappedKeys::new([forged.clone()]).unwrap();
    let read = |envelope: &Envelope| {
        block_on(envelope.decrypt(&alice, Aad::empty(), Sealed::compact(compact.as_bytes(), &keys)))
    };

    for text in [
        format!("{forged_id}"),
        format!("{forged_id:?}"),
        format!("{forged:?}"),
        format!("{keys:?}"),
    ] {
        assert_is_fit_for_a_log(&text);
    }
    assert_eq!(forged_id.as_str(), UNFIT_FOR_A_LOG, "the id itself is what it is");
    let twice = WrappedKeys::new([forged.clone(), forged.clone()]).unwrap_err();
    every_text(&twice).iter().for_each(|text| assert_is_fit_for_a_log(text));

    let unknown = read(&envelope(&kek)).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::UnknownKek);
    every_text(&unknown).iter().for_each(|text| assert_is_fit_for_a_log(text));

    for class in [KekErrorClass::Unavailable, KekErrorClass::Denied, KekErrorClass::Misconfigured] {
        let fails = Some((class, "not today, admin logged in"));
        let provider = TakesAny { kek: kek.clone(), fails };
        let service = Envelope::builder().unwrap_with(provider).build().unwrap();
        every_text(&read(&service).unwrap_err())
            .iter()
            .for_each(|text| assert_is_fit_for_a_log(text));
    }

    let mut message = compact.as_bytes().to_vec();
    message[6..8].copy_from_slice(&u16::try_from(keys.as_bytes().len()).unwrap().to_le_bytes());
    message.splice(52..52, keys.as_bytes().iter().copied());
    assert_is_fit_for_a_log(&format!("{:?}", inspect(&message).unwrap()));
}

#[test]
fn what_a_server_answers_can_write_into_no_log() {
    let kek = local("kek");
    let alice = context("alice");
    let sealed = block_on(envelope(&kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    for class in [
        KekErrorClass::Unavailable,
        KekErrorClass::Denied,
        KekErrorClass::Misconfigured,
        KekErrorClass::Invalid,
    ] {
        let provider = TakesAny { kek: kek.clone(), fails: Some((class, UNFIT_FOR_A_LOG)) };
        let error = KekError::new(class, UNFIT_FOR_A_LOG).with_source(RawInDebug);
        every_text(&error).iter().for_each(|text| assert_is_fit_for_a_log(text));
        assert!(
            error.cause().unwrap().is::<RawInDebug>(),
            "whoever knows its type gets it as it is"
        );
        if class != KekErrorClass::Invalid {
            every_text(&Error::from(error)).iter().for_each(|text| assert_is_fit_for_a_log(text));
        }
        let service = Envelope::builder().unwrap_with(provider).build().unwrap();
        let failed = block_on(service.decrypt(&alice, Aad::empty(), &sealed)).unwrap_err();
        if class != KekErrorClass::Invalid {
            every_text(&failed).iter().for_each(|text| assert_is_fit_for_a_log(text));
        }
        match block_on(service.health()).remove(0).1 {
            Ok(Health::Degraded(why)) => assert_is_fit_for_a_log(&why),
            Ok(health) => panic!("{health:?}"),
            Err(error) => every_text(&error).iter().for_each(|text| assert_is_fit_for_a_log(text)),
        }
    }
}

#[test]
fn while_a_dek_is_cached_its_messages_open_whatever_became_of_their_wrapped_keys() {
    for sample in samples().into_iter().filter(|sample| sample.wrapped_keys.is_none()) {
        let mut damaged = sample.sealed.clone();
        damaged[sample.wrapped_range()].fill(0xFF);
        let reader = sample.cold(Backend::default());
        assert_eq!(kind(sample.open(&reader, &damaged)), ErrorKind::Malformed, "{}", sample.name);
        sample.open(&reader, &sample.sealed).unwrap();
        assert_eq!(sample.open(&reader, &damaged).unwrap(), sample.plaintext, "{}", sample.name);
        assert_eq!(
            kind(block_on(reader.rewrap(&sample.context, &damaged))),
            ErrorKind::Malformed,
            "a rewrap looks"
        );
        reader.evict_all();
        assert_eq!(kind(sample.open(&reader, &damaged)), ErrorKind::Malformed, "{}", sample.name);
    }
}

#[test]
fn forged_messages_use_up_no_uses_and_never_more_than_max_uses_are_opened() {
    let probe = Probe::new("kek");
    let alice = context("alice");
    let sealed = block_on(envelope(&probe.kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let service = Envelope::builder()
        .wrap_with(probe.clone())
        .limits(Limits::default().max_uses(50))
        .build()
        .unwrap();
    let mut forged = sealed.clone();
    *forged.last_mut().unwrap() ^= 1;
    block_on(service.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    let handle = block_on(service.decryptor(&alice, &sealed)).unwrap();
    for _ in 0..1000 {
        assert_eq!(
            kind(block_on(service.decrypt(&alice, Aad::empty(), &forged))),
            ErrorKind::Invalid
        );
        assert_eq!(kind(service.decrypt_cached(&alice, Aad::empty(), &forged)), ErrorKind::Invalid);
        assert_eq!(
            kind(block_on(service.decrypt_in_place(&alice, Aad::empty(), &mut forged.clone()))),
            ErrorKind::Invalid
        );
        assert_eq!(kind(handle.decrypt(Aad::empty(), &forged)), ErrorKind::Invalid);
        assert_eq!(kind(handle.decrypt(Aad::from(b"another AAD"), &sealed)), ErrorKind::Invalid);
    }
    assert_eq!(probe.unwraps.load(Ordering::SeqCst), 1);
    // Forged and genuine ones at once, on one handle: 49 uses are left, and each of them is used.
    let opened: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let genuine = (0..2000).filter(|i| {
                        let _ = handle.decrypt(Aad::empty(), &forged).unwrap_err();
                        i % 20 == 0 && handle.decrypt(Aad::empty(), &sealed).is_ok()
                    });
                    genuine.count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let rest = (0..100).filter(|_| handle.decrypt(Aad::empty(), &sealed).is_ok()).count();
    assert_eq!(opened + rest, 49);
    assert_eq!(kind(handle.decrypt(Aad::empty(), &sealed)), ErrorKind::Exhausted);
}

#[test]
fn a_handle_refuses_messages_of_another_dek_and_says_which() {
    let alice = context("alice");
    let (a, b) = (envelope(&local("a")), envelope(&local("b")));
    let (mine, other) = (
        block_on(a.encrypt(&alice, Aad::empty(), b"x")).unwrap(),
        block_on(b.encrypt(&alice, Aad::empty(), b"x")).unwrap(),
    );
    let key = block_on(a.decryptor(&alice, &mine)).unwrap();
    let error = key.decrypt(Aad::empty(), &other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OtherDek);
    assert!(error.to_string().contains(&inspect(&other).unwrap().dek_id.to_string()));
    let mut buffer = other.clone();
    assert_eq!(kind(key.decrypt_in_place(Aad::empty(), &mut buffer)), ErrorKind::OtherDek);
    assert_eq!(buffer, other);
}

#[test]
fn a_buffer_without_room_is_refused_and_keeps_its_plaintext() {
    let key = block_on(envelope(&local("kek")).encryptor(&context("alice"))).unwrap();
    for len in [0, 1, key.prefix_len(), key.prefix_len() + key.tag_len() - 1] {
        let mut buffer = vec![9; len];
        assert_eq!(kind(key.encrypt_in_place(Aad::empty(), &mut buffer)), ErrorKind::BufferSize);
        assert_eq!(buffer, vec![9; len]);
    }
}

#[test]
fn a_failed_call_leaves_the_callers_buffer_alone() {
    let probe = Probe::new("kek");
    let service = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
    let sealed =
        block_on(envelope(&probe.kek).encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
    probe.lie(Lie::Fails(KekErrorClass::Unavailable));
    let mut plain = b"payload".to_vec();
    let error = block_on(service.encrypt_in_place(&context("alice"), Aad::empty(), &mut plain))
        .unwrap_err();
    assert!(error.is_retryable() && plain == b"payload");
    let mut buffer = sealed.clone();
    assert!(
        block_on(service.decrypt_in_place(&context("alice"), Aad::empty(), &mut buffer))
            .unwrap_err()
            .is_retryable()
    );
    assert_eq!(buffer, sealed);
}

#[test]
fn each_class_of_a_key_services_failure_has_its_kind() {
    for (class, expected) in [
        (KekErrorClass::Unavailable, ErrorKind::Unavailable),
        (KekErrorClass::Throttled, ErrorKind::Throttled),
        (KekErrorClass::Denied, ErrorKind::Denied),
        (KekErrorClass::Misconfigured, ErrorKind::Misconfigured),
        (KekErrorClass::Invalid, ErrorKind::Invalid),
    ] {
        let probe = Probe::new("kek");
        let sealed =
            block_on(envelope(&probe.kek).encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
        probe.lie(Lie::Fails(class));
        let service = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
        assert_eq!(
            kind(block_on(service.encrypt(&context("alice"), Aad::empty(), b"x"))),
            expected
        );
        assert_eq!(
            kind(block_on(service.decrypt(&context("alice"), Aad::empty(), &sealed))),
            expected
        );
        assert_eq!(probe.calls(), 2, "one try each");
    }
}

// --- several KEKs, rewrap

#[test]
fn every_writing_kek_opens_alone_and_all_are_needed_to_write() {
    let [a, b] = [Probe::new("a"), Probe::new("b")];
    let alice = context("alice");
    let both = || Envelope::builder().wrap_with(a.clone()).wrap_with(b.clone()).build().unwrap();
    let sealed = block_on(both().encrypt(&alice, Aad::empty(), b"x")).unwrap();
    for kek in [&a.kek, &b.kek] {
        assert_eq!(&*block_on(envelope(kek).decrypt(&alice, Aad::empty(), &sealed)).unwrap(), b"x");
    }
    b.lie(Lie::Fails(KekErrorClass::Unavailable));
    assert_eq!(kind(block_on(both().encrypt(&alice, Aad::empty(), b"x"))), ErrorKind::Unavailable);
    assert_eq!(&*block_on(both().decrypt(&alice, Aad::empty(), &sealed)).unwrap(), b"x");
}

#[test]
fn keks_are_asked_in_their_order_and_only_until_one_serves() {
    let [a, b] = [Probe::new("a"), Probe::new("b")];
    let alice = context("alice");
    let writer =
        Envelope::builder().wrap_with(a.kek.clone()).wrap_with(b.kek.clone()).build().unwrap();
    let sealed = block_on(writer.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let reader = Envelope::builder().unwrap_with(b.clone()).unwrap_with(a.clone()).build().unwrap();
    block_on(reader.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    assert_eq!((a.calls(), b.calls()), (0, 1));
}

#[test]
fn rewrap_moves_a_message_from_one_kek_to_another_and_touches_no_payload() {
    let [old, new] = [Probe::new("old"), Probe::new("new")];
    let alice = context("alice");
    let sealed = block_on(envelope(&old.kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let mover =
        Envelope::builder().wrap_with(new.clone()).unwrap_with(old.clone()).build().unwrap();
    assert!(mover.needs_rewrap(&sealed).unwrap());
    let moved = block_on(mover.rewrap(&alice, &sealed)).unwrap();
    assert!(!mover.needs_rewrap(&moved).unwrap());
    assert_eq!(
        new.unwraps.load(Ordering::SeqCst),
        1,
        "the new entry was unwrapped before the old one was dropped"
    );
    let (from, to) = (inspect(&sealed).unwrap(), inspect(&moved).unwrap());
    assert_eq!((from.dek_id, from.plaintext_len), (to.dek_id, to.plaintext_len));
    assert_eq!(moved[moved.len() - 17..], sealed[sealed.len() - 17..]);
    assert_eq!(&*block_on(envelope(&new.kek).decrypt(&alice, Aad::empty(), &moved)).unwrap(), b"x");
    assert_eq!(
        kind(block_on(envelope(&old.kek).decrypt(&alice, Aad::empty(), &moved))),
        ErrorKind::UnknownKek
    );
}

#[test]
fn rewrap_without_the_right_to_unwrap_asks_for_no_unwrap() {
    let probe = Probe::new("kek");
    let alice = context("alice");
    let service = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
    let sealed = block_on(envelope(&probe.kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    probe.kek.rotate().unwrap();
    let rewrapped = block_on(service.rewrap_unverified(&alice, &sealed)).unwrap();
    assert_eq!(
        (probe.rewraps.load(Ordering::SeqCst), probe.unwraps.load(Ordering::SeqCst)),
        (1, 0)
    );
    assert!(!service.needs_rewrap(&rewrapped).unwrap());
    assert_eq!(
        &*block_on(envelope(&probe.kek).decrypt(&alice, Aad::empty(), &rewrapped)).unwrap(),
        b"x"
    );
}

#[test]
fn rewrap_drops_nothing_it_could_not_replace() {
    let [old, new] = [Probe::new("old"), Probe::new("new")];
    let alice = context("alice");
    let sealed = block_on(envelope(&old.kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let mover =
        Envelope::builder().wrap_with(new.clone()).unwrap_with(old.clone()).build().unwrap();
    for (probe, class, expected) in [
        (&old, KekErrorClass::Unavailable, ErrorKind::Unavailable),
        (&old, KekErrorClass::Denied, ErrorKind::Denied),
        (&new, KekErrorClass::Unavailable, ErrorKind::Unavailable),
    ] {
        probe.lie(Lie::Fails(class));
        assert_eq!(kind(block_on(mover.rewrap(&alice, &sealed))), expected);
        probe.lie(None);
    }
    assert_eq!(
        kind(block_on(mover.rewrap(&context("bob"), &sealed))),
        ErrorKind::Invalid,
        "another context"
    );
}

#[test]
fn rewrap_heals_an_entry_whose_bytes_are_damaged_from_another_keks_entry() {
    let [a, b] = [local("a"), local("b")];
    let alice = context("alice");
    let both = Envelope::builder().wrap_with(a.clone()).wrap_with(b.clone()).build().unwrap();
    let compact = block_on(both.encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let [entry_a, entry_b] = compact.wrapped_keys().entries() else { panic!() };
    let mut bytes = entry_a.wrapped().to_vec();
    bytes[70] ^= 1;
    let damaged = waxseal::WrappedDek::new(entry_a.kek_id().clone(), bytes).unwrap();
    let keys = WrappedKeys::new([damaged, entry_b.clone()]).unwrap();
    let dek_id = inspect(compact.as_bytes()).unwrap().dek_id;
    let healed = block_on(both.rewrap_wrapped_keys(&alice, &dek_id, &keys)).unwrap();
    assert_eq!(
        &*block_on(envelope(&a).decrypt(
            &alice,
            Aad::empty(),
            Sealed::compact(compact.as_bytes(), &healed)
        ))
        .unwrap(),
        b"x"
    );
    assert_eq!(healed.entries()[1], *entry_b, "what was good and current is kept");
}

/// A KEK that tells its version from the metadata alone, as one must whose service's wrapped keys
/// are opaque.
#[derive(Debug)]
struct VersionInMeta {
    probe: Arc<Probe>,
    current: std::sync::atomic::AtomicU8,
}

impl VersionInMeta {
    fn marked(&self, wrapped: WrappedDek) -> WrappedDek {
        wrapped.with_meta([self.current.load(Ordering::SeqCst)]).unwrap()
    }
}

impl KekProvider for VersionInMeta {
    fn id(&self) -> &waxseal::KekId {
        self.probe.id()
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        wrapped.meta().first().map(|by| *by == self.current.load(Ordering::SeqCst))
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move { Ok(self.marked(self.probe.wrap(context, dek).await?)) })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        self.probe.unwrap(context, wrapped)
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move { Ok(self.marked(self.probe.rewrap(context, wrapped).await?)) })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.probe.health()
    }
}

#[test]
fn a_rewrap_does_not_believe_metadata_that_anybody_can_write() {
    let probe = Probe::new("kek");
    let kek = Arc::new(VersionInMeta { probe: probe.clone(), current: 1.into() });
    let alice = context("alice");
    let service = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let compact = block_on(service.encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    probe.kek.rotate().unwrap();
    kek.current.store(2, Ordering::SeqCst);
    let old = &compact.wrapped_keys().entries()[0];
    let claims = |meta: &[u8]| WrappedKeys::new([old.clone().with_meta(meta).unwrap()]).unwrap();
    let dek_id = inspect(compact.as_bytes()).unwrap().dek_id;
    for (meta, hint) in [(&[2][..], false), (&[1], true), (&[], false), (&[7; 64], true)] {
        let keys = claims(meta);
        assert_eq!(service.wrapped_keys_need_rewrap(&keys), hint, "a hint, from the bytes");
        let rewrapped = block_on(service.rewrap_wrapped_keys(&alice, &dek_id, &keys)).unwrap();
        assert!(probe.kek.is_current(&rewrapped.entries()[0]) == Some(true), "{meta:?}");
    }
    probe.kek.retire(1).unwrap();
    let error = block_on(service.rewrap_wrapped_keys(&alice, &dek_id, &claims(&[2])));
    assert_eq!(kind(error), ErrorKind::Denied, "it is not kept unseen either");
}

#[test]
fn a_rewrap_that_may_not_unwrap_keeps_nothing_on_the_word_of_whoever_wrote_it() {
    let [a, b] = [Probe::new("a"), Probe::new("b")];
    let alice = context("alice");
    let both = Envelope::builder().wrap_with(a.clone()).wrap_with(b.clone()).build().unwrap();
    let sealed = block_on(both.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    // An entry that says it is current, and is nobody's: kept, it would be all that is left.
    let compact = block_on(both.encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let mut bytes = compact.wrapped_keys().entries()[0].wrapped().to_vec();
    bytes[70] ^= 1;
    let damaged = WrappedDek::new(a.id().clone(), bytes).unwrap();
    let keys = WrappedKeys::new([damaged, compact.wrapped_keys().entries()[1].clone()]).unwrap();
    let mut forged = sealed.clone();
    let w = usize::from(u16::from_le_bytes([sealed[6], sealed[7]]));
    assert_eq!(w, keys.as_bytes().len());
    forged[52..52 + w].copy_from_slice(keys.as_bytes());
    let only_a = Envelope::builder().wrap_with(a.clone()).unwrap_with(b.clone()).build().unwrap();
    let rewrapped = block_on(only_a.rewrap_unverified(&alice, &forged)).unwrap();
    assert_eq!(
        &*block_on(envelope(&a.kek).decrypt(&alice, Aad::empty(), &rewrapped)).unwrap(),
        b"x"
    );
}

#[test]
fn rewrap_of_a_compact_message_goes_through_its_keys() {
    let kek = local("kek");
    let alice = context("alice");
    let service = envelope(&kek);
    let compact = block_on(service.encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let error = block_on(service.rewrap(&alice, compact.as_bytes())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingWrappedKeys);
    assert!(error.to_string().ends_with(": call rewrap_wrapped_keys"), "{error}");
    assert_eq!(kind(service.needs_rewrap(compact.as_bytes())), ErrorKind::MissingWrappedKeys);
    let needs_rewrap = || {
        let (message, keys) = (service.needs_rewrap(&compact).unwrap(), compact.wrapped_keys());
        assert_eq!(message, service.wrapped_keys_need_rewrap(keys));
        message
    };
    assert!(!needs_rewrap());
    kek.rotate().unwrap();
    assert!(needs_rewrap());
    let dek_id = inspect(compact.as_bytes()).unwrap().dek_id;
    let keys =
        block_on(service.rewrap_wrapped_keys(&alice, &dek_id, compact.wrapped_keys())).unwrap();
    kek.retire(1).unwrap();
    assert_eq!(
        &*block_on(envelope(&kek).decrypt(
            &alice,
            Aad::empty(),
            Sealed::compact(compact.as_bytes(), &keys)
        ))
        .unwrap(),
        b"x"
    );
}

/// Names the method that was called.
#[derive(Debug)]
struct Named(waxseal::KekId);

impl KekProvider for Named {
    fn id(&self) -> &waxseal::KekId {
        &self.0
    }

    fn recognises(&self, _: &waxseal::KekId) -> bool {
        true
    }

    fn is_current(&self, _: &WrappedDek) -> Option<bool> {
        Some(false)
    }

    fn wrap<'a>(
        &'a self,
        _: &'a EncryptionContext,
        _: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async { Err(KekError::invalid("wrap")) })
    }

    fn unwrap<'a>(
        &'a self,
        _: &'a EncryptionContext,
        _: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async { Err(KekError::invalid("unwrap")) })
    }

    fn generate<'a>(
        &'a self,
        _: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(async { Err(KekError::invalid("generate")) })
    }

    fn rewrap<'a>(
        &'a self,
        _: &'a EncryptionContext,
        _: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async { Err(KekError::invalid("rewrap")) })
    }

    fn wrap_many<'a>(
        &'a self,
        _: &'a [(&'a EncryptionContext, &'a Dek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Box::pin(async { vec![Err(KekError::invalid("wrap_many"))] })
    }

    fn unwrap_many<'a>(
        &'a self,
        _: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        Box::pin(async { vec![Err(KekError::invalid("unwrap_many"))] })
    }

    fn rewrap_many<'a>(
        &'a self,
        _: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Box::pin(async { vec![Err(KekError::invalid("rewrap_many"))] })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(async { Err(KekError::invalid("health")) })
    }
}

#[test]
fn a_shared_provider_forwards_every_method() {
    fn text<T>(result: Result<T, KekError>) -> String {
        result.err().unwrap().to_string()
    }
    let id = waxseal::KekId::new("named").unwrap();
    let shared: Arc<dyn KekProvider> = Arc::new(Arc::new(Named(id.clone())));
    let entry = WrappedDek::new(waxseal::KekId::new("other").unwrap(), [1]).unwrap();
    let none = EncryptionContext::empty();
    assert!(
        *shared.id() == id
            && shared.recognises(entry.kek_id())
            && shared.is_current(&entry) == Some(false)
    );
    assert_eq!(text(block_on(shared.unwrap(&none, &entry))), "invalid: unwrap");
    assert_eq!(text(block_on(shared.generate(&none))), "invalid: generate");
    assert_eq!(text(block_on(shared.rewrap(&none, &entry))), "invalid: rewrap");
    assert_eq!(text(block_on(shared.wrap_many(&[])).remove(0)), "invalid: wrap_many");
    assert_eq!(text(block_on(shared.unwrap_many(&[])).remove(0)), "invalid: unwrap_many");
    assert_eq!(text(block_on(shared.rewrap_many(&[])).remove(0)), "invalid: rewrap_many");
    assert_eq!(text(block_on(shared.health())), "invalid: health");
    let envelope = Envelope::builder().wrap_with(shared).build().unwrap();
    assert_eq!(
        kind(block_on(envelope.encrypt(&none, Aad::empty(), b"x"))),
        ErrorKind::Invalid,
        "wrap"
    );
}

// --- each option, and its nonsense

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
fn max_entries_bounds_the_deks_at_hand() {
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
        // The cache settles its bounds now and then, not at once: that is its documented way.
        std::thread::sleep(Duration::from_millis(400));
        for (context, sealed) in &messages {
            let _ = service.decrypt_cached(context, Aad::empty(), sealed).unwrap();
        }
        std::thread::sleep(Duration::from_millis(400));
        let at_hand = |(context, sealed): &&(EncryptionContext, Vec<u8>)| {
            service.decrypt_cached(context, Aad::empty(), sealed).unwrap().is_some()
        };
        let kept = messages.iter().filter(at_hand).count();
        assert!(kept <= at_most && kept > 0, "max_entries {max_entries}: {kept} at hand");
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

#[test]
fn many_messages_are_rewrapped_with_one_call_for_each_dek() {
    let probe = Probe::new("kek");
    let service = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
    let (alice, bob) = (context("alice"), context("bob"));
    let row = |n: u64| n.to_be_bytes();
    let seal =
        |context, n| block_on(service.encrypt(context, Aad::from(&row(n)), &row(n))).unwrap();
    let of_alice: Vec<_> = (0..100).map(|n| seal(&alice, n)).collect();
    let of_bob: Vec<_> = (100..120).map(|n| seal(&bob, n)).collect();
    let compact = block_on(service.encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let mut damaged = of_bob[0].clone();
    let at = 52 + damaged.len() - 52 - 16 - 8 - 2;
    damaged[at] ^= 1;
    probe.kek.rotate().unwrap();

    let mut messages: Vec<(&EncryptionContext, &[u8])> =
        of_alice.iter().map(|row| (&alice, &**row)).collect();
    messages.insert(50, (&alice, compact.as_bytes()));
    messages.insert(60, (&bob, b"plain text"));
    messages.insert(70, (&bob, &damaged));
    // Alice's message in Bob's context is a question of its own, and fails alone.
    messages.insert(80, (&bob, &of_alice[0]));
    messages.extend(of_bob.iter().map(|row| (&bob, &**row)));
    let (rewraps, unwraps) =
        (probe.rewraps.load(Ordering::SeqCst), probe.unwraps.load(Ordering::SeqCst));
    let results = block_on(service.rewrap_all(messages.iter().copied()));
    assert_eq!(results.len(), messages.len());
    let failed: Vec<_> = (0..results.len()).filter(|n| results[*n].is_err()).collect();
    assert_eq!(failed, [50, 60, 70, 80]);
    let kinds: Vec<_> = failed.iter().map(|n| results[*n].as_ref().unwrap_err().kind()).collect();
    assert_eq!(
        kinds,
        [
            ErrorKind::MissingWrappedKeys,
            ErrorKind::NotSealed,
            ErrorKind::Invalid,
            ErrorKind::Invalid
        ]
    );
    // Two DEKs, and two questions that fail.
    assert_eq!(probe.rewraps.load(Ordering::SeqCst) - rewraps, 4);
    assert!(probe.unwraps.load(Ordering::SeqCst) - unwraps <= 8);

    let cold = Envelope::builder().wrap_with(probe.kek.clone()).build().unwrap();
    let mut opened = 0;
    for (n, result) in results.iter().enumerate().filter(|(_, result)| result.is_ok()) {
        let rewrapped = result.as_ref().unwrap();
        assert!(
            !service.needs_rewrap(rewrapped).unwrap()
                && service.needs_rewrap(messages[n].1).unwrap()
        );
        let plaintext =
            block_on(cold.decrypt(messages[n].0, Aad::from(&row(opened)), rewrapped)).unwrap();
        assert_eq!(*plaintext, row(opened));
        opened += 1;
    }
    assert_eq!(opened, 120);
    assert!(block_on(service.rewrap_all([])).is_empty());
}
