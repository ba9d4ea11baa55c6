//! What the library says of itself in the course of the example.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use waxseal::{DekId, Event, Observer, inspect};

/// What the library says of itself: one line for each call to KMS.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<Pages>>);

#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// What the next call is about, where the DEK has a name already.
    pub(crate) about: Option<DekId>,
    pub(crate) calls: Vec<Line>,
    pub(crate) served_stale: usize,
}

#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) at: SystemTime,
    pub(crate) dek: Option<DekId>,
    pub(crate) operation: String,
    pub(crate) outcome: String,
    pub(crate) elapsed: Duration,
}

impl Journal {
    pub(crate) fn about(&self, sealed: &[u8]) -> Result<(), waxseal::Error> {
        self.pages().about = Some(inspect(sealed)?.dek_id);
        Ok(())
    }

    pub(crate) fn pages(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Observer for Journal {
    fn event(&self, event: &Event<'_>) {
        let mut pages = self.pages();
        match event {
            Event::Called { operation, kind, elapsed, .. } => {
                let outcome = kind.map_or("ok", |kind| kind.as_str()).to_owned();
                let (at, dek, operation) =
                    (SystemTime::now(), pages.about, format!("{operation:?}"));
                pages.calls.push(Line { at, dek, operation, outcome, elapsed: *elapsed });
            }
            // A DEK that was made a moment ago has its name only now.
            Event::Wrapped { dek_id, .. } => {
                if let Some(line) = pages.calls.last_mut().filter(|line| line.dek.is_none()) {
                    line.dek = Some(**dek_id);
                }
            }
            Event::ServedStale { .. } => pages.served_stale += 1,
            _ => {}
        }
    }
}
