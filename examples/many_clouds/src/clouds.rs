//! Five key services on this machine, each with a key, and what can happen to them.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use waxseal::KekId;
use waxseal::kek::KekProvider;
use waxseal_aws_kms::AwsKmsKek;
use waxseal_azure_key_vault::{AzureKeyVaultKek, Credential};
use waxseal_google_kms::GoogleKmsKek;
use waxseal_pkcs11::{PinSource, Pkcs11Kek, Versions};
use waxseal_testing::azure::{Azure, TENANT};
use waxseal_testing::fault_proxy::{Fault, FaultProxy};
use waxseal_testing::google::{ACCOUNT, GoogleFront, Protection};
use waxseal_testing::kms_front::{KmsFront, State, client_at};
use waxseal_testing::openbao::{self, OpenBao};
use waxseal_testing::pkcs11::{Ground, KEY, TOKEN};
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

const REGION: &str = "eu-west-1";
const MANAGED_HSM: &str = "orders.managedhsm.azure.net";
const APPLICATION: &str = "service";
/// How long a provider believes what it knows of its key. A service would leave it at the default.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);
const GOOGLE_ROLE: &str = "roles/cloudkms.cryptoKeyEncrypterDecrypter";

/// Who holds a KEK.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cloud {
    Aws,
    Google,
    Azure,
    Vault,
    Hsm,
}

impl Cloud {
    pub(crate) const ALL: [Self; 5] =
        [Self::Aws, Self::Google, Self::Azure, Self::Vault, Self::Hsm];

    /// What happens to it when its key is denied.
    pub(crate) fn denial(self) -> &'static str {
        match self {
            Self::Aws => "the key is disabled",
            Self::Google => "its role is revoked",
            Self::Azure => "its role is revoked",
            Self::Vault => "its policy is revoked",
            Self::Hsm => "the key may do nothing",
        }
    }

    /// How it is out of reach.
    pub(crate) fn outage(self) -> &'static str {
        match self {
            Self::Aws | Self::Google | Self::Azure => "no answer comes",
            Self::Vault => "the server stands still",
            Self::Hsm => "the token is removed",
        }
    }
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Aws => "AWS KMS",
            Self::Google => "Google KMS",
            Self::Azure => "Managed HSM",
            Self::Vault => "OpenBao",
            Self::Hsm => "HSM",
        })
    }
}

/// For each service, in the order of [`Cloud::ALL`].
pub(crate) type Each<T> = [T; 5];

/// The services. All but OpenBao and SoftHSM2 are stand-ins of the project's own.
pub(crate) struct Clouds<'g> {
    aws: KmsFront,
    to_aws: FaultProxy,
    aws_key: String,
    google: GoogleFront,
    to_google: FaultProxy,
    google_key: String,
    azure: Azure,
    to_azure: FaultProxy,
    bao: OpenBao,
    hsm: &'g Ground,
    /// How many keys the HSM has.
    hsm_keys: AtomicUsize,
    keks: Each<Arc<dyn KekProvider>>,
}

impl<'g> Clouds<'g> {
    pub(crate) async fn start(hsm: &'g Ground) -> Result<Self, Box<dyn Error>> {
        let aws = KmsFront::start();
        let to_aws = FaultProxy::start(aws.port());
        let aws_key = aws.create_key(REGION);
        let client = client_at(&at(&to_aws), REGION, &aws.admin());
        let in_aws =
            AwsKmsKek::builder(&aws_key).client(client).key_max_age(NOTICED_WITHIN).build().await?;

        let google = GoogleFront::start();
        let to_google = FaultProxy::start(google.port());
        let google_key = google.create_key("orders", Protection::Hsm);
        let in_google = GoogleKmsKek::builder(&google_key)
            .endpoint(at(&to_google))
            .metadata_server_at(google.url())
            .build()
            .await?;

        let azure = Azure::start();
        let to_azure = FaultProxy::start(azure.port());
        let secret_file = azure.application(APPLICATION);
        {
            let mut world = azure.world();
            world.permit(MANAGED_HSM, APPLICATION, &["encrypt", "decrypt", "get"]);
            world.create_aes(MANAGED_HSM, "orders");
        }
        let port = to_azure.port();
        let in_azure = AzureKeyVaultKek::builder(format!("{MANAGED_HSM}:{port}"), "orders")
            .address(([127, 0, 0, 1], port).into())
            .ca_file(azure.ca_file())
            .authority_host(azure.authority_host())
            .key_max_age(NOTICED_WITHIN)
            .credential(Credential::ClientSecret {
                tenant_id: TENANT.to_owned(),
                client_id: APPLICATION.to_owned(),
                secret_file,
            })
            .build()?;

        let options = openbao::Options { durable: true, audit: true, ..Default::default() };
        let bao = OpenBao::with(options).await;
        bao.create_key("orders", true).await;
        bao.policy("orders", "orders").await;
        let token = bao.token(json!({ "policies": ["orders"] })).await;
        let in_vault = VaultTransitKek::builder("example", "orders")
            .address(bao.address())
            .auth(VaultAuth::token(token))
            .key_max_age(NOTICED_WITHIN)
            .build()?;

        let in_hsm = Pkcs11Kek::builder(hsm.module(), KEY)
            .token(TOKEN)
            .pin_source(PinSource::File(hsm.pin_file()))
            .versions(Versions::ById)
            .key_max_age(NOTICED_WITHIN)
            .build()?;

        let keks: Each<Arc<dyn KekProvider>> = [
            Arc::new(in_aws),
            Arc::new(in_google),
            Arc::new(in_azure),
            Arc::new(in_vault),
            Arc::new(in_hsm),
        ];
        Ok(Self {
            aws,
            to_aws,
            aws_key,
            google,
            to_google,
            google_key,
            azure,
            to_azure,
            bao,
            hsm,
            hsm_keys: AtomicUsize::new(1),
            keks,
        })
    }

