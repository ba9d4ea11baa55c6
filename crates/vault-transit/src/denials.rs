//! What refused calls showed about policies, and when a login may be made because of one.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::session::is_same;
use crate::transport::Token;

/// How long a denial is remembered if no login could help.
const BELIEVED_FOR: Duration = Duration::from_secs(10);
/// The pause between two logins that were made because of a refused call and did not help.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What is assumed about policies.
#[derive(Default)]
pub(crate) struct Denials {
    /// The token that was refused although it was alive.
    whose: Option<Token>,
    /// The paths at which it was refused, and until when that is assumed.
    believed: Vec<(String, Instant)>,
    /// Paths that caused a login and have not worked since.
    in_vain: HashSet<String>,
    pause: Duration,
    /// The earliest time for a login because of a refused call.
    next_login: Option<Instant>,
}

impl Denials {
    pub(crate) fn are_believed(&self, token: Option<&Token>, path: &str) -> bool {
        let now = Instant::now();
        is_same(self.whose.as_ref(), token)
            && self.believed.iter().any(|(denied, until)| denied == path && now < *until)
    }

    pub(crate) fn believe(&mut self, token: Option<&Token>, path: &str, makes_tokens: bool) {
        let until = match self.next_login {
            Some(next) if makes_tokens => next,
            _ => Instant::now() + BELIEVED_FOR,
        };
        if !is_same(self.whose.as_ref(), token) {
            (self.whose, self.believed) = (token.map(Token::share), Vec::new());
        }
        self.believed.retain(|(denied, _)| denied != path);
        self.believed.push((path.to_owned(), until));
    }

    pub(crate) fn may_log_in(&self) -> bool {
        self.next_login.is_none_or(|next| Instant::now() >= next)
    }

    /// Records a login because of a refusal at `path`.
    pub(crate) fn log_in_because_of(&mut self, path: &str) {
        self.in_vain.insert(path.to_owned());
        self.pause =
            if self.pause.is_zero() { FIRST_PAUSE } else { (self.pause * 2).min(LONGEST_PAUSE) };
        self.next_login = Some(Instant::now() + self.pause);
    }

    pub(crate) fn worked(&mut self, path: &str) {
        self.believed.retain(|(denied, _)| denied != path);
        if self.in_vain.remove(path) && self.in_vain.is_empty() {
            (self.pause, self.next_login) = (Duration::ZERO, None);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.in_vain.is_empty() && self.believed.is_empty()
    }
}
