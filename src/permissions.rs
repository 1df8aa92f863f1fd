//! Checks who can change a file or directory that this process trusts: only root and the user of the
//! process may. A user who can write a credentials file, a key or the data directory decides who gets
//! events and which events are genuine, whatever else is checked. Knows modes and owners, and nothing
//! of what a file is for.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

const ROOT: u32 = 0;
const PERMISSIONS: u32 = 0o7777;
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const OTHERS_READ: u32 = 0o004;
const FILE_TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
/// The sticky bit: in such a directory a user can replace only files of their own.
const STICKY: u32 = 0o1000;

/// Which process trusts a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The bridge: it trusts the files of root and of the user that it runs as.
    Bridge,
    /// Any process that reads a file: the same, but root may handle the files of the bridge's user.
    Reader,
}

/// Why a file or directory is not trusted. The text has the command that corrects it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// Its mode allows others to write.
    #[error(
        "other users of this machine can write to {} (mode {mode:04o}): run `chmod {change} {}`",
        path.display(), path.display()
    )]
    Writable {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The argument for `chmod`.
        change: &'static str,
    },
    /// It belongs to another user, who can change its mode and write.
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

/// Opens a file that is trusted: like [`File::open`], but refuses a file that others can change. It
/// checks the open file, so that nobody can replace the file after the check.
///
/// # Errors
/// Those of the file system; `PermissionDenied` with a [`Untrusted`] inside.
pub fn open(path: &Path, by: By) -> io::Result<File> {
    let file = File::open(path)?;
    check_file(path, &file.metadata()?, by)
        .map_err(|fault| io::Error::new(io::ErrorKind::PermissionDenied, fault))?;
    Ok(file)
}

/// Opens a regular file, and checks who can change it unless that does not matter. Anything else is refused
/// and not opened: opening a pipe waits for a writer, and a device can be read without end.
///
/// # Errors
/// Those of [`open`]; `InvalidInput` for what is no regular file.
pub fn open_regular(path: &Path, by: Option<By>) -> io::Result<File> {
    let refuse_others = |metadata: &Metadata| {
        if metadata.is_file() {
            Ok(())
        } else {
            let reason = "it is not a regular file";
            Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
        }
    };
    refuse_others(&fs::metadata(path)?)?;
    // A pipe may have taken the place of the file since.
    let no_wait = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options()
        .read(true)
        .custom_flags(no_wait)
        .open(path)?;
    let metadata = file.metadata()?;
    refuse_others(&metadata)?;
    if let Some(by) = by {
        check_file(path, &metadata, by)
            .map_err(|fault| io::Error::new(io::ErrorKind::PermissionDenied, fault))?;
    }
    Ok(file)
}

/// A warning with the command that corrects it, if others can read this secret file. `None` also if
/// there is no such file.
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

/// A warning with the command that corrects it, if others can create files in this directory of ours
/// but not change existing ones.
#[must_use]
pub fn shared(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let mode = metadata.mode() & PERMISSIONS;
    let is_shared = metadata.is_dir() && mode & (GROUP_WRITES | OTHERS_WRITE) != 0;
    is_shared.then(|| {
        format!(
            "other users of this machine can make files in {} (mode {mode:04o}): run `chmod go-w {}`",
            path.display(),
            path.display()
        )
    })
}

/// A warning with the command that corrects it, if everybody can rename a directory that this file or
/// directory is in, and so have the bridge start with another one. It is no fault, because volumes of
/// container platforms often are such directories, and no other user is there.
#[must_use]
pub fn replaceable(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let resolved = fs::canonicalize(&path).ok();
    [Some(path), resolved].into_iter().flatten().find_map(|path| {
        path.ancestors().skip(1).find_map(|directory| {
            let mode = mode_for_everybody(directory)?;
            Some(format!(
                "other users of this machine can replace what is in {} (mode {mode:04o}): run `chmod o-w \
                 {}`",
                directory.display(),
                directory.display()
            ))
        })
    })
}

/// Checks a file that will be trusted. A file that does not exist, or cannot be inspected, passes: the
/// error of opening it says more.
///
/// # Errors
/// Others can change it.
pub fn file(path: &Path, by: By) -> Result<(), Untrusted> {
    match fs::metadata(path) {
        Ok(metadata) => check_file(path, &metadata, by),
        Err(_) => Ok(()),
    }
}

