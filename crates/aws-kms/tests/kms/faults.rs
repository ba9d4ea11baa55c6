//! Every known way in which AWS KMS fails: the class, the tries, the recovery, and that no other
//! caller is affected.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use waxseal_testing::{fault_proxy, kms_front, support};

use aws_credential_types::provider::future;
use aws_sdk_kms::config::{Credentials, ProvideCredentials, SharedCredentialsProvider};
use fault_proxy::FaultProxy;
use futures_util::stream::{self, StreamExt};
use kms_front::child;
use kms_front::{Effect, Fault, KmsFront, Login, State, client_at};
use support::context;
use waxseal::kek::{KekErrorClass, KekProvider, UnwrappedDek};
use waxseal::{Aad, CallPolicy, Dek, Envelope, ErrorKind, Limits};
use waxseal_aws_kms::AwsKmsKek;
use waxseal_testing::faults::{Fault as Case, Stage, assert_shown, met};
use waxseal_testing::server_child::ServerChild;

const REGION: &str = "eu-west-1";
const TRIES: usize = 3;

fn dek() -> Dek {
    UnwrappedDek::new(kms_front::random::<32>().to_vec()).to_dek().unwrap()
}

fn patient() -> CallPolicy {
    let ms = Duration::from_millis;
    CallPolicy::default()
        .timeout(ms(500))
        .deadline(ms(10_000))
        .tries(TRIES.try_into().unwrap())
        .backoff(ms(1))
        .breaker_failures(1000)
}

struct Ground {
    front: KmsFront,
    proxy: FaultProxy,
    login: Login,
    arn: String,
}

impl Ground {
    fn new() -> Self {
        let front = KmsFront::start();
        let (login, arn, proxy) =
            (front.admin(), front.create_key(REGION), FaultProxy::start(front.port()));
        Self { front, proxy, login, arn }
    }

    async fn kek(&self) -> AwsKmsKek {
        let client =
            client_at(&format!("http://127.0.0.1:{}", self.proxy.port()), REGION, &self.login);
        AwsKmsKek::builder(&self.arn).client(client).build().await.unwrap()
    }

    async fn envelope(&self) -> Envelope {
        let limits = Limits::default().denial_ttl(Duration::ZERO);
        Envelope::builder()
            .wrap_with(self.kek().await)
            .limits(limits)
            .call_policy(patient())
            .build()
            .unwrap()
    }
}

impl Stage for Ground {
    async fn kek(&self) -> Arc<dyn KekProvider> {
        Arc::new(Self::kek(self).await)
    }

    fn arrived(&self) -> Option<usize> {
        Some(self.front.arrived("Decrypt"))
    }
}

fn key_state(ground: &Ground, state: State) {
    ground.front.world().key(&ground.arn).state = state;
}

fn expire(ground: &Ground, expired: bool) {
    ground.front.world().principals.get_mut(&ground.login.access_key).unwrap().expired = expired;
}

/// All that is brought about by an answer.
fn by_answer(name: &'static str, kind: ErrorKind, begin: fn(&Ground)) -> Case<Ground> {
    Case::new(name, kind, begin, |ground| ground.front.recover())
}

fn on_the_line(name: &'static str, begin: fn(&Ground)) -> Case<Ground> {
    let end = |ground: &Ground| ground.proxy.set(fault_proxy::Fault::None);
    Case::new(name, ErrorKind::Unavailable, begin, end)
}

