//! Where a DEK comes from, and how long it is at hand: made or unwrapped by the source, kept by the cache, wiped on time.
//!
//! A `WritingDek` was made by this process and seals; a `ReadingDek` opens. There is no way from the second to the first.
#![forbid(unsafe_code)]

mod budget;
mod cache;
mod flight;
mod lease;
mod limits;
mod pinned;
mod reading;
mod registry;
mod revocations;
mod source;
mod statistics;
mod wiper;
mod writing;

pub use limits::Limits;
pub(crate) use limits::LimitsInForce;
pub(crate) use reading::ReadingDek;
pub(crate) use source::{DekSource, OwnedSource, ReadingRequest, SourceOptions, WritingRequest};
pub use statistics::{KekStatistics, Statistics, TargetStatistics};
pub(crate) use writing::{Reservation, WritingDek};
