//! TLS as the specification wants it.

use std::sync::Arc;

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use crate::certificates::{Authority, Certificate};

/// TLS 1.2 and 1.3 with aws-lc-rs, HTTP/1.1, no client certificate asked ("API content type",
/// "Authentication").
pub(super) fn server(authority: &Authority, shown: Certificate) -> Arc<ServerConfig> {
    let (certificate, key) = authority.issue(shown);
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}
