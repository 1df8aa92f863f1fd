//! The private key that `simulate` and `trigger` sign with: the one they are given, or one of this
//! user's own, made once. It protects nothing but trials.

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::exit::{Exit, Failure};
use crate::simulator::SigningKey;

/// What bridges accept, and fast to make.
const KEY_BITS: usize = 2048;

/// Where this user's key is (XDG Base Directory Specification); `None` without a home.
pub(super) fn own_path() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    let state = variable("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.filter(|path| path.is_absolute());
    let state = state.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".local/state")))?;
    Some(state.join("prelude-bridge/simulator-key.pem"))
}

/// The key in a file.
///
/// # Errors
/// The file cannot be read, or holds no RSA private key.
pub(super) fn read(path: &Path) -> Result<SigningKey, Failure> {
    let shown = path.display();
    let pem = fs::read_to_string(path).map_err(|error| {
        let cause = format!("the key {shown} cannot be read: {error}");
        Failure::new(Exit::Usage, cause).help("check the path given with `--key`")
    })?;
    SigningKey::from_pem(&pem).map_err(|error| {
        Failure::new(Exit::Usage, format!("{shown}: {error}"))
            .help("give a PEM file with an RSA private key with `--key`, or remove this one")
    })
}

/// This user's key, made if there is none. Making one takes tenths of a second of CPU.
///
/// # Errors
/// There is a file that is no key, or none can be written.
pub(super) fn own(path: &Path) -> Result<SigningKey, Failure> {
    if path.exists() {
        return read(path);
    }
    let cannot = |error: &dyn std::fmt::Display| {
        let cause = format!("no key can be kept in {}: {error}", path.display());
        Failure::new(Exit::Failed, cause).help("name a key of your own with `--key`")
    };
    let key = SigningKey::generate(KEY_BITS).map_err(|error| cannot(&error))?;
    let pem = key.to_pem().map_err(|error| cannot(&error))?;
    match write(path, &pem) {
        Ok(()) => Ok(key),
        // Another process was faster, and its key counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(path),
        Err(error) => Err(cannot(&error)),
    }
}

/// For this user only, whole, and never over another one.
fn write(path: &Path, pem: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)?;
    let mut file = NamedTempFile::new_in(directory)?;
    file.write_all(pem.as_bytes())?;
    file.persist_noclobber(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_for_this_user() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/key.pem");
        let made = own(&path).unwrap();
        assert_eq!(own(&path).unwrap().id(), made.id());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&path), 0o600);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
        }
    }

    #[test]
    fn what_is_no_key_is_left_alone_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        fs::write(&path, "not a key").unwrap();
        assert_eq!(own(&path).unwrap_err().exit, Exit::Usage);
        assert_eq!(fs::read_to_string(&path).unwrap(), "not a key");
    }
}
