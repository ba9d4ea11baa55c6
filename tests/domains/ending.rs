//! How domains end: by a reload, by eviction and by closing, even if code holds them or a call
//! hangs.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::Poll;
use std::thread;

use waxseal::domain::{Branches, DomainConfig, Domains, ResolverLimits, Schemes};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::{Aad, Error, ErrorKind, Event, Observer};
use waxseal_testing::support::block_on;
use waxseal_testing::support::stage::{ms, secs};

use super::ground::{alice, kind, open, seal, shared};
use super::reload::{BOTH, ORDERS, Service, wait_until};
use super::resolver::{self, Answer, config, poll_once};

/// Runs a future on its own thread, and waits for it for a while.
fn in_time<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let (done, result) = std::sync::mpsc::channel();
    thread::spawn(move || done.send(block_on(work)));
    result.recv_timeout(secs(10)).ok()
}

/// A gate that a test opens.
#[derive(Clone, Default, Debug)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let is_open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(is_open, |is_open| !*is_open).unwrap());
    }

    fn is_open(&self) -> bool {
        *self.0.0.lock().unwrap()
    }
}

#[test]
fn closing_ends_what_a_reload_has_ended_and_somebody_still_holds() {
    let service = Service::with(BOTH, |builder| block_on(builder.drain(secs(3600)).build()));
    let held = service.domains.domain("billing").unwrap();
    let sealed = seal(&held);
    service.reload(ORDERS).unwrap();
    open(&held, &sealed).unwrap();
    block_on(service.domains.close());
    assert_eq!(kind(open(&held, &sealed)), ErrorKind::ShutDown);
}

/// Domains whose KEKs `slow:…` are made when a gate opens.
fn with_slow_keks(gate: &Gate) -> (tempfile::TempDir, Domains) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domains.toml");
    std::fs::write(&path, ORDERS).unwrap();
    let gate = gate.clone();
    let schemes =
        Schemes::default().kek("kek", async |_| ScriptedKek::new("kek")).kek("slow", move |_| {
            let gate = gate.clone();
            std::future::poll_fn(move |cx| {
                if gate.is_open() {
                    return Poll::Ready(ScriptedKek::new("slow"));
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
        });
    let domains = block_on(Domains::builder().schemes(schemes).file(&path).build()).unwrap();
    std::fs::write(&path, format!("{ORDERS}[domains.slow]\nwrap_with = [\"slow:x\"]\n")).unwrap();
    (folder, domains)
}

#[test]
fn closing_waits_for_no_reload_and_no_reload_brings_anything_back() {
    let gate = Gate::default();
    let (_folder, domains) = with_slow_keks(&gate);
    let orders = domains.domain("orders").unwrap();
    let mut reload = pin!(domains.reload());
    assert!(poll_once(reload.as_mut()).is_pending());
    let closing = domains.clone();
    in_time(async move { closing.close().await }).expect("close waits for the reload");
    gate.open();
    assert_eq!(kind(block_on(reload)), ErrorKind::ShutDown);
    assert!(domains.all().is_empty());
    let encrypted = block_on(orders.envelope().encrypt(&alice(&orders), Aad::empty(), b"x"));
    assert_eq!(kind(encrypted), ErrorKind::ShutDown);
}

#[test]
fn a_close_that_is_given_up_has_ended_every_domain() {
    let mut builder = super::ground::World::default().builder();
    for name in 0..200 {
        builder = builder.domain(name.to_string(), shared());
    }
    let domains = block_on(builder.build()).unwrap();
    let all = domains.all();
    {
        let mut close = pin!(domains.close());
        let _ = poll_once(close.as_mut());
    }
    for domain in &all {
        let encrypted = block_on(domain.envelope().encrypt(&alice(domain), Aad::empty(), b"x"));
        assert_eq!(kind(encrypted), ErrorKind::ShutDown, "{}", domain.name());
    }
}

#[test]
fn a_resolved_domain_that_is_gone_is_wiped_when_nobody_holds_it() {
    let limits = ResolverLimits::default().fresh_for(ms(0)).refused_for(ms(0));
    let service =
        resolver::Service::with(config(shared()), limits, |builder| builder.drain(secs(3600)));
    seal(&service.resolve("acme").unwrap());
    service.log.take();
    service.resolver.says(Answer::NoSuchDomain);
    assert_eq!(kind(service.resolve("acme")), ErrorKind::UnknownDomain);
    service.log.wait_for("Wiped", 2);
}

/// Has another domain take the only place.
fn evict(service: &resolver::Service, name: &str) {
    for _ in 0..200 {
        service.resolve("other").unwrap();
    }
    assert_eq!(kind(service.domains.domain(name)), ErrorKind::UnknownDomain, "it was evicted");
}

#[test]
fn a_domain_that_is_evicted_twice_is_wiped_when_nobody_holds_it() {
    let limits = ResolverLimits::default().fresh_for(ms(0)).max_domains(1);
    let service = resolver::Service::new(config(shared()), limits);
    seal(&service.resolve("acme").unwrap());
    service.log.take();
    {
        // Evicted while its configuration is asked for again, which says the same.
        service.resolver.hangs_for(Some("acme"));
        let mut again = pin!(service.domains.resolve("acme"));
        assert!(poll_once(again.as_mut()).is_pending());
        evict(&service, "acme");
        service.resolver.hangs_for(None);
        for _ in 0..200 {
            let _ = service.domains.domain("acme");
        }
        block_on(again).unwrap();
    }
    evict(&service, "acme");
    service.log.wait_for("Wiped", 2);
}

#[test]
fn an_evicted_domain_is_wiped_in_an_idle_process() {
    for _ in 0..20 {
        let limits = ResolverLimits::default().fresh_for(ms(0)).max_domains(1);
        let service = resolver::Service::new(config(shared()), limits);
        seal(&service.resolve("acme").unwrap());
        service.log.take();
        evict(&service, "acme");
        // No call is made any more.
        service.log.wait_for("Wiped", 2);
    }
}

/// Blocks at the end of an envelope.
#[derive(Debug)]
struct Blocks(Gate);

impl Observer for Blocks {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::ShutDown) {
            self.0.wait();
        }
    }
}

