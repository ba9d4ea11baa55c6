//! A decryption that fails with a code that says nothing: was it the wrapped key, or the token?

use std::time::Instant;

use pollster::block_on;
use waxseal::WrappedDek;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_pkcs11::Pkcs11Kek;
use waxseal_testing::pkcs11::{Ground, KEY, Kind, alone};
use waxseal_testing::support::{a_dek, context};

use super::{builder, kek};
use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

/// Codes that say nothing of the wrapped key, and what they mean.
const CODES: [(&str, KekErrorClass); 8] = [
    ("0x5", Unavailable),
    ("0x6", Unavailable),
    ("0x30", Unavailable),
    ("0x31", Throttled),
    ("0x2", Unavailable),
    ("0x70", Misconfigured),
    ("0x80000001", Unavailable),
    ("0x1f", Unavailable),
];

/// A wrapped key, and what is left of it when a bit is flipped.
fn good_and_bad(kek: &Pkcs11Kek) -> (WrappedDek, WrappedDek) {
    let wrapped = block_on(kek.wrap(&context("alice"), &a_dek())).unwrap();
    let mut bytes = wrapped.wrapped().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    (wrapped, WrappedDek::new(kek.id().clone(), bytes).unwrap())
}

fn told_apart(ground: &Ground, build: impl Fn() -> Pkcs11Kek, good: &WrappedDek, bad: &WrappedDek) {
    let alice = context("alice");
    for (code, class) in CODES {
        // A provider that has unwrapped nothing yet.
        let kek = build();
        ground.control(&format!("C_DecryptInit rv {code} x 0\nC_EncryptInit rv {code} x 0\n"));
        let error = block_on(kek.unwrap(&alice, good)).unwrap_err();
        assert_eq!(error.class(), class, "{code}: {error}");
        ground.control("");
        let error = block_on(kek.unwrap(&alice, bad)).unwrap_err();
        assert_eq!(error.class(), Invalid, "{code}: {error}");
        // Right after a forged one too.
        ground.control(&format!("C_DecryptInit rv {code} x 0\n"));
        let error = block_on(kek.unwrap(&alice, good)).unwrap_err();
        assert_eq!(error.class(), class, "{code}: {error}");
        ground.control("");
        block_on(kek.unwrap(&alice, good)).unwrap();
        block_on(kek.close());
    }
}

#[test]
fn a_token_in_trouble_is_told_from_a_bad_wrapped_key_before_anything_was_unwrapped() {
    alone(Kind::Shim, |ground| {
        let (good, bad) = good_and_bad(&kek(ground));
        told_apart(ground, || kek(ground), &good, &bad);
    });
}

#[test]
fn a_key_that_only_decrypts_is_judged_by_one_that_lives_as_long_as_the_session() {
    alone(Kind::Shim, |ground| {
        let (good, bad) = good_and_bad(&kek(ground));
        ground.allow(KEY, "01", "d");
        told_apart(ground, || kek(ground), &good, &bad);
        assert!(ground.called("C_GenerateKey") > 0);
    });
}

#[test]
fn what_cannot_be_found_out_is_an_outage_that_opens_no_breaker() {
    alone(Kind::Shim, |ground| {
        let (good, bad) = good_and_bad(&kek(ground));
        ground.allow(KEY, "01", "d");
        // No key may be made, with any code that says so.
        for code in ["0x68", "0x70", "0x54", "0xd1", "0xb5"] {
            ground.control(&format!("C_GenerateKey rv {code} x 0\n"));
            let kek = kek(ground);
            let alice = context("alice");
            let error = block_on(kek.unwrap(&alice, &bad)).unwrap_err();
            assert!(error.class() == Unavailable && !error.was_asked(), "{code}: {error}");
            assert!(error.to_string().contains("cannot be told"), "{error}");
            // The first that is unwrapped is a sample from then on.
            block_on(kek.unwrap(&alice, &good)).unwrap();
            assert_eq!(block_on(kek.unwrap(&alice, &bad)).unwrap_err().class(), Invalid);
            block_on(kek.close());
        }
    });
}

#[test]
fn a_version_that_must_no_longer_unwrap_denies_nothing_of_another_one() {
    alone(Kind::Shim, |ground| {
        let versions = || builder(ground).versions(waxseal_pkcs11::Versions::ById).build().unwrap();
        let kek = versions();
        let alice = context("alice");
        let (_, _) = good_and_bad(&kek);
        ground.key(KEY, "02", "eds");
        block_on(kek.read_key()).unwrap();
        let (good, bad) = good_and_bad(&kek);
        // The sample is of the first version.
        ground.allow(KEY, "01", "");
        ground.allow(KEY, "02", "d");
        // A session that had read the keys would try the second one, which it believes encrypts,
        // and could not find out.
        block_on(kek.close());
        let error = block_on(kek.unwrap(&alice, &bad)).unwrap_err();
        assert_eq!(error.class(), Invalid, "{error}");
        block_on(kek.unwrap(&alice, &good)).unwrap();
        ground.allow(KEY, "02", "");
        let error = block_on(kek.unwrap(&alice, &good)).unwrap_err();
        assert_eq!(error.class(), Denied, "{error}");
    });
}

