//! The program that is named as a helper: what it may be, and what it is given.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pollster::block_on;
use waxseal::kek::KekErrorClass::{Misconfigured, Unavailable};
use waxseal_pkcs11::{PinSource, Pkcs11KekBuilder};
use waxseal_testing::pkcs11::{Kind, alone};

use super::isolation::{HELPER, helpers, isolated};

#[test]
fn a_program_that_is_no_helper_is_an_error_and_no_panic() {
    alone(Kind::SoftHsm, |ground| {
        let script = |name: &str, text: &str| -> PathBuf {
            let path = ground.directory.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let with = |program: &Path| {
            let deadline = Duration::from_millis(700);
            super::builder(ground).helper(program).helper_deadline(deadline).build().unwrap()
        };
        let refusal = |program: &Path| {
            let error = block_on(with(program).read_key()).unwrap_err();
            println!("{error}");
            (error.class(), error.to_string())
        };
        assert_eq!(refusal(Path::new("/no/such/helper")).0, Misconfigured);
        assert_eq!(refusal(Path::new("/etc/passwd")).0, Misconfigured);
        assert_eq!(refusal(&script("no program", "no program")).0, Misconfigured);
        let greeting = |rest: &str| {
            let version = env!("CARGO_PKG_VERSION");
            format!("printf 'waxseal-pkcs11-helper {version}\\n{rest}' >&0")
        };
        let wants_a_pin = r"\011\000\000\000\000\000\000\003\000\000\000abc\000";
        for (name, text, said) in [
            ("leaves", "exit 3".to_owned(), "exit status: 3"),
            ("waits", "exec sleep 60".to_owned(), "did not answer"),
            ("floods", "exec cat /dev/zero >&0".to_owned(), "garbage"),
            ("noise", "head -c 4000 /dev/urandom >&0; exec sleep 60".to_owned(), ""),
            ("slow", "for n in 1 2 3 4 5 6; do printf w >&0; sleep 0.3; done".to_owned(), ""),
            // It introduces itself, and then sends lengths above all bounds, or an invalid message.
            ("long", greeting(r"\377\377\377\377\377\377") + "; exec sleep 60", "garbage"),
            ("odd", greeting(r"\001\000\000\000\000\000\007") + "; exec sleep 60", "garbage"),
            // Half an answer, and an end or none.
            ("half", greeting(r"\100\000\000\000\000\000\001"), "ended"),
            ("stuck", greeting(r"\100\000\000\000\000\000\001") + "; exec sleep 60", "not answer"),
            // An outcome without a login, and a PIN that is wanted twice at once.
            ("early", greeting(r"\002\000\000\000\000\000\001\000") + "; exec sleep 60", "garbage"),
            ("greedy", greeting(&wants_a_pin.repeat(2)) + "; exec sleep 60", "garbage"),
        ] {
            let (class, text) = refusal(&script(name, &format!("#!/bin/sh\n{text}\n")));
            assert!(class == Unavailable && text.contains(said), "{name}: {text}");
        }
        let other = "printf 'waxseal-pkcs11-helper 9.9.9\\n' >&0; exec sleep 60";
        let (class, text) = refusal(&script("another", &format!("#!/bin/sh\n{other}\n")));
        assert!(class == Misconfigured && text.contains("version 9.9.9"), "{text}");
        assert!(helpers().is_empty());
        // And with the right program all is well.
        block_on(isolated(ground).build().unwrap().read_key()).unwrap();
    });
}

#[test]
fn a_helper_gets_the_variables_that_are_named_and_never_the_pin() {
    alone(Kind::SoftHsm, |ground| {
        // A helper that writes down what it got. The shell adds some of its own.
        let (script, told) = (ground.directory.join("tells"), ground.directory.join("told"));
        fs::write(&script, format!("#!/bin/sh\nenv > '{}'\n", told.display())).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let of = |builder: Pkcs11KekBuilder| {
            let pin = PinSource::Environment("WAXSEAL_TEST_PIN".to_owned());
            let kek = builder.helper(&script).pin_source(pin).build().unwrap();
            block_on(kek.read_key()).unwrap_err();
            let told = fs::read_to_string(&told).unwrap();
            let names = told.lines().filter_map(|line| Some(line.split_once('=')?.0.to_owned()));
            let own = ["PWD", "OLDPWD", "SHLVL", "_"];
            let mut names: Vec<_> = names.filter(|name| !own.contains(&name.as_str())).collect();
            names.sort();
            names
        };
        let all = of(super::builder(ground));
        assert!(all.contains(&"PATH".to_owned()) && all.contains(&"SOFTHSM2_CONF".to_owned()));
        assert!(!all.contains(&"WAXSEAL_TEST_PIN".to_owned()), "{all:?}");
        let names = ["SOFTHSM2_CONF", "WAXSEAL_TEST_PIN", "WAXSEAL_NO_SUCH_VARIABLE"];
        assert_eq!(of(super::builder(ground).helper_variables(names)), ["SOFTHSM2_CONF"]);
        // Which is enough for the real one.
        let kek = isolated(ground).helper_variables(["SOFTHSM2_CONF"]).build().unwrap();
        block_on(kek.read_key()).unwrap();
    });
}

#[test]
fn a_helper_by_hand_says_what_it_is_for() {
    alone(Kind::SoftHsm, |_| {
        let output = std::process::Command::new(HELPER).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("does nothing by itself"));
    });
}
