//! PINs: one wrong try and no second, by any provider.

use std::fs;
use std::time::Duration;

use pollster::block_on;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_pkcs11::{PinSource, Pkcs11Kek};
use waxseal_testing::pkcs11::{Ground, KEY, Kind, PIN, TOKEN, alone};
use waxseal_testing::support::{a_dek, context};

use super::{builder, kek, until};
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

/// What a service does with a PIN that the token does not take, and cannot say so: calls,
/// reconnects, new providers, many sessions, a module at another path.
fn pestered(ground: &Ground, kek: &Pkcs11Kek) {
    let (alice, dek) = (context("alice"), a_dek());
    let copy = ground.directory.join("copy of the module.so");
    if !copy.exists() {
        fs::copy(ground.module(), &copy).unwrap();
    }
    let by_copy = Pkcs11Kek::builder(copy, KEY).token(TOKEN);
    let by_copy = by_copy.pin_source(PinSource::File(ground.pin_file())).build().unwrap();
    for _ in 0..3 {
        let another = builder(ground).sessions(8).build().unwrap();
        for kek in [kek, &another, &by_copy] {
            let items: Vec<_> = (0..20).map(|_| (&alice, &dek)).collect();
            for result in block_on(kek.wrap_many(&items)) {
                let error = result.unwrap_err();
                assert!(matches!(error.class(), Misconfigured | Unavailable), "{error}");
            }
            block_on(kek.health()).unwrap_err();
            block_on(kek.close());
        }
        std::thread::sleep(Duration::from_millis(700));
    }
    let error = block_on(kek.read_key()).unwrap_err();
    assert!(error.class() == Misconfigured && !error.was_asked(), "{error}");
    assert!(error.to_string().contains("may have counted as a wrong PIN"), "{error}");
}

fn given_once_for_certain(ground: &Ground) {
    ground.control("login silent\n");
    fs::write(ground.pin_file(), "wrong-pin-1").unwrap();
    let kek = kek(ground);
    pestered(ground, &kek);
    assert_eq!(ground.called("C_Login"), 1, "never a second time");
    // The content counts, not the file.
    fs::remove_file(ground.pin_file()).unwrap();
    fs::write(ground.pin_file(), "wrong-pin-1\n").unwrap();
    pestered(ground, &kek);
    assert_eq!(ground.called("C_Login"), 1);
    fs::write(ground.pin_file(), PIN).unwrap();
    block_on(kek.read_key()).unwrap();
    assert_eq!(ground.called("C_Login"), 2);
    // One that logged in before, and was changed in the token since.
    block_on(kek.close());
    let new = if ground.kind == Kind::ShimKryoptic {
        ground.operate(&["pin", PIN, "new-pin-1"]);
        "new-pin-1"
    } else {
        // SoftHSM2 itself continues with what it has read.
        ground.control("login silent\nC_Login rv 0x5 x 0\n");
        PIN
    };
    pestered(ground, &kek);
    assert_eq!(ground.called("C_Login"), 3, "nor one that was right before");
    ground.control("login silent\n");
    fs::write(ground.pin_file(), new).unwrap();
    kek.forget_refused_pins().unwrap();
    block_on(kek.read_key()).unwrap();
    assert_eq!(ground.called("C_Login"), 4);
}

#[test]
fn a_wrong_pin_is_given_once_to_a_token_that_has_no_word_and_no_flag_for_it() {
    alone(Kind::Shim, |ground| given_once_for_certain(ground));
}

#[test]
fn a_wrong_pin_is_given_once_to_a_kryoptic_that_has_no_word_and_no_flag_for_it() {
    alone(Kind::ShimKryoptic, |ground| given_once_for_certain(ground));
}

#[test]
fn a_login_that_fails_without_a_word_about_the_pin_is_made_again_when_the_caller_says_so() {
    alone(Kind::Shim, |ground| {
        for (n, code) in
            ["0x5", "0x6", "0x30", "0x32", "0x50", "0x80000001", "0x7", "0x101"].iter().enumerate()
        {
            let kek = kek(ground);
            ground.control(&format!("C_Login rv {code} {n} 1\n"));
            let before = ground.called("C_Login");
            for _ in 0..10 {
                let error = block_on(kek.read_key()).unwrap_err();
                assert!(matches!(error.class(), Misconfigured | Unavailable), "{error}");
            }
            assert_eq!(ground.called("C_Login"), before + 1, "{code}");
            kek.forget_refused_pins().unwrap();
            block_on(kek.read_key()).unwrap();
            assert_eq!(ground.called("C_Login"), before + 2, "{code}");
            block_on(kek.close());
        }
        // If the token cannot have checked the PIN, no operator has to act.
        for (n, code) in ["0xe0", "0xb3", "0xe1", "0x104"].iter().enumerate() {
            let kek = kek(ground);
            ground.control(&format!("C_Login rv {code} again{n} 1\n"));
            until("it logs in", || block_on(kek.read_key()).is_ok());
            block_on(kek.close());
        }
    });
}

#[test]
fn a_pin_that_logged_in_is_given_again_after_an_outage_of_the_token() {
    alone(Kind::Shim, |ground| {
        let kek = kek(ground);
        block_on(kek.read_key()).unwrap();
        block_on(kek.close());
        // The token goes down during the login: nothing answers after it.
        ground.control("C_Login rv 0x30 x 0\nC_GetSessionInfo fails-behind C_Login 0x30\n");
        let before = ground.called("C_Login");
        let error = block_on(kek.read_key()).unwrap_err();
        assert_eq!(error.class(), Unavailable, "{error}");
        ground.control("");
        for _ in 0..5 {
            let error = block_on(kek.read_key()).unwrap_err();
            assert!(error.class() == Unavailable && !error.was_asked(), "{error}");
        }
        assert_eq!(ground.called("C_Login"), before + 1);
        until("it logs in by itself", || block_on(kek.read_key()).is_ok());
        assert_eq!(ground.called("C_Login"), before + 2);
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
        let without = Pkcs11Kek::builder(ground.module(), KEY).token(TOKEN).build().unwrap();
        let error = block_on(without.read_key()).unwrap_err();
        assert_eq!(error.class(), Misconfigured, "{error}");
        assert!(without.login().is_none());
        // Where another provider has logged in, it is seen.
        let with = kek(ground);
        block_on(with.read_key()).unwrap();
        block_on(without.read_key()).unwrap();
    });
}
