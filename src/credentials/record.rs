//! Owns the record in the data directory that subscribers need a credential. By it the bridge knows whether a
//! credentials file that is missing was ever there. Knows nothing of the content of that file.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::last_use::LastUseFile;

/// Its name says what it does, and has no pattern in common with that of the credentials file, so that one `rm`
/// with a pattern does not remove both.
const FILE: &str = "subscribers-need-a-credential";

const EXPLANATION: &str = "\
# Subscribers of this bridge need a credential: it had some once. As long as this file is here, a
# credentials file that is missing lets nobody in. To let subscribers in without a credential, set
# `allow_anonymous`. To begin anew, as a bridge that never had credentials, stop the bridge and
# remove this file.
";
const CREDENTIALS_FILE: &str = "credentials_file = ";
const HAS_END: &str = "has_end = ";

/// The record of one data directory.
#[derive(Clone, Debug)]
pub struct Record {
    directory: PathBuf,
}

/// What is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The credentials file that was in force; `None` if credentials were JWTs alone.
    pub credentials_file: Option<String>,
    /// Whether that had its last line.
    pub has_end: bool,
}

impl Record {
    /// The record in a data directory, which may not be there yet.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// The file of last uses in the same directory.
    pub(super) fn last_use_file(&self) -> LastUseFile {
        LastUseFile::new(self.directory.clone())
    }

    /// What is recorded; `None` if credentials were never in force. A record that cannot be read or
    /// parsed counts as one.
    #[must_use]
    pub fn read(&self) -> Option<Recorded> {
        let text = match fs::read_to_string(self.path()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => String::new(),
        };
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        Some(Recorded {
            credentials_file: value(CREDENTIALS_FILE).map(str::to_owned),
            has_end: value(HAS_END) == Some("true"),
        })
    }

    /// Makes the record durable. It does nothing if there is no data directory.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, recorded: &Recorded) -> io::Result<()> {
        if self.read().as_ref() == Some(recorded) || !self.directory.is_dir() {
            return Ok(());
        }
        let mut text = EXPLANATION.to_owned();
        if let Some(file) = &recorded.credentials_file {
            text.push_str(&format!("{CREDENTIALS_FILE}{file}\n"));
            text.push_str(&format!("{HAS_END}{}\n", recorded.has_end));
        }
        let mut file = NamedTempFile::new_in(&self.directory)?;
        file.write_all(text.as_bytes())?;
        super::file::keep_owner(file.as_file(), &self.path(), &self.directory);
        file.as_file().sync_all()?;
        file.persist(self.path())?;
        File::open(&self.directory)?.sync_all()
    }
}

impl Recorded {
    /// What to record of a credentials file in force.
    #[must_use]
    pub fn of(file: &Path, has_end: bool) -> Self {
        Self {
            credentials_file: Some(name_of(file)),
            has_end,
        }
    }

    /// Whether this file was in force with its last line, so that it is cut short without.
    #[must_use]
    pub fn needs_end(&self, file: &Path) -> bool {
        self.has_end && self.credentials_file.as_ref() == Some(&name_of(file))
    }
}

/// A file by a name that means the same from every directory, on one line.
fn name_of(file: &Path) -> String {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    file.display().to_string().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_is_made_where_nothing_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record::new(directory.path().join("data"));
        let file = Path::new("/etc/bridge/credentials\n.toml");
        record.write(&Recorded::of(file, true)).unwrap();
        assert_eq!(record.read(), None, "there is no data directory");
        fs::create_dir(directory.path().join("data")).unwrap();
        assert_eq!(record.read(), None);
        for recorded in [
            Recorded::default(),
            Recorded::of(file, false),
            Recorded::of(file, true),
        ] {
            record.write(&recorded).unwrap();
            assert_eq!(record.read(), Some(recorded));
        }
        let recorded = record.read().unwrap();
        assert!(recorded.needs_end(file));
        assert!(!recorded.needs_end(Path::new("/etc/bridge/other.toml")));
        assert!(!Recorded::of(file, false).needs_end(file));
    }

    #[test]
    fn a_record_that_cannot_be_understood_counts() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record::new(directory.path().to_owned());
        fs::write(record.path(), b"\xff").unwrap();
        assert_eq!(record.read(), Some(Recorded::default()));
        fs::remove_file(record.path()).unwrap();
        fs::create_dir(record.path()).unwrap();
        assert_eq!(record.read(), Some(Recorded::default()));
    }
}
