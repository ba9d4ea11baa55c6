//! Where a DEK comes from, and how long it is at hand: made or unwrapped by the source, kept by the cache, wiped on time.
//!
//! A `WritingDek` was made by this process and seals; a `ReadingDek` opens. There is no way from the second to the first.
#![forbid(unsafe_code)]

mod budget;
mod cache;
mod flight;
mod lease;
mod limits;
mod reading;
mod source;
mod wiper;
mod writing;

pub use limits::Limits;
pub(crate) use limits::LimitsInForce;
pub(crate) use reading::ReadingDek;
pub use source::DekOrigin;
pub(crate) use source::{DekSource, Providers, SourceOptions, own_entry};
pub(crate) use writing::{Reservation, WritingDek};
