//! Builds a [`GoogleKmsKek`]: its options, and the checks before Cloud KMS is called.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::client::Service;
use crate::credentials::{Credentials, Keeper, Source};
use crate::format::KeyName;
use crate::health_check::HealthCheck;
use crate::keys::{Key, Keys, Settled};
use crate::provider::{GoogleKmsKek, Inner};
use crate::transport::{self, Transport};
use waxseal::kek::toolkit::Spawner;
use waxseal::kek::toolkit::uri::without_user;
use waxseal::{CallBudget, EncryptionContext, Error, ErrorKind, KekId};

const ENDPOINT: &str = "https://cloudkms.googleapis.com";
const MOST_FORMER_KEYS: usize = 256;

/// Configures a [`GoogleKmsKek`]. Only the key is required. By default credentials come from the
/// default sources of Google's libraries (application default credentials), including environment
/// variables, so there is no `from_env`.
#[must_use = "nothing happens until `build`"]
pub struct GoogleKmsKekBuilder {
    key: String,
    former_keys: Vec<String>,
    source: Source,
    quota_project: Option<String>,
    endpoint: Option<String>,
    external_key_manager: bool,
    call_budget: Option<CallBudget>,
    health_check: HealthCheck,
    health_context: EncryptionContext,
}

impl GoogleKmsKek {
    /// Starts the configuration for a key, by its resource name
    /// `projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY`. The name must not
    /// include a version: wrapping uses the primary one, and unwrapping finds the right one.
    pub fn builder(key: impl Into<String>) -> GoogleKmsKekBuilder {
        GoogleKmsKekBuilder {
            key: key.into(),
            former_keys: Vec::new(),
            source: Source::ApplicationDefault,
            quota_project: None,
            endpoint: None,
            external_key_manager: false,
            call_budget: None,
            health_check: HealthCheck::default(),
            health_context: EncryptionContext::default(),
        }
    }
}

impl GoogleKmsKekBuilder {
    /// Sets the resource names of earlier keys, in any project and location. They still unwrap, and
    /// [`rewrap`](waxseal::Envelope::rewrap) moves their DEKs to this key. By default none, at most
    /// 256.
    pub fn former_keys<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.former_keys = names.into_iter().map(Into::into).collect();
        self
    }

    /// Reads credentials from a file: a service account's key, the configuration of workload
    /// identity federation (`external_account`), of an impersonated service account, or of a user.
    /// It is read when the first token is needed, and again after a failure.
    ///
    /// If several options set the source of credentials, the last one counts.
    pub fn credentials_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.source = Source::File(path.into());
        self
    }

    /// Gets tokens only from the metadata server, as on Compute Engine, Cloud Run and Google
    /// Kubernetes Engine with workload identity. The variable `GCE_METADATA_HOST` names another
    /// host.
    pub fn metadata_server(mut self) -> Self {
        self.source = Source::Metadata(None);
        self
    }

    /// Gets tokens from a metadata server at this URL. It must be on this machine, `https`, or one
    /// of `http://metadata.google.internal` and `http://169.254.169.254`.
    pub fn metadata_server_at(mut self, url: impl Into<String>) -> Self {
        self.source = Source::Metadata(Some(url.into()));
        self
    }

    /// Uses your own credentials, of the crate `google-cloud-auth`, version 1. They then handle
    /// outages and refusals themselves, because the provider cannot make them again.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.source = Source::Given(credentials);
        self
    }

    /// Sets the project whose quota the calls use, if it is not that of the credentials. The caller
    /// needs `serviceusage.services.use` there. Not allowed with your own
    /// [`credentials`](Self::credentials), which have a quota project.
    pub fn quota_project(mut self, project: impl Into<String>) -> Self {
        self.quota_project = Some(project.into());
        self
    }

    /// Sets another endpoint, such as a regional one
    /// (`https://cloudkms.europe-west3.rep.googleapis.com`) or one of Private Service Connect:
    /// scheme, host and port. It must be `https`, except on this machine. By default
    /// `https://cloudkms.googleapis.com`, which serves keys in every location.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    /// Declares that the key is in an external key manager (Cloud EKM), so that even the first call
    /// has its timeout and budget. Not required, since the first answer says so.
    pub fn external_key_manager(mut self, is_external: bool) -> Self {
        self.external_key_manager = is_external;
        self
    }

    /// Sets the call budget of the key and its former keys. Give the same budget to every provider
    /// whose keys share a quota. By default it is a quarter of Google's default quota, for all keys
    /// of the project and location in this process: 250 calls per second for software keys, 125 for
    /// HSM keys, 25 for external keys.
    pub fn call_budget(mut self, budget: CallBudget) -> Self {
        self.call_budget = Some(budget);
        self
    }

    /// Sets what [`health`](waxseal::kek::KekProvider::health) does. By default
    /// [`HealthCheck::Get`], which does not show whether the caller may use the key.
    pub fn health_check(mut self, check: HealthCheck) -> Self {
        self.health_check = check;
        self
    }

    /// Sets the encryption context of a [health check](Self::health_check) that uses the key. By
    /// default empty.
    pub fn health_context(mut self, context: EncryptionContext) -> Self {
        self.health_context = context;
        self
    }

    /// Checks the options and builds the provider. It makes no call, so a service starts without
    /// Cloud KMS and without a token.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the option, also outside a tokio runtime and in one
    /// without timers or IO.
    pub async fn build(self) -> Result<GoogleKmsKek, Error> {
        let spawner = Spawner::current().map_err(|why| invalid(format!("build: {why}")))?;
        let budget = self.call_budget;
        let own = Key::new(key_id("key", &self.key)?, self.external_key_manager, budget.clone());
        if self.former_keys.len() > MOST_FORMER_KEYS {
            let detail = format!(
                "former_keys: {}, at most {MOST_FORMER_KEYS} are allowed",
                self.former_keys.len()
            );
            return Err(invalid(detail));
        }
        let mut former: Vec<Key> = Vec::new();
        for name in &self.former_keys {
            let id = key_id("former_keys", name)?;
            if id == own.id || former.iter().any(|key| key.id == id) {
                return Err(invalid(format!("former_keys: {id} is named twice")));
            }
            former.push(Key::new(id, self.external_key_manager, budget.clone()));
        }
        check_source(&self.source, self.quota_project.as_deref())?;
        let endpoint = self.endpoint.unwrap_or_else(|| ENDPOINT.to_owned());
        let origin = origin("endpoint", &endpoint)?;
        // This reads the system's root certificates.
        let made = tokio::task::spawn_blocking(move || Transport::new(origin)).await;
        let transport = made
            .map_err(|_| invalid("build: the runtime ended meanwhile".to_owned()))?
            .map_err(|why| invalid(format!("endpoint: {why}")))?;
        let keeper = Keeper::new(self.source, self.quota_project);
        Ok(GoogleKmsKek(Arc::new(Inner {
            keys: Keys::new(own, former),
            service: Service::new(transport, keeper),
            spawner,
            health_check: self.health_check,
            health_context: self.health_context,
            settled: Settled::default(),
        })))
    }
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOption, detail)
}

