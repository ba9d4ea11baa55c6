//! Policies that could talk an engine round: each allows in this process only if the engine of OPA
//! allows as well. What does not load here allows nobody.

use serde_json::{Value, json};
use waxseal::policy::{Action, Policy, Question};
use waxseal::{Caller, EncryptionContext};
use waxseal_policy::RegoPolicy;
use waxseal_testing::opa::{Answer, Evaluator};

/// Is true for the administrator alone.
const ADMIN: &str = "\"admin\" in input.caller.roles";

fn cases() -> Vec<(&'static str, String, Value)> {
    let none = || json!({});
    let plain = |rules: &str| rules.to_owned();
    vec![
        // The controls.
        ("a clear allow", format!("allow if {ADMIN}"), none()),
        ("an allow for all", plain("allow := true"), none()),
        // What would reach out, or look in from elsewhere.
        ("print", format!("allow if {{ print(\"x\"); {ADMIN} }}"), none()),
        (
            "print of what is undefined",
            format!("allow if {{ print(input.none.at.all); {ADMIN} }}"),
            none(),
        ),
        (
            "http.send",
            plain(
                "allow if http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1:1\"}).status_code",
            ),
            none(),
        ),
        ("opa.runtime", plain("allow if opa.runtime().env"), none()),
        ("net.lookup_ip_addr", plain("allow if net.lookup_ip_addr(\"localhost\")"), none()),
        // `with` in the rule itself.
        (
            "with input",
            plain(
                "allow if is_admin with input as {\"caller\": {\"roles\": \
                    [\"admin\"]}}\n\nis_admin if \"admin\" in input.caller.roles",
            ),
            none(),
        ),
        (
            "with input, only within its expression",
            format!("allow if {{ input.x with input.x as true; {ADMIN} }}"),
            none(),
        ),
        ("with data", plain("allow if data.open with data.open as true"), json!({ "open": false })),
        (
            "with a rule of its own",
            format!("allow if is_admin with data.waxseal.is_admin as true\n\nis_admin if {ADMIN}"),
            none(),
        ),
        (
            "with a built-in function",
            plain("allow if startswith(\"a\", \"b\") with startswith as true"),
            none(),
        ),
        // Data in the place of rules.
        ("data for allow", format!("allow if {ADMIN}"), json!({ "waxseal": { "allow": true } })),
        ("data for the package", format!("allow if {ADMIN}"), json!({ "waxseal": true })),
        (
            "data for reasons",
            format!("allow := true\n\ndeny_reason contains \"x\" if not {ADMIN}"),
            json!({ "waxseal": { "deny_reason": [] } }),
        ),
        (
            "data beside the rules",
            plain("allow if data.waxseal.open"),
            json!({ "waxseal": { "open": true } }),
        ),
        (
            "data for the default",
            format!("default allow := false\n\nallow if {ADMIN}"),
            json!({ "waxseal": { "allow": true } }),
        ),
        // Partial rules.
        ("a partial set", plain("allow contains true"), none()),
        ("a partial set of texts", plain("allow contains \"yes\" if true"), none()),
        ("a partial object", plain("allow[\"all\"] := true"), none()),
        ("a rule below", plain("allow.all := true"), none()),
        ("a function", plain("allow(x) := true if x"), none()),
        (
            "reasons that are a function",
            format!("allow if {ADMIN}\n\ndeny_reason(x) := \"x\" if x"),
            none(),
        ),
        (
            "reasons below their name",
            plain("allow := true\n\ndeny_reason.x contains \"y\" if true"),
            none(),
        ),
        ("reasons that are null", plain("allow := true\n\ndeny_reason := null"), none()),
        ("reasons that are false", plain("allow := true\n\ndeny_reason := false"), none()),
        // Defaults.
        ("a default that is a look-up", plain("default allow := input.operation"), none()),
        ("a default that is a call", plain("default allow := startswith(\"a\", \"a\")"), none()),
        (
            "a default that is a comprehension",
            plain("default allow := [x | some x in [true]]"),
            none(),
        ),
        (
            "a default that is a text",
            format!("default allow := \"true\"\n\nallow if {ADMIN}"),
            none(),
        ),
        ("two defaults", plain("default allow := false\n\ndefault allow := true"), none()),
        (
            "a default for a partial set",
            plain(
                "allow := true\n\ndefault deny_reason := set()\n\ndeny_reason contains \"x\" if true",
            ),
            none(),
        ),
        // Chains of else.
        ("else of a denial", format!("allow := false if {{ not {ADMIN} }} else := true"), none()),
        (
            "else of what is undefined",
            plain("allow := false if input.none.at.all else := true"),
            none(),
        ),
        (
            "else that is an answer of another kind",
            format!("allow := true if {ADMIN} else := \"true\" if input.operation else := 1"),
            none(),
        ),
        (
            "else under a name that another rule has",
            format!(
                "allow := false if {{ not {ADMIN} }} else := true\n\nallow := true if input.operation"
            ),
            none(),
        ),
        // Rules that contradict each other.
        (
            "true and false",
            plain("allow := true if input.operation\n\nallow := false if input.operation"),
            none(),
        ),
        ("true and a text", plain("allow := true\n\nallow := \"yes\""), none()),
        (
            "a function with two values",
            plain("allow if f(1)\n\nf(x) := true if x == 1\n\nf(x) := false if x > 0"),
            none(),
        ),
        // Names of the language.
        (
            "a variable input",
            plain(
                "allow if { input := {\"caller\": {\"roles\": [\"admin\"]}}; \"admin\" in input.caller.roles }",
            ),
            none(),
        ),
        (
            "a variable data",
            plain("allow if { data := {\"open\": true}; data.open }"),
            json!({ "open": false }),
        ),
        ("some input", plain("allow if { some input in [{\"a\": true}]; input.a }"), none()),
        ("a rule input", plain("input := {\"a\": true}\n\nallow if input.a"), none()),
        (
            "an import as input",
            plain("import data.other as input\n\nallow if input.a"),
            json!({ "other": { "a": true } }),
        ),
        (
            "a rule by the name of a built-in function",
            plain("allow if startswith(\"a\", \"b\")\n\nstartswith(_, _) := true"),
            none(),
        ),
        (
            "a variable by the name of a rule",
            format!("allow if {{ is_admin := true; is_admin }}\n\nis_admin if {ADMIN}"),
            none(),
        ),
        // Of nothing, everything is true.
        ("every of nothing", plain("allow if every role in [] { role == \"admin\" }"), none()),
        (
            "every of what is undefined",
            plain("allow if every role in input.none.at.all { role == \"admin\" }"),
            none(),
        ),
        ("every of a text", plain("allow if every c in input.operation { c == \"x\" }"), none()),
        ("not of what is undefined", plain("allow if not input.none.at.all"), none()),
        ("not not", format!("allow if not is_guest\n\nis_guest if not {ADMIN}"), none()),
        ("an error under not", plain("allow if not to_number(\"x\") == 1"), none()),
        (
            "an error in a comprehension",
            plain("allow if count([x | x := to_number(\"x\")]) == 0"),
            none(),
        ),
        (
            "an error beside a rule that allows",
            plain("allow := true\n\nother := to_number(\"x\")"),
            none(),
        ),
        ("a division by zero", plain("allow if not 1 / 0 == 1"), none()),
        // Values that look like others.
        ("null is no false", plain("allow if null"), none()),
        ("zero is no false", plain("allow if 0"), none()),
        ("1 is no true", plain("allow if 1 == true"), none()),
        ("a set is no array", plain("allow if {1} == [1]"), none()),
        ("1.0 is 1", plain("allow if 1.0 == 1"), none()),
        (
            "numbers that a float cannot tell apart",
            plain("allow if 9007199254740993 == 9007199254740992"),
            none(),
        ),
        (
            "numbers in data that a float cannot tell apart",
            plain("allow if data.a == data.b"),
            json!({ "a": 9_007_199_254_740_993_u64, "b": 9_007_199_254_740_992_u64 }),
        ),
        // The syntax of v0.
        ("a body without if", plain("allow { true }"), none()),
        ("a body without if, and a value", plain("allow = true { false }"), none()),
        ("a set in brackets", plain("allow := true\n\ndeny_reason[\"x\"] { true }"), none()),
        ("a set in brackets with if", plain("allow := true\n\ndeny_reason[\"x\"] if true"), none()),
        ("rego.v1", format!("import rego.v1\n\nallow if {ADMIN}"), none()),
        ("rego.v0", plain("import rego.v0\n\nallow { true }"), none()),
        // Of another package.
        ("a rule in a package below", format!("allow if {ADMIN}\n\nwaxseal.allow := true"), none()),
        ("recursion", plain("allow if not deny\n\ndeny if not allow"), none()),
        ("a comment that ends a rule", format!("allow if {{ # true }}\n\t{ADMIN}\n}}"), none()),
        (
            "a line that a carriage return begins",
            format!("allow if {{ # x\r\n\t{ADMIN}\r\n}}\r\n"),
            none(),
        ),
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
    let (mut engine, mut laxer) = (Evaluator::start(), Vec::new());
    // How many of them load, and how many allow somebody.
    let (mut loaded, mut allowing) = (0, 0);
    for (name, rules, data) in cases() {
        let text = format!("package waxseal\n\n{rules}\n");
        let sources = super::sources(&text).data(data.to_string());
        let policy = RegoPolicy::builder(sources).watch(None).build();
        let ours = questions.each_ref().map(|question| match &policy {
            Ok(policy) => {
                pollster::block_on(policy.decide(question)).is_ok_and(|it| it.is_allowed())
            }
            Err(_) => false,
        });
        let texts = [("policy.rego".to_owned(), text)];
        let answers = engine.evaluate(&texts, &data, "waxseal", &inputs);
        let theirs: Vec<_> = answers.iter().map(allowed).collect();
        println!("{name:<55} {ours:?} {theirs:?} {:?}", policy.as_ref().err());
        loaded += usize::from(policy.is_ok());
        allowing += usize::from(ours.contains(&true));
        if ours.iter().zip(&theirs).any(|(ours, theirs)| *ours && !theirs) {
            laxer.push(format!("{name}: {ours:?}, and OPA {theirs:?}: {:?}", answers[0]));
        }
    }
    assert!(laxer.is_empty(), "{} of them\n\n{}", laxer.len(), laxer.join("\n\n"));
    // The comparison is about something: policies that load, some of which allow.
    assert!(loaded >= 30 && allowing >= 15, "{loaded} load, {allowing} allow");
}

/// OPA's engine takes no text with one.
#[test]
fn a_zero_byte_in_a_policy_is_refused() {
    for text in ["package waxseal\n\nallow := true\0", "package waxseal\n\nallow := true # \0\n"] {
        let built = RegoPolicy::builder(super::sources(text)).watch(None).build();
        assert!(built.unwrap_err().to_string().contains("zero byte"));
    }
}

/// The page of the crate lists it. Such a function sees its argument in the place of the input, and
/// it is the author of the policy who says so.
#[test]
fn an_argument_by_the_name_input_is_taken_here_and_not_by_opa() {
    let text = "package waxseal\n\nallow if f({\"a\": true})\n\nf(input) if input.a\n";
    assert!(RegoPolicy::builder(super::sources(text)).watch(None).build().is_ok());
    let texts = [("policy.rego".to_owned(), text.to_owned())];
    let answers = Evaluator::start().evaluate(&texts, &json!({}), "waxseal", &[json!({})]);
    assert!(
        matches!(&answers[0], Answer::Error(why) if why.contains("shadow input")),
        "{answers:?}"
    );
}

/// The default stack of a thread.
fn on_a_usual_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    // If the stack ends, only the name is printed.
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(2 << 20);
    thread.spawn(work).unwrap().join().unwrap()
}

