//! No output of the library has a secret: logs, events, metrics, errors, audit trails, reports. A
//! binary of its own, since the subscriber and the recorder are those of the process.
#![cfg(all(feature = "audit", feature = "domains", feature = "metrics", feature = "tracing"))]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use metrics_util::debugging::DebuggingRecorder;
use waxseal::audit::{
    AppendTo, AuditKey, AuditTrail, CheckpointKey, CheckpointVerifier, Disclosure, TracingSink,
    TrailDirectory, Verifier,
};
use waxseal::branch::BranchKek;
use waxseal::domain::{DomainConfig, Domains};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::kek::{KekErrorClass, KekProvider, local::LocalKek};
use waxseal::policy::{Action, BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::store::{KeyStore, MemoryStore, RewrapOptions};
use waxseal::{
    Aad, CallPolicy, Caller, Dek, EncryptionContext, Envelope, EnvelopeBuilder, Error, ErrorKind,
    Event, KekId, Limits, ManualClock, MetricsObserver, Observer, Sealed, Suite, TracingObserver,
    WrappedDek, WrappedKeys,
};
use waxseal_testing::outputs::{Outputs, Secrets, forms};
use waxseal_testing::support::block_on;

const PLAINTEXT: &[u8] = b"4111 1111 1111 1111 of Erika Mustermann";
const AAD: &[u8] = b"row of Erika Mustermann, number 4711";
const PASSWORD: &str = "hunter2-hunter2-hunter2";
const TOKEN: &str = "hvs.CAESIJ4711tokentokentoken";
const PIN: &str = "pin-0815-4711-0815";

/// Writes down what `{:?}` shows of each event.
#[derive(Debug)]
struct Shown(#[allow(dead_code)] &'static str);

static EVENTS: Mutex<Option<Outputs>> = Mutex::new(None);

impl Observer for Shown {
    fn event(&self, event: &Event<'_>) {
        let outputs = EVENTS.lock().unwrap().clone();
        outputs.unwrap().debug(event);
    }
}

/// What is known of a run.
struct Ground {
    outputs: Outputs,
    secrets: Secrets,
    kinds: BTreeSet<&'static str>,
    trail: AuditTrail,
    clock: ManualClock,
}

impl Ground {
    fn error(&mut self, error: &Error) {
        self.outputs.error(error);
        self.outputs.debug(&error.kind());
        self.outputs.add(error.kind().advice().as_bytes());
        error.reasons().iter().for_each(|reason| self.outputs.show(reason));
        self.kinds.insert(error.kind().as_str());
    }

    #[track_caller]
    fn refused<T>(&mut self, kind: ErrorKind, result: Result<T, Error>) {
        let error = result.err().unwrap();
        assert_eq!(error.kind(), kind, "{error}");
        self.error(&error);
    }

    fn builder(&self) -> EnvelopeBuilder {
        Envelope::builder()
            .clock(self.clock.clone())
            .observer(self.trail.clone())
            .observer(TracingObserver::new().with_context())
            .observer(MetricsObserver)
            .observer(Shown("all"))
    }

    /// The DEK of a message, and what is derived from it.
    fn know_the_dek_of(&mut self, name: &str, kek: &impl KekProvider, sealed: &[u8]) {
        let context = context();
        let dek = block_on(kek.unwrap(&context, &first_entry_of(sealed))).unwrap();
        self.outputs.debug(&dek);
        self.secrets.add(name, dek.expose());
    }
}

fn first_entry_of(sealed: &[u8]) -> WrappedDek {
    let begins = if sealed[4] == 3 { 64 } else { 52 };
    let len = usize::from(u16::from_le_bytes([sealed[6], sealed[7]]));
    WrappedKeys::try_from(&sealed[begins..begins + len]).unwrap().entries()[0].clone()
}

fn context() -> EncryptionContext {
    EncryptionContext::new([("tenant", "acme"), ("table", "cards")]).unwrap()
}

fn aad() -> Aad<'static> {
    Aad::from(AAD)
}

#[test]
fn no_output_of_the_library_has_a_secret() {
    let outputs = Outputs::default();
    *EVENTS.lock().unwrap() = Some(outputs.clone());
    let log = outputs.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || log.clone())
        .init();
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    recorder.install().unwrap();
    tracing::trace!("the control of the log");

    let directory = tempfile::tempdir().unwrap();
    let (seed, hash_key, kek_secret): ([u8; 32], Vec<u8>, [u8; 32]) =
        (secret(1), secret(2).to_vec(), secret(3));
    let mut secrets = Secrets::default();
    for (name, secret) in [
        ("the plaintext", PLAINTEXT),
        ("the AAD", AAD),
        ("the password", PASSWORD.as_bytes()),
        ("the token", TOKEN.as_bytes()),
        ("the PIN", PIN.as_bytes()),
        ("the seed", &seed),
        ("the hash key", &hash_key),
        ("the KEK", &kek_secret),
    ] {
        secrets.add(name, secret);
    }
    let path = directory.path().join("audit");
    let copies = directory.path().join("copies");
    let clock = ManualClock::new();
    let trail = AuditTrail::builder()
        .service("cards")
        .directory(TrailDirectory::new(&path))
        .sink(TracingSink)
        .context_value("table", Disclosure::Clear)
        .context_value("tenant", Disclosure::Hashed)
        .context_key(AuditKey::from_slice(&hash_key).unwrap())
        .checkpoint_key(CheckpointKey::ed25519(&seed))
        .checkpoint_every(5, Duration::from_secs(60))
        .checkpoints_to(AppendTo::open(&copies).unwrap())
        .access_summaries(Duration::from_secs(10))
        .clock(clock.clone())
        .start()
        .unwrap();
    outputs.debug(&CheckpointKey::ed25519(&seed));
    outputs.debug(&AuditKey::from_slice(&hash_key).unwrap());
    let kinds = BTreeSet::new();
    let mut ground = Ground { outputs, secrets, kinds, trail, clock };

    messages(&mut ground, &kek_secret);
    failures(&mut ground);
    decisions(&mut ground);
    branches(&mut ground);
    files_and_uris(&mut ground, directory.path());
    values(&mut ground, directory.path());

    let Ground { outputs, secrets, kinds, trail, .. } = ground;
    assert!(trail.close());
    outputs.debug(&trail);
    for name in std::fs::read_dir(&path).unwrap() {
        outputs.add(&std::fs::read(name.unwrap().path()).unwrap());
    }
    outputs.add(&std::fs::read(&copies).unwrap());
    let key = CheckpointKey::ed25519(&seed).public_key().unwrap();
    let verifier = Verifier::new().key(CheckpointVerifier::ed25519(&key).unwrap());
    let found = verifier.witnesses(&copies).unwrap().verify(&path).unwrap();
    assert_eq!(found.fault, None);
    outputs.debug(&found);
    outputs.debug(&metrics.snapshot().into_vec());

    let said = outputs.bytes();
    // Every observer was on, and the search finds what is there.
    for part in [
        "the control of the log",
        "waxseal.call",
        "dek_used_by",
        "Unwrapped {",
        "waxseal_calls_total",
        "\"activity_name\":\"checkpoint\"",
        "branch_erased",
    ] {
        assert!(said.windows(part.len()).any(|at| at == part.as_bytes()), "{part} is missing");
    }
    assert!(said.len() > 100_000 && secrets.len() > 30, "{} bytes", said.len());
    let missing: Vec<_> = [
        ErrorKind::NotSealed,
        ErrorKind::UnsupportedVersion,
        ErrorKind::UnsupportedSuite,
        ErrorKind::UnsupportedKind,
        ErrorKind::Malformed,
        ErrorKind::MissingWrappedKeys,
        ErrorKind::UnknownKek,
        ErrorKind::Invalid,
        ErrorKind::Unavailable,
        ErrorKind::Throttled,
        ErrorKind::Denied,
        ErrorKind::PolicyDenied,
        ErrorKind::Misconfigured,
        ErrorKind::InvalidContext,
        ErrorKind::InvalidCaller,
        ErrorKind::InvalidOption,
        ErrorKind::BufferSize,
        ErrorKind::TooLarge,
        ErrorKind::Exhausted,
        ErrorKind::Expired,
        ErrorKind::OtherDek,
        ErrorKind::ShutDown,
        ErrorKind::Io,
        ErrorKind::UnknownDomain,
    ]
    .into_iter()
    .filter(|kind| !kinds.contains(kind.as_str()))
    .collect();
    assert!(missing.is_empty(), "no error of these kinds was seen: {missing:?}");
    assert_eq!(secrets.found_in(&said), Vec::<String>::new());
    for (form, bytes) in forms(PLAINTEXT) {
        let leaked = [&said[said.len() - 1000..], b"xx", &bytes, b"xx"].concat();
        assert!(!secrets.found_in(&leaked).is_empty(), "{form} is not found");
    }
}

