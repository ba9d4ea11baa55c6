//! Stores that fail, lie, and serve what was.

use std::collections::HashMap;
use std::sync::Arc;

use crate::version::{Binding, ContentId, ObjectKeys, SealedStore};
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use waxseal::kek::local::LocalKek;
use waxseal::kek::{KekErrorClass, scripted::ScriptedKek};
use waxseal::{EncryptionContext, Envelope, ErrorKind};

use super::ground::*;
use super::scripted::{Act, Scripted};

type Sealed = SealedStore<Scripted>;

/// A read of some kind: what it gave before its end or failure, and whether it ended well.
async fn read(sealed: &Sealed, path: &Path, how: usize) -> (Vec<u8>, object_store::Result<()>) {
    let range = match how {
        0 => None,
        1 => Some(GetRange::Bounded(5000..9000)),
        2 => Some(GetRange::Offset(9000)),
        3 => Some(GetRange::Suffix(5000)),
        _ => {
            return match sealed.get_ranges(path, &[0..10, 5000..6000, 9990..10_000]).await {
                Ok(parts) => (parts.concat(), Ok(())),
                Err(error) => (Vec::new(), Err(error)),
            };
        }
    };
    let mut got = Vec::new();
    let result = match sealed.get_opts(path, GetOptions::new().with_range(range)).await {
        Err(error) => Err(error),
        Ok(result) => {
            let gather = |bytes: Bytes| {
                got.extend_from_slice(&bytes);
                async { Ok(()) }
            };
            result.into_stream().try_for_each(gather).await
        }
    };
    (got, result)
}

const WAYS: usize = 5;

fn expected(plaintext: &[u8], how: usize) -> Vec<u8> {
    match how {
        0 => plaintext.to_vec(),
        1 => plaintext[5000..9000].to_vec(),
        2 => plaintext[9000..].to_vec(),
        3 => plaintext[plaintext.len() - 5000..].to_vec(),
        _ => [&plaintext[..10], &plaintext[5000..6000], &plaintext[9990..10_000]].concat(),
    }
}

struct World {
    scripted: Scripted,
    sealed: Sealed,
    keys: ObjectKeys,
    binding: Binding,
    path: Path,
    plaintext: Vec<u8>,
}

async fn world() -> World {
    world_with(Binding::Path).await
}

async fn world_with(binding: Binding) -> World {
    let (scripted, keys) = (Scripted::new(InMemory::new()), keys());
    let sealed = store(&scripted, &keys, binding);
    let (path, plaintext) = (Path::from("a/b"), plaintext(10_000));
    sealed.put(&path, plaintext.clone().into()).await.unwrap();
    World { scripted, sealed, keys, binding, path, plaintext }
}

/// With nothing in its cache.
fn store(scripted: &Scripted, keys: &ObjectKeys, binding: Binding) -> Sealed {
    let store = SealedStore::builder(scripted.clone(), keys.clone());
    store.binding(binding).chunk_size(4096).build().unwrap()
}

impl World {
    /// Reads in every way, cold and then warm, while the store changes the bytes of its n-th
    /// answer. What comes is never another thing than the plaintext, and the end is never reported
    /// for less than it.
    async fn meddle(&self, act: impl Fn() -> Act, what: &str) -> usize {
        let mut refused = 0;
        for how in 0..WAYS {
            for nth in 0..3 {
                for is_warm in [false, true] {
                    let sealed = self.fresh();
                    if is_warm {
                        self.scripted.behave();
                        sealed.get_range(&self.path, 0..1).await.unwrap();
                    }
                    let act = act();
                    self.scripted
                        .script(move |n, _| if n == nth { act.clone() } else { Act::Pass });
                    let (got, result) = read(&sealed, &self.path, how).await;
                    let expected = expected(&self.plaintext, how);
                    let at = format!("{what}, way {how}, answer {nth}, warm {is_warm}");
                    assert!(expected.starts_with(&got), "{at}");
                    match result {
                        Ok(()) => assert!(got == expected, "{at}: cut"),
                        Err(_) => refused += 1,
                    }
                    // It does not stay so.
                    self.scripted.behave();
                    let (got, result) = read(&sealed, &self.path, how).await;
                    assert!(result.is_ok() && got == expected, "{at}: afterwards {result:?}");
                }
            }
        }
        refused
    }

