//! Any sequence of calls, by two writers that keep heads in memory and rewrap, is answered as by a
//! store in plaintext.

use std::time::{Duration, SystemTime};

use crate::version::{Binding, ObjectKeys, SealedStore};
use futures_util::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, CopyMode, CopyOptions, Error, GetOptions, GetRange, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, RenameOptions,
    RenameTargetMode, Result, UpdateVersion,
};
use proptest::prelude::*;
use waxseal::{Envelope, kek::local::LocalKek};

use super::ground::*;
use super::scripted::Scripted;

const PATHS: [&str; 6] = ["a", "a/b", "a/b/c", "a/c", "b/c", "b c/\u{fc}"];
const LENGTHS: [u64; 8] = [0, 1, 4095, 4096, 4097, 8192, 8193, 20_000];

/// A condition on what is at a path when the call is made.
#[derive(Clone, Copy, Debug)]
enum When {
    Always,
    Match,
    MatchOther,
    MatchAny,
    NoneMatch,
    NoneMatchOther,
    NoneMatchAny,
    ModifiedLongAgo,
    ModifiedNever,
    UnmodifiedLongAgo,
    UnmodifiedEver,
    MatchAndModified,
}

#[derive(Clone, Debug)]
enum Call {
    Put(usize, u64, u8),
    /// With the tag of what is there, or one of long ago.
    Update(usize, u64, bool),
    Upload(usize, Vec<u64>, bool),
    Get(usize, Option<GetRange>, When, bool),
    GetRanges(usize, Vec<(u64, u64)>),
    Head(usize),
    Delete(Vec<usize>),
    List(usize),
    ListBehind(usize, usize),
    ListFolders(usize),
    Copy(usize, usize, bool),
    Rename(usize, usize, bool),
    /// For the KEK of the writer that does it.
    Rewrap(usize),
}

fn path() -> impl Strategy<Value = usize> {
    0..PATHS.len()
}

fn len() -> impl Strategy<Value = u64> {
    prop::sample::select(&LENGTHS[..])
}

fn position() -> impl Strategy<Value = u64> {
    prop_oneof![len(), 0..25_000_u64, Just(u64::MAX), Just(u64::MAX - 1)]
}

fn range() -> impl Strategy<Value = GetRange> {
    prop_oneof![
        (position(), position()).prop_map(|(a, b)| GetRange::Bounded(a..b)),
        position().prop_map(GetRange::Offset),
        position().prop_map(GetRange::Suffix),
    ]
}

fn when() -> impl Strategy<Value = When> {
    prop::sample::select(vec![
        When::Always,
        When::Always,
        When::Always,
        When::Match,
        When::MatchOther,
        When::MatchAny,
        When::NoneMatch,
        When::NoneMatchOther,
        When::NoneMatchAny,
        When::ModifiedLongAgo,
        When::ModifiedNever,
        When::UnmodifiedLongAgo,
        When::UnmodifiedEver,
        When::MatchAndModified,
    ])
}

fn call() -> impl Strategy<Value = Call> {
    let write = prop_oneof![
        3 => (path(), len(), 0..3_u8).prop_map(|(at, len, mode)| Call::Put(at, len, mode)),
        1 => (path(), len(), any::<bool>()).prop_map(|(at, len, now)| Call::Update(at, len, now)),
        1 => (path(), prop::collection::vec(len(), 0..4), any::<bool>())
            .prop_map(|(at, parts, ends)| Call::Upload(at, parts, ends)),
        1 => prop::collection::vec(path(), 0..3).prop_map(Call::Delete),
        2 => (path(), path(), any::<bool>()).prop_map(|(from, to, new)| Call::Copy(from, to, new)),
        2 => (path(), path(), any::<bool>()).prop_map(|(from, to, new)| Call::Rename(from, to, new)),
        2 => path().prop_map(Call::Rewrap),
    ];
    let read = prop_oneof![
        6 => (path(), prop::option::weighted(0.8, range()), when(), prop::bool::weighted(0.1))
            .prop_map(|(at, range, when, head)| Call::Get(at, range, when, head)),
        3 => (path(), prop::collection::vec((position(), position()), 1..4))
            .prop_map(|(at, ranges)| Call::GetRanges(at, ranges)),
        1 => path().prop_map(Call::Head),
        1 => path().prop_map(Call::List),
        1 => (path(), path()).prop_map(|(prefix, behind)| Call::ListBehind(prefix, behind)),
        1 => path().prop_map(Call::ListFolders),
    ];
    prop_oneof![write, read]
}

