//! The checks, each a sentence of what a provider does.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt::{Debug, Display};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use futures_util::future::join_all;

use super::{Step, Subject};
use crate::context::EncryptionContext;
use crate::kek::{
    BoxFuture, ContextBinding, Dek, Health, KekError, KekErrorClass, KekId, KekProvider, UnwrappedDek, WrappedDek,
};

pub(super) enum Stop {
    NotApplicable,
    Failed(String),
}

type Check = for<'a> fn(&'a dyn Subject) -> BoxFuture<'a, Result<(), Stop>>;

macro_rules! checks {
    ($($check:ident),* $(,)?) => {
        pub(super) const ALL: &[(&str, Check)] = &[$((stringify!($check), |subject| Box::pin($check(subject)))),*];
    };
}

checks![
    recognises_its_own_kek_and_not_another,
    names_few_targets_and_the_same_for_the_same_kek,
    unwraps_what_it_wrapped,
    takes_contexts_at_their_limits,
    never_wraps_to_the_same_bytes_twice,
    binds_the_context_as_it_says,
    refuses_a_damaged_wrapped_key,
    refuses_a_cut_or_lengthened_wrapped_key,
    refuses_what_another_kek_wrapped,
    says_where_it_did_not_ask,
    generates_deks_of_32_bytes,
    rewraps_without_changing_the_dek,
    rewraps_where_it_says,
    follows_a_rotation,
    believes_no_version_that_anybody_could_write,
    keeps_the_order_of_a_batch,
    fails_only_the_bad_items_of_a_batch,
    serves_many_at_once,
    survives_cancellation,
    works_after_it_was_closed,
    is_healthy,
    reports_each_class_of_failure_and_recovers,
    takes_a_source_of_credentials_that_is_down_for_an_outage,
    keeps_the_dek_out_of_errors,
    keeps_the_dek_out_of_its_debug,
];

fn failed<T>(why: impl Display) -> Result<T, Stop> {
    Err(Stop::Failed(why.to_string()))
}

/// The value of a call that has to succeed.
fn ok<T, E: Display>(what: &str, result: Result<T, E>) -> Result<T, Stop> {
    result.map_err(|error| Stop::Failed(format!("{what}: {error}")))
}

fn ensure(holds: bool, why: impl Display) -> Result<(), Stop> {
    if holds { Ok(()) } else { failed(why) }
}

/// A refusal that blames the wrapped key or the context. Any other class would let whoever writes messages disturb everybody's
/// use of the KEK.
fn refused<T: Debug>(what: impl Display, result: &Result<T, KekError>) -> Result<(), Stop> {
    match result {
        Err(error) if matches!(error.class(), KekErrorClass::Invalid | KekErrorClass::Denied) => Ok(()),
        Err(error) => failed(format!("{what}: {} instead of invalid or denied", error.class())),
        Ok(_) => failed(format!("{what}: accepted")),
    }
}

/// A refusal, or the very same DEK: some encodings have bits that mean nothing.
fn refused_or_same(what: impl Display, result: &Result<UnwrappedDek, KekError>, dek: &Dek) -> Result<(), Stop> {
    match result {
        Ok(unwrapped) if unwrapped.expose() == dek.expose() => Ok(()),
        Ok(_) => failed(format!("{what}: gave another DEK")),
        Err(_) => refused(what, result),
    }
}

fn new_dek() -> Result<Dek, Stop> {
    ok("a new DEK", Dek::random())
}

fn context(pairs: &[(&str, &str)]) -> Result<EncryptionContext, Stop> {
    ok("a context", EncryptionContext::new(pairs.iter().copied()))
}

fn alice() -> Result<EncryptionContext, Stop> {
    context(&[("tenant", "alice"), ("table", "cards")])
}

fn bob() -> Result<EncryptionContext, Stop> {
    context(&[("tenant", "bob"), ("table", "cards")])
}

/// The same entry with other bytes.
fn with_bytes(entry: &WrappedDek, wrapped: Vec<u8>) -> Result<WrappedDek, Stop> {
    let changed = ok("a changed entry", WrappedDek::new(entry.kek_id().clone(), wrapped))?;
    ok("its metadata", changed.with_meta(entry.meta()))
}

