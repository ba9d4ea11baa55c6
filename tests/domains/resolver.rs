//! Domains of a resolver: made at first use, shared, bounded, and never in the way of each other.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;

use futures_util::future::select;
use waxseal::domain::{
    Domain, DomainConfig, DomainResolver, Domains, DomainsBuilder, ResolverLimits,
};
use waxseal::kek::BoxFuture;
use waxseal::{Aad, Error, ErrorKind};
use waxseal_testing::support::block_on;
use waxseal_testing::support::stage::{Log, ms, secs};

use super::ground::{World, alice, kind, open, seal, shared};

/// What the resolver does.
#[derive(Clone)]
pub(crate) enum Answer {
    Config(Box<DomainConfig>),
    NoSuchDomain,
    Fails,
    Panics,
    /// Waits until the answer is another one.
    Hangs,
}

#[derive(Clone)]
pub(crate) struct Scripted {
    answer: Arc<Mutex<Answer>>,
    /// For this name it hangs.
    hangs_for: Arc<Mutex<Option<String>>>,
    wakers: Arc<Mutex<Vec<Waker>>>,
    asked: Arc<AtomicUsize>,
}

pub(crate) fn config(config: DomainConfig) -> Answer {
    Answer::Config(Box::new(config))
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    pub(crate) fn new(answer: Answer) -> Self {
        let answer = Arc::new(Mutex::new(answer));
        let (hangs_for, wakers, asked) = (Arc::default(), Arc::default(), Arc::default());
        Self { answer, hangs_for, wakers, asked }
    }

    pub(crate) fn hangs_for(&self, name: Option<&str>) {
        *self.hangs_for.lock().unwrap() = name.map(ToOwned::to_owned);
        self.wakers.lock().unwrap().drain(..).for_each(Waker::wake);
    }

    pub(crate) fn says(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
        self.wakers.lock().unwrap().drain(..).for_each(Waker::wake);
    }

    /// Not locked while a panic is on its way.
    fn now(&self, name: &str) -> Answer {
        if self.hangs_for.lock().unwrap().as_deref() == Some(name) {
            return Answer::Hangs;
        }
        self.answer.lock().unwrap().clone()
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl DomainResolver for Scripted {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<DomainConfig>, Error>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::poll_fn(|cx| match self.now(name) {
            Answer::Config(config) => Poll::Ready(Ok(Some(*config))),
            Answer::NoSuchDomain => Poll::Ready(Ok(None)),
            Answer::Fails => Poll::Ready(Err(Error::new(ErrorKind::Unavailable, "database"))),
            Answer::Panics => panic!("a resolver's own bug"),
            Answer::Hangs => {
                self.wakers.lock().unwrap().push(cx.waker().clone());
                Poll::Pending
            }
        }))
    }
}

pub(crate) struct Service {
    pub(crate) world: World,
    pub(crate) resolver: Scripted,
    pub(crate) log: Log,
    pub(crate) domains: Domains,
}

impl Service {
    pub(crate) fn new(answer: Answer, limits: ResolverLimits) -> Self {
        Self::with(answer, limits, |builder| builder)
    }

    pub(crate) fn with(
        answer: Answer,
        limits: ResolverLimits,
        more: impl FnOnce(DomainsBuilder) -> DomainsBuilder,
    ) -> Self {
        let (world, resolver, log) = (World::default(), Scripted::new(answer), Log::default());
        let builder = world.builder().resolver(resolver.clone()).resolver_limits(limits);
        let builder = builder.observer(log.clone()).domain("own", shared());
        let domains = block_on(more(builder).build()).unwrap();
        Self { world, resolver, log, domains }
    }

    pub(crate) fn resolve(&self, name: &str) -> Result<Domain, Error> {
        block_on(self.domains.resolve(name))
    }
}

