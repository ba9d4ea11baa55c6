//! Copies and renames: by the store where the AAD allows it, through this process otherwise.

use crate::version::Binding;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{CopyMode, CopyOptions, ObjectStore, ObjectStoreExt};

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

/// Requests for a portion each, of one version, which continue where they failed.
#[tokio::test]
async fn a_copy_asks_for_portions_and_goes_on_where_one_failed() {
    let scripted = Scripted::new(InMemory::new());
    let (from, to) = (Path::from("a"), Path::from("b"));
    let text = plaintext(40 << 20);
    let (portion, chunk) = (16_u64 << 20, (1_u64 << 16) + 16);
    for single_put in [1 << 20, 64 << 20] {
        let sealed = builder(scripted.clone()).single_put(single_put).build().unwrap();
        sealed.put(&from, text.clone().into()).await.unwrap();
        scripted.take_calls();
        let gets = || {
            let calls = scripted.take_calls();
            let gets = calls.into_iter().filter(|call| call.operation == "get");
            gets.map(|call| (call.range.unwrap(), call.if_match.is_some())).collect::<Vec<_>>()
        };
        let end = move |mib: u64| HEAD + (mib << 20) / (chunk - 16) * chunk;
        sealed.copy(&from, &to).await.unwrap();
        let whole = [(0..end(16), false), (end(16)..end(32), true), (end(32)..end(40) + 16, true)];
        assert_eq!(gets(), whole);
        assert!(get(&sealed, &to).await.unwrap() == text);

        // The second breaks off within a chunk, and what is left of it fails twice.
        let mut failures = 0;
        let after = end(16) + (5 << 20) / chunk * chunk;
        let mut is_first = true;
        scripted.script(move |_, call| match (call.operation, &call.range) {
            ("get", Some(range)) if range.start == end(16) && is_first => {
                is_first = false;
                Act::Break(5 << 20)
            }
            ("get", Some(range)) if range.start == after && failures < 2 => {
                failures += 1;
                Act::Fail
            }
            _ => Act::Pass,
        });
        sealed.copy(&from, &to).await.unwrap();
        let asked: Vec<_> = gets().into_iter().map(|(range, _)| range.start).collect();
        let next = after + portion / (chunk - 16) * chunk;
        assert_eq!(asked, [0, end(16), after, after, after, next]);
        scripted.behave();
        assert!(get(&sealed, &to).await.unwrap() == text);

        // One that always fails ends it, and so does what will not pass.
        scripted.script(move |_, call| match &call.range {
            Some(range) if range.start == end(16) => Act::Fail,
            _ => Act::Pass,
        });
        sealed.copy(&from, &Path::from("c")).await.unwrap_err();
        assert_eq!(gets().len(), 1 + 5);
        scripted.script(move |n, call| match call.operation {
            "get" if n > 0 => Act::bytes(|bytes| bytes[70_000] ^= 1),
            _ => Act::Pass,
        });
        sealed.copy(&from, &Path::from("c")).await.unwrap_err();
        assert_eq!(gets().len(), 2);
        scripted.behave();
        assert!(get(&sealed, &Path::from("c")).await.is_err());
    }
}

#[tokio::test]
async fn what_is_overwritten_while_it_is_copied_is_copied_anew() {
    for single_put in [1 << 20, 64 << 20] {
        let scripted = Scripted::new(InMemory::new());
        let sealed = builder(scripted.clone()).single_put(single_put).build().unwrap();
        let (from, to, other) = (Path::from("a"), Path::from("b"), Path::from("other"));
        let (old, new) = (plaintext(20 << 20), plaintext(21 << 20));
        let put = async |text: &[u8]| {
            sealed.put(&from, text.to_vec().into()).await.unwrap();
            scripted.bare().get_opts(&from, Default::default()).await.unwrap().bytes().await
        };
        let theirs = put(&new).await.unwrap();
        put(&old).await.unwrap();
        let (bare, at) = (scripted.clone(), from.clone());
        let overwrite = Act::Then(Arc::new(move || {
            let (bare, at, theirs) = (bare.clone(), at.clone(), theirs.clone());
            Box::pin(async move {
                bare.bare().put_opts(&at, theirs.into(), Default::default()).await.unwrap();
            })
        }));
        scripted.script(move |n, _| if n == 0 { overwrite.clone() } else { Act::Pass });
        sealed.copy(&from, &to).await.unwrap();
        scripted.behave();
        assert!(get(&sealed, &to).await.unwrap() == new);
        // Again and again: it gives up, and leaves nothing.
        let n = AtomicUsize::new(0);
        scripted.script(move |_, call| {
            let n = n.fetch_add(1, Ordering::SeqCst);
            if call.operation != "get" {
                return Act::Pass;
            }
            Act::Change(Arc::new(move |mut result, bytes| {
                result.meta.e_tag = Some(format!("\"{n}\""));
                (result, bytes)
            }))
        });
        let error = sealed.copy(&from, &other).await.unwrap_err();
        assert!(error.to_string().contains("again and again"), "{error}");
        scripted.behave();
        assert!(get(&sealed, &other).await.is_err());
    }
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
        // In the last portion.
        let end = 4 << 20;
        for act in [
            // Before the end of a chunk, so that nothing comes of it.
            Act::Break(1000),
            Act::bytes(move |bytes| bytes.truncate(end)),
            Act::bytes(move |bytes| bytes[end] ^= 1),
            Act::Fail,
        ] {
            scripted.script(move |_, call| match (call.operation, &call.range) {
                ("get", Some(range)) if range.start > 0 => act.clone(),
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