fn flipped(entry: &WrappedDek, at: usize) -> Result<WrappedDek, Stop> {
    let mut bytes = entry.wrapped().to_vec();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << (at % 8);
    }
    with_bytes(entry, bytes)
}

async fn unwraps_to(
    provider: &dyn KekProvider,
    context: &EncryptionContext,
    wrapped: &WrappedDek,
    dek: &Dek,
) -> Result<(), Stop> {
    let unwrapped = ok("unwrap", provider.unwrap(context, wrapped).await)?;
    ensure(unwrapped.expose() == dek.expose(), "unwrap gave another DEK")
}

fn enforces_context(provider: &dyn KekProvider) -> bool {
    provider.context_binding() == ContextBinding::Enforced
}

async fn recognises_its_own_kek_and_not_another(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, other) = (subject.provider(), subject.other());
    ensure(provider.id() == subject.provider().id(), "the id changes from one look to the next")?;
    ensure(provider.recognises(provider.id()), "does not recognise its own id")?;
    ensure(!provider.recognises(other.id()), "recognises the other KEK's id")?;
    let wrapped = ok("wrap", provider.wrap(&alice()?, &new_dek()?).await)?;
    ensure(provider.recognises(wrapped.kek_id()), "does not recognise the id it wrapped under")
}

async fn names_few_targets_and_the_same_for_the_same_kek(subject: &dyn Subject) -> Result<(), Stop> {
    let provider = subject.provider();
    let wrapped = ok("wrap", provider.wrap(&alice()?, &new_dek()?).await)?;
    let ids = [provider.id(), wrapped.kek_id()];
    let before = ids.map(|id| provider.target(id).name().to_owned());
    for name in &before {
        let fits = (1..=KekId::MAX_LEN).contains(&name.len());
        ensure(fits, format!("a target's name of {} bytes, 1 to {} are allowed", name.len(), KekId::MAX_LEN))?;
    }
    ok("unwrap", provider.unwrap(&alice()?, &wrapped).await)?;
    let again = subject.provider();
    for _ in 0..20 {
        ensure(
            ids.map(|id| provider.target(id).name().to_owned()) == before
                && ids.map(|id| again.target(id).name().to_owned()) == before,
            "the target of one KEK id changes from one look to the next",
        )?;
    }
    // Whoever writes messages chooses ids that look like this KEK's: no target may come into being
    // for each of them.
    let mut names = HashSet::new();
    let mut look_at = |made_up: String| {
        if let Some(made_up) = KekId::new(made_up).ok().filter(|made_up| provider.recognises(made_up)) {
            names.insert(provider.target(&made_up).name().to_owned());
        }
    };
    for id in ids.map(KekId::as_str) {
        for i in 0..4 * MAX_TARGETS {
            look_at(format!("{id}{i:04x}"));
            look_at(format!("{i:04x}{id}"));
            let end = id.char_indices().rev().nth(3).map_or(0, |(at, _)| at);
            look_at(format!("{}{i:04x}", id.get(..end).unwrap_or_default()));
        }
        for (at, old) in id.char_indices() {
            for new in ('0'..='9').chain('a'..='z').chain(['-', '/', ':']) {
                let (head, tail) =
                    (id.get(..at).unwrap_or_default(), id.get(at + old.len_utf8()..).unwrap_or_default());
                look_at(format!("{head}{new}{tail}"));
            }
        }
    }
    ensure(names.len() <= MAX_TARGETS, format!("{} targets for ids that somebody made up", names.len()))
}

/// As many keys, Regions or stores as a provider may have behind it.
const MAX_TARGETS: usize = 64;

async fn unwraps_what_it_wrapped(subject: &dyn Subject) -> Result<(), Stop> {
    let provider = subject.provider();
    for context in [EncryptionContext::empty(), alice()?, context(&[("\u{e9}\u{20ac}", "\u{1f510} \"quoted\" \\ /")])?]
    {
        let dek = new_dek()?;
        let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
        unwraps_to(&*provider, &context, &wrapped, &dek).await?;
        ensure(provider.is_current(&wrapped) != Some(false), "a DEK just wrapped is not current")?;
    }
    Ok(())
}

