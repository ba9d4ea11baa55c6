//! What stands between a service and Vault, and takes its time: slow logins, firewalls, proxies of
//! the environment, limits. Against a small server of the test's own.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, unused)]
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::context;
use waxseal::kek::KekProvider;
use waxseal::{Aad, CallPolicy, Envelope, WrappedDek};
use waxseal_testing::support;
use waxseal_vault_transit::{VaultAuth, VaultTransitKek, VaultTransitKekBuilder};

type Answer = (u16, String, Vec<(String, String)>);
type Handler = dyn Fn(&str, &str, &str, &[(String, String)]) -> Option<Answer> + Send + Sync;

#[derive(Default)]
struct Log {
    logins: AtomicUsize,
    made: AtomicUsize,
    revoked: AtomicUsize,
    paths: Mutex<Vec<(String, String)>>,
}

/// `first` may answer instead.
fn serve(on: &str, log: Arc<Log>, login_takes: Duration, first: Arc<Handler>) -> u16 {
    let listener = TcpListener::bind((on, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (log, first) = (log.clone(), first.clone());
            let stream = stream.unwrap();
            std::thread::spawn(move || one(stream, log, login_takes, first));
        }
    });
    port
}

fn one(stream: TcpStream, log: Arc<Log>, login_takes: Duration, first: Arc<Handler>) -> Option<()> {
    let mut read = BufReader::new(stream.try_clone().unwrap());
    let mut write = stream;
    loop {
        let mut line = String::new();
        if read.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let (mut headers, mut len) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            read.read_line(&mut line).ok()?;
            let line = line.trim();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("content-length") {
                len = value.trim().parse().ok()?
            }
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let mut body = vec![0; len];
        read.read_exact(&mut body).ok()?;
        let body = String::from_utf8(body).ok()?;
        log.paths.lock().unwrap().push((
            path.clone(),
            headers
                .iter()
                .find(|(n, _)| n == "x-vault-token")
                .map(|(_, v)| v.clone())
                .unwrap_or_default(),
        ));
        let (status, text, more) = match first(&method, &path, &body, &headers) {
            Some(answer) => answer,
            None => answer(&path, &body, &log, login_takes),
        };
        let more: String = more.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        write
            .write_all(
                format!(
                    "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{more}content-length: {}\r\n\r\n{text}",
                    text.len()
                )
                .as_bytes(),
            )
            .ok()?;
    }
}

fn answer(path: &str, body: &str, log: &Log, login_takes: Duration) -> Answer {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    let ok = |value: Value| (200, value.to_string(), vec![]);
    match path {
        "/v1/auth/approle/login" => {
            log.logins.fetch_add(1, SeqCst);
            std::thread::sleep(login_takes);
            let n = log.made.fetch_add(1, SeqCst);
            ok(json!({
                "auth": {"client_token": format!("hvs.token{n}"), "lease_duration": 3600, "renewable": true, "token_type": "service"},
            }))
        }
        "/v1/auth/token/revoke-self" => {
            log.revoked.fetch_add(1, SeqCst);
            (204, String::new(), vec![])
        }
        "/v1/auth/token/lookup-self" => ok(json!({"data": {"ttl": 3600, "renewable": true}})),
        "/v1/transit/keys/orders" => ok(json!({
            "data": {"type": "aes256-gcm96", "derived": true, "latest_version": 1, "min_decryption_version": 1},
        })),
        "/v1/transit/encrypt/orders" => ok(
            json!({"data": {"ciphertext": format!("vault:v1:{}", body["plaintext"].as_str().unwrap())}}),
        ),
        "/v1/transit/decrypt/orders" => ok(
            json!({"data": {"plaintext": body["ciphertext"].as_str().unwrap().trim_start_matches("vault:v1:")}}),
        ),
        _ => (404, json!({"errors": ["no handler for route"]}).to_string(), vec![]),
    }
}

fn kek(port: u16, auth: VaultAuth) -> VaultTransitKek {
    VaultTransitKek::builder("test", "orders")
        .address(format!("http://127.0.0.1:{port}"))
        .auth(auth)
        .build()
        .unwrap()
}

