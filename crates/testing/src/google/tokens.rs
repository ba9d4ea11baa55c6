//! Where tokens come from: the metadata server of an instance
//! (cloud.google.com/compute/docs/metadata/overview: path, and the header `Metadata-Flavor: Google`
//! without which it refuses), the Security Token Service of workload identity federation
//! (cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token), and tokens that a service
//! account signs itself (AIP-4111, "Self-signed JWT").

use std::time::UNIX_EPOCH;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};

use super::world::{Principal, World};
use super::{Request, random};

pub const METADATA_PATH: &str = "/computeMetadata/v1/instance/service-accounts/default/";

/// What the source of tokens does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Gives tokens for this account, good for this many seconds.
    Gives { account: String, seconds: u64 },
    /// This status and body.
    Fails(u16, String),
    /// No answer ever.
    Hangs,
}

/// `None` if no answer is to come.
pub fn answer(
    world: &mut World,
    source: &Source,
    request: &Request,
) -> Option<(u16, Value, Option<&'static str>)> {
    let (account, seconds) = match source {
        Source::Gives { account, seconds } => (account, *seconds),
        Source::Fails(status, body) => {
            let body = serde_json::from_str(body).unwrap_or_else(|_| body.clone().into());
            return Some((*status, body, Some("failed")));
        }
        Source::Hangs => return None,
    };
    if request.path.starts_with(METADATA_PATH)
        && request.header("metadata-flavor") != Some("Google")
    {
        return Some((403, "Missing Metadata-Flavor:Google header.".into(), Some("refused")));
    }
    if request.path == "/sts/v1/token" {
        let form = String::from_utf8_lossy(&request.body);
        let subject = form.split('&').find_map(|pair| pair.strip_prefix("subject_token="));
        if subject.is_none_or(str::is_empty) {
            let body = json!({ "error": "invalid_request", "error_description": "no subject" });
            return Some((400, body, Some("refused")));
        }
        let token = give(world, account);
        let body = json!({
            "access_token": token, "expires_in": seconds, "token_type": "Bearer",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        });
        return Some((200, body, None));
    }
    Some(match request.path.strip_prefix(METADATA_PATH) {
        Some("token") => {
            let token = give(world, account);
            let body =
                json!({ "access_token": token, "expires_in": seconds, "token_type": "Bearer" });
            (200, body, None)
        }
        Some("email") => (200, account.as_str().into(), None),
        _ => (404, "Not Found".into(), Some("not found")),
    })
}

/// A new token for this account.
pub fn give(world: &mut World, account: &str) -> String {
    let token = format!("ya29.{}", HEXLOWER.encode(&random::<24>()));
    let principal = Principal { email: account.to_owned(), expired: false, in_scope: true };
    world.tokens.insert(token.clone(), principal);
    token
}

/// Who calls, by the header `authorization`; else the reason of the refusal.
pub fn authenticate(world: &World, request: &Request) -> Result<Principal, &'static str> {
    let token = request.header("authorization").and_then(|header| header.strip_prefix("Bearer "));
    let token = token.ok_or("CREDENTIALS_MISSING")?;
    if let Some(principal) = world.tokens.get(token) {
        return if principal.expired { Err("ACCESS_TOKEN_EXPIRED") } else { Ok(principal.clone()) };
    }
    self_signed(world, token).ok_or("ACCESS_TOKEN_TYPE_UNSUPPORTED")
}

/// RS256 by a key of the account; good for an hour at most, by this server's clock.
fn self_signed(world: &World, token: &str) -> Option<Principal> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let part = |text: &str| {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        serde_json::from_slice::<Value>(&bytes).ok()
    };
    let (header, claims) = (part(header)?, part(claims)?);
    let email = claims["iss"].as_str()?;
    let key = world.service_accounts.get(email)?;
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).ok()?;
    let algorithm = &aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256;
    aws_lc_rs::signature::UnparsedPublicKey::new(algorithm, key)
        .verify(signed.as_bytes(), &signature)
        .ok()?;
    let now = world.now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let (from, until) = (claims["iat"].as_u64()?, claims["exp"].as_u64()?);
    // A few minutes of difference between the clocks are forgiven.
    let in_time = from <= now + 300 && now < until && until - from <= 3900;
    (header["alg"] == "RS256" && claims["sub"] == claims["iss"] && in_time).then(|| Principal {
        email: email.to_owned(),
        expired: false,
        in_scope: true,
    })
}
