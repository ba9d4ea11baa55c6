//! The words of the specification: operations and their paths, errors and their status, what a
//! request has to contain, and the bytes that are computed over. Nothing here waits or keeps
//! anything.

use data_encoding::BASE64;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// "MUST support the ability to process up to 4300 bytes" (Encrypt, Decrypt); more is not served
/// here.
pub const MOST_PLAINTEXT: usize = 4300;
/// "MUST be able to handle AAD values up to 8192 bytes" (Encrypt, Decrypt); more is not served
/// here.
pub const MOST_AAD: usize = 8192;
/// What "aes256-gcm96" of Transit makes. The specification allows 16 bytes as well, which no
/// ciphertext of this proxy has.
pub const IV: usize = 12;
pub const TAG: usize = 16;

/// "API operations".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    GetKeyMetadata,
    Encrypt,
    Decrypt,
    GetHealthStatus,
}

impl Operation {
    pub const ALL: [Self; 4] =
        [Self::GetKeyMetadata, Self::Encrypt, Self::Decrypt, Self::GetHealthStatus];

    pub fn name(self) -> &'static str {
        match self {
            Self::GetKeyMetadata => "GetKeyMetadata",
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
            Self::GetHealthStatus => "GetHealthStatus",
        }
    }

    /// The operation and the external key id of a path below the URI path, "API operations". An id
    /// has 1 to 128 letters, digits, hyphens, periods, underscores.
    pub fn of_path<'a>(uri_path: &str, path: &'a str) -> Option<(Self, &'a str)> {
        let rest = path.strip_prefix(uri_path)?.strip_prefix('/')?;
        if rest == "health" {
            return Some((Self::GetHealthStatus, ""));
        }
        let (id, last) = rest.strip_prefix("keys/")?.split_once('/')?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || ['-', '.', '_'].contains(&c);
        let operation = match last {
            "metadata" => Self::GetKeyMetadata,
            "encrypt" => Self::Encrypt,
            "decrypt" => Self::Decrypt,
            _ => return None,
        };
        ((1..=128).contains(&id.len()) && id.chars().all(allowed)).then_some((operation, id))
    }
}

/// The table of "Error codes".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorName {
    Validation,
    InvalidState,
    InvalidCiphertext,
    InvalidKeyUsage,
    AuthenticationFailed,
    AccessDenied,
    KeyNotFound,
    InvalidUriPath,
    Throttling,
    UnsupportedOperation,
    DependencyTimeout,
    Internal,
}

impl ErrorName {
    pub const ALL: [Self; 12] = [
        Self::Validation,
        Self::InvalidState,
        Self::InvalidCiphertext,
        Self::InvalidKeyUsage,
        Self::AuthenticationFailed,
        Self::AccessDenied,
        Self::KeyNotFound,
        Self::InvalidUriPath,
        Self::Throttling,
        Self::UnsupportedOperation,
        Self::DependencyTimeout,
        Self::Internal,
    ];

    /// Status, `errorName` and `errorMessage`. The message says nothing that the name does not:
    /// what went wrong in particular stands in the proxy's log.
    pub fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Validation => {
                (400, "ValidationException", "One or more input parameters are invalid.")
            }
            Self::InvalidState => {
                (400, "InvalidStateException", "The external key or key store is disabled.")
            }
            Self::InvalidCiphertext => (
                400,
                "InvalidCiphertextException",
                "The ciphertext, initialization vector, additional authenticated data or \
                    authentication tag is invalid.",
            ),
            Self::InvalidKeyUsage => {
                (400, "InvalidKeyUsageException", "The key does not support this operation.")
            }
            Self::AuthenticationFailed => {
                (401, "AuthenticationFailedException", "The signature is invalid.")
            }
            Self::AccessDenied => {
                (403, "AccessDeniedException", "The operation is not authorized.")
            }
            Self::KeyNotFound => (404, "KeyNotFoundException", "The external key is not found."),
            Self::InvalidUriPath => (404, "InvalidUriPathException", "The URI path is not valid."),
            Self::Throttling => (429, "ThrottlingException", "The request rate is too high."),
            Self::UnsupportedOperation => (
                501,
                "UnsupportedOperationException",
                "The operation, or a parameter of this size, is not supported.",
            ),
            Self::DependencyTimeout => {
                (503, "DependencyTimeoutException", "The key manager did not answer in time.")
            }
            Self::Internal => (500, "InternalException", "The key manager could not be used."),
        }
    }

    pub fn name(self) -> &'static str {
        self.parts().1
    }

    pub fn because(self, reason: impl Into<String>) -> Refused {
        Refused { name: self, reason: reason.into() }
    }
}

