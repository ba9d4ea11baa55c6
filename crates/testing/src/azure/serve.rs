//! The server: a connection, a request, and which of the services is meant.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::answers::{Asked, Refused, Unauthenticated, parts};
use super::{Effect, Shared};
use crate::certificates::{Authority, Certificate};

/// What the certificate is for.
const NAMES: [&str; 3] = ["localhost", "*.vault.azure.net", "*.managedhsm.azure.net"];

pub(super) fn tls(authority: &Authority) -> Arc<ServerConfig> {
    config(authority.issue_for(&NAMES))
}

/// As [`tls`], but with a certificate that is no good.
pub(super) fn wrong_tls(authority: &Authority, shown: Certificate) -> Arc<ServerConfig> {
    config(authority.issue(shown))
}

fn config((certificate, key): (rcgen::Certificate, rcgen::KeyPair)) -> Arc<ServerConfig> {
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

pub(super) async fn serve(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, from)) = listener.accept().await else { continue };
        let shared = shared.clone();
        // In this order: who is not shown the new certificate is cut.
        let mut cut = shared.cut.subscribe();
        let tls = TlsAcceptor::from(shared.tls.lock().unwrap().clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let connection = async {
                let Ok(stream) = tls.accept(stream).await else { return };
                let service = service_fn(move |request| answer(shared.clone(), from.ip(), request));
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            };
            tokio::select! {
                () = connection => {}
                _ = cut.changed() => {}
            }
        });
    }
}

type Reply = hyper::Response<Full<Bytes>>;

async fn answer(
    shared: Arc<Shared>,
    from: IpAddr,
    request: hyper::Request<Incoming>,
) -> Result<Reply, Infallible> {
    let id = format!("00000000-0000-4000-8000-{:012x}", shared.next_id());
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(reply(400, &id, Bytes::new())) };
    let body = body.to_bytes();
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let host = header("host").unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default().to_owned();
    let path = head.uri.path().to_owned();
    let method = head.method.as_str();
    let operation = match host.as_str() {
        "localhost" => "login".to_owned(),
        _ => parts(method, &path).map_or("unknown", |parts| parts.operation).to_owned(),
    };
    shared.arrived.lock().unwrap().push(operation.clone());
    let mut alter = None;
    match shared.fault_for(&operation) {
        Some(Effect::Raw(status, text)) => {
            return Ok(reply(status, &id, Bytes::from_static(text.as_bytes())));
        }
        Some(Effect::Redirect(to)) => {
            let mut reply = reply(307, &id, Bytes::new());
            reply.headers_mut().insert("location", to.parse().unwrap());
            return Ok(reply);
        }
        Some(Effect::Error(refused, retry_after)) => {
            let mut refused = refusal(&refused, &id);
            if let Some(seconds) = retry_after {
                refused.headers_mut().insert("retry-after", seconds.into());
            }
            return Ok(refused);
        }
        Some(Effect::Delay(pause)) => tokio::time::sleep(pause).await,
        Some(Effect::Hang) => std::future::pending().await,
        Some(Effect::Alter(change)) => alter = Some(change),
        None => {}
    }
    if host == "localhost" {
        let form: HashMap<String, String> = form(&body);
        let (status, answer) = shared.world.lock().unwrap().log_in(&path, &form);
        return Ok(reply(status, &id, serde_json::to_vec(&answer).unwrap().into()));
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let token = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let asked = Asked { host: &host, from, token, method, path: &path, body: &body };
    let answered = shared.world.lock().unwrap().answer(&asked);
    Ok(match answered {
        Ok(mut answer) => {
            if let Some(change) = alter {
                change(&mut answer);
            }
            reply(200, &id, serde_json::to_vec(&answer).unwrap().into())
        }
        Err(Unauthenticated::Refused(refused)) => refusal(&refused, &id),
        Err(Unauthenticated::Challenge(refused)) => {
            let resource = host.split_once('.').map_or("", |(_, suffix)| suffix);
            let challenge = format!(
                "Bearer authorization=\"https://login.microsoftonline.com/{}\", resource=\"https://{resource}\"",
                super::TENANT
            );
            let mut refused = refusal(&refused, &id);
            refused.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
            refused
        }
    })
}

/// `application/x-www-form-urlencoded`.
fn form(body: &[u8]) -> HashMap<String, String> {
    let text = String::from_utf8_lossy(body);
    let decode = |part: &str| {
        let (mut bytes, mut rest) = (Vec::new(), part.as_bytes());
        while let [first, behind @ ..] = rest {
            rest = behind;
            match first {
                b'+' => bytes.push(b' '),
                b'%' => {
                    let digits = std::str::from_utf8(&behind[..2]).unwrap();
                    bytes.push(u8::from_str_radix(digits, 16).unwrap());
                    rest = &behind[2..];
                }
                byte => bytes.push(*byte),
            }
        }
        String::from_utf8(bytes).unwrap()
    };
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

fn refusal(refused: &Refused, id: &str) -> Reply {
    reply(refused.status, id, serde_json::to_vec(&refused.body()).unwrap().into())
}

fn reply(status: u16, id: &str, body: Bytes) -> Reply {
    hyper::Response::builder()
        .status(status)
        .header("content-type", "application/json; charset=utf-8")
        .header("x-ms-request-id", id)
        .body(Full::new(body))
        .unwrap()
}
