#![doc = include_str!("../docs/objects.md")]
#![forbid(unsafe_code)]

use object_store as api;

#[cfg(feature = "aws")]
mod answers;
#[cfg(feature = "aws")]
mod s3;
#[cfg_attr(feature = "object_store_0_13", allow(clippy::duplicate_mod, reason = "once a version"))]
#[path = "sealed/mod.rs"]
mod sealed;

#[cfg(feature = "aws")]
pub use s3::{S3ReplaceStart, S3ReplaceStartBuilder};
pub use sealed::*;

/// The extras of a result: extensions in this version.
mod extras {
    use std::mem;
    use std::ops::Range;

    use super::ContentId;
    use super::api::{Attributes, Extensions, GetResult, GetResultPayload, ObjectMeta, PutResult};

    #[derive(Default)]
    pub(in crate::v0_14) struct Extras(Extensions);

    impl Extras {
        pub(in crate::v0_14) fn take(answer: &mut GetResult) -> Self {
            Self(mem::take(&mut answer.extensions))
        }

        /// Builds the result of a read, with the id of the object.
        pub(in crate::v0_14) fn result(
            self,
            id: ContentId,
            meta: ObjectMeta,
            range: Range<u64>,
            attributes: Attributes,
            payload: GetResultPayload,
        ) -> GetResult {
            let Self(mut extensions) = self;
            extensions.insert(id);
            GetResult { payload, meta, range, attributes, extensions }
        }
    }

    /// Adds the id of the written object.
    pub(in crate::v0_14) fn tell(put: &mut PutResult, id: ContentId) {
        put.extensions.insert(id);
    }
}
