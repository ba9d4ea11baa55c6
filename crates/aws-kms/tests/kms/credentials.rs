//! Credentials: what an outage of those who give them out means, those that come late, and those
//! that end before their time.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use waxseal_testing::{kms_front, support};

use aws_config::imds;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::sts::AssumeRoleProvider;
use aws_config::web_identity_token::{StaticConfiguration, WebIdentityTokenCredentialsProvider};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future;
use aws_sdk_kms::config::{Credentials, ProvideCredentials, Region, SharedCredentialsProvider};
use futures_util::future::join_all;
use kms_front::sources::{CredentialSource, Reply};
use kms_front::{Fault, KmsFront, Login, client_at};
use support::{a_dek, context};
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal::{Aad, Envelope, ErrorKind, Limits, ManualClock};
use waxseal_aws_kms::AwsKmsKek;

use KekErrorClass::{Misconfigured, Throttled, Unavailable};

const REGION: &str = "eu-west-1";
/// A port at which no process listens.
const NOBODY: &str = "http://127.0.0.1:1";

struct Ground {
    front: KmsFront,
    login: Login,
    arn: String,
}

impl Ground {
    fn new() -> Self {
        let front = KmsFront::start();
        let (login, arn) = (front.admin(), front.create_key(REGION));
        Self { front, login, arn }
    }

    async fn kek(&self, credentials: impl ProvideCredentials + 'static) -> AwsKmsKek {
        let client = client_at(&self.front.url(), REGION, &self.login);
        let provider = SharedCredentialsProvider::new(credentials);
        let config = client.config().to_builder().credentials_provider(provider).build();
        AwsKmsKek::builder(&self.arn)
            .client(aws_sdk_kms::Client::from_conf(config))
            .build()
            .await
            .unwrap()
    }
}

/// A source of the test's own, of which the test holds another handle.
#[derive(Clone, Debug)]
struct Own(Arc<State>);

#[derive(Debug)]
struct State {
    current: Mutex<Credentials>,
    takes: Mutex<Duration>,
    is_down: AtomicBool,
    begun: AtomicUsize,
    done: AtomicUsize,
}

impl Own {
    fn new(current: Credentials) -> Self {
        Self(Arc::new(State {
            current: Mutex::new(current),
            takes: Mutex::default(),
            is_down: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        }))
    }

    fn takes(self, takes: Duration) -> Self {
        *self.0.takes.lock().unwrap() = takes;
        self
    }
}

impl ProvideCredentials for Own {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.0.begun.fetch_add(1, Ordering::SeqCst);
            let takes = *self.0.takes.lock().unwrap();
            tokio::time::sleep(takes).await;
            self.0.done.fetch_add(1, Ordering::SeqCst);
            if self.0.is_down.load(Ordering::SeqCst) {
                return Err(CredentialsError::provider_error("a 503 from STS"));
            }
            Ok(self.0.current.lock().unwrap().clone())
        })
    }
}

fn ending(credentials: &Credentials, after: Duration) -> Credentials {
    let (key, secret) = (credentials.access_key_id(), credentials.secret_access_key());
    Credentials::new(key, secret, None, Some(SystemTime::now() + after), "test")
}

async fn sts_role(url: &str, login: &Login) -> AssumeRoleProvider {
    let config =
        aws_config::defaults(aws_config::BehaviorVersion::latest()).region(Region::new(REGION));
    let config = config
        .endpoint_url(url)
        .credentials_provider(SharedCredentialsProvider::new(login.credentials()));
    let config = config.load().await;
    AssumeRoleProvider::builder("arn:aws:iam::111122223333:role/orders")
        .session_name("s")
        .configure(&config)
        .build()
        .await
}

