//! Prints the public interface of the crate whose rustdoc JSON is named, sorted and each line once,
//! so that moving code within the crate changes nothing.
//!
//! Left out is what no author writes and every type has: blanket, automatic and derived
//! implementations.

use std::collections::BTreeSet;
use std::env::args_os;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let json = args_os().nth(1).ok_or("which file of rustdoc JSON?")?;
    let listing = public_api::Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()?;
    let lines: BTreeSet<String> = listing.items().map(ToString::to_string).collect();
    for line in lines {
        println!("{line}");
    }
    Ok(())
}
