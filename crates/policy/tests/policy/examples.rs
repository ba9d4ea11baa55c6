//! The policies in `policies/`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use waxseal::policy::{Action, Decision, Policy, Question};
use waxseal::{Aad, Caller, EncryptionContext, Error, KekId};
use waxseal_policy::{RegoPolicy, RegoSources, lint, run_tests};

use super::{context, envelope, reasons};

const EXAMPLES: [(&str, usize); 4] =
    [("break-glass", 9), ("financial-report", 13), ("maintenance-window", 5), ("tenants", 6)];

fn example(name: &str) -> RegoSources {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("policies");
    RegoSources::new().directory(root.join(name))
}

#[test]
fn their_own_tests_pass() {
    for (name, count) in EXAMPLES {
        let results = run_tests(&example(name), "waxseal").unwrap();
        for result in &results {
            assert!(result.passed, "{name}: {result:?}");
        }
        assert_eq!(results.len(), count, "{name}");
    }
}

#[test]
fn the_linter_has_nothing_to_say_of_them() {
    for (name, _) in EXAMPLES {
        assert_eq!(lint(&example(name), "waxseal").unwrap(), [], "{name}");
    }
}

#[test]
fn a_test_that_is_false_undefined_or_fails_has_not_passed() {
    let tests = "package waxseal_test\n\nimport data.waxseal\n\n\
                 test_false := false\n\ntest_not_true := 1\n\n\
                 test_undefined if waxseal.allow with input as {\"a\": 1}\n\n\
                 test_error if time.parse_rfc3339_ns(\"noon\") > 0\n\n\
                 test_true if not waxseal.allow\n";
    let sources = RegoSources::new()
        .rego("policy.rego", "package waxseal\n\ndefault allow := false\n")
        .rego("policy_test.rego", tests);
    let results = run_tests(&sources, "waxseal").unwrap();
    let passed: Vec<_> =
        results.iter().filter(|result| result.passed).map(|result| &*result.name).collect();
    assert_eq!(passed, ["waxseal_test.test_true"], "{results:?}");
    assert_eq!(results.len(), 5);
    let failed = results.iter().find(|result| result.name.ends_with("test_error")).unwrap();
    assert!(failed.error.is_some());
}

#[test]
fn tenants_are_kept_apart_also_where_the_dek_is_cached() {
    let policy = RegoPolicy::builder(example("tenants")).build().unwrap();
    let envelope = envelope(policy);
    let of = |service: &str, tenant: &str| {
        Caller::builder().service(service).attribute("tenant", tenant).build().unwrap()
    };
    pollster::block_on(async {
        let (acme, globex) = (of("billing", "acme"), of("billing", "globex"));
        let none = Aad::empty();
        let sealed =
            envelope.acting_for(&acme).encrypt(&context("acme"), none, b"42").await.unwrap();
        let open = envelope.acting_for(&acme).decrypt(&context("acme"), none, &sealed).await;
        assert_eq!(&*open.unwrap(), b"42");

        let other = envelope.acting_for(&globex).decrypt(&context("acme"), none, &sealed).await;
        assert_eq!(reasons(other), ["the caller belongs to another tenant"]);
        let nobody = envelope.decrypt(&context("acme"), none, &sealed).await;
        assert!(reasons(nobody).contains(&"no caller is named".to_owned()));
        let rewrap = envelope.acting_for(&acme).rewrap(&context("acme"), &sealed).await;
        assert_eq!(reasons(rewrap), ["only a rewrapper rewraps"]);
    });
}

fn report(at: u64, address: [u8; 4], role: &str) -> Result<Decision, Error> {
    let policy = RegoPolicy::builder(example("financial-report")).build().unwrap();
    let key = "arn:aws:kms:eu-west-1:111122223333:key/financial-reports";
    let keys = [KekId::new(key).unwrap()];
    let context = EncryptionContext::new([("classification", "financial-report")]).unwrap();
    let caller =
        Caller::builder().service("reporting").role(role).source_address(address).build().unwrap();
    let question = Question::new(Action::Decrypt, &context)
        .caller(&caller)
        .kek_ids(&keys)
        .time(SystemTime::UNIX_EPOCH + Duration::from_secs(at));
    pollster::block_on(policy.decide(&question))
}

/// 2026-11-27T09:00:00Z, a Friday.
const FRIDAY: u64 = 1_795_770_000;

#[test]
fn a_financial_report_is_read_as_the_library_asks() {
    let allowed = report(FRIDAY, [10, 1, 2, 3], "finance-analyst").unwrap();
    assert!(allowed.is_allowed(), "{allowed:?}");
    // Until 18:00 in Berlin.
    assert_eq!(allowed, {
        let plain = Decision::allow().valid_for(Duration::from_secs(8 * 3600));
        plain.with_revision(allowed.revision().unwrap())
    });
    let saturday = report(FRIDAY + 24 * 3600, [10, 1, 2, 3], "finance-analyst").unwrap();
    assert_eq!(&*saturday.reasons()[0], "it is outside of business hours");
    let outside = report(FRIDAY, [192, 0, 2, 1], "finance-analyst").unwrap();
    assert_eq!(&*outside.reasons()[0], "the request comes from outside of the company's network");
    let intern = report(FRIDAY, [10, 1, 2, 3], "intern").unwrap();
    assert_eq!(&*intern.reasons()[0], "the caller has no role that reads financial reports");
    assert_eq!(intern.reasons().len(), 1);
}

#[test]
fn a_time_that_cannot_be_written_is_denied() {
    // It has no RFC 3339 form, and a policy that computes with it ends in an error.
    let denied = report(1 << 50, [10, 1, 2, 3], "finance-analyst");
    assert!(denied.is_err_and(|error| !error.is_retryable()));
}
