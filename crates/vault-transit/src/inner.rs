//! The provider's state, and requests with the session's token.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use rustify::endpoint::Endpoint;
use tokio::sync::Mutex;

use crate::auth::{Authenticator, Verdict};
use crate::errors::Failure;
use crate::key::{ContextBinding, Known, Latest};
use crate::transport::{Reply, Transport};
use waxseal::KekId;
use waxseal::kek::toolkit::Spawner;

pub(crate) struct Inner {
    pub(crate) id: KekId,
    pub(crate) mount: String,
    pub(crate) key: String,
    pub(crate) chosen: Option<ContextBinding>,
    pub(crate) key_max_age: Duration,
    pub(crate) transport: Arc<Transport>,
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) spawner: Spawner,
    pub(crate) known: ArcSwapOption<Known>,
    /// Held by the caller that reads the key. Its value is the last failure to do so, and its time.
    pub(crate) reading: Mutex<Option<(Instant, Failure)>>,
    pub(crate) reading_in_background: Arc<AtomicBool>,
    /// A refusal might have been caused by outdated knowledge of the key.
    pub(crate) in_doubt: AtomicBool,
    pub(crate) latest: Latest,
}

/// The maximum number of tokens that one call is tried with, each replaced while the call was in
/// flight.
const MOST_SESSIONS: u32 = 4;

impl Inner {
    /// Sends a request with the session's token, and repeats it after a new login if the token was
    /// refused.
    pub(crate) async fn call<E: Endpoint>(
        &self,
        operation: &str,
        endpoint: &E,
        most: usize,
    ) -> Result<Reply, Failure> {
        let path = endpoint.path();
        let mut session = self.auth.session().await?;
        for _ in 0..MOST_SESSIONS {
            let reply =
                self.transport.send(operation, endpoint, session.token.as_ref(), most).await?;
            let Some(reason) = reply.refusal() else {
                // The server processed bad input, so the path was allowed.
                if reply.is_success() || reply.status == 400 {
                    self.auth.worked(&session, &path);
                }
                return Ok(reply);
            };
            session = match self.auth.after_refusal(&session, &path, reason).await? {
                Verdict::Again(session) => session,
                Verdict::Denied => return Ok(reply),
            };
        }
        Err(Failure::unavailable(format!(
            "{operation}: the token is replaced faster than it can be used"
        )))
    }
}