    /// The same store with nothing in its cache.
    fn fresh(&self) -> Sealed {
        store(&self.scripted, &self.keys, self.binding)
    }
}

#[tokio::test]
async fn no_changed_bit_gets_through() {
    let world = world().await;
    let len = HEAD + 10_000 + 3 * 16;
    // Every byte of the head that is not room, and samples of the chunks.
    let samples = (0..HEAD).step_by(3).chain((HEAD..len).step_by(311)).chain([len - 1]);
    for at in samples {
        let at = usize::try_from(at).unwrap();
        let flip = move |bytes: &mut Vec<u8>| {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (at % 8);
            }
        };
        world.meddle(move || Act::bytes(flip), &format!("byte {at}")).await;
    }
    // Within chunks that are fetched separately.
    for at in [0, 1, 4095, 4096, 4111] {
        let flip = move |bytes: &mut Vec<u8>| {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x80;
            }
        };
        let what = format!("byte {at} of an answer");
        assert!(world.meddle(move || Act::bytes(flip), &what).await >= WAYS, "{at}");
    }
}

#[tokio::test]
async fn a_short_or_broken_answer_is_no_end() {
    let world = world().await;
    let sealed = usize::try_from(SEALED_CHUNK).unwrap();
    let head = 1024;
    for cut in [
        0,
        1,
        47,
        48,
        104,
        head - 1,
        head,
        head + 1,
        head + sealed - 1,
        head + sealed,
        head + sealed + 1,
        head + 2 * sealed,
        head + 10_000 + 47,
        sealed,
        sealed - 16,
    ] {
        let refused = world.meddle(move || Act::Break(cut), &format!("broken after {cut}")).await;
        assert!(refused > 0);
        let shorter = move || Act::bytes(move |bytes| bytes.truncate(cut));
        let refused = world.meddle(shorter, &format!("cut after {cut}")).await;
        assert!(refused > 0);
    }
    let longer = || Act::bytes(|bytes| bytes.push(0));
    assert!(world.meddle(longer, "longer").await > 0);
    let longer = || Act::bytes(|bytes| bytes.extend_from_slice(&bytes.clone()));
    assert!(world.meddle(longer, "twice").await > 0);
    assert!(world.meddle(|| Act::Fail, "failing").await > 0);
    assert!(world.meddle(|| Act::Lose, "lost").await > 0);
}

/// Truncated and extended in the store itself, so that all its answers agree.
#[tokio::test]
async fn an_object_that_was_cut_or_extended_in_the_store_is_refused_where_its_end_is_read() {
    let World { scripted, sealed, path, plaintext, .. } = world().await;
    let object = get_bare(&scripted, &path).await;
    let cut_at = [0, 500, 1024, 1024 + 16, 1024 + 4112, 1024 + 4112 + 16, object.len() - 1];
    let cut = cut_at.map(|at| object.slice(..at));
    let extended = [&object[..], &object[1024..1024 + 4112]].concat();
    let swapped = {
        let mut chunks = object.to_vec();
        let (first, second) = chunks[1024..1024 + 2 * 4112].split_at_mut(4112);
        first.swap_with_slice(second);
        chunks
    };
    let others =
        [extended, swapped.clone(), b"plain text, as it was before".to_vec(), object.repeat(2)];
    for object in cut.into_iter().chain(others.map(Bytes::from)) {
        let (len, is_swapped) = (object.len(), object == swapped);
        scripted.bare().put_opts(&path, object.into(), Default::default()).await.unwrap();
        for how in [0, 2, 3] {
            let (got, result) = read(&sealed, &path, how).await;
            // What was exchanged is not in these parts.
            let is_untouched = how != 0 && is_swapped && got == expected(&plaintext, how);
            assert!(result.is_err() || is_untouched, "{len}, way {how}");
            // Of a suffix another part may come before the failure: it counts from what the store
            // says.
            assert!(how == 3 || expected(&plaintext, how).starts_with(&got), "{len}, way {how}");
        }
        // A part in the middle is authenticated without the rest, or refused.
        let (got, result) = read(&sealed, &path, 1).await;
        assert!(result.is_err() || got == plaintext[5000..9000]);
        assert!(expected(&plaintext, 1).starts_with(&got));
    }
}

async fn get_bare(scripted: &Scripted, path: &Path) -> Bytes {
    scripted.bare().get_opts(path, GetOptions::new()).await.unwrap().bytes().await.unwrap()
}

