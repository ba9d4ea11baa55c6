//! Helpers for implementations of [`KekProvider`](super::KekProvider), beside the trait.
//!
//! The providers of this project use nothing internal to the library apart from these.
//!
//! - `Spawner` (feature `tokio`) runs a network client on the tokio runtime in which the provider
//!   was built.
//! - [`certificates`] recognises a failed connection whose cause is a certificate.
//! - [`process_generation`] distinguishes a forked child from its parent.
//! - [`jitter`] spreads out work that should not happen in all processes at once.
//! - [`duration`] reads and writes durations such as `"5m"` in configuration.
//! - `pairs` (feature `serde`) reads and writes an encryption context as a table.
//! - [`report_request_id`] joins events with the key service's own log.
//! - [`uri`] reads and writes a provider's configuration as a URI.
//! - [`read_file`] reads a certificate, a key or a token, bounded and wiped.
//!
//! Make errors with [`Error::new`](crate::Error::new) and [`KekError::new`](super::KekError::new),
//! DEKs with [`Dek::from_slice`](crate::Dek::from_slice) and
//! [`UnwrappedDek::expose_mut`](super::UnwrappedDek::expose_mut).
#![forbid(unsafe_code)]

pub mod certificates;
/// Durations in configuration: `"300s"`, `"5m"`, `"1h30m"`, `"250ms"`. A number without a unit is
/// refused.
///
/// With the feature `serde`, use the module by `#[serde(with = "…")]` on an `Option<Duration>`.
pub mod duration {
    pub use crate::duration::{EXPECTED, read, write};
    #[cfg(feature = "serde")]
    pub use crate::duration::{deserialize, serialize};
}
mod files;
#[cfg(feature = "serde")]
pub mod pairs;
#[cfg(feature = "tokio")]
mod spawn;
pub mod uri;

pub use super::call::report_request_id;
pub use crate::suite::jitter;
pub use files::{FileContent, read_file};
#[cfg(feature = "tokio")]
pub use spawn::Spawner;

/// Returns a number that changes in the child of a fork. Connections, threads and leases made under
/// another number belong to an ancestor of this process.
#[must_use]
pub fn process_generation() -> u64 {
    crate::memory::fork::generation()
}
