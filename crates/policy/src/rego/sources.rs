//! Reads policies and data: from files, directories, bundles and texts.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value};
use waxseal::Error;

use super::bundle::{self, Signed};
use super::files::{FileIn, MAX_BYTES, MAX_FILES, bad};
#[cfg(feature = "signatures")]
use super::signature::BundleKey;

/// The maximum depth of nested directories. It also ends loops of links.
const MAX_DEPTH: usize = 32;

/// The source of a part of a policy.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A Rego or JSON file.
    File(PathBuf),
    /// Every Rego file and every `data.json` in it.
    Directory(PathBuf),
    /// A bundle of OPA: a compressed archive.
    Bundle(PathBuf, Signed),
    Rego {
        name: String,
        text: String,
    },
    /// A JSON object.
    Data(String),
}

/// The sources of a policy and its data. Several sources make one policy.
///
/// Files that end in `_test.rego` are tests: [`lint`](crate::lint) and
/// [`run_tests`](crate::run_tests) read them, and they decide nothing.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RegoSources {
    pub(super) sources: Vec<Source>,
}

impl RegoSources {
    /// Makes an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file: `.rego` is a policy, `.json` an object of data.
    pub fn file(self, path: impl Into<PathBuf>) -> Self {
        self.with(Source::File(path.into()))
    }

    /// Adds every `.rego` file and every `data.json` in a directory tree, as `opa run --bundle`
    /// reads it: `orders/data.json` is `data.orders`. Hidden files are left out.
    pub fn directory(self, path: impl Into<PathBuf>) -> Self {
        self.with(Source::Directory(path.into()))
    }

    /// Adds an unsigned bundle: a `.tar.gz` as `opa build` makes it. A signed one is refused, and
    /// so are YAML, compiled policies and delta bundles.
    pub fn bundle(self, path: impl Into<PathBuf>) -> Self {
        self.with(Source::Bundle(path.into(), Signed::Not))
    }

    /// Adds a bundle that is signed by one of these keys, as `opa sign` does. An unsigned bundle is
    /// refused, and so is one in which a file was changed, added or removed. As in OPA, times in
    /// the signature are ignored: an older signed bundle is as valid as a newer one.
    #[cfg(feature = "signatures")]
    #[cfg_attr(docsrs, doc(cfg(feature = "signatures")))]
    pub fn signed_bundle(
        self,
        path: impl Into<PathBuf>,
        keys: impl IntoIterator<Item = BundleKey>,
    ) -> Self {
        self.with(Source::Bundle(path.into(), Signed::By(keys.into_iter().collect())))
    }

    /// Adds a bundle, signed or not, and ignores its signature. Anyone who can write the file then
    /// decides. Use it for a bundle that was verified before, or whose location is trusted.
    pub fn unverified_bundle(self, path: impl Into<PathBuf>) -> Self {
        self.with(Source::Bundle(path.into(), Signed::Unverified))
    }

    /// Adds a policy. `name` is for error texts, and ends in `_test.rego` for tests.
    pub fn rego(self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.with(Source::Rego { name: name.into(), text: text.into() })
    }

    /// Adds an object of data, as JSON.
    pub fn data(self, json: impl Into<String>) -> Self {
        self.with(Source::Data(json.into()))
    }

    fn with(mut self, source: Source) -> Self {
        self.sources.push(source);
        self
    }
}

/// The content of a policy's sources.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    /// Name and text of each Rego file, tests included.
    pub(super) modules: Vec<(String, String)>,
    pub(super) data: Map<String, Value>,
    /// The revision of the bundle, if it names one.
    pub(super) revision: Option<String>,
}

/// What shows that a file may have changed: path, length, times, and the file's identity.
pub(super) type Signature = Vec<(PathBuf, Option<(u64, SystemTime, u64)>)>;

pub(super) fn is_test(name: &str) -> bool {
    name.ends_with("_test.rego")
}

/// Reads all of them.
pub(super) fn read(sources: &[Source]) -> Result<Contents, Error> {
    let mut contents = Contents::default();
    for source in sources {
        match source {
            Source::Rego { name, text } => contents.modules.push((name.clone(), text.clone())),
            Source::Data(text) => contents.add_data("data", &[], text.as_bytes())?,
            Source::File(path) => {
                let bytes = read_file(path, &mut 0)?;
                let name = path.display().to_string();
                match extension(path) {
                    "rego" => contents.add_module(name, bytes)?,
                    "json" => contents.add_data(&name, &[], &bytes)?,
                    _ => return Err(bad(&name, "neither .rego nor .json")),
                }
            }
            Source::Directory(root) => {
                let mut files = Vec::new();
                walk(root, root, 0, &mut 0, &mut files)?;
                contents.add_tree(&root.display().to_string(), files)?;
            }
            Source::Bundle(path, signed) => {
                let name = path.display().to_string();
                let files = bundle::read(&name, &read_file(path, &mut 0)?, signed)?;
                contents.add_tree(&name, files)?;
            }
        }
        if contents.modules.len() > MAX_FILES {
            return Err(bad("policy", &format!("more than {MAX_FILES} files")));
        }
    }
    Ok(contents)
}

/// Returns the state of every file, to notice a change.
pub(super) fn signature(sources: &[Source]) -> Signature {
    let mut all = Signature::new();
    for source in sources {
        match source {
            Source::Rego { .. } | Source::Data(_) => {}
            Source::File(path) | Source::Bundle(path, _) => all.push((path.clone(), stamp(path))),
            Source::Directory(root) => sign_tree(root, 0, &mut all),
        }
    }
    all
}

