//! What goes wrong on the way of such a rewrap: requests and answers that are lost, changed or
//! refused, services and clients that fail, callers that give up.

use std::time::Duration;

use object_store::path::Path;
use object_store::{Error, ObjectStoreExt};
use waxseal_testing::fault_proxy::{Fault, FaultProxy};

use super::super::ground::*;
use super::super::rewrap::Keks;
use super::super::s3::{moto, seaweedfs};
use super::super::wire::{Act, Call, HANGS};
use super::{CHUNKS, Ground, MIB, expected, operations, servers, short};
use crate::version::Rewrapped;

/// Requests that do not arrive, whose answers do not, and that the service has no time for.
#[tokio::test]
async fn a_connection_that_is_cut_at_a_request_costs_a_repetition() {
    let (seaweedfs, moto) = servers();
    for (url, most) in [(seaweedfs.url(), 8), (moto.url(), 2)] {
        let ground = Ground::at(url);
        let (path, text) = (Path::from("a/b"), short());
        let slow_down = "<Error><Code>SlowDown</Code><Message>later</Message></Error>";
        let internal = "<Error><Code>InternalError</Code><Message>again</Message></Error>";
        let requests = expected(1);
        for (nth, request) in requests.into_iter().enumerate() {
            // Before `nth`, of parts at the same time, may be another one of them.
            let is_own = |operation: &str| matches!(operation, "copy" | "list parts" | "complete");
            for act in [
                Act::Fail,
                Act::Lose,
                Act::Hang,
                Act::HangAfter,
                Act::Answer(503, slow_down.into()),
                Act::Answer(500, String::new()),
                Act::Answer(200, internal.into()),
                Act::Answer(200, slow_down.into()),
            ]
            .into_iter()
            .take(most)
            {
                ground.before().put(&path, text.clone().into()).await.unwrap();
                let is_lie = matches!(act, Act::Answer(200, _));
                ground.wire.script(move |n, call| match n == nth {
                    true if is_lie && !is_own(call.operation) => Act::Pass,
                    true => act.clone(),
                    false => Act::Pass,
                });
                let done = ground.moving().rewrap(&path).await;
                let calls = operations(&ground.wire.take_calls());
                ground.wire.behave();
                let because = format!("{nth}: {calls:?}");
                assert_eq!(done.unwrap(), Rewrapped::Changed, "{because}");
                assert!(ground.has(&path, &text, &because).await, "{because}");
                // Of a creation whose answer is lost nobody knows the id.
                if request != "create" {
                    ground.no_upload_is_left(&because).await;
                } else {
                    ground.abort_all().await;
                }
            }
        }
    }
}

/// It fails for good: the object is as it was, or rewrapped, and no upload is left.
#[tokio::test]
async fn a_service_that_fails_for_good_leaves_the_object_as_it_was() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), short());
    let error = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
    let huge = format!("<CopyPartResult>{}", " ".repeat(3 << 20));
    for of in ["create", "part", "copy", "list parts", "complete"] {
        ground.before().put(&path, text.clone().into()).await.unwrap();
        for act in [
            Act::Fail,
            Act::Answer(503, error("SlowDown")),
            Act::Answer(403, error("AccessDenied")),
            Act::Answer(400, error("InvalidPart")),
            Act::Answer(404, error("NoSuchUpload")),
            Act::Answer(301, String::new()),
            Act::Answer(200, error("AccessDenied")),
            Act::Answer(200, error("SlowDown")),
            Act::Answer(200, String::new()),
            Act::Answer(200, "garbage".to_owned()),
            Act::Answer(200, "<CopyPartResult></CopyPartResult>".to_owned()),
            Act::Answer(200, huge.clone()),
        ] {
            let is_lie = matches!(act, Act::Answer(200, _));
            // Those of `object_store` are its own affair.
            if is_lie && matches!(of, "create" | "part") {
                continue;
            }
            let said = match &act {
                Act::Answer(status, body) => format!("{of}: {status} {body:.60}"),
                _ => of.to_owned(),
            };
            let told = act.clone();
            ground.wire.script(move |_, call| match call.operation == of {
                true => told.clone(),
                false => Act::Pass,
            });
            let failed = ground.moving().rewrap(&path).await.expect_err(&said);
            ground.wire.behave();
            assert!(!matches!(failed, Error::NotFound { .. } | Error::Precondition { .. }));
            let is_denied = said.contains("AccessDenied");
            assert_eq!(matches!(failed, Error::PermissionDenied { .. }), is_denied, "{said}");
            for word in ["Signature", "X-Amz", "uploadId"] {
                let shown = format!("{failed} {failed:?}");
                assert!(!shown.contains(word) || matches!(of, "create" | "part"), "{shown}");
            }
            assert!(!ground.has(&path, &text, &said).await, "{said}");
            ground.no_upload_is_left(&said).await;
        }
    }
}

