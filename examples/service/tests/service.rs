//! Starts the service, drives it over HTTP, ends it, and looks at what it left behind.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use waxseal::audit::{CheckpointKey, CheckpointVerifier, Verifier};
use waxseal_policy::{RegoSources, lint, run_tests};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const CARD: &str = "4111 1111 1111 1111";
const CUSTOMER: &str = "Alice, 1 Harbour Street";

/// The service in a directory, with its files there.
struct Running {
    process: Child,
    address: String,
}

struct Answer {
    status: u16,
    body: String,
}

/// What an authenticating proxy adds.
const SHOP: &str = "x-service: shop\r\nx-tenant: acme\r\nx-request-id: r-17\r\n";
const BILLING: &str = "x-service: billing\r\nx-tenant: acme\r\nx-roles: clerk, billing\r\n";
const GLOBEX: &str = "x-service: shop\r\nx-tenant: globex\r\n";

impl Running {
    fn start(directory: &Path) -> Self {
        let log =
            fs::File::options().append(true).create(true).open(directory.join("log")).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_waxseal-service"))
            .current_dir(directory)
            .env("LISTEN", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").map(ToOwned::to_owned);
        let log = || fs::read_to_string(directory.join("log")).unwrap();
        Self { address: address.unwrap_or_else(|| panic!("{line}\n{}", log())), process }
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}");
        write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, body: body.to_owned() }
    }

    fn get(&self, path: &str, headers: &str) -> Answer {
        self.send("GET", path, headers, "")
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// As an orchestrator does it.
    fn end(mut self) {
        self.signal("-TERM");
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (Path::new(HERE), directory.path());
    fs::create_dir(to.join("policy")).unwrap();
    for file in ["domains.toml", "policy/policy.rego"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    directory
}

/// Until it is so, for half a minute.
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn denied(answer: &Answer, reason: &str) {
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((answer.status, &body["error"]), (403, &Value::from("policy-denied")), "{body}");
    assert_eq!(body["reasons"], Value::from([reason].as_slice()));
}

/// The records of the trail, which has to verify to its end.
fn verified(directory: &Path) -> Vec<Value> {
    let seed = fs::read(directory.join("data/audit-signing.key")).unwrap().try_into().unwrap();
    let public = CheckpointKey::ed25519(&seed).public_key().unwrap();
    let trail = directory.join("data/audit");
    let verifier = Verifier::new().key(CheckpointVerifier::ed25519(&public).unwrap());
    let verified = verifier.verify(&trail).unwrap();
    assert!(verified.fault.is_none() && verified.is_closed, "{verified:?}");
    let text = fs::read_to_string(trail.join("trail-00000001.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn rows_are_written_and_read_refused_and_audited() {
    let directory = directory();
    let service = Running::start(directory.path());
    assert_eq!(service.send("PUT", "/tenants/acme/customers/1", SHOP, CUSTOMER).status, 204);
    assert_eq!(service.send("PUT", "/tenants/acme/cards/1", SHOP, CARD).status, 204);
    for _ in 0..2 {
        assert_eq!(service.get("/tenants/acme/customers/1", SHOP).body, CUSTOMER);
        assert_eq!(service.get("/tenants/acme/cards/1", BILLING).body, CARD);
    }

    // The DEKs are cached, and serve nobody but whom the policy allows.
    denied(&service.get("/tenants/acme/cards/1", SHOP), "only billing reads cards");
    let other_tenant = "the caller belongs to another tenant";
    denied(&service.get("/tenants/acme/customers/1", GLOBEX), other_tenant);
    denied(&service.send("PUT", "/tenants/acme/cards/1", GLOBEX, "mine"), other_tenant);
    assert_eq!(service.get("/tenants/acme/customers/1", "").status, 401);
    assert_eq!(service.get("/tenants/acme/customers/2", SHOP).status, 404);
    assert_eq!(service.get("/tenants/acme/salaries/1", SHOP).status, 404);
    assert_eq!(service.send("PUT", "/tenants/%01/cards/1", SHOP, "x").status, 400);

    wait_for("metrics", || {
        let text = service.get("/metrics", "").body;
        [
            "waxseal_lookups_total{envelope=\"payments\",purpose=\"writing\",outcome=\"waited\"} 1",
            "waxseal_deks_made_total",
            "waxseal_policy_denied_total{operation=\"decrypt\"} 2",
            "waxseal_policy_seconds_bucket{operation=\"encrypt\",outcome=\"allowed\",le=\"0.1\"}",
            "waxseal_branch_keys{envelope=\"customers-branches\",age=",
            "waxseal_audit_dropped_total{trail=\"audit\"} 0",
            "waxseal_audit_written_total{trail=\"audit\"}",
        ]
        .iter()
        .all(|part| text.contains(part))
    });
    let health = service.get("/health", "");
    assert_eq!((health.status, &*health.body), (200, "{\"troubles\":[]}"));
    service.end();

    let records = verified(directory.path());
    let of = |activity: &str, domain: &str| {
        let is_it = |record: &&Value| {
            record["activity_name"] == activity && record["waxseal.domain"] == domain
        };
        records.iter().filter(is_it).collect::<Vec<_>>()
    };
    let refused = of("policy_denied", "payments");
    assert_eq!(refused.len(), 2);
    assert_eq!(refused[0]["actor.app_name"], "shop");
    assert_eq!(refused[0]["waxseal.caller.request_id"], "r-17");
    assert!(refused[0]["waxseal.context"]["tenant"]["hmac"].is_string());
    assert_eq!(of("policy_denied", "customers")[0]["waxseal.context"]["tenant"], "acme");
    // Every use of a card, even if the decision was cached.
    let by_billing = of("policy_allowed", "payments");
    let by_billing = by_billing.iter().filter(|record| record["actor.app_name"] == "billing");
    assert_eq!(by_billing.count(), 2);
    assert!(!of("dek_used", "payments").is_empty() && of("dek_used", "customers").is_empty());

    // Nothing that was stored or logged has a row in the clear. The control: the tenant is there.
    let mut found = 0;
    let mut files = vec![directory.path().to_owned()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!has(CARD) && !has(CUSTOMER), "{}", path.display());
        found += usize::from(has("acme"));
    }
    assert!(found >= 2, "{found}");
}

#[test]
fn rows_outlive_a_restart_and_a_reload_changes_the_rules() {
    let directory = directory();
    let service = Running::start(directory.path());
    assert_eq!(service.send("PUT", "/tenants/acme/customers/1", SHOP, CUSTOMER).status, 204);
    service.end();
    let service = Running::start(directory.path());
    assert_eq!(service.get("/tenants/acme/customers/1", SHOP).body, CUSTOMER);

    // A bad file changes nothing and is counted. A good one is in force at once.
    let file = directory.path().join("domains.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("may_have = []", "may_hav = []")).unwrap();
    service.signal("-HUP");
    wait_for("the reload is counted", || {
        let text = service.get("/metrics", "").body;
        text.contains("waxseal_domain_reloads_total{outcome=\"invalid-option\"} 1")
    });
    assert_eq!(service.get("/tenants/acme/customers/1", SHOP).body, CUSTOMER);
    let more = good.replace("must_have = [\"tenant\"]", "must_have = [\"tenant\", \"region\"]");
    fs::write(&file, more.replace("may_have = []", "")).unwrap();
    service.signal("-HUP");
    wait_for("the reload", || service.get("/tenants/acme/customers/1", SHOP).status == 400);
    service.end();

    // A service that cannot use its configuration does not start.
    fs::write(&file, good.replace("rego:policy", "rego:no-such-policy")).unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_waxseal-service"))
        .current_dir(directory.path())
        .env("LISTEN", "127.0.0.1:0")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("domains.customers.policy"), "{text}");
    assert!(verified(directory.path()).len() > 10);
}

#[test]
fn the_policy_passes_its_tests_and_the_linter() {
    let sources = || RegoSources::new().directory(Path::new(HERE).join("policy"));
    let results = run_tests(&sources(), "waxseal").unwrap();
    assert!(results.len() >= 5 && results.iter().all(|result| result.passed), "{results:?}");
    let findings = lint(&sources(), "waxseal").unwrap();
    assert!(findings.is_empty(), "{findings:?}");
}