/// What a store answers, but for tags and times.
#[derive(PartialEq, Eq, Debug)]
enum Answer {
    Done,
    Bytes { bytes: Vec<Vec<u8>>, range: Option<std::ops::Range<u64>>, about: String },
    Listed(Vec<(String, u64)>, Vec<String>),
    Failed(&'static str),
}

fn failure(error: &Error) -> &'static str {
    match error {
        Error::NotFound { .. } => "not found",
        Error::AlreadyExists { .. } => "already exists",
        Error::Precondition { .. } => "precondition",
        Error::NotModified { .. } => "not modified",
        Error::NotSupported { .. } | Error::NotImplemented { .. } => "not supported",
        Error::Generic { .. } => "generic",
        _ => "another",
    }
}

fn at(index: usize) -> Path {
    Path::from(PATHS[index])
}

fn listed(objects: Vec<ObjectMeta>, folders: Vec<Path>) -> Answer {
    let mut objects: Vec<_> =
        objects.into_iter().map(|it| (it.location.to_string(), it.size)).collect();
    objects.sort();
    Answer::Listed(objects, folders.iter().map(ToString::to_string).collect())
}

fn attributes(len: u64) -> Attributes {
    Attributes::from_iter([(Attribute::ContentType, format!("text/{len}"))])
}

/// The tag of what is there, or one that nothing has.
async fn tag(store: &dyn ObjectStore, path: &Path) -> String {
    let there = store.head(path).await.ok();
    there.and_then(|there| there.e_tag).unwrap_or_else(|| "\"none\"".to_owned())
}

async fn conditions(store: &dyn ObjectStore, path: &Path, when: When) -> GetOptions {
    let options = GetOptions::new();
    let never = SystemTime::now() + Duration::from_secs(1000);
    match when {
        When::Always => options,
        When::Match => options.with_if_match(Some(tag(store, path).await)),
        When::MatchOther => options.with_if_match(Some("\"other\"")),
        When::MatchAny => options.with_if_match(Some("*")),
        When::NoneMatch => options.with_if_none_match(Some(tag(store, path).await)),
        When::NoneMatchOther => options.with_if_none_match(Some("\"other\"")),
        When::NoneMatchAny => options.with_if_none_match(Some("*")),
        When::ModifiedLongAgo => options.with_if_modified_since(Some(SystemTime::UNIX_EPOCH)),
        When::ModifiedNever => options.with_if_modified_since(Some(never)),
        When::UnmodifiedLongAgo => options.with_if_unmodified_since(Some(SystemTime::UNIX_EPOCH)),
        When::UnmodifiedEver => options.with_if_unmodified_since(Some(never)),
        When::MatchAndModified => {
            let options = options.with_if_match(Some(tag(store, path).await));
            options.with_if_unmodified_since(Some(SystemTime::UNIX_EPOCH))
        }
    }
}

