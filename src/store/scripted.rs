//! A key store that a test scripts: it fails in a class, waits, lies, and counts its calls. Tests
//! of services can use it too.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;

use super::{
    BoxFuture, BranchId, Erasure, Insertion, KeyStore, MemoryStore, RowId, ScanCursor, ScanPage,
    StoreError, StoreErrorClass, StoredRow,
};
use crate::kek::CallAdvice;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A [`KeyStore`] behind a script. A clone is another handle to the same store and script.
///
/// ```
/// use waxseal::store::scripted::ScriptedStore;
/// use waxseal::store::{KeyStore, RowId, StoreErrorClass};
///
/// # pollster::block_on(async {
/// let store = ScriptedStore::in_memory();
/// store.fail_with(StoreErrorClass::Unavailable);
/// let error = store.get(&RowId::from_bytes([0; 16])).await.unwrap_err();
/// assert_eq!(error.class(), StoreErrorClass::Unavailable);
/// assert_eq!(store.calls().gets, 1);
/// # })
/// ```
#[derive(Clone)]
pub struct ScriptedStore(Arc<Inner>);

struct Inner {
    store: Arc<dyn KeyStore>,
    script: Mutex<Script>,
    inserts: AtomicU64,
    gets: AtomicU64,
    branches: AtomicU64,
    replaces: AtomicU64,
    erasures: AtomicU64,
    scans: AtomicU64,
    healths: AtomicU64,
}

type Wait = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;
type Lie = Arc<dyn Fn(Vec<StoredRow>) -> Vec<StoredRow> + Send + Sync>;

#[derive(Default)]
struct Script {
    acts: VecDeque<Act>,
    failure: Option<StoreErrorClass>,
    wait: Option<Wait>,
    lie: Option<Lie>,
    advice: CallAdvice,
    warning: Option<Box<str>>,
}

/// What one call to a [`ScriptedStore`] does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Act {
    /// It succeeds.
    Succeed,
    /// It fails in this class, without any effect.
    Fail(StoreErrorClass),
    /// It does what was requested, and then fails in this class: the response was lost.
    LoseAnswer(StoreErrorClass),
    /// It does what was requested, the response is lost, and after another wait it does the same
    /// again, as clients of stores do. The caller gets the second response.
    Repeat,
    /// It never returns, and has no effect.
    Hang,
    /// It panics.
    Panic,
}

/// How often a [`ScriptedStore`] was called, failed calls included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Calls {
    /// Calls of `insert`.
    pub inserts: u64,
    /// Calls of `get`.
    pub gets: u64,
    /// Calls of `branch`.
    pub branches: u64,
    /// Calls of `replace`.
    pub replaces: u64,
    /// Calls of `erase_branch`.
    pub erasures: u64,
    /// Calls of `scan`.
    pub scans: u64,
    /// Calls of `health`.
    pub healths: u64,
}

impl Calls {
    /// All calls.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.inserts
            + self.gets
            + self.branches
            + self.replaces
            + self.erasures
            + self.scans
            + self.healths
    }
}

impl ScriptedStore {
    /// Puts a script in front of an empty [`MemoryStore`].
    #[must_use]
    pub fn in_memory() -> Self {
        Self::over(MemoryStore::new())
    }

    /// Puts a script in front of an existing store.
    #[must_use]
    pub fn over(store: impl KeyStore + 'static) -> Self {
        Self(Arc::new(Inner {
            store: Arc::new(store),
            script: Mutex::default(),
            inserts: AtomicU64::new(0),
            gets: AtomicU64::new(0),
            branches: AtomicU64::new(0),
            replaces: AtomicU64::new(0),
            erasures: AtomicU64::new(0),
            scans: AtomicU64::new(0),
            healths: AtomicU64::new(0),
        }))
    }

