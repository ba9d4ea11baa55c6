//! A provider that a fork left without its runtime says so, where it could only wait for ever.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use rustix::process::{Pid, WaitOptions, waitpid};
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_azure_key_vault::{AzureKeyVaultKek, Credential};
use waxseal_testing::azure::{Azure, TENANT};
use waxseal_testing::support::{a_dek, block_on, context};

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
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
    // SAFETY: the child runs the library and leaves without running anything of the test harness.
    // glibc's allocator is usable in the child of a threaded process.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: ends a child that waits, instead of this test's answer.
            unsafe { libc::alarm(30) };
            let is_told =
                |error: waxseal::kek::KekError| error.class() == KekErrorClass::Misconfigured;
            let told = block_on(kek.unwrap(&alice, &wrapped)).is_err_and(is_told)
                && block_on(kek.wrap(&alice, &dek)).is_err_and(is_told)
                && block_on(kek.health()).is_err_and(is_told);
            let answers = kek.is_current(&wrapped) == Some(true);
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(if told && answers { 17 } else { 1 }) }
        }
        child if child > 0 => {
            let (_, status) = waitpid(Pid::from_raw(child), WaitOptions::empty()).unwrap().unwrap();
            assert_eq!(status.exit_status(), Some(17));
        }
        _ => panic!("fork failed"),
    }
    assert_eq!(
        block_on(kek.unwrap(&alice, &wrapped)).unwrap().expose(),
        dek.expose(),
        "the parent goes on"
    );
}
