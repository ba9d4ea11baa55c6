//! The routes, and what an error is for the caller.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use serde_json::json;
use waxseal::{Aad, Error, ErrorKind};

use crate::caller::CalledBy;
use crate::database::{StoreFailed, Table};
use crate::{Service, watch};

pub(crate) fn routes(service: Service) -> Router {
    Router::new()
        .route("/tenants/{tenant}/{table}/{id}", put(write).get(read))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(service)
}

/// Encrypts a row and stores it.
async fn write(
    State(service): State<Service>,
    Path((tenant, table, id)): Path<(String, String, String)>,
    CalledBy(caller): CalledBy,
    row: Bytes,
) -> Result<StatusCode, Failure> {
    let table = Table::named(&table).ok_or(Failure::NotFound)?;
    // The context says what the key is for. The table chooses the domain.
    let context = service.domains.context([("tenant", &*tenant), ("table", table.name)])?;
    let envelope = service.domains.envelope_for(&context)?;
    // The AAD says which row it is, so that no row can be put in the place of another.
    let aad = Aad::from(id.as_bytes());
    let sealed = envelope.acting_for(&caller).encrypt(&context, aad, &row).await?;
    service.database.put(table, &tenant, &id, &sealed).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reads a row and decrypts it.
async fn read(
    State(service): State<Service>,
    Path((tenant, table, id)): Path<(String, String, String)>,
    CalledBy(caller): CalledBy,
) -> Result<Vec<u8>, Failure> {
    let table = Table::named(&table).ok_or(Failure::NotFound)?;
    let sealed = service.database.get(table, &tenant, &id).await?.ok_or(Failure::NotFound)?;
    let context = service.domains.context([("tenant", &*tenant), ("table", table.name)])?;
    let envelope = service.domains.envelope_for(&context)?;
    let aad = Aad::from(id.as_bytes());
    let row = envelope.acting_for(&caller).decrypt(&context, aad, &sealed).await?;
    Ok(row.to_vec())
}

async fn health(State(service): State<Service>) -> Response {
    let troubles = service.watched.troubles();
    let status = match troubles.is_empty() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer(status, &json!({ "troubles": troubles }))
}

async fn metrics(State(service): State<Service>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, watch::METRICS)], service.watched.metrics())
}

/// Why a request was not done.
pub(crate) enum Failure {
    NobodyKnown,
    NotFound,
    Sealed(Error),
    Store(StoreFailed),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Sealed(error)
    }
}

impl From<StoreFailed> for Failure {
    fn from(error: StoreFailed) -> Self {
        Self::Store(error)
    }
}

/// The caller gets the kind, and the reasons of the policy. The rest is for the log.
impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let error = match self {
            Self::NobodyKnown => {
                return answer(StatusCode::UNAUTHORIZED, &json!({ "error": "not authenticated" }));
            }
            Self::NotFound => {
                return answer(StatusCode::NOT_FOUND, &json!({ "error": "not found" }));
            }
            Self::Store(StoreFailed(error)) => {
                tracing::error!(%error, "the database failed");
                let body = json!({ "error": "unavailable" });
                return answer(StatusCode::SERVICE_UNAVAILABLE, &body);
            }
            Self::Sealed(error) => error,
        };
        let status = match error.kind() {
            ErrorKind::PolicyDenied => StatusCode::FORBIDDEN,
            ErrorKind::InvalidContext | ErrorKind::InvalidCaller | ErrorKind::UnknownDomain => {
                StatusCode::BAD_REQUEST
            }
            ErrorKind::ShutDown => StatusCode::SERVICE_UNAVAILABLE,
            _ if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status.is_server_error() {
            tracing::error!(%error, cause = error.cause().map(tracing::field::display), "failed");
        }
        let reasons: Vec<_> = error.reasons().iter().map(|reason| &**reason).collect();
        answer(status, &json!({ "error": error.kind().as_str(), "reasons": reasons }))
    }
}

fn answer(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
