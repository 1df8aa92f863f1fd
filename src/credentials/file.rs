//! Owns the credentials file: reading it, and changing it so that two changes at once lose nothing
//! and a crash leaves the old file or the new one. `document` knows what is in it.

use std::{
    fs::{self, File as FsFile, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use tempfile::NamedTempFile;

use super::{
    Error,
    document::{self, Document},
    edit,
    entry::{Entry, Proof},
    rotation::{Rotation, RotationError},
    token::Digest,
};
use crate::permissions::{self, By};

/// A thousand bytes for each of the most credentials that there can be. A log named by mistake is larger.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// How long a command waits for another, which holds the lock for some milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// A credential whose tokens were changed.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// What was replaced in the file, whatever was read of it earlier.
    pub before: Entry,
    /// As it is now.
    pub after: Entry,
}

/// A file of credentials, which may not be there yet.
#[derive(Clone, Debug)]
pub struct File {
    path: PathBuf,
}

impl File {
    /// The file at a path.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All credentials, in their order; `None` if there is no file.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Invalid`].
    pub fn read(&self) -> Result<Option<Vec<Entry>>, Error> {
        Ok(self.document()?.map(|document| document.entries))
    }

    /// All credentials, with warnings of what may be a mistake.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Invalid`].
    pub fn document(&self) -> Result<Option<Document>, Error> {
        let text = self
            .text(By::Reader)
            .map_err(|source| self.unreadable(source))?;
        text.map(|text| self.parse(&text)).transpose()
    }

    /// Adds a credential, and creates the file if there is none.
    ///
    /// # Errors
    /// [`Error::Taken`] if another one has its name or its identity; otherwise why the file cannot
    /// be read or written. Nothing is changed then.
    pub fn add(&self, entry: &Entry) -> Result<(), Error> {
        self.change(|text| {
            for other in self.parse(text)?.entries {
                let what = match (&other.proof, &entry.proof) {
                    _ if other.name == entry.name => "name",
                    (Proof::Certificate(one), Proof::Certificate(other)) if one == other => {
                        "identity"
                    }
                    _ => continue,
                };
                return Err(Error::Taken {
                    path: self.path.clone(),
                    what,
                    name: other.name,
                });
            }
            edit::with(text, entry).map_err(|faults| self.invalid(faults))
        })
    }

    /// Removes the credential of this name.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none; otherwise why the file cannot be read or written.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let unknown = || Error::Unknown {
            path: self.path.clone(),
            name: name.to_owned(),
        };
        // No file and no lock is created where there is nothing to remove.
        if !self.path.exists() {
            return Err(unknown());
        }
        self.change(|text| {
            edit::without(text, name)
                .map_err(|faults| self.invalid(faults))?
                .ok_or_else(unknown)
        })
    }

    /// Gives the credential of this name a new token.
    ///
    /// # Errors
    /// [`Error::Unknown`] and [`Error::Rotation`]; otherwise why the file cannot be read or written.
    pub fn rotate(&self, name: &str, rotation: &Rotation) -> Result<Rotated, Error> {
        self.change_tokens(name, |entry| entry.rotated(rotation))
    }

    /// Takes a rotation back whose new token nobody has seen: the credential has the tokens that it had,
    /// as [`Rotated::before`] says.
    ///
    /// # Errors
    /// As [`File::rotate`]; also if the token is not the current one any more.
    pub fn take_back(&self, before: &Entry, digest: Digest) -> Result<Entry, Error> {
        let taken_back = self.change_tokens(&before.name, |entry| {
            if entry.proof == Proof::Token(digest) {
                Ok(before.clone())
            } else {
                Err(RotationError::Changed)
            }
        });
        taken_back.map(|changed| changed.after)
    }

    /// Removes the old token of the credential of this name.
    ///
    /// # Errors
    /// As [`File::rotate`].
    pub fn remove_old_token(&self, name: &str) -> Result<Entry, Error> {
        let changed = self.change_tokens(name, Entry::without_old_token);
        changed.map(|changed| changed.after)
    }

    fn change_tokens(
        &self,
        name: &str,
        change: impl FnOnce(&Entry) -> Result<Entry, RotationError>,
    ) -> Result<Rotated, Error> {
        let unknown = || Error::Unknown {
            path: self.path.clone(),
            name: name.to_owned(),
        };
        if !self.path.exists() {
            return Err(unknown());
        }
        let mut changed = None;
        self.change(|text| {
            let mut entries = self.parse(text)?.entries.into_iter();
            let entry = entries.find(|entry| entry.name == name);
            let before = entry.ok_or_else(unknown)?;
            let after = change(&before).map_err(|source| Error::Rotation {
                name: name.to_owned(),
                source,
            })?;
            let text = edit::with_tokens_of(text, &after).map_err(|faults| self.invalid(faults))?;
            changed = Some(Rotated { before, after });
            text.ok_or_else(unknown)
        })?;
        changed.ok_or_else(unknown)
    }

    /// The text of the file; `None` if there is no file. The file is missing only if the system says so: a
    /// lack of file descriptors, for example, says nothing of the file.
    pub(super) fn text(&self, by: By) -> io::Result<Option<String>> {
        match permissions::open_regular(&self.path, Some(by)) {
            Ok(file) => Self::read_text(file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The text for a command that writes a new file, with the right mode.
    fn text_to_change(&self) -> io::Result<String> {
        match permissions::open_regular(&self.path, None) {
            Ok(file) => Self::read_text(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error),
        }
    }

    fn read_text(file: FsFile) -> io::Result<String> {
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        if u64::try_from(read).is_ok_and(|read| read > FILE_BYTES_MAX) {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it is larger than {FILE_BYTES_MAX} bytes"),
            ));
        }
        Ok(text)
    }

    pub(super) fn parse(&self, text: &str) -> Result<Document, Error> {
        document::parse(text).map_err(|faults| self.invalid(faults))
    }

    pub(super) fn unreadable(&self, source: io::Error) -> Error {
        Error::Read {
            path: self.path.clone(),
            source,
        }
    }

    pub(super) fn cut_short(&self) -> Error {
        Error::CutShort {
            path: self.path.clone(),
        }
    }

    fn invalid(&self, faults: Vec<super::Fault>) -> Error {
        Error::Invalid {
            path: self.path.clone(),
            faults,
        }
    }

    fn change(&self, edit: impl FnOnce(&str) -> Result<String, Error>) -> Result<(), Error> {
        let unwritable = |source| Error::Write {
            path: self.path.clone(),
            source,
        };
        let path = target(&self.path);
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        make_private_directory(directory).map_err(unwritable)?;
        // Held until the end of this function.
        let _lock = lock(&path)?;
        let text = self.text_to_change();
        let text = edit(&text.map_err(|source| self.unreadable(source))?)?;
        // Never leave a file that the bridge would refuse.
        self.parse(&text)?;
        write(&path, directory, &text).map_err(unwritable)
    }
}

