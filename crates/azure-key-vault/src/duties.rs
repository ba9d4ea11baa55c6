//! Generates Azure roles that separate the duties for the KEKs of a data domain: role definitions
//! of Azure RBAC for keys in vaults and of local RBAC for keys in Managed HSMs, and their
//! assignments.
//!
//! ```
//! use waxseal::domain::DomainConfig;
//! use waxseal::domain::duties::{Duties, Holders, Role};
//! use waxseal_azure_key_vault::duties::AzureRoles;
//!
//! let config = DomainConfig::default()
//!     .wrap_with("azure-key-vault://orders.managedhsm.azure.net/cards");
//! let holders = Holders::default()
//!     .key_owners(["11111111-0000-4000-8000-000000000001"])
//!     .writers(["22222222-0000-4000-8000-000000000002"])
//!     .readers(["22222222-0000-4000-8000-000000000002"]);
//!
//! let duties = Duties::new("orders", &config, &holders)?;
//! let roles = AzureRoles::builder(&duties).build()?;
//! let writer = roles.role_definition("orders.managedhsm.azure.net", Role::Writer)?;
//! assert!(writer.contains("Microsoft.KeyVault/managedHsm/keys/encrypt/action"));
//! assert!(!writer.contains("decrypt"));
//! let assigned = roles.assignments("https://orders.managedhsm.azure.net/keys/cards")?;
//! assert!(assigned.contains("\"scope\": \"/keys/cards\""));
//! # Ok::<(), waxseal::Error>(())
//! ```
//!
//! The documents are text for people and tools: the same input gives the same text. Every role is a
//! custom one, because every built-in role that uses keys combines wrapping and unwrapping.
//!
//! Role assignments add up: one on the vault, the resource group, the subscription or `/` of the
//! HSM counts too. Key Vault does not see the encryption context, so no role can require it. **Give
//! each domain its own key**.
#![forbid(unsafe_code)]

use serde_json::{Value, json};
use waxseal::domain::duties::{Duties, Role};
use waxseal::{Error, ErrorKind};

use crate::algorithm::Algorithm;
use crate::config::Config;
use crate::place::{Place, Resource, key_identifier};

/// Data actions of a role in a vault ("Azure permissions for Security", `Microsoft.KeyVault`).
const IN_VAULT: &str = "Microsoft.KeyVault/vaults/";
/// And in a Managed HSM ("Local RBAC built-in roles for Managed HSM").
const IN_HSM: &str = "Microsoft.KeyVault/managedHsm/";
/// Control-plane actions of a vault that assign permissions.
const ASSIGNING: [&str; 4] = [
    "Microsoft.Authorization/roleAssignments/delete",
    "Microsoft.Authorization/roleAssignments/read",
    "Microsoft.Authorization/roleAssignments/write",
    "Microsoft.Authorization/roleDefinitions/read",
];
const LOOKING: [&str; 2] = [
    "Microsoft.Authorization/roleAssignments/read",
    "Microsoft.Authorization/roleDefinitions/read",
];

/// The role definitions and role assignments of a domain's keys.
#[derive(Clone, Debug)]
pub struct AzureRoles {
    duties: Duties,
    keys: Vec<DomainKey>,
    resources: Vec<(String, String)>,
    rewrappers_see_deks: bool,
    key_readers_can_wrap: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct DomainKey {
    place: Place,
    name: String,
    algorithm: Algorithm,
    wraps: bool,
}

impl DomainKey {
    fn id(&self) -> String {
        format!("https://{}/keys/{}", self.place.host, self.name)
    }
}

/// Configures [`AzureRoles`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens until `build`"]
pub struct AzureRolesBuilder(AzureRoles);

impl AzureRoles {
    /// Starts with the holders of each role, by object ids of Entra ID: of users, groups, service
    /// principals and managed identities.
    pub fn builder(duties: &Duties) -> AzureRolesBuilder {
        AzureRolesBuilder(Self {
            duties: duties.clone(),
            keys: Vec::new(),
            resources: Vec::new(),
            rewrappers_see_deks: false,
            key_readers_can_wrap: false,
        })
    }

    /// Returns the identifiers of the domain's keys, without versions.
    pub fn keys(&self) -> impl Iterator<Item = String> {
        self.keys.iter().map(DomainKey::id)
    }

