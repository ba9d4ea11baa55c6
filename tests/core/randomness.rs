//! If the operating system gives no randomness: an error, and nothing left behind.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use support::{block_on, context, envelope, local};
use waxseal::{Aad, Envelope, ErrorKind, Nonces};
use waxseal_testing::support;

/// Runs `work` in a thread to which the kernel gives no random bytes; `None` where the C library
/// has its own store of them.
fn without_randomness<R: Send>(work: impl FnOnce() -> R + Send) -> Option<R> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            refuse_randomness();
            getrandom::fill(&mut [0; 32]).is_err().then(work)
        });
        thread.join().unwrap()
    })
}

/// For this thread, from now on.
fn refuse_randomness() {
    let statement =
        |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let getrandom = u32::try_from(libc::SYS_getrandom).unwrap();
    let mut program = [
        // The number of the system call is the first word of what the filter gets.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, getrandom),
        statement(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EIO.unsigned_abs(),
        ),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: the filter and its program live until the kernel has copied them; both calls concern
    // this thread only.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter),
            0
        );
    }
}

#[test]
fn sealing_fails_with_an_error_of_its_own_kind_and_opening_goes_on() {
    for nonces in [Nonces::Thread, Nonces::System] {
        let service = Envelope::builder().wrap_with(local("kek")).nonces(nonces).build().unwrap();
        let alice = context("alice");
        let key = block_on(service.encryptor(&alice)).unwrap();
        let sealed = block_on(service.encrypt(&alice, Aad::empty(), b"x")).unwrap();
        let results = without_randomness(|| {
            let with_the_handle = key.encrypt(Aad::empty(), b"y").unwrap_err().kind();
            let with_the_dek =
                block_on(service.encrypt(&alice, Aad::empty(), b"y")).unwrap_err().kind();
            let with_a_new_dek =
                block_on(service.encrypt(&context("bob"), Aad::empty(), b"y")).unwrap_err().kind();
            assert_eq!(&*block_on(service.decrypt(&alice, Aad::empty(), &sealed)).unwrap(), b"x");
            [with_the_handle, with_the_dek, with_a_new_dek]
        });
        if let Some(kinds) = results {
            assert_eq!(kinds, [ErrorKind::Randomness; 3], "{nonces:?}");
        }
    }
}

#[test]
fn a_buffer_that_could_not_be_sealed_in_place_has_no_second_copy_of_the_plaintext() {
    let service = envelope(&local("kek"));
    let alice = context("alice");
    block_on(service.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    for room in [0, 4096] {
        let mut buffer = vec![0; 100 + room];
        buffer.truncate(100);
        buffer.fill(0xA5);
        let result = without_randomness(|| {
            block_on(service.encrypt_in_place(&alice, Aad::empty(), &mut buffer))
        });
        let Some(result) = result else { return };
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Randomness);
        assert_eq!(buffer, [0xA5; 100], "the plaintext is still there");
        // SAFETY: every byte of the allocation was written: by `vec!`, or when the buffer grew.
        let all = unsafe { std::slice::from_raw_parts(buffer.as_ptr(), buffer.capacity()) };
        assert!(all.len() > 200, "there is spare room to look at");
        assert!(all[100..].iter().all(|byte| *byte != 0xA5), "{} bytes of room", buffer.capacity());
    }
}
