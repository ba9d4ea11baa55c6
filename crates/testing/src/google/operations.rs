//! The methods of `projects.locations.keyRings.cryptoKeys` and of their versions that services and
//! administrators use. Source of each: the REST reference of Cloud KMS, v1
//! (cloud.google.com/kms/docs/reference/rest/v1/projects.locations.keyRings.cryptoKeys).

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD};
use serde_json::{Value, json};

use super::ekm::EkmFault;
use super::status::{Code, Status, not_enabled, not_found};
use super::world::{Key, Principal, Protection, State, World};
use super::{crc32c, random};
use crate::outputs::note_dek;

pub type Answer = Result<Value, Status>;

/// "Must be no larger than 64KiB. […] For HSM keys, the combined length of the plaintext and
/// additionalAuthenticatedData fields must be no larger than 8KiB."
const MOST: usize = 64 * 1024;
const MOST_OF_HSM: usize = 8 * 1024;

/// A resource name followed by a method, `NAME[:METHOD]`, and the key that it is about.
#[derive(Clone)]
pub struct Target {
    pub name: String,
    pub method: String,
    pub key: String,
    pub version: Option<usize>,
    /// Behind the key or the version: a collection, such as `cryptoKeyVersions`.
    pub collection: Option<String>,
}

impl Target {
    /// `path` is that of the URL after `/v1/`.
    pub fn read(path: &str) -> Option<Self> {
        let (name, method) = path.split_once(':').unwrap_or((path, ""));
        let parts: Vec<_> = name.split('/').collect();
        let (fixed, rest) = parts.split_at_checked(8)?;
        let names = ["projects", "locations", "keyRings", "cryptoKeys"];
        let is_key = fixed.chunks(2).zip(names).all(|(pair, name)| pair[0] == name)
            && fixed.iter().all(|part| !part.is_empty());
        let (version, collection) = match rest {
            [] => (None, None),
            ["cryptoKeyVersions"] => (None, Some("cryptoKeyVersions".to_owned())),
            ["cryptoKeyVersions", number] => (Some(number.parse().ok()?), None),
            _ => return None,
        };
        is_key.then(|| Self {
            name: name.to_owned(),
            method: method.to_owned(),
            key: fixed.join("/"),
            version,
            collection,
        })
    }
}

pub fn perform(
    world: &mut World,
    caller: &Principal,
    http: &str,
    target: &Target,
    query: &str,
    input: &Value,
) -> Answer {
    let version_only = |number: Option<usize>| {
        number.ok_or_else(|| Status::invalid("Resource name is not that of a CryptoKeyVersion."))
    };
    let permission = match (http, &*target.method, target.collection.as_deref()) {
        ("POST", "encrypt", None) => "cloudkms.cryptoKeyVersions.useToEncrypt",
        ("POST", "decrypt", None) => "cloudkms.cryptoKeyVersions.useToDecrypt",
        ("GET", "", None) if target.version.is_none() => "cloudkms.cryptoKeys.get",
        ("GET", "", None) => "cloudkms.cryptoKeyVersions.get",
        ("POST", "", Some("cryptoKeyVersions")) => "cloudkms.cryptoKeyVersions.create",
        ("POST", "updatePrimaryVersion", None) => "cloudkms.cryptoKeys.update",
        ("PATCH", "", None) if target.version.is_some() => "cloudkms.cryptoKeyVersions.update",
        ("POST", "setIamPolicy", None) if target.version.is_none() => {
            "cloudkms.cryptoKeys.setIamPolicy"
        }
        ("POST", "destroy", None) => "cloudkms.cryptoKeyVersions.destroy",
        ("POST", "restore", None) => "cloudkms.cryptoKeyVersions.restore",
        _ => return Err(Status::new(Code::NotFound, "Method not found.")),
    };
    world.let_through(caller, permission, &target.key)?;
    if permission.ends_with("setIamPolicy") {
        world.set_policy(&target.key, &input["policy"])?;
        return Ok(input["policy"].clone());
    }
    let key = world.key(&target.key);
    if target.version.is_some_and(|number| !(1..=key.versions.len()).contains(&number)) {
        return Err(not_found("CryptoKeyVersion", &target.name));
    }
    match permission.rsplit_once('.').map(|(_, verb)| verb).unwrap_or_default() {
        "useToEncrypt" => encrypt(key, target.version, input),
        "useToDecrypt" if target.version.is_some() => {
            Err(Status::invalid("Resource name is not that of a CryptoKey."))
        }
        "useToDecrypt" => decrypt(key, input),
        "get" => Ok(match target.version {
            Some(number) => version_json(key, number),
            None => key_json(key),
        }),
        "create" => {
            let number = key.add_version();
            Ok(version_json(key, number))
        }
        "update" if permission.contains("cryptoKeys.") => {
            let number = input["cryptoKeyVersionId"].as_str().and_then(|id| id.parse().ok());
            let number = number.filter(|number| (1..=key.versions.len()).contains(number));
            let Some(number) = number else {
                return Err(not_found("CryptoKeyVersion", &target.name));
            };
            key.primary = Some(number);
            Ok(key_json(key))
        }
        "update" => set_state(key, version_only(target.version)?, query, input),
        "destroy" => {
            let number = version_only(target.version)?;
            key.version(number).state = State::DestroyScheduled;
            Ok(version_json(key, number))
        }
        // "After restoring, the version's state is DISABLED."
        "restore" => {
            let number = version_only(target.version)?;
            if key.version(number).state != State::DestroyScheduled {
                return Err(Status::new(
                    Code::FailedPrecondition,
                    format!("{} is not scheduled for destruction.", target.name),
                ));
            }
            key.version(number).state = State::Disabled;
            Ok(version_json(key, number))
        }
        _ => Err(Status::new(Code::Internal, "not served here")),
    }
}

