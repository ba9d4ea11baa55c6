//! A KEK in an external key store, over the whole path: KMS front, XKS proxy, policy, OpenBao
//! Transit.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use crate::keks::XksKeks;
use std::sync::Arc;
use std::time::Duration;
use waxseal_testing::{kms_front, support, xks_path, xks_proxy};

use serde_json::json;
use support::{a_dek, context};
use waxseal::kek::conformance::{self, Outcome, Step, Subject};
use waxseal::kek::{BoxFuture, Health, KekErrorClass, KekProvider};
use waxseal::{Aad, CallBudget, DekOrigin, Envelope, ErrorKind, Limits, inspect};
use waxseal::{KekId, WrappedDek};
use waxseal_aws_kms::AwsKmsKek;
use xks_path::{AMPLE, KEY, KMS_PATIENCE, REGION, XksPath};
use xks_proxy::{Effect, ErrorName, Fault, Operation};

// --- conformance

struct OverThePath {
    path: XksPath,
    kek: AwsKmsKek,
    other: AwsKmsKek,
    principal: String,
}

impl OverThePath {
    async fn new() -> Self {
        let path = XksPath::start().await;
        let other = path.create_key("invoices").await;
        let (kek, other) = (path.kek().await, path.builder(&other).build().await.unwrap());
        let principal = path.principal();
        Self { path, kek, other, principal }
    }
}

impl Subject for OverThePath {
    fn provider(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.kek.clone())
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.other.clone())
    }

    fn fail_with(&self, class: KekErrorClass) -> BoxFuture<'_, Step> {
        match class {
            KekErrorClass::Unavailable => self.path.proxy.kill(),
            KekErrorClass::Throttled => self.path.proxy.fail(Fault::error(ErrorName::Throttling)),
            KekErrorClass::Denied => self.path.proxy.deny(&self.principal),
            KekErrorClass::Invalid => {
                self.path.proxy.fail(Fault::error(ErrorName::InvalidCiphertext))
            }
            KekErrorClass::Misconfigured => {
                self.path.proxy.fail(Fault::error(ErrorName::AuthenticationFailed))
            }
            _ => return Box::pin(async { Step::NotApplicable }),
        }
        Box::pin(async { Step::Done })
    }

    fn restore(&self) -> BoxFuture<'_, Step> {
        if self.path.proxy.is_killed() {
            self.path.proxy.restart();
        }
        self.path.proxy.recover();
        self.path.proxy.allow(&self.principal);
        Box::pin(async { Step::Done })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_conforms_over_the_whole_path() {
    let report = conformance::run(&OverThePath::new().await).await;
    assert!(report.is_conformant(), "{report}");
    let unseen: Vec<_> = report
        .checks()
        .filter(|(_, outcome)| **outcome != Outcome::Passed)
        .map(|(name, _)| name)
        .collect();
    // The versions of an external key are its key manager's own matter, and permissions are KMS's.
    let not_here = [
        "rewraps_where_it_says",
        "follows_a_rotation",
        "believes_no_version_that_anybody_could_write",
        "takes_a_source_of_credentials_that_is_down_for_an_outage",
    ];
    assert_eq!(unseen, not_here);
}

// --- which store

#[tokio::test]
async fn the_store_is_named_or_found_in_the_first_answer_about_the_key() {
    let path = XksPath::start().await;
    let advises = |kek: &AwsKmsKek| kek.target(kek.id()).advice().call_budget().is_some();
    assert!(advises(&path.kek().await), "named");
    path.front.world().point_alias(REGION, "alias/orders", &path.arn);
    assert!(
        advises(&path.builder("alias/orders").build().await.unwrap()),
        "KMS was asked for the alias"
    );
    let kek = path.builder(&path.arn).build().await.unwrap();
    assert!(!advises(&kek), "nobody was asked yet");
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    assert!(advises(&kek), "before the first wrap");
    let reader = path.builder(&path.arn).build().await.unwrap();
    let key = reader.read_key().await.unwrap();
    assert_eq!(
        (key.external_key_store.as_deref(), key.external_key.as_deref()),
        (Some(&*path.store), Some(KEY))
    );
    assert!(advises(&reader));
    let standard = path.front.create_key(REGION);
    let kek = path.builder(&standard).build().await.unwrap();
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    assert!(!advises(&kek), "a key that KMS holds");
    assert_eq!(
        kek.read_external_key_store().await.unwrap_err().class(),
        KekErrorClass::Misconfigured
    );
}

