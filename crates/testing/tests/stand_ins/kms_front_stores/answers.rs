//! What the answers of a proxy become.

use super::*;

#[tokio::test]
async fn the_proxy_is_told_who_asks_what_of_which_key_and_gets_an_aad_that_binds_the_context() {
    let (ground, _, key) = Ground::with_key().await;
    let blob = ground.encrypt(&key, b"text").await.unwrap();
    ground.decrypt(&key, "a", &blob).await.unwrap();
    let _ = ground.decrypt(&key, "b", &blob).await;
    let calls = ground.front.calls();
    let call = |operation: &str| calls.iter().find(|call| call.operation == operation).unwrap();
    let encrypt = &ground.endpoint.asked("/keys/one/encrypt")[0];
    let decrypt = ground.endpoint.asked("/keys/one/decrypt");
    for (body, call) in [(encrypt, call("Encrypt")), (&decrypt[0], call("Decrypt"))] {
        assert_eq!(
            body["requestMetadata"],
            json!({
                "awsPrincipalArn": call.principal, "kmsKeyArn": key, "kmsOperation": call.operation,
                "kmsRequestId": call.request_id,
            })
        );
        assert_eq!(body["encryptionAlgorithm"], "AES_GCM");
    }
    assert_eq!(encrypt["ciphertextDataIntegrityValueAlgorithm"], "SHA_256");
    assert_eq!(encrypt["additionalAuthenticatedData"], decrypt[0]["additionalAuthenticatedData"]);
    assert_ne!(
        decrypt[0]["additionalAuthenticatedData"],
        decrypt[1]["additionalAuthenticatedData"]
    );
    assert_eq!(
        decrypt[0]["ciphertextMetadata"],
        data_encoding::BASE64.encode(xks_script::METADATA)
    );

    // A context of the largest size is bound too, though the proxy's limit for the AAD is the same.
    let long = "v".repeat(8192 - 6);
    let request = ground
        .kms
        .encrypt()
        .key_id(&key)
        .plaintext(Blob::new(*b"text"))
        .encryption_context("tenant", &long);
    let blob = request.send().await.unwrap().ciphertext_blob.unwrap().into_inner();
    assert_eq!(ground.decrypt(&key, &long, &blob).await.unwrap(), b"text");
    assert!(ground.decrypt(&key, &long.replacen('v', "w", 1), &blob).await.is_err());
}

#[tokio::test]
async fn every_error_of_a_proxy_becomes_an_invalid_state_with_its_own_text() {
    let (ground, _, key) = Ground::with_key().await;
    let blob = ground.encrypt(&key, b"text").await.unwrap();
    for (name, (status, text)) in texts() {
        ground.endpoint.act(Act::Error(status, name));
        ground.assert_cryptography_fails(&key, &blob, text, name).await;
        // The name counts, not the status.
        ground.endpoint.act(Act::Error(500, name));
        ground.assert_cryptography_fails(&key, &blob, text, name).await;
    }
    ground.endpoint.act(Act::Bytes(Vec::new()));
    ground.assert_cryptography_fails(&key, &blob, NOT_REACHABLE, "hangs up").await;
    ground.endpoint.act(Act::Honest);
    assert_eq!(ground.decrypt(&key, "a", &blob).await.unwrap(), b"text");
}

