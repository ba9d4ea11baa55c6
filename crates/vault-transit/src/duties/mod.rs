//! Generates Vault or OpenBao ACL policies that separate the duties for the keys of a data domain.
//!
//! Holders of roles are ACL policies, by their names. The roles of the auth methods decide who gets
//! a token with which policy.
//!
//! ```
//! use waxseal::domain::DomainConfig;
//! use waxseal::domain::duties::{Duties, Holders};
//! use waxseal_vault_transit::duties::VaultPolicies;
//!
//! let config = DomainConfig::default()
//!     .wrap_with("vault-transit://vault.example:8200/transit/orders?cluster=prod-eu");
//! let holders = Holders::default()
//!     .key_owners(["orders-owner"])
//!     .writers(["orders-shop"])
//!     .readers(["orders-shop", "orders-billing"]);
//! let duties = Duties::new("orders", &config, &holders)?;
//!
//! let policies = VaultPolicies::builder(&duties).build()?;
//! let shop = policies.policy("orders-shop")?;
//! assert!(shop.contains("path \"transit/decrypt/orders\" {\n  capabilities = [\"update\"]\n}"));
//! let owner = policies.policy("orders-owner")?;
//! assert!(owner.contains("path \"transit/decrypt/orders\" {\n  capabilities = [\"deny\"]\n}"));
//! # Ok::<(), waxseal::Error>(())
//! ```
//!
//! A policy denies the other duties by name, and a denial wins. So a token with the policies of an
//! owner and of a reader cannot decrypt. A policy cannot check the context, so give each domain its
//! own key. See docs/duties.md.
#![forbid(unsafe_code)]

mod policy;

use std::collections::BTreeSet;

use waxseal::domain::duties::{Duties, Duty, Role};
use waxseal::{DekOrigin, Error, ErrorKind};

use crate::config::Config;
use crate::endpoints::is_path;
use policy::Rules;

/// The settings of a key that administrators change.
const SETTINGS: [(&str, &[&str]); 3] =
    [("auto_rotate_period", &[]), ("min_decryption_version", &[]), ("min_encryption_version", &[])];
/// The settings with which a key is created: derived, so that the server enforces the context, and
/// never exportable.
const MAKING: [(&str, &[&str]); 3] = [
    ("auto_rotate_period", &[]),
    // The API sends a boolean, the command line a string.
    ("derived", &["true", "\"true\""]),
    ("type", &["\"aes256-gcm96\"", "\"chacha20-poly1305\""]),
];
/// The operations that use a key or export it. The key's name follows each.
const USE: [&str; 8] = [
    "backup",
    "byok-export/+",
    "datakey/plaintext",
    "datakey/wrapped",
    "decrypt",
    "encrypt",
    "export/+",
    "rewrap",
];
/// The operations that change a key. The key's path precedes each.
const CHANGE: [&str; 7] =
    ["config", "import", "import_version", "rotate", "soft-delete", "soft-delete-restore", "trim"];

/// The ACL policies of a domain on one cluster.
#[derive(Clone, Debug)]
pub struct VaultPolicies {
    duties: Duties,
    cluster: String,
    keys: Vec<DomainKey>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct DomainKey {
    mount: String,
    key: String,
    wraps: bool,
}

/// Configures [`VaultPolicies`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens until `build`"]
pub struct VaultPoliciesBuilder {
    duties: Duties,
    cluster: Option<String>,
}

impl VaultPolicies {
    /// Starts with the holders of each role, by names of ACL policies.
    pub fn builder(duties: &Duties) -> VaultPoliciesBuilder {
        VaultPoliciesBuilder { duties: duties.clone(), cluster: None }
    }

    /// Returns the names of the policies, without duplicates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let all = Role::ALL.into_iter().flat_map(|role| self.duties.holders(role));
        all.map(String::as_str).collect::<BTreeSet<_>>().into_iter()
    }

