//! Connections that calls share.
//!
//! A connection whose call failed, was dropped or took too long is closed and not reused: its late
//! answer would be taken for the answer to the next call, and a server that does not answer would
//! keep it for minutes. sqlx's own pool reuses such a connection, and if a server refuses at once,
//! it retries without saying why for as long as a caller waits.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use waxseal::kek::toolkit::Spawner;
use waxseal::kek::{KekError, KekErrorClass};
use waxseal::store::{BoxFuture, StoreError, StoreErrorClass};
use waxseal::{Error, ErrorKind};

/// A read assumes that a connection used this recently is alive.
const ALIVE: Duration = Duration::from_secs(1);
/// Older connections are replaced, so that they spread over the available servers.
const MAX_AGE: Duration = Duration::from_secs(1800);
const MAX_IDLE: Duration = Duration::from_secs(300);

/// Makes connections to one database.
pub(crate) trait Connector: Send + Sync + 'static {
    type Connection: Connection + Send;

    /// Connects, and checks that the database is the right one.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, StoreError>> + Send;

    /// Whether the data is in the connection and ends with it, as in a database in memory.
    fn is_the_database(&self) -> bool {
        false
    }
}

pub(crate) struct Pool<C: Connector> {
    connector: C,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Idle<C::Connection>>>,
    timeout: Duration,
    spawner: Spawner,
}

struct Idle<T> {
    connection: T,
    made: Instant,
    used: Instant,
}

impl<C: Connector> fmt::Debug for Pool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("idle", &self.idle().len()).finish_non_exhaustive()
    }
}

/// The work of a call on its connection.
pub(crate) type Work<'c, T> = BoxFuture<'c, Result<T, StoreError>>;

impl<C: Connector> Pool<C> {
    pub(crate) fn new(connector: C, most: usize, timeout: Duration) -> Result<Arc<Self>, Error> {
        let spawner = Spawner::current().map_err(|_| {
            Error::new(
                ErrorKind::InvalidOption,
                "a store on sqlx has to be made within a tokio runtime that has IO and timers",
            )
        })?;
        let permits = Arc::new(Semaphore::new(most.clamp(1, 10_000)));
        Ok(Arc::new(Self { connector, permits, idle: Mutex::default(), timeout, spawner }))
    }

    pub(crate) fn connector(&self) -> &C {
        &self.connector
    }

    /// Runs `work` on a connection of the pool, within the timeout. It runs once: the connection is
    /// checked for life first.
    pub(crate) async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl for<'c> FnOnce(&'c mut C::Connection) -> Work<'c, T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let pool = self.clone();
        self.run(self.timeout, async move {
            let mut lease = pool.lease(Duration::ZERO).await?;
            lease.run(work).await
        })
        .await
    }

    /// Does the same as [`call`](Self::call), for work that changes nothing. A recently used
    /// connection is not checked for life. If the work fails on it as unavailable, such as after a
    /// restart of the server, it runs once more, on a connection that was checked.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl for<'c> Fn(&'c mut C::Connection) -> Work<'c, T> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let pool = self.clone();
        self.run(self.timeout, async move {
            let mut lease = pool.clone().lease(ALIVE).await?;
            let result = lease.run(&work).await;
            match result {
                Err(error) if lease.was_idle && error.class() == StoreErrorClass::Unavailable => {
                    drop(lease);
                    pool.lease(Duration::ZERO).await?.run(&work).await
                }
                result => result,
            }
        })
        .await
    }

    /// Runs `work` on a runtime that suits the driver, wherever this future is polled.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let bounded = async move {
            let result = tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
                Err(StoreError::unavailable(format!("no answer within {timeout:?}")))
            });
            Ok::<_, KekError>(result)
        };
        self.spawner.run(bounded).await.unwrap_or_else(|error| Err(not_run(&error)))
    }

    /// Returns a connection that answers, or was used within `trusted`.
    async fn lease(self: Arc<Self>, trusted: Duration) -> Result<Lease<C>, StoreError> {
        let permits = self.permits.clone();
        let permit = permits
            .acquire_owned()
            .await
            .map_err(|_| StoreError::unavailable("the store is closed"))?;
        while let Some(mut idle) = self.take_idle() {
            // A server that vanished silently must not cost the whole timeout.
            let answers = self.connector.is_the_database()
                || idle.used.elapsed() < trusted
                || tokio::time::timeout(self.timeout / 4, idle.connection.ping())
                    .await
                    .is_ok_and(|pong| pong.is_ok());
            if answers {
                return Ok(Lease::new(self, idle, true, permit));
            }
            drop(idle);
            self.idle().clear();
        }
        let made = Instant::now();
        let connection = self.connector.connect().await?;
        let idle = Idle { connection, made, used: made };
        Ok(Lease::new(self, idle, false, permit))
    }

    fn take_idle(&self) -> Option<Idle<C::Connection>> {
        let mut idle = self.idle();
        if !self.connector.is_the_database() {
            idle.retain(|idle| idle.made.elapsed() < MAX_AGE && idle.used.elapsed() < MAX_IDLE);
        }
        idle.pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle<C::Connection>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The spawner's errors speak of providers.
fn not_run(error: &KekError) -> StoreError {
    match error.class() {
        KekErrorClass::Misconfigured => StoreError::misconfigured(
            "the process forked since the store was made: make it again in the child",
        ),
        _ => StoreError::unavailable(
            "the tokio runtime in which the store was made has ended, or nothing drives it",
        ),
    }
}

/// A connection in use. It returns to the pool if its call ended well.
struct Lease<C: Connector> {
    pool: Arc<Pool<C>>,
    connection: Option<Idle<C::Connection>>,
    /// Whether another call used the connection before.
    was_idle: bool,
    is_unharmed: bool,
    _permit: OwnedSemaphorePermit,
}

impl<C: Connector> Lease<C> {
    fn new(
        pool: Arc<Pool<C>>,
        idle: Idle<C::Connection>,
        was_idle: bool,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { pool, connection: Some(idle), was_idle, is_unharmed: false, _permit: permit }
    }

    async fn run<T>(
        &mut self,
        work: impl for<'c> FnOnce(&'c mut C::Connection) -> Work<'c, T>,
    ) -> Result<T, StoreError> {
        let Some(idle) = self.connection.as_mut() else {
            return Err(StoreError::unavailable("no connection"));
        };
        // Until the work has succeeded, since it may be dropped in the middle.
        self.is_unharmed = false;
        let result = work(&mut idle.connection).await;
        self.is_unharmed = result.is_ok();
        result
    }
}

impl<C: Connector> Drop for Lease<C> {
    fn drop(&mut self) {
        if (self.is_unharmed || self.pool.connector.is_the_database())
            && let Some(mut idle) = self.connection.take()
        {
            idle.used = Instant::now();
            self.pool.idle().push(idle);
        }
    }
}
