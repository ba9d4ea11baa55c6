//! The local provider's configuration as data: serde, the URI, and that each option counts.
#![cfg(feature = "serde")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::path::PathBuf;

use proptest::prelude::*;
use waxseal::kek::KekProvider;
use waxseal::kek::local::{Config, LocalKek};
use waxseal::{Aad, EncryptionContext, Envelope, ErrorKind};

fn any_config() -> impl Strategy<Value = Config> {
    (".+", ".*", prop::option::of(any::<bool>())).prop_map(|(path, name, create)| {
        let config = Config::new(path, name);
        create.map_or(config.clone(), |create| config.create(create))
    })
}

proptest! {
    #[test]
    fn the_uri_is_read_back(config in any_config()) {
        prop_assert_eq!(config.to_string().parse::<Config>().unwrap(), config);
    }

    #[test]
    fn serde_reads_back_what_it_wrote(config in any_config()) {
        let json = serde_json::to_string(&config).unwrap();
        prop_assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config.clone());
        let toml = toml::to_string(&config).unwrap();
        prop_assert_eq!(toml::from_str::<Config>(&toml).unwrap(), config);
    }
}

#[test]
fn a_file_and_a_uri_say_the_same() {
    let uri = "local:/var/lib/app/cards%20v1.kek?name=cards&create=false";
    let toml = "path = '/var/lib/app/cards v1.kek'\nname = 'cards'\ncreate = false";
    let config: Config = uri.parse().unwrap();
    assert_eq!(toml::from_str::<Config>(toml).unwrap(), config);
    assert_eq!(config.to_string(), uri);
    assert_eq!(
        (config.path(), config.name()),
        (PathBuf::from("/var/lib/app/cards v1.kek").as_path(), "cards")
    );
}

/// `local://cards.kek` would be a file in the root directory, which nobody means.
#[test]
fn a_path_begins_in_the_working_directory_or_in_the_root_directory() {
    for (uri, path) in [
        ("local:cards.kek?name=a", "cards.kek"),
        ("local:/cards.kek?name=a", "/cards.kek"),
        ("local:///cards.kek?name=a", "/cards.kek"),
        ("local:/%2Fcards.kek?name=a", "//cards.kek"),
    ] {
        assert_eq!(uri.parse::<Config>().unwrap().path().as_os_str(), path, "{uri}");
    }
    for path in ["//cards.kek", "///cards.kek", "//"] {
        let config = Config::new(path, "a");
        let read: Config = config.to_string().parse().unwrap();
        assert_eq!(read.path().as_os_str(), path, "{config}");
    }
}

#[cfg(unix)]
#[test]
fn a_path_that_is_not_utf_8_is_read_back() {
    let path: std::ffi::OsString =
        std::os::unix::ffi::OsStringExt::from_vec(b"/k\xFF?#%.kek".to_vec());
    let config = Config::new(path, "cards");
    assert_eq!(config.to_string(), "local:/k%FF%3F%23%25.kek?name=cards");
    assert_eq!(config.to_string().parse::<Config>().unwrap(), config);
}

#[test]
fn an_error_names_what_is_wrong() {
    for (text, part) in [
        ("file:/x?name=a", "does not begin with `local:`"),
        ("local:?name=a", "the path is missing"),
        ("local://x?name=a", "write local:PATH for a path from the working directory"),
        ("local:/x", "parameter `name` is missing"),
        ("local:/x?name=a&create=maybe", "parameter `create` is neither true nor false"),
        ("local:/x?name=a&nam=b", "`nam` is unknown; did you mean `name`?"),
        ("local:/x%2?name=a", "the path has a %"),
        ("local:/x?name=a&secret=hunter2", "a secret must not be in the URI"),
    ] {
        let error = text.parse::<Config>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(part), "{text}: {error}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    assert!(toml::from_str::<Config>("path = '/x'\nname = 'a'\nsecret = 'hunter2'").is_err());
    assert!(toml::from_str::<Config>("path = '/x'").unwrap_err().to_string().contains("name"));
}

#[test]
fn every_option_reaches_the_kek() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cards.kek");
    let config = Config::new(&path, "cards");

    let error = LocalKek::from_config(&config.clone().create(false)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    let kek = LocalKek::from_config(&config).unwrap();
    assert_eq!(kek.id().as_str(), "local:cards");
    LocalKek::from_config(&config.clone().create(false)).unwrap();

    for create in [false, true] {
        let error =
            LocalKek::from_config(&Config::new(&path, "orders").create(create)).unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidOption && error.to_string().contains("name"),
            "{error}"
        );
        let error = LocalKek::from_config(&Config::new(&path, "").create(create)).unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidOption && error.to_string().contains("name"),
            "{error}"
        );
        let error = LocalKek::from_config(&Config::new(directory.path(), "cards").create(create))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    }
}

#[test]
fn a_kek_of_a_uri_seals_and_opens() {
    let directory = tempfile::tempdir().unwrap();
    let uri = format!("local:{}?name=cards", directory.path().join("cards.kek").display());
    let config: Config = uri.parse().unwrap();
    let envelope =
        || Envelope::builder().wrap_with(LocalKek::from_config(&config).unwrap()).build().unwrap();
    let context = EncryptionContext::new([("table", "cards")]).unwrap();
    let sealed =
        pollster::block_on(envelope().encrypt(&context, Aad::from(b"row 17"), b"4111")).unwrap();
    let card =
        pollster::block_on(envelope().decrypt(&context, Aad::from(b"row 17"), &sealed)).unwrap();
    assert_eq!(&*card, b"4111");
}
