//! The engine of OPA behind its REST interface: over TCP, TLS and a unix socket, whole and broken.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use waxseal::kek::local::LocalKek;
use waxseal::policy::{Action, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, Caller, Envelope, Error, ErrorKind};
use waxseal_policy::{OpaPolicy, OpaPolicyBuilder, RegoPolicy, RegoSources};
use waxseal_testing::certificates::{Authority, Certificate};
use waxseal_testing::fault_proxy::{Fault, FaultProxy};
use waxseal_testing::opa::Opa;

use super::oracle::{Asked, Random};
use super::server::{Answer, Server, http};
use super::{context, reasons};

const ALLOW: &str = r#"{"result": {"allow": true}}"#;
const TOKEN: &str = "s3cr3t-t0k3n-4711";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies").join(name)
}

/// In a runtime, which the client needs. A busy machine is no outage.
fn built(runtime: &Runtime, builder: OpaPolicyBuilder) -> OpaPolicy {
    let _inside = runtime.enter();
    builder.timeout(Duration::from_secs(20)).build().unwrap()
}

fn over_tcp(runtime: &Runtime, port: u16) -> OpaPolicy {
    built(runtime, OpaPolicy::url(format!("http://127.0.0.1:{port}")))
}

fn of_tenant(tenant: &str) -> Caller {
    Caller::builder().service("billing").attribute("tenant", tenant).build().unwrap()
}

/// Whether a caller of acme may encrypt for it, which the tenants policy allows.
fn ask(policy: &OpaPolicy) -> Result<Decision, Error> {
    let (context, caller) = (context("acme"), of_tenant("acme"));
    pollster::block_on(policy.decide(&Question::new(Action::Encrypt, &context).caller(&caller)))
}

fn assert_allows(policy: &OpaPolicy) {
    let decision = ask(policy).unwrap();
    assert!(decision.is_allowed(), "{decision:?}");
}

fn sorted(decision: &Decision) -> Vec<String> {
    let mut reasons: Vec<_> = decision.reasons().iter().map(ToString::to_string).collect();
    reasons.sort();
    reasons
}

#[test]
fn the_example_policies_decide_there_as_they_do_in_this_process() {
    let (runtime, mut random) = (Runtime::new().unwrap(), Random(7));
    for name in ["break-glass", "financial-report", "maintenance-window", "tenants"] {
        let opa = Opa::serve(&example(name), &json!({}));
        let there = over_tcp(&runtime, opa.port());
        let here = RegoPolicy::builder(RegoSources::new().directory(example(name)));
        let here = here.watch(None).time_limit(Duration::from_secs(10)).build().unwrap();
        for _ in 0..60 {
            let asked = Asked::new(&mut random);
            let question = asked.question();
            let decide = |policy: &dyn Policy| pollster::block_on(policy.decide(&question));
            match (decide(&here), decide(&there)) {
                (Ok(here), Ok(there)) => {
                    assert_eq!(here.is_allowed(), there.is_allowed(), "{name}: {question:?}");
                    assert_eq!(sorted(&here), sorted(&there), "{name}: {question:?}");
                    let same = there.with_revision(here.revision().unwrap());
                    assert!(!here.is_allowed() || here == same, "{name}: {here:?} {same:?}");
                }
                (Err(here), Err(there)) => {
                    assert!(!here.is_retryable() && !there.is_retryable(), "{here} {there}");
                }
                (here, there) => panic!("{name}: {question:?}\n{here:?}\n{there:?}"),
            }
        }
    }
}

/// The files of a server with this certificate, and of a client.
struct Tls {
    directory: TempDir,
}

