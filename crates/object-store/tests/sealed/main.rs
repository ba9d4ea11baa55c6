//! Encrypted objects: in memory, in local files, on S3 as SeaweedFS and moto serve it, and on stores that fail and lie.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod binding;
mod callers;
mod ground;
mod integration;
mod lies;
mod parquet;
mod ranges;
mod requests;
mod rewrap;
mod scripted;
mod uploads;
