//! Signed bundles, as `tests/sign_bundles.py` signs them: an implementation of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use serde::Deserialize;
use tar::EntryType;
use waxseal::{Error, ErrorKind};
use waxseal_policy::{BundleKey, RegoPolicy, RegoSources};
use waxseal_testing::python;

use super::bundles::archive;
use super::{caller, encrypt, envelope};

#[derive(Deserialize)]
struct Case {
    name: String,
    wrong: Option<String>,
    keys: Vec<Key>,
    files: BTreeMap<String, String>,
    signatures: String,
}

#[derive(Deserialize)]
struct Key {
    algorithm: String,
    key: String,
    id: Option<String>,
    scope: Option<String>,
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut python = Command::new(python::second_reader());
    serde_json::from_str(&python::run(python.arg(root.join("tests/sign_bundles.py")))).unwrap()
});

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).unwrap()
}

impl Key {
    fn built(&self) -> BundleKey {
        let mut key = match &*self.algorithm {
            "RS256" => BundleKey::rs256(&self.key),
            "PS256" => BundleKey::ps256(&self.key),
            "ES256" => BundleKey::es256(&self.key),
            _ => BundleKey::hs256(self.key.as_bytes()),
        }
        .unwrap();
        if let Some(id) = &self.id {
            key = key.with_id(id);
        }
        if let Some(scope) = &self.scope {
            key = key.with_scope(scope);
        }
        key
    }
}

impl Case {
    fn keys(&self) -> Vec<BundleKey> {
        self.keys.iter().map(Key::built).collect()
    }

    fn bytes(&self, signatures: Option<&str>) -> Vec<u8> {
        let files = self.files.iter().map(|(path, text)| (&**path, EntryType::Regular, &**text));
        let signatures = signatures.map(|text| (".signatures.json", EntryType::Regular, text));
        archive(&files.chain(signatures).collect::<Vec<_>>())
    }
}

type Taken = fn(RegoSources, &Path, Vec<BundleKey>) -> RegoSources;

const SIGNED: Taken = |sources, path, keys| sources.signed_bundle(path, keys);
const UNVERIFIED: Taken = |sources, path, _| sources.unverified_bundle(path);
const UNSIGNED: Taken = |sources, path, _| sources.bundle(path);

fn load(bytes: &[u8], keys: Vec<BundleKey>, taken: Taken) -> Result<RegoPolicy, Error> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle.tar.gz");
    fs::write(&path, bytes).unwrap();
    RegoPolicy::builder(taken(RegoSources::new(), &path, keys)).watch(None).build()
}

#[test]
fn each_case_of_the_signer_is_taken_or_refused() {
    for case in &*CASES {
        let loaded = load(&case.bytes(Some(&case.signatures)), case.keys(), SIGNED);
        match (&case.wrong, loaded) {
            (None, Ok(policy)) => assert_eq!(policy.status().revision, "signed-7", "{}", case.name),
            (Some(wrong), Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::InvalidOption, "{}", case.name);
                let text = error.to_string();
                assert!(text.contains(&**wrong), "{}: {text}", case.name);
                assert!(text.contains(".signatures.json"), "{}: {text}", case.name);
            }
            (_, Ok(_)) => panic!("{} was taken", case.name),
            (None, Err(error)) => panic!("{}: {error}", case.name),
        }
    }
    assert!(CASES.len() > 70, "{}", CASES.len());
}

#[test]
fn a_signed_bundle_decides() {
    let case = case("ES256");
    let policy = load(&case.bytes(Some(&case.signatures)), case.keys(), SIGNED).unwrap();
    let envelope = envelope(policy);
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
    assert!(encrypt(&envelope, &caller("other")).is_err());
}

#[test]
fn every_character_of_a_token_counts() {
    for name in ["RS256", "PS256", "ES256", "HS256"] {
        let case = case(name);
        let parsed: serde_json::Value = serde_json::from_str(&case.signatures).unwrap();
        let token = parsed["signatures"][0].as_str().unwrap();
        let payload = token.find('.').unwrap()..token.rfind('.').unwrap();
        for (at, c) in token.char_indices() {
            // Some of the many hashes will do.
            if c == '.' || payload.contains(&at) && at % 7 != 0 {
                continue;
            }
            let other = if c == 'A' { "B" } else { "A" };
            let mut changed = token.to_owned();
            changed.replace_range(at..=at, other);
            let signatures = serde_json::json!({ "signatures": [changed] }).to_string();
            let loaded = load(&case.bytes(Some(&signatures)), case.keys(), SIGNED);
            assert!(loaded.is_err(), "{name}: {at} of {}", token.len());
        }
    }
}

