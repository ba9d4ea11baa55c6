//! Keys in an external key store.

use super::*;

#[tokio::test]
async fn keys_are_unavailable_until_their_key_store_is_connected_and_then_what_they_were() {
    let (ground, store, key) = Ground::with_key().await;
    let disabled = ground.create_key(&store, "two").await.unwrap().arn.unwrap();
    let doomed = ground.create_key(&store, "three").await.unwrap().arn.unwrap();
    let blob = ground.encrypt(&key, b"text").await.unwrap();
    ground.kms.disable_key().key_id(&disabled).send().await.unwrap();
    ground.kms.schedule_key_deletion().key_id(&doomed).send().await.unwrap();
    let states = async || {
        let mut states = Vec::new();
        for key in [&key, &disabled, &doomed] {
            states.push(ground.metadata(key).await.key_state.unwrap());
        }
        states
    };
    let unavailable = [KeyState::Unavailable, KeyState::Unavailable, KeyState::PendingDeletion];

    // The way down, held on: then down, then the way up.
    ground.front.world().connecting_takes = Duration::from_secs(3600);
    ground.kms.disconnect_custom_key_store().custom_key_store_id(&store).send().await.unwrap();
    assert_eq!(
        ground.describe(&store).await.connection_state,
        Some(ConnectionStateType::Disconnecting)
    );
    let connected = ground.kms.connect_custom_key_store().custom_key_store_id(&store).send().await;
    assert_eq!(code(refusal(connected)), "CustomKeyStoreInvalidStateException");
    assert_eq!(states().await, unavailable);
    ground.assert_cryptography_fails(&key, &blob, NOT_CONNECTED, "on the way down").await;
    ground.front.world().store(&store).connection = kms_front::Connection::Disconnected;
    let text = format!("{key} is unavailable.");
    ground.assert_cryptography_fails(&key, &blob, &text, "disconnected").await;
    assert_eq!(
        ground.create_key(&store, "four").await.unwrap_err(),
        refused("CustomKeyStoreInvalidStateException", NOT_CONNECTED)
    );
    let delete = ground.kms.delete_custom_key_store().custom_key_store_id(&store).send().await;
    assert_eq!(code(refusal(delete)), "CustomKeyStoreHasCMKsException");
    ground.kms.connect_custom_key_store().custom_key_store_id(&store).send().await.unwrap();
    assert_eq!(
        ground.describe(&store).await.connection_state,
        Some(ConnectionStateType::Connecting)
    );
    assert_eq!(states().await, unavailable);
    ground.assert_cryptography_fails(&key, &blob, NOT_CONNECTED, "on the way up").await;
    assert_eq!(
        ground.encrypt(&doomed, b"text").await.unwrap_err(),
        refused("KMSInvalidStateException", &format!("{doomed} is pending deletion."))
    );

    // Disconnecting is possible at any time before, and overtakes the attempt to connect.
    ground.front.world().connecting_takes = Duration::ZERO;
    ground.disconnect(&store).await;
    ground.endpoint.act(Act::Raw(200, "{}".into()));
    ground.kms.connect_custom_key_store().custom_key_store_id(&store).send().await.unwrap();
    assert_eq!(ground.settled(&store).await.connection_state, Some(ConnectionStateType::Failed));
    assert_eq!(states().await, unavailable);
    ground.assert_cryptography_fails(&key, &blob, NOT_CONNECTED, "failed").await;
    ground.disconnect(&store).await;
    ground.endpoint.act(Act::Late(Duration::from_millis(200)));
    let asked = ground.endpoint.asked("/health").len();
    ground.kms.connect_custom_key_store().custom_key_store_id(&store).send().await.unwrap();
    while ground.endpoint.asked("/health").len() == asked {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ground.disconnect(&store).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(
        ground.describe(&store).await.connection_state,
        Some(ConnectionStateType::Disconnected)
    );
    ground.endpoint.act(Act::Honest);
    ground.connect(&store).await;
    assert_eq!(states().await, [KeyState::Enabled, KeyState::Disabled, KeyState::PendingDeletion]);
    assert_eq!(ground.decrypt(&key, "a", &blob).await.unwrap(), b"text");
}

#[tokio::test]
async fn a_key_says_where_its_external_key_is_and_has_no_key_material_of_its_own() {
    let (ground, store) = Ground::new().await;
    let created = ground.create_key(&store, "External-key_1.0").await.unwrap();
    let described = ground.metadata(created.arn.as_ref().unwrap()).await;
    assert_eq!(created, described);
    assert_eq!(described.origin, Some(OriginType::ExternalKeyStore));
    assert_eq!(described.custom_key_store_id.as_deref(), Some(store.as_str()));
    assert_eq!(described.xks_key_configuration.unwrap().id.as_deref(), Some("External-key_1.0"));
    assert_eq!(described.key_state, Some(KeyState::Enabled));
    assert_eq!(described.current_key_material_id, None);
    let asked = ground.endpoint.asked("/keys/External-key_1.0/metadata");
    assert_eq!(asked.len(), 1, "DescribeKey asks nothing of the proxy");
    let call = ground.front.calls().into_iter().find(|call| call.operation == "CreateKey").unwrap();
    assert_eq!(
        asked[0],
        json!({ "requestMetadata": {
            "awsPrincipalArn": call.principal, "kmsOperation": "CreateKey", "kmsRequestId": call.request_id,
        } })
    );
}

#[tokio::test]
async fn an_external_key_has_to_fit_and_belongs_to_one_key() {
    let (ground, store) = Ground::new().await;
    let invalid = "XksKeyInvalidConfigurationException";
    let of = |name: &'static str, status| Act::Error(status, name);
    let bent = |bend: Bend| Act::Bend(bend);
    let cases = [
        (
            bent(|key| key["keySpec"] = json!("AES_128")),
            invalid,
            "The key spec of the external key must be AES_256. The key spec of specified external key is AES_128.",
        ),
        (
            bent(|key| key["keyStatus"] = json!("DISABLED")),
            invalid,
            "The status of the external key must be ENABLED. The status of specified external key is DISABLED.",
        ),
        (
            bent(|key| key["keyUsage"] = json!(["ENCRYPT"])),
            invalid,
            "The key usage of the external key must include ENCRYPT and DECRYPT. The key use of \
                specified external key is ENCRYPT.",
        ),
        (
            bent(|key| key["keyUsage"] = json!(["DECRYPT", "SIGN"])),
            invalid,
            "The key usage of the external key must include ENCRYPT and DECRYPT. The key use of \
                specified external key is DECRYPT, SIGN.",
        ),
        (
            bent(|key| key["keyUsage"] = json!(vec!["ENCRYPT"; 11])),
            "CustomKeyStoreInvalidStateException",
            CANNOT_INTERPRET,
        ),
        (
            bent(|key| key["keyStatus"] = json!("ASLEEP")),
            "CustomKeyStoreInvalidStateException",
            CANNOT_INTERPRET,
        ),
        (
            bent(|key| key["keySpec"] = Value::Null),
            "CustomKeyStoreInvalidStateException",
            CANNOT_INTERPRET,
        ),
        (
            of("KeyNotFoundException", 404),
            "XksKeyNotFoundException",
            text_of("KeyNotFoundException"),
        ),
        (of("InvalidStateException", 400), invalid, text_of("InvalidStateException")),
        (of("InvalidKeyUsageException", 400), invalid, text_of("InvalidKeyUsageException")),
        (
            of("AccessDeniedException", 403),
            "KMSInvalidStateException",
            text_of("AccessDeniedException"),
        ),
        (
            of("UnsupportedOperationException", 501),
            "XksKeyInvalidResponseException",
            text_of("UnsupportedOperationException"),
        ),
        (
            of("AuthenticationFailedException", 401),
            "CustomKeyStoreInvalidStateException",
            text_of("AuthenticationFailedException"),
        ),
        (
            of("InternalException", 500),
            "CustomKeyStoreInvalidStateException",
            text_of("InternalException"),
        ),
        (Act::Bytes(Vec::new()), "CustomKeyStoreInvalidStateException", NOT_REACHABLE),
    ];
    for (act, exception, text) in cases {
        let case = format!("{act:?}");
        ground.endpoint.act(act);
        assert_eq!(
            ground.create_key(&store, "one").await.unwrap_err(),
            refused(exception, text),
            "{case}"
        );
    }
    ground.endpoint.act(Act::Honest);
    ground.create_key(&store, "one").await.unwrap();
    assert_eq!(code(ground.create_key(&store, "one").await), "XksKeyAlreadyInUseException");
    ground.create_key(&store, "two").await.unwrap();

    let create =
        || ground.kms.create_key().custom_key_store_id(&store).origin(OriginType::ExternalKeyStore);
    let in_many_regions = create().xks_key_id("three").multi_region(true).send().await;
    assert_eq!(code(refusal(in_many_regions)), "UnsupportedOperationException");
    let asymmetric =
        create().xks_key_id("three").key_spec(aws_sdk_kms::types::KeySpec::Rsa2048).send().await;
    assert_eq!(code(refusal(asymmetric)), "UnsupportedOperationException");
    assert_eq!(code(refusal(create().send().await)), "ValidationException");
    assert_eq!(code(ground.create_key(&store, "a/b").await), "ValidationException");
    let here = ground
        .kms
        .create_key()
        .custom_key_store_id(&store)
        .xks_key_id("three")
        .origin(OriginType::AwsKms);
    assert_eq!(code(refusal(here.send().await)), "ValidationException");
}

#[tokio::test]
async fn what_such_keys_cannot_do_is_refused_as_unsupported() {
    let (ground, _, key) = Ground::with_key().await;
    let kms = &ground.kms;
    let text = format!("{key} origin is EXTERNAL_KEY_STORE which is not valid for this operation.");
    let wanted = refused("UnsupportedOperationException", &text);
    let algorithm = aws_sdk_kms::types::AlgorithmSpec::RsaesOaepSha256;
    let spec = aws_sdk_kms::types::WrappingKeySpec::Rsa2048;
    for answer in [
        refusal(kms.enable_key_rotation().key_id(&key).send().await).map(|_| ()),
        refusal(kms.disable_key_rotation().key_id(&key).send().await).map(|_| ()),
        refusal(kms.rotate_key_on_demand().key_id(&key).send().await).map(|_| ()),
        refusal(kms.get_key_rotation_status().key_id(&key).send().await).map(|_| ()),
        refusal(kms.list_key_rotations().key_id(&key).send().await).map(|_| ()),
        refusal(kms.replicate_key().key_id(&key).replica_region("us-east-1").send().await)
            .map(|_| ()),
        refusal(kms.delete_imported_key_material().key_id(&key).send().await).map(|_| ()),
        refusal(
            kms.get_parameters_for_import()
                .key_id(&key)
                .wrapping_algorithm(algorithm)
                .wrapping_key_spec(spec)
                .send()
                .await,
        )
        .map(|_| ()),
        refusal(
            kms.import_key_material()
                .key_id(&key)
                .import_token(Blob::new(*b"token"))
                .encrypted_key_material(Blob::new(*b"material"))
                .send()
                .await,
        )
        .map(|_| ()),
    ] {
        assert_eq!(answer.unwrap_err(), wanted);
    }
}

#[tokio::test]
async fn a_key_policy_and_a_rotation_status_are_read_back() {
    let (ground, store, external) = Ground::with_key().await;
    let standard = ground.front.create_key(REGION);
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": { "AWS": "*" }, "Action": "kms:*", "Resource": "*" },
    ] });
    for key in [&standard, &external] {
        let before = ground.kms.get_key_policy().key_id(key).send().await.unwrap();
        assert!(before.policy.unwrap().contains("Enable IAM User Permissions"));
        assert_eq!(before.policy_name.as_deref(), Some("default"));
        ground.kms.put_key_policy().key_id(key).policy(policy.to_string()).send().await.unwrap();
        let after = ground.kms.get_key_policy().key_id(key).send().await.unwrap().policy.unwrap();
        assert_eq!(serde_json::from_str::<Value>(&after).unwrap(), policy);
    }
    let created = ground
        .kms
        .create_key()
        .custom_key_store_id(&store)
        .xks_key_id("two")
        .policy(policy.to_string());
    let created = created
        .origin(OriginType::ExternalKeyStore)
        .send()
        .await
        .unwrap()
        .key_metadata
        .unwrap()
        .arn
        .unwrap();
    let own = ground.kms.get_key_policy().key_id(created).send().await.unwrap().policy.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&own).unwrap(), policy);

    let status =
        async || ground.kms.get_key_rotation_status().key_id(&standard).send().await.unwrap();
    assert!(!status().await.key_rotation_enabled);
    assert_eq!(status().await.rotation_period_in_days, None);
    ground.kms.enable_key_rotation().key_id(&standard).send().await.unwrap();
    assert!(status().await.key_rotation_enabled);
    assert_eq!(status().await.rotation_period_in_days, Some(365));
    assert_eq!(status().await.key_id.as_deref(), Some(standard.as_str()));
    ground.kms.disable_key_rotation().key_id(&standard).send().await.unwrap();
    assert!(!status().await.key_rotation_enabled);
    let nobody = ground.front.client(REGION, &ground.front.principal("nobody", vec![]));
    ground.front.world().key(&standard).policy["Statement"] = json!([]);
    assert_eq!(
        code(refusal(nobody.get_key_policy().key_id(&standard).send().await)),
        "AccessDeniedException"
    );
    assert_eq!(
        code(refusal(nobody.get_key_rotation_status().key_id(&standard).send().await)),
        "AccessDeniedException"
    );
}

