//! The child of a fork is refused, where the module's handles would work by accident.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use pollster::block_on;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_pkcs11::{PinSource, Pkcs11Kek};
use waxseal_testing::forked;
use waxseal_testing::pkcs11::{KEY, Kind, TOKEN, alone};
use waxseal_testing::support::{a_dek, context};

#[test]
fn the_operators_hand() {
    waxseal_testing::pkcs11::operator();
}

#[test]
fn a_forked_child_is_refused_and_so_is_what_it_builds() {
    alone(Kind::SoftHsm, |ground| {
        let build = || {
            Pkcs11Kek::builder(ground.module(), KEY)
                .token(TOKEN)
                .pin_source(PinSource::File(ground.pin_file()))
                .build()
                .unwrap()
        };
        let kek = build();
        let (alice, dek) = (context("alice"), a_dek());
        let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
        forked::in_a_child(|| {
            let is_told = |kek: &Pkcs11Kek| {
                block_on(kek.unwrap(&alice, &wrapped))
                    .is_err_and(|error| error.class() == KekErrorClass::Misconfigured)
                    && block_on(kek.read_key()).is_err()
            };
            let told = is_told(&kek) && is_told(&build());
            let answers = kek.is_current(&wrapped) == Some(true);
            block_on(kek.close());
            told && answers
        });
        let unwrapped = block_on(kek.unwrap(&alice, &wrapped)).unwrap();
        assert_eq!(unwrapped.expose(), dek.expose(), "the parent goes on");
    });
}
