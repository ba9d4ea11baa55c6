//! Keys in an external key manager (Cloud EKM): what their failures mean, and how they are called.
//!
//! Google reports a failure of the external key manager as FAILED_PRECONDITION with two violations:
//! the state of the key, and the "error domain". Only the domain distinguishes an outage from a
//! refusal.
//!
//! Source: "Cloud EKM error reference" (cloud.google.com/kms/docs/reference/ekm_errors), as of
//! April 2026.
#![forbid(unsafe_code)]

use waxseal::kek::KekErrorClass;

use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

/// An error domain and what it means. `docs/ekm.md` shows these rows; a test compares them.
pub(crate) const DOMAINS: &[(&str, KekErrorClass)] = &[
    // The owner of the external key disabled or removed it.
    ("EXTERNAL_PERMISSION_DENIED", Denied),
    ("EXTERNAL_NOT_FOUND", Denied),
    // An operator has to act: the key's URI, the manager's certificate, the manager's features.
    ("EXTERNAL_KEY_URI_INVALID", Misconfigured),
    ("EXTERNAL_KEY_HOST_NOT_WHITELISTED", Misconfigured),
    ("TLS_CERT", Misconfigured),
    ("EXTERNAL_NOT_IMPLEMENTED", Misconfigured),
    // The manager gave no answer or no valid one. A name that cannot be resolved is an outage too,
    // since resolvers fail more often than names are mistyped.
    ("DNS", Unavailable),
    ("UNREACHABLE_NETWORK", Unavailable),
    ("TIMEOUT", Unavailable),
    ("REQUEST_CANCELLED", Unavailable),
    ("UNEXPECTED_RESPONSE", Unavailable),
    ("EXTERNAL_SERVER_ERROR", Unavailable),
    ("UNEXPECTED_ERROR", Unavailable),
    // Too many calls.
    ("EXTERNAL_RESOURCE_EXHAUSTED", Throttled),
    ("OVERLOADED_EKM", Throttled),
    // This wrapped key, or this context with it.
    ("DECRYPTION_FAILED", Invalid),
];

/// Returns the meaning of the first violation whose type is an error domain.
pub(crate) fn class_of<'t>(violations: impl IntoIterator<Item = &'t str>) -> Option<KekErrorClass> {
    violations.into_iter().find_map(|kind| {
        DOMAINS.iter().find(|(domain, _)| *domain == kind).map(|(_, class)| *class)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_domain_counts_and_not_the_key_s_state() {
        assert_eq!(class_of(["KEY_ENABLED", "TIMEOUT"]), Some(Unavailable));
        assert_eq!(class_of(["KEY_DISABLED", "EXTERNAL_PERMISSION_DENIED"]), Some(Denied));
        assert_eq!(class_of(["KEY_ENABLED", "BRAND_NEW_DOMAIN"]), None);
        assert_eq!(class_of([]), None);
    }

    #[test]
    fn each_domain_is_there_once() {
        let mut domains: Vec<_> = DOMAINS.iter().map(|(domain, _)| domain).collect();
        domains.sort_unstable();
        domains.dedup();
        assert_eq!(domains.len(), DOMAINS.len());
    }

    /// docs/ekm.md shows every domain, with its class.
    #[test]
    fn the_docs_show_these_domains() {
        let docs = include_str!("../docs/ekm.md");
        let section = docs.split("## What each error domain means").nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let shown: Vec<_> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
            .filter_map(|(domain, rest)| Some((domain, rest.split(" | ").next()?.to_owned())))
            .collect();
        let in_force: Vec<_> =
            DOMAINS.iter().map(|(domain, class)| (*domain, class.to_string())).collect();
        assert_eq!(shown, in_force);
    }
}
