//! Answers an auditor's questions from an audit trail.
//!
//!     cargo build --release -p waxseal-examples --features audit --example audit_report
//!     target/release/examples/audit_report demo /tmp/audit
//!     target/release/examples/audit_report used /tmp/audit
//!
//! The trail is verified while it is read. An answer from a trail with a fault says so.

mod demo;
mod questions;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use questions::{Question, answer};

const HELP: &str =
    "audit_report QUESTION DIRECTORY [--public-key HEX] [--checkpoints FILE] [--first-file N]

keys       which KEKs protect which contexts, and since when
used       who read and wrote how many messages of which context
callers    on whose behalf they were read and written
decided    what the policies decided, about whom, by which revision
refused    who was refused, when, and why
rotated    which DEKs and which versions of KEKs came when
old-keys   which DEKs still hang on which version of which KEK
erased     what was erased, and how that is known
operated   what was configured, revoked, started and shut down
outages    what ran past its age, and what failed meanwhile
touched    has the trail been touched
gaps       what the trail does not have

demo       makes a trail to ask these of";

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("audit_report: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let [question, directory, options @ ..] = arguments else {
        println!("{HELP}");
        return Ok(ExitCode::FAILURE);
    };
    let directory = Path::new(directory);
    if question == "demo" {
        let public = demo::make(directory)?;
        println!(
            "made a trail in {}; the public key of its checkpoints: {public}",
            directory.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let question: Question = question.parse()?;
    let (mut public_key, mut checkpoints, mut first_file) = (None, None, 1);
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--public-key" => public_key = Some(value.clone()),
            "--checkpoints" => checkpoints = Some(PathBuf::from(value)),
            "--first-file" => first_file = value.parse()?,
            other => return Err(format!("{other} is not an option").into()),
        }
    }
    let (text, is_whole) =
        answer(question, directory, public_key.as_deref(), checkpoints.as_deref(), first_file)?;
    print!("{text}");
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
