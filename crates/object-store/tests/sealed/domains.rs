//! Data domains: an object that was written through the store of one domain cannot be read through
//! that of another, in any way, even if both domains share everything that they can.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use crate::version::{Binding, ObjectKeys, RewrapOptions, SealedStore};
use futures_util::future::LocalBoxFuture;
use futures_util::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use waxseal::domain::{Branches, Domain, DomainConfig, Domains, Schemes};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::scripted::ScriptedStore;
use waxseal::{Caller, EncryptionContext, ErrorKind};

use super::ground::*;
use super::scripted::Scripted;

const LEN: u64 = 10_000;
const BINDINGS: [Binding; 3] = [Binding::Path, Binding::FileName, Binding::Nothing];

type Sealed = SealedStore<Scripted>;
/// Reads an object, or does something with it and reads what came of it.
type Way = for<'a> fn(&'a Sealed, &'a Path) -> LocalBoxFuture<'a, Result<Vec<u8>, ErrorKind>>;

/// The domains `orders` and `billing` with one configuration.
struct World {
    kek: ScriptedKek,
    domains: Domains,
    orders: Domain,
    billing: Domain,
}

impl World {
    async fn new(config: &DomainConfig) -> Self {
        let (kek, store) = (ScriptedKek::new("shared").unwrap(), ScriptedStore::in_memory());
        let shared = kek.clone();
        let schemes = Schemes::default()
            .kek("kek", move |_| std::future::ready(Ok(shared.clone())))
            .store("store", move |_| std::future::ready(Ok(store.clone())));
        let config = config.clone().wrap_with("kek:shared");
        let domains = Domains::builder().schemes(schemes).route_by("folder");
        let domains = domains.domain("orders", config.clone()).domain("billing", config);
        let domains = domains.build().await.unwrap();
        let [orders, billing] = ["orders", "billing"].map(|name| domains.domain(name).unwrap());
        Self { kek, domains, orders, billing }
    }

    /// A store whose folders are domains.
    fn by_folder(&self, bucket: &Scripted, binding: Binding) -> Sealed {
        let domains = self.domains.clone();
        let keys = move |path: &Path| {
            let folder = path.parts().next();
            let folder = folder.as_ref().map_or("", AsRef::as_ref);
            let context = domains.context([("folder", folder), ("tenant", "alice")])?;
            Ok(ObjectKeys::new(domains.envelope_for(&context)?, context))
        };
        let sealed = SealedStore::builder_by_path(bucket.clone(), keys).binding(binding);
        sealed.chunk_size(4096).build().unwrap()
    }
}

fn alice(domain: &Domain) -> EncryptionContext {
    domain.context([("folder", domain.name()), ("tenant", "alice")]).unwrap()
}

/// The store of one domain, in a context that may be another's.
fn store(at: &Domain, context: EncryptionContext, bucket: &Scripted, binding: Binding) -> Sealed {
    let keys = ObjectKeys::new(at.envelope().clone(), context);
    let sealed = SealedStore::builder(bucket.clone(), keys).binding(binding);
    sealed.chunk_size(4096).build().unwrap()
}

fn bucket() -> Scripted {
    Scripted::new(InMemory::new())
}

async fn bytes_of(bucket: &Scripted, path: &Path) -> Vec<u8> {
    bucket.bare().get_opts(path, GetOptions::new()).await.unwrap().bytes().await.unwrap().to_vec()
}

/// From one shared KEK to everything in common.
fn configurations() -> [(&'static str, DomainConfig); 5] {
    let shared = DomainConfig::default;
    let named = || Branches::per(["tenant"]).name("common");
    let with_branches = shared().store("store:shared").branches(named());
    [
        ("KEK", shared()),
        ("KEK and store", shared().store("store:shared")),
        ("branch and store", with_branches.clone()),
        ("branch, store and rows of DEKs", with_branches.keep_deks(true)),
        ("branch without a store", shared().branches(named().self_contained())),
    ]
}

fn kind_of(error: object_store::Error) -> ErrorKind {
    kind(&error).unwrap_or_else(|| panic!("{error}"))
}

/// Reads a body as it comes. Of what is refused nothing has come before.
async fn read(store: &Sealed, path: &Path, options: GetOptions) -> Result<Vec<u8>, ErrorKind> {
    let mut body = store.get_opts(path, options).await.map_err(kind_of)?.into_stream();
    let mut read = Vec::new();
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) => read.extend_from_slice(&piece),
            Err(error) => {
                assert!(read.is_empty(), "{} bytes came before {error}", read.len());
                return Err(kind_of(error));
            }
        }
    }
    Ok(read)
}

