//! Rewraps of objects whose chunks the store copies.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::api::path::Path;
use super::api::{Attributes, Error, ObjectStore, Result};
use bytes::Bytes;
use futures_util::FutureExt;
use waxseal::StreamHead;

use super::errors::generic;
use super::heads::Known;
use super::starts::StartChange;
use super::store::Inner;

const ELSEWHERE: &str = "the object is there as it was, but what was to replace its beginning did \
                         not find it, or changed another: is it for another bucket or prefix?";

/// The outcome.
pub(super) enum ByStore {
    Done,
    /// Somebody has overwritten it.
    Overwritten,
    /// The object has to pass through this process.
    Not,
}

impl<S: ObjectStore> Inner<S> {
    /// Returns the chunks that pass through this process if the store can copy the others. `None`
    /// if all have to.
    pub(super) fn chunks_of_start(&self, known: &Known) -> Option<Range<u64>> {
        let by = self.starts.as_ref().filter(|_| known.strong_tag().is_some())?;
        self.layout.chunks_within(by.start_len(known.meta.size)?, known.meta.size)
    }

    /// Gives an object another head. `start` holds the chunks that [go with
    /// it](Self::chunks_of_start).
    pub(super) async fn replace_by_store(
        self: &Arc<Self>,
        path: &Path,
        known: &Arc<Known>,
        head: &StreamHead,
        (start, attributes): (Bytes, Attributes),
    ) -> Result<ByStore> {
        let (Some(by), Some(e_tag)) = (&self.starts, known.strong_tag()) else {
            return Ok(ByStore::Not);
        };
        let (store, at, of) = (self.clone(), path.clone(), known.clone());
        let look = move || {
            let (store, at, of) = (store.clone(), at.clone(), of.clone());
            async move { Ok(store.latest_head(&at).await?.is_of(&of.meta)) }.boxed()
        };
        let change = StartChange {
            path: path.clone(),
            start,
            object_len: known.meta.size,
            e_tag: e_tag.to_owned(),
            attributes,
            look: Arc::new(look),
        };
        let replaced = by.replace_start(change).await;
        self.heads.forget(path);
        if let Err(Error::NotSupported { .. } | Error::NotImplemented { .. }) = replaced {
            return Ok(ByStore::Not);
        }
        // The object itself shows what was done. A success is not trusted, since a caller that
        // trusts it might remove the old KEK. Nor is a failure, since its answer may have been
        // lost.
        let now = match self.latest_head(path).await {
            Ok(now) if now.head.as_bytes() == head.as_bytes() => return Ok(ByStore::Done),
            now => now,
        };
        let is_another = now.as_ref().is_ok_and(|now| !now.is_of(&known.meta));
        match (replaced, now) {
            (Err(Error::Precondition { .. }), _) => Ok(ByStore::Overwritten),
            (Ok(()) | Err(Error::NotFound { .. }), Ok(_)) if is_another => Ok(ByStore::Overwritten),
            (Ok(()), Ok(_)) => Err(generic(path, ELSEWHERE)),
            // An object that is there is not gone.
            (Err(Error::NotFound { source, .. }), Ok(_)) => {
                Err(generic(path, &format!("{ELSEWHERE}: {source}")))
            }
            (Ok(()) | Err(Error::NotFound { .. }), Err(error)) => Err(error),
            (Err(error), _) => Err(error),
        }
    }
}
