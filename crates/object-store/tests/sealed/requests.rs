//! How many requests a read makes, and for what.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::time::SystemTime;

use crate::version::{Binding, ObjectKeys, SealedStore};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};
use waxseal::{Aad, StreamOptions};

use super::ground::*;
use super::scripted::{Call, Scripted};

/// Keeps some parts of what is written to it, and leaves holes elsewhere.
struct Sparse {
    file: File,
    at: u64,
    keep: Vec<Range<u64>>,
}

impl Write for Sparse {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = self.at + bytes.len() as u64;
        if self.keep.iter().any(|keep| keep.start < end && self.at < keep.end) {
            self.file.seek(SeekFrom::Start(self.at))?;
            self.file.write_all(bytes)?;
        }
        self.at = end;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.set_len(self.at)
    }
}

const MIB: u64 = 1 << 20;

/// An object of 1 GiB, of which a few chunks are on the disk.
async fn large(folder: &std::path::Path, keys: (waxseal::Envelope, waxseal::EncryptionContext)) {
    let options = StreamOptions::default().key_space(1024 - 104);
    let encryptor = keys.0.stream_encryptor(&keys.1, Aad::empty(), options).await.unwrap();
    let len = encryptor.stream_len(1024 * MIB).unwrap();
    let middle = 512 * MIB;
    let keep = vec![0..MIB, middle..middle + MIB, len - MIB..len];
    let file = File::create(folder.join("large")).unwrap();
    let mut writer = encryptor.writer(Sparse { file, at: 0, keep });
    let block = plaintext(MIB);
    for _ in 0..1024 {
        writer.write_all(&block).unwrap();
    }
    writer.finish().unwrap();
}

fn asked(calls: &[Call]) -> Vec<(&'static str, u64)> {
    let len = |call: &Call| call.range.as_ref().map_or(0, |range| range.end - range.start);
    calls.iter().map(|call| (call.operation, len(call))).collect()
}

/// The figure of docs/objects.md.
#[tokio::test]
async fn four_kib_of_a_gib_are_two_requests_cold_and_one_warm() {
    let folder = tempfile::tempdir().unwrap();
    let (envelope, context) = (envelope(), context());
    large(folder.path(), (envelope.clone(), context.clone())).await;
    let local = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let scripted = Scripted::new(local);
    let sealed = SealedStore::builder(scripted.clone(), ObjectKeys::new(envelope, context))
        .binding(Binding::Nothing)
        .build()
        .unwrap();
    let (path, block) = (Path::from("large"), plaintext(MIB));
    let at = 512 * MIB + 70_000;
    let sealed_chunk = (1 << 16) + 16;
    let expected = &block[70_000..74_096];

    assert_eq!(sealed.get_range(&path, at..at + 4096).await.unwrap(), expected);
    let calls = scripted.take_calls();
    assert_eq!(asked(&calls), [("get", 1024), ("get", sealed_chunk)]);
    // The second is for the version of the first.
    assert!(calls[0].if_match.is_none() && calls[1].if_match.is_some());

    assert_eq!(sealed.get_range(&path, at..at + 4096).await.unwrap(), expected);
    let calls = scripted.take_calls();
    assert_eq!(asked(&calls), [("get", sealed_chunk)]);
    assert!(calls[0].if_match.is_some());

    // The end is authenticated by the last chunk, in the same request.
    let tail = sealed.get_opts(&path, GetOptions::new().with_range(Some(1024 * MIB - 8..))).await;
    assert_eq!(tail.unwrap().bytes().await.unwrap(), block[block.len() - 8..]);
    assert_eq!(asked(&scripted.take_calls()), [("get", sealed_chunk + 16)]);

    // Several parts, of which the first two are in chunks beside each other.
    let ranges = [at..at + 1, at + 65_536..at + 65_537, 10..20];
    let parts = sealed.get_ranges(&path, &ranges).await.unwrap();
    assert_eq!(parts[2], block[10..20]);
    assert_eq!(asked(&scripted.take_calls()), [("get", sealed_chunk), ("get", 2 * sealed_chunk)]);
}

