//! The URI form of a provider's configuration: `SCHEME:PLACE?name=value&name=value`.
//!
//! [`Uri`] parses a URI, and [`UriWriter`] writes one that reads back the same. Errors name the
//! part that is wrong. They never show a value, because it may contain a secret.
//!
//! ```
//! use waxseal::kek::toolkit::uri::{Uri, UriWriter};
//!
//! let mut writer = UriWriter::new("example://", "vault.example/orders");
//! writer.text("namespace", Some("team a"));
//! let text = writer.finish();
//! assert_eq!(text, "example://vault.example/orders?namespace=team%20a");
//!
//! let uri = Uri::read(&text, "example://", &["namespace", "ca-file"])?;
//! assert_eq!(uri.place(), "vault.example/orders");
//! assert_eq!(uri.text("namespace")?.as_deref(), Some("team a"));
//!
//! let error = Uri::read("example://x?namespcae=a", "example://", &["namespace"]).unwrap_err();
//! assert!(error.to_string().contains("`namespcae` is unknown; did you mean `namespace`?"));
//! # Ok::<(), waxseal::Error>(())
//! ```
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use crate::duration;
use crate::error::{Error, ErrorKind, nearest};

/// A parsed URI. Its parts are still percent-encoded; the methods decode them.
#[derive(Clone)]
pub struct Uri<'a> {
    prefix: &'static str,
    place: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Uri<'a> {
    /// Parses `text`, which must begin with `prefix`, such as `vault-transit://` or `local:`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for another scheme, a fragment, white space or control
    /// characters, and for a parameter that is not among `known`, occurs twice or has no value.
    pub fn read(text: &'a str, prefix: &'static str, known: &[&str]) -> Result<Self, Error> {
        let mut uri = Self { prefix, place: "", parameters: Vec::new() };
        let begin = text.get(..prefix.len()).filter(|begin| begin.eq_ignore_ascii_case(prefix));
        let Some(rest) = begin.and_then(|begin| text.get(begin.len()..)) else {
            return Err(uri.error(format!("it does not begin with `{prefix}`")));
        };
        if rest.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(uri.error("white space and control characters must be percent-encoded"));
        }
        if rest.contains('#') {
            return Err(uri.error("it has a fragment; write # as %23"));
        }
        let (place, query) =
            rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
        uri.place = place;
        for parameter in query.into_iter().flat_map(|query| query.split('&')) {
            let (name, value) = match parameter.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (parameter, None),
            };
            if !known.contains(&name) {
                return Err(uri.error(unknown(name, known)));
            }
            let Some(value) = value else {
                return Err(uri.error(format!("parameter `{name}` has no value")));
            };
            if uri.raw(name).is_some() {
                return Err(uri.error(format!("parameter `{name}` occurs twice")));
            }
            uri.parameters.push((name, value));
        }
        Ok(uri)
    }

    /// Returns the part between the prefix and the parameters, still percent-encoded.
    #[must_use]
    pub fn place(&self) -> &'a str {
        self.place
    }

    /// Makes an error that begins with the URI's scheme. The detail must not show a value.
    pub fn error(&self, detail: impl fmt::Display) -> Error {
        let scheme = self.prefix.split(':').next().unwrap_or_default();
        Error::new(ErrorKind::InvalidOption, format!("{scheme} URI: {detail}"))
    }

    fn raw(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
    }

    /// Returns whether the parameter is present.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.raw(name).is_some()
    }

    /// Decodes a part of the URI, which errors call `part`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for a broken percent-encoding and for bytes that are not UTF-8.
    pub fn decode(&self, part: &str, encoded: &str) -> Result<String, Error> {
        String::from_utf8(self.bytes(part, encoded)?)
            .map_err(|_| self.error(format!("{part} is not UTF-8")))
    }

    /// Decodes a path, like [`decode`](Self::decode). On Unix the bytes need not be UTF-8.
    ///
    /// # Errors
    /// Those of [`decode`](Self::decode).
    pub fn decode_path(&self, part: &str, encoded: &str) -> Result<PathBuf, Error> {
        #[cfg(unix)]
        let path: OsString = std::os::unix::ffi::OsStringExt::from_vec(self.bytes(part, encoded)?);
        #[cfg(not(unix))]
        let path: OsString = self.decode(part, encoded)?.into();
        Ok(path.into())
    }

    /// Returns the place as the path of a file: relative in `local:keys/a`, absolute in
    /// `local:/keys/a` and `local:///keys/a`.
    ///
    /// # Errors
    /// Those of [`decode_path`](Self::decode_path), for a missing path, and for `local://keys/a`,
    /// which some read as relative to the working directory and others as absolute.
    pub fn file_path(&self) -> Result<PathBuf, Error> {
        let scheme = self.prefix;
        let place = match self.place.strip_prefix("//") {
            Some(absolute) if absolute.starts_with('/') => absolute,
            Some(_) => {
                return Err(self.error(format!(
                    "what is behind `//` would be a host: write {scheme}PATH for a path from the \
                     working directory, {scheme}/PATH for one from the root directory"
                )));
            }
            None => self.place,
        };
        match place {
            "" => Err(self.error(format!("the path is missing: {scheme}PATH"))),
            _ => self.decode_path("the path", place),
        }
    }

    fn bytes(&self, part: &str, encoded: &str) -> Result<Vec<u8>, Error> {
        decoded(encoded).ok_or_else(|| {
            self.error(format!("{part} has a % without two hexadecimal digits after it"))
        })
    }

    /// Returns the text of a parameter.
    ///
    /// # Errors
    /// Those of [`decode`](Self::decode).
    pub fn text(&self, name: &str) -> Result<Option<String>, Error> {
        self.raw(name).map(|value| self.decode(&parameter(name), value)).transpose()
    }

    /// Returns the path in a parameter.
    ///
    /// # Errors
    /// Those of [`decode`](Self::decode).
    pub fn path(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        self.raw(name).map(|value| self.decode_path(&parameter(name), value)).transpose()
    }

    /// Returns the items of a parameter, separated by commas.
    ///
    /// # Errors
    /// Those of [`decode`](Self::decode).
    pub fn list(&self, name: &str) -> Result<Vec<String>, Error> {
        let items = self.raw(name).into_iter().flat_map(|value| value.split(','));
        items.map(|item| self.decode(&parameter(name), item)).collect()
    }

    /// Returns the pairs of a parameter, separated by commas. Each is split at `separator`.
    ///
    /// # Errors
    /// Those of [`decode`](Self::decode); also for an item without the separator.
    pub fn pairs(&self, name: &str, separator: char) -> Result<Vec<(String, String)>, Error> {
        let part = parameter(name);
        let items = self.raw(name).into_iter().flat_map(|value| value.split(','));
        let pair = |item: &str| {
            let (left, right) = item
                .split_once(separator)
                .ok_or_else(|| self.error(format!("{part}: an item has no `{separator}`")))?;
            Ok((self.decode(&part, left)?, self.decode(&part, right)?))
        };
        items.map(pair).collect()
    }

    /// Returns the value of a parameter that is `true` or `false`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for anything else.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Error> {
        match self.raw(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(self.error(format!("parameter `{name}` is neither true nor false"))),
        }
    }

    /// Returns the value of a parameter that is one of `all`, whose names `name_of` returns.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for anything else, listing the names.
    pub fn one_of<T: Copy>(
        &self,
        name: &str,
        all: &[T],
        name_of: impl Fn(T) -> &'static str,
    ) -> Result<Option<T>, Error> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let known = all.iter().copied().find(|known| name_of(*known) == text);
        let names = || all.iter().map(|known| name_of(*known)).collect::<Vec<_>>().join(", ");
        let wrong = || self.error(format!("parameter `{name}` is none of {}", names()));
        known.map(Some).ok_or_else(wrong)
    }

    /// Returns the duration in a parameter, such as `5m` or `250ms`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for anything else, including a number without a unit.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, Error> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let duration = duration::read(&text);
        let wrong = || self.error(format!("parameter `{name}` is not {}", duration::EXPECTED));
        duration.map(Some).ok_or_else(wrong)
    }
}

