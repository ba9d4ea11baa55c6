//! A policy on a server that answers well, badly, late and not at all.

use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use waxseal::policy::{Action, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, EncryptionContext, Envelope, Error, ErrorKind, kek::local::LocalKek};
use waxseal_policy::{OpaPolicy, OpaPolicyBuilder};

use super::server::{Answer, Server, http};
use super::{caller, context, encrypt, envelope, reasons};

const ALLOW: &str = r#"{"result": {"allow": true}}"#;
const TOKEN: &str = "s3cr3t-t0k3n-4711";

/// In a runtime, which the client needs.
fn built(runtime: &Runtime, builder: OpaPolicyBuilder) -> OpaPolicy {
    let _inside = runtime.enter();
    builder.build().unwrap()
}

fn ground() -> (Runtime, Server, OpaPolicy) {
    let runtime = Runtime::new().unwrap();
    let (server, address) = Server::tcp(ALLOW);
    let builder = OpaPolicy::url(format!("http://{address}")).token(TOKEN);
    let policy = built(&runtime, builder.timeout(Duration::from_millis(500)));
    (runtime, server, policy)
}

fn ask(policy: &OpaPolicy) -> Result<Decision, Error> {
    let (context, billing) = (context("acme"), caller("billing"));
    pollster::block_on(policy.decide(&Question::new(Action::Encrypt, &context).caller(&billing)))
}

#[test]
fn an_allow_is_an_allow_and_the_question_is_the_input() {
    let (_runtime, server, policy) = ground();
    let envelope = envelope(policy);
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
    // The decision is cached.
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /v1/data/waxseal?strict-builtin-errors=true"), "{head}");
    assert!(head.contains(&format!("authorization: Bearer {TOKEN}")), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["input"]["operation"], "encrypt");
    assert_eq!(body["input"]["caller"]["service"], "billing");
    assert_eq!(body["input"]["context"]["tenant"], "acme");
    assert!(body["input"]["time"].is_string());

    let error = encrypt(&envelope, &caller("other"));
    assert!(error.is_ok(), "the server allows everyone");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_denial_has_the_reasons_and_the_revision() {
    let (_runtime, server, policy) = ground();
    let body = r#"{"result": {"allow": false, "deny_reason": ["late", "far"]},
                   "provenance": {"bundles": {"a": {"revision": "r7"}}}}"#;
    server.answer(Answer::Http(200, body.to_owned()));
    assert_eq!(ask(&policy).unwrap(), Decision::deny(["late", "far"]).with_revision("r7"));
    assert_eq!(reasons(encrypt(&envelope(policy), &caller("billing"))), ["late", "far"]);
}

