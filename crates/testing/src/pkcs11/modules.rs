//! The modules: SoftHSM2 from Debian and kryoptic from crates.io, installed once, and the one in
//! front of them that fails on command.
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::python::run;

fn locked(name: &str) -> File {
    fs::create_dir_all(crate::target_directory()).unwrap();
    let lock = File::create(crate::target_directory().join(name)).unwrap();
    lock.lock().unwrap();
    lock
}

fn apt(arguments: &[&str]) -> bool {
    let as_root: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["sudo", "-n"] };
    let line = [as_root, &["apt-get", "--quiet"], arguments].concat();
    let output = Command::new(line[0])
        .args(&line[1..])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir(crate::target_directory())
        .output();
    let is_done = output.as_ref().is_ok_and(|output| output.status.success());
    if !is_done {
        println!("{line:?}: {output:?}");
    }
    is_done
}

/// Installs packages of Debian, unless `is_there`. Panics, and so fails the test, when that fails.
fn debian(packages: &[&str], is_there: impl Fn() -> bool) {
    if is_there() {
        return;
    }
    let install = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    // Two tries: another process of the machine may hold apt's lock.
    let is_installed = apt(&install) || (apt(&["update"]) && apt(&install));
    assert!(is_installed && is_there(), "{packages:?} cannot be installed: see above");
}

/// The module of SoftHSM2.
pub fn softhsm() -> PathBuf {
    const PLACES: [&str; 3] = [
        "usr/lib/softhsm/libsofthsm2.so",
        "usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "usr/lib64/pkcs11/libsofthsm2.so",
    ];
    let unpacked = crate::target_directory().join("softhsm");
    let find = || {
        let roots = [Path::new("/"), &unpacked];
        let mut places = roots.iter().flat_map(|root| PLACES.iter().map(|place| root.join(place)));
        places.find(|place| place.exists())
    };
    let _lock = locked("softhsm.lock");
    if let Some(module) = find() {
        return module.canonicalize().unwrap();
    }
    let install = ["install", "--yes", "--no-install-recommends", "libsofthsm2"];
    let is_installed = apt(&install) || (apt(&["update"]) && apt(&install));
    if !is_installed {
        // Without root the package can be unpacked at least.
        fs::create_dir_all(&unpacked).unwrap();
        run(Command::new("apt-get").args(["download", "libsofthsm2"]).current_dir(&unpacked));
        let packages = fs::read_dir(&unpacked).unwrap().map(|entry| entry.unwrap().path());
        for package in packages.filter(|path| path.extension().is_some_and(|end| end == "deb")) {
            run(Command::new("dpkg").arg("-x").arg(package).arg(&unpacked));
        }
    }
    find().expect("libsofthsm2 cannot be installed").canonicalize().unwrap()
}

const KRYOPTIC: &str = "1.5.4";

/// The module of kryoptic, built once from crates.io. That takes about a minute. It is not
/// optimised: the cryptography is OpenSSL's.
pub fn kryoptic() -> PathBuf {
    let home = crate::target_directory().join("kryoptic");
    let _lock = locked("kryoptic.lock");
    let module = home.join(format!("libkryoptic-{KRYOPTIC}.so"));
    if module.exists() {
        return module.canonicalize().unwrap();
    }
    let has = |package: &str| {
        let output = Command::new("dpkg").args(["--status", package]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let packages = ["libssl-dev", "libsqlite3-dev", "libclang-dev", "pkg-config"];
    debian(&packages, || packages.iter().all(|package| has(package)));
    // A package that needs it has cargo fetch and check it.
    let needs_it = home.join("fetch");
    fs::create_dir_all(needs_it.join("src")).unwrap();
    fs::write(needs_it.join("src/lib.rs"), "").unwrap();
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[workspace]\n\
         [dependencies]\nkryoptic = {{ version = \"={KRYOPTIC}\", default-features = false }}\n"
    );
    fs::write(needs_it.join("Cargo.toml"), manifest).unwrap();
    let metadata = run(cargo().args(["metadata", "--format-version", "1"]).current_dir(&needs_it));
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "kryoptic").unwrap();
    let fetched = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
    let source = home.join("source");
    let _ = fs::remove_dir_all(&source);
    run(Command::new("cp").arg("-r").arg(fetched).arg(&source));
    // It lies within this workspace, and is not of it.
    let manifest = source.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(manifest, format!("{text}\n[workspace]\n")).unwrap();
    run(cargo()
        .args(["--config", "profile.dev.debug=false", "build", "--locked", "--no-default-features"])
        .args(["--features", "minimal,kryoptic-lib/dynamic,ossl/dynamic"])
        .arg("--target-dir")
        .arg(home.canonicalize().unwrap().join("target"))
        .current_dir(&source));
    let built = home.join("target/debug/libkryoptic_pkcs11.so");
    fs::rename(built, &module).unwrap();
    // Only the module is needed from now on.
    let _ = fs::remove_dir_all(home.join("target"));
    module.canonicalize().unwrap()
}

/// Cargo without what the cargo that runs this test tells it.
fn cargo() -> Command {
    let cargo = env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from);
    let mut command = Command::new(&cargo);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let is_told = ["CARGO_", "RUSTC", "RUSTFLAGS", "RUSTDOC"];
        if is_told.iter().any(|prefix| text.starts_with(prefix)) && text != "CARGO_HOME" {
            command.env_remove(&name);
        }
    }
    // Crates may come with a file that names a toolchain. Rustup would follow it, and install or
    // update that one.
    command.env("RUSTUP_AUTO_INSTALL", "0");
    let rustc = cargo.with_file_name("rustc");
    if rustc.is_absolute() && rustc.exists() {
        command.env("RUSTC", rustc);
    }
    command
}

/// The module in front of SoftHSM2, compiled when its source is newer.
pub fn shim() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("pkcs11_shim.c");
    let module = crate::target_directory().join("libwaxseal_pkcs11_shim.so");
    let _lock = locked("pkcs11-shim.lock");
    let age = |path: &Path| fs::metadata(path).and_then(|about| about.modified()).ok();
    if age(&module).is_none_or(|built| age(&source).is_none_or(|source| source > built)) {
        let new = module.with_extension("new");
        run(Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wno-deprecated-non-prototype", "-o"])
            .args([&new, &source])
            .args(["-ldl", "-lpthread"]));
        fs::rename(new, &module).unwrap();
    }
    module.canonicalize().unwrap()
}
