//! Envelopes over a real server that ends tokens, is killed, sealed, rotated, robbed of its key.
//! Each test prints what was seen: which error, how many operations failed, how soon it recovered
//! (`--nocapture`); what it asserts holds on a slow machine too.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use waxseal_testing::{openbao, support};

use openbao::{OpenBao, Options};
use serde_json::{Value, json};
use support::context;
use tokio::task::JoinHandle;
use waxseal::kek::KekProvider;
use waxseal::{Aad, EncryptionContext, Envelope, Error, ErrorKind, Event, Limits, Observer};
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Asks the key service often: a DEK serves for half a second.
fn short_lived() -> Limits {
    Limits::default().max_age(millis(500)).denial_ttl(millis(100))
}

#[derive(Debug, Clone, Default)]
struct PastAge(Arc<AtomicU64>);

impl Observer for PastAge {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::ServedStale { .. }) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Eight tasks that seal and open, four contexts, until they are stopped.
struct Load {
    over: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<(Instant, ErrorKind, String)>>>,
    tasks: Vec<JoinHandle<()>>,
    past_age: PastAge,
}

/// A message of each of four contexts.
async fn messages(kek: &VaultTransitKek) -> Vec<(EncryptionContext, Vec<u8>)> {
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let mut messages = Vec::new();
    for tenant in ["a", "b", "c", "d"] {
        let context = context(tenant);
        let sealed = envelope.encrypt(&context, Aad::empty(), b"payload").await.unwrap();
        messages.push((context, sealed));
    }
    messages
}

async fn once(
    envelope: &Envelope,
    context: &EncryptionContext,
    sealed: &[u8],
) -> Result<(), Error> {
    assert_eq!(&*envelope.decrypt(context, Aad::empty(), sealed).await?, b"payload");
    let mine = envelope.encrypt(context, Aad::from(b"aad"), b"mine").await?;
    assert_eq!(&*envelope.decrypt(context, Aad::from(b"aad"), &mine).await?, b"mine");
    Ok(())
}

impl Load {
    async fn start(kek: &VaultTransitKek, limits: Limits) -> Self {
        let past_age = PastAge::default();
        let envelope = Envelope::builder()
            .wrap_with(kek.clone())
            .limits(limits)
            .observer(past_age.clone())
            .build()
            .unwrap();
        let messages = Arc::new(messages(kek).await);
        let load = Self {
            over: Arc::default(),
            done: Arc::default(),
            failures: Arc::default(),
            tasks: Vec::new(),
            past_age,
        };
        let tasks = (0..8).map(|task: usize| {
            let (envelope, messages) = (envelope.clone(), messages.clone());
            let (over, done, failures) =
                (load.over.clone(), load.done.clone(), load.failures.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let (context, sealed) = &messages[task % messages.len()];
                    match once(&envelope, context, sealed).await {
                        Ok(()) => drop(done.fetch_add(1, Ordering::SeqCst)),
                        Err(error) => failures.lock().unwrap().push((
                            Instant::now(),
                            error.kind(),
                            error.to_string(),
                        )),
                    }
                    tokio::time::sleep(millis(5)).await;
                }
            })
        });
        let tasks = tasks.collect();
        Self { tasks, ..load }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    fn failed(&self) -> usize {
        self.failures.lock().unwrap().len()
    }

    /// Waits until something holds, for a generous while.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let start = Instant::now();
        while !holds(self) {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{what}: {:?}",
                self.failures.lock().unwrap().last()
            );
            tokio::time::sleep(millis(5)).await;
        }
        start.elapsed()
    }

    /// Until every task has worked again, after which nothing may fail.
    async fn recovers(&self) -> Duration {
        let start = Instant::now();
        loop {
            let (done, failed) = (self.done(), self.failed());
            tokio::time::sleep(millis(100)).await;
            if self.done() > done + 16 && self.failed() == failed {
                return start.elapsed();
            }
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{:?}",
                self.failures.lock().unwrap().last()
            );
        }
    }

    async fn end(mut self, name: &str) -> (u64, BTreeMap<String, usize>) {
        self.over.store(true, Ordering::SeqCst);
        for task in self.tasks.drain(..) {
            task.await.unwrap();
        }
        let failures = self.failures.lock().unwrap();
        let mut kinds = BTreeMap::new();
        for (_, kind, _) in failures.iter() {
            *kinds.entry(format!("{kind:?}")).or_default() += 1;
        }
        let past_age = self.past_age.0.load(Ordering::SeqCst);
        println!(
            "{name}: {} done, {past_age} served past their age, failed: {kinds:?}",
            self.done()
        );
        if let Some((_, _, text)) = failures.last() {
            println!("  last: {text}");
        }
        (self.done(), kinds)
    }
}

