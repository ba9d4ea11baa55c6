//! The keys of the front and what can be done with them. The API Reference is that of AWS KMS
//! (2014-11-01), the Guide the AWS KMS Developer Guide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::crypto::{Backing, External, Material, Usable, invalid_ciphertext, made_by};
use super::failure::Failure;
use super::key_store::{Connection, KeyStore};
use super::request::{Context, uuid};
use super::xks::{Asker, Network};
use super::{KmsError, random};

pub const ACCOUNT: &str = "111122223333";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Enabled,
    Disabled,
    PendingDeletion,
    PendingImport,
    /// While the primary of a multi-Region key changes. KMS itself goes on serving cryptographic
    /// operations then ("Key state table" in the Guide; UpdatePrimaryRegion in the API Reference).
    Updating,
    /// A replica that is being made.
    Creating,
    /// A custom key store that was disconnected.
    Unavailable,
}

pub struct Key {
    pub arn: String,
    pub region: String,
    pub account: String,
    pub id: String,
    pub state: State,
    pub policy: Value,
    pub origin: &'static str,
    pub usage: &'static str,
    /// Seconds since 1970.
    pub valid_to: Option<f64>,
    /// Imported and not yet rotated to.
    pub(super) next: Option<[u8; 32]>,
    pub rotates: bool,
    pub rotation_period: u64,
    /// When the waiting period of a deletion ends.
    pub deletion: Option<SystemTime>,
    pub backing: Backing,
}

impl Key {
    pub(super) fn is_multi_region(&self) -> bool {
        self.id.starts_with("mrk-")
    }

    /// Of a key whose cryptography is done here.
    pub(super) fn materials<T>(&self, look: impl FnOnce(&mut Vec<Material>) -> T) -> Option<T> {
        match &self.backing {
            Backing::Materials(materials) => Some(look(&mut materials.lock().unwrap())),
            Backing::External(_) => None,
        }
    }

    pub fn current_material(&self) -> Option<String> {
        self.materials(|materials| materials.last().map(|material| HEXLOWER.encode(&material.id)))
            .flatten()
    }

    /// "origin is EXTERNAL which is not valid for this operation": the Guide's words in "Key states
    /// of AWS KMS keys", where it says too that a key in a custom key store is refused with the
    /// same exception.
    pub(super) fn unsupported(&self) -> KmsError {
        let detail = format!(
            "{} origin is {} which is not valid for this operation.",
            self.arn, self.origin
        );
        KmsError::new(400, "UnsupportedOperationException", detail)
    }
}

pub struct Principal {
    pub arn: String,
    pub account: String,
    pub secret: String,
    pub session_token: Option<String>,
    pub expired: bool,
    /// Its identity policies.
    pub policies: Vec<Value>,
    pub traits: Traits,
}

/// What conditions see of a principal and of its requests.
#[derive(Clone, Debug, Default)]
pub struct Traits {
    pub tags: BTreeMap<String, String>,
    /// A role, or a user with temporary credentials.
    pub has_session: bool,
    /// Seconds since the second factor was shown, if it was.
    pub mfa_age: Option<u64>,
    /// The VPC endpoint through which its requests come.
    pub source_vpce: Option<String>,
    /// The service that asks on its behalf.
    pub via_service: Option<String>,
}

pub(super) struct Grant {
    pub(super) id: String,
    pub(super) token: String,
    pub(super) key_arn: String,
    pub(super) grantee: String,
    pub(super) operations: BTreeSet<String>,
    /// `EncryptionContextSubset` and `EncryptionContextEquals`.
    pub(super) constraints: Value,
    pub(super) everywhere: bool,
}

/// Who calls, and from where.
pub struct Caller {
    pub principal: String,
    pub account: String,
    pub region: String,
    pub request_id: String,
    pub traits: Traits,
}

#[derive(Default)]
pub struct World {
    pub keys: Vec<Key>,
    pub stores: Vec<KeyStore>,
    /// How KMS reaches the proxies of external key stores.
    pub network: Arc<RwLock<Network>>,
    /// How long it takes to connect a key store, or to disconnect it: minutes in KMS.
    pub connecting_takes: Duration,
    pub(super) aliases: BTreeMap<(String, String), String>,
    pub principals: BTreeMap<String, Principal>,
    /// Of the account, in its organisation.
    pub service_control_policies: Vec<Value>,
    pub(super) grants: Vec<Grant>,
    /// New grants work for nobody who does not show the token ("Grants in AWS KMS" in the Guide:
    /// "Grant token", "Eventual consistency (for grants)").
    pub grants_are_slow: bool,
    /// How far the clock of KMS is ahead of this machine's.
    pub ahead: Duration,
}

impl World {
    pub fn now(&self) -> SystemTime {
        SystemTime::now() + self.ahead
    }

    pub fn create_key(&mut self, region: &str, multi_region: bool) -> String {
        let id =
            if multi_region { format!("mrk-{}", HEXLOWER.encode(&random::<16>())) } else { uuid() };
        self.insert_key(region, ACCOUNT, &id, Some(random()))
    }

