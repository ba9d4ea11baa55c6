//! The policies as docs/aws-kms.md shows them: what each allows, and what it does not.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use waxseal_testing::{kms_front, support};

use kms_front::{ACCOUNT, KmsFront, Login};
use serde_json::{Value, json};
use support::context;
use waxseal::WrappedDek;
use waxseal::domain::DomainConfig;
use waxseal::domain::duties::{Duties, Holders, Role};
use waxseal::kek::{KekError, KekErrorClass, KekProvider, UnwrappedDek};
use waxseal::{Aad, Dek, EncryptionContext, Envelope, ErrorKind};
use waxseal_aws_kms::AwsKmsKek;
use waxseal_aws_kms::duties::AwsPolicies;

const REGION: &str = "eu-west-1";
const KEY: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

fn policy(name: &str) -> Value {
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/aws-kms.md")).unwrap();
    let mark = format!("<!-- policy: {name} -->\n```json\n");
    let (_, rest) =
        page.split_once(&mark).unwrap_or_else(|| panic!("the page has no policy {name}"));
    serde_json::from_str(rest.split("```").next().unwrap()).unwrap()
}

struct Ground {
    front: KmsFront,
    arn: String,
}

impl Ground {
    /// The key with the page's key policy. Its administrator put it there: KMS refuses it from
    /// somebody who could not change it again.
    async fn new() -> Self {
        let front = KmsFront::start();
        let arn = front.world().insert_key(REGION, ACCOUNT, KEY, Some([7; 32]));
        let once = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Action": "kms:PutKeyPolicy", "Resource": "*" }] });
        let administrator = front.principal("role/key-administrator", vec![once]);
        let put = |login: &Login| {
            let request = front.client(REGION, login).put_key_policy().key_id(&arn);
            request.policy(policy("key").to_string()).send()
        };
        put(&front.admin()).await.unwrap_err();
        put(&administrator).await.unwrap();
        Self { front, arn }
    }

    fn role(&self, name: &str) -> Login {
        let policies = if name == "key-administrator" { vec![] } else { vec![policy(name)] };
        self.front.principal(&format!("role/{name}"), policies)
    }

    async fn kek(&self, login: &Login) -> AwsKmsKek {
        AwsKmsKek::builder(&self.arn)
            .client(self.front.client(REGION, login))
            .build()
            .await
            .unwrap()
    }

    /// One who may use the key for everything, by the page's key policy.
    async fn user(&self) -> AwsKmsKek {
        self.kek(&self.front.admin()).await
    }
}

fn dek() -> Dek {
    UnwrappedDek::new(kms_front::random::<32>().to_vec()).to_dek().unwrap()
}

fn allowed<T>(result: Result<T, KekError>) -> bool {
    match result {
        Ok(_) => true,
        Err(error) if error.class() == KekErrorClass::Denied => false,
        Err(error) => panic!("{error}"),
    }
}

/// wrap, generate, unwrap, rewrap, read_key.
async fn may(kek: &AwsKmsKek, context: &EncryptionContext, wrapped: &WrappedDek) -> [bool; 5] {
    [
        allowed(kek.wrap(context, &dek()).await),
        allowed(kek.generate(context).await),
        allowed(kek.unwrap(context, wrapped).await),
        allowed(kek.rewrap(context, wrapped).await),
        allowed(kek.read_key().await),
    ]
}

#[tokio::test]
async fn each_role_may_do_its_own_and_nothing_else() {
    let ground = Ground::new().await;
    let alice = context("alice");
    let wrapped = ground.user().await.wrap(&alice, &dek()).await.unwrap();
    assert_eq!(may(&ground.user().await, &alice, &wrapped).await, [true; 5], "the control");
    for (role, rights) in [
        ("writer", [true, false, false, false, true]),
        ("reader", [false, false, true, false, true]),
        ("rewrapper", [false, false, false, true, true]),
        ("key-administrator", [false, false, false, false, true]),
    ] {
        let login = ground.role(role);
        assert_eq!(may(&ground.kek(&login).await, &alice, &wrapped).await, rights, "{role}");
        let client = ground.front.client(REGION, &login);
        let manages = client.disable_key().key_id(&ground.arn).send().await.is_ok();
        assert_eq!(manages, role == "key-administrator", "{role}");
    }
}

#[tokio::test]
async fn an_administrator_rotates_disables_and_deletes() {
    let ground = Ground::new().await;
    let client = ground.front.client(REGION, &ground.role("key-administrator"));
    let arn = &ground.arn;
    client.enable_key_rotation().key_id(arn).send().await.unwrap();
    client.rotate_key_on_demand().key_id(arn).send().await.unwrap();
    client.list_key_rotations().key_id(arn).send().await.unwrap();
    client.create_alias().target_key_id(arn).alias_name("alias/orders").send().await.unwrap();
    client.disable_key().key_id(arn).send().await.unwrap();
    client.enable_key().key_id(arn).send().await.unwrap();
    client.schedule_key_deletion().key_id(arn).send().await.unwrap();
    client.cancel_key_deletion().key_id(arn).send().await.unwrap();
    client.put_key_policy().key_id(arn).policy(policy("key").to_string()).send().await.unwrap();
}

