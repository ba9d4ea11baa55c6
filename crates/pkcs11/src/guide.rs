//! The pages for operators.
//!
//! | page | what it says |
//! |---|---|
//! | [`pkcs11`] | token, key, PIN, least privilege, IVs, rotation, what return values mean, faults, HSMs |
#![forbid(unsafe_code)]

/// The targets of the pages' links in this documentation. Markdown uses the first definition of a
/// link, and each page also defines links between files.
macro_rules! links {
    () => {
        "[calls.md]: waxseal::guide::calls
[duties.md]: waxseal::guide::duties
[format.md]: waxseal::guide::format
[lifetimes.md]: waxseal::guide::lifetimes
[runtimes.md]: waxseal::guide::runtimes
[SECURITY.md]: waxseal::guide::security
[pkcs11.md]: crate::guide::pkcs11

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
    pkcs11: "../docs/pkcs11.md",
}