#[test]
fn forged_wrapped_keys_do_not_double_the_load_for_long() {
    alone(Kind::Shim, |ground| {
        let kek = kek(ground);
        let (good, bad) = good_and_bad(&kek);
        let alice = context("alice");
        let (before, encrypted) = (ground.called("C_DecryptInit"), ground.called("C_Encrypt"));
        let start = Instant::now();
        // Each costs a trial and two more decryptions, as long as there are few.
        for _ in 0..400 {
            assert_eq!(block_on(kek.unwrap(&alice, &bad)).unwrap_err().class(), Invalid);
        }
        assert_eq!(ground.called("C_DecryptInit") - before, 400 * 4);
        // Then each costs what it is. Nothing is said of it that is not known.
        let mut forged = 400;
        let mut untold = 0;
        while untold < 500 {
            let error = block_on(kek.unwrap(&alice, &bad)).unwrap_err();
            forged += 1;
            if error.class() != Invalid {
                assert!(error.class() == Unavailable && !error.was_asked(), "{error}");
                assert!(error.to_string().contains("too many"), "{error}");
                untold += 1;
            }
            assert!(start.elapsed().as_secs() < 120, "{untold} of {forged}");
        }
        // A thousand at once, and then one in 10 ms.
        let most = 1000 + start.elapsed().as_millis() / 10 + 1;
        let more = ground.called("C_DecryptInit") - before - forged;
        println!("{more} decryptions more for {forged} forged ones in {:?}", start.elapsed());
        assert!(u128::try_from(more).unwrap() <= 3 * most, "{more} for {most} trials");
        assert_eq!(ground.called("C_Encrypt"), encrypted, "the sample is enough");
        block_on(kek.unwrap(&alice, &good)).unwrap();
        assert_eq!(kek.login().unwrap().logins, 1, "no session was given up for it");
    });
}

#[test]
fn an_outage_among_forged_wrapped_keys_is_never_told_as_a_damaged_one() {
    alone(Kind::Shim, |ground| {
        let kek = kek(ground);
        let (good, bad) = good_and_bad(&kek);
        let alice = context("alice");
        // Below the bound of trials, and beyond it.
        for forged in [30, 3000] {
            for (code, class) in CODES {
                for _ in 0..forged / CODES.len() {
                    block_on(kek.unwrap(&alice, &bad)).unwrap_err();
                }
                ground.control(&format!(
                    "C_DecryptInit rv {code} x 0\nC_EncryptInit rv {code} x 0\n"
                ));
                let error = block_on(kek.unwrap(&alice, &good)).unwrap_err();
                assert_eq!(error.class(), class, "{code}: {error}");
                ground.control("");
                block_on(kek.unwrap(&alice, &good)).unwrap();
            }
        }
        // So with several sessions, where one finds out for the others.
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (kek, bad) = (kek.clone(), bad.clone());
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        block_on(kek.unwrap(&context("alice"), &bad)).unwrap_err();
                    }
                })
            })
            .collect();
        for n in 0..50 {
            ground.control("C_DecryptInit rv 0x30 x 0\nC_EncryptInit rv 0x30 x 0\n");
            let error = block_on(kek.unwrap(&alice, &good)).unwrap_err();
            assert_eq!(error.class(), Unavailable, "{n}: {error}");
            ground.control("");
            block_on(kek.unwrap(&alice, &good)).unwrap();
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_token_that_fails_once_has_damaged_nothing() {
    alone(Kind::Shim, |ground| {
        let kek = kek(ground);
        let (good, bad) = good_and_bad(&kek);
        let alice = context("alice");
        let dek = block_on(kek.unwrap(&alice, &good)).unwrap();
        for (n, (code, _)) in CODES.into_iter().enumerate() {
            // Well when it is looked at: the wrapped key is decrypted after all.
            ground.control(&format!("C_Decrypt rv {code} once{n} 1\n"));
            assert_eq!(block_on(kek.unwrap(&alice, &good)).unwrap().expose(), dek.expose());
        }
        ground.control("");
        assert_eq!(block_on(kek.unwrap(&alice, &bad)).unwrap_err().class(), Invalid);
    });
}
