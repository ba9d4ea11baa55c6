//! What a helper does: one session, one request at a time.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use zeroize::Zeroizing;

use super::format::{
    Channel, Frame, Garbage, Kind, LONGEST_REQUEST, PROTOCOL, Reader, Setup, Writer,
};
use crate::errors::Failure;
use crate::ledger::{Attempted, Outcome, PinGiver};
use crate::token::{Connection, Token, Wrapping};

/// Does the work of a helper process, until the service that started it ends it. Its standard input
/// has to be the socket that the service made. Call it at the start of `main`, and return what it
/// returns.
///
/// It switches core dumps off for the process, and on Linux also keeps other processes of the user
/// from reading its memory, and has the kernel end it with the service.
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

/// As far as the system lets us. None of it is needed to work.
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

/// Both ends of the conversation.
struct Talk {
    channel: Channel,
    frames: Mutex<Receiver<Frame>>,
}

impl Talk {
    fn send(&self, frame: Writer) -> Result<(), Failure> {
        let gone = |error| Failure::unavailable(format!("the service is gone: {error}"));
        self.channel.send(frame, None).map_err(gone)
    }

    fn receive(&self) -> Option<Frame> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }
}

fn serve() -> io::Result<()> {
    let stdin = io::stdin();
    // A program that the module starts does not inherit it.
    rustix::io::fcntl_setfd(&stdin, rustix::io::FdFlags::CLOEXEC)?;
    let channel = Channel::new(UnixStream::from(stdin.as_fd().try_clone_to_owned()?));
    let reader = channel.other_handle()?;
    let hello = reader.receive(LONGEST_REQUEST, None)?;
    let garbage = |_| io::Error::new(ErrorKind::InvalidData, "what it received is no greeting");
    let mut body = hello.reader();
    let protocol = if hello.kind == Kind::Hello { body.byte() } else { Err(Garbage) };
    let protocol = protocol.map_err(garbage)?;
    let ready = Writer::new(Kind::Ready).byte(PROTOCOL).text(env!("CARGO_PKG_VERSION"));
    channel.send(ready, None)?;
    if protocol != PROTOCOL {
        return Ok(());
    }
    let setup = body.setup().map_err(garbage)?;
    body.end().map_err(garbage)?;
    drop(hello);
    let (frames, received) = mpsc::channel();
    // Sees the end of the service while the module is at work, or hangs.
    thread::Builder::new().name("waxseal-pkcs11-pipe".to_owned()).spawn(move || {
        while let Ok(frame) = reader.receive(LONGEST_REQUEST, None) {
            if frames.send(frame).is_err() {
                break;
            }
        }
        end();
    })?;
    work(setup, Arc::new(Talk { channel, frames: Mutex::new(received) }));
    end();
    Ok(())
}

/// Ends this process at once. The module's handlers for an orderly end could wait for ever.
fn end() {
    use rustix::process::{Signal, getpid, kill_process};
    let _ = kill_process(getpid(), Signal::KILL);
}

