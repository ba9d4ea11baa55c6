//! Rotation, rewrapping, related keys of other Regions, and discovery.

use super::*;

#[tokio::test]
async fn a_rotation_is_walked_through_automatic_and_on_demand() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    let kek = ground.kek(&arn).await;
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let context = context("alice");
    let admin = ground.front.client(REGION, &ground.login);
    let mut sealed = envelope.encrypt(&context, Aad::from(b"row 1"), b"text").await.unwrap();
    assert!(!envelope.needs_rewrap(&sealed).unwrap());
    for on_demand in [true, false] {
        if on_demand {
            admin.rotate_key_on_demand().key_id(&arn).send().await.unwrap();
        } else {
            admin.enable_key_rotation().key_id(&arn).send().await.unwrap();
            ground.front.world().rotate(&arn, false);
        }
        // KMS unwraps what the earlier material wrapped, and callers notice nothing.
        let reader = Envelope::builder().unwrap_with(ground.kek(&arn).await).build().unwrap();
        assert_eq!(
            &*reader.decrypt(&context, Aad::from(b"row 1"), &sealed).await.unwrap(),
            b"text"
        );
        kek.read_key().await.unwrap();
        let calls = ground.front.calls().len();
        assert!(envelope.needs_rewrap(&sealed).unwrap());
        assert_eq!(ground.front.calls().len(), calls, "without a call");
        let decrypts = ground.front.count("Decrypt");
        sealed = envelope.rewrap_unverified(&context, &sealed).await.unwrap();
        assert_eq!(ground.front.count("Decrypt"), decrypts, "no DEK came into the process");
        assert!(!envelope.needs_rewrap(&sealed).unwrap());
        let material = ground.front.world().key(&arn).current_material().unwrap();
        assert_eq!(
            data_encoding::HEXLOWER.encode(&inspect(&sealed).unwrap().keks[0].meta),
            material
        );
    }
    assert_eq!(ground.front.count("ReEncrypt"), 2);
    let reader = Envelope::builder().unwrap_with(kek).build().unwrap();
    assert_eq!(&*reader.decrypt(&context, Aad::from(b"row 1"), &sealed).await.unwrap(), b"text");
    let rotations = admin.list_key_rotations().key_id(&arn).send().await.unwrap();
    assert_eq!(rotations.rotations().len(), 2);
}

#[tokio::test]
async fn a_rewrap_is_verified_by_default() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    let kek = ground.kek(&arn).await;
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let sealed = envelope.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    ground.front.world().rotate(&arn, true);
    kek.read_key().await.unwrap();
    envelope.rewrap(&context("alice"), &sealed).await.unwrap();
    assert_eq!((ground.front.count("ReEncrypt"), ground.front.count("Decrypt")), (1, 1));
}

#[tokio::test]
async fn deks_move_from_one_key_to_another_within_kms() {
    let ground = Ground::new();
    let (old, new) = (ground.front.create_key(REGION), ground.front.create_key(REGION));
    let before = Envelope::builder().wrap_with(ground.kek(&old).await).build().unwrap();
    let context = context("alice");
    let sealed = before.encrypt(&context, Aad::from(b"row 1"), b"text").await.unwrap();

    let moved_to = ground.builder(&new).former_keys([old.as_str()]).build().await.unwrap();
    let envelope = Envelope::builder().wrap_with(moved_to).build().unwrap();
    assert_eq!(
        &*envelope.decrypt(&context, Aad::from(b"row 1"), &sealed).await.unwrap(),
        b"text",
        "the former key still unwraps"
    );
    assert!(envelope.needs_rewrap(&sealed).unwrap());
    let decrypts = ground.front.count("Decrypt");
    let moved = envelope.rewrap_unverified(&context, &sealed).await.unwrap();
    assert_eq!(ground.front.count("Decrypt"), decrypts);
    let keks = inspect(&moved).unwrap().keks;
    assert_eq!((keks.len(), keks[0].kek_id.as_str()), (1, new.as_str()));
    assert!(!envelope.needs_rewrap(&moved).unwrap());

    // The old key can go.
    ground.front.world().key(&old).state = State::PendingDeletion;
    let reader = Envelope::builder().unwrap_with(ground.kek(&new).await).build().unwrap();
    assert_eq!(&*reader.decrypt(&context, Aad::from(b"row 1"), &moved).await.unwrap(), b"text");
    let reader = Envelope::builder().unwrap_with(ground.kek(&new).await).build().unwrap();
    assert_eq!(
        reader.decrypt(&context, Aad::from(b"row 1"), &sealed).await.unwrap_err().kind(),
        ErrorKind::UnknownKek
    );
}

/// A primary in one Region and its replica in the other.
async fn related(ground: &Ground) -> (String, String) {
    let primary = ground.front.world().create_key(REGION, true);
    let admin = ground.front.client(REGION, &ground.login);
    admin.replicate_key().key_id(&primary).replica_region(OTHER_REGION).send().await.unwrap();
    (primary.clone(), primary.replace(REGION, OTHER_REGION))
}