    /// Returns the cluster, by its name in the URIs.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Returns mount and key of each KEK on it.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &str)> {
        self.keys.iter().map(|key| (key.mount.as_str(), key.key.as_str()))
    }

    /// Returns a policy with everything that the roles of this name need. For break-glass it
    /// denies.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if the name has no role.
    pub fn policy(&self, name: &str) -> Result<String, Error> {
        self.document(name, false)
    }

    /// Returns the policy of break-glass that allows decryption. Someone other than its holder must
    /// write it, and the [normal policy](Self::policy) after the emergency.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if the name is not a holder of break-glass.
    pub fn enabled_break_glass(&self, name: &str) -> Result<String, Error> {
        if !self.roles_of(name).any(|role| role == Role::BreakGlass) {
            return Err(invalid(format!("{name:?} is not break-glass")));
        }
        self.document(name, true)
    }

    fn roles_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Role> + 'a {
        Role::ALL
            .into_iter()
            .filter(move |role| self.duties.holders(*role).iter().any(|holder| holder == name))
    }

    fn document(&self, name: &str, is_enabled: bool) -> Result<String, Error> {
        let (mut rules, mut roles) = (Rules::default(), Vec::new());
        for role in self.roles_of(name) {
            for key in &self.keys {
                key.allow(&mut rules, role, &self.duties, is_enabled);
                key.deny_other_duties(&mut rules, role.duty());
            }
            if role == Role::Auditor {
                self.allow_audit(&mut rules);
            }
            roles.push(role.as_str());
        }
        if roles.is_empty() {
            return Err(invalid(format!("{name:?} has no role")));
        }
        let state = if is_enabled { ", enabled" } else { "" };
        let roles = roles.join(", ");
        Ok(rules.hcl(&format!("Domain {}: {roles}{state}.", self.duties.domain())))
    }

    /// The configuration and the trail. The log itself is a file or a socket.
    fn allow_audit(&self, rules: &mut Rules) {
        for name in self.names() {
            rules.allow(format!("sys/policies/acl/{name}"), &["read"]);
        }
        rules.allow("sys/audit", &["read", "sudo"]);
        // To find a context in the log, which contains hashes.
        rules.allow("sys/audit-hash/+", &["update"]);
    }
}

impl DomainKey {
    fn allow(&self, rules: &mut Rules, role: Role, duties: &Duties, is_enabled: bool) {
        let Self { mount, key, wraps } = self;
        let own = format!("{mount}/keys/{key}");
        let with_key = |verb: &str| format!("{mount}/{verb}/{key}");
        rules.allow(own.as_str(), &["read"]);
        match role {
            Role::KeyAdministrator => {
                rules.allow(format!("{own}/rotate"), &["update"]);
                rules.allow_with(format!("{own}/config"), &["update"], &SETTINGS);
            }
            Role::KeyOwner => {
                rules.allow_with(own.as_str(), &["create", "update", "delete"], &MAKING);
                let deletion: (&str, &[&str]) = ("deletion_allowed", &[]);
                let settings: Vec<_> = SETTINGS.into_iter().chain([deletion]).collect();
                rules.allow_with(format!("{own}/config"), &["update"], &settings);
                rules.allow(format!("{own}/soft-delete"), &["delete"]);
                for change in ["soft-delete-restore", "trim"] {
                    rules.allow(format!("{own}/{change}"), &["update"]);
                }
            }
            Role::Writer if *wraps => {
                let makes = duties.dek_origin() == DekOrigin::KeyService;
                if makes {
                    rules.allow(with_key("datakey/plaintext"), &["update"]);
                }
                // One KEK makes the DEK. The others wrap it.
                if !makes || !duties.has_one_kek() {
                    // Never `create`, which would create a missing key, and one that is not
                    // derived.
                    rules.allow(with_key("encrypt"), &["update"]);
                }
            }
            Role::Reader => rules.allow(with_key("decrypt"), &["update"]),
            // To the same key, under its latest version.
            Role::Rewrapper if *wraps => rules.allow(with_key("rewrap"), &["update"]),
            Role::BreakGlass if is_enabled => rules.allow(with_key("decrypt"), &["update"]),
            Role::BreakGlass => rules.deny(with_key("decrypt")),
            _ => {}
        }
    }

