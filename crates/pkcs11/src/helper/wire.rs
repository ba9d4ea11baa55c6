//! What the service and a helper say to each other, and its bytes. The other end may have crashed,
//! or lie: bytes that are no message are an error. No message has a DEK or a PIN in it: see
//! [`super::channel`].
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use waxseal::kek::KekErrorClass;

use crate::errors::{After, Failure};
use crate::key::{IvSource, Versions};
use crate::ledger::Outcome;
use crate::token::{KeyName, Known, TokenName};

/// Longest text of an error that is taken over, in characters.
const LONGEST_TEXT: usize = 2000;

/// What the head of a message says: the lengths of the message and of the secret after it.
pub(super) fn lengths(head: [u8; 6]) -> (usize, usize) {
    let [a, b, c, d, e, f] = head;
    let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    (len, usize::from(u16::from_le_bytes([e, f])))
}

/// Asked by the service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Request {
    SetUp(Setup),
    Open {
        was_seen: bool,
    },
    Close,
    FindKeys,
    Check,
    /// The secret is the DEK.
    Wrap {
        reread: bool,
        aad: [u8; 32],
    },
    Unwrap {
        reread: bool,
        aad: [u8; 32],
        wrapped: Vec<u8>,
    },
    Generate {
        reread: bool,
        aad: [u8; 32],
    },
    /// The secret is the PIN that was wanted.
    Pin,
    NoPin(Failure),
}

/// Said by the helper.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    PinWanted {
        token: String,
        is_counted: bool,
    },
    Settled(Outcome),
    /// The end of a request. The secret is the DEK, if there is one.
    Done {
        known: Option<Known>,
        way: Option<IvSource>,
        result: Result<Vec<u8>, Failure>,
    },
}

/// What a helper has to know of the KEK.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Setup {
    pub(super) module: PathBuf,
    pub(super) name: TokenName,
    pub(super) key: KeyName,
    pub(super) logs_in: bool,
    /// What the caller chose, and what was found.
    pub(super) chosen: Option<IvSource>,
    pub(super) way: Option<IvSource>,
    pub(super) key_max_age: Duration,
}

/// A value as bytes. `take` returns `None` for bytes that are none.
pub(super) trait Wire: Sized {
    fn put(&self, to: &mut Vec<u8>);
    fn take(from: &mut &[u8]) -> Option<Self>;
}

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        let (bytes, rest) = from.split_first_chunk::<N>()?;
        *from = rest;
        Some(*bytes)
    }
}

/// Values that are written as something else.
macro_rules! wire_as {
    ($($type:ty as $other:ty: |$value:ident| $put:expr, |$taken:ident| $take:expr;)*) => {$(
        impl Wire for $type {
            fn put(&self, to: &mut Vec<u8>) {
                let $value = self;
                let other: $other = $put;
                other.put(to);
            }

            fn take(from: &mut &[u8]) -> Option<Self> {
                let $taken = <$other>::take(from)?;
                $take
            }
        }
    )*};
}

/// Fields one after the other, behind a byte for the variant of an enum.
macro_rules! wire {
    ($($type:ident { $($field:ident),* })*) => {$(
        impl Wire for $type {
            fn put(&self, to: &mut Vec<u8>) {
                let Self { $($field),* } = self;
                $($field.put(to);)*
            }

            fn take(from: &mut &[u8]) -> Option<Self> {
                $(let $field = Wire::take(from)?;)*
                Some(Self { $($field),* })
            }
        }
    )*};
    ($(enum $type:ident { $($tag:literal $variant:ident { $($field:tt : $name:ident),* })* })*) => {$(
        impl Wire for $type {
            fn put(&self, to: &mut Vec<u8>) {
                match self {
                    $(Self::$variant { $($field: $name),* } => {
                        to.push($tag);
                        $($name.put(to);)*
                    })*
                }
            }

            fn take(from: &mut &[u8]) -> Option<Self> {
                let [tag] = Wire::take(from)?;
                match tag {
                    $($tag => {
                        $(let $name = Wire::take(from)?;)*
                        Some(Self::$variant { $($field: $name),* })
                    })*
                    _ => None,
                }
            }
        }
    )*};
}

const CLASSES: [KekErrorClass; 5] = [
    KekErrorClass::Unavailable,
    KekErrorClass::Throttled,
    KekErrorClass::Denied,
    KekErrorClass::Invalid,
    KekErrorClass::Misconfigured,
];

