//! The domains at one time, and how the next set is made.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;

use super::Domain;
use super::config::DomainConfig;
use super::opening::{Field, Opener, Wrong, invalid};
use super::source::Configuration;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind, nearest};

/// How many names are searched for a hint.
const MOST_NAMES: usize = 1000;
/// How much of an unknown name an error repeats, in characters.
const MOST_SHOWN: usize = 128;

/// How many domains are opened at the same time.
const AT_ONCE: usize = 8;

/// The domains at one time.
#[derive(Default)]
pub(super) struct Set {
    pub(super) domains: HashMap<Box<str>, Domain>,
    pub(super) route_by: Option<Box<str>>,
    /// The values of the selecting pair.
    pub(super) routes: HashMap<Box<str>, Domain>,
}

impl Set {
    /// Opens the domains that are new or changed. If one cannot be opened, the others are closed.
    pub(super) async fn open(
        opener: &Opener,
        configuration: &Configuration,
        before: &Self,
    ) -> Result<Self, (String, Wrong)> {
        let route_by = configuration.route_by.as_deref();
        let opening: Vec<_> = configuration
            .domains
            .iter()
            .map(|(name, config)| before.keep_or_open(opener, name, config, route_by))
            .collect();
        let opened: Vec<_> = stream::iter(opening).buffered(AT_ONCE).collect().await;
        let mut set = Self { route_by: route_by.map(Into::into), ..Self::default() };
        let (mut first_failure, mut new) = (None, Vec::new());
        for opened in opened {
            let added = opened.and_then(|(domain, is_kept)| {
                new.extend((!is_kept).then(|| domain.clone()));
                set.add(domain)
            });
            if let Err(failure) = added {
                first_failure.get_or_insert(failure);
            }
        }
        let Some(failure) = first_failure else { return Ok(set) };
        join_all(new.iter().map(Domain::close)).await;
        Err(failure)
    }

    /// Returns a domain, and whether it was already open.
    async fn keep_or_open(
        &self,
        opener: &Opener,
        name: &str,
        config: &DomainConfig,
        route_by: Option<&str>,
    ) -> Result<(Domain, bool), (String, Wrong)> {
        let there = self.domains.get(name);
        if let Some(kept) = there.filter(|there| there.is_made_of(config, route_by)) {
            return Ok((kept.clone(), true));
        }
        let opened = opener.open(name, config, route_by).await;
        opened.map(|domain| (domain, false)).map_err(|wrong| (name.to_owned(), wrong))
    }

    /// Returns the value of the pair that selects the domain.
    pub(super) fn route_of<'c>(&self, pairs: &'c EncryptionContext) -> Result<&'c str, Error> {
        let by = self.route_by.as_deref();
        let by = by.ok_or_else(|| invalid("route_by: no pair is set that chooses the domain"))?;
        pairs.get(by).ok_or_else(|| {
            let hint = nearest(by, pairs.iter().map(|(name, _)| name));
            let hint = hint.map(|name| format!("; it has {name:?}")).unwrap_or_default();
            let detail = format!("it has no pair {by:?}, which chooses the domain{hint}");
            Error::new(ErrorKind::InvalidContext, detail)
        })
    }

    /// Returns the domain that a value selects.
    pub(super) fn routed(&self, value: &str) -> Result<&Domain, Error> {
        let by = self.route_by.as_deref().unwrap_or_default();
        self.routes.get(value).ok_or_else(|| unknown(by, value, self.routes.keys()))
    }

    /// Whether a resolver may know the domain of a value. A configured domain is selected only by
    /// its routes, so its name as a value selects nothing.
    #[cfg(feature = "domains")]
    pub(super) fn is_for_resolver(&self, value: &str) -> bool {
        !self.routes.contains_key(value) && !self.domains.contains_key(value)
    }

    fn add(&mut self, domain: Domain) -> Result<(), (String, Wrong)> {
        let name = domain.name().to_owned();
        self.domains.insert(name.as_str().into(), domain.clone());
        let routes = &domain.config().routes;
        let routes = if routes.is_empty() { std::slice::from_ref(&name) } else { routes };
        for (item, value) in routes.iter().enumerate() {
            if let Some(other) = self.routes.insert(value.as_str().into(), domain.clone()) {
                let field = Field { name: "routes", item: Some(item) };
                let detail = format!("domain {:?} has this route too", other.name());
                return Err((name, field.wrong(invalid(detail))));
            }
        }
        Ok(())
    }
}

/// Returns the error for an unknown name.
#[cfg(feature = "domains")]
pub(super) fn unknown_name(name: &str) -> Error {
    unknown("", name, std::iter::empty())
}

pub(super) fn unknown<'k>(
    by: &str,
    name: &str,
    known: impl Iterator<Item = &'k Box<str>>,
) -> Error {
    let near = nearest(name, known.take(MOST_NAMES).map(|name| &**name));
    let hint = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
    let by = if by.is_empty() { String::new() } else { format!("for {by} = ") };
    let shown: String = name.chars().take(MOST_SHOWN).collect();
    Error::new(ErrorKind::UnknownDomain, format!("{by}{shown:?}{hint}"))
}
