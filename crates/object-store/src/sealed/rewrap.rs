//! Rewraps of objects: a new head, and unchanged chunks.
//!
//! The `object_store` trait cannot copy a part of an object (S3's `UploadPartCopy`). Unless
//! something was set that [can](super::ReplaceStart), the encrypted chunks pass through this
//! process. They are authenticated on the way, so that no object is replaced by a damaged one.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::api::path::Path;
use super::api::{
    Attributes, Error, GetOptions, MultipartUpload, ObjectStore, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, Result, UpdateVersion,
};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use waxseal::{Caller, EncryptionContext, ErrorKind, StreamHead};

use super::body::Source;
use super::by_store::ByStore;
use super::errors::{generic, sealing, sealing_error};
use super::heads::Known;
use super::keys::ObjectKeys;
use super::store::{ContentId, Inner, SealedStore};

/// How often a rewrap is repeated because others overwrite the object meanwhile.
const TRIES: usize = 5;
/// The maximum number of parts of an upload, with some to spare, and their minimum length.
const MOST_PARTS: u64 = 9_000;
const LEAST_PART: u64 = 8 << 20;
/// S3's limit.
const LARGEST_PART: u64 = 5 << 30;
/// How much of a large object one request asks for. Clients allow a request 30 seconds and some
/// retries, whatever its length, and this one waits for uploads.
const PORTION: u64 = 16 << 20;

/// The outcome for an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Rewrapped {
    /// It has a new head.
    Changed,
    /// Its wrapped keys are already current. Nothing was written.
    Unchanged,
}

/// How a prefix is rewrapped. Unset options have their defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RewrapOptions {
    after: Option<Path>,
    at_once: usize,
    page: usize,
    verify: bool,
    caller: Option<Caller>,
}

impl Default for RewrapOptions {
    fn default() -> Self {
        Self { after: None, at_once: 4, page: 100, verify: true, caller: None }
    }
}

impl RewrapOptions {
    /// Begins after this path, where an earlier run stopped: [`RewrapProgress::next`].
    #[must_use]
    pub fn after(mut self, path: Path) -> Self {
        self.after = Some(path);
        self
    }

    /// Sets how many objects are read and written at the same time, by default 4. Each takes up to
    /// [`single_put`](super::SealedStoreBuilder::single_put) bytes of memory.
    #[must_use]
    pub fn at_once(mut self, objects: usize) -> Self {
        self.at_once = objects.max(1);
        self
    }

    /// Sets how many objects are between two reports: 1 to 10,000, by default 100. Their heads are
    /// rewrapped together, so objects with one DEK and the same wrapped keys cost the calls of one.
    #[must_use]
    pub fn page(mut self, objects: usize) -> Self {
        self.page = objects.clamp(1, 10_000);
        self
    }

    /// Skips the authentication of chunks that pass through the process, for a process whose policy
    /// refuses `decrypt`. The store must then be trusted to serve what it holds, since a damaged
    /// answer is written back. **The key service must still allow this process to unwrap**: new
    /// wrapped keys are checked before the old ones are dropped.
    #[must_use]
    pub fn unverified(mut self) -> Self {
        self.verify = false;
        self
    }
}

/// The progress of a run.
#[derive(Default, Debug)]
#[non_exhaustive]
pub struct RewrapProgress {
    /// Objects with a new head.
    pub rewrapped: u64,
    /// Objects that did not need a new head.
    pub unchanged: u64,
    /// Objects that were left unchanged because of an error.
    pub failed: u64,
    /// Objects that were deleted after they were listed.
    pub gone: u64,
    /// Bytes of the encrypted objects with a new head.
    pub bytes: u64,
    /// Everything up to this path is done or has failed. `None` before the first page, and if the
    /// store lists in no order. In that case another run starts from the beginning, and finds
    /// finished objects unchanged.
    pub next: Option<Path>,
    /// The failures since the last report.
    pub failures: Vec<(Path, Error)>,
}