async fn takes_contexts_at_their_limits(subject: &dyn Subject) -> Result<(), Stop> {
    let provider = subject.provider();
    let many: Vec<_> = (0..EncryptionContext::MAX_PAIRS).map(|i| (format!("n{i}"), "v".repeat(100))).collect();
    let long = [("n".repeat(256), "v".repeat(4096)), ("m".repeat(256), "v".repeat(3570))];
    for context in [EncryptionContext::new(many), EncryptionContext::new(long)] {
        let (context, dek) = (ok("a context", context)?, new_dek()?);
        let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
        unwraps_to(&*provider, &context, &wrapped, &dek).await?;
    }
    Ok(())
}

async fn never_wraps_to_the_same_bytes_twice(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let first = ok("wrap", provider.wrap(&context, &dek).await)?;
    let second = ok("wrap", provider.wrap(&context, &dek).await)?;
    ensure(
        first.wrapped() != second.wrapped() || subject.wraps_deterministically(),
        "wrapping is not randomised: equal DEKs can be told",
    )?;
    let shows = |entry: &WrappedDek| entry.wrapped().windows(Dek::LEN).any(|window| window == dek.expose());
    ensure(!shows(&first) && !shows(&second), "the wrapped key contains the DEK")
}

async fn binds_the_context_as_it_says(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, dek, none) = (subject.provider(), new_dek()?, EncryptionContext::empty());
    let binding = provider.context_binding();
    let (wrapped, wrapped_in_none) =
        (ok("wrap", provider.wrap(&alice()?, &dek).await)?, ok("wrap", provider.wrap(&none, &dek).await)?);
    let cases = [
        (bob()?, &wrapped),
        (none, &wrapped),
        (context(&[("tenant", "alice")])?, &wrapped),
        (context(&[("tenant", "alice"), ("table", "cards"), ("more", "x")])?, &wrapped),
        (context(&[("tenant", "Alice"), ("table", "cards")])?, &wrapped),
        (alice()?, &wrapped_in_none),
    ];
    for (wrong, entry) in &cases {
        let unwrapped = provider.unwrap(wrong, entry).await;
        if binding == ContextBinding::Enforced {
            refused(format!("says enforced: unwrap in {wrong:?}"), &unwrapped)?;
            let by_the_service = unwrapped.is_err_and(|error| error.was_asked());
            ensure(by_the_service, "says enforced: the provider refuses a wrong context, the key service does not")?;
            refused(format!("says enforced: rewrap in {wrong:?}"), &provider.rewrap(wrong, entry).await)?;
            continue;
        }
        match unwrapped {
            Ok(unwrapped) => ensure(unwrapped.expose() == dek.expose(), "a wrong context gives another DEK")?,
            // What the key service released, the provider may hold against the context by itself.
            Err(error) if error.class() == KekErrorClass::Invalid && !error.was_asked() => {}
            Err(error) => return failed(format!("says {binding:?}: unwrap in {wrong:?}: {error}")),
        }
    }
    ensure(provider.context_binding() == binding, "what it says of the context changes from one look to the next")
}

async fn refuses_a_damaged_wrapped_key(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    for at in 0..wrapped.wrapped().len() {
        let result = provider.unwrap(&context, &flipped(&wrapped, at)?).await;
        refused_or_same(format!("one bit of byte {at} flipped"), &result, &dek)?;
    }
    unwraps_to(&*provider, &context, &wrapped, &dek).await
}

async fn refuses_a_cut_or_lengthened_wrapped_key(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let bytes = wrapped.wrapped();
    let mut others: Vec<Vec<u8>> =
        (1..bytes.len()).step_by(5).filter_map(|len| Some(bytes.get(..len)?.to_vec())).collect();
    others.push([bytes, &[0]].concat());
    others.push([bytes, bytes].concat());
    others.push(vec![0; bytes.len()]);
    others.push(vec![0xFF; WrappedDek::MAX_WRAPPED]);
    for other in others {
        let what = format!("{} bytes instead of {}", other.len(), bytes.len());
        let result = provider.unwrap(&context, &with_bytes(&wrapped, other)?).await;
        refused_or_same(what, &result, &dek)?;
    }
    Ok(())
}

