//! What each failure of a real server, and of the way to it, means. Where no free server can be
//! brought to a status, the answer is put in by a proxy in front of one.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};
use waxseal_testing::ports::free_port;
use waxseal_testing::{fault_proxy, openbao, support};

use fault_proxy::{Fault, FaultProxy};
use openbao::{OpenBao, Options};
use serde_json::json;
use support::{a_dek, context};
use waxseal::kek::KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};
use waxseal::kek::{Health, KekError, KekErrorClass, KekProvider};
use waxseal::{Dek, EncryptionContext, WrappedDek};
use waxseal_vault_transit::{ContextBinding, VaultAuth, VaultTransitKek, VaultTransitKekBuilder};

struct Stage {
    server: OpenBao,
    proxy: FaultProxy,
    kek: VaultTransitKek,
    alice: EncryptionContext,
    dek: Dek,
    wrapped: WrappedDek,
}

fn builder(port: u16, token: &str) -> VaultTransitKekBuilder {
    VaultTransitKek::builder("test", "orders")
        .address(format!("http://127.0.0.1:{port}"))
        .auth(VaultAuth::token(token))
}

/// A provider with the smallest policy, that has worked once.
async fn stage(options: Options) -> Stage {
    let server = OpenBao::with(options).await;
    server.create_key("orders", true).await;
    server.policy("orders", "orders").await;
    let token = server.token(json!({ "policies": ["orders"] })).await;
    let proxy = FaultProxy::start(server.port());
    let kek = builder(proxy.port(), &token).timeout(Duration::from_secs(2)).build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    Stage { server, proxy, kek, alice, dek, wrapped }
}

impl Stage {
    async fn unwrap(&self) -> Result<(), KekError> {
        self.kek
            .unwrap(&self.alice, &self.wrapped)
            .await
            .map(|dek| assert_eq!(dek.expose(), self.dek.expose()))
    }

    async fn unwraps_again(&self) {
        self.proxy.set(Fault::None);
        self.unwrap().await.unwrap();
    }

    /// The same entry with another text.
    fn with_text(&self, text: &str) -> WrappedDek {
        WrappedDek::new(self.wrapped.kek_id().clone(), text.as_bytes()).unwrap()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(self.wrapped.wrapped()).unwrap()
    }
}

