//! A proxy that is not well, out of reach, not trusted or slow.

use super::*;

/// What can be wrong with a proxy, with the exception of CreateCustomKeyStore, the connection error
/// code and the text.
#[tokio::test]
async fn a_proxy_that_is_not_well_gives_the_exception_and_the_connection_error_code_of_its_trouble()
{
    let ground = Ground::bare().await;
    let store = ground.create(&ground.kms, "store").await.unwrap();
    let other_path = ground.endpoint.other_path("/two");
    let of = |name: &'static str, status| Act::Error(status, name);
    let bent = |bend: Bend| Act::Bend(bend);
    let unreachable = "XksProxyUriUnreachableException";
    let response = "XksProxyInvalidResponseException";
    let cases = [
        (
            "401",
            of("AuthenticationFailedException", 401),
            "XksProxyIncorrectAuthenticationCredentialException",
            "INVALID_CREDENTIALS",
        ),
        ("403", of("AccessDeniedException", 403), response, "XKS_PROXY_ACCESS_DENIED"),
        (
            "path",
            of("InvalidUriPathException", 404),
            "XksProxyInvalidConfigurationException",
            "XKS_PROXY_INVALID_CONFIGURATION",
        ),
        ("503", of("DependencyTimeoutException", 503), unreachable, "XKS_PROXY_TIMED_OUT"),
        ("429", of("ThrottlingException", 429), unreachable, "XKS_PROXY_NOT_REACHABLE"),
        ("500", of("InternalException", 500), response, "XKS_PROXY_INVALID_RESPONSE"),
        ("400", of("ValidationException", 400), response, "XKS_PROXY_INVALID_RESPONSE"),
        ("501", of("UnsupportedOperationException", 501), response, "XKS_PROXY_INVALID_RESPONSE"),
        ("state", of("InvalidStateException", 400), response, "XKS_PROXY_INVALID_RESPONSE"),
        ("no JSON", Act::Raw(502, "<html>".into()), response, "XKS_PROXY_INVALID_RESPONSE"),
        (
            "no HTTP",
            Act::Bytes(b"SSH-2.0\r\n\r\n".to_vec()),
            response,
            "XKS_PROXY_INVALID_RESPONSE",
        ),
        ("hangs up", Act::Bytes(Vec::new()), unreachable, "NETWORK_ERRORS"),
        (
            "no fleet",
            bent(|health| health["xksProxyFleetSize"] = json!(0)),
            response,
            "XKS_PROXY_INVALID_RESPONSE",
        ),
        (
            "no vendor",
            bent(|health| health["ekmVendor"] = Value::Null),
            response,
            "XKS_PROXY_INVALID_RESPONSE",
        ),
        (
            "no managers",
            bent(|health| health["ekmFleetDetails"] = json!([])),
            response,
            "XKS_PROXY_INVALID_RESPONSE",
        ),
        (
            "eleven",
            bent(|health| {
                let one = health["ekmFleetDetails"][0].clone();
                health["ekmFleetDetails"] = json!(vec![one; 11]);
            }),
            response,
            "XKS_PROXY_INVALID_RESPONSE",
        ),
        (
            "strange status",
            bent(|health| health["ekmFleetDetails"][0]["healthStatus"] = json!("FINE")),
            response,
            "XKS_PROXY_INVALID_RESPONSE",
        ),
        (
            "no manager serves",
            bent(|health| health["ekmFleetDetails"][0]["healthStatus"] = json!("UNAVAILABLE")),
            unreachable,
            "XKS_PROXY_NOT_REACHABLE",
        ),
    ];
    for (case, act, exception, error_code) in cases {
        ground.endpoint.act(act);
        let created =
            ground.request(&ground.kms, "two").xks_proxy_uri_path(&other_path).send().await;
        assert_eq!(code(refusal(created)), exception, "{case}");
        assert_eq!(ground.failed_connect(&store).await, error_code, "{case}");
    }
    ground
        .endpoint
        .act(bent(|health| health["ekmFleetDetails"][0]["healthStatus"] = json!("DEGRADED")));
    ground.connect(&store).await;
}

