//! Sources of credentials, as far as the tests need them: STS, the endpoint of containers, the
//! metadata service of an instance. And a proxy that notes which hosts it is to reach.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use aws_sdk_kms::config::Credentials;

/// What it answers now.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status, and a body.
    Answer(u16, String),
    /// The connection ends.
    End,
    /// Nothing, and nothing ends.
    Silence,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self::Answer(status, String::new())
    }

    /// An error in the words of STS ("Common Errors" of its API Reference).
    pub fn sts_error(status: u16, code: &str) -> Self {
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{code}</Code>\
             <Message>said by STS</Message></Error><RequestId>r</RequestId></ErrorResponse>"
        );
        Self::Answer(status, body)
    }

    /// Credentials as `AssumeRole` gives them, good for an hour.
    pub fn role(credentials: &Credentials) -> Self {
        let ends = SystemTime::now() + Duration::from_secs(3600);
        let ends = aws_smithy_types::DateTime::from(ends);
        let ends = ends.fmt(aws_smithy_types::date_time::Format::DateTime).unwrap();
        let body = format!(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><AssumedRoleUser>\
             <Arn>arn:aws:sts::111122223333:assumed-role/orders/s</Arn><AssumedRoleId>AROA:s</AssumedRoleId></AssumedRoleUser>\
             <Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
             <Expiration>{ends}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>",
            credentials.access_key_id(),
            credentials.secret_access_key(),
            credentials.session_token().unwrap_or_default(),
        );
        Self::Answer(200, body)
    }
}

/// An HTTP server of one answer, which can be changed.
pub struct CredentialSource {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    reply: Mutex<Reply>,
    /// The first line of each request.
    requests: Mutex<Vec<String>>,
}

impl CredentialSource {
    pub fn start(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { reply: Mutex::new(reply), requests: Mutex::default() });
        let for_thread = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = for_thread.clone();
                thread::spawn(move || shared.serve(client));
            }
        });
        Self { port, shared }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, reply: Reply) {
        *self.shared.reply.lock().unwrap() = reply;
    }

    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) {
        let mut reader = BufReader::new(client.try_clone().unwrap());
        let (mut first, mut length) = (String::new(), 0);
        let _ = reader.read_line(&mut first);
        if !first.trim().is_empty() {
            self.requests.lock().unwrap().push(first.trim().to_owned());
        }
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        let _ = reader.read_exact(&mut body);
        let reply = self.reply.lock().unwrap().clone();
        match reply {
            Reply::Answer(status, body) => {
                let head = format!(
                    "HTTP/1.1 {status} Status\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = client.write_all((head + &body).as_bytes());
            }
            Reply::End => {}
            Reply::Silence => {
                let _ = reader.read_exact(&mut [0; 1]);
            }
        }
    }
}
