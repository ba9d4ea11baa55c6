//! Seals and opens a message under a KEK in an Azure Managed HSM, and moves it after a rotation.
//!
//! `cargo run -p waxseal-azure-key-vault --example azure_key_vault -- URI` takes a key of yours
//! (`azure-key-vault://NAME.managedhsm.azure.net/KEY`), with the login that the environment says:
//! it makes two `encrypt`, four `decrypt` (one of which is refused) and a `get`. Without URI it
//! starts the stand-in of the tests in this process, which is discarded at the end.

use std::error::Error;

use waxseal::{Aad, EncryptionContext, Envelope, inspect};
use waxseal_azure_key_vault::{AzureKeyVaultKek, Config, Credential};
use waxseal_testing::azure::{Azure, TENANT};

const HSM: &str = "orders.managedhsm.azure.net";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (azure, kek) = match std::env::args().nth(1) {
        Some(uri) => (None, AzureKeyVaultKek::from_config(&uri.parse::<Config>()?).build()?),
        None => {
            let azure = Azure::start();
            println!("a throw-away stand-in for Azure listens at {}", azure.address());
            let secret_file = azure.application("shop");
            azure.world().create_aes(HSM, "cards");
            azure.world().permit(HSM, "shop", &["encrypt", "decrypt", "get"]);
            let kek = AzureKeyVaultKek::builder(format!("{HSM}:{}", azure.port()), "cards")
                .address(azure.address())
                .ca_file(azure.ca_file())
                .authority_host(azure.authority_host())
                .credential(Credential::ClientSecret {
                    tenant_id: TENANT.to_owned(),
                    client_id: "shop".to_owned(),
                    secret_file,
                })
                .build()?;
            (Some(azure), kek)
        }
    };
    let key = kek.read_key().await?;
    println!("the newest version is {}, of type {}", key.version, key.kind);

    let envelope = Envelope::builder().wrap_with(kek.clone()).build()?;
    let context = EncryptionContext::new([("tenant", "alice"), ("table", "cards")])?;
    let sealed = envelope.encrypt(&context, Aad::from(b"row 17"), b"4111 1111 1111 1111").await?;
    println!("sealed {} bytes, {:?}", sealed.len(), inspect(&sealed)?.keks);

    // Another process would have nothing cached.
    let reader = Envelope::builder().unwrap_with(kek.clone()).build()?;
    let opened = reader.decrypt(&context, Aad::from(b"row 17"), &sealed).await?;
    println!("opened {:?}", String::from_utf8_lossy(&opened));

    let other = EncryptionContext::new([("tenant", "bob"), ("table", "cards")])?;
    match reader.decrypt(&other, Aad::from(b"row 17"), &sealed).await {
        Err(error) => println!("as another tenant: {error}"),
        Ok(_) => return Err("another tenant opened it".into()),
    }

    println!("needs a rewrap: {}", envelope.needs_rewrap(&sealed)?);
    if let Some(azure) = &azure {
        azure.world().rotate(HSM, "cards");
        kek.read_key().await?;
        println!("after a rotation it needs a rewrap: {}", envelope.needs_rewrap(&sealed)?);
    }
    let moved = envelope.rewrap(&context, &sealed).await?;
    let opened = reader.decrypt(&context, Aad::from(b"row 17"), &moved).await?;
    println!("opened {:?} after a rewrap", String::from_utf8_lossy(&opened));
    Ok(())
}
