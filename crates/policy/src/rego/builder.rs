//! Configures a [`RegoPolicy`].
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use waxseal::{Error, ErrorKind};

use super::bundle::Signed;
use super::policy::{RegoPolicy, Reloaded, Terms};
#[cfg(feature = "signatures")]
use super::signature::BundleKey;
use super::sources::Source;

const DEFAULT_PACKAGE: &str = "waxseal";
const DEFAULT_TIME_LIMIT: Duration = Duration::from_millis(100);
const LONGEST_TIME_LIMIT: Duration = Duration::from_secs(10);
const DEFAULT_WATCH: Duration = Duration::from_secs(2);
const SHORTEST_WATCH: Duration = Duration::from_millis(10);

/// Where a policy and its data come from. Several sources make one policy.
///
/// Files that end in `_test.rego` are tests: they are read by [`lint`](crate::lint) and
/// [`run_tests`](crate::run_tests), and decide nothing.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RegoSources {
    pub(super) sources: Vec<Source>,
}

impl RegoSources {
    /// Makes an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file: `.rego` is a policy, `.json` an object of data.
    pub fn file(self, path: impl Into<PathBuf>) -> Self {
        self.with(Source::File(path.into()))
    }

    /// Adds every `.rego` file and every `data.json` below a directory, as `opa run --bundle` reads
    /// it: `orders/data.json` is `data.orders`. Hidden files are left out.
    pub fn directory(self, path: impl Into<PathBuf>) -> Self {
        self.with(Source::Directory(path.into()))
    }

    /// Adds a bundle that is not signed: a `.tar.gz` as `opa build` makes it. A signed one is
    /// refused, and so are YAML, compiled policies and delta bundles.
    pub fn bundle(self, path: impl Into<PathBuf>) -> Self {
        self.with(Source::Bundle(path.into(), Signed::Not))
    }

    /// Adds a bundle that is signed by one of these keys, as `opa sign` does. One that is not, and
    /// one in which a file was changed, added or taken away, is refused. Times in the signature are
    /// not looked at, as OPA does not: an older bundle that was signed is as good as a newer one.
    #[cfg(feature = "signatures")]
    #[cfg_attr(docsrs, doc(cfg(feature = "signatures")))]
    pub fn signed_bundle(
        self,
        path: impl Into<PathBuf>,
        keys: impl IntoIterator<Item = BundleKey>,
    ) -> Self {
        self.with(Source::Bundle(path.into(), Signed::By(keys.into_iter().collect())))
    }

    /// Adds a bundle, signed or not, and does not look at its signature. Whoever can write the file
    /// decides then. For a bundle that was verified before, or whose place is trusted.
    pub fn unverified_bundle(self, path: impl Into<PathBuf>) -> Self {
        self.with(Source::Bundle(path.into(), Signed::Unverified))
    }

    /// Adds a policy. `name` is for error texts, and ends in `_test.rego` for tests.
    pub fn rego(self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.with(Source::Rego { name: name.into(), text: text.into() })
    }

    /// Adds an object of data, as JSON.
    pub fn data(self, json: impl Into<String>) -> Self {
        self.with(Source::Data(json.into()))
    }

    fn with(mut self, source: Source) -> Self {
        self.sources.push(source);
        self
    }
}

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
    pub(super) fn new(sources: RegoSources) -> Self {
        let (package, time_limit) = (DEFAULT_PACKAGE.to_owned(), DEFAULT_TIME_LIMIT);
        Self { sources, package, time_limit, watch: Some(DEFAULT_WATCH), reloaded: None }
    }

    /// Sets the package with the rule `allow`. By default `waxseal`.
    pub fn package(mut self, name: impl Into<String>) -> Self {
        self.package = name.into();
        self
    }

    /// Sets how long one decision may take. What takes longer is a denial. Above 0 to 10 s, by
    /// default 100 ms.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Sets how often files are looked at, to reload what changed: 10 ms or more, by default every
    /// 2 seconds. `None` reloads on [call](RegoPolicy::reload) only.
    pub fn watch(mut self, interval: Option<Duration>) -> Self {
        self.watch = interval;
        self
    }

    /// Sets what is told of each reload that changed the policy, and of each that failed. It is
    /// called where the reload happens, often on a thread of its own.
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

impl fmt::Debug for RegoPolicyBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegoPolicyBuilder")
            .field("sources", &self.sources)
            .field("package", &self.package)
            .finish_non_exhaustive()
    }
}
