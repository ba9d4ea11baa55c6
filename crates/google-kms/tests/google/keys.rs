//! Versions, rotation, former keys, batches, what is shown.

use std::time::Duration;

use waxseal::kek::{Health, KekErrorClass, KekProvider};
use waxseal::{Aad, CallBudget, Envelope, WrappedDek, inspect};
use waxseal_google_kms::HealthCheck;
use waxseal_testing::google::{Effect, Fault, Names, PROJECT, Protection, State};
use waxseal_testing::support::{a_dek, context};

use crate::{Ground, patient};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_carries_the_key_s_name_and_the_version_s_number() {
    let ground = Ground::software();
    let envelope = Envelope::builder().wrap_with(ground.kek().await).build().unwrap();
    let sealed = envelope.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    let entry = &inspect(&sealed).unwrap().keks[0];
    assert_eq!(entry.kek_id.as_str(), ground.key);
    assert_eq!(&*entry.meta, b"1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_old_messages_are_rewrapped_by_two_requests_and_still_open() {
    let ground = Ground::software();
    let (alice, kek) = (context("alice"), ground.kek().await);
    let builder = || Envelope::builder().wrap_with(kek.clone()).call_policy(patient());
    let sealed = builder().build().unwrap().encrypt(&alice, Aad::empty(), b"text").await.unwrap();
    ground.front.world().key(&ground.key).rotate();
    let envelope = builder().build().unwrap();
    assert!(!envelope.needs_rewrap(&sealed).unwrap(), "nobody here knows of it yet");
    assert_eq!(kek.read_key().await.unwrap().primary_version, Some(2));
    assert!(envelope.needs_rewrap(&sealed).unwrap());
    let (encrypts, decrypts) = (ground.front.arrived("encrypt"), ground.front.arrived("decrypt"));
    let moved = envelope.rewrap_unverified(&alice, &sealed).await.unwrap();
    let made =
        (ground.front.arrived("encrypt") - encrypts, ground.front.arrived("decrypt") - decrypts);
    assert_eq!(made, (1, 1));
    assert!(!kek.rewraps_in_service());
    assert!(!envelope.needs_rewrap(&moved).unwrap());
    ground.front.world().key(&ground.key).version(1).state = State::Disabled;
    let reader = builder().build().unwrap();
    assert_eq!(&*reader.decrypt(&alice, Aad::empty(), &moved).await.unwrap(), b"text");
    assert!(reader.decrypt(&alice, Aad::empty(), &sealed).await.is_ok(), "its DEK is cached");
    let reader = builder().build().unwrap();
    assert!(reader.decrypt(&alice, Aad::empty(), &sealed).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_decrypt_says_of_the_version_counts_more_than_the_metadata() {
    let ground = Ground::software();
    let (alice, kek) = (context("alice"), ground.kek().await);
    let old = kek.wrap(&alice, &a_dek()).await.unwrap();
    ground.front.world().key(&ground.key).rotate();
    kek.wrap(&alice, &a_dek()).await.unwrap();
    let bare = WrappedDek::new(old.kek_id().clone(), old.wrapped()).unwrap();
    let lying = bare.clone().with_meta(*b"2").unwrap();
    assert_eq!(kek.is_current(&lying), Some(true), "so far it is believed");
    kek.unwrap(&alice, &lying).await.unwrap();
    assert_eq!(kek.is_current(&lying), Some(false));
    assert_eq!(kek.is_current(&bare), Some(false));
    assert_eq!(kek.key_version(&lying), None);
    assert_eq!(kek.key_version(&old).as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_key_of_another_project_still_unwraps_and_its_messages_move() {
    let ground = Ground::software();
    let elsewhere = "projects/old-project/locations/us/keyRings/r/cryptoKeys/k";
    {
        let mut world = ground.front.world();
        world.create_key(elsewhere, Protection::Hsm);
        let role = "roles/cloudkms.cryptoKeyEncrypterDecrypter";
        world.grant(elsewhere, role, waxseal_testing::google::ACCOUNT);
    }
    let alice = context("alice");
    let old = ground.builder(elsewhere).build().await.unwrap();
    let writer = Envelope::builder().wrap_with(old).build().unwrap();
    let sealed = writer.encrypt(&alice, Aad::empty(), b"text").await.unwrap();
    let kek = ground.builder(&ground.key).former_keys([elsewhere]).build().await.unwrap();
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    assert!(envelope.needs_rewrap(&sealed).unwrap());
    let moved = envelope.rewrap(&alice, &sealed).await.unwrap();
    let reader = Envelope::builder().unwrap_with(ground.kek().await).build().unwrap();
    assert_eq!(&*reader.decrypt(&alice, Aad::empty(), &moved).await.unwrap(), b"text");
    let names: Vec<_> = [ground.key.as_str(), elsewhere]
        .map(|name| kek.target(&waxseal::KekId::new(name).unwrap()).name().to_owned())
        .into();
    assert_eq!(names, [ground.key.as_str(), elsewhere]);
}

/// Google takes either name of a project. No page says which of them answers have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_may_be_named_by_its_number_and_answers_by_its_id() {
    let ground = Ground::software();
    ground.front.world().project_numbers.insert(PROJECT.to_owned(), "123456789012".to_owned());
    let by_number = ground.key.replace(PROJECT, "projects/123456789012");
    let alice = context("alice");
    for names in [Names::AsAsked, Names::ById, Names::ByNumber] {
        ground.front.world().names = names;
        for key in [&ground.key, &by_number] {
            let kek = ground.builder(key).build().await.unwrap();
            let dek = a_dek();
            let wrapped = kek.wrap(&alice, &dek).await.unwrap();
            // The id is the name that was configured, whatever the answer says.
            assert_eq!(wrapped.kek_id().as_str(), key, "{names:?}");
            assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
            assert_eq!(kek.read_key().await.unwrap().name, *key);
            assert_eq!(kek.target(kek.id()).name(), key);
            assert_eq!(kek.is_current(&wrapped), Some(true));
        }
    }
}

/// Two names of one key are two KEK ids. `former_keys` joins them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_under_the_other_name_of_a_project_need_it_as_a_former_key() {
    let ground = Ground::software();
    ground.front.world().project_numbers.insert(PROJECT.to_owned(), "123456789012".to_owned());
    let by_number = ground.key.replace(PROJECT, "projects/123456789012");
    let alice = context("alice");
    let before = ground.builder(&by_number).build().await.unwrap();
    let dek = a_dek();
    let wrapped = before.wrap(&alice, &dek).await.unwrap();
    let strict = ground.kek().await;
    assert!(!strict.recognises(wrapped.kek_id()));
    let error = strict.unwrap(&alice, &wrapped).await.unwrap_err();
    assert_eq!((error.class(), error.was_asked()), (KekErrorClass::Invalid, false));
    let kek = ground.builder(&ground.key).former_keys([&by_number]).build().await.unwrap();
    assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
    assert_eq!(kek.is_current(&wrapped), Some(false), "a rewrap writes the new name");
    let moved = kek.rewrap(&alice, &wrapped).await.unwrap();
    assert_eq!(moved.kek_id().as_str(), ground.key);
    strict.unwrap(&alice, &moved).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_keeps_its_order_and_makes_a_bounded_number_of_requests_at_once() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    let contexts: Vec<_> = (0..50).map(|n| context(&format!("tenant-{n}"))).collect();
    let deks: Vec<_> = contexts.iter().map(|_| a_dek()).collect();
    let items: Vec<_> = contexts.iter().zip(&deks).collect();
    kek.wrap(&contexts[0], &deks[0]).await.unwrap();
    let before = ground.proxy.connections();
    ground.front.fail(Fault::new(Effect::Delay(Duration::from_millis(30))));
    let wrapped: Vec<WrappedDek> =
        kek.wrap_many(&items).await.into_iter().map(Result::unwrap).collect();
    assert!(ground.proxy.connections() - before <= 16, "one connection for each request at once");
    ground.front.recover();
    let items: Vec<_> = contexts.iter().zip(&wrapped).collect();
    for (unwrapped, dek) in kek.unwrap_many(&items).await.into_iter().zip(&deks) {
        assert_eq!(unwrapped.unwrap().expose(), dek.expose());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_tells_that_a_key_exists_from_that_it_may_be_used() {
    let ground = Ground::software();
    let with = async |check| {
        let builder = ground.builder(&ground.key).health_check(check);
        builder.health_context(context("health")).build().await.unwrap()
    };
    let (get, wrap, r#use) = (
        with(HealthCheck::Get).await,
        with(HealthCheck::TryWrap).await,
        with(HealthCheck::TryUse).await,
    );
    for kek in [&get, &wrap, &r#use] {
        assert_eq!(kek.health().await.unwrap(), Health::Ready);
    }
    let role = |of| format!("roles/cloudkms.{of}");
    let account = waxseal_testing::google::ACCOUNT;
    let revoke = |of| ground.front.world().revoke(&ground.key, &role(of), account);
    let grant = |of| ground.front.world().grant(&ground.key, &role(of), account);
    revoke("cryptoKeyEncrypterDecrypter");
    assert_eq!(get.health().await.unwrap(), Health::Ready, "it exists");
    for kek in [&wrap, &r#use] {
        assert_eq!(kek.health().await.unwrap_err().class(), KekErrorClass::Denied);
    }
    grant("cryptoKeyEncrypter");
    revoke("viewer");
    assert_eq!(get.health().await.unwrap_err().class(), KekErrorClass::Denied);
    assert_eq!(wrap.health().await.unwrap(), Health::Ready);
    assert_eq!(r#use.health().await.unwrap_err().class(), KekErrorClass::Denied);
    grant("viewer");
    ground.front.world().key(&ground.key).purpose = "ASYMMETRIC_SIGN";
    assert_eq!(get.health().await.unwrap_err().class(), KekErrorClass::Misconfigured);
    assert_eq!(wrap.health().await.unwrap_err().class(), KekErrorClass::Misconfigured);
    ground.front.world().key(&ground.key).purpose = "ENCRYPT_DECRYPT";
    ground.front.world().key(&ground.key).primary = None;
    assert_eq!(get.health().await.unwrap_err().class(), KekErrorClass::Misconfigured);
    assert_eq!(wrap.health().await.unwrap_err().class(), KekErrorClass::Misconfigured);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_under_one_quota_share_a_budget_unless_one_is_given() {
    let ground = Ground::software();
    let other = ground.front.create_key("invoices", Protection::Software);
    let (kek, other) = (ground.kek().await, ground.builder(&other).build().await.unwrap());
    let budget = |kek: &waxseal_google_kms::GoogleKmsKek| {
        kek.target(kek.id()).advice().call_budget().unwrap().clone()
    };
    assert!(budget(&kek).is_same(&budget(&other)));
    let own = CallBudget::new(10, 2).unwrap();
    let kek = ground.builder(&ground.key).call_budget(own.clone()).build().await.unwrap();
    assert!(budget(&kek).is_same(&own));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debug_shows_the_key_and_no_token() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    let text = format!("{kek:?} {:?}", ground.builder(&ground.key));
    assert!(text.contains(&ground.key) && text.contains("metadata server"), "{text}");
    assert!(!text.contains("ya29"), "{text}");
}
