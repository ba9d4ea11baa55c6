//! What a policy decides and when: which operations ask, what is cached and for how long, what
//! failures mean, handles, and what observers get.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod asked;
mod bounds;
mod cached;
mod failing;
mod ground;
mod handles;
mod no_leak;
mod outages;
mod panics;
mod races;
mod shared;
mod told;
mod waiting;
