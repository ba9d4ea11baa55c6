//! What it takes to read rows of the past: calls of the key service, counted, and the time of a
//! read that finds its DEK not cached.
//!
//!     cargo bench -p waxseal-benches --features test-util --bench cold_reads
//!
//! Counts come from a scripted KEK and a clock that the benchmark moves. Those of the AWS
//! Encryption SDK and Asherah follow from their documented rules, which are printed, and were not
//! measured. A count that misses its goal fails the benchmark. A time does not.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod counts;
mod report;
mod times;

use std::process::ExitCode;

use fleet::peers;
use report::Report;

fn main() -> ExitCode {
    let mut report = Report::new();
    counts::month(&mut report);
    counts::year(&mut report);
    counts::start_together(&mut report);
    counts::rotation(&mut report);
    counts::size(&mut report);
    times::cold_read(&mut report);
    println!("\nThe rules that the last column follows:");
    for rule in [peers::NO_CACHE, peers::CACHING_CMM, peers::HIERARCHICAL, peers::ASHERAH] {
        println!("- {rule}");
    }
    report.exit_code()
}