fn key_id(option: &str, name: &str) -> Result<KekId, Error> {
    if KeyName::read(name).is_some() {
        return KekId::new(name);
    }
    let why = if name.contains("/cryptoKeyVersions/") {
        "it names a version; name the key"
    } else {
        "it is not projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"
    };
    let shown: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
    Err(invalid(format!("{option}: {shown}: {why}")))
}

/// Returns scheme, host and port of a URL that has nothing else.
fn origin(option: &str, url: &str) -> Result<String, Error> {
    let (shown, has_user) = without_user(url);
    let refused = |why: &str| Err(invalid(format!("{option}: {shown}: {why}")));
    if has_user {
        return refused("there must be no user or password in it");
    }
    let Ok(parsed) = reqwest::Url::parse(url) else { return refused("it is not a URL") };
    if !["", "/"].contains(&parsed.path())
        || parsed.query().is_some()
        || parsed.fragment().is_some()
    {
        return refused("only scheme, host and port are allowed");
    }
    if parsed.host_str().is_none_or(str::is_empty) {
        return refused("it has no host");
    }
    if !transport::is_private(url) {
        return refused(transport::IN_THE_CLEAR);
    }
    Ok(parsed.origin().ascii_serialization())
}

fn check_source(source: &Source, quota_project: Option<&str>) -> Result<(), Error> {
    if let Some(project) = quota_project {
        if matches!(source, Source::Given(_)) {
            return Err(invalid("quota_project: not with credentials of your own".to_owned()));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte);
        if project.is_empty() || project.len() > 100 || !project.bytes().all(is_plain) {
            return Err(invalid("quota_project: it is not the id of a project".to_owned()));
        }
    }
    if let Source::Metadata(Some(url)) = source {
        // These two are reached only on the machine's own link.
        let is_usual = ["http://metadata.google.internal", "http://169.254.169.254"]
            .contains(&url.trim_end_matches('/'));
        if !is_usual {
            origin("metadata_server_at", url)?;
        }
    }
    Ok(())
}

impl fmt::Debug for GoogleKmsKekBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GoogleKmsKekBuilder")
            .field("key", &self.key)
            .field("credentials", &self.source)
            .finish_non_exhaustive()
    }
}
