//! Multipart uploads.
//!
//! Parts are encrypted in the order of the calls of `put_part`, whatever the order in which their
//! futures are polled. The encrypted bytes are split again, into parts of at least 5 MiB, as S3
//! requires, and of one length, as other services require, unless the given parts grow.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::api::path::Path;
use super::api::{
    Error, MultipartUpload, ObjectStore, PutMultipartOptions, PutPayload, PutResult, Result,
    UploadPart,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{ready, try_join_all};
use waxseal::{StreamHead, StreamWriter};

use super::errors::{generic, sealing, writing};
use super::extras::tell;
use super::heads::Heads;
use super::layout::Layout;
use super::store::{ContentId, Inner};

/// S3's minimum for every part except the last, and its maximum.
const LEAST_PART: u64 = 5 << 20;
const LARGEST_PART: u64 = 5 << 30;

impl<S: ObjectStore> Inner<S> {
    pub(super) async fn upload(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<SealedUpload> {
        let encryptor = self.encryptor(path, &options.extensions).await?;
        let inner = self.store.put_multipart_opts(path, options).await?;
        let out = Out::default();
        Ok(SealedUpload {
            path: path.clone(),
            inner,
            writer: Some(encryptor.writer(out.clone())),
            out,
            layout: self.layout,
            part_len: None,
            begun: 0,
            uploaded: Arc::default(),
            id: None,
            heads: self.heads.clone(),
        })
    }
}

/// The buffer of the encrypted bytes.
#[derive(Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl Out {
    fn with<T>(&self, with: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|out| out.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) struct SealedUpload {
    path: Path,
    inner: Box<dyn MultipartUpload>,
    /// `None` after `complete`, `abort`, or a failure.
    writer: Option<StreamWriter<Out>>,
    out: Out,
    layout: Layout,
    /// The length of every part except the last, from the longest part given so far. So there are
    /// no more of them than were given, of which a store accepts 10,000.
    part_len: Option<usize>,
    /// The parts sent to the store, and those that it has.
    begun: usize,
    uploaded: Arc<AtomicUsize>,
    id: Option<ContentId>,
    heads: Heads,
}

impl SealedUpload {
    fn encrypt(&mut self, data: &PutPayload) -> Result<()> {
        // Removed if this fails: then nothing can complete the upload.
        let mut writer = self.writer.take().ok_or_else(|| self.over())?;
        for bytes in data {
            writer.write_all(bytes).map_err(|error| writing(&self.path, &error))?;
        }
        self.writer = Some(writer);
        Ok(())
    }

    /// Takes the next part from the encrypted bytes, if it is complete.
    fn next_part(&mut self) -> Result<Option<Bytes>> {
        let Some(len) = self.part_len else { return Ok(None) };
        self.read_id()?;
        Ok(self.out.with(|out| {
            let rest = (out.len() >= len).then(|| out.split_off(len))?;
            Some(std::mem::replace(out, rest).into())
        }))
    }

    /// Reads the id from the first bytes.
    fn read_id(&mut self) -> Result<()> {
        if self.id.is_none() {
            let head = self.out.with(|out| {
                Some(StreamHead::from_prefix(out)).filter(|_| !out.is_empty()).transpose()
            });
            let head = head.map_err(|error| sealing(&self.path, error))?;
            self.id = head.as_ref().map(ContentId::of);
        }
        Ok(())
    }

    fn put(&mut self, part: Bytes) -> UploadPart {
        let (uploaded, part) = (self.uploaded.clone(), self.inner.put_part(part.into()));
        self.begun += 1;
        let counted = async move {
            part.await?;
            uploaded.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        counted.boxed()
    }

    /// The parts that can be uploaded now.
    fn parts(&mut self) -> Result<Vec<UploadPart>> {
        let mut parts = Vec::new();
        while let Some(part) = self.next_part()? {
            parts.push(self.put(part));
        }
        Ok(parts)
    }

    fn over(&self) -> Error {
        generic(&self.path, "the upload was completed, aborted, or has failed: begin it again")
    }
}

#[async_trait]
impl MultipartUpload for SealedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let len = self.layout.object_len(data.content_length() as u64);
        let len = usize::try_from(len.clamp(LEAST_PART, LARGEST_PART)).unwrap_or(usize::MAX);
        self.part_len = self.part_len.max(Some(len));
        match self.encrypt(&data).and_then(|()| self.parts()) {
            Ok(parts) if parts.is_empty() => ready(Ok(())).boxed(),
            Ok(parts) => try_join_all(parts).map(|done| done.map(drop)).boxed(),
            Err(error) => {
                self.writer = None;
                ready(Err(error)).boxed()
            }
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        // Removed at once: a second call must not complete an upload that was abandoned half-way.
        let writer = self.writer.take().ok_or_else(|| self.over())?;
        if self.uploaded.load(Ordering::SeqCst) != self.begun {
            let detail =
                "a part failed or was given up, so the upload cannot be completed: abort it";
            return Err(generic(&self.path, detail));
        }
        writer.finish().map_err(|error| writing(&self.path, &error))?;
        self.read_id()?;
        let mut parts = self.parts()?;
        let last = self.out.with(std::mem::take);
        if !last.is_empty() {
            parts.push(self.put(last.into()));
        }
        try_join_all(parts).await?;
        let completed = self.inner.complete().await;
        self.heads.forget(&self.path);
        let mut completed = completed?;
        if let Some(id) = self.id {
            tell(&mut completed, id);
        }
        Ok(completed)
    }

    async fn abort(&mut self) -> Result<()> {
        self.writer = None;
        self.inner.abort().await
    }
}

impl fmt::Debug for SealedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedUpload")
            .field("path", &self.path)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