/// A request that fails: what the caller gets to know, and what the log keeps.
#[derive(Clone, Debug)]
pub struct Refused {
    pub name: ErrorName,
    pub reason: String,
}

/// The fields of a request. No `Debug`: there may be a plaintext in it.
pub struct Body {
    fields: Map<String, Value>,
}

impl Body {
    /// A JSON object with the `requestMetadata` that the operation needs: each listed field a
    /// string, others ignored, since "AWS KMS may choose to include additional fields" (Appendix
    /// B). kmsOperation may say anything, kmsRequestId is opaque (each operation's request
    /// parameters).
    ///
    /// The table of errors leaves ValidationException out for GetHealthStatus, but the one of KMS
    /// has it for CreateCustomKeyStore, which calls nothing else.
    pub fn read(operation: Operation, bytes: &[u8]) -> Result<Self, Refused> {
        let invalid = |what: &str| ErrorName::Validation.because(what);
        let fields =
            serde_json::from_slice(bytes).map_err(|_| invalid("the body is not a JSON object"))?;
        let body = Self { fields };
        let metadata = body.metadata().as_object().ok_or_else(|| invalid("no requestMetadata"))?;
        let required: &[&str] = match operation {
            Operation::GetHealthStatus => &["kmsRequestId", "kmsOperation"],
            // No kmsKeyArn in the course of CreateKey.
            Operation::GetKeyMetadata => &["awsPrincipalArn", "kmsOperation", "kmsRequestId"],
            Operation::Encrypt | Operation::Decrypt => {
                &["awsPrincipalArn", "kmsKeyArn", "kmsOperation", "kmsRequestId"]
            }
        };
        let missing = required.iter().find(|name| !metadata.contains_key(**name));
        let known = ["awsSourceVpc", "awsSourceVpce", "kmsViaService", "kmsKeyArn"];
        let no_string = |name: &&&str| metadata.get(**name).is_some_and(|value| !value.is_string());
        match missing.or_else(|| required.iter().chain(&known).find(no_string)) {
            Some(name) => {
                Err(ErrorName::Validation.because(format!("{name} is missing or no string")))
            }
            None => Ok(body),
        }
    }

    pub fn metadata(&self) -> &Value {
        self.fields.get("requestMetadata").unwrap_or(&Value::Null)
    }

    /// Empty where the request does not have it.
    pub fn metadata_field(&self, name: &str) -> String {
        self.metadata()[name].as_str().unwrap_or_default().to_owned()
    }

    /// Base64 as RFC 4648, section 4, has it, with padding and nothing else. Absent is `None`.
    fn bytes(&self, name: &str, otherwise: ErrorName) -> Result<Option<Vec<u8>>, Refused> {
        let Some(value) = self.fields.get(name) else { return Ok(None) };
        let decoded = value.as_str().and_then(|text| BASE64.decode(text.as_bytes()).ok());
        decoded.map(Some).ok_or_else(|| otherwise.because(format!("{name} is not in Base64")))
    }

    fn needed(&self, name: &str, most: usize, otherwise: ErrorName) -> Result<Vec<u8>, Refused> {
        let bytes = self
            .bytes(name, otherwise)?
            .ok_or_else(|| otherwise.because(format!("{name} is missing")))?;
        at_most(name, bytes, most)
    }

    fn aad(&self, otherwise: ErrorName) -> Result<Vec<u8>, Refused> {
        let name = "additionalAuthenticatedData";
        at_most(name, self.bytes(name, otherwise)?.unwrap_or_default(), MOST_AAD)
    }

    fn is_aes_gcm(&self) -> Result<(), Refused> {
        let right = self.fields.get("encryptionAlgorithm").is_some_and(|name| name == "AES_GCM");
        if right {
            Ok(())
        } else {
            Err(ErrorName::Validation.because("encryptionAlgorithm is not AES_GCM"))
        }
    }
}

/// "if a parameter value exceeded the maximum size that is currently supported" ("Error codes").
fn at_most(name: &str, bytes: Vec<u8>, most: usize) -> Result<Vec<u8>, Refused> {
    if bytes.len() <= most {
        return Ok(bytes);
    }
    Err(ErrorName::UnsupportedOperation
        .because(format!("{name} has {} bytes, of at most {most}", bytes.len())))
}

/// The parameters of "Encrypt".
pub struct ToEncrypt {
    pub plaintext: Vec<u8>,
    pub aad: Vec<u8>,
    /// Whether a ciphertextDataIntegrityValue is wanted.
    pub cdiv: bool,
}

