//! Audit settings of domains: what the one trail shows of each.

use std::time::Duration;

use serde_json::Value;
use waxseal::audit::{
    AuditKey, AuditTrail, AuditTrailBuilder, Disclosure, TrailDirectory, Verifier,
};
use waxseal::domain::{Branches, Domain, DomainAudit, DomainConfig, DomainsBuilder};
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, Error, ErrorKind};
use waxseal_testing::support::block_on;
use waxseal_testing::support::stage::{ms, secs};

use super::ground::{World, shared};

struct Ground {
    world: World,
    folder: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        Self { world: World::default(), folder: tempfile::tempdir().unwrap() }
    }

    fn trail(&self, set_up: impl FnOnce(AuditTrailBuilder) -> AuditTrailBuilder) -> AuditTrail {
        let directory = TrailDirectory::new(self.folder.path().join("audit"));
        let builder = AuditTrail::builder().directory(directory);
        set_up(builder).clock(self.world.clock.clone()).start().unwrap()
    }

    /// What was recorded of these activities in this domain.
    fn records(&self, trail: &AuditTrail, domain: &str, activity: &str) -> Vec<Value> {
        assert!(trail.flush(secs(30)));
        let path = self.folder.path().join("audit/trail-00000001.jsonl");
        let text = std::fs::read_to_string(path).unwrap();
        let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let is_it = |record: &Value| {
            record["waxseal.domain"] == domain && record["activity_name"] == activity
        };
        records.filter(is_it).collect()
    }
}

fn key() -> AuditKey {
    AuditKey::random().unwrap()
}

fn context_of(domain: &Domain) -> waxseal::EncryptionContext {
    domain.context([("tenant", "alice"), ("table", "cards"), ("region", "eu")]).unwrap()
}

fn write(domain: &Domain) {
    block_on(domain.envelope().encrypt(&context_of(domain), Aad::empty(), b"payload")).unwrap();
}

fn with(settings: DomainAudit) -> DomainConfig {
    shared().audit(settings)
}

#[test]
fn each_domain_shows_of_its_contexts_what_it_says() {
    use Disclosure::{Clear, Hashed, LeftOut};
    let ground = Ground::new();
    let key = key();
    let hash = |name, value| serde_json::json!({ "hmac": key.hash_value(name, value).unwrap() });
    let [tenant, region] = [hash("tenant", "alice"), hash("region", "eu")];
    let trail = ground.trail(|builder| builder.context_value("table", Clear).context_key(key));
    let own = DomainAudit::default().context_value("tenant", Hashed);
    let other = own.clone().context_value("table", LeftOut).other_context_values(Hashed);
    let builder = ground.world.builder().audit_trail(trail.clone()).domain("usual", shared());
    let builder = builder.domain("own", with(own)).domain("other", with(other));
    let domains = block_on(builder.build()).unwrap();
    domains.all().iter().for_each(write);
    for (domain, expected) in [
        ("usual", [&Value::Null, &Value::from("cards"), &Value::Null]),
        ("own", [&tenant, &Value::from("cards"), &Value::Null]),
        ("other", [&tenant, &Value::Null, &region]),
    ] {
        let made = ground.records(&trail, domain, "dek_made");
        let context = &made[0]["waxseal.context"];
        let shown = ["tenant", "table", "region"].map(|name| &context[name]);
        assert_eq!((made.len(), shown), (1, expected), "{domain}");
    }
    block_on(domains.close());
    assert!(trail.close());
    let verified = Verifier::new().verify(ground.folder.path().join("audit")).unwrap();
    assert!(verified.fault.is_none(), "{:?}", verified.fault);
}

#[test]
fn access_summaries_are_on_or_off_by_domain() {
    for of_trail in [None, Some(Duration::from_secs(5))] {
        let ground = Ground::new();
        let trail = ground.trail(|builder| match of_trail {
            Some(every) => builder.access_summaries(every),
            None => builder,
        });
        let builder = ground.world.builder().audit_trail(trail.clone()).domain("usual", shared());
        let on = with(DomainAudit::default().access_summaries(secs(5)));
        let builder = builder.domain("on", on);
        let off = with(DomainAudit::default().access_summaries(ms(0)));
        let domains = block_on(builder.domain("off", off).build()).unwrap();
        domains.all().iter().for_each(write);
        // What is left is recorded when the DEKs end.
        block_on(domains.close());
        let used = |domain| ground.records(&trail, domain, "dek_used").len();
        let usual = usize::from(of_trail.is_some());
        assert_eq!((used("on"), used("off"), used("usual")), (1, 0, usual), "{of_trail:?}");
    }
}

