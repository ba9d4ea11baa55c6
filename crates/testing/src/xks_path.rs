//! The whole path of a key in an external key store, on this machine: service ─► KMS front ─► XKS
//! proxy ─► policy ─► OpenBao Transit, with something that breaks what goes through it on each of
//! the three connections.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use aws_sdk_kms::Client;
use aws_sdk_kms::types::{
    CustomKeyStoreType, OriginType, XksProxyAuthenticationCredentialType, XksProxyConnectivityType,
};

use crate::fault_proxy::FaultProxy;
use crate::kms_front::{KmsFront, Login, client_at};
use crate::openbao::{self, OpenBao};
use crate::xks_proxy::{Credential, Options, TransitOptions, XksProxy};

pub const REGION: &str = "eu-west-1";
/// What KMS gives the proxy.
pub const KMS_PATIENCE: Duration = Duration::from_millis(250);
/// For all that is not about time: a busy test machine does not keep 250 ms.
pub const AMPLE: Duration = Duration::from_secs(10);
/// The external key that the KMS key stands for.
pub const KEY: &str = "orders";

pub struct XksPath {
    pub bao: OpenBao,
    pub to_bao: FaultProxy,
    pub proxy: XksProxy,
    pub to_proxy: FaultProxy,
    pub front: KmsFront,
    pub to_kms: FaultProxy,
    /// Of the service.
    pub login: Login,
    pub store: String,
    pub arn: String,
}

impl XksPath {
    pub async fn start() -> Self {
        Self::with(openbao::Options::default()).await
    }

    /// Call it from the thread that runs the test: OpenBao ends with that.
    pub async fn with(options: openbao::Options) -> Self {
        let bao = OpenBao::with(options).await;
        let to_bao = FaultProxy::start(bao.port());
        let transit = TransitOptions::prepare(&bao.address(), None, bao.root_token()).await;
        let transit =
            TransitOptions { address: format!("http://127.0.0.1:{}", to_bao.port()), ..transit };
        let proxy = XksProxy::start(Options {
            budget: AMPLE / 2,
            path_prefix: "tenants/one".to_owned(),
            ..Options::new(transit)
        });
        let to_proxy = FaultProxy::start(proxy.port());
        let front = KmsFront::start();
        front.trust(proxy.ca_pem());
        let to_kms = FaultProxy::start(front.port());
        let login = front.admin();
        let (store, arn) = (String::new(), String::new());
        let mut path = Self { bao, to_bao, proxy, to_proxy, front, to_kms, login, store, arn };
        path.kms_waits(AMPLE);
        path.store = path.create_store("orders").await;
        path.connect().await;
        path.arn = path.create_key(KEY).await;
        path
    }

    /// How long KMS waits for the proxy.
    pub fn kms_waits(&self, patience: Duration) {
        self.front.world().network.write().unwrap().patience = patience;
    }

    /// The service, as KMS and the proxy see it.
    pub fn principal(&self) -> String {
        self.front.world().principals[&self.login.access_key].arn.clone()
    }

    /// An operator's, who goes to KMS directly.
    pub fn operator(&self) -> Client {
        self.front.client(REGION, &self.login)
    }

    /// The service's.
    pub fn client(&self) -> Client {
        client_at(&format!("http://127.0.0.1:{}", self.to_kms.port()), REGION, &self.login)
    }

    pub fn credential(credential: &Credential) -> XksProxyAuthenticationCredentialType {
        XksProxyAuthenticationCredentialType::builder()
            .access_key_id(&credential.access_key_id)
            .raw_secret_access_key(&credential.secret_access_key)
            .build()
            .unwrap()
    }

    pub async fn create_store(&self, name: &str) -> String {
        let call = self.operator().create_custom_key_store().custom_key_store_name(name);
        let call = call
            .custom_key_store_type(CustomKeyStoreType::ExternalKeyStore)
            .xks_proxy_connectivity(XksProxyConnectivityType::PublicEndpoint)
            .xks_proxy_uri_endpoint(self.proxy.url())
            .xks_proxy_uri_path(self.proxy.uri_path())
            .xks_proxy_authentication_credential(Self::credential(&self.proxy.credential()));
        call.send().await.unwrap().custom_key_store_id.unwrap()
    }

    /// Asks KMS to connect the store, and waits for what comes of it.
    pub async fn try_to_connect(&self) -> String {
        self.operator()
            .connect_custom_key_store()
            .custom_key_store_id(&self.store)
            .send()
            .await
            .unwrap();
        self.settled().await
    }

    pub async fn connect(&self) {
        assert_eq!(self.try_to_connect().await, "CONNECTED");
    }

    pub async fn disconnect(&self) {
        self.operator()
            .disconnect_custom_key_store()
            .custom_key_store_id(&self.store)
            .send()
            .await
            .unwrap();
        assert_eq!(self.settled().await, "DISCONNECTED");
    }

    /// From now on KMS goes through what breaks connections on their way to the proxy.
    pub async fn go_through_the_breaker(&self) {
        self.disconnect().await;
        let call = self.operator().update_custom_key_store().custom_key_store_id(&self.store);
        let endpoint = format!("https://localhost:{}", self.to_proxy.port());
        call.xks_proxy_uri_endpoint(endpoint).send().await.unwrap();
        self.connect().await;
    }

    /// The connection state once it is none on the way to another, or the error code of a
    /// connection that failed.
    async fn settled(&self) -> String {
        let start = Instant::now();
        loop {
            let call =
                self.operator().describe_custom_key_stores().custom_key_store_id(&self.store);
            let store = call.send().await.unwrap().custom_key_stores.unwrap().remove(0);
            let state = store.connection_state.unwrap().as_str().to_owned();
            if !["CONNECTING", "DISCONNECTING"].contains(&state.as_str()) {
                return store.connection_error_code.map_or(state, |code| code.as_str().to_owned());
            }
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "KMS does not settle on a state of the store"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A key in the key manager, and a KMS key for it: its ARN.
    pub async fn create_key(&self, external: &str) -> String {
        self.bao.create_key(external, false).await;
        let call = self.operator().create_key().origin(OriginType::ExternalKeyStore);
        let call = call.custom_key_store_id(&self.store).xks_key_id(external);
        call.send().await.unwrap().key_metadata.unwrap().arn.unwrap()
    }
}
