//! Streams of tokio.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

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
