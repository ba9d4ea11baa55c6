//! Google Cloud KMS itself. Needs application default credentials, and in
//! `WAXSEAL_TEST_GOOGLE_KMS_KEY` the resource name of a key, with the roles
//! `cloudkms.cryptoKeyEncrypterDecrypter` and `cloudkms.viewer` on it. It makes about thirty calls.
//! `cargo test -p waxseal-google-kms --all-features --test google real -- --ignored`

use waxseal::kek::{Health, KekErrorClass, KekProvider};
use waxseal::{Aad, EncryptionContext, Envelope, ErrorKind, WrappedDek, inspect};
use waxseal_google_kms::{GoogleKmsKek, HealthCheck};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Google credentials, and a key in WAXSEAL_TEST_GOOGLE_KMS_KEY"]
async fn the_provider_works_on_google_cloud_kms_itself() {
    let key = std::env::var("WAXSEAL_TEST_GOOGLE_KMS_KEY")
        .unwrap_or_else(|_| panic!("name a key in WAXSEAL_TEST_GOOGLE_KMS_KEY"));
    let kek = GoogleKmsKek::builder(&key).build().await.unwrap();
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    println!("{:?}", kek.read_key().await.unwrap());
    let used = GoogleKmsKek::builder(&key).health_check(HealthCheck::TryUse).build().await.unwrap();
    assert_eq!(used.health().await.unwrap(), Health::Ready);
    let alice = EncryptionContext::new([("tenant", "alice"), ("test", "provider")]).unwrap();
    let bob = EncryptionContext::new([("tenant", "bob"), ("test", "provider")]).unwrap();
    let largest = [("a", "x".repeat(4000)), ("b", "x".repeat(4000))];
    let largest = EncryptionContext::new(largest).unwrap();
    let writer = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    for context in [&alice, &largest] {
        let sealed = writer.encrypt(context, Aad::from(b"aad"), b"text").await.unwrap();
        let entry = &inspect(&sealed).unwrap().keks[0];
        assert_eq!(entry.kek_id.as_str(), key);
        assert!(entry.meta.iter().all(u8::is_ascii_digit), "the version's number");
        assert!(!writer.needs_rewrap(&sealed).unwrap());
        let reader = || Envelope::builder().unwrap_with(kek.clone()).build().unwrap();
        assert_eq!(&*reader().decrypt(context, Aad::from(b"aad"), &sealed).await.unwrap(), b"text");
        let error = reader().decrypt(&bob, Aad::from(b"aad"), &sealed).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        writer.rewrap(context, &sealed).await.unwrap();
    }
    let (_, wrapped) = kek.generate(&alice).await.unwrap();
    for at in [0, 1, 2, 20, 37, 38, 40, 60, wrapped.wrapped().len() - 1] {
        let mut bytes = wrapped.wrapped().to_vec();
        bytes[at] ^= 1;
        let damaged = WrappedDek::new(kek.id().clone(), bytes).unwrap();
        let error = kek.unwrap(&alice, &damaged).await.unwrap_err();
        println!("byte {at}: {error}");
        assert!(
            matches!(error.class(), KekErrorClass::Invalid | KekErrorClass::Denied),
            "byte {at}: {error}"
        );
    }
    let missing = GoogleKmsKek::builder(format!("{key}-missing")).build().await.unwrap();
    let error = missing.generate(&alice).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Denied, "{error}");
}
