//! What this process knows about the PINs that it gave to tokens. A token locks after a few wrong
//! PINs, so a PIN that is wrong, or may be, is given only once, whichever provider has it,
//! whichever module is used, and whatever happens in between.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::errors::Failure;
use crate::pin::Pin;

/// The first pause before retrying a PIN after an outage of the token, or the death of the module's
/// process, ended a login.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How often a PIN that never logged in is given to modules that die during the login. Tokens lock
/// after three or more wrong PINs.
const MOST_UNANSWERED: u32 = 2;

/// How long a login waits for another one at the same token, which may hang in the module.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// By the name of the token, which it has in all modules.
static TOKENS: Mutex<Option<HashMap<String, Tries>>> = Mutex::new(None);
static SETTLED: Condvar = Condvar::new();

#[derive(Default)]
struct Tries {
    /// A login is being tried.
    is_busy: bool,
    /// Hashes of PINs that are not given again, and why.
    refused: Vec<([u8; 32], String)>,
    /// The hash of the PIN that logged in last.
    accepted: Option<[u8; 32]>,
    /// PINs that have had no answer yet and may be tried again.
    unanswered: Vec<Unanswered>,
}

/// A PIN about which the token's verdict is unknown.
struct Unanswered {
    hash: [u8; 32],
    /// The number of times in a row.
    times: u32,
    at: Instant,
}

impl Unanswered {
    fn is_over(&self) -> bool {
        let doublings = 2_u32.saturating_pow(self.times.saturating_sub(1));
        self.at.elapsed() >= FIRST_PAUSE.saturating_mul(doublings).min(LONGEST_PAUSE)
    }
}

impl Tries {
    /// Counts that a PIN got no answer. Returns how often in a row.
    fn got_no_answer(&mut self, hash: [u8; 32]) -> u32 {
        let before = self.unanswered.iter().position(|other| other.hash == hash);
        let before = before.map_or(0, |at| self.unanswered.swap_remove(at).times);
        let times = before.saturating_add(1);
        self.unanswered.push(Unanswered { hash, times, at: Instant::now() });
        times
    }

    fn refuse(&mut self, hash: [u8; 32], why: String) {
        self.unanswered.retain(|other| other.hash != hash);
        self.refused.push((hash, why));
    }
}

/// The outcome of a login.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    LoggedIn,
    /// The token certainly did not look at the PIN.
    NotTried,
    /// The token refused the PIN, with this text.
    Refused(String),
    /// It failed without a verdict on the PIN, which may have counted as wrong.
    Failed {
        said: String,
        /// The token did not answer anything else either, or the module died.
        is_down: bool,
    },
}

/// A PIN that one caller may give to a token once.
struct Attempt {
    token: String,
    hash: [u8; 32],
    pin: Zeroizing<String>,
    outcome: Option<Outcome>,
}

/// Shows no PIN.
impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attempt({:?})", self.token)
    }
}

/// Supplies the PIN of a login, and learns the outcome.
pub(crate) trait PinGiver: Send + Sync {
    /// Returns the PIN for one login at this token. `is_counted`: the token reports a wrong PIN
    /// since the last login.
    fn begin(&self, token: &str, is_counted: bool) -> Result<Box<dyn Attempted>, Failure>;

    /// Allows one more try of PINs that the token refused.
    fn forget_refused(&self);
}

/// A login that is being tried.
pub(crate) trait Attempted {
    fn pin(&self) -> &str;
    fn settle(self: Box<Self>, outcome: Outcome) -> Result<(), Failure>;
}

/// The PIN of a provider of this process.
pub(crate) struct OwnPin {
    pin: Pin,
    /// The token that it was given to last.
    token: Mutex<Option<String>>,
}

impl OwnPin {
    pub(crate) fn new(pin: Pin) -> Self {
        Self { pin, token: Mutex::new(None) }
    }
}

impl PinGiver for OwnPin {
    fn begin(&self, token: &str, is_counted: bool) -> Result<Box<dyn Attempted>, Failure> {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.to_owned());
        Ok(Box::new(begin(token, &self.pin, is_counted)?))
    }

    fn forget_refused(&self) {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        forget(token.as_deref());
    }
}

fn lock() -> MutexGuard<'static, Option<HashMap<String, Tries>>> {
    TOKENS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the PIN for one login. Waits while another login at this token is being tried.