/// Shows no value.
impl fmt::Debug for Uri<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.parameters.iter().map(|(name, _)| name).collect();
        f.debug_struct("Uri")
            .field("prefix", &self.prefix)
            .field("parameters", &names)
            .finish_non_exhaustive()
    }
}

fn parameter(name: &str) -> String {
    format!("parameter `{name}`")
}

/// The longest parameter name that an error repeats.
const LONGEST_NAME: usize = 32;

/// Describes an unknown parameter. The name is repeated only if it cannot be a token or key that
/// was pasted in the wrong place.
fn unknown(name: &str, known: &[&str]) -> String {
    let is_shown = (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphabetic() || b"-_".contains(&byte));
    if !is_shown {
        return "a parameter has no valid name".to_owned();
    }
    let plain = name.to_ascii_lowercase().replace('_', "-");
    let file = format!("{plain}-file");
    if let Some(file) = known.iter().find(|known| **known == file) {
        return format!(
            "parameter `{name}` would put a secret into the URI; name a file with `{file}`"
        );
    }
    if ["token", "secret", "password", "passphrase", "credential"]
        .iter()
        .any(|word| plain.contains(word))
    {
        return format!("parameter `{name}` is unknown, and a secret must not be in the URI");
    }
    match nearest(&plain, known.iter().copied()) {
        Some(known) => format!("parameter `{name}` is unknown; did you mean `{known}`?"),
        None => format!("parameter `{name}` is unknown; known are {}", known.join(", ")),
    }
}

