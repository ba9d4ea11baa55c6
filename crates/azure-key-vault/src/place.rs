//! The location of a vault or a Managed HSM, from the name that users give.
#![forbid(unsafe_code)]

use waxseal::{Error, ErrorKind};

use crate::algorithm::Algorithm;
use crate::format::is_key_name;

/// The two kinds of resource that have the same API.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resource {
    Vault,
    ManagedHsm,
}

/// A cloud, by the source of its tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cloud {
    Public,
    China,
    UsGovernment,
}

/// The suffixes of hosts ("Azure Key Vault keys, secrets and certificates overview", "DNS suffixes
/// for base URL").
const SUFFIXES: [(&str, Resource, Cloud); 6] = [
    (".vault.azure.net", Resource::Vault, Cloud::Public),
    (".managedhsm.azure.net", Resource::ManagedHsm, Cloud::Public),
    (".vault.azure.cn", Resource::Vault, Cloud::China),
    (".managedhsm.azure.cn", Resource::ManagedHsm, Cloud::China),
    (".vault.usgovcloudapi.net", Resource::Vault, Cloud::UsGovernment),
    (".managedhsm.usgovcloudapi.net", Resource::ManagedHsm, Cloud::UsGovernment),
];

/// A vault or a Managed HSM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// In lower case, without a port: part of the KEK id.
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    pub(crate) resource: Resource,
    pub(crate) cloud: Cloud,
}

impl Place {
    /// Reads a name (`orders`, of a vault in the public cloud), a host or a URL.
    pub(crate) fn read(text: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Err(Error::new(ErrorKind::InvalidOption, format!("vault: {why}")));
        if text.contains('@') {
            return wrong("it is a name, a host or a URL, without a user");
        }
        let rest = match text.split_once("://") {
            Some(("https", rest)) => rest.strip_suffix('/').unwrap_or(rest),
            Some(_) => return wrong("its URL is an https one"),
            None => text,
        };
        let (name, port) = match rest.split_once(':') {
            Some((name, port)) => match port.parse() {
                Ok(port) if port > 0 => (name, Some(port)),
                _ => return wrong("the text after the colon is not a port"),
            },
            None => (rest, None),
        };
        let mut host = name.to_ascii_lowercase();
        if !host.contains('.') {
            host.push_str(".vault.azure.net");
        }
        let found = SUFFIXES.iter().find_map(|(suffix, resource, cloud)| {
            Some((host.strip_suffix(suffix)?, *resource, *cloud))
        });
        let Some((label, resource, cloud)) = found else {
            return wrong("it ends with no known suffix, such as .vault.azure.net");
        };
        let is_label = (3..=24).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !is_label {
            return wrong("a name has 3 to 24 letters, digits and hyphens");
        }
        Ok(Self { host, port, resource, cloud })
    }

    /// Returns the audience of a token: the host without the vault's own name.
    pub(crate) fn scope(&self) -> String {
        let suffix = self.host.split_once('.').map_or("", |(_, suffix)| suffix);
        format!("https://{suffix}/.default")
    }

    /// Returns how a former key here wrapped, given the algorithm of the current key.
    pub(crate) fn former_algorithm(&self, own: Algorithm) -> Algorithm {
        match self.resource {
            Resource::Vault => Algorithm::RsaOaep256,
            Resource::ManagedHsm => own,
        }
    }

    pub(crate) fn url(&self) -> String {
        match self.port {
            Some(port) => format!("https://{}:{port}/", self.host),
            None => format!("https://{}/", self.host),
        }
    }
}

/// Reads a key identifier without a version, `https://HOST/keys/NAME`, as the portal shows it.
pub(crate) fn key_identifier(text: &str) -> Result<(Place, &str), &'static str> {
    let rest = text.strip_prefix("https://").ok_or("it is not https://HOST/keys/NAME")?;
    let mut parts = rest.split('/');
    let (Some(host), Some("keys"), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("it is not https://HOST/keys/NAME");
    };
    if parts.next().is_some() {
        return Err("it names a version; name the key");
    }
    if !is_key_name(name) {
        return Err("the name of a key has 1 to 127 letters, digits and hyphens");
    }
    let place = Place::read(host).map_err(|_| "its host is not a vault or Managed HSM")?;
    Ok((place, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_identifier_names_a_key_and_no_version() {
        let (place, name) = key_identifier("https://Orders.vault.azure.net/keys/cards").unwrap();
        assert_eq!((&*place.host, name), ("orders.vault.azure.net", "cards"));
        let (place, _) = key_identifier("https://orders.managedhsm.azure.net:8443/keys/a").unwrap();
        assert_eq!((place.port, place.resource), (Some(8443), Resource::ManagedHsm));
        for text in [
            "",
            "orders/cards",
            "http://orders.vault.azure.net/keys/cards",
            "https://orders.vault.azure.net/keys",
            "https://orders.vault.azure.net/keys/",
            "https://orders.vault.azure.net/secrets/cards",
            "https://orders.vault.azure.net/keys/cards/",
            "https://orders.vault.azure.net/keys/cards/0123456789abcdef0123456789abcdef",
            "https://orders.vault.azure.net/keys/ca_rds",
            "https://orders.vault.azure.net/keys/cards?x",
            "https://user:hunter2@orders.vault.azure.net/keys/cards",
            "https://orders.example.com/keys/cards",
        ] {
            let why = key_identifier(text).unwrap_err();
            assert!(!why.contains("hunter2"), "{text}: {why}");
        }
    }

    #[test]
    fn a_name_a_host_and_a_url_mean_the_same_vault() {
        for text in [
            "orders",
            "Orders",
            "orders.vault.azure.net",
            "https://orders.vault.azure.net",
            "https://ORDERS.vault.azure.net/",
        ] {
            let place = Place::read(text).unwrap();
            assert_eq!(place.host, "orders.vault.azure.net", "{text}");
            assert_eq!((place.resource, place.cloud), (Resource::Vault, Cloud::Public));
            assert_eq!(place.url(), "https://orders.vault.azure.net/");
        }
        assert_eq!(
            Place::read("orders:8443").unwrap().url(),
            "https://orders.vault.azure.net:8443/"
        );
    }

    #[test]
    fn every_cloud_has_its_hosts() {
        for (suffix, resource, cloud) in SUFFIXES {
            let place = Place::read(&format!("orders{suffix}")).unwrap();
            assert_eq!((place.resource, place.cloud), (resource, cloud), "{suffix}");
        }
    }

    #[test]
    fn what_is_no_vault_is_refused_and_no_secret_is_repeated() {
        for text in [
            "",
            "or",
            "orders.example.com",
            "orders.vault.azure.net.example.com",
            "evil.example/.vault.azure.net",
            "a.b.vault.azure.net",
            "http://orders.vault.azure.net",
            "https://user:hunter2@orders.vault.azure.net",
            "orders:0",
            "orders:hunter2",
            "orders.vault.azure.net/keys/x",
            "a-name-that-is-much-too-long",
            "ord ers",
            "ordérs",
        ] {
            let error = Place::read(text).unwrap_err().to_string();
            assert!(error.contains("vault: ") && !error.contains("hunter2"), "{text}: {error}");
        }
    }
}
