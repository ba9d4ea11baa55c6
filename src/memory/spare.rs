//! Buffers of zeros for plaintext, for reuse.
//!
//! A buffer must be filled with zeros before an AEAD may write to it, and plaintext is overwritten
//! with zeros at its end. So wiped buffers are kept for reuse, which saves one of the two passes
//! over the memory, and the page faults of new memory.
#![forbid(unsafe_code)]

use std::sync::Mutex;

use super::wipe;

/// Shorter buffers are filled in no time.
const LEAST: usize = 16 * 1024;

/// The maximum number of bytes that the whole process keeps.
const MOST: usize = 4 * 1024 * 1024;

/// Buffers that hold only zeros. Nobody waits for this lock: neither if another thread holds it,
/// nor in the child of a fork, where that thread is gone.
static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Returns a buffer of `len` zeros.
#[inline]
pub(crate) fn zeros(len: usize) -> Vec<u8> {
    if len < LEAST {
        return vec![0; len];
    }
    many_zeros(len)
}

#[inline(never)]
fn many_zeros(len: usize) -> Vec<u8> {
    kept(len).unwrap_or_else(|| vec![0; len])
}

/// Takes a buffer with room for `len` bytes, and for at most twice as many.
fn kept(len: usize) -> Option<Vec<u8>> {
    let mut spare = SPARE.try_lock().ok()?;
    let fits = |bytes: &Vec<u8>| (len..=len.saturating_mul(2)).contains(&bytes.capacity());
    let at = spare.iter().rposition(fits)?;
    let mut bytes = spare.swap_remove(at);
    drop(spare);
    bytes.resize(len, 0);
    Some(bytes)
}

/// Overwrites a buffer with zeros, and keeps it for [`zeros`].
#[inline]
pub(crate) fn wipe_and_keep(bytes: &mut Vec<u8>) {
    wipe(bytes);
    if bytes.capacity() >= LEAST {
        keep(bytes);
    }
}

#[inline(never)]
fn keep(bytes: &mut Vec<u8>) {
    if bytes.capacity() <= MOST
        && let Ok(mut spare) = SPARE.try_lock()
    {
        spare.push(std::mem::take(bytes));
        let mut left = MOST;
        // The most recent ones stay.
        let stays = spare.iter().rev().take_while(|bytes| {
            let has_room = left.checked_sub(bytes.capacity());
            left = has_room.unwrap_or_default();
            has_room.is_some()
        });
        let gone = spare.len() - stays.count();
        drop(spare.drain(..gone));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_zero(bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| *byte == 0)
    }

    /// Concurrent users change what is kept, but never what is returned.
    #[test]
    fn every_buffer_has_the_length_and_holds_zeros() {
        let lens = [0, 1, 100, 16 * 1024, 20_000, 40_000, 65_536, 100_000, 1 << 20, MOST, MOST + 1];
        std::thread::scope(|scope| {
            for seed in 0..4 {
                scope.spawn(move || {
                    for turn in 0..200 {
                        let len = lens[(turn * 7 + seed * 3 + turn / lens.len()) % lens.len()];
                        let mut bytes = zeros(len);
                        assert_eq!((bytes.len(), is_zero(&bytes)), (len, true));
                        bytes.fill(0xA5);
                        // A caller may have shortened or extended it.
                        match turn % 3 {
                            0 => bytes.truncate(len / 2),
                            1 => bytes.extend_from_slice(&[0xA5; 100]),
                            _ => {}
                        }
                        wipe_and_keep(&mut bytes);
                        assert!(is_zero(&bytes));
                    }
                });
            }
        });
        let spare = SPARE.lock().unwrap();
        assert!(spare.iter().map(Vec::capacity).sum::<usize>() <= MOST);
        assert!(spare.iter().all(|bytes| is_zero(bytes)));
    }
}
