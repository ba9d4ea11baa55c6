//! `v0_13::SealedStore` on servers that speak S3, with the client of object_store 0.13: the suite
//! of that version.
#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "the ground of all tests, of which some are here")]

use object_store::PutResult;
use waxseal_object_store::v0_13 as version;

#[path = "../../tests/sealed/ground.rs"]
mod ground;
#[path = "../../tests/sealed/s3.rs"]
mod s3;
#[path = "../../tests/sealed/suite.rs"]
mod suite;

fn told_by_put(_: &PutResult) -> Option<version::ContentId> {
    None
}
