//! What a helper does: one session, one request at a time.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use zeroize::Zeroizing;

use super::channel::Channel;
use super::process::DEK;
use super::wire::{Reply, Request, Setup};
use crate::errors::{After, Failure};
use crate::ledger::{Attempted, Outcome, PinGiver};
use crate::token::{Connection, Token, Wrapping};

/// Does the work of a helper process, until the service that started it ends it. Its standard input
/// must be the socket that the service made. Call it at the start of `main`, and return its result.
///
/// It disables core dumps for the process. On Linux it also keeps the user's other processes from
/// reading its memory, and makes the kernel end it together with the service.
#[must_use]
pub fn run() -> ExitCode {
    harden();
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "waxseal-pkcs11-helper: {error}. A service starts this program (Pkcs11Kek with \
                 `helper`); it does nothing by itself."
            );
            ExitCode::from(2)
        }
    }
}

/// As far as the system allows. None of it is required to work.
fn harden() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{
            DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal,
        };
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
    }
}

/// A request with its secret.
type Asked = (Request, Zeroizing<Vec<u8>>);

/// Both ends of the conversation.
struct Talk {
    channel: Channel,
    asked: Mutex<Receiver<Asked>>,
}

impl Talk {
    fn send(&self, reply: &Reply, secret: &[u8]) -> Result<(), Failure> {
        let gone = |error| Failure::unavailable(format!("the service is gone: {error}"));
        self.channel.send(reply, secret, None).map_err(gone)
    }

    fn receive(&self) -> Option<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }
}

fn serve() -> io::Result<()> {
    let stdin = io::stdin();
    // A program that the module starts does not inherit it.
    rustix::io::fcntl_setfd(&stdin, rustix::io::FdFlags::CLOEXEC)?;
    let channel = Channel::new(UnixStream::from(stdin.as_fd().try_clone_to_owned()?));
    let reader = channel.other_handle()?;
    channel.greet()?;
    let setup = match reader.receive(None) {
        Ok((Request::SetUp(setup), _)) => setup,
        // From a service of another version.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
        Ok(_) => return Err(ErrorKind::InvalidData.into()),
        Err(error) => return Err(error),
    };
    let (requests, asked) = mpsc::channel();
    // Notices the end of the service while the module is working or hangs.
    thread::Builder::new().name("waxseal-pkcs11-pipe".to_owned()).spawn(move || {
        while let Ok(request) = reader.receive::<Request>(None) {
            if requests.send(request).is_err() {
                break;
            }
        }
        end();
    })?;
    work(setup, Arc::new(Talk { channel, asked: Mutex::new(asked) }));
    end();
    Ok(())
}

/// Ends this process at once. The module's exit handlers could wait forever.
fn end() {
    use rustix::process::{Signal, getpid, kill_process};
    let _ = kill_process(getpid(), Signal::KILL);
}

fn work(setup: Setup, talk: Arc<Talk>) {
    let pins = setup.logs_in.then(|| Box::new(TheirPin(talk.clone())) as Box<dyn PinGiver>);
    let key = (setup.key.label, setup.key.id, setup.key.versions);
    let token = Token::new(setup.module, setup.name, key, pins, setup.chosen, setup.key_max_age)
        .with_way(setup.way);
    let mut session = Session { token, connection: None, told: None };
    while let Some((request, secret)) = talk.receive() {
        let done = match catch_unwind(AssertUnwindSafe(|| session.answer(request, secret))) {
            Ok(Some(done)) => done,
            // The service speaks another language.
            Ok(None) => return,
            Err(_) => {
                session.connection = None;
                Err(Failure::unavailable("the module's binding panicked").after(After::Drop))
            }
        };
        if session.tell(&talk, done).is_err() {
            return;
        }
    }
}

/// The one session.
struct Session {
    token: Token,
    connection: Option<Connection>,
    /// The list of keys that the service knows.
    told: Option<u64>,
}

/// What an answer carries: a DEK, or the bytes of a wrapped key, or both.
#[derive(Default)]
struct Answer {
    dek: Zeroizing<Vec<u8>>,
    wrapped: Vec<u8>,
}

