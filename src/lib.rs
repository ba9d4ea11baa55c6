#![doc = include_str!("../docs/crate.md")]
#![deny(unsafe_code)]

mod context;
mod dek;
mod envelope;
mod error;
mod format;
pub mod kek;
mod memory;
mod observer;
mod runtime;
#[cfg(all(test, shuttle))]
#[path = "../tests/schedules/mod.rs"]
mod schedules;
mod suite;
mod sync;

pub use context::EncryptionContext;
pub use dek::{DekOrigin, KekStatistics, Limits, Statistics, TargetStatistics};
pub use envelope::{
    Builder, CompactMessage, Envelope, Inspection, KekEntry, OpeningKey, Plaintext, SealingKey, StartUp, inspect,
};
pub use error::{Error, ErrorKind};
pub use format::{KekId, Kind, WrappedDek, WrappedKeys, is_sealed};
pub use kek::call::{BreakerState, CallBudget, CallPolicy};
#[cfg(any(test, feature = "conformance"))]
pub use memory::clock::ManualClock;
pub use memory::{MemoryProtection, memory_protection};
#[cfg(feature = "metrics")]
pub use observer::MetricsObserver;
#[cfg(feature = "tracing")]
pub use observer::TracingObserver;
pub use observer::{Event, Observer, Operation};
pub use runtime::Runtime;
pub use suite::{Backend, Dek, DekId, Nonces, Suite};

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
