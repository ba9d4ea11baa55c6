//! Searches the memory of the process that runs the test.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::os::unix::fs::FileExt;

/// What is looked for, kept so that the search does not find itself: every byte turned over.
pub struct Needle(pub Vec<u8>);

impl Needle {
    pub fn of(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| !byte).collect())
    }

    /// How often it stands in the writable memory of this process.
    pub fn occurrences(&self) -> usize {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let memory = fs::File::open("/proc/self/mem").unwrap();
        let mut found = 0;
        let mut chunk = vec![0; 1 << 16];
        let own = chunk.as_ptr().addr()..chunk.as_ptr().addr() + chunk.len();
        for line in maps.lines().filter(|line| line.split(' ').nth(1).unwrap().starts_with("rw")) {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let [from, to] = [from, to].map(|at| usize::from_str_radix(at, 16).unwrap());
            let mut at = from;
            while at < to {
                // The buffer of the search is not searched.
                if own.contains(&at) {
                    at = own.end;
                    continue;
                }
                let mut len = chunk.len().min(to - at);
                if at < own.start {
                    len = len.min(own.start - at);
                }
                let Ok(read) = memory.read_at(&mut chunk[..len], at.try_into().unwrap()) else { break };
                if read == 0 {
                    break;
                }
                found += self.in_bytes(&chunk[..read]);
                if read < self.0.len() || at + read >= to {
                    break;
                }
                // Overlap, so that nothing is missed at a border; the same place is not counted twice.
                at += read - (self.0.len() - 1);
            }
        }
        chunk.fill(0);
        found
    }

    fn in_bytes(&self, bytes: &[u8]) -> usize {
        let first = !self.0[0];
        bytes
            .windows(self.0.len())
            .filter(|window| window[0] == first && window.iter().zip(&self.0).all(|(byte, turned)| *byte == !turned))
            .count()
    }
}
