//! Who may do what: key policies, identity policies, service control policies and grants together,
//! and the key policies that KMS refuses.

use serde_json::Value;

use super::KmsError;
use super::policy::{self, Keys, Kind, Question, Verdict};
use super::request::{Context, text};
use super::world::{Caller, Key, World};

/// "The key policy size quota is 32 KiB" (API Reference, PutKeyPolicy).
const MAX_POLICY_BYTES: usize = 32 * 1024;

impl World {
    /// Key policy, identity policies, service control policies and grants, in the order of the IAM
    /// User Guide.
    pub fn authorise(
        &self,
        caller: &Caller,
        action: &str,
        key: &Key,
        body: &Value,
        context: &Context,
        same_key: Option<bool>,
    ) -> Result<(), KmsError> {
        let mut keys = condition_keys(caller, action, body);
        if let Some(same) = same_key {
            keys.set("kms:ReEncryptOnSameKey", same);
        }
        let action_name = format!("kms:{action}");
        let question = ask(caller, &action_name, &key.arn, context, &keys);
        let by_key = policy::evaluate(&key.policy, &question);
        let by_identity = self.by_identity(&question);
        let is_denied = by_key == Verdict::Denied
            || by_identity.contains(&Verdict::Denied)
            || self.is_denied_by_organisation(&question);
        let identity_allows = by_identity.contains(&Verdict::Allowed);
        let by_policies = match by_key {
            // Of another account, both have to allow it ("Allowing users in other accounts to use a
            // KMS key" in the Guide).
            Verdict::Allowed if key.account != caller.account => identity_allows,
            Verdict::Allowed => true,
            Verdict::LeftToTheAccount => identity_allows,
            Verdict::Denied | Verdict::Silent => false,
        };
        let is_allowed = by_policies || self.is_granted(caller, action, key, body, context);
        if !is_denied && is_allowed {
            return Ok(());
        }
        let why = if is_denied { "with an explicit deny" } else { "because no policy allows it" };
        let who = &caller.principal;
        let detail = format!(
            "User: {who} is not authorized to perform: {action_name} on resource: {} {why}",
            key.arn
        );
        Err(KmsError::new(400, "AccessDeniedException", detail))
    }

    /// For operations on no key: identity policies alone, and "Resource": "*" in them ("AWS KMS
    /// permissions" in the Guide).
    pub fn authorise_account(
        &self,
        caller: &Caller,
        action: &str,
        body: &Value,
    ) -> Result<(), KmsError> {
        let keys = condition_keys(caller, action, body);
        let (action, context) = (format!("kms:{action}"), Context::new());
        let question = ask(caller, &action, "*", &context, &keys);
        let verdicts = self.by_identity(&question);
        let is_denied =
            verdicts.contains(&Verdict::Denied) || self.is_denied_by_organisation(&question);
        if verdicts.contains(&Verdict::Allowed) && !is_denied {
            return Ok(());
        }
        let detail = format!(
            "User: {} is not authorized to perform: {action} on resource: * because no \
                identity-based policy allows the {action} action",
            caller.principal
        );
        Err(KmsError::new(400, "AccessDeniedException", detail))
    }

    fn by_identity(&self, question: &Question<'_>) -> Vec<Verdict> {
        let own = self.principals.values().filter(|principal| principal.arn == question.principal);
        own.flat_map(|principal| &principal.policies)
            .map(|policy| policy::evaluate(policy, question))
            .collect()
    }

    /// Beside the `FullAWSAccess` that every account has. They hold for the account's root user
    /// too, not for those of other organisations ("Service control policies" in the AWS
    /// Organizations User Guide).
    fn is_denied_by_organisation(&self, question: &Question<'_>) -> bool {
        let mut policies = self.service_control_policies.iter();
        policies.any(|policy| policy::evaluate(policy, question) == Verdict::Denied)
    }

