//! Policies in Rego and on an OPA server, through a real envelope.
#![cfg(all(feature = "opa", feature = "rego", feature = "signatures"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod bundles;
mod examples;
mod lints;
mod opa;
mod oracle;
mod real;
mod rego;
mod reload;
mod server;
mod signed;
mod talked_around;
mod uris;

use waxseal::kek::local::LocalKek;
use waxseal::policy::{Policy, PolicyOptions};
use waxseal::{Aad, Caller, EncryptionContext, Envelope, Error, ErrorKind};
use waxseal_policy::{RegoPolicy, RegoSources};

/// The head of most policies here.
const HEAD: &str = "package waxseal\n\ndefault allow := false\n\n";

fn sources(text: &str) -> RegoSources {
    RegoSources::new().rego("policy.rego", text)
}

fn envelope(policy: impl Policy + 'static) -> Envelope {
    let kek = LocalKek::in_memory("kek").unwrap();
    Envelope::builder().wrap_with(kek).policy(policy, PolicyOptions::default()).build().unwrap()
}

fn rego(text: &str) -> Envelope {
    envelope(RegoPolicy::builder(sources(text)).watch(None).build().unwrap())
}

fn caller(service: &str) -> Caller {
    Caller::builder().service(service).build().unwrap()
}

fn context(tenant: &str) -> EncryptionContext {
    EncryptionContext::new([("tenant", tenant)]).unwrap()
}

/// Encrypts for a caller.
fn encrypt(envelope: &Envelope, caller: &Caller) -> Result<Vec<u8>, Error> {
    pollster::block_on(envelope.acting_for(caller).encrypt(&context("acme"), Aad::empty(), b"x"))
        .map(|sealed| sealed.to_vec())
}

/// The reasons of a denial. Panics for anything else.
fn reasons<T>(result: Result<T, Error>) -> Vec<String> {
    let Err(error) = result else { panic!("it was allowed") };
    assert_eq!(error.kind(), ErrorKind::PolicyDenied, "{error}");
    assert!(!error.is_retryable());
    error.reasons().iter().map(ToString::to_string).collect()
}
