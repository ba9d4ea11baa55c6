//! The project's XKS proxy, held against the "External Key Store Proxy API Specification", version 1, over a real OpenBao: what the tests of external key
//! stores rest on.
#![cfg(feature = "aws-kms")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "support/openbao.rs"]
mod openbao;
#[path = "support/xks_proxy/mod.rs"]
mod xks_proxy;

#[tokio::test]
async fn smoke() {
    let server = openbao::OpenBao::start().await;
    let transit = xks_proxy::TransitOptions::prepare(&server.address(), None, server.root_token()).await;
    let _ = xks_proxy::XksProxy::start(xks_proxy::Options::new(transit));
}
