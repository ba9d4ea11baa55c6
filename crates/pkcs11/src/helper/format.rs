//! What crosses the pipe between this process and a helper, as bytes: frames of a length, a kind and
//! a body. The other end may have crashed, or lie: whatever does not fit is an error.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use waxseal::kek::KekErrorClass;
use zeroize::Zeroizing;

use crate::errors::{After, Failure};
use crate::key::{IvSource, Versions};
use crate::ledger::Outcome;
use crate::token::{KeyName, Known, TokenName};

/// Counts up when a frame changes. Both ends have to be of one version.
pub(super) const PROTOCOL: u8 = 1;
/// Longest frames, in bytes. An answer may list many versions of a key.
pub(super) const LONGEST_REQUEST: usize = 64 * 1024;
pub(super) const LONGEST_ANSWER: usize = 1024 * 1024;
/// Longest text of an error that is taken over, in characters.
const LONGEST_MESSAGE: usize = 2000;
/// Buffers of frames with secrets are never longer, so they never move and leave a copy behind.
const ROOM: usize = 8 * 1024;

/// A peer that is gone is an error, and not the end of the service.
#[cfg(not(target_vendor = "apple"))]
const NO_SIGNAL: SendFlags = SendFlags::NOSIGNAL;
/// There, the standard library has set it for the socket.
#[cfg(target_vendor = "apple")]
const NO_SIGNAL: SendFlags = SendFlags::empty();

/// Bytes that are no frame, or end too soon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Garbage;

type Parsed<T> = Result<T, Garbage>;

/// The kind of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    // From this process.
    Hello = 1,
    Open = 2,
    FindKeys = 3,
    Wrap = 4,
    Unwrap = 5,
    Generate = 6,
    Check = 7,
    Close = 8,
    Pin = 9,
    NoPin = 10,
    // From the helper.
    Ready = 101,
    PinWanted = 102,
    Settled = 103,
    Done = 104,
}

impl Kind {
    fn read(byte: u8) -> Parsed<Self> {
        use Kind::*;
        [
            Hello, Open, FindKeys, Wrap, Unwrap, Generate, Check, Close, Pin, NoPin, Ready,
            PinWanted, Settled, Done,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
        .ok_or(Garbage)
    }
}

/// A frame that was read. It may hold a DEK or a PIN.
pub(super) struct Frame {
    pub(super) kind: Kind,
    body: Zeroizing<Vec<u8>>,
}

impl Frame {
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader(&self.body)
    }
}

/// One end of the pipe.
pub(super) struct Channel(UnixStream);

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    pub(super) fn other_handle(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Ends it for both sides.
    pub(super) fn shut(&self) {
        // It may be at its end already.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    /// Sends a frame, until the deadline.
    pub(super) fn send(&self, frame: Writer, deadline: Option<Instant>) -> io::Result<()> {
        let bytes = frame.finish();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            self.0.set_write_timeout(left(deadline)?)?;
            match send(&self.0, rest, NO_SIGNAL) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(timed_out(error.into())),
            }
        }
        Ok(())
    }

    /// Receives a frame of `longest` bytes at most, until the deadline.
    pub(super) fn receive(&self, longest: usize, deadline: Option<Instant>) -> io::Result<Frame> {
        let mut head = [0; 5];
        self.fill(&mut head, deadline)?;
        let [a, b, c, d, kind] = head;
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let garbage = |_| io::Error::from(ErrorKind::InvalidData);
        let kind = Kind::read(kind).map_err(garbage)?;
        if len > longest {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut body = Zeroizing::new(vec![0; len]);
        self.fill(&mut body, deadline)?;
        Ok(Frame { kind, body })
    }

    fn fill(&self, mut room: &mut [u8], deadline: Option<Instant>) -> io::Result<()> {
        while !room.is_empty() {
            self.0.set_read_timeout(left(deadline)?)?;
            match (&self.0).read(room) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => room = room.get_mut(read..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(timed_out(error)),
            }
        }
        Ok(())
    }
}

/// What is left until the deadline, never zero.
fn left(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let Some(deadline) = deadline else { return Ok(None) };
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(Some(left.max(Duration::from_millis(1)))),
        _ => Err(ErrorKind::TimedOut.into()),
    }
}

/// Sockets say `WouldBlock` for it.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { ErrorKind::TimedOut.into() } else { error }
}

