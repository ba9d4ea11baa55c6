//! Azure itself. Needs credentials in the environment (`Credential::Environment`), and in
//! `WAXSEAL_TEST_AZURE_KEY` a URI of a key (`azure-key-vault://VAULT/KEY?…`) whose permissions
//! allow to use and to read it. It makes about ten calls.
//! `cargo test --workspace --all-features --test azure real -- --ignored`

use waxseal::kek::{Health, KekErrorClass, KekProvider};
use waxseal::{EncryptionContext, WrappedDek};
use waxseal_azure_key_vault::{AzureKeyVaultKek, Config};

use crate::ground::dek;

#[tokio::test]
#[ignore = "needs Azure credentials, and a key in WAXSEAL_TEST_AZURE_KEY"]
async fn the_provider_works_on_azure_itself() {
    let uri = std::env::var("WAXSEAL_TEST_AZURE_KEY")
        .unwrap_or_else(|_| panic!("name a key in WAXSEAL_TEST_AZURE_KEY"));
    let config: Config = uri.parse().unwrap();
    let kek = AzureKeyVaultKek::from_config(&config).build().unwrap();
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    let alice = EncryptionContext::new([("tenant", "alice"), ("test", "provider")]).unwrap();
    let bob = EncryptionContext::new([("tenant", "bob"), ("test", "provider")]).unwrap();
    let dek = dek();
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
    assert_eq!(kek.is_current(&wrapped), Some(true));
    let error = kek.unwrap(&bob, &wrapped).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Invalid, "{error}");
    let rewrapped = kek.rewrap(&alice, &wrapped).await.unwrap();
    assert_ne!(rewrapped.wrapped(), wrapped.wrapped());
    for at in [0, 4, 40, wrapped.wrapped().len() - 1] {
        let mut bytes = wrapped.wrapped().to_vec();
        bytes[at] ^= 1;
        let damaged = WrappedDek::new(kek.id().clone(), bytes).unwrap();
        let error = kek.unwrap(&alice, &damaged).await.unwrap_err();
        assert!(
            matches!(error.class(), KekErrorClass::Invalid | KekErrorClass::Denied),
            "byte {at}: {error}"
        );
    }
}
