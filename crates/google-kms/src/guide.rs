//! The pages for operators.
//!
//! | page | what it says |
//! |---|---|
//! | [`google_kms`] | keys, roles, credentials, rotation, quotas, failures |
//! | [`ekm`] | keys in external key managers (Cloud EKM): what each failure means, outages, recovery |
#![forbid(unsafe_code)]

/// The targets of the pages' links in this documentation. Markdown uses the first definition of a
/// link, and each page also defines links between files.
macro_rules! links {
    () => {
        "[calls.md]: waxseal::guide::calls
[duties.md]: waxseal::guide::duties
[lifetimes.md]: waxseal::guide::lifetimes
[SECURITY.md]: waxseal::guide::security
[google-kms.md]: crate::guide::google_kms
[ekm.md]: crate::guide::ekm

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
    google_kms: "../docs/google-kms.md",
    ekm: "../docs/ekm.md",
}
