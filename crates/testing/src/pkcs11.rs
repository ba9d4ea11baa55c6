//! Tokens for PKCS#11: SoftHSM2 from Debian and kryoptic from crates.io, installed once, and a
//! module in front of SoftHSM2 that fails as it is told.
//!
//! A module, its configuration and its login belong to the process. So a test runs in a process of
//! its own ([`alone`]): the test binary, started again with the variables of a new token. What an
//! operator does meanwhile (make, change and destroy keys) is a third process ([`Ground::operate`]),
//! since it logs in for itself. A test binary needs this test in its root:
//!
//! ```ignore
//! #[test]
//! fn the_operators_hand() {
//!     waxseal_testing::pkcs11::operator();
//! }
//! ```
//!
//! A program that is no test does all of that with [`program`].
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::any::type_name;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

use crate::outputs::note_secret;
use crate::python::run;

pub const PIN: &str = "user-pin-1";
pub const SO_PIN: &str = "officer-pin-1";
/// The label of the token, and that of the first key, whose id is 01.
pub const TOKEN: &str = "hsm of the test";
pub const KEY: &str = "orders";

const GROUND: &str = "WAXSEAL_PKCS11_GROUND";
const KIND: &str = "WAXSEAL_PKCS11_KIND";
const OPERATION: &str = "WAXSEAL_PKCS11_OPERATION";
const OPERATOR: &str = "the_operators_hand";
/// What the operator's process prints at its end.
const DONE: &str = "the operator is done";

/// Which module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    SoftHsm,
    Kryoptic,
    /// The module in front of SoftHSM2.
    Shim,
    /// The same in front of kryoptic.
    ShimKryoptic,
}

/// A token in a directory of its own, as its processes see it.
#[derive(Debug)]
pub struct Ground {
    pub kind: Kind,
    pub directory: PathBuf,
}

/// Runs `test` in a process of its own, with a new token that has the key [`KEY`]. `test` has to be a
/// closure in the function of a `#[test]`.
pub fn alone<T: FnOnce(&Ground)>(kind: Kind, test: T) {
    if let Some(directory) = env::var_os(GROUND) {
        let ground = Ground { kind, directory: directory.into() };
        assert_eq!(env::var(KIND).unwrap(), format!("{kind:?}"), "one token for each test");
        return test(&ground);
    }
    let directory = tempfile::tempdir().unwrap();
    let ground = Ground { kind, directory: directory.path().to_owned() };
    ground.furnish();
    let name = type_name::<T>().split_once("::").unwrap().1.trim_end_matches("::{{closure}}");
    let output = ground.process(name).env(GROUND, &ground.directory).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}\n{err}");
    assert!(out.contains("1 passed"), "{name}, in a process of its own: {}", output.status);
}

