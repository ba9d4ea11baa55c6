//! The steps: what callers, operators, the root, the store and the clocks do.

use waxseal::branch::BranchKek;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal::store::StoreErrorClass;
use waxseal::{Aad, DekId, ErrorKind};
use waxseal_testing::support::{Random, block_on};

use super::operation::Operation;
use super::rules::{CLAIM, Moment, Name, READING, WRITING};
use super::{HOUR, Handle, Key, Layers, Message, OfEnvelope, PERIOD, Process, TENANTS, World};

impl World {
    pub(super) fn step(&mut self, random: &mut Random) {
        let process = random.index(self.processes.len());
        let envelope = random.index(self.processes[process].envelopes.len());
        let context = random.index(self.contexts.len());
        match random.below(1000) {
            0..=259 => self.write(process, envelope, context, random),
            260..=649 => self.read(process, envelope, random),
            650..=889 => self.use_handle(process, envelope, random),
            890..=954 => self.pass(random),
            955..=979 => self.fail(process, random),
            980..=982 => self.evict_context(process, envelope, context),
            983..=984 => self.evict_all(process, envelope, random),
            985 => self.revoke(process, envelope, random),
            986..=991 => self.reinstate(process),
            992..=998 => self.lose_or_find_the_store(random),
            _ => self.erase(process, self.group(context)),
        }
    }

    fn pass(&mut self, random: &mut Random) {
        // Mostly a little, occasionally past everything.
        let by = if random.one_in(10) { random.below(300_000) } else { random.below(8_000) };
        let by = i64::try_from(by).unwrap();
        match random.below(40) {
            // The machine was paused.
            0 => self.set_wall(by),
            // Somebody set the clock, and somebody sets it right.
            1 => {
                let by = i64::try_from(random.below(3)).unwrap() * HOUR - HOUR;
                self.set_wall(if (self.wall_is_ahead + by).abs() <= 3 * HOUR { by } else { -by });
            }
            2 if random.one_in(20) => self.time.advance(PERIOD),
            _ => self.time.advance(by),
        }
    }

    fn set_wall(&mut self, by: i64) {
        // Whether something that is over by the clock on the wall alone is gone already is not
        // known, since a thread does that. So it is taken away before that clock says otherwise.
        if by < 0 && self.is_revived(by) {
            (0..self.processes.len()).for_each(|process| self.end_all(process));
        }
        if by < 0 {
            // What was due may be fresh again, and a thread uses what it remembers.
            for process in &mut self.processes {
                process.replaced.iter_mut().flatten().for_each(|(_, until)| *until = i64::MAX);
                let replaced = process.envelopes.iter_mut().flat_map(|of| &mut of.replaced);
                replaced.flatten().for_each(|(_, until)| *until = i64::MAX);
            }
        }
        self.wall_is_ahead += by;
        self.time.set_wall(by);
    }

    fn fail(&mut self, process: usize, random: &mut Random) {
        const FAILURES: [KekErrorClass; 5] = [
            KekErrorClass::Unavailable,
            KekErrorClass::Throttled,
            KekErrorClass::Denied,
            KekErrorClass::Invalid,
            KekErrorClass::Misconfigured,
        ];
        // Most of the time all is well.
        let failure = random.one_in(3).then(|| FAILURES[random.index(FAILURES.len())]);
        self.processes[process].root.fail_with(failure);
    }

    fn lose_or_find_the_store(&mut self, random: &mut Random) {
        self.store_is_down = random.one_in(4);
        self.store.fail_with(self.store_is_down.then_some(StoreErrorClass::Unavailable));
    }

    fn evict_context(&mut self, process: usize, envelope: usize, context: usize) {
        let of_envelope = &self.processes[process].envelopes[envelope];
        of_envelope.envelope.evict_context(&self.contexts[context]);
        self.evicts(process, envelope, |of| of == context);
    }

    fn evict_all(&mut self, number: usize, envelope: usize, random: &mut Random) {
        let process = &mut self.processes[number];
        match &process.branches {
            Some(branches) if random.one_in(2) => {
                branches.evict_all();
                process.refused.clear();
                self.forget_all(number);
            }
            _ => {
                process.envelopes[envelope].envelope.evict_all();
                if self.layers == Layers::One {
                    process.refused.clear();
                }
                self.evicts(number, envelope, |_| true);
            }
        }
    }

