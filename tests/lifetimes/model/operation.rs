//! One operation, compared with what the model knows.

use waxseal::kek::KekErrorClass;
use waxseal::{DekId, Envelope, Error, ErrorKind};

use super::ground::{Call, Told};
use super::rules::{
    CLAIM, GRACE, Known, Lease, MAX_AGE, Moment, Name, OF_ENVELOPE, Own, READING, REFRESH_AFTER,
    REFUSE_FOR, RETRY_AFTER, ROTATE_AFTER, WRITING, is_outage, kind_of,
};
use super::{Layers, Process, World};

/// The actor and the operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) process: usize,
    pub(super) envelope: usize,
    pub(super) side: usize,
    pub(super) context: usize,
    /// The message that is read: its DEK, and what the root vouches for.
    pub(super) of: Option<(DekId, Name)>,
    /// It makes no call.
    pub(super) only_cached: bool,
}

/// What was seen of an operation.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) before: Moment,
    pub(super) now: Moment,
    calls: Vec<Call>,
    told: Vec<Told>,
    /// How often the source of what the root vouches for was asked: the root itself, or the store
    /// of branch keys.
    asked: usize,
    error: Option<ErrorKind>,
    /// Nothing was cached for an operation that makes no call.
    is_nothing: bool,
}

/// What the source answers, if it is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    failure: Option<KekErrorClass>,
    /// How many calls of the root that takes.
    calls: usize,
    /// The branch key that new messages have from then on, if there is one.
    row: Option<Name>,
    /// A failure is about the key that the process has, and not about another one.
    is_about: bool,
}

impl Seen {
    fn told(&self, told: Told) -> bool {
        self.told.contains(&told)
    }

    fn made(&self) -> Option<DekId> {
        self.told.iter().find_map(|told| match told {
            Told::Made(id) => Some(*id),
            _ => None,
        })
    }
}

impl World {
    /// Returns what the operation brought, if it succeeded.
    pub(super) fn operate<R>(
        &mut self,
        operation: Operation,
        call: impl FnOnce(&Envelope) -> Result<Option<R>, Error>,
    ) -> Option<(R, Seen)> {
        let Operation { process, envelope, .. } = operation;
        let Process { root, envelopes, .. } = &self.processes[process];
        let of_envelope = &envelopes[envelope];
        let _ = (root.take_calls(), of_envelope.heard.take());
        let (before, reads) = (self.time.now(), self.reads_of_the_store());
        let result = call(&of_envelope.envelope);
        let (calls, told) = (root.take_calls(), of_envelope.heard.take());
        let is_told_twice = (1..told.len()).any(|at| told[..at].contains(&told[at]));
        assert!(!is_told_twice, "{operation:?}: {told:?}");
        let asked = match self.layers {
            Layers::One => calls.len(),
            Layers::Two => self.reads_of_the_store() - reads,
        };
        let error = result.as_ref().err().map(Error::kind);
        let (now, is_nothing) = (self.time.now(), matches!(result, Ok(None)));
        let seen = Seen { before, now, calls, told, asked, error, is_nothing };
        let answer = self.answer(operation, before);
        self.check(operation, &seen, answer);
        if seen.calls.iter().any(|call| call.wraps) {
            self.learn_rows();
        }
        self.remember(operation, &seen, answer);
        result.ok().flatten().map(|result| (result, seen))
    }

    fn reads_of_the_store(&self) -> usize {
        let calls = self.store.calls();
        usize::try_from(calls.gets + calls.branches).unwrap()
    }

