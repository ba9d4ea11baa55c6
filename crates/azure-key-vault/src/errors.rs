//! What an answer of Key Vault means, as one table, and what a failure of the SDK means.
#![forbid(unsafe_code)]

use std::error::Error as StdError;
use std::time::Duration;

use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::RawResponse;
use azure_core::http::headers::HeaderName;
use serde_json::Value;
use waxseal::kek::toolkit::report_request_id;
use waxseal::kek::{KekError, KekErrorClass};

use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

use crate::transport::Trouble;

/// A failure that several callers can share.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) class: KekErrorClass,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
    /// Whether a server was asked, so that this is its answer or its silence.
    pub(crate) asked: bool,
    /// Whether something between here and the service refused this request.
    pub(crate) on_the_way: bool,
    /// Whether the token was refused, so that another one may help.
    pub(crate) of_the_token: bool,
}

impl Failure {
    pub(crate) fn new(class: KekErrorClass, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            retry_after: None,
            asked: true,
            on_the_way: false,
            of_the_token: false,
        }
    }

    /// Marks it as decided here, without asking a server.
    pub(crate) fn without_asking(self) -> Self {
        Self { asked: false, ..self }
    }

    /// Makes the failure of an answer that is not in this API's form.
    pub(crate) fn not_understood(operation: Operation, why: &str) -> Self {
        Self::new(Unavailable, format!("{}: {why}", operation.name()))
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

/// The provider's requests, in Key Vault's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Encrypt,
    Decrypt,
    WrapKey,
    UnwrapKey,
    Get,
}

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::WrapKey => "wrapKey",
            Self::UnwrapKey => "unwrapKey",
            Self::Get => "get",
        }
    }

    fn takes_a_wrapped_key(self) -> bool {
        matches!(self, Self::Decrypt | Self::UnwrapKey)
    }
}

/// A row of the table: the parts of an answer (an empty text matches every answer), and what they
/// mean.
pub(crate) struct Row {
    pub(crate) status: u16,
    /// The inner code, or the code if there is no inner one.
    pub(crate) code: &'static str,
    /// A part of the message.
    pub(crate) text: &'static str,
    pub(crate) class: KekErrorClass,
    pub(crate) meaning: &'static str,
}

const fn row(
    status: u16,
    code: &'static str,
    text: &'static str,
    class: KekErrorClass,
    meaning: &'static str,
) -> Row {
    Row { status, code, text, class, meaning }
}

/// The first match counts.
///
/// A verdict on one wrapped key is *invalid*, and only `decrypt` and `unwrapKey` can return it. For
/// any other operation it is *misconfigured*. A verdict on the key or on the caller's permission is
/// *denied*. A network rule is neither: it is *misconfigured*.
pub(crate) const TABLE: &[Row] = &[
    row(400, "", "", Invalid, "the wrapped key, the context or a parameter is wrong"),
    row(401, "", "", Misconfigured, "the token is refused"),
    row(
        403,
        "ForbiddenByFirewall",
        "",
        Misconfigured,
        "the firewall refuses this client's address",
    ),
    row(
        403,
        "ForbiddenByConnection",
        "",
        Misconfigured,
        "public access is off, and this is not a private link",
    ),
    row(403, "KeyDisabled", "", Denied, "the key version is disabled"),
    row(403, "KeyNotYetValid", "", Denied, "the key version is not valid yet"),
    row(403, "KeyExpired", "", Denied, "the key version has expired"),
    row(403, "KeyOperationForbidden", "", Denied, "the key does not permit the operation"),
    row(403, "AccessDenied", "", Denied, "no access policy permits it"),
    row(403, "ForbiddenByPolicy", "", Denied, "no access policy permits it"),
    row(403, "ForbiddenByRbac", "", Denied, "no role assignment permits it"),
    row(403, "", "disabled key", Denied, "the key version is disabled"),
    row(403, "", "not yet valid", Denied, "the key version is not valid yet"),
    row(403, "", "expired key", Denied, "the key version has expired"),
    row(403, "", "is not permitted on this key", Denied, "the key does not permit the operation"),
    row(403, "", "does not have keys", Denied, "no access policy permits it"),
    row(403, "", "not authorized to perform", Denied, "no role assignment permits it"),
    row(404, "KeyNotFound", "", Denied, "no such key or version, or it is deleted"),
    row(409, "ObjectIsBeingDeleted", "", Denied, "the key is being deleted"),
    row(
        409,
        "ObjectIsDeletedButRecoverable",
        "",
        Denied,
        "the key is deleted, and can be recovered",
    ),
    row(409, "", "", Unavailable, "somebody else changes the key now"),
    row(413, "", "", Invalid, "the request is larger than the service allows"),
    row(429, "", "", Throttled, "a limit of the vault or the subscription is used up"),
];

