//! Health of a key, and imported key material.

use super::*;

#[tokio::test]
async fn health_sees_of_a_key_that_it_may_be_used_only_where_it_is_asked_to_try() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    let may = |name: &str, actions: &[&str]| {
        ground.front.principal(
            name,
            vec![json!({ "Version": "2012-10-17", "Statement": [
                { "Effect": "Allow", "Action": actions, "Resource": "*",
                  "Condition": { "StringEquals": { "kms:EncryptionContext:tenant": "alice" } } },
                {
                    "Effect": "Allow",
                    "Action": if name == "blind" { "kms:ListKeys" } else { "kms:DescribeKey" },
                    "Resource": "*",
                },
            ] })],
        )
    };
    let describer = may("describer", &["kms:ListKeys"]);
    let writer = may("writer", &["kms:Encrypt"]);
    let generator = may("generator", &["kms:GenerateDataKey"]);
    let user = may("user", &["kms:Encrypt", "kms:Decrypt"]);
    let blind = may("blind", &["kms:Encrypt", "kms:Decrypt"]);
    for (login, check, expected) in [
        (&describer, HealthCheck::Describe, Ok(())),
        (&describer, HealthCheck::TryUse, Err(ErrorKind::Denied)),
        (&describer, HealthCheck::TryWrap, Err(ErrorKind::Denied)),
        (&describer, HealthCheck::TryGenerate, Err(ErrorKind::Denied)),
        (&writer, HealthCheck::TryWrap, Ok(())),
        (&writer, HealthCheck::TryUse, Err(ErrorKind::Denied)),
        (&generator, HealthCheck::TryGenerate, Ok(())),
        (&generator, HealthCheck::TryWrap, Err(ErrorKind::Denied)),
        (&user, HealthCheck::TryUse, Ok(())),
        (&blind, HealthCheck::TryUse, Ok(())),
        (&blind, HealthCheck::Describe, Err(ErrorKind::Denied)),
    ] {
        let builder = AwsKmsKek::builder(&arn).client(ground.front.client(REGION, login));
        let kek =
            builder.health_check(check).health_context(context("alice")).build().await.unwrap();
        let started =
            Envelope::builder().wrap_with(kek).start(waxseal::StartOptions::default()).await;
        assert_eq!(started.map(drop).map_err(|error| error.kind()), expected, "{check:?}");
    }
    // The context that a policy asks for is the user's to give.
    let builder = AwsKmsKek::builder(&arn)
        .client(ground.front.client(REGION, &user))
        .health_check(HealthCheck::TryUse);
    assert_eq!(
        builder.build().await.unwrap().health().await.unwrap_err().class(),
        KekErrorClass::Denied
    );
}

#[tokio::test]
async fn health_tells_key_states_apart() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    let kek = ground.kek(&arn).await;
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    ground.front.world().key(&arn).state = State::Updating;
    assert_eq!(kek.health().await.unwrap(), Health::Ready, "KMS serves while it updates");
    for (state, class) in [
        (State::Disabled, KekErrorClass::Denied),
        (State::PendingDeletion, KekErrorClass::Denied),
        (State::PendingImport, KekErrorClass::Denied),
        (State::Unavailable, KekErrorClass::Denied),
        (State::Creating, KekErrorClass::Unavailable),
    ] {
        ground.front.world().key(&arn).state = state;
        let error = kek.health().await.unwrap_err();
        assert_eq!(error.class(), class, "{state:?}");
        assert!(error.to_string().contains(&format!("{state:?}")), "{error}");
    }
    ground.front.world().delete(&arn);
    assert_eq!(kek.health().await.unwrap_err().class(), KekErrorClass::Denied);
    let signing = ground.front.create_key(REGION);
    ground.front.world().key(&signing).usage = "SIGN_VERIFY";
    assert_eq!(
        ground.kek(&signing).await.health().await.unwrap_err().class(),
        KekErrorClass::Misconfigured
    );
}

#[tokio::test]
async fn imported_key_material_comes_goes_and_comes_back() {
    let ground = Ground::new();
    let arn = ground.front.world().insert_key(
        REGION,
        kms_front::ACCOUNT,
        "11112222-3333-4444-5555-666677778888",
        None,
    );
    let kek = ground.kek(&arn).await;
    let context = context("alice");
    let error = kek.wrap(&context, &dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Denied);
    assert!(error.to_string().contains("is pending import"), "{error}");

    let in_an_hour =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
            + 3600.5;
    ground.front.world().import(&arn, [7; 32], Some(in_an_hour)).unwrap();
    kek.read_key().await.unwrap();
    let wrapped = kek.wrap(&context, &dek()).await.unwrap();
    assert!(matches!(kek.health().await.unwrap(), Health::Degraded(why) if why.contains("in 1 h")));

    let admin = ground.front.client(REGION, &ground.login);
    admin.delete_imported_key_material().key_id(&arn).send().await.unwrap();
    assert_eq!(denied_or_invalid(&kek, &context, &wrapped).await, KekErrorClass::Denied);
    assert!(
        ground.front.world().import(&arn, [8; 32], None).is_err(),
        "only the same material opens what it wrapped"
    );
    ground.front.world().import(&arn, [7; 32], None).unwrap();
    kek.unwrap(&context, &wrapped).await.unwrap();
    assert_eq!(kek.health().await.unwrap(), Health::Ready);

    // A rotation to other material, which is imported first.
    assert!(admin.rotate_key_on_demand().key_id(&arn).send().await.is_err());
    ground.front.world().import_next(&arn, [9; 32]);
    admin.rotate_key_on_demand().key_id(&arn).send().await.unwrap();
    kek.read_key().await.unwrap();
    let (_, generated) = kek.generate(&context).await.unwrap();
    assert!(kek.is_current(&generated) == Some(true) && kek.is_current(&wrapped) == Some(false));
    kek.unwrap(&context, &wrapped).await.unwrap();
}
