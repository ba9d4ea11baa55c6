//! Policies of domains: which one decides, how it is asked, and that a reload changes both at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use waxseal::domain::{Branches, Domain, DomainConfig, DomainsBuilder};
use waxseal::policy::{Action, BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, Caller, Error, ErrorKind};
use waxseal_testing::support::block_on;
use waxseal_testing::support::stage::{ms, secs};

use super::ground::{World, alice, kind, open, seal, shared};

/// Allows the service `billing`, and remembers what it was asked.
#[derive(Clone, Debug, Default)]
struct Rules {
    asked: Arc<Mutex<Vec<String>>>,
    is_down: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
}

impl Policy for Rules {
    fn decide<'a>(&'a self, question: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        let service = question.caller.and_then(Caller::service);
        let (domain, operation) = (question.domain.unwrap_or("-"), question.operation.as_str());
        let asked = format!("{domain} {operation} {}", service.unwrap_or("-"));
        self.asked.lock().unwrap().push(asked);
        let decision = match service {
            _ if self.is_down.load(Ordering::SeqCst) => {
                Err(Error::new(ErrorKind::Unavailable, "down"))
            }
            Some("billing") => Ok(Decision::allow()),
            _ => Ok(Decision::deny(["only billing"])),
        };
        Box::pin(async { decision })
    }
}

