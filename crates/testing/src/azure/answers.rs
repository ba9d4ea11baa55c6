//! The operations on keys, and what they refuse. Each refusal names the page that it is taken from.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::roles::data_action;
use super::world::{Access, Assignment, KeyVersion, Vault, World};

/// An error in the service's form ("Common parameters and headers", "Error responses").
#[derive(Clone, Debug)]
pub struct Refused {
    pub status: u16,
    pub code: &'static str,
    pub inner: &'static str,
    pub message: String,
}

impl Refused {
    pub fn new(
        status: u16,
        code: &'static str,
        inner: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { status, code, inner, message: message.into() }
    }

    pub fn body(&self) -> Value {
        let mut error = json!({ "code": self.code, "message": self.message });
        if !self.inner.is_empty() {
            error["innererror"] = json!({ "code": self.inner });
        }
        json!({ "error": error })
    }
}

/// A request to a vault.
pub struct Asked<'a> {
    pub host: &'a str,
    pub from: IpAddr,
    pub token: Option<&'a str>,
    pub method: &'a str,
    pub path: &'a str,
    pub body: &'a Value,
}

/// Who asks what of which key.
pub struct Parts<'a> {
    pub name: &'a str,
    pub version: &'a str,
    /// In lower case, as in the path.
    pub operation: &'a str,
}

/// `/keys/NAME`, `/keys/NAME/VERSION`, `/keys/NAME/VERSION/OPERATION`. An empty version is the
/// newest one ("Encrypt", "Get Key": the SDKs send it so). And what administrators ask for: "Update
/// Key", "Rotate Key", "Delete Key", "Recover Deleted Key", "Purge Deleted Key", "Backup Key", and
/// in a Managed HSM "Role Assignments, Create".
pub fn parts<'a>(method: &str, path: &'a str) -> Option<Parts<'a>> {
    let segments: Vec<_> = path.strip_prefix('/')?.split('/').collect();
    let at = |name: &'a str, version: &'a str, operation: &'a str| {
        (!name.is_empty()).then_some(Parts { name, version, operation })
    };
    match (method, &segments[..]) {
        ("GET", ["keys", name]) => at(name, "", "get"),
        ("GET", ["keys", name, version] | ["keys", name, version, ""]) => at(name, version, "get"),
        ("POST", ["keys", name, operation @ ("rotate" | "backup")]) => at(name, "", operation),
        (
            "POST",
            ["keys", name, version, operation @ ("encrypt" | "decrypt" | "wrapkey" | "unwrapkey")],
        ) => at(name, version, operation),
        ("PATCH", ["keys", name, version]) => at(name, version, "update"),
        ("DELETE", ["keys", name]) => at(name, "", "delete"),
        ("POST", ["deletedkeys", name, "recover"]) => at(name, "", "recover"),
        ("DELETE", ["deletedkeys", name]) => at(name, "", "purge"),
        ("PUT", ["keys", name, "providers", "Microsoft.Authorization", "roleAssignments", _]) => {
            at(name, "", "assign")
        }
        _ => None,
    }
}

/// Its name in an access policy, and in `key_ops`.
fn permission(operation: &str) -> &'static str {
    match operation {
        "encrypt" => "encrypt",
        "decrypt" => "decrypt",
        "wrapkey" => "wrapKey",
        "unwrapkey" => "unwrapKey",
        "rotate" => "rotate",
        "backup" => "backup",
        "update" => "update",
        "delete" => "delete",
        "recover" => "recover",
        "purge" => "purge",
        "assign" => "assign",
        _ => "get",
    }
}

pub enum Unauthenticated {
    /// "the server returns 401 with a WWW-Authenticate header" ("Authentication, requests and
    /// responses").
    Challenge(Refused),
    Refused(Refused),
}