/// What a store that keeps versions can do, with answers of any version to any request.
#[tokio::test]
async fn an_older_head_or_body_gives_an_older_object_or_an_error_and_never_a_mix() {
    for binding in [Binding::Path, Binding::Nothing] {
        let world = world_with(binding).await;
        let World { scripted, sealed, path, .. } = &world;
        let new: Vec<u8> = world.plaintext.iter().map(|byte| byte ^ 0xFF).collect();
        let old_object = get_bare(scripted, path).await;
        sealed.put(path, new.clone().into()).await.unwrap();
        let new_object = get_bare(scripted, path).await;
        assert_eq!(old_object.len(), new_object.len());
        let (mut mixed, mut olds, mut errors) = (0, 0, 0);
        // Each of the first three answers is old or new, and says that it is the new one, or what
        // it is.
        for which in 0..8_usize {
            for honest_tags in [false, true] {
                for how in 0..WAYS {
                    let sealed = world.fresh();
                    let old_object = old_object.clone();
                    scripted.script(move |n, _| {
                        let (old_object, is_old) = (old_object.clone(), which >> n.min(2) & 1 == 1);
                        match is_old {
                            false => Act::Pass,
                            true => Act::Change(Arc::new(move |mut result, _| {
                                if honest_tags {
                                    result.meta.e_tag = Some("\"old\"".to_owned());
                                }
                                let at = |at: u64| usize::try_from(at).unwrap();
                                let range = at(result.range.start)..at(result.range.end);
                                (result, old_object[range].to_vec())
                            })),
                        }
                    });
                    let (got, result) = read(&sealed, path, how).await;
                    let (as_old, as_new) = (expected(&world.plaintext, how), expected(&new, how));
                    assert!(as_old.starts_with(&got) || as_new.starts_with(&got), "a mix");
                    match result {
                        Ok(()) if got == as_old => olds += 1,
                        Ok(()) => assert!(got == as_new),
                        Err(_) => errors += 1,
                    }
                    mixed += usize::from(which != 0 && which != 7);
                }
            }
        }
        assert!(olds > 0 && errors > 0 && mixed > 0, "{olds} {errors} {mixed}");
    }
}

#[tokio::test]
async fn what_is_overwritten_between_the_requests_of_a_read_is_read_anew() {
    let world = world().await;
    let World { scripted, sealed, path, plaintext, .. } = &world;
    let old_object = get_bare(scripted, path).await;
    let new: Vec<u8> = plaintext.iter().map(|byte| byte ^ 0xFF).chain([1; 5000]).collect();
    sealed.put(path, new.clone().into()).await.unwrap();
    let new_object = get_bare(scripted, path).await;
    let put = async |object: &Bytes| {
        let object = object.clone().into();
        scripted.bare().put_opts(path, object, Default::default()).await.unwrap();
    };
    for how in 0..WAYS {
        // Before a warm read: what it knows is out of date.
        let sealed = world.fresh();
        put(&old_object).await;
        sealed.get_range(path, 0..1).await.unwrap();
        put(&new_object).await;
        let (got, result) = read(&sealed, path, how).await;
        result.unwrap();
        assert!(got == expected(&new, how), "way {how}, warm");

        // As the first answer of a cold one has left the store.
        let sealed = world.fresh();
        put(&old_object).await;
        let (bare, path, object) = (scripted.clone(), path.clone(), new_object.clone());
        let overwrite = Act::Then(Arc::new(move || {
            let (bare, path, object) = (bare.clone(), path.clone(), object.clone());
            Box::pin(async move {
                bare.bare().put_opts(&path, object.into(), Default::default()).await.unwrap();
            })
        }));
        scripted.script(move |n, _| if n == 0 { overwrite.clone() } else { Act::Pass });
        let (got, result) = read(&sealed, &world.path, how).await;
        result.unwrap();
        // A whole object is one answer.
        let of = if how == 0 { plaintext } else { &new };
        assert!(got == expected(of, how), "way {how}, cold");
        scripted.behave();
    }
    // Without end: it gives up.
    let n = std::sync::atomic::AtomicUsize::new(0);
    scripted.script(move |_, _| {
        let n = n.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Act::Change(Arc::new(move |mut result, bytes| {
            result.meta.e_tag = Some(format!("\"{n}\""));
            (result, bytes)
        }))
    });
    let error = read(&world.fresh(), path, 1).await.1.unwrap_err();
    assert!(error.to_string().contains("again and again"), "{error}");
}

