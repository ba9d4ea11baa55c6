//! Data domains: that nothing crosses from one to another, which contexts they have, what a file
//! says and how it is wrong.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[cfg(all(feature = "audit", feature = "domains"))]
mod audited;
mod branches;
mod contexts;
mod crossing;
mod deciding;
mod duties;
#[cfg(feature = "domains")]
mod ending;
#[cfg(feature = "domains")]
mod file;
mod ground;
mod opening;
#[cfg(feature = "domains")]
mod reload;
#[cfg(feature = "domains")]
mod resolver;
#[cfg(feature = "domains")]
mod routing;
#[cfg(all(feature = "domains", feature = "tokio"))]
mod runtimes;
mod vectors;
mod ways_in;
