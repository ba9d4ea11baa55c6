//! The shape of the source, held: who may import whom, where `unsafe` and the AEAD crates may be named, who parses untrusted bytes.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// From the top to the bottom. A file imports only from layers below its own, and from the ground that all stand on.
const LAYERS: [&str; 8] = ["envelope", "dek", "kek", "observer", "format", "suite", "runtime", "memory"];
/// What every layer may use; these use no layer.
const GROUND: [&str; 3] = ["error", "context", "sync"];

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Every source file: its path below src, and its code without tests and comments.
fn sources() -> Vec<(String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&src);
    assert!(files.len() > 20, "the files were not found");
    let mut sources = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code: String =
            code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect();
        sources.push((path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/"), code));
    }
    sources
}

/// The first path segment behind each `crate::` in the code; `use crate::{a, b}` is not used in this crate.
fn imports(code: &str) -> Vec<&str> {
    assert!(!code.contains("crate::{"), "write one `use` per module, so that this test can read it");
    let name =
        |rest: &'_ str| rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_').len();
    code.split("crate::").skip(1).map(|rest| &rest[..name(rest)]).collect()
}

#[test]
fn a_file_imports_only_from_layers_below_its_own() {
    let mut checked = 0;
    for (path, code) in sources() {
        if path == "lib.rs" {
            continue;
        }
        let own = path.split(['/', '.']).next().unwrap();
        let rank = LAYERS.iter().position(|layer| *layer == own);
        assert!(rank.is_some() || GROUND.contains(&own), "{path} is in no layer");
        for import in imports(&code) {
            if GROUND.contains(&import) || import == own {
                continue;
            }
            let below = LAYERS.iter().position(|layer| *layer == import);
            let below = below.unwrap_or_else(|| panic!("{path} imports crate::{import}, which is no module"));
            assert!(rank.is_some_and(|rank| below > rank), "{path} imports {import}, which is not below it");
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} imports were seen");
}

#[test]
fn only_one_file_has_unsafe_code() {
    for (path, code) in sources() {
        let allowed = path == "memory/pages.rs";
        assert_eq!(
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl"),
            allowed,
            "{path}"
        );
        assert_eq!(code.contains("#![allow(unsafe_code)]"), allowed, "{path}");
        // `forbid` would reach into the one module that may; what contains it, and the crate, deny.
        let above = ["lib.rs", "memory/mod.rs"].contains(&path.as_str());
        let with_children = path == "suite/mod.rs";
        let inner_test = path == "suite/vectors.rs";
        if !allowed && !above && !with_children && !inner_test {
            assert!(code.contains("#![forbid(unsafe_code)]"), "{path} does not forbid unsafe code");
        }
    }
}

#[test]
fn each_cryptographic_crate_is_named_in_one_file() {
    for (krate, file) in [
        ("aes_gcm", "suite/rustcrypto.rs"),
        ("chacha20poly1305", "suite/rustcrypto.rs"),
        ("xaes_256_gcm", "suite/rustcrypto.rs"),
        ("aws_lc_rs", "suite/aws_lc.rs"),
        ("hkdf", "suite/derive.rs"),
        ("aws_sdk_kms", "kek/aws_kms/client.rs"),
        ("aws_config", "kek/aws_kms/client.rs"),
        ("quick_cache", "dek/cache.rs"),
        ("vaultrs", "kek/vault_transit/endpoints.rs"),
    ] {
        let naming: Vec<_> = sources()
            .into_iter()
            .filter(|(_, code)| code.contains(&format!("use {krate}")) || code.contains(&format!(" {krate}::")))
            .map(|(path, _)| path)
            .collect();
        assert_eq!(naming, [file], "{krate}");
    }
}

#[test]
fn only_the_format_takes_integers_out_of_bytes() {
    for (path, code) in sources() {
        if !path.starts_with("format/") {
            assert!(!code.contains("from_le_bytes"), "{path} parses bytes");
        }
    }
}

#[test]
fn nothing_that_holds_a_secret_derives_what_would_show_it() {
    let secrets = [
        "Secret32",
        "Dek",
        "UnwrappedDek",
        "Plaintext",
        "AeadKey",
        "Key",
        "WritingDek",
        "ReadingDek",
        "KeyFile",
        "VersionKey",
        "SecretText",
        "Token",
        "VaultAuth",
        "Method",
        "Session",
        "Input",
    ];
    let mut seen = 0;
    for (path, code) in sources() {
        let lines: Vec<_> = code.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let name = line.split("struct ").nth(1).or_else(|| line.split("enum ").nth(1)).unwrap_or_default();
            if !secrets.contains(&name.split(|c: char| !c.is_alphanumeric()).next().unwrap()) {
                continue;
            }
            seen += 1;
            let attributes = lines[..i].iter().rev().take_while(|line| line.trim_start().starts_with("#["));
            for attribute in attributes {
                assert!(!attribute.contains("derive"), "{path}: {name} derives something: {attribute}");
            }
        }
    }
    assert!(seen >= secrets.len(), "only {seen} of them were found");
}

#[test]
fn what_threads_share_goes_through_the_facade_that_the_schedule_tests_replace() {
    let mut checked = 0;
    for (path, code) in sources() {
        let explored = ["dek/", "kek/call/", "kek/scripted.rs", "memory/slot.rs"];
        if explored.iter().any(|explored| path.starts_with(explored)) {
            for name in ["std::sync", "std::thread"] {
                assert!(!code.contains(name), "{path} uses {name}, which no schedule test sees");
            }
            checked += 1;
        }
    }
    assert!(checked > 15, "only {checked} files were seen");
}

/// A default method that a wrapper forgets loses the inner one's better version, and nothing else would notice.
#[test]
fn a_shared_provider_forwards_every_method_of_the_trait() {
    let (_, code) = sources().into_iter().find(|(path, _)| path == "kek/mod.rs").unwrap();
    let methods = |head: &str| {
        let block = code.split(head).nth(1).unwrap().split("\n}").next().unwrap();
        let names = block.split("\n    fn ").skip(1).map(|rest| rest.split(['(', '<']).next().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    let of_the_trait = methods("pub trait KekProvider");
    assert!(of_the_trait.len() > 9, "{of_the_trait:?}");
    assert_eq!(methods("KekProvider for Arc<P>"), of_the_trait);
}
