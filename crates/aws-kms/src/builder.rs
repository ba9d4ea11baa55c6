//! Builds an [`AwsKmsKek`]: its options, and the checks before KMS is called.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::answers::Description;
use crate::client::{Client, Overrides, Service, Source};
use crate::errors::Failure;
use crate::format::{KeyArn, is_alias_arn};
use crate::grant_tokens::check_grant_tokens;
use crate::health_check::HealthCheck;
use crate::keys::{Discovery, Keys, Own, Settled};
use crate::provider::{AwsKmsKek, Inner};
use crate::sdk::SdkConfig;
use crate::transport;
use crate::xks::Stores;
use waxseal::CallBudget;
use waxseal::EncryptionContext;
use waxseal::KekId;
use waxseal::kek::KekError;
use waxseal::kek::toolkit::Spawner;
use waxseal::kek::toolkit::uri::without_user;
use waxseal::{Error, ErrorKind};

const DEFAULT_KEY_MAX_AGE: Duration = Duration::from_secs(300);
const LONGEST_KEY_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// For `DescribeKey` at build, which no envelope's policy limits yet.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Configures an [`AwsKmsKek`]. Only the key is required. Credentials, Region and endpoint come
/// from the AWS SDK's default sources, including its environment variables, so there is no
/// `from_env`.
#[must_use = "nothing happens until `build`"]
pub struct AwsKmsKekBuilder {
    what: What,
    source: Source,
    overrides: Overrides,
    related_keys: bool,
    former_keys: Vec<String>,
    regions: Vec<String>,
    grant_tokens: Vec<String>,
    key_max_age: Option<Duration>,
    health_check: HealthCheck,
    health_context: EncryptionContext,
    external_former_keys: Vec<(String, String)>,
    external_key_store: Option<String>,
    external_key_store_budget: Option<CallBudget>,
}

enum What {
    Key(String),
    Discovery { partition: String, accounts: Vec<String> },
}

impl AwsKmsKek {
    /// Starts the configuration for a key: its ARN, its id, or an alias (`alias/NAME`, or its ARN).
    ///
    /// **An alias is looked up at build, and again when KMS refuses the key that it named**
    /// (disabled, deleted, no permission). Messages carry the ARN of the key. If an alias is
    /// changed while the earlier key still works, the change takes effect when the provider is
    /// built again. Keys that it has named since the provider was built still unwrap. Earlier ones
    /// have to be [`former_keys`](AwsKmsKekBuilder::former_keys).
    pub fn builder(key: impl Into<String>) -> AwsKmsKekBuilder {
        AwsKmsKekBuilder::key(key.into())
    }

    /// Starts the configuration for reading by the key that a message names, as long as it is in
    /// one of these accounts of this partition (`aws`, `aws-cn`, `aws-us-gov`) and in a configured
    /// Region. It cannot wrap: only [`unwrap_with`](waxseal::EnvelopeBuilder::unwrap_with) accepts
    /// it.
    ///
    /// **Anyone who can write messages chooses among all those keys.** Name the keys if you can.
    pub fn discover<S: Into<String>>(
        partition: impl Into<String>,
        accounts: impl IntoIterator<Item = S>,
    ) -> AwsKmsKekBuilder {
        AwsKmsKekBuilder::discovery(
            partition.into(),
            accounts.into_iter().map(Into::into).collect(),
        )
    }
}

impl AwsKmsKekBuilder {
    fn new(what: What) -> Self {
        Self {
            what,
            source: Source::Defaults,
            overrides: Overrides::default(),
            related_keys: false,
            former_keys: Vec::new(),
            regions: Vec::new(),
            grant_tokens: Vec::new(),
            key_max_age: None,
            health_check: HealthCheck::default(),
            health_context: EncryptionContext::default(),
            external_former_keys: Vec::new(),
            external_key_store: None,
            external_key_store_budget: None,
        }
    }

    pub(crate) fn key(key: String) -> Self {
        Self::new(What::Key(key))
    }

    pub(crate) fn discovery(partition: String, accounts: Vec<String>) -> Self {
        Self::new(What::Discovery { partition, accounts })
    }

