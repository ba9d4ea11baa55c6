//! A Python virtual environment under `target/`, made once for all tests.
#![allow(dead_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The interpreter of what reads the bytes a second time. Panics, and so fails the test, when its
/// environment cannot be made.
pub fn second_reader() -> PathBuf {
    interpreter_in("second-reader", &crate::top().join("tests/second_reader/requirements.txt"))
}

/// The interpreter of an environment of this name, that has what `requirements` lists.
pub fn interpreter_in(name: &str, requirements: &Path) -> PathBuf {
    interpreter_with(name, &fs::read_to_string(requirements).unwrap())
}

/// The same, with these packages: the lines of a requirements file.
pub fn interpreter_with(name: &str, packages: &str) -> PathBuf {
    let install = |directory: &Path, python: &Path| {
        let requirements = directory.join("requirements.txt");
        fs::write(&requirements, packages).unwrap();
        run(Command::new(python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(&requirements));
    };
    filled_once(name, packages, install).join("venv/bin/python")
}

/// A directory of this name with an environment in it, that `fill` was given once for what is in it
/// now, with the environment's interpreter.
pub fn filled_once(name: &str, contents: &str, fill: impl FnOnce(&Path, &Path)) -> PathBuf {
    let directory = crate::target_directory().join(name);
    fs::create_dir_all(&directory).unwrap();
    let lock = File::create(directory.join("lock")).unwrap();
    lock.lock().unwrap();
    let (python, installed) = (directory.join("venv/bin/python"), directory.join("installed"));
    if fs::read_to_string(&installed).is_ok_and(|done| done == contents) && python.exists() {
        return directory;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(directory.join("venv")));
    fill(&directory, &python);
    fs::write(installed, contents).unwrap();
    directory
}

/// Runs a command and returns what it printed. Panics when it fails.
pub fn run(command: &mut Command) -> String {
    let output =
        command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
