//! A separate process for the module, so that a vendor's code that crashes or hangs ends a helper
//! and not the service.
//!
//! Each session has its own helper. The service and its helper communicate through a socket pair,
//! which is the helper's standard input: one request, one answer. The PIN and every DEK pass
//! through it. A helper ends with the thread of the service that started it.
//!
//! The crate has a program, `waxseal-pkcs11-helper`, that only calls [`run`]. A service that does
//! not want to ship a second file can be its own helper:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! fn main() -> ExitCode {
//!     // Before anything else: no thread, no logging, no configuration.
//!     if std::env::args_os().next().is_some_and(|name| name == "my-service-pkcs11-helper") {
//!         return waxseal_pkcs11::helper::run();
//!     }
//!     ExitCode::SUCCESS
//! }
//! ```
//!
//! Here, `my-service-pkcs11-helper` is a link to the service's own file.
#![forbid(unsafe_code)]

mod channel;
mod child;
mod process;
mod wire;

pub use child::run;
pub(crate) use process::{Process, Remote};
