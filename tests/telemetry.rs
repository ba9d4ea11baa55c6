//! What the observers for the facades `tracing` and `metrics` tell, and what they do not.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use waxseal_testing::support;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use support::{HookedKek, block_on, context};
use waxseal::branch::BranchKek;
use waxseal::domain::{DomainConfig, Domains, Schemes};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::kek::{KekErrorClass, Login};
use waxseal::store::MemoryStore;
use waxseal::{
    Aad, CallPolicy, Envelope, KekId, Limits, ManualClock, MetricsObserver, Observer, Sealed,
    StartOptions, StartUp, TracingObserver, WrappedDek, WrappedKeys,
};

/// A life in which everything happens that an observer can be told.
fn a_whole_life(observer: impl Observer + 'static) {
    let (kek, clock) = (ScriptedKek::new("kek").unwrap(), ManualClock::new());
    kek.fail_with(KekErrorClass::Throttled);
    let second = Duration::from_secs(1);
    let limits =
        Limits::default().max_age(100 * second).stale_if_error_reading(100 * second).max_entries(1);
    let builder = Envelope::builder()
        .wrap_with(kek.clone())
        .clock(clock.clone())
        .limits(limits)
        .observer(observer);
    let builder = builder.call_policy(CallPolicy::default().breaker_failures(1));
    let envelope =
        block_on(builder.start(StartOptions::default().start_up(StartUp::TolerateOutage))).unwrap();
    kek.fail_with(None);
    let alice = context("alice");
    let sealed =
        block_on(support::envelope(kek.local()).encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    let read = || block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).map(|_| ());
    read().unwrap();
    clock.advance(81 * second);
    read().unwrap();
    kek.fail_with(KekErrorClass::Unavailable);
    clock.advance(81 * second);
    read().unwrap();
    clock.advance(21 * second);
    read().unwrap();
    kek.fail_with(None);
    clock.advance(second);
    read().unwrap();
    for tenant in ["bob", "carol"] {
        block_on(envelope.encrypt(&context(tenant), Aad::empty(), b"payload")).unwrap();
    }
    envelope.evict_all();
    kek.fail_with(KekErrorClass::Denied);
    read().unwrap_err();
    block_on(envelope.encrypt(&alice, Aad::empty(), b"payload")).unwrap_err();
}

/// The words that begin so, such as the names of metrics.
fn words(text: &str, prefix: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with(prefix) && *word != prefix).map(str::to_owned).collect()
}

