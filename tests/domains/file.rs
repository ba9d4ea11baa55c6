//! Domains from a TOML file.

use std::path::PathBuf;

use waxseal::domain::{DomainConfig, DomainResolver, Domains};
use waxseal::policy::{BoxFuture, Decision, Policy, Question};
use waxseal::{Aad, Error, ErrorKind, Suite};
use waxseal_testing::support::block_on;

use super::ground::{World, open, seal};

const GOOD: &str = r#"
route_by = "product"

[domains.orders]
wrap_with = ["kek:shared"]
unwrap_with = ["kek:old"]
store = "store:shared"
suite = "xaes256-gcm"
nonces = "system"
dek_origin = "local"
must_have = ["tenant"]
may_have = ["table"]
routes = ["shop"]

[domains.orders.branches]
per = ["tenant"]
period = "1d"

[domains.orders.limits]
max_age = "1m"
stale_if_error_reading = "1h"

[domains.orders.calls]
tries = 1

[domains.billing]
wrap_with = ["kek:shared"]
"#;

/// A folder with a file of this text.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domains.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn load(text: &str) -> Result<Domains, Error> {
    let (_folder, path) = file(text);
    let world = World::default();
    let schemes = world.schemes().policy("code", async |uri: String| match uri.as_str() {
        "code:x" => Ok(Open),
        _ => Err(Error::new(ErrorKind::InvalidOption, "it does not load")),
    });
    block_on(world.builder().schemes(schemes).file(path).build())
}

#[derive(Debug)]
struct Open;

impl Policy for Open {
    fn decide<'a>(&'a self, _: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        Box::pin(async { Ok(Decision::allow()) })
    }
}

#[test]
fn a_file_says_all_that_code_can_say() {
    let domains = load(GOOD).unwrap();
    let orders = domains.domain("orders").unwrap();
    assert_eq!(orders.branches().unwrap().name(), "orders");
    open(&orders, &seal(&orders)).unwrap();
    let context = domains.context([("product", "shop"), ("tenant", "alice")]).unwrap();
    let encrypted = orders.envelope().encrypt(&context, Aad::empty(), b"x");
    assert_eq!(block_on(encrypted).unwrap()[4], Suite::Xaes256Gcm.id());
    assert!(orders.context([("tenant", "a"), ("colour", "x")]).is_err());
    let billing = domains.domain("billing").unwrap();
    open(&billing, &seal(&billing)).unwrap();
    let config = format!("{:?}", orders.config());
    for part in ["max_age: Some(60s)", "tries: Some(1)", "period: Some(86400s)"] {
        assert!(config.contains(part), "{part}: {config}");
    }
}

#[test]
fn files_and_code_together_name_each_domain_once() {
    let (_folder, path) = file(GOOD);
    let builder = || World::default().builder().file(&path);
    let shared = super::ground::shared;
    let domains = block_on(builder().domain("more", shared()).build()).unwrap();
    assert_eq!(domains.all().len(), 3);
    let error = block_on(builder().domain("billing", shared()).build()).unwrap_err().to_string();
    assert!(error.contains(":26: domains.billing: this domain is configured twice"), "{error}");
}