    /// Returns the hosts of the vaults and Managed HSMs in which the domain has keys, without
    /// duplicates. Each needs the roles.
    #[must_use]
    pub fn hosts(&self) -> Vec<&str> {
        let mut hosts: Vec<_> = self.keys.iter().map(|key| &*key.place.host).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// Returns the name of a role in a vault or Managed HSM.
    #[must_use]
    pub fn role_name(&self, host: &str, role: Role) -> String {
        let label = host.split('.').next().unwrap_or_default();
        format!("waxseal {} {role} in {label}", self.duties.domain())
    }

    /// Returns the definition of a role in a vault, for `az role definition create
    /// --role-definition FILE`, or in a Managed HSM, for `az keyvault role definition create
    /// --hsm-name NAME --role-definition FILE`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if the domain has no key there.
    pub fn role_definition(&self, host: &str, role: Role) -> Result<String, Error> {
        let mut algorithms: Vec<_> = Vec::new();
        for key in self.keys.iter().filter(|key| key.place.host == host) {
            algorithms.push(key.algorithm);
        }
        let key = self.keys.iter().find(|key| key.place.host == host);
        let resource = key.ok_or_else(|| invalid("the domain has no key there"))?.place.resource;
        let (prefix, data) = match resource {
            Resource::Vault => (IN_VAULT, data_actions_in_vault(role, &algorithms)),
            Resource::ManagedHsm => (IN_HSM, data_actions_in_hsm(role, &algorithms)),
        };
        let data: Vec<_> = data.iter().map(|action| format!("{prefix}{action}")).collect();
        let name = self.role_name(host, role);
        let about = match role {
            Role::KeyAdministrator | Role::KeyOwner => "Administers keys and cannot use them.",
            Role::Auditor => "Looks at keys and at who may use them.",
            _ => "Uses keys and cannot administer them.",
        };
        Ok(written(&match resource {
            Resource::Vault => {
                let actions: &[&str] = match role {
                    Role::KeyOwner => &ASSIGNING,
                    Role::Auditor => &LOOKING,
                    _ => &[],
                };
                json!({
                    "Name": name, "IsCustom": true, "Description": about,
                    "Actions": actions, "NotActions": [],
                    "DataActions": data, "NotDataActions": [],
                    "AssignableScopes": [self.resource(host)?],
                })
            }
            Resource::ManagedHsm => json!({
                "roleName": name, "description": about,
                "actions": [], "notActions": [],
                "dataActions": data, "notDataActions": [],
                "assignableScopes": ["/"],
            }),
        }))
    }

    /// Returns who gets which role on one of the domain's [keys](Self::keys): a list of role,
    /// principal and scope. Break-glass is not in it. Remove any assignment on the key that is not
    /// in the list.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for another key.
    pub fn assignments(&self, key: &str) -> Result<String, Error> {
        let key = self.find(key)?;
        let mut assigned = Vec::new();
        for role in Role::ALL {
            let is_any = match role {
                Role::Writer => key.wraps,
                Role::BreakGlass => false,
                _ => true,
            };
            if is_any {
                // On a former key a rewrapper only unwraps.
                let defined = match role {
                    Role::Rewrapper if !key.wraps => Role::Reader,
                    role => role,
                };
                assigned.extend(self.assigned(key, role, defined)?);
            }
        }
        Ok(written(&Value::Array(assigned)))
    }

    /// Returns the assignment with which break-glass unwraps. Someone other than its holder must
    /// create it, and delete it after the emergency.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for another key, and if nobody has the role.
    pub fn enabled_break_glass(&self, key: &str) -> Result<String, Error> {
        let key = self.find(key)?;
        if self.duties.holders(Role::BreakGlass).is_empty() {
            return Err(invalid("nobody has the role break-glass"));
        }
        let assigned = self.assigned(key, Role::BreakGlass, Role::BreakGlass)?;
        Ok(written(&Value::Array(assigned)))
    }

    fn assigned(&self, key: &DomainKey, role: Role, defined: Role) -> Result<Vec<Value>, Error> {
        let host = &*key.place.host;
        let scope = match key.place.resource {
            Resource::Vault => format!("{}/keys/{}", self.resource(host)?, key.name),
            Resource::ManagedHsm => format!("/keys/{}", key.name),
        };
        let name = self.role_name(host, defined);
        let each = self.duties.holders(role).iter();
        let each = each.map(|id| json!({ "principalId": id, "role": name, "scope": scope }));
        Ok(each.collect())
    }

    fn find(&self, id: &str) -> Result<&DomainKey, Error> {
        let key = self.keys.iter().find(|key| key.id() == id);
        key.ok_or_else(|| invalid("this is not a key of the domain"))
    }

    fn resource(&self, host: &str) -> Result<&str, Error> {
        let found = self.resources.iter().find(|(known, _)| known == host);
        let missing = || invalid(format!("vault_resource: that of {host} is not given"));
        found.map(|(_, id)| id.as_str()).ok_or_else(missing)
    }
}

/// Returns the actions that wrap or unwrap, by the keys' algorithms.
fn using(role: Role, algorithms: &[Algorithm]) -> Vec<&'static str> {
    let has = |algorithm| algorithms.contains(&algorithm);
    let mut actions = Vec::new();
    let (wraps, unwraps) = match role {
        Role::Writer => (true, false),
        Role::Reader | Role::BreakGlass => (false, true),
        Role::Rewrapper => (true, true),
        _ => (false, false),
    };
    for (is_meant, algorithm, action) in [
        (unwraps, Algorithm::A256Gcm, "keys/decrypt/action"),
        (wraps, Algorithm::A256Gcm, "keys/encrypt/action"),
        (unwraps, Algorithm::RsaOaep256, "keys/unwrap/action"),
        (wraps, Algorithm::RsaOaep256, "keys/wrap/action"),
    ] {
        if is_meant && has(algorithm) {
            actions.push(action);
        }
    }
    actions
}

/// Nobody purges, exports, releases, backs up, restores or imports.
fn data_actions_in_vault(role: Role, algorithms: &[Algorithm]) -> Vec<&'static str> {
    match role {
        Role::KeyAdministrator => vec![
            "keyrotationpolicies/read",
            "keyrotationpolicies/write",
            "keys/read",
            "keys/rotate/action",
            "keys/update/action",
        ],
        Role::KeyOwner => vec!["keys/delete", "keys/read", "keys/recover/action"],
        Role::Auditor => vec!["keyrotationpolicies/read", "keys/read"],
        role => using(role, algorithms),
    }
}

