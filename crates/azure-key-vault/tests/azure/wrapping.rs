//! What is wrapped, and what cannot be unwrapped: contexts, versions, damage, lies of the service.

use serde_json::json;
use waxseal::kek::{ContextBinding, KekErrorClass, KekProvider};
use waxseal::{Aad, Envelope, ErrorKind, WrappedDek};
use waxseal_azure_key_vault::{Algorithm, AzureKeyVaultKek};
use waxseal_testing::azure::{Effect, Fault};
use waxseal_testing::support::context;

use crate::ground::{Ground, HSM, VAULT, dek};

fn damaged(kek: &AzureKeyVaultKek, bytes: Vec<u8>) -> WrappedDek {
    WrappedDek::new(kek.id().clone(), bytes).unwrap()
}

/// Every bit of a DEK that an HSM wrapped, and so of version, iv, tag and ciphertext.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bit_of_a_wrapped_key_counts_in_a_managed_hsm() {
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    let alice = context("alice");
    let wrapped = kek.wrap(&alice, &dek()).await.unwrap();
    assert_eq!(wrapped.wrapped().len(), 78);
    for bit in 0..wrapped.wrapped().len() * 8 {
        let mut bytes = wrapped.wrapped().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = kek.unwrap(&alice, &damaged(&kek, bytes)).await.unwrap_err();
        // A bit of the version names one that is not there.
        let of_the_version = (2..18).contains(&(bit / 8));
        let class = if of_the_version { KekErrorClass::Denied } else { KekErrorClass::Invalid };
        assert_eq!(error.class(), class, "bit {bit}: {error}");
        assert_eq!(error.was_asked(), bit / 8 >= 2, "bit {bit}: {error}");
    }
    for len in 0..wrapped.wrapped().len() {
        if let Ok(cut) = WrappedDek::new(kek.id().clone(), &wrapped.wrapped()[..len]) {
            let error = kek.unwrap(&alice, &cut).await.unwrap_err();
            assert_eq!((error.class(), error.was_asked()), (KekErrorClass::Invalid, false));
        }
    }
}

/// Of RSA one bit of each byte: the stand-in is honest about the cost of a private key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_of_a_wrapped_key_counts_with_rsa() {
    let ground = Ground::with_rsa();
    let kek = ground.rsa("cards");
    let alice = context("alice");
    let wrapped = kek.wrap(&alice, &dek()).await.unwrap();
    assert_eq!(wrapped.wrapped().len(), 18 + 256);
    for at in 0..wrapped.wrapped().len() {
        let mut bytes = wrapped.wrapped().to_vec();
        bytes[at] ^= 1 << (at % 8);
        let error = kek.unwrap(&alice, &damaged(&kek, bytes)).await.unwrap_err();
        assert!(
            matches!(error.class(), KekErrorClass::Invalid | KekErrorClass::Denied),
            "byte {at}: {error}"
        );
    }
}

#[tokio::test]
async fn the_hsm_itself_refuses_another_context_and_with_rsa_the_provider_does() {
    let ground = Ground::with_rsa();
    for (kek, operation) in [(ground.hsm("cards"), "decrypt"), (ground.rsa("cards"), "unwrapkey")] {
        let wrapped = kek.wrap(&context("alice"), &dek()).await.unwrap();
        let error = kek.unwrap(&context("bob"), &wrapped).await.unwrap_err();
        assert_eq!(error.class(), KekErrorClass::Invalid, "{error}");
        assert_eq!(error.was_asked(), operation == "decrypt");
        assert!(ground.azure.arrived(operation) > 0);
    }
    assert_eq!(ground.hsm("cards").context_binding(), ContextBinding::Enforced);
    assert_eq!(ground.rsa("cards").context_binding(), ContextBinding::Unauthenticated);
}

