//! Key policies and identity policies, as far as the documentation of this project uses them.
//!
//! Sources: "Policy evaluation logic" and "IAM JSON policy elements: Condition operators" in the IAM User Guide; "AWS KMS condition keys" and "Key policies in
//! AWS KMS" in the AWS KMS Developer Guide. An element that is not known here is refused when the policy is set, never ignored.
//!
//! KMS compares NAME in `kms:EncryptionContext:NAME` without regard to case ("Case sensitivity of the encryption context condition" in the Guide) and refuses
//! a policy that locks out whoever sets it ("Default key policy"); here the case counts and nobody is kept from locking himself out.

use std::collections::BTreeMap;

use serde_json::Value;

/// Who asks for what.
pub struct Question<'a> {
    pub principal: &'a str,
    pub account: &'a str,
    pub action: &'a str,
    pub resource: &'a str,
    pub context: &'a BTreeMap<String, String>,
    /// Only for ReEncrypt.
    pub same_key: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Allowed,
    /// The account is trusted to decide by its identity policies.
    LeftToTheAccount,
    Denied,
    Silent,
}

fn list(value: &Value) -> Vec<&str> {
    match value {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().map(|one| one.as_str().unwrap()).collect(),
        _ => Vec::new(),
    }
}

/// `*` and `?`, as in actions, ARNs and `StringLike`.
fn like(pattern: &str, text: &str) -> bool {
    match (pattern.chars().next(), text.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            like(&pattern[1..], text)
                || text.chars().next().is_some_and(|c| like(pattern, &text[c.len_utf8()..]))
        }
        (Some('?'), Some(c)) => like(&pattern[1..], &text[c.len_utf8()..]),
        (Some(p), Some(c)) if p == c => like(&pattern[p.len_utf8()..], &text[c.len_utf8()..]),
        _ => false,
    }
}

const OPERATORS: [&str; 7] = [
    "StringEquals",
    "StringNotEquals",
    "StringLike",
    "Bool",
    "Null",
    "ForAllValues:StringEquals",
    "ForAnyValue:StringEquals",
];

/// What is wrong with a policy, if anything is.
pub fn check(policy: &Value) -> Result<(), String> {
    if policy["Version"] != "2012-10-17" {
        return Err("Version".into());
    }
    for statement in policy["Statement"].as_array().ok_or("Statement")? {
        for (name, value) in statement.as_object().ok_or("a statement")? {
            match name.as_str() {
                "Sid" | "Action" | "Resource" => {}
                "Effect" if value == "Allow" || value == "Deny" => {}
                "Principal" if value == "*" || value.get("AWS").is_some() => {}
                "Condition" => {
                    for (operator, keys) in value.as_object().ok_or("Condition")? {
                        if !OPERATORS.contains(&operator.as_str()) {
                            return Err(format!("operator {operator}"));
                        }
                        for key in keys.as_object().ok_or("Condition")?.keys() {
                            let known = key.starts_with("kms:EncryptionContext:")
                                || ["kms:EncryptionContextKeys", "kms:ReEncryptOnSameKey"]
                                    .contains(&key.as_str());
                            if !known {
                                return Err(format!("condition key {key}"));
                            }
                        }
                    }
                }
                other => return Err(other.to_owned()),
            }
        }
    }
    Ok(())
}

fn values(question: &Question<'_>, key: &str) -> Vec<String> {
    if let Some(name) = key.strip_prefix("kms:EncryptionContext:") {
        return question.context.get(name).cloned().into_iter().collect();
    }
    match key {
        "kms:EncryptionContextKeys" => question.context.keys().cloned().collect(),
        "kms:ReEncryptOnSameKey" => {
            question.same_key.map(|same| same.to_string()).into_iter().collect()
        }
        _ => panic!("{key} was not refused when the policy was set"),
    }
}

fn holds(question: &Question<'_>, operator: &str, key: &str, wanted: &Value) -> bool {
    let (found, wanted_list) = (values(question, key), list(wanted));
    let is_wanted = |value: &String| wanted_list.contains(&value.as_str());
    match operator {
        "StringEquals" | "ForAnyValue:StringEquals" => found.iter().any(is_wanted),
        "StringNotEquals" => !found.iter().any(is_wanted),
        // True also when the key is absent: "It doesn't require any encryption context keys" (the Guide, "kms:EncryptionContextKeys").
        "ForAllValues:StringEquals" => found.iter().all(is_wanted),
        "StringLike" => {
            found.iter().any(|value| wanted_list.iter().any(|pattern| like(pattern, value)))
        }
        "Bool" => found.iter().any(|value| {
            *value == wanted.as_str().map_or_else(|| wanted.to_string(), str::to_owned)
        }),
        "Null" => found.is_empty() == (wanted == "true" || wanted == true),
        _ => panic!("{operator} was not refused when the policy was set"),
    }
}

/// What one policy says. A key policy names principals; an identity policy is that of the principal who asks.
pub fn evaluate(policy: &Value, question: &Question<'_>) -> Verdict {
    let mut verdict = Verdict::Silent;
    for statement in policy["Statement"].as_array().unwrap() {
        let root = format!(":{}:root", question.account);
        let (mut names, mut account) = (true, false);
        if let Some(principal) = statement.get("Principal") {
            let principals = list(principal.get("AWS").unwrap_or(principal));
            names = principals
                .iter()
                .any(|principal| *principal == "*" || *principal == question.principal);
            account = principals.iter().any(|principal| principal.ends_with(&root));
        }
        let action = list(&statement["Action"]).iter().any(|action| like(action, question.action));
        let resource =
            list(&statement["Resource"]).iter().any(|resource| like(resource, question.resource));
        let conditions = statement.get("Condition").and_then(Value::as_object);
        let conditions = conditions.into_iter().flatten().all(|(operator, keys)| {
            keys.as_object()
                .unwrap()
                .iter()
                .all(|(key, wanted)| holds(question, operator, key, wanted))
        });
        if !action || !resource || !conditions || !(names || account) {
            continue;
        }
        match (statement["Effect"] == "Deny", names) {
            (true, _) => return Verdict::Denied,
            (false, true) => verdict = Verdict::Allowed,
            (false, false) if verdict == Verdict::Silent => verdict = Verdict::LeftToTheAccount,
            _ => {}
        }
    }
    verdict
}