async fn tag(store: &Sealed, path: &Path) -> Option<String> {
    let tag = store.head(path).await.unwrap().e_tag;
    assert!(tag.is_some());
    tag
}

/// In the same folder, and with the same name, so that the store itself moves it if it may.
fn elsewhere(path: &Path) -> Path {
    let parts: Vec<_> = path.parts().collect();
    let (name, folder) = parts.split_last().unwrap();
    let folder = folder.iter().map(|part| part.as_ref());
    Path::from_iter(folder.chain(["elsewhere", name.as_ref()]))
}

async fn read_elsewhere(store: &Sealed, path: &Path) -> Result<Vec<u8>, ErrorKind> {
    read(store, &elsewhere(path), GetOptions::new()).await
}

async fn rewrapped(
    store: &Sealed,
    path: &Path,
    options: RewrapOptions,
) -> Result<Vec<u8>, ErrorKind> {
    let folder = Path::from_iter(path.parts().take(1));
    let mut failed = None;
    let report = |so_far: &crate::version::RewrapProgress| {
        failed = so_far.failures.first().map(|(_, error)| kind(error).unwrap());
    };
    store.rewrap_prefix(Some(&folder), options, report).await.map_err(kind_of)?;
    match failed {
        Some(kind) => Err(kind),
        None => read(store, path, GetOptions::new()).await,
    }
}

fn caller() -> Caller {
    Caller::builder().service("billing").build().unwrap()
}

