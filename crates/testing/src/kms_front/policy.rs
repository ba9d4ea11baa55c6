//! Key policies, identity policies and service control policies, as far as this project uses them.
//!
//! Sources: "Policy evaluation logic", "IAM JSON policy elements: Condition operators" and "AWS
//! global condition context keys" in the IAM User Guide; "Service control policies" in the AWS
//! Organizations User Guide; "AWS KMS condition keys" and "Key policies in AWS KMS" in the AWS KMS
//! Developer Guide. An element that is not known here is refused when the policy is set, never
//! ignored.

use std::collections::BTreeMap;

use serde_json::Value;

/// Condition keys with their values, by their names in lower case: names of keys have no case (IAM
/// User Guide, "Condition").
#[derive(Clone, Debug, Default)]
pub struct Keys(BTreeMap<String, Vec<String>>);

impl Keys {
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.0.entry(name.to_ascii_lowercase()).or_default().push(value.to_string());
    }

    fn get(&self, name: &str) -> &[String] {
        self.0.get(&name.to_ascii_lowercase()).map_or(&[], Vec::as_slice)
    }
}

/// Who asks for what.
pub struct Question<'a> {
    pub principal: &'a str,
    pub account: &'a str,
    pub action: &'a str,
    pub resource: &'a str,
    pub context: &'a BTreeMap<String, String>,
    pub keys: &'a Keys,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Allowed,
    /// The account is trusted to decide by its identity policies.
    LeftToTheAccount,
    Denied,
    Silent,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Names principals.
    OfAKey,
    /// Is attached to the principal, or to its account.
    OfAnIdentity,
}

