//! The holders of each role.
#![forbid(unsafe_code)]

use super::Role;

/// The holders of each role, by the names that one service uses: ARNs, names of policies, database
/// roles.
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
    /// Sets the holders of [`Role::KeyAdministrator`].
    pub fn key_administrators<N: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = N>,
    ) -> Self {
        self.key_administrators = owned(names);
        self
    }

    /// Sets the holders of [`Role::KeyOwner`].
    pub fn key_owners<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.key_owners = owned(names);
        self
    }

    /// Sets the holders of [`Role::Writer`].
    pub fn writers<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.writers = owned(names);
        self
    }

    /// Sets the holders of [`Role::Reader`]. A service that writes and reads has both roles.
    pub fn readers<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.readers = owned(names);
        self
    }

    /// Sets the holders of [`Role::Rewrapper`].
    pub fn rewrappers<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.rewrappers = owned(names);
        self
    }

    /// Sets the holders of [`Role::Auditor`].
    pub fn auditors<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.auditors = owned(names);
        self
    }

    /// Sets the holders of [`Role::BreakGlass`].
    pub fn break_glass<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.break_glass = owned(names);
        self
    }

    /// Returns the holders of a role.
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
