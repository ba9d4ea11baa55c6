//! Searches what all tests printed for the secrets that they noted.
//!
//!     waxseal-search-outputs SECRETS OUTPUT...
//!
//! One of them, the control, is printed by a test on purpose. If that one is not found, or another
//! one is, the search fails.
#![allow(clippy::unwrap_used)]

use std::process::ExitCode;
use std::{env, fs};

use waxseal_testing::outputs::{CONTROL, Search};

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let noted = fs::read_to_string(arguments.next().unwrap()).unwrap();
    let search = Search::new(&noted);
    let (mut bytes, mut controls, mut found) = (0, 0, 0);
    for path in arguments {
        let output = fs::read(&path).unwrap();
        bytes += output.len();
        for (at, form, before) in search.found_in(&output) {
            if before.ends_with(CONTROL) {
                controls += 1;
                continue;
            }
            found += 1;
            eprintln!("a secret at byte {at} of {path}, {form}, behind {before:?}");
        }
    }
    println!(
        "{bytes} bytes of output searched for {} secrets: {found} found, the control {controls} times",
        noted.lines().count()
    );
    if found == 0 && controls > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
