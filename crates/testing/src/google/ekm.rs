//! Keys in an external key manager (Cloud EKM): what fails there, as "Cloud EKM error reference"
//! (cloud.google.com/kms/docs/reference/ekm_errors) has it.
//!
//! Every failure is FAILED_PRECONDITION with two violations: the first about the state of the key,
//! the second with the error domain as its type. Only a decryption that the manager refuses is
//! INVALID_ARGUMENT. The page does not say how the first violation names a key that is enabled;
//! here it is `KEY_ENABLED`, in the way of `KEY_DISABLED`, which the service was seen to send.

use serde_json::json;

use super::status::{Code, Status};

/// What went wrong at the external key manager or on the way to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EkmFault {
    /// Of the key itself: Cloud EKM then disables the key version too.
    PermissionDenied,
    /// Of the crypto space or the host: the key version stays as it is.
    HostPermissionDenied,
    /// By Key Access Justifications: the manager does not accept the reason of this access.
    JustificationDenied,
    NotFound,
    KeyUriInvalid,
    KeyHostNotWhitelisted,
    Dns,
    ResourceExhausted,
    UnreachableNetwork,
    Overloaded,
    Timeout,
    RequestCancelled,
    TlsCert,
    UnexpectedResponse,
    ServerError,
    NotImplemented,
    UnexpectedError,
    DecryptionFailed,
}

impl EkmFault {
    pub const ALL: [Self; 18] = [
        Self::PermissionDenied,
        Self::HostPermissionDenied,
        Self::JustificationDenied,
        Self::NotFound,
        Self::KeyUriInvalid,
        Self::KeyHostNotWhitelisted,
        Self::Dns,
        Self::ResourceExhausted,
        Self::UnreachableNetwork,
        Self::Overloaded,
        Self::Timeout,
        Self::RequestCancelled,
        Self::TlsCert,
        Self::UnexpectedResponse,
        Self::ServerError,
        Self::NotImplemented,
        Self::UnexpectedError,
        Self::DecryptionFailed,
    ];

    /// `violation[1].type`.
    pub fn domain(self) -> &'static str {
        match self {
            Self::PermissionDenied | Self::HostPermissionDenied | Self::JustificationDenied => {
                "EXTERNAL_PERMISSION_DENIED"
            }
            Self::NotFound => "EXTERNAL_NOT_FOUND",
            Self::KeyUriInvalid => "EXTERNAL_KEY_URI_INVALID",
            Self::KeyHostNotWhitelisted => "EXTERNAL_KEY_HOST_NOT_WHITELISTED",
            Self::Dns => "DNS",
            Self::ResourceExhausted => "EXTERNAL_RESOURCE_EXHAUSTED",
            Self::UnreachableNetwork => "UNREACHABLE_NETWORK",
            Self::Overloaded => "OVERLOADED_EKM",
            Self::Timeout => "TIMEOUT",
            Self::RequestCancelled => "REQUEST_CANCELLED",
            Self::TlsCert => "TLS_CERT",
            Self::UnexpectedResponse => "UNEXPECTED_RESPONSE",
            Self::ServerError => "EXTERNAL_SERVER_ERROR",
            Self::NotImplemented => "EXTERNAL_NOT_IMPLEMENTED",
            Self::UnexpectedError => "UNEXPECTED_ERROR",
            Self::DecryptionFailed => "DECRYPTION_FAILED",
        }
    }

    /// `google.rpc.Status.message`, as far as the reference shows it.
    fn message(self) -> &'static str {
        match self {
            Self::PermissionDenied | Self::JustificationDenied => {
                "Permission was denied when accessing the key."
            }
            Self::HostPermissionDenied => "Permission was denied when accessing the EKM host.",
            Self::NotFound => "Could not find a key.",
            Self::KeyUriInvalid => "Key URI has invalid format.",
            Self::KeyHostNotWhitelisted => "Key URI host is not supported.",
            Self::Dns => "Could not resolve the domain name for key.",
            Self::ResourceExhausted => "Throttled when trying to access key URI.",
            Self::UnreachableNetwork => {
                "Could not reach the key due to an external networking error."
            }
            Self::Overloaded => {
                "Could not reach the key because the external key manager reports that it is overloaded."
            }
            Self::Timeout => "Timed out when trying to access the key.",
            Self::RequestCancelled => {
                "This error typically happens when the EKM is too slow to respond."
            }
            Self::TlsCert => "Could not validate the TLS server certificate for the key.",
            Self::UnexpectedResponse => {
                "Got garbled or unusable response when trying to access the key."
            }
            Self::ServerError => "External server error when trying to access the key.",
            Self::NotImplemented => {
                "The external key manager indicated they have not implemented the appropriate \
                    method to support Cloud KMS's Decrypt."
            }
            Self::UnexpectedError => "Got unexpected error when trying to access the key.",
            Self::DecryptionFailed => "Decryption failed: The EKM reports that decryption failed.",
        }
    }

    /// "When EKM_ELEMENT is key, Cloud EKM also disables the key version."
    pub fn disables_the_version(self) -> bool {
        matches!(self, Self::PermissionDenied | Self::JustificationDenied)
    }

    pub fn status(self, version: &str) -> Status {
        let code = if self == Self::DecryptionFailed {
            Code::InvalidArgument
        } else {
            Code::FailedPrecondition
        };
        let state = if self.disables_the_version() { "KEY_DISABLED" } else { "KEY_ENABLED" };
        let status = Status::new(code, self.message())
            .with_violations(&[(state, version), (self.domain(), version)]);
        match self {
            // Which field carries the reason is not published; this is where details of a refusal
            // are put by other services of Google.
            Self::JustificationDenied => status.with_info(
                "KEY_ACCESS_JUSTIFICATION_DENIED",
                "cloudkms.googleapis.com",
                json!({ "accessReason": "CUSTOMER_INITIATED_ACCESS" }),
            ),
            _ => status,
        }
    }
}
