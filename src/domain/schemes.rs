//! Factories of providers, key stores and policies, by URI scheme.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;

use super::config::Address;
use crate::error::{Error, ErrorKind, nearest};
use crate::kek::KekProvider;
use crate::kek::local::LocalKek;
use crate::policy::Policy;
use crate::runtime::BoxFuture;
use crate::store::{KeyStore, MemoryStore};
use crate::sync::Arc;

type Factory<T> = Arc<dyn Fn(String) -> BoxFuture<'static, Result<Arc<T>, Error>> + Send + Sync>;

/// The providers, key stores and policies that a configuration can name by URI, by their schemes.
///
/// The crates of providers, stores and policies offer a function `from_uri` for each of their
/// schemes:
///
/// ```ignore
/// Schemes::default()
///     .kek("aws-kms", AwsKmsKek::from_uri)
///     .kek("vault-transit", VaultTransitKek::from_uri)
///     .store("postgres", PostgresKeyStore::from_uri)
///     .policy("rego", RegoPolicy::from_uri)
/// ```
///
/// Use a closure for a provider that needs more than a URI, such as your own client:
///
/// ```
/// use waxseal::domain::Schemes;
/// use waxseal::kek::local::LocalKek;
///
/// let schemes = Schemes::default().kek("test", |uri: String| async move {
///     LocalKek::in_memory(uri.trim_start_matches("test:"))
/// });
/// ```
///
/// The default has `local:` ([`LocalKek`]) and the store `memory:NAME` ([`MemoryStore`], for
/// tests).
#[derive(Clone)]
#[must_use]
pub struct Schemes {
    keks: BTreeMap<String, Factory<dyn KekProvider>>,
    stores: BTreeMap<String, Factory<dyn KeyStore>>,
    policies: BTreeMap<String, Factory<dyn Policy>>,
}

impl Default for Schemes {
    fn default() -> Self {
        Self { keks: BTreeMap::new(), stores: BTreeMap::new(), policies: BTreeMap::new() }
            .kek("local", async |uri: String| LocalKek::from_config(&uri.parse()?))
            .store("memory", async |_: String| Ok(MemoryStore::new()))
    }
}

impl Schemes {
    /// Adds a scheme of KEKs, or replaces it. `make` gets the whole URI. Its errors must not show
    /// secrets.
    pub fn kek<P, F>(
        mut self,
        scheme: &str,
        make: impl Fn(String) -> F + Send + Sync + 'static,
    ) -> Self
    where
        P: KekProvider + 'static,
        F: Future<Output = Result<P, Error>> + Send + 'static,
    {
        let make: Factory<dyn KekProvider> = Arc::new(move |uri| {
            let made = make(uri);
            Box::pin(async move { Ok(Arc::new(made.await?) as Arc<dyn KekProvider>) })
        });
        self.keks.insert(scheme.to_ascii_lowercase(), make);
        self
    }

    /// Adds a scheme of key stores, like [`kek`](Self::kek). At most one store is kept per URI.
    pub fn store<S, F>(
        mut self,
        scheme: &str,
        make: impl Fn(String) -> F + Send + Sync + 'static,
    ) -> Self
    where
        S: KeyStore + 'static,
        F: Future<Output = Result<S, Error>> + Send + 'static,
    {
        let make: Factory<dyn KeyStore> = Arc::new(move |uri| {
            let made = make(uri);
            Box::pin(async move { Ok(Arc::new(made.await?) as Arc<dyn KeyStore>) })
        });
        self.stores.insert(scheme.to_ascii_lowercase(), make);
        self
    }

    /// Adds a scheme of policies, like [`kek`](Self::kek). At most one policy is kept per URI, so
    /// domains that name it share its rules and their reload.
    ///
    /// ```
    /// # use waxseal::domain::Schemes;
    /// # use waxseal::policy::{BoxFuture, Decision, Policy, Question};
    /// # #[derive(Debug)]
    /// # struct OfficeHours;
    /// # impl Policy for OfficeHours {
    /// #     fn decide<'a>(
    /// #         &'a self,
    /// #         _: &'a Question<'a>,
    /// #     ) -> BoxFuture<'a, Result<Decision, waxseal::Error>> {
    /// #         Box::pin(async { Ok(Decision::allow()) })
    /// #     }
    /// # }
    /// // A policy of your own, which a configuration names `code:office-hours`.
    /// let schemes = Schemes::default().policy("code", |_: String| async { Ok(OfficeHours) });
    /// ```
    pub fn policy<P, F>(
        mut self,
        scheme: &str,
        make: impl Fn(String) -> F + Send + Sync + 'static,
    ) -> Self
    where
        P: Policy + 'static,
        F: Future<Output = Result<P, Error>> + Send + 'static,
    {
        let make: Factory<dyn Policy> = Arc::new(move |uri| {
            let made = make(uri);
            Box::pin(async move { Ok(Arc::new(made.await?) as Arc<dyn Policy>) })
        });
        self.policies.insert(scheme.to_ascii_lowercase(), make);
        self
    }

    pub(super) async fn make_kek(&self, uri: &Address) -> Result<Arc<dyn KekProvider>, Error> {
        make(&self.keks, uri).await
    }

    pub(super) async fn make_store(&self, uri: &Address) -> Result<Arc<dyn KeyStore>, Error> {
        make(&self.stores, uri).await
    }

    pub(super) async fn make_policy(&self, uri: &Address) -> Result<Arc<dyn Policy>, Error> {
        make(&self.policies, uri).await
    }
}

/// Shows no more of a URI than its scheme, and that only if it is close to a known one.
async fn make<T: ?Sized>(
    factories: &BTreeMap<String, Factory<T>>,
    uri: &Address,
) -> Result<Arc<T>, Error> {
    let known = || factories.keys().map(String::as_str);
    let scheme = uri.scheme().unwrap_or_default();
    if let Some(factory) = factories.get(&scheme) {
        return factory(uri.0.clone()).await;
    }
    let detail = match nearest(&scheme, known()) {
        Some(near) => format!("scheme `{scheme}:` is unknown; did you mean `{near}:`?"),
        None if factories.is_empty() => "no scheme is known: add one to `Schemes`".to_owned(),
        None => {
            let known: Vec<_> = known().collect();
            let known = known.join(", ");
            format!("not a URI of a known scheme; known are {known}, and `Schemes` adds others")
        }
    };
    Err(Error::new(ErrorKind::InvalidOption, detail))
}

impl fmt::Debug for Schemes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schemes")
            .field("keks", &self.keks.keys())
            .field("stores", &self.stores.keys())
            .field("policies", &self.policies.keys())
            .finish()
    }
}
