//! Everything but a clear allow is a denial.

use std::time::{Duration, Instant};

use waxseal::policy::{Action, Policy, PolicyOptions, Question};
use waxseal::{Caller, EncryptionContext, Envelope, ErrorKind, kek::local::LocalKek};
use waxseal_policy::{RegoPolicy, RegoSources};

use super::{HEAD, caller, encrypt, reasons, rego, sources};

#[test]
fn an_allow_is_for_whom_it_is_about() {
    let text = "allow if count(deny_reason) == 0\n\n\
                deny_reason contains \"not billing\" if not is_billing\n\n\
                deny_reason contains \"nobody\" if not input.caller\n\n\
                is_billing if input.caller.service == \"billing\"\n";
    let envelope = rego(&format!("{HEAD}{text}"));
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
    assert_eq!(reasons(encrypt(&envelope, &caller("reporting"))), ["not billing"]);
    let nobody = pollster::block_on(envelope.encrypt(
        &EncryptionContext::empty(),
        waxseal::Aad::empty(),
        b"x",
    ));
    assert_eq!(reasons(nobody), ["nobody", "not billing"]);
}

#[test]
fn what_is_not_true_is_a_denial() {
    for (rule, reason) in [
        ("allow if input.caller.service == \"nobody\"", "allow is undefined"),
        ("allow := 1 if input.operation", "allow is neither true nor false"),
        ("allow := \"true\" if input.operation", "allow is neither true nor false"),
        ("allow := null if input.operation", "allow is neither true nor false"),
        ("allow := [true] if input.operation", "allow is neither true nor false"),
        ("allow := {\"allow\": true} if input.operation", "allow is neither true nor false"),
        ("allow contains true if input.operation", "allow is neither true nor false"),
        (
            "allow if input.operation\n\ndeny_reason contains \"late\"",
            "the policy allows and gives reasons to deny",
        ),
        (
            "allow if input.operation\n\nvalid_for_seconds := \"5\"",
            "valid_for_seconds is not a number of seconds",
        ),
    ] {
        let envelope = rego(&format!("package waxseal\n\n{rule}\n"));
        let told = reasons(encrypt(&envelope, &caller("billing")));
        assert!(told.contains(&reason.to_owned()), "{rule}: {told:?}");
    }
    // The control.
    let envelope = rego("package waxseal\n\nallow if input.operation\n");
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
}

#[test]
fn an_error_is_a_denial_with_its_cause() {
    for rule in [
        // Of a builtin, which OPA leaves undefined unless it is asked to be strict.
        "allow if not late\n\nlate if time.parse_rfc3339_ns(input.caller.service) > 0",
        "allow if net.cidr_contains(\"10.0.0.0/8\", input.caller.service)",
        "allow if to_number(input.caller.service) > 0",
        // Two values of one rule.
        "allow := true if input.operation\n\nallow := false if input.caller.service",
    ] {
        let envelope = rego(&format!("package waxseal\n\n{rule}\n"));
        let error = encrypt(&envelope, &caller("no-number")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PolicyDenied, "{rule}: {error}");
        assert!(error.cause().is_some(), "{rule}: {error}");
    }
}

