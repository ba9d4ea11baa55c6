//! Generates AWS policies that separate the duties for the KEKs of a data domain.
//!
//! ```
//! use waxseal::domain::DomainConfig;
//! use waxseal::domain::duties::{Duties, Holders, Role};
//! use waxseal_aws_kms::duties::AwsPolicies;
//!
//! let key = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
//! let role = |name: &str| format!("arn:aws:iam::111122223333:role/{name}");
//! let config = DomainConfig::default().wrap_with(format!("aws-kms://{key}")).must_have(["tenant"]);
//! let holders = Holders::default()
//!     .key_owners([role("orders-owner")])
//!     .key_administrators([role("orders-keys")])
//!     .writers([role("shop")])
//!     .readers([role("shop"), role("billing")]);
//!
//! let duties = Duties::new("orders", &config, &holders)?;
//! let policies = AwsPolicies::builder(&duties).vpc_endpoints(["vpce-0123456789abcdef0"]).build()?;
//! let key_policy = policies.key_policy(key)?;
//! assert!(key_policy.contains("kms:EncryptionContext:waxseal:domain"));
//! let of_writers = policies.identity_policy(Role::Writer);
//! # assert!(of_writers.contains("kms:Encrypt"));
//! # Ok::<(), waxseal::Error>(())
//! ```
//!
//! The documents are text for people and tools: the same input gives the same text. docs/duties.md
//! explains each of them, and the order in which to apply them.
#![forbid(unsafe_code)]

mod actions;
mod guard;
mod identity;
mod json;
mod key_policy;
mod keys;
mod principal;
mod statement;

use waxseal::Error;
use waxseal::domain::duties::{Duties, Pairs, Role};

use keys::DomainKey;
use principal::{PrincipalArn, invalid};
use statement::Statement;

/// The key policies, identity policies and the service control policy of a domain.
#[derive(Clone, Debug)]
pub struct AwsPolicies {
    duties: Duties,
    keys: Vec<DomainKey>,
    vpc_endpoints: Vec<String>,
    waiting_period: u8,
    break_glass_tag: String,
    break_glass_mfa: bool,
    imported_material: bool,
    root_recovery: bool,
}

/// Configures [`AwsPolicies`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens until `build`"]
pub struct AwsPoliciesBuilder(AwsPolicies);

impl AwsPolicies {
    /// Starts with the holders of each role, by ARNs of IAM roles and users.
    pub fn builder(duties: &Duties) -> AwsPoliciesBuilder {
        AwsPoliciesBuilder(Self {
            duties: duties.clone(),
            keys: Vec::new(),
            vpc_endpoints: Vec::new(),
            waiting_period: 30,
            break_glass_tag: "waxseal-break-glass".to_owned(),
            break_glass_mfa: false,
            imported_material: false,
            root_recovery: true,
        })
    }

