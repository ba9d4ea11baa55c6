//! What implementors of [`KekProvider`](super::KekProvider) need, beside the trait: the providers of
//! this project are made of the same.
//!
//! - [`Spawner`] runs a network client on the tokio runtime in which the provider was built.
//! - [`certificates`] tells a certificate at fault from a server that is down.
//! - [`process_generation`] tells a forked child from its parent.
//! - [`jitter`] spreads what must not happen together.
//! - [`duration`] reads `"5m"` and its kin in configuration.
//!
//! Errors are made with [`Error::new`](crate::Error::new) and
//! [`KekError::new`](super::KekError::new), DEKs with [`Dek::from_slice`](crate::Dek::from_slice) and
//! [`UnwrappedDek::expose_mut`](super::UnwrappedDek::expose_mut).
#![forbid(unsafe_code)]

pub mod certificates;
/// Reads and writes `"300s"`, `"5m"`, `"1h30m"` and `"250ms"`, for `#[serde(with = "…")]` on an
/// `Option<Duration>`. A number without a unit is refused.
#[cfg(feature = "serde")]
pub mod duration {
    pub use crate::duration::{deserialize, serialize};
}
#[cfg(feature = "tokio")]
mod spawn;

pub use crate::suite::jitter;
#[cfg(feature = "tokio")]
pub use spawn::Spawner;

/// A number that changes in the child of a fork. Connections, threads and leases that were made under
/// another one belong to an ancestor.
#[must_use]
pub fn process_generation() -> u64 {
    crate::memory::fork::generation()
}
