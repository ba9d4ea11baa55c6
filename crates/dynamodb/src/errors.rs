//! What the answers of DynamoDB mean.
//!
//! Sources: "Error handling with DynamoDB" in the DynamoDB Developer Guide, and the errors of
//! `GetItem`, `PutItem`, `UpdateItem`, `Query`, `Scan`, `BatchGetItem` and `TransactWriteItems` and
//! the common errors in the DynamoDB API Reference.
#![forbid(unsafe_code)]

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ConnectorError, ProvideErrorMetadata, SdkError};
use waxseal::kek::toolkit::certificates;
use waxseal::store::{StoreError, StoreErrorClass};

use StoreErrorClass::{Misconfigured, Throttled, Unavailable};

/// Codes of exceptions, and of the reasons of a cancelled transaction. Codes that need an operator
/// and are not listed are recognised by their status.
const TABLE: &[(&str, StoreErrorClass)] = &[
    ("ProvisionedThroughputExceededException", Throttled),
    ("ProvisionedThroughputExceeded", Throttled),
    ("ThrottlingException", Throttled),
    ("ThrottlingError", Throttled),
    ("Throttling", Throttled),
    ("RequestLimitExceeded", Throttled),
    ("LimitExceededException", Throttled),
    ("TooManyRequestsException", Throttled),
    ("SlowDown", Throttled),
    ("TransactionConflict", Throttled),
    ("TransactionConflictException", Throttled),
    ("TransactionInProgressException", Throttled),
    ("ReplicatedWriteConflictException", Throttled),
    ("InternalServerError", Unavailable),
    ("InternalFailure", Unavailable),
    ("ServiceUnavailable", Unavailable),
    ("ServiceUnavailableException", Unavailable),
    ("TableInUseException", Unavailable),
    ("ResourceNotFoundException", Misconfigured),
    ("TableNotFoundException", Misconfigured),
    ("AccessDeniedException", Misconfigured),
    ("AccessDenied", Misconfigured),
    ("NotAuthorized", Misconfigured),
    ("ValidationException", Misconfigured),
    ("ValidationError", Misconfigured),
    ("UnrecognizedClientException", Misconfigured),
    ("InvalidClientTokenId", Misconfigured),
    ("InvalidSignatureException", Misconfigured),
    ("SignatureDoesNotMatch", Misconfigured),
    ("IncompleteSignature", Misconfigured),
    ("IncompleteSignatureException", Misconfigured),
    ("MissingAuthenticationToken", Misconfigured),
    ("MissingAuthenticationTokenException", Misconfigured),
    ("ExpiredToken", Misconfigured),
    ("ExpiredTokenException", Misconfigured),
    ("RequestExpired", Misconfigured),
    ("RequestTimeTooSkewed", Misconfigured),
    ("OptInRequired", Misconfigured),
];

/// How credential sources refuse the caller, as opposed to being down.
const REFUSED: &[&str] = &[
    "AccessDenied",
    "ExpiredToken",
    "InvalidClientTokenId",
    "InvalidGrant",
    "InvalidIdentityToken",
    "SignatureDoesNotMatch",
    "Unauthorized",
];

/// The SDK's words for a client without credentials, in an error without a public type.
const NO_CREDENTIALS: &str = "failed to select an auth scheme";

/// The maximum number of characters of a service's text that is passed on.
const MOST_TEXT: usize = 500;

pub(crate) fn error(class: StoreErrorClass, text: String) -> StoreError {
    match class {
        Throttled => StoreError::throttled(text),
        Misconfigured => StoreError::misconfigured(text),
        _ => StoreError::unavailable(text),
    }
}

/// Returns what a code means or, if it is unknown, what the status means. A status without any code
/// is not an answer of DynamoDB.
pub(crate) fn classify(status: u16, code: Option<&str>) -> StoreErrorClass {
    let row = TABLE.iter().find(|(name, _)| Some(*name) == code);
    match row {
        Some((_, class)) => *class,
        None if status == 429 => Throttled,
        None if code.is_some() && (400..500).contains(&status) && status != 408 => Misconfigured,
        None => Unavailable,
    }
}

/// Neither Debug nor the source of an SDK error is passed on, since they contain the answer's body.
pub(crate) fn failure<E>(operation: &str, failed: &SdkError<E, HttpResponse>) -> StoreError
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    match failed {
        SdkError::ServiceError(service) => {
            let (status, meta) = (service.raw().status().as_u16(), service.err().meta());
            let what = meta.code().map_or_else(|| format!("status {status}"), tidy);
            let message = meta.message().filter(|message| !message.is_empty());
            let message = message.map(|message| format!(": {}", tidy(message))).unwrap_or_default();
            error(classify(status, meta.code()), format!("{operation}: {what}{message}"))
        }
        SdkError::ResponseError(_) => {
            StoreError::unavailable(format!("{operation}: the answer cannot be understood"))
        }
        SdkError::TimeoutError(_) => {
            StoreError::unavailable(format!("{operation}: no answer in time"))
        }
        SdkError::DispatchFailure(dispatch) => not_sent(operation, dispatch.as_connector_error()),
        _ => StoreError::misconfigured(format!("{operation}: the request cannot be made")),
    }
}

/// No answer, for lack of credentials or of a connection.
fn not_sent(operation: &str, failed: Option<&ConnectorError>) -> StoreError {
    let (mut texts, mut of_credentials) = (Vec::new(), None);
    let mut cause: Option<&(dyn StdError + 'static)> = failed.map(|error| error as _);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<CredentialsError>() {
            of_credentials = Some(matches!(
                error,
                CredentialsError::CredentialsNotLoaded(_)
                    | CredentialsError::InvalidConfiguration(_)
            ));
        }
        texts.push(tidy(&error.to_string()));
        cause = error.source();
    }
    texts.dedup();
    let says = |words: &str| texts.iter().any(|text| text.contains(words));
    if says(NO_CREDENTIALS) {
        return StoreError::misconfigured(format!("{operation}: no credentials are configured"));
    }
    let class = match of_credentials {
        Some(is_configuration) if is_configuration || REFUSED.iter().any(|word| says(word)) => {
            Misconfigured
        }
        None if texts.iter().any(|text| certificates::blamed_in(text)) => Misconfigured,
        _ => Unavailable,
    };
    error(class, format!("{operation}: {}", texts.join(": ")))
}

/// Returns the service's words without control characters and of limited length.
pub(crate) fn tidy(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MOST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_statuses_have_their_class() {
        for (code, class) in TABLE {
            assert_eq!(classify(400, Some(code)), *class, "{code}");
        }
        for (status, code, class) in [
            (400, Some("SomethingNewException"), Misconfigured),
            (500, Some("SomethingNewException"), Unavailable),
            (429, Some("SomethingNewException"), Throttled),
            (429, None, Throttled),
            (408, Some("RequestTimeout"), Unavailable),
            // From a proxy.
            (403, None, Unavailable),
            (404, None, Unavailable),
            (502, None, Unavailable),
        ] {
            assert_eq!(classify(status, code), class, "{status} {code:?}");
        }
    }
}
