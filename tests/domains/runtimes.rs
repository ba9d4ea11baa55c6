//! A caller that causes a domain to be made does not lend it a runtime: it is made in that of all
//! domains.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use tokio::runtime::{Builder, Handle, Id, Runtime};
use waxseal::domain::{DomainConfig, Domains, DomainsBuilder, ResolverLimits, Schemes};
use waxseal::kek::KekErrorClass::Unavailable;
use waxseal::kek::scripted::{Act, ScriptedKek};
use waxseal::{Aad, CallPolicy, Error, ErrorKind};
use waxseal_testing::support::block_on;
use waxseal_testing::support::stage::{ms, secs};

use super::ground::{World, alice, kind, open, seal, shared};
use super::resolver::{Answer, Scripted, config, poll_once};

fn threads() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Notes the runtimes in which KEKs are made.
#[derive(Clone, Default)]
struct Made(Arc<Mutex<Vec<Option<Id>>>>);

impl Made {
    fn schemes(&self) -> Schemes {
        let made = self.clone();
        Schemes::default().kek("kek", move |uri: String| {
            let made = made.clone();
            async move {
                made.0.lock().unwrap().push(Handle::try_current().ok().map(|h| h.id()));
                ScriptedKek::new(uri.trim_start_matches("kek:"))
            }
        })
    }
}

fn built_in(runtime: &Runtime, builder: DomainsBuilder) -> Domains {
    runtime.block_on(builder.build()).unwrap()
}

#[test]
fn what_a_reload_or_a_resolver_brings_is_made_in_the_runtime_of_all_domains() {
    let (home, elsewhere, made) = (threads(), one_thread(), Made::default());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domains.toml");
    let text = "[domains.orders]\nwrap_with = [\"kek:a\"]\ncalls.timeout = \"1s\"\n";
    std::fs::write(&path, text).unwrap();
    let timed = shared().calls(CallPolicy::default().timeout(secs(1)));
    let builder = Domains::builder().schemes(made.schemes()).file(&path);
    let domains = built_in(&home, builder.resolver(Scripted::new(config(timed))));

    // A timeout needs a runtime.
    std::fs::write(&path, text.replace("orders", "more")).unwrap();
    block_on(domains.reload()).unwrap();
    std::fs::write(&path, text.replace("orders", "others")).unwrap();
    elsewhere.block_on(domains.reload()).unwrap();
    block_on(domains.resolve("acme")).unwrap();
    elsewhere.block_on(domains.resolve("other")).unwrap();
    let id = Some(home.handle().id());
    assert_eq!(*made.0.lock().unwrap(), [id; 5]);
}

#[test]
fn a_domain_outlives_the_runtime_of_whoever_resolved_it() {
    let (home, first) = (threads(), one_thread());
    let world = World::default();
    let timed = shared().calls(CallPolicy::default().timeout(ms(50)).tries(1));
    let domains = built_in(&home, world.builder().resolver(Scripted::new(config(timed))));
    first.block_on(domains.resolve("acme")).unwrap();
    drop(first);
    let acme = block_on(domains.resolve("acme")).unwrap();
    world.kek("shared").script([Act::Hang]);
    let hangs = block_on(acme.envelope().encrypt(&alice(&acme), Aad::empty(), b"x"));
    assert_eq!(kind(hangs), ErrorKind::Unavailable);
    open(&acme, &seal(&acme)).unwrap();
}

#[test]
fn a_resolution_goes_on_when_the_runtime_of_its_first_caller_ends() {
    let (home, first) = (threads(), one_thread());
    let resolver = Scripted::new(Answer::Hangs);
    let builder = World::default().builder().resolver(resolver.clone());
    let domains = built_in(&home, builder);
    let (its, of_first) = (domains.clone(), domains.clone());
    let leaves = first.spawn(async move { of_first.resolve("acme").await.map(drop) });
    first.block_on(async { tokio::time::sleep(ms(50)).await });
    let mut stays = Box::pin(async move { its.resolve("acme").await });
    {
        let _home = home.enter();
        assert!(poll_once(stays.as_mut()).is_pending());
    }
    while resolver.asked() == 0 {
        std::thread::yield_now();
    }
    drop((first, leaves));
    resolver.says(config(shared()));
    let acme = home.block_on(stays).unwrap();
    open(&acme, &seal(&acme)).unwrap();
    assert_eq!(resolver.asked(), 1);
}

#[test]
fn domains_whose_runtime_has_ended_are_made_where_they_are_asked_for() {
    let (home, next) = (threads(), threads());
    let resolver = Scripted::new(config(shared()));
    let domains = built_in(&home, World::default().builder().resolver(resolver));
    drop(home);
    for acme in [block_on(domains.resolve("a")), next.block_on(domains.resolve("b"))] {
        let acme = acme.unwrap();
        open(&acme, &seal(&acme)).unwrap();
    }
}

