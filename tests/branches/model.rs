//! Two processes with two envelopes each against a model: whatever serves was vouched for by the
//! root within `max_age` and not ended since, and whatever may serve does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use waxseal::branch::BranchKek;
use waxseal::kek::local::LocalKek;
use waxseal::kek::{
    BoxFuture, CallTarget, ContextBinding, Health, KekError, KekErrorClass, KekProvider,
    UnwrappedDek,
};
use waxseal::store::scripted::ScriptedStore;
use waxseal::store::{RowId, StoreErrorClass};
use waxseal::{
    Aad, CallPolicy, Decryptor, Dek, EncryptionContext, Envelope, Error, ErrorKind, KekId, Limits,
    ManualClock, WrappedDek,
};
use waxseal_testing::support::stage::entries_of;
use waxseal_testing::support::{block_on, local};

use super::ground::{kek_id, secs, table};

const MAX_AGE: Duration = Duration::from_secs(300);
const TENANTS: [&str; 3] = ["alice", "bob", "carol"];

/// xorshift64*: the same steps in every run of one seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let random = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(random).unwrap() % bound
    }

    fn seconds(&mut self, most: usize) -> Duration {
        secs(u64::try_from(1 + self.below(most)).unwrap())
    }
}

/// A root that writes down, for each branch key that it unwrapped, when it did so last.
#[derive(Debug, Clone)]
struct Root {
    kek: LocalKek,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    failure: Option<KekErrorClass>,
    now: Duration,
    /// By the bytes of its wrapped key.
    vouched: HashMap<Vec<u8>, Duration>,
}

impl KekProvider for Root {
    fn id(&self) -> &KekId {
        self.kek.id()
    }

    fn target(&self, kek_id: &KekId) -> CallTarget {
        self.kek.target(kek_id)
    }

    fn context_binding(&self) -> ContextBinding {
        self.kek.context_binding()
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            self.act()?;
            self.kek.wrap(context, dek).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            if let Err(error) = self.act() {
                if error.class() == KekErrorClass::Denied {
                    // That ends it for whoever asked.
                    self.state.lock().unwrap().vouched.remove(wrapped.wrapped());
                }
                return Err(error);
            }
            let dek = self.kek.unwrap(context, wrapped).await?;
            let mut state = self.state.lock().unwrap();
            let now = state.now;
            state.vouched.insert(wrapped.wrapped().to_vec(), now);
            Ok(dek)
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.kek.health()
    }
}

impl Root {
    fn act(&self) -> Result<(), KekError> {
        match self.state.lock().unwrap().failure {
            Some(class) => Err(KekError::new(class, "by the model")),
            None => Ok(()),
        }
    }
}

struct Member {
    root: Root,
    kek: BranchKek,
    envelopes: [Envelope; 2],
    is_revoked: bool,
    handles: Vec<(usize, Decryptor)>,
}

struct Message {
    tenant: &'static str,
    context: EncryptionContext,
    sealed: Vec<u8>,
    row: RowId,
}

struct World {
    clock: ManualClock,
    now: Duration,
    store: ScriptedStore,
    store_is_down: bool,
    members: Vec<Member>,
    messages: Vec<Message>,
    /// The wrapped key of each branch key, and when it was erased.
    rows: HashMap<RowId, (Vec<u8>, Option<Duration>)>,
    served: u64,
    refused: u64,
    since_change: u64,
}

impl World {
    fn new() -> Self {
        let (kek, clock, store) = (local("root"), ManualClock::new(), ScriptedStore::in_memory());
        let limits = Limits::default().max_age(MAX_AGE).denial_ttl(Duration::ZERO);
        let members = (0..2).map(|_| {
            let root = Root { kek: kek.clone(), state: Arc::default() };
            let kek = BranchKek::builder(root.clone())
                .name("orders")
                .per(["tenant"])
                .store(store.clone())
                .limits(limits)
                // The model knows no breaker.
                .call_policy(CallPolicy::default().breaker_failures(1000))
                .clock(clock.clone())
                .build()
                .unwrap();
            // They would keep DEKs for longer by themselves.
            let limits = Limits::default().max_age(secs(3000)).denial_ttl(Duration::ZERO);
            let envelopes = [(); 2].map(|()| {
                let builder = Envelope::builder().wrap_with(kek.clone()).limits(limits);
                builder.clock(clock.clone()).build().unwrap()
            });
            Member { root, kek, envelopes, is_revoked: false, handles: Vec::new() }
        });
        let members = members.collect();
        Self {
            clock,
            now: Duration::ZERO,
            store,
            store_is_down: false,
            members,
            messages: Vec::new(),
            rows: HashMap::new(),
            served: 0,
            refused: 0,
            since_change: 0,
        }
    }

