//! A real PostgreSQL server: installed once from Debian, with a cluster of its own for each test in
//! a temporary directory, on a free port of this machine, ended with it.
//!
//! Start it from the thread that runs the test: the server is ended by the kernel when that thread
//! ends without doing so.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::certificates::{Authority, Certificate};
use crate::ports::free_port;
use crate::python::run;

pub const PASSWORD: &str = "postgres-of-the-test";

/// The directory of the server's programs. Panics, and so fails the test, when they cannot be
/// installed.
pub fn programs() -> PathBuf {
    fs::create_dir_all(crate::target_directory()).unwrap();
    let lock = File::create(crate::target_directory().join("postgres.lock")).unwrap();
    lock.lock().unwrap();
    let installed = || {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        let mut versions: Vec<_> = versions.map(|entry| entry.unwrap().path()).collect();
        versions.sort();
        versions.into_iter().rev().map(|version| version.join("bin")).find(|programs| {
            ["initdb", "postgres", "psql"].iter().all(|name| programs.join(name).exists())
        })
    };
    if let Some(programs) = installed() {
        return programs;
    }
    let as_root: &[&str] = if is_root() { &[] } else { &["sudo"] };
    let apt = |arguments: &[&str]| {
        let line = [as_root, &["apt-get"], arguments].concat();
        run(Command::new(line[0]).args(&line[1..]).env("DEBIAN_FRONTEND", "noninteractive"));
    };
    apt(&["update", "--quiet"]);
    apt(&["install", "--quiet", "--yes", "--no-install-recommends", "postgresql"]);
    installed().unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The server refuses to run as root.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command.arg(program).current_dir("/");
    command
}

/// A cluster that was never started, made once: a copy of it takes a tenth of the time.
fn template(programs: &Path) -> PathBuf {
    let version = run(Command::new(programs.join("postgres")).arg("--version"));
    let number = version.split_whitespace().nth(2).unwrap();
    let made = crate::target_directory().join(format!("postgres-{number}"));
    let lock = File::create(crate::target_directory().join("postgres.lock")).unwrap();
    lock.lock().unwrap();
    if made.exists() {
        return made;
    }
    let making = tempfile::tempdir().unwrap();
    let (data, password) = (making.path().join("data"), making.path().join("password"));
    fs::write(&password, PASSWORD).unwrap();
    if is_root() {
        let user = run(Command::new("id").args(["-u", "postgres"])).trim().parse().unwrap();
        chown(making.path(), Some(user), None).unwrap();
        chown(&password, Some(user), None).unwrap();
    }
    run(as_postgres(&programs.join("initdb"))
        .args(["--auth=scram-sha-256", "--username=postgres", "--encoding=UTF8", "--locale=C"])
        .args(["--no-sync", "--no-instructions"])
        .arg(format!("--pwfile={}", password.display()))
        .arg(format!("--pgdata={}", data.display())));
    // The temporary directory may be on another file system, and a copy may be cut short.
    let copy = crate::target_directory().join("postgres-copy");
    let _ = fs::remove_dir_all(&copy);
    run(Command::new("cp").arg("-a").args([&data, &copy]));
    fs::rename(copy, &made).unwrap();
    made
}

