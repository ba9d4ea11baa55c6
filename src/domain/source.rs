//! Where the configuration of the domains comes from.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
#[cfg(feature = "domains")]
use std::path::PathBuf;

use super::config::DomainConfig;
#[cfg(feature = "domains")]
use super::file::ConfigFile;
use super::opening::{Field, Wrong, check_pair, invalid};
use crate::error::Error;

/// The builder's settings.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub(super) route_by: Option<String>,
    pub(super) domains: BTreeMap<String, DomainConfig>,
    /// A domain that was added more than once.
    pub(super) twice: Option<String>,
    #[cfg(feature = "domains")]
    pub(super) file: Option<PathBuf>,
}

/// All domains at one time.
pub(super) struct Configuration {
    pub(super) route_by: Option<String>,
    pub(super) domains: BTreeMap<String, DomainConfig>,
}

/// Reports where a configuration is wrong.
#[derive(Default)]
pub(super) struct Locator {
    #[cfg(feature = "domains")]
    file: Option<ConfigFile>,
}

impl Source {
    /// Reads the file again, if there is one.
    pub(super) fn load(&self) -> Result<(Configuration, Locator), Error> {
        let domains = self.domains.clone();
        let configuration = Configuration { route_by: self.route_by.clone(), domains };
        let locator = Locator::default();
        if let Some(name) = &self.twice {
            return Err(locator.twice(name));
        }
        #[cfg(feature = "domains")]
        let (configuration, locator) = match &self.file {
            Some(path) => configuration.with_file(path)?,
            None => (configuration, locator),
        };
        if let Some(by) = &configuration.route_by {
            check_pair("route_by", by, "value").map_err(|error| locator.of_route_by(error))?;
        }
        Ok((configuration, locator))
    }
}

#[cfg(feature = "domains")]
impl Configuration {
    fn with_file(mut self, path: &std::path::Path) -> Result<(Self, Locator), Error> {
        let (file, content) = ConfigFile::read(path)?;
        let locator = Locator { file: Some(file) };
        for (name, config) in content.domains {
            if self.domains.contains_key(&name) {
                return Err(locator.twice(&name));
            }
            self.domains.insert(name, config);
        }
        self.route_by = content.route_by.or(self.route_by);
        Ok((self, locator))
    }
}

impl Locator {
    pub(super) fn error(&self, domain: &str, wrong: &Wrong) -> Error {
        #[cfg(feature = "domains")]
        if let Some(file) = &self.file {
            return file.locate(domain, wrong);
        }
        wrong.at(domain)
    }

    fn of_route_by(&self, error: Error) -> Error {
        #[cfg(feature = "domains")]
        if let Some(file) = &self.file {
            return file.locate_option("route_by", &error);
        }
        error
    }

    /// Adds the file to an error.
    pub(super) fn of_file(&self, error: Error) -> Error {
        #[cfg(feature = "domains")]
        if let Some(file) = &self.file {
            return error.at(file.shown());
        }
        error
    }

    fn twice(&self, domain: &str) -> Error {
        let wrong = Field::default().wrong(invalid("this domain is configured twice"));
        self.error(domain, &wrong)
    }
}
