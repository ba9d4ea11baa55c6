//! The conformance suite.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pollster::block_on;
use waxseal::kek::conformance::{self, Step, Subject};
use waxseal::kek::{BoxFuture, KekErrorClass, KekProvider};
use waxseal_pkcs11::{IvSource, Pkcs11Kek, Versions};
use waxseal_testing::pkcs11::{Ground, KEY, Kind, alone};

use super::builder;

struct Token<'a> {
    ground: &'a Ground,
    kek: Pkcs11Kek,
    other: Pkcs11Kek,
    versions: AtomicU32,
}

impl<'a> Token<'a> {
    fn new(ground: &'a Ground, iv_source: Option<IvSource>, sessions: u32) -> Self {
        Self::built(ground, iv_source, sessions, false)
    }

    fn built(
        ground: &'a Ground,
        iv_source: Option<IvSource>,
        sessions: u32,
        is_isolated: bool,
    ) -> Self {
        ground.key("invoices", "01", "eds");
        let with = |key: &str| {
            let builder = Pkcs11Kek::builder(ground.module(), key)
                .token(waxseal_testing::pkcs11::TOKEN)
                .pin_source(waxseal_pkcs11::PinSource::File(ground.pin_file()))
                .key_max_age(std::time::Duration::from_millis(100))
                .versions(Versions::ById)
                .sessions(sessions);
            let builder = match is_isolated {
                true => builder.helper(super::isolation::HELPER),
                false => builder,
            };
            match iv_source {
                Some(source) => builder.iv_source(source).build().unwrap(),
                None => builder.build().unwrap(),
            }
        };
        Self { ground, kek: with(KEY), other: with("invoices"), versions: AtomicU32::new(1) }
    }
}

impl Subject for Token<'_> {
    fn provider(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.kek.clone())
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.other.clone())
    }

    fn rotate(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            let version = self.versions.fetch_add(1, Ordering::SeqCst) + 1;
            self.ground.key(KEY, &format!("{version:02x}"), "eds");
            self.kek.read_key().await.unwrap();
            Step::Done
        })
    }

    fn fail_with(&self, class: KekErrorClass) -> BoxFuture<'_, Step> {
        Box::pin(async move {
            let lines = match (self.ground.kind, class) {
                (Kind::Shim, KekErrorClass::Unavailable) => {
                    "C_EncryptInit rv 0x30 x 0\nC_DecryptInit rv 0x30 x 0\n"
                }
                (Kind::Shim, KekErrorClass::Throttled) => {
                    "C_EncryptInit rv 0x31 x 0\nC_DecryptInit rv 0x31 x 0\n"
                }
                (Kind::Shim, KekErrorClass::Denied) => {
                    "C_EncryptInit rv 0x68 x 0\nC_DecryptInit rv 0x68 x 0\n"
                }
                (Kind::Shim, KekErrorClass::Misconfigured) => {
                    "C_EncryptInit rv 0x70 x 0\nC_DecryptInit rv 0x70 x 0\n"
                }
                (Kind::Shim, KekErrorClass::Invalid) => "C_Decrypt rv 0x40 x 0\n",
                _ => return Step::NotApplicable,
            };
            self.ground.control(lines);
            Step::Done
        })
    }

    fn fail_credentials(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            // Without sessions there is no login, and the file is needed again.
            self.kek.close().await;
            self.other.close().await;
            std::fs::rename(self.ground.pin_file(), self.ground.directory.join("no pin")).unwrap();
            Step::Done
        })
    }

    fn forbid_unwrapping(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            let version = self.versions.load(Ordering::SeqCst);
            self.ground.allow(KEY, &format!("{version:02x}"), "e");
            Step::Done
        })
    }

    fn restore(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            if self.ground.kind == Kind::Shim {
                self.ground.control("");
            }
            let hidden = self.ground.directory.join("no pin");
            if hidden.exists() {
                std::fs::rename(hidden, self.ground.pin_file()).unwrap();
            }
            let version = self.versions.load(Ordering::SeqCst);
            self.ground.allow(KEY, &format!("{version:02x}"), "ed");
            Step::Done
        })
    }
}

