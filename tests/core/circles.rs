//! No two source files of a crate import each other, in a circle of any length. What a folder's
//! `mod.rs` hands on does not count: that is the folder's interface.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::architecture::{is_name, module_of, sources_of};

/// The paths that begin at `crate` or `super`, as lists of names, with braces multiplied out.
fn paths(module: &[&str], code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let is_path = code[..at]
                .chars()
                .next_back()
                .is_none_or(|before| !is_name(before) && before != ':');
            if is_path {
                tree(&code[at..], &[], &mut found);
            }
        }
    }
    let absolute = |path: Vec<String>| {
        let supers = path.iter().take_while(|name| *name == "super").count();
        let kept = if path[0] == "crate" { 0 } else { module.len().checked_sub(supers)? };
        let rest = path.into_iter().skip_while(|name| name == "super" || name == "crate");
        Some(module[..kept].iter().map(|name| (*name).to_owned()).chain(rest).collect())
    };
    found.into_iter().filter_map(absolute).collect()
}

/// Reads one tree of paths and returns what follows it.
fn tree<'c>(code: &'c str, before: &[String], found: &mut Vec<Vec<String>>) -> &'c str {
    let mut path = before.to_vec();
    let mut rest = code;
    loop {
        let name = &rest[..rest.len() - rest.trim_start_matches(is_name).len()];
        if name.is_empty() {
            break;
        }
        path.push(name.to_owned());
        let behind = &rest[name.len()..];
        let Some(inner) = behind.strip_prefix("::") else {
            rest = behind;
            break;
        };
        rest = inner;
    }
    let Some(mut inner) = rest.strip_prefix('{') else {
        found.push(path);
        return rest;
    };
    loop {
        inner = tree(inner.trim_start(), &path, found);
        // An alias, or a glob.
        inner = &inner[inner.find([',', '}']).unwrap_or(inner.len())..];
        match inner.strip_prefix(',') {
            Some(next) if !next.trim_start().starts_with('}') => inner = next,
            Some(next) => return next.trim_start().strip_prefix('}').unwrap_or_default(),
            None => return inner.strip_prefix('}').unwrap_or_default(),
        }
    }
}

/// Which module imports which, within a crate.
fn imports(src: &str) -> BTreeMap<String, BTreeSet<String>> {
    let sources = sources_of(src);
    let files: BTreeMap<Vec<&str>, &str> =
        sources.iter().map(|(path, _)| (module_of(path), &**path)).collect();
    let imported = |path: &str, code: &str| {
        let longest = |names: Vec<String>| {
            (1..=names.len()).rev().find_map(|len| {
                let names: Vec<_> = names[..len].iter().map(String::as_str).collect();
                files.get(&names).copied()
            })
        };
        paths(&module_of(path), code)
            .into_iter()
            .filter_map(longest)
            .filter(|found| *found != path && !found.ends_with("mod.rs"))
            .map(str::to_owned)
            .collect()
    };
    let is_face = |path: &str| path.ends_with("mod.rs") || path.ends_with("lib.rs");
    sources
        .iter()
        .filter(|(path, _)| !is_face(path))
        .map(|(path, code)| (path.clone(), imported(path, code)))
        .collect()
}

/// All files that `from` imports, at once or by others.
fn reached<'i>(
    imports: &'i BTreeMap<String, BTreeSet<String>>,
    from: &'i str,
) -> BTreeSet<&'i str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(next) = open.pop() {
        let further = imports.get(next).into_iter().flatten();
        open.extend(further.map(String::as_str).filter(|file| reached.insert(*file)));
    }
    reached
}

fn circles(src: &str) -> Vec<String> {
    let imports = imports(src);
    let all: BTreeMap<_, _> =
        imports.keys().map(|file| (&**file, reached(&imports, file))).collect();
    let in_circle = |file: &str| all[file].contains(file);
    let tied = |file: &str| {
        let others = imports[file]
            .iter()
            .filter(|other| all.get(&***other).is_some_and(|of| of.contains(file)));
        others.cloned().collect::<Vec<_>>().join(", ")
    };
    all.keys()
        .filter(|file| in_circle(file))
        .map(|file| format!("{src}/{file} imports {}", tied(file)))
        .collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let root = waxseal_testing::top();
    let mut crates = vec!["src".to_owned()];
    for entry in fs::read_dir(root.join("crates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        crates.push(format!("crates/{name}/src"));
    }
    let circles: Vec<_> = crates.iter().flat_map(|src| circles(src)).collect();
    assert!(circles.is_empty(), "{:#?}", circles);
}

#[test]
fn a_path_is_read_as_it_is_written() {
    let code = "use crate::a::{self, b::{C, d}, e as f};\nlet x = super::g::H::new(); ::super::not";
    let found = paths(&["m", "n"], code);
    let found: Vec<_> = found.iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["a::self", "a::b::C", "a::b::d", "a::e", "m::g::H::new"]);
}