#[test]
fn the_pages_the_rules_and_the_dashboard_name_the_metrics_that_exist() {
    let metrics = |text: &str| words(text, "waxseal_");
    let mut all = BTreeSet::new();
    for (source, item) in [
        (include_str!("../src/observe/metrics.rs"), "pub struct MetricsObserver"),
        (include_str!("../src/dek/statistics/metrics.rs"), "pub fn record_metrics"),
        (include_str!("../src/observe/audit/metrics.rs"), "pub fn record_metrics"),
    ] {
        let (documented, code) = source.split_once(item).unwrap();
        let (documented, code) = (metrics(documented), metrics(code));
        assert!(documented.is_subset(&code), "{item}: {documented:?}");
        all.extend(code);
    }
    assert_eq!(metrics(include_str!("../docs/telemetry.md")), all, "the page has all");
    let rules = include_str!("../docs/telemetry/alerts.yml");
    for used in [rules, include_str!("../docs/telemetry/dashboard.json")] {
        let of_histogram = |name: String| name.trim_end_matches("_bucket").to_owned();
        let used: BTreeSet<_> = metrics(used).into_iter().map(of_histogram).collect();
        assert!(used.len() > 10 && used.is_subset(&all), "{used:?}");
    }
    let alerts = words(rules, "Waxseal");
    let runbook = include_str!("../docs/runbook.md");
    let sections: BTreeSet<_> =
        runbook.lines().filter_map(|line| line.strip_prefix("## ")).map(str::to_owned).collect();
    assert_eq!(alerts, sections, "each alert has a section");
    let tested = words(include_str!("../docs/telemetry/alerts_test.yml"), "Waxseal");
    assert_eq!(alerts, tested, "each alert has a test");
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Under a subscriber of the process: some events come from a thread of the library's own.
fn traced(observer: TracingObserver) -> String {
    written(|| a_whole_life(observer))
}

fn written(work: impl FnOnce()) -> String {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    static WRITTEN: LazyLock<Written> = LazyLock::new(|| {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false)
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        written
    });
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    WRITTEN.0.lock().unwrap().clear();
    work();
    let bytes = WRITTEN.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn every_event_is_traced_at_its_level_and_contexts_only_where_asked_for() {
    let text = traced(TracingObserver::new());
    for (level, event, fields) in [
        ("WARN", "started_without", &["kek_id=local:kek", "kind=\"throttled\""][..]),
        ("INFO", "configured", &["wrap_with=1", "unwrap_with=0", "kek_ids=\"local:kek\""]),
        ("INFO", "unwrapped", &["dek_id=", "kek_id=local:kek"]),
        ("INFO", "wrapped", &["dek_id=", "kek_id=local:kek"]),
        ("INFO", "made", &["dek_id=", "keks=1"]),
        ("DEBUG", "refreshed", &["dek_id="]),
        ("WARN", "renewal_failed", &["dek_id=", "kind=\"unavailable\""]),
        ("WARN", "served_stale", &["dek_id=", "kind=\"unavailable\""]),
        ("WARN", "denied", &[]),
        ("DEBUG", "evicted", &["dek_id="]),
        ("DEBUG", "wiped", &["dek_id="]),
        ("DEBUG", "called", &["kek_id=local:kek", "operation=\"unwrap\"", "elapsed_ms="]),
        ("WARN", "breaker_opened", &["kek_id=local:kek"]),
        ("INFO", "breaker_closed", &["kek_id=local:kek"]),
    ] {
        let named = format!("event=\"{event}\"");
        let line = text
            .lines()
            .find(|line| line.contains(&named))
            .unwrap_or_else(|| panic!("{event}\n{text}"));
        assert!(line.contains(level) && line.contains(" waxseal: "), "{line}");
        assert!(fields.iter().all(|field| line.contains(field)), "{line}");
    }
    let span =
        "waxseal.call{otel.kind=\"client\" waxseal.kek.id=local:kek waxseal.operation=\"wrap\"";
    let closed = |line: &&str| line.contains(span) && line.contains("close");
    let of_denied = |line: &str| line.contains("error.type=\"denied\"");
    assert!(text.lines().filter(closed).any(of_denied), "{text}");
    assert!(text.lines().filter(closed).any(|line| !line.contains("error.type")), "{text}");
    assert!(!text.contains("alice") && !text.contains("bob"), "a context was logged:\n{text}");
    assert!(!text.contains("payload"));
    assert!(traced(TracingObserver::new().with_context()).contains("alice"));
}

#[test]
fn what_is_built_says_which_domain_and_which_keks() {
    let text = written(|| {
        let kek = |name: &'static str| move |_: String| async move { ScriptedKek::new(name) };
        let domains = Domains::builder()
            .schemes(Schemes::default().kek("new", kek("new")).kek("old", kek("old")))
            .domain("orders", DomainConfig::default().wrap_with("new:").unwrap_with("old:"))
            .observer(TracingObserver::new());
        block_on(domains.build()).unwrap();
    });
    let fields = "domain=\"orders\" wrap_with=1 unwrap_with=1 kek_ids=\"local:new, local:old\"";
    assert!(text.contains(fields), "{text}");
}

/// What the work counts, as text: name, labels, value.
fn counted(work: impl FnOnce()) -> BTreeMap<String, String> {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, work);
    let mut seen = BTreeMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let labels: Vec<_> =
            key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let value = match value {
            DebugValue::Counter(count) => count.to_string(),
            DebugValue::Gauge(value) => value.to_string(),
            DebugValue::Histogram(samples) => format!("{} samples", samples.len()),
        };
        seen.insert(format!("{}{{{}}}", key.key().name(), labels.join(",")), value);
    }
    seen
}