#[test]
fn a_decision_ends_in_time() {
    let text = "allow if {\n\tinput.operation\n\tsome a in numbers.range(1, 5000)\n\t\
                some b in numbers.range(1, 5000)\n\ta * b == -1\n}\n";
    let policy = RegoPolicy::builder(sources(&format!("{HEAD}{text}")))
        .time_limit(Duration::from_millis(20));
    let policy = policy.build().unwrap();
    let context = EncryptionContext::empty();
    let begin = Instant::now();
    let result = pollster::block_on(policy.decide(&Question::new(Action::Encrypt, &context)));
    // Not an outage, for which the last decision might serve.
    assert!(result.is_err_and(|error| !error.is_retryable()));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn what_cannot_be_used_does_not_load() {
    for (text, why) in [
        ("package waxseal\n\nallow {\n\ttrue\n}\n", "policy.rego"),
        ("package waxseal\n\nallow = true { input.a }\n", "policy.rego"),
        ("package waxseal\n\ndeny[x] { x := 1 }\n\nallow { not deny }\n", "policy.rego"),
        ("package waxseal\n\nallow if {\n", "policy.rego"),
        ("", "policy.rego"),
        (
            "package other\n\nallow := true\n",
            "no file has the package waxseal, which decides; they have other",
        ),
        ("package waxseal\n\nallowed := true\n", "no rule allow"),
        ("package waxseal\n\nallow if no_such_function(1)\n", "no_such_function"),
        ("package waxseal\n\nallow := true\n\nallow := false\n", "fails"),
        // What reaches out of the policy is not there.
        ("package waxseal\n\nallow if http.send({}).ok\n", "http.send"),
        ("package waxseal\n\nallow if opa.runtime().env.ALLOW\n", "opa.runtime"),
        ("package waxseal\n\nallow if net.lookup_ip_addr(\"localhost\")\n", "lookup_ip_addr"),
        ("package waxseal\n\nallow if io.jwt.decode(\"a.b.c\")\n", "io.jwt"),
    ] {
        let error = RegoPolicy::builder(sources(text)).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{text:?}");
        assert!(error.to_string().contains(why), "{text:?}: {error}");
    }
    let error = RegoPolicy::builder(RegoSources::new()).build().unwrap_err();
    assert!(error.to_string().contains("no source"), "{error}");
    for package in ["", "a.", "a b", "a[0]", "data.x; true", "1a"] {
        let built = RegoPolicy::builder(sources(HEAD)).package(package).build();
        assert!(
            built.unwrap_err().to_string().contains("not the name of a package"),
            "{package:?}"
        );
    }
    for data in ["", "[]", "{", "{\"a\": }"] {
        assert!(RegoPolicy::builder(sources(HEAD).data(data)).build().is_err(), "{data}");
    }
    // The engine would take the data, and no rule would be asked.
    let text = format!("{HEAD}deny_reason contains \"no\" if input.domain\n");
    for data in [r#"{"waxseal": {"allow": true}}"#, r#"{"waxseal": {"deny_reason": []}}"#] {
        let error = RegoPolicy::builder(sources(&text).data(data)).build().unwrap_err();
        assert!(error.to_string().contains("in the place of a rule"), "{data}: {error}");
    }
    assert!(
        RegoPolicy::builder(sources(HEAD).data(r#"{"waxseal": {"owners": {}}}"#)).build().is_ok()
    );
    let twice = sources(HEAD).data(r#"{"a": {"b": 1}}"#).data(r#"{"a": {"b": 2}}"#);
    assert!(RegoPolicy::builder(twice).build().unwrap_err().to_string().contains("\"b\""));
}

#[test]
fn the_package_with_dots_decides_and_no_other() {
    let sources = RegoSources::new()
        .rego("a.rego", "package acme.keys\n\nallow if input.caller.service == \"billing\"\n")
        .rego("b.rego", "package waxseal\n\ndefault allow := true\n");
    let policy = RegoPolicy::builder(sources).package("acme.keys").build().unwrap();
    let envelope = super::envelope(policy);
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
    assert_eq!(reasons(encrypt(&envelope, &caller("other"))), ["allow is undefined"]);
}

#[test]
fn nothing_of_one_question_is_left_for_the_next() {
    let envelope = rego(&format!("{HEAD}allow if input.caller.service == \"billing\"\n"));
    for _ in 0..3 {
        assert!(encrypt(&envelope, &caller("billing")).is_ok());
        assert!(encrypt(&envelope, &caller("other")).is_err());
    }
    // Without a cache of decisions before it.
    let text = format!("{HEAD}allow if input.caller.service == \"billing\"\n");
    let policy = RegoPolicy::builder(sources(&text)).build().unwrap();
    let options = PolicyOptions::default().cache_for(Duration::ZERO);
    let kek = LocalKek::in_memory("kek").unwrap();
    let envelope = Envelope::builder().wrap_with(kek).policy(policy, options).build().unwrap();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let envelope = &envelope;
            scope.spawn(move || {
                let is_billing = number % 2 == 0;
                let who = caller(if is_billing { "billing" } else { "other" });
                for _ in 0..50 {
                    assert_eq!(encrypt(envelope, &who).is_ok(), is_billing);
                }
            });
        }
    });
}

#[test]
fn texts_of_callers_are_data_and_never_policy() {
    let envelope = rego(&format!("{HEAD}allow if input.caller.service == \"billing\"\n"));
    for text in ["billing\"} true {\"", "data.waxseal", "billing\u{0}", "\u{202e}billing", "{}"] {
        if let Ok(caller) = Caller::builder().service(text).build() {
            assert!(encrypt(&envelope, &caller).is_err(), "{text:?}");
        }
    }
}
