//! How a call failed, and what an unsuccessful answer means, by the rows of `table` and, for
//! external key managers, of `ekm`.
#![forbid(unsafe_code)]

use std::time::Duration;

use serde::Deserialize;
use waxseal::kek::{KekError, KekErrorClass};

use crate::ekm;
use crate::table::Says::{Anything, Reason, Text};
use crate::table::{IAM, STATES, TABLE};

use KekErrorClass::{Misconfigured, Throttled, Unavailable};

/// The maximum number of characters of a service's text that is passed on.
const MOST_TEXT: usize = 500;
/// The longest requested pause that is passed on.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// How a call failed. It contains no byte of request or answer except the service's own words.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) class: KekErrorClass,
    pub(crate) text: String,
    pub(crate) retry_after: Option<Duration>,
    /// The service did not accept the token.
    pub(crate) is_of_credentials: bool,
    /// Whether Cloud KMS was asked.
    asked: bool,
    /// Whether something between here and the service refused this request.
    on_the_way: bool,
}

impl Failure {
    pub(crate) fn new(class: KekErrorClass, text: impl Into<String>) -> Self {
        Self {
            class,
            text: text.into(),
            retry_after: None,
            is_of_credentials: false,
            asked: true,
            on_the_way: false,
        }
    }

    pub(crate) fn unavailable(text: impl Into<String>) -> Self {
        Self::new(Unavailable, text)
    }

    /// Makes a failure that the provider decided without asking anybody.
    pub(crate) fn unasked(class: KekErrorClass, text: impl Into<String>) -> Self {
        Self { asked: false, ..Self::new(class, text) }
    }

    pub(crate) fn not_understood(operation: &str) -> Self {
        Self::unavailable(format!("{operation}: the answer cannot be understood"))
    }

    /// Returns what an unsuccessful answer means.
    pub(crate) fn answered(
        operation: &str,
        http: u16,
        retry_after: Option<Duration>,
        body: &[u8],
    ) -> Self {
        let status = serde_json::from_slice::<Answer>(body).ok().map(|answer| answer.error);
        let Some(status) = status.filter(|status| !status.status.is_empty()) else {
            return Self::by_something_else(operation, http, retry_after, body);
        };
        let class = status.class();
        Self {
            retry_after: retry_after.or(status.pause()).map(|pause| pause.min(LONGEST_PAUSE)),
            is_of_credentials: status.status == "UNAUTHENTICATED",
            ..Self::new(class, format!("{operation}: {}", status.text()))
        }
    }

    /// Handles an answer that is not in the form of Google's APIs: from a proxy, a gateway, or a
    /// front end. Only Cloud KMS denies, and only it knows a ciphertext.
    fn by_something_else(
        operation: &str,
        http: u16,
        retry_after: Option<Duration>,
        body: &[u8],
    ) -> Self {
        let (class, on_the_way) = match http {
            429 => (Throttled, false),
            408 => (Unavailable, false),
            407 => (Misconfigured, false),
            400..=499 => (Misconfigured, true),
            _ => (Unavailable, false),
        };
        let start = String::from_utf8_lossy(body.get(..MOST_TEXT).unwrap_or(body)).into_owned();
        let text = format!(
            "{operation}: status {http} from something that does not answer as Cloud KMS does: {}",
            tidy(&start)
        );
        let retry_after = retry_after.map(|pause| pause.min(LONGEST_PAUSE));
        Self { on_the_way, retry_after, ..Self::new(class, text) }
    }
}

impl From<Failure> for KekError {
    fn from(failure: Failure) -> Self {
        let error = Self::new(failure.class, failure.text);
        let error = if failure.asked { error } else { error.without_asking() };
        let error = if failure.on_the_way { error.on_the_way() } else { error };
        match failure.retry_after {
            Some(wait) => error.with_retry_after(wait),
            None => error,
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    error: Status,
}

/// `google.rpc.Status` in JSON.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Vec<Detail>,
}

/// A detail of any type, with the fields that matter.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Detail {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    domain: String,
    #[serde(default)]
    metadata: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    violations: Vec<Violation>,
    #[serde(default)]
    retry_delay: String,
}

#[derive(Deserialize)]
struct Violation {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    description: String,
}

impl Detail {
    /// Whether this is Google's own reason. A permission that does not concern a key is treated
    /// separately.
    fn is(&self, reason: &str) -> bool {
        let is_google = self.domain == "googleapis.com" || self.domain.ends_with(".googleapis.com");
        let permission = self.metadata.get("permission").and_then(|name| name.as_str());
        is_google
            && self.reason == reason
            && (reason != IAM || permission.is_none_or(|name| name.starts_with("cloudkms.")))
    }
}

