//! Bundles, good and bad.

use std::fs;
use std::io::{Read, Write};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use tar::{Builder, EntryType, Header};
use waxseal_policy::{RegoPolicy, RegoSources};

use super::{HEAD, caller, encrypt, envelope};

pub(crate) fn archive(files: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut archive = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, kind, text) in files {
        let mut header = Header::new_gnu();
        // Not with `set_path`, which refuses what a hostile archive has.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(u64::try_from(text.len()).unwrap());
        header.set_mode(0o600);
        header.set_cksum();
        archive.append(&header, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut all).unwrap();
    all
}

fn policy(bytes: &[u8]) -> Result<RegoPolicy, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let built = RegoPolicy::builder(RegoSources::new().bundle(file.path())).watch(None).build();
    built.map_err(|error| error.to_string())
}

fn text() -> String {
    format!("{HEAD}allow if input.caller.service in data.orders.services\n")
}

const FILE: EntryType = EntryType::Regular;
const DATA: (&str, EntryType, &str) = ("/orders/data.json", FILE, r#"{"services": ["billing"]}"#);

#[test]
fn a_bundle_decides_and_names_its_revision() {
    let text = text();
    let manifest = (".manifest", FILE, r#"{"revision": "r7", "rego_version": 1}"#);
    let bytes = archive(&[DATA, ("/policy.rego", FILE, &text), manifest]);
    let policy = policy(&bytes).unwrap();
    assert_eq!(policy.status().revision, "r7");
    let envelope = envelope(policy);
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
    assert!(encrypt(&envelope, &caller("other")).is_err());
}

#[test]
fn a_bundle_that_is_not_plainly_good_is_refused() {
    let text = text();
    let rego = ("policy.rego", FILE, &*text);
    for (entry, why) in [
        ((".signatures.json", FILE, r#"{"signatures": []}"#), "is signed"),
        (("/.signatures.json", FILE, "{}"), "is signed"),
        (("./.signatures.json", FILE, "{}"), "is signed"),
        (("policy.rego", FILE, "package waxseal\n\nallow := true\n"), "twice"),
        (("a/../../b.rego", FILE, "package b\n"), "out of the bundle"),
        (("link.rego", EntryType::Symlink, ""), "neither a file"),
        (("link.rego", EntryType::Link, ""), "neither a file"),
        (("pipe.rego", EntryType::Fifo, ""), "neither a file"),
        (("policy.wasm", FILE, "\0asm"), "compiled"),
        (("patch.json", FILE, "{}"), "delta"),
        (("data.yaml", FILE, "a: 1"), "YAML"),
        (("data.json", FILE, "[1]"), "object"),
        (("data.json", FILE, "{"), "JSON"),
        ((".manifest", FILE, r#"{"rego_version": 0}"#), "rego_version"),
        ((".manifest", FILE, r#"{"file_rego_versions": {"/a.rego": 0}}"#), "rego_version"),
        ((".manifest", FILE, "?"), "JSON"),
    ] {
        let error = policy(&archive(&[rego, DATA, entry])).unwrap_err();
        assert!(error.contains(why), "{entry:?}: {error}");
    }
    // The control.
    assert!(policy(&archive(&[rego, DATA])).is_ok());
}

#[test]
fn a_bundle_that_is_cut_off_or_changed_is_refused_at_every_byte() {
    let text = text();
    let whole = archive(&[("policy.rego", FILE, &text), DATA]);
    for end in 0..whole.len() {
        assert!(policy(&whole[..end]).is_err(), "cut at {end} of {}", whole.len());
    }
    let mut accepted = Vec::new();
    for at in 10..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        // Zeros that are copied from elsewhere are zeros: what unpacks to the same is the same.
        if policy(&changed).is_ok() && unpacked(&changed) != unpacked(&whole) {
            accepted.push(at);
        }
    }
    // The checksum of gzip finds all others.
    assert_eq!(accepted, Vec::<usize>::new(), "of {}", whole.len());
}

#[test]
fn what_unpacks_to_too_much_is_refused() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let mut header = Header::new_gnu();
    header.set_path("data.json").unwrap();
    header.set_entry_type(FILE);
    header.set_size(1 << 40);
    header.set_cksum();
    encoder.write_all(header.as_bytes()).unwrap();
    for _ in 0..80 {
        encoder.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    let bytes = encoder.finish().unwrap();
    assert!(bytes.len() < 1 << 20);
    assert!(policy(&bytes).is_err());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.rego");
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = RegoPolicy::builder(RegoSources::new().file(&path)).build().unwrap_err();
    assert!(error.to_string().contains("bytes"), "{error}");
}
