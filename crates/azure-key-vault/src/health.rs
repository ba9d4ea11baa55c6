//! How thorough a health check is.
#![forbid(unsafe_code)]

/// Selects how [`health`](waxseal::kek::KekProvider::health), and with it
/// [`start`](waxseal::EnvelopeBuilder::start), checks a key.
///
/// Reading a key shows that it exists and is enabled, **not that the caller may use it**. To find
/// that out, the check has to use it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum HealthCheck {
    /// Only reads the key. Needs the permission to do so.
    #[default]
    Read,
    /// Wraps a throw-away DEK. For a service that only writes. Needs no permission to read the key.
    TryWrap,
    /// Also unwraps it. For a service that writes and reads.
    TryUse,
}

impl HealthCheck {
    pub(crate) const ALL: [Self; 3] = [Self::Read, Self::TryWrap, Self::TryUse];

    /// Its name in configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::TryWrap => "try-wrap",
            Self::TryUse => "try-use",
        }
    }
}
