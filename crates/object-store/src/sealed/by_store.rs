//! Rewraps of objects whose chunks the store copies by itself.
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

/// What became of it.
pub(super) enum ByStore {
    Done,
    /// It is another object by now.
    Overwritten,
    /// The object has to go through the process.
    Not,
}

impl<S: ObjectStore> Inner<S> {
    /// Returns the chunks that go through this process where the store can copy the others. `None`
    /// where all have to.
    pub(super) fn chunks_of_start(&self, known: &Known) -> Option<Range<u64>> {
        let by = self.starts.as_ref().filter(|_| known.strong_tag().is_some())?;
        self.layout.chunks_within(by.start_len(known.meta.size)?, known.meta.size)
    }

    /// Gives an object another head, with the chunks that [go](Self::chunks_of_start) with it in
    /// `start`.
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
        let error = match replaced {
            Ok(()) => return Ok(ByStore::Done),
            Err(Error::NotSupported { .. } | Error::NotImplemented { .. }) => {
                return Ok(ByStore::Not);
            }
            Err(error) => error,
        };
        let now = match self.latest_head(path).await {
            // Only the answer was lost: a repetition meets what the first request did.
            Ok(now) if now.head.as_bytes() == head.as_bytes() => return Ok(ByStore::Done),
            now => now,
        };
        match (error, now) {
            (Error::Precondition { .. }, _) => Ok(ByStore::Overwritten),
            // Deleted, and written again.
            (Error::NotFound { .. }, Ok(now)) if !now.is_of(&known.meta) => {
                Ok(ByStore::Overwritten)
            }
            // An object that is there is not gone: it was looked for elsewhere.
            (Error::NotFound { source, .. }, Ok(_)) => {
                let detail = "the object is there, but what was to replace its beginning did not \
                              find it, as in another bucket or below another prefix";
                Err(generic(path, &format!("{detail}: {source}")))
            }
            (Error::NotFound { .. }, Err(error)) => Err(error),
            (error, _) => Err(error),
        }
    }
}
