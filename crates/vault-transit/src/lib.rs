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
//! How to create the key, the smallest policy, rotation, and what an operator sees are in `docs/vault.md`.
//!
//! # How the encryption context binds
//!
//! | key | what Vault gets | Vault enforces the context | rewrap and datakey on the server |
//! |---|---|---|---|
//! | derived (recommended) | the context's canonical bytes as `context` | yes | yes |
//! | not derived, [`ContextBinding::AssociatedData`] | the same as `associated_data` | yes | no: Transit cannot rewrap such ciphertexts, so this process unwraps and wraps |
//! | not derived, [`ContextBinding::Unbound`] | nothing | no; the DEK id still commits to it, so a wrong context is found here, after Vault released the DEK | yes |
//!
//! Which of the first and the others applies is read from the key itself: Transit ignores a `context` under a key that is not derived, without a word.
#![forbid(unsafe_code)]

mod auth;
mod aws;
mod builder;
mod endpoints;
mod environment;
mod errors;
mod format;
mod key;
mod login;
mod provider;
mod requests;
mod tls;
mod transport;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use rustify::endpoint::Endpoint;
use tokio::sync::Mutex;

pub use aws::{AwsCredentials, AwsEnvironment, AwsKeys};
pub use builder::VaultTransitKekBuilder;
pub use login::VaultAuth;

use auth::{Authenticator, Verdict};
use endpoints::ServerHealth;
use errors::Failure;
use key::Known;
use transport::{Reply, Transport};
use waxseal::KekId;
use waxseal::kek::toolkit::Spawner;
use waxseal::kek::{Health, KekError};

/// One key of a Transit engine, as a [`KekProvider`](waxseal::kek::KekProvider). A clone is another handle to the same.
///
/// Its id is `vault:CLUSTER/MOUNT/KEY`. The cluster's name is the caller's: two clusters may both have `transit/orders`, and their names, which
/// stand in every sealed message, tell them apart. A namespace is not part of the id: give the same key in two namespaces two cluster names.
///
/// A wrapped DEK is Transit's own text, `vault:vN:…`, so other tools can read it too.
#[derive(Clone)]
pub struct VaultTransitKek(Arc<Inner>);

/// How the encryption context binds under a key that is not derived. See the [module's table](self).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum ContextBinding {
    /// As `associated_data`: Vault enforces it, and cannot rewrap on the server.
    AssociatedData,
    /// Not at Vault, which releases the DEK for any context; the DEK id finds a wrong one after that. Vault rewraps on the server.
    Unbound,
}

/// What the server says of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KeyInfo {
    /// Whether the encryption context is bound by derivation.
    pub derived: bool,
    /// The version that wraps.
    pub latest_version: u32,
    /// The oldest version that unwraps.
    pub min_decryption_version: u32,
}

struct Inner {
    id: KekId,
    mount: String,
    key: String,
    chosen: Option<ContextBinding>,
    key_max_age: Duration,
    transport: Arc<Transport>,
    auth: Arc<Authenticator>,
    spawner: Spawner,
    known: ArcSwapOption<Known>,
    /// Held by the one who reads the key; when that failed last, and how.
    reading: Mutex<Option<(Instant, Failure)>>,
    reading_in_background: Arc<AtomicBool>,
    /// A refusal might have come of an outdated idea of the key.
    in_doubt: AtomicBool,
    /// The highest version seen, in the key or in an answer; 0 before the first.
    latest_version: AtomicU32,
}

impl VaultTransitKek {
    /// Starts the configuration for the key `key` in the cluster that the caller calls `cluster`. Reads no environment variable.
    pub fn builder(cluster: impl Into<String>, key: impl Into<String>) -> VaultTransitKekBuilder {
        VaultTransitKekBuilder::new(cluster, key)
    }

