//! Where DEKs come from and how long they are cached. The source makes or unwraps a DEK, the cache
//! holds it, and the wiper destroys it on time.
//!
//! This process made a `WritingDek`, which encrypts. A `ReadingDek` decrypts and never encrypts:
//! the types offer no way from one to the other.
#![forbid(unsafe_code)]

mod budget;
mod cache;
mod contexts;
mod flight;
mod lease;
mod limits;
mod parent;
mod pinned;
mod reading;
mod registration;
mod registry;
mod revocations;
mod source;
mod statistics;
mod stream;
mod wiper;
mod writing;

pub(crate) use contexts::{DOMAIN, DomainContexts};
pub(crate) use flight::{InFlight, Shareable};
pub use limits::Limits;
pub(crate) use limits::LimitsInForce;
pub(crate) use parent::LeaseParent;
pub(crate) use pinned::{Held, Pinned};
pub(crate) use reading::ReadingDek;
pub(crate) use source::{
    BegunStream, BranchTerms, DekOf, DekRequest, DekSource, OwnedSource, PERIOD, ReadingRequest,
    SourceBuilder, WritingRequest, cached_as,
};
pub use statistics::{BranchKeyAges, KekStatistics, Statistics, StoreStatistics, TargetStatistics};
pub(crate) use stream::{StreamDek, StreamUse};
pub(crate) use writing::{BLOCK, Block, Many, Reservation, SHORT_BLOCK, WritingDek};
