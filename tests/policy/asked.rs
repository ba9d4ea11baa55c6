//! Which operations ask, what the policy sees, and that a cached DEK does not bypass it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use waxseal::branch::BranchKek;
use waxseal::kek::local::LocalKek;
use waxseal::policy::{Action, Decision, PolicyOptions};
use waxseal::store::{MemoryStore, RewrapOptions};
use waxseal::{Aad, Caller, Envelope, ErrorKind, StartOptions};
use waxseal_testing::support::block_on;

use crate::ground::{Ground, Rules, caller, context, denied};

#[test]
fn a_cached_dek_serves_only_those_whom_the_policy_allows() {
    let ground = Ground::new(&Rules::role("reader"), PolicyOptions::default());
    let (reader, other, acme) = (caller("a", "reader"), caller("b", "writer"), context("acme"));
    let envelope = &ground.envelope;
    let sealed = block_on(envelope.acting_for(&reader).encrypt(&acme, Aad::empty(), b"x")).unwrap();
    let read =
        |who: &Caller| block_on(envelope.acting_for(who).decrypt(&acme, Aad::empty(), &sealed));
    assert_eq!(&*read(&reader).unwrap(), b"x");
    assert_eq!(envelope.statistics().reading_deks, 1);
    assert_eq!(denied(read(&other)), ["not the role"]);
    assert_eq!(denied(block_on(envelope.decrypt(&acme, Aad::empty(), &sealed))), ["no caller"]);
    // A denial is about its question only.
    assert_eq!(envelope.statistics().reading_deks, 1);
    assert_eq!(&*read(&reader).unwrap(), b"x");
    assert_eq!(ground.rules.count(), 4);
}

#[test]
fn every_operation_of_an_envelope_asks_on_behalf_of_its_caller() {
    let store = MemoryStore::new();
    let rules = Rules::open();
    let ground = Ground::with(&rules, PolicyOptions::default(), |builder| builder.key_store(store));
    let (bob, acme, aad) = (caller("bob", "r"), context("acme"), Aad::empty());
    let (envelope, view) = (&ground.envelope, ground.envelope.acting_for(&bob));
    let sealed = block_on(view.encrypt(&acme, aad, b"x")).unwrap();
    let compact = block_on(view.encrypt_compact(&acme, aad, b"x")).unwrap();

    let asked = |what: &str, call: &mut dyn FnMut() -> bool| {
        envelope.evict_all();
        rules.asked();
        assert!(call(), "{what}");
        let (who, operation) = what.rsplit_once(' ').unwrap();
        let who = who.split(' ').next().unwrap();
        assert_eq!(rules.asked(), [format!("{who} {operation} acme")], "{what}");
        // And where it is denied, nothing happens.
        envelope.evict_all();
        rules.answer(|_| Ok(Decision::deny(["no"])));
        assert!(!call(), "{what}");
        assert_eq!(rules.asked().len(), 1, "{what}");
        rules.answer(|_| Ok(Decision::allow()));
    };
    macro_rules! both {
        ($operation:literal, |$through:ident| $call:expr) => {{
            let $through = view;
            asked(concat!("bob ", stringify!($call), " ", $operation), &mut || $call);
            let $through = envelope;
            asked(concat!("nobody ", stringify!($call), " ", $operation), &mut || $call);
        }};
    }
    both!("encrypt", |through| block_on(through.encrypt(&acme, aad, b"x")).is_ok());
    both!("encrypt", |through| {
        block_on(through.encrypt_in_place(&acme, aad, &mut b"x".to_vec())).is_ok()
    });
    both!("encrypt", |through| block_on(through.encrypt_compact(&acme, aad, b"x")).is_ok());
    both!("encrypt", |through| block_on(through.encryptor(&acme)).is_ok());
    both!("decrypt", |through| block_on(through.decrypt(&acme, aad, &sealed)).is_ok());
    both!("decrypt", |through| {
        block_on(through.decrypt_in_place(&acme, aad, &mut sealed.clone())).is_ok()
    });
    both!("decrypt", |through| block_on(through.decryptor(&acme, &sealed)).is_ok());
    both!("decrypt", |through| block_on(through.prepare([(&acme, &sealed)]))[0].is_ok());
    both!("rewrap", |through| block_on(through.rewrap(&acme, &sealed)).is_ok());
    both!("rewrap", |through| block_on(through.rewrap_unverified(&acme, &sealed)).is_ok());
    both!("rewrap", |through| block_on(through.rewrap_all([(&acme, &*sealed)]))[0].is_ok());
    both!("rewrap", |through| {
        let (id, keys) = (compact.dek_id(), compact.wrapped_keys());
        block_on(through.rewrap_wrapped_keys(&acme, &id, keys)).is_ok()
    });

    // The whole store is asked about once, with the empty context.
    rules.asked();
    block_on(view.rewrap_stored(RewrapOptions::default(), |_| {})).unwrap();
    block_on(envelope.rewrap_stored(RewrapOptions::default(), |_| {})).unwrap();
    assert_eq!(rules.asked(), ["bob rewrap", "nobody rewrap"]);
    rules.answer(|_| Ok(Decision::deny(["no"])));
    rules.reload();
    denied(block_on(view.rewrap_stored(RewrapOptions::default(), |_| {})));
}

