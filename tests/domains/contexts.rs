//! The names that contexts of a domain must and may have, and how a domain is found.

use waxseal::domain::DomainConfig;
use waxseal::{Aad, EncryptionContext, ErrorKind};
use waxseal_testing::support::block_on;

use super::ground::{World, shared};

fn refusal(config: DomainConfig, pairs: &[(&str, &str)]) -> String {
    let (orders, _) = World::default().twins(&config);
    let error = orders.context(pairs.iter().copied()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidContext);
    error.to_string().split("not one of domain \"orders\": ").last().unwrap().to_owned()
}

#[test]
fn a_context_has_the_names_that_it_must_have_and_no_others_than_it_may_have() {
    let strict = || shared().must_have(["tenant", "table"]).may_have(["row"]);
    for (pairs, text) in [
        (&[("tenant", "a")][..], "it has no pair \"table\""),
        (&[("tennant", "a"), ("table", "t")], "it has no pair \"tenant\"; it has \"tennant\""),
        (
            &[("tenant", "a"), ("table", "t"), ("rows", "1")],
            "it may not have \"rows\"; did you mean \"row\"?",
        ),
        (&[("tenant", "a"), ("table", "t"), ("colour", "1")], "it may not have \"colour\""),
        (&[("tenant", "a"), ("TABLE", "t")], "it has no pair \"table\""),
    ] {
        assert_eq!(refusal(strict(), pairs), text);
    }
    let (orders, _) = World::default().twins(&strict());
    orders.context([("tenant", "a"), ("table", "t")]).unwrap();
    orders.context([("tenant", "a"), ("table", "t"), ("row", "1")]).unwrap();

    let nothing_else = shared().must_have(["tenant"]).may_have([""; 0]);
    assert_eq!(refusal(nothing_else, &[("tenant", "a"), ("x", "1")]), "it may not have \"x\"");
    let (orders, _) = World::default().twins(&shared());
    orders.context([("anything", "1")]).unwrap();
    orders.context([("", ""); 0]).unwrap();
}

#[test]
fn a_caller_names_no_domain_by_hand() {
    let (orders, _) = World::default().twins(&shared());
    for name in ["waxseal:domain", "WaxSeal:Domain"] {
        assert!(orders.context([(name, "orders")]).is_err());
        assert!(EncryptionContext::new([(name, "orders")]).is_err());
    }
    let context = orders.context([("tenant", "alice")]).unwrap();
    assert_eq!(context.domain(), Some("orders"));
    assert!(EncryptionContext::try_from(context.as_bytes()).is_err(), "bytes make no domain");
}

/// The envelope checks the names too, however the context was made.
#[test]
fn a_context_of_a_looser_configuration_is_refused() {
    let world = World::default();
    let (loose, _) = world.twins(&shared());
    let (strict, _) = world.twins(&shared().must_have(["tenant"]));
    let context = loose.context([("table", "t")]).unwrap();
    let error = block_on(strict.envelope().encrypt(&context, Aad::empty(), b"x")).unwrap_err();
    assert!(error.to_string().contains("it has no pair \"tenant\""), "{error}");
}

#[test]
fn a_domain_is_found_by_its_name_or_by_a_pair() {
    let builder = World::default().builder().route_by("product");
    let builder = builder.domain("orders", shared().routes(["shop", "cart"]).may_have(["tenant"]));
    let domains = block_on(builder.domain("billing", shared()).build()).unwrap();
    for (value, domain) in [("shop", "orders"), ("cart", "orders"), ("billing", "billing")] {
        let context = domains.context([("product", value), ("tenant", "a")]).unwrap();
        assert_eq!(context.domain(), Some(domain));
        assert_eq!(context.get("product"), Some(value));
        let envelope = domains.envelope_for(&context).unwrap();
        block_on(envelope.encrypt(&context, Aad::empty(), b"x")).unwrap();
    }
    let names: Vec<_> = domains.all().iter().map(|domain| domain.name().to_owned()).collect();
    assert_eq!(names, ["billing", "orders"]);

    for (pairs, kind, text) in [
        (
            ("product", "shpo"),
            ErrorKind::UnknownDomain,
            "unknown data domain: for product = \"shpo\"; did you mean \"shop\"?",
        ),
        (
            ("product", "orders"),
            ErrorKind::UnknownDomain,
            "unknown data domain: for product = \"orders\"",
        ),
        (
            ("produkt", "shop"),
            ErrorKind::InvalidContext,
            "invalid encryption context: it has no pair \"product\", which chooses the domain; it has \"produkt\"",
        ),
    ] {
        let error = domains.context([pairs]).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
    }
    let error = domains.domain("biling").unwrap_err();
    assert_eq!(error.to_string(), "unknown data domain: \"biling\"; did you mean \"billing\"?");
    let long = "x".repeat(100_000);
    assert!(domains.envelope(&long).unwrap_err().to_string().len() < 200);
    let plain = EncryptionContext::new([("product", "shop")]).unwrap();
    let error = domains.envelope_for(&plain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidContext);
    assert!(error.to_string().contains("Domains::context makes one"), "{error}");
}

#[test]
fn without_a_routing_pair_no_pair_chooses() {
    let builder = World::default().builder().domain("orders", shared());
    let domains = block_on(builder.build()).unwrap();
    let error = domains.context([("product", "shop")]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
}