    /// Uses your own client, with its credentials, HTTP client, interceptors and timeouts. It is
    /// the `Client` of the crate `aws-sdk-kms`, version 1.
    ///
    /// Its retries are disabled, because [`CallPolicy`](waxseal::CallPolicy) decides about retries.
    /// So is its identity cache: the provider keeps credentials until shortly before they expire
    /// (15 minutes if they have no expiry), renews them ahead of time, and loads them again when
    /// KMS refuses them.
    pub fn client(mut self, client: Client) -> Self {
        self.source = Source::Client(client);
        self
    }

    /// Uses your own AWS configuration, from the crate `aws-config`, version 1. If both this and
    /// [`client`](Self::client) are set, the last one counts.
    pub fn sdk_config(mut self, config: &SdkConfig) -> Self {
        self.source = Source::SdkConfig(Box::new(config.clone()));
        self
    }

    /// Sets the Region to call. By default it is the one in the key's ARN, or else that of the AWS
    /// configuration.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.overrides.region = Some(region.into());
        self
    }

    /// Sets another endpoint, such as that of a VPC. It must be `https`, except on this machine.
    /// The same applies to an endpoint from the AWS configuration or the environment.
    ///
    /// Most services need none: the Region, [`fips`](Self::fips) and
    /// [`dual_stack`](Self::dual_stack) determine it, and private DNS resolves its usual name to a
    /// VPC endpoint. Set it for a VPC endpoint without private DNS, and for a stand-in in tests. It
    /// applies to every Region that is called, so it is not suitable for discovery in several
    /// Regions.
    pub fn endpoint_url(mut self, url: impl Into<String>) -> Self {
        self.overrides.endpoint_url = Some(url.into());
        self
    }

    /// Sets whether to call the FIPS endpoint. By default the AWS configuration decides.
    pub fn fips(mut self, fips: bool) -> Self {
        self.overrides.fips = Some(fips);
        self
    }

    /// Sets whether to call the dual-stack endpoint, with IPv4 and IPv6. By default the AWS
    /// configuration decides.
    pub fn dual_stack(mut self, dual_stack: bool) -> Self {
        self.overrides.dual_stack = Some(dual_stack);
        self
    }

    /// Also unwraps keys that related multi-Region keys wrapped in other Regions. This key unwraps
    /// them in this Region. With discovery, the related key in the configured Region does. By
    /// default off.
    pub fn related_keys(mut self, related_keys: bool) -> Self {
        self.related_keys = related_keys;
        self
    }

    /// Sets the ARNs of earlier keys in the same Region. They still unwrap, and
    /// [`rewrap`](waxseal::Envelope::rewrap) moves their DEKs to this key within KMS. By default
    /// none.
    pub fn former_keys<S: Into<String>>(mut self, arns: impl IntoIterator<Item = S>) -> Self {
        self.former_keys = arns.into_iter().map(Into::into).collect();
        self
    }

    /// Adds [former keys](Self::former_keys) that are in an external key store. They are called
    /// within that store's budget. Not needed if `DescribeKey` is allowed for them, since it is
    /// called after the first use of a former key.
    pub fn external_former_keys<S: Into<String>>(
        mut self,
        store: impl Into<String>,
        arns: impl IntoIterator<Item = S>,
    ) -> Self {
        let store = store.into();
        self.external_former_keys.extend(arns.into_iter().map(|arn| (store.clone(), arn.into())));
        self
    }

    /// Sets what [`health`](waxseal::kek::KekProvider::health) does. By default
    /// [`HealthCheck::Describe`], which does not show whether the caller may use the key.
    pub fn health_check(mut self, check: HealthCheck) -> Self {
        self.health_check = check;
        self
    }

    /// Sets the encryption context of a [health check](Self::health_check) that uses the key, if a
    /// policy requires one. By default empty.
    pub fn health_context(mut self, context: EncryptionContext) -> Self {
        self.health_context = context;
        self
    }

    /// Sets the Regions whose keys discovery uses. By default the configured one.
    pub fn regions<S: Into<String>>(mut self, regions: impl IntoIterator<Item = S>) -> Self {
        self.regions = regions.into_iter().map(Into::into).collect();
        self
    }

    /// Sets grant tokens for every call, at most 10. KMS takes minutes to apply a new grant
    /// everywhere; a call that carries its token may use it at once.
    /// [`AwsKmsKek::set_grant_tokens`] changes them later.
    pub fn grant_tokens<S: Into<String>>(mut self, tokens: impl IntoIterator<Item = S>) -> Self {
        self.grant_tokens = tokens.into_iter().map(Into::into).collect();
        self
    }

    /// Sets how long the answer of `DescribeKey`, which names the current key material, is used.
    /// After that, a wrap calls it again in the background. It is also the pause after a denial. 1
    /// s to 24 h, by default 5 minutes.
    pub fn key_max_age(mut self, age: Duration) -> Self {
        self.key_max_age = Some(age);
        self
    }

    /// Names the external key store (XKS) that holds the key, such as `cks-1234567890abcdef0`, so
    /// that even the first call has the store's timeouts and budget.
    ///
    /// Not needed if `DescribeKey` is allowed, because the provider learns it from the first
    /// answer. Build refuses options that such a key does not support: a multi-Region key, and
    /// `key_max_age`, since KMS has no key material for it. If the key is elsewhere, `health` and
    /// [`AwsKmsKek::read_key`] return *misconfigured*.
    pub fn external_key_store(mut self, id: impl Into<String>) -> Self {
        self.external_key_store = Some(id.into());
        self
    }

    /// Sets the call budget that all keys of the external key store share. Give the same budget to
    /// every provider of that store. By default 450 calls per second and 64 in flight for each
    /// store in this process. That is a quarter of a store's default quota for all hosts together.
    pub fn external_key_store_budget(mut self, budget: CallBudget) -> Self {
        self.external_key_store_budget = Some(budget);
        self
    }

    /// Checks the options and builds the provider. Only a key that is not named by its ARN needs a
    /// call to KMS (`DescribeKey`), so a service that names the ARN starts without KMS.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the option, also outside a tokio runtime and in one
    /// without timers or IO. For a key that has to be looked up, those of KMS.
    pub async fn build(self) -> Result<AwsKmsKek, Error> {
        let spawner = Spawner::current().map_err(|why| invalid(format!("build: {why}")))?;
        let key_max_age = self.key_max_age.unwrap_or(DEFAULT_KEY_MAX_AGE);
        if !(Duration::from_secs(1)..=LONGEST_KEY_MAX_AGE).contains(&key_max_age) {
            return Err(invalid(format!("key_max_age: {key_max_age:?}, 1 s to 24 h are allowed")));
        }
        if let Some(store) = &self.external_key_store {
            check_store("external_key_store", store)?;
        }
        check_grant_tokens(&self.grant_tokens)?;
        let mut overrides = self.overrides;
        check_endpoint(&overrides)?;
        if let Some(region) = &overrides.region {
            check_region("region", region)?;
        }
        let (what, asked_for) = match self.what {
            What::Key(key) => {
                check_key(&key)?;
                let asked_for = match KeyArn::read(&key) {
                    Some(_) => None,
                    None => Some(key.clone()),
                };
                // An alias may also be given by its ARN.
                if let Some(region) = region_of(&key) {
                    if let Some(other) = overrides.region.as_deref().filter(|it| *it != region) {
                        let detail = format!("region: it is {other}, but {key} is in {region}");
                        return Err(invalid(detail));
                    }
                    check_region("key", region)?;
                    overrides.region = Some(region.to_owned());
                }
                if !self.regions.is_empty() {
                    return Err(invalid("regions: only with discovery".to_owned()));
                }
                (What::Key(key), asked_for)
            }
            What::Discovery { partition, accounts } => {
                if self.external_key_store.is_some() || self.external_key_store_budget.is_some() {
                    return Err(invalid("external_key_store: not with discovery".to_owned()));
                }
                if !self.external_former_keys.is_empty() {
                    return Err(invalid("external_former_keys: not with discovery".to_owned()));
                }
                if !self.former_keys.is_empty() {
                    return Err(invalid("former_keys: not with discovery".to_owned()));
                }
                check_discovery(&partition, &accounts, &self.regions)?;
                (What::Discovery { partition, accounts }, None)
            }
        };
        let service = Service::new(self.source, overrides).await?;
        let described = match &asked_for {
            Some(key) => Some(resolve(&service, key, &self.grant_tokens).await?),
            None => None,
        };
        let stores = Stores::new(self.external_key_store.clone(), self.external_key_store_budget);
        let keys = match what {
            What::Key(key) => {
                let id = described.as_ref().map_or(key, |described| described.arn.clone());
                let alias = asked_for.filter(|name| is_alias(name));
                let mut former = former_keys("former_keys", &id, self.former_keys)?;
                {
                    let found = described.map(|described| described.external_key_store);
                    let options = OptionsOfStandardKeys {
                        related_keys: self.related_keys,
                        key_max_age: self.key_max_age,
                    };
                    if let Some(store) = store_of(&id, self.external_key_store, found, options)? {
                        stores.learn(&id, Some(&store))?;
                    }
                    for (store, arn) in self.external_former_keys {
                        check_store("external_former_keys", &store)?;
                        stores.learn(&arn, Some(&store))?;
                        former.extend(former_keys("external_former_keys", &id, vec![arn])?);
                    }
                }
                let related = check_related(&id, self.related_keys)?;
                Keys::One(Own::new(KekId::new(id)?, alias, related, former))
            }
            What::Discovery { partition, accounts } => {
                let id = KekId::new(Discovery::id_for(&partition, &accounts))?;
                let mut regions = self.regions;
                if regions.is_empty() {
                    regions.push(service.region().to_owned());
                }
                Keys::Discovered(Discovery {
                    id,
                    partition,
                    accounts,
                    regions,
                    related: self.related_keys,
                })
            }
        };
        Ok(AwsKmsKek(Arc::new(Inner {
            keys,
            service,
            spawner,
            grant_tokens: ArcSwap::from_pointee(self.grant_tokens),
            key_max_age,
            health_check: self.health_check,
            health_context: self.health_context,
            stores,
            settled: Settled::default(),
            first: async_lock::Mutex::new(()),
            asking_in_background: Arc::default(),
            follow_from: async_lock::Mutex::new(None),
        })))
    }
}

