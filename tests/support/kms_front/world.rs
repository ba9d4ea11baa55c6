//! The keys of the front and what can be done with them. The API Reference is that of AWS KMS (2014-11-01), the Guide the AWS KMS Developer Guide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::policy::{self, Question, Verdict};
use super::{KmsError, random};

pub const ACCOUNT: &str = "111122223333";

type Answer = Result<Value, KmsError>;
type Context = BTreeMap<String, String>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Enabled,
    Disabled,
    PendingDeletion,
    PendingImport,
    /// While the primary of a multi-Region key changes. KMS itself goes on serving cryptographic operations then ("Key state table" in the Guide;
    /// UpdatePrimaryRegion in the API Reference).
    Updating,
    /// A replica that is being made.
    Creating,
    /// A custom key store that was disconnected.
    Unavailable,
}

/// What does the cryptography of a key. Keys in external key stores will be another kind.
#[derive(Clone)]
pub enum Backing {
    /// Every key material there ever was, the current one last; related multi-Region keys share them.
    Materials(Arc<Mutex<Vec<Material>>>),
}

pub struct Material {
    pub id: [u8; 32],
    key: [u8; 32],
    on_demand: bool,
}

impl Material {
    fn new(key_id: &str, key: [u8; 32], on_demand: bool) -> Self {
        let id = Sha256::new().chain_update(b"material").chain_update(key_id).chain_update(key).finalize().into();
        Self { id, key, on_demand }
    }
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
    next: Option<[u8; 32]>,
    pub rotates: bool,
    pub backing: Backing,
}

impl Key {
    fn is_multi_region(&self) -> bool {
        self.id.starts_with("mrk-")
    }

    fn materials<T>(&self, look: impl FnOnce(&mut Vec<Material>) -> T) -> T {
        let Backing::Materials(materials) = &self.backing;
        look(&mut materials.lock().unwrap())
    }

    pub fn current_material(&self) -> Option<String> {
        self.materials(|materials| materials.last().map(|material| HEXLOWER.encode(&material.id)))
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
}

struct Grant {
    id: String,
    token: String,
    key_arn: String,
    grantee: String,
    operations: BTreeSet<String>,
    /// `EncryptionContextSubset` and `EncryptionContextEquals`.
    constraints: Value,
    everywhere: bool,
}

/// Who calls, and from where.
pub struct Caller {
    pub principal: String,
    pub account: String,
    pub region: String,
}

#[derive(Default)]
pub struct World {
    pub keys: Vec<Key>,
    aliases: BTreeMap<(String, String), String>,
    pub principals: BTreeMap<String, Principal>,
    grants: Vec<Grant>,
    /// New grants work for nobody who does not show the token ("Grants in AWS KMS" in the Guide: "Grant token", "Eventual consistency (for grants)").
    pub grants_are_slow: bool,
    /// How far the clock of KMS is ahead of this machine's.
    pub ahead: Duration,
}

fn text<'a>(body: &'a Value, name: &str) -> Result<&'a str, KmsError> {
    body[name].as_str().ok_or_else(|| {
        KmsError::validation(format!("Value null at '{name}' failed to satisfy constraint: Member must not be null"))
    })
}

fn bytes(body: &Value, name: &str, most: usize) -> Result<Vec<u8>, KmsError> {
    let bytes = BASE64
        .decode(text(body, name)?.as_bytes())
        .map_err(|_| KmsError::new(400, "SerializationException", "base64"))?;
    if bytes.is_empty() || bytes.len() > most {
        return Err(KmsError::validation(format!(
            "Value at '{name}' failed to satisfy constraint: length 1 to {most}"
        )));
    }
    Ok(bytes)
}

fn context(body: &Value, name: &str) -> Result<Context, KmsError> {
    let mut context = Context::new();
    for (name, value) in body[name].as_object().into_iter().flatten() {
        context.insert(name.clone(), value.as_str().ok_or_else(|| KmsError::validation("context".into()))?.to_owned());
    }
    // No page of KMS gives a limit; 8192 bytes of additional authenticated data are what its specification asks of a proxy of an external key store.
    if context.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > 8192 {
        return Err(KmsError::validation("encryption context exceeds 8192 bytes".into()));
    }
    Ok(context)
}

