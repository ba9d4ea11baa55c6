//! Rewraps by a store that replaces the beginning of an object, and keeps the rest: what the sealed
//! store asks of it, and how it handles the answers. On S3 itself: start_on_s3.

use std::sync::{Arc, Mutex};

use crate::version::{ReplaceStart, RewrapOptions, Rewrapped, SealedStore, StartChange};
use async_trait::async_trait;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    Result, UpdateVersion,
};
use waxseal::ErrorKind;

use super::ground::*;
use super::rewrap::Keks;
use super::scripted::{Act, Scripted, failed};

/// How it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answers {
    Done,
    /// It is done, and the answer is lost.
    Lost,
    LostAndLate,
    NotSupported,
    NotImplemented,
    Precondition,
    NotFound,
    Idle,
    Fails,
    Panics,
}

#[derive(Debug)]
struct State {
    store: Scripted,
    least: Option<u64>,
    answers: Mutex<Answers>,
    /// Of each call, the bytes that were given.
    calls: Mutex<Vec<u64>>,
}

/// As a service would have it: the rest does not pass through [`Scripted`].
#[derive(Clone, Debug)]
struct Joins(Arc<State>);

impl Joins {
    fn new(store: &Scripted, least: Option<u64>) -> Self {
        let answers = Mutex::new(Answers::Done);
        Self(Arc::new(State { store: store.clone(), least, answers, calls: Mutex::default() }))
    }

    fn answer(&self, answers: Answers) {
        *self.0.answers.lock().unwrap() = answers;
    }

    fn take_calls(&self) -> Vec<u64> {
        std::mem::take(&mut *self.0.calls.lock().unwrap())
    }
}

#[async_trait]
impl ReplaceStart for Joins {
    fn start_len(&self, _: u64) -> Option<u64> {
        self.0.least
    }

    async fn replace_start(&self, change: StartChange) -> Result<()> {
        self.0.calls.lock().unwrap().push(change.start().len() as u64);
        let answers = *self.0.answers.lock().unwrap();
        let path = change.path().to_string();
        match answers {
            Answers::NotSupported => {
                return Err(Error::NotSupported { source: "a test".into() });
            }
            Answers::NotImplemented => {
                let (operation, implementer) = ("joining".to_owned(), "a test".to_owned());
                return Err(Error::NotImplemented { operation, implementer });
            }
            Answers::Precondition => {
                return Err(Error::Precondition { path, source: "a test".into() });
            }
            // As where the bucket or the prefix is another.
            Answers::NotFound => return Err(Error::NotFound { path, source: "a test".into() }),
            Answers::Idle => return Ok(()),
            Answers::Fails => return failed(),
            Answers::Panics => panic!("a store may"),
            Answers::Done | Answers::Lost | Answers::LostAndLate => {}
        }
        let bare = self.0.store.bare();
        let of_it = GetOptions { if_match: Some(change.e_tag().to_owned()), ..Default::default() };
        let now = bare.get_opts(change.path(), of_it).await?.bytes().await?;
        assert_eq!(now.len() as u64, change.object_len());
        let joined = [change.start(), &now[change.start().len()..]].concat();
        if !change.is_unchanged().await? {
            return Err(Error::Precondition { path, source: "looked".into() });
        }
        let update = UpdateVersion { e_tag: Some(change.e_tag().to_owned()), version: None };
        let attributes = change.attributes().clone();
        let options =
            PutOptions { mode: PutMode::Update(update), attributes, ..Default::default() };
        bare.put_opts(change.path(), joined.into(), options).await?;
        match answers {
            Answers::Lost => failed(),
            Answers::LostAndLate => Err(Error::Precondition { path, source: "again".into() }),
            _ => Ok(()),
        }
    }
}

const LEAST: u64 = 50_000;
/// Where the chunks end that such a beginning has.
const END: u64 = HEAD + (LEAST - HEAD).div_ceil(SEALED_CHUNK) * SEALED_CHUNK;

struct Ground {
    keks: Keks,
    scripted: Scripted,
    joins: Joins,
    before: SealedStore<Scripted>,
    moving: SealedStore<Scripted>,
}

fn ground(least: Option<u64>) -> Ground {
    let (keks, scripted) = (Keks::make(), Scripted::new(InMemory::new()));
    let joins = Joins::new(&scripted, least);
    let before = keks.before(scripted.clone()).build().unwrap();
    let moving = keks.moving(scripted.clone()).replace_start_by(joins.clone()).build().unwrap();
    Ground { keks, scripted, joins, before, moving }
}

