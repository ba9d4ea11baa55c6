//! Brings events to observers, so that nothing that an observer does changes what the library does.
//!
//! Most events are told where they happen. Those that arise in a destructor, which may be a thread's last, or on the wiping
//! thread are queued and delivered by a thread of their own.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::{Event, Observer, Operation};
use crate::context::EncryptionContext;
use crate::error::ErrorKind;
use crate::format::KekId;
use crate::memory::fork::{OfProcess, PerProcess};
use crate::memory::protection_notice;
use crate::suite::DekId;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, thread};

/// How many events wait for an observer that blocks. The oldest are lost first, and counted.
const MAX_QUEUED: usize = 1 << 14;

/// The observers of one envelope.
#[derive(Clone, Default)]
pub(crate) struct Observers(Arc<Inner>);

/// For what may outlive the envelope: it does not keep the observers alive.
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
    observer: Box<dyn Observer>,
    /// The others know that it panicked.
    reported: AtomicBool,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<LaterEvent>,
    /// A thread is at it.
    is_delivered: bool,
}

/// An event that is told later, by a thread that exists for that.
pub(crate) enum LaterEvent {
    Wiped {
        dek_id: DekId,
        context: EncryptionContext,
    },
    /// A call that nobody waited for any more.
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
}

impl LaterEvent {
    fn as_event(&self) -> Event<'_> {
        match self {
            Self::Wiped { dek_id, context } => Event::Wiped { dek_id, context },
            Self::Abandoned { kek_id, operation, elapsed, kind } => {
                let (operation, elapsed, kind) = (*operation, *elapsed, Some(*kind));
                Event::Called { kek_id, operation, elapsed, kind, abandoned: true }
            }
            Self::BreakerOpened { kek_id, target } => Event::BreakerOpened { kek_id, target: target.as_deref() },
        }
    }
}

impl Observers {
    pub(crate) fn new(observers: Vec<Box<dyn Observer>>) -> Self {
        let watched = |observer| Watched { observer, reported: AtomicBool::new(false) };
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

    /// How often an observer panicked, and how many events were lost because one blocked.
    pub(crate) fn failures(&self) -> (u64, u64) {
        (self.0.panics.load(Ordering::Relaxed), self.0.lost.load(Ordering::Relaxed))
    }

    /// For whoever has just made keys, which may have taken memory that the system does not protect.
    pub(crate) fn emit_unprotected_memory(&self) {
        if !self.0.observers.is_empty()
            && let Some(protection) = protection_notice()
        {
            self.emit(&Event::MemoryNotProtected { protection: &protection });
        }
    }

    /// Tells an event here and now. The caller holds no lock of the library.
    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.0.emit(event);
    }

    /// Tells an event soon, on another thread: from a destructor, or from where nobody may wait.
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
        // With a pointer of its own: what is queued when the envelope is dropped is still told.
        let inner = self.0.clone();
        let started = thread::Builder::new().name("waxseal-events".to_owned()).spawn(move || inner.deliver());
        if started.is_err() {
            // What waits is told with the next event, if a thread can be had then.
            lock(&queue).is_delivered = false;
        }
    }
}

impl WeakObservers {
    /// The observers, unless the envelope and with it they are gone.
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
                let others = self.observers.iter().enumerate().filter(|(other, _)| *other != observer);
                for (_, other) in others {
                    self.survives(other, &Event::ObserverPanicked { observer });
                }
            }
        }
    }

    /// The one place where other people's code is called with an event.
    fn survives(&self, Watched { observer, .. }: &Watched, event: &Event<'_>) -> bool {
        match catch_unwind(AssertUnwindSafe(|| observer.event(event))) {
            Ok(()) => true,
            Err(panic) => {
                // Not dropped: its destructor is other people's code too.
                std::mem::forget(panic);
                self.panics.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    /// Delivers until nothing waits.
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
            self.emit(&event.as_event());
        }
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}