fn conforms(ground: &Ground, iv_source: Option<IvSource>, sessions: u32) {
    let report = block_on(conformance::run(&Token::new(ground, iv_source, sessions)));
    println!("{:?}, {iv_source:?}, {sessions} sessions\n{report}", ground.kind);
    assert!(report.is_conformant(), "{report}");
}

/// Where the module in front treats IVs in its own way, the suite cannot have it fail as well.
fn conforms_but_for_failures(ground: &Ground, iv_source: IvSource) {
    let quiet = Ground { kind: Kind::SoftHsm, directory: ground.directory.clone() };
    let token = Token { ground: &quiet, ..Token::new(ground, None, 4) };
    let report = block_on(conformance::run(&token));
    println!("{iv_source:?}\n{report}");
    assert!(report.is_conformant(), "{report}");
    assert_eq!(block_on(token.kek.read_key()).unwrap().iv_source, Some(iv_source));
}

fn conforms_in_a_helper(ground: &Ground, iv_source: Option<IvSource>, sessions: u32) {
    let report = block_on(conformance::run(&Token::built(ground, iv_source, sessions, true)));
    println!("{:?}, {iv_source:?}, {sessions} sessions, in helpers\n{report}", ground.kind);
    assert!(report.is_conformant(), "{report}");
}

/// With one session: SoftHSM2 writes its token's file at each login, and not in one step. A process
/// that looks just then finds no token. docs/pkcs11.md describes it.
#[test]
fn softhsm_conforms_in_a_helper() {
    alone(Kind::SoftHsm, |ground| conforms_in_a_helper(ground, None, 1));
}

#[test]
fn kryoptic_conforms_in_a_helper() {
    alone(Kind::Kryoptic, |ground| conforms_in_a_helper(ground, Some(IvSource::Message), 2));
}

#[test]
fn a_module_that_fails_conforms_in_a_helper() {
    alone(Kind::Shim, |ground| conforms_in_a_helper(ground, None, 1));
}

#[test]
fn softhsm_conforms() {
    alone(Kind::SoftHsm, |ground| conforms(ground, None, 4));
}

#[test]
fn softhsm_conforms_with_one_session() {
    alone(Kind::SoftHsm, |ground| conforms(ground, Some(IvSource::Caller), 1));
}

#[test]
fn kryoptic_conforms() {
    alone(Kind::Kryoptic, |ground| conforms(ground, None, 4));
}

#[test]
fn kryoptic_conforms_by_the_message_api() {
    alone(Kind::Kryoptic, |ground| conforms(ground, Some(IvSource::Message), 2));
}

#[test]
fn a_token_that_writes_the_iv_into_the_buffer_conforms() {
    alone(Kind::Shim, |ground| {
        ground.control("iv token\n");
        conforms_but_for_failures(ground, IvSource::Token);
    });
}

#[test]
fn a_token_that_appends_the_iv_conforms() {
    alone(Kind::Shim, |ground| {
        ground.control("iv appended\n");
        conforms_but_for_failures(ground, IvSource::Appended);
    });
}

#[test]
fn a_module_that_fails_conforms() {
    alone(Kind::Shim, |ground| conforms(ground, None, 4));
}

#[test]
fn the_pin_is_shown_nowhere() {
    alone(Kind::SoftHsm, |ground| {
        let text = format!("{:?}", builder(ground).pin(waxseal_testing::pkcs11::PIN));
        let kek = builder(ground).pin(waxseal_testing::pkcs11::PIN).build().unwrap();
        block_on(kek.read_key()).unwrap();
        let text = format!("{text} {kek:?} {:?}", kek.login());
        assert!(!text.contains(waxseal_testing::pkcs11::PIN), "{text}");
    });
}
