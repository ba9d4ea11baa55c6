//! What is known of a key, and how the encryption context binds under it.
#![forbid(unsafe_code)]

use std::time::Instant;

use arc_swap::ArcSwap;

/// Selects how the encryption context binds under a key that is not derived. See the table at
/// [`VaultTransitKek`](crate::VaultTransitKek).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum ContextBinding {
    /// As `associated_data`: Vault enforces it, but cannot rewrap on the server.
    AssociatedData,
    /// Not at Vault, which releases the DEK for any context. The DEK id reveals a wrong context
    /// after that. Vault rewraps on the server.
    Unbound,
}

/// The description of a key from the server.
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

/// How the context is sent in requests, decided by the key.
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

/// The highest known version of the key. Held in a pointer and not in a lock, which a fork could
/// inherit locked.
#[derive(Default)]
pub(crate) struct Latest(ArcSwap<Said>);

#[derive(Clone, Copy, Default)]
struct Said {
    /// 0 while none is known.
    version: u32,
    /// When it was asked for, or else learned.
    at: Option<Instant>,
}

impl Latest {
    /// Returns the version, or 0 while none is known.
    pub(crate) fn version(&self) -> u32 {
        self.0.load().version
    }

    /// Records the version from a reading of the key that was requested at this time. A late answer
    /// does not lower the version that a newer one named: what the previous version wrapped would
    /// count as current again. A newer answer does, since the key may be another one now.
    pub(crate) fn learn_from_key(&self, version: u32, asked: Instant) {
        self.0.rcu(|said| match **said {
            Said { version: higher, at: Some(at) } if higher >= version && at > asked => **said,
            Said { at, .. } => Said { version, at: at.max(Some(asked)) },
        });
    }

    /// Records that the server wrapped under this version.
    pub(crate) fn learn_from_answer(&self, version: u32) {
        if version > self.version() {
            let at = Some(Instant::now());
            self.0.rcu(|said| if version > said.version { Said { version, at } } else { **said });
        }
    }
}
