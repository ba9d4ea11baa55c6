//! What the targets `open` and `stream` and the example `seeds` share: one KEK, one context, one
//! AAD, one plaintext. And what measures the allocations of the targets `key_row`, `branch_entry`
//! and `stream`.

use std::io::Write;
use std::time::Duration;

use pollster::block_on;
use waxseal::kek::local::LocalKek;
use waxseal::{Aad, EncryptionContext, Envelope, Limits, StreamOptions, Suite, WrappedKeys};

/// Every suite.
pub const SUITES: [Suite; 3] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Xaes256Gcm];
/// The AAD of every message.
pub const AAD: &[u8] = b"row 17";
/// The plaintext of every message.
pub const PLAINTEXT: &[u8] = b"4111 1111 1111 1111, as it was sealed";

/// A KEK that is the same in every process.
///
/// # Panics
/// If the library refuses it.
#[must_use]
pub fn kek(name: &str, secret: u8) -> LocalKek {
    LocalKek::from_secrets(name, [(1, &[secret; 32])]).unwrap()
}

/// The context of every message.
///
/// # Panics
/// If the library refuses it.
#[must_use]
pub fn context() -> EncryptionContext {
    EncryptionContext::new([("tenant", "alice")]).unwrap()
}

/// An envelope without a cached DEK, which has only one of the two KEKs of [`seal`].
///
/// # Panics
/// If the library refuses it.
#[must_use]
pub fn reader() -> Envelope {
    // No lease may end within a run: the targets take "it cannot be opened" for an answer about the
    // message. A stream has what is left of 24 hours.
    let limits = Limits::default().max_age(Duration::from_secs(22 * 60 * 60));
    Envelope::builder().unwrap_with(kek("fuzz", 7)).limits(limits).build().unwrap()
}

/// A message that opens.
#[derive(Clone, Debug)]
pub struct Genuine {
    /// The message.
    pub bytes: Vec<u8>,
    /// What opens it, be it embedded or not.
    pub wrapped_keys: WrappedKeys,
}

/// Seals an embedded and a compact message of one new DEK, under two KEKs.
///
/// # Panics
/// If sealing fails.
#[must_use]
pub fn seal(suite: Suite) -> [Genuine; 2] {
    let writer = Envelope::builder()
        .suite(suite)
        .wrap_with(kek("fuzz", 7))
        .wrap_with(kek("other", 8))
        .build()
        .unwrap();
    let embedded = block_on(writer.encrypt(&context(), Aad::from(AAD), PLAINTEXT)).unwrap();
    let compact = block_on(writer.encrypt_compact(&context(), Aad::from(AAD), PLAINTEXT)).unwrap();
    let genuine = |bytes| Genuine { bytes, wrapped_keys: compact.wrapped_keys().clone() };
    [genuine(embedded), genuine(compact.as_bytes().to_vec())]
}

/// The plaintext of every stream: two chunks of 4 KiB and a bit.
#[must_use]
pub fn stream_plaintext() -> Vec<u8> {
    (0..=250).cycle().take(2 * 4096 + 77).collect()
}

/// Writes a stream of both suites, without room and with it.
///
/// # Panics
/// If that fails.
#[must_use]
pub fn seal_stream() -> Vec<Vec<u8>> {
    let (context, mut streams) = (context(), Vec::new());
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let builder = Envelope::builder().suite(suite).wrap_with(kek("fuzz", 7));
        let writer = builder.wrap_with(kek("other", 8)).build().unwrap();
        for room in [0, 40] {
            let options = StreamOptions::default().chunk_size(4096).room(room);
            let encryptor = writer.stream_encryptor(&context, Aad::from(AAD), options);
            let mut stream = block_on(encryptor).unwrap().writer(Vec::new());
            stream.write_all(&stream_plaintext()).unwrap();
            streams.push(stream.finish().unwrap());
        }
    }
    streams
}

/// Reads `bytes`, and checks that all that was allocated meanwhile is in proportion to what is
/// there. A length field claims up to 65,535 bytes, more than this allows for a short input.
///
/// # Panics
/// If more was allocated.
pub fn allocating_no_more_than_it_has<'b, R>(
    bytes: &'b [u8],
    read: impl FnOnce(&'b [u8]) -> R,
) -> R {
    let mut result = None;
    let allocated = allocation_counter::measure(|| result = Some(read(bytes))).bytes_total;
    let most = 16 * 1024 + 32 * u64::try_from(bytes.len()).unwrap();
    assert!(allocated <= most, "{allocated} bytes for an input of {}", bytes.len());
    result.unwrap()
}
