//! Policies as URIs, in a configuration of data domains.

use std::fs;

use waxseal::domain::{DomainConfig, Domains, Schemes};
use waxseal::policy::PolicyOptions;
use waxseal::{Aad, Error, ErrorKind};
use waxseal_policy::{OpaPolicy, RegoPolicy};

use super::server::Server;
use super::{HEAD, caller, reasons};

const BY_DOMAIN: &str = "package rules\n\ndefault allow := false\n\n\
    allow if input.domain in data.open\n\n\
    deny_reason contains sprintf(\"%s is closed\", [input.domain]) if not input.domain in data.open\n";

fn rego(uri: impl Into<String>) -> Result<RegoPolicy, Error> {
    pollster::block_on(RegoPolicy::from_uri(uri.into()))
}

#[test]
fn domains_that_name_one_rego_policy_are_told_apart_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rules.rego"), BY_DOMAIN).unwrap();
    fs::write(folder.path().join("data.json"), r#"{"open": ["orders"]}"#).unwrap();
    let policy = format!("rego:{}?package=rules&watch=0s", folder.path().display());
    let domains = pollster::block_on(async {
        let kek = |name: &str| format!("local:{}/{name}.kek?name={name}", folder.path().display());
        let config = |name| DomainConfig::default().wrap_with(kek(name)).policy(&policy);
        let schemes = Schemes::default().policy("rego", RegoPolicy::from_uri);
        let builder = Domains::builder().schemes(schemes).domain("orders", config("orders"));
        let one_for_all = PolicyOptions::default().require_caller();
        builder.domain("payroll", config("payroll").decisions(one_for_all)).build().await.unwrap()
    });
    let encrypt = |domain: &str| {
        let domain = domains.domain(domain).unwrap();
        let context = domain.context([("tenant", "acme")]).unwrap();
        let billing = caller("billing");
        let view = domain.envelope().acting_for(&billing);
        pollster::block_on(view.encrypt(&context, Aad::empty(), b"x"))
    };
    encrypt("orders").unwrap();
    assert_eq!(reasons(encrypt("payroll")), ["payroll is closed"]);
}

#[test]
fn a_uri_names_a_file_a_directory_or_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let allow = format!("{HEAD}allow if data.open\n");
    let (file, data) = (folder.path().join("a b.rego"), folder.path().join("open.json"));
    fs::write(&file, allow).unwrap();
    fs::write(&data, r#"{"open": true}"#).unwrap();
    let at = |path: &str| format!("rego:{}/{path}", folder.path().display());
    let envelope =
        super::envelope(rego(at("a%20b.rego?data=") + &data.display().to_string()).unwrap());
    super::encrypt(&envelope, &caller("billing")).unwrap();
    let envelope = super::envelope(rego(at("a%20b.rego?watch=1m&time-limit=1s")).unwrap());
    assert!(reasons(super::encrypt(&envelope, &caller("billing"))).is_empty());
    for (uri, wrong) in [
        ("rego:".to_owned(), "the path is missing"),
        ("opa:/x".to_owned(), "does not begin with `rego:`"),
        (at("a%20b.rego?pakage=x"), "`pakage` is unknown; did you mean `package`?"),
        (at("a%20b.rego?watch=5"), "parameter `watch` is not a duration"),
        (at("a%20b.rego?watch=1ms"), "watch: 10ms or more"),
        (at("a%20b.rego?time-limit=1h"), "time_limit: above 0 to 10s"),
        (at("no-such.tar.gz"), "no-such.tar.gz"),
        (at("no-such"), "no-such"),
    ] {
        let error = rego(uri).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
        assert!(error.to_string().contains(wrong), "{error}");
    }
}

#[test]
fn a_uri_names_an_opa_server_and_never_its_token() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (server, address) = Server::tcp(r#"{"result": {"allow": true}}"#);
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "s3cr3t-t0k3n-4711\n").unwrap();
    let opa = |uri: String| runtime.block_on(OpaPolicy::from_uri(uri));
    let uri = format!("opa:http://{address}?package=orders.rules&token-file={}", token.display());
    let envelope = super::envelope(opa(uri + "&timeout=5s&max-in-flight=2").unwrap());
    super::encrypt(&envelope, &caller("billing")).unwrap();
    let request = &server.requests()[0];
    assert!(request.starts_with("POST /v1/data/orders/rules?"), "{request}");
    assert!(request.contains("authorization: Bearer s3cr3t-t0k3n-4711\r\n"), "{request}");
    opa("opa:/run/opa.sock".to_owned()).unwrap();
    for (uri, wrong) in [
        ("opa:", "the server is missing"),
        ("opa:ftp://x", "http://HOST or https://HOST"),
        ("opa:https://x?token=s3cr3t", "name a file with `token-file`"),
        ("opa:https://x?token-file=/no/such", "`token-file` cannot be read"),
        ("opa:https://x?client-certificate=/x", "go together"),
        ("opa:https://x?max-in-flight=many", "`max-in-flight` is not a number"),
        ("opa:https://x?max-in-flight=0", "max_in_flight: 1 to 4096"),
        ("opa:https://x?timeout=0s", "timeout: 1ms to 60s"),
        ("opa:https://x?ca-file=/no/such", "/no/such cannot be read"),
    ] {
        let error = opa(uri.to_owned()).unwrap_err();
        assert!(error.to_string().contains(wrong), "{uri}: {error}");
        assert!(!format!("{error:?}").contains("s3cr3t"), "{error:?}");
    }
}
