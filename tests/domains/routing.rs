//! Routing by a pair into domains of a resolver: each customer under their own keys.

use std::sync::{Arc, Mutex};

use waxseal::domain::{Branches, DomainConfig, DomainResolver, Domains, ResolverLimits};
use waxseal::kek::BoxFuture;
use waxseal::{Aad, EncryptionContext, Error, ErrorKind};
use waxseal_testing::support::block_on;
use waxseal_testing::support::stage::{ms, secs};

use super::ground::{World, kind, shared};

/// Knows every customer whose name does not begin with `no`, and remembers whom it was asked for.
#[derive(Clone, Debug, Default)]
struct Customers {
    config: Arc<Mutex<DomainConfig>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl DomainResolver for Customers {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<DomainConfig>, Error>> {
        self.asked.lock().unwrap().push(name.to_owned());
        let config = self.config.lock().unwrap().clone().wrap_with(format!("kek:of-{name}"));
        Box::pin(async move { Ok(Some(config).filter(|_| !name.starts_with("no"))) })
    }
}

impl Customers {
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// A service with the domain `payroll`, to which `{tenant: staff}` leads, and customers by name.
fn service(customers: &Customers, world: &World) -> Domains {
    let builder = world.builder().route_by("tenant").resolver(customers.clone());
    block_on(builder.domain("payroll", shared().routes(["staff"])).build()).unwrap()
}

fn context(domains: &Domains, tenant: &str) -> Result<EncryptionContext, Error> {
    block_on(domains.resolve_context([("tenant", tenant), ("table", "cards")]))
}

#[test]
fn a_pair_leads_to_the_domain_of_a_customer_and_to_its_kek() {
    let (customers, world) = (Customers::default(), World::default());
    let domains = service(&customers, &world);
    let sealed = ["acme", "globex"].map(|tenant| {
        let context = context(&domains, tenant).unwrap();
        assert_eq!((context.domain(), context.get("tenant")), (Some(tenant), Some(tenant)));
        let envelope = block_on(domains.resolve_for(&context)).unwrap();
        let sealed = block_on(envelope.encrypt(&context, Aad::empty(), b"payload")).unwrap();
        assert_eq!(world.kek(&format!("of-{tenant}")).calls().wraps, 1);
        (context, sealed)
    });
    assert_eq!(customers.asked(), ["acme", "globex"]);
    // From now on without waiting.
    let acme = domains.context([("tenant", "acme"), ("table", "cards")]).unwrap();
    assert_eq!(acme, sealed[0].0);
    let open = |(context, _): &(EncryptionContext, Vec<u8>),
                (_, sealed): &(EncryptionContext, Vec<u8>)| {
        let envelope = domains.envelope_for(context).unwrap();
        block_on(envelope.decrypt(context, Aad::empty(), sealed)).map(|_| ())
    };
    open(&sealed[0], &sealed[0]).unwrap();
    assert_eq!(kind(open(&sealed[1], &sealed[0])), ErrorKind::UnknownKek);
    assert_eq!(customers.asked(), [""; 0]);
}

#[test]
fn a_value_leads_to_a_configured_domain_only_by_its_routes() {
    let (customers, world) = (Customers::default(), World::default());
    let domains = service(&customers, &world);
    assert_eq!(context(&domains, "staff").unwrap().domain(), Some("payroll"));
    // A customer with the name of a domain.
    assert_eq!(kind(context(&domains, "payroll")), ErrorKind::UnknownDomain);
    assert_eq!(kind(domains.context([("tenant", "payroll")])), ErrorKind::UnknownDomain);
    assert_eq!(customers.asked(), [""; 0]);
}

#[test]
fn what_leads_nowhere_is_an_error() {
    let (customers, world) = (Customers::default(), World::default());
    let domains = service(&customers, &world);
    assert_eq!(kind(context(&domains, "nobody")), ErrorKind::UnknownDomain);
    assert_eq!(customers.asked(), ["nobody"]);
    // Names that no domain can have are not asked for, and only a part of them is repeated.
    for value in ["", "a b", "../x", &"x".repeat(1 << 13)] {
        let error = context(&domains, value);
        let kinds = [ErrorKind::UnknownDomain, ErrorKind::InvalidContext];
        assert!(kinds.contains(&error.as_ref().unwrap_err().kind()), "{value}");
        assert!(error.unwrap_err().to_string().len() < 500);
    }
    // Before it was resolved.
    assert_eq!(kind(domains.context([("tenant", "acme")])), ErrorKind::UnknownDomain);
    let misspelt = block_on(domains.resolve_context([("tennant", "acme")])).unwrap_err();
    assert!(misspelt.to_string().contains("it has \"tennant\""), "{misspelt}");
    assert_eq!(customers.asked(), [""; 0]);
    // Without a resolver it is as `context`, and without `route_by` an error that says so.
    let without = world.builder().domain("orders", shared());
    let unrouted = block_on(world.builder().resolver(customers).build()).unwrap();
    assert_eq!(kind(context(&unrouted, "acme")), ErrorKind::InvalidOption);
    let domains = block_on(without.route_by("tenant").build()).unwrap();
    assert_eq!(context(&domains, "orders").unwrap().domain(), Some("orders"));
    assert_eq!(kind(context(&domains, "acme")), ErrorKind::UnknownDomain);
}

#[test]
fn a_customer_s_domain_has_rules_of_its_own_and_the_pair_that_chooses_it() {
    let (customers, world) = (Customers::default(), World::default());
    *customers.config.lock().unwrap() =
        DomainConfig::default().must_have(["tenant"]).may_have(["table"]);
    let domains = service(&customers, &world);
    context(&domains, "acme").unwrap();
    let other = block_on(domains.resolve_context([("tenant", "acme"), ("colour", "red")]));
    assert_eq!(kind(other), ErrorKind::InvalidContext);
}

#[test]
fn a_domain_of_a_resolver_has_no_routes_but_its_name() {
    let (customers, world) = (Customers::default(), World::default());
    *customers.config.lock().unwrap() = DomainConfig::default().routes(["other"]);
    let domains = service(&customers, &world);
    let error = context(&domains, "acme").unwrap_err().to_string();
    assert!(error.contains("domains.acme.routes: a domain of a resolver is chosen"), "{error}");
}

#[test]
fn a_domain_that_cannot_be_made_says_why_and_is_asked_for_again_later() {
    let (customers, world) = (Customers::default(), World::default());
    *customers.config.lock().unwrap() = DomainConfig::default().branches(Branches::per(["tenant"]));
    let builder = world.builder().route_by("tenant").resolver(customers.clone());
    let limits = ResolverLimits::default().refused_for(ms(50));
    let domains = block_on(builder.resolver_limits(limits).build()).unwrap();
    assert_eq!(kind(context(&domains, "acme")), ErrorKind::InvalidOption);
    *customers.config.lock().unwrap() = DomainConfig::default();
    let began = std::time::Instant::now();
    while context(&domains, "acme").is_err() {
        assert!(began.elapsed() < secs(30));
        std::thread::sleep(ms(10));
    }
}

#[test]
fn another_pair_after_a_reload_leads_to_domains_made_anew() {
    let (customers, world) = (Customers::default(), World::default());
    *customers.config.lock().unwrap() = DomainConfig::default().may_have(["table"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domains.toml");
    let write = |by: &str| {
        let text = format!("route_by = \"{by}\"\n[domains.own]\nwrap_with = [\"kek:shared\"]\n");
        std::fs::write(&path, text).unwrap();
    };
    write("tenant");
    let builder = world.builder().file(&path).resolver(customers.clone());
    let domains = block_on(builder.build()).unwrap();
    context(&domains, "acme").unwrap();
    write("customer");
    block_on(domains.reload()).unwrap();
    let by_customer = [("customer", "acme"), ("table", "cards")];
    assert_eq!(kind(domains.context(by_customer)), ErrorKind::UnknownDomain, "made for another");
    let context = block_on(domains.resolve_context(by_customer)).unwrap();
    assert_eq!(context.domain(), Some("acme"));
    assert_eq!(customers.asked(), ["acme", "acme"]);
}
