//! The service and the line to it failing in every way that is known: class, tries, what is cached, recovery. The table on the page is compared with what is seen.

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use waxseal::kek::KekProvider;
use waxseal::{Aad, CallPolicy, Envelope, ErrorKind, Limits};
use waxseal_testing::azure::{Effect, Fault, Refused};
use waxseal_testing::certificates::Certificate;
use waxseal_testing::fault_proxy::{self, FaultProxy};
use waxseal_testing::support::context;

use crate::ground::{CLIENT, Ground, HSM};

const TRIES: u32 = 3;
const PAGE: &str = include_str!("../../docs/azure.md");

struct Case {
    /// As in the table on the page.
    name: &'static str,
    kind: ErrorKind,
    /// A DEK that is cached goes on serving.
    cached: bool,
    /// And past `max_age` within the outage grace.
    grace: bool,
    begin: fn(&Line),
    end: fn(&Line),
}

struct Line {
    ground: Ground,
    proxy: FaultProxy,
}

impl Line {
    fn new() -> Self {
        let ground = Ground::new();
        let proxy = FaultProxy::start(ground.azure.port());
        Self { ground, proxy }
    }

    fn refuse(&self, status: u16, code: &'static str, inner: &'static str, text: &'static str) {
        let refused = Refused::new(status, code, inner, text);
        self.ground.azure.fail(Fault::new(Effect::Error(refused, None)));
    }

    fn raw(&self, status: u16, text: &'static str) {
        self.ground.azure.fail(Fault::new(Effect::Raw(status, text)));
    }

    fn envelope(&self, limits: Limits) -> Envelope {
        let ms = Duration::from_millis;
        let kek = self.ground.builder_at(HSM, "cards", self.proxy.port()).build().unwrap();
        let policy = CallPolicy::default()
            .timeout(ms(1000))
            .deadline(ms(20_000))
            .tries(TRIES)
            .backoff(ms(1))
            .breaker_failures(1000);
        let limits = limits.denial_ttl(Duration::ZERO);
        Envelope::builder().wrap_with(kek).limits(limits).call_policy(policy).build().unwrap()
    }
}

fn answered(name: &'static str, kind: ErrorKind, begin: fn(&Line)) -> Case {
    let outage = matches!(kind, ErrorKind::Unavailable | ErrorKind::Throttled);
    let end = |line: &Line| line.ground.azure.recover();
    Case { name, kind, cached: kind != ErrorKind::Denied, grace: outage, begin, end }
}

fn on_the_line(name: &'static str, begin: fn(&Line)) -> Case {
    let end = |line: &Line| {
        line.proxy.set(fault_proxy::Fault::None);
        line.proxy.cut();
    };
    Case { name, kind: ErrorKind::Unavailable, cached: true, grace: true, begin, end }
}

fn in_the_world(name: &'static str, kind: ErrorKind, begin: fn(&Line), end: fn(&Line)) -> Case {
    Case { name, kind, cached: kind != ErrorKind::Denied, grace: false, begin, end }
}

