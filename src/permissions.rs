//! Owns the question who can change a file or directory that this process trusts: only root and the
//! user that the process runs as may. Whoever can write a credentials file, a key or the data
//! directory decides who gets events and which events are genuine, whatever else is checked. Knows
//! modes and owners; what a file is for is known by whoever opens it.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

const PERMISSIONS: u32 = 0o7777;
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const OTHERS_READ: u32 = 0o004;
/// In such a directory nobody can replace what is another's.
const STICKY: u32 = 0o1000;

/// Why a file or directory cannot be trusted. The text says which command corrects it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its mode lets others write.
    #[error(
        "other users of this machine can write to {} (mode {mode:04o}): run `chmod {change} {}`",
        path.display(), path.display()
    )]
    Writable {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What `chmod` has to be told.
        change: &'static str,
    },
    /// It belongs to somebody else, who can change its mode and write.
    #[error(
        "{} belongs to the user with id {owner}, and this process runs as {process}: run `chown \
         {process} {}`",
        path.display(), path.display()
    )]
    Owned {
        /// The file or directory.
        path: PathBuf,
        /// The id of its owner.
        owner: u32,
        /// The id of the user that this process runs as.
        process: u32,
    },
}

/// Why a directory is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Others can change it or something in it.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It cannot be inspected.
    #[error("the permissions of {} cannot be read: {source}", path.display())]
    Read {
        /// The directory, or what is in it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Opens a file that is trusted: as [`File::open`], but a file that others can change is refused.
/// The open file is checked, so nobody can put another one in its place after that.
///
/// # Errors
/// Those of the file system; `PermissionDenied` with a [`Fault`] inside.
pub fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    check(path, &file)?;
    Ok(file)
}

/// Whether others can read a file that is a secret; the text says which command corrects it. `None`
/// also where there is no such file.
#[must_use]
pub fn exposed(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let mode = metadata.mode() & PERMISSIONS;
    let is_exposed = metadata.is_file() && mode & OTHERS_READ != 0;
    is_exposed.then(|| {
        format!(
            "every user of this machine can read {} (mode {mode:04o}): run `chmod o-r {}`",
            path.display(),
            path.display()
        )
    })
}

/// Checks a directory of our own and what is in it, down to the files of its directories.
///
/// # Errors
/// The first thing that others can change, or that cannot be inspected. A directory that is not
/// there is no error: it is made for this user alone.
pub fn directory(path: &Path) -> Result<(), Error> {
    tree(path, 1)
}

fn tree(path: &Path, levels: u32) -> Result<(), Error> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(unreadable(path, source)),
    };
    check_metadata(path, &metadata)?;
    if !metadata.is_dir() {
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(|source| unreadable(path, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| unreadable(path, source))?;
        // A file can go while the directory is read: that is no reason to refuse the rest.
        let Ok(metadata) = fs::metadata(entry.path()) else {
            continue;
        };
        if metadata.is_dir() && levels > 0 {
            tree(&entry.path(), levels - 1)?;
        } else if metadata.is_dir() || metadata.is_file() {
            check_metadata(&entry.path(), &metadata)?;
        }
    }
    Ok(())
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    Error::Read {
        path: path.to_owned(),
        source,
    }
}

fn check(path: &Path, file: &File) -> io::Result<()> {
    let metadata = file.metadata()?;
    // Pipes and devices have no content that somebody could have left there.
    if !metadata.is_file() {
        return Ok(());
    }
    let checked = check_metadata(path, &metadata).and_then(|()| check_parent(path));
    checked.map_err(|fault| io::Error::new(io::ErrorKind::PermissionDenied, fault))
}

fn check_metadata(path: &Path, metadata: &Metadata) -> Result<(), Fault> {
    let process = rustix::process::geteuid().as_raw();
    check_mode(path, metadata.mode(), metadata.uid(), process)
}

