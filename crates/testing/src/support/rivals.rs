//! Writers, readers, rewrappers, erasers and an operator who revokes, all at once over the branch
//! keys of one store, and what must hold in any interleaving.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use waxseal::branch::BranchKek;
use waxseal::kek::local::LocalKek;
use waxseal::store::{BoxFuture, KeyStore, RewrapOptions, StoredRow};
use waxseal::{Aad, Envelope, Error, ErrorKind, KekId, Limits};

use super::{Random, context, local};

const TENANTS: u64 = 3;

/// What a task did between two ticks of one clock.
#[derive(Clone, Copy, Debug)]
struct Span {
    begun: u64,
    ended: u64,
}

#[derive(Clone)]
struct Written {
    tenant: u64,
    span: Span,
    sealed: Arc<[u8]>,
}

struct Inner {
    root: LocalKek,
    /// Pools of their own, as processes have them.
    stores: Vec<Arc<dyn KeyStore>>,
    rounds: u64,
    seed: u64,
    clock: AtomicU64,
    written: Mutex<Vec<Written>>,
    erased: Mutex<Vec<(u64, Span)>>,
    /// Which message was read, when, and whether it opened.
    read: Mutex<Vec<(Written, Span, bool)>>,
}

/// See the [module](self).
#[derive(Clone)]
pub struct Rivals(Arc<Inner>);

