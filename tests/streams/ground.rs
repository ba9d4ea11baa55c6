//! Streams to test with.

use std::io::{self, Read, Write};

pub(crate) use waxseal_testing::support::{SUITES, block_on, context, envelope, local};

use waxseal::kek::local::LocalKek;
use waxseal::{Aad, EncryptionContext, Envelope, Error, ErrorKind, StreamOptions};

pub(crate) const CHUNK: usize = 4096;
pub(crate) const SEALED_CHUNK: usize = CHUNK + 16;
pub(crate) const AAD: &[u8] = b"backup 17";

pub(crate) fn small() -> StreamOptions {
    StreamOptions::default().chunk_size(4096)
}

/// Bytes of which no two chunks are alike.
pub(crate) fn plaintext(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i ^ (i >> 8).wrapping_mul(37)) % 251).unwrap()).collect()
}

pub(crate) fn sealed_by(envelope: &Envelope, options: StreamOptions, plaintext: &[u8]) -> Vec<u8> {
    let encryptor =
        block_on(envelope.stream_encryptor(&context("alice"), Aad::from(AAD), options)).unwrap();
    let expected = encryptor.stream_len(plaintext.len().try_into().unwrap()).unwrap();
    let mut writer = encryptor.writer(Vec::new());
    writer.write_all(plaintext).unwrap();
    let sealed = writer.finish().unwrap();
    assert_eq!(sealed.len(), usize::try_from(expected).unwrap());
    sealed
}

/// A KEK, and a stream of chunks of 4 KiB under it.
pub(crate) fn stream(plaintext: &[u8]) -> (LocalKek, Vec<u8>) {
    let kek = local("kek");
    let sealed = sealed_by(&envelope(&kek), small(), plaintext);
    (kek, sealed)
}

/// What a stream gives until it ends or fails.
pub(crate) fn read(
    envelope: &Envelope,
    context: &EncryptionContext,
    aad: &[u8],
    sealed: impl Read,
) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut plaintext = Vec::new();
    let result = match block_on(envelope.decrypt_stream(context, Aad::from(aad), sealed)) {
        Ok(mut reader) => match reader.read_to_end(&mut plaintext) {
            Ok(_) => Ok(()),
            Err(error) => {
                // It stays so.
                assert_eq!(kind_of(&reader.read(&mut [0]).unwrap_err()), kind_of(&error));
                Err(kind_of(&error))
            }
        },
        Err(error) => Err(error.kind()),
    };
    (plaintext, result)
}

pub(crate) fn read_alice(envelope: &Envelope, sealed: &[u8]) -> (Vec<u8>, Result<(), ErrorKind>) {
    read(envelope, &context("alice"), AAD, sealed)
}

pub(crate) fn kind_of(error: &io::Error) -> ErrorKind {
    Error::of_io(error).unwrap_or_else(|| panic!("{error:?}")).kind()
}

/// Where the head of a stream ends.
pub(crate) fn head_len(sealed: &[u8]) -> usize {
    waxseal::StreamHead::from_prefix(sealed).unwrap().len()
}
