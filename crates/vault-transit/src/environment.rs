//! The environment variables of the OpenBao and HashiCorp Vault clients, with the same meaning:
//! `BAO_…` first, then `VAULT_…`. An empty variable counts as unset. A variable that would be
//! ignored is an error.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::tls::{Client, Roots};

/// What was found.
#[derive(Default)]
pub(crate) struct Environment {
    pub(crate) address: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) roots: Option<Roots>,
    pub(crate) client: Option<Client>,
    pub(crate) server_name: Option<String>,
    pub(crate) proxy: Option<String>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) no_redirects: bool,
}

/// Variables that are set but not supported here.
const REFUSED: &[(&str, &str)] = &[
    ("MFA", "there is nobody who could answer a second factor"),
    ("WRAP_TTL", "wrapped answers cannot be read"),
    ("RATE_LIMIT", "set a CallBudget"),
    ("MAX_RETRIES", "set CallPolicy::tries"),
    ("TOKEN_PATH", "use VaultAuth::token_file"),
];

/// Reads them; `variable` reads the environment. The error names the one that cannot be honoured.
pub(crate) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Environment, String> {
    let find = |name: &str| {
        ["BAO_", "VAULT_"].iter().find_map(|prefix| {
            let name = format!("{prefix}{name}");
            variable(&name).filter(|value| !value.is_empty()).map(|value| (name, value))
        })
    };
    let text = |name: &str| match find(name) {
        Some((name, value)) => match value.into_string() {
            Ok(value) => Ok(Some((name, value))),
            Err(_) => Err(format!("{name} is not UTF-8")),
        },
        None => Ok(None),
    };
    let value = |name: &str| Ok::<_, String>(text(name)?.map(|(_, value)| value));
    let path = |name: &str| find(name).map(|(_, value)| PathBuf::from(value));
    let flag = |name: &str| match text(name)? {
        Some((name, value)) => match go_bool(&value) {
            Some(set) => Ok((name, set)),
            None => Err(format!("{name} is neither true nor false")),
        },
        None => Ok((String::new(), false)),
    };

    for (name, instead) in REFUSED {
        if let Some((name, _)) = find(name) {
            return Err(format!("{name} is not supported; {instead}"));
        }
    }
    if let (name, true) = flag("SKIP_VERIFY")? {
        return Err(format!(
            "{name}: certificates are always verified; name the CA with BAO_CACERT"
        ));
    }
    if let (name, true) = flag("SRV_LOOKUP")? {
        return Err(format!("{name} is not supported; give an address"));
    }
    let timeout = match text("CLIENT_TIMEOUT")? {
        Some((name, value)) => Some(go_duration(&value).ok_or_else(|| {
            format!("{name} is {value:?}, seconds or a duration such as 30s are allowed")
        })?),
        None => None,
    };
    let secret = |name: &str| Ok::<_, String>(value(name)?.map(Zeroizing::new));
    let (certificate, key) = (path("CLIENT_CERT"), path("CLIENT_KEY"));
    let (certificate_text, key_text) = (secret("CLIENT_CERT_BYTES")?, secret("CLIENT_KEY_BYTES")?);
    let any =
        certificate.is_some() || key.is_some() || certificate_text.is_some() || key_text.is_some();
    let client = match (certificate, key, certificate_text, key_text) {
        (Some(certificate), Some(key), ..) => Some(Client::Files(certificate, key)),
        (_, _, Some(certificate), Some(key)) => Some(Client::Texts(certificate, key)),
        _ if any => {
            return Err(
                "BAO_CLIENT_CERT and BAO_CLIENT_KEY (or VAULT_…) belong together; one is not set"
                    .to_owned(),
            );
        }
        _ => None,
    };
    let roots = match (path("CACERT"), value("CACERT_BYTES")?, path("CAPATH")) {
        (Some(file), ..) => Some(Roots::File(file)),
        (_, Some(pem), _) => Some(Roots::Text(pem)),
        (.., Some(directory)) => Some(Roots::Directory(directory)),
        _ => None,
    };
    Ok(Environment {
        // An agent takes precedence over the server.
        address: value("AGENT_ADDR")?.map_or_else(|| value("ADDR"), |address| Ok(Some(address)))?,
        namespace: value("NAMESPACE")?,
        token: value("TOKEN")?,
        roots,
        client,
        server_name: value("TLS_SERVER_NAME")?,
        proxy: value("PROXY_ADDR")?.map_or_else(|| value("HTTP_PROXY"), |proxy| Ok(Some(proxy)))?,
        timeout: timeout.filter(|timeout| !timeout.is_zero()),
        no_redirects: flag("DISABLE_REDIRECTS")?.1,
    })
}

/// Reads only the token.
pub(crate) fn token(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<String>, String> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(|value| (name, value));
    match ["BAO_TOKEN", "VAULT_TOKEN"].into_iter().find_map(set) {
        Some((name, value)) => {
            value.into_string().map(Some).map_err(|_| format!("{name} is not UTF-8"))
        }
        None => Ok(None),
    }
}