#[tokio::test]
async fn an_answer_that_is_not_as_the_specification_says_cannot_be_interpreted() {
    let (ground, _, key) = Ground::with_key().await;
    let blob = ground.encrypt(&key, b"text").await.unwrap();
    let long = "x".repeat(100_000);
    for (case, act) in [
        ("an error with 200", Act::Error(200, "InternalException")),
        ("no name", Act::Raw(500, "{}".into())),
        ("no JSON", Act::Raw(200, "plain".into())),
        ("an array", Act::Raw(200, "[]".into())),
        ("empty", Act::Raw(200, String::new())),
        ("long", Act::Raw(200, format!("{{\"plaintext\":\"{long}\"}}"))),
        (
            "moved",
            Act::Bytes(b"HTTP/1.1 307 Moved\r\nlocation: /\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ),
        ("cut off", Act::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec())),
    ] {
        ground.endpoint.act(act);
        ground.assert_cryptography_fails(&key, &blob, CANNOT_INTERPRET, case).await;
    }
    let wanted = refused("KMSInvalidStateException", CANNOT_INTERPRET);
    // With the integrity value of the honest answer.
    let bends: [(&str, Bend); _] = [
        ("no ciphertext", |a| drop(a.as_object_mut().unwrap().remove("ciphertext"))),
        ("no IV", |a| drop(a.as_object_mut().unwrap().remove("initializationVector"))),
        ("no tag", |a| drop(a.as_object_mut().unwrap().remove("authenticationTag"))),
        ("no integrity value", |a| {
            drop(a.as_object_mut().unwrap().remove("ciphertextDataIntegrityValue"))
        }),
        ("no base64", |a| a["ciphertext"] = json!("???")),
        ("a number", |a| a["ciphertext"] = json!(7)),
        ("another integrity value", |a| {
            a["ciphertextDataIntegrityValue"] =
                json!("qHA/ImC9h5HsLRXqCyPmWgYx7tzyoTplzILbP0fPXsc=")
        }),
        ("another tag", |a| a["authenticationTag"] = json!("vBxN2ncH1oEkR8WVXpmyYQ==")),
        ("no metadata", |a| drop(a.as_object_mut().unwrap().remove("ciphertextMetadata"))),
    ];
    for (case, bend) in bends {
        ground.endpoint.act(Act::Bend(bend));
        assert_eq!(ground.encrypt(&key, b"text").await.unwrap_err(), wanted, "{case}");
    }
    // With one that fits.
    let sizes: [(&str, Bend); _] = [
        ("metadata of 21 bytes", |a| xks_script::resize(a, "ciphertextMetadata", 21)),
        ("an IV of 13 bytes", |a| xks_script::resize(a, "initializationVector", 13)),
        ("a tag of 15 bytes", |a| xks_script::resize(a, "authenticationTag", 15)),
        ("a tag of 17 bytes", |a| xks_script::resize(a, "authenticationTag", 17)),
        ("a longer ciphertext", |a| xks_script::resize(a, "ciphertext", 60)),
        ("a shorter ciphertext", |a| xks_script::resize(a, "ciphertext", 10)),
    ];
    for (case, size) in sizes {
        ground.endpoint.act(Act::Consistent(size));
        assert_eq!(ground.encrypt(&key, b"text").await.unwrap_err(), wanted, "{case}");
    }
    for (case, bend) in [
        ("no plaintext", (|a| a["plaintext"] = Value::Null) as Bend),
        ("a shorter plaintext", |a| xks_script::resize(a, "plaintext", 31)),
        ("a longer plaintext", |a| xks_script::resize(a, "plaintext", 33)),
    ] {
        ground.endpoint.act(Act::Bend(bend));
        assert_eq!(ground.decrypt(&key, "a", &blob).await.unwrap_err(), wanted, "{case}");
    }
    // The right length and not what KMS had encrypted.
    ground
        .endpoint
        .act(Act::Bend(|a| a["plaintext"] = json!(data_encoding::BASE64.encode(&[0; 32]))));
    let text = "The ciphertext that the external key store proxy submitted for decryption, or the \
        encryption context, is corrupted, missing, or otherwise invalid.";
    assert_eq!(
        ground.decrypt(&key, "a", &blob).await.unwrap_err(),
        refused("KMSInvalidStateException", text)
    );
    // What is at the limit, with an integrity value that fits, is taken.
    ground.endpoint.act(Act::Metadata(20));
    let blob = ground.encrypt(&key, b"text").await.unwrap();
    ground.endpoint.act(Act::Honest);
    assert_eq!(ground.decrypt(&key, "a", &blob).await.unwrap(), b"text");
    ground.endpoint.act(Act::Metadata(0));
    let blob = ground.encrypt(&key, b"text").await.unwrap();
    assert_eq!(ground.decrypt(&key, "a", &blob).await.unwrap(), b"text");
    assert!(
        ground
            .endpoint
            .asked("/keys/one/decrypt")
            .last()
            .unwrap()
            .get("ciphertextMetadata")
            .is_none()
    );
    ground.endpoint.act(Act::Metadata(21));
    assert_eq!(ground.encrypt(&key, b"text").await.unwrap_err(), wanted);
}
