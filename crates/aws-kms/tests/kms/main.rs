//! Keys in AWS KMS, on the stand-ins.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod audit;
mod connections;
mod credentials;
mod domains;
mod duties;
mod faults;
mod keys;
mod policies;
mod real;
mod stand_ins;
