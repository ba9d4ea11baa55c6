//! Writes policy documents: the same text for the same input, ordered for readers.
#![forbid(unsafe_code)]

/// A value. The names of an object keep their order.
#[derive(Clone, Debug)]
pub(super) enum Json {
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// A list, or its item if there is only one.
pub(super) fn one_or_many<T: Into<Json>>(items: impl IntoIterator<Item = T>) -> Json {
    let mut items: Vec<Json> = items.into_iter().map(Into::into).collect();
    match (items.len(), items.pop()) {
        (1, Some(only)) => only,
        (_, last) => Json::List(items.into_iter().chain(last).collect()),
    }
}

pub(super) fn object<N: Into<String>>(fields: impl IntoIterator<Item = (N, Json)>) -> Json {
    Json::Object(fields.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

const WIDTH: usize = 100;

impl Json {
    /// Writes it with line breaks, and one at the end.
    pub(super) fn pretty(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, 0);
        text.push('\n');
        text
    }

    /// Writes short values on one line.
    fn write(&self, to: &mut String, depth: usize) {
        let line = self.line();
        let column = to.len() - to.rfind('\n').map_or(0, |end| end + 1);
        // A comma may follow.
        if depth > 0 && column + line.len() < WIDTH {
            return to.push_str(&line);
        }
        match self {
            Self::Text(_) => to.push_str(&line),
            Self::List(items) => {
                write_items(to, depth, '[', ']', items.iter().map(|item| (None, item)));
            }
            Self::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| (Some(name.as_str()), value));
                write_items(to, depth, '{', '}', fields);
            }
        }
    }

    fn line(&self) -> String {
        let mut text = String::new();
        match self {
            Self::Text(of_text) => write_text(&mut text, of_text),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(Self::line).collect();
                text = format!("[{}]", items.join(", "));
            }
            Self::Object(fields) if fields.is_empty() => text.push_str("{}"),
            Self::Object(fields) => {
                let field = |(name, value): &(String, Self)| {
                    let mut text = String::new();
                    write_text(&mut text, name);
                    format!("{text}: {}", value.line())
                };
                let fields: Vec<_> = fields.iter().map(field).collect();
                text = format!("{{ {} }}", fields.join(", "));
            }
        }
        text
    }
}

fn write_items<'j>(
    to: &mut String,
    depth: usize,
    open: char,
    close: char,
    items: impl Iterator<Item = (Option<&'j str>, &'j Json)>,
) {
    let (mut is_first, inner) = (true, depth + 1);
    to.push(open);
    for (name, item) in items {
        to.push_str(if is_first { "\n" } else { ",\n" });
        to.extend(std::iter::repeat_n("  ", inner));
        if let Some(name) = name {
            write_text(to, name);
            to.push_str(": ");
        }
        item.write(to, inner);
        is_first = false;
    }
    if !is_first {
        to.push('\n');
        to.extend(std::iter::repeat_n("  ", depth));
    }
    to.push(close);
}

/// RFC 8259, section 7. Everything except printable ASCII is escaped.
fn write_text(to: &mut String, text: &str) {
    to.push('"');
    for unit in text.encode_utf16() {
        match char::from_u32(u32::from(unit)) {
            Some(c @ ('"' | '\\')) => to.extend(['\\', c]),
            Some(c @ ' '..='~') => to.push(c),
            _ => to.push_str(&format!("\\u{unit:04x}")),
        }
    }
    to.push('"');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_document_is_written_for_people() {
        let long = "x".repeat(60);
        let document = object([
            ("A", Json::from("a\"b")),
            ("B", Json::List(vec![])),
            ("C", one_or_many(["x", "y"])),
            ("D", one_or_many(["x"])),
            ("E", one_or_many([long.as_str(), &long])),
            ("F", object([("G", Json::from("x"))])),
            ("H", Json::Object(vec![])),
        ]);
        let text = format!(
            "{{\n  \"A\": \"a\\\"b\",\n  \"B\": [],\n  \"C\": [\"x\", \"y\"],\n  \"D\": \"x\",\n  \
             \"E\": [\n    \"{long}\",\n    \"{long}\"\n  ],\n  \"F\": {{ \"G\": \"x\" }},\n  \
             \"H\": {{}}\n}}\n"
        );
        assert_eq!(document.pretty(), text);
    }

    proptest! {
        #[test]
        fn whatever_is_written_reads_back_the_same(name in ".*", value in ".*") {
            let text = object([(name.clone(), Json::from(value.clone()))]).pretty();
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read, serde_json::json!({ name: value }));
            prop_assert!(text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
        }
    }
}
