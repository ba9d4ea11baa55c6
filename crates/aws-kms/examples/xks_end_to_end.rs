//! A key outside AWS, end to end: service ─► AWS KMS ─► XKS proxy ─► policy ─► key manager.
//!
//! `cargo run --release -p waxseal-aws-kms --example xks_end_to_end` sets all of it up on this
//! machine and discards it at the end: a stand-in for AWS KMS and an XKS proxy of the project's
//! own, a policy in Rego, and a real OpenBao server as the key manager (the first run installs it
//! under `target/`: 180 MB). Then it tells what happens to a service when its key is denied,
//! sealed, rotated, moved and unplugged, and shows what each hop saw.

#[path = "xks_end_to_end/journal.rs"]
mod journal;
#[path = "../tests/xks/keks.rs"]
mod keks;

use journal::Journal;
use keks::XksKeks;
use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, Instant};
use waxseal_testing::{kms_front, openbao, xks_path, xks_proxy};

use openbao::OpenBao;
use serde_json::{Value, json};
use waxseal::{Aad, EncryptionContext, Envelope, ErrorKind, Limits};
use waxseal_testing::sigv4::timestamp;
use xks_path::{KEY, KMS_PATIENCE, XksPath};
use xks_proxy::transit::REQUEST_ID;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Short enough to see a DEK expire; a service would leave it at 5 minutes.
const MAX_AGE: Duration = Duration::from_secs(5);
const COLD_READS: usize = 200;

/// A request as OpenBao's audit log has it.
struct Audited {
    kms_request_id: String,
    operation: String,
    path: String,
    error: String,
    took: Duration,
}

/// What each hop saw.
#[derive(Clone, Copy, Default)]
struct Counts {
    messages: usize,
    kms: usize,
    proxy: usize,
    denied: usize,
    manager: usize,
}

impl Counts {
    fn since(self, before: Self) -> Self {
        Self {
            messages: self.messages - before.messages,
            kms: self.kms - before.kms,
            proxy: self.proxy - before.proxy,
            denied: self.denied - before.denied,
            manager: self.manager - before.manager,
        }
    }
}

struct Story {
    path: XksPath,
    journal: Journal,
    principal: String,
    chapters: Vec<(&'static str, Counts)>,
    seen: Counts,
    messages: usize,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let options = openbao::Options { durable: true, audit: true, ..openbao::Options::default() };
    let path = XksPath::with(options).await;
    path.kms_waits(KMS_PATIENCE);
    let header = format!("sys/config/auditing/request-headers/{REQUEST_ID}");
    path.bao.put(&header, json!({ "hmac": false })).await;
    println!("key manager   OpenBao at {}, key {KEY}", path.bao.address());
    println!("XKS proxy     {}{}, policy in Rego", path.proxy.url(), path.proxy.uri_path());
    println!("AWS KMS       a stand-in at {}, key store {}", path.front.url(), path.store);
    println!("KMS key       {}", path.arn);

    let principal = path.principal();
    let journal = Journal::default();
    let mut story = Story {
        path,
        journal,
        principal,
        chapters: Vec::new(),
        seen: Counts::default(),
        messages: 0,
    };
    story.seen = story.counts();
    story.seal_and_open().await?;
    story.latency().await?;
    story.deny_by_policy().await?;
    story.seal_the_key_manager().await?;
    story.rotate().await?;
    story.move_to_another_key().await?;
    story.pull_the_plug().await?;
    story.ledger()
}

fn tenant(name: &str) -> Outcome<EncryptionContext> {
    Ok(EncryptionContext::new([("tenant", name), ("table", "cards")])?)
}

fn say(text: &str) {
    println!("  {text}");
}

/// Says how an opening went, if it went as it should.
fn tell(
    what: &str,
    found: Result<Vec<u8>, waxseal::Error>,
    right: Result<(), ErrorKind>,
) -> Outcome<()> {
    let found = found.map(|_| ()).map_err(|error| error.kind());
    say(&format!("{what}: {}", found.map_or_else(|kind| kind.as_str(), |()| "opened")));
    expect(what, found == right)
}

fn expect(what: &str, right: bool) -> Outcome<()> {
    if right { Ok(()) } else { Err(format!("not as told: {what}").into()) }
}

impl Story {
    fn chapter(title: &str) {
        println!("\n## {title}");
    }

    /// Keeps what each hop saw since the last chapter.
    fn end_of(&mut self, chapter: &'static str) {
        let now = self.counts();
        self.chapters.push((chapter, now.since(self.seen)));
        self.seen = now;
    }

