//! Which token, which key, which way to an IV; and what is done to a wrapped key.

use pollster::block_on;
use waxseal::WrappedDek;
use waxseal::kek::{Health, KekErrorClass, KekProvider};
use waxseal_pkcs11::{IvSource, PinSource, Pkcs11Kek, Versions};
use waxseal_testing::pkcs11::{Ground, KEY, Kind, TOKEN, alone};
use waxseal_testing::support::{a_dek, context};

use super::{builder, kek};
use KekErrorClass::{Denied, Invalid, Misconfigured, Unavailable};

fn refusal(kek: &Pkcs11Kek) -> (KekErrorClass, String) {
    let error = block_on(kek.read_key()).unwrap_err();
    println!("{error}");
    (error.class(), error.to_string())
}

#[test]
fn a_module_that_is_not_there_or_none_is_misconfigured() {
    alone(Kind::SoftHsm, |ground| {
        let at = |path: &str| Pkcs11Kek::builder(path, KEY).token(TOKEN).build().unwrap();
        for path in ["/no/such/module.so", "/etc/passwd", "/lib/x86_64-linux-gnu/libc.so.6"] {
            let (class, text) = refusal(&at(path));
            assert_eq!(class, Misconfigured);
            assert!(text.contains(path), "{text}");
        }
        block_on(kek(ground).read_key()).unwrap();
    });
}

#[test]
fn a_token_is_found_by_all_that_is_said_of_it() {
    alone(Kind::SoftHsm, |ground| {
        let (class, text) = refusal(&builder(ground).token("another").build().unwrap());
        assert!(
            class == Misconfigured && text.contains("another") && text.contains(TOKEN),
            "{text}"
        );
        let with = |serial: &str| builder(ground).serial(serial).build().unwrap();
        assert_eq!(refusal(&with("0000")).0, Misconfigured);
        assert_eq!(refusal(&builder(ground).slot_id(9).build().unwrap()).0, Misconfigured);
        assert_eq!(refusal(&builder(ground).model("none").build().unwrap()).0, Misconfigured);
        assert_eq!(refusal(&builder(ground).manufacturer("x").build().unwrap()).0, Misconfigured);
        block_on(builder(ground).manufacturer("SoftHSM project").build().unwrap().read_key())
            .unwrap();
    });
}

#[test]
fn several_tokens_with_one_label_are_an_error() {
    alone(Kind::SoftHsm, |ground| {
        ground.operate(&["init", TOKEN]);
        let (class, text) = refusal(&kek(ground));
        assert!(class == Misconfigured && text.contains("several tokens"), "{text}");
        let (_, serial) = text.split_once("such as \"").unwrap();
        let serial = serial.split('"').next().unwrap();
        let read = block_on(builder(ground).serial(serial).build().unwrap().read_key());
        assert!(!read.is_err_and(|error| error.to_string().contains("several tokens")));
    });
}

#[test]
fn several_keys_with_one_label_are_an_error_unless_one_is_named_or_they_are_versions() {
    alone(Kind::SoftHsm, |ground| {
        ground.key(KEY, "02", "eds");
        let (class, text) = refusal(&kek(ground));
        assert!(class == Misconfigured && text.contains("\"01\", \"02\""), "{text}");
        let named = builder(ground).id([1]).build().unwrap();
        assert_eq!(block_on(named.read_key()).unwrap().versions, ["01"]);
        let versions = builder(ground).versions(Versions::ById).build().unwrap();
        let info = block_on(versions.read_key()).unwrap();
        assert_eq!((info.current.as_str(), info.versions.len()), ("02", 2));
        assert_eq!(refusal(&builder(ground).id([3]).build().unwrap()).0, Denied);
        ground.key(KEY, "0002", "eds");
        let (class, text) = refusal(&versions);
        assert!(class == Misconfigured && text.contains("same CKA_ID"), "{text}");
    });
}

#[test]
fn a_key_that_was_made_without_a_pin_is_no_version_and_no_second_key() {
    alone(Kind::SoftHsm, |ground| {
        ground.operate(&["plant", KEY, "99"]);
        let versions = builder(ground).versions(Versions::ById).build().unwrap();
        assert_eq!(block_on(versions.read_key()).unwrap().versions, ["01"]);
        assert_eq!(block_on(kek(ground).read_key()).unwrap().versions, ["01"]);
    });
}

