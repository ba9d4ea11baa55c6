//! A store that notes what it is asked, and fails, lies and waits on command.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, RenameOptions, Result, UploadPart,
};

/// A call, as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) operation: &'static str,
    pub(crate) path: Path,
    /// What was asked for.
    pub(crate) range: Option<Range<u64>>,
    pub(crate) if_match: Option<String>,
    /// Bytes that were sent.
    pub(crate) sent: usize,
}

type Change = Arc<dyn Fn(GetResult, Vec<u8>) -> (GetResult, Vec<u8>) + Send + Sync>;

#[derive(Clone)]
pub(crate) enum Act {
    /// Does it.
    Pass,
    /// Does nothing, and fails.
    Fail,
    /// Does it, and then fails: the answer is lost.
    Lose,
    /// Does nothing, for ever.
    Hang,
    /// Does it, and never answers.
    HangAfter,
    /// Answers, and breaks off after this many bytes of the body.
    Break(usize),
    /// Answers in pieces of this many bytes.
    Pieces(usize),
    /// Lists this many objects last, and the others first.
    Turn(usize),
    /// Answers another thing.
    Change(Change),
    /// Does it, and overlooks its condition.
    Unconditional,
    /// Does it, and then something else, before it answers.
    Then(Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>),
}

impl Act {
    /// Changes the bytes of an answer.
    pub(crate) fn bytes(change: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> Self {
        Self::Change(Arc::new(move |result, mut bytes| {
            change(&mut bytes);
            (result, bytes)
        }))
    }
}

type Script = Box<dyn FnMut(usize, &Call) -> Act + Send>;

struct State {
    inner: Arc<dyn ObjectStore>,
    calls: Mutex<Vec<Call>>,
    script: Mutex<Script>,
}

#[derive(Clone)]
pub(crate) struct Scripted(Arc<State>);

impl Scripted {
    pub(crate) fn new(inner: impl ObjectStore) -> Self {
        Self(Arc::new(State {
            inner: Arc::new(inner),
            calls: Mutex::default(),
            script: Mutex::new(Box::new(|_, _| Act::Pass)),
        }))
    }

    pub(crate) fn bare(&self) -> &dyn ObjectStore {
        &*self.0.inner
    }

    /// Sets what becomes of calls. They are counted from 0 again.
    pub(crate) fn script(&self, script: impl FnMut(usize, &Call) -> Act + Send + 'static) {
        self.take_calls();
        *self.0.script.lock().unwrap() = Box::new(script);
    }

    pub(crate) fn behave(&self) {
        self.script(|_, _| Act::Pass);
    }

    pub(crate) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.0.calls.lock().unwrap())
    }

    fn ask(&self, operation: &'static str, path: &Path, options: &GetOptions, sent: usize) -> Act {
        let range = match &options.range {
            Some(GetRange::Bounded(range)) => Some(range.clone()),
            _ => None,
        };
        let (path, if_match) = (path.clone(), options.if_match.clone());
        let call = Call { operation, path, range, if_match, sent };
        let mut calls = self.0.calls.lock().unwrap();
        let act = self.0.script.lock().unwrap()(calls.len(), &call);
        calls.push(call);
        act
    }

    fn ask_of(&self, operation: &'static str, path: &Path) -> Act {
        self.ask(operation, path, &GetOptions::new(), 0)
    }
}

pub(crate) fn failed<T>() -> Result<T> {
    Err(Error::Generic { store: "scripted", source: "connection reset".into() })
}

/// For calls whose answer has no body.
async fn act<T>(act: Act, work: impl Future<Output = Result<T>>) -> Result<T> {
    match act {
        Act::Fail => failed(),
        Act::Hang => std::future::pending().await,
        Act::Lose => {
            work.await?;
            failed()
        }
        Act::HangAfter => {
            work.await?;
            std::future::pending().await
        }
        _ => work.await,
    }
}

#[async_trait]
impl ObjectStore for Scripted {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        let told = self.ask("put", path, &GetOptions::new(), payload.content_length());
        if let Act::Unconditional = told {
            options.mode = PutMode::Overwrite;
        }
        act(told, self.0.inner.put_opts(path, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let told = self.ask_of("put_multipart", path);
        let inner = act(told, self.0.inner.put_multipart_opts(path, options)).await?;
        Ok(Box::new(Upload { store: self.clone(), path: path.clone(), inner }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let told = self.ask("get", path, &options, 0);
        let result = act(told.clone(), self.0.inner.get_opts(path, options)).await?;
        let empty = GetResultPayload::Stream(stream::empty().boxed());
        let mut answer = crate::with_payload(&result, empty);
        let mut bytes = result.bytes().await?.to_vec();
        let (mut piece, mut breaks) = (usize::MAX, false);
        match told {
            Act::Change(change) => (answer, bytes) = change(answer, bytes),
            Act::Break(after) => {
                bytes.truncate(after);
                breaks = true;
            }
            Act::Pieces(of) => piece = of,
            Act::Then(then) => then().await,
            _ => {}
        }
        let pieces: Vec<_> = bytes
            .chunks(piece.min(bytes.len().max(1)))
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .chain(breaks.then(failed))
            .collect();
        answer.payload = GetResultPayload::Stream(stream::iter(pieces).boxed());
        Ok(answer)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let asked = locations.then(move |path| {
            let told = path.as_ref().map_or(Act::Pass, |path| store.ask_of("delete", path));
            act(told, async { path })
        });
        self.0.inner.delete_stream(asked.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.ask_of("list", prefix.unwrap_or(&Path::default())) {
            Act::Fail => stream::once(async { failed() }).boxed(),
            Act::Break(after) => {
                let some = self.0.inner.list(prefix).take(after);
                some.chain(stream::once(async { failed() })).boxed()
            }
            Act::Turn(by) => {
                let listed = self.0.inner.list(prefix).collect::<Vec<_>>();
                let turned = listed.map(move |mut all| {
                    let by = by.min(all.len());
                    all.rotate_left(by);
                    stream::iter(all)
                });
                turned.flatten_stream().boxed()
            }
            _ => self.0.inner.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let told = self.ask_of("list_with_delimiter", prefix.unwrap_or(&Path::default()));
        act(told, self.0.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        act(self.ask_of("copy", from), self.0.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        act(self.ask_of("rename", from), self.0.inner.rename_opts(from, to, options)).await
    }
}

struct Upload {
    store: Scripted,
    path: Path,
    inner: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let sent = data.content_length();
        let told = self.store.ask("put_part", &self.path, &GetOptions::new(), sent);
        match told {
            Act::Fail => std::future::ready(failed()).boxed(),
            Act::Hang => std::future::pending().boxed(),
            told => act(told, self.inner.put_part(data)).boxed(),
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        act(self.store.ask_of("complete", &self.path), self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        act(self.store.ask_of("abort", &self.path), self.inner.abort()).await
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl fmt::Display for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}
