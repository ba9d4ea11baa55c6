//! What a caller, a forger or a provider does wrong, and what becomes of it.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use waxseal::kek::scripted::ScriptedKek;
use waxseal::kek::{KekError, KekErrorClass, KekProvider};
use waxseal::{
    Aad, EncryptionContext, Envelope, Error, ErrorKind, KekId, Sealed, StartOptions, StartUp,
    WrappedKeys,
};
use waxseal_testing::support::{HookedKek, Probe, block_on, context, envelope, local};

/// Down for one tenant's calls, and denied for another's, as by a condition on the context.
fn by_tenant() -> HookedKek {
    HookedKek::around(local("kek")).on_wrap(|kek, context, dek| {
        Box::pin(async move {
            match context.get("tenant") {
                Some("down") => Err(KekError::unavailable("by tenant")),
                Some("denied") => Err(KekError::denied("by tenant")),
                _ => kek.wrap(context, dek).await,
            }
        })
    })
}

#[test]
fn a_denial_fails_a_tolerant_start_though_an_outage_of_another_context_comes_first() {
    for order in [["down", "denied"], ["denied", "down"]] {
        let contexts = order.map(context);
        let options = StartOptions::default().start_up(StartUp::TolerateOutage).warm_up(&contexts);
        let started = block_on(Envelope::builder().wrap_with(by_tenant()).start(options));
        assert_eq!(started.err().map(|error| error.kind()), Some(ErrorKind::Denied), "{order:?}");
    }
}

#[test]
fn a_rewrap_without_a_kek_for_writing_names_the_option() {
    let kek = local("kek");
    let sealed = block_on(envelope(&kek).encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
    let reader = Envelope::builder().unwrap_with(kek).build().unwrap();
    let alone = block_on(reader.rewrap(&context("alice"), &sealed)).unwrap_err();
    let of_many =
        block_on(reader.rewrap_all([(&context("alice"), &*sealed)])).remove(0).unwrap_err();
    for error in [alone, of_many] {
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains("wrap_with"), "{error}");
    }
    assert!(!reader.needs_rewrap(&sealed).unwrap(), "it could do nothing about it");
}

#[test]
fn the_cause_of_an_error_is_kept_though_the_error_was_cloned() {
    let error = Error::new(ErrorKind::Io, "key file");
    let first = error.clone();
    let with_cause = error.with_source(std::io::Error::other("disk"));
    assert_eq!(
        std::error::Error::source(&with_cause).map(ToString::to_string),
        Some("disk".to_owned())
    );
    assert!(std::error::Error::source(&first).is_none());
}

#[test]
fn a_compact_message_without_its_keys_is_refused_by_the_envelope_in_every_way() {
    let (kek, alice) = (local("kek"), context("alice"));
    let service = envelope(&kek);
    let compact = block_on(service.encrypt_compact(&alice, Aad::empty(), b"short")).unwrap();
    let bytes = compact.as_bytes();
    // Cached by the first, looked up in this thread's memo by the later ones.
    for _ in 0..3 {
        assert_eq!(&*block_on(service.decrypt(&alice, Aad::empty(), &compact)).unwrap(), b"short");
        let mut buffer = bytes.to_vec();
        let refused = [
            block_on(service.decrypt(&alice, Aad::empty(), bytes)).err(),
            service.decrypt_cached(&alice, Aad::empty(), bytes).err(),
            block_on(service.decrypt_in_place(&alice, Aad::empty(), &mut buffer)).err(),
            block_on(service.decryptor(&alice, bytes)).err(),
            block_on(service.rewrap(&alice, bytes)).err(),
            block_on(service.rewrap_unverified(&alice, bytes)).err(),
            block_on(service.rewrap_all([(&alice, bytes)])).remove(0).err(),
            service.needs_rewrap(bytes).err(),
        ];
        for (n, error) in refused.into_iter().enumerate() {
            assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::MissingWrappedKeys), "{n}");
        }
        assert_eq!(buffer, bytes);
    }
}

