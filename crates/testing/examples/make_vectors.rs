//! Makes `tests/vectors/messages.json`, whose form `tests/vectors/README.md` describes.
//!
//!     cargo run -p waxseal-testing --example make_vectors > tests/vectors/messages.json
//!
//! DEKs and nonces are random, so every run makes other bytes: a published vector is kept, and new
//! ones are added beside it.

#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::too_many_arguments)]

use std::error::Error;

use data_encoding::HEXLOWER;
use hkdf::Hkdf;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use waxseal::kek::local::LocalKek;
use waxseal::{Aad, EncryptionContext, Envelope, KekId, Suite, WrappedDek, WrappedKeys};

type Pairs = Vec<(String, String)>;
/// A KEK's versions and their secrets.
type Secrets = Vec<(u32, [u8; 32])>;

const SUITES: [Suite; 3] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Xaes256Gcm];

fn main() -> Result<(), Box<dyn Error>> {
    let keks = keks();
    let vectors = json!({
        "format": 1,
        "known_answer": known_answer()?,
        "keks": keks.iter().map(|(name, versions)| json!({
            "id": format!("local:{name}"),
            "versions": versions.iter().map(|(version, secret)| (version.to_string(), hex(secret).into()))
                .collect::<serde_json::Map<String, Value>>(),
        })).collect::<Vec<_>>(),
        "messages": messages()?,
        "contexts": contexts()?,
        "wrapped_keys": wrapped_keys()?,
    });
    println!("{}", serde_json::to_string_pretty(&vectors)?);
    Ok(())
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    HEXLOWER.encode(bytes.as_ref())
}

fn secret(name: &str, version: u32) -> [u8; 32] {
    Sha256::digest(format!("a public secret: {name}, version {version}")).into()
}

/// Sixteen KEKs, one of them with the longest name and one with three versions.
fn keks() -> Vec<(String, Secrets)> {
    let one = |name: String| (name.clone(), vec![(1, secret(&name, 1))]);
    let mut keks = vec![(
        "orders".to_owned(),
        (1..=3).map(|version| (version, secret("orders", version))).collect(),
    )];
    keks.push(one("n".repeat(506)));
    keks.extend((0..14).map(|i| one(format!("kek-{i:02}"))));
    keks
}

fn kek(name: &str, newest: u32) -> Result<LocalKek, waxseal::Error> {
    let secrets: Vec<_> = (1..=newest).map(|version| (version, secret(name, version))).collect();
    LocalKek::from_secrets(name, secrets.iter().map(|(version, secret)| (*version, secret)))
}

fn known_answer() -> Result<Value, Box<dyn Error>> {
    let dek: Vec<u8> = (0..32).collect();
    let context = EncryptionContext::new([("tenant", "alice")])?;
    // Put together here a second time, not taken from the library.
    let derive = |use_: u8, suite: u8| -> Result<String, Box<dyn Error>> {
        let mut out = [0; 32];
        let info = [b"waxseal.v1", &[use_, suite][..], context.digest()].concat();
        let hkdf = Hkdf::<Sha256>::from_prk(&dek).map_err(|error| error.to_string())?;
        hkdf.expand(&info, &mut out).map_err(|error| error.to_string())?;
        Ok(hex(out))
    };
    Ok(json!({
        "dek": hex(&dek),
        "context": [["tenant", "alice"]],
        "context_bytes": hex(context.as_bytes()),
        "dek_id": derive(0, 0)?,
        "message_keys": {"1": derive(1, 1)?, "2": derive(1, 2)?, "3": derive(1, 3)?},
    }))
}

/// A message of the vectors, to be put down as it is or changed first.
#[derive(Clone)]
struct Message {
    name: String,
    context: Pairs,
    aad: Vec<u8>,
    plaintext: Vec<u8>,
    sealed: Vec<u8>,
    wrapped_keys: Option<Vec<u8>>,
    error: Option<&'static str>,
}

impl Message {
    fn to_json(&self) -> Value {
        let mut value = json!({
            "name": self.name,
            "context": self.context,
            "aad": hex(&self.aad),
            "sealed": hex(&self.sealed),
            "wrapped_keys": self.wrapped_keys.as_ref().map(hex),
            "error": self.error,
        });
        if self.error.is_none() {
            let (field, bytes) = match self.plaintext.len() {
                0..=1000 => ("plaintext", hex(&self.plaintext)),
                _ => ("plaintext_sha256", hex(Sha256::digest(&self.plaintext))),
            };
            value[field] = bytes.into();
        }
        value
    }

