//! Both layers on real servers: branch keys in PostgreSQL, wrapped by a key in OpenBao.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use waxseal::branch::{BranchKek, BranchKekBuilder};
use waxseal::{Aad, CallPolicy, EncryptionContext, Envelope, Error, ErrorKind, ManualClock};
use waxseal_sqlx::{PostgresKeyStore, PostgresOptions};
use waxseal_testing::openbao::{OpenBao, Options};
use waxseal_testing::postgres::{PASSWORD, Postgres};
use waxseal_testing::support::context;
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

struct Ground {
    bao: OpenBao,
    postgres: Postgres,
    store: PostgresKeyStore,
}

impl Ground {
    async fn start() -> Self {
        let bao = OpenBao::with(Options { durable: true, audit: true, ..Options::default() }).await;
        bao.create_key("orders", true).await;
        let postgres = Postgres::start();
        let options = PostgresOptions::new(postgres.url("postgres")).password(PASSWORD);
        let store = PostgresKeyStore::new(options.timeout(Duration::from_secs(20))).unwrap();
        store.migrate().await.unwrap();
        Self { bao, postgres, store }
    }

    /// The branch keys of another process.
    fn branches(&self) -> BranchKekBuilder {
        let root = VaultTransitKek::builder("test", "orders").address(self.bao.address());
        let root = root.auth(VaultAuth::token(self.bao.root_token())).build().unwrap();
        BranchKek::builder(root).name("orders").per(["tenant"]).store(self.store.clone())
    }

    /// How often the server was asked to unwrap, by its own account.
    fn unwraps(&self) -> usize {
        let log = std::fs::read_to_string(self.bao.audit_file()).unwrap();
        let entries = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let is_unwrap = |entry: &Value| {
            entry["type"] == "request" && entry["request"]["path"] == "transit/decrypt/orders"
        };
        entries.filter(is_unwrap).count()
    }
}

fn envelope(kek: &BranchKek) -> Envelope {
    Envelope::builder().wrap_with(kek.clone()).build().unwrap()
}

/// A context of the tenant's branch, with its own DEK.
fn table(tenant: &str, table: usize) -> EncryptionContext {
    EncryptionContext::new([("tenant", tenant), ("table", &table.to_string())]).unwrap()
}

async fn seal(envelope: &Envelope, context: &EncryptionContext) -> Vec<u8> {
    envelope.encrypt(context, Aad::empty(), b"row").await.unwrap()
}

async fn open(
    envelope: &Envelope,
    context: &EncryptionContext,
    sealed: &[u8],
) -> Result<(), Error> {
    let opened = envelope.decrypt(context, Aad::empty(), sealed).await?;
    assert_eq!(&*opened, b"row");
    Ok(())
}

/// Opens as soon as the servers are found to be back.
async fn open_soon(envelope: &Envelope, context: &EncryptionContext, sealed: &[u8]) {
    let begun = Instant::now();
    while let Err(error) = open(envelope, context, sealed).await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_callers_of_a_cold_branch_key_are_one_call_and_one_row() {
    let ground = Ground::start().await;
    let writer = envelope(&ground.branches().build().unwrap());
    let mut rows = Vec::new();
    for n in 0..1000 {
        let context = table("acme", n);
        rows.push((context.clone(), seal(&writer, &context).await));
    }
    let (kek, before) = (ground.branches().build().unwrap(), ground.unwraps());
    let reader = envelope(&kek);
    let reads: Vec<_> = (0..10_000)
        .map(|n| {
            let (reader, (context, sealed)) = (reader.clone(), rows[n % rows.len()].clone());
            tokio::spawn(async move { open(&reader, &context, &sealed).await })
        })
        .collect();
    for read in reads {
        read.await.unwrap().unwrap();
    }
    assert_eq!(ground.unwraps() - before, 1);
    assert_eq!(kek.statistics().store_calls.unwrap().calls, 1);
    assert_eq!(kek.statistics().keks[0].calls, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_either_server_is_told_as_its_own_and_leaves_what_is_cached() {
    let ground = Ground::start().await;
    let writer = envelope(&ground.branches().build().unwrap());
    let [acme, again] = [1, 2].map(|n| table("acme", n));
    let [bob, carol] = ["bob", "carol"].map(context);
    let (in_use, cold) = (seal(&writer, &acme).await, seal(&writer, &again).await);
    let (of_bob, of_carol) = (seal(&writer, &bob).await, seal(&writer, &carol).await);
    let second = Duration::from_secs(1);
    let policy = CallPolicy::default().timeout(second).deadline(2 * second).tries(1);
    let reader = envelope(&ground.branches().call_policy(policy).build().unwrap());
    open_soon(&reader, &acme, &in_use).await;

    ground.bao.stop();
    open(&reader, &again, &cold).await.unwrap();
    let error = open(&reader, &bob, &of_bob).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(!error.to_string().contains("key store"), "{error}");
    ground.bao.go_on();
    open_soon(&reader, &bob, &of_bob).await;

    ground.postgres.stop();
    open(&reader, &again, &cold).await.unwrap();
    let error = open(&reader, &carol, &of_carol).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("key store postgres"), "{error}");
    ground.postgres.go_on();
    open_soon(&reader, &carol, &of_carol).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_deleted_ends_every_dek_under_its_branch_keys_and_their_handles() {
    let ground = Ground::start().await;
    let clock = ManualClock::new();
    let kek = ground.branches().clock(clock.clone()).build().unwrap();
    let reader = Envelope::builder().wrap_with(kek).clock(clock.clone()).build().unwrap();
    let [one, other] = [1, 2].map(|n| table("acme", n));
    let (first, second) = (seal(&reader, &one).await, seal(&reader, &other).await);
    open(&reader, &one, &first).await.unwrap();
    let handle = reader.decryptor(&other, &*second).await.unwrap();
    ground.bao.put("transit/keys/orders/config", json!({ "deletion_allowed": true })).await;
    assert_eq!(ground.bao.ask("DELETE", "transit/keys/orders", json!(null)).await.0, 204);
    // Nobody has asked since, and it is within the bound.
    open(&reader, &one, &first).await.unwrap();
    handle.decrypt(Aad::empty(), &*second).unwrap();
    // The branch key is due: a use of a DEK under it causes a renewal, which is denied.
    clock.advance(Duration::from_secs(250));
    let begun = Instant::now();
    let ended = loop {
        let _ = open(&reader, &one, &first).await;
        match handle.decrypt(Aad::empty(), &*second) {
            Ok(_) => assert!(begun.elapsed() < Duration::from_secs(60), "the handle goes on"),
            Err(error) => break error,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(ended.kind(), ErrorKind::Expired, "{ended}");
    for (context, sealed) in [(&one, &first), (&other, &second)] {
        let error = open(&reader, context, sealed).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
    // Later callers are denied as well.
    let later = envelope(&ground.branches().build().unwrap());
    assert_eq!(open(&later, &one, &first).await.unwrap_err().kind(), ErrorKind::Denied);
}
