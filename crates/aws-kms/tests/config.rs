//! The configuration as data: serde, the URI, that each option reaches the provider; and what an
//! error and its causes say.
#![cfg(feature = "serde")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use proptest::prelude::*;
use waxseal::kek::{Health, KekProvider};
use waxseal::{EncryptionContext, ErrorKind};
use waxseal_aws_kms::{AwsKmsKek, Config, HealthCheck};
use waxseal_testing::kms_front::{KmsFront, State};
use waxseal_testing::support::{a_dek, context};

const REGION: &str = "eu-west-1";
const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/11112222-3333-4444-5555-666677778888";
const FORMER: &str = "arn:aws:kms:eu-west-1:111122223333:key/99992222-3333-4444-5555-666677778888";
const STORE: &str = "cks-1234567890abcdef0";

/// Every option, with a value that differs from the default.
fn full() -> Config {
    Config::new(ARN)
        .region(REGION)
        .endpoint_url("https://kms.example/a?b")
        .fips(false)
        .dual_stack(false)
        .related_keys(true)
        .former_keys([FORMER])
        .external_key_store(STORE)
        .external_former_keys("cks-2", [FORMER, ARN])
        .health_check(HealthCheck::TryUse)
        .health_context(context("alice"))
        .key_max_age(Duration::from_secs(90))
}

const FULL: &str = "aws-kms://arn:aws:kms:eu-west-1:111122223333:key/11112222-3333-4444-5555-666677778888\
    ?region=eu-west-1&endpoint-url=https://kms.example/a%3Fb&fips=false&dual-stack=false&related-keys=true\
    &former-keys=arn:aws:kms:eu-west-1:111122223333:key/99992222-3333-4444-5555-666677778888\
    &external-key-store=cks-1234567890abcdef0\
    &external-former-keys=cks-2/arn:aws:kms:eu-west-1:111122223333:key/99992222-3333-4444-5555-666677778888,\
    cks-2/arn:aws:kms:eu-west-1:111122223333:key/11112222-3333-4444-5555-666677778888\
    &health-check=try-use&health-context=CONTEXT&key-max-age=1m30s";

const FULL_IN_TOML: &str = "
key = 'arn:aws:kms:eu-west-1:111122223333:key/11112222-3333-4444-5555-666677778888'
region = 'eu-west-1'
endpoint_url = 'https://kms.example/a?b'
fips = false
dual_stack = false
related_keys = true
former_keys = ['arn:aws:kms:eu-west-1:111122223333:key/99992222-3333-4444-5555-666677778888']
external_key_store = 'cks-1234567890abcdef0'
health_check = 'try-use'
key_max_age = '90s'
[external_former_keys]
cks-2 = [
  'arn:aws:kms:eu-west-1:111122223333:key/99992222-3333-4444-5555-666677778888',
  'arn:aws:kms:eu-west-1:111122223333:key/11112222-3333-4444-5555-666677778888',
]
[health_context]
CONTEXT
";

#[test]
fn code_a_file_and_a_uri_say_the_same() {
    let context = context("alice");
    let in_uri: Vec<_> = context.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let uri = FULL.replace("CONTEXT", &in_uri.join(","));
    assert_eq!(full().to_string(), uri);
    assert_eq!(uri.parse::<Config>().unwrap(), full());
    let in_toml: Vec<_> =
        context.iter().map(|(name, value)| format!("{name} = '{value}'")).collect();
    assert_eq!(
        toml::from_str::<Config>(&FULL_IN_TOML.replace("CONTEXT", &in_toml.join("\n"))).unwrap(),
        full()
    );
    assert_eq!(full().key(), Some(ARN));

    let discovery =
        Config::discover("aws", ["111122223333", "444455556666"]).regions([REGION, "eu-west-2"]);
    let uri =
        "aws-kms://?partition=aws&accounts=111122223333,444455556666&regions=eu-west-1,eu-west-2";
    assert_eq!((discovery.to_string().as_str(), discovery.key()), (uri, None));
    assert_eq!(uri.parse::<Config>().unwrap(), discovery);
}

#[test]
fn the_uris_of_peers_are_read() {
    assert_eq!(format!("aws-kms://{ARN}").parse::<Config>().unwrap(), Config::new(ARN));
    let alias = "arn:aws:kms:eu-west-1:111122223333:alias/orders";
    assert_eq!(format!("aws-kms://{alias}").parse::<Config>().unwrap(), Config::new(alias));
    let config: Config =
        "aws-kms://alias/orders?region=eu-west-1&endpoint=https://kms.example".parse().unwrap();
    assert_eq!(
        config,
        Config::new("alias/orders").region(REGION).endpoint_url("https://kms.example")
    );
}

