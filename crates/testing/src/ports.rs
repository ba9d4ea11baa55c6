//! Ports for servers that tests start.

use std::fs::{self, File};
use std::net::TcpListener;
use std::sync::Mutex;

/// Below the ports that the system gives to connections and to programs that ask for any port.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

/// Held until the process ends, and with it its servers.
static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// Returns a port that no process listens on, and that no other test is given, in this process or
/// in another: a server needs a while until it listens, and two tests must not meet on one server.
pub fn free_port() -> u16 {
    let folder = crate::target_directory().join("ports");
    fs::create_dir_all(&folder).unwrap();
    loop {
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        let port = FIRST + u16::from_le_bytes(random) % (LAST - FIRST + 1);
        let path = folder.join(port.to_string());
        let lock = File::options().create(true).truncate(false).write(true).open(path).unwrap();
        if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            TAKEN.lock().unwrap().push(lock);
            return port;
        }
    }
}
