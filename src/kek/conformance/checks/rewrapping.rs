//! DEKs from the service, rewraps and rotation.
#![forbid(unsafe_code)]

use super::*;

pub(super) async fn generates_deks_of_32_bytes(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context) = (subject.provider(), alice()?);
    let mut made: Vec<UnwrappedDek> = Vec::new();
    for _ in 0..3 {
        let (dek, wrapped) = ok("generate", provider.generate(&context).await)?;
        ensure(dek.expose().len() == Dek::LEN, format!("generated {} bytes", dek.expose().len()))?;
        let unwrapped = ok("unwrap", provider.unwrap(&context, &wrapped).await)?;
        ensure(unwrapped.expose() == dek.expose(), "what was generated unwraps to another DEK")?;
        ensure(
            provider.recognises(wrapped.kek_id()),
            "does not recognise the id it generated under",
        )?;
        ensure(
            !made.iter().any(|other| other.expose() == dek.expose()),
            "generated one DEK twice",
        )?;
        if enforces_context(&*provider) {
            let in_another = provider.unwrap(&bob()?, &wrapped).await;
            match in_another {
                // The DEK id of a message distinguishes it from the right one.
                Ok(other) if provider.derives_deks() => {
                    ensure(other.expose() != dek.expose(), "derives one DEK for two contexts")?;
                }
                other => refused("what was generated, in a wrong context", &other)?,
            }
        }
        made.push(dek);
    }
    Ok(())
}

pub(super) async fn rewraps_without_changing_the_dek(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let again = ok("rewrap", provider.rewrap(&context, &wrapped).await)?;
    ensure(provider.recognises(again.kek_id()), "does not recognise the id it rewrapped under")?;
    ensure(provider.is_current(&again) != Some(false), "a DEK just rewrapped is not current")?;
    unwraps_to(&*provider, &context, &again, &dek).await?;
    unwraps_to(&*provider, &context, &wrapped, &dek).await
}

pub(super) async fn rewraps_where_it_says(subject: &dyn Subject) -> Result<(), Stop> {
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
                let rewrapped = ok(
                    "says that it rewraps in the service, and may not unwrap: rewrap",
                    rewrapped,
                )?;
                unwraps_to(&*provider, &context, &rewrapped, &dek).await?;
            }
            (false, Err(error)) if error.class() == KekErrorClass::Denied => {}
            (false, Err(error)) => {
                return failed(format!("rewrap, where unwrapping is forbidden: {error}"));
            }
            (false, Ok(_)) => return failed("rewraps in the service, and says that it does not"),
        }
    }
    Ok(())
}

pub(super) async fn follows_a_rotation(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let old = ok("wrap", provider.wrap(&context, &dek).await)?;
    step(subject.rotate().await)?;
    let new = ok("wrap after the rotation", provider.wrap(&context, &dek).await)?;
    ensure(
        provider.is_current(&new) == Some(true),
        "what was wrapped after the rotation is not current",
    )?;
    ensure(
        provider.is_current(&old) == Some(false),
        "what was wrapped before the rotation is still current",
    )?;
    unwraps_to(&*provider, &context, &old, &dek).await?;
    let rewrapped = ok("rewrap after the rotation", provider.rewrap(&context, &old).await)?;
    ensure(
        provider.is_current(&rewrapped) == Some(true),
        "what was rewrapped after the rotation is not current",
    )?;
    unwraps_to(&*provider, &context, &rewrapped, &dek).await
}

pub(super) async fn believes_no_version_that_anybody_could_write(
    subject: &dyn Subject,
) -> Result<(), Stop> {
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
    let rewrapped = ok(
        "rewrap of an old DEK with the metadata of a new one",
        provider.rewrap(&context, &claims_to_be_new).await,
    )?;
    ensure(provider.is_current(&rewrapped) != Some(false), "what was rewrapped is not current")?;
    unwraps_to(&*provider, &context, &rewrapped, &dek).await?;
    // If a byte named the version and unwrapping ignored it, that byte could keep a DEK under an
    // old version forever.
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
                refused(
                    format!("byte {at} set to {value} makes an old wrapped key current"),
                    &unwrapped,
                )?;
            }
        }
    }
    Ok(())
}

/// The maximum number of forged versions tried, to spare distant key services.
const MOST_FORGED_VERSIONS: usize = 32;
