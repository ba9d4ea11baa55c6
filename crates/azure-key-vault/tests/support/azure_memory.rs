//! What is left in memory of DEKs that went to Key Vault and came back. The stand-in is a process of
//! its own.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use data_encoding::BASE64URL_NOPAD;
use waxseal::kek::{KekProvider, UnwrappedDek};
use waxseal_azure_key_vault::{Algorithm, AzureKeyVaultKek, Credential};
use waxseal_testing::azure::TENANT;
use waxseal_testing::azure::child::{AzureChild, CLIENT, HSM, KEY, VAULT};
use waxseal_testing::scan::Needle;
use waxseal_testing::support::context;
use zeroize::Zeroizing;

/// Per algorithm.
pub const DEKS: usize = 6;

/// Copies of DEKs, as bytes and as text.
#[derive(Debug)]
pub struct Found {
    /// The control: while the DEKs are held.
    pub held: (usize, usize),
    /// After the DEKs were dropped; the connections are open.
    pub dropped: (usize, usize),
    /// After providers, connections and runtime were dropped too.
    pub closed: (usize, usize),
}

/// Has DEKs wrapped and unwrapped, by AES and by RSA. `child` is the name of the test that plays the
/// stand-in.
pub fn run(child: &str) -> Found {
    let azure = AzureChild::start(child);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let provider = |host: &str, algorithm| {
        let builder = AzureKeyVaultKek::builder(format!("{host}:{}", azure.port), KEY)
            .algorithm(algorithm)
            .address(([127, 0, 0, 1], azure.port).into())
            .ca_file(&azure.ca_file)
            .authority_host(azure.authority_host())
            .credential(Credential::ClientSecret {
                tenant_id: TENANT.to_owned(),
                client_id: CLIENT.to_owned(),
                secret_file: azure.secret_file.clone(),
            });
        runtime.block_on(async { builder.build() }).unwrap()
    };
    let keks = [provider(HSM, Algorithm::A256Gcm), provider(VAULT, Algorithm::RsaOaep256)];
    let mut needles: Vec<(Needle, Needle)> = Vec::new();
    let alice = context("alice");
    let mut unwrapped = Vec::new();
    // The text of a whole DEK, or of its first 30 bytes where a digest stands behind it.
    let text = |dek: &[u8]| Zeroizing::new(BASE64URL_NOPAD.encode(&dek[..30]));
    for kek in &keks {
        for _ in 0..DEKS {
            let own = {
                // Not from a generator that keeps what it made.
                let mut bytes = vec![0; 32];
                getrandom::fill(&mut bytes).unwrap();
                UnwrappedDek::new(bytes).to_dek().unwrap()
            };
            let text = text(own.expose());
            needles.push((Needle::of(own.expose()), Needle::of(text.as_bytes())));
            let wrapped = runtime.block_on(kek.wrap(&alice, &own)).unwrap();
            unwrapped.push(runtime.block_on(kek.unwrap(&alice, &wrapped)).unwrap());
        }
    }
    let count = || {
        let sum = |look: fn(&(Needle, Needle)) -> usize| needles.iter().map(look).sum();
        (sum(|(bytes, _)| bytes.occurrences()), sum(|(_, text)| text.occurrences()))
    };
    let texts: Vec<_> = unwrapped.iter().map(|dek| text(dek.expose())).collect();
    let held = count();
    drop((texts, unwrapped));
    let dropped = count();
    drop(keks);
    drop(runtime);
    Found { held, dropped, closed: count() }
}
