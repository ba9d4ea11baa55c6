//! Builds an [`AzureKeyVaultKek`]: its options, and the checks before the service is called.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use azure_core::credentials::TokenCredential;
use waxseal::kek::toolkit::Spawner;
use waxseal::kek::toolkit::uri::without_user;
use waxseal::{CallBudget, Error, ErrorKind, KekId};

use crate::algorithm::Algorithm;
use crate::budgets;
use crate::client::Service;
use crate::credentials::{Credential, Source};
use crate::format::is_key_name;
use crate::health::HealthCheck;
use crate::keeper::Keeper;
use crate::place::{Place, Resource, key_identifier};
use crate::provider::{AzureKeyVaultKek, Inner, Key};
use crate::transport::{Recipe, Transport};

const MOST_FORMER_KEYS: usize = 256;
const DEFAULT_KEY_MAX_AGE: Duration = Duration::from_secs(300);
const LONGEST_KEY_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Configures an [`AzureKeyVaultKek`]. Only vault and key are required, and the algorithm for a
/// vault.
#[must_use = "nothing happens until `build`"]
pub struct AzureKeyVaultKekBuilder {
    vault: String,
    key: String,
    algorithm: Option<Algorithm>,
    former_keys: Vec<String>,
    credential: Credential,
    given: Option<Arc<dyn TokenCredential>>,
    authority_host: Option<String>,
    address: Option<SocketAddr>,
    addresses: Vec<(String, SocketAddr)>,
    ca_file: Option<PathBuf>,
    key_max_age: Option<Duration>,
    health_check: HealthCheck,
    call_budget: Option<CallBudget>,
}

impl AzureKeyVaultKek {
    /// Starts the configuration for a key of a vault or a Managed HSM.
    ///
    /// `vault` is a name (`orders`, of a vault in the public cloud), a host
    /// (`orders.managedhsm.azure.net`, `orders.vault.usgovcloudapi.net`) or a URL. `key` is the
    /// name of the key, without a version.
    pub fn builder(vault: impl Into<String>, key: impl Into<String>) -> AzureKeyVaultKekBuilder {
        AzureKeyVaultKekBuilder {
            vault: vault.into(),
            key: key.into(),
            algorithm: None,
            former_keys: Vec::new(),
            credential: Credential::default(),
            given: None,
            authority_host: None,
            address: None,
            addresses: Vec::new(),
            ca_file: None,
            key_max_age: None,
            health_check: HealthCheck::default(),
            call_budget: None,
        }
    }
}

