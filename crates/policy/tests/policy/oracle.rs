//! The same questions to `RegoPolicy` and to the engine of Open Policy Agent have the same answers.
//!
//! `WAXSEAL_ORACLE_SEED=7 cargo test -p waxseal-policy --test policy oracle` asks others.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use waxseal::policy::{Action, Decision, Policy, Question};
use waxseal::{Caller, CallerBuilder, EncryptionContext, Error, KekId};
use waxseal_policy::{RegoPolicy, RegoSources};
use waxseal_testing::opa::{Answer, Evaluator};

/// Per policy.
const QUESTIONS: usize = 500;
const SEED: u64 = 0x5eed_0013;

/// `splitmix64`: the same numbers everywhere, whatever the version of whatever crate.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    /// Up to so many of them, each once.
    fn some<'a>(&mut self, most: usize, all: &[&'a str]) -> Vec<&'a str> {
        let mut some: Vec<_> = (0..self.below(most + 1)).map(|_| self.pick(all)).collect();
        some.sort_unstable();
        some.dedup();
        some
    }
}

const KEKS: &[&str] = &[
    "local:new",
    "local:old",
    "arn:aws:kms:eu-west-1:111122223333:key/financial-reports",
    "arn:aws:kms:eu-west-1:111122223333:key/1234",
];
const SERVICES: &[&str] = &[
    "billing",
    "reporting",
    "support",
    "audit",
    "batch",
    "gateway",
    "maintenance",
    "search",
    " Billing",
    "b\u{ef}lling",
];
const ROLES: &[&str] = &[
    "admin",
    "analyst",
    "auditor",
    "clerk",
    "eraser",
    "finance-analyst",
    "guest",
    "maintainer",
    "rewrapper",
    "support",
];
const GROUPS: &[&str] = &["analyst", "apac", "audit", "emea"];
const ADDRESSES: &[&str] = &[
    "10.1.2.3",
    "10.66.1.1",
    "10.255.255.255",
    "172.16.5.4",
    "192.0.2.1",
    "192.168.7.127",
    "192.168.7.128",
    "0.0.0.0",
    "2001:db8:10::7",
    "2001:db8:10:66::1",
    "2001:db8:11::",
    "fd00::1",
    "::1",
];
/// What a name is likely to have, and what no name should.
const CONTEXT: &[(&str, &[&str])] = &[
    ("tenant", &["acme", "globex", "a", "x-y-z", "axax", "\u{430}cme"]),
    ("table", &["cards", "orders", "reports", "logs", "users", "keys"]),
    ("region", &["eu", "us", "in", "nz", "mars"]),
    ("zone", &["lab", "production"]),
    ("owner", &["billing", "BILLING", "reporting"]),
    ("hold", &["true", "false", "litigation"]),
    ("classification", &["financial-report", "public"]),
];
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("clearance", &["secret", "internal", "public"]),
    ("address", &["10.1.2.4", "10.66.9.9", "fd00::2", "10.0.0.300", "nowhere", "10.1.2.3/32"]),
    (
        "valid_until",
        &["2026-11-27T09:00:00Z", "2026-06-30T23:59:59.5+02:00", "2027-02-29T00:00:00Z", "noon"],
    ),
    ("lasts", &["1h", "2h45m", "90m0.5s", "-3h", "1.5h", "5"]),
    ("flag", &["on", "off"]),
    ("team", &["team-a", "team-", "tea", "*"]),
    (
        "mail",
        &["ana@example.org", "b3n-77@EXAMPLE.com", "eve@x.example.org", "nobody", "\u{e9}@e.e"],
    ),
    ("amount", &["1", "999.5", "-42", "1e3", "0x10", "1_000", "12345678901234567890", "ten"]),
    ("pattern", &["^de.*t$", "[a-", "(a+)+$", "\\bre\\B", "(?P<x>e)", "e{2000}"]),
    ("tenant", &["acme", "globex"]),
    ("user", &["ana", "ben", "dan"]),
    ("case", &["INC-7", "INC-8", "INC-9"]),
];
const ODD: &[&str] =
    &[" ", "\"", "\\", "\u{202e}txet", "\u{4e2d}\u{e9}", "\u{2028}", "null", "true", "{}", "0"];
