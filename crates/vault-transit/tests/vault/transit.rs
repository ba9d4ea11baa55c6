//! The Vault Transit provider against a real server: keys and bindings, batches, rotation.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};
use waxseal_testing::{fault_proxy, openbao, support};

use fault_proxy::FaultProxy;
use openbao::{OpenBao, Options};
use serde_json::json;
use support::{a_dek, context};
use waxseal::kek::{Health, KekError, KekErrorClass, KekProvider};
use waxseal::{Aad, EncryptionContext, Envelope, ErrorKind, KekId, WrappedDek};
use waxseal_vault_transit::{ContextBinding, VaultAuth, VaultTransitKek, VaultTransitKekBuilder};

// --- keys and bindings

async fn server_with(key: &str, fields: serde_json::Value) -> OpenBao {
    let server = OpenBao::start().await;
    server.put(&format!("transit/keys/{key}"), fields).await;
    server
}

fn as_root(server: &OpenBao, key: &str) -> VaultTransitKekBuilder {
    VaultTransitKek::builder("test", key)
        .address(server.address())
        .auth(VaultAuth::token(server.root_token()))
}

fn class<T>(result: Result<T, KekError>) -> KekErrorClass {
    match result {
        Ok(_) => panic!("succeeded"),
        Err(error) => error.class(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_would_not_bind_the_context_is_refused_until_the_caller_chooses() {
    let server = server_with("plain", json!({})).await;
    let (alice, dek) = (context("alice"), a_dek());
    let undecided = as_root(&server, "plain").build().unwrap();
    let error = undecided.wrap(&alice, &dek).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Misconfigured);
    assert!(error.to_string().contains("derived=true"), "{error}");
    assert_eq!(class(undecided.health().await), KekErrorClass::Misconfigured);

    // What was chosen is what the server enforces.
    for (binding, enforced) in
        [(ContextBinding::AssociatedData, true), (ContextBinding::Unbound, false)]
    {
        let kek = as_root(&server, "plain").binding(binding).build().unwrap();
        let wrapped = kek.wrap(&alice, &dek).await.unwrap();
        let other = kek.unwrap(&context("bob"), &wrapped).await;
        assert_eq!(other.is_err(), enforced, "{binding:?}");
        assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
    }

    // Above the server, the DEK id refuses what an unbound key lets pass.
    let kek = as_root(&server, "plain").binding(ContextBinding::Unbound).build().unwrap();
    let writer = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let sealed = writer.encrypt(&alice, Aad::empty(), b"payload").await.unwrap();
    let reader = Envelope::builder().unwrap_with(kek).build().unwrap();
    assert_eq!(
        reader.decrypt(&context("bob"), Aad::empty(), &sealed).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(&*reader.decrypt(&alice, Aad::empty(), &sealed).await.unwrap(), b"payload");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_derived_key_binds_by_derivation_whatever_was_chosen() {
    let server = server_with("derived", json!({ "derived": true })).await;
    let (alice, dek) = (context("alice"), a_dek());
    for binding in [ContextBinding::AssociatedData, ContextBinding::Unbound] {
        let kek = as_root(&server, "derived").binding(binding).build().unwrap();
        assert!(kek.read_key().await.unwrap().derived);
        let wrapped = kek.wrap(&alice, &dek).await.unwrap();
        assert_eq!(class(kek.unwrap(&context("bob"), &wrapped).await), KekErrorClass::Invalid);
        // The empty context is one of its own, and binds too.
        let empty = EncryptionContext::empty();
        assert_eq!(class(kek.unwrap(&empty, &wrapped).await), KekErrorClass::Invalid);
        let wrapped = kek.wrap(&empty, &dek).await.unwrap();
        assert_eq!(kek.unwrap(&empty, &wrapped).await.unwrap().expose(), dek.expose());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_protect_a_dek_are_refused() {
    let server = OpenBao::start().await;
    for (i, fields) in [
        json!({ "type": "aes128-gcm96", "derived": true }),
        json!({ "type": "rsa-2048" }),
        json!({ "type": "ed25519" }),
        json!({ "derived": true, "convergent_encryption": true }),
    ]
    .into_iter()
    .enumerate()
    {
        server.put(&format!("transit/keys/key-{i}"), fields.clone()).await;
        let kek =
            as_root(&server, &format!("key-{i}")).binding(ContextBinding::Unbound).build().unwrap();
        let result = kek.wrap(&context("alice"), &a_dek()).await;
        assert_eq!(class(result), KekErrorClass::Misconfigured, "{fields}");
    }
    server
        .put("transit/keys/chacha", json!({ "type": "chacha20-poly1305", "derived": true }))
        .await;
    let kek = as_root(&server, "chacha").build().unwrap();
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_made_anew_in_another_form_is_noticed_after_one_failure() {
    let server = server_with("orders", json!({ "derived": true })).await;
    let kek = as_root(&server, "orders").build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    server.put("transit/keys/orders/config", json!({ "deletion_allowed": true })).await;
    assert_eq!(server.ask("DELETE", "transit/keys/orders", json!(null)).await.0, 204);
    server.create_key("orders", false).await;
    // The doubt is allowed once a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(class(kek.unwrap(&alice, &wrapped).await), KekErrorClass::Invalid);
    // The server would ignore the context, so nothing is wrapped under it any more.
    assert_eq!(class(kek.wrap(&alice, &dek).await), KekErrorClass::Misconfigured);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_with_a_key_of_the_same_name_are_kept_apart() {
    let servers = [OpenBao::start().await, OpenBao::start().await];
    let alice = context("alice");
    let mut keks = Vec::new();
    for (server, cluster) in servers.iter().zip(["east", "west"]) {
        server.create_key("orders", true).await;
        let auth = VaultAuth::token(server.root_token());
        keks.push(
            VaultTransitKek::builder(cluster, "orders")
                .address(server.address())
                .auth(auth)
                .build()
                .unwrap(),
        );
    }
    let [east, west] = &keks[..] else { panic!() };
    assert_eq!(east.id().as_str(), "vault:east/transit/orders");
    let writer = Envelope::builder().wrap_with(west.clone()).build().unwrap();
    let sealed = writer.encrypt(&alice, Aad::empty(), b"payload").await.unwrap();
    let foreign = waxseal::inspect(&sealed).unwrap();
    assert_eq!(foreign.keks[0].kek_id.as_str(), "vault:west/transit/orders");

    // The wrong cluster is not asked, so its refusal cannot be believed.
    let only_east = Envelope::builder().unwrap_with(east.clone()).build().unwrap();
    assert_eq!(
        only_east.decrypt(&alice, Aad::empty(), &sealed).await.unwrap_err().kind(),
        ErrorKind::UnknownKek
    );
    let both =
        Envelope::builder().wrap_with(east.clone()).unwrap_with(west.clone()).build().unwrap();
    assert_eq!(&*both.decrypt(&alice, Aad::empty(), &sealed).await.unwrap(), b"payload");

    // Not even directly: a third cluster without such a key would call it deleted, which would end
    // the DEK.
    let dek = a_dek();
    let of_west = west.wrap(&alice, &dek).await.unwrap();
    let auth = VaultAuth::token(servers[0].root_token());
    let third = VaultTransitKek::builder("third", "none")
        .address(servers[0].address())
        .auth(auth)
        .build()
        .unwrap();
    assert_eq!(class(third.unwrap(&alice, &of_west).await), KekErrorClass::Invalid);
    assert_eq!(class(third.rewrap(&alice, &of_west).await), KekErrorClass::Invalid);

    // A message moves to the other cluster without its payload being touched.
    let moved = both.rewrap(&alice, &sealed).await.unwrap();
    assert_eq!(&*only_east.decrypt(&alice, Aad::empty(), &moved).await.unwrap(), b"payload");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_and_another_mount_are_asked_where_they_are() {
    let server = OpenBao::start().await;
    server.put("sys/namespaces/team", json!({})).await;
    server.put("team/sys/mounts/secrets/transit", json!({ "type": "transit" })).await;
    server.put("team/secrets/transit/keys/orders", json!({ "derived": true })).await;
    let (alice, dek) = (context("alice"), a_dek());
    let kek =
        as_root(&server, "orders").namespace("team").mount("secrets/transit").build().unwrap();
    assert_eq!(kek.id().as_str(), "vault:test/secrets/transit/orders");
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    let elsewhere = as_root(&server, "orders").mount("secrets/transit").build().unwrap();
    assert_eq!(
        class(elsewhere.wrap(&alice, &dek).await),
        KekErrorClass::Misconfigured,
        "nothing is mounted there"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_server_takes_as_the_name_of_a_mount_a_key_or_a_namespace_can_be_used() {
    let server = OpenBao::start().await;
    let encoded = |path: &str| {
        let byte = |byte: u8| match byte {
            b'/' => "/".to_owned(),
            _ => format!("%{byte:02x}"),
        };
        path.bytes().map(byte).collect::<String>()
    };
    let (alice, dek) = (context("alice"), a_dek());
    let mut refused = 0;
    for mount in [
        "a/b/transit",
        "transit-v2.1",
        "my transit",
        " a",
        "a ",
        "tränsit",
        "日本",
        "tra\u{308}nsit",
        "a+b",
        "transit@eu",
        "prod:transit",
        "a%2fb",
        "a%b",
        "a?b",
        "a#b",
        "a*b",
        "a~b",
        "a\\b",
        "a\"b",
        "a'b",
        "a;b",
        "a&b=c,d",
        "(a)[b]{c}<d>",
        "a|b^c`d$e!f",
        "-a",
        &*"x".repeat(300),
        "a\tb",
        "a\u{7f}b",
        "a\u{202e}b",
        "a\u{a0}b",
    ] {
        let path = format!("sys/mounts/{}", encoded(mount));
        let is_taken = server.ask("POST", &path, json!({ "type": "transit" })).await.0 == 204;
        let built = as_root(&server, "orders").mount(mount).build();
        assert_eq!(built.is_ok(), is_taken, "{mount:?}");
        refused += usize::from(!is_taken);
        let Ok(kek) = built else { continue };
        server.put(&format!("{}/keys/orders", encoded(mount)), json!({ "derived": true })).await;
        let wrapped = kek.wrap(&alice, &dek).await.unwrap();
        let rewrapped = kek.rewrap(&alice, &wrapped).await.unwrap();
        assert_eq!(
            kek.unwrap(&alice, &rewrapped).await.unwrap().expose(),
            dek.expose(),
            "{mount:?}"
        );
        let (made, wrapped) = kek.generate(&alice).await.unwrap();
        assert_eq!(
            kek.unwrap(&alice, &wrapped).await.unwrap().expose(),
            made.expose(),
            "{mount:?}"
        );
        assert_eq!(kek.id().as_str(), format!("vault:test/{mount}/orders"));
    }
    assert_eq!(refused, 4, "the server was asked about those too");

    for key in ["a.b", "a..b", "a_b", "_ab", "ab_", "A-1", "1", &*"k".repeat(300)] {
        server.create_key(key, true).await;
        let kek = as_root(&server, key).build().unwrap();
        kek.unwrap(&alice, &kek.wrap(&alice, &dek).await.unwrap()).await.unwrap();
    }
    for namespace in ["ä", "a@b", "a:b", "A~b", "a.b"] {
        let at = encoded(namespace);
        server.put(&format!("sys/namespaces/{at}"), json!({})).await;
        server.put(&format!("{at}/sys/mounts/my%20transit"), json!({ "type": "transit" })).await;
        server.put(&format!("{at}/my%20transit/keys/orders"), json!({ "derived": true })).await;
        let kek =
            as_root(&server, "orders").namespace(namespace).mount("my transit").build().unwrap();
        kek.unwrap(&alice, &kek.wrap(&alice, &dek).await.unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_says_what_its_key_enforces_before_and_after_it_was_read() {
    use waxseal::kek::ContextBinding::{Checked, Enforced};
    let server = OpenBao::start().await;
    server.create_key("derived", true).await;
    server.create_key("plain", false).await;
    let (associated, unbound) = (ContextBinding::AssociatedData, ContextBinding::Unbound);
    for (key, chosen, before, after) in [
        ("derived", None, (Enforced, true), (Enforced, true)),
        ("derived", Some(associated), (Enforced, false), (Enforced, true)),
        ("derived", Some(unbound), (Checked, true), (Enforced, true)),
        ("plain", Some(associated), (Enforced, false), (Enforced, false)),
        ("plain", Some(unbound), (Checked, true), (Checked, true)),
    ] {
        let builder = as_root(&server, key);
        let kek = match chosen {
            Some(chosen) => builder.binding(chosen).build().unwrap(),
            None => builder.build().unwrap(),
        };
        let says = || (kek.context_binding(), kek.rewraps_in_service());
        assert_eq!(says(), before, "{key}, {chosen:?}");
        let wrapped = kek.wrap(&context("alice"), &a_dek()).await.unwrap();
        assert_eq!(says(), after, "{key}, {chosen:?}");
        // And so it is.
        let released = kek.unwrap(&context("bob"), &wrapped).await.is_ok();
        assert_eq!(released, after.0 == Checked, "{key}, {chosen:?}");
    }
}

// --- batches

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_one_request_and_a_large_one_a_few() {
    let server = server_with("orders", json!({ "derived": true })).await;
    let proxy = FaultProxy::start(server.port());
    let kek = as_root(&server, "orders")
        .address(format!("http://127.0.0.1:{}", proxy.port()))
        .build()
        .unwrap();
    kek.read_key().await.unwrap();
    let alice = context("alice");
    for (len, requests) in [(1, 1), (2, 1), (128, 1), (129, 2), (700, 6)] {
        let deks: Vec<_> = (0..len).map(|_| a_dek()).collect();
        let items: Vec<_> = deks.iter().map(|dek| (&alice, dek)).collect();
        let before = proxy.requests();
        let wrapped: Vec<_> = kek.wrap_many(&items).await.into_iter().map(Result::unwrap).collect();
        let items: Vec<_> = wrapped.iter().map(|wrapped| (&alice, wrapped)).collect();
        let rewrapped: Vec<_> =
            kek.rewrap_many(&items).await.into_iter().map(Result::unwrap).collect();
        let items: Vec<_> = rewrapped.iter().map(|wrapped| (&alice, wrapped)).collect();
        let unwrapped: Vec<_> =
            kek.unwrap_many(&items).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(proxy.requests() - before, 3 * requests, "{len} items");
        assert!(
            unwrapped.iter().zip(&deks).all(|(unwrapped, dek)| unwrapped.expose() == dek.expose())
        );
    }
    // The largest contexts too.
    let values = ["a".repeat(4000), "b".repeat(4000)];
    let large = EncryptionContext::new([("a", &values[0]), ("b", &values[1])]).unwrap();
    let deks: Vec<_> = (0..300).map(|_| a_dek()).collect();
    let items: Vec<_> = deks.iter().map(|dek| (&large, dek)).collect();
    assert!(kek.wrap_many(&items).await.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_as_a_whole_fails_every_item_alike() {
    let server = server_with("orders", json!({ "derived": true })).await;
    let kek = as_root(&server, "orders").build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    server.ask("DELETE", "sys/mounts/transit", json!(null)).await;
    let results = kek.unwrap_many(&[(&alice, &wrapped), (&alice, &wrapped)]).await;
    assert_eq!(results.len(), 2);
    for result in results {
        assert_eq!(class(result), KekErrorClass::Misconfigured);
    }
    // What can be refused without asking is refused for what it is.
    let foreign = WrappedDek::new(KekId::new("local:a").unwrap(), wrapped.wrapped()).unwrap();
    let results = kek.unwrap_many(&[(&alice, &foreign), (&alice, &wrapped)]).await;
    let classes: Vec<_> = results.into_iter().map(class).collect();
    assert_eq!(classes, [KekErrorClass::Invalid, KekErrorClass::Misconfigured]);
}

// --- versions

#[tokio::test(flavor = "multi_thread")]
async fn a_service_sees_a_rotation_without_a_restart_and_says_so_without_a_call() {
    let server = server_with("orders", json!({ "derived": true })).await;
    let proxy = FaultProxy::start(server.port());
    let builder = as_root(&server, "orders").key_max_age(Duration::from_millis(100));
    let kek = builder.address(format!("http://127.0.0.1:{}", proxy.port())).build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let old = kek.wrap(&alice, &dek).await.unwrap();
    assert!(kek.is_current(&old) == Some(true));
    server.rotate("orders").await;
    // Asking is what makes it read the key again; nobody else calls.
    let deadline = Instant::now() + Duration::from_secs(20);
    while kek.is_current(&old) != Some(false) {
        assert!(Instant::now() < deadline, "the rotation is not seen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let quiet = as_root(&server, "orders")
        .address(format!("http://127.0.0.1:{}", proxy.port()))
        .build()
        .unwrap();
    assert_eq!(quiet.read_key().await.unwrap().latest_version, 2);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = proxy.requests();
    for _ in 0..1000 {
        assert!(quiet.is_current(&old) == Some(false));
    }
    assert_eq!(proxy.requests(), before);

    let new = quiet.rewrap(&alice, &old).await.unwrap();
    assert!(quiet.is_current(&new) == Some(true) && new.wrapped().starts_with(b"vault:v2:"));
    assert_eq!(quiet.unwrap(&alice, &new).await.unwrap().expose(), dek.expose());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_no_longer_allowed_is_denied_and_rewrapped_ones_live_on() {
    let server = server_with("orders", json!({ "derived": true })).await;
    let kek = as_root(&server, "orders").build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let old = kek.wrap(&alice, &dek).await.unwrap();
    server.rotate("orders").await;
    let new = kek.rewrap(&alice, &old).await.unwrap();
    server.put("transit/keys/orders/config", json!({ "min_decryption_version": 2 })).await;
    assert_eq!(class(kek.unwrap(&alice, &old).await), KekErrorClass::Denied);
    assert_eq!(class(kek.rewrap(&alice, &old).await), KekErrorClass::Denied);
    assert_eq!(kek.unwrap(&alice, &new).await.unwrap().expose(), dek.expose());
    let results = kek.unwrap_many(&[(&alice, &old), (&alice, &new)]).await;
    assert!(matches!(&results[..], [Err(error), Ok(_)] if error.class() == KekErrorClass::Denied));
    assert_eq!(kek.read_key().await.unwrap().min_decryption_version, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_service_makes_deks_where_it_is_asked_to() {
    let server = server_with("orders", json!({ "derived": true })).await;
    let proxy = FaultProxy::start(server.port());
    let kek = as_root(&server, "orders")
        .address(format!("http://127.0.0.1:{}", proxy.port()))
        .build()
        .unwrap();
    kek.read_key().await.unwrap();
    let envelope = Envelope::builder()
        .wrap_with(kek.clone())
        .dek_origin(waxseal::DekOrigin::KeyService)
        .build()
        .unwrap();
    let before = proxy.requests();
    let sealed = envelope.encrypt(&context("alice"), Aad::empty(), b"payload").await.unwrap();
    assert_eq!(proxy.requests(), before + 1, "one datakey");
    let reader = Envelope::builder().unwrap_with(kek).build().unwrap();
    assert_eq!(
        &*reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap(),
        b"payload"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrap_brings_no_dek_into_the_process_where_the_policy_does_not_allow_decryption() {
    let server = server_with("orders", json!({ "derived": true })).await;
    let writer = as_root(&server, "orders").build().unwrap();
    let envelope = Envelope::builder().wrap_with(writer.clone()).build().unwrap();
    let alice = context("alice");
    let sealed = envelope.encrypt(&alice, Aad::empty(), b"payload").await.unwrap();
    server.rotate("orders").await;
    let policy = "path \"transit/rewrap/orders\" { capabilities = [\"update\"] }\npath \
        \"transit/keys/orders\" { capabilities = [\"read\"] }";
    server.put("sys/policies/acl/rewrap", json!({ "policy": policy })).await;
    let token = server.token(json!({ "policies": ["rewrap"] })).await;
    let builder = VaultTransitKek::builder("test", "orders").address(server.address());
    let kek = builder.auth(VaultAuth::token(token)).build().unwrap();
    kek.read_key().await.unwrap();
    let rewrapper = Envelope::builder().wrap_with(kek).build().unwrap();
    assert!(rewrapper.needs_rewrap(&sealed).unwrap());
    assert_eq!(
        rewrapper.decrypt(&alice, Aad::empty(), &sealed).await.unwrap_err().kind(),
        ErrorKind::Denied
    );
    let rewrapped = rewrapper.rewrap_unverified(&alice, &sealed).await.unwrap();
    assert!(!rewrapper.needs_rewrap(&rewrapped).unwrap());
    assert_eq!(&*envelope.decrypt(&alice, Aad::empty(), &rewrapped).await.unwrap(), b"payload");
}

#[test]
fn it_serves_another_executor_as_long_as_its_runtime_lives() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (server, kek) = runtime.block_on(async {
        let server = server_with("orders", json!({ "derived": true })).await;
        let kek = as_root(&server, "orders").build().unwrap();
        (server, kek)
    });
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = support::block_on(kek.wrap(&alice, &dek)).unwrap();
    assert_eq!(support::block_on(kek.unwrap(&alice, &wrapped)).unwrap().expose(), dek.expose());
    runtime.shutdown_background();
    assert_eq!(class(support::block_on(kek.unwrap(&alice, &wrapped))), KekErrorClass::Unavailable);
    drop(server);
}

// --- what an operator sees

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_shows_who_used_which_key_and_neither_dek_nor_context() {
    let server = OpenBao::with(Options { durable: true, audit: true, ..Options::default() }).await;
    server.create_key("orders", true).await;
    let kek = as_root(&server, "orders").build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    kek.unwrap(&alice, &wrapped).await.unwrap();
    kek.rewrap(&alice, &wrapped).await.unwrap();
    let (made, _) = kek.generate(&alice).await.unwrap();
    kek.unwrap_many(&[(&alice, &wrapped), (&alice, &wrapped)]).await;

    let log = std::fs::read_to_string(server.audit_file()).unwrap();
    let paths: Vec<String> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|entry| entry["type"] == "request")
        .map(|entry| entry["request"]["path"].as_str().unwrap().to_owned())
        .filter(|path| path.starts_with("transit/") && path.ends_with("/orders"))
        .collect();
    let expected = ["keys", "keys", "encrypt", "decrypt", "rewrap", "datakey/plaintext", "decrypt"];
    assert_eq!(
        paths,
        expected.map(|verb| format!("transit/{verb}/orders")),
        "made, read, and one entry for each call"
    );
    let base64 = |bytes: &[u8]| data_encoding::BASE64.encode(bytes);
    for secret in [base64(dek.expose()), base64(made.expose()), base64(alice.as_bytes())] {
        assert!(!log.contains(&secret));
    }
    assert!(log.contains("hmac-sha256:"));
    assert!(!log.contains(server.root_token()));
}