/// The text after the name of the method and a comma distinguishes its uses. With it, the part of
/// the object that is read.
fn ways() -> Vec<(&'static str, Range<u64>, Way)> {
    let ways: &[(&str, Range<u64>, Way)] = &[
        ("get_opts", 0..LEN, |store, path| Box::pin(read(store, path, GetOptions::new()))),
        ("get_opts, at once", 0..LEN, |store, path| {
            Box::pin(async { Ok(get(store, path).await.map_err(kind_of)?.to_vec()) })
        }),
        ("get_opts, a range", 4000..5000, |store, path| {
            Box::pin(read(store, path, GetOptions::new().with_range(Some(4000..5000))))
        }),
        ("get_opts, a range by the short way", 4000..4100, |store, path| {
            Box::pin(async {
                Ok(store.get_range(path, 4000..4100).await.map_err(kind_of)?.to_vec())
            })
        }),
        ("get_opts, from an offset", 9000..LEN, |store, path| {
            Box::pin(read(store, path, GetOptions::new().with_range(Some(GetRange::Offset(9000)))))
        }),
        ("get_opts, a suffix", LEN - 10..LEN, |store, path| {
            Box::pin(read(store, path, GetOptions::new().with_range(Some(GetRange::Suffix(10)))))
        }),
        ("get_opts, if it matches", 0..LEN, |store, path| {
            Box::pin(async {
                let if_match = tag(store, path).await;
                read(store, path, GetOptions { if_match, ..GetOptions::new() }).await
            })
        }),
        ("get_opts, a range if it matches", 0..1, |store, path| {
            Box::pin(async {
                let options = GetOptions { if_match: tag(store, path).await, ..GetOptions::new() };
                read(store, path, options.with_range(Some(0..1))).await
            })
        }),
        ("get_opts, if it is another", 0..LEN, |store, path| {
            let if_none_match = Some("\"none\"".to_owned());
            Box::pin(read(store, path, GetOptions { if_none_match, ..GetOptions::new() }))
        }),
        ("get_opts, if it is newer", 0..LEN, |store, path| {
            let if_modified_since = Some(SystemTime::UNIX_EPOCH.into());
            Box::pin(read(store, path, GetOptions { if_modified_since, ..GetOptions::new() }))
        }),
        ("get_opts, if it is older", 0..LEN, |store, path| {
            let later = SystemTime::now() + Duration::from_secs(3600);
            let if_unmodified_since = Some(later.into());
            Box::pin(read(store, path, GetOptions { if_unmodified_since, ..GetOptions::new() }))
        }),
        ("get_opts, with its content id", 0..LEN, |store, path| {
            Box::pin(async {
                let mut options = GetOptions::new();
                options.extensions.insert(store.content_id(path).await.unwrap());
                read(store, path, options).await
            })
        }),
        ("get_opts, for a caller", 0..LEN, |store, path| {
            Box::pin(async { read(&store.acting_for(&caller()), path, GetOptions::new()).await })
        }),
        ("get_ranges", 4000..5000, |store, path| {
            Box::pin(async {
                let parts = store.get_ranges(path, &[4000..4500, 4500..5000]).await;
                Ok(parts.map_err(kind_of)?.concat())
            })
        }),
        ("get_ranges, for a caller", 0..1, |store, path| {
            Box::pin(async {
                let parts = store
                    .acting_for(&caller())
                    .get_ranges(path, std::slice::from_ref(&(0..1)))
                    .await;
                Ok(parts.map_err(kind_of)?.concat())
            })
        }),
        ("copy_opts", 0..LEN, |store, path| {
            Box::pin(async {
                store.copy(path, &elsewhere(path)).await.map_err(kind_of)?;
                read_elsewhere(store, path).await
            })
        }),
        ("copy_opts, to where nothing is", 0..LEN, |store, path| {
            Box::pin(async {
                store.copy_if_not_exists(path, &elsewhere(path)).await.map_err(kind_of)?;
                read_elsewhere(store, path).await
            })
        }),
        ("rename_opts", 0..LEN, |store, path| {
            Box::pin(async {
                store.rename(path, &elsewhere(path)).await.map_err(kind_of)?;
                read_elsewhere(store, path).await
            })
        }),
        ("rename_opts, to where nothing is", 0..LEN, |store, path| {
            Box::pin(async {
                store.rename_if_not_exists(path, &elsewhere(path)).await.map_err(kind_of)?;
                read_elsewhere(store, path).await
            })
        }),
        ("rewrap", 0..LEN, |store, path| {
            Box::pin(async {
                store.rewrap(path).await.map_err(kind_of)?;
                read(store, path, GetOptions::new()).await
            })
        }),
        ("rewrap_prefix", 0..LEN, |store, path| {
            Box::pin(rewrapped(store, path, RewrapOptions::default()))
        }),
        ("rewrap_prefix, unverified", 0..LEN, |store, path| {
            Box::pin(rewrapped(store, path, RewrapOptions::default().unverified()))
        }),
    ];
    ways.to_vec()
}

/// How an object of `orders` came to where `billing` reads.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Case {
    /// Both write to one bucket.
    OneBucket,
    /// Instead of one of `billing`'s own, of which head and DEK are in memory.
    InPlaceOfOwn,
    /// The same, but only its chunks, after the head of `billing`'s own object.
    BehindOwnHead,
    /// Moved from folder to folder of one store, whose folders are domains.
    OtherFolder,
    /// `billing` is given the context of `orders`.
    InItsContext,
}

/// The store that reads, where the object is then, and the store that may read it.
async fn arranged(case: Case, world: &World, binding: Binding) -> (Sealed, Path, Sealed) {
    let World { orders, billing, .. } = world;
    let (bucket, at) = (bucket(), Path::from("billing/1"));
    let theirs = store(orders, alice(orders), &bucket, binding);
    let mut ours = store(billing, alice(billing), &bucket, binding);
    match case {
        Case::OneBucket => {
            billing.envelope().evict_all();
            theirs.put(&at, plaintext(LEN).into()).await.unwrap();
        }
        Case::InPlaceOfOwn | Case::BehindOwnHead => {
            ours.put(&at, vec![7; LEN.try_into().unwrap()].into()).await.unwrap();
            assert_eq!(ours.get_range(&at, 0..1).await.unwrap(), [7][..]);
            let own = bytes_of(&bucket, &at).await;
            theirs.put(&at, plaintext(LEN).into()).await.unwrap();
            if case == Case::BehindOwnHead {
                let head = usize::try_from(HEAD).unwrap();
                let chunks = &bytes_of(&bucket, &at).await[head..];
                let spliced = [&own[..head], chunks].concat();
                bucket.bare().put_opts(&at, spliced.into(), Default::default()).await.unwrap();
            }
        }
        Case::OtherFolder => {
            ours = world.by_folder(&bucket, binding);
            let from = Path::from("orders/1");
            ours.put(&from, plaintext(LEN).into()).await.unwrap();
            bucket.bare().rename_opts(&from, &at, Default::default()).await.unwrap();
        }
        Case::InItsContext => {
            theirs.put(&at, plaintext(LEN).into()).await.unwrap();
            ours = store(billing, alice(orders), &bucket, binding);
        }
    }
    (ours, at, theirs)
}

