//! Delivers events to observers, so that no observer changes what the library does.
//!
//! Most events are emitted where they happen. Events from a destructor, which may be a thread's
//! last action, or from the wiping thread are queued, and a separate thread delivers them.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use super::{Access, Event, Observer, Operation, StoreOperation};
use crate::caller::Caller;
use crate::context::EncryptionContext;
use crate::error::ErrorKind;
use crate::format::KekId;
use crate::memory::fork::{OfProcess, PerProcess};
use crate::memory::protection_notice;
use crate::suite::DekId;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::foreign::{Contained, caught};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, thread};

/// How many events are queued for an observer that blocks. The oldest are lost first, and counted.
const MAX_QUEUED: usize = 1 << 14;

/// With a shorter interval there would be as many summaries as messages.
const SHORTEST_SUMMARY: Duration = Duration::from_secs(1);

/// Messages that were encrypted or decrypted.
pub(crate) enum Accessed {
    /// With one DEK.
    All {
        dek_id: DekId,
        context: EncryptionContext,
        access: Access,
        messages: u64,
        within: Duration,
    },
    /// With one DEK, on behalf of one caller.
    By {
        caller: Caller,
        dek_id: DekId,
        context: EncryptionContext,
        access: Access,
        messages: u64,
        within: Duration,
    },
    /// On behalf of callers beyond the tracked number.
    Others { access: Access, messages: u64, within: Duration },
}

/// The counter of uses of DEKs.
pub(crate) trait AccessCounts: Send + Sync {
    /// Returns the counts since the last call.
    fn take(&self) -> Vec<Accessed>;
}

/// The observers of one envelope.
#[derive(Clone, Default)]
pub(crate) struct Observers(Arc<Inner>);

/// A weak reference, for owners that may outlive the envelope.
#[derive(Clone)]
pub(crate) struct WeakObservers(Weak<Inner>);

#[derive(Default)]
struct Inner {
    observers: Box<[Watched]>,
    panics: AtomicU64,
    lost: AtomicU64,
    queue: PerProcess<Mutex<Queue>>,
}

struct Watched {
    observer: Contained<Box<dyn Observer>>,
    /// Its panic was reported to the others.
    reported: AtomicBool,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<LaterEvent>,
    /// Whether a thread is delivering the queue.
    is_delivered: bool,
}

/// An event that a separate thread delivers later.
pub(crate) enum LaterEvent {
    Wiped {
        dek_id: DekId,
        context: EncryptionContext,
    },
    /// A call for which no caller waited any longer.
    Abandoned {
        kek_id: KekId,
        operation: Operation,
        elapsed: Duration,
        kind: ErrorKind,
    },
    BreakerOpened {
        kek_id: KekId,
        target: Option<Box<str>>,
    },
    StoreAbandoned {
        store: Box<str>,
        operation: StoreOperation,
        elapsed: Duration,
        kind: ErrorKind,
    },
    StoreBreakerOpened {
        store: Box<str>,
    },
    Accessed(Accessed),
    ShutDown,
    /// All counts since the last summary, however many.
    Summaries(Arc<dyn AccessCounts>),
}

impl Accessed {
    pub(crate) fn as_event(&self) -> Event<'_> {
        match *self {
            Self::All { ref dek_id, ref context, access, messages, within } => {
                Event::Accessed { dek_id, context, access, messages, within }
            }
            Self::By { ref caller, ref dek_id, ref context, access, messages, within } => {
                Event::AccessedBy { caller, dek_id, context, access, messages, within }
            }
            Self::Others { access, messages, within } => {
                Event::AccessedByOthers { access, messages, within }
            }
        }
    }
}

impl LaterEvent {
    fn deliver_to(&self, observers: &Inner) {
        let event = match self {
            Self::Summaries(counts) => {
                for accessed in counts.take() {
                    observers.emit(&accessed.as_event());
                }
                return;
            }
            Self::Accessed(accessed) => accessed.as_event(),
            Self::ShutDown => Event::ShutDown,
            Self::Wiped { dek_id, context } => Event::Wiped { dek_id, context },
            Self::StoreAbandoned { store, operation, elapsed, kind } => {
                let (operation, elapsed, kind) = (*operation, *elapsed, Some(*kind));
                Event::StoreCalled { store, operation, elapsed, kind, abandoned: true }
            }
            Self::StoreBreakerOpened { store } => Event::StoreBreakerOpened { store },
            Self::Abandoned { kek_id, operation, elapsed, kind } => {
                let (operation, elapsed, kind) = (*operation, *elapsed, Some(*kind));
                Event::Called {
                    kek_id,
                    operation,
                    elapsed,
                    kind,
                    abandoned: true,
                    request_id: None,
                }
            }
            Self::BreakerOpened { kek_id, target } => {
                Event::BreakerOpened { kek_id, target: target.as_deref() }
            }
        };
        observers.emit(&event);
    }
}

