//! TLS, and a proxy that is killed.

use super::*;

#[tokio::test]
async fn a_client_refuses_the_proxy_with_a_certificate_of_another_name_another_authority_or_another_time()
 {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    // Each time a client with no connection left from before.
    let fresh = || Kms { client: client(&proxy, |builder| builder), ..kms.clone() };
    for (certificate, complaint) in [
        (Certificate::OtherName, "NotValidForName"),
        (Certificate::OtherAuthority, "BadSignature"),
        (Certificate::Expired, "Expired"),
    ] {
        fresh().health().await.good();
        proxy.present(certificate);
        let before = proxy.arrived(Operation::GetHealthStatus);
        let error = fresh()
            .signed("POST", &format!("{}/health", proxy.uri_path()), b"{}")
            .send()
            .await
            .unwrap_err();
        assert!(format!("{error:?}").contains(complaint), "{certificate:?}: {error:?}");
        assert_eq!(proxy.arrived(Operation::GetHealthStatus), before, "nothing was sent");
        proxy.present(Certificate::Right);
    }
    fresh().health().await.good();
    // A client that is already connected is cut off, so that it has to check the certificate.
    proxy.fail(Fault::new(Effect::Hang).on(Operation::GetKeyMetadata));
    let path = format!("{}/keys/{KEY}/metadata", proxy.uri_path());
    let connected = tokio::spawn(fresh().signed("POST", &path, b"{}").send());
    while proxy.arrived(Operation::GetKeyMetadata) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.present(Certificate::OtherName);
    let error = connected.await.unwrap().unwrap_err();
    assert!(!error.is_timeout(), "{error:?}");
}

#[tokio::test]
async fn both_versions_of_tls_are_served_and_nothing_in_the_clear() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    for change in [
        (|builder| builder.tls_version_max(reqwest::tls::Version::TLS_1_2))
            as fn(reqwest::ClientBuilder) -> _,
        |builder| builder.tls_version_min(reqwest::tls::Version::TLS_1_3),
    ] {
        Kms { client: client(&proxy, change), ..kms.clone() }.health().await.good();
    }
    let before = proxy.arrived(Operation::GetHealthStatus);
    let plain = format!("http://localhost:{}{}/health", proxy.port(), proxy.uri_path());
    kms.client.post(plain).body("{}").send().await.unwrap_err();
    assert_eq!(proxy.arrived(Operation::GetHealthStatus), before);
}

#[tokio::test]
async fn a_proxy_that_is_killed_refuses_connections_and_comes_back_as_it_was() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    proxy.deny(MALLORY);
    proxy.fail(Fault::new(Effect::Hang).on(Operation::Decrypt).times(1));
    let hanging = tokio::spawn({
        let path = format!("{}/keys/{KEY}/decrypt", proxy.uri_path());
        kms.signed("POST", &path, b"{}").send()
    });
    while proxy.arrived(Operation::Decrypt) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.kill();
    hanging.await.unwrap().unwrap_err();
    // A client with no connection left from before.
    let kms = Kms { client: client(&proxy, |builder| builder), ..kms };
    let path = format!("{}/health", proxy.uri_path());
    assert!(kms.signed("POST", &path, b"{}").send().await.unwrap_err().is_connect());
    proxy.restart();
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK);
    let mallory = Kms { principal: MALLORY, ..kms.clone() };
    assert_eq!(mallory.decrypt(KEY, &encrypted, None).await.error(), ErrorName::AccessDenied);
}
