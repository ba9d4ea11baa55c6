//! The servers that speak S3.

use std::io::{Read, Write};
use std::net::TcpStream;

use waxseal_testing::seaweedfs::SeaweedFs;
use waxseal_testing::stand_in::StandIn;

pub(crate) enum S3 {
    /// Keeps its data on disk and checks signatures.
    SeaweedFs(SeaweedFs),
    /// Keeps everything in memory and checks no signature.
    StandIn(StandIn),
}

/// A bucket that is on every server.
pub(crate) const BUCKET: &str = "keys";

impl S3 {
    pub(crate) fn seaweedfs() -> Self {
        let server = SeaweedFs::start();
        server.create_bucket(BUCKET);
        Self::SeaweedFs(server)
    }

    pub(crate) fn moto() -> Self {
        Self::with_bucket(StandIn::moto())
    }

    pub(crate) fn ministack() -> Self {
        Self::with_bucket(StandIn::ministack())
    }

    pub(crate) fn all() -> [Self; 3] {
        [Self::seaweedfs(), Self::moto(), Self::ministack()]
    }

    /// They take it without a signature.
    fn with_bucket(server: StandIn) -> Self {
        let mut connection = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        let host = "s3.us-east-1.amazonaws.com\r\nAuthorization: AWS AKIATEST:x";
        let request = format!(
            "PUT /{BUCKET} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
        Self::StandIn(server)
    }

    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::SeaweedFs(server) => server.port(),
            Self::StandIn(server) => server.port(),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    pub(crate) fn kill(&mut self) {
        match self {
            Self::SeaweedFs(server) => server.kill(),
            Self::StandIn(server) => server.kill(),
        }
    }
}
