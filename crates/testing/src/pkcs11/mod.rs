//! Tokens for PKCS#11: SoftHSM2 from Debian and kryoptic from crates.io, installed once, and a
//! module in front of SoftHSM2 that fails on command.
//!
//! A module, its configuration and its login belong to the process. So a test runs in its own
//! process ([`alone`]): the test binary, started again with the variables of a new token. What an
//! operator does meanwhile (make, change and destroy keys) is a third process
//! ([`Ground::operate`]), since it logs in for itself. A test binary needs this test in its root:
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

mod modules;
mod operator;

use std::any::type_name;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};

pub use modules::{kryoptic, shim, softhsm};
pub use operator::interfere;

use crate::outputs::note_secret;

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

/// A token in its own directory, as its processes see it.
#[derive(Debug)]
pub struct Ground {
    pub kind: Kind,
    pub directory: PathBuf,
}

/// Runs `test` in a separate process, with a new token that has the key [`KEY`]. `test` has to be a
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

/// As [`alone`], for the `main` of a program: runs `work` in its own process, with a new token that
/// has the key [`KEY`], and returns its exit code.
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
        operator::done_by_operator(&module, &words);
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

    /// Has an operator do this, in its own process.
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

    /// Imports a key to the token with this label, as an officer gives it out for one duty: `flags`
    /// as for [`key`](Self::key), and nobody can change or copy it.
    pub fn give_out(&self, token: &str, label: &str, flags: &str, value: &[u8; 32]) {
        let value = data_encoding::HEXLOWER.encode(value);
        self.operate(&["give-out", token, label, flags, &value]);
    }

    /// Imports a key with these attributes, by their names in PKCS#11.
    pub fn give_out_as(
        &self,
        token: &str,
        label: &str,
        attributes: &[(&str, bool)],
        value: &[u8; 32],
    ) {
        let attributes: Vec<_> =
            attributes.iter().map(|(name, is_set)| format!("{name}={is_set}")).collect();
        let value = data_encoding::HEXLOWER.encode(value);
        self.operate(&["give-out-as", token, label, &attributes.join(","), &value]);
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
