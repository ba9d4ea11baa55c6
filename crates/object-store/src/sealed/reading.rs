//! Reads: the whole object in one request, a part of it in one or two.
//!
//! ```text
//!   whole:  GET ──► head ──► key (await) ──► chunks, as they come
//!   part:   the head that is kept, or GET of the head ──► key ──► GET of the chunks, if unchanged
//! ```
//!
//! All requests of one read require the version of the first, and their answers are compared.
//! Whatever a store answers, two versions are never mixed, because each object has its own key.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::api::path::Path;
use super::api::{
    Attributes, Error, Extensions, GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta,
    ObjectStore, Result,
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use waxseal::{Caller, ErrorKind, StreamDecryptor, StreamHead};

use super::body::{Body, Source, cut};
use super::errors::{generic, malformed, other_answer, sealing, sealing_error};
use super::extras::Extras;
use super::heads::Known;
use super::store::{ContentId, Inner, no_object};

/// How often a read is repeated because others overwrite the object meanwhile.
const TRIES: usize = 5;
/// The number of parts of one object that are fetched at the same time.
const AT_ONCE: usize = 10;

/// The answer to a request for a head, without its bytes.
pub(super) struct HeadAnswer {
    pub(super) known: Arc<Known>,
    attributes: Attributes,
    extras: Extras,
}

impl<S: ObjectStore> Inner<S> {
    pub(super) async fn get(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            return self.head(path, options).await;
        }
        match options.range.clone() {
            None => self.whole(path, options).await,
            Some(range) => self.part(path, &range, options).await,
        }
    }

    async fn head(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let (demanded, range) = (options.extensions.get().copied(), options.range.clone());
        let HeadAnswer { known, attributes, extras } = self.fetch_head(path, options).await?;
        check_id(path, &known.head, demanded)?;
        // The error that a read would return, as with the stores of `object_store`.
        let range = match range.map(|range| range.as_range(known.plaintext_len)).transpose() {
            Ok(range) => range.unwrap_or(0..known.plaintext_len),
            Err(error) => return Err(generic(path, &error.to_string())),
        };
        let payload = GetResultPayload::Stream(stream::empty().boxed());
        Ok(result(&known, payload, range, attributes, extras))
    }

    async fn whole(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let (caller, demanded) = wishes(&options.extensions);
        let mut answer = self.store.get_opts(path, options).await?;
        if answer.range != (0..answer.meta.size) {
            return other_answer(path);
        }
        let (meta, attributes) = (answer.meta.clone(), std::mem::take(&mut answer.attributes));
        let extras = Extras::take(&mut answer);
        let mut source = Source::new(path, answer);
        let known = self.read_head(path, &mut source, meta).await?;
        check_id(path, &known.head, demanded)?;
        let decryptor = self.decryptor(path, &known.head, caller.as_ref()).await?;
        let all = 0..known.plaintext_len;
        let chunks = self.layout.chunks_of(&all, known.plaintext_len);
        let body = self.body(source, decryptor, &known, chunks);
        let payload = GetResultPayload::Stream(body.part(all.clone()));
        Ok(result(&known, payload, all, attributes, extras))
    }

    async fn part(&self, path: &Path, range: &GetRange, options: GetOptions) -> Result<GetResult> {
        let (caller, demanded) = wishes(&options.extensions);
        for attempt in 0..TRIES {
            let (known, is_kept) = self.known(path, &options, attempt).await?;
            let part = match range.as_range(known.plaintext_len) {
                Ok(part) => part,
                // Somebody may have overwritten the object.
                Err(_) if is_kept => {
                    self.heads.forget(path);
                    continue;
                }
                Err(error) => return Err(generic(path, &error.to_string())),
            };
            match check_id(path, &known.head, demanded) {
                // The required version may have been written since.
                Err(_) if is_kept => {
                    self.heads.forget(path);
                    continue;
                }
                checked => checked?,
            }
            let decryptor = match self.decryptor(path, &known.head, caller.as_ref()).await {
                Err(error) if is_kept && may_be_outdated(&error) => continue,
                decryptor => decryptor?,
            };
            let chunks = self.layout.chunks_of(&part, known.plaintext_len);
            let Some(mut answer) = self.fetch(path, &known, &chunks, &options).await? else {
                continue;
            };
            let attributes = std::mem::take(&mut answer.attributes);
            let extras = Extras::take(&mut answer);
            let body = self.body(Source::new(path, answer), decryptor, &known, chunks);
            let payload = GetResultPayload::Stream(body.part(part.clone()));
            return Ok(result(&known, payload, part, attributes, extras));
        }
        Err(changing(path))
    }

    pub(super) async fn get_ranges(
        &self,
        path: &Path,
        ranges: &[Range<u64>],
        caller: Option<&Caller>,
    ) -> Result<Vec<Bytes>> {
        if ranges.is_empty() {
            return Ok(Vec::new());
        }
        let options = GetOptions::new();
        for attempt in 0..TRIES {
            let (known, is_kept) = self.known(path, &options, attempt).await?;
            let within =
                |range: &Range<u64>| GetRange::Bounded(range.clone()).as_range(known.plaintext_len);
            let parts = match ranges.iter().map(within).collect::<Result<Vec<_>, _>>() {
                Ok(parts) => parts,
                Err(_) if is_kept => {
                    self.heads.forget(path);
                    continue;
                }
                Err(error) => return Err(generic(path, &error.to_string())),
            };
            let decryptor = match self.decryptor(path, &known.head, caller).await {
                Err(error) if is_kept && may_be_outdated(&error) => continue,
                decryptor => decryptor?,
            };
            let touched: Vec<_> =
                parts.iter().map(|part| self.layout.chunks_of(part, known.plaintext_len)).collect();
            let gap = self.coalesce / (self.layout.chunk + 16);
            let wanted = merged(&touched, 0);
            let fetched: Vec<_> = stream::iter(merged(&touched, gap))
                .map(|chunks| self.chunks(path, &known, &decryptor, chunks, &wanted))
                .buffered(AT_ONCE)
                .try_collect()
                .await?;
            let Some(fetched) = fetched.into_iter().collect::<Option<Vec<_>>>() else { continue };
            let chunks: BTreeMap<_, _> = fetched.into_iter().flatten().collect();
            let part = |(part, touched): (&Range<u64>, &Range<u64>)| {
                let pieces = chunks.range(touched.clone());
                joined(pieces.map(|(index, chunk)| cut(chunk, index * self.layout.chunk, part)))
            };
            return Ok(parts.iter().zip(&touched).map(part).collect());
        }
        Err(changing(path))
    }

    /// Fetches chunks, and decrypts those that are [wanted](is_within). `None` if the object was
    /// overwritten.
    async fn chunks(
        &self,
        path: &Path,
        known: &Known,
        decryptor: &StreamDecryptor,
        chunks: Range<u64>,
        wanted: &[Range<u64>],
    ) -> Result<Option<Vec<(u64, Bytes)>>> {
        let Some(answer) = self.fetch(path, known, &chunks, &GetOptions::new()).await? else {
            return Ok(None);
        };
        let source = Source::new(path, answer);
        let mut body = self.body(source, decryptor.clone(), known, chunks);
        let mut opened = Vec::new();
        loop {
            if !body.chunks.is_empty() && !is_within(wanted, body.chunks.start) {
                body.skip().await?;
            } else {
                match body.next().await? {
                    Some(chunk) => opened.push(chunk),
                    None => return Ok(Some(opened)),
                }
            }
        }
    }

    /// Returns the head of the wanted version, and whether it was cached. Only the first attempt
    /// relies on a cached head. After a failure, another reader that is about to fail may have
    /// cached it again, and the failure itself has to surface.
    async fn known(
        &self,
        path: &Path,
        options: &GetOptions,
        attempt: usize,
    ) -> Result<(Arc<Known>, bool)> {
        if attempt == 0
            && let Some(known) = self.heads.get(path)
            && is_answered_by(options, &known)
        {
            return Ok((known, true));
        }
        Ok((self.fetch_head(path, options.clone()).await?.known, false))
    }

    /// Requests the head of an object.
    pub(super) async fn fetch_head(
        &self,
        path: &Path,
        mut options: GetOptions,
    ) -> Result<HeadAnswer> {
        let is_latest = options.version.is_none();
        (options.head, options.range) = (false, Some(GetRange::Bounded(0..self.layout.head_len)));
        let mut answer = self.store.get_opts(path, options).await?;
        if answer.range != (0..self.layout.head_len.min(answer.meta.size)) {
            return other_answer(path);
        }
        let (meta, attributes) = (answer.meta.clone(), std::mem::take(&mut answer.attributes));
        let extras = Extras::take(&mut answer);
        let mut source = Source::new(path, answer);
        let known = self.read_head(path, &mut source, meta).await?;
        source.end().await?;
        if is_latest {
            self.heads.keep(path, &known);
        }
        Ok(HeadAnswer { known, attributes, extras })
    }

    pub(super) async fn read_head(
        &self,
        path: &Path,
        source: &mut Source,
        meta: ObjectMeta,
    ) -> Result<Arc<Known>> {
        let len = self.layout.head_len;
        let bytes = source.take_up_to(usize::try_from(len).unwrap_or(usize::MAX)).await?;
        let head = StreamHead::from_prefix(&bytes);
        let (head_len, chunk_size) = match &head {
            Ok(head) => (head.len() as u64, head.chunk_size() as u64),
            // It may be longer than the heads of this store, or not in this format.
            Err(error) => return Err(sealing(path, error.clone())),
        };
        if (head_len, chunk_size) != (len, self.layout.chunk) {
            let detail = format!(
                "a head of {head_len} bytes and chunks of {chunk_size}, where this store has {len} \
                 and {}",
                self.layout.chunk
            );
            return Err(malformed(path, detail));
        }
        let plaintext_len = self.layout.plaintext_len(meta.size).ok_or_else(|| no_object(&meta))?;
        let head = head.map_err(|error| sealing(path, error))?;
        Ok(Arc::new(Known { head, meta, plaintext_len }))
    }

    /// Requests chunks of this version. `None` if the object was overwritten.
    pub(super) async fn fetch(
        &self,
        path: &Path,
        known: &Known,
        chunks: &Range<u64>,
        options: &GetOptions,
    ) -> Result<Option<GetResult>> {
        let place = self.layout.place_of(chunks, known.meta.size);
        let options = GetOptions {
            range: Some(GetRange::Bounded(place.clone())),
            if_match: known.strong_tag().map(str::to_owned),
            version: options.version.clone(),
            extensions: options.extensions.clone(),
            ..GetOptions::new()
        };
        match self.store.get_opts(path, options).await {
            Ok(answer) if !known.is_of(&answer.meta) => {}
            Ok(answer) if answer.range != place => return other_answer(path),
            Ok(answer) => return Ok(Some(answer)),
            Err(Error::Precondition { .. }) => {}
            Err(error) => {
                self.heads.forget(path);
                return Err(error);
            }
        }
        self.heads.forget(path);
        Ok(None)
    }

    pub(super) fn body(
        &self,
        source: Source,
        decryptor: StreamDecryptor,
        known: &Known,
        chunks: Range<u64>,
    ) -> Body {
        let (heads, layout, object_len) = (self.heads.clone(), self.layout, known.meta.size);
        Body { source, decryptor, heads, layout, object_len, chunks }
    }

    /// Has the envelope look up the key in every read, since it decides who may read, and for how
    /// long.
    pub(super) async fn decryptor(
        &self,
        path: &Path,
        head: &StreamHead,
        caller: Option<&Caller>,
    ) -> Result<StreamDecryptor> {
        let (keys, aad) = (self.keys_of(path)?, self.binding.aad(path));
        keys.decryptor(caller, aad, head).await.map_err(|error| {
            self.heads.forget(path);
            sealing(path, error)
        })
    }
}