fn begin(token: &str, pin: &Pin, is_counted: bool) -> Result<Attempt, Failure> {
    let mut tokens = lock();
    let start = Instant::now();
    while tokens.as_ref().and_then(|tokens| tokens.get(token)).is_some_and(|tries| tries.is_busy) {
        let Some(left) = LONGEST_WAIT.checked_sub(start.elapsed()) else {
            let text = "log in: another login at this token has not ended yet";
            return Err(Failure::unavailable(text).without_asking());
        };
        tokens = SETTLED.wait_timeout(tokens, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    let tries = tokens.get_or_insert_default().entry(token.to_owned()).or_default();
    let pin = pin.read()?;
    let hash = hash_of(&pin)?;
    if let Some((_, why)) = tries.refused.iter().find(|(refused, _)| *refused == hash) {
        let text = format!("{why}; this PIN was refused before, and is not tried again");
        return Err(Failure::misconfigured(text).without_asking());
    }
    if let Some(unanswered) = tries.unanswered.iter().find(|other| other.hash == hash) {
        if is_counted {
            let why = "log in: the last login got no answer, and the token has counted a wrong PIN";
            tries.refuse(hash, why.to_owned());
            return Err(Failure::misconfigured(why).without_asking());
        }
        if !unanswered.is_over() {
            let text = "log in: the token went down, or the module died, during the last login; \
                        the PIN is not tried again yet";
            return Err(Failure::unavailable(text).without_asking());
        }
    }
    tries.is_busy = true;
    Ok(Attempt { token: token.to_owned(), hash, pin, outcome: None })
}

impl Attempted for Attempt {
    fn pin(&self) -> &str {
        &self.pin
    }

    fn settle(mut self: Box<Self>, outcome: Outcome) -> Result<(), Failure> {
        self.outcome = Some(outcome);
        Ok(())
    }
}

/// An attempt that is dropped ended with its module: in a panic, or with a helper process.
impl Drop for Attempt {
    fn drop(&mut self) {
        let mut tokens = lock();
        let tries = tokens.get_or_insert_default().entry(self.token.clone()).or_default();
        tries.is_busy = false;
        // It logged in before, and nothing suggests that it is wrong now.
        let was_accepted = tries.accepted == Some(self.hash);
        match self.outcome.take() {
            Some(Outcome::LoggedIn) => {
                tries.accepted = Some(self.hash);
                tries.unanswered.clear();
            }
            Some(Outcome::NotTried) => {}
            Some(Outcome::Refused(said)) => tries.refuse(self.hash, said),
            Some(Outcome::Failed { is_down: true, .. }) if was_accepted => {
                tries.got_no_answer(self.hash);
            }
            Some(Outcome::Failed { said, .. }) => {
                let why = format!("{said}, which may have counted as a wrong PIN");
                tries.refuse(self.hash, why);
            }
            None => {
                let times = tries.got_no_answer(self.hash);
                if times >= MOST_UNANSWERED && !was_accepted {
                    let why = "log in: the module died each time, which may have counted as a \
                               wrong PIN";
                    tries.refuse(self.hash, why.to_owned());
                }
            }
        }
        drop(tokens);
        SETTLED.notify_all();
    }
}

/// Forgets the PINs that this token refused, or all tokens if none is named.
fn forget(token: Option<&str>) {
    let mut tokens = lock();
    for (name, tries) in tokens.get_or_insert_default() {
        if token.is_none_or(|token| token == name) {
            tries.refused.clear();
            tries.unanswered.clear();
        }
    }
}

/// Returns a hash under a salt of this process, which is enough to recognise a PIN.
fn hash_of(pin: &Zeroizing<String>) -> Result<[u8; 32], Failure> {
    static SALT: OnceLock<[u8; 32]> = OnceLock::new();
    let salt = match SALT.get() {
        Some(salt) => salt,
        None => {
            let mut salt = [0; 32];
            getrandom::fill(&mut salt).map_err(|error| {
                let text = format!("log in: the random number generator failed: {error}");
                Failure::unavailable(text).without_asking()
            })?;
            SALT.get_or_init(|| salt)
        }
    };
    Ok(Sha256::new_with_prefix(salt).chain_update(pin.as_bytes()).finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use waxseal::kek::KekErrorClass::{Misconfigured, Unavailable};

    fn pin(text: &str) -> Pin {
        Pin::Given(Zeroizing::new(text.to_owned()))
    }

    fn settle(token: &str, text: &str, outcome: Outcome) {
        Box::new(begin(token, &pin(text), false).unwrap()).settle(outcome).unwrap();
    }

    fn failed(is_down: bool) -> Outcome {
        Outcome::Failed { said: "log in: a code".to_owned(), is_down }
    }

    #[test]
    fn a_pin_that_never_logged_in_is_given_once_whatever_the_failure() {
        let failures = [failed(false), failed(true), Outcome::Refused("wrong".to_owned())];
        for (n, failure) in failures.into_iter().enumerate() {
            let token = format!("once {n}");
            settle(&token, "1", failure);
            for _ in 0..3 {
                let again = begin(&token, &pin("1"), false).unwrap_err();
                assert_eq!((again.class, again.asked), (Misconfigured, false));
            }
            settle(&token, "2", Outcome::LoggedIn);
            assert!(begin(&token, &pin("1"), false).is_err(), "it is remembered");
            assert!(
                begin(&format!("another {n}"), &pin("1"), false).is_ok(),
                "each token for itself"
            );
            forget(Some(&token));
            settle(&token, "1", Outcome::LoggedIn);
        }
    }

    #[test]
    fn a_pin_that_logged_in_waits_for_a_token_that_went_down_and_is_given_up_by_one_that_is_well() {
        let token = "accepted";
        settle(token, "1", Outcome::LoggedIn);
        settle(token, "1", failed(true));
        let again = begin(token, &pin("1"), false).unwrap_err();
        assert_eq!((again.class, again.asked), (Unavailable, false));
        // Another PIN is another matter.
        settle(token, "2", Outcome::NotTried);
        std::thread::sleep(FIRST_PAUSE);
        settle(token, "1", failed(false));
        assert_eq!(begin(token, &pin("1"), false).unwrap_err().class, Misconfigured);
    }

    /// A login whose module dies.
    fn die(token: &str, text: &str) {
        drop(begin(token, &pin(text), false).unwrap());
    }

    #[test]
    fn a_module_that_dies_over_a_pin_that_never_logged_in_gets_it_once_more() {
        let token = "died";
        die(token, "1");
        let again = begin(token, &pin("1"), false).unwrap_err();
        assert_eq!((again.class, again.asked), (Unavailable, false));
        // Another PIN is another matter.
        settle(token, "2", Outcome::NotTried);
        std::thread::sleep(FIRST_PAUSE);
        die(token, "1");
        std::thread::sleep(FIRST_PAUSE * 2);
        assert_eq!(begin(token, &pin("1"), false).unwrap_err().class, Misconfigured);
        // A login in between shows that everything works.
        let token = "died and not";
        for _ in 0..3 {
            die(token, "1");
            std::thread::sleep(FIRST_PAUSE);
            settle(token, "1", Outcome::LoggedIn);
        }
    }

    #[test]
    fn a_module_that_dies_over_a_pin_that_logged_in_gets_it_less_and_less_often() {
        let token = "died later";
        settle(token, "1", Outcome::LoggedIn);
        let (start, mut times) = (Instant::now(), 0);
        while start.elapsed() < FIRST_PAUSE * 4 {
            match begin(token, &pin("1"), false) {
                Ok(attempt) => {
                    times += 1;
                    drop(attempt);
                }
                Err(failure) => assert_eq!(failure.class, Unavailable),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(times, 3, "at once, after one pause, and after two more");
    }

    #[test]
    fn a_pin_without_an_answer_that_the_token_counted_as_wrong_is_not_given_again() {
        let token = "counted";
        settle(token, "1", Outcome::LoggedIn);
        // Somebody else's, and earlier.
        drop(begin(token, &pin("1"), true).unwrap());
        std::thread::sleep(FIRST_PAUSE);
        for is_counted in [true, false] {
            let again = begin(token, &pin("1"), is_counted).unwrap_err();
            assert_eq!((again.class, again.asked), (Misconfigured, false));
        }
    }

    #[test]
    fn of_many_that_try_one_pin_at_once_one_gives_it() {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn(|| match begin("many", &pin("1"), false) {
                    Ok(attempt) => {
                        std::thread::sleep(Duration::from_millis(20));
                        Box::new(attempt).settle(failed(false)).unwrap();
                        1
                    }
                    Err(_) => 0,
                })
            })
            .collect();
        assert_eq!(threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>(), 1);
    }

    #[test]
    fn what_is_shown_of_an_attempt_has_no_pin() {
        let attempt = begin("shown", &pin("918273"), false).unwrap();
        assert!(!format!("{attempt:?}").contains("918273"));
    }
}
