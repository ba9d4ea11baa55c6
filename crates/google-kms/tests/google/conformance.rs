//! The conformance suite, over the stand-in, for a key of each protection level.

use std::sync::Arc;

use waxseal::kek::conformance::{self, Outcome, Step, Subject};
use waxseal::kek::{BoxFuture, KekErrorClass, KekProvider};
use waxseal_google_kms::GoogleKmsKek;
use waxseal_testing::google::{ACCOUNT, Code, Fault, Protection, Source, Status};

use crate::Ground;

const DECRYPTER: &str = "roles/cloudkms.cryptoKeyDecrypter";
const BOTH: &str = "roles/cloudkms.cryptoKeyEncrypterDecrypter";
const ENCRYPTER: &str = "roles/cloudkms.cryptoKeyEncrypter";

struct OnTheStandIn {
    ground: Ground,
    kek: GoogleKmsKek,
    other: GoogleKmsKek,
}

impl OnTheStandIn {
    async fn new(protection: Protection) -> Self {
        let ground = Ground::new(protection);
        let other = ground.front.create_key("invoices", protection);
        let (kek, other) = (ground.kek().await, ground.builder(&other).build().await.unwrap());
        Self { ground, kek, other }
    }
}

impl Subject for OnTheStandIn {
    fn provider(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.kek.clone())
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.other.clone())
    }

    fn rotate(&self) -> BoxFuture<'_, Step> {
        self.ground.front.world().key(&self.ground.key).rotate();
        Box::pin(async { Step::Done })
    }

    fn fail_with(&self, class: KekErrorClass) -> BoxFuture<'_, Step> {
        let front = &self.ground.front;
        match class {
            KekErrorClass::Unavailable => front.fail(Fault::status(Code::Unavailable, "down")),
            KekErrorClass::Throttled => {
                front.world().quotas.insert("projects/orders-prod".to_owned(), 0);
            }
            KekErrorClass::Denied => front.world().revoke(&self.ground.key, BOTH, ACCOUNT),
            KekErrorClass::Invalid => {
                let message = "Decryption failed: the ciphertext is invalid.";
                front.fail(Fault::status(Code::InvalidArgument, message).on("decrypt"));
            }
            KekErrorClass::Misconfigured => {
                let status = Status::new(Code::PermissionDenied, "x").with_info(
                    "SERVICE_DISABLED",
                    "googleapis.com",
                    serde_json::json!({}),
                );
                front.fail(Fault::new(waxseal_testing::google::Effect::Fails(status)));
            }
            _ => return Box::pin(async { Step::NotApplicable }),
        }
        Box::pin(async { Step::Done })
    }

    fn fail_credentials(&self) -> BoxFuture<'_, Step> {
        self.ground.front.set_source(Source::Fails(503, "try again".to_owned()));
        self.ground.front.expire_tokens();
        Box::pin(async { Step::Done })
    }

    fn forbid_unwrapping(&self) -> BoxFuture<'_, Step> {
        let mut world = self.ground.front.world();
        world.revoke(&self.ground.key, BOTH, ACCOUNT);
        world.grant(&self.ground.key, ENCRYPTER, ACCOUNT);
        Box::pin(async { Step::Done })
    }

    fn restore(&self) -> BoxFuture<'_, Step> {
        let front = &self.ground.front;
        front.recover();
        front.restore_source();
        let mut world = front.world();
        world.quotas.clear();
        world.revoke(&self.ground.key, BOTH, ACCOUNT);
        world.revoke(&self.ground.key, DECRYPTER, ACCOUNT);
        world.revoke(&self.ground.key, ENCRYPTER, ACCOUNT);
        world.grant(&self.ground.key, BOTH, ACCOUNT);
        Box::pin(async { Step::Done })
    }
}

async fn conforms(protection: Protection) {
    let report = conformance::run(&OnTheStandIn::new(protection).await).await;
    assert!(report.is_conformant(), "{report}");
    let others: Vec<_> = report
        .checks()
        .filter(|(_, outcome)| **outcome != Outcome::Passed)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(others, Vec::<&str>::new(), "every check applies: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_software_key_conforms() {
    conforms(Protection::Software).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hsm_key_conforms_with_contexts_of_the_largest_size() {
    conforms(Protection::Hsm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_key_conforms() {
    conforms(Protection::External).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_key_over_a_vpc_conforms() {
    conforms(Protection::ExternalVpc).await;
}
