//! Reload: what continues, what ends and when, and what a bad file changes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use waxseal::domain::{Domains, DomainsBuilder};
use waxseal::kek::KekErrorClass::Unavailable;
use waxseal::kek::KekProvider;
use waxseal::{Aad, Error, ErrorKind, Event, Observer, StartUp};
use waxseal_testing::support::block_on;
use waxseal_testing::support::stage::{Log, ms, secs};

use super::ground::{World, alice, kind, open, seal};

pub(crate) const BOTH: &str =
    "[domains.orders]\nwrap_with = [\"kek:a\"]\n[domains.billing]\nwrap_with = [\"kek:b\"]\n";
pub(crate) const ORDERS: &str = "[domains.orders]\nwrap_with = [\"kek:a\"]\n";

/// Domains over a file that a test replaces.
pub(crate) struct Service {
    pub(crate) world: World,
    pub(crate) log: Log,
    pub(crate) domains: Domains,
    folder: tempfile::TempDir,
}

impl Service {
    pub(crate) fn new(text: &str) -> Self {
        Self::with(text, |builder| block_on(builder.build()))
    }

    pub(crate) fn with(
        text: &str,
        build: impl FnOnce(DomainsBuilder) -> Result<Domains, Error>,
    ) -> Self {
        let (world, log) = (World::default(), Log::default());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("domains.toml"), text).unwrap();
        let builder = world.builder().observer(log.clone()).drain(ms(300));
        let domains = build(builder.file(folder.path().join("domains.toml"))).unwrap();
        Self { world, log, domains, folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("domains.toml")
    }

    /// By renaming, as an operator does.
    pub(crate) fn write(&self, text: &str) {
        let new = self.folder.path().join("new.toml");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }

    pub(crate) fn reload(&self, text: &str) -> Result<waxseal::domain::Reloaded, Error> {
        self.write(text);
        block_on(self.domains.reload())
    }
}

pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < secs(10), "{what}");
        thread::sleep(ms(5));
    }
}

#[test]
fn what_the_file_says_the_same_of_goes_on_with_its_deks() {
    let service = Service::new(BOTH);
    let [orders, billing] = ["orders", "billing"].map(|name| service.domains.domain(name).unwrap());
    let (of_orders, of_billing) = (seal(&orders), seal(&billing));
    let calls = |name: &str| service.world.kek(name).calls().total();
    let before = (calls("a"), calls("b"));
    drop((orders, billing));

    let reloaded = service
        .reload(
            "[domains.orders]\n\n  wrap_with = ['kek:a'] # the \
            same\n[domains.billing]\nwrap_with = [\"kek:b\"]\nmust_have = \
            [\"tenant\"]\n[domains.more]\nwrap_with = [\"kek:a\"]",
        )
        .unwrap();
    assert_eq!(reloaded.kept, ["orders"]);
    assert_eq!(reloaded.changed, ["billing"]);
    assert_eq!(reloaded.opened, ["more"]);
    assert!(reloaded.ended.is_empty());
    assert_eq!(service.log.count("DomainsReloaded"), 1);
    let [orders, billing] = ["orders", "billing"].map(|name| service.domains.domain(name).unwrap());
    open(&orders, &of_orders).unwrap();
    assert_eq!((calls("a"), calls("b")), before, "the DEK is cached");
    open(&billing, &of_billing).unwrap();
    assert_eq!((calls("a"), calls("b")), (before.0, before.1 + 1), "a new envelope has none");
    assert!(billing.context([("table", "t")]).is_err(), "what the new file says");
    seal(&service.domains.domain("more").unwrap());

    let reloaded = service.reload(ORDERS).unwrap();
    assert_eq!((reloaded.kept.len(), reloaded.ended.len()), (1, 2));
    assert_eq!(kind(service.domains.envelope("billing")), ErrorKind::UnknownDomain);
    assert_eq!(kind(service.domains.envelope_for(&alice(&billing))), ErrorKind::UnknownDomain);
}

