//! The key manager behind the proxy: its keys, its versions, its faults.

use super::*;

#[tokio::test]
async fn metadata_say_what_the_key_is_what_it_is_for_and_whether_it_is_enabled() {
    let Ground { server, proxy, kms } = Ground::start().await;
    let both =
        json!({ "keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT"], "keyStatus": "ENABLED" });
    assert_eq!(kms.describe(KEY).await.good(), both);
    let key = proxy.key(KEY);
    key.disable();
    assert_eq!(kms.describe(KEY).await.good()["keyStatus"], "DISABLED");
    assert_eq!(kms.encrypt(KEY, DEK, None).await.error(), ErrorName::InvalidState);
    key.enable();
    key.restrict(false, true);
    assert_eq!(kms.describe(KEY).await.good()["keyUsage"], json!(["DECRYPT"]));
    assert_eq!(kms.encrypt(KEY, DEK, None).await.error(), ErrorName::InvalidKeyUsage);
    key.restrict(true, true);
    assert_eq!(kms.describe(KEY).await.good(), both);
    // Keys of Transit that KMS cannot use.
    for (name, kind) in
        [("chacha", "chacha20-poly1305"), ("small", "aes128-gcm96"), ("sign", "ed25519")]
    {
        server.put(&format!("transit/keys/{name}"), json!({ "type": kind })).await;
        assert_ne!(kms.describe(name).await.good()["keySpec"], "AES_256");
        assert_eq!(
            kms.encrypt(name, DEK, None).await.error(),
            ErrorName::InvalidKeyUsage,
            "{kind}"
        );
    }
    server.create_key("derived", true).await;
    assert_eq!(kms.describe("derived").await.good()["keyUsage"], json!([]));
    assert_eq!(kms.encrypt("derived", DEK, None).await.error(), ErrorName::InvalidKeyUsage);
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    assert_eq!(kms.decrypt("derived", &encrypted, None).await.error(), ErrorName::InvalidKeyUsage);
    // A key that is gone, or never was: for the key of the health check, too, since it is none of
    // KMS's.
    for id in ["no-such-key", xks_proxy::transit::HEALTH_KEY] {
        assert_eq!(kms.describe(id).await.error(), ErrorName::KeyNotFound);
        assert_eq!(kms.encrypt(id, DEK, None).await.error(), ErrorName::KeyNotFound);
        assert_eq!(kms.decrypt(id, &encrypted, None).await.error(), ErrorName::KeyNotFound);
    }
    server.ask("DELETE", &format!("transit/keys/{KEY}/soft-delete"), Value::Null).await;
    assert_eq!(kms.describe(KEY).await.good()["keyStatus"], "DISABLED");
    assert_eq!(kms.encrypt(KEY, DEK, None).await.error(), ErrorName::InvalidState);
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::InvalidState);
}

#[tokio::test]
async fn an_old_key_version_still_decrypts_until_the_operator_forbids_it() {
    let Ground { server, proxy: _proxy, kms } = Ground::start().await;
    let old = kms.encrypt(KEY, DEK, Some(b"a")).await.good();
    for _ in 0..299 {
        server.rotate(KEY).await;
    }
    let new = kms.encrypt(KEY, DEK, Some(b"a")).await.good();
    assert_eq!(field(&old, "ciphertextMetadata"), [1, 0, 0, 0, 1]);
    assert_eq!(field(&new, "ciphertextMetadata"), [1, 0, 0, 1, 44], "version 300");
    for encrypted in [&old, &new] {
        assert_eq!(kms.decrypt(KEY, encrypted, Some(b"a")).await.plaintext(), DEK);
    }
    let swapped = with(&old, "ciphertextMetadata", &field(&new, "ciphertextMetadata"));
    assert_eq!(kms.decrypt(KEY, &swapped, Some(b"a")).await.error(), ErrorName::InvalidCiphertext);
    server.put(&format!("transit/keys/{KEY}/config"), json!({ "min_decryption_version": 2 })).await;
    assert_eq!(kms.decrypt(KEY, &old, Some(b"a")).await.error(), ErrorName::InvalidState);
    assert_eq!(kms.decrypt(KEY, &new, Some(b"a")).await.plaintext(), DEK);
}

