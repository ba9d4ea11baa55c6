//! The tests of main.rs with object_store 0.13, but for those on S3, whose client of that version
//! would bring a second TLS provider into this workspace: they are in ../../datafusion.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

// In all modules here, `object_store` is this one.
extern crate object_store_0_13 as object_store;

use object_store_0_13::{GetResult, GetResultPayload, PutResult};
use waxseal_object_store::v0_13 as version;

mod binding;
mod callers;
mod domains;
mod ground;
mod integration;
mod lies;
mod parquet;
mod ranges;
mod requests;
mod rewrap;
mod scripted;
mod starts;
mod suite;
mod uploads;

/// Results of this version have no place for an id.
fn told_by_put(_: &PutResult) -> Option<version::ContentId> {
    None
}

fn told_by_get(_: &GetResult) -> Option<version::ContentId> {
    None
}

/// The same answer with another body.
fn with_payload(of: &GetResult, payload: GetResultPayload) -> GetResult {
    GetResult {
        payload,
        meta: of.meta.clone(),
        range: of.range.clone(),
        attributes: of.attributes.clone(),
    }
}
