//! The engine of Open Policy Agent itself, in a Python process: installed once under `target/`.
//!
//! OPA's own server cannot be installed as a package. [`Opa`] is a short one around the real
//! engine.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::python::{self, run};

/// The engine of OPA 1.20.2.
const PACKAGE: &str = "opa-golib-python-bindings==0.4.4";

/// The directory with the engine. Panics, and so fails the test, when it cannot be installed.
pub fn installed() -> PathBuf {
    python::filled_once("opa", PACKAGE, |directory, python| {
        let wheels = directory.join("wheels");
        let _ = fs::remove_dir_all(&wheels);
        // The package asks for Python 3.14, and needs no more than what older ones have.
        run(Command::new(python)
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--python-version", "3.14"])
            .args(["--only-binary=:all:", PACKAGE, "--dest"])
            .arg(&wheels));
        let wheel = fs::read_dir(&wheels).unwrap().next().unwrap().unwrap().path();
        let engine = directory.join("engine");
        run(Command::new(python).args(["-m", "zipfile", "-e"]).args([&wheel, &engine]));
    })
}

/// A Python process with the engine.
fn process(arguments: &[&str]) -> Child {
    let directory = installed();
    let mut command = Command::new(directory.join("venv/bin/python"));
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("opa.py"))
        .args(arguments)
        .env("PYTHONPATH", directory.join("engine"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"))
}

/// What the engine says of one input.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    Value(Value),
    Undefined,
    Error(String),
}

/// Evaluates policies, one after the other, in one process.
pub struct Evaluator {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Evaluator {
    pub fn start() -> Self {
        let mut child = process(&["evaluate"]);
        let (questions, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, questions, answers: BufReader::new(answers) }
    }

    /// The document of a package for each input.
    pub fn evaluate(
        &mut self,
        policies: &[(String, String)],
        data: &Value,
        package: &str,
        inputs: &[Value],
    ) -> Vec<Answer> {
        let asked =
            json!({ "policies": policies, "data": data, "package": package, "inputs": inputs });
        writeln!(self.questions, "{asked}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answers: Vec<Value> = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("the engine says {line:?}: {error}"));
        assert_eq!(answers.len(), inputs.len());
        let answer = |answer: Value| match (answer.get("result"), answer.get("error")) {
            (Some(value), _) => Answer::Value(value.clone()),
            (None, Some(error)) => Answer::Error(error.as_str().unwrap().to_owned()),
            (None, None) => Answer::Undefined,
        };
        answers.into_iter().map(answer).collect()
    }
}

impl Drop for Evaluator {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// A server with OPA's REST interface around OPA's engine. It ends with the test.
pub struct Opa {
    child: Child,
    port: u16,
}

impl Opa {
    /// Serves the policies and data of a directory. `options`: `unix_socket`; `certificate`, `key`
    /// and `client_authority`, as PEM files; `token`.
    pub fn serve(directory: &Path, options: &Value) -> Self {
        let mut options = options.clone();
        options["directory"] = directory.to_str().unwrap().into();
        let mut child = process(&["serve", &options.to_string()]);
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse();
        Self { port: port.unwrap_or_else(|_| panic!("the server says {line:?}")), child }
    }

    /// Puts a policy in the place of the one of this name. Only over plain TCP.
    pub fn put_policy(&self, name: &str, text: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let length = text.len();
        let head = format!(
            "PUT /v1/policies/{name} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n"
        );
        stream.write_all(format!("{head}{text}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Its port on 127.0.0.1. 0 on a unix socket.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Opa {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}
