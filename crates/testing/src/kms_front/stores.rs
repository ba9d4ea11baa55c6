//! Custom key stores of the type EXTERNAL_KEY_STORE with a public endpoint: each of one account and
//! Region. "The Guide" is the AWS KMS Developer Guide; the exceptions are those that the API
//! Reference lists with each operation. Where it gives no text for one, the text is the front's.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::crypto::{Backing, External};
use super::failure::Failure;
use super::key_store::{Connection, KeyStore, not_found};
use super::request::{Answer, text, uuid};
use super::world::{Caller, World};
use super::xks::{Asker, ProxySettings, XksClient};
use super::{KmsError, random};

fn health_check(world: &World, caller: &Caller, operation: &str) -> Asker {
    Asker { principal: None, ..world.asker(caller, operation) }
}

impl World {
    pub fn store(&mut self, id: &str) -> &mut KeyStore {
        self.stores
            .iter_mut()
            .find(|store| store.id == id)
            .unwrap_or_else(|| panic!("the front has no key store {id}"))
    }

    fn own_stores(&self, caller: &Caller) -> impl Iterator<Item = &KeyStore> {
        let own =
            |store: &&KeyStore| store.region == caller.region && store.account == caller.account;
        self.stores.iter().filter(own)
    }

    /// "Cross-account use: No", in all of these operations.
    fn find_store(&self, caller: &Caller, body: &Value) -> Result<&KeyStore, KmsError> {
        let id = text(body, "CustomKeyStoreId")?;
        self.own_stores(caller).find(|store| store.id == id).ok_or_else(|| not_found(id))
    }

    /// Names are unique in an account and Region, and so are the addresses of proxies.
    fn check_unique(
        &self,
        caller: &Caller,
        own: Option<&str>,
        name: Option<&str>,
        settings: &ProxySettings,
    ) -> Result<(), KmsError> {
        for other in self.own_stores(caller).filter(|other| Some(other.id.as_str()) != own) {
            let theirs = other.proxy.settings();
            if name == Some(&other.name) {
                let detail = format!("The custom key store name {} is in use.", other.name);
                return Err(KmsError::new(400, "CustomKeyStoreNameInUseException", detail));
            }
            if (&theirs.endpoint, &theirs.path) == (&settings.endpoint, &settings.path) {
                let detail = "The XksProxyUriEndpoint and XksProxyUriPath are in use in another custom key store.";
                return Err(KmsError::new(400, "XksProxyUriInUseException", detail));
            }
        }
        Ok(())
    }
}

/// Nothing but a public endpoint exists here.
fn check_connectivity(body: &Value) -> Result<(), KmsError> {
    if body["XksProxyConnectivity"] == "VPC_ENDPOINT_SERVICE"
        || !body["XksProxyVpcEndpointServiceName"].is_null()
    {
        let detail = "The front has no VPC endpoint services.";
        return Err(KmsError::new(400, "XksProxyVpcEndpointServiceNotFoundException", detail));
    }
    Ok(())
}

/// Each of these operations, but for CreateKey, needs the permission of its name.
pub async fn answer(
    world: &Arc<Mutex<World>>,
    caller: &Caller,
    operation: &str,
    body: &Value,
) -> Answer {
    world.lock().unwrap().authorise_account(caller, operation, body)?;
    match operation {
        "CreateCustomKeyStore" => create(world, caller, body).await,
        "UpdateCustomKeyStore" => update(world, caller, body).await,
        "ConnectCustomKeyStore" => connect(world, caller, body),
        "DisconnectCustomKeyStore" => disconnect(world, caller, body),
        "DescribeCustomKeyStores" => describe(world, caller, body),
        "DeleteCustomKeyStore" => delete(world, caller, body),
        "CreateKey" => create_key(world, caller, body).await,
        other => Err(KmsError::new(
            400,
            "UnknownOperationException",
            format!("the front does not serve {other}"),
        )),
    }
}

