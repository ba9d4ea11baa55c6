//! Checks the shape of the source: which files may import which, which may name a foreign service,
//! where `unsafe` and the AEAD crates may be named, which parse untrusted bytes, how much a
//! cryptographer has to review, and what the public interface may show.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// From the top to the bottom. A file imports only from layers below its own, and from the ground
/// that all layers use.
const LAYERS: [&str; 12] = [
    "domain", "envelope", "branch", "policy", "dek", "store", "kek", "observe", "format", "suite",
    "runtime", "memory",
];
/// What every layer may use; these use no layer.
const GROUND: [&str; 9] =
    ["error", "caller", "context", "clock", "dek_id", "backend", "duration", "hex", "sync"];
/// The pages of docs/, which import nothing.
const PAGES: &str = "guide";
/// Code that names a foreign service is here.
const PROVIDERS: [&str; 5] = [
    "crates/aws-kms/src",
    "crates/azure-key-vault/src",
    "crates/google-kms/src",
    "crates/pkcs11/src",
    "crates/vault-transit/src",
];
/// Who implements a trait of a dependency below 1.0, and so has to show its types: the crate, the
/// module, the dependency, the version and the feature. Module and feature are named after the
/// version, so that the next version can be added alongside.
const VERSIONED: [(&str, &str, &str, &str, &str); 2] = [
    ("object-store", "waxseal_object_store::v0_13::", "object_store", "0.13", "object_store_0_13"),
    ("object-store", "waxseal_object_store::v0_14::", "object_store", "0.14", "object_store_0_14"),
];
/// Code that names a database. Stores keep rows as bytes and parse none.
const STORES: [&str; 1] = ["crates/sqlx/src"];

fn root() -> &'static Path {
    waxseal_testing::top()
}

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

/// Every source file below `src`, a folder of the workspace: its path there, and its code without
/// tests and comments.
pub(crate) fn sources_of(src: &str) -> Vec<(String, String)> {
    let src = root().join(src);
    let mut sources = Vec::new();
    for path in rust_files(&src) {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
        if name.ends_with("/tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code = code.split("#[cfg(all(test, not(shuttle)))]\nmod tests").next().unwrap();
        let code: String = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .map(|line| format!("{line}\n"))
            .collect();
        sources.push((name, code));
    }
    assert!(!sources.is_empty(), "the files were not found");
    sources
}

/// Those of the library.
fn sources() -> Vec<(String, String)> {
    let sources = sources_of("src");
    assert!(sources.len() > 99, "only {} files were found", sources.len());
    sources
}

pub(crate) fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn first_name(text: &str) -> &str {
    &text[..text.len() - text.trim_start_matches(is_name).len()]
}

/// The place of a file's module: `kek/call/mod.rs` and `kek/call.rs` are `[kek, call]`.
pub(crate) fn module_of(path: &str) -> Vec<&str> {
    path.trim_end_matches(".rs").split('/').filter(|part| !["mod", "lib"].contains(part)).collect()
}

/// The top-level modules that the code names, by `crate::` or by as many `super::` as lead out of
/// its own.
fn imports<'c>(path: &str, code: &'c str) -> Vec<&'c str> {
    assert!(
        !code.contains("crate::{"),
        "write one `use` per module, so that this test can read it: {path}"
    );
    let depth = module_of(path).len();
    let mut found: Vec<_> = code.split("crate::").skip(1).map(first_name).collect();
    let within = inline_modules(code);
    let mut rest = code;
    while let Some(at) = rest.find("super::") {
        let chain = &rest[at..];
        let supers = chain.len() - chain.trim_start_matches("super::").len();
        let behind = chain.trim_start_matches("super::");
        let is_path =
            rest[..at].chars().next_back().is_none_or(|before| !is_name(before) && before != ':');
        let here = code.len() - chain.len();
        // `super` in a module within the file leads one step less far.
        let depth = depth + within.iter().filter(|module| module.contains(&here)).count();
        if is_path && supers / "super::".len() >= depth {
            assert!(
                !behind.starts_with('{'),
                "write one `use` per module, so that this test can read it: {path}"
            );
            found.push(first_name(behind));
        }
        rest = behind;
    }
    found
}

