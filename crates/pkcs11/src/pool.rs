//! The provider's threads, each with a session. Functions of PKCS#11 block, and a call in progress
//! cannot be interrupted, whether or not anyone still waits for it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use waxseal::kek::KekErrorClass::{self, Throttled};
use waxseal::kek::toolkit::process_generation;

use crate::errors::{After, Failure, forked};
use crate::link::{Link, Spare};
use crate::oneshot::{Receiver, Sender, channel};
use crate::token::Token;

/// The pause before asking again a token that had no session left.
const BETWEEN_LIMITS: Duration = Duration::from_secs(60);
/// A thread that was idle for this long ends with its session, unless it is the last.
const IDLE: Duration = Duration::from_secs(120);
/// The maximum number of calls that wait for a thread.
const MOST_WAITING: usize = 1024;

/// Threads with sessions at one token.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// The process in which it was made.
    generation: u64,
}

struct Shared {
    token: Arc<Token>,
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// Counts lost sessions. After a loss the other sessions are not used either.
    losses: AtomicU64,
    wraps: AtomicU64,
    unwraps: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Box<dyn Job>>,
    threads: usize,
    idle: usize,
    /// Threads that close their session, and then end.
    leaving: usize,
    connected: usize,
    /// Threads that are about to open a session.
    connecting: usize,
    /// The maximum number of threads, because the token had no further session, and since when.
    limit: Option<(usize, Instant)>,
    is_closing: bool,
    /// Notified when no thread is left.
    closed: Vec<Sender<()>>,
}

/// The counts of a provider's threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) wraps: u64,
    pub(crate) unwraps: u64,
    pub(crate) sessions: usize,
    pub(crate) waiting: usize,
    pub(crate) is_limited: bool,
}

/// The kind of a call, for the counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Counted {
    Wrap,
    Unwrap,
    Nothing,
}

/// A call, as its thread sees it.
trait Job: Send {
    fn is_wanted(&self) -> bool;
    fn since(&self) -> Instant;
    /// Makes the call, or passes the failure to connect to the caller.
    fn run(self: Box<Self>, worker: &mut Worker, failure: Option<Failure>);
}

struct Call<T, W> {
    since: Instant,
    answer: Sender<Result<T, Failure>>,
    counted: Counted,
    work: W,
}

impl<T, W> Job for Call<T, W>
where
    T: Send,
    W: FnMut(&mut Link) -> Result<T, Failure> + Send,
{
    fn is_wanted(&self) -> bool {
        self.answer.is_wanted()
    }

    fn since(&self) -> Instant {
        self.since
    }

    fn run(mut self: Box<Self>, worker: &mut Worker, failure: Option<Failure>) {
        let answer = match failure {
            Some(failure) => Err(failure),
            None => {
                match self.counted {
                    Counted::Wrap => drop(worker.shared.wraps.fetch_add(1, Ordering::Relaxed)),
                    Counted::Unwrap => drop(worker.shared.unwraps.fetch_add(1, Ordering::Relaxed)),
                    Counted::Nothing => {}
                }
                worker.call(&mut self.work)
            }
        };
        self.answer.send(answer);
    }
}