#[test]
fn decrypt_cached_asks_nobody_and_waits_for_a_decision() {
    let ground = Ground::new(&Rules::role("reader"), PolicyOptions::default());
    let (reader, other, acme) = (caller("a", "reader"), caller("b", "writer"), context("acme"));
    let view = ground.envelope.acting_for(&reader);
    let sealed = block_on(view.encrypt(&acme, Aad::empty(), b"x")).unwrap();
    let cached =
        |who: &Caller| ground.envelope.acting_for(who).decrypt_cached(&acme, Aad::empty(), &sealed);
    ground.rules.asked();
    assert!(cached(&reader).unwrap().is_none() && cached(&other).unwrap().is_none());
    assert_eq!(ground.rules.count(), 0);
    let prepared = block_on(view.prepare([(&acme, &sealed), (&acme, &sealed)]));
    assert!(prepared.iter().all(Result::is_ok));
    assert_eq!(ground.rules.count(), 1, "once for each context");
    assert_eq!(&*cached(&reader).unwrap().unwrap(), b"x");
    assert!(block_on(ground.envelope.acting_for(&other).prepare([(&acme, &sealed)]))[0].is_err());
    assert_eq!(denied(cached(&other)), ["not the role"]);
    assert!(ground.envelope.decrypt_cached(&acme, Aad::empty(), &sealed).unwrap().is_none());
}

#[test]
fn of_many_messages_those_are_refused_whose_context_is_denied() {
    let rules = Rules::new(|question| {
        Ok(match question.context.get("tenant") {
            Some("acme") => Decision::allow(),
            _ => Decision::deny(["another tenant"]),
        })
    });
    let open = LocalKek::in_memory("kek").unwrap();
    let writer = Envelope::builder().wrap_with(open.clone()).build().unwrap();
    let (acme, evil) = (context("acme"), context("evil"));
    let seal = |context| block_on(writer.encrypt(context, Aad::empty(), b"x")).unwrap();
    let (ours, theirs) = (seal(&acme), seal(&evil));
    let policy = PolicyOptions::default();
    let envelope = Envelope::builder().wrap_with(open).policy(rules, policy).build().unwrap();
    let messages = [(&acme, &*ours), (&evil, &*theirs), (&acme, b"not sealed"), (&acme, &*ours)];
    let kinds = |results: Vec<Option<ErrorKind>>| results;
    let prepared = block_on(envelope.prepare(messages));
    let prepared = kinds(prepared.into_iter().map(|r| r.err().map(|e| e.kind())).collect());
    let rewrapped = block_on(envelope.rewrap_all(messages));
    let rewrapped = kinds(rewrapped.into_iter().map(|r| r.err().map(|e| e.kind())).collect());
    for results in [prepared, rewrapped] {
        let not_sealed = Some(ErrorKind::NotSealed);
        assert_eq!(results, [None, Some(ErrorKind::PolicyDenied), not_sealed, None]);
    }
    assert_eq!(envelope.statistics().reading_deks, 1);
}