#[tokio::test]
async fn keys_encrypt_and_decrypt_in_both_places() {
    let (ground, store, key) = Ground::with_key().await;
    let kms = &ground.kms;
    for len in [1, 32, 4096] {
        let plaintext = vec![7; len];
        let blob = ground.encrypt(&key, &plaintext).await.unwrap();
        assert_eq!(ground.decrypt(&key, "a", &blob).await.unwrap(), plaintext);
        // What is encrypted, and the tenant, are not the proxy's to see.
        for asked in ground.endpoint.asked("/keys/one/encrypt") {
            let sent = data_encoding::BASE64
                .decode(asked["plaintext"].as_str().unwrap().as_bytes())
                .unwrap();
            assert!(sent.len() <= 4300 && sent.len() > 28, "{}", sent.len());
            assert!(!sent.windows(8).any(|window| window == [7; 8]));
        }
    }
    let made = kms
        .generate_data_key()
        .key_id(&key)
        .key_spec(DataKeySpec::Aes256)
        .encryption_context("tenant", "a");
    let made = made.send().await.unwrap();
    let blob = made.ciphertext_blob.unwrap().into_inner();
    assert_eq!(made.key_material_id, None);
    assert_eq!(
        ground.decrypt(&key, "a", &blob).await.unwrap(),
        made.plaintext.unwrap().into_inner()
    );
    assert_eq!(made.key_id.as_deref(), Some(key.as_str()));

    // The key need not be named, another key is an error, another context is for the proxy to
    // notice.
    let unnamed = kms
        .decrypt()
        .ciphertext_blob(Blob::new(&*blob))
        .encryption_context("tenant", "a")
        .send()
        .await
        .unwrap();
    assert_eq!(unnamed.key_id.as_deref(), Some(key.as_str()));
    let other = ground.create_key(&store, "two").await.unwrap().arn.unwrap();
    assert_eq!(code(ground.decrypt(&other, "a", &blob).await), "IncorrectKeyException");
    let invalid = refused("KMSInvalidStateException", text_of("InvalidCiphertextException"));
    assert_eq!(ground.decrypt(&key, "b", &blob).await.unwrap_err(), invalid);
    kms.disable_key().key_id(&key).send().await.unwrap();
    assert_eq!(code(ground.decrypt(&key, "a", &blob).await), "DisabledException");
}