    pub(crate) fn kek(&self, cloud: Cloud) -> &Arc<dyn KekProvider> {
        let [aws, google, azure, vault, hsm] = &self.keks;
        match cloud {
            Cloud::Aws => aws,
            Cloud::Google => google,
            Cloud::Azure => azure,
            Cloud::Vault => vault,
            Cloud::Hsm => hsm,
        }
    }

    /// Whose KEK this is.
    pub(crate) fn of(&self, kek_id: &KekId) -> Option<Cloud> {
        Cloud::ALL.into_iter().find(|cloud| self.kek(*cloud).recognises(kek_id))
    }

    /// The requests for DEKs that each service has counted itself.
    pub(crate) fn requests(&self) -> Result<Each<usize>, Box<dyn Error>> {
        let of = |arrived: &dyn Fn(&str) -> usize, operations: &[&str]| {
            operations.iter().map(|operation| arrived(operation)).sum()
        };
        Ok([
            of(&|name| self.aws.arrived(name), &["Encrypt", "Decrypt", "ReEncrypt"]),
            of(&|name| self.google.arrived(name), &["encrypt", "decrypt"]),
            of(&|name| self.azure.arrived(name), &["encrypt", "decrypt"]),
            self.audited()?,
            of(&|name| self.hsm.called(name), &["C_EncryptInit", "C_DecryptInit"]),
        ])
    }

    /// The requests for DEKs in OpenBao's audit log.
    fn audited(&self) -> Result<usize, Box<dyn Error>> {
        let log = std::fs::read_to_string(self.bao.audit_file())?;
        let is_about_a_dek = |line: &str| {
            // The server may be writing the last line.
            let Ok(line) = serde_json::from_str::<Value>(line) else { return false };
            let text = |pointer: &str| line.pointer(pointer).and_then(Value::as_str);
            let path = text("/request/path").unwrap_or_default();
            let begins = ["transit/encrypt/", "transit/decrypt/", "transit/rewrap/"];
            text("/type") == Some("request") && begins.iter().any(|begin| path.starts_with(begin))
        };
        Ok(log.lines().filter(|line| is_about_a_dek(line)).count())
    }

    pub(crate) fn stop(&self, cloud: Cloud) {
        match cloud {
            Cloud::Aws => self.to_aws.set(Fault::Silence),
            Cloud::Google => self.to_google.set(Fault::Silence),
            Cloud::Azure => self.to_azure.set(Fault::Silence),
            Cloud::Vault => self.bao.stop(),
            // CKR_DEVICE_REMOVED
            Cloud::Hsm => {
                self.hsm.control("C_EncryptInit rv 0x32 x 0\nC_DecryptInit rv 0x32 x 0\n")
            }
        }
    }

    pub(crate) fn start_again(&self, cloud: Cloud) {
        let lets_through = |proxy: &FaultProxy| {
            proxy.set(Fault::None);
            proxy.cut();
        };
        match cloud {
            Cloud::Aws => lets_through(&self.to_aws),
            Cloud::Google => lets_through(&self.to_google),
            Cloud::Azure => lets_through(&self.to_azure),
            Cloud::Vault => self.bao.go_on(),
            Cloud::Hsm => self.hsm.control(""),
        }
    }

    pub(crate) async fn deny(&self, cloud: Cloud) {
        match cloud {
            Cloud::Aws => self.aws.world().key(&self.aws_key).state = State::Disabled,
            Cloud::Google => self.google.world().revoke(&self.google_key, GOOGLE_ROLE, ACCOUNT),
            Cloud::Azure => {
                let mut world = self.azure.world();
                world.forbid(MANAGED_HSM, APPLICATION, "encrypt");
                world.forbid(MANAGED_HSM, APPLICATION, "decrypt");
            }
            Cloud::Vault => {
                let only_look = "path \"transit/keys/orders\" { capabilities = [\"read\"] }";
                self.bao.put("sys/policies/acl/orders", json!({ "policy": only_look })).await;
            }
            Cloud::Hsm => self.hsm.allow(KEY, "01", ""),
        }
    }

    pub(crate) async fn permit(&self, cloud: Cloud) {
        match cloud {
            Cloud::Aws => self.aws.world().key(&self.aws_key).state = State::Enabled,
            Cloud::Google => self.google.world().grant(&self.google_key, GOOGLE_ROLE, ACCOUNT),
            Cloud::Azure => {
                self.azure.world().permit(MANAGED_HSM, APPLICATION, &["encrypt", "decrypt"]);
            }
            Cloud::Vault => self.bao.policy("orders", "orders").await,
            Cloud::Hsm => self.hsm.allow(KEY, "01", "ed"),
        }
    }

    /// Makes a new version of the key, which wraps from now on.
    pub(crate) async fn rotate(&self, cloud: Cloud) {
        match cloud {
            Cloud::Aws => self.aws.world().rotate(&self.aws_key, true),
            Cloud::Google => {
                self.google.world().key(&self.google_key).rotate();
            }
            Cloud::Azure => {
                self.azure.world().rotate(MANAGED_HSM, "orders");
            }
            Cloud::Vault => self.bao.rotate("orders").await,
            Cloud::Hsm => {
                let id = self.hsm_keys.fetch_add(1, Ordering::Relaxed) + 1;
                self.hsm.key(KEY, &format!("{id:02}"), "eds");
            }
        }
    }

    /// Deletes the key permanently.
    pub(crate) fn delete_aws_key(&self) {
        self.aws.world().delete(&self.aws_key);
    }
}

fn at(proxy: &FaultProxy) -> String {
    format!("http://127.0.0.1:{}", proxy.port())
}
