//! Whole messages, opened with the right KEK, context and AAD.
//!
//! The first byte of the input chooses a genuine message, to which the rest is applied as a list of
//! [`edit`]s; or, as 255, says that the rest is the message. Genuine are messages of every suite
//! and both forms, sealed by this process and, so that the second mode has something to start from,
//! by an earlier one: the seeds `kept-*`.
//!
//! - Whatever opens gives the plaintext that was sealed, and is a genuine message but for its
//!   wrapped keys and their length.
//! - A genuine message opens. What opens without a cached DEK opens with it, and in place if it
//!   carries its wrapped keys.
//! - A buffer that was not opened is as it was, or its payload is wiped.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pollster::block_on;
use waxseal::{Aad, EncryptionContext, Envelope, Error, ErrorKind, Sealed, WrappedKeys};
use waxseal_fuzz::{AAD, Genuine, PLAINTEXT, SUITES, context, reader, seal};

const HEADER_LEN: usize = 40;
const TAG_LEN: usize = 16;
const IS_THE_MESSAGE: u8 = 255;

/// What does not change between inputs.
struct Fixture {
    context: EncryptionContext,
    genuine: Vec<Genuine>,
    /// An envelope that has cached the DEK of every genuine message.
    warm: Envelope,
}

static FIXTURE: OnceLock<Fixture> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    let fixture = FIXTURE.get_or_init(Fixture::new);
    let message = if *choice == IS_THE_MESSAGE {
        rest.to_vec()
    } else {
        let mut message = fixture.choose(*choice).bytes.clone();
        rest.chunks_exact(4).for_each(|change| edit(&mut message, change, fixture));
        message
    };
    fixture.check(&message);
});

/// One change of a message, in four bytes: what to do, where (`u16`), and a value.
fn edit(message: &mut Vec<u8>, change: &[u8], fixture: &Fixture) {
    let &[what, low, high, value] = change else { return };
    let at = usize::from(u16::from_le_bytes([low, high])).min(message.len());
    let other = fixture.choose(value);
    match what % 6 {
        0 => message.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= value),
        1 => message.truncate(at),
        2 => message.insert(at, value),
        3 => drop(message.drain(at..message.len().min(at + usize::from(value)))),
        // From there on as in the other message.
        4 => drop(message.splice(at.., other.bytes.iter().skip(at).copied())),
        // The wrapped keys of the other message.
        _ => {
            let Some((Parts { nonce, payload_and_tag, .. }, keys)) =
                Parts::of(message).zip(Parts::of(&other.bytes).map(|parts| parts.wrapped_keys))
            else {
                return;
            };
            let wrapped_len = u16::try_from(keys.len()).unwrap().to_le_bytes();
            *message = [
                &message[..6],
                &wrapped_len,
                &message[8..HEADER_LEN],
                nonce,
                keys,
                payload_and_tag,
            ]
            .concat();
        }
    }
}

impl Fixture {
    fn new() -> Self {
        let kept: [(&[u8], &[u8]); 3] = [
            (
                include_bytes!("../seeds/open/kept-1-embedded"),
                include_bytes!("../seeds/open/kept-1-compact"),
            ),
            (
                include_bytes!("../seeds/open/kept-2-embedded"),
                include_bytes!("../seeds/open/kept-2-compact"),
            ),
            (
                include_bytes!("../seeds/open/kept-3-embedded"),
                include_bytes!("../seeds/open/kept-3-compact"),
            ),
        ];
        let mut genuine: Vec<Genuine> = SUITES.into_iter().flat_map(seal).collect();
        for (embedded, compact) in kept {
            let wrapped_keys =
                WrappedKeys::try_from(Parts::of(&embedded[1..]).unwrap().wrapped_keys).unwrap();
            let of = |seed: &[u8]| Genuine {
                bytes: seed[1..].to_vec(),
                wrapped_keys: wrapped_keys.clone(),
            };
            genuine.extend([of(embedded), of(compact)]);
        }
        let (context, warm) = (context(), reader());
        for Genuine { bytes, wrapped_keys } in &genuine {
            block_on(warm.decrypt(&context, Aad::from(AAD), Sealed::compact(bytes, wrapped_keys)))
                .unwrap();
        }
        Self { context, genuine, warm }
    }