impl Pool {
    /// Makes a pool of at most `most` threads. None is started yet.
    pub(crate) fn new(token: Token, most: usize) -> Self {
        let shared = Shared {
            token: Arc::new(token),
            most,
            state: Mutex::default(),
            changed: Condvar::new(),
            losses: AtomicU64::new(0),
            wraps: AtomicU64::new(0),
            unwraps: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), generation: process_generation() }
    }

    pub(crate) fn token(&self) -> &Token {
        &self.shared.token
    }

    pub(crate) fn is_of_this_process(&self) -> bool {
        self.generation == process_generation()
    }

    /// Has a thread do `work`. Dropping the returned future keeps work that has not begun from
    /// starting. It does not end work in progress.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        counted: Counted,
        work: impl FnMut(&mut Link) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Receiver<Result<T, Failure>>, Failure> {
        if !self.is_of_this_process() {
            return Err(forked());
        }
        let (answer, receiver) = channel();
        let mut state = self.shared.lock();
        if state.waiting.len() >= MOST_WAITING {
            state.waiting.retain(|job| job.is_wanted());
        }
        if state.waiting.len() >= MOST_WAITING {
            let text = format!("{MOST_WAITING} calls wait for a session already");
            return Err(Failure::new(Throttled, text).without_asking());
        }
        state.waiting.push_back(Box::new(Call { since: Instant::now(), answer, counted, work }));
        let reopened =
            if state.is_closing { std::mem::take(&mut state.closed) } else { Vec::new() };
        state.is_closing = false;
        if state.waiting.len() > state.idle
            && state.threads < self.shared.most_threads(&mut state)
            && let Err(failure) = self.shared.start_thread(&mut state)
            && state.threads == 0
        {
            state.waiting.pop_back();
            return Err(failure);
        }
        drop(state);
        drop(reopened);
        self.shared.changed.notify_one();
        Ok(receiver)
    }

    /// Ends the threads, after the calls in progress and those that wait. The next call starts
    /// other threads.
    pub(crate) async fn close(&self) {
        if !self.is_of_this_process() {
            return;
        }
        let (sender, receiver) = channel();
        {
            let mut state = self.shared.lock();
            if state.threads == 0 {
                return;
            }
            state.is_closing = true;
            state.closed.push(sender);
        }
        self.shared.changed.notify_all();
        // Ends with the last thread, or when another call needs one.
        let _ = receiver.await;
    }

    pub(crate) fn counts(&self) -> Counts {
        if !self.is_of_this_process() {
            return Counts::default();
        }
        let state = self.shared.lock();
        Counts {
            wraps: self.shared.wraps.load(Ordering::Relaxed),
            unwraps: self.shared.unwraps.load(Ordering::Relaxed),
            sessions: state.connected,
            waiting: state.waiting.len(),
            is_limited: state.limit.is_some(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.is_of_this_process() {
            self.shared.lock().is_closing = true;
            self.shared.changed.notify_all();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn most_threads(&self, state: &mut State) -> usize {
        match state.limit {
            Some((limit, since)) if since.elapsed() < BETWEEN_LIMITS => limit.min(self.most),
            _ => {
                state.limit = None;
                self.most
            }
        }
    }

    fn start_thread(self: &Arc<Self>, state: &mut State) -> Result<(), Failure> {
        let shared = self.clone();
        let work = move || {
            let seen = shared.losses.load(Ordering::Relaxed);
            Worker { shared, connection: None, spare: Spare::default(), seen }.work();
        };
        let started = thread::Builder::new().name("waxseal-pkcs11".to_owned()).spawn(work);
        started.map_err(|error| {
            Failure::unavailable(format!("no thread can be started: {error}")).without_asking()
        })?;
        state.threads += 1;
        Ok(())
    }
}

/// A thread with its session.
struct Worker {
    shared: Arc<Shared>,
    connection: Option<Link>,
    spare: Spare,
    /// The losses that this thread has seen.
    seen: u64,
}

impl Worker {
    fn work(mut self) {
        while self.wait_for_a_call() {
            let began = Instant::now();
            let mut failure = self.connect().err();
            if failure.as_ref().is_some_and(|failure| failure.after == After::NoSession)
                && self.leaves_it_to_others()
            {
                return;
            }
            let Some(job) = self.take() else { continue };
            // Earlier failures may have been repaired since.
            if failure.is_some() && job.since() > began {
                failure = self.connect().err();
            }
            // A panic ends a call, not the thread. The session may be in any state.
            if catch_unwind(AssertUnwindSafe(|| job.run(&mut self, failure))).is_err() {
                self.disconnect();
                self.spare = Spare::default();
            }
        }
    }

    /// Waits until there is something to do. `false` means that this thread is no longer needed,
    /// and no longer counted.
    fn wait_for_a_call(&mut self) -> bool {
        loop {
            if self.connection.is_some() && self.seen != self.shared.losses.load(Ordering::Relaxed)
            {
                self.disconnect();
            }
            self.seen = self.shared.losses.load(Ordering::Relaxed);
            let shared = self.shared.clone();
            let mut state = shared.lock();
            while state.waiting.front().is_some_and(|job| !job.is_wanted()) {
                state.waiting.pop_front();
            }
            if !state.waiting.is_empty() {
                return true;
            }
            if state.is_closing {
                state.leaving += 1;
                drop(state);
                return self.leave();
            }
            state.idle += 1;
            let (mut state, waited) =
                shared.changed.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            let stay = state.threads.saturating_sub(state.leaving);
            if waited.timed_out() && state.waiting.is_empty() && stay > 1 {
                state.leaving += 1;
                drop(state);
                return self.leave();
            }
        }
    }

    /// Ends this thread. Returns `true` if there is something to do after all.
    fn leave(&mut self) -> bool {
        // The session is closed, and its helper gone, before waiters are notified.
        self.disconnect();
        self.spare = Spare::default();
        let mut state = self.shared.lock();
        state.leaving -= 1;
        if !state.waiting.is_empty() {
            return true;
        }
        state.threads -= 1;
        let closed =
            if state.threads == 0 { std::mem::take(&mut state.closed) } else { Vec::new() };
        drop(state);
        drop(closed);
        false
    }

    /// Whether the token has no session for this thread, but other threads have one and do the
    /// work.
    fn leaves_it_to_others(&mut self) -> bool {
        let mut state = self.shared.lock();
        // A thread that is about to open a session takes the call, or fails it.
        if state.connected + state.connecting == 0 {
            return false;
        }
        state.limit = Some((state.connected.max(1), Instant::now()));
        state.threads -= 1;
        drop(state);
        self.shared.changed.notify_one();
        true
    }

    fn take(&self) -> Option<Box<dyn Job>> {
        let mut state = self.shared.lock();
        while let Some(job) = state.waiting.pop_front() {
            if job.is_wanted() {
                return Some(job);
            }
        }
        None
    }

    fn connect(&mut self) -> Result<&mut Link, Failure> {
        if self.connection.is_none() {
            let token = self.shared.token.clone();
            self.shared.lock().connecting += 1;
            let opened = catch_unwind(AssertUnwindSafe(|| Link::open(&token, &mut self.spare)));
            let opened = opened
                .unwrap_or_else(|_| Err(Failure::unavailable("the module's binding panicked")));
            let mut state = self.shared.lock();
            state.connecting -= 1;
            state.connected += usize::from(opened.is_ok());
            drop(state);
            self.connection = Some(opened?);
        }
        let gone = || Failure::unavailable("there is no session");
        self.connection.as_mut().ok_or_else(gone)
    }

    fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close(&self.shared.token, &mut self.spare);
            self.shared.lock().connected -= 1;
        }
    }

    /// Makes a call, and repeats it once if the session or the key's handle was lost.
    fn call<T>(
        &mut self,
        work: &mut impl FnMut(&mut Link) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut result = self.call_once(work);
        if let Err(failure) = &result
            && matches!(failure.after, After::Reconnect | After::FindKey)
        {
            result = self.call_once(work);
        }
        result
    }

    fn call_once<T>(
        &mut self,
        work: &mut impl FnMut(&mut Link) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let token = self.shared.token.clone();
        let connection = self.connect()?;
        let failure = match work(connection) {
            Ok(done) => return Ok(done),
            Err(failure) if failure.after == After::FindKey => match connection.find_keys(&token) {
                Ok(()) => failure,
                Err(found) => found,
            },
            // Some tokens have no better code for a missing key.
            Err(failure) if failure.after == After::Drop => match connection.find_keys(&token) {
                Err(found) if found.class == KekErrorClass::Denied => found,
                _ => failure,
            },
            Err(failure) => failure,
        };
        match failure.after {
            After::Keep | After::FindKey | After::NoSession => {}
            After::Drop | After::Reconnect => {
                if failure.is_ended {
                    connection.module_was_ended();
                }
                let is_shared = connection.is_shared();
                self.disconnect();
                // Other helpers notice on their own.
                if is_shared {
                    self.seen = self.shared.losses.fetch_add(1, Ordering::Relaxed) + 1;
                    self.shared.changed.notify_all();
                }
            }
        }
        Err(failure)
    }
}
