//! Runs a network provider on the tokio runtime in which it was built, whichever executor polls its
//! futures.
#![forbid(unsafe_code)]

use arc_swap::ArcSwap;
use futures_util::future::{Either, select};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::runtime::Handle;

use super::super::KekError;
use super::super::call::{report_request_id, with_request_id};
use crate::memory::fork;
use crate::runtime::Runtime;
use crate::runtime::tokio::{
    BEGINS_WITHIN, Handed, Tokio, Unstarted, has_io, has_timers, spawn_on,
};

/// Runs work on the tokio runtime in which a provider was built, or on a later caller's runtime
/// once the first one has ended or starts no task.
///
/// An HTTP client can move with it. Its connections are tasks of the runtime on which they were
/// made. They close when that runtime ends, and the client makes new ones on whichever runtime
/// polls it. Connections of a runtime that nothing drives stay open and do not answer. The first
/// request that times out on such a connection abandons it.
pub struct Spawner {
    built_in: Handle,
    now: ArcSwap<Handle>,
    timer: Tokio,
    /// The process in which it was built.
    generation: u64,
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner").field("runtime", &self.now.load().id()).finish_non_exhaustive()
    }
}

impl Spawner {
    /// # Errors
    /// Outside a tokio runtime, or in one without timers or IO.
    pub fn current() -> Result<Self, &'static str> {
        let Some(timer) = Tokio::current() else {
            return Err(
                "there is no tokio runtime here, and the provider works on one: build it in async \
                 code, or within `Runtime::block_on`",
            );
        };
        let timer = timer?;
        if !has_io() {
            return Err("the tokio runtime has no IO, which `enable_io` on its builder turns on");
        }
        let (built_in, generation) = (timer.handle().clone(), fork::generation());
        Ok(Self { now: ArcSwap::from_pointee(built_in.clone()), built_in, timer, generation })
    }

    /// Returns whether this is still the process in which the provider was built. After a fork the
    /// runtime's threads and connections belong to the parent, and a task given to it in the child
    /// never runs.
    pub fn is_of_this_process(&self) -> bool {
        self.generation == fork::generation()
    }

    /// Runs `work` on the runtime, whichever executor polls this future. Dropping the future ends
    /// the work.
    pub async fn run<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, KekError>
    where
        T: Send + 'static,
        E: Send + 'static + Into<KekError>,
    {
        if !self.is_of_this_process() {
            let text =
                "the process forked since the provider was built; build it again in the child";
            return Err(KekError::misconfigured(text).without_asking());
        }
        // A report is kept on the thread that polls the work, which is another thread.
        let mut work = with_request_id(work);
        let mut runtime = Handle::clone(&self.now.load());
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
                Ok((answer, request_id)) => {
                    if tried.len() > 1 {
                        self.now.store(Arc::new(runtime));
                    }
                    if let Some(request_id) = request_id {
                        report_request_id(&request_id);
                    }
                    return answer.map_err(Into::into);
                }
                Err(Unstarted::Work(back)) => {
                    work = back;
                    runtime = self.other_than(&tried).ok_or_else(nowhere)?;
                    tried.push(runtime.id());
                }
                // The service may have been asked. The next try finds another runtime.
                Err(Unstarted::EndedMeanwhile) => return Err(KekError::unavailable(NOWHERE)),
                Err(Unstarted::Panicked) => {
                    return Err(KekError::unavailable("the provider panicked"));
                }
            }
        }
    }

    /// Runs `work` in the background, on the provider's runtime or the caller's, unless `busy`
    /// shows that it is already running. If neither runtime takes it, or the runtime ends, the next
    /// call starts it again.
    pub fn spawn_one(
        &self,
        busy: &Arc<AtomicBool>,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
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

    /// Returns the caller's runtime, if it has timers and IO, or else the first one.
    fn other_than(&self, tried: &[tokio::runtime::Id]) -> Option<Handle> {
        let current = Handle::try_current().ok().filter(|current| !tried.contains(&current.id()));
        let fit = current.filter(|_| has_timers() && has_io());
        fit.or_else(|| {
            Some(self.built_in.clone()).filter(|built_in| !tried.contains(&built_in.id()))
        })
    }
}

/// *Unavailable*: it says nothing about the key, cached DEKs may be served stale, and the next
/// caller on a live runtime ends the outage.
const NOWHERE: &str = "the tokio runtime in which the provider was built has ended, or begins nothing (nobody drives it, \
                       or a task blocks its only thread), and the caller runs on no other that could take its place";

fn nowhere() -> KekError {
    KekError::unavailable(NOWHERE).without_asking()
}

