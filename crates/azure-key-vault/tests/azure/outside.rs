//! What others do: servers that send elsewhere or without end, credentials of users that hang and
//! panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_testing::azure::{Effect, Fault};
use waxseal_testing::support::context;

use crate::ground::{Ground, HSM, dek};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirection_is_not_followed_and_takes_neither_dek_nor_secret_along() {
    let ground = Ground::new();
    for operation in ["encrypt", "login"] {
        let kek = ground.hsm("cards");
        ground.azure.fail(Fault::new(Effect::Redirect("https://localhost/else")).on(operation));
        let before = ground.azure.arrived(operation);
        let error = kek.wrap(&context("alice"), &dek()).await.unwrap_err();
        assert_eq!(error.class(), KekErrorClass::Unavailable, "{operation}: {error}");
        assert_eq!(ground.azure.arrived(operation) - before, 1, "{operation}");
        ground.azure.recover();
        kek.wrap(&context("alice"), &dek()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_end_is_not_read() {
    let ground = Ground::new();
    let body: &'static str = Box::leak("x ".repeat(1 << 20).into_boxed_str());
    for operation in ["encrypt", "login"] {
        for status in [200, 400, 401, 503] {
            let kek = ground.hsm("cards");
            ground.azure.fail(Fault::new(Effect::Raw(status, body)).on(operation));
            let error = kek.wrap(&context("alice"), &dek()).await.unwrap_err();
            assert_eq!(error.class(), KekErrorClass::Unavailable, "{operation} {status}: {error}");
            assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
            ground.azure.recover();
            kek.wrap(&context("alice"), &dek()).await.unwrap();
        }
    }
}

/// Of a user: it hangs, then panics, then works.
#[derive(Debug)]
struct Moody {
    asked: AtomicUsize,
    token: String,
}

#[async_trait::async_trait]
impl TokenCredential for Moody {
    async fn get_token(
        &self,
        _: &[&str],
        _: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        match self.asked.fetch_add(1, Ordering::SeqCst) {
            0 => std::future::pending().await,
            1 => panic!("a credential of the user's"),
            _ => {
                let end = std::time::SystemTime::now() + Duration::from_secs(3600);
                Ok(AccessToken::new(self.token.clone(), end.into()))
            }
        }
    }
}

/// The first caller gives up. Callers that come while the load hangs wait with it, but not for
/// ever: later another load starts in parallel. A panic is only an outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_that_hangs_or_panics_is_asked_anew() {
    let ground = Ground::new();
    let seed = ground.hsm("cards");
    seed.wrap(&context("alice"), &dek()).await.unwrap();
    let token = ground.azure.world().tokens.keys().next().unwrap().clone();
    let moody = Arc::new(Moody { asked: AtomicUsize::new(0), token });
    let builder = ground.builder_at(HSM, "cards", ground.azure.port());
    let kek = builder.token_credential(moody.clone()).build().unwrap();
    let (alice, dek) = (context("alice"), dek());
    let short = Duration::from_millis(200);
    tokio::time::timeout(short, kek.wrap(&alice, &dek)).await.unwrap_err();
    tokio::time::timeout(short, kek.wrap(&alice, &dek)).await.unwrap_err();
    assert_eq!(moody.asked.load(Ordering::SeqCst), 1, "they wait for the same load");
    tokio::time::sleep(Duration::from_secs(15)).await;
    let error = kek.wrap(&alice, &dek).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Unavailable, "{error}");
    assert!(error.to_string().contains("panicked"), "{error}");
    kek.wrap(&alice, &dek).await.unwrap();
    assert_eq!(moody.asked.load(Ordering::SeqCst), 3);
}