/// Metrics are made from them, and a counter that decreases would stand still.
#[test]
fn the_counters_of_a_domain_go_on_when_a_reload_changes_it() {
    const BRANCHES: &str = "[domains.orders.branches]\nself_contained = true\n";
    let text = |keks: &str| format!("[domains.orders]\n{keks}{BRANCHES}");
    let (a, b) = ("wrap_with = [\"kek:a\"]\n", "wrap_with = [\"kek:b\"]\n");
    let service = Service::new(&text(a));
    let calls = |statistics: &waxseal::Statistics, kek: &str| {
        let id = service.world.kek(kek).id().clone();
        statistics.keks.iter().find(|kek| kek.kek_id == id).map(|kek| kek.calls)
    };
    let orders = || service.domains.domain("orders").unwrap();
    seal(&orders());
    seal(&orders());
    let first = orders().branch_statistics().unwrap();
    assert!(calls(&first, "a").is_some_and(|calls| calls > 0));
    assert_eq!((orders().statistics().writing_hits, first.writing_misses), (1, 1));
    // A KEK that is gone and comes back is counted on too.
    for (round, keks) in [(1, b), (2, a)] {
        service.reload(&text(keks)).unwrap();
        assert_eq!(orders().envelope().statistics().writing_hits, 0);
        assert_eq!(orders().statistics().writing_hits, round);
        seal(&orders());
        seal(&orders());
        let statistics = orders().statistics();
        let branches = orders().branch_statistics().unwrap();
        assert_eq!((statistics.writing_hits, statistics.writing_misses), (round + 1, round + 1));
        assert_eq!(branches.writing_misses, round + 1);
        assert_eq!(statistics.writing_deks, 1, "what is there now is not added");
        let other = if keks == a { "b" } else { "a" };
        assert_eq!(calls(&branches, other), None, "a KEK that is not configured");
        if keks == a {
            assert_eq!(calls(&branches, "a"), calls(&first, "a").map(|calls| 2 * calls));
        }
    }
    // The same file: the same envelope, counted once.
    service.reload(&text(a)).unwrap();
    assert_eq!(orders().statistics().writing_hits, 3);
}

#[test]
fn a_domain_that_nobody_holds_is_wiped_soon() {
    let service = Service::with(BOTH, |builder| block_on(builder.drain(secs(3600)).build()));
    seal(&service.domains.domain("billing").unwrap());
    service.log.take();
    service.reload(ORDERS).unwrap();
    // Its DEK for writing, and the same for reading.
    service.log.wait_for("Wiped", 2);
}

#[test]
fn a_domain_that_is_held_serves_until_it_is_dropped() {
    let service = Service::with(BOTH, |builder| block_on(builder.drain(secs(3600)).build()));
    let held = service.domains.domain("billing").unwrap();
    let sealed = seal(&held);
    let handle = block_on(held.envelope().encryptor(&alice(&held))).unwrap();
    service.log.take();
    service.reload(ORDERS).unwrap();
    thread::sleep(ms(100));
    open(&held, &sealed).unwrap();
    drop(held);
    thread::sleep(ms(100));
    handle.encrypt(Aad::empty(), b"x").unwrap();
    assert_eq!(service.log.count("Wiped"), 0);
    drop(handle);
    service.log.wait_for("Wiped", 2);
}

#[test]
fn whoever_holds_a_domain_for_longer_is_refused_and_its_keys_are_wiped() {
    let service = Service::new(BOTH);
    for (name, next) in
        [("billing", ORDERS), ("orders", "[domains.orders]\nwrap_with = [\"kek:b\"]")]
    {
        let held = service.domains.domain(name).unwrap();
        let sealed = seal(&held);
        let handle = block_on(held.envelope().encryptor(&alice(&held))).unwrap();
        service.log.take();
        service.reload(next).unwrap();
        open(&held, &sealed).unwrap();
        service.log.wait_for("Wiped", 2);
        assert_eq!(kind(open(&held, &sealed)), ErrorKind::ShutDown);
        assert_eq!(kind(handle.encrypt(Aad::empty(), b"x")), ErrorKind::Expired);
    }
    // Another KEK wraps since.
    let orders = service.domains.domain("orders").unwrap();
    open(&orders, &seal(&orders)).unwrap();
}

