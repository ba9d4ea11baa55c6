//! Makes `tests/vectors/streams.json`, whose form `tests/vectors/README.md` describes.
//!
//!     cargo run -p waxseal-testing --example make_stream_vectors > tests/vectors/streams.json
//!
//! DEKs and salts are random, so every run makes other bytes: a published vector is kept, and new
//! ones are added beside it.

#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::error::Error;
use std::io::Write;

use data_encoding::HEXLOWER;
use hkdf::Hkdf;
use pollster::block_on;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use waxseal::kek::local::LocalKek;
use waxseal::{Aad, EncryptionContext, Envelope, StreamHead, StreamOptions, Suite, WrappedKeys};

const SECRETS: [(&str, [u8; 32]); 2] = [("orders", [0x5a; 32]), ("kek-00", [0xa5; 32])];
const PAIRS: [(&str, &str); 2] = [("table", "exports"), ("tenant", "alice")];
const AAD: &[u8] = b"export 17";
const CHUNK: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut streams = Vec::new();
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        streams.extend(accepted(suite)?);
        streams.extend(refused(suite)?);
    }
    let keks: Vec<_> = SECRETS
        .iter()
        .map(
            |(name, secret)| json!({"id": format!("local:{name}"), "versions": {"1": hex(secret)}}),
        )
        .collect();
    let vectors = json!({
        "format": 1,
        "known_stream": known_stream()?,
        "keks": keks,
        "streams": streams.iter().map(Stream::to_json).collect::<Vec<_>>(),
    });
    println!("{}", serde_json::to_string_pretty(&vectors)?);
    Ok(())
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    HEXLOWER.encode(bytes.as_ref())
}

/// Put together here a second time, not taken from the library.
fn known_stream() -> Result<Value, Box<dyn Error>> {
    let dek: Vec<u8> = (0..32).collect();
    let context = EncryptionContext::new([("tenant", "alice")])?;
    let (salt, chunk_log2): (Vec<u8>, u8) = ((0x60..0x78).collect(), 16);
    let mut suites = serde_json::Map::new();
    for (suite, aead) in [(1, "AEAD_AES_256_GCM"), (2, "AEAD_CHACHA20_POLY1305")] {
        let info = [b"waxseal.v1", &[2, suite][..], context.digest()].concat();
        // HMAC pads its key with zeros, so that a longer one with zeros behind it is the same.
        let mut root = [0; 64];
        let expand = Hkdf::<Sha256>::from_prk(&dek).map_err(|error| error.to_string())?;
        expand.expand(&info, &mut root[..32]).map_err(|error| error.to_string())?;
        let label = format!("c2sp.org/chunked-encryption@v1+{aead}\0");
        let info = [label.as_bytes(), &salt, &[chunk_log2], AAD].concat();
        let mut okm = [0; 76];
        let expand = Hkdf::<Sha512>::from_prk(&root).map_err(|error| error.to_string())?;
        expand.expand(&info, &mut okm).map_err(|error| error.to_string())?;
        let keys = json!({
            "root": hex(&root[..32]),
            "key": hex(&okm[..32]),
            "base_nonce": hex(&okm[32..44]),
            "commitment": hex(&okm[44..]),
        });
        suites.insert(suite.to_string(), keys);
    }
    Ok(json!({
        "dek": hex(&dek),
        "context": [["tenant", "alice"]],
        "salt": hex(&salt),
        "chunk_log2": chunk_log2,
        "aad": hex(AAD),
        "suites": suites,
    }))
}

/// A stream of the vectors, to be put down as it is or changed first.
#[derive(Clone)]
struct Stream {
    name: String,
    context: Vec<(&'static str, &'static str)>,
    aad: Vec<u8>,
    plaintext: Vec<u8>,
    sealed: Vec<u8>,
    wrapped_keys: Option<Vec<u8>>,
    error: Option<&'static str>,
}

impl Stream {
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

    fn refused(&self, what: &str, error: &'static str, change: impl FnOnce(&mut Self)) -> Self {
        let name = format!("suite {}: {what}", self.sealed[4]);
        let mut changed = Self { name, error: Some(error), ..self.clone() };
        change(&mut changed);
        changed
    }
}