async fn answer(store: &dyn ObjectStore, call: &Call, salt: u64) -> Result<Answer> {
    // Of another content each time.
    let content = |len: u64| plaintext(len + salt).split_off(salt.try_into().unwrap());
    Ok(match call {
        Call::Put(path, len, mode) => {
            let mode = if *mode == 0 { PutMode::Create } else { PutMode::Overwrite };
            let options = PutOptions { mode, attributes: attributes(*len), ..Default::default() };
            store.put_opts(&at(*path), content(*len).into(), options).await?;
            Answer::Done
        }
        Call::Update(path, len, is_now) => {
            let e_tag = match is_now {
                true => tag(store, &at(*path)).await,
                false => "\"1000000\"".to_owned(),
            };
            let mode = PutMode::Update(UpdateVersion { e_tag: Some(e_tag), version: None });
            let options = PutOptions { mode, ..Default::default() };
            store.put_opts(&at(*path), content(*len).into(), options).await?;
            Answer::Done
        }
        Call::Upload(path, parts, is_completed) => {
            let options = PutMultipartOptions { attributes: attributes(0), ..Default::default() };
            let mut upload = store.put_multipart_opts(&at(*path), options).await?;
            let parts: Vec<_> =
                parts.iter().map(|len| upload.put_part(content(*len).into())).collect();
            // In another order than they were given.
            for part in parts.into_iter().rev() {
                part.await?;
            }
            match is_completed {
                true => upload.complete().await.map(drop)?,
                false => upload.abort().await?,
            }
            Answer::Done
        }
        Call::Get(path, range, when, is_head) => {
            let path = at(*path);
            let options = conditions(store, &path, *when).await;
            let options = options.with_range(range.clone().filter(|_| !is_head));
            let got = store.get_opts(&path, options.with_head(*is_head)).await?;
            let about = format!("{} {} {:?}", got.meta.location, got.meta.size, got.attributes);
            let range = (!is_head).then(|| got.range.clone());
            let bytes = if *is_head { Vec::new() } else { vec![got.bytes().await?.to_vec()] };
            Answer::Bytes { bytes, range, about }
        }
        Call::GetRanges(path, ranges) => {
            let ranges: Vec<_> = ranges.iter().map(|(a, b)| *a..*b).collect();
            let bytes = store.get_ranges(&at(*path), &ranges).await?;
            let bytes = bytes.into_iter().map(|it| it.to_vec()).collect();
            Answer::Bytes { bytes, range: None, about: String::new() }
        }
        Call::Head(path) => {
            let meta = store.head(&at(*path)).await?;
            listed(vec![meta], Vec::new())
        }
        Call::Delete(paths) => {
            let paths: Vec<_> = paths.iter().map(|path| Ok(at(*path))).collect();
            let paths = futures_util::stream::iter(paths);
            let gone: Vec<_> = store.delete_stream(Box::pin(paths)).try_collect().await?;
            Answer::Listed(Vec::new(), gone.iter().map(ToString::to_string).collect())
        }
        Call::List(prefix) => {
            listed(store.list(Some(&at(*prefix))).try_collect().await?, Vec::new())
        }
        Call::ListBehind(prefix, behind) => {
            let all = store.list_with_offset(Some(&at(*prefix)), &at(*behind));
            listed(all.try_collect().await?, Vec::new())
        }
        Call::ListFolders(prefix) => {
            let all = store.list_with_delimiter(Some(&at(*prefix))).await?;
            listed(all.objects, all.common_prefixes)
        }
        Call::Copy(from, to, is_new) => {
            let mode = if *is_new { CopyMode::Create } else { CopyMode::Overwrite };
            let options = CopyOptions::new().with_mode(mode);
            store.copy_opts(&at(*from), &at(*to), options).await?;
            Answer::Done
        }
        Call::Rename(from, to, is_new) => {
            let mode = if *is_new { RenameTargetMode::Create } else { RenameTargetMode::Overwrite };
            let options = RenameOptions::new().with_target_mode(mode);
            store.rename_opts(&at(*from), &at(*to), options).await?;
            Answer::Done
        }
        // In plaintext there is nothing to do.
        Call::Rewrap(path) => store.head(&at(*path)).await.map(|_| Answer::Done)?,
    })
}

fn or_failed(answer: Result<Answer>) -> Answer {
    answer.unwrap_or_else(|error| Answer::Failed(failure(&error)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_call_is_answered_as_by_a_store_in_plaintext(
        calls in prop::collection::vec((call(), 0..2_usize), 1..40),
        binding in prop::sample::select(vec![Binding::Path, Binding::FileName, Binding::Nothing]),
        coalesce in prop::sample::select(vec![0, 5000, u64::MAX]),
    ) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let (plain, inner) = (InMemory::new(), Scripted::new(InMemory::new()));
            let keks = ["one", "other"].map(|name| LocalKek::in_memory(name).unwrap());
            let writer = |own: usize| {
                let envelope = Envelope::builder().wrap_with(keks[own].clone());
                let envelope = envelope.unwrap_with(keks[1 - own].clone()).build().unwrap();
                let keys = ObjectKeys::new(envelope, context());
                let store = SealedStore::builder(inner.clone(), keys).chunk_size(4096);
                store.coalesce(coalesce).binding(binding).build().unwrap()
            };
            let writers = [writer(0), writer(1)];
            for (salt, (call, by)) in (1..).zip(&calls) {
                let expected = or_failed(answer(&plain, call, salt).await);
                let got = match call {
                    Call::Rewrap(path) => writers[*by].rewrap(&at(*path)).await.map(|_| Answer::Done),
                    call => answer(&writers[*by], call, salt).await,
                };
                let got = or_failed(got);
                assert!(got == expected, "{call:?}: {got:?}, not {expected:?}");
            }
        });
    }
}