/// Returns the caller and the content id that the extensions require.
fn wishes(extensions: &Extensions) -> (Option<Caller>, Option<ContentId>) {
    (extensions.get().cloned(), extensions.get().copied())
}

fn check_id(path: &Path, head: &StreamHead, demanded: Option<ContentId>) -> Result<()> {
    match demanded.is_none_or(|id| id == ContentId::of(head)) {
        true => Ok(()),
        false => Err(Error::Precondition {
            path: path.to_string(),
            source: "the object has another content id".into(),
        }),
    }
}

/// Returns whether a request with these conditions may rely on a cached head: the request for the
/// chunks then has that version's tag as its only condition.
fn is_answered_by(options: &GetOptions, known: &Known) -> bool {
    let GetOptions { if_match, if_none_match, if_modified_since, if_unmodified_since, .. } =
        options;
    let others = if_none_match.is_some()
        || if_modified_since.is_some()
        || if_unmodified_since.is_some()
        || options.version.is_some();
    !others && if_match.as_deref().is_none_or(|tag| known.strong_tag() == Some(tag))
}

/// Returns whether another head of the object might open if a cached one did not: its wrapped keys
/// may have been rewrapped and their KEK disabled since, or they were damaged in transit.
fn may_be_outdated(error: &Error) -> bool {
    let kind = sealing_error(error).map(waxseal::Error::kind);
    matches!(
        kind,
        Some(
            ErrorKind::Invalid
                | ErrorKind::Malformed
                | ErrorKind::UnknownKek
                | ErrorKind::MissingWrappedKeys
                | ErrorKind::Denied
                | ErrorKind::Provider
        )
    )
}