#[test]
fn what_is_not_a_clear_allow_is_a_denial() {
    let (_runtime, server, policy) = ground();
    for body in [
        "{}",
        r#"{"result": null}"#,
        r#"{"result": true}"#,
        r#"{"result": {}}"#,
        r#"{"result": []}"#,
        r#"{"result": {"allow": "true"}}"#,
        r#"{"result": {"allow": 1}}"#,
        r#"{"result": {"allow": true, "deny_reason": ["late"]}}"#,
        r#"{"allow": true}"#,
        r#"{"result": {"result": {"allow": true}}}"#,
    ] {
        server.answer(Answer::Http(200, body.to_owned()));
        assert!(!ask(&policy).unwrap().is_allowed(), "{body}");
    }
    // No decision, and no outage either: the last decision does not serve.
    for answer in [
        Answer::Http(200, String::new()),
        Answer::Http(200, "[]".to_owned()),
        Answer::Http(200, "true".to_owned()),
        Answer::Http(200, "<html>".to_owned()),
        Answer::Http(200, ALLOW[..ALLOW.len() - 1].to_owned()),
        Answer::Http(200, format!("{ALLOW}{ALLOW}")),
        Answer::Http(200, format!("{ALLOW}{}", " ".repeat(300_000))),
        Answer::Http(201, ALLOW.to_owned()),
        Answer::Http(302, ALLOW.to_owned()),
        Answer::Http(400, ALLOW.to_owned()),
        Answer::Http(401, ALLOW.to_owned()),
        Answer::Http(403, ALLOW.to_owned()),
        Answer::Http(404, ALLOW.to_owned()),
        Answer::Http(500, r#"{"code": "internal_error", "result": {"allow": true}}"#.to_owned()),
    ] {
        let (status, body) = match &answer {
            Answer::Http(status, body) => (*status, body.chars().take(40).collect::<String>()),
            _ => unreachable!(),
        };
        server.answer(answer);
        let error = ask(&policy).unwrap_err();
        let is_outage = [ErrorKind::Unavailable, ErrorKind::Throttled].contains(&error.kind());
        assert!(!is_outage, "{status} {body}: {error}");
    }
    server.answer(Answer::Http(200, ALLOW.to_owned()));
    assert!(ask(&policy).unwrap().is_allowed());
}

#[test]
fn an_outage_is_told_as_one() {
    let (_runtime, server, policy) = ground();
    let half = http(200, ALLOW);
    for (answer, kind) in [
        (Answer::Http(500, ALLOW.to_owned()), ErrorKind::Unavailable),
        (Answer::Http(502, String::new()), ErrorKind::Unavailable),
        (Answer::Http(503, "{}".to_owned()), ErrorKind::Unavailable),
        (Answer::Http(429, ALLOW.to_owned()), ErrorKind::Throttled),
        (Answer::Raw(half[..half.len() - 1].to_vec()), ErrorKind::Unavailable),
        (Answer::Raw(half[..20].to_vec()), ErrorKind::Unavailable),
        (Answer::Raw(Vec::new()), ErrorKind::Unavailable),
        (Answer::Raw(vec![0xff; 4096]), ErrorKind::Unavailable),
    ] {
        server.answer(answer);
        let error = ask(&policy).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    // A connection that ends before the answer is made again, once.
    server.answer(Answer::Raw(Vec::new()));
    let before = server.requests().len();
    assert!(ask(&policy).is_err());
    assert_eq!(server.requests().len(), before + 2);
    server.answer(Answer::Hang);
    let begin = Instant::now();
    let error = ask(&policy).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(begin.elapsed() >= Duration::from_millis(450), "{:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(
        reasons(encrypt(&envelope(policy), &caller("billing"))),
        ["the policy gave no decision (unavailable)"]
    );
}

#[test]
fn nobody_listens() {
    let runtime = Runtime::new().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let policy = built(&runtime, OpaPolicy::url(format!("http://{address}")).token(TOKEN));
    let error = ask(&policy).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("cannot be asked"), "{error}");
    let no_socket = built(&runtime, OpaPolicy::unix_socket("/nowhere/opa.sock"));
    assert_eq!(ask(&no_socket).unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn in_an_outage_the_last_decision_serves_where_that_was_chosen() {
    for (last_known_for, serves) in [(0, false), (3600, true)] {
        let (_runtime, server, policy) = ground();
        let options = PolicyOptions::default()
            .cache_for(Duration::from_millis(1))
            .last_known_for(Duration::from_secs(last_known_for));
        let kek = LocalKek::in_memory("kek").unwrap();
        let envelope = Envelope::builder().wrap_with(kek).policy(policy, options).build().unwrap();
        assert!(encrypt(&envelope, &caller("billing")).is_ok());
        std::thread::sleep(Duration::from_millis(20));
        server.answer(Answer::Http(503, String::new()));
        assert_eq!(encrypt(&envelope, &caller("billing")).is_ok(), serves);
        assert!(encrypt(&envelope, &caller("unknown")).is_err());
    }
}

#[test]
fn forgetting_drops_decisions() {
    let (_runtime, server, policy) = ground();
    let envelope = envelope(policy.clone());
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
    server.answer(Answer::Http(200, r#"{"result": {"allow": false}}"#.to_owned()));
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
    policy.forget();
    assert!(encrypt(&envelope, &caller("billing")).is_err());
}

#[test]
fn a_unix_socket() {
    let runtime = Runtime::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("opa.sock");
    let server = Server::unix(&path, ALLOW);
    let policy = built(&runtime, OpaPolicy::unix_socket(&path).package("acme.keys").token(TOKEN));
    assert!(ask(&policy).unwrap().is_allowed());
    assert!(server.requests()[0].starts_with("POST /v1/data/acme/keys?"));
    server.answer(Answer::Http(200, "{}".to_owned()));
    assert!(!ask(&policy).unwrap().is_allowed());
}

#[test]
fn the_token_is_shown_nowhere() {
    let (runtime, server, policy) = ground();
    let mut shown = vec![format!("{policy:?}")];
    shown.push(format!("{:?}", OpaPolicy::url("http://127.0.0.1").token(TOKEN)));
    // A server that answers with what it was sent.
    for answer in [
        Answer::Http(500, TOKEN.to_owned()),
        Answer::Http(401, TOKEN.to_owned()),
        Answer::Http(200, TOKEN.to_owned()),
        Answer::Http(302, TOKEN.to_owned()),
        Answer::Raw(TOKEN.as_bytes().to_vec()),
        Answer::Hang,
    ] {
        server.answer(answer);
        let error = ask(&policy).unwrap_err();
        shown.push(format!("{error} {error:?} {:?}", error.cause()));
        let mut source = std::error::Error::source(&error);
        while let Some(next) = source {
            shown.push(format!("{next} {next:?}"));
            source = next.source();
        }
    }
    let _inside = runtime.enter();
    for bad in ["s3cr3t-t0k3n-4711\n", "s3cr3t-t0k3n-4711 x", "s3cr3t-t0k3n-4711\u{e9}"] {
        shown.push(format!(
            "{:?}",
            OpaPolicy::url("http://127.0.0.1").token(bad).build().unwrap_err()
        ));
    }
    let url = format!("http://user:{TOKEN}@127.0.0.1");
    shown.push(format!("{:?}", OpaPolicy::url(url).build().unwrap_err()));
    for text in &shown {
        assert!(!text.contains(TOKEN), "{text}");
    }
    // The control: it was sent.
    assert!(server.requests().iter().all(|request| request.contains(TOKEN)));
}

#[test]
fn no_more_questions_at_once_than_allowed() {
    let runtime = Runtime::new().unwrap();
    let (server, address) = Server::tcp(ALLOW);
    server.answer(Answer::Late(Duration::from_millis(50), ALLOW.to_owned()));
    let builder = OpaPolicy::url(format!("http://{address}")).max_in_flight(2);
    let policy = built(&runtime, builder.timeout(Duration::from_secs(20)));
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| assert!(ask(&policy).unwrap().is_allowed()));
        }
    });
    assert_eq!(server.requests().len(), 12);
    assert_eq!(server.most_at_once(), 2);

    // Waiting for a turn is part of the time.
    server.answer(Answer::Hang);
    let builder = OpaPolicy::url(format!("http://{address}")).max_in_flight(1);
    let policy = built(&runtime, builder.timeout(Duration::from_millis(100)));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(ask(&policy).is_err()));
        }
    });
    assert!(begin.elapsed() < Duration::from_millis(600), "{:?}", begin.elapsed());
}

