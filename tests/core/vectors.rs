//! The committed vectors (tests/vectors/README.md), through the library and through the second
//! reader.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::io::Read;
use std::path::PathBuf;
use std::process::Command;
use waxseal_testing::python;

use data_encoding::HEXLOWER;
use pollster::block_on;
use serde_json::Value;
use sha2::{Digest, Sha256};
use waxseal::kek::local::LocalKek;
use waxseal::store::{KeyRow, RowId};
use waxseal::{
    Aad, Backend, EncryptionContext, Envelope, Error, ErrorKind, Sealed, StreamHead, WrappedKeys,
};

fn file(path: &str) -> PathBuf {
    waxseal_testing::top().join("tests").join(path)
}

fn vectors_of(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(file("vectors").join(name)).unwrap()).unwrap()
}

fn vectors() -> Value {
    vectors_of("messages.json")
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn context(value: &Value) -> EncryptionContext {
    let pairs = value.as_array().unwrap().iter();
    EncryptionContext::new(pairs.map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap())))
        .unwrap()
}

fn reader(vectors: &Value, backend: Backend) -> Envelope {
    let mut builder = Envelope::builder().backend(backend);
    for kek in vectors["keks"].as_array().unwrap() {
        let name = kek["id"].as_str().unwrap().strip_prefix("local:").unwrap();
        let secrets: Vec<(u32, [u8; 32])> = (kek["versions"].as_object().unwrap().iter())
            .map(|(version, secret)| (version.parse().unwrap(), hex(secret).try_into().unwrap()))
            .collect();
        builder = builder.unwrap_with(
            LocalKek::from_secrets(name, secrets.iter().map(|(v, s)| (*v, s))).unwrap(),
        );
    }
    builder.build().unwrap()
}

fn kind_of(name: &str) -> ErrorKind {
    match name {
        "not-sealed" => ErrorKind::NotSealed,
        "unsupported-version" => ErrorKind::UnsupportedVersion,
        "unsupported-suite" => ErrorKind::UnsupportedSuite,
        "unsupported-kind" => ErrorKind::UnsupportedKind,
        "unsupported-chunk-size" => ErrorKind::UnsupportedChunkSize,
        "malformed" => ErrorKind::Malformed,
        "missing-wrapped-keys" => ErrorKind::MissingWrappedKeys,
        "unknown-kek" => ErrorKind::UnknownKek,
        "invalid" => ErrorKind::Invalid,
        other => panic!("{other} is no kind of the vectors"),
    }
}

fn open(reader: &Envelope, message: &Value) -> Result<Vec<u8>, Error> {
    let (context, aad, sealed) =
        (context(&message["context"]), hex(&message["aad"]), hex(&message["sealed"]));
    let opened = match &message["wrapped_keys"] {
        Value::Null => block_on(reader.decrypt(&context, Aad::from(&aad), &sealed))?,
        keys => block_on(reader.decrypt(
            &context,
            Aad::from(&aad),
            Sealed::compact(&sealed, &WrappedKeys::try_from(&hex(keys)[..])?),
        ))?,
    };
    Ok(opened.to_vec())
}

#[test]
fn the_library_opens_every_vector_and_refuses_every_negative_one() {
    let vectors = vectors();
    let messages = vectors["messages"].as_array().unwrap();
    assert!(messages.len() >= 266);
    for backend in Backend::all() {
        for message in messages {
            let name = message["name"].as_str().unwrap();
            // A new reader for each, so nothing is cached.
            match (open(&reader(&vectors, *backend), message), message["error"].as_str()) {
                (Ok(plaintext), None) => match &message["plaintext"] {
                    Value::Null => {
                        assert_eq!(
                            Sha256::digest(plaintext)[..],
                            hex(&message["plaintext_sha256"]),
                            "{name}"
                        )
                    }
                    expected => assert_eq!(plaintext, hex(expected), "{name}"),
                },
                (Err(error), Some(expected)) => {
                    assert_eq!(error.kind(), kind_of(expected), "{name}: {error}")
                }
                (Ok(_), Some(expected)) => panic!("{name}: opened, where {expected} was expected"),
                (Err(error), None) => panic!("{name}: {error}"),
            }
        }
    }
}