#[test]
fn what_is_no_aes_key_is_misconfigured_and_what_is_not_there_is_denied() {
    alone(Kind::SoftHsm, |ground| {
        ground.operate(&["data", "a document"]);
        let named = |label: &str| {
            let builder = Pkcs11Kek::builder(ground.module(), label).token(TOKEN);
            builder.pin_source(PinSource::File(ground.pin_file())).build().unwrap()
        };
        assert_eq!(refusal(&named("a document")).0, Misconfigured);
        assert_eq!(refusal(&named("nothing")).0, Denied);
    });
}

#[test]
fn a_key_that_can_be_taken_out_or_only_unwraps_degrades_the_health() {
    alone(Kind::SoftHsm, |ground| {
        for (label, flags, noted) in [
            ("extractable", "edsx", "CKA_EXTRACTABLE"),
            ("clear", "ed", "CKA_SENSITIVE"),
            ("reader", "ds", "CKA_ENCRYPT"),
        ] {
            ground.key(label, "01", flags);
            let builder = Pkcs11Kek::builder(ground.module(), label).token(TOKEN);
            let kek = builder.pin_source(PinSource::File(ground.pin_file())).build().unwrap();
            match block_on(kek.health()).unwrap() {
                Health::Degraded(why) => assert!(why.contains(noted), "{why}"),
                health => panic!("{label}: {health:?}"),
            }
        }
        assert_eq!(block_on(kek(ground).health()).unwrap(), Health::Ready);
    });
}

#[test]
fn a_key_that_only_wraps_needs_its_way_to_an_iv_said() {
    alone(Kind::SoftHsm, |ground| {
        ground.allow(KEY, "01", "e");
        let (alice, dek) = (context("alice"), a_dek());
        let error = block_on(kek(ground).wrap(&alice, &dek)).unwrap_err();
        assert!(
            error.class() == Misconfigured && error.to_string().contains("iv-source"),
            "{error}"
        );
        let writer = builder(ground).iv_source(IvSource::Caller).build().unwrap();
        let wrapped = block_on(writer.wrap(&alice, &dek)).unwrap();
        assert_eq!(block_on(writer.unwrap(&alice, &wrapped)).unwrap_err().class(), Denied);
        ground.allow(KEY, "01", "ed");
        assert_eq!(block_on(writer.unwrap(&alice, &wrapped)).unwrap().expose(), dek.expose());
    });
}

fn way(ground: &Ground, source: IvSource) -> Result<IvSource, String> {
    let kek = builder(ground).iv_source(source).build().unwrap();
    match block_on(kek.read_key()) {
        Ok(info) => Ok(info.iv_source.unwrap()),
        Err(error) => {
            println!("{source}: {error}");
            assert_eq!(error.class(), Misconfigured, "{error}");
            Err(error.to_string())
        }
    }
}

#[test]
fn only_the_way_that_a_token_has_is_accepted() {
    alone(Kind::Shim, |ground| {
        use IvSource::{Appended, Caller, Message, Token};
        for (lines, works) in [
            ("", Some(Caller)),
            ("iv token\n", Some(Token)),
            ("iv appended\n", Some(Appended)),
            ("iv replaced\n", Some(Token)),
        ] {
            ground.control(lines);
            for source in [Caller, Token, Appended, Message] {
                let found = way(ground, source);
                assert_eq!(found.is_ok(), Some(source) == works, "{lines:?} {source}: {found:?}");
            }
            let found = block_on(kek(ground).read_key()).unwrap().iv_source;
            assert_eq!(found, works, "{lines:?}");
        }
        ground.control("");
        assert!(way(ground, Token).unwrap_err().contains("IV of zeros"));
        ground.control("iv replaced\n");
        assert!(way(ground, Caller).unwrap_err().contains("replaced the caller's IV"));
        ground.control("aad ignored\n");
        assert!(way(ground, Caller).unwrap_err().contains("does not bind"));
        ground.control("iv ignored\n");
        assert!(way(ground, Caller).unwrap_err().contains("does not use the IV"));
        ground.control("iv repeated\n");
        assert!(way(ground, Token).unwrap_err().contains("one IV twice"));
    });
}