#[test]
fn signed_unsigned_and_unverified_are_told_apart() {
    let case = case("RS256");
    let (signed, unsigned) = (case.bytes(Some(&case.signatures)), case.bytes(None));
    let error = |bytes: &[u8], taken| load(bytes, case.keys(), taken).unwrap_err().to_string();
    assert!(error(&unsigned, SIGNED).contains("is not signed"));
    assert!(error(&signed, UNSIGNED).contains("signed_bundle"));
    assert!(load(&unsigned, case.keys(), UNSIGNED).is_ok());
    // Only where that is asked for.
    let forged = case.bytes(Some("{}"));
    for bytes in [&signed, &unsigned, &forged] {
        assert!(load(bytes, Vec::new(), UNVERIFIED).is_ok());
    }
    assert!(error(&forged, SIGNED).contains("not a list of signatures"));
    assert!(error(&case.bytes(Some("")), SIGNED).contains("not a list of signatures"));
}

#[test]
fn a_reload_takes_what_is_signed_and_nothing_else() {
    let case = case("PS256");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle.tar.gz");
    fs::write(&path, case.bytes(Some(&case.signatures))).unwrap();
    let sources = RegoSources::new().signed_bundle(&path, case.keys());
    let policy = RegoPolicy::builder(sources).watch(None).build().unwrap();
    let bad = CASES.iter().find(|case| case.name == "PS256 of another").unwrap();
    for bytes in [case.bytes(None), bad.bytes(Some(&bad.signatures))] {
        fs::write(&path, bytes).unwrap();
        assert!(policy.reload().is_err());
        assert_eq!(policy.status().revision, "signed-7");
        assert!(policy.status().trouble.is_some());
    }
    let envelope = envelope(policy);
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
}

#[test]
fn keys_that_are_none_are_refused_and_none_is_shown() {
    let (rsa, ec) = (&case("RS256").keys[0].key, &case("ES256").keys[0].key);
    for wrong in [
        BundleKey::rs256(ec),
        BundleKey::ps256(ec),
        BundleKey::es256(rsa),
        BundleKey::rs256(""),
        BundleKey::rs256(&rsa.replace("PUBLIC KEY", "PRIVATE KEY")),
        BundleKey::es256(&ec[..ec.len() / 2]),
        BundleKey::hs256(&[7; 31]),
    ] {
        assert_eq!(wrong.unwrap_err().kind(), ErrorKind::InvalidOption);
    }
    let key = BundleKey::hs256(b"s3cr3t-s3cr3t-s3cr3t-s3cr3t-s3cr3t").unwrap().with_id("k");
    let shown = format!("{key:?} {:?}", RegoSources::new().signed_bundle("/b", [key.clone()]));
    assert!(shown.contains("HS256") && !shown.contains("s3cr3t"), "{shown}");
    let bytes: Vec<_> = b"s3cr3t".iter().map(ToString::to_string).collect();
    assert!(!shown.contains(&bytes.join(", ")), "{shown}");
}

#[test]
fn a_uri_names_the_key_of_a_bundle() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
    for name in ["RS256", "ES256", "a scope"] {
        let case = case(name);
        write("bundle.tar.gz", &case.bytes(Some(&case.signatures)));
        write("key.pem", case.keys[0].key.as_bytes());
        let at = |more: &str| {
            let folder = directory.path().display();
            let uri = format!("rego:{folder}/bundle.tar.gz?watch=0s&signed-by={folder}/key.pem");
            pollster::block_on(RegoPolicy::from_uri(uri + more))
        };
        let (right, wrong) = match name {
            "RS256" => ("", ["&algorithm=PS256", "&algorithm=HS256", "&scope=write"]),
            "ES256" => ("&algorithm=ES256", ["", "&algorithm=RS256", "&algorithm=es256"]),
            _ => ("&scope=write", ["", "&scope=read", "&scope=write&algorithm=ES256"]),
        };
        assert_eq!(at(right).unwrap().status().revision, "signed-7");
        for wrong in wrong {
            assert_eq!(at(wrong).unwrap_err().kind(), ErrorKind::InvalidOption, "{name} {wrong}");
        }
    }
    let folder = directory.path().display();
    for uri in [format!("rego:{folder}/bundle.tar.gz"), format!("rego:{folder}?signed-by=/k")] {
        assert!(pollster::block_on(RegoPolicy::from_uri(uri)).is_err());
    }
}
