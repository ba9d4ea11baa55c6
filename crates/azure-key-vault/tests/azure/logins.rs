//! Who the provider is: tokens, their end, refusals, outages of the login, certificates.

use std::time::Duration;

use futures_util::future::join_all;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_azure_key_vault::Credential;
use waxseal_testing::azure::{Effect, Fault, TENANT};
use waxseal_testing::support::context;

use crate::ground::{CLIENT, Ground, HSM, dek};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_share_one_login() {
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    let alice = context("alice");
    let deks: Vec<_> = (0..20).map(|_| dek()).collect();
    for wrapped in join_all(deks.iter().map(|dek| kek.wrap(&alice, dek))).await {
        wrapped.unwrap();
    }
    assert_eq!(ground.azure.arrived("login"), 1);
    let login = kek.login().unwrap();
    assert_eq!((login.logins, login.failures), (1, 0));
    assert!(login.ends_in.unwrap() > Duration::from_secs(3000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_refused_is_replaced_within_the_call() {
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    kek.wrap(&context("alice"), &dek()).await.unwrap();
    for token in ground.azure.world().tokens.values_mut() {
        token.revoked = true;
    }
    kek.wrap(&context("alice"), &dek()).await.unwrap();
    assert_eq!(ground.azure.arrived("login"), 2);
}

/// In a token's last five minutes the SDK has every call wait for the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_hangs_holds_up_no_call_while_the_token_is_good() {
    let ground = Ground::new();
    ground.azure.world().applications.get_mut(CLIENT).unwrap().token_life = Duration::from_secs(40);
    let kek = ground.hsm("cards");
    kek.wrap(&context("alice"), &dek()).await.unwrap();
    ground.azure.fail(Fault::new(Effect::Hang).on("login"));
    for _ in 0..3 {
        let wrap = kek.wrap(&context("alice"), &dek()).await;
        wrap.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_is_down_is_an_outage_and_one_that_refuses_is_misconfigured() {
    let ground = Ground::new();
    let error = async || {
        let kek = ground.hsm("cards");
        kek.wrap(&context("alice"), &dek()).await.unwrap_err()
    };
    for (status, text, class) in [
        (503, "<html>", KekErrorClass::Unavailable),
        (500, "{}", KekErrorClass::Unavailable),
        (200, "{}", KekErrorClass::Unavailable),
        (429, "{}", KekErrorClass::Throttled),
        (
            400,
            r#"{"error":"invalid_grant","error_description":"AADSTS90033: transient","error_codes":[90033]}"#,
            KekErrorClass::Unavailable,
        ),
        (
            401,
            r#"{"error":"invalid_client","error_description":"AADSTS7000222: expired","error_codes":[7000222]}"#,
            KekErrorClass::Misconfigured,
        ),
    ] {
        ground.azure.fail(Fault::new(Effect::Raw(status, text)).on("login"));
        let error = error().await;
        assert_eq!(error.class(), class, "{status} {text}: {error}");
        assert!(error.to_string().contains("the login"), "{error}");
        ground.azure.recover();
    }
    std::fs::write(&ground.secret_file, "wrong").unwrap();
    let refused = error().await;
    assert_eq!(refused.class(), KekErrorClass::Misconfigured);
    assert!(refused.to_string().contains("AADSTS7000215"), "{refused}");
    std::fs::remove_file(&ground.secret_file).unwrap();
    let missing = error().await;
    assert_eq!((missing.class(), missing.was_asked()), (KekErrorClass::Misconfigured, false));
    assert!(missing.to_string().contains("secret_file"), "{missing}");
}

/// The file is read again with each login.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_was_replaced_is_used_at_the_next_login() {
    let ground = Ground::new();
    std::fs::write(&ground.secret_file, "wrong").unwrap();
    let kek = ground.hsm("cards");
    kek.wrap(&context("alice"), &dek()).await.unwrap_err();
    std::fs::write(&ground.secret_file, format!("secret-of-{CLIENT}\n")).unwrap();
    kek.wrap(&context("alice"), &dek()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_identity_logs_in_with_the_token_of_its_file() {
    let ground = Ground::new();
    let file = ground.azure.files().join("federated");
    std::fs::write(&file, "service-account-token").unwrap();
    let application = |world: &mut waxseal_testing::azure::World| {
        world.applications.get_mut(CLIENT).unwrap().federated =
            Some("service-account-token".to_owned());
    };
    application(&mut ground.azure.world());
    let credential = Credential::WorkloadIdentity {
        tenant_id: Some(TENANT.to_owned()),
        client_id: Some(CLIENT.to_owned()),
        token_file: Some(file.clone()),
    };
    let kek = || {
        let builder = ground.builder_at(HSM, "cards", ground.azure.port());
        builder.credential(credential.clone()).build().unwrap()
    };
    kek().wrap(&context("alice"), &dek()).await.unwrap();
    std::fs::write(&file, "another").unwrap();
    let error = kek().wrap(&context("alice"), &dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Misconfigured, "{error}");
}

/// The service's clock is an hour ahead: its tokens have ended when they come. And far behind: they
/// look good for longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_off_is_no_denial() {
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    kek.wrap(&context("alice"), &dek()).await.unwrap();
    // The service revokes the present token at once; a new one is good.
    ground.azure.world().clock = 7200;
    kek.wrap(&context("alice"), &dek()).await.unwrap();
    assert_eq!(ground.azure.arrived("login"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_logs_in_by_an_assertion_that_its_key_signs() {
    let ground = Ground::new();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let params = rcgen::CertificateParams::new(vec!["service".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let thumbprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.der());
    let thumbprint = data_encoding::BASE64URL_NOPAD.encode(thumbprint.as_ref());
    let registered = Some((thumbprint, key.public_key_raw().to_vec()));
    ground.azure.world().applications.get_mut(CLIENT).unwrap().certificate = registered;
    let file = ground.azure.files().join("certificate.pem");
    std::fs::write(&file, certificate.pem() + &key.serialize_pem()).unwrap();
    let kek = || {
        let credential = Credential::ClientCertificate {
            tenant_id: TENANT.to_owned(),
            client_id: CLIENT.to_owned(),
            certificate_file: file.clone(),
        };
        let builder = ground.builder_at(HSM, "cards", ground.azure.port());
        builder.credential(credential).build().unwrap()
    };
    kek().wrap(&context("alice"), &dek()).await.unwrap();
    // Another key under the same certificate.
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    std::fs::write(&file, certificate.pem() + &other.serialize_pem()).unwrap();
    let error = kek().wrap(&context("alice"), &dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Misconfigured, "{error}");
    std::fs::write(&file, certificate.pem()).unwrap();
    let error = kek().wrap(&context("alice"), &dek()).await.unwrap_err();
    assert!(error.to_string().contains("no private key"), "{error}");
}
