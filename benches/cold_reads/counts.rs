//! Calls of the key service, counted.

use std::sync::Arc;
use std::time::Duration;

use fleet::cold::{Cold, History};
use pollster::block_on;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Barrier;
use waxseal::branch::BranchKek;
use waxseal::kek::local::LocalKek;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::scripted::ScriptedStore;
use waxseal::store::{MemoryStore, RewrapOptions};
use waxseal::{Aad, EncryptionContext, Envelope, Limits, ManualClock};

use crate::report::{Figure, Report};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const PERIOD: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const WRITERS: usize = 4;
const MINUTES: usize = 30 * 24 * 60;
const READS: usize = 5_000;

fn f64_of(count: impl TryInto<u32>) -> f64 {
    count.try_into().map_or(f64::NAN, f64::from)
}

fn acme() -> EncryptionContext {
    EncryptionContext::new([("tenant", "acme")]).unwrap()
}

/// Where DEKs come from.
#[derive(Clone)]
pub(crate) enum Middle {
    None,
    Stored(MemoryStore, Duration),
    SelfContained,
}

/// A process, and what counts its calls.
pub(crate) struct Process {
    envelope: Envelope,
    root: ScriptedKek,
    store: Option<ScriptedStore>,
}

impl Process {
    fn new(local: &LocalKek, middle: &Middle, limits: Limits, clock: &ManualClock) -> Self {
        let root = ScriptedKek::over(local.clone());
        let envelope = Envelope::builder().limits(limits).clock(clock.clone());
        let branches = BranchKek::builder(root.clone()).name("orders").per(["tenant"]);
        let branches = branches.clock(clock.clone());
        let mut counted = None;
        let envelope = match middle {
            Middle::None => envelope.wrap_with(root.clone()),
            Middle::Stored(store, period) => {
                let store = &*counted.insert(ScriptedStore::over(store.clone()));
                let branches = branches.store(store.clone()).period(*period);
                envelope.wrap_with(branches.build().unwrap())
            }
            Middle::SelfContained => {
                let branches = branches.period(PERIOD).self_contained();
                envelope.wrap_with(branches.build().unwrap())
            }
        };
        Self { envelope: envelope.build().unwrap(), root, store: counted }
    }

    fn write(&self) -> Vec<u8> {
        block_on(self.envelope.encrypt(&acme(), Aad::empty(), b"row")).unwrap()
    }

    fn read(&self, sealed: &[u8]) {
        block_on(self.envelope.decrypt(&acme(), Aad::empty(), sealed)).unwrap();
    }

    fn calls(&self) -> u64 {
        self.root.calls().total()
    }

    fn store_reads(&self) -> u64 {
        self.store.as_ref().map_or(0, |store| store.calls().gets + store.calls().branches)
    }
}

/// Four processes write a row a minute for 30 days. A new one reads 5,000 rows. Returns the calls
/// of writing, those of reading, and how often the reader read the store.
fn read_a_month(middle: &Middle, limits: Limits) -> (f64, f64, f64) {
    let (clock, local) = (ManualClock::new(), LocalKek::in_memory("root").unwrap());
    // In the middle of a period, so that the rows are of two.
    clock.advance(PERIOD * 500 + PERIOD * 2 / 5);
    let mut random = StdRng::seed_from_u64(12);
    let picks: Vec<_> = (0..READS).map(|_| random.random_range(0..MINUTES * WRITERS)).collect();
    let mut rows = vec![Vec::new(); MINUTES * WRITERS];
    picks.iter().for_each(|row| rows[*row] = vec![0]);
    let process = || Process::new(&local, middle, limits, &clock);
    let writers: Vec<_> = (0..WRITERS).map(|_| process()).collect();
    for (row, kept) in rows.iter_mut().enumerate() {
        let sealed = writers[row % WRITERS].write();
        if !kept.is_empty() {
            *kept = sealed;
        }
        if row % WRITERS == WRITERS - 1 {
            clock.advance(MINUTE);
        }
    }
    let reader = process();
    picks.iter().for_each(|row| reader.read(&rows[*row]));
    let written = f64_of(writers.iter().map(Process::calls).sum::<u64>());
    (written, f64_of(reader.calls()), f64_of(reader.store_reads()))
}