#[derive(Debug, Default)]
struct Errors(Mutex<Vec<String>>);

impl Observer for Errors {
    fn event(&self, event: &Event<'_>) {
        if let Event::DomainsNotReloaded { error } = event {
            self.0.lock().unwrap().push(error.to_string());
        }
    }
}

#[test]
fn a_bad_file_changes_nothing_and_is_reported() {
    let errors = Arc::new(Errors::default());
    let of_all = errors.clone();
    let service = Service::with(BOTH, move |builder| block_on(builder.observer(of_all).build()));
    let orders = service.domains.domain("orders").unwrap();
    let sealed = seal(&orders);
    let before = service.world.kek("a").calls();
    for (text, part) in [
        ("[domains.orders\n", "domains.toml:1"),
        ("[domains.orders]\nwrap_wth = []\n", "domains.toml:2: domains.orders.wrap_wth: unknown"),
        (
            "[domains.orders]\nwrap_with = [\"kek:a\"]\n[domains.new]\nwrap_with = [\"kex:b\"]\n",
            "4: domains.new.wrap_with[0]",
        ),
        (
            "[domains.orders]\nwrap_with = [\"kek:a\"]\n[domains.orders.limits]\nmax_age = \"2d\"\n",
            "4: domains.orders.limits.max_age",
        ),
        (
            "[domains.new]\nwrap_with = [\"kek:b\"]\n[domains.z]\n",
            "3: domains.z: wrap_with: no KEK",
        ),
        ("", "there is no domain left"),
        ("# nothing\n", "there is no domain left"),
    ] {
        let error = service.reload(text).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(errors.0.lock().unwrap().pop().as_ref(), Some(&error.to_string()));
        assert_eq!(service.domains.all().len(), 2);
        open(&service.domains.domain("orders").unwrap(), &sealed).unwrap();
        assert_eq!(kind(service.domains.envelope("new")), ErrorKind::UnknownDomain);
    }
    std::fs::remove_file(service.path()).unwrap();
    assert_eq!(kind(block_on(service.domains.reload())), ErrorKind::Io);
    assert_eq!(service.world.kek("a").calls(), before, "the DEK is cached all the time");
    assert_eq!(service.log.count("DomainsNotReloaded"), 8);
    assert_eq!(service.log.count("DomainsReloaded"), 0);
    // And a good one serves again.
    service.reload(ORDERS).unwrap();
}

#[test]
fn a_start_checks_what_a_reload_brings_and_nothing_else() {
    let service =
        Service::with(ORDERS, |builder| block_on(builder.start(StartUp::RequireKeyServices)));
    service.world.kek("b").fail_with(Unavailable);
    let error = service.reload(BOTH).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("domains.billing"), "{error}");
    assert_eq!(service.domains.all().len(), 1);
    // A domain that continues is not resolved again.
    service.world.kek("a").fail_with(Unavailable);
    service.world.kek("b").fail_with(None);
    service.reload(BOTH).unwrap();
}

/// Holds calls to a KEK back.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar, AtomicUsize)>);