    /// Returns the ARNs of the domain's keys. Each needs its key policy.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.arn.as_str())
    }

    /// Returns the key policy of one of the domain's [keys](Self::keys). Set it as a key owner: KMS
    /// refuses a policy that would keep its caller from changing it again.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](waxseal::ErrorKind::InvalidOption) for another key.
    pub fn key_policy(&self, key: &str) -> Result<String, Error> {
        let key = self.keys.iter().find(|candidate| candidate.arn == key);
        let key = key.ok_or_else(|| invalid("this is not a key of the domain"))?;
        Ok(key_policy::document(self, key))
    }

    /// Returns the identity policy for the holders of a role.
    ///
    /// In the key's own account the key policy alone grants access. Holders in other accounts need
    /// this policy. It also denies them the other duties, whatever else is attached to them.
    #[must_use]
    pub fn identity_policy(&self, role: Role) -> String {
        identity::document(self, role)
    }

    /// Returns the service control policy. In the accounts to which it is attached, it protects
    /// deletion, the waiting period, and the tag that enables break-glass against everybody.
    #[must_use]
    pub fn service_control_policy(&self) -> String {
        guard::document(self)
    }

    /// Returns the name of the alarm for the use of break-glass.
    #[must_use]
    pub fn break_glass_alarm(&self) -> String {
        format!("waxseal-{}-break-glass", self.duties.domain())
    }

    /// Returns the event pattern of Amazon EventBridge for that alarm, if somebody has the role. It
    /// matches every call of a break-glass role to KMS, including denied ones, and every tag on
    /// such a role.
    #[must_use]
    pub fn break_glass_event_pattern(&self) -> Option<String> {
        (!self.holders(Role::BreakGlass).is_empty()).then(|| guard::event_pattern(self))
    }

    fn holders(&self, role: Role) -> &[String] {
        self.duties.holders(role)
    }

    /// Returns the holders in a key's own account. Others cannot administer it.
    fn holders_in(&self, role: Role, key: &DomainKey) -> Vec<&str> {
        let arns = self.holders(role).iter().map(String::as_str);
        let account = |arn: &&str| {
            PrincipalArn::read(arn).is_some_and(|principal| principal.account == key.account)
        };
        arns.filter(account).collect()
    }

    /// Whether a rewrap can only have one source and one destination.
    fn has_one_key(&self) -> bool {
        self.keys.len() == 1
    }
}

/// Adds the pairs that the domain's contexts have.
fn with_pairs(mut statement: Statement, pairs: &Pairs) -> Statement {
    let key = |name: &String| format!("kms:EncryptionContext:{name}");
    for (name, value) in &pairs.equal {
        statement = statement.when("StringEquals", key(name), [value.as_str()]);
    }
    for name in &pairs.present {
        statement = statement.when("Null", key(name), ["false"]);
    }
    statement
}

