//! Who calls: signatures, credentials, the policy.

use super::*;

#[tokio::test]
async fn a_signature_counts_only_if_key_secret_service_body_path_and_time_are_right() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    kms.health().await.good();
    let refused = async |kms: &Kms| {
        let before = proxy.calls().len();
        assert_eq!(kms.health().await.error(), ErrorName::AuthenticationFailed);
        let call = proxy.calls()[before].clone();
        assert!(
            call.access_key_id.is_empty() && call.kms_request_id.is_empty(),
            "what is unsigned is not logged"
        );
        call.reason
    };
    let changed = |change: fn(&mut Kms)| {
        let mut kms = kms.clone();
        change(&mut kms);
        kms
    };
    assert_eq!(
        refused(&changed(|kms| kms.credential.access_key_id.push('A'))).await,
        "an unknown access key id"
    );
    assert_eq!(
        refused(&changed(|kms| kms.credential.secret_access_key.insert(0, 'A'))).await,
        "Mismatch"
    );
    // "Any requests more than 5 minutes in the past (or future, due to clock drift)" (Appendix A).
    assert_eq!(refused(&changed(|kms| kms.ahead = 330)).await, "Skewed");
    assert_eq!(refused(&changed(|kms| kms.ahead = -330)).await, "Skewed");
    changed(|kms| kms.ahead = 240).health().await.good();
    changed(|kms| kms.ahead = -240).health().await.good();

    let path = format!("{}/health", proxy.uri_path());
    let body = json!({ "requestMetadata": kms.metadata() }).to_string();
    let other_body = body.replace("GenerateDataKey", "KmsHealthCheck");
    let signed = || kms.signed("POST", &path, body.as_bytes());
    answer_of(signed()).await.good();
    assert_eq!(answer_of(signed().body(other_body)).await.error(), ErrorName::AuthenticationFailed);
    let elsewhere =
        kms.signed("POST", &format!("{}/keys/{KEY}/metadata", proxy.uri_path()), body.as_bytes());
    let mut moved = elsewhere.build().unwrap();
    moved.url_mut().set_path(&path);
    let answer = answer_of(reqwest::RequestBuilder::from_parts(kms.client.clone(), moved)).await;
    assert_eq!(answer.error(), ErrorName::AuthenticationFailed);

    let headers = [("host".to_owned(), format!("localhost:{}", proxy.port()))];
    let request = Request { method: "POST", path: &path, headers: &headers, body: body.as_bytes() };
    let Credential { access_key_id, secret_access_key } = &kms.credential;
    let [date, for_kms] =
        sign(&request, access_key_id, secret_access_key, "us-east-2", "kms", SystemTime::now());
    let unsigned = || {
        kms.client.post(format!("{}{path}", proxy.url())).header("content-type", "application/json")
    };
    let other_service =
        unsigned().header(date.0, date.1).header(for_kms.0, for_kms.1).body(body.clone());
    assert_eq!(answer_of(other_service).await.error(), ErrorName::AuthenticationFailed);
    assert_eq!(
        answer_of(unsigned().body(body.clone())).await.error(),
        ErrorName::AuthenticationFailed
    );
    let basic = unsigned().basic_auth(access_key_id, Some(secret_access_key)).body(body.clone());
    assert_eq!(answer_of(basic).await.error(), ErrorName::AuthenticationFailed);
}

#[tokio::test]
async fn credentials_rotate_without_a_request_that_fails() {
    let Ground { server: _server, proxy, kms: before } = Ground::start().await;
    let mut after = before.clone();
    after.credential = proxy.add_credential();
    assert_eq!(proxy.credential(), after.credential);
    before.health().await.good();
    after.health().await.good();
    assert_eq!(proxy.calls().last().unwrap().access_key_id, after.credential.access_key_id);
    proxy.remove_credential(&before.credential.access_key_id);
    after.health().await.good();
    assert_eq!(before.health().await.error(), ErrorName::AuthenticationFailed);
    // Appendix A and "XKS proxy configuration in AWS KMS console".
    let Credential { access_key_id, secret_access_key } = &after.credential;
    assert!(
        (20..=30).contains(&access_key_id.len()) && (43..=64).contains(&secret_access_key.len())
    );
    assert!(
        access_key_id
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte))
    );
    assert!(!format!("{:?}", after.credential).contains(secret_access_key.as_str()));
}

