//! The least that a role needs.
#![forbid(unsafe_code)]

use waxseal::store::StoreError;

use super::connect::check_schema;

/// What a role of the database does with the key store.
///
/// | | read | insert | replace live rows | make tombstones |
/// |---|---|---|---|---|
/// | [`Reader`](Self::Reader) | yes | | | |
/// | [`Writer`](Self::Writer) | yes | yes | | |
/// | [`Rewrapper`](Self::Rewrapper) | yes | | yes | |
/// | [`Eraser`](Self::Eraser) | yes | | yes | yes |
///
/// The grants are of columns. `erased_at` has to be set together with a tombstone, so who may not
/// write that column cannot erase. What PostgreSQL cannot tell apart is a row that was rewrapped and
/// one that was spoilt: who may replace a row can make it useless.
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
}

impl PostgresRole {
    /// Returns the SQL that gives a role of the database what it needs, and nothing else. `schema`
    /// is that of the options, by default `public`.
    ///
    /// # Errors
    /// Misconfigured if a name has other characters than lower-case letters, digits and `_`.
    pub fn grants(self, schema: &str, role: &str) -> Result<String, StoreError> {
        check_schema(schema)?;
        check_schema(role)?;
        let more = match self {
            Self::Reader => None,
            Self::Writer => Some("INSERT (row_id, branch, period, epoch, row)"),
            Self::Rewrapper => Some("UPDATE (row, changed_at)"),
            Self::Eraser => Some("UPDATE (row, changed_at, erased_at)"),
        };
        let mut sql = format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role};\n\
             GRANT SELECT ON {schema}.waxseal_schema, {schema}.waxseal_keys TO {role};\n"
        );
        if let Some(more) = more {
            sql.push_str(&format!("GRANT {more} ON {schema}.waxseal_keys TO {role};\n"));
        }
        Ok(sql)
    }
}