/// "KMS connects to the external key store proxy while creating the custom key store" where it has
/// a public endpoint (API Reference).
async fn create(world: &Mutex<World>, caller: &Caller, body: &Value) -> Answer {
    if body["CustomKeyStoreType"] != "EXTERNAL_KEY_STORE" {
        return Err(KmsError::validation(
            "the front has key stores of the type EXTERNAL_KEY_STORE only".into(),
        ));
    }
    text(body, "XksProxyConnectivity")?;
    check_connectivity(body)?;
    let name = text(body, "CustomKeyStoreName")?;
    let credential = &body["XksProxyAuthenticationCredential"];
    let settings = ProxySettings {
        endpoint: text(body, "XksProxyUriEndpoint")?.to_owned(),
        path: text(body, "XksProxyUriPath")?.to_owned(),
        access_key_id: text(credential, "AccessKeyId")?.to_owned(),
        secret: text(credential, "RawSecretAccessKey")?.to_owned(),
    };
    settings.check()?;
    let (proxy, asker) = {
        let world = world.lock().unwrap();
        world.check_unique(caller, None, Some(name), &settings)?;
        let proxy = XksClient::new(&caller.region, settings.clone(), world.network.clone());
        (Arc::new(proxy), health_check(&world, caller, "CreateCustomKeyStore"))
    };
    proxy.health(&asker).await.map_err(Failure::of_key_store)?;
    let mut world = world.lock().unwrap();
    // Somebody may have been faster meanwhile.
    world.check_unique(caller, None, Some(name), &settings)?;
    let id = format!("cks-{}", &HEXLOWER.encode(&random::<9>())[..17]);
    world.stores.push(KeyStore {
        id: id.clone(),
        name: name.to_owned(),
        region: caller.region.clone(),
        account: caller.account.clone(),
        created: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64(),
        connection: Connection::Disconnected,
        change: 0,
        proxy,
        quota: 1800,
        counted: Mutex::new((Instant::now(), 0)),
    });
    Ok(json!({ "CustomKeyStoreId": id }))
}

/// Which properties a connected key store may change stands with each parameter in the API
/// Reference: its name, its path, its credential. The new settings are tried before they are taken.
async fn update(world: &Mutex<World>, caller: &Caller, body: &Value) -> Answer {
    let name = body["NewCustomKeyStoreName"].as_str();
    let credential = &body["XksProxyAuthenticationCredential"];
    let (id, settings, tried) = {
        let world = world.lock().unwrap();
        let store = world.find_store(caller, body)?;
        check_connectivity(body)?;
        let needs_rest = ["XksProxyUriEndpoint", "XksProxyConnectivity"]
            .iter()
            .any(|name| !body[name].is_null());
        match store.connection {
            Connection::Disconnected => {}
            Connection::Connected if !needs_rest => {}
            _ => return Err(store.state_error("UpdateCustomKeyStore")),
        }
        let before = store.proxy.settings();
        let or = |value: &Value, before: &String| {
            value.as_str().map_or_else(|| before.clone(), ToOwned::to_owned)
        };
        let settings = ProxySettings {
            endpoint: or(&body["XksProxyUriEndpoint"], &before.endpoint),
            path: or(&body["XksProxyUriPath"], &before.path),
            access_key_id: or(&credential["AccessKeyId"], &before.access_key_id),
            secret: or(&credential["RawSecretAccessKey"], &before.secret),
        };
        settings.check()?;
        world.check_unique(caller, Some(&store.id), name, &settings)?;
        let changes = settings != before;
        let asker = health_check(&world, caller, "UpdateCustomKeyStore");
        let tried = changes.then(|| {
            (XksClient::new(&caller.region, settings.clone(), world.network.clone()), asker)
        });
        (store.id.clone(), settings, tried)
    };
    let changes = tried.is_some();
    if let Some((proxy, asker)) = tried {
        proxy.health(&asker).await.map_err(Failure::of_key_store)?;
    }
    let mut world = world.lock().unwrap();
    world.check_unique(caller, Some(&id), name, &settings)?;
    let store =
        world.stores.iter_mut().find(|store| store.id == id).ok_or_else(|| not_found(&id))?;
    if changes {
        store.proxy.change(settings);
    }
    if let Some(name) = name {
        store.name = name.to_owned();
    }
    Ok(json!({}))
}

