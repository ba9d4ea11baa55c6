//! A stand-in as a separate process: one that can be stopped, and whose memory is not the test's.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const ROLE: &str = "WAXSEAL_TEST_SERVER";

/// The child's part: serves until the parent is gone. Does nothing in the parent. `start` returns
/// the server and its URL.
///
/// Every binary that uses a [`ServerChild`] needs a test that calls this and nothing else.
pub(crate) fn serve_as_child<S>(start: impl FnOnce() -> (S, String)) {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let (_server, url) = start();
    let mut out = std::io::stdout();
    writeln!(out, "\nserver at {url}").unwrap();
    out.flush().unwrap();
    // Until the parent is gone, however it went.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

pub struct ServerChild {
    child: Child,
    url: String,
}

impl ServerChild {
    /// `test` is the name of the test that does the child's part.
    pub fn start(test: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ROLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("server at ").map(str::to_owned));
        let url =
            url.unwrap_or_else(|| panic!("the child says no address: is there a test {test}?"));
        Self { child, url }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn stop(&self) {
        self.signal(Signal::STOP);
        crate::wait_until_stopped(self.child.id());
    }

    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }
}

impl Drop for ServerChild {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
