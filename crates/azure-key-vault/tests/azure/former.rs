//! Keys that were left: they unwrap, and their DEKs move.

use waxseal::kek::{ContextBinding, KekErrorClass, KekProvider};
use waxseal::{Aad, Envelope, KekId};
use waxseal_azure_key_vault::{AzureKeyVaultKek, AzureKeyVaultKekBuilder};
use waxseal_testing::support::context;

use crate::ground::{ALL, CLIENT, Ground, HSM, VAULT, dek};

const ELSEWHERE: &str = "old-orders.managedhsm.azure.net";

fn id(host: &str, key: &str) -> String {
    format!("https://{host}/keys/{key}")
}

fn builder(ground: &Ground, former: &[(&str, &str)]) -> AzureKeyVaultKekBuilder {
    let port = ground.azure.port();
    let builder = ground.builder_at(HSM, "cards", port);
    let builder = former
        .iter()
        .fold(builder, |builder, (host, _)| builder.address_of(*host, ground.azure.address()));
    builder
        .former_keys(former.iter().map(|(host, key)| format!("https://{host}:{port}/keys/{key}")))
}

async fn moves(ground: &Ground, old: &AzureKeyVaultKek, new: &AzureKeyVaultKek) {
    let alice = context("alice");
    let writer = Envelope::builder().wrap_with(old.clone());
    let writer = writer.allow_unauthenticated_wrapping(old.id().clone()).build().unwrap();
    let sealed = writer.encrypt(&alice, Aad::empty(), b"text").await.unwrap();
    let reader = |kek: &AzureKeyVaultKek| {
        let builder = Envelope::builder().wrap_with(kek.clone());
        builder.allow_unauthenticated_wrapping(kek.id().clone()).build().unwrap()
    };
    let envelope = reader(new);
    assert_eq!(&*envelope.decrypt(&alice, Aad::empty(), &sealed).await.unwrap(), b"text");
    assert!(envelope.needs_rewrap(&sealed).unwrap());
    let moved = envelope.rewrap(&alice, &sealed).await.unwrap();
    // Without the former key.
    let without = reader(&ground.hsm("cards"));
    let error = without.decrypt(&alice, Aad::empty(), &sealed).await;
    assert!(error.is_err(), "its key is not known any more");
    assert_eq!(&*without.decrypt(&alice, Aad::empty(), &moved).await.unwrap(), b"text");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_renamed_or_is_in_another_vault_still_unwraps_and_its_messages_move() {
    let ground = Ground::with_rsa();
    ground.azure.world().permit(ELSEWHERE, CLIENT, &ALL);
    ground.azure.world().create_aes(ELSEWHERE, "old");
    let port = ground.azure.port();
    let elsewhere = ground.builder_at(ELSEWHERE, "old", port).build().unwrap();
    for (old, at) in [
        (ground.hsm("other"), (HSM, "other")),
        (elsewhere, (ELSEWHERE, "old")),
        (ground.rsa("other"), (VAULT, "other")),
    ] {
        let new = builder(&ground, &[at]).build().unwrap();
        moves(&ground, &old, &new).await;
        let former = KekId::new(id(at.0, at.1)).unwrap();
        assert_eq!(&former, old.id());
        assert_eq!(new.target(&former).name(), id(at.0, at.1));
        assert_eq!(new.target(new.id()).name(), id(HSM, "cards"));
        // The budget is that of the former key's own vault.
        let budget = |kek: &AzureKeyVaultKek, id: &KekId| {
            kek.target(id).advice().call_budget().unwrap().clone()
        };
        assert!(budget(&new, &former).is_same(&budget(&old, old.id())));
    }
}

/// An entry is opened by the key that it names and by no other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_under_another_key_s_name_is_refused() {
    let ground = Ground::new();
    let (cards, other) = (ground.hsm("cards"), ground.hsm("other"));
    let both = builder(&ground, &[(HSM, "other")]).build().unwrap();
    let alice = context("alice");
    let wrapped = other.wrap(&alice, &dek()).await.unwrap();
    assert!(!cards.recognises(other.id()) && both.recognises(other.id()));
    assert_eq!((cards.is_current(&wrapped), both.is_current(&wrapped)), (None, Some(false)));
    assert_eq!(cards.unwrap(&alice, &wrapped).await.unwrap_err().class(), KekErrorClass::Invalid);
    both.unwrap(&alice, &wrapped).await.unwrap();
    let renamed = waxseal::WrappedDek::new(cards.id().clone(), wrapped.wrapped()).unwrap();
    // Its version is not one of that key.
    assert_eq!(both.unwrap(&alice, &renamed).await.unwrap_err().class(), KekErrorClass::Denied);
    let third = waxseal::WrappedDek::new(KekId::new(id(HSM, "third")).unwrap(), wrapped.wrapped());
    let error = both.unwrap(&alice, &third.unwrap()).await.unwrap_err();
    assert_eq!((error.class(), error.was_asked()), (KekErrorClass::Invalid, false));
}