#[tokio::test]
async fn no_way_to_read_opens_what_another_domain_wrote() {
    let cases = [
        Case::OneBucket,
        Case::InPlaceOfOwn,
        Case::BehindOwnHead,
        Case::OtherFolder,
        Case::InItsContext,
    ];
    for (what, config) in configurations() {
        let world = World::new(&config).await;
        for (binding, (name, part, way)) in
            BINDINGS.into_iter().flat_map(|binding| ways().into_iter().map(move |it| (binding, it)))
        {
            let part = usize::try_from(part.start).unwrap()..usize::try_from(part.end).unwrap();
            // The control: it reads what is its own domain's.
            let own = store(&world.billing, alice(&world.billing), &bucket(), binding);
            let at = Path::from("billing/1");
            own.put(&at, plaintext(LEN).into()).await.unwrap();
            let opened = way(&own, &at).await;
            let opened = opened.unwrap_or_else(|kind| panic!("{what}, {name}: {kind:?}"));
            assert!(opened == plaintext(LEN)[part], "{what}, {binding:?}, {name}");

            for case in cases {
                let place = format!("{what}, {binding:?}, {name}, {case:?}");
                let (ours, at, theirs) = arranged(case, &world, binding).await;
                // So that a rewrap has something to do.
                world.kek.local().rotate().unwrap();
                let kind = way(&ours, &at).await.expect_err(&place);
                let expected = match case {
                    Case::InItsContext => ErrorKind::InvalidContext,
                    _ => ErrorKind::Invalid,
                };
                assert_eq!(kind, expected, "{place}");
                // Its own domain still opens it, wherever it is now, unless its path is bound.
                let mut rightful = read_if_there(&theirs, &at).await;
                if rightful.is_none() {
                    rightful = read_if_there(&theirs, &elsewhere(&at)).await;
                }
                let is_broken = case == Case::BehindOwnHead
                    || case == Case::OtherFolder && binding == Binding::Path;
                let expected = if is_broken { Err(ErrorKind::Invalid) } else { Ok(plaintext(LEN)) };
                assert!(rightful == Some(expected), "{place}: {rightful:?}");
            }
        }
    }
}

async fn read_if_there(store: &Sealed, path: &Path) -> Option<Result<Vec<u8>, ErrorKind>> {
    let is_there = store.inner().bare().get_opts(path, GetOptions::new()).await.is_ok();
    if is_there { Some(read(store, path, GetOptions::new()).await) } else { None }
}

/// Sizes, times and ids are those of the bucket: they need no key, and reveal nothing about the
/// content.
#[tokio::test]
async fn what_needs_no_key_tells_another_domain_what_the_bucket_tells_and_no_more() {
    let world = World::new(&DomainConfig::default()).await;
    for case in [Case::OneBucket, Case::InPlaceOfOwn, Case::OtherFolder, Case::InItsContext] {
        let (ours, at, theirs) = arranged(case, &world, Binding::Nothing).await;
        let before = world.kek.calls();
        let folder = Path::from_iter(at.parts().take(1));
        let head =
            ours.get_opts(&at, GetOptions { head: true, ..GetOptions::new() }).await.unwrap();
        let mut told = vec![head.meta.clone()];
        assert!(head.bytes().await.unwrap().is_empty());
        told.push(ours.head(&at).await.unwrap());
        told.extend(ours.list(Some(&folder)).try_collect::<Vec<_>>().await.unwrap());
        let offset = Path::from("a");
        told.extend(ours.list_with_offset(None, &offset).try_collect::<Vec<_>>().await.unwrap());
        told.extend(ours.list_with_delimiter(Some(&folder)).await.unwrap().objects);
        assert_eq!(told.len(), 5, "{case:?}");
        assert!(told.iter().all(|meta| (&meta.location, meta.size) == (&at, LEN)), "{told:?}");
        let id = ours.content_id(&at).await.unwrap();
        assert_eq!(id, theirs.content_id(&at).await.unwrap());
        assert_eq!(world.kek.calls(), before, "a KEK was asked");
    }
}