#[tokio::test]
async fn a_former_key_in_a_store_is_called_as_one_of_that_store_and_the_key_itself_is_not() {
    let path = XksPath::start().await;
    let id = |arn: &str| KekId::new(arn).unwrap();
    let alice = context("alice");
    let standard = path.front.create_key(REGION);
    let other_standard = path.front.create_key(REGION);
    let wrapped = path.kek().await.wrap(&alice, &a_dek()).await.unwrap();
    let others =
        path.builder(&other_standard).build().await.unwrap().wrap(&alice, &a_dek()).await.unwrap();
    let budget = CallBudget::new(7, 7).unwrap();
    // Found out after its first use.
    let builder = path.builder(&standard).former_keys([&path.arn, &other_standard]);
    let found = builder.external_key_store_budget(budget).build().await.unwrap();
    let of_former = found.target(&id(&path.arn)).advice().call_budget().cloned();
    assert!(of_former.is_some(), "it may be there: within the budget that was given");
    // So that KMS is asked for both at once.
    let slow = kms_front::Effect::Delay(Duration::from_millis(300));
    path.front.fail(kms_front::Fault::new(slow).on("DescribeKey"));
    for wrapped in [&wrapped, &others] {
        found.unwrap(&alice, wrapped).await.unwrap();
    }
    let start = std::time::Instant::now();
    let is_known = || {
        let advice = |arn: &str| found.target(&id(arn)).advice().clone();
        advice(&path.arn).call_budget().is_some() && advice(&other_standard).call_budget().is_none()
    };
    while !is_known() {
        assert!(start.elapsed() < Duration::from_secs(10), "the store is not found");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Named: nobody is asked.
    let before = path.front.arrived("DescribeKey");
    let builder = path
        .builder(&standard)
        .former_keys([&other_standard])
        .external_former_keys(&path.store, [&path.arn]);
    let named = builder.build().await.unwrap();
    assert_eq!(path.front.arrived("DescribeKey"), before);
    for kek in [&found, &named] {
        let advice = |arn: &str| kek.target(&id(arn)).advice().clone();
        assert!(advice(&path.arn).call_budget().is_some());
        for own in [&standard, &other_standard] {
            assert!(advice(own).call_budget().is_none(), "{own}");
        }
        kek.unwrap(&alice, &wrapped).await.unwrap();
        kek.rewrap(&alice, &wrapped).await.unwrap();
    }
    let error = path
        .builder(&standard)
        .external_former_keys("orders", [&path.arn])
        .build()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("external_former_keys"), "{error}");
}

/// A store of AWS CloudHSM clusters is a custom key store too, but it has no proxy and no quota of
/// 1,800.
#[tokio::test]
async fn a_key_in_a_cloudhsm_cluster_is_no_external_key() {
    const DESCRIPTION: &str = r#"{"KeyMetadata":{"KeyId":"1","Arn":"arn:aws:kms:eu-west-1:111122223333:key/1","Enabled":true,
        "KeyState":"Enabled","KeyUsage":"ENCRYPT_DECRYPT","Origin":"AWS_CLOUDHSM","CustomKeyStoreId":"cks-1"}}"#;
    let front = kms_front::KmsFront::start();
    let login = front.admin();
    front.fail(kms_front::Fault::new(kms_front::Effect::Raw(200, DESCRIPTION)).on("DescribeKey"));
    let arn = "arn:aws:kms:eu-west-1:111122223333:key/1";
    let kek = AwsKmsKek::builder(arn).client(front.client(REGION, &login)).build().await.unwrap();
    assert_eq!(kek.read_key().await.unwrap().external_key_store, None);
    assert!(kek.target(kek.id()).advice().call_budget().is_none());
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
}