#[test]
fn an_observer_that_blocks_keeps_no_domain_from_being_wiped() {
    let gate = Gate::default();
    let blocks = Blocks(gate.clone());
    let of_branches = format!(
        "{BOTH}store = \"store:a\"\n[domains.billing.branches]\nper = \
            [\"tenant\"]\n[domains.last]\nwrap_with = [\"kek:a\"]\n"
    );
    let service = Service::with(&of_branches, |builder| {
        block_on(builder.observer(blocks).drain(ms(0)).build())
    });
    let held: Vec<_> = ["orders", "billing"]
        .map(|name| service.domains.domain(name).unwrap())
        .into_iter()
        .map(|domain| {
            let handle = block_on(domain.envelope().encryptor(&alice(&domain))).unwrap();
            (domain, handle)
        })
        .collect();
    service.reload("[domains.last]\nwrap_with = [\"kek:a\"]\n").unwrap();
    for (domain, handle) in &held {
        wait_until("its keys are wiped", || {
            handle.encrypt(Aad::empty(), b"x").is_err_and(|e| e.kind() == ErrorKind::Expired)
        });
        if let Some(branches) = domain.branches() {
            assert_eq!(branches.statistics().writing_deks, 0);
        }
    }
    gate.open();
}

#[test]
fn whoever_holds_the_branch_keys_of_a_domain_holds_it() {
    let text =
        format!("{BOTH}store = \"store:a\"\n[domains.billing.branches]\nper = [\"tenant\"]\n");
    let service = Service::with(&text, |builder| block_on(builder.drain(secs(3600)).build()));
    let billing = service.domains.domain("billing").unwrap();
    let sealed = seal(&billing);
    let branches = billing.branches().unwrap().clone();
    drop(billing);
    service.reload(ORDERS).unwrap();
    thread::sleep(ms(200));
    assert_eq!(branches.statistics().writing_deks, 1, "it is held");
    let erased = block_on(branches.erase([("tenant", "alice")])).unwrap();
    assert_eq!(erased.erased, 1);
    drop((branches, sealed));
    service.log.wait_for("ShutDown", 2);
}