async fn assert_class(
    ground: &Ground,
    name: &str,
    source: impl ProvideCredentials + 'static,
    expected: (KekErrorClass, &str),
) {
    let (class, shown) = expected;
    let error = ground.kek(source).await.wrap(&context("alice"), &a_dek()).await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.class(), class, "{name}: {text}");
    assert!(text.contains(shown), "{name}: {text}");
    assert!(!text.contains("said by") && !text.contains(&ground.login.secret), "{name}: {text}");
    assert!(error.was_asked(), "{name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_sts_is_one_and_its_refusal_is_an_operator_s_matter() {
    let ground = Ground::new();
    let cases = [
        ("503", Some(Reply::status(503)), (Unavailable, "loading credentials failed")),
        (
            "500 with a code",
            Some(Reply::sts_error(500, "InternalFailure")),
            (Unavailable, "InternalFailure"),
        ),
        (
            "service unavailable",
            Some(Reply::sts_error(503, "ServiceUnavailable")),
            (Unavailable, "ServiceUnavailable"),
        ),
        (
            "a gateway's page",
            Some(Reply::Answer(502, "<html>".into())),
            (Unavailable, "loading credentials failed"),
        ),
        (
            "a code that nobody knows",
            Some(Reply::sts_error(400, "BrandNew")),
            (Unavailable, "BrandNew"),
        ),
        ("throttled", Some(Reply::sts_error(400, "Throttling")), (Throttled, "Throttling")),
        ("connection ended", Some(Reply::End), (Unavailable, "loading credentials failed")),
        ("connection refused", None, (Unavailable, "no connection: connection refused")),
        (
            "access denied",
            Some(Reply::sts_error(403, "AccessDenied")),
            (Misconfigured, "AccessDenied"),
        ),
        ("expired", Some(Reply::sts_error(403, "ExpiredToken")), (Misconfigured, "ExpiredToken")),
        (
            "unknown login",
            Some(Reply::sts_error(403, "InvalidClientTokenId")),
            (Misconfigured, "InvalidClientTokenId"),
        ),
    ];
    join_all(cases.map(|(name, reply, expected)| {
        let ground = &ground;
        async move {
            let sts = reply.map(CredentialSource::start);
            let url = sts.as_ref().map_or_else(|| NOBODY.to_owned(), CredentialSource::url);
            assert_class(ground, name, sts_role(&url, &ground.login).await, expected).await;
        }
    }))
    .await;
}

/// As `AssumeRoleWithWebIdentity`, which EKS uses: its errors are types of their own in the SDK.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_codes_of_a_web_identity_are_read_too() {
    let ground = Ground::new();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "a.token.of.the.cluster").unwrap();
    let missing = directory.path().join("missing");
    let cases = [
        (
            Some(Reply::sts_error(400, "IDPCommunicationError")),
            &file,
            (Unavailable, "IDPCommunicationError"),
        ),
        (
            Some(Reply::sts_error(400, "ExpiredTokenException")),
            &file,
            (Misconfigured, "ExpiredTokenException"),
        ),
        (
            Some(Reply::sts_error(400, "InvalidIdentityToken")),
            &file,
            (Misconfigured, "InvalidIdentityToken"),
        ),
        (None, &missing, (Misconfigured, "not found")),
    ];
    for (reply, file, expected) in cases {
        let sts = reply.map(CredentialSource::start);
        let url = sts.as_ref().map_or_else(|| NOBODY.to_owned(), CredentialSource::url);
        let config = aws_config::provider_config::ProviderConfig::empty()
            .with_region(Some(Region::new(REGION)));
        let http = aws_smithy_http_client::Builder::new().build_http();
        let provider = WebIdentityTokenCredentialsProvider::builder()
            .configure(&config.with_http_client(Rerouted { to: url, inner: http }))
            .static_configuration(StaticConfiguration {
                web_identity_token_file: file.clone(),
                role_arn: "arn:aws:iam::111122223333:role/orders".to_owned(),
                session_name: "s".to_owned(),
            })
            .build();
        assert_class(&ground, "web identity", provider, expected).await;
    }
}

/// Sends everything to one place: the provider for web identities has no option for that.
#[derive(Debug, Clone)]
struct Rerouted {
    to: String,
    inner: aws_smithy_runtime_api::client::http::SharedHttpClient,
}

impl aws_smithy_runtime_api::client::http::HttpClient for Rerouted {
    fn http_connector(
        &self,
        settings: &aws_smithy_runtime_api::client::http::HttpConnectorSettings,
        components: &aws_sdk_kms::config::RuntimeComponents,
    ) -> aws_smithy_runtime_api::client::http::SharedHttpConnector {
        let connector = self.inner.http_connector(settings, components);
        aws_smithy_runtime_api::client::http::SharedHttpConnector::new(ReroutedConnector {
            to: self.to.clone(),
            connector,
        })
    }
}

