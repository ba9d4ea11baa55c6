//! Every way in: whatever takes a message or a stream of another domain refuses it, also where both
//! domains share everything, and whatever context is given.

use std::io::{Read, Write};

use waxseal::domain::{Branches, Domain, DomainConfig};
use waxseal::{Aad, Caller, EncryptionContext, Error, ErrorKind, Sealed, StreamHead, WrappedKeys};
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

    fn dek_id(&self) -> waxseal::DekId {
        waxseal::DekId::from_bytes(self.compact[8..40].try_into().unwrap())
    }
}

type Opened = Result<Vec<u8>, Error>;
/// Gives a domain what was made, in this context. `own` is what the domain made itself.
type WayIn = fn(&Domain, &EncryptionContext, &Made, &Made) -> Opened;

fn of_io<T>(result: std::io::Result<T>) -> Result<T, Error> {
    result.map_err(|error| Error::of_io(&error).cloned().unwrap())
}

/// A rewrap opens nothing. It succeeds only if its message can be opened after it.
fn rewrapped(domain: &Domain, context: &EncryptionContext, sealed: &[u8]) -> Opened {
    open(domain, context, Sealed::from(sealed))
}

fn open(domain: &Domain, context: &EncryptionContext, sealed: Sealed<'_>) -> Opened {
    let opened = block_on(domain.envelope().decrypt(context, Aad::empty(), sealed))?;
    Ok(opened.to_vec())
}