async fn refuses_what_another_kek_wrapped(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, other, context, dek) = (subject.provider(), subject.other(), alice()?, new_dek()?);
    let foreign = ok("wrap by the other KEK", other.wrap(&context, &dek).await)?;
    refused("an entry of another KEK", &provider.unwrap(&context, &foreign).await)?;
    refused("rewrap of an entry of another KEK", &provider.rewrap(&context, &foreign).await)?;
    let relabelled = ok("a relabelled entry", WrappedDek::new(provider.id().clone(), foreign.wrapped()))?;
    refused("another KEK's wrapped key under this KEK's id", &provider.unwrap(&context, &relabelled).await)
}

async fn says_where_it_did_not_ask(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, other, context, dek) = (subject.provider(), subject.other(), alice()?, new_dek()?);
    let foreign = ok("wrap by the other KEK", other.wrap(&context, &dek).await)?;
    for (what, result) in [
        ("unwrap of an entry of another KEK", provider.unwrap(&context, &foreign).await.map(|_| ())),
        ("rewrap of an entry of another KEK", provider.rewrap(&context, &foreign).await.map(|_| ())),
    ] {
        refused(what, &result)?;
        ensure(result.is_err_and(|error| !error.was_asked()), format!("{what}: counts as the key service's answer"))?;
    }
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let damaged = [
        flipped(&wrapped, 0)?,
        flipped(&wrapped, wrapped.wrapped().len().saturating_sub(3))?,
        with_bytes(&wrapped, vec![0])?,
        with_bytes(&wrapped, vec![0xFF; WrappedDek::MAX_WRAPPED])?,
    ];
    // Without credentials nothing can be asked, so whatever is judged is judged by the provider.
    match subject.fail_credentials().await {
        Step::Done => {}
        Step::NotApplicable => return Ok(()),
        Step::Failed(why) => return failed(format!("the subject's credentials could not fail: {why}")),
    }
    let mut answers = Vec::new();
    for damaged in &damaged {
        answers.push(provider.unwrap(&context, damaged).await);
    }
    step(subject.restore().await)?;
    for answer in answers {
        let by_itself = answer.is_err_and(|error| error.class() != KekErrorClass::Invalid || !error.was_asked());
        ensure(
            by_itself,
            "a verdict on a damaged wrapped key counts as the answer of a key service that was not asked",
        )?;
    }
    unwraps_to(&*provider, &context, &wrapped, &dek).await
}

async fn generates_deks_of_32_bytes(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context) = (subject.provider(), alice()?);
    let mut made: Vec<UnwrappedDek> = Vec::new();
    for _ in 0..3 {
        let (dek, wrapped) = ok("generate", provider.generate(&context).await)?;
        ensure(dek.expose().len() == Dek::LEN, format!("generated {} bytes", dek.expose().len()))?;
        let unwrapped = ok("unwrap", provider.unwrap(&context, &wrapped).await)?;
        ensure(unwrapped.expose() == dek.expose(), "what was generated unwraps to another DEK")?;
        ensure(provider.recognises(wrapped.kek_id()), "does not recognise the id it generated under")?;
        ensure(!made.iter().any(|other| other.expose() == dek.expose()), "generated one DEK twice")?;
        if enforces_context(&*provider) {
            refused("what was generated, in a wrong context", &provider.unwrap(&bob()?, &wrapped).await)?;
        }
        made.push(dek);
    }
    Ok(())
}

async fn rewraps_without_changing_the_dek(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let again = ok("rewrap", provider.rewrap(&context, &wrapped).await)?;
    ensure(provider.recognises(again.kek_id()), "does not recognise the id it rewrapped under")?;
    ensure(provider.is_current(&again) != Some(false), "a DEK just rewrapped is not current")?;
    unwraps_to(&*provider, &context, &again, &dek).await?;
    unwraps_to(&*provider, &context, &wrapped, &dek).await
}

