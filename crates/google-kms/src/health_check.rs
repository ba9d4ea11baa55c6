//! How thorough a health check is.
#![forbid(unsafe_code)]

/// Selects how [`health`](waxseal::kek::KekProvider::health), and with it
/// [`start`](waxseal::EnvelopeBuilder::start), checks a key.
///
/// `cryptoKeys.get` shows that a key exists and that its primary version is enabled, **not that the
/// caller may use it**. To find that out, the check has to use it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum HealthCheck {
    /// Only looks at the key (`cryptoKeys.get`).
    #[default]
    Get,
    /// Wraps a throw-away DEK (`encrypt`). For a service that only writes.
    TryWrap,
    /// Wraps a throw-away DEK and unwraps it (`encrypt`, `decrypt`). For a service that writes and
    /// reads.
    TryUse,
}

impl HealthCheck {
    pub(crate) const ALL: [Self; 3] = [Self::Get, Self::TryWrap, Self::TryUse];

    /// Its name in configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::TryWrap => "try-wrap",
            Self::TryUse => "try-use",
        }
    }
}