/// Writes a frame.
pub(super) struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    pub(super) fn new(kind: Kind) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(ROOM));
        bytes.extend_from_slice(&[0, 0, 0, 0, kind as u8]);
        Self(bytes)
    }

    fn finish(mut self) -> Zeroizing<Vec<u8>> {
        let len = u32::try_from(self.0.len().saturating_sub(5)).unwrap_or(u32::MAX);
        if let Some(head) = self.0.first_chunk_mut::<4>() {
            *head = len.to_le_bytes();
        }
        self.0
    }

    pub(super) fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    pub(super) fn flag(self, flag: bool) -> Self {
        self.byte(u8::from(flag))
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&len.to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    fn maybe<T>(self, value: Option<T>, write: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => write(self.byte(1), value),
            None => self.byte(0),
        }
    }

    fn texts(self, texts: &[String]) -> Self {
        let count = self.number(u64::try_from(texts.len()).unwrap_or(u64::MAX));
        texts.iter().fold(count, |writer, text| writer.text(text))
    }

    pub(super) fn failure(self, failure: &Failure) -> Self {
        use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};
        let class = match failure.class {
            Unavailable => 0,
            Throttled => 1,
            Denied => 2,
            Invalid => 3,
            Misconfigured => 4,
            _ => 0,
        };
        let after = match failure.after {
            After::Keep => 0,
            After::Drop => 1,
            After::Reconnect => 2,
            After::FindKey => 3,
            After::NoSession => 4,
        };
        self.byte(class)
            .byte(after)
            .flag(failure.asked)
            .flag(failure.is_lost)
            .flag(failure.is_bare)
            .text(&failure.message)
    }

    pub(super) fn outcome(self, outcome: &Outcome) -> Self {
        match outcome {
            Outcome::LoggedIn => self.byte(0),
            Outcome::NotTried => self.byte(1),
            Outcome::Refused(said) => self.byte(2).text(said),
            Outcome::Failed { said, is_down } => self.byte(3).text(said).flag(*is_down),
        }
    }

    pub(super) fn way(self, way: Option<IvSource>) -> Self {
        self.byte(match way {
            None => 0,
            Some(IvSource::Caller) => 1,
            Some(IvSource::Token) => 2,
            Some(IvSource::Appended) => 3,
            Some(IvSource::Message) => 4,
        })
    }

    pub(super) fn known(self, known: Option<&Known>) -> Self {
        self.maybe(known, |writer, known| {
            let writer = writer.bytes(&known.current).texts(&known.versions);
            writer.texts(&known.notes).flag(known.has_generator)
        })
    }

    pub(super) fn setup(self, setup: &Setup) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let (token, key) = (&setup.name, &setup.key);
        let text = |writer: Self, text: &String| writer.text(text);
        self.bytes(setup.module.as_os_str().as_bytes())
            .maybe(token.label.as_ref(), text)
            .maybe(token.serial.as_ref(), text)
            .maybe(token.manufacturer.as_ref(), text)
            .maybe(token.model.as_ref(), text)
            .maybe(token.slot_id, Self::number)
            .text(&key.label)
            .maybe(key.id.as_ref(), |writer, id| writer.bytes(id))
            .flag(key.versions == Versions::ById)
            .flag(setup.logs_in)
            .way(setup.way)
            .number(u64::try_from(setup.key_max_age.as_millis()).unwrap_or(u64::MAX))
    }
}

/// What a helper has to know of the KEK.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Setup {
    pub(super) module: PathBuf,
    pub(super) name: TokenName,
    pub(super) key: KeyName,
    pub(super) logs_in: bool,
    pub(super) way: Option<IvSource>,
    pub(super) key_max_age: Duration,
}

