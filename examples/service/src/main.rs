//! An example service: customers and cards of many tenants, encrypted in SQLite.
//!
//!     cargo run -p waxseal-service          # in examples/service; then see README.md
//!
//! | file | what it has |
//! |---|---|
//! | `main.rs` | start and end: keys, audit trail, domains, the server |
//! | `api.rs` | the routes, and what an error is for the caller |
//! | `caller.rs` | who is calling |
//! | `database.rs` | the two tables |
//! | `watch.rs` | metrics and health, every few seconds |
//! | `domains.toml`, `policy/` | which keys and rules each kind of data has |

mod api;
mod audit;
mod caller;
mod database;
mod watch;

use std::error::Error;
use std::fs;
use std::path::Path;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use waxseal::domain::{Domains, Schemes};
use waxseal::{MetricsObserver, StartUp, TracingObserver};
use waxseal_policy::RegoPolicy;
use waxseal_sqlx::SqliteKeyStore;

/// What all requests share. A clone is some pointers.
#[derive(Clone)]
struct Service {
    domains: Domains,
    database: database::Database,
    watched: watch::Watched,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let setting =
        |name: &str, usual: &str| std::env::var(name).unwrap_or_else(|_| usual.to_owned());
    let (file, listen) = (setting("DOMAINS", "domains.toml"), setting("LISTEN", "127.0.0.1:8080"));
    let data = Path::new("data");
    fs::create_dir_all(data)?;

    // The recorder comes first: counts before it would be lost.
    let metrics = watch::recorder()?;
    let trail = audit::start(data)?;
    let domains = Domains::builder()
        .schemes(schemes())
        .file(&file)
        .audit_trail(trail.clone())
        .observer(MetricsObserver)
        .observer(TracingObserver::new())
        // A service that cannot use its keys fails here, and not at its first request.
        .start(StartUp::RequireKeyServices)
        .await?;
    domains.reload_on_hangup()?;

    let watched = watch::start(domains.clone(), trail.clone(), metrics);
    let database = database::Database::open(&data.join("service.db")).await?;
    let service = Service { domains: domains.clone(), database, watched };
    let listener = TcpListener::bind(&listen).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, api::routes(service)).with_graceful_shutdown(told_to_end()).await?;

    // No request is left. The keys are wiped, and then the trail gets its last records.
    domains.close().await;
    if !trail.close() {
        return Err("the audit trail is not complete".into());
    }
    Ok(())
}

/// What the URIs in domains.toml can name.
fn schemes() -> Schemes {
    let schemes = Schemes::default()
        .store("sqlite", SqliteKeyStore::from_uri)
        .policy("rego", RegoPolicy::from_uri);
    #[cfg(feature = "aws-kms")]
    let schemes = schemes.kek("aws-kms", waxseal_aws_kms::AwsKmsKek::from_uri);
    #[cfg(feature = "vault-transit")]
    let schemes = schemes.kek("vault-transit", waxseal_vault_transit::VaultTransitKek::from_uri);
    schemes
}

/// Waits for Ctrl-C, or for what an orchestrator sends.
async fn told_to_end() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
