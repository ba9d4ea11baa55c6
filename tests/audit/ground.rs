//! Trails to try things on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use waxseal::audit::{
    AuditSink, AuditTrail, AuditTrailBuilder, CheckpointKey, CheckpointVerifier, Record,
    TrailDirectory, Verification, Verifier,
};
use waxseal::{DekId, EncryptionContext, Event, KekId, Observer};

pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const SEED: [u8; 32] = [7; 32];

/// A directory that is gone with the test, and the trail's in it.
pub(crate) struct Place {
    _directory: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        Self { _directory: directory, path }
    }

    pub(crate) fn file(&self, number: u64) -> PathBuf {
        self.path.join(format!("trail-{number:08}.jsonl"))
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let files = (1..).map(|number| self.file(number)).take_while(|path| path.exists());
        files.collect()
    }

    /// A copy to spoil.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        fs::create_dir(&copy.path).unwrap();
        for file in self.files() {
            fs::copy(&file, copy.path.join(file.file_name().unwrap())).unwrap();
        }
        copy
    }

    pub(crate) fn lines(&self, number: u64) -> Vec<String> {
        let text = fs::read_to_string(self.file(number)).unwrap();
        text.split_inclusive('\n').map(str::to_owned).collect()
    }

    pub(crate) fn write(&self, number: u64, lines: &[String]) {
        fs::write(self.file(number), lines.concat()).unwrap();
    }

    pub(crate) fn verify(&self) -> Verification {
        Verifier::new().verify(&self.path).unwrap()
    }

    /// Every record, from a trail without a fault.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        let found =
            Verifier::new().verify_each(&self.path, |record| records.push(record.clone())).unwrap();
        assert_eq!(found.fault, None);
        records
    }
}

pub(crate) fn builder(place: &Place) -> AuditTrailBuilder {
    AuditTrail::builder().directory(TrailDirectory::new(&place.path))
}

pub(crate) fn key() -> CheckpointKey {
    CheckpointKey::ed25519(&SEED)
}

pub(crate) fn public() -> CheckpointVerifier {
    CheckpointVerifier::ed25519(&key().public_key().unwrap()).unwrap()
}

pub(crate) fn context() -> EncryptionContext {
    EncryptionContext::new([("tenant", "acme"), ("table", "cards")]).unwrap()
}

pub(crate) fn unwrapped<'a>(
    dek_id: &'a DekId,
    context: &'a EncryptionContext,
    kek_id: &'a KekId,
) -> Event<'a> {
    Event::Unwrapped { dek_id, context, kek_id, kek_version: None, request_id: None }
}

/// Records this many unwraps, each of another DEK.
pub(crate) fn record(trail: &AuditTrail, events: std::ops::Range<u8>) {
    let (context, kek_id) = (context(), KekId::new("local:test").unwrap());
    for n in events {
        let dek_id = DekId::from_bytes([n; 32]);
        trail.event(&unwrapped(&dek_id, &context, &kek_id));
    }
}

pub(crate) fn flushed(trail: &AuditTrail) {
    assert!(trail.flush(LONG), "{trail:?}");
}

/// A closed trail of this many events, in files of about 4 KiB, with some checkpoints.
pub(crate) fn a_trail(events: u8) -> Place {
    let place = Place::new();
    let directory = TrailDirectory::new(&place.path).max_bytes(4096);
    let trail = AuditTrail::builder()
        .directory(directory)
        .checkpoint_key(key())
        .checkpoint_every(5, LONG)
        .start()
        .unwrap();
    record(&trail, 0..events);
    assert!(trail.close());
    place
}

/// Hashes the lines of a trail again, as an attacker who can write its files can. Each file
/// continues where the last one ended.
pub(crate) fn chained_anew(place: &Place) {
    let id = place.lines(1)[0].split("metadata.uid\":\"").nth(1).unwrap()[..16].to_owned();
    let id: Vec<u8> =
        (0..8).map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).unwrap()).collect();
    let mut head = Sha256::digest([&b"waxseal.audit.v1 chain\0"[..], &id].concat());
    for number in 1..=u64::try_from(place.files().len()).unwrap() {
        let mut lines = place.lines(number);
        for line in &mut lines {
            let mut covered = line.split(",\"hash\":\"").next().unwrap().to_owned();
            // That of a checkpoint is another, and signed.
            let begins = !covered.contains("waxseal.checkpoint");
            if let Some(at) = covered.find("\"previous\":\"").filter(|_| begins) {
                let at = at + "\"previous\":\"".len();
                covered.replace_range(at..at + 64, &hex(&head));
            }
            head = Sha256::digest([&head[..], covered.as_bytes()].concat());
            *line = format!("{covered},\"hash\":\"{}\"}}\n", hex(&head));
        }
        place.write(number, &lines);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keeps what it receives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept(pub(crate) Arc<Mutex<Vec<String>>>);

impl AuditSink for Kept {
    fn write(&mut self, _: &Record, line: &str) -> std::io::Result<()> {
        self.0.lock().unwrap().push(line.to_owned());
        Ok(())
    }
}

impl Kept {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

pub(crate) fn activities(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| &*record.activity).collect()
}

/// Runs a test of this binary in its own process, with a variable that says what to do.
pub(crate) fn child(test: &str, variable: &str, value: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(variable, value);
    command
}
