//! Reads the key from the server, caches what is known, and reads it again in case of doubt.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::endpoints::{KeyConfiguration, read_key};
use crate::errors::{Failure, presentable};
use crate::inner::Inner;
use crate::key::{Binding, ContextBinding, KeyInfo, Known};
use crate::transport::SMALL;
use waxseal::kek::KekErrorClass;

/// After a refusal the key is read again, but not more often than this, since anyone who writes
/// messages can provoke refusals.
const DOUBT_AT_MOST_EVERY: Duration = Duration::from_secs(1);

impl Inner {
    /// Returns what is known of the key. Reads it first if nothing is known, or in case of doubt.
    pub(crate) async fn known(self: &Arc<Self>) -> Result<Arc<Known>, Failure> {
        match self.known.load_full() {
            Some(known) if !self.is_in_doubt(&known) => {
                self.look_ahead(&known);
                Ok(known)
            }
            _ => {
                let asked = Instant::now();
                let mut last_failure = self.reading.lock().await;
                // Somebody may have read it meanwhile, or failed to.
                match (self.known.load_full(), &*last_failure) {
                    (Some(known), _) if !self.is_in_doubt(&known) => Ok(known),
                    // Anyone who writes messages can cause doubt. Others must not depend on one
                    // more request because of that.
                    (Some(known), Some((at, failure)))
                        if failure.is_passing() && at.elapsed() < DOUBT_AT_MOST_EVERY =>
                    {
                        Ok(known)
                    }
                    (_, Some((at, failure))) if *at >= asked => Err(failure.clone()),
                    (before, _) => {
                        let known = self.read_key_now().await;
                        *last_failure =
                            known.as_ref().err().map(|failure| (Instant::now(), failure.clone()));
                        match (known, before) {
                            (Err(failure), Some(before)) if failure.is_passing() => Ok(before),
                            (known, _) => known,
                        }
                    }
                }
            }
        }
    }

    fn is_in_doubt(&self, known: &Known) -> bool {
        self.in_doubt.load(Ordering::Relaxed) && known.at.elapsed() >= DOUBT_AT_MOST_EVERY
    }

    /// Reads the key in the background when what is known is old.
    pub(crate) fn look_ahead(self: &Arc<Self>, known: &Known) {
        if known.at.elapsed() >= self.key_max_age {
            self.read_key_in_background();
        }
    }

    pub(crate) fn read_key_in_background(self: &Arc<Self>) {
        let inner = self.clone();
        self.spawner.spawn_one(&self.reading_in_background, async move {
            // A failure changes nothing: the next caller that needs the key encounters it too.
            let _ = inner.read_key_now().await;
        });
    }

    pub(crate) async fn read_key_now(&self) -> Result<Arc<Known>, Failure> {
        let at = Instant::now();
        let reply = self.call("read the key", &read_key(&self.mount, &self.key), SMALL).await?;
        let answer = reply.success::<KeyConfiguration>("read the key");
        // No message influences this request.
        let answer = answer.map_err(|failure| Failure { on_the_way: false, ..failure })?;
        let key = answer.data.ok_or_else(|| Failure::not_understood("read the key"))?;
        let binding = self.binding_of(&key)?;
        let info = KeyInfo {
            derived: key.derived,
            latest_version: key.latest_version,
            min_decryption_version: key.min_decryption_version,
        };
        let known = Arc::new(Known { info, binding, at });
        self.latest.learn_from_key(info.latest_version, at);
        self.in_doubt.store(false, Ordering::Relaxed);
        self.known.rcu(|there| match there {
            Some(newer) if newer.at > at => Some(newer.clone()),
            _ => Some(known.clone()),
        });
        Ok(known)
    }

    /// Decides from the key's own configuration how the context binds. An earlier decision that no
    /// longer applies is dropped.
    fn binding_of(&self, key: &KeyConfiguration) -> Result<Binding, Failure> {
        let refused = |class, why: &str| {
            self.known.store(None);
            Err(Failure::new(class, format!("the key {} {why}", self.key)))
        };
        let is_usable = matches!(
            &*key.key_type,
            "aes256-gcm96" | "chacha20-poly1305" | "xchacha20-poly1305" | "managed_key"
        );
        match (key.derived, self.chosen) {
            _ if key.soft_deleted => refused(KekErrorClass::Denied, "is soft-deleted"),
            _ if !is_usable => {
                let why = format!(
                    "has the type {}; expected aes256-gcm96 or chacha20-poly1305",
                    presentable(&key.key_type)
                );
                refused(KekErrorClass::Misconfigured, &why)
            }
            _ if key.convergent_encryption => {
                refused(KekErrorClass::Misconfigured, "is convergent: it wraps without randomness")
            }
            (true, _) => Ok(Binding::Derived),
            (false, Some(ContextBinding::AssociatedData)) => Ok(Binding::AssociatedData),
            (false, Some(ContextBinding::Unbound)) => Ok(Binding::Unbound),
            (false, None) => {
                let why = "is not derived, so the server ignores the context; create it with derived=true, or choose a binding";
                refused(KekErrorClass::Misconfigured, why)
            }
        }
    }

    /// Notes that such a refusal may be caused by a changed key.
    pub(crate) fn note(&self, failure: Failure) -> Failure {
        if matches!(failure.class, KekErrorClass::Invalid | KekErrorClass::Denied) {
            self.in_doubt.store(true, Ordering::Relaxed);
        }
        failure
    }
}
