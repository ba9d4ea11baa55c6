//! Vault Transit's text form of a wrapped DEK: `vault:vN:BASE64`, where N is the version of the
//! key.
#![forbid(unsafe_code)]

/// The visible parts of a ciphertext of the Transit engine.
pub(crate) struct VaultCiphertext<'a> {
    pub(crate) text: &'a str,
    /// The version of the key that it claims to be made by.
    pub(crate) version: u32,
}

/// Nonce and tag of the shortest AEAD: nothing shorter is a ciphertext.
const MIN_BYTES: usize = 12 + 16;

impl<'a> VaultCiphertext<'a> {
    /// Reads a ciphertext. Returns `None` unless it has that form, with a version from 1 on and
    /// without bytes that the server would skip.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (digits, base64) = text.strip_prefix("vault:v")?.split_once(':')?;
        if digits.starts_with('0') || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let version = digits.parse().ok()?;
        let padding = base64.bytes().rev().take_while(|byte| *byte == b'=').count();
        let (data, _) = base64.split_at_checked(base64.len().checked_sub(padding)?)?;
        let well_formed = base64.len().is_multiple_of(4)
            && padding <= 2
            && data
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
            && data.len() / 4 * 3 >= MIN_BYTES - 1;
        well_formed.then_some(Self { text, version })
    }
}

#[cfg(test)]
mod tests {
    use super::VaultCiphertext;

    const BODY: &str =
        "0he6x3kMAMBZeESFOFlyHeAkQdwTE5EKgMpkk8Ytuo0KyUSUGJXAYKl8RgKEgfMe8kzXGKezRYS4HWZB";

    #[test]
    fn the_version_is_read_from_the_text() {
        for (version, text) in
            [(1, "vault:v1:"), (17, "vault:v17:"), (u32::MAX, "vault:v4294967295:")]
        {
            let text = format!("{text}{BODY}");
            let read = VaultCiphertext::read(text.as_bytes()).unwrap();
            assert_eq!((read.version, read.text), (version, &*text));
        }
    }

    #[test]
    fn whatever_else_is_refused_before_a_server_sees_it() {
        for text in [
            String::new(),
            "vault:v1:".into(),
            format!("vault:v0:{BODY}"),
            format!("vault:v01:{BODY}"),
            format!("vault:v+1:{BODY}"),
            format!("vault:v:{BODY}"),
            format!("vault:v4294967296:{BODY}"),
            format!("vault:1:{BODY}"),
            format!("Vault:v1:{BODY}"),
            format!("vault:v1:{BODY}\n"),
            format!("vault:v1:{BODY} "),
            format!("vault:v1:{}", &BODY[1..]),
            format!("vault:v1:{}", BODY.replace('A', "-")),
            format!("vault:v1:{}=", &BODY[4..]),
            format!("vault:v1:{}===", &BODY[3..]),
            format!("vault:v1:{}=AAA", &BODY[4..]),
            format!("vault:v1:{}", &BODY[..32]),
            "vault:v1:====".into(),
            format!("vault:v1:{BODY}é"),
        ] {
            assert!(VaultCiphertext::read(text.as_bytes()).is_none(), "{text:?}");
        }
        assert!(VaultCiphertext::read(&[b"vault:v1:\xFF", BODY.as_bytes()].concat()).is_none());
    }
}
