//! Seals every line of a file as a record of its own, opens all of them again, and shows what is
//! refused.
//!
//!     cargo run --release -p waxseal-examples --example quickstart [FILE]

#[path = "support/tap.rs"]
#[allow(unreachable_pub)]
mod tap;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pollster::block_on;
use tap::Tap;
use waxseal::kek::local::LocalKek;
use waxseal::{Aad, EncryptionContext, Envelope, inspect};

/// How many records are opened with no DEK cached, to time it.
const UNCACHED: usize = 200;

fn main() -> ExitCode {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/data/customers.csv");
    let path = std::env::args_os().nth(1).unwrap_or_else(|| default.into());
    let path = std::path::Path::new(&path);
    let result = match std::fs::read(path) {
        Ok(content) => run(path, &content),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display()).into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &std::path::Path, content: &[u8]) -> Result<(), Box<dyn Error>> {
    // A KEK: here a key file, in production a key service. It is wrapped only to count the calls to
    // it.
    let directory = tempfile::tempdir()?;
    let kek = LocalKek::open_or_create(directory.path().join("quickstart.kek"), "quickstart")?;
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let provider = Tap::new(kek.clone(), move |deks| {
        counter.fetch_add(deks, Ordering::Relaxed);
    });

    // One envelope for the whole service; clones of it share the DEKs.
    let envelope = Envelope::builder().wrap_with(provider.clone()).build()?;

    // The encryption context says what the key is for: one DEK for each. The AAD, here the line
    // number, belongs to one record.
    let context = EncryptionContext::new([("tenant", "alice"), ("table", "customers")])?;
    let records: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
    let aad = |line: usize| u64::try_from(line).unwrap_or(u64::MAX).to_be_bytes();

    // Seal.
    let start = Instant::now();
    let mut sealed = Vec::with_capacity(records.len());
    for (line, record) in records.iter().enumerate() {
        sealed.push(block_on(envelope.encrypt(&context, Aad::from(&aad(line)), record))?);
    }
    let sealing = start.elapsed();
    let calls_to_seal = calls.load(Ordering::Relaxed);

    // Open, and compare.
    let start = Instant::now();
    let mut opened = 0;
    for (line, (message, record)) in sealed.iter().zip(&records).enumerate() {
        let plaintext = block_on(envelope.decrypt(&context, Aad::from(&aad(line)), message))?;
        if &*plaintext != *record {
            return Err(format!("line {line} came back changed").into());
        }
        opened += 1;
    }
    let opening = start.elapsed();
    let calls_to_open = calls.load(Ordering::Relaxed) - calls_to_seal;

    println!("{}: {} records, {} bytes", path.display(), records.len(), content.len());
    println!("  sealed, opened again and equal: {opened} of {}", records.len());
    if let Some(message) = sealed.first() {
        refusals(&envelope, &context, message)?;
        rotation(&kek, &provider, &context, message, records.first().copied().unwrap_or_default())?;
    }

    // The same with no DEK cached: an envelope for each record, made beforehand.
    let cold: Vec<Envelope> = (0..UNCACHED.min(records.len()))
        .map(|_| Envelope::builder().unwrap_with(kek.clone()).build())
        .collect::<Result<_, _>>()?;
    let start = Instant::now();
    for (line, (envelope, message)) in cold.iter().zip(&sealed).enumerate() {
        block_on(envelope.decrypt(&context, Aad::from(&aad(line)), message))?;
    }
    let uncached = start.elapsed();

    let bytes_sealed: usize = sealed.iter().map(Vec::len).sum();
    println!();
    println!("  records                    {:>14}", records.len());
    println!("  bytes before               {:>14}", content.len());
    println!("  bytes after                {bytes_sealed:>14}");
    println!("  KEK calls to seal all      {calls_to_seal:>14}");
    println!("  KEK calls to open all      {calls_to_open:>14}");
    println!("  to seal a record           {:>14}", per(sealing, records.len()));
    println!("  to open a record, cached   {:>14}", per(opening, records.len()));
    println!(
        "  to open a record, uncached {:>14}  (local KEK; a key service adds its round trip)",
        per(uncached, cold.len())
    );
    Ok(())
}

/// A changed byte and another context are refused.
fn refusals(
    envelope: &Envelope,
    context: &EncryptionContext,
    message: &[u8],
) -> Result<(), Box<dyn Error>> {
    let mut tampered = message.to_vec();
    if let Some(last) = tampered.last_mut() {
        *last ^= 1;
    }
    let bob = EncryptionContext::new([("tenant", "bob"), ("table", "customers")])?;
    let first = 0_u64.to_be_bytes();
    for (what, context, message) in
        [("one bit changed", context, &tampered[..]), ("tenant bob", &bob, message)]
    {
        match block_on(envelope.decrypt(context, Aad::from(&first), message)) {
            Err(error) => println!("  {what}: refused ({error})"),
            Ok(_) => return Err(format!("{what}: opened").into()),
        }
    }
    Ok(())
}

/// After a rotation of the KEK, a rewrap replaces the wrapped key and nothing else; then the old
/// version can go.
fn rotation(
    kek: &LocalKek,
    provider: &Tap<LocalKek>,
    context: &EncryptionContext,
    message: &[u8],
    record: &[u8],
) -> Result<(), Box<dyn Error>> {
    let version = kek.rotate()?;
    let envelope = Envelope::builder().wrap_with(provider.clone()).build()?;
    if !envelope.needs_rewrap(message)? {
        return Err("an old version went unnoticed".into());
    }
    let rewrapped = block_on(envelope.rewrap(context, message))?;
    let plaintext =
        block_on(envelope.decrypt(context, Aad::from(&0_u64.to_be_bytes()), &rewrapped))?;
    if envelope.needs_rewrap(&rewrapped)? || &*plaintext != record {
        return Err("the rewrapped record is not the same".into());
    }
    let changed = message.iter().zip(&rewrapped).filter(|(old, new)| old != new).count();
    let dek = inspect(&rewrapped)?.dek_id;
    println!(
        "  KEK rotated to version {version}: record 0 rewrapped, {changed} of {} bytes changed, \
            DEK {dek:.8}… as before",
        message.len()
    );
    Ok(())
}

fn per(total: Duration, count: usize) -> String {
    match u32::try_from(count) {
        Ok(1..) => format!("{:.2?}", total / u32::try_from(count).unwrap_or(1)),
        _ => "-".to_owned(),
    }
}