#[test]
fn keys_apart_of_another_dek_open_nothing_cold_and_the_embedded_ones_win() {
    let (kek, alice, bob) = (local("kek"), context("alice"), context("bob"));
    let service = envelope(&kek);
    let of_alice = block_on(service.encrypt_compact(&alice, Aad::empty(), b"a")).unwrap();
    let of_bob = block_on(service.encrypt_compact(&bob, Aad::empty(), b"b")).unwrap();
    let mixed = Sealed::compact(of_alice.as_bytes(), of_bob.wrapped_keys());
    for context in [&alice, &bob] {
        let error = block_on(envelope(&kek).decrypt(context, Aad::empty(), mixed)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let embedded = block_on(service.encrypt(&alice, Aad::empty(), b"e")).unwrap();
    let with_wrong = Sealed::compact(&embedded, of_bob.wrapped_keys());
    assert_eq!(&*block_on(envelope(&kek).decrypt(&alice, Aad::empty(), with_wrong)).unwrap(), b"e");
}

/// Whole and cut compact messages, as if they were embedded and the other way round.
#[test]
fn no_change_of_the_form_opens_a_message() {
    let (kek, alice) = (local("kek"), context("alice"));
    let service = envelope(&kek);
    let compact = block_on(service.encrypt_compact(&alice, Aad::empty(), b"short")).unwrap();
    let embedded = block_on(service.encrypt(&alice, Aad::empty(), b"short")).unwrap();
    let keys = compact.wrapped_keys();
    for sealed in [compact.as_bytes(), &embedded[..]] {
        for at in 0..40 {
            for bit in 0..8 {
                let mut changed = sealed.to_vec();
                changed[at] ^= 1 << bit;
                let opened = block_on(service.decrypt(
                    &alice,
                    Aad::empty(),
                    Sealed::compact(&changed, keys),
                ));
                assert!(opened.is_err(), "byte {at}, bit {bit}");
                assert!(block_on(service.decrypt(&alice, Aad::empty(), &changed)).is_err());
            }
        }
    }
}

#[test]
fn many_are_rewrapped_with_each_verified_and_one_list_asked_once() {
    let (alice, bob) = (context("alice"), context("bob"));
    let kek = ScriptedKek::new("kek").unwrap();
    let service = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let seal = |context: &EncryptionContext, row: u64| {
        block_on(service.encrypt(context, Aad::from(&row.to_be_bytes()), b"text")).unwrap()
    };
    let rows: Vec<_> =
        (0..2000).map(|row| (if row % 2 == 0 { &alice } else { &bob }, row)).collect();
    let sealed: Vec<_> = rows.iter().map(|(context, row)| seal(context, *row)).collect();
    kek.local().rotate().unwrap();
    let before = kek.calls();
    // In the wrong context, twice the same, cut, and not a message.
    let mut messages: Vec<(&EncryptionContext, &[u8])> =
        rows.iter().zip(&sealed).map(|((context, _), sealed)| (*context, &**sealed)).collect();
    messages.push((&bob, &sealed[0]));
    messages.push((&alice, &sealed[0]));
    messages.push((&alice, &sealed[0][..60]));
    messages.push((&alice, b"plain"));
    let results = block_on(service.rewrap_all(messages));
    assert_eq!(results.len(), 2004);
    let after = kek.calls();
    // One group is alice's, one bob's, one alice's message in bob's context.
    assert!(
        after.rewraps - before.rewraps <= 3 && after.unwraps - before.unwraps <= 4,
        "{before:?} {after:?}"
    );
    let cold = Envelope::builder().unwrap_with(kek.local().clone()).build().unwrap();
    for ((context, row), result) in rows.iter().zip(&results) {
        let result = result.as_ref().unwrap();
        assert!(!service.needs_rewrap(result).unwrap());
        assert_eq!(
            &*block_on(cold.decrypt(context, Aad::from(&row.to_be_bytes()), result)).unwrap(),
            b"text"
        );
    }
    let kinds: Vec<_> =
        results[2000..].iter().map(|result| result.as_ref().err().map(Error::kind)).collect();
    assert_eq!(
        kinds,
        [Some(ErrorKind::Invalid), None, Some(ErrorKind::Malformed), Some(ErrorKind::NotSealed)]
    );
    assert_eq!(results[2001].as_ref().unwrap(), results[0].as_ref().unwrap());
}

#[test]
fn what_a_thread_remembers_serves_after_nothing_that_ends_it() {
    let (alice, probe) = (context("alice"), Probe::new("kek"));
    let id = probe.kek.id().clone();
    type End<'e> = (&'e str, Box<dyn Fn(&Envelope) + 'e>);
    let ends: [End<'_>; 4] = [
        ("context", Box::new(|envelope| envelope.evict_context(&context("alice")))),
        ("all", Box::new(|envelope| envelope.evict_all())),
        ("kek", Box::new(|envelope| envelope.revoke_kek(&id))),
        ("shut down", Box::new(|envelope| envelope.shut_down())),
    ];
    for (name, end) in &ends {
        let one = Envelope::builder().wrap_with(Arc::clone(&probe)).build().unwrap();
        let other = Envelope::builder().wrap_with(Arc::clone(&probe)).build().unwrap();
        let sealed = block_on(one.encrypt(&alice, Aad::empty(), b"x")).unwrap();
        for _ in 0..5 {
            assert!(one.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_some());
        }
        assert!(
            other.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_none(),
            "{name}: of another envelope"
        );
        let decryptor = block_on(one.decryptor(&alice, &sealed)).unwrap();
        end(&one);
        assert!(
            matches!(one.decrypt_cached(&alice, Aad::empty(), &sealed), Ok(None) | Err(_)),
            "{name}"
        );
        assert_eq!(
            decryptor.decrypt(Aad::empty(), &sealed).unwrap_err().kind(),
            ErrorKind::Expired,
            "{name}"
        );
        let before = probe.calls();
        let opened = block_on(one.decrypt(&alice, Aad::empty(), &sealed));
        match *name {
            "context" | "all" => assert!(opened.is_ok() && probe.calls() == before + 1, "{name}"),
            "kek" => assert_eq!(opened.unwrap_err().kind(), ErrorKind::Denied),
            _ => assert_eq!(opened.unwrap_err().kind(), ErrorKind::ShutDown),
        }
    }
    assert!(probe.unwraps.load(Ordering::SeqCst) >= 2);
}

#[test]
fn what_a_caller_does_wrong_is_not_the_provider_s() {
    assert_eq!(WrappedKeys::new([]).unwrap_err().kind(), ErrorKind::InvalidOption);
    assert_eq!(KekId::new("").unwrap_err().kind(), ErrorKind::InvalidOption);
    for class in [KekErrorClass::Unavailable, KekErrorClass::Denied, KekErrorClass::Misconfigured] {
        let kek = ScriptedKek::new("kek").unwrap();
        kek.fail_with(class);
        let service = Envelope::builder().wrap_with(kek).build().unwrap();
        let error = block_on(service.encrypt(&context("alice"), Aad::empty(), b"x")).unwrap_err();
        // No link of the chain repeats another.
        let text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            assert!(!text.contains(&cause.to_string()), "{text}: {cause}");
            source = cause.source();
        }
        assert_eq!(text.matches("by script").count(), 1, "{text}");
    }
}

#[test]
fn every_call_can_be_awaited_by_a_task_that_moves_between_threads() {
    fn is_send<T: Send>(_: T) {}
    let (kek, alice) = (local("kek"), context("alice"));
    let envelope = envelope(&kek);
    let sealed = block_on(envelope.encrypt(&alice, Aad::empty(), b"row")).unwrap();
    let page = [sealed.clone()];
    let branches =
        waxseal::branch::BranchKek::builder(kek).name("orders").self_contained().build().unwrap();
    let mut buffer = sealed.clone();
    is_send(envelope.encrypt(&alice, Aad::empty(), b"row"));
    is_send(envelope.encrypt_in_place(&alice, Aad::empty(), &mut buffer));
    is_send(envelope.encrypt_compact(&alice, Aad::empty(), b"row"));
    is_send(envelope.decrypt(&alice, Aad::empty(), &sealed));
    is_send(envelope.decrypt_in_place(&alice, Aad::empty(), &mut buffer));
    is_send(envelope.encryptor(&alice));
    is_send(envelope.decryptor(&alice, &sealed));
    is_send(envelope.warm_up([&alice]));
    is_send(envelope.prepare(page.iter().map(|row| (&alice, row))));
    is_send(envelope.health());
    is_send(envelope.rewrap(&alice, &sealed));
    is_send(envelope.rewrap_unverified(&alice, &sealed));
    is_send(envelope.rewrap_all(page.iter().map(|row| (&alice, &**row))));
    is_send(envelope.close());
    is_send(branches.erase([("tenant", "alice")]));
    is_send(branches.rewrap_branch_keys(Default::default(), |_| {}));
}