fn list(value: &Value) -> Vec<&str> {
    match value {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().map(|one| one.as_str().unwrap_or_default()).collect(),
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

/// With the suffix `IfExists` too, except for `Null`.
const OPERATORS: [&str; 15] = [
    "StringEquals",
    "StringNotEquals",
    "StringLike",
    "StringNotLike",
    "ArnEquals",
    "ArnNotEquals",
    "ArnLike",
    "ArnNotLike",
    "NumericEquals",
    "NumericLessThan",
    "NumericGreaterThan",
    "Bool",
    "Null",
    "ForAllValues:StringEquals",
    "ForAnyValue:StringEquals",
];

const CONDITION_KEYS: [&str; 12] = [
    "aws:MultiFactorAuthAge",
    "aws:MultiFactorAuthPresent",
    "aws:PrincipalArn",
    "aws:SourceVpce",
    "aws:TagKeys",
    "kms:BypassPolicyLockoutSafetyCheck",
    "kms:EncryptionContextKeys",
    "kms:ReEncryptOnSameKey",
    "kms:RotationPeriodInDays",
    "kms:ScheduleKeyDeletionPendingWindowInDays",
    "kms:CallerAccount",
    "kms:ViaService",
];

/// "Actions defined by AWS Key Management Service" in the Service Authorization Reference.
const ACTIONS: &str = "CancelKeyDeletion ConnectCustomKeyStore CreateAlias CreateCustomKeyStore CreateGrant CreateKey Decrypt DeleteAlias \
    DeleteCustomKeyStore DeleteImportedKeyMaterial DeriveSharedSecret DescribeCustomKeyStores DescribeKey DisableKey DisableKeyRotation \
    DisconnectCustomKeyStore EnableKey EnableKeyRotation Encrypt GenerateDataKey GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext \
    GenerateDataKeyWithoutPlaintext GenerateMac GenerateRandom GetKeyPolicy GetKeyRotationStatus GetParametersForImport GetPublicKey ImportKeyMaterial \
    ListAliases ListGrants ListKeyPolicies ListKeyRotations ListKeys ListResourceTags ListRetirableGrants PutKeyPolicy ReEncryptFrom ReEncryptTo \
    ReplicateKey RetireGrant RevokeGrant RotateKeyOnDemand ScheduleKeyDeletion Sign SynchronizeMultiRegionKey TagResource UntagResource UpdateAlias \
    UpdateCustomKeyStore UpdateKeyDescription UpdatePrimaryRegion Verify VerifyMac";

/// Every action of the service.
pub fn actions() -> impl Iterator<Item = String> {
    ACTIONS.split_whitespace().map(|action| format!("kms:{action}"))
}

/// What is wrong with a policy, if anything is.
pub fn check(policy: &Value, kind: Kind) -> Result<(), String> {
    if policy["Version"] != "2012-10-17" {
        return Err("Version".into());
    }
    if policy.as_object().is_none_or(|policy| {
        policy.keys().any(|key| !["Version", "Statement", "Id"].contains(&&**key))
    }) {
        return Err("an element beside Version, Id and Statement".into());
    }
    if policy.to_string().contains("${") {
        return Err("the front knows no policy variables".into());
    }
    for statement in policy["Statement"].as_array().ok_or("Statement")? {
        check_statement(statement, kind)?;
    }
    Ok(())
}

fn check_statement(statement: &Value, kind: Kind) -> Result<(), String> {
    let elements = statement.as_object().ok_or("a statement")?;
    // "Each statement in the key policy must contain one or more principals" (API Reference,
    // PutKeyPolicy); an identity policy is of one already.
    if elements.contains_key("Principal") != (kind == Kind::OfAKey) {
        return Err("Principal".into());
    }
    for (one, other) in [("Action", "NotAction"), ("Resource", "NotResource")] {
        if elements.contains_key(one) == elements.contains_key(other) {
            return Err(format!("{one} or {other}, and not both"));
        }
    }
    for (name, value) in elements {
        match name.as_str() {
            // IAM User Guide, "IAM JSON policy elements: Sid"; key policies may have blanks.
            "Sid"
                if value.as_str().is_some_and(|sid| {
                    kind == Kind::OfAKey || sid.chars().all(|c| c.is_ascii_alphanumeric())
                }) => {}
            "Resource" | "NotResource" if !list(value).is_empty() => {}
            "Action" | "NotAction" if !list(value).is_empty() => {
                for action in list(value) {
                    if action.starts_with("kms:") && !actions().any(|known| like(action, &known)) {
                        return Err(format!("there is no action {action}"));
                    }
                }
            }
            "Effect" if value == "Allow" || value == "Deny" => {}
            "Principal" if value == "*" || value.get("AWS").is_some() => {}
            "Condition" => {
                for (operator, keys) in value.as_object().ok_or("Condition")? {
                    check_condition(operator, keys)?;
                }
            }
            other => return Err(other.to_owned()),
        }
    }
    Ok(())
}

fn check_condition(operator: &str, keys: &Value) -> Result<(), String> {
    let base = operator.strip_suffix("IfExists").unwrap_or(operator);
    if !OPERATORS.contains(&base) || operator == "NullIfExists" {
        return Err(format!("operator {operator}"));
    }
    for key in keys.as_object().ok_or("Condition")?.keys() {
        let known = ["kms:EncryptionContext:", "aws:PrincipalTag/"]
            .iter()
            .any(|prefix| key.starts_with(prefix))
            || CONDITION_KEYS.contains(&key.as_str());
        if !known {
            return Err(format!("condition key {key}"));
        }
    }
    Ok(())
}

/// The principals that a policy names.
pub fn principals(policy: &Value) -> Vec<&str> {
    let statements = policy["Statement"].as_array().into_iter().flatten();
    statements
        .flat_map(|statement| {
            list(statement["Principal"].get("AWS").unwrap_or(&statement["Principal"]))
        })
        .collect()
}

fn values(question: &Question<'_>, key: &str) -> Vec<String> {
    if let Some(name) = key.strip_prefix("kms:EncryptionContext:") {
        // The case of NAME does not count ("Case sensitivity of the encryption context condition"
        // in the Guide).
        let pairs =
            question.context.iter().filter(|(of_request, _)| of_request.eq_ignore_ascii_case(name));
        return pairs.map(|(_, value)| value.clone()).collect();
    }
    match key {
        "kms:EncryptionContextKeys" => question.context.keys().cloned().collect(),
        _ => question.keys.get(key).to_vec(),
    }
}

fn holds(question: &Question<'_>, operator: &str, key: &str, wanted: &Value) -> bool {
    let found = values(question, key);
    let operator = match operator.strip_suffix("IfExists") {
        Some(_) if found.is_empty() => return true,
        Some(base) => base,
        None => operator,
    };
    let as_text = wanted.as_str().map_or_else(|| wanted.to_string(), str::to_owned);
    let wanted_list = list(wanted);
    let is_wanted = |value: &String| wanted_list.contains(&value.as_str());
    let is_like = |value: &String| wanted_list.iter().any(|pattern| like(pattern, value));
    let number = |text: &str| text.parse::<f64>().unwrap_or(f64::NAN);
    let any_number = |compare: fn(f64, f64) -> bool| {
        found.iter().any(|value| compare(number(value), number(&as_text)))
    };
    match operator {
        "StringEquals" | "ForAnyValue:StringEquals" => found.iter().any(is_wanted),
        // True also when the key is absent ("Condition operators", negated matching).
        "StringNotEquals" => !found.iter().any(is_wanted),
        // True also when the key is absent: "It doesn't require any encryption context keys" (the
        // Guide, "kms:EncryptionContextKeys").
        "ForAllValues:StringEquals" => found.iter().all(is_wanted),
        // "ArnEquals and ArnLike behave identically" (IAM User Guide).
        "StringLike" | "ArnEquals" | "ArnLike" => found.iter().any(is_like),
        "StringNotLike" | "ArnNotEquals" | "ArnNotLike" => !found.iter().any(is_like),
        "NumericEquals" => any_number(|value, wanted| value == wanted),
        "NumericLessThan" => any_number(|value, wanted| value < wanted),
        "NumericGreaterThan" => any_number(|value, wanted| value > wanted),
        "Bool" => found.contains(&as_text),
        "Null" => found.is_empty() == (as_text == "true"),
        _ => panic!("{operator} was not refused when the policy was set"),
    }
}

/// What one policy says. A key policy names principals; an identity policy is that of the principal
/// who asks.
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
        let matches = |element: &str, asked: &str| match (
            statement.get(element),
            statement.get(format!("Not{element}")),
        ) {
            (Some(patterns), _) => list(patterns).iter().any(|pattern| like(pattern, asked)),
            (None, not) => not
                .is_some_and(|patterns| !list(patterns).iter().any(|pattern| like(pattern, asked))),
        };
        let conditions = statement.get("Condition").and_then(Value::as_object);
        let conditions = conditions.into_iter().flatten().all(|(operator, keys)| {
            keys.as_object()
                .unwrap()
                .iter()
                .all(|(key, wanted)| holds(question, operator, key, wanted))
        });
        if !matches("Action", question.action)
            || !matches("Resource", question.resource)
            || !conditions
            || !(names || account)
        {
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