#[tokio::test]
async fn only_the_beginning_of_an_object_comes_through_the_process() {
    let Ground { keks, scripted, joins, before, moving } = ground(Some(LEAST));
    let (path, text) = (Path::from("a/b"), plaintext(3 << 20));
    let attributes = Attributes::from_iter([(Attribute::ContentType, "text/csv")]);
    let options = PutOptions { attributes: attributes.clone(), ..Default::default() };
    let put = before.put_opts(&path, text.clone().into(), options).await.unwrap();
    let id = id_of(&before, &path, &put).await;
    scripted.take_calls();
    assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
    assert_eq!(joins.take_calls(), [END]);
    let calls = scripted.take_calls();
    let asked: Vec<_> = calls.iter().map(|call| (call.operation, call.range.clone())).collect();
    // The head, the first chunks, a last look, and one at what was done.
    let ranges = [0..HEAD, HEAD..END, 0..HEAD, 0..HEAD];
    assert_eq!(asked, ranges.map(|range| ("get", Some(range))));

    let after = keks.after(scripted.clone());
    let got = after.get(&path).await.unwrap();
    assert_eq!(got.attributes, attributes);
    assert!(got.bytes().await.unwrap() == text);
    assert_eq!(after.content_id(&path).await.unwrap(), id);
    let border = END / SEALED_CHUNK * CHUNK;
    for start in border - 2 * CHUNK..border + 2 * CHUNK {
        if start % 511 == 0 {
            let got = after.get_range(&path, start..start + 700).await.unwrap();
            let place = usize::try_from(start).unwrap();
            assert!(got == text[place..place + 700], "{start}");
        }
    }
    let before = keks.before(scripted.clone()).build().unwrap();
    assert_eq!(kind(&get(&before, &path).await.unwrap_err()), Some(ErrorKind::UnknownKek));
    assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Unchanged);
    assert!(joins.take_calls().is_empty());
}

#[tokio::test]
async fn the_beginning_has_whole_chunks_and_something_stays_behind_it() {
    let chunks = (END - HEAD) / SEALED_CHUNK * CHUNK;
    for (least, len, given) in [
        // Just before, at and after the end of the chunks that are needed.
        (Some(LEAST), chunks - 1, None),
        (Some(LEAST), chunks, Some(END)),
        (Some(LEAST), chunks + 1, Some(END)),
        (Some(END), chunks, Some(END)),
        (Some(END + 1), chunks, None),
        (Some(END + 1), chunks + CHUNK, Some(END + SEALED_CHUNK)),
        (Some(0), 100_000, Some(HEAD + SEALED_CHUNK)),
        (Some(0), CHUNK - 1, None),
        (Some(0), CHUNK, Some(HEAD + SEALED_CHUNK)),
        (Some(0), 0, None),
        (Some(u64::MAX), 100_000, None),
        (None, 100_000, None),
    ] {
        let Ground { keks, scripted, joins, before, moving } = ground(least);
        let (path, text) = (Path::from("a"), plaintext(len));
        before.put(&path, text.clone().into()).await.unwrap();
        assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
        assert_eq!(joins.take_calls(), given.into_iter().collect::<Vec<_>>(), "{least:?} {len}");
        assert!(get(&keks.after(scripted.clone()), &path).await.unwrap() == text);
    }
}

#[tokio::test]
async fn where_it_cannot_be_done_the_chunks_come_through_the_process() {
    for answers in [Answers::NotSupported, Answers::NotImplemented] {
        for single_put in [0, 64 << 20] {
            let Ground { keks, scripted, joins, before, .. } = ground(Some(LEAST));
            let moving = keks.moving(scripted.clone()).single_put(single_put);
            let moving = moving.replace_start_by(joins.clone()).build().unwrap();
            let (path, text) = (Path::from("a"), plaintext(100_000));
            before.put(&path, text.clone().into()).await.unwrap();
            joins.answer(answers);
            assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
            assert_eq!(joins.take_calls(), [END]);
            assert!(get(&keks.after(scripted.clone()), &path).await.unwrap() == text);
        }
    }
    // No request can demand a version that has a weak tag, or none.
    for tag in [None, Some("W/\"1\"")] {
        let Ground { keks, scripted, joins, before, moving } = ground(Some(LEAST));
        let (path, text) = (Path::from("a"), plaintext(100_000));
        before.put(&path, text.clone().into()).await.unwrap();
        scripted.script(move |_, call| match call.operation {
            "get" => Act::Change(Arc::new(move |mut answer, bytes| {
                answer.meta.e_tag = tag.map(str::to_owned);
                (answer, bytes)
            })),
            _ => Act::Unconditional,
        });
        assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
        scripted.behave();
        assert!(joins.take_calls().is_empty(), "{tag:?}");
        assert!(get(&keks.after(scripted.clone()), &path).await.unwrap() == text);
    }
}