/// The file that a link leads to, so that a change keeps the link. It may not be there yet.
fn target(path: &Path) -> PathBuf {
    let created = || {
        let leads_to = fs::read_link(path).ok()?;
        Some(path.parent()?.join(leads_to))
    };
    let target = fs::canonicalize(path).ok().or_else(created);
    target.unwrap_or_else(|| path.to_owned())
}

/// The lock is a file of its own, because every change replaces the credentials file.
fn lock(file: &Path) -> Result<FsFile, Error> {
    let mut path = file.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let unlockable = |source| Error::Lock {
        path: path.clone(),
        source,
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&path).map_err(unlockable)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(LOCK_RETRY_INTERVAL);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(unlockable(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another command has been changing it for 10 s",
                )));
            }
            Err(TryLockError::Error(error)) => return Err(unlockable(error)),
        }
    }
}

/// Replaces the file, for this user only. The new file belongs to the owner of the old one, so that a
/// command that root runs does not take the file from the bridge.
fn write(path: &Path, directory: &Path, text: &str) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    #[cfg(unix)]
    keep_owner(file.as_file(), path, directory);
    file.as_file().sync_all()?;
    file.persist(path)?;
    FsFile::open(directory)?.sync_all()
}

/// Gives a new file to the owner of the one that it replaces. Only root can; any other user's files stay
/// that user's.
#[cfg(unix)]
pub(super) fn keep_owner(file: &FsFile, path: &Path, directory: &Path) {
    use std::os::unix::fs::{MetadataExt as _, fchown};
    let before = fs::metadata(path).or_else(|_| fs::metadata(directory));
    if let (Ok(before), Ok(now)) = (before, file.metadata())
        && before.uid() != now.uid()
    {
        let _ = fchown(file, Some(before.uid()), Some(before.gid()));
    }
}