/// Reads the body of a frame.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Nothing may be left.
    pub(super) fn end(self) -> Parsed<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Garbage) }
    }

    pub(super) fn byte(&mut self) -> Parsed<u8> {
        let (byte, rest) = self.0.split_first().ok_or(Garbage)?;
        self.0 = rest;
        Ok(*byte)
    }

    pub(super) fn flag(&mut self) -> Parsed<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Garbage),
        }
    }

    pub(super) fn number(&mut self) -> Parsed<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>().ok_or(Garbage)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*number))
    }

    pub(super) fn bytes(&mut self) -> Parsed<&'a [u8]> {
        let (len, rest) = self.0.split_first_chunk::<4>().ok_or(Garbage)?;
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| Garbage)?;
        let (bytes, rest) = rest.split_at_checked(len).ok_or(Garbage)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// The digest of a context.
    pub(super) fn array(&mut self) -> Parsed<[u8; 32]> {
        self.bytes()?.try_into().map_err(|_| Garbage)
    }

    pub(super) fn str(&mut self) -> Parsed<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Garbage)
    }

    fn text(&mut self) -> Parsed<String> {
        self.str().map(str::to_owned)
    }

    /// Text that ends up in errors and logs.
    pub(super) fn message(&mut self) -> Parsed<String> {
        let clean = |c: char| if c.is_control() { '\u{FFFD}' } else { c };
        Ok(self.str()?.chars().take(LONGEST_MESSAGE).map(clean).collect())
    }

    fn maybe<T>(&mut self, read: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<Option<T>> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    fn messages(&mut self) -> Parsed<Vec<String>> {
        // Each takes four bytes at least, so a count that is too high ends soon.
        let count = self.number()?;
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(self.message()?);
        }
        Ok(texts)
    }

    pub(super) fn failure(&mut self) -> Parsed<Failure> {
        use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};
        let class = match self.byte()? {
            0 => Unavailable,
            1 => Throttled,
            2 => Denied,
            3 => Invalid,
            4 => Misconfigured,
            _ => return Err(Garbage),
        };
        let after = match self.byte()? {
            0 => After::Keep,
            1 => After::Drop,
            2 => After::Reconnect,
            3 => After::FindKey,
            4 => After::NoSession,
            _ => return Err(Garbage),
        };
        let (asked, is_lost, is_bare) = (self.flag()?, self.flag()?, self.flag()?);
        let failure = Failure::new(class, self.message()?).after(after);
        Ok(Failure { asked, is_lost, is_bare, ..failure })
    }

    pub(super) fn outcome(&mut self) -> Parsed<Outcome> {
        Ok(match self.byte()? {
            0 => Outcome::LoggedIn,
            1 => Outcome::NotTried,
            2 => Outcome::Refused(self.message()?),
            3 => Outcome::Failed { said: self.message()?, is_down: self.flag()? },
            _ => return Err(Garbage),
        })
    }

    pub(super) fn way(&mut self) -> Parsed<Option<IvSource>> {
        Ok(match self.byte()? {
            0 => None,
            1 => Some(IvSource::Caller),
            2 => Some(IvSource::Token),
            3 => Some(IvSource::Appended),
            4 => Some(IvSource::Message),
            _ => return Err(Garbage),
        })
    }

    pub(super) fn known(&mut self) -> Parsed<Option<Known>> {
        self.maybe(|reader| {
            Ok(Known {
                current: reader.bytes()?.to_vec(),
                versions: reader.messages()?,
                notes: reader.messages()?,
                has_generator: reader.flag()?,
            })
        })
    }

    pub(super) fn setup(&mut self) -> Parsed<Setup> {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        Ok(Setup {
            module: OsStr::from_bytes(self.bytes()?).into(),
            name: TokenName {
                label: self.maybe(Self::text)?,
                serial: self.maybe(Self::text)?,
                manufacturer: self.maybe(Self::text)?,
                model: self.maybe(Self::text)?,
                slot_id: self.maybe(Self::number)?,
            },
            key: KeyName {
                label: self.text()?,
                id: self.maybe(|reader| reader.bytes().map(<[u8]>::to_vec))?,
                versions: if self.flag()? { Versions::ById } else { Versions::Single },
            },
            logs_in: self.flag()?,
            way: self.way()?,
            key_max_age: Duration::from_millis(self.number()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(writer: Writer) -> Frame {
        let bytes = writer.finish();
        let kind = Kind::read(bytes[4]).unwrap();
        Frame { kind, body: Zeroizing::new(bytes[5..].to_vec()) }
    }

    fn a_setup() -> Setup {
        Setup {
            module: "/lib/module.so".into(),
            name: TokenName {
                label: Some("prod".to_owned()),
                serial: None,
                manufacturer: Some(String::new()),
                model: None,
                slot_id: Some(u64::MAX),
            },
            key: KeyName {
                label: "orders".to_owned(),
                id: Some(vec![0, 255]),
                versions: Versions::Single,
            },
            logs_in: true,
            way: Some(IvSource::Message),
            key_max_age: Duration::from_millis(1234),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let frame = body(Writer::new(Kind::Hello).byte(PROTOCOL).setup(&a_setup()));
        let mut reader = frame.reader();
        assert_eq!(reader.byte(), Ok(PROTOCOL));
        assert_eq!(reader.setup(), Ok(a_setup()));
        reader.end().unwrap();
        for outcome in [
            Outcome::LoggedIn,
            Outcome::NotTried,
            Outcome::Refused("no".to_owned()),
            Outcome::Failed { said: "down".to_owned(), is_down: true },
        ] {
            let frame = body(Writer::new(Kind::Settled).outcome(&outcome));
            assert_eq!(frame.reader().outcome(), Ok(outcome));
        }
        for class in [
            KekErrorClass::Unavailable,
            KekErrorClass::Throttled,
            KekErrorClass::Denied,
            KekErrorClass::Invalid,
            KekErrorClass::Misconfigured,
        ] {
            for after in
                [After::Keep, After::Drop, After::Reconnect, After::FindKey, After::NoSession]
            {
                let failure = Failure::new(class, "text").after(after).lost().without_asking();
                let frame = body(Writer::new(Kind::Done).failure(&failure));
                assert_eq!(frame.reader().failure(), Ok(failure));
            }
        }
        let known = Known {
            current: vec![2],
            versions: vec!["01".to_owned(), "02".to_owned()],
            notes: vec!["a note".to_owned()],
            has_generator: true,
        };
        let frame = body(Writer::new(Kind::Done).known(Some(&known)).known(None));
        let mut reader = frame.reader();
        let read = reader.known().unwrap().unwrap();
        assert_eq!(
            (read.current, read.versions, read.notes, read.has_generator),
            (known.current, known.versions, known.notes, true)
        );
        assert!(reader.known().unwrap().is_none());
        reader.end().unwrap();
    }

    #[test]
    fn every_truncation_is_garbage() {
        let frame = body(Writer::new(Kind::Hello).setup(&a_setup()));
        for len in 0..frame.body.len() {
            let mut reader = Reader(&frame.body[..len]);
            assert!(reader.setup().is_err(), "{len}");
        }
    }

    #[test]
    fn texts_of_errors_are_bounded_and_have_no_control_characters() {
        let failure = Failure::unavailable(format!("a\u{1b}[2J\n{}", "x".repeat(100_000)));
        let frame = body(Writer::new(Kind::Done).failure(&failure));
        let read = frame.reader().failure().unwrap().message;
        assert_eq!(read.chars().count(), LONGEST_MESSAGE);
        assert!(!read.contains(|c: char| c.is_control()), "{read:?}");
    }

    #[test]
    fn frames_cross_and_what_is_too_long_or_late_does_not() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, theirs) = (Channel::new(ours), Channel::new(theirs));
        let soon = || Instant::now().checked_add(Duration::from_millis(100));
        ours.send(Writer::new(Kind::Pin).text("1234"), soon()).unwrap();
        let frame = theirs.receive(100, soon()).unwrap();
        assert_eq!((frame.kind, frame.reader().str()), (Kind::Pin, Ok("1234")));
        let late = theirs.receive(100, soon()).err().unwrap();
        assert_eq!(late.kind(), ErrorKind::TimedOut);
        ours.send(Writer::new(Kind::Pin).text(&"7".repeat(200)), soon()).unwrap();
        let long = theirs.receive(100, soon()).err().unwrap();
        assert_eq!(long.kind(), ErrorKind::InvalidData);
        // Nobody reads any more: the deadline holds for what is sent too.
        let start = Instant::now();
        let stuck = loop {
            let wide = Writer::new(Kind::Pin).text(&"7".repeat(60_000));
            if let Err(error) = ours.send(wide, soon()) {
                break error;
            }
            assert!(start.elapsed() < Duration::from_secs(30));
        };
        assert_eq!(stuck.kind(), ErrorKind::TimedOut);
        drop(theirs);
        let gone = ours.send(Writer::new(Kind::Pin), soon()).unwrap_err();
        assert!(matches!(gone.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset));
    }

    proptest! {
        #[test]
        fn nothing_that_is_read_panics_or_takes_memory(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let reader = || Reader(&bytes);
            let _ = reader().setup();
            let _ = reader().failure();
            let _ = reader().outcome();
            let _ = reader().way();
            if let Ok(Some(known)) = reader().known() {
                prop_assert!(known.versions.len() + known.notes.len() <= bytes.len());
            }
        }
    }
}
