//! The requests that compute nothing: keys are described, made, replicated and granted. What
//! changes the state of a key is in `administration`. The API Reference is that of AWS KMS
//! (2014-11-01).

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};

use super::crypto::{Backing, External, Material};
use super::request::{Answer, Context, text};
use super::world::{Caller, Grant, Key, State, World};
use super::{KmsError, random};

impl World {
    /// A request that computes nothing and needs no network. `Err` is the answer of KMS to one that
    /// fails.
    pub fn answer(&mut self, caller: &Caller, operation: &str, body: &Value) -> Answer {
        match operation {
            "DescribeKey" => self.describe_key(caller, body),
            "CreateKey" => {
                self.authorise_account(caller, operation, body)?;
                let own = !body["Policy"].is_null();
                let policy = own.then(|| self.acceptable_policy(caller, "*", body)).transpose()?;
                let arn = self.create_key(&caller.region, body["MultiRegion"] == true);
                if let Some(policy) = policy {
                    self.key(&arn).policy = policy;
                }
                Ok(json!({ "KeyMetadata": self.metadata(&arn) }))
            }
            "GetKeyPolicy" => {
                let key = self.administer(caller, operation, body, "KeyId")?;
                Ok(json!({ "Policy": key.policy.to_string(), "PolicyName": "default" }))
            }
            "GetKeyRotationStatus" => {
                let key = self.administer(caller, operation, body, "KeyId")?;
                if key.origin == "EXTERNAL_KEY_STORE" {
                    return Err(key.unsupported());
                }
                // "While a KMS key is pending deletion, its key rotation status is false"; a period
                // only where there is rotation (API Reference).
                let rotates = key.rotates && key.state != State::PendingDeletion;
                let mut status = json!({ "KeyId": key.arn, "KeyRotationEnabled": rotates });
                if rotates {
                    status["RotationPeriodInDays"] = json!(key.rotation_period);
                }
                Ok(status)
            }
            // What the front has of importing is in `import`; the API is there to be refused.
            "GetParametersForImport" | "ImportKeyMaterial" => {
                let key = self.administer(caller, operation, body, "KeyId")?;
                match key.origin {
                    "EXTERNAL" => Err(KmsError::new(
                        400,
                        "UnknownOperationException",
                        "the front imports by `import`",
                    )),
                    _ => Err(key.unsupported()),
                }
            }
            "CreateAlias" | "UpdateAlias" => {
                let arn = self.administer(caller, operation, body, "TargetKeyId")?.arn.clone();
                let alias = text(body, "AliasName")?.to_owned();
                self.point_alias(&caller.region, &alias, &arn);
                Ok(Value::Null)
            }
            "ReplicateKey" => self.replicate_key(caller, body),
            "CreateGrant" => self.create_grant(caller, body),
            "RevokeGrant" => {
                let key = self.administer(caller, operation, body, "KeyId")?;
                let (arn, id) = (key.arn.clone(), text(body, "GrantId")?);
                let before = self.grants.len();
                self.grants.retain(|grant| grant.id != id || grant.key_arn != arn);
                if self.grants.len() == before {
                    return Err(KmsError::new(400, "NotFoundException", "no such grant"));
                }
                Ok(Value::Null)
            }
            "EnableKey"
            | "DisableKey"
            | "ScheduleKeyDeletion"
            | "CancelKeyDeletion"
            | "EnableKeyRotation"
            | "DisableKeyRotation"
            | "RotateKeyOnDemand"
            | "PutKeyPolicy"
            | "DeleteImportedKeyMaterial" => self.change(caller, operation, body),
            "ListGrants" | "ListKeyPolicies" | "ListResourceTags" | "ListKeys" | "ListAliases" => {
                self.list(caller, operation, body)
            }
            "ListKeyRotations" => {
                let key = self.administer(caller, operation, body, "KeyId")?;
                let entry = |m: &Material| {
                    let kind = if m.on_demand { "ON_DEMAND" } else { "AUTOMATIC" };
                    json!({ "KeyId": key.arn, "KeyMaterialId": HEXLOWER.encode(&m.id), "RotationType": kind })
                };
                let rotations: Option<Vec<_>> =
                    key.materials(|all| all.iter().skip(1).map(entry).collect());
                let rotations = rotations.ok_or_else(|| key.unsupported())?;
                Ok(json!({ "Rotations": rotations, "Truncated": false }))
            }
            other => Err(KmsError::new(
                400,
                "UnknownOperationException",
                format!("the front does not serve {other}"),
            )),
        }
    }