#[tokio::test]
async fn once_the_store_is_known_no_wrap_asks_for_key_material() {
    let path = XksPath::start().await;
    let kek = path.builder(&path.arn).build().await.unwrap();
    for _ in 0..3 {
        let wrapped = kek.wrap(&context("alice"), &a_dek()).await.unwrap();
        assert!(wrapped.meta().is_empty() && kek.is_current(&wrapped).is_none());
    }
    assert_eq!(path.front.count("DescribeKey"), 1, "to learn what key it is");
    let kek = path.kek().await;
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    assert_eq!(path.front.count("DescribeKey"), 1, "it was named");
}

#[tokio::test]
async fn a_key_that_is_not_in_the_named_store_is_misconfigured() {
    let path = XksPath::start().await;
    let standard = path.front.create_key(REGION);
    for (arn, store) in [(&path.arn, "cks-0000000000000000f"), (&standard, path.store.as_str())] {
        let kek = path.builder(arn).external_key_store(store).build().await.unwrap();
        for error in [kek.health().await.unwrap_err(), kek.read_key().await.unwrap_err()] {
            assert_eq!(error.class(), KekErrorClass::Misconfigured, "{error}");
            assert!(error.to_string().contains("external_key_store"), "{error}");
        }
    }
    path.front.world().point_alias(REGION, "alias/orders", &path.arn);
    path.front.world().point_alias(REGION, "alias/standard", &standard);
    for (alias, store) in
        [("alias/orders", "cks-0000000000000000f"), ("alias/standard", path.store.as_str())]
    {
        let error = path.builder(alias).external_key_store(store).build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains("external_key_store"), "{error}");
    }
}

