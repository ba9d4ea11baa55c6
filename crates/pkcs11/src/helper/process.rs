//! A helper as the service sees it: started, asked, and ended when it dies, hangs or talks garbage.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::env::var_os;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use waxseal::kek::UnwrappedDek;
use waxseal::kek::toolkit::process_generation;
use zeroize::Zeroizing;

use super::channel::Channel;
use super::wire::{Reply, Request, Setup};
use crate::errors::{After, Failure};
use crate::format::Wrapped;
use crate::helper_program::Helper;
use crate::key::KeyInfo;
use crate::ledger::{Attempted, Outcome};
use crate::token::{Token, Wrapping};

/// How long a helper has to end on its own, and again after it was killed.
const TO_END: Duration = Duration::from_millis(50);
const TO_DIE: Duration = Duration::from_secs(1);
const TO_CLOSE: Duration = Duration::from_secs(2);
/// The maximum number of killed processes that have not gone, for example because a driver hangs.
const MOST_UNDEAD: usize = 64;
/// Bytes of a DEK.
pub(super) const DEK: usize = 32;
/// Logins in one request: the first, and one after a new start of the module.
const MOST_LOGINS: usize = 2;

static UNDEAD: Mutex<Vec<Child>> = Mutex::new(Vec::new());
/// By module and token: sessions are opened one after the other. With a token stored in files
/// (SoftHSM2), a process that starts while another one logs in may see only part of it. Other
/// tokens of the module, which may hang, are not waited for.
static TURNS: Mutex<BTreeMap<(PathBuf, String), Turn>> = Mutex::new(BTreeMap::new());

type Turn = Arc<Mutex<()>>;

fn turn(token: &Token) -> Turn {
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    turns.entry((token.module.clone(), token.name.to_string())).or_default().clone()
}

/// How a conversation with a helper ended.
#[derive(Debug)]
enum Broken {
    Gone,
    Silent,
    Garbage,
    Failed(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof
            | ErrorKind::BrokenPipe
            | ErrorKind::ConnectionReset
            | ErrorKind::NotConnected
            | ErrorKind::WriteZero => Self::Gone,
            ErrorKind::TimedOut => Self::Silent,
            ErrorKind::InvalidData => Self::Garbage,
            _ => Self::Failed(error),
        }
    }
}

/// A helper that runs. It is killed when this is dropped.
pub(crate) struct Process {
    child: Option<Child>,
    channel: Channel,
    /// The process that started it. A fork of that process must not use it.
    generation: u64,
}

