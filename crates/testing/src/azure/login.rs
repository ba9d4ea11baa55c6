//! The login service: "Microsoft identity platform and the OAuth 2.0 client credentials flow".

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};

use super::TENANT;
use super::crypto::random;
use super::world::{Token, World};

/// Status and body.
pub type Answer = (u16, Value);

/// `error`, `error_description` and `error_codes` ("Error response").
fn refused(status: u16, error: &str, code: u32, text: &str) -> Answer {
    let description = format!("AADSTS{code}: {text} Trace ID: 00000000 Timestamp: 2026-11-29");
    (status, json!({ "error": error, "error_description": description, "error_codes": [code] }))
}

impl World {
    /// `POST /TENANT/oauth2/v2.0/token`.
    pub fn log_in(&mut self, path: &str, form: &HashMap<String, String>) -> Answer {
        if path != format!("/{TENANT}/oauth2/v2.0/token") {
            return refused(400, "invalid_request", 90002, "Tenant not found.");
        }
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        if field("grant_type") != "client_credentials" {
            return refused(400, "unsupported_grant_type", 70003, "not supported.");
        }
        let Some(audience) = field("scope").strip_suffix("/.default") else {
            return refused(400, "invalid_scope", 70011, "The provided scope is not valid.");
        };
        let now = self.now();
        let client_id = field("client_id");
        let Some(application) = self.applications.get(client_id) else {
            return refused(400, "unauthorized_client", 700016, "Application not found.");
        };
        let is_known = match field("client_assertion") {
            "" => application.secret == field("client_secret"),
            assertion => match &application.federated {
                Some(federated) => federated == assertion,
                None => return self.by_certificate(client_id, assertion, audience),
            },
        };
        if !is_known {
            return refused(401, "invalid_client", 7000215, "Invalid client secret provided.");
        }
        let life = application.token_life;
        self.token(client_id, audience, now, life)
    }

    fn token(&mut self, client_id: &str, audience: &str, now: u64, life: Duration) -> Answer {
        let token = format!("token-{}", HEXLOWER.encode(&random::<24>()));
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(now) + life;
        self.tokens.insert(
            token.clone(),
            Token {
                client_id: client_id.to_owned(),
                audience: audience.to_owned(),
                expires,
                revoked: false,
            },
        );
        (
            200,
            json!({ "token_type": "Bearer", "expires_in": life.as_secs(), "access_token": token }),
        )
    }

    /// "Microsoft identity platform application authentication certificate credentials": header,
    /// claims, and the signature by the application's certificate.
    fn by_certificate(&mut self, client_id: &str, assertion: &str, audience: &str) -> Answer {
        let parts: Vec<&str> = assertion.split('.').collect();
        let read = |part: &str| -> Value {
            let bytes = BASE64URL_NOPAD.decode(part.as_bytes()).unwrap_or_default();
            serde_json::from_slice(&bytes).unwrap_or_default()
        };
        let wrong = || refused(401, "invalid_client", 700027, "The certificate is not registered.");
        let [first, second, signature] = parts[..] else { return wrong() };
        let (header, claims, now) = (read(first), read(second), self.now());
        let application = &self.applications[client_id];
        let Some((thumbprint, key)) = &application.certificate else { return wrong() };
        if header["alg"] != "PS256" || header["x5t#S256"] != thumbprint.as_str() {
            return wrong();
        }
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap_or_default();
        let key = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key);
        if key.verify(format!("{first}.{second}").as_bytes(), &signature).is_err() {
            return wrong();
        }
        let within = claims["nbf"].as_u64().is_some_and(|from| from <= now + 300)
            && claims["exp"].as_u64().is_some_and(|until| now < until);
        if !within || claims["iss"] != client_id || claims["sub"] != client_id {
            return refused(
                401,
                "invalid_client",
                700024,
                "Client assertion is not within its valid time range.",
            );
        }
        let life = application.token_life;
        self.token(client_id, audience, now, life)
    }
}
