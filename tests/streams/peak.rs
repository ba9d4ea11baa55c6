//! How much memory a stream takes that is longer than all of it: a chunk for each thread.

use std::io::{self, Read};
use std::num::NonZero;
use std::process::Command;
use std::thread;

use super::ground::{AAD, block_on, context, envelope, local};
use waxseal::{Aad, StreamHead, StreamOptions};

const MEASURED: &str = "WAXSEAL_TEST_STREAMS_PEAK";
const MIB: u64 = 1 << 20;
const THREADS: usize = 4;
const CHUNK: u32 = 1 << 20;

/// The most memory that this process ever had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Encrypts this many bytes to a pipe, and decrypts what comes out of it.
fn through_a_pipe(len: u64, chunk: u32, threads: usize) {
    let envelope = envelope(&local("kek"));
    let (alice, aad) = (context("alice"), Aad::from(AAD));
    let options = StreamOptions::default().chunk_size(chunk);
    let encryptor = block_on(envelope.stream_encryptor(&alice, aad, options)).unwrap();
    let threads = NonZero::new(threads).unwrap();
    let (mut from, to) = io::pipe().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| encryptor.encrypt(threads, io::repeat(7).take(len), to).unwrap());
        let head = StreamHead::read(&mut from).unwrap();
        let decryptor = block_on(envelope.stream_decryptor(&alice, aad, &head)).unwrap();
        assert_eq!(decryptor.decrypt(threads, from, io::sink()).unwrap(), len);
    });
}

/// In a separate process, since the peak is that of all threads of one.
#[test]
fn a_stream_takes_a_chunk_of_memory_for_each_thread_however_long_it_is() {
    for threads in [1, THREADS] {
        if std::env::var(MEASURED).is_err() {
            let output = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "peak::a_stream_takes_a_chunk_of_memory_for_each_thread_however_long_it_is",
                ])
                .env(MEASURED, threads.to_string())
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        } else if std::env::var(MEASURED).unwrap() == threads.to_string() {
            // What a first stream brings along.
            through_a_pipe(MIB, 4096, threads);
            let before = peak();
            through_a_pipe(40 * MIB, CHUNK, threads);
            let taken = peak() - before;
            // Both ends. Beside the chunks there is what threads and the allocator take.
            let chunks = 2 * threads as u64 * u64::from(CHUNK);
            assert!(taken < chunks + 4 * MIB, "{taken} bytes by {threads} threads");
        }
    }
}
