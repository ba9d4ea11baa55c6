//! The tokio runtime in which an envelope or a provider is built.
#![forbid(unsafe_code)]

use std::future::Future;
use std::panic::catch_unwind;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, select};
pub(super) use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::{BoxFuture, Runtime, timer, unconstrained};

/// A healthy runtime starts a task far sooner. Otherwise nothing drives it, or its only thread is
/// blocked.
pub(crate) const BEGINS_WITHIN: Duration = Duration::from_secs(1);

/// The tokio runtime in which an [`Envelope`](crate::Envelope) was built.
#[derive(Debug)]
pub(crate) struct Tokio(Handle);

impl Tokio {
    pub(crate) fn handle(&self) -> &Handle {
        &self.0
    }

    /// Returns the caller's runtime, or `None` outside of one.
    ///
    /// # Errors
    /// The runtime has no timers.
    pub(crate) fn current() -> Option<Result<Self, &'static str>> {
        let handle = Handle::try_current().ok()?;
        Some(match has_timers() {
            true => Ok(Self(handle)),
            false => {
                Err("the tokio runtime has no timers, which `enable_time` on its builder turns on")
            }
        })
    }
}

impl Runtime for Tokio {
    /// An envelope may outlast the runtime in which it was built. Then the caller's own runtime is
    /// used.
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        let Err(future) = spawn_on(&self.0, future) else { return };
        if let Ok(current) = Handle::try_current() {
            let _ = spawn_on(&current, future);
        }
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let (sleep, runtime) = (timer::sleep(duration), self.0.clone());
        Box::pin(async move {
            let mut sleep = sleep;
            if (&mut sleep).await.is_err() {
                // No thread can be started. If that runtime has ended too, the wait ends early
                // instead of never.
                let left = sleep.left();
                let _ = Handed::new(async move { tokio::time::sleep(left).await }, &runtime).await;
            }
        })
    }
}

/// Runs the future that `work` returns at each SIGHUP, on the caller's runtime, until it returns
/// `None`.
///
/// # Errors
/// There is no runtime with IO, or the system refuses.
#[cfg(all(unix, feature = "domains"))]
pub(crate) fn on_hangup<F>(
    work: impl Fn() -> Option<F> + Send + 'static,
) -> Result<(), &'static str>
where
    F: Future<Output = ()> + Send,
{
    use tokio::signal::unix::{SignalKind, signal};

    let runtime = Handle::try_current().map_err(|_| "there is no tokio runtime here")?;
    // Without IO it panics.
    let signals = catch_unwind(|| signal(SignalKind::hangup()));
    let signals = signals.map_err(|_| "the tokio runtime has no IO, which `enable_io` turns on")?;
    let mut signals = signals.map_err(|_| "the system refuses to deliver signals")?;
    runtime.spawn(async move {
        while signals.recv().await.is_some() {
            let Some(work) = work() else { return };
            work.await;
        }
    });
    Ok(())
}

/// Whether the caller is in a runtime.
pub(crate) fn is_here() -> bool {
    Handle::try_current().is_ok()
}

/// Whether the caller's runtime has timers. If not, the check prints a panic message.
pub(crate) fn has_timers() -> bool {
    catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok()
}

/// Work that was given to a runtime, and that is returned if the runtime does not start it. It ends
/// when its waiter is dropped.
pub(crate) struct Handed<F: Future> {
    work: Arc<Mutex<Option<F>>>,
    task: JoinHandle<Option<F::Output>>,
}

/// Why there is no result.
pub(crate) enum Unstarted<F> {
    /// The runtime did not start the work.
    Work(F),
    /// The runtime ended while the work was running.
    EndedMeanwhile,
    Panicked,
}

impl<F: Future> Handed<F> {
    pub(crate) fn new(work: F, runtime: &Handle) -> Self
    where
        F: Send + 'static,
        F::Output: Send,
    {
        let work = Arc::new(Mutex::new(Some(work)));
        let task = runtime.spawn(begin(work.clone()));
        Self { work, task }
    }

    /// Returns the work if it has not begun.
    pub(crate) fn take_back(&self) -> Option<F> {
        take(&self.work)
    }
}

fn take<F>(work: &Mutex<Option<F>>) -> Option<F> {
    work.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Returns `None` if the work was taken back.
async fn begin<F: Future>(work: Arc<Mutex<Option<F>>>) -> Option<F::Output> {
    let begun = take(&work);
    drop(work);
    Some(begun?.await)
}

impl<F: Future> Future for Handed<F> {
    type Output = Result<F::Output, Unstarted<F>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(pin!(unconstrained(&mut self.task)).poll(cx));
        Poll::Ready(match (answer, self.take_back()) {
            (Ok(Some(answer)), _) => Ok(answer),
            (_, Some(work)) => Err(Unstarted::Work(work)),
            (Err(error), None) if error.is_panic() => Err(Unstarted::Panicked),
            (_, None) => Err(Unstarted::EndedMeanwhile),
        })
    }
}

impl<F: Future> Drop for Handed<F> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The runtime ended while the work was running, or was forced to drop it.
pub(crate) struct EndedMeanwhile;

/// Runs `work`, which does not panic, on `runtime`, wherever this future is polled. If that runtime
/// has ended or starts nothing, the work runs where it is polled.
pub(crate) async fn run_on<F>(runtime: &Handle, work: F) -> Result<F::Output, EndedMeanwhile>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let mut handed = Handed::new(work, runtime);
    let answer = match select(&mut handed, pin!(timer::sleep(BEGINS_WITHIN))).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => match handed.take_back() {
            Some(work) => Err(Unstarted::Work(work)),
            None => handed.await,
        },
    };
    match answer {
        Ok(answer) => Ok(answer),
        Err(Unstarted::Work(work)) => Ok(work.await),
        Err(Unstarted::EndedMeanwhile | Unstarted::Panicked) => Err(EndedMeanwhile),
    }
}

/// Runs `work` in the background, or returns it if the runtime has ended and drops tasks.
pub(crate) fn spawn_on<F>(runtime: &Handle, work: F) -> Result<(), F>
where
    F: Future<Output = ()> + Send + 'static,
{
    let work = Arc::new(Mutex::new(Some(work)));
    let task = runtime.spawn(begin(work.clone()));
    match task.is_finished().then(|| take(&work)).flatten() {
        Some(work) => Err(work),
        None => Ok(()),
    }
}

/// Whether the caller's runtime has an IO driver. Finding out takes a socket. Like [`has_timers`],
/// the check prints a message only if there is none.
pub(crate) fn has_io() -> bool {
    #[cfg(unix)]
    let ask = || drop(tokio::net::UnixDatagram::unbound());
    #[cfg(not(unix))]
    let ask = || {
        if let Ok(socket) = std::net::UdpSocket::bind(("127.0.0.1", 0))
            .and_then(|s| s.set_nonblocking(true).map(|()| s))
        {
            drop(tokio::net::UdpSocket::from_std(socket));
        }
    };
    catch_unwind(ask).is_ok()
}
