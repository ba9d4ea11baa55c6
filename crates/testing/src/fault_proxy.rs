//! A TCP proxy that breaks what goes through it: for any server and any protocol.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What happens to what the server answers, from the next byte on, in connections that are open
/// too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    None,
    /// Every piece waits this long.
    Delay(Duration),
    /// Nothing comes, and nothing ends.
    Silence,
    /// The connection ends with a reset instead of an answer.
    Reset,
    /// The server's side is closed in order, instead of an answer.
    HalfClose,
    /// This many bytes, then the end. Counted from when the fault was set.
    Truncate(usize),
    /// These bytes instead of an answer, then the end.
    Replace(Vec<u8>),
    /// One byte at a time, with a pause after each.
    Trickle(Duration),
}

struct Shared {
    upstream: SocketAddr,
    fault: Mutex<Fault>,
    let_through: AtomicUsize,
    connections: AtomicUsize,
    requests: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
    over: AtomicBool,
}

pub struct FaultProxy {
    shared: Arc<Shared>,
    address: Ipv4Addr,
    port: u16,
}

impl FaultProxy {
    /// In front of a port of this machine.
    pub fn start(upstream_port: u16) -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST, upstream_port)
    }

    /// Listens on another address of this machine, such as 127.0.0.2.
    pub fn start_on(address: Ipv4Addr, upstream_port: u16) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            upstream: (Ipv4Addr::LOCALHOST, upstream_port).into(),
            fault: Mutex::new(Fault::None),
            let_through: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            open: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let for_thread = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if for_thread.over.load(Ordering::SeqCst) {
                    return;
                }
                for_thread.connections.fetch_add(1, Ordering::SeqCst);
                for_thread.clone().serve(client);
            }
        });
        Self { shared, address, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, fault: Fault) {
        self.shared.let_through.store(0, Ordering::SeqCst);
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// Ends every open connection, so that the next request needs a new one.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// HTTP/1.1 requests in the clear that passed.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the listener.
        let _ = TcpStream::connect((self.address, self.port));
    }
}

impl Shared {
    fn serve(self: Arc<Self>, client: TcpStream) {
        // A server that is not there: the client sees its connection end.
        let Ok(server) = TcpStream::connect(self.upstream) else { return };
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        self.open
            .lock()
            .unwrap()
            .extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let shared = self.clone();
        thread::spawn(move || shared.pass_requests(from_client, to_server));
        thread::spawn(move || self.pass_answers(server, client));
    }

    fn pass_requests(&self, mut client: TcpStream, mut server: TcpStream) {
        const VERSION: &[u8] = b" HTTP/1.1\r\n";
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(len @ 1..) = client.read(&mut buffer) {
            let found =
                buffer[..len].windows(VERSION.len()).filter(|window| *window == VERSION).count();
            self.requests.fetch_add(found, Ordering::SeqCst);
            if server.write_all(&buffer[..len]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Write);
    }

    fn pass_answers(&self, mut server: TcpStream, mut client: TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(len @ 1..) = server.read(&mut buffer) {
            let piece = &buffer[..len];
            let fault = self.fault.lock().unwrap().clone();
            let going_on = match fault {
                Fault::None => client.write_all(piece).is_ok(),
                Fault::Delay(pause) => {
                    thread::sleep(pause);
                    client.write_all(piece).is_ok()
                }
                Fault::Silence => true,
                Fault::Reset => {
                    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
                    // The clones that are kept would keep the socket open.
                    self.open.lock().unwrap().clear();
                    // The other direction's clone is let go when this ends.
                    let _ = server.shutdown(Shutdown::Both);
                    let _ = client.shutdown(Shutdown::Read);
                    return;
                }
                Fault::HalfClose => {
                    let _ = client.shutdown(Shutdown::Write);
                    true
                }
                Fault::Truncate(most) => {
                    let already = self.let_through.fetch_add(len, Ordering::SeqCst);
                    let now = most.saturating_sub(already).min(len);
                    client.write_all(&piece[..now]).is_ok() && already + len <= most
                }
                Fault::Replace(bytes) => {
                    let _ = client.write_all(&bytes);
                    false
                }
                Fault::Trickle(pause) => piece.iter().all(|byte| {
                    thread::sleep(pause);
                    client.write_all(&[*byte]).is_ok()
                }),
            };
            if !going_on {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    }
}