impl Status {
    fn violations(&self) -> impl Iterator<Item = &Violation> {
        self.details.iter().flat_map(|detail| &detail.violations)
    }

    fn reasons(&self) -> impl Iterator<Item = &str> {
        self.details.iter().map(|detail| &*detail.reason).filter(|reason| !reason.is_empty())
    }

    fn class(&self) -> KekErrorClass {
        let of_the_manager = ekm::class_of(self.violations().map(|violation| &*violation.kind));
        if let Some(class) = of_the_manager {
            return class;
        }
        let mut says = self.message.to_lowercase();
        for violation in self.violations() {
            says.push('\n');
            says.push_str(&violation.kind.to_lowercase());
        }
        if self.status == "FAILED_PRECONDITION"
            && let Some(class) = class_of_state(&says)
        {
            return class;
        }
        // The message is read only if no structured field decides.
        let is_read = self.status != "PERMISSION_DENIED" || self.reasons().next().is_none();
        let row = TABLE.iter().find(|(status, part, _)| {
            *status == self.status
                && match part {
                    Reason(reason) => self.details.iter().any(|detail| detail.is(reason)),
                    Text(part) => is_read && says.contains(part),
                    Anything => true,
                }
        });
        row.map_or(Unavailable, |(.., class)| *class)
    }

    fn pause(&self) -> Option<Duration> {
        self.details.iter().find_map(|detail| {
            let seconds: f64 = detail.retry_delay.strip_suffix('s')?.parse().ok()?;
            Duration::try_from_secs_f64(seconds).ok()
        })
    }

    /// Returns the service's words, and the details that help an operator: the reason, the
    /// violations, and why Key Access Justifications refused.
    fn text(&self) -> String {
        let mut text = format!("{}: {}", tidy(&self.status), tidy(&self.message));
        let mut more: Vec<String> = self.reasons().map(tidy).collect();
        for violation in self.violations() {
            let separator = if violation.description.is_empty() { "" } else { ": " };
            more.push(format!(
                "{}{separator}{}",
                tidy(&violation.kind),
                tidy(&violation.description)
            ));
        }
        for (name, value) in self.details.iter().flat_map(|detail| &detail.metadata) {
            let plain = name.to_lowercase().replace('_', "");
            if (plain.contains("justification") || plain.contains("accessreason"))
                && let Some(value) = value.as_str()
            {
                more.push(format!("{} = {}", tidy(name), tidy(value)));
            }
        }
        if !more.is_empty() {
            let shown: String = more.join(", ").chars().take(MOST_TEXT).collect();
            text.push_str(&format!(" [{shown}]"));
        }
        text
    }
}

/// Returns the meaning of a state that an answer names, as `KEY_DISABLED` in a violation or as
/// "current state is: DISABLED." in the message.
fn class_of_state(says: &str) -> Option<KekErrorClass> {
    let named = |state: &str| {
        let state = state.to_lowercase();
        says.lines().any(|line| {
            line.strip_prefix("key_") == Some(&state)
                || line
                    .split_once("current state is: ")
                    .is_some_and(|(_, rest)| rest.trim_end_matches('.') == state)
        })
    };
    STATES.iter().find(|(state, _)| named(state)).map(|(_, class)| *class)
}

