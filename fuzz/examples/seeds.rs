//! Writes `seeds/`: `cargo run --example seeds`, in this directory.
//!
//! Messages are sealed with random keys and nonces, so those that are there (`seeds/open/kept-*`)
//! are left alone: they also show that what an earlier state of the library sealed still opens. All
//! else is written again and comes out the same.

use std::path::Path;
use std::{fs, io};

use waxseal::audit::{AuditTrail, CheckpointKey, TrailDirectory};
use waxseal::store::{KeyKind, KeyRow};
use waxseal::{DekId, EncryptionContext, Event, KekId, Observer, WrappedDek, WrappedKeys};
use waxseal_fuzz::{SUITES, seal, seal_stream};

fn main() -> io::Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for target in
        ["header", "wrapped_keys", "context", "open", "key_row", "branch_entry", "stream", "trail"]
    {
        fs::create_dir_all(seeds.join(target))?;
    }
    open(&seeds.join("open"))?;
    header(&seeds.join("header"), &seeds.join("open"))?;
    wrapped_keys(&seeds.join("wrapped_keys"))?;
    key_row(&seeds.join("key_row"))?;
    branch_entry(&seeds.join("branch_entry"))?;
    stream(&seeds.join("stream"))?;
    trail(&seeds.join("trail"))?;
    context(&seeds.join("context"))
}

/// Changes: what to do, where, and a value. A stream that is there is left alone.
fn stream(dir: &Path) -> io::Result<()> {
    for (name, changes) in [
        ("unchanged", &[][..]),
        ("bit", &[0, 0, 2, 1]),
        ("cut", &[1, 0, 8, 0]),
        ("byte-more", &[2, 0, 9, 7]),
        ("spliced", &[4, 0, 6, 1]),
        ("first-chunk-missing", &[5, 0, 0, 0]),
        ("first-chunk-twice", &[6, 0, 0, 0]),
        ("last-chunk-missing", &[7, 2, 0, 0]),
        ("no-chunk", &[7, 0, 0, 0]),
        ("chunk-size", &[0, 40, 0, 1]),
        ("room", &[0, 41, 0, 1]),
    ] {
        for choice in 0..4 {
            fs::write(dir.join(format!("{name}-{choice}")), [&[choice], changes].concat())?;
        }
    }
    let kept = dir.join("kept");
    if !kept.exists() {
        fs::write(kept, [&[255], &seal_stream()[0][..]].concat())?;
    }
    Ok(())
}

/// The id of a trail is random, so one that is there is left alone.
fn trail(dir: &Path) -> io::Result<()> {
    let kept = dir.join("kept");
    if !kept.exists() {
        let work = std::env::temp_dir().join(format!("waxseal-seed-{}", std::process::id()));
        let trail = AuditTrail::builder()
            .directory(TrailDirectory::new(&work))
            .checkpoint_key(CheckpointKey::ed25519(&[7; 32]))
            .start()
            .map_err(io::Error::other)?;
        trail.event(&Event::ShutDown);
        trail.close();
        fs::copy(work.join("trail-00000001.jsonl"), &kept)?;
        fs::remove_dir_all(work)?;
    }
    let whole = fs::read(&kept)?;
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let [first, second, rest @ ..] = &lines[..] else { return Ok(()) };
    for (name, parts) in [
        ("cut", vec![&whole[..whole.len() - 20]]),
        ("first-removed", vec![second, &rest.concat()]),
        ("second-removed", vec![first, &rest.concat()]),
        ("swapped", vec![second, first, &rest.concat()]),
        ("repeated", vec![first, first, second, &rest.concat()]),
    ] {
        fs::write(dir.join(name), parts.concat())?;
    }
    Ok(())
}

