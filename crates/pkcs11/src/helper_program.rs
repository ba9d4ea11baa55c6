//! The helper program, started for each session, and the pause after its processes died.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::errors::Failure;

/// The pause before a helper is started again after two that died without an answer in between. It
/// doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The program of a provider, and how many of its processes died in a row.
pub(crate) struct Helper {
    pub(crate) program: PathBuf,
    pub(crate) deadline: Duration,
    /// The variables that a helper gets. None means all.
    pub(crate) variables: Vec<String>,
    /// The variable with the PIN, which a helper does not get.
    pub(crate) hidden: Option<String>,
    deaths: Mutex<Deaths>,
}

#[derive(Default)]
struct Deaths {
    in_a_row: u32,
    until: Option<Instant>,
}

impl Helper {
    pub(crate) fn new(
        program: PathBuf,
        deadline: Duration,
        variables: Vec<String>,
        hidden: Option<String>,
    ) -> Self {
        Self { program, deadline, variables, hidden, deaths: Mutex::default() }
    }

    /// Records a process that died without an answer.
    pub(crate) fn died(&self) {
        let mut deaths = self.deaths.lock().unwrap_or_else(PoisonError::into_inner);
        deaths.in_a_row = deaths.in_a_row.saturating_add(1);
        // After the first death, the next call starts another at once.
        let Some(doublings) = deaths.in_a_row.checked_sub(2) else { return };
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_PAUSE);
        deaths.until = Instant::now().checked_add(pause);
    }

    /// Records an answer.
    pub(crate) fn is_well(&self) {
        let mut deaths = self.deaths.lock().unwrap_or_else(PoisonError::into_inner);
        *deaths = Deaths::default();
    }

    /// # Errors
    /// Unavailable, during the pause after processes that died.
    pub(crate) fn may_start(&self) -> Result<(), Failure> {
        let deaths = self.deaths.lock().unwrap_or_else(PoisonError::into_inner);
        if deaths.until.is_some_and(|until| Instant::now() < until) {
            let text = format!(
                "{} helper processes died one after the other; none is started for a while",
                deaths.in_a_row
            );
            return Err(Failure::unavailable(text).without_asking());
        }
        Ok(())
    }
}

impl fmt::Debug for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Helper({}, {:?})", self.program.display(), self.deadline)
    }
}
