//! Writes the policies and grants that separate the duties of data domains.
//!
//!     cargo run -p waxseal-duties -- examples/duties/domains.toml examples/duties/duties.toml
//!     cargo run -p waxseal-duties -- examples/duties/domains.toml examples/duties/duties.toml reader
//!
//! Keep what it writes under version control, and review the difference.

use std::error::Error;
use std::fs;
use std::process::ExitCode;

const HELP: &str = "waxseal-duties DOMAIN_FILE DUTIES_FILE [WORD...]

Writes every document whose name has all the words: a domain, a service (aws-kms, vault-transit,
google-kms, azure-key-vault, postgres), and key-policy, service-control-policy, alarm, assignments,
enabled, a role or the name of a holder.";

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("waxseal-duties: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let [domains, duties, words @ ..] = arguments else {
        println!("{HELP}");
        return Ok(ExitCode::FAILURE);
    };
    let read = |path: &String| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let documents = waxseal_duties::documents(&read(domains)?, &read(duties)?)?;
    let mut found = ExitCode::FAILURE;
    for document in documents {
        let has = |word: &String| document.name.split(' ').any(|part| part == word);
        if words.iter().all(has) {
            println!("# {}\n\n{}", document.name, document.text);
            found = ExitCode::SUCCESS;
        }
    }
    Ok(found)
}