    /// Returns what the source answers now.
    fn answer(&self, operation: Operation, now: Moment) -> Answer {
        let process = &self.processes[operation.process];
        let failure = process.root.failure();
        if self.layers == Layers::One {
            return Answer { failure, calls: 1, row: None, is_about: true };
        }
        let without_a_call =
            |failure| Answer { failure: Some(failure), calls: 0, row: None, is_about: false };
        if self.store_is_down {
            let unavailable = without_a_call(KekErrorClass::Unavailable);
            return Answer { is_about: true, ..unavailable };
        }
        let row = match operation.of {
            Some((_, name)) => {
                let row = &self.rows[&name];
                if row.is_erased {
                    return without_a_call(KekErrorClass::Denied);
                }
                if row.begins > now.wall_secs() + 3600 {
                    return without_a_call(KekErrorClass::Misconfigured);
                }
                Some(name)
            }
            None => self.row_for_new_messages(self.group(operation.context), now),
        };
        if process.is_revoked {
            return without_a_call(KekErrorClass::Denied);
        }
        // A new branch key is wrapped first.
        let calls = 1 + usize::from(row.is_none() && failure.is_none());
        let is_about = row.is_none() || row == self.name(operation);
        Answer { failure, calls, row, is_about }
    }

    /// What an operation does is known from what the source last said.
    fn check(&mut self, operation: Operation, seen: &Seen, answer: Answer) {
        let Operation { process, envelope, side, context, .. } = operation;
        let is_branched = self.layers == Layers::Two;
        let process = &self.processes[process];
        let of_envelope = &process.envelopes[envelope];
        let (before, asked) = (seen.before, seen.asked);
        let nothing = Known::default();
        let known = self.known(operation).unwrap_or(&nothing);
        let refused = self.refused(operation, before);
        // The DEK that is cached above a branch key: it may have come through an earlier one.
        let id = operation.of.map(|(id, _)| id).or(of_envelope.own[context].map(|own| own.id));
        let lease = id.filter(|_| is_branched).and_then(|id| of_envelope.leases.get(&(side, id)));
        let what = || {
            format!(
                "{operation:?}: {seen:?}\n{answer:?}, {known:?}, refused {refused:?}, {lease:?}, \
                 revoked {}, {:?}",
                process.is_revoked, of_envelope.revoked
            )
        };
        let age = known.age(before);
        let serves = age.is_some_and(|age| age < MAX_AGE);
        let has_grace = age.is_some_and(|age| age < MAX_AGE + GRACE[side]);
        let replaced = of_envelope.replaced[context].filter(|_| side == WRITING);
        let replaced = replaced.and_then(|(id, _)| of_envelope.leases.get(&(WRITING, id)));
        let lease_serves = lease.into_iter().chain(replaced).any(|lease| lease.may_serve(before));
        let may_serve = serves || lease_serves || (asked == 0 && known.is_remembered(before));
        let since = |at: Option<i64>| at.map_or(i64::MAX, |at| before.boot - at);
        let lately = since(known.failed_at) < RETRY_AFTER;
        let is_outage_known = since(known.outage_at) < CLAIM;
        // A DEK that came through a stale branch key is looked at again after a retry interval.
        let pause = if is_branched { 2 * RETRY_AFTER } else { RETRY_AFTER };
        // An operation that makes no call is served while the outage is known.
        let asks_nobody = operation.only_cached && !is_branched;
        let is_waiting_for_root =
            is_outage_known && (asks_nobody || since(known.failed_at) < pause);
        // The root of a process that revoked it is not asked. Branch keys are still looked for.
        let is_unreachable = process.is_revoked && !is_branched;

        // Never more calls than the model allows.
        let is_young = age.is_some_and(|age| age < REFRESH_AFTER * 9 / 10);
        let is_waiting = lately && (serves || (has_grace && is_outage_known));
        let may_ask = !is_young && !is_waiting && refused.is_none() && !is_unreachable;
        assert!(asked <= usize::from(may_ask && !operation.only_cached), "{}", what());
        let calls = if asked == 1 { answer.calls } else { 0 };
        assert_eq!(seen.calls.len(), calls, "{}", what());
        let wraps = seen.calls.iter().filter(|call| call.wraps).count();
        let expected = match (is_branched, side) {
            (false, WRITING) => calls,
            (true, WRITING) if answer.row.is_none() && calls > 0 => 1,
            _ => 0,
        };
        assert_eq!(wraps, expected, "{}: asked for something else", what());

        // Never served past a limit, and never refused within it.
        let failure = answer.failure.filter(|_| asked == 1);
        let is_renewed = asked == 1 && failure.is_none();
        let is_denied = failure == Some(KekErrorClass::Denied);
        let is_ridden_out = match failure {
            Some(class) if answer.is_about => is_outage(class),
            Some(_) => is_outage_known,
            None => is_waiting_for_root,
        };
        let is_usable = !is_denied && of_envelope.revoked.is_empty();
        let succeeds = is_usable && (serves || (has_grace && is_ridden_out) || is_renewed);
        let lease_is_left = lease.is_some_and(|lease| !lease.wiped.is_past(before));
        // Each envelope remembers an outage of the branch separately.
        let may_be_ridden_out = failure.map_or(since(process.outage_at) < pause, is_outage);
        let may_succeed =
            succeeds || (is_usable && (may_serve || (lease_is_left && may_be_ridden_out)));
        if operation.only_cached {
            assert!(seen.error.is_none() && (seen.is_nothing || may_succeed), "{}", what());
            return;
        }
        assert!(if seen.error.is_none() { may_succeed } else { !succeeds }, "{}", what());
        // With nothing cached, it asks, unless it knows the answer.
        let may_wait = (has_grace && is_waiting_for_root) || (lease_is_left && may_be_ridden_out);
        if !may_serve && !may_wait && may_ask && of_envelope.revoked.is_empty() {
            assert_eq!(asked, 1, "{}", what());
        }
        // What is due is renewed. Above a branch key that is due, a DEK may be fresh.
        let is_due = age.is_some_and(|age| age >= REFRESH_AFTER);
        // A renewal that was refused is tried again after a pause.
        let may_pause = known.refused_at.is_some_and(|at| before.boot < at + RETRY_AFTER);
        if is_due && may_ask && !is_branched && !may_pause && !known.is_remembered(before) {
            assert_eq!(asked, 1, "{}", what());
        }
        if let Some(error) = seen.error {
            let of_answer = failure.map(kind_of);
            let is_expected = of_answer == Some(error)
                || (of_answer.is_none() && refused.map(kind_of) == Some(error))
                || (error == ErrorKind::Denied
                    && (is_unreachable || !of_envelope.revoked.is_empty()));
            assert!(is_expected, "{}", what());
        }
        self.counts.asked += u64::from(asked == 1);
        self.counts.refused += u64::from(seen.error.is_some());
        self.counts.served += u64::from(seen.error.is_none());
        self.counts.in_grace += u64::from(seen.error.is_none() && !may_serve && !is_renewed);
    }