    /// A key with this id and, unless it waits for an import, this material.
    pub fn insert_key(
        &mut self,
        region: &str,
        account: &str,
        id: &str,
        material: Option<[u8; 32]>,
    ) -> String {
        let materials = material.map(|key| Material::new(id, key, false)).into_iter().collect();
        let backing = Backing::Materials(Arc::new(Mutex::new(materials)));
        let arn = self.insert(
            region,
            account,
            id,
            if material.is_some() { "AWS_KMS" } else { "EXTERNAL" },
            backing,
        );
        if material.is_none() {
            self.key(&arn).state = State::PendingImport;
        }
        arn
    }

    pub fn insert(
        &mut self,
        region: &str,
        account: &str,
        id: &str,
        origin: &'static str,
        backing: Backing,
    ) -> String {
        let arn = format!("arn:aws:kms:{region}:{account}:key/{id}");
        self.keys.push(Key {
            arn: arn.clone(),
            region: region.to_owned(),
            account: account.to_owned(),
            id: id.to_owned(),
            state: State::Enabled,
            // "Default key policy" of the Guide, for a key that is not made in the console: the
            // account decides by its identity policies.
            policy: json!({ "Version": "2012-10-17", "Statement": [{
                "Sid": "Enable IAM User Permissions", "Effect": "Allow",
                "Principal": { "AWS": format!("arn:aws:iam::{account}:root") }, "Action": "kms:*", "Resource": "*",
            }] }),
            origin,
            usage: "ENCRYPT_DECRYPT",
            valid_to: None,
            next: None,
            rotates: false,
            rotation_period: 365,
            deletion: None,
            backing,
        });
        arn
    }

    pub fn key(&mut self, arn: &str) -> &mut Key {
        self.keys
            .iter_mut()
            .find(|key| key.arn == arn)
            .unwrap_or_else(|| panic!("the front has no key {arn}"))
    }

    /// What ImportKeyMaterial comes to, without the envelope of RSA in which it travels. Importing
    /// the same again makes the key usable again; another material is refused (ImportKeyMaterial
    /// with ImportType EXISTING_KEY_MATERIAL, the default after the first import, and
    /// IncorrectKeyMaterialException in the API Reference). KMS wants every material of a rotated
    /// key back, this front the last one.
    pub fn import(
        &mut self,
        arn: &str,
        material: [u8; 32],
        valid_to: Option<f64>,
    ) -> Result<(), KmsError> {
        let key = self.key(arn);
        let new = Material::new(&key.id, material, false);
        let imported = key.materials(|materials| match materials.last() {
            Some(old) if old.id != new.id => {
                Err(KmsError::new(400, "IncorrectKeyMaterialException", "other material"))
            }
            Some(_) => Ok(()),
            None => {
                materials.push(new);
                Ok(())
            }
        });
        imported.ok_or_else(|| key.unsupported())??;
        (key.state, key.valid_to) = (State::Enabled, valid_to);
        Ok(())
    }

    /// The same with ImportType NEW_KEY_MATERIAL: RotateKeyOnDemand makes it the current one.
    pub fn import_next(&mut self, arn: &str, material: [u8; 32]) {
        self.key(arn).next = Some(material);
    }

    pub fn rotate(&mut self, arn: &str, on_demand: bool) {
        let key = self.key(arn);
        let (id, material) = (key.id.clone(), key.next.take().unwrap_or_else(random));
        let rotated =
            key.materials(|materials| materials.push(Material::new(&id, material, on_demand)));
        assert!(rotated.is_some(), "the external key manager rotates {arn}");
    }

    pub fn delete(&mut self, arn: &str) {
        self.keys.retain(|key| key.arn != arn);
    }

    pub fn point_alias(&mut self, region: &str, alias: &str, arn: &str) {
        self.aliases.insert((region.to_owned(), alias.to_owned()), arn.to_owned());
    }

    /// "To specify a KMS key, use its key ID, key ARN, alias name, or alias ARN" (API Reference);
    /// of this Region only.
    pub fn find(&self, caller: &Caller, name: &str) -> Result<&Key, KmsError> {
        let not_found = || {
            let what = if name.contains("alias/") { "Alias" } else { "Key" };
            KmsError::new(400, "NotFoundException", format!("{what} '{name}' does not exist"))
        };
        let alias = match name.split_once(":alias/") {
            Some((arn, alias)) if arn.contains(&format!(":{}:", caller.region)) => {
                Some(format!("alias/{alias}"))
            }
            _ if name.starts_with("alias/") => Some(name.to_owned()),
            _ => None,
        };
        let arn = alias.and_then(|alias| self.aliases.get(&(caller.region.clone(), alias)));
        let wanted = arn.map_or(name, String::as_str);
        let mut keys = self.keys.iter();
        // An id or alias means a key of the caller's own account.
        keys.find(|key| {
            key.region == caller.region
                // "After the waiting period ends, KMS deletes the KMS key" (API Reference,
                // ScheduleKeyDeletion).
                && key.deletion.is_none_or(|deletion| self.now() < deletion)
                && (key.arn == wanted || key.id == wanted && key.account == caller.account)
        })
        .ok_or_else(not_found)
    }

