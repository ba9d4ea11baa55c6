//! [`v0_14`](crate::v0_14) for version 0.13 of `object_store`: the same code and the same objects.
//! It is for dependencies that still use that version, such as DataFusion 55.
//!
//! One thing differs: results of 0.13 have no extensions, so [`SealedStore::content_id`] returns
//! the [`ContentId`] of an object, by a request. The examples of this module use the other version.
#![forbid(unsafe_code)]

use object_store_0_13 as api;

#[cfg_attr(feature = "object_store_0_14", allow(clippy::duplicate_mod, reason = "once a version"))]
#[path = "sealed/mod.rs"]
mod sealed;

pub use sealed::*;

/// The extras of a result: none in this version.
mod extras {
    use std::ops::Range;

    use super::ContentId;
    use super::api::{Attributes, GetResult, GetResultPayload, ObjectMeta, PutResult};

    #[derive(Default)]
    pub(in crate::v0_13) struct Extras;

    impl Extras {
        pub(in crate::v0_13) fn take(_: &mut GetResult) -> Self {
            Self
        }

        pub(in crate::v0_13) fn result(
            self,
            _: ContentId,
            meta: ObjectMeta,
            range: Range<u64>,
            attributes: Attributes,
            payload: GetResultPayload,
        ) -> GetResult {
            GetResult { payload, meta, range, attributes }
        }
    }

    pub(in crate::v0_13) fn tell(_: &mut PutResult, _: ContentId) {}
}