#[tokio::test]
async fn what_one_region_sealed_the_related_key_of_another_opens_when_it_is_told_to() {
    let ground = Ground::new();
    let (here, there) = related(&ground).await;
    let context = context("alice");
    let writer = Envelope::builder().wrap_with(ground.kek(&here).await).build().unwrap();
    let sealed = writer.encrypt(&context, Aad::empty(), b"text").await.unwrap();
    let elsewhere =
        || AwsKmsKek::builder(&there).client(ground.front.client(OTHER_REGION, &ground.login));

    let untold =
        Envelope::builder().unwrap_with(elsewhere().build().await.unwrap()).build().unwrap();
    assert_eq!(
        untold.decrypt(&context, Aad::empty(), &sealed).await.unwrap_err().kind(),
        ErrorKind::UnknownKek
    );

    let kek = elsewhere().related_keys(true).build().await.unwrap();
    let reader = Envelope::builder().unwrap_with(kek).build().unwrap();
    // The first Region is gone; nothing is asked of it.
    ground.front.world().delete(&here);
    assert_eq!(&*reader.decrypt(&context, Aad::empty(), &sealed).await.unwrap(), b"text");
    let call = ground.front.calls().into_iter().rfind(|call| call.operation == "Decrypt").unwrap();
    assert_eq!(
        (call.region.as_str(), call.request["KeyId"].as_str()),
        (OTHER_REGION, Some(there.as_str()))
    );
}

#[tokio::test]
async fn related_keys_share_their_key_material_and_a_rewrap_moves_a_dek_to_this_region() {
    let ground = Ground::new();
    let (here, there) = related(&ground).await;
    let context = context("alice");
    let wrapped = ground.kek(&here).await.wrap(&context, &dek()).await.unwrap();
    let client = ground.front.client(OTHER_REGION, &ground.login);
    let kek = AwsKmsKek::builder(&there).client(client).related_keys(true).build().await.unwrap();
    kek.read_key().await.unwrap();
    assert!(kek.is_current(&wrapped) == Some(true));
    let moved = kek.rewrap(&context, &wrapped).await.unwrap();
    assert_eq!((moved.kek_id().as_str(), moved.meta()), (there.as_str(), wrapped.meta()));
}

#[tokio::test]
async fn keys_that_only_look_related_are_not_taken_for_it() {
    let ground = Ground::new();
    let (here, there) = related(&ground).await;
    let kek = ground.builder(&here).related_keys(true).build().await.unwrap();
    let recognised = |arn: &str| kek.recognises(&KekId::new(arn).unwrap());
    assert!(recognised(&here) && recognised(&there));
    for arn in [
        there.replace(kms_front::ACCOUNT, "444455556666"),
        there.replace("arn:aws:", "arn:aws-cn:"),
        format!("{there}0"),
        there.replace("key/", "alias/"),
        there.replace("mrk-", ""),
    ] {
        assert!(!recognised(&arn), "{arn}");
    }
    let single = ground.front.create_key(REGION);
    let error = ground.builder(&single).related_keys(true).build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "a key of one Region has no related keys");
}

#[tokio::test]
async fn discovery_reads_by_the_keys_of_the_named_accounts_and_regions_only() {
    let ground = Ground::new();
    let context = context("alice");
    let here = ground.front.create_key(REGION);
    let wrapped = ground.kek(&here).await.wrap(&context, &dek()).await.unwrap();
    let client = || ground.front.client(REGION, &ground.login);
    let kek =
        AwsKmsKek::discover("aws", [kms_front::ACCOUNT]).client(client()).build().await.unwrap();
    kek.unwrap(&context, &wrapped).await.unwrap();
    let call = ground.front.calls().into_iter().rfind(|call| call.operation == "Decrypt").unwrap();
    assert_eq!(call.request["KeyId"], here.as_str(), "the key is named all the same");

    let recognised = |kek: &AwsKmsKek, arn: &str| kek.recognises(&KekId::new(arn).unwrap());
    for outside in [
        here.replace(kms_front::ACCOUNT, "444455556666"),
        here.replace(REGION, OTHER_REGION),
        here.replace("arn:aws:", "arn:aws-us-gov:"),
        "local:orders".into(),
        here.replace("key/", "alias/"),
    ] {
        assert!(!recognised(&kek, &outside), "{outside}");
    }
    let calls = ground.front.calls().len();
    let outside =
        WrappedDek::new(KekId::new(here.replace(REGION, OTHER_REGION)).unwrap(), wrapped.wrapped())
            .unwrap();
    assert_eq!(denied_or_invalid(&kek, &context, &outside).await, KekErrorClass::Invalid);
    assert_eq!(ground.front.calls().len(), calls, "nobody was asked");

    // With both Regions named, each is asked at home.
    let there = ground.front.create_key(OTHER_REGION);
    let other = AwsKmsKek::builder(&there)
        .client(ground.front.client(OTHER_REGION, &ground.login))
        .build()
        .await
        .unwrap();
    let over_there = other.wrap(&context, &dek()).await.unwrap();
    let both = AwsKmsKek::discover("aws", [kms_front::ACCOUNT])
        .regions([REGION, OTHER_REGION])
        .client(client());
    let both = both.build().await.unwrap();
    both.unwrap(&context, &wrapped).await.unwrap();
    both.unwrap(&context, &over_there).await.unwrap();
    let call = ground.front.calls().into_iter().rfind(|call| call.operation == "Decrypt").unwrap();
    assert_eq!(call.region, OTHER_REGION);
}

#[tokio::test]
async fn discovery_writes_nothing_and_asks_for_its_bounds() {
    let ground = Ground::new();
    let discover = |partition: &str, accounts: &[&str]| {
        AwsKmsKek::discover(partition, accounts.iter().copied())
            .client(ground.front.client(REGION, &ground.login))
    };
    let kek = discover("aws", &[kms_front::ACCOUNT]).build().await.unwrap();
    assert_eq!(
        kek.wrap(&context("alice"), &dek()).await.unwrap_err().class(),
        KekErrorClass::Misconfigured
    );
    assert_eq!(
        kek.generate(&context("alice")).await.unwrap_err().class(),
        KekErrorClass::Misconfigured
    );
    for (partition, accounts) in
        [("aws", &[][..]), ("aws", &["*"]), ("", &["111122223333"]), ("*", &["111122223333"])]
    {
        let error = discover(partition, accounts).build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{partition} {accounts:?}");
    }
}
