//! Streams of tokio.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio_util::bytes::Bytes;
use tokio_util::io::{ReaderStream, StreamReader};

use ::tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::ground::*;
use waxseal::{Aad, ErrorKind};

/// Is ready every other time, for up to 100 bytes.
struct Slow<I> {
    inner: I,
    ready: bool,
}

impl<I> Slow<I> {
    fn new(inner: I) -> Self {
        Self { inner, ready: false }
    }

    fn turn(&mut self, cx: &Context<'_>) -> bool {
        self.ready = !self.ready;
        if !self.ready {
            cx.waker().wake_by_ref();
        }
        self.ready
    }
}

impl AsyncRead for Slow<&[u8]> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.turn(cx) {
            return Poll::Pending;
        }
        let n = self.inner.len().min(buffer.remaining()).min(100);
        let (now, later) = self.inner.split_at(n);
        buffer.put_slice(now);
        self.inner = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Slow<Vec<u8>> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.turn(cx) {
            return Poll::Pending;
        }
        let n = bytes.len().min(100);
        self.inner.extend_from_slice(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.turn(cx) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[::tokio::test]
async fn what_is_written_slowly_is_read_slowly_and_by_others() {
    let kek = local("kek");
    let (envelope, alice) = (envelope(&kek), context("alice"));
    for len in [0, 1, CHUNK, 2 * CHUNK + 300] {
        let plaintext = plaintext(len);
        for shut_down in [false, true] {
            let encryptor =
                envelope.stream_encryptor(&alice, Aad::from(AAD), small()).await.unwrap();
            let mut sealed = Slow::new(Vec::new());
            let mut writer = encryptor.async_writer(&mut sealed);
            writer.write_all(&plaintext).await.unwrap();
            writer.flush().await.unwrap();
            match shut_down {
                true => writer.shutdown().await.unwrap(),
                false => drop(writer.finish().await.unwrap()),
            }
            let sealed = sealed.inner;
            let slow = Slow::new(&sealed[..]);
            let mut reader =
                envelope.decrypt_stream_async(&alice, Aad::from(AAD), slow).await.unwrap();
            let mut read = Vec::new();
            reader.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, plaintext);
            assert_eq!(reader.read(&mut [0; 9]).await.unwrap(), 0);
            assert_eq!(super::ground::read_alice(&envelope, &sealed), (plaintext.clone(), Ok(())));
        }
    }
}

#[::tokio::test]
async fn a_writer_that_is_dropped_and_a_stream_that_is_cut_are_refused() {
    let kek = local("kek");
    let (envelope, alice) = (envelope(&kek), context("alice"));
    let mut file = Vec::new();
    let encryptor = envelope.stream_encryptor(&alice, Aad::from(AAD), small()).await.unwrap();
    let mut writer = encryptor.async_writer(&mut file);
    writer.write_all(&plaintext(2 * CHUNK + 9)).await.unwrap();
    writer.flush().await.unwrap();
    drop(writer);
    let sealed = sealed_by(&envelope, small(), &plaintext(2 * CHUNK + 9));
    for cut in [&file[..], &sealed[..sealed.len() - 1], &sealed[..head_len(&sealed)]] {
        let mut reader =
            envelope.decrypt_stream_async(&alice, Aad::from(AAD), Slow::new(cut)).await.unwrap();
        let mut read = Vec::new();
        let error = reader.read_to_end(&mut read).await.unwrap_err();
        assert!([ErrorKind::Malformed, ErrorKind::Invalid].contains(&kind_of(&error)));
        assert!(plaintext(2 * CHUNK).starts_with(&read));
        assert!(reader.read(&mut [0]).await.is_err(), "it stays so");
    }
    for len in 0..head_len(&sealed) {
        let cut = Slow::new(&sealed[..len]);
        assert!(envelope.decrypt_stream_async(&alice, Aad::from(AAD), cut).await.is_err());
    }
}