#[test]
fn statistics_are_recorded_and_counters_of_events_appear_before_the_first_event() {
    let store = MemoryStore::new();
    let kek = ScriptedKek::new("kek").unwrap();
    let envelope = Envelope::builder().wrap_with(kek).key_store(store).build().unwrap();
    let alice = context("alice");
    let seal = || block_on(envelope.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    let seen = counted(|| {
        let sealed = seal();
        envelope.statistics().record_metrics("orders");
        seal();
        let other = support::envelope(&support::local("kek"));
        let foreign = block_on(other.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
        let prepared = block_on(envelope.prepare([(&alice, &sealed), (&alice, &foreign)]));
        assert!(prepared[0].is_ok() && prepared[1].is_err());
        envelope.statistics().record_metrics("orders");
        envelope.statistics().record_metrics("orders");
    });
    for (name, value) in [
        ("waxseal_lookups_total{envelope=orders,purpose=writing,outcome=waited}", "1"),
        ("waxseal_lookups_total{envelope=orders,purpose=writing,outcome=cached}", "1"),
        ("waxseal_lookups_total{envelope=orders,purpose=reading,outcome=cached}", "1"),
        ("waxseal_deks_cached{envelope=orders,purpose=writing}", "1"),
        ("waxseal_deks_cached{envelope=orders,purpose=reading}", "1"),
        ("waxseal_deks_prepared_total{envelope=orders}", "0"),
        ("waxseal_calls_shared_total{envelope=orders}", "0"),
        ("waxseal_stale_lookups_total{envelope=orders}", "0"),
        ("waxseal_events_lost_total{envelope=orders}", "0"),
        ("waxseal_budget_waits_total{envelope=orders,kek=local:kek}", "0"),
        ("waxseal_budget_refusals_total{envelope=orders,kek=local:kek}", "0"),
        ("waxseal_denied_total{}", "0"),
        ("waxseal_served_stale_total{kind=unavailable}", "0"),
        ("waxseal_renewals_failed_total{kind=throttled}", "0"),
        ("waxseal_calls_total{kek=local:kek,operation=rewrap,outcome=misconfigured}", "0"),
        ("waxseal_started_without_total{kek=local:kek,kind=unavailable}", "0"),
        ("waxseal_damaged_rows_total{store=memory}", "0"),
        ("waxseal_keys_erased_total{store=memory}", "0"),
        ("waxseal_observers_panicked_total{}", "0"),
    ] {
        assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name} in {seen:#?}");
    }
}

#[test]
fn each_source_tells_of_its_own_breaker_of_a_store() {
    let store = waxseal::store::scripted::ScriptedStore::in_memory();
    let clock = waxseal::ManualClock::new();
    let root = support::local("kek");
    let [failing, well] = [(); 2].map(|()| {
        let builder =
            BranchKek::builder(root.clone()).name("orders").per(["tenant"]).clock(clock.clone());
        builder.store(store.clone()).observer(MetricsObserver).build().unwrap()
    });
    let seal = |kek: &BranchKek, tenant: &str| {
        // One clock for both: a DEK ends with its branch key.
        let builder = Envelope::builder().wrap_with(kek.clone()).clock(clock.clone());
        let envelope = builder.build().unwrap();
        block_on(envelope.encrypt(&context(tenant), Aad::empty(), b"payload")).map(drop)
    };
    let recorded = || {
        let seen = counted(|| {
            failing.statistics().record_metrics("failing");
            well.statistics().record_metrics("well");
        });
        ["failing", "well"].map(|envelope| {
            let name = format!("waxseal_store_breaker_open{{envelope={envelope},store=memory}}");
            seen.get(&name).cloned()
        })
    };
    let [open, closed] = ["1", "0"].map(|value| Some(value.to_owned()));
    assert_eq!(recorded(), [closed.clone(), closed.clone()], "before anything happened");
    store.fail_with(waxseal::store::StoreErrorClass::Unavailable);
    for n in 0..6 {
        seal(&failing, &format!("tenant {n}")).unwrap_err();
        clock.advance(Duration::from_millis(60));
    }
    store.fail_with(None);
    seal(&well, "alice").unwrap();
    assert_eq!(recorded(), [open.clone(), closed.clone()]);
    // A breaker that would let a probe through is not closed yet.
    clock.advance(Duration::from_secs(1));
    assert_eq!(recorded(), [open, closed.clone()]);
    seal(&failing, "alice").unwrap();
    assert_eq!(recorded(), [closed.clone(), closed]);
}

#[test]
fn logins_and_the_age_of_branch_keys_are_recorded() {
    let login = Arc::new(Mutex::new(None));
    let told = login.clone();
    let kek = HookedKek::around(support::local("kek")).on_login(move |_| *told.lock().unwrap());
    let branch = BranchKek::builder(kek).name("orders").store(MemoryStore::new()).build().unwrap();
    let envelope = Envelope::builder().wrap_with(branch.clone()).build().unwrap();
    let recorded = || counted(|| branch.statistics().record_metrics("b"));
    block_on(envelope.encrypt(&context("alice"), Aad::empty(), b"payload")).unwrap();
    let seen = recorded();
    assert!(!seen.keys().any(|name| name.starts_with("waxseal_login")), "{seen:#?}");
    let keys = |age: &str| seen[&format!("waxseal_branch_keys{{envelope=b,age={age}}}")].as_str();
    // The period of 30 days began at some time before.
    assert_eq!(["day", "week", "month"].iter().filter(|age| keys(age) == "1").count(), 1);
    assert_eq!(["year", "older"].map(keys), ["0", "0"]);
    for (told, left) in [
        (Login::new(3, 1).ends_in(Duration::from_secs(90)), "90"),
        // It was given back: the gauge must not stay where it was.
        (Login::new(3, 1), "inf"),
    ] {
        *login.lock().unwrap() = Some(told);
        let seen = recorded();
        for (name, value) in [
            ("waxseal_logins_total{envelope=b,kek=local:kek,outcome=ok}", "3"),
            ("waxseal_logins_total{envelope=b,kek=local:kek,outcome=failed}", "1"),
            ("waxseal_login_ends_seconds{envelope=b,kek=local:kek}", left),
        ] {
            assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name} in {seen:#?}");
        }
    }
    let of_envelope = counted(|| envelope.statistics().record_metrics("e"));
    assert!(!of_envelope.keys().any(|name| name.starts_with("waxseal_branch_keys")));
}

/// A sink that fails until it is told otherwise.
#[cfg(feature = "audit")]
#[derive(Debug)]
struct Failing(Arc<std::sync::atomic::AtomicBool>);

#[cfg(feature = "audit")]
impl waxseal::audit::AuditSink for Failing {
    fn write(&mut self, _: &waxseal::audit::Record, _: &str) -> std::io::Result<()> {
        match self.0.load(std::sync::atomic::Ordering::SeqCst) {
            true => Err(std::io::Error::other("the other machine is down")),
            false => Ok(()),
        }
    }
}

#[cfg(feature = "audit")]
#[test]
fn what_an_audit_trail_wrote_and_dropped_is_recorded() {
    use waxseal::audit::{AuditTrail, TrailDirectory};
    let folder = tempfile::tempdir().unwrap();
    let fails = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let trail = AuditTrail::builder()
        .directory(TrailDirectory::new(folder.path().join("audit")))
        .sink(Failing(fails))
        .start()
        .unwrap();
    let kek = support::local("kek");
    let envelope = Envelope::builder().wrap_with(kek).observer(trail.clone()).build().unwrap();
    block_on(envelope.encrypt(&context("alice"), Aad::empty(), b"payload")).unwrap();
    assert!(trail.flush(Duration::from_secs(30)));
    assert!(trail.close());
    envelope.evict_all();
    let statistics = trail.statistics();
    assert!(statistics.written > 3 && statistics.dropped > 0 && statistics.sink_failures > 0);
    let seen = counted(|| statistics.record_metrics("trail"));
    for (name, value) in [
        ("waxseal_audit_written_total{trail=trail}", statistics.written),
        ("waxseal_audit_dropped_total{trail=trail}", statistics.dropped),
        ("waxseal_audit_sink_failures_total{trail=trail}", statistics.sink_failures),
        ("waxseal_audit_write_failures_total{trail=trail}", 0),
        ("waxseal_audit_waiting{trail=trail}", 0),
    ] {
        assert_eq!(seen.get(name), Some(&value.to_string()), "{name} in {seen:#?}");
    }
}

#[test]
fn calls_that_are_shared_and_deks_that_are_prepared_are_counted() {
    let kek = ScriptedKek::new("kek").unwrap();
    let writer = support::envelope(kek.local());
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let alice = context("alice");
    let sealed = block_on(writer.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    block_on(async {
        kek.wait_for(|| Box::pin(after_polls(10)));
        let open = || envelope.decrypt(&alice, Aad::empty(), &sealed);
        for plaintext in futures_util::future::join_all([open(), open(), open()]).await {
            assert_eq!(&*plaintext.unwrap(), b"payload");
        }
    });
    let bob = context("bob");
    let of_bob = block_on(writer.encrypt(&bob, Aad::empty(), b"payload")).unwrap();
    let page = [(&alice, &sealed), (&bob, &of_bob), (&bob, &of_bob)];
    assert!(block_on(envelope.prepare(page)).iter().all(Result::is_ok));
    let statistics = envelope.statistics();
    assert_eq!((statistics.calls_shared, statistics.prepared), (2, 1), "{statistics:?}");
}

/// Pending for some polls, so that all callers have come before the answer.
async fn after_polls(mut polls: u8) {
    std::future::poll_fn(|cx| {
        cx.waker().wake_by_ref();
        polls = polls.saturating_sub(1);
        if polls == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[test]
fn every_event_is_counted() {
    let seen = counted(|| a_whole_life(MetricsObserver));
    for (name, value) in [
        ("waxseal_deks_made_total{}", "2"),
        ("waxseal_deks_wrapped_total{kek=local:kek}", "2"),
        ("waxseal_deks_refreshed_total{}", "2"),
        ("waxseal_renewals_failed_total{kind=unavailable}", "1"),
        ("waxseal_denied_total{}", "2"),
        ("waxseal_breaker_open{kek=local:kek}", "0"),
        ("waxseal_calls_total{kek=local:kek,operation=wrap,outcome=ok}", "2"),
        ("waxseal_calls_total{kek=local:kek,operation=wrap,outcome=denied}", "1"),
        ("waxseal_call_seconds{kek=local:kek,operation=wrap}", "3 samples"),
        ("waxseal_started_without_total{kek=local:kek,kind=throttled}", "1"),
    ] {
        assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name} in {seen:#?}");
    }
    for name in [
        "waxseal_deks_evicted_total{}",
        "waxseal_deks_wiped_total{}",
        "waxseal_served_stale_total{kind=unavailable}",
    ] {
        assert!(seen.contains_key(name), "{name} in {seen:#?}");
    }
}

#[test]
fn a_kek_id_of_a_forged_message_begins_no_line_of_the_log() {
    let kek = support::local("kek");
    let alice = context("alice");
    let compact =
        block_on(support::envelope(&kek).encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let id =
        KekId::new("x\n2026-11-25T00:00:00Z  INFO auth: admin logged in\u{1b}[2J\u{202e}\u{2028}")
            .unwrap();
    let entry = WrappedDek::new(id, compact.wrapped_keys().entries()[0].wrapped()).unwrap();
    let keys = WrappedKeys::new([entry]).unwrap();
    let text = written(|| {
        let takes_any = HookedKek::around(kek.clone()).unwrapping_under_any_id();
        let service = Envelope::builder().unwrap_with(takes_any).observer(TracingObserver::new());
        let service = service.build().unwrap();
        block_on(service.decrypt(&alice, Aad::empty(), Sealed::compact(compact.as_bytes(), &keys)))
            .unwrap();
        let error = block_on(support::envelope(&kek).decrypt(
            &alice,
            Aad::empty(),
            Sealed::compact(compact.as_bytes(), &keys),
        ));
        let error = error.unwrap_err();
        tracing::error!(%error, cause = &error as &dyn std::error::Error, "{error}");
    });
    let lines: Vec<_> = text.lines().filter(|line| line.contains("admin logged in")).collect();
    assert!(lines.iter().any(|line| line.contains("event=\"unwrapped\"")), "{text}");
    assert!(lines.iter().any(|line| line.contains("ERROR")), "{text}");
    assert!(lines.iter().all(|line| !line.starts_with("2026-11-25T00:00:00Z")), "{text}");
    assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{2028}']), "{text:?}");
}