#[test]
fn kryoptic_refuses_no_iv_of_zeros_and_so_it_is_refused_here() {
    alone(Kind::Kryoptic, |ground| {
        assert!(way(ground, IvSource::Token).unwrap_err().contains("IV of zeros"));
        assert!(way(ground, IvSource::Appended).is_err());
        assert_eq!(way(ground, IvSource::Caller), Ok(IvSource::Caller));
        assert_eq!(way(ground, IvSource::Message), Ok(IvSource::Message));
        assert_eq!(block_on(kek(ground).read_key()).unwrap().iv_source, Some(IvSource::Caller));
    });
}

#[test]
fn a_token_that_changes_its_way_later_wraps_nothing() {
    alone(Kind::Shim, |ground| {
        let kek = kek(ground);
        let (alice, dek) = (context("alice"), a_dek());
        let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
        for lines in ["iv replaced\n", "iv appended\n", "iv token\n"] {
            ground.control(lines);
            let error = block_on(kek.wrap(&alice, &dek)).unwrap_err();
            assert_eq!(error.class(), Misconfigured, "{error}");
            assert_eq!(block_on(kek.unwrap(&alice, &wrapped)).unwrap().expose(), dek.expose());
        }
    });
}

fn flips(ground: &Ground) {
    let kek = kek(ground);
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
    let bytes = wrapped.wrapped();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let entry = WrappedDek::new(kek.id().clone(), flipped).unwrap();
        let error = block_on(kek.unwrap(&alice, &entry)).unwrap_err();
        assert!(matches!(error.class(), Invalid | Denied), "bit {bit}: {error}");
    }
    let error = block_on(kek.unwrap(&context("bob"), &wrapped)).unwrap_err();
    assert!(error.class() == Invalid && error.was_asked(), "{error}");
    assert_eq!(block_on(kek.unwrap(&alice, &wrapped)).unwrap().expose(), dek.expose());
    assert_eq!(kek.login().unwrap().logins, 1, "no session was given up for it");
}

#[test]
fn every_bit_of_a_wrapped_key_counts() {
    alone(Kind::SoftHsm, |ground| flips(ground));
}

#[test]
fn every_bit_of_a_wrapped_key_counts_in_kryoptic() {
    alone(Kind::Kryoptic, |ground| flips(ground));
}

#[test]
fn a_token_in_trouble_is_not_mistaken_for_a_damaged_entry_and_the_other_way_round() {
    alone(Kind::Shim, |ground| {
        let kek = kek(ground);
        let (alice, dek) = (context("alice"), a_dek());
        let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
        // SoftHSM answers both with CKR_GENERAL_ERROR.
        let error = block_on(kek.unwrap(&context("bob"), &wrapped)).unwrap_err();
        assert_eq!(error.class(), Invalid, "{error}");
        ground.control("C_Decrypt rv 0x5 x 0\n");
        let error = block_on(kek.unwrap(&alice, &wrapped)).unwrap_err();
        assert_eq!(error.class(), Unavailable, "{error}");
        ground.control("");
        block_on(kek.unwrap(&alice, &wrapped)).unwrap();
    });
}

#[test]
fn a_rewrap_is_two_calls_and_a_dek_of_the_token_is_random() {
    alone(Kind::Shim, |ground| {
        let kek = kek(ground);
        let alice = context("alice");
        let (dek, wrapped) = block_on(kek.generate(&alice)).unwrap();
        assert_eq!(ground.called("C_GenerateRandom"), 1);
        let before = kek.statistics();
        let rewrapped = block_on(kek.rewrap(&alice, &wrapped)).unwrap();
        let after = kek.statistics();
        assert_eq!((after.wraps - before.wraps, after.unwraps - before.unwraps), (1, 1));
        assert!(!kek.rewraps_in_service());
        assert_eq!(block_on(kek.unwrap(&alice, &rewrapped)).unwrap().expose(), dek.expose());
    });
}