/// The right to do work that must not run twice at a time. It is given back when the work is done
/// or dropped.
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use tokio::runtime::{Builder, Runtime as TokioRuntime};

    use super::super::super::KekErrorClass;
    use super::*;

    fn one_thread() -> TokioRuntime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn threads() -> TokioRuntime {
        Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    fn spawner_in(runtime: &TokioRuntime) -> Spawner {
        let _inside = runtime.enter();
        Spawner::current().unwrap()
    }

    /// Returns the runtime on which it ran, after using that runtime's timers.
    async fn whereabouts() -> Result<tokio::runtime::Id, KekError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(Handle::current().id())
    }

    fn class<T>(answer: Result<T, KekError>) -> Option<(KekErrorClass, String)> {
        answer.err().map(|error| (error.class(), error.to_string()))
    }

    #[test]
    fn work_runs_at_home_whoever_polls() {
        let (at_home, elsewhere) = (threads(), threads());
        let spawner = spawner_in(&at_home);
        let id = at_home.handle().id();
        assert_eq!(pollster::block_on(spawner.run(whereabouts())).unwrap(), id);
        assert_eq!(elsewhere.block_on(spawner.run(whereabouts())).unwrap(), id);
    }

    #[test]
    fn a_caller_s_runtime_takes_the_place_of_one_that_ended() {
        let (at_home, next, last) = (threads(), threads(), one_thread());
        let spawner = spawner_in(&at_home);
        drop(at_home);
        let Some((class_said, first)) = class(pollster::block_on(spawner.run(whereabouts())))
        else {
            panic!("it ran")
        };
        assert_eq!(class_said, KekErrorClass::Unavailable);
        let id = next.handle().id();
        assert_eq!(next.block_on(spawner.run(whereabouts())).unwrap(), id);
        assert_eq!(
            pollster::block_on(spawner.run(whereabouts())).unwrap(),
            id,
            "it is at spawner there now"
        );
        drop(next);
        assert_eq!(last.block_on(spawner.run(whereabouts())).unwrap(), last.handle().id());
        drop(last);
        assert_eq!(
            class(pollster::block_on(spawner.run(whereabouts()))),
            Some((class_said, first)),
            "one text, one class"
        );
    }

    #[test]
    fn a_caller_s_runtime_takes_the_place_of_one_that_nobody_drives() {
        let (idle, driven) = (one_thread(), threads());
        let spawner = spawner_in(&idle);
        let refused = class(pollster::block_on(spawner.run(whereabouts()))).unwrap();
        assert!(
            refused.0 == KekErrorClass::Unavailable && refused.1.contains("nobody drives it"),
            "{refused:?}"
        );
        assert_eq!(driven.block_on(spawner.run(whereabouts())).unwrap(), driven.handle().id());
        // Work that the first runtime was given is not repeated.
        let times = Arc::new(AtomicUsize::new(0));
        let spawner = spawner_in(&idle);
        let its = times.clone();
        let once = async move {
            its.fetch_add(1, Ordering::SeqCst);
            Ok::<_, KekError>(())
        };
        driven.block_on(spawner.run(once)).unwrap();
        idle.block_on(tokio::task::yield_now());
        assert_eq!(times.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn blocking_the_only_thread_of_the_home_is_an_error_that_says_so() {
        let only = one_thread();
        let spawner = spawner_in(&only);
        let refused =
            only.block_on(async { class(pollster::block_on(spawner.run(whereabouts()))) }).unwrap();
        assert!(
            refused.0 == KekErrorClass::Unavailable && refused.1.contains("only thread"),
            "{refused:?}"
        );
        assert_eq!(
            only.block_on(spawner.run(whereabouts())).unwrap(),
            only.handle().id(),
            "and passes"
        );
    }

    #[test]
    fn a_runtime_that_ends_in_the_middle_is_unavailable_and_the_next_call_goes_elsewhere() {
        let (ends, next) = (threads(), threads());
        let spawner = Arc::new(spawner_in(&ends));
        let begun = Arc::new(AtomicBool::new(false));
        let (its, tells) = (spawner.clone(), begun.clone());
        let never = async move {
            tells.store(true, Ordering::SeqCst);
            std::future::pending::<Result<(), KekError>>().await
        };
        let call = next.spawn(async move { class(its.run(never).await) });
        while !begun.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        drop(ends);
        assert_eq!(next.block_on(call).unwrap().unwrap().0, KekErrorClass::Unavailable);
        assert_eq!(next.block_on(spawner.run(whereabouts())).unwrap(), next.handle().id());
    }

    #[test]
    fn a_runtime_that_cannot_do_it_takes_no_place_and_is_no_home() {
        let (ended, lame) =
            (threads(), Builder::new_current_thread().enable_time().build().unwrap());
        let spawner = spawner_in(&ended);
        drop(ended);
        assert!(lame.block_on(spawner.run(whereabouts())).is_err());
        let _inside = lame.enter();
        assert!(Spawner::current().is_err_and(|why| why.contains("enable_io")));
        let without = Builder::new_current_thread().build().unwrap();
        let _inside = without.enter();
        assert!(Spawner::current().is_err_and(|why| why.contains("enable_time")));
    }

    #[test]
    fn what_is_done_in_the_background_is_done_by_one_and_begun_again_when_its_runtime_ended() {
        let (ends, next) = (one_thread(), threads());
        let spawner = spawner_in(&ends);
        let (busy, times) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let work = || {
            let times = times.clone();
            async move {
                times.fetch_add(1, Ordering::SeqCst);
            }
        };
        spawner.spawn_one(&busy, work());
        spawner.spawn_one(&busy, work());
        drop(ends);
        assert_eq!((times.load(Ordering::SeqCst), busy.load(Ordering::SeqCst)), (0, false));
        let _inside = next.enter();
        spawner.spawn_one(&busy, work());
        while times.load(Ordering::SeqCst) == 0 || busy.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        assert_eq!(times.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_panic_at_home_is_told_as_what_it_is() {
        let at_home = threads();
        let spawner = spawner_in(&at_home);
        let bad = async {
            if true {
                std::panic::resume_unwind(Box::new("by script"));
            }
            Ok::<(), KekError>(())
        };
        assert!(class(pollster::block_on(spawner.run(bad))).unwrap().1.contains("panicked"));
    }
}
