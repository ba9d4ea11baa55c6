//! Random schedules in which a thread runs for a while before the next one has its turn.
//!
//! A purely random choice at every step lets all threads get on at the same pace. Faults that want
//! one of them to stand still while another does something long from beginning to end are not found
//! that way.

use shuttle::scheduler::{RandomScheduler, Schedule, Scheduler, Task, TaskId};

/// How many steps a thread runs for, on average.
const LENGTHS: [u64; 4] = [1, 8, 32, 128];

/// Shuttle's random scheduler, asked only when a run is over. The length of runs changes from
/// schedule to schedule.
pub(super) struct Runs {
    random: RandomScheduler,
    schedules: usize,
}

impl Runs {
    pub(super) fn new(schedules: usize) -> Self {
        Self { random: RandomScheduler::new(schedules), schedules: 0 }
    }
}

impl Scheduler for Runs {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.schedules += 1;
        self.random.new_execution()
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let length = LENGTHS[self.schedules % LENGTHS.len()];
        let goes_on = current.filter(|current| runnable.iter().any(|task| task.id() == *current));
        match goes_on {
            Some(current) if !is_yielding && !rand::random::<u64>().is_multiple_of(length) => {
                Some(current)
            }
            _ => self.random.next_task(runnable, current, is_yielding),
        }
    }

    fn next_u64(&mut self) -> u64 {
        self.random.next_u64()
    }
}
