//! What is left in memory of DEKs that went to a Vault server and came back.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use waxseal_testing::crossings::{self, Crossings, Found};
use waxseal_testing::openbao::OpenBao;
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

/// Sends new DEKs to a server and has them sent back. Here, a DEK is only ever in memory of the
/// library's own types.
pub fn run() -> Found {
    let runtime = crossings::runtime();
    let (_server, kek) = runtime.block_on(async {
        let server = OpenBao::start().await;
        server.create_key("orders", true).await;
        let builder = VaultTransitKek::builder("test", "orders").address(server.address());
        let kek = builder.auth(VaultAuth::token(server.root_token())).build().unwrap();
        (server, kek)
    });
    let crossings = Crossings { deks: 8, generated: true, text: crossings::base64 };
    crossings.found(runtime, vec![kek])
}
