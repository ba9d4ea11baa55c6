//! The proxy's server: a connection, a request, and what is checked before its operation.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use super::api::{Body, ErrorName, Operation, Refused, ToDecrypt, ToEncrypt};
use super::operations::{decrypt, encrypt, health, metadata};
use super::transit::{HEALTH_KEY, Transit};
use super::{Call, Effect, SERVICE, Shared};
use crate::server_thread::ServerThread;
use crate::sigv4::{Claim, Request};

/// Of a request: a good one, with the largest plaintext, AAD and ARNs, has less than 30 KiB.
const MOST_BODY: usize = 64 * 1024;

pub(super) fn run(listener: TcpListener, shared: Arc<Shared>) -> ServerThread {
    ServerThread::start(listener, move |listener| serve(listener, shared))
}

async fn serve(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    let transit = Arc::new(Transit::new(shared.options.transit.clone()));
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (shared, transit) = (shared.clone(), transit.clone());
        // In this order: who is not shown the new certificate is cut.
        let mut cut = shared.cut.subscribe();
        let tls = TlsAcceptor::from(shared.tls.lock().unwrap().clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let connection = async {
                let Ok(stream) = tls.accept(stream).await else { return };
                let service =
                    service_fn(move |request| answer(shared.clone(), transit.clone(), request));
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

async fn answer(
    shared: Arc<Shared>,
    transit: Arc<Transit>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, io::Error> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let asked = Operation::of_path(&shared.uri_path, parts.uri.path())
        .filter(|_| parts.uri.query().is_none());
    let operation = asked.map(|(operation, _)| operation);
    shared.arrived.lock().unwrap().push(operation);
    let mut call = Call {
        operation,
        key: asked.map(|(_, key)| key.to_owned()).unwrap_or_default(),
        access_key_id: String::new(),
        principal: String::new(),
        kms_operation: String::new(),
        kms_request_id: String::new(),
        kms_key_arn: String::new(),
        error: None,
        reason: String::new(),
        elapsed: Duration::ZERO,
    };
    let mut alter = None;
    let mut outcome = None;
    match fault_for(&shared, &call) {
        Some(Effect::Error(name)) => outcome = Some(Err(name.because("a fault was asked for"))),
        Some(Effect::Raw(status, text)) => {
            return Ok(response(status, Bytes::from_static(text.as_bytes())));
        }
        Some(Effect::Alter(change)) => alter = Some(change),
        Some(Effect::Delay(pause)) => tokio::time::sleep(pause).await,
        Some(Effect::Hang) => std::future::pending().await,
        Some(Effect::Close) => return Err(io::ErrorKind::ConnectionAborted.into()),
        None => {}
    }
    // "it MUST reject the request with a 405 Method Not Allowed error" ("API operations"), which is
    // not one of the errors with a name.
    if operation.is_some() && parts.method != hyper::Method::POST {
        let mut refused = response(405, Bytes::new());
        refused.headers_mut().insert("allow", hyper::header::HeaderValue::from_static("POST"));
        return Ok(refused);
    }
    let outcome = match outcome {
        Some(outcome) => outcome,
        // Much more than that is not even read: the connection ends.
        None => {
            match Limited::new(body, 16 * MOST_BODY).collect().await.map(|body| body.to_bytes()) {
                Ok(body) if body.len() > MOST_BODY => Err(ErrorName::UnsupportedOperation
                    .because(format!("a body of more than {MOST_BODY} bytes"))),
                Ok(body) => perform(&shared, &transit, &parts, &body, &mut call).await,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    };
    (call.error, call.elapsed) =
        (outcome.as_ref().err().map(|refused| refused.name), started.elapsed());
    call.reason = outcome.as_ref().err().map(|refused| refused.reason.clone()).unwrap_or_default();
    shared.calls.lock().unwrap().push(call);
    Ok(match outcome {
        Ok(mut answer) => {
            if let Some(alter) = alter {
                alter(&mut answer);
            }
            response(200, serde_json::to_vec(&answer).unwrap().into())
        }
        Err(Refused { name, .. }) => {
            let (status, name, message) = name.parts();
            response(
                status,
                json!({ "errorName": name, "errorMessage": message }).to_string().into(),
            )
        }
    })
}

fn fault_for(shared: &Shared, call: &Call) -> Option<Effect> {
    let mut faults = shared.faults.lock().unwrap();
    let fault = faults.iter_mut().find(|fault| {
        let for_this = fault.operation.is_none_or(|wanted| Some(wanted) == call.operation);
        for_this
            && fault.key.as_ref().is_none_or(|wanted| *wanted == call.key)
            && fault.times != Some(0)
    })?;
    fault.times = fault.times.map(|times| times - 1);
    Some(fault.effect.clone())
}

/// One request: path, signature, quota, metadata, policy, and then the operation.
async fn perform(
    shared: &Shared,
    transit: &Transit,
    parts: &hyper::http::request::Parts,
    bytes: &[u8],
    call: &mut Call,
) -> Result<Value, Refused> {
    let operation =
        call.operation.ok_or_else(|| ErrorName::InvalidUriPath.because("no such path"))?;
    call.access_key_id = authenticate(shared, parts, bytes)?;
    count(shared)?;
    // "MUST be sent as JSON over HTTPS with a Content-Type of application/json" ("API content
    // type").
    let content_type =
        parts.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.split(';').next().map(str::trim) != Some("application/json") {
        return Err(ErrorName::Validation.because("the content type is not application/json"));
    }
    let body = Body::read(operation, bytes)?;
    call.principal = body.metadata_field("awsPrincipalArn");
    call.kms_operation = body.metadata_field("kmsOperation");
    call.kms_request_id = body.metadata_field("kmsRequestId");
    call.kms_key_arn = body.metadata_field("kmsKeyArn");
    // "This API MUST be excluded from secondary authorization" (GetHealthStatus).
    if operation != Operation::GetHealthStatus {
        let input = json!({
            "operation": operation.name(), "externalKeyId": call.key, "requestMetadata": body.metadata(),
        });
        let decision = shared.rules.lock().unwrap().policy.decide(&input);
        decision.map_err(|reason| ErrorName::AccessDenied.because(reason))?;
    }
    if *shared.blocked.lock().unwrap() {
        return Err(ErrorName::InvalidState.because("the key store is deactivated"));
    }
    if call.key == HEALTH_KEY {
        return Err(ErrorName::KeyNotFound.because("the key for health checks is no external key"));
    }
    let switches = shared.keys.lock().unwrap().get(&call.key).copied().unwrap_or_default();
    let transit = &transit.on_behalf_of(&call.kms_request_id);
    let work = async {
        match operation {
            Operation::GetHealthStatus => health(transit).await,
            Operation::GetKeyMetadata => metadata(transit, &call.key, switches).await,
            Operation::Encrypt => {
                encrypt(transit, &call.key, switches, &ToEncrypt::read(&body)?).await
            }
            Operation::Decrypt => {
                decrypt(transit, &call.key, switches, &ToDecrypt::read(&body)?).await
            }
        }
    };
    let late = |_| ErrorName::DependencyTimeout.because("Transit did not answer within the budget");
    tokio::time::timeout(shared.options.budget, work).await.map_err(late)?
}

/// Appendix A. Gives the access key id.
fn authenticate(
    shared: &Shared,
    parts: &hyper::http::request::Parts,
    bytes: &[u8],
) -> Result<String, Refused> {
    let failed = |reason: String| ErrorName::AuthenticationFailed.because(reason);
    let text =
        |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: Vec<_> =
        parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
    let request = Request {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        headers: &headers,
        body: bytes,
    };
    let claim = Claim::read(&request, SERVICE).map_err(|refusal| failed(format!("{refusal:?}")))?;
    let credentials = shared.credentials.lock().unwrap().clone();
    let known = credentials.iter().find(|credential| credential.access_key_id == claim.access_key);
    let credential = known.ok_or_else(|| failed("an unknown access key id".to_owned()))?;
    claim
        .check(&request, &credential.secret_access_key, &[], SystemTime::now())
        .map_err(|refusal| failed(format!("{refusal:?}")))?;
    Ok(claim.access_key)
}

/// Only what is signed counts: else anybody could use up the quota.
fn count(shared: &Shared) -> Result<(), Refused> {
    let mut quota = shared.quota.lock().unwrap();
    let Some((quota, since, so_far)) = quota.as_mut() else { return Ok(()) };
    if since.elapsed() >= quota.window {
        (*since, *so_far) = (Instant::now(), 0);
    }
    if *so_far >= quota.requests {
        return Err(ErrorName::Throttling.because("the quota is used up"));
    }
    *so_far += 1;
    Ok(())
}

fn response(status: u16, body: Bytes) -> hyper::Response<Full<Bytes>> {
    hyper::Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::new(body))
        .unwrap()
}