#[tokio::test]
async fn the_policy_denies_one_principal_and_only_the_log_says_why() {
    let ground = Ground::start().await;
    let Ground { server: _server, proxy, kms } = &ground;
    let mut mallory = kms.clone();
    mallory.principal = MALLORY;
    let encrypted = mallory.encrypt(KEY, DEK, None).await.good();
    proxy.deny(MALLORY);
    for operation in [Operation::GetKeyMetadata, Operation::Encrypt, Operation::Decrypt] {
        let parameters = match operation {
            Operation::Encrypt => to_encrypt(DEK, None),
            Operation::Decrypt => to_decrypt(&encrypted, None),
            _ => json!({}),
        };
        let answer = mallory.call(operation, KEY, parameters.clone()).await;
        assert!(!answer.body.to_string().contains("denied_principals"), "{answer:?}");
        assert_eq!(answer.error(), ErrorName::AccessDenied);
        let call = ground.last_call();
        assert!(call.reason.contains("the principal is in denied_principals"), "{call:?}");
        assert_eq!((call.principal.as_str(), call.operation), (MALLORY, Some(operation)));
        kms.call(operation, KEY, parameters).await.good();
    }
    // Denied before the key is looked at: whether there is one is not said.
    assert_eq!(mallory.encrypt("no-such-key", DEK, None).await.error(), ErrorName::AccessDenied);
    mallory.health().await.good();
    proxy.allow(MALLORY);
    assert_eq!(mallory.decrypt(KEY, &encrypted, None).await.plaintext(), DEK);
}

#[tokio::test]
async fn a_key_can_be_kept_for_some_callers_some_operations_and_some_kms_operations() {
    let Ground { server, proxy, kms } = Ground::start().await;
    server.create_key("other", false).await;
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    proxy.set_grants(json!([{
        "principals": ["arn:aws:iam::123456789012:user/*"], "keys": [KEY], "operations": ["Decrypt"],
        "kms_operations": ["Decrypt", "ReEncrypt"],
    }]));
    let mut reader = kms.clone();
    reader.kms_operation = "Decrypt";
    assert_eq!(reader.decrypt(KEY, &encrypted, None).await.plaintext(), DEK);
    assert_eq!(reader.encrypt(KEY, DEK, None).await.error(), ErrorName::AccessDenied);
    assert_eq!(reader.decrypt("other", &encrypted, None).await.error(), ErrorName::AccessDenied);
    assert_eq!(
        kms.decrypt(KEY, &encrypted, None).await.error(),
        ErrorName::AccessDenied,
        "GenerateDataKey"
    );
    reader.principal = "arn:aws:iam::210987654321:user/Alice";
    assert_eq!(reader.decrypt(KEY, &encrypted, None).await.error(), ErrorName::AccessDenied);
    assert!(proxy.calls().last().unwrap().reason.contains("no grant covers"));
    proxy.set_grants(json!([]));
    assert_eq!(kms.describe(KEY).await.error(), ErrorName::AccessDenied);
}

#[tokio::test]
async fn a_policy_that_fails_denies_and_one_in_the_old_syntax_is_not_taken() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    kms.describe(KEY).await.good();
    for old in [
        "package xks\ndefault allow = false\nallow { input.operation == \"Encrypt\" }",
        "package xks\nallow { true }",
        "package xks\ndefault allow := false\nallow = true { true }",
        "this is no Rego",
    ] {
        proxy.set_policy(old).unwrap_err();
        kms.describe(KEY).await.good();
    }
    for failing in [
        // No rule of that name, a rule that is not defined, and one that is no boolean.
        "package xks\npermit := true",
        "package other\ndefault allow := true",
        "package xks\nallow if input.operation == \"Nothing\"",
        "package xks\nallow := \"true\"",
        "package xks\nallow := 1",
        // Errors: two values at once, a wrong type, a division by zero.
        "package xks\nallow := true if input.operation\nallow := false if input.externalKeyId",
        "package xks\ndefault allow := false\nallow if to_number(input.externalKeyId) > 0",
        "package xks\ndefault allow := false\nallow if not 1 / 0 == 1",
    ] {
        proxy.set_policy(failing).unwrap();
        assert_eq!(kms.describe(KEY).await.error(), ErrorName::AccessDenied, "{failing}");
    }
    proxy
        .set_policy(
            "package xks\ndefault allow := false\nallow if input.operation == \"GetKeyMetadata\"",
        )
        .unwrap();
    kms.describe(KEY).await.good();
    assert_eq!(kms.encrypt(KEY, DEK, None).await.error(), ErrorName::AccessDenied);
}