impl Rules {
    fn builder(&self, world: &World) -> DomainsBuilder {
        let rules = self.clone();
        let schemes = world.schemes().policy("code", move |uri: String| {
            let rules = rules.clone();
            async move {
                rules.made.fetch_add(1, Ordering::SeqCst);
                match uri.as_str() {
                    "code:broken" => Err(Error::new(ErrorKind::InvalidOption, "it does not load")),
                    _ => Ok(rules),
                }
            }
        });
        world.builder().schemes(schemes)
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn encrypt_for(domain: &Domain, service: &str) -> Result<Vec<u8>, Error> {
    let caller = Caller::builder().service(service).build().unwrap();
    let view = domain.envelope().acting_for(&caller);
    block_on(view.encrypt(&alice(domain), Aad::empty(), b"payload"))
}

fn ruled() -> DomainConfig {
    shared().policy("code:rules")
}

#[test]
fn each_domain_has_the_policy_that_it_names_and_those_that_name_one_share_it() {
    let (world, rules) = (World::default(), Rules::default());
    let builder = rules.builder(&world).domain("orders", ruled()).domain("billing", ruled());
    let domains = block_on(builder.domain("free", shared()).build()).unwrap();
    let domain = |name: &str| domains.domain(name).unwrap();
    assert_eq!(rules.made.load(Ordering::SeqCst), 1);
    encrypt_for(&domain("orders"), "billing").unwrap();
    let denied = encrypt_for(&domain("billing"), "other").unwrap_err();
    assert_eq!((denied.kind(), &*denied.reasons()[0]), (ErrorKind::PolicyDenied, "only billing"));
    open(&domain("free"), &seal(&domain("free"))).unwrap();
    assert_eq!(rules.take(), ["orders encrypt billing", "billing encrypt other"]);
}

#[test]
fn where_a_caller_is_required_the_policy_is_not_asked_about_nobody() {
    let (world, rules) = (World::default(), Rules::default());
    let decisions = PolicyOptions::default().require_caller();
    let builder = rules.builder(&world).domain("strict", ruled().decisions(decisions));
    let domains = block_on(builder.domain("lax", ruled()).build()).unwrap();
    let [strict, lax] = ["strict", "lax"].map(|name| domains.domain(name).unwrap());
    for (domain, reason, asked) in
        [(&strict, "no caller is named", &[][..]), (&lax, "only billing", &["lax encrypt -"])]
    {
        let context = alice(domain);
        let error = block_on(domain.envelope().encrypt(&context, Aad::empty(), b"x")).unwrap_err();
        assert_eq!((error.kind(), &*error.reasons()[0]), (ErrorKind::PolicyDenied, reason));
        let handle = block_on(domain.envelope().encryptor(&context));
        assert_eq!(kind(handle), ErrorKind::PolicyDenied);
        assert_eq!(rules.take(), asked);
    }
    encrypt_for(&strict, "billing").unwrap();
    assert_eq!(rules.take(), ["strict encrypt billing"]);
}

#[test]
fn a_domain_says_how_long_decisions_are_kept_and_what_an_outage_means() {
    let (world, rules) = (World::default(), Rules::default());
    let decisions =
        |last_known| PolicyOptions::default().cache_for(secs(10)).last_known_for(last_known);
    let builder = rules.builder(&world).domain("denies", ruled().decisions(decisions(ms(0))));
    let builder = builder.domain("goes-on", ruled().decisions(decisions(secs(60))));
    let domains = block_on(builder.build()).unwrap();
    let [denies, goes_on] = ["denies", "goes-on"].map(|name| domains.domain(name).unwrap());
    let both = || [&denies, &goes_on].map(|domain| encrypt_for(domain, "billing").is_ok());
    assert_eq!(both(), [true, true]);
    world.clock.advance(secs(9));
    assert_eq!(both(), [true, true]);
    assert_eq!(rules.take().len(), 2, "cached");
    rules.is_down.store(true, Ordering::SeqCst);
    world.clock.advance(secs(2));
    assert_eq!(both(), [false, true]);
    world.clock.advance(secs(60));
    assert_eq!(both(), [false, false]);
}

#[test]
fn branches_are_erased_as_the_policy_says() {
    let (world, rules) = (World::default(), Rules::default());
    let config = ruled().store("store:shared").branches(Branches::per(["tenant"]));
    let domains = block_on(rules.builder(&world).domain("orders", config).build()).unwrap();
    let orders = domains.domain("orders").unwrap();
    encrypt_for(&orders, "billing").unwrap();
    rules.take();
    let branches = orders.branches().unwrap();
    assert_eq!(kind(block_on(branches.erase([("tenant", "alice")]))), ErrorKind::PolicyDenied);
    let billing = Caller::builder().service("billing").build().unwrap();
    block_on(branches.acting_for(&billing).erase([("tenant", "alice")])).unwrap();
    let erase = Action::Erase.as_str();
    assert_eq!(rules.take(), [format!("orders {erase} -"), format!("orders {erase} billing")]);
}

#[cfg(feature = "domains")]
mod reloaded {
    use waxseal::domain::Domains;

    use super::*;

    fn write(path: &std::path::Path, policy: &str) {
        let text = format!("[domains.orders]\nwrap_with = [\"kek:shared\"]\n{policy}");
        std::fs::write(path, text).unwrap();
    }

    fn orders(domains: &Domains) -> Domain {
        domains.domain("orders").unwrap()
    }

    #[test]
    fn a_reload_sets_policy_and_options_at_once_or_not_at_all() {
        let (world, rules) = (World::default(), Rules::default());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("domains.toml");
        write(&path, "policy = \"code:rules\"\n");
        let domains = block_on(rules.builder(&world).file(&path).build()).unwrap();
        let reload = || block_on(domains.reload());
        encrypt_for(&orders(&domains), "billing").unwrap();
        assert_eq!(rules.take(), ["orders encrypt billing"]);

        // What is wrong changes nothing: neither the policy nor the cached decision.
        for wrong in [
            "policy = \"code:broken\"\ndecisions.cache_for = \"0s\"",
            "policy = \"code:rules\"\ndecisions.timeout = \"2m\"",
            "policy = \"cod:rules\"",
            "decisions.require_caller = true",
        ] {
            write(&path, wrong);
            assert_eq!(kind(reload()), ErrorKind::InvalidOption, "{wrong}");
            encrypt_for(&orders(&domains), "billing").unwrap();
            assert!(rules.take().is_empty(), "{wrong}");
        }

        let held = orders(&domains);
        write(&path, "policy = \"code:rules\"\ndecisions.cache_for = \"0s\"\n");
        assert_eq!(reload().unwrap().changed, ["orders"]);
        for _ in 0..2 {
            encrypt_for(&orders(&domains), "billing").unwrap();
            assert_eq!(rules.take(), ["orders encrypt billing"]);
        }
        // A call that began before ends as it began.
        encrypt_for(&held, "billing").unwrap();
        assert!(rules.take().is_empty());
        assert_eq!(reload().unwrap().kept, ["orders"]);

        write(&path, "");
        reload().unwrap();
        seal(&orders(&domains));
        assert!(rules.take().is_empty(), "no policy is asked any more");
    }
}