wire_as! {
    u8 as [u8; 1]: |byte| [*byte], |bytes| { let [byte] = bytes; Some(byte) };
    u32 as [u8; 4]: |number| number.to_le_bytes(), |bytes| Some(Self::from_le_bytes(bytes));
    u64 as [u8; 8]: |number| number.to_le_bytes(), |bytes| Some(Self::from_le_bytes(bytes));
    bool as u8: |flag| Self::into(*flag), |byte| if byte < 2 { Some(byte == 1) } else { None };
    String as Vec<u8>: |text| text.as_bytes().to_vec(), |bytes| Self::from_utf8(bytes).ok();
    PathBuf as Vec<u8>: |path| {
        std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec()
    }, |bytes| {
        Some(std::ffi::OsString::into(std::os::unix::ffi::OsStringExt::from_vec(bytes)))
    };
    Duration as u64: |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        |millis| Some(Self::from_millis(millis));
    KekErrorClass as u8: |class| {
        let at = CLASSES.iter().position(|other| other == class).unwrap_or(0);
        u8::try_from(at).unwrap_or(0)
    }, |at| CLASSES.get(usize::from(at)).copied();
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, to: &mut Vec<u8>) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(to);
        self.iter().for_each(|item| item.put(to));
    }

    /// Each takes a byte at least, so a count that is too high ends with the frame.
    fn take(from: &mut &[u8]) -> Option<Self> {
        (0..u32::take(from)?).map(|_| T::take(from)).collect()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, to: &mut Vec<u8>) {
        self.is_some().put(to);
        self.iter().for_each(|value| value.put(to));
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        if bool::take(from)? { T::take(from).map(Some) } else { Some(None) }
    }
}

impl<T: Wire> Wire for Result<T, Failure> {
    fn put(&self, to: &mut Vec<u8>) {
        self.is_ok().put(to);
        match self {
            Ok(value) => value.put(to),
            Err(failure) => failure.put(to),
        }
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        Some(if bool::take(from)? { Ok(T::take(from)?) } else { Err(Failure::take(from)?) })
    }
}

wire! {
    TokenName { label, serial, manufacturer, model, slot_id }
    KeyName { label, id, versions }
    Setup { module, name, key, logs_in, chosen, way, key_max_age }
    Known { current, versions, notes, has_generator }
    Failure { class, message, asked, after, is_lost, is_ended, is_bare }
}

wire! {
    enum After { 0 Keep {} 1 Drop {} 2 Reconnect {} 3 FindKey {} 4 NoSession {} }
    enum IvSource { 0 Caller {} 1 Token {} 2 Appended {} 3 Message {} }
    enum Versions { 0 Single {} 1 ById {} }
    enum Outcome {
        0 LoggedIn {}
        1 NotTried {}
        2 Refused { 0: said }
        3 Failed { said: said, is_down: is_down }
    }
    enum Request {
        0 SetUp { 0: setup }
        1 Open { was_seen: was_seen }
        2 Close {}
        3 FindKeys {}
        4 Check {}
        5 Wrap { reread: reread, aad: aad }
        6 Unwrap { reread: reread, aad: aad, wrapped: wrapped }
        7 Generate { reread: reread, aad: aad }
        8 Pin {}
        9 NoPin { 0: failure }
    }
    enum Reply {
        0 PinWanted { token: token, is_counted: is_counted }
        1 Settled { 0: outcome }
        2 Done { known: known, way: way, result: result }
    }
}

