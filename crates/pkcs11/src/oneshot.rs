//! An answer from a thread to a future, without a runtime.
#![forbid(unsafe_code)]

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
    is_over: bool,
    is_wanted: bool,
}

/// The end that answers. If it is dropped without an answer, waiting ends.
pub(crate) struct Sender<T>(Arc<Mutex<State<T>>>);

/// The end that waits. `None` means that no answer will come.
pub(crate) struct Receiver<T>(Arc<Mutex<State<T>>>);

pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { value: None, waker: None, is_over: false, is_wanted: true };
    let state = Arc::new(Mutex::new(state));
    (Sender(state.clone()), Receiver(state))
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Sender<T> {
    pub(crate) fn send(self, value: T) {
        let mut state = lock(&self.0);
        // An answer that nobody waits for is dropped here, and wiped if it is a DEK.
        if state.is_wanted {
            state.value = Some(value);
        }
    }

    /// Whether somebody still waits.
    pub(crate) fn is_wanted(&self) -> bool {
        lock(&self.0).is_wanted
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.is_over = true;
        let waker = state.waker.take();
        drop(state);
        // Foreign code: not under the lock.
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = lock(&self.0);
        if state.is_over {
            return Poll::Ready(state.value.take());
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(task.waker()),
            none => *none = Some(task.waker().clone()),
        }
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.is_wanted = false;
        let unread = state.value.take();
        drop(state);
        drop(unread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_arrives_whenever_it_is_given() {
        let (sender, receiver) = channel();
        sender.send(1);
        assert_eq!(pollster::block_on(receiver), Some(1));
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || pollster::block_on(receiver));
        std::thread::sleep(std::time::Duration::from_millis(20));
        sender.send(2);
        assert_eq!(thread.join().unwrap(), Some(2));
    }

    #[test]
    fn a_sender_that_is_dropped_ends_the_waiting_and_a_receiver_that_is_dropped_is_noticed() {
        let (sender, receiver) = channel::<u8>();
        drop(sender);
        assert_eq!(pollster::block_on(receiver), None);
        let (sender, receiver) = channel();
        assert!(sender.is_wanted());
        drop(receiver);
        assert!(!sender.is_wanted());
        let value = Arc::new(());
        sender.send(value.clone());
        assert_eq!(Arc::strong_count(&value), 1, "nothing is kept for nobody");
    }
}