#[test]
fn a_provider_that_panics_fails_the_reload_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domains.toml");
    std::fs::write(&path, ORDERS).unwrap();
    let schemes = Schemes::default()
        .kek("kek", async |_| ScriptedKek::new("kek"))
        .kek("bad", |_| async { Err::<ScriptedKek, Error>(panics()) });
    let log = waxseal_testing::support::stage::Log::default();
    let builder = Domains::builder().schemes(schemes).file(&path).observer(log.clone());
    let domains = block_on(builder.build()).unwrap();
    std::fs::write(&path, format!("{ORDERS}[domains.bad]\nwrap_with = [\"bad:x\"]\n")).unwrap();
    let error = block_on(domains.reload()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Provider, "{error}");
    assert_eq!(log.count("DomainsNotReloaded"), 1);
    let orders = domains.domain("orders").unwrap();
    open(&orders, &seal(&orders)).unwrap();
    std::fs::write(&path, BOTH).unwrap();
    block_on(domains.reload()).unwrap();
}

fn panics() -> Error {
    std::panic::resume_unwind(Box::new("by script"))
}

/// What a file names from now on is not what a resolver said of that name before.
#[test]
fn a_file_that_names_a_resolved_domain_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domains.toml");
    std::fs::write(&path, ORDERS).unwrap();
    let limits = ResolverLimits::default();
    let service = resolver::Service::with(config(shared()), limits, |builder| builder.file(&path));
    let sealed = seal(&service.resolve("billing").unwrap());
    service.log.take();
    std::fs::write(&path, format!("{ORDERS}[domains.billing]\nwrap_with = [\"kek:b\"]\n")).unwrap();
    block_on(service.domains.reload()).unwrap();
    let billing = service.domains.domain("billing").unwrap();
    assert_eq!(kind(open(&billing, &sealed)), ErrorKind::UnknownKek);
    service.log.wait_for("Wiped", 2);
    std::fs::write(&path, ORDERS).unwrap();
    block_on(service.domains.reload()).unwrap();
    assert_eq!(kind(service.domains.domain("billing")), ErrorKind::UnknownDomain);
    let asked = service.resolver.asked();
    open(&service.resolve("billing").unwrap(), &sealed).unwrap();
    assert_eq!(service.resolver.asked(), asked + 1);
}

/// The names that contexts may have depend on the pair that chooses the domain.
#[test]
fn a_resolved_domain_follows_the_pair_that_chooses() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domains.toml");
    std::fs::write(&path, format!("route_by = \"product\"\n{ORDERS}")).unwrap();
    let limits = ResolverLimits::default().fresh_for(ms(0));
    let strict: DomainConfig = shared().may_have(["tenant"]);
    let service = resolver::Service::with(config(strict), limits, |builder| builder.file(&path));
    let acme = service.resolve("acme").unwrap();
    acme.context([("product", "x")]).unwrap();
    std::fs::write(&path, format!("route_by = \"shop\"\n{ORDERS}")).unwrap();
    block_on(service.domains.reload()).unwrap();
    let acme = service.resolve("acme").unwrap();
    acme.context([("shop", "x")]).unwrap();
    assert!(acme.context([("product", "x")]).is_err());
}

/// Dropping all of it is an end too.
#[test]
fn dropping_the_domains_wipes_what_nobody_holds() {
    let service = Service::with(BOTH, |builder| block_on(builder.drain(secs(3600)).build()));
    let held = service.domains.domain("billing").unwrap();
    let sealed = seal(&held);
    seal(&service.domains.domain("orders").unwrap());
    service.log.take();
    let Service { domains, log, .. } = service;
    drop(domains);
    log.wait_for("Wiped", 2);
    open(&held, &sealed).unwrap();
    drop(held);
    log.wait_for("Wiped", 4);
}

#[test]
fn a_branch_of_a_domain_ends_with_it() {
    let config = shared().store("store:shared").branches(Branches::per(["tenant"]));
    let builder = super::ground::World::default().builder().domain("orders", config);
    let domains = block_on(builder.build()).unwrap();
    let orders = domains.domain("orders").unwrap();
    let sealed = seal(&orders);
    let branches = orders.branches().unwrap().clone();
    block_on(domains.close());
    assert_eq!(kind(open(&orders, &sealed)), ErrorKind::ShutDown);
    assert_eq!(kind(block_on(branches.erase([("tenant", "alice")]))), ErrorKind::ShutDown);
}
