//! Separation of duties: who has which role for the keys of a domain, and which permissions follow.
//!
//! ```text
//!   DomainConfig ──┐
//!                  ├──► Duties ──► the crates of services: policies and grants as text
//!   Holders ───────┘
//! ```
//!
//! [`Duties`] refuses a principal with roles of two [duties](Duty), such as administration and use.
//! It also lists the parts of the domain's contexts that a key service sees, so that a policy can
//! require them. Only the crate of a service knows how that service writes policies: see
//! docs/duties.md.
//!
//! ```
//! use waxseal::domain::DomainConfig;
//! use waxseal::domain::duties::{Duties, Holders, Role};
//!
//! let config = DomainConfig::default().wrap_with("local:/var/lib/app/orders.kek?name=orders");
//! let holders = Holders::default().key_owners(["ada"]).writers(["shop"]).readers(["shop"]);
//! let duties = Duties::new("orders", &config, &holders)?;
//! assert_eq!(duties.holders(Role::Writer), ["shop"]);
//!
//! let both = holders.key_administrators(["shop"]);
//! let refused = Duties::new("orders", &config, &both).unwrap_err();
//! assert!(refused.to_string().contains("administration and use"));
//! # Ok::<(), waxseal::Error>(())
//! ```
#![forbid(unsafe_code)]

mod holders;
mod role;

use std::collections::BTreeMap;

pub use holders::Holders;
pub use role::{Duty, Role};

use super::config::{Address, DomainConfig};
use super::opening::{check_name, contexts, invalid};
use crate::branch::BRANCH;
use crate::dek::{DOMAIN, PERIOD};
use crate::error::Error;
use crate::kek::set::DekOrigin;

const MAX_NAME_BYTES: usize = 2048;

/// The roles for the keys of one domain in one service, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Duties {
    domain: String,
    holders: BTreeMap<Role, Vec<String>>,
    wraps: Vec<Address>,
    unwraps: Vec<Address>,
    dek_origin: DekOrigin,
    shares_branch_keys: bool,
    when_wrapping: Pairs,
    when_unwrapping: Pairs,
}

/// The pairs that the contexts of a domain have in every call to a key service.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Pairs {
    /// Pairs with their values.
    pub equal: Vec<(String, String)>,
    /// The names of other pairs, whose values vary.
    pub present: Vec<String>,
}

impl Duties {
    /// Checks the holders of each role. The names of a role are sorted and deduplicated.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption)
    /// - for one name with roles of two [duties](Duty). Names that differ only in case are the
    ///   same;
    /// - if the domain shares branch keys through a store, and a writer or a rewrapper is not a
    ///   reader: it has to unwrap branch keys, so its role would understate what it can do;
    /// - for a name that is empty, too long, or has control characters, and for a domain that
    ///   [`DomainsBuilder`](crate::domain::DomainsBuilder) would refuse for its names.
    pub fn new(domain: &str, config: &DomainConfig, holders: &Holders) -> Result<Self, Error> {
        check_name(domain)?;
        contexts(domain, config, None).map_err(|wrong| wrong.at(domain))?;
        let holders = Role::ALL.into_iter().map(|role| Ok((role, names(role, holders.of(role))?)));
        let holders: BTreeMap<_, _> = holders.collect::<Result<_, Error>>()?;
        let branches = config.branches.as_ref();
        let shares_branch_keys = branches.is_some_and(|branches| !branches.self_contained);
        check_separation(&holders)?;
        if shares_branch_keys {
            check_readers(domain, &holders)?;
        }
        let per = branches.iter().flat_map(|branches| &branches.per);
        let mut required: Vec<_> = match branches {
            // The context of a branch key. Keys wrapped without a branch key have these pairs too.
            Some(_) => per.cloned().collect(),
            None => config.must_have.clone(),
        };
        required.sort_unstable();
        required.dedup();
        let of_domain = (DOMAIN.to_owned(), domain.to_owned());
        let when_unwrapping = Pairs { equal: vec![of_domain], present: required };
        let mut when_wrapping = when_unwrapping.clone();
        if let Some(branches) = branches {
            let name = branches.name.as_deref().unwrap_or(domain);
            when_wrapping.equal.push((BRANCH.to_owned(), name.to_owned()));
            when_wrapping.present.push(PERIOD.to_owned());
        }
        Ok(Self {
            domain: domain.to_owned(),
            holders,
            wraps: config.wrap_with.clone(),
            unwraps: config.unwrap_with.clone(),
            dek_origin: config.dek_origin.unwrap_or_default(),
            shares_branch_keys,
            when_wrapping,
            when_unwrapping,
        })
    }

    /// Returns the domain's name.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the holders of a role.
    #[must_use]
    pub fn holders(&self, role: Role) -> &[String] {
        self.holders.get(&role).map_or(&[], Vec::as_slice)
    }

    /// Returns the URIs of the KEKs that wrap. They unwrap too.
    pub fn wrapping_keks(&self) -> impl Iterator<Item = &str> {
        self.wraps.iter().map(|uri| uri.0.as_str())
    }

    /// Returns the URIs of the KEKs that only unwrap.
    pub fn unwrapping_keks(&self) -> impl Iterator<Item = &str> {
        self.unwraps.iter().map(|uri| uri.0.as_str())
    }

    /// Returns where the domain's configuration makes DEKs, or branch keys if it has those.
    #[must_use]
    pub fn dek_origin(&self) -> DekOrigin {
        self.dek_origin
    }

    /// Returns whether the domain has a single KEK. Otherwise a writer also wraps DEKs that another
    /// KEK made, and a rewrap adds entries.
    #[must_use]
    pub fn has_one_kek(&self) -> bool {
        self.wraps.len() + self.unwraps.len() == 1
    }

    /// Returns whether all processes share the branch keys of a store. Then every writer unwraps.
    #[must_use]
    pub fn shares_branch_keys(&self) -> bool {
        self.shares_branch_keys
    }

    /// Returns the context pairs that a key service sees when it wraps.
    #[must_use]
    pub fn when_wrapping(&self) -> &Pairs {
        &self.when_wrapping
    }

    /// Returns the context pairs that it sees when it unwraps or rewraps.
    #[must_use]
    pub fn when_unwrapping(&self) -> &Pairs {
        &self.when_unwrapping
    }
}

fn names(role: Role, names: &[String]) -> Result<Vec<String>, Error> {
    let is_name = |name: &String| {
        (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control)
    };
    if !names.iter().all(is_name) {
        return Err(invalid(format!(
            "{role}: a name is empty, too long or has control characters"
        )));
    }
    let mut names = names.to_vec();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn check_separation(holders: &BTreeMap<Role, Vec<String>>) -> Result<(), Error> {
    let mut duties = BTreeMap::new();
    for (role, names) in holders {
        for name in names {
            let before = duties.entry(name.to_lowercase()).or_insert(*role);
            if before.duty() != role.duty() {
                return Err(invalid(format!(
                    "{name:?} would be {before} and {role}: {} and {} are separate duties",
                    before.duty().as_str(),
                    role.duty().as_str(),
                )));
            }
        }
    }
    Ok(())
}

fn check_readers(domain: &str, holders: &BTreeMap<Role, Vec<String>>) -> Result<(), Error> {
    let of = |role| holders.get(&role).into_iter().flatten();
    for role in [Role::Writer, Role::Rewrapper] {
        if let Some(name) = of(role).find(|name| !of(Role::Reader).any(|reader| reader == *name)) {
            return Err(invalid(format!(
                "domains.{domain}: it shares branch keys, and a {role} unwraps those: {name:?} has \
                 to be a reader too"
            )));
        }
    }
    Ok(())
}
