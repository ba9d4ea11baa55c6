//! The options of a store.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;
use waxseal::{Error, ErrorKind};

use crate::local::LocalFiles;
use crate::objects::Objects;
use crate::store::ObjectKeyStore;

const TIMEOUT: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(300);

/// Builds an [`ObjectKeyStore`].
#[must_use]
pub struct ObjectKeyStoreBuilder {
    url: String,
    options: Vec<(String, String)>,
    timeout: Duration,
}

impl ObjectKeyStore {
    /// Returns a builder for the store at a URL: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`,
    /// `az://CONTAINER/PREFIX`, `file:///FOLDER`, `memory:///`.
    pub fn builder(url: impl Into<String>) -> ObjectKeyStoreBuilder {
        ObjectKeyStoreBuilder { url: url.into(), options: Vec::new(), timeout: TIMEOUT }
    }

    /// Makes the store at a URL, with options from the environment. In a configuration of data
    /// domains it provides each of these schemes of
    /// [`Schemes::store`](waxseal::domain::Schemes::store): `s3`, `gs`, `az`, `file`.
    ///
    /// # Errors
    /// Those of [`build`](ObjectKeyStoreBuilder::build).
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        Self::builder(uri).build()
    }
}

impl ObjectKeyStoreBuilder {
    /// Sets an option by its name in `object_store`, such as `aws_region` or
    /// `google_service_account`. It overrides the environment, which is read as `object_store` does
    /// (`AWS_ACCESS_KEY_ID` and others). Values are never shown.
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.push((name.into(), value.into()));
        self
    }

    /// Sets how long one request may take including its retries, and how long a replacement waits
    /// for its turn: 100 ms to 5 minutes, by default 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Makes the store. It sends nothing to a service: [`health`](waxseal::store::KeyStore::health)
    /// does that.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the option: a URL that cannot be parsed, that has a
    /// user, a password or a query, or whose scheme needs a feature of this crate; an option that
    /// is unknown or has a bad value; a missing folder; a timeout out of range.
    pub fn build(self) -> Result<ObjectKeyStore, Error> {
        if !(SHORTEST..=LONGEST).contains(&self.timeout) {
            return Err(invalid("timeout: 100 ms to 5 minutes are allowed"));
        }
        // The text is not shown, since it may contain a password.
        let url = Url::parse(&self.url).map_err(|error| invalid(format!("url: {error}")))?;
        let has_more =
            url.password().is_some() || url.query().is_some() || url.fragment().is_some();
        if has_more {
            return Err(invalid("url: no password, query or fragment; logins are options"));
        }
        // On Azure one form has the container there. Elsewhere it may be an access key, and the URL
        // is the store's name in errors.
        if !url.username().is_empty() && !["abfs", "abfss"].contains(&url.scheme()) {
            return Err(invalid("url: no user before the bucket; logins are options"));
        }
        let (scheme, prefix) = ObjectStoreScheme::parse(&url)
            .map_err(|_| invalid(format!("url: {}:// is not an object store", url.scheme())))?;
        let name = url.as_str().trim_end_matches('/').to_owned();
        let objects = match scheme {
            ObjectStoreScheme::Local => self.local(&url)?,
            ObjectStoreScheme::Memory => {
                self.without_options()?;
                self.objects(Arc::new(InMemory::new()), prefix)
            }
            #[cfg(feature = "aws")]
            ObjectStoreScheme::AmazonS3 => {
                let store = object_store::aws::AmazonS3Builder::from_env();
                let store = store.with_url(self.url.as_str()).with_retry(self.retries());
                let store = self.configured(store, |store, key, value| {
                    Ok(store.with_config(key.parse()?, value))
                })?;
                self.objects(Arc::new(store.build().map_err(|error| refused(&error))?), prefix)
            }
            #[cfg(feature = "gcp")]
            ObjectStoreScheme::GoogleCloudStorage => {
                let store = object_store::gcp::GoogleCloudStorageBuilder::from_env();
                let store = store.with_url(self.url.as_str()).with_retry(self.retries());
                let store = self.configured(store, |store, key, value| {
                    Ok(store.with_config(key.parse()?, value))
                })?;
                self.objects(Arc::new(store.build().map_err(|error| refused(&error))?), prefix)
            }
            #[cfg(feature = "azure")]
            ObjectStoreScheme::MicrosoftAzure => {
                let store = object_store::azure::MicrosoftAzureBuilder::from_env();
                let store = store.with_url(self.url.as_str()).with_retry(self.retries());
                let store = self.configured(store, |store, key, value| {
                    Ok(store.with_config(key.parse()?, value))
                })?;
                self.objects(Arc::new(store.build().map_err(|error| refused(&error))?), prefix)
            }
            _ => {
                let text = "url: this scheme is not supported, or needs a feature of \
                            waxseal-object-store (aws, azure, gcp)";
                return Err(invalid(text));
            }
        };
        Ok(ObjectKeyStore::new(objects, name))
    }

    fn objects(&self, store: Arc<dyn ObjectStore>, prefix: Path) -> Objects {
        Objects { store, prefix, local: None, bound: self.timeout }
    }

    fn local(&self, url: &Url) -> Result<Objects, Error> {
        self.without_options()?;
        let root = url.to_file_path().map_err(|()| invalid("url: no path of this system"))?;
        // Durable when a call returns, like the services.
        let files = LocalFileSystem::new_with_prefix(&root)
            .map_err(|_| invalid(format!("url: there is no folder {}", root.display())))?
            .with_fsync(true);
        if !root.is_dir() {
            return Err(invalid(format!("url: {} is not a folder", root.display())));
        }
        let local = LocalFiles { files: files.clone(), root };
        Ok(Objects { local: Some(local), ..self.objects(Arc::new(files), Path::default()) })
    }

    fn without_options(&self) -> Result<(), Error> {
        match self.options.first() {
            None => Ok(()),
            Some((name, _)) => Err(invalid(format!("option {name:?}: this scheme has no options"))),
        }
    }

    #[cfg(any(feature = "aws", feature = "azure", feature = "gcp"))]
    fn configured<B>(
        &self,
        builder: B,
        set: impl Fn(B, &str, &str) -> Result<B, object_store::Error>,
    ) -> Result<B, Error> {
        let each = format!("{}ms", self.timeout.as_millis() / 2);
        let mut builder = set(builder, "timeout", &each).map_err(|error| refused(&error))?;
        for (name, value) in &self.options {
            builder = set(builder, &name.to_ascii_lowercase(), value)
                .map_err(|_| invalid(format!("option {name:?} is unknown for this scheme")))?;
        }
        Ok(builder)
    }

    #[cfg(any(feature = "aws", feature = "azure", feature = "gcp"))]
    fn retries(&self) -> object_store::RetryConfig {
        object_store::RetryConfig {
            max_retries: 3,
            retry_timeout: self.timeout,
            ..Default::default()
        }
    }
}

impl fmt::Debug for ObjectKeyStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may contain a password until it is checked.
        let names: Vec<_> = self.options.iter().map(|(name, _)| name).collect();
        f.debug_struct("ObjectKeyStoreBuilder")
            .field("options", &names)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What `object_store` says of an option's value. It shows values of no login.
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp"))]
fn refused(error: &object_store::Error) -> Error {
    invalid(format!("option: {error}"))
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, detail.into())
}