#[tokio::test]
async fn what_an_external_key_cannot_do_is_refused_at_build() {
    let path = XksPath::start().await;
    path.front.world().point_alias(REGION, "alias/orders", &path.arn);
    let multi_region =
        format!("arn:aws:kms:{REGION}:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab");
    let hour = Duration::from_secs(3600);
    let named = |arn: &str| path.builder(arn).external_key_store(&path.store);
    for (what, builder) in [
        ("multi-Region", named(&multi_region)),
        ("multi-Region", named(&multi_region).related_keys(true)),
        ("key_max_age", named(&path.arn).key_max_age(hour)),
        ("key_max_age", path.builder("alias/orders").key_max_age(hour)),
        ("multi-Region", path.builder("alias/orders").related_keys(true)),
        ("external_key_store", named(&path.arn).external_key_store("orders")),
        ("external_key_store", named(&path.arn).external_key_store("")),
        ("external_key_store", named(&path.arn).external_key_store("cks-1/2")),
        (
            "external_key_store",
            AwsKmsKek::discover("aws", ["111122223333"])
                .client(path.client())
                .external_key_store("cks-1"),
        ),
        (
            "external_key_store",
            AwsKmsKek::discover("aws", ["111122223333"])
                .client(path.client())
                .external_key_store_budget(CallBudget::new(4, 4).unwrap()),
        ),
    ] {
        let error = builder.build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
}

// --- what reaches whom

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_messages_of_one_dek_are_one_call_on_every_hop() {
    let path = XksPath::start().await;
    let alice = context("alice");
    let writer = Envelope::builder().wrap_with(path.kek().await).build().unwrap();
    let mut messages = Vec::new();
    for n in 0..1000_u32 {
        messages.push(writer.encrypt(&alice, Aad::from(&n.to_be_bytes()), b"text").await.unwrap());
    }
    let hops = || {
        let proxy = |operation| path.proxy.arrived(operation);
        let kms = |operation| path.front.arrived(operation);
        [kms("Encrypt"), proxy(Operation::Encrypt), kms("Decrypt"), proxy(Operation::Decrypt)]
    };
    assert_eq!(hops(), [1, 1, 0, 0]);
    let reader = Envelope::builder().unwrap_with(path.kek().await).build().unwrap();
    for (n, message) in (0_u32..).zip(&messages) {
        assert_eq!(
            &*reader.decrypt(&alice, Aad::from(&n.to_be_bytes()), message).await.unwrap(),
            b"text"
        );
    }
    assert_eq!(hops(), [1, 1, 1, 1]);
    let calls = path.proxy.calls();
    let decrypt = calls.iter().find(|call| call.operation == Some(Operation::Decrypt)).unwrap();
    assert_eq!((decrypt.key.as_str(), decrypt.kms_operation.as_str()), (KEY, "Decrypt"));
    assert_eq!(decrypt.kms_key_arn, path.arn);
}

#[tokio::test]
async fn a_dek_of_the_key_service_s_making_works_too() {
    let path = XksPath::start().await;
    let envelope = Envelope::builder()
        .wrap_with(path.kek().await)
        .dek_origin(DekOrigin::KeyService)
        .build()
        .unwrap();
    let sealed = envelope.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    let reader = Envelope::builder().unwrap_with(path.kek().await).build().unwrap();
    assert_eq!(&*reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap(), b"text");
    assert_eq!(path.front.count("GenerateDataKey"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_flipped_in_any_byte_of_the_wrapped_key_is_refused() {
    let path = XksPath::start().await;
    let kek = path.kek().await;
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    let bytes = wrapped.wrapped().to_vec();
    assert!(bytes.len() > 184, "{} bytes: larger than of a key that KMS holds", bytes.len());
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        let bent = WrappedDek::new(wrapped.kek_id().clone(), bytes).unwrap();
        let error = kek.unwrap(&alice, &bent).await.unwrap_err();
        assert!(
            matches!(error.class(), KekErrorClass::Invalid | KekErrorClass::Denied),
            "byte {at}: {error}"
        );
    }
    assert_eq!(
        kek.unwrap(&context("bob"), &wrapped).await.unwrap_err().class(),
        KekErrorClass::Invalid
    );
    assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
}

// --- the budget

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_keys_of_a_store_share_its_budget_and_other_keys_do_not_pay() {
    let path = XksPath::start().await;
    let other = path.create_key("invoices").await;
    let budget = CallBudget::new(8, 8).unwrap();
    let alice = context("alice");
    let mut questions = Vec::new();
    let policy = waxseal::CallPolicy::default().deadline(Duration::from_secs(1)).tries(1);
    for arn in [&path.arn, &other] {
        let writer = path.kek_of(arn).await;
        let kek = path
            .builder(arn)
            .external_key_store(&path.store)
            .external_key_store_budget(budget.clone());
        let reader = Envelope::builder()
            .unwrap_with(kek.build().await.unwrap())
            .call_policy(policy)
            .build()
            .unwrap();
        for _ in 0..20 {
            let writer = Envelope::builder().wrap_with(writer.clone()).build().unwrap();
            questions.push((
                reader.clone(),
                writer.encrypt(&alice, Aad::empty(), b"text").await.unwrap(),
            ));
        }
    }
    let before = path.front.arrived("Decrypt");
    let asked: Vec<_> = questions
        .into_iter()
        .map(|(reader, sealed)| {
            let alice = alice.clone();
            tokio::spawn(async move {
                reader.decrypt(&alice, Aad::empty(), &sealed).await.map_err(|error| error.kind())
            })
        })
        .collect();
    let mut opened = 0;
    for question in asked {
        match question.await.unwrap() {
            Ok(_) => opened += 1,
            Err(kind) => assert_eq!(kind, ErrorKind::Throttled),
        }
    }
    assert_eq!(path.front.arrived("Decrypt") - before, opened);
    assert!((1..20).contains(&opened), "{opened} of 40 at 6 calls a second for reading");
    let standard = path.front.create_key(REGION);
    let kek = path.builder(&standard).build().await.unwrap();
    let envelope = Envelope::builder().wrap_with(kek).call_policy(policy).build().unwrap();
    envelope.encrypt(&alice, Aad::empty(), b"text").await.unwrap();
}

#[tokio::test]
async fn a_store_whose_quota_is_used_up_throttles() {
    let path = XksPath::start().await;
    path.front.world().store(&path.store).quota = 0;
    let error = path.kek().await.wrap(&context("alice"), &a_dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Throttled, "{error}");
}

// --- health

#[tokio::test]
async fn health_tells_a_store_that_an_operator_has_to_connect_from_an_outage() {
    let path = XksPath::start().await;
    let kek = path.kek().await;
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    let store = kek.read_external_key_store().await.unwrap();
    assert_eq!(
        (&*store.id, &*store.connection_state, store.connection_error),
        (&*path.store, "CONNECTED", None)
    );

    path.disconnect().await;
    let error = kek.health().await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Denied, "{error}");
    assert!(error.to_string().contains("DISCONNECTED"), "{error}");

    for (code, begin) in [
        (
            "INVALID_CREDENTIALS",
            (|path| path.proxy.fail(Fault::error(ErrorName::AuthenticationFailed))) as fn(&XksPath),
        ),
        ("XKS_PROXY_ACCESS_DENIED", |path| path.proxy.fail(Fault::error(ErrorName::AccessDenied))),
        ("XKS_PROXY_INVALID_CONFIGURATION", |path| {
            path.proxy.fail(Fault::error(ErrorName::InvalidUriPath))
        }),
        ("XKS_PROXY_INVALID_TLS_CONFIGURATION", |path| {
            path.proxy.present(xks_proxy::Certificate::Expired)
        }),
        ("XKS_PROXY_INVALID_RESPONSE", |path| path.proxy.fail(Fault::error(ErrorName::Validation))),
        ("XKS_PROXY_TIMED_OUT", |path| {
            path.kms_waits(KMS_PATIENCE);
            path.proxy.fail(Fault::new(Effect::Hang));
        }),
    ] {
        begin(&path);
        path.try_to_connect().await;
        let error = kek.health().await.unwrap_err();
        assert_eq!(error.class(), KekErrorClass::Misconfigured, "{error}");
        assert!(error.to_string().contains(&format!("FAILED: {code}")), "{code}: {error}");
        let store = kek.read_external_key_store().await.unwrap();
        assert_eq!(
            (&*store.connection_state, store.connection_error.as_deref()),
            ("FAILED", Some(code))
        );
        path.proxy.recover();
        path.proxy.present(xks_proxy::Certificate::Right);
        path.kms_waits(AMPLE);
        path.disconnect().await;
    }
    path.connect().await;
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    path.front.world().key(&path.arn).state = kms_front::State::Disabled;
    assert_eq!(kek.health().await.unwrap_err().class(), KekErrorClass::Denied);
}

#[tokio::test]
async fn the_health_of_a_key_in_another_account_s_store_is_degraded_and_no_failure() {
    let path = XksPath::start().await;
    let not_found = kms_front::Fault::error(
        400,
        "CustomKeyStoreNotFoundException",
        "no such store in this account",
    );
    path.front.fail(not_found.on("DescribeCustomKeyStores"));
    let Health::Degraded(why) = path.kek().await.health().await.unwrap() else {
        panic!("not degraded")
    };
    assert!(why.contains(&path.store), "{why}");
}

#[tokio::test]
async fn without_leave_to_see_the_store_health_is_degraded() {
    let path = XksPath::start().await;
    let login = path.front.principal(
        "service",
        vec![json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Action": ["kms:DescribeKey", "kms:Encrypt", "kms:Decrypt"], "Resource": path.arn },
        ] })],
    );
    let builder = AwsKmsKek::builder(&path.arn).client(path.front.client(REGION, &login));
    let kek = builder.external_key_store(&path.store).build().await.unwrap();
    let Health::Degraded(why) = kek.health().await.unwrap() else { panic!("not degraded") };
    assert!(why.contains(&path.store) && why.contains("AccessDenied"), "{why}");
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    path.front.world().key(&path.arn).state = kms_front::State::Disabled;
    assert_eq!(kek.health().await.unwrap_err().class(), KekErrorClass::Denied);
}

