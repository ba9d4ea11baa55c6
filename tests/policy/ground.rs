//! A policy that does what a test says, and an envelope behind it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use waxseal::kek::local::LocalKek;
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{
    Caller, EncryptionContext, Envelope, EnvelopeBuilder, Error, ErrorKind, Limits, ManualClock,
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

type Answer = dyn for<'q> Fn(&Question<'q>) -> Result<Decision, Error> + Send + Sync;

/// A policy whose answer a test sets.
#[derive(Clone)]
pub(crate) struct Rules(Arc<Inner>);

struct Inner {
    answer: Mutex<Arc<Answer>>,
    asked: Mutex<Vec<String>>,
    generation: AtomicU64,
}

impl Rules {
    pub(crate) fn new(
        answer: impl Fn(&Question<'_>) -> Result<Decision, Error> + Send + Sync + 'static,
    ) -> Self {
        let (answer, asked) = (Mutex::new(Arc::new(answer) as Arc<Answer>), Mutex::default());
        Self(Arc::new(Inner { answer, asked, generation: AtomicU64::new(0) }))
    }

    /// Allows everyone.
    pub(crate) fn open() -> Self {
        Self::new(|_| Ok(Decision::allow()))
    }

    /// Allows the callers that have this role, and nobody else.
    pub(crate) fn role(role: &'static str) -> Self {
        Self::new(move |question| {
            let has = |caller: &Caller| caller.roles().any(|own| own == role);
            Ok(match question.caller {
                None => Decision::deny(["no caller"]),
                Some(caller) if has(caller) => Decision::allow().with_revision("r1"),
                Some(_) => Decision::deny(["not the role"]).with_revision("r1"),
            })
        })
    }

    /// Answers so from now on, and says nothing of it.
    pub(crate) fn answer(
        &self,
        answer: impl Fn(&Question<'_>) -> Result<Decision, Error> + Send + Sync + 'static,
    ) {
        *self.0.answer.lock().unwrap() = Arc::new(answer);
    }

    pub(crate) fn fail(&self, kind: ErrorKind) {
        self.answer(move |_| Err(Error::new(kind, "broken")));
    }

    /// The rules are others now.
    pub(crate) fn reload(&self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// How often it was asked.
    pub(crate) fn count(&self) -> usize {
        self.0.asked.lock().unwrap().len()
    }

    /// What it was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.asked.lock().unwrap())
    }
}

impl Policy for Rules {
    fn decide<'a>(&'a self, question: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        let who = question.caller.map_or("nobody", |caller| caller.service().unwrap_or("someone"));
        let pairs: Vec<_> = question.context.iter().map(|(_, value)| value).collect();
        let line = format!("{who} {} {}", question.operation, pairs.join("/"));
        self.0.asked.lock().unwrap().push(line.trim().to_owned());
        let answer = self.0.answer.lock().unwrap().clone();
        let answer = answer(question);
        Box::pin(async { answer })
    }

    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rules")
    }
}

/// An envelope behind the rules, with a clock that the test moves.
pub(crate) struct Ground {
    pub(crate) envelope: Envelope,
    pub(crate) rules: Rules,
    pub(crate) clock: ManualClock,
}

impl Ground {
    pub(crate) fn new(rules: &Rules, options: PolicyOptions) -> Self {
        Self::with(rules, options, |builder| builder)
    }

    pub(crate) fn with(
        rules: &Rules,
        options: PolicyOptions,
        configure: impl FnOnce(EnvelopeBuilder) -> EnvelopeBuilder,
    ) -> Self {
        let clock = ManualClock::new();
        // Long enough that no DEK ends where a decision is to.
        let limits = Limits::default().max_age(3600 * SECOND);
        let builder = Envelope::builder()
            .wrap_with(LocalKek::in_memory("kek").unwrap())
            .limits(limits)
            .clock(clock.clone())
            .policy(rules.clone(), options);
        let envelope = configure(builder).build().unwrap();
        Self { envelope, rules: rules.clone(), clock }
    }
}

pub(crate) fn caller(service: &str, role: &str) -> Caller {
    Caller::builder().service(service).role(role).build().unwrap()
}

pub(crate) fn context(tenant: &str) -> EncryptionContext {
    EncryptionContext::new([("tenant", tenant)]).unwrap()
}

/// Checks that a result is a denial, and returns its reasons.
pub(crate) fn denied<T: fmt::Debug>(result: Result<T, Error>) -> Vec<String> {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PolicyDenied, "{error}");
    for reason in error.reasons() {
        assert!(error.to_string().contains(&**reason), "{error}");
    }
    error.reasons().iter().map(|reason| reason.to_string()).collect()
}

impl fmt::Debug for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ground").field("envelope", &self.envelope).finish_non_exhaustive()
    }
}

/// Runs a test in a separate process. `name` is its full name.
pub(crate) fn alone(name: &str, test: impl FnOnce()) {
    const IS_ALONE: &str = "WAXSEAL_TEST_IS_ALONE";
    if std::env::var_os(IS_ALONE).is_some() {
        return test();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(IS_ALONE, "1")
        .output()
        .unwrap();
    let (told, failed) = (String::from_utf8_lossy(&output.stdout), &output.stderr);
    assert!(told.contains("1 passed"), "{told}{}", String::from_utf8_lossy(failed));
}
