//! The provider against stand-ins for AWS KMS that others wrote: moto, which is right about most
//! things, and ministack, which lies.
//!
//! Where one differs from the project's own KMS front, the test says which of them real KMS agrees
//! with, and where that is written.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::{Arc, Mutex, PoisonError, Weak};
use waxseal_testing::{kms_front, stand_in, support};

use aws_sdk_kms::Client;
use kms_front::{KmsFront, Login, client_at};
use support::context;
use waxseal::kek::conformance::{self, Outcome, Subject};
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal::{Aad, DekOrigin, Envelope, ErrorKind, Sealed, WrappedDek, WrappedKeys};
use waxseal_aws_kms::AwsKmsKek;

const REGION: &str = "eu-west-1";

struct StandIn(stand_in::StandIn);

impl StandIn {
    /// One for all tests that run at the same time.
    fn moto() -> Arc<Self> {
        static RUNNING: Mutex<Weak<StandIn>> = Mutex::new(Weak::new());
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.upgrade().unwrap_or_else(|| {
            let moto = Arc::new(Self(stand_in::StandIn::moto()));
            *running = Arc::downgrade(&moto);
            moto
        })
    }

    fn ministack() -> Self {
        Self(stand_in::StandIn::ministack())
    }

    fn client(&self) -> Client {
        let login =
            Login { access_key: "AKIATEST".into(), secret: "test".into(), session_token: None };
        client_at(&self.0.url(), REGION, &login)
    }

    async fn create_key(&self) -> String {
        self.client().create_key().send().await.unwrap().key_metadata.unwrap().arn.unwrap()
    }

    async fn kek(&self, arn: &str) -> AwsKmsKek {
        AwsKmsKek::builder(arn).client(self.client()).build().await.unwrap()
    }
}

struct OnMoto {
    kek: AwsKmsKek,
    other: AwsKmsKek,
}

impl Subject for OnMoto {
    fn provider(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.kek.clone())
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.other.clone())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_conforms_on_moto_as_far_as_moto_goes() {
    let moto = StandIn::moto();
    let (own, other) = (moto.create_key().await, moto.create_key().await);
    let subject = OnMoto { kek: moto.kek(&own).await, other: moto.kek(&other).await };
    let report = conformance::run(&subject).await;
    let others: Vec<_> = report
        .checks()
        .filter(|(_, outcome)| **outcome != Outcome::Passed)
        .map(|(name, _)| name)
        .collect();
    // moto does not rotate key material, and fails only as it likes.
    assert!(report.is_conformant(), "{report}");
    let not_on_moto = [
        "rewraps_where_it_says",
        "follows_a_rotation",
        "believes_no_version_that_anybody_could_write",
        "reports_each_class_of_failure_and_recovers",
        "takes_a_source_of_credentials_that_is_down_for_an_outage",
    ];
    assert_eq!(others, not_on_moto, "{report}");
}

#[tokio::test]
async fn an_envelope_works_on_moto_with_a_dek_of_either_origin_and_rewraps_there() {
    let moto = StandIn::moto();
    let (old, new) = (moto.create_key().await, moto.create_key().await);
    let context = context("alice");
    for origin in [DekOrigin::Local, DekOrigin::KeyService] {
        let writer =
            Envelope::builder().dek_origin(origin).wrap_with(moto.kek(&old).await).build().unwrap();
        let sealed = writer.encrypt(&context, Aad::from(b"aad"), b"text").await.unwrap();
        let kek = AwsKmsKek::builder(&new)
            .client(moto.client())
            .former_keys([old.as_str()])
            .build()
            .await
            .unwrap();
        let mover = Envelope::builder().wrap_with(kek).build().unwrap();
        let moved = mover.rewrap(&context, &sealed).await.unwrap();
        let reader = Envelope::builder().unwrap_with(moto.kek(&new).await).build().unwrap();
        assert_eq!(
            &*reader.decrypt(&context, Aad::from(b"aad"), &moved).await.unwrap(),
            b"text",
            "{origin:?}"
        );
    }
}

/// What a stand-in and the front answer to the same.
#[derive(PartialEq, Eq, Debug)]
enum Answer {
    Served,
    Failed(KekErrorClass),
}

