//! Generates Cloud KMS IAM policies that separate the duties for the KEKs of a data domain.
//!
//! ```
//! use waxseal::domain::DomainConfig;
//! use waxseal::domain::duties::{Duties, Holders, Role};
//! use waxseal_google_kms::duties::GooglePolicies;
//!
//! let key = "projects/orders-keys/locations/europe-west1/keyRings/services/cryptoKeys/orders";
//! let account = |name: &str| format!("serviceAccount:{name}@orders-prod.iam.gserviceaccount.com");
//! let config = DomainConfig::default().wrap_with(format!("google-kms://{key}"));
//! let holders = Holders::default()
//!     .key_owners(["group:orders-owners@example.com"])
//!     .key_administrators(["group:orders-keys@example.com"])
//!     .writers([account("shop")])
//!     .readers([account("shop"), account("billing")]);
//!
//! let duties = Duties::new("orders", &config, &holders)?;
//! let policies = GooglePolicies::builder(&duties).build()?;
//! let of_the_key = policies.key_policy(key)?;
//! assert!(of_the_key.contains("roles/cloudkms.cryptoKeyEncrypter"));
//! let of_owners = policies.role_definition(Role::KeyOwner).unwrap();
//! assert!(!of_owners.contains("useToDecrypt"));
//! # Ok::<(), waxseal::Error>(())
//! ```
//!
//! The documents are text for people and tools: the same input gives the same text. Administration
//! has custom roles, since the predefined `roles/cloudkms.admin` combines the permissions of an
//! administrator and an owner.
//!
//! IAM grants add up: a grant on the key ring or the project counts too, and so does `roles/owner`.
//! Keep the keys of a domain in a separate project. Cloud KMS does not see the encryption context,
//! so no policy can require it. **Give each domain its own key**.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde_json::{Value, json};
use waxseal::domain::duties::{Duties, Role};
use waxseal::{Error, ErrorKind};

use crate::config::Config;
use crate::format::KeyName;

const ENCRYPTER: &str = "roles/cloudkms.cryptoKeyEncrypter";
const DECRYPTER: &str = "roles/cloudkms.cryptoKeyDecrypter";
const VIEWER: &str = "roles/cloudkms.viewer";

/// A key administrator's permissions: rotate, enable and disable, but neither destroy nor grant.
const OF_ADMINISTRATORS: [&str; 7] = [
    "cloudkms.cryptoKeyVersions.create",
    "cloudkms.cryptoKeyVersions.get",
    "cloudkms.cryptoKeyVersions.list",
    "cloudkms.cryptoKeyVersions.update",
    "cloudkms.cryptoKeys.get",
    "cloudkms.cryptoKeys.getIamPolicy",
    "cloudkms.cryptoKeys.update",
];
/// A key owner's permissions: grant, destroy and restore.
const OF_OWNERS: [&str; 8] = [
    "cloudkms.cryptoKeyVersions.destroy",
    "cloudkms.cryptoKeyVersions.get",
    "cloudkms.cryptoKeyVersions.list",
    "cloudkms.cryptoKeyVersions.restore",
    "cloudkms.cryptoKeys.get",
    "cloudkms.cryptoKeys.getIamPolicy",
    "cloudkms.cryptoKeys.list",
    "cloudkms.cryptoKeys.setIamPolicy",
];

/// The IAM policies of a domain's keys, and the custom roles that they name.
#[derive(Clone, Debug)]
pub struct GooglePolicies {
    duties: Duties,
    keys: Vec<DomainKey>,
    rewrappers_see_deks: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct DomainKey {
    name: String,
    project: String,
    wraps: bool,
}

/// Configures [`GooglePolicies`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens until `build`"]
pub struct GooglePoliciesBuilder(GooglePolicies);

impl GooglePolicies {
    /// Starts with the holders of each role, by members as IAM writes them: `user:`, `group:`,
    /// `serviceAccount:`, `principal://` and `principalSet://`.
    pub fn builder(duties: &Duties) -> GooglePoliciesBuilder {
        GooglePoliciesBuilder(Self {
            duties: duties.clone(),
            keys: Vec::new(),
            rewrappers_see_deks: false,
        })
    }