pub struct Postgres {
    programs: PathBuf,
    directory: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Postgres {
    /// Starts a server with an empty database `keys` and the superuser `postgres`. It syncs
    /// nothing, which saves seconds and keeps everything that a crash of the machine would not
    /// lose.
    pub fn start() -> Self {
        Self::with(&["fsync=off"])
    }

    /// The same with these settings, each `NAME=VALUE`.
    pub fn with(settings: &[&str]) -> Self {
        crate::outputs::note_secret(PASSWORD);
        let server = Self::made(settings);
        server.started()
    }

    /// A server that offers TLS, and shows this certificate.
    pub fn with_tls(authority: &Authority, shown: Certificate) -> Self {
        let server = Self::made(&["fsync=off", "ssl=on"]);
        let (certificate, key) = authority.issue(shown);
        server.write("server.crt", &certificate.pem());
        server.write("server.key", &key.serialize_pem());
        server.started()
    }

    fn made(settings: &[&str]) -> Self {
        let (programs, directory) = (programs(), tempfile::tempdir().unwrap());
        let server = Self { programs, directory, port: free_port(), child: None };
        server.make_cluster();
        let mut configuration =
            File::options().append(true).open(server.data().join("postgresql.conf")).unwrap();
        for setting in settings {
            writeln!(configuration, "{setting}").unwrap();
        }
        server
    }

    fn started(mut self) -> Self {
        self.launch();
        self.sql("CREATE DATABASE keys");
        self
    }

    /// Writes a file in the server's data directory, which is the server's own.
    fn write(&self, name: &str, content: &str) {
        let (path, owner) = (self.data().join(name), fs::metadata(self.data()).unwrap());
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn make_cluster(&self) {
        if is_root() {
            let user = run(Command::new("id").args(["-u", "postgres"])).trim().parse().unwrap();
            chown(self.directory.path(), Some(user), None).unwrap();
        }
        fs::set_permissions(self.directory.path(), Permissions::from_mode(0o700)).unwrap();
        run(Command::new("cp").arg("-a").arg(template(&self.programs)).arg(self.data()));
    }

    fn launch(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("server.log"))
            .unwrap();
        let child = as_postgres(&self.programs.join("postgres"))
            .arg("-D")
            .arg(self.data())
            .args(["-c", "listen_addresses=127.0.0.1", "-c", &format!("port={}", self.port)])
            .args(["-c", "unix_socket_directories=", "-c", "shared_buffers=16MB"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let start = Instant::now();
        while !self.psql("postgres", "SELECT 1").output().unwrap().status.success() {
            let log = fs::read_to_string(self.directory.path().join("server.log")).unwrap();
            assert!(start.elapsed() < Duration::from_secs(60), "not ready:\n{log}");
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A URL without a password.
    pub fn url(&self, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/keys", self.port)
    }

    fn psql(&self, database: &str, sql: &str) -> Command {
        let mut command = Command::new(self.programs.join("psql"));
        command
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .args(["--set", "ON_ERROR_STOP=1", "--host", "127.0.0.1", "--username", "postgres"])
            .args(["--port", &self.port.to_string(), "--dbname", database, "--command", sql])
            .env("PGPASSWORD", PASSWORD)
            .env("PGCONNECT_TIMEOUT", "5");
        command
    }

    /// Runs SQL as the superuser, in the database `postgres`. It has to succeed.
    pub fn sql(&self, sql: &str) -> String {
        run(&mut self.psql("postgres", sql)).trim().to_owned()
    }

    /// The same in the database `keys`.
    pub fn sql_in_keys(&self, sql: &str) -> String {
        run(&mut self.psql("keys", sql)).trim().to_owned()
    }

    /// Runs SQL that has to fail, and returns what was said.
    pub fn refused(&self, sql: &str) -> String {
        let output = self.psql("keys", sql).output().unwrap();
        assert!(!output.status.success(), "{sql} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Makes a role that may log in with [`PASSWORD`].
    pub fn role(&self, name: &str) {
        self.sql(&format!("CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'"));
    }

    fn postmaster(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// The server's processes: the postmaster and its children.
    fn processes(&self) -> Vec<u32> {
        let postmaster = self.child.as_ref().unwrap().id();
        let children = format!("/proc/{postmaster}/task/{postmaster}/children");
        let children = fs::read_to_string(children).unwrap_or_default();
        let children = children.split_whitespace().map(|child| child.parse().unwrap());
        std::iter::once(postmaster).chain(children).collect()
    }

    /// Stops every process with SIGSTOP: the kernel accepts connections, and nobody answers.
    pub fn stop(&self) {
        for process in self.processes() {
            let pid = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
            if kill_process(pid, Signal::STOP).is_ok() {
                crate::wait_until_stopped(process);
            }
        }
    }

    pub fn go_on(&self) {
        for process in self.processes() {
            let pid = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    /// `kill -9` of all its processes: nothing is written that was not written before.
    pub fn kill(&mut self) {
        if self.child.is_none() {
            return;
        }
        let processes = self.processes();
        kill_process(self.postmaster(), Signal::STOP).unwrap();
        for process in processes.iter().skip(1).chain(processes.first()) {
            let pid = Pid::from_raw(i32::try_from(*process).unwrap()).unwrap();
            let _ = kill_process(pid, Signal::KILL);
        }
        self.child.take().unwrap().wait().unwrap();
        // Nobody may wait for the orphans: a zombie has no memory and no files any more.
        let gone = |process: &u32| {
            let stat = fs::read_to_string(format!("/proc/{process}/stat"));
            stat.map_or(true, |stat| {
                stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
            })
        };
        let start = Instant::now();
        while !processes.iter().all(gone) && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts what was killed, on the same port and data. Call it from the thread that runs the
    /// test.
    pub fn restart(&mut self) {
        assert!(self.child.is_none());
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
        self.launch();
    }

    /// The same, as a standby that waits for a primary. `pg_promote()` ends that.
    pub fn restart_as_standby(&mut self) {
        self.write("standby.signal", "");
        self.restart();
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("server.log")).unwrap()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}
