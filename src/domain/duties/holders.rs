//! Who has which role.
#![forbid(unsafe_code)]

use super::Role;

/// Who has which role, by the names of one service: ARNs, names of policies, database roles.
///
/// In a file (feature `serde`) the fields have the names of the setters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[must_use]
pub struct Holders {
    key_administrators: Vec<String>,
    key_owners: Vec<String>,
    writers: Vec<String>,
    readers: Vec<String>,
    rewrappers: Vec<String>,
    auditors: Vec<String>,
    break_glass: Vec<String>,
}

impl Holders {
    /// Sets who administers the KEK.
    pub fn key_administrators<N: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = N>,
    ) -> Self {
        self.key_administrators = owned(names);
        self
    }

    /// Sets who owns the KEK.
    pub fn key_owners<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.key_owners = owned(names);
        self
    }

    /// Sets who wraps.
    pub fn writers<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.writers = owned(names);
        self
    }

    /// Sets who unwraps. A service that writes and reads has both roles.
    pub fn readers<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.readers = owned(names);
        self
    }

    /// Sets who rewraps.
    pub fn rewrappers<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.rewrappers = owned(names);
        self
    }

    /// Sets who audits.
    pub fn auditors<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.auditors = owned(names);
        self
    }

    /// Sets who unwraps in an emergency.
    pub fn break_glass<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.break_glass = owned(names);
        self
    }

    /// Returns who has a role.
    #[must_use]
    pub fn of(&self, role: Role) -> &[String] {
        match role {
            Role::KeyAdministrator => &self.key_administrators,
            Role::KeyOwner => &self.key_owners,
            Role::Writer => &self.writers,
            Role::Reader => &self.readers,
            Role::Rewrapper => &self.rewrappers,
            Role::Auditor => &self.auditors,
            Role::BreakGlass => &self.break_glass,
        }
    }
}

fn owned<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Vec<String> {
    names.into_iter().map(Into::into).collect()
}