/// Nesting that a parser would follow until the stack ends, in policies and in data.
#[test]
fn nesting_and_chains_without_end_are_refused_and_end_no_process() {
    let deep = |open: &str, middle: &str, close: &str| {
        format!("{}{middle}{}", open.repeat(20_000), close.repeat(20_000))
    };
    for (name, expression) in [
        ("parentheses", deep("(", "true", ")")),
        ("arrays", deep("[", "", "]")),
        ("objects", deep("{\"a\": ", "1", "}")),
        ("calls", deep("count(", "[]", ")")),
        ("comprehensions", deep("[x | x := ", "1", "]")),
        ("minus", "-".repeat(20_000) + "1"),
        ("not", "not ".repeat(20_000) + "true"),
        ("brackets", format!("input{}", "[0]".repeat(20_000))),
        ("dots", format!("input{}", ".a".repeat(20_000))),
        ("sum", format!("0 {} == 0", "+\n1 ".repeat(20_000))),
        ("union", format!("{{1}} {} == 0", "|\n{1} ".repeat(20_000))),
        ("sums in brackets", deep("(1 +\n 1 + ", "1", ")")),
        // Here nothing but the depth of brackets is too much, and there nothing but operators.
        ("few brackets", format!("{}1{} == 1", "(".repeat(60), ")".repeat(60))),
        ("few operators", format!("0 {} == 0", "+ 1 ".repeat(130))),
    ] {
        for rule in ["allow if ", "x := "] {
            let text = format!("package waxseal\n\nallow := true\n\n{rule}{expression}\n");
            let built = on_a_usual_thread(name, move || {
                RegoPolicy::builder(super::sources(&text)).watch(None).build().map(drop)
            });
            assert!(built.is_err(), "{name} in {rule}");
        }
    }
    for (name, data) in [("objects", deep("{\"a\": ", "1", "}")), ("arrays", deep("[", "", "]"))] {
        let sources = super::sources("package waxseal\n\nallow := true\n").data(data);
        let built = on_a_usual_thread(name, move || {
            RegoPolicy::builder(sources).watch(None).build().map(drop)
        });
        assert!(built.is_err(), "{name}");
    }
    // A list of many rules is no chain. If it loads, it decides.
    let text = format!(
        "package waxseal\n\nallow := false if false {}\nelse := true\n",
        "\nelse := false if false".repeat(2_000)
    );
    let _ = on_a_usual_thread("else", move || {
        let built = RegoPolicy::builder(super::sources(&text)).watch(None).build();
        let context = EncryptionContext::empty();
        let question = Question::new(Action::Decrypt, &context);
        built.map(|policy| pollster::block_on(policy.decide(&question)).map(drop)).map(drop)
    });
}

/// The bound holds on a thread whose stack is no larger than usual, while policies are read, asked
/// and dropped.
#[test]
fn an_expression_of_the_greatest_length_is_evaluated_on_a_usual_thread() {
    for (name, expression) in [
        ("sum", format!("0 {} == 120", "+ 1 ".repeat(120))),
        ("union", format!("count({{1}} {}) == 1", "| {1} ".repeat(60))),
        ("look-ups", format!("not input{}", ".a".repeat(120))),
        ("minus", format!("{}1 == 1", "-".repeat(60) + &"-".repeat(60))),
        (
            "sums in brackets",
            format!("{}1{} == 101", "(1 + 1 + 1 + 1 + ".repeat(25), ")".repeat(25)),
        ),
    ] {
        let text = format!("package waxseal\n\nallow if {expression}\n");
        let decided = on_a_usual_thread(name, move || {
            let policy = RegoPolicy::builder(super::sources(&text)).watch(None).build()?;
            let context = EncryptionContext::empty();
            pollster::block_on(policy.decide(&Question::new(Action::Decrypt, &context)))
        });
        // Signs in a row are no Rego of OPA. Here it matters that they end nothing.
        if name != "minus" {
            assert!(decided.unwrap().is_allowed(), "{name}");
        }
    }
}