/// Returns the service's words without control characters and of limited length.
pub(crate) fn tidy(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MOST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use KekErrorClass::Denied;

    fn answered(http: u16, body: &serde_json::Value) -> Failure {
        Failure::answered("decrypt", http, None, body.to_string().as_bytes())
    }

    fn status(status: &str, message: &str, details: serde_json::Value) -> Failure {
        answered(
            400,
            &json!({ "error": { "code": 400, "status": status, "message": message, "details": details } }),
        )
    }

    fn info(reason: &str, domain: &str, metadata: serde_json::Value) -> serde_json::Value {
        let kind = "type.googleapis.com/google.rpc.ErrorInfo";
        json!({ "@type": kind, "reason": reason, "domain": domain, "metadata": metadata })
    }

    #[test]
    fn every_row_of_the_table_can_be_reached() {
        for (code, part, class) in TABLE {
            let failure = match part {
                Reason(reason) => {
                    status(code, "", json!([info(reason, "cloudkms.googleapis.com", json!({}))]))
                }
                Text(part) => {
                    assert_eq!(part.to_lowercase(), *part);
                    status(code, &format!("The key {part} now"), json!([]))
                }
                Anything => status(code, "", json!([])),
            };
            assert_eq!(failure.class, *class, "{code} {part:?}");
        }
    }

    /// Of `google.api.ErrorReason`, all that come with PERMISSION_DENIED.
    #[test]
    fn what_an_operator_has_to_do_is_no_denial() {
        let iam = "Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied on resource 'k'.";
        for reason in [
            "SERVICE_DISABLED",
            "BILLING_DISABLED",
            "CONSUMER_INVALID",
            "CONSUMER_SUSPENDED",
            "GCP_SUSPENDED",
            "USER_PROJECT_DENIED",
            "USER_BLOCKED_BY_ADMIN",
            "ACCOUNT_STATE_INVALID",
            "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
            "API_KEY_SERVICE_BLOCKED",
            "SECURITY_POLICY_VIOLATED",
            "LOCATION_POLICY_VIOLATED",
            "LOCATION_ORG_POLICY_VIOLATED",
            "LOCATION_TAX_POLICY_VIOLATED",
            "RESOURCE_USAGE_RESTRICTION_VIOLATED",
            "ENDPOINT_USAGE_RESTRICTION_VIOLATED",
            "ORG_RESTRICTION_VIOLATION",
            "ORG_RESTRICTION_HEADER_INVALID",
            "TLS_ORG_POLICY_VIOLATED",
            "TLS_CIPHER_RESTRICTION_VIOLATED",
            "SERVICE_NOT_VISIBLE",
            "BRAND_NEW",
        ] {
            // Whatever the message says: the reason counts.
            let details = json!([info(reason, "googleapis.com", json!({}))]);
            assert_eq!(status("PERMISSION_DENIED", iam, details).class, Misconfigured, "{reason}");
        }
    }

    #[test]
    fn only_iam_s_refusal_of_a_right_to_the_key_is_a_denial() {
        let of = |message: &str, details: serde_json::Value| {
            status("PERMISSION_DENIED", message, details).class
        };
        let iam = "Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied on resource \
                   'projects/p/…/cryptoKeys/k' (or it may not exist).";
        let right = json!({ "permission": "cloudkms.cryptoKeyVersions.useToDecrypt" });
        for domain in ["cloudkms.googleapis.com", "iam.googleapis.com", "googleapis.com"] {
            assert_eq!(of("x", json!([info(IAM, domain, right.clone())])), Denied, "{domain}");
        }
        assert_eq!(of(iam, json!([])), Denied, "without details, as older answers are");
        assert_eq!(of("The caller does not have permission", json!([])), Denied);
        for (message, details) in [
            // A permission that is not a right to a key.
            ("x", json!([info(IAM, "googleapis.com", json!({ "permission": "serviceusage.x" }))])),
            // A gateway that uses Google's form, and Google's words with it.
            (iam, json!([info(IAM, "gateway.example.com", right.clone())])),
            (iam, json!([info(IAM, "evilgoogleapis.com", right.clone())])),
            (iam, json!([info(IAM, "", right)])),
            (iam, json!([info("BLOCKED", "gateway.example.com", json!({}))])),
            ("blocked by the proxy's policy", json!([])),
            (
                "Request is prohibited by organization's policy. \
                 vpcServiceControlsUniqueIdentifier: x",
                json!([{ "violations": [{ "type": "VPC_SERVICE_CONTROLS" }] }]),
            ),
            ("", json!([])),
        ] {
            assert_eq!(of(message, details), Misconfigured, "{message}");
        }
    }

    #[test]
    fn only_a_key_that_is_gone_is_a_denial() {
        for (message, class) in [
            ("CryptoKey projects/p/…/cryptoKeys/k not found.", Denied),
            ("CryptoKeyVersion projects/p/…/cryptoKeyVersions/7 not found.", Denied),
            ("KeyRing projects/p/locations/l/keyRings/r not found.", Denied),
            ("Method not found.", Misconfigured),
            ("Requested entity was not found.", Misconfigured),
            (
                "The request concerns location 'europe-west3' but was sent to location 'global'.",
                Misconfigured,
            ),
        ] {
            assert_eq!(status("NOT_FOUND", message, json!([])).class, class, "{message}");
        }
    }

    #[test]
    fn a_state_is_read_from_the_violation_and_from_the_message_alone() {
        for (state, class) in STATES {
            let violation =
                json!([{ "violations": [{ "type": format!("KEY_{state}"), "subject": "k" }] }]);
            assert_eq!(status("FAILED_PRECONDITION", "?", violation).class, *class, "{state}");
            let message =
                format!("k/cryptoKeyVersions/1 is not enabled, current state is: {state}.");
            assert_eq!(status("FAILED_PRECONDITION", &message, json!([])).class, *class, "{state}");
        }
        let new = status("FAILED_PRECONDITION", "x, current state is: BRAND_NEW.", json!([]));
        assert_eq!(new.class, Unavailable);
        assert!(new.text.contains("BRAND_NEW"), "{}", new.text);
    }

    #[test]
    fn what_is_not_known_is_unavailable_with_its_text() {
        for failure in [
            status("BRAND_NEW", "something nobody has read before", json!([])),
            status(
                "FAILED_PRECONDITION",
                "something nobody has read before",
                json!([{ "violations": [{ "type": "KEY_ENABLED" }, { "type": "BRAND_NEW" }] }]),
            ),
        ] {
            assert_eq!(failure.class, Unavailable, "{}", failure.text);
            assert!(failure.text.contains("something nobody has read before"), "{}", failure.text);
        }
    }

    #[test]
    fn what_is_not_google_s_neither_denies_nor_knows_a_ciphertext() {
        for http in [400, 401, 403, 404, 413] {
            let failure = Failure::answered("decrypt", http, None, b"<html>no</html>");
            let error = KekError::from(failure);
            assert_eq!(error.class(), Misconfigured, "{http}");
            assert!(error.message().contains("<html>no</html>"));
        }
        for (http, class) in
            [(502, Unavailable), (503, Unavailable), (429, Throttled), (302, Unavailable)]
        {
            assert_eq!(Failure::answered("decrypt", http, None, b"").class, class, "{http}");
        }
    }

    #[test]
    fn how_long_to_stay_away_is_passed_on_within_bounds() {
        let details = json!([{ "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.500s" }]);
        let failure = status("RESOURCE_EXHAUSTED", "", details);
        assert_eq!(failure.retry_after, Some(Duration::from_millis(1500)));
        for (delay, pause) in [
            ("99999999s", Some(LONGEST_PAUSE)),
            ("-1s", None),
            ("NaNs", None),
            ("x", None),
            ("1e400s", None),
        ] {
            let failure = status("RESOURCE_EXHAUSTED", "", json!([{ "retryDelay": delay }]));
            assert_eq!(failure.retry_after, pause, "{delay}");
        }
        let body = json!({ "error": { "status": "UNAVAILABLE" } }).to_string();
        let header = Some(Duration::from_secs(7));
        assert_eq!(Failure::answered("x", 503, header, body.as_bytes()).retry_after, header);
    }

    #[test]
    fn a_justification_that_was_not_accepted_is_shown() {
        let failure = status(
            "FAILED_PRECONDITION",
            "Permission was denied when accessing the key.",
            json!([
                { "violations": [{ "type": "KEY_DISABLED" }, { "type": "EXTERNAL_PERMISSION_DENIED" }] },
                { "reason": "R", "metadata": { "accessReason": "CUSTOMER_INITIATED_ACCESS", "token": "hunter2" } },
            ]),
        );
        assert_eq!(failure.class, Denied);
        assert!(
            failure.text.contains("accessReason = CUSTOMER_INITIATED_ACCESS"),
            "{}",
            failure.text
        );
        assert!(failure.text.contains("EXTERNAL_PERMISSION_DENIED"), "{}", failure.text);
        assert!(!failure.text.contains("hunter2"));
    }

    #[test]
    fn texts_are_bounded_and_have_no_control_characters() {
        let long = format!("a\u{1b}[31m\n{}", "b".repeat(100_000));
        let details = json!([{ "violations": [{ "type": long, "description": long }] }]);
        let failure = status("INTERNAL", &long, details);
        assert!(failure.text.len() < 3 * MOST_TEXT);
        assert!(!failure.text.contains(char::is_control));
    }

    #[test]
    fn an_answer_of_any_shape_has_a_class() {
        for body in [
            "",
            "{}",
            "[]",
            "null",
            "{\"error\":null}",
            "{\"error\":\"x\"}",
            "{\"error\":{}}",
            "{\"error\":{\"status\":1}}",
            "{\"error\":{\"status\":\"X\",\"details\":[1]}}",
            "{\"error\":{\"status\":\"X\",\"details\":{}}}",
        ] {
            let failure = Failure::answered("x", 500, None, body.as_bytes());
            assert_eq!(failure.class, Unavailable, "{body}");
        }
    }
}