/// The decoder passes a broken percent-encoding through, so it is detected first.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let is_encoded = |behind: &str| {
        behind.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    let is_whole = text.split('%').skip(1).all(is_encoded);
    is_whole.then(|| percent_decode_str(text).collect())
}

/// Characters of a path segment that are not encoded, apart from letters and digits.
const SEGMENT: AsciiSet =
    NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');
const PATH: AsciiSet = SEGMENT.remove(b'/');

/// Percent-encodes everything except letters, digits and `-._~:/`.
#[must_use]
pub fn encode(text: impl AsRef<[u8]>) -> String {
    percent_encode(text.as_ref(), &PATH).to_string()
}

/// Percent-encodes one segment of a path: like [`encode`], and `/` too.
#[must_use]
pub fn encode_segment(text: impl AsRef<[u8]>) -> String {
    percent_encode(text.as_ref(), &SEGMENT).to_string()
}

/// Writes a URI that [`Uri`] reads back. Values that are `None` or empty are left out.
#[derive(Clone, Debug)]
pub struct UriWriter {
    text: String,
    next: char,
}

impl UriWriter {
    /// Begins with the prefix and the place, which is written unchanged: [`encode`] its parts
    /// first.
    #[must_use]
    pub fn new(prefix: &str, place: &str) -> Self {
        Self { text: format!("{prefix}{place}"), next: '?' }
    }

    fn put(&mut self, name: &str, encoded: &str) {
        self.text.push(self.next);
        self.text.push_str(&format!("{name}={encoded}"));
        self.next = '&';
    }

    /// Adds a text.
    pub fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.put(name, &encode(value));
        }
    }

    /// Adds a path.
    pub fn path(&mut self, name: &str, value: Option<&Path>) {
        if let Some(value) = value {
            self.put(name, &encode(value.as_os_str().as_encoded_bytes()));
        }
    }

    /// Adds a list.
    pub fn list<'t>(&mut self, name: &str, items: impl IntoIterator<Item = &'t str>) {
        let items: Vec<_> = items.into_iter().map(encode).collect();
        if !items.is_empty() {
            self.put(name, &items.join(","));
        }
    }

    /// Adds pairs, each with `separator` between its sides.
    pub fn pairs<'t>(
        &mut self,
        name: &str,
        separator: char,
        pairs: impl IntoIterator<Item = (&'t str, &'t str)>,
    ) {
        let pair = |(left, right): (&str, &str)| {
            format!("{}{separator}{}", encode_segment(left), encode(right))
        };
        let pairs: Vec<_> = pairs.into_iter().map(pair).collect();
        if !pairs.is_empty() {
            self.put(name, &pairs.join(","));
        }
    }

    /// Adds `true` or `false`.
    pub fn flag(&mut self, name: &str, value: Option<bool>) {
        if let Some(value) = value {
            self.put(name, if value { "true" } else { "false" });
        }
    }

    /// Adds a duration.
    pub fn duration(&mut self, name: &str, value: Option<Duration>) {
        self.text(name, value.map(duration::write).as_deref());
    }

    /// Returns the URI.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }
}

