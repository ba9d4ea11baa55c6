//! A module, once per process: loaded, initialised, and logged in for all providers together.
//!
//! `C_Initialize` and the login belong to the process, not to a provider. So there is one entry per
//! path, which is never unloaded, and everything that a second provider must not repeat is here.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use waxseal::kek::toolkit::process_generation;

use super::codes::{classify, code_of};
use crate::errors::{Failure, forked};

/// The shortest interval between restarts of a module, however often its token is not found.
const BETWEEN_STARTS: Duration = Duration::from_secs(1);

/// The process in which the first module was loaded, plus one. Looked at before any lock, which a
/// fork could have inherited locked.
static PROCESS: AtomicU64 = AtomicU64::new(0);
static MODULES: Mutex<Option<HashMap<PathBuf, Arc<Module>>>> = Mutex::new(None);

/// A loaded module.
pub(crate) struct Module {
    context: Pkcs11,
    /// Locked for reading while a function of the module runs, and for writing when none may run:
    /// at start and end.
    started: RwLock<Started>,
    /// Sessions that this crate has open.
    sessions: AtomicUsize,
}

/// How often it was started, 0 before the first time.
struct Started {
    epoch: u64,
    is_started: bool,
    /// Other code of the process did not start it, so it may be ended.
    is_ours: bool,
    at: Option<Instant>,
}

/// The outcome of a restart of a module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Restart {
    Done,
    /// Too early: it was started a moment ago.
    Early,
    /// Sessions of this process are open, a function runs, or other code started it.
    Impossible,
}

/// A module that is certainly started: nobody finalises it until this is dropped.
pub(crate) struct InUse<'a> {
    pub(crate) context: &'a Pkcs11,
    pub(crate) epoch: u64,
    _started: RwLockReadGuard<'a, Started>,
}

/// The module at this path, loaded at the first call and kept for good: vendors' modules have
/// threads, and few survive to be unloaded.
pub(crate) fn load(path: &Path) -> Result<Arc<Module>, Failure> {
    check_process()?;
    let file = fs::canonicalize(path).map_err(|error| {
        let text = format!("the module {} cannot be read: {error}", path.display());
        Failure::misconfigured(text).without_asking()
    })?;
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    let modules = modules.get_or_insert_with(HashMap::new);
    if let Some(module) = modules.get(&file) {
        return Ok(module.clone());
    }
    let context = Pkcs11::new(&file).map_err(|error| {
        let why = match &error {
            Error::MissingSymbol(name) => format!("it has no {name}"),
            other => other.to_string(),
        };
        let text = format!("{} is not a PKCS#11 module that can be loaded: {why}", path.display());
        Failure::misconfigured(text).without_asking()
    })?;
    let started = Started { epoch: 0, is_started: false, is_ours: false, at: None };
    let module =
        Arc::new(Module { context, started: RwLock::new(started), sessions: AtomicUsize::new(0) });
    modules.insert(file, module.clone());
    Ok(module)
}

/// Fails in the child of a fork, where the module's memory belongs to the parent.
pub(crate) fn check_process() -> Result<(), Failure> {
    let here = process_generation().wrapping_add(1);
    match PROCESS.compare_exchange(0, here, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(()),
        Err(process) if process == here => Ok(()),
        Err(_) => Err(forked()),
    }
}

impl Module {
    /// Keeps the module started during a call. Starts it if necessary.
    pub(crate) fn enter(&self) -> Result<InUse<'_>, Failure> {
        loop {
            let started = self.started.read().unwrap_or_else(PoisonError::into_inner);
            if started.is_started {
                let epoch = started.epoch;
                return Ok(InUse { context: &self.context, epoch, _started: started });
            }
            drop(started);
            // Nobody ever waits to write: a thread that is within the module may enter again.
            match self.started.try_write() {
                Ok(mut started) if !started.is_started => self.start(&mut started)?,
                Ok(_) => {}
                Err(TryLockError::Poisoned(poisoned)) => drop(poisoned),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn start(&self, started: &mut Started) -> Result<(), Failure> {
        started.at = Some(Instant::now());
        let locking = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        started.is_ours = match self.context.initialize(locking) {
            Ok(()) => true,
            Err(error) if code_of(&error) == Some(RvError::CryptokiAlreadyInitialized) => false,
            Err(error) => return Err(classify("initialise", &error)),
        };
        started.is_started = true;
        started.epoch += 1;
        Ok(())
    }

    /// Restarts the module, after which it looks for its tokens again: many modules notice a
    /// returned token only that way. It does not restart while a session of this crate is open or a
    /// function runs, if other code started it, or too often. `Done` if it was started since
    /// `epoch`.
    pub(crate) fn start_anew(&self, epoch: u64) -> Result<Restart, Failure> {
        let mut started = match self.started.try_write() {
            Ok(started) => started,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(Restart::Impossible),
        };
        if started.epoch != epoch {
            return Ok(Restart::Done);
        }
        if !started.is_ours || self.sessions.load(Ordering::SeqCst) > 0 {
            return Ok(Restart::Impossible);
        }
        if started.at.is_some_and(|at| at.elapsed() < BETWEEN_STARTS) {
            return Ok(Restart::Early);
        }
        started.is_started = false;
        match self.context.clone().finalize() {
            Ok(()) => {}
            // Other code finalised it.
            Err(error) if code_of(&error) == Some(RvError::CryptokiNotInitialized) => {}
            Err(error) => return Err(classify("finalise", &error)),
        }
        self.start(&mut started).map(|()| Restart::Done)
    }

    /// Records that other code of the process finalised the module. `false` if that was not
    /// possible, because functions of the module still run.
    pub(crate) fn was_ended(&self, epoch: u64) -> bool {
        let mut started = match self.started.try_write() {
            Ok(started) => started,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if started.epoch == epoch {
            started.is_started = false;
        }
        true
    }

    pub(crate) fn opened(&self) {
        self.sessions.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn closed(&self) {
        self.sessions.fetch_sub(1, Ordering::SeqCst);
    }
}
