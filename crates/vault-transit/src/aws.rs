//! Login by AWS IAM: a signed request to STS that is passed to the server instead of being sent.
//!
//! Source: "Create a signed AWS API request", AWS Identity and Access Management User Guide
//! (Signature Version 4); "AWS auth method (API)", HashiCorp Vault.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use base64ct::{Base64, Encoding};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::endpoints::{AwsLogin, SecretText};
use waxseal::kek::{BoxFuture, KekError};

/// Supplies the keys for a login by AWS IAM. It is called at each login, because AWS credentials
/// expire.
///
/// [`AwsKeys`] always returns the same keys. [`AwsEnvironment`] reads the usual variables. For
/// other sources (a profile, a container, an instance), use the AWS SDK:
///
/// ```
/// # mod aws { pub struct Credentials; impl Credentials {
/// #   pub fn access_key_id(&self) -> &str { "" } pub fn secret_access_key(&self) -> &str { "" }
/// #   pub fn session_token(&self) -> Option<&str> { None } }
/// #   #[derive(Debug)] pub struct Provider; impl Provider {
/// #   pub async fn provide_credentials(&self) -> Result<Credentials, std::fmt::Error> { Ok(Credentials) } } }
/// use waxseal_vault_transit::{AwsCredentials, AwsKeys};
/// use waxseal::kek::{BoxFuture, KekError};
///
/// #[derive(Debug)]
/// struct FromTheSdk(aws::Provider);
///
/// impl AwsCredentials for FromTheSdk {
///     fn keys(&self) -> BoxFuture<'_, Result<AwsKeys, KekError>> {
///         Box::pin(async move {
///             let found = self.0.provide_credentials().await;
///             let found = found.map_err(|_| KekError::unavailable("no credentials of AWS"))?;
///             let keys = AwsKeys::new(found.access_key_id(), found.secret_access_key());
///             Ok(match found.session_token() {
///                 Some(token) => keys.session_token(token),
///                 None => keys,
///             })
///         })
///     }
/// }
/// ```
pub trait AwsCredentials: fmt::Debug + Send + Sync {
    /// Returns the keys to sign with now.
    fn keys(&self) -> BoxFuture<'_, Result<AwsKeys, KekError>>;
}

/// An AWS access key. Its Debug shows no secret.
pub struct AwsKeys {
    id: String,
    secret: Zeroizing<String>,
    session_token: Option<Zeroizing<String>>,
}

impl AwsKeys {
    /// Takes the access key id and the secret access key.
    #[must_use]
    pub fn new(id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self { id: id.into(), secret: Zeroizing::new(secret.into()), session_token: None }
    }

    /// Adds the session token of temporary keys.
    #[must_use]
    pub fn session_token(mut self, token: impl Into<String>) -> Self {
        self.session_token = Some(Zeroizing::new(token.into()));
        self
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    fn share(&self) -> Self {
        Self {
            id: self.id.clone(),
            secret: self.secret.clone(),
            session_token: self.session_token.clone(),
        }
    }

    /// Whether a header can carry them.
    fn is_usable(&self) -> bool {
        let shown =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        shown(&self.id)
            && shown(&self.secret)
            && self.session_token.as_ref().is_none_or(|token| shown(token))
    }
}

impl fmt::Debug for AwsKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwsKeys([redacted])")
    }
}

impl AwsCredentials for AwsKeys {
    fn keys(&self) -> BoxFuture<'_, Result<AwsKeys, KekError>> {
        Box::pin(async { Ok(self.share()) })
    }
}

/// Reads `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN` at each login.
#[derive(Clone, Copy, Debug, Default)]
pub struct AwsEnvironment;

impl AwsCredentials for AwsEnvironment {
    fn keys(&self) -> BoxFuture<'_, Result<AwsKeys, KekError>> {
        Box::pin(async {
            let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
                (Some(id), Some(secret)) => {
                    let keys = AwsKeys::new(id, secret);
                    Ok(match variable("AWS_SESSION_TOKEN") {
                        Some(token) => keys.session_token(token),
                        None => keys,
                    })
                }
                _ => Err(KekError::misconfigured(
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set",
                )
                .without_asking()),
            }
        })
    }
}

const SERVICE: &str = "sts";
const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// The global endpoint's Region.
const GLOBAL: &str = "us-east-1";

fn host(region: Option<&str>) -> String {
    match region {
        None => "sts.amazonaws.com".to_owned(),
        Some(region) if region.starts_with("cn-") => format!("sts.{region}.amazonaws.com.cn"),
        Some(region) => format!("sts.{region}.amazonaws.com"),
    }
}

