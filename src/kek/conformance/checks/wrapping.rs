//! Wrapping and unwrapping, targets and contexts.
#![forbid(unsafe_code)]

use super::*;

pub(super) async fn recognises_its_own_kek_and_not_another(
    subject: &dyn Subject,
) -> Result<(), Stop> {
    let (provider, other) = (subject.provider(), subject.other());
    ensure(provider.id() == subject.provider().id(), "the id changes from one look to the next")?;
    ensure(provider.recognises(provider.id()), "does not recognise its own id")?;
    ensure(!provider.recognises(other.id()), "recognises the other KEK's id")?;
    let wrapped = ok("wrap", provider.wrap(&alice()?, &new_dek()?).await)?;
    ensure(provider.recognises(wrapped.kek_id()), "does not recognise the id it wrapped under")
}

pub(super) async fn names_few_targets_and_the_same_for_the_same_kek(
    subject: &dyn Subject,
) -> Result<(), Stop> {
    let provider = subject.provider();
    let wrapped = ok("wrap", provider.wrap(&alice()?, &new_dek()?).await)?;
    let ids = [provider.id(), wrapped.kek_id()];
    let before = ids.map(|id| provider.target(id).name().to_owned());
    for name in &before {
        let fits = (1..=KekId::MAX_LEN).contains(&name.len());
        ensure(
            fits,
            format!("a target's name of {} bytes, 1 to {} are allowed", name.len(), KekId::MAX_LEN),
        )?;
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
    // Anyone who writes messages can make up ids that look like this KEK's. They must not create a
    // target each.
    let mut names = HashSet::new();
    let mut look_at = |made_up: String| {
        if let Some(made_up) =
            KekId::new(made_up).ok().filter(|made_up| provider.recognises(made_up))
        {
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
                let (head, tail) = (
                    id.get(..at).unwrap_or_default(),
                    id.get(at + old.len_utf8()..).unwrap_or_default(),
                );
                look_at(format!("{head}{new}{tail}"));
            }
        }
    }
    ensure(names.len() <= MAX_TARGETS, format!("{} targets for made-up ids", names.len()))
}

/// The maximum number of keys, Regions or stores behind a provider.
const MAX_TARGETS: usize = 64;

pub(super) async fn unwraps_what_it_wrapped(subject: &dyn Subject) -> Result<(), Stop> {
    let provider = subject.provider();
    for context in [
        EncryptionContext::empty(),
        alice()?,
        context(&[("\u{e9}\u{20ac}", "\u{1f510} \"quoted\" \\ /")])?,
    ] {
        let dek = new_dek()?;
        let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
        unwraps_to(&*provider, &context, &wrapped, &dek).await?;
        ensure(provider.is_current(&wrapped) != Some(false), "a DEK just wrapped is not current")?;
    }
    Ok(())
}

pub(super) async fn takes_contexts_at_their_limits(subject: &dyn Subject) -> Result<(), Stop> {
    let provider = subject.provider();
    let many: Vec<_> =
        (0..EncryptionContext::MAX_PAIRS).map(|i| (format!("n{i}"), "v".repeat(100))).collect();
    let long = [("n".repeat(256), "v".repeat(4096)), ("m".repeat(256), "v".repeat(3570))];
    for context in [EncryptionContext::new(many), EncryptionContext::new(long)] {
        let (context, dek) = (ok("a context", context)?, new_dek()?);
        let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
        unwraps_to(&*provider, &context, &wrapped, &dek).await?;
    }
    Ok(())
}

pub(super) async fn never_wraps_to_the_same_bytes_twice(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let first = ok("wrap", provider.wrap(&context, &dek).await)?;
    let second = ok("wrap", provider.wrap(&context, &dek).await)?;
    ensure(
        first.wrapped() != second.wrapped() || subject.wraps_deterministically(),
        "wrapping is not randomised: equal DEKs can be told",
    )?;
    let shows =
        |entry: &WrappedDek| entry.wrapped().windows(Dek::LEN).any(|window| window == dek.expose());
    ensure(!shows(&first) && !shows(&second), "the wrapped key contains the DEK")
}

pub(super) async fn binds_the_context_as_it_says(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, dek, none) = (subject.provider(), new_dek()?, EncryptionContext::empty());
    let binding = provider.context_binding();
    let (wrapped, wrapped_in_none) = (
        ok("wrap", provider.wrap(&alice()?, &dek).await)?,
        ok("wrap", provider.wrap(&none, &dek).await)?,
    );
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
            ensure(
                by_the_service,
                "says enforced: the provider refuses a wrong context, the key service does not",
            )?;
            refused(
                format!("says enforced: rewrap in {wrong:?}"),
                &provider.rewrap(wrong, entry).await,
            )?;
            continue;
        }
        match unwrapped {
            Ok(unwrapped) => {
                ensure(unwrapped.expose() == dek.expose(), "a wrong context gives another DEK")?
            }
            // The provider itself may check what the key service released against the context.
            Err(error) if error.class() == KekErrorClass::Invalid && !error.was_asked() => {}
            Err(error) => return failed(format!("says {binding:?}: unwrap in {wrong:?}: {error}")),
        }
    }
    ensure(
        provider.context_binding() == binding,
        "what it says of the context changes from one look to the next",
    )
}
