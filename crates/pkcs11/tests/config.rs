//! Configuration as data: the builder's options, files, and the URI of RFC 7512.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use proptest::prelude::*;
use waxseal::ErrorKind;
use waxseal::kek::KekProvider;
use waxseal_pkcs11::{Config, IvSource, PinSource, Pkcs11Kek, Pkcs11KekBuilder, Versions};

fn refused(builder: Pkcs11KekBuilder) -> String {
    let error = builder.build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    error.to_string()
}

fn builder() -> Pkcs11KekBuilder {
    Pkcs11Kek::builder("/lib/module.so", "orders").token("prod")
}

#[test]
fn every_option_out_of_range_is_refused_by_name() {
    let many = |n: usize| "x".repeat(n);
    for (option, builder) in [
        ("module_path", Pkcs11Kek::builder("module.so", "orders").token("prod")),
        ("object", Pkcs11Kek::builder("/lib/module.so", "").token("prod")),
        ("token", Pkcs11Kek::builder("/lib/module.so", "orders")),
        ("token", builder().token("")),
        ("token", builder().token(many(33))),
        ("serial", builder().serial("")),
        ("manufacturer", builder().manufacturer(many(33))),
        ("model", builder().model("")),
        ("name", Pkcs11Kek::builder("/lib/module.so", "orders").serial("1")),
        ("name", Pkcs11Kek::builder("/lib/module.so", "orders").slot_id(1)),
        ("name", builder().name("")),
        ("id", builder().id([])),
        ("id", builder().id([1; 65])),
        ("id", builder().id([1]).versions(Versions::ById)),
        ("sessions", builder().sessions(0)),
        ("sessions", builder().sessions(65)),
        ("key_max_age", builder().key_max_age(Duration::from_millis(99))),
        ("key_max_age", builder().key_max_age(Duration::from_secs(3601))),
        ("helper", builder().helper("waxseal-pkcs11-helper")),
        ("helper_deadline", builder().helper("/h").helper_deadline(Duration::from_millis(99))),
        ("helper_deadline", builder().helper("/h").helper_deadline(Duration::from_secs(3601))),
        ("helper_deadline", builder().helper_deadline(Duration::from_secs(1))),
        ("helper_variables", builder().helper_variables(["A"])),
        ("helper_variables", builder().helper("/h").helper_variables(["A", ""])),
        ("helper_variables", builder().helper("/h").helper_variables(["A=B"])),
        ("KEK id", builder().name(many(600))),
    ] {
        let text = refused(builder);
        assert!(text.contains(option), "{option}: {text}");
    }
    for builder in [
        builder().sessions(1),
        builder().sessions(64).key_max_age(Duration::from_millis(100)),
        builder().id([1; 64]).key_max_age(Duration::from_secs(3600)),
        Pkcs11Kek::builder("/lib/module.so", "orders").slot_id(0).name("prod"),
        builder().helper("/h").helper_deadline(Duration::from_millis(100)),
        builder().helper("/h").helper_deadline(Duration::from_secs(3600)),
        builder().helper("/h").helper_variables(["SOFTHSM2_CONF", "LD_LIBRARY_PATH"]),
    ] {
        builder.build().unwrap();
    }
}

#[test]
fn the_id_names_token_and_key() {
    for (builder, id) in [
        (builder(), "pkcs11:prod/orders"),
        (builder().name("eu/1"), "pkcs11:eu%2F1/orders"),
        (builder().id([0x0a, 0xff]), "pkcs11:prod/orders/0aff"),
        (builder().serial("17"), "pkcs11:prod/orders"),
    ] {
        assert_eq!(builder.build().unwrap().id().as_str(), id);
    }
}

#[test]
fn a_wrong_uri_is_refused_with_the_part_that_is_wrong_and_shows_no_pin() {
    let rest = "module-path=/m.so";
    for (uri, part) in [
        ("pkcs12:token=a".to_owned(), "does not begin"),
        ("pkcs11:token=a;object=b".to_owned(), "module-path"),
        (format!("pkcs11:token=a?{rest}"), "object"),
        (format!("pkcs11:token=a;object?{rest}"), "attribute has no `=`"),
        (format!("pkcs11:token=a;object=b;token=c?{rest}"), "attribute `token` occurs twice"),
        (
            format!("pkcs11:token=a;object=b;library-version=3?{rest}"),
            "`library-version` is unknown",
        ),
        (format!("pkcs11:token=a;object=b;S3CR3T-PIN=1?{rest}"), "no valid name"),
        (
            format!("pkcs11:token=a;object=b;pin-value=S3CR3T?{rest}"),
            "name a file with `pin-source`",
        ),
        (format!("pkcs11:token=a;object=b;pin-source=/p?{rest}"), "belongs after the `?`"),
        (
            format!("pkcs11:token=a;object=b?{rest}&pin-value=S3CR3T"),
            "name a file with `pin-source`",
        ),
        (format!("pkcs11:token=a;object=b?{rest}&pin-source=S3CR3T"), "parameter `pin-source`"),
        (format!("pkcs11:token=a;object=b?{rest}&pin-source=%7Ccat%20x"), "commands are not run"),
        (format!("pkcs11:token=a;object=b?{rest}&module-name=softhsm"), "module-name"),
        (format!("pkcs11:token=a;object=b;type=private?{rest}"), "attribute `type`"),
        (format!("pkcs11:token=%f;object=b?{rest}"), "attribute `token`"),
        (format!("pkcs11:token=%ff;object=b?{rest}"), "attribute `token` is not UTF-8"),
        (format!("pkcs11:token=a;object=b;id=%0?{rest}"), "attribute `id`"),
        (format!("pkcs11:token=a;object=b;slot-id=one?{rest}"), "attribute `slot-id`"),
        (format!("pkcs11:token=a;object=b?{rest}&iv-source=random"), "parameter `iv-source`"),
        (format!("pkcs11:token=a;object=b?{rest}&versions=all"), "parameter `versions`"),
        (format!("pkcs11:token=a;object=b?{rest}&sessions=-1"), "parameter `sessions`"),
        (format!("pkcs11:token=a;object=b?{rest}&sessions=99999999999"), "parameter `sessions`"),
        (format!("pkcs11:token=a;object=b?{rest}&key-max-age=5"), "parameter `key-max-age`"),
        (format!("pkcs11:token=a;object=b?{rest}&session=5"), "did you mean `sessions`?"),
    ] {
        let error = uri.parse::<Config>().unwrap_err();
        let text = format!("{error} {error:?}");
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(text.contains("pkcs11 URI") && text.contains(part), "{uri}: {text}");
        assert!(!text.contains("S3CR3T"), "{text}");
    }
}