#[derive(Debug)]
struct ReroutedConnector {
    to: String,
    connector: aws_smithy_runtime_api::client::http::SharedHttpConnector,
}

impl aws_smithy_runtime_api::client::http::HttpConnector for ReroutedConnector {
    fn call(
        &self,
        mut request: aws_smithy_runtime_api::client::orchestrator::HttpRequest,
    ) -> aws_smithy_runtime_api::client::http::HttpConnectorFuture {
        request.set_uri(format!("{}/", self.to)).unwrap();
        self.connector.call(request)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_metadata_service_of_an_instance_is_one() {
    let ground = Ground::new();
    let cases = [
        ("refused", None, (Unavailable, "no connection")),
        ("500", Some(Reply::status(500)), (Unavailable, "loading credentials failed")),
        ("forbidden", Some(Reply::status(403)), (Misconfigured, "forbids it")),
    ];
    for (name, reply, expected) in cases {
        let source = reply.map(CredentialSource::start);
        let url = source.as_ref().map_or_else(|| NOBODY.to_owned(), CredentialSource::url);
        let client = imds::Client::builder().endpoint(url).unwrap().max_attempts(1).build();
        let provider =
            imds::credentials::ImdsCredentialsProvider::builder().imds_client(client).build();
        // As the last link of a chain, as in the SDK's default.
        let chain = CredentialsProviderChain::first_try("imds", provider);
        assert_class(&ground, name, chain, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_nobody_configured_are_told_as_that() {
    let ground = Ground::new();
    #[derive(Debug)]
    struct Nothing;
    impl ProvideCredentials for Nothing {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::ready(Err(CredentialsError::not_loaded(
                "environment variable not set",
            )))
        }
    }
    let chain = CredentialsProviderChain::first_try("env", Nothing).or_else("profile", Nothing);
    let error = ground.kek(chain).await.wrap(&context("alice"), &a_dek()).await.unwrap_err();
    assert_eq!(error.class(), Misconfigured);
    assert!(error.to_string().contains("no credentials are configured"), "{error}");
    assert!(!error.was_asked(), "nobody was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cached_dek_rides_out_an_outage_of_sts_and_not_a_refusal() {
    let ground = Ground::new();
    let role = ground.front.principal(
        "role",
        vec![serde_json::json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": "kms:*", "Resource": "*" },
    ] })],
    );
    for (reply, rides) in
        [(Reply::status(503), true), (Reply::sts_error(403, "AccessDenied"), false)]
    {
        let sts = CredentialSource::start(Reply::role(&Credentials::new(
            &role.access_key,
            &role.secret,
            role.session_token.clone(),
            None,
            "test",
        )));
        // The role's session ends at once for the one that asks: every call needs the source.
        let inner = sts_role(&sts.url(), &ground.login).await;
        let kek = ground.kek(ShortLived(inner)).await;
        let clock = ManualClock::new();
        let limits = Limits::default()
            .max_age(Duration::from_secs(60))
            .stale_if_error_reading(Duration::from_secs(3600));
        let envelope =
            Envelope::builder().wrap_with(kek).clock(clock.clone()).limits(limits).build().unwrap();
        let alice = context("alice");
        let sealed = envelope.encrypt(&alice, Aad::empty(), b"text").await.unwrap();
        envelope.decrypt(&alice, Aad::empty(), &sealed).await.unwrap();
        sts.set(reply);
        tokio::time::sleep(Duration::from_secs(2)).await;
        clock.advance(Duration::from_secs(61));
        let answer = envelope.decrypt(&alice, Aad::empty(), &sealed).await;
        match rides {
            true => assert_eq!(&*answer.unwrap(), b"text"),
            false => assert_eq!(answer.unwrap_err().kind(), ErrorKind::Misconfigured),
        }
    }
}

/// Gives out what another does, for two seconds.
#[derive(Debug)]
struct ShortLived<P>(P);

impl<P: ProvideCredentials> ProvideCredentials for ShortLived<P> {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let found = self.0.provide_credentials().await?;
            Ok(ending(&found, Duration::from_millis(1500)))
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_take_longer_than_a_try_arrive_and_are_loaded_once_for_all() {
    let ground = Ground::new();
    let source = Own::new(ground.login.credentials()).takes(Duration::from_secs(3));
    let kek = ground.kek(source.clone()).await;
    let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
    let start = Instant::now();
    let tenants: Vec<_> = (0..8).map(|n| context(&format!("t{n}"))).collect();
    let all = join_all(tenants.iter().map(|tenant| async {
        while envelope.encrypt(tenant, Aad::empty(), b"text").await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "they never come");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }));
    all.await;
    assert_eq!(
        (source.0.begun.load(Ordering::SeqCst), source.0.done.load(Ordering::SeqCst)),
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_end_of_credentials_fails_no_call() {
    let ground = Ground::new();
    let source = Own::new(ground.login.credentials());
    let kek = ground.kek(source.clone()).await;
    kek.generate(&context("alice")).await.unwrap();
    for round in 1..=2 {
        let next = ground.front.admin();
        let old = source.0.current.lock().unwrap().access_key_id().to_owned();
        ground.front.world().principals.get_mut(&old).unwrap().expired = true;
        *source.0.current.lock().unwrap() = next.credentials();
        // All that find out at once.
        let contexts: Vec<_> = (0..40).map(|n| context(&format!("t{n}"))).collect();
        let answers = join_all(contexts.iter().map(|context| kek.generate(context))).await;
        let failed: Vec<_> =
            answers.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(source.0.begun.load(Ordering::SeqCst), 1 + round, "one load for all of them");
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_fresh_credentials_do_not_cure_is_one_call_each_and_few_loads() {
    let ground = Ground::new();
    let source = Own::new(ground.login.credentials());
    let kek = ground.kek(source.clone()).await;
    ground.front.fail(Fault::error(400, "ExpiredTokenException", "expired"));
    for _ in 0..20 {
        let error = kek.generate(&context("alice")).await.unwrap_err();
        assert_eq!(error.class(), Misconfigured);
        assert!(error.to_string().contains("ExpiredTokenException"), "{error}");
    }
    assert_eq!(
        ground.front.arrived("GenerateDataKey"),
        20,
        "the same credentials are not tried twice"
    );
    let loads = source.0.begun.load(Ordering::SeqCst);
    assert!((2..=10).contains(&loads), "{loads}: at most one a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_source_while_credentials_are_refused_is_an_outage() {
    let ground = Ground::new();
    let source = Own::new(ground.login.credentials());
    let kek = ground.kek(source.clone()).await;
    kek.generate(&context("alice")).await.unwrap();
    ground.front.world().principals.get_mut(&ground.login.access_key).unwrap().expired = true;
    source.0.is_down.store(true, Ordering::SeqCst);
    let error = kek.generate(&context("alice")).await.unwrap_err();
    assert_eq!(error.class(), Unavailable, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_serve_to_their_end_while_no_others_can_be_had() {
    let ground = Ground::new();
    // The SDK would not use any that end within ten seconds.
    let source = Own::new(ending(&ground.login.credentials(), Duration::from_secs(6)));
    let kek = ground.kek(source.clone()).await;
    assert_eq!(kek.login(), Some(waxseal::kek::Login::new(0, 0)), "none was needed yet");
    kek.generate(&context("alice")).await.unwrap();
    let left = kek.login().and_then(|login| login.ends_in).unwrap();
    assert!(left <= Duration::from_secs(6), "{left:?}");
    source.0.is_down.store(true, Ordering::SeqCst);
    kek.generate(&context("alice")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(kek.generate(&context("alice")).await.unwrap_err().class(), Unavailable);
    let login = kek.login().unwrap();
    assert!(login.logins >= 1 && login.failures >= 1, "{login:?}");
    assert_eq!(login.ends_in, Some(Duration::ZERO));
    source.0.is_down.store(false, Ordering::SeqCst);
    *source.0.current.lock().unwrap() = ground.login.credentials();
    kek.generate(&context("alice")).await.unwrap();
    assert_eq!(kek.login().and_then(|login| login.ends_in), None, "these have no end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_panics_is_one_that_is_down() {
    #[derive(Debug)]
    struct Panics;
    impl ProvideCredentials for Panics {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            panic!("of the source")
        }
    }
    let ground = Ground::new();
    let kek = ground.kek(Panics).await;
    for _ in 0..2 {
        let error = kek.generate(&context("alice")).await.unwrap_err();
        assert_eq!(error.class(), Unavailable, "{error}");
    }
}