impl ToEncrypt {
    pub fn read(body: &Body) -> Result<Self, Refused> {
        body.is_aes_gcm()?;
        let cdiv = match body.fields.get("ciphertextDataIntegrityValueAlgorithm") {
            None => false,
            Some(name) if name == "SHA_256" => true,
            Some(_) => {
                return Err(ErrorName::Validation
                    .because("ciphertextDataIntegrityValueAlgorithm is not SHA_256"));
            }
        };
        let plaintext = body.needed("plaintext", MOST_PLAINTEXT, ErrorName::Validation)?;
        Ok(Self { plaintext, aad: body.aad(ErrorName::Validation)?, cdiv })
    }
}

/// The parameters of "Decrypt". What "is corrupted, missing, or otherwise invalid" among them is
/// InvalidCiphertextException ("Error codes").
pub struct ToDecrypt {
    pub sealed: Sealed,
    pub aad: Vec<u8>,
    pub metadata: CiphertextMetadata,
}

impl ToDecrypt {
    pub fn read(body: &Body) -> Result<Self, Refused> {
        const WRONG: ErrorName = ErrorName::InvalidCiphertext;
        body.is_aes_gcm()?;
        let ciphertext = body.needed("ciphertext", MOST_PLAINTEXT, WRONG)?;
        let iv = body.needed("initializationVector", usize::MAX, WRONG)?;
        // Exactly: bytes moved from the ciphertext to the end of a longer IV would be the same
        // bytes to Transit.
        let iv = iv
            .try_into()
            .map_err(|_| WRONG.because("initializationVector does not have 12 bytes"))?;
        let tag = body.needed("authenticationTag", usize::MAX, WRONG)?;
        let tag = tag
            .try_into()
            .map_err(|_| WRONG.because("authenticationTag does not have 16 bytes"))?;
        let metadata = body.needed("ciphertextMetadata", usize::MAX, WRONG)?;
        let metadata = CiphertextMetadata::read(&metadata)
            .ok_or_else(|| WRONG.because("ciphertextMetadata is not what this proxy makes"))?;
        Ok(Self { sealed: Sealed { iv, ciphertext, tag }, aad: body.aad(WRONG)?, metadata })
    }
}

/// What AES-GCM gives.
#[derive(Clone)]
pub struct Sealed {
    pub iv: [u8; IV],
    pub ciphertext: Vec<u8>,
    pub tag: [u8; TAG],
}

/// `ciphertextMetadata`, 5 of the 20 bytes that the specification allows: a byte for this layout
/// and for how the AAD is composed, which is 1, and the version of the Transit key, 4 bytes
/// big-endian, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CiphertextMetadata {
    pub key_version: u32,
}

impl CiphertextMetadata {
    const LAYOUT: u8 = 1;

    pub fn bytes(self) -> [u8; 5] {
        let [a, b, c, d] = self.key_version.to_be_bytes();
        [Self::LAYOUT, a, b, c, d]
    }

    pub fn read(bytes: &[u8]) -> Option<Self> {
        let [Self::LAYOUT, version @ ..] = bytes else { return None };
        let key_version = u32::from_be_bytes(version.try_into().ok()?);
        (key_version > 0).then_some(Self { key_version })
    }
}

/// "2-byte length of additionalAuthenticatedData in big-endian format ||
/// additionalAuthenticatedData || 1-byte length of ciphertextMetadata || ciphertextMetadata"
/// (Encrypt). `None` where a length does not fit.
pub fn composed_aad(aad: &[u8], metadata: &[u8]) -> Option<Vec<u8>> {
    let aad_len = u16::try_from(aad.len()).ok()?.to_be_bytes();
    let metadata_len = u8::try_from(metadata.len()).ok()?;
    Some([&aad_len[..], aad, &[metadata_len], metadata].concat())
}

/// Appendix C: the hash of the decoded "additionalAuthenticatedData || ciphertextMetadata ||
/// initializationVector || ciphertext || authenticationTag".
pub fn cdiv(aad: &[u8], metadata: &[u8], sealed: &Sealed) -> [u8; 32] {
    let parts = [aad, metadata, &sealed.iv, &sealed.ciphertext, &sealed.tag];
    parts.into_iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize().into()
}

/// The answer of "Encrypt".
pub fn encrypted(sealed: &Sealed, metadata: CiphertextMetadata, cdiv: Option<[u8; 32]>) -> Value {
    let mut answer = json!({
        "ciphertext": BASE64.encode(&sealed.ciphertext),
        "ciphertextMetadata": BASE64.encode(&metadata.bytes()),
        "initializationVector": BASE64.encode(&sealed.iv),
        "authenticationTag": BASE64.encode(&sealed.tag),
    });
    if let Some(cdiv) = cdiv {
        answer["ciphertextDataIntegrityValue"] = json!(BASE64.encode(&cdiv));
    }
    answer
}