#[track_caller]
fn fails<T>(result: Result<T, KekError>, class: KekErrorClass, text: &str) {
    match result {
        Ok(_) => panic!("succeeded where {class} was to be seen"),
        Err(error) => {
            println!("{error}");
            assert_eq!(error.class(), class, "{error}");
            assert!(error.to_string().contains(text), "{error}, without {text:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_ciphertexts_and_contexts_are_invalid_alone_and_in_batches() {
    let stage = stage(Options::default()).await;
    let damaged = {
        let mut text = stage.text().to_owned();
        let last = text.len() - 3;
        let other = if text.as_bytes()[last] == b'A' { "B" } else { "A" };
        text.replace_range(last..=last, other);
        stage.with_text(&text)
    };
    let too_new = stage.with_text(&stage.text().replace("vault:v1:", "vault:v9:"));
    let too_short = stage.with_text(&stage.text()[..49]);
    let bob = context("bob");
    for (what, context, wrapped, text) in [
        ("a damaged one", &stage.alice, &damaged, "message authentication failed"),
        ("a wrong context", &bob, &stage.wrapped, "message authentication failed"),
        ("a version that does not exist", &stage.alice, &too_new, "invalid ciphertext"),
        ("too short", &stage.alice, &too_short, ""),
    ] {
        println!("{what}");
        fails(stage.kek.unwrap(context, wrapped).await, Invalid, text);
        fails(stage.kek.rewrap(context, wrapped).await, Invalid, "");
        // Unwrapping answers 400 for the whole, rewrapping 200; the good items are good in both.
        let items =
            [(&stage.alice, &stage.wrapped), (context, wrapped), (&stage.alice, &stage.wrapped)];
        let unwrapped: Vec<_> = stage.kek.unwrap_many(&items).await;
        let rewrapped: Vec<_> = stage.kek.rewrap_many(&items).await;
        assert!(
            matches!(&unwrapped[..], [Ok(_), Err(error), Ok(_)] if error.class() == Invalid),
            "{unwrapped:?}"
        );
        assert!(
            matches!(&rewrapped[..], [Ok(_), Err(error), Ok(_)] if error.class() == Invalid),
            "{rewrapped:?}"
        );
    }
    // What cannot be a ciphertext costs no call.
    let before = stage.proxy.requests();
    for text in
        ["", "x", "vault:v1:", "vault:v0:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "vault:v1:!!!!"]
    {
        let text = if text.is_empty() { "\u{0}" } else { text };
        fails(
            stage.kek.unwrap(&stage.alice, &stage.with_text(text)).await,
            Invalid,
            "not a ciphertext",
        );
    }
    assert_eq!(stage.proxy.requests(), before);
    stage.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_the_key_is_denied() {
    let stage = stage(Options::default()).await;
    stage.server.put("transit/keys/orders/config", json!({ "deletion_allowed": true })).await;
    // OpenBao only: HashiCorp Vault deletes at once.
    stage.server.ask("DELETE", "transit/keys/orders/soft-delete", json!(null)).await;
    fails(stage.unwrap().await, Denied, "soft-deleted");
    fails(stage.kek.wrap(&stage.alice, &stage.dek).await, Denied, "soft-deleted");
    fails(stage.kek.read_key().await, Denied, "soft-deleted");
    stage.server.put("transit/keys/orders/soft-delete-restore", json!({})).await;
    stage.unwraps_again().await;

    assert_eq!(stage.server.ask("DELETE", "transit/keys/orders", json!(null)).await.0, 204);
    fails(stage.unwrap().await, Denied, "does not exist");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    fails(stage.unwrap().await, Denied, "(404)");
    fails(stage.kek.read_key().await, Denied, "(404)");
    // The policy has no `create`, so a missing key is not made in silence.
    fails(stage.kek.wrap(&stage.alice, &stage.dek).await, Denied, "");
    assert_eq!(stage.server.ask("GET", "transit/keys/orders", json!(null)).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_denied_after_one_new_login_and_given_back_it_is_noticed() {
    let stage = stage(Options::default()).await;
    stage
        .server
        .put(
            "sys/policies/acl/orders",
            json!({ "policy": "path \"transit/keys/orders\" { capabilities = [\"read\"] }" }),
        )
        .await;
    let before = stage.proxy.requests();
    fails(stage.unwrap().await, Denied, "permission denied");
    assert_eq!(stage.proxy.requests(), before + 2, "the call, and a look at the token");
    for _ in 0..10 {
        fails(stage.unwrap().await, Denied, "(403");
    }
    assert_eq!(stage.proxy.requests(), before + 12, "the answer is believed for a while");
    stage.server.policy("orders", "orders").await;
    stage.unwraps_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_is_gone_is_misconfigured() {
    let stage = stage(Options::default()).await;
    assert_eq!(stage.server.ask("DELETE", "sys/mounts/transit", json!(null)).await.0, 204);
    // The policy still allows the path, so the router is what answers.
    fails(stage.unwrap().await, Misconfigured, "nothing is mounted");
    fails(stage.kek.health().await, Misconfigured, "nothing is mounted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_throttled() {
    let stage = stage(Options::default()).await;
    stage
        .server
        .put("sys/quotas/rate-limit/all", json!({ "rate": 0.001, "path": "transit/" }))
        .await;
    while stage.server.ask("GET", "transit/keys/orders", json!(null)).await.0 != 429 {}
    fails(stage.unwrap().await, Throttled, "(429");
    let results = stage
        .kek
        .unwrap_many(&[(&stage.alice, &stage.wrapped), (&stage.alice, &stage.wrapped)])
        .await;
    assert!(
        results.iter().all(|result| matches!(result, Err(error) if error.class() == Throttled))
    );
    stage.server.ask("DELETE", "sys/quotas/rate-limit/all", json!(null)).await;
    stage.unwraps_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_large_is_invalid_and_disturbs_no_other() {
    let stage =
        stage(Options { durable: true, max_request_size: Some(2048), ..Options::default() }).await;
    let large = EncryptionContext::new([("a", "a".repeat(4000))]).unwrap();
    fails(stage.kek.wrap(&large, &stage.dek).await, Invalid, "(413");
    stage.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_uninitialised_and_standby_are_told_apart() {
    let stage = stage(Options { durable: true, ..Options::default() }).await;
    assert_eq!(stage.kek.health().await.unwrap(), Health::Ready);
    stage.server.seal().await;
    fails(stage.unwrap().await, Unavailable, "sealed (503");
    fails(stage.kek.wrap(&stage.alice, &stage.dek).await, Unavailable, "sealed");
    fails(stage.kek.health().await, Unavailable, "sealed");

    // States that one free server cannot be brought to, as a server's own answers say them.
    let state = |initialized: bool, sealed: bool, standby: bool, performance: bool, dr: &str| {
        json!({
            "initialized": initialized, "sealed": sealed, "standby": standby, "performance_standby": performance,
            "replication_dr_mode": dr, "version": "2.7.2",
        })
    };
    for (status, body, class, text) in [
        (501, state(false, true, true, false, "disabled"), Misconfigured, "not initialised"),
        (503, state(true, true, true, false, "disabled"), Unavailable, "sealed"),
        (472, state(true, false, true, false, "secondary"), Unavailable, "disaster-recovery"),
    ] {
        stage.proxy.set(Fault::Replace(http(status, &body.to_string())));
        fails(stage.kek.health().await, class, text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_what_the_key_says_whichever_node_a_load_balancer_leads_to() {
    // Only the answer about health is put in, another one each time; the calls behind it go to the
    // server.
    let server = OpenBao::start().await;
    server.create_key("orders", true).await;
    let state = |sealed: bool, standby: bool, performance: bool, dr: &str| {
        let state = json!({
            "initialized": true, "sealed": sealed, "standby": standby, "performance_standby": performance,
            "replication_dr_mode": dr,
        });
        state.to_string()
    };
    let nodes = [
        http(200, &state(false, false, false, "disabled")),
        http(429, &state(false, true, false, "disabled")),
        http(473, &state(false, false, true, "disabled")),
        http(503, &state(true, true, false, "disabled")),
        http(472, &state(false, true, false, "secondary")),
        http(502, "<html>"),
    ];
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let port = front(server.port(), move |path| {
        let turn = || turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % nodes.len();
        path.starts_with("/v1/sys/health").then(|| nodes[turn()].clone())
    });
    let kek = builder(port, server.root_token()).build().unwrap();
    for _ in 0..12 {
        assert_eq!(kek.health().await.unwrap(), Health::Ready);
    }
}

/// Answers some paths itself and passes the others on. Gives its port.
fn front(upstream: u16, own: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let own = std::sync::Arc::new(own);
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let own = own.clone();
            std::thread::spawn(move || serve(client, upstream, &*own));
        }
    });
    port
}

fn serve(
    mut client: std::net::TcpStream,
    upstream: u16,
    own: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Option<()> {
    use std::io::{Read, Write};

    let mut server = std::net::TcpStream::connect(("127.0.0.1", upstream)).ok()?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let len = client.read(&mut buffer).ok().filter(|len| *len > 0)?;
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        if let Some(answer) = own(text.split(' ').nth(1)?) {
            return client.write_all(&answer).ok();
        }
        server.write_all(&buffer[..len]).ok()?;
        let len = server.read(&mut buffer).ok().filter(|len| *len > 0)?;
        client.write_all(&buffer[..len]).ok()?;
    }
}

fn http(status: u16, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: \
        {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_that_no_free_server_gives_are_read_all_the_same() {
    let stage = stage(Options::default()).await;
    let errors = |text: &str| json!({ "errors": [text] }).to_string();
    for (status, body, class, text) in [
        (400, errors("something else"), Invalid, "something else"),
        (401, String::new(), Misconfigured, "(401)"),
        (405, errors("unsupported operation"), Misconfigured, "(405"),
        (407, String::new(), Misconfigured, "proxy"),
        (412, errors("required index state not present"), Unavailable, "(412"),
        (413, errors("http: request body too large"), Invalid, "(413"),
        (472, String::new(), Unavailable, "(472)"),
        (473, String::new(), Unavailable, "(473)"),
        (500, errors("internal error"), Unavailable, "internal error"),
        (500, errors("cipher: message authentication failed"), Invalid, "wrong context"),
        (
            502,
            "<html>Bad Gateway</html>".to_owned(),
            Unavailable,
            "(502: <html>Bad Gateway</html>)",
        ),
        (503, errors("Vault is sealed"), Unavailable, "sealed"),
        (503, String::new(), Unavailable, "(503)"),
        (504, String::new(), Unavailable, "(504)"),
        (302, String::new(), Unavailable, "(302)"),
        // A gateway's own refusals: no DEK ends by them.
        (400, "<html>400 Bad Request</html>".to_owned(), Misconfigured, "400 Bad Request"),
        (400, String::new(), Misconfigured, "(400)"),
        (403, "<html>Forbidden</html>".to_owned(), Misconfigured, "Forbidden"),
        (404, "<html>Not Found</html>".to_owned(), Misconfigured, "Not Found"),
        (413, "<html>Too Large</html>".to_owned(), Misconfigured, "Too Large"),
        (
            503,
            errors("API access to this namespace has been locked by an administrator - \"a/\""),
            Denied,
            "locked",
        ),
    ] {
        stage.proxy.set(Fault::Replace(http(status, &body)));
        fails(stage.unwrap().await, class, text);
        let batch = stage
            .kek
            .rewrap_many(&[(&stage.alice, &stage.wrapped), (&stage.alice, &stage.wrapped)])
            .await;
        assert!(
            batch.iter().all(|result| matches!(result, Err(error) if error.class() == class)),
            "{status}: {batch:?}"
        );
        stage.unwraps_again().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_or_gateway_that_says_when_to_come_back_is_passed_on() {
    let stage = stage(Options::default()).await;
    for (header, wait) in
        [("Retry-After: 7\r\n", Some(7)), ("", None), ("Retry-After: soon\r\n", None)]
    {
        let answer =
            String::from_utf8(http(429, &json!({ "errors": ["too many"] }).to_string())).unwrap();
        let answer = answer.replace("Connection: close", &format!("{header}Connection: close"));
        stage.proxy.set(Fault::Replace(answer.into_bytes()));
        let error = stage.kek.unwrap(&stage.alice, &stage.wrapped).await.unwrap_err();
        assert_eq!(
            (error.class(), error.retry_after()),
            (Throttled, wait.map(Duration::from_secs)),
            "{header}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_cannot_be_understood_are_unavailable() {
    let stage = stage(Options::default()).await;
    let dek = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
    for body in [
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        "{".to_owned(),
        "{}".to_owned(),
        r#"{"data":null}"#.to_owned(),
        r#"{"data":{}}"#.to_owned(),
        r#"{"data":{"plaintext":null,"ciphertext":null}}"#.to_owned(),
        r#"{"data":{"plaintext":17}}"#.to_owned(),
        r#"{"data":{"plaintext":"!!!!"}}"#.to_owned(),
        r#"{"data":{"batch_results":[]}}"#.to_owned(),
        format!(r#"{{"data":{{"plaintext":"{dek}""#),
        "\u{0}\u{1}garbage".to_owned(),
        "[".repeat(100_000),
    ] {
        stage.proxy.set(Fault::Replace(http(200, &body)));
        let result = stage.unwrap().await;
        let text = format!("{:?}", result.as_ref().unwrap_err());
        assert!(!text.contains("QUFB"), "{text}");
        fails(result, Unavailable, "");
        fails(stage.kek.wrap(&stage.alice, &stage.dek).await, Unavailable, "");
        let batch = stage
            .kek
            .unwrap_many(&[(&stage.alice, &stage.wrapped), (&stage.alice, &stage.wrapped)])
            .await;
        assert!(
            batch.iter().all(|result| matches!(result, Err(error) if error.class() == Unavailable)),
            "{batch:?}"
        );
    }
    // A batch with its results in another order, one too few, or one too many.
    let item = |reference: &str| format!(r#"{{"plaintext":"{dek}","reference":"{reference}"}}"#);
    for items in
        [vec![item("1"), item("0")], vec![item("0")], vec![item("0"), item("1"), item("2")]]
    {
        let body = format!(r#"{{"data":{{"batch_results":[{}]}}}}"#, items.join(","));
        stage.proxy.set(Fault::Replace(http(200, &body)));
        let batch = stage
            .kek
            .unwrap_many(&[(&stage.alice, &stage.wrapped), (&stage.alice, &stage.wrapped)])
            .await;
        assert!(
            batch.iter().all(|result| matches!(result, Err(error) if error.class() == Unavailable)),
            "{batch:?}"
        );
    }
    stage.unwraps_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_cut_off() {
    let stage = stage(Options::default()).await;
    let mut answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"data\":\"".to_vec();
    answer.resize(answer.len() + 40_000_000, b'a');
    stage.proxy.set(Fault::Replace(answer));
    fails(stage.unwrap().await, Unavailable, "more than");
    stage.unwraps_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_for_the_connection_to_fail_is_unavailable_and_the_next_call_works() {
    let stage = stage(Options::default()).await;
    for (fault, text) in [
        (Fault::Reset, ""),
        (Fault::HalfClose, ""),
        (Fault::Truncate(0), ""),
        (Fault::Truncate(20), ""),
        (Fault::Truncate(400), ""),
        (Fault::Replace(b"\x16\x03\x01garbage\r\n\r\n".to_vec()), ""),
        (
            Fault::Replace(
                b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"data\":{\"pla".to_vec(),
            ),
            "broke off",
        ),
        (
            Fault::Replace(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec()),
            "broke off",
        ),
        (Fault::Silence, "no answer in time"),
        (Fault::Delay(Duration::from_secs(5)), "no answer in time"),
        (Fault::Trickle(Duration::from_millis(20)), "no answer in time"),
    ] {
        println!("{fault:?}");
        stage.proxy.set(fault);
        let start = Instant::now();
        fails(stage.unwrap().await, Unavailable, text);
        assert!(start.elapsed() < Duration::from_secs(10), "the limit of 2 s holds, generously");
        stage.proxy.cut();
        stage.unwraps_again().await;
    }
    // Slow, and in time.
    stage.proxy.set(Fault::Delay(Duration::from_millis(100)));
    stage.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_no_name_and_no_way_are_unavailable() {
    let (alice, dek) = (context("alice"), a_dek());
    let refused = builder(free_port(), "token").build().unwrap();
    fails(refused.wrap(&alice, &dek).await, Unavailable, "no connection");
    fails(refused.health().await, Unavailable, "no connection");
    let nowhere = builder(1, "token").address("https://vault.invalid:8200").build().unwrap();
    fails(nowhere.wrap(&alice, &dek).await, Unavailable, "cannot be resolved");
    // Addresses of documentation (RFC 5737): nobody answers, or the network says so at once.
    let nobody = builder(1, "token")
        .address("https://192.0.2.1")
        .connect_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    fails(nobody.wrap(&alice, &dek).await, Unavailable, "");
    let proxy = builder(1, "token")
        .address("https://vault.example")
        .proxy(format!("http://user:pass-word@127.0.0.1:{}", free_port()));
    let error = proxy.build().unwrap().wrap(&alice, &dek).await.unwrap_err();
    assert!(
        error.class() == Unavailable && !format!("{error:?}").contains("pass-word"),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_tls_does_not_vouch_for_is_never_sent_the_token() {
    let server = OpenBao::with(Options { tls: true, ..Options::default() }).await;
    let stranger = OpenBao::with(Options { tls: true, ..Options::default() }).await;
    server.create_key("orders", true).await;
    let (alice, dek) = (context("alice"), a_dek());
    let at = |address: String, ca: std::path::PathBuf| {
        builder(1, server.root_token()).address(address).ca_file(ca).build().unwrap()
    };
    let elsewhere = FaultProxy::start_on([127, 0, 0, 2].into(), server.port());
    at(server.address(), server.ca_file()).wrap(&alice, &dek).await.unwrap();
    for (address, ca, text) in [
        (server.address(), stranger.ca_file(), "invalid peer certificate"),
        // The certificate is not for this name.
        (format!("https://127.0.0.2:{}", elsewhere.port()), server.ca_file(), "not valid for"),
    ] {
        fails(at(address, ca).wrap(&alice, &dek).await, Misconfigured, text);
    }
    // A CA that was named is the only one: the system's roots do not vouch for it either.
    let system = builder(1, server.root_token()).address(server.address()).build().unwrap();
    fails(system.wrap(&alice, &dek).await, Misconfigured, "UnknownIssuer");
    let plain = OpenBao::start().await;
    fails(
        at(plain.address().replace("http", "https"), server.ca_file()).wrap(&alice, &dek).await,
        Unavailable,
        "",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_used_and_a_redirection_leads_to_the_active_node_only_once() {
    let server = OpenBao::start().await;
    server.create_key("orders", true).await;
    let (alice, dek) = (context("alice"), a_dek());
    // A plain proxy for http is asked with the whole URL; here it is the server itself that takes
    // it.
    let proxy = FaultProxy::start(server.port());
    let kek = builder(1, server.root_token())
        .proxy(format!("http://127.0.0.1:{}", proxy.port()))
        .build()
        .unwrap();
    kek.wrap(&alice, &dek).await.unwrap();
    assert!(proxy.requests() >= 3);

    let redirection = |to: String| {
        format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .into_bytes()
    };
    let active = server.address();
    let standby = front(server.port(), move |path| Some(redirection(format!("{active}{path}"))));
    let kek = builder(standby, server.root_token()).build().unwrap();
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    assert_eq!(
        kek.unwrap(&alice, &wrapped).await.unwrap().expose(),
        dek.expose(),
        "the body goes along"
    );

    let further = front(server.port(), move |path| {
        Some(redirection(format!("http://127.0.0.1:{standby}{path}")))
    });
    let kek = builder(further, server.root_token()).build().unwrap();
    fails(kek.read_key().await, Unavailable, "redirection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_may_put_a_path_in_front() {
    let server = OpenBao::start().await;
    server.create_key("orders", false).await;
    // The server knows no such path; that it says so shows where the request went.
    let kek = builder(1, server.root_token())
        .address(format!("{}/gateway/", server.address()))
        .build()
        .unwrap();
    fails(kek.read_key().await, Misconfigured, "(404");
    let kek = builder(1, server.root_token())
        .address(format!("{}/", server.address()))
        .binding(ContextBinding::Unbound)
        .build()
        .unwrap();
    kek.read_key().await.unwrap();
}
