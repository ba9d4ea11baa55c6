//! What each option of the builder changes.

use super::*;

#[tokio::test]
async fn each_option_out_of_range_or_in_contradiction_is_refused_by_name() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    let cases: Vec<(&str, AwsKmsKekBuilder)> = vec![
        ("region", ground.builder(&arn).region(OTHER_REGION)),
        ("region: it is us-east-1, but ", ground.builder(&arn).region("us-east-1")),
        ("region", ground.builder("alias/x").region("eu west")),
        // Not looked up as if they were ids: KMS would deny those.
        ("key: it is empty", ground.builder("")),
        ("ACCOUNT has 12 digits", ground.builder("arn:aws:kms:eu-west-1:11112222333:key/1")),
        ("arn:aws:kms:REGION", ground.builder(&arn.replace(":kms:", ":kmz:"))),
        ("arn:aws:kms:REGION", ground.builder(&arn.replace(":key/", ":keys/"))),
        ("arn:aws:kms:REGION", ground.builder(&arn.replace(":key/", ":alias/a b"))),
        ("arn:aws:kms:REGION", ground.builder("arn:aws:kms:eu-west-1:1:alias/x")),
        ("endpoint_url", ground.builder(&arn).endpoint_url("http://kms.example")),
        ("endpoint_url: not an https URL, nor", ground.builder(&arn).endpoint_url("kms.example")),
        ("endpoint_url", ground.builder(&arn).endpoint_url("https://user@kms.example")),
        ("endpoint_url", ground.builder(&arn).endpoint_url("http://127.0.0.1.example")),
        ("endpoint_url", ground.builder(&arn).endpoint_url("https://kms.example").fips(true)),
        ("endpoint_url", ground.builder(&arn).endpoint_url("https://kms.example").dual_stack(true)),
        ("regions", ground.builder(&arn).regions([REGION])),
        ("former_keys", ground.builder(&arn).former_keys([arn.as_str()])),
        ("former_keys", ground.builder(&arn).former_keys([arn.replace(REGION, OTHER_REGION)])),
        ("former_keys", ground.builder(&arn).former_keys(["alias/old"])),
        ("grant_tokens", ground.builder(&arn).grant_tokens(["t"; 11])),
        ("key_max_age", ground.builder(&arn).key_max_age(std::time::Duration::from_millis(999))),
        ("key_max_age", ground.builder(&arn).key_max_age(std::time::Duration::from_secs(86_401))),
    ];
    for (option, builder) in cases {
        let shown = format!("{builder:?}");
        let error = builder.build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{option}: {shown}");
        assert!(error.to_string().contains(option), "{error} does not name {option}");
    }
    for url in
        ["https://vpce-1.kms.eu-west-1.vpce.amazonaws.com", "http://localhost:1", "http://[::1]:1/"]
    {
        assert!(ground.builder(&arn).endpoint_url(url).build().await.is_ok(), "{url}");
    }
}

#[test]
fn outside_a_tokio_runtime_the_build_is_refused() {
    let error = support::block_on(AwsKmsKek::builder("alias/x").build()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
}

/// Writes down where requests go and which retries they were to have, and lets none out.
#[derive(Debug, Clone, Default)]
struct Watch(Arc<std::sync::Mutex<Vec<String>>>);

impl aws_sdk_kms::config::Intercept for Watch {
    fn name(&self) -> &'static str {
        "Watch"
    }

    fn read_before_transmit(
        &self,
        context: &aws_sdk_kms::config::interceptors::BeforeTransmitInterceptorContextRef<'_>,
        _: &aws_sdk_kms::config::RuntimeComponents,
        _: &mut aws_sdk_kms::config::ConfigBag,
    ) -> Result<(), aws_sdk_kms::error::BoxError> {
        self.0.lock().unwrap().push(context.request().uri().to_owned());
        Err("not to be sent".into())
    }
}

#[tokio::test]
async fn region_endpoint_fips_and_dual_stack_decide_who_is_called() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    let watch = Watch::default();
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(aws_sdk_kms::config::BehaviorVersion::latest())
        .credentials_provider(ground.login.credentials())
        .interceptor(watch.clone())
        .build();
    let client = aws_sdk_kms::Client::from_conf(config);
    let builder = |key: &str| AwsKmsKek::builder(key).client(client.clone());
    for (builder, uri) in [
        (builder(&arn), "https://kms.eu-west-1.amazonaws.com/"),
        (builder(&arn).fips(true), "https://kms-fips.eu-west-1.amazonaws.com/"),
        (builder(&arn).dual_stack(true), "https://kms.eu-west-1.api.aws/"),
        (builder(&arn).fips(true).dual_stack(true), "https://kms-fips.eu-west-1.api.aws/"),
        (builder(&arn).endpoint_url("https://vpce-1.example/kms"), "https://vpce-1.example/kms/"),
    ] {
        let kek = builder.build().await.unwrap();
        assert!(kek.generate(&context("alice")).await.is_err());
        assert_eq!(watch.0.lock().unwrap().drain(..).collect::<Vec<_>>(), [uri]);
    }
    // An alias says no Region.
    assert_eq!(builder("alias/x").build().await.unwrap_err().kind(), ErrorKind::InvalidOption);
    assert!(builder("alias/x").region("eu-central-1").build().await.is_err());
    assert_eq!(watch.0.lock().unwrap().pop().unwrap(), "https://kms.eu-central-1.amazonaws.com/");
}

#[tokio::test]
async fn an_sdk_config_serves_as_well_as_a_client() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    // Without a behaviour version, which a client alone would panic over.
    let config = aws_config::SdkConfig::builder()
        .endpoint_url(ground.front.url())
        .credentials_provider(aws_sdk_kms::config::SharedCredentialsProvider::new(
            ground.login.credentials(),
        ))
        .build();
    let kek = AwsKmsKek::builder(&arn).sdk_config(&config).build().await.unwrap();
    let wrapped = kek.wrap(&context("alice"), &dek()).await.unwrap();
    kek.unwrap(&context("alice"), &wrapped).await.unwrap();
}

#[tokio::test]
async fn the_sdk_itself_tries_once() {
    let ground = Ground::new();
    let arn = ground.front.create_key(REGION);
    let client = ground.front.client(REGION, &ground.login);
    let retries = aws_sdk_kms::config::retry::RetryConfig::standard().with_max_attempts(5);
    let config = client.config().to_builder().retry_config(retries).build();
    let kek = AwsKmsKek::builder(&arn)
        .client(aws_sdk_kms::Client::from_conf(config))
        .build()
        .await
        .unwrap();
    ground.front.fail(Fault::error(500, "KMSInternalException", ""));
    kek.generate(&context("alice")).await.unwrap_err();
    assert_eq!(ground.front.count("GenerateDataKey"), 1);
}