#[test]
fn a_denied_caller_learns_nothing_of_the_message_and_keeps_the_buffer() {
    let ground = Ground::new(&Rules::role("reader"), PolicyOptions::default());
    let (other, acme) = (caller("b", "writer"), context("acme"));
    let view = ground.envelope.acting_for(&other);
    denied(block_on(view.decrypt(&acme, Aad::empty(), b"no message at all")));
    let mut plaintext = b"plaintext".to_vec();
    denied(block_on(view.encrypt_in_place(&acme, Aad::empty(), &mut plaintext)));
    assert_eq!(plaintext, b"plaintext");
    let mut bytes = b"bytes".to_vec();
    denied(block_on(view.decrypt_in_place(&acme, Aad::empty(), &mut bytes)));
    assert_eq!(bytes, b"bytes");
}

#[test]
fn the_policy_sees_all_that_is_known() {
    let seen = Arc::new(Mutex::new(String::new()));
    let writes = seen.clone();
    let rules = Rules::new(move |question| {
        let since = question.time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let (ids, domain) = (question.kek_ids.len(), question.domain);
        let caller = question.caller.and_then(Caller::source_address);
        *writes.lock().unwrap() =
            format!("{ids} {domain:?} {caller:?} {since:?} {:?}", question.request_id);
        Ok(Decision::allow())
    });
    let options = PolicyOptions::default().domain("orders");
    let old = LocalKek::in_memory("old").unwrap();
    let ground = Ground::with(&rules, options, |builder| builder.unwrap_with(old));
    ground.clock.advance(Duration::from_secs(90));
    let who = Caller::builder().source_address([10, 0, 0, 1]).build().unwrap();
    let who = who.with_request_id("req-1").unwrap();
    let (view, acme) = (ground.envelope.acting_for(&who), context("acme"));
    let sealed = block_on(view.encrypt(&acme, Aad::empty(), b"x")).unwrap();
    let expected = |ids| format!("{ids} Some(\"orders\") Some(10.0.0.1) 90s Some(\"req-1\")");
    assert_eq!(*seen.lock().unwrap(), expected(1), "those that wrap");
    block_on(view.decrypt(&acme, Aad::empty(), &sealed)).unwrap();
    assert_eq!(*seen.lock().unwrap(), expected(2), "all of the envelope");
}

#[test]
fn erasing_a_branch_asks_and_so_does_rewrapping_branch_keys() {
    let rules = Rules::role("eraser");
    let kek = BranchKek::builder(LocalKek::in_memory("root").unwrap())
        .name("orders")
        .per(["tenant"])
        .store(MemoryStore::new())
        .policy(rules.clone(), PolicyOptions::default())
        .build()
        .unwrap();
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let acme = context("acme");
    let sealed = block_on(envelope.encrypt(&acme, Aad::empty(), b"x")).unwrap();
    let (eraser, other) = (caller("a", "eraser"), caller("b", "reader"));
    let erase = |who: &Caller| block_on(kek.acting_for(who).erase([("tenant", "acme")]));
    denied(block_on(kek.erase([("tenant", "acme")])));
    denied(erase(&other));
    assert!(block_on(envelope.decrypt(&acme, Aad::empty(), &sealed)).is_ok());
    denied(block_on(kek.rewrap_branch_keys(RewrapOptions::default(), |_| {})));
    let view = kek.acting_for(&eraser);
    block_on(view.rewrap_branch_keys(RewrapOptions::default(), |_| {})).unwrap();
    erase(&eraser).unwrap();
    assert!(block_on(envelope.decrypt(&acme, Aad::empty(), &sealed)).is_err());
    let asked = ["nobody erase acme", "b erase acme", "nobody rewrap", "a rewrap", "a erase acme"];
    assert_eq!(rules.asked(), asked);
}