const WAYS_IN: [(&str, WayIn); 22] = [
    ("decrypt", |at, context, made, _| open(at, context, Sealed::from(&*made.embedded))),
    ("decrypt, compact", |at, context, made, _| {
        open(at, context, Sealed::compact(&made.compact, &made.keys))
    }),
    ("decrypt, for a caller", |at, context, made, _| {
        let caller = Caller::builder().service("billing").build()?;
        let view = at.envelope().acting_for(&caller);
        Ok(block_on(view.decrypt(context, Aad::empty(), &*made.embedded))?.to_vec())
    }),
    ("decrypt_in_place", |at, context, made, _| {
        let mut buffer = made.embedded.clone();
        let opened = block_on(at.envelope().decrypt_in_place(context, Aad::empty(), &mut buffer));
        Ok(opened?.to_vec())
    }),
    ("decrypt_in_place, for a caller", |at, context, made, _| {
        let caller = Caller::builder().service("billing").build()?;
        let (mut buffer, view) = (made.embedded.clone(), at.envelope().acting_for(&caller));
        Ok(block_on(view.decrypt_in_place(context, Aad::empty(), &mut buffer))?.to_vec())
    }),
    ("decrypt_cached", |at, context, made, _| {
        let opened = at.envelope().decrypt_cached(context, Aad::empty(), &*made.embedded)?;
        Ok(opened.ok_or_else(|| Error::new(ErrorKind::Invalid, "not cached"))?.to_vec())
    }),
    ("prepare, decrypt_cached", |at, context, made, _| {
        block_on(at.envelope().prepare([(context, &made.embedded)])).remove(0)?;
        let opened = at.envelope().decrypt_cached(context, Aad::empty(), &*made.embedded)?;
        Ok(opened.unwrap().to_vec())
    }),
    ("prepare, compact", |at, context, made, _| {
        let sealed = Sealed::compact(&made.compact, &made.keys);
        block_on(at.envelope().prepare([(context, sealed)])).remove(0)?;
        open(at, context, sealed)
    }),
    ("decryptor", |at, context, made, _| {
        let handle = block_on(at.envelope().decryptor(context, &*made.embedded))?;
        Ok(handle.decrypt(Aad::empty(), &*made.embedded)?.to_vec())
    }),
    ("decryptor, compact", |at, context, made, _| {
        let sealed = Sealed::compact(&made.compact, &made.keys);
        let handle = block_on(at.envelope().decryptor(context, sealed))?;
        Ok(handle.decrypt(Aad::empty(), sealed)?.to_vec())
    }),
    ("a handle of the domain's own", |at, _, made, own| {
        let handle = block_on(at.envelope().decryptor(&own.context, &*own.embedded))?;
        Ok(handle.decrypt(Aad::empty(), &*made.embedded)?.to_vec())
    }),
    ("a handle of the domain's own, in place", |at, _, made, own| {
        let handle = block_on(at.envelope().decryptor(&own.context, &*own.embedded))?;
        let mut buffer = made.embedded.clone();
        Ok(handle.decrypt_in_place(Aad::empty(), &mut buffer)?.to_vec())
    }),
    ("decrypt_stream", |at, context, made, _| {
        let reader = at.envelope().decrypt_stream(context, Aad::empty(), &*made.stream);
        let (mut reader, mut opened) = (block_on(reader)?, Vec::new());
        of_io(reader.read_to_end(&mut opened)).map(|_| opened)
    }),
    ("decrypt_stream, for a caller", |at, context, made, _| {
        let caller = Caller::builder().service("billing").build()?;
        let view = at.envelope().acting_for(&caller);
        let reader = view.decrypt_stream(context, Aad::empty(), &*made.stream);
        let (mut reader, mut opened) = (block_on(reader)?, Vec::new());
        of_io(reader.read_to_end(&mut opened)).map(|_| opened)
    }),
    ("open_stream", |at, context, made, _| {
        let stream = block_on(at.envelope().open_stream(context, Aad::empty(), &*made.stream))?;
        Ok(of_io(stream.read_range(0..7))?.to_vec())
    }),
    ("stream_decryptor", |at, context, made, _| {
        let key = block_on(at.envelope().stream_decryptor(context, Aad::empty(), &made.head()))?;
        let (mut reader, mut opened) = (key.reader(&made.stream[made.head().len()..]), Vec::new());
        of_io(reader.read_to_end(&mut opened)).map(|_| opened)
    }),
    ("the key of a stream of the domain's own", |at, _, made, own| {
        let head = own.head();
        let key = block_on(at.envelope().stream_decryptor(&own.context, Aad::empty(), &head))?;
        let (mut reader, mut opened) = (key.reader(&made.stream[made.head().len()..]), Vec::new());
        of_io(reader.read_to_end(&mut opened)).map(|_| opened)
    }),
    ("rewrap_head", |at, context, made, _| {
        let head = block_on(at.envelope().rewrap_head(context, &made.head()))?;
        let stream = [head.as_bytes(), &made.stream[made.head().len()..]].concat();
        let reader = at.envelope().decrypt_stream(context, Aad::empty(), &*stream);
        let (mut reader, mut opened) = (block_on(reader)?, Vec::new());
        of_io(reader.read_to_end(&mut opened)).map(|_| opened)
    }),
    ("rewrap", |at, context, made, _| {
        rewrapped(at, context, &block_on(at.envelope().rewrap(context, &made.embedded))?)
    }),
    ("rewrap_unverified", |at, context, made, _| {
        let sealed = block_on(at.envelope().rewrap_unverified(context, &made.embedded))?;
        rewrapped(at, context, &sealed)
    }),
    ("rewrap_all", |at, context, made, _| {
        let all = [(context, &*made.embedded)];
        rewrapped(at, context, &block_on(at.envelope().rewrap_all(all)).remove(0)?)
    }),
    ("rewrap_wrapped_keys", |at, context, made, _| {
        let id = made.dek_id();
        let keys = block_on(at.envelope().rewrap_wrapped_keys(context, &id, &made.keys))?;
        open(at, context, Sealed::compact(&made.compact, &keys))
    }),
];

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
        for (name, way_in) in WAYS_IN {
            let enter =
                |context: &EncryptionContext, made: &Made| way_in(&billing, context, made, &own);
            // The control: what is its own opens. It is cached, for those who ask nobody.
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

/// So this table is not forgotten when one comes.
#[test]
fn the_table_names_every_way_in() {
    let sources = ["mod.rs", "rewrap.rs", "stream/mod.rs"].map(|file| {
        std::fs::read_to_string(format!("{}/src/envelope/{file}", env!("CARGO_MANIFEST_DIR")))
            .unwrap()
    });
    let methods = sources.iter().flat_map(|source| {
        let of_envelope = source.split("impl ActingFor").next().unwrap();
        of_envelope.split("\n    pub ").skip(1).filter_map(|rest| {
            let rest = rest.strip_prefix("async ").unwrap_or(rest).strip_prefix("fn ")?;
            Some(rest.split(['(', '<']).next().unwrap().to_owned())
        })
    });
    let takes = |name: &str| {
        ["decrypt", "open_", "prepare", "rewrap", "stream_decryptor"]
            .iter()
            .any(|begins| name.starts_with(begins))
    };
    // By a walk of the store, of which the rows of another domain are no part: crossing.rs.
    let elsewhere = ["rewrap_stored"];
    let mut seen = 0;
    for name in methods.filter(|name| takes(name) && !elsewhere.contains(&&**name)) {
        let is_named =
            WAYS_IN.iter().any(|(way_in, _)| way_in.split([',', ' ']).next() == Some(&name));
        assert!(is_named, "{name} is not in the table");
        seen += 1;
    }
    assert!(seen >= 12, "{seen}");
}
