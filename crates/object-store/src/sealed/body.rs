//! The bytes of an encrypted object as they arrive, and its plaintext, chunk by chunk.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::api::path::Path;
use super::api::{GetResult, Result};
use bytes::{Buf, Bytes};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use waxseal::StreamDecryptor;

use super::errors::{malformed, sealing};
use super::heads::Heads;
use super::layout::Layout;

/// The bytes of an answer, taken in portions.
pub(super) struct Source {
    path: Path,
    stream: BoxStream<'static, Result<Bytes>>,
    /// Bytes that arrived and were not taken.
    rest: Bytes,
}

impl Source {
    pub(super) fn new(path: &Path, result: GetResult) -> Self {
        Self { path: path.clone(), stream: result.into_stream(), rest: Bytes::new() }
    }

    /// Returns the next bytes, as many as are available, but at most `len`.
    pub(super) async fn take_up_to(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut taken = Vec::with_capacity(len);
        while taken.len() < len {
            if !self.rest.has_remaining() {
                match self.stream.try_next().await? {
                    Some(bytes) => self.rest = bytes,
                    None => break,
                }
                continue;
            }
            let n = self.rest.len().min(len - taken.len());
            taken.extend_from_slice(&self.rest.split_to(n));
        }
        Ok(taken)
    }

    /// Returns exactly the next `len` bytes.
    pub(super) async fn take(&mut self, len: usize) -> Result<Vec<u8>> {
        let taken = self.take_up_to(len).await?;
        match taken.len() == len {
            true => Ok(taken),
            false => Err(malformed(&self.path, "the answer is shorter than it says")),
        }
    }

    /// Checks that nothing is left.
    pub(super) async fn end(&mut self) -> Result<()> {
        match self.take_up_to(1).await?.is_empty() {
            true => Ok(()),
            false => Err(malformed(&self.path, "the answer is longer than it says")),
        }
    }
}

/// The chunks of an object in an answer.
pub(super) struct Body {
    pub(super) source: Source,
    pub(super) decryptor: StreamDecryptor,
    pub(super) heads: Heads,
    pub(super) layout: Layout,
    /// The length of the encrypted object.
    pub(super) object_len: u64,
    /// The remaining chunks.
    pub(super) chunks: Range<u64>,
}

impl Body {
    /// Decrypts the next chunk. `None` after the last one, when the answer has ended too.
    pub(super) async fn next(&mut self) -> Result<Option<(u64, Bytes)>> {
        let Some(index) = self.chunks.next() else {
            return self.source.end().await.map(|()| None);
        };
        let sealed = self.source.take(self.len_of(index)).await?;
        let plaintext = self.decryptor.decrypt_chunk(index, sealed).map_err(|error| {
            // The head may belong to another version, whatever the store says.
            self.heads.forget(&self.source.path);
            sealing(&self.source.path, error)
        })?;
        // Wiped when the last part of it is dropped.
        Ok(Some((index, Bytes::from_owner(plaintext))))
    }

    /// Leaves out a chunk.
    pub(super) async fn skip(&mut self) -> Result<()> {
        if let Some(index) = self.chunks.next() {
            self.source.take(self.len_of(index)).await?;
        }
        Ok(())
    }

    fn len_of(&self, index: u64) -> usize {
        let Range { start, end } = self.layout.place_of(&(index..index + 1), self.object_len);
        // At most 16 MiB and a tag.
        usize::try_from(end - start).unwrap_or(usize::MAX)
    }

    /// Returns a part of the plaintext, which is in these chunks.
    pub(super) fn part(self, part: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
        stream::try_unfold((self, part), |(mut body, part)| async move {
            while let Some((index, chunk)) = body.next().await? {
                let chunk = cut(&chunk, index * body.layout.chunk, &part);
                if !chunk.is_empty() {
                    return Ok(Some((chunk, (body, part))));
                }
            }
            Ok(None)
        })
        .boxed()
    }
}

/// Returns the part of a chunk at this position that belongs to a range.
pub(super) fn cut(chunk: &Bytes, at: u64, part: &Range<u64>) -> Bytes {
    let within = |position: u64| {
        let position = position.saturating_sub(at).min(chunk.len() as u64);
        usize::try_from(position).unwrap_or(chunk.len())
    };
    let (start, end) = (within(part.start), within(part.end));
    chunk.slice(start..end.max(start))
}
