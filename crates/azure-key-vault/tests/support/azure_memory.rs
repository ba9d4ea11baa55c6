//! What is left in memory of DEKs that went to Key Vault and came back. The stand-in is a separate
//! process.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use data_encoding::BASE64URL_NOPAD;
use waxseal_azure_key_vault::{Algorithm, AzureKeyVaultKek, Credential};
use waxseal_testing::azure::TENANT;
use waxseal_testing::azure::child::{AzureChild, CLIENT, HSM, KEY, VAULT};
use waxseal_testing::crossings::{self, Crossings, Found};
use zeroize::Zeroizing;

/// Per algorithm.
pub const DEKS: usize = 6;

/// Has DEKs wrapped and unwrapped, by AES and by RSA. `child` is the name of the test that plays
/// the stand-in.
pub fn run(child: &str) -> Found {
    let azure = AzureChild::start(child);
    let runtime = crossings::runtime();
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
    let keks = vec![provider(HSM, Algorithm::A256Gcm), provider(VAULT, Algorithm::RsaOaep256)];
    // The text of a whole DEK, or of its first 30 bytes if a digest follows it.
    let text = |dek: &[u8]| Zeroizing::new(BASE64URL_NOPAD.encode(&dek[..30]));
    Crossings { deks: DEKS, generated: false, text }.found(runtime, keks)
}