impl<S: ObjectStore> SealedStore<S> {
    /// Rewraps the wrapped keys of an object under the current writing KEKs of its envelope
    /// ([`Envelope::rewrap_head`](waxseal::Envelope::rewrap_head)).
    ///
    /// The plaintext, the [`ContentId`] and the attributes stay. **Tags and the storage class are
    /// lost**, since `object_store` cannot read them. If somebody overwrites the object meanwhile,
    /// the newer one is rewrapped. An object of up to
    /// [`single_put`](super::SealedStoreBuilder::single_put) is replaced only if it is unchanged. A
    /// larger one, or any if the store does not support that, is checked again just before it is
    /// replaced. A writer in that moment loses its object, and an object deleted in that moment
    /// reappears.
    ///
    /// With [`replace_start_by`](super::SealedStoreBuilder::replace_start_by), only the beginning
    /// of a large object passes through this process.
    ///
    /// # Errors
    /// Those of the store and of the envelope. The object is then unchanged, or rewrapped.
    pub async fn rewrap(&self, path: &Path) -> Result<Rewrapped> {
        let options = RewrapOptions { caller: self.caller.clone(), ..Default::default() };
        self.shared.rewrap_one(path, &options).await
    }

    /// Rewraps all objects under a prefix, like [`rewrap`](Self::rewrap), and reports after each
    /// page. An object that fails does not stop the run. It first reads the list once, to find out
    /// whether the store lists in an order in which a run can resume.
    ///
    /// ```
    /// # use waxseal_object_store::v0_14::{ObjectKeys, RewrapOptions, SealedStore};
    /// # use object_store::{ObjectStoreExt, memory::InMemory, path::Path};
    /// # use waxseal::{EncryptionContext, Envelope, kek::local::LocalKek};
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// # let kek = LocalKek::in_memory("test")?;
    /// # let keys = ObjectKeys::new(
    /// #     Envelope::builder().wrap_with(kek.clone()).build()?, EncryptionContext::empty());
    /// # let store = SealedStore::builder(InMemory::new(), keys).build()?;
    /// store.put(&Path::from("exports/1"), "text".into()).await?;
    /// kek.rotate()?;
    /// let mut next = None; // Keep it, to resume an interrupted run.
    /// let prefix = Path::from("exports");
    /// let done = store
    ///     .rewrap_prefix(Some(&prefix), RewrapOptions::default(), |so_far| {
    ///         next = so_far.next.clone();
    ///         println!("{} rewrapped, {} failed", so_far.rewrapped, so_far.failed);
    ///     })
    ///     .await?;
    /// assert_eq!((done.rewrapped, done.failed), (1, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// A list that cannot be read, and an outage of the key service. The last report says where to
    /// resume. Check [`RewrapProgress::failed`] too.
    pub async fn rewrap_prefix(
        &self,
        prefix: Option<&Path>,
        mut options: RewrapOptions,
        mut report: impl FnMut(&RewrapProgress),
    ) -> Result<RewrapProgress> {
        options.caller = self.caller.clone();
        let mut is_ordered = self.shared.lists_in_order(prefix, options.after.as_ref()).await?;
        let listed = self.shared.paths(prefix, options.after.as_ref());
        let mut pages = listed.try_chunks(options.page);
        let mut progress = RewrapProgress { next: options.after.clone(), ..Default::default() };
        let mut last = options.after.clone();
        loop {
            let (page, failure) = match pages.next().await {
                None => return Ok(progress),
                Some(Ok(page)) => (page, None),
                // Everything before it is done.
                Some(Err(error)) => (error.0, Some(error.1)),
            };
            for path in &page {
                is_ordered &= last.as_ref().is_none_or(|last| last < path);
                last = Some(path.clone());
            }
            self.shared.rewrap_page(&page, &options, &mut progress).await?;
            progress.next = last.clone().filter(|_| is_ordered);
            report(&progress);
            progress.failures.clear();
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
    }
}

impl<S: ObjectStore> Inner<S> {
    fn paths(
        &self,
        prefix: Option<&Path>,
        after: Option<&Path>,
    ) -> BoxStream<'static, Result<Path>> {
        let listed = match after {
            Some(after) => self.store.list_with_offset(prefix, after),
            None => self.store.list(prefix),
        };
        listed.map_ok(|meta| meta.location).boxed()
    }