    /// Takes down what the source said.
    fn remember(&mut self, operation: Operation, seen: &Seen, answer: Answer) {
        let Operation { process: number, side, context, of, .. } = operation;
        let (now, group) = (seen.now, self.group(context));
        let (request, name) = (self.request(operation), self.name(operation));
        let is_refused = self.refused(operation, seen.before).is_some();
        let process = &mut self.processes[number];
        let known = name.and_then(|name| process.known[side].get_mut(&name));
        if seen.asked == 0 {
            if is_refused {
                if let Some(known) = known {
                    known.refused_at = Some(now.boot);
                }
            } else if seen.error == Some(ErrorKind::Denied) && self.layers == Layers::One {
                // A revocation is remembered as a denial.
                process.refused.insert(request, (now.plus(REFUSE_FOR), KekErrorClass::Denied));
            }
            return;
        }
        let Some(class) = answer.failure else {
            let asked = seen.calls.last().unwrap().began;
            match (self.layers, of) {
                (Layers::One, None) => {
                    self.says_yes(number, WRITING, Name::OfContext(context), asked, now);
                }
                (_, Some((_, name))) => self.says_yes(number, READING, name, asked, now),
                (Layers::Two, None) => {
                    let row = answer.row.or_else(|| self.row_for_new_messages(group, seen.before));
                    let row = row.unwrap();
                    // A branch key for writing is there for reading too.
                    self.says_yes(number, READING, row, asked, now);
                    self.says_yes(number, WRITING, row, asked, now);
                    let process = &mut self.processes[number];
                    let before = process.current[group].replace(row);
                    if let Some(before) = before.filter(|before| *before != row) {
                        process.replaced[group] = Some((before, seen.before.boot + CLAIM));
                    }
                }
            }
            return;
        };
        if matches!(class, KekErrorClass::Denied | KekErrorClass::Invalid) {
            process.refused.insert(request, (now.plus(REFUSE_FOR), class));
        }
        if class != KekErrorClass::Denied {
            if let Some(known) = known {
                known.failed_at = Some(now.boot);
                if answer.is_about {
                    known.outage_at = Some(now.boot).filter(|_| is_outage(class));
                }
            }
            if is_outage(class) {
                process.outage_at = Some(now.boot);
            } else if let (WRITING, 1, Some(row)) = (side, answer.calls, answer.row)
                && let Some(known) = process.known[READING].get_mut(&row)
            {
                // The root answered about this branch key, so an outage is over for reading too.
                known.outage_at = None;
            }
            return;
        }
        self.counts.denied += 1;
        match (self.layers, of) {
            (Layers::One, _) => {
                let name = of.map_or(Name::OfContext(context), |(_, name)| name);
                self.ends(number, |through, of| through == side && of == name);
            }
            // Reading and writing come from one row.
            (Layers::Two, Some((_, name))) => self.ends(number, |_, of| of == name),
            (Layers::Two, None) => {
                let of_branch = self.rows_of(group);
                self.ends(number, |through, of| {
                    let is_of_branch = of_branch.contains(&of);
                    answer.row == Some(of) || (is_of_branch && through == WRITING)
                });
                let process = &mut self.processes[number];
                (process.current[group], process.replaced[group]) = (None, None);
            }
        }
    }