/// "The ConnectCustomKeyStore operation succeeds quickly before the connection process is complete"
/// (the Guide).
fn connect(world: &Arc<Mutex<World>>, caller: &Caller, body: &Value) -> Answer {
    let mut locked = world.lock().unwrap();
    let store = locked.find_store(caller, body)?;
    match store.connection {
        Connection::Connected | Connection::Connecting => return Ok(json!({})),
        Connection::Failed(_) | Connection::Disconnecting => {
            return Err(store.state_error("ConnectCustomKeyStore"));
        }
        Connection::Disconnected => {}
    }
    let (id, proxy) = (store.id.clone(), store.proxy.clone());
    let (asker, pause) =
        (health_check(&locked, caller, "ConnectCustomKeyStore"), locked.connecting_takes);
    let change = locked.begin(&id, Connection::Connecting);
    let world = world.clone();
    tokio::spawn(async move {
        sleep(pause).await;
        let outcome = proxy.health(&asker).await;
        let connection = outcome.map_or_else(
            |why| Connection::Failed(why.connection_error_code()),
            |()| Connection::Connected,
        );
        world.lock().unwrap().end(&id, change, connection);
    });
    Ok(json!({}))
}

fn disconnect(world: &Arc<Mutex<World>>, caller: &Caller, body: &Value) -> Answer {
    let mut locked = world.lock().unwrap();
    let store = locked.find_store(caller, body)?;
    if matches!(store.connection, Connection::Disconnecting | Connection::Disconnected) {
        return Err(store.state_error("DisconnectCustomKeyStore"));
    }
    store.proxy.hang_up();
    let (id, pause) = (store.id.clone(), locked.connecting_takes);
    let change = locked.begin(&id, Connection::Disconnecting);
    let world = world.clone();
    tokio::spawn(async move {
        sleep(pause).await;
        world.lock().unwrap().end(&id, change, Connection::Disconnected);
    });
    Ok(json!({}))
}

impl World {
    fn begin(&mut self, id: &str, connection: Connection) -> u64 {
        let store = self.store(id);
        store.connection = connection;
        store.change += 1;
        store.change
    }

    fn end(&mut self, id: &str, change: u64, connection: Connection) {
        if let Some(store) =
            self.stores.iter_mut().find(|store| store.id == id && store.change == change)
        {
            store.connection = connection;
        }
    }
}

/// "All custom key stores in the account and Region", or the one of an id or a name, "but not both"
/// (API Reference).
fn describe(world: &Mutex<World>, caller: &Caller, body: &Value) -> Answer {
    let world = world.lock().unwrap();
    let (id, name) = (body["CustomKeyStoreId"].as_str(), body["CustomKeyStoreName"].as_str());
    if id.is_some() && name.is_some() {
        return Err(KmsError::validation(
            "CustomKeyStoreId and CustomKeyStoreName exclude each other".into(),
        ));
    }
    let wanted = |store: &&KeyStore| {
        id.is_none_or(|id| id == store.id) && name.is_none_or(|name| name == store.name)
    };
    let found: Vec<_> = world.own_stores(caller).filter(wanted).collect();
    if let Some(name) = id.or(name).filter(|_| found.is_empty()) {
        return Err(not_found(name));
    }
    // The marker is the id of the first that was left out.
    let start = match body["Marker"].as_str() {
        None => 0,
        Some(marker) => found
            .iter()
            .position(|store| store.id == marker)
            .ok_or_else(|| KmsError::new(400, "InvalidMarkerException", "unknown marker"))?,
    };
    let most = body["Limit"].as_u64().map_or(100, |limit| usize::try_from(limit).unwrap());
    let entries: Vec<_> = found.iter().skip(start).take(most).map(|store| store.entry()).collect();
    let mut answer = json!({ "CustomKeyStores": entries, "Truncated": false });
    if let Some(next) = found.get(start + most) {
        answer["Truncated"] = json!(true);
        answer["NextMarker"] = json!(next.id);
    }
    Ok(answer)
}

