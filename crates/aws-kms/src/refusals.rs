//! What a failure to load credentials means.
//!
//! Sources: `CredentialsError` in aws-credential-types; the common errors of the AWS STS, IAM
//! Identity Center and SSO OIDC API References; the answers of the credential providers of
//! aws-config, in their source.
#![forbid(unsafe_code)]

use std::error::Error as StdError;
use std::io;

use aws_credential_types::provider::error::{CredentialsError, TokenError};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::error::ErrorMetadata;

use crate::credentials::Failed;
use crate::sdk::ProviderChainError;
use waxseal::kek::KekErrorClass;

use KekErrorClass::{Misconfigured, Throttled, Unavailable};

/// The refusals of those who issue credentials, and their reports of trouble. A code that is not
/// listed is an outage.
const CODES: &[(&str, KekErrorClass)] = &[
    ("AccessDenied", Misconfigured),
    ("AccessDeniedException", Misconfigured),
    ("AssumeRoleUnauthorizedAccess", Misconfigured),
    ("AuthorizationHeaderMalformed", Misconfigured),
    ("ExpiredToken", Misconfigured),
    ("ExpiredTokenException", Misconfigured),
    ("ForbiddenException", Misconfigured),
    ("IDPRejectedClaim", Misconfigured),
    ("IDPRejectedClaimException", Misconfigured),
    ("IncompleteSignature", Misconfigured),
    ("InvalidAction", Misconfigured),
    ("InvalidClientException", Misconfigured),
    ("InvalidClientTokenId", Misconfigured),
    ("InvalidGrantException", Misconfigured),
    ("InvalidIdentityToken", Misconfigured),
    ("InvalidIdentityTokenException", Misconfigured),
    ("InvalidParameterValue", Misconfigured),
    ("InvalidRequestException", Misconfigured),
    ("InvalidSignatureException", Misconfigured),
    ("MalformedPolicyDocument", Misconfigured),
    ("MalformedPolicyDocumentException", Misconfigured),
    ("MissingAuthenticationToken", Misconfigured),
    ("NotAuthorized", Misconfigured),
    ("OptInRequired", Misconfigured),
    ("PackedPolicyTooLarge", Misconfigured),
    ("PackedPolicyTooLargeException", Misconfigured),
    ("RegionDisabledException", Misconfigured),
    ("RequestExpired", Misconfigured),
    ("ResourceNotFoundException", Misconfigured),
    ("SignatureDoesNotMatch", Misconfigured),
    ("UnauthorizedClientException", Misconfigured),
    ("UnauthorizedException", Misconfigured),
    ("UnrecognizedClientException", Misconfigured),
    ("ValidationError", Misconfigured),
    ("ValidationException", Misconfigured),
    ("RequestLimitExceeded", Throttled),
    ("RequestThrottled", Throttled),
    ("SlowDown", Throttled),
    ("SlowDownException", Throttled),
    ("ThrottledException", Throttled),
    ("Throttling", Throttled),
    ("ThrottlingException", Throttled),
    ("TooManyRequestsException", Throttled),
    ("IDPCommunicationError", Unavailable),
    ("IDPCommunicationErrorException", Unavailable),
    ("InternalError", Unavailable),
    ("InternalFailure", Unavailable),
    ("InternalServerException", Unavailable),
    ("ServiceUnavailable", Unavailable),
    ("ServiceUnavailableException", Unavailable),
];

/// The SDK's words if there is no code: the words, the class, and what is shown.
const WORDS: &[(&str, KekErrorClass, &str)] = &[
    ("token has expired and cannot be refreshed", Misconfigured, "the sign-in has expired"),
    ("token is expired", Misconfigured, "the sign-in has expired"),
    (
        "request forbidden: imds is disabled",
        Misconfigured,
        "the instance's metadata service, which is asked last, forbids it",
    ),
];

/// The parts of a failure to load credentials.
pub(crate) struct Refusal {
    pub(crate) class: KekErrorClass,
    /// Fixed words, a code and a status: never the source's own words, which may be the output of a
    /// program.
    pub(crate) text: String,
    /// Whether a source of credentials was asked.
    pub(crate) was_asked: bool,
}

