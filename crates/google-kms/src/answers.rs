//! The requests and answers of Cloud KMS, as JSON (REST v1).
//!
//! proto3's JSON: bytes are base64, a 64-bit integer is a string, and default values are left out.
#![forbid(unsafe_code)]

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::errors::Failure;
use crate::format::{Naming, VersionNumber, crc32c};
use crate::table::STATES;
use waxseal::kek::{KekErrorClass, UnwrappedDek};

/// Where a key is kept and used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Protection {
    /// Unknown, or a new level.
    Unknown = 0,
    Software = 1,
    Hsm = 2,
    /// `EXTERNAL` and `EXTERNAL_VPC`: in an external key manager.
    External = 3,
}

impl Protection {
    fn of(name: Option<&str>) -> Self {
        match name {
            Some("SOFTWARE") => Self::Software,
            Some("HSM" | "HSM_SINGLE_TENANT") => Self::Hsm,
            Some("EXTERNAL" | "EXTERNAL_VPC") => Self::External,
            _ => Self::Unknown,
        }
    }
}

/// A wrapped DEK as Cloud KMS returned it.
pub(crate) struct Wrapped {
    pub(crate) version: VersionNumber,
    pub(crate) ciphertext: Vec<u8>,
    pub(crate) protection: Protection,
}

/// A DEK, and whether the key's primary version wrapped it.
pub(crate) struct Unwrapped {
    pub(crate) dek: UnwrappedDek,
    pub(crate) used_primary: bool,
    pub(crate) protection: Protection,
}

/// The answer of `cryptoKeys.get`.
pub(crate) struct Description {
    pub(crate) purpose: String,
    pub(crate) primary: Option<Primary>,
    pub(crate) protection: Protection,
    pub(crate) protection_name: String,
}

pub(crate) struct Primary {
    pub(crate) version: VersionNumber,
    pub(crate) state: String,
}

impl Description {
    /// Checks whether the key can be used according to this, and otherwise returns the failure of a
    /// use.
    pub(crate) fn check_usable(&self, key: &str) -> Result<(), Failure> {
        if self.purpose != "ENCRYPT_DECRYPT" {
            let text = format!("{key} has purpose {}, not ENCRYPT_DECRYPT", self.purpose);
            return Err(Failure::new(KekErrorClass::Misconfigured, text));
        }
        let Some(primary) = &self.primary else {
            let text = format!("{key} has no primary version");
            return Err(Failure::new(KekErrorClass::Misconfigured, text));
        };
        if primary.state == "ENABLED" {
            return Ok(());
        }
        let row = STATES.iter().find(|(state, _)| *state == primary.state);
        let class = row.map_or(KekErrorClass::Unavailable, |(_, class)| *class);
        let number = primary.version.text();
        Err(Failure::new(class, format!("{key}: primary version {number} is {}", primary.state)))
    }
}

// --- requests

/// Writes `{"NAME":"…","NAMECrc32c":"…","additionalAuthenticatedData":"…",…}` once, into a buffer
/// of its size.
pub(crate) fn request(name: &str, data: &[u8], aad: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(Vec::with_capacity(data.len() * 4 / 3 + 512));
    let mut field = |before: &str, name: &str, data: &[u8]| {
        let encoded = Zeroizing::new(Base64::encode_string(data));
        let sum = Zeroizing::new(crc32c(data).to_string());
        for part in
            [before, "\"", name, "\":\"", &encoded, "\",\"", name, "Crc32c\":\"", &sum, "\""]
        {
            body.extend_from_slice(part.as_bytes());
        }
    };
    field("{", name, data);
    field(",", "additionalAuthenticatedData", aad);
    body.push(b'}');
    body
}

// --- answers

/// Text that is wiped when it is dropped.
struct SecretText(Zeroizing<String>);