pub(crate) fn poll_once<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_domain_is_made_at_first_use_and_kept() {
    let service = Service::new(config(shared()), ResolverLimits::default());
    assert_eq!(kind(service.domains.domain("acme")), ErrorKind::UnknownDomain);
    let acme = service.resolve("acme").unwrap();
    let sealed = seal(&acme);
    open(&service.resolve("acme").unwrap(), &sealed).unwrap();
    open(&service.domains.domain("acme").unwrap(), &sealed).unwrap();
    let envelope = block_on(service.domains.resolve_for(&alice(&acme))).unwrap();
    block_on(envelope.decrypt(&alice(&acme), Aad::empty(), &sealed)).unwrap();
    assert_eq!(service.resolver.asked(), 1);
    // Another customer under the same KEK.
    let other = service.resolve("other").unwrap();
    assert_eq!(kind(open(&other, &sealed)), ErrorKind::Invalid);
    assert_eq!(service.resolver.asked(), 2);
    // What is configured is not asked for.
    service.resolve("own").unwrap();
    assert_eq!(service.resolver.asked(), 2);
}

#[test]
fn no_such_domain_is_remembered_briefly() {
    let limits = ResolverLimits::default().refused_for(ms(200));
    for (answer, expected) in [
        (Answer::NoSuchDomain, ErrorKind::UnknownDomain),
        (Answer::Fails, ErrorKind::Unavailable),
        (Answer::Panics, ErrorKind::Provider),
    ] {
        let service = Service::new(answer, limits);
        for _ in 0..5 {
            assert_eq!(kind(service.resolve("acme")), expected);
        }
        assert_eq!(service.resolver.asked(), 1);
        service.resolver.says(config(shared()));
        assert_eq!(kind(service.resolve("acme")), expected, "remembered");
        // Another name is not affected.
        service.resolve("other").unwrap();
        thread::sleep(ms(250));
        service.resolve("acme").unwrap();
    }
}

#[test]
fn a_name_that_no_domain_can_have_is_not_asked_for() {
    let service = Service::new(config(shared()), ResolverLimits::default());
    for name in ["", "a b", "../x", &"x".repeat(129), &"x".repeat(1 << 20)] {
        assert_eq!(kind(service.resolve(name)), ErrorKind::UnknownDomain);
    }
    assert_eq!(service.resolver.asked(), 0);
}

#[test]
fn a_bad_configuration_names_domain_and_field() {
    let bad = shared().wrap_with("kex:hunter2");
    let service = Service::new(config(bad), ResolverLimits::default());
    let error = service.resolve("acme").unwrap_err().to_string();
    assert!(error.contains("domains.acme.wrap_with[1]: scheme `kex:`"), "{error}");
}

#[test]
fn callers_that_wait_share_one_resolution_and_one_that_leaves_ends_it_for_nobody() {
    let service = Service::new(Answer::Hangs, ResolverLimits::default());
    let mut leaves = Box::pin(service.domains.resolve("acme"));
    assert!(poll_once(leaves.as_mut()).is_pending());
    let mut stays = Box::pin(service.domains.resolve("acme"));
    assert!(poll_once(stays.as_mut()).is_pending());
    drop(leaves);
    thread::scope(|scope| {
        let others: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| block_on(service.domains.resolve("acme")).map(|d| seal(&d))))
            .collect();
        thread::sleep(ms(50));
        service.resolver.says(config(shared()));
        let acme = block_on(stays).unwrap();
        for other in others {
            open(&acme, &other.join().unwrap().unwrap()).unwrap();
        }
    });
    assert_eq!(service.resolver.asked(), 1);
    assert_eq!(service.world.kek("shared").calls().wraps, 1, "one envelope");
}

#[test]
fn when_all_have_left_the_next_caller_asks_again() {
    let service = Service::new(Answer::Hangs, ResolverLimits::default());
    for _ in 0..3 {
        let mut leaves = Box::pin(service.domains.resolve("acme"));
        assert!(poll_once(leaves.as_mut()).is_pending());
    }
    service.resolver.says(config(shared()));
    service.resolve("acme").unwrap();
    assert_eq!(service.resolver.asked(), 4);
}

