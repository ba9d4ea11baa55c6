//! The checks, each a sentence of what a provider does.
#![forbid(unsafe_code)]

use std::fmt::{Debug, Display};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use futures_util::future::join_all;

use super::{Step, Subject};
use crate::context::EncryptionContext;
use crate::kek::{BoxFuture, Dek, Health, KekError, KekErrorClass, KekProvider, UnwrappedDek, WrappedDek};

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
    unwraps_what_it_wrapped,
    takes_contexts_at_their_limits,
    never_wraps_to_the_same_bytes_twice,
    refuses_a_wrong_context,
    refuses_a_damaged_wrapped_key,
    refuses_a_cut_or_lengthened_wrapped_key,
    refuses_what_another_kek_wrapped,
    generates_deks_of_32_bytes,
    rewraps_without_changing_the_dek,
    follows_a_rotation,
    keeps_the_order_of_a_batch,
    fails_only_the_bad_items_of_a_batch,
    serves_many_at_once,
    survives_cancellation,
    is_healthy,
    reports_each_class_of_failure_and_recovers,
    keeps_the_dek_out_of_errors,
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

async fn recognises_its_own_kek_and_not_another(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, other) = (subject.provider(), subject.other());
    ensure(provider.id() == subject.provider().id(), "the id changes from one look to the next")?;
    ensure(provider.recognises(provider.id()), "does not recognise its own id")?;
    ensure(!provider.recognises(other.id()), "recognises the other KEK's id")?;
    let wrapped = ok("wrap", provider.wrap(&alice()?, &new_dek()?).await)?;
    ensure(provider.recognises(wrapped.kek_id()), "does not recognise the id it wrapped under")
}

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
    ensure(first.wrapped() != second.wrapped(), "wrapping is not randomised: equal DEKs can be told")?;
    let shows = |entry: &WrappedDek| entry.wrapped().windows(Dek::LEN).any(|window| window == dek.expose());
    ensure(!shows(&first) && !shows(&second), "the wrapped key contains the DEK")
}

async fn refuses_a_wrong_context(subject: &dyn Subject) -> Result<(), Stop> {
    if !subject.enforces_context() {
        return Err(Stop::NotApplicable);
    }
    let (provider, dek) = (subject.provider(), new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&alice()?, &dek).await)?;
    for wrong in [
        bob()?,
        EncryptionContext::empty(),
        context(&[("tenant", "alice")])?,
        context(&[("tenant", "alice"), ("table", "cards"), ("more", "x")])?,
        context(&[("tenant", "Alice"), ("table", "cards")])?,
    ] {
        refused(format!("unwrap in {wrong:?}"), &provider.unwrap(&wrong, &wrapped).await)?;
        refused(format!("rewrap in {wrong:?}"), &provider.rewrap(&wrong, &wrapped).await)?;
    }
    let wrapped = ok("wrap", provider.wrap(&EncryptionContext::empty(), &dek).await)?;
    refused("unwrap in a context what was wrapped in none", &provider.unwrap(&alice()?, &wrapped).await)
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
        if subject.enforces_context() {
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
    if subject.enforces_context() {
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

async fn keeps_the_dek_out_of_errors(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let damaged = flipped(&wrapped, wrapped.wrapped().len().saturating_sub(3))?;
    let hex: String = dek.expose().iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{:?}", dek.expose());
    if let Err(error) = provider.unwrap(&context, &damaged).await {
        let mut text = format!("{error} {error:?}");
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!(" {error} {error:?}"));
            cause = error.source();
        }
        let shown = text.to_lowercase().contains(&hex) || text.contains(list.trim_matches(['[', ']']));
        ensure(!shown, "an error shows the DEK")?;
    }
    Ok(())
}

fn step(step: Step) -> Result<(), Stop> {
    match step {
        Step::Done => Ok(()),
        Step::NotApplicable => Err(Stop::NotApplicable),
        Step::Failed(why) => Err(Stop::Failed(why)),
    }
}
