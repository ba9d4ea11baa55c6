//! A KEK in AWS KMS, on the project's own KMS front.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod health;
mod making;
mod moving;
mod options;

use std::sync::Arc;
use std::time::Duration;
use waxseal_testing::{kms_front, support};

use kms_front::{Fault, KmsFront, Login, State};
use serde_json::json;
use support::context;
use waxseal::kek::conformance::{self, Outcome, Step, Subject};
use waxseal::kek::{BoxFuture, ContextBinding, Health, KekErrorClass, KekProvider, UnwrappedDek};
use waxseal::{
    Aad, Dek, DekOrigin, EncryptionContext, Envelope, ErrorKind, KekId, Limits, WrappedDek, inspect,
};
use waxseal_aws_kms::{AwsKmsKek, AwsKmsKekBuilder, HealthCheck};

const REGION: &str = "eu-west-1";
const OTHER_REGION: &str = "us-east-1";

struct Ground {
    front: KmsFront,
    login: Login,
}

impl Ground {
    fn new() -> Self {
        let front = KmsFront::start();
        let login = front.admin();
        Self { front, login }
    }

    fn builder(&self, key: &str) -> AwsKmsKekBuilder {
        AwsKmsKek::builder(key).client(self.front.client(REGION, &self.login))
    }

    async fn kek(&self, key: &str) -> AwsKmsKek {
        self.builder(key).build().await.unwrap()
    }
}

struct OnTheFront {
    ground: Ground,
    arn: String,
    kek: AwsKmsKek,
    other: AwsKmsKek,
}

impl OnTheFront {
    async fn new() -> Self {
        let ground = Ground::new();
        let arn = ground.front.create_key(REGION);
        let other = ground.front.create_key(REGION);
        let (kek, other) = (ground.kek(&arn).await, ground.kek(&other).await);
        Self { ground, arn, kek, other }
    }
}

impl Subject for OnTheFront {
    fn provider(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.kek.clone())
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.other.clone())
    }

    fn rotate(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            self.ground.front.world().rotate(&self.arn, true);
            // `Encrypt` does not say which key material it used: the provider learns of a rotation
            // when it asks.
            match self.kek.read_key().await {
                Ok(_) => Step::Done,
                Err(error) => Step::Failed(error.to_string()),
            }
        })
    }

    fn fail_with(&self, class: KekErrorClass) -> BoxFuture<'_, Step> {
        let (status, code, message) = match class {
            KekErrorClass::Unavailable => (500, "KMSInternalException", ""),
            KekErrorClass::Throttled => (400, "ThrottlingException", "Rate exceeded"),
            KekErrorClass::Denied => (400, "AccessDeniedException", "no"),
            KekErrorClass::Invalid => (400, "InvalidCiphertextException", ""),
            KekErrorClass::Misconfigured => (400, "ExpiredTokenException", "expired"),
            _ => return Box::pin(async { Step::NotApplicable }),
        };
        self.ground.front.fail(Fault::error(status, code, message));
        Box::pin(async { Step::Done })
    }

    fn forbid_unwrapping(&self) -> BoxFuture<'_, Step> {
        self.ground.front.fail(Fault::error(400, "AccessDeniedException", "no").on("Decrypt"));
        Box::pin(async { Step::Done })
    }

    fn restore(&self) -> BoxFuture<'_, Step> {
        self.ground.front.recover();
        Box::pin(async { Step::Done })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_conforms_on_the_front() {
    let subject = OnTheFront::new().await;
    let report = conformance::run(&subject).await;
    let unseen: Vec<_> = report
        .checks()
        .filter(|(_, outcome)| **outcome != Outcome::Passed)
        .map(|(name, _)| name)
        .collect();
    assert!(report.is_conformant(), "{report}");
    assert_eq!(
        unseen,
        ["takes_a_source_of_credentials_that_is_down_for_an_outage"],
        "its credentials have no source"
    );
}

#[test]
fn the_provider_conforms_whoever_polls_it() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let subject = runtime.block_on(OnTheFront::new());
    let report = support::block_on(conformance::run(&subject));
    assert!(report.is_conformant(), "{report}");
}

fn dek() -> Dek {
    UnwrappedDek::new(kms_front::random::<32>().to_vec()).to_dek().unwrap()
}

