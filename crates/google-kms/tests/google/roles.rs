//! The minimum that each role needs, tried against the stand-in, which knows Google's predefined
//! roles: what each may do, and what it may not.

use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_google_kms::GoogleKmsKek;
use waxseal_testing::google::Source;
use waxseal_testing::support::{a_dek, context};

use crate::Ground;

/// A provider for an account with these roles on the key.
async fn with_roles(ground: &Ground, account: &str, roles: &[&str]) -> GoogleKmsKek {
    for role in roles {
        ground.front.world().grant(&ground.key, &format!("roles/cloudkms.{role}"), account);
    }
    ground.front.set_source(Source::Gives { account: account.to_owned(), seconds: 3600 });
    let kek = ground.kek().await;
    // The token is fetched now, for this account.
    let _ = kek.read_key().await;
    ground.front.restore_source();
    kek
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_may_do_what_the_page_says_and_nothing_else() {
    let ground = Ground::software();
    let alice = context("alice");
    let wrapped = ground.kek().await.wrap(&alice, &a_dek()).await.unwrap();
    for (account, roles, wraps, unwraps, looks) in [
        ("writer", &["cryptoKeyEncrypter"][..], true, false, false),
        ("reader", &["cryptoKeyDecrypter"], false, true, false),
        ("rewrapper", &["cryptoKeyEncrypter", "cryptoKeyDecrypter"], true, true, false),
        ("looker", &["viewer"], false, false, true),
        ("administrator", &["admin"], false, false, true),
    ] {
        let kek = with_roles(&ground, account, roles).await;
        for (what, is_allowed, result) in [
            ("wrap", wraps, kek.wrap(&alice, &a_dek()).await.map(|_| ())),
            ("unwrap", unwraps, kek.unwrap(&alice, &wrapped).await.map(|_| ())),
            ("rewrap", wraps && unwraps, kek.rewrap(&alice, &wrapped).await.map(|_| ())),
            ("look", looks, kek.read_key().await.map(|_| ())),
        ] {
            assert_eq!(result.is_ok(), is_allowed, "{account} {what}: {result:?}");
            if let Err(error) = result {
                assert_eq!(error.class(), KekErrorClass::Denied, "{account} {what}: {error}");
                assert!(error.to_string().contains("cloudkms."), "names the permission: {error}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrapper_needs_the_reader_s_role_on_a_former_key_and_no_more() {
    let ground = Ground::software();
    let old = ground.front.create_key("old", waxseal_testing::google::Protection::Software);
    let alice = context("alice");
    let wrapped = ground.builder(&old).build().await.unwrap().wrap(&alice, &a_dek()).await.unwrap();
    let account = "mover";
    for (key, role) in [
        (&ground.key, "roles/cloudkms.cryptoKeyEncrypter"),
        (&old, "roles/cloudkms.cryptoKeyDecrypter"),
    ] {
        ground.front.world().grant(key, role, account);
    }
    ground.front.set_source(Source::Gives { account: account.to_owned(), seconds: 3600 });
    let kek = ground.builder(&ground.key).former_keys([&old]).build().await.unwrap();
    let moved = kek.rewrap(&alice, &wrapped).await.unwrap();
    assert_eq!(moved.kek_id().as_str(), ground.key);
    assert_eq!(kek.unwrap(&alice, &moved).await.unwrap_err().class(), KekErrorClass::Denied);
}
