//! A decryption that fails with a code that says nothing: was it the wrapped key, or the token?

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
        // A session that read the keys before would try the second one, which it takes for one that
        // encrypts, and could not tell.
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
fn forged_wrapped_keys_do_not_double_the_load() {
    alone(Kind::Shim, |ground| {
        let kek = kek(ground);
        let (good, bad) = good_and_bad(&kek);
        let alice = context("alice");
        let (before, encrypted) = (ground.called("C_DecryptInit"), ground.called("C_Encrypt"));
        let start = std::time::Instant::now();
        let mut forged = 0;
        while forged < 400 {
            assert_eq!(block_on(kek.unwrap(&alice, &bad)).unwrap_err().class(), Invalid);
            forged += 1;
        }
        // Twenty at once, and then one in 50 ms, of each of the two bounds.
        let most = 20 + 2 * (start.elapsed().as_millis() / 50 + 1);
        let probes = ground.called("C_DecryptInit") - before - forged;
        println!("{probes} trials for {forged} forged wrapped keys in {:?}", start.elapsed());
        assert!(probes > 0 && u128::try_from(probes).unwrap() <= most, "{probes} of {most}");
        assert_eq!(ground.called("C_Encrypt"), encrypted, "the sample is enough");
        block_on(kek.unwrap(&alice, &good)).unwrap();
        assert_eq!(kek.login().unwrap().logins, 1, "no session was given up for it");
    });
}
