//! What the linter finds, and what it leaves alone.

use waxseal_policy::{Lint, RegoSources, lint};

use super::HEAD;

const TEST: &str = "package waxseal_test\n\nimport data.waxseal\n\n\
                    test_nobody if not waxseal.allow\n";

fn found(text: &str) -> Vec<(Lint, Option<usize>)> {
    let sources = RegoSources::new().rego("policy.rego", text).rego("policy_test.rego", TEST);
    lint(&sources, "waxseal").unwrap().iter().map(|finding| (finding.lint, finding.line)).collect()
}

#[test]
fn each_mistake_is_found_with_its_line() {
    for text in ["default allow := true", "default allow = true", "default  allow:=true"] {
        let findings = found(&format!("package waxseal\n\n{text}\n"));
        assert_eq!(findings, [(Lint::DefaultAllow, Some(3)), (Lint::AllowsNobody, None)], "{text}");
    }
    let forgotten = "allow if input.caller.service != \"x\"\n\nallow if not input.caller\n";
    assert_eq!(found(&format!("{HEAD}{forgotten}")), [(Lint::AllowsNobody, None)]);
    assert_eq!(found("package waxseal\n\nallow {\n\ttrue\n}\n"), [(Lint::OldSyntax, Some(3))]);
    let negated = "allow if {\n\tnot startswith(input.caller.service, \"x\")\n\tinput.caller\n}\n";
    assert_eq!(found(&format!("{HEAD}{negated}")), [(Lint::NegatedCall, Some(6))]);
    for negated in [
        "not data.tables[input.context.table]",
        "not input.caller.service in services",
        "not service in data.services",
        "not input.caller.level + 1 > 2",
        "not [x, y][input.a]",
        "true; not is_known(input.caller)",
    ] {
        let text = format!("{HEAD}allow if {{\n\tinput.caller\n\t{negated}\n}}\n");
        let services = "services := {\"a\"}\n\nservice := 1\n\nx := 1\n\ny := 2\n\n\
                        is_known(_) := false\n";
        assert_eq!(
            found(&format!("{text}{services}")),
            [(Lint::NegatedCall, Some(7))],
            "{negated}"
        );
    }
    for plain in ["not input.caller.attributes.hold", "not closed", "not input.a == 1", "note"] {
        let text =
            format!("{HEAD}allow if {{\n\tinput.caller\n\t{plain}\n}}\n\nclosed := 1 if input.b\n");
        assert_eq!(found(&format!("{text}\nnote := 1\n")), [], "{plain}");
    }
    let head = "deny_reason contains data.why[role] if some role in input.caller.roles\n";
    assert_eq!(found(&format!("{HEAD}{head}")), [(Lint::LookupInHead, Some(5))]);
    let clock = "allow if {\n\tinput.caller\n\ttime.now_ns() > 0\n}\n";
    assert_eq!(found(&format!("{HEAD}{clock}")), [(Lint::WallClock, Some(7))]);
}

#[test]
fn a_missing_test_is_found_and_comments_and_texts_are_not() {
    let sources = RegoSources::new().rego("policy.rego", HEAD);
    let findings = lint(&sources, "waxseal").unwrap();
    assert_eq!(findings.iter().map(|finding| finding.lint).collect::<Vec<_>>(), [Lint::NoTest]);
    assert!(findings[0].to_string().contains("no test"));

    let innocent = "# default allow := true\n# time.now_ns()\n\n\
                    allow if input.caller.service == \"default allow := true # time.now_ns()\"\n\n\
                    raw := `\ndefault allow := true\nallow {\n`\n\n\
                    object := {\n\t\"a\": 1,\n}\n";
    assert_eq!(found(&format!("{HEAD}{innocent}")), []);
}

#[test]
fn another_error_is_told_and_not_linted() {
    let sources = RegoSources::new().rego("policy.rego", "package waxseal\n\nallow if (\n");
    assert!(lint(&sources, "waxseal").is_err());
}
