//! The implementations of the suites, and the choice of the fastest.
//!
//! It names no backend: the caller supplies the stopwatch.
#![forbid(unsafe_code)]

#[cfg(any(test, all(feature = "aws-lc", feature = "ring")))]
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// The implementation of the suites. All of them produce the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Backend {
    /// The RustCrypto crates: pure Rust, always available.
    #[cfg_attr(feature = "serde", serde(rename = "rustcrypto"))]
    RustCrypto,
    /// aws-lc-rs: the fastest for larger messages on processors with AVX-512. The default if the
    /// feature `aws-lc` is on and `ring` is not.
    #[cfg(feature = "aws-lc")]
    AwsLc,
    /// ring: the fastest on processors with VAES and without AVX-512. It exposes no bare block
    /// cipher, so its XAES-256-GCM is RustCrypto's. The default if the feature `ring` is on and
    /// `aws-lc` is not.
    #[cfg(feature = "ring")]
    Ring,
    /// The fastest of them on this processor, chosen for each suite. The default if both `aws-lc`
    /// and `ring` are on.
    ///
    /// The choice is made once per process, when a suite is first used: from the processor's
    /// features, or by a measurement of about ten microseconds if they do not decide it. Messages
    /// of up to 1 KiB are measured separately. If another backend is faster for them, each DEK
    /// holds its key in both. [`Backend::chosen`] and [`Backend::chosen_for`] return the result.
    Fastest,
}

impl Default for Backend {
    fn default() -> Self {
        match Self::CANDIDATES {
            [only] => *only,
            _ => Self::Fastest,
        }
    }
}

impl Backend {
    /// The candidates for the fastest, likelier ones first.
    const CANDIDATES: &[Self] = &[
        #[cfg(feature = "aws-lc")]
        Self::AwsLc,
        #[cfg(feature = "ring")]
        Self::Ring,
        // Never faster than a backend written in assembler.
        #[cfg(not(any(feature = "aws-lc", feature = "ring")))]
        Self::RustCrypto,
    ];

    /// Returns all backends of this build. [`Backend::Fastest`] stands for one of them and is not
    /// listed.
    #[must_use]
    pub const fn all() -> &'static [Self] {
        &[
            Self::RustCrypto,
            #[cfg(feature = "aws-lc")]
            Self::AwsLc,
            #[cfg(feature = "ring")]
            Self::Ring,
        ]
    }

    /// Returns itself, or for [`Backend::Fastest`] the choice for the suite with this number, for
    /// short messages or for all others. `timer` returns a stopwatch for a backend, which makes one
    /// run per call, or `None` for a backend that borrows the suite from another one.
    #[cfg(all(feature = "aws-lc", feature = "ring"))]
    pub(crate) fn settled<T: FnMut() -> Duration>(
        self,
        suite: u8,
        is_short: bool,
        timer: impl Fn(Self) -> Option<T>,
    ) -> Self {
        // Two for each suite. No suite has a larger number.
        static CHOICES: [Choice; 8] = [const { Choice::open() }; 8];
        let is_known = |backend| !is_short && is_known(backend);
        match (self, CHOICES.get(usize::from(suite) + if is_short { 4 } else { 0 })) {
            (Self::Fastest, Some(choice)) => choice.of(Self::CANDIDATES, is_known, timer),
            (Self::Fastest, None) => Self::RustCrypto,
            (backend, _) => backend,
        }
    }

    /// A single candidate needs no measurement.
    #[cfg(not(all(feature = "aws-lc", feature = "ring")))]
    pub(crate) fn settled<T: FnMut() -> Duration>(
        self,
        _: u8,
        _: bool,
        _: impl Fn(Self) -> Option<T>,
    ) -> Self {
        match self {
            Self::Fastest => Self::default(),
            backend => backend,
        }
    }
}

/// Decides by the processor's features for longer messages: with VAES and AVX-512, aws-lc-rs uses
/// both, and ring has no code for them.
#[cfg(all(feature = "aws-lc", feature = "ring"))]
fn is_known(backend: Backend) -> bool {
    #[cfg(target_arch = "x86_64")]
    let wide = std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("vaes")
        && std::arch::is_x86_feature_detected!("vpclmulqdq");
    #[cfg(not(target_arch = "x86_64"))]
    let wide = false;
    wide && backend == Backend::AwsLc
}

/// A choice among candidates, made once per process. It has no lock, which a fork could leave
/// locked in the child. Threads that arrive at the same time all measure, and agree on the first
/// result.
#[cfg(any(test, all(feature = "aws-lc", feature = "ring")))]
struct Choice(AtomicU8);

