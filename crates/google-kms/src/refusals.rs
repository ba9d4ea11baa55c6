//! What a failure to load credentials means: an outage of their source, or a refusal.
//!
//! Nothing from a source is passed on except a status and a known code: an answer of a token
//! service, or a file, may contain a secret.
#![forbid(unsafe_code)]

use std::error::Error as StdError;

use google_cloud_gax::error::Error as GaxError;

use crate::errors::Failure;
use waxseal::kek::KekErrorClass;

use KekErrorClass::{Misconfigured, Throttled, Unavailable};

/// Reasons that token services give (RFC 6749, section 5.2; RFC 8693, section 2.2.2).
const CODES: &[&str] = &[
    "invalid_grant",
    "invalid_client",
    "invalid_request",
    "invalid_scope",
    "invalid_target",
    "unauthorized_client",
    "unsupported_grant_type",
    "access_denied",
];

/// `error` is the library's, and `is_transient` is its opinion: it calls a failure *not transient*
/// if somebody has to act. An answer that it cannot read is not a refusal, whatever it is called:
/// it may be a proxy's page, or half an answer.
pub(crate) fn refusal(error: &(dyn StdError + 'static), is_transient: bool) -> Failure {
    let chain = || {
        let mut next = Some(error);
        std::iter::from_fn(move || {
            let error = next?;
            next = error.source();
            Some(error)
        })
    };
    let of_http = |error: &'_ (dyn StdError + 'static)| {
        let of_the_client = error
            .downcast_ref::<reqwest::Error>()
            .and_then(|error| error.status().map(|status| status.as_u16()));
        let of_the_library = error.downcast_ref::<GaxError>().and_then(GaxError::http_status_code);
        of_the_client.or(of_the_library)
    };
    let status = chain().find_map(of_http);
    let is_unreadable = chain().any(|error| {
        error
            .downcast_ref::<reqwest::Error>()
            .is_some_and(|error| error.is_decode() || error.is_body())
    });
    let class = match status {
        Some(429) => Throttled,
        Some(408 | 500..=599) => Unavailable,
        Some(_) if !is_unreadable => Misconfigured,
        _ if is_transient || is_unreadable => Unavailable,
        _ => Misconfigured,
    };
    let code = CODES.iter().find(|code| chain().any(|error| error.to_string().contains(**code)));
    let mut text = "loading credentials failed".to_owned();
    match status {
        Some(status) => text.push_str(&format!(": status {status}")),
        None if is_unreadable => text.push_str(": the answer cannot be understood"),
        None if class == Unavailable => text.push_str(": no answer"),
        None => text.push_str(": refused, or the source cannot be used"),
    }
    if let Some(code) = code {
        text.push_str(&format!(", {code}"));
    }
    Failure::new(class, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use google_cloud_auth::errors::CredentialsError;

    fn of(error: &CredentialsError) -> (KekErrorClass, String) {
        let failure = refusal(error, error.is_transient());
        (failure.class, failure.text)
    }

    #[test]
    fn what_may_pass_is_an_outage_and_what_needs_somebody_is_not() {
        let passing = CredentialsError::from_msg(true, "no route: token=hunter2");
        assert_eq!(of(&passing), (Unavailable, "loading credentials failed: no answer".to_owned()));
        let refused =
            CredentialsError::from_msg(false, "{\"error\":\"invalid_grant\",\"k\":\"hunter2\"}");
        let (class, text) = of(&refused);
        assert_eq!(class, Misconfigured);
        assert!(text.contains("invalid_grant") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_status_counts_more_than_what_the_library_makes_of_it() {
        for (status, class) in [
            (400, Misconfigured),
            (403, Misconfigured),
            (404, Misconfigured),
            (408, Unavailable),
            (429, Throttled),
            (500, Unavailable),
            (503, Unavailable),
        ] {
            for is_transient in [true, false] {
                let http = GaxError::http(status, Default::default(), Default::default());
                let (found, text) = of(&CredentialsError::new(is_transient, "said", http));
                assert_eq!(found, class, "{text}");
                assert!(text.contains(&status.to_string()), "{text}");
            }
        }
    }
}