#[tokio::test]
async fn what_the_key_manager_lacks_is_no_fault_of_the_caller() {
    let mut ground = Ground::over(
        OpenBao::with(openbao::Options { durable: true, ..Default::default() }).await,
        None,
    )
    .await;
    let kms = ground.kms.clone();
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();

    // A rate limit of the server, for its mount.
    let quota = json!({ "path": "transit/", "rate": 1, "interval": "1h" });
    ground.server.put("sys/quotas/rate-limit/transit", quota).await;
    let mut last = kms.decrypt(KEY, &encrypted, None).await;
    for _ in 0..3 {
        last = kms.decrypt(KEY, &encrypted, None).await;
    }
    assert_eq!(last.error(), ErrorName::Throttling);
    ground.server.ask("DELETE", "sys/quotas/rate-limit/transit", Value::Null).await;
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK);

    // Down, and back with the keys that it had.
    ground.server.kill();
    for answer in
        [kms.decrypt(KEY, &encrypted, None).await, kms.describe(KEY).await, kms.health().await]
    {
        assert_eq!(answer.error(), ErrorName::Internal);
    }
    assert!(ground.last_call().reason.contains("cannot be reached"), "{:?}", ground.last_call());
    ground.server.restart().await;
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK);
    kms.health().await.good();

    // The key for health checks is gone: nothing says any longer that the next request would
    // succeed.
    let health_key = format!("transit/keys/{}", xks_proxy::transit::HEALTH_KEY);
    ground.server.put(&format!("{health_key}/config"), json!({ "deletion_allowed": true })).await;
    ground.server.ask("DELETE", &health_key, Value::Null).await;
    let answer = kms.health().await;
    assert_ne!(answer.status, 200, "{answer:?}");
    ground.server.put(&health_key, json!({})).await;
    kms.health().await.good();

    // The engine is gone, which is not "the key is gone".
    ground.server.ask("DELETE", "sys/mounts/transit", Value::Null).await;
    assert_eq!(kms.describe(KEY).await.error(), ErrorName::Internal);
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::Internal);
}

#[tokio::test]
async fn the_proxys_token_may_use_keys_and_nothing_else_and_its_loss_denies_nobody() {
    let server = OpenBao::start().await;
    server.create_key(KEY, false).await;
    let transit = TransitOptions::prepare(&server.address(), None, server.root_token()).await;
    let token = transit.token.clone();
    let outside = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    for (method, path) in [
        ("POST", "transit/keys/new-key"),
        ("POST", "transit/encrypt/new-key"),
        ("POST", &format!("transit/keys/{KEY}/rotate")),
        ("POST", &format!("transit/rewrap/{KEY}")),
        ("POST", &format!("transit/datakey/plaintext/{KEY}")),
        ("DELETE", &format!("transit/keys/{KEY}")),
        ("GET", &format!("transit/export/encryption-key/{KEY}")),
        ("GET", "transit/keys?list=true"),
        ("GET", "auth/token/lookup-self"),
        ("GET", "sys/mounts"),
    ] {
        let request =
            outside.request(method.parse().unwrap(), format!("{}/v1/{path}", server.address()));
        let request = request
            .header("x-vault-token", &token)
            .json(&json!({ "plaintext": "aGk=", "ciphertext": "x" }));
        let status = request.send().await.unwrap().status().as_u16();
        assert_eq!(status, 403, "{method} {path}");
    }
    let proxy =
        XksProxy::start(Options { budget: Duration::from_secs(30), ..Options::new(transit) });
    let kms = Kms::of(&proxy);
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    server.revoke(&token).await;
    for answer in [kms.decrypt(KEY, &encrypted, None).await, kms.health().await] {
        assert_eq!(answer.error(), ErrorName::Internal);
        assert!(proxy.calls().last().unwrap().reason.contains("403"));
    }
}

