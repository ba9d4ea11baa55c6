//! A key, the policies of its domain, and everybody who has a role.

use std::collections::BTreeSet;

use aws_sdk_kms::Client;
use aws_sdk_kms::error::ProvideErrorMetadata;
use kms_front::policy;
use kms_front::request::uuid;
use kms_front::{ACCOUNT, Caller, KmsFront, Login};
use serde_json::Value;
use waxseal::domain::duties::{Duties, Holders, Role};
use waxseal::domain::{Domain, DomainConfig, Domains, Schemes};
use waxseal_aws_kms::AwsKmsKek;
use waxseal_aws_kms::duties::{AwsPolicies, AwsPoliciesBuilder};
use waxseal_testing::kms_front;

pub(super) const REGION: &str = "eu-west-1";
pub(super) const TAG: &str = "waxseal-break-glass";

pub(super) fn arn(name: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:role/{name}")
}

/// One holder for each role, and one service that writes and reads.
pub(super) fn holders() -> Holders {
    Holders::default()
        .key_administrators([arn("key-administrator")])
        .key_owners([arn("key-owner")])
        .writers([arn("writer"), arn("service")])
        .readers([arn("reader"), arn("service")])
        .rewrappers([arn("rewrapper")])
        .auditors([arn("auditor")])
        .break_glass([arn("break-glass")])
}

pub(super) fn name_of(role: Role) -> &'static str {
    role.as_str()
}

pub(super) fn builder(config: &DomainConfig, holders: &Holders) -> AwsPoliciesBuilder {
    AwsPolicies::builder(&Duties::new("orders", config, holders).unwrap())
}

pub(super) fn config(keys: &[&str]) -> DomainConfig {
    let config = DomainConfig::default().must_have(["tenant"]);
    keys.iter().fold(config, |config, key| config.wrap_with(format!("aws-kms://{key}")))
}

pub(super) fn code<T, E: ProvideErrorMetadata>(result: Result<T, E>) -> String {
    result.err().map_or("ok".into(), |error| error.code().unwrap_or("no code").to_owned())
}

pub(super) const DENIED: &str = "AccessDeniedException";

pub(super) struct Ground {
    pub(super) front: KmsFront,
    pub(super) key: String,
    pub(super) logins: Vec<(&'static str, Login)>,
}

impl Ground {
    /// A key with its default policy. Every holder has the identity policy of its role.
    pub(super) fn bare(
        set: impl Fn(AwsPoliciesBuilder) -> AwsPoliciesBuilder,
    ) -> (Self, AwsPolicies) {
        let front = KmsFront::start();
        let key = front.create_key(REGION);
        let policies = set(builder(&config(&[&key]), &holders())).build().unwrap();
        let identity =
            |role| serde_json::from_str::<Value>(&policies.identity_policy(role)).unwrap();
        let mut logins: Vec<_> = Role::ALL
            .into_iter()
            .map(|role| {
                let login =
                    front.principal(&format!("role/{}", name_of(role)), vec![identity(role)]);
                (name_of(role), login)
            })
            .collect();
        let both = vec![identity(Role::Writer), identity(Role::Reader)];
        logins.push(("service", front.principal("role/service", both)));
        logins.push(("admin", front.admin()));
        logins.push(("root", front.root()));
        (Self { front, key, logins }, policies)
    }

    /// The same, and the owner has set the key policy.
    pub(super) async fn with(set: impl Fn(AwsPoliciesBuilder) -> AwsPoliciesBuilder) -> Self {
        let (ground, policies) = Self::bare(set);
        ground.set_policy("key-owner", &policies.key_policy(&ground.key).unwrap()).await.unwrap();
        ground
    }

    pub(super) async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    pub(super) fn login(&self, name: &str) -> &Login {
        &self.logins.iter().find(|(other, _)| *other == name).unwrap().1
    }

    pub(super) fn client(&self, name: &str) -> Client {
        self.front.client(REGION, self.login(name))
    }

    pub(super) async fn set_policy(&self, by: &str, policy: &str) -> Result<(), String> {
        let request = self.client(by).put_key_policy().key_id(&self.key).policy(policy);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{:?}: {:?}", error.code(), error.message())),
        }
    }

    /// The domain, as a process with these credentials has it.
    pub(super) async fn domain(&self, by: &str, name: &str, config: DomainConfig) -> Domain {
        let client = self.client(by);
        let schemes = Schemes::default().kek("aws-kms", move |uri: String| {
            let client = client.clone();
            async move { AwsKmsKek::from_config(&uri.parse()?).client(client).build().await }
        });
        let builder = Domains::builder().schemes(schemes).domain(name, config);
        builder.build().await.unwrap().domain(name).unwrap()
    }

    /// What the front would decide, for any action.
    pub(super) fn decides(&self, name: &str, action: &str, context: &[(&str, &str)]) -> bool {
        let mut world = self.front.world();
        let principal = &world.principals[&self.login(name).access_key];
        let caller = Caller {
            principal: principal.arn.clone(),
            account: ACCOUNT.to_owned(),
            region: REGION.to_owned(),
            request_id: uuid(),
            traits: principal.traits.clone(),
        };
        let context = context.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        let same = action.starts_with("ReEncrypt").then_some(true);
        world.key(&self.key);
        let key = world.keys.iter().find(|key| key.arn == self.key).unwrap();
        world.authorise(&caller, action, key, &Value::Null, &context, same).is_ok()
    }

    pub(super) fn allowed(&self, name: &str, context: &[(&str, &str)]) -> BTreeSet<String> {
        let actions = policy::actions().map(|action| action.trim_start_matches("kms:").to_owned());
        actions.filter(|action| self.decides(name, action, context)).collect()
    }
}

pub(super) const CONTEXT: [(&str, &str); 2] = [("waxseal:domain", "orders"), ("tenant", "alice")];
pub(super) const LOOK: [&str; 7] = [
    "DescribeKey",
    "GetKeyPolicy",
    "GetKeyRotationStatus",
    "ListGrants",
    "ListKeyPolicies",
    "ListKeyRotations",
    "ListResourceTags",
];

pub(super) fn set(actions: &[&[&str]]) -> BTreeSet<String> {
    actions.concat().into_iter().map(str::to_owned).collect()
}
