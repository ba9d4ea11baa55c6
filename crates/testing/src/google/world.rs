//! What the stand-in knows: keys and their versions, who may do what, what is used up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use super::ekm::EkmFault;
use super::random;
use super::status::{Status, not_found, permission_denied, quota_exceeded, service_disabled};

/// `CryptoKeyVersion.CryptoKeyVersionState`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    PendingGeneration,
    Enabled,
    Disabled,
    Destroyed,
    DestroyScheduled,
    PendingImport,
    ImportFailed,
    GenerationFailed,
    PendingExternalDestruction,
    ExternalDestructionFailed,
}

impl State {
    pub const ALL: [Self; 10] = [
        Self::PendingGeneration,
        Self::Enabled,
        Self::Disabled,
        Self::Destroyed,
        Self::DestroyScheduled,
        Self::PendingImport,
        Self::ImportFailed,
        Self::GenerationFailed,
        Self::PendingExternalDestruction,
        Self::ExternalDestructionFailed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::PendingGeneration => "PENDING_GENERATION",
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
            Self::Destroyed => "DESTROYED",
            Self::DestroyScheduled => "DESTROY_SCHEDULED",
            Self::PendingImport => "PENDING_IMPORT",
            Self::ImportFailed => "IMPORT_FAILED",
            Self::GenerationFailed => "GENERATION_FAILED",
            Self::PendingExternalDestruction => "PENDING_EXTERNAL_DESTRUCTION",
            Self::ExternalDestructionFailed => "EXTERNAL_DESTRUCTION_FAILED",
        }
    }
}

/// `ProtectionLevel`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    Software,
    Hsm,
    External,
    ExternalVpc,
}

impl Protection {
    pub fn name(self) -> &'static str {
        match self {
            Self::Software => "SOFTWARE",
            Self::Hsm => "HSM",
            Self::External => "EXTERNAL",
            Self::ExternalVpc => "EXTERNAL_VPC",
        }
    }

    pub fn is_external(self) -> bool {
        matches!(self, Self::External | Self::ExternalVpc)
    }
}

pub struct Version {
    pub state: State,
    /// Of the material; taken away when the version is destroyed.
    pub material: Option<[u8; 32]>,
    /// What ciphertexts carry. 36 bytes, as they stand at the same place in those of the service.
    pub handle: [u8; 36],
}

pub struct Key {
    pub name: String,
    pub protection: Protection,
    /// `ENCRYPT_DECRYPT`, or another purpose.
    pub purpose: &'static str,
    /// Versions count from 1.
    pub versions: Vec<Version>,
    /// The number of the primary version.
    pub primary: Option<usize>,
    pub ekm: Option<EkmFault>,
}

impl Key {
    pub fn version_name(&self, number: usize) -> String {
        format!("{}/cryptoKeyVersions/{number}", self.name)
    }

    pub fn version(&mut self, number: usize) -> &mut Version {
        &mut self.versions[number - 1]
    }

    /// A new version, which is not the primary one yet (`cryptoKeyVersions.create`).
    pub fn add_version(&mut self) -> usize {
        let mut handle = [0; 36];
        handle[1..].copy_from_slice(&random::<35>());
        self.versions.push(Version { state: State::Enabled, material: Some(random()), handle });
        self.versions.len()
    }

    /// A new version that wraps from now on.
    pub fn rotate(&mut self) -> usize {
        let number = self.add_version();
        self.primary = Some(number);
        number
    }
}

/// Who may be calling, behind a token.
#[derive(Clone, Debug)]
pub struct Principal {
    pub email: String,
    pub expired: bool,
    /// Whether the token's scopes cover Cloud KMS.
    pub in_scope: bool,
}

/// A role for a member, on a key, a key ring or a project: it counts for all below.
pub struct Binding {
    pub resource: String,
    pub role: String,
    pub member: String,
    /// IAM ends it at this time.
    pub until: Option<SystemTime>,
}

