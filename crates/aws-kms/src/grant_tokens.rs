//! The grant tokens that KMS accepts.
#![forbid(unsafe_code)]

use waxseal::{Error, ErrorKind};

/// The limit of KMS.
const MOST_GRANT_TOKENS: usize = 10;
const LONGEST_GRANT_TOKEN: usize = 8192;

pub(crate) fn check_grant_tokens(tokens: &[String]) -> Result<(), Error> {
    if tokens.len() > MOST_GRANT_TOKENS {
        return Err(invalid(format!(
            "grant_tokens: {}, at most {MOST_GRANT_TOKENS} are allowed",
            tokens.len()
        )));
    }
    if tokens.iter().any(|token| token.is_empty() || token.len() > LONGEST_GRANT_TOKEN) {
        return Err(invalid(format!("grant_tokens: a token has 1 to {LONGEST_GRANT_TOKEN} bytes")));
    }
    Ok(())
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOption, detail)
}