    /// As [`builder`](Self::builder), with what the environment says to the clients of OpenBao and HashiCorp Vault; what is set on the
    /// builder wins. Each of these is read as `BAO_…`, then as `VAULT_…`: `ADDR` (`AGENT_ADDR` comes before it), `TOKEN`, `NAMESPACE`, `CACERT`,
    /// `CACERT_BYTES`, `CAPATH`, `CLIENT_CERT` and `CLIENT_KEY` (or both with `_BYTES`), `TLS_SERVER_NAME`, `CLIENT_TIMEOUT`, `PROXY_ADDR` or
    /// `HTTP_PROXY`, `DISABLE_REDIRECTS`; also `HTTPS_PROXY` and its kin.
    ///
    /// What cannot be obeyed is refused at build, not ignored: `SKIP_VERIFY`, `SRV_LOOKUP`, `MFA`, `WRAP_TTL`, `RATE_LIMIT`, `MAX_RETRIES`,
    /// `TOKEN_PATH`, and half of a certificate and its key.
    pub fn from_env(cluster: impl Into<String>, key: impl Into<String>) -> VaultTransitKekBuilder {
        VaultTransitKekBuilder::new(cluster, key).variables(|name| std::env::var_os(name))
    }

    /// Logs in if need be and reads the key now: at the start of a service, to fail early, and before a run that
    /// rewraps, so that [`is_current`](waxseal::kek::KekProvider::is_current) knows the latest version.
    ///
    /// # Errors
    /// Those of the server; *misconfigured* for a key that cannot be used as it is.
    pub async fn read_key(&self) -> Result<KeyInfo, KekError> {
        let inner = self.0.clone();
        let known = self.0.spawner.run(async move { inner.read_key_now().await }).await?;
        Ok(known.info)
    }
}

/// Tokens that one call is tried with: each was replaced while the call was on its way.
const MOST_SESSIONS: u32 = 4;

impl Inner {
    /// One request with the session's token; once more after a new login, if it was the token that was refused.
    async fn call<E: Endpoint>(&self, operation: &str, endpoint: &E, most: usize) -> Result<Reply, Failure> {
        let path = endpoint.path();
        let mut session = self.auth.session().await?;
        for _ in 0..MOST_SESSIONS {
            let reply = self.transport.send(operation, endpoint, session.token.as_ref(), most).await?;
            let Some(reason) = reply.refusal() else {
                // Bad input was looked at, so the path was open.
                if reply.is_success() || reply.status == 400 {
                    self.auth.worked(&session, &path);
                }
                return Ok(reply);
            };
            session = match self.auth.after_refusal(&session, &path, reason).await? {
                Verdict::Again(session) => session,
                Verdict::Denied => return Ok(reply),
            };
        }
        Err(Failure::unavailable(format!("{operation}: the token is replaced faster than it can be used")))
    }

    /// Whether the key can be used now, which is what counts: the node that a load balancer leads to may be another one for each
    /// request, so what one node says of itself only explains a failure.
    async fn health(self: &Arc<Self>) -> Result<Health, Failure> {
        if let Err(failure) = self.read_key_now().await {
            return Err(self.explained(failure).await);
        }
        let troubles = [
            self.auth.trouble().map(|trouble| format!("the token cannot be kept alive: {trouble}")),
            self.transport.trouble(),
        ];
        match troubles.into_iter().flatten().collect::<Vec<_>>() {
            troubles if troubles.is_empty() => Ok(Health::Ready),
            troubles => Ok(Health::Degraded(troubles.join("; "))),
        }
    }

    /// A failure that may pass, with what the server says of itself.
    async fn explained(&self, failure: Failure) -> Failure {
        if !failure.is_passing() {
            return failure;
        }
        let Ok(reply) = self.transport.send_to_root("health", &endpoints::health()).await else { return failure };
        let Some(state) = reply.read::<ServerHealth>() else { return failure };
        if !state.initialized {
            Failure::misconfigured("health: the server is not initialised")
        } else if state.sealed {
            Failure::unavailable("health: the server is sealed")
        } else if state.replication_dr_mode == "secondary" {
            Failure::unavailable("health: the node is a disaster-recovery secondary")
        } else {
            failure
        }
    }
}

impl fmt::Debug for VaultTransitKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultTransitKek({}, {})", self.0.id, self.0.auth.method())
    }
}
