//! A provider that a fork left without its runtime says so, where it could only wait for ever.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use waxseal_azure_key_vault::{AzureKeyVaultKek, Credential};
use waxseal_testing::azure::{Azure, TENANT};
use waxseal_testing::forked;

const HSM: &str = "orders.managedhsm.azure.net";

#[test]
fn a_forked_child_is_told_to_build_its_own() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let azure = Azure::start();
    let secret_file = azure.application("service");
    azure.world().create_aes(HSM, "cards");
    azure.world().permit(HSM, "service", &["encrypt", "decrypt", "get"]);
    let builder = AzureKeyVaultKek::builder(format!("{HSM}:{}", azure.port()), "cards")
        .address(azure.address())
        .ca_file(azure.ca_file())
        .authority_host(azure.authority_host())
        .credential(Credential::ClientSecret {
            tenant_id: TENANT.to_owned(),
            client_id: "service".to_owned(),
            secret_file,
        });
    let kek = runtime.block_on(async { builder.build() }).unwrap();
    forked::a_child_is_told_to_build_its_own(&kek);
}
