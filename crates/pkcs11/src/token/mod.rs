//! The module, the token, the session and the key: whatever calls functions of PKCS#11. Nothing
//! outside this folder names the bindings. Everything in it blocks, and runs on the provider's own
//! threads.
#![forbid(unsafe_code)]

mod blame;
mod cipher;
mod codes;
mod connection;
mod keys;
mod login;
mod module;
mod search;
mod state;
mod work;

pub(crate) use connection::Connection;
pub(crate) use keys::KeyName;
pub(crate) use module::check_process;
pub(crate) use search::TokenName;
pub(crate) use state::{Known, Token};
pub(crate) use work::{Wrapping, not_ours};
