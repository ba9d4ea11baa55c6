//! Many DEKs at once, from a real server.

use waxseal::{Aad, Envelope};
use waxseal_testing::openbao::OpenBao;
use waxseal_testing::support::context;
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_deks_are_prepared_in_three_calls() {
    let server = OpenBao::start().await;
    server.create_key("orders", true).await;
    let kek = VaultTransitKek::builder("test", "orders")
        .address(server.address())
        .auth(VaultAuth::token("root"))
        .build()
        .unwrap();
    let (alice, mut page) = (context("alice"), Vec::new());
    for _ in 0..300 {
        let writer = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
        page.push(writer.encrypt(&alice, Aad::empty(), b"row").await.unwrap());
    }
    let reader = Envelope::builder().wrap_with(kek).build().unwrap();
    let bob = context("bob");
    let foreign = page[0].clone();
    let messages = page.iter().map(|row| (&alice, row)).chain([(&bob, &foreign)]);
    let prepared = reader.prepare(messages).await;
    assert!(prepared[..300].iter().all(Result::is_ok));
    assert!(prepared[300].is_err(), "another tenant's message fails alone");
    // 128 DEKs a call. The foreign one's DEK is known to be of alice by then, so it costs none.
    assert_eq!(reader.statistics().keks[0].calls, 3);
    for row in &page {
        assert!(reader.decrypt_cached(&alice, Aad::empty(), row).unwrap().is_some());
    }
}
