//! Owns the directory: the names in it, which of its files count when it is opened, and how files
//! that do not count are put aside.
//!
//! | name | what it is |
//! |---|---|
//! | `ids-FROM-THROUGH` | the keys of the events from one to another |
//! | `ids-….writing` | a file that is being written; removed when the directory is opened |
//! | `ids-….aside` | a file that does not count; the caller may take it |
//! | `forgotten-THROUGH` | the keys of the events up to this one were forgotten; empty |

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    Error,
    file::{IdFile, sync_directory},
};
use prelude_bridge_event::{LogId, Sequence};

const FILE: &str = "ids-";
const FORGOTTEN: &str = "forgotten-";
const WRITING: &str = ".writing";
const ASIDE: &str = ".aside";

/// A file that does not count, and why. It was given another name, and nothing reads it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Aside {
    pub(crate) path: PathBuf,
    pub(crate) reason: String,
}

/// What was found in a directory.
pub(super) struct Found {
    /// The files that count: each begins with the event after the last one of the file before.
    pub(super) files: Vec<IdFile>,
    /// Keys of the events up to this one were forgotten.
    pub(super) forgotten: Sequence,
    pub(super) aside: Vec<Aside>,
}

/// The name of a file of keys.
pub(super) fn file_path(directory: &Path, from: Sequence, through: Sequence) -> PathBuf {
    directory.join(format!("{FILE}{:020}-{:020}", from.0, through.0))
}

/// The name of a file while it is being written.
pub(super) fn writing_path(directory: &Path, from: Sequence, through: Sequence) -> PathBuf {
    with_suffix(&file_path(directory, from, through), WRITING)
}

/// Finds out what is in the directory, and puts it in order. That need not be durable: whatever is
/// written later flushes the directory, and until then a start does the same again.
pub(super) fn open(directory: &Path, log: LogId) -> Result<Found, Error> {
    let error = |source| Error::io(directory, source);
    create(directory).map_err(error)?;
    let (mut files, mut aside, mut marks) = (Vec::new(), Vec::new(), Vec::new());
    for entry in directory.read_dir().map_err(error)? {
        let path = entry.map_err(error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(through) = name.strip_prefix(FORGOTTEN).and_then(number) {
            marks.push(through);
        } else if name.ends_with(WRITING) {
            remove(&path)?;
        } else if name.ends_with(ASIDE) {
            let reason = "it was put aside before".to_owned();
            aside.push(Aside { path, reason });
        } else if name.starts_with(FILE) {
            match open_file(&path, log) {
                Ok(file) => files.push(file),
                Err(Error::Damaged { reason, .. }) => put_aside(&path, reason, &mut aside)?,
                Err(error) => return Err(error),
            }
        }
    }
    marks.sort_unstable();
    let forgotten = Sequence(marks.pop().unwrap_or(0));
    for mark in marks {
        remove(&mark_path(directory, Sequence(mark)))?;
    }
    let files = chain(files, forgotten, &mut aside)?;
    Ok(Found {
        files,
        forgotten,
        aside,
    })
}

fn create(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)?;
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Opens a file of keys, and checks that it is what its name says.
pub(super) fn open_file(path: &Path, log: LogId) -> Result<IdFile, Error> {
    let file = IdFile::open(path)?;
    let footer = &file.footer;
    if footer.log != log {
        return Err(Error::damaged(path, "it belongs to another log"));
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    if file_path(directory, footer.from, footer.through) != path || footer.from > footer.through {
        return Err(Error::damaged(path, "it is not what its name says"));
    }
    Ok(file)
}

/// Whether a file counts by its name.
pub(super) fn is_file_of_keys(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(FILE) && !name.ends_with(WRITING) && !name.ends_with(ASIDE)
}

/// Keeps the files that continue each other, from the first event that is not forgotten on. Removes
/// those whose keys are in another file, or forgotten: a crash has left them.
fn chain(
    mut files: Vec<IdFile>,
    forgotten: Sequence,
    aside: &mut Vec<Aside>,
) -> Result<Vec<IdFile>, Error> {
    // Of two that begin with the same event the one that goes further comes first.
    files.sort_by_key(|file| (file.footer.from, std::cmp::Reverse(file.footer.through)));
    let (mut chain, mut through) = (Vec::new(), forgotten);
    let mut is_broken = false;
    for file in files {
        let footer = file.footer;
        if footer.through <= through && !is_broken {
            remove(&file.path)?;
        } else if footer.from == through.plus(1) && !is_broken {
            through = footer.through;
            chain.push(file);
        } else {
            is_broken = true;
            let reason = format!(
                "the keys of the events from {} on are missing",
                through.plus(1)
            );
            put_aside(&file.path, reason, aside)?;
        }
    }
    Ok(chain)
}

/// Gives a file a name under which nothing reads it.
pub(super) fn put_aside(path: &Path, reason: String, aside: &mut Vec<Aside>) -> Result<(), Error> {
    let to = with_suffix(path, ASIDE);
    fs::rename(path, &to).map_err(|error| Error::io(path, error))?;
    aside.push(Aside { path: to, reason });
    Ok(())
}

/// Notes that the keys of the events up to `through` are forgotten. Durable when this returns.
pub(super) fn mark_forgotten(
    directory: &Path,
    before: Sequence,
    through: Sequence,
) -> Result<(), Error> {
    let path = mark_path(directory, through);
    File::create(&path).map_err(|error| Error::io(&path, error))?;
    sync_directory(directory)?;
    if before > Sequence::ZERO && before != through {
        remove(&mark_path(directory, before))?;
    }
    Ok(())
}

fn mark_path(directory: &Path, through: Sequence) -> PathBuf {
    directory.join(format!("{FORGOTTEN}{:020}", through.0))
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
