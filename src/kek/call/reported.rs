//! Reports by a provider about its request, beside the result.
//!
//! A report belongs to the future being polled. A result has no field for it that every wrapper of
//! a provider would pass on.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;

use crate::sync::thread_local;

/// The maximum size of an id in bytes. The rest is dropped.
const MAX_ID: usize = 256;

thread_local! {
    /// The last id reported while the current future is polled.
    static REPORTED: RefCell<Option<Box<str>>> = const { RefCell::new(None) };
}

/// Reports the key service's own id of the request that was just answered, so that events
/// ([`Event::Called`](crate::Event::Called), `Wrapped`, `Unwrapped`) can be joined with the key
/// service's log. Call it in the provider's own future, or in one that `Spawner` runs, and not in
/// another task. If one call makes several requests, the last one counts. At most 256 visible ASCII
/// characters are kept.
pub fn report_request_id(id: &str) {
    let id: String = id.chars().take_while(char::is_ascii_graphic).take(MAX_ID).collect();
    replace(Some(id.into_boxed_str()).filter(|id| !id.is_empty()));
}

fn replace(id: Option<Box<str>>) -> Option<Box<str>> {
    // While the thread ends, there is nothing left to report to.
    REPORTED.try_with(|reported| reported.replace(id)).unwrap_or(None)
}

/// Runs `work`, which does not panic, and returns the id reported meanwhile. The id is also
/// reported to the future that runs this one.
pub(crate) async fn with_request_id<T>(work: impl Future<Output = T>) -> (T, Option<Box<str>>) {
    let (mut work, mut reported) = (pin!(work), None);
    let output = poll_fn(|context| {
        let outer = replace(reported.take());
        let polled = work.as_mut().poll(context);
        reported = replace(outer);
        polled
    })
    .await;
    if reported.is_some() {
        replace(reported.clone());
    }
    (output, reported)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_reported_belongs_to_the_future_that_is_polled() {
        let once_pending = || {
            let mut polls = 0;
            poll_fn(move |context| {
                polls += 1;
                context.waker().wake_by_ref();
                if polls > 1 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
        };
        let request = |id: &'static str| async move {
            report_request_id(id);
            once_pending().await;
        };
        let both = futures_util::future::join(
            with_request_id(request("a")),
            with_request_id(with_request_id(request("b"))),
        );
        let ((_, first), (((), inner), second)) = pollster::block_on(both);
        assert_eq!((first.as_deref(), inner.as_deref()), (Some("a"), Some("b")));
        assert_eq!(second.as_deref(), Some("b"), "it is handed on");
        replace(None);
        let ((), none) = pollster::block_on(with_request_id(once_pending()));
        assert_eq!(none, None);
    }

    #[test]
    fn only_visible_characters_are_kept_and_not_too_many() {
        let reported = |id: &str| {
            let id = id.to_owned();
            pollster::block_on(with_request_id(async move { report_request_id(&id) })).1
        };
        assert_eq!(reported("abc\ndef").as_deref(), Some("abc"));
        assert_eq!(reported(&"x".repeat(1000)).map(|id| id.len()), Some(MAX_ID));
        assert_eq!(reported("\n"), None);
    }
}
