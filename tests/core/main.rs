//! What an envelope does, the format and its vectors, the local KEK, the conformance suite, and the
//! shape of the source.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod architecture;
mod attack;
mod backends;
mod circles;
mod conformance;
mod dependencies;
mod envelope;
mod local_kek;
mod many;
mod misuse;
mod prepare;
mod properties;
mod randomness;
mod rewrap;
mod stores;
mod vectors;
mod wrong_store;