#[::tokio::test]
async fn a_stream_of_bytes_is_encrypted_and_one_is_decrypted() {
    let kek = local("kek");
    let (envelope, alice) = (envelope(&kek), context("alice"));
    for len in [0, 1, CHUNK, 3 * CHUNK + 300] {
        let plaintext = plaintext(len);
        let parts = plaintext.chunks(777).map(|part| io::Result::Ok(Bytes::copy_from_slice(part)));
        let mut from = StreamReader::new(stream::iter(parts));
        let encryptor = envelope.stream_encryptor(&alice, Aad::from(AAD), small()).await.unwrap();
        let mut writer = encryptor.async_writer(Slow::new(Vec::new()));
        assert_eq!(::tokio::io::copy(&mut from, &mut writer).await.unwrap(), len as u64);
        let sealed = writer.finish().await.unwrap().inner;

        let slow = Slow::new(&sealed[..]);
        let reader = envelope.decrypt_stream_async(&alice, Aad::from(AAD), slow).await.unwrap();
        let items: Vec<Bytes> =
            ReaderStream::with_capacity(reader, CHUNK).try_collect().await.unwrap();
        assert_eq!(items.concat(), plaintext);
        assert!(items.iter().all(|item| (1..=CHUNK).contains(&item.len())));
    }
}

#[::tokio::test]
async fn a_stream_of_bytes_that_was_cut_or_changed_ends_with_an_error() {
    let kek = local("kek");
    let (envelope, alice) = (envelope(&kek), context("alice"));
    let plaintext = plaintext(3 * CHUNK + 300);
    let sealed = sealed_by(&envelope, small(), &plaintext);
    let head_len = head_len(&sealed);
    for at in (0..=3).map(|chunk| head_len + chunk * SEALED_CHUNK).chain([sealed.len() - 1]) {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        for bad in [&sealed[..at], &changed[..]] {
            let reader = envelope.decrypt_stream_async(&alice, Aad::from(AAD), bad).await.unwrap();
            let mut items: Vec<_> = ReaderStream::with_capacity(reader, CHUNK).collect().await;
            let error = items.pop().unwrap().unwrap_err();
            assert!([ErrorKind::Malformed, ErrorKind::Invalid].contains(&kind_of(&error)));
            let before: Vec<_> = items.into_iter().map(Result::unwrap).collect();
            let whole = (at - head_len) / SEALED_CHUNK * CHUNK;
            assert_eq!(before.concat(), plaintext[..whole], "at {at}");
        }
    }
}

/// Is polled so often and then dropped.
async fn given_up_after<F: Future>(polls: usize, call: F) -> Option<F::Output> {
    let mut call = Box::pin(call);
    for _ in 0..polls {
        let polled = std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
    }
    None
}

#[::tokio::test]
async fn a_read_or_write_that_is_given_up_at_any_await_loses_and_repeats_nothing() {
    let kek = local("kek");
    let (envelope, alice) = (envelope(&kek), context("alice"));
    let plaintext = plaintext(2 * CHUNK + 300);
    for polls in 1..6 {
        let encryptor = envelope.stream_encryptor(&alice, Aad::from(AAD), small()).await.unwrap();
        let mut sealed = Slow::new(Vec::new());
        let mut writer = encryptor.async_writer(&mut sealed);
        let mut rest = &plaintext[..];
        while !rest.is_empty() {
            let part = &rest[..rest.len().min(1000)];
            if let Some(n) = given_up_after(polls, writer.write(part)).await {
                rest = &rest[n.unwrap()..];
            }
        }
        while given_up_after(polls, writer.flush()).await.is_none() {}
        while given_up_after(polls, writer.shutdown()).await.is_none() {}
        assert_eq!(read_alice(&envelope, &sealed.inner), (plaintext.clone(), Ok(())));

        let slow = Slow::new(&sealed.inner[..]);
        let mut reader = envelope.decrypt_stream_async(&alice, Aad::from(AAD), slow).await.unwrap();
        let (mut read, mut buffer) = (Vec::new(), [0; 900]);
        loop {
            match given_up_after(polls, reader.read(&mut buffer)).await {
                Some(Ok(0)) => break,
                Some(n) => read.extend_from_slice(&buffer[..n.unwrap()]),
                None => {}
            }
        }
        assert_eq!(read, plaintext, "{polls} polls");
    }
}

