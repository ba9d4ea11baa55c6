//! A stand-in with keys, and providers for them.

use std::path::PathBuf;

use waxseal::Dek;
use waxseal_azure_key_vault::{Algorithm, AzureKeyVaultKek, AzureKeyVaultKekBuilder, Credential};
use waxseal_testing::azure::{Azure, TENANT};

pub const HSM: &str = "orders.managedhsm.azure.net";
pub const VAULT: &str = "orders.vault.azure.net";
pub const CLIENT: &str = "service";
pub const ALL: [&str; 5] = ["encrypt", "decrypt", "wrapKey", "unwrapKey", "get"];

pub struct Ground {
    pub azure: Azure,
    pub secret_file: PathBuf,
}

impl Ground {
    /// With an AES key and an RSA key of the name `cards`, and another of each.
    pub fn new() -> Self {
        let azure = Azure::start();
        let secret_file = azure.application(CLIENT);
        {
            let mut world = azure.world();
            for host in [HSM, VAULT] {
                world.permit(host, CLIENT, &ALL);
            }
            for name in ["cards", "other"] {
                world.create_aes(HSM, name);
            }
        }
        Self { azure, secret_file }
    }

    /// RSA keys take a while to make.
    pub fn with_rsa() -> Self {
        let ground = Self::new();
        for name in ["cards", "other"] {
            ground.azure.world().create_rsa(VAULT, name);
        }
        ground
    }

    pub fn credential(&self) -> Credential {
        Credential::ClientSecret {
            tenant_id: TENANT.to_owned(),
            client_id: CLIENT.to_owned(),
            secret_file: self.secret_file.clone(),
        }
    }

    /// For a key of this host, through this port.
    pub fn builder_at(&self, host: &str, key: &str, port: u16) -> AzureKeyVaultKekBuilder {
        AzureKeyVaultKek::builder(format!("{host}:{port}"), key)
            .address(([127, 0, 0, 1], port).into())
            .ca_file(self.azure.ca_file())
            .authority_host(self.azure.authority_host())
            .credential(self.credential())
    }

    pub fn hsm(&self, key: &str) -> AzureKeyVaultKek {
        self.builder_at(HSM, key, self.azure.port()).build().unwrap()
    }

    pub fn rsa(&self, key: &str) -> AzureKeyVaultKek {
        self.builder_at(VAULT, key, self.azure.port())
            .algorithm(Algorithm::RsaOaep256)
            .build()
            .unwrap()
    }
}

pub fn dek() -> Dek {
    Dek::random().unwrap()
}
