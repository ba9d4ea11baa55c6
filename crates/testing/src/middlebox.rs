//! A NAT gateway or load balancer that forgets: connections that are open go silent for ever,
//! without an end and without a reset. New ones work.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Ends with the test's process.
pub struct Middlebox {
    port: u16,
    forgotten: Arc<AtomicUsize>,
    opened: Arc<AtomicUsize>,
}

impl Middlebox {
    /// In front of a port of this machine.
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (forgotten, opened) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (for_thread, count) = (forgotten.clone(), opened.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let born = for_thread.load(Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else { continue };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                }
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                for (from, to) in [(client, server), back] {
                    let forgotten = for_thread.clone();
                    thread::spawn(move || pass(from, to, born, &forgotten));
                }
            }
        });
        Self { port, forgotten, opened }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// All connections that are open now are dead, without any notice.
    pub fn forget(&self) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
    }

    /// Connections that were ever opened.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, born: usize, forgotten: &AtomicUsize) {
    let is_known = || forgotten.load(Ordering::SeqCst) == born;
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if is_known() && to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    if is_known() {
        let _ = to.shutdown(Shutdown::Write);
    }
}