/// A head in memory says nothing about what another process wrote since.
#[tokio::test]
async fn a_content_id_is_looked_for_in_the_store_before_it_is_refused() {
    let (scripted, keys) = (Scripted::new(InMemory::new()), keys());
    let path = Path::from("a");
    let [reader, writer] = [(); 2].map(|()| store(&scripted, &keys, Binding::Path));
    writer.put(&path, "old".into()).await.unwrap();
    assert_eq!(reader.get_range(&path, 0..3).await.unwrap(), "old");
    let put = writer.put(&path, "new".into()).await.unwrap();
    let id = id_of(&writer, &path, &put).await;
    let demanding = |id: ContentId| {
        let mut options = GetOptions::new().with_range(Some(0..3));
        options.extensions.insert(id);
        options
    };
    let got = reader.get_opts(&path, demanding(id)).await.unwrap();
    assert_eq!(got.bytes().await.unwrap(), "new");
    // Of what is not there, the refusal comes out.
    for _ in 0..2 {
        let other = ContentId::from_bytes([7; 32]);
        let error = reader.get_opts(&path, demanding(other)).await.unwrap_err();
        assert!(matches!(error, object_store::Error::Precondition { .. }), "{error}");
    }
}

/// Another process rewrapped the object, and then its old KEK was disabled.
#[tokio::test]
async fn a_denial_of_wrapped_keys_that_were_replaced_is_not_the_answer() {
    let (old, new) = (ScriptedKek::new("old").unwrap(), LocalKek::in_memory("new").unwrap());
    let scripted = Scripted::new(InMemory::new());
    let path = Path::from("a");
    let writing = Envelope::builder().wrap_with(old.clone()).build().unwrap();
    let writer = store(&scripted, &ObjectKeys::new(writing, context()), Binding::Path);
    writer.put(&path, "text".into()).await.unwrap();
    let moving = || {
        let envelope = Envelope::builder().wrap_with(new.clone()).unwrap_with(old.clone());
        envelope.build().unwrap()
    };
    for by_ranges in [false, true] {
        let envelope = moving();
        let reader = store(&scripted, &ObjectKeys::new(envelope.clone(), context()), Binding::Path);
        old.fail_with(None);
        writer.put(&path, "text".into()).await.unwrap();
        reader.get_range(&path, 0..1).await.unwrap();
        let other = store(&scripted, &ObjectKeys::new(moving(), context()), Binding::Path);
        other.rewrap(&path).await.unwrap();
        old.fail_with(KekErrorClass::Denied);
        envelope.evict_all();
        let part = match by_ranges {
            false => reader.get_range(&path, 1..3).await.unwrap(),
            true => reader.get_ranges(&path, &[1..3, 0..1]).await.unwrap().remove(0),
        };
        assert_eq!(part, "ex", "{by_ranges}");
    }
}

/// Two objects exchanged: the binding decides.
#[tokio::test]
async fn an_object_in_place_of_another_is_refused_where_the_aad_binds_it() {
    for (binding, a, b, is_refused) in [
        (Binding::Path, "x/1", "x/2", true),
        (Binding::Path, "x/1", "y/1", true),
        (Binding::FileName, "x/1", "x/2", true),
        (Binding::FileName, "x/1", "y/1", false),
        (Binding::Nothing, "x/1", "x/2", false),
    ] {
        let scripted = Scripted::new(InMemory::new());
        let sealed = builder(scripted.clone()).binding(binding).build().unwrap();
        let (a, b) = (Path::from(a), Path::from(b));
        let put = sealed.put(&a, "of a".into()).await.unwrap();
        sealed.put(&b, "of b".into()).await.unwrap();
        let ids = id_of(&sealed, &a, &put).await;
        scripted.bare().copy_opts(&b, &a, Default::default()).await.unwrap();
        let got = get(&sealed, &a).await;
        match is_refused {
            true => assert_eq!(kind(&got.unwrap_err()), Some(ErrorKind::Invalid), "{binding:?}"),
            false => assert_eq!(got.unwrap(), "of b", "{binding:?}"),
        }
        // A reader that requires an id gets that object or nothing, with any binding.
        for range in [None, Some(GetRange::Bounded(0..2))] {
            for head in [false, true] {
                let options = GetOptions::new().with_range(range.clone()).with_head(head);
                let with = |id| {
                    let mut options = options.clone();
                    options.extensions.insert(id);
                    options
                };
                let refused = sealed.get_opts(&a, with(ids)).await.unwrap_err();
                let text = "another content id";
                assert!(is_refused || refused.to_string().contains(text), "{refused}");
                let there = sealed.get_opts(&b, options.clone()).await.unwrap();
                let id = sealed.content_id(&b).await.unwrap();
                assert!(crate::told_by_get(&there).is_none_or(|told| told == id));
                assert!(sealed.get_opts(&b, with(id)).await.is_ok());
                assert!(id != ids && ContentId::from_bytes(*id.as_bytes()) == id);
            }
        }
    }
}

