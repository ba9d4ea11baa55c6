//! Each fault under an envelope: its class, what is served meanwhile, and that it passes. The page for
//! operators shows the same table.

use std::fs;
use std::time::{Duration, Instant};

use waxseal::{Aad, CallPolicy, Envelope, ErrorKind, Limits, ManualClock};
use waxseal_pkcs11::Pkcs11Kek;
use waxseal_testing::pkcs11::{Ground, KEY, Kind, PIN, alone};
use waxseal_testing::support::context;

use super::builder;
use ErrorKind::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

const MAX_AGE: Duration = Duration::from_secs(60);

struct Case {
    /// As in the table of docs/pkcs11.md.
    name: &'static str,
    kind: ErrorKind,
    /// Sessions are closed before, so that a login is needed.
    is_fresh: bool,
    begin: fn(&Ground),
    end: fn(&Ground),
}

/// A code instead of each encryption and decryption.
macro_rules! code {
    ($name:literal, $kind:ident, $code:literal) => {
        Case {
            name: $name,
            kind: $kind,
            is_fresh: false,
            begin: |ground| {
                ground.control(concat!(
                    "C_DecryptInit rv ",
                    $code,
                    " x 0\nC_EncryptInit rv ",
                    $code,
                    " x 0\n"
                ));
            },
            end: |ground| ground.control(""),
        }
    };
}

/// These lines for the module in front, for new sessions.
macro_rules! fresh {
    ($name:literal, $kind:ident, $lines:literal) => {
        Case {
            name: $name,
            kind: $kind,
            is_fresh: true,
            begin: |ground| ground.control($lines),
            end: |ground| ground.control(""),
        }
    };
}

fn cases() -> Vec<Case> {
    vec![
        fresh!("token: in no slot", Unavailable, "C_GetSlotList rv 0xe0 x 0\n"),
        fresh!("token: its slot does not answer", Unavailable, "C_GetTokenInfo rv 0x30 x 0\n"),
        fresh!("token: no session left", Throttled, "sessions 0\n"),
        code!("token: removed", Unavailable, "0x32"),
        code!("token: device error", Unavailable, "0x30"),
        code!("token: general error", Unavailable, "0x5"),
        code!("token: full", Throttled, "0x31"),
        code!("token: a code of its vendor", Unavailable, "0x80000001"),
        code!("session: lost each time", Unavailable, "0xb3"),
        code!("session: the login lost each time", Unavailable, "0x101"),
        Case {
            name: "login: wrong PIN",
            kind: Misconfigured,
            is_fresh: true,
            begin: |ground| fs::write(ground.pin_file(), "wrong-pin").unwrap(),
            end: |ground| fs::write(ground.pin_file(), PIN).unwrap(),
        },
        Case {
            name: "login: no PIN file",
            kind: Unavailable,
            is_fresh: true,
            begin: |ground| fs::remove_file(ground.pin_file()).unwrap(),
            end: |ground| fs::write(ground.pin_file(), PIN).unwrap(),
        },
        fresh!("login: PIN locked", Misconfigured, "C_Login rv 0xa4 x 0\n"),
        fresh!("login: PIN expired", Misconfigured, "C_Login rv 0xa3 x 0\n"),
        Case {
            name: "key: CKA_DECRYPT and CKA_ENCRYPT taken away",
            kind: Denied,
            is_fresh: false,
            begin: |ground| ground.allow(KEY, "01", ""),
            end: |ground| ground.allow(KEY, "01", "ed"),
        },
        code!("key: prohibited by the token's policy", Denied, "0x1b"),
        code!("key: used up", Denied, "0x203"),
        code!("mechanism: not there", Misconfigured, "0x70"),
        code!("mechanism: parameters refused", Misconfigured, "0x71"),
        Case {
            name: "wrapped key: damaged",
            kind: Invalid,
            is_fresh: false,
            begin: |ground| ground.control("C_Decrypt rv 0x40 x 0\n"),
            end: |ground| ground.control(""),
        },
    ]
}