/// `cryptoKeyVersions.patch`: "state may be changed between ENABLED and DISABLED using this
/// method".
fn set_state(key: &mut Key, number: usize, query: &str, input: &Value) -> Answer {
    let masked = query.split('&').any(|part| part == "updateMask=state");
    let to = match input["state"].as_str() {
        Some("ENABLED") => State::Enabled,
        Some("DISABLED") => State::Disabled,
        _ => return Err(Status::invalid("state must be ENABLED or DISABLED.")),
    };
    let now = key.version(number).state;
    if !masked || ![State::Enabled, State::Disabled].contains(&now) {
        return Err(Status::new(
            Code::FailedPrecondition,
            format!("The state of {} cannot be changed.", key.version_name(number)),
        ));
    }
    key.version(number).state = to;
    Ok(version_json(key, number))
}

/// "An output-only field that is not set is left out": proto3's JSON.
fn key_json(key: &Key) -> Value {
    let mut answer = json!({ "name": key.name, "purpose": key.purpose });
    answer["versionTemplate"] = json!({ "protectionLevel": key.protection.name() });
    if let Some(primary) = key.primary {
        answer["primary"] = version_json(key, primary);
    }
    answer
}

fn version_json(key: &Key, number: usize) -> Value {
    json!({
        "name": key.version_name(number),
        "state": key.versions[number - 1].state.name(),
        "protectionLevel": key.protection.name(),
    })
}

// --- the cryptography

fn bytes(input: &Value, field: &str) -> Result<Vec<u8>, Status> {
    let Some(text) = input[field].as_str() else { return Ok(Vec::new()) };
    [BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD]
        .iter()
        .find_map(|encoding| encoding.decode(text.as_bytes()).ok())
        .ok_or_else(|| {
            Status::invalid(format!(
                "Invalid value at '{field}' (TYPE_BYTES), Base64 decoding failed"
            ))
        })
}

/// "KeyManagementService will report an error if the checksum verification fails." `Some(true)` if
/// it was sent and is right, `Some(false)` never, `None` if none was sent.
fn verified(input: &Value, field: &str, data: &[u8]) -> Result<bool, Status> {
    let name = format!("{field}Crc32c");
    let sent = match &input[&name] {
        Value::Null => return Ok(false),
        // An int64 is a string in proto3's JSON; a number is accepted.
        Value::String(text) => text.parse::<i64>().ok(),
        other => other.as_i64(),
    };
    match sent {
        Some(sent) if sent == i64::from(crc32c(data)) => Ok(true),
        Some(_) => Err(Status::invalid(format!(
            "The checksum in field {name} did not match the data in field {field}."
        ))),
        None => Err(Status::invalid(format!("Invalid value at '{name}' (TYPE_INT64)"))),
    }
}

fn check_fields(input: &Value, known: &[&str]) -> Result<(), Status> {
    let fields = input.as_object();
    let fields = fields.ok_or_else(|| Status::invalid("Invalid JSON payload received."))?;
    match fields.keys().find(|name| !known.contains(&&***name)) {
        Some(name) => Err(Status::invalid(format!(
            "Invalid JSON payload received. Unknown name \"{name}\": Cannot find field."
        ))),
        None => Ok(()),
    }
}

fn check_purpose(key: &Key) -> Result<(), Status> {
    if key.purpose == "ENCRYPT_DECRYPT" {
        return Ok(());
    }
    Err(Status::new(
        Code::FailedPrecondition,
        format!("{} has purpose {}, which does not allow this operation.", key.name, key.purpose),
    ))
}

fn reach_external(key: &mut Key, number: usize, only: Option<EkmFault>) -> Result<(), Status> {
    let Some(fault) = key.ekm.filter(|_| key.protection.is_external()) else { return Ok(()) };
    if fault == EkmFault::DecryptionFailed && only != Some(fault) {
        return Ok(());
    }
    if fault.disables_the_version() {
        key.version(number).state = State::Disabled;
    }
    Err(fault.status(&key.version_name(number)))
}

