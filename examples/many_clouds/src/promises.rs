//! What the library promises, compared with what was seen.

use std::process::ExitCode;

/// Counts what held, and keeps what did not.
#[derive(Default)]
pub(crate) struct Promises {
    held: usize,
    broken: Vec<String>,
}

impl Promises {
    pub(crate) fn hold(&mut self, holds: bool, promise: impl Into<String>) {
        match holds {
            true => self.held += 1,
            false => self.broken.push(promise.into()),
        }
    }

    /// Prints the sum. The exit code says whether all held.
    pub(crate) fn tell(&self) -> ExitCode {
        println!("\n{} promises held, {} did not", self.held, self.broken.len());
        for broken in &self.broken {
            println!("  NOT AS PROMISED: {broken}");
        }
        if self.broken.is_empty() && self.held > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_promise_or_none_at_all_is_a_failure() {
        let held = |all: &[bool]| {
            let mut promises = Promises::default();
            all.iter().for_each(|holds| promises.hold(*holds, "it"));
            promises.tell()
        };
        assert_eq!(held(&[true, true]), ExitCode::SUCCESS);
        assert_eq!(held(&[true, false, true]), ExitCode::FAILURE);
        assert_eq!(held(&[]), ExitCode::FAILURE);
    }
}