/// The line, the field, a hint; and never a value.
#[test]
fn an_error_names_file_line_and_field() {
    for (text, at) in [
        ("[domain.orders]\n", "1: domain: unknown field `domain`; did you mean `domains`?"),
        (
            "\n[domains.a]\nwrap_wth = [\"hunter2\"]",
            "3: domains.a.wrap_wth: unknown field `wrap_wth`; did you mean `wrap_with`?",
        ),
        (
            "[domains.a]\ncolour = 1",
            "2: domains.a.colour: unknown field; known are wrap_with, unwrap_with, store",
        ),
        ("[domains.a]\nhvs.hunter2 = 1", "2: domains.a.hvs: unknown field; known"),
        (
            "[domains.a]\nwrap_with = \"kek://hunter2, expected x\"",
            "2: domains.a.wrap_with: expected a list in brackets",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\",\n 5]",
            "3: domains.a.wrap_with[1]: expected a string",
        ),
        (
            "[domains.a]\nlimits.max_age = 300",
            "2: domains.a.limits.max_age: expected a duration with its unit",
        ),
        (
            "[domains.a]\nlimits.max_age = \"hunter2\"",
            "2: domains.a.limits.max_age: expected a duration with its unit",
        ),
        (
            "[domains.a.limits]\nmax_agee = \"5m\"",
            "2: domains.a.limits.max_agee: unknown field `max_agee`; did you mean `max_age`?",
        ),
        (
            "[domains.a]\nsuite = \"aes-256-gcm\"",
            "2: domains.a.suite: unknown value `aes-256-gcm`; did you mean `aes256-gcm`?",
        ),
        (
            "[domains.a]\nsuite = \"hvs.hunter2\"",
            "2: domains.a.suite: unknown value; known are aes256-gcm",
        ),
        ("[domains.a]\nwrap_with = [\"kek:a\"]\n[domains.a]\n", "3: "),
        ("[domains.a]\nwrap_with = [\"kek:hunter2\n", "2"),
        ("[domains.a]\nstore = = \"hunter2\"", "2"),
        // What is found when the domain is made.
        ("[domains.a]\n", "1: domains.a: wrap_with: no KEK"),
        (
            "[domains.a]\nwrap_with = [\n\"kek:a\",\n\"kex:hunter2\"]",
            "4: domains.a.wrap_with[1]: scheme `kex:` is unknown; did you mean `kek:`?",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\", \"kek:a\"]",
            "2: domains.a.wrap_with: wrap_with: two providers for local:a",
        ),
        (
            "[domains.b]\nwrap_with = [\"kek:a\"]\n[domains.a]\nwrap_with = \
                [\"kek:a\"]\n[domains.a.limits]\nmax_age = \"2d\"",
            "6: domains.a.limits.max_age: max_age is 2d, 1ms to 1d are allowed",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\"]\ncalls = { tries = 99 }",
            "3: domains.a.calls.tries: tries is 99",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\"]\n[domains.a.branches]\nper = [\"t\"]\n",
            "3: domains.a.branches: store: set one",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\"]\nstore = \"store:x\"\n[domains.a.branches]\nperiod = \"1s\"\n",
            "5: domains.a.branches.period: period is 1s",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\"]\npolicy = \"cod:hunter2\"",
            "3: domains.a.policy: scheme `cod:` is unknown; did you mean `code:`?",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\"]\npolicy = \"code:hunter2\"",
            "3: domains.a.policy: it does not load",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\"]\ncalls.timeout = \"1s\"\npolicy = \
                \"code:x\"\n[domains.a.decisions]\ntimeout = \"2m\"",
            "6: domains.a.decisions.timeout: policy: timeout is 2m, 1ms to 60s",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\"]\npolicy = \"code:x\"\ndecisions.domain = \"hunter2\"",
            "4: domains.a.decisions.domain: domain: leave it out",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\"]\ndecisions.cache_fro = \"1s\"",
            "3: domains.a.decisions.cache_fro: unknown field `cache_fro`; did you mean `cache_for`?",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\"]\n[domains.a.decisions]\nrequire_caller = true",
            "3: domains.a.decisions: nobody decides; set `policy` too",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\"]\nkeep_deks = true\n",
            "3: domains.a.keep_deks: there is no store that keeps them; set `store` too",
        ),
        (
            "[domains.\"a b\"]\nwrap_with = [\"kek:a\"]",
            "1: domains.\"a b\": the name of a domain has",
        ),
        (
            "[domains.a]\nwrap_with = [\"kek:a\"]\nroutes = [\"x\"]\n[domains.b]\nwrap_with = \
                [\"kek:a\"]\nroutes = [\"y\",\n\"x\"]",
            "7: domains.b.routes[1]: domain \"a\" has this route too",
        ),
    ] {
        refused(load(text), text, at);
    }
}

fn refused(loaded: Result<Domains, Error>, text: &str, at: &str) {
    let error = loaded.unwrap_err();
    let shown = format!("{error} {error:?}");
    let place = shown.split("domains.toml:").nth(1).unwrap_or_else(|| panic!("{text}: {shown}"));
    assert!(place.starts_with(at), "{text}:\n{place}");
    assert!(!shown.contains("hunter2"), "{text}: {shown}");
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{text}");
}

