//! What KMS says of a call to a proxy that came to nothing. "The specification" is that of the
//! External Key Store Proxy API, "the Guide" the AWS KMS Developer Guide.

use super::KmsError;

/// Why a call to a proxy came to nothing: the rows of the table at the end of "Error codes" in the
/// specification, and one of the Guide.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    Validation,
    InvalidState,
    InvalidCiphertext,
    /// The proxy decrypted, and what it gave is not what KMS had encrypted.
    ForeignPlaintext,
    InvalidKeyUsage,
    AuthenticationFailed,
    AccessDenied,
    KeyNotFound,
    InvalidUriPath,
    Unsupported,
    DependencyTimeout,
    Throttling,
    Internal,
    /// No TCP connection.
    NotReachable,
    /// The connection ended without an answer.
    Interrupted,
    NoTls,
    SocketTimeout,
    Malformed,
    NotConnected,
    /// "all external key manager instances are UNAVAILABLE" (the Guide, "Proxy issues").
    Unhealthy,
}

impl Failure {
    /// "When the XKS proxy returns a JSON formatted response with errorName, KMS will use the
    /// errorName"; "any other type of malformed response" is one.
    pub(super) fn named(error_name: &str) -> Self {
        match error_name {
            "ValidationException" => Self::Validation,
            "InvalidStateException" => Self::InvalidState,
            "InvalidCiphertextException" => Self::InvalidCiphertext,
            "InvalidKeyUsageException" => Self::InvalidKeyUsage,
            "AuthenticationFailedException" => Self::AuthenticationFailed,
            "AccessDeniedException" => Self::AccessDenied,
            "KeyNotFoundException" => Self::KeyNotFound,
            "InvalidUriPathException" => Self::InvalidUriPath,
            "UnsupportedOperationException" => Self::Unsupported,
            "DependencyTimeoutException" => Self::DependencyTimeout,
            "ThrottlingException" => Self::Throttling,
            "InternalException" => Self::Internal,
            _ => Self::Malformed,
        }
    }