/// What is lost with RSA, shown: the public key is enough to make a message that a reader accepts.
/// So an envelope wants to hear it by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_rsa_whoever_has_the_public_key_makes_entries_that_unwrap() {
    let ground = Ground::with_rsa();
    let kek = ground.rsa("cards");
    let refused = Envelope::builder().unwrap_with(kek.clone()).build().unwrap_err();
    assert!(refused.to_string().contains("allow_unauthenticated_wrapping"), "{refused}");
    // Under branch keys the loss would not show any more: there is no option.
    let branches = waxseal::branch::BranchKek::builder(kek.clone());
    let refused = branches.name("orders").per(["tenant"]).self_contained().build().unwrap_err();
    assert!(refused.to_string().contains("anyone can wrap under it"), "{refused}");
    let envelope = Envelope::builder()
        .wrap_with(kek.clone())
        .allow_unauthenticated_wrapping(kek.id().clone())
        .build()
        .unwrap();
    let alice = context("alice");
    let sealed = envelope.encrypt(&alice, Aad::empty(), b"text").await.unwrap();
    assert_eq!(&*envelope.decrypt(&alice, Aad::empty(), &sealed).await.unwrap(), b"text");

    // A stranger: no token, no permission, and no wrapping by the service.
    let (material, version) = {
        let mut world = ground.azure.world();
        let newest = world.newest(VAULT, "cards");
        (newest.material.clone(), newest.version.clone())
    };
    let own = dek();
    let forged = material.wrap(&[own.expose(), &alice.digest()[..]].concat()).unwrap();
    let version = from_hex(&version);
    let entry = damaged(&kek, [&[2, 0][..], &version, &forged].concat());
    assert_eq!(kek.unwrap(&alice, &entry).await.unwrap().expose(), own.expose());
    // What the digest does hold: the stranger cannot move an entry of others to another context.
    let error = kek.unwrap(&context("bob"), &entry).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Invalid);
    // Nor a DEK of another length.
    let short = material.wrap(&[&own.expose()[1..], &alice.digest()[..]].concat()).unwrap();
    let entry = damaged(&kek, [&[2, 0][..], &version, &short].concat());
    let error = kek.unwrap(&alice, &entry).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Invalid);
}

/// Names in a vault are not sensitive to case, and an answer has the name as the key was made.
#[tokio::test]
async fn an_answer_may_spell_the_name_of_a_key_in_a_vault_in_another_case() {
    let ground = Ground::with_rsa();
    let shout = |answer: &mut serde_json::Value| {
        let kid = answer["kid"].as_str().unwrap().replace("/keys/cards/", "/keys/CARDS/");
        answer["kid"] = kid.into();
    };
    ground.azure.fail(Fault::new(Effect::Alter(shout)));
    let (alice, dek) = (context("alice"), dek());
    let rsa = ground.rsa("cards");
    let wrapped = rsa.wrap(&alice, &dek).await.unwrap();
    assert_eq!(rsa.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
    let error = ground.hsm("cards").wrap(&alice, &dek).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Unavailable, "{error}");
    assert!(error.to_string().contains("another key"), "{error}");
}

