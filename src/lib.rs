#![doc = guide::links!()]
#![doc = include_str!("../docs/crate.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

mod backend;
pub mod branch;
mod caller;
mod clock;
mod context;
mod dek;
mod dek_id;
pub mod domain;
mod duration;
mod envelope;
mod error;
mod format;
pub mod guide;
mod hex;
pub mod kek;
mod memory;
mod observe;
pub mod policy;
mod runtime;
#[cfg(all(test, shuttle))]
#[path = "../tests/schedules/mod.rs"]
mod schedules;
pub mod store;
mod suite;
mod sync;

pub use caller::{Caller, CallerBuilder};
#[cfg(any(test, feature = "test-util"))]
pub use clock::ManualClock;
pub use context::EncryptionContext;
pub use dek::{
    BranchKeyAges, KekStatistics, Limits, Statistics, StoreStatistics, TargetStatistics,
};
pub use envelope::{
    Aad, ActingFor, Compact, CompactEncryptor, Decryptor, Encryptor, Envelope, EnvelopeBuilder,
    FileOptions, Inspection, KekEntry, Plaintext, Plaintexts, ReadAt, Sealed, SeekableStream,
    StartOptions, StartUp, StreamDecryptor, StreamEncryptor, StreamHead, StreamOptions,
    StreamReader, StreamShape, StreamWriter, Values, inspect,
};
#[cfg(feature = "tokio")]
pub use envelope::{AsyncStreamReader, AsyncStreamWriter};
pub use error::{Error, ErrorKind};
pub use format::{KekId, MessageKind, WrappedDek, WrappedKeys, is_sealed};
pub use kek::call::{BreakerState, CallBudget, CallPolicy};
pub use kek::set::DekOrigin;
pub use memory::{MemoryProtection, memory_protection};
#[cfg(feature = "metrics")]
pub use observe::MetricsObserver;
#[cfg(feature = "tracing")]
pub use observe::TracingObserver;
#[cfg(feature = "audit")]
pub use observe::audit;
pub use observe::{Access, Event, Observer, Operation, StoreOperation};
pub use runtime::Runtime;
pub use suite::{Backend, Dek, DekId, Nonces, Suite};

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