    /// Whether a wall clock set by so much would go back over the end of something.
    fn is_revived(&self, by: i64) -> bool {
        let now = self.time.now();
        let then = Moment { wall: now.wall + by, ..now };
        let is_revived = |end: Moment| now.is_past(end) && !then.is_past(end);
        self.processes.iter().any(|process| {
            let known = (0..2).any(|side| {
                let mut ends = process.known[side].values().filter_map(|known| known.wiped(side));
                ends.any(is_revived)
            });
            let mut leases = process.envelopes.iter().flat_map(|of| of.leases.values());
            known
                || leases.any(|l| is_revived(l.wiped.earliest) || is_revived(l.wiped.latest))
                || process.refused.values().any(|(until, _)| is_revived(*until))
        })
    }

    fn end_all(&mut self, number: usize) {
        let process = &mut self.processes[number];
        process.branches.iter().for_each(BranchKek::evict_all);
        process.envelopes.iter().for_each(|of| of.envelope.evict_all());
        process.refused.clear();
        self.forget_all(number);
    }

    fn forget_all(&mut self, process: usize) {
        self.ends(process, |_, _| true);
        let process = &mut self.processes[process];
        process.current.fill(None);
        process.replaced.fill(None);
    }

    /// By the id of the root or of the branch, at an envelope or at the branch KEK.
    fn revoke(&mut self, number: usize, envelope: usize, random: &mut Random) {
        let process = &mut self.processes[number];
        let root = process.root.id().clone();
        let of_envelope = &mut process.envelopes[envelope];
        match &process.branches {
            None => of_envelope.envelope.revoke_kek(&root),
            Some(branches) if random.one_in(2) => branches.revoke_kek(&root),
            Some(branches) => {
                let kek_id = if random.one_in(2) { root } else { branches.id().clone() };
                of_envelope.envelope.revoke_kek(&kek_id);
                of_envelope.revoked.push(kek_id);
                self.evicts(number, envelope, |_| true);
                return;
            }
        }
        process.is_revoked = true;
        self.forget_all(number);
    }

    fn reinstate(&mut self, number: usize) {
        let process = &mut self.processes[number];
        let root = process.root.id().clone();
        for of_envelope in &mut process.envelopes {
            for kek_id in of_envelope.revoked.drain(..).chain([root.clone()]) {
                of_envelope.envelope.reinstate_kek(&kek_id);
            }
        }
        process.branches.iter().for_each(|branches| branches.reinstate_kek(&root));
        process.is_revoked = false;
        process.refused.clear();
    }

    fn erase(&mut self, number: usize, tenant: usize) {
        let Some(branches) = &self.processes[number].branches else { return };
        let result = block_on(branches.erase([("tenant", TENANTS[tenant])]));
        assert_eq!(result.is_err(), self.store_is_down);
        // At once here, even if it failed.
        let of_branch = self.rows_of(tenant);
        self.ends(number, |_, name| of_branch.contains(&name));
        let process = &mut self.processes[number];
        (process.current[tenant], process.replaced[tenant]) = (None, None);
        if result.is_ok() {
            let rows = self.rows.values_mut().filter(|row| row.tenant == tenant);
            rows.for_each(|row| row.is_erased = true);
        }
    }

    fn write(&mut self, process: usize, envelope: usize, context: usize, random: &mut Random) {
        let operation =
            Operation { process, envelope, side: WRITING, context, of: None, only_cached: false };
        self.delay(process, random);
        let (wants_handle, of) = (random.one_in(5), self.contexts[context].clone());
        let written = self.operate(operation, |envelope| match wants_handle {
            true => {
                let handle = block_on(envelope.encryptor(&of))?;
                handle.encrypt(Aad::empty(), b"payload").map(|sealed| Some((sealed, Some(handle))))
            }
            false => {
                let sealed = block_on(envelope.encrypt(&of, Aad::empty(), b"payload"))?;
                Ok(Some((sealed, None)))
            }
        });
        let Some(((sealed, handle), seen)) = written else { return };
        let message = Message::new(context, sealed, self.layers);
        let name = match self.layers {
            Layers::One => Name::OfContext(context),
            Layers::Two => message.name,
        };
        self.has_written(operation, &seen, message.id, name);
        if let Some(handle) = handle {
            self.keep_handle(operation, Key::Encrypts(handle), message.id);
        }
        let most = if self.layers == Layers::One { self.from_elsewhere + 6 } else { 60 };
        match self.messages.len() {
            len if len < most => self.messages.push(message),
            len => {
                let at = self.from_elsewhere + random.index(len - self.from_elsewhere);
                self.messages[at] = message;
            }
        }
    }