/// Bytes that are nowhere else.
fn secret(n: u8) -> [u8; 32] {
    let dek = Dek::random().unwrap();
    let mut secret = *dek.expose();
    secret[0] = n;
    secret
}

/// What works: calls and handles, both forms, every suite, a rewrap.
fn messages(ground: &mut Ground, kek_secret: &[u8; 32]) {
    let kek = LocalKek::from_secrets("cards", [(1, kek_secret)]).unwrap();
    let caller = Caller::builder().service("billing").attribute("password", PASSWORD);
    let caller = caller.build().unwrap().with_request_id("one").unwrap();
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Xaes256Gcm] {
        let envelope = ground.builder().wrap_with(kek.clone()).suite(suite).build().unwrap();
        let view = envelope.acting_for(&caller);
        let sealed = block_on(view.encrypt(&context(), aad(), PLAINTEXT)).unwrap();
        ground.know_the_dek_of(&format!("the DEK of {suite:?}"), &kek, &sealed);
        let opened = block_on(view.decrypt(&context(), aad(), &sealed)).unwrap();
        assert_eq!(&*opened, PLAINTEXT);
        let compact = block_on(view.encrypt_compact(&context(), aad(), PLAINTEXT)).unwrap();
        let encryptor = block_on(view.encryptor(&context())).unwrap();
        encryptor.encrypt(aad(), PLAINTEXT).unwrap();
        let decryptor = block_on(view.decryptor(&context(), &sealed)).unwrap();
        decryptor.decrypt(aad(), &sealed).unwrap();
        let rewrapped = block_on(envelope.rewrap(&context(), &sealed)).unwrap();
        let outputs = &ground.outputs;
        outputs.debug(&opened);
        outputs.debug(&encryptor);
        outputs.debug(&decryptor);
        outputs.debug(&envelope);
        outputs.debug(&view);
        outputs.debug(&caller);
        outputs.debug(&Sealed::from(&compact));
        outputs.debug(&waxseal::inspect(&rewrapped).unwrap());
        outputs.debug(&aad());
        let statistics = envelope.statistics();
        outputs.debug(&statistics);
        outputs.add(&serde_json::to_vec(&statistics).unwrap());
        statistics.record_metrics("cards");
        ground.clock.advance(Duration::from_secs(11));
        block_on(envelope.close());
    }
    ground.outputs.debug(&kek);
}