// --- rotation, moving in, leaving

#[tokio::test]
async fn a_rotation_behind_the_same_id_is_followed_and_rewrap_moves_to_the_new_version() {
    let path = XksPath::start().await;
    let alice = context("alice");
    let envelope = Envelope::builder().wrap_with(path.kek().await).build().unwrap();
    let old = envelope.encrypt(&alice, Aad::empty(), b"text").await.unwrap();
    path.bao.rotate(KEY).await;
    let cold = || async { Envelope::builder().wrap_with(path.kek().await).build().unwrap() };
    assert_eq!(&*cold().await.decrypt(&alice, Aad::empty(), &old).await.unwrap(), b"text");
    assert!(!envelope.needs_rewrap(&old).unwrap(), "the version does not reach KMS");
    let moved = cold().await.rewrap(&alice, &old).await.unwrap();
    // What the first version wrapped is not opened any more, what was rewrapped is.
    path.bao
        .put(&format!("transit/keys/{KEY}/config"), json!({ "min_decryption_version": 2 }))
        .await;
    let error = cold().await.decrypt(&alice, Aad::empty(), &old).await.unwrap_err();
    assert_ne!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(&*cold().await.decrypt(&alice, Aad::empty(), &moved).await.unwrap(), b"text");
}

#[tokio::test]
async fn messages_move_in_from_a_standard_key_to_another_external_key_and_out_again_without_a_dek_in_the_process()
 {
    let path = XksPath::start().await;
    let alice = context("alice");
    let standard = path.front.create_key(REGION);
    let second = path.create_key("orders-2").await;
    let first_writer = path.builder(&standard).build().await.unwrap();
    let mut message = Envelope::builder()
        .wrap_with(first_writer)
        .build()
        .unwrap()
        .encrypt(&alice, Aad::from(b"row"), b"text")
        .await
        .unwrap();
    let payload = message[message.len() - 20..].to_vec();
    for (from, to, external) in
        [(&standard, &path.arn, true), (&path.arn, &second, true), (&second, &standard, false)]
    {
        let builder = path.builder(to).former_keys([from]);
        let builder = if external { builder.external_key_store(&path.store) } else { builder };
        let envelope =
            Envelope::builder().wrap_with(builder.build().await.unwrap()).build().unwrap();
        assert!(envelope.needs_rewrap(&message).unwrap(), "{from} to {to}");
        let (decrypts, re_encrypts) = (path.front.count("Decrypt"), path.front.count("ReEncrypt"));
        message = envelope.rewrap_unverified(&alice, &message).await.unwrap();
        assert_eq!(
            (path.front.count("Decrypt") - decrypts, path.front.count("ReEncrypt") - re_encrypts),
            (0, 1)
        );
        assert_eq!(inspect(&message).unwrap().keks[0].kek_id.as_str(), to);
        assert_eq!(&*envelope.decrypt(&alice, Aad::from(b"row"), &message).await.unwrap(), b"text");
        assert!(message.ends_with(&payload), "the payload is not touched");
    }
}

