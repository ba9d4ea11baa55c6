//! An OPA server as a URI, for the configuration of data domains.
#![forbid(unsafe_code)]

use waxseal::Error;
use waxseal::kek::toolkit::read_file;
use waxseal::kek::toolkit::uri::Uri;

use super::client::OpaPolicy;

/// The maximum size of a token in bytes.
const MAX_TOKEN: usize = 64 * 1024;

const PARAMETERS: [&str; 7] = [
    "package",
    "token-file",
    "ca-file",
    "client-certificate",
    "client-key-file",
    "timeout",
    "max-in-flight",
];

impl OpaPolicy {
    /// Makes the policy of a URI, within a tokio runtime. In a configuration of data domains it is
    /// the scheme `opa` of [`Schemes::policy`](waxseal::domain::Schemes::policy).
    ///
    /// `opa:https://HOST:PORT` names a server over TCP, `opa:/PATH` one behind a unix socket.
    /// Parameters are `package`, `token-file`, `ca-file`, `client-certificate`, `client-key-file`,
    /// `timeout` and `max-in-flight`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](waxseal::ErrorKind::InvalidOption), naming the part, and those
    /// of [`build`](crate::OpaPolicyBuilder::build).
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        let uri = Uri::read(&uri, "opa:", &PARAMETERS)?;
        let mut builder = match uri.place() {
            "" => return Err(uri.error("the server is missing: opa:https://HOST or opa:/PATH")),
            path if path.starts_with('/') => Self::unix_socket(uri.decode_path("the path", path)?),
            url => Self::url(url),
        };
        if let Some(package) = uri.text("package")? {
            builder = builder.package(package);
        }
        if let Some(path) = uri.path("token-file")? {
            let file = read_file(&path, MAX_TOKEN).map_err(|error| {
                uri.error("the file of parameter `token-file` cannot be read").with_source(error)
            })?;
            let text = std::str::from_utf8(&file)
                .map_err(|_| uri.error("the file of parameter `token-file` is not text"))?;
            builder = builder.token(text.trim_end());
        }
        if let Some(path) = uri.path("ca-file")? {
            builder = builder.certificate_authority(path);
        }
        builder = match (uri.path("client-certificate")?, uri.path("client-key-file")?) {
            (None, None) => builder,
            (Some(certificate), Some(key)) => builder.client_certificate(certificate, key),
            _ => return Err(uri.error("`client-certificate` and `client-key-file` go together")),
        };
        if let Some(timeout) = uri.duration("timeout")? {
            builder = builder.timeout(timeout);
        }
        if let Some(most) = uri.text("max-in-flight")? {
            let most = most.parse().map_err(|_| uri.error("`max-in-flight` is not a number"))?;
            builder = builder.max_in_flight(most);
        }
        builder.build()
    }
}
