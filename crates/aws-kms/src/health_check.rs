//! How thorough a health check is.
#![forbid(unsafe_code)]

/// Selects how [`health`](waxseal::kek::KekProvider::health), and with it
/// [`start`](waxseal::EnvelopeBuilder::start), checks a key.
///
/// `DescribeKey` shows that a key exists and is enabled, **not that the caller may use it**. To
/// find that out, the check has to use it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum HealthCheck {
    /// Only calls `DescribeKey`.
    #[default]
    Describe,
    /// Also wraps a throw-away DEK (`Encrypt`). For a service that only writes.
    TryWrap,
    /// Also has KMS make a throw-away DEK (`GenerateDataKey`). For a service that writes with
    /// [`DekOrigin::KeyService`](waxseal::DekOrigin::KeyService).
    TryGenerate,
    /// Also wraps a throw-away DEK and unwraps it (`Encrypt`, `Decrypt`). For a service that writes
    /// and reads.
    TryUse,
}

impl HealthCheck {
    pub(crate) const ALL: [Self; 4] =
        [Self::Describe, Self::TryWrap, Self::TryGenerate, Self::TryUse];

    /// Its name in configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::TryWrap => "try-wrap",
            Self::TryGenerate => "try-generate",
            Self::TryUse => "try-use",
        }
    }
}