    fn advance(&mut self, by: Duration) {
        self.clock.advance(by);
        self.now += by;
        for member in &self.members {
            member.root.state.lock().unwrap().now = self.now;
        }
    }

    /// Whether the member may serve this branch key.
    fn is_vouched(&self, of: usize, row: RowId) -> bool {
        let member = &self.members[of];
        let Some((wrapped, _)) = self.rows.get(&row) else { return false };
        let state = member.root.state.lock().unwrap();
        let Some(at) = state.vouched.get(wrapped) else { return false };
        !member.is_revoked && self.now <= *at + MAX_AGE
    }

    /// Learns the branch key of a message that was just written.
    fn learn(&mut self, row: RowId) {
        let stored = block_on(self.store.store().get(&row)).unwrap().unwrap();
        if let Some(keys) = stored.row().unwrap().wrapped_keys() {
            let wrapped = keys.entries()[0].wrapped().to_vec();
            self.rows.entry(row).or_insert((wrapped, None));
        }
    }

    fn check(&mut self, of: usize, tenant: &'static str, row: RowId, result: Result<(), Error>) {
        let member = &self.members[of];
        let (failure, is_revoked) = (member.root.state.lock().unwrap().failure, member.is_revoked);
        let erased = self.rows.get(&row).is_some_and(|(_, erased)| erased.is_some());
        match result {
            Ok(()) => {
                self.served += 1;
                assert!(self.is_vouched(of, row), "{tenant} at {:?}: not vouched", self.now);
            }
            Err(error) => {
                self.refused += 1;
                let expected = match error.kind() {
                    ErrorKind::Denied => {
                        erased || is_revoked || failure == Some(KekErrorClass::Denied)
                    }
                    ErrorKind::Unavailable => {
                        self.store_is_down || failure == Some(KekErrorClass::Unavailable)
                    }
                    _ => false,
                };
                assert!(expected, "{tenant} at {:?}: {error}", self.now);
            }
        }
    }

    fn step(&mut self, random: &mut Random) {
        let of = random.below(2);
        let tenant = TENANTS[random.below(3)];
        self.since_change += 1;
        if self.since_change > 100 {
            self.recover();
        }
        match random.below(1000) {
            0..60 => self.advance(random.seconds(120)),
            60..62 => self.advance(random.seconds(40 * 86_400)),
            62..66 => {
                let failures =
                    [None, None, Some(KekErrorClass::Unavailable), Some(KekErrorClass::Denied)];
                let failure = failures[random.below(4)];
                self.since_change = 0;
                self.members[of].root.state.lock().unwrap().failure = failure;
            }
            66..69 => {
                self.store_is_down = random.below(3) == 0;
                let class = self.store_is_down.then_some(StoreErrorClass::Unavailable);
                self.store.fail_with(class);
            }
            69 => self.erase(of, tenant),
            70..72 => self.revoke(of),
            72..80 => {
                self.members[of].kek.evict_all();
                // Also in the same instant: what serves next is vouched for again.
                self.members[of].root.state.lock().unwrap().vouched.clear();
            }
            80..92 => self.members[of].envelopes[random.below(2)].evict_all(),
            92..300 => self.write(of, tenant, random),
            300..400 => self.use_handles(of, random),
            _ => self.read(of, random),
        }
    }

    fn recover(&mut self) {
        self.since_change = 0;
        self.store_is_down = false;
        self.store.fail_with(None);
        for of in 0..2 {
            self.members[of].root.state.lock().unwrap().failure = None;
            if self.members[of].is_revoked {
                self.revoke(of);
            }
        }
    }

