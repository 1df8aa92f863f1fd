//! `token`: the credentials of subscribers. Owns the flags, the messages and the list;
//! [`crate::credentials`] owns the file.

mod expiry;
mod list;
mod rotate;

use std::{collections::BTreeSet, path::PathBuf};

use clap::{Subcommand, ValueEnum, builder::NonEmptyStringValueParser};
use jiff::Timestamp;

use self::{expiry::ExpiryArgs, rotate::Rotate};
use super::{
    exit::{self, Exit, Failure},
    near, settings,
};
use crate::{
    config::{self, CredentialsSetup},
    credentials::{
        Allowed, CertificateName, Entry, Error, File, LastUse, Proof, Record, Recorded,
        RotationError, STREAMS_MAX, Scope, Token, app_problem, identity_problem, name_problem,
    },
    filter,
};

/// `token`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a credential: a token, or an entry for the name of a client certificate
    ///
    /// The token is printed once, alone on stdout; only its hash is stored. A running bridge accepts it
    /// within a second. With --certificate nothing is printed there: the certificate is the
    /// credential. The first credential ends the time in which subscribers need none.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// Give a credential a new token, beside the old one for a while
    ///
    /// The new token is printed once, alone on stdout. Both tokens are accepted until the old one expires, and
    /// streams that were opened with it go on until then. Only one old token can be accepted at a time.
    #[command(after_help = rotate::EXAMPLES)]
    Rotate(Rotate),
    /// List who may subscribe, to what, until when, and when each token was last used
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// How to print them
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
        #[command(flatten)]
        file_args: FileArgs,
    },
    /// Revoke a credential with all its tokens, and end its streams within a second
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke {
        /// The credential
        #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Revoke only the old token that a rotation left
        #[arg(long)]
        old: bool,
        #[command(flatten)]
        file_args: FileArgs,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Its name, here and in the bridge's log
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    name: String,

    /// Allow only events of these types, exact or patterns; repeatable, or with commas
    /// [default: all, which is written into the file]
    #[arg(long = "type", value_name = "PATTERN", value_delimiter = ',')]
    types: Vec<String>,

    /// Allow only events of these apps; repeatable, or with commas [default: all, which is written
    /// into the file]
    #[arg(long = "app", value_name = "APP_ID", value_delimiter = ',')]
    apps: Vec<String>,

    /// Allow at most this many streams at once [default: no limit but the bridge's]
    #[arg(long, value_name = "COUNT")]
    streams_max: Option<usize>,

    #[command(flatten)]
    expiry: ExpiryArgs,

    /// Make no token, but accept a client certificate with this name: uri:, dns:, email: or
    /// ip: and a subject alternative name, or cn: and the common name of one that has none. Without
    /// a kind its form decides, and it is never a common name
    #[arg(long, value_name = "IDENTITY", value_parser = NonEmptyStringValueParser::new())]
    certificate: Option<String>,

    #[command(flatten)]
    file_args: FileArgs,
}

/// Which file to use: the same flags as for `serve`, so that both use the same file.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
struct FileArgs {
    /// The bridge's configuration, which may name a credentials_file [env: PRELUDE_BRIDGE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The bridge's data directory, where credentials.toml is by default
    /// [env: PRELUDE_BRIDGE_DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIRECTORY", value_parser = NonEmptyStringValueParser::new())]
    data_dir: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// One JSON array
    Json,
}

const CREATE_EXAMPLES: &str = "\
Examples:
  A token for everything, into a variable:
    TOKEN=$(prelude-bridge token create billing)
  Only sessions of one app, ten streams at most, for ninety days:
    prelude-bridge token create fraud --type 'user.session.*' --app 54e9ujn --streams-max 10 --expires-in 90d
  A service with a client certificate:
    prelude-bridge token create audit --certificate uri:spiffe://example.com/audit

To replace a token without a gap: prelude-bridge token rotate NAME.";

const LIST_EXAMPLES: &str = "\
Examples:
  Who may subscribe:
    prelude-bridge token list
  Those that have expired:
    prelude-bridge token list --output json | jq -r '.[] | select(.state == \"expired\").name'";

const REVOKE_EXAMPLES: &str = "\
Examples:
  A subscriber that is no more:
    prelude-bridge token revoke billing
  The old token of a rotation, when no subscriber uses it any more:
    prelude-bridge token revoke billing --old";

