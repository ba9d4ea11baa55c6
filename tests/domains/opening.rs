//! Domains from code: what is wrong in them, what they share, and their end.

use waxseal::domain::{Branches, DomainConfig, DomainsBuilder};
use waxseal::kek::KekErrorClass::{Denied, Unavailable};
use waxseal::store::KeyStore;
use waxseal::{Aad, ErrorKind, Limits, StartUp};
use waxseal_testing::support::block_on;
use waxseal_testing::support::stage::{Log, secs};

use super::ground::{World, alice, kind, open, seal, shared};

fn refusal(builder: DomainsBuilder) -> String {
    block_on(builder.build()).unwrap_err().to_string()
}

#[test]
fn an_error_names_the_domain_and_the_field() {
    let empty = DomainConfig::default;
    let branches = || Branches::per(["tenant"]);
    for (config, text) in [
        (empty(), "domains.orders: wrap_with: no KEK"),
        (
            empty().wrap_with("kek:a").wrap_with("kex:hunter2"),
            "domains.orders.wrap_with[1]: scheme `kex:` is unknown; did you mean `kek:`?",
        ),
        (
            shared().unwrap_with("hunter2"),
            "domains.orders.unwrap_with[0]: not a URI of a known scheme; known are kek, local",
        ),
        (
            shared().store("postgres://u:hunter2@host/db"),
            "domains.orders.store: not a URI of a known scheme; known are memory, store",
        ),
        (empty().wrap_with("local:/x"), "domains.orders.wrap_with[0]: local URI: parameter `name`"),
        (shared().wrap_with("kek:shared"), "domains.orders: wrap_with: two providers"),
        (shared().branches(branches()), "domains.orders.branches: store: set one"),
        (
            shared().branches(branches().period(secs(1))),
            "domains.orders.branches: period is 1s, 1 minute",
        ),
        (
            empty().unwrap_with("kek:a").branches(branches()),
            "domains.orders.wrap_with: branches need a KEK",
        ),
        (shared().limits(Limits::default().max_age(secs(90_000))), "domains.orders: max_age is"),
        (shared().must_have(["a", "A"]), "domains.orders.must_have: invalid encryption context"),
        (shared().may_have(["waxseal:domain"]), "domains.orders.may_have: invalid encryption"),
    ] {
        let error = refusal(World::default().builder().domain("orders", config));
        assert!(error.starts_with(&format!("invalid configuration: {text}")), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_name_is_short_and_plain_and_there_once() {
    for name in ["", "a b", "\u{e9}", "a/b", &"x".repeat(129)] {
        let error = refusal(World::default().builder().domain(name, shared()));
        assert!(error.contains("1 to 128 letters"), "{error}");
    }
    let twice = World::default().builder().domain("a", shared()).domain("a", shared());
    assert!(refusal(twice).contains("domains.a: this domain is configured twice"));
    let builder = World::default().builder().domain("a", shared().routes(["x", "y"]));
    let error = refusal(builder.domain("b", shared().routes(["z", "y"])));
    assert!(error.contains("domains.b.routes[1]: domain \"a\" has this route too"), "{error}");
}

#[test]
fn what_a_configuration_says_reaches_the_envelope() {
    let world = World::default();
    let limits = Limits::default().max_age(secs(10));
    let config = shared().unwrap_with("kek:old").limits(limits);
    let (orders, _) = world.twins(&config.suite(waxseal::Suite::Xaes256Gcm));
    let sealed = seal(&orders);
    assert_eq!(sealed[4], 3, "the suite");
    open(&orders, &sealed).unwrap();
    assert_eq!(world.kek("shared").calls().unwraps, 0);
    world.clock.advance(secs(11));
    open(&orders, &sealed).unwrap();
    assert_eq!(world.kek("shared").calls().unwraps, 1, "max_age");
    // The other KEK only unwraps.
    assert_eq!(world.kek("old").calls().total(), 0);
    let (old, _) = world.twins(&DomainConfig::default().wrap_with("kek:old"));
    open(&orders, &seal(&old)).unwrap();
    assert_eq!(world.kek("old").calls().unwraps, 1);
}

#[test]
fn options_of_all_envelopes_count_less_than_those_of_a_domain() {
    let (world, log) = (World::default(), Log::default());
    let (clock, of_all) = (world.clock.clone(), log.clone());
    let short = Limits::default().max_age(secs(10));
    let builder = world.builder().envelopes(move |name, builder| {
        assert!(["orders", "billing"].contains(&name));
        builder.clock(clock.clone()).limits(short).observer(of_all.clone())
    });
    let long = shared().limits(Limits::default().max_age(secs(100)));
    let builder = builder.domain("orders", shared()).domain("billing", long);
    let domains = block_on(builder.build()).unwrap();
    let [orders, billing] = ["orders", "billing"].map(|name| domains.domain(name).unwrap());
    let (ours, theirs) = (seal(&orders), seal(&billing));
    assert_eq!(log.count("Made"), 2);
    world.clock.advance(secs(11));
    open(&billing, &theirs).unwrap();
    assert_eq!(log.count("Unwrapped"), 0);
    open(&orders, &ours).unwrap();
    assert_eq!(log.count("Unwrapped"), 1);
}

#[test]
fn domains_that_name_one_store_share_it() {
    let world = World::default();
    let (orders, billing) = world.twins(&shared().store("store:shared"));
    assert_eq!(*world.made_stores.lock().unwrap(), ["store:shared"]);
    seal(&orders);
    seal(&billing);
    let rows = block_on(world.store("shared").store().scan(None, 10)).unwrap().rows;
    assert_eq!(rows.len(), 2);
}

#[test]
fn a_start_asks_the_key_services() {
    for (class, start_up, is_ok) in [
        (Unavailable, StartUp::RequireKeyServices, false),
        (Unavailable, StartUp::TolerateOutage, true),
        (Denied, StartUp::TolerateOutage, false),
    ] {
        let world = World::default();
        world.kek("bad").fail_with(class);
        let builder = || {
            let bad = DomainConfig::default().wrap_with("kek:bad");
            world.builder().domain("good", shared()).domain("bad", bad)
        };
        block_on(builder().build()).unwrap();
        let started = block_on(builder().start(start_up));
        assert_eq!(started.is_ok(), is_ok, "{started:?}");
        if let Err(error) = started {
            assert!(error.to_string().contains("domains.bad: local:bad"), "{error}");
        }
    }
}

#[test]
fn closing_ends_every_domain_and_its_branch_keys() {
    let world = World::default();
    let config = shared().store("store:shared").branches(Branches::per(["tenant"]));
    let builder = world.builder().domain("orders", config).domain("billing", shared());
    let domains = block_on(builder.build()).unwrap();
    let all = domains.all();
    let sealed: Vec<_> = all.iter().map(seal).collect();
    let branches = domains.domain("orders").unwrap().branches().unwrap().clone();
    assert_eq!(branches.statistics().writing_deks, 1);
    block_on(domains.close());
    for (domain, sealed) in all.iter().zip(&sealed) {
        assert_eq!(kind(open(domain, sealed)), ErrorKind::ShutDown);
        let context = alice(domain);
        let encrypted = domain.envelope().encrypt(&context, Aad::empty(), b"x");
        assert_eq!(kind(block_on(encrypted)), ErrorKind::ShutDown);
    }
    assert_eq!(branches.statistics().writing_deks, 0);
    assert_eq!(kind(domains.domain("orders")), ErrorKind::ShutDown);
    assert_eq!(kind(domains.envelope_for(&alice(&all[0]))), ErrorKind::ShutDown);
}

#[test]
fn debug_shows_no_address() {
    let config = shared().store("postgres://user:hunter2@host/db");
    let builder = World::default().builder().domain("orders", config.clone());
    let shown = format!("{config:?} {builder:?}");
    assert!(shown.contains("postgres:[redacted]") && !shown.contains("hunter2"), "{shown}");
}
