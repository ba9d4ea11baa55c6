//! The configuration of a [`LocalKek`] as data.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::LocalKek;
use crate::error::Error;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::kek::toolkit::uri::{Uri, UriWriter, encode};

const PREFIX: &str = "local:";
const PARAMETERS: [&str; 2] = ["name", "create"];

/// The configuration of a [`LocalKek`] in a key file: the path of the file, never its content.
///
/// It can be read from a file (feature `serde`) and from a URI, `local:PATH?name=NAME`:
///
/// ```
/// use waxseal::kek::local::Config;
///
/// let config: Config = "local:/var/lib/app/cards.kek?name=cards".parse()?;
/// assert_eq!(config, Config::new("/var/lib/app/cards.kek", "cards"));
/// assert_eq!(config.to_string(), "local:/var/lib/app/cards.kek?name=cards");
/// # Ok::<(), waxseal::Error>(())
/// ```
///
/// The path is relative to the working directory in `local:cards.kek`, and absolute in
/// `local:/cards.kek` and `local:///cards.kek`. `local://cards.kek` is refused.
///
/// In the path and the name, all characters except letters, digits and `-._~:/` may be
/// percent-encoded. White space, `?`, `#` and `%` must be.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct Config {
    path: PathBuf,
    name: String,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    create: Option<bool>,
}

impl Config {
    /// Configures the KEK `local:NAME` in the key file at `path`.
    pub fn new(path: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self { path: path.into(), name: name.into(), create: None }
    }

    /// Sets whether a missing key file is created, with a first version. By default it is. Turn it
    /// off if a wrong path must not create a new key.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = Some(create);
        self
    }

    /// Returns the path of the key file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the KEK's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl LocalKek {
    /// Opens the key file that `config` names.
    ///
    /// # Errors
    /// Those of [`open_or_create`](Self::open_or_create); with [`create`](Config::create) off,
    /// [`ErrorKind::Io`] for a missing file.
    pub fn from_config(config: &Config) -> Result<Self, Error> {
        if config.create.unwrap_or(true) {
            return Self::open_or_create(&config.path, &config.name);
        }
        super::check_name(&config.name)?;
        let kek = Self::open(&config.path)?;
        super::check_same_name(kek.name(), &config.name)?;
        Ok(kek)
    }
}

impl FromStr for Config {
    type Err = Error;

    /// Reads `local:PATH?name=NAME`, and the parameter `create`, which is `true` or `false`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the part that is wrong.
    fn from_str(text: &str) -> Result<Self, Error> {
        let uri = Uri::read(text, PREFIX, &PARAMETERS)?;
        let path = uri.file_path()?;
        let name = uri.text("name")?.ok_or_else(|| uri.error("parameter `name` is missing"))?;
        Ok(Self { path, name, create: uri.flag("create")? })
    }
}

/// Writes the URI.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut place = encode(self.path.as_os_str().as_encoded_bytes());
        // `//` would begin a host.
        if place.starts_with("//") {
            place.replace_range(1..2, "%2F");
        }
        let mut uri = UriWriter::new(PREFIX, &place);
        uri.text("name", Some(&self.name));
        uri.flag("create", self.create);
        f.write_str(&uri.finish())
    }
}
