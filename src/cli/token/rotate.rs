//! `token rotate`: a new token for a credential, beside the current one for a while.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use jiff::Timestamp;

use super::{
    FileArgs,
    expiry::{self, ExpiryArgs},
    failure, new_token,
};
use crate::{
    cli::exit::{self, Exit, Failure},
    credentials::{Entry, Rotation},
};

/// The longest time for which an old token can be kept. A longer one would be a second credential.
const KEEP_MAX: Duration = Duration::from_secs(90 * 86_400);

/// `token rotate`
#[derive(Debug, clap::Args)]
pub(super) struct Rotate {
    /// The credential
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    name: String,

    /// Accept the old token for this time too, at most 90d; 0s revokes it at once
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    keep_old_for: String,

    #[command(flatten)]
    expiry: ExpiryArgs,

    #[command(flatten)]
    file_args: FileArgs,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  A new token for billing; the old one is accepted for another day:
    TOKEN=$(prelude-bridge token rotate billing)
  Revoke the old one when no subscriber uses it any more (token list: USED):
    prelude-bridge token revoke billing --old
  The token leaked: replace it at once:
    prelude-bridge token rotate billing --keep-old-for 0s";

impl Rotate {
    pub(super) fn run(self) -> Result<(), Failure> {
        let now = Timestamp::now();
        let keep_old_for = expiry::duration("--keep-old-for", &self.keep_old_for)?;
        if keep_old_for > KEEP_MAX {
            let cause = format!("`--keep-old-for {}` is too long", self.keep_old_for);
            return Err(Failure::new(Exit::Usage, cause)
                .help("write at most 90d, or create a second credential"));
        }
        let file = self.file_args.file()?;
        let entries = file.read().map_err(|error| failure(&error))?;
        let mut entries = entries.unwrap_or_default().into_iter();
        let before = entries.find(|entry| entry.name == self.name);
        // From the time that is recorded, so that its life is exactly that of the token before.
        let made_at = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let expires_at = self.expiry.of_rotated(before.as_ref(), made_at)?;
        let token = new_token()?;
        let rotation = Rotation {
            digest: token.digest(),
            now,
            expires_at,
            keep_old_for,
        };
        let rotated = file.rotate(&self.name, &rotation);
        let rotated = rotated.map_err(|error| failure(&error))?;
        explain(&rotated.after);
        exit::print(&format!("{}\n", token.expose())).inspect_err(|_| {
            // Nobody has seen it, so nobody can use it.
            let _ = file.take_back(&rotated.before, rotation.digest);
        })
    }
}

/// Says on stderr what changed, so that stdout has the token alone.
fn explain(rotated: &Entry) {
    let name = &rotated.name;
    exit::note(&format!(
        "`{name}` has a new token, which a running bridge accepts within a second; {}",
        expiry::advice(rotated)
    ));
    exit::note(&match rotated.previous {
        Some(previous) => format!(
            "the old token is accepted until {}: give the new one to every subscriber, see in \
             `prelude-bridge token list` when the old one was last used, and revoke that with \
             `prelude-bridge token revoke {name} --old` or let it expire",
            previous.expires_at
        ),
        None => "no older token is accepted: a running bridge ends their streams within a second"
            .to_owned(),
    });
    exit::note("this is the only time that the new token is shown");
}