/// As [`alone`], for the `main` of a program: runs `work` in a process of its own, with a new token
/// that has the key [`KEY`], and returns its exit code.
pub fn program(kind: Kind, work: impl FnOnce(&Ground) -> ExitCode) -> ExitCode {
    if env::var_os(OPERATION).is_some() {
        operator();
        return ExitCode::SUCCESS;
    }
    if let Some(directory) = env::var_os(GROUND) {
        return work(&Ground { kind, directory: directory.into() });
    }
    let directory = tempfile::tempdir().unwrap();
    let ground = Ground { kind, directory: directory.path().to_owned() };
    ground.furnish();
    let status = ground.command().env(GROUND, &ground.directory).status().unwrap();
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Does what an operator was asked for by [`Ground::operate`], in the process made for it. In any
/// other there is nothing to do.
pub fn operator() {
    if let Ok(operation) = env::var(OPERATION) {
        let words: Vec<_> = operation.split('\t').collect();
        let module = Pkcs11::new(env::var("WAXSEAL_PKCS11_MODULE").unwrap()).unwrap();
        module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        done_by_operator(&module, &words);
        println!("{DONE}");
    }
}

impl Ground {
    fn furnish(&self) {
        fs::create_dir(self.directory.join("tokens")).unwrap();
        let tokens = self.tokens();
        let softhsm = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
        fs::write(self.directory.join("softhsm2.conf"), softhsm).unwrap();
        // Two slots, the second for a second token.
        let slot = |number: u32, file: &str| {
            let tokens = tokens.display();
            format!(
                "[[slots]]\nslot = {number}\ndbtype = \"sqlite\"\ndbargs = \"{tokens}/{file}\"\n"
            )
        };
        let kryoptic = slot(7, "token.sql") + &slot(8, "second.sql");
        fs::write(self.directory.join("kryoptic.conf"), kryoptic).unwrap();
        note_secret(PIN);
        note_secret(SO_PIN);
        fs::write(self.pin_file(), format!("{PIN}\n")).unwrap();
        fs::write(self.control_file(), "").unwrap();
        self.operate(&["init", TOKEN]);
        self.key(KEY, "01", "eds");
    }

    pub fn tokens(&self) -> PathBuf {
        self.directory.join("tokens")
    }

    pub fn pin_file(&self) -> PathBuf {
        self.directory.join("pin")
    }

    fn control_file(&self) -> PathBuf {
        self.directory.join("control")
    }

    /// The module that a provider is to use.
    pub fn module(&self) -> PathBuf {
        match self.kind {
            Kind::Shim | Kind::ShimKryoptic => shim(),
            _ => self.token_module(),
        }
    }

    fn token_module(&self) -> PathBuf {
        match self.kind {
            Kind::Kryoptic | Kind::ShimKryoptic => kryoptic(),
            Kind::SoftHsm | Kind::Shim => softhsm(),
        }
    }

    /// This program, as a process that sees this token.
    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(env::current_exe().unwrap())
            .env("SOFTHSM2_CONF", self.directory.join("softhsm2.conf"))
            .env("KRYOPTIC_CONF", self.directory.join("kryoptic.conf"))
            .env("WAXSEAL_SHIM_MODULE", self.token_module())
            .env("WAXSEAL_SHIM_CONTROL", self.control_file())
            .env("WAXSEAL_SHIM_LOG", self.directory.join("log"))
            .env("WAXSEAL_TEST_PIN", PIN)
            .env(KIND, format!("{:?}", self.kind));
        command
    }

    fn process(&self, test: &str) -> Command {
        let mut command = self.command();
        command.args([test, "--exact", "--nocapture", "--include-ignored"]);
        command
    }

    /// Has an operator do this, in a process of its own.
    pub fn operate(&self, words: &[&str]) {
        let output = self
            .process(OPERATOR)
            .env_remove(GROUND)
            .env("WAXSEAL_PKCS11_MODULE", self.token_module())
            .env(OPERATION, words.join("\t"))
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        let err = String::from_utf8_lossy(&output.stderr);
        let is_done = output.status.success() && out.contains(DONE);
        assert!(is_done, "{words:?}: {}\n{out}\n{err}", output.status);
    }

    /// Makes an AES key. `flags`: e (encrypts), d (decrypts), s (sensitive), x (extractable).
    pub fn key(&self, label: &str, id: &str, flags: &str) {
        self.operate(&["key", label, id, flags]);
    }

    /// Imports a key to the token with this label, as an officer gives it out for one duty: `flags` as
    /// for [`key`](Self::key), and nobody can change or copy it.
    pub fn give_out(&self, token: &str, label: &str, flags: &str, value: &[u8; 32]) {
        let value = data_encoding::HEXLOWER.encode(value);
        self.operate(&["give-out", token, label, flags, &value]);
    }

    /// Does what a user of the token can think of to get more out of such a key. Panics if anything
    /// works.
    pub fn tamper(&self, token: &str, label: &str) {
        self.operate(&["tamper", token, label]);
    }

    pub fn destroy(&self, label: &str, id: &str) {
        self.operate(&["destroy", label, id]);
    }

    /// Changes what a key may do: e, d.
    pub fn allow(&self, label: &str, id: &str, flags: &str) {
        self.operate(&["allow", label, id, flags]);
    }

    /// Moves the directory of all tokens away.
    pub fn remove_tokens(&self) {
        fs::rename(self.tokens(), self.directory.join("away")).unwrap();
    }

    pub fn put_tokens_back(&self) {
        let _ = fs::remove_dir_all(self.tokens());
        fs::rename(self.directory.join("away"), self.tokens()).unwrap();
    }

    /// Tells the module in front what to do: see pkcs11_shim.c.
    pub fn control(&self, lines: &str) {
        let new = self.directory.join("control.new");
        fs::write(&new, lines).unwrap();
        fs::rename(new, self.control_file()).unwrap();
    }

    /// How often the module in front was called so.
    pub fn called(&self, function: &str) -> usize {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        log.lines().filter(|line| *line == function).count()
    }
}