fn data_actions_in_hsm(role: Role, algorithms: &[Algorithm]) -> Vec<&'static str> {
    match role {
        Role::KeyAdministrator => {
            vec!["keys/read/action", "keys/rotate/action", "keys/write/action"]
        }
        Role::KeyOwner => vec![
            "keys/delete",
            "keys/deletedKeys/read/action",
            "keys/deletedKeys/recover/action",
            "keys/read/action",
            "roleAssignments/delete/action",
            "roleAssignments/read/action",
            "roleAssignments/write/action",
            "roleDefinitions/read/action",
        ],
        Role::Auditor => {
            vec!["keys/read/action", "roleAssignments/read/action", "roleDefinitions/read/action"]
        }
        role => using(role, algorithms),
    }
}

impl AzureRolesBuilder {
    /// Sets the resource id of a vault,
    /// `/subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.KeyVault/vaults/NAME`. Every
    /// vault of the domain needs it. A Managed HSM does not.
    pub fn vault_resource(mut self, id: impl Into<String>) -> Self {
        self.0.resources.push((String::new(), id.into()));
        self
    }

    /// Accepts that rewrappers see DEKs. Key Vault cannot rewrap, so a rewrapper has the rights of
    /// a writer and of a reader. By default `build` refuses a domain that has rewrappers.
    pub fn rewrappers_see_deks(mut self, accepted: bool) -> Self {
        self.0.rewrappers_see_deks = accepted;
        self
    }

    /// Accepts that with an RSA key anyone who may look at it can wrap: administrators, owners and
    /// auditors, and everyone else who gets the public key. By default `build` refuses a domain
    /// that wraps with RSA.
    pub fn key_readers_can_wrap(mut self, accepted: bool) -> Self {
        self.0.key_readers_can_wrap = accepted;
        self
    }

