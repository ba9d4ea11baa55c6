//! The bytes of format 1 (docs/format.md). Only this code parses untrusted input.
//!
//! It borrows from its input. No allocation depends on a length that the input claims. It knows
//! neither keys nor key services.
#![forbid(unsafe_code)]

mod context;
mod key_row;
pub(crate) mod limits;
mod message;
pub(crate) mod reader;
pub(crate) mod stream;
mod wrapped_keys;

pub use key_row::{KeyKind, KeyRow};
pub(crate) use message::{Form, Header, Message, Prefix};
pub use message::{MessageKind, is_sealed};
pub use wrapped_keys::{KekId, WrappedDek, WrappedKeys};
