//! Multipart uploads: in any order, failing, given up.

use std::task::Poll;
use std::time::Duration;

use crate::version::SealedStore;
use futures_util::FutureExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions,
};

use super::ground::*;
use super::scripted::{Act, Scripted};

const MIB: u64 = 1 << 20;

fn path() -> Path {
    Path::from("a/b")
}

async fn is_absent(sealed: &SealedStore<Scripted>) -> bool {
    let error = get(sealed, &path()).await.unwrap_err();
    matches!(error, object_store::Error::NotFound { .. })
}

/// Uploads three parts of 6 MiB, as a caller that gives up at the first failure.
async fn upload(sealed: &SealedStore<Scripted>) -> object_store::Result<()> {
    let mut upload = sealed.put_multipart(&path()).await?;
    let text = plaintext(18 * MIB);
    for part in text.chunks(6 << 20) {
        if let Err(error) = upload.put_part(part.to_vec().into()).await {
            upload.abort().await?;
            return Err(error);
        }
    }
    upload.complete().await.map(drop)
}

#[tokio::test]
async fn parts_have_one_length_and_at_least_5_mib_but_the_last() {
    for (given, least) in [(5 * MIB, 5 * MIB), (MIB, 5 * MIB), (12 * MIB, 12 * MIB), (10, 5 * MIB)]
    {
        let scripted = Scripted::new(InMemory::new());
        let sealed = builder(scripted.clone()).build().unwrap();
        let mut upload = sealed.put_multipart(&path()).await.unwrap();
        let text = plaintext(27 * MIB);
        let mut rest = &text[..];
        for _ in 0..100 {
            let part = rest.split_off(..rest.len().min(given.try_into().unwrap())).unwrap();
            upload.put_part(part.to_vec().into()).await.unwrap();
        }
        upload.put_part(rest.to_vec().into()).await.unwrap();
        let put = upload.complete().await.unwrap();
        let calls = scripted.take_calls();
        let parts: Vec<_> = calls
            .iter()
            .filter(|call| call.operation == "put_part")
            .map(|call| call.sent)
            .collect();
        let (last, others) = parts.split_last().unwrap();
        assert!(others.iter().all(|part| *part as u64 >= least && part == &others[0]), "{parts:?}");
        assert!(*last <= others.first().copied().unwrap_or(usize::MAX), "{parts:?}");
        let got = sealed.get(&path()).await.unwrap();
        assert_eq!(crate::told_by_get(&got), crate::told_by_put(&put));
        assert!(got.bytes().await.unwrap() == text);
    }
}

/// S3 takes 10,000 parts, so a writer that uploads more than it expected gives longer parts on the
/// way.
#[tokio::test]
async fn parts_grow_with_those_that_are_given_and_are_no_more() {
    for lengths in [vec![5, 5, 5, 10, 10, 20, 20, 1], vec![5, 9, 6, 5, 30, 5, 5], vec![1, 1, 8, 2]]
    {
        let scripted = Scripted::new(InMemory::new());
        let sealed = builder(scripted.clone()).build().unwrap();
        let mut upload = sealed.put_multipart(&path()).await.unwrap();
        let text = plaintext(lengths.iter().sum::<u64>() * MIB);
        let mut rest = &text[..];
        for len in &lengths {
            let part = rest.split_off(..usize::try_from(len * MIB).unwrap()).unwrap();
            upload.put_part(part.to_vec().into()).await.unwrap();
        }
        upload.complete().await.unwrap();
        let calls = scripted.take_calls();
        let sent = calls.iter().filter(|call| call.operation == "put_part").map(|call| call.sent);
        let parts: Vec<_> = sent.collect();
        let (_, others) = parts.split_last().unwrap();
        assert!(others.iter().all(|part| *part as u64 >= 5 * MIB), "{parts:?}");
        assert!(others.is_sorted() && parts.len() <= lengths.len(), "{parts:?}");
        assert!(get(&sealed, &path()).await.unwrap() == text);
    }
}