fn open(dir: &Path) -> io::Result<()> {
    for suite in SUITES {
        let names =
            ["embedded", "compact"].map(|form| dir.join(format!("kept-{}-{form}", suite.id())));
        if names.iter().all(|name| name.exists()) {
            continue;
        }
        for (name, genuine) in names.iter().zip(seal(suite)) {
            fs::write(name, [&[255], &genuine.bytes[..]].concat())?;
        }
    }
    // Which genuine message (0 to 5: made again, 6 to 11: kept; the even ones embedded), then what
    // is done to it.
    for (name, input) in [
        ("unchanged-1-embedded", &b"\x00"[..]),
        ("unchanged-2-compact", b"\x03"),
        ("unchanged-3-embedded", b"\x04"),
        ("changed-suite", b"\x00\x00\x04\x00\x03"),
        ("changed-kind", b"\x00\x00\x05\x00\x03"),
        ("changed-wrapped-length", b"\x02\x00\x06\x00\x01"),
        ("changed-dek-id", b"\x00\x00\x08\x00\x80"),
        ("changed-nonce", b"\x01\x00\x28\x00\x01"),
        ("changed-wrapped-keys", b"\x06\x00\x50\x00\x01"),
        ("changed-ciphertext", b"\x01\x00\x34\x00\x01"),
        ("changed-tag-of-xaes", b"\x05\x00\x65\x00\x01"),
        ("truncated", b"\x00\x01\x43\x00\x00"),
        ("inserted", b"\x00\x02\x34\x00\x41"),
        ("drained", b"\x00\x03\x34\x00\x10"),
        ("tail-of-another", b"\x01\x04\x28\x00\x07"),
        ("its-keys-embedded", b"\x01\x05\x00\x00\x00"),
        ("its-keys-taken-out", b"\x00\x05\x00\x00\x01"),
        ("keys-of-another", b"\x00\x05\x00\x00\x02"),
    ] {
        fs::write(dir.join(name), input)?;
    }
    Ok(())
}

