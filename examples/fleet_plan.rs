//! Plans a fleet: how often it calls the key service, what that costs, and what an outage does,
//! with and without branch keys, beside the AWS Encryption SDK and Asherah.
//!
//!     cargo run --release -p waxseal-examples --example fleet_plan -- OPTIONS
//!
//! The options may be none, `--hosts 40 --tenants 5000 --history 365d`, or `--file fleet.toml`.
//!
//! Waxseal's figures are estimates, which a test holds against envelopes. Those of the others
//! follow from their documented rules, which are printed below the table.

use std::process::ExitCode;

use fleet::settings::{self, Asked};
use fleet::{Fleet, MONTH, Plan, peers};

fn main() -> ExitCode {
    match settings::from_args(std::env::args().skip(1)) {
        Ok(Asked::Help) => {
            println!("Flags and their defaults. --file PATH reads a file of lines like these.\n");
            print!("{}", settings::list(&Fleet::default()));
            ExitCode::SUCCESS
        }
        Ok(Asked::Plan(fleet)) => {
            print(&fleet);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("fleet_plan: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(fleet: &Fleet) {
    println!("{}", settings::list(fleet));
    let columns = [
        "calls/s",
        "calls/month",
        "price",
        "reads wait",
        "(for store)",
        "mean wait",
        "rows stored",
        "store reads/s",
        "reads fail",
        "writes fail",
    ];
    print!("{:<32}", "");
    columns.iter().for_each(|column| print!("{column:>14}"));
    println!();
    let plans = [
        fleet.without_branch_keys(),
        fleet.with_branch_keys(),
        peers::no_cache(fleet),
        peers::caching_cmm(fleet),
        peers::hierarchical(fleet),
        peers::asherah(fleet),
    ];
    for plan in plans {
        row(fleet, &plan);
    }
    println!();
    println!("calls        of the key service; a month has 30 days; the price is of a month");
    println!("reads wait   share of reads that wait for the key service, for the key store alone,");
    println!("             and what the former adds to a read on average");
    let outage = settings::time(fleet.outage);
    println!("fail         share of reads and writes that fail in an outage of {outage}");
    let lifetime = settings::time(fleet.dek_lifetime().round());
    println!("\nOne DEK encrypts for {lifetime}.\n");
    for rule in [peers::NO_CACHE, peers::CACHING_CMM, peers::HIERARCHICAL, peers::ASHERAH] {
        println!("{rule}\n");
    }
}

fn row(fleet: &Fleet, plan: &Plan) {
    let month = plan.calls * MONTH;
    let cells = [
        short(plan.calls),
        short(month),
        format!("{:.2}", month / 10_000.0 * fleet.price),
        percent(plan.reads_waiting),
        percent(plan.reads_waiting_for_store),
        format!("{:.3} ms", plan.reads_waiting * fleet.latency * 1e3),
        short(plan.store_rows.ceil()),
        short(plan.store_reads),
        percent(plan.reads_failing),
        percent(plan.writes_failing),
    ];
    print!("{:<32}", plan.name);
    cells.iter().for_each(|cell| print!("{cell:>14}"));
    println!();
}

fn percent(share: f64) -> String {
    match share * 100.0 {
        none if none <= 0.0 => "0 %".to_owned(),
        little if little < 0.001 => "< 0.001 %".to_owned(),
        some => format!("{some:.3} %"),
    }
}

/// Three digits, and what they are thousands or millions of.
fn short(value: f64) -> String {
    for (unit, size) in [("G", 1e9), ("M", 1e6), ("k", 1e3)] {
        if value >= size * 10.0 {
            return format!("{:.1} {unit}", value / size);
        }
    }
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}
