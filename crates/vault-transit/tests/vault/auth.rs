//! Who the provider is to a real server: every way to log in, tokens that end, are renewed,
//! replaced, revoked.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use waxseal_testing::{fault_proxy, openbao, support};

use data_encoding::BASE64URL_NOPAD;
use fault_proxy::{Fault, FaultProxy};
use openbao::{OpenBao, Options};
use serde_json::{Value, json};
use support::{a_dek, context};
use waxseal::kek::KekErrorClass::{Denied, Misconfigured, Unavailable};
use waxseal::kek::{Health, KekError, KekErrorClass, KekProvider};
use waxseal_vault_transit::{VaultAuth, VaultTransitKek, VaultTransitKekBuilder};

/// A server with the key `orders` and the smallest policy for it.
async fn server(options: Options) -> OpenBao {
    let server = OpenBao::with(options).await;
    server.create_key("orders", true).await;
    server.policy("orders", "orders").await;
    server
}

fn at(port: u16, auth: VaultAuth) -> VaultTransitKek {
    build(
        VaultTransitKek::builder("test", "orders").address(format!("http://127.0.0.1:{port}")),
        auth,
    )
}

fn build(builder: VaultTransitKekBuilder, auth: VaultAuth) -> VaultTransitKek {
    builder.auth(auth).build().unwrap()
}

async fn works(kek: &VaultTransitKek) -> Result<(), KekError> {
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await?;
    let unwrapped = kek.unwrap(&alice, &wrapped).await?;
    assert_eq!(unwrapped.expose(), dek.expose());
    Ok(())
}

#[track_caller]
fn fails(result: Result<(), KekError>, class: KekErrorClass, text: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.class(), class, "{error}");
    assert!(error.to_string().contains(text), "{error}, without {text:?}");
}