/// Runs the command.
///
/// # Errors
/// Exit code 2 for what was typed (a name that is taken or not known, a bad pattern) and for a
/// credentials file that is wrong, 1 for one that cannot be read or written.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Create(create) => create.run(),
        Command::List { output, file_args } => {
            let setup = file_args.setup()?;
            let entries = File::new(setup.file).read();
            let entries = entries.map_err(|error| failure(&error))?;
            let seen = list::Seen {
                last_use: LastUse::read(&setup.data_dir),
                now: Timestamp::now(),
            };
            exit::print(&match output {
                Output::Table => list::table(entries.as_deref(), &seen),
                Output::Json => list::json(entries.as_deref().unwrap_or_default(), &seen),
            })
        }
        Command::Rotate(rotate) => rotate.run(),
        Command::Revoke {
            name,
            old,
            file_args,
        } => {
            let file = file_args.file()?;
            let (revoked, whose) = if old {
                let changed = file.remove_old_token(&name).map(drop);
                (changed, format!("the old token of `{name}`"))
            } else {
                (file.remove(&name), format!("`{name}`"))
            };
            revoked.map_err(|error| failure(&error))?;
            exit::note(&format!(
                "{whose} is revoked: a running bridge ends its streams within a second"
            ));
            Ok(())
        }
    }
}

impl Create {
    fn run(self) -> Result<(), Failure> {
        let now = Timestamp::now();
        let expires_at = self.expiry.of_new(self.certificate.is_some(), now)?;
        self.check()?;
        let setup = self.file_args.setup()?;
        self.warn_of_typing_errors(&setup.app_ids);
        let (file, record) = (File::new(setup.file), Record::new(setup.data_dir));
        let (token, proof) = match self.certificate {
            Some(identity) => {
                let name = CertificateName::parse(&identity).explicit();
                (None, Proof::Certificate(name))
            }
            None => {
                let token = new_token()?;
                let proof = Proof::Token(token.digest());
                (Some(token), proof)
            }
        };
        let entry = Entry {
            name: self.name,
            proof,
            previous: None,
            scope: Scope {
                types: Allowed::or_all(self.types),
                apps: Allowed::or_all(self.apps),
            },
            streams_max: self.streams_max,
            connections_max: None,
            unsent_bytes_max: None,
            // To the second: nobody needs more, and people read it.
            created_at: Timestamp::from_second(now.as_second()).ok(),
            expires_at,
        };
        let is_first =
            setup.file_ends_anonymity && record.read().is_none() && matches!(file.read(), Ok(None));
        file.add(&entry).map_err(|error| failure(&error))?;
        // Every file that a command wrote has its last line. The bridge records it too, when it
        // reads the file.
        if let Err(error) = record.write(&Recorded::of(file.path(), true)) {
            let path = record.path();
            exit::warn(&format!("{} cannot be written: {error}", path.display()));
        }
        explain(&entry, &file);
        if is_first {
            exit::warn(
                "this is the first credential: a running bridge ends the streams of subscribers \
                 without one within a second and lets no such subscriber in any more; \
                 `--allow-anonymous` of `prelude-bridge serve` lets them in as well",
            );
        }
        let Some(token) = token else {
            return Ok(());
        };
        exit::print(&format!("{}\n", token.expose())).inspect_err(|_| {
            // Nobody has seen it, so nobody can use it.
            let _ = file.remove(&entry.name);
        })
    }

    fn warn_of_typing_errors(&self, app_ids: &BTreeSet<String>) {
        let types = self.types.iter();
        let types = types.filter_map(|pattern| near::doubt_of_type("--type", pattern));
        let apps = self.apps.iter();
        let apps = apps.filter_map(|id| near::doubt_of_app("--app", id, app_ids));
        types.chain(apps).for_each(|doubt| exit::warn(&doubt));
    }