/// The rewrap after a rotation would leave what the version before wrapped.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_about_the_key_takes_back_no_rotation() {
    let (log, reads) = (Arc::new(Log::default()), AtomicUsize::new(0));
    let (answers, late) = std::sync::mpsc::channel();
    let late = Mutex::new(late);
    // The first one is asked before the rotation, and its answer comes after that to the second.
    let first = move |_: &str, path: &str, _: &str, _: &[(String, String)]| {
        let version = match path {
            "/v1/transit/keys/orders" if reads.fetch_add(1, SeqCst) == 0 => {
                late.lock().unwrap().recv().unwrap();
                1
            }
            "/v1/transit/keys/orders" => 2,
            _ => return None,
        };
        let key = json!({
            "type": "aes256-gcm96", "derived": true, "latest_version": version, "min_decryption_version": 1,
        });
        Some((200, json!({ "data": key }).to_string(), vec![]))
    };
    let port = serve("127.0.0.1", log.clone(), Duration::ZERO, Arc::new(first));
    let kek = kek(port, VaultAuth::token("hvs.token"));
    let asked = {
        let kek = kek.clone();
        tokio::spawn(async move { kek.read_key().await.map(|key| key.latest_version) })
    };
    while !log.paths.lock().unwrap().iter().any(|(path, _)| path == "/v1/transit/keys/orders") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(kek.read_key().await.unwrap().latest_version, 2);
    let old = format!("vault:v1:{}", "A".repeat(40));
    let old = WrappedDek::new(kek.id().clone(), old.as_bytes()).unwrap();
    assert_eq!(kek.is_current(&old), Some(false));
    answers.send(()).unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), 1, "it answers for itself");
    assert_eq!(kek.is_current(&old), Some(false));
}

/// A login takes longer than a try: 2.5 s with every default.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_slower_than_a_try_succeeds_and_leaves_no_token_behind() {
    let log = Arc::new(Log::default());
    let port =
        serve("127.0.0.1", log.clone(), Duration::from_millis(2500), Arc::new(|_, _, _, _| None));
    let kek = kek(port, VaultAuth::app_role("r").secret_id("s"));
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let start = Instant::now();
    let mut worked = None;
    for n in 0..6 {
        match envelope.encrypt(&context("alice"), Aad::empty(), b"x").await {
            Ok(_) => {
                worked = Some(start.elapsed());
                break;
            }
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    envelope.shut_down();
    drop((envelope, kek));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(worked.is_some(), "never logs in");
    assert_eq!(log.made.load(SeqCst), log.revoked.load(SeqCst), "tokens left behind");
}

/// A firewall in front refuses some bodies, which an author of messages can produce.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_a_firewall_refuses_open_no_breaker() {
    let log = Arc::new(Log::default());
    let waf: Arc<Handler> = Arc::new(|_, _, body, _| {
        body.contains("/etc/passwd").then(|| (403, "<html>Forbidden</html>".to_owned(), vec![]))
    });
    let port = serve("127.0.0.1", log.clone(), Duration::ZERO, waf);
    let kek = kek(port, VaultAuth::app_role("r").secret_id("s"));
    let writer = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let honest = writer.encrypt(&context("alice"), Aad::empty(), b"x").await.unwrap();
    let honest2 = writer.encrypt(&context("bob"), Aad::empty(), b"x").await.unwrap();
    envelope.decrypt(&context("bob"), Aad::empty(), &honest2).await.unwrap();
    for n in 0..12 {
        let mut forged = honest.clone();
        let at = forged.windows(9).position(|w| w == b"vault:v1:").unwrap() + 9;
        forged[at..at + 11].copy_from_slice(b"/etc/passwd");
        forged[at + 20] = b'a' + n;
        let error = envelope.decrypt(&context("alice"), Aad::empty(), &forged).await.unwrap_err();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    envelope.decrypt(&context("alice"), Aad::empty(), &honest).await.unwrap();
}

/// An agent on this machine, and a proxy in a dirty environment.
#[test]
fn a_proxy_of_the_environment_gets_nothing_that_is_for_this_machine() {
    let (log, proxy_log) = (Arc::new(Log::default()), Arc::new(Log::default()));
    let port = serve("127.0.0.1", log.clone(), Duration::ZERO, Arc::new(|_, _, _, _| None));
    let proxy = serve(
        "127.0.0.1",
        proxy_log.clone(),
        Duration::ZERO,
        Arc::new(|_, _, _, _| Some((502, String::new(), vec![]))),
    );
    if std::env::var_os("BAO_ADDR").is_none() {
        // The variables are set for its own process.
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "a_proxy_of_the_environment_gets_nothing_that_is_for_this_machine",
                "--nocapture",
            ])
            .env("BAO_ADDR", format!("http://127.0.0.1:{port}"))
            .env("HTTP_PROXY", format!("http://127.0.0.1:{proxy}"))
            .env("http_proxy", format!("http://127.0.0.1:{proxy}"))
            .env("BAO_TOKEN", "hvs.secret")
            .status()
            .unwrap();
        assert!(
            proxy_log.paths.lock().unwrap().is_empty(),
            "token and DEK in the clear at the proxy"
        );
        assert!(run.success());
        assert!(!log.paths.lock().unwrap().is_empty(), "the control: the agent was asked");
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let kek = VaultTransitKekBuilder::from_env("test", "orders").build().unwrap();
        let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
        envelope.encrypt(&context("alice"), Aad::empty(), b"x").await.unwrap();
    });
}

