//! What a status and a text of the server mean: one table.
#![forbid(unsafe_code)]

use std::time::Duration;

use waxseal::kek::{KekError, KekErrorClass};

use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

/// A failure that several callers can share.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) class: KekErrorClass,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
    /// Whether a server was asked, so that this is its answer or its silence.
    pub(crate) asked: bool,
    /// Whether it concerns everything in a namespace, so that a failed login says as much about the
    /// key as a call does.
    pub(crate) locked: bool,
    /// Whether something between here and the server refused this request. The next one may pass,
    /// so it says nothing about the server.
    pub(crate) on_the_way: bool,
}

impl Failure {
    pub(crate) fn new(class: KekErrorClass, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            retry_after: None,
            asked: true,
            locked: false,
            on_the_way: false,
        }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Unavailable, message)
    }

    pub(crate) fn misconfigured(message: impl Into<String>) -> Self {
        Self::new(Misconfigured, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Invalid, message)
    }

    /// Marks it as decided here, without asking a server.
    pub(crate) fn without_asking(self) -> Self {
        Self { asked: false, ..self }
    }

    /// Makes the failure of an answer that is not in this API's form.
    pub(crate) fn not_understood(operation: &str) -> Self {
        Self::unavailable(format!("{operation}: the answer cannot be understood"))
    }

    /// Whether the same may succeed later without anybody acting.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.class, Unavailable | Throttled)
    }
}

impl From<Failure> for KekError {
    fn from(failure: Failure) -> Self {
        let error = KekError::new(failure.class, failure.message);
        let error = if failure.asked { error } else { error.without_asking() };
        let error = if failure.on_the_way { error.on_the_way() } else { error };
        match failure.retry_after {
            Some(wait) => error.with_retry_after(wait),
            None => error,
        }
    }
}

/// The content of an unsuccessful answer.
pub(crate) enum Said {
    /// From the server, in its own form.
    ByTheServer(Vec<String>),
    /// From something in between: the beginning of its text.
    BySomethingElse(String),
}

/// The reason of the server's own 403. It is evidence, not proof: OpenBao answers a bare
/// `permission denied` for a token and a list with `permission denied` for a policy. HashiCorp
/// Vault adds `invalid token` to the list for a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The server names the token.
    InvalidToken,
    /// OpenBao's words for a token that it does not know.
    Bare,
    /// The words of both for what a policy does not allow, or anything else.
    Policy,
}

pub(crate) fn refusal(texts: &[String]) -> Refusal {
    if texts.iter().any(|text| text.contains("invalid token")) {
        Refusal::InvalidToken
    } else if texts.iter().any(|text| text.trim() == "permission denied") {
        Refusal::Bare
    } else {
        Refusal::Policy
    }
}

/// By status, then by the first text that the answer contains. An empty text matches every answer
/// with its status.
///
/// A verdict on one ciphertext or one context is *invalid*. A verdict on the key itself, or on
/// everything in a namespace, is *denied*. A 403 counts only if it is not the token that was
/// refused.
const TABLE: &[(u16, &str, KekErrorClass, &str)] = &[
    (400, "encryption key not found", Denied, "the key does not exist"),
    (400, "soft-deleted", Denied, "the key is soft-deleted"),
    (
        400,
        "disallowed by policy (too old)",
        Denied,
        "the key version is below min_decryption_version",
    ),
    (
        400,
        "message authentication failed",
        Invalid,
        "wrong context, or a damaged or foreign ciphertext",
    ),
    (400, "invalid ciphertext", Invalid, "not a ciphertext of this key"),
    (400, "", Invalid, "refused as bad input"),
    (401, "", Misconfigured, "something in front of the server requires other credentials"),
    (403, "", Denied, "permission denied"),
    (404, "no handler for route", Misconfigured, "nothing is mounted at this path"),
    (404, "namespace not found", Denied, "the namespace does not exist"),
    (404, "", Denied, "not found"),
    (405, "", Misconfigured, "the server does not support the operation at this path"),
    (407, "", Misconfigured, "the proxy requires credentials"),
    (412, "", Unavailable, "this node has not yet seen what it is asked about"),
    (413, "", Invalid, "the request is larger than the server allows"),
    (429, "", Throttled, "a quota is used up"),
    (472, "", Unavailable, "the node is a disaster-recovery secondary"),
    (473, "", Unavailable, "the node is a performance standby"),
    // Some versions answer this way to a wrong context.
    (
        500,
        "message authentication failed",
        Invalid,
        "wrong context, or a damaged or foreign ciphertext",
    ),
    (503, LOCKED, Denied, "the namespace is locked"),
    (503, "sealed", Unavailable, "sealed"),
];

/// An administrator locked a namespace deliberately, so there is no outage to bridge.
const LOCKED: &str = "locked by an administrator";

/// Returns the meaning of an unsuccessful answer.
///
/// Only the server itself denies, and only the server knows a ciphertext. A gateway or a firewall
/// in front of it may answer 400, 403, 404 or 413 during a rollout. It ends no DEK and says nothing
/// about a message.
pub(crate) fn classify(operation: &str, status: u16, said: &Said) -> Failure {
    let texts: &[String] = match said {
        Said::ByTheServer(texts) => texts,
        Said::BySomethingElse(_) => &[],
    };
    let says = |wanted: &str| wanted.is_empty() || texts.iter().any(|text| text.contains(wanted));
    let row = TABLE.iter().find(|(code, text, ..)| *code == status && says(text));
    let (class, meaning) = match (row, said) {
        (Some((_, _, Denied | Invalid, _)), Said::BySomethingElse(_)) => {
            (Misconfigured, "refused by something that does not answer as Vault does")
        }
        (Some((.., class, meaning)), _) => (*class, *meaning),
        (None, _) if (300..400).contains(&status) => {
            (Unavailable, "a redirection that is not followed")
        }
        (None, _) => (Unavailable, "the server failed"),
    };
    let texts = match said {
        Said::ByTheServer(texts) => {
            let new = texts.iter().filter(|text| bare(text) != meaning);
            new.map(|text| presentable(text)).collect::<Vec<_>>().join("; ")
        }
        Said::BySomethingElse(start) => presentable(start),
    };
    let separator = if texts.is_empty() { "" } else { ": " };
    let locked = status == 503 && class == Denied;
    let on_the_way =
        matches!((row, said), (Some((_, _, Denied | Invalid, _)), Said::BySomethingElse(_)));
    Failure {
        locked,
        on_the_way,
        ..Failure::new(class, format!("{operation}: {meaning} ({status}{separator}{texts})"))
    }
}