impl Observers {
    pub(crate) fn new(observers: Vec<Box<dyn Observer>>) -> Self {
        let watched = |observer| {
            let observer = Contained::new(observer);
            Watched { observer, reported: AtomicBool::new(false) }
        };
        let observers = observers.into_iter().map(watched).collect();
        Self(Arc::new(Inner {
            observers,
            panics: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            queue: PerProcess::new(),
        }))
    }

    pub(crate) fn downgrade(&self) -> WeakObservers {
        WeakObservers(Arc::downgrade(&self.0))
    }

    /// Returns how often an observer panicked, and how many events were lost because one blocked.
    pub(crate) fn failures(&self) -> (u64, u64) {
        (self.0.panics.load(Ordering::Relaxed), self.0.lost.load(Ordering::Relaxed))
    }

    /// Returns how often uses are reported. If `None`, they are not counted.
    pub(crate) fn access_summaries(&self) -> Option<Duration> {
        let asked = |Watched { observer, .. }: &Watched| {
            caught(|| observer.get()?.access_summaries()).flatten()
        };
        let shortest = self.0.observers.iter().filter_map(asked).min();
        shortest.map(|shortest| shortest.max(SHORTEST_SUMMARY))
    }

    /// Whether there are no observers.
    pub(crate) fn are_none(&self) -> bool {
        self.0.observers.is_empty()
    }

    /// Reports unprotected memory. It is called after keys are made, which may have used such
    /// memory.
    pub(crate) fn emit_unprotected_memory(&self) {
        if !self.0.observers.is_empty()
            && let Some(protection) = protection_notice()
        {
            self.emit(&Event::MemoryNotProtected { protection: &protection });
        }
    }

    /// Emits an event on this thread. The caller holds no lock of the library.
    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.0.emit(event);
    }

    /// Emits an event soon, on another thread. For destructors, and for threads that must not wait.
    pub(crate) fn emit_later(&self, event: LaterEvent) {
        if self.0.observers.is_empty() {
            return;
        }
        let queue = self.0.queue();
        let mut waiting = lock(&queue);
        if waiting.events.len() == MAX_QUEUED {
            waiting.events.pop_front();
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
        waiting.events.push_back(event);
        if std::mem::replace(&mut waiting.is_delivered, true) {
            return;
        }
        drop(waiting);
        // The thread owns a reference, so that queued events are delivered after the envelope is
        // dropped.
        let inner = self.0.clone();
        let started =
            thread::Builder::new().name("waxseal-events".to_owned()).spawn(move || inner.deliver());
        if started.is_err() {
            // The queue is delivered with the next event, if a thread can be started then.
            lock(&queue).is_delivered = false;
        }
    }
}

impl WeakObservers {
    /// Returns the observers, unless they are gone with the envelope.
    pub(crate) fn upgrade(&self) -> Option<Observers> {
        self.0.upgrade().map(Observers)
    }
}

impl Inner {
    fn queue(&self) -> Arc<OfProcess<Mutex<Queue>>> {
        self.queue.get_or_init(Mutex::default)
    }

    fn emit(&self, event: &Event<'_>) {
        for (observer, watched) in self.observers.iter().enumerate() {
            if !self.survives(watched, event) && !watched.reported.swap(true, Ordering::Relaxed) {
                let others =
                    self.observers.iter().enumerate().filter(|(other, _)| *other != observer);
                for (_, other) in others {
                    self.survives(other, &Event::ObserverPanicked { observer });
                }
            }
        }
    }

    /// Calls an observer. This is the only place that runs foreign code with an event.
    fn survives(&self, Watched { observer, .. }: &Watched, event: &Event<'_>) -> bool {
        let survived = caught(|| observer.get().map(|observer| observer.event(event))).is_some();
        if !survived {
            self.panics.fetch_add(1, Ordering::Relaxed);
        }
        survived
    }

    /// Delivers until the queue is empty.
    fn deliver(&self) {
        let queue = self.queue();
        loop {
            let event = {
                let mut waiting = lock(&queue);
                match waiting.events.pop_front() {
                    Some(event) => event,
                    None => {
                        waiting.is_delivered = false;
                        return;
                    }
                }
            };
            event.deliver_to(self);
        }
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}
