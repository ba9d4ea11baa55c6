//! The audit trail: every event as a record that cannot be changed without being noticed.
//!
//! ```text
//!   event ──► draft ──► queue ─│─► ledger: place, chain ──► file ──► disk
//!   (caller's thread)          │      │ checkpoints            └──► sinks
//!                              │   (the trail's thread)
//!   verifier ◄── files, copies of checkpoints, keys
//! ```
//!
//! It knows events and no layer above them. Only `verify`, `file::recovery` and `append` read
//! lines, and none trusts them: a start verifies (`resume`) before it continues. docs/audit.md
//! lists the records and specifies chain and checkpoints.
//!
//! ```
//! # use waxseal::audit::{AuditTrail, TrailDirectory, Verifier};
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let trail = AuditTrail::builder().directory(TrailDirectory::new("/var/log/cards")).start()?;
//! let envelope = waxseal::Envelope::builder().observer(trail.clone());
//! // Later, on another machine:
//! match Verifier::new().verify("/var/log/cards")?.fault {
//!     None => println!("every record is as it was written"),
//!     Some(fault) => println!("{fault}"),
//! }
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

use std::{fmt, io};

use crate::error::{Error, ErrorKind};

mod append;
mod chain;
mod checkpoint;
pub(crate) mod disclosure;
mod draft;
mod file;
mod key;
mod ledger;
#[cfg(feature = "metrics")]
mod metrics;
mod of_domain;
mod queue;
mod record;
mod resume;
mod signature;
mod sink;
mod trail;
mod verify;
mod writer;

pub use append::AppendTo;
pub use chain::ChainHash;
pub use checkpoint::{Checkpoint, CheckpointKey, CheckpointVerifier};
pub use disclosure::Disclosure;
pub use file::{SyncPolicy, TrailDirectory};
pub use key::AuditKey;
pub use queue::Backpressure;
pub use record::{CheckpointFields, ContextValue, Record, TrailFields};
pub use sink::AuditSink;
#[cfg(feature = "tracing")]
pub use sink::TracingSink;
pub use trail::{AuditStatistics, AuditTrail, AuditTrailBuilder};
pub use verify::{Fault, FaultKind, Verification, Verifier};

/// The system's words are in the cause, so that no text is repeated. The library's own errors have
/// no cause.
fn unusable(what: impl fmt::Display, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(_) => Error::new(ErrorKind::Io, what.to_string()).with_source(error),
        None => Error::new(ErrorKind::Io, format!("{what}: {error}")),
    }
}
