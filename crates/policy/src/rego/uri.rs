//! A Rego policy as a URI, for the configuration of data domains.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use waxseal::Error;
use waxseal::kek::toolkit::uri::Uri;

use super::policy::RegoPolicy;
#[cfg(feature = "signatures")]
use super::signature::BundleKey;
use super::sources::RegoSources;

const PARAMETERS: &[&str] = &[
    "package",
    "data",
    "watch",
    "time-limit",
    #[cfg(feature = "signatures")]
    "signed-by",
    #[cfg(feature = "signatures")]
    "algorithm",
    #[cfg(feature = "signatures")]
    "scope",
];

impl RegoPolicy {
    /// Makes the policy of a URI. In a configuration of data domains it is the scheme `rego` of
    /// [`Schemes::policy`](waxseal::domain::Schemes::policy).
    ///
    /// `rego:PATH` names a directory, a bundle (`.tar.gz`) or a file. Parameters are `package`,
    /// `data` (an additional JSON file), `watch` (`0s`: files are not watched) and `time-limit`.
    /// With the feature `signatures` a bundle may have `signed-by`, the PEM file of the public key
    /// that signs it, `algorithm` (`RS256`, `PS256` or `ES256`, by default the first) and `scope`.
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
    /// [`ErrorKind::InvalidOption`](waxseal::ErrorKind::InvalidOption), naming the part, and those
    /// of [`build`](crate::RegoPolicyBuilder::build).
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        let uri = Uri::read(&uri, "rego:", PARAMETERS)?;
        let path = uri.file_path()?;
        let is_directory = path.is_dir();
        let is_bundle = !is_directory && path.as_os_str().as_encoded_bytes().ends_with(b".tar.gz");
        let mut sources = match (is_directory, is_bundle) {
            (true, _) => RegoSources::new().directory(path),
            (false, true) => bundle(&uri, path)?,
            (false, false) => RegoSources::new().file(path),
        };
        #[cfg(feature = "signatures")]
        if !is_bundle && uri.text("signed-by")?.is_some() {
            return Err(uri.error("`signed-by` is for a bundle, PATH.tar.gz"));
        }
        #[cfg(feature = "signatures")]
        if uri.text("signed-by")?.is_none()
            && (uri.text("algorithm")?.is_some() || uri.text("scope")?.is_some())
        {
            return Err(
                uri.error("`algorithm` and `scope` are of a signature: `signed-by` is missing")
            );
        }
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

#[cfg(feature = "signatures")]
fn bundle(uri: &Uri<'_>, path: PathBuf) -> Result<RegoSources, Error> {
    let Some(file) = uri.path("signed-by")? else { return Ok(RegoSources::new().bundle(path)) };
    let pem = std::fs::read_to_string(file).map_err(|error| {
        uri.error("the file of parameter `signed-by` cannot be read").with_source(error)
    })?;
    let key = match uri.text("algorithm")?.as_deref() {
        None | Some("RS256") => BundleKey::rs256(&pem)?,
        Some("PS256") => BundleKey::ps256(&pem)?,
        Some("ES256") => BundleKey::es256(&pem)?,
        Some(_) => return Err(uri.error("parameter `algorithm` is none of RS256, PS256, ES256")),
    };
    let key = uri.text("scope")?.into_iter().fold(key, BundleKey::with_scope);
    Ok(RegoSources::new().signed_bundle(path, [key]))
}

#[cfg(not(feature = "signatures"))]
fn bundle(_: &Uri<'_>, path: PathBuf) -> Result<RegoSources, Error> {
    Ok(RegoSources::new().bundle(path))
}