pub(crate) fn month(report: &mut Report) {
    let history = History { processes: 4.0, interval: 60.0, length: 30.0 * fleet::DAY };
    let (reads, entries) = (f64_of(READS), 4_096.0);
    let per_100 = |calls: f64| Figure::Per100(calls / f64_of(READS) * 100.0);
    let rule = |cold: Cold| Some(per_100(cold.calls));
    report.heading(
        "4 processes write a row a minute for 30 days, then a new one reads 5,000 rows at random:\n\
         calls of the reader",
        ["measured", "by rule", "goal"],
    );
    for (name, max_age) in [("5 min", 5 * MINUTE), ("1 h", HOUR), ("24 h", DAY)] {
        let limits = Limits::default().max_age(max_age).rotate_after(MINUTE);
        let (_, calls, _) = read_a_month(&Middle::None, limits);
        let by_rule = history.waxseal(max_age.as_secs_f64(), fleet::MINUTE, reads, entries);
        let name = format!("Waxseal, rotate_after 1 min, max_age {name}");
        report.line(&name, Some(per_100(calls)), rule(by_rule));
    }
    let (written, calls, _) = read_a_month(&Middle::None, Limits::default());
    let by_rule = history.waxseal(5.0 * fleet::MINUTE, fleet::DAY, reads, entries);
    let met = calls <= reads * 0.04;
    let name = "Waxseal, default limits (rotate_after 24 h)";
    report.goal(name, per_100(calls), rule(by_rule), met, "<= 4 per 100");
    report.line("    calls of the writers", Some(Figure::Count(written)), None);

    let store = MemoryStore::new();
    let stored = Middle::Stored(store.clone(), PERIOD);
    let (written, calls, store_reads) = read_a_month(&stored, Limits::default());
    let by_rule = history.waxseal_branches(f64_of(store.len()), reads);
    let met = calls <= reads * 0.001;
    let name = "Waxseal, branch keys of 30 days in a store";
    report.goal(name, per_100(calls), rule(by_rule), met, "<= 0.1 per 100");
    let (by_rule, of_store) = (Figure::Count(by_rule.calls), Figure::Count(by_rule.store_reads));
    report.count("    calls of the reader, in all", calls, Some(by_rule), 4.0);
    let name = "    reads of the store by the reader";
    report.line(name, Some(Figure::Count(store_reads)), Some(of_store));
    report.line("    calls of the writers", Some(Figure::Count(written)), None);
    let (written, calls, _) = read_a_month(&Middle::SelfContained, Limits::default());
    report.line("Waxseal, self-contained branch keys", Some(per_100(calls)), None);
    report.line("    calls of the reader, in all", Some(Figure::Count(calls)), None);
    report.line("    calls of the writers", Some(Figure::Count(written)), None);

    report.line("AWS ESDK, no cache", None, rule(history.no_cache(reads)));
    for (name, max_age) in
        [("5 min", 5.0 * fleet::MINUTE), ("1 h", fleet::HOUR), ("24 h", fleet::DAY)]
    {
        let by_rule = history.caching_cmm(max_age, reads, entries);
        report.line(&format!("AWS ESDK, caching CMM, max age {name}"), None, rule(by_rule));
    }
    for (name, cold) in [
        (
            "AWS ESDK, hierarchical keyring, as many versions",
            history.hierarchical(f64_of(store.len()), reads),
        ),
        ("Asherah", history.asherah(reads)),
    ] {
        report.line(name, None, rule(cold));
        let name = "    reads of the store by the reader";
        report.line(name, None, Some(Figure::Count(cold.store_reads)));
    }
}

/// A row a day of each of 100 hosts for a year, all of which a new process reads. The clock stands
/// still while it reads.
pub(crate) fn year(report: &mut Report) {
    const HOSTS: usize = 100;
    const DAYS: usize = 365;
    let (clock, local) = (ManualClock::new(), LocalKek::in_memory("root").unwrap());
    clock.advance(PERIOD * 500);
    let store = MemoryStore::new();
    let stored = Middle::Stored(store.clone(), DAY);
    let process = || Process::new(&local, &stored, Limits::default(), &clock);
    let hosts: Vec<_> = (0..HOSTS).map(|_| process()).collect();
    let mut rows = Vec::new();
    for _ in 0..DAYS {
        clock.advance(DAY / 2);
        rows.extend(hosts.iter().map(Process::write));
        clock.advance(DAY / 2);
    }
    let reader = process();
    rows.iter().for_each(|row| reader.read(row));
    let reads = f64_of(rows.len());
    let history = History { processes: 100.0, interval: fleet::DAY, length: 365.0 * fleet::DAY };
    report.heading(
        "100 hosts write a row a day for a year, then a new process reads all 36,500: its calls",
        ["measured", "by rule", "goal"],
    );
    let by_rule = Figure::Count(history.waxseal_branches(365.0, reads).calls);
    let calls = f64_of(reader.calls());
    report.count("Waxseal, branch keys of a day in a store", calls, Some(by_rule), 365.0);
    report.count("    branch keys in the store", f64_of(store.len()), None, 365.0);
    let plain = |max_age: f64, rotate_after: f64| {
        Figure::Count(history.waxseal(max_age, rotate_after, reads, reads).keys)
    };
    report.line("Waxseal, default limits", None, Some(plain(300.0, fleet::DAY)));
    let peers = [
        ("AWS ESDK, caching CMM", history.caching_cmm(300.0, reads, reads).keys),
        (
            "AWS ESDK, hierarchical keyring, a version a day",
            history.hierarchical(365.0, reads).calls,
        ),
        ("Asherah", history.asherah(reads).calls),
    ];
    for (name, calls) in peers {
        report.line(name, None, Some(Figure::Count(calls)));
    }
}