/// A forged message casts doubt on the key; while the key cannot be read, no other caller is
/// affected.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_message_makes_nobody_depend_on_reading_the_key() {
    let log = Arc::new(Log::default());
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = reads.clone();
    let first: Arc<Handler> = Arc::new(move |_, path, body, _| {
        if path.ends_with("/keys/orders") && counted.fetch_add(1, SeqCst) > 0 {
            return Some((
                429,
                json!({"errors": ["request path \"transit/keys\": rate limit quota exceeded"]})
                    .to_string(),
                vec![],
            ));
        }
        body.contains("AAAAAAAAAAAA").then(|| {
            (400, json!({"errors": ["cipher: message authentication failed"]}).to_string(), vec![])
        })
    });
    let port = serve("127.0.0.1", log.clone(), Duration::ZERO, first);
    let kek = kek(port, VaultAuth::app_role("r").secret_id("s"));
    let writer = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let honest = writer.encrypt(&context("alice"), Aad::empty(), b"x").await.unwrap();
    let reader = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut forged = honest.clone();
    let at = forged.windows(9).position(|w| w == b"vault:v1:").unwrap() + 9;
    forged[at..at + 12].copy_from_slice(b"AAAAAAAAAAAA");
    reader.decrypt(&context("alice"), Aad::empty(), &forged).await.unwrap_err();
    reader.decrypt(&context("alice"), Aad::empty(), &honest).await.unwrap();
    assert!(reads.load(SeqCst) > 1, "the doubt was looked into");
}

/// The envelope ends while a call is on its way that takes a while: is the token given back?
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_given_back_though_a_call_was_on_its_way() {
    let log = Arc::new(Log::default());
    let slow: Arc<Handler> = Arc::new(|_, path, _, _| {
        if path.contains("revoke-self") {
            std::thread::sleep(Duration::from_millis(0));
        }
        if path.contains("decrypt") {
            std::thread::sleep(Duration::from_millis(1500));
        }
        None
    });
    let port = serve("127.0.0.1", log.clone(), Duration::ZERO, slow);
    let kek = kek(port, VaultAuth::app_role("r").secret_id("s"));
    let writer = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let reader = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let honest = writer.encrypt(&context("alice"), Aad::empty(), b"x").await.unwrap();
    let reading = tokio::spawn({
        let (reader, honest) = (reader.clone(), honest.clone());
        async move { reader.decrypt(&context("alice"), Aad::empty(), &honest).await.map(|_| ()) }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    writer.shut_down();
    drop((writer, reader, kek));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(log.made.load(SeqCst), log.revoked.load(SeqCst));
}
