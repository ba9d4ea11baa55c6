//! Two data domains under one key: what each may do is in the key's policy.

use serde_json::json;
use waxseal::domain::{Branches, DomainConfig, Domains, Schemes};
use waxseal::{Aad, ErrorKind};
use waxseal_aws_kms::AwsKmsKek;
use waxseal_testing::kms_front::KmsFront;

const REGION: &str = "eu-west-1";

#[tokio::test]
async fn a_policy_grants_a_shared_key_to_one_domain() {
    let front = KmsFront::start();
    let arn = front.create_key(REGION);
    let orders_only = front.principal(
        "orders",
        vec![json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Action": ["kms:Encrypt", "kms:Decrypt"], "Resource": "*",
              "Condition": { "StringEquals": { "kms:EncryptionContext:waxseal:domain": "orders" } } },
            { "Effect": "Allow", "Action": "kms:DescribeKey", "Resource": "*" },
        ] })],
    );
    let client = front.client(REGION, &orders_only);
    let schemes = Schemes::default().kek("aws-kms", move |uri: String| {
        let client = client.clone();
        async move { AwsKmsKek::from_config(&uri.parse()?).client(client).build().await }
    });
    let plain = DomainConfig::default().wrap_with(format!("aws-kms://{arn}"));
    let branched = plain.clone().branches(Branches::per(["tenant"]).self_contained());
    for config in [plain, branched] {
        let builder = Domains::builder().schemes(schemes.clone());
        let builder = builder.domain("orders", config.clone()).domain("billing", config);
        let domains = builder.build().await.unwrap();
        let orders = domains.domain("orders").unwrap();
        let context = orders.context([("tenant", "alice")]).unwrap();
        let sealed = orders.envelope().encrypt(&context, Aad::empty(), b"cake").await.unwrap();
        let opened = orders.envelope().decrypt(&context, Aad::empty(), &sealed).await.unwrap();
        assert_eq!(&*opened, b"cake");
        let billing = domains.domain("billing").unwrap();
        let context = billing.context([("tenant", "alice")]).unwrap();
        let refused = billing.envelope().encrypt(&context, Aad::empty(), b"cake").await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Denied);
    }
}