fn check_mode(path: &Path, mode: u32, owner: u32, process: u32) -> Result<(), Fault> {
    let mode = mode & PERMISSIONS;
    if mode & (GROUP_WRITES | OTHERS_WRITE) != 0 {
        return Err(Fault::Writable {
            path: path.to_owned(),
            mode,
            change: "go-w",
        });
    }
    if owner != 0 && owner != process {
        return Err(Fault::Owned {
            path: path.to_owned(),
            owner,
            process,
        });
    }
    Ok(())
}

/// Whoever can write to a directory can put another file in the place of one that is in it. A
/// directory of a group passes: many systems share projects that way.
fn check_parent(path: &Path) -> Result<(), Fault> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Ok(metadata) = fs::metadata(parent) else {
        return Ok(());
    };
    let mode = metadata.mode() & PERMISSIONS;
    if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        return Err(Fault::Writable {
            path: parent.to_owned(),
            mode,
            change: "o-w",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn file(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "x").unwrap();
        set(&path, mode);
        (directory, path)
    }

    #[test]
    fn a_file_that_others_can_write_is_not_opened_and_the_command_is_named() {
        for mode in [0o600, 0o640, 0o644, 0o755] {
            let (_directory, path) = file(mode);
            assert!(open(&path).is_ok(), "{mode:o}");
        }
        for mode in [0o620, 0o602, 0o664, 0o666, 0o777] {
            let (_directory, path) = file(mode);
            let error = open(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            let said = error.to_string();
            let command = format!("chmod go-w {}", path.display());
            assert!(said.contains(&command), "{said}");
            assert!(said.contains(&format!("{mode:04o}")), "{said}");
        }
    }

    #[test]
    fn a_directory_in_which_everybody_can_replace_the_file_is_refused_unless_it_is_sticky() {
        let (directory, path) = file(0o600);
        for (mode, is_refused) in [(0o777, true), (0o1777, false), (0o775, false)] {
            set(directory.path(), mode);
            assert_eq!(open(&path).is_err(), is_refused, "{mode:o}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_checked() {
        // Everybody can write to it.
        assert!(open(Path::new("/dev/null")).is_ok());
    }

    #[test]
    fn only_root_and_this_user_may_own_what_is_trusted() {
        let path = Path::new("/x/key");
        for owner in [0, 1000] {
            assert_eq!(check_mode(path, 0o100_600, owner, 1000), Ok(()));
        }
        let fault = check_mode(path, 0o100_600, 1001, 1000).unwrap_err();
        assert!(fault.to_string().contains("chown 1000 /x/key"), "{fault}");
        assert!(check_mode(path, 0o100_600, 1000, 0).is_err());
    }

    #[test]
    fn a_directory_is_checked_with_its_files_and_those_of_its_directories() {
        let directory = tempfile::tempdir().unwrap();
        let within = |name: &str| directory.path().join(name);
        assert!(super::directory(&within("missing")).is_ok());
        fs::create_dir(within("keys")).unwrap();
        for name in ["log", "keys/app"] {
            fs::write(within(name), "").unwrap();
        }
        std::os::unix::fs::symlink("nowhere", within("link")).unwrap();
        super::directory(directory.path()).unwrap();
        for name in ["", "log", "keys", "keys/app"] {
            let path = if name.is_empty() {
                directory.path().to_owned()
            } else {
                within(name)
            };
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            set(&path, mode | 0o002);
            let error = super::directory(directory.path()).unwrap_err();
            let command = format!("chmod go-w {}`", path.display());
            assert!(error.to_string().ends_with(&command), "{error}");
            set(&path, mode);
        }
        super::directory(directory.path()).unwrap();
    }

    #[test]
    fn a_secret_that_everybody_can_read_is_pointed_out() {
        for (mode, is_exposed) in [(0o600, false), (0o640, false), (0o644, true)] {
            let (_directory, path) = file(mode);
            assert_eq!(exposed(&path).is_some(), is_exposed, "{mode:o}");
        }
        assert_eq!(exposed(Path::new("/nowhere/key")), None);
    }
}