    /// The column "KMS Exception Message".
    pub fn message(self) -> &'static str {
        match self {
            Self::Validation | Self::Malformed => {
                "AWS KMS cannot interpret the response from the external key store proxy. If you \
                    see this error repeatedly, report it to your external key store proxy \
                    administrator."
            }
            Self::InvalidState => {
                "The external key associated with this KMS key in an external key store is not \
                    enabled in the external key manager. Enable the external key in the external \
                    key manager and retry the request."
            }
            Self::InvalidCiphertext => {
                "The external key store proxy rejected the request because the specified \
                    ciphertext or encryption context is corrupted, missing, or otherwise invalid."
            }
            Self::ForeignPlaintext => {
                "The ciphertext that the external key store proxy submitted for decryption, or the \
                    encryption context, is corrupted, missing, or otherwise invalid."
            }
            Self::InvalidKeyUsage => {
                "The external key associated with this KMS key in an external key store does not \
                    support the requested operation. Enable the operation on the key in your \
                    external key manager, and try the request again."
            }
            Self::AuthenticationFailed => {
                "The external key store proxy rejected the request because it could not \
                    authenticate AWS KMS. Verify the XKS proxy authentication credentials for your \
                    external key store and update if necessary."
            }
            Self::AccessDenied => {
                "The external key store proxy denied access to the operation. Verify that the user \
                    and the external key are both authorized for this operation, and try the \
                    request again."
            }
            Self::KeyNotFound => {
                "The external key associated with this KMS key in an external key store was not \
                    found in its external key manager. If the external key ID associated with this \
                    KMS key is incorrect, create a new KMS key with the correct external key ID."
            }
            Self::InvalidUriPath => {
                "The external key store proxy rejected the request because of an invalid URI path. \
                    Verify the URI path for your external key store and update if necessary."
            }
            Self::Unsupported => {
                "The external key store proxy rejected the request because it does not support the \
                    requested operation. If you see this error repeatedly, report it to your \
                    external key store proxy administrator."
            }
            Self::DependencyTimeout => {
                "The external key store proxy did not respond to the request in the time allotted. \
                    Retry the request. If you see this error repeatedly, report it to your \
                    external key store proxy administrator."
            }
            Self::Throttling => {
                "The external key store proxy rejected the request due to a very high request \
                    rate. Reduce the frequency of your calls using KMS keys in this external key \
                    store."
            }
            Self::Internal => {
                "The external key store proxy rejected the request because it cannot communicate \
                    with the external key manager. Verify that the external key store proxy \
                    configuration is correct and that the external key manager is available."
            }
            // The table has no row for a connection that ends without an answer: this is the text
            // for trouble of the network.
            Self::NotReachable | Self::Interrupted => {
                "AWS KMS cannot communicate with the external key store proxy. This might be a \
                    transient network issue. If you see this error repeatedly, verify that your \
                    external key store proxy is active and is connected to the network, and that \
                    its endpoint URI is correct in your external keystore."
            }
            Self::NoTls => {
                "AWS KMS cannot establish a TLS connection to the external key store proxy. Verify \
                    the TLS configuration, including its certificate."
            }
            Self::SocketTimeout => {
                "AWS KMS rejected the request because the external key store proxy did not respond \
                    in time. Retry the request. If you see this error repeatedly, report it to \
                    your external key store proxy administrator."
            }
            Self::NotConnected => {
                "This KMS key is in a custom key store that is not connected to its external key \
                    store proxy. Connect the external key store and try the request again."
            }
            Self::Unhealthy => {
                "The external key store proxy is in an unhealthy state. If you see this message \
                    repeatedly, notify your external key store proxy administrator."
            }
        }
    }

    fn error(self, code: &'static str) -> KmsError {
        KmsError::new(400, code, self.message())
    }

    /// "KMSInvalidStateException (Cryptographic operations)", in every row.
    pub fn of_cryptography(self) -> KmsError {
        self.error("KMSInvalidStateException")
    }

    /// The rows that name CreateKey.
    pub fn of_create_key(self) -> KmsError {
        self.error(match self {
            Self::InvalidState | Self::InvalidKeyUsage => "XksKeyInvalidConfigurationException",
            Self::AccessDenied => "KMSInvalidStateException",
            Self::KeyNotFound => "XksKeyNotFoundException",
            Self::Unsupported => "XksKeyInvalidResponseException",
            _ => "CustomKeyStoreInvalidStateException",
        })
    }

    /// The rows that name Create/UpdateCustomKeyStore. What no row says of a health check is an
    /// answer that KMS did not expect.
    pub fn of_key_store(self) -> KmsError {
        self.error(match self {
            Self::AuthenticationFailed => "XksProxyIncorrectAuthenticationCredentialException",
            Self::InvalidUriPath => "XksProxyInvalidConfigurationException",
            Self::DependencyTimeout
            | Self::Throttling
            | Self::NotReachable
            | Self::Interrupted
            | Self::NoTls
            | Self::SocketTimeout
            | Self::Unhealthy => "XksProxyUriUnreachableException",
            _ => "XksProxyInvalidResponseException",
        })
    }

    /// "Connection error codes for external key stores" in the Guide, and which errors it names
    /// beside them.
    pub fn connection_error_code(self) -> &'static str {
        match self {
            Self::AuthenticationFailed => "INVALID_CREDENTIALS",
            Self::AccessDenied => "XKS_PROXY_ACCESS_DENIED",
            Self::InvalidUriPath => "XKS_PROXY_INVALID_CONFIGURATION",
            Self::NoTls => "XKS_PROXY_INVALID_TLS_CONFIGURATION",
            Self::SocketTimeout | Self::DependencyTimeout => "XKS_PROXY_TIMED_OUT",
            Self::NotReachable | Self::Throttling | Self::Unhealthy => "XKS_PROXY_NOT_REACHABLE",
            Self::Interrupted => "NETWORK_ERRORS",
            _ => "XKS_PROXY_INVALID_RESPONSE",
        }
    }
}