async fn denied_or_invalid(
    kek: &AwsKmsKek,
    context: &EncryptionContext,
    wrapped: &WrappedDek,
) -> KekErrorClass {
    kek.unwrap(context, wrapped).await.unwrap_err().class()
}

// --- which key

#[tokio::test]
async fn a_key_is_named_by_arn_id_or_alias_and_messages_carry_the_arn() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    ground.front.world().point_alias(REGION, "alias/orders", &arn);
    let id = arn.rsplit('/').next().unwrap();
    let alias_arn = format!("arn:aws:kms:{REGION}:{}:alias/orders", kms_front::ACCOUNT);
    for name in [&arn, id, "alias/orders", &alias_arn] {
        let kek = ground.kek(name).await;
        assert_eq!(kek.id().as_str(), arn, "{name}");
        let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
        let sealed = envelope.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
        assert_eq!(inspect(&sealed).unwrap().keks[0].kek_id.as_str(), arn, "{name}");
    }
    let asked: Vec<_> =
        ground.front.calls().into_iter().filter(|call| call.operation == "Encrypt").collect();
    assert!(asked.iter().all(|call| call.request["KeyId"] == arn.as_str()), "{asked:?}");
}

#[tokio::test]
async fn a_key_named_by_its_arn_needs_no_kms_to_start() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    ground.front.fail(Fault::error(503, "ServiceUnavailable", ""));
    let kek = ground.kek(&arn).await;
    assert_eq!(ground.front.calls().len(), 0);
    assert_eq!(
        kek.wrap(&context("alice"), &dek()).await.unwrap_err().class(),
        KekErrorClass::Unavailable
    );
    let error = ground.builder("alias/orders").build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "an alias has to be looked up");
}