/// How often a login method was asked, by the server's own log.
fn count_in(log: &str, path: &str) -> usize {
    let of_path = |line: &&str| {
        let entry: Value = serde_json::from_str(line).unwrap();
        entry["type"] == "request" && entry["request"]["path"] == path
    };
    log.lines().filter(of_path).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_serves_until_it_is_revoked_and_then_an_operator_has_to_act() {
    let server = server(Options::default()).await;
    for fields in [
        json!({ "policies": ["orders"] }),
        json!({ "policies": ["orders"], "type": "batch", "ttl": "1h" }),
        // It may not even look itself up.
        json!({ "policies": ["orders"], "no_default_policy": true }),
    ] {
        let token = server.token(fields.clone()).await;
        let kek = at(server.port(), VaultAuth::token(&*token));
        works(&kek).await.unwrap();
        if fields["type"] != "batch" {
            server.revoke(&token).await;
            fails(works(&kek).await, Misconfigured, "has ended or was revoked");
            fails(works(&kek).await, Misconfigured, "has ended or was revoked");
        }
    }
    fails(
        works(&at(server.port(), VaultAuth::token("s.nonsense"))).await,
        Misconfigured,
        "has ended or was revoked",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_is_read_again_when_its_token_is_refused() {
    let server = server(Options::default()).await;
    let first = server.token(json!({ "policies": ["orders"] })).await;
    let path = server.file("token", format!("{first}\n"));
    let kek = at(server.port(), VaultAuth::token_file(&path));
    works(&kek).await.unwrap();
    server.revoke(&first).await;
    fails(works(&kek).await, Misconfigured, "has ended or was revoked");
    fs::write(&path, server.token(json!({ "policies": ["orders"] })).await).unwrap();
    works(&kek).await.unwrap();

    for content in ["", "\n", "two words", "two\nlines", &"x".repeat(70_000)] {
        let path = server.file("bad", content);
        fails(works(&at(server.port(), VaultAuth::token_file(path))).await, Misconfigured, "bad");
    }
    fails(
        works(&at(server.port(), VaultAuth::token_file("no-such-file"))).await,
        Misconfigured,
        "no-such-file",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_new_token_is_taken_over_before_the_old_one_ends() {
    let server = server(Options::default()).await;
    let of_two_seconds = json!({ "policies": ["orders"], "ttl": "2s", "explicit_max_ttl": "2s" });
    let path = server.file("token", server.token(of_two_seconds.clone()).await);
    let kek = at(server.port(), VaultAuth::token_file(&path));
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        // What an agent does: a new token in time.
        fs::write(&path, server.token(of_two_seconds.clone()).await).unwrap();
        works(&kek).await.unwrap();
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn app_role_logs_in_once_for_all_and_once_more_when_its_token_is_revoked() {
    let server = server(Options { durable: true, audit: true, ..Options::default() }).await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let path = server.file("secret-id", &secret_id);
    let kek = at(server.port(), VaultAuth::app_role(role_id).secret_id_file(&path));
    let logins =
        || count_in(&fs::read_to_string(server.audit_file()).unwrap(), "auth/approle/login");
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let kek = kek.clone();
            tokio::spawn(async move { works(&kek).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(logins(), 1);
    assert_eq!(
        count_in(&fs::read_to_string(server.audit_file()).unwrap(), "transit/keys/orders"),
        1 + 1,
        "made, and read"
    );

    // All its tokens at once, under load; and another secret id in the file.
    server
        .ask(
            "POST",
            "auth/approle/role/orders/secret-id/destroy",
            json!({ "secret_id": secret_id }),
        )
        .await;
    fs::write(&path, server.secret_id().await).unwrap();
    server.put("sys/leases/revoke-prefix/auth/approle", json!({})).await;
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let kek = kek.clone();
            tokio::spawn(async move { works(&kek).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(logins(), 2);

    // The policy: one more login, then the answer stands.
    server
        .put(
            "sys/policies/acl/orders",
            json!({ "policy": "path \"other\" { capabilities = [\"read\"] }" }),
        )
        .await;
    for _ in 0..5 {
        fails(works(&kek).await, Denied, "(403");
    }
    assert_eq!(logins(), 3);
    server.policy("orders", "orders").await;
    works(&kek).await.unwrap();
    assert_eq!(logins(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_refused_is_misconfigured_and_one_that_fails_is_unavailable() {
    let server = server(Options { durable: true, ..Options::default() }).await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let wrong = VaultAuth::app_role(&*role_id).secret_id("wrong");
    fails(works(&at(server.port(), wrong)).await, Misconfigured, "invalid role or secret ID");
    let unknown = VaultAuth::app_role("nobody").secret_id(&*secret_id);
    fails(works(&at(server.port(), unknown)).await, Misconfigured, "login (AppRole)");
    let elsewhere = VaultAuth::app_role(&*role_id).secret_id(&*secret_id).mount("roles");
    fails(works(&at(server.port(), elsewhere)).await, Misconfigured, "login (AppRole)");
    let no_file = VaultAuth::app_role(&*role_id).secret_id_file("no-such-file");
    fails(works(&at(server.port(), no_file)).await, Misconfigured, "no-such-file");

    let kek = at(server.port(), VaultAuth::app_role(role_id).secret_id(secret_id));
    server.seal().await;
    fails(works(&kek).await, Unavailable, "sealed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_cannot_be_renewed_is_replaced_in_time() {
    let server = server(Options { durable: true, audit: true, ..Options::default() }).await;
    let (role_id, secret_id) = server.app_role("2s", "2s").await;
    let role = json!({ "token_policies": ["orders"], "token_type": "batch", "token_ttl": "2s" });
    server.put("auth/approle/role/orders", role).await;
    let kek = at(server.port(), VaultAuth::app_role(role_id).secret_id(secret_id));
    let end = Instant::now() + Duration::from_secs(7);
    let mut calls = 0;
    while Instant::now() < end {
        works(&kek).await.unwrap();
        calls += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let log = fs::read_to_string(server.audit_file()).unwrap();
    let logins = count_in(&log, "auth/approle/login");
    println!("{calls} round trips, {logins} logins");
    assert!((4..=10).contains(&logins), "{logins}");
    let login = kek.login().unwrap();
    assert_eq!(login.logins, u64::try_from(logins).unwrap(), "as the server counts them");
    assert_eq!(login.failures, 0);
    assert!(login.ends_in.unwrap() <= Duration::from_secs(2), "{login:?}");
    assert_eq!(count_in(&log, "auth/token/renew-self"), 0, "nothing to renew");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_provider_keeps_its_token_and_a_dropped_one_does_not() {
    let server = server(Options { durable: true, audit: true, ..Options::default() }).await;
    let (role_id, secret_id) = server.app_role("2s", "1h").await;
    let kek = at(server.port(), VaultAuth::app_role(role_id).secret_id(secret_id));
    works(&kek).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    works(&kek).await.unwrap();
    let log = || fs::read_to_string(server.audit_file()).unwrap();
    assert_eq!(count_in(&log(), "auth/approle/login"), 1);
    let renewals = count_in(&log(), "auth/token/renew-self");
    assert!(renewals >= 3, "{renewals}");
    drop(kek);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let renewals = count_in(&log(), "auth/token/renew-self");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(count_in(&log(), "auth/token/renew-self"), renewals);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_that_a_token_cannot_be_kept_alive_while_it_still_serves() {
    let server = server(Options::default()).await;
    let token =
        server.token(json!({ "policies": ["orders"], "ttl": "6s", "renewable": false })).await;
    let kek = at(server.port(), VaultAuth::token(token));
    works(&kek).await.unwrap();
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    tokio::time::sleep(Duration::from_millis(4500)).await;
    let health = kek.health().await.unwrap();
    assert!(
        matches!(&health, Health::Degraded(why) if why.contains("cannot be renewed")),
        "{health:?}"
    );
    works(&kek).await.unwrap();
    let login = kek.login().unwrap();
    assert!(login.failures >= 1 && login.ends_in.unwrap() < Duration::from_secs(2), "{login:?}");
    kek.close().await;
    assert_eq!(kek.login().unwrap().ends_in, None, "there is no token any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_wait_for_one_login_share_its_failure() {
    let server = server(Options::default()).await;
    let proxy = FaultProxy::start(server.port());
    let token = server.token(json!({ "policies": ["orders"] })).await;
    let builder = VaultTransitKek::builder("test", "orders")
        .address(format!("http://127.0.0.1:{}", proxy.port()));
    let kek = build(builder.timeout(Duration::from_secs(1)), VaultAuth::token(token));
    proxy.set(Fault::Silence);
    let start = Instant::now();
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let kek = kek.clone();
            tokio::spawn(async move { works(&kek).await })
        })
        .collect();
    for call in calls {
        fails(call.await.unwrap(), Unavailable, "no answer in time");
    }
    let login = kek.login().unwrap();
    assert!(login.logins == 0 && login.failures >= 1, "{login:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "one after the other would take 50 s");
    proxy.set(Fault::None);
    proxy.cut();
    works(&kek).await.unwrap();
}

// --- Kubernetes

/// The part of the Kubernetes API that a login needs: TokenReview. Counts what it is asked.
fn token_review() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !request.ends_with(b"}") && !request.ends_with(b"}\n") {
                match stream.read(&mut buffer) {
                    Ok(len @ 1..) => request.extend_from_slice(&buffer[..len]),
                    _ => break,
                }
            }
            count.fetch_add(1, Ordering::SeqCst);
            let user = json!({
                "username": "system:serviceaccount:shop:orders",
                "uid": "17",
                "groups": ["system:serviceaccounts"],
            });
            let body = json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                "status": { "authenticated": true, "user": user, "audiences": ["vault"] },
            })
            .to_string();
            let head = format!(
                "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nConnection: \
                    close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    (port, asked)
}

fn service_account_token(serial: usize) -> String {
    let part = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let account = json!({ "name": "orders", "uid": "17" });
    let claims = json!({
        "iss": "kubernetes/serviceaccount",
        "sub": "system:serviceaccount:shop:orders",
        "exp": 4_000_000_000_u64,
        "iat": 1_700_000_000,
        "nbf": 1_700_000_000,
        "jti": serial.to_string(),
        "aud": ["vault"], "kubernetes.io": { "namespace": "shop", "serviceaccount": account },
    });
    format!(
        "{}.{}.{}",
        part(json!({ "alg": "RS256", "kid": "k" })),
        part(claims),
        BASE64URL_NOPAD.encode(&[7; 256])
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_logs_in_with_the_service_accounts_token_of_the_moment() {
    let server = server(Options::default()).await;
    let (port, asked) = token_review();
    server.put("sys/auth/kubernetes", json!({ "type": "kubernetes" })).await;
    server.put("sys/mounts/pki", json!({ "type": "pki" })).await;
    let ca = server.put("pki/root/generate/internal", json!({ "common_name": "ca" })).await;
    let config = json!({
        "kubernetes_ca_cert": ca["data"]["certificate"],
        "kubernetes_host": format!("http://127.0.0.1:{port}"),
        "disable_local_ca_jwt": true,
        "token_reviewer_jwt": service_account_token(0),
    });
    server.put("auth/kubernetes/config", config).await;
    let role = json!({
        "bound_service_account_names": "orders",
        "bound_service_account_namespaces": "shop",
        "token_policies": ["orders"],
        "token_ttl": "1h",
    });
    server.put("auth/kubernetes/role/orders", role).await;
    let path = server.file("jwt", service_account_token(1));
    let kek = at(server.port(), VaultAuth::kubernetes("orders").jwt_file(&path));
    works(&kek).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    // The kubelet replaces the token; the next login takes the new one.
    fs::write(&path, "no token any more").unwrap();
    server.put("sys/leases/revoke-prefix/auth/kubernetes", json!({})).await;
    fails(works(&kek).await, Misconfigured, "login (Kubernetes)");
    fs::write(&path, service_account_token(2)).unwrap();
    works(&kek).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 2);

    let nobody = at(server.port(), VaultAuth::kubernetes("nobody").jwt_file(&path));
    fails(works(&nobody).await, Misconfigured, "login (Kubernetes)");
}

// --- certificates

/// A CA on the server, as PEM, and certificates of its by their common names, in files.
async fn authority<const N: usize>(
    server: &OpenBao,
    ca: &str,
    names: [&str; N],
) -> (String, [(PathBuf, PathBuf); N]) {
    server.put(&format!("sys/mounts/{ca}"), json!({ "type": "pki" })).await;
    let root = json!({ "common_name": ca, "ttl": "24h" });
    let root = server.put(&format!("{ca}/root/generate/internal"), root).await;
    let role = json!({
        "allow_any_name": true, "enforce_hostnames": false, "client_flag": true, "max_ttl": "1h",
    });
    server.put(&format!("{ca}/roles/services"), role).await;
    let mut files = Vec::new();
    for name in names {
        let leaf = json!({ "common_name": name });
        let leaf = server.put(&format!("{ca}/issue/services"), leaf).await;
        let text = |field: &str| leaf["data"][field].as_str().unwrap();
        files.push((
            server.file(&format!("{ca}-{name}.pem"), text("certificate")),
            server.file(&format!("{ca}-{name}.key"), text("private_key")),
        ));
    }
    let root = root["data"]["certificate"].as_str().unwrap().to_owned();
    (root, files.try_into().unwrap())
}

/// What the server keeps of the tokens that it gave for a certificate: role and common name.
async fn tokens_for_certificates(server: &OpenBao) -> Vec<(String, String)> {
    let (_, accessors) = server.ask("LIST", "auth/token/accessors", Value::Null).await;
    let mut tokens = Vec::new();
    for accessor in accessors["data"]["keys"].as_array().unwrap() {
        let token = json!({ "accessor": accessor });
        let token = server.put("auth/token/lookup-accessor", token).await;
        if token["data"]["path"] == "auth/cert/login" {
            let text = |field: &str| token["data"]["meta"][field].as_str().unwrap().to_owned();
            tokens.push((text("cert_name"), text("common_name")));
        }
    }
    tokens
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_certificate_that_is_configured_logs_in_and_no_other_one_and_none_does_not() {
    let server = server(Options { tls: true, ..Options::default() }).await;
    let (root, [orders, stock]) = authority(&server, "pki", ["orders", "stock"]).await;
    let (_, [foreign]) = authority(&server, "foreign", ["orders"]).await;
    server.put("sys/auth/cert", json!({ "type": "cert" })).await;
    for name in ["orders", "stock"] {
        let role = json!({
            "certificate": root,
            "allowed_common_names": name,
            "token_policies": if name == "orders" { "orders" } else { "default" },
            "token_ttl": "1h",
        });
        server.put(&format!("auth/cert/certs/{name}"), role).await;
    }
    let builder = || {
        VaultTransitKek::builder("test", "orders")
            .address(server.address())
            .ca_file(server.ca_file())
    };
    let with = |(certificate, key): &(PathBuf, PathBuf), auth: VaultAuth| {
        build(builder().client_certificate(certificate, key), auth)
    };

    // The server says whose certificate it saw.
    let kek = with(&orders, VaultAuth::certificate());
    works(&kek).await.unwrap();
    let is_orders = ("orders".to_owned(), "orders".to_owned());
    assert_eq!(tokens_for_certificates(&server).await, [is_orders]);
    works(&with(&orders, VaultAuth::certificate().certificate_role("orders"))).await.unwrap();

    // Another one of the same CA is another service, with that service's policy.
    let kek = with(&stock, VaultAuth::certificate());
    fails(works(&kek).await, Denied, "permission denied");
    let is_stock = ("stock".to_owned(), "stock".to_owned());
    assert!(tokens_for_certificates(&server).await.contains(&is_stock));
    for (certificate, role) in [(&orders, "stock"), (&stock, "orders"), (&orders, "others")] {
        let kek = with(certificate, VaultAuth::certificate().certificate_role(role));
        fails(works(&kek).await, Misconfigured, "login (certificate)");
    }
    let kek = with(&foreign, VaultAuth::certificate());
    fails(works(&kek).await, Misconfigured, "login (certificate)");

    // Without one the server refuses, and so does the provider.
    let (status, answer) = server.ask("POST", "auth/cert/login", json!({})).await;
    assert_eq!(status, 400, "{answer}");
    let error = builder().auth(VaultAuth::certificate()).build().unwrap_err();
    assert!(error.to_string().contains("client_certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_credential_is_in_any_debug_text_or_error() {
    let server = server(Options::default()).await;
    let token = server.token(json!({ "policies": ["orders"] })).await;
    let jwt = server.file("jwt", "secret-jwt-text");
    for auth in [
        VaultAuth::token(&*token),
        VaultAuth::app_role("role-id-text").secret_id("secret-id-text"),
        VaultAuth::kubernetes("orders").jwt_file(jwt),
    ] {
        let mut texts = format!("{auth:?}");
        let builder =
            VaultTransitKek::builder("test", "orders").address(server.address()).auth(auth);
        texts += &format!("{builder:?}");
        let kek = builder.build().unwrap();
        texts += &format!("{kek:?}");
        server.revoke(&token).await;
        let error = works(&kek).await.unwrap_err();
        texts += &format!("{error} {error:?}");
        for secret in [&*token, "secret-id-text", "secret-jwt-text"] {
            assert!(!texts.contains(secret), "{texts}");
        }
    }
}