/// Around what policies look at: office hours, the changes of the clocks, maintenance, approvals.
const TIMES: &[u64] = &[
    1_795_770_000, // 2026-11-27T09:00:00Z, a Friday
    1_795_798_800, // 2026-11-27T17:00:00Z
    1_795_906_800, // 2026-11-28T23:00:00Z
    1_796_511_600, // 2026-12-05T23:00:00Z
    1_774_746_000, // 2026-03-29T01:00:00Z: Europe's clocks go forward
    1_792_890_000, // 2026-10-25T01:00:00Z: and back
    1_798_156_800, // 2026-12-25T00:00:00Z
    1_772_236_799, // 2026-02-27T23:59:59Z
    0,
];

/// What a question borrows.
pub(crate) struct Asked {
    operation: Action,
    domain: Option<&'static str>,
    kek_ids: Vec<KekId>,
    context: EncryptionContext,
    caller: Option<Caller>,
    time: SystemTime,
}

impl Asked {
    pub(crate) fn new(random: &mut Random) -> Self {
        let time = match random.below(20) {
            // Later than RFC 3339 can write.
            0 => 1 << 50,
            1..=4 => random.next() % 4_102_444_800,
            _ => TIMES[random.below(TIMES.len())] + random.next() % 7200,
        };
        let nanos = if random.one_in(2) { random.next() % 1_000_000_000 } else { 0 };
        let time = Duration::from_secs(time) + Duration::from_nanos(nanos);
        let mut context: Vec<_> = CONTEXT
            .iter()
            .filter_map(|(name, values)| {
                let odd = random.one_in(25);
                let value = random.pick(if odd { ODD } else { values });
                random.one_in(2).then_some((*name, value))
            })
            .collect();
        if random.one_in(20) {
            context.push((random.pick(&["\u{e9}t\u{e9}", "a.b", "a/b", "0"]), random.pick(ODD)));
        }
        let mut asked = Self {
            operation: Action::ALL[random.below(4)],
            domain: [None, Some("orders"), Some("ledger")][random.below(3)],
            kek_ids: random.some(3, KEKS).into_iter().map(|id| KekId::new(id).unwrap()).collect(),
            context: EncryptionContext::new(context).unwrap(),
            caller: (!random.one_in(12)).then(|| Self::caller(random, Caller::builder())),
            time: SystemTime::UNIX_EPOCH + time,
        };
        // By chance alone nobody ever reads a financial report, or what is a tenant's own.
        let pairs = match random.below(8) {
            0 => {
                asked.operation = Action::Decrypt;
                asked.kek_ids = vec![KekId::new(KEKS[2]).unwrap()];
                let analyst = Caller::builder().service("reporting").role("finance-analyst");
                asked.caller = Some(Self::caller(random, analyst.source_address([10, 1, 2, 3])));
                [("classification", "financial-report")]
            }
            1 => {
                let acme = Caller::builder().service("billing").attribute("tenant", "acme");
                asked.caller = Some(acme.role("analyst").build().unwrap());
                [("tenant", "acme")]
            }
            _ => return asked,
        };
        asked.context = EncryptionContext::new(pairs).unwrap();
        asked
    }

