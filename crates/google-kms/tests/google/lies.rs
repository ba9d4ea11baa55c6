//! A Cloud KMS that lies: nothing of it is believed.

use std::time::Duration;

use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal::{Aad, Envelope, ErrorKind, Limits};
use waxseal_testing::google::{Effect, Fault, Lie};
use waxseal_testing::support::{a_dek, context};

use crate::Ground;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_fit_together_is_not_believed() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    for (lie, wraps, unwraps) in [
        (Lie::DamagedData, false, false),
        (Lie::WrongChecksum, false, false),
        (Lie::NoChecksum, false, false),
        // Only the answer to encrypt says what was verified, and names a key.
        (Lie::NothingVerified, false, true),
        (Lie::OtherName, false, true),
        (Lie::HalfAnAnswer, false, false),
    ] {
        ground.front.lie(lie);
        let wrap = kek.wrap(&alice, &dek).await.map(|_| ());
        let unwrap = kek.unwrap(&alice, &wrapped).await;
        for (what, is_believed, result) in [
            ("wrap", wraps, wrap),
            ("unwrap", unwraps, unwrap.as_ref().map(|_| ()).map_err(Clone::clone)),
        ] {
            assert_eq!(result.is_ok(), is_believed, "{lie:?} {what}: {result:?}");
            if let Err(error) = result {
                assert_eq!(error.class(), KekErrorClass::Unavailable, "{lie:?} {what}: {error}");
            }
        }
        if let Ok(unwrapped) = unwrap {
            assert_eq!(unwrapped.expose(), dek.expose());
        }
        ground.front.recover();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dek_id_catches_a_dek_of_another_key() {
    let ground = Ground::software();
    let writer = Envelope::builder().wrap_with(ground.kek().await).build().unwrap();
    let sealed = writer.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    let limits = Limits::default().denial_ttl(Duration::ZERO);
    let builder = Envelope::builder().unwrap_with(ground.kek().await).limits(limits);
    let reader = builder.build().unwrap();
    ground.front.fail(Fault::new(Effect::Lie(Lie::OtherPlaintext)).on("decrypt"));
    let error = reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    ground.front.recover();
    reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_answer_is_not_read() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    let body: &'static str = Box::leak("x".repeat(1 << 20).into_boxed_str());
    for status in [200, 400, 503] {
        ground.front.fail(Fault::new(Effect::Raw(status, body)));
        let error = kek.wrap(&context("alice"), &a_dek()).await.unwrap_err();
        assert_eq!(error.class(), KekErrorClass::Unavailable, "{error}");
        assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
        ground.front.recover();
    }
}