#[cfg(any(test, all(feature = "aws-lc", feature = "ring")))]
impl Choice {
    const OPEN: u8 = u8::MAX;
    /// The runs of each candidate. The fastest run counts, so one slow moment changes nothing.
    const RUNS: usize = 32;

    const fn open() -> Self {
        Self(AtomicU8::new(Self::OPEN))
    }

    fn of<T: FnMut() -> Duration>(
        &self,
        candidates: &[Backend],
        is_known: impl Fn(Backend) -> bool,
        timer: impl Fn(Backend) -> Option<T>,
    ) -> Backend {
        let at = |place: u8| candidates.get(usize::from(place)).copied();
        if let Some(chosen) = at(self.0.load(Ordering::Acquire)) {
            return chosen;
        }
        let known = candidates.iter().position(|candidate| is_known(*candidate));
        let place = known.unwrap_or_else(|| Self::quickest(candidates, timer));
        let place = u8::try_from(place).unwrap_or(0);
        let first = self.0.compare_exchange(Self::OPEN, place, Ordering::AcqRel, Ordering::Acquire);
        at(first.map_or_else(|first| first, |_| place)).unwrap_or(Backend::RustCrypto)
    }

    /// The candidates take turns, so that a slow moment affects all of them.
    fn quickest<T: FnMut() -> Duration>(
        candidates: &[Backend],
        timer: impl Fn(Backend) -> Option<T>,
    ) -> usize {
        let mut runs: Vec<_> =
            candidates.iter().map(|candidate| (Duration::MAX, timer(*candidate))).collect();
        for _ in 0..Self::RUNS {
            for (best, timer) in &mut runs {
                *best = timer.as_mut().map_or(*best, |time| time().min(*best));
            }
        }
        let quickest = runs.iter().enumerate().min_by_key(|(_, (best, _))| *best);
        quickest.map_or(0, |(place, _)| place)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const TWO: [Backend; 2] = [Backend::RustCrypto, Backend::Fastest];

    /// A stopwatch that shows these times in turn, in nanoseconds.
    fn showing(times: &[u64]) -> impl FnMut() -> Duration {
        let mut left = times.iter().copied().cycle();
        move || Duration::from_nanos(left.next().unwrap())
    }

    fn choose(first: &[u64], second: &[u64]) -> Backend {
        let timer = |backend| Some(showing(if backend == TWO[0] { first } else { second }));
        Choice::open().of(&TWO, |_| false, timer)
    }

    #[test]
    fn the_quickest_run_of_each_counts_so_slow_moments_change_nothing() {
        assert_eq!(choose(&[100], &[101]), TWO[0]);
        assert_eq!(choose(&[101], &[100]), TWO[1]);
        assert_eq!(choose(&[100], &[100]), TWO[0], "the likelier one");
        // The machine stalls in all runs of the faster one but the last.
        let stalls = [9000, 9000, 9000, 9000, 9000, 9000, 9000, 50];
        assert_eq!(choose(&[60], &stalls), TWO[1]);
        assert_eq!(choose(&stalls, &[60]), TWO[0]);
    }

    #[test]
    fn a_backend_without_the_suite_is_not_chosen_and_what_the_processor_tells_is_not_measured() {
        let timer = |backend| (backend == TWO[1]).then(|| showing(&[5]));
        assert_eq!(Choice::open().of(&TWO, |_| false, timer), TWO[1]);
        let timer = |_| -> Option<fn() -> Duration> { panic!("it is known") };
        assert_eq!(Choice::open().of(&TWO, |backend| backend == TWO[1], timer), TWO[1]);
    }

    #[test]
    fn it_is_made_once_and_threads_that_come_together_agree() {
        let again = |_| -> Option<fn() -> Duration> { panic!("it was made") };
        for _ in 0..200 {
            let (choice, measured, together) =
                (Choice::open(), AtomicUsize::new(0), Barrier::new(4));
            let choices: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| {
                            together.wait();
                            // Each would choose another one than the thread before it.
                            let n = measured.fetch_add(1, Ordering::SeqCst);
                            let time = move |backend| match (backend == TWO[0], n % 2 == 0) {
                                (true, true) | (false, false) => 1,
                                _ => 2,
                            };
                            let timer = |backend| Some(move || Duration::from_nanos(time(backend)));
                            choice.of(&TWO, |_| false, timer)
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(choices.iter().all(|chosen| *chosen == choices[0]), "{choices:?}");
            assert_eq!(choice.of(&TWO, |_| false, again), choices[0]);
        }
    }

    #[test]
    fn the_default_is_the_only_one_with_assembler_or_the_fastest_of_several() {
        let expected = match Backend::all() {
            [only] | [_, only] => *only,
            _ => Backend::Fastest,
        };
        assert_eq!(Backend::default(), expected);
    }
}
