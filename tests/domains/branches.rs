//! Branch keys of domains that share root, store and name.

use waxseal::domain::Branches;
use waxseal::store::{Erasure, KeyStore, RewrapOptions};
use waxseal::{Aad, EncryptionContext, Envelope, ErrorKind};
use waxseal_testing::support::block_on;

use super::ground::{World, alice, kind, open, seal, shared};

fn config() -> waxseal::domain::DomainConfig {
    shared().store("store:shared").branches(Branches::per(["tenant"]).name("common"))
}

#[test]
fn each_domain_has_branch_keys_of_its_own() {
    let world = World::default();
    let (orders, billing) = world.twins(&config());
    seal(&orders);
    seal(&billing);
    let rows = block_on(world.store("shared").store().scan(None, 10)).unwrap().rows;
    let mut domains: Vec<_> = rows
        .iter()
        .map(|row| row.row().unwrap().context().unwrap().domain().unwrap().to_owned())
        .collect();
    domains.sort();
    assert_eq!(domains, ["billing", "orders"]);
}

#[test]
fn erasing_a_branch_leaves_the_same_branch_of_another_domain() {
    let (orders, billing) = World::default().twins(&config());
    let (ours, theirs) = (seal(&orders), seal(&billing));
    let erased = block_on(orders.branches().unwrap().erase([("tenant", "alice")])).unwrap();
    assert_eq!(erased, Erasure { erased: 1, already_erased: 0 });
    assert_eq!(kind(open(&orders, &ours)), ErrorKind::Denied);
    open(&billing, &theirs).unwrap();
}

#[test]
fn rewrapping_branch_keys_leaves_those_of_another_domain() {
    let world = World::default();
    let (orders, billing) = world.twins(&config());
    seal(&orders);
    seal(&billing);
    world.kek("shared").local().rotate().unwrap();
    for domain in [&orders, &billing] {
        let rewrap =
            domain.branches().unwrap().rewrap_branch_keys(RewrapOptions::default(), |_| {});
        let done = block_on(rewrap).unwrap();
        assert_eq!((done.rewrapped, done.skipped, done.failed), (1, 1, 0), "{done:?}");
    }
}

#[test]
fn branch_keys_of_a_domain_serve_no_envelope_without_it() {
    let world = World::default();
    let (orders, _) = world.twins(&config());
    let sealed = seal(&orders);
    let kek = orders.branches().unwrap().clone();
    let plain = Envelope::builder().wrap_with(kek).build().unwrap();
    let none = EncryptionContext::new([("tenant", "alice")]).unwrap();
    let refused = block_on(plain.encrypt(&none, Aad::empty(), b"x"));
    assert_eq!(kind(refused), ErrorKind::InvalidContext);
    for context in [none, alice(&orders)] {
        let refused = block_on(plain.decrypt(&context, Aad::empty(), &sealed));
        assert_eq!(kind(refused), ErrorKind::InvalidContext);
    }
}

#[test]
fn what_a_kek_wrapped_before_there_were_branches_is_still_read() {
    let world = World::default();
    let (orders, _) = world.twins(&shared());
    let old = seal(&orders);
    let (orders, billing) = world.twins(&config());
    open(&orders, &old).unwrap();
    assert_eq!(kind(open(&billing, &old)), ErrorKind::Invalid);
    let new = seal(&orders);
    assert!(new.len() < old.len(), "a branch wraps new messages");
}

#[test]
fn the_pairs_by_which_branches_differ_must_be_there() {
    let (orders, _) = World::default().twins(&config());
    let error = orders.context([("table", "cards")]).unwrap_err();
    assert!(error.to_string().contains("it has no pair \"tenant\""), "{error}");
}
