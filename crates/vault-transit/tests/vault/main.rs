//! Keys in the Transit engine of a real OpenBao server, and what stands between.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod audit;
mod auth;
mod batches;
mod between;
mod conformance;
mod connections;
mod duties;
mod errors;
mod faults;
mod layers;
mod logins;
mod outages;
mod tokens;
mod transit;