impl Reply {
    /// Texts of a helper end up in errors and logs.
    pub(super) fn cleaned(mut self) -> Self {
        let clean = |text: &mut String| {
            let shown = |c: char| if c.is_control() { '\u{FFFD}' } else { c };
            *text = text.chars().take(LONGEST_TEXT).map(shown).collect();
        };
        match &mut self {
            Self::PinWanted { token, .. } => clean(token),
            Self::Settled(Outcome::Refused(said) | Outcome::Failed { said, .. }) => clean(said),
            Self::Settled(_) => {}
            Self::Done { known, result, .. } => {
                if let Some(known) = known {
                    known.versions.iter_mut().chain(&mut known.notes).for_each(clean);
                }
                if let Err(failure) = result {
                    clean(&mut failure.message);
                }
            }
        }
        self
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(value: &impl Wire) -> Vec<u8> {
        let mut bytes = Vec::new();
        value.put(&mut bytes);
        bytes
    }

    fn read<T: Wire>(mut bytes: &[u8]) -> Option<T> {
        let value = T::take(&mut bytes)?;
        bytes.is_empty().then_some(value)
    }

    fn a_setup() -> Setup {
        Setup {
            module: "/lib/module.so".into(),
            name: TokenName {
                label: Some("prod".to_owned()),
                serial: None,
                manufacturer: Some(String::new()),
                model: None,
                slot_id: Some(u64::MAX),
            },
            key: KeyName {
                label: "orders".to_owned(),
                id: Some(vec![0, 255]),
                versions: Versions::ById,
            },
            logs_in: true,
            chosen: None,
            way: Some(IvSource::Message),
            key_max_age: Duration::from_millis(1234),
        }
    }

    fn failures() -> Vec<Failure> {
        let after = [After::Keep, After::Drop, After::Reconnect, After::FindKey, After::NoSession];
        let all = CLASSES.into_iter().flat_map(|class| after.map(|after| (class, after)));
        all.map(|(class, after)| {
            let failure = Failure::new(class, format!("{class}")).after(after).lost();
            Failure { is_bare: true, ..failure.without_asking() }
        })
        .collect()
    }

    fn requests() -> Vec<Request> {
        let (reread, aad) = (true, [7; 32]);
        let mut all = vec![
            Request::SetUp(a_setup()),
            Request::Open { was_seen: false },
            Request::Close,
            Request::FindKeys,
            Request::Check,
            Request::Wrap { reread, aad },
            Request::Unwrap { reread, aad, wrapped: vec![1; 80] },
            Request::Generate { reread, aad },
            Request::Pin,
        ];
        all.extend(failures().into_iter().map(Request::NoPin));
        all
    }

    pub(in crate::helper) fn replies() -> Vec<Reply> {
        let known = Known {
            current: vec![2],
            versions: vec!["01".to_owned(), "02".to_owned()],
            notes: vec!["a note".to_owned()],
            has_generator: true,
        };
        let outcomes = [
            Outcome::LoggedIn,
            Outcome::NotTried,
            Outcome::Refused("no".to_owned()),
            Outcome::Failed { said: "down".to_owned(), is_down: true },
        ];
        let ways = [IvSource::Caller, IvSource::Token, IvSource::Appended, IvSource::Message];
        let done = |known, way, result| Reply::Done { known, way, result };
        let mut all = vec![
            Reply::PinWanted { token: "prod".to_owned(), is_counted: true },
            done(Some(known), None, Ok(vec![1, 2])),
        ];
        all.extend(outcomes.map(Reply::Settled));
        all.extend(ways.map(|way| done(None, Some(way), Ok(Vec::new()))));
        all.extend(failures().into_iter().map(|failure| done(None, None, Err(failure))));
        all
    }

    #[test]
    fn what_is_written_is_read_back_and_every_truncation_is_garbage() {
        fn check<T: Wire + PartialEq + std::fmt::Debug>(messages: &[T]) {
            for message in messages {
                let bytes = bytes_of(message);
                assert_eq!(read::<T>(&bytes).as_ref(), Some(message));
                for len in 0..bytes.len() {
                    assert_eq!(read::<T>(&bytes[..len]), None, "{len} of {message:?}");
                }
                assert_eq!(read::<T>(&[&bytes[..], &[0]].concat()), None, "{message:?}");
            }
        }
        check(&requests());
        check(&replies());
    }

    #[test]
    fn texts_of_a_helper_are_bounded_and_have_no_control_characters() {
        let long = format!("a\u{1b}[2J\n{}", "x".repeat(100_000));
        let failure = Failure::unavailable(long.clone());
        let known = Known { notes: vec![long.clone()], ..Known::default() };
        let done = Reply::Done { known: Some(known), way: None, result: Err(failure) };
        for reply in [
            Reply::PinWanted { token: long.clone(), is_counted: false },
            Reply::Settled(Outcome::Refused(long.clone())),
            done,
        ] {
            let shown = format!("{:?}", reply.cleaned());
            assert!(shown.len() < 3 * LONGEST_TEXT, "{}", shown.len());
            assert!(!shown.contains("\\u{1b}") && !shown.contains("\\n"), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_read_panics_or_takes_memory(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            tag in 0_u8..12,
        ) {
            let _ = read::<Request>(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = tag;
            }
            let _ = read::<Request>(&bytes);
            if let Some(Reply::Done { known: Some(known), .. }) = read::<Reply>(&bytes) {
                prop_assert!(known.versions.len() + known.notes.len() <= bytes.len());
            }
        }
    }
}