fn envelope(kek: &Pkcs11Kek, clock: &ManualClock) -> Envelope {
    let limits = Limits::default()
        .max_age(MAX_AGE)
        .refresh_after(MAX_AGE - Duration::from_secs(1))
        .stale_if_error_reading(Duration::from_secs(3600))
        .denial_ttl(Duration::ZERO);
    let policy = CallPolicy::default()
        .timeout(Duration::from_secs(20))
        .deadline(Duration::from_secs(60))
        .tries(2)
        .backoff(Duration::from_millis(1))
        .breaker_failures(1000);
    let builder = Envelope::builder().wrap_with(kek.clone()).limits(limits);
    builder.call_policy(policy).clock(clock.clone()).build().unwrap()
}

#[test]
fn each_fault_has_its_class_its_grace_and_its_recovery() {
    alone(Kind::Shim, |ground| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        for case in cases() {
            runtime.block_on(met(ground, case));
        }
    });
}

async fn met(ground: &Ground, Case { name, kind, is_fresh, begin, end }: Case) {
    let clock = ManualClock::new();
    let kek = builder(ground).sessions(2).build().unwrap();
    let (alice, bob) = (context("alice"), context("bob"));
    let writer = envelope(&kek, &clock);
    let cold = writer.encrypt(&alice, Aad::empty(), b"cold").await.unwrap();
    let warm = writer.encrypt(&bob, Aad::empty(), b"warm").await.unwrap();
    let reader = envelope(&kek, &clock);
    reader.decrypt(&bob, Aad::empty(), &warm).await.unwrap();
    if is_fresh {
        waxseal::kek::KekProvider::close(&kek).await;
    }
    begin(ground);
    let result = reader.decrypt(&alice, Aad::empty(), &cold).await;
    let error = result.err().unwrap_or_else(|| panic!("{name}: no error"));
    println!("{name}: {error}");
    assert_eq!(error.kind(), kind, "{name}: {error}");
    if kind != Invalid {
        let error = reader.encrypt(&context("carol"), Aad::empty(), b"x").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}, writing: {error}");
    }
    let cached = reader.decrypt(&bob, Aad::empty(), &warm).await;
    assert_eq!(&*cached.unwrap(), b"warm", "{name}: what is cached");
    clock.advance(2 * MAX_AGE);
    let late = reader.decrypt(&bob, Aad::empty(), &warm).await;
    match kind {
        Unavailable | Throttled => assert_eq!(&*late.unwrap(), b"warm", "{name}: within the grace"),
        _ => assert_eq!(late.unwrap_err().kind(), kind, "{name}: no grace"),
    }
    end(ground);
    if name.starts_with("login: PIN") {
        // An operator made the PIN right in the token.
        kek.forget_refused_pins().unwrap();
    }
    let start = Instant::now();
    loop {
        match reader.decrypt(&alice, Aad::empty(), &cold).await {
            Ok(plaintext) => break assert_eq!(&*plaintext, b"cold"),
            Err(error) => assert!(start.elapsed() < Duration::from_secs(30), "{name}: {error}"),
        }
        clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    reader.decrypt(&bob, Aad::empty(), &warm).await.unwrap();
    reader.encrypt(&context("carol"), Aad::empty(), b"x").await.unwrap();
    reader.close().await;
}

#[test]
fn the_page_shows_these_faults() {
    let page = include_str!("../../docs/pkcs11.md");
    let section = page.split("## What a fault looks like").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let shown: Vec<_> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| line.split(" | ").map(str::to_owned).collect::<Vec<_>>())
        .skip(1)
        .collect();
    let in_force: Vec<_> = cases()
        .iter()
        .map(|case| {
            let (tries, stale) = match case.kind {
                // The token is not asked.
                Unavailable if case.name == "login: no PIN file" => ("1", "served"),
                Unavailable | Throttled => ("as many as allowed", "served"),
                _ => ("1", "refused"),
            };
            let recovery = match case.name {
                "login: wrong PIN" => "another PIN in the file",
                name if name.starts_with("login: PIN") => "`forget_refused_pins`, or another PIN",
                _ => "by itself",
            };
            let kind = format!("{:?}", case.kind).to_lowercase();
            [case.name, &kind, tries, "served", stale, recovery].map(str::to_owned).to_vec()
        })
        .collect();
    assert_eq!(shown, in_force);
}
