//! Searches what a program says for secrets, in every form in which code writes bytes.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display, Write as _};
use std::fs::File;
use std::io;
use std::io::Write as _;
use std::sync::{Arc, Mutex, OnceLock};

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

/// Stands before the one secret that is printed on purpose.
pub const CONTROL: &str = "the control of the search for secrets: ";

/// Names the file in which a run of the tests notes its secrets.
pub const SECRETS_FILE: &str = "WAXSEAL_TEST_SECRETS";

/// Notes a secret of a server: a DEK that a stand-in unwraps, a PIN, a password. Once all tests
/// have run, everything that they printed is searched for it. Without `WAXSEAL_TEST_SECRETS`
/// nothing is noted.
pub fn note_secret(secret: impl AsRef<[u8]>) {
    /// The file, and what it has of this process.
    type Noted = (File, BTreeSet<Vec<u8>>);
    static NOTED: OnceLock<Option<Mutex<Noted>>> = OnceLock::new();
    let noted = NOTED.get_or_init(|| {
        let path = std::env::var_os(SECRETS_FILE)?;
        let file = File::options().create(true).append(true).open(path).unwrap();
        Some(Mutex::new((file, BTreeSet::new())))
    });
    let Some(noted) = noted else { return };
    let secret = secret.as_ref();
    assert!(secret.len() >= 8, "it would be found by chance");
    let (file, known) = &mut *noted.lock().unwrap();
    if known.insert(secret.to_vec()) {
        // In one piece: other processes write to this file too.
        file.write_all(format!("{}\n", HEXLOWER.encode(secret)).as_bytes()).unwrap();
    }
}

/// The same, of a secret that is just being made.
pub fn noted(secret: String) -> String {
    note_secret(&secret);
    secret
}

/// Notes the DEK that a key service is to wrap. It is random, but in tests of the service itself.
pub fn note_dek(plaintext: &[u8]) {
    if let Some(dek) = plaintext.first_chunk::<32>()
        && dek.iter().collect::<BTreeSet<_>>().len() > 8
    {
        note_secret(dek);
    }
}

/// A part of a secret in one form, by how it begins.
pub struct Search {
    by_begin: std::collections::HashMap<[u8; BEGIN], Vec<(&'static str, Vec<u8>)>>,
}

/// No form of eight bytes is shorter.
const BEGIN: usize = 8;
/// Of a long secret, each part of this length counts.
const PART: usize = 16;

impl Search {
    /// Of thousands of secrets, as lines of hexadecimal digits.
    pub fn new(noted: &str) -> Self {
        let mut by_begin = std::collections::HashMap::<_, Vec<_>>::new();
        let secrets: BTreeSet<Vec<u8>> =
            noted.lines().map(|line| HEXLOWER.decode(line.as_bytes()).unwrap()).collect();
        for secret in &secrets {
            for part in secret.chunks(PART).filter(|part| part.len() >= 8) {
                for (form, bytes) in forms(part) {
                    let begin = *bytes.first_chunk().unwrap();
                    by_begin.entry(begin).or_default().push((form, bytes));
                }
            }
        }
        Self { by_begin }
    }

    /// Returns where a secret stands in the output, in which form, and the text before it.
    pub fn found_in(&self, output: &[u8]) -> Vec<(usize, &'static str, String)> {
        let mut found = Vec::new();
        for (at, window) in output.windows(BEGIN).enumerate() {
            let Some(parts) = window.first_chunk().and_then(|begin| self.by_begin.get(begin))
            else {
                continue;
            };
            for (form, bytes) in parts {
                if output.get(at..).is_some_and(|rest| rest.starts_with(bytes)) {
                    let before = output.get(at.saturating_sub(100)..at).unwrap_or_default();
                    found.push((at, *form, String::from_utf8_lossy(before).into_owned()));
                }
            }
        }
        found
    }
}