impl Tls {
    fn new(shown: Certificate) -> Self {
        let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("authority.pem", authority.pem());
        for (name, shown) in [("server", shown), ("client", Certificate::Right)] {
            let (certificate, key) = authority.issue(shown);
            write(&format!("{name}.pem"), &certificate.pem());
            write(&format!("{name}.key"), &key.serialize_pem());
        }
        Self { directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn serve(&self, mut more: Value) -> Opa {
        more["certificate"] = self.file("server.pem").to_str().unwrap().into();
        more["key"] = self.file("server.key").to_str().unwrap().into();
        Opa::serve(&example("tenants"), &more)
    }

    fn client(&self, port: u16) -> OpaPolicyBuilder {
        OpaPolicy::url(format!("https://localhost:{port}"))
            .certificate_authority(self.file("authority.pem"))
    }
}

#[test]
fn over_tls_tenants_are_kept_apart_from_end_to_end() {
    let (runtime, tls) = (Runtime::new().unwrap(), Tls::new(Certificate::Right));
    let opa = tls.serve(json!({ "token": TOKEN }));
    let policy = built(&runtime, tls.client(opa.port()).token(TOKEN));
    let kek = LocalKek::in_memory("kek").unwrap();
    let options = PolicyOptions::default().timeout(Duration::from_secs(30));
    let envelope = Envelope::builder().wrap_with(kek).policy(policy, options).build().unwrap();
    let (acme, globex, none) = (of_tenant("acme"), of_tenant("globex"), Aad::empty());
    pollster::block_on(async {
        let sealed =
            envelope.acting_for(&acme).encrypt(&context("acme"), none, b"42").await.unwrap();
        let open = envelope.acting_for(&acme).decrypt(&context("acme"), none, &sealed).await;
        assert_eq!(&*open.unwrap(), b"42");
        let other = envelope.acting_for(&globex).decrypt(&context("acme"), none, &sealed).await;
        assert_eq!(reasons(other), ["the caller belongs to another tenant"]);
        let nobody = envelope.decrypt(&context("acme"), none, &sealed).await;
        assert!(reasons(nobody).contains(&"no caller is named".to_owned()));
    });
    // Another token is a matter for an operator.
    let other = built(&runtime, tls.client(opa.port()).token("another"));
    assert_eq!(ask(&other).unwrap_err().kind(), ErrorKind::Misconfigured);
}

#[test]
fn a_wrong_certificate_is_a_denial_and_no_outage() {
    let runtime = Runtime::new().unwrap();
    for shown in [Certificate::OtherName, Certificate::OtherAuthority, Certificate::Expired] {
        let tls = Tls::new(shown);
        let opa = tls.serve(json!({}));
        let policy = built(&runtime, tls.client(opa.port()));
        let error = ask(&policy).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misconfigured, "{shown:?}: {error}");
        let text = format!("{error}{:?}", error.cause().map(ToString::to_string));
        assert!(text.contains("certificate"), "{shown:?}: {text}");
        // Even if an outage would let the last known decision serve.
        let options = PolicyOptions::default().last_known_for(Duration::from_secs(60));
        let kek = LocalKek::in_memory("kek").unwrap();
        let envelope = Envelope::builder().wrap_with(kek).policy(policy, options).build().unwrap();
        let (acme, context) = (of_tenant("acme"), context("acme"));
        let result = envelope.acting_for(&acme).encrypt(&context, Aad::empty(), b"x");
        reasons(pollster::block_on(result));
    }
    // The system's authorities do not know the right one either.
    let tls = Tls::new(Certificate::Right);
    let opa = tls.serve(json!({}));
    let url = format!("https://localhost:{}", opa.port());
    let error = ask(&built(&runtime, OpaPolicy::url(url))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
    // By its address instead of its name.
    let url = format!("https://127.0.0.1:{}", opa.port());
    let by_address = OpaPolicy::url(url).certificate_authority(tls.file("authority.pem"));
    assert!(ask(&built(&runtime, by_address)).is_err());
    // The control.
    assert_allows(&built(&runtime, tls.client(opa.port())));
}

#[test]
fn tls_and_plain_http_do_not_mix() {
    let (runtime, tls) = (Runtime::new().unwrap(), Tls::new(Certificate::Right));
    let (plain, secure) = (Opa::serve(&example("tenants"), &json!({})), tls.serve(json!({})));
    assert!(ask(&built(&runtime, tls.client(plain.port()))).is_err());
    assert!(ask(&over_tcp(&runtime, secure.port())).is_err());
    assert_allows(&over_tcp(&runtime, plain.port()));
}

#[test]
fn a_server_that_wants_a_certificate_gets_one() {
    let (runtime, tls) = (Runtime::new().unwrap(), Tls::new(Certificate::Right));
    let authority = tls.file("authority.pem");
    let opa = tls.serve(json!({ "client_authority": authority.to_str().unwrap() }));
    let client = || tls.client(opa.port());
    let with = client().client_certificate(tls.file("client.pem"), tls.file("client.key"));
    assert_allows(&built(&runtime, with));
    assert!(ask(&built(&runtime, client())).is_err());
    let other = Tls::new(Certificate::Right);
    let with = client().client_certificate(other.file("client.pem"), other.file("client.key"));
    assert!(ask(&built(&runtime, with)).is_err());
}

#[test]
fn over_a_unix_socket() {
    let (runtime, directory) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let path = directory.path().join("opa.sock");
    let options = json!({ "unix_socket": path.to_str().unwrap(), "token": TOKEN });
    let opa = Opa::serve(&example("tenants"), &options);
    let policy = built(&runtime, OpaPolicy::unix_socket(&path).token(TOKEN));
    assert_allows(&policy);
    let without = built(&runtime, OpaPolicy::unix_socket(&path));
    assert_eq!(ask(&without).unwrap_err().kind(), ErrorKind::Misconfigured);
    drop(opa);
    assert_eq!(ask(&policy).unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn what_breaks_on_the_way_is_an_outage_and_passes() {
    let runtime = Runtime::new().unwrap();
    let opa = Opa::serve(&example("tenants"), &json!({}));
    let proxy = FaultProxy::start(opa.port());
    let url = format!("http://127.0.0.1:{}", proxy.port());
    let policy = built(&runtime, OpaPolicy::url(&url));
    assert_allows(&policy);
    let mut faults =
        vec![Fault::Reset, Fault::HalfClose, Fault::Replace(b"HTTP/1.1 200 OK\r\n".to_vec())];
    // In the head, at its end, and in every byte of the body's end.
    faults.extend((0..60).step_by(7).chain(100..330).map(Fault::Truncate));
    let mut whole = 0;
    for fault in faults {
        proxy.set(fault.clone());
        match ask(&policy) {
            // It was cut after the end.
            Ok(decision) => {
                assert!(
                    decision.is_allowed() && matches!(fault, Fault::Truncate(100..)),
                    "{fault:?}"
                );
                whole += 1;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{fault:?}: {error}"),
        }
        proxy.set(Fault::None);
        proxy.cut();
        assert_allows(&policy);
    }
    // Both occurred: answers that were cut, and answers that were cut after their end.
    assert!((1..200).contains(&whole), "{whole}");
    let (slow, impatient) = (Duration::from_millis(30), {
        let _inside = runtime.enter();
        OpaPolicy::url(&url).timeout(Duration::from_millis(300)).build().unwrap()
    });
    for fault in [Fault::Silence, Fault::Trickle(slow), Fault::Delay(Duration::from_secs(2))] {
        proxy.set(fault.clone());
        let error = ask(&impatient).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{fault:?}: {error}");
        proxy.set(Fault::None);
        proxy.cut();
        assert_allows(&policy);
    }
}

#[test]
fn a_server_that_ends_is_an_outage_for_which_the_last_decision_may_serve() {
    let runtime = Runtime::new().unwrap();
    let opa = Opa::serve(&example("tenants"), &json!({}));
    let policy = over_tcp(&runtime, opa.port());
    let options = PolicyOptions::default()
        .cache_for(Duration::from_millis(1))
        .last_known_for(Duration::from_secs(3600))
        .timeout(Duration::from_secs(30));
    let kek = LocalKek::in_memory("kek").unwrap();
    let envelope = Envelope::builder().wrap_with(kek).policy(policy, options).build().unwrap();
    let encrypt = |tenant: &str| {
        let caller = of_tenant(tenant);
        let acme = context("acme");
        pollster::block_on(envelope.acting_for(&caller).encrypt(&acme, Aad::empty(), b"x"))
    };
    encrypt("acme").unwrap();
    assert_eq!(reasons(encrypt("globex")), ["the caller belongs to another tenant"]);
    drop(opa);
    std::thread::sleep(Duration::from_millis(20));
    encrypt("acme").unwrap();
    assert_eq!(reasons(encrypt("globex")), ["the caller belongs to another tenant"]);
    assert_eq!(reasons(encrypt("other")), ["the policy gave no decision (unavailable)"]);
}

#[test]
fn another_policy_on_the_server_counts_after_forgetting() {
    let runtime = Runtime::new().unwrap();
    let opa = Opa::serve(&example("tenants"), &json!({}));
    let policy = over_tcp(&runtime, opa.port());
    let options = PolicyOptions::default().timeout(Duration::from_secs(30));
    let kek = LocalKek::in_memory("kek").unwrap();
    let envelope =
        Envelope::builder().wrap_with(kek).policy(policy.clone(), options).build().unwrap();
    let acme = of_tenant("acme");
    let encrypt = || {
        let context = context("acme");
        pollster::block_on(envelope.acting_for(&acme).encrypt(&context, Aad::empty(), b"x"))
    };
    encrypt().unwrap();
    let closed = "package waxseal\n\ndeny_reason contains \"closed\" if input.operation\n";
    opa.put_policy("closed.rego", closed);
    encrypt().unwrap();
    policy.forget();
    assert_eq!(reasons(encrypt()), ["closed"]);
}

#[test]
fn a_redirection_is_followed_nowhere() {
    let runtime = Runtime::new().unwrap();
    let (elsewhere, address) = Server::tcp(ALLOW);
    let (server, here) = Server::tcp(ALLOW);
    let policy = built(&runtime, OpaPolicy::url(format!("http://{here}")).token(TOKEN));
    for status in [301, 302, 303, 307, 308] {
        let head = format!(
            "HTTP/1.1 {status} X\r\nlocation: http://{address}/v1/data/waxseal\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{ALLOW}",
            ALLOW.len()
        );
        server.answer(Answer::Raw(head.into_bytes()));
        let error = ask(&policy).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misconfigured, "{status}: {error}");
    }
    assert_eq!(elsewhere.requests(), Vec::<String>::new());
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn an_answer_in_chunks_is_read_and_half_of_one_is_none() {
    let runtime = Runtime::new().unwrap();
    let (server, address) = Server::tcp(ALLOW);
    let policy = built(&runtime, OpaPolicy::url(format!("http://{address}")));
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let (first, second) = ALLOW.split_at(10);
    let chunks = format!("{head}a\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", second.len());
    server.answer(Answer::Raw(chunks.clone().into_bytes()));
    assert_allows(&policy);
    for end in [head.len() + 3, chunks.len() - 5, chunks.len() - 7] {
        server.answer(Answer::Raw(chunks.as_bytes()[..end].to_vec()));
        let error = ask(&policy).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{end}: {error}");
    }
    // A length that is more, and one that is less, than what comes.
    let whole = String::from_utf8(http(200, ALLOW)).unwrap();
    let length = format!("content-length: {}", ALLOW.len());
    for (said, kind) in [(ALLOW.len() + 1, ErrorKind::Unavailable), (10, ErrorKind::Provider)] {
        let lie = whole.replace(&length, &format!("content-length: {said}"));
        server.answer(Answer::Raw(lie.into_bytes()));
        let error = ask(&policy).unwrap_err();
        assert!(error.kind() == kind || error.kind() == ErrorKind::Invalid, "{said}: {error:?}");
    }
}
