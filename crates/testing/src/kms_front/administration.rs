//! What administers keys: their state, policy, rotation and deletion, and what lists them. The API
//! Reference is that of AWS KMS (2014-11-01).

use std::time::Duration;

use serde_json::{Value, json};

use super::KmsError;
use super::management::seconds;
use super::request::Answer;
use super::world::{Caller, State, World};

impl World {
    pub(super) fn change(&mut self, caller: &Caller, operation: &str, body: &Value) -> Answer {
        let key = self.administer(caller, operation, body, "KeyId")?;
        let (arn, state, is_imported) = (key.arn.clone(), key.state, key.origin == "EXTERNAL");
        let (is_external, unsupported) = (key.origin == "EXTERNAL_KEY_STORE", key.unsupported());
        let pending = || {
            Err(KmsError::new(
                400,
                "KMSInvalidStateException",
                format!("{arn} is pending deletion."),
            ))
        };
        if state == State::PendingDeletion && operation != "CancelKeyDeletion" {
            return pending();
        }
        match operation {
            "EnableKey" => self.key(&arn).state = State::Enabled,
            "DisableKey" => self.key(&arn).state = State::Disabled,
            "ScheduleKeyDeletion" => return self.schedule_deletion(&arn, body),
            "CancelKeyDeletion" if state != State::PendingDeletion => {
                let detail = format!("{arn} is not pending deletion.");
                return Err(KmsError::new(400, "KMSInvalidStateException", detail));
            }
            // "When this operation succeeds, the key state of the KMS key is Disabled" (API
            // Reference, CancelKeyDeletion).
            "CancelKeyDeletion" => {
                let key = self.key(&arn);
                (key.state, key.deletion) = (State::Disabled, None);
            }
            "PutKeyPolicy" => self.key(&arn).policy = self.acceptable_policy(caller, &arn, body)?,
            // "To rotate": "manually", by the external key manager or with another KMS key (the
            // Guide, "Rotate AWS KMS keys").
            "EnableKeyRotation" | "DisableKeyRotation" | "RotateKeyOnDemand" if is_external => {
                return Err(unsupported);
            }
            // Imported material does not rotate by itself, and on demand only to what was imported
            // for it ("Rotate AWS KMS keys" in the Guide).
            "EnableKeyRotation" if is_imported => return Err(unsupported),
            "RotateKeyOnDemand" if is_imported && self.key(&arn).next.is_none() => {
                let detail = format!("{arn} has no key material that is pending rotation.");
                return Err(KmsError::new(400, "KMSInvalidStateException", detail));
            }
            "EnableKeyRotation" => {
                let period = body["RotationPeriodInDays"].as_u64().unwrap_or(365);
                if !(90..=2560).contains(&period) {
                    return Err(KmsError::validation("RotationPeriodInDays: 90 to 2560".into()));
                }
                let key = self.key(&arn);
                (key.rotates, key.rotation_period) = (true, period);
            }
            "DisableKeyRotation" => self.key(&arn).rotates = false,
            "RotateKeyOnDemand" => self.rotate(&arn, true),
            "DeleteImportedKeyMaterial" if !is_imported => return Err(unsupported),
            "DeleteImportedKeyMaterial" => self.key(&arn).state = State::PendingImport,
            _ => unreachable!("{operation}"),
        }
        Ok(json!({ "KeyId": arn }))
    }

    /// "If you include a value, it must be between 7 and 30, inclusive. If you do not include a
    /// value, it defaults to 30" (API Reference).
    fn schedule_deletion(&mut self, arn: &str, body: &Value) -> Answer {
        let days = match &body["PendingWindowInDays"] {
            Value::Null => 30,
            days => days.as_u64().unwrap_or_default(),
        };
        if !(7..=30).contains(&days) {
            return Err(KmsError::validation("PendingWindowInDays: 7 to 30".into()));
        }
        let deletion = self.now() + Duration::from_secs(days * 24 * 3600);
        let key = self.key(arn);
        (key.state, key.deletion) = (State::PendingDeletion, Some(deletion));
        Ok(json!({
            "KeyId": arn, "DeletionDate": seconds(deletion), "KeyState": "PendingDeletion", "PendingWindowInDays": days,
        }))
    }

    pub(super) fn list(&self, caller: &Caller, operation: &str, body: &Value) -> Answer {
        let mine = |arn: &str| arn.contains(&format!(":{}:{}:", caller.region, caller.account));
        let page = |name: &str, items: Vec<Value>| Ok(json!({ name: items, "Truncated": false }));
        match operation {
            "ListKeys" => {
                self.authorise_account(caller, operation, body)?;
                let keys = self.keys.iter().filter(|key| mine(&key.arn));
                page(
                    "Keys",
                    keys.map(|key| json!({ "KeyArn": key.arn, "KeyId": key.id })).collect(),
                )
            }
            "ListAliases" => {
                self.authorise_account(caller, operation, body)?;
                let aliases = self.aliases.iter().filter(|(_, arn)| mine(arn));
                page(
                    "Aliases",
                    aliases.map(|((_, alias), _)| json!({ "AliasName": alias })).collect(),
                )
            }
            "ListGrants" => {
                let key = self.administer(caller, operation, body, "KeyId")?;
                let grants = self.grants.iter().filter(|grant| grant.key_arn == key.arn);
                let shown = |grant: &super::world::Grant| {
                    json!({
                        "GrantId": grant.id, "KeyId": grant.key_arn, "GranteePrincipal": grant.grantee, "Operations": grant.operations,
                    })
                };
                page("Grants", grants.map(shown).collect())
            }
            "ListKeyPolicies" => {
                self.administer(caller, operation, body, "KeyId")?;
                page("PolicyNames", vec![json!("default")])
            }
            "ListResourceTags" => {
                self.administer(caller, operation, body, "KeyId")?;
                page("Tags", Vec::new())
            }
            _ => unreachable!("{operation}"),
        }
    }
}