async fn rewraps_where_it_says(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    step(subject.forbid_unwrapping().await)?;
    let unwrapped = provider.unwrap(&context, &wrapped).await.map(|_| ());
    let rewrapped = provider.rewrap(&context, &wrapped).await;
    let many = provider.rewrap_many(&[(&context, &wrapped)]).await;
    step(subject.restore().await)?;
    match unwrapped {
        Err(error) if error.class() == KekErrorClass::Denied => {}
        Err(error) => return failed(format!("unwrap, where it is forbidden: {error}")),
        Ok(()) => return failed("unwraps, where it is forbidden"),
    }
    for rewrapped in [Ok(rewrapped), many.into_iter().next().ok_or("no result of rewrap_many")] {
        match (provider.rewraps_in_service(), ok("rewrap_many", rewrapped)?) {
            (true, rewrapped) => {
                let rewrapped = ok("says that it rewraps in the service, and may not unwrap: rewrap", rewrapped)?;
                unwraps_to(&*provider, &context, &rewrapped, &dek).await?;
            }
            (false, Err(error)) if error.class() == KekErrorClass::Denied => {}
            (false, Err(error)) => return failed(format!("rewrap, where unwrapping is forbidden: {error}")),
            (false, Ok(_)) => return failed("rewraps in the service, and says that it does not"),
        }
    }
    Ok(())
}

async fn follows_a_rotation(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let old = ok("wrap", provider.wrap(&context, &dek).await)?;
    step(subject.rotate().await)?;
    let new = ok("wrap after the rotation", provider.wrap(&context, &dek).await)?;
    ensure(provider.is_current(&new) == Some(true), "what was wrapped after the rotation is not current")?;
    ensure(provider.is_current(&old) == Some(false), "what was wrapped before the rotation is still current")?;
    unwraps_to(&*provider, &context, &old, &dek).await?;
    let rewrapped = ok("rewrap after the rotation", provider.rewrap(&context, &old).await)?;
    ensure(provider.is_current(&rewrapped) == Some(true), "what was rewrapped after the rotation is not current")?;
    unwraps_to(&*provider, &context, &rewrapped, &dek).await
}

async fn believes_no_version_that_anybody_could_write(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let old = ok("wrap", provider.wrap(&context, &dek).await)?;
    step(subject.rotate().await)?;
    let new = ok("wrap after the rotation", provider.wrap(&context, &dek).await)?;
    let bare = old.without_meta();
    let claims_to_be_new = ok("its metadata", bare.clone().with_meta(new.meta()))?;
    ensure(
        provider.is_current(&bare) != Some(true),
        "without metadata, what was wrapped before the rotation is current",
    )?;
    let rewrapped =
        ok("rewrap of an old DEK with the metadata of a new one", provider.rewrap(&context, &claims_to_be_new).await)?;
    ensure(provider.is_current(&rewrapped) != Some(false), "what was rewrapped is not current")?;
    unwraps_to(&*provider, &context, &rewrapped, &dek).await?;
    // A byte that says which version it is, and that unwrapping does not look at, would keep a DEK
    // under an old version for ever.
    let mut asked = 0;
    for at in 0..bare.wrapped().len() {
        for value in 0..=u8::MAX {
            let mut bytes = bare.wrapped().to_vec();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let forged = with_bytes(&bare, bytes)?;
            if asked < MOST_FORGED_VERSIONS && provider.is_current(&forged) == Some(true) {
                asked += 1;
                let unwrapped = provider.unwrap(&context, &forged).await;
                refused(format!("byte {at} set to {value} makes an old wrapped key current"), &unwrapped)?;
            }
        }
    }
    Ok(())
}

/// More are not asked about, for the sake of key services that are far away.
const MOST_FORGED_VERSIONS: usize = 32;