    /// Reads the whole list. The first pages of a store that lists in no order (local files, S3
    /// Express) may be in order by chance, and a run that resumed after them would leave out
    /// objects that are listed later.
    async fn lists_in_order(&self, prefix: Option<&Path>, after: Option<&Path>) -> Result<bool> {
        let (mut paths, mut last) = (self.paths(prefix, after), after.cloned());
        while let Some(path) = paths.try_next().await? {
            if last.is_some_and(|last| last >= path) {
                return Ok(false);
            }
            last = Some(path);
        }
        Ok(true)
    }

    pub(super) async fn latest_head(&self, path: &Path) -> Result<Arc<Known>> {
        self.fetch_head(path, GetOptions::new()).await.map(|answer| answer.known)
    }

    async fn rewrap_one(
        self: &Arc<Self>,
        path: &Path,
        options: &RewrapOptions,
    ) -> Result<Rewrapped> {
        for _ in 0..TRIES {
            let known = self.latest_head(path).await?;
            let keys = self.keys_of(path)?;
            let head = keys.rewrap(options.caller.as_ref(), &known.head).await;
            let head = head.map_err(|error| sealing(path, error))?;
            if let Some(done) = self.replace_head(path, &known, &head, options).await? {
                return Ok(done);
            }
        }
        Err(generic(path, "the object was overwritten while it was rewrapped, again and again"))
    }

    async fn rewrap_page(
        self: &Arc<Self>,
        page: &[Path],
        options: &RewrapOptions,
        progress: &mut RewrapProgress,
    ) -> Result<()> {
        let heads: Vec<_> = stream::iter(page)
            .map(|path| async move { (path, self.latest_head(path).await) })
            .buffered(options.at_once)
            .collect()
            .await;
        // By context, which has one envelope.
        let mut groups: HashMap<EncryptionContext, (ObjectKeys, Vec<_>)> = HashMap::new();
        for (path, known) in heads {
            match known.and_then(|known| Ok((known, self.keys_of(path)?))) {
                Ok((known, keys)) => {
                    let group = groups.entry(keys.context.clone());
                    group.or_insert_with(|| (keys, Vec::new())).1.push((path, known));
                }
                Err(error) => fail(progress, path, error)?,
            }
        }
        for (keys, objects) in groups.into_values() {
            let heads = objects.iter().map(|(_, known)| &known.head);
            let rewrapped = keys.rewrap_all(options.caller.as_ref(), heads).await;
            let replaced: Vec<_> = stream::iter(objects.into_iter().zip(rewrapped))
                .map(|((path, known), head)| async move {
                    let head = head.and_then(|head| StreamHead::from_prefix(&head));
                    let replaced = match head {
                        Ok(head) => self.replace_head(path, &known, &head, options).await,
                        Err(error) => Err(sealing(path, error)),
                    };
                    let replaced = match replaced {
                        // Overwritten since its head was read.
                        Ok(None) => self.rewrap_one(path, options).await,
                        Ok(Some(done)) => Ok(done),
                        Err(error) => Err(error),
                    };
                    (path, known.meta.size, replaced)
                })
                .buffer_unordered(options.at_once)
                .collect()
                .await;
            for (path, len, replaced) in replaced {
                match replaced {
                    Ok(Rewrapped::Changed) => {
                        progress.rewrapped += 1;
                        progress.bytes += len;
                    }
                    Ok(Rewrapped::Unchanged) => progress.unchanged += 1,
                    Err(error) => fail(progress, path, error)?,
                }
            }
        }
        Ok(())
    }

