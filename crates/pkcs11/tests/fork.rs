//! The child of a fork is refused, where the module's handles would work by accident.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::cell::Cell;

use pollster::block_on;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_pkcs11::{PinSource, Pkcs11Kek};
use waxseal_testing::forked;
use waxseal_testing::pkcs11::{Ground, KEY, Kind, TOKEN, alone};
use waxseal_testing::support::{a_dek, context};

#[test]
fn the_operators_hand() {
    waxseal_testing::pkcs11::operator();
}

#[test]
fn a_forked_child_is_refused_and_so_is_what_it_builds() {
    alone(Kind::SoftHsm, |ground| refused(ground, false));
}

/// It must neither use nor end the helpers of its parent.
#[test]
fn a_forked_child_is_refused_where_helpers_have_the_module() {
    alone(Kind::SoftHsm, |ground| refused(ground, true));
}

fn refused(ground: &Ground, is_isolated: bool) {
    let build = || {
        let builder = Pkcs11Kek::builder(ground.module(), KEY)
            .token(TOKEN)
            .pin_source(PinSource::File(ground.pin_file()));
        match is_isolated {
            true => builder.helper(env!("CARGO_BIN_EXE_waxseal-pkcs11-helper")),
            false => builder,
        }
        .build()
        .unwrap()
    };
    let kek = build();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
    // The child drops its copy.
    let held = Cell::new(Some(kek));
    forked::in_a_child(|| {
        let kek = held.take().unwrap();
        let is_told = |kek: &Pkcs11Kek| {
            block_on(kek.unwrap(&alice, &wrapped))
                .is_err_and(|error| error.class() == KekErrorClass::Misconfigured)
                && block_on(kek.read_key()).is_err()
        };
        let told = is_told(&kek) && is_told(&build());
        let answers = kek.is_current(&wrapped) == Some(true);
        block_on(kek.close());
        drop(kek);
        told && answers
    });
    let kek = held.take().unwrap();
    let unwrapped = block_on(kek.unwrap(&alice, &wrapped)).unwrap();
    assert_eq!(unwrapped.expose(), dek.expose(), "the parent goes on");
    assert_eq!(kek.login().unwrap().logins, 1, "with the session that it had");
}