/// Returns `url` with `[redacted]` in place of a user and password, and whether there were any.
///
/// For options that hold a URL: anything before the `@` may be a secret.
#[must_use]
pub fn without_user(url: &str) -> (String, bool) {
    let start = url.find("//").map_or(0, |slashes| slashes + 2);
    let (scheme, rest) = url.split_at_checked(start).unwrap_or(("", url));
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    match rest.get(..end).and_then(|authority| authority.rfind('@')) {
        Some(at) => (format!("{scheme}[redacted]{}", rest.get(at..).unwrap_or_default()), true),
        // A password may contain any character, so a later @ is not trusted either.
        None if rest.contains('@') => (format!("{scheme}[redacted]"), true),
        None => (url.to_owned(), false),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: [&str; 5] = ["region", "regions", "token-file", "fips", "key-max-age"];

    fn refusal(text: &str) -> String {
        let read = |text| {
            let uri = Uri::read(text, "test://", &KNOWN)?;
            uri.text("region")?;
            uri.flag("fips")?;
            uri.duration("key-max-age")?;
            uri.one_of("token-file", &["red", "green"], |name| name)?;
            uri.pairs("regions", '=')
        };
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn an_error_names_the_part_and_shows_no_value() {
        for (text, part) in [
            ("", "does not begin with `test://`"),
            ("other://hunter2", "does not begin with `test://`"),
            ("test:/x", "does not begin with `test://`"),
            ("test://a b", "white space"),
            ("test://a\u{7f}", "control characters"),
            ("test://a#hunter2", "fragment"),
            ("test://a?token-file=hunter2", "`token-file` is none of red, green"),
            ("test://a?regin=hunter2", "`regin` is unknown; did you mean `region`?"),
            ("test://a?REGION=hunter2", "`REGION` is unknown; did you mean `region`?"),
            ("test://a?key_max_age=hunter2", "did you mean `key-max-age`?"),
            ("test://a?colour=hunter2", "`colour` is unknown; known are region, regions"),
            (
                "test://a?token=hunter2",
                "`token` would put a secret into the URI; name a file with `token-file`",
            ),
            ("test://a?Password=hunter2", "`Password` is unknown, and a secret must not be"),
            ("test://a?hvs.hunter2", "a parameter has no valid name"),
            ("test://a?db02de05-fa39-4855-059b-hunter2=1", "a parameter has no valid name"),
            ("test://a?", "a parameter has no valid name"),
            ("test://a?region=x&", "a parameter has no valid name"),
            ("test://a?region", "`region` has no value"),
            ("test://a?region=hunter2&region=x", "`region` occurs twice"),
            ("test://a?region=hunter2%2", "`region` has a % without two"),
            ("test://a?region=%zz", "`region` has a % without two"),
            ("test://a?region=%FF", "`region` is not UTF-8"),
            ("test://a?fips=hunter2", "`fips` is neither true nor false"),
            ("test://a?key-max-age=5", "`key-max-age` is not a duration"),
            ("test://a?regions=hunter2", "`regions`: an item has no `=`"),
        ] {
            let error = refusal(text);
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("hunter2") && !error.contains("db02"), "{text}: {error}");
        }
    }

    #[test]
    fn a_user_and_a_password_in_a_url_are_redacted() {
        for (url, shown) in [
            ("https://vault.example:8200/x", None),
            ("https://u:p@vault:1/x@y", Some("https://[redacted]@vault:1/x@y")),
            ("https://u:p@q@vault", Some("https://[redacted]@vault")),
            ("u:p@vault", Some("[redacted]@vault")),
            ("https://u:p/w@vault", Some("https://[redacted]")),
        ] {
            let (text, redacted) = without_user(url);
            assert_eq!((text.as_str(), redacted), (shown.unwrap_or(url), shown.is_some()));
        }
    }

    #[test]
    fn what_is_not_plain_is_encoded() {
        assert_eq!(encode("a-Z0._~:/?&=%,#+ \u{e9}"), "a-Z0._~:/%3F%26%3D%25%2C%23%2B%20%C3%A9");
        assert_eq!(encode_segment("a/b:c"), "a%2Fb:c");
        assert_eq!(decoded("%2f%2F+"), Some(b"//+".to_vec()));
        for broken in ["%", "a%2", "%%20", "%+1", "%2\u{e9}"] {
            assert_eq!(decoded(broken), None, "{broken}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            place in ".*",
            text in ".*",
            list in prop::collection::vec(".*", 1..4),
            secs in any::<u64>(),
            fips in any::<bool>(),
        ) {
            let mut writer = UriWriter::new("test://", &encode(&place));
            writer.text("region", Some(&text));
            writer.list("regions", list.iter().map(String::as_str));
            writer.path("token-file", Some(Path::new(&text)));
            writer.flag("fips", Some(fips));
            writer.duration("key-max-age", Some(Duration::from_secs(secs)));
            let written = writer.finish();
            let uri = Uri::read(&written, "test://", &KNOWN).unwrap();
            prop_assert_eq!(uri.decode("place", uri.place()).unwrap(), place);
            prop_assert_eq!(uri.text("region").unwrap().unwrap(), text.clone());
            prop_assert_eq!(uri.list("regions").unwrap(), list);
            prop_assert_eq!(uri.path("token-file").unwrap().unwrap(), Path::new(&text));
            prop_assert_eq!(uri.flag("fips").unwrap(), Some(fips));
            prop_assert_eq!(uri.duration("key-max-age").unwrap(), Some(Duration::from_secs(secs)));
        }

        #[test]
        fn pairs_are_read_back(pairs in prop::collection::vec((".*", ".*"), 0..4)) {
            let mut writer = UriWriter::new("test://", "");
            writer.pairs("regions", '/', pairs.iter().map(|(left, right)| (left.as_str(), right.as_str())));
            let written = writer.finish();
            prop_assert_eq!(Uri::read(&written, "test://", &KNOWN).unwrap().pairs("regions", '/').unwrap(), pairs);
        }

        #[test]
        fn nothing_that_is_read_panics(text in "\\PC*|test:/{0,3}[a-z%0-9:@/?&=,#]{0,60}") {
            if let Ok(uri) = Uri::read(&text, "test://", &KNOWN) {
                let _ = (uri.text("region"), uri.list("regions"), uri.pairs("regions", '='), uri.flag("fips"));
            }
            let _ = without_user(&text);
        }
    }
}