fn cases() -> Vec<Case> {
    use ErrorKind::{Denied, Misconfigured, Throttled, Unavailable};
    use fault_proxy::Fault as OnTheLine;
    vec![
        answered("a server error (500, 502, 503, 504)", Unavailable, |line| {
            line.refuse(503, "ServiceUnavailable", "", "busy");
        }),
        answered("a gateway's page", Unavailable, |line| line.raw(502, "<html>Bad Gateway</html>")),
        answered("garbage for an answer", Unavailable, |line| line.raw(200, "\u{fffd}[}")),
        answered("an answer without content", Unavailable, |line| line.raw(200, "{}")),
        answered("an unknown 403", Unavailable, |line| {
            line.refuse(403, "Forbidden", "ForbiddenByMoon", "no");
        }),
        answered("no answer", Unavailable, |line| line.ground.azure.fail(Fault::new(Effect::Hang))),
        answered("a limit is used up (429)", Throttled, |line| {
            line.refuse(429, "Throttled", "VaultRequestTypeLimitReached", "too many");
        }),
        answered("a gateway's 403", Misconfigured, |line| line.raw(403, "<html>Forbidden</html>")),
        on_the_line("the line is silent", |line| line.proxy.set(OnTheLine::Silence)),
        on_the_line("connections are reset", |line| {
            line.proxy.set(OnTheLine::Reset);
            line.proxy.cut();
        }),
        on_the_line("answers are cut off", |line| {
            line.proxy.set(OnTheLine::Truncate(3));
            line.proxy.cut();
        }),
        on_the_line("answers are garbage below TLS", |line| {
            line.proxy.set(OnTheLine::Replace(b"garbage".to_vec()));
            line.proxy.cut();
        }),
        on_the_line("answers trickle in", |line| {
            line.proxy.set(OnTheLine::Trickle(Duration::from_millis(100)));
            line.proxy.cut();
        }),
        in_the_world(
            "a certificate of another authority",
            Misconfigured,
            |line| line.ground.azure.show(Certificate::OtherAuthority),
            |line| line.ground.azure.show(Certificate::Right),
        ),
        in_the_world(
            "an expired certificate",
            Misconfigured,
            |line| line.ground.azure.show(Certificate::Expired),
            |line| line.ground.azure.show(Certificate::Right),
        ),
        in_the_world(
            "the firewall refuses the client",
            Misconfigured,
            |line| {
                let others = vec![[10, 0, 0, 1].into()];
                line.ground.azure.world().vault(HSM).firewall = Some(others);
            },
            |line| line.ground.azure.world().vault(HSM).firewall = None,
        ),
        in_the_world(
            "the login is refused",
            Misconfigured,
            |line| {
                let mut world = line.ground.azure.world();
                world.applications.get_mut(CLIENT).unwrap().secret = "changed".to_owned();
                world.tokens.clear();
            },
            |line| {
                let mut world = line.ground.azure.world();
                world.applications.get_mut(CLIENT).unwrap().secret = format!("secret-of-{CLIENT}");
            },
        ),
        Case {
            grace: true,
            ..in_the_world(
                "the login service is down",
                Unavailable,
                |line| {
                    line.ground.azure.world().tokens.clear();
                    line.ground.azure.fail(Fault::new(Effect::Raw(503, "down")).on("login"));
                },
                |line| line.ground.azure.recover(),
            )
        },
        in_the_world(
            "no permission",
            Denied,
            |line| {
                let mut world = line.ground.azure.world();
                world.forbid(HSM, CLIENT, "encrypt");
                world.forbid(HSM, CLIENT, "decrypt");
            },
            |line| line.ground.azure.world().permit(HSM, CLIENT, &["encrypt", "decrypt"]),
        ),
        in_the_world(
            "the version is disabled",
            Denied,
            |line| line.ground.azure.world().newest(HSM, "cards").enabled = false,
            |line| line.ground.azure.world().newest(HSM, "cards").enabled = true,
        ),
        in_the_world(
            "the key is deleted",
            Denied,
            |line| line.ground.azure.world().delete(HSM, "cards"),
            |line| line.ground.azure.world().recover(HSM, "cards"),
        ),
    ]
}

/// A row of the page's table, in the words of the cases.
fn row(case: &Case) -> String {
    let yes = |yes| if yes { "yes" } else { "no" };
    let tries = match case.kind {
        ErrorKind::Unavailable | ErrorKind::Throttled => "several",
        _ => "one",
    };
    let class = format!("{:?}", case.kind).to_lowercase();
    format!("| {} | {class} | {tries} | {} | {} |", case.name, yes(case.cached), yes(case.grace))
}

