//! The stand-in as a process of its own: one that can be stopped, and whose memory is not the test's.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{GoogleFront, Protection};

const ROLE: &str = "WAXSEAL_TEST_GOOGLE_FRONT";
/// The key that it has.
pub const KEY: &str =
    "projects/orders-prod/locations/europe-west1/keyRings/services/cryptoKeys/child";

/// To be called by a test of this name and nothing else in every binary that uses this: it is the
/// child's part, and does nothing elsewhere.
pub fn child_s_part() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let front = GoogleFront::start();
    assert_eq!(front.create_key("child", Protection::Software), KEY);
    let mut out = std::io::stdout();
    writeln!(out, "\nfront at {}", front.url()).unwrap();
    out.flush().unwrap();
    // Until the parent is gone, however it went.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

pub struct GoogleChild {
    child: Child,
    url: String,
}

impl GoogleChild {
    /// `test` is the name of the test that calls [`child_s_part`].
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
            .find_map(|line| line.strip_prefix("front at ").map(str::to_owned));
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

impl Drop for GoogleChild {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