    fn says_yes(&mut self, process: usize, side: usize, name: Name, asked: Moment, now: Moment) {
        let known = &mut self.processes[process].known[side];
        known.entry(name).or_default().says_yes(asked, side, now);
    }

    /// What a read has obtained.
    pub(super) fn has_read(&mut self, operation: Operation, seen: &Seen) {
        let Some((id, name)) = operation.of else { return };
        if seen.told(Told::Unwrapped(id)) {
            let lease = self.new_lease(operation, (name, READING), READING, seen);
            self.put_lease(operation, READING, id, lease, seen.now);
        }
    }

    /// Whether a message has the DEK that it should have.
    pub(super) fn has_written(&mut self, operation: Operation, seen: &Seen, id: DekId, name: Name) {
        let Operation { process: number, envelope, context, .. } = operation;
        let group = self.group(context);
        let process = &self.processes[number];
        let of_envelope = &process.envelopes[envelope];
        let own = of_envelope.own[context];
        let lease = own.and_then(|own| of_envelope.leases.get(&(WRITING, own.id)));
        let what = || format!("{operation:?}: {seen:?}\n{id}, {name:?}, {own:?}, {lease:?}");
        let replaced = of_envelope.replaced[context];
        let is_remembered = |id: DekId| {
            replaced.is_some_and(|(replaced, until)| replaced == id && seen.before.boot < until)
                && of_envelope
                    .leases
                    .get(&(WRITING, id))
                    .is_some_and(|l| !l.wiped.is_past(seen.now))
        };
        // The branch key that makes new DEKs, or for a moment the one that it replaced.
        let is_current = |name: Name| {
            self.layers == Layers::One
                || process.current[group] == Some(name)
                || process.replaced[group]
                    .is_some_and(|(before, until)| before == name && seen.before.boot < until)
        };
        let may_go_on = |surely: bool| {
            own.zip(lease).is_some_and(|(own, lease)| {
                let is_left = match surely {
                    true => !lease.wiped.may_be_past(seen.now),
                    false => !lease.wiped.is_past(seen.now),
                };
                let is_young = !seen.now.is_past(own.made_at.plus(ROTATE_AFTER));
                let is_same = match surely {
                    true if self.layers == Layers::Two => {
                        process.current[group] == Some(lease.name)
                            && process.replaced[group]
                                .is_none_or(|(_, end)| seen.before.boot >= end)
                    }
                    _ => is_current(lease.name),
                };
                is_left && is_young && is_same
            })
        };
        let is_refreshed = own.is_some_and(|own| seen.told(Told::Refreshed(own.id)));
        match seen.made() {
            Some(made) => {
                assert_eq!(made, id, "{}: another one than was made", what());
                assert!(!may_go_on(true), "{}: one that goes on was replaced", what());
                assert!(is_current(name), "{}: of a branch key that is over", what());
                assert!(self.deks.insert(id), "{}: a DEK that was over encrypts", what());
                let goes = own.filter(|_| lease.is_some());
                let goes = goes.map(|own| (own.id, seen.before.boot + CLAIM));
                let lasting = self.new_lease(operation, (name, WRITING), WRITING, seen);
                let name = match self.layers {
                    Layers::One => Name::Dek(id),
                    Layers::Two => name,
                };
                // It is there for reading as well, for as long as it was asked for.
                let through = if self.layers == Layers::One { READING } else { WRITING };
                if self.layers == Layers::One {
                    let asked = seen.calls.last().unwrap().began;
                    self.says_yes(number, READING, name, asked, seen.now);
                }
                let reading = self.new_lease(operation, (name, through), READING, seen);
                self.put_lease(operation, WRITING, id, lasting, seen.now);
                self.put_lease(operation, READING, id, reading, seen.now);
                let of_envelope = &mut self.processes[number].envelopes[envelope];
                of_envelope.replaced[context] = goes;
                of_envelope.own[context] = Some(Own { id, made_at: seen.before });
            }
            None if is_refreshed => {
                assert!(own.is_some_and(|own| own.id == id), "{}: another DEK", what());
                assert!(may_go_on(false), "{}: a DEK that was over went on", what());
                let lasting = self.new_lease(operation, (name, WRITING), WRITING, seen);
                self.put_lease(operation, WRITING, id, lasting, seen.now);
                self.counts.went_on += 1;
            }
            None => {
                let is_own = own.is_some_and(|own| own.id == id && lease.is_some());
                assert!(is_own || is_remembered(id), "{}: another DEK", what());
            }
        }
    }

    fn new_lease(
        &self,
        operation: Operation,
        (name, through): (Name, usize),
        side: usize,
        seen: &Seen,
    ) -> Lease {
        let (context, known) =
            (operation.context, self.processes[operation.process].known[through].get(&name));
        let known =
            known.unwrap_or_else(|| panic!("{operation:?}: {seen:?}: {name:?} is not known"));
        match self.layers {
            Layers::One => Lease::of_root(context, name, (through, side), known.yes.unwrap()),
            Layers::Two => {
                let of_envelope = (&OF_ENVELOPE[operation.envelope], side);
                let parent = (name, through);
                Lease::through(context, parent, known, of_envelope, seen.before, seen.now).unwrap()
            }
        }
    }

    fn put_lease(&mut self, of: Operation, side: usize, id: DekId, lease: Lease, now: Moment) {
        let leases = &mut self.processes[of.process].envelopes[of.envelope].leases;
        if leases.len() > 200 {
            leases.retain(|_, lease| now.boot < lease.wiped.latest.boot);
        }
        let lease = lease.in_place_of(leases.get(&(side, id)), now);
        leases.insert((side, id), lease);
    }
}