async fn keeps_the_order_of_a_batch(subject: &dyn Subject) -> Result<(), Stop> {
    let provider = subject.provider();
    let contexts = [alice()?, bob()?];
    let deks = (0..50).map(|_| new_dek()).collect::<Result<Vec<_>, _>>()?;
    let to_wrap: Vec<_> = contexts.iter().cycle().zip(&deks).collect();
    let wrapped = provider.wrap_many(&to_wrap).await.into_iter().collect::<Result<Vec<_>, _>>();
    let wrapped = ok("wrap_many", wrapped)?;
    let to_rewrap: Vec<_> = contexts.iter().cycle().zip(&wrapped).collect();
    let rewrapped = provider.rewrap_many(&to_rewrap).await.into_iter().collect::<Result<Vec<_>, _>>();
    let rewrapped = ok("rewrap_many", rewrapped)?;
    for entries in [&wrapped, &rewrapped] {
        let to_unwrap: Vec<_> = contexts.iter().cycle().zip(entries).collect();
        let unwrapped = provider.unwrap_many(&to_unwrap).await;
        ensure(unwrapped.len() == deks.len(), format!("{} results for {} items", unwrapped.len(), deks.len()))?;
        for (i, (result, dek)) in unwrapped.into_iter().zip(&deks).enumerate() {
            let unwrapped = ok("unwrap_many", result)?;
            ensure(unwrapped.expose() == dek.expose(), format!("item {i} of the batch is another DEK"))?;
        }
    }
    ensure(
        provider.wrap_many(&[]).await.is_empty()
            && provider.unwrap_many(&[]).await.is_empty()
            && provider.rewrap_many(&[]).await.is_empty(),
        "an empty batch has results",
    )
}

async fn fails_only_the_bad_items_of_a_batch(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, other, context, dek) = (subject.provider(), subject.other(), alice()?, new_dek()?);
    let good = ok("wrap", provider.wrap(&context, &dek).await)?;
    let damaged = flipped(&good, good.wrapped().len().saturating_sub(3))?;
    let foreign = ok("wrap by the other KEK", other.wrap(&context, &dek).await)?;
    let bob = bob()?;
    let mut items =
        vec![(&context, &good), (&context, &damaged), (&context, &good), (&context, &foreign), (&context, &good)];
    if enforces_context(&*provider) {
        items.extend([(&bob, &good), (&context, &good)]);
    }
    let unwrapped = provider.unwrap_many(&items).await;
    let rewrapped = provider.rewrap_many(&items).await;
    ensure(unwrapped.len() == items.len() && rewrapped.len() == items.len(), "a result is missing")?;
    for (i, (unwrapped, rewrapped)) in unwrapped.iter().zip(&rewrapped).enumerate() {
        if i % 2 == 1 {
            refused(format!("bad item {i} of unwrap_many"), unwrapped)?;
            refused(format!("bad item {i} of rewrap_many"), rewrapped)?;
            continue;
        }
        match (unwrapped, rewrapped) {
            (Ok(unwrapped), Ok(rewrapped)) => {
                ensure(unwrapped.expose() == dek.expose(), format!("item {i} is another DEK"))?;
                unwraps_to(&*provider, &context, rewrapped, &dek).await?;
            }
            _ => return failed(format!("good item {i} failed beside a bad one")),
        }
    }
    Ok(())
}

async fn serves_many_at_once(subject: &dyn Subject) -> Result<(), Stop> {
    let provider = subject.provider();
    let one = |i: usize| {
        let provider: Arc<dyn KekProvider> = provider.clone();
        async move {
            let context = context(&[("caller", &i.to_string())])?;
            let dek = new_dek()?;
            let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
            unwraps_to(&*provider, &context, &wrapped, &dek).await
        }
    };
    join_all((0..64).map(one)).await.into_iter().collect()
}

async fn survives_cancellation(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    for _ in 0..10 {
        let mut wrap = provider.wrap(&context, &dek);
        let mut unwrap = provider.unwrap(&context, &wrapped);
        poll_fn(|task| {
            let _ = wrap.as_mut().poll(task).is_ready();
            let _ = unwrap.as_mut().poll(task).is_ready();
            Poll::Ready(())
        })
        .await;
    }
    unwraps_to(&*provider, &context, &wrapped, &dek).await
}

async fn works_after_it_was_closed(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    for _ in 0..2 {
        provider.close().await;
        provider.close().await;
        unwraps_to(&*provider, &context, &wrapped, &dek).await?;
        // The last envelope may go while its shut-down is not awaited.
        let mut close = provider.close();
        poll_fn(|task| {
            let _ = close.as_mut().poll(task).is_ready();
            Poll::Ready(())
        })
        .await;
        drop(close);
        let wrapped = ok("wrap after it was closed", provider.wrap(&context, &dek).await)?;
        provider.close().await;
        ok("generate after it was closed", provider.generate(&context).await)?;
        provider.close().await;
        let rewrapped = ok("rewrap after it was closed", provider.rewrap(&context, &wrapped).await)?;
        provider.close().await;
        ok("health after it was closed", provider.health().await)?;
        unwraps_to(&*provider, &context, &rewrapped, &dek).await?;
    }
    Ok(())
}