/// 1,000 `BranchKek`s make their first DEK at once, over one store.
pub(crate) fn start_together(report: &mut Report) {
    const PROCESSES: usize = 1_000;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let root = ScriptedKek::new("root").unwrap();
    root.wait_for(|| Box::pin(tokio::time::sleep(Duration::from_millis(20))));
    let store = MemoryStore::new();
    let barrier = Arc::new(Barrier::new(PROCESSES));
    let rows: Vec<Vec<u8>> = runtime.block_on(async {
        let start = |_| {
            let kek = BranchKek::builder(root.clone()).name("orders").per(["tenant"]);
            let kek = kek.store(store.clone()).build().unwrap();
            let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
            let barrier = barrier.clone();
            tokio::spawn(async move {
                barrier.wait().await;
                envelope.encrypt(&acme(), Aad::empty(), b"row").await.unwrap()
            })
        };
        let tasks: Vec<_> = (0..PROCESSES).map(start).collect();
        let mut rows = Vec::new();
        for task in tasks {
            rows.push(task.await.unwrap());
        }
        rows
    });
    root.wait_no_more();
    let calls = root.calls();
    report.heading("1,000 branch KEKs start together over one store", ["measured", "", "goal"]);
    report.count("branch keys in the store", f64_of(store.len()), None, 1.0);
    report.count("wraps", f64_of(calls.wraps + calls.generates), None, 1_000.0);
    report.line("unwraps", Some(Figure::Count(f64_of(calls.unwraps))), None);
    // All of them encrypted under that one key.
    let kek = BranchKek::builder(root.clone()).name("orders").per(["tenant"]);
    let kek = kek.store(store).build().unwrap();
    let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
    for row in &rows {
        block_on(envelope.decrypt(&acme(), Aad::empty(), row)).unwrap();
    }
    let cold = root.calls().unwraps - calls.unwraps;
    report.count("calls to read a row of each", f64_of(cold), None, 1.0);
}

/// The root is rotated, and its old version destroyed.
pub(crate) fn rotation(report: &mut Report) {
    const MONTHS: u32 = 12;
    const A_MONTH: u32 = 5_000;
    let (clock, local) = (ManualClock::new(), LocalKek::in_memory("root").unwrap());
    clock.advance(PERIOD * 500);
    let store = MemoryStore::new();
    let stored = Middle::Stored(store.clone(), PERIOD);
    let writer = Process::new(&local, &stored, Limits::default(), &clock);
    let mut rows = Vec::new();
    for _ in 0..MONTHS {
        rows.extend((0..A_MONTH).map(|_| writer.write()));
        clock.advance(PERIOD);
    }
    let old = local.current_version();
    local.rotate().unwrap();
    let root = ScriptedKek::over(local.clone());
    let kek = BranchKek::builder(root.clone()).name("orders").per(["tenant"]);
    let kek = kek.store(store.clone()).clock(clock.clone()).build().unwrap();
    let done = block_on(kek.rewrap_branch_keys(RewrapOptions::default(), |_| {})).unwrap();
    local.retire(old).unwrap();
    let reader = Process::new(&local, &stored, Limits::default(), &clock);
    rows.iter().for_each(|row| reader.read(row));
    let title = format!("The root is rotated over {} messages of {MONTHS} months", rows.len());
    report.heading(&title, ["measured", "", "goal"]);
    let (rewrapped, keys) = (f64_of(done.rewrapped), f64_of(store.len()));
    let met = (rewrapped - keys).abs() < 0.5;
    let goal = format!("= {keys}");
    report.goal(
        "branch keys rewrapped, of all branch keys",
        Figure::Count(rewrapped),
        None,
        met,
        &goal,
    );
    let calls = root.calls();
    report.count("    calls of rewrap", f64_of(calls.rewraps), None, keys);
    report.line(
        "    calls of unwrap, to check them",
        Some(Figure::Count(f64_of(calls.unwraps))),
        None,
    );
}

/// What a message adds.
pub(crate) fn size(report: &mut Report) {
    let clock = ManualClock::new();
    let local = LocalKek::in_memory("root").unwrap();
    let stored = Middle::Stored(MemoryStore::new(), PERIOD);
    report.heading("Bytes that a message adds to its plaintext", ["measured", "", "goal"]);
    let bytes = |middle: &Middle| {
        f64_of(Process::new(&local, middle, Limits::default(), &clock).write().len()) - 3.0
    };
    report.count("one derived branch entry, a name of six letters", bytes(&stored), None, 118.0);
    let more = [
        ("self-contained, the root local:root", Middle::SelfContained),
        ("no branch key, the root local:root", Middle::None),
    ];
    for (name, middle) in more {
        report.line(name, Some(Figure::Count(bytes(&middle))), None);
    }
}