/// How answers call a project. No page says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Names {
    /// As the request does.
    #[default]
    AsAsked,
    ById,
    ByNumber,
}

#[derive(Default)]
pub struct World {
    pub keys: BTreeMap<String, Key>,
    /// By access token.
    pub tokens: BTreeMap<String, Principal>,
    /// Public keys of service accounts, by e-mail address: for tokens that they sign themselves.
    pub service_accounts: BTreeMap<String, Vec<u8>>,
    pub bindings: Vec<Binding>,
    /// Permissions of custom roles, by their full names.
    pub custom_roles: BTreeMap<String, Vec<String>>,
    /// Cryptographic requests that are left, by project. No entry: as many as one likes.
    pub quotas: BTreeMap<String, u32>,
    /// Projects in which the API is not enabled.
    pub disabled_projects: BTreeSet<String>,
    /// How far this clock is ahead of the caller's.
    pub ahead: Duration,
    /// Numbers of projects, by their names `projects/ID`. Requests may have either.
    pub project_numbers: BTreeMap<String, String>,
    pub names: Names,
}

/// The permissions of the roles ("Permissions and roles", Cloud KMS) as far as requests here need
/// them.
pub fn permissions_of(role: &str) -> &'static [&'static str] {
    match role {
        "roles/cloudkms.cryptoKeyEncrypter" => &["cloudkms.cryptoKeyVersions.useToEncrypt"],
        "roles/cloudkms.cryptoKeyDecrypter" => &["cloudkms.cryptoKeyVersions.useToDecrypt"],
        "roles/cloudkms.cryptoKeyEncrypterDecrypter" => {
            &["cloudkms.cryptoKeyVersions.useToEncrypt", "cloudkms.cryptoKeyVersions.useToDecrypt"]
        }
        "roles/cloudkms.viewer" => &["cloudkms.cryptoKeys.get", "cloudkms.cryptoKeyVersions.get"],
        // Administers, and cannot use: the role has no useTo permission.
        "roles/cloudkms.admin" => &[
            "cloudkms.cryptoKeys.get",
            "cloudkms.cryptoKeys.update",
            "cloudkms.cryptoKeys.setIamPolicy",
            "cloudkms.cryptoKeyVersions.get",
            "cloudkms.cryptoKeyVersions.create",
            "cloudkms.cryptoKeyVersions.update",
            "cloudkms.cryptoKeyVersions.destroy",
            "cloudkms.cryptoKeyVersions.restore",
        ],
        _ => &[],
    }
}

impl World {
    pub fn now(&self) -> SystemTime {
        SystemTime::now() + self.ahead
    }

    pub fn key(&mut self, name: &str) -> &mut Key {
        self.keys.get_mut(name).unwrap_or_else(|| panic!("there is no key {name}"))
    }

    pub fn create_key(&mut self, name: &str, protection: Protection) {
        let mut key = Key {
            name: name.to_owned(),
            protection,
            purpose: "ENCRYPT_DECRYPT",
            versions: Vec::new(),
            primary: None,
            ekm: None,
        };
        key.rotate();
        self.keys.insert(name.to_owned(), key);
    }

    pub fn grant(&mut self, resource: &str, role: &str, member: &str) {
        assert!(!permissions_of(role).is_empty(), "no role {role}");
        let (resource, role, member) = (resource.to_owned(), role.to_owned(), member.to_owned());
        self.bindings.push(Binding { resource, role, member, until: None });
    }

    /// Makes a custom role of its definition (`projects.roles.create`).
    pub fn define_role(&mut self, name: &str, definition: &str) {
        let definition: serde_json::Value = serde_json::from_str(definition).unwrap();
        let permissions = definition["includedPermissions"].as_array().unwrap();
        let permissions: Vec<_> =
            permissions.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
        self.custom_roles.insert(name.to_owned(), permissions);
    }