/// What fails, each as often as there are ways.
fn failures(ground: &mut Ground) {
    use ErrorKind::*;

    let (kek, other) = (ScriptedKek::new("kek").unwrap(), ScriptedKek::new("other").unwrap());
    let quick = CallPolicy::default().tries(1).breaker_failures(3);
    let limits = Limits::default().max_messages(20).max_bytes(4096);
    let build = |ground: &Ground| {
        let builder = ground.builder().wrap_with(kek.clone()).limits(limits);
        builder.call_policy(quick).build().unwrap()
    };
    let envelope = build(ground);
    let sealed = block_on(envelope.encrypt(&context(), aad(), PLAINTEXT)).unwrap();
    ground.know_the_dek_of("the DEK of failures", kek.local(), &sealed);
    let changed = |at: usize, to: u8| {
        let mut changed = sealed.clone();
        changed[at] = to;
        changed
    };
    let (other_context, other_aad) =
        (EncryptionContext::new([("tenant", "globex")]).unwrap(), Aad::from(b"another row"));
    let open = |sealed: &[u8]| block_on(envelope.decrypt(&context(), aad(), sealed)).map(drop);
    ground.refused(NotSealed, open(PLAINTEXT));
    ground.refused(UnsupportedVersion, open(&changed(3, 9)));
    ground.refused(UnsupportedSuite, open(&changed(4, 9)));
    ground.refused(UnsupportedKind, open(&changed(5, 9)));
    ground.refused(Malformed, open(&sealed[..60]));
    ground.refused(Invalid, open(&changed(sealed.len() - 1, !sealed[sealed.len() - 1])));
    ground.refused(Invalid, block_on(envelope.decrypt(&context(), other_aad, &sealed)));
    ground.refused(Invalid, block_on(envelope.decrypt(&other_context, aad(), &sealed)));
    for (at, byte) in sealed.iter().enumerate() {
        // Whatever it is, its text is searched.
        if let Err(error) = open(&changed(at, !byte)) {
            ground.error(&error);
        }
    }
    let compact = block_on(envelope.encrypt_compact(&context(), aad(), PLAINTEXT)).unwrap();
    ground.refused(MissingWrappedKeys, open(compact.as_bytes()));
    let foreign = ground.builder().wrap_with(other).build().unwrap();
    ground.refused(UnknownKek, block_on(foreign.decrypt(&context(), aad(), &sealed)));
    let theirs = block_on(foreign.encrypt(&context(), aad(), PLAINTEXT)).unwrap();
    let decryptor = block_on(envelope.decryptor(&context(), &sealed)).unwrap();
    ground.refused(OtherDek, decryptor.decrypt(aad(), &theirs));
    let encryptor = block_on(envelope.encryptor(&context())).unwrap();
    ground.refused(BufferSize, encryptor.encrypt_in_place(aad(), &mut PLAINTEXT.to_vec()));
    ground.refused(TooLarge, encryptor.encrypt(aad(), &PLAINTEXT.repeat(200)));
    let exhausted = (0..50).find_map(|_| encryptor.encrypt(aad(), PLAINTEXT).err());
    ground.refused(Exhausted, exhausted.map_or(Ok(()), Err));
    for (class, kind) in [
        (KekErrorClass::Unavailable, Unavailable),
        (KekErrorClass::Throttled, Throttled),
        (KekErrorClass::Denied, Denied),
        (KekErrorClass::Misconfigured, Misconfigured),
        (KekErrorClass::Invalid, Invalid),
    ] {
        let envelope = build(ground);
        kek.fail_with(class);
        ground.refused(kind, block_on(envelope.decrypt(&context(), aad(), &sealed)));
        ground.refused(kind, block_on(envelope.encrypt(&context(), aad(), PLAINTEXT)));
        kek.fail_with(None);
        ground.outputs.debug(&envelope.statistics());
        block_on(envelope.close());
    }
    // A wrapped key that is another's, and the KEK's own error.
    let wrong = WrappedDek::new(kek.id().clone(), PLAINTEXT).unwrap();
    let error = block_on(kek.local().unwrap(&context(), &wrong)).unwrap_err();
    ground.outputs.error(&error);
    ground.clock.advance(Duration::from_secs(3600));
    ground.refused(Expired, decryptor.decrypt(aad(), &sealed));
    envelope.revoke_kek(&KekId::new("local:kek").unwrap());
    ground.refused(Denied, block_on(envelope.decrypt(&context(), aad(), &sealed)));
    block_on(envelope.close());
    ground.refused(ShutDown, block_on(envelope.encrypt(&context(), aad(), PLAINTEXT)));
    ground.outputs.debug(&kek);
}