#[test]
fn the_library_reads_every_valid_encoding_and_no_other() {
    let vectors = vectors();
    let known = &vectors["known_answer"];
    assert_eq!(context(&known["context"]).as_bytes(), hex(&known["context_bytes"]));
    for vector in vectors["contexts"].as_array().unwrap() {
        let bytes = hex(&vector["bytes"]);
        match EncryptionContext::try_from(&bytes[..]) {
            Ok(context) => {
                assert!(vector["valid"] == true && context.as_bytes() == bytes, "{}", vector["why"])
            }
            Err(_) => assert!(vector["valid"] == false, "{}", vector["why"]),
        }
    }
    for vector in vectors["wrapped_keys"].as_array().unwrap() {
        let bytes = hex(&vector["bytes"]);
        match WrappedKeys::try_from(&bytes[..]) {
            Ok(keys) => {
                assert!(vector["valid"] == true && keys.as_bytes() == bytes, "{}", vector["why"])
            }
            Err(_) => assert!(vector["valid"] == false, "{}", vector["why"]),
        }
    }
}

#[test]
fn the_library_reads_every_valid_key_row_and_no_other() {
    let vectors = vectors_of("branch_keys.json");
    let rows = vectors["key_rows"].as_array().unwrap();
    assert!(rows.len() >= 61);
    for vector in rows {
        let (bytes, why) = (hex(&vector["bytes"]), &vector["why"]);
        match (KeyRow::try_from(&bytes[..]), vector["error"].as_str()) {
            (Ok(row), None) => {
                assert_eq!(row.to_bytes(), bytes, "{why}");
                assert_eq!(RowId::from(row.id()).as_bytes()[..], bytes[8..24], "{why}");
                assert_eq!(row.is_tombstone(), bytes.len() == 42, "{why}");
                assert_eq!(row.context().is_none(), row.is_tombstone(), "{why}");
                assert_eq!(row.wrapped_keys().is_none(), row.is_tombstone(), "{why}");
            }
            (Err(error), Some(expected)) => {
                assert_eq!(error.kind(), kind_of(expected), "{why}: {error}")
            }
            (read, expected) => panic!("{why}: {read:?}, where {expected:?} was expected"),
        }
    }
}

fn open_stream(reader: &Envelope, stream: &Value) -> Result<Vec<u8>, Error> {
    let (context, aad, sealed) =
        (context(&stream["context"]), hex(&stream["aad"]), hex(&stream["sealed"]));
    let mut head = StreamHead::from_prefix(&sealed)?;
    if let Some(keys) = stream["wrapped_keys"].as_str() {
        let keys = HEXLOWER.decode(keys.as_bytes()).unwrap();
        head = head.with_wrapped_keys(&WrappedKeys::try_from(&keys[..])?);
    }
    let decryptor = block_on(reader.stream_decryptor(&context, Aad::from(&aad), &head))?;
    let mut plaintext = Vec::new();
    match decryptor.reader(&sealed[head.len()..]).read_to_end(&mut plaintext) {
        Ok(_) => Ok(plaintext),
        Err(error) => Err(Error::of_io(&error).unwrap().clone()),
    }
}

#[test]
fn the_library_reads_every_stream_and_refuses_every_negative_one() {
    let vectors = vectors_of("streams.json");
    let streams = vectors["streams"].as_array().unwrap();
    assert!(streams.len() >= 108);
    for backend in Backend::all() {
        for stream in streams {
            let name = stream["name"].as_str().unwrap();
            match (open_stream(&reader(&vectors, *backend), stream), stream["error"].as_str()) {
                (Ok(plaintext), None) => match &stream["plaintext"] {
                    Value::Null => {
                        let digest = hex(&stream["plaintext_sha256"]);
                        assert_eq!(Sha256::digest(plaintext)[..], digest, "{name}");
                    }
                    expected => assert_eq!(plaintext, hex(expected), "{name}"),
                },
                (Err(_), Some("any")) => {}
                (Err(error), Some(expected)) => {
                    assert_eq!(error.kind(), kind_of(expected), "{name}: {error}")
                }
                (read, expected) => panic!("{name}: {read:?}, where {expected:?} was expected"),
            }
        }
    }
}

#[test]
fn the_second_reader_agrees() {
    let python = python::second_reader();
    let output = Command::new(python)
        .arg("-B")
        .arg(file("second_reader/vectors.py"))
        .args(
            ["messages.json", "branch_keys.json", "streams.json"]
                .map(|name| file("vectors").join(name)),
        )
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    // It checked as much as there is, and the known answers.
    let lists = ["messages", "contexts", "wrapped_keys", "key_rows", "branch_entries", "streams"];
    let count_of = |vectors: &Value| {
        lists.iter().filter_map(|part| vectors[part].as_array()).map(Vec::len).sum::<usize>()
    };
    let files = ["messages.json", "branch_keys.json", "streams.json"];
    let count: usize = files.iter().map(|name| count_of(&vectors_of(name))).sum();
    assert!(count >= 266 + 34 + 27 + 116 + 61 + 49 + 108);
    let passed: usize = text.lines().last().unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(passed > count, "{text}");
}