    fn refused(&self, name: &str, error: &'static str, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = Self { name: name.to_owned(), error: Some(error), ..self.clone() };
        change(&mut changed);
        changed
    }

    /// Where the wrapped keys begin.
    fn wrapped_at(&self) -> usize {
        if self.sealed[4] == 3 { 64 } else { 52 }
    }

    /// Puts other wrapped keys into an embedded message.
    fn embed(&mut self, wrapped_keys: &[u8]) {
        let at = self.wrapped_at();
        let old = usize::from(u16::from_le_bytes([self.sealed[6], self.sealed[7]]));
        self.sealed.splice(at..at + old, wrapped_keys.iter().copied());
        let len = u16::try_from(wrapped_keys.len()).unwrap_or(u16::MAX);
        self.sealed[6..8].copy_from_slice(&len.to_le_bytes());
    }
}

fn seal(
    name: &str,
    suite: Suite,
    keks: &[LocalKek],
    compact: bool,
    context: &Pairs,
    aad: &[u8],
    plaintext: &[u8],
) -> Result<Message, waxseal::Error> {
    let builder = Envelope::builder().suite(suite);
    let envelope =
        keks.iter().fold(builder, |builder, kek| builder.wrap_with(kek.clone())).build()?;
    let encoded = EncryptionContext::new(context.iter().map(|(name, value)| (name, value)))?;
    let (sealed, wrapped_keys) = if compact {
        let sealed =
            pollster::block_on(envelope.encrypt_compact(&encoded, Aad::from(aad), plaintext))?;
        (sealed.as_bytes().to_vec(), Some(sealed.wrapped_keys().as_bytes().to_vec()))
    } else {
        (pollster::block_on(envelope.encrypt(&encoded, Aad::from(aad), plaintext))?, None)
    };
    let name = format!("suite {}: {name}", suite.id());
    let (aad, plaintext) = (aad.to_vec(), plaintext.to_vec());
    Ok(Message {
        name,
        context: context.clone(),
        aad,
        plaintext,
        sealed,
        wrapped_keys,
        error: None,
    })
}

