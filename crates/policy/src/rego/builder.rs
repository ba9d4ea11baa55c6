//! Configures a [`RegoPolicy`].
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use waxseal::{Error, ErrorKind};

use super::policy::{RegoPolicy, Reloaded, Terms};
use super::sources::RegoSources;

const DEFAULT_PACKAGE: &str = "waxseal";
const DEFAULT_TIME_LIMIT: Duration = Duration::from_millis(100);
const LONGEST_TIME_LIMIT: Duration = Duration::from_secs(10);
const DEFAULT_WATCH: Duration = Duration::from_secs(2);
const SHORTEST_WATCH: Duration = Duration::from_millis(10);

/// Builds a [`RegoPolicy`].
#[must_use = "nothing happens until `build`"]
pub struct RegoPolicyBuilder {
    sources: RegoSources,
    package: String,
    time_limit: Duration,
    watch: Option<Duration>,
    reloaded: Option<Box<Reloaded>>,
}

impl RegoPolicyBuilder {
    fn new(sources: RegoSources) -> Self {
        let (package, time_limit) = (DEFAULT_PACKAGE.to_owned(), DEFAULT_TIME_LIMIT);
        Self { sources, package, time_limit, watch: Some(DEFAULT_WATCH), reloaded: None }
    }

    /// Sets the package with the rule `allow`. By default `waxseal`.
    pub fn package(mut self, name: impl Into<String>) -> Self {
        self.package = name.into();
        self
    }

    /// Sets how long one decision may take. A slower one is a denial. Above 0 to 10 s, by default
    /// 100 ms.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Sets how often files are checked and reloaded if they changed: at least 10 ms, by default
    /// every 2 seconds. With `None` they are reloaded only on [call](RegoPolicy::reload).
    pub fn watch(mut self, interval: Option<Duration>) -> Self {
        self.watch = interval;
        self
    }

    /// Sets a function that is called after each reload that changed the policy, and after each
    /// that failed. It is called where the reload happens, often on a separate thread.
    pub fn on_reload(mut self, told: impl Fn(&Result<(), Error>) + Send + Sync + 'static) -> Self {
        self.reloaded = Some(Box::new(told));
        self
    }

    /// Reads and compiles the policy.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the file and what is wrong with it.
    pub fn build(self) -> Result<RegoPolicy, Error> {
        let Self { sources, package, time_limit, watch, reloaded } = self;
        let invalid = |detail: &str| Err(Error::new(ErrorKind::InvalidOption, detail.to_owned()));
        if sources.sources.is_empty() {
            return invalid("policy: no source");
        }
        if time_limit.is_zero() || time_limit > LONGEST_TIME_LIMIT {
            return invalid("time_limit: above 0 to 10s is allowed");
        }
        if watch.is_some_and(|interval| interval < SHORTEST_WATCH) {
            return invalid("watch: 10ms or more is allowed");
        }
        RegoPolicy::start(Terms { sources, package, time_limit, watch, reloaded })
    }
}

impl RegoPolicy {
    /// Returns a builder.
    pub fn builder(sources: RegoSources) -> RegoPolicyBuilder {
        RegoPolicyBuilder::new(sources)
    }
}

impl fmt::Debug for RegoPolicyBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegoPolicyBuilder")
            .field("sources", &self.sources)
            .field("package", &self.package)
            .finish_non_exhaustive()
    }
}