fn work(setup: Setup, talk: Arc<Talk>) {
    let pins = setup.logs_in.then(|| Box::new(TheirPin(talk.clone())) as Box<dyn PinGiver>);
    let key = (setup.key.label, setup.key.id, setup.key.versions);
    let token = Token::new(setup.module, setup.name, key, pins, setup.way, setup.key_max_age);
    let mut session = Session { token, connection: None, told: None };
    while let Some(frame) = talk.receive() {
        let done = catch_unwind(AssertUnwindSafe(|| session.answer(&frame)));
        drop(frame);
        let done = match done {
            Ok(Ok(done)) => done,
            // The service speaks another language.
            Ok(Err(Garbage)) => return,
            Err(_) => {
                session.connection = None;
                Err(Failure::unavailable("the module's binding panicked"))
            }
        };
        if talk.send(session.done(done)).is_err() {
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
    fn answer(&mut self, frame: &Frame) -> Result<Result<Answer, Failure>, Garbage> {
        let mut body = frame.reader();
        let result = match frame.kind {
            Kind::Open => {
                let was_seen = body.flag()?;
                body.end()?;
                self.token.was_seen.fetch_or(was_seen, std::sync::atomic::Ordering::Relaxed);
                self.connection = None;
                self.told = None;
                Connection::open(&self.token).map(|connection| {
                    self.connection = Some(connection);
                    Answer::default()
                })
            }
            Kind::Close => {
                body.end()?;
                self.connection = None;
                Ok(Answer::default())
            }
            Kind::FindKeys => {
                body.end()?;
                self.with(false, |token, connection| {
                    connection.find_keys(token).map(|()| Answer::default())
                })
            }
            Kind::Check => {
                body.end()?;
                self.with(false, |token, connection| {
                    token.check(connection).map(|_| Answer::default())
                })
            }
            Kind::Wrap => {
                let (reread, aad, dek) = (body.flag()?, body.array()?, body.bytes()?);
                body.end()?;
                let wrapping = Wrapping { aad, dek: Zeroizing::new(dek.to_vec()) };
                self.with(reread, |token, connection| {
                    let wrapped = token.wrap(connection, &wrapping)?;
                    Ok(Answer { wrapped, ..Answer::default() })
                })
            }
            Kind::Unwrap => {
                let (reread, aad, bytes) = (body.flag()?, body.array()?, body.bytes()?);
                body.end()?;
                self.with(reread, |token, connection| {
                    let dek = token.unwrap(connection, &aad, bytes)?;
                    Ok(Answer { dek: Zeroizing::new(dek.expose().to_vec()), ..Answer::default() })
                })
            }
            Kind::Generate => {
                let (reread, aad) = (body.flag()?, body.array()?);
                body.end()?;
                self.with(reread, |token, connection| {
                    let (dek, wrapped) = token.generate(connection, aad)?;
                    Ok(Answer { dek, wrapped })
                })
            }
            _ => return Err(Garbage),
        };
        if result.as_ref().is_err_and(|failure| failure.is_ended)
            && let Some(connection) = &self.connection
        {
            connection.module_was_ended();
        }
        Ok(result)
    }

    fn with(
        &mut self,
        reread: bool,
        work: impl FnOnce(&Token, &mut Connection) -> Result<Answer, Failure>,
    ) -> Result<Answer, Failure> {
        let gone =
            || Failure::unavailable("there is no session").after(crate::errors::After::Reconnect);
        let connection = self.connection.as_mut().ok_or_else(gone)?;
        if reread {
            connection.find_keys(&self.token)?;
        }
        work(&self.token, connection)
    }

    /// The answer, with what was learned of the keys since the last one.
    fn done(&mut self, result: Result<Answer, Failure>) -> Writer {
        let list = self.token.list();
        let known = self.token.known().filter(|_| self.told != Some(list));
        if known.is_some() {
            self.told = Some(list);
        }
        let writer = Writer::new(Kind::Done).known(known.as_deref()).way(self.token.way());
        match result {
            Ok(answer) => writer.flag(true).bytes(&answer.dek).bytes(&answer.wrapped),
            Err(failure) => writer.flag(false).failure(&failure),
        }
    }
}

/// The PIN, which the service has, and what it knows of it.
struct TheirPin(Arc<Talk>);

struct TheirAttempt {
    talk: Arc<Talk>,
    pin: Zeroizing<String>,
}

impl PinGiver for TheirPin {
    fn begin(&self, token: &str) -> Result<Box<dyn Attempted>, Failure> {
        self.0.send(Writer::new(Kind::PinWanted).text(token))?;
        let odd = || Failure::unavailable("the service's answer is no PIN");
        let frame = self.0.receive().ok_or_else(odd)?;
        let read = |mut body: Reader<'_>| -> Result<Result<_, Failure>, Garbage> {
            match frame.kind {
                Kind::Pin => {
                    let pin = Zeroizing::new(body.str()?.to_owned());
                    body.end()?;
                    Ok(Ok(pin))
                }
                Kind::NoPin => {
                    let failure = body.failure()?;
                    body.end()?;
                    Ok(Err(failure))
                }
                _ => Err(Garbage),
            }
        };
        let pin = read(frame.reader()).map_err(|Garbage| odd())??;
        Ok(Box::new(TheirAttempt { talk: self.0.clone(), pin }))
    }

    fn forget_refused(&self) {}
}

impl Attempted for TheirAttempt {
    fn pin(&self) -> &str {
        &self.pin
    }

    fn settle(self: Box<Self>, outcome: Outcome) -> Result<(), Failure> {
        self.talk.send(Writer::new(Kind::Settled).outcome(&outcome))
    }
}
