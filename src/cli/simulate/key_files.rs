//! The key files of `simulate`: which private keys it signs with, and where it writes the public ones.

use std::path::Path;

use super::{Args, explain};
use crate::{
    cli::{
        exit::{Exit, Failure},
        public_file, signing_key,
    },
    simulator::{Error, SigningKey, Simulator},
};

impl Args {
    /// The keys that were given, or for one app this user's own: then a bridge goes on trusting a
    /// simulator that was started anew, and `trigger` signs with it, too.
    pub(super) fn signing_keys(&self, apps: usize) -> Result<Vec<SigningKey>, Failure> {
        if !self.keys.is_empty() {
            let keys = self.keys.iter();
            return keys.map(|path| signing_key::read(path)).collect();
        }
        match signing_key::own_path() {
            Some(path) if apps == 1 => Ok(vec![signing_key::own(&path)?]),
            // Made by the simulator, one for each app, for this run.
            Some(_) | None => Ok(Vec::new()),
        }
    }

    /// Writes the public keys to the files that were asked for.
    pub(super) fn write_keys(&self, simulator: &Simulator) -> Result<(), Failure> {
        write_files("--jwks-out", self.jwks_out.as_deref(), simulator, |app| {
            Ok(format!("{:#}\n", simulator.jwks(app)?))
        })?;
        write_files("--pem-out", self.pem_out.as_deref(), simulator, |app| {
            simulator.public_pem(app)
        })
    }
}

/// Writes a file for each app to the path that a flag names, if it was given.
fn write_files(
    flag: &str,
    pattern: Option<&str>,
    simulator: &Simulator,
    text_of: impl Fn(&str) -> Result<String, Error>,
) -> Result<(), Failure> {
    let Some(pattern) = pattern else {
        return Ok(());
    };
    if simulator.app_ids().count() > 1 && !pattern.contains("{app}") {
        let cause = format!("`{flag}` names one file for several apps");
        return Err(Failure::new(Exit::Usage, cause).help("write `{app}` into its name"));
    }
    for app in simulator.app_ids() {
        let path = pattern.replace("{app}", app);
        let text = text_of(app).map_err(explain)?;
        public_file::write(Path::new(&path), &text).map_err(|error| {
            let cause = format!("the keys cannot be written to {path}: {error}");
            Failure::new(Exit::Failed, cause).help(format!("check the directory of `{flag}`"))
        })?;
    }
    Ok(())
}
