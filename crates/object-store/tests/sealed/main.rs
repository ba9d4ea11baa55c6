//! Encrypted objects: in memory, in local files, on S3 as SeaweedFS and moto serve it, and on
//! stores that fail and lie. Here with object_store 0.14, and in for_0_13.rs with 0.13.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use object_store::{GetResult, GetResultPayload, PutResult};
use waxseal_object_store::v0_14 as version;

mod binding;
mod callers;
mod domains;
mod ground;
mod integration;
mod lies;
mod model;
mod parquet;
mod ranges;
mod requests;
mod rewrap;
mod s3;
mod scripted;
mod start_on_s3;
mod starts;
mod suite;
mod uploads;
mod wire;

/// The ids in results.
fn told_by_put(put: &PutResult) -> Option<version::ContentId> {
    Some(*put.extensions.get().unwrap())
}

fn told_by_get(got: &GetResult) -> Option<version::ContentId> {
    Some(*got.extensions.get().unwrap())
}

/// The same answer with another body.
fn with_payload(of: &GetResult, payload: GetResultPayload) -> GetResult {
    GetResult {
        payload,
        meta: of.meta.clone(),
        range: of.range.clone(),
        attributes: of.attributes.clone(),
        extensions: of.extensions.clone(),
    }
}
