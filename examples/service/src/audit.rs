//! The audit trail, and its keys.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use waxseal::audit::{AppendTo, AuditKey, AuditTrail, CheckpointKey, TrailDirectory};

/// Starts the trail. What it shows of each domain is in domains.toml.
pub(crate) fn start(data: &Path) -> Result<AuditTrail, Box<dyn Error>> {
    let key = CheckpointKey::ed25519(&key_in(&data.join("audit-signing.key"))?);
    if let Some(public) = key.public_key() {
        // An auditor verifies with this one, and cannot sign with it.
        let hex: String = public.iter().map(|byte| format!("{byte:02x}")).collect();
        tracing::info!("the audit trail is verified with the public key {hex}");
    }
    let values = key_in(&data.join("audit-values.key"))?;
    let trail = AuditTrail::builder()
        .service("example")
        .directory(TrailDirectory::new(data.join("audit")))
        .context_key(AuditKey::from_slice(&values)?)
        .checkpoint_key(key)
        // On another machine in production: who can rewrite the trail must not reach it.
        .checkpoints_to(AppendTo::open(data.join("checkpoints.jsonl"))?)
        .start()?;
    Ok(trail)
}

/// Returns the key in a file, which is made if there is none. In production it is a secret that is
/// mounted into the service.
fn key_in(path: &Path) -> Result<[u8; 32], Box<dyn Error>> {
    if !path.exists() {
        let mut key = [0; 32];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut key)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&key)?;
    }
    let key = fs::read(path)?;
    key.try_into().map_err(|_| format!("{}: a key has 32 bytes", path.display()).into())
}