#[test]
fn options_out_of_range_are_refused() {
    let runtime = Runtime::new().unwrap();
    let good = || OpaPolicy::url("http://127.0.0.1:8181/prefix/");
    assert!(good().build().is_err(), "outside of a runtime");
    let _inside = runtime.enter();
    let policy = good().build().unwrap();
    assert!(format!("{policy:?}").contains("/prefix/v1/data/waxseal?"), "{policy:?}");
    for url in ["", "127.0.0.1", "ftp://a", "file:///a", "http://a?b", "http://a#b", "http://a:b@c"]
    {
        assert!(OpaPolicy::url(url).build().is_err(), "{url}");
    }
    for package in ["", "a..b", "a/b", "../config", "a?b"] {
        assert!(good().package(package).build().is_err(), "{package}");
    }
    assert!(good().timeout(Duration::ZERO).build().is_err());
    assert!(good().timeout(Duration::from_secs(61)).build().is_err());
    assert!(good().max_in_flight(0).build().is_err());
    assert!(good().max_in_flight(4097).build().is_err());
    assert!(good().token("").build().is_err());
    assert!(good().certificate_authority("/nowhere.pem").build().is_err());
    assert!(good().client_certificate("/nowhere.pem", "/nowhere.key").build().is_err());
}

/// It is called from any runtime, or from none, and may be abandoned at any time.
#[test]
fn a_question_that_is_given_up_leaves_its_turn() {
    let runtime = Runtime::new().unwrap();
    let (server, address) = Server::tcp(ALLOW);
    server.answer(Answer::Hang);
    let builder = OpaPolicy::url(format!("http://{address}")).max_in_flight(1);
    let policy = built(&runtime, builder.timeout(Duration::from_millis(200)));
    let empty = EncryptionContext::empty();
    {
        let question = Question::new(Action::Decrypt, &empty);
        let mut given_up = policy.decide(&question);
        let waker = std::task::Waker::noop();
        let polled = given_up.as_mut().poll(&mut std::task::Context::from_waker(waker));
        assert!(polled.is_pending());
    }
    std::thread::sleep(Duration::from_millis(400));
    server.answer(Answer::Http(200, ALLOW.to_owned()));
    assert!(ask(&policy).unwrap().is_allowed());
}

#[test]
fn an_envelope_without_a_caller_asks_so() {
    let (_runtime, server, policy) = ground();
    let envelope = envelope(policy);
    pollster::block_on(envelope.encrypt(&context("acme"), Aad::empty(), b"x")).unwrap();
    let requests = server.requests();
    let (_, body) = requests[0].split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert!(body["input"].get("caller").is_none(), "{body}");
}