/// Returns a server's text without the words that Go's multierror adds around a single error.
fn bare(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix("1 error occurred:").map_or(text, |rest| rest.trim().trim_start_matches("* "))
}

/// Returns the meaning of one item's text in a batch, whatever the status of the whole.
pub(crate) fn classify_item(operation: &str, text: &str) -> Failure {
    classify(operation, 400, &Said::ByTheServer(vec![text.to_owned()]))
}

const MAX_TEXT: usize = 240;
const LONGEST_WORD: usize = 23;

/// Returns a server's text for operators: bounded, on one line, without control or invisible
/// characters, and without words as long as a token or an encoded key.
pub(crate) fn presentable(text: &str) -> String {
    let words =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let mut line = String::new();
    for word in words {
        if line.len() + word.len().min(LONGEST_WORD) > MAX_TEXT {
            line.push_str(" […]");
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        match word.len() > LONGEST_WORD {
            true => line.push_str("[…]"),
            false => word.chars().for_each(|c| show(c, &mut line)),
        }
    }
    line
}

fn show(c: char, line: &mut String) {
    match c {
        '\'' | '"' => line.push(c),
        _ => line.extend(c.escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Said {
        Said::ByTheServer(vec![text.to_owned()])
    }

    fn other(text: &str) -> Said {
        Said::BySomethingElse(text.to_owned())
    }

    #[test]
    fn every_row_of_the_table_can_be_reached() {
        for (i, (status, text, class, meaning)) in TABLE.iter().enumerate() {
            let failure =
                classify("unwrap", *status, &server(&format!("1 error occurred: {text}")));
            assert_eq!(failure.class, *class, "row {i}");
            assert!(failure.message.contains(meaning), "row {i}: {}", failure.message);
            assert_eq!(failure.locked, *text == LOCKED, "row {i}");
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_unavailable_with_its_text() {
        for status in [402, 408, 418, 451, 500, 502, 503, 504, 530, 599, 307, 100, 999] {
            for said in [server("something new"), other("something new")] {
                let failure = classify("unwrap", status, &said);
                assert_eq!(failure.class, Unavailable, "{status}");
                assert!(failure.message.contains("something new"), "{}", failure.message);
            }
        }
        assert_eq!(classify("unwrap", 400, &Said::ByTheServer(vec![])).class, Invalid);
        assert_eq!(classify("unwrap", 404, &Said::ByTheServer(vec![])).class, Denied);
    }

    #[test]
    fn only_what_has_the_servers_form_can_deny_or_call_a_message_invalid() {
        let texts = TABLE.iter().map(|(_, text, ..)| *text).chain([
            "",
            "message authentication failed",
            "sealed",
        ]);
        for text in texts {
            for status in 300..600 {
                let failure = classify("unwrap", status, &other(text));
                assert!(
                    !matches!(failure.class, Denied | Invalid),
                    "{status} {text}: {}",
                    failure.message
                );
            }
        }
        let failure = classify("wrap", 413, &other("<html> 413 Request Entity Too Large </html>"));
        assert_eq!(failure.class, Misconfigured);
        assert!(failure.message.contains("Request Entity Too Large"), "{}", failure.message);
    }

    #[test]
    fn no_text_shows_a_word_as_long_as_a_token_or_a_key_or_what_a_terminal_obeys() {
        let token = "s.k5lCZksuvb8Z4EV7ssBKE2xd";
        let key = "Rlz2BsXNCYEZWH5Afrg8bpf6g5rnC7vurBXFOYVVJqM=";
        let said =
            format!("bad token {token}, key\n{key} \u{1b}[31mred \u{202e}back \u{200b}\u{0}\r");
        for said in [server(&said), other(&said)] {
            let failure = classify("wrap", 500, &said);
            assert!(
                !failure.message.contains("5lCZ") && !failure.message.contains("BsXN"),
                "{}",
                failure.message
            );
            assert!(failure.message.contains("bad token"));
            assert!(
                !failure.message.chars().any(|c| c.is_control() || "\u{202e}\u{200b}".contains(c)),
                "{failure:?}"
            );
        }
        assert!(presentable(&"word ".repeat(1000)).len() < 300);
        assert!(presentable(&"\u{202e}".repeat(5)).len() < 300);
    }

    #[test]
    fn a_403_says_whether_it_was_the_token() {
        for (texts, reason) in [
            (&["permission denied"][..], Refusal::Bare),
            (&["1 error occurred:\n\t* permission denied\n\n"], Refusal::Policy),
            (
                &["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"],
                Refusal::InvalidToken,
            ),
            (&["permission denied", "invalid token"], Refusal::InvalidToken),
            (&["something else"], Refusal::Policy),
            (&[], Refusal::Policy),
        ] {
            let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(refusal(&texts), reason, "{texts:?}");
        }
    }
}
