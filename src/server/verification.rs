//! Owns when verification tokens are read again: an operator who replaces one writes both into its file for
//! a while, and the bridge does not restart. Tokens in variables cannot change while it runs.

use std::{path::PathBuf, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Config, TokenSource},
    plain,
    receiver::{self, Deliveries, VerificationToken, VerificationTokens},
};

/// How often the files are read: each has some hundred bytes.
const INTERVAL: Duration = Duration::from_secs(1);

/// The files of verification tokens.
pub(super) struct Watch {
    files: Vec<Watched>,
}

/// The file of one app.
struct Watched {
    app_id: String,
    path: PathBuf,
    in_use: VerificationTokens,
    /// What the reading before found, if that is not in use.
    found: Option<Found>,
    is_fault_logged: bool,
}

type Found = Result<Vec<VerificationToken>, String>;

impl Watch {
    /// Watches the files of these apps, which the configuration names.
    pub(super) fn new(config: &Config, apps: &[receiver::App]) -> Self {
        let pairs = config.sources.iter().zip(apps);
        let files = pairs.filter_map(|(app, accepted)| {
            let Deliveries::Batches(tokens) = &accepted.deliveries else {
                return None;
            };
            match &app.activation.as_ref()?.token_source {
                TokenSource::File(path) => Some(Watched {
                    app_id: app.id.clone(),
                    path: path.clone(),
                    in_use: tokens.clone(),
                    found: None,
                    is_fault_logged: false,
                }),
                TokenSource::Variable(_) => None,
            }
        });
        Self {
            files: files.collect(),
        }
    }

    /// Reads the files again and again until `shutdown` is cancelled.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            // Files can be on a disk or a network that is slow.
            let look = tokio::task::spawn_blocking(move || {
                self.files.iter_mut().for_each(Watched::look);
                self
            });
            match look.await {
                Ok(watch) => self = watch,
                Err(error) => {
                    return tracing::error!(%error, "verification tokens are not read any more");
                }
            }
        }
    }
}

impl Watched {
    /// Reads the file once. What two readings in a row find takes effect, so that a file that is being written
    /// does not.
    fn look(&mut self) {
        let read = config::read_verification_tokens(&self.path).map(|tokens| {
            let tokens = tokens.iter();
            tokens
                .map(|token| VerificationToken::new(token.expose()))
                .collect::<Vec<_>>()
        });
        if read.as_ref() == Ok(&self.in_use.accepted()) {
            self.found = None;
            self.is_fault_logged = false;
            return;
        }
        if self.found.as_ref() != Some(&read) {
            self.found = Some(read);
            self.is_fault_logged = false;
            return;
        }
        match read {
            Ok(tokens) => {
                tracing::info!(
                    app = self.app_id,
                    tokens = tokens.len(),
                    "verification tokens replaced"
                );
                self.in_use.replace(tokens);
                self.found = None;
            }
            Err(reason) if !self.is_fault_logged => {
                self.is_fault_logged = true;
                tracing::error!(
                    app = self.app_id,
                    file = plain::configured(self.path.display()),
                    reason = plain::configured(reason),
                    "the file of the verification token changed and cannot be used; the tokens before stay \
                     in use"
                );
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Scene {
        directory: tempfile::TempDir,
        watched: Watched,
    }

    impl Scene {
        fn new(text: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("token.txt");
            fs::write(&path, text).unwrap();
            let tokens = text.lines().map(VerificationToken::new).collect();
            Self {
                directory,
                watched: Watched {
                    app_id: "54e9ujn".to_owned(),
                    path,
                    in_use: VerificationTokens::new(tokens),
                    found: None,
                    is_fault_logged: false,
                },
            }
        }

        fn accepts(&self, tokens: &[&str]) -> bool {
            let tokens: Vec<_> = tokens.iter().copied().map(VerificationToken::new).collect();
            self.watched.in_use.accepted() == tokens
        }

        fn write(&self, text: &str) {
            fs::write(&self.watched.path, text).unwrap();
        }
    }

    #[test]
    fn a_changed_file_takes_effect_when_two_readings_agree() {
        let mut scene = Scene::new("old");
        scene.watched.look();
        assert!(scene.accepts(&["old"]));
        scene.write("new\r\n\n old \n");
        scene.watched.look();
        assert!(scene.accepts(&["old"]));
        scene.watched.look();
        assert!(scene.accepts(&["new", "old"]));
        // Written in steps: no part of a token counts.
        for part in ["n", "ne", "new"] {
            scene.write(part);
            scene.watched.look();
            assert!(scene.accepts(&["new", "old"]), "{part}");
        }
        scene.watched.look();
        assert!(scene.accepts(&["new"]));
        // What comes and goes in between has no effect either.
        scene.write("other");
        scene.watched.look();
        scene.write("new");
        scene.watched.look();
        scene.write("other");
        scene.watched.look();
        assert!(scene.accepts(&["new"]));
    }

    #[test]
    fn a_file_that_cannot_be_used_changes_nothing() {
        use std::os::unix::fs::PermissionsExt as _;
        let mut scene = Scene::new("old");
        for text in ["", "\n \n", "a\nb\nc\n", "a\tb", &"x".repeat(101)] {
            scene.write(text);
            for _ in 0..3 {
                scene.watched.look();
            }
            assert!(scene.accepts(&["old"]), "{text:?}");
            assert!(scene.watched.is_fault_logged);
        }
        fs::remove_file(&scene.watched.path).unwrap();
        let looks = |scene: &mut Scene| (0..3).for_each(|_| scene.watched.look());
        looks(&mut scene);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &scene.watched.path, mode).unwrap();
        looks(&mut scene);
        fs::remove_file(&scene.watched.path).unwrap();
        scene.write("stranger's");
        let set = |mode| fs::set_permissions(&scene.watched.path, fs::Permissions::from_mode(mode));
        set(0o666).unwrap();
        looks(&mut scene);
        assert!(scene.accepts(&["old"]), "others can write it");
        let set = |mode| fs::set_permissions(&scene.watched.path, fs::Permissions::from_mode(mode));
        set(0o600).unwrap();
        looks(&mut scene);
        assert!(scene.accepts(&["stranger's"]));
        assert!(scene.directory.path().exists());
    }
}