    fn counts(&self) -> Counts {
        let asked = self.path.proxy.calls();
        let denied = asked
            .iter()
            .filter(|call| call.error == Some(xks_proxy::ErrorName::AccessDenied))
            .count();
        let proxy = asked.iter().filter(|call| call.operation.is_some_and(is_use)).count();
        let (kms, manager) = (self.uses_of_kms().len(), self.audit_log().len());
        Counts { messages: self.messages, kms, proxy, denied, manager }
    }

    fn uses_of_kms(&self) -> Vec<kms_front::Call> {
        let uses = ["Encrypt", "Decrypt", "ReEncrypt"];
        self.path
            .front
            .calls()
            .into_iter()
            .filter(|call| uses.contains(&call.operation.as_str()))
            .collect()
    }

    /// Of the proxy's requests for KMS: each with how long OpenBao took.
    fn audit_log(&self) -> Vec<Audited> {
        audit_log(&self.path.bao, &self.uses_of_kms())
    }

    async fn envelope(&self, arn: &str, limits: Limits) -> Outcome<Envelope> {
        let kek = self.path.kek_of(arn).await;
        Ok(Envelope::builder()
            .wrap_with(kek)
            .limits(limits)
            .observer(self.journal.clone())
            .build()?)
    }

    /// Its own process, with nothing cached.
    async fn cold(&self) -> Outcome<Envelope> {
        self.envelope(&self.path.arn, Limits::default()).await
    }

    async fn seal(&mut self, with: &Envelope, tenant_name: &str, text: &[u8]) -> Outcome<Vec<u8>> {
        self.journal.pages().about = None;
        self.messages += 1;
        Ok(with.encrypt(&tenant(tenant_name)?, Aad::from(b"row 17"), text).await?)
    }

    async fn open(
        &mut self,
        with: &Envelope,
        tenant_name: &str,
        sealed: &[u8],
    ) -> Outcome<Result<Vec<u8>, waxseal::Error>> {
        self.journal.about(sealed)?;
        self.messages += 1;
        Ok(with
            .decrypt(&tenant(tenant_name)?, Aad::from(b"row 17"), sealed)
            .await
            .map(|text| text.to_vec()))
    }

    async fn seal_and_open(&mut self) -> Outcome<()> {
        Self::chapter("Seal and open");
        let (writer, reader) = (self.cold().await?, self.cold().await?);
        for name in ["alice", "bob", "carol"] {
            for _ in 0..1000 {
                let sealed = self.seal(&writer, name, b"4111 1111 1111 1111").await?;
                let opened = self.open(&reader, name, &sealed).await??;
                expect("what was sealed is opened", opened == b"4111 1111 1111 1111")?;
            }
        }
        let Counts { kms, proxy, manager, .. } = self.counts().since(self.seen);
        say("3,000 messages of three tenants sealed by one process and opened by another:");
        say(&format!("{kms} calls to KMS, {proxy} to the proxy, {manager} to the key manager"));
        say("(to wrap, this proxy asks the key manager three times: for the key's version, to \
                encrypt, and to try the decryption before it takes it)");
        let stranger = self.seal(&writer, "alice", b"hers").await?;
        let refused = self.open(&reader, "bob", &stranger).await?;
        tell("alice's message in bob's context", refused, Err(ErrorKind::Invalid))?;
        self.end_of("seal and open");
        Ok(())
    }