impl AzureKeyVaultKekBuilder {
    /// Sets how the key wraps. By default [`Algorithm::A256Gcm`] in a Managed HSM. A vault has no
    /// default: most have RSA keys only, and [`Algorithm::RsaOaep256`] is unauthenticated.
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = Some(algorithm);
        self
    }

    /// Sets the identifiers of earlier keys, without a version, such as
    /// `https://orders.vault.azure.net/keys/cards`, in any vault or Managed HSM of the same cloud.
    /// They still unwrap, and [`rewrap`](waxseal::Envelope::rewrap) moves their DEKs to this key.
    /// By default none, at most 256.
    ///
    /// A former key in a vault wrapped with [`Algorithm::RsaOaep256`]. One in a Managed HSM wrapped
    /// with this key's algorithm if this key is in a Managed HSM too, and otherwise with
    /// [`Algorithm::A256Gcm`]. **As long as a former key wrapped with RSA, this KEK's wrapping is
    /// unauthenticated**, and the envelope requires it to be
    /// [allowed](waxseal::EnvelopeBuilder::allow_unauthenticated_wrapping). Remove the key once
    /// everything is rewrapped.
    pub fn former_keys<S: Into<String>>(mut self, ids: impl IntoIterator<Item = S>) -> Self {
        self.former_keys = ids.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the identity of the provider in Entra ID. By default the environment decides
    /// ([`Credential::Environment`]).
    pub fn credential(mut self, credential: Credential) -> Self {
        self.credential = credential;
        self
    }

    /// Uses your own credential, a `TokenCredential` of the crate `azure_core`, version 1. It takes
    /// precedence over [`credential`](Self::credential). Disable its retries, since
    /// [`CallPolicy`](waxseal::CallPolicy) decides about retries.
    pub fn token_credential(mut self, credential: Arc<dyn TokenCredential>) -> Self {
        self.given = Some(credential);
        self
    }

    /// Sets the source of tokens, such as `https://login.microsoftonline.us`. By default that of
    /// the vault's cloud. In the public cloud the environment variable `AZURE_AUTHORITY_HOST` can
    /// override it. It must be `https`.
    pub fn authority_host(mut self, url: impl Into<String>) -> Self {
        self.authority_host = Some(url.into());
        self
    }

    /// Sets the address of the vault's host, regardless of DNS: for a private endpoint without
    /// private DNS, or a stand-in in tests. The port is that of the vault's URL. The certificate
    /// must still be the host's.
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Sets the [address](Self::address) of another host, such as a former key's vault or the
    /// authority.
    pub fn address_of(mut self, host: impl Into<String>, address: SocketAddr) -> Self {
        self.addresses.push((host.into().to_ascii_lowercase(), address));
        self
    }

    /// Sets a PEM file of certificate authorities that are trusted instead of the system's.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// Sets how long the newest version named by an answer is considered the newest.
    /// [`is_current`](waxseal::kek::KekProvider::is_current) depends on it. It is also the pause
    /// after the service refused to show the key. 1 s to 24 h, by default 5 minutes.
    pub fn key_max_age(mut self, age: Duration) -> Self {
        self.key_max_age = Some(age);
        self
    }

    /// Sets what [`health`](waxseal::kek::KekProvider::health) does. By default
    /// [`HealthCheck::Read`], which does not show whether the caller may use the key.
    pub fn health_check(mut self, check: HealthCheck) -> Self {
        self.health_check = check;
        self
    }

    /// Sets the call budget that all keys of the vault share. Give the same budget to every
    /// provider of that vault. By default each vault has one in this process: 50 calls per second
    /// and 32 in flight, and for a Managed HSM 2,000 and 64. That is a quarter of what the service
    /// allows for all hosts together with RSA-2048 keys in HSMs. **For an RSA-4096 key in an HSM,
    /// the service allows an eighth of that.**
    pub fn call_budget(mut self, budget: CallBudget) -> Self {
        self.call_budget = Some(budget);
        self
    }

    /// Checks the options and builds the provider. It makes no call, so a service starts without
    /// Key Vault.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the option, also outside a tokio runtime and in one
    /// without timers or IO.
    pub fn build(self) -> Result<AzureKeyVaultKek, Error> {
        let spawner = Spawner::current().map_err(|why| invalid(format!("build: {why}")))?;
        let place = Place::read(&self.vault)?;
        if !is_key_name(&self.key) {
            return Err(invalid(
                "key: a name has 1 to 127 letters, digits and hyphens, and no version",
            ));
        }
        let algorithm = match (self.algorithm, place.resource) {
            (Some(algorithm), _) => algorithm,
            (None, Resource::ManagedHsm) => Algorithm::A256Gcm,
            (None, Resource::Vault) => return Err(invalid(NO_ALGORITHM)),
        };
        let former = former_keys(&self.former_keys, &place, &self.key, algorithm)?;
        let key_max_age = self.key_max_age.unwrap_or(DEFAULT_KEY_MAX_AGE);
        if !(Duration::from_secs(1)..=LONGEST_KEY_MAX_AGE).contains(&key_max_age) {
            return Err(invalid(format!("key_max_age: {key_max_age:?}, 1 s to 24 h are allowed")));
        }
        let authority = self.authority_host.as_deref().map(check_authority).transpose()?;
        let own = self.address.map(|address| (place.host.clone(), address));
        let recipe = Recipe {
            ca_file: self.ca_file,
            elsewhere: own.into_iter().chain(self.addresses).collect(),
        };
        let transport = Arc::new(Transport::new(recipe).map_err(invalid)?);
        let source = match self.given {
            Some(given) => Source::Given(given),
            None => Source::Named {
                credential: self.credential,
                authority,
                cloud: place.cloud,
                transport: transport.clone(),
            },
        };
        let (mut scopes, mut keepers): (Vec<String>, Vec<Keeper>) = Default::default();
        let mut key = |place: &Place, name: &str, algorithm| {
            let scope = place.scope();
            let known = scopes.iter().position(|known| *known == scope);
            let keeper = match known.and_then(|known| keepers.get(known)) {
                Some(keeper) => keeper.clone(),
                None => {
                    let keeper = Keeper::new(source.clone());
                    scopes.push(scope);
                    keepers.push(keeper.clone());
                    keeper
                }
            };
            Ok::<_, Error>(Key {
                id: kek_id(place, name)?,
                algorithm,
                service: Service::new(place, name, keeper, transport.clone())?,
                advice: budgets::advice(place, self.call_budget.clone())?,
            })
        };
        let own = key(&place, &self.key, algorithm)?;
        let former = former
            .iter()
            .map(|(place, name, algorithm)| key(place, name, *algorithm))
            .collect::<Result<_, _>>()?;
        Ok(AzureKeyVaultKek(Arc::new(Inner {
            own,
            former,
            keepers,
            spawner,
            key_max_age,
            health_check: self.health_check,
            known: ArcSwapOption::empty(),
            read_from: Mutex::default(),
            reading: Arc::default(),
            vectors: Mutex::default(),
        })))
    }
}

