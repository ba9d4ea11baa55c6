//! Every entry point: each call that takes a message or a stream of another domain refuses it, even
//! if both domains share everything, and with any context.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::num::NonZero;

use waxseal::domain::{Branches, Domain, DomainConfig};
use waxseal::{
    Aad, Caller, Decryptor, EncryptionContext, Error, ErrorKind, FileOptions, Sealed,
    StreamDecryptor, StreamHead, StreamOptions, WrappedKeys,
};
use waxseal_testing::support::block_on;

use super::ground::{World, alice, shared};

/// What a domain made, in every form.
struct Made {
    context: EncryptionContext,
    embedded: Vec<u8>,
    compact: Vec<u8>,
    keys: WrappedKeys,
    stream: Vec<u8>,
}

impl Made {
    fn by(domain: &Domain) -> Self {
        let (envelope, context, aad) = (domain.envelope(), alice(domain), Aad::empty());
        let embedded = block_on(envelope.encrypt(&context, aad, b"payload")).unwrap();
        let compact = block_on(envelope.encrypt_compact(&context, aad, b"payload")).unwrap();
        let (compact, keys) = compact.into_parts();
        let mut stream = block_on(envelope.encrypt_stream(&context, aad, Vec::new())).unwrap();
        stream.write_all(b"payload").unwrap();
        let stream = stream.finish().unwrap();
        Self { context, embedded, compact, keys, stream }
    }

    fn head(&self) -> StreamHead {
        StreamHead::from_prefix(&self.stream).unwrap()
    }

    /// The stream after its head.
    fn chunks(&self) -> &[u8] {
        &self.stream[self.head().len()..]
    }

    fn dek_id(&self) -> waxseal::DekId {
        waxseal::DekId::from_bytes(self.compact[8..40].try_into().unwrap())
    }
}

type Opened = Result<Vec<u8>, Error>;
/// Gives a domain what was made, in this context. `own` is what the domain made itself.
type WayIn = fn(&Domain, &EncryptionContext, &Made, &Made) -> Opened;
/// Encrypts in this context.
type WayOut = fn(&Domain, &EncryptionContext) -> Result<(), Error>;

const AAD: Aad<'static> = Aad::empty();

fn of_io<T>(result: std::io::Result<T>) -> Result<T, Error> {
    result.map_err(|error| Error::of_io(&error).cloned().unwrap())
}

fn open(domain: &Domain, context: &EncryptionContext, sealed: Sealed<'_>) -> Opened {
    Ok(block_on(domain.envelope().decrypt(context, AAD, sealed))?.to_vec())
}

fn read(mut reader: impl Read) -> Opened {
    let mut opened = Vec::new();
    of_io(reader.read_to_end(&mut opened)).map(|_| opened)
}

fn caller() -> Caller {
    Caller::builder().service("billing").build().unwrap()
}

/// Gives files to `work`: where the stream is, and where the plaintext goes. Of what is refused
/// nothing is left.
fn with_files(
    stream: &[u8],
    work: impl FnOnce(&std::path::Path, &std::path::Path) -> Result<u64, Error>,
) -> Opened {
    let folder = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
    std::fs::write(&from, stream).unwrap();
    match work(&from, &to) {
        Ok(_) => Ok(std::fs::read(to).unwrap()),
        Err(error) => {
            let left = std::fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(left, 1, "nothing but the stream is there");
            Err(error)
        }
    }
}