#[tokio::test]
async fn whatever_call_fails_there_is_the_old_object_or_the_new_one_or_none() {
    let scripted = Scripted::new(InMemory::new());
    let sealed = builder(scripted.clone()).build().unwrap();
    upload(&sealed).await.unwrap();
    let calls = scripted.take_calls().len();
    assert!(calls >= 5, "{calls}");
    for is_over_another in [false, true] {
        for (name, act) in [("fails", Act::Fail), ("is lost", Act::Lose)] {
            for nth in 0..calls {
                scripted.behave();
                sealed.delete(&path()).await.unwrap();
                if is_over_another {
                    sealed.put(&path(), "old".into()).await.unwrap();
                }
                let act = act.clone();
                scripted.script(move |n, _| if n == nth { act.clone() } else { Act::Pass });
                upload(&sealed).await.unwrap_err();
                scripted.behave();
                let is_done = nth == calls - 1 && name == "is lost";
                match (is_done, is_over_another) {
                    (true, _) => {
                        assert!(get(&sealed, &path()).await.unwrap() == plaintext(18 * MIB))
                    }
                    (false, true) => assert_eq!(get(&sealed, &path()).await.unwrap(), "old"),
                    (false, false) => assert!(is_absent(&sealed).await, "call {nth} {name}"),
                }
            }
        }
    }
}

/// The store never answers its n-th call, and the caller loses patience there.
#[tokio::test]
async fn an_upload_given_up_at_any_await_leaves_nothing_or_the_whole() {
    let scripted = Scripted::new(InMemory::new());
    let sealed = builder(scripted.clone()).build().unwrap();
    upload(&sealed).await.unwrap();
    let calls = scripted.take_calls().len();
    for (act, is_done_at_last) in [(Act::Hang, false), (Act::HangAfter, true)] {
        for nth in 0..calls {
            scripted.behave();
            sealed.delete(&path()).await.unwrap();
            let act = act.clone();
            scripted.script(move |n, _| if n == nth { act.clone() } else { Act::Pass });
            let given_up = tokio::time::timeout(Duration::from_millis(50), upload(&sealed)).await;
            assert!(given_up.is_err());
            scripted.behave();
            match nth == calls - 1 && is_done_at_last {
                true => assert!(get(&sealed, &path()).await.unwrap() == plaintext(18 * MIB)),
                false => assert!(is_absent(&sealed).await, "call {nth}"),
            }
            // Nobody is in the way of the next.
            upload(&sealed).await.unwrap();
            assert!(get(&sealed, &path()).await.unwrap() == plaintext(18 * MIB));
        }
    }
}