fn done_by_operator(module: &Pkcs11, words: &[&str]) {
    let (user, officer) = (AuthPin::new(PIN.into()), AuthPin::new(SO_PIN.into()));
    if let ["init", label] = words {
        let slot = module.get_slots_with_token().unwrap().into_iter();
        let is_new = |slot: &cryptoki::slot::Slot| {
            !module.get_token_info(*slot).unwrap().token_initialized()
        };
        let slot = slot.into_iter().find(is_new).unwrap();
        module.init_token(slot, &officer, label).unwrap();
        let session = session_at(module, label);
        session.login(UserType::So, Some(&officer)).unwrap();
        session.init_pin(&user).unwrap();
        return;
    }
    if let ["pin", old, new] = words {
        let session = session_at(module, TOKEN);
        session.login(UserType::User, Some(&AuthPin::new((*old).into()))).unwrap();
        let (old, new) = (AuthPin::new((*old).into()), AuthPin::new((*new).into()));
        session.set_pin(&old, &new).unwrap();
        return;
    }
    if let ["give-out" | "tamper", token, label, ..] = words {
        let session = session_at(module, token);
        session.login(UserType::User, Some(&user)).unwrap();
        return match words {
            ["give-out", .., flags, value] => give_out(&session, label, flags, value),
            _ => tamper(&session, label),
        };
    }
    if let ["plant", label, id] = words {
        // As somebody does who has no PIN.
        let template = [
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Value(vec![7; 32]),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(vec![id.parse().unwrap()]),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
        ];
        session_at(module, TOKEN).create_object(&template).unwrap();
        return;
    }
    let session = session_at(module, TOKEN);
    session.login(UserType::User, Some(&user)).unwrap();
    let hex = |id: &str| {
        let digits = id.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect::<Vec<_>>()
    };
    let find = |label: &str, id: &str| {
        let label = Attribute::Label(label.as_bytes().to_vec());
        let found = session.find_objects(&[label, Attribute::Id(hex(id))]).unwrap();
        assert_eq!(found.len(), 1, "{words:?}");
        found[0]
    };
    match words {
        ["key", label, id, flags] => {
            let template = [
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::AES),
                Attribute::ValueLen(32.into()),
                Attribute::Label(label.as_bytes().to_vec()),
                Attribute::Id(hex(id)),
                Attribute::Encrypt(flags.contains('e')),
                Attribute::Decrypt(flags.contains('d')),
                Attribute::Sensitive(flags.contains('s')),
                Attribute::Extractable(flags.contains('x')),
            ];
            session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
        }
        ["data", label] => {
            let template = [
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Class(ObjectClass::DATA),
                Attribute::Label(label.as_bytes().to_vec()),
            ];
            session.create_object(&template).unwrap();
        }
        ["destroy", label, id] => session.destroy_object(find(label, id)).unwrap(),
        ["allow", label, id, flags] => {
            let template =
                [Attribute::Encrypt(flags.contains('e')), Attribute::Decrypt(flags.contains('d'))];
            session.update_attributes(find(label, id), &template).unwrap();
        }
        _ => panic!("no operation {words:?}"),
    }
}

