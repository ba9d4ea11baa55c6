//! Where a DEK is made, and what KMS says of its key material.

use super::*;

#[tokio::test]
async fn a_dek_is_made_here_or_by_kms_as_the_user_chooses() {
    for (origin, operation) in
        [(DekOrigin::Local, "Encrypt"), (DekOrigin::KeyService, "GenerateDataKey")]
    {
        let ground = Ground::new();
        let arn = ground.front.create_key(REGION);
        let builder = Envelope::builder().dek_origin(origin);
        let envelope = builder.wrap_with(ground.kek(&arn).await).build().unwrap();
        let sealed = envelope.encrypt(&context("alice"), Aad::from(b"aad"), b"text").await.unwrap();
        let reader = Envelope::builder().unwrap_with(ground.kek(&arn).await).build().unwrap();
        assert_eq!(
            &*reader.decrypt(&context("alice"), Aad::from(b"aad"), &sealed).await.unwrap(),
            b"text"
        );
        for other in ["Encrypt", "GenerateDataKey"] {
            assert_eq!(
                ground.front.count(other),
                usize::from(other == operation),
                "{origin:?}: {other}"
            );
        }
        let material = ground.front.world().key(&arn).current_material().unwrap();
        let meta = &inspect(&sealed).unwrap().keks[0].meta;
        assert_eq!(data_encoding::HEXLOWER.encode(meta), material, "{origin:?}");
    }
}

#[tokio::test]
async fn without_leave_to_describe_the_key_everything_works_and_no_material_is_claimed() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    ground.front.fail(Fault::error(400, "AccessDeniedException", "no").on("DescribeKey"));
    let kek = ground.kek(&arn).await;
    let context = context("alice");
    let (first, second) =
        (kek.wrap(&context, &dek()).await.unwrap(), kek.wrap(&context, &dek()).await.unwrap());
    assert!(first.meta().is_empty() && second.meta().is_empty());
    assert_eq!(ground.front.count("DescribeKey"), 1, "asked once, not with every wrap");
    assert_eq!(kek.is_current(&first), None);
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let sealed = envelope.encrypt(&context, Aad::empty(), b"text").await.unwrap();
    assert!(!envelope.needs_rewrap(&sealed).unwrap(), "nobody knows of a need");
    let moved = envelope.rewrap(&context, &sealed).await.unwrap();
    assert_eq!(
        (ground.front.count("ReEncrypt"), inspect(&moved).unwrap().keks[0].meta.len()),
        (1, 32),
        "whoever asks for it gets it"
    );
    let (_, generated) = kek.generate(&context).await.unwrap();
    assert_eq!(generated.meta().len(), 32, "GenerateDataKey says it by itself");
    ground.front.world().rotate(&arn, false);
    let rewrapped = kek.rewrap(&context, &generated).await.unwrap();
    assert!(
        kek.is_current(&rewrapped) == Some(true) && kek.is_current(&generated) == Some(false),
        "and so does ReEncrypt"
    );
}

#[tokio::test]
async fn a_describe_key_that_hangs_does_not_keep_a_dek_from_being_wrapped() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    ground.front.fail(Fault::new(kms_front::Effect::Hang).on("DescribeKey"));
    let envelope = Envelope::builder().wrap_with(ground.kek(&arn).await).build().unwrap();
    envelope.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
}

#[tokio::test]
async fn a_key_that_a_forged_message_names_calls_no_operator() {
    let ground = Ground::new();
    let client = ground.front.client(REGION, &ground.login);
    let kek =
        AwsKmsKek::discover("aws", [kms_front::ACCOUNT]).client(client).build().await.unwrap();
    let arn = ground.front.create_key(REGION);
    let wrapped = ground.kek(&arn).await.wrap(&context("alice"), &dek()).await.unwrap();
    ground.front.world().key(&arn).usage = "SIGN_VERIFY";
    assert_eq!(denied_or_invalid(&kek, &context("alice"), &wrapped).await, KekErrorClass::Invalid);
    let named = ground.kek(&arn).await;
    assert_eq!(
        denied_or_invalid(&named, &context("alice"), &wrapped).await,
        KekErrorClass::Misconfigured
    );
}

#[tokio::test]
async fn a_grant_token_makes_a_new_grant_work_at_once() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    ground.front.world().grants_are_slow = true;
    let reader = ground.front.principal("reader", vec![]);
    let admin = ground.front.client(REGION, &ground.login);
    let grant = admin
        .create_grant()
        .key_id(&arn)
        .grantee_principal(format!("arn:aws:iam::{}:user/reader", kms_front::ACCOUNT));
    let grant = grant.operations(aws_sdk_kms::types::GrantOperation::Decrypt).send().await.unwrap();
    let token = grant.grant_token().unwrap();
    let wrapped = ground.kek(&arn).await.wrap(&context("alice"), &dek()).await.unwrap();
    let builder = || AwsKmsKek::builder(&arn).client(ground.front.client(REGION, &reader));

    let kek = builder().build().await.unwrap();
    assert_eq!(denied_or_invalid(&kek, &context("alice"), &wrapped).await, KekErrorClass::Denied);
    kek.set_grant_tokens([token]).unwrap();
    kek.unwrap(&context("alice"), &wrapped).await.unwrap();
    let kek = builder().grant_tokens([token]).build().await.unwrap();
    kek.unwrap(&context("alice"), &wrapped).await.unwrap();
    assert!(!format!("{kek:?}{:?}", builder().grant_tokens([token])).contains(token));
    assert!(kek.set_grant_tokens(["x"; 11]).is_err());
    assert!(kek.set_grant_tokens([""]).is_err());
}
