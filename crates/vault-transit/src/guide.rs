//! The pages for operators, with examples that are compiled.
//!
//! | page | what it says |
//! |---|---|
//! | [`vault`] | key, policy, logins, rotation, what the audit log shows |
#![forbid(unsafe_code)]

/// The targets of the pages' links in this documentation. Markdown uses the first definition of a
/// link, and each page also defines links between files.
macro_rules! links {
    () => {
        "[calls.md]: waxseal::guide::calls
[duties.md]: waxseal::guide::duties
[format.md]: waxseal::guide::format
[lifetimes.md]: waxseal::guide::lifetimes
[performance.md]: waxseal::guide::performance
[runtimes.md]: waxseal::guide::runtimes
[SECURITY.md]: waxseal::guide::security
[vault.md]: crate::guide::vault

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
    vault: "../docs/vault.md",
}
