//! Draws what the dashboard shows of an outage of the key service: docs/telemetry/outage.svg.
//!
//!     cargo run --release -p waxseal-examples --features outage --example outage [FILE]
//!
//! A service runs for an hour of simulated time, twenty minutes of it without its key service. Its
//! metrics are recorded as Prometheus would, every thirty seconds, and the queries of
//! docs/telemetry/dashboard.json and the rules of alerts.yml are evaluated over them. Nothing in it
//! depends on the time of day or on chance, so the picture is the same each time.

mod draw;
mod picture;
mod query;
mod recorder;
mod simulation;

use std::process::ExitCode;

fn main() -> ExitCode {
    let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/telemetry/outage.svg").to_owned();
    let path = std::env::args().nth(1).unwrap_or(usual);
    let drawn = picture::make().and_then(|picture| Ok(std::fs::write(&path, picture)?));
    match drawn {
        Ok(()) => {
            println!("{path}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("outage: {error}");
            ExitCode::FAILURE
        }
    }
}
