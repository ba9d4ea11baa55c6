//! What a status and a text of the server mean: one table.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::kek::{KekError, KekErrorClass};

use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

/// A failure that can be told to several callers.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) class: KekErrorClass,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    pub(super) fn new(class: KekErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), retry_after: None }
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Unavailable, message)
    }

    pub(super) fn misconfigured(message: impl Into<String>) -> Self {
        Self::new(Misconfigured, message)
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Invalid, message)
    }

    /// A server answered, but not as this API does.
    pub(super) fn not_understood(operation: &str) -> Self {
        Self::unavailable(format!("{operation}: the answer cannot be understood"))
    }
}

impl From<Failure> for KekError {
    fn from(failure: Failure) -> Self {
        let error = KekError::new(failure.class, failure.message);
        match failure.retry_after {
            Some(wait) => error.with_retry_after(wait),
            None => error,
        }
    }
}

/// By status, then by the first text that the answer contains; an empty text matches every answer of its status.
///
/// What is said of one ciphertext or one context is *invalid*; what is said of the key itself is *denied*. A 403 counts after a new login only.
const TABLE: &[(u16, &str, KekErrorClass, &str)] = &[
    (400, "encryption key not found", Denied, "the key does not exist"),
    (400, "soft-deleted", Denied, "the key is soft-deleted"),
    (400, "disallowed by policy (too old)", Denied, "the key version is below min_decryption_version"),
    (400, "message authentication failed", Invalid, "wrong context, or a damaged or foreign ciphertext"),
    (400, "invalid ciphertext", Invalid, "not a ciphertext of this key"),
    (400, "", Invalid, "refused as bad input"),
    (401, "", Misconfigured, "something in front of the server wants other credentials"),
    (403, "", Denied, "permission denied"),
    (404, "no handler for route", Misconfigured, "nothing is mounted at this path"),
    (404, "", Denied, "there is no such thing"),
    (405, "", Misconfigured, "the server does not support the operation at this path"),
    (407, "", Misconfigured, "the proxy wants credentials"),
    (412, "", Unavailable, "this node has not yet seen what it is asked about"),
    (413, "", Invalid, "the request is larger than the server allows"),
    (429, "", Throttled, "a quota is used up"),
    (472, "", Unavailable, "the node is a disaster-recovery secondary"),
    (473, "", Unavailable, "the node is a performance standby"),
    // Some versions answered so to a wrong context.
    (500, "message authentication failed", Invalid, "wrong context, or a damaged or foreign ciphertext"),
    (503, "sealed", Unavailable, "sealed"),
];

/// The meaning of an answer that is not a success; `texts` is `None` if it has not the server's form.
///
/// Only the server itself denies: a gateway or a firewall in front of it, which may answer 403 or 404 during somebody's rollout, ends no DEK.
pub(super) fn classify(operation: &str, status: u16, texts: Option<&[String]>) -> Failure {
    let says = |wanted: &str| wanted.is_empty() || texts.unwrap_or_default().iter().any(|text| text.contains(wanted));
    let row = TABLE.iter().find(|(code, text, ..)| *code == status && says(text));
    let (class, meaning) = match row {
        Some((_, _, Denied, _)) if texts.is_none() => {
            (Misconfigured, "refused by something that does not answer as Vault does")
        }
        Some((.., class, meaning)) => (*class, *meaning),
        None if (300..400).contains(&status) => (Unavailable, "a redirection that is not followed"),
        None => (Unavailable, "the server failed"),
    };
    let texts = texts.unwrap_or_default().iter().map(|text| presentable(text)).collect::<Vec<_>>().join("; ");
    let separator = if texts.is_empty() { "" } else { ": " };
    Failure::new(class, format!("{operation}: {meaning} ({status}{separator}{texts})"))
}

/// The meaning of what one item of a batch says, whatever the status of the whole.
pub(super) fn classify_item(operation: &str, text: &str) -> Failure {
    classify(operation, 400, Some(&[text.to_owned()]))
}

const MAX_TEXT: usize = 240;
const LONGEST_WORD: usize = 23;

/// A server's text for an operator's eyes: bounded, on one line, and without words as long as a token or an encoded key, whoever put
/// them there.
pub(super) fn presentable(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let mut line = String::new();
    for word in words {
        if line.len() + word.len().min(LONGEST_WORD) > MAX_TEXT {
            line.push_str(" […]");
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(if word.len() > LONGEST_WORD { "[…]" } else { word });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_can_be_reached() {
        for (i, (status, text, class, meaning)) in TABLE.iter().enumerate() {
            let failure = classify("unwrap", *status, Some(&[format!("1 error occurred: {text}")]));
            assert_eq!(failure.class, *class, "row {i}");
            assert!(failure.message.contains(meaning), "row {i}: {}", failure.message);
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_unavailable_with_its_text() {
        for status in [402, 408, 418, 451, 500, 502, 503, 504, 530, 599, 307, 100, 999] {
            let failure = classify("unwrap", status, Some(&["something new".to_owned()]));
            assert_eq!(failure.class, Unavailable, "{status}");
            assert!(failure.message.contains("something new"), "{}", failure.message);
        }
        assert_eq!(classify("unwrap", 400, Some(&[])).class, Invalid);
        assert_eq!(classify("unwrap", 404, Some(&[])).class, Denied);
    }

    #[test]
    fn only_what_has_the_servers_form_can_deny() {
        for status in 300..600 {
            assert_ne!(classify("unwrap", status, None).class, Denied, "{status}");
        }
    }

    #[test]
    fn no_text_shows_a_word_as_long_as_a_token_or_a_key() {
        let token = "s.k5lCZksuvb8Z4EV7ssBKE2xd";
        let key = "Rlz2BsXNCYEZWH5Afrg8bpf6g5rnC7vurBXFOYVVJqM=";
        let failure = classify("wrap", 500, Some(&[format!("bad token {token}, key\n{key}")]));
        assert!(!failure.message.contains("5lCZ") && !failure.message.contains("BsXN"), "{}", failure.message);
        assert!(failure.message.contains("bad token"));
        assert!(!failure.message.contains('\n'));
        assert!(presentable(&"word ".repeat(1000)).len() < 300);
    }
}