#[::tokio::test]
async fn a_stream_whose_finish_is_given_up_at_any_await_is_whole_or_refused() {
    let kek = local("kek");
    let (envelope, alice) = (envelope(&kek), context("alice"));
    let plaintext = plaintext(CHUNK + 300);
    let mut whole = 0;
    for polls in 0..300 {
        let encryptor = envelope.stream_encryptor(&alice, Aad::from(AAD), small()).await.unwrap();
        let mut sealed = Slow::new(Vec::new());
        let mut writer = encryptor.async_writer(&mut sealed);
        writer.write_all(&plaintext).await.unwrap();
        let finished = given_up_after(polls, writer.finish()).await.is_some();
        let (part, result) = read_alice(&envelope, &sealed.inner);
        assert!(plaintext.starts_with(&part));
        assert!(result.is_ok() || !finished, "{polls} polls");
        assert_eq!(result.is_ok(), part.len() == plaintext.len());
        whole += usize::from(finished);
    }
    assert!((1..300).contains(&whole), "{whole}");
}

/// Does what the test sets for one call.
struct FailsAt<I> {
    inner: I,
    calls: usize,
    lies: bool,
}

impl<I> FailsAt<I> {
    fn turn(&mut self) -> bool {
        self.calls = self.calls.wrapping_sub(1);
        self.calls == usize::MAX
    }
}

impl AsyncRead for FailsAt<Slow<&[u8]>> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.turn() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for FailsAt<Slow<Vec<u8>>> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match (self.turn(), self.lies) {
            (true, true) => Poll::Ready(Ok(bytes.len() + 1)),
            (true, false) => Poll::Ready(Err(io::ErrorKind::StorageFull.into())),
            _ => Pin::new(&mut self.inner).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[::tokio::test]
async fn an_async_reader_or_writer_that_fails_or_lies_at_any_call_gives_its_error() {
    let kek = local("kek");
    let (envelope, alice) = (envelope(&kek), context("alice"));
    let plaintext = plaintext(CHUNK + 300);
    let sealed = sealed_by(&envelope, small(), &plaintext);
    let (mut failed, mut whole) = (0, 0);
    for calls in 0..250 {
        let from = FailsAt { inner: Slow::new(&sealed[..]), calls, lies: false };
        let mut read = Vec::new();
        match envelope.decrypt_stream_async(&alice, Aad::from(AAD), from).await {
            Ok(mut reader) => match reader.read_to_end(&mut read).await {
                Ok(_) => whole += usize::from(read == plaintext),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                    failed += 1;
                }
            },
            Err(error) => assert_eq!(error.kind(), ErrorKind::Io),
        }
        assert!(plaintext.starts_with(&read));
        for lies in [false, true] {
            let encryptor =
                envelope.stream_encryptor(&alice, Aad::from(AAD), small()).await.unwrap();
            let mut to = FailsAt { inner: Slow::new(Vec::new()), calls, lies };
            let mut writer = encryptor.async_writer(&mut to);
            let result = async {
                writer.write_all(&plaintext).await?;
                writer.finish().await.map(drop)
            };
            let result = result.await;
            let (part, end) = read_alice(&envelope, &to.inner.inner);
            assert!(plaintext.starts_with(&part));
            assert_eq!(result.is_ok(), end.is_ok(), "{calls} {lies}");
            if let Err(error) = result {
                let kind = if lies { io::ErrorKind::Other } else { io::ErrorKind::StorageFull };
                assert_eq!(error.kind(), kind);
            }
        }
    }
    assert!(failed > 40 && whole > 40, "{failed} failed, {whole} whole");
}
