//! Duties apart: one key in two tokens, of which one only wraps and the other only unwraps.

use pollster::block_on;
use waxseal::domain::DomainConfig;
use waxseal::domain::duties::{Duties, Holders};
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_pkcs11::duties::TokenPlan;
use waxseal_pkcs11::{IvSource, PinSource, Pkcs11Kek};
use waxseal_testing::pkcs11::{Ground, Kind, TOKEN, alone};
use waxseal_testing::support::{a_dek, context};

use KekErrorClass::{Denied, Misconfigured};

const READERS: &str = "readers";
const LABEL: &str = "cards";

/// The same KEK id, whichever token has the key.
fn at(ground: &Ground, token: &str, iv_source: Option<IvSource>) -> Pkcs11Kek {
    let builder = Pkcs11Kek::builder(ground.module(), LABEL)
        .token(token)
        .name("prod")
        .pin_source(PinSource::File(ground.pin_file()));
    match iv_source {
        Some(source) => builder.iv_source(source).build().unwrap(),
        None => builder.build().unwrap(),
    }
}

fn apart(ground: &Ground) {
    let mut value = [0; 32];
    getrandom::fill(&mut value).unwrap();
    ground.operate(&["init", READERS]);
    ground.give_out(TOKEN, LABEL, "e", &value);
    ground.give_out(READERS, LABEL, "d", &value);
    let (alice, dek) = (context("alice"), a_dek());
    let writer = at(ground, TOKEN, Some(IvSource::Caller));
    let reader = at(ground, READERS, None);
    assert_eq!(writer.id(), reader.id());
    let wrapped = block_on(writer.wrap(&alice, &dek)).unwrap();
    assert_eq!(block_on(reader.unwrap(&alice, &wrapped)).unwrap().expose(), dek.expose());
    // The token enforces it, and the context.
    let class = |result: Result<(), waxseal::kek::KekError>| result.unwrap_err().class();
    assert_eq!(class(block_on(writer.unwrap(&alice, &wrapped)).map(|_| ())), Denied);
    assert_eq!(class(block_on(reader.wrap(&alice, &dek)).map(|_| ())), Denied);
    assert_eq!(class(block_on(reader.rewrap(&alice, &wrapped)).map(|_| ())), Denied);
    assert_eq!(class(block_on(writer.rewrap(&alice, &wrapped)).map(|_| ())), Denied);
    let wrong = block_on(reader.unwrap(&context("bob"), &wrapped)).unwrap_err();
    assert_eq!(wrong.class(), KekErrorClass::Invalid, "{wrong}");
    block_on(writer.close());
    block_on(reader.close());
    // Nor can a holder of one token's PIN make its key do the other duty.
    ground.tamper(TOKEN, LABEL);
    ground.tamper(READERS, LABEL);
}

#[test]
fn a_writer_and_a_reader_with_a_token_each_cannot_do_the_other_s_duty_at_softhsm() {
    alone(Kind::SoftHsm, |ground| apart(ground));
}

#[test]
fn a_writer_and_a_reader_with_a_token_each_cannot_do_the_other_s_duty_at_kryoptic() {
    alone(Kind::Kryoptic, |ground| apart(ground));
}

/// The plan of a domain, carried out by an officer, and the KEKs by its URIs.
fn planned(ground: &Ground) {
    let config = DomainConfig::default().wrap_with(format!(
        "pkcs11:token=prod;object={LABEL};id=%01?module-path={}&pin-source=file:{}&iv-source=caller",
        ground.module().display(),
        ground.pin_file().display(),
    ));
    let holders = Holders::default()
        .key_owners(["ada"])
        .key_administrators(["bea"])
        .writers(["shop"])
        .readers(["billing"]);
    let duties = Duties::new("cards", &config, &holders).unwrap();
    let plan = TokenPlan::builder(&duties).build().unwrap();
    println!("{}", plan.document());
    let mut value = [0; 32];
    getrandom::fill(&mut value).unwrap();
    for token in plan.tokens() {
        ground.operate(&["init", token.label()]);
        ground.give_out_as(token.label(), token.key_label(), &token.attributes(), &value);
    }
    let kek = |holder: &str| {
        let mut tokens = plan.tokens().iter();
        let token = tokens.find(|token| token.holders() == [holder.to_owned()]).unwrap();
        block_on(Pkcs11Kek::from_uri(token.uri().to_owned())).unwrap()
    };
    let (shop, billing) = (kek("shop"), kek("billing"));
    assert_eq!(shop.id(), billing.id());
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = block_on(shop.wrap(&alice, &dek)).unwrap();
    assert_eq!(block_on(billing.unwrap(&alice, &wrapped)).unwrap().expose(), dek.expose());
    assert_eq!(block_on(shop.unwrap(&alice, &wrapped)).unwrap_err().class(), Denied);
    assert_eq!(block_on(billing.wrap(&alice, &dek)).unwrap_err().class(), Denied);
    block_on(shop.close());
    block_on(billing.close());
    for token in plan.tokens() {
        ground.tamper(token.label(), token.key_label());
    }
}

#[test]
fn a_plan_that_is_carried_out_at_softhsm_keeps_writers_and_readers_apart() {
    alone(Kind::SoftHsm, |ground| planned(ground));
}

#[test]
fn the_officer_s_pin_uses_no_key() {
    alone(Kind::SoftHsm, |ground| {
        std::fs::write(ground.pin_file(), waxseal_testing::pkcs11::SO_PIN).unwrap();
        let error = block_on(super::kek(ground).read_key()).unwrap_err();
        assert_eq!(error.class(), Misconfigured, "{error}");
    });
}