async fn is_healthy(subject: &dyn Subject) -> Result<(), Stop> {
    match ok("health", subject.provider().health().await)? {
        Health::Ready => Ok(()),
        Health::Degraded(why) => failed(format!("degraded: {why}")),
    }
}

async fn reports_each_class_of_failure_and_recovers(subject: &dyn Subject) -> Result<(), Stop> {
    use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let mut applicable = false;
    for class in [Unavailable, Throttled, Denied, Misconfigured, Invalid] {
        match subject.fail_with(class).await {
            Step::NotApplicable => continue,
            Step::Failed(why) => return failed(format!("the subject could not fail with {class}: {why}")),
            Step::Done => applicable = true,
        }
        let unwrapped = provider.unwrap(&context, &wrapped).await.map(|_| ());
        let wrap = provider.wrap(&context, &dek).await.map(|_| ());
        step(subject.restore().await)?;
        let mut results = vec![("unwrap", unwrapped)];
        // What is invalid is one wrapped key; wrapping another DEK has nothing to do with it.
        if class != Invalid {
            results.push(("wrap", wrap));
        }
        for (call, result) in results {
            match result {
                Err(error) if error.class() == class => {}
                Err(error) => return failed(format!("{call}: {error}, where {class} was brought about")),
                Ok(()) => return failed(format!("{call}: succeeded, where {class} was brought about")),
            }
        }
        unwraps_to(&*provider, &context, &wrapped, &dek).await?;
    }
    if applicable { Ok(()) } else { Err(Stop::NotApplicable) }
}

async fn takes_a_source_of_credentials_that_is_down_for_an_outage(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    step(subject.fail_credentials().await)?;
    let unwrap = provider.unwrap(&context, &wrapped).await.map(|_| ());
    let wrap = provider.wrap(&context, &dek).await.map(|_| ());
    let health = provider.health().await.map(|_| ());
    step(subject.restore().await)?;
    for (call, result) in [("unwrap", unwrap), ("wrap", wrap), ("health", health)] {
        match result {
            // Denied would evict every DEK, and neither that nor misconfigured may be ridden out.
            Err(error) if matches!(error.class(), KekErrorClass::Unavailable | KekErrorClass::Throttled) => {}
            Err(error) => return failed(format!("{call} without a source of credentials: {error}")),
            Ok(()) if call == "health" => {}
            Ok(()) => return failed(format!("{call}: succeeded, where no credentials can be had")),
        }
    }
    unwraps_to(&*provider, &context, &wrapped, &dek).await?;
    ok("wrap with credentials again", provider.wrap(&context, &dek).await).map(|_| ())
}

async fn keeps_the_dek_out_of_errors(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let damaged = flipped(&wrapped, wrapped.wrapped().len().saturating_sub(3))?;
    if let Err(error) = provider.unwrap(&context, &damaged).await {
        let mut text = format!("{error} {error:?}");
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!(" {error} {error:?}"));
            cause = error.source();
        }
        ensure(!shows(&text, &dek), "an error shows the DEK")?;
    }
    Ok(())
}

async fn keeps_the_dek_out_of_its_debug(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let unwrapped = ok("unwrap", provider.unwrap(&context, &wrapped).await)?;
    let text = format!("{provider:?} {provider:#?} {wrapped:?} {unwrapped:?}");
    ensure(!shows(&text, &dek), "Debug shows the DEK")
}

/// The DEK as people and derived implementations write bytes.
fn shows(text: &str, dek: &Dek) -> bool {
    let hex: String = dek.expose().iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{:?}", dek.expose());
    let without_space = |text: &str| text.split_whitespace().collect::<String>();
    text.to_lowercase().contains(&hex) || without_space(text).contains(without_space(&list).trim_matches(['[', ']']))
}

fn step(step: Step) -> Result<(), Stop> {
    match step {
        Step::Done => Ok(()),
        Step::NotApplicable => Err(Stop::NotApplicable),
        Step::Failed(why) => Err(Stop::Failed(why)),
    }
}