#[tokio::test]
async fn a_ciphertext_moves_from_and_to_an_external_key_store() {
    let (ground, store, external) = Ground::with_key().await;
    let standard = ground.front.create_key(REGION);
    let other = ground.create_key(&store, "two").await.unwrap().arn.unwrap();
    let mut blob = ground.encrypt(&standard, b"text").await.unwrap();
    let mut at = &standard;
    for to in [&external, &other, &standard, &external] {
        let request = ground
            .kms
            .re_encrypt()
            .ciphertext_blob(Blob::new(&*blob))
            .source_key_id(at)
            .destination_key_id(to);
        let moved = request
            .source_encryption_context("tenant", "a")
            .destination_encryption_context("tenant", "a")
            .send()
            .await;
        let moved = moved.unwrap();
        assert_eq!(moved.source_key_material_id.is_some(), at == &standard);
        assert_eq!(moved.destination_key_material_id.is_some(), to == &standard);
        blob = moved.ciphertext_blob.unwrap().into_inner();
        assert_eq!(ground.decrypt(to, "a", &blob).await.unwrap(), b"text");
        at = to;
    }
    let of = |path: &str| {
        let asked = ground.endpoint.asked(path).into_iter();
        asked
            .map(|body| body["requestMetadata"].clone())
            .find(|asked| asked["kmsOperation"] == "ReEncrypt")
            .unwrap()
    };
    let (encrypted, decrypted) = (of("/keys/two/encrypt"), of("/keys/one/decrypt"));
    assert_eq!(encrypted["kmsRequestId"], decrypted["kmsRequestId"]);
    assert_eq!(
        (&encrypted["kmsKeyArn"], &decrypted["kmsKeyArn"]),
        (&json!(other), &json!(external))
    );
}