impl Process {
    fn start(token: &Token, helper: &Helper) -> Result<Self, Failure> {
        helper.may_start()?;
        if reap() > MOST_UNDEAD {
            let text = "too many helper processes were killed and are not gone yet";
            return Err(Failure::unavailable(text).without_asking());
        }
        let program = helper.program.display();
        let started = |error: io::Error| {
            let text = format!("the helper {program} cannot be started: {error}");
            // Running out of files or processes is temporary. A missing program is not.
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::PermissionDenied => Failure::misconfigured(text),
                _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
                    Failure::misconfigured(text)
                }
                _ => Failure::unavailable(text),
            }
            .without_asking()
        };
        let (ours, theirs) = UnixStream::pair().map_err(started)?;
        let mut command = Command::new(&helper.program);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        // Ctrl-C is for the service, which ends its helpers when it no longer needs them.
        command.process_group(0);
        if !helper.variables.is_empty() {
            command.env_clear();
            command.envs(helper.variables.iter().filter_map(|name| Some((name, var_os(name)?))));
        }
        if let Some(name) = &helper.hidden {
            command.env_remove(name);
        }
        let child = command.spawn().map_err(started)?;
        // Dropping the command closes the other end here, so that the helper's end is noticed.
        drop(command);
        let process = Self {
            child: Some(child),
            channel: Channel::new(ours),
            generation: process_generation(),
        };
        match process.greet(token, helper) {
            Ok(None) => Ok(process),
            Ok(Some(theirs)) => {
                let text = format!(
                    "the helper {program} is of version {theirs}, and this is {}",
                    env!("CARGO_PKG_VERSION")
                );
                Err(Failure::misconfigured(text).without_asking())
            }
            Err(broken) => Err(process.broken(helper, &broken)),
        }
    }

    /// Sends it its task. `Some` is its version, if that differs.
    fn greet(&self, token: &Token, helper: &Helper) -> Result<Option<String>, Broken> {
        let deadline = Instant::now().checked_add(helper.deadline);
        let theirs = self.channel.greeted(deadline)?;
        if theirs != env!("CARGO_PKG_VERSION") {
            return Ok(Some(theirs));
        }
        let setup = Setup {
            module: token.module.clone(),
            name: token.name.clone(),
            key: token.key.clone(),
            logs_in: token.pins.is_some(),
            chosen: token.chosen,
            way: token.way(),
            key_max_age: token.key_max_age,
        };
        self.channel.send(&Request::SetUp(setup), &[], deadline)?;
        Ok(None)
    }

    /// Ends it, and returns why.
    fn broken(mut self, helper: &Helper, broken: &Broken) -> Failure {
        let status = self.end();
        helper.died();
        let how = match (broken, status) {
            (Broken::Silent, _) => {
                format!("did not answer within {:?}, and was killed", helper.deadline)
            }
            (Broken::Garbage, _) => "answered with garbage, and was killed".to_owned(),
            (Broken::Gone, Some(status)) => format!("ended: {status}"),
            (Broken::Gone, None) => "ended".to_owned(),
            (Broken::Failed(error), _) => format!("cannot be reached: {error}"),
        };
        Failure::unavailable(format!("the module's helper process {how}")).after(After::Drop)
    }

    /// Lets it end on its own, then kills it, and waits for that, all within about a second.
    fn end(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        if self.generation != process_generation() {
            return None;
        }
        self.channel.shut();
        match wait(&mut child, TO_END) {
            Waited::Ended(status) => return Some(status),
            Waited::Unknown => return None,
            Waited::Runs => {}
        }
        // Nobody has waited for it, so its process id is still valid.
        let _ = child.kill();
        match wait(&mut child, TO_DIE) {
            Waited::Ended(status) => Some(status),
            Waited::Unknown => None,
            Waited::Runs => {
                UNDEAD.lock().unwrap_or_else(PoisonError::into_inner).push(child);
                None
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

enum Waited {
    Ended(ExitStatus),
    Runs,
    /// Other code of the process waited for it.
    Unknown,
}

fn wait(child: &mut Child, most: Duration) -> Waited {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Waited::Ended(status),
            Ok(None) if start.elapsed() >= most => return Waited::Runs,
            Ok(None) => thread::sleep(pause),
            Err(_) => return Waited::Unknown,
        }
        pause = pause.saturating_mul(2).min(Duration::from_millis(20));
    }
}

/// Waits for killed processes that have not gone. Returns how many are left.
fn reap() -> usize {
    let mut undead = UNDEAD.lock().unwrap_or_else(PoisonError::into_inner);
    undead.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    undead.len()
}

/// A session in a helper.
pub(crate) struct Remote {
    process: Option<Process>,
    /// The list of keys of all sessions that it knows: see [`Token::adopt`].
    list: u64,
}

/// What a helper answers: a DEK, the bytes of a wrapped key.
struct Answer {
    dek: Zeroizing<Vec<u8>>,
    wrapped: Vec<u8>,
}

impl Remote {
    /// Opens a session in a helper: in `spare`, or in a new one. A working helper that could not
    /// open one is put into `spare`.
    pub(crate) fn open(
        token: &Token,
        helper: &Helper,
        spare: &mut Option<Process>,
    ) -> Result<Self, Failure> {
        let turn = turn(token);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let process = match spare.take() {
            Some(process) => process,
            None => Process::start(token, helper)?,
        };
        let mut remote = Self { process: Some(process), list: token.list() };
        let was_seen = token.was_seen.load(Ordering::Relaxed);
        match remote.ask(token, helper, &Request::Open { was_seen }, &[]) {
            Ok(_) => {
                token.was_seen.store(true, Ordering::Relaxed);
                Ok(remote)
            }
            Err(failure) => {
                *spare = remote.process.take();
                Err(failure)
            }
        }
    }

    /// Closes the session. Returns the helper, if it works.
    pub(crate) fn close(mut self, token: &Token, helper: &Helper) -> Option<Process> {
        let deadline = helper.deadline.min(TO_CLOSE);
        let _ = self.ask_within(token, helper, &Request::Close, &[], deadline);
        self.process.take()
    }

    pub(crate) fn find_keys(&mut self, token: &Token, helper: &Helper) -> Result<(), Failure> {
        self.ask(token, helper, &Request::FindKeys, &[])?;
        helper.is_well();
        Ok(())
    }

    pub(crate) fn check(&mut self, token: &Token, helper: &Helper) -> Result<KeyInfo, Failure> {
        self.ask(token, helper, &Request::Check, &[])?;
        helper.is_well();
        token.key_info()
    }

    pub(crate) fn wrap(
        &mut self,
        token: &Token,
        helper: &Helper,
        wrapping: &Wrapping,
    ) -> Result<Vec<u8>, Failure> {
        let request = Request::Wrap { reread: self.is_behind(token), aad: wrapping.aad };
        let answer = self.ask(token, helper, &request, &wrapping.dek)?;
        self.checked(helper, &wrapping.dek, answer.wrapped)
    }

    /// Wrapped keys that cannot be unwrapped would be noticed too late.
    fn checked(&mut self, helper: &Helper, dek: &[u8], bytes: Vec<u8>) -> Result<Vec<u8>, Failure> {
        if Wrapped::read(&bytes).is_none_or(|wrapped| wrapped.sealed.starts_with(dek)) {
            return Err(self.is_broken(helper, &Broken::Garbage));
        }
        helper.is_well();
        Ok(bytes)
    }

    pub(crate) fn unwrap(
        &mut self,
        token: &Token,
        helper: &Helper,
        aad: &[u8; 32],
        bytes: &[u8],
    ) -> Result<UnwrappedDek, Failure> {
        let (reread, wrapped) = (self.is_behind(token), bytes.to_vec());
        let request = Request::Unwrap { reread, aad: *aad, wrapped };
        let answer = self.ask(token, helper, &request, &[])?;
        if answer.dek.len() != DEK {
            return Err(self.is_broken(helper, &Broken::Garbage));
        }
        helper.is_well();
        Ok(UnwrappedDek::new(answer.dek.to_vec()))
    }

    pub(crate) fn generate(
        &mut self,
        token: &Token,
        helper: &Helper,
        aad: &[u8; 32],
    ) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), Failure> {
        let request = Request::Generate { reread: self.is_behind(token), aad: *aad };
        let answer = self.ask(token, helper, &request, &[])?;
        if answer.dek.len() != DEK || answer.dek.iter().all(|byte| *byte == 0) {
            return Err(self.is_broken(helper, &Broken::Garbage));
        }
        let wrapped = self.checked(helper, &answer.dek, answer.wrapped)?;
        Ok((answer.dek, wrapped))
    }

    /// Whether another session has read other keys, so that this one has to read them again. Its
    /// answer then includes them.
    fn is_behind(&mut self, token: &Token) -> bool {
        let list = token.list();
        std::mem::replace(&mut self.list, list) != list
    }

    fn ask(
        &mut self,
        token: &Token,
        helper: &Helper,
        request: &Request,
        secret: &[u8],
    ) -> Result<Answer, Failure> {
        self.ask_within(token, helper, request, secret, helper.deadline)
    }

    fn ask_within(
        &mut self,
        token: &Token,
        helper: &Helper,
        request: &Request,
        secret: &[u8],
        most: Duration,
    ) -> Result<Answer, Failure> {
        let Some(process) = &self.process else {
            let text = "the module's helper process is gone";
            return Err(Failure::unavailable(text).after(After::Drop));
        };
        match converse(&process.channel, token, (request, secret), most) {
            Ok((list, result)) => {
                self.list = list.unwrap_or(self.list);
                result
            }
            Err(broken) => Err(self.is_broken(helper, &broken)),
        }
    }

    fn is_broken(&mut self, helper: &Helper, broken: &Broken) -> Failure {
        match self.process.take() {
            Some(process) => process.broken(helper, broken),
            None => Failure::unavailable("the module's helper process is gone").after(After::Drop),
        }
    }
}

