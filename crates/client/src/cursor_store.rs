//! Owns where a consumer's cursor is stored between its runs: the trait, and a file. Knows nothing of
//! what a cursor means.

use std::{
    error::Error as StdError,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use futures_util::future::BoxFuture;

/// Why a store failed.
pub type StoreError = Box<dyn StdError + Send + Sync>;

/// Stores the cursor of one consumer.
///
/// Store the cursor in the transaction that stores your results: each event then takes effect exactly
/// once. Such a consumer does not need this trait: it writes
/// [`Subscription::cursor`](super::Subscription::cursor) itself.
pub trait CursorStore: Send + Sync + 'static {
    /// The cursor that was saved last; `None` if none was.
    fn load(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>>;

    /// Saves the cursor. When this returns, the cursor must survive a crash.
    fn save<'a>(&'a self, cursor: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// Stores a cursor in a file of its own, which always holds either the old or the new one.
#[derive(Clone, Debug)]
pub struct FileCursorStore {
    path: PathBuf,
}

/// Longer than any cursor: a larger file is not a cursor file.
const FILE_BYTES_MAX: u64 = 1024;

impl FileCursorStore {
    /// A store in the file at `path`. The file need not exist, but its directory must. Two consumers
    /// must not share a file.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl CursorStore for FileCursorStore {
    fn load(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        let path = self.path.clone();
        Box::pin(blocking(path, read))
    }

    fn save<'a>(&'a self, cursor: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        let cursor = cursor.to_owned();
        let path = self.path.clone();
        Box::pin(blocking(path, move |path| replace(path, &cursor)))
    }
}

/// Runs on a blocking thread, because disks can be slow.
async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let shown = path.display().to_string();
    match tokio::task::spawn_blocking(move || work(&path)).await {
        Ok(done) => done.map_err(|error| format!("{shown}: {error}").into()),
        Err(error) => Err(format!("{shown}: {error}").into()),
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    let cursor = text.trim();
    let is_one_word = cursor.bytes().all(|byte| byte.is_ascii_graphic());
    if text.len() as u64 > FILE_BYTES_MAX || !is_one_word {
        let problem = "this is not a cursor's file; remove it, or name another";
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok((!cursor.is_empty()).then(|| cursor.to_owned()))
}

/// Writes a temporary file, syncs it, renames it over the old file, and syncs the directory, which has
/// the name. A crash leaves the old or the new file.
fn replace(path: &Path, cursor: &str) -> io::Result<()> {
    let mut beside: OsString = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = File::create(&beside)?;
    file.write_all(cursor.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_saved_cursor_is_loaded_by_the_next_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cursor");
        let store = FileCursorStore::new(&path);
        assert_eq!(store.load().await.unwrap(), None);
        store.save("first").await.unwrap();
        store.save("second").await.unwrap();
        let next = FileCursorStore::new(&path);
        assert_eq!(next.load().await.unwrap().as_deref(), Some("second"));
        // Nothing stays beside it.
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_crash_before_the_replacement_leaves_the_old_cursor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cursor");
        let store = FileCursorStore::new(&path);
        store.save("old").await.unwrap();
        fs::write(directory.path().join("cursor.new"), "half of a n").unwrap();
        assert_eq!(store.load().await.unwrap().as_deref(), Some("old"));
        store.save("new").await.unwrap();
        assert_eq!(store.load().await.unwrap().as_deref(), Some("new"));
    }

    #[tokio::test]
    async fn an_empty_file_holds_no_cursor() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let store = FileCursorStore::new(file.path());
        assert_eq!(store.load().await.unwrap(), None);
    }

    #[tokio::test]
    async fn some_other_file_is_not_taken_for_a_cursor() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let store = FileCursorStore::new(file.path());
        for content in ["two words", &"x".repeat(2000)] {
            fs::write(file.path(), content).unwrap();
            let error = store.load().await.unwrap_err().to_string();
            assert!(error.contains("not a cursor's file"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_directory_that_is_missing_is_an_error_with_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileCursorStore::new(directory.path().join("missing/cursor"));
        let error = store.save("any").await.unwrap_err().to_string();
        assert!(error.contains("missing/cursor"), "{error}");
    }
}