const NO_ALGORITHM: &str = "algorithm: a vault has RSA keys, and wrapping with them is \
                            unauthenticated: use a Managed HSM, or choose rsa-oaep-256 by name";

fn kek_id(place: &Place, name: &str) -> Result<KekId, Error> {
    KekId::new(format!("https://{}/keys/{name}", place.host))
}

/// Locates the former keys, and how they wrapped.
fn former_keys<'n>(
    ids: &'n [String],
    own: &Place,
    own_key: &str,
    algorithm: Algorithm,
) -> Result<Vec<(Place, &'n str, Algorithm)>, Error> {
    if ids.len() > MOST_FORMER_KEYS {
        let given = ids.len();
        let detail = format!("former_keys: {given}, at most {MOST_FORMER_KEYS} are allowed");
        return Err(invalid(detail));
    }
    let mut former: Vec<(Place, &str, Algorithm)> = Vec::new();
    for id in ids {
        let shown = without_user(id).0;
        let shown: String = shown.chars().filter(|c| !c.is_control()).take(200).collect();
        let refused = |why: &str| invalid(format!("former_keys: {shown}: {why}"));
        let (place, name) = key_identifier(id).map_err(refused)?;
        if place.cloud != own.cloud {
            return Err(refused("it is in another cloud, where tokens of this one say nothing"));
        }
        let is_known = place.host == own.host && name == own_key
            || former.iter().any(|(known, of, _)| known.host == place.host && *of == name);
        if is_known {
            return Err(refused("it is named twice"));
        }
        let wrapped_with = place.former_algorithm(algorithm);
        former.push((place, name, wrapped_with));
    }
    Ok(former)
}

impl fmt::Debug for AzureKeyVaultKekBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureKeyVaultKekBuilder")
            .field("vault", &without_user(&self.vault).0)
            .field("key", &self.key)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, detail.into())
}

fn check_authority(url: &str) -> Result<String, Error> {
    let is_good = url.strip_prefix("https://").is_some_and(|host| {
        !host.is_empty() && !host.contains(['@', '?', '#']) && !host.contains(char::is_whitespace)
    });
    match is_good {
        true => Ok(url.to_owned()),
        false => Err(invalid("authority_host: it is an https URL without a user")),
    }
}
