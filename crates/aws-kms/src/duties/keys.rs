//! The KEKs of a domain that are keys of AWS KMS.
#![forbid(unsafe_code)]

use waxseal::Error;
use waxseal::domain::duties::Duties;

use super::principal::invalid;
use crate::config::Config;
use crate::format::KeyArn;
use crate::health_check::HealthCheck;

/// A key, and whether the domain wraps with it or only unwraps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DomainKey {
    pub(super) arn: String,
    pub(super) account: String,
    pub(super) partition: String,
    pub(super) wraps: bool,
}

/// Reads the keys out of the domain's URIs. KEKs of other services are left out.
pub(super) fn of_domain(duties: &Duties) -> Result<Vec<DomainKey>, Error> {
    let uris = duties.wrapping_keks().map(|uri| (uri, true));
    let uris = uris.chain(duties.unwrapping_keks().map(|uri| (uri, false)));
    let mut keys: Vec<DomainKey> = Vec::new();
    let mut add = |arn: &str, wraps: bool| {
        let read = KeyArn::read(arn).ok_or_else(|| {
            invalid(
                "a KEK of the domain is named by an id or an alias, which may come to mean another \
                 key: name it by its ARN",
            )
        })?;
        match keys.iter_mut().find(|key| key.arn == arn) {
            Some(key) => key.wraps |= wraps,
            None => keys.push(DomainKey {
                arn: arn.to_owned(),
                account: read.account.to_owned(),
                partition: read.partition.to_owned(),
                wraps,
            }),
        }
        Ok::<_, Error>(())
    };
    for (uri, wraps) in uris {
        let is_ours = uri.split(':').next().is_some_and(|it| it.eq_ignore_ascii_case("aws-kms"));
        if !is_ours {
            continue;
        }
        let config: Config = uri.parse()?;
        let key = config.key().ok_or_else(|| {
            invalid("a KEK of the domain is one by discovery, which names no key: name its keys")
        })?;
        if config.checks_by_use() {
            let only = HealthCheck::Describe.as_str();
            return Err(invalid(format!(
                "health-check: the context of such a check has no pair `waxseal:domain`, so a key \
                 policy that demands it would refuse the check: use `{only}`"
            )));
        }
        add(key, wraps)?;
        for former in config.earlier_keys() {
            add(former, false)?;
        }
    }
    if keys.is_empty() {
        return Err(invalid("the domain has no KEK in AWS KMS"));
    }
    Ok(keys)
}