#[tokio::test]
async fn a_key_manager_that_is_slow_or_talks_nonsense_is_reported_within_the_budget() {
    let server = OpenBao::start().await;
    server.create_key(KEY, false).await;
    let network = FaultProxy::start(server.port());
    let mut transit = TransitOptions::prepare(&server.address(), None, server.root_token()).await;
    transit.address = format!("http://127.0.0.1:{}", network.port());
    assert!(
        Options::new(transit.clone()).budget < Duration::from_millis(250),
        "KMS waits no longer"
    );
    let proxy =
        XksProxy::start(Options { budget: Duration::from_secs(2), ..Options::new(transit) });
    let kms = Kms::of(&proxy);
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    let answer = |text: &str| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            text.len()
        );
        fault_proxy::Fault::Replace((head + text).into_bytes())
    };
    let elsewhere = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: {}/v1/transit/decrypt/{KEY}\r\n\
         connection: close\r\ncontent-length: 0\r\n\r\n",
        server.address()
    );
    for (fault, name) in [
        (fault_proxy::Fault::Silence, ErrorName::DependencyTimeout),
        (fault_proxy::Fault::Trickle(Duration::from_millis(100)), ErrorName::DependencyTimeout),
        (fault_proxy::Fault::Reset, ErrorName::Internal),
        (fault_proxy::Fault::Truncate(40), ErrorName::Internal),
        (fault_proxy::Fault::Replace(b"garbage".to_vec()), ErrorName::Internal),
        // To where a good answer would come from: it is not followed, and the token not sent there.
        (fault_proxy::Fault::Replace(elsewhere.into_bytes()), ErrorName::Internal),
        (answer(""), ErrorName::Internal),
        (answer("[]"), ErrorName::Internal),
        (answer(r#"{"data":{"plaintext":"&"}}"#), ErrorName::Internal),
        (answer(r#"{"data":{"plaintext":"c2hvcnQ="}}"#), ErrorName::Internal),
    ] {
        network.cut();
        network.set(fault.clone());
        let answer = kms.decrypt(KEY, &encrypted, None).await;
        assert_eq!(answer.error(), name, "{fault:?}, {:?}", proxy.calls().pop());
        network.set(fault_proxy::Fault::None);
        network.cut();
    }
    // Encrypt: what Transit is said to have made is looked at before it is passed on.
    let key = r#""type":"aes256-gcm96","derived":false,"supports_encryption":true"#;
    for data in [
        "{}".to_owned(),
        r#"{"type":"aes256-gcm96"}"#.to_owned(),
        format!(r#"{{{key},"latest_version":0}}"#),
        format!(r#"{{{key},"latest_version":4294967296}}"#),
        // The same answer serves as description and as result.
        format!(
            r#"{{{key},"latest_version":1,"ciphertext":"vault:v2:{}"}}"#,
            BASE64.encode(&[0; 60])
        ),
        format!(
            r#"{{{key},"latest_version":1,"ciphertext":"vault:v1:{}"}}"#,
            BASE64.encode(&[0; 59])
        ),
        format!(
            r#"{{{key},"latest_version":1,"ciphertext":"vault:v1:{}"}}"#,
            BASE64.encode(&[0; 27])
        ),
        format!(r#"{{{key},"latest_version":1,"ciphertext":"vault:v1:?"}}"#),
    ] {
        network.set(answer(&format!(r#"{{"data":{data}}}"#)));
        let answer = kms.encrypt(KEY, DEK, None).await;
        assert_eq!(answer.error(), ErrorName::Internal, "{data}: {:?}", proxy.calls().pop());
    }
    // A ciphertext that does not decrypt, or to something else: without the trial it would be
    // passed on (Appendix C).
    for plaintext in [&b""[..], &[7; 32]] {
        let (made_up, plaintext) = (BASE64.encode(&[0; 60]), BASE64.encode(plaintext));
        let all = format!(
            r#"{{{key},"latest_version":1,"ciphertext":"vault:v1:{made_up}","plaintext":"{plaintext}"}}"#
        );
        network.set(answer(&format!(r#"{{"data":{all}}}"#)));
        kms.encrypt(KEY, DEK, None).await.good();
        let mut parameters = to_encrypt(DEK, None);
        parameters["ciphertextDataIntegrityValueAlgorithm"] = json!("SHA_256");
        assert_eq!(
            kms.call(Operation::Encrypt, KEY, parameters).await.error(),
            ErrorName::Internal
        );
    }
    network.set(fault_proxy::Fault::None);
    network.cut();
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK, "the control");
}

#[tokio::test]
async fn the_health_check_tries_the_key_manager_and_says_what_it_is() {
    let Ground { server, proxy, kms } = Ground::start().await;
    proxy.set_grants(json!([]));
    let health = kms.health().await.good();
    assert_eq!(health["xksProxyFleetSize"], 1);
    for name in ["xksProxyVendor", "xksProxyModel", "ekmVendor"] {
        assert!(!health[name].as_str().unwrap().is_empty());
    }
    let fleet = health["ekmFleetDetails"].as_array().unwrap();
    assert_eq!((fleet.len(), &fleet[0]["healthStatus"]), (1, &json!("ACTIVE")));
    assert_eq!(fleet[0]["model"], "OpenBao 2.7.2 Transit");
    assert_eq!(fleet[0]["id"], server.get("sys/health").await["cluster_id"]);
    proxy.block(true);
    assert_eq!(kms.health().await.error(), ErrorName::InvalidState);
    proxy.block(false);
    server.seal().await;
    assert_eq!(kms.health().await.error(), ErrorName::Internal);
}