/// Returns what the server needs to know who signed. `None` for keys that no header can carry.
///
/// `server_id` is the value of `X-Vault-AWS-IAM-Server-ID`, which the server may require: with it,
/// a request that was signed for one server is useless at another.
pub(crate) fn login<'a>(
    role: &'a str,
    keys: &AwsKeys,
    region: Option<&str>,
    server_id: Option<&str>,
    now: SystemTime,
) -> Option<AwsLogin<'a>> {
    if !keys.is_usable() {
        return None;
    }
    let host = host(region);
    let time = timestamp(now)?;
    let date = time.get(..8)?;
    // Ordered by name, as they are signed.
    let mut headers = vec![("content-type", FORM), ("host", &*host), ("x-amz-date", &*time)];
    if let Some(token) = &keys.session_token {
        headers.push(("x-amz-security-token", token));
    }
    if let Some(id) = server_id {
        headers.push(("x-vault-aws-iam-server-id", id));
    }
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let scope = [date, region.unwrap_or(GLOBAL), SERVICE, "aws4_request"];
    let signature = signature(&keys.secret, &headers, &names, &time, scope);
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={names}, Signature={signature}",
        keys.id,
        scope.join("/")
    );
    headers.push(("authorization", &authorization));
    let headers: serde_json::Map<_, _> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), json!([value]))).collect();
    let headers = Zeroizing::new(serde_json::to_string(&headers).ok()?);
    Some(AwsLogin {
        role,
        iam_http_request_method: "POST",
        iam_request_url: Base64::encode_string(format!("https://{host}/").as_bytes()),
        iam_request_body: Base64::encode_string(BODY.as_bytes()),
        iam_request_headers: SecretText::new(Base64::encode_string(headers.as_bytes())),
    })
}

fn signature(
    secret: &str,
    headers: &[(&str, &str)],
    names: &str,
    time: &str,
    scope: [&str; 4],
) -> String {
    let mut canonical = Zeroizing::new("POST\n/\n\n".to_owned());
    for (name, value) in headers {
        for part in [name, ":", value.trim(), "\n"] {
            canonical.push_str(part);
        }
    }
    canonical.push_str(&format!("\n{names}\n{}", hex(&Sha256::digest(BODY))));
    let digest = hex(&Sha256::digest(canonical.as_bytes()));
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{}\n{digest}", scope.join("/"));
    let first = Zeroizing::new(format!("AWS4{secret}").into_bytes());
    let key = scope.iter().fold(first, |key, part| Zeroizing::new(mac(&key, part)));
    hex(&mac(&key, &to_sign))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `YYYYMMDDTHHMMSSZ`.
fn timestamp(time: SystemTime) -> Option<String> {
    let seconds = time.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days)?;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    Some(format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z"))
}

/// Returns the date `days` days after 1 January 1970.
fn date(mut days: u64) -> Option<(u64, u64, u64)> {
    let leap = |year: u64| {
        (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
        if year > 9999 {
            return None;
        }
    }
    let february = 28 + u64::from(leap(year));
    for (month, len) in (1..).zip([31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]) {
        if days < len {
            return Some((year, month, days + 1));
        }
        days -= len;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_moment_has_the_date_of_the_calendar() {
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (951_868_800, "20000301T000000Z"),
            (1_440_938_160, "20150830T123600Z"),
            (1_735_689_599, "20241231T235959Z"),
            (1_795_590_687, "20261125T071127Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap(), text);
        }
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(1)), None);
    }

    /// The key, time and scope of the example in AWS's guide; the expected value is of an
    /// independent implementation.
    #[test]
    fn the_signing_key_is_the_one_of_the_guides_example() {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let scope = ["20150830", "us-east-1", "iam", "aws4_request"];
        let key =
            scope.iter().fold(format!("AWS4{secret}").into_bytes(), |key, part| mac(&key, part));
        assert_eq!(hex(&key), "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9");
    }

    #[test]
    fn keys_that_no_header_can_carry_are_refused_and_none_is_shown() {
        for (id, secret, token) in
            [("", "s", None), ("i", "", None), ("i", "s\n", None), ("i", "s", Some("two words"))]
        {
            let keys = AwsKeys::new(id, secret);
            let keys = token.map_or(keys.share(), |token| keys.share().session_token(token));
            assert!(
                login("role", &keys, None, None, SystemTime::now()).is_none(),
                "{id:?} {secret:?} {token:?}"
            );
        }
        assert_eq!(format!("{:?}", AwsKeys::new("id", "secret")), "AwsKeys([redacted])");
    }
}
