//! The pages for operators, with examples that are compiled.
//!
//! | page | what it says |
//! |---|---|
//! | [`azure`] | keys, roles, logins, rotation, limits, failures, what RSA loses |
#![forbid(unsafe_code)]

/// The targets of the pages' links in this documentation. Markdown uses the first definition of a
/// link, and each page also defines links between files.
macro_rules! links {
    () => {
        "[calls.md]: waxseal::guide::calls
[duties.md]: waxseal::guide::duties
[lifetimes.md]: waxseal::guide::lifetimes
[SECURITY.md]: waxseal::guide::security
[azure.md]: crate::guide::azure

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
    azure: "../docs/azure.md",
}
