//! Streams: what is refused, faulty readers and writers, ranges, several threads, and how long a
//! stream lasts.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod faults;
#[cfg(unix)]
mod files;
mod ground;
mod heads;
#[cfg(unix)]
mod killed;
mod lasting;
mod limits;
#[cfg(target_os = "linux")]
mod peak;
mod policy;
mod ranges;
mod slices;
mod threads;
#[cfg(feature = "tokio")]
mod tokio;
mod whole;