fn from_hex(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// An entry of one form is not offered to a key of the other.
#[tokio::test]
async fn an_entry_of_another_algorithm_is_refused_unasked() {
    let ground = Ground::with_rsa();
    let (hsm, rsa) = (ground.hsm("cards"), ground.rsa("cards"));
    let by_hsm = hsm.wrap(&context("alice"), &dek()).await.unwrap();
    let error = rsa.unwrap(&context("alice"), &damaged(&rsa, by_hsm.wrapped().to_vec())).await;
    let error = error.unwrap_err();
    assert_eq!((error.class(), error.was_asked()), (KekErrorClass::Invalid, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_service_says_is_checked_before_it_is_believed() {
    type Lie = fn(&mut serde_json::Value);
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    let alice = context("alice");
    let wrapped = kek.wrap(&alice, &dek()).await.unwrap();
    let on_wrapping: [(&str, Lie, KekErrorClass); 9] = [
        ("an iv of zeros", |a| a["iv"] = json!("AAAAAAAAAAAAAAAA"), KekErrorClass::Misconfigured),
        ("a short iv", |a| a["iv"] = json!("AAAA"), KekErrorClass::Unavailable),
        ("no iv", |a| a["iv"] = json!(null), KekErrorClass::Unavailable),
        ("no tag", |a| a["tag"] = json!(null), KekErrorClass::Unavailable),
        ("a short ciphertext", |a| a["value"] = json!("AAAA"), KekErrorClass::Unavailable),
        ("no base64", |a| a["value"] = json!("***"), KekErrorClass::Unavailable),
        (
            "another key",
            |a| a["kid"] = json!("https://orders.managedhsm.azure.net/keys/other/0a"),
            KekErrorClass::Unavailable,
        ),
        (
            "another vault",
            |a| a["kid"] = json!("https://evil.managedhsm.azure.net/keys/cards/0a"),
            KekErrorClass::Unavailable,
        ),
        ("no kid", |a| a["kid"] = json!(null), KekErrorClass::Unavailable),
    ];
    for (name, lie, class) in on_wrapping {
        ground.azure.fail(Fault::new(Effect::Alter(lie)).on("encrypt"));
        let error = kek.wrap(&alice, &dek()).await.unwrap_err();
        assert_eq!(error.class(), class, "{name}: {error}");
        ground.azure.recover();
    }
    let on_unwrapping: [(&str, Lie); 3] = [
        ("another version", |a| {
            a["kid"] = json!("https://orders.managedhsm.azure.net/keys/cards/0a");
        }),
        ("no value", |a| a["value"] = json!(null)),
        ("something else", |a| *a = json!([1])),
    ];
    for (name, lie) in on_unwrapping {
        ground.azure.fail(Fault::new(Effect::Alter(lie)).on("decrypt"));
        let error = kek.unwrap(&alice, &wrapped).await.unwrap_err();
        assert_eq!(error.class(), KekErrorClass::Unavailable, "{name}: {error}");
        ground.azure.recover();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_iv_that_comes_again_is_refused() {
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    let always: fn(&mut serde_json::Value) = |answer| answer["iv"] = json!("AQEBAQEBAQEBAQEB");
    ground.azure.fail(Fault::new(Effect::Alter(always)).on("encrypt"));
    kek.wrap(&context("alice"), &dek()).await.unwrap();
    let error = kek.wrap(&context("alice"), &dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Misconfigured);
    assert!(error.to_string().contains("twice"), "{error}");
}

/// The plaintext of another key, in an answer that names the right one: only the DEK id notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dek_id_catches_a_service_that_gives_another_dek() {
    let ground = Ground::new();
    let envelope = Envelope::builder().wrap_with(ground.hsm("cards")).build().unwrap();
    let sealed = envelope.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    let another: fn(&mut serde_json::Value) =
        |answer| answer["value"] = json!("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE");
    ground.azure.fail(Fault::new(Effect::Alter(another)).on("decrypt"));
    let reader = Envelope::builder().unwrap_with(ground.hsm("cards")).build().unwrap();
    let error = reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_vault_wants_its_algorithm_by_name_and_a_key_of_another_type_is_misconfigured() {
    let ground = Ground::with_rsa();
    let error = ground.builder_at(VAULT, "cards", ground.azure.port()).build().unwrap_err();
    assert!(error.to_string().contains("unauthenticated"), "{error}");
    let wrong = ground
        .builder_at(HSM, "cards", ground.azure.port())
        .algorithm(Algorithm::RsaOaep256)
        .build()
        .unwrap();
    let error = wrong.read_key().await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Misconfigured, "{error}");
    let error = wrong.wrap(&context("alice"), &dek()).await.unwrap_err();
    assert!(
        matches!(error.class(), KekErrorClass::Misconfigured | KekErrorClass::Denied),
        "{error}"
    );
}

/// rewrap is two calls, and the DEK passes through this process: the provider says so.
#[tokio::test]
async fn a_rewrap_is_two_calls() {
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    let (alice, dek) = (context("alice"), dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    ground.azure.world().rotate(HSM, "cards");
    let (encrypts, decrypts) = (ground.azure.arrived("encrypt"), ground.azure.arrived("decrypt"));
    let moved = kek.rewrap(&alice, &wrapped).await.unwrap();
    assert_eq!(ground.azure.arrived("encrypt") - encrypts, 1);
    assert_eq!(ground.azure.arrived("decrypt") - decrypts, 1);
    assert!(!kek.rewraps_in_service());
    assert_eq!(kek.is_current(&moved), Some(true));
    assert_eq!(kek.is_current(&wrapped), Some(false));
    assert_eq!(kek.unwrap(&alice, &moved).await.unwrap().expose(), dek.expose());
    assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
}