fn keks() -> Result<Vec<LocalKek>, waxseal::Error> {
    SECRETS.iter().map(|(name, secret)| LocalKek::from_secrets(name, [(1, secret)])).collect()
}

fn plaintext(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn seal(
    what: &str,
    suite: Suite,
    keks: &[LocalKek],
    options: StreamOptions,
    len: usize,
) -> Result<Stream, Box<dyn Error>> {
    let builder = Envelope::builder().suite(suite);
    let builder = keks.iter().fold(builder, |builder, kek| builder.wrap_with(kek.clone()));
    let (envelope, context) = (builder.build()?, EncryptionContext::new(PAIRS)?);
    let encryptor = block_on(envelope.stream_encryptor(&context, Aad::from(AAD), options))?;
    let keys: WrappedKeys = encryptor.wrapped_keys().clone();
    let mut writer = encryptor.writer(Vec::new());
    writer.write_all(&plaintext(len))?;
    let sealed = writer.finish()?;
    let is_compact = sealed[6..8] == [0, 0];
    Ok(Stream {
        name: format!("suite {}: {what}", suite.id()),
        context: PAIRS.to_vec(),
        aad: AAD.to_vec(),
        plaintext: plaintext(len),
        sealed,
        wrapped_keys: is_compact.then(|| keys.as_bytes().to_vec()),
        error: None,
    })
}

fn small() -> StreamOptions {
    StreamOptions::default().chunk_size(CHUNK as u32).room(3)
}

fn accepted(suite: Suite) -> Result<Vec<Stream>, Box<dyn Error>> {
    let keks = keks()?;
    let one = &keks[..1];
    let mut streams = vec![
        seal("no bytes", suite, one, small(), 0)?,
        seal("one byte", suite, one, small(), 1)?,
        seal("a byte less than a chunk", suite, one, small(), CHUNK - 1)?,
        seal("exactly a chunk", suite, one, small(), CHUNK)?,
        seal("two chunks and a byte", suite, one, small(), 2 * CHUNK + 1)?,
        seal("two KEKs", suite, &keks, small(), 100)?,
        seal("no room", suite, one, small().room(0), 100)?,
        seal("room of 1,000 bytes", suite, one, small().room(1000), 100)?,
        seal("compact", suite, one, small().compact().room(0), 100)?,
        seal("compact, with room", suite, one, small().compact(), 100)?,
        seal("chunks of 64 KiB", suite, one, StreamOptions::default(), 100)?,
        seal("chunks of 16 MiB", suite, one, small().chunk_size(1 << 24), 5000)?,
    ];
    let mut reordered = streams[1].clone();
    reordered.name += ", the pairs of the context in another order";
    reordered.context.reverse();
    streams.push(reordered);
    Ok(streams)
}

fn refused(suite: Suite) -> Result<Vec<Stream>, Box<dyn Error>> {
    let keks = keks()?;
    let good = seal("three chunks", suite, &keks[..1], small(), 2 * CHUNK + 9)?;
    let short = seal("short", suite, &keks[..1], small(), 9)?;
    let exact = seal("exact", suite, &keks[..1], small(), CHUNK)?;
    let compact = seal("compact", suite, &keks[..1], small().compact(), 9)?;
    let stranger = LocalKek::from_secrets("unknown", [(1, &[1; 32])])?;
    let unknown = seal("unknown", suite, &[stranger], small(), 9)?;
    let head = StreamHead::from_prefix(&good.sealed)?.len();
    let sealed_chunk = CHUNK + 16;
    let (first, second, last) = (head, head + sealed_chunk, head + 2 * sealed_chunk);
    let head_of_short = StreamHead::from_prefix(&short.sealed)?.len();
    let set = |at: usize, byte: u8| move |stream: &mut Stream| stream.sealed[at] = byte;
    let flip = |at: usize| move |stream: &mut Stream| stream.sealed[at] ^= 1;
    let cut = |len: usize| move |stream: &mut Stream| stream.sealed.truncate(len);
    let unsupported_kind = if suite == Suite::Aes256Gcm { 3 } else { 0 };
    Ok(vec![
        short.refused("other first bytes", "not-sealed", set(0, 0xC2)),
        short.refused("two bytes", "not-sealed", cut(2)),
        short.refused("version 2", "unsupported-version", set(3, 2)),
        short.refused("suite 0", "unsupported-suite", set(4, 0)),
        short.refused("suite 3", "unsupported-suite", set(4, 3)),
        short.refused("an unknown kind", "unsupported-kind", set(5, unsupported_kind)),
        short.refused("the kind of a message", "unsupported-kind", set(5, 1)),
        short.refused("chunk_log2 11", "unsupported-chunk-size", set(40, 11)),
        short.refused("chunk_log2 25", "unsupported-chunk-size", set(40, 25)),
        short.refused("another chunk_log2", "invalid", set(40, 13)),
        short.refused("a reserved byte", "malformed", set(43, 1)),
        short.refused("the last reserved byte", "malformed", set(47, 0x80)),
        short.refused("a byte in the room", "malformed", set(head_of_short - 57, 1)),
        short.refused("W one more, R one less", "malformed", |stream| {
            stream.sealed[6] += 1;
            stream.sealed[41] -= 1;
        }),
        short.refused("R one less", "any", |stream| stream.sealed[41] -= 1),
        short.refused("another salt", "invalid", flip(head_of_short - 56)),
        short.refused("another commitment", "invalid", flip(head_of_short - 1)),
        short.refused("another DEK id", "invalid", flip(8)),
        short.refused("another suite", "invalid", |stream| stream.sealed[4] ^= 3),
        short.refused("another AAD", "invalid", |stream| stream.aad = b"export 18".to_vec()),
        short.refused("no AAD", "invalid", |stream| stream.aad.clear()),
        short.refused("another context", "invalid", |stream| stream.context[1].1 = "bob"),
        short.refused("the head cut by a byte", "malformed", cut(head_of_short - 1)),
        short.refused("the head alone", "malformed", cut(head_of_short)),
        short.refused("15 bytes of a chunk", "malformed", cut(head_of_short + 15)),
        short.refused("16 bytes of a chunk", "invalid", cut(head_of_short + 16)),
        short.refused("the last byte cut off", "invalid", cut(head_of_short + 24)),
        short.refused("a byte behind the last", "invalid", |stream| stream.sealed.push(0)),
        exact.refused("the empty last chunk missing", "malformed", |stream| {
            stream.sealed.truncate(stream.sealed.len() - 16);
        }),
        exact.refused("the empty last chunk twice", "invalid", |stream| {
            stream.sealed.extend_from_within(stream.sealed.len() - 16..);
        }),
        good.refused("a bit of the first chunk", "invalid", flip(first)),
        good.refused("a bit of the second chunk's tag", "invalid", flip(last - 1)),
        good.refused("a bit of the last chunk", "invalid", flip(last)),
        good.refused("the last chunk missing", "malformed", cut(last)),
        good.refused("two chunks missing", "malformed", cut(second)),
        good.refused("the first chunk missing", "invalid", |stream| {
            stream.sealed.drain(first..second);
        }),
        good.refused("two chunks swapped", "invalid", |stream| {
            let (left, right) = stream.sealed[first..last].split_at_mut(sealed_chunk);
            left.swap_with_slice(right);
        }),
        good.refused("the first chunk twice", "invalid", |stream| {
            stream.sealed.copy_within(first..second, second);
        }),
        compact.refused("compact, no wrapped keys", "missing-wrapped-keys", |stream| {
            stream.wrapped_keys = None;
        }),
        compact.refused("compact, wrapped keys of another DEK", "invalid", |stream| {
            let at = 48;
            let len = usize::from(u16::from_le_bytes([short.sealed[6], short.sealed[7]]));
            stream.wrapped_keys = Some(short.sealed[at..at + len].to_vec());
        }),
        unknown.refused("an unknown KEK", "unknown-kek", |_| {}),
    ])
}