/// Where modules are written out within the file.
fn inline_modules(code: &str) -> Vec<std::ops::Range<usize>> {
    let code = &without_literals(code);
    let starts = code.match_indices("mod ").filter(|(at, _)| {
        let name = first_name(&code[at + 4..]);
        !name.is_empty() && code[at + 4 + name.len()..].starts_with(" {")
    });
    let end = |start: usize| {
        let mut open = 0;
        let closes = |(at, c): (usize, char)| {
            open += i32::from(c == '{') - i32::from(c == '}');
            (c == '}' && open == 0).then_some(start + at)
        };
        code[start..].char_indices().find_map(closes).unwrap_or(code.len())
    };
    starts.map(|(start, _)| start..end(start)).collect()
}

/// The code with a space for each byte of a text or character literal: a brace in one opens
/// nothing.
fn without_literals(code: &str) -> String {
    let mut bytes = code.as_bytes().to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(code, at);
        bytes[at..end.unwrap_or(at)].fill(b' ');
        at = end.unwrap_or(at + 1);
    }
    String::from_utf8(bytes).unwrap()
}

/// Where the literal ends that begins at this byte, if one does.
fn literal_end(code: &str, at: usize) -> Option<usize> {
    let find = |from: usize, what: &str| Some(from + code.get(from..)?.find(what)? + what.len());
    match code.as_bytes()[at] {
        b'r' if !code[..at].trim_end_matches('b').ends_with(is_name) => {
            let behind = code[at + 1..].trim_start_matches('#');
            let hashes = code.len() - at - 1 - behind.len();
            behind.strip_prefix('"')?;
            find(at + hashes + 2, &format!("\"{}", "#".repeat(hashes)))
        }
        b'"' => {
            let mut is_escaped = false;
            let ends = |c: char| {
                let was_escaped = is_escaped;
                is_escaped = c == '\\' && !was_escaped;
                c == '"' && !was_escaped
            };
            Some(at + 1 + code[at + 1..].find(ends)? + 1)
        }
        b'\'' if code[at + 1..].starts_with('\\') => find(at + 3, "'"),
        b'\'' => {
            let length = code[at + 1..].chars().next()?.len_utf8();
            // Anything else is a lifetime.
            code[at + 1 + length..].starts_with('\'').then_some(at + length + 2)
        }
        _ => None,
    }
}

/// A way to write an import that [`imports`] does not see.
fn hidden_import(code: &str) -> Option<&'static str> {
    let ways =
        ["crate as ", "super as ", "{super", "\nuse {", "extern crate", "include!(", "self::super"];
    // The schedule tests stand in for the facade, and read what the library does not.
    let is_path = |(at, head): (usize, &str)| {
        !code[at + head.len()..].split('"').next().unwrap().contains("tests/schedules/")
    };
    let elsewhere = code.match_indices("#[path = \"").any(is_path);
    let code = format!("\n{code}");
    ways.into_iter().find(|way| code.contains(way)).or_else(|| elsewhere.then_some("#[path]"))
}