#[tokio::test]
async fn nobody_uses_the_key_without_a_tenant() {
    let ground = Ground::new().await;
    let user = ground.user().await;
    let tenantless = EncryptionContext::new([("table", "cards")]).unwrap();
    for context in [tenantless, EncryptionContext::empty()] {
        assert!(!allowed(user.wrap(&context, &dek()).await), "{context:?}");
        assert!(!allowed(user.generate(&context).await), "{context:?}");
    }
    assert!(allowed(user.wrap(&context("alice"), &dek()).await));
}

#[tokio::test]
async fn a_reader_of_one_tenant_is_denied_another_s() {
    let ground = Ground::new().await;
    let (alice, bob) = (context("alice"), context("bob"));
    let user = ground.user().await;
    let writer = Envelope::builder().wrap_with(user).build().unwrap();
    let (hers, his) = (
        writer.encrypt(&alice, Aad::empty(), b"hers").await.unwrap(),
        writer.encrypt(&bob, Aad::empty(), b"his").await.unwrap(),
    );
    let reader =
        Envelope::builder().unwrap_with(ground.kek(&ground.role("reader")).await).build().unwrap();
    assert_eq!(&*reader.decrypt(&alice, Aad::empty(), &hers).await.unwrap(), b"hers");
    assert_eq!(
        reader.decrypt(&bob, Aad::empty(), &his).await.unwrap_err().kind(),
        ErrorKind::Denied
    );
    // A false context gets past the policy, and not past the ciphertext.
    assert_eq!(
        reader.decrypt(&alice, Aad::empty(), &his).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(&*reader.decrypt(&alice, Aad::empty(), &hers).await.unwrap(), b"hers");
}

#[tokio::test]
async fn a_rewrapper_rewraps_messages_without_a_dek_and_on_this_key_only() {
    let ground = Ground::new().await;
    let alice = context("alice");
    let login = ground.role("rewrapper");
    let kek = ground.kek(&login).await;
    let writer = Envelope::builder().wrap_with(ground.user().await).build().unwrap();
    let sealed = writer.encrypt(&alice, Aad::empty(), b"text").await.unwrap();
    ground.front.world().rotate(&ground.arn, true);
    kek.read_key().await.unwrap();
    let rewrapper = Envelope::builder().wrap_with(kek).build().unwrap();
    assert!(rewrapper.needs_rewrap(&sealed).unwrap());
    let decrypts = ground.front.count("Decrypt");
    let rewrapped = rewrapper.rewrap_unverified(&alice, &sealed).await.unwrap();
    assert_eq!(ground.front.count("Decrypt"), decrypts);
    let reader = Envelope::builder().unwrap_with(ground.user().await).build().unwrap();
    assert_eq!(&*reader.decrypt(&alice, Aad::empty(), &rewrapped).await.unwrap(), b"text");

    let another = ground.front.create_key(REGION);
    let client = ground.front.client(REGION, &login);
    let mover = AwsKmsKek::builder(&another)
        .client(client)
        .former_keys([ground.arn.as_str()])
        .build()
        .await
        .unwrap();
    let mover = Envelope::builder().wrap_with(mover).build().unwrap();
    assert_eq!(
        mover.rewrap_unverified(&alice, &sealed).await.unwrap_err().kind(),
        ErrorKind::Denied
    );
}

#[tokio::test]
async fn what_the_log_of_calls_shows_is_the_context_and_no_dek() {
    let ground = Ground::new().await;
    let kek = ground.user().await;
    let own = dek();
    let wrapped = kek.wrap(&context("alice"), &own).await.unwrap();
    kek.unwrap(&context("alice"), &wrapped).await.unwrap();
    let call = ground.front.calls().into_iter().rfind(|call| call.operation == "Decrypt").unwrap();
    assert_eq!(call.request["EncryptionContext"]["tenant"], "alice");
    assert!(
        !format!("{:?}", ground.front.calls())
            .contains(&data_encoding::BASE64.encode(own.expose()))
    );
}

/// The actions that a policy allows.
fn allowed_actions(policy: &Value) -> BTreeSet<String> {
    let statements = policy["Statement"].as_array().unwrap().iter();
    let allows = statements.filter(|statement| statement["Effect"] == "Allow");
    let actions = allows.flat_map(|statement| match &statement["Action"] {
        Value::String(one) => vec![one.clone()],
        many => many.as_array().unwrap().iter().map(|one| one.as_str().unwrap().into()).collect(),
    });
    actions.collect()
}

#[test]
fn the_policies_of_the_page_allow_what_those_of_a_domain_do() {
    let key = format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/{KEY}");
    let config = DomainConfig::default().wrap_with(format!("aws-kms://{key}"));
    let owner = format!("arn:aws:iam::{ACCOUNT}:role/owner");
    let holders = Holders::default().key_owners([owner]);
    let duties = Duties::new("orders", &config, &holders).unwrap();
    let generated = AwsPolicies::builder(&duties).build().unwrap();
    for role in [Role::Writer, Role::Reader, Role::Rewrapper] {
        let generated = serde_json::from_str(&generated.identity_policy(role)).unwrap();
        let of_page = policy(role.as_str());
        assert_eq!(allowed_actions(&generated), allowed_actions(&of_page), "{role}");
    }
}
