//! Role definitions and assignments: Azure RBAC for the data plane of vaults, local RBAC of Managed
//! HSMs.

use serde_json::Value;

use super::world::{Assignment, Vault, World};

/// "Azure permissions for Security", Microsoft.KeyVault, data actions on keys.
const OF_VAULTS: [&str; 21] = [
    "keyrotationpolicies/read",
    "keyrotationpolicies/write",
    "keys/backup/action",
    "keys/create/action",
    "keys/decrypt/action",
    "keys/delete",
    "keys/encrypt/action",
    "keys/import/action",
    "keys/purge/action",
    "keys/read",
    "keys/recover/action",
    "keys/release/action",
    "keys/restore/action",
    "keys/rotate/action",
    "keys/sign/action",
    "keys/unwrap/action",
    "keys/update/action",
    "keys/verify/action",
    "keys/wrap/action",
    "secrets/getSecret/action",
    "secrets/readMetadata/action",
];
/// "Local RBAC built-in roles for Managed HSM", permitted operations on keys and roles.
const OF_HSMS: [&str; 25] = [
    "keys/backup/action",
    "keys/create",
    "keys/decrypt/action",
    "keys/delete",
    "keys/deletedKeys/delete",
    "keys/deletedKeys/read/action",
    "keys/deletedKeys/recover/action",
    "keys/encrypt/action",
    "keys/export/action",
    "keys/import/action",
    "keys/read/action",
    "keys/release/action",
    "keys/restore/action",
    "keys/rotate/action",
    "keys/sign/action",
    "keys/unwrap/action",
    "keys/verify/action",
    "keys/wrap/action",
    "keys/write/action",
    "roleAssignments/delete/action",
    "roleAssignments/read/action",
    "roleAssignments/write/action",
    "roleDefinitions/delete/action",
    "roleDefinitions/read/action",
    "roleDefinitions/write/action",
];

fn is_hsm(host: &str) -> bool {
    host.contains(".managedhsm.")
}

fn prefix(host: &str) -> &'static str {
    if is_hsm(host) { "Microsoft.KeyVault/managedHsm/" } else { "Microsoft.KeyVault/vaults/" }
}

/// The data action that an operation needs.
pub fn data_action(host: &str, operation: &str) -> String {
    let action = match (operation, is_hsm(host)) {
        ("wrapkey", _) => "keys/wrap/action",
        ("unwrapkey", _) => "keys/unwrap/action",
        ("get", false) => "keys/read",
        ("get", true) => "keys/read/action",
        ("update", true) => "keys/write/action",
        ("delete", _) => "keys/delete",
        ("recover", true) => "keys/deletedKeys/recover/action",
        ("purge", true) => "keys/deletedKeys/delete",
        ("assign", _) => "roleAssignments/write/action",
        (operation, _) => return format!("{}keys/{operation}/action", prefix(host)),
    };
    format!("{}{action}", prefix(host))
}

impl Vault {
    /// Whether a role assignment lets somebody do this with a key.
    pub fn assigns(&self, principal: &str, action: &str, key: &str) -> bool {
        self.assignments.iter().any(|assignment| {
            assignment.principal == principal
                && assignment.key.as_deref().is_none_or(|name| name == key)
                && self.roles[&assignment.role].iter().any(|known| known == action)
        })
    }
}

impl World {
    /// Makes a custom role, from the file that `az role definition create` or `az keyvault role
    /// definition create` takes. A data action that is not known is refused, as there.
    pub fn define_role(&mut self, host: &str, definition: &str) -> Result<(), String> {
        let definition: Value = serde_json::from_str(definition).map_err(|e| e.to_string())?;
        let field = |of_vault: &str, of_hsm: &str| {
            &definition[if is_hsm(host) { of_hsm } else { of_vault }]
        };
        let name = field("Name", "roleName").as_str().ok_or("a role has a name")?.to_owned();
        let actions = field("DataActions", "dataActions").as_array().ok_or("no data actions")?;
        let scopes = field("AssignableScopes", "assignableScopes").as_array();
        if scopes.is_none_or(Vec::is_empty) {
            return Err("a role has scopes".to_owned());
        }
        let known: &[&str] = if is_hsm(host) { &OF_HSMS } else { &OF_VAULTS };
        let mut read = Vec::new();
        for action in actions {
            let action = action.as_str().unwrap_or_default();
            let rest = action.strip_prefix(prefix(host)).unwrap_or_default();
            if !known.contains(&rest) {
                return Err(format!("{action} is no data action here"));
            }
            read.push(action.to_owned());
        }
        self.vault(host).roles.insert(name, read);
        Ok(())
    }

    /// Assigns roles: a list of `role`, `principalId` and `scope`. "/keys/NAME" at its end is one
    /// key.
    pub fn assign_roles(&mut self, host: &str, assignments: &str) {
        let assignments: Vec<Value> = serde_json::from_str(assignments).unwrap();
        for one in assignments {
            let text = |name: &str| one[name].as_str().unwrap().to_owned();
            let (role, scope) = (text("role"), text("scope"));
            let vault = self.vault(host);
            assert!(vault.roles.contains_key(&role), "no role {role}");
            let key = scope.rsplit_once("/keys/").map(|(_, name)| name.to_owned());
            vault.assignments.push(Assignment { principal: text("principalId"), role, key });
        }
    }
}
