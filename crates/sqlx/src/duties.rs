//! Generates PostgreSQL grants on a key store that separate the duties for the keys of a data
//! domain.
//!
//! Holders of roles are database roles, by their names.
//!
//! ```
//! use waxseal::domain::DomainConfig;
//! use waxseal::domain::duties::{Duties, Holders};
//! use waxseal_sqlx::duties::PostgresGrants;
//!
//! let config = DomainConfig::default()
//!     .wrap_with("local:/var/lib/app/orders.kek?name=orders")
//!     .store("postgres://db.example/keys");
//! let holders = Holders::default().writers(["shop"]).readers(["shop"]).auditors(["audit"]);
//! let duties = Duties::new("orders", &config, &holders)?;
//!
//! let grants = PostgresGrants::new(&duties, "public")?;
//! let shop = grants.of("shop")?;
//! assert!(shop.contains("GRANT INSERT (row_id, branch, period, epoch, row) ON public.waxseal_keys"));
//! # Ok::<(), waxseal::Error>(())
//! ```
//!
//! | role | grants of |
//! |---|---|
//! | writer, reader, rewrapper | [`PostgresRole`] of the same name |
//! | key owner, who erases | [`PostgresRole::Eraser`] |
//! | auditor, key administrator | [`PostgresRole::Auditor`] |
//! | break-glass | none; [`PostgresRole::Reader`] while it is enabled |
//!
//! The grants apply to the whole store. Domains whose roles differ need separate stores or schemas.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use waxseal::domain::duties::{Duties, Role};
use waxseal::store::StoreError;

use crate::postgres::{PostgresRole, check_role, check_schema, wrong};

/// The grants of a domain on its key store.
#[derive(Clone, Debug)]
pub struct PostgresGrants {
    duties: Duties,
    schema: String,
}

impl PostgresGrants {
    /// Takes the holders of each role, by names of database roles, and the schema of the store, by
    /// default `public`.
    ///
    /// # Errors
    /// Misconfigured if a name has characters other than lower-case letters, digits and `_`, and
    /// for a role such as `public` that stands for others.
    pub fn new(duties: &Duties, schema: &str) -> Result<Self, StoreError> {
        check_schema(schema)?;
        for name in Role::ALL.into_iter().flat_map(|role| duties.holders(role)) {
            check_role(name)?;
        }
        Ok(Self { duties: duties.clone(), schema: schema.to_owned() })
    }

    /// Returns the names of the database roles, without duplicates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let all = Role::ALL.into_iter().flat_map(|role| self.duties.holders(role));
        all.map(String::as_str).collect::<BTreeSet<_>>().into_iter()
    }

    /// Returns the SQL that revokes the privileges of `PUBLIC`, so that only grants by name count.
    /// The owner of the tables runs it once, before the others.
    #[must_use]
    pub fn of_everybody(&self) -> String {
        let Self { schema, .. } = self;
        format!(
            "-- Domain {}: everybody else.\n\
             REVOKE ALL ON {schema}.waxseal_schema, {schema}.waxseal_keys FROM PUBLIC;\n\
             REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC;\n",
            self.duties.domain()
        )
    }

    /// Returns the SQL that gives a database role what all its roles need, and removes the rest.
    /// For break-glass it gives nothing.
    ///
    /// # Errors
    /// Misconfigured if the name has no role.
    pub fn of(&self, name: &str) -> Result<String, StoreError> {
        self.grants(name, false)
    }

    /// Returns the SQL that lets break-glass read. Someone other than its holder must run it, and
    /// the [normal SQL](Self::of) after the emergency, which also ends reading in running sessions.
    ///
    /// # Errors
    /// Misconfigured if the name is not a holder of break-glass.
    pub fn enabled_break_glass(&self, name: &str) -> Result<String, StoreError> {
        if !self.roles_of(name).contains(&Role::BreakGlass) {
            return Err(wrong(format!("{name:?} is not break-glass")));
        }
        self.grants(name, true)
    }

    fn roles_of(&self, name: &str) -> Vec<Role> {
        let holds = |role: &Role| self.duties.holders(*role).iter().any(|holder| holder == name);
        Role::ALL.into_iter().filter(holds).collect()
    }

    fn grants(&self, name: &str, is_enabled: bool) -> Result<String, StoreError> {
        let (schema, roles) = (&self.schema, self.roles_of(name));
        if roles.is_empty() {
            return Err(wrong(format!("{name:?} has no role")));
        }
        let shown: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
        let state = if is_enabled { ", enabled" } else { "" };
        let mut sql = format!(
            "-- Domain {}: {}{state}.\n\
             BEGIN;\n\
             REVOKE ALL ON {schema}.waxseal_schema, {schema}.waxseal_keys FROM {name};\n\
             REVOKE CREATE ON SCHEMA {schema} FROM {name};\n",
            self.duties.domain(),
            shown.join(", ")
        );
        // Two roles have statements in common.
        let mut granted = BTreeSet::new();
        for role in roles {
            let of_store = match role {
                Role::Writer => PostgresRole::Writer,
                Role::Reader => PostgresRole::Reader,
                Role::Rewrapper => PostgresRole::Rewrapper,
                Role::KeyOwner => PostgresRole::Eraser,
                Role::Auditor | Role::KeyAdministrator => PostgresRole::Auditor,
                Role::BreakGlass if is_enabled => PostgresRole::Reader,
                _ => continue,
            };
            for statement in of_store.grants(schema, name)?.lines() {
                if granted.insert(statement.to_owned()) {
                    sql.push_str(statement);
                    sql.push('\n');
                }
            }
        }
        sql.push_str("COMMIT;\n");
        Ok(sql)
    }
}
