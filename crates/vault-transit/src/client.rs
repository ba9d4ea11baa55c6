//! How an HTTPS client is made, and when it is replaced: TLS, proxy, redirections.
#![forbid(unsafe_code)]

use std::error::Error as _;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Proxy, Url, redirect};

use crate::errors::presentable;
use crate::tls::{Signature, TlsMaterial, TlsSources};

pub(crate) enum ProxyChoice {
    None,
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`.
    Environment,
    This(Box<Proxy>),
}

/// The settings of a client.
pub(crate) struct Recipe {
    pub(crate) tls: TlsSources,
    pub(crate) plain: bool,
    pub(crate) proxy: ProxyChoice,
    pub(crate) follow_redirects: bool,
    pub(crate) plain_http: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) resolver: Option<Arc<Elsewhere>>,
}

/// A client and the connections in its pool.
///
/// A connection may be dead without notice: a middlebox dropped it, and everything sent on it
/// vanishes. Only silence distinguishes it from a live one. So a pool in which a connection was
/// silent is not used again: requests in flight on it finish there, and the next request has a new
/// client without connections.
pub(crate) struct Generation {
    pub(crate) number: u64,
    pub(crate) client: Client,
    pub(crate) born: Instant,
    pub(crate) material: TlsMaterial,
    pub(crate) signature: Signature,
    pub(crate) distrusted: AtomicBool,
}

impl Recipe {
    /// May take a while, since the system's root certificates are read. Do not call it where other
    /// futures are polled.
    pub(crate) fn client(&self, material: &TlsMaterial) -> Result<Client, reqwest::Error> {
        let mut client = Client::builder()
            .tls_backend_rustls()
            .connect_timeout(self.connect_timeout)
            .timeout(self.timeout)
            .redirect(if self.follow_redirects {
                to_the_active_node(self.plain_http)
            } else {
                redirect::Policy::none()
            })
            .referer(false)
            .user_agent(concat!("waxseal/", env!("CARGO_PKG_VERSION")));
        client = match &material.roots {
            Some(roots) => client.tls_certs_only(roots.iter().cloned()),
            // Nothing is to be verified, so a machine without any root certificates can talk to a
            // local agent.
            None if self.plain => client.tls_certs_only([]),
            None => client,
        };
        if let Some(identity) = &material.identity {
            client = client.identity(identity.clone());
        }
        client = match &self.proxy {
            ProxyChoice::None => client.no_proxy(),
            ProxyChoice::Environment => client,
            ProxyChoice::This(proxy) => client.proxy(Proxy::clone(proxy)),
        };
        if let Some(resolver) = &self.resolver {
            client = client.dns_resolver(resolver.clone());
        }
        client.build()
    }

    /// Returns the client after `old`, with new material if the files changed and can be read, or
    /// else with the old material. Also returns what to tell an operator.
    pub(crate) fn next(&self, old: &Generation) -> (Option<Generation>, Option<String>) {
        let signature = self.tls.signature();
        let changed = signature != old.signature;
        let mut trouble = None;
        if changed {
            let read = self.tls.read().map_err(|error| error.to_string());
            let made = read.and_then(|material| {
                let client = self.client(&material).map_err(|error| {
                    let why =
                        error.without_url().source().map(|cause| presentable(&cause.to_string()));
                    format!(
                        "the certificate, key and CA files cannot be used: {}",
                        why.unwrap_or_default()
                    )
                })?;
                Ok(Generation::new(old.number + 1, client, material, signature))
            });
            match made {
                Ok(next) => return (Some(next), None),
                // If only half of the files were written, the previous material stays in use.
                Err(why) => trouble = Some(why),
            }
        }
        if !old.distrusted.load(Ordering::Relaxed) {
            return (None, trouble);
        }
        let next = self.client(&old.material).ok().map(|client| {
            Generation::new(old.number + 1, client, old.material.clone(), old.signature.clone())
        });
        (next, trouble)
    }
}

impl Generation {
    pub(crate) fn new(
        number: u64,
        client: Client,
        material: TlsMaterial,
        signature: Signature,
    ) -> Self {
        Self {
            number,
            client,
            born: Instant::now(),
            material,
            signature,
            distrusted: AtomicBool::new(false),
        }
    }
}

/// Resolves the name in the server's certificate to the server's address.
pub(crate) struct Elsewhere {
    pub(crate) name: String,
    pub(crate) real: String,
}

impl Resolve for Elsewhere {
    fn resolve(&self, name: Name) -> Resolving {
        let host =
            if name.as_str().eq_ignore_ascii_case(&self.name) { &self.real } else { name.as_str() }
                .to_owned();
        Box::pin(async move {
            let found = tokio::task::spawn_blocking(move || {
                (host.as_str(), 0).to_socket_addrs().map(Vec::from_iter)
            });
            let addresses: Addrs = Box::new(found.await??.into_iter());
            Ok(addresses)
        })
    }
}

/// A standby that does not forward names the active node.
fn to_the_active_node(plain_http: bool) -> redirect::Policy {
    redirect::Policy::custom(move |attempt| {
        match is_followed(attempt.previous(), attempt.url(), plain_http) {
            true => attempt.follow(),
            false => attempt.stop(),
        }
    })
}

/// Follows one redirection, and never to a place where anybody could read the traffic.
fn is_followed(previous: &[Url], next: &Url, plain_http: bool) -> bool {
    let was_private = previous.iter().any(|url| url.scheme() == "https");
    let is_private =
        next.scheme() == "https" || (!was_private && (plain_http || is_this_machine(next)));
    previous.len() == 1 && is_private
}

pub(crate) fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirection_is_followed_once_and_never_out_of_tls() {
        let urls =
            |texts: &[&str]| texts.iter().map(|text| Url::parse(text).unwrap()).collect::<Vec<_>>();
        for (previous, next, followed) in [
            (&["https://a"][..], "https://b", true),
            (&["http://127.0.0.1"], "http://127.0.0.2", true),
            (&["http://127.0.0.1"], "https://b", true),
            (&["http://127.0.0.1"], "http://b", false),
            (&["http://127.0.0.1"], "http://10.0.0.1", false),
            (&["https://a"], "http://b", false),
            (&["https://a"], "http://a", false),
            (&["https://a", "https://b"], "https://c", false),
        ] {
            assert_eq!(
                is_followed(&urls(previous), &urls(&[next])[0], false),
                followed,
                "{previous:?} to {next}"
            );
        }
    }
}