fn invalid_ciphertext() -> KmsError {
    // KMS answers with no message: clients of it show nothing after "when calling the Decrypt operation:".
    KmsError::new(400, "InvalidCiphertextException", "")
}

/// "AWS KMS uses the encryption context as additional authenticated data (AAD)" (the Guide, "Encryption context").
fn aad(header: &[u8], context: &Context) -> Vec<u8> {
    let context = serde_json::to_vec(context).unwrap();
    [&header.len().to_be_bytes()[..], header, &context].concat()
}

const MAGIC: [u8; 4] = [1, 2, 2, 0];
/// Magic, key, key material.
const FIXED: usize = 4 + 32 + 32;

impl World {
    pub fn now(&self) -> SystemTime {
        SystemTime::now() + self.ahead
    }

    pub fn create_key(&mut self, region: &str, multi_region: bool) -> String {
        let id = HEXLOWER.encode(&random::<16>());
        let id = if multi_region {
            format!("mrk-{id}")
        } else {
            [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-")
        };
        self.insert_key(region, ACCOUNT, &id, Some(random()))
    }

    /// A key with this id and, unless it waits for an import, this material.
    pub fn insert_key(&mut self, region: &str, account: &str, id: &str, material: Option<[u8; 32]>) -> String {
        let arn = format!("arn:aws:kms:{region}:{account}:key/{id}");
        let materials = material.map(|key| Material::new(id, key, false)).into_iter().collect();
        self.keys.push(Key {
            arn: arn.clone(),
            region: region.to_owned(),
            account: account.to_owned(),
            id: id.to_owned(),
            state: if material.is_some() { State::Enabled } else { State::PendingImport },
            // "Default key policy" of the Guide, for a key that is not made in the console: the account decides by its identity policies.
            policy: json!({ "Version": "2012-10-17", "Statement": [{
                "Sid": "Enable IAM User Permissions", "Effect": "Allow",
                "Principal": { "AWS": format!("arn:aws:iam::{account}:root") }, "Action": "kms:*", "Resource": "*",
            }] }),
            origin: if material.is_some() { "AWS_KMS" } else { "EXTERNAL" },
            usage: "ENCRYPT_DECRYPT",
            valid_to: None,
            next: None,
            rotates: false,
            backing: Backing::Materials(Arc::new(Mutex::new(materials))),
        });
        arn
    }

    pub fn key(&mut self, arn: &str) -> &mut Key {
        self.keys.iter_mut().find(|key| key.arn == arn).unwrap_or_else(|| panic!("the front has no key {arn}"))
    }

    /// What ImportKeyMaterial comes to, without the envelope of RSA in which it travels. Importing the same again makes
    /// the key usable again; another material is refused (ImportKeyMaterial with ImportType EXISTING_KEY_MATERIAL, the default after the first
    /// import, and IncorrectKeyMaterialException in the API Reference). KMS wants every material of a rotated key back, this front the last one.
    pub fn import(&mut self, arn: &str, material: [u8; 32], valid_to: Option<f64>) -> Result<(), KmsError> {
        let key = self.key(arn);
        let new = Material::new(&key.id, material, false);
        key.materials(|materials| match materials.last() {
            Some(old) if old.id != new.id => Err(KmsError::new(400, "IncorrectKeyMaterialException", "other material")),
            Some(_) => Ok(()),
            None => {
                materials.push(new);
                Ok(())
            }
        })?;
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
        key.materials(|materials| materials.push(Material::new(&id, material, on_demand)));
    }

    pub fn delete(&mut self, arn: &str) {
        self.keys.retain(|key| key.arn != arn);
    }

    pub fn point_alias(&mut self, region: &str, alias: &str, arn: &str) {
        self.aliases.insert((region.to_owned(), alias.to_owned()), arn.to_owned());
    }

    /// "To specify a KMS key, use its key ID, key ARN, alias name, or alias ARN" (API Reference); of this Region only.
    fn find(&self, caller: &Caller, name: &str) -> Result<&Key, KmsError> {
        let not_found = || {
            let what = if name.contains("alias/") { "Alias" } else { "Key" };
            KmsError::new(400, "NotFoundException", format!("{what} '{name}' does not exist"))
        };
        let alias = match name.split_once(":alias/") {
            Some((arn, alias)) if arn.contains(&format!(":{}:", caller.region)) => Some(format!("alias/{alias}")),
            _ if name.starts_with("alias/") => Some(name.to_owned()),
            _ => None,
        };
        let arn = alias.and_then(|alias| self.aliases.get(&(caller.region.clone(), alias)));
        let wanted = arn.map_or(name, String::as_str);
        let mut keys = self.keys.iter();
        // An id or alias means a key of the caller's own account.
        keys.find(|key| {
            key.region == caller.region && (key.arn == wanted || key.id == wanted && key.account == caller.account)
        })
        .ok_or_else(not_found)
    }

    /// Key policy, identity policies and grants, in the order of the IAM User Guide.
    fn authorise(
        &self,
        caller: &Caller,
        action: &str,
        key: &Key,
        body: &Value,
        context: &Context,
        same_key: Option<bool>,
    ) -> Result<(), KmsError> {
        let question = Question {
            principal: &caller.principal,
            account: &caller.account,
            action: &format!("kms:{action}"),
            resource: &key.arn,
            context,
            same_key,
        };
        let by_key = policy::evaluate(&key.policy, &question);
        let identity: Vec<_> =
            self.principals.values().filter(|p| p.arn == caller.principal).flat_map(|p| &p.policies).collect();
        let by_identity: Vec<_> = identity.iter().map(|policy| policy::evaluate(policy, &question)).collect();
        let is_denied = by_key == Verdict::Denied || by_identity.contains(&Verdict::Denied);
        let is_allowed = by_key == Verdict::Allowed
            || by_key == Verdict::LeftToTheAccount && by_identity.contains(&Verdict::Allowed)
            || self.is_granted(caller, action, key, body, context);
        if !is_denied && is_allowed {
            return Ok(());
        }
        let why = if is_denied { "with an explicit deny" } else { "because no policy allows it" };
        let (who, what) = (&caller.principal, &question.action);
        let detail = format!("User: {who} is not authorized to perform: {what} on resource: {} {why}", key.arn);
        Err(KmsError::new(400, "AccessDeniedException", detail))
    }

    fn is_granted(&self, caller: &Caller, action: &str, key: &Key, body: &Value, context: &Context) -> bool {
        let tokens: Vec<_> = body["GrantTokens"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        self.grants.iter().any(|grant| {
            let subset = |wanted: &Value| {
                wanted.as_object().is_some_and(|wanted| {
                    wanted.iter().all(|(name, value)| context.get(name).map(String::as_str) == value.as_str())
                })
            };
            let (equals, part) =
                (&grant.constraints["EncryptionContextEquals"], &grant.constraints["EncryptionContextSubset"]);
            grant.key_arn == key.arn
                && grant.grantee == caller.principal
                && grant.operations.contains(action)
                && (grant.everywhere || tokens.contains(&grant.token.as_str()))
                && (part.is_null() || subset(part))
                && (equals.is_null()
                    || subset(equals) && equals.as_object().map_or(0, serde_json::Map::len) == context.len())
        })
    }

    /// "Key states of AWS KMS keys" in the Guide, "Key state table" and its notes [1] to [5], [11] and [14]: which state fails which operation, and how.
    /// [15], the key being updated, is for managing it only.
    fn usable(key: &Key) -> Result<(), KmsError> {
        let invalid = |what: &str| Err(KmsError::new(400, "KMSInvalidStateException", format!("{} {what}.", key.arn)));
        match key.state {
            State::Enabled | State::Updating => {}
            State::Disabled => {
                return Err(KmsError::new(400, "DisabledException", format!("{} is disabled.", key.arn)));
            }
            State::PendingDeletion => return invalid("is pending deletion"),
            State::PendingImport => return invalid("is pending import"),
            State::Creating => return invalid("is creating"),
            State::Unavailable => return invalid("is unavailable"),
        }
        if key.usage != "ENCRYPT_DECRYPT" {
            let detail = format!("{} key usage is {} which is not valid for this operation.", key.arn, key.usage);
            return Err(KmsError::new(400, "InvalidKeyUsageException", detail));
        }
        Ok(())
    }

    fn seal(key: &Key, context: &Context, plaintext: &[u8]) -> (Vec<u8>, String) {
        let handle: [u8; 32] = Sha256::digest(&key.id).into();
        let (id, secret) = key.materials(|materials| materials.last().map(|m| (m.id, m.key)).unwrap());
        // 167 to 184 bytes for a DEK: nobody is to rely on a length.
        let padding = 38 + random::<1>()[0] % 18;
        let mut blob = [&MAGIC[..], &handle, &id, &[padding]].concat();
        blob.resize(blob.len() + usize::from(padding), padding);
        let nonce = random::<12>();
        let aad = aad(&blob, context);
        let mut sealed = plaintext.to_vec();
        let cipher = Aes256Gcm::new((&secret).into());
        let tag = cipher.encrypt_inout_detached((&nonce).into(), &aad, sealed.as_mut_slice().into()).unwrap();
        blob.extend_from_slice(&nonce);
        blob.extend_from_slice(&sealed);
        blob.extend_from_slice(&tag);
        (blob, HEXLOWER.encode(&id))
    }

    fn open(key: &Key, context: &Context, blob: &[u8]) -> Result<(Vec<u8>, String), KmsError> {
        let padding = usize::from(*blob.get(FIXED).ok_or_else(invalid_ciphertext)?);
        let (header, rest) = blob.split_at_checked(FIXED + 1 + padding).ok_or_else(invalid_ciphertext)?;
        let (nonce, sealed) = rest.split_at_checked(12).ok_or_else(invalid_ciphertext)?;
        let material = header[36..68].to_vec();
        let secret = key.materials(|all| all.iter().find(|m| m.id[..] == material[..]).map(|m| m.key));
        let cipher = Aes256Gcm::new((&secret.ok_or_else(invalid_ciphertext)?).into());
        let (sealed, tag) = sealed.split_last_chunk::<16>().ok_or_else(invalid_ciphertext)?;
        let (nonce, mut plaintext): (&[u8; 12], _) = (nonce.try_into().unwrap(), sealed.to_vec());
        cipher
            .decrypt_inout_detached(nonce.into(), &aad(header, context), plaintext.as_mut_slice().into(), tag.into())
            .map_err(|_| invalid_ciphertext())?;
        Ok((plaintext, HEXLOWER.encode(&material)))
    }

    /// The key of a ciphertext: the one that is named, which has to be the one that made it, else the one in the ciphertext. "If you identify a different
    /// KMS key, the Decrypt operation throws an IncorrectKeyException" (API Reference, Decrypt, KeyId).
    fn key_of(&self, caller: &Caller, named: &Value, blob: &[u8]) -> Result<&Key, KmsError> {
        let named = named.as_str().map(|name| self.find(caller, name)).transpose()?;
        if blob.get(..4) != Some(&MAGIC[..]) || blob.len() < FIXED {
            return Err(invalid_ciphertext());
        }
        let made_by = |key: &Key| Sha256::digest(&key.id)[..] == blob[4..36];
        match named {
            Some(key) if made_by(key) => Ok(key),
            Some(_) if self.keys.iter().any(made_by) => {
                let detail = "The key ID in the request does not identify a CMK that can perform this operation.";
                Err(KmsError::new(400, "IncorrectKeyException", detail))
            }
            Some(_) => Err(invalid_ciphertext()),
            None => {
                let mut keys = self.keys.iter();
                keys.find(|key| key.region == caller.region && made_by(key)).ok_or_else(invalid_ciphertext)
            }
        }
    }

    /// One request. `Err` is the answer of KMS to a request that fails.
    pub fn answer(&mut self, caller: &Caller, operation: &str, body: &Value) -> Answer {
        match operation {
            "Encrypt" => self.encrypt(caller, body),
            "GenerateDataKey" => self.generate_data_key(caller, body),
            "Decrypt" => self.decrypt(caller, body),
            "ReEncrypt" => self.re_encrypt(caller, body),
            "DescribeKey" => self.describe_key(caller, body),
            "CreateKey" => {
                let arn = self.create_key(&caller.region, body["MultiRegion"] == true);
                Ok(json!({ "KeyMetadata": metadata(self.key(&arn)) }))
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
            | "RotateKeyOnDemand"
            | "PutKeyPolicy"
            | "DeleteImportedKeyMaterial" => self.change(caller, operation, body),
            "ListKeyRotations" => {
                let key = self.administer(caller, operation, body, "KeyId")?;
                let entry = |m: &Material| {
                    let kind = if m.on_demand { "ON_DEMAND" } else { "AUTOMATIC" };
                    json!({ "KeyId": key.arn, "KeyMaterialId": HEXLOWER.encode(&m.id), "RotationType": kind })
                };
                let rotations: Vec<_> = key.materials(|all| all.iter().skip(1).map(entry).collect());
                Ok(json!({ "Rotations": rotations, "Truncated": false }))
            }
            other => Err(KmsError::new(400, "UnknownOperationException", format!("the front does not serve {other}"))),
        }
    }

    fn encrypt(&self, caller: &Caller, body: &Value) -> Answer {
        let key = self.find(caller, text(body, "KeyId")?)?;
        let context = context(body, "EncryptionContext")?;
        self.authorise(caller, "Encrypt", key, body, &context, None)?;
        Self::usable(key)?;
        let (blob, _) = Self::seal(key, &context, &bytes(body, "Plaintext", 4096)?);
        // No KeyMaterialId here (API Reference, Encrypt, "Response Elements"), unlike in the answers of the other three.
        Ok(
            json!({ "CiphertextBlob": BASE64.encode(&blob), "KeyId": key.arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT" }),
        )
    }

    fn generate_data_key(&self, caller: &Caller, body: &Value) -> Answer {
        let key = self.find(caller, text(body, "KeyId")?)?;
        let context = context(body, "EncryptionContext")?;
        self.authorise(caller, "GenerateDataKey", key, body, &context, None)?;
        Self::usable(key)?;
        if body["KeySpec"] != "AES_256" {
            return Err(KmsError::validation("the front makes AES_256 data keys".into()));
        }
        let plaintext = random::<32>();
        let (blob, material) = Self::seal(key, &context, &plaintext);
        Ok(json!({
            "CiphertextBlob": BASE64.encode(&blob), "Plaintext": BASE64.encode(&plaintext),
            "KeyId": key.arn, "KeyMaterialId": material,
        }))
    }

    fn decrypt(&self, caller: &Caller, body: &Value) -> Answer {
        let blob = bytes(body, "CiphertextBlob", 6144)?;
        let key = self.key_of(caller, &body["KeyId"], &blob)?;
        let context = context(body, "EncryptionContext")?;
        self.authorise(caller, "Decrypt", key, body, &context, None)?;
        Self::usable(key)?;
        let (plaintext, material) = Self::open(key, &context, &blob)?;
        Ok(json!({
            "Plaintext": BASE64.encode(&plaintext), "KeyId": key.arn, "KeyMaterialId": material,
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        }))
    }

    /// Needs kms:ReEncryptFrom on the one key and kms:ReEncryptTo on the other (API Reference, ReEncrypt, "Required permissions").
    fn re_encrypt(&self, caller: &Caller, body: &Value) -> Answer {
        let blob = bytes(body, "CiphertextBlob", 6144)?;
        let to = self.find(caller, text(body, "DestinationKeyId")?)?;
        let from = self.key_of(caller, &body["SourceKeyId"], &blob)?;
        let (before, after) =
            (context(body, "SourceEncryptionContext")?, context(body, "DestinationEncryptionContext")?);
        let same = Some(from.arn == to.arn);
        self.authorise(caller, "ReEncryptFrom", from, body, &before, same)?;
        self.authorise(caller, "ReEncryptTo", to, body, &after, same)?;
        Self::usable(from)?;
        Self::usable(to)?;
        let (plaintext, source_material) = Self::open(from, &before, &blob)?;
        let (blob, material) = Self::seal(to, &after, &plaintext);
        Ok(json!({
            "CiphertextBlob": BASE64.encode(&blob), "SourceKeyId": from.arn, "KeyId": to.arn,
            "SourceKeyMaterialId": source_material, "DestinationKeyMaterialId": material,
        }))
    }

    fn describe_key(&self, caller: &Caller, body: &Value) -> Answer {
        let key = self.find(caller, text(body, "KeyId")?)?;
        self.authorise(caller, "DescribeKey", key, body, &Context::new(), None)?;
        Ok(json!({ "KeyMetadata": metadata(key) }))
    }

    fn administer(&self, caller: &Caller, operation: &str, body: &Value, field: &str) -> Result<&Key, KmsError> {
        let key = self.find(caller, text(body, field)?)?;
        self.authorise(caller, operation, key, body, &Context::new(), None)?;
        Ok(key)
    }

    fn change(&mut self, caller: &Caller, operation: &str, body: &Value) -> Answer {
        let key = self.administer(caller, operation, body, "KeyId")?;
        let (arn, state, is_imported) = (key.arn.clone(), key.state, key.origin == "EXTERNAL");
        let pending = || Err(KmsError::new(400, "KMSInvalidStateException", format!("{arn} is pending deletion.")));
        if state == State::PendingDeletion && operation != "CancelKeyDeletion" {
            return pending();
        }
        match operation {
            "EnableKey" => self.key(&arn).state = State::Enabled,
            "DisableKey" => self.key(&arn).state = State::Disabled,
            "ScheduleKeyDeletion" => self.key(&arn).state = State::PendingDeletion,
            // "When this operation succeeds, the key state of the KMS key is Disabled" (API Reference, CancelKeyDeletion).
            "CancelKeyDeletion" => self.key(&arn).state = State::Disabled,
            "PutKeyPolicy" => {
                let policy: Value = serde_json::from_str(text(body, "Policy")?).unwrap_or_default();
                policy::check(&policy).map_err(|what| KmsError::new(400, "MalformedPolicyDocumentException", what))?;
                self.key(&arn).policy = policy;
            }
            // Imported material does not rotate by itself (API Reference, EnableKeyRotation), and on demand only to what was imported for it
            // (RotateKeyOnDemand). Which exception says so is not documented.
            "EnableKeyRotation" if is_imported => {
                return Err(KmsError::new(400, "UnsupportedOperationException", "imported key material"));
            }
            "RotateKeyOnDemand" if is_imported && self.key(&arn).next.is_none() => {
                let detail = format!("{arn} has no key material that is pending rotation.");
                return Err(KmsError::new(400, "KMSInvalidStateException", detail));
            }
            "EnableKeyRotation" => self.key(&arn).rotates = true,
            "RotateKeyOnDemand" => self.rotate(&arn, true),
            "DeleteImportedKeyMaterial" if !is_imported => {
                return Err(KmsError::new(400, "UnsupportedOperationException", "no imported key material"));
            }
            "DeleteImportedKeyMaterial" => self.key(&arn).state = State::PendingImport,
            _ => unreachable!("{operation}"),
        }
        Ok(json!({ "KeyId": arn }))
    }

    /// The replica has the id and the key material of the primary (API Reference, ReplicateKey), but for imported material, which is imported there anew.
    /// KMS would give it the default key policy; here it has the primary's.
    fn replicate_key(&mut self, caller: &Caller, body: &Value) -> Answer {
        let key = self.administer(caller, "ReplicateKey", body, "KeyId")?;
        if !key.is_multi_region() {
            return Err(KmsError::new(400, "UnsupportedOperationException", "not a multi-Region primary key"));
        }
        let (id, account, backing, policy) =
            (key.id.clone(), key.account.clone(), key.backing.clone(), key.policy.clone());
        let arn = self.insert_key(text(body, "ReplicaRegion")?, &account, &id, Some([0; 32]));
        let replica = self.key(&arn);
        (replica.backing, replica.policy) = (backing, policy);
        Ok(json!({ "ReplicaKeyMetadata": metadata(self.key(&arn)) }))
    }

    fn create_grant(&mut self, caller: &Caller, body: &Value) -> Answer {
        let key = self.administer(caller, "CreateGrant", body, "KeyId")?;
        let key_arn = key.arn.clone();
        let operations = body["Operations"].as_array().into_iter().flatten().filter_map(Value::as_str);
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
}

fn metadata(key: &Key) -> Value {
    let mut metadata = json!({
        "AWSAccountId": key.account, "KeyId": key.id, "Arn": key.arn, "Enabled": key.state == State::Enabled,
        "KeyState": format!("{:?}", key.state), "KeyUsage": key.usage, "KeySpec": "SYMMETRIC_DEFAULT",
        "Origin": key.origin, "KeyManager": "CUSTOMER", "MultiRegion": key.is_multi_region(), "CreationDate": 1.7e9,
    });
    if key.state != State::PendingImport {
        metadata["CurrentKeyMaterialId"] = json!(key.current_material());
    }
    if let Some(valid_to) = key.valid_to {
        metadata["ValidTo"] = json!(valid_to);
    }
    metadata
}