    /// Returns the store behind the script. Its calls are not counted.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn KeyStore> {
        &self.0.store
    }

    /// Makes every call fail in this class from now on, or no call with `None`. The choice is made
    /// after a call's wait.
    pub fn fail_with(&self, class: impl Into<Option<StoreErrorClass>>) {
        self.script_lock().failure = class.into();
    }

    /// Sets what the next calls do, in order. After them, [`fail_with`](Self::fail_with) decides.
    pub fn script(&self, acts: impl IntoIterator<Item = Act>) {
        self.script_lock().acts.extend(acts);
    }

    /// Makes every call first wait for the future of `wait`, from now on.
    pub fn wait_for(&self, wait: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static) {
        self.script_lock().wait = Some(Arc::new(wait));
    }

    /// Makes calls stop waiting from now on.
    pub fn wait_no_more(&self) {
        self.script_lock().wait = None;
    }

    /// Makes every read return what `lie` makes of the true rows, from now on. `lie` gets the rows
    /// of `branch`, the one row of `get` or none, and the row that `insert` found. For `get` and
    /// `insert`, the first row that it returns is used. If it returns none, `get` finds nothing,
    /// and `insert` claims to have inserted.
    pub fn lie(&self, lie: impl Fn(Vec<StoredRow>) -> Vec<StoredRow> + Send + Sync + 'static) {
        self.script_lock().lie = Some(Arc::new(lie));
    }

    /// Makes every read return the truth from now on.
    pub fn tell_the_truth(&self) {
        self.script_lock().lie = None;
    }

    /// Sets the advice about its calls from now on.
    pub fn advise(&self, advice: CallAdvice) {
        self.script_lock().advice = advice;
    }

    /// Sets its warning from now on.
    pub fn warn_of(&self, warning: impl Into<Option<Box<str>>>) {
        self.script_lock().warning = warning.into();
    }

    /// Returns how often it was called.
    #[must_use]
    pub fn calls(&self) -> Calls {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Calls {
            inserts: count(&self.0.inserts),
            gets: count(&self.0.gets),
            branches: count(&self.0.branches),
            replaces: count(&self.0.replaces),
            erasures: count(&self.0.erasures),
            scans: count(&self.0.scans),
            healths: count(&self.0.healths),
        }
    }

    fn script_lock(&self) -> MutexGuard<'_, Script> {
        self.0.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, rows: Vec<StoredRow>) -> Vec<StoredRow> {
        let lie = self.script_lock().lie.clone();
        match lie {
            Some(lie) => lie(rows),
            None => rows,
        }
    }

    async fn wait(&self) {
        let wait = self.script_lock().wait.clone();
        if let Some(wait) = wait {
            wait().await;
        }
    }

    async fn act<'c, T>(
        &self,
        counter: &AtomicU64,
        call: impl Fn() -> BoxFuture<'c, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        counter.fetch_add(1, Ordering::SeqCst);
        self.wait().await;
        let act = {
            let mut script = self.script_lock();
            let then = script.failure.map_or(Act::Succeed, Act::Fail);
            script.acts.pop_front().unwrap_or(then)
        };
        match act {
            Act::Succeed => call().await,
            Act::Fail(class) => Err(by_script(class)),
            Act::LoseAnswer(class) => {
                call().await?;
                Err(by_script(class))
            }
            Act::Repeat => {
                call().await?;
                self.wait().await;
                call().await
            }
            Act::Hang => std::future::pending().await,
            #[expect(clippy::panic, reason = "the script asks for it")]
            Act::Panic => panic!("by script"),
        }
    }
}

fn by_script(class: StoreErrorClass) -> StoreError {
    match class {
        StoreErrorClass::Unavailable => StoreError::unavailable("by script"),
        StoreErrorClass::Throttled => StoreError::throttled("by script"),
        StoreErrorClass::Misconfigured => StoreError::misconfigured("by script"),
    }
}

impl KeyStore for ScriptedStore {
    fn name(&self) -> &str {
        self.0.store.name()
    }

    fn insert<'a>(&'a self, row: &'a StoredRow) -> BoxFuture<'a, Result<Insertion, StoreError>> {
        Box::pin(async move {
            match self.act(&self.0.inserts, || self.0.store.insert(row)).await? {
                Insertion::Inserted => Ok(Insertion::Inserted),
                Insertion::Exists(there) => {
                    let told = self.told(vec![there]).into_iter().next();
                    Ok(told.map_or(Insertion::Inserted, Insertion::Exists))
                }
            }
        })
    }

    fn get<'a>(&'a self, id: &'a RowId) -> BoxFuture<'a, Result<Option<StoredRow>, StoreError>> {
        Box::pin(async move {
            let found = self.act(&self.0.gets, || self.0.store.get(id)).await?;
            Ok(self.told(found.into_iter().collect()).into_iter().next())
        })
    }

    fn branch<'a>(
        &'a self,
        branch: &'a BranchId,
        from: i64,
    ) -> BoxFuture<'a, Result<Vec<StoredRow>, StoreError>> {
        Box::pin(async move {
            let found = self.act(&self.0.branches, || self.0.store.branch(branch, from)).await?;
            Ok(self.told(found))
        })
    }

    fn replace<'a>(
        &'a self,
        old: &'a StoredRow,
        new: &'a StoredRow,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(self.act(&self.0.replaces, move || self.0.store.replace(old, new)))
    }

    fn erase_branch<'a>(
        &'a self,
        branch: &'a BranchId,
    ) -> BoxFuture<'a, Result<Erasure, StoreError>> {
        Box::pin(self.act(&self.0.erasures, move || self.0.store.erase_branch(branch)))
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a ScanCursor>,
        limit: usize,
    ) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        Box::pin(self.act(&self.0.scans, move || self.0.store.scan(after, limit)))
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.act(&self.0.healths, move || self.0.store.health()))
    }

    fn warning(&self) -> Option<Box<str>> {
        self.script_lock().warning.clone()
    }

    fn advice(&self) -> CallAdvice {
        self.script_lock().advice.clone()
    }
}

impl fmt::Debug for ScriptedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedStore")
            .field("store", &self.0.store)
            .field("calls", &self.calls())
            .finish_non_exhaustive()
    }
}
