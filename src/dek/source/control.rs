//! The operator's actions: revocation, eviction and shut-down.
#![forbid(unsafe_code)]

use std::future::Future;

use futures_util::FutureExt;

use super::super::lease::shut_down;
use super::DekSource;
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::kek::KekId;
use crate::observe::{Event, LaterEvent};
use crate::sync::atomic::Ordering;

impl DekSource {
    /// Ends every DEK that came from `kek_id`, and stops using that KEK.
    pub(crate) fn revoke_kek(&self, kek_id: &KekId) {
        self.keks.revoke(kek_id);
        self.cache().revoke_kek(kek_id);
        self.emit(&Event::Revoked { kek_id });
    }

    pub(crate) fn reinstate_kek(&self, kek_id: &KekId) {
        self.keks.reinstate(kek_id);
        self.cache().forget_refusals();
        self.emit(&Event::Reinstated { kek_id });
    }

    pub(crate) fn evict_context(&self, context: &EncryptionContext) {
        self.cache().evict_context(context);
    }

    pub(super) fn evict_branch(&self, is_of_branch: impl Fn(&EncryptionContext) -> bool) {
        self.cache().evict_contexts(is_of_branch);
    }

    /// Does the same as [`evict_branch`](Self::evict_branch), from a destructor.
    pub(super) fn evict_branch_later(&self, is_of_branch: impl Fn(&EncryptionContext) -> bool) {
        self.cache().evict_contexts_later(is_of_branch);
    }

    pub(crate) fn evict_all(&self) {
        let cache = self.cache();
        cache.revoke_all();
        cache.forget_refusals();
    }

    /// Ends every DEK, every handle and every call for good, without notifying observers. A later
    /// [`shut_down`](Self::shut_down) does that.
    pub(crate) fn stop(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let cache = self.cache();
        cache.close();
        cache.end_all_quietly();
    }

    /// Ends every DEK, every handle and every call for good. If there is a runtime, the providers
    /// release what they hold in the background.
    pub(crate) fn shut_down(&self) {
        if self.end() {
            self.give_up_later();
        }
    }

    /// Does the same as [`shut_down`](Self::shut_down), without waiting for observers.
    pub(crate) fn shut_down_later(&self) {
        self.stop();
        self.cache().end_all_later();
        for accessed in self.cache().take_counts() {
            self.options.observers.emit_later(LaterEvent::Accessed(accessed));
        }
        if !self.reported.swap(true, Ordering::SeqCst) {
            self.options.observers.emit_later(LaterEvent::ShutDown);
            self.give_up_later();
        }
    }

    /// Does the same as [`shut_down`](Self::shut_down), and waits for the providers.
    pub(crate) async fn close(&self) {
        // Also after a `shut_down` without a working runtime, and after a `close` whose caller went
        // away. A provider does not release anything twice.
        self.end();
        if !self.given_up.load(Ordering::SeqCst) {
            self.give_up().await;
        }
    }

    fn give_up_later(&self) {
        let Some(runtime) = &self.options.runtime else { return };
        runtime.spawn(Box::pin(self.give_up()));
    }

    fn give_up(&self) -> impl Future<Output = ()> + Send + 'static {
        let (closing, given_up) =
            (futures_util::future::join_all(self.keks.closing()), self.given_up.clone());
        closing.map(move |_| given_up.store(true, Ordering::SeqCst))
    }

    /// Returns `false` if it had already ended.
    fn end(&self) -> bool {
        // Everything is wiped before an observer can block.
        self.stop();
        let is_first = !self.reported.swap(true, Ordering::SeqCst);
        if is_first {
            self.emit(&Event::ShutDown);
        }
        self.cache().revoke_all();
        for accessed in self.cache().take_counts() {
            self.emit(&accessed.as_event());
        }
        is_first
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match self.closed.load(Ordering::SeqCst) {
            true => Err(shut_down()),
            false => Ok(()),
        }
    }
}
