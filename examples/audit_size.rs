//! How much memory it takes to verify a large audit trail.
//!
//!     cargo run --release -p waxseal-examples --features audit --example audit_size -- 1000
//!
//! It makes a trail of so many megabytes in a directory for temporary files, and verifies it in a
//! process of its own, whose highest memory the kernel tells (`VmHWM`). The trail is removed.

use std::error::Error;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use waxseal::audit::{
    AuditTrail, Backpressure, CheckpointKey, CheckpointVerifier, Disclosure, SyncPolicy,
    TrailDirectory, Verifier,
};
use waxseal::{DekId, EncryptionContext, Event, KekId, Observer};

/// A real service draws it from a random number generator, once.
const SEED: [u8; 32] = *b"an example's key, never for use!";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["verify", directory] => verify(Path::new(directory)),
        [megabytes] => megabytes.parse().map_err(Into::into).and_then(measure),
        _ => Err("audit_size MEGABYTES".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("audit_size: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(megabytes: u64) -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("audit");
    make(&path, megabytes.saturating_mul(1_000_000))?;
    let status = Command::new(std::env::current_exe()?).arg("verify").arg(&path).status()?;
    if status.success() { Ok(()) } else { Err("the trail could not be verified".into()) }
}

/// Writes unwraps until the trail has so many bytes.
fn make(path: &Path, bytes: u64) -> Result<(), Box<dyn Error>> {
    let trail = AuditTrail::builder()
        .service("cards")
        .directory(TrailDirectory::new(path).sync(SyncPolicy::Never))
        .other_context_values(Disclosure::Clear)
        .checkpoint_key(CheckpointKey::ed25519(&SEED))
        .backpressure(Backpressure::Block(Duration::from_secs(60)))
        .close_within(Duration::from_secs(60))
        .start()?;
    let context = EncryptionContext::new([("tenant", "acme"), ("table", "cards")])?;
    let kek_id = KekId::new("arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef")?;
    let mut sent = 0_u64;
    while size_of_trail(path)? < bytes {
        for _ in 0..10_000 {
            sent += 1;
            let mut id = [7; 32];
            id[..8].copy_from_slice(&sent.to_le_bytes());
            let dek_id = DekId::from_bytes(id);
            trail.event(&Event::Unwrapped {
                dek_id: &dek_id,
                context: &context,
                kek_id: &kek_id,
                kek_version: Some("1"),
                request_id: Some("4112f4d6-db54-4af4-ae30-c55a22a8dfae"),
            });
        }
    }
    if trail.close() { Ok(()) } else { Err("the trail could not be written".into()) }
}

fn size_of_trail(path: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

fn verify(path: &Path) -> Result<(), Box<dyn Error>> {
    let public = CheckpointKey::ed25519(&SEED).public_key().ok_or("no public key")?;
    let verifier = Verifier::new().key(CheckpointVerifier::ed25519(&public)?);
    let (bytes, began) = (size_of_trail(path)?, Instant::now());
    let found = verifier.verify(path)?;
    if let Some(fault) = found.fault {
        return Err(fault.to_string().into());
    }
    println!(
        "{} MB, {} records, {} checkpoints accepted, in {:.1} s with at most {} of memory",
        bytes / 1_000_000,
        found.records,
        found.checkpoints,
        began.elapsed().as_secs_f64(),
        highest_memory()?
    );
    Ok(())
}

/// As the kernel tells it.
fn highest_memory() -> Result<String, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.ok_or("the kernel does not tell")?.trim().to_owned())
}
