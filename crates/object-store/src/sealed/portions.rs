//! The plaintext of an object for a copy, requested in portions that are retried from where they
//! failed. One request for a whole large object would exceed the timeouts of clients, and a failure
//! near its end would cost everything.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use waxseal::StreamDecryptor;

use super::api::path::Path;
use super::api::{Attributes, Error, Extensions, GetOptions, GetRange, ObjectStore, Result};
use super::body::{Body, Source};
use super::errors::other_answer;
use super::heads::Known;
use super::store::Inner;

/// How many requests in a row may fail without progress.
const FAILURES: u32 = 5;

pub(super) struct Portions<'s, S> {
    store: &'s Inner<S>,
    path: &'s Path,
    known: Arc<Known>,
    decryptor: StreamDecryptor,
    attributes: Attributes,
    options: GetOptions,
    /// The chunks that have not arrived yet.
    left: Range<u64>,
    /// The answer with the next of them.
    body: Option<Body>,
    failures: u32,
}

/// What comes next.
pub(super) enum Next {
    Plaintext(Bytes),
    /// All came.
    End,
    /// Somebody has overwritten the object.
    Overwritten,
}

impl<'s, S: ObjectStore> Portions<'s, S> {
    /// Requests the first portion, with the head.
    pub(super) async fn begin(
        store: &'s Inner<S>,
        path: &'s Path,
        extensions: &Extensions,
    ) -> Result<Self> {
        let options = GetOptions { extensions: extensions.clone(), ..GetOptions::new() };
        let first = store.portion(&(0..u64::MAX));
        let end = store.layout.place_of(&first, u64::MAX).end;
        let asked = GetOptions { range: Some(GetRange::Bounded(0..end)), ..options.clone() };
        let mut answer = store.store.get_opts(path, asked).await?;
        if answer.range != (0..end.min(answer.meta.size)) {
            return other_answer(path);
        }
        let meta = answer.meta.clone();
        let attributes = std::mem::take(&mut answer.attributes);
        let mut source = Source::new(path, answer);
        let known = store.read_head(path, &mut source, meta).await?;
        let decryptor = store.decryptor(path, &known.head, extensions.get()).await?;
        let left = store.layout.chunks_of(&(0..known.plaintext_len), known.plaintext_len);
        let chunks = store.portion(&left);
        let body = Some(store.body(source, decryptor.clone(), &known, chunks));
        Ok(Self { store, path, known, decryptor, attributes, options, left, body, failures: 0 })
    }

    pub(super) fn plaintext_len(&self) -> u64 {
        self.known.plaintext_len
    }

    pub(super) fn take_attributes(&mut self) -> Attributes {
        std::mem::take(&mut self.attributes)
    }

    /// Returns the next chunk. It is authentic, but only the end shows that the object is complete.
    pub(super) async fn next(&mut self) -> Result<Next> {
        loop {
            let failed = match &mut self.body {
                Some(body) => match body.next().await {
                    Ok(Some((index, plaintext))) => {
                        (self.left.start, self.failures) = (index + 1, 0);
                        return Ok(Next::Plaintext(plaintext));
                    }
                    Ok(None) => {
                        self.body = None;
                        continue;
                    }
                    Err(error) => error,
                },
                None if self.left.is_empty() => return Ok(Next::End),
                None => {
                    let chunks = self.store.portion(&self.left);
                    let (known, options) = (&self.known, &self.options);
                    match self.store.fetch(self.path, known, &chunks, options).await {
                        Ok(Some(answer)) => {
                            let source = Source::new(self.path, answer);
                            let decryptor = self.decryptor.clone();
                            self.body = Some(self.store.body(source, decryptor, known, chunks));
                            continue;
                        }
                        Ok(None) => return Ok(Next::Overwritten),
                        Err(error) => error,
                    }
                }
            };
            self.body = None;
            self.failures += 1;
            if self.failures >= FAILURES || !may_pass(&failed) {
                return Err(failed);
            }
        }
    }
}

/// Whether the same request may succeed later. Unauthentic data does not become authentic.
fn may_pass(error: &Error) -> bool {
    matches!(error, Error::Generic { .. }) && super::sealing_error(error).is_none()
}
