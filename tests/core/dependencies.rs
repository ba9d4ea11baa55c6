//! What a crate of the workspace brings along: a provider sees the public interface of the library
//! only, and a build with one provider has nothing of another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const PROVIDERS: [&str; 5] = [
    "waxseal-aws-kms",
    "waxseal-azure-key-vault",
    "waxseal-google-kms",
    "waxseal-pkcs11",
    "waxseal-vault-transit",
];
const STORES: [&str; 3] = ["waxseal-dynamodb", "waxseal-object-store", "waxseal-sqlx"];
/// The crates that are one service's client, by the beginning of their names, and who may bring
/// them.
const CLIENTS: [(&str, &[&str]); 12] = [
    ("aws-sdk-kms", &["waxseal-aws-kms"]),
    ("aws-sdk-dynamodb", &["waxseal-dynamodb"]),
    ("aws-config", &["waxseal-aws-kms", "waxseal-dynamodb"]),
    ("aws-smithy", &["waxseal-aws-kms", "waxseal-dynamodb"]),
    ("azure_", &["waxseal-azure-key-vault"]),
    ("typespec", &["waxseal-azure-key-vault"]),
    ("google-cloud", &["waxseal-google-kms"]),
    ("cryptoki", &["waxseal-pkcs11"]),
    ("vaultrs", &["waxseal-vault-transit"]),
    ("rustify", &["waxseal-vault-transit"]),
    ("sqlx", &["waxseal-sqlx"]),
    ("object_store", &["waxseal-object-store"]),
];

/// The workspace as cargo resolves it, with all features.
struct Workspace(Value);

impl Workspace {
    fn read() -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--locked", "--all-features", "--format-version", "1"])
            .current_dir(waxseal_testing::top())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(serde_json::from_slice(&output.stdout).unwrap())
    }

    fn packages(&self) -> BTreeMap<&str, &Value> {
        let packages = self.0["packages"].as_array().unwrap();
        packages.iter().map(|package| (package["id"].as_str().unwrap(), package)).collect()
    }

    fn member(&self, name: &str) -> &Value {
        let is_it = |package: &&Value| package["name"] == name && package["source"].is_null();
        let packages = self.packages();
        packages.into_values().find(|package| is_it(package)).unwrap_or_else(|| panic!("{name}"))
    }

    /// The names of all crates that a build of this one has, on any system. Not those of its tests.
    fn built_for(&self, name: &str) -> BTreeSet<&str> {
        let packages = self.packages();
        let nodes = self.0["resolve"]["nodes"].as_array().unwrap();
        let nodes: BTreeMap<_, _> =
            nodes.iter().map(|node| (node["id"].as_str().unwrap(), node)).collect();
        let mut left = vec![self.member(name)["id"].as_str().unwrap()];
        let mut seen = BTreeSet::new();
        while let Some(id) = left.pop() {
            if !seen.insert(id) {
                continue;
            }
            for dependency in nodes[id]["deps"].as_array().unwrap() {
                let mut kinds = dependency["dep_kinds"].as_array().unwrap().iter();
                if kinds.any(|kind| kind["kind"] != "dev") {
                    left.push(dependency["pkg"].as_str().unwrap());
                }
            }
        }
        seen.into_iter().map(|id| packages[id]["name"].as_str().unwrap()).collect()
    }
}

#[test]
fn a_build_with_one_provider_has_nothing_of_another() {
    let workspace = Workspace::read();
    for name in PROVIDERS.into_iter().chain(STORES).chain(["waxseal"]) {
        let built = workspace.built_for(name);
        assert!(built.contains("waxseal"), "{name}");
        for (client, allowed) in CLIENTS {
            let brought = built.iter().find(|built| built.starts_with(client));
            match allowed.contains(&name) {
                true => assert!(brought.is_some(), "{name} has no {client} any more"),
                false => assert_eq!(brought, None, "{name} brings it along"),
            }
        }
        let of_workspace: Vec<_> = built
            .iter()
            .filter(|built| built.starts_with("waxseal") && ![name, "waxseal"].contains(built))
            .collect();
        assert!(of_workspace.is_empty(), "{name} brings {of_workspace:?} along");
    }
}

#[test]
fn the_library_alone_brings_no_client_and_no_http() {
    let workspace = Workspace::read();
    let built = workspace.built_for("waxseal");
    for name in ["http", "hyper", "reqwest", "rustls", "h2", "cryptoki"] {
        assert!(!built.contains(name), "{name}");
    }
}

/// Rust lets a crate see what is public. So nothing that is meant for the workspace alone may be.
#[test]
fn a_provider_or_store_sees_what_a_third_party_sees() {
    let workspace = Workspace::read();
    for name in PROVIDERS.into_iter().chain(STORES) {
        let package = workspace.member(name);
        let dependencies = package["dependencies"].as_array().unwrap();
        let on_us = dependencies.iter().filter(|on| {
            on["kind"].is_null() && on["name"].as_str().unwrap().starts_with("waxseal")
        });
        let on_us: Vec<_> = on_us.collect();
        assert_eq!(on_us.len(), 1, "{name} depends on more than the library");
        assert_eq!(on_us[0]["name"], "waxseal");
        let features = on_us[0]["features"].as_array().unwrap();
        assert!(!features.contains(&"test-util".into()), "{name} ships what is for tests");
        // No feature of the library that only the workspace would know of.
        let known = &workspace.member("waxseal")["features"];
        assert!(features.iter().all(|feature| known.get(feature.as_str().unwrap()).is_some()));
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        for (path, code) in rust_files(&manifest.with_file_name("src")) {
            let included =
                code.split("#[path = \"").skip(1).filter_map(|rest| rest.split('"').next());
            let mut included = included.filter(|file| file.contains("..") || file.starts_with('/'));
            let leaves =
                included.next().or_else(|| code.contains("include!(").then_some("include!"));
            assert_eq!(leaves, None, "{} takes source from elsewhere", path.display());
        }
    }
    for (path, code) in rust_files(&waxseal_testing::top().join("src")) {
        let hides = code.contains("doc(hidden)") || code.contains("pub fn __");
        assert!(!hides, "{} has something public that the documentation hides", path.display());
    }
}

fn rust_files(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = fs::read_to_string(&path).unwrap();
            files.push((path, code));
        }
    }
    files
}