fn only(kind: &str) -> impl Fn(&BTreeMap<String, usize>) -> bool {
    move |kinds| kinds.keys().all(|seen| seen == kind)
}

async fn server(options: Options) -> OpenBao {
    let server = OpenBao::with(options).await;
    server.create_key("orders", true).await;
    server.policy("orders", "orders").await;
    server
}

fn at(server: &OpenBao, auth: VaultAuth) -> VaultTransitKek {
    VaultTransitKek::builder("test", "orders")
        .address(server.address())
        .timeout(millis(2000))
        .auth(auth)
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_end_every_few_seconds_fail_no_operation() {
    let server = server(Options { durable: true, audit: true, ..Options::default() }).await;
    let (role_id, secret_id) = server.app_role("3s", "8s").await;
    let kek = at(&server, VaultAuth::app_role(role_id).secret_id(secret_id));
    let load = Load::start(&kek, short_lived()).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (done, failed) = load.end("TTL 3 s, max TTL 8 s, 20 s").await;
    let log = std::fs::read_to_string(server.audit_file()).unwrap();
    let count = |path: &str| {
        let asked = |line: &&str| {
            let entry: Value = serde_json::from_str(line).unwrap();
            entry["type"] == "request" && entry["request"]["path"] == path
        };
        log.lines().filter(asked).count()
    };
    let (logins, renewals) = (count("auth/approle/login"), count("auth/token/renew-self"));
    println!("  {logins} logins, {renewals} renewals, {} unwraps", count("transit/decrypt/orders"));
    assert!(failed.is_empty() && done > 500, "{failed:?}, {done}");
    assert!(
        logins >= 3 && renewals >= 6,
        "the run went through the end of tokens: {logins} logins, {renewals} renewals"
    );
    // Refused calls: none either, since no token was used past its end.
    let refused = log.lines().filter(|line| line.contains("permission denied")).count();
    assert_eq!(refused, 0, "refused calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_is_ridden_out_within_the_grace_and_found_again() {
    let mut server = server(Options { durable: true, ..Options::default() }).await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let kek = at(&server, VaultAuth::app_role(role_id).secret_id(secret_id));
    let minute = Duration::from_secs(60);
    let graceful = short_lived().stale_if_error_reading(minute).stale_if_error_writing(minute);
    let with_grace = Load::start(&kek, graceful).await;
    let without = Load::start(&kek, short_lived()).await;
    with_grace.until("work", |load| load.done() > 200).await;
    without.until("work", |load| load.done() > 200).await;

    server.kill();
    let noticed = without.until("a failure", |load| load.failed() > 0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.restart().await;
    let start = Instant::now();
    without.recovers().await;
    println!(
        "kill -9: noticed after {noticed:.1?}, recovered {:.1?} after the server was back",
        start.elapsed()
    );
    let (_, failed) = without.end("kill -9, without grace").await;
    assert!(!failed.is_empty() && only("Unavailable")(&failed), "{failed:?}");

    let before = with_grace.past_age.0.load(Ordering::SeqCst);
    assert!(before > 0, "the grace was needed");
    with_grace.recovers().await;
    let (_, failed) = with_grace.end("kill -9, with grace").await;
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sealing_is_an_outage_and_unsealing_its_end() {
    let server = server(Options::default()).await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let kek = at(&server, VaultAuth::app_role(role_id).secret_id(secret_id));
    let minute = Duration::from_secs(60);
    let with_grace = Load::start(
        &kek,
        short_lived().stale_if_error_reading(minute).stale_if_error_writing(minute),
    )
    .await;
    let without = Load::start(&kek, short_lived()).await;
    without.until("work", |load| load.done() > 200).await;
    server.seal().await;
    let noticed = without.until("a failure", |load| load.failed() > 0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.unseal().await;
    let start = Instant::now();
    without.recovers().await;
    println!(
        "seal: noticed after {noticed:.1?}, recovered {:.1?} after the unsealing",
        start.elapsed()
    );
    let (_, failed) = without.end("seal, without grace").await;
    assert!(!failed.is_empty() && only("Unavailable")(&failed), "{failed:?}");
    with_grace.recovers().await;
    let (_, failed) = with_grace.end("seal, with grace").await;
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_under_load_fail_nothing_and_old_messages_are_rewrapped() {
    let server = server(Options::default()).await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let kek = at(&server, VaultAuth::app_role(role_id).secret_id(secret_id));
    let old = messages(&kek).await;
    let load = Load::start(&kek, short_lived()).await;
    for _ in 0..10 {
        server.rotate("orders").await;
        tokio::time::sleep(millis(300)).await;
    }
    // Long enough for every DEK to be made again.
    tokio::time::sleep(millis(1500)).await;
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    assert_eq!(kek.read_key().await.unwrap().latest_version, 11);
    for (context, sealed) in &old {
        assert!(envelope.needs_rewrap(sealed).unwrap());
        let rewrapped = envelope.rewrap(context, sealed).await.unwrap();
        assert!(!envelope.needs_rewrap(&rewrapped).unwrap());
        assert_eq!(
            &*envelope.decrypt(context, Aad::empty(), &rewrapped).await.unwrap(),
            b"payload"
        );
    }
    let fresh = envelope.encrypt(&old[0].0, Aad::empty(), b"x").await.unwrap();
    assert!(!envelope.needs_rewrap(&fresh).unwrap(), "new messages are under the new version");
    let (done, failed) = load.end("ten rotations").await;
    assert!(failed.is_empty() && done > 200, "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_replaced_where_there_is_a_login_and_ends_service_where_there_is_none() {
    let server = server(Options::default()).await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let logging_in = at(&server, VaultAuth::app_role(role_id).secret_id(secret_id));
    let token = server.token(json!({ "policies": ["orders"], "ttl": "1h" })).await;
    let fixed = at(&server, VaultAuth::token(&*token));
    // A grace is for outages only: an ended credential is none.
    let limits = short_lived().stale_if_error_reading(Duration::from_secs(60));
    let loads = [Load::start(&logging_in, limits).await, Load::start(&fixed, limits).await];
    for load in &loads {
        load.until("work", |load| load.done() > 200).await;
    }
    server.put("sys/leases/revoke-prefix/auth/approle", json!({})).await;
    server.revoke(&token).await;
    let [logging_in, fixed] = loads;
    let noticed = fixed.until("a failure", |load| load.failed() > 100).await;
    println!("revoked: the fixed token's service ended within {noticed:.1?}");
    tokio::time::sleep(millis(1500)).await;
    let (_, failed) = logging_in.end("revoked token, AppRole").await;
    assert!(failed.is_empty(), "{failed:?}");
    let done = fixed.done();
    tokio::time::sleep(millis(500)).await;
    assert_eq!(fixed.done(), done, "nothing serves any more");
    let (_, failed) = fixed.end("revoked token, fixed").await;
    assert!(only("Misconfigured")(&failed), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_key_ends_every_dek_that_asks_again() {
    let server = server(Options::default()).await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let kek = at(&server, VaultAuth::app_role(role_id).secret_id(secret_id));
    let minute = Duration::from_secs(60);
    let limits = short_lived().stale_if_error_reading(minute).stale_if_error_writing(minute);
    let load = Load::start(&kek, limits).await;
    load.until("work", |load| load.done() > 200).await;
    server.put("transit/keys/orders/config", json!({ "deletion_allowed": true })).await;
    let start = Instant::now();
    assert_eq!(server.ask("DELETE", "transit/keys/orders", json!(null)).await.0, 204);
    load.until("a failure", |load| load.failed() > 200).await;
    println!("deleted key: 200 operations refused {:.1?} after", start.elapsed());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let done = load.done();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(load.done(), done, "nothing serves any more, grace or not");
    let (_, failed) = load.end("deleted key").await;
    assert!(only("Denied")(&failed), "{failed:?}");
    assert_eq!(kek.id().as_str(), "vault:test/transit/orders");
}
