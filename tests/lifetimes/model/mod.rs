//! Random steps of lifetimes against a model, with clocks that the model moves: reads, writes and
//! handles, while the root fails, takes its time, is revoked and reinstated, and DEKs are evicted.
//!
//! The model knows when the root was asked that said yes, for each key that it wraps, and what
//! ended that since. From this alone it says whether an operation succeeds, how often the root is
//! asked, which DEK encrypts, and when a handle ends. Without branch keys the root wraps DEKs. With
//! them it wraps branch keys, and whatever came through one ends no later than it. There, two
//! processes with two envelopes each share a store that is down occasionally, in which branches are
//! erased and periods pass.
//!
//! ```sh
//! cargo test --release --features test-util --test lifetimes model:: -- --nocapture
//! ```
//!
//! runs a million steps for each layer and seed. `WAXSEAL_MODEL_STEPS` sets another number. A
//! failure prints its seed, and `WAXSEAL_MODEL_SEED` runs that one alone: the same steps, while
//! keys and the times of renewals, within a tenth, are drawn again.

mod ground;
mod operation;
mod rules;
mod steps;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use waxseal::branch::BranchKek;
use waxseal::kek::KekErrorClass;
use waxseal::store::RowId;
use waxseal::store::scripted::ScriptedStore;
use waxseal::{Aad, Decryptor, DekId, EncryptionContext, Encryptor, Envelope, KekId, inspect};
use waxseal_testing::support::stage::entries_of;
use waxseal_testing::support::{self, Random, block_on, local};

use ground::{Heard, Root, Time};
use operation::Operation;
use rules::{Between, Known, Leases, Moment, Name, Own};

/// Which layers lie above the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layers {
    /// DEKs.
    One,
    /// Branch keys, and DEKs.
    Two,
}

/// The same in every run, so that a failure is about what was changed.
const SEEDS: [u64; 2] = [0x5EED, 0xB4A2C4];
const HOUR: i64 = 3_600_000;
/// Shorter than what the clocks are set by.
const PERIOD: i64 = 6 * HOUR;
const TENANTS: [&str; 3] = ["alice", "bob", "carol"];
/// Contexts of a tenant.
const TABLES: usize = 3;

struct World {
    layers: Layers,
    time: Time,
    /// By how much the wall clock was set so far.
    wall_is_ahead: i64,
    store: ScriptedStore,
    store_is_down: bool,
    processes: Vec<Process>,
    contexts: Vec<EncryptionContext>,
    /// Those from elsewhere come first and stay.
    messages: Vec<Message>,
    from_elsewhere: usize,
    rows: HashMap<Name, Row>,
    /// All that were made.
    deks: HashSet<DekId>,
    counts: Counts,
}

struct Process {
    root: Root,
    branches: Option<BranchKek>,
    envelopes: Vec<OfEnvelope>,
    /// For reading and for writing.
    known: [HashMap<Name, Known>; 2],
    /// Until when a request is refused without asking.
    refused: HashMap<(usize, Name), (Moment, KekErrorClass)>,
    /// By tenant: the branch key that makes new DEKs, and until when the one before may do so.
    current: Vec<Option<Name>>,
    replaced: Vec<Option<(Name, i64)>>,
    outage_at: Option<i64>,
    is_revoked: bool,
}

struct OfEnvelope {
    envelope: Envelope,
    heard: Heard,
    leases: Leases,
    own: Vec<Option<Own>>,
    /// The DEK that was replaced last, and until when a thread that remembers it may use it.
    replaced: Vec<Option<(DekId, i64)>>,
    /// By which ids root and branch are revoked here, above branch keys.
    revoked: Vec<KekId>,
    handles: Vec<Handle>,
}

#[derive(Clone, Debug)]
struct Message {
    context: usize,
    sealed: Arc<[u8]>,
    id: DekId,
    name: Name,
}

/// A branch key in the store.
#[derive(Clone, Copy, Debug)]
struct Row {
    tenant: usize,
    begins: i64,
    epoch: u32,
    is_erased: bool,
}

enum Key {
    Encrypts(Encryptor),
    Decrypts(Decryptor, Arc<[u8]>),
}

struct Handle {
    key: Key,
    context: usize,
    id: DekId,
    name: Name,
    through: usize,
    expires: Between,
    wiped: Moment,
    given_stale: bool,
    has_ended: bool,
}

#[derive(Default, Debug)]
struct Counts {
    asked: u64,
    served: u64,
    refused: u64,
    in_grace: u64,
    denied: u64,
    went_on: u64,
    by_handles: u64,
    handles_over: u64,
}

