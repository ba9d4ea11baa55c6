//! The protection of the memory that holds secrets, and how an operator learns what is missing.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;

/// The operating system's protection of the memory in which this process keeps DEKs, derived keys
/// and KEKs.
///
/// A missing protection is not an error, and secrets are still wiped on drop. `Display` is a
/// one-line message for an operator: what is not in force, the limit that was found, and what to do
/// about it.
///
/// It covers the library's own 32-byte secrets. The AEAD backend holds expanded message keys in
/// ordinary memory (SECURITY.md, "Memory").
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct MemoryProtection {
    /// Whether all of it is locked, so that it is never written to swap: mlock(2).
    pub locked: bool,
    /// Whether none of it is in core dumps: `MADV_DONTDUMP` of madvise(2).
    pub excluded_from_dumps: bool,
    /// Whether a forked child finds zeros in its place: `MADV_WIPEONFORK` of madvise(2).
    pub wiped_on_fork: bool,
    /// Why a protection is not in force, in the system's words. Empty if all are.
    pub detail: String,
}

impl MemoryProtection {
    /// Returns whether all protections are in force.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.locked && self.excluded_from_dumps && self.wiped_on_fork
    }
}

impl fmt::Display for MemoryProtection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_complete() {
            return f.write_str(
                "secrets are in memory that is locked, kept out of core dumps and wiped in forked children",
            );
        }
        f.write_str("secrets are wiped when dropped, but their memory is not fully protected:")?;
        if !self.locked {
            f.write_str(
                " it is not locked and can be written to swap (raise the limit with `ulimit -l`, `LimitMEMLOCK=` in systemd or \
                 `--ulimit memlock=` of the container, or run without swap);",
            )?;
        }
        if !self.excluded_from_dumps {
            f.write_str(
                " it is in core dumps (switch them off with `ulimit -c 0` or `LimitCORE=0`);",
            )?;
        }
        if !self.wiped_on_fork {
            f.write_str(" a forked child keeps a copy (open envelopes after forking);")?;
        }
        write!(f, " {}", self.detail)
    }
}

/// What has been requested from the system so far, and what it refused first.
#[derive(Default)]
pub(super) struct Record {
    bytes: usize,
    locked_bytes: usize,
    lock: Option<String>,
    dump: Option<String>,
    fork: Option<String>,
    told: bool,
}

impl Record {
    /// Adds the results for one more page.
    pub(super) fn add(
        &mut self,
        bytes: usize,
        lock: io::Result<()>,
        dump: io::Result<()>,
        fork: io::Result<()>,
    ) {
        self.bytes += bytes;
        match lock {
            Ok(()) => self.locked_bytes += bytes,
            Err(error) => {
                self.lock.get_or_insert_with(|| {
                    format!("mlock: {error}, the limit is {}", lock_limit())
                });
            }
        }
        if let Err(error) = dump {
            self.dump.get_or_insert_with(|| format!("MADV_DONTDUMP: {error}"));
        }
        if let Err(error) = fork {
            self.fork.get_or_insert_with(|| format!("MADV_WIPEONFORK: {error}"));
        }
    }

    /// The number of secrets that fit.
    pub(super) fn pieces(&self) -> usize {
        self.bytes / 32
    }

    pub(super) fn protection(&self) -> MemoryProtection {
        let locked = self
            .lock
            .as_ref()
            .map(|why| format!("{why}, {} of {} bytes are", self.locked_bytes, self.bytes));
        let why: Vec<&str> =
            [&locked, &self.dump, &self.fork].into_iter().flatten().map(String::as_str).collect();
        MemoryProtection {
            locked: self.lock.is_none(),
            excluded_from_dumps: self.dump.is_none(),
            wiped_on_fork: self.fork.is_none(),
            detail: why.join("; "),
        }
    }

    pub(super) fn notice(&mut self) -> Option<MemoryProtection> {
        let protection = self.protection();
        let first = !protection.is_complete() && !self.told;
        self.told |= first;
        first.then_some(protection)
    }
}

#[cfg(target_os = "linux")]
fn lock_limit() -> String {
    use rustix::process::{Resource, getrlimit};

    match getrlimit(Resource::Memlock).current {
        Some(bytes) => format!("{bytes} bytes"),
        None => "none".to_owned(),
    }
}

#[cfg(not(target_os = "linux"))]
fn lock_limit() -> String {
    "unknown".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    #[test]
    fn each_refusal_is_named_with_what_to_do_and_the_others_are_not() {
        let words = [
            ["mlock", "ulimit -l"],
            ["MADV_DONTDUMP", "ulimit -c"],
            ["MADV_WIPEONFORK", "after forking"],
        ];
        for mask in 0..8 {
            let asked = |bit: u8| if mask >> bit & 1 == 1 { refused() } else { Ok(()) };
            let mut record = Record::default();
            record.add(4096, Ok(()), Ok(()), Ok(()));
            record.add(4096, asked(0), asked(1), asked(2));
            let protection = record.protection();
            let [lock, dump, fork] = [0, 1, 2].map(|bit| mask >> bit & 1 == 0);
            assert_eq!(
                [protection.locked, protection.excluded_from_dumps, protection.wiped_on_fork],
                [lock, dump, fork]
            );
            let message = protection.to_string();
            assert!(!message.contains('\n'), "one line: {message}");
            for (in_force, words) in [lock, dump, fork].into_iter().zip(words) {
                assert!(words.iter().all(|word| message.contains(word) != in_force), "{message}");
            }
            assert_eq!(message.contains("4096 of 8192 bytes"), !lock, "{message}");
            assert_eq!(protection.detail.is_empty(), mask == 0);
        }
    }

    #[test]
    fn the_notice_comes_once_and_only_of_something_that_is_missing() {
        let mut record = Record::default();
        record.add(4096, Ok(()), Ok(()), Ok(()));
        assert_eq!(record.notice(), None);
        record.add(4096, refused(), Ok(()), Ok(()));
        assert!(!record.notice().unwrap().locked);
        record.add(4096, refused(), refused(), Ok(()));
        assert_eq!(record.notice(), None, "a second one");
        assert!(!record.protection().excluded_from_dumps, "the query tells the latest");
    }
}