/// An error in Key Vault's form ("Common parameters and headers", "Error responses").
pub(crate) struct Said {
    pub(crate) code: String,
    pub(crate) inner: String,
    pub(crate) message: String,
}

impl Said {
    /// Reads an error. Returns `None` for anything not in the service's form.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(body).ok()?;
        let error = value.get("error")?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        // Both spellings occur.
        let inner = error.get("innererror").or_else(|| error.get("innerError"));
        Some(Self {
            code: text(error.get("code"))?,
            inner: text(inner.and_then(|inner| inner.get("code"))).unwrap_or_default(),
            message: text(error.get("message")).unwrap_or_default(),
        })
    }

    fn has(&self, row: &Row) -> bool {
        let code = if self.inner.is_empty() { &self.code } else { &self.inner };
        (row.code.is_empty() || row.code == code) && self.message.contains(row.text)
    }
}

/// Returns the meaning of an unsuccessful answer.
///
/// Only the service itself denies, and only the service knows a wrapped key. A gateway in front of
/// it ends no DEK and says nothing about a message.
pub(crate) fn classify(operation: Operation, status: u16, body: &[u8]) -> Failure {
    let name = operation.name();
    let Some(said) = Said::read(body) else {
        let start = String::from_utf8_lossy(body.get(..MOST_SHOWN).unwrap_or(body));
        let shown = presentable(&start);
        let (class, meaning, on_the_way) = match status {
            429 => (Throttled, "something on the way asks for fewer requests", false),
            // In some versions, Key Vault's own 401 to a request without a token has no body.
            401 => (Misconfigured, "the token is refused", false),
            400..500 => {
                (Misconfigured, "refused by something that does not answer as Key Vault does", true)
            }
            300..400 => (Unavailable, "a redirection that is not followed", false),
            _ => (Unavailable, "the service failed", false),
        };
        let message = format!("{name}: {meaning} ({status}: {shown})");
        return Failure { on_the_way, of_the_token: status == 401, ..Failure::new(class, message) };
    };
    let row = TABLE.iter().find(|row| row.status == status && said.has(row));
    let (class, meaning) = match row {
        Some(row) if row.class == Invalid && !operation.takes_a_wrapped_key() => {
            (Misconfigured, "the key or the algorithm does not fit")
        }
        Some(row) => (row.class, row.meaning),
        None => (Unavailable, "the service failed"),
    };
    let code = if said.inner.is_empty() { &said.code } else { &said.inner };
    let message = format!(
        "{name}: {meaning} ({status} {}: {})",
        presentable(code),
        presentable(&said.message)
    );
    Failure { of_the_token: status == 401, ..Failure::new(class, message) }
}

/// The headers with the requested pause and with the request's id.
const RETRY_AFTER: HeaderName = HeaderName::from_static("retry-after");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");

pub(crate) fn report(headers: &azure_core::http::headers::Headers) {
    if let Some(id) = headers.get_optional_str(&REQUEST_ID) {
        report_request_id(id);
    }
}

fn retry_after(response: &RawResponse) -> Option<Duration> {
    let text = response.headers().get_optional_str(&RETRY_AFTER)?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// Returns the meaning of an SDK failure. Its Debug and its sources are not passed on, since they
/// contain bodies.
pub(crate) fn failure(operation: Operation, error: &azure_core::Error) -> Failure {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    let mut response = None;
    let mut of_a_credential = None;
    let mut trouble = None;
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<azure_core::Error>() {
            match error.kind() {
                SdkErrorKind::Credential => of_a_credential = Some(error),
                SdkErrorKind::HttpResponse { raw_response: Some(raw), .. } => {
                    response = Some(&**raw);
                }
                _ => {}
            }
        }
        if let Some(found) = error.downcast_ref::<Trouble>() {
            trouble = Some(found);
        }
        if let Some(found) = error.downcast_ref::<NoCredential>() {
            let message = format!("{}: {}", operation.name(), found.0);
            return Failure::new(Misconfigured, message).without_asking();
        }
        cause = error.source();
    }
    let what = if of_a_credential.is_some() { "the login: " } else { "" };
    let name = operation.name();
    if let Some(trouble) = trouble {
        let class = if trouble.misconfigured { Misconfigured } else { Unavailable };
        return Failure::new(class, format!("{name}: {what}{}", presentable(&trouble.text)));
    }
    match (response, of_a_credential) {
        (Some(response), None) => {
            report(response.headers());
            Failure {
                retry_after: retry_after(response),
                ..classify(operation, u16::from(response.status()), response.body().as_ref())
            }
        }
        (Some(response), Some(_)) => {
            let status = u16::from(response.status());
            let failure = classify_login(status, response.body().as_ref());
            let message = format!("{name}: {what}{}", failure.message);
            Failure { message, retry_after: retry_after(response), ..failure }
        }
        // The SDK says no more about an answer that it cannot read.
        (None, Some(_)) => Failure::new(Unavailable, format!("{name}: {what}it gave no token")),
        (None, None) => {
            let text = presentable(&error.to_string());
            // The challenge names another audience, so this is not the intended vault.
            let class = if text.contains("challenge") { Misconfigured } else { Unavailable };
            Failure::new(class, format!("{name}: {text}"))
        }
    }
}

