//! The KMS front as a process of its own: one that can be stopped, and whose memory is not the test's.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::kms_front::{ACCOUNT, KmsFront, Login};

const ROLE: &str = "WAXSEAL_TEST_KMS_FRONT";
pub const REGION: &str = "eu-west-1";
pub const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/11112222-3333-4444-5555-666677778888";

pub fn login() -> Login {
    Login { access_key: "AKIACHILD".into(), secret: "of the child".into(), session_token: None }
}

/// To be called by a test of this name and nothing else in every binary that uses this: it is the child's part, and does nothing elsewhere.
pub fn child_s_part() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let front = KmsFront::start();
    let everything = serde_json::json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": "kms:*", "Resource": "*" },
    ] });
    front.enroll("child", &login(), vec![everything]);
    front.world().insert_key(REGION, ACCOUNT, ARN.rsplit('/').next().unwrap(), Some([7; 32]));
    let mut out = std::io::stdout();
    writeln!(out, "\nfront at {}", front.url()).unwrap();
    out.flush().unwrap();
    // Until the parent is gone, however it went.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

pub struct KmsChild {
    child: Child,
    url: String,
}

impl KmsChild {
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
        Self {
            child,
            url: url
                .unwrap_or_else(|| panic!("the child says no address: is there a test {test}?")),
        }
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

impl Drop for KmsChild {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