/// Parses like Go's `strconv.ParseBool`.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Parses seconds, or a sum of parts such as `1m`, `1.5s`, `500ms`.
fn go_duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let (digits, behind) = rest.split_at_checked(rest.find(|c| !is_number(c))?)?;
        let (unit, behind) =
            behind.split_at_checked(behind.find(is_number).unwrap_or(behind.len()))?;
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        let number: f64 = digits.parse().ok()?;
        sum = sum.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = behind;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Environment, String> {
        read(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value)))
    }

    #[test]
    fn each_variable_is_read_under_both_names_and_openbaos_wins() {
        for prefix in ["BAO_", "VAULT_"] {
            let name = |name: &str| format!("{prefix}{name}");
            let pairs = [
                (name("ADDR"), "https://vault.example:8200"),
                (name("TOKEN"), "s.secret-token"),
                (name("NAMESPACE"), "team/a"),
                (name("CACERT"), "/ca.pem"),
                (name("CLIENT_CERT"), "/cert.pem"),
                (name("CLIENT_KEY"), "/key.pem"),
                (name("CLIENT_TIMEOUT"), "1m30s"),
                (name("HTTP_PROXY"), "http://proxy:3128"),
                (name("TLS_SERVER_NAME"), "vault.internal"),
                (name("SKIP_VERIFY"), "false"),
                (name("SRV_LOOKUP"), "0"),
                (name("DISABLE_REDIRECTS"), "true"),
            ];
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            let found = with(&pairs).unwrap();
            assert_eq!(found.address.as_deref(), Some("https://vault.example:8200"));
            assert_eq!(found.token.as_deref(), Some("s.secret-token"));
            assert_eq!(found.namespace.as_deref(), Some("team/a"));
            assert_eq!(found.roots, Some(Roots::File("/ca.pem".into())));
            let Some(Client::Files(certificate, key)) = &found.client else { panic!() };
            assert_eq!(
                (certificate.as_path(), key.as_path()),
                (Path::new("/cert.pem"), Path::new("/key.pem"))
            );
            assert_eq!(found.timeout, Some(Duration::from_secs(90)));
            assert_eq!(found.proxy.as_deref(), Some("http://proxy:3128"));
            assert_eq!(found.server_name.as_deref(), Some("vault.internal"));
            assert!(found.no_redirects);
        }
        let both = with(&[("VAULT_ADDR", "https://vault"), ("BAO_ADDR", "https://bao")]).unwrap();
        assert_eq!(both.address.as_deref(), Some("https://bao"));
        let empty = with(&[("VAULT_ADDR", "https://vault"), ("BAO_ADDR", "")]).unwrap();
        assert_eq!(empty.address.as_deref(), Some("https://vault"), "an empty one is not set");
    }

    #[test]
    fn one_variable_comes_before_another_as_in_their_own_client() {
        let agent =
            with(&[("BAO_ADDR", "https://bao"), ("VAULT_AGENT_ADDR", "http://127.0.0.1:8100")])
                .unwrap();
        assert_eq!(agent.address.as_deref(), Some("http://127.0.0.1:8100"));
        let proxy =
            with(&[("BAO_HTTP_PROXY", "http://a"), ("VAULT_PROXY_ADDR", "http://b")]).unwrap();
        assert_eq!(proxy.proxy.as_deref(), Some("http://b"));
        let roots = |pairs: &[(&str, &str)]| with(pairs).unwrap().roots;
        let (file, text, path) =
            (("VAULT_CACERT", "/ca"), ("BAO_CACERT_BYTES", "pem"), ("BAO_CAPATH", "/cas"));
        assert_eq!(roots(&[file, text, path]), Some(Roots::File("/ca".into())));
        assert_eq!(roots(&[text, path]), Some(Roots::Text("pem".to_owned())));
        assert_eq!(roots(&[path]), Some(Roots::Directory("/cas".into())));
        let texts = with(&[("BAO_CLIENT_CERT_BYTES", "c"), ("BAO_CLIENT_KEY_BYTES", "k")]).unwrap();
        assert!(matches!(texts.client, Some(Client::Texts(..))));
    }

    #[test]
    fn what_would_be_ignored_is_refused_by_its_name() {
        for (name, value) in [
            ("SKIP_VERIFY", "1"),
            ("SKIP_VERIFY", "yes"),
            ("SRV_LOOKUP", "true"),
            ("DISABLE_REDIRECTS", "maybe"),
            ("CLIENT_TIMEOUT", "soon"),
            ("CLIENT_TIMEOUT", "s"),
            ("CLIENT_TIMEOUT", "1.2.3s"),
            ("CLIENT_TIMEOUT", "99999999999999999999h"),
            ("CLIENT_CERT", "/cert.pem"),
            ("CLIENT_KEY", "/key.pem"),
            ("CLIENT_KEY_BYTES", "k"),
            ("MFA", "totp:1"),
            ("WRAP_TTL", "60s"),
            ("RATE_LIMIT", "10"),
            ("MAX_RETRIES", "0"),
            ("TOKEN_PATH", "/token"),
        ] {
            for prefix in ["BAO_", "VAULT_"] {
                let name = format!("{prefix}{name}");
                let refusal = with(&[(&name, value)]).err().unwrap_or_default();
                let shown = if name.contains("CLIENT_KEY") || name.contains("CLIENT_CERT") {
                    "CLIENT_"
                } else {
                    &name
                };
                assert!(refusal.contains(shown), "{name}={value}: {refusal:?}");
            }
        }
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in [
            ("30", 30_000),
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            ("250ms", 250),
            ("1h", 3_600_000),
        ] {
            assert_eq!(go_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "1", "1x", "-1s", "."].iter().filter(|text| **text != "1") {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}