#[test]
fn a_uri_of_the_rfc_is_read() {
    let uri = "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;\
               model=1.0;serial=17;slot-id=3;object=my-key;type=secret-key;id=%69%95%3E%5C\
               ?pin-source=file:/etc/token&module-path=/m.so";
    let config: Config = uri.parse().unwrap();
    let same = Config::new("/m.so", "my-key")
        .token("The Software PKCS#11 Softtoken")
        .manufacturer("Snake Oil, Inc.")
        .model("1.0")
        .serial("17")
        .slot_id(3)
        .id([0x69, 0x95, 0x3e, 0x5c])
        .pin_source(PinSource::File("/etc/token".into()));
    assert_eq!(config, same);
    Pkcs11Kek::from_config(&config).build().unwrap();
}

#[test]
fn what_contradicts_itself_in_a_configuration_fails_the_build() {
    for (config, option) in [
        (Config::new("/m.so", "k").token("t").sessions(0), "sessions"),
        (Config::new("m.so", "k").token("t"), "module_path"),
        (Config::new("/m.so", "k").token("t").id([1]).versions(Versions::ById), "id"),
        (Config::new("/m.so", "k").token("t").id([]), "id"),
        (Config::new("/m.so", "k"), "token"),
    ] {
        assert!(refused(Pkcs11Kek::from_config(&config)).contains(option));
    }
}

#[test]
fn a_file_has_the_names_of_the_methods() {
    let text = "module_path = \"/m.so\"\ntoken = \"prod\"\nobject = \"orders\"\nid = \"0A\"\n\
                pin_source = \"env:HSM_PIN\"\niv_source = \"appended\"\nsessions = 2\n\
                key_max_age = \"30s\"\n";
    let config: Config = toml::from_str(text).unwrap();
    let same = Config::new("/m.so", "orders")
        .token("prod")
        .id([10])
        .pin_source(PinSource::Environment("HSM_PIN".into()))
        .iv_source(IvSource::Appended)
        .sessions(2)
        .key_max_age(Duration::from_secs(30));
    assert_eq!(config, same);
    for (wrong, named) in [
        ("object = \"orders\"\n", "module_path"),
        ("module_path = \"/m.so\"\nobject = \"o\"\npin = \"1234\"\n", "pin"),
        ("module_path = \"/m.so\"\nobject = \"o\"\nid = \"0\"\n", "id"),
        ("module_path = \"/m.so\"\nobject = \"o\"\npin_source = \"1234\"\n", "pin-source"),
        ("module_path = \"/m.so\"\nobject = \"o\"\niv_source = \"zero\"\n", "iv_source"),
    ] {
        let error = toml::from_str::<Config>(wrong).unwrap_err().message().to_owned();
        assert!(error.contains(named) || named == "iv_source" && error.contains("zero"), "{error}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        token in ".{1,8}",
        object in ".{1,8}",
        name in proptest::option::of(".{1,8}"),
        id in proptest::option::of(prop::collection::vec(any::<u8>(), 1..8)),
        slot in proptest::option::of(any::<u64>()),
        file in "/[^\0]{0,8}",
        sessions in proptest::option::of(any::<u32>()),
        by_id in any::<bool>(),
        way in 0_usize..4,
    ) {
        let ways = [IvSource::Caller, IvSource::Token, IvSource::Appended, IvSource::Message];
        let mut config = Config::new(&file, object)
            .token(token)
            .pin_source(PinSource::File(file.clone().into()))
            .iv_source(ways[way]);
        if let Some(name) = name { config = config.name(name); }
        if let Some(id) = id { config = config.id(id); }
        if let Some(slot) = slot { config = config.slot_id(slot); }
        if let Some(sessions) = sessions { config = config.sessions(sessions); }
        if by_id { config = config.versions(Versions::ById); }
        let read: Config = config.to_string().parse().unwrap();
        prop_assert_eq!(&read, &config);
        let json = serde_json::to_string(&config).unwrap();
        prop_assert_eq!(serde_json::from_str::<Config>(&json).unwrap().to_string(), read.to_string());
    }

    #[test]
    fn nothing_that_is_read_panics(text in "\\PC*|pkcs11:[a-z%0-9;=?&/:-]{0,60}") {
        let _ = text.parse::<Config>();
    }
}
