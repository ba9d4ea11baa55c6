//! What of a request is refused, and how.

use super::*;

#[tokio::test]
async fn every_error_of_the_table_is_given_where_it_is_meant() {
    let server = OpenBao::start().await;
    server.create_key(KEY, false).await;
    let network = FaultProxy::start(server.port());
    let mut transit = TransitOptions::prepare(&server.address(), None, server.root_token()).await;
    transit.address = format!("http://127.0.0.1:{}", network.port());
    let proxy =
        XksProxy::start(Options { budget: Duration::from_secs(3), ..Options::new(transit) });
    let kms = Kms::of(&proxy);
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    let key = proxy.key(KEY);
    let mut seen = Vec::new();

    let mut wrong_algorithm = to_encrypt(DEK, None);
    wrong_algorithm["encryptionAlgorithm"] = json!("AES_CBC");
    seen.push((
        kms.call(Operation::Encrypt, KEY, wrong_algorithm).await.error(),
        ErrorName::Validation,
    ));

    key.disable();
    seen.push((kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::InvalidState));
    key.enable();

    seen.push((
        kms.decrypt(KEY, &encrypted, Some(b"x")).await.error(),
        ErrorName::InvalidCiphertext,
    ));

    key.restrict(true, false);
    seen.push((kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::InvalidKeyUsage));
    key.restrict(true, true);

    let mut stranger = kms.clone();
    stranger.credential.secret_access_key.push('A');
    seen.push((stranger.health().await.error(), ErrorName::AuthenticationFailed));

    proxy.deny(ALICE);
    seen.push((kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::AccessDenied));
    proxy.allow(ALICE);

    seen.push((kms.encrypt("no-such-key", DEK, None).await.error(), ErrorName::KeyNotFound));
    seen.push((kms.send("/keys", b"{}").await.error(), ErrorName::InvalidUriPath));

    proxy.limit(Some(Quota { requests: 0, window: Duration::from_secs(3600) }));
    seen.push((kms.health().await.error(), ErrorName::Throttling));
    proxy.limit(None);

    seen.push((kms.encrypt(KEY, &[0; 4301], None).await.error(), ErrorName::UnsupportedOperation));

    network.set(fault_proxy::Fault::Silence);
    seen.push((kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::DependencyTimeout));
    network.set(fault_proxy::Fault::None);

    server.seal().await;
    seen.push((kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::Internal));
    server.unseal().await;
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK, "the control");

    for (given, meant) in &seen {
        assert_eq!(given, meant);
    }
    let given: Vec<_> = seen.into_iter().map(|(given, _)| given).collect();
    assert_eq!(given, ErrorName::ALL, "all of them, in the order of the table");
}