/// Each may take the other for one that stays. What nobody ends is never removed: it keeps all
/// domains in memory, and counts among those that are resolved at once.
#[test]
fn of_two_callers_that_leave_at_the_same_time_one_ends_the_resolution() {
    const ROUNDS: usize = 10_000;
    let Service { resolver, domains, .. } =
        Service::new(Answer::Hangs, ResolverLimits::default().deadline(secs(300)));
    let ready = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    let name = round.to_string();
                    let mut leaves = Box::pin(domains.resolve(&name));
                    assert!(poll_once(leaves.as_mut()).is_pending());
                    ready.fetch_add(1, Ordering::SeqCst);
                    // Spinning has them leave together. The other one may need this processor.
                    let mut spins = 0;
                    while ready.load(Ordering::SeqCst) < 2 * round {
                        spins += 1;
                        if spins > 1000 { thread::yield_now() } else { std::hint::spin_loop() }
                    }
                    drop(leaves);
                }
            });
        }
    });
    drop(domains);
    assert_eq!(Arc::strong_count(&resolver.asked), 1, "the domains and their resolver are gone");
}

#[test]
fn a_resolver_that_hangs_holds_nobody_for_longer_than_the_deadline() {
    let service = Service::new(Answer::Hangs, ResolverLimits::default().deadline(ms(50)));
    let error = service.resolve("acme").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("not resolved within 50ms"), "{error}");
    // A resolution that was not polled for a while ends too.
    let mut slow = pin!(service.domains.resolve("slow"));
    assert!(poll_once(slow.as_mut()).is_pending());
    thread::sleep(ms(100));
    assert_eq!(kind(block_on(slow)), ErrorKind::Unavailable);
}

#[test]
fn very_many_at_once_are_throttled_and_then_served() {
    let service = Service::new(Answer::Hangs, ResolverLimits::default());
    let names: Vec<_> = (0..1025).map(|name| name.to_string()).collect();
    let mut waiting: Vec<_> =
        names.iter().map(|name| Box::pin(service.domains.resolve(name))).collect();
    let first = waiting.iter_mut().take(1024).all(|one| poll_once(one.as_mut()).is_pending());
    assert!(first);
    let last = waiting.pop().unwrap();
    assert_eq!(kind(block_on(last)), ErrorKind::Throttled);
    drop(waiting);
    service.resolver.says(config(shared()));
    service.resolve("1024").unwrap();
}

#[test]
fn an_answer_is_asked_for_again_and_only_a_change_makes_a_new_envelope() {
    let limits = ResolverLimits::default().fresh_for(ms(0)).refused_for(ms(0));
    let service = Service::new(config(shared()), limits);
    let acme = service.resolve("acme").unwrap();
    let sealed = seal(&acme);
    drop(acme);
    let calls = || service.world.kek("shared").calls().total();
    let before = calls();
    for answer in [config(shared()), Answer::Fails, Answer::Panics] {
        service.resolver.says(answer);
        open(&service.resolve("acme").unwrap(), &sealed).unwrap();
        assert_eq!(calls(), before, "the DEK is cached");
    }
    let held = service.resolve("acme").unwrap();
    service.resolver.says(config(shared().must_have(["tenant"])));
    let changed = service.resolve("acme").unwrap();
    open(&changed, &sealed).unwrap();
    assert_eq!(calls(), before + 1);
    open(&held, &sealed).unwrap();
    // It is wiped when the last holder leaves.
    service.log.take();
    drop(held);
    service.log.wait_for("Wiped", 2);
    service.resolver.says(Answer::NoSuchDomain);
    assert_eq!(kind(service.resolve("acme")), ErrorKind::UnknownDomain);
    assert_eq!(kind(service.domains.domain("acme")), ErrorKind::UnknownDomain);
    open(&changed, &sealed).unwrap();
}

#[test]
fn the_counters_of_a_resolved_domain_go_on_when_it_changes() {
    let limits = ResolverLimits::default().fresh_for(ms(0)).refused_for(ms(0));
    let service = Service::new(config(shared()), limits);
    seal(&service.resolve("acme").unwrap());
    service.resolver.says(config(shared().must_have(["tenant"])));
    let changed = service.resolve("acme").unwrap();
    assert_eq!(changed.envelope().statistics().writing_misses, 0);
    assert_eq!(changed.statistics().writing_misses, 1);
}