/// Codes of Entra ID for temporary failures ("Microsoft Entra authentication and authorization
/// error codes": AADSTS90033, AADSTS90024, AADSTS50196, AADSTS90055).
const PASSING: [&str; 4] = ["AADSTS90033", "AADSTS90024", "AADSTS50196", "AADSTS90055"];

/// Returns the meaning of Entra ID's or the instance's metadata service's answer to a login.
///
/// Only a refusal is *misconfigured*. A service that is down or throttles is an outage.
pub(crate) fn classify_login(status: u16, body: &[u8]) -> Failure {
    let said: Option<Value> = serde_json::from_slice(body).ok();
    let field = |name: &str| {
        let text = said.as_ref().and_then(|said| said.get(name)).and_then(Value::as_str);
        text.map(str::to_owned)
    };
    let code = field("error").unwrap_or_default();
    let description = field("error_description").unwrap_or_default();
    let passes =
        PASSING.iter().any(|code| description.contains(code)) || code == "temporarily_unavailable";
    let class = match status {
        429 => Throttled,
        // Both have this form. Otherwise something else answered.
        400 | 401 | 403 if !passes && !code.is_empty() => Misconfigured,
        _ => Unavailable,
    };
    let meaning = match class {
        Throttled => "too many logins",
        Misconfigured => "refused",
        _ => "the login service failed",
    };
    let text = presentable(&description);
    Failure::new(class, format!("{meaning} ({status} {}: {text})", presentable(&code)))
}

/// A missing credential: a file that cannot be read, or a variable that is not set.
#[derive(Clone, Debug)]
pub(crate) struct NoCredential(pub(crate) String);

impl std::fmt::Display for NoCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for NoCredential {}

/// The maximum number of bytes that an operator sees of an answer that is not in the service's
/// form.
const MOST_SHOWN: usize = 1024;
const MAX_TEXT: usize = 240;
const LONGEST_WORD: usize = 48;

/// Returns a server's text for operators: bounded, on one line, without invisible characters, and
/// without words that could be a token or a key.
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
        show(word, &mut line);
    }
    line
}

/// A text of 32 bytes in base64url has 43 characters, and a token's parts have more. An id has 36,
/// and the parts of addresses and names are shorter.
const LONGEST_PART: usize = 36;

