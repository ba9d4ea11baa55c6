//! Copies and renames: by the store where the AAD allows it, through this process otherwise.

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{CopyMode, CopyOptions, ObjectStore, ObjectStoreExt};
use waxseal_object_store::v0_14::Binding;

use super::ground::*;
use super::scripted::{Act, Scripted};

#[tokio::test]
async fn a_copy_is_the_stores_where_context_and_aad_are_the_same() {
    for (binding, to, is_by_the_store) in [
        (Binding::Path, "y/1", false),
        (Binding::FileName, "y/1", true),
        (Binding::FileName, "x/2", false),
        (Binding::Nothing, "x/2", true),
    ] {
        let scripted = Scripted::new(InMemory::new());
        let sealed = builder(scripted.clone()).binding(binding).build().unwrap();
        let (from, to) = (Path::from("x/1"), Path::from(to));
        sealed.put(&from, "text".into()).await.unwrap();
        scripted.take_calls();
        sealed.copy(&from, &to).await.unwrap();
        let calls: Vec<_> = scripted.take_calls().iter().map(|call| call.operation).collect();
        let expected = if is_by_the_store { vec!["copy"] } else { vec!["get", "put"] };
        assert_eq!(calls, expected, "{binding:?}");
        assert_eq!(get(&sealed, &to).await.unwrap(), "text");
        assert_eq!(get(&sealed, &from).await.unwrap(), "text");
        sealed.copy_if_not_exists(&from, &to).await.unwrap_err();
        scripted.take_calls();
        sealed.rename(&from, &to).await.unwrap();
        let calls: Vec<_> = scripted.take_calls().iter().map(|call| call.operation).collect();
        let expected = if is_by_the_store { vec!["rename"] } else { vec!["get", "put", "delete"] };
        assert_eq!(calls, expected, "{binding:?}");
        assert_eq!(get(&sealed, &to).await.unwrap(), "text");
        assert!(get(&sealed, &from).await.is_err());
    }
}

#[tokio::test]
async fn a_large_object_is_encrypted_anew_in_parts() {
    let scripted = Scripted::new(InMemory::new());
    let sealed = builder(scripted.clone()).single_put(1 << 20).build().unwrap();
    let (from, to) = (Path::from("a"), Path::from("b"));
    let text = plaintext(20 << 20);
    sealed.put(&from, text.clone().into()).await.unwrap();
    scripted.take_calls();
    sealed.copy(&from, &to).await.unwrap();
    assert!(get(&sealed, &to).await.unwrap() == text);
    let calls = scripted.take_calls();
    assert!(calls.iter().any(|call| call.operation == "complete"));
    // Nothing is written at once there, so `create` would not hold.
    let options = CopyOptions::new().with_mode(CopyMode::Create);
    let error = sealed.copy_opts(&from, &Path::from("c"), options).await.unwrap_err();
    assert!(matches!(error, object_store::Error::NotSupported { .. }), "{error}");
    assert!(get(&sealed, &Path::from("c")).await.is_err());
}

/// What is found to be cut or changed on the way is written nowhere.
#[tokio::test]
async fn a_copy_of_what_is_not_authentic_leaves_the_target_as_it_was() {
    for single_put in [1, 64 << 20] {
        let scripted = Scripted::new(InMemory::new());
        let sealed = builder(scripted.clone()).single_put(single_put).build().unwrap();
        let (from, to) = (Path::from("a"), Path::from("b"));
        sealed.put(&from, plaintext(20 << 20).into()).await.unwrap();
        sealed.put(&to, "old".into()).await.unwrap();
        let end = 20 << 20;
        for act in [
            Act::Break(end),
            Act::bytes(move |bytes| bytes.truncate(end)),
            Act::bytes(move |bytes| bytes[end] ^= 1),
            Act::Fail,
        ] {
            scripted.script(move |_, call| match call.operation {
                "get" => act.clone(),
                _ => Act::Pass,
            });
            sealed.copy(&from, &to).await.unwrap_err();
            sealed.rename(&from, &to).await.unwrap_err();
            let calls = scripted.take_calls();
            assert!(calls.iter().all(|it| !["put", "complete", "delete"].contains(&it.operation)));
            scripted.behave();
            assert_eq!(get(&sealed, &to).await.unwrap(), "old");
            assert_eq!(get(&sealed, &from).await.unwrap().len(), 20 << 20);
        }
    }
}
