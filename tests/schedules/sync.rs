//! The library's `sync` module for explored schedules: shuttle's types, and the little that shuttle
//! leaves out.
//!
//! Shuttle knows no time and no thread that outlives a schedule. Here time goes by when a test says
//! so ([`pass`]), and a thread that nobody joins ends when the test is over ([`end_of_schedule`]).

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::time::Duration;

pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock};
pub(crate) use shuttle::thread_local;
pub(crate) use std::sync::{Arc, PoisonError, TryLockError, Weak};

pub(crate) mod atomic {
    pub(crate) use shuttle::sync::atomic::{
        AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering,
    };
}

/// A static of the process, which is a schedule here: each begins with a new one.
macro_rules! process_static {
    ($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;) => {
        shuttle::lazy_static! {
            $(#[$attribute])*
            static ref $name: $type = $value;
        }
    };
}
pub(crate) use process_static;

// A schedule runs on one thread of the system, so these belong to one schedule, and a look at them
// gives no control away.
std::thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static OVER: Cell<bool> = const { Cell::new(false) };
    static STARTED: Cell<usize> = const { Cell::new(0) };
    static WAITING: RefCell<Vec<Waiting>> = const { RefCell::new(Vec::new()) };
}

struct Waiting {
    condvar: Arc<shuttle::sync::Condvar>,
    until: Option<Duration>,
}

/// The first thing in a schedule.
pub(crate) fn begin_schedule() {
    NOW.set(Duration::ZERO);
    OVER.set(false);
    STARTED.set(0);
    WAITING.take();
}

/// Lets time pass for threads that wait on a condition variable.
pub(crate) fn pass(duration: Duration) {
    NOW.set(NOW.get() + duration);
    wake(|waiting| waiting.until.is_some_and(|until| until <= NOW.get()));
}

/// How many threads that nobody joins were started, and how many of them wait, with no notice on
/// its way to them.
pub(crate) fn in_background() -> (usize, usize) {
    (STARTED.get(), WAITING.with_borrow(Vec::len))
}

/// Waits until nothing goes on any more in threads that nobody joins.
pub(crate) fn settle() {
    while let (started, waiting) = in_background()
        && waiting < started
    {
        shuttle::thread::yield_now();
    }
}

/// The last thing in a schedule: ends the threads that nobody joins.
pub(crate) fn end_of_schedule() {
    OVER.set(true);
    wake(|_| true);
}

fn wake(which: impl Fn(&Waiting) -> bool) {
    let woken: Vec<_> =
        WAITING.with_borrow_mut(|all| all.extract_if(.., |waiting| which(waiting)).collect());
    woken.into_iter().for_each(|waiting| waiting.condvar.notify_all());
}

/// A condition variable whose waits can time out.
#[derive(Default)]
pub(crate) struct Condvar(Arc<shuttle::sync::Condvar>);

type Guarded<'a, T, R> = Result<R, PoisonError<MutexGuard<'a, T>>>;

impl Condvar {
    pub(crate) fn notify_one(&self) {
        let first = WAITING.with_borrow_mut(|all| {
            let first = all.iter().position(|waiting| Arc::ptr_eq(&waiting.condvar, &self.0))?;
            Some(all.remove(first))
        });
        match first {
            Some(waiting) => waiting.condvar.notify_one(),
            None => shuttle::thread::yield_now(),
        }
    }

    pub(crate) fn wait_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        condition: impl FnMut(&mut T) -> bool,
    ) -> Guarded<'a, T, MutexGuard<'a, T>> {
        self.wait(guard, None, condition).map(|(guard, _)| guard)
    }

    pub(crate) fn wait_timeout_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        duration: Duration,
        condition: impl FnMut(&mut T) -> bool,
    ) -> Guarded<'a, T, (MutexGuard<'a, T>, bool)> {
        self.wait(guard, Some(NOW.get() + duration), condition)
    }

    fn wait<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        until: Option<Duration>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> Guarded<'a, T, (MutexGuard<'a, T>, bool)> {
        loop {
            if OVER.get() {
                drop(guard);
                std::panic::resume_unwind(Box::new(Over));
            }
            if !condition(&mut guard) {
                return Ok((guard, false));
            }
            if until.is_some_and(|until| until <= NOW.get()) {
                return Ok((guard, true));
            }
            // From here until shuttle has put this thread among those that wait, no other one runs:
            // no notice is lost.
            WAITING.with_borrow_mut(|all| all.push(Waiting { condvar: self.0.clone(), until }));
            guard = self.0.wait(guard)?;
        }
    }
}

/// How a thread ends that would run for ever.
struct Over;

pub(crate) mod thread {
    use std::num::NonZero;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::time::Duration;

    pub(crate) use shuttle::thread::LocalKey;

    use super::{Any, Over, STARTED};

    /// As many as make a difference.
    pub(crate) fn available_parallelism() -> std::io::Result<NonZero<usize>> {
        Ok(NonZero::<usize>::MIN.saturating_add(1))
    }

    pub(crate) fn sleep(_: Duration) {
        shuttle::thread::yield_now();
    }

    /// Of a thread that nobody joins.
    pub(crate) struct Builder(shuttle::thread::Builder);

    impl Builder {
        pub(crate) fn new() -> Self {
            Self(shuttle::thread::Builder::new())
        }

        pub(crate) fn name(self, name: String) -> Self {
            Self(self.0.name(name))
        }

        pub(crate) fn spawn(self, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
            STARTED.set(STARTED.get() + 1);
            let until_over = move || {
                match catch_unwind(AssertUnwindSafe(work)) {
                    // It ended without a wait: no thread waits until it waits.
                    Ok(()) => STARTED.set(STARTED.get() - 1),
                    Err(panic) => {
                        let panic: Box<dyn Any + Send> = panic;
                        if !panic.is::<Over>() {
                            resume_unwind(panic);
                        }
                    }
                }
            };
            self.0.spawn(until_over).map(drop)
        }
    }
}