#[tokio::test]
async fn an_alias_or_key_that_is_missing_is_told_at_build() {
    let ground = Ground::new();
    assert_eq!(ground.builder("alias/none").build().await.unwrap_err().kind(), ErrorKind::Denied);
    let id = "1234abcd-12ab-34cd-56ef-1234567890ab";
    assert_eq!(ground.builder(id).build().await.unwrap_err().kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn an_alias_that_is_pointed_elsewhere_takes_effect_at_the_next_build() {
    let ground = Ground::new();
    let (old, new) = (ground.front.create_key(REGION), ground.front.create_key(REGION));
    ground.front.world().point_alias(REGION, "alias/orders", &old);
    let running = ground.kek("alias/orders").await;
    ground.front.world().point_alias(REGION, "alias/orders", &new);
    assert_eq!(running.wrap(&context("alice"), &dek()).await.unwrap().kek_id().as_str(), old);
    assert_eq!(ground.kek("alias/orders").await.id().as_str(), new);
}

#[tokio::test]
async fn a_running_service_follows_an_alias_once_its_key_is_refused() {
    type Break = fn(&Ground, &str);
    let disable: Break = |ground, arn| ground.front.world().key(arn).state = State::Disabled;
    let schedule: Break =
        |ground, arn| ground.front.world().key(arn).state = State::PendingDeletion;
    for end_of_the_old in [disable, schedule] {
        for origin in [DekOrigin::Local, DekOrigin::KeyService] {
            let ground = Ground::new();
            let (old, new) = (ground.front.create_key(REGION), ground.front.create_key(REGION));
            ground.front.world().point_alias(REGION, "alias/orders", &old);
            let kek = ground.kek("alias/orders").await;
            let builder = || Envelope::builder().wrap_with(kek.clone()).dek_origin(origin);
            let limits = || {
                Limits::default()
                    .max_age(Duration::from_millis(100))
                    .denial_ttl(Duration::from_millis(10))
            };
            let running = builder().limits(limits()).build().unwrap();
            let alice = context("alice");
            let before = running.encrypt(&alice, Aad::empty(), b"text").await.unwrap();
            ground.front.world().point_alias(REGION, "alias/orders", &new);
            end_of_the_old(&ground, &old);
            tokio::time::sleep(Duration::from_millis(150)).await;
            let after = running.encrypt(&alice, Aad::empty(), b"text").await.unwrap();
            assert_eq!(inspect(&after).unwrap().keks[0].kek_id.as_str(), new);
            assert_eq!(kek.id().as_str(), new);
            assert_eq!(kek.health().await.unwrap(), Health::Ready);
            let reader = builder().build().unwrap();
            assert_eq!(&*reader.decrypt(&alice, Aad::empty(), &after).await.unwrap(), b"text");
            assert_eq!(
                reader.decrypt(&alice, Aad::empty(), &before).await.unwrap_err().kind(),
                ErrorKind::Denied
            );
            // The earlier key is one that still unwraps, and from which DEKs move.
            ground.front.world().key(&old).state = State::Enabled;
            let reader = builder().build().unwrap();
            assert_eq!(&*reader.decrypt(&alice, Aad::empty(), &before).await.unwrap(), b"text");
            assert!(reader.needs_rewrap(&before).unwrap() && !reader.needs_rewrap(&after).unwrap());
            let moved = reader.rewrap(&alice, &before).await.unwrap();
            assert_eq!(inspect(&moved).unwrap().keks[0].kek_id.as_str(), new);
        }
    }
}

#[tokio::test]
async fn an_alias_is_not_asked_for_with_every_refusal() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    ground.front.world().point_alias(REGION, "alias/orders", &arn);
    let kek = ground.kek("alias/orders").await;
    let by_arn = ground.kek(&arn).await;
    kek.wrap(&context("alice"), &dek()).await.unwrap();
    by_arn.wrap(&context("alice"), &dek()).await.unwrap();
    let before = ground.front.arrived("DescribeKey");
    ground.front.world().key(&arn).state = State::Disabled;
    for _ in 0..20 {
        for kek in [&kek, &by_arn] {
            assert_eq!(
                kek.generate(&context("alice")).await.unwrap_err().class(),
                KekErrorClass::Denied
            );
        }
    }
    let asked = ground.front.arrived("DescribeKey") - before;
    assert!(
        (1..=8).contains(&asked),
        "{asked}: at most one a second, and none for a key that is named by its ARN"
    );
}

#[tokio::test]
async fn whoever_may_not_describe_the_key_is_not_denied_again_and_again() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    ground.front.fail(Fault::error(400, "AccessDeniedException", "no").on("DescribeKey"));
    let kek = ground.builder(&arn).key_max_age(Duration::from_secs(3600)).build().await.unwrap();
    let start = std::time::Instant::now();
    // Longer than the pause after a failure of another kind.
    while start.elapsed() < Duration::from_secs(11) {
        kek.wrap(&context("alice"), &dek()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(ground.front.arrived("DescribeKey"), 1);
}

#[tokio::test]
async fn an_unwrap_settles_whether_an_entry_without_metadata_is_current() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    let alice = context("alice");
    // A writer without leave to describe the key.
    ground.front.fail(Fault::error(400, "AccessDeniedException", "no").on("DescribeKey"));
    let writer = ground.kek(&arn).await;
    let old = writer.wrap(&alice, &dek()).await.unwrap();
    assert!(old.meta().is_empty());
    ground.front.recover();
    let kek = ground.kek(&arn).await;
    kek.read_key().await.unwrap();
    assert_eq!(kek.is_current(&old), None);
    kek.unwrap(&alice, &old).await.unwrap();
    assert_eq!(kek.is_current(&old), Some(true));
    ground.front.world().rotate(&arn, true);
    kek.read_key().await.unwrap();
    assert_eq!(kek.is_current(&old), Some(false), "KMS said which material it was");
    // What an entry says of itself counts less than what KMS said of it.
    let current = ground.front.world().key(&arn).current_material().unwrap();
    let current = data_encoding::HEXLOWER.decode(current.as_bytes()).unwrap();
    let lying = old.with_meta(current).unwrap();
    assert_eq!(kek.is_current(&lying), Some(false));
}

#[tokio::test]
async fn each_key_is_a_target_of_its_own_and_a_related_one_that_of_this_region() {
    let ground = Ground::new();
    let id = |arn: &str| KekId::new(arn).unwrap();
    let here = ground.front.world().create_key(REGION, true);
    let there = here.replace(REGION, OTHER_REGION);
    let (old, older) = (ground.front.create_key(REGION), ground.front.create_key(REGION));
    let kek = ground
        .builder(&here)
        .related_keys(true)
        .former_keys([&*old, &*older])
        .build()
        .await
        .unwrap();
    for (entry, target) in [(&here, &here), (&there, &here), (&old, &old), (&older, &older)] {
        assert_eq!(kek.target(&id(entry)).name(), target);
    }
    let client = ground.front.client(REGION, &ground.login);
    let discovered = AwsKmsKek::discover("aws", [kms_front::ACCOUNT])
        .regions([REGION, OTHER_REGION])
        .client(client);
    let discovered = discovered.build().await.unwrap();
    for arn in [&here, &there, &old] {
        assert_eq!(discovered.target(&id(arn)).name(), arn);
    }
    assert_eq!(discovered.target(discovered.id()).name(), discovered.id().as_str());
    for (kek, rewraps) in [(&kek, true), (&discovered, false)] {
        assert_eq!(
            (kek.context_binding(), kek.rewraps_in_service()),
            (ContextBinding::Enforced, rewraps)
        );
    }
}

#[tokio::test]
async fn what_the_provider_decides_by_itself_is_no_answer_of_kms() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    let kek = ground.kek(&arn).await;
    let client = ground.front.client(REGION, &ground.login);
    let discovered =
        AwsKmsKek::discover("aws", [kms_front::ACCOUNT]).client(client).build().await.unwrap();
    let alice = context("alice");
    let foreign = WrappedDek::new(KekId::new("another").unwrap(), vec![1]).unwrap();
    for error in [
        kek.unwrap(&alice, &foreign).await.unwrap_err(),
        kek.rewrap(&alice, &foreign).await.unwrap_err(),
        discovered.unwrap(&alice, &foreign).await.unwrap_err(),
        discovered.wrap(&alice, &dek()).await.unwrap_err(),
        discovered.generate(&alice).await.unwrap_err(),
        discovered.read_key().await.unwrap_err(),
    ] {
        assert!(!error.was_asked(), "{error}");
    }
    assert_eq!(ground.front.calls().len(), 0);
    let damaged = WrappedDek::new(kek.id().clone(), vec![1]).unwrap();
    assert!(kek.unwrap(&alice, &damaged).await.unwrap_err().was_asked());
}

