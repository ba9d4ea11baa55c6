//! Domains over scripted KEKs and stores, which a test finds by the names in their URIs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use waxseal::domain::{Domain, DomainConfig, Domains, DomainsBuilder, Schemes};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::scripted::ScriptedStore;
use waxseal::{Aad, EncryptionContext, Error, ManualClock};
use waxseal_testing::support::block_on;

pub(crate) use waxseal_testing::support::stage::kind;

/// The KEKs `kek:NAME` and the stores `store:NAME` of one world.
#[derive(Clone, Default)]
pub(crate) struct World {
    keks: Arc<Mutex<HashMap<String, ScriptedKek>>>,
    stores: Arc<Mutex<HashMap<String, ScriptedStore>>>,
    pub(crate) made_stores: Arc<Mutex<Vec<String>>>,
    pub(crate) clock: ManualClock,
}

impl World {
    pub(crate) fn kek(&self, name: &str) -> ScriptedKek {
        let mut keks = self.keks.lock().unwrap();
        keks.entry(name.to_owned()).or_insert_with(|| ScriptedKek::new(name).unwrap()).clone()
    }

    pub(crate) fn store(&self, name: &str) -> ScriptedStore {
        let mut stores = self.stores.lock().unwrap();
        stores.entry(name.to_owned()).or_insert_with(ScriptedStore::in_memory).clone()
    }

    pub(crate) fn schemes(&self) -> Schemes {
        let (keks, stores) = (self.clone(), self.clone());
        Schemes::default()
            .kek("kek", move |uri: String| {
                let kek = keks.kek(uri.strip_prefix("kek:").unwrap());
                async move { Ok(kek) }
            })
            .store("store", move |uri: String| {
                stores.made_stores.lock().unwrap().push(uri.clone());
                let store = stores.store(uri.strip_prefix("store:").unwrap());
                async move { Ok(store) }
            })
    }

    pub(crate) fn builder(&self) -> DomainsBuilder {
        Domains::builder().schemes(self.schemes()).clock(self.clock.clone())
    }

    /// The domains `orders` and `billing` with one configuration: the same KEK, the same store.
    pub(crate) fn twins(&self, config: &DomainConfig) -> (Domain, Domain) {
        let builder = self.builder().domain("orders", config.clone());
        let domains = block_on(builder.domain("billing", config.clone()).build()).unwrap();
        (domains.domain("orders").unwrap(), domains.domain("billing").unwrap())
    }
}

pub(crate) fn shared() -> DomainConfig {
    DomainConfig::default().wrap_with("kek:shared")
}

pub(crate) fn alice(domain: &Domain) -> EncryptionContext {
    domain.context([("tenant", "alice")]).unwrap()
}

pub(crate) fn seal(domain: &Domain) -> Vec<u8> {
    block_on(domain.envelope().encrypt(&alice(domain), Aad::empty(), b"payload")).unwrap()
}

/// Opens a message in a domain, in the context that the domain itself makes.
pub(crate) fn open(domain: &Domain, sealed: &[u8]) -> Result<(), Error> {
    open_in(domain, &alice(domain), sealed)
}

pub(crate) fn open_in(
    domain: &Domain,
    context: &EncryptionContext,
    sealed: &[u8],
) -> Result<(), Error> {
    let opened = block_on(domain.envelope().decrypt(context, Aad::empty(), sealed))?;
    assert_eq!(&*opened, b"payload");
    Ok(())
}
