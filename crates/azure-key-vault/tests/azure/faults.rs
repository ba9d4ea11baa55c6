//! The service and the line to it failing in every way that is known: class, tries, what is cached,
//! recovery. The table on the page is compared with what is seen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use waxseal::ErrorKind;
use waxseal::kek::KekProvider;
use waxseal_testing::azure::{Effect, Fault, Refused};
use waxseal_testing::certificates::Certificate;
use waxseal_testing::fault_proxy::{self, FaultProxy};
use waxseal_testing::faults::{Fault as Case, Stage, assert_shown, met};
use waxseal_testing::support::context;

use crate::ground::{CLIENT, Ground, HSM};

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
}

impl Stage for Line {
    async fn kek(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.ground.builder_at(HSM, "cards", self.proxy.port()).build().unwrap())
    }

    fn arrived(&self) -> Option<usize> {
        Some(self.ground.azure.arrived("decrypt"))
    }

    fn recovers_at_once(&self) -> bool {
        false
    }
}

fn answered(name: &'static str, kind: ErrorKind, begin: fn(&Line)) -> Case<Line> {
    Case::new(name, kind, begin, |line| line.ground.azure.recover())
}

fn on_the_line(name: &'static str, begin: fn(&Line)) -> Case<Line> {
    let end = |line: &Line| {
        line.proxy.set(fault_proxy::Fault::None);
        line.proxy.cut();
    };
    // Below TLS: the requests do not get through.
    Case::new(name, ErrorKind::Unavailable, begin, end).not_counted_there()
}

fn in_the_world(
    name: &'static str,
    kind: ErrorKind,
    begin: fn(&Line),
    end: fn(&Line),
) -> Case<Line> {
    Case::new(name, kind, begin, end)
}

fn cases() -> Vec<Case<Line>> {
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
        answered("no answer", Unavailable, |line| line.ground.azure.fail(Fault::new(Effect::Hang)))
            .slow(),
        answered("a limit is used up (429)", Throttled, |line| {
            line.refuse(429, "Throttled", "VaultRequestTypeLimitReached", "too many");
        }),
        answered("a gateway's 403", Misconfigured, |line| line.raw(403, "<html>Forbidden</html>"))
            .leaves_breaker_closed(),
        on_the_line("the line is silent", |line| line.proxy.set(OnTheLine::Silence)).slow(),
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
        })
        .slow(),
        in_the_world(
            "a certificate of another authority",
            Misconfigured,
            |line| line.ground.azure.show(Certificate::OtherAuthority),
            |line| line.ground.azure.show(Certificate::Right),
        )
        .not_counted_there()
        .breaks_connection(),
        in_the_world(
            "an expired certificate",
            Misconfigured,
            |line| line.ground.azure.show(Certificate::Expired),
            |line| line.ground.azure.show(Certificate::Right),
        )
        .not_counted_there()
        .breaks_connection(),
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
        )
        .not_counted_there(),
        in_the_world(
            "the login service is down",
            Unavailable,
            |line| {
                line.ground.azure.world().tokens.clear();
                line.ground.azure.fail(Fault::new(Effect::Raw(503, "down")).on("login"));
            },
            |line| line.ground.azure.recover(),
        )
        .not_counted_there(),
        in_the_world(
            "the login service answers garbage",
            Unavailable,
            |line| {
                line.ground.azure.world().tokens.clear();
                line.ground.azure.fail(Fault::new(Effect::Raw(200, "<html>")).on("login"));
            },
            |line| line.ground.azure.recover(),
        )
        .not_counted_there(),
        in_the_world(
            "the login service is overloaded (429)",
            Throttled,
            |line| {
                line.ground.azure.world().tokens.clear();
                line.ground.azure.fail(Fault::new(Effect::Raw(429, "{}")).on("login"));
            },
            |line| line.ground.azure.recover(),
        )
        .not_counted_there(),
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

#[test]
fn the_page_has_the_table_of_faults() {
    assert_shown(include_str!("../../docs/azure.md"), "## Faults", &cases());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_has_its_class_its_tries_and_its_grace_and_passes() {
    // Most of the time goes by waiting.
    let faults = stream::iter(cases());
    faults.for_each_concurrent(8, async |case| met(&Line::new(), case).await).await;
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