pub(super) fn changing(path: &Path) -> Error {
    generic(path, "the object was overwritten while it was read, again and again")
}

fn result(
    known: &Known,
    payload: GetResultPayload,
    range: Range<u64>,
    attributes: Attributes,
    extras: Extras,
) -> GetResult {
    let meta = ObjectMeta { size: known.plaintext_len, ..known.meta.clone() };
    extras.result(ContentId::of(&known.head), meta, range, attributes, payload)
}

/// Joins ranges of chunks that overlap, or are no more than `gap` apart.
fn merged(ranges: &[Range<u64>], gap: u64) -> Vec<Range<u64>> {
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => {
                last.end = last.end.max(range.end);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Returns whether a chunk is in one of these ranges, which are in order and do not overlap. There
/// may be as many ranges as chunks, so they are not searched one by one.
fn is_within(ranges: &[Range<u64>], chunk: u64) -> bool {
    let at = ranges.partition_point(|range| range.end <= chunk);
    ranges.get(at).is_some_and(|range| range.contains(&chunk))
}

fn joined(pieces: impl Iterator<Item = Bytes>) -> Bytes {
    let pieces: Vec<_> = pieces.filter(|piece| !piece.is_empty()).collect();
    match &pieces[..] {
        [one] => one.clone(),
        several => several.concat().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_fetched_together_up_to_a_gap() {
        let ranges = [4..5, 0..1, 1..2, 9..12, 10..11];
        assert_eq!(merged(&ranges, 0), [0..2, 4..5, 9..12]);
        assert_eq!(merged(&ranges, 1), [0..2, 4..5, 9..12]);
        assert_eq!(merged(&ranges, 2), [0..5, 9..12]);
        assert_eq!(merged(&ranges, u64::MAX), vec![Range { start: 0, end: 12 }]);
        assert!(merged(&[], 1).is_empty());
    }

    #[test]
    fn a_chunk_is_within_ranges_as_each_of_them_says() {
        for ranges in [&[][..], &[0..1, 2..4], &[0..2, 4..5, 9..12]] {
            for chunk in 0..15 {
                let expected = ranges.iter().any(|range| range.contains(&chunk));
                assert_eq!(is_within(ranges, chunk), expected, "{chunk} in {ranges:?}");
            }
        }
    }
}