    /// The policy of `PutKeyPolicy` or `CreateKey`, if KMS takes it: the criteria of `Policy` and
    /// `BypassPolicyLockoutSafetyCheck` in the API Reference, and "Default key policy" in the
    /// Guide.
    pub fn acceptable_policy(
        &self,
        caller: &Caller,
        key_arn: &str,
        body: &Value,
    ) -> Result<Value, KmsError> {
        let written = text(body, "Policy")?;
        if written.len() > MAX_POLICY_BYTES {
            return Err(KmsError::new(400, "LimitExceededException", "the key policy is too long"));
        }
        let malformed = |what: String| KmsError::new(400, "MalformedPolicyDocumentException", what);
        // "Printable ASCII …, the Basic Latin and Latin-1 Supplement character set (through
        // \u00FF)", tab, line feed and carriage return.
        let is_allowed =
            |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{a0}'..='\u{ff}');
        let policy: Value = serde_json::from_str(written).unwrap_or_default();
        if !written.chars().all(is_allowed) || policy.is_null() {
            return Err(malformed("it is not JSON, or has other characters".into()));
        }
        policy::check(&policy, Kind::OfAKey).map_err(malformed)?;
        let exists = |arn: &&str| {
            *arn == "*"
                || arn.ends_with(":root")
                || !arn.contains(&format!("::{}:", caller.account))
                || self.principals.values().any(|principal| principal.arn == **arn)
        };
        if !policy::principals(&policy).iter().all(exists) {
            let what = "Policy contains a statement with one or more invalid principals.";
            return Err(malformed(what.into()));
        }
        if body["BypassPolicyLockoutSafetyCheck"] != true {
            let keys = condition_keys(caller, "PutKeyPolicy", &Value::Null);
            let context = Context::new();
            let again = ask(caller, "kms:PutKeyPolicy", key_arn, &context, &keys);
            if !matches!(
                policy::evaluate(&policy, &again),
                Verdict::Allowed | Verdict::LeftToTheAccount
            ) {
                let what =
                    "The new key policy will not allow you to update the key policy in the future.";
                return Err(malformed(what.into()));
            }
        }
        Ok(policy)
    }
}

fn ask<'a>(
    caller: &'a Caller,
    action: &'a str,
    resource: &'a str,
    context: &'a Context,
    keys: &'a Keys,
) -> Question<'a> {
    Question {
        principal: &caller.principal,
        account: &caller.account,
        action,
        resource,
        context,
        keys,
    }
}

/// "This type of condition works even when the parameter doesn't appear in the request, such as
/// when you use the parameter's default value" ("AWS KMS condition keys" in the Guide).
fn condition_keys(caller: &Caller, action: &str, body: &Value) -> Keys {
    let (mut keys, traits) = (Keys::default(), &caller.traits);
    keys.set("aws:PrincipalArn", &caller.principal);
    keys.set("kms:CallerAccount", &caller.account);
    for (name, value) in &traits.tags {
        keys.set(&format!("aws:PrincipalTag/{name}"), value);
    }
    if traits.has_session {
        // Only of temporary credentials ("aws:MultiFactorAuthPresent" in the IAM User Guide).
        keys.set("aws:MultiFactorAuthPresent", traits.mfa_age.is_some());
    }
    let optional = [
        ("aws:MultiFactorAuthAge", traits.mfa_age.map(|age| age.to_string())),
        ("aws:SourceVpce", traits.source_vpce.clone()),
        ("kms:ViaService", traits.via_service.clone()),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            keys.set(name, value);
        }
    }
    match action {
        "ScheduleKeyDeletion" => keys.set(
            "kms:ScheduleKeyDeletionPendingWindowInDays",
            body["PendingWindowInDays"].as_u64().unwrap_or(30),
        ),
        "PutKeyPolicy" | "CreateKey" | "ReplicateKey" => keys.set(
            "kms:BypassPolicyLockoutSafetyCheck",
            body["BypassPolicyLockoutSafetyCheck"] == true,
        ),
        "EnableKeyRotation" => keys
            .set("kms:RotationPeriodInDays", body["RotationPeriodInDays"].as_u64().unwrap_or(365)),
        _ => {}
    }
    keys
}
