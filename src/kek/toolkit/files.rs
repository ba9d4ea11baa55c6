//! Reads small files that may hold a secret.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::ops::Deref;
use std::path::Path;

use zeroize::Zeroizing;

/// The initial buffer size.
const FIRST: usize = 4096;

/// The content of a file. It is wiped on drop, and Debug shows only its length.
pub struct FileContent(Zeroizing<Vec<u8>>);

impl Deref for FileContent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for FileContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileContent({} bytes)", self.len())
    }
}

/// Reads a file of at most `most` bytes, such as a certificate, a key or a token. No copy of its
/// content is left in memory. The length in its metadata is not trusted, so devices and growing
/// files are bounded too.
///
/// ```
/// use waxseal::kek::toolkit::read_file;
///
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("token");
/// # std::fs::write(&path, "s.token\n")?;
/// let token = read_file(&path, 64 * 1024)?;
/// assert_eq!(token.trim_ascii(), b"s.token");
/// assert!(read_file(&path, 4).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Those of the file system, and [`ErrorKind::FileTooLarge`].
pub fn read_file(path: &Path, most: usize) -> Result<FileContent, Error> {
    let mut file = File::open(path)?;
    let mut content = Zeroizing::new(vec![0; FIRST.min(most.saturating_add(1))]);
    let mut len = 0;
    loop {
        if len == content.len() {
            if len > most {
                let what = format!("it is larger than {most} bytes");
                return Err(Error::new(ErrorKind::FileTooLarge, what));
            }
            // A new buffer, so that no content is left in the old one.
            let room = len.saturating_mul(2).min(most.saturating_add(1));
            let mut larger = Zeroizing::new(vec![0; room]);
            larger.iter_mut().zip(&**content).for_each(|(new, old)| *new = *old);
            content = larger;
        }
        match file.read(content.get_mut(len..).unwrap_or_default()) {
            Ok(0) => break,
            Ok(read) => len = len.saturating_add(read).min(content.len()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // It keeps its allocation, which is wiped as a whole.
    content.truncate(len);
    Ok(FileContent(content))
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for len in [0, 1, FIRST - 1, FIRST, FIRST + 1, 2 * FIRST, 100_000] {
            let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
            std::fs::write(&path, &bytes).unwrap();
            for most in [len, len + 1, 1_000_000] {
                assert_eq!(&*read_file(&path, most).unwrap(), &*bytes, "{len} of {most}");
            }
            if len > 0 {
                let error = read_file(&path, len - 1).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::FileTooLarge, "{len}");
            }
        }
        assert_eq!(read_file(Path::new("/no/such"), 10).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(read_file(directory.path(), 10).is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_has_no_end_is_bounded() {
        let error = read_file(Path::new("/dev/zero"), 100_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        assert!(!read_file(Path::new("/proc/self/status"), 100_000).unwrap().is_empty());
    }

    #[test]
    fn debug_shows_no_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "secret").unwrap();
        assert_eq!(format!("{:?}", read_file(&path, 6).unwrap()), "FileContent(6 bytes)");
    }
}