impl Process {
    fn new(root: Root, branches: Option<BranchKek>, envelopes: Vec<(Envelope, Heard)>) -> Self {
        let of_envelope = |(envelope, heard)| OfEnvelope {
            envelope,
            heard,
            leases: Leases::new(),
            own: vec![None; TENANTS.len() * TABLES],
            replaced: vec![None; TENANTS.len() * TABLES],
            revoked: Vec::new(),
            handles: Vec::new(),
        };
        Self {
            root,
            branches,
            envelopes: envelopes.into_iter().map(of_envelope).collect(),
            known: [HashMap::new(), HashMap::new()],
            refused: HashMap::new(),
            current: vec![None; TENANTS.len()],
            replaced: vec![None; TENANTS.len()],
            outage_at: None,
            is_revoked: false,
        }
    }
}

impl World {
    fn new(layers: Layers) -> Self {
        let (kek, time, store) = (local("root"), Time::default(), ScriptedStore::in_memory());
        // The wall clock shows no time before 1970.
        time.advance(400 * 24 * HOUR);
        let contexts: Vec<_> = TENANTS
            .iter()
            .flat_map(|tenant| {
                (0..TABLES).map(move |table| {
                    let pairs = [("tenant", *tenant), ("table", &table.to_string())];
                    EncryptionContext::new(pairs).unwrap()
                })
            })
            .collect();
        let (mut messages, mut processes) = (Vec::new(), Vec::new());
        match layers {
            Layers::One => {
                let elsewhere = support::envelope(&kek);
                for (at, context) in contexts.iter().enumerate() {
                    let sealed = block_on(elsewhere.encrypt(context, Aad::empty(), b"payload"));
                    messages.push(Message::new(at, sealed.unwrap(), layers));
                }
                let root = Root::new(&kek, &time);
                let envelopes = vec![ground::envelope(&root, &time)];
                processes.push(Process::new(root, None, envelopes));
            }
            Layers::Two => {
                for _ in 0..2 {
                    let root = Root::new(&kek, &time);
                    let branches = ground::branches(&root, &store, PERIOD, &time);
                    let envelopes =
                        (0..2).map(|number| ground::envelope_over(&branches, number, &time));
                    let envelopes = envelopes.collect();
                    processes.push(Process::new(root, Some(branches), envelopes));
                }
            }
        }
        Self {
            layers,
            time,
            wall_is_ahead: 0,
            store,
            store_is_down: false,
            processes,
            contexts,
            from_elsewhere: messages.len(),
            messages,
            rows: HashMap::new(),
            deks: HashSet::new(),
            counts: Counts::default(),
        }
    }

    /// By what a context shares the key that new DEKs need.
    fn group(&self, context: usize) -> usize {
        if self.layers == Layers::One { context } else { context / TABLES }
    }

    fn request(&self, operation: Operation) -> (usize, Name) {
        let of_group = Name::OfContext(self.group(operation.context));
        (operation.side, operation.of.map_or(of_group, |(_, name)| name))
    }

    fn refused(&self, operation: Operation, now: Moment) -> Option<KekErrorClass> {
        let refused = self.processes[operation.process].refused.get(&self.request(operation));
        refused.filter(|(until, _)| !now.is_past(*until)).map(|(_, class)| *class)
    }

    /// The key that the root vouches for.
    fn name(&self, operation: Operation) -> Option<Name> {
        match (operation.of, self.layers) {
            (Some((_, name)), _) => Some(name),
            (None, Layers::One) => Some(Name::OfContext(operation.context)),
            (None, Layers::Two) => {
                self.processes[operation.process].current[self.group(operation.context)]
            }
        }
    }

    fn known(&self, operation: Operation) -> Option<&Known> {
        let name = self.name(operation)?;
        self.processes[operation.process].known[operation.side].get(&name)
    }

    /// The row of the branch key that new DEKs have to have.
    fn row_for_new_messages(&self, tenant: usize, now: Moment) -> Option<Name> {
        let now = now.wall_secs();
        let is_current = |row: &Row| {
            row.tenant == tenant
                && !row.is_erased
                && row.begins <= now + 3600
                && row.begins + PERIOD / 1000 > now
        };
        let current = self.rows.iter().filter(|(_, row)| is_current(row));
        current.max_by_key(|(_, row)| (row.begins, row.epoch)).map(|(name, _)| *name)
    }

    fn rows_of(&self, tenant: usize) -> Vec<Name> {
        self.rows.iter().filter(|(_, row)| row.tenant == tenant).map(|(name, _)| *name).collect()
    }