#[tokio::test]
async fn contexts_and_envelopes_go_by_the_path() {
    let scripted = Scripted::new(InMemory::new());
    let (orders, rest) = (envelope(), envelope());
    let by_path = move |path: &Path| {
        let customer = path.parts().next().map(|part| part.as_ref().to_owned());
        let customer = customer.filter(|it| it != "nobody").ok_or_else(|| {
            waxseal::Error::new(ErrorKind::InvalidContext, "no customer in the path")
        })?;
        let context = EncryptionContext::new([("customer", &*customer)])?;
        let envelope = if customer == "orders" { &orders } else { &rest };
        Ok(ObjectKeys::new(envelope.clone(), context))
    };
    let sealed = SealedStore::builder_by_path(scripted.clone(), by_path);
    let sealed = sealed.binding(Binding::Nothing).build().unwrap();
    let paths = ["acme/a", "acme/b", "bolt/a", "orders/a"].map(Path::from);
    for path in &paths {
        sealed.put(path, path.to_string().into()).await.unwrap();
    }
    for from in &paths {
        for to in &paths {
            let stash = get_bare(&scripted, to).await;
            scripted.bare().copy_opts(from, to, Default::default()).await.unwrap();
            let is_same_customer = from.parts().next() == to.parts().next();
            assert_eq!(get(&sealed, to).await.is_ok(), is_same_customer, "{from} in place of {to}");
            scripted.bare().put_opts(to, stash.into(), Default::default()).await.unwrap();
        }
    }
    let error = sealed.put(&Path::from("nobody/a"), "text".into()).await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorKind::InvalidContext));
    // Between customers, an object is encrypted again.
    sealed.copy(&paths[0], &paths[3]).await.unwrap();
    assert_eq!(get(&sealed, &paths[3]).await.unwrap(), "acme/a");
}

/// Objects of another layout, and those that were not encrypted.
#[tokio::test]
async fn what_this_store_did_not_write_is_refused_and_named() {
    let scripted = Scripted::new(InMemory::new());
    let keys = keys();
    let store = |chunk, head| {
        let store = SealedStore::builder(scripted.clone(), keys.clone());
        store.chunk_size(chunk).head_len(head).build().unwrap()
    };
    let sealed = store(4096, 1024);
    let objects: HashMap<_, _> = [(8192, 1024), (4096, 2048), (4096, 512)]
        .map(|layout| (layout, Path::from(format!("{}-{}", layout.0, layout.1))))
        .into();
    for ((chunk, head), path) in &objects {
        store(*chunk, *head).put(path, plaintext(3000).into()).await.unwrap();
        for how in 0..4 {
            let error = read(&sealed, path, how).await.1.unwrap_err();
            assert!(error.to_string().contains(&path.to_string()), "{error}");
        }
        let error = sealed.head(path).await.unwrap_err();
        assert!(kind(&error).is_some(), "{error}");
    }
    let plain = Path::from("plain");
    scripted.bare().put_opts(&plain, "text".into(), Default::default()).await.unwrap();
    assert_eq!(kind(&get(&sealed, &plain).await.unwrap_err()), Some(ErrorKind::NotSealed));
    let listed: Vec<_> = futures_util::StreamExt::collect(sealed.list(None)).await;
    let named: Vec<_> = listed.iter().filter_map(|it| it.as_ref().err()).collect();
    assert!(named.iter().any(|error| error.to_string().contains("plain")), "{named:?}");
    assert!(sealed.list_with_delimiter(None).await.is_err());
}
