//! Encrypts and decrypts files, trees of files and pipes.
//!
//! ```sh
//! cargo run --release -p waxseal-files -- key my.key
//! cargo run --release -p waxseal-files -- encrypt --key my.key --context tenant=acme photos sealed
//! cargo run --release -p waxseal-files -- decrypt --key my.key --context tenant=acme sealed restored
//! tar c photos | cargo run --release -p waxseal-files -- encrypt --key my.key - - > photos.sealed
//! ```
//!
//! An interrupted run continues when it is started again. `arguments` reads the command line,
//! `tree` walks, `entry` has one file of a tree, `pipe` what comes and goes by a pipe.
#![forbid(unsafe_code)]

mod arguments;
mod entry;
mod pipe;
mod tree;

use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use waxseal::kek::local::LocalKek;
use waxseal::{Envelope, Limits};

use arguments::{Arguments, Command, Place};

/// All is done.
const DONE: u8 = 0;
/// Something failed, and standard error says what. The rest is done.
const FAILED: u8 = 1;
/// The command line asks for what is not allowed. Nothing was done.
const REFUSED: u8 = 2;

/// Why a run did not do all that it should.
enum Stop {
    /// The command line is wrong, or asks for what needs an option.
    Refused(String),
    Failed(String),
    /// So many files, and each was reported.
    Reported(usize),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(with_causes(&error))
    }
}

/// A path as it is shown to people: names in a sealed tree may be anybody's.
fn shown(path: &Path) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    path.display().to_string().chars().map(escaped).collect()
}

/// The text of an error and of its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn main() -> ExitCode {
    let code = match Arguments::read(std::env::args_os().skip(1)) {
        Ok(None) => {
            println!("{}", arguments::HELP);
            DONE
        }
        Ok(Some(arguments)) => outcome(run(&arguments)),
        Err(problem) => outcome(Err(Stop::Refused(problem))),
    };
    ExitCode::from(code)
}

fn outcome(result: Result<(), Stop>) -> u8 {
    match result {
        Ok(()) => DONE,
        Err(Stop::Refused(problem)) => {
            eprintln!("files: {problem}\nfiles: `files --help` shows the options");
            REFUSED
        }
        Err(Stop::Failed(problem)) => {
            eprintln!("files: {problem}");
            FAILED
        }
        Err(Stop::Reported(files)) => {
            eprintln!("files: {files} could not be done");
            FAILED
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Stop> {
    let key = &arguments.key;
    if arguments.command == Command::Key {
        if key.exists() {
            return Err(Stop::Refused(format!("{} exists", shown(key))));
        }
        LocalKek::open_or_create(key, "files")?;
        return Ok(());
    }
    // A pipe may be slow: the default of an hour is for uploads.
    let limits = Limits::default().max_stream_age(std::time::Duration::from_secs(23 * 3600));
    let kek = LocalKek::open(key)?;
    let envelope = Envelope::builder().wrap_with(kek).limits(limits).build()?;
    match (&arguments.source, &arguments.target) {
        (Place::Path(source), Place::Path(target)) if source.is_dir() => {
            tree::run(arguments, &envelope, source, target)
        }
        // A missing one is told by the library.
        (Place::Path(source), Place::Path(target)) if source.is_file() || !source.exists() => {
            entry::whole_file(arguments, &envelope, source, target)
        }
        // By a name, too, as a shell gives one to `<(command)`.
        _ => pipe::run(arguments, &envelope),
    }
}

/// A progress bar over this many bytes, or without an end. It is drawn on standard error, and only
/// where that is a terminal.
fn bar(bytes: Option<u64>) -> ProgressBar {
    let target = match stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let (bar, template) = match bytes {
        Some(bytes) => (
            ProgressBar::with_draw_target(Some(bytes), target),
            "{bytes}/{total_bytes} [{bar:30}] {bytes_per_sec}, {eta} left {wide_msg}",
        ),
        None => (ProgressBar::with_draw_target(None, target), "{bytes} {bytes_per_sec} {elapsed}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
