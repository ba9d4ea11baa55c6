//! What a 403 means, and what becomes of tokens: refused by a policy or dead, superseded, given
//! back. Against a real server; where HashiCorp Vault words it in another way, its words are put in
//! by a stand in front.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use waxseal_testing::{openbao, support, vault_front};

use openbao::{OpenBao, Options};
use serde_json::{Value, json};
use support::{a_dek, context};
use vault_front::in_front_of;
use waxseal::kek::KekErrorClass::{Denied, Misconfigured, Unavailable};
use waxseal::kek::{KekError, KekErrorClass, KekProvider};
use waxseal::{Aad, Envelope, ErrorKind, Limits, ManualClock};
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

const NO_REWRAP: [&str; 3] = ["keys", "encrypt", "decrypt"];

async fn server() -> OpenBao {
    let server = OpenBao::with(Options { durable: true, audit: true, ..Options::default() }).await;
    server.create_key("orders", true).await;
    server.policy("orders", "orders").await;
    server
}

/// The policy `orders` allows this and nothing else.
async fn allow(server: &OpenBao, verbs: &[&str]) {
    let rule = |verb: &&str| {
        let capability = if *verb == "keys" { "read" } else { "update" };
        format!("path \"transit/{verb}/orders\" {{ capabilities = [\"{capability}\"] }}\n")
    };
    let policy =
        verbs.iter().map(rule).collect::<String>() + "path \"other\" { capabilities = [\"read\"] }";
    server.put("sys/policies/acl/orders", json!({ "policy": policy })).await;
}

fn at(port: u16, auth: VaultAuth) -> VaultTransitKek {
    VaultTransitKek::builder("test", "orders")
        .address(format!("http://127.0.0.1:{port}"))
        .auth(auth)
        .build()
        .unwrap()
}

async fn app_role(server: &OpenBao) -> VaultAuth {
    let (role_id, secret_id) = server.app_role("768h", "768h").await;
    VaultAuth::app_role(role_id).secret_id(secret_id)
}

async fn works(kek: &VaultTransitKek) -> Result<(), KekError> {
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await?;
    assert_eq!(kek.unwrap(&alice, &wrapped).await?.expose(), dek.expose());
    Ok(())
}

#[track_caller]
fn fails<T>(result: Result<T, KekError>, class: KekErrorClass, text: &str) {
    let error = result.err().unwrap();
    assert_eq!(error.class(), class, "{error}");
    assert!(error.to_string().contains(text), "{error}, without {text:?}");
}

async fn revoke_all(server: &OpenBao) {
    server.put("sys/leases/revoke-prefix/auth/approle", json!({})).await;
}

/// Requests at a path, by the server's own log.
fn count(server: &OpenBao, path: &str) -> usize {
    let log = fs::read_to_string(server.audit_file()).unwrap();
    let of_path = |line: &&str| {
        let entry: Value = serde_json::from_str(line).unwrap();
        entry["type"] == "request" && entry["request"]["path"] == path
    };
    log.lines().filter(of_path).count()
}

async fn live_tokens(server: &OpenBao) -> usize {
    server.ask("LIST", "auth/token/accessors", Value::Null).await.1["data"]["keys"]
        .as_array()
        .map_or(0, Vec::len)
}

/// Waits for what happens in the background.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const POLICY: &str = "{\"errors\":[\"1 error occurred:\\n\\t* permission denied\\n\\n\"]}";
const BARE: &str = "{\"errors\":[\"permission denied\"]}";
const INVALID_TOKEN: &str =
    "{\"errors\":[\"2 errors occurred:\\n\\t* permission denied\\n\\t* invalid token\\n\\n\"]}";