#[test]
fn the_page_has_the_table_of_faults() {
    for case in cases() {
        assert!(PAGE.contains(&row(&case)), "docs/azure.md lacks: {}", row(&case));
    }
    let rows = PAGE.lines().filter(|line| line.ends_with("| yes |") || line.ends_with("| no |"));
    assert_eq!(rows.count(), cases().len(), "docs/azure.md has a row that is not tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_has_its_class_and_its_tries_and_passes() {
    // Most of the time goes by waiting.
    stream::iter(cases()).for_each_concurrent(8, met).await;
}

async fn met(case: Case) {
    let (line, alice, bob, name) = (Line::new(), context("alice"), context("bob"), case.name);
    let writer = line.envelope(Limits::default());
    let sealed = writer.encrypt(&alice, Aad::empty(), b"text").await.unwrap();
    let other = writer.encrypt(&bob, Aad::empty(), b"other").await.unwrap();
    let reader = line.envelope(Limits::default());
    reader.decrypt(&bob, Aad::empty(), &other).await.unwrap();
    let before = line.ground.azure.arrived("decrypt");
    (case.begin)(&line);
    let error = reader.decrypt(&alice, Aad::empty(), &sealed).await.unwrap_err();
    assert_eq!(error.kind(), case.kind, "{name}: {error}");
    let asked = line.ground.azure.arrived("decrypt") - before;
    // A token that is refused is asked about twice by the SDK.
    match case.kind {
        ErrorKind::Unavailable | ErrorKind::Throttled => {}
        _ => assert!(asked <= 2, "{name}: {asked} requests for one try"),
    }
    // Nobody has asked about this DEK yet.
    let cached = reader.decrypt(&bob, Aad::empty(), &other).await;
    assert_eq!(cached.as_deref().unwrap(), b"other", "{name}");
    (case.end)(&line);
    let start = Instant::now();
    while let Err(error) = reader.decrypt(&alice, Aad::empty(), &sealed).await {
        assert!(start.elapsed() < Duration::from_secs(60), "{name}: it does not pass: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Past `max_age`, within `stale_if_error_reading`: an outage is ridden out, and nothing else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_outage_is_ridden_out_past_max_age() {
    stream::iter(cases()).for_each_concurrent(8, ridden_out).await;
}

async fn ridden_out(case: Case) {
    let (line, alice, name) = (Line::new(), context("alice"), case.name);
    let second = Duration::from_secs(1);
    let limits = Limits::default()
        .refresh_after(second / 2)
        .max_age(second)
        .stale_if_error_reading(Duration::from_secs(600));
    let writer = line.envelope(Limits::default());
    let sealed = writer.encrypt(&alice, Aad::empty(), b"text").await.unwrap();
    let reader = line.envelope(limits);
    reader.decrypt(&alice, Aad::empty(), &sealed).await.unwrap();
    (case.begin)(&line);
    tokio::time::sleep(second + second / 2).await;
    let stale = reader.decrypt(&alice, Aad::empty(), &sealed).await;
    match case.grace {
        true => assert_eq!(&*stale.unwrap_or_else(|e| panic!("{name}: {e}")), b"text"),
        false => assert_eq!(stale.unwrap_err().kind(), case.kind, "{name}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_is_passed_on_and_a_quota_that_is_used_up_recovers() {
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    let refused = Refused::new(429, "Throttled", "", "too many");
    ground.azure.fail(Fault::new(Effect::Error(refused, Some(7))));
    let error = kek.wrap(&context("alice"), &crate::ground::dek()).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    ground.azure.recover();
    // The challenge comes before the quota.
    ground.azure.world().vault(HSM).limit = Some(2);
    for _ in 0..2 {
        kek.wrap(&context("alice"), &crate::ground::dek()).await.unwrap();
    }
    let error = kek.wrap(&context("alice"), &crate::ground::dek()).await.unwrap_err();
    assert_eq!(error.class(), waxseal::kek::KekErrorClass::Throttled);
    ground.azure.world().vault(HSM).limit = None;
    kek.wrap(&context("alice"), &crate::ground::dek()).await.unwrap();
}

/// Dropping a call at any time leaves the provider usable, and so does a runtime that ends.
#[test]
fn callers_that_give_up_and_runtimes_that_end_harm_nobody() {
    let ground = Ground::new();
    let first = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let kek = first.block_on(async { ground.hsm("cards") });
    let second = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    second.block_on(async {
        for micros in (0..40).map(|n| n * 500) {
            let dek = crate::ground::dek();
            let alice = context("alice");
            let wrap = kek.wrap(&alice, &dek);
            let _ = tokio::time::timeout(Duration::from_micros(micros), wrap).await;
        }
        kek.wrap(&context("alice"), &crate::ground::dek()).await.unwrap();
        first.shutdown_background();
        let start = Instant::now();
        while let Err(error) = kek.wrap(&context("alice"), &crate::ground::dek()).await {
            assert!(start.elapsed() < Duration::from_secs(60), "{error}");
        }
    });
}

/// A connection that a middlebox forgot: the try on it is lost, the next one has a new connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silently_dead_connections_are_left_behind() {
    let line = Line::new();
    let kek = line.ground.builder_at(HSM, "cards", line.proxy.port()).build().unwrap();
    kek.wrap(&context("alice"), &crate::ground::dek()).await.unwrap();
    // Old enough that somebody could have forgotten it.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    line.proxy.set(fault_proxy::Fault::Silence);
    let dek = crate::ground::dek();
    let alice = context("alice");
    let wrap = kek.wrap(&alice, &dek);
    tokio::time::timeout(Duration::from_millis(500), wrap).await.unwrap_err();
    let before = line.proxy.connections();
    line.proxy.set(fault_proxy::Fault::None);
    kek.wrap(&context("alice"), &crate::ground::dek()).await.unwrap();
    assert!(line.proxy.connections() > before, "the dead connection was used again");
}