fn encrypt(key: &mut Key, version: Option<usize>, input: &Value) -> Answer {
    check_fields(
        input,
        &[
            "plaintext",
            "additionalAuthenticatedData",
            "plaintextCrc32c",
            "additionalAuthenticatedDataCrc32c",
        ],
    )?;
    check_purpose(key)?;
    let plaintext = bytes(input, "plaintext")?;
    let aad = bytes(input, "additionalAuthenticatedData")?;
    let too_large = match key.protection {
        Protection::Hsm => plaintext.len() + aad.len() > MOST_OF_HSM,
        _ => plaintext.len() > MOST || aad.len() > MOST,
    };
    if plaintext.is_empty() || too_large {
        return Err(Status::invalid("The plaintext or the AAD has an invalid size."));
    }
    let plaintext_is_verified = verified(input, "plaintext", &plaintext)?;
    let aad_is_verified = verified(input, "additionalAuthenticatedData", &aad)?;
    let Some(number) = version.or(key.primary) else {
        return Err(Status::new(
            Code::FailedPrecondition,
            format!("{} has no primary version.", key.name),
        ));
    };
    let name = key.version_name(number);
    let Some(material) = usable(key, number)? else {
        return Err(not_enabled(&name, State::Destroyed.name()));
    };
    reach_external(key, number, None)?;
    note_dek(&plaintext);
    let mut sealed = plaintext;
    let nonce = random::<12>();
    let tag = Aes256Gcm::new((&material).into())
        .encrypt_inout_detached((&nonce).into(), &aad, sealed.as_mut_slice().into())
        .unwrap();
    let body = [&nonce[..], &sealed, &tag].concat();
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    // As those of the service begin: a field of 36 bytes that names the version, and one more.
    let handle = &key.versions[number - 1].handle;
    let ciphertext = [&[0x0A, 0x24], &handle[..], &[0x12], &length, &body].concat();
    let mut answer = json!({
        "name": name,
        "ciphertext": BASE64.encode(&ciphertext),
        "ciphertextCrc32c": crc32c(&ciphertext).to_string(),
        "protectionLevel": key.protection.name(),
    });
    for (field, is_set) in [
        ("verifiedPlaintextCrc32c", plaintext_is_verified),
        ("verifiedAdditionalAuthenticatedDataCrc32c", aad_is_verified),
    ] {
        if is_set {
            answer[field] = true.into();
        }
    }
    Ok(answer)
}

/// The material of a version that may be used.
fn usable(key: &mut Key, number: usize) -> Result<Option<[u8; 32]>, Status> {
    let name = key.version_name(number);
    let version = key.version(number);
    match version.state {
        State::Enabled => Ok(version.material),
        other => Err(not_enabled(&name, other.name())),
    }
}

fn decrypt(key: &mut Key, input: &Value) -> Answer {
    check_fields(
        input,
        &[
            "ciphertext",
            "additionalAuthenticatedData",
            "ciphertextCrc32c",
            "additionalAuthenticatedDataCrc32c",
        ],
    )?;
    check_purpose(key)?;
    let ciphertext = bytes(input, "ciphertext")?;
    let aad = bytes(input, "additionalAuthenticatedData")?;
    verified(input, "ciphertext", &ciphertext)?;
    verified(input, "additionalAuthenticatedData", &aad)?;
    let invalid = || Status::invalid("Decryption failed: the ciphertext is invalid.");
    let not_this_key = || {
        Status::invalid("Decryption failed: verify that 'name' refers to the correct CryptoKey.")
    };
    let (handle, rest) = ciphertext
        .strip_prefix(&[0x0A, 0x24])
        .and_then(|rest| rest.split_first_chunk::<36>())
        .ok_or_else(invalid)?;
    let number = key.versions.iter().position(|version| &version.handle == handle);
    let number = number.ok_or_else(not_this_key)? + 1;
    let name = key.version_name(number);
    let Some(material) = usable(key, number)? else {
        return Err(not_enabled(&name, State::Destroyed.name()));
    };
    reach_external(key, number, Some(EkmFault::DecryptionFailed))?;
    let (length, body) = rest
        .strip_prefix(&[0x12])
        .and_then(|rest| rest.split_first_chunk::<2>())
        .ok_or_else(invalid)?;
    if usize::from(u16::from_be_bytes(*length)) != body.len() {
        return Err(invalid());
    }
    let (nonce, sealed) = body.split_first_chunk::<12>().ok_or_else(invalid)?;
    let (sealed, tag) = sealed.split_last_chunk::<16>().ok_or_else(invalid)?;
    let mut plaintext = sealed.to_vec();
    Aes256Gcm::new((&material).into())
        .decrypt_inout_detached(nonce.into(), &aad, plaintext.as_mut_slice().into(), tag.into())
        .map_err(|_| invalid())?;
    let mut answer = json!({
        "plaintext": BASE64.encode(&plaintext),
        "plaintextCrc32c": crc32c(&plaintext).to_string(),
        "protectionLevel": key.protection.name(),
    });
    if key.primary == Some(number) {
        answer["usedPrimary"] = true.into();
    }
    Ok(answer)
}