#[cfg(feature = "audit")]
#[test]
fn an_error_in_audit_settings_names_file_line_and_field() {
    let with_trail = |text: &str| {
        let (folder, path) = file(text);
        let directory = waxseal::audit::TrailDirectory::new(folder.path().join("audit"));
        let trail = waxseal::audit::AuditTrail::builder().directory(directory).start().unwrap();
        block_on(World::default().builder().audit_trail(trail).file(path).build())
    };
    for (settings, at) in [
        (
            "context_values = { tenant = \"clera\" }",
            "4: domains.a.audit.context_values.tenant: unknown value `clera`; did you mean `clear`?",
        ),
        (
            "context_value.tenant = \"clear\"",
            "4: domains.a.audit.context_value: unknown field `context_value`; did you mean `context_values`?",
        ),
        (
            "access_summaries = \"10ms\"",
            "4: domains.a.audit.access_summaries: access_summaries: at least a second, or 0",
        ),
        (
            "context_values.tenant = \"hashed\"",
            "4: domains.a.audit.context_values: context_values: hashed values need the trail's",
        ),
    ] {
        let text = format!("[domains.a]\nwrap_with = [\"kek:a\"]\n[domains.a.audit]\n{settings}");
        refused(with_trail(&text), &text, at);
    }
    let text = "[domains.a]\nwrap_with = [\"kek:a\"]\n[domains.a.audit]\n";
    with_trail(text).unwrap();
    refused(load(text), text, "3: domains.a.audit: there is no trail");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let (folder, path) = file("");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    for path in [path, folder.path().join("no-such.toml"), folder.path().to_owned()] {
        let error = block_on(World::default().builder().file(&path).build()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}

/// The file that the page shows, with other providers under its schemes.
#[cfg(feature = "audit")]
#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_the_page_is_read_to_its_end() {
    let page = waxseal_testing::top().join("docs/domains.md");
    let page = std::fs::read_to_string(page).unwrap();
    let text = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let (folder, path) = file(text);
    let scripted = |name: &'static str| {
        move |_: String| async move { waxseal::kek::scripted::ScriptedKek::new(name) }
    };
    let schemes = waxseal::domain::Schemes::default()
        .kek("aws-kms", scripted("aws"))
        .kek("vault-transit", scripted("vault"))
        .kek("local", scripted("local"))
        .store("postgres", async |_| Ok(waxseal::store::MemoryStore::new()))
        .policy("rego", async |_| Ok(Open));
    let trail = waxseal::audit::AuditTrail::builder()
        .directory(waxseal::audit::TrailDirectory::new(folder.path().join("audit")))
        .context_key(waxseal::audit::AuditKey::random().unwrap());
    let builder = Domains::builder().schemes(schemes).audit_trail(trail.start().unwrap());
    let domains = builder.file(path).build().await.unwrap();
    let context = domains.context([("product", "cart"), ("tenant", "alice")]).unwrap();
    assert_eq!(context.domain(), Some("orders"));
    let payroll = domains.domain("payroll").unwrap();
    let context = payroll.context([("employee", "bob")]).unwrap();
    let seal =
        |envelope: waxseal::ActingFor<'_>| block_on(envelope.encrypt(&context, Aad::empty(), b"x"));
    let hr = waxseal::Caller::builder().service("hr").build().unwrap();
    seal(payroll.envelope().acting_for(&hr)).unwrap();
    let nobody = block_on(payroll.envelope().encrypt(&context, Aad::empty(), b"x")).unwrap_err();
    assert_eq!(&*nobody.reasons()[0], "no caller is named");
}

/// A name may have dots, which are no dots between keys.
#[test]
fn a_name_with_dots_is_another_one() {
    let kek = "wrap_with = [\"kek:a\"]\n";
    let text = format!(
        "[domains.\"orders.limits\"]\n{kek}limits.max_age = \
            \"5m\"\n[domains.orders]\n{kek}[domains.orders.limits]\nmax_age = \"2d\"\n"
    );
    let error = load(&text).unwrap_err().to_string();
    assert!(error.contains("toml:7: domains.orders.limits.max_age: max_age is 2d"), "{error}");
    let text = format!("[domains.\"a.b\"]\n{kek}colour = 1");
    let error = load(&text).unwrap_err().to_string();
    assert!(error.contains("toml:3: domains.\"a.b\".colour: unknown field"), "{error}");
}

/// What a provider or a store says may begin with the name of an option of something else.
#[test]
fn an_error_of_a_store_is_at_the_store() {
    let (_folder, path) = file(
        "[domains.a]\nwrap_with = [\"kek:a\"]\nstore = \"bad:x\"\ncalls.timeout = \"1s\"\nsuite = \"aes256-gcm\"\n",
    );
    let schemes = World::default().schemes().store("bad", async |_| {
        let error = Error::new(ErrorKind::InvalidOption, "timeout: 100 ms to 5 minutes");
        Err::<waxseal::store::MemoryStore, _>(error)
    });
    let error = block_on(Domains::builder().schemes(schemes).file(path).build()).unwrap_err();
    assert!(error.to_string().contains("toml:3: domains.a.store: timeout: 100 ms"), "{error}");
}

#[test]
fn what_no_context_can_have_chooses_no_domain() {
    let kek = "[domains.a]\nwrap_with = [\"kek:a\"]\n";
    for (text, part) in [
        (format!("\nroute_by = \"waxseal:hunter2\"\n{kek}"), "toml:2: route_by: no encryption"),
        (format!("route_by = \"\"\n{kek}"), "toml:1: route_by: no encryption"),
        (format!("{kek}routes = [\"x\", \"hunter2\\n\"]"), "toml:3: domains.a.routes[1]: a route"),
    ] {
        let error = load(&text).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
    }
    let builder = World::default().builder().route_by("waxseal:x");
    let error = block_on(builder.build()).unwrap_err().to_string();
    assert_eq!(error, "invalid configuration: route_by: no encryption context can have it");
}

