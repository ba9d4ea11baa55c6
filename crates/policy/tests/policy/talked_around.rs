//! Policies that could talk an engine round: each allows in this process only if the engine of OPA
//! allows as well. What does not load here allows nobody.

use serde_json::{Value, json};
use waxseal::policy::{Action, Policy, Question};
use waxseal::{Caller, EncryptionContext};
use waxseal_policy::RegoPolicy;
use waxseal_testing::opa::{Answer, Evaluator};

/// What the policy says here, of an administrator, a guest and nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Here {
    /// It does not load.
    Refused,
    /// Nobody is allowed.
    Denies,
    /// The administrator is, and nobody else.
    Admin,
    /// Everybody is. So it is for OPA.
    All,
}
use Here::{Admin, All, Denies, Refused};

/// Is true for the administrator alone.
const ADMIN: &str = "\"admin\" in input.caller.roles";

fn cases() -> Vec<(&'static str, String, Value, Here)> {
    let none = || json!({});
    let plain = |rules: &str| rules.to_owned();
    vec![
        // The controls.
        ("a clear allow", format!("allow if {ADMIN}"), none(), Admin),
        ("an allow for all", plain("allow := true"), none(), All),
        // What would reach out, or look in from elsewhere.
        ("print", format!("allow if {{ print(\"x\"); {ADMIN} }}"), none(), Admin),
        (
            "print of what is undefined",
            format!("allow if {{ print(input.none.at.all); {ADMIN} }}"),
            none(),
            Admin,
        ),
        (
            "http.send",
            plain(
                "allow if http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1:1\"}).status_code",
            ),
            none(),
            Refused,
        ),
        ("opa.runtime", plain("allow if opa.runtime().env"), none(), Denies),
        (
            "net.lookup_ip_addr",
            plain("allow if net.lookup_ip_addr(\"localhost\")"),
            none(),
            Refused,
        ),
        // `with` in the rule itself.
        (
            "with input",
            plain(
                "allow if is_admin with input as {\"caller\": {\"roles\": [\"admin\"]}}\n\nis_admin if \"admin\" in input.caller.roles",
            ),
            none(),
            All,
        ),
        (
            "with input, only within its expression",
            format!("allow if {{ input.x with input.x as true; {ADMIN} }}"),
            none(),
            Admin,
        ),
        (
            "with data",
            plain("allow if data.open with data.open as true"),
            json!({ "open": false }),
            All,
        ),
        (
            "with a rule of its own",
            format!("allow if is_admin with data.waxseal.is_admin as true\n\nis_admin if {ADMIN}"),
            none(),
            All,
        ),
        (
            "with a built-in function",
            plain("allow if startswith(\"a\", \"b\") with startswith as true"),
            none(),
            All,
        ),
        // Data in the place of rules.
        (
            "data for allow",
            format!("allow if {ADMIN}"),
            json!({ "waxseal": { "allow": true } }),
            Refused,
        ),
        ("data for the package", format!("allow if {ADMIN}"), json!({ "waxseal": true }), Refused),
        (
            "data for reasons",
            format!("allow := true\n\ndeny_reason contains \"x\" if not {ADMIN}"),
            json!({ "waxseal": { "deny_reason": [] } }),
            Refused,
        ),
        (
            "data beside the rules",
            plain("allow if data.waxseal.open"),
            json!({ "waxseal": { "open": true } }),
            All,
        ),
        (
            "data for the default",
            format!("default allow := false\n\nallow if {ADMIN}"),
            json!({ "waxseal": { "allow": true } }),
            Refused,
        ),
        // Partial rules.
        ("a partial set", plain("allow contains true"), none(), Denies),
        ("a partial set of texts", plain("allow contains \"yes\" if true"), none(), Denies),
        ("a partial object", plain("allow[\"all\"] := true"), none(), Denies),
        ("a rule below", plain("allow.all := true"), none(), Denies),
        ("a function", plain("allow(x) := true if x"), none(), Denies),
        (
            "reasons that are a function",
            format!("allow if {ADMIN}\n\ndeny_reason(x) := \"x\" if x"),
            none(),
            Admin,
        ),
        (
            "reasons below their name",
            plain("allow := true\n\ndeny_reason.x contains \"y\" if true"),
            none(),
            Denies,
        ),
        ("reasons that are null", plain("allow := true\n\ndeny_reason := null"), none(), Denies),
        ("reasons that are false", plain("allow := true\n\ndeny_reason := false"), none(), Denies),
        // Defaults.
        ("a default that is a look-up", plain("default allow := input.operation"), none(), Refused),
        (
            "a default that is a call",
            plain("default allow := startswith(\"a\", \"a\")"),
            none(),
            Refused,
        ),
        (
            "a default that is a comprehension",
            plain("default allow := [x | some x in [true]]"),
            none(),
            Denies,
        ),
        (
            "a default that is a text",
            format!("default allow := \"true\"\n\nallow if {ADMIN}"),
            none(),
            Admin,
        ),
        ("two defaults", plain("default allow := false\n\ndefault allow := true"), none(), Refused),
        (
            "a default for a partial set",
            plain(
                "allow := true\n\ndefault deny_reason := set()\n\ndeny_reason contains \"x\" if true",
            ),
            none(),
            Refused,
        ),
        // Chains of else.
        (
            "else of a denial",
            format!("allow := false if {{ not {ADMIN} }} else := true"),
            none(),
            Admin,
        ),
        (
            "else of what is undefined",
            plain("allow := false if input.none.at.all else := true"),
            none(),
            All,
        ),
        (
            "else that is an answer of another kind",
            format!("allow := true if {ADMIN} else := \"true\" if input.operation else := 1"),
            none(),
            Admin,
        ),
        (
            "else under a name that another rule has",
            format!(
                "allow := false if {{ not {ADMIN} }} else := true\n\nallow := true if input.operation"
            ),
            none(),
            Admin,
        ),
        // Rules that contradict each other.
        (
            "true and false",
            plain("allow := true if input.operation\n\nallow := false if input.operation"),
            none(),
            Denies,
        ),
        ("true and a text", plain("allow := true\n\nallow := \"yes\""), none(), Refused),
        (
            "a function with two values",
            plain("allow if f(1)\n\nf(x) := true if x == 1\n\nf(x) := false if x > 0"),
            none(),
            Refused,
        ),
        // Names of the language.
        (
            "a variable input",
            plain(
                "allow if { input := {\"caller\": {\"roles\": [\"admin\"]}}; \"admin\" in input.caller.roles }",
            ),
            none(),
            Refused,
        ),
        (
            "a variable data",
            plain("allow if { data := {\"open\": true}; data.open }"),
            json!({ "open": false }),
            Refused,
        ),
        (
            "some input",
            plain("allow if { some input in [{\"a\": true}]; input.a }"),
            none(),
            Refused,
        ),
        (
            "an argument input",
            plain("allow if f({\"a\": true})\n\nf(input) if input.a"),
            none(),
            Refused,
        ),
        ("a rule input", plain("input := {\"a\": true}\n\nallow if input.a"), none(), Refused),
        (
            "an import as input",
            plain("import data.other as input\n\nallow if input.a"),
            json!({ "other": { "a": true } }),
            Refused,
        ),
        (
            "a rule by the name of a built-in function",
            plain("allow if startswith(\"a\", \"b\")\n\nstartswith(_, _) := true"),
            none(),
            All,
        ),
        (
            "a variable by the name of a rule",
            format!("allow if {{ is_admin := true; is_admin }}\n\nis_admin if {ADMIN}"),
            none(),
            All,
        ),
        // Of nothing, everything is true.
        ("every of nothing", plain("allow if every role in [] { role == \"admin\" }"), none(), All),
        (
            "every of what is undefined",
            plain("allow if every role in input.none.at.all { role == \"admin\" }"),
            none(),
            Denies,
        ),
        (
            "every of a text",
            plain("allow if every c in input.operation { c == \"x\" }"),
            none(),
            Denies,
        ),
        ("not of what is undefined", plain("allow if not input.none.at.all"), none(), All),
        ("not not", format!("allow if not is_guest\n\nis_guest if not {ADMIN}"), none(), Admin),
        ("an error under not", plain("allow if not to_number(\"x\") == 1"), none(), Denies),
        (
            "an error in a comprehension",
            plain("allow if count([x | x := to_number(\"x\")]) == 0"),
            none(),
            Denies,
        ),
        (
            "an error beside a rule that allows",
            plain("allow := true\n\nother := to_number(\"x\")"),
            none(),
            Denies,
        ),
        ("a division by zero", plain("allow if not 1 / 0 == 1"), none(), Denies),
        // Values that look like others.
        ("null is no false", plain("allow if null"), none(), All),
        ("zero is no false", plain("allow if 0"), none(), All),
        ("1 is no true", plain("allow if 1 == true"), none(), Denies),
        ("a set is no array", plain("allow if {1} == [1]"), none(), Denies),
        ("1.0 is 1", plain("allow if 1.0 == 1"), none(), All),
        (
            "numbers that a float cannot tell apart",
            plain("allow if 9007199254740993 == 9007199254740992"),
            none(),
            Denies,
        ),
        (
            "numbers in data that a float cannot tell apart",
            plain("allow if data.a == data.b"),
            json!({ "a": 9_007_199_254_740_993_u64, "b": 9_007_199_254_740_992_u64 }),
            Denies,
        ),
        // The syntax of v0.
        ("a body without if", plain("allow { true }"), none(), Refused),
        ("a body without if, and a value", plain("allow = true { false }"), none(), Refused),
        (
            "a set in brackets",
            plain("allow := true\n\ndeny_reason[\"x\"] { true }"),
            none(),
            Refused,
        ),
        (
            "a set in brackets with if",
            plain("allow := true\n\ndeny_reason[\"x\"] if true"),
            none(),
            Denies,
        ),
        ("rego.v1", format!("import rego.v1\n\nallow if {ADMIN}"), none(), Admin),
        ("rego.v0", plain("import rego.v0\n\nallow { true }"), none(), Refused),
        // Of another package.
        (
            "a rule in a package below",
            format!("allow if {ADMIN}\n\nwaxseal.allow := true"),
            none(),
            Admin,
        ),
        ("recursion", plain("allow if not deny\n\ndeny if not allow"), none(), Refused),
        (
            "a comment that ends a rule",
            format!("allow if {{ # true }}\n\t{ADMIN}\n}}"),
            none(),
            Admin,
        ),
        (
            "a line that a carriage return begins",
            format!("allow if {{ # x\r\n\t{ADMIN}\r\n}}\r\n"),
            none(),
            Admin,
        ),
        ("a zero byte", plain("allow if true\0"), none(), Refused),
    ]
}