    /// Writes the object again with another head. `None` if it was overwritten.
    async fn replace_head(
        self: &Arc<Self>,
        path: &Path,
        known: &Arc<Known>,
        head: &StreamHead,
        options: &RewrapOptions,
    ) -> Result<Option<Rewrapped>> {
        if head.as_bytes() == known.head.as_bytes() {
            return Ok(Some(Rewrapped::Unchanged));
        }
        if head.len() != known.head.len() {
            let detail = "the new wrapped keys do not fit into the head: see `head_len`";
            return Err(sealing(path, waxseal::Error::new(ErrorKind::TooLarge, detail)));
        }
        if let Some(chunks) = self.chunks_of_start(known) {
            let chunks = self.chunks_as_they_are(path, known, chunks, options).await?;
            let Some((mut first, attributes)) = chunks else { return Ok(None) };
            let mut start = head.as_bytes().to_vec();
            while let Some(chunk) = first.next(path).await? {
                start.extend_from_slice(&chunk);
            }
            let start = (Bytes::from(start), attributes);
            match self.replace_by_store(path, known, head, start).await? {
                ByStore::Done => return Ok(Some(Rewrapped::Changed)),
                ByStore::Overwritten => return Ok(None),
                ByStore::Not => {}
            }
        }
        let mut left = self.layout.chunks_of(&(0..known.plaintext_len), known.plaintext_len);
        let is_small = known.meta.size <= self.layout.object_len(self.single_put);
        // If no request can require a version, one answer is of one version.
        let is_whole = is_small || known.strong_tag().is_none();
        let chunks = if is_whole { left.clone() } else { self.portion(&left) };
        left.start = chunks.end;
        let chunks = self.chunks_as_they_are(path, known, chunks, options).await?;
        let Some((mut rest, attributes)) = chunks else { return Ok(None) };
        let first = Bytes::copy_from_slice(head.as_bytes());
        if is_small {
            let mut object = vec![first];
            while let Some(chunk) = rest.next(path).await? {
                object.push(chunk);
            }
            let object = PutPayload::from_iter(object);
            return self.put_if_unchanged(path, known, object, attributes).await;
        }
        let upload = PutMultipartOptions { attributes, ..Default::default() };
        let mut upload = self.store.put_multipart_opts(path, upload).await?;
        let mut written = self.write_parts(&mut upload, path, known, first, rest, left).await;
        if let Ok(true) = written {
            written = self.latest_head(path).await.map(|now| now.is_of(&known.meta));
        }
        let done = match written {
            Ok(true) => upload.complete().await.map(|_| Some(Rewrapped::Changed)),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        self.heads.forget(path);
        if !matches!(done, Ok(Some(_))) {
            // The first error says more than that of the abort.
            let _ = upload.abort().await;
        }
        done
    }

    /// Requests chunks of this version, still encrypted, and its attributes. `None` if the object
    /// was overwritten.
    async fn chunks_as_they_are(
        &self,
        path: &Path,
        known: &Known,
        chunks: Range<u64>,
        options: &RewrapOptions,
    ) -> Result<Option<(Rest, Attributes)>> {
        let Some(mut answer) = self.fetch(path, known, &chunks, &GetOptions::new()).await? else {
            return Ok(None);
        };
        let attributes = std::mem::take(&mut answer.attributes);
        let decryptor = match options.verify {
            true => Some(self.decryptor(path, &known.head, options.caller.as_ref()).await?),
            false => None,
        };
        let (source, len) = (Source::new(path, answer), known.meta.size);
        Ok(Some((Rest { source, decryptor, layout: self.layout, chunks, len }, attributes)))
    }

    /// Returns the first of these chunks, as many as one request asks for.
    pub(super) fn portion(&self, chunks: &Range<u64>) -> Range<u64> {
        let most = (PORTION / self.layout.chunk).max(1);
        chunks.start..chunks.end.min(chunks.start.saturating_add(most))
    }

    /// Uploads everything except the end of the upload itself: a head, the chunks in `rest`, and
    /// those that are `left`. `false` if the object was overwritten meanwhile.
    async fn write_parts(
        &self,
        upload: &mut Box<dyn MultipartUpload>,
        path: &Path,
        known: &Known,
        first: Bytes,
        mut rest: Rest,
        mut left: Range<u64>,
    ) -> Result<bool> {
        let part_len = LEAST_PART.max(known.meta.size / MOST_PARTS + 1);
        let part_len = usize::try_from(part_len.min(LARGEST_PART)).unwrap_or(usize::MAX);
        // It grows by what arrives, not by what the store claims.
        let mut part = first.to_vec();
        loop {
            while let Some(mut chunk) = rest.next(path).await? {
                while part.len() + chunk.len() >= part_len {
                    part.extend_from_slice(&chunk.split_to(part_len - part.len()));
                    upload.put_part(std::mem::take(&mut part).into()).await?;
                }
                part.extend_from_slice(&chunk);
            }
            if left.is_empty() {
                break;
            }
            let chunks = self.portion(&left);
            left.start = chunks.end;
            let Some(answer) = self.fetch(path, known, &chunks, &GetOptions::new()).await? else {
                return Ok(false);
            };
            (rest.source, rest.chunks) = (Source::new(path, answer), chunks);
        }
        if !part.is_empty() {
            upload.put_part(part.into()).await?;
        }
        Ok(true)
    }

    async fn put_if_unchanged(
        &self,
        path: &Path,
        known: &Known,
        object: PutPayload,
        attributes: Attributes,
    ) -> Result<Option<Rewrapped>> {
        // Right before it, since some stores ignore the condition. So what others wrote while this
        // one was read is not lost there.
        if !self.latest_head(path).await?.is_of(&known.meta) {
            return Ok(None);
        }
        let id = ContentId::of(&known.head);
        let (e_tag, version) = (known.meta.e_tag.clone(), known.meta.version.clone());
        let update = PutMode::Update(UpdateVersion { e_tag, version });
        let options =
            |mode| PutOptions { mode, attributes: attributes.clone(), ..Default::default() };
        match self.put_sealed(path, object.clone(), options(update), id).await {
            Ok(_) => return Ok(Some(Rewrapped::Changed)),
            Err(Error::Precondition { .. }) => return Ok(None),
            // As local files do.
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {}
            Err(error) => return Err(error),
        }
        self.put_sealed(path, object, options(PutMode::Overwrite), id).await?;
        Ok(Some(Rewrapped::Changed))
    }
}

/// Records the failure of one object, or stops the run if the next would fail too. A deleted object
/// is not a failure.
fn fail(progress: &mut RewrapProgress, path: &Path, error: Error) -> Result<()> {
    if sealing_error(&error).is_some_and(waxseal::Error::is_retryable) {
        return Err(error);
    }
    if matches!(error, Error::NotFound { .. }) {
        progress.gone += 1;
        return Ok(());
    }
    progress.failed += 1;
    progress.failures.push((path.clone(), error));
    Ok(())
}

/// The chunks of an answer, still encrypted.
struct Rest {
    source: Source,
    decryptor: Option<waxseal::StreamDecryptor>,
    layout: super::layout::Layout,
    /// The remaining chunks of this answer.
    chunks: Range<u64>,
    len: u64,
}

impl Rest {
    /// Returns the next chunk, encrypted. `None` after the last of the answer.
    async fn next(&mut self, path: &Path) -> Result<Option<Bytes>> {
        let Some(index) = self.chunks.next() else {
            return self.source.end().await.map(|()| None);
        };
        let place = self.layout.place_of(&(index..index + 1), self.len);
        let len = usize::try_from(place.end - place.start).unwrap_or(usize::MAX);
        let chunk = self.source.take(len).await?;
        if let Some(decryptor) = &self.decryptor {
            let opened = decryptor.decrypt_chunk(index, chunk.clone());
            opened.map_err(|error| sealing(path, error))?;
        }
        Ok(Some(chunk.into()))
    }
}
