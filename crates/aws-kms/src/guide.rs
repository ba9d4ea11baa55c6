//! The pages for operators, with examples that are compiled.
//!
//! | page | what it says |
//! |---|---|
//! | [`aws_kms`] | policies by role, credentials, rotation, several Regions, quotas, CloudTrail, failures |
//! | [`xks`] | keys in external key stores: set-up, monitoring, outages of each hop, leaving |
#![forbid(unsafe_code)]

/// The targets of the pages' links in this documentation. Markdown uses the first definition of a
/// link, and each page also defines links between files.
macro_rules! links {
    () => {
        "[calls.md]: waxseal::guide::calls
[domains.md]: waxseal::guide::domains
[duties.md]: waxseal::guide::duties
[format.md]: waxseal::guide::format
[lifetimes.md]: waxseal::guide::lifetimes
[performance.md]: waxseal::guide::performance
[runtimes.md]: waxseal::guide::runtimes
[SECURITY.md]: waxseal::guide::security
[aws-kms.md]: crate::guide::aws_kms
[xks.md]: crate::guide::xks

"
    };
}
pub(crate) use links;

macro_rules! pages {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[doc = links!()]
            #[doc = include_str!($file)]
            pub mod $name {}
        )*
    };
}

pages! {
    aws_kms: "../docs/aws-kms.md",
    xks: "../docs/xks.md",
}