fn allowed(answer: &Answer) -> bool {
    let Answer::Value(rules) = answer else { return false };
    let reasons = rules.get("deny_reason").is_none_or(|reasons| reasons == &json!([]));
    rules.get("allow") == Some(&json!(true)) && reasons
}

#[test]
fn a_policy_that_talks_an_engine_round_allows_no_more_than_opa_does() {
    let context = EncryptionContext::new([("tenant", "acme")]).unwrap();
    let [admin, guest] =
        ["admin", "guest"].map(|role| Caller::builder().role(role).build().unwrap());
    let question = || Question::new(Action::Decrypt, &context);
    let questions = [question().caller(&admin), question().caller(&guest), question()];
    let inputs: Vec<_> = questions.iter().map(|one| serde_json::to_value(one).unwrap()).collect();
    let (mut engine, mut wrong) = (Evaluator::start(), Vec::new());
    for (name, rules, data, expected) in cases() {
        let text = format!("package waxseal\n\n{rules}\n");
        let sources = super::sources(&text).data(data.to_string());
        let policy = RegoPolicy::builder(sources).watch(None).build();
        let ours = questions.each_ref().map(|question| match &policy {
            Ok(policy) => {
                pollster::block_on(policy.decide(question)).is_ok_and(|it| it.is_allowed())
            }
            Err(_) => false,
        });
        let here = match (&policy, ours) {
            (Err(_), _) => Refused,
            (_, [false, false, false]) => Denies,
            (_, [true, false, false]) => Admin,
            (_, [true, true, true]) => All,
            _ => panic!("{name}: {ours:?}"),
        };
        let texts = [("policy.rego".to_owned(), text)];
        let answers = engine.evaluate(&texts, &data, "waxseal", &inputs);
        let theirs: Vec<_> = answers.iter().map(allowed).collect();
        let is_laxer = ours.iter().zip(&theirs).any(|(ours, theirs)| *ours && !theirs);
        if is_laxer || here != expected {
            let refused = policy.err().map(|error| error.to_string());
            wrong.push(format!(
                "{name}: {here:?}, expected {expected:?}; ours {ours:?}, theirs {theirs:?}\n  \
                 {refused:?}\n  {:?}",
                answers[0]
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of them\n\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Nesting that a parser would follow until the stack ends, in policies and in data.
#[test]
fn nesting_and_chains_without_end_are_refused_and_end_no_process() {
    let deep = |open: &str, middle: &str, close: &str| {
        format!("{}{middle}{}", open.repeat(100_000), close.repeat(100_000))
    };
    for rules in [
        format!("allow if {}", deep("(", "true", ")")),
        format!("allow if {} == 1", deep("[", "", "]")),
        format!("allow if {} == 1", deep("{\"a\": ", "1", "}")),
        format!("allow if {}", deep("count(", "[]", ")")),
        format!("allow if {}", deep("[x | x := ", "1", "]")),
        format!("allow if {} == 1", "-".repeat(100_000) + "1"),
        format!("allow if {}", "not ".repeat(100_000) + "true"),
        format!("allow if input{}", "[0]".repeat(100_000)),
        format!("allow if input{}", ".a".repeat(100_000)),
        format!("allow if 0 {} == 0", "+\n1 ".repeat(100_000)),
        format!("allow if {{1}} {} == 0", "|\n{1} ".repeat(100_000)),
        format!("allow := 0 if false {}", "\nelse := 1 if false".repeat(100_000)),
    ] {
        let text = format!("package waxseal\n\n{rules}\n");
        let shown = text[..60].to_owned();
        let built = std::thread::spawn(move || {
            RegoPolicy::builder(super::sources(&text)).watch(None).build().map(drop)
        });
        assert!(built.join().unwrap().is_err(), "{shown}");
    }
    for data in [deep("{\"a\": ", "1", "}"), deep("[", "", "]")] {
        let sources = super::sources("package waxseal\n\nallow := true\n").data(data);
        assert!(RegoPolicy::builder(sources).watch(None).build().is_err());
    }
}
