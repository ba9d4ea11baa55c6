//! The provider configured by the environment alone, and which roots are trusted. The variables are
//! the process's, so this file has one test.
#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use openbao::{OpenBao, Options};
use serde_json::json;
use support::{a_dek, context};
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_testing::{openbao, support};
use waxseal_vault_transit::{VaultAuth, VaultTransitKek, VaultTransitKekBuilder};

fn set(name: &str, value: impl AsRef<std::ffi::OsStr>) {
    // SAFETY: the one test of this process sets its variables before it starts anything that reads
    // them at the same time.
    unsafe { std::env::set_var(name, value) }
}

#[test]
fn the_environment_configures_it_and_a_named_ca_replaces_the_systems() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tls = || Options { tls: true, ..Options::default() };
    let (server, stranger, token) = runtime.block_on(async {
        let server = OpenBao::with(tls()).await;
        let stranger = OpenBao::with(tls()).await;
        server.put("sys/namespaces/team", json!({})).await;
        server.put("team/sys/mounts/transit", json!({ "type": "transit" })).await;
        server.put("team/transit/keys/orders", json!({ "derived": true })).await;
        let token = server.root_token().to_owned();
        (server, stranger, token)
    });
    let (alice, dek) = (context("alice"), a_dek());
    set("BAO_ADDR", server.address());
    set("VAULT_ADDR", "https://overruled.example");
    set("VAULT_TOKEN", &token);
    set("BAO_NAMESPACE", "team");
    set("BAO_CACERT", server.ca_file());
    runtime.block_on(async {
        let kek = VaultTransitKekBuilder::from_env("test", "orders").build().unwrap();
        let wrapped = kek.wrap(&alice, &dek).await.unwrap();
        assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
        // What is set on the builder wins.
        let other =
            VaultTransitKekBuilder::from_env("test", "orders").namespace("nobody").build().unwrap();
        assert!(other.wrap(&alice, &dek).await.is_err());
    });

    // From here on the system itself vouches for the server.
    set("SSL_CERT_FILE", server.ca_file());
    runtime.block_on(async {
        let builder = || {
            let builder = VaultTransitKek::builder("test", "orders")
                .address(server.address())
                .namespace("team");
            builder.auth(VaultAuth::token(&*token))
        };
        builder().build().unwrap().wrap(&alice, &dek).await.unwrap();
        let error = builder()
            .ca_file(stranger.ca_file())
            .build()
            .unwrap()
            .wrap(&alice, &dek)
            .await
            .unwrap_err();
        assert_eq!(error.class(), KekErrorClass::Misconfigured);
        assert!(error.to_string().contains("invalid peer certificate"), "{error}");
    });
}