#[tokio::test]
async fn a_failure_leaves_the_object_and_a_lost_answer_is_found_out() {
    for (answers, is_done) in [
        (Answers::Fails, false),
        (Answers::NotFound, false),
        // A false success.
        (Answers::Idle, false),
        (Answers::Lost, true),
        (Answers::LostAndLate, true),
    ] {
        let Ground { keks, scripted, joins, before, moving } = ground(Some(LEAST));
        let (path, text) = (Path::from("a"), plaintext(100_000));
        before.put(&path, text.clone().into()).await.unwrap();
        joins.answer(answers);
        let done = moving.rewrap(&path).await;
        assert_eq!(joins.take_calls(), [END], "{answers:?}");
        match is_done {
            true => assert_eq!(done.unwrap(), Rewrapped::Changed),
            false => assert!(matches!(done, Err(Error::Generic { .. }))),
        }
        assert!(get(&moving, &path).await.unwrap() == text);
        let after = get(&keks.after(scripted.clone()), &path).await;
        assert_eq!(after.is_ok(), is_done, "{answers:?}");
    }
    // Again and again.
    let Ground { joins, before, moving, .. } = ground(Some(LEAST));
    let (path, text) = (Path::from("a"), plaintext(100_000));
    before.put(&path, text.clone().into()).await.unwrap();
    joins.answer(Answers::Precondition);
    assert!(matches!(moving.rewrap(&path).await, Err(Error::Generic { .. })));
    assert_eq!(joins.take_calls(), [END; 5]);
    assert!(get(&moving, &path).await.unwrap() == text);
    // A panic is the caller's.
    joins.answer(Answers::Panics);
    let (panics, at) = (moving.clone(), path.clone());
    let done = tokio::spawn(async move { panics.rewrap(&at).await }).await;
    assert!(done.unwrap_err().is_panic());
    assert!(get(&moving, &path).await.unwrap() == text);
}

/// After the head was read, after the first chunks were, and after the last look.
#[tokio::test]
async fn an_object_that_others_overwrite_meanwhile_stays_theirs_and_is_rewrapped() {
    for nth in 0..3 {
        let Ground { keks, scripted, joins, before, moving } = ground(Some(LEAST));
        let (path, new) = (Path::from("a"), plaintext(120_000));
        before.put(&path, new.clone().into()).await.unwrap();
        let theirs = scripted.bare().get_opts(&path, Default::default()).await.unwrap();
        let theirs = theirs.bytes().await.unwrap();
        before.put(&path, plaintext(100_000).into()).await.unwrap();
        let (bare, at) = (scripted.clone(), path.clone());
        let overwrite = Act::Then(Arc::new(move || {
            let (bare, at, theirs) = (bare.clone(), at.clone(), theirs.clone());
            Box::pin(async move {
                bare.bare().put_opts(&at, theirs.into(), Default::default()).await.unwrap();
            })
        }));
        scripted.script(move |n, _| if n == nth { overwrite.clone() } else { Act::Pass });
        assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
        scripted.behave();
        assert!(get(&keks.after(scripted.clone()), &path).await.unwrap() == new, "{nth}");
        assert_eq!(joins.take_calls().len(), if nth == 0 { 1 } else { 2 });
    }
}

/// What goes through the process is authenticated, and what does not is not: readers refuse it, as
/// before.
#[tokio::test]
async fn damage_in_the_first_chunks_is_refused_and_damage_behind_stays_what_it_is() {
    for (at, is_noticed) in [(HEAD + 100, true), (END - 1, true), (END, false), (END + 9000, false)]
    {
        let Ground { scripted, joins, before, moving, .. } = ground(Some(LEAST));
        let path = Path::from("a");
        before.put(&path, plaintext(100_000).into()).await.unwrap();
        let bare = scripted.bare();
        let object = bare.get_opts(&path, Default::default()).await.unwrap();
        let mut object = object.bytes().await.unwrap().to_vec();
        object[usize::try_from(at).unwrap()] ^= 1;
        bare.put_opts(&path, object.into(), Default::default()).await.unwrap();
        let done = moving.rewrap(&path).await;
        match is_noticed {
            true => assert_eq!(kind(&done.unwrap_err()), Some(ErrorKind::Invalid)),
            false => assert_eq!(done.unwrap(), Rewrapped::Changed),
        }
        assert_eq!(joins.take_calls().len(), usize::from(!is_noticed));
        assert_eq!(kind(&get(&moving, &path).await.unwrap_err()), Some(ErrorKind::Invalid));
    }
}

#[tokio::test]
async fn a_walk_has_objects_of_both_kinds() {
    let Ground { keks, scripted, joins, before, moving } = ground(Some(LEAST));
    let path = |n: u64| Path::from(format!("{n:02}"));
    let lengths = [10, 100_000, 0, 200_000, LEAST, 60_000];
    for (n, len) in (0..).zip(lengths) {
        before.put(&path(n), plaintext(len).into()).await.unwrap();
    }
    scripted.bare().put_opts(&path(9), "not encrypted".into(), Default::default()).await.unwrap();
    let options = RewrapOptions::default().at_once(3).unverified();
    let done = moving.rewrap_prefix(None, options.clone(), |_| {}).await.unwrap();
    assert_eq!((done.rewrapped, done.unchanged, done.failed), (6, 0, 1));
    assert_eq!(joins.take_calls(), [END; 4]);
    let again = moving.rewrap_prefix(None, options, |_| {}).await.unwrap();
    assert_eq!((again.rewrapped, again.unchanged, again.failed), (0, 6, 1));
    let after = keks.after(scripted.clone());
    for (n, len) in (0..).zip(lengths) {
        assert!(get(&after, &path(n)).await.unwrap() == plaintext(len), "{n}");
    }
}