#[test]
fn a_file_without_an_end_is_not_read_to_its_end() {
    let (_folder, path) = file(&"#".repeat((16 << 20) + 1));
    for path in [path, PathBuf::from("/dev/zero")] {
        let error = block_on(World::default().builder().file(&path).build()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(format!("{error:?}").contains("more than 16777216 bytes"), "{error:?}");
    }
}

/// Mutations of a good file: cut, doubled, moved, flipped, with long keys and many levels.
#[test]
fn whatever_the_file_says_the_error_is_short_and_shows_no_value() {
    use waxseal_testing::support::Random;

    let good = GOOD.replace("kek:shared", "kek:hunter2").replace("store:shared", "store:hunter2");
    let good = good.replace("\"shop\"", "\"hunter2\"").replace("kek:old", "bad://u:hunter2@h/p");
    let splices = [
        "\"",
        "'",
        "\"\"\"",
        "[",
        "]",
        "[[",
        "{",
        "}",
        "=",
        "\n",
        "#",
        ".",
        ",",
        "\\",
        "\\u0000",
        "1",
        "true",
        "1979-05-27",
        "-1",
        "1e999",
        "nan",
        "0x",
        "\u{0}",
        "\u{202e}",
        "domains",
        "limits",
        "max_age = \"hunter2\"\n",
        "suite = \"hunter2\"\n",
        "calls = \"hunter2\"\n",
        "tries = \"hunter2\"\n",
        "period = 'hunter2'\n",
        "per = 'hunter2'\n",
        "route_by",
        "keep_deks = \"hunter2\"\n",
        "self_contained = \"hunter2\"\n",
        "[domains.x]\n",
    ];
    let deep = format!("x = {}{}", "[".repeat(5000), "]".repeat(5000));
    let long = format!("{} = 1", "k".repeat(100_000));
    let tables = format!("[{}]", vec!["t"; 5000].join("."));
    let mut random = Random::new(7);
    let mut at = |len: usize| usize::try_from(random.below(len as u64 + 1)).unwrap();
    let rounds = 1500;
    for round in 0..rounds {
        let mut text: Vec<char> = good.chars().collect();
        for _ in 0..=at(3) {
            let (from, len) = (at(text.len()), at(12));
            let to = (from + len).min(text.len());
            match at(4) {
                0 => drop(text.drain(from..to)),
                1 => {
                    let part: Vec<_> = text[from..to].to_vec();
                    let place = at(text.len());
                    text.splice(place..place, part);
                }
                2 => drop(text.splice(from..from, splices[at(splices.len() - 1)].chars())),
                3 if from < text.len() => {
                    let last = text.len() - 1;
                    text.swap(from, to.min(last));
                }
                _ => drop(text.splice(from..to, splices[at(splices.len() - 1)].chars())),
            }
        }
        let text: String = match round % 100 {
            0 => format!("{good}{deep}"),
            1 => format!("{good}{long}"),
            2 => format!("{good}{tables}"),
            _ => text.into_iter().collect(),
        };
        let Err(error) = load(&text) else { continue };
        let shown = format!("{error} {error:?}");
        assert!(shown.len() < 4000, "{} bytes: {shown}\n{text}", shown.len());
        let is_key = text.lines().any(|line| {
            let before = line.split('=').next().unwrap_or_default();
            before.contains("hunter2")
        });
        assert!(is_key || !shown.contains("hunter2"), "{shown}\n{text}");
        assert!(shown.contains("domains.toml"), "{shown}\n{text}");
    }
}

#[derive(Debug)]
struct Nobody;

impl DomainResolver for Nobody {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<DomainConfig>, Error>> {
        Box::pin(async { Ok(None) })
    }
}

#[test]
fn a_file_without_a_domain_is_refused_unless_there_are_domains_elsewhere() {
    for text in ["", "# nothing\n", "route_by = \"product\"\n", "[domains]\n"] {
        let error = load(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{text:?}");
        let said = error.to_string();
        assert!(said.contains("domains.toml: there is no domain in it"), "{text:?}: {said}");
        let (_folder, path) = file(text);
        let builder = || World::default().builder().file(&path);
        let in_code = builder().domain("orders", DomainConfig::default().wrap_with("kek:a"));
        assert_eq!(block_on(in_code.build()).unwrap().all().len(), 1, "{text:?}");
        block_on(builder().resolver(Nobody).build()).unwrap();
    }
}
