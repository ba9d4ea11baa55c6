//! The stand-in as a separate process, whose memory is not the test's.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::Azure;

const ROLE: &str = "WAXSEAL_TEST_AZURE_STAND_IN";
/// The client that may do everything with the keys.
pub const CLIENT: &str = "service";
pub const HSM: &str = "orders.managedhsm.azure.net";
pub const VAULT: &str = "orders.vault.azure.net";
pub const KEY: &str = "child";

/// To be called by a test of this name and nothing else in every binary that uses this: it is the
/// child's part, and does nothing elsewhere.
pub fn child_s_part() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let azure = Azure::start();
    let secret_file = azure.application(CLIENT);
    {
        let mut world = azure.world();
        world.create_aes(HSM, KEY);
        world.create_rsa(VAULT, KEY);
        world.permit(HSM, CLIENT, &["encrypt", "decrypt", "get"]);
        world.permit(VAULT, CLIENT, &["wrapKey", "unwrapKey", "get"]);
    }
    let mut out = std::io::stdout();
    writeln!(out, "\nport {}", azure.port()).unwrap();
    writeln!(out, "secret {}", secret_file.display()).unwrap();
    writeln!(out, "ca {}", azure.ca_file().display()).unwrap();
    out.flush().unwrap();
    // Until the parent is gone, however it went.
    let _ = std::io::stdin().read(&mut [0]);
    drop(azure);
    std::process::exit(0);
}

pub struct AzureChild {
    child: Child,
    pub port: u16,
    pub secret_file: PathBuf,
    pub ca_file: PathBuf,
}

impl AzureChild {
    /// `test` is the name of the test that calls [`child_s_part`].
    pub fn start(test: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ROLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut next = |name: &str| {
            let line = lines.find_map(|line| line.strip_prefix(name).map(str::to_owned));
            line.unwrap_or_else(|| panic!("the child says no {name}: is there a test {test}?"))
        };
        let port = next("port ").parse().unwrap();
        let (secret_file, ca_file) = (next("secret ").into(), next("ca ").into());
        Self { child, port, secret_file, ca_file }
    }

    pub fn authority_host(&self) -> String {
        format!("https://localhost:{}", self.port)
    }
}

impl Drop for AzureChild {
    fn drop(&mut self) {
        // At the end of its input it takes its files away.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