    fn caller(random: &mut Random, mut caller: CallerBuilder) -> Caller {
        caller = caller.roles(random.some(4, ROLES)).groups(random.some(3, GROUPS));
        if !random.one_in(8) {
            caller = caller.service(random.pick(SERVICES));
        }
        if random.one_in(2) {
            caller =
                caller.source_address(random.pick(ADDRESSES).parse::<std::net::IpAddr>().unwrap());
        }
        for (name, values) in ATTRIBUTES {
            match random.below(10) {
                0..=3 => caller = caller.attribute(*name, random.pick(values)),
                4 if random.one_in(3) => {
                    caller = caller.attribute_list(*name, random.some(3, values));
                }
                5 if random.one_in(3) => {
                    caller = caller.attribute(*name, random.pick(ODD));
                }
                _ => {}
            }
        }
        let caller = caller.attribute_list("teams", random.some(3, GROUPS)).build().unwrap();
        match random.one_in(3) {
            true => caller.with_request_id("4b0c6a1e").unwrap(),
            false => caller,
        }
    }

    pub(crate) fn question(&self) -> Question<'_> {
        let mut question =
            Question::new(self.operation, &self.context).kek_ids(&self.kek_ids).time(self.time);
        if let Some(domain) = self.domain {
            question = question.domain(domain);
        }
        match &self.caller {
            Some(caller) => question.caller(caller),
            None => question,
        }
    }
}

/// A decision, as far as two may differ.
#[derive(PartialEq, Debug)]
enum Said {
    /// With the seconds for which it may be used.
    Allow(Option<f64>),
    Deny(Vec<String>),
    Error,
}

/// The seconds of an allow are not shown, and found by comparing.
fn ours(answer: &Result<Decision, Error>, seconds: Option<f64>) -> Said {
    match answer {
        Err(error) => {
            assert!(!error.is_retryable(), "no outage: {error}");
            Said::Error
        }
        Ok(decision) if decision.is_allowed() => {
            let plain = Decision::allow().with_revision(decision.revision().unwrap());
            let seconds = seconds.filter(|seconds| {
                *decision == plain.clone().valid_for(Duration::from_secs_f64(*seconds))
            });
            assert!(seconds.is_some() || *decision == plain, "{decision:?}");
            Said::Allow(seconds)
        }
        Ok(decision) => denied(decision),
    }
}

/// In any order: engines differ in whether a list comes before an object.
fn denied(decision: &Decision) -> Said {
    let mut reasons: Vec<_> = decision.reasons().iter().map(|text| plain(text)).collect();
    reasons.sort();
    Said::Deny(reasons)
}

