//! DEKs and PINs that went to a token, searched for in the memory of the service: with the module
//! in it, and with the module in a helper.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use pollster::block_on;
use waxseal::kek::{KekProvider, UnwrappedDek};
use waxseal_pkcs11::{PinSource, Pkcs11Kek};
use waxseal_testing::pkcs11::{Ground, KEY, Kind, PIN, TOKEN, alone};
use waxseal_testing::scan::Needle;
use waxseal_testing::support::context;

const DEKS: usize = 8;

#[test]
fn the_operators_hand() {
    waxseal_testing::pkcs11::operator();
}

/// Copies of DEKs, and of the PIN beyond those that the test itself has.
#[derive(Debug)]
struct Found {
    /// The control: while the DEKs are held.
    held: usize,
    /// After the DEKs were dropped; the sessions are open.
    dropped: usize,
    /// After the provider was closed and dropped.
    closed: usize,
    pins: usize,
}

fn search(ground: &Ground, is_isolated: bool) -> Found {
    let mut random = [0; 16];
    getrandom::fill(&mut random).unwrap();
    let pin = data_encoding::HEXLOWER.encode(&random);
    ground.operate(&["pin", PIN, &pin]);
    std::fs::write(ground.pin_file(), &pin).unwrap();
    let of_pin = Needle::of(pin.as_bytes());
    let before = of_pin.occurrences();
    let builder = Pkcs11Kek::builder(ground.module(), KEY)
        .token(TOKEN)
        .pin_source(PinSource::File(ground.pin_file()));
    let builder = match is_isolated {
        true => builder.helper(env!("CARGO_BIN_EXE_waxseal-pkcs11-helper")),
        false => builder,
    };
    let kek = builder.build().unwrap();
    let alice = context("alice");
    let (mut needles, mut unwrapped) = (Vec::new(), Vec::new());
    for _ in 0..DEKS {
        let own = {
            // Not from a generator that keeps what it made.
            let mut bytes = vec![0; 32];
            getrandom::fill(&mut bytes).unwrap();
            UnwrappedDek::new(bytes).to_dek().unwrap()
        };
        needles.push(Needle::of(own.expose()));
        let wrapped = block_on(kek.wrap(&alice, &own)).unwrap();
        unwrapped.push(block_on(kek.unwrap(&alice, &wrapped)).unwrap());
        let (made, wrapped) = block_on(kek.generate(&alice)).unwrap();
        needles.push(Needle::of(made.expose()));
        unwrapped.extend([made, block_on(kek.unwrap(&alice, &wrapped)).unwrap()]);
    }
    let count = || needles.iter().map(Needle::occurrences).sum();
    let held = count();
    drop(unwrapped);
    let dropped = count();
    block_on(kek.close());
    drop(kek);
    let pins = of_pin.occurrences().saturating_sub(before);
    Found { held, dropped, closed: count(), pins }
}

#[test]
fn nothing_is_left_behind_where_a_helper_has_the_module() {
    alone(Kind::SoftHsm, |ground| {
        let found = search(ground, true);
        println!("{found:?}");
        assert!(found.held >= 3 * DEKS, "the control: {found:?}");
        assert_eq!((found.dropped, found.closed, found.pins), (0, 0, 0), "{found:?}");
    });
}

#[test]
fn what_a_module_in_the_service_leaves_behind_is_counted() {
    alone(Kind::SoftHsm, |ground| {
        let found = search(ground, false);
        println!("{found:?}");
        assert!(found.held >= 3 * DEKS, "the control: {found:?}");
        // What the module and the binding keep is out of reach (docs/pkcs11.md): a copy or two for
        // each of the crossings.
        assert!(found.closed <= 2 * 4 * DEKS, "{found:?}");
    });
}