fn delete(world: &Mutex<World>, caller: &Caller, body: &Value) -> Answer {
    let mut world = world.lock().unwrap();
    let store = world.find_store(caller, body)?;
    if store.connection != Connection::Disconnected {
        return Err(store.state_error("DeleteCustomKeyStore"));
    }
    let id = store.id.clone();
    let is_inside = |backing: &Backing| matches!(backing, Backing::External(External { store, .. }) if *store == id);
    if world.keys.iter().any(|key| is_inside(&key.backing)) {
        let detail = format!("Custom key store {id} has KMS keys.");
        return Err(KmsError::new(400, "CustomKeyStoreHasCMKsException", detail));
    }
    world.stores.retain(|store| store.id != id);
    Ok(json!({}))
}

/// CreateKey with CustomKeyStoreId: what it asks of the external key stands under GetKeyMetadata in
/// the specification, with which words it refuses one under "CreateKey errors for the external key"
/// in the Guide.
async fn create_key(world: &Mutex<World>, caller: &Caller, body: &Value) -> Answer {
    let external = text(body, "XksKeyId")?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if body["Origin"] != "EXTERNAL_KEY_STORE"
        || external.len() > 128
        || !external.chars().all(allowed)
    {
        return Err(KmsError::validation(
            "Origin and XksKeyId of a key in an external key store".into(),
        ));
    }
    let spec = &body["KeySpec"];
    let usage = &body["KeyUsage"];
    let is_symmetric = (spec.is_null() || spec == "SYMMETRIC_DEFAULT")
        && (usage.is_null() || usage == "ENCRYPT_DECRYPT");
    if !is_symmetric || body["MultiRegion"] == true {
        let detail =
            "KMS keys in a custom key store are symmetric encryption keys of a single Region.";
        return Err(KmsError::new(400, "UnsupportedOperationException", detail));
    }
    let has_policy = !body["Policy"].is_null();
    let policy = has_policy
        .then(|| world.lock().unwrap().acceptable_policy(caller, "*", body))
        .transpose()?;
    let (store, proxy, asker) = {
        let world = world.lock().unwrap();
        let store = world.free(caller, body, external)?;
        (store.id.clone(), store.proxy.clone(), world.asker(caller, "CreateKey"))
    };
    let found = proxy.key_metadata(&asker, external).await.map_err(Failure::of_create_key)?;
    let wrong =
        |detail: String| Err(KmsError::new(400, "XksKeyInvalidConfigurationException", detail));
    if found.spec != "AES_256" {
        return wrong(format!(
            "The key spec of the external key must be AES_256. The key spec of specified external key is {}.",
            found.spec
        ));
    }
    if found.status != "ENABLED" {
        return wrong(format!(
            "The status of the external key must be ENABLED. The status of specified external key is {}.",
            found.status
        ));
    }
    if !["ENCRYPT", "DECRYPT"].iter().all(|needed| found.usage.iter().any(|usage| usage == needed))
    {
        return wrong(format!(
            "The key usage of the external key must include ENCRYPT and DECRYPT. The key use of \
                specified external key is {}.",
            found.usage.join(", ")
        ));
    }
    let mut world = world.lock().unwrap();
    world.free(caller, body, external)?;
    let id = uuid();
    let backing = Backing::External(External::new(&id, &store, proxy, external));
    let arn = world.insert(&caller.region, &caller.account, &id, "EXTERNAL_KEY_STORE", backing);
    if let Some(policy) = policy {
        world.key(&arn).policy = policy;
    }
    Ok(json!({ "KeyMetadata": world.metadata(&arn) }))
}

impl World {
    /// The key store for a new key: connected, and with no other key for this external key.
    fn free(&self, caller: &Caller, body: &Value, external: &str) -> Result<&KeyStore, KmsError> {
        let store = self.find_store(caller, body)?;
        if store.connection != Connection::Connected {
            return Err(Failure::NotConnected.of_create_key());
        }
        let is_taken = |backing: &Backing| matches!(backing, Backing::External(other) if other.store == store.id && other.key == external);
        if self.keys.iter().any(|key| is_taken(&key.backing)) {
            let detail =
                format!("The external key {external} is already associated with another KMS key.");
            return Err(KmsError::new(400, "XksKeyAlreadyInUseException", detail));
        }
        Ok(store)
    }
}