fn header(dir: &Path, open: &Path) -> io::Result<()> {
    let message = |name: &str| fs::read(open.join(name)).map(|seed| seed[1..].to_vec());
    let embedded = message("kept-1-embedded")?;
    let stream = |suite| [&b"\xC1WX\x01"[..], &[suite], b"\x02\x00\x00", &[7; 32]].concat();
    for (name, bytes) in [
        ("message-1-embedded", &embedded[..]),
        ("message-2-compact", &message("kept-2-compact")?),
        ("message-3-embedded", &message("kept-3-embedded")?),
        ("message-3-compact", &message("kept-3-compact")?),
        ("message-header-only", &embedded[..40]),
        ("message-cut", &embedded[..100]),
        ("stream", &stream(2)),
        ("stream-of-xaes", &stream(3)),
        ("version-2", b"\xC1WX\x02\x01\x01\x00\x00"),
        ("plain-text", b"4111 1111 1111 1111 is not sealed, though it is long enough"),
    ] {
        fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

fn wrapped_keys(dir: &Path) -> io::Result<()> {
    let entry = |id: &str, wrapped: usize, meta: usize| {
        let entry = WrappedDek::new(KekId::new(id).unwrap(), vec![0xAA; wrapped]).unwrap();
        entry.with_meta(vec![0xBB; meta]).unwrap()
    };
    let aws = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    for (name, entries) in [
        ("one", vec![entry("local:a", 76, 0)]),
        (
            "three",
            vec![entry("local:a", 76, 0), entry(aws, 184, 1), entry("vault:c/transit/k", 89, 4)],
        ),
        (
            "lengths-250-and-251",
            vec![entry("a", 250, 0), entry("b", 251, 0), entry(&"k".repeat(250), 1, 0)],
        ),
        ("id-of-251", vec![entry(&"k".repeat(251), 1, 64)]),
        ("longest", vec![entry(&"k".repeat(512), 6144, 64)]),
        ("sixteen", (0..16).map(|i| entry(&format!("kek-{i}"), 3, 0)).collect()),
    ] {
        fs::write(dir.join(name), WrappedKeys::new(entries).unwrap().as_bytes())?;
    }
    // What the list must not have.
    let length_250_as_u16 = [&b"\x01\x01a\xFB\xFA\x00"[..], &[b'w'; 250], b"\x00"].concat();
    for (name, bytes) in [
        ("refused-length-250-as-u16", &length_250_as_u16[..]),
        ("refused-order", b"\x02\x01b\x01w\x00\x01a\x01w\x00"),
        ("refused-twice", b"\x02\x01a\x01w\x00\x01a\x01x\x00"),
        ("refused-length-not-shortest", b"\x01\xFB\x01\x00a\x01w\x00"),
        ("refused-length-of-32-bits", b"\x01\x01a\xFC\x01\x00\x00\x00w\x00"),
        ("refused-no-entry", b"\x00"),
        ("refused-one-byte-more", b"\x01\x01a\x01w\x00\x00"),
    ] {
        fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

const ID: DekId = DekId::from_bytes([9; 32]);

fn live(kind: KeyKind, ids: &[&str]) -> KeyRow {
    let entry = |id: &&str| WrappedDek::new(KekId::new(id).unwrap(), vec![0xAA; 76]).unwrap();
    let keys = WrappedKeys::new(ids.iter().map(entry)).unwrap();
    KeyRow::live(kind, ID, EncryptionContext::new([("tenant", "alice")]).unwrap(), keys)
}

/// With reserved names, which no context of a caller has.
fn branch_row() -> Vec<u8> {
    let row = live(KeyKind::Branch, &["local:root"]).to_bytes();
    let mut context = b"WXC\x01\x03\x00".to_vec();
    for part in
        ["tenant", "alice", "waxseal:branch", "orders", "waxseal:period", "2026-11-01T00:00:00Z"]
    {
        context.extend(u16::try_from(part.len()).unwrap().to_le_bytes());
        context.extend(part.as_bytes());
    }
    let keys = &row[row.len() - usize::from(row[6])..];
    [&row[..40], &u16::try_from(context.len()).unwrap().to_le_bytes(), &context, keys].concat()
}

fn key_row(dir: &Path) -> io::Result<()> {
    let branch = branch_row();
    let tombstone = KeyRow::tombstone(KeyKind::Branch, ID).to_bytes();
    let with = |at: usize, byte: u8| {
        let mut row = branch.clone();
        row[at] = byte;
        row
    };
    for (name, bytes) in [
        ("branch-key", branch.clone()),
        ("dek", live(KeyKind::Dek, &["local:root"]).to_bytes()),
        ("index-key-two-keks", live(KeyKind::Index, &["local:root", "local:spare"]).to_bytes()),
        ("tombstone", tombstone.clone()),
        // What a row must not have.
        ("refused-version", with(3, 2)),
        ("refused-state", with(4, 2)),
        ("refused-kind", with(5, 3)),
        ("refused-tombstone-with-keys", with(4, 1)),
        ("refused-wrapped-length", with(7, 0xFF)),
        ("refused-context-length", with(41, 0xFF)),
        ("refused-context", with(42, b'X')),
        ("refused-one-byte-more", [&branch[..], b"\0"].concat()),
        ("refused-tombstone-cut", tombstone[..41].to_vec()),
    ] {
        fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

fn branch_entry(dir: &Path) -> io::Result<()> {
    let row = branch_row();
    let derived = [&[1], &[9; 16][..], &[7; 16]].concat();
    let wrapped = [&[2], &[9; 16][..], &[7; 72]].concat();
    let contained = |entry: &[u8], row: &[u8]| {
        let len = u16::try_from(row.len()).unwrap().to_le_bytes();
        [&[3, entry[0]], &len[..], row, &entry[1..]].concat()
    };
    let tombstone = KeyRow::tombstone(KeyKind::Branch, ID).to_bytes();
    for (name, bytes) in [
        ("derived", derived.clone()),
        ("wrapped", wrapped.clone()),
        ("self-contained-derived", contained(&derived, &row)),
        ("self-contained-wrapped", contained(&wrapped, &row)),
        // What an entry must not have.
        ("refused-form", [&[4], &derived[1..]].concat()),
        ("refused-length", wrapped[..33].to_vec()),
        ("refused-nested", contained(&contained(&derived, &row), &row)),
        ("refused-tombstone", contained(&derived, &tombstone)),
        ("refused-kind", contained(&derived, &live(KeyKind::Dek, &["local:root"]).to_bytes())),
        ("refused-reference", contained(&[&[1], &[8; 32][..]].concat(), &row)),
        ("refused-row-length", b"\x03\x01\xFF\xFF\xC1WK\x01".to_vec()),
    ] {
        fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

fn context(dir: &Path) -> io::Result<()> {
    let pairs = |pairs: &[(&str, &str)]| EncryptionContext::new(pairs.iter().copied()).unwrap();
    let many = EncryptionContext::new((0..64).map(|i| (format!("n{i}"), "v"))).unwrap();
    for (name, context) in [
        ("empty", EncryptionContext::empty()),
        ("one", pairs(&[("tenant", "alice")])),
        ("three", pairs(&[("tenant", "alice"), ("table", "cards"), ("ten", "\u{20AC} \u{1F511}")])),
        ("many", many),
        ("long", pairs(&[(&"n".repeat(256), &"v".repeat(4096))])),
    ] {
        fs::write(dir.join(name), context.as_bytes())?;
    }
    // What a context must not have.
    for (name, bytes) in [
        ("refused-order", &b"WXC\x01\x02\x00\x01\x00b\x01\x002\x01\x00a\x01\x001"[..]),
        ("refused-same-name", b"WXC\x01\x02\x00\x01\x00A\x01\x002\x01\x00a\x01\x001"),
        ("refused-reserved", b"WXC\x01\x01\x00\x09\x00WaxSeal-x\x01\x001"),
        ("refused-control", b"WXC\x01\x01\x00\x01\x00a\x01\x00\n"),
        ("refused-one-byte-more", b"WXC\x01\x00\x00\x00"),
    ] {
        fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}
