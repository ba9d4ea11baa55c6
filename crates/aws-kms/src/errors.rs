//! What the answers of AWS KMS mean: one table, by exception and, if that is not enough, by
//! message.
//!
//! Sources: the errors of `Encrypt`, `Decrypt`, `GenerateDataKey`, `ReEncrypt` and `DescribeKey`
//! and the common errors in the AWS KMS API Reference; "Key states of AWS KMS keys" and
//! "Troubleshooting external key stores" in the AWS KMS Developer Guide; the exception messages in
//! "Error codes" of the External Key Store Proxy API Specification, version 1.
#![forbid(unsafe_code)]

use waxseal::kek::{KekError, KekErrorClass};

use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

/// An exception, a part of its message (in lower case; empty: any message), and what that means.
/// The first match counts.
///
/// `KMSInvalidStateException` is one name for many failures, which only the message distinguishes.
/// Every failure of an external key store is one of them. `docs/xks.md` shows those rows; a test
/// compares the two.
const TABLE: &[(&str, &str, KekErrorClass)] = &[
    // The key, or the right to use it.
    ("AccessDeniedException", "", Denied),
    ("NotAuthorized", "", Denied),
    ("DisabledException", "", Denied),
    ("NotFoundException", "", Denied),
    ("KMSInvalidStateException", "is pending deletion", Denied),
    ("KMSInvalidStateException", "is pending import", Denied),
    ("KMSInvalidStateException", "is pending replica deletion", Denied),
    ("KMSInvalidStateException", "is unavailable", Denied),
    ("KMSInvalidStateException", "is disabled", Denied),
    // The proxy of an external key store, or something behind it, gave no answer or no valid one.
    ("KMSInvalidStateException", "did not respond in time", Unavailable),
    ("KMSInvalidStateException", "in the time allotted", Unavailable),
    (
        "KMSInvalidStateException",
        "cannot communicate with the external key store proxy",
        Unavailable,
    ),
    ("KMSInvalidStateException", "cannot communicate with the external key manager", Unavailable),
    ("KMSInvalidStateException", "cannot interpret the response", Unavailable),
    ("KMSInvalidStateException", "unhealthy state", Unavailable),
    ("KMSInvalidStateException", "very high request rate", Throttled),
    // An operator of the external key store.
    ("KMSInvalidStateException", "not connected to its external key store proxy", Misconfigured),
    ("KMSInvalidStateException", "could not authenticate aws kms", Misconfigured),
    ("KMSInvalidStateException", "invalid uri path", Misconfigured),
    ("KMSInvalidStateException", "cannot establish a tls connection", Misconfigured),
    ("KMSInvalidStateException", "does not support the requested operation", Misconfigured),
    (
        "KMSInvalidStateException",
        "does not support the requested cryptographic operation",
        Misconfigured,
    ),
    // Its owner has disabled it.
    ("KMSInvalidStateException", "denied access to the operation", Denied),
    ("KMSInvalidStateException", "not enabled in the external key manager", Denied),
    ("KMSInvalidStateException", "was not found", Denied),
    ("KMSInvalidStateException", "could not find the external key", Denied),
    ("KMSInvalidStateException", "corrupted, missing, or otherwise invalid", Invalid),
    // Temporary states of the key, and unknown messages, which are never taken for a refusal.
    ("KMSInvalidStateException", "", Unavailable),
    // This ciphertext, or this encryption context with it.
    ("InvalidCiphertextException", "", Invalid),
    ("IncorrectKeyException", "", Invalid),
    ("ValidationException", "", Invalid),
    ("ValidationError", "", Invalid),
    // Too many calls.
    ("ThrottlingException", "", Throttled),
    ("Throttling", "", Throttled),
    ("ThrottledException", "", Throttled),
    ("RequestThrottled", "", Throttled),
    ("RequestThrottledException", "", Throttled),
    ("TooManyRequestsException", "", Throttled),
    ("RequestLimitExceeded", "", Throttled),
    ("SlowDown", "", Throttled),
    // The service itself.
    ("KMSInternalException", "", Unavailable),
    ("DependencyTimeoutException", "", Unavailable),
    ("KeyUnavailableException", "", Unavailable),
    ("InternalFailure", "", Unavailable),
    ("ServiceUnavailable", "", Unavailable),
    ("ServiceUnavailableException", "", Unavailable),
    // An operator has to act: credentials, clock, grant tokens, the kind of key.
    ("ExpiredTokenException", "", Misconfigured),
    ("ExpiredToken", "", Misconfigured),
    ("UnrecognizedClientException", "", Misconfigured),
    ("InvalidClientTokenId", "", Misconfigured),
    ("InvalidSignatureException", "", Misconfigured),
    ("SignatureDoesNotMatch", "", Misconfigured),
    ("IncompleteSignature", "", Misconfigured),
    ("IncompleteSignatureException", "", Misconfigured),
    ("MissingAuthenticationToken", "", Misconfigured),
    ("MissingAuthenticationTokenException", "", Misconfigured),
    ("RequestExpired", "", Misconfigured),
    ("RequestTimeTooSkewed", "", Misconfigured),
    ("OptInRequired", "", Misconfigured),
    ("InvalidGrantTokenException", "", Misconfigured),
    ("InvalidKeyUsageException", "", Misconfigured),
    ("InvalidArnException", "", Misconfigured),
    ("UnsupportedOperationException", "", Misconfigured),
    ("CustomKeyStoreNotFoundException", "", Misconfigured),
];

