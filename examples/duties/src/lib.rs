//! The policies of every domain and service that two files name.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::Deserialize;
use waxseal::Error;
use waxseal::domain::DomainConfig;
use waxseal::domain::duties::{Duties, Holders, Role};
use waxseal_aws_kms::duties::AwsPolicies;
use waxseal_azure_key_vault::duties::AzureRoles;
use waxseal_google_kms::duties::GooglePolicies;
use waxseal_sqlx::duties::PostgresGrants;
use waxseal_vault_transit::duties::VaultPolicies;

/// The part of a domain file that says which KEKs and contexts a domain has.
#[derive(Deserialize)]
struct DomainFile {
    domains: BTreeMap<String, DomainConfig>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Services {
    aws_kms: Option<Holders>,
    aws_kms_options: AwsOptions,
    vault_transit: Option<Holders>,
    google_kms: Option<Holders>,
    google_kms_options: GoogleOptions,
    azure_key_vault: Option<Holders>,
    azure_key_vault_options: AzureOptions,
    postgres: Option<Holders>,
    postgres_options: PostgresOptions,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AwsOptions {
    vpc_endpoints: Vec<String>,
    waiting_period_days: u8,
    imported_material: bool,
    break_glass_mfa: bool,
    root_recovery: bool,
}

impl Default for AwsOptions {
    fn default() -> Self {
        Self {
            vpc_endpoints: Vec::new(),
            waiting_period_days: 30,
            imported_material: false,
            break_glass_mfa: false,
            root_recovery: true,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct GoogleOptions {
    rewrappers_see_deks: bool,
    /// Without it there is no document that enables break-glass.
    break_glass_until: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct AzureOptions {
    vault_resources: Vec<String>,
    rewrappers_see_deks: bool,
    key_readers_can_wrap: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PostgresOptions {
    schema: String,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { schema: "public".to_owned() }
    }
}

/// A policy or a script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// Domain, service and what it is, such as `orders aws-kms reader`. Each is there once.
    pub name: String,
    /// The text.
    pub text: String,
}

/// Why there are no documents.
#[derive(Debug)]
pub struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Writes every document of the domains in `domains` for those who have roles in `duties`, both of
/// them the text of a TOML file.
///
/// # Errors
/// What is wrong in one of the files, by domain and service.
pub fn documents(domains: &str, duties: &str) -> Result<Vec<Document>, Refused> {
    let in_file = |error: toml::de::Error| Refused(error.to_string());
    let file: DomainFile = toml::from_str(domains).map_err(in_file)?;
    let duties: BTreeMap<String, Services> = toml::from_str(duties).map_err(in_file)?;
    let (mut documents, mut keys) = (Vec::new(), BTreeMap::new());
    for (domain, services) in &duties {
        let config = file.domains.get(domain);
        let config = config.ok_or_else(|| Refused(format!("there is no domain {domain:?}")))?;
        let of = |service: &str, holders: &Holders| {
            Duties::new(domain, config, holders).map_err(|error| wrong(domain, service, &error))
        };
        let mut add = |service: &str, what: &str, text: String| {
            documents.push(Document { name: format!("{domain} {service} {what}"), text });
        };
        if let Some(holders) = &services.aws_kms {
            let policies = of_aws(&of("aws-kms", holders)?, &services.aws_kms_options)
                .map_err(|error| wrong(domain, "aws-kms", &error))?;
            for key in policies.keys() {
                // The policy of a key is about one domain.
                if let Some(other) = keys.insert(key.to_owned(), domain.clone()) {
                    return Err(Refused(format!("{other} and {domain} share the key {key}")));
                }
                let policy = policies.key_policy(key);
                let policy = policy.map_err(|error| wrong(domain, "aws-kms", &error))?;
                add("aws-kms", &format!("key-policy {key}"), policy);
            }
            for role in holders.of(Role::BreakGlass) {
                // Its tag has one value, and each domain's guard lets its own owners alone set it.
                let other = keys.insert(role.clone(), domain.clone());
                if let Some(other) = other.filter(|other| other != domain) {
                    return Err(Refused(format!("{other} and {domain} share the role {role}")));
                }
            }
            for role in Role::ALL.into_iter().filter(|role| !holders.of(*role).is_empty()) {
                add("aws-kms", role.as_str(), policies.identity_policy(role));
            }
            add("aws-kms", "service-control-policy", policies.service_control_policy());
            if let Some(pattern) = policies.break_glass_event_pattern() {
                add("aws-kms", &format!("alarm {}", policies.break_glass_alarm()), pattern);
            }
        }
        if let Some(holders) = &services.vault_transit {
            let in_vault = |error: Error| wrong(domain, "vault-transit", &error);
            let holding = of("vault-transit", holders)?;
            let policies = VaultPolicies::builder(&holding).build().map_err(in_vault)?;
            let cluster = policies.cluster();
            // A policy has the rules of one domain: the next one would replace them. And it cannot
            // distinguish the contexts of two domains under one key.
            let names = policies.names().map(|name| format!("policy {name:?} of {cluster}"));
            let under =
                policies.keys().map(|(mount, key)| format!("key {mount}/{key} of {cluster}"));
            for claim in names.chain(under) {
                if let Some(other) = keys.insert(claim.clone(), domain.clone()) {
                    return Err(Refused(format!("{other} and {domain} share the {claim}")));
                }
            }
            of_vault(&holding, &policies, &mut add).map_err(in_vault)?;
        }
        if let Some(holders) = &services.google_kms {
            let names =
                of_google(&of("google-kms", holders)?, &services.google_kms_options, &mut add)
                    .map_err(|error| wrong(domain, "google-kms", &error))?;
            claim(&mut keys, domain, names)?;
        }
        if let Some(holders) = &services.azure_key_vault {
            let names = of_azure(
                &of("azure-key-vault", holders)?,
                &services.azure_key_vault_options,
                &mut add,
            )
            .map_err(|error| wrong(domain, "azure-key-vault", &error))?;
            claim(&mut keys, domain, names)?;
        }
        if let Some(holders) = &services.postgres {
            let schema = &services.postgres_options.schema;
            of_postgres(&of("postgres", holders)?, schema, &mut add)
                .map_err(|error| wrong(domain, "postgres", &error))?;
        }
    }
    Ok(documents)
}

/// Each key is of one domain: no policy can distinguish the contexts of two domains.
fn claim(
    keys: &mut BTreeMap<String, String>,
    domain: &str,
    names: Vec<String>,
) -> Result<(), Refused> {
    for name in names {
        if let Some(other) = keys.insert(name.clone(), domain.to_owned()) {
            return Err(Refused(format!("{other} and {domain} share the key {name}")));
        }
    }
    Ok(())
}

fn of_google(
    duties: &Duties,
    options: &GoogleOptions,
    add: &mut impl FnMut(&str, &str, String),
) -> Result<Vec<String>, Error> {
    let policies = GooglePolicies::builder(duties);
    let policies = policies.rewrappers_see_deks(options.rewrappers_see_deks).build()?;
    let names: Vec<_> = policies.keys().map(str::to_owned).collect();
    for key in &names {
        add("google-kms", &format!("key-policy {key}"), policies.key_policy(key)?);
        if let Some(until) = &options.break_glass_until {
            let enabled = policies.enabled_break_glass(key, until)?;
            add("google-kms", &format!("break-glass enabled {key}"), enabled);
        }
    }
    for role in Role::ALL {
        if let (Some(id), Some(text)) = (policies.role_id(role), policies.role_definition(role)) {
            add("google-kms", &format!("role {id}"), text);
        }
    }
    Ok(names)
}

fn of_azure(
    duties: &Duties,
    options: &AzureOptions,
    add: &mut impl FnMut(&str, &str, String),
) -> Result<Vec<String>, Error> {
    let mut roles = AzureRoles::builder(duties)
        .rewrappers_see_deks(options.rewrappers_see_deks)
        .key_readers_can_wrap(options.key_readers_can_wrap);
    for id in &options.vault_resources {
        roles = roles.vault_resource(id);
    }
    let roles = roles.build()?;
    for host in roles.hosts() {
        for role in Role::ALL.into_iter().filter(|role| !duties.holders(*role).is_empty()) {
            add("azure-key-vault", &format!("{role} {host}"), roles.role_definition(host, role)?);
        }
    }
    let names: Vec<_> = roles.keys().collect();
    for key in &names {
        add("azure-key-vault", &format!("assignments {key}"), roles.assignments(key)?);
        if !duties.holders(Role::BreakGlass).is_empty() {
            let enabled = roles.enabled_break_glass(key)?;
            add("azure-key-vault", &format!("break-glass enabled {key}"), enabled);
        }
    }
    Ok(names)
}

fn of_aws(duties: &Duties, options: &AwsOptions) -> Result<AwsPolicies, Error> {
    AwsPolicies::builder(duties)
        .vpc_endpoints(options.vpc_endpoints.iter().cloned())
        .waiting_period_days(options.waiting_period_days)
        .imported_material(options.imported_material)
        .break_glass_mfa(options.break_glass_mfa)
        .root_recovery(options.root_recovery)
        .build()
}

fn of_vault(
    duties: &Duties,
    policies: &VaultPolicies,
    add: &mut impl FnMut(&str, &str, String),
) -> Result<(), Error> {
    for name in policies.names() {
        add("vault-transit", name, policies.policy(name)?);
    }
    for name in duties.holders(Role::BreakGlass) {
        add("vault-transit", &format!("{name} enabled"), policies.enabled_break_glass(name)?);
    }
    Ok(())
}

fn of_postgres(
    duties: &Duties,
    schema: &str,
    add: &mut impl FnMut(&str, &str, String),
) -> Result<(), Error> {
    let grants = PostgresGrants::new(duties, schema)?;
    add("postgres", "everybody", grants.of_everybody());
    for name in grants.names() {
        add("postgres", name, grants.of(name)?);
    }
    for name in duties.holders(Role::BreakGlass) {
        add("postgres", &format!("{name} enabled"), grants.enabled_break_glass(name)?);
    }
    Ok(())
}

fn wrong(domain: &str, service: &str, error: &Error) -> Refused {
    Refused(format!("{domain}.{service}: {error}"))
}