    /// What a cold read costs on each hop.
    async fn latency(&mut self) -> Outcome<()> {
        Self::chapter("What a cold read costs, per hop");
        let writer = self.cold().await?;
        let mut whole = Vec::new();
        let from = self.journal.pages().calls.len();
        let kek = self.path.kek().await;
        for n in 0..COLD_READS {
            let reader = Envelope::builder()
                .wrap_with(kek.clone())
                .observer(self.journal.clone())
                .build()?;
            let sealed = self.seal(&writer, &format!("tenant {}", n % 7), b"text").await?;
            let start = Instant::now();
            self.open(&reader, &format!("tenant {}", n % 7), &sealed).await??;
            whole.push(start.elapsed());
        }
        let calls: Vec<_> = {
            let pages = self.journal.pages();
            let reads = pages.calls.iter().skip(from).filter(|line| line.operation == "Unwrap");
            reads.map(|line| line.elapsed).collect()
        };
        let proxy: Vec<_> = {
            let calls = self.path.proxy.calls();
            let decrypts = calls.iter().rev().filter(|call| call.kms_operation == "Decrypt");
            decrypts.take(COLD_READS).map(|call| call.elapsed).collect()
        };
        let manager: Vec<_> = {
            let log = self.audit_log();
            let decrypts =
                log.iter().rev().filter(|line| line.path.starts_with("transit/decrypt/"));
            decrypts.take(COLD_READS).map(|line| line.took).collect()
        };
        let sealed = self.seal(&writer, "tenant 0", &[7; 1024]).await?;
        let context = tenant("tenant 0")?;
        let start = Instant::now();
        for _ in 0..100_000 {
            std::hint::black_box(writer.decrypt(&context, Aad::from(b"row 17"), &sealed).await?);
        }
        let warm = start.elapsed() / 100_000;
        let [whole, calls, proxy, manager] = [whole, calls, proxy, manager].map(median);
        let row = |hop: &str, took: Duration| {
            say(&format!("{hop:<58} {:>9.1} µs", took.as_secs_f64() * 1e6))
        };
        row("service: opening one message, nothing cached", whole);
        row("  of that, in the call to KMS", calls);
        row("    of that, in the XKS proxy", proxy);
        row("      of that, in the key manager", manager);
        row("service: opening one message of 1 KiB, DEK cached", warm);
        say(&format!(
            "medians of {COLD_READS} reads over loopback, connections kept; no distance, which is \
                what a real path mostly costs"
        ));
        self.end_of("latency");
        Ok(())
    }

    async fn deny_by_policy(&mut self) -> Outcome<()> {
        Self::chapter("The policy denies");
        let short = Limits::default()
            .max_age(MAX_AGE)
            .refresh_after(MAX_AGE * 9 / 10)
            .stale_if_error_reading(Duration::from_secs(60));
        let service = self.envelope(&self.path.arn, short).await?;
        let other_arn = self.path.create_key("invoices").await;
        let other = self.envelope(&other_arn, Limits::default()).await?;
        let (order, invoice) = (
            self.seal(&service, "alice", b"order").await?,
            self.seal(&other, "alice", b"invoice").await?,
        );
        self.open(&service, "alice", &order).await??;
        let only_invoices = json!([{
            "principals": [self.principal],
            "keys": ["invoices"],
            "operations": ["*"],
            "kms_operations": ["*"],
        }]);
        self.path.proxy.set_grants(only_invoices);
        say(&format!("the policy takes {KEY} away from the service"));
        tell("its DEK is cached", self.open(&service, "alice", &order).await?, Ok(()))?;
        tokio::time::sleep(MAX_AGE + Duration::from_millis(100)).await;
        let past = format!("past max_age ({MAX_AGE:?}), with an outage grace of a minute");
        tell(&past, self.open(&service, "alice", &order).await?, Err(ErrorKind::Denied))?;
        let asked = self.uses_of_kms().len();
        tell(
            "once more, at once",
            self.open(&service, "alice", &order).await?,
            Err(ErrorKind::Denied),
        )?;
        expect("nobody was asked", self.uses_of_kms().len() == asked)?;
        say("(that was remembered: nobody was asked)");
        let untouched = self.open(&other, "alice", &invoice).await?;
        tell("another key of the same store, in the same service", untouched, Ok(()))?;
        let everybody = json!([{ "principals": ["*"], "keys": ["*"], "operations": ["*"], "kms_operations": ["*"] }]);
        self.path.proxy.set_grants(everybody);
        let cold = self.cold().await?;
        tell(
            "allowed again, in a process that starts now",
            self.open(&cold, "alice", &order).await?,
            Ok(()),
        )?;
        self.end_of("deny by policy");
        Ok(())
    }

    async fn seal_the_key_manager(&mut self) -> Outcome<()> {
        Self::chapter("The key manager is sealed");
        let short = Limits::default().max_age(MAX_AGE).refresh_after(MAX_AGE * 9 / 10);
        let strict = self.envelope(&self.path.arn, short).await?;
        let patient = self
            .envelope(&self.path.arn, short.stale_if_error_reading(Duration::from_secs(60)))
            .await?;
        let sealed = self.seal(&strict, "alice", b"text").await?;
        self.open(&strict, "alice", &sealed).await??;
        self.open(&patient, "alice", &sealed).await??;
        self.path.bao.seal().await;
        tell("sealed; the DEK is cached", self.open(&strict, "alice", &sealed).await?, Ok(()))?;
        tokio::time::sleep(MAX_AGE + Duration::from_millis(100)).await;
        let before = self.journal.pages().served_stale;
        let without = self.open(&strict, "alice", &sealed).await?;
        let why = without.as_ref().err().map(ToString::to_string).unwrap_or_default();
        tell("past max_age, without a grace", without, Err(ErrorKind::Unavailable))?;
        say(&format!("({why})"));
        let with = self.open(&patient, "alice", &sealed).await?;
        tell("past max_age, with a grace of a minute", with, Ok(()))?;
        let told = self.journal.pages().served_stale - before;
        say(&format!("(observers were told so, {told} time(s))"));
        self.path.bao.kill();
        self.path.bao.restart().await;
        let start = Instant::now();
        while self.open(&strict, "alice", &sealed).await?.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        say(&format!("unsealed: opened again after {:.0} ms", start.elapsed().as_secs_f64() * 1e3));
        self.end_of("seal the key manager");
        Ok(())
    }