// --- denied

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_policy_denies_is_evicted_and_refused_and_nobody_else_notices() {
    let path = XksPath::start().await;
    let other = path.create_key("invoices").await;
    let principal = path.principal();
    let alice = context("alice");
    let limits = || {
        let ms = Duration::from_millis;
        Limits::default()
            .max_age(ms(100))
            .refresh_after(ms(80))
            .stale_if_error_reading(Duration::from_secs(60))
    };
    let reader =
        |kek: AwsKmsKek| Envelope::builder().wrap_with(kek).limits(limits()).build().unwrap();
    let (orders, invoices) = (reader(path.kek().await), reader(path.kek_of(&other).await));
    let (order, invoice) = (
        orders.encrypt(&alice, Aad::empty(), b"order").await.unwrap(),
        invoices.encrypt(&alice, Aad::empty(), b"invoice").await.unwrap(),
    );
    path.proxy.set_grants(
        json!([{ "principals": [principal], "keys": ["invoices"], "operations": ["*"], "kms_operations": ["*"] }]),
    );
    tokio::time::sleep(Duration::from_millis(150)).await;
    let error = orders.decrypt(&alice, Aad::empty(), &order).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "whatever the grace: {error}");
    let asked = path.proxy.arrived(Operation::Decrypt);
    assert_eq!(
        orders.decrypt(&alice, Aad::empty(), &order).await.unwrap_err().kind(),
        ErrorKind::Denied
    );
    assert_eq!(path.proxy.arrived(Operation::Decrypt), asked, "refused for a while without asking");
    assert_eq!(&*invoices.decrypt(&alice, Aad::empty(), &invoice).await.unwrap(), b"invoice");
    let log = path.proxy.calls();
    assert!(
        log.iter()
            .any(|call| call.error == Some(ErrorName::AccessDenied) && call.principal == principal)
    );
    assert_eq!(KekId::new(&path.arn).unwrap(), *path.kek().await.id());
}
