//! Searches what a program says for secrets, in every form in which code writes bytes.

use std::fmt::{Debug, Display, Write as _};
use std::io;
use std::sync::{Arc, Mutex};

use data_encoding::{BASE64, BASE64URL, HEXLOWER, HEXUPPER};

/// What must not be in any output, each with a name.
#[derive(Default)]
pub struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    /// Adds one. Of a long one its halves count too.
    pub fn add(&mut self, name: &str, secret: impl AsRef<[u8]>) {
        let secret = secret.as_ref();
        assert!(secret.len() >= 8, "{name} would be found by chance");
        self.0.push((name.to_owned(), secret.to_vec()));
        if secret.len() >= 16 {
            let (first, second) = secret.split_at(secret.len() / 2);
            self.0.push((format!("the first half of {name}"), first.to_vec()));
            self.0.push((format!("the second half of {name}"), second.to_vec()));
        }
    }

    /// Returns which of them are in the output, in which form, and behind what.
    pub fn found_in(&self, output: &[u8]) -> Vec<String> {
        // As text, one letter a byte: the search of the standard library is for texts.
        let as_text = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
        let (output, mut found) = (as_text(output), Vec::new());
        for (name, secret) in &self.0 {
            for (form, bytes) in forms(secret) {
                if let Some((before, _)) = output.split_once(&as_text(&bytes)) {
                    let before: String = before.chars().rev().take(100).collect();
                    let before: String = before.chars().rev().collect();
                    found.push(format!("{name}, {form}, behind {before:?}"));
                }
            }
        }
        found
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The ways in which code writes these bytes.
pub fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let joined = |each: &dyn Fn(&u8) -> String, between: &str| {
        secret.iter().map(each).collect::<Vec<_>>().join(between).into_bytes()
    };
    let mut forms = vec![
        ("raw", secret.to_vec()),
        ("hexadecimal", HEXLOWER.encode(secret).into_bytes()),
        ("hexadecimal, upper case", HEXUPPER.encode(secret).into_bytes()),
        ("hexadecimal with colons", joined(&|byte| format!("{byte:02x}"), ":")),
        ("a list", joined(&|byte| byte.to_string(), ", ")),
        ("a list in JSON", joined(&|byte| byte.to_string(), ",")),
        ("a list, hexadecimal", joined(&|byte| format!("{byte:02x}"), ", ")),
        ("escaped", secret.escape_ascii().to_string().into_bytes()),
        ("percent-encoded", joined(&|byte| format!("%{byte:02X}"), "")),
        ("backwards", secret.iter().rev().copied().collect()),
    ];
    // In base64 the same bytes look different by what stands before them. Left out are the letters
    // that neighbours have a part in.
    for (name, encoding) in [("base64", BASE64), ("base64 for URLs", BASE64URL)] {
        for before in 0..3 {
            let text = encoding.encode(&[&vec![0; before][..], secret].concat());
            let begins = [0, 2, 3][before];
            let ends = (before + secret.len()) * 8 / 6;
            forms.push((name, text.as_bytes()[begins..ends].to_vec()));
        }
    }
    forms
}

/// Everything that was said.
#[derive(Clone, Default)]
pub struct Outputs(Arc<Mutex<Vec<u8>>>);

impl Outputs {
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    pub fn add(&self, bytes: &[u8]) {
        let mut all = self.0.lock().unwrap();
        all.extend_from_slice(bytes);
        all.push(b'\n');
    }

    /// What `{:?}` and `{:#?}` write.
    pub fn debug(&self, value: &impl Debug) {
        self.add(format!("{value:?}\n{value:#?}").as_bytes());
    }

    /// What an error says, and all its causes.
    pub fn error(&self, error: &(dyn std::error::Error + 'static)) {
        let mut text = String::new();
        let mut next = Some(error);
        while let Some(error) = next {
            writeln!(text, "{error}\n{error:#}\n{error:?}\n{error:#?}").unwrap();
            next = error.source();
        }
        self.add(text.as_bytes());
    }

    pub fn show(&self, value: &impl Display) {
        self.add(value.to_string().as_bytes());
    }
}

/// A writer of logs.
impl io::Write for Outputs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