fn pairs(pairs: &[(&str, &str)]) -> Pairs {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn limit_contexts() -> Vec<(&'static str, Pairs)> {
    vec![
        ("64 pairs", (0..64).map(|i| (format!("name-{i}"), format!("value {i}"))).collect()),
        ("8,192 bytes", vec![("a".into(), "v".repeat(4096)), ("b".into(), "w".repeat(4080))]),
        ("a name of 256 bytes", vec![("\u{e9}".repeat(128), "v".into())]),
        ("names that begin alike", pairs(&[("ab", "1"), ("a", "2"), ("a-b", "3"), ("B", "4")])),
        ("no Unicode normalisation", pairs(&[("\u{e9}", "composed"), ("e\u{301}", "decomposed")])),
    ]
}

fn messages() -> Result<Vec<Value>, Box<dyn Error>> {
    let alice = pairs(&[("tenant", "alice"), ("table", "cards")]);
    let orders = kek("orders", 3)?;
    let one = [orders.clone()];
    let three = [kek("kek-02", 1)?, orders.clone(), kek("kek-00", 1)?];
    let large: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    let mut messages = Vec::new();

    for suite in SUITES {
        messages.extend([
            seal("one KEK", suite, &one, false, &alice, b"row 17", b"4111 1111 1111 1111")?,
            seal("three KEKs", suite, &three, false, &alice, b"row 17", b"4111 1111 1111 1111")?,
            seal("compact", suite, &one, true, &alice, b"row 17", b"4111 1111 1111 1111")?,
            seal(
                "compact, three KEKs",
                suite,
                &three,
                true,
                &alice,
                b"row 17",
                b"4111 1111 1111 1111",
            )?,
            seal("empty payload", suite, &one, false, &alice, b"row 17", b"")?,
            seal("empty payload, AAD and context", suite, &one, false, &Pairs::new(), b"", b"")?,
            seal("compact, empty payload", suite, &one, true, &alice, b"row 17", b"")?,
            seal("100,000 bytes", suite, &one, false, &alice, b"row 17", &large)?,
            seal("AAD longer than a block", suite, &one, false, &alice, &[0xAD; 777], b"payload")?,
            seal(
                "an old version of the KEK",
                suite,
                &[kek("orders", 1)?],
                false,
                &alice,
                b"",
                b"payload",
            )?,
        ]);
        for (name, context) in limit_contexts() {
            messages.push(seal(name, suite, &one, false, &context, b"", b"payload")?);
        }
    }
    let sixteen: Vec<_> = keks().iter().map(|(name, _)| kek(name, 1)).collect::<Result<_, _>>()?;
    messages.push(seal(
        "sixteen KEKs",
        Suite::Aes256Gcm,
        &sixteen,
        false,
        &alice,
        b"",
        b"payload",
    )?);
    messages.push(seal(
        "a KEK id of 512 bytes",
        Suite::Aes256Gcm,
        &sixteen[1..2],
        false,
        &alice,
        b"",
        b"payload",
    )?);
    let mut unsorted = messages[0].clone();
    unsorted.name = "the pairs of the context in another order".into();
    unsorted.context.reverse();
    messages.push(unsorted);

    for suite in SUITES {
        let good = seal("one KEK", suite, &one, false, &alice, b"row 17", b"4111 1111 1111 1111")?;
        let compact =
            seal("compact", suite, &one, true, &alice, b"row 17", b"4111 1111 1111 1111")?;
        let other = seal("other", suite, &one, true, &alice, b"row 17", b"4111 1111 1111 1111")?;
        let foreign = seal(
            "foreign",
            suite,
            &[kek("unknown", 1)?],
            true,
            &alice,
            b"row 17",
            b"4111 1111 1111 1111",
        )?;
        messages.extend(refused_messages(&good, &compact, &other, &foreign)?);
    }
    Ok(messages.iter().map(Message::to_json).collect())
}

fn refused_messages(
    good: &Message,
    compact: &Message,
    other: &Message,
    foreign: &Message,
) -> Result<Vec<Message>, Box<dyn Error>> {
    let suite = good.sealed[4];
    let nonce_at = 40;
    let wrapped_at = good.wrapped_at();
    let payload_at = good.sealed.len() - 16 - good.plaintext.len();
    let mut refused = vec![
        good.refused("nothing at all", "not-sealed", |m| m.sealed.clear()),
        good.refused("plain text", "not-sealed", |m| m.sealed = b"4111 1111 1111 1111".to_vec()),
        good.refused("first byte", "not-sealed", |m| m.sealed[0] = 0xC2),
        good.refused("second byte", "not-sealed", |m| m.sealed[1] = b'w'),
        good.refused("two bytes", "not-sealed", |m| m.sealed.truncate(2)),
        good.refused("three bytes", "malformed", |m| m.sealed.truncate(3)),
        good.refused("version 0", "unsupported-version", |m| m.sealed[3] = 0),
        good.refused("version 2", "unsupported-version", |m| m.sealed[3] = 2),
        good.refused("version 2 with an unknown suite", "unsupported-version", |m| {
            m.sealed[3] = 2;
            m.sealed[4] = 9;
        }),
        good.refused("suite 0", "unsupported-suite", |m| m.sealed[4] = 0),
        good.refused("suite 4", "unsupported-suite", |m| m.sealed[4] = 4),
        good.refused("kind 0", "unsupported-kind", |m| m.sealed[5] = 0),
        good.refused("kind 3", "unsupported-kind", |m| m.sealed[5] = 3),
        good.refused(
            "a stream",
            if suite == 3 { "unsupported-suite" } else { "unsupported-kind" },
            |m| m.sealed[5] = 2,
        ),
        good.refused("the header alone", "malformed", |m| m.sealed.truncate(40)),
        good.refused("half a header", "malformed", |m| m.sealed.truncate(20)),
        good.refused("cut in the nonce", "malformed", |m| m.sealed.truncate(nonce_at + 3)),
        good.refused("cut in the wrapped keys", "malformed", |m| m.sealed.truncate(wrapped_at + 3)),
        good.refused("cut in the tag of an empty payload", "malformed", |m| {
            m.sealed.truncate(payload_at + 15)
        }),
        good.refused("W beyond the end", "malformed", |m| m.sealed[6..8].fill(0xFF)),
        good.refused("W one too small", "malformed", |m| m.sealed[6] -= 1),
        good.refused("W one too large", "malformed", |m| m.sealed[6] += 1),
        good.refused("last byte cut off", "invalid", |m| m.sealed.truncate(m.sealed.len() - 1)),
        good.refused("a byte more", "invalid", |m| m.sealed.push(0)),
        good.refused("DEK id", "invalid", |m| m.sealed[8] ^= 1),
        good.refused("last byte of the DEK id", "invalid", |m| m.sealed[39] ^= 0x80),
        good.refused("nonce", "invalid", |m| m.sealed[nonce_at] ^= 1),
        good.refused("last byte of the nonce", "invalid", |m| m.sealed[wrapped_at - 1] ^= 1),
        good.refused("ciphertext", "invalid", |m| m.sealed[payload_at] ^= 1),
        good.refused("tag", "invalid", |m| m.sealed[payload_at + m.plaintext.len()] ^= 1),
        good.refused("last byte of the tag", "invalid", |m| {
            *m.sealed.last_mut().unwrap_or(&mut 0) ^= 0x80
        }),
        good.refused("another AAD", "invalid", |m| m.aad = b"row 18".to_vec()),
        good.refused("no AAD", "invalid", |m| m.aad.clear()),
        good.refused("another value in the context", "invalid", |m| m.context[0].1 = "bob".into()),
        good.refused("another name in the context", "invalid", |m| {
            m.context[0].0 = "Tenant".into()
        }),
        good.refused("a pair more in the context", "invalid", |m| {
            m.context.push(("more".into(), "x".into()))
        }),
        good.refused("a pair less in the context", "invalid", |m| m.context.truncate(1)),
        good.refused("no context", "invalid", |m| m.context.clear()),
        compact.refused("compact without wrapped keys", "missing-wrapped-keys", |m| {
            m.wrapped_keys = None
        }),
        compact.refused("compact with another DEK's wrapped keys", "invalid", |m| {
            m.wrapped_keys = other.wrapped_keys.clone()
        }),
        compact.refused("compact with a foreign KEK's wrapped keys", "unknown-kek", |m| {
            m.wrapped_keys = foreign.wrapped_keys.clone()
        }),
        good.refused(
            "the compact form of an embedded message, wrapped keys left in place",
            "invalid",
            |m| {
                m.sealed[6..8].fill(0);
                m.wrapped_keys = Some(m.sealed[wrapped_at..payload_at].to_vec());
            },
        ),
        good.refused("embedded wrapped keys of another DEK", "invalid", |m| {
            m.embed(other.wrapped_keys.as_deref().unwrap_or_default())
        }),
        good.refused("embedded wrapped keys of a foreign KEK", "unknown-kek", |m| {
            m.embed(foreign.wrapped_keys.as_deref().unwrap_or_default())
        }),
    ];
    if suite != 3 {
        refused.push(good.refused("the other suite with a nonce of 12 bytes", "invalid", |m| {
            m.sealed[4] = 3 - suite
        }));
    }
    let keys = WrappedKeys::try_from(&good.sealed[wrapped_at..payload_at])?;
    let entry = &keys.entries()[0];
    let with = |wrapped: Vec<u8>| -> Result<Vec<u8>, waxseal::Error> {
        let entry = WrappedDek::new(entry.kek_id().clone(), wrapped)?;
        Ok(WrappedKeys::new([entry])?.as_bytes().to_vec())
    };
    let flipped = |at: usize| {
        let mut bytes = entry.wrapped().to_vec();
        bytes[at] ^= 1;
        with(bytes)
    };
    for (name, list) in [
        ("version of the wrapped key unknown", flipped(2)?),
        ("another version of the wrapped key", flipped(0)?),
        ("nonce of the wrapped key", flipped(4)?),
        ("encrypted DEK", flipped(30)?),
        ("tag of the wrapped key", flipped(75)?),
        ("wrapped key of 75 bytes", with(entry.wrapped()[..75].to_vec())?),
        ("wrapped key of 77 bytes", with([entry.wrapped(), &[0]].concat())?),
        ("wrapped key of one byte", with(vec![1])?),
    ] {
        refused.push(good.refused(name, "invalid", |m| m.embed(&list)));
    }
    for (name, list) in bad_lists()? {
        refused
            .push(good.refused(&format!("wrapped keys: {name}"), "malformed", |m| m.embed(&list)));
    }
    Ok(refused
        .into_iter()
        .map(|m| Message { name: format!("suite {suite}: {}", m.name), ..m })
        .collect())
}

/// Contexts as bytes, valid and not.
fn contexts() -> Result<Vec<Value>, waxseal::Error> {
    let mut contexts = Vec::new();
    let mut push = |why: &str, valid: bool, bytes: Vec<u8>| {
        contexts.push(json!({"bytes": hex(bytes), "why": why, "valid": valid}));
    };
    push("no pair", true, EncryptionContext::empty().as_bytes().to_vec());
    for (why, pairs) in limit_contexts() {
        push(why, true, EncryptionContext::new(pairs)?.as_bytes().to_vec());
    }
    let raw = |pairs: &[(&[u8], &[u8])]| {
        let mut bytes = b"WXC\x01".to_vec();
        bytes.extend((pairs.len() as u16).to_le_bytes());
        for part in pairs.iter().flat_map(|(name, value)| [name, value]) {
            bytes.extend((part.len() as u16).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    };
    let good = raw(&[(b"a", b"1"), (b"b", b"2")]);
    push("two pairs", true, good.clone());
    push("out of order", false, raw(&[(b"b", b"2"), (b"a", b"1")]));
    push("a name twice", false, raw(&[(b"a", b"1"), (b"a", b"2")]));
    push("two names that differ in case only", false, raw(&[(b"A", b"1"), (b"a", b"2")]));
    push(
        "two names that differ in case only, with one between",
        false,
        raw(&[(b"A", b"1"), (b"B", b"2"), (b"a", b"2")]),
    );
    push("an empty name", false, raw(&[(b"", b"1")]));
    push("an empty value", false, raw(&[(b"a", b"")]));
    push("a name of 257 bytes", false, raw(&[(&[b'n'; 257], b"1")]));
    push("a value of 4,097 bytes", false, raw(&[(b"a", &[b'v'; 4097])]));
    push("8,193 bytes", false, raw(&[(b"a", &[b'v'; 4096]), (b"b", &[b'w'; 4081])]));
    let names: Vec<_> = (0..65).map(|i| format!("n{i:02}")).collect();
    push(
        "65 pairs",
        false,
        raw(&names.iter().map(|name| (name.as_bytes(), &b"v"[..])).collect::<Vec<_>>()),
    );
    push("a reserved name", false, raw(&[(b"waxseal", b"1")]));
    push(
        "a name that begins with a reserved one in another case",
        false,
        raw(&[(b"WaxSeal-x", b"1")]),
    );
    push("a name that only contains a reserved one", true, raw(&[(b"my-waxseal", b"1")]));
    push("a name that is cut off from a reserved one", true, raw(&[(b"waxsea", b"1")]));
    push("a control character in a value", false, raw(&[(b"a", b"x\ny")]));
    push("a control character in a name", false, raw(&[(b"a\x1f", b"x")]));
    push("U+007F in a value", false, raw(&[(b"a", b"x\x7f")]));
    push("U+0080 in a value", true, raw(&[(b"a", "\u{80}".as_bytes())]));
    push("not UTF-8", false, raw(&[(b"a", b"\xFF")]));
    push("an encoded surrogate", false, raw(&[(b"a", b"\xED\xA0\x80")]));
    push("cut", false, good[..good.len() - 1].to_vec());
    push("a byte more", false, [&good[..], &[0]].concat());
    push("a count that is too small", false, {
        let mut bytes = good.clone();
        bytes[4] = 1;
        bytes
    });
    push("a count that is too large", false, {
        let mut bytes = good.clone();
        bytes[4] = 3;
        bytes
    });
    push("another version", false, {
        let mut bytes = good.clone();
        bytes[3] = 2;
        bytes
    });
    push("other first bytes", false, {
        let mut bytes = good.clone();
        bytes[0] = b'w';
        bytes
    });
    push("nothing", false, Vec::new());
    Ok(contexts)
}

fn list(entries: &[(&str, usize, usize)]) -> Result<Vec<u8>, waxseal::Error> {
    let mut list = Vec::new();
    for (id, wrapped, meta) in entries {
        list.push(
            WrappedDek::new(KekId::new(id)?, vec![0xAA; *wrapped])?.with_meta(vec![0xBB; *meta])?,
        );
    }
    Ok(WrappedKeys::new(list)?.as_bytes().to_vec())
}

/// Lists that no reader accepts.
fn bad_lists() -> Result<Vec<(&'static str, Vec<u8>)>, waxseal::Error> {
    let good = list(&[("a", 3, 2), ("b", 4, 0)])?;
    Ok(vec![
        ("no entry", vec![0]),
        ("seventeen entries", {
            let mut bytes = vec![17];
            bytes.extend((0..17_u8).flat_map(|i| [1, b'a' + i, 1, 0xAA, 0]));
            bytes
        }),
        ("out of order", vec![2, 1, b'b', 1, 0xAA, 0, 1, b'a', 1, 0xAA, 0]),
        ("one KEK id twice", vec![2, 1, b'a', 1, 0xAA, 0, 1, b'a', 1, 0xAB, 0]),
        ("a byte behind the last", [&good[..], &[0]].concat()),
        ("cut", good[..good.len() - 1].to_vec()),
        ("a count that is not minimal", vec![251, 1, 0, 1, b'a', 1, 0xAA, 0]),
        ("a length that is not minimal", vec![1, 251, 1, 0, b'a', 1, 0xAA, 0]),
        (
            "a length of 250 in three bytes",
            [&[1, 1, b'a', 251, 250, 0][..], &[0xAA; 250], &[0]].concat(),
        ),
        ("a 32-bit length", vec![1, 1, b'a', 252, 1, 0, 0, 0, 0xAA, 0]),
        ("a 64-bit length", vec![1, 1, b'a', 253, 1, 0, 0, 0, 0, 0, 0, 0, 0xAA, 0]),
        (
            "a 128-bit length",
            vec![1, 1, b'a', 254, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xAA, 0],
        ),
        ("first byte 255", vec![255]),
        ("an empty KEK id", vec![1, 0, 1, 0xAA, 0]),
        ("a KEK id that is not UTF-8", vec![1, 1, 0xFF, 1, 0xAA, 0]),
        ("a KEK id of 513 bytes", [&[1, 251, 1, 2][..], &[b'k'; 513], &[1, 0xAA, 0]].concat()),
        ("an empty wrapped key", vec![1, 1, b'a', 0, 0]),
        (
            "a wrapped key of 6,145 bytes",
            [&[1, 1, b'a', 251, 1, 24][..], &[0xAA; 6145], &[0]].concat(),
        ),
        ("metadata of 65 bytes", [&[1, 1, b'a', 1, 0xAA, 65][..], &[0xBB; 65]].concat()),
        ("a length beyond the end", vec![1, 1, b'a', 200, 0xAA, 0]),
    ])
}

fn wrapped_keys() -> Result<Vec<Value>, waxseal::Error> {
    let long = "k".repeat(512);
    let ids: Vec<_> = (0..16).map(|i| format!("kek-{i:02}")).collect();
    let good = vec![
        ("one entry", list(&[("local:orders", 76, 0)])?),
        ("two entries", list(&[("a", 3, 2), ("b", 4, 0)])?),
        ("an id that begins another", list(&[("a", 1, 0), ("aa", 1, 0), ("ab", 1, 0)])?),
        ("lengths of 250 and 251", list(&[("a", 250, 0), ("b", 251, 64)])?),
        ("everything at its limit", list(&[(&long, 6144, 64)])?),
        (
            "sixteen entries",
            list(&ids.iter().map(|id| (id.as_str(), 184, 16)).collect::<Vec<_>>())?,
        ),
    ];
    let valid = good.into_iter().map(|(why, bytes)| (why, bytes, true));
    let invalid = bad_lists()?.into_iter().map(|(why, bytes)| (why, bytes, false));
    let nothing = [("nothing", Vec::new(), false)];
    Ok(valid
        .chain(invalid)
        .chain(nothing)
        .map(|(why, bytes, valid)| json!({"bytes": hex(bytes), "why": why, "valid": valid}))
        .collect())
}