/// Lets nobody in, or fails.
#[derive(Debug)]
struct Rules;

impl Policy for Rules {
    fn decide<'a>(&'a self, asked: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        Box::pin(async move {
            match asked.caller.and_then(Caller::service) {
                Some("billing") => Ok(Decision::allow().with_revision("7")),
                Some("panics") => panic!("as a test wants"),
                Some("fails") => Err(Error::new(ErrorKind::Unavailable, "the rules are not here")),
                _ => Ok(Decision::deny(["not you"])),
            }
        })
    }
}

fn decisions(ground: &mut Ground) {
    let kek = ScriptedKek::new("ruled").unwrap();
    let builder = ground.builder().wrap_with(kek.clone());
    let envelope = builder.policy(Rules, PolicyOptions::default()).build().unwrap();
    let caller = |service: &str| {
        let caller = Caller::builder().service(service).attribute("password", PASSWORD);
        caller.group("staff").source_address([10, 1, 2, 3]).build().unwrap()
    };
    let billing = caller("billing");
    let sealed =
        block_on(envelope.acting_for(&billing).encrypt(&context(), aad(), PLAINTEXT)).unwrap();
    ground.know_the_dek_of("the DEK of decisions", kek.local(), &sealed);
    for service in ["clerk", "panics", "fails"] {
        let caller = caller(service);
        let refused = block_on(envelope.acting_for(&caller).decrypt(&context(), aad(), &sealed));
        ground.refused(ErrorKind::PolicyDenied, refused);
    }
    let mut asked = Vec::new();
    let context = context();
    for action in Action::ALL {
        asked.push(Question::new(action, &context).caller(&billing));
    }
    ground.outputs.debug(&asked);
    block_on(envelope.close());
}