    /// Looks at what was put into the store.
    fn learn_rows(&mut self) {
        let mut next = None;
        while self.layers == Layers::Two {
            let page = block_on(self.store.store().scan(next.as_ref(), 1000)).unwrap();
            for stored in page.rows {
                let name = Name::Row(*stored.id());
                if self.rows.contains_key(&name) {
                    continue;
                }
                let (row, place) = (stored.row().unwrap(), stored.place().unwrap());
                let tenant = row.context().unwrap().get("tenant").unwrap();
                let tenant = TENANTS.iter().position(|name| *name == tenant).unwrap();
                let (begins, epoch) = (place.period, place.epoch);
                self.rows.insert(name, Row { tenant, begins, epoch, is_erased: false });
            }
            next = page.next;
            if next.is_none() {
                return;
            }
        }
    }

    /// What came through these keys of a process has ended.
    fn ends(&mut self, process: usize, which: impl Fn(usize, Name) -> bool) {
        let process = &mut self.processes[process];
        for (side, known) in process.known.iter_mut().enumerate() {
            known.retain(|name, _| !which(side, *name));
        }
        for of_envelope in &mut process.envelopes {
            of_envelope.leases.retain(|_, lease| !which(lease.through, lease.name));
            for handle in &mut of_envelope.handles {
                handle.has_ended |= which(handle.through, handle.name);
            }
        }
    }

    /// DEKs of an envelope have ended. Above branch keys those stay.
    fn evicts(&mut self, process: usize, envelope: usize, which: impl Fn(usize) -> bool) {
        let of_envelope = &mut self.processes[process].envelopes[envelope];
        for handle in &mut of_envelope.handles {
            handle.has_ended |= which(handle.context);
        }
        let mut ended = Vec::new();
        of_envelope.leases.retain(|_, lease| {
            let ends = which(lease.context);
            if ends {
                ended.push((lease.through, lease.name));
            }
            !ends
        });
        if self.layers == Layers::One {
            self.ends(process, |through, name| ended.contains(&(through, name)));
        }
    }
}

impl Message {
    fn new(context: usize, sealed: Vec<u8>, layers: Layers) -> Self {
        let id = inspect(&sealed).unwrap().dek_id;
        let name = match layers {
            Layers::One => Name::Dek(id),
            Layers::Two => {
                let row = entries_of(&sealed)[0].wrapped()[1..17].try_into().unwrap();
                Name::Row(RowId::from_bytes(row))
            }
        };
        Self { context, sealed: sealed.into(), id, name }
    }
}

/// Prints how to repeat a run that fails.
struct Repeat {
    seed: u64,
    steps: u64,
    test: &'static str,
}

impl Drop for Repeat {
    fn drop(&mut self) {
        let Self { seed, steps, test } = self;
        if std::thread::panicking() {
            eprintln!(
                "repeat with WAXSEAL_MODEL_SEED={seed:#x} WAXSEAL_MODEL_STEPS={steps} \
                 cargo test --features test-util --test lifetimes {test}"
            );
        }
    }
}

fn run(layers: Layers, test: &'static str, (debug, release): (u64, u64)) {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        let (digits, radix) = text.strip_prefix("0x").map_or((&*text, 10), |digits| (digits, 16));
        Some(u64::from_str_radix(digits, radix).unwrap())
    };
    let steps = if cfg!(debug_assertions) { debug } else { release };
    let steps = number("WAXSEAL_MODEL_STEPS").unwrap_or(steps);
    let seeds = match number("WAXSEAL_MODEL_SEED") {
        Some(seed) => vec![seed],
        None => SEEDS.to_vec(),
    };
    for seed in seeds {
        let (mut world, mut random, start) =
            (World::new(layers), Random::new(seed), Instant::now());
        let repeat = Repeat { seed, steps, test };
        for _ in 0..steps {
            world.step(&mut random);
        }
        let (counts, branch_keys) = (&world.counts, world.rows.len());
        println!("{layers:?}, seed {seed:#x}: {steps} steps in {:?}", start.elapsed());
        println!("{counts:?}, {} DEKs made, {branch_keys} branch keys", world.deks.len());
        let often = |count: u64, of_steps: u64| assert!(count > steps / of_steps, "{counts:?}");
        often(counts.asked, 100);
        often(counts.served, 4);
        often(counts.refused, 50);
        often(counts.in_grace, 2_000);
        often(counts.denied, 1_000);
        often(counts.went_on, 2_000);
        often(counts.by_handles, 50);
        often(counts.handles_over, 500);
        drop(repeat);
    }
}

#[test]
fn nothing_serves_past_a_limit_and_nothing_is_asked_too_often() {
    let test = "nothing_serves_past_a_limit_and_nothing_is_asked_too_often";
    run(Layers::One, test, (100_000, 1_000_000));
}

#[test]
fn whatever_came_through_a_branch_key_ends_no_later_than_it_does() {
    let test = "whatever_came_through_a_branch_key_ends_no_later_than_it_does";
    run(Layers::Two, test, (25_000, 1_000_000));
}