    /// All that can be wrong with what was typed, before anything is made.
    fn check(&self) -> Result<(), Failure> {
        let usage = |cause: String, help: &str| Failure::new(Exit::Usage, cause).help(help);
        if let Some(problem) = name_problem(&self.name) {
            let cause = format!("the name {problem}");
            return Err(usage(
                cause,
                "give it a short printable name, such as `billing`",
            ));
        }
        let named = [
            ("--type", &self.types, filter::type_problem as fn(&str) -> _),
            ("--app", &self.apps, app_problem),
        ];
        for (flag, names, problem) in named {
            if names.len() > filter::ENTRIES_MAX {
                let cause = format!("there are more than {} of {flag}", filter::ENTRIES_MAX);
                return Err(usage(cause, "use patterns, or several credentials"));
            }
            for name in names {
                if let Some(problem) = problem(name) {
                    let cause = format!("`{flag} {name}` {problem}");
                    return Err(usage(
                        cause,
                        "write types as `user.created` or `user.session.*`, apps as `54e9ujn`; for \
                         all of them, leave the flag out",
                    ));
                }
            }
        }
        if let Some(problem) = self.certificate.as_deref().and_then(identity_problem) {
            let cause = format!("the identity of the certificate {problem}");
            return Err(usage(cause, "write it as the certificate has it"));
        }
        match self.streams_max {
            Some(count) if !(1..=STREAMS_MAX).contains(&count) => {
                let cause = format!("`--streams-max {count}` is out of bounds");
                let help = format!("write a number from 1 to {STREAMS_MAX}, or leave it out");
                Err(usage(cause, &help))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl FileArgs {
    fn file(&self) -> Result<File, Failure> {
        Ok(File::new(self.setup()?.file))
    }

    fn setup(&self) -> Result<CredentialsSetup, Failure> {
        let sources = settings::sources_of_files(self.config.clone(), self.data_dir.clone());
        Ok(config::credentials_setup(&sources)?)
    }
}

fn new_token() -> Result<Token, Failure> {
    Token::generate().map_err(|error| {
        let cause = format!("the system gives no random bytes: {error}");
        Failure::new(Exit::Failed, cause).help("try again")
    })
}

/// Says on stderr what was made, so that stdout has the token alone.
fn explain(entry: &Entry, file: &File) {
    let of = |allowed: &Allowed, all: &str| match allowed {
        Allowed::All => all.to_owned(),
        Allowed::Only(names) => names.join(", "),
    };
    let quota = match entry.streams_max {
        Some(count) => format!("{count} streams at once"),
        None => "streams within the bridge's limits".to_owned(),
    };
    exit::note(&format!(
        "`{}` may get {} of {}, {quota}; it is in {}",
        entry.name,
        of(&entry.scope.types, "all types"),
        of(&entry.scope.apps, "all apps"),
        file.path().display(),
    ));
    if let Proof::Certificate(name) = &entry.proof {
        exit::note(&format!(
            "the certificate is recognised by {}",
            name.identity().as_str()
        ));
    }
    if entry.expires_at.is_some() || matches!(entry.proof, Proof::Token(_)) {
        exit::note(&expiry::advice(entry));
    }
    exit::note(match entry.proof {
        Proof::Token(_) => {
            "this is the only time that the token is shown: subscribers send it as `authorization: \
             Bearer TOKEN`"
        }
        Proof::Certificate(_) => {
            "subscribers with such a certificate need no token, once the bridge knows its client CA"
        }
    });
}

fn failure(error: &Error) -> Failure {
    match error {
        Error::Invalid { .. } | Error::CutShort { .. } => {
            Failure::new(Exit::Usage, error).help("correct the file; nothing was changed")
        }
        Error::Taken { .. } => Failure::new(Exit::Usage, error)
            .help("use another one, or revoke that credential first"),
        Error::Unknown { .. } => Failure::new(Exit::Usage, error).help(
            "`prelude-bridge token list` shows what there is; name the bridge's own --config \
                   or --data-dir if it has one",
        ),
        Error::Rotation { name, source } => Failure::new(Exit::Usage, error).help(match source {
            RotationError::Certificate => {
                "issue a new certificate with the same name: the entry accepts it".to_owned()
            }
            RotationError::InProgress { .. } => format!(
                "`prelude-bridge token list` shows when the old one was last used; when no subscriber \
                 needs it, run `prelude-bridge token revoke {name} --old` and rotate again. \
                 `--keep-old-for 0s` replaces both at once"
            ),
            RotationError::NoOldToken => format!(
                "to revoke the credential itself, leave `--old` out: `prelude-bridge token revoke {name}`"
            ),
            RotationError::Changed => "see `prelude-bridge token list`".to_owned(),
        }),
        Error::Read { .. } | Error::Write { .. } | Error::Lock { .. } | Error::Jwt(_) => {
            Failure::new(Exit::Failed, error)
                .help("check the path, and that this user may write there; nothing was changed")
        }
    }
}
