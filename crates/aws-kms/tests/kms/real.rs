//! AWS KMS itself. Needs credentials, and in `WAXSEAL_TEST_AWS_KMS_KEY` a key by ARN, id or alias
//! whose policies allow Encrypt, Decrypt, GenerateDataKey, ReEncrypt and DescribeKey. It makes
//! about twenty calls. `cargo test --all-features --test aws_kms_real -- --ignored`
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use waxseal::kek::{Health, KekErrorClass, KekProvider};
use waxseal::{Aad, DekOrigin, EncryptionContext, Envelope, ErrorKind, inspect};
use waxseal_aws_kms::AwsKmsKek;

#[tokio::test]
#[ignore = "needs AWS credentials, and a key in WAXSEAL_TEST_AWS_KMS_KEY"]
async fn the_provider_works_on_aws_kms_itself() {
    let key = std::env::var("WAXSEAL_TEST_AWS_KMS_KEY")
        .unwrap_or_else(|_| panic!("name a key in WAXSEAL_TEST_AWS_KMS_KEY"));
    let kek = AwsKmsKek::builder(&key).build().await.unwrap();
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    let alice = EncryptionContext::new([("tenant", "alice"), ("test", "provider")]).unwrap();
    let bob = EncryptionContext::new([("tenant", "bob"), ("test", "provider")]).unwrap();
    for origin in [DekOrigin::Local, DekOrigin::KeyService] {
        let writer = Envelope::builder().dek_origin(origin).wrap_with(kek.clone()).build().unwrap();
        let sealed = writer.encrypt(&alice, Aad::from(b"aad"), b"text").await.unwrap();
        let entry = &inspect(&sealed).unwrap().keks[0];
        assert_eq!(&entry.kek_id, kek.id());
        assert_eq!(entry.meta.len(), 32, "the KeyMaterialId");
        assert!(!writer.needs_rewrap(&sealed).unwrap());
        let reader = || Envelope::builder().unwrap_with(kek.clone()).build().unwrap();
        assert_eq!(&*reader().decrypt(&alice, Aad::from(b"aad"), &sealed).await.unwrap(), b"text");
        assert_eq!(
            reader().decrypt(&bob, Aad::from(b"aad"), &sealed).await.unwrap_err().kind(),
            ErrorKind::Invalid
        );
    }
    let (dek, wrapped) = kek.generate(&alice).await.unwrap();
    let rewrapped = kek.rewrap(&alice, &wrapped).await.unwrap();
    assert_ne!(rewrapped.wrapped(), wrapped.wrapped());
    assert_eq!(kek.unwrap(&alice, &rewrapped).await.unwrap().expose(), dek.expose());
    for at in [0, 4, 40, wrapped.wrapped().len() - 1] {
        let mut bytes = wrapped.wrapped().to_vec();
        bytes[at] ^= 1;
        let damaged = waxseal::WrappedDek::new(kek.id().clone(), bytes).unwrap();
        let error = kek.unwrap(&alice, &damaged).await.unwrap_err();
        assert!(
            matches!(error.class(), KekErrorClass::Invalid | KekErrorClass::Denied),
            "byte {at}: {error}"
        );
    }
    let missing = kek.id().as_str().rsplit_once('/').unwrap().0.to_owned()
        + "/00000000-0000-0000-0000-000000000000";
    let missing = AwsKmsKek::builder(missing).build().await.unwrap();
    assert_eq!(missing.generate(&alice).await.unwrap_err().class(), KekErrorClass::Denied);
}
