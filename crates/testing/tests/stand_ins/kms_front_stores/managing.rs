//! How key stores are created, found, changed and deleted, and who may.

use super::*;

#[tokio::test]
async fn a_key_store_is_created_connected_disconnected_and_deleted() {
    let ground = Ground::bare().await;
    let kms = &ground.kms;
    let store = ground.create(kms, "store").await.unwrap();
    let entry = ground.describe(&store).await;
    assert_eq!(entry.connection_state, Some(ConnectionStateType::Disconnected));
    assert_eq!(entry.custom_key_store_type, Some(CustomKeyStoreType::ExternalKeyStore));
    assert_eq!(entry.connection_error_code, None);
    let proxy = entry.xks_proxy_configuration.unwrap();
    assert_eq!(proxy.connectivity, Some(XksProxyConnectivityType::PublicEndpoint));
    assert_eq!(proxy.uri_endpoint.unwrap(), ground.endpoint.url());
    assert_eq!(proxy.uri_path.unwrap(), xks_script::PATH);
    assert_eq!(proxy.access_key_id.unwrap(), xks_script::ACCESS_KEY);

    let connect = || kms.connect_custom_key_store().custom_key_store_id(&store);
    let disconnect = || kms.disconnect_custom_key_store().custom_key_store_id(&store);
    let delete = || kms.delete_custom_key_store().custom_key_store_id(&store);
    assert_eq!(code(refusal(disconnect().send().await)), "CustomKeyStoreInvalidStateException");
    ground.connect(&store).await;
    refusal(connect().send().await).unwrap();
    assert_eq!(ground.settled(&store).await.connection_state, Some(ConnectionStateType::Connected));
    assert_eq!(code(refusal(delete().send().await)), "CustomKeyStoreInvalidStateException");
    ground.disconnect(&store).await;
    refusal(delete().send().await).unwrap();
    for gone in [
        refusal(delete().send().await).map(|_| ()),
        refusal(connect().send().await).map(|_| ()),
        refusal(disconnect().send().await).map(|_| ()),
        refusal(kms.describe_custom_key_stores().custom_key_store_id(&store).send().await)
            .map(|_| ()),
        refusal(kms.update_custom_key_store().custom_key_store_id(&store).send().await).map(|_| ()),
        ground.create_key(&store, "one").await.map(|_| ()),
    ] {
        assert_eq!(code(gone), "CustomKeyStoreNotFoundException");
    }

    let health: Vec<_> = ground.endpoint.asked("/health");
    let operations: Vec<_> =
        health.iter().map(|body| body["requestMetadata"]["kmsOperation"].clone()).collect();
    assert_eq!(operations, ["CreateCustomKeyStore", "ConnectCustomKeyStore"]);
    let created = ground
        .front
        .calls()
        .into_iter()
        .find(|call| call.operation == "CreateCustomKeyStore")
        .unwrap();
    assert_eq!(
        health[0],
        json!({ "requestMetadata": { "kmsOperation": "CreateCustomKeyStore", "kmsRequestId": created.request_id } })
    );
    assert!(!format!("{:?}", ground.front.calls()).contains(xks_script::SECRET));
}

#[tokio::test]
async fn key_stores_are_found_by_id_or_name_page_by_page_and_only_in_their_region() {
    let ground = Ground::bare().await;
    let one = ground.create(&ground.kms, "one").await.unwrap();
    let settings = ground.endpoint.other_path("/two");
    let request = ground.request(&ground.kms, "two").xks_proxy_uri_path(&settings);
    let two = request.send().await.unwrap().custom_key_store_id.unwrap();

    let describe = || ground.kms.describe_custom_key_stores();
    let by_name =
        describe().custom_key_store_name("two").send().await.unwrap().custom_key_stores.unwrap();
    assert_eq!(by_name[0].custom_key_store_id.as_deref(), Some(two.as_str()));
    let both = describe().custom_key_store_name("two").custom_key_store_id(&two).send().await;
    assert_eq!(code(refusal(both)), "ValidationException");
    let unknown = describe().custom_key_store_name("three").send().await;
    assert_eq!(code(refusal(unknown)), "CustomKeyStoreNotFoundException");
    let page = describe().limit(1).send().await.unwrap();
    assert!(page.truncated);
    assert_eq!(
        page.custom_key_stores.unwrap()[0].custom_key_store_id.as_deref(),
        Some(one.as_str())
    );
    let last = describe().limit(1).marker(page.next_marker.unwrap()).send().await.unwrap();
    assert!(!last.truncated);
    assert_eq!(
        last.custom_key_stores.unwrap()[0].custom_key_store_id.as_deref(),
        Some(two.as_str())
    );
    assert_eq!(code(refusal(describe().marker("x").send().await)), "InvalidMarkerException");

    let elsewhere = ground.front.client("us-east-1", &ground.login);
    assert!(
        elsewhere
            .describe_custom_key_stores()
            .send()
            .await
            .unwrap()
            .custom_key_stores
            .unwrap()
            .is_empty()
    );
    let gone = elsewhere.describe_custom_key_stores().custom_key_store_id(&one).send().await;
    assert_eq!(code(refusal(gone)), "CustomKeyStoreNotFoundException");
    ground.create(&elsewhere, "one").await.unwrap();
}

