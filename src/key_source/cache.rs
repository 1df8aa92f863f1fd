//! The last good key set on disk, so that a restart during an outage of the key server loses nothing.
//!
//! It stores the document as it was served, never a judgement about it: what is loaded is parsed and
//! checked like a fresh answer. It belongs to one URL; a changed configuration does not see it.

use std::borrow::Cow;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::DOCUMENT_BYTES_MAX;

/// The document inside of a JSON string can take six bytes for one.
const FILE_BYTES_MAX: u64 = 6 * DOCUMENT_BYTES_MAX as u64 + 4096;

/// One file of one key source.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    path: PathBuf,
    url: String,
}

/// What was stored, and when it was fetched.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) document: Vec<u8>,
    pub(super) fetched_at: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct Content<'a> {
    #[serde(borrow)]
    url: Cow<'a, str>,
    fetched_at_unix_seconds: u64,
    jwks: String,
}

impl Cache {
    pub(super) fn new(directory: &Path, name: &str, url: &str) -> Self {
        Self {
            path: directory.join(file_name(name)),
            url: url.to_owned(),
        }
    }

    /// The stored set, unless there is none, it is of another URL, damaged, or too old.
    pub(super) fn load(&self, age_max: Duration) -> Option<Stored> {
        let mut text = String::new();
        std::fs::File::open(&self.path)
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
            .ok()?;
        let content: Content<'_> = serde_json::from_str(&text).ok()?;
        let fetched_at = UNIX_EPOCH + Duration::from_secs(content.fetched_at_unix_seconds);
        // A clock that went back since makes the set look newer than now: then its age is zero.
        let age = SystemTime::now()
            .duration_since(fetched_at)
            .unwrap_or_default();
        (content.url == self.url && age < age_max).then(|| Stored {
            document: content.jwks.into_bytes(),
            fetched_at,
        })
    }

    /// Replaces the stored set; a crash leaves the old one or the new one.
    pub(super) fn store(&self, document: &[u8], fetched_at: SystemTime) -> std::io::Result<()> {
        let content = Content {
            url: Cow::Borrowed(&self.url),
            fetched_at_unix_seconds: fetched_at
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            jwks: String::from_utf8_lossy(document).into_owned(),
        };
        let directory = self.path.parent().unwrap_or(Path::new("."));
        make_private_directory(directory)?;
        let fresh = self.path.with_extension("new");
        let mut file = create_private(&fresh)?;
        file.write_all(&serde_json::to_vec(&content)?)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        std::fs::File::open(directory)?.sync_all()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// For this user alone, also where an earlier version or another program made it for everybody.
fn make_private_directory(directory: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)?;
    restrict(&std::fs::File::open(directory)?, 0o700)
}

fn create_private(path: &Path) -> std::io::Result<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    restrict(&file, 0o600)?;
    Ok(file)
}

/// Takes away what is allowed to others. A mode given at creation does nothing where the file is
/// there already.
fn restrict(file: &std::fs::File, mode: u32) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let now = file.metadata()?.permissions().mode();
        if now & 0o077 != 0 {
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        }
    }
    #[cfg(not(unix))]
    let _ = (file, mode);
    Ok(())
}

/// Names, such as app ids, are text of the operator's: what could leave the directory or collide is spelt in hex.
fn file_name(name: &str) -> String {
    let mut file = String::from("jwks-");
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => file.push(char::from(byte)),
            _ => file.push_str(&format!("_{byte:02x}")),
        }
    }
    file + ".json"
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn what_was_stored_is_loaded_again() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(
            &directory.path().join("made/on/demand"),
            "app",
            "https://a/?b\\c",
        );
        assert_eq!(cache.load(DAY), None);
        let at = UNIX_EPOCH
            + Duration::from_secs(
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap()
                    .as_secs()
                    - 60,
            );
        for document in [&b"{\"keys\":[]}"[..], b"\"another\" one"] {
            cache.store(document, at).unwrap();
            let stored = cache.load(DAY).unwrap();
            assert_eq!(
                (stored.document.as_slice(), stored.fetched_at),
                (document, at)
            );
        }
        assert_eq!(cache.load(Duration::from_secs(59)), None, "too old");
        let elsewhere = Cache {
            url: "https://b/".into(),
            ..cache
        };
        assert_eq!(elsewhere.load(DAY), None, "of another URL");
    }

    #[cfg(unix)]
    #[test]
    fn the_directory_and_its_files_are_for_this_user_alone_also_where_they_were_not() {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let allow_all = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("keys");
        let cache = Cache::new(&directory, "app", "https://a/");
        cache.store(b"{}", SystemTime::now()).unwrap();
        assert_eq!((mode(&directory), mode(cache.path())), (0o700, 0o600));

        allow_all(&directory, 0o755);
        allow_all(cache.path(), 0o644);
        let left_over = cache.path().with_extension("new");
        std::fs::write(&left_over, "").unwrap();
        allow_all(&left_over, 0o666);
        cache.store(b"{}", SystemTime::now()).unwrap();
        assert_eq!((mode(&directory), mode(cache.path())), (0o700, 0o600));
    }

    #[test]
    fn the_largest_document_fits() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path(), "app", "https://a/?b\\c");
        let document = vec![1; DOCUMENT_BYTES_MAX];
        cache.store(&document, SystemTime::now()).unwrap();
        assert_eq!(cache.load(DAY).unwrap().document, document);
    }

    #[test]
    fn a_damaged_file_counts_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(directory.path(), "app", "https://a/?b\\c");
        cache.store(b"{}", SystemTime::now()).unwrap();
        let whole = std::fs::read(cache.path()).unwrap();
        for damaged in [&whole[..whole.len() / 2], b"", b"\xff\xff"] {
            std::fs::write(cache.path(), damaged).unwrap();
            assert_eq!(cache.load(DAY), None);
        }
    }

    #[test]
    fn an_app_id_cannot_leave_the_directory_or_take_another_name() {
        assert_eq!(file_name("54e9ujn"), "jwks-54e9ujn.json");
        assert_eq!(file_name("../a"), "jwks-_2e_2e_2fa.json");
        assert_ne!(file_name("A"), file_name("a"));
        assert_ne!(file_name("_41"), file_name("A"));
    }
}
