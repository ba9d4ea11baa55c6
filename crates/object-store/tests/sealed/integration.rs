//! The suite of `object_store` itself in memory and in local files.

use crate::version::Binding;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;

use crate::suite::run;

const BINDINGS: [Binding; 3] = [Binding::Path, Binding::FileName, Binding::Nothing];

#[test]
fn the_suite_passes_in_memory() {
    run(InMemory::new, &BINDINGS, &["put_opts_without_update"], &[]);
}

#[test]
fn the_suite_passes_in_local_files() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_owned();
    let make = move || {
        let folder = tempfile::tempdir_in(&root).unwrap().keep();
        LocalFileSystem::new_with_prefix(folder).unwrap()
    };
    run(make, &BINDINGS, &["put_opts"], &[]);
}
