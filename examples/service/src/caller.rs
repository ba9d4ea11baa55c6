//! Who is calling.

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use waxseal::Caller;

use crate::Service;
use crate::api::Failure;

/// The caller of a request.
///
/// A stand-in for authentication: a proxy in front of the service, which authenticates, sets these
/// headers and removes those that came from outside. The library does not verify the caller, so
/// headers that anyone can send must not get here.
pub(crate) struct CalledBy(pub(crate) Caller);

impl FromRequestParts<Service> for CalledBy {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Service) -> Result<Self, Failure> {
        let header = |name| text(&parts.headers, name);
        let service = header("x-service").ok_or(Failure::NobodyKnown)?;
        let mut caller = Caller::builder().service(service);
        if let Some(tenant) = header("x-tenant") {
            caller = caller.attribute("tenant", tenant);
        }
        if let Some(roles) = header("x-roles") {
            caller = caller.roles(roles.split(',').map(str::trim));
        }
        let caller = caller.build()?;
        Ok(Self(match header("x-request-id") {
            Some(id) => caller.with_request_id(id)?,
            None => caller,
        }))
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
