//! The way to KMS: where it leads, over which connections, and what of them is believed.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use waxseal_testing::{fault_proxy, kms_front, middlebox, support};

use aws_sdk_kms::config::endpoint::{Endpoint, EndpointFuture, Params, ResolveEndpoint};
use aws_sdk_kms::config::{BehaviorVersion, Region};
use fault_proxy::FaultProxy;
use futures_util::future::join_all;
use kms_front::sources::{CredentialSource, Reply};
use kms_front::{ACCOUNT, Effect, Fault, KmsFront, Login, client_at};
use middlebox::Middlebox;
use support::{a_dek, context};
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal::{Aad, CallPolicy, EncryptionContext, Envelope, ErrorKind};
use waxseal_aws_kms::AwsKmsKek;

const REGION: &str = "eu-west-1";
const KEY: &str = "11112222-3333-4444-5555-666677778888";
const ELSEWHERE: &str = "http://kms.example.internal:8080";

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn arn() -> String {
    format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/{KEY}")
}

// --- connections that are dead

/// Messages of as many tenants, each under its own DEK.
async fn messages(
    front: &KmsFront,
    login: &Login,
    arn: &str,
    count: usize,
) -> Vec<(EncryptionContext, Vec<u8>)> {
    let kek = AwsKmsKek::builder(arn).client(front.client(REGION, login)).build().await.unwrap();
    let writer = Envelope::builder().wrap_with(kek).build().unwrap();
    let mut messages = Vec::new();
    for n in 0..count {
        let tenant = context(&format!("t{n}"));
        let sealed = writer.encrypt(&tenant, Aad::empty(), b"text").await.unwrap();
        messages.push((tenant, sealed));
    }
    messages
}

/// Two tries and no more; no circuit breaker.
fn two_tries() -> CallPolicy {
    CallPolicy::default()
        .timeout(ms(2000))
        .deadline(ms(20_000))
        .tries(2)
        .backoff(ms(1))
        .breaker_failures(1000)
}