/// Nothing is written before the envelope has refused.
#[tokio::test]
async fn no_store_writes_in_a_context_of_another_domain() {
    for (what, config) in configurations() {
        let world = World::new(&config).await;
        let World { orders, billing, .. } = &world;
        let bucket = bucket();
        let (envelope, own, other) = (billing.envelope().clone(), alice(billing), alice(orders));
        let keys = move |path: &Path| {
            let context = if path.as_ref().starts_with("own") { &own } else { &other };
            Ok(ObjectKeys::new(envelope.clone(), context.clone()))
        };
        let sealed = SealedStore::builder_by_path(bucket.clone(), keys);
        let sealed = sealed.binding(Binding::Nothing).build().unwrap();
        let (from, to) = (Path::from("own/1"), Path::from("other/1"));
        sealed.put(&from, "text".into()).await.unwrap();
        let upload = async {
            let mut upload = sealed.put_multipart(&to).await?;
            upload.put_part("text".into()).await?;
            upload.complete().await.map(drop)
        };
        for (name, refused) in [
            ("put", sealed.put(&to, "text".into()).await.map(drop)),
            ("put_multipart", upload.await),
            ("copy", sealed.copy(&from, &to).await),
            ("copy_if_not_exists", sealed.copy_if_not_exists(&from, &to).await),
            ("rename", sealed.rename(&from, &to).await),
        ] {
            let error = refused.expect_err(name);
            assert_eq!(kind(&error), Some(ErrorKind::InvalidContext), "{what}, {name}: {error}");
        }
        let left: Vec<_> =
            sealed.list(None).map_ok(|meta| meta.location).try_collect().await.unwrap();
        assert_eq!(left, std::slice::from_ref(&from), "{what}");
        assert_eq!(get(&sealed, &from).await.unwrap(), "text");
    }
}

#[tokio::test]
async fn a_copy_into_the_folder_of_another_domain_is_encrypted_for_that_domain() {
    for (what, config) in configurations() {
        let world = World::new(&config).await;
        for (binding, renames) in BINDINGS.into_iter().flat_map(|it| [(it, false), (it, true)]) {
            let bucket = bucket();
            let sealed = world.by_folder(&bucket, binding);
            let (from, to) = (Path::from("orders/1"), Path::from("billing/1"));
            sealed.put(&from, plaintext(LEN).into()).await.unwrap();
            let (id, before) =
                (sealed.content_id(&from).await.unwrap(), bytes_of(&bucket, &from).await);
            bucket.take_calls();
            if renames {
                sealed.rename(&from, &to).await.unwrap();
            } else {
                sealed.copy(&from, &to).await.unwrap();
            }
            let calls = bucket.take_calls();
            assert!(
                calls.iter().all(|it| !["copy", "rename"].contains(&it.operation)),
                "{calls:?}"
            );
            assert!(bytes_of(&bucket, &to).await != before);
            assert_ne!(sealed.content_id(&to).await.unwrap(), id);
            let [orders, billing] = [&world.orders, &world.billing]
                .map(|domain| store(domain, alice(domain), &bucket, binding));
            assert!(get(&billing, &to).await.unwrap() == plaintext(LEN), "{what}, {binding:?}");
            let refused = read(&orders, &to, GetOptions::new()).await;
            assert_eq!(refused, Err(ErrorKind::Invalid), "{what}, {binding:?}");
            let original = read_if_there(&orders, &from).await;
            assert!(original == (!renames).then(|| Ok(plaintext(LEN))), "{what}, {binding:?}");
        }
    }
}