    fn choose(&self, choice: u8) -> &Genuine {
        &self.genuine[usize::from(choice) % self.genuine.len()]
    }

    fn check(&self, message: &[u8]) {
        // A cold reader gets the wrapped keys of the DEK that the message names, if there is one.
        let named =
            |genuine: &&Genuine| message.get(8..HEADER_LEN) == genuine.bytes.get(8..HEADER_LEN);
        let keys = &self.genuine.iter().find(named).unwrap_or(&self.genuine[0]).wrapped_keys;
        let cold = block_on(reader().decrypt(
            &self.context,
            Aad::from(AAD),
            Sealed::compact(message, keys),
        ));
        let warm = block_on(self.warm.decrypt(
            &self.context,
            Aad::from(AAD),
            Sealed::compact(message, keys),
        ));
        // A compact message without its wrapped keys is refused, though its DEK is cached.
        let alone = block_on(self.warm.decrypt(&self.context, Aad::from(AAD), message));
        let mut buffer = message.to_vec();
        let in_place =
            block_on(self.warm.decrypt_in_place(&self.context, Aad::from(AAD), &mut buffer));

        let plaintexts = [&cold, &warm, &alone].map(|opened| opened.as_deref().ok());
        for plaintext in plaintexts.into_iter().chain([in_place.as_deref().ok()]).flatten() {
            assert_eq!(plaintext, PLAINTEXT);
            assert!(self.genuine.iter().any(|genuine| same_but_for_keys(&genuine.bytes, message)));
        }
        assert!(cold.is_err() || warm.is_ok());
        assert_eq!(in_place.as_ref().err().map(Error::kind), alone.as_ref().err().map(Error::kind));
        match alone.as_ref().err().map(Error::kind) {
            Some(ErrorKind::MissingWrappedKeys) => assert_eq!(message.get(6..8), Some(&[0, 0][..])),
            kind => assert_eq!(kind, warm.as_ref().err().map(Error::kind)),
        }
        if self.genuine.iter().any(|genuine| genuine.bytes == message) {
            assert!(cold.is_ok());
        }
        if let Err(error) = in_place
            && buffer != message
        {
            assert_eq!(error.kind(), ErrorKind::Invalid);
            let Parts { payload_and_tag, .. } = Parts::of(message).unwrap();
            let start = message.len() - payload_and_tag.len();
            let end = message.len() - TAG_LEN;
            assert_eq!((&buffer[..start], &buffer[end..]), (&message[..start], &message[end..]));
            assert!(buffer[start..end].iter().all(|byte| *byte == 0));
        }
    }
}

/// A message, taken apart as docs/format.md says.
struct Parts<'m> {
    header: &'m [u8],
    nonce: &'m [u8],
    wrapped_keys: &'m [u8],
    payload_and_tag: &'m [u8],
}

impl<'m> Parts<'m> {
    /// `None` for what is too short.
    fn of(message: &'m [u8]) -> Option<Self> {
        let (header, rest) = message.split_at_checked(HEADER_LEN)?;
        let (nonce, rest) = rest.split_at_checked(if header[4] == 3 { 24 } else { 12 })?;
        let wrapped_len = u16::from_le_bytes([header[6], header[7]]);
        let (wrapped_keys, payload_and_tag) = rest.split_at_checked(wrapped_len.into())?;
        Some(Self { header, nonce, wrapped_keys, payload_and_tag })
    }
}

fn same_but_for_keys(genuine: &[u8], message: &[u8]) -> bool {
    let essentials = |message| {
        let Parts { header, nonce, payload_and_tag, .. } = Parts::of(message)?;
        Some((&header[..6], &header[8..], nonce, payload_and_tag))
    };
    essentials(genuine).is_some() && essentials(genuine) == essentials(message)
}