// --- the token or the policy

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_may_not_rewrap_ends_no_dek_when_the_tokens_are_revoked() {
    let server = server().await;
    allow(&server, &NO_REWRAP).await;
    // The server itself, and one that words its refusals as HashiCorp Vault does, or does not tell
    // a token from a policy.
    let worded = |token: &'static str, policy: &'static str| {
        in_front_of(server.port(), move |asked, server| match server(asked) {
            (403, body) if body.contains("1 error occurred") => (403, policy.to_owned()),
            (403, _) => (403, token.to_owned()),
            other => other,
        })
    };
    for port in
        [server.port(), worded(INVALID_TOKEN, POLICY), worded(BARE, BARE), worded(POLICY, POLICY)]
    {
        let kek = at(port, app_role(&server).await);
        let clock = ManualClock::new();
        let limits = Limits::default().max_age(Duration::from_secs(60)).denial_ttl(Duration::ZERO);
        let envelope = Envelope::builder()
            .wrap_with(kek.clone())
            .clock(clock.clone())
            .limits(limits)
            .build()
            .unwrap();
        let alice = context("alice");
        let sealed = envelope.encrypt(&alice, Aad::empty(), b"payload").await.unwrap();
        let wrapped = kek.wrap(&alice, &a_dek()).await.unwrap();
        for _ in 0..3 {
            fails(kek.rewrap(&alice, &wrapped).await, Denied, "(403");
            revoke_all(&server).await;
            clock.advance(Duration::from_secs(61));
            assert_eq!(
                &*envelope.decrypt(&alice, Aad::empty(), &sealed).await.unwrap(),
                b"payload"
            );
        }
        // The other way round as well: what is refused stays refused.
        revoke_all(&server).await;
        fails(kek.rewrap(&alice, &wrapped).await, Denied, "(403");
        kek.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_taken_away_is_a_denial_however_the_server_words_it() {
    let server = server().await;
    let bare = in_front_of(server.port(), |asked, server| match server(asked) {
        (403, _) => (403, BARE.to_owned()),
        other => other,
    });
    for port in [server.port(), bare] {
        let kek = at(port, app_role(&server).await);
        works(&kek).await.unwrap();
        allow(&server, &["keys"]).await;
        for _ in 0..3 {
            fails(works(&kek).await, Denied, "(403");
        }
        server.policy("orders", "orders").await;
        works(&kek).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_taken_away_is_a_denial_though_no_login_works_any_more() {
    let server = server().await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let kek = at(server.port(), VaultAuth::app_role(role_id).secret_id(&*secret_id));
    works(&kek).await.unwrap();
    server
        .put("auth/approle/role/orders/secret-id/destroy", json!({ "secret_id": secret_id }))
        .await;
    allow(&server, &["keys"]).await;
    fails(works(&kek).await, Denied, "(403");
    // And with its token gone it is the login that is at fault.
    revoke_all(&server).await;
    fails(works(&kek).await, Misconfigured, "login (AppRole)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_server_calls_invalid_is_never_a_denial() {
    let server = server().await;
    let invalid = Arc::new(AtomicBool::new(false));
    let everywhere = Arc::new(AtomicBool::new(false));
    let port = in_front_of(server.port(), {
        let (invalid, everywhere) = (invalid.clone(), everywhere.clone());
        move |asked, server| {
            let is_call =
                asked.path.starts_with("/v1/transit/") || everywhere.load(Ordering::SeqCst);
            let is_login = asked.path.contains("/login");
            match invalid.load(Ordering::SeqCst) && is_call && !is_login {
                true => (403, INVALID_TOKEN.to_owned()),
                false => server(asked),
            }
        }
    });
    let fixed = server.token(json!({ "policies": ["orders"] })).await;
    for auth in [app_role(&server).await, VaultAuth::token(fixed)] {
        let kek = at(port, auth);
        works(&kek).await.unwrap();
        // A node that has not seen the token yet, among others that have.
        invalid.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            fails(works(&kek).await, Unavailable, "invalid");
        }
        // All nodes: another login does not help either.
        everywhere.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            fails(works(&kek).await, Misconfigured, "(403)");
        }
        invalid.store(false, Ordering::SeqCst);
        everywhere.store(false, Ordering::SeqCst);
        until("works again", async || works(&kek).await.is_ok()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_403_that_is_not_the_servers_own_costs_no_login_and_ends_no_dek() {
    let server = server().await;
    let blocked = Arc::new(AtomicBool::new(false));
    let port = in_front_of(server.port(), {
        let blocked = blocked.clone();
        move |asked, server| match blocked.load(Ordering::SeqCst) && asked.path.contains("crypt") {
            true => (
                403,
                format!(
                    "<html>\u{1b}[31m blocked: {} </html>",
                    asked.header("x-vault-token").unwrap()
                ),
            ),
            false => server(asked),
        }
    });
    let kek = at(port, app_role(&server).await);
    works(&kek).await.unwrap();
    let logins = count(&server, "auth/approle/login");
    blocked.store(true, Ordering::SeqCst);
    for _ in 0..5 {
        let error = works(&kek).await.unwrap_err();
        assert_eq!(error.class(), Misconfigured, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("blocked") && !text.contains('\u{1b}') && !text.contains("s."),
            "{text}"
        );
    }
    assert_eq!(count(&server, "auth/approle/login"), logins);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_whose_tokens_are_good_for_one_call_serves_all_the_same() {
    let server = server().await;
    let auth = app_role(&server).await;
    let role = json!({ "token_policies": ["orders"], "token_ttl": "1h", "token_num_uses": 1 });
    server.put("auth/approle/role/orders", role).await;
    let kek = at(server.port(), auth);
    for _ in 0..5 {
        works(&kek).await.unwrap();
    }
}

// --- token files

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_is_followed_whether_or_not_its_tokens_may_look_themselves_up() {
    let server = server().await;
    for no_default_policy in [false, true] {
        let fields =
            json!({ "policies": ["orders"], "no_default_policy": no_default_policy, "ttl": "1h" });
        let first = server.token(fields.clone()).await;
        let path = server.file("token", &first);
        let kek = at(server.port(), VaultAuth::token_file(&path));
        works(&kek).await.unwrap();
        for _ in 0..3 {
            let old = fs::read_to_string(&path).unwrap();
            fs::write(&path, server.token(fields.clone()).await).unwrap();
            server.revoke(&old).await;
            works(&kek).await.unwrap();
        }
        // A removed policy is a denial, and a token that ended without another is not.
        allow(&server, &["keys"]).await;
        fails(works(&kek).await, Denied, "(403");
        server.policy("orders", "orders").await;
        works(&kek).await.unwrap();
        server.revoke(&fs::read_to_string(&path).unwrap()).await;
        fails(works(&kek).await, Misconfigured, "ended or was revoked");
    }
}

// --- how many tokens there are

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_denied_leaves_no_tokens_behind_and_logs_in_ever_more_seldom() {
    let server = server().await;
    let kek = at(server.port(), app_role(&server).await);
    works(&kek).await.unwrap();
    let before = live_tokens(&server).await;
    allow(&server, &["keys"]).await;
    let start = Instant::now();
    // The first pauses are 10 and 20 seconds.
    while start.elapsed() < Duration::from_secs(24) {
        fails(works(&kek).await, Denied, "(403");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let logins = count(&server, "auth/approle/login");
    assert!(
        (2..=3).contains(&logins),
        "the first, one after the refusal and one after the pause: {logins}"
    );
    until("superseded tokens are given back", async || live_tokens(&server).await <= before).await;
    server.policy("orders", "orders").await;
    works(&kek).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_replaced_is_given_back() {
    let server = server().await;
    // It cannot be kept for long: every four seconds another one is needed.
    let (role_id, secret_id) = server.app_role("4s", "4s").await;
    let kek = at(server.port(), VaultAuth::app_role(role_id).secret_id(secret_id));
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        works(&kek).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let logins = count(&server, "auth/approle/login");
    until("given back", async || count(&server, "auth/token/revoke-self") + 2 >= logins).await;
    assert!(logins >= 3, "{logins}");
}

#[tokio::test(flavor = "multi_thread")]
async fn close_gives_the_last_token_back_and_the_next_call_logs_in_anew() {
    let server = server().await;
    let before = live_tokens(&server).await;
    let kek = at(server.port(), app_role(&server).await);
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    works(&kek).await.unwrap();
    assert_eq!(live_tokens(&server).await, before + 1);
    // While others are busy on it.
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..4)
        .map(|_| {
            let (kek, stop) = (kek.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    works(&kek).await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..3 {
        kek.close().await;
        works(&kek).await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    for task in busy {
        task.await.unwrap();
    }
    kek.close().await;
    kek.close().await;
    until("all are given back", async || live_tokens(&server).await == before).await;
    let sealed = envelope.encrypt(&context("bob"), Aad::empty(), b"payload").await.unwrap();
    assert_eq!(
        &*envelope.decrypt(&context("bob"), Aad::empty(), &sealed).await.unwrap(),
        b"payload"
    );
    assert_eq!(live_tokens(&server).await, before + 1);
    // Nobody closes it: it goes with the last handle.
    drop((envelope, kek));
    until("a dropped provider's too", async || live_tokens(&server).await == before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_handed_over_is_not_ended_by_close() {
    let server = server().await;
    let token = server.token(json!({ "policies": ["orders"] })).await;
    let path = server.file("token", &token);
    for auth in [VaultAuth::token(&*token), VaultAuth::token_file(path)] {
        let kek = at(server.port(), auth);
        works(&kek).await.unwrap();
        kek.close().await;
        works(&kek).await.unwrap();
        drop(kek);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    works(&at(server.port(), VaultAuth::token(&*token))).await.unwrap();
    assert_eq!(count(&server, "auth/token/revoke-self"), 0);
}

// --- what was asked

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_is_remembered_for_a_while_and_says_that_nobody_was_asked() {
    let server = server().await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let path = server.file("secret-id", "wrong");
    let kek = at(server.port(), VaultAuth::app_role(role_id).secret_id_file(&path));
    let mut asked = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        let error = works(&kek).await.unwrap_err();
        assert_eq!(error.class(), Misconfigured, "{error}");
        asked += usize::from(error.was_asked());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let logins = count(&server, "auth/approle/login");
    assert!(
        asked == logins && (2..=8).contains(&logins),
        "{asked} say that it was asked, {logins} logins"
    );
    // Other credentials are tried at once.
    fs::write(&path, secret_id).unwrap();
    works(&kek).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_says_whether_the_server_was_asked() {
    let server = server().await;
    let kek = at(server.port(), app_role(&server).await);
    let alice = context("alice");
    let wrapped = kek.wrap(&alice, &a_dek()).await.unwrap();
    let other = waxseal::WrappedDek::new(wrapped.kek_id().clone(), *b"no ciphertext").unwrap();
    let foreign =
        waxseal::WrappedDek::new(waxseal::KekId::new("vault:a/b/c").unwrap(), wrapped.wrapped())
            .unwrap();
    for malformed in [&other, &foreign] {
        assert!(!kek.unwrap(&alice, malformed).await.unwrap_err().was_asked());
        assert!(!kek.rewrap(&alice, malformed).await.unwrap_err().was_asked());
        let many = kek.unwrap_many(&[(&alice, malformed)]).await;
        assert!(many.into_iter().all(|result| !result.unwrap_err().was_asked()));
    }
    let wrong = kek.unwrap(&context("bob"), &wrapped).await.unwrap_err();
    assert!(wrong.was_asked() && wrong.class() == KekErrorClass::Invalid);
    let no_file = at(server.port(), VaultAuth::token_file("no-such-file"));
    assert!(!works(&no_file).await.unwrap_err().was_asked());
}

// --- namespaces, and what stands between

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_namespace_ends_deks_and_a_sealed_one_is_an_outage() {
    let server = server().await;
    server.put("sys/namespaces/locked", json!({})).await;
    let sealable = json!({ "seal": "seal \"shamir\" {\n shares = 1\n threshold = 1\n}" });
    let share =
        server.put("sys/namespaces/sealed", sealable).await["data"]["key_shares"][0].clone();
    server.ask("POST", "sys/namespaces/sealed/unseal", json!({ "key": share })).await;
    for (namespace, kind, stop) in [
        ("locked", ErrorKind::Denied, "sys/namespaces/api-lock/lock/locked"),
        ("sealed", ErrorKind::Unavailable, "sys/namespaces/sealed/seal"),
    ] {
        server.put(&format!("{namespace}/sys/mounts/transit"), json!({ "type": "transit" })).await;
        server.put(&format!("{namespace}/transit/keys/orders"), json!({ "derived": true })).await;
        let builder = VaultTransitKek::builder("test", "orders")
            .address(server.address())
            .namespace(namespace);
        let kek = builder.auth(VaultAuth::token(server.root_token())).build().unwrap();
        let clock = ManualClock::new();
        let limits = Limits::default().max_age(Duration::from_secs(60)).denial_ttl(Duration::ZERO);
        let limits = limits.stale_if_error_reading(Duration::from_secs(3600));
        let envelope = Envelope::builder()
            .wrap_with(kek.clone())
            .clock(clock.clone())
            .limits(limits)
            .build()
            .unwrap();
        let alice = context("alice");
        let sealed = envelope.encrypt(&alice, Aad::empty(), b"payload").await.unwrap();
        envelope.decrypt(&alice, Aad::empty(), &sealed).await.unwrap();
        server.put(stop, json!({})).await;
        clock.advance(Duration::from_secs(120));
        let read = envelope.decrypt(&alice, Aad::empty(), &sealed).await;
        match kind {
            // No grace.
            ErrorKind::Denied => assert_eq!(read.unwrap_err().kind(), kind),
            _ => assert_eq!(&*read.unwrap(), b"payload"),
        }
        assert_eq!(kek.health().await.unwrap_err().class() == Denied, kind == ErrorKind::Denied);
        // A login that fails by it says the same.
        let anew = VaultTransitKek::builder("test", "orders")
            .address(server.address())
            .namespace(namespace);
        let anew = anew.auth(VaultAuth::app_role("r").secret_id("s")).build().unwrap();
        assert_eq!(works(&anew).await.unwrap_err().class() == Denied, kind == ErrorKind::Denied);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_answer_to_a_wrap_keeps_its_text_and_a_gateways_is_no_invalid_answer() {
    let server = server().await;
    let turn = Arc::new(AtomicUsize::new(0));
    let port = in_front_of(server.port(), {
        let turn = turn.clone();
        move |asked, server| match turn.load(Ordering::SeqCst) {
            1 if asked.path.contains("encrypt") || asked.path.contains("datakey") => {
                (400, "{\"errors\":[\"the context has a word too many\"]}".to_owned())
            }
            status @ (400 | 413) if asked.path.contains("crypt") => (
                u16::try_from(status).unwrap(),
                format!("<html> {status} no such luck\u{7} </html>"),
            ),
            _ => server(asked),
        }
    });
    let kek = at(port, app_role(&server).await);
    kek.read_key().await.unwrap();
    for origin in [waxseal::DekOrigin::Local, waxseal::DekOrigin::KeyService] {
        let envelope =
            Envelope::builder().wrap_with(kek.clone()).dek_origin(origin).build().unwrap();
        turn.store(1, Ordering::SeqCst);
        let error = envelope.encrypt(&context("alice"), Aad::empty(), b"x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("the context has a word too many"), "{error}");
        turn.store(0, Ordering::SeqCst);
    }
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let sealed = envelope.encrypt(&context("bob"), Aad::empty(), b"x").await.unwrap();
    let reader = Envelope::builder().unwrap_with(kek).build().unwrap();
    for status in [400, 413] {
        turn.store(status, Ordering::SeqCst);
        for error in [
            envelope.encrypt(&context("carol"), Aad::empty(), b"x").await.map(drop).unwrap_err(),
            reader.decrypt(&context("bob"), Aad::empty(), &sealed).await.map(drop).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
            assert!(
                error.to_string().contains("no such luck") && !error.to_string().contains('\u{7}'),
                "{error}"
            );
        }
    }
    turn.store(0, Ordering::SeqCst);
    reader.decrypt(&context("bob"), Aad::empty(), &sealed).await.unwrap();
}
