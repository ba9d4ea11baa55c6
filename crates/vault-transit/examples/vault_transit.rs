//! Envelope encryption with a KEK in HashiCorp Vault or OpenBao.
//!
//!     crates/vault-transit/examples/vault_server.sh cargo run -p waxseal-vault-transit --example vault_transit
//!
//! starts a throw-away server for it. Against a server of yours, set VAULT_ADDR, VAULT_TOKEN and,
//! for a private CA, VAULT_CACERT, and name the key if it is not `orders`:
//!
//!     cargo run -p waxseal-vault-transit --example vault_transit -- YOUR_KEY
//!
//! The key has to be derived: `vault write -f transit/keys/YOUR_KEY derived=true`. Nothing is
//! changed on the server.

#[path = "../../../examples/support/tap.rs"]
#[allow(unreachable_pub)]
mod tap;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tap::Tap;
use waxseal::kek::KekProvider;
use waxseal::{Aad, EncryptionContext, Envelope, inspect};
use waxseal_vault_transit::VaultTransitKekBuilder;

const RECORDS: u64 = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let key = std::env::args().nth(1).unwrap_or_else(|| "orders".to_owned());
    // "example" is what this program calls the cluster; the name stands in every message, so choose
    // a lasting one.
    let kek = VaultTransitKekBuilder::from_env("example", key).build()?;
    let info = kek.read_key().await?;
    println!("{}: version {}, {:?}", kek.id(), info.latest_version, kek.health().await?);

    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let counted = Tap::new(kek.clone(), move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let envelope = Envelope::builder().wrap_with(counted.clone()).build()?;
    let context = EncryptionContext::new([("tenant", "alice"), ("table", "customers")])?;

    let mut sealed = Vec::new();
    for row in 0..RECORDS {
        sealed.push(
            envelope
                .encrypt(
                    &context,
                    Aad::from(&row.to_be_bytes()),
                    format!("record {row}").as_bytes(),
                )
                .await?,
        );
    }
    println!(
        "sealed {RECORDS} records with {} call(s) to the server",
        calls.swap(0, Ordering::Relaxed)
    );

    // Another process, which has no cached DEK.
    let reader = Envelope::builder().wrap_with(counted).build()?;
    let start = Instant::now();
    for (row, message) in (0..RECORDS).zip(&sealed) {
        let plaintext = reader.decrypt(&context, Aad::from(&row.to_be_bytes()), message).await?;
        if *plaintext != *format!("record {row}").as_bytes() {
            return Err(format!("record {row} came back changed").into());
        }
    }
    let took = start.elapsed();
    println!(
        "opened them in another envelope with {} call(s), in {took:.1?}",
        calls.swap(0, Ordering::Relaxed)
    );

    let message = sealed.first().ok_or("no record")?;
    for entry in inspect(message)?.keks {
        println!("a message names its KEK, {}, in {} bytes", entry.kek_id, entry.wrapped_len);
    }
    let bob = EncryptionContext::new([("tenant", "bob"), ("table", "customers")])?;
    let stranger = Envelope::builder().unwrap_with(kek).build()?;
    match stranger.decrypt(&bob, Aad::from(&0_u64.to_be_bytes()), message).await {
        Err(error) => println!("tenant bob: refused ({error})"),
        Ok(_) => return Err("tenant bob: opened".into()),
    }
    println!(
        "to be rewrapped: {}",
        if reader.needs_rewrap(message)? { "yes" } else { "no, the key was not rotated since" }
    );
    Ok(())
}
