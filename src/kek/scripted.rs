//! A KEK that a test scripts: it fails in a class, waits, and counts its calls. Tests of services
//! can use it too.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::local::LocalKek;
use super::{
    BoxFuture, CallAdvice, CallTarget, ContextBinding, Dek, Health, KekError, KekErrorClass, KekId,
    KekProvider, UnwrappedDek, WrappedDek,
};
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A [`LocalKek`] in memory behind a script. A clone is another handle to the same KEK.
///
/// ```
/// use waxseal::kek::{KekErrorClass, scripted::ScriptedKek};
/// use waxseal::{Aad, EncryptionContext, Envelope};
///
/// # pollster::block_on(async {
/// let kek = ScriptedKek::new("test")?;
/// let envelope = Envelope::builder().wrap_with(kek.clone()).build()?;
/// kek.fail_with(KekErrorClass::Unavailable);
/// let error = envelope.encrypt(&EncryptionContext::empty(), Aad::empty(), b"x").await.unwrap_err();
/// assert!(error.is_retryable());
/// assert_eq!(kek.calls().wraps, 1);
/// # Ok::<(), waxseal::Error>(()) })?;
/// # Ok::<(), waxseal::Error>(())
/// ```
#[derive(Clone)]
pub struct ScriptedKek(Arc<Inner>);

struct Inner {
    kek: LocalKek,
    script: Mutex<Script>,
    wraps: AtomicU64,
    unwraps: AtomicU64,
    generates: AtomicU64,
    rewraps: AtomicU64,
}

type Wait = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;
type Failing = Arc<dyn Fn(&EncryptionContext) -> Option<KekErrorClass> + Send + Sync>;

#[derive(Default)]
struct Script {
    acts: VecDeque<Act>,
    failure: Option<KekErrorClass>,
    failing: Option<Failing>,
    wait: Option<Wait>,
    advice: CallAdvice,
    /// `None` if it has no batches.
    batch_size: Option<usize>,
    has_no_rewrap: bool,
}

/// What one call to a [`ScriptedKek`] does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Act {
    /// It succeeds.
    Succeed,
    /// It fails in this class.
    Fail(KekErrorClass),
    /// It is throttled and told how long to wait.
    AskLater(Duration),
    /// It never returns.
    Hang,
    /// It panics.
    Panic,
}

/// How often a [`ScriptedKek`] was called, failed calls included. A batch is one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Calls {
    /// Calls of `wrap` and `wrap_many`.
    pub wraps: u64,
    /// Calls of `unwrap` and `unwrap_many`.
    pub unwraps: u64,
    /// Calls of `generate`.
    pub generates: u64,
    /// Calls of `rewrap` and `rewrap_many`.
    pub rewraps: u64,
}

impl Calls {
    /// All calls.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.wraps + self.unwraps + self.generates + self.rewraps
    }
}

impl ScriptedKek {
    /// Makes a KEK with the id `local:NAME` that succeeds.
    ///
    /// # Errors
    /// Those of [`LocalKek::in_memory`].
    pub fn new(name: &str) -> Result<Self, Error> {
        Ok(Self::over(LocalKek::in_memory(name)?))
    }

    /// Puts a script in front of an existing KEK.
    #[must_use]
    pub fn over(kek: LocalKek) -> Self {
        Self(Arc::new(Inner {
            kek,
            script: Mutex::default(),
            wraps: AtomicU64::new(0),
            unwraps: AtomicU64::new(0),
            generates: AtomicU64::new(0),
            rewraps: AtomicU64::new(0),
        }))
    }

    /// Returns the KEK behind the script.
    #[must_use]
    pub fn local(&self) -> &LocalKek {
        &self.0.kek
    }

    /// Makes every call fail in this class from now on, or no call with `None`. The choice is made
    /// after a call's wait.
    pub fn fail_with(&self, class: impl Into<Option<KekErrorClass>>) {
        self.script_lock().failure = class.into();
    }

    /// Makes DEKs fail from now on, in the class that `failing` returns for their context. In a
    /// batch, only those items fail.
    pub fn fail_where(
        &self,
        failing: impl Fn(&EncryptionContext) -> Option<KekErrorClass> + Send + Sync + 'static,
    ) {
        self.script_lock().failing = Some(Arc::new(failing));
    }

    /// Makes it accept batches of up to `size` DEKs from now on. With 1, the initial value, it has
    /// no batches.
    pub fn take_batches_of(&self, size: usize) {
        self.script_lock().batch_size = Some(size).filter(|size| *size > 1);
    }