fn any_config() -> impl Strategy<Value = Config> {
    let key = "[A-Za-z0-9_-][A-Za-z0-9:/_-]{0,60}";
    let texts = || prop::collection::vec(".*", 0..3);
    let checks = [
        HealthCheck::Describe,
        HealthCheck::TryWrap,
        HealthCheck::TryGenerate,
        HealthCheck::TryUse,
    ];
    let first = (
        key,
        prop::option::of("[^@]*"),
        prop::option::of("[^@]*"),
        texts(),
        texts(),
        any::<bool>(),
    );
    let second = (
        prop::collection::vec((".*", texts()), 0..3),
        prop::option::of(prop::sample::select(checks.to_vec())),
        prop::option::of("[a-z=,/ é]{1,20}"),
        prop::option::of(any::<u64>()),
        prop::option::of((".*", prop::collection::vec(".*", 1..3))),
        prop::option::of((any::<bool>(), any::<bool>(), any::<bool>())),
    );
    (first, second).prop_map(|((key, region, url, former, regions, _), second)| {
        let (external, check, pair, age, discovery, flags) = second;
        let mut config = match discovery {
            Some((partition, accounts)) => Config::discover(partition, accounts),
            None => Config::new(key),
        };
        config = config.former_keys(former).regions(regions);
        for (store, arns) in external {
            config = config.external_former_keys(store, arns);
        }
        if let Some(region) = region {
            config = config.region(&region).external_key_store(region);
        }
        if let Some(url) = url {
            config = config.endpoint_url(url);
        }
        if let Some(check) = check {
            config = config.health_check(check);
        }
        if let Some(text) = pair {
            config = config.health_context(EncryptionContext::new([(&text, &text)]).unwrap());
        }
        if let Some(secs) = age {
            config = config.key_max_age(Duration::from_secs(secs));
        }
        match flags {
            Some((fips, dual_stack, related)) => {
                config.fips(fips).dual_stack(dual_stack).related_keys(related)
            }
            None => config,
        }
    })
}

proptest! {
    #[test]
    fn the_uri_is_read_back(config in any_config()) {
        prop_assert_eq!(config.to_string().parse::<Config>().unwrap(), config);
    }

    #[test]
    fn serde_reads_back_what_it_wrote(config in any_config()) {
        let json = serde_json::to_string(&config).unwrap();
        prop_assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config.clone());
        let toml = toml::to_string(&config).unwrap();
        prop_assert_eq!(toml::from_str::<Config>(&toml).unwrap(), config);
    }
}

