//! Terminals: plaintext is not written there, and the progress bar is.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{DONE, Place, REFUSED, plaintext};

/// A terminal: what is written to it, and the end that a process gets.
fn terminal() -> (File, File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let name = PathBuf::from(OsString::from(OsStr::from_bytes(name.as_bytes())));
    let end = File::options().read(true).write(true).open(name).unwrap();
    (File::from(master), end)
}

/// Runs it with a terminal as standard output or error. Returns what came there.
fn in_terminal(mut command: Command, is_error: bool) -> (Option<i32>, String) {
    let (mut master, end) = terminal();
    match is_error {
        true => command.stderr(end).stdout(Stdio::null()),
        false => command.stdout(end).stderr(Stdio::null()),
    };
    // A dumb one has no bar, and a variable may forbid it.
    command.env("TERM", "xterm").env_remove("NO_COLOR");
    let mut process = command.spawn().unwrap();
    // The ends that are open here.
    drop(command);
    let mut shown = Vec::new();
    // It ends by an error when no process has the terminal any more.
    let _ = master.read_to_end(&mut shown);
    (process.wait().unwrap().code(), String::from_utf8_lossy(&shown).into_owned())
}

#[test]
fn nothing_is_written_to_a_terminal_without_being_told() {
    let place = Place::new();
    fs::write(place.path("a"), "secret text").unwrap();
    assert_eq!(place.run("encrypt", &["a", "sealed"]).0, DONE);
    for (what, from) in [("decrypt", "sealed"), ("encrypt", "a")] {
        let (code, shown) = in_terminal(place.with_key(what, &[from, "-"]), false);
        assert_eq!((code, &*shown), (REFUSED, ""), "{what}");
    }
    let told = place.with_key("decrypt", &["--terminal", "sealed", "-"]);
    assert_eq!(in_terminal(told, false), (DONE, "secret text".to_owned()));
}

#[test]
fn the_progress_bar_is_drawn_on_a_terminal_only() {
    let place = Place::new();
    fs::create_dir(place.path("plain")).unwrap();
    for name in ["a", "b"] {
        fs::write(place.path("plain").join(name), plaintext(3 << 20)).unwrap();
    }
    let (code, shown) = in_terminal(place.with_key("encrypt", &["plain", "sealed"]), true);
    assert_eq!(code, DONE);
    assert!(shown.contains("/6.00 MiB ["), "{shown:?}");
    assert_eq!(place.run("decrypt", &["sealed", "back"]), (DONE, String::new()));
}
