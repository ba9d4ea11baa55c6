//! Messages that move from one KEK to another.

use super::*;

#[test]
fn rewrap_moves_a_message_from_one_kek_to_another_and_touches_no_payload() {
    let [old, new] = [Probe::new("old"), Probe::new("new")];
    let alice = context("alice");
    let sealed = block_on(envelope(&old.kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let mover =
        Envelope::builder().wrap_with(new.clone()).unwrap_with(old.clone()).build().unwrap();
    assert!(mover.needs_rewrap(&sealed).unwrap());
    let moved = block_on(mover.rewrap(&alice, &sealed)).unwrap();
    assert!(!mover.needs_rewrap(&moved).unwrap());
    assert_eq!(
        new.unwraps.load(Ordering::SeqCst),
        1,
        "the new entry was unwrapped before the old one was dropped"
    );
    let (from, to) = (inspect(&sealed).unwrap(), inspect(&moved).unwrap());
    assert_eq!((from.dek_id, from.plaintext_len), (to.dek_id, to.plaintext_len));
    assert_eq!(moved[moved.len() - 17..], sealed[sealed.len() - 17..]);
    assert_eq!(&*block_on(envelope(&new.kek).decrypt(&alice, Aad::empty(), &moved)).unwrap(), b"x");
    assert_eq!(
        kind(block_on(envelope(&old.kek).decrypt(&alice, Aad::empty(), &moved))),
        ErrorKind::UnknownKek
    );
}

#[test]
fn rewrap_without_the_right_to_unwrap_asks_for_no_unwrap() {
    let probe = Probe::new("kek");
    let alice = context("alice");
    let service = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
    let sealed = block_on(envelope(&probe.kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    probe.kek.rotate().unwrap();
    let rewrapped = block_on(service.rewrap_unverified(&alice, &sealed)).unwrap();
    assert_eq!(
        (probe.rewraps.load(Ordering::SeqCst), probe.unwraps.load(Ordering::SeqCst)),
        (1, 0)
    );
    assert!(!service.needs_rewrap(&rewrapped).unwrap());
    assert_eq!(
        &*block_on(envelope(&probe.kek).decrypt(&alice, Aad::empty(), &rewrapped)).unwrap(),
        b"x"
    );
}

#[test]
fn rewrap_drops_nothing_it_could_not_replace() {
    let [old, new] = [Probe::new("old"), Probe::new("new")];
    let alice = context("alice");
    let sealed = block_on(envelope(&old.kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let mover =
        Envelope::builder().wrap_with(new.clone()).unwrap_with(old.clone()).build().unwrap();
    for (probe, class, expected) in [
        (&old, KekErrorClass::Unavailable, ErrorKind::Unavailable),
        (&old, KekErrorClass::Denied, ErrorKind::Denied),
        (&new, KekErrorClass::Unavailable, ErrorKind::Unavailable),
    ] {
        probe.lie(Lie::Fails(class));
        assert_eq!(kind(block_on(mover.rewrap(&alice, &sealed))), expected);
        probe.lie(None);
    }
    assert_eq!(
        kind(block_on(mover.rewrap(&context("bob"), &sealed))),
        ErrorKind::Invalid,
        "another context"
    );
}

#[test]
fn rewrap_heals_an_entry_whose_bytes_are_damaged_from_another_keks_entry() {
    let [a, b] = [local("a"), local("b")];
    let alice = context("alice");
    let both = Envelope::builder().wrap_with(a.clone()).wrap_with(b.clone()).build().unwrap();
    let compact = block_on(both.encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let [entry_a, entry_b] = compact.wrapped_keys().entries() else { panic!() };
    let mut bytes = entry_a.wrapped().to_vec();
    bytes[70] ^= 1;
    let damaged = waxseal::WrappedDek::new(entry_a.kek_id().clone(), bytes).unwrap();
    let keys = WrappedKeys::new([damaged, entry_b.clone()]).unwrap();
    let dek_id = inspect(compact.as_bytes()).unwrap().dek_id;
    let healed = block_on(both.rewrap_wrapped_keys(&alice, &dek_id, &keys)).unwrap();
    assert_eq!(
        &*block_on(envelope(&a).decrypt(
            &alice,
            Aad::empty(),
            Sealed::compact(compact.as_bytes(), &healed)
        ))
        .unwrap(),
        b"x"
    );
    assert_eq!(healed.entries()[1], *entry_b, "what was good and current is kept");
}

/// A KEK that knows its version only from the metadata, as it must if its service's wrapped keys
/// are opaque.
#[derive(Debug)]
struct VersionInMeta {
    probe: Arc<Probe>,
    current: std::sync::atomic::AtomicU8,
}

impl VersionInMeta {
    fn marked(&self, wrapped: WrappedDek) -> WrappedDek {
        wrapped.with_meta([self.current.load(Ordering::SeqCst)]).unwrap()
    }
}

impl KekProvider for VersionInMeta {
    fn id(&self) -> &waxseal::KekId {
        self.probe.id()
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        wrapped.meta().first().map(|by| *by == self.current.load(Ordering::SeqCst))
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move { Ok(self.marked(self.probe.wrap(context, dek).await?)) })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        self.probe.unwrap(context, wrapped)
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move { Ok(self.marked(self.probe.rewrap(context, wrapped).await?)) })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.probe.health()
    }
}

#[test]
fn a_rewrap_does_not_believe_metadata_that_anybody_can_write() {
    let probe = Probe::new("kek");
    let kek = Arc::new(VersionInMeta { probe: probe.clone(), current: 1.into() });
    let alice = context("alice");
    let service = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let compact = block_on(service.encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    probe.kek.rotate().unwrap();
    kek.current.store(2, Ordering::SeqCst);
    let old = &compact.wrapped_keys().entries()[0];
    let claims = |meta: &[u8]| WrappedKeys::new([old.clone().with_meta(meta).unwrap()]).unwrap();
    let dek_id = inspect(compact.as_bytes()).unwrap().dek_id;
    for (meta, hint) in [(&[2][..], false), (&[1], true), (&[], false), (&[7; 64], true)] {
        let keys = claims(meta);
        assert_eq!(service.wrapped_keys_need_rewrap(&keys), hint, "a hint, from the bytes");
        let rewrapped = block_on(service.rewrap_wrapped_keys(&alice, &dek_id, &keys)).unwrap();
        assert!(probe.kek.is_current(&rewrapped.entries()[0]) == Some(true), "{meta:?}");
    }
    probe.kek.retire(1).unwrap();
    let error = block_on(service.rewrap_wrapped_keys(&alice, &dek_id, &claims(&[2])));
    assert_eq!(kind(error), ErrorKind::Denied, "it is not kept unseen either");
}

#[test]
fn a_rewrap_that_may_not_unwrap_keeps_nothing_on_the_word_of_whoever_wrote_it() {
    let [a, b] = [Probe::new("a"), Probe::new("b")];
    let alice = context("alice");
    let both = Envelope::builder().wrap_with(a.clone()).wrap_with(b.clone()).build().unwrap();
    let sealed = block_on(both.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    // An entry that claims to be current, and that no KEK unwraps: if it were kept, it would be the
    // only one left.
    let compact = block_on(both.encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let mut bytes = compact.wrapped_keys().entries()[0].wrapped().to_vec();
    bytes[70] ^= 1;
    let damaged = WrappedDek::new(a.id().clone(), bytes).unwrap();
    let keys = WrappedKeys::new([damaged, compact.wrapped_keys().entries()[1].clone()]).unwrap();
    let mut forged = sealed.clone();
    let w = usize::from(u16::from_le_bytes([sealed[6], sealed[7]]));
    assert_eq!(w, keys.as_bytes().len());
    forged[52..52 + w].copy_from_slice(keys.as_bytes());
    let only_a = Envelope::builder().wrap_with(a.clone()).unwrap_with(b.clone()).build().unwrap();
    let rewrapped = block_on(only_a.rewrap_unverified(&alice, &forged)).unwrap();
    assert_eq!(
        &*block_on(envelope(&a.kek).decrypt(&alice, Aad::empty(), &rewrapped)).unwrap(),
        b"x"
    );
}

#[test]
fn rewrap_of_a_compact_message_goes_through_its_keys() {
    let kek = local("kek");
    let alice = context("alice");
    let service = envelope(&kek);
    let compact = block_on(service.encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let error = block_on(service.rewrap(&alice, compact.as_bytes())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingWrappedKeys);
    assert!(error.to_string().ends_with(": call rewrap_wrapped_keys"), "{error}");
    assert_eq!(kind(service.needs_rewrap(compact.as_bytes())), ErrorKind::MissingWrappedKeys);
    let needs_rewrap = || {
        let (message, keys) = (service.needs_rewrap(&compact).unwrap(), compact.wrapped_keys());
        assert_eq!(message, service.wrapped_keys_need_rewrap(keys));
        message
    };
    assert!(!needs_rewrap());
    kek.rotate().unwrap();
    assert!(needs_rewrap());
    let dek_id = inspect(compact.as_bytes()).unwrap().dek_id;
    let keys =
        block_on(service.rewrap_wrapped_keys(&alice, &dek_id, compact.wrapped_keys())).unwrap();
    kek.retire(1).unwrap();
    assert_eq!(
        &*block_on(envelope(&kek).decrypt(
            &alice,
            Aad::empty(),
            Sealed::compact(compact.as_bytes(), &keys)
        ))
        .unwrap(),
        b"x"
    );
}

#[test]
fn many_messages_are_rewrapped_with_one_call_for_each_dek() {
    let probe = Probe::new("kek");
    let service = Envelope::builder().wrap_with(probe.clone()).build().unwrap();
    let (alice, bob) = (context("alice"), context("bob"));
    let row = |n: u64| n.to_be_bytes();
    let seal =
        |context, n| block_on(service.encrypt(context, Aad::from(&row(n)), &row(n))).unwrap();
    let of_alice: Vec<_> = (0..100).map(|n| seal(&alice, n)).collect();
    let of_bob: Vec<_> = (100..120).map(|n| seal(&bob, n)).collect();
    let compact = block_on(service.encrypt_compact(&alice, Aad::empty(), b"x")).unwrap();
    let mut damaged = of_bob[0].clone();
    let at = 52 + damaged.len() - 52 - 16 - 8 - 2;
    damaged[at] ^= 1;
    probe.kek.rotate().unwrap();

    let mut messages: Vec<(&EncryptionContext, &[u8])> =
        of_alice.iter().map(|row| (&alice, &**row)).collect();
    messages.insert(50, (&alice, compact.as_bytes()));
    messages.insert(60, (&bob, b"plain text"));
    messages.insert(70, (&bob, &damaged));
    // Alice's message in Bob's context is a separate question, and fails alone.
    messages.insert(80, (&bob, &of_alice[0]));
    messages.extend(of_bob.iter().map(|row| (&bob, &**row)));
    let (rewraps, unwraps) =
        (probe.rewraps.load(Ordering::SeqCst), probe.unwraps.load(Ordering::SeqCst));
    let results = block_on(service.rewrap_all(messages.iter().copied()));
    assert_eq!(results.len(), messages.len());
    let failed: Vec<_> = (0..results.len()).filter(|n| results[*n].is_err()).collect();
    assert_eq!(failed, [50, 60, 70, 80]);
    let kinds: Vec<_> = failed.iter().map(|n| results[*n].as_ref().unwrap_err().kind()).collect();
    assert_eq!(
        kinds,
        [
            ErrorKind::MissingWrappedKeys,
            ErrorKind::NotSealed,
            ErrorKind::Invalid,
            ErrorKind::Invalid
        ]
    );
    // Two DEKs, and two questions that fail.
    assert_eq!(probe.rewraps.load(Ordering::SeqCst) - rewraps, 4);
    assert!(probe.unwraps.load(Ordering::SeqCst) - unwraps <= 8);

    let cold = Envelope::builder().wrap_with(probe.kek.clone()).build().unwrap();
    let mut opened = 0;
    for (n, result) in results.iter().enumerate().filter(|(_, result)| result.is_ok()) {
        let rewrapped = result.as_ref().unwrap();
        assert!(
            !service.needs_rewrap(rewrapped).unwrap()
                && service.needs_rewrap(messages[n].1).unwrap()
        );
        let plaintext =
            block_on(cold.decrypt(messages[n].0, Aad::from(&row(opened)), rewrapped)).unwrap();
        assert_eq!(*plaintext, row(opened));
        opened += 1;
    }
    assert_eq!(opened, 120);
    assert!(block_on(service.rewrap_all([])).is_empty());
}
