//! The thread of a trail: it takes records from the queue to the ledger, and retries until they are
//! written.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::draft::Draft;
use super::ledger::Ledger;
use super::queue::{Queue, Work};

/// How often the thread checks whether a checkpoint is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub(super) struct Writer {
    queue: Arc<Queue>,
    ledger: Ledger,
}

/// Records that the thread has ended, even if it panicked, so that nobody waits for it in vain.
struct Ending {
    queue: Arc<Queue>,
    lost: u64,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.queue.ended(self.lost);
    }
}

/// The time is up and the record was not written.
struct Lost;

impl Writer {
    pub(super) fn new(queue: Arc<Queue>, ledger: Ledger) -> Self {
        Self { queue, ledger }
    }

    /// Writes until the trail ends.
    pub(super) fn run(mut self) {
        self.queue.begin();
        let mut ending = Ending { queue: self.queue.clone(), lost: 0 };
        ending.lost = self.write_until_the_end();
        // A caller that waits for the end may start the next trail in this directory, which is
        // locked.
        drop(self);
        drop(ending);
    }

    /// Returns how many events are lost because the time was up.
    fn write_until_the_end(&mut self) -> u64 {
        loop {
            let work = self.queue.take(LOOK_EVERY);
            let is_last = work.is_last;
            let all = u64::try_from(work.drafts.len()).unwrap_or(u64::MAX);
            let mut written = 0;
            if self.write(work, &mut written).is_err() {
                return all.saturating_sub(written);
            }
            if is_last && self.queue.seal() {
                // What cannot be written now is lost, and the next start sees that the end is
                // missing.
                let _ = self.end();
                return 0;
            }
        }
    }

    fn write(&mut self, work: Work, written: &mut u64) -> Result<(), Lost> {
        let (mut is_synced, drafts) = (work.drafts.is_empty() && !work.is_flushed, work.drafts);
        for draft in &drafts {
            self.append(draft)?;
            self.queue.written();
            *written = written.saturating_add(1);
        }
        if let Some(dropped) = work.dropped {
            self.until_written(|ledger| ledger.append_dropped(&dropped))?;
            is_synced = false;
        }
        self.until_written(Ledger::checkpoint_if_due)?;
        if !is_synced {
            self.until_written(|ledger| ledger.sync())?;
        }
        self.queue.done(*written);
        Ok(())
    }

    fn append(&mut self, draft: &Draft) -> Result<(), Lost> {
        self.until_written(|ledger| ledger.append(draft))?;
        self.until_written(Ledger::checkpoint_if_due)
    }

    fn end(&mut self) -> Result<(), Lost> {
        self.until_written(Ledger::append_end)?;
        self.until_written(Ledger::checkpoint)?;
        self.until_written(Ledger::append_last_notes)?;
        self.until_written(|ledger| ledger.sync())
    }

    /// Repeats it until it succeeds or the trail ends.
    fn until_written(
        &mut self,
        mut work: impl FnMut(&mut Ledger) -> io::Result<()>,
    ) -> Result<(), Lost> {
        let (mut pause, mut tries) = (FIRST_PAUSE, 0_u64);
        let mut last = String::new();
        loop {
            match work(&mut self.ledger) {
                Ok(()) => break,
                Err(error) => last = error.to_string(),
            }
            tries = tries.saturating_add(1);
            if !self.queue.pause(pause, &last) {
                return Err(Lost);
            }
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
        if tries > 0 {
            self.ledger.note_failures(tries, &last);
        }
        let (written, failed_sinks) = self.ledger.take_counts();
        self.queue.count_written(written, failed_sinks);
        Ok(())
    }
}
