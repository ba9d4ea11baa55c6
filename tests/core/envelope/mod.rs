//! What a service does with an envelope, and what each option of its builder changes.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::type_complexity)]

mod logs;
mod moving;
mod options;

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

/// A KEK that takes every entry for its own, and fails on command.
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