    /// Checks everything that will appear in a document.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if a holder is not an object id, if the domain has no key in
    /// Key Vault, if nobody owns its keys, if the resource id of a vault is missing or wrong, and
    /// for risks that were not accepted: [rewrappers](Self::rewrappers_see_deks),
    /// [RSA](Self::key_readers_can_wrap).
    pub fn build(self) -> Result<AzureRoles, Error> {
        let mut roles = self.0;
        let duties = &roles.duties;
        for role in Role::ALL {
            if let Some(id) = duties.holders(role).iter().find(|id| !is_guid(id)) {
                return Err(invalid(format!("{role}: {id:?} is not an object id of Entra ID")));
            }
        }
        if duties.holders(Role::KeyOwner).is_empty() {
            return Err(invalid("key_owners: there is none, so nobody could say who may"));
        }
        if !duties.holders(Role::Rewrapper).is_empty() && !roles.rewrappers_see_deks {
            return Err(invalid(
                "rewrappers: Key Vault cannot rewrap, so they would see DEKs; accept that with \
                 rewrappers_see_deks, or have none",
            ));
        }
        let uris = duties.wrapping_keks().map(|uri| (uri, true));
        let uris = uris.chain(duties.unwrapping_keks().map(|uri| (uri, false)));
        let mut keys: Vec<DomainKey> = Vec::new();
        for (uri, wraps) in uris {
            let scheme = uri.split(':').next().unwrap_or_default();
            if scheme.eq_ignore_ascii_case("azure-key-vault") {
                for key in keys_of(&uri.parse()?, wraps)? {
                    match keys.iter_mut().find(|known| known.id() == key.id()) {
                        Some(known) => known.wraps |= key.wraps,
                        None => keys.push(key),
                    }
                }
            }
        }
        if keys.is_empty() {
            return Err(invalid("the domain has no key in Key Vault"));
        }
        let by_public_key = |key: &DomainKey| key.wraps && key.algorithm == Algorithm::RsaOaep256;
        if keys.iter().any(by_public_key) && !roles.key_readers_can_wrap {
            return Err(invalid(
                "rsa-oaep-256: anyone who may look at the key can wrap; accept that with \
                 key_readers_can_wrap, or use a Managed HSM",
            ));
        }
        for (host, id) in &mut roles.resources {
            let name = resource_name(id)?.to_ascii_lowercase();
            let mut hosts = keys.iter().filter(|key| key.place.resource == Resource::Vault);
            let found = hosts.find(|key| key.place.host.split('.').next() == Some(&*name));
            let found = found.ok_or_else(|| {
                invalid(format!("vault_resource: the domain has no key in {name}"))
            })?;
            host.clone_from(&found.place.host);
        }
        roles.keys = keys;
        let hosts = roles.keys.iter().filter(|key| key.place.resource == Resource::Vault);
        for host in hosts.map(|key| &key.place.host) {
            roles.resource(host)?;
        }
        Ok(roles)
    }
}

/// Returns the key of a URI, and its former keys, which do not wrap.
fn keys_of(config: &Config, wraps: bool) -> Result<Vec<DomainKey>, Error> {
    let (vault, name, algorithm) = config.key_parts();
    let place = Place::read(vault)?;
    let algorithm = algorithm.unwrap_or(match place.resource {
        Resource::Vault => Algorithm::RsaOaep256,
        Resource::ManagedHsm => Algorithm::A256Gcm,
    });
    let mut keys = Vec::new();
    for id in config.former() {
        let (place, name) =
            key_identifier(id).map_err(|why| invalid(format!("former_keys: {why}")))?;
        let algorithm = place.former_algorithm(algorithm);
        keys.push(DomainKey { place, name: name.to_owned(), algorithm, wraps: false });
    }
    keys.insert(0, DomainKey { place, name: name.to_owned(), algorithm, wraps });
    Ok(keys)
}

/// Returns the vault's name from its resource id.
fn resource_name(id: &str) -> Result<&str, Error> {
    let wrong = || {
        invalid(
            "vault_resource: it is not /subscriptions/ID/resourceGroups/GROUP/providers/\
             Microsoft.KeyVault/vaults/NAME",
        )
    };
    let parts: Vec<_> = id.split('/').collect();
    let [
        "",
        "subscriptions",
        subscription,
        "resourceGroups",
        group,
        "providers",
        "Microsoft.KeyVault",
        "vaults",
        name,
    ] = parts[..]
    else {
        return Err(wrong());
    };
    let is_plain = |text: &str| {
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.()".contains(&byte);
        !text.is_empty() && text.bytes().all(is_known)
    };
    match is_guid(subscription) && is_plain(group) && is_plain(name) {
        true => Ok(name),
        false => Err(wrong()),
    }
}

fn is_guid(text: &str) -> bool {
    const FORM: &str = "00000000-0000-0000-0000-000000000000";
    text.len() == FORM.len()
        && text.bytes().zip(FORM.bytes()).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_hexdigit(),
            _ => byte == form,
        })
}

fn written(document: &Value) -> String {
    format!("{document:#}\n")
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, detail.into())
}