fn show(word: &str, line: &mut String) {
    if word.len() > 2 * LONGEST_WORD {
        line.push_str("[…]");
        return;
    }
    let is_border = |c: char| "/:.,;'\"()".contains(c);
    for part in word.split_inclusive(is_border) {
        let bare = part.trim_end_matches(is_border);
        let (hidden, shown) = if bare.len() > LONGEST_PART {
            ("[…]", part.get(bare.len()..).unwrap_or_default())
        } else {
            ("", part)
        };
        line.push_str(hidden);
        for c in shown.chars() {
            match c {
                '\'' | '"' => line.push(c),
                _ => line.extend(c.escape_debug()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(code: &str, inner: &str, message: &str) -> Vec<u8> {
        let mut error = serde_json::json!({ "code": code, "message": message });
        if !inner.is_empty() {
            error["innererror"] = serde_json::json!({ "code": inner });
        }
        serde_json::to_vec(&serde_json::json!({ "error": error })).unwrap()
    }

    #[test]
    fn the_page_shows_the_table() {
        let page = include_str!("../docs/azure.md");
        let cell = |text: &str| if text.is_empty() { " ".to_owned() } else { format!(" {text} ") };
        let mut rows = Vec::new();
        for row in TABLE {
            let code = if row.code.is_empty() { String::new() } else { format!("`{}`", row.code) };
            let Row { status, text, class, meaning, .. } = row;
            rows.push(format!("| {status} |{}|{}| {class} | {meaning} |", cell(&code), cell(text)));
        }
        let shown: Vec<_> = page
            .lines()
            .skip_while(|line| !line.starts_with("| status | code |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        assert_eq!(shown, rows);
    }

    #[test]
    fn every_row_of_the_table_can_be_reached() {
        for (i, row) in TABLE.iter().enumerate() {
            let said = body("Code", row.code, &format!("so {} it is", row.text));
            let failure = classify(Operation::Decrypt, row.status, &said);
            assert_eq!(failure.class, row.class, "row {i}");
            assert!(failure.message.contains(row.meaning), "row {i}: {}", failure.message);
        }
    }

    #[test]
    fn only_what_takes_a_wrapped_key_can_call_one_invalid() {
        for operation in [Operation::Encrypt, Operation::WrapKey, Operation::Get] {
            let failure = classify(operation, 400, &body("BadParameter", "", "wrong"));
            assert_eq!(failure.class, Misconfigured);
        }
        for operation in [Operation::Decrypt, Operation::UnwrapKey] {
            let failure = classify(operation, 400, &body("BadParameter", "", "wrong"));
            assert_eq!(failure.class, Invalid);
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_unavailable_with_its_text() {
        for (status, code) in [(403, "ForbiddenByMoon"), (404, "NoRoute"), (500, "x"), (418, "x")] {
            let failure = classify(Operation::Decrypt, status, &body("Other", code, "new text"));
            assert_eq!(failure.class, Unavailable, "{status}");
            assert!(failure.message.contains("new text") && failure.message.contains(code));
        }
        // That something expired says nothing about the key.
        for text in ["the role assignment has expired", "the perimeter's rule expired"] {
            let failure = classify(Operation::Decrypt, 403, &body("Forbidden", "ByMoon", text));
            assert_eq!(failure.class, Unavailable, "{text}");
        }
    }

    #[test]
    fn only_the_services_own_form_can_deny_or_call_a_message_invalid() {
        for text in ["", "<html>403 Forbidden</html>", "{}", r#"{"error":"denied"}"#, "KeyDisabled"]
        {
            for status in 300..600 {
                let failure = classify(Operation::Decrypt, status, text.as_bytes());
                assert!(!matches!(failure.class, Denied | Invalid), "{status} {text}");
            }
        }
    }

    #[test]
    fn a_login_that_fails_is_an_outage_unless_it_was_refused() {
        let entra = |code: &str, text: &str| {
            serde_json::to_vec(&serde_json::json!({ "error": code, "error_description": text }))
                .unwrap()
        };
        for (status, body, class) in [
            (401, entra("invalid_client", "AADSTS7000215: Invalid client secret"), Misconfigured),
            (400, entra("unauthorized_client", "AADSTS700016: not found"), Misconfigured),
            (400, entra("invalid_request", "Identity not found"), Misconfigured),
            (400, entra("invalid_grant", "AADSTS90033: a transient error"), Unavailable),
            (400, entra("temporarily_unavailable", ""), Unavailable),
            (400, b"<html>".to_vec(), Unavailable),
            (404, entra("x", ""), Unavailable),
            (410, Vec::new(), Unavailable),
            (429, Vec::new(), Throttled),
            (500, Vec::new(), Unavailable),
            (503, entra("x", "y"), Unavailable),
        ] {
            assert_eq!(classify_login(status, &body).class, class, "{status}");
        }
    }

    #[test]
    fn no_text_shows_a_token_or_a_key_or_what_a_terminal_obeys() {
        let token = "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiIsIng1dCI6Im5iQ3dXMTF3M1hrQi14VWFYd0tSU0";
        let key = "Rlz2BsXNCYEZWH5Afrg8bpf6g5rnC7vurBXFOYVVJqM";
        let id = "https://orders.vault.azure.net/keys/cards/0123456789abcdef0123456789abcdef";
        let text = format!("bad {token} and {key}\u{1b}[31m\u{202e} for {id}");
        for failure in [
            classify(Operation::Decrypt, 500, &body("x", "", &text)),
            classify(Operation::Decrypt, 500, text.as_bytes()),
        ] {
            let shown = failure.message;
            assert!(!shown.contains("eyJ0") && !shown.contains("BsXN"), "{shown}");
            assert!(shown.contains("keys/cards"), "{shown}");
            assert!(!shown.chars().any(|c| c.is_control() || c == '\u{202e}'), "{shown}");
        }
        assert!(presentable(&"word ".repeat(1000)).len() < 300);
    }
}