#[tokio::test]
async fn a_parameter_that_is_missing_wrong_or_too_large_is_refused_by_its_own_name() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    let good = to_encrypt(DEK, Some(b"tenant=7"));
    kms.call(Operation::Encrypt, KEY, good.clone()).await.good();
    let changed = |name: &str, value: Value| {
        let mut parameters = good.clone();
        parameters[name] = value;
        parameters
    };
    for (name, value, error) in [
        ("plaintext", Value::Null, ErrorName::Validation),
        ("plaintext", json!(7), ErrorName::Validation),
        ("plaintext", json!("AAA"), ErrorName::Validation),
        ("plaintext", json!(BASE64.encode(&[0; 4301])), ErrorName::UnsupportedOperation),
        ("additionalAuthenticatedData", json!("a b="), ErrorName::Validation),
        ("additionalAuthenticatedData", json!({}), ErrorName::Validation),
        (
            "additionalAuthenticatedData",
            json!(BASE64.encode(&[0; 8193])),
            ErrorName::UnsupportedOperation,
        ),
        ("encryptionAlgorithm", Value::Null, ErrorName::Validation),
        ("encryptionAlgorithm", json!("aes_gcm"), ErrorName::Validation),
        ("ciphertextDataIntegrityValueAlgorithm", json!("MD5"), ErrorName::Validation),
        ("ciphertextDataIntegrityValueAlgorithm", Value::Null, ErrorName::Validation),
        ("requestMetadata", json!("x"), ErrorName::Validation),
        ("requestMetadata", json!({}), ErrorName::Validation),
        ("padding", json!("x".repeat(70_000)), ErrorName::UnsupportedOperation),
    ] {
        let answer = kms.call(Operation::Encrypt, KEY, changed(name, value)).await;
        assert_eq!(answer.error(), error, "{name}");
    }
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    let long = with(&encrypted, "ciphertext", &[0; 4301]);
    assert_eq!(kms.decrypt(KEY, &long, None).await.error(), ErrorName::UnsupportedOperation);
    let mut other = to_decrypt(&encrypted, None);
    other["encryptionAlgorithm"] = json!("AES_SIV");
    assert_eq!(kms.call(Operation::Decrypt, KEY, other).await.error(), ErrorName::Validation);
    let endless =
        json!({ "requestMetadata": kms.metadata(), "padding": "x".repeat(2_000_000) }).to_string();
    let path = format!("{}/health", proxy.uri_path());
    kms.signed("POST", &path, endless.as_bytes()).send().await.unwrap_err();
    // The metadata: what is REQUIRED of each operation has to be there, what is not listed may be,
    // and kmsOperation may say anything.
    let metadata = kms.metadata();
    for (operation, required) in [
        (Operation::GetHealthStatus, &["kmsOperation", "kmsRequestId"][..]),
        (Operation::GetKeyMetadata, &["kmsOperation", "kmsRequestId", "awsPrincipalArn"]),
        (Operation::Encrypt, &["kmsOperation", "kmsRequestId", "awsPrincipalArn", "kmsKeyArn"]),
        (Operation::Decrypt, &["kmsOperation", "kmsRequestId", "awsPrincipalArn", "kmsKeyArn"]),
    ] {
        let parameters = match operation {
            Operation::Encrypt => to_encrypt(DEK, None),
            Operation::Decrypt => to_decrypt(&encrypted, None),
            _ => json!({}),
        };
        for name in ["kmsOperation", "kmsRequestId", "awsPrincipalArn", "kmsKeyArn"] {
            let mut without = parameters.clone();
            without["requestMetadata"] = metadata.clone();
            without["requestMetadata"].as_object_mut().unwrap().remove(name);
            let answer = kms.call(operation, KEY, without.clone()).await;
            if required.contains(&name) {
                assert_eq!(answer.error(), ErrorName::Validation, "{operation:?} without {name}");
                without["requestMetadata"][name] = json!(["no", "string"]);
                let answer = kms.call(operation, KEY, without).await;
                assert_eq!(
                    answer.error(),
                    ErrorName::Validation,
                    "{operation:?}, {name} is no string"
                );
            } else {
                answer.good();
            }
        }
        let mut more = parameters.clone();
        more["requestMetadata"] = metadata.clone();
        more["requestMetadata"]["kmsOperation"] = json!("BulkEverything");
        more["requestMetadata"]["awsSourceVpce"] = json!("vpce-1");
        more["requestMetadata"]["sourceIdentity"] = json!({ "of": "a later version" });
        more["requestMetadata"]["kmsRequestId"] = json!("not a UUID, \u{1f9ff}");
        more["requestMetadata"]["awsPrincipalArn"] =
            json!(format!("arn:aws:iam::1:user/{}", "p".repeat(2027)));
        more["requestMetadata"]["kmsKeyArn"] =
            json!(format!("arn:aws:kms:eu-west-1:1:key/{}", "k".repeat(2020)));
        kms.call(operation, KEY, more.clone()).await.good();
        more["requestMetadata"]["awsSourceVpce"] = json!(1);
        assert_eq!(kms.call(operation, KEY, more).await.error(), ErrorName::Validation);
    }
    // Another content type.
    let body = json!({ "requestMetadata": metadata }).to_string();
    let plain = kms.signed("POST", &path, body.as_bytes()).build().unwrap();
    let mut headers = plain.headers().clone();
    headers.insert("content-type", "text/plain".parse().unwrap());
    let request = kms.client.post(plain.url().clone()).headers(headers.clone()).body(body.clone());
    assert_eq!(answer_of(request).await.error(), ErrorName::Validation);
    headers.insert("content-type", "application/json; charset=utf-8".parse().unwrap());
    answer_of(kms.client.post(plain.url().clone()).headers(headers).body(body)).await.good();
}

#[tokio::test]
async fn other_methods_are_not_allowed_and_other_paths_not_found() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    let below = |path: &str| format!("{}{path}", proxy.uri_path());
    for path in ["/health", "/keys/k/metadata", "/keys/k/encrypt", "/keys/k/decrypt"] {
        for method in ["GET", "PUT", "DELETE", "HEAD"] {
            let answer = kms.signed(method, &below(path), b"").send().await.unwrap();
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()["allow"]),
                (405, &"POST".parse().unwrap())
            );
        }
    }
    let long = format!("/keys/{}/encrypt", "k".repeat(129));
    for path in [
        "",
        "/",
        "/Health",
        "/health/",
        "/healthy",
        "//health",
        "/health?x=1",
        "/keys",
        "/keys/",
        "/keys//encrypt",
        "/keys/k",
        "/keys/k/",
        "/keys/k/sign",
        "/keys/k/Encrypt",
        "/keys/k/encrypt/",
        "/keys/a/b/encrypt",
        "/keys/%6b/encrypt",
        "/keys/k%2e/encrypt",
        "/keys/k~/encrypt",
        "/keys/k:1/metadata",
        &long,
    ] {
        assert_eq!(kms.send(path, b"{}").await.error(), ErrorName::InvalidUriPath, "{path}");
    }
    for path in ["/", "/kms/xks/v2/health", "/kms/xks/v1health", "/prefix/kms/xks/v1/health"] {
        let answer = answer_of(kms.signed("POST", path, b"{}")).await;
        assert_eq!(answer.error(), ErrorName::InvalidUriPath, "{path}");
    }
    // Ids that the specification allows, and that Transit cannot have or would take for another
    // path.
    for id in ["-", "...", "a-", ".a", "-.-", &"k".repeat(128)] {
        assert_eq!(kms.describe(id).await.error(), ErrorName::KeyNotFound, "{id}");
        assert_eq!(kms.encrypt(id, DEK, None).await.error(), ErrorName::KeyNotFound, "{id}");
    }
}