#[test]
fn a_file_imports_only_from_layers_below_its_own() {
    let mut checked = 0;
    for (path, code) in sources() {
        if path == "lib.rs" || path.starts_with(PAGES) {
            continue;
        }
        let own = path.split(['/', '.']).next().unwrap();
        let rank = LAYERS.iter().position(|layer| *layer == own);
        assert!(rank.is_some() || GROUND.contains(&own), "{path} is in no layer");
        for import in imports(&path, &code) {
            if GROUND.contains(&import) || import == own {
                continue;
            }
            let below = LAYERS.iter().position(|layer| *layer == import);
            let below = below
                .unwrap_or_else(|| panic!("{path} imports crate::{import}, which is no module"));
            assert!(
                rank.is_some_and(|rank| below > rank),
                "{path} imports {import}, which is not below it"
            );
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} imports were seen");
}

#[test]
fn the_import_rule_sees_super_as_it_sees_crate() {
    for (path, code, seen) in [
        ("kek/call/mod.rs", "use super::super::dek::Lease;", &["dek"][..]),
        ("kek/call/queue.rs", "use super::super::KekError;", &[]),
        ("kek/call/queue.rs", "use super::super::super::dek;", &["dek"]),
        ("kek/mod.rs", "use super::envelope::Aad;", &["envelope"]),
        ("error.rs", "fn f() -> super::dek::Limits;", &["dek"]),
        ("suite/derive.rs", "use crate::memory::Secret32;", &["memory"]),
        (
            "duration.rs",
            "fn f() { if true {} }\nmod optional {\n    use super::read;\n    use super::super::dek;\n}",
            &["dek"],
        ),
        ("duration.rs", "mod optional {}\nuse super::dek;", &["dek"]),
        // Braces in literals open and close nothing.
        (
            "duration.rs",
            "mod optional { const OPEN: &str = \"{\\\"{\"; }\nuse super::dek;",
            &["dek"],
        ),
        ("duration.rs", "mod optional { const OPEN: char = '{'; }\nuse super::dek;", &["dek"]),
        ("duration.rs", "mod optional { const A: &str = r#\"\"{\"#; }\nuse super::dek;", &["dek"]),
        ("duration.rs", "mod a { fn f<'a>(x: &'a str) { x == '\\''; '}' } use super::dek; }", &[]),
    ] {
        assert_eq!(imports(path, code), seen, "{path}: {code}");
    }
}

/// What would hide an import from [`imports`].
#[test]
fn no_import_is_written_so_that_the_import_rule_cannot_read_it() {
    for code in [
        "use crate as root; root::envelope::Aad::empty()",
        "use super::super as up;",
        "use super as up;",
        "use super::{super::dek::Lease, KekError};",
        "use {super::super::dek::Lease};",
        "use self::super::envelope::Aad;",
        "extern crate self as waxseal;",
        "#[path = \"../envelope/aad.rs\"] mod aad;",
        "include!(\"../envelope/aad.rs\");",
    ] {
        assert!(hidden_import(code).is_some(), "{code}");
    }
    for (path, code) in sources() {
        assert_eq!(hidden_import(&code), None, "{path}");
    }
}

/// In the library's own code, with its texts: the names of services, of their clients, and of HTTP,
/// SQL and runtimes.
#[test]
fn who_names_a_foreign_service_lives_in_crates() {
    let services = [
        "kms", "vault", "openbao", "aws_", "amazon", "gcp", "azure", "dynamo", "s3", "pkcs11",
        "xks",
    ];
    let clients = ["reqwest", "hyper", "rustls", "sqlx", "async_std", "smol", "http"];
    for (path, code) in sources().into_iter().filter(|(path, _)| !path.starts_with(PAGES)) {
        let code = code.to_lowercase().replace("aws_lc", "").replace("aws-lc", "");
        let words: Vec<_> = code.split(|c: char| !is_name(c)).collect();
        for name in services.iter().chain(&clients) {
            let named = words
                .iter()
                .find(|word| word.split('_').any(|part| part == name.trim_end_matches('_')));
            assert_eq!(named, None, "{path} names {name}");
        }
        let tokio = [
            "runtime/tokio.rs",
            "runtime/mod.rs",
            "kek/toolkit/spawn.rs",
            "envelope/stream/tokio.rs",
        ]
        .contains(&path.as_str());
        assert!(
            tokio || !code.contains("tokio::runtime") && !code.contains("use tokio"),
            "{path} names tokio"
        );
    }
}

/// Together with the context, what a cryptographer reviews.
#[test]
fn what_is_reviewed_has_at_most_1_500_lines_of_code() {
    let lines = |code: &str| code.lines().filter(|line| !line.trim().is_empty()).count();
    let reviewed = |path: &str| {
        path.starts_with("suite/") || path.starts_with("format/") || path == "context.rs"
    };
    let code =
        sources().into_iter().filter(|(path, _)| reviewed(path) && path != "suite/vectors.rs");
    let counted: BTreeMap<_, _> = code.map(|(path, code)| (path, lines(&code))).collect();
    // Streams are a separate review, after that of keys and messages.
    let is_of_streams = |path: &str| path.ends_with("/stream.rs");
    let (streams, rest): (Vec<_>, Vec<_>) =
        counted.iter().partition(|(path, _)| is_of_streams(path));
    let total = |files: &[(&String, &usize)]| files.iter().map(|(_, lines)| **lines).sum::<usize>();
    assert!((500..=1500).contains(&total(&rest)), "{}: {counted:#?}", total(&rest));
    assert!((200..=320).contains(&total(&streams)), "{}: {counted:#?}", total(&streams));
}

/// What a dependency below 1.0 changes would be a breaking change of ours.
#[test]
fn the_public_interface_shows_no_type_of_a_dependency_below_1() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let dependencies =
        manifest.split("[workspace.dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let version = |line: &str| {
        line.split('"').nth(1).unwrap_or_default().trim_start_matches('=').starts_with("0.")
    };
    let young: Vec<String> = dependencies
        .lines()
        .filter(|line| {
            line.contains(" = ")
                && !line.starts_with('#')
                && !line.starts_with("waxseal")
                && version(line)
        })
        .map(|line| line.split(" = ").next().unwrap().replace('-', "_"))
        .collect();
    assert!(young.iter().any(|name| name == "getrandom") && young.len() > 9, "{young:?}");
    for krate in [
        "waxseal",
        "waxseal-aws-kms",
        "waxseal-azure-key-vault",
        "waxseal-dynamodb",
        "waxseal-google-kms",
        "waxseal-object-store",
        "waxseal-pkcs11",
        "waxseal-policy",
        "waxseal-sqlx",
        "waxseal-vault-transit",
    ] {
        // CI holds the listing against the code.
        let listing = fs::read_to_string(root().join(format!(".ci/api/{krate}.txt"))).unwrap();
        // A key store shows no more than its builder and the trait.
        assert!(listing.lines().count() > 20, "{krate}");
        for line in listing.lines() {
            let may_show = |name: &str| {
                VERSIONED.iter().any(|(of, module, dependency, ..)| {
                    krate == format!("waxseal-{of}") && line.contains(module) && name == *dependency
                })
            };
            let shown = young.iter().filter(|name| !may_show(name)).find(|name| {
                line.split(|c: char| !is_name(c) && c != ':')
                    .any(|path| path.starts_with(&format!("{name}::")))
            });
            assert_eq!(shown, None, "{line}");
        }
    }
}

