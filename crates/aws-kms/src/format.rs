//! KMS's formats: the ARN of a key, and the id of the key material that wrapped a DEK.
#![forbid(unsafe_code)]

/// The parts of the ARN of a KMS key, `arn:PARTITION:kms:REGION:ACCOUNT:key/ID`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct KeyArn<'a> {
    pub(crate) partition: &'a str,
    pub(crate) region: &'a str,
    pub(crate) account: &'a str,
    pub(crate) key: &'a str,
}

impl<'a> KeyArn<'a> {
    /// Reads an ARN. Returns `None` unless it has exactly that form: an alias must not be in a
    /// message.
    pub(crate) fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split(':');
        let mut next = || parts.next();
        let (arn, partition, service, region, account, resource) =
            (next()?, next()?, next()?, next()?, next()?, next()?);
        let key = resource.strip_prefix("key/")?;
        let is_word = |word: &str| {
            (1..=128).contains(&word.len())
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let well_formed = arn == "arn"
            && service == "kms"
            && parts.next().is_none()
            && partition.starts_with("aws")
            && [partition, region, key].into_iter().all(is_word)
            && account.len() == 12
            && account.bytes().all(|byte| byte.is_ascii_digit());
        well_formed.then_some(Self { partition, region, account, key })
    }

    /// Whether it is a multi-Region key. Related keys have the same id in several Regions, and each
    /// can unwrap what another wrapped.
    pub(crate) fn is_multi_region(&self) -> bool {
        self.key.starts_with("mrk-")
    }

    /// Whether it is the same key, or one related to it.
    pub(crate) fn is_related_to(&self, other: &KeyArn<'_>) -> bool {
        self.is_multi_region()
            && (self.partition, self.account, self.key)
                == (other.partition, other.account, other.key)
    }

    /// Returns the ARN of the related key in another Region.
    pub(crate) fn in_region(&self, region: &str) -> String {
        let Self { partition, account, key, .. } = self;
        format!("arn:{partition}:kms:{region}:{account}:key/{key}")
    }
}

/// Whether it is the ARN of an alias, `arn:PARTITION:kms:REGION:ACCOUNT:alias/NAME`.
pub(crate) fn is_alias_arn(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_-".contains(&byte);
    text.split_once(":alias/").is_some_and(|(account, name)| {
        !name.is_empty()
            && name.bytes().all(is_plain)
            && KeyArn::read(&format!("{account}:key/x")).is_some()
    })
}

/// The key material of a KMS key that wrapped a DEK: the 64 hexadecimal digits of a
/// `KeyMaterialId`, as bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct KeyMaterialId(pub(crate) [u8; 32]);

impl KeyMaterialId {
    /// Reads KMS's form. Returns `None` for anything else, which is then not kept.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let [high, low] = digits else { return None };
            let digit = |digit: u8| {
                char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
            };
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(bytes))
    }

    /// Reads it from the metadata of a wrapped key.
    pub(crate) fn of_meta(meta: &[u8]) -> Option<Self> {
        meta.try_into().ok().map(Self)
    }

    /// Returns KMS's form.
    pub(crate) fn text(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab";

    #[test]
    fn an_arn_is_read_in_its_parts() {
        let arn = KeyArn::read(ARN).unwrap();
        assert_eq!((arn.partition, arn.region, arn.account), ("aws", "eu-west-1", "111122223333"));
        assert!(arn.is_multi_region());
        let elsewhere = arn.in_region("us-east-1");
        assert!(KeyArn::read(&elsewhere).unwrap().is_related_to(&arn));
        assert_eq!(elsewhere, ARN.replace("eu-west-1", "us-east-1"));
    }

    #[test]
    fn a_key_that_is_not_multi_region_is_related_to_none() {
        let text = ARN.replace("mrk-", "");
        let arn = KeyArn::read(&text).unwrap();
        assert!(!arn.is_related_to(&arn));
    }

    #[test]
    fn what_is_not_the_arn_of_a_kms_key_is_not_read() {
        for (from, to) in [
            ("key/", "alias/"),
            (":kms:", ":s3:"),
            ("arn:", "urn:"),
            ("111122223333", "11112222333"),
            ("111122223333", "11112222333x"),
            ("eu-west-1", ""),
            ("eu-west-1", "eu/west"),
            (":aws:", ":other:"),
            ("mrk-", "mrk-:"),
            ("key/", "key//"),
        ] {
            assert_eq!(KeyArn::read(&ARN.replace(from, to)), None, "{from} {to}");
        }
        assert_eq!(KeyArn::read(""), None);
        assert_eq!(KeyArn::read(&format!("{ARN}:")), None);
    }

    #[test]
    fn a_key_material_id_is_kept_as_bytes() {
        let text = "0123456789abcdef".repeat(4);
        let id = KeyMaterialId::read(&text).unwrap();
        assert_eq!(id.0[..4], [0x01, 0x23, 0x45, 0x67]);
        assert_eq!(KeyMaterialId::of_meta(&id.0), Some(id));
        for other in
            [&text[1..], &format!("{text}0"), &text.replace('a', "g"), &text.replace("ab", "é"), ""]
        {
            assert_eq!(KeyMaterialId::read(other), None, "{other}");
        }
        assert_eq!(KeyMaterialId::of_meta(&[0; 31]), None);
    }
}