    fn deny_other_duties(&self, rules: &mut Rules, duty: Duty) {
        let Self { mount, key, .. } = self;
        let uses = || USE.iter().map(|verb| format!("{mount}/{verb}/{key}"));
        let changes = || CHANGE.iter().map(|change| format!("{mount}/keys/{key}/{change}"));
        let taking_out = ["backup", "byok-export/+", "export/+"];
        let versions = format!("{mount}/export/+/{key}/+");
        match duty {
            Duty::Administration => uses().for_each(|path| rules.deny(path)),
            Duty::Audit => uses().chain(changes()).for_each(|path| rules.deny(path)),
            _ => {
                changes().for_each(|path| rules.deny(path));
                for verb in taking_out {
                    rules.deny(format!("{mount}/{verb}/{key}"));
                }
            }
        }
        rules.deny(versions);
        // Another key under this name, with other settings.
        rules.deny(format!("{mount}/restore/{key}"));
    }
}

impl VaultPoliciesBuilder {
    /// Sets the cluster, by its name in the URIs. It is needed if the domain has keys on several
    /// clusters, since each has separate policies.
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = Some(name.into());
        self
    }

    /// Checks everything that will appear in a policy.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if the name of a policy, a mount or a key has characters with a
    /// special meaning in a policy, if the domain has no key on the cluster, and if the cluster
    /// must be chosen.
    pub fn build(self) -> Result<VaultPolicies, Error> {
        let Self { duties, cluster } = self;
        for role in Role::ALL {
            let mut names = duties.holders(role).iter();
            let is_name = |name: &String| {
                let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
                name.len() <= 128
                    && name.chars().all(|c| is_plain(c) || "-_.".contains(c))
                    && !["root", "default"].contains(&name.as_str())
            };
            if let Some(name) = names.find(|name| !is_name(name)) {
                return Err(invalid(format!(
                    "{role}: {name:?} is not the name of a policy: lower-case letters, digits and `-_.`, \
                     and neither `root` nor `default`"
                )));
            }
        }
        let uris = duties.wrapping_keks().map(|uri| (uri, true));
        let uris = uris.chain(duties.unwrapping_keks().map(|uri| (uri, false)));
        let (mut keys, mut clusters) = (Vec::<DomainKey>::new(), BTreeSet::new());
        for (uri, wraps) in uris {
            let scheme = uri.split(':').next().unwrap_or_default();
            if !scheme.eq_ignore_ascii_case("vault-transit") {
                continue;
            }
            let config: Config = uri.parse()?;
            if cluster.as_deref().is_some_and(|wanted| wanted != config.cluster()) {
                continue;
            }
            clusters.insert(config.cluster().to_owned());
            let key = DomainKey {
                mount: checked("mount", config.mount_path())?,
                key: checked("key", config.key())?,
                wraps,
            };
            match keys.iter_mut().find(|one| (&one.mount, &one.key) == (&key.mount, &key.key)) {
                Some(known) => known.wraps |= wraps,
                None => keys.push(key),
            }
        }
        let chosen = clusters.pop_first();
        match chosen {
            None => Err(invalid("the domain has no key there")),
            Some(cluster) if clusters.is_empty() => Ok(VaultPolicies { duties, cluster, keys }),
            Some(_) => Err(invalid("cluster: the domain has keys on several; choose one")),
        }
    }
}

/// Checks a part of a path in a policy: nothing that ends a string of HCL, a glob, or a template.
fn checked(what: &str, text: &str) -> Result<String, Error> {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./ :@,=~".contains(c);
    let is_segment = what == "mount" || !text.contains('/');
    if is_path(text) && is_segment && text.chars().all(is_plain) {
        return Ok(text.to_owned());
    }
    Err(invalid(format!("{what}: {text:?} cannot stand in a policy")))
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, detail.into())
}
