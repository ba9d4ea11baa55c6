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
mod suite;

pub use context::EncryptionContext;
pub use dek::{DekOrigin, Limits};
pub use envelope::{
    Builder, CompactMessage, Envelope, Inspection, KekEntry, OpeningKey, Plaintext, SealingKey, inspect,
};
pub use error::{Error, ErrorKind};
pub use format::{KekId, Kind, WrappedDek, WrappedKeys, is_sealed};
#[cfg(any(test, feature = "conformance"))]
pub use memory::clock::ManualClock;
pub use memory::{MemoryProtection, memory_protection};
pub use observer::{Event, Observer};
pub use runtime::Runtime;
pub use suite::{Backend, Dek, DekId, Nonces, Suite};

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
