//! S3's answers, in XML, to requests that this crate makes itself.
//!
//! The name of the root element decides what an answer is, whatever its status: S3 answers long
//! requests with 200 before it knows how they end.
#![forbid(unsafe_code)]

use std::fmt::Write;

use quick_xml::de::Deserializer;
use quick_xml::escape::escape;
use serde::Deserialize;

/// The maximum length of a tag, a code and so on.
const LONGEST: usize = 1024;

#[derive(Deserialize, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    CopyPartResult(Tagged),
    CompleteMultipartUploadResult(Tagged),
    #[serde(alias = "ListPartsResponse")] // So moto.
    ListPartsResult(List),
    Error(Refusal),
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
pub(super) struct Tagged {
    #[serde(rename = "ETag")]
    pub(super) e_tag: String,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "PascalCase")]
pub(super) struct List {
    pub(super) is_truncated: bool,
    #[serde(default)]
    pub(super) part: Vec<Part>,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Part {
    pub(super) part_number: u32,
    pub(super) size: u64,
    #[serde(rename = "ETag")]
    pub(super) e_tag: String,
    /// The checksums that `object_store` can require of an upload.
    #[serde(rename = "ChecksumSHA256")]
    checksum_sha256: Option<String>,
    #[serde(rename = "ChecksumCRC64NVME")]
    checksum_crc64nvme: Option<String>,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Refusal {
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

impl Part {
    pub(super) fn has_checksum(&self) -> bool {
        self.checksum_sha256.is_some() || self.checksum_crc64nvme.is_some()
    }
}

impl Answer {
    /// Reads an answer. `None` if S3 gives no such answer.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        // S3 sends white space before the document while a long request is under way.
        let text = std::str::from_utf8(bytes).ok()?.trim();
        let mut reader = Deserializer::from_str(text);
        let answer = Self::deserialize(&mut reader).ok()?;
        let is_whole = reader.is_empty() && answer.is_plausible();
        is_whole.then_some(answer)
    }

    fn is_plausible(&self) -> bool {
        match self {
            Self::CopyPartResult(of) | Self::CompleteMultipartUploadResult(of) => {
                is_word(&of.e_tag)
            }
            Self::ListPartsResult(list) => list.part.iter().all(|part| is_word(&part.e_tag)),
            Self::Error(refusal) => is_word(&refusal.code),
        }
    }
}

fn is_word(text: &str) -> bool {
    let is_of_word = |c: char| c.is_ascii_graphic();
    (1..=LONGEST).contains(&text.len()) && text.chars().all(is_of_word)
}

impl Refusal {
    /// Returns its content, fit for a log.
    pub(super) fn says(&self) -> String {
        let message = self.message.chars().filter(|c| !c.is_control()).take(LONGEST);
        format!("{}: {}", self.code, message.collect::<String>())
    }
}

/// Some services quote their tags in one answer, and not in another.
pub(super) fn is_same_tag(one: &str, other: &str) -> bool {
    let bare = |tag: &str| tag.trim_matches('"').to_owned();
    bare(one) == bare(other)
}

/// Writes the request that joins these parts.
pub(super) fn completion(parts: &[Part]) -> String {
    let mut text =
        "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">".to_owned();
    for part in parts {
        text.push_str("<Part>");
        let sums = [
            ("ChecksumCRC64NVME", part.checksum_crc64nvme.as_deref()),
            ("ChecksumSHA256", part.checksum_sha256.as_deref()),
            ("ETag", Some(part.e_tag.as_str())),
        ];
        for (name, value) in sums {
            if let Some(value) = value {
                // Writing to a String cannot fail.
                let _ = write!(text, "<{name}>{}</{name}>", escape(value));
            }
        }
        let _ = write!(text, "<PartNumber>{}</PartNumber></Part>", part.part_number);
    }
    text.push_str("</CompleteMultipartUpload>");
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COPIED: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<CopyPartResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><LastModified>2026-11-30T06:24:51.000Z</LastModified><ETag>&quot;5079656b&quot;</ETag></CopyPartResult>"#;
    const LISTED: &str = r#"<ListPartsResult><Bucket>b</Bucket><PartNumberMarker/><NextPartNumberMarker/><IsTruncated>false</IsTruncated>
<Part><PartNumber>1</PartNumber><LastModified>x</LastModified><ETag>"a"</ETag><Size>5242880</Size></Part>
<Owner><ID>1</ID></Owner>
<Part><PartNumber>2</PartNumber><ETag>b-2</ETag><Size>1</Size><ChecksumSHA256>s+/=</ChecksumSHA256></Part></ListPartsResult>"#;
    const REFUSED: &str = "<Error><Code>SlowDown</Code><Message>Please\n reduce</Message></Error>";

    fn part(part_number: u32, size: u64, e_tag: &str, sum: Option<&str>) -> Part {
        let (e_tag, checksum_sha256) = (e_tag.to_owned(), sum.map(str::to_owned));
        Part { part_number, size, e_tag, checksum_sha256, checksum_crc64nvme: None }
    }

    #[test]
    fn answers_are_read_by_the_name_of_their_root() {
        let tagged = |tag: &str| Tagged { e_tag: tag.to_owned() };
        let padded = format!(" \n\r\n {COPIED}\n");
        for text in [COPIED, &padded] {
            let copied = Some(Answer::CopyPartResult(tagged("\"5079656b\"")));
            assert_eq!(Answer::parse(text.as_bytes()), copied);
        }
        let parts = vec![part(1, 5 << 20, "\"a\"", None), part(2, 1, "b-2", Some("s+/="))];
        let list = List { is_truncated: false, part: parts };
        assert_eq!(Answer::parse(LISTED.as_bytes()), Some(Answer::ListPartsResult(list)));
        let Some(Answer::Error(refusal)) = Answer::parse(REFUSED.as_bytes()) else { panic!() };
        assert_eq!(refusal.says(), "SlowDown: Please reduce");
        let completed = COPIED.replace("CopyPartResult", "CompleteMultipartUploadResult");
        let completed = Answer::parse(completed.as_bytes());
        assert_eq!(completed, Some(Answer::CompleteMultipartUploadResult(tagged("\"5079656b\""))));
    }

    /// As moto does.
    #[test]
    fn a_list_may_have_another_name() {
        let other = LISTED.replace("ListPartsResult", "ListPartsResponse");
        assert_eq!(Answer::parse(other.as_bytes()), Answer::parse(LISTED.as_bytes()));
        assert!(Answer::parse(LISTED.as_bytes()).is_some());
    }

    #[test]
    fn whatever_else_comes_is_no_answer() {
        let long = COPIED.replace("5079656b", &"5".repeat(2000));
        let others = [
            "",
            "OK",
            "<html><body>200</body></html>",
            "<CopyPartResult/>",
            "<CopyPartResult></CopyPartResult>",
            "<CopyPartResult><ETag/></CopyPartResult>",
            "<CopyPartResult><ETag></ETag></CopyPartResult>",
            "<CopyPartResult><ETag>a b</ETag></CopyPartResult>",
            "<CopyPartResult><ETag>\u{7}</ETag></CopyPartResult>",
            "<CopyPartResult><ETag>a</ETag><ETag>b</ETag></CopyPartResult>",
            "<CopyPartResult><ETag>&x;</ETag></CopyPartResult>",
            "<CopyPartResult><ETag>a</ETag>",
            "<CopyPartResult><ETag>a</ETag></CopyPartResult><Error><Code>a</Code></Error>",
            "<CopyPartResult><ETag>a</ETag></CopyPartResult>trailing",
            "<Copy><ETag>a</ETag></Copy>",
            "<Error/>",
            "<Error><Code></Code></Error>",
            "<ListPartsResult/>",
            "<ListPartsResult><IsTruncated>maybe</IsTruncated></ListPartsResult>",
            "<ListPartsResult><IsTruncated>false</IsTruncated><Part/></ListPartsResult>",
            &long,
        ];
        for other in others {
            assert_eq!(Answer::parse(other.as_bytes()), None, "{other}");
        }
        for cut in 1..COPIED.len() {
            assert_eq!(Answer::parse(&COPIED.as_bytes()[..cut]), None, "{cut}");
        }
        assert_eq!(Answer::parse(b"\xff"), None);
    }

    #[test]
    fn what_is_written_is_escaped() {
        let text = completion(&[part(1, 1, "\"a<&>\"", None), part(2, 1, "b", Some("s"))]);
        let expected = "<Part><ETag>&quot;a&lt;&amp;&gt;&quot;</ETag><PartNumber>1</PartNumber></Part>\
                        <Part><ChecksumSHA256>s</ChecksumSHA256><ETag>b</ETag>\
                        <PartNumber>2</PartNumber></Part></CompleteMultipartUpload>";
        assert!(text.ends_with(expected), "{text}");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Answer::parse(&bytes);
        }

        /// An answer that was damaged is none, or another one: it never panics.
        #[test]
        fn no_damage_is_too_strange(
            at in 0..LISTED.len(), byte: u8, cut in 0..LISTED.len(), of in 0..3_usize,
        ) {
            let mut bytes = [COPIED, LISTED, REFUSED][of].as_bytes().to_vec();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(cut.max(1));
            let _ = Answer::parse(&bytes);
        }
    }
}