#[test]
fn a_reload_whose_runtime_ends_in_the_middle_changes_nothing() {
    let home = threads();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domains.toml");
    std::fs::write(&path, "[domains.orders]\nwrap_with = [\"kek:a\"]\n").unwrap();
    let schemes = Schemes::default()
        .kek("kek", async |_| ScriptedKek::new("kek"))
        .kek("never", |_| std::future::pending::<Result<ScriptedKek, Error>>());
    let domains = built_in(&home, Domains::builder().schemes(schemes).file(&path));
    std::fs::write(&path, "[domains.orders]\nwrap_with = [\"never:a\"]\n").unwrap();
    let its = domains.clone();
    let reload = std::thread::spawn(move || block_on(its.reload()).map(drop));
    std::thread::sleep(ms(100));
    drop(home);
    assert!(reload.join().unwrap().is_err());
    let orders = domains.domain("orders").unwrap();
    open(&orders, &seal(&orders)).unwrap();
    // And the next reload is not in its way.
    std::fs::write(&path, "[domains.billing]\nwrap_with = [\"kek:a\"]\n").unwrap();
    block_on(domains.reload()).unwrap();
    domains.domain("billing").unwrap();
}

/// A provider that blocks its thread cannot be ended, only waited for.
#[test]
fn a_reload_that_was_given_up_and_ends_late_undoes_no_later_one() {
    let home = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domains.toml");
    let write = |name: &str, kek: &str| {
        std::fs::write(&path, format!("[domains.{name}]\nwrap_with = [\"{kek}:a\"]\n")).unwrap();
    };
    write("orders", "kek");
    let ((begins, begun), (go_on, goes_on)) = (channel(), channel());
    let goes_on = Arc::new(Mutex::new(goes_on));
    let schemes =
        Schemes::default().kek("kek", async |_| ScriptedKek::new("kek")).kek("slow", move |_| {
            let (begins, goes_on) = (begins.clone(), goes_on.clone());
            async move {
                begins.send(()).unwrap();
                goes_on.lock().unwrap().recv().unwrap();
                ScriptedKek::new("slow")
            }
        });
    let domains = built_in(&home, Domains::builder().schemes(schemes).file(&path));

    write("before", "slow");
    let mut given_up = Box::pin(domains.reload());
    assert!(poll_once(given_up.as_mut()).is_pending());
    begun.recv().unwrap();
    drop(given_up);
    write("after", "kek");
    let its = domains.clone();
    let later = std::thread::spawn(move || block_on(its.reload()).map(drop));
    // It may end before the other one goes on, or wait for it.
    (0..40).take_while(|_| !later.is_finished()).for_each(|_| std::thread::sleep(ms(5)));
    go_on.send(()).unwrap();
    later.join().unwrap().unwrap();
    for _ in 0..40 {
        domains.domain("after").unwrap();
        std::thread::sleep(ms(5));
    }
}

/// A known domain is served while the resolver is slow to say whether it still is as it was.
#[test]
fn a_resolver_that_hangs_delays_no_caller_of_a_known_domain_for_long() {
    let home = threads();
    let resolver = Scripted::new(config(shared()));
    let limits = ResolverLimits::default().fresh_for(ms(0)).deadline(secs(300));
    let builder = World::default().builder().resolver(resolver.clone()).resolver_limits(limits);
    let domains = built_in(&home, builder);
    let sealed = seal(&block_on(domains.resolve("acme")).unwrap());
    resolver.says(Answer::Hangs);
    for _ in 0..3 {
        let acme = home.block_on(async {
            tokio::time::timeout(secs(10), domains.resolve("acme")).await.expect("it waits")
        });
        open(&acme.unwrap(), &sealed).unwrap();
    }
    assert_eq!(resolver.asked(), 2, "one resolution goes on for all of them");
    // Its answer counts although all have left.
    let changed = DomainConfig::default().wrap_with("kek:other");
    resolver.says(config(changed.clone()));
    let start = std::time::Instant::now();
    while *domains.domain("acme").unwrap().config() != changed {
        assert!(start.elapsed() < secs(10), "nobody drives the resolution");
        std::thread::sleep(ms(5));
    }
}

#[test]
fn a_start_in_a_reload_has_the_timeouts_of_all_domains() {
    let home = threads();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domains.toml");
    let text = "[domains.a]\nwrap_with = [\"kek:a\"]\n";
    std::fs::write(&path, text).unwrap();
    let world = World::default();
    let start = world.builder().file(&path).start(waxseal::StartUp::RequireKeyServices);
    let domains = home.block_on(start).unwrap();
    world.kek("b").fail_with(Unavailable);
    std::fs::write(&path, format!("{text}[domains.b]\nwrap_with = [\"kek:b\"]\n")).unwrap();
    assert_eq!(kind(block_on(domains.reload())), ErrorKind::Unavailable);
    world.kek("b").fail_with(None);
    block_on(domains.reload()).unwrap();
}