#[tokio::test]
async fn what_the_service_cannot_do_goes_through_the_process() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), short());
    let error = |code: &str| format!("<Error><Code>{code}</Code></Error>");
    for (of, status, body) in [
        ("copy", 501, error("NotImplemented")),
        ("copy", 501, String::new()),
        ("copy", 200, error("NotImplemented")),
        ("copy", 405, error("MethodNotAllowed")),
        ("list parts", 501, error("NotImplemented")),
        ("complete", 501, error("NotImplemented")),
    ] {
        ground.before().put(&path, text.clone().into()).await.unwrap();
        let answer = Act::Answer(status, body);
        ground.wire.script(move |_, call| match call.operation == of {
            true => answer.clone(),
            false => Act::Pass,
        });
        assert_eq!(ground.moving().rewrap(&path).await.unwrap(), Rewrapped::Changed, "{of}");
        let calls = ground.wire.take_calls();
        ground.wire.behave();
        assert!(calls.iter().any(|call| call.operation == "put"));
        assert!(ground.has(&path, &text, of).await);
        ground.no_upload_is_left(of).await;
    }
}

#[tokio::test]
async fn a_client_that_panics_leaves_no_upload() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), short());
    ground.before().put(&path, text.clone().into()).await.unwrap();
    for of in ["create", "part", "copy", "list parts", "complete"] {
        ground.wire.script(move |_, call| match call.operation == of {
            true => Act::Panic,
            false => Act::Pass,
        });
        assert!(matches!(ground.moving().rewrap(&path).await, Err(Error::Generic { .. })), "{of}");
        ground.wire.behave();
        assert!(!ground.has(&path, &text, of).await, "{of}");
        ground.no_upload_is_left(of).await;
    }
}

/// What the server did is looked for where its answer says nothing.
#[tokio::test]
async fn a_completion_whose_answer_is_garbage_is_found_to_be_done() {
    let (seaweedfs, moto) = servers();
    for url in [seaweedfs.url(), moto.url()] {
        let ground = Ground::at(url);
        let (path, text) = (Path::from("a/b"), short());
        ground.before().put(&path, text.clone().into()).await.unwrap();
        ground.wire.script(|_, call| match call.operation {
            "complete" => Act::Body("garbage".to_owned()),
            _ => Act::Pass,
        });
        assert_eq!(ground.moving().rewrap(&path).await.unwrap(), Rewrapped::Changed);
        ground.wire.behave();
        assert!(ground.has(&path, &text, "done").await);
        ground.no_upload_is_left("done").await;
    }
}

/// moto copies the whole object where the range is overlooked, and makes an empty part where the
/// source is. SeaweedFS checks the signature, which has both.
#[tokio::test]
async fn parts_that_are_not_what_was_asked_for_are_not_joined() {
    let (seaweedfs, moto) = servers();
    for url in [seaweedfs.url(), moto.url()] {
        let ground = Ground::at(url);
        let (path, text) = (Path::from("a/b"), short());
        ground.before().put(&path, text.clone().into()).await.unwrap();
        for header in ["x-amz-copy-source-range", "x-amz-copy-source"] {
            ground.wire.script(move |_, call| match call.operation {
                "copy" => Act::Without(header),
                _ => Act::Pass,
            });
            ground.moving().rewrap(&path).await.expect_err(header);
            ground.wire.behave();
            assert!(!ground.has(&path, &text, header).await);
            ground.no_upload_is_left(header).await;
        }
    }
}

/// moto takes requests that were changed on their way. A page has a thousand parts of 5 MiB
/// otherwise.
#[tokio::test]
async fn lists_of_several_pages_are_read_to_their_end_and_no_list_goes_on_for_ever() {
    let server = moto();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), plaintext(CHUNKS + 22 * MIB));
    ground.before().put(&path, text.clone().into()).await.unwrap();
    let rewrap = async || {
        let moving = ground.moving_by(ground.by_s3().part_size(5 * MIB)).build().unwrap();
        moving.rewrap(&path).await
    };
    let listed = |calls: &[Call]| calls.iter().filter(|c| c.operation == "list parts").count();
    let page = "<ListPartsResult><IsTruncated>true</IsTruncated></ListPartsResult>";
    let part = |number| {
        let tag = "<ETag>a</ETag><Size>1</Size>";
        format!("<Part><PartNumber>{number}</PartNumber>{tag}</Part></ListPartsResult>")
    };
    let first = page.replace("</ListPartsResult>", &part(1));
    for (body, requests) in [(page.to_owned(), 1), (first, 2)] {
        ground.wire.script(move |_, call| match call.operation {
            "list parts" => Act::Answer(200, body.clone()),
            _ => Act::Pass,
        });
        rewrap().await.unwrap_err();
        assert_eq!(listed(&ground.wire.take_calls()), requests);
        ground.wire.behave();
        assert!(!ground.has(&path, &text, "a list").await);
        ground.no_upload_is_left("a list").await;
    }
    // One more part with each request.
    let mut number = 0;
    ground.wire.script(move |_, call| match call.operation {
        "list parts" => {
            number += 1;
            Act::Answer(200, page.replace("</ListPartsResult>", &part(number)))
        }
        _ => Act::Pass,
    });
    rewrap().await.unwrap_err();
    assert_eq!(listed(&ground.wire.take_calls()), 7);
    ground.wire.script(|_, call| match call.operation {
        "list parts" => Act::ShortPages,
        _ => Act::Pass,
    });
    rewrap().await.unwrap();
    assert_eq!(listed(&ground.wire.take_calls()), 3);
    ground.wire.behave();
    assert!(ground.has(&path, &text, "rewrapped").await);
    ground.no_upload_is_left("rewrapped").await;
}