    fn delay(&mut self, process: usize, random: &mut Random) {
        let delay = if random.one_in(4) { random.below(20_000) } else { 0 };
        self.processes[process].root.delay(i64::try_from(delay).unwrap());
    }

    fn read(&mut self, process: usize, envelope: usize, random: &mut Random) {
        if self.messages.is_empty() {
            return;
        }
        let at = random.index(self.messages.len());
        let Message { context, sealed, id, name } = self.messages[at].clone();
        let (way, of) = (random.below(10), self.contexts[context].clone());
        let (side, only_cached) = (READING, way == 0);
        let operation =
            Operation { process, envelope, side, context, of: Some((id, name)), only_cached };
        self.delay(process, random);
        let read = self.operate(operation, |envelope| match way {
            0 => {
                let plaintext = envelope.decrypt_cached(&of, Aad::empty(), &*sealed)?;
                Ok(plaintext.map(|_| None))
            }
            1 | 2 => block_on(envelope.decryptor(&of, &*sealed)).map(|handle| Some(Some(handle))),
            _ => {
                let plaintext = block_on(envelope.decrypt(&of, Aad::empty(), &*sealed))?;
                assert_eq!(&*plaintext, b"payload");
                Ok(Some(None))
            }
        });
        let Some((handle, seen)) = read else { return };
        self.has_read(operation, &seen);
        if let Some(handle) = handle {
            self.keep_handle(operation, Key::Decrypts(handle, sealed), id);
        }
    }

    fn keep_handle(&mut self, operation: Operation, key: Key, id: DekId) {
        let Operation { process, envelope, side, context, .. } = operation;
        let now = self.time.now();
        let of_envelope = &mut self.processes[process].envelopes[envelope];
        let lease = &of_envelope.leases[&(side, id)];
        let (name, through, expires) = (lease.name, lease.through, lease.for_a_handle());
        let (wiped, given_stale) = (lease.wiped.latest, expires.may_be_past(now));
        of_envelope.handles.push(Handle {
            key,
            context,
            id,
            name,
            through,
            expires,
            wiped,
            given_stale,
            has_ended: false,
        });
    }

    /// A handle serves until its own end, and no longer.
    fn use_handle(&mut self, process: usize, envelope: usize, random: &mut Random) {
        let now = self.time.now();
        let Process { envelopes, outage_at, .. } = &mut self.processes[process];
        let OfEnvelope { handles, .. } = &mut envelopes[envelope];
        if handles.is_empty() {
            return;
        }
        let at = random.index(handles.len());
        let handle = &handles[at];
        let result = match &handle.key {
            Key::Encrypts(handle) => handle.encrypt(Aad::empty(), b"x").map(drop),
            Key::Decrypts(handle, sealed) => handle.decrypt(Aad::empty(), &**sealed).map(drop),
        };
        let Handle { id, name, through, expires, wiped, given_stale, has_ended, .. } = handle;
        let what = || {
            format!(
                "at {now:?}: a handle of {id}, {name:?} {through}, {expires:?}, stale \
                 {given_stale}, ended {has_ended}: {result:?}"
            )
        };
        let known_outage = outage_at.is_some_and(|at| now.boot < at + CLAIM);
        let in_grace = *given_stale && !now.is_past(*wiped) && known_outage;
        match &result {
            Ok(()) => {
                assert!(!has_ended && (!expires.is_past(now) || in_grace), "{}", what());
                self.counts.by_handles += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Expired, "{}", what());
                assert!(*has_ended || expires.may_be_past(now), "{}", what());
                self.counts.handles_over += 1;
                handles.swap_remove(at);
            }
        }
    }
}
