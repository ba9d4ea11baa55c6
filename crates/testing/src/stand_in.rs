//! Stand-ins for AWS that others wrote, and a relay in front of a server that can be cut.
#![allow(dead_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::ports::free_port;
use crate::python;

const MOTO: &str = r#"
import sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

moto, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

def one_at_a_time(environ, start_response):
    with turn:
        return list(moto(environ, start_response))

run_simple("127.0.0.1", int(sys.argv[1]), one_at_a_time, threaded=True)
"#;

/// The interpreter of the environment with moto and ministack. Panics, and so fails the test, when
/// they cannot be installed.
pub fn installed() -> PathBuf {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("kms_stand_ins.txt");
    python::interpreter_in("kms-stand-ins", &requirements)
}

/// A server from a Python environment, ended with the test. Panics, and so fails the test, when it
/// cannot be started.
pub struct StandIn {
    child: Child,
    port: u16,
}

impl StandIn {
    /// moto: keeps everything in memory, checks no signature. It serves one request after the
    /// other: by itself it has a thread for each request and no lock, so that of conditional writes
    /// at the same time several may succeed.
    pub fn moto() -> Self {
        Self::start(|python, port| {
            let mut moto = Command::new(python);
            moto.args(["-c", MOTO, &port.to_string()]);
            moto
        })
    }

    pub fn ministack() -> Self {
        Self::start(|python, port| {
            let mut ministack = Command::new(python.with_file_name("ministack"));
            ministack
                .env("BIND_HOST", "127.0.0.1")
                .env("GATEWAY_HOST", "127.0.0.1")
                .env("GATEWAY_PORT", port.to_string())
                .env("IOT_MTLS_ENABLED", "0");
            ministack
        })
    }

    fn start(command: fn(&Path, u16) -> Command) -> Self {
        let python = installed();
        let port = free_port();
        let mut command = command(&python, port);
        command
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .current_dir(python.parent().unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "{command:?} has ended");
            assert!(start.elapsed() < Duration::from_secs(120), "{command:?} does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { child, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What becomes of the bytes of a relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Line {
    /// They go to the server and back.
    Open = 0,
    /// Connections are closed.
    Cut = 1,
    /// Connections stay, and what is sent is lost.
    Silent = 2,
}

/// A relay in front of a server on this machine. What is sent while it is not open never arrives.
pub struct Relay {
    port: u16,
    line: Arc<AtomicU8>,
}

impl Relay {
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, line) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU8::new(0)));
        let state = line.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().filter_map(Result::ok) {
                let state = state.clone();
                std::thread::spawn(move || relay(client, server, &state));
            }
        });
        Self { port, line }
    }

    pub fn set(&self, line: Line) {
        self.line.store(line as u8, Ordering::SeqCst);
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn relay(client: TcpStream, server: u16, line: &Arc<AtomicU8>) {
    if line.load(Ordering::SeqCst) == Line::Cut as u8 {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from, to, state) =
        (server.try_clone().unwrap(), client.try_clone().unwrap(), line.clone());
    let back = std::thread::spawn(move || forward(from, to, &state));
    forward(client, server, line);
    let _ = back.join();
}

fn forward(mut from: TcpStream, mut to: TcpStream, line: &AtomicU8) {
    let _ = from.set_read_timeout(Some(Duration::from_millis(20)));
    let (mut bytes, mut has_lost) = (vec![0; 64 * 1024], false);
    loop {
        let read = from.read(&mut bytes);
        let now = line.load(Ordering::SeqCst);
        // A connection that lost something is of no use any more.
        if now == Line::Cut as u8 || has_lost && now == Line::Open as u8 {
            break;
        }
        match read {
            Ok(0) => break,
            Ok(_) if now == Line::Silent as u8 => has_lost = true,
            Ok(count) => {
                if to.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