impl Ground {
    /// Connects in vain: the error code. The key store has to be disconnected before the next
    /// attempt.
    async fn failed_connect(&self, store: &str) -> String {
        let connect = async || {
            refusal(self.kms.connect_custom_key_store().custom_key_store_id(store).send().await)
        };
        connect().await.unwrap();
        let entry = self.settled(store).await;
        assert_eq!(entry.connection_state, Some(ConnectionStateType::Failed));
        assert_eq!(code(connect().await), "CustomKeyStoreInvalidStateException");
        let renamed = self
            .kms
            .update_custom_key_store()
            .custom_key_store_id(store)
            .new_custom_key_store_name("new");
        assert_eq!(code(refusal(renamed.send().await)), "CustomKeyStoreInvalidStateException");
        self.disconnect(store).await;
        assert_eq!(self.describe(store).await.connection_error_code, None);
        entry.connection_error_code.unwrap().as_str().to_owned()
    }
}

#[tokio::test]
async fn a_proxy_that_cannot_be_reached_or_trusted_gives_its_own_code_and_text() {
    let (mut ground, store, key) = Ground::with_key().await;
    let blob = ground.encrypt(&key, b"text").await.unwrap();
    ground.disconnect(&store).await;
    let stranger = Authority::new();
    let cases = [
        (
            "another authority",
            Some(stranger.identity("localhost")),
            NO_TLS,
            "XKS_PROXY_INVALID_TLS_CONFIGURATION",
        ),
        (
            "another name",
            Some(ground.authority.identity("elsewhere")),
            NO_TLS,
            "XKS_PROXY_INVALID_TLS_CONFIGURATION",
        ),
        (
            "expired",
            Some(ground.authority.expired("localhost")),
            NO_TLS,
            "XKS_PROXY_INVALID_TLS_CONFIGURATION",
        ),
        ("no TLS", None, NO_TLS, "XKS_PROXY_INVALID_TLS_CONFIGURATION"),
    ];
    for (case, identity, text, error_code) in cases {
        ground.endpoint.identify(identity);
        assert_eq!(ground.failed_connect(&store).await, error_code, "{case}");
        ground.endpoint.identify(Some(ground.authority.identity("localhost")));
        ground.connect(&store).await;
        ground.encrypt(&key, b"text").await.unwrap();
        // A connection that is kept has been checked; the next one is checked again.
        ground.endpoint.hang_up();
        ground.endpoint.identify(match case {
            "another authority" => Some(stranger.identity("localhost")),
            "another name" => Some(ground.authority.identity("elsewhere")),
            "expired" => Some(ground.authority.expired("localhost")),
            _ => None,
        });
        ground.assert_cryptography_fails(&key, &blob, text, case).await;
        ground.endpoint.identify(Some(ground.authority.identity("localhost")));
        ground.disconnect(&store).await;
    }
    ground.connect(&store).await;
    ground.endpoint.stop().await;
    ground.assert_cryptography_fails(&key, &blob, NOT_REACHABLE, "nobody listens").await;
    ground.disconnect(&store).await;
    assert_eq!(ground.failed_connect(&store).await, "XKS_PROXY_NOT_REACHABLE");
}

#[tokio::test]
async fn kms_waits_for_a_proxy_until_its_time_is_over_and_that_is_250_ms() {
    let (ground, store, key) = Ground::with_key().await;
    let blob = ground.encrypt(&key, b"text").await.unwrap();
    let fresh = KmsFront::start();
    let default = fresh.world().network.read().unwrap().patience;
    assert_eq!(default, Duration::from_millis(250));
    // Not so short here that a busy machine has no time to connect.
    ground.front.world().network.write().unwrap().patience = Duration::from_secs(1);
    // Each of these answers would be right in the end.
    for (case, act) in [
        ("silence", Act::Late(Duration::from_secs(600))),
        ("one byte a time", Act::Trickle(Duration::from_millis(300))),
        ("a handshake that does not end", Act::Late(Duration::from_secs(600))),
    ] {
        ground.endpoint.act(act);
        if case.starts_with("a handshake") {
            ground.endpoint.hang_up();
            ground.endpoint.identify_silently();
        }
        ground.assert_cryptography_fails(&key, &blob, TIMED_OUT, case).await;
    }
    ground.disconnect(&store).await;
    assert_eq!(ground.failed_connect(&store).await, "XKS_PROXY_TIMED_OUT");
}
