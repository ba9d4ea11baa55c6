//! An Open Policy Agent server.
#![forbid(unsafe_code)]

mod builder;
mod client;
mod uri;

pub use builder::OpaPolicyBuilder;
pub use client::OpaPolicy;
