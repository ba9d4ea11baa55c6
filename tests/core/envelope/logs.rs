//! What others write into errors is fit for a log.

use super::*;

const UNFIT_FOR_A_LOG: &str = "x\n2026-11-25T00:00:00Z  INFO auth: user admin logged \
    in\r\u{1b}[2J\u{9b}H\u{7}\u{202e}txt\u{2066}\u{2028}\u{2029}\u{85}\u{200b}\u{feff}\0";

/// An error whose Debug is as careless as its Display.
struct RawInDebug;

impl std::fmt::Debug for RawInDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(UNFIT_FOR_A_LOG)
    }
}

impl std::fmt::Display for RawInDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(UNFIT_FOR_A_LOG)
    }
}

impl std::error::Error for RawInDebug {}

/// Everything that code could print of the error, including its causes.
fn every_text(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut texts = vec![format!("{error}"), format!("{error:?}")];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.extend([format!("{error}"), format!("{error:?}")]);
        cause = error.source();
    }
    texts
}

fn assert_is_fit_for_a_log(text: &str) {
    let unfit =
        |c: char| c.is_control() || "\u{202e}\u{2066}\u{2028}\u{2029}\u{200b}\u{feff}".contains(c);
    assert!(!text.contains(unfit), "{text:?}");
    assert!(text.contains("admin logged in"), "what it was about is still shown: {text}");
}

#[test]
fn a_kek_id_of_a_forged_message_can_write_into_no_log() {
    let kek = local("kek");
    let alice = context("alice");
    let compact = block_on(envelope(&kek).encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let forged_id = waxseal::KekId::new(UNFIT_FOR_A_LOG).unwrap();
    let wrapped = compact.wrapped_keys().entries()[0].wrapped();
    let forged = WrappedDek::new(forged_id.clone(), wrapped).unwrap();
    let keys = WrappedKeys::new([forged.clone()]).unwrap();
    let read = |envelope: &Envelope| {
        block_on(envelope.decrypt(&alice, Aad::empty(), Sealed::compact(compact.as_bytes(), &keys)))
    };

    for text in [
        format!("{forged_id}"),
        format!("{forged_id:?}"),
        format!("{forged:?}"),
        format!("{keys:?}"),
    ] {
        assert_is_fit_for_a_log(&text);
    }
    assert_eq!(forged_id.as_str(), UNFIT_FOR_A_LOG, "the id itself is what it is");
    let twice = WrappedKeys::new([forged.clone(), forged.clone()]).unwrap_err();
    every_text(&twice).iter().for_each(|text| assert_is_fit_for_a_log(text));

    let unknown = read(&envelope(&kek)).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::UnknownKek);
    every_text(&unknown).iter().for_each(|text| assert_is_fit_for_a_log(text));

    for class in [KekErrorClass::Unavailable, KekErrorClass::Denied, KekErrorClass::Misconfigured] {
        let fails = Some((class, "not today, admin logged in"));
        let provider = TakesAny { kek: kek.clone(), fails };
        let service = Envelope::builder().unwrap_with(provider).build().unwrap();
        every_text(&read(&service).unwrap_err())
            .iter()
            .for_each(|text| assert_is_fit_for_a_log(text));
    }

    let mut message = compact.as_bytes().to_vec();
    message[6..8].copy_from_slice(&u16::try_from(keys.as_bytes().len()).unwrap().to_le_bytes());
    message.splice(52..52, keys.as_bytes().iter().copied());
    assert_is_fit_for_a_log(&format!("{:?}", inspect(&message).unwrap()));
}

#[test]
fn what_a_server_answers_can_write_into_no_log() {
    let kek = local("kek");
    let alice = context("alice");
    let sealed = block_on(envelope(&kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    for class in [
        KekErrorClass::Unavailable,
        KekErrorClass::Denied,
        KekErrorClass::Misconfigured,
        KekErrorClass::Invalid,
    ] {
        let provider = TakesAny { kek: kek.clone(), fails: Some((class, UNFIT_FOR_A_LOG)) };
        let error = KekError::new(class, UNFIT_FOR_A_LOG).with_source(RawInDebug);
        every_text(&error).iter().for_each(|text| assert_is_fit_for_a_log(text));
        assert!(
            error.cause().unwrap().is::<RawInDebug>(),
            "whoever knows its type gets it as it is"
        );
        if class != KekErrorClass::Invalid {
            every_text(&Error::from(error)).iter().for_each(|text| assert_is_fit_for_a_log(text));
        }
        let service = Envelope::builder().unwrap_with(provider).build().unwrap();
        let failed = block_on(service.decrypt(&alice, Aad::empty(), &sealed)).unwrap_err();
        if class != KekErrorClass::Invalid {
            every_text(&failed).iter().for_each(|text| assert_is_fit_for_a_log(text));
        }
        match block_on(service.health()).remove(0).1 {
            Ok(Health::Degraded(why)) => assert_is_fit_for_a_log(&why),
            Ok(health) => panic!("{health:?}"),
            Err(error) => every_text(&error).iter().for_each(|text| assert_is_fit_for_a_log(text)),
        }
    }
}
