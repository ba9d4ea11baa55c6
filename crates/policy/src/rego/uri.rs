//! A Rego policy as a URI, for the configuration of data domains.
#![forbid(unsafe_code)]

use waxseal::Error;
use waxseal::kek::toolkit::uri::Uri;

use super::builder::RegoSources;
use super::policy::RegoPolicy;

const PARAMETERS: [&str; 4] = ["package", "data", "watch", "time-limit"];

impl RegoPolicy {
    /// Makes the policy of a URI. In a configuration of data domains it is the scheme `rego` of
    /// [`Schemes::policy`](waxseal::domain::Schemes::policy).
    ///
    /// `rego:PATH` names a directory, a bundle (`.tar.gz`) or a file. Parameters are `package`,
    /// `data` (a JSON file beside it), `watch` (`0s`: files are not watched) and `time-limit`.
    ///
    /// ```
    /// use waxseal::domain::Schemes;
    /// use waxseal_policy::RegoPolicy;
    ///
    /// let schemes = Schemes::default().policy("rego", RegoPolicy::from_uri);
    /// // In the file: policy = "rego:/etc/orders/policy?package=orders&watch=10s"
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](waxseal::ErrorKind::InvalidOption), naming the part, and those of
    /// [`build`](crate::RegoPolicyBuilder::build).
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        let uri = Uri::read(&uri, "rego:", &PARAMETERS)?;
        let path = uri.decode_path("the path", uri.place())?;
        if path.as_os_str().is_empty() {
            return Err(uri.error("the path is missing: rego:PATH"));
        }
        let is_bundle = path.as_os_str().as_encoded_bytes().ends_with(b".tar.gz");
        let mut sources = match (path.is_dir(), is_bundle) {
            (true, _) => RegoSources::new().directory(path),
            (false, true) => RegoSources::new().bundle(path),
            (false, false) => RegoSources::new().file(path),
        };
        if let Some(data) = uri.path("data")? {
            sources = sources.file(data);
        }
        let mut builder = Self::builder(sources);
        if let Some(package) = uri.text("package")? {
            builder = builder.package(package);
        }
        if let Some(limit) = uri.duration("time-limit")? {
            builder = builder.time_limit(limit);
        }
        if let Some(interval) = uri.duration("watch")? {
            builder = builder.watch(Some(interval).filter(|interval| !interval.is_zero()));
        }
        builder.build()
    }
}