fn cases() -> Vec<Case<Ground>> {
    use ErrorKind::{Denied, Invalid, Misconfigured, Throttled, Unavailable};
    vec![
        by_answer("internal exception", Unavailable, |g| {
            g.front.fail(Fault::error(500, "KMSInternalException", ""))
        }),
        by_answer("dependency timeout", Unavailable, |g| {
            g.front.fail(Fault::error(503, "DependencyTimeoutException", ""));
        }),
        by_answer("key unavailable", Unavailable, |g| {
            g.front.fail(Fault::error(500, "KeyUnavailableException", ""))
        }),
        by_answer("a bare 503", Unavailable, |g| g.front.fail(Fault::new(Effect::Raw(503, "")))),
        by_answer("a gateway's page", Unavailable, |g| {
            g.front.fail(Fault::new(Effect::Raw(502, "<html>Bad Gateway</html>")));
        }),
        by_answer("an unknown exception", Unavailable, |g| {
            g.front.fail(Fault::error(400, "BrandNewException", "nobody has read this before"));
        }),
        by_answer("garbage for an answer", Unavailable, |g| {
            g.front.fail(Fault::new(Effect::Raw(200, "\u{fffd}[}")))
        }),
        by_answer("an answer without content", Unavailable, |g| {
            g.front.fail(Fault::new(Effect::Raw(200, "{}")))
        }),
        by_answer("an answer that is no base64", Unavailable, |g| {
            let answer = r#"{"Plaintext":"***","KeyId":"x","CiphertextBlob":"***"}"#;
            g.front.fail(Fault::new(Effect::Raw(200, answer)));
        }),
        by_answer("slow", Unavailable, |g| {
            g.front.fail(Fault::new(Effect::Delay(Duration::from_secs(2))))
        })
        .slow(),
        by_answer("no answer", Unavailable, |g| g.front.fail(Fault::new(Effect::Hang))).slow(),
        by_answer("throttled", Throttled, |g| {
            g.front.fail(Fault::error(400, "ThrottlingException", "Rate exceeded"))
        }),
        by_answer("a 429 without a name", Throttled, |g| {
            g.front.fail(Fault::new(Effect::Raw(429, "")))
        }),
        by_answer("access denied", Denied, |g| {
            g.front.fail(Fault::error(400, "AccessDeniedException", "no"))
        }),
        by_answer("unknown credentials", Misconfigured, |g| {
            g.front.fail(Fault::error(
                400,
                "UnrecognizedClientException",
                "The security token is invalid",
            ));
        }),
        Case::new(
            "a clock that is wrong",
            Misconfigured,
            |g| {
                g.front.world().ahead = Duration::from_secs(1000);
            },
            |g| g.front.world().ahead = Duration::ZERO,
        ),
        by_answer("wrong context or damage", Invalid, |g| {
            g.front.fail(Fault::error(400, "InvalidCiphertextException", "").on("Decrypt"));
        }),
        by_answer("wrong key", Invalid, |g| {
            g.front.fail(Fault::error(400, "IncorrectKeyException", "").on("Decrypt"))
        }),
        Case::new("credentials expired", Misconfigured, |g| expire(g, true), |g| expire(g, false)),
        Case::new(
            "key disabled",
            Denied,
            |g| key_state(g, State::Disabled),
            |g| key_state(g, State::Enabled),
        ),
        Case::new(
            "scheduled for deletion",
            Denied,
            |g| key_state(g, State::PendingDeletion),
            |g| key_state(g, State::Enabled),
        ),
        Case::new(
            "pending import",
            Denied,
            |g| key_state(g, State::PendingImport),
            |g| key_state(g, State::Enabled),
        ),
        Case::new(
            "being created",
            Unavailable,
            |g| key_state(g, State::Creating),
            |g| key_state(g, State::Enabled),
        ),
        on_the_line("reset", |g| g.proxy.set(fault_proxy::Fault::Reset)),
        on_the_line("cut off", |g| g.proxy.set(fault_proxy::Fault::Truncate(30))),
        on_the_line("half closed", |g| g.proxy.set(fault_proxy::Fault::HalfClose)),
        on_the_line("silence", |g| g.proxy.set(fault_proxy::Fault::Silence)).slow(),
        on_the_line("not HTTP", |g| {
            g.proxy.set(fault_proxy::Fault::Replace(b"SSH-2.0-OpenSSH\r\n".to_vec()))
        }),
        on_the_line("a trickle", |g| {
            g.proxy.set(fault_proxy::Fault::Trickle(Duration::from_millis(100)))
        })
        .slow(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_has_its_class_its_tries_and_its_recovery() {
    // Most of the time goes by waiting.
    let faults = stream::iter(cases());
    faults.for_each_concurrent(8, async |case| met(&Ground::new(), case).await).await;
}

/// docs/aws-kms.md shows every case of this file, in order.
#[test]
fn the_docs_show_these_faults() {
    let page = include_str!("../../docs/aws-kms.md");
    assert_shown(page, "### What a fault looks like", &cases());
}

#[tokio::test]
async fn a_deleted_key_is_denied() {
    let ground = Ground::new();
    let writer = ground.envelope().await;
    let sealed = writer.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    ground.front.world().delete(&ground.arn);
    let error = ground
        .envelope()
        .await
        .decrypt(&context("alice"), Aad::empty(), &sealed)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn messages_tell_key_states_apart() {
    let ground = Ground::new();
    let kek = ground.kek().await;
    for (state, words) in [
        (State::Disabled, "is disabled"),
        (State::PendingDeletion, "is pending deletion"),
        (State::PendingImport, "is pending import"),
        (State::Unavailable, "is unavailable"),
        (State::Creating, "is creating"),
    ] {
        key_state(&ground, state);
        let error = kek.generate(&context("alice")).await.unwrap_err();
        assert!(
            error.to_string().contains(words) && error.to_string().contains(&ground.arn),
            "{error}"
        );
        assert!(error.to_string().contains("(request "), "{error}: an id to ask AWS about");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_denied_for_one_context_touches_no_other_caller() {
    let ground = Ground::new();
    let (alice, bob) = (context("alice"), context("bob"));
    let writer = ground.envelope().await;
    let for_alice = writer.encrypt(&alice, Aad::empty(), b"hers").await.unwrap();
    let for_bob = writer.encrypt(&bob, Aad::empty(), b"his").await.unwrap();
    for (status, code) in [(400, "AccessDeniedException"), (400, "InvalidCiphertextException")] {
        let limits = Limits::default()
            .max_age(Duration::from_millis(50))
            .refresh_after(Duration::from_millis(40));
        let policy = patient().breaker_failures(1);
        let builder =
            Envelope::builder().unwrap_with(ground.kek().await).limits(limits).call_policy(policy);
        let reader = builder.build().unwrap();
        ground.front.fail(Fault::error(status, code, "").with_context("tenant", "alice"));
        for _ in 0..20 {
            assert!(reader.decrypt(&alice, Aad::empty(), &for_alice).await.is_err());
            assert_eq!(
                &*reader.decrypt(&bob, Aad::empty(), &for_bob).await.unwrap(),
                b"his",
                "{code}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ground.front.recover();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_context_is_refused_by_kms_and_nobody_else_notices() {
    let ground = Ground::new();
    let writer = ground.envelope().await;
    let sealed = writer.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    let reader = ground.envelope().await;
    assert_eq!(
        reader.decrypt(&context("bob"), Aad::empty(), &sealed).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap();
    let codes: Vec<_> =
        ground.front.calls().iter().filter(|c| c.operation == "Decrypt").map(|c| c.error).collect();
    assert_eq!(codes, [Some("InvalidCiphertextException"), None]);
}

#[test]
fn the_front_as_a_process_of_its_own() {
    child::child_s_part();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kms_that_is_stopped_is_unavailable_and_serves_again_when_it_goes_on() {
    let child = ServerChild::start("faults::the_front_as_a_process_of_its_own");
    let client = client_at(child.url(), child::REGION, &child::login());
    let kek = AwsKmsKek::builder(child::ARN).client(client).build().await.unwrap();
    let builder = || Envelope::builder().wrap_with(kek.clone()).call_policy(patient());
    let writer = builder().build().unwrap();
    let sealed = writer.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    let reader = builder().build().unwrap();
    child.stop();
    let error = reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(
        &*writer.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap(),
        b"text",
        "what is cached"
    );
    child.go_on();
    assert_eq!(&*reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap(), b"text");
}

// --- credentials

/// Gives out sessions, the first of which ends before its time.
#[derive(Debug)]
struct Sessions {
    given: AtomicUsize,
    access_keys: Mutex<Vec<Credentials>>,
}

impl ProvideCredentials for Sessions {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        self.given.fetch_add(1, Ordering::SeqCst);
        future::ProvideCredentials::ready(Ok(self
            .access_keys
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .clone()))
    }
}

#[tokio::test]
async fn credentials_that_expire_in_mid_run_are_fetched_anew() {
    let ground = Ground::new();
    let second = ground.front.admin();
    let sessions = Arc::new(Sessions {
        given: AtomicUsize::new(0),
        access_keys: Mutex::new(vec![ground.login.credentials()]),
    });
    let client = client_at(&ground.front.url(), REGION, &ground.login);
    let provider = SharedCredentialsProvider::from(sessions.clone() as Arc<dyn ProvideCredentials>);
    let config = client.config().to_builder().credentials_provider(provider).build();
    let kek = AwsKmsKek::builder(&ground.arn)
        .client(aws_sdk_kms::Client::from_conf(config))
        .build()
        .await
        .unwrap();
    for _ in 0..5 {
        kek.generate(&context("alice")).await.unwrap();
    }
    assert_eq!(sessions.given.load(Ordering::SeqCst), 1, "kept while they are good");
    expire(&ground, true);
    sessions.access_keys.lock().unwrap().push(second.credentials());
    kek.generate(&context("alice")).await.unwrap();
    assert_eq!(sessions.given.load(Ordering::SeqCst), 2);
    // Wrong ones do not make every call fetch more.
    ground.front.fail(Fault::error(400, "ExpiredTokenException", "expired"));
    let before = sessions.given.load(Ordering::SeqCst);
    for _ in 0..20 {
        kek.generate(&context("alice")).await.unwrap_err();
    }
    assert!(sessions.given.load(Ordering::SeqCst) <= before + 3);
}

#[derive(Debug)]
struct Broken(bool);

impl ProvideCredentials for Broken {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        use aws_credential_types::provider::error::CredentialsError;
        future::ProvideCredentials::ready(Err(if self.0 {
            CredentialsError::provider_timed_out(Duration::from_secs(1))
        } else {
            CredentialsError::not_loaded("no role on this machine")
        }))
    }
}

#[tokio::test]
async fn no_credentials_are_an_operator_s_matter_and_never_a_denial() {
    let ground = Ground::new();
    let config = |client: &aws_sdk_kms::Client| client.config().to_builder();
    let client = client_at(&ground.front.url(), REGION, &ground.login);
    for (slow, class) in [(false, KekErrorClass::Misconfigured), (true, KekErrorClass::Unavailable)]
    {
        let broken = config(&client).credentials_provider(Broken(slow)).build();
        let kek = AwsKmsKek::builder(&ground.arn)
            .client(aws_sdk_kms::Client::from_conf(broken))
            .build()
            .await
            .unwrap();
        let error = kek.wrap(&context("alice"), &dek()).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
    }
    let none = aws_config::SdkConfig::builder().endpoint_url(ground.front.url()).build();
    let kek = AwsKmsKek::builder(&ground.arn).sdk_config(&none).build().await.unwrap();
    let error = kek.wrap(&context("alice"), &dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Misconfigured, "{error}");
    let wrong = Login { secret: "wrong".into(), ..ground.login.clone() };
    let kek = AwsKmsKek::builder(&ground.arn)
        .client(ground.front.client(REGION, &wrong))
        .build()
        .await
        .unwrap();
    let error = kek.wrap(&context("alice"), &dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Misconfigured, "{error}");
    assert_eq!(ground.front.calls().last().unwrap().error, Some("InvalidSignatureException"));
}

// --- lies

#[tokio::test]
async fn an_answer_about_another_key_or_of_another_length_is_not_believed() {
    const OTHER: &str = "arn:aws:kms:eu-west-1:111122223333:key/other";
    let ground = Ground::new();
    let kek = ground.kek().await;
    let wrapped = kek.wrap(&context("alice"), &dek()).await.unwrap();
    let answer = r#"{"Plaintext":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "CiphertextBlob":"AAAA","KeyId":"arn:aws:kms:eu-west-1:111122223333:key/other"}"#;
    assert!(answer.contains(OTHER));
    ground.front.fail(Fault::new(Effect::Raw(200, answer)));
    assert_eq!(
        kek.unwrap(&context("alice"), &wrapped).await.unwrap_err().class(),
        KekErrorClass::Invalid
    );
    assert_eq!(
        kek.wrap(&context("alice"), &dek()).await.unwrap_err().class(),
        KekErrorClass::Unavailable
    );
    assert_eq!(
        kek.generate(&context("alice")).await.unwrap_err().class(),
        KekErrorClass::Unavailable
    );
    assert_eq!(
        kek.rewrap(&context("alice"), &wrapped).await.unwrap_err().class(),
        KekErrorClass::Unavailable
    );
}

#[tokio::test]
async fn dropping_a_call_leaves_the_provider_usable() {
    let ground = Ground::new();
    let kek = ground.kek().await;
    ground.front.fail(Fault::new(Effect::Hang));
    for _ in 0..20 {
        let wait =
            tokio::time::timeout(Duration::from_millis(5), kek.generate(&context("alice"))).await;
        assert!(wait.is_err());
    }
    ground.front.recover();
    let start = Instant::now();
    kek.generate(&context("alice")).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(30));
}
