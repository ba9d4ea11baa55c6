//! Ends domains that are no longer configured, once their holders have finished.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use super::Domain;
use crate::memory::fork::{OfProcess, PerProcess};
use crate::sync::foreign::caught;
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How often to look whether a domain is still held.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The domains that are ending, and the thread that ends them. It is a thread and not a task, so
/// that they also end without a runtime or after it has ended.
pub(super) struct Retiring {
    /// How long a domain that is held keeps serving.
    drain: Duration,
    queue: PerProcess<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    /// The domains to end, with the time at which each ends even if held. Each is listed once,
    /// since a second entry would count as a holder.
    waiting: HashMap<usize, (Domain, Option<Instant>)>,
    has_thread: bool,
}

impl Retiring {
    pub(super) fn new(drain: Duration) -> Self {
        Self { drain, queue: PerProcess::new() }
    }

    /// Shuts domains down when nobody else holds them, or when the drain time is over.
    pub(super) fn retire(&self, domains: impl IntoIterator<Item = Domain>) {
        let ends = Some(Instant::now() + self.drain);
        self.add(domains.into_iter().map(|domain| (domain, ends)));
    }

    /// Shuts a domain down when nobody else holds it.
    #[cfg(feature = "domains")]
    pub(super) fn retire_when_dropped(&self, domain: Domain) {
        self.add([(domain, None)]);
    }

    /// Takes out those that have not ended yet.
    pub(super) fn take_all(&self) -> Vec<Domain> {
        let shared = self.queue.get_or_init(Mutex::default);
        let waiting = std::mem::take(&mut lock(&shared).waiting);
        waiting.into_values().map(|(domain, _)| domain).collect()
    }

    fn add(&self, domains: impl IntoIterator<Item = (Domain, Option<Instant>)>) {
        let shared = self.queue.get_or_init(Mutex::default);
        let mut queue = lock(&shared);
        for (domain, ends) in domains {
            let (_, until) = queue.waiting.entry(domain.address()).or_insert((domain, ends));
            *until = until.iter().copied().chain(ends).min();
        }
        if queue.waiting.is_empty() || std::mem::replace(&mut queue.has_thread, true) {
            return;
        }
        drop(queue);
        let of_thread = shared.clone();
        let run = move || while end_those_that_are_due(&of_thread) {};
        let started = thread::Builder::new().name("waxseal-domains".to_owned()).spawn(run);
        if started.is_err() {
            // Nobody would end them later.
            lock(&shared).has_thread = false;
            self.take_all().into_iter().for_each(end);
        }
    }
}

/// Returns whether any are left, after a pause.
fn end_those_that_are_due(shared: &Arc<OfProcess<Mutex<Queue>>>) -> bool {
    let mut queue = lock(shared);
    let now = Instant::now();
    let is_due = |_: &usize, (domain, ends): &mut (Domain, Option<Instant>)| {
        ends.is_some_and(|ends| now >= ends) || !domain.is_held()
    };
    let due: Vec<_> = queue.waiting.extract_if(is_due).collect();
    let is_left = !queue.waiting.is_empty();
    queue.has_thread = is_left;
    drop(queue);
    due.into_iter().for_each(|(_, (domain, _))| end(domain));
    if is_left {
        thread::sleep(LOOK_EVERY);
    }
    is_left
}

/// Shuts a domain down and drops it. A provider that panics meanwhile does not keep other domains
/// from ending.
fn end(domain: Domain) {
    let _ = caught(|| {
        domain.shut_down();
        drop(domain);
    });
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}