#[tokio::test]
async fn a_whole_object_is_one_request_and_a_head_another() {
    let scripted = Scripted::new(InMemory::new());
    let (sealed, path) = (small(scripted.clone()), Path::from("a"));
    sealed.put(&path, plaintext(10_000).into()).await.unwrap();
    assert_eq!(asked(&scripted.take_calls()), [("put", 0)]);
    assert_eq!(get(&sealed, &path).await.unwrap(), plaintext(10_000));
    assert_eq!(asked(&scripted.take_calls()), [("get", 0)]);
    sealed.head(&path).await.unwrap();
    // What is asked for what is there now never comes from memory.
    sealed.head(&path).await.unwrap();
    assert_eq!(asked(&scripted.take_calls()), [("get", HEAD), ("get", HEAD)]);
    // Its head is known from then on.
    sealed.get_range(&path, 0..1).await.unwrap();
    assert_eq!(asked(&scripted.take_calls()), [("get", SEALED_CHUNK)]);
}

#[tokio::test]
async fn conditions_are_the_stores_to_decide() {
    let scripted = Scripted::new(InMemory::new());
    let (sealed, path) = (small(scripted.clone()), Path::from("a"));
    sealed.put(&path, plaintext(10_000).into()).await.unwrap();
    let tag = sealed.head(&path).await.unwrap().e_tag.unwrap();
    let part = || GetOptions::new().with_range(Some(5000..5010));
    for (options, requests, is_there) in [
        (part().with_if_match(Some(tag.clone())), 1, true),
        (part().with_if_match(Some("*")), 2, true),
        (part().with_if_match(Some("other")), 1, false),
        (part().with_if_none_match(Some("other")), 2, true),
        (part().with_if_none_match(Some(tag.clone())), 1, false),
        // With the head in memory, too.
        (part().with_if_modified_since(Some(SystemTime::now())), 1, false),
        (part().with_if_unmodified_since(Some(SystemTime::UNIX_EPOCH)), 1, false),
        (part().with_if_unmodified_since(Some(SystemTime::now())), 2, true),
        (GetOptions::new().with_if_none_match(Some(tag.clone())), 1, false),
        (GetOptions::new().with_if_match(Some(tag)), 1, true),
        (GetOptions::new().with_head(true).with_if_match(Some("other")), 1, false),
    ] {
        scripted.take_calls();
        let got = sealed.get_opts(&path, options.clone()).await;
        assert_eq!(got.is_ok(), is_there, "{options:?}");
        assert_eq!(scripted.take_calls().len(), requests, "{options:?}");
        if let Err(error) = got {
            let is_condition = matches!(
                error,
                object_store::Error::Precondition { .. } | object_store::Error::NotModified { .. }
            );
            assert!(is_condition, "{error}");
        }
    }
}

#[tokio::test]
async fn without_a_cache_every_part_is_two_requests() {
    let scripted = Scripted::new(InMemory::new());
    let path = Path::from("a");
    let sealed = builder(scripted.clone()).cached_heads(0).chunk_size(4096).build().unwrap();
    sealed.put(&path, plaintext(10_000).into()).await.unwrap();
    for _ in 0..2 {
        scripted.take_calls();
        sealed.get_range(&path, 0..1).await.unwrap();
        assert_eq!(scripted.take_calls().len(), 2);
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let build = |chunk, head| builder(InMemory::new()).chunk_size(chunk).head_len(head).build();
    for (chunk, head, word) in [
        (4095, 1024, "chunk_size"),
        (2048, 1024, "chunk_size"),
        (5000, 1024, "chunk_size"),
        (1 << 25, 1024, "chunk_size"),
        (4096, 103, "head_len"),
        (4096, 65_640, "head_len"),
        (0, 0, "chunk_size"),
    ] {
        let error = build(chunk, head).unwrap_err();
        assert_eq!(error.kind(), waxseal::ErrorKind::InvalidOption);
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(build(4096, 104).is_ok() && build(1 << 24, 65_639).is_ok());
}

/// Wrapped keys that do not fit into the head are refused before anything is written.
#[tokio::test]
async fn a_head_that_is_too_short_for_the_wrapped_keys_writes_nothing() {
    let scripted = Scripted::new(InMemory::new());
    let sealed = builder(scripted.clone()).head_len(120).build().unwrap();
    let error = sealed.put(&Path::from("a"), "text".into()).await.unwrap_err();
    assert_eq!(kind(&error), Some(waxseal::ErrorKind::TooLarge));
    assert!(scripted.take_calls().is_empty());
}
