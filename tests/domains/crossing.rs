//! A message of one domain never opens through another, even if both use one KEK, one store and one
//! name of a branch.

use waxseal::domain::{Branches, DomainConfig};
use waxseal::kek::KekErrorClass;
use waxseal::store::{KeyStore, RewrapOptions};
use waxseal::{Aad, EncryptionContext, Envelope, ErrorKind, Sealed};
use waxseal_testing::support::block_on;

use super::ground::{World, alice, kind, open, open_in, seal, shared};

/// Everything that two domains can share.
fn all_that_is_shared() -> Vec<(&'static str, DomainConfig)> {
    let named = || Branches::per(["tenant"]).name("common");
    vec![
        ("KEK", shared()),
        ("KEK and store", shared().store("store:shared")),
        ("branch and store", shared().store("store:shared").branches(named())),
        (
            "branch, store and rows of DEKs",
            shared().store("store:shared").branches(named()).keep_deks(true),
        ),
        ("branch without a store", shared().branches(named().self_contained())),
    ]
}

#[test]
fn a_message_opens_in_its_own_domain_only() {
    for (what, config) in all_that_is_shared() {
        let (orders, billing) = World::default().twins(&config);
        let sealed = seal(&orders);
        open(&orders, &sealed).unwrap();
        // In the other's own context, which is what a service of the other domain would pass.
        assert_eq!(kind(open(&billing, &sealed)), ErrorKind::Invalid, "{what}");
        // In the true context.
        let error = open_in(&billing, &alice(&orders), &sealed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidContext, "{what}");
        assert!(error.to_string().contains("not one of domain \"billing\""), "{error}");
        // The other way round, with both caches warm.
        let theirs = seal(&billing);
        open(&billing, &theirs).unwrap();
        assert_eq!(kind(open(&orders, &theirs)), ErrorKind::Invalid, "{what}");
        assert_eq!(kind(open(&billing, &sealed)), ErrorKind::Invalid, "{what}");
        open(&orders, &sealed).unwrap();
    }
}

#[test]
fn another_process_with_the_same_domains_opens_what_is_its_own() {
    for (what, config) in all_that_is_shared() {
        let world = World::default();
        let (orders, _) = world.twins(&config);
        let (orders_elsewhere, billing_elsewhere) = world.twins(&config);
        let sealed = seal(&orders);
        assert_eq!(kind(open(&billing_elsewhere, &sealed)), ErrorKind::Invalid, "{what}");
        open(&orders_elsewhere, &sealed).unwrap();
    }
}

#[test]
fn a_compact_message_does_not_cross_by_the_store() {
    for (what, config) in all_that_is_shared().into_iter().filter(|(what, _)| what.contains("DEK"))
    {
        let (orders, billing) = World::default().twins(&config);
        let (envelope, context) = (orders.envelope(), alice(&orders));
        let compact = block_on(envelope.encrypt_compact(&context, Aad::empty(), b"payload"));
        let (compact, keys) = compact.unwrap().into_parts();
        open(&orders, &compact).unwrap();
        assert_eq!(kind(open(&billing, &compact)), ErrorKind::Invalid, "{what}");
        let with_keys = Sealed::compact(&compact, &keys);
        let opened =
            block_on(billing.envelope().decrypt(&alice(&billing), Aad::empty(), with_keys));
        assert_eq!(kind(opened), ErrorKind::Invalid, "{what}");
    }
}