    pub fn is_granted(
        &self,
        caller: &Caller,
        action: &str,
        key: &Key,
        body: &Value,
        context: &Context,
    ) -> bool {
        let tokens: Vec<_> = body["GrantTokens"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        self.grants.iter().any(|grant| {
            let subset = |wanted: &Value| {
                wanted.as_object().is_some_and(|wanted| {
                    wanted.iter().all(|(name, value)| {
                        context.get(name).map(String::as_str) == value.as_str()
                    })
                })
            };
            let (equals, part) = (
                &grant.constraints["EncryptionContextEquals"],
                &grant.constraints["EncryptionContextSubset"],
            );
            grant.key_arn == key.arn
                && grant.grantee == caller.principal
                && grant.operations.contains(action)
                && (grant.everywhere || tokens.contains(&grant.token.as_str()))
                && (part.is_null() || subset(part))
                && (equals.is_null()
                    || subset(equals)
                        && equals.as_object().map_or(0, serde_json::Map::len) == context.len())
        })
    }

    fn store_of(&self, key: &Key) -> Option<&KeyStore> {
        let Backing::External(External { store, .. }) = &key.backing else { return None };
        self.stores.iter().find(|candidate| candidate.id == *store)
    }

    /// A key in a key store that was disconnected is Unavailable until it is connected again, and
    /// has its old state then; a deletion stays pending ("Key states of AWS KMS keys" in the Guide,
    /// and "Key state errors" of its troubleshooting).
    pub(super) fn state_of(&self, key: &Key) -> State {
        let is_connected =
            self.store_of(key).is_none_or(|store| store.connection == Connection::Connected);
        if is_connected || key.state == State::PendingDeletion {
            key.state
        } else {
            State::Unavailable
        }
    }

    /// "Key states of AWS KMS keys" in the Guide, "Key state table" and its notes 1 to 5, 11
    /// and 14: which state fails which operation, and how. Note 15, the key being updated, is for
    /// managing it only.
    pub fn usable(&self, caller: &Caller, operation: &str, key: &Key) -> Result<Usable, KmsError> {
        let invalid = |what: &str| {
            Err(KmsError::new(400, "KMSInvalidStateException", format!("{} {what}.", key.arn)))
        };
        let store = self.store_of(key);
        match self.state_of(key) {
            State::Enabled | State::Updating => {}
            State::Disabled => {
                return Err(KmsError::new(
                    400,
                    "DisabledException",
                    format!("{} is disabled.", key.arn),
                ));
            }
            State::PendingDeletion => return invalid("is pending deletion"),
            State::PendingImport => return invalid("is pending import"),
            State::Creating => return invalid("is creating"),
            // The Guide has two texts for a key store that is not connected and does not say when
            // it gives which. The front says "is unavailable" where it was disconnected on purpose,
            // and the specification's text ("Custom key store is not in CONNECTED state") on the
            // way there and back.
            State::Unavailable => {
                return match store.map(|store| store.connection) {
                    None | Some(Connection::Disconnected) => invalid("is unavailable"),
                    Some(_) => Err(Failure::NotConnected.of_cryptography()),
                };
            }
        }
        if key.usage != "ENCRYPT_DECRYPT" {
            let detail = format!(
                "{} key usage is {} which is not valid for this operation.",
                key.arn, key.usage
            );
            return Err(KmsError::new(400, "InvalidKeyUsageException", detail));
        }
        store.map_or(Ok(()), KeyStore::count)?;
        let asker = Asker { key_arn: Some(key.arn.clone()), ..self.asker(caller, operation) };
        Ok(Usable { arn: key.arn.clone(), id: key.id.clone(), backing: key.backing.clone(), asker })
    }

    pub fn asker(&self, caller: &Caller, operation: &str) -> Asker {
        Asker {
            principal: Some(caller.principal.clone()),
            key_arn: None,
            operation: operation.to_owned(),
            request_id: caller.request_id.clone(),
            now: self.now(),
        }
    }

    /// The key of a ciphertext: the one that is named, which has to be the one that made it, else
    /// the one in the ciphertext. "If you specify a different KMS key, the Decrypt operation throws
    /// an IncorrectKeyException" (API Reference).
    pub fn key_of(&self, caller: &Caller, named: &Value, blob: &[u8]) -> Result<&Key, KmsError> {
        let named = named.as_str().map(|name| self.find(caller, name)).transpose()?;
        let made_by = made_by(blob).ok_or_else(invalid_ciphertext)?;
        match named {
            Some(key) if made_by(&key.id) => Ok(key),
            Some(_) if self.keys.iter().any(|key| made_by(&key.id)) => {
                let detail = "The key ID in the request does not identify a CMK that can perform this operation.";
                Err(KmsError::new(400, "IncorrectKeyException", detail))
            }
            Some(_) => Err(invalid_ciphertext()),
            None => {
                let mut keys = self.keys.iter();
                keys.find(|key| key.region == caller.region && made_by(&key.id))
                    .ok_or_else(invalid_ciphertext)
            }
        }
    }
}