/// Each way twice: of the envelope, and of a view of it for a caller.
macro_rules! both {
    ($type:ty: $(
        $(#[$on:meta])* $name:literal => |$view:ident, $($part:pat_param),+| $body:expr,
    )+) => {{
        let ways: &[(&'static str, $type)] = &[$(
            $(#[$on])*
            (concat!("Envelope::", $name), |at, $($part),+| {
                let $view = at.envelope();
                $body
            }),
            $(#[$on])*
            (concat!("ActingFor::", $name), |at, $($part),+| {
                let caller = caller();
                let $view = at.envelope().acting_for(&caller);
                $body
            }),
        )+];
        ways.to_vec()
    }};
}

/// The text after the name of the method and a comma distinguishes its uses. A rewrap decrypts
/// nothing: it succeeds only if its message can be decrypted after it.
fn ways_in() -> Vec<(&'static str, WayIn)> {
    let mut ways = both![WayIn:
        "decrypt" => |view, context, made, _| {
            Ok(block_on(view.decrypt(context, AAD, &*made.embedded))?.to_vec())
        },
        "decrypt, compact" => |view, context, made, _| {
            let sealed = Sealed::compact(&made.compact, &made.keys);
            Ok(block_on(view.decrypt(context, AAD, sealed))?.to_vec())
        },
        "decrypt_in_place" => |view, context, made, _| {
            let mut buffer = made.embedded.clone();
            Ok(block_on(view.decrypt_in_place(context, AAD, &mut buffer))?.to_vec())
        },
        "decrypt_cached" => |view, context, made, _| {
            let opened = view.decrypt_cached(context, AAD, &*made.embedded)?;
            Ok(opened.ok_or_else(|| Error::new(ErrorKind::Invalid, "not cached"))?.to_vec())
        },
        "prepare" => |view, context, made, _| {
            block_on(view.prepare([(context, &made.embedded)])).remove(0)?;
            let opened = view.decrypt_cached(context, AAD, &*made.embedded)?;
            Ok(opened.unwrap().to_vec())
        },
        "prepare, compact" => |view, context, made, _| {
            let sealed = Sealed::compact(&made.compact, &made.keys);
            block_on(view.prepare([(context, sealed)])).remove(0)?;
            Ok(block_on(view.decrypt(context, AAD, sealed))?.to_vec())
        },
        "decrypt_many" => |view, context, made, _| {
            let opened = block_on(view.decrypt_many(context, [(AAD, &*made.embedded)]))?;
            Ok(opened.get(0).unwrap().to_vec())
        },
        "decrypt_many, after one of its own" => |view, context, made, own| {
            let all = [(AAD, &*own.embedded), (AAD, &*made.embedded)];
            Ok(block_on(view.decrypt_many(context, all))?.get(1).unwrap().to_vec())
        },
        "decrypt_many, compact" => |view, context, made, _| {
            let all = [(AAD, Sealed::compact(&made.compact, &made.keys))];
            Ok(block_on(view.decrypt_many(context, all))?.get(0).unwrap().to_vec())
        },
        "decryptor" => |view, context, made, _| {
            let handle = block_on(view.decryptor(context, &*made.embedded))?;
            Ok(handle.decrypt(AAD, &*made.embedded)?.to_vec())
        },
        "decryptor, compact" => |view, context, made, _| {
            let sealed = Sealed::compact(&made.compact, &made.keys);
            let handle = block_on(view.decryptor(context, sealed))?;
            Ok(handle.decrypt(AAD, sealed)?.to_vec())
        },
        "decrypt_stream" => |view, context, made, _| {
            read(block_on(view.decrypt_stream(context, AAD, &*made.stream))?)
        },
        #[cfg(feature = "tokio")]
        "decrypt_stream_async" => |view, context, made, _| {
            use tokio::io::AsyncReadExt;
            let reader = view.decrypt_stream_async(context, AAD, &*made.stream);
            let (mut reader, mut opened) = (block_on(reader)?, Vec::new());
            of_io(block_on(reader.read_to_end(&mut opened))).map(|_| opened)
        },
        "decrypt_file" => |view, context, made, _| {
            with_files(&made.stream, |from, to| {
                block_on(view.decrypt_file(context, AAD, from, to, &FileOptions::default()))
            })
        },
        "open_stream" => |view, context, made, _| {
            let stream = block_on(view.open_stream(context, AAD, &*made.stream))?;
            Ok(of_io(stream.read_range(0..7))?.to_vec())
        },
        "stream_decryptor" => |view, context, made, _| {
            let key = block_on(view.stream_decryptor(context, AAD, &made.head()))?;
            read(key.reader(made.chunks()))
        },
        "rewrap_head" => |view, context, made, _| {
            let head = block_on(view.rewrap_head(context, &made.head()))?;
            let stream = [head.as_bytes(), made.chunks()].concat();
            read(block_on(view.decrypt_stream(context, AAD, &*stream))?)
        },
        "rewrap" => |view, context, made, _| {
            let sealed = block_on(view.rewrap(context, &made.embedded))?;
            Ok(block_on(view.decrypt(context, AAD, &*sealed))?.to_vec())
        },
        "rewrap_unverified" => |view, context, made, _| {
            let sealed = block_on(view.rewrap_unverified(context, &made.embedded))?;
            Ok(block_on(view.decrypt(context, AAD, &*sealed))?.to_vec())
        },
        "rewrap_all" => |view, context, made, _| {
            let sealed = block_on(view.rewrap_all([(context, &*made.embedded)])).remove(0)?;
            Ok(block_on(view.decrypt(context, AAD, &*sealed))?.to_vec())
        },
        "rewrap_wrapped_keys" => |view, context, made, _| {
            let keys = block_on(view.rewrap_wrapped_keys(context, &made.dek_id(), &made.keys))?;
            let sealed = Sealed::compact(&made.compact, &keys);
            Ok(block_on(view.decrypt(context, AAD, sealed))?.to_vec())
        },
    ];
    ways.extend(of_handles());
    ways
}

/// By handles that the domain has for what is its own.
fn of_handles() -> Vec<(&'static str, WayIn)> {
    fn handle(at: &Domain, own: &Made) -> Result<Decryptor, Error> {
        block_on(at.envelope().decryptor(&own.context, &*own.embedded))
    }
    fn key(at: &Domain, own: &Made) -> Result<StreamDecryptor, Error> {
        block_on(at.envelope().stream_decryptor(&own.context, AAD, &own.head()))
    }
    let ways: &[(&'static str, WayIn)] = &[
        ("Decryptor::decrypt", |at, _, made, own| {
            Ok(handle(at, own)?.decrypt(AAD, &*made.embedded)?.to_vec())
        }),
        ("Decryptor::decrypt, compact", |at, _, made, own| {
            let sealed = Sealed::compact(&made.compact, &made.keys);
            let own_keys = Sealed::compact(&own.compact, &own.keys);
            let handle = block_on(at.envelope().decryptor(&own.context, own_keys))?;
            Ok(handle.decrypt(AAD, sealed)?.to_vec())
        }),
        ("Decryptor::decrypt_in_place", |at, _, made, own| {
            let mut buffer = made.embedded.clone();
            Ok(handle(at, own)?.decrypt_in_place(AAD, &mut buffer)?.to_vec())
        }),
        ("Decryptor::decrypt_many", |at, _, made, own| {
            let all = [(AAD, &*own.embedded), (AAD, &*made.embedded)];
            Ok(handle(at, own)?.decrypt_many(all)?.get(1).unwrap().to_vec())
        }),
        ("StreamDecryptor::reader", |at, _, made, own| read(key(at, own)?.reader(made.chunks()))),
        ("StreamDecryptor::seekable", |at, _, made, own| {
            let stream = key(at, own)?.seekable(made.stream.clone())?;
            Ok(of_io(stream.read_range(0..7))?.to_vec())
        }),
        ("StreamDecryptor::decrypt_chunk", |at, _, made, own| {
            Ok(key(at, own)?.decrypt_chunk(0, made.chunks().to_vec())?.to_vec())
        }),
        ("StreamDecryptor::decrypt", |at, _, made, own| {
            let (mut opened, threads) = (Vec::new(), NonZero::new(2).unwrap());
            of_io(key(at, own)?.decrypt(threads, made.chunks(), &mut opened))?;
            Ok(opened)
        }),
        ("StreamDecryptor::decrypt_slice", |at, _, made, own| {
            Ok(key(at, own)?.decrypt_slice(NonZero::new(2).unwrap(), made.chunks())?.to_vec())
        }),
        ("StreamDecryptor::decrypt_slice_to", |at, _, made, own| {
            let (mut opened, threads) = (vec![1; 7], NonZero::new(2).unwrap());
            let result = key(at, own)?.decrypt_slice_to(threads, made.chunks(), &mut opened);
            assert!(result.is_ok() || opened == [0; 7], "nothing of it is left");
            result.map(|()| opened)
        }),
        ("StreamDecryptor::decrypt_file", |at, _, made, own| {
            with_files(&made.stream, |from, to| {
                let key = key(at, own)?;
                key.decrypt_file(from, to, &FileOptions::default())
            })
        }),
        #[cfg(feature = "tokio")]
        ("StreamDecryptor::async_reader", |at, _, made, own| {
            use tokio::io::AsyncReadExt;
            let (mut reader, mut opened) = (key(at, own)?.async_reader(made.chunks()), Vec::new());
            of_io(block_on(reader.read_to_end(&mut opened))).map(|_| opened)
        }),
    ];
    ways.to_vec()
}

/// Everything that encrypts takes only the domain's own contexts.
fn ways_out() -> Vec<(&'static str, WayOut)> {
    both![WayOut:
        "encrypt" => |view, context| block_on(view.encrypt(context, AAD, b"payload")).map(drop),
        "encrypt_in_place" => |view, context| {
            block_on(view.encrypt_in_place(context, AAD, &mut b"payload".to_vec()))
        },
        "encrypt_compact" => |view, context| {
            block_on(view.encrypt_compact(context, AAD, b"payload")).map(drop)
        },
        "encrypt_many" => |view, context| {
            block_on(view.encrypt_many(context, [(AAD, b"payload")])).map(drop)
        },
        "encryptor" => |view, context| block_on(view.encryptor(context)).map(drop),
        "encrypt_stream" => |view, context| {
            block_on(view.encrypt_stream(context, AAD, Vec::new())).map(drop)
        },
        #[cfg(feature = "tokio")]
        "encrypt_stream_async" => |view, context| {
            block_on(view.encrypt_stream_async(context, AAD, Vec::new())).map(drop)
        },
        "stream_encryptor" => |view, context| {
            let options = StreamOptions::default();
            block_on(view.stream_encryptor(context, AAD, options)).map(drop)
        },
        "encrypt_file" => |view, context| {
            let written = with_files(b"payload", |from, to| {
                block_on(view.encrypt_file(context, AAD, from, to, &FileOptions::default()))
            });
            written.map(drop)
        },
    ]
}

/// From nothing to everything in common.
fn configurations() -> [(&'static str, DomainConfig); 5] {
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

#[test]
fn no_way_in_opens_what_another_domain_made() {
    for (what, config) in configurations() {
        let (orders, billing) = World::default().twins(&config);
        let (theirs, own) = (Made::by(&orders), Made::by(&billing));
        for (name, way_in) in ways_in() {
            let enter =
                |context: &EncryptionContext, made: &Made| way_in(&billing, context, made, &own);
            // The control: a domain's own messages decrypt. They are cached, for the calls that
            // make no request.
            open(&billing, &own.context, Sealed::from(&*own.embedded)).unwrap();
            let opened =
                enter(&own.context, &own).unwrap_or_else(|e| panic!("{what}, {name}: {e}"));
            assert_eq!(opened, b"payload", "{what}, {name}");
            for (context, whose) in [(&own.context, "own"), (&theirs.context, "other's")] {
                // With everything cached, and with nothing.
                for is_cold in [false, true] {
                    if is_cold {
                        billing.envelope().evict_all();
                    }
                    let error = match enter(context, &theirs) {
                        Err(error) => error,
                        Ok(opened) => panic!("{what}, {name}, {whose} context: {opened:?}"),
                    };
                    // The last is what a handle of the domain's own says.
                    let kinds =
                        [ErrorKind::Invalid, ErrorKind::InvalidContext, ErrorKind::OtherDek];
                    assert!(kinds.contains(&error.kind()), "{what}, {name}, {whose}: {error}");
                }
            }
            // The rightful one is not disturbed.
            let opened = way_in(&orders, &theirs.context, &theirs, &theirs).unwrap();
            assert_eq!(opened, b"payload", "{what}, {name}");
        }
    }
}

#[test]
fn no_domain_encrypts_in_a_context_of_another() {
    for (what, config) in configurations() {
        let (orders, billing) = World::default().twins(&config);
        let (theirs, own) = (alice(&orders), alice(&billing));
        for (name, way_out) in ways_out() {
            for is_cold in [true, false] {
                if is_cold {
                    billing.envelope().evict_all();
                }
                let refused = way_out(&billing, &theirs).expect_err(name);
                assert_eq!(refused.kind(), ErrorKind::InvalidContext, "{what}, {name}: {refused}");
                way_out(&billing, &own).unwrap_or_else(|e| panic!("{what}, {name}: {e}"));
            }
        }
    }
}

/// The handles that open.
const OF_HANDLES: [&str; 2] = ["Decryptor", "StreamDecryptor"];

/// The public methods of these types, as `Type::method`, from the sources.
fn public_methods(types: &[&str]) -> BTreeSet<String> {
    let (mut folders, mut methods) = (vec![sources()], BTreeSet::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if cfg!(not(feature = "tokio")) && path.ends_with("tokio.rs") {
                continue;
            }
            let (source, mut of) = (std::fs::read_to_string(&path).unwrap(), None);
            for line in source.lines() {
                if line.starts_with("impl") {
                    let head = line.trim_end_matches('{').trim();
                    let name = head.rsplit(' ').next().unwrap().split('<').next().unwrap();
                    of = types.iter().find(|of| **of == name && !head.contains(" for "));
                }
                let method =
                    line.strip_prefix("    pub ").map(|rest| rest.trim_start_matches("async "));
                if let (Some(of), Some(rest)) =
                    (of, method.and_then(|rest| rest.strip_prefix("fn ")))
                {
                    methods.insert(format!("{of}::{}", rest.split(['(', '<']).next().unwrap()));
                }
            }
        }
    }
    methods
}

fn sources() -> std::path::PathBuf {
    waxseal_testing::top().join("src/envelope")
}

/// So no public method that takes a message or encrypts one is forgotten.
#[test]
fn the_tables_name_every_way_in_and_out() {
    // By a walk of the store, of which the rows of another domain are no part: crossing.rs. The
    // others are about an envelope or a handle itself, or about wrapped keys that they do not
    // unwrap.
    let elsewhere = [
        "acting_for",
        "check_policy",
        "builder",
        "close",
        "context",
        "dek_id",
        "evict_all",
        "evict_context",
        "head",
        "health",
        "needs_rewrap",
        "reinstate_kek",
        "revoke_kek",
        "rewrap_stored",
        "shut_down",
        "statistics",
        "suite",
        "warm_up",
        "wrapped_keys_need_rewrap",
    ];
    let named: BTreeSet<_> = ways_in()
        .into_iter()
        .map(|(name, _)| name)
        .chain(ways_out().into_iter().map(|(name, _)| name))
        .map(|name| name.split(',').next().unwrap().to_owned())
        .collect();
    let all = public_methods(&[&["Envelope", "ActingFor"], &OF_HANDLES[..]].concat());
    let concerned =
        all.iter().filter(|name| !elsewhere.contains(&name.split("::").nth(1).unwrap()));
    let missing: Vec<_> = concerned.filter(|name| !named.contains(*name)).collect();
    assert!(missing.is_empty(), "not in the tables: {missing:?}");
    // The other way round, so that the sources were read as they are meant to be.
    let unknown: Vec<_> = named.difference(&all).collect();
    assert!(unknown.is_empty(), "in the tables, and no method: {unknown:?}");
}
