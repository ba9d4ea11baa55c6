//! Connections that are dead, a server that is not the right one, callers that leave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal::{Aad, Envelope, ErrorKind};
use waxseal_google_kms::GoogleKmsKek;
use waxseal_testing::certificates::{Authority, Certificate};
use waxseal_testing::fault_proxy::Fault as Line;
use waxseal_testing::google::{Effect, Fault, child};
use waxseal_testing::server_child::ServerChild;
use waxseal_testing::support::{a_dek, context};

use crate::{Ground, patient};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_kept() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    for _ in 0..20 {
        kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    }
    assert_eq!(ground.proxy.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_silence_the_next_call_has_a_connection_of_its_own() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    ground.proxy.set(Line::Silence);
    let (alice, dek) = (context("alice"), a_dek());
    let call = tokio::time::timeout(Duration::from_millis(600), kek.wrap(&alice, &dek));
    assert!(call.await.is_err());
    let before = ground.proxy.connections();
    ground.proxy.set(Line::None);
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    assert_eq!(ground.proxy.connections(), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_closed_while_it_waited_is_not_noticed() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    for _ in 0..5 {
        kek.wrap(&context("alice"), &a_dek()).await.unwrap();
        ground.proxy.cut();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_a_call_leaves_the_provider_usable() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    ground.front.fail(Fault::new(Effect::Hang));
    let (alice, dek) = (context("alice"), a_dek());
    for wait in 0..20 {
        let call = tokio::time::timeout(Duration::from_millis(wait), kek.wrap(&alice, &dek));
        assert!(call.await.is_err());
    }
    ground.front.recover();
    let start = Instant::now();
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_certificate_of_an_unknown_authority_is_told_nothing() {
    let (certificate, key) = Authority::new().issue(Certificate::Right);
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(Arc::new(
        tokio_rustls::rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(
        vec![certificate.der().clone()],
        tokio_rustls::rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
    )
    .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = heard.clone();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let read = stream.read(&mut [0; 1024]).await.unwrap_or(0);
                counter.fetch_add(read, std::sync::atomic::Ordering::SeqCst);
            }
        }
    });
    let ground = Ground::software();
    let kek = GoogleKmsKek::builder(&ground.key)
        .endpoint(format!("https://localhost:{port}"))
        .metadata_server_at(ground.front.url())
        .build()
        .await
        .unwrap();
    let error = kek.wrap(&context("alice"), &a_dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Misconfigured, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(heard.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirection_is_not_followed() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    ground.front.fail(Fault::new(Effect::Raw(307, "")));
    let error = kek.wrap(&context("alice"), &a_dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Unavailable, "{error}");
    assert_eq!(ground.front.arrived("encrypt"), 1);
}

#[test]
fn the_stand_in_as_a_process_of_its_own() {
    child::child_s_part();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_kms_that_is_stopped_is_unavailable_and_serves_again_when_it_goes_on() {
    let child = ServerChild::start("connections::the_stand_in_as_a_process_of_its_own");
    let builder =
        GoogleKmsKek::builder(child::KEY).endpoint(child.url()).metadata_server_at(child.url());
    let kek = builder.build().await.unwrap();
    kek.read_key().await.unwrap();
    let policy = patient().timeout(Duration::from_secs(1));
    let builder = || Envelope::builder().wrap_with(kek.clone()).call_policy(policy);
    let writer = builder().build().unwrap();
    let sealed = writer.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    let reader = builder().build().unwrap();
    child.stop();
    let error = reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let cached = writer.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap();
    assert_eq!(&*cached, b"text", "what is cached");
    child.go_on();
    let text = reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap();
    assert_eq!(&*text, b"text");
}

#[test]
fn any_executor_may_poll_and_no_runtime_is_needed_to_drop() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ground = Ground::software();
    let kek = runtime.block_on(ground.kek());
    let wrapped =
        waxseal_testing::support::block_on(kek.wrap(&context("alice"), &a_dek())).unwrap();
    waxseal_testing::support::block_on(kek.unwrap(&context("alice"), &wrapped)).unwrap();
    waxseal_testing::support::block_on(kek.close());
    drop(kek);
}