#[tokio::test]
async fn every_call_names_the_key_and_the_encryption_context() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    let kek = ground.kek(&arn).await;
    let context = context("alice");
    let wrapped = kek.wrap(&context, &dek()).await.unwrap();
    kek.generate(&context).await.unwrap();
    kek.unwrap(&context, &wrapped).await.unwrap();
    kek.rewrap(&context, &wrapped).await.unwrap();
    let pairs = json!({ "table": "cards", "tenant": "alice" });
    let mut seen = Vec::new();
    for call in ground.front.calls() {
        let (keys, contexts) = match call.operation.as_str() {
            "DescribeKey" => continue,
            "ReEncrypt" => (
                vec!["SourceKeyId", "DestinationKeyId"],
                vec!["SourceEncryptionContext", "DestinationEncryptionContext"],
            ),
            _ => (vec!["KeyId"], vec!["EncryptionContext"]),
        };
        assert!(keys.iter().all(|key| call.request[key] == arn.as_str()), "{call:?}");
        assert!(contexts.iter().all(|field| call.request[field] == pairs), "{call:?}");
        seen.push(call.operation);
    }
    assert_eq!(seen, ["Encrypt", "GenerateDataKey", "Decrypt", "ReEncrypt"]);
}

#[tokio::test]
async fn what_another_key_of_the_account_wrapped_is_not_opened_under_this_one_s_name() {
    let ground = Ground::new();
    let (own, other) = (ground.front.create_key(REGION), ground.front.create_key(REGION));
    let (kek, other) = (ground.kek(&own).await, ground.kek(&other).await);
    let context = context("alice");
    let foreign = other.wrap(&context, &dek()).await.unwrap();
    let relabelled = WrappedDek::new(kek.id().clone(), foreign.wrapped()).unwrap();
    assert_eq!(denied_or_invalid(&kek, &context, &relabelled).await, KekErrorClass::Invalid);
    assert_eq!(
        kek.rewrap(&context, &relabelled).await.unwrap_err().class(),
        KekErrorClass::Invalid
    );
}