#[tokio::test]
async fn a_walk_over_all_domains_leaves_what_was_moved_between_them_as_it_is() {
    for (what, config) in configurations() {
        let world = World::new(&config).await;
        for binding in BINDINGS {
            let bucket = bucket();
            let sealed = world.by_folder(&bucket, binding);
            let [own, theirs, other] = ["billing/1", "orders/1", "orders/2"].map(Path::from);
            for path in [&own, &theirs, &other] {
                sealed.put(path, plaintext(LEN).into()).await.unwrap();
            }
            let moved = Path::from("billing/2");
            bucket.bare().rename_opts(&other, &moved, Default::default()).await.unwrap();
            let before = bytes_of(&bucket, &moved).await;
            world.kek.local().rotate().unwrap();
            for options in [RewrapOptions::default(), RewrapOptions::default().unverified()] {
                let mut failures = Vec::new();
                let done = sealed.rewrap_prefix(None, options, |so_far| {
                    failures
                        .extend(so_far.failures.iter().map(|(path, it)| (path.clone(), kind(it))));
                });
                let done = done.await.unwrap();
                assert_eq!(
                    (done.rewrapped + done.unchanged, done.failed),
                    (2, 1),
                    "{what}, {done:?}"
                );
                assert_eq!(failures, [(moved.clone(), Some(ErrorKind::Invalid))], "{what}");
                assert!(bytes_of(&bucket, &moved).await == before, "{what}, {binding:?}");
                assert!(get(&sealed, &own).await.unwrap() == plaintext(LEN), "{what}");
                assert!(get(&sealed, &theirs).await.unwrap() == plaintext(LEN), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_folder_of_no_domain_is_neither_read_nor_written() {
    let world = World::new(&DomainConfig::default()).await;
    let bucket = bucket();
    let sealed = world.by_folder(&bucket, Binding::Nothing);
    let (from, to) = (Path::from("orders/1"), Path::from("order/1"));
    sealed.put(&from, plaintext(LEN).into()).await.unwrap();
    for (name, refused) in [
        ("put", sealed.put(&to, "text".into()).await.map(drop)),
        ("put_multipart", sealed.put_multipart(&to).await.map(drop)),
        ("copy", sealed.copy(&from, &to).await),
        ("rename", sealed.rename(&from, &to).await),
    ] {
        let error = refused.expect_err(name);
        assert_eq!(kind(&error), Some(ErrorKind::UnknownDomain), "{name}: {error}");
        assert!(error.to_string().contains("orders"), "it names the nearest: {error}");
    }
    assert!(bucket.bare().get_opts(&to, GetOptions::new()).await.is_err());
    for (name, _, way) in ways() {
        let moved = bucket.bare().copy_opts(&from, &to, Default::default()).await;
        moved.unwrap();
        assert_eq!(way(&sealed, &to).await, Err(ErrorKind::UnknownDomain), "{name}");
    }
    assert!(get(&sealed, &from).await.unwrap() == plaintext(LEN));
}

/// The methods of the blocks that begin with this line.
fn methods(source: &str, block: &str) -> BTreeSet<String> {
    let bodies = source.split(block).skip(1).map(|rest| rest.split_once("\n}\n").unwrap().0);
    let name = |line: &str| {
        let line = line.strip_prefix("    ").filter(|line| !line.starts_with(' '))?;
        let line = line.trim_start_matches("pub ").trim_start_matches("async ");
        Some(line.strip_prefix("fn ")?.split(['(', '<']).next()?.to_owned())
    };
    bodies.flat_map(str::lines).filter_map(name).collect()
}

/// So no method that reads is forgotten.
#[test]
fn the_table_names_every_way_to_read() {
    // Those that write, delete, or return what needs no key are in the other tests here.
    let others = [
        "acting_for",
        "builder",
        "builder_by_path",
        "content_id",
        "delete_stream",
        "inner",
        "list",
        "list_with_delimiter",
        "list_with_offset",
        "on_behalf",
        "put_multipart_opts",
        "put_opts",
    ];
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sealed");
    let mut all = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let source = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for block in ["ObjectStore for SealedStore<S> {\n", "ObjectStore> SealedStore<S> {\n"] {
            all.extend(methods(&source, block));
        }
    }
    let expected: BTreeSet<_> = all.iter().map(String::as_str).collect();
    let named: BTreeSet<_> =
        ways().into_iter().map(|(name, ..)| name.split(',').next().unwrap()).collect();
    assert_eq!(named.union(&others.into()).copied().collect::<BTreeSet<_>>(), expected);
}
