//! How key services are called: timeouts, retries, budget, queue, breakers, several KEKs.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod calls;
mod faults;
mod overload;
mod panics;
mod queue_wakers;
mod targets;