impl Gate {
    fn before(&self, kek: &waxseal::kek::scripted::ScriptedKek) {
        let gate = self.clone();
        kek.wait_for(move || {
            let gate = gate.clone();
            Box::pin(async move {
                let (is_open, opened, waiting) = &*gate.0;
                waiting.fetch_add(1, Ordering::SeqCst);
                drop(opened.wait_while(is_open.lock().unwrap(), |is_open| !*is_open).unwrap());
            })
        });
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

#[test]
fn a_call_that_waits_for_a_key_service_is_answered_after_its_domain_is_gone() {
    let service = Service::with(BOTH, |builder| block_on(builder.drain(secs(60)).build()));
    let gate = Gate::default();
    gate.before(&service.world.kek("b"));
    thread::scope(|scope| {
        let calls: Vec<_> = (0..4)
            .map(|tenant| {
                let domains = &service.domains;
                scope.spawn(move || {
                    let billing = domains.domain("billing").unwrap();
                    let context = billing.context([("tenant", tenant.to_string())]).unwrap();
                    block_on(billing.envelope().encrypt(&context, Aad::empty(), b"payload"))
                })
            })
            .collect();
        wait_until("calls are in flight", || gate.0.2.load(Ordering::SeqCst) == 4);
        service.reload(ORDERS).unwrap();
        assert_eq!(kind(service.domains.domain("billing")), ErrorKind::UnknownDomain);
        thread::sleep(ms(100));
        gate.open();
        for call in calls {
            call.join().unwrap().unwrap();
        }
    });
}

#[test]
fn callers_lose_nothing_while_domains_change_under_them() {
    let service = Service::with(BOTH, |builder| block_on(builder.drain(secs(60)).build()));
    let is_over = AtomicBool::new(false);
    let calls = AtomicUsize::new(0);
    thread::scope(|scope| {
        for name in ["orders", "billing"] {
            let (domains, is_over, calls) = (&service.domains, &is_over, &calls);
            scope.spawn(move || {
                let mut before: Option<Vec<u8>> = None;
                while !is_over.load(Ordering::Relaxed) {
                    let domain = domains.domain(name).unwrap();
                    let sealed = seal(&domain);
                    open(&domain, &sealed).unwrap();
                    // Also what an earlier envelope of this name wrote.
                    let now = domains.domain(name).unwrap();
                    before.iter().for_each(|before| open(&now, before).unwrap());
                    before = Some(sealed);
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..100 {
            let limits =
                format!("{BOTH}[domains.billing.limits]\nmax_age = \"{}m\"\n", 1 + round % 3);
            service.reload(&limits).unwrap();
            // Readers get a turn.
            let seen = calls.load(Ordering::Relaxed);
            wait_until("callers go on", || calls.load(Ordering::Relaxed) > seen + 2);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    // Every envelope that was replaced ended: what is left are two domains.
    let statistics = service.domains.domain("orders").unwrap().envelope().statistics();
    assert_eq!(statistics.writing_deks, 1);
    assert_eq!(service.world.kek("a").calls().wraps, 1, "orders was never replaced");
}

#[test]
fn what_was_closed_stays_closed() {
    let service = Service::new(BOTH);
    block_on(service.domains.close());
    assert_eq!(kind(service.reload(BOTH)), ErrorKind::ShutDown);
    assert!(service.domains.all().is_empty());
    // Not an unknown name, which would be the caller's mistake.
    assert_eq!(kind(service.domains.envelope("orders")), ErrorKind::ShutDown);
    assert_eq!(kind(service.domains.context([("product", "shop")])), ErrorKind::ShutDown);
    let resolved = service.domains.resolve_context([("product", "shop")]);
    assert_eq!(kind(block_on(resolved)), ErrorKind::ShutDown);
    assert_eq!(kind(block_on(service.domains.resolve("orders"))), ErrorKind::ShutDown);
}

#[test]
fn a_drain_out_of_range_is_refused() {
    let builder = World::default().builder().drain(Duration::from_secs(3601));
    let error = block_on(builder.build()).unwrap_err().to_string();
    assert!(error.contains("drain is 3601s, 0 to 1 hour"), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_hangup_reloads() {
    let service = Service::with(ORDERS, |builder| block_on(builder.build()));
    service.domains.reload_on_hangup().unwrap();
    let hangup = || {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::HUP).unwrap();
    };
    service.write(BOTH);
    hangup();
    let until = async |count: usize, name: &str| {
        let start = Instant::now();
        while service.log.count(name) < count {
            assert!(start.elapsed() < secs(10), "{name}");
            tokio::time::sleep(ms(5)).await;
        }
    };
    until(1, "DomainsReloaded").await;
    assert_eq!(service.domains.all().len(), 2);
    service.write("broken");
    hangup();
    until(1, "DomainsNotReloaded").await;
    assert_eq!(service.domains.all().len(), 2);
}

#[cfg(unix)]
#[test]
fn a_hangup_needs_a_runtime() {
    let service = Service::new(ORDERS);
    let error = service.domains.reload_on_hangup().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    let without_io = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = without_io.block_on(async { service.domains.reload_on_hangup().unwrap_err() });
    assert!(error.to_string().contains("enable_io"), "{error}");
}
