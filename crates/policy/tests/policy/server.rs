//! An HTTP server that answers as a test says.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What it does with a request.
#[derive(Clone)]
pub(crate) enum Answer {
    /// Status and body.
    Http(u16, String),
    /// These bytes, and the connection ends.
    Raw(Vec<u8>),
    /// Nothing.
    Hang,
    /// The body, after this time.
    Late(Duration, String),
}

#[derive(Clone)]
pub(crate) struct Server(Arc<Inner>);

struct Inner {
    answer: Mutex<Answer>,
    requests: Mutex<Vec<String>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl Server {
    fn new(body: &str) -> Self {
        Self(Arc::new(Inner {
            answer: Mutex::new(Answer::Http(200, body.to_owned())),
            requests: Mutex::default(),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
        }))
    }

    /// Listens on TCP. Answers 200 with this body.
    pub(crate) fn tcp(body: &str) -> (Self, SocketAddr) {
        let (server, listener) = (Self::new(body), TcpListener::bind("127.0.0.1:0").unwrap());
        let (ours, address) = (server.clone(), listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = ours.clone();
                thread::spawn(move || {
                    let reading = stream.try_clone().unwrap();
                    server.serve(reading, stream)
                });
            }
        });
        (server, address)
    }

    /// The same, on a unix socket.
    pub(crate) fn unix(path: &Path, body: &str) -> Self {
        let (server, listener) = (Self::new(body), UnixListener::bind(path).unwrap());
        let ours = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let reading = stream.try_clone().unwrap();
                let _ = ours.serve(reading, stream);
            }
        });
        server
    }

    pub(crate) fn answer(&self, answer: Answer) {
        *self.0.answer.lock().unwrap() = answer;
    }

    /// The requests so far, with their heads.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.0.requests.lock().unwrap().clone()
    }

    pub(crate) fn most_at_once(&self) -> usize {
        self.0.most_at_once.load(Ordering::SeqCst)
    }

    fn serve(&self, reading: impl Read, mut writing: impl Write) -> io::Result<()> {
        let mut reading = BufReader::new(reading);
        loop {
            let (mut text, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reading.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                text.push_str(&line);
                if line == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; length];
            reading.read_exact(&mut body)?;
            text.push_str(&String::from_utf8(body).unwrap());
            self.0.requests.lock().unwrap().push(text);
            let now = self.0.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.0.most_at_once.fetch_max(now, Ordering::SeqCst);
            let answer = self.0.answer.lock().unwrap().clone();
            let bytes = match answer {
                Answer::Http(status, body) => http(status, &body),
                Answer::Raw(bytes) => {
                    self.0.at_once.fetch_sub(1, Ordering::SeqCst);
                    return writing.write_all(&bytes);
                }
                // Until the client goes.
                Answer::Hang => {
                    let result = reading.read(&mut [0]).map(drop);
                    self.0.at_once.fetch_sub(1, Ordering::SeqCst);
                    return result;
                }
                Answer::Late(time, body) => {
                    thread::sleep(time);
                    http(200, &body)
                }
            };
            self.0.at_once.fetch_sub(1, Ordering::SeqCst);
            writing.write_all(&bytes)?;
        }
    }
}

pub(crate) fn http(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nlocation: http://127.0.0.1:1/\r\n\
             content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
