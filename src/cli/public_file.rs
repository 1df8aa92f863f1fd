//! Files with public keys, which a bridge is to trust. A bridge refuses those that other users can write,
//! so the umask does not decide who can.

use std::{fs, io, io::Write as _, path::Path};

/// Writes a file that this user alone can write, and all can read.
///
/// # Errors
/// The file cannot be written, or belongs to another user who lets others write it.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    // A bridge may be reading it: what is there already is not written again.
    let is_same = fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
        && fs::read_to_string(path).is_ok_and(|written| written == text);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(!is_same);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
    let mut file = options.open(path)?;
    restrict(&file)?;
    if is_same {
        return Ok(());
    }
    file.write_all(text.as_bytes())
}

/// A mode given at creation does nothing where the file is there already. A pipe or a terminal is left
/// as it is.
#[cfg(unix)]
fn restrict(file: &fs::File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = file.metadata()?;
    let mode = metadata.permissions().mode();
    if metadata.is_file() && mode & 0o022 != 0 {
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7755))?;
    }
    Ok(())
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "as on Unix")]
fn restrict(_file: &fs::File) -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_that_others_can_write_is_theirs_no_longer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        for (before, after) in [
            (0o664, 0o644),
            (0o666, 0o644),
            (0o620, 0o600),
            (0o600, 0o600),
        ] {
            fs::write(&path, "an old and longer text").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
            write(&path, "a key").unwrap();
            assert_eq!(mode(), after);
            assert_eq!(fs::read_to_string(&path).unwrap(), "a key");
            // Also where it has the key already.
            fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
            write(&path, "a key").unwrap();
            assert_eq!(mode(), after);
            assert_eq!(fs::read_to_string(&path).unwrap(), "a key");
        }
    }
}
