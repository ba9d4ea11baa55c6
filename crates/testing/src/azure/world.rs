//! What the stand-in knows: vaults with their keys, applications and their tokens, the clock.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;

use super::crypto::{Material, random};

/// How a vault decides who may do what ("Azure role-based access control vs. access policies").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Policies,
    Rbac,
}

/// Permissions for keys, by the names of access policies. Role assignments have data actions of the
/// same meaning, such as `Microsoft.KeyVault/vaults/keys/wrap/action`.
pub type Permission = &'static str;

pub struct Principal {
    pub secret: String,
    /// Of a certificate that may sign assertions: its thumbprint, and its public key (RFC 8017).
    pub certificate: Option<(String, Vec<u8>)>,
    /// A text of a federated token that is taken.
    pub federated: Option<String>,
    /// How long its tokens live.
    pub token_life: Duration,
}

impl Principal {
    pub fn with_secret(secret: &str) -> Self {
        Self {
            secret: secret.to_owned(),
            certificate: None,
            federated: None,
            token_life: Duration::from_secs(3600),
        }
    }
}

pub struct Token {
    pub client_id: String,
    pub audience: String,
    pub expires: SystemTime,
    pub revoked: bool,
}

#[derive(Clone)]
pub struct KeyVersion {
    pub version: String,
    pub enabled: bool,
    pub not_before: Option<u64>,
    pub expires: Option<u64>,
    pub material: Material,
}

#[derive(Clone)]
pub struct Key {
    pub operations: Vec<&'static str>,
    /// Oldest first.
    pub versions: Vec<KeyVersion>,
}

impl Key {
    /// The newest, or the one of that name.
    pub fn version(&self, version: &str) -> Option<&KeyVersion> {
        match version {
            "" => self.versions.last(),
            version => self.versions.iter().find(|known| known.version == version),
        }
    }
}

/// A role definition in force for somebody, on one key or, without a name, on all.
pub struct Assignment {
    pub principal: String,
    pub role: String,
    pub key: Option<String>,
}

pub struct Vault {
    pub access: Access,
    /// Data actions of role definitions, by their names.
    pub roles: BTreeMap<String, Vec<String>>,
    pub assignments: Vec<Assignment>,
    pub keys: BTreeMap<String, Key>,
    /// Soft-deleted ("Azure Key Vault soft-delete overview").
    pub deleted: BTreeMap<String, Key>,
    pub permissions: HashMap<String, HashSet<Permission>>,
    /// `None`: every address. Else only these.
    pub firewall: Option<Vec<IpAddr>>,
    /// Public network access is off.
    pub private_only: bool,
    /// Transactions in 10 seconds ("Azure Key Vault service limits").
    pub limit: Option<usize>,
    pub served: VecDeque<Instant>,
}

#[derive(Default)]
pub struct World {
    /// By host.
    pub vaults: HashMap<String, Vault>,
    /// By client id.
    pub applications: HashMap<String, Principal>,
    pub tokens: HashMap<String, Token>,
    /// How far the service's clock is ahead of this machine's, in seconds.
    pub clock: i64,
}

impl World {
    pub fn now(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        now.checked_add_signed(self.clock).unwrap()
    }

    pub fn vault(&mut self, host: &str) -> &mut Vault {
        self.vaults.entry(host.to_owned()).or_insert_with(|| Vault {
            access: Access::Rbac,
            roles: BTreeMap::new(),
            assignments: Vec::new(),
            keys: BTreeMap::new(),
            deleted: BTreeMap::new(),
            permissions: HashMap::new(),
            firewall: None,
            private_only: false,
            limit: None,
            served: VecDeque::new(),
        })
    }

    /// A key of AES-256 in a Managed HSM.
    pub fn create_aes(&mut self, host: &str, name: &str) -> String {
        self.create(host, name, vec!["encrypt", "decrypt"], Material::aes())
    }

    /// A key of RSA-2048.
    pub fn create_rsa(&mut self, host: &str, name: &str) -> String {
        self.create(host, name, vec!["encrypt", "decrypt", "wrapKey", "unwrapKey"], Material::rsa())
    }

    /// "If the named key already exists, Azure Key Vault creates a new version of the key" ("Create
    /// Key").
    fn create(
        &mut self,
        host: &str,
        name: &str,
        operations: Vec<&'static str>,
        material: Material,
    ) -> String {
        let vault = self.vault(host);
        assert!(!vault.deleted.contains_key(name), "its name is not free until it is purged");
        let version = HEXLOWER.encode(&random::<16>());
        let key = vault
            .keys
            .entry(name.to_owned())
            .or_insert_with(|| Key { operations, versions: Vec::new() });
        key.versions.push(KeyVersion {
            version: version.clone(),
            enabled: true,
            not_before: None,
            expires: None,
            material,
        });
        version
    }

    /// "Creates a new key version, stores it, then returns key parameters" ("Rotate Key").
    pub fn rotate(&mut self, host: &str, name: &str) -> String {
        let key = &self.vaults[host].keys[name];
        let material = key.versions.last().unwrap().material.another();
        let operations = key.operations.clone();
        self.create(host, name, operations, material)
    }

    pub fn key(&mut self, host: &str, name: &str) -> &mut Key {
        self.vaults.get_mut(host).unwrap().keys.get_mut(name).unwrap()
    }

    /// The newest version.
    pub fn newest(&mut self, host: &str, name: &str) -> &mut KeyVersion {
        self.key(host, name).versions.last_mut().unwrap()
    }

    /// "The delete key operation cannot be used to remove individual versions of a key" ("Delete
    /// Key").
    pub fn delete(&mut self, host: &str, name: &str) {
        let vault = self.vaults.get_mut(host).unwrap();
        let key = vault.keys.remove(name).unwrap();
        vault.deleted.insert(name.to_owned(), key);
    }

    /// "Recovers the deleted key to its latest version under /keys" ("Recover Deleted Key"): with
    /// all its versions.
    pub fn recover(&mut self, host: &str, name: &str) {
        let vault = self.vaults.get_mut(host).unwrap();
        let key = vault.deleted.remove(name).unwrap();
        vault.keys.insert(name.to_owned(), key);
    }

    /// "Permanently deletes the specified key" ("Purge Deleted Key").
    pub fn purge(&mut self, host: &str, name: &str) {
        self.vaults.get_mut(host).unwrap().deleted.remove(name).unwrap();
    }

    pub fn permit(&mut self, host: &str, client_id: &str, permissions: &[Permission]) {
        self.vault(host)
            .permissions
            .entry(client_id.to_owned())
            .or_default()
            .extend(permissions.iter().copied());
    }

    pub fn forbid(&mut self, host: &str, client_id: &str, permission: Permission) {
        self.vault(host).permissions.get_mut(client_id).unwrap().remove(permission);
    }
}