/// KMS does not accept the caller's identity. Newer credentials may not have been loaded yet,
/// because the old ones looked valid.
const STALE_CREDENTIALS: &[&str] = &[
    "ExpiredTokenException",
    "ExpiredToken",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
];

/// The maximum number of characters of a service's text that is passed on.
const MOST_TEXT: usize = 500;

/// How a call failed. It contains no byte of request or answer except the service's own words.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) class: KekErrorClass,
    /// The exception, if the service named one.
    pub(crate) code: Option<String>,
    pub(crate) text: String,
    /// Whether KMS, or a source of credentials, was asked.
    asked: bool,
}

impl Failure {
    pub(crate) fn new(class: KekErrorClass, text: impl Into<String>) -> Self {
        Self { class, code: None, text: text.into(), asked: true }
    }

    /// Makes a failure that the provider decided without asking anybody.
    pub(crate) fn unasked(class: KekErrorClass, text: impl Into<String>) -> Self {
        Self { asked: false, ..Self::new(class, text) }
    }

    /// Makes a failure from the service's own answer.
    pub(crate) fn answered(
        operation: &str,
        status: u16,
        code: Option<&str>,
        message: Option<&str>,
    ) -> Self {
        let class = classify(status, code, message.unwrap_or_default());
        let what = code.map_or_else(|| format!("status {status}"), tidy);
        let text = match message.filter(|message| !message.is_empty()) {
            Some(message) => format!("{operation}: {what}: {}", tidy(message)),
            None => format!("{operation}: {what}"),
        };
        Self { class, code: code.map(tidy), text, asked: true }
    }

    pub(crate) fn not_understood(operation: &str) -> Self {
        Self::new(Unavailable, format!("{operation}: the answer cannot be understood"))
    }

    pub(crate) fn is_of_stale_credentials(&self) -> bool {
        self.code.as_deref().is_some_and(|code| STALE_CREDENTIALS.contains(&code))
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code.as_deref() == Some("NotFoundException")
    }

    /// If a message named the key, only the message can be wrong about it, which is no reason to
    /// alert an operator or open a breaker.
    pub(crate) fn of_a_message_s_key(mut self) -> Self {
        let about_the_key =
            ["InvalidArnException", "InvalidKeyUsageException", "UnsupportedOperationException"];
        if self.code.as_deref().is_some_and(|code| about_the_key.contains(&code)) {
            self.class = Invalid;
        }
        self
    }
}

impl From<Failure> for KekError {
    fn from(failure: Failure) -> Self {
        let error = Self::new(failure.class, failure.text);
        if failure.asked { error } else { error.without_asking() }
    }
}

fn classify(status: u16, code: Option<&str>, message: &str) -> KekErrorClass {
    let message = message.to_lowercase();
    let by_table = code.and_then(|code| {
        let mut rows = TABLE.iter();
        rows.find(|(exception, part, _)| *exception == code && message.contains(part))
            .map(|(.., class)| *class)
    });
    match by_table {
        Some(class) => class,
        None if status == 429 => Throttled,
        // Unknown errors are never a refusal.
        None => Unavailable,
    }
}

