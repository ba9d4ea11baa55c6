//! How often a fleet of services asks its key service: the arithmetic of the planner
//! (`examples/fleet_plan.rs`), of its test and of the benchmark `cold_reads`.
//!
//! - [`cache`]: one cached key that is used occasionally.
//! - [`plan`]: a [`Fleet`], and what it costs with Waxseal, with and without branch keys.
//! - [`peers`]: the same with the AWS Encryption SDK and Asherah, by their documented rules.
//! - [`cold`]: a new process that reads old rows.
//! - [`settings`]: a [`Fleet`] from flags and a file.
//!
//! All times are in seconds.
#![forbid(unsafe_code)]

pub mod cache;
pub mod cold;
pub mod peers;
pub mod plan;
pub mod settings;

pub use cache::{Keeping, Use};
pub use plan::{Fleet, Plan};

/// One minute.
pub const MINUTE: f64 = 60.0;
/// One hour.
pub const HOUR: f64 = 60.0 * MINUTE;
/// One day.
pub const DAY: f64 = 24.0 * HOUR;
/// The month of a bill.
pub const MONTH: f64 = 30.0 * DAY;
