//! PINs: one wrong try and no second, whoever makes it.

use std::fs;

use pollster::block_on;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_pkcs11::PinSource;
use waxseal_testing::pkcs11::{Kind, PIN, alone};
use waxseal_testing::support::{a_dek, context};

use super::{builder, kek};
use KekErrorClass::{Misconfigured, Unavailable};

#[test]
fn a_wrong_pin_is_given_once_whichever_provider_has_it_and_whatever_happens() {
    alone(Kind::Shim, |ground| {
        fs::write(ground.pin_file(), "wrong-pin\n").unwrap();
        let (one, other) = (kek(ground), builder(ground).sessions(1).build().unwrap());
        let (alice, dek) = (context("alice"), a_dek());
        for round in 0..5 {
            for kek in [&one, &other, &kek(ground)] {
                let error = block_on(kek.wrap(&alice, &dek)).unwrap_err();
                assert_eq!(error.class(), Misconfigured, "{error}");
                assert!(error.to_string().contains("CKR_PIN_INCORRECT"), "{error}");
                assert_eq!(
                    error.was_asked(),
                    ground.called("C_Login") == 1
                        && round == 0
                        && !error.to_string().contains("before")
                );
                assert!(!format!("{error:?}").contains("wrong-pin"));
                assert_eq!(block_on(kek.health()).unwrap_err().class(), Misconfigured);
                block_on(kek.close());
            }
        }
        assert_eq!(ground.called("C_Login"), 1);
        assert_eq!(one.login().unwrap().logins, 0);
        assert!(one.login().unwrap().failures > 0);
        // Another PIN is another try, and only one.
        fs::write(ground.pin_file(), "wrong-pin-2").unwrap();
        for _ in 0..3 {
            block_on(one.wrap(&alice, &dek)).unwrap_err();
        }
        assert_eq!(ground.called("C_Login"), 2);
        // The first is remembered still.
        fs::write(ground.pin_file(), "wrong-pin").unwrap();
        block_on(one.wrap(&alice, &dek)).unwrap_err();
        assert_eq!(ground.called("C_Login"), 2);
        fs::write(ground.pin_file(), PIN).unwrap();
        block_on(one.wrap(&alice, &dek)).unwrap();
        block_on(other.wrap(&alice, &dek)).unwrap();
        assert_eq!(ground.called("C_Login"), 3, "the login is the process's");
        assert_eq!((one.login().unwrap().logins, other.login().unwrap().logins), (1, 0));
    });
}

#[test]
fn many_providers_that_start_at_once_with_a_wrong_pin_give_it_once() {
    alone(Kind::Shim, |ground| {
        ground.control("C_Login sleep 100\n");
        fs::write(ground.pin_file(), "wrong-pin").unwrap();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let kek = kek(ground);
                std::thread::spawn(move || block_on(kek.read_key()).unwrap_err().class())
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Misconfigured);
        }
        assert_eq!(ground.called("C_Login"), 1);
    });
}

#[test]
fn a_pin_that_an_operator_made_right_is_tried_again_when_the_caller_says_so() {
    alone(Kind::Shim, |ground| {
        ground.control("C_Login rv 0xa0 x 1\n");
        let kek = kek(ground);
        block_on(kek.read_key()).unwrap_err();
        assert!(block_on(kek.read_key()).unwrap_err().to_string().contains("refused before"));
        kek.forget_refused_pins().unwrap();
        block_on(kek.read_key()).unwrap();
        assert_eq!(ground.called("C_Login"), 2);
    });
}

#[test]
fn a_login_that_fails_without_a_word_about_the_pin_is_not_made_again_at_once() {
    alone(Kind::Shim, |ground| {
        ground.control("C_Login rv 0x5 x 1\n");
        let kek = kek(ground);
        for _ in 0..20 {
            assert_eq!(block_on(kek.read_key()).unwrap_err().class(), Unavailable);
        }
        assert_eq!(ground.called("C_Login"), 1, "it might have counted as a wrong PIN");
        let start = std::time::Instant::now();
        while block_on(kek.read_key()).is_err() {
            assert!(start.elapsed().as_secs() < 30);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert_eq!(ground.called("C_Login"), 2);
    });
}

#[test]
fn a_wrong_pin_is_given_once_even_if_the_token_has_no_word_for_it() {
    alone(Kind::Shim, |ground| {
        ground.control("login masked\n");
        fs::write(ground.pin_file(), "wrong-pin").unwrap();
        let kek = kek(ground);
        for _ in 0..5 {
            let error = block_on(kek.read_key()).unwrap_err();
            assert_eq!(error.class(), Misconfigured, "{error}");
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        assert_eq!(ground.called("C_Login"), 1, "the token said that it counted");
    });
}

#[test]
fn a_pin_that_was_locked_is_said_to_be() {
    alone(Kind::Shim, |ground| {
        ground.control("C_Login rv 0xa4 x 0\n");
        let error = block_on(kek(ground).read_key()).unwrap_err();
        assert_eq!(error.class(), Misconfigured);
        assert!(error.to_string().contains("locked"), "{error}");
    });
}

#[test]
fn kryoptic_locks_after_wrong_pins_of_others_and_the_right_one_is_then_refused() {
    alone(Kind::Kryoptic, |ground| {
        // Each is another PIN, so each is tried.
        let mut locked = None;
        for n in 0..30 {
            fs::write(ground.pin_file(), format!("wrong-pin-{n}")).unwrap();
            let error = block_on(kek(ground).read_key()).unwrap_err();
            assert_eq!(error.class(), Misconfigured, "{error}");
            if error.to_string().contains("locks the token") || error.to_string().contains("locked")
            {
                locked = Some((n, error.to_string()));
                break;
            }
        }
        println!("after this many wrong PINs: {locked:?}");
        let (tries, _) = locked.unwrap();
        assert!(tries > 0);
        fs::write(ground.pin_file(), PIN).unwrap();
        let error = block_on(kek(ground).read_key()).unwrap_err();
        assert_eq!(error.class(), Misconfigured, "{error}");
    });
}

#[test]
fn a_pin_comes_from_the_environment_and_a_missing_one_is_said() {
    alone(Kind::SoftHsm, |ground| {
        let from = |name: &str| {
            builder(ground).pin_source(PinSource::Environment(name.to_owned())).build().unwrap()
        };
        let error = block_on(from("WAXSEAL_TEST_NO_SUCH_PIN").read_key()).unwrap_err();
        assert_eq!(error.class(), Misconfigured);
        assert!(error.to_string().contains("WAXSEAL_TEST_NO_SUCH_PIN"));
        block_on(from("WAXSEAL_TEST_PIN").read_key()).unwrap();
    });
}

#[test]
fn without_a_pin_a_private_key_is_not_seen_and_that_is_no_denial() {
    alone(Kind::SoftHsm, |ground| {
        let without =
            waxseal_pkcs11::Pkcs11Kek::builder(ground.module(), waxseal_testing::pkcs11::KEY)
                .token(waxseal_testing::pkcs11::TOKEN)
                .build()
                .unwrap();
        let error = block_on(without.read_key()).unwrap_err();
        assert_eq!(error.class(), Misconfigured, "{error}");
        assert!(without.login().is_none());
        // Where another provider has logged in, it is seen.
        let with = kek(ground);
        block_on(with.read_key()).unwrap();
        block_on(without.read_key()).unwrap();
    });
}