impl World {
    /// The client id of the token's application.
    fn authenticate(&self, asked: &Asked<'_>) -> Result<String, Unauthenticated> {
        let refuse =
            |text: &str| Unauthenticated::Challenge(Refused::new(401, "Unauthorized", "", text));
        // "AKV10000: Request is missing a Bearer or PoP token."
        let token = asked
            .token
            .ok_or_else(|| refuse("AKV10000: Request is missing a Bearer or PoP token."))?;
        let known = self
            .tokens
            .get(token)
            .ok_or_else(|| refuse("[BearerReadAccessTokenFailed] Error validating token"))?;
        let audience = asked.host.split_once('.').map_or("", |(_, suffix)| suffix);
        if known.audience != format!("https://{audience}") {
            return Err(refuse("AKV10022: Invalid audience."));
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(self.now());
        if known.revoked || now >= known.expires {
            return Err(refuse("[TokenExpired] Error validating token: 'S2S12086'."));
        }
        Ok(known.client_id.clone())
    }

    pub fn answer(&mut self, asked: &Asked<'_>) -> Result<Value, Unauthenticated> {
        let client_id = self.authenticate(asked)?;
        self.perform(asked, &client_id).map_err(Unauthenticated::Refused)
    }

    fn perform(&mut self, asked: &Asked<'_>, client_id: &str) -> Result<Value, Refused> {
        let now = self.now();
        let host = asked.host;
        let parts = parts(asked.method, asked.path)
            .ok_or_else(|| Refused::new(404, "NotFound", "", "No route"))?;
        let Some(vault) = self.vaults.get_mut(host) else {
            // A vault that is not there has no name in DNS; here its name leads to this server.
            return Err(Refused::new(404, "VaultNotFound", "", "no such vault"));
        };
        // "HTTP 403: Insufficient Permissions", "Client address is not authorized" (REST error
        // codes).
        if vault.private_only {
            let text = format!(
                "Public network access is disabled and request is not from a trusted service nor \
                    via an approved private link.\r\nCaller: appid={client_id}\r\nVault: {host}"
            );
            return Err(Refused::new(403, "Forbidden", "ForbiddenByConnection", text));
        }
        if vault.firewall.as_ref().is_some_and(|allowed| !allowed.contains(&asked.from)) {
            let text = format!(
                "Client address is not authorized and caller is not a trusted service.\r\nClient \
                    address: {}\r\nCaller: appid={client_id}\r\nVault: {host}",
                asked.from
            );
            return Err(Refused::new(403, "Forbidden", "ForbiddenByFirewall", text));
        }
        // "HTTP 429: Too Many Requests" (REST error codes); the window is 10 seconds.
        if let Some(limit) = vault.limit {
            while vault.served.front().is_some_and(|at| at.elapsed() > Duration::from_secs(10)) {
                vault.served.pop_front();
            }
            if vault.served.len() >= limit {
                let text = "Request was not processed because too many requests were received. \
                    Reason: VaultRequestTypeLimitReached";
                return Err(Refused::new(429, "Throttled", "VaultRequestTypeLimitReached", text));
            }
            vault.served.push_back(Instant::now());
        }
        let needed = permission(parts.operation);
        let action = data_action(host, parts.operation);
        let is_assigned =
            vault.access == Access::Rbac && vault.assigns(client_id, &action, parts.name);
        if !is_assigned && !vault.permissions.get(client_id).is_some_and(|has| has.contains(needed))
        {
            return Err(match vault.access {
                // The texts of the page "REST error codes", "HTTP 403".
                Access::Policies => Refused::new(
                    403,
                    "Forbidden",
                    "AccessDenied",
                    format!(
                        "The user, group or application 'appid={client_id}' does not have keys \
                            {needed} permission on key vault '{host};location=westeurope'."
                    ),
                ),
                Access::Rbac => Refused::new(
                    403,
                    "Forbidden",
                    "ForbiddenByRbac",
                    format!(
                        "Caller is not authorized to perform action on resource.\r\nIf role \
                            assignments, deny assignments or role definitions were changed \
                            recently, please observe propagation time.\r\nCaller: \
                            appid={client_id}\r\nAction: '{action}'\r\nVault: {host}"
                    ),
                ),
            });
        }
        // "HTTP 404" and "soft-delete overview": a deleted key is not found, and its name is not
        // free.
        let missing = || {
            let text = format!(
                "A key with (name/id) {}/{} was not found in this key vault. If you recently \
                    deleted this key you may be able to recover it using the correct recovery \
                    command. For help resolving this issue, please see \
                    https://go.microsoft.com/fwlink/?linkid=2125182",
                parts.name, parts.version
            );
            Refused::new(404, "KeyNotFound", "", text)
        };
        if let Some(answer) = administer(vault, &parts, asked.body) {
            return answer.ok_or_else(missing);
        }
        let key = vault.keys.get(parts.name).ok_or_else(missing)?;
        let version = key.version(parts.version).ok_or_else(missing)?;
        let kid = format!("https://{host}/keys/{}/{}", parts.name, version.version);
        if parts.operation == "get" {
            let mut found = version.material.public();
            found["kid"] = json!(kid);
            found["kty"] = json!(version.material.kind());
            found["key_ops"] = json!(key.operations);
            let mut attributes = json!({
                "enabled": version.enabled, "created": now, "updated": now,
                "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90,
            });
            for (name, time) in [("nbf", version.not_before), ("exp", version.expires)] {
                if let Some(time) = time {
                    attributes[name] = json!(time);
                }
            }
            return Ok(json!({ "key": found, "attributes": attributes }));
        }
        check_usable(version, needed, now)?;
        if !key.operations.contains(&needed) {
            // azure-sdk-for-net, issue 11518.
            let text = format!("Operation {needed} is not permitted on this key.");
            return Err(Refused::new(403, "Forbidden", "KeyOperationForbidden", text));
        }
        operate(version, parts.operation, &kid, asked.body)
    }
}

/// What administrators do; `None` for what is no such thing, and a key that is not there inside.
fn administer(vault: &mut Vault, parts: &Parts<'_>, body: &Value) -> Option<Option<Value>> {
    let name = parts.name;
    let done = || Some(json!({ "key": {} }));
    Some(match parts.operation {
        "update" => vault.keys.get_mut(name).and_then(|key| {
            let mut versions = key.versions.iter_mut();
            let version = versions.find(|version| version.version == parts.version)?;
            if let Some(enabled) = body["attributes"]["enabled"].as_bool() {
                version.enabled = enabled;
            }
            done()
        }),
        "rotate" => vault.keys.get_mut(name).and_then(|key| {
            let newest = key.versions.last()?.clone();
            let version = data_encoding::HEXLOWER.encode(&super::crypto::random::<16>());
            key.versions.push(KeyVersion {
                version,
                material: newest.material.another(),
                enabled: true,
                ..newest
            });
            done()
        }),
        "backup" => vault.keys.contains_key(name).then(|| json!({ "value": "AA" })),
        "delete" => vault.keys.remove(name).and_then(|key| {
            vault.deleted.insert(name.to_owned(), key);
            done()
        }),
        "recover" => vault.deleted.remove(name).and_then(|key| {
            vault.keys.insert(name.to_owned(), key);
            done()
        }),
        "purge" => vault.deleted.remove(name).and_then(|_| done()),
        "assign" => {
            let text = |field: &str| body["properties"][field].as_str().map(str::to_owned);
            let (Some(role), Some(principal)) = (text("roleDefinitionId"), text("principalId"))
            else {
                return Some(None);
            };
            vault.assignments.push(Assignment { principal, role, key: Some(name.to_owned()) });
            done()
        }
        _ => return None,
    })
}

/// "About keys", "Key attributes": a disabled version does nothing. "Date-time controlled
/// operations": outside nbf and exp a key still decrypts and unwraps.
fn check_usable(version: &KeyVersion, operation: &str, now: u64) -> Result<(), Refused> {
    let refuse = |inner, state: &str| {
        let text = format!("Operation {operation} is not allowed on {state} key.");
        Err(Refused::new(403, "Forbidden", inner, text))
    };
    if !version.enabled {
        // azure-sdk-for-python, issue 45342, for keys; the same form for secrets in
        // azure-sdk-for-js, issue 24756.
        return refuse("KeyDisabled", "a disabled");
    }
    if matches!(operation, "decrypt" | "unwrapKey") {
        return Ok(());
    }
    // The inner codes are formed like those of disabled keys: no page lists them.
    if version.not_before.is_some_and(|from| now < from) {
        return refuse("KeyNotYetValid", "a not yet valid");
    }
    if version.expires.is_some_and(|until| now >= until) {
        return refuse("KeyExpired", "an expired");
    }
    Ok(())
}

/// "Encrypt", "Decrypt", "Wrap Key", "Unwrap Key".
fn operate(
    version: &KeyVersion,
    operation: &str,
    kid: &str,
    body: &Value,
) -> Result<Value, Refused> {
    let bad = |text: &str| Refused::new(400, "BadParameter", "", text);
    let field = |name: &str| {
        let text = body[name].as_str().unwrap_or_default();
        BASE64URL_NOPAD
            .decode(text.trim_end_matches('=').as_bytes())
            .map_err(|_| bad("Property has invalid value"))
    };
    let value = field("value")?;
    if value.is_empty() {
        return Err(bad("Property value is required"));
    }
    let encoded = |bytes: &[u8]| json!(BASE64URL_NOPAD.encode(bytes));
    let material = &version.material;
    match (operation, body["alg"].as_str()) {
        ("encrypt", Some("A256GCM")) => {
            let aad = field("aad")?;
            let (text, iv, tag) =
                material.encrypt(&value, &aad).ok_or_else(|| bad("Key type does not fit"))?;
            Ok(json!({
                "kid": kid, "value": encoded(&text), "iv": encoded(&iv), "tag": encoded(&tag),
                "aad": encoded(&aad),
            }))
        }
        ("decrypt", Some("A256GCM")) => {
            let text = material.decrypt(&value, &field("iv")?, &field("tag")?, &field("aad")?);
            let text = text.ok_or_else(|| bad("The parameter is incorrect."))?;
            Ok(json!({ "kid": kid, "value": encoded(&text) }))
        }
        ("wrapkey", Some("RSA-OAEP-256")) => {
            let text = material.wrap(&value).ok_or_else(|| bad("Key type does not fit"))?;
            Ok(json!({ "kid": kid, "value": encoded(&text) }))
        }
        ("unwrapkey", Some("RSA-OAEP-256")) => {
            let text = material.unwrap(&value).ok_or_else(|| bad("The parameter is incorrect."))?;
            Ok(json!({ "kid": kid, "value": encoded(&text) }))
        }
        _ => Err(bad("Property 'alg' has invalid value")),
    }
}