    async fn rotate(&mut self) -> Outcome<()> {
        Self::chapter("The key is rotated in the key manager");
        let writer = self.cold().await?;
        let old = self.seal(&writer, "alice", b"text").await?;
        self.path.bao.rotate(KEY).await;
        let reader = self.cold().await?;
        let before = self.open(&reader, "alice", &old).await?;
        tell("a message from before, without KMS or the service having noticed", before, Ok(()))?;
        self.journal.about(&old)?;
        let moved = reader.rewrap(&tenant("alice")?, &old).await?;
        let oldest = json!({ "min_decryption_version": 2 });
        self.path.bao.put(&format!("transit/keys/{KEY}/config"), oldest).await;
        let (one, another) = (self.cold().await?, self.cold().await?);
        say("rewrapped, and the first version forbidden");
        tell("the message", self.open(&one, "alice", &moved).await?, Ok(()))?;
        tell(
            "its copy from before",
            self.open(&another, "alice", &old).await?,
            Err(ErrorKind::Denied),
        )?;
        self.end_of("rotate behind the id");
        Ok(())
    }

    async fn move_to_another_key(&mut self) -> Outcome<()> {
        Self::chapter("To a new KMS key");
        let writer = self.cold().await?;
        let old = self.seal(&writer, "alice", b"text").await?;
        let new_arn = self.path.create_key("orders-2027").await;
        let builder = self
            .path
            .builder(&new_arn)
            .external_key_store(&self.path.store)
            .former_keys([&self.path.arn]);
        let mover = Envelope::builder()
            .wrap_with(builder.build().await?)
            .observer(self.journal.clone())
            .build()?;
        self.journal.about(&old)?;
        let moved = mover.rewrap_unverified(&tenant("alice")?, &old).await?;
        let is_same = old.iter().rev().zip(moved.iter().rev()).take(20).all(|(a, b)| a == b);
        expect("the payload is not touched", is_same)?;
        say("rewrapped by ReEncrypt: no DEK in the process, and not a byte of the payload touched");
        let reader = self.envelope(&new_arn, Limits::default()).await?;
        tell(
            "by a process that knows only the new key",
            self.open(&reader, "alice", &moved).await?,
            Ok(()),
        )?;
        self.end_of("rewrap to a new key");
        Ok(())
    }

    async fn pull_the_plug(&mut self) -> Outcome<()> {
        Self::chapter("The plug is pulled");
        let short = Limits::default()
            .max_age(MAX_AGE)
            .refresh_after(MAX_AGE * 9 / 10)
            .stale_if_error_reading(Duration::from_secs(60));
        let service = self.envelope(&self.path.arn, short).await?;
        let sealed = self.seal(&service, "alice", b"text").await?;
        self.open(&service, "alice", &sealed).await??;
        self.path.disconnect().await;
        say("the key store is disconnected");
        tell("the DEK is cached", self.open(&service, "alice", &sealed).await?, Ok(()))?;
        for (_, health) in service.health().await {
            if let Err(error) = health {
                say(&format!("health: {error}"));
            }
        }
        tokio::time::sleep(MAX_AGE + Duration::from_millis(100)).await;
        let gone = self.open(&service, "alice", &sealed).await?;
        tell("past max_age, whatever the grace", gone, Err(ErrorKind::Denied))?;
        self.path.connect().await;
        let cold = self.cold().await?;
        tell(
            "connected again, in a process that starts now",
            self.open(&cold, "alice", &sealed).await?,
            Ok(()),
        )?;
        self.end_of("pull the plug");
        Ok(())
    }

