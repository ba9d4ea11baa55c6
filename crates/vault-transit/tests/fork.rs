//! A provider that a fork left without its runtime says so, where it could only wait for ever.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use waxseal_testing::forked;
use waxseal_testing::openbao::OpenBao;
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

#[test]
fn a_forked_child_is_told_to_build_its_own() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (_server, kek) = runtime.block_on(async {
        let server = OpenBao::start().await;
        server.create_key("orders", true).await;
        let builder = VaultTransitKek::builder("test", "orders").address(server.address());
        let kek = builder.auth(VaultAuth::token(server.root_token())).build().unwrap();
        (server, kek)
    });
    forked::a_child_is_told_to_build_its_own(&kek);
}