/// What the page of the crate says that a document means.
fn theirs(answer: &Answer) -> Said {
    let rules = match answer {
        Answer::Error(_) => return Said::Error,
        Answer::Undefined => panic!("every policy here has a rule"),
        Answer::Value(rules) => rules,
    };
    let mut reasons = match rules.get("deny_reason") {
        None => Vec::new(),
        Some(Value::Array(reasons)) => reasons.clone(),
        Some(other) => vec![other.clone()],
    };
    match rules.get("allow") {
        Some(Value::Bool(true)) if reasons.is_empty() => match rules.get("valid_for_seconds") {
            None => return Said::Allow(None),
            Some(seconds) => match seconds.as_f64() {
                Some(seconds @ 0.0..) => return Said::Allow(Some(seconds.min(86_400.0))),
                _ => reasons.push("valid_for_seconds is not a number of seconds".into()),
            },
        },
        Some(Value::Bool(true)) => {
            reasons.insert(0, "the policy allows and gives reasons to deny".into());
        }
        Some(Value::Bool(false)) => {}
        Some(_) => reasons.insert(0, "allow is neither true nor false".into()),
        None => reasons.insert(0, "allow is undefined".into()),
    }
    let texts = reasons.iter().map(|reason| match reason {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    denied(&Decision::deny(texts))
}

/// A number may be written as 1000, 1000.0 or 1e3. What is cut off is not JSON.
fn plain(reason: &str) -> String {
    fn same(value: Value) -> Value {
        match value {
            Value::Number(number) => json!(number.as_f64().unwrap()),
            Value::Array(all) => all.into_iter().map(same).collect(),
            Value::Object(all) => {
                let sorted: BTreeMap<_, _> =
                    all.into_iter().map(|(name, value)| (name, same(value))).collect();
                json!(sorted)
            }
            other => other,
        }
    }
    serde_json::from_str(reason).map_or_else(|_| reason.to_owned(), |value| same(value).to_string())
}

/// What a policy decides, from a directory.
fn files(directory: &Path) -> (Vec<(String, String)>, Value) {
    let policy = fs::read_to_string(directory.join("policy.rego")).unwrap();
    let data = fs::read_to_string(directory.join("data.json")).unwrap_or_else(|_| "{}".to_owned());
    (vec![("policy.rego".to_owned(), policy)], serde_json::from_str(&data).unwrap())
}

struct Outcome {
    /// How many were allowed, denied, errors.
    counts: [usize; 3],
    differences: Vec<String>,
}

fn compare(
    policy: &RegoPolicy,
    engine: &mut Evaluator,
    (texts, data): &(Vec<(String, String)>, Value),
    asked: &[Asked],
) -> Outcome {
    let inputs: Vec<_> =
        asked.iter().map(|asked| serde_json::to_value(asked.question()).unwrap()).collect();
    let answers = engine.evaluate(texts, data, "waxseal", &inputs);
    let mut outcome = Outcome { counts: [0; 3], differences: Vec::new() };
    for ((asked, input), answer) in asked.iter().zip(&inputs).zip(&answers) {
        let theirs = theirs(answer);
        let seconds = if let Said::Allow(seconds) = theirs { seconds } else { None };
        let decided = pollster::block_on(policy.decide(&asked.question()));
        let ours = ours(&decided, seconds);
        outcome.counts[match ours {
            Said::Allow(_) => 0,
            Said::Deny(_) => 1,
            Said::Error => 2,
        }] += 1;
        if ours != theirs {
            let why = (decided.err(), answer);
            outcome
                .differences
                .push(format!("{input}\n  ours:   {ours:?}\n  theirs: {theirs:?}\n  {why:?}",));
        }
    }
    outcome
}

fn policies() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all: Vec<_> = ["policies", "tests/oracle"]
        .iter()
        .flat_map(|place| fs::read_dir(root.join(place)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    all.sort();
    all
}

fn loaded(directory: &Path) -> RegoPolicy {
    RegoPolicy::builder(RegoSources::new().directory(directory))
        .watch(None)
        // A busy machine is no difference.
        .time_limit(Duration::from_secs(10))
        .build()
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
}

#[test]
fn ten_thousand_questions_have_the_same_answers_in_opa_s_engine() {
    let seed = std::env::var("WAXSEAL_ORACLE_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    println!("WAXSEAL_ORACLE_SEED={seed}");
    let (mut random, mut engine, all) = (Random(seed), Evaluator::start(), policies());
    assert!(all.len() * QUESTIONS >= 10_000, "{}", all.len());
    let mut differences = Vec::new();
    for directory in all {
        let asked: Vec<_> = (0..QUESTIONS).map(|_| Asked::new(&mut random)).collect();
        let outcome = compare(&loaded(&directory), &mut engine, &files(&directory), &asked);
        let name = directory.file_name().unwrap().display().to_string();
        let [allowed, denied, errors] = outcome.counts;
        println!("{name:<20} {allowed:>4} allowed {denied:>4} denied {errors:>4} errors");
        // Each is asked what it allows, and what it denies.
        if allowed == 0 || denied == 0 {
            differences.push(format!("{name}: it says only one thing"));
        }
        differences.extend(outcome.differences.into_iter().map(|text| format!("{name}: {text}")));
    }
    let shown = differences.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n\n");
    assert!(differences.is_empty(), "{} differences, of them\n\n{shown}", differences.len());
}

/// The control.
#[test]
fn one_rule_more_is_a_difference_that_the_comparison_finds() {
    let mut random = Random(SEED);
    let directory = policies().into_iter().find(|policy| policy.ends_with("tenants")).unwrap();
    let (policy, mut other) = (loaded(&directory), files(&directory));
    other.0[0].1.push_str("\ndeny_reason contains \"late\" if input.operation == \"erase\"\n");
    let asked: Vec<_> = (0..100).map(|_| Asked::new(&mut random)).collect();
    let outcome = compare(&policy, &mut Evaluator::start(), &other, &asked);
    let erasing = asked.iter().filter(|asked| asked.operation == Action::Erase).count();
    let errors = outcome.counts[2];
    assert!(erasing > 0 && errors == 0 && outcome.differences.len() == erasing);
}

/// The page of the crate lists them. What an engine mends is struck from both.
#[test]
fn what_is_known_to_differ_differs_as_the_page_says() {
    let context = EncryptionContext::new([("key", "\u{1f511}"), ("digits", "\u{0664}\u{0662}")]);
    let asked = Asked {
        operation: Action::Rewrap,
        domain: None,
        kek_ids: Vec::new(),
        context: context.unwrap(),
        caller: Some(Caller::builder().service("billing").build().unwrap()),
        time: SystemTime::UNIX_EPOCH,
    };
    let denied = |reasons: &[&str]| denied(&Decision::deny(reasons));
    let mut engine = Evaluator::start();
    for (rule, our, their) in [
        ("contains count(input.context.key)", denied(&["2"]), denied(&["1"])),
        ("contains \"x\" if not data.a[input.caller.none]", denied(&["x"]), denied(&[])),
        ("contains \"x\" if not input.caller.none in {1}", denied(&["x"]), denied(&[])),
        ("contains \"x\" if not startswith(input.caller.none, \"a\")", denied(&["x"]), denied(&[])),
        ("contains \"x\" if {\"key\": _} = input.context", denied(&["x"]), denied(&[])),
        (
            "contains \"x\" if regex.match(`^\\d+$`, input.context.digits)",
            denied(&["x"]),
            denied(&[]),
        ),
        (
            "contains time.parse_duration_ns(\"1.5d\") if input.caller",
            Said::Error,
            denied(&["129600000000000"]),
        ),
        // The 31st of January and a month: the 28th of February, or the 3rd of March.
        (
            "contains time.date(time.add_date(2678400000000000 - 1, 0, 1, 0))",
            denied(&["[1970,2,28]"]),
            denied(&["[1970,3,3]"]),
        ),
    ] {
        let text = format!("{}deny_reason {rule}\n", super::HEAD);
        let policy = RegoPolicy::builder(super::sources(&text)).watch(None).build().unwrap();
        let input = serde_json::to_value(asked.question()).unwrap();
        let texts = [("policy.rego".to_owned(), text)];
        let answers = engine.evaluate(&texts, &json!({}), "waxseal", &[input]);
        assert_eq!(theirs(&answers[0]), their, "{rule}");
        let decided = pollster::block_on(policy.decide(&asked.question()));
        assert_eq!(ours(&decided, None), our, "{rule}: {decided:?}");
    }
}

/// The engine in this process would lose every reason. The real one loses none.
#[test]
fn a_head_that_looks_up_what_may_be_undefined_does_not_load() {
    let rule = "deny_reason contains data.why[role] if some role in input.caller.roles\n";
    let text = format!("package waxseal\n\nallow if count(deny_reason) == 0\n\n{rule}");
    let data = json!({ "why": { "analyst": "analysts may not" } });
    let input = json!({ "caller": { "roles": ["analyst", "guest"] } });
    let texts = [("policy.rego".to_owned(), text.clone())];
    let answers = Evaluator::start().evaluate(&texts, &data, "waxseal", &[input]);
    assert_eq!(
        theirs(&answers[0]),
        Said::Deny(vec!["allow is undefined".to_owned(), "analysts may not".to_owned()])
    );
    let sources = super::sources(&text).data(data.to_string());
    let error = RegoPolicy::builder(sources).watch(None).build().unwrap_err();
    assert!(error.to_string().contains("policy.rego:5: the head looks up"), "{error}");
}
