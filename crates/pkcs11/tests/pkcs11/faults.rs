//! Each fault under an envelope: its class, its tries, what is served meanwhile, and that it
//! passes. The page for operators shows the same table.

use std::fs;
use std::sync::Arc;

use waxseal::ErrorKind;
use waxseal::kek::KekProvider;
use waxseal_pkcs11::Pkcs11Kek;
use waxseal_testing::faults::{Fault, Stage, assert_shown, met};
use waxseal_testing::pkcs11::{Ground, KEY, Kind, PIN, alone};

use super::builder;
use ErrorKind::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

/// A token, and the one provider of this process for it: the login belongs to the process.
struct Token {
    ground: Ground,
    kek: Pkcs11Kek,
}

impl Token {
    fn new(ground: &Ground, is_isolated: bool) -> Self {
        let builder = match is_isolated {
            true => builder(ground).helper(super::isolation::HELPER),
            false => builder(ground),
        };
        // Each helper finds out separately what is to blame, so only one has to have what it needs.
        let kek = builder.sessions(if is_isolated { 1 } else { 2 }).build().unwrap();
        Self { ground: Ground { kind: ground.kind, directory: ground.directory.clone() }, kek }
    }

    fn pin(&self, pin: &str) {
        fs::write(self.ground.pin_file(), pin).unwrap();
    }
}

impl Stage for Token {
    async fn kek(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.kek.clone())
    }

    fn recovers_at_once(&self) -> bool {
        false
    }
}

/// These lines for the module in front.
macro_rules! lines {
    ($name:literal, $kind:ident, $lines:expr) => {
        Fault::new(
            $name,
            $kind,
            |token: &Token| token.ground.control($lines),
            |token: &Token| token.ground.control(""),
        )
    };
}

/// A code instead of each encryption and decryption.
macro_rules! code {
    ($name:literal, $kind:ident, $code:literal) => {
        lines!(
            $name,
            $kind,
            concat!("C_DecryptInit rv ", $code, " x 0\nC_EncryptInit rv ", $code, " x 0\n")
        )
    };
}

fn faults() -> Vec<Fault<Token>> {
    vec![
        lines!("token: in no slot", Unavailable, "C_GetSlotList rv 0xe0 x 0\n").fresh(),
        lines!("token: its slot does not answer", Unavailable, "C_GetTokenInfo rv 0x30 x 0\n")
            .fresh(),
        lines!("token: no session left", Throttled, "sessions 0\n").fresh(),
        code!("token: removed", Unavailable, "0x32"),
        code!("token: device error", Unavailable, "0x30"),
        code!("token: general error", Unavailable, "0x5"),
        code!("token: full", Throttled, "0x31"),
        code!("token: a code of its vendor", Unavailable, "0x80000001"),
        code!("session: lost each time", Unavailable, "0xb3"),
        code!("session: the login lost each time", Unavailable, "0x101"),
        Fault::new(
            "login: wrong PIN",
            Misconfigured,
            |t: &Token| t.pin("wrong-pin"),
            |t| t.pin(PIN),
        )
        .fresh()
        .leaves_breaker_closed()
        .recovers("another PIN in the file"),
        Fault::new(
            "login: no PIN file",
            Unavailable,
            |t: &Token| fs::remove_file(t.ground.pin_file()).unwrap(),
            |t| t.pin(PIN),
        )
        .fresh()
        .tried_once()
        .leaves_breaker_closed(),
        by_operator(lines!("login: PIN locked", Misconfigured, "C_Login rv 0xa4 x 0\n")),
        by_operator(lines!("login: PIN expired", Misconfigured, "C_Login rv 0xa3 x 0\n")),
        Fault::new(
            "key: CKA_DECRYPT and CKA_ENCRYPT taken away",
            Denied,
            |t: &Token| t.ground.allow(KEY, "01", ""),
            |t| t.ground.allow(KEY, "01", "ed"),
        ),
        code!("key: prohibited by the token's policy", Denied, "0x1b"),
        code!("key: used up", Denied, "0x203"),
        code!("mechanism: not there", Misconfigured, "0x70"),
        code!("mechanism: parameters refused", Misconfigured, "0x71"),
        lines!("wrapped key: damaged", Invalid, "C_Decrypt rv 0x40 x 0\n"),
    ]
}

/// An operator makes the PIN right in the token.
fn by_operator(fault: Fault<Token>) -> Fault<Token> {
    let fault = fault.fresh().recovers("`forget_refused_pins`, or another PIN");
    // The token is asked once, and then nobody asks it again.
    let fault = fault.leaves_breaker_closed();
    fault.and_then(|t| t.kek.forget_refused_pins().unwrap())
}

fn each(ground: &Ground, is_isolated: bool) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for fault in faults() {
        let token = Token::new(ground, is_isolated);
        runtime.block_on(met(&token, fault));
        runtime.block_on(token.kek.close());
    }
}

#[test]
fn each_fault_has_its_class_its_tries_its_grace_and_its_recovery() {
    alone(Kind::Shim, |ground| each(ground, false));
}

#[test]
fn each_fault_is_the_same_in_a_helper() {
    alone(Kind::Shim, |ground| each(ground, true));
}

#[test]
fn the_page_shows_these_faults() {
    assert_shown(include_str!("../../docs/pkcs11.md"), "## What a fault looks like", &faults());
}