/// After a pool of this many connections died, this many callers at once are served within two
/// tries each.
async fn dead_pool(pool: usize, callers: usize, with_own_http_client: bool) {
    let front = KmsFront::start();
    let (login, arn) = (front.admin(), front.create_key(REGION));
    let messages = messages(&front, &login, &arn, pool + callers + 3).await;
    let middlebox = Middlebox::start(front.port());
    let client = client_at(&format!("http://127.0.0.1:{}", middlebox.port()), REGION, &login);
    let client = if with_own_http_client {
        let http = aws_smithy_http_client::Builder::new().build_http();
        aws_sdk_kms::Client::from_conf(client.config().to_builder().http_client(http).build())
    } else {
        client
    };
    let kek = AwsKmsKek::builder(&arn).client(client).build().await.unwrap();
    let reader = Envelope::builder().unwrap_with(kek).call_policy(two_tries()).build().unwrap();
    let (fill, rest) = messages.split_at(pool);
    // All at once and slowly, so that there are as many connections.
    front.fail(Fault::new(Effect::Delay(ms(200))).on("Decrypt"));
    let answers =
        join_all(fill.iter().map(|(tenant, sealed)| reader.decrypt(tenant, Aad::empty(), sealed)))
            .await;
    assert!(
        answers.iter().all(Result::is_ok),
        "{:?}",
        answers.iter().find(|answer| answer.is_err())
    );
    assert!(middlebox.opened() >= pool.min(30), "{} connections", middlebox.opened());
    front.recover();
    for (round, (late, now)) in
        rest.split_at(callers).1.iter().zip([true, false, false]).enumerate()
    {
        if now {
            middlebox.forget();
            let callers = &rest[..callers];
            let answers = join_all(
                callers.iter().map(|(tenant, sealed)| reader.decrypt(tenant, Aad::empty(), sealed)),
            )
            .await;
            let failed: Vec<_> =
                answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
            assert!(failed.is_empty(), "{} of {}: {}", failed.len(), answers.len(), failed[0]);
        }
        let start = Instant::now();
        let answer = reader.decrypt(&late.0, Aad::empty(), &late.1).await;
        assert_eq!(&*answer.unwrap(), b"text", "round {round}");
        assert!(start.elapsed() < ms(15_000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_caller_is_served_within_two_tries_whatever_dead_connections_the_pool_holds() {
    for pool in [1, 8, 40] {
        dead_pool(pool, 1, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_are_many_that_draw_from_a_dead_pool_at_once() {
    // Fewer than there are dead ones, so that a second try could draw another.
    dead_pool(40, 25, false).await;
    dead_pool(40, 60, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_they_are_with_an_http_client_that_was_handed_in() {
    dead_pool(8, 1, true).await;
    dead_pool(8, 5, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_reset_all_at_once_cost_one_try() {
    let front = KmsFront::start();
    let (login, arn) = (front.admin(), front.create_key(REGION));
    let messages = messages(&front, &login, &arn, 22).await;
    let proxy = FaultProxy::start(front.port());
    let client = client_at(&format!("http://127.0.0.1:{}", proxy.port()), REGION, &login);
    let kek = AwsKmsKek::builder(&arn).client(client).build().await.unwrap();
    let reader = Envelope::builder().unwrap_with(kek).call_policy(two_tries()).build().unwrap();
    front.fail(Fault::new(Effect::Delay(ms(200))).on("Decrypt"));
    let (fill, rest) = messages.split_at(20);
    let answers =
        join_all(fill.iter().map(|(tenant, sealed)| reader.decrypt(tenant, Aad::empty(), sealed)))
            .await;
    assert!(answers.iter().all(Result::is_ok));
    front.recover();
    proxy.cut();
    for (tenant, sealed) in rest {
        reader.decrypt(tenant, Aad::empty(), sealed).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_slow_keeps_its_connections_from_callers_without_time() {
    let front = KmsFront::start();
    let (login, arn) = (front.admin(), front.create_key(REGION));
    let proxy = FaultProxy::start(front.port());
    let client = client_at(&format!("http://127.0.0.1:{}", proxy.port()), REGION, &login);
    let kek = AwsKmsKek::builder(&arn).client(client).build().await.unwrap();
    front.fail(Fault::new(Effect::Delay(ms(60))).on("GenerateDataKey"));
    for _ in 0..5 {
        kek.generate(&context("alice")).await.unwrap();
    }
    let before = proxy.connections();
    for _ in 0..20 {
        let left = tokio::time::timeout(ms(15), kek.generate(&context("alice"))).await;
        assert!(left.is_err());
        kek.generate(&context("alice")).await.unwrap();
    }
    let opened = proxy.connections() - before;
    assert!(opened <= 22, "{opened}: one for each that was left, and no pool for nothing");
}

// --- where it leads

#[tokio::test]
async fn plain_http_to_another_machine_is_refused_wherever_the_endpoint_comes_from() {
    let login =
        Login { access_key: "AKIATEST".into(), secret: "secret".into(), session_token: None };
    let shared = || {
        aws_config::SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(ELSEWHERE)
    };
    let credentials = aws_sdk_kms::config::SharedCredentialsProvider::new(login.credentials());
    let with_login = shared().credentials_provider(credentials).build();
    for builder in [
        AwsKmsKek::builder(arn()).endpoint_url(ELSEWHERE),
        AwsKmsKek::builder(arn()).sdk_config(&shared().build()),
        AwsKmsKek::builder(arn()).sdk_config(&with_login),
        AwsKmsKek::builder(arn()).client(client_at(ELSEWHERE, REGION, &login)),
        AwsKmsKek::builder(arn()).client(client_at(
            "http://user:hunter2@127.0.0.1.example.com",
            REGION,
            &login,
        )),
        AwsKmsKek::discover("aws", [ACCOUNT]).client(client_at(ELSEWHERE, REGION, &login)),
    ] {
        let error = builder.build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(
            error.to_string().contains("endpoint") && !error.to_string().contains("hunter2"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_nobody_vouches_for_is_an_operator_s_matter() {
    let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key =
        tokio_rustls::rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der())
            .unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = config.with_single_cert(vec![own.cert.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    let login =
        Login { access_key: "AKIATEST".into(), secret: "secret".into(), session_token: None };
    let kek =
        AwsKmsKek::builder(arn()).client(client_at(&url, REGION, &login)).build().await.unwrap();
    let error = kek.wrap(&context("alice"), &a_dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Misconfigured, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

/// Changes its mind after a while.
#[derive(Debug, Clone)]
struct Fickle {
    url: String,
    is_elsewhere: Arc<AtomicBool>,
}

impl ResolveEndpoint for Fickle {
    fn resolve_endpoint<'a>(&'a self, _: &'a Params) -> EndpointFuture<'a> {
        let url = if self.is_elsewhere.load(Ordering::SeqCst) {
            ELSEWHERE.to_owned()
        } else {
            self.url.clone()
        };
        EndpointFuture::ready(Ok(Endpoint::builder().url(url).build()))
    }
}

#[tokio::test]
async fn an_endpoint_that_turns_to_plain_http_later_gets_nothing() {
    let front = KmsFront::start();
    let (login, arn) = (front.admin(), front.create_key(REGION));
    let is_elsewhere = Arc::new(AtomicBool::new(false));
    let resolver = Fickle { url: front.url(), is_elsewhere: is_elsewhere.clone() };
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(login.credentials())
        .endpoint_resolver(resolver)
        .build();
    let kek = AwsKmsKek::builder(arn)
        .client(aws_sdk_kms::Client::from_conf(config))
        .build()
        .await
        .unwrap();
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    is_elsewhere.store(true, Ordering::SeqCst);
    let error = kek.wrap(&context("alice"), &a_dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Misconfigured, "{error}");
    assert!(error.to_string().contains("in the clear") && !error.was_asked(), "{error}");
}

/// The other part of the tests that need an environment of their own.
#[test]
fn in_an_environment_of_its_own() {
    if std::env::var_os("WAXSEAL_TEST_CONNECTIONS").is_none() {
        return;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match AwsKmsKek::builder(arn()).build().await {
            Err(error) => println!("build: {error}"),
            Ok(kek) => match kek.wrap(&context("alice"), &a_dek()).await {
                Err(error) => println!("call: {error}"),
                Ok(_) => println!("call: done"),
            },
        }
    });
}

fn child(login: &Login, variables: &[(&str, String)]) -> (String, Output) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "connections::in_an_environment_of_its_own", "--nocapture"])
        .env("WAXSEAL_TEST_CONNECTIONS", "1");
    for name in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
    ] {
        command.env_remove(name);
    }
    command.env("AWS_ACCESS_KEY_ID", &login.access_key).env("AWS_SECRET_ACCESS_KEY", &login.secret);
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_CONFIG_FILE", "/nonexistent");
    command.env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent");
    let output =
        command.envs(variables.iter().map(|(name, value)| (name, value))).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (said, output)
}

/// A front that knows the login and the key of the children.
fn front_for_children() -> (KmsFront, Login) {
    let front = KmsFront::start();
    let login = Login {
        access_key: "AKIACHILD".into(),
        secret: "of the child".into(),
        session_token: None,
    };
    let everything = serde_json::json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": "kms:*", "Resource": "*" },
    ] });
    front.enroll("child", &login, vec![everything]);
    front.world().insert_key(REGION, ACCOUNT, KEY, Some([7; 32]));
    (front, login)
}

#[test]
fn plain_http_from_the_environment_or_a_profile_is_refused() {
    let (front, login) = front_for_children();
    let directory = tempfile::tempdir().unwrap();
    let profile = directory.path().join("config");
    let text = format!(
        "[default]\nservices = local\n[services local]\nkms =\n  endpoint_url = {ELSEWHERE}\n"
    );
    std::fs::write(&profile, text).unwrap();
    for variable in [
        ("AWS_ENDPOINT_URL", ELSEWHERE.to_owned()),
        ("AWS_ENDPOINT_URL_KMS", ELSEWHERE.to_owned()),
        ("AWS_CONFIG_FILE", profile.display().to_string()),
    ] {
        let (said, _) = child(&login, std::slice::from_ref(&variable));
        assert!(
            said.contains("build: invalid configuration: endpoint http://kms.example.internal"),
            "{variable:?}: {said}"
        );
    }
    let (said, _) = child(&login, &[("AWS_ENDPOINT_URL_KMS", front.url())]);
    assert!(said.contains("call: done"), "{said}");
}

#[test]
fn a_system_without_root_certificates_is_told_and_does_not_panic() {
    let login =
        Login { access_key: "AKIACHILD".into(), secret: "secret".into(), session_token: None };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("roots.pem");
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for content in ["", "garbage", garbage] {
        std::fs::write(&file, content).unwrap();
        let (said, output) = child(
            &login,
            &[
                ("SSL_CERT_FILE", file.display().to_string()),
                ("SSL_CERT_DIR", directory.path().join("none").display().to_string()),
            ],
        );
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("build: ") && said.contains("no root certificates"),
            "{content:?}: {said} {errors}"
        );
        assert!(!errors.contains("panicked") && output.status.success(), "{errors}");
    }
}

#[test]
fn a_proxy_of_the_environment_is_used_for_tls_and_never_for_what_is_in_the_clear() {
    let (front, login) = front_for_children();
    let proxy = CredentialSource::start(Reply::status(502));
    let (said, _) = child(&login, &[("HTTPS_PROXY", proxy.url())]);
    assert!(said.contains("call: unavailable"), "{said}");
    let asked = proxy.requests();
    assert!(
        asked.iter().any(|line| line.starts_with("CONNECT kms.eu-west-1.amazonaws.com:443")),
        "{asked:?}"
    );
    let (said, _) = child(
        &login,
        &[
            ("HTTPS_PROXY", proxy.url()),
            ("NO_PROXY", "127.0.0.1".to_owned()),
            ("AWS_ENDPOINT_URL", "https://127.0.0.1:1".to_owned()),
        ],
    );
    assert!(said.contains("call: unavailable"), "{said}");
    assert_eq!(proxy.requests().len(), asked.len(), "an exception is one");
    // A DEK that is meant for this machine does not go to the proxy's.
    let variables = ["HTTP_PROXY", "http_proxy", "ALL_PROXY"].map(|name| (name, proxy.url()));
    let variables: Vec<_> =
        variables.into_iter().chain([("AWS_ENDPOINT_URL", front.url())]).collect();
    let (said, _) = child(&login, &variables);
    assert!(said.contains("call: done"), "{said}");
    assert_eq!(proxy.requests().len(), asked.len());
}