/// Whoever gives up at any request, before it arrives or after, leaves no upload.
#[tokio::test]
async fn a_rewrap_that_is_given_up_at_any_request_leaves_no_upload() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), short());
    let requests = expected(2);
    let last = requests.len() - 1;
    let text = [text, plaintext(6 * MIB)].concat();
    for (nth, request) in requests.into_iter().enumerate() {
        for act in [Act::Hang, Act::HangAfter] {
            ground.before().put(&path, text.clone().into()).await.unwrap();
            let (told, mut reached) = tokio::sync::mpsc::unbounded_channel();
            ground.wire.script(move |n, _| {
                if n == nth {
                    told.send(()).unwrap();
                    return act.clone();
                }
                Act::Pass
            });
            let moving = ground.moving_by(ground.by_s3().part_size(5 * MIB)).build().unwrap();
            tokio::select! {
                done = moving.rewrap(&path) => panic!("{nth}: {done:?}"),
                _ = reached.recv() => {}
            }
            let because = format!("{nth}: {request}");
            if request == "create" {
                // Of one whose answer is lost, nobody knows the id.
                tokio::time::sleep(2 * HANGS).await;
                ground.abort_all().await;
            }
            ground.no_upload_is_left(&because).await;
            let is_done = ground.has(&path, &text, &because).await;
            assert!(!is_done || request == "complete" || nth == last, "{because}");
            ground.wire.behave();
        }
    }
    // At any moment.
    let text = short();
    for step in 0..20 {
        ground.before().put(&path, text.clone().into()).await.unwrap();
        let moving = ground.moving_by(ground.by_s3().part_size(5 * MIB)).build().unwrap();
        let patience = Duration::from_millis(step * 4);
        let _ = tokio::time::timeout(patience, moving.rewrap(&path)).await;
        ground.no_upload_is_left("at any moment").await;
        ground.has(&path, &text, "at any moment").await;
    }
}

#[test]
fn a_runtime_that_ends_leaves_the_object_as_it_was() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), short());
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // The last request only looks at what was done.
    for nth in 2..expected(1).len() - 1 {
        runtime().block_on(ground.before().put(&path, text.clone().into())).unwrap();
        let (told, mut reached) = tokio::sync::mpsc::unbounded_channel();
        ground.wire.script(move |n, _| {
            if n == nth {
                let _ = told.send(());
                return Act::Hang;
            }
            Act::Pass
        });
        let ends = runtime();
        let (moving, at) = (ground.moving(), path.clone());
        ends.spawn(async move { moving.rewrap(&at).await });
        ends.block_on(reached.recv());
        ends.shutdown_background();
        ground.wire.behave();
        runtime().block_on(async { assert!(!ground.has(&path, &text, "the runtime ended").await) });
    }
}

/// On real connections.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_leave_the_object_whole() {
    let server = seaweedfs();
    let proxy = FaultProxy::start(server.port());
    let ground = Ground::at(format!("http://127.0.0.1:{}", proxy.port()));
    let direct = Ground { keks: Keks::make(), ..Ground::at(server.url()) };
    let (path, text) = (Path::from("a/b"), short());
    let mut faults = vec![Fault::Reset, Fault::Delay(Duration::from_millis(5))];
    faults.extend([0, 1, 500, 1500, 100_000, 5_000_000].map(Fault::Truncate));
    faults.extend((0..8).map(|step| Fault::Truncate(5 * 1_048_576 + 2000 + step * 400)));
    for fault in faults {
        ground.before().put(&path, text.clone().into()).await.unwrap();
        proxy.set(fault.clone());
        let done = ground.moving().rewrap(&path).await;
        proxy.set(Fault::None);
        proxy.cut();
        let is_new = ground.has(&path, &text, &format!("{fault:?}")).await;
        assert!(is_new || done.is_err(), "{fault:?}");
        direct.abort_all().await;
    }
}