#[test]
fn warming_up_encrypts_nothing_and_asks_nobody() {
    let rules = Rules::role("reader");
    let builder = Envelope::builder()
        .wrap_with(LocalKek::in_memory("kek").unwrap())
        .policy(rules.clone(), PolicyOptions::default());
    let acme = context("acme");
    let envelope = block_on(builder.start(StartOptions::default().warm_up([&acme]))).unwrap();
    assert_eq!((envelope.statistics().writing_deks, rules.count()), (1, 0));
    denied(block_on(envelope.encrypt(&acme, Aad::empty(), b"x")));
}

#[test]
fn without_a_policy_a_caller_changes_nothing() {
    let kek = LocalKek::in_memory("kek").unwrap();
    let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
    let (who, acme) = (caller("a", "b"), context("acme"));
    let sealed = block_on(envelope.acting_for(&who).encrypt(&acme, Aad::empty(), b"x")).unwrap();
    assert_eq!(&*block_on(envelope.decrypt(&acme, Aad::empty(), &sealed)).unwrap(), b"x");
    let view = envelope.acting_for(&who);
    assert!(view.decrypt_cached(&acme, Aad::empty(), &sealed).unwrap().is_some());
    let handle = block_on(view.decryptor(&acme, &sealed)).unwrap();
    assert_eq!(&*handle.decrypt(Aad::empty(), &sealed).unwrap(), b"x");
}

#[test]
fn every_operation_has_a_name_of_its_own() {
    let names: BTreeSet<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
    assert_eq!(names.len(), Action::ALL.len());
}

#[test]
fn prepare_tells_a_denied_caller_nothing_of_the_message() {
    let ground = Ground::new(&Rules::role("reader"), PolicyOptions::default());
    let (other, acme) = (caller("b", "writer"), context("acme"));
    let view = ground.envelope.acting_for(&other);
    let results = block_on(view.prepare([(&acme, b"no message at all")]));
    let kinds: Vec<_> =
        results.into_iter().map(|result| result.err().map(|error| error.kind())).collect();
    assert_eq!(kinds, [Some(ErrorKind::PolicyDenied)]);
    assert_eq!(ground.rules.count(), 1, "nobody was asked");
}

#[test]
fn rewrap_all_does_nothing_that_the_rules_in_force_deny() {
    let open = LocalKek::in_memory("kek").unwrap();
    let writer = Envelope::builder().wrap_with(open.clone()).build().unwrap();
    let contexts = ["a", "b"].map(context);
    let sealed =
        contexts.each_ref().map(|c| block_on(writer.encrypt(c, Aad::empty(), b"x")).unwrap());
    let rules = Rules::open();
    let reloads = rules.clone();
    rules.answer(move |_| {
        if reloads.count() == 2 {
            // The first context is decided. Now all is revoked.
            reloads.answer(|_| Ok(Decision::deny(["revoked"])));
            reloads.reload();
        }
        Ok(Decision::allow())
    });
    let policy = PolicyOptions::default();
    let envelope =
        Envelope::builder().wrap_with(open).policy(rules.clone(), policy).build().unwrap();
    let messages = contexts.iter().zip(&sealed).map(|(c, s)| (c, &**s));
    let kinds: Vec<_> = block_on(envelope.rewrap_all(messages))
        .into_iter()
        .map(|result| result.err().map(|error| error.kind()))
        .collect();
    assert_eq!(kinds, [Some(ErrorKind::PolicyDenied); 2]);
}