    /// Returns the resource names of the domain's keys. Each needs its policy.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.name.as_str())
    }

    /// Returns the id of the custom role for administrators or owners, in the project of each key;
    /// `None` for other roles, which are predefined.
    #[must_use]
    pub fn role_id(&self, role: Role) -> Option<&'static str> {
        match role {
            Role::KeyAdministrator => Some("waxsealKeyAdministrator"),
            Role::KeyOwner => Some("waxsealKeyOwner"),
            _ => None,
        }
    }

    /// Returns the definition of that custom role, for `gcloud iam roles create ID --project P
    /// --file FILE`.
    #[must_use]
    pub fn role_definition(&self, role: Role) -> Option<String> {
        let permissions = match role {
            Role::KeyAdministrator => &OF_ADMINISTRATORS[..],
            Role::KeyOwner => &OF_OWNERS,
            _ => return None,
        };
        Some(written(&json!({
            "title": format!("waxseal {role}"),
            "description": "Administers keys and cannot use them.",
            "stage": "GA",
            "includedPermissions": permissions,
        })))
    }

    /// Returns the whole IAM policy of one of the domain's [keys](Self::keys), for `gcloud kms keys
    /// set-iam-policy KEY FILE`. It replaces the existing policy. It gives break-glass nothing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for another key.
    pub fn key_policy(&self, key: &str) -> Result<String, Error> {
        let bindings = self.bindings(self.find(key)?);
        let bindings: Vec<_> =
            bindings.iter().map(|(role, members)| binding(role, members)).collect();
        Ok(written(&json!({ "bindings": bindings, "version": 1 })))
    }

    /// Returns the policy with which break-glass may decrypt until this time, such as
    /// `2026-12-01T12:00:00Z`. Someone other than its holder must set it. It expires on its own;
    /// set the [normal policy](Self::key_policy) afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for another key, if nobody has the role, and for a time that is
    /// not of this form.
    pub fn enabled_break_glass(&self, key: &str, until: &str) -> Result<String, Error> {
        let key = self.find(key)?;
        let members = self.duties.holders(Role::BreakGlass);
        if members.is_empty() {
            return Err(invalid("nobody has the role break-glass"));
        }
        if !is_time(until) {
            return Err(invalid("until: a time in UTC such as 2026-12-01T12:00:00Z"));
        }
        let bindings = self.bindings(key);
        let mut bindings: Vec<_> =
            bindings.iter().map(|(role, members)| binding(role, members)).collect();
        bindings.push(json!({
            "condition": {
                "expression": format!("request.time < timestamp(\"{until}\")"),
                "title": "waxseal break-glass",
            },
            "members": members,
            "role": DECRYPTER,
        }));
        Ok(written(&json!({ "bindings": bindings, "version": 3 })))
    }

    fn find(&self, key: &str) -> Result<&DomainKey, Error> {
        let key = self.keys.iter().find(|candidate| candidate.name == key);
        key.ok_or_else(|| invalid("this is not a key of the domain"))
    }

    /// Members by role.
    fn bindings(&self, key: &DomainKey) -> BTreeMap<String, Vec<&str>> {
        let mut bindings: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        let mut grant = |iam: String, role: Role| {
            let members = self.duties.holders(role).iter().map(String::as_str);
            bindings.entry(iam).or_default().extend(members);
        };
        let custom = |role: Role| {
            format!("projects/{}/roles/{}", key.project, self.role_id(role).unwrap_or_default())
        };
        for role in [Role::KeyAdministrator, Role::KeyOwner] {
            grant(custom(role), role);
        }
        grant(VIEWER.to_owned(), Role::Auditor);
        grant(DECRYPTER.to_owned(), Role::Reader);
        grant(DECRYPTER.to_owned(), Role::Rewrapper);
        if key.wraps {
            grant(ENCRYPTER.to_owned(), Role::Writer);
            grant(ENCRYPTER.to_owned(), Role::Rewrapper);
        }
        for members in bindings.values_mut() {
            members.sort_unstable();
            members.dedup();
        }
        bindings.retain(|_, members| !members.is_empty());
        bindings
    }
}

