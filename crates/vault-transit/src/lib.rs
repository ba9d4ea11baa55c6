//! A KEK in the Transit engine of HashiCorp Vault or OpenBao.
//!
//! ```no_run
//! use waxseal::Envelope;
//! use waxseal_vault_transit::{VaultAuth, VaultTransitKek};
//!
//! # async fn start() -> Result<(), waxseal::Error> {
//! let kek = VaultTransitKek::builder("prod-eu", "orders")
//!     .address("https://vault.example:8200")
//!     .ca_file("/etc/ssl/vault-ca.pem")
//!     .auth(VaultAuth::app_role("orders-service").secret_id_file("/run/secrets/secret-id"))
//!     .build()?;
//! let envelope = Envelope::builder().wrap_with(kek).build()?;
//! # Ok(()) }
//! ```
//!
//! How to create the key, the smallest policy, rotation, and what an operator sees are in
//! `docs/vault.md`.
//!
//! # How the encryption context binds
//!
//! | key | what Vault gets | Vault enforces the context | rewrap and datakey on the server |
//! |---|---|---|---|
//! | derived (recommended) | the context's canonical bytes as `context` | yes | yes |
//! | not derived, [`ContextBinding::AssociatedData`] | the same as `associated_data` | yes | no: Transit cannot rewrap such ciphertexts, so this process unwraps and wraps |
//! | not derived, [`ContextBinding::Unbound`] | nothing | no; the DEK id still commits to it, so a wrong context is found here, after Vault released the DEK | yes |
//!
//! Which of the first and the others applies is read from the key itself: Transit ignores a
//! `context` under a key that is not derived, without a word.
#![forbid(unsafe_code)]

mod auth;
mod auth_config;
mod aws;
mod builder;
mod client;
mod config;
mod denials;
mod endpoints;
mod environment;
mod errors;
mod format;
mod key;
mod login;
mod provider;
mod requests;
mod session;
mod tls;
mod transport;

pub use auth_config::AuthConfig;
pub use aws::{AwsCredentials, AwsEnvironment, AwsKeys};
pub use builder::VaultTransitKekBuilder;
pub use config::Config;
pub use key::{ContextBinding, KeyInfo};
pub use login::VaultAuth;
pub use provider::VaultTransitKek;