/// The options that only keys with material in KMS support.
struct OptionsOfStandardKeys {
    related_keys: bool,
    key_max_age: Option<Duration>,
}

fn check_store(option: &str, store: &str) -> Result<(), Error> {
    let rest = store.strip_prefix("cks-").unwrap_or_default();
    if (1..=60).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(invalid(format!(
        "{option}: {store:?} is not the id of a custom key store, such as cks-1234567890abcdef0"
    )))
}

/// Returns the external key store that the user named, or KMS reported, if the key may be in one.
fn store_of(
    key_arn: &str,
    named: Option<String>,
    described: Option<Option<String>>,
    options: OptionsOfStandardKeys,
) -> Result<Option<String>, Error> {
    let store = match (named, described) {
        (Some(named), Some(found)) if found.as_ref() != Some(&named) => {
            let found = found.as_deref().unwrap_or("no external key store");
            return Err(invalid(format!(
                "external_key_store: {key_arn} is in {found}, not in {named}"
            )));
        }
        (Some(store), _) | (None, Some(Some(store))) => store,
        (None, _) => return Ok(None),
    };
    if options.related_keys || KeyArn::read(key_arn).is_some_and(|arn| arn.is_multi_region()) {
        return Err(invalid(
            "external_key_store: a key there cannot be a multi-Region key".to_owned(),
        ));
    }
    if options.key_max_age.is_some() {
        let detail = "key_max_age: KMS knows of no key material of a key in an external key store; its rotation is not seen";
        return Err(invalid(detail.to_owned()));
    }
    Ok(Some(store))
}

