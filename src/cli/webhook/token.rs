//! Verification tokens: made once, kept in a file that only this user can read, at the place where
//! `serve` looks for it. Never printed.

use std::{fs, io, path::Path};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tempfile::NamedTempFile;

use super::super::exit::{Exit, Failure};
use crate::config::{Planned, TokenSource};

/// 256 bits: nobody guesses them. 43 characters of the 100 that Prelude takes.
const TOKEN_BYTES: usize = 32;

/// Makes a token for an app that has none. Returns whether it did.
///
/// # Errors
/// The app's token is to be in a variable, which only whoever starts the bridge can set; or the
/// file cannot be written.
pub(super) fn ensure(app: &Planned) -> Result<bool, Failure> {
    let path = match &app.token_source {
        TokenSource::File(path) => path,
        TokenSource::Variable(name) => {
            return match std::env::var_os(name) {
                Some(value) if !value.is_empty() => Ok(false),
                _ => Err(Failure::new(
                    Exit::Usage,
                    format!(
                        "the verification token of the app `{}` is to be in the variable `{name}`, \
                         which is not set",
                        app.id
                    ),
                )
                .help("set it here and for `serve`, to the same 1 to 100 characters")
                .help(
                    "or write `verification_token_file = \"token.txt\"` instead of \
                     `verification_token_env`: then this command makes one",
                )),
            };
        }
    };
    match fs::read_to_string(path) {
        // Something is there: whether it can be a token is judged with the configuration.
        Ok(text) if !text.trim().is_empty() => Ok(false),
        Ok(_) => write(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => write(path).map(|()| true),
        Err(error) => Err(unwritable(path, &error)),
    }
}

fn write(path: &Path) -> Result<(), Failure> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        let cause = format!("the system gives no random bytes: {error}");
        Failure::new(Exit::Failed, cause).help("try again")
    })?;
    let token = URL_SAFE_NO_PAD.encode(bytes);
    write_durably(path, &token).map_err(|error| unwritable(path, &error))
}

/// Whole or not at all, and there after a power failure: Prelude will hold us to it.
fn write_durably(path: &Path, token: &str) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)?;
    // A temporary file can be read by this user only, and keeps that under its new name.
    let mut file = NamedTempFile::new_in(directory)?;
    io::Write::write_all(&mut file, format!("{token}\n").as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(directory)?.sync_all()
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    let cause = format!(
        "the verification token cannot be kept in {}: {error}",
        path.display()
    );
    Failure::new(Exit::Usage, cause)
        .help("name a place that this user can write to with --data-dir or verification_token_file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SourceKind;

    fn planned(path: &Path) -> Planned {
        Planned {
            id: "54e9ujn".to_owned(),
            kind: SourceKind::Auth,
            token_source: TokenSource::File(path.to_owned()),
        }
    }

    #[test]
    fn a_token_is_made_once_and_only_for_this_user() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens/54e9ujn.txt");
        assert!(ensure(&planned(&path)).unwrap());
        let token = fs::read_to_string(&path).unwrap();
        assert_eq!(token.trim().len(), 43);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(!ensure(&planned(&path)).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), token);
    }

    #[test]
    fn an_empty_file_is_filled_and_an_unusable_place_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token.txt");
        fs::write(&path, "\n").unwrap();
        assert!(ensure(&planned(&path)).unwrap());
        let below_a_file = path.join("token.txt");
        let failure = ensure(&planned(&below_a_file)).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
    }
}