impl AwsPoliciesBuilder {
    /// Restricts use of the keys to these VPC endpoints (`vpce-…`). By default use is not
    /// restricted. This does not affect administration.
    pub fn vpc_endpoints<E: Into<String>>(
        mut self,
        endpoints: impl IntoIterator<Item = E>,
    ) -> Self {
        self.0.vpc_endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the shortest waiting period of a deletion: 7 to 30 days, by default 30.
    pub fn waiting_period_days(mut self, days: u8) -> Self {
        self.0.waiting_period = days;
        self
    }

    /// Sets the tag of a break-glass role. With the domain's name as its value, the tag enables the
    /// role. By default `waxseal-break-glass`.
    pub fn break_glass_tag(mut self, name: impl Into<String>) -> Self {
        self.0.break_glass_tag = name.into();
        self
    }

    /// Sets whether each request of break-glass must show a second factor that is at most an hour
    /// old. By default not: credentials of `AssumeRole` show none ("Secure API access with MFA" in
    /// the IAM User Guide), nor do those of federated users. Require it in the trust policy of the
    /// role, or at the identity provider.
    pub fn break_glass_mfa(mut self, needed: bool) -> Self {
        self.0.break_glass_mfa = needed;
        self
    }

    /// Sets whether key material is imported. By default it is not, and nobody may import or delete
    /// it.
    pub fn imported_material(mut self, imported: bool) -> Self {
        self.0.imported_material = imported;
        self
    }

    /// Sets whether the root user of the account may set the key policy, in case the last key owner
    /// is gone. By default it may. Otherwise only AWS Support could help.
    pub fn root_recovery(mut self, may: bool) -> Self {
        self.0.root_recovery = may;
        self
    }

    /// Checks everything that will appear in a document, and that each document is short enough for
    /// AWS.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](waxseal::ErrorKind::InvalidOption), for
    /// - a holder that is not the ARN of an IAM role or user, or is a second spelling of one;
    /// - a key of the domain that is not named by its ARN, is of another partition than a holder,
    ///   or has no key owner in its account;
    /// - a KEK whose health check uses it: its context cannot have `waxseal:domain`;
    /// - a name in the domain's contexts that cannot be used in a condition;
    /// - an option that is out of range, and a document that is too long.
    pub fn build(self) -> Result<AwsPolicies, Error> {
        let mut policies = self.0;
        principal::check(&policies.duties)?;
        policies.keys = keys::of_domain(&policies.duties)?;
        policies.check_options()?;
        policies.check_accounts()?;
        policies.check_sizes()?;
        Ok(policies)
    }
}

impl AwsPolicies {
    fn check_options(&self) -> Result<(), Error> {
        if !(7..=30).contains(&self.waiting_period) {
            return Err(invalid("waiting_period_days: 7 to 30 are allowed"));
        }
        let is_endpoint = |text: &String| {
            let id = text.strip_prefix("vpce-").unwrap_or_default();
            (8..=32).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        if !self.vpc_endpoints.iter().all(is_endpoint) {
            return Err(invalid("vpc_endpoints: each is the id of an endpoint, `vpce-…`"));
        }
        if self.break_glass_tag.len() > 128 || !is_plain(&self.break_glass_tag) {
            return Err(invalid("break_glass_tag: 1 to 128 letters, digits and `-_.:/@+=`"));
        }
        let (wrapping, unwrapping) = (self.duties.when_wrapping(), self.duties.when_unwrapping());
        for pairs in [wrapping, unwrapping] {
            let names = pairs.equal.iter().flat_map(|(name, value)| [name, value]);
            if let Some(name) = names.chain(&pairs.present).find(|name| !is_plain(name)) {
                return Err(invalid(format!(
                    "{name:?} of the encryption context cannot stand in a condition: letters, \
                     digits and `-_.:/@+=` can"
                )));
            }
        }
        Ok(())
    }

    fn check_accounts(&self) -> Result<(), Error> {
        for key in &self.keys {
            for name in Role::ALL.into_iter().flat_map(|role| self.holders(role)) {
                let partition = PrincipalArn::read(name).map(|principal| principal.partition);
                if partition != Some(key.partition.as_str()) {
                    let detail = format!("{name:?} is of another partition than a key");
                    return Err(invalid(detail));
                }
            }
            if self.holders_in(Role::KeyOwner, key).is_empty() {
                return Err(invalid(format!(
                    "key_owners: none is in account {} of the key, so nobody could set its policy",
                    key.account
                )));
            }
        }
        let account =
            |arn: &String| PrincipalArn::read(arn).map(|principal| principal.account.to_owned());
        let owners = self.holders(Role::KeyOwner);
        for glass in self.holders(Role::BreakGlass) {
            // No role is tagged from another account.
            if !owners.iter().any(|owner| account(owner) == account(glass)) {
                return Err(invalid(format!(
                    "break_glass: no key owner is in the account of {glass:?}, so nobody could enable it"
                )));
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), Error> {
        let fits = |what: &str, size: usize, most: usize| {
            if size <= most {
                return Ok(());
            }
            Err(invalid(format!("{what} would have {size} characters, {most} are allowed")))
        };
        for key in &self.keys {
            // API Reference, PutKeyPolicy.
            fits("the key policy", key_policy::document(self, key).len(), 32 * 1024)?;
        }
        for role in Role::ALL {
            // "IAM and AWS STS quotas", managed policies: white space does not count.
            let document = self.identity_policy(role);
            let size = document.chars().filter(|c| !c.is_whitespace()).count();
            fits(&format!("the identity policy of {role}"), size, 6144)?;
        }
        // "Quotas for AWS Organizations": white space counts.
        fits("the service control policy", self.service_control_policy().len(), 5120)
    }
}

/// Whether the text has no special meaning in JSON, in an ARN pattern or as a policy variable.
fn is_plain(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@+=".contains(&byte);
    !text.is_empty() && text.bytes().all(is_plain)
}