/// The types of a dependency below 1.0 are public only if a feature asks for that version.
#[test]
fn what_shows_a_version_below_1_is_a_feature_named_for_it_that_is_off_by_default() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for (krate, module, dependency, version, feature) in VERSIONED {
        // The newest has the dependency's own name, and an older one that of its feature.
        let is_in_use = [dependency, feature].iter().any(|name| {
            let line = workspace.lines().find(|line| line.starts_with(&format!("{name} = ")));
            let version_is = format!("version = \"{version}");
            line.is_some_and(|line| line.contains(&version_is))
        });
        assert!(is_in_use, "{dependency} {version}");
        let name = version.replace('.', "_");
        assert_eq!(feature, format!("{dependency}_{name}"));
        assert!(module.ends_with(&format!("::v{name}::")), "{module}");
        let of_crate = root().join("crates").join(krate);
        let manifest = fs::read_to_string(of_crate.join("Cargo.toml")).unwrap();
        let lines = |start: &str| {
            let start = format!("{start} = [");
            manifest.lines().filter(|line| line.starts_with(&start)).collect::<Vec<_>>()
        };
        assert_eq!(lines(feature).len(), 1, "{feature}");
        for line in manifest.lines().filter(|line| line.contains(feature)) {
            let is_own = line.starts_with(feature) || line.starts_with("required-features");
            assert!(is_own || line.starts_with('#'), "{line}");
        }
        let code = fs::read_to_string(of_crate.join("src/lib.rs")).unwrap();
        let gate = format!("#[cfg(feature = \"{feature}\")]\npub mod v{name};");
        assert!(code.contains(&gate), "{krate} has no {gate}");
    }
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
fn each_crate_that_matters_is_named_in_one_file() {
    for (src, krate, file) in [
        ("src", "aes_gcm", "suite/rustcrypto.rs"),
        ("src", "chacha20poly1305", "suite/rustcrypto.rs"),
        ("src", "xaes_256_gcm", "suite/rustcrypto.rs"),
        ("src", "aws_lc_rs", "suite/aws_lc.rs"),
        ("src", "ring", "suite/of_ring.rs"),
        ("src", "hkdf", "suite/derive.rs"),
        ("src", "hmac", "observe/audit/key.rs"),
        ("src", "ed25519_dalek", "observe/audit/signature.rs"),
        ("src", "quick_cache", "dek/cache.rs"),
        ("src", "toml", "domain/file.rs"),
        ("crates/aws-kms/src", "aws_sdk_kms", "client.rs"),
        ("crates/aws-kms/src", "aws_config", "sdk.rs"),
        ("crates/google-kms/src", "google_cloud_auth", "credentials.rs"),
        ("crates/azure-key-vault/src", "azure_security_keyvault_keys", "client.rs"),
        ("crates/vault-transit/src", "vaultrs", "endpoints.rs"),
        ("crates/policy/src", "regorus", "rego/engine.rs"),
    ] {
        let naming: Vec<_> = sources_of(src)
            .into_iter()
            .filter(|(_, code)| {
                code.contains(&format!("use {krate}")) || code.contains(&format!(" {krate}::"))
            })
            .map(|(path, _)| path)
            .collect();
        assert_eq!(naming, [file], "{krate}");
    }
}