#[test]
fn the_number_of_domains_is_bounded_and_one_that_is_held_is_not_shut_down() {
    let service = Service::new(config(shared()), ResolverLimits::default().max_domains(4));
    let held = service.resolve("held").unwrap();
    let sealed = seal(&held);
    for name in 0..40 {
        seal(&service.resolve(&name.to_string()).unwrap());
    }
    let kept = (0..40).filter(|name| service.domains.domain(&name.to_string()).is_ok()).count();
    assert!((1..=4).contains(&kept), "{kept} are kept");
    // Those that were evicted are wiped, each with a DEK for writing and the same for reading. The
    // one that is held may be among the evicted, and serves.
    let wiped = 2 * (40 - kept);
    service.log.wait_for("Wiped", wiped);
    open(&held, &sealed).unwrap();
}

#[test]
fn a_caller_s_timeout_is_its_own() {
    let service = Service::new(Answer::Hangs, ResolverLimits::default().deadline(secs(60)));
    let patience = Box::pin(async { thread::sleep(ms(20)) });
    block_on(select(Box::pin(service.domains.resolve("acme")), patience));
    service.resolver.says(config(shared()));
    service.resolve("acme").unwrap();
}

#[test]
fn closing_ends_resolved_domains_too() {
    let service = Service::new(config(shared()), ResolverLimits::default());
    let acme = service.resolve("acme").unwrap();
    let sealed = seal(&acme);
    service.resolver.says(Answer::Hangs);
    let mut late = Box::pin(service.domains.resolve("late"));
    assert!(poll_once(late.as_mut()).is_pending());
    block_on(service.domains.close());
    assert_eq!(kind(open(&acme, &sealed)), ErrorKind::ShutDown);
    service.resolver.says(config(shared()));
    assert_eq!(kind(block_on(late)), ErrorKind::ShutDown);
    assert_eq!(kind(service.resolve("acme")), ErrorKind::ShutDown);
}

#[test]
fn limits_out_of_range_are_refused() {
    let limits = ResolverLimits::default;
    for (limits, part) in [
        (limits().fresh_for(secs(86_401)), "fresh_for is"),
        (limits().refused_for(secs(301)), "refused_for is"),
        (limits().deadline(secs(301)), "deadline is"),
        (limits().deadline(ms(0)), "at least 1"),
        (limits().max_domains(0), "at least 1"),
    ] {
        let error = block_on(World::default().builder().resolver_limits(limits).build());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_known_domain_is_served_while_very_many_others_are_resolved() {
    let limits = ResolverLimits::default().fresh_for(ms(0));
    let service = Service::new(config(shared()), limits);
    let sealed = seal(&service.resolve("acme").unwrap());
    service.resolver.says(Answer::Hangs);
    let names: Vec<_> = (0..1024).map(|name| name.to_string()).collect();
    let mut waiting: Vec<_> =
        names.iter().map(|name| Box::pin(service.domains.resolve(name))).collect();
    assert!(waiting.iter_mut().all(|one| poll_once(one.as_mut()).is_pending()));
    open(&service.resolve("acme").unwrap(), &sealed).unwrap();
}

#[test]
fn a_thousand_callers_of_one_domain_share_one_resolution() {
    let service = Service::new(Answer::Hangs, ResolverLimits::default());
    let mut waiting: Vec<_> =
        (0..1000).map(|_| Box::pin(service.domains.resolve("acme"))).collect();
    assert!(waiting.iter_mut().all(|one| poll_once(one.as_mut()).is_pending()));
    // Every second one leaves, the first of all among them.
    let stay: Vec<_> =
        waiting.into_iter().enumerate().filter(|(n, _)| n % 2 == 1).map(|(_, one)| one).collect();
    service.resolver.says(config(shared()));
    let domains: Vec<_> = stay.into_iter().map(|one| block_on(one).unwrap()).collect();
    let sealed = seal(&domains[0]);
    domains.iter().for_each(|domain| open(domain, &sealed).unwrap());
    assert_eq!((service.resolver.asked(), service.world.kek("shared").calls().total()), (1, 1));
}

#[test]
fn a_machine_that_was_suspended_asks_the_resolver_again() {
    let service = Service::new(config(shared()), ResolverLimits::default());
    service.resolve("acme").unwrap();
    service.world.clock.advance(secs(299));
    service.resolve("acme").unwrap();
    assert_eq!(service.resolver.asked(), 1);
    service.world.clock.advance(secs(2));
    service.resolve("acme").unwrap();
    assert_eq!(service.resolver.asked(), 2);
}