/// Each poll of each future may be the last.
#[tokio::test]
async fn a_put_given_up_after_any_number_of_polls_leaves_nothing_or_the_whole() {
    let text = plaintext(2 * MIB);
    for polls in 0..30 {
        let sealed = builder(Scripted::new(InMemory::new())).build().unwrap();
        let (path, mut left) = (path(), polls);
        let mut put = Box::pin(sealed.put(&path, text.clone().into()));
        let done = std::future::poll_fn(|cx| {
            if left == 0 {
                return Poll::Ready(None);
            }
            left -= 1;
            match put.poll_unpin(cx) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        drop(put);
        match done {
            Some(done) => {
                done.unwrap();
                assert!(get(&sealed, &path).await.unwrap() == text);
            }
            None => assert!(is_absent(&sealed).await, "{polls}"),
        }
    }
}

#[tokio::test]
async fn an_upload_of_which_a_part_is_missing_cannot_be_completed() {
    let scripted = Scripted::new(InMemory::new());
    let sealed = builder(scripted.clone()).build().unwrap();
    let part = || plaintext(6 * MIB).into();
    for given_up in [false, true] {
        let mut upload = sealed.put_multipart(&path()).await.unwrap();
        upload.put_part(part()).await.unwrap();
        scripted.script(|_, call| if call.operation == "put_part" { Act::Fail } else { Act::Pass });
        let second = upload.put_part(part());
        if given_up {
            drop(second);
        } else {
            second.await.unwrap_err();
        }
        scripted.behave();
        let error = upload.complete().await.unwrap_err();
        assert!(error.to_string().contains("a part failed or was given up"), "{error}");
        // Neither a second time, nor with more parts.
        upload.put_part(part()).await.unwrap_err();
        upload.complete().await.unwrap_err();
        upload.abort().await.unwrap();
        assert!(is_absent(&sealed).await);
    }
}

#[tokio::test]
async fn after_its_end_an_upload_takes_nothing() {
    let sealed = builder(Scripted::new(InMemory::new())).build().unwrap();
    let mut upload = sealed.put_multipart(&path()).await.unwrap();
    upload.put_part("text".into()).await.unwrap();
    upload.complete().await.unwrap();
    upload.put_part("more".into()).await.unwrap_err();
    upload.complete().await.unwrap_err();
    assert_eq!(get(&sealed, &path()).await.unwrap(), "text");
    // Without a part, it is empty.
    let mut upload = sealed.put_multipart(&path()).await.unwrap();
    upload.complete().await.unwrap();
    assert_eq!(get(&sealed, &path()).await.unwrap(), "");
    // Dropped, it never was.
    let mut upload = sealed.put_multipart(&path()).await.unwrap();
    upload.put_part(plaintext(20 * MIB).into()).await.unwrap();
    drop(upload);
    assert_eq!(get(&sealed, &path()).await.unwrap(), "");
}

/// Readers see one of the objects, complete, even with concurrent writers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_writers_of_one_object_leave_one_of_two_objects() {
    let sealed = small(InMemory::new());
    let texts = [plaintext(300_000), plaintext(300_000).iter().map(|byte| !byte).collect()];
    sealed.put(&path(), texts[0].clone().into()).await.unwrap();
    let write = |text: Vec<u8>, in_parts| {
        let sealed = sealed.clone();
        tokio::spawn(async move {
            for _ in 0..60 {
                if in_parts {
                    let mut upload = sealed.put_multipart(&path()).await.unwrap();
                    upload.put_part(text.clone().into()).await.unwrap();
                    upload.complete().await.unwrap();
                } else {
                    sealed.put(&path(), text.clone().into()).await.unwrap();
                }
            }
        })
    };
    let writers = [write(texts[0].clone(), false), write(texts[1].clone(), true)];
    let mut read = 0;
    while read < 50 || writers.iter().any(|writer| !writer.is_finished()) {
        read += 1;
        let whole = get(&sealed, &path()).await.unwrap();
        assert!(texts.iter().any(|text| *text == whole));
        match sealed.get_ranges(&path(), &[10..20, 200_000..200_010]).await {
            Ok(parts) => assert!(
                texts
                    .iter()
                    .any(|text| { parts[0] == text[10..20] && parts[1] == text[200_000..200_010] })
            ),
            Err(error) => assert!(error.to_string().contains("again and again"), "{error}"),
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn modes_and_attributes_go_through() {
    let sealed = small(InMemory::new());
    let attributes = Attributes::from_iter([
        (Attribute::ContentType, "text/csv"),
        (Attribute::Metadata("owner".into()), "acme"),
    ]);
    let options = object_store::PutOptions { attributes: attributes.clone(), ..Default::default() };
    let put = sealed.put_opts(&path(), "text".into(), options).await.unwrap();
    assert_eq!(sealed.get(&path()).await.unwrap().attributes, attributes);
    let ranged = object_store::GetOptions::new().with_range(Some(0..1));
    assert_eq!(sealed.get_opts(&path(), ranged).await.unwrap().attributes, attributes);
    let head = object_store::GetOptions::new().with_head(true);
    assert_eq!(sealed.get_opts(&path(), head).await.unwrap().attributes, attributes);
    // A copy through this process keeps them.
    let other = Path::from("other");
    sealed.copy(&path(), &other).await.unwrap();
    assert_eq!(sealed.get(&other).await.unwrap().attributes, attributes);

    let options = PutMultipartOptions { attributes: attributes.clone(), ..Default::default() };
    let mut upload = sealed.put_multipart_opts(&other, options).await.unwrap();
    upload.complete().await.unwrap();
    assert_eq!(sealed.get(&other).await.unwrap().attributes, attributes);

    let error = sealed.put_opts(&path(), "b".into(), PutMode::Create.into()).await.unwrap_err();
    assert!(matches!(error, object_store::Error::AlreadyExists { .. }));
    sealed.put_opts(&path(), "c".into(), PutMode::Update(put.clone().into()).into()).await.unwrap();
    let error = sealed.put_opts(&path(), "d".into(), PutMode::Update(put.into()).into()).await;
    assert!(matches!(error.unwrap_err(), object_store::Error::Precondition { .. }));
    assert_eq!(get(&sealed, &path()).await.unwrap(), "c");
}
