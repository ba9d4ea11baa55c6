//! What is known of a key, and how the encryption context binds under it.
#![forbid(unsafe_code)]

use std::time::Instant;

/// Says how the encryption context binds under a key that is not derived. See the table at
/// [`VaultTransitKek`](crate::VaultTransitKek).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum ContextBinding {
    /// As `associated_data`: Vault enforces it, and cannot rewrap on the server.
    AssociatedData,
    /// Not at Vault, which releases the DEK for any context. The DEK id reveals a wrong context
    /// after that. Vault rewraps on the server.
    Unbound,
}

/// Describes a key, as the server does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct KeyInfo {
    /// Whether the encryption context is bound by derivation.
    pub derived: bool,
    /// The version that wraps.
    pub latest_version: u32,
    /// The oldest version that unwraps.
    pub min_decryption_version: u32,
}

/// How the context goes into requests, decided from the key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binding {
    Derived,
    AssociatedData,
    Unbound,
}

pub(crate) struct Known {
    pub(crate) info: KeyInfo,
    pub(crate) binding: Binding,
    pub(crate) at: Instant,
}