impl Session {
    /// `None` for what is not asked of a helper.
    fn answer(
        &mut self,
        request: Request,
        secret: Zeroizing<Vec<u8>>,
    ) -> Option<Result<Answer, Failure>> {
        let result = match request {
            Request::Open { was_seen } => {
                self.token.was_seen.fetch_or(was_seen, Ordering::Relaxed);
                self.connection = None;
                self.told = None;
                Connection::open(&self.token).map(|connection| {
                    self.connection = Some(connection);
                    Answer::default()
                })
            }
            Request::Close => {
                self.connection = None;
                Ok(Answer::default())
            }
            Request::FindKeys => self.with(false, |token, connection| {
                connection.find_keys(token).map(|()| Answer::default())
            }),
            Request::Check => self.with(false, |token, connection| {
                token.check(connection).map(|_| Answer::default())
            }),
            Request::Wrap { reread, aad } if secret.len() == DEK => {
                let wrapping = Wrapping { aad, dek: secret };
                self.with(reread, |token, connection| {
                    let wrapped = token.wrap(connection, &wrapping)?;
                    Ok(Answer { wrapped, ..Answer::default() })
                })
            }
            Request::Unwrap { reread, aad, wrapped } => self.with(reread, |token, connection| {
                let dek = token.unwrap(connection, &aad, &wrapped)?;
                Ok(Answer { dek: Zeroizing::new(dek.expose().to_vec()), ..Answer::default() })
            }),
            Request::Generate { reread, aad } => self.with(reread, |token, connection| {
                let (dek, wrapped) = token.generate(connection, aad)?;
                Ok(Answer { dek, wrapped })
            }),
            _ => return None,
        };
        if result.as_ref().is_err_and(|failure| failure.is_ended)
            && let Some(connection) = &self.connection
        {
            connection.module_was_ended();
        }
        Some(result)
    }

    fn with(
        &mut self,
        reread: bool,
        work: impl FnOnce(&Token, &mut Connection) -> Result<Answer, Failure>,
    ) -> Result<Answer, Failure> {
        let gone = || Failure::unavailable("there is no session").after(After::Reconnect);
        let connection = self.connection.as_mut().ok_or_else(gone)?;
        if reread {
            connection.find_keys(&self.token)?;
        }
        work(&self.token, connection)
    }

    /// Sends the answer, with what was learned of the keys since the last one.
    fn tell(&mut self, talk: &Talk, result: Result<Answer, Failure>) -> Result<(), Failure> {
        let list = self.token.list();
        let known = self.token.known().filter(|_| self.told != Some(list));
        if known.is_some() {
            self.told = Some(list);
        }
        let (dek, result) = match result {
            Ok(Answer { dek, wrapped }) => (dek, Ok(wrapped)),
            Err(failure) => (Zeroizing::default(), Err(failure)),
        };
        let known = known.as_deref().cloned();
        talk.send(&Reply::Done { known, way: self.token.way(), result }, &dek)
    }
}

/// The PIN, which the service has, and what it knows of it.
struct TheirPin(Arc<Talk>);

struct TheirAttempt {
    talk: Arc<Talk>,
    pin: Zeroizing<Vec<u8>>,
}

impl PinGiver for TheirPin {
    fn begin(&self, token: &str, is_counted: bool) -> Result<Box<dyn Attempted>, Failure> {
        self.0.send(&Reply::PinWanted { token: token.to_owned(), is_counted }, &[])?;
        match self.0.receive() {
            Some((Request::Pin, pin)) if std::str::from_utf8(&pin).is_ok() => {
                Ok(Box::new(TheirAttempt { talk: self.0.clone(), pin }))
            }
            Some((Request::NoPin(failure), _)) => Err(failure),
            _ => Err(Failure::unavailable("the service's answer is not a PIN")),
        }
    }

    fn forget_refused(&self) {}
}

impl Attempted for TheirAttempt {
    fn pin(&self) -> &str {
        std::str::from_utf8(&self.pin).unwrap_or_default()
    }

    fn settle(self: Box<Self>, outcome: Outcome) -> Result<(), Failure> {
        self.talk.send(&Reply::Settled(outcome), &[])
    }
}
