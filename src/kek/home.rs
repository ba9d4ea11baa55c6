//! Where a network provider works: on the tokio runtime in which it was built, whoever polls its futures.
#![forbid(unsafe_code)]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::{Either, select};
use tokio::runtime::Handle;

use super::KekError;
use crate::memory::fork;
use crate::runtime::Runtime;
use crate::runtime::tokio::{Handed, Tokio, Unstarted, has_io, has_timers, spawn_on};

/// A runtime that is well begins what it is given far sooner. One that does not is driven by nobody, or its only thread is blocked.
const BEGINS_WITHIN: Duration = Duration::from_secs(1);

/// The tokio runtime in which a provider was built, or that of a later caller once the first one ended or began nothing.
///
/// An HTTP client can follow: its connections are tasks of the runtime on which they were made. They close when it ends, and the
/// client makes new ones wherever it is polled. Connections of a runtime that nobody drives stay open and do not answer; the
/// first request that meets its time limit on one gives it up.
pub(super) struct Home {
    built_in: Handle,
    now: ArcSwap<Handle>,
    timer: Tokio,
    /// Of the process in which it was built.
    generation: u64,
}

impl Home {
    /// # Errors
    /// Outside a tokio runtime, or in one without timers or IO.
    pub(super) fn current() -> Result<Self, &'static str> {
        let Some(timer) = Tokio::current() else {
            return Err("the provider works on a tokio runtime and has to be built in one");
        };
        let timer = timer?;
        if !has_io() {
            return Err("the tokio runtime has no IO, which `enable_io` on its builder turns on");
        }
        let (built_in, generation) = (timer.handle().clone(), fork::generation());
        Ok(Self { now: ArcSwap::from_pointee(built_in.clone()), built_in, timer, generation })
    }

    /// After a fork the runtime's threads and connections are the parent's: whatever is given to it in the child waits for ever.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.generation == fork::generation()
    }

    /// Runs `work` there, whoever polls; ends it there when it is dropped here.
    pub(super) async fn run<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, KekError>
    where
        T: Send + 'static,
        E: Send + 'static + Into<KekError>,
    {
        if !self.is_of_this_process() {
            let text = "the process forked since the provider was built; build it anew in the child";
            return Err(KekError::misconfigured(text).without_asking());
        }
        let (mut runtime, mut work) = (Handle::clone(&self.now.load()), work);
        let mut tried = vec![runtime.id()];
        loop {
            let mut handed = Handed::new(work, &runtime);
            let answer = match select(&mut handed, self.timer.sleep(BEGINS_WITHIN)).await {
                Either::Left((answer, _)) => answer,
                Either::Right(_) => match handed.take_back() {
                    Some(work) => Err(Unstarted::Work(work)),
                    None => handed.await,
                },
            };
            match answer {
                Ok(answer) => {
                    if tried.len() > 1 {
                        self.now.store(Arc::new(runtime));
                    }
                    return answer.map_err(Into::into);
                }
                Err(Unstarted::Work(back)) => {
                    work = back;
                    runtime = self.other_than(&tried).ok_or_else(nowhere)?;
                    tried.push(runtime.id());
                }
                // The next try finds another one.
                Err(Unstarted::EndedMeanwhile) => return Err(nowhere()),
                Err(Unstarted::Panicked) => return Err(KekError::unavailable("the provider panicked")),
            }
        }
    }

    /// Runs `work` in the background, there or where the caller is, unless it is being done. It is given up where neither
    /// takes it, or the runtime ends: the next one begins it again.
    pub(super) fn spawn_one(&self, busy: &Arc<AtomicBool>, work: impl Future<Output = ()> + Send + 'static) {
        if !self.is_of_this_process() {
            return;
        }
        let Some(turn) = Turn::take(busy) else { return };
        let work = async move {
            let _turn = turn;
            work.await;
        };
        let now = Handle::clone(&self.now.load());
        if let Err(work) = spawn_on(&now, work)
            && let Some(other) = self.other_than(&[now.id()])
        {
            let _ = spawn_on(&other, work);
        }
    }

    /// The runtime of whoever calls, if it is fit, or the first one.
    fn other_than(&self, tried: &[tokio::runtime::Id]) -> Option<Handle> {
        let current = Handle::try_current().ok().filter(|current| !tried.contains(&current.id()));
        let fit = current.filter(|_| has_timers() && has_io());
        fit.or_else(|| Some(self.built_in.clone()).filter(|built_in| !tried.contains(&built_in.id())))
    }
}

/// *Unavailable*: it says nothing of the key, DEKs at hand may ride it out, and the next caller on a runtime that lives ends it.
fn nowhere() -> KekError {
    let text = "the tokio runtime in which the provider was built has ended, or begins nothing (nobody drives it, or a task blocks \
                its only thread), and the caller runs on no other that could take its place";
    KekError::unavailable(text).without_asking()
}

/// The right to do something that one at a time does in the background; given back when it is done, or dropped undone.
struct Turn(Arc<AtomicBool>);

impl Turn {
    fn take(taken: &Arc<AtomicBool>) -> Option<Self> {
        (!taken.swap(true, Ordering::Relaxed)).then(|| Self(taken.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
