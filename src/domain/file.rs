//! Reads domains from a TOML file, and reports where in it something is wrong.
//!
//! Errors repeat the file's keys but none of its values, since a URI may contain a password.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::config::DomainConfig;
use super::opening::{Wrong, invalid};
use crate::error::{Error, ErrorKind, nearest};

/// A larger file is not read. Ten thousand domains fit.
const MAX_BYTES: u64 = 16 << 20;
/// The longest key that an error repeats in full, in characters.
const LONGEST_KEY: usize = 128;

/// The content of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    #[serde(default)]
    pub(super) route_by: Option<String>,
    #[serde(default)]
    pub(super) domains: BTreeMap<String, DomainConfig>,
}

/// A file that was read, with its fields located for errors.
pub(super) struct ConfigFile {
    shown: String,
    text: String,
}

impl ConfigFile {
    pub(super) fn read(path: &Path) -> Result<(Self, Content), Error> {
        let shown = path.display().to_string();
        let text = read(path)
            .map_err(|error| Error::new(ErrorKind::Io, shown.clone()).with_source(error))?;
        let file = Self { shown, text };
        let content = toml::from_str(&file.text).map_err(|error| file.refused(&error))?;
        Ok((file, content))
    }

    /// Returns its path.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Reports the line and field in which a domain's configuration is wrong.
    pub(super) fn locate(&self, domain: &str, wrong: &Wrong) -> Error {
        let (entries, of_domain) = (entries(&self.text), format!("domains.{}", key(domain)));
        let within = format!("{of_domain}.{}", wrong.field);
        // Errors of builders begin with the option, or with its parent. Those of providers and
        // stores may begin with anything.
        let named = |prefix: &str, part: usize| {
            let option = wrong.error.detail().split(": ").nth(part)?;
            let option = option.split(|c: char| !c.is_ascii_lowercase() && c != '_').next()?;
            entries.iter().find(|entry| {
                let rest = entry.path.strip_prefix(prefix);
                rest.is_some_and(|rest| rest.starts_with('.')) && entry.key == option
            })
        };
        let of_any_field = || match wrong.field.name {
            "" | "branches" => named(&of_domain, 0),
            _ => None,
        };
        let named = || named(&within, 1).or_else(|| named(&within, 0)).or_else(of_any_field);
        let exact = |path: &str| entries.iter().find(|entry| entry.path == path);
        let entry = match wrong.field.item {
            Some(_) => exact(&within),
            None => named().or_else(|| exact(&within)),
        };
        match entry.or_else(|| exact(&of_domain)) {
            Some(entry) => wrong.error.at(self.place(entry.place.start, &entry.path)),
            None => wrong.error.at(format_args!("{}: {of_domain}", self.shown)),
        }
    }

    /// Reports the line in which an option of all domains is wrong.
    pub(super) fn locate_option(&self, option: &str, error: &Error) -> Error {
        let entries = entries(&self.text);
        match entries.iter().find(|entry| entry.path == option) {
            Some(entry) => error.at(self.place(entry.place.start, "")),
            None => error.at(&self.shown),
        }
    }

    /// Reports where the file is not a valid configuration.
    fn refused(&self, error: &toml::de::Error) -> Error {
        let what = without_values(error.message());
        let Some(span) = error.span() else {
            return invalid(format!("{}: {what}", self.shown));
        };
        let entries = entries(&self.text);
        // An entry comes after the one that contains it. A table is also located at its header.
        let mut innermost = entries.iter().rev();
        let at = innermost.clone().find(|entry| entry.place.contains(&span.start));
        let entry = at.or_else(|| innermost.find(|entry| entry.value.contains(&span.start)));
        let path = entry.map(|entry| entry.path.as_str()).unwrap_or_default();
        invalid(what).at(self.place(span.start, path))
    }

    fn place(&self, offset: usize, path: &str) -> String {
        let before = self.text.bytes().take(offset);
        let line = before.filter(|byte| *byte == b'\n').count() + 1;
        match path {
            "" => format!("{}:{line}", self.shown),
            path => format!("{}:{line}: {path}", self.shown),
        }
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    match u64::try_from(read) {
        Ok(0..=MAX_BYTES) => Ok(text),
        _ => Err(std::io::Error::other(format!("it has more than {MAX_BYTES} bytes"))),
    }
}

/// Writes a key as in TOML, so that a dot in it does not look like a separator.
fn key(name: &str) -> Cow<'_, str> {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match name.char_indices().nth(LONGEST_KEY) {
        Some((end, _)) => format!("{:?}…", name.get(..end).unwrap_or_default()).into(),
        None if !name.is_empty() && name.bytes().all(is_bare) => name.into(),
        None => format!("{name:?}").into(),
    }
}

/// Returns the parser's message, with a hint and without values from the file.
fn without_values(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    for (begin, what) in [("unknown field", "field"), ("unknown variant", "value")] {
        if message.starts_with(begin) {
            let name = quoted.next().unwrap_or_default();
            let known: Vec<_> = quoted.collect();
            return match nearest(name, known.iter().copied()) {
                Some(near) => format!("unknown {what} `{name}`; did you mean `{near}`?"),
                None => format!("unknown {what}; known are {}", known.join(", ")),
            };
        }
    }
    match message.rsplit_once(", expected ") {
        Some((begin, expected)) if begin.starts_with("invalid") => {
            format!("expected {}", in_words_of_toml(expected))
        }
        _ => message.to_owned(),
    }
}

/// Replaces the parser's words with those of TOML.
fn in_words_of_toml(expected: &str) -> &str {
    match expected {
        "a sequence" => "a list in brackets, such as [\"…\"]",
        "a map" => "a table",
        _ if expected.starts_with("struct ") => "a table",
        _ => expected,
    }
}

/// A key, or an item of a list, and its position.
struct Entry<'t> {
    path: String,
    /// Empty for an item of a list.
    key: &'t str,
    place: Range<usize>,
    value: Range<usize>,
}

/// Lists the entries of a text, each before those within it.
fn entries(text: &str) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    if let Ok(table) = DeTable::parse(text) {
        of_table(text, "", table.get_ref(), &mut entries);
    }
    entries
}

fn of_table<'t>(text: &'t str, path: &str, table: &DeTable<'_>, entries: &mut Vec<Entry<'t>>) {
    for (name, value) in table {
        let path = match path {
            "" => key(name.get_ref()).into_owned(),
            path => format!("{path}.{}", key(name.get_ref())),
        };
        let key = text.get(name.span()).unwrap_or_default();
        entries.push(Entry { path: path.clone(), key, place: name.span(), value: value.span() });
        of_value(text, &path, value.get_ref(), entries);
    }
}

fn of_value<'t>(text: &'t str, path: &str, value: &DeValue<'_>, entries: &mut Vec<Entry<'t>>) {
    match value {
        DeValue::Table(table) => of_table(text, path, table, entries),
        DeValue::Array(items) => {
            for (place, item) in items.iter().enumerate() {
                let path = format!("{path}[{place}]");
                let (place, value) = (item.span(), item.span());
                entries.push(Entry { path: path.clone(), key: "", place, value });
                of_value(text, &path, item.get_ref(), entries);
            }
        }
        _ => {}
    }
}