impl Default for SecretText {
    fn default() -> Self {
        Self(Zeroizing::new(String::new()))
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// A checksum: a string, as proto3's JSON has it, or a number.
struct Checksum(u32);

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            Number(u32),
        }
        match Either::deserialize(deserializer)? {
            Either::Text(text) => text.parse().map(Self).map_err(serde::de::Error::custom),
            Either::Number(number) => Ok(Self(number)),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Encrypted {
    name: String,
    ciphertext: String,
    ciphertext_crc32c: Option<Checksum>,
    #[serde(default)]
    verified_plaintext_crc32c: bool,
    #[serde(default)]
    verified_additional_authenticated_data_crc32c: bool,
    protection_level: Option<String>,
}

/// Reads the answer to `encrypt`. An answer is not trusted if it names another key, was not
/// checked, or does not match its checksum. It is then *unavailable*, so the call is retried.
pub(crate) fn encrypted(body: &[u8], key: &Naming) -> Result<Wrapped, Failure> {
    let not_believed =
        |what: &str| Failure::unavailable(format!("encrypt: the answer is not believed: {what}"));
    let answer: Encrypted =
        serde_json::from_slice(body).map_err(|_| Failure::not_understood("encrypt"))?;
    let version = key.version(&answer.name).ok_or_else(|| not_believed("it names another key"))?;
    let ciphertext =
        Base64::decode_vec(&answer.ciphertext).map_err(|_| Failure::not_understood("encrypt"))?;
    if !answer.verified_plaintext_crc32c || !answer.verified_additional_authenticated_data_crc32c {
        return Err(not_believed("the checksums of the request were not verified"));
    }
    match answer.ciphertext_crc32c {
        Some(Checksum(sum)) if sum == crc32c(&ciphertext) => {}
        Some(_) => return Err(not_believed("the checksum of the ciphertext does not fit")),
        None => return Err(not_believed("there is no checksum of the ciphertext")),
    }
    let protection = Protection::of(answer.protection_level.as_deref());
    Ok(Wrapped { version, ciphertext, protection })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decrypted {
    #[serde(default)]
    plaintext: SecretText,
    plaintext_crc32c: Option<Checksum>,
    #[serde(default)]
    used_primary: bool,
    protection_level: Option<String>,
}

/// Reads the answer to `decrypt`, like [`encrypted`].
pub(crate) fn decrypted(body: &[u8]) -> Result<Unwrapped, Failure> {
    let not_believed =
        |what: &str| Failure::unavailable(format!("decrypt: the answer is not believed: {what}"));
    let answer: Decrypted =
        serde_json::from_slice(body).map_err(|_| Failure::not_understood("decrypt"))?;
    let dek = decode(&answer.plaintext.0).ok_or_else(|| Failure::not_understood("decrypt"))?;
    match answer.plaintext_crc32c {
        Some(Checksum(sum)) if sum == crc32c(dek.expose()) => {}
        Some(_) => return Err(not_believed("the checksum of the plaintext does not fit")),
        None => return Err(not_believed("there is no checksum of the plaintext")),
    }
    let protection = Protection::of(answer.protection_level.as_deref());
    Ok(Unwrapped { dek, used_primary: answer.used_primary, protection })
}

/// Decodes a DEK of any length from base64. Nobody has checked it yet.
fn decode(text: &str) -> Option<UnwrappedDek> {
    let mut bytes = UnwrappedDek::new(vec![0; text.len() / 4 * 3]);
    let len = Base64::decode(text.as_bytes(), bytes.expose_mut()).ok()?.len();
    match bytes.expose().get(..len) {
        Some(exact) if len < bytes.expose().len() => Some(UnwrappedDek::new(exact.to_vec())),
        _ => Some(bytes),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CryptoKey {
    name: String,
    #[serde(default)]
    purpose: String,
    primary: Option<Version>,
    version_template: Option<Template>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    name: String,
    #[serde(default)]
    state: String,
    protection_level: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Template {
    protection_level: Option<String>,
}

/// Reads the answer to `cryptoKeys.get`.
pub(crate) fn described(body: &[u8], key: &Naming) -> Result<Description, Failure> {
    let not_understood = || Failure::not_understood("get");
    let answer: CryptoKey = serde_json::from_slice(body).map_err(|_| not_understood())?;
    if !key.is(&answer.name) {
        return Err(Failure::unavailable("get: the answer is not believed: it names another key"));
    }
    let level = answer
        .primary
        .as_ref()
        .and_then(|version| version.protection_level.clone())
        .or(answer.version_template.and_then(|template| template.protection_level));
    let primary = match answer.primary {
        Some(version) => Some(Primary {
            version: key.version(&version.name).ok_or_else(not_understood)?,
            state: version.state,
        }),
        None => None,
    };
    Ok(Description {
        purpose: answer.purpose,
        primary,
        protection: Protection::of(level.as_deref()),
        protection_name: level.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/k";

    #[test]
    fn a_request_is_json_with_its_checksums() {
        let body = request("plaintext", &[0; 32], b"123456789");
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            body,
            json!({
                "plaintext": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
                "plaintextCrc32c": 0x8A91_36AA_u32.to_string(),
                "additionalAuthenticatedData": "MTIzNDU2Nzg5",
                "additionalAuthenticatedDataCrc32c": 0xE306_9283_u32.to_string(),
            })
        );
    }

    fn good_encrypted() -> serde_json::Value {
        json!({
            "name": format!("{KEY}/cryptoKeyVersions/3"),
            "ciphertext": "MTIzNDU2Nzg5",
            "ciphertextCrc32c": "3808858755",
            "verifiedPlaintextCrc32c": true,
            "verifiedAdditionalAuthenticatedDataCrc32c": true,
            "protectionLevel": "HSM",
        })
    }

    #[test]
    fn an_answer_to_encrypt_is_believed_only_if_every_part_fits() {
        let read = |answer: &serde_json::Value| {
            encrypted(answer.to_string().as_bytes(), &Naming::new(KEY))
        };
        let wrapped = read(&good_encrypted()).ok().unwrap();
        assert_eq!(
            (wrapped.version, &*wrapped.ciphertext, wrapped.protection),
            (VersionNumber(3), &b"123456789"[..], Protection::Hsm)
        );
        for (field, value) in [
            ("name", json!(format!("{KEY}2/cryptoKeyVersions/3"))),
            ("name", json!(KEY)),
            ("ciphertext", json!("MTIzNDU2Nzg4")),
            ("ciphertext", json!("***")),
            ("ciphertextCrc32c", json!("3808858754")),
            ("ciphertextCrc32c", json!("-1")),
            ("ciphertextCrc32c", json!(null)),
            ("verifiedPlaintextCrc32c", json!(false)),
            ("verifiedAdditionalAuthenticatedDataCrc32c", json!(null)),
        ] {
            let mut answer = good_encrypted();
            answer[field] = value.clone();
            let failure = read(&answer).err().unwrap_or_else(|| panic!("{field} {value}"));
            assert_eq!(failure.class, KekErrorClass::Unavailable, "{field} {value}");
        }
    }

    #[test]
    fn an_answer_to_decrypt_is_believed_only_with_its_checksum() {
        let read = |answer: serde_json::Value| decrypted(answer.to_string().as_bytes());
        let unwrapped =
            read(json!({ "plaintext": "MTIzNDU2Nzg5", "plaintextCrc32c": "3808858755" })).ok();
        let unwrapped = unwrapped.unwrap();
        assert_eq!((unwrapped.dek.expose(), unwrapped.used_primary), (&b"123456789"[..], false));
        let number =
            read(json!({ "plaintext": "MTIzNDU2Nzg5", "plaintextCrc32c": 3_808_858_755_u32 }));
        assert!(number.is_ok());
        for answer in [
            json!({ "plaintext": "MTIzNDU2Nzg5" }),
            json!({ "plaintext": "MTIzNDU2Nzg5", "plaintextCrc32c": "1" }),
            json!({ "plaintext": "MTIzNDU2Nzg4", "plaintextCrc32c": "3808858755" }),
            json!({ "plaintext": "MTIzNDU2Nzg*", "plaintextCrc32c": "3808858755" }),
            json!({ "plaintext": 7, "plaintextCrc32c": "3808858755" }),
            json!([]),
        ] {
            let failure = read(answer.clone()).err().unwrap_or_else(|| panic!("{answer}"));
            assert_eq!(failure.class, KekErrorClass::Unavailable, "{answer}");
        }
    }

    #[test]
    fn a_key_says_whether_it_can_be_used() {
        let of = |answer: serde_json::Value| {
            let key = described(answer.to_string().as_bytes(), &Naming::new(KEY)).ok().unwrap();
            key.check_usable(KEY).map_err(|failure| failure.class)
        };
        let version =
            |state: &str| json!({ "name": format!("{KEY}/cryptoKeyVersions/1"), "state": state });
        let key = |purpose: &str, state: &str| json!({ "name": KEY, "purpose": purpose, "primary": version(state) });
        assert_eq!(of(key("ENCRYPT_DECRYPT", "ENABLED")), Ok(()));
        for (state, class) in STATES {
            assert_eq!(of(key("ENCRYPT_DECRYPT", state)), Err(*class), "{state}");
        }
        assert_eq!(of(key("ENCRYPT_DECRYPT", "BRAND_NEW")), Err(KekErrorClass::Unavailable));
        assert_eq!(of(key("ASYMMETRIC_SIGN", "ENABLED")), Err(KekErrorClass::Misconfigured));
        let without = json!({ "name": KEY, "purpose": "ENCRYPT_DECRYPT" });
        assert_eq!(of(without), Err(KekErrorClass::Misconfigured));
        let other = json!({ "name": format!("{KEY}2"), "purpose": "ENCRYPT_DECRYPT" });
        assert!(described(other.to_string().as_bytes(), &Naming::new(KEY)).is_err());
    }
}
