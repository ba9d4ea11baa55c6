//! The least privileges of each role.
#![forbid(unsafe_code)]

use waxseal::store::StoreError;

use super::connect::{check_schema, wrong};

/// What a database role may do with the key store.
///
/// | | see what rows there are | read | insert | replace live rows | make tombstones |
/// |---|---|---|---|---|---|
/// | [`Auditor`](Self::Auditor) | yes | | | | |
/// | [`Reader`](Self::Reader) | yes | yes | | | |
/// | [`Writer`](Self::Writer) | yes | yes | yes | | |
/// | [`Rewrapper`](Self::Rewrapper) | yes | yes | | yes | |
/// | [`Eraser`](Self::Eraser) | yes | yes | | yes | yes |
///
/// The grants are column privileges. `erased_at` must be set together with a tombstone, so a role
/// that may not write that column cannot erase. PostgreSQL cannot distinguish a rewrapped row from
/// a corrupted one: a role that may replace a row can make it useless.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum PostgresRole {
    /// A service that only reads what others encrypted.
    Reader,
    /// A service that encrypts: it inserts, and reads what others inserted.
    Writer,
    /// The job that rewraps after a rotation of a KEK.
    Rewrapper,
    /// The job that erases branches.
    Eraser,
    /// An auditor: sees which keys exist and when they changed, but no wrapped key or context.
    Auditor,
}

impl PostgresRole {
    /// Returns the SQL that gives a database role exactly what it needs. `schema` is that of the
    /// options, by default `public`.
    ///
    /// # Errors
    /// Misconfigured if a name has characters other than lower-case letters, digits and `_`, and
    /// for a role such as `public` that stands for others.
    pub fn grants(self, schema: &str, role: &str) -> Result<String, StoreError> {
        check_schema(schema)?;
        check_role(role)?;
        let keys = format!("{schema}.waxseal_keys");
        let mut sql = format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role};\n\
             GRANT SELECT ON {schema}.waxseal_schema TO {role};\n"
        );
        for privilege in self.privileges() {
            sql.push_str(&format!("GRANT {privilege} ON {keys} TO {role};\n"));
        }
        Ok(sql)
    }

    /// Returns the privileges on the table of keys.
    fn privileges(self) -> Vec<&'static str> {
        let more = match self {
            Self::Auditor => {
                return vec![
                    "SELECT (row_id, branch, period, epoch, created_at, changed_at, erased_at, \
                     kind, state, period_start)",
                ];
            }
            Self::Reader => None,
            Self::Writer => Some("INSERT (row_id, branch, period, epoch, row)"),
            Self::Rewrapper => Some("UPDATE (row, changed_at)"),
            Self::Eraser => Some("UPDATE (row, changed_at, erased_at)"),
        };
        ["SELECT"].into_iter().chain(more).collect()
    }
}

/// Also refuses names with a special meaning in `GRANT … TO`, such as everybody, and the predefined
/// roles.
pub(crate) fn check_role(role: &str) -> Result<(), StoreError> {
    check_schema(role)?;
    let means_others =
        ["current_role", "current_user", "none", "public", "session_user", "user"].contains(&role);
    if means_others || role.starts_with("pg_") {
        return Err(wrong(format!("{role:?} is not a role that can be granted to")));
    }
    Ok(())
}