/// Returns the service's words without control characters and of limited length.
fn tidy(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MOST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_can_be_reached() {
        for (exception, part, class) in TABLE {
            assert_eq!(
                classify(400, Some(exception), &format!("The key {part} now")),
                *class,
                "{exception} {part}"
            );
            assert_eq!(part.to_lowercase(), *part);
        }
    }

    #[test]
    fn key_states_are_told_apart_whatever_the_case() {
        let state = |message| classify(400, Some("KMSInvalidStateException"), message);
        assert_eq!(state("arn:aws:kms:eu-west-1:111122223333:key/x is pending deletion."), Denied);
        assert_eq!(state("The key IS PENDING IMPORT."), Denied);
        assert_eq!(state("The key is creating."), Unavailable);
        assert_eq!(state("The key is updating."), Unavailable);
        assert_eq!(state("Something that nobody has read before"), Unavailable);
        assert_eq!(state(""), Unavailable);
    }

    /// The messages of KMS in the table of "Error codes" of the specification, and in
    /// "Troubleshooting external key stores".
    #[test]
    fn every_published_message_of_an_external_key_store_has_its_class() {
        let unhealthy = "The external key store proxy is in an unhealthy state. If you see this message repeatedly, notify your external key store proxy administrator.";
        for (class, message) in [
            (
                Unavailable,
                "AWS KMS cannot interpret the response from the external key store proxy. If you see this error repeatedly, report it to your external key store proxy administrator.",
            ),
            (
                Unavailable,
                "The external key store proxy did not respond to the request in the time allotted. Retry the request. If you see this error repeatedly, report it to your external key store proxy administrator.",
            ),
            (
                Unavailable,
                "AWS KMS rejected the request because the external key store proxy did not respond in time. Retry the request. If you see this error repeatedly, report it to your external key store proxy administrator.",
            ),
            (
                Unavailable,
                "The external key store proxy rejected the request because it cannot communicate with the external key manager. Verify that the external key store proxy configuration is correct and that the external key manager is available.",
            ),
            (
                Unavailable,
                "AWS KMS cannot communicate with the external key store proxy. This might be a transient network issue. If you see this error repeatedly, verify that your external key store proxy is active and is connected to the network, and that its endpoint URI is correct in your external keystore.",
            ),
            (Unavailable, unhealthy),
            (
                Throttled,
                "The external key store proxy rejected the request due to a very high request rate. Reduce the frequency of your calls using KMS keys in this external key store.",
            ),
            (
                Misconfigured,
                "The external key store proxy rejected the request because it could not authenticate AWS KMS. Verify the XKS proxy authentication credentials for your external key store and update if necessary.",
            ),
            (
                Misconfigured,
                "The external key store proxy rejected the request because of an invalid URI path. Verify the URI path for your external key store and update if necessary.",
            ),
            (
                Misconfigured,
                "The external key store proxy rejected the request because it does not support the requested operation. If you see this error repeatedly, report it to your external key store proxy administrator.",
            ),
            (
                Misconfigured,
                "The external key store proxy rejected the request because it does not support the requested cryptographic operation.",
            ),
            (
                Denied,
                "The external key store proxy rejected the request because the external key is not enabled in the external key manager.",
            ),
            (
                Denied,
                "The external key store proxy rejected the request because it could not find the external key.",
            ),
            (
                Denied,
                "arn:aws:kms:eu-west-1:111122223333:key/11112222-3333-4444-5555-666677778888 is unavailable.",
            ),
            (
                Invalid,
                "The external key store proxy rejected the request because the specified ciphertext or additional authenticated data is corrupted, missing, or otherwise invalid.",
            ),
            (
                Misconfigured,
                "AWS KMS cannot establish a TLS connection to the external key store proxy. Verify the TLS configuration, including its certificate.",
            ),
            (
                Misconfigured,
                "This KMS key is in a custom key store that is not connected to its external key store proxy. Connect the external key store and try the request again.",
            ),
            (
                Misconfigured,
                "The external key associated with this KMS key in an external key store does not support the requested operation. Enable the operation on the key in your external key manager, and try the request again.",
            ),
            (
                Denied,
                "The external key store proxy denied access to the operation. Verify that the user and the external key are both authorized for this operation, and try the request again.",
            ),
            (
                Denied,
                "The external key associated with this KMS key in an external key store is not enabled in the external key manager. Enable the external key in the external key manager and retry the request.",
            ),
            (
                Denied,
                "The external key associated with this KMS key in an external key store was not found in its external key manager. If the external key ID associated with this KMS key is incorrect, create a new KMS key with the correct external key ID.",
            ),
            (
                Invalid,
                "The external key store proxy rejected the request because the specified ciphertext or encryption context is corrupted, missing, or otherwise invalid.",
            ),
            (
                Invalid,
                "The ciphertext that the external key store proxy submitted for decryption, or the encryption context, is corrupted, missing, or otherwise invalid.",
            ),
        ] {
            assert_eq!(
                classify(400, Some("KMSInvalidStateException"), message),
                class,
                "{message}"
            );
        }
    }

    #[test]
    fn the_docs_show_the_table_that_is_in_force() {
        let docs = include_str!("../docs/xks.md");
        let mut shown = Vec::new();
        for (class, row) in
            docs.lines().filter_map(|line| line.strip_prefix("| **")?.split_once("** | "))
        {
            shown.extend(
                row.split('`')
                    .skip(1)
                    .step_by(2)
                    .map(|part| (part.to_lowercase(), class.to_owned())),
            );
        }
        let mut in_force: Vec<_> = TABLE
            .iter()
            .filter(|(exception, part, _)| {
                *exception == "KMSInvalidStateException" && !part.is_empty()
            })
            .map(|(_, part, class)| ((*part).to_owned(), class.to_string()))
            .collect();
        in_force.sort();
        shown.sort();
        assert_eq!(shown, in_force);
    }

    #[test]
    fn what_is_not_known_is_unavailable_and_keeps_its_text() {
        for (status, code) in
            [(400, Some("BrandNewException")), (500, None), (503, None), (302, None), (403, None)]
        {
            let failure = Failure::answered("Decrypt", status, code, Some("the text"));
            assert_eq!(failure.class, Unavailable, "{status} {code:?}");
            assert!(failure.text.contains("the text"));
        }
        assert_eq!(classify(429, None, ""), Throttled);
    }

    #[test]
    fn a_service_s_words_are_cut_and_stripped() {
        let failure =
            Failure::answered("Decrypt", 400, Some("A\nB"), Some(&"x\u{1b}[31m".repeat(1000)));
        assert!(failure.text.len() < 600);
        assert!(!failure.text.contains(['\n', '\u{1b}']));
    }
}
