//! What the answers of Google Cloud KMS mean: one table, by status and, if that is not enough, by
//! reason, violation or message. Those of external key managers are in `ekm`.
//!
//! Sources: AIP-193 and `google.rpc.Status`; `google.api.ErrorReason` (googleapis); "Key version
//! states" and "Troubleshooting" of Cloud KMS; the messages as public issue threads show them.
#![forbid(unsafe_code)]

use waxseal::kek::KekErrorClass;

use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

/// The state of a key version, and the outcome of a use. ENABLED is not listed.
///
/// A version that is not ready yet is a temporary outage. A version that somebody disabled or
/// destroyed is a refusal. A version that was never created needs an operator.
pub(crate) const STATES: &[(&str, KekErrorClass)] = &[
    ("DISABLED", Denied),
    ("DESTROY_SCHEDULED", Denied),
    ("DESTROYED", Denied),
    ("PENDING_EXTERNAL_DESTRUCTION", Denied),
    ("EXTERNAL_DESTRUCTION_FAILED", Denied),
    ("PENDING_GENERATION", Unavailable),
    ("PENDING_IMPORT", Unavailable),
    ("GENERATION_FAILED", Misconfigured),
    ("IMPORT_FAILED", Misconfigured),
];

/// The parts of an answer apart from its status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Says {
    /// The reason of a `google.rpc.ErrorInfo` whose domain is one of Google's.
    Reason(&'static str),
    /// A part of its message or of the types of its violations, in lower case.
    Text(&'static str),
    Anything,
}

use Says::{Anything, Reason, Text};

/// A status, a part of the answer, and what that means. The first match counts.
///
/// PERMISSION_DENIED is *denied* only if IAM refuses the use of the key. The API of a project, its
/// billing, a perimeter, an organization's policy and the state of an account need an operator and
/// say nothing about the key. So do unknown reasons: they end DEKs at `max_age`, not at once. If
/// there is an `ErrorInfo`, it decides and not the message.
///
/// `docs/google-kms.md` shows these rows; a test compares them.
pub(crate) const TABLE: &[(&str, Says, KekErrorClass)] = &[
    // The caller's identity.
    ("UNAUTHENTICATED", Anything, Misconfigured),
    // The right to use the key.
    ("PERMISSION_DENIED", Reason(IAM), Denied),
    ("PERMISSION_DENIED", Text("permission 'cloudkms."), Denied),
    ("PERMISSION_DENIED", Text("the caller does not have permission"), Denied),
    ("PERMISSION_DENIED", Anything, Misconfigured),
    // The key, its versions, its key ring. If anything else is missing, the request did not reach
    // them.
    ("NOT_FOUND", Text("cryptokey"), Denied),
    ("NOT_FOUND", Text("keyring"), Denied),
    ("NOT_FOUND", Anything, Misconfigured),
    // The key itself. Its states come before these.
    ("FAILED_PRECONDITION", Text("no primary version"), Misconfigured),
    ("FAILED_PRECONDITION", Text("purpose"), Misconfigured),
    // Unknown reasons are never taken for a refusal.
    ("FAILED_PRECONDITION", Anything, Unavailable),
    // A checksum that does not match was damaged in transit: try again.
    ("INVALID_ARGUMENT", Text("checksum"), Unavailable),
    // A verdict on the caller's project, whatever was sent, so no message is to blame.
    ("INVALID_ARGUMENT", Reason("RESOURCE_PROJECT_INVALID"), Misconfigured),
    // This wrapped key, or this context with it.
    ("INVALID_ARGUMENT", Text("verify that 'name' refers to the correct cryptokey"), Invalid),
    ("INVALID_ARGUMENT", Text("the ciphertext is invalid"), Invalid),
    ("INVALID_ARGUMENT", Anything, Invalid),
    ("OUT_OF_RANGE", Anything, Invalid),
    // Too many calls.
    ("RESOURCE_EXHAUSTED", Anything, Throttled),
    // The service itself.
    ("ABORTED", Anything, Unavailable),
    ("CANCELLED", Anything, Unavailable),
    ("DATA_LOSS", Anything, Unavailable),
    ("DEADLINE_EXCEEDED", Anything, Unavailable),
    ("INTERNAL", Anything, Unavailable),
    ("UNAVAILABLE", Anything, Unavailable),
    ("UNKNOWN", Anything, Unavailable),
    ("UNIMPLEMENTED", Anything, Misconfigured),
];

/// IAM refuses a permission, which the metadata names.
pub(crate) const IAM: &str = "IAM_PERMISSION_DENIED";

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/google-kms.md shows the tables, row by row.
    #[test]
    fn the_docs_show_these_tables() {
        let docs = include_str!("../docs/google-kms.md");
        let section = |title: &str| {
            let section = docs.split(title).nth(1).unwrap_or_else(|| panic!("no {title}"));
            section.split("\n## ").next().unwrap().split("\n### ").next().unwrap()
        };
        let rows = |section: &str| -> Vec<Vec<String>> {
            let lines = section.lines().filter(|line| line.starts_with("| `"));
            let cells = |line: &str| {
                line.trim_matches('|')
                    .split(" | ")
                    .map(|cell| cell.trim().replace('`', ""))
                    .collect()
            };
            lines.map(cells).collect()
        };
        let in_force: Vec<Vec<String>> = TABLE
            .iter()
            .map(|(status, part, class)| {
                let part = match part {
                    Reason(reason) => format!("reason {reason}"),
                    Text(text) => (*text).to_owned(),
                    Anything => "anything else".to_owned(),
                };
                vec![(*status).to_owned(), part, class.to_string()]
            })
            .collect();
        assert_eq!(rows(section("### Answers")), in_force);
        let states: Vec<Vec<String>> = STATES
            .iter()
            .map(|(state, class)| vec![(*state).to_owned(), class.to_string()])
            .collect();
        let shown = rows(section("### States of a version"));
        let shown: Vec<_> = shown.into_iter().map(|row| row[..2].to_vec()).collect();
        assert_eq!(shown, states);
    }
}
