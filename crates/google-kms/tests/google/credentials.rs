//! Where tokens come from: each source, its outages, its refusals, tokens that end.

use std::io::Write;
use std::time::Duration;

use serde_json::json;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_google_kms::GoogleKmsKek;
use waxseal_testing::google::{Code, Effect, Fault, Source, status};
use waxseal_testing::support::{a_dek, context};

use crate::Ground;

const EMAIL: &str = "writer@orders-prod.iam.gserviceaccount.com";
const BOTH: &str = "roles/cloudkms.cryptoKeyEncrypterDecrypter";

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

async fn with_file(ground: &Ground, file: &tempfile::NamedTempFile) -> GoogleKmsKek {
    ground.builder(&ground.key).credentials_file(file.path()).build().await.unwrap()
}

async fn wrap(kek: &GoogleKmsKek) -> Result<(), (KekErrorClass, String)> {
    let wrapped = kek.wrap(&context("alice"), &a_dek()).await;
    wrapped.map(|_| ()).map_err(|error| (error.class(), error.to_string()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_kept_while_it_is_good_and_replaced_once_it_is_refused() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    for _ in 0..5 {
        wrap(&kek).await.unwrap();
    }
    assert_eq!(ground.front.asked_for_tokens(), 1);
    for n in 2..6 {
        ground.front.expire_tokens();
        wrap(&kek).await.unwrap();
        assert_eq!(ground.front.asked_for_tokens(), n, "the second try of one call");
    }
    let login = kek.login().unwrap();
    assert_eq!((login.logins, login.failures), (5, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_all_refused_do_not_make_every_call_ask_for_more() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    let refusal = status::unauthenticated("ACCESS_TOKEN_EXPIRED");
    ground.front.fail(Fault::new(Effect::Fails(refusal)));
    for _ in 0..20 {
        assert_eq!(wrap(&kek).await.unwrap_err().0, KekErrorClass::Misconfigured);
    }
    assert!(ground.front.asked_for_tokens() <= 4, "{}", ground.front.asked_for_tokens());
    ground.front.recover();
    wrap(&kek).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_source_is_over_when_it_is_over() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    for (reply, class) in [
        (Source::Fails(503, "x".to_owned()), KekErrorClass::Unavailable),
        (Source::Fails(500, "x".to_owned()), KekErrorClass::Unavailable),
        (Source::Fails(429, "x".to_owned()), KekErrorClass::Throttled),
        (Source::Fails(200, "{\"access_token\":".to_owned()), KekErrorClass::Unavailable),
        (Source::Fails(200, "<html>".to_owned()), KekErrorClass::Unavailable),
        (Source::Fails(404, "Not Found".to_owned()), KekErrorClass::Misconfigured),
        (Source::Fails(403, "hunter2".to_owned()), KekErrorClass::Misconfigured),
    ] {
        kek.close().await;
        ground.front.set_source(reply.clone());
        for _ in 0..2 {
            let (found, text) = wrap(&kek).await.unwrap_err();
            assert_eq!(found, class, "{reply:?}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        ground.front.restore_source();
        wrap(&kek).await.unwrap_or_else(|error| panic!("{reply:?}: {error:?}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_hangs_holds_up_no_call_for_ever_and_is_asked_anew() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    ground.front.set_source(Source::Hangs);
    let wait = tokio::time::timeout(Duration::from_millis(200), wrap(&kek)).await;
    assert!(wait.is_err(), "a caller waits as long as it likes");
    ground.front.restore_source();
    let begin = std::time::Instant::now();
    // A call after ten seconds asks again; calls before that wait for the first request.
    loop {
        match tokio::time::timeout(Duration::from_secs(1), wrap(&kek)).await {
            Ok(answer) => break answer.unwrap(),
            Err(_) => assert!(begin.elapsed() < Duration::from_secs(60)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_at_the_metadata_server_s_address_is_an_outage() {
    let ground = Ground::software();
    let nobody = format!("http://127.0.0.1:{}", waxseal_testing::ports::free_port());
    let kek = ground.builder(&ground.key).metadata_server_at(nobody).build().await.unwrap();
    let (class, text) = wrap(&kek).await.unwrap_err();
    assert_eq!(class, KekErrorClass::Unavailable, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_s_file_signs_tokens_and_a_clock_that_is_wrong_is_an_operator_s_matter() {
    let ground = Ground::software();
    let key_file = file(&ground.front.service_account_file(EMAIL));
    ground.front.world().grant(&ground.key, BOTH, EMAIL);
    let kek = with_file(&ground, &key_file).await;
    wrap(&kek).await.unwrap();
    assert_eq!(ground.front.calls().last().unwrap().principal, EMAIL);
    assert_eq!(ground.front.asked_for_tokens(), 0, "nobody was asked");
    ground.front.world().ahead = Duration::from_secs(2 * 3600);
    let (class, text) = wrap(&kek).await.unwrap_err();
    assert_eq!(class, KekErrorClass::Misconfigured, "{text}");
    ground.front.world().ahead = Duration::ZERO;
    wrap(&kek).await.unwrap();
    // The account's keys were deleted.
    ground.front.world().service_accounts.clear();
    assert_eq!(wrap(&kek).await.unwrap_err().0, KekErrorClass::Misconfigured);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workload_identity_federation_exchanges_the_workload_s_own_token() {
    let ground = Ground::software();
    let subject = file("a token of the workload's own");
    let config = json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{}/sts/v1/token", ground.front.url()),
        "credential_source": { "file": subject.path(), "format": { "type": "text" } },
        "universe_domain": "googleapis.com",
    });
    let kek = with_file(&ground, &file(&config.to_string())).await;
    // The file is read when the first token is needed.
    let (class, text) = wrap(&kek).await.unwrap_err();
    assert_eq!(class, KekErrorClass::Misconfigured, "the file is gone: {text}");
    let config = file(&config.to_string());
    let kek = with_file(&ground, &config).await;
    wrap(&kek).await.unwrap();
    assert_eq!(ground.front.asked_for_tokens(), 1);
    let refusal = json!({ "error": "invalid_grant", "error_description": "hunter2" });
    for (reply, class) in [
        (Source::Fails(400, refusal.to_string()), KekErrorClass::Misconfigured),
        (Source::Fails(503, "x".to_owned()), KekErrorClass::Unavailable),
        (Source::Fails(200, "<html>".to_owned()), KekErrorClass::Unavailable),
    ] {
        kek.close().await;
        ground.front.set_source(reply.clone());
        let (found, text) = wrap(&kek).await.unwrap_err();
        assert_eq!(found, class, "{reply:?}: {text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    ground.front.restore_source();
    wrap(&kek).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_used_is_named_and_nothing_of_it_is_shown() {
    let ground = Ground::software();
    for text in [
        "hunter2",
        "{}",
        "{\"type\":\"hunter2\"}",
        "{\"type\":\"service_account\",\"private_key\":\"hunter2\"}",
        "{\"type\":\"external_account\",\"audience\":\"hunter2\"}",
    ] {
        let credentials = file(text);
        let kek = with_file(&ground, &credentials).await;
        let (class, shown) = wrap(&kek).await.unwrap_err();
        assert_eq!(class, KekErrorClass::Misconfigured, "{text}: {shown}");
        assert!(shown.contains("credentials_file"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    assert_eq!(ground.front.arrived("encrypt"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_closed_is_made_anew() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    wrap(&kek).await.unwrap();
    kek.close().await;
    kek.close().await;
    wrap(&kek).await.unwrap();
    assert_eq!(ground.front.asked_for_tokens(), 2);
}

#[test]
fn a_runtime_that_ended_takes_the_task_of_the_credentials_with_it_and_another_one_takes_over() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    let ground = Ground::software();
    let (first, second) = (runtime(), runtime());
    let kek = first.block_on(ground.kek());
    first.block_on(wrap(&kek)).unwrap();
    drop(first);
    ground.front.expire_tokens();
    second.block_on(async {
        // The first try may find that the runtime ended meanwhile.
        for _ in 0..3 {
            if wrap(&kek).await.is_ok() {
                return;
            }
        }
        wrap(&kek).await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_of_the_user_s_own_are_used_as_they_are() {
    let ground = Ground::software();
    let credentials = google_cloud_auth::credentials::mds::Builder::default()
        .with_endpoint(ground.front.url())
        .build()
        .unwrap();
    let builder = ground.builder(&ground.key).credentials(credentials.clone());
    let kek = builder.build().await.unwrap();
    wrap(&kek).await.unwrap();
    kek.close().await;
    wrap(&kek).await.unwrap();
    assert_eq!(ground.front.asked_for_tokens(), 1, "they keep their token");
    let refused = ground
        .builder(&ground.key)
        .credentials(credentials)
        .quota_project("other")
        .build()
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("quota_project"), "{refused}");
    ground.front.fail(Fault::status(Code::Unauthenticated, "no"));
    assert_eq!(wrap(&kek).await.unwrap_err().0, KekErrorClass::Misconfigured);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_first_calls_at_once_need_one_token() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    let calls = (0..100).map(|_| wrap(&kek));
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    assert_eq!(ground.front.asked_for_tokens(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_leave_while_a_token_is_fetched_leave_it_to_the_next() {
    let ground = Ground::software();
    for wait in [0, 1, 2, 5, 10, 20, 50] {
        let kek = ground.kek().await;
        for _ in 0..5 {
            let _ = tokio::time::timeout(Duration::from_millis(wait), wrap(&kek)).await;
        }
        wrap(&kek).await.unwrap();
    }
    assert_eq!(ground.front.asked_for_tokens(), 7, "one for each provider");
}
