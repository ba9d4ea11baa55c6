//! What a policy's answer means. Anything but a clear allow is a denial.
#![forbid(unsafe_code)]

use std::time::Duration;

use serde_json::Value;
use waxseal::policy::Decision;

/// The rule that allows: it must be exactly `true`.
const ALLOW: &str = "allow";
/// The rule with the reasons of a denial: a set or an array of texts.
const DENY_REASON: &str = "deny_reason";

/// How long an allow may be used, in seconds, if that is shorter than decisions are cached.
const VALID_FOR: &str = "valid_for_seconds";
/// The longest time that is accepted. Decisions are never cached for longer.
const MOST_SECONDS: f64 = 24.0 * 60.0 * 60.0;

/// Reads the document of the policy's package.
pub(crate) fn decision(document: Option<&Value>) -> Decision {
    let Some(document) = document else {
        return Decision::deny(["the policy is undefined"]);
    };
    let Value::Object(rules) = document else {
        return Decision::deny(["the policy is not a package with the rule allow"]);
    };
    let mut reasons = match rules.get(DENY_REASON) {
        None => Vec::new(),
        Some(Value::Array(reasons)) => reasons.iter().map(text).collect(),
        // There is a reason, so it is not a clear allow.
        Some(other) => vec![text(other)],
    };
    match rules.get(ALLOW) {
        Some(Value::Bool(true)) if reasons.is_empty() => return allow(rules.get(VALID_FOR)),
        Some(Value::Bool(true)) => {
            reasons.insert(0, "the policy allows and gives reasons to deny".to_owned());
        }
        Some(Value::Bool(false)) => {}
        Some(_) => reasons.insert(0, "allow is neither true nor false".to_owned()),
        None => reasons.insert(0, "allow is undefined".to_owned()),
    }
    Decision::deny(reasons)
}

fn allow(valid_for: Option<&Value>) -> Decision {
    let Some(valid_for) = valid_for else { return Decision::allow() };
    match valid_for.as_f64().filter(|seconds| *seconds >= 0.0) {
        Some(seconds) => {
            Decision::allow().valid_for(Duration::from_secs_f64(seconds.min(MOST_SECONDS)))
        }
        None => Decision::deny(["valid_for_seconds is not a number of seconds"]),
    }
}

fn text(reason: &Value) -> String {
    match reason {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_true_without_a_reason_is_an_allow() {
        let allows = |document: Value| decision(Some(&document)).is_allowed();
        for document in [
            json!({"allow": true}),
            json!({"allow": true, "deny_reason": []}),
            json!({"allow": true, "other": {"allow": false}}),
            json!({"allow": true, "valid_for_seconds": 0.5}),
            json!({"allow": true, "valid_for_seconds": 1e300}),
        ] {
            assert!(allows(document.clone()), "{document}");
        }
        assert!(!decision(None).is_allowed());
        for document in [
            json!(null),
            json!(true),
            json!([true]),
            json!("true"),
            json!({}),
            json!({"allow": false}),
            json!({"allow": null}),
            json!({"allow": 1}),
            json!({"allow": "true"}),
            json!({"allow": [true]}),
            json!({"allow": {"allow": true}}),
            json!({"Allow": true}),
            json!({"allow": true, "deny_reason": ["late"]}),
            json!({"allow": true, "deny_reason": "late"}),
            json!({"allow": true, "deny_reason": {}}),
            json!({"allow": true, "deny_reason": null}),
            json!({"allow": true, "valid_for_seconds": -1}),
            json!({"allow": true, "valid_for_seconds": "5"}),
            json!({"allow": true, "valid_for_seconds": null}),
        ] {
            let decided = decision(Some(&document));
            assert!(!decided.is_allowed(), "{document}");
        }
    }

    #[test]
    fn the_reasons_are_those_of_the_policy() {
        let document = json!({"allow": false, "deny_reason": ["late", 7, {"a": 1}]});
        let reasons: Vec<_> =
            decision(Some(&document)).reasons().iter().map(ToString::to_string).collect();
        assert_eq!(reasons, ["late", "7", "{\"a\":1}"]);
    }
}
