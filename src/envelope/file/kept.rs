//! What a new file takes over from its source apart from the bytes: permissions, times, attributes.
#![forbid(unsafe_code)]

use std::fs::{File, FileTimes, Metadata};
use std::io;
use std::path::Path;

use super::FileOptions;
use super::source::Source;

/// A file that is being replaced.
pub(super) struct Replaced {
    pub(super) metadata: Metadata,
    has_access_list: bool,
}

impl Replaced {
    pub(super) fn new(path: &Path, metadata: Metadata) -> Self {
        #[cfg(target_os = "linux")]
        let has_access_list = rustix::fs::lgetxattr_query(path, ACCESS_LIST).is_ok();
        #[cfg(not(target_os = "linux"))]
        let (has_access_list, _) = (false, path);
        Self { metadata, has_access_list }
    }
}

/// Gives `file` the attributes of `source`. Only those may read it who could read both the source
/// and the file that it replaces.
pub(super) fn keep(
    source: &Source<'_>,
    file: &File,
    replaced: Option<&Replaced>,
    options: &FileOptions,
) -> io::Result<()> {
    let of = &source.metadata;
    if options.extended_attributes {
        copy_attributes(&source.file, file)?;
    }
    let times = FileTimes::new().set_modified(of.modified()?).set_accessed(of.accessed()?);
    file.set_times(times)?;
    // It was created for this user only.
    if options.private { Ok(()) } else { keep_permissions(source, file, replaced) }
}

#[cfg(unix)]
fn keep_permissions(
    source: &Source<'_>,
    file: &File,
    replaced: Option<&Replaced>,
) -> io::Result<()> {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};

    // Read again now: a permission that was withdrawn while the source was read stays withdrawn.
    let (of, own) = (source.file.metadata()?, file.metadata()?);
    let has_group = own.gid() == of.gid() || fchown(file, None, Some(of.gid())).is_ok();
    let is_group_of = |replaced: &Replaced| replaced.metadata.gid() == of.gid();
    let readers = Readers {
        source: of.mode(),
        replaced: replaced.map_or(0o777, |replaced| replaced.metadata.mode()),
        is_one_group: has_group && replaced.is_none_or(is_group_of),
        // A directory may give new files an access list. Then the group's bits are its mask.
        has_list: has_access_list(&source.file)
            || has_access_list(file)
            || replaced.is_some_and(|replaced| replaced.has_access_list),
    };
    file.set_permissions(Permissions::from_mode(readers.mode()))?;
    // Last: the file may belong to another user then. Few processes may change the owner, so a
    // failure is ignored. The source's owner may be excluded from the replaced file.
    let is_owner_of = |replaced: &Replaced| replaced.metadata.uid() == of.uid();
    if own.uid() != of.uid() && replaced.is_none_or(is_owner_of) {
        let _ = fchown(file, Some(of.uid()), None);
    }
    Ok(())
}

/// Who may read the source and the replaced file.
#[cfg(unix)]
struct Readers {
    source: u32,
    replaced: u32,
    /// Whether both have the group of the new file.
    is_one_group: bool,
    has_list: bool,
}

#[cfg(unix)]
impl Readers {
    /// Returns permissions that admit nobody who was excluded.
    fn mode(&self) -> u32 {
        let mode = self.source & self.replaced & 0o777;
        if self.has_list {
            // With an access list, the bits of group and others do not show who is excluded.
            return mode & 0o700;
        }
        if self.is_one_group {
            return mode;
        }
        // Members of one group count as others now, and others may be members.
        let both = (mode >> 3) & mode & 0o007;
        mode & 0o700 | both << 3 | both
    }
}

#[cfg(not(unix))]
fn keep_permissions(source: &Source<'_>, file: &File, _: Option<&Replaced>) -> io::Result<()> {
    file.set_permissions(source.metadata.permissions())
}

#[cfg(target_os = "linux")]
const ACCESS_LIST: &str = "system.posix_acl_access";

#[cfg(target_os = "linux")]
fn has_access_list(file: &File) -> bool {
    rustix::fs::fgetxattr_query(file, ACCESS_LIST).is_ok()
}

#[cfg(all(unix, not(target_os = "linux")))]
fn has_access_list(_: &File) -> bool {
    false
}

/// Returns the user's attributes. All other attributes are the system's to set.
#[cfg(target_os = "linux")]
fn copy_attributes(from: &File, to: &File) -> io::Result<()> {
    use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
    use rustix::io::Errno;

    /// The maximum size of the list and of a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
    const MOST: usize = 65_536;
    let mut list = vec![0; MOST];
    let len = match flistxattr(from, &mut list[..]) {
        Ok(len) => len,
        // The source's file system does not support them.
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    let names = list.get(..len).unwrap_or_default().split(|byte| *byte == 0);
    let mut value = vec![0; MOST];
    for name in names.filter(|name| name.starts_with(b"user.")) {
        match fgetxattr(from, name, &mut value[..]) {
            Ok(len) => {
                let value = value.get(..len).unwrap_or_default();
                fsetxattr(to, name, value, XattrFlags::empty())?;
            }
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn copy_attributes(_: &File, _: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn nobody_may_read_the_new_file_who_could_not_read_the_source_and_what_it_replaces() {
        for (source, replaced, is_one_group, has_list, mode) in [
            (0o644, 0o777, true, false, 0o644),
            (0o640, 0o777, true, false, 0o640),
            (0o4755, 0o777, true, false, 0o755),
            (0o000, 0o777, true, false, 0o000),
            (0o644, 0o600, true, false, 0o600),
            (0o600, 0o644, true, false, 0o600),
            (0o664, 0o646, true, false, 0o644),
            // Another group, or one whose members were excluded while others were not.
            (0o640, 0o777, false, false, 0o600),
            (0o644, 0o777, false, false, 0o644),
            (0o604, 0o777, false, false, 0o600),
            (0o775, 0o777, false, false, 0o755),
            (0o666, 0o640, false, false, 0o600),
            (0o644, 0o777, true, true, 0o600),
            (0o755, 0o644, false, true, 0o600),
        ] {
            let readers = Readers { source, replaced, is_one_group, has_list };
            assert_eq!(readers.mode(), mode, "{source:o} {replaced:o} {is_one_group} {has_list}");
        }
    }
}