    /// Replaces the policy of a key (`cryptoKeys.setIamPolicy`). Of conditions only one form is
    /// known, `request.time < timestamp("…")`, and a policy that has one must be of version 3.
    pub fn set_policy(&mut self, key: &str, policy: &serde_json::Value) -> Result<(), Status> {
        let mut bindings = Vec::new();
        for binding in policy["bindings"].as_array().into_iter().flatten() {
            let role = binding["role"].as_str().unwrap_or_default();
            if permissions_of(role).is_empty() && !self.custom_roles.contains_key(role) {
                return Err(Status::invalid(format!("Role {role} is not supported.")));
            }
            let until = match binding["condition"]["expression"].as_str() {
                None => None,
                Some(_) if policy["version"] != 3 => {
                    return Err(Status::invalid("A policy with conditions must be of version 3."));
                }
                Some(expression) => {
                    let time = expression
                        .strip_prefix("request.time < timestamp(\"")
                        .and_then(|rest| rest.strip_suffix("\")"))
                        .and_then(|time| {
                            use time::format_description::well_known::Rfc3339;
                            time::OffsetDateTime::parse(time, &Rfc3339).ok()
                        });
                    let time =
                        time.ok_or_else(|| Status::invalid("The condition is not known here."))?;
                    Some(time.into())
                }
            };
            for member in binding["members"].as_array().into_iter().flatten() {
                let (_, name) = member.as_str().and_then(|name| name.split_once(':')).unwrap();
                bindings.push(Binding {
                    resource: key.to_owned(),
                    role: role.to_owned(),
                    member: name.to_owned(),
                    until,
                });
            }
        }
        self.bindings.retain(|binding| binding.resource != key);
        self.bindings.extend(bindings);
        Ok(())
    }

    pub fn revoke(&mut self, resource: &str, role: &str, member: &str) {
        self.bindings.retain(|binding| {
            (&*binding.resource, &*binding.role, &*binding.member) != (resource, role, member)
        });
    }

    fn may(&self, member: &str, permission: &str, resource: &str) -> bool {
        let is_below = |above: &str| {
            resource
                .strip_prefix(above)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let allows = |role: &str| {
            let custom = self.custom_roles.get(role);
            permissions_of(role).contains(&permission)
                || custom.is_some_and(|names| names.iter().any(|name| name == permission))
        };
        self.bindings.iter().any(|binding| {
            binding.member == member
                && is_below(&binding.resource)
                && binding.until.is_none_or(|until| self.now() < until)
                && allows(&binding.role)
        })
    }

    /// The key's name with its project's id, and the same with the project's number.
    pub fn both_names(&self, key: &str) -> (String, Option<String>) {
        let project = key.split('/').take(2).collect::<Vec<_>>().join("/");
        let rest = &key[project.len()..];
        let of = |(id, number): (&String, &String)| {
            (format!("{id}{rest}"), Some(format!("projects/{number}{rest}")))
        };
        let known = self
            .project_numbers
            .iter()
            .find(|(id, number)| **id == project || format!("projects/{number}") == project);
        known.map(of).unwrap_or_else(|| (key.to_owned(), None))
    }

    /// Permission first, and only then whether the key is there.
    pub fn let_through(
        &mut self,
        caller: &Principal,
        permission: &str,
        key: &str,
    ) -> Result<(), Status> {
        let project = key.split('/').take(2).collect::<Vec<_>>().join("/");
        if self.disabled_projects.contains(&project) {
            return Err(service_disabled(&project));
        }
        if !self.may(&caller.email, permission, key) {
            return Err(permission_denied(permission, key));
        }
        if permission.contains(".useTo")
            && let Some(left) = self.quotas.get_mut(&project)
        {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => return Err(quota_exceeded(&project)),
            }
        }
        match self.keys.contains_key(key) {
            true => Ok(()),
            false => Err(not_found("CryptoKey", key)),
        }
    }
}