/// A provider's bytes are in one file too, named `format.rs`, and so are the messages of a separate
/// process, `wire.rs`.
#[test]
fn only_the_formats_take_integers_out_of_bytes() {
    for src in ["src"].into_iter().chain(PROVIDERS) {
        for (path, code) in sources_of(src) {
            let is_wire = (src, path.as_str()) == ("crates/pkcs11/src", "helper/wire.rs");
            if !path.starts_with("format") && !path.ends_with("/format.rs") && !is_wire {
                for way in ["from_le_bytes", "from_ne_bytes", "format::reader"] {
                    assert!(!code.contains(way), "{src}/{path} parses bytes");
                }
                // XAES-256-GCM doubles a block.
                let doubles = (src, path.as_str()) == ("src", "suite/aws_lc.rs");
                assert!(doubles || !code.contains("from_be_bytes"), "{src}/{path} parses bytes");
            }
        }
    }
    for (path, code) in STORES.into_iter().flat_map(sources_of) {
        assert!(!code.contains("from_le_bytes"), "{path} parses bytes");
        assert!(code.contains("#![forbid(unsafe_code)]"), "{path} does not forbid unsafe code");
    }
    for src in PROVIDERS {
        assert!(
            sources_of(src).iter().any(|(path, _)| path == "format.rs"),
            "{src} has no format.rs"
        );
    }
}