/// Branch keys, the store's rows, a rewrap and an erasure.
fn branches(ground: &mut Ground) {
    let (root, store) = (ScriptedKek::new("root").unwrap(), MemoryStore::new());
    let branches = BranchKek::builder(root.clone())
        .name("cards")
        .per(["tenant"])
        .store(store.clone())
        .clock(ground.clock.clone())
        .observer(ground.trail.clone())
        .observer(TracingObserver::new().with_context())
        .observer(MetricsObserver)
        .observer(Shown("branches"))
        .build()
        .unwrap();
    let envelope = ground.builder().wrap_with(branches.clone()).key_store(store.clone());
    let envelope = envelope.build().unwrap();
    let sealed = block_on(envelope.encrypt(&context(), aad(), PLAINTEXT)).unwrap();
    ground.know_the_dek_of("the DEK of a branch", &branches, &sealed);
    let page = block_on(store.scan(None, 10)).unwrap();
    ground.outputs.debug(&page);
    let progress = block_on(branches.rewrap_branch_keys(RewrapOptions::default(), |progress| {
        EVENTS.lock().unwrap().as_ref().unwrap().debug(progress);
    }))
    .unwrap();
    ground.outputs.debug(&progress);
    block_on(branches.erase([("tenant", "acme")])).unwrap();
    ground.refused(
        ErrorKind::Denied,
        block_on(envelope.decrypt(&context(), aad(), &sealed)).map(drop),
    );
    ground.outputs.debug(&branches);
    ground.outputs.debug(&envelope.statistics());
    block_on(envelope.close());
}

/// Configuration that holds a secret is refused without showing it.
fn files_and_uris(ground: &mut Ground, directory: &std::path::Path) {
    let uris = [
        format!("vault-transit://user:{PASSWORD}@vault:8200/transit/orders?token={TOKEN}"),
        format!("pkcs11:token=a;object=b?pin-value={PIN}"),
        format!("local:///tmp/a.kek?password={PASSWORD}&token={TOKEN}"),
        format!("local://user:{PASSWORD}@host/a.kek"),
        format!("local:{PIN}?name=a b&x"),
        format!("other://{TOKEN}@host/{PASSWORD}"),
    ];
    for uri in &uris {
        let config = DomainConfig::default().wrap_with(uri);
        ground.outputs.debug(&config);
        let builder = Domains::builder().observer(Shown("domains"));
        let builder = builder.audit_trail(ground.trail.clone()).domain("orders", config);
        ground.outputs.debug(&builder);
        let refused = block_on(builder.build());
        let error = refused.err().unwrap_or_else(|| panic!("{uri} is accepted"));
        ground.error(&error);
        // In a file, with a line of its own and the field.
        for field in ["wrap_with", "unwrap_with", "store"] {
            let path = directory.join("domains.toml");
            let value = if field == "store" { format!("{uri:?}") } else { format!("[{uri:?}]") };
            let first = if field == "wrap_with" { "" } else { "wrap_with = [\"local:a\"]\n" };
            std::fs::write(&path, format!("[domains.orders]\n{first}{field} = {value}\n")).unwrap();
            let refused = block_on(Domains::builder().file(&path).build());
            ground.error(&refused.err().unwrap_or_else(|| panic!("{uri} is accepted")));
        }
    }
    let kek = directory.join("cards.kek");
    LocalKek::open_or_create(&kek, "cards").unwrap();
    let text = std::fs::read(&kek).unwrap();
    std::fs::write(&kek, &text[..text.len() - 9]).unwrap();
    let refused = LocalKek::open(&kek);
    ground.error(&refused.err().unwrap());
    let none = block_on(Domains::builder().build());
    if let Err(error) = &none {
        ground.error(error);
    }
    if let Ok(domains) = none {
        ground.refused(ErrorKind::UnknownDomain, domains.envelope("orders").map(drop));
    }
    ground.refused(ErrorKind::Io, LocalKek::open(directory.join("not/there")).map(drop));
}

/// Values that are refused where they are made, and those that hold a secret.
fn values(ground: &mut Ground, directory: &std::path::Path) {
    let control = format!("a\n{PASSWORD}");
    ground.refused(ErrorKind::InvalidContext, EncryptionContext::new([("name", "a\nb")]));
    let caller = Caller::builder().attribute("password", &control);
    ground.outputs.debug(&caller);
    ground.refused(ErrorKind::InvalidCaller, caller.build());
    ground.refused(ErrorKind::InvalidOption, AuditKey::from_slice(PASSWORD.as_bytes()));
    let dek = Dek::random().unwrap();
    ground.secrets.add("a DEK", dek.expose());
    ground.outputs.debug(&dek);
    let file = directory.join("a file");
    std::fs::write(&file, PLAINTEXT).unwrap();
    let refused = AuditTrail::builder().directory(TrailDirectory::new(&file)).start();
    ground.refused(ErrorKind::Io, refused.map(drop));
}