    /// Makes it a key service without a rewrap from now on, so that an envelope unwraps and wraps.
    pub fn have_no_rewrap(&self) {
        self.script_lock().has_no_rewrap = true;
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

    /// Sets the advice about its calls from now on.
    pub fn advise(&self, advice: CallAdvice) {
        self.script_lock().advice = advice;
    }

    /// Returns how often it was called.
    #[must_use]
    pub fn calls(&self) -> Calls {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Calls {
            wraps: count(&self.0.wraps),
            unwraps: count(&self.0.unwraps),
            generates: count(&self.0.generates),
            rewraps: count(&self.0.rewraps),
        }
    }

    fn script_lock(&self) -> MutexGuard<'_, Script> {
        self.0.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn act(&self, counter: &AtomicU64) -> Result<(), KekError> {
        counter.fetch_add(1, Ordering::SeqCst);
        let wait = self.script_lock().wait.clone();
        if let Some(wait) = wait {
            wait().await;
        }
        let act = {
            let mut script = self.script_lock();
            let then = script.failure.map_or(Act::Succeed, Act::Fail);
            script.acts.pop_front().unwrap_or(then)
        };
        match act {
            Act::Succeed => Ok(()),
            Act::Fail(class) => Err(KekError::new(class, "by script")),
            Act::AskLater(wait) => Err(KekError::throttled("by script").with_retry_after(wait)),
            Act::Hang => std::future::pending().await,
            #[expect(clippy::panic, reason = "the script asks for it")]
            Act::Panic => panic!("by script"),
        }
    }

    fn check(&self, context: &EncryptionContext) -> Result<(), KekError> {
        let failing = self.script_lock().failing.clone();
        match failing.and_then(|failing| failing(context)) {
            Some(class) => Err(KekError::new(class, "by script")),
            None => Ok(()),
        }
    }

    /// Does the same for each item of a batch. It is one call, unless there are no batches.
    fn act_for_each<'a, I: Copy + Sync, T: Send>(
        &'a self,
        counter: &'a AtomicU64,
        items: &'a [(&'a EncryptionContext, I)],
        call: impl Fn(&'a EncryptionContext, I) -> BoxFuture<'a, Result<T, KekError>> + Send + 'a,
    ) -> BoxFuture<'a, Vec<Result<T, KekError>>> {
        Box::pin(async move {
            let batch_size = self.script_lock().batch_size;
            let of_all = match batch_size {
                Some(size) if items.len() > size => {
                    Err(KekError::misconfigured(format!("a batch of {}, not {size}", items.len())))
                }
                Some(_) => self.act(counter).await,
                None => Ok(()),
            };
            let mut results = Vec::with_capacity(items.len());
            for (context, item) in items {
                let acted = match batch_size {
                    Some(_) => of_all.clone(),
                    None => self.act(counter).await,
                };
                results.push(match acted.and_then(|()| self.check(context)) {
                    Ok(()) => call(context, *item).await,
                    Err(error) => Err(error),
                });
            }
            results
        })
    }
}

impl KekProvider for ScriptedKek {
    fn id(&self) -> &KekId {
        self.0.kek.id()
    }

    fn target(&self, _: &KekId) -> CallTarget {
        CallTarget::new(self.id().as_str()).with_advice(self.script_lock().advice.clone())
    }

    fn context_binding(&self) -> ContextBinding {
        self.0.kek.context_binding()
    }

    fn rewraps_in_service(&self) -> bool {
        !self.script_lock().has_no_rewrap
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        self.0.kek.is_current(wrapped)
    }

    fn key_version(&self, wrapped: &WrappedDek) -> Option<Box<str>> {
        self.0.kek.key_version(wrapped)
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            self.act(&self.0.wraps).await?;
            self.check(context)?;
            self.0.kek.wrap(context, dek).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            self.act(&self.0.unwraps).await?;
            self.check(context)?;
            self.0.kek.unwrap(context, wrapped).await
        })
    }

    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(async move {
            self.act(&self.0.generates).await?;
            self.check(context)?;
            self.0.kek.generate(context).await
        })
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            self.act(&self.0.rewraps).await?;
            self.check(context)?;
            self.0.kek.rewrap(context, wrapped).await
        })
    }

    fn batch_size(&self) -> usize {
        self.script_lock().batch_size.unwrap_or(1)
    }

    fn wrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a Dek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        self.act_for_each(&self.0.wraps, items, |context, dek| self.0.kek.wrap(context, dek))
    }

    fn unwrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        self.act_for_each(&self.0.unwraps, items, |context, wrapped| {
            self.0.kek.unwrap(context, wrapped)
        })
    }

    fn rewrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        self.act_for_each(&self.0.rewraps, items, |context, wrapped| {
            self.0.kek.rewrap(context, wrapped)
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(async move {
            match self.script_lock().failure {
                Some(class) => Err(KekError::new(class, "by script")),
                None => Ok(Health::Ready),
            }
        })
    }
}

impl fmt::Debug for ScriptedKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedKek")
            .field("id", self.id())
            .field("calls", &self.calls())
            .finish_non_exhaustive()
    }
}
