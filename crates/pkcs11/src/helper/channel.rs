//! The socket between the service and a helper: frames of a message followed by a secret.
//!
//! A secret (a DEK, the PIN) is never part of a message. It is sent from its place and received
//! into memory that is wiped, so no buffer in between keeps a copy.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use zeroize::Zeroizing;

use super::wire::{Wire, lengths};

/// Longest messages, in bytes. An answer may list many versions of a key.
const LONGEST: usize = 1024 * 1024;
/// Longest secret: that of a PIN.
const LONGEST_SECRET: usize = 4096;
/// Messages are received in pieces, so that room is taken for what has arrived only.
const PIECE: usize = 4096;
/// The first thing that a helper says, followed by its version and a line feed.
const GREETING: &str = "waxseal-pkcs11-helper ";
const LONGEST_GREETING: usize = 80;

/// A vanished peer is an error, and must not end the service.
#[cfg(not(target_vendor = "apple"))]
const NO_SIGNAL: SendFlags = SendFlags::NOSIGNAL;
/// On these systems, the standard library has already set it on the socket.
#[cfg(target_vendor = "apple")]
const NO_SIGNAL: SendFlags = SendFlags::empty();

/// One end of the socket.
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
        // It may already be closed.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    /// Sends the greeting.
    pub(super) fn greet(&self) -> io::Result<()> {
        self.write(format!("{GREETING}{}\n", env!("CARGO_PKG_VERSION")).as_bytes(), None)
    }

    /// Returns the version of the helper at the other end. Before the first request it sends
    /// nothing else.
    pub(super) fn greeted(&self, deadline: Option<Instant>) -> io::Result<String> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while line.len() < LONGEST_GREETING {
            self.read(&mut byte, deadline)?;
            if byte == *b"\n" {
                let line = String::from_utf8(line).ok();
                let version = line.as_deref().and_then(|line| line.strip_prefix(GREETING));
                let is_one = |text: &&str| text.bytes().all(|byte| byte.is_ascii_graphic());
                return version.filter(is_one).map(str::to_owned).ok_or_else(garbage);
            }
            line.extend_from_slice(&byte);
        }
        Err(garbage())
    }

    /// Sends a message, followed by a secret, until the deadline.
    pub(super) fn send(
        &self,
        message: &impl Wire,
        secret: &[u8],
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let mut bytes = vec![0; 6];
        message.put(&mut bytes);
        let (len, secret_len) = (bytes.len() - 6, secret.len());
        if len > LONGEST || secret_len > LONGEST_SECRET {
            return Err(ErrorKind::InvalidInput.into());
        }
        let mut head = Vec::with_capacity(6);
        u32::try_from(len).unwrap_or(u32::MAX).put(&mut head);
        u16::try_from(secret_len).unwrap_or(u16::MAX).to_le_bytes().put(&mut head);
        bytes.splice(..6, head);
        self.write(&bytes, deadline)?;
        self.write(secret, deadline)
    }

    /// Receives a message and its secret, until the deadline.
    pub(super) fn receive<T: Wire>(
        &self,
        deadline: Option<Instant>,
    ) -> io::Result<(T, Zeroizing<Vec<u8>>)> {
        let mut head = [0; 6];
        self.read(&mut head, deadline)?;
        let (len, secret_len) = lengths(head);
        if len > LONGEST || secret_len > LONGEST_SECRET {
            return Err(garbage());
        }
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let at = bytes.len();
            bytes.resize(len.min(at + PIECE), 0);
            self.read(bytes.get_mut(at..).unwrap_or_default(), deadline)?;
        }
        let mut secret = Zeroizing::new(vec![0; LONGEST_SECRET]);
        self.read(secret.get_mut(..secret_len).unwrap_or_default(), deadline)?;
        secret.truncate(secret_len);
        let mut rest = &*bytes;
        match T::take(&mut rest) {
            Some(message) if rest.is_empty() => Ok((message, secret)),
            _ => Err(garbage()),
        }
    }

    fn write(&self, mut rest: &[u8], deadline: Option<Instant>) -> io::Result<()> {
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

    fn read(&self, mut room: &mut [u8], deadline: Option<Instant>) -> io::Result<()> {
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

fn garbage() -> io::Error {
    ErrorKind::InvalidData.into()
}

/// Returns the time left until the deadline, never zero.
fn left(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let Some(deadline) = deadline else { return Ok(None) };
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(Some(left.max(Duration::from_millis(1)))),
        _ => Err(ErrorKind::TimedOut.into()),
    }
}

/// Sockets report it as `WouldBlock`.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { ErrorKind::TimedOut.into() } else { error }
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::replies;
    use super::super::wire::{Reply, Request};
    use super::*;

    fn pair() -> (Channel, Channel) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Channel::new(ours), Channel::new(theirs))
    }

    fn soon() -> Option<Instant> {
        Instant::now().checked_add(Duration::from_millis(200))
    }

    #[test]
    fn frames_cross_with_their_secrets_and_what_comes_late_or_never_is_an_error() {
        let (ours, theirs) = pair();
        theirs.greet().unwrap();
        assert_eq!(ours.greeted(soon()).unwrap(), env!("CARGO_PKG_VERSION"));
        for (request, secret) in [(Request::Pin, &b"1234"[..]), (Request::Close, b"")] {
            ours.send(&request, secret, soon()).unwrap();
            let (read, its) = theirs.receive::<Request>(soon()).unwrap();
            assert_eq!((read, &its[..]), (request, secret));
        }
        let late = theirs.receive::<Request>(soon()).err().unwrap();
        assert_eq!(late.kind(), ErrorKind::TimedOut);
        let long = ours.send(&Request::Pin, &[0; LONGEST_SECRET + 1], soon()).unwrap_err();
        assert_eq!(long.kind(), ErrorKind::InvalidInput);
        // Nobody reads any more: the deadline holds for what is sent too.
        let wide = Request::Unwrap { reread: false, aad: [0; 32], wrapped: vec![7; 60_000] };
        let start = Instant::now();
        let stuck = loop {
            if let Err(error) = ours.send(&wide, &[], soon()) {
                break error;
            }
            assert!(start.elapsed() < Duration::from_secs(30));
        };
        assert_eq!(stuck.kind(), ErrorKind::TimedOut);
        drop(theirs);
        let gone = ours.send(&Request::Pin, b"1", soon()).unwrap_err();
        assert!(matches!(gone.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset));
    }

    #[test]
    fn no_frame_that_lies_about_its_length_is_taken() {
        let whole = {
            let (ours, theirs) = pair();
            ours.send(&replies()[0], b"secret", soon()).unwrap();
            ours.shut();
            let mut bytes = Vec::new();
            (&theirs.0).read_to_end(&mut bytes).unwrap();
            bytes
        };
        let received = |bytes: &[u8]| {
            let (ours, theirs) = pair();
            ours.write(bytes, None).unwrap();
            drop(ours);
            theirs.receive::<Reply>(soon()).map(|(reply, _)| reply).map_err(|error| error.kind())
        };
        assert_eq!(received(&whole).unwrap(), replies()[0]);
        for len in 0..whole.len() {
            assert_eq!(received(&whole[..len]).unwrap_err(), ErrorKind::UnexpectedEof, "{len}");
        }
        for head in [[255; 6], [0, 0, 16, 0, 255, 255], [1, 0, 16, 0, 0, 0]] {
            assert_eq!(received(&[&head[..], &whole].concat()), Err(ErrorKind::InvalidData));
        }
        // A mebibyte is promised, and three bytes come.
        assert_eq!(received(&[0, 0, 16, 0, 0, 0, 1, 2, 3]), Err(ErrorKind::UnexpectedEof));
        assert_eq!(received(&[0; 6]), Err(ErrorKind::InvalidData), "an empty message");
    }

    #[test]
    fn a_greeting_is_one_line_of_the_helper() {
        for (said, kind) in [
            (&b"waxseal-pkcs11-helper 9.9.9\n"[..], None),
            (b"waxseal-pkcs11-helper \x1b[2J\n", Some(ErrorKind::InvalidData)),
            (b"hello\n", Some(ErrorKind::InvalidData)),
            (&[b'x'; 1000], Some(ErrorKind::InvalidData)),
            (b"waxseal-pkcs11-helper 9.9", Some(ErrorKind::UnexpectedEof)),
        ] {
            let (ours, theirs) = pair();
            theirs.write(said, None).unwrap();
            drop(theirs);
            let greeted = ours.greeted(soon());
            assert_eq!(greeted.as_deref().ok(), kind.is_none().then_some("9.9.9"));
            assert_eq!(greeted.err().map(|error| error.kind()), kind);
        }
    }
}