    fn describe_key(&self, caller: &Caller, body: &Value) -> Answer {
        let key = self.find(caller, text(body, "KeyId")?)?;
        self.authorise(caller, "DescribeKey", key, body, &Context::new(), None)?;
        Ok(json!({ "KeyMetadata": self.metadata(&key.arn) }))
    }

    pub(super) fn administer(
        &self,
        caller: &Caller,
        operation: &str,
        body: &Value,
        field: &str,
    ) -> Result<&Key, KmsError> {
        let key = self.find(caller, text(body, field)?)?;
        self.authorise(caller, operation, key, body, &Context::new(), None)?;
        Ok(key)
    }

    /// The replica has the id and the key material of the primary (API Reference, ReplicateKey),
    /// but for imported material, which is imported there again. KMS would give it the default key
    /// policy; here it has the primary's.
    fn replicate_key(&mut self, caller: &Caller, body: &Value) -> Answer {
        let key = self.administer(caller, "ReplicateKey", body, "KeyId")?;
        if key.origin == "EXTERNAL_KEY_STORE" {
            return Err(key.unsupported());
        }
        if !key.is_multi_region() {
            return Err(KmsError::new(
                400,
                "UnsupportedOperationException",
                "not a multi-Region primary key",
            ));
        }
        let (id, account, backing, policy) =
            (key.id.clone(), key.account.clone(), key.backing.clone(), key.policy.clone());
        let arn = self.insert_key(text(body, "ReplicaRegion")?, &account, &id, Some([0; 32]));
        let replica = self.key(&arn);
        (replica.backing, replica.policy) = (backing, policy);
        Ok(json!({ "ReplicaKeyMetadata": self.metadata(&arn) }))
    }

    fn create_grant(&mut self, caller: &Caller, body: &Value) -> Answer {
        let key = self.administer(caller, "CreateGrant", body, "KeyId")?;
        let key_arn = key.arn.clone();
        let operations =
            body["Operations"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let grant = Grant {
            id: HEXLOWER.encode(&random::<32>()),
            token: BASE64.encode(&random::<96>()),
            key_arn,
            grantee: text(body, "GranteePrincipal")?.to_owned(),
            operations: operations.map(ToOwned::to_owned).collect(),
            constraints: body["Constraints"].clone(),
            everywhere: !self.grants_are_slow,
        };
        let answer = json!({ "GrantId": grant.id, "GrantToken": grant.token });
        self.grants.push(grant);
        Ok(answer)
    }

    pub fn metadata(&self, arn: &str) -> Value {
        let key = self.keys.iter().find(|key| key.arn == arn).unwrap();
        let state = self.state_of(key);
        let mut metadata = json!({
            "AWSAccountId": key.account, "KeyId": key.id, "Arn": key.arn, "Enabled": state == State::Enabled,
            "KeyState": format!("{state:?}"), "KeyUsage": key.usage, "KeySpec": "SYMMETRIC_DEFAULT",
            "Origin": key.origin, "KeyManager": "CUSTOMER", "MultiRegion": key.is_multi_region(), "CreationDate": 1.7e9,
        });
        match &key.backing {
            Backing::Materials(_) if key.state != State::PendingImport => {
                metadata["CurrentKeyMaterialId"] = json!(key.current_material());
            }
            Backing::Materials(_) => {}
            // The specification has KMS ask the proxy for keyStatus and keyUsage here; KeyMetadata
            // of the API Reference has no place for them, and DescribeKey works while a key store
            // is disconnected. The front does not ask.
            Backing::External(External { store, key, .. }) => {
                metadata["CustomKeyStoreId"] = json!(store);
                metadata["XksKeyConfiguration"] = json!({ "Id": key });
            }
        }
        if let Some(deletion) = key.deletion {
            metadata["DeletionDate"] = json!(seconds(deletion));
        }
        if let Some(valid_to) = key.valid_to {
            metadata["ValidTo"] = json!(valid_to);
        }
        metadata
    }
}

/// As the protocol has times.
pub(super) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}