/// One request, what the helper asks back, and its answer, each within `most`. An attempt to log in
/// that the helper did not settle is dropped here: see [`crate::ledger`].
fn converse(
    channel: &Channel,
    token: &Token,
    (request, secret): (&Request, &[u8]),
    most: Duration,
) -> Result<(Option<u64>, Result<Answer, Failure>), Broken> {
    let until = || Instant::now().checked_add(most);
    let mut deadline = until();
    channel.send(request, secret, deadline)?;
    let mut attempt: Option<Box<dyn Attempted>> = None;
    let mut logins = 0;
    loop {
        let (reply, secret) = channel.receive::<Reply>(deadline)?;
        match (reply.cleaned(), attempt.take(), &token.pins) {
            (Reply::PinWanted { token: name, is_counted }, None, Some(pins))
                if logins < MOST_LOGINS =>
            {
                logins += 1;
                token.was_seen.store(true, Ordering::Relaxed);
                let begun = pins.begin(&name, is_counted);
                // It may have waited for another login.
                deadline = until();
                match begun {
                    Ok(begun) => {
                        if let Err(error) =
                            channel.send(&Request::Pin, begun.pin().as_bytes(), deadline)
                        {
                            // The helper has not received the whole PIN, so it cannot have used it.
                            let _ = begun.settle(Outcome::NotTried);
                            return Err(error.into());
                        }
                        attempt = Some(begun);
                    }
                    Err(failure) => {
                        token.failed_logins.fetch_add(1, Ordering::Relaxed);
                        channel.send(&Request::NoPin(failure), &[], deadline)?;
                    }
                }
            }
            (Reply::Settled(outcome), Some(attempt), _) => {
                token.count_login(&outcome);
                // It belongs to this process, where nothing can fail.
                let _ = attempt.settle(outcome);
            }
            (Reply::Done { known, way, result }, None, _) => {
                // Another helper of this provider found another IV source. This one starts over
                // with that.
                if !token.pin_way(way) {
                    return Err(Broken::Garbage);
                }
                let list = known.map(|known| token.adopt(known));
                return Ok((list, result.map(|wrapped| Answer { dek: secret, wrapped })));
            }
            _ => return Err(Broken::Garbage),
        }
    }
}
