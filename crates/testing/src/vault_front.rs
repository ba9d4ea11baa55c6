//! Stands in front of a Vault server and sees whole requests and answers: answers some itself,
//! changes others. For what the one free server does not say, and HashiCorp's or a gateway does.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// A request.
pub struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: Headers,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// Status and body.
pub type Answer = (u16, String);

/// Puts a stand in front of a port of this machine; `own` gets every request with what the server
/// would answer. Gives its port.
pub fn in_front_of(
    upstream: u16,
    own: impl Fn(&Asked, &dyn Fn(&Asked) -> Answer) -> Answer + Send + Sync + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let own = Arc::new(own);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let own = own.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(client.try_clone().unwrap());
                while let Some((first, headers, body)) = read(&mut reader) {
                    let mut words = first.split(' ').map(str::to_owned);
                    let asked = Asked {
                        method: words.next().unwrap(),
                        path: words.next().unwrap(),
                        headers,
                        body,
                    };
                    let (status, body) = own(&asked, &|asked| pass_on(upstream, asked));
                    let head = format!(
                        "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {}",
                        body.len()
                    );
                    if (&client).write_all(format!("{head}\r\n\r\n{body}").as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

fn pass_on(upstream: u16, asked: &Asked) -> Answer {
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).unwrap();
    let mut head = format!("{} {} HTTP/1.1\r\n", asked.method, asked.path);
    for (name, value) in asked.headers.iter().filter(|(name, _)| name != "connection") {
        head += &format!("{name}: {value}\r\n");
    }
    server.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).unwrap();
    server.write_all(&asked.body).unwrap();
    let (first, _, body) = read(&mut BufReader::new(server)).unwrap();
    (first.split(' ').nth(1).unwrap().parse().unwrap(), String::from_utf8(body).unwrap())
}

type Headers = Vec<(String, String)>;

/// First line, headers and body.
fn read(reader: &mut impl BufRead) -> Option<(String, Headers, Vec<u8>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers: Headers = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let is_chunked =
        headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    assert!(!is_chunked, "not read here");
    let len = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .map_or(0, |(_, len)| len.parse().unwrap());
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    Some((lines[0].clone(), headers, body))
}