/// A vault and a Managed HSM take tokens of different audiences.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_audience_has_its_token() {
    let ground = Ground::with_rsa();
    let kek = builder(&ground, &[(VAULT, "other"), (HSM, "other")]).build().unwrap();
    let alice = context("alice");
    let wrapped = [ground.rsa("other"), ground.hsm("other")];
    for old in wrapped {
        let wrapped = old.wrap(&alice, &dek()).await.unwrap();
        kek.unwrap(&alice, &wrapped).await.unwrap();
    }
    kek.wrap(&alice, &dek()).await.unwrap();
    let login = kek.login().unwrap();
    assert_eq!((login.logins, login.failures), (2, 0));
    // Abandoned, and loaded again.
    kek.close().await;
    assert_eq!(kek.login().unwrap().ends_in, None);
    kek.wrap(&alice, &dek()).await.unwrap();
    assert_eq!(kek.login().unwrap().logins, 3);
}

/// Anyone with its public key can wrap for a former RSA key, so readers have to accept that by
/// name.
#[tokio::test]
async fn a_former_key_that_wrapped_with_rsa_makes_the_kek_unauthenticated() {
    let ground = Ground::new();
    let kek = builder(&ground, &[(VAULT, "cards")]).build().unwrap();
    assert_eq!(kek.context_binding(), ContextBinding::Unauthenticated);
    let error = Envelope::builder().unwrap_with(kek.clone()).build().unwrap_err();
    assert!(error.to_string().contains("allow_unauthenticated_wrapping"), "{error}");
    let id = kek.id().clone();
    Envelope::builder().unwrap_with(kek).allow_unauthenticated_wrapping(id).build().unwrap();
    let kek = builder(&ground, &[(HSM, "other")]).build().unwrap();
    assert_eq!(kek.context_binding(), ContextBinding::Enforced);
}

#[tokio::test]
async fn a_former_key_that_is_none_is_refused_by_name() {
    let ground = Ground::new();
    let refused = |former: &[String], why: &str| {
        let builder = ground.builder_at(HSM, "cards", ground.azure.port());
        let error = builder.former_keys(former).build().unwrap_err().to_string();
        assert!(error.contains("former_keys: ") && error.contains(why), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    };
    refused(&["orders/cards".to_owned()], "https://HOST/keys/NAME");
    refused(&[id(HSM, "cards")], "twice");
    refused(&[id(HSM, "a"), id(HSM, "a")], "twice");
    refused(&[format!("{}/0a", id(HSM, "a"))], "version");
    refused(&[id("orders.vault.azure.cn", "a")], "another cloud");
    refused(&["https://u:hunter2@orders.vault.azure.net/keys/a".to_owned()], "not a vault");
    let many: Vec<_> = (0..257).map(|n| id(HSM, &format!("a{n}"))).collect();
    refused(&many, "at most 256");
}
