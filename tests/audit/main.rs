//! The audit trail: what it records, that no change of it stays unnoticed, and what crashes, full
//! disks and attackers do to it.
#![cfg(all(feature = "audit", target_os = "linux"))]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod checkpoints;
mod crashes;
mod decisions;
mod disks;
mod forks;
mod ground;
mod outages;
mod pressure;
mod properties;
mod records;
mod sinks;
mod sizes;
mod summaries;
mod tampering;