/// The lines of a trail may come from an attacker. Nothing else of the trail reads one.
#[test]
fn only_the_verifier_reads_the_lines_of_a_trail() {
    let readers = ["chain.rs", "checkpoint.rs", "verify/mod.rs"];
    let mut naming = Vec::new();
    for (path, code) in sources().into_iter().filter(|(path, _)| path.contains("/audit/")) {
        let path = path.trim_start_matches("observe/audit/").to_owned();
        let parses = code.contains("serde_json::from");
        assert!(!parses || path == "chain.rs", "{path} parses JSON");
        if code.contains("Line::read") || parses {
            naming.push(path);
        }
    }
    naming.sort_unstable();
    assert_eq!(naming, readers);
}

#[test]
fn nothing_that_holds_a_secret_derives_what_would_show_it() {
    let secrets = [
        "Secret32",
        "Dek",
        "UnwrappedDek",
        "BranchKey",
        "Plaintext",
        "AeadKey",
        "Key",
        "WritingDek",
        "ReadingDek",
        "KeyFile",
        "AuditKey",
        "Ed25519Key",
        "VersionKey",
        "SecretText",
        "Token",
        "VaultAuth",
        "Method",
        "Session",
        "Input",
    ];
    let mut seen = 0;
    for (path, code) in ["src"].into_iter().chain(PROVIDERS).chain(STORES).flat_map(sources_of) {
        let lines: Vec<_> = code.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let name = line
                .split("struct ")
                .nth(1)
                .or_else(|| line.split("enum ").nth(1))
                .unwrap_or_default();
            if !secrets.contains(&name.split(|c: char| !c.is_alphanumeric()).next().unwrap()) {
                continue;
            }
            seen += 1;
            let attributes =
                lines[..i].iter().rev().take_while(|line| line.trim_start().starts_with("#["));
            for attribute in attributes {
                assert!(
                    !attribute.contains("derive"),
                    "{path}: {name} derives something: {attribute}"
                );
            }
        }
    }
    assert!(seen >= secrets.len(), "only {seen} of them were found");
}

#[test]
fn what_threads_share_goes_through_the_facade_that_the_schedule_tests_replace() {
    let mut checked = 0;
    for (path, code) in sources() {
        let explored = [
            "dek/",
            "kek/call/",
            "kek/set.rs",
            "kek/candidates.rs",
            "kek/rewrap.rs",
            "kek/scripted.rs",
            "sync/slot.rs",
            "sync/shards.rs",
            "sync/wakers.rs",
        ];
        if explored.iter().any(|explored| path.starts_with(explored)) {
            for name in ["std::sync", "std::thread"] {
                assert!(!code.contains(name), "{path} uses {name}, which no schedule test sees");
            }
            checked += 1;
        }
    }
    assert!(checked > 15, "only {checked} files were seen");
}

/// A default method that a wrapper forgets loses the inner one's better version, and nothing else
/// would notice.
#[test]
fn a_shared_provider_or_store_forwards_every_method_of_its_trait() {
    for (path, name, wrapper, at_least) in [
        ("kek/mod.rs", "KekProvider", "KekProvider for Arc<P>", 10),
        ("store/mod.rs", "KeyStore", "KeyStore for Arc<S>", 8),
        ("policy/mod.rs", "Policy", "Policy for Arc<P>", 2),
    ] {
        let (_, code) = sources().into_iter().find(|(file, _)| file == path).unwrap();
        let methods = |head: &str| {
            let block = code.split(head).nth(1).unwrap().split("\n}").next().unwrap();
            let names = block
                .split("\n    fn ")
                .skip(1)
                .map(|rest| rest.split(['(', '<']).next().unwrap().to_owned());
            names.collect::<Vec<_>>()
        };
        let of_the_trait = methods(&format!("pub trait {name}"));
        assert!(of_the_trait.len() >= at_least, "{of_the_trait:?}");
        assert_eq!(methods(wrapper), of_the_trait);
    }
}
