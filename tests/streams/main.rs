//! Streams: what is refused, faulty readers and writers, ranges, several threads, and how long a stream lasts.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod faults;
mod ground;
mod heads;
mod lasting;
mod limits;
mod policy;
mod ranges;
mod threads;
#[cfg(feature = "tokio")]
mod tokio;
mod whole;