/// Gives others a turn.
async fn pause(turns: u64) {
    let mut left = turns;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn tenant(number: u64) -> String {
    format!("tenant {number}")
}

impl Rivals {
    pub fn new(stores: Vec<Arc<dyn KeyStore>>, seed: u64, rounds: u64) -> Self {
        Self(Arc::new(Inner {
            root: local("root"),
            stores,
            rounds,
            seed,
            clock: AtomicU64::new(0),
            written: Mutex::default(),
            erased: Mutex::default(),
            read: Mutex::default(),
        }))
    }

    /// The tasks, to be run at the same time.
    pub fn tasks(&self) -> Vec<BoxFuture<'static, ()>> {
        let (one, two, three) = (self.clone(), self.clone(), self.clone());
        let mut tasks: Vec<BoxFuture<'static, ()>> =
            (0..3).map(|n| -> BoxFuture<'static, ()> { Box::pin(self.clone().write(n)) }).collect();
        tasks.push(Box::pin(one.erase(3)));
        tasks.push(Box::pin(two.rewrap(4)));
        tasks.push(Box::pin(three.revoke(5)));
        tasks
    }

    fn tick(&self) -> u64 {
        self.0.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn random(&self, task: u64) -> Random {
        Random::new(self.0.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (task + 1))
    }

    /// A process that has just started.
    fn process(&self, task: u64) -> (BranchKek, Envelope) {
        let Inner { root, stores, .. } = &*self.0;
        let at = usize::try_from(task).unwrap() % stores.len();
        let kek = BranchKek::builder(root.clone()).name("orders").per(["tenant"]);
        // A revocation that is reverted is to be forgotten at once, in the envelope too.
        let limits = Limits::default().denial_ttl(Duration::ZERO);
        let kek = kek.store(stores[at].clone()).limits(limits).build().unwrap();
        let envelope = Envelope::builder().wrap_with(kek.clone()).limits(limits).build().unwrap();
        (kek, envelope)
    }

    async fn read(&self, envelope: &Envelope, message: &Written) -> bool {
        let begun = self.tick();
        let context = context(&tenant(message.tenant));
        let opened = envelope.decrypt(&context, Aad::empty(), &*message.sealed).await;
        let span = Span { begun, ended: self.tick() };
        let opened = is_open(opened.map(|plaintext| assert_eq!(&*plaintext, b"payload")));
        self.0.read.lock().unwrap().push((message.clone(), span, opened));
        opened
    }

    fn any_message(&self, random: &mut Random) -> Option<Written> {
        let written = self.0.written.lock().unwrap();
        let count = u64::try_from(written.len()).unwrap();
        let at = (count > 0).then(|| random.below(count))?;
        written.get(usize::try_from(at).unwrap()).cloned()
    }

    async fn write(self, task: u64) {
        let mut random = self.random(task);
        for _ in 0..self.0.rounds {
            pause(random.below(20)).await;
            let number = random.below(TENANTS);
            let (_, envelope) = self.process(task);
            let context = context(&tenant(number));
            let begun = self.tick();
            let sealed = envelope.encrypt(&context, Aad::empty(), b"payload").await.unwrap();
            let span = Span { begun, ended: self.tick() };
            let message = Written { tenant: number, span, sealed: sealed.into() };
            self.0.written.lock().unwrap().push(message.clone());
            if random.below(3) == 0 {
                pause(random.below(20)).await;
                let (_, reader) = self.process(task + 1);
                self.read(&reader, &message).await;
            }
        }
    }

    /// Keeps its branch keys, which its own erasures end.
    async fn erase(self, task: u64) {
        let mut random = self.random(task);
        let (kek, envelope) = self.process(task);
        for _ in 0..self.0.rounds / 3 {
            pause(random.below(60)).await;
            if let Some(message) = self.any_message(&mut random) {
                self.read(&envelope, &message).await;
            }
            let number = random.below(TENANTS);
            let before = self.any_message(&mut random);
            let begun = self.tick();
            kek.erase([("tenant", tenant(number))]).await.unwrap();
            let span = Span { begun, ended: self.tick() };
            self.0.erased.lock().unwrap().push((number, span));
            // Existing keys are refused from now on.
            if let Some(message) = before.filter(|message| message.tenant == number) {
                assert!(!self.read(&envelope, &message).await, "it opens after its erasure");
            }
        }
    }

    async fn rewrap(self, task: u64) {
        let mut random = self.random(task);
        let (kek, _) = self.process(task);
        for _ in 0..self.0.rounds / 3 {
            pause(random.below(60)).await;
            self.0.root.rotate().unwrap();
            let few = RewrapOptions::default().page(3);
            let done = kek.rewrap_branch_keys(few, |_| {}).await.unwrap();
            assert_eq!((done.failed, done.unknown), (0, 0), "{:?}", done.first_failure);
        }
    }

    async fn revoke(self, task: u64) {
        let mut random = self.random(task);
        let (kek, envelope) = self.process(task);
        let root = KekId::new("local:root").unwrap();
        for _ in 0..self.0.rounds {
            pause(random.below(20)).await;
            let Some(message) = self.any_message(&mut random) else { continue };
            self.read(&envelope, &message).await;
            kek.revoke_kek(&root);
            let context = context(&tenant(message.tenant));
            let opened = envelope.decrypt(&context, Aad::empty(), &*message.sealed).await;
            let kind = opened.map(drop).unwrap_err().kind();
            assert_eq!(kind, ErrorKind::Denied, "the root is revoked here");
            kek.reinstate_kek(&root);
        }
    }

    /// Checks what holds when all tasks have ended. Returns how many reads succeeded, and how many
    /// were refused.
    pub async fn check(&self) -> (u32, u32) {
        let (kek, reader) = self.process(0);
        let written = self.0.written.lock().unwrap().clone();
        for message in &written {
            self.read(&reader, message).await;
        }
        let erased = self.0.erased.lock().unwrap().clone();
        let (mut opened, mut refused) = (0, 0);
        for (message, read, opens) in self.0.read.lock().unwrap().iter() {
            let of_tenant = erased.iter().filter(|(tenant, _)| *tenant == message.tenant);
            let spans = || of_tenant.clone().map(|(_, span)| span);
            let what = || format!("{} {:?} read {read:?}", message.tenant, message.span);
            if *opens {
                opened += 1;
                let between = |erasure: &&Span| {
                    erasure.begun > message.span.ended && erasure.ended < read.begun
                };
                assert!(spans().find(between).is_none(), "undone: {}", what());
            } else {
                refused += 1;
                let may_have = |erasure: &&Span| {
                    erasure.ended > message.span.begun && erasure.begun < read.ended
                };
                assert!(spans().find(may_have).is_some(), "lost: {}", what());
            }
        }
        println!("{} messages, {opened} opened, {refused} refused", written.len());

        let done = kek.rewrap_branch_keys(RewrapOptions::default(), |_| {}).await.unwrap();
        assert_eq!((done.failed, done.unknown), (0, 0), "{:?}", done.first_failure);
        let again = kek.rewrap_branch_keys(RewrapOptions::default(), |_| {}).await.unwrap();
        assert_eq!((again.rewrapped, again.failed), (0, 0));
        self.check_rows().await;
        (opened, refused)
    }

    /// No row is half, and of each branch and period only the last may be live.
    async fn check_rows(&self) {
        let (mut rows, mut next) = (Vec::<StoredRow>::new(), None);
        loop {
            let page = self.0.stores[0].scan(next.as_ref(), 100).await.unwrap();
            rows.extend(page.rows);
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        let mut places: BTreeMap<_, Vec<(u32, bool)>> = BTreeMap::new();
        for row in &rows {
            let (place, read) = (row.place().unwrap(), row.row().unwrap());
            match read.wrapped_keys() {
                Some(keys) => assert_eq!(keys.entries().len(), 1),
                None => assert!(read.is_tombstone()),
            }
            let of_place = places.entry((place.branch, place.period)).or_default();
            of_place.push((place.epoch, row.is_tombstone()));
        }
        for of_place in places.values_mut() {
            of_place.sort_unstable();
            for (at, (epoch, is_tombstone)) in of_place.iter().enumerate() {
                assert_eq!(usize::try_from(*epoch).unwrap(), at, "{of_place:?}");
                assert!(*is_tombstone || at + 1 == of_place.len(), "{of_place:?}");
            }
        }
    }
}

/// Denied is what an erased message is. Nothing else may go wrong.
fn is_open(opened: Result<(), Error>) -> bool {
    match opened {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            false
        }
    }
}
