//! Owns when each token and certificate was last used, in a small file of its own in the data directory.
//! It only informs: a file that is lost, old or damaged means that it is not known, and nobody is let in or
//! refused because of it. JWTs are not in it, because the bridge does not know who has one.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use tempfile::NamedTempFile;

use super::entry::Proof;

const FILE: &str = "last-use.txt";
const EXPLANATION: &str = "\
# When the credentials of this bridge were last used: the beginning of a token's SHA-256, or the name of a
# certificate. The bridge writes it at most once a minute. It can be removed.
";
/// Room for as many credentials as there can be.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How much of a token's hash names it: 64 bits, so that two tokens do not have one name.
const DIGITS: usize = 16;

/// When each token and certificate was last used, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastUse {
    /// By the name that the file has for it.
    times: HashMap<String, Timestamp>,
}

/// The file of one data directory.
#[derive(Clone, Debug)]
pub(super) struct LastUseFile {
    directory: PathBuf,
}

impl LastUse {
    /// What the bridge of this data directory has recorded; nothing if that cannot be read.
    #[must_use]
    pub fn read(data_dir: &Path) -> Self {
        LastUseFile::new(data_dir.to_owned()).read()
    }

    /// When this was last used, to the minute; `None` if that is not known.
    #[must_use]
    pub fn of(&self, proof: &Proof) -> Option<Timestamp> {
        self.times.get(&key(proof)).copied()
    }

    pub(super) fn set(&mut self, proof: &Proof, now: Timestamp) {
        self.times.insert(key(proof), now);
    }

    /// Forgets everything but these.
    pub(super) fn retain<'p>(&mut self, proofs: impl Iterator<Item = &'p Proof>) {
        let mut kept = HashMap::with_capacity(self.times.len());
        kept.extend(proofs.filter_map(|proof| self.times.remove_entry(&key(proof))));
        self.times = kept;
    }
}

impl LastUseFile {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Lines that cannot be read are left out: the next write mends them.
    pub(super) fn read(&self) -> LastUse {
        let mut text = String::new();
        // A directory, a pipe or a file that is too large is not ours.
        let is_ours = self
            .path()
            .metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() <= FILE_BYTES_MAX);
        let opened = is_ours.then(|| File::open(self.path()));
        if let Some(Ok(file)) = opened
            && file.take(FILE_BYTES_MAX).read_to_string(&mut text).is_err()
        {
            text.clear();
        }
        let times = text.lines().filter_map(|line| {
            let (at, key) = line.split_once(' ')?;
            Some((key.to_owned(), at.parse().ok()?))
        });
        LastUse {
            times: times.collect(),
        }
    }

    /// Replaces the file. It need not survive a power failure, so the disk is not waited for. Where there is
    /// no data directory, nothing is kept.
    pub(super) fn write(&self, last_use: &LastUse) -> io::Result<()> {
        if !self.directory.is_dir() {
            return Ok(());
        }
        let mut lines: Vec<String> = last_use
            .times
            .iter()
            .map(|(key, at)| format!("{at} {key}\n"))
            .collect();
        lines.sort_unstable();
        let mut file = NamedTempFile::new_in(&self.directory)?;
        file.write_all(EXPLANATION.as_bytes())?;
        file.write_all(lines.concat().as_bytes())?;
        file.persist(self.path())?;
        Ok(())
    }
}

/// The name of a proof in the file, on one line. Part of the hash of a random token says nothing of it.
fn key(proof: &Proof) -> String {
    match proof {
        Proof::Token(digest) => digest.to_string().chars().take(DIGITS).collect(),
        Proof::Certificate(name) => name.identity().as_str().escape_debug().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::credentials::{CertificateName, token::Digest};

    fn proofs() -> [Proof; 2] {
        [
            Proof::Token(Digest::of("one")),
            Proof::Certificate(CertificateName::parse("uri:spiffe://e/1 2")),
        ]
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_was_written_is_read_and_the_rest_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let file = LastUseFile::new(directory.path().join("data"));
        let [token, certificate] = proofs();
        let mut last_use = file.read();
        assert_eq!(last_use.of(&token), None);
        last_use.set(&token, at(1));
        last_use.set(&certificate, at(2));
        last_use.set(&token, at(3));
        file.write(&last_use).unwrap();
        assert_eq!(
            file.read(),
            LastUse::default(),
            "there is no data directory"
        );
        fs::create_dir(directory.path().join("data")).unwrap();
        file.write(&last_use).unwrap();
        let read = LastUse::read(&directory.path().join("data"));
        assert_eq!(read, last_use);
        assert_eq!(
            (read.of(&token), read.of(&certificate)),
            (Some(at(3)), Some(at(2)))
        );
        assert_eq!(read.of(&Proof::Token(Digest::of("two"))), None);
        let text = fs::read_to_string(file.path()).unwrap();
        let Proof::Token(digest) = token else {
            unreachable!()
        };
        assert!(!text.contains(&digest.to_string()), "{text}");

        last_use.retain([&certificate].into_iter());
        assert_eq!(
            (last_use.of(&token), last_use.of(&certificate)),
            (None, Some(at(2)))
        );
    }

    #[test]
    fn a_file_that_is_damaged_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = LastUseFile::new(directory.path().to_owned());
        let [token, certificate] = proofs();
        let mut last_use = LastUse::default();
        last_use.set(&token, at(1));
        last_use.set(&certificate, at(2));
        file.write(&last_use).unwrap();
        let text = fs::read(file.path()).unwrap();
        for end in 0..text.len() {
            fs::write(file.path(), &text[..end]).unwrap();
            for (proof, time) in [(&token, at(1)), (&certificate, at(2))] {
                let read = file.read().of(proof);
                assert!(read.is_none_or(|read| read == time), "{end} {read:?}");
            }
        }
        fs::write(file.path(), [b"\xff\n".as_slice(), &text].concat()).unwrap();
        assert_eq!(file.read(), LastUse::default());
        fs::remove_file(file.path()).unwrap();
        fs::create_dir(file.path()).unwrap();
        assert_eq!(file.read(), LastUse::default());
        assert!(file.write(&last_use).is_err());
    }
}