impl GooglePoliciesBuilder {
    /// Accepts that rewrappers see DEKs. Cloud KMS cannot rewrap, so a rewrapper has the roles of a
    /// writer and of a reader. By default `build` refuses a domain that has rewrappers.
    pub fn rewrappers_see_deks(mut self, accepted: bool) -> Self {
        self.0.rewrappers_see_deks = accepted;
        self
    }

    /// Checks everything that will appear in a document.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if a holder is not one person, group, service account or
    /// workload (`allUsers` and the like are refused), if the domain has no key in Cloud KMS, if
    /// nobody owns its keys, and if it has rewrappers that nobody
    /// [accepted](Self::rewrappers_see_deks).
    pub fn build(self) -> Result<GooglePolicies, Error> {
        let mut policies = self.0;
        let duties = &policies.duties;
        for role in Role::ALL {
            if let Some(member) = duties.holders(role).iter().find(|member| !is_member(member)) {
                return Err(invalid(format!(
                    "{role}: {member:?} is not a member: user:, group:, serviceAccount:, \
                     principal:// or principalSet:// and a name"
                )));
            }
        }
        if duties.holders(Role::KeyOwner).is_empty() {
            return Err(invalid("key_owners: there is none, so nobody could say who may"));
        }
        if !duties.holders(Role::Rewrapper).is_empty() && !policies.rewrappers_see_deks {
            return Err(invalid(
                "rewrappers: Cloud KMS cannot rewrap, so they would see DEKs; accept that with \
                 rewrappers_see_deks, or have none",
            ));
        }
        let uris = duties.wrapping_keks().map(|uri| (uri, true));
        let uris = uris.chain(duties.unwrapping_keks().map(|uri| (uri, false)));
        let mut keys: Vec<DomainKey> = Vec::new();
        for (uri, wraps) in uris {
            let scheme = uri.split(':').next().unwrap_or_default();
            if !scheme.eq_ignore_ascii_case("google-kms") {
                continue;
            }
            let config: Config = uri.parse()?;
            let former = config.former().map(|name| (name, false));
            for (name, wraps) in std::iter::once((config.key(), wraps)).chain(former) {
                let parts = KeyName::read(name)
                    .ok_or_else(|| invalid("a former key is not named by its resource name"))?;
                match keys.iter_mut().find(|key| key.name == name) {
                    Some(known) => known.wraps |= wraps,
                    None => keys.push(DomainKey {
                        name: name.to_owned(),
                        project: parts.project.to_owned(),
                        wraps,
                    }),
                }
            }
        }
        if keys.is_empty() {
            return Err(invalid("the domain has no key in Cloud KMS"));
        }
        policies.keys = keys;
        Ok(policies)
    }
}

fn binding(role: &str, members: &[&str]) -> Value {
    json!({ "members": members, "role": role })
}

fn written(document: &Value) -> String {
    format!("{document:#}\n")
}

/// Whether IAM knows this kind of member, and it cannot mean everybody. Deleted members and whole
/// domains are refused.
fn is_member(member: &str) -> bool {
    let known = ["user:", "group:", "serviceAccount:", "principal://", "principalSet://"];
    let name = known.iter().find_map(|kind| member.strip_prefix(kind));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+@/:%=~".contains(&byte);
    name.is_some_and(|name| !name.is_empty() && name.bytes().all(is_plain))
}

/// `YYYY-MM-DDTHH:MM:SSZ`.
fn is_time(text: &str) -> bool {
    const FORM: &str = "0000-00-00T00:00:00Z";
    text.len() == FORM.len()
        && text.bytes().zip(FORM.bytes()).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            _ => byte == form,
        })
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, detail.into())
}