    /// Who used which key when: each call of the last chapters, from the DEK to the key manager's
    /// own log.
    fn ledger(&self) -> Outcome<()> {
        Self::chapter("What each hop saw");
        println!(
            "  {:<22}{:>10}{:>8}{:>8}{:>8}{:>13}",
            "", "messages", "KMS", "proxy", "denied", "key manager"
        );
        for (chapter, Counts { messages, kms, proxy, denied, manager }) in &self.chapters {
            println!("  {chapter:<22}{messages:>10}{kms:>8}{proxy:>8}{denied:>8}{manager:>13}");
        }

        Self::chapter("Who used which key when");
        let (calls, pages) = (self.uses_of_kms(), self.journal.pages());
        expect("the library's calls are those that KMS saw", calls.len() == pages.calls.len())?;
        let mut by_request: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in self.audit_log() {
            let error =
                if line.error.is_empty() { String::new() } else { format!(": {}", line.error) };
            let text = format!("{} {}{error}", line.operation, line.path);
            by_request.entry(line.kms_request_id).or_default().push(text);
        }
        let proxy = self.path.proxy.calls();
        let rows: Vec<_> = calls.iter().zip(&pages.calls).collect();
        let skipped = rows.len().saturating_sub(LAST_ROWS);
        println!(
            "  {:<7} {:<9} {:<20} {:<28} {:<9} {:<32} OpenBao's audit log",
            "UTC", "DEK", "service", "KMS", "request", "XKS proxy"
        );
        for (call, line) in rows.into_iter().skip(skipped) {
            let dek = line.dek.map(|id| id.to_string()).unwrap_or_default();
            let outcome = call.error.unwrap_or("ok");
            let asked: Vec<_> =
                proxy.iter().filter(|asked| asked.kms_request_id == call.request_id).collect();
            let hop = asked.iter().map(|asked| {
                let outcome = asked.error.map_or("ok", |error| error.name());
                format!(
                    "{} {} {outcome}",
                    asked.operation.map_or("", |operation| operation.name()),
                    asked.key
                )
            });
            let hop = hop.collect::<Vec<_>>().join(", ");
            let audited =
                by_request.get(&call.request_id).map(|lines| lines.join(", ")).unwrap_or_default();
            let kms = format!("{} {}", call.operation, outcome.trim_end_matches("Exception"));
            let service = format!("{} {}", line.operation, line.outcome);
            let (dek, request) =
                (dek.get(..8).unwrap_or_default(), call.request_id.get(..8).unwrap_or_default());
            let at = timestamp(line.at);
            let at = at.get(9..15).unwrap_or_default();
            println!("  {at:<7} {dek:<9} {service:<20} {kms:<28} {request:<9} {hop:<32} {audited}");
        }
        println!("  ({skipped} calls before these are left out)");
        Ok(())
    }
}

const LAST_ROWS: usize = 30;

fn is_use(operation: xks_proxy::Operation) -> bool {
    matches!(operation, xks_proxy::Operation::Encrypt | xks_proxy::Operation::Decrypt)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn audit_log(bao: &OpenBao, of: &[kms_front::Call]) -> Vec<Audited> {
    let log = std::fs::read_to_string(bao.audit_file()).unwrap_or_default();
    let ours: std::collections::BTreeSet<&str> =
        of.iter().map(|call| call.request_id.as_str()).collect();
    let mut began = BTreeMap::new();
    let mut lines = Vec::new();
    for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let id = text(&line, &format!("/request/headers/{REQUEST_ID}/0"));
        let (request, time) = (text(&line, "/request/id"), time(&line));
        if text(&line, "/type") == "request" {
            began.insert(request, time);
        } else if ours.contains(id.as_str()) {
            let began = began.get(&request).copied().unwrap_or(time);
            lines.push(Audited {
                kms_request_id: id,
                operation: text(&line, "/request/operation"),
                path: text(&line, "/request/path"),
                error: text(&line, "/error")
                    .lines()
                    .next_back()
                    .unwrap_or_default()
                    .trim()
                    .to_owned(),
                took: time.saturating_sub(began),
            });
        }
    }
    lines
}

fn text(line: &Value, pointer: &str) -> String {
    line.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The time of an entry within its day, which is enough for differences.
fn time(line: &Value) -> Duration {
    let text = text(line, "/time");
    let clock = text.split('T').nth(1).unwrap_or_default().trim_end_matches('Z');
    clock.split(':').fold(Duration::ZERO, |sum, part| {
        sum * 60 + Duration::from_secs_f64(part.parse().unwrap_or(0.0))
    })
}