#[tokio::test]
async fn a_dot_segment_as_a_key_id_reaches_no_other_path_of_the_key_manager() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    // A client normalises such a path, so the request is written by hand, inside TLS.
    for id in [".", ".."] {
        let path = format!("{}/keys/{id}/metadata", proxy.uri_path());
        let body = json!({ "requestMetadata": kms.metadata() }).to_string();
        let headers = [("host".to_owned(), format!("localhost:{}", proxy.port()))];
        let request =
            Request { method: "POST", path: &path, headers: &headers, body: body.as_bytes() };
        let Credential { access_key_id, secret_access_key } = &kms.credential;
        let now = SystemTime::now();
        let [date, authorization] =
            sign(&request, access_key_id, secret_access_key, "us-east-2", xks_proxy::SERVICE, now);
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\n{}: {}\r\n{}: {}\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            headers[0].1,
            date.0,
            date.1,
            authorization.0,
            authorization.1,
            body.len()
        );
        let answer = raw(&proxy, text.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 404 ") && answer.contains("KeyNotFoundException"),
            "{answer}"
        );
    }
}

/// Bytes over TLS, and all that comes back.
async fn raw(proxy: &XksProxy, bytes: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(proxy.ca_pem().as_bytes()).unwrap()).unwrap();
    let config =
        ClientConfig::builder_with_provider(std::sync::Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut tls = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    tls.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // The other side may end without closing TLS in order.
    let _ = tls.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_proxy_with_a_path_prefix_serves_below_it_only() {
    let server = OpenBao::start().await;
    let transit = TransitOptions::prepare(&server.address(), None, server.root_token()).await;
    let path_prefix = "keystores/4a0d79d6-1d1b-49fd-9dbe-799cb9c0fb3f".to_owned();
    let options = Options { path_prefix, budget: Duration::from_secs(30), ..Options::new(transit) };
    let proxy = XksProxy::start(options);
    assert_eq!(proxy.uri_path(), "/keystores/4a0d79d6-1d1b-49fd-9dbe-799cb9c0fb3f/kms/xks/v1");
    let mut kms = Kms::of(&proxy);
    kms.health().await.good();
    kms.uri_path = "/kms/xks/v1".to_owned();
    assert_eq!(kms.health().await.error(), ErrorName::InvalidUriPath);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,40}".prop_map(Value::from),
        proptest::collection::vec(any::<u8>(), 0..64)
            .prop_map(|bytes| json!(BASE64.encode(&bytes))),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map("[a-zA-Z]{0,12}", inner, 0..4)
                .prop_map(|map| json!(map)),
        ]
    })
}

#[test]
fn no_body_makes_the_proxy_panic_or_say_yes() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ground = runtime.block_on(Ground::start());
    let kms = &ground.kms;
    let aad = Some(&b"tenant=7"[..]);
    let encrypted = runtime.block_on(kms.encrypt(KEY, DEK, aad)).good();
    let paths = [
        "/health",
        "/keys/k/metadata",
        &format!("/keys/{KEY}/encrypt"),
        &format!("/keys/{KEY}/decrypt"),
    ]
    .map(ToOwned::to_owned);
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    let refused = |answer: Answer| {
        let name = answer.error();
        prop_assert!(
            name != ErrorName::Internal && name != ErrorName::DependencyTimeout,
            "{name:?}"
        );
        Ok(())
    };
    proptest!(config.clone(), |(at in 0..4_usize, bytes in proptest::collection::vec(any::<u8>(), 0..300))| {
        refused(runtime.block_on(kms.send(&paths[at], &bytes)))?;
    });
    proptest!(config.clone(), |(at in 0..4_usize, body in any_json())| {
        refused(runtime.block_on(kms.send(&paths[at], body.to_string().as_bytes())))?;
    });
    // One field of a good request is something else.
    let fields = [
        "ciphertext",
        "ciphertextMetadata",
        "initializationVector",
        "authenticationTag",
        "additionalAuthenticatedData",
        "encryptionAlgorithm",
        "requestMetadata",
    ];
    proptest!(config, |(at in 0..7_usize, value in any_json())| {
        let mut body = to_decrypt(&encrypted, aad);
        body[fields[at]] = value;
        refused(runtime.block_on(kms.call(Operation::Decrypt, KEY, body)))?;
    });
    assert_eq!(runtime.block_on(kms.decrypt(KEY, &encrypted, aad)).plaintext(), DEK, "the control");
    assert!(ground.proxy.calls().len() >= 600);
}