#[test]
fn an_error_names_the_part_and_shows_no_secret() {
    for (uri, part) in [
        ("kms://KEY".to_owned(), "aws-kms URI: it does not begin with `aws-kms://`"),
        ("aws-kms:KEY".to_owned(), "does not begin with `aws-kms://`"),
        ("aws-kms://".to_owned(), "key: it is missing"),
        ("aws-kms://?partition=aws".to_owned(), "discovery: needs partition and accounts"),
        ("aws-kms://?accounts=111122223333".to_owned(), "discovery: needs partition and accounts"),
        (format!("aws-kms://{ARN}?accounts=1"), "key: not together with partition and accounts"),
        ("aws-kms:///arn".to_owned(), "the key is neither an ARN, an id, nor an alias"),
        ("aws-kms://hunter2%20".to_owned(), "the key is neither an ARN, an id, nor an alias"),
        (format!("aws-kms://AKIA:hunter2@{ARN}"), "no user or password before the key"),
        (
            format!("aws-kms://{ARN}?endpoint=https://u:hunter2@kms"),
            "endpoint_url: must not contain a user",
        ),
        (format!("aws-kms://{ARN}?endpoint=https://a&endpoint-url=https://a"), "are the same"),
        (
            format!("aws-kms://{ARN}?regin=eu-west-1"),
            "parameter `regin` is unknown; did you mean `region`?",
        ),
        (format!("aws-kms://{ARN}?external_key_store=x"), "did you mean `external-key-store`?"),
        (format!("aws-kms://{ARN}?secret-access-key=hunter2"), "a secret must not be in the URI"),
        (format!("aws-kms://{ARN}?session-token=hunter2"), "a secret must not be in the URI"),
        (format!("aws-kms://{ARN}?fips=yes"), "parameter `fips` is neither true nor false"),
        (
            format!("aws-kms://{ARN}?health-check=try"),
            "`health-check` is none of describe, try-wrap",
        ),
        (format!("aws-kms://{ARN}?health-context=purpose"), "`health-context`: an item has no `=`"),
        (format!("aws-kms://{ARN}?health-context=waxseal=x"), "is reserved"),
        (
            format!("aws-kms://{ARN}?external-former-keys=cks-1"),
            "`external-former-keys`: an item has no `/`",
        ),
        (
            format!("aws-kms://{ARN}?key-max-age=300"),
            "`key-max-age` is not a duration with its unit",
        ),
    ] {
        let error = uri.parse::<Config>().unwrap_err();
        assert!(error.to_string().contains(part), "{uri}: {error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{uri}: {error:?}");
    }
    for (toml, part) in [
        ("region = 'eu-west-1'", "key: it is missing"),
        ("key = 'k'\nregin = 'hunter2'", "regin"),
        ("key = 'k'\nsecret_access_key = 'hunter2'", "secret_access_key"),
        ("key = 'k'\nkey_max_age = 300", "a duration with its unit"),
        ("key = 'k'\nhealth_check = 'try'", "try-wrap"),
    ] {
        let error = toml::from_str::<Config>(toml).unwrap_err();
        assert!(
            error.message().contains(part) && !error.message().contains("hunter2"),
            "{toml}: {error}"
        );
    }
    let error =
        serde_json::from_str::<Config>(r#"{"key":"k","endpoint_url":"https://u:hunter2@kms"}"#)
            .unwrap_err();
    assert!(
        error.to_string().contains("endpoint_url") && !error.to_string().contains("hunter2"),
        "{error}"
    );
    let config = Config::new("k").endpoint_url("https://u:hunter2@kms");
    let json = serde_json::to_string(&config).unwrap_or_default();
    assert!(!format!("{config} {config:?} {json}").contains("hunter2"));
}

async fn refusal(config: &Config) -> String {
    let front = KmsFront::start();
    let client = front.client(REGION, &front.admin());
    let error = AwsKmsKek::from_config(config).client(client).build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
    error.to_string()
}

#[tokio::test]
async fn every_option_reaches_the_builder() {
    let key = || Config::new(ARN);
    let mrk = ARN.replace("key/", "key/mrk-");
    for (config, named) in [
        (key().region("nowhere!"), "region"),
        (key().region("eu-west-2"), "region"),
        (key().endpoint_url("http://elsewhere.example"), "endpoint_url"),
        (key().endpoint_url("https://u:p@kms.example"), "endpoint_url"),
        (key().endpoint_url("https://kms.example").fips(true), "fips"),
        (key().endpoint_url("https://kms.example").dual_stack(true), "dual_stack"),
        (key().related_keys(true), "related_keys"),
        (key().former_keys(["no ARN"]), "former_keys"),
        (key().external_key_store("no store"), "external_key_store"),
        (Config::new(&mrk).external_key_store(STORE), "external_key_store"),
        (key().external_former_keys("no store", [FORMER]), "external_former_keys"),
        (key().external_former_keys(STORE, ["no ARN"]), "external_former_keys"),
        (key().key_max_age(Duration::ZERO), "key_max_age"),
        (key().regions([REGION]), "regions"),
        (Config::discover("gcp", ["111122223333"]), "discovery"),
        (Config::discover("aws", ["1"]), "discovery"),
        (Config::discover("aws", ["111122223333"]).regions(["NO"]), "regions"),
    ] {
        let text = refusal(&config).await;
        assert!(text.contains(named), "{config}: {text}");
    }
}

#[tokio::test]
async fn a_kek_of_a_uri_wraps_and_unwraps_at_its_endpoint() {
    let (front, other) = (KmsFront::start(), KmsFront::start());
    let login = front.admin();
    let (arn, former) = (front.create_key(REGION), front.create_key(REGION));
    let health = "health-check=try-use&health-context=purpose=health";
    let uri = format!("aws-kms://{arn}?endpoint={}&former-keys={former}&{health}", front.url());
    let config: Config = uri.parse().unwrap();
    // The client has the credentials, and leads elsewhere.
    let kek =
        AwsKmsKek::from_config(&config).client(other.client(REGION, &login)).build().await.unwrap();
    assert_eq!(kek.id().as_str(), arn);

    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
    let earlier =
        AwsKmsKek::builder(&former).client(front.client(REGION, &login)).build().await.unwrap();
    let wrapped = earlier.wrap(&alice, &dek).await.unwrap();
    assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());

    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    let calls = front.calls();
    let used = calls.iter().filter(|call| call.request["EncryptionContext"]["purpose"] == "health");
    assert_eq!(
        used.map(|call| call.operation.as_str()).collect::<Vec<_>>(),
        ["Encrypt", "Decrypt"]
    );
    assert!(other.calls().is_empty());
}

