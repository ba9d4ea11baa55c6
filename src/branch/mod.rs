//! Branch keys.
#![forbid(unsafe_code)]
#![allow(dead_code)]

mod format;
#[cfg(test)]
mod vectors;