/// Wrapped, then unwrapped in a changed world.
async fn answers(client: &Client) -> [Answer; 4] {
    let create =
        async || client.create_key().send().await.unwrap().key_metadata.unwrap().arn.unwrap();
    let (own, other) = (create().await, create().await);
    let kek = |arn: &str| AwsKmsKek::builder(arn).client(client.clone()).build();
    let (kek, other) = (kek(&own).await.unwrap(), kek(&other).await.unwrap());
    let (alice, bob) = (context("alice"), context("bob"));
    let (_, wrapped) = kek.generate(&alice).await.unwrap();
    let of_the_other = WrappedDek::new(other.id().clone(), wrapped.wrapped()).unwrap();
    let answer = |result: Result<_, waxseal::kek::KekError>| match result {
        Ok(_) => Answer::Served,
        Err(error) => Answer::Failed(error.class()),
    };
    // By its id: of ARNs here moto knows nothing.
    let id = own.rsplit('/').next().unwrap();
    let wrong_context = answer(kek.unwrap(&bob, &wrapped).await);
    let wrong_key = answer(other.unwrap(&alice, &of_the_other).await);
    client.disable_key().key_id(id).send().await.unwrap();
    let disabled = answer(kek.unwrap(&alice, &wrapped).await);
    client.enable_key().key_id(id).send().await.unwrap();
    client.schedule_key_deletion().key_id(id).pending_window_in_days(7).send().await.unwrap();
    let pending_deletion = answer(kek.unwrap(&alice, &wrapped).await);
    [wrong_context, wrong_key, disabled, pending_deletion]
}

#[tokio::test]
async fn where_moto_and_the_front_differ_real_kms_agrees_with_the_front() {
    use Answer::{Failed, Served};
    let (moto, front) = (StandIn::moto(), KmsFront::start());
    let on_moto = answers(&moto.client()).await;
    let login = front.admin();
    let on_front = answers(&front.client(REGION, &login)).await;
    // The encryption context: all three agree. "Otherwise, the request to decrypt fails with an
    // InvalidCiphertextException" (API Reference, Encrypt; the same in the list of errors of
    // Decrypt).
    assert_eq!(
        (&on_moto[0], &on_front[0]),
        (&Failed(KekErrorClass::Invalid), &Failed(KekErrorClass::Invalid))
    );
    // Another key than the one that made it: "If you identify a different KMS key, the Decrypt
    // operation throws an IncorrectKeyException" (API Reference, Decrypt, KeyId). moto says
    // AccessDeniedException.
    assert_eq!(
        (&on_moto[1], &on_front[1]),
        (&Failed(KekErrorClass::Denied), &Failed(KekErrorClass::Invalid))
    );
    // A disabled key, and one that is scheduled for deletion: "Key states of AWS KMS keys" in the
    // Developer Guide, "Key state table", row Decrypt: [1] DisabledException; [2] DisabledException
    // or [3] KMSInvalidStateException. moto serves them.
    assert_eq!((&on_moto[2], &on_front[2]), (&Served, &Failed(KekErrorClass::Denied)));
    assert_eq!((&on_moto[3], &on_front[3]), (&Served, &Failed(KekErrorClass::Denied)));
}

#[tokio::test]
async fn the_dek_id_catches_a_kms_that_lies() {
    let liar = StandIn::ministack();
    let (own, other) = (liar.create_key().await, liar.create_key().await);
    let context = context("alice");
    let writer = Envelope::builder().wrap_with(liar.kek(&own).await).build().unwrap();
    let sealed = writer.encrypt_compact(&context, Aad::empty(), b"text").await.unwrap();
    let entry = &sealed.wrapped_keys().entries()[0];
    let open = async |arn: &str, entry: WrappedDek| {
        let reader = Envelope::builder().unwrap_with(liar.kek(arn).await).build().unwrap();
        let keys = WrappedKeys::new([entry]).unwrap();
        reader
            .decrypt(&context, Aad::empty(), Sealed::compact(sealed.as_bytes(), &keys))
            .await
            .map(|text| text.to_vec())
    };
    assert_eq!(open(&own, entry.clone()).await.unwrap(), b"text", "the control");

    let (kek, mut lies) = (liar.kek(&own).await, 0);
    let dek = kek.unwrap(&context, entry).await.unwrap();
    for at in (0..entry.wrapped().len()).step_by(4) {
        let mut bytes = entry.wrapped().to_vec();
        bytes[at] ^= 1;
        let forged = WrappedDek::new(kek.id().clone(), bytes).unwrap();
        // The key service gives another DEK for it, and the envelope does not take it.
        if kek.unwrap(&context, &forged).await.is_ok_and(|other| other.expose() != dek.expose()) {
            lies += 1;
            assert_eq!(
                open(&own, forged).await.unwrap_err().kind(),
                ErrorKind::Invalid,
                "byte {at}"
            );
        }
    }
    assert!(lies > 0, "it told the truth throughout: is it still a liar?");

    // Another key's name on the wrapped key: served, with another DEK.
    let relabelled = WrappedDek::new(liar.kek(&other).await.id().clone(), entry.wrapped()).unwrap();
    assert!(
        liar.kek(&other).await.unwrap(&context, &relabelled).await.is_ok(),
        "it did not even ask for the right key"
    );
    assert_eq!(open(&other, relabelled).await.unwrap_err().kind(), ErrorKind::Invalid);
}