#[tokio::test]
async fn managing_key_stores_needs_the_permission_of_that_name_on_every_resource() {
    let (ground, store) = Ground::new().await;
    let policy = |action: &str, resource: &str| {
        json!({
            "Version": "2012-10-17",
            "Statement": [{ "Effect": "Allow", "Action": action, "Resource": resource }],
        })
    };
    let describe = async |name: &str, policies: Vec<Value>| {
        let kms = ground.front.client(REGION, &ground.front.principal(name, policies));
        refusal(kms.describe_custom_key_stores().custom_key_store_id(&store).send().await)
            .map(|_| ())
    };
    let keys = format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/*");
    let denied = describe("none", vec![]).await.unwrap_err();
    assert_eq!(denied.0, "AccessDeniedException");
    let told = "is not authorized to perform: kms:DescribeCustomKeyStores on resource: * because \
        no identity-based policy allows";
    assert!(denied.1.contains(told), "{denied:?}");
    assert_eq!(code(describe("keys", vec![policy("kms:*", &keys)]).await), "AccessDeniedException");
    assert_eq!(
        code(describe("other", vec![policy("kms:DescribeKey", "*")]).await),
        "AccessDeniedException"
    );
    describe("right", vec![policy("kms:DescribeCustomKeyStores", "*")]).await.unwrap();
    let deny = json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Deny", "Action": "kms:DescribeCustomKeyStores", "Resource": "*" }],
    });
    assert_eq!(
        code(describe("both", vec![policy("kms:*", "*"), deny]).await),
        "AccessDeniedException"
    );

    let kms = ground.front.client(REGION, &ground.front.principal("nobody", vec![]));
    for denied in [
        refusal(ground.request(&kms, "x").send().await).map(|_| ()),
        refusal(kms.update_custom_key_store().custom_key_store_id(&store).send().await).map(|_| ()),
        refusal(kms.connect_custom_key_store().custom_key_store_id(&store).send().await)
            .map(|_| ()),
        refusal(kms.disconnect_custom_key_store().custom_key_store_id(&store).send().await)
            .map(|_| ()),
        refusal(kms.delete_custom_key_store().custom_key_store_id(&store).send().await).map(|_| ()),
        refusal(kms.create_key().send().await).map(|_| ()),
        refusal(kms.create_key().custom_key_store_id(&store).xks_key_id("one").send().await)
            .map(|_| ()),
    ] {
        assert_eq!(code(denied), "AccessDeniedException");
    }
}

#[tokio::test]
async fn settings_that_kms_does_not_take_are_refused() {
    let ground = Ground::bare().await;
    let request = || ground.request(&ground.kms, "x");
    let in_the_clear = ground.endpoint.url().replace("https", "http");
    let secret = xks_script::SECRET;
    for (case, request) in [
        ("no TLS", request().xks_proxy_uri_endpoint(in_the_clear)),
        ("a slash", request().xks_proxy_uri_endpoint(format!("{}/", ground.endpoint.url()))),
        ("no server", request().xks_proxy_uri_endpoint("https://")),
        ("no port", request().xks_proxy_uri_endpoint("https://localhost:")),
        ("no path", request().xks_proxy_uri_path("/")),
        ("other version", request().xks_proxy_uri_path("/kms/xks/v2")),
        ("dots", request().xks_proxy_uri_path("/../kms/xks/v1")),
        ("long path", request().xks_proxy_uri_path(format!("/{}/kms/xks/v1", "a".repeat(117)))),
        (
            "short key",
            request()
                .xks_proxy_authentication_credential(credential("ABCDEFGHIJKLMNOPQRS", secret)),
        ),
        (
            "small key",
            request()
                .xks_proxy_authentication_credential(credential("abcdefghijklmnopqrst", secret)),
        ),
        (
            "digits",
            request()
                .xks_proxy_authentication_credential(credential("ABCDEFGHIJKLMNOPQRS1", secret)),
        ),
        (
            "short secret",
            request()
                .xks_proxy_authentication_credential(credential(xks_script::ACCESS_KEY, "short")),
        ),
        ("CloudHSM", request().custom_key_store_type(CustomKeyStoreType::AwsCloudhsm)),
    ] {
        assert_eq!(code(refusal(request.send().await)), "ValidationException", "{case}");
    }
    let service = request().xks_proxy_connectivity(XksProxyConnectivityType::VpcEndpointService);
    assert_eq!(code(refusal(service.send().await)), "XksProxyVpcEndpointServiceNotFoundException");
    assert!(ground.endpoint.asked("/health").is_empty());

    ground.create(&ground.kms, "x").await.unwrap();
    assert_eq!(code(ground.create(&ground.kms, "y").await), "XksProxyUriInUseException");
    let other = ground.endpoint.other_path("/two");
    let taken = request().xks_proxy_uri_path(&other).send().await;
    assert_eq!(code(refusal(taken)), "CustomKeyStoreNameInUseException");
}

#[tokio::test]
async fn credentials_and_path_change_while_connected_and_the_endpoint_only_while_disconnected() {
    let (ground, store, key) = Ground::with_key().await;
    let blob = ground.encrypt(&key, b"text").await.unwrap();
    let update = || ground.kms.update_custom_key_store().custom_key_store_id(&store);
    refusal(update().new_custom_key_store_name("renamed").send().await).unwrap();
    assert_eq!(ground.describe(&store).await.custom_key_store_name.as_deref(), Some("renamed"));

    let (access_key, secret) = ("NEWACCESSKEYABCDEFGH", xks_script::SECRET.to_lowercase());
    let new = || update().xks_proxy_authentication_credential(credential(access_key, &secret));
    assert_eq!(
        refusal(new().send().await).map(|_| ()).unwrap_err(),
        refused(
            "XksProxyIncorrectAuthenticationCredentialException",
            "The external key store proxy rejected the request because it could not authenticate \
                AWS KMS. Verify the XKS proxy authentication credentials for your external key \
                store and update if necessary."
        )
    );
    ground.decrypt(&key, "a", &blob).await.unwrap();
    // As "SigV4 credentials rotation" in the specification: both at once, then the new one alone.
    ground.endpoint.accept(&[(xks_script::ACCESS_KEY, xks_script::SECRET), (access_key, &secret)]);
    refusal(new().send().await).unwrap();
    ground.endpoint.accept(&[(access_key, &secret)]);
    ground.decrypt(&key, "a", &blob).await.unwrap();
    assert_eq!(
        ground.endpoint.asked("/health").last().unwrap()["requestMetadata"]["kmsOperation"],
        "UpdateCustomKeyStore"
    );

    let other = ground.endpoint.other_path("/two");
    refusal(update().xks_proxy_uri_path(&other).send().await).unwrap();
    ground.decrypt(&key, "a", &blob).await.unwrap();
    let wrong = update().xks_proxy_uri_path("/none/kms/xks/v1").send().await;
    assert_eq!(code(refusal(wrong)), "XksProxyInvalidConfigurationException");
    let moved = ground.endpoint.url().replace("localhost", "LOCALHOST");
    let move_it = || update().xks_proxy_uri_endpoint(&moved);
    assert_eq!(code(refusal(move_it().send().await)), "CustomKeyStoreInvalidStateException");
    ground.disconnect(&store).await;
    refusal(move_it().send().await).unwrap();
    ground.connect(&store).await;
    ground.decrypt(&key, "a", &blob).await.unwrap();
}