#[tokio::test]
async fn a_uri_that_is_wrong_makes_no_kek() {
    let error = AwsKmsKek::from_uri(format!("aws-kms://{ARN}?regoin=x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    assert!(error.to_string().contains("did you mean `region`?"), "{error}");
}

#[tokio::test]
async fn discovery_of_a_uri_reads_and_does_not_wrap() {
    let front = KmsFront::start();
    let login = front.admin();
    let arn = front.create_key(REGION);
    let account = arn.split(':').nth(4).unwrap();
    let kek = AwsKmsKek::builder(&arn).client(front.client(REGION, &login)).build().await.unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    for (regions, reads) in [("eu-west-1,us-east-1", true), ("us-east-1", false)] {
        let config: Config =
            format!("aws-kms://?partition=aws&accounts={account}&regions={regions}")
                .parse()
                .unwrap();
        let kek = AwsKmsKek::from_config(&config)
            .client(front.client(REGION, &login))
            .build()
            .await
            .unwrap();
        assert_eq!(kek.unwrap(&alice, &wrapped).await.is_ok(), reads, "{regions}");
        assert!(kek.wrap(&alice, &dek).await.is_err());
    }
}

/// An error and its causes, as anyhow prints them.
fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}

/// No line repeats the text of a line below it.
fn says_nothing_twice(error: &dyn std::error::Error) -> String {
    let lines = chain(error);
    for (i, line) in lines.iter().enumerate() {
        for below in lines.iter().skip(i + 1) {
            assert!(!line.contains(below.as_str()), "{lines:#?}");
        }
        let parts: Vec<_> = line.split(": ").collect();
        for (n, part) in parts.iter().enumerate() {
            assert!(!parts[n + 1..].contains(part), "{lines:#?}");
        }
    }
    lines.join("\n")
}

#[tokio::test]
async fn no_failure_says_anything_twice() {
    let front = KmsFront::start();
    let admin = front.admin();
    let arn = front.create_key(REGION);
    let (alice, dek) = (context("alice"), a_dek());
    let of = async |url: &str, login| {
        let builder =
            AwsKmsKek::builder(&arn).client(front.client(REGION, login)).endpoint_url(url);
        let kek = builder.build().await.unwrap();
        let error = kek.wrap(&alice, &dek).await.unwrap_err();
        let text = says_nothing_twice(&error);
        says_nothing_twice(&waxseal::Error::from(error));
        text
    };
    // No connection; TLS where there is none.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = of(&format!("http://{closed}"), &admin).await;
    assert!(text.contains("refused"), "{text}");
    let at = format!("unavailable: Encrypt at http://{closed}: ");
    assert!(text.starts_with(&at), "{text}");
    // What is in a path may be a secret.
    let text = of(&format!("http://{closed}/hunter2?x"), &admin).await;
    assert!(text.starts_with(&at) && !text.contains("hunter2"), "{text}");
    let https = front.url().replace("http:", "https:");
    let text = of(&https, &admin).await;
    assert!(text.starts_with(&format!("unavailable: Encrypt at {https}: ")), "{text}");
    // A login that KMS does not know, and one that may not.
    let stranger = KmsFront::start().admin();
    let text = of(&front.url(), &stranger).await;
    assert!(text.contains("Encrypt: "), "{text}");
    let nobody = front.principal("nobody", Vec::new());
    let text = of(&front.url(), &nobody).await;
    assert!(text.contains("AccessDeniedException"), "{text}");
    // The key.
    front.world().key(&arn).state = State::Disabled;
    let text = of(&front.url(), &admin).await;
    assert!(text.contains("DisabledException"), "{text}");
    let error = AwsKmsKek::builder("alias/none")
        .client(front.client(REGION, &admin))
        .build()
        .await
        .unwrap_err();
    assert!(says_nothing_twice(&error).contains("NotFoundException"), "{error}");
}

#[tokio::test]
async fn debug_of_whatever_is_public_shows_no_secret() {
    let front = KmsFront::start();
    let login = front.admin();
    let arn = front.create_key(REGION);
    let builder =
        AwsKmsKek::builder(&arn).client(front.client(REGION, &login)).endpoint_url(front.url());
    let builder = builder.grant_tokens(["grant-hunter2"]);
    let shown = format!("{builder:?}");
    assert!(shown.contains(&arn) && !shown.contains("hunter2"), "{shown}");
    let kek = builder.build().await.unwrap();
    let info = kek.read_key().await.unwrap();
    let shown = format!("{kek:?} {info:?} {:?}", HealthCheck::TryUse);
    let secret = login.credentials().secret_access_key().to_owned();
    assert!(shown.contains(&arn) && !shown.contains(&secret), "{shown}");
    assert_eq!(serde_json::to_value(&info).unwrap()["state"], "Enabled");
    // A password in an endpoint is refused, and not shown before that either.
    let builder = AwsKmsKek::builder(&arn).endpoint_url("https://u:hunter2@kms.example");
    assert!(!format!("{builder:?}").contains("hunter2"));
}