/// A DEK crosses the network in both directions.
fn check_endpoint(overrides: &Overrides) -> Result<(), Error> {
    let Some(url) = &overrides.endpoint_url else { return Ok(()) };
    if overrides.fips == Some(true) || overrides.dual_stack == Some(true) {
        return Err(invalid(
            "endpoint_url: contradicts fips and dual_stack, which choose another endpoint"
                .to_owned(),
        ));
    }
    if !transport::is_private(url) {
        let detail = "endpoint_url: not an https URL, nor an http URL of this machine";
        return Err(invalid(format!("{detail}, such as https://HOST or http://127.0.0.1:PORT")));
    }
    Ok(())
}

/// A wrong ARN would be looked up as if it were an id, and denied.
fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Err(invalid("key: it is empty".to_owned()));
    }
    if key.starts_with("arn:") && KeyArn::read(key).is_none() && !is_alias_arn(key) {
        let form = "arn:aws:kms:REGION:ACCOUNT:key/ID, or alias/NAME in place of key/ID";
        return Err(invalid(format!(
            "key: {key:?} does not have the form {form}; ACCOUNT has 12 digits"
        )));
    }
    Ok(())
}

fn check_region(option: &str, region: &str) -> Result<(), Error> {
    let is_name = (1..=64).contains(&region.len())
        && region
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if is_name { Ok(()) } else { Err(invalid(format!("{option}: {region:?} is not a Region"))) }
}

