//! The provider against the stand-in for Key Vault, Managed HSM and Entra ID.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod config;
mod conformance;
mod duties;
mod environment;
mod faults;
mod former;
mod ground;
mod keys;
mod logins;
mod outside;
mod real;
mod wrapping;