/// What is known so far, the strongest sign first.
#[derive(Default)]
struct Signs {
    code: Option<(String, Option<KekErrorClass>)>,
    words: Option<(KekErrorClass, &'static str)>,
    status: Option<u16>,
    line: Option<String>,
    file: Option<io::ErrorKind>,
}

/// Returns `None` if the failure was not one of loading credentials.
pub(crate) fn refusal(error: &(dyn StdError + 'static)) -> Option<Refusal> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(failed) = error.downcast_ref::<Failed>() {
            let inner: &(dyn StdError + 'static) = &**failed.0;
            return Some(match inner.downcast_ref::<CredentialsError>() {
                Some(error) => of_credentials(error),
                None => of_anything(inner),
            });
        }
        if let Some(error) = error.downcast_ref::<CredentialsError>() {
            return Some(of_credentials(error));
        }
        cause = error.source();
    }
    None
}

fn of_anything(error: &(dyn StdError + 'static)) -> Refusal {
    let mut signs = Signs::default();
    signs.read(error);
    signs.into_refusal("loading credentials failed", None)
}

fn of_credentials(error: &CredentialsError) -> Refusal {
    let mut signs = Signs::default();
    signs.read(error);
    match error {
        CredentialsError::CredentialsNotLoaded(_) => {
            if signs.line.is_none() && signs.status.is_none() && signs.code.is_none() {
                let text = "no credentials are configured".to_owned();
                return Refusal { class: Misconfigured, text, was_asked: false };
            }
            signs.into_refusal("no credentials were found; the last source", Some(Misconfigured))
        }
        CredentialsError::InvalidConfiguration(_) => {
            signs.into_refusal("the credentials' configuration is not valid", Some(Misconfigured))
        }
        CredentialsError::ProviderTimedOut(_) => {
            signs.line.get_or_insert_with(|| "no answer in time".to_owned());
            signs.into_refusal("loading credentials failed", None)
        }
        _ => signs.into_refusal("loading credentials failed", None),
    }
}

impl Signs {
    /// Reads an error, its causes, and the attempts of a chain of providers.
    fn read(&mut self, error: &(dyn StdError + 'static)) {
        let mut cause = Some(error);
        // Real errors are not nested this deeply, but an error may be its own cause.
        for _ in 0..64 {
            let Some(error) = cause else { return };
            self.read_one(error);
            if let Some(chain) = error.downcast_ref::<ProviderChainError<CredentialsError>>() {
                for attempt in chain.attempts() {
                    self.read(attempt.error());
                }
                return;
            }
            if let Some(chain) = error.downcast_ref::<ProviderChainError<TokenError>>() {
                for attempt in chain.attempts() {
                    self.read(attempt.error());
                }
                return;
            }
            cause = error.source();
        }
    }

    fn read_one(&mut self, error: &(dyn StdError + 'static)) {
        if let Some(meta) = error.downcast_ref::<ErrorMetadata>() {
            if let Some(code) = meta.code().filter(|code| is_code(code)) {
                self.code = Some((code.to_owned(), class_of(code)));
            }
            return;
        }
        if let Some(connector) = error.downcast_ref::<ConnectorError>() {
            if connector.is_timeout() {
                self.line.get_or_insert_with(|| "no answer in time".to_owned());
            } else if connector.is_io() {
                self.line.get_or_insert_with(|| "no connection".to_owned());
            }
            return;
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            match self.line.as_mut() {
                Some(line) if line == "no connection" => {
                    *line = format!("no connection: {}", io.kind())
                }
                Some(_) => {}
                None => self.file = Some(io.kind()),
            }
            return;
        }
        if let Some(error) = error.downcast_ref::<CredentialsError>()
            && matches!(error, CredentialsError::ProviderTimedOut(_))
        {
            self.line.get_or_insert_with(|| "no answer in time".to_owned());
            return;
        }
        // Only Display: Debug may contain what was sent.
        self.read_text(&error.to_string());
    }

    fn read_text(&mut self, text: &str) {
        if self.code.is_none() {
            let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
            let known =
                words.find_map(|word| class_of(word).map(|class| (word.to_owned(), Some(class))));
            self.code = known;
        }
        if self.words.is_none() {
            let text = text.to_lowercase();
            let known = WORDS.iter().find(|(words, ..)| text.contains(words));
            self.words = known.map(|(_, class, shown)| (*class, *shown));
        }
        // "StatusCode(503)" of a container's endpoint, "(code: 503)" of the instance's.
        self.status = self.status.or_else(|| {
            status_after(text, "StatusCode(").or_else(|| status_after(text, "(code: "))
        });
        if self.line.is_none() && text.contains("could not communicate with IMDS") {
            self.line = Some("no connection".to_owned());
        }
    }

    /// `otherwise` is the class if nothing else decides.
    fn into_refusal(self, what: &str, otherwise: Option<KekErrorClass>) -> Refusal {
        let by_status = self.status.and_then(|status| match status {
            429 => Some(Throttled),
            408 | 500.. => Some(Unavailable),
            400..500 => Some(Misconfigured),
            _ => None,
        });
        let by_line = self.line.as_ref().map(|_| Unavailable);
        let by_file = self.file.and_then(|kind| match kind {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Some(Misconfigured),
            _ => None,
        });
        let by_code = self.code.as_ref().and_then(|(_, class)| *class);
        let by_words = self.words.map(|(class, _)| class);
        let signs = [by_code, by_words, by_status, by_line, by_file, otherwise];
        let class = signs.into_iter().flatten().next().unwrap_or(Unavailable);
        let mut text = what.to_owned();
        let status =
            self.status.filter(|_| self.code.is_none()).map(|status| format!("status {status}"));
        let file = self.file.map(|kind| kind.to_string());
        let shown =
            self.code.map(|(code, _)| code).or(self.words.map(|(_, shown)| shown.to_owned()));
        for sign in [shown, status, self.line, file].into_iter().flatten() {
            text = format!("{text}: {sign}");
        }
        Refusal { class, text, was_asked: true }
    }
}

fn class_of(code: &str) -> Option<KekErrorClass> {
    CODES.iter().find(|(known, _)| *known == code).map(|(_, class)| *class)
}

fn is_code(code: &str) -> bool {
    (1..=64).contains(&code.len())
        && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn status_after(text: &str, mark: &str) -> Option<u16> {
    let (_, rest) = text.split_once(mark)?;
    let digits: String = rest.chars().take(3).collect();
    digits.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(error: CredentialsError) -> (KekErrorClass, String) {
        let refusal = of_credentials(&error);
        (refusal.class, refusal.text)
    }

    #[test]
    fn what_the_last_source_said_is_told_as_its_own() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let error = CredentialsError::not_loaded(ConnectorError::io(refused.into()));
        let text = "no credentials were found; the last source: no connection: connection refused";
        assert_eq!(of(error), (Unavailable, text.to_owned()));
    }

    #[test]
    fn an_outage_of_a_source_is_one_and_a_refusal_is_an_operator_s_matter() {
        for (class, shown, error) in [
            (Unavailable, "failed", CredentialsError::provider_error("a 503 from STS")),
            (
                Unavailable,
                "503",
                CredentialsError::provider_error("Non-success status: StatusCode(503)"),
            ),
            (
                Unavailable,
                "500",
                CredentialsError::provider_error("error response from IMDS (code: 500). x"),
            ),
            (
                Throttled,
                "429",
                CredentialsError::provider_error("Non-success status: StatusCode(429)"),
            ),
            (
                Misconfigured,
                "403",
                CredentialsError::provider_error("Non-success status: StatusCode(403)"),
            ),
            (
                Unavailable,
                "no answer in time",
                CredentialsError::provider_timed_out(Duration::from_secs(5)),
            ),
            (
                Misconfigured,
                "AccessDenied",
                CredentialsError::provider_error("unhandled error (AccessDenied)"),
            ),
            (
                Misconfigured,
                "ExpiredToken",
                CredentialsError::provider_error("failed [ExpiredToken]: it is"),
            ),
            (
                Throttled,
                "Throttling",
                CredentialsError::provider_error("unhandled error (Throttling)"),
            ),
            (
                Unavailable,
                "InternalFailure",
                CredentialsError::provider_error("unhandled error (InternalFailure)"),
            ),
            (Misconfigured, "configured", CredentialsError::not_loaded("no role on this machine")),
            (Misconfigured, "valid", CredentialsError::invalid_configuration("a loop of profiles")),
            (
                Misconfigured,
                "not found",
                CredentialsError::provider_error(io::Error::from(io::ErrorKind::NotFound)),
            ),
            (
                Unavailable,
                "no connection: connection refused",
                CredentialsError::unhandled(ConnectorError::io(
                    io::Error::from(io::ErrorKind::ConnectionRefused).into(),
                )),
            ),
            (
                Unavailable,
                "no connection",
                CredentialsError::not_loaded(ConnectorError::io("closed".into())),
            ),
            (
                Unavailable,
                "no answer in time",
                CredentialsError::unhandled(ConnectorError::timeout("late".into())),
            ),
        ] {
            let (found, text) = of(error);
            assert_eq!(found, class, "{text}");
            assert!(text.contains(shown), "{text}");
        }
    }

    #[test]
    fn a_code_that_a_service_names_is_shown_and_one_that_is_not_known_is_no_refusal() {
        let named = |code: &str| {
            let meta = ErrorMetadata::builder().code(code).message("the secret").build();
            of(CredentialsError::provider_error(meta))
        };
        assert_eq!(
            named("AccessDenied"),
            (Misconfigured, "loading credentials failed: AccessDenied".to_owned())
        );
        assert_eq!(
            named("BrandNew"),
            (Unavailable, "loading credentials failed: BrandNew".to_owned())
        );
        assert_eq!(named("a secret\n"), (Unavailable, "loading credentials failed".to_owned()));
    }

    #[test]
    fn nothing_that_a_source_says_is_passed_on() {
        let (_, text) = of(CredentialsError::provider_error(
            "exited with 1. Stderr: token=hunter2 AccessDenied",
        ));
        assert_eq!(text, "loading credentials failed: AccessDenied");
    }

    #[test]
    fn the_codes_are_each_there_once() {
        let mut codes: Vec<_> = CODES.iter().map(|(code, _)| code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), CODES.len());
    }
}
