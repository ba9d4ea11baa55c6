//! How long a DEK is cached and what ends it: ages, outages, denials, revocation, eviction, and
//! what observers get.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod background;
mod lifetimes;
mod model;
mod model_others;
mod observers;
mod outages;
mod revocation;
mod rotation;
