//! Checks addresses, namespaces, server names and proxies.
#![forbid(unsafe_code)]

use reqwest::header::HeaderValue;
use reqwest::{Proxy, Url};

use crate::client::is_this_machine;
use crate::endpoints::is_path;
use waxseal::{Error, ErrorKind};

pub(crate) fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, detail.into())
}

pub(crate) fn address(text: &str, plain_http: bool) -> Result<Url, Error> {
    // The text is not shown, since it may contain a password.
    let url = Url::parse(text).map_err(|error| invalid(format!("address: {error}")))?;
    if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none_or(str::is_empty) {
        return Err(invalid("address: expected a URL with https:// and a host"));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(invalid("address: must not contain a user, password, query or fragment"));
    }
    if url.scheme() == "http" && !plain_http && !is_this_machine(&url) {
        return Err(invalid(
            "address: http to another machine would show tokens and DEKs; use https, or allow_plain_http",
        ));
    }
    Ok(url)
}

pub(crate) fn namespace(text: &str) -> Result<HeaderValue, Error> {
    match is_path(text.trim_end_matches('/')) {
        true => HeaderValue::from_bytes(text.as_bytes())
            .map_err(|_| invalid("namespace: not a header value")),
        false => Err(invalid(format!(
            "namespace {text:?}: expected a path without empty segments, '.', '..' or invisible characters"
        ))),
    }
}

pub(crate) const PROXIES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

pub(crate) fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

pub(crate) fn check_server_name(name: &str) -> Result<(), Error> {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let is_number = name.parse::<std::net::IpAddr>().is_ok()
        || name
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    match name.len() <= 253 && name.split('.').all(is_label) && !is_number {
        true => Ok(()),
        false => Err(invalid(format!("server_name {name:?}: expected the name of a host"))),
    }
}

pub(crate) fn proxy(text: &str) -> Result<Proxy, Error> {
    let url = Url::parse(text).map_err(|error| invalid(format!("proxy: {error}")))?;
    if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none_or(str::is_empty) {
        return Err(invalid("proxy: expected a URL with http:// or https:// and a host"));
    }
    Proxy::all(url).map_err(|_| invalid("proxy: not usable"))
}