    fn erase(&mut self, of: usize, tenant: &'static str) {
        let result = block_on(self.members[of].kek.erase([("tenant", tenant)]));
        assert_eq!(result.is_err(), self.store_is_down);
        // At once here, also if it failed.
        let mut state = self.members[of].root.state.lock().unwrap();
        for message in self.messages.iter().filter(|message| message.tenant == tenant) {
            if let Some((wrapped, erased)) = self.rows.get_mut(&message.row) {
                state.vouched.remove(wrapped);
                if result.is_ok() {
                    erased.get_or_insert(self.now);
                }
            }
        }
    }

    fn revoke(&mut self, of: usize) {
        let member = &mut self.members[of];
        member.is_revoked = !member.is_revoked;
        let root = kek_id("local:root");
        match member.is_revoked {
            true => member.kek.revoke_kek(&root),
            false => member.kek.reinstate_kek(&root),
        }
        member.root.state.lock().unwrap().vouched.clear();
    }

    fn write(&mut self, of: usize, tenant: &'static str, random: &mut Random) {
        let context = table(tenant, random.below(6));
        let envelope = &self.members[of].envelopes[random.below(2)];
        match block_on(envelope.encrypt(&context, Aad::empty(), b"payload")) {
            Ok(sealed) => {
                let row: [u8; 16] = entries_of(&sealed)[0].wrapped()[1..17].try_into().unwrap();
                let row = RowId::from_bytes(row);
                if !self.rows.contains_key(&row) {
                    self.learn(row);
                }
                self.check(of, tenant, row, Ok(()));
                let message = Message { tenant, context, sealed, row };
                match self.messages.len() {
                    0..200 => self.messages.push(message),
                    len => {
                        let at = random.below(len);
                        self.members.iter_mut().for_each(|m| m.handles.retain(|h| h.0 != at));
                        self.messages[at] = message;
                    }
                }
            }
            Err(error) => {
                self.check(of, tenant, RowId::from_bytes([0; 16]), Err(error));
            }
        }
    }

    fn read(&mut self, of: usize, random: &mut Random) {
        if self.messages.is_empty() {
            return;
        }
        let at = random.below(self.messages.len());
        let Message { tenant, context, sealed, row } = &self.messages[at];
        let envelope = &self.members[of].envelopes[random.below(2)];
        let (tenant, row) = (*tenant, *row);
        if random.below(10) == 0 {
            match block_on(envelope.decryptor(context, sealed)) {
                Ok(opening) => {
                    self.members[of].handles.push((at, opening));
                    self.check(of, tenant, row, Ok(()));
                }
                Err(error) => self.check(of, tenant, row, Err(error)),
            }
            return;
        }
        let result = block_on(envelope.decrypt(context, Aad::empty(), sealed)).map(drop);
        self.check(of, tenant, row, result);
    }

    fn use_handles(&mut self, of: usize, random: &mut Random) {
        if self.members[of].handles.is_empty() {
            return;
        }
        let nth = random.below(self.members[of].handles.len());
        let (at, opening) = &self.members[of].handles[nth];
        let message = &self.messages[*at];
        let (tenant, row) = (message.tenant, message.row);
        match opening.decrypt(Aad::empty(), &message.sealed) {
            Ok(_) => self.check(of, tenant, row, Ok(())),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Expired);
                self.members[of].handles.swap_remove(nth);
            }
        }
    }
}

#[test]
fn what_serves_is_vouched_for_and_what_may_serve_does() {
    let steps: u64 = if cfg!(debug_assertions) { 40_000 } else { 1_000_000 };
    for seed in [0x5EED, 0xB4A2C4] {
        let (mut world, mut random) = (World::new(), Random(seed));
        for _ in 0..steps {
            world.step(&mut random);
        }
        println!(
            "seed {seed}: {steps} steps, {} served, {} refused, {} branch keys",
            world.served,
            world.refused,
            world.rows.len()
        );
        assert!(world.served > steps / 4 && world.refused > steps / 100);
    }
}
