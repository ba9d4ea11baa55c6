//! Keys in SoftHSM2 and kryoptic, and behind a module that fails on command. Each test has its own
//! process and token.
#![allow(missing_docs)]
// `alone` takes the name of the test from the type of a closure.
#![allow(clippy::redundant_closure)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod blame;
mod conformance;
mod duties;
mod faults;
mod isolation;
mod keys;
mod login;
mod programs;
mod sessions;

use std::time::Duration;

use waxseal_pkcs11::{PinSource, Pkcs11Kek, Pkcs11KekBuilder};
use waxseal_testing::pkcs11::{Ground, KEY, TOKEN};

/// Does what an operator has to do meanwhile, in its own process.
#[test]
fn the_operators_hand() {
    waxseal_testing::pkcs11::operator();
}

fn builder(ground: &Ground) -> Pkcs11KekBuilder {
    Pkcs11Kek::builder(ground.module(), KEY)
        .token(TOKEN)
        .pin_source(PinSource::File(ground.pin_file()))
        .key_max_age(Duration::from_millis(100))
}

fn kek(ground: &Ground) -> Pkcs11Kek {
    builder(ground).build().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