#[test]
fn another_observer_s_summaries_are_not_recorded_where_they_are_off() {
    let ground = Ground::new();
    let trail = ground.trail(|builder| builder);
    let off = with(DomainAudit::default().access_summaries(ms(0)));
    let log = waxseal_testing::support::stage::Log::default();
    let counting = Counting(log.clone());
    let builder = ground.world.builder().audit_trail(trail.clone()).observer(counting);
    let domains = block_on(builder.domain("off", off).build()).unwrap();
    domains.all().iter().for_each(write);
    block_on(domains.close());
    log.wait_for("Accessed", 1);
    assert!(ground.records(&trail, "off", "dek_used").is_empty());
}

#[derive(Debug)]
struct Counting(waxseal_testing::support::stage::Log);

impl waxseal::Observer for Counting {
    fn event(&self, event: &waxseal::Event<'_>) {
        self.0.event(event);
    }

    fn access_summaries(&self) -> Option<Duration> {
        Some(Duration::from_secs(5))
    }
}

/// As one with a name, and a Debug that is not to be relied on.
#[derive(Clone, Copy)]
enum Named {
    Plainly,
    AtLength,
    WithAPanic,
}

impl std::fmt::Debug for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plainly => f.write_str("OfficeHours { revision: 7 }"),
            Self::AtLength => f.write_str(&"x".repeat(100_000)),
            Self::WithAPanic => panic!("by the test"),
        }
    }
}

impl Policy for Named {
    fn decide<'a>(&'a self, _: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        Box::pin(async { Ok(Decision::allow()) })
    }
}

#[test]
fn the_configuration_of_a_domain_names_its_policy() {
    let ground = Ground::new();
    let trail = ground.trail(|builder| builder);
    let schemes = ground.world.schemes().policy("code", |uri: String| async move {
        Ok(match uri.as_str() {
            "code:plain" => Named::Plainly,
            "code:long" => Named::AtLength,
            _ => Named::WithAPanic,
        })
    });
    let with = |uri: &str| {
        let branches = Branches::per(["tenant"]).self_contained();
        let decisions = PolicyOptions::default().cache_for(secs(7)).require_caller();
        shared().policy(uri).decisions(decisions).branches(branches)
    };
    let builder = ground.world.builder().schemes(schemes).audit_trail(trail.clone());
    let builder = builder.domain("plain", with("code:plain")).domain("long", with("code:long"));
    let builder = builder.domain("panics", with("code:panics")).domain("free", shared());
    let domains = block_on(builder.build()).unwrap();
    let named = |domain: &str, name: &str| -> Vec<Option<String>> {
        let of = |record: &Value| record["waxseal.configuration"][name].as_str().map(str::to_owned);
        ground.records(&trail, domain, "configured").iter().map(of).collect()
    };
    let twice = |text: &str| vec![Some(text.to_owned()); 2];
    // The envelope, and its branch keys.
    assert_eq!(named("plain", "policy"), twice("OfficeHours { revision: 7 }"));
    assert_eq!(named("plain", "domain"), twice("plain"));
    for options in named("plain", "policy_options") {
        let options = options.unwrap();
        assert!(options.contains("7s") && options.contains("require_caller: true"), "{options}");
    }
    assert_eq!(named("long", "policy"), twice(&"x".repeat(512)));
    assert_eq!(named("panics", "policy"), twice("its Debug panics"));
    assert_eq!(named("free", "policy"), [None]);
    block_on(domains.close());
}

fn refused(set_up: impl FnOnce(DomainsBuilder) -> DomainsBuilder) -> Error {
    let builder = set_up(World::default().builder());
    let error = block_on(builder.build()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    error
}

#[test]
fn settings_that_the_trail_cannot_keep_are_refused() {
    let ground = Ground::new();
    let trail = ground.trail(|builder| builder);
    let hashed = DomainAudit::default().context_value("tenant", Disclosure::Hashed);
    for (settings, wrong) in [
        (hashed, "domains.a.audit: context_values: hashed values need the trail's context_key"),
        (
            DomainAudit::default().other_context_values(Disclosure::Hashed),
            "other_context_values: hashed values need",
        ),
        (DomainAudit::default().access_summaries(ms(999)), "access_summaries: at least a second"),
    ] {
        let error =
            refused(|builder| builder.audit_trail(trail.clone()).domain("a", with(settings)));
        assert!(error.to_string().contains(wrong), "{error}");
    }
    let error = refused(|builder| builder.domain("a", with(DomainAudit::default())));
    assert!(error.to_string().contains("domains.a.audit: there is no trail; set"), "{error}");
}
