//! Callers that wait for one event, and a latch that they can wait for.
#![forbid(unsafe_code)]

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::atomic::{AtomicBool, Ordering};
use super::foreign::caught;
use super::{Mutex, MutexGuard, PoisonError};

/// The wakers of all callers that wait for one event. All of them are woken, so one that is not
/// polled does not hold up the others.
#[derive(Default)]
pub(crate) struct Wakers(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    first_free: usize,
}

enum Slot {
    Free { next: usize },
    Taken(Option<Waker>),
}

impl Wakers {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a caller and returns its slot.
    pub(crate) fn add(&self) -> usize {
        let mut all = self.lock();
        let slot = all.first_free;
        match all.slots.get_mut(slot) {
            Some(free) => {
                let next = if let Slot::Free { next } = free { *next } else { usize::MAX };
                *free = Slot::Taken(None);
                all.first_free = next;
                slot
            }
            None => {
                all.slots.push(Slot::Taken(None));
                all.first_free = all.slots.len();
                all.slots.len() - 1
            }
        }
    }

    /// Registers the waker of a caller. Returns `false` if it already had one that has not been
    /// woken since.
    pub(crate) fn register(&self, slot: usize, waker: &Waker) -> bool {
        let waker = waker.clone();
        // The previous one is dropped outside the lock: it may be the last owner of a task.
        let before = match self.lock().slots.get_mut(slot) {
            Some(Slot::Taken(registered)) => registered.replace(waker),
            _ => None,
        };
        let is_first = before.is_none();
        discard(before);
        is_first
    }

    /// Removes a caller. Its slot may be used again.
    pub(crate) fn remove(&self, slot: usize) {
        let removed = {
            let mut all = self.lock();
            let next = all.first_free;
            let removed =
                all.slots.get_mut(slot).map(|taken| std::mem::replace(taken, Slot::Free { next }));
            all.first_free = slot;
            removed
        };
        discard(removed);
    }

    pub(crate) fn wake_all(&self) {
        let wakers: Vec<Waker> = self.lock().slots.iter_mut().filter_map(Slot::take).collect();
        for waker in wakers {
            // A waker that panics does not keep the others asleep.
            caught(|| waker.wake());
        }
    }
}

/// Drops a waker, or an owner of one. If it panics, its caller can still leave, and the unwinding
/// of another panic continues.
fn discard<T>(waker: T) {
    caught(|| drop(waker));
}

impl Slot {
    fn take(&mut self) -> Option<Waker> {
        match self {
            Self::Free { .. } => None,
            Self::Taken(waker) => waker.take(),
        }
    }
}

/// A flag that is set once, and that any number of callers can wait for.
#[derive(Default)]
pub(crate) struct Latch {
    is_set: AtomicBool,
    wakers: Wakers,
}

impl Latch {
    pub(crate) fn set(&self) {
        self.is_set.store(true, Ordering::SeqCst);
        self.wakers.wake_all();
    }

    /// Waits until it is set.
    pub(crate) fn wait(&self) -> LatchWait<'_> {
        LatchWait { latch: self, slot: None }
    }

    fn is_set(&self) -> bool {
        self.is_set.load(Ordering::SeqCst)
    }
}

pub(crate) struct LatchWait<'a> {
    latch: &'a Latch,
    slot: Option<usize>,
}

impl Future for LatchWait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let latch = self.latch;
        if latch.is_set() {
            return Poll::Ready(());
        }
        let slot = *self.slot.get_or_insert_with(|| latch.wakers.add());
        latch.wakers.register(slot, cx.waker());
        // It may have been set before the waker was registered.
        if latch.is_set() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for LatchWait<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.latch.wakers.remove(slot);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Counts(AtomicUsize);

    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            std::panic::resume_unwind(Box::new("a waker that panics"));
        }
    }

    fn counter() -> (Arc<Counts>, Waker) {
        let counts = Arc::<Counts>::default();
        (counts.clone(), counts.into())
    }

    #[test]
    fn all_are_woken_once_and_slots_are_used_again() {
        let wakers = Wakers::default();
        let (counts, waker) = counter();
        let slots: Vec<_> = (0..4).map(|_| wakers.add()).collect();
        assert!(slots.iter().all(|slot| wakers.register(*slot, &waker)));
        assert!(!wakers.register(slots[0], &waker), "it was not woken since");
        wakers.remove(slots[1]);
        wakers.remove(slots[3]);
        wakers.wake_all();
        wakers.wake_all();
        assert_eq!(counts.0.load(Ordering::SeqCst), 2);
        assert!(wakers.register(slots[0], &waker), "it was woken since");
        assert_eq!([wakers.add(), wakers.add(), wakers.add()], [slots[3], slots[1], 4]);
    }

    #[test]
    fn a_waker_that_panics_keeps_no_other_asleep() {
        let wakers = Wakers::default();
        let (counts, waker) = counter();
        for waker in [&Waker::from(Arc::new(Panics)), &waker] {
            wakers.register(wakers.add(), waker);
        }
        wakers.wake_all();
        assert_eq!(counts.0.load(Ordering::SeqCst), 1);
    }

    struct PanicsOnDrop;

    impl Wake for PanicsOnDrop {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("a waker that panics on drop"));
        }
    }

    #[test]
    fn a_waker_that_panics_on_drop_keeps_no_caller_from_leaving() {
        let (wakers, slot) = (Wakers::default(), 0);
        assert_eq!(wakers.add(), slot);
        for _ in 0..2 {
            let waker = Waker::from(Arc::new(PanicsOnDrop));
            wakers.register(slot, &waker);
            // What is registered is the last owner.
            discard(waker);
        }
        wakers.remove(slot);
        assert_eq!(wakers.add(), slot);
        wakers.wake_all();
    }

    #[test]
    fn a_latch_wakes_those_who_wait_and_lets_later_ones_pass() {
        let latch = Latch::default();
        let (counts, waker) = counter();
        let cx = &mut Context::from_waker(&waker);
        let (mut waits, mut left) = (latch.wait(), latch.wait());
        assert!(
            Pin::new(&mut waits).poll(cx).is_pending() && Pin::new(&mut left).poll(cx).is_pending()
        );
        drop(left);
        latch.set();
        assert_eq!(counts.0.load(Ordering::SeqCst), 1);
        assert!(
            Pin::new(&mut waits).poll(cx).is_ready()
                && Pin::new(&mut latch.wait()).poll(cx).is_ready()
        );
    }
}