/// Checks a directory of ours and its content, down to the files of its directories. What does not
/// exist, or cannot be inspected, passes here too.
///
/// # Errors
/// The first thing that others can change.
pub fn directory(path: &Path, by: By) -> Result<(), Untrusted> {
    tree(path, by, 1)
}

fn tree(path: &Path, by: By, levels: u32) -> Result<(), Untrusted> {
    let Ok(metadata) = fs::metadata(path) else {
        return Ok(());
    };
    check_metadata(path, &metadata, by)?;
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() && levels > 0 => tree(&path, by, levels - 1)?,
            Ok(metadata) if metadata.is_dir() || metadata.is_file() => {
                check_metadata(&path, &metadata, by)?;
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn check_file(path: &Path, metadata: &Metadata, by: By) -> Result<(), Untrusted> {
    // Pipes and devices have no content that another user could have written earlier.
    if !metadata.is_file() {
        return Ok(());
    }
    check_metadata(path, metadata, by).and_then(|()| check_parents(path))
}

fn check_metadata(path: &Path, metadata: &Metadata, by: By) -> Result<(), Untrusted> {
    let process = rustix::process::geteuid().as_raw();
    check_mode(path, metadata.mode(), metadata.uid(), process, by)
}

fn check_mode(path: &Path, mode: u32, owner: u32, process: u32, by: By) -> Result<(), Untrusted> {
    let is_directory = mode & FILE_TYPE == DIRECTORY;
    let mode = mode & PERMISSIONS;
    // In a sticky directory others can create files, which are not trusted, and cannot change ours.
    let is_sticky = is_directory && mode & STICKY != 0;
    if mode & (GROUP_WRITES | OTHERS_WRITE) != 0 && !is_sticky {
        return Err(Untrusted::Writable {
            path: path.to_owned(),
            mode,
            change: "go-w",
        });
    }
    let is_looked_after = process == ROOT && by == By::Reader;
    if owner == ROOT || owner == process || is_looked_after {
        return Ok(());
    }
    Err(Untrusted::Owned {
        path: path.to_owned(),
        owner,
        process,
    })
}

/// A user who can write to a directory can replace the files in it: in the directory of a link, and in that
/// of what the link leads to. A directory that its group can write passes, because many systems share
/// projects that way.
fn check_parents(path: &Path) -> Result<(), Untrusted> {
    for path in [Some(path.to_owned()), fs::canonicalize(path).ok()] {
        let parent = path.as_deref().and_then(Path::parent);
        let parent = match parent {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => continue,
        };
        if let Some(mode) = mode_for_everybody(parent) {
            return Err(Untrusted::Writable {
                path: parent.to_owned(),
                mode,
                change: "o-w",
            });
        }
    }
    Ok(())
}

/// The mode of a directory in which everybody can replace what is not theirs.
fn mode_for_everybody(directory: &Path) -> Option<u32> {
    let mode = fs::metadata(directory).ok()?.mode() & PERMISSIONS;
    (mode & OTHERS_WRITE != 0 && mode & STICKY == 0).then_some(mode)
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
            assert!(open(&path, By::Reader).is_ok(), "{mode:o}");
            assert!(super::file(&path, By::Bridge).is_ok(), "{mode:o}");
        }
        for mode in [0o620, 0o602, 0o664, 0o666, 0o777] {
            let (_directory, path) = file(mode);
            assert!(super::file(&path, By::Bridge).is_err(), "{mode:o}");
            let error = open(&path, By::Bridge).unwrap_err();
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
            assert_eq!(open(&path, By::Reader).is_err(), is_refused, "{mode:o}");
        }
    }

    #[test]
    fn a_directory_above_in_which_everybody_can_replace_the_one_below_is_pointed_out() {
        let top = tempfile::tempdir().unwrap();
        let below = top.path().join("data/keys");
        fs::create_dir_all(&below).unwrap();
        let key = below.join("key");
        fs::write(&key, "x").unwrap();
        assert_eq!(replaceable(&key), None);
        for path in [top.path().to_owned(), top.path().join("data")] {
            set(&path, 0o757);
            for inner in [&key, &below, &below.join("missing")] {
                let said = replaceable(inner).unwrap();
                assert!(
                    said.contains(&format!("`chmod o-w {}`", path.display())),
                    "{said}"
                );
                assert!(super::file(inner, By::Bridge).is_ok());
            }
            for passes in [0o1777, 0o775] {
                set(&path, passes);
                assert_eq!(replaceable(&key), None);
            }
            set(&path, 0o755);
        }
    }

    #[test]
    fn a_link_is_trusted_only_if_what_it_leads_to_is() {
        let (directory, path) = file(0o600);
        let other = tempfile::tempdir().unwrap();
        let link = other.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(open(&link, By::Bridge).is_ok());
        for refused in [directory.path(), other.path()] {
            set(refused, 0o777);
            let said = open(&link, By::Bridge).unwrap_err().to_string();
            let command = format!("chmod o-w {}`", refused.display());
            assert!(said.contains(&command), "{said}");
            set(refused, 0o700);
        }
        set(&path, 0o602);
        assert!(open(&link, By::Bridge).is_err());
        // A second name of a file is the same file.
        let second = other.path().join("second");
        set(&path, 0o600);
        fs::hard_link(&path, &second).unwrap();
        assert!(open(&second, By::Bridge).is_ok());
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        for path in [&pipe, directory.path(), Path::new("/dev/zero")] {
            let error = open_regular(path, Some(By::Bridge)).unwrap_err();
            assert!(error.to_string().contains("not a regular file"), "{error}");
        }
        let (_directory, path) = file(0o666);
        assert!(open_regular(&path, Some(By::Bridge)).is_err());
        assert!(open_regular(&path, None).is_ok());
        let missing = open_regular(&directory.path().join("x"), None).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_file_is_not_checked() {
        // Everybody can write to it.
        assert!(open(Path::new("/dev/null"), By::Bridge).is_ok());
    }

    #[test]
    fn only_root_and_this_user_may_own_what_is_trusted() {
        let check =
            |owner, process, by| check_mode(Path::new("/x/key"), 0o100_600, owner, process, by);
        for by in [By::Bridge, By::Reader] {
            for owner in [0, 1000] {
                assert_eq!(check(owner, 1000, by), Ok(()));
            }
            let fault = check(1001, 1000, by).unwrap_err();
            assert!(fault.to_string().contains("chown 1000 /x/key"), "{fault}");
        }
        assert!(check(1000, 0, By::Bridge).is_err());
        assert_eq!(check(1000, 0, By::Reader), Ok(()), "root looks after it");
    }

    #[test]
    fn a_directory_is_checked_with_its_files_and_those_of_its_directories() {
        let directory = tempfile::tempdir().unwrap();
        let within = |name: &str| directory.path().join(name);
        assert!(super::directory(&within("missing"), By::Bridge).is_ok());
        fs::create_dir(within("keys")).unwrap();
        for name in ["log", "keys/app"] {
            fs::write(within(name), "").unwrap();
        }
        std::os::unix::fs::symlink("nowhere", within("link")).unwrap();
        super::directory(directory.path(), By::Bridge).unwrap();
        for name in ["", "log", "keys", "keys/app"] {
            let path = if name.is_empty() {
                directory.path().to_owned()
            } else {
                within(name)
            };
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            set(&path, mode | 0o002);
            let error = super::directory(directory.path(), By::Bridge).unwrap_err();
            let command = format!("chmod go-w {}`", path.display());
            assert!(error.to_string().ends_with(&command), "{error}");
            set(&path, mode);
        }
        super::directory(directory.path(), By::Bridge).unwrap();
        assert_eq!(shared(directory.path()), None);
    }

    #[test]
    fn a_sticky_directory_passes_and_is_pointed_out() {
        let directory = tempfile::tempdir().unwrap();
        set(directory.path(), 0o1777);
        super::directory(directory.path(), By::Bridge).unwrap();
        let said = shared(directory.path()).unwrap();
        assert!(said.contains("chmod go-w"), "{said}");
        // The bit means nothing on a file.
        let path = directory.path().join("key");
        fs::write(&path, "").unwrap();
        set(&path, 0o1666);
        assert!(super::directory(directory.path(), By::Bridge).is_err());
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