fn give_out(session: &Session, label: &str, flags: &str, value: &str) {
    let template = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Value(data_encoding::HEXLOWER.decode(value.as_bytes()).unwrap()),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Id(vec![1]),
        Attribute::Encrypt(flags.contains('e')),
        Attribute::Decrypt(flags.contains('d')),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
    ];
    session.create_object(&template).unwrap();
}

fn tamper(session: &Session, label: &str) {
    let found = session.find_objects(&[Attribute::Label(label.as_bytes().to_vec())]).unwrap();
    let [key] = found[..] else { panic!("{found:?}") };
    let both = [Attribute::Encrypt(true), Attribute::Decrypt(true)];
    let each = [
        vec![Attribute::Encrypt(true)],
        vec![Attribute::Decrypt(true)],
        vec![Attribute::Wrap(true)],
        vec![Attribute::Modifiable(true)],
        vec![Attribute::Extractable(true)],
        vec![Attribute::Sensitive(false)],
    ];
    let mut worked = Vec::new();
    // A value that the key has already changes nothing, and may be accepted.
    let flags = |key| {
        use cryptoki::object::AttributeType::{Decrypt, Encrypt, Extractable, Sensitive, Wrap};
        let asked = [Encrypt, Decrypt, Wrap, Extractable, Sensitive];
        session.get_attributes(key, &asked).unwrap()
    };
    let before = flags(key);
    for change in each {
        let changed = session.update_attributes(key, &change);
        println!("tamper: {change:?}: {changed:?}");
        if flags(key) != before {
            worked.push(format!("{change:?}"));
        }
    }
    for template in [&both[..], &[Attribute::Token(false)]] {
        let copied = session.copy_object(key, template);
        println!("tamper: a copy with {template:?}: {copied:?}");
        if copied.is_ok_and(|copy| flags(copy) != before) {
            worked.push(format!("a copy with {template:?}"));
        }
    }
    let value = session.get_attributes(key, &[cryptoki::object::AttributeType::Value]);
    if value.is_ok_and(|value| !value.is_empty()) {
        worked.push("reading it".to_owned());
    }
    let template = [
        Attribute::Token(false),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Wrap(true),
    ];
    if let Ok(wrapper) = session.generate_key(&Mechanism::AesKeyGen, &template) {
        for mechanism in [Mechanism::AesKeyWrap, Mechanism::AesKeyWrapPad] {
            if session.wrap_key(&mechanism, wrapper, key).is_ok() {
                worked.push(format!("wrapping it out by {mechanism:?}"));
            }
        }
    }
    assert!(worked.is_empty(), "the token let a user do this: {worked:?}");
}

fn session_at(module: &Pkcs11, label: &str) -> Session {
    let slots = module.get_slots_with_token().unwrap();
    let is_it =
        |slot: &cryptoki::slot::Slot| module.get_token_info(*slot).unwrap().label() == label;
    module.open_rw_session(slots.into_iter().find(is_it).unwrap()).unwrap()
}

/// Does what other code of this process may do with a module: it logs out, or ends the module.
pub fn interfere(module: &Path, ends: bool) {
    let module = Pkcs11::new(module).unwrap();
    if ends {
        return module.finalize().unwrap();
    }
    let slots = module.get_slots_with_token().unwrap();
    let is_it =
        |slot: &cryptoki::slot::Slot| module.get_token_info(*slot).unwrap().label() == TOKEN;
    let session = module.open_ro_session(slots.into_iter().find(is_it).unwrap()).unwrap();
    session.logout().unwrap();
}

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

/// The module of kryoptic, built once from crates.io. That takes about a minute and a half.
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
        .args(["build", "--locked", "--release", "--no-default-features"])
        .args(["--features", "minimal,kryoptic-lib/dynamic,ossl/dynamic"])
        .arg("--target-dir")
        .arg(home.canonicalize().unwrap().join("target"))
        .current_dir(&source));
    let built = home.join("target/release/libkryoptic_pkcs11.so");
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