fn make_private_directory(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{CertificateName, Scope, Token};

    fn entry(name: &str) -> Entry {
        Entry {
            name: name.to_owned(),
            proof: Proof::Token(Token::generate().unwrap().digest()),
            previous: None,
            scope: Scope::default(),
            streams_max: None,
            connections_max: None,
            unsent_bytes_max: None,
            created_at: None,
            expires_at: None,
        }
    }

    fn in_new_directory() -> (tempfile::TempDir, File) {
        let directory = tempfile::tempdir().unwrap();
        let file = File::new(directory.path().join("made/credentials.toml"));
        (directory, file)
    }

    #[test]
    fn what_was_added_is_read_and_what_was_removed_is_not() {
        let (_directory, file) = in_new_directory();
        assert_eq!(file.read().unwrap(), None);
        let (one, two) = (entry("one"), entry("two"));
        file.add(&one).unwrap();
        file.add(&two).unwrap();
        assert_eq!(file.read().unwrap(), Some(vec![one, two.clone()]));
        file.remove("one").unwrap();
        assert_eq!(file.read().unwrap(), Some(vec![two]));
        file.remove("two").unwrap();
        assert_eq!(
            file.read().unwrap(),
            Some(Vec::new()),
            "an empty file is a file"
        );
    }

    #[test]
    fn a_name_or_an_identity_is_given_once() {
        let (_directory, file) = in_new_directory();
        file.add(&entry("one")).unwrap();
        let error = file.add(&entry("one")).unwrap_err();
        assert!(
            matches!(error, Error::Taken { what: "name", .. }),
            "{error}"
        );
        let certificate = |name: &str| Entry {
            proof: Proof::Certificate(CertificateName::parse("spiffe://e/1")),
            ..entry(name)
        };
        file.add(&certificate("two")).unwrap();
        let error = file.add(&certificate("three")).unwrap_err();
        assert!(matches!(&error, Error::Taken { what: "identity", name, .. } if name == "two"));
        assert_eq!(file.read().unwrap().unwrap().len(), 2);
    }

    #[test]
    fn what_is_not_there_cannot_be_removed() {
        let (directory, file) = in_new_directory();
        let error = file.remove("one").unwrap_err();
        assert!(matches!(error, Error::Unknown { .. }), "{error}");
        assert!(!directory.path().join("made").exists(), "nothing was made");
        file.add(&entry("one")).unwrap();
        assert!(matches!(file.remove("two"), Err(Error::Unknown { .. })));
    }

    #[test]
    fn a_file_that_is_wrong_is_not_changed() {
        let (_directory, file) = in_new_directory();
        file.add(&entry("one")).unwrap();
        let broken = fs::read_to_string(file.path()).unwrap() + "typo\n";
        fs::write(file.path(), &broken).unwrap();
        for error in [
            file.add(&entry("two")).unwrap_err(),
            file.remove("one").unwrap_err(),
            file.read().unwrap_err(),
        ] {
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        }
        assert_eq!(fs::read_to_string(file.path()).unwrap(), broken);
    }

    #[test]
    fn changes_at_once_lose_nothing() {
        let (directory, file) = in_new_directory();
        thread::scope(|scope| {
            for thread in 0..8 {
                let file = &file;
                scope.spawn(move || {
                    for index in 0..8 {
                        file.add(&entry(&format!("{thread}-{index}"))).unwrap();
                    }
                    file.remove(&format!("{thread}-0")).unwrap();
                });
            }
        });
        assert_eq!(file.read().unwrap().unwrap().len(), 8 * 7);
        let left: Vec<_> = fs::read_dir(directory.path().join("made"))
            .unwrap()
            .collect();
        assert_eq!(left.len(), 2, "the file and its lock: {left:?}");
    }

    #[cfg(unix)]
    #[test]
    fn the_file_and_its_directory_are_for_this_user_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_directory, file) = in_new_directory();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        file.add(&entry("one")).unwrap();
        assert_eq!(mode(file.path()), 0o600);
        assert_eq!(mode(file.path().parent().unwrap()), 0o700);
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o666)).unwrap();
        file.add(&entry("two")).unwrap();
        assert_eq!(mode(file.path()), 0o600);
        assert_eq!(mode(&file.path().with_extension("toml.lock")), 0o600);
    }

    #[test]
    fn a_file_that_cannot_be_read_or_is_too_large_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = File::new(directory.path().to_owned()).read().unwrap_err();
        assert!(matches!(error, Error::Read { .. }), "{error}");
        let path = directory.path().join("credentials.toml");
        let large = "#".repeat(usize::try_from(FILE_BYTES_MAX).unwrap() + 1);
        fs::write(&path, large).unwrap();
        let error = File::new(path.clone()).read().unwrap_err().to_string();
        assert!(error.contains("larger than 4194304 bytes"), "{error}");
        let below_a_file = File::new(path.join("credentials.toml"));
        let error = below_a_file.add(&entry("one")).unwrap_err();
        assert!(matches!(error, Error::Write { .. }), "{error}");
    }
}