/// Every call that takes a context, with contexts that are not the envelope's.
#[test]
fn no_call_takes_a_context_of_another_domain_or_of_none() {
    let world = World::default();
    let (orders, billing) = world.twins(&shared());
    let plain = Envelope::builder().wrap_with(world.kek("shared")).build().unwrap();
    let none = EncryptionContext::new([("tenant", "alice")]).unwrap();
    let (of_orders, of_billing) = (alice(&orders), alice(&billing));
    let sealed = seal(&orders);
    let of_none = block_on(plain.encrypt(&none, Aad::empty(), b"payload")).unwrap();
    let before = world.kek("shared").calls();

    for (envelope, context) in [
        (orders.envelope(), &of_billing),
        (orders.envelope(), &none),
        (billing.envelope(), &of_orders),
        (&plain, &of_orders),
    ] {
        let mut buffer = sealed.clone();
        let mut kinds = vec![
            kind(block_on(envelope.encrypt(context, Aad::empty(), b"x"))),
            kind(block_on(envelope.encrypt_in_place(context, Aad::empty(), &mut vec![1]))),
            kind(block_on(envelope.encrypt_compact(context, Aad::empty(), b"x"))),
            kind(block_on(envelope.encryptor(context))),
            kind(block_on(envelope.warm_up([context]))),
            kind(block_on(envelope.rewrap_unverified(context, &sealed))),
        ];
        for sealed in [&sealed, &of_none] {
            kinds.extend([
                kind(block_on(envelope.decrypt(context, Aad::empty(), sealed))),
                kind(block_on(envelope.decryptor(context, sealed)).map(drop)),
                kind(block_on(envelope.prepare([(context, sealed)])).remove(0)),
                kind(block_on(envelope.rewrap(context, sealed))),
                kind(block_on(envelope.rewrap_all([(context, &**sealed)])).remove(0)),
            ]);
            // It makes no call, so there is nothing to refuse.
            let cached = envelope.decrypt_cached(context, Aad::empty(), sealed);
            assert!(matches!(cached, Ok(None) | Err(_)), "{cached:?}");
        }
        kinds.push(kind(block_on(envelope.decrypt_in_place(context, Aad::empty(), &mut buffer))));
        // The DEK of the message may be known to belong to another context.
        let refused =
            |kind: &ErrorKind| matches!(kind, ErrorKind::InvalidContext | ErrorKind::Invalid);
        assert!(kinds.iter().all(refused), "{envelope:?}, {context:?}: {kinds:?}");
        assert!(kinds.iter().filter(|kind| **kind == ErrorKind::InvalidContext).count() > 8);
    }
    assert_eq!(world.kek("shared").calls(), before, "a KEK was asked");
}

#[test]
fn one_list_of_another_domain_is_refused_alone() {
    let (orders, billing) = World::default().twins(&shared());
    let (ours, theirs) = (seal(&orders), seal(&billing));
    let (of_orders, of_billing) = (alice(&orders), alice(&billing));
    let messages = [(&of_billing, &*theirs), (&of_orders, &*ours), (&of_billing, &*theirs)];
    let rewrapped = block_on(orders.envelope().rewrap_all(messages));
    let kinds: Vec<_> = rewrapped.iter().map(|one| one.as_ref().err().map(|e| e.kind())).collect();
    let refused = Some(ErrorKind::InvalidContext);
    assert_eq!(kinds, [refused, None, refused]);
    open(&orders, rewrapped[1].as_ref().unwrap()).unwrap();
}

/// A context of a branch key of the domain has its pair too.
#[test]
fn the_context_of_a_branch_key_is_no_context_of_the_domain() {
    let world = World::default();
    let config = shared().store("store:shared").branches(Branches::per(["tenant"]));
    let (orders, _) = world.twins(&config);
    seal(&orders);
    let page = block_on(world.store("shared").store().scan(None, 10)).unwrap();
    let row = page.rows[0].row().unwrap();
    let context = row.context().unwrap();
    assert_eq!(context.domain(), Some("orders"));
    let error = block_on(orders.envelope().encrypt(context, Aad::empty(), b"x")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidContext);
    assert!(error.to_string().contains("is reserved"), "{error}");
}

/// So a key policy can grant the use of a shared KEK to one domain.
#[test]
fn the_key_service_can_tell_domains_apart() {
    let branches = shared().branches(Branches::per(["tenant"]).self_contained());
    for config in [shared(), branches] {
        let world = World::default();
        let (orders, billing) = world.twins(&config);
        world.kek("shared").fail_where(|context| {
            (context.get("waxseal:domain") != Some("orders")).then_some(KekErrorClass::Denied)
        });
        open(&orders, &seal(&orders)).unwrap();
        let refused = block_on(billing.envelope().encrypt(&alice(&billing), Aad::empty(), b"x"));
        assert_eq!(kind(refused), ErrorKind::Denied);
    }
}

#[test]
fn a_walk_through_a_shared_store_rewraps_the_own_rows_only() {
    let world = World::default();
    let (orders, billing) = world.twins(&shared().store("store:shared"));
    let plain = Envelope::builder()
        .wrap_with(world.kek("shared"))
        .key_store(world.store("shared"))
        .build()
        .unwrap();
    seal(&orders);
    seal(&billing);
    let none = EncryptionContext::new([("tenant", "alice")]).unwrap();
    block_on(plain.encrypt(&none, Aad::empty(), b"payload")).unwrap();
    world.kek("shared").local().rotate().unwrap();
    for envelope in [orders.envelope(), billing.envelope(), &plain] {
        let done = block_on(envelope.rewrap_stored(RewrapOptions::default(), |_| {})).unwrap();
        assert_eq!((done.rewrapped, done.skipped, done.failed), (1, 2, 0), "{done:?}");
    }
}