fn stamp(path: &Path) -> Option<(u64, SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    #[cfg(unix)]
    let number = std::os::unix::fs::MetadataExt::ino(&metadata);
    #[cfg(not(unix))]
    let number = 0;
    Some((metadata.len(), metadata.modified().ok()?, number))
}

fn sign_tree(directory: &Path, depth: usize, all: &mut Signature) {
    all.push((directory.to_owned(), stamp(directory)));
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths.into_iter().filter(|path| !is_hidden(path)) {
        if all.len() > MAX_FILES || depth > MAX_DEPTH {
            return;
        }
        match path.is_dir() {
            true => sign_tree(&path, depth + 1, all),
            false => all.push((path.clone(), stamp(&path))),
        }
    }
}

/// Kubernetes keeps the files of a mounted map in hidden directories, and links to them.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

fn read_file(path: &Path, total: &mut u64) -> Result<Vec<u8>, Error> {
    let name = path.display().to_string();
    let io = |error: std::io::Error| bad(&name, "cannot be read").with_source(error);
    let metadata = fs::metadata(path).map_err(io)?;
    // Reading a pipe or a device would never end.
    if !metadata.is_file() {
        return Err(bad(&name, "is not a regular file"));
    }
    *total = total.saturating_add(metadata.len());
    if *total > MAX_BYTES {
        return Err(bad(&name, &format!("more than {MAX_BYTES} bytes")));
    }
    fs::read(path).map_err(io)
}

fn walk(
    root: &Path,
    directory: &Path,
    depth: usize,
    total: &mut u64,
    files: &mut Vec<FileIn>,
) -> Result<(), Error> {
    let name = directory.display().to_string();
    let io = |error: std::io::Error| bad(&name, "cannot be read").with_source(error);
    if depth > MAX_DEPTH {
        return Err(bad(&name, &format!("more than {MAX_DEPTH} directories deep")));
    }
    let mut entries =
        fs::read_dir(directory).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
    entries.sort_by_key(fs::DirEntry::path);
    for path in entries.into_iter().map(|entry| entry.path()).filter(|path| !is_hidden(path)) {
        if path.is_dir() {
            walk(root, &path, depth + 1, total, files)?;
        } else if extension(&path) == "rego" || is_document(&path) {
            let bytes = read_file(&path, total)?;
            let inner = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.push(FileIn { path: inner, bytes });
        }
        if files.len() > MAX_FILES {
            return Err(bad(&name, &format!("more than {MAX_FILES} files")));
        }
    }
    Ok(())
}

/// Whether it is `data.json`, or the same in another notation.
fn is_document(path: &Path) -> bool {
    ["data.json", "data.yaml", "data.yml"].iter().any(|name| path.ends_with(name))
}

impl Contents {
    /// Adds the files of a directory or a bundle. The content of `data.json` goes where its
    /// directory is.
    pub(super) fn add_tree(&mut self, root: &str, files: Vec<FileIn>) -> Result<(), Error> {
        for FileIn { path, bytes } in files {
            let name = format!("{root}/{path}");
            let file = path.rsplit('/').next().unwrap_or_default();
            match file {
                ".manifest" => self.revision = manifest_revision(&name, &bytes)?,
                "data.json" => {
                    let place: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
                    let (_, place) = place.split_last().unwrap_or((&"", &[]));
                    self.add_data(&name, place, &bytes)?;
                }
                "data.yaml" | "data.yml" => {
                    return Err(bad(&name, "data in YAML are not read: write data.json"));
                }
                "policy.wasm" | "plan.json" => {
                    return Err(bad(&name, "compiled policies are not run: bundle the Rego files"));
                }
                "patch.json" => return Err(bad(&name, "delta bundles are not read")),
                _ if file.ends_with(".rego") => self.add_module(name, bytes)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn add_module(&mut self, name: String, bytes: Vec<u8>) -> Result<(), Error> {
        let text = String::from_utf8(bytes).map_err(|_| bad(&name, "is not UTF-8"))?;
        self.modules.push((name, text));
        Ok(())
    }

    fn add_data(&mut self, name: &str, place: &[&str], bytes: &[u8]) -> Result<(), Error> {
        let mut value: Value = serde_json::from_slice(bytes)
            .map_err(|error| bad(name, "is not JSON").with_source(error))?;
        for part in place.iter().rev() {
            value = Value::Object(Map::from_iter([((*part).to_owned(), value)]));
        }
        match value {
            Value::Object(object) => merge(name, &mut self.data, object),
            _ => Err(bad(name, "data must be an object")),
        }
    }
}

fn merge(name: &str, into: &mut Map<String, Value>, from: Map<String, Value>) -> Result<(), Error> {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(ours)), Value::Object(theirs)) => merge(name, ours, theirs)?,
            (Some(ours), theirs) if *ours == theirs => {}
            (Some(_), _) => return Err(bad(name, &format!("{key:?} has another value elsewhere"))),
            (None, value) => drop(into.insert(key, value)),
        }
    }
    Ok(())
}

fn manifest_revision(name: &str, bytes: &[u8]) -> Result<Option<String>, Error> {
    let manifest: Value = serde_json::from_slice(bytes)
        .map_err(|error| bad(name, "is not JSON").with_source(error))?;
    if let Some(version) = manifest.get("rego_version")
        && version.as_u64() != Some(1)
    {
        return Err(bad(name, "rego_version is not 1: only Rego v1 is evaluated"));
    }
    if let Some(versions) = manifest.get("file_rego_versions").and_then(Value::as_object)
        && versions.values().any(|version| version.as_u64() != Some(1))
    {
        return Err(bad(name, "file_rego_versions has another than 1: only Rego v1 is evaluated"));
    }
    Ok(manifest.get("revision").and_then(Value::as_str).map(str::to_owned))
}