fn check_discovery(partition: &str, accounts: &[String], regions: &[String]) -> Result<(), Error> {
    let is_account =
        |account: &String| account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    if accounts.is_empty() || !accounts.iter().all(is_account) {
        return Err(invalid("discovery: name at least one account, of 12 digits".to_owned()));
    }
    let is_partition = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    if !partition.starts_with("aws") || !partition.bytes().all(is_partition) {
        return Err(invalid("discovery: name the partition, such as \"aws\"".to_owned()));
    }
    regions.iter().try_for_each(|region| check_region("regions", region))
}

/// Returns the Region in the ARN of a key or of an alias.
fn region_of(key: &str) -> Option<&str> {
    if !key.starts_with("arn:") {
        return None;
    }
    key.split(':').nth(3)
}

/// Whether it is `alias/NAME` or its ARN, which may name another key later.
fn is_alias(key: &str) -> bool {
    key.starts_with("alias/")
        || key.split(':').nth(5).is_some_and(|resource| resource.starts_with("alias/"))
}

/// Returns the key that an id or alias names now.
async fn resolve(
    service: &Service,
    key: &str,
    grant_tokens: &[String],
) -> Result<Description, Error> {
    let found = tokio::time::timeout(
        RESOLVE_TIMEOUT,
        service.describe(service.region(), key, grant_tokens),
    )
    .await;
    let late =
        || KekError::unavailable(format!("DescribeKey: no answer within {RESOLVE_TIMEOUT:?}"));
    let found = found.map_err(|_| late())?.map_err(KekError::from)?;
    match KeyArn::read(&found.arn) {
        Some(_) => Ok(found),
        None => Err(KekError::from(Failure::not_understood("DescribeKey")).into()),
    }
}

fn check_related(id: &str, related: bool) -> Result<bool, Error> {
    match KeyArn::read(id) {
        Some(arn) if related && !arn.is_multi_region() => {
            Err(invalid(format!("related_keys: {id} is not a multi-Region key")))
        }
        _ => Ok(related),
    }
}

fn former_keys(option: &str, id: &str, arns: Vec<String>) -> Result<Vec<KekId>, Error> {
    let own = KeyArn::read(id);
    let mut former = Vec::with_capacity(arns.len());
    for arn in arns {
        match (KeyArn::read(&arn), own) {
            (Some(key), Some(own)) if key.region == own.region && arn != id => {
                former.push(KekId::new(&arn)?)
            }
            _ => {
                return Err(invalid(format!(
                    "{option}: {arn:?} is not the ARN of another key in the same Region"
                )));
            }
        }
    }
    Ok(former)
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOption, detail)
}

/// Shows no grant token, and no password in the endpoint.
impl fmt::Debug for AwsKmsKekBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("AwsKmsKekBuilder");
        match &self.what {
            What::Key(key) => debug.field("key", key),
            What::Discovery { partition, accounts } => {
                debug.field("partition", partition).field("accounts", accounts)
            }
        };
        let Overrides { region, endpoint_url, fips, dual_stack } = &self.overrides;
        debug
            .field("region", region)
            .field("endpoint_url", &endpoint_url.as_deref().map(|url| without_user(url).0))
            .field("fips", fips)
            .field("dual_stack", dual_stack)
            .field("related_keys", &self.related_keys)
            .field("former_keys", &self.former_keys)
            .field("regions", &self.regions)
            .field("key_max_age", &self.key_max_age)
            .field("health_check", &self.health_check)
            .field("health_context", &self.health_context)
            .field("external_key_store", &self.external_key_store)
            .field("external_former_keys", &self.external_former_keys)
            .finish_non_exhaustive()
    }
}
